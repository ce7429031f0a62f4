"""Plain counters of one gateway process, and how Prometheus reads them. Labels are bounded: models come from routes."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Mapping

TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_MODELS_MAX = 200


class Metrics:
    """Counts as integers, touched only by the event loop."""

    def __init__(self) -> None:
        self.requests: dict[tuple[int, str], int] = defaultdict(int)
        self.tokens: dict[tuple[str, str], int] = defaultdict(int)
        self.microusd: dict[str, int] = defaultdict(int)
        self.limited: dict[str, int] = defaultdict(int)
        self.ttft: dict[str, list[int]] = {}
        self.ttft_sum_s: dict[str, float] = defaultdict(float)
        self.in_flight = 0
        self.connections = 0
        self.upstream_retries = 0
        self.snapshot_version = 0
        self.snapshot_failures = 0
        self.log_seq = 0
        self.log_trouble = 0
        self._models: set[str] = set()

    def label(self, model: str) -> str:
        """The model, or `other` once there have been 200 of them in this process's life."""
        if model in self._models:
            return model
        if len(self._models) >= _MODELS_MAX:
            return "other"
        self._models.add(model)
        return model

    def first_byte(self, model: str, seconds: float) -> None:
        counts = self.ttft.get(model)
        if counts is None:
            counts = self.ttft[model] = [0] * (len(TTFT_BUCKETS_S) + 1)
        counts[bisect_left(TTFT_BUCKETS_S, seconds)] += 1
        self.ttft_sum_s[model] += seconds

    def render(self) -> str:
        """The text exposition format, version 0.0.4."""
        lines: list[str] = []
        _family(
            lines, "gateway_requests_total", "counter", "Requests answered, by status and model.",
            (({"status": str(status), "model": model}, n) for (status, model), n in self.requests.items()),
        )  # fmt: skip
        _family(
            lines, "gateway_tokens_total", "counter", "Tokens metered, by kind and model.",
            (({"kind": kind, "model": model}, n) for (kind, model), n in self.tokens.items()),
        )  # fmt: skip
        _family(
            lines, "gateway_charged_microusd_total", "counter", "Micro-dollars charged, by model.",
            (({"model": model}, n) for model, n in self.microusd.items()),
        )  # fmt: skip
        _family(
            lines, "gateway_limited_total", "counter", "Requests answered 429, by the limit that bound.",
            (({"limit": limit}, n) for limit, n in self.limited.items()),
        )  # fmt: skip
        single = (
            ("gateway_in_flight", "gauge", "Requests being answered.", self.in_flight),
            ("gateway_client_connections", "gauge", "Open client connections.", self.connections),
            ("gateway_upstream_retries_total", "counter", "Requests sent to an upstream again.", self.upstream_retries),
            ("gateway_snapshot_version", "gauge", "Version of the snapshot in use; 0 is none.", self.snapshot_version),
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
        for model, counts in self.ttft.items():
            total = 0
            for bound, count in zip((*TTFT_BUCKETS_S, "+Inf"), counts, strict=True):
                total += count
                lines.append(f"{name}_bucket{_labels({'model': model, 'le': str(bound)})} {total}")
            lines.append(f"{name}_sum{_labels({'model': model})} {self.ttft_sum_s[model]:.6f}")
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
