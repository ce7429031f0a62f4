"""What the gateways of this machine tell of queues, replicas, storms and prompts: a file each, a second old at most."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from groundplane.adapters.gateway_traffic import is_alive
from groundplane.domain.serving.prompt_lint import PromptFinding
from groundplane.domain.serving.queueing import QueueStanding, QueueView, ReplicaView, StormView


class _Report(msgspec.Struct):
    """As `gateway/reports.py` writes it."""

    queues: list[QueueView] = []
    replicas: list[ReplicaView] = []
    storms: list[StormView] = []
    findings: list[PromptFinding] = []


_decode = msgspec.json.Decoder(_Report).decode


class MemoryReports:
    """Implements `ports.traffic.GatewayReports` over what each living gateway is said to report, by its name."""

    def __init__(self) -> None:
        self.told: dict[str, Mapping[str, object]] = {}

    async def standing(self) -> QueueStanding:
        return _merge(self._reports())

    async def findings(self) -> list[PromptFinding]:
        return _dearest(self._reports())

    def _reports(self) -> list[_Report]:
        return [msgspec.convert(report, _Report) for report in self.told.values()]


class FileReports:
    """The same over a file each. `alive`: the folder with a lock for each living gateway."""

    def __init__(self, folder: Path, alive: Path) -> None:
        self._folder = folder
        self._alive = alive

    async def standing(self) -> QueueStanding:
        return _merge(await asyncio.to_thread(lambda: list(self._reports())))

    async def findings(self) -> list[PromptFinding]:
        return _dearest(await asyncio.to_thread(lambda: list(self._reports())))

    def _reports(self) -> Iterator[_Report]:
        for path in sorted(self._folder.glob("*.json")):
            if is_alive(self._alive / f"{path.stem}.alive"):
                # One that is being replaced, or of another release, is told by the next look.
                with contextlib.suppress(OSError, msgspec.DecodeError):
                    yield _decode(path.read_bytes())


def _dearest(reports: list[_Report]) -> list[PromptFinding]:
    """Of each prompt the finding that rests on the most."""
    best: dict[tuple[str, str, str], PromptFinding] = {}
    for one in (finding for report in reports for finding in report.findings):
        name = one.project, one.model, one.key_id
        if name not in best or one.samples > best[name].samples:
            best[name] = one
    return sorted(best.values(), key=lambda one: (-one.saved_tokens_per_1000_requests, one.project, one.model))


def _merge(reports: list[_Report]) -> QueueStanding:
    """Each worker keeps lines and counts of its own: together they are what the operator set."""
    queues: dict[tuple[str, str], QueueView] = {}
    replicas: dict[tuple[str, str, str], ReplicaView] = {}
    storms: dict[tuple[str, str], StormView] = {}
    for report in reports:
        for queue in report.queues:
            before = queues.get((queue.project, queue.model))
            if before is not None:
                by_priority = dict(Counter(before.by_priority) + Counter(queue.by_priority))
                longest_ms = max(before.longest_wait_ms, queue.longest_wait_ms)
                waiting = before.waiting + queue.waiting
                queue = replace(before, waiting=waiting, by_priority=by_priority, longest_wait_ms=longest_ms)
            queues[queue.project, queue.model] = queue
        for replica in report.replicas:
            name = replica.project, replica.model, replica.target
            known = replicas.get(name)
            if known is not None:
                in_flight, limit = known.in_flight + replica.in_flight, known.limit + replica.limit
                replica = replace(known, in_flight=in_flight, limit=limit, most=known.most + replica.most)
            replicas[name] = replica
        for storm in report.storms:
            seen = storms.get((storm.project, storm.key_id))
            if seen is not None:
                early, repeated = seen.early + storm.early, seen.repeated + storm.repeated
                read_late = seen.read_late + storm.read_late
                storm = replace(seen, early=early, repeated=repeated, read_late=read_late)
            storms[storm.project, storm.key_id] = storm
    return QueueStanding(
        workers=len(reports),
        queues=tuple(queues[name] for name in sorted(queues)),
        replicas=tuple(replicas[name] for name in sorted(replicas)),
        storms=tuple(storms[name] for name in sorted(storms)),
    )
