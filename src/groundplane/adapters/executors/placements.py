"""Which nodes an attempt was sent to: one durable file per attempt, written before the first node hears of it.

What has no file was never sent to a node, so it may be called absent though a node is silent.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from groundplane.adapters.atomic_file import replace_durably

TOMBSTONE_AGE_S = 30 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """`members` are node names by rank, "" where unknown. `stop` is a wish that came before the start.

    `gone_limit_s` is the dead-man timer that the nodes were told, 0 when none or when that is not known.
    """

    run_id: str = ""
    members: tuple[str, ...] = ()
    port: int = 0
    stop: str = ""
    released: bool = False
    gone_limit_s: float = 0.0


class Placements:
    """`<folder>/<attempt id>.json`, read once, kept in memory; `<folder>/counted.json`: nodes whose attempts are in."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Placed] | None = None
        self._counted: set[str] = set()

    def get(self, attempt_id: str) -> Placed | None:
        return self._load().get(attempt_id)

    def all(self) -> Mapping[str, Placed]:
        return self._load()

    def put(self, attempt_id: str, placed: Placed) -> None:
        """Durable when it returns. OSError when the disk refuses."""
        known = self._load()
        if known.get(attempt_id) == placed:
            return
        replace_durably(self._folder / f"{attempt_id}.json", json.dumps(asdict(placed)).encode())
        known[attempt_id] = placed

    def adopt(self, attempt_id: str, rank: int, size: int, node: str) -> bool:
        """A node says that it has this member. False when that is not where we sent it: a leftover."""
        before = self.get(attempt_id)
        if before is None:
            before = Placed(members=("",) * size)
        members = list(before.members)
        if len(members) != size or members[rank] not in ("", node):
            return False
        members[rank] = node
        self.put(attempt_id, replace(before, members=tuple(members)))
        return True

    def is_counted(self, node: str) -> bool:
        self._load()
        return node in self._counted

    def count(self, node: str) -> None:
        """From now on every attempt of ours on the node has a file."""
        if not self.is_counted(node):
            self._counted.add(node)
            replace_durably(self._folder / "counted.json", json.dumps(sorted(self._counted)).encode())

    def _load(self) -> dict[str, Placed]:
        if self._known is None:
            known: dict[str, Placed] = {}
            for path in self._folder.glob("*.json"):
                if path.name == "counted.json":
                    self._counted = set(json.loads(path.read_bytes()))
                    continue
                document = json.loads(path.read_bytes())
                placed = Placed(**{**document, "members": tuple(document["members"])})
                if placed.released and time.time() - path.stat().st_mtime > TOMBSTONE_AGE_S:
                    path.unlink(missing_ok=True)
                    continue
                known[path.stem] = placed
            self._known = known
        return self._known
