"""What is counted of requests that wait, of those that are shed, and of answers that were kept."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any

from groundplane.domain.serving.queueing import EARLY_TOLD, Storm

WAIT_BUCKETS_S = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_WAIT_BUCKETS_NS = tuple(int(1e9 * bound) for bound in WAIT_BUCKETS_S)
_MODELS_MAX = 200


class FlowMetrics:
    """Counts as integers, by model; the 201st model is `other`. `depth` and `kept_bytes` are how it stands now; `waits`
    are the sum in microseconds, then the counts by bucket."""

    def __init__(self) -> None:
        self.waits: dict[str, list[int]] = {}
        self.shed_by: dict[str, dict[str, int]] = {}
        self.storms: dict[str, int] = {"early": 0, "repeated": 0}
        self.read_late: dict[str, int] = {"key": 0, "address": 0}
        self.cache: dict[str, dict[str, int]] = {}
        self.depth: dict[str, dict[str, int]] = {}
        self.kept_bytes = 0
        self.kept_answers = 0

    def waited(self, model: str, nanoseconds: int) -> None:
        """Somebody was admitted after so long a wait."""
        counts = _of(self.waits, model, [0] * (len(WAIT_BUCKETS_S) + 2))
        counts[1 + bisect_left(_WAIT_BUCKETS_NS, nanoseconds)] += 1
        counts[0] += nanoseconds // 1000

    def shed(self, model: str, reason: str) -> None:
        """Somebody did not get a place, or lost it."""
        reasons: dict[str, int] = _of(self.shed_by, model, {})
        reasons[reason] = reasons.get(reason, 0) + 1

    def stormed(self, storm: Storm) -> None:
        """A request of a key that was told of a storm."""
        self.storms["early" if storm.early >= EARLY_TOLD else "repeated"] += 1

    def cached(self, model: str, result: str) -> None:
        """How a request of a route that keeps answers fared."""
        results: dict[str, int] = _of(self.cache, model, {})
        results[result] = results.get(result, 0) + 1

    def plain(self) -> dict[str, Any]:
        """As JSON can say it."""
        return dict(vars(self))

    def add(self, plain: Mapping[str, Any], *, alive: bool) -> None:
        """Another worker's counts on top; of one that is no more, what it counted and not how it stood."""
        for model, counts in plain.get("waits", {}).items():
            mine = _of(self.waits, model, [0] * len(counts))
            mine[:] = [one + other for one, other in zip(mine, counts, strict=True)]
        for name in ("shed_by", "cache", *(("depth",) if alive else ())):
            for model, theirs in plain.get(name, {}).items():
                counted: dict[str, int] = _of(getattr(self, name), model, {})
                for label, count in theirs.items():
                    counted[label] = counted.get(label, 0) + count
        for mine, theirs in ((self.storms, plain.get("storms", {})), (self.read_late, plain.get("read_late", {}))):
            for kind, count in theirs.items():
                mine[kind] = mine.get(kind, 0) + count
        if alive:
            self.kept_bytes += plain.get("kept_bytes", 0)
            self.kept_answers += plain.get("kept_answers", 0)

    def families(self) -> Iterator[tuple[str, str, str, list[tuple[dict[str, str], int]]]]:
        """Name, type, text and samples of each family that is not a histogram."""
        yield (
            "gateway_queue_depth", "gauge", "Requests that wait, by model and priority.", _flat(self.depth, "priority")
        )  # fmt: skip
        yield (
            "gateway_shed_total", "counter", "Requests that could not wait, or not to the end, by reason.",
            _flat(self.shed_by, "reason"),
        )  # fmt: skip
        yield (
            "gateway_retry_storms_total", "counter", "Requests of keys that retry too soon or repeat themselves.",
            [({"kind": kind}, count) for kind, count in self.storms.items()],
        )  # fmt: skip
        yield (
            "gateway_read_late_total", "counter", "Connections read late because refusals came too fast, by whose.",
            [({"of": of}, count) for of, count in self.read_late.items()],
        )  # fmt: skip
        yield (
            "gateway_cache_requests_total", "counter", "Requests of routes that keep answers, by result.",
            _flat(self.cache, "result"),
        )  # fmt: skip
        yield "gateway_cache_bytes", "gauge", "Bytes of kept answers.", [({}, self.kept_bytes)]
        yield "gateway_cache_answers", "gauge", "Kept answers.", [({}, self.kept_answers)]


def _of(table: dict[str, Any], model: str, fresh: Any) -> Any:
    if model not in table and len(table) >= _MODELS_MAX:
        model = "other"
    return table.setdefault(model, fresh)


def _flat(table: Mapping[str, Mapping[str, int]], label: str) -> list[tuple[dict[str, str], int]]:
    return [({"model": m, label: name}, count) for m, counts in table.items() for name, count in counts.items()]
