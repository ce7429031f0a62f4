"""What runs need of other runs: which runs are meant, whether they have succeeded, and where their outputs are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from groundplane.domain.conditions import Contains
from groundplane.domain.queue import INPUT_PREFIX, QueueEntry
from groundplane.domain.run import Run, RunStatus
from groundplane.domain.spec import JobSpec
from groundplane.ports import Tx

HOME_POOL = "local"
_IDS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Entries with the runs that they need. `fresh` are those for which one was found now.

    `waits` and `failed` say of an entry what it waits for, and what it needs that will never succeed.
    """

    entries: tuple[QueueEntry, ...]
    fresh: tuple[QueueEntry, ...]
    waits: dict[str, str]
    failed: dict[str, str]


async def find_needed(tx: Tx, entries: tuple[QueueEntry, ...]) -> Found:
    """Looks up what the waiting ones among the entries need. A need once found stays the same run. Writes nothing."""
    known = _Names(tx)
    settled: list[QueueEntry] = []
    fresh: list[QueueEntry] = []
    for entry in entries:
        if entry.holds or not entry.needs:
            settled.append(entry)
            continue
        needs: dict[str, str] = {}
        for name, ids in entry.needs.items():
            needs[name] = ids or await known.meant(entry.project, name, entry.queued_at, not_id=entry.id)
        found = entry if needs == entry.needs else replace(entry, needs=needs)
        fresh += [found] if found is not entry else []
        settled.append(found)
    asking = [entry for entry in settled if entry.needs and not entry.holds]
    status = await _statuses(tx, {run_id for entry in asking for ids in entry.needs.values() for run_id in ids.split()})
    waits: dict[str, str] = {}
    failed: dict[str, str] = {}
    for entry in asking:
        _judge(entry, status, waits, failed)
    return Found(entries=tuple(settled), fresh=tuple(fresh), waits=waits, failed=failed)


async def find_circle(tx: Tx, project: str, job: JobSpec, now: datetime) -> tuple[str, ...]:
    """The names by which a job that is not in the queue yet would need itself, through runs that wait; () when none.

    `train, prepare, train`: train needs prepare, which needs the next run that is called train.
    """
    own = {job.metadata.name, *([job.array.name] if job.array is not None else [])}
    known = _Names(tx)
    looked_at: set[str] = set()
    asking: list[tuple[tuple[str, ...], dict[str, str], datetime]] = [
        ((job.metadata.name,), dict.fromkeys(job.needs, ""), now)
    ]
    while asking:
        way_to: dict[str, tuple[str, ...]] = {}
        for way, needs, by in asking:
            for name, ids in needs.items():
                meant = (ids or await known.meant(project, name, by)).split()
                if not meant and name in own:
                    return *way, name
                way_to |= {run_id: (*way, name) for run_id in meant if run_id not in looked_at}
        looked_at |= way_to.keys()
        asking = [(way_to[run_id], needs, by) for run_id, needs, by in await _needs_of(tx, list(way_to))]
    return ()


async def _needs_of(tx: Tx, ids: list[str]) -> list[tuple[str, dict[str, str], datetime]]:
    """Of those that are not over and need others: id, what they need, and when they were submitted."""
    found: list[tuple[str, dict[str, str], datetime]] = []
    for start in range(0, len(ids), _IDS_AT_ONCE):
        chunk = ids[start : start + _IDS_AT_ONCE]
        entries = {entry.id: entry for entry in await tx.find(QueueEntry, {"id": tuple(chunk)})}
        found += [(entry.id, entry.needs, entry.queued_at) for entry in entries.values() if not entry.holds]
        # Just admitted, they have no place in the queue yet.
        rest = tuple(run_id for run_id in chunk if run_id not in entries)
        runs = await tx.find(Run, {"id": rest, "status": RunStatus.PENDING}) if rest else []
        found += [(run.id, dict.fromkeys(run.spec.needs, ""), run.created_at) for run in runs]
    return [each for each in found if each[1]]


def needed_ids(entry: QueueEntry) -> list[str]:
    """Every run that the entry needs."""
    return [run_id for ids in entry.needs.values() for run_id in ids.split()]


def input_env(entry: QueueEntry, output_dirs: Mapping[str, str]) -> dict[str, str]:
    """`GROUND_INPUT_<NAME>` → the output folder of the needed run of that name, as the job sees it.

    Of an array, the folders of all elements by their index, with a `:` between them.
    """
    return {
        INPUT_PREFIX + name.upper().replace("-", "_"): ":".join(output_dirs[run_id] for run_id in ids.split())
        for name, ids in entry.needs.items()
        if ids and all(run_id in output_dirs for run_id in ids.split())
    }


