"""What desks report, in the words of the domain."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from groundplane.adapters.executors.members import split
from groundplane.domain.order import Sample
from groundplane.domain.preflight import results_of
from groundplane.domain.run import EndReason, FoundCheckpoint, MemberHang, Observation
from groundplane.domain.staging import progress_of

UNFIT = {EndReason.NODE_UNFIT, EndReason.SPOT_RECLAIMED}
STATES = {"starting", "running", "ended", "absent", "unknown", "unstarted"}
NUMBER_MAX = 2**63 - 1
OTHER_ENDED = "another member ended first: "


def readable_observation(attempt_id: str, node: str, document: Mapping[str, Any]) -> Observation:
    """`as_observation`, or `unknown` where the document is no state: a job without isolation can write to its own, and
    what one job writes must not keep the others of its node from being seen.
    """
    try:
        if document["state"] not in STATES:
            raise ValueError(f"{document['state']!r} is no state")
        seen = as_observation(attempt_id, node, document)
        _demand_storable(document)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        message = f"its state can't be read: {error!r}"[:500].encode(errors="replace").decode()
        return Observation(attempt_id=attempt_id, state="unknown", node=node, message=message)
    return seen


def _demand_storable(value: Any) -> None:
    """ValueError for what no database keeps: half a character, a NUL, a number beyond 64 bits."""
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError("a text holds NUL")
        value.encode()
    elif isinstance(value, int):
        if abs(value) > NUMBER_MAX:
            raise ValueError("a number is beyond 64 bits")
    elif isinstance(value, Mapping):
        for name, each in value.items():
            _demand_storable(name)
            _demand_storable(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            _demand_storable(each)


def as_observation(attempt_id: str, node: str, document: Mapping[str, Any]) -> Observation:
    """A desk's state document."""
    state = document["state"]
    sample = (document.get("sample") or {}) if state == "running" else {}
    loads = [card["utilization_percent"] for card in sample.get("accelerators", ()) if "utilization_percent" in card]
    return Observation(
        attempt_id=attempt_id,
        state=state,
        node=node if state in {"starting", "running", "ended"} else "",
        started_at=_time(document.get("started_at")),
        ended_at=_time(document.get("ended_at")),
        end_reason=_end_reason(document) if state == "ended" else None,
        exit_code=document.get("exit_code"),
        message=document.get("message", ""),
        last_log_at=_time(document.get("last_log_at")),
        checkpoints=tuple(FoundCheckpoint(**each) for each in document.get("checkpoints", ())),
        cpu_percent=sample.get("cpu_percent"),
        memory_bytes=sample.get("memory_bytes"),
        accelerator_percent=sum(loads) / len(loads) if loads else None,
        preflight=results_of(document.get("preflight", ())),
        active_at=_time(document.get("active_at")),
        hangs=_hangs(attempt_id, node, document.get("hang")),
        unfit_node=node if document.get("end_reason") in UNFIT else "",
        staging=progress_of(document.get("staging")) if state == "starting" else None,
        energy_j=(document.get("energy") or {}).get("joules"),
        energy_how=(document.get("energy") or {}).get("how", ""),
    )


