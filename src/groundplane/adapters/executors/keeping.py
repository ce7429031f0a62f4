"""Checkpoints on their way: from a node to the control plane, from there to any node, and off a node."""

from __future__ import annotations

import asyncio
import base64
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from groundplane.adapters.executors.channels import Document
from groundplane.adapters.executors.placements import Placed
from groundplane.domain.order import Order
from groundplane.domain.run import Checkpoint
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Unavailable

PIECE_BYTES = 4 * 2**20
PIECE_PATIENCE_S = 60.0
HASH_PATIENCE_S = 3600.0


class Pace:
    """A bandwidth limit: `spend` waits as long as so many bytes take at it. 0 bytes a second is no limit."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = time.monotonic()

    async def spend(self, count: int) -> None:
        if self._bytes_per_s:
            self._free_at = max(self._free_at, time.monotonic()) + count / self._bytes_per_s
            await asyncio.sleep(max(0.0, self._free_at - time.monotonic()))


class CheckpointCalls(ABC):
    """Mixed into the executor over nodes, which asks their desks."""

    async def bring_checkpoint(self, attempt_id: str, path: str, target: Path, bytes_per_s: int) -> Path:
        where = self._member(attempt_id, 0)
        if where is None:
            raise NotFound(f"nobody knows where {attempt_id} ran", "its checkpoints stay where they are")
        if not bytes_per_s and self._sees_files:
            if not await asyncio.to_thread(Path(path).is_dir):
                raise NotFound(f"checkpoint {path} is gone")
            return Path(path)
        link, pace = where[0], Pace(bytes_per_s)
        files = (await self._ask(link, "files", PIECE_PATIENCE_S, run_id="checkpoint", root=path))["files"]
        if not files:
            raise NotFound(f"checkpoint {path} is gone from {link.name}")
        for file in files:
            await self._bring_piecewise(link, path, file, target, pace)
        return target

    async def _bring_piecewise(self, link: Any, root: str, file: Document, target: Path, pace: Pace) -> None:
        """Goes on where an earlier try broke off; what came is verified by who reads it."""
        path = (target / file["path"]).resolve()
        if not path.is_relative_to(target.resolve()):
            raise InvalidInput(f"{file['path']!r} leaves the checkpoint", "its node names a file outside it")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as out:
            if out.tell() > file["bytes"]:
                out.truncate(0)
            while out.tell() < file["bytes"]:
                said = await self._ask(
                    link, "read", PIECE_PATIENCE_S, run_id="checkpoint", root=root, path=file["path"], offset=out.tell()
                )
                piece = base64.b64decode(said["data"])
                if not piece:
                    raise Conflict(f"{file['path']} became shorter while it was copied", "it is done again")
                await asyncio.to_thread(out.write, piece)
                await pace.spend(len(piece))

    async def step_on(self, order: Order, node: str) -> int | None:
        step: int | None = (
            await self._ask(
                self._link(node), "newest_step", PIECE_PATIENCE_S, run_id=order.run_id, folder=self._shelf(order, node)
            )
        )["step"]
        return step

    async def restore_checkpoint(
        self,
        order: Order,
        node: str,
        checkpoint: Checkpoint,
        read: Callable[[str, int, int], Awaitable[bytes]],
        bytes_per_s: int,
    ) -> None:
        link, pace = self._link(node), Pace(bytes_per_s)
        place = {"run_id": order.run_id, "folder": self._shelf(order, node), "name": f"step-{checkpoint.step}"}
        arrived = (await self._ask(link, "arrived", PIECE_PATIENCE_S, **place))["files"]
        for file in checkpoint.files:
            offset = arrived.get(file.path, 0)
            while offset < file.size_bytes or (not file.size_bytes and file.path not in arrived):
                piece = await read(file.sha256, offset, min(PIECE_BYTES, file.size_bytes - offset))
                data = base64.b64encode(piece).decode()
                await self._ask(link, "bring", PIECE_PATIENCE_S, **place, path=file.path, offset=offset, data=data)
                offset += len(piece)
                if not piece:
                    break
                await pace.spend(len(piece))
        if not (await self._ask(link, "finish", HASH_PATIENCE_S, **place))["whole"]:
            raise IntegrityFailure(
                f"step {checkpoint.step} did not arrive whole on {node}", "it is sent again; ground artifacts scrub"
            )

    async def remove_checkpoints(self, attempt_id: str, run_id: str, paths: Sequence[str]) -> None:
        where = self._member(attempt_id, 0)
        if where is None or not paths:
            return
        folder = str(Path(paths[0]).parent)
        await self._ask(where[0], "discard", PIECE_PATIENCE_S, run_id=run_id, folder=folder, paths=list(paths))

    async def stacks(self, attempt_id: str, rank: int = 0) -> str:
        where = self._member(attempt_id, rank)
        return "" if where is None else str((await self._ask(where[0], "stacks", attempt_id=where[1]))["text"])

    def _shelf(self, order: Order, node: str) -> str:
        """The run's checkpoint folder as the node's desk knows it; "" where it is the desk's own choice."""
        folder: str = self._documents(order, Placed(members=(node,)))[0]["checkpoint_dir"]
        return folder

    @property
    @abstractmethod
    def _sees_files(self) -> bool:
        """Whether paths on the nodes mean the same here."""

    @abstractmethod
    async def _ask(self, link: Any, operation: str, patience_s: float = 0.0, **arguments: Any) -> Document: ...

    @abstractmethod
    def _member(self, attempt_id: str, rank: int) -> tuple[Any, str] | None: ...

    @abstractmethod
    def _link(self, node: str) -> Any: ...

    @abstractmethod
    def _documents(self, order: Order, placed: Placed) -> list[Document]: ...


class NoFiles:
    """Checkpoints of a pool that runs nothing: there are none to carry."""

    async def bring_checkpoint(self, attempt_id: str, path: str, target: Path, bytes_per_s: int) -> Path:
        raise NotFound(f"{path} is simulated: there are no files")

    async def step_on(self, order: Order, node: str) -> int | None:
        return None

    async def restore_checkpoint(
        self,
        order: Order,
        node: str,
        checkpoint: Checkpoint,
        read: Callable[[str, int, int], Awaitable[bytes]],
        bytes_per_s: int,
    ) -> None:
        raise Unavailable(f"{node} is simulated: nothing can be restored there")

    async def remove_checkpoints(self, attempt_id: str, run_id: str, paths: Sequence[str]) -> None:
        """There are none."""

    async def stacks(self, attempt_id: str, rank: int = 0) -> str:
        return ""
