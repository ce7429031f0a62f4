"""Plain counters of one gateway process, and how Prometheus reads them. Labels are bounded: models come from routes."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from groundplane.domain.usage import Usage

TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_TTFT_BUCKETS_US = tuple(1_000_000 * bound for bound in TTFT_BUCKETS_S)
_MODELS_MAX = 200


class ModelCounters:
    """What is counted per model."""

    __slots__ = ("cached_tokens", "completion_tokens", "microusd", "prompt_tokens", "requests", "ttft", "ttft_sum_us")

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.microusd = 0
        self.ttft = [0] * (len(TTFT_BUCKETS_S) + 1)
        self.ttft_sum_us = 0

    def answered(self, status: int) -> None:
        self.requests[status] = self.requests.get(status, 0) + 1

    def settled(self, status: int, usage: Usage, microusd: int, ttft_us: int | None) -> None:
        self.requests[status] = self.requests.get(status, 0) + 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cached_tokens += usage.cached_tokens
        self.microusd += microusd
        if ttft_us is not None:
            self.ttft[bisect_left(_TTFT_BUCKETS_US, ttft_us)] += 1
            self.ttft_sum_us += ttft_us

    def plain(self) -> dict[str, Any]:
        """As JSON can say it."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return values | {"requests": {str(status): count for status, count in self.requests.items()}}

    def add(self, plain: Mapping[str, Any]) -> None:
        """Another's counts on top."""
        for status, count in plain["requests"].items():
            self.requests[int(status)] = self.requests.get(int(status), 0) + count
        self.ttft = [one + other for one, other in zip(self.ttft, plain["ttft"], strict=True)]
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "microusd", "ttft_sum_us"):
            setattr(self, name, getattr(self, name) + plain[name])


_COUNTERS = ("upstream_retries", "spilled", "hedged", "snapshot_failures")
_GAUGES = ("in_flight", "connections", "log_trouble")


class Metrics:
    """Counts as integers, touched only by the event loop. `no_model` counts what never got as far as a model."""

    def __init__(self) -> None:
        self.no_model = ModelCounters()
        self._models: dict[str, ModelCounters] = {}
        self.limited: dict[str, int] = defaultdict(int)
        self.in_flight = 0
        self.connections = 0
        self.upstream_retries = 0
        self.spilled = self.hedged = 0
        self.snapshot_version = 0
        self.snapshot_failures = 0
        self.log_seq = 0
        self.log_trouble = 0
        self.workers = 1

    def plain(self) -> dict[str, Any]:
        """As JSON can say it."""
        return {
            "models": {"": self.no_model.plain(), **{name: one.plain() for name, one in self._models.items()}},
            "limited": dict(self.limited),
            "snapshot_version": self.snapshot_version,
            "log_seq": self.log_seq,
            **{name: getattr(self, name) for name in (*_COUNTERS, *_GAUGES)},
        }

    def add(self, plain: Mapping[str, Any], *, alive: bool) -> None:
        """Another gateway's counts on top; of one that is no more, what it counted and not how it stood."""
        for name, counters in plain["models"].items():
            (self.model(name) if name else self.no_model).add(counters)
        for limit, count in plain["limited"].items():
            self.limited[limit] += count
        for name in _COUNTERS + (_GAUGES if alive else ()):
            setattr(self, name, getattr(self, name) + plain.get(name, 0))
        if alive:
            self.workers += 1
            self.snapshot_version = min(self.snapshot_version, plain["snapshot_version"])
            self.log_seq = max(self.log_seq, plain["log_seq"])

    def model(self, name: str) -> ModelCounters:
        """A model's counters; those of `other` once there have been 200 models in this process's life."""
        if name not in self._models and len(self._models) >= _MODELS_MAX:
            name = "other"
        return self._models.setdefault(name, ModelCounters())

    def render(self) -> str:
        """The text exposition format, version 0.0.4."""
        lines: list[str] = []
        models = {"": self.no_model, **self._models}
        _family(
            lines, "gateway_requests_total", "counter", "Requests answered, by status and model.",
            (
                ({"status": str(status), "model": name}, count)
                for name, one in models.items()
                for status, count in one.requests.items()
            ),
        )  # fmt: skip
        _family(
            lines, "gateway_tokens_total", "counter", "Tokens metered, by kind and model; prompt includes cached.",
            (
                ({"kind": kind, "model": name}, getattr(one, f"{kind}_tokens"))
                for name, one in self._models.items()
                for kind in ("prompt", "completion", "cached")
            ),
        )  # fmt: skip
        _family(
            lines, "gateway_charged_microusd_total", "counter", "Micro-dollars charged, by model.",
            (({"model": name}, one.microusd) for name, one in self._models.items()),
        )  # fmt: skip
        _family(
            lines, "gateway_limited_total", "counter", "Requests answered 429, by the limit that bound.",
            (({"limit": limit}, count) for limit, count in self.limited.items()),
        )  # fmt: skip
        single = (
            ("gateway_in_flight", "gauge", "Requests being answered.", self.in_flight),
            ("gateway_client_connections", "gauge", "Open client connections.", self.connections),
            ("gateway_upstream_retries_total", "counter", "Requests sent to an upstream again.", self.upstream_retries),
            ("gateway_spilled_total", "counter", "Requests that a limited target left to another.", self.spilled),
            ("gateway_hedged_total", "counter", "Requests that a second target was asked too.", self.hedged),
            ("gateway_workers", "gauge", "Gateway processes these figures are of.", self.workers),
            ("gateway_snapshot_version", "gauge", "Oldest snapshot in use; 0 is none.", self.snapshot_version),
            ("gateway_snapshot_failures_total", "counter", "Snapshots that could not be read.", self.snapshot_failures),
            ("gateway_usage_log_seq", "gauge", "Sequence number of the last usage record.", self.log_seq),
            ("gateway_usage_log_trouble", "gauge", "1 when the usage log can't be written.", self.log_trouble),
        )
        for name, kind, text, value in single:
            _family(lines, name, kind, text, [({}, value)])
        self._render_ttft(lines)
        return "\n".join(lines) + "\n"

    def _render_ttft(self, lines: list[str]) -> None:
        name = "groundplane_gateway_ttft_seconds"
        lines += [f"# HELP {name} Time from the request's last byte to the answer's first.", f"# TYPE {name} histogram"]
        for model, one in self._models.items():
            total = 0
            for bound, count in zip((*TTFT_BUCKETS_S, "+Inf"), one.ttft, strict=True):
                total += count
                lines.append(f"{name}_bucket{_labels({'model': model, 'le': str(bound)})} {total}")
            lines.append(f"{name}_sum{_labels({'model': model})} {one.ttft_sum_us / 1e6:.6f}")
            lines.append(f"{name}_count{_labels({'model': model})} {total}")


def _family(
    lines: list[str], name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], int]]
) -> None:
    lines += [f"# HELP groundplane_{name} {text}", f"# TYPE groundplane_{name} {kind}"]
    lines += [f"groundplane_{name}{_labels(labels)} {value}" for labels, value in samples]


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    escaped = (
        (name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels.items()
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