def together(attempt_id: str, members: Sequence[Observation]) -> tuple[Observation, Observation | None]:
    """A gang as one: (what it is as a whole, the member that failed first if any), by rank.

    It runs when all run, and has ended when all have; one that can't be seen makes the whole unknown. The failure that
    counts is the first that was not ordered by us because of another.
    """
    failed = [each for each in members if each.state == "ended" and each.end_reason is not EndReason.SUCCEEDED]
    causes = [each for each in failed if not each.message.startswith(OTHER_ENDED)] or failed
    first = min(causes, key=lambda each: (each.ended_at is None, str(each.ended_at)), default=None)
    if first is not None:
        rank = members.index(first)
        message = first.message.removeprefix(OTHER_ENDED)
        if not message.startswith("rank "):
            message = f"rank {rank} on {first.node}: {message or first.end_reason}"
        first = replace(first, message=message)
    states = {each.state for each in members}
    started = [each.started_at for each in members if each.started_at is not None]
    logged = [each.last_log_at for each in members if each.last_log_at is not None]
    loads = [each.accelerator_percent for each in members if each.accelerator_percent is not None]
    staging = [each.staging for each in members if each.staging is not None]
    energy = [each.energy_j for each in members if each.energy_j is not None]
    complete = len(energy) == len(members)  # a sum that lacks a member is no sum
    seen = Observation(
        attempt_id=attempt_id,
        state=next(state for state in ("unknown", "absent", "starting", "running", "ended") if state in states),
        node=",".join(each.node for each in members if each.node),
        started_at=max(started, default=None),
        last_log_at=max(logged, default=None),
        checkpoints=members[0].checkpoints,
        cpu_percent=_sum([each.cpu_percent for each in members]),
        memory_bytes=_sum([each.memory_bytes for each in members]),
        accelerator_percent=sum(loads) / len(loads) if loads else None,
        preflight=(first or members[0]).preflight,
        unfit_node=first.unfit_node if first else "",
        active_at=max((each.active_at for each in members if each.active_at is not None), default=None),
        members=len(members),
        hangs=tuple(hang for each in members for hang in each.hangs),
        staging=min(staging, key=lambda each: each.done_bytes, default=None),
        energy_j=sum(energy) if complete else None,
        energy_how=f"{members[0].energy_how} on each of {len(members)} nodes" if complete else "",
    )
    if seen.state == "unknown":
        silent = [each for each in members if each.state == "unknown"]
        since = min((each.silent_since for each in silent if each.silent_since is not None), default=None)
        message = "; ".join(each.message for each in silent)
        return Observation(attempt_id=attempt_id, state="unknown", message=message, silent_since=since), first
    if seen.state == "ended":
        last = max((each.ended_at for each in members if each.ended_at is not None), default=None)
        told = first or members[0]
        seen = replace(seen, ended_at=last, end_reason=told.end_reason, exit_code=told.exit_code, message=told.message)
    return seen, first


def _hangs(attempt_id: str, node: str, document: Mapping[str, Any] | None) -> tuple[MemberHang, ...]:
    if not document:
        return ()
    unreachable = tuple(document.get("unreachable", ()))
    rank = split(attempt_id)[1]
    return (
        MemberHang(
            node=node, rank=rank, why=document["why"], quiet_s=document["quiet_s"], unreachable=unreachable
        ),
    )  # fmt: skip


def as_sample(document: Mapping[str, Any]) -> Sample:
    return Sample(
        at=datetime.fromisoformat(document["at"]),
        cpu_percent=document["cpu_percent"],
        memory_bytes=document["memory_bytes"],
        disk_free_bytes=document["disk_free_bytes"],
        accelerators=tuple(document["accelerators"]),
    )


def accelerator_name(reported: str, memory_bytes: int) -> str:
    """The catalogue's way to name a card: `NVIDIA A100-SXM4-80GB`, 81,920 MiB → `a100-80gb`.

    Source: product names as nvmlDeviceGetName reports them; sizes as the vendor's data sheets print them, in GB.
    """
    words = re.split(r"[\s-]+", reported.removeprefix("NVIDIA ").removeprefix("Tesla "))
    model = next((word for word in words if re.fullmatch(r"[A-Z]{1,3}\d+\w*", word)), words[0])
    sizes = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 141, 180, 192, 288)
    size = min(sizes, key=lambda gigabytes: abs(gigabytes - memory_bytes / 2**30))
    return f"{model.lower()}-{size}gb"


def _sum(figures: Sequence[Any]) -> Any:
    known = [each for each in figures if each is not None]
    return sum(known) if known else None


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _end_reason(document: Mapping[str, Any]) -> EndReason:
    try:
        return EndReason(document["end_reason"])
    except ValueError:  # a stop file written by a newer control plane: stopped, whatever the words
        return EndReason.STOPPED_BY_USER