def _judge(
    entry: QueueEntry, status: Mapping[str, tuple[str, str, RunStatus]], waits: dict[str, str], failed: dict[str, str]
) -> None:
    absent: list[str] = []
    unfinished: list[str] = []
    for name, ids in entry.needs.items():
        if not ids:
            absent.append(name)
        for run_id in ids.split():
            project, pool, stands = status.get(run_id, ("", "", RunStatus.PENDING))
            if project != entry.project:
                absent.append(name)
            elif pool != entry.pool and entry.pool != HOME_POOL:
                # Only this machine has what the runs of other pools hand back.
                failed.setdefault(entry.id, f"it needs {name} ({run_id}) of pool {pool}, whose files pool {entry.pool} "
                                            "does not see")  # fmt: skip
            elif stands.is_over and stands is not RunStatus.SUCCEEDED:
                failed.setdefault(entry.id, f"it needs {name} ({run_id}), which {stands}")
            elif not stands.is_over:
                unfinished.append(f"{name} ({run_id}), which is {stands}")
    if entry.id in failed:
        return
    if absent:
        waits[entry.id] = f"it needs {', '.join(dict.fromkeys(absent))}, and no run of that name is there yet"
    elif unfinished:
        more = f", and {len(unfinished) - 1} more" if len(unfinished) > 1 else ""
        waits[entry.id] = f"it needs {unfinished[0]}{more}"


@dataclass(slots=True)
class _Names:
    """What names mean, read once each: (project, name) → its runs as (created, id), elements as (created, name, id)."""

    tx: Tx
    _runs: dict[tuple[str, str], list[tuple[datetime, str]]] = field(default_factory=dict)
    _elements: dict[tuple[str, str], list[tuple[datetime, str, str]]] = field(default_factory=dict)
    _arrays: dict[tuple[str, str, int], tuple[datetime, str] | None] = field(default_factory=dict)

    async def meant(self, project: str, name: str, by: datetime, *, not_id: str = "") -> str:
        """The newest run of that name that was there at `by`, else the first to come; an array's ids with spaces.

        "" while there is none, or not all elements of an array. A run never means itself: it may have the name of what
        it needs, then the one before it is meant.
        """
        if name.startswith("run-"):
            return name
        await self._read(project, name)
        runs = [each for each in self._runs[project, name] if each[1] != not_id]
        rows = self._elements[project, name]
        before = sum(created < by for created, *_ in rows)
        earlier = [each for each in runs if each[0] < by][-1:]
        array = await self._array(project, name, before)
        found = max([*earlier, *([array] if array else [])], default=None)
        if found is None:
            array = await self._array(project, name, len(rows))
            found = min([*runs[:1], *([array] if array else [])], default=None)
        return found[1] if found is not None and not_id not in found[1].split() else ""

    async def _read(self, project: str, name: str) -> None:
        if (project, name) in self._runs:
            return
        where: dict[str, object] = {"project": project, "name": name}
        same = await self.tx.total(Run, "*", by=("created_at", "id"), where=where)
        self._runs[project, name] = sorted((_moment(at), str(run_id)) for at, run_id in same)
        where = {"project": project, "name": Contains(f"{name}-")}
        like = await self.tx.total(Run, "*", by=("created_at", "name", "id"), where=where)
        element = re.compile(re.escape(name) + r"-\d+")
        self._elements[project, name] = sorted(
            (_moment(at), str(name), str(run_id)) for at, name, run_id in like if element.fullmatch(str(name))
        )

    async def _array(self, project: str, name: str, count: int) -> tuple[datetime, str] | None:
        """Every element of the newest array among the first `count` rows, by index; none until all of them are there.

        When the last of them came, and their ids with a space between them.
        """
        key = (project, name, count)
        if key not in self._arrays:
            self._arrays[key] = await self._whole_array(name, self._elements[project, name][:count])
        return self._arrays[key]

    async def _whole_array(self, name: str, rows: list[tuple[datetime, str, str]]) -> tuple[datetime, str] | None:
        if not rows:
            return None
        newest = {its_name: run_id for _, its_name, run_id in rows}
        last = await self.tx.get(Run, rows[-1][2])
        array = last.spec.array if last is not None else None
        if array is None or array.name != name:
            return None
        names = [f"{name}-{index}" for index in range(array.first, array.last + 1)]
        if not names or not set(names) <= newest.keys():
            return None
        return rows[-1][0], " ".join(newest[each] for each in names)


def _moment(value: object) -> datetime:
    assert isinstance(value, datetime)
    return value


async def _statuses(tx: Tx, ids: Iterable[str]) -> dict[str, tuple[str, str, RunStatus]]:
    """(project, pool, status) of each run that there is."""
    wanted = sorted(ids)
    found: dict[str, tuple[str, str, RunStatus]] = {}
    columns = ("id", "project", "pool", "status")
    for start in range(0, len(wanted), _IDS_AT_ONCE):
        chunk = tuple(wanted[start : start + _IDS_AT_ONCE])
        for run_id, project, pool, status in await tx.total(Run, "*", by=columns, where={"id": chunk}):
            found[str(run_id)] = (str(project), str(pool), RunStatus(str(status)))
    return found
