"""What a worker tells the control plane of what waits, of replicas, storms and prompts: one file, replaced each second.

Read by `adapters/gateway_reports.py`, together with the files of the other workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic_ns
from typing import Any, Protocol

import msgspec

from groundplane.domain.serving.prompt_lint import PromptFinding
from groundplane.domain.serving.queueing import Priority, Storm
from groundplane.gateway.cache import Answers
from groundplane.gateway.targets import RouteState
from groundplane.gateway.telemetry.aside import Files
from groundplane.gateway.telemetry.metrics import Metrics
from groundplane.gateway.turns import Turns
from groundplane.gateway.waiting import WaitingRoom

_FINDINGS_EVERY_S = 10.0
_FINDINGS_MAX = 200


class Reported(Protocol):
    """A worker, as far as it is told of."""

    now_s: float
    answers: Answers
    metrics: Metrics
    room: WaitingRoom
    turns: Turns

    def prompt_findings(self) -> Iterator[PromptFinding | None]: ...
    def routes(self) -> Iterator[RouteState]: ...


class Reports:
    """One worker's file. Without a folder nothing is told."""

    def __init__(self, folder: Path | None, gateway_id: str, files: Files) -> None:
        self._path = None if folder is None else folder / f"{gateway_id}.json"
        self._files = files
        self._findings: list[dict[str, Any]] = []
        self._findings_at_s = 0.0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def publish(self, state: Reported) -> Iterator[None]:
        """Leaves what there is to tell, in steps."""
        self._note_depths(state)
        if self._path is None:
            return
        if state.now_s - self._findings_at_s >= _FINDINGS_EVERY_S:
            self._findings_at_s = state.now_s
            state.answers.drop_expired()
            yield
            yield from self._find(state)
        told = {
            "queues": _queues(state),
            "replicas": _replicas(state),
            "storms": _storms(state),
            "findings": self._findings,
        }
        self._files.replace(self._path, msgspec.json.encode(told))

    def _find(self, state: Reported) -> Iterator[None]:
        found = []
        for one in state.prompt_findings():
            if one is not None:
                found.append(one)
            yield
        found.sort(key=lambda one: -one.saved_tokens_per_1000_requests)
        self._findings = [msgspec.to_builtins(one) for one in found[:_FINDINGS_MAX]]

    @staticmethod
    def _note_depths(state: Reported) -> None:
        known = state.metrics.flow.depth
        depth: dict[str, dict[str, int]] = {model: dict.fromkeys(one, 0) for model, one in known.items()}
        for _, model, by_priority, _ in state.room.depths():
            mine = depth.setdefault(model, {})
            for priority, count in by_priority.items():
                mine[priority.value] = mine.get(priority.value, 0) + count
        state.metrics.flow.depth = depth


def _queues(state: Reported) -> list[dict[str, Any]]:
    found = []
    waiting = {(project, model): (counts, since) for project, model, counts, since in state.room.depths()}
    nobody: tuple[dict[Priority, int], int] = ({}, 0)
    for route in state.routes():
        rule = route.queue
        by_priority, longest_ns = waiting.get((route.route.project, route.route.model), nobody)
        if rule is not None:
            found.append(
                {
                    "project": route.route.project,
                    "model": route.route.model,
                    "waiting": sum(by_priority.values()),
                    "by_priority": {priority.value: count for priority, count in by_priority.items()},
                    "longest_wait_ms": longest_ns // 1_000_000,
                    "size": rule.size,
                }
            )
    return found


def _replicas(state: Reported) -> list[dict[str, Any]]:
    return [
        {
            "project": route.route.project,
            "model": route.route.model,
            "target": one.target.endpoint,
            "in_flight": adapted.in_flight,
            "limit": int(adapted.limit),
            "most": adapted.most,
        }
        for route in state.routes()
        for one in route.targets
        if (adapted := one.standing.concurrency) is not None
    ]


def _storms(state: Reported) -> list[dict[str, Any]]:
    now_ns = monotonic_ns()
    storms = state.room.retries.storms(now_ns)
    late = {name: count for name, count in state.turns.pace.late(now_ns).items() if name[0]}
    found = []
    for project, key_id in storms | late:
        name = project, key_id
        storm = storms.get(name, Storm())
        counts = {"early": storm.early, "repeated": storm.repeated, "read_late": late.get(name, 0)}
        found.append({"project": project, "key_id": key_id, **counts})
    return found
