"""What runs need of other runs: which runs are meant, whether they have succeeded, and where their outputs are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from groundplane.domain.queue import INPUT_PREFIX, QueueEntry
from groundplane.domain.run import Run, RunStatus
from groundplane.ports import Contains, Tx

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
    known: dict[tuple[str, str], list[str]] = {}
    settled: list[QueueEntry] = []
    fresh: list[QueueEntry] = []
    for entry in entries:
        if entry.holds or not entry.needs:
            settled.append(entry)
            continue
        needs: dict[str, str] = {}
        for name, ids in entry.needs.items():
            key = (entry.project, name)
            if not ids and key not in known:
                known[key] = await _candidates(tx, entry.project, name)
            # It may have the name of what it needs: then the one before it is meant.
            needs[name] = ids or next((each for each in known[key] if entry.id not in each.split()), "")
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


async def _candidates(tx: Tx, project: str, name: str) -> list[str]:
    """What a name may mean, the newest first: runs of that name, or all elements of the newest array of that name.

    Each is the ids of its runs, with a space between them.
    """
    if name.startswith("run-"):
        return [name]
    same = await tx.find(Run, {"project": project, "name": name}, order="-created_at", limit=2)
    elements = await _elements(tx, project, name)
    if elements and (not same or elements[0].created_at > same[0].created_at):
        return [" ".join(run.id for run in elements)]
    return [run.id for run in same]


async def _elements(tx: Tx, project: str, name: str) -> list[Run]:
    """Every element of the newest array of a name, by index; none until all of them are there."""
    like = await tx.total(
        Run, "*", by=("id", "name", "created_at"), where={"project": project, "name": Contains(f"{name}-")}
    )
    element = re.compile(re.escape(name) + r"-\d+")
    rows = sorted((key for key in like if element.fullmatch(str(key[1]))), key=lambda key: str(key[2]), reverse=True)
    newest: dict[str, str] = {}
    for run_id, its_name, _ in rows:
        newest.setdefault(str(its_name), str(run_id))
    if not newest:
        return []
    last = await tx.get(Run, next(iter(newest.values())))
    array = last.spec.array if last is not None else None
    if array is None or array.name != name:
        return []
    names = [f"{name}-{index}" for index in range(array.first, array.last + 1)]
    if not names or not set(names) <= newest.keys():
        return []
    runs = {run.name: run for run in await tx.find(Run, {"id": tuple(newest[each] for each in names)})}
    return [runs[each] for each in names]


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
