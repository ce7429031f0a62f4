"""Plain counters of one gateway process, and how Prometheus reads them. Labels are bounded: models come from routes,
keys and targets beyond a number are counted as `other`."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import msgspec

from groundplane.domain.serving.usage import Usage
from groundplane.gateway.telemetry.flow_metrics import WAIT_BUCKETS_S, FlowMetrics

TTFT_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
PART_BUCKETS_S = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0)
GAP_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
SPEED_BUCKETS = (1.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0)
PARTS = ("queue", "connect", "first_byte", "relay")
OTHER = "other"
REFUSALS_KEPT = 100
WINDOW_S = 60
_MODELS_MAX = 200
_TARGETS_MAX = 200
_SERIES_MAX = 1000
_REFUSED_MAX = 1000
_SAID_MAX = 100
_encode = msgspec.json.Encoder().encode

Times = tuple[int, int, int | None, int | None, int | None]
"""Microseconds: queue, connect, first byte, relay, and the first three together (TTFT)."""


class Histogram:
    """Observations in whole units, by buckets' upper bounds in the same unit."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...], scale: int = 1_000_000) -> None:
        self.bounds = tuple(round(scale * bound) for bound in bounds)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0

    def note(self, value: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def plain(self) -> list[int]:
        return [self.total, *self.counts]

    def add(self, plain: list[int]) -> None:
        """Another's on top; one with other buckets is of an earlier release, and counts no more."""
        if len(plain) == len(self.counts) + 1:
            self.total += plain[0]
            self.counts = [one + other for one, other in zip(self.counts, plain[1:], strict=True)]


def _filled(bounds: tuple[float, ...], plain: list[int]) -> Histogram:
    histogram = Histogram(bounds)
    histogram.add(plain)
    return histogram


class ModelCounters:
    """What is counted per model."""

    __slots__ = ("cached_tokens", "completion_tokens", "microusd", "prompt_tokens", "requests", "ttft")

    def __init__(self) -> None:
        self.requests: dict[int, int] = {}
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self.microusd = 0
        self.ttft = Histogram(TTFT_BUCKETS_S)

    def answered(self, status: int) -> None:
        self.requests[status] = self.requests.get(status, 0) + 1

    def settled(self, status: int, usage: Usage, microusd: int, ttft_us: int | None) -> None:
        self.requests[status] = self.requests.get(status, 0) + 1
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cached_tokens += usage.cached_tokens
        self.microusd += microusd
        if ttft_us is not None:
            self.ttft.note(ttft_us)

    def plain(self) -> dict[str, Any]:
        """As JSON can say it."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "ttft"}
        requests = {str(status): count for status, count in self.requests.items()}
        return values | {"requests": requests, "ttft": self.ttft.plain()}

    def add(self, plain: Mapping[str, Any]) -> None:
        """Another's counts on top."""
        for status, count in plain["requests"].items():
            self.requests[int(status)] = self.requests.get(int(status), 0) + count
        self.ttft.add(plain["ttft"])
        for name in ("prompt_tokens", "completion_tokens", "cached_tokens", "microusd"):
            setattr(self, name, getattr(self, name) + plain[name])


class TargetCounters:
    """How long the parts of requests take where a project's model is served: by target and revision."""

    __slots__ = ("gaps", "parts", "speed")

    def __init__(self) -> None:
        self.parts = tuple(Histogram(PART_BUCKETS_S) for _ in PARTS)
        self.gaps = Histogram(GAP_BUCKETS_S)
        self.speed = Histogram(SPEED_BUCKETS, 1)

    def plain(self) -> list[list[int]]:
        return [one.plain() for one in (*self.parts, self.gaps, self.speed)]

    def add(self, plain: list[list[int]]) -> None:
        for mine, theirs in zip((*self.parts, self.gaps, self.speed), plain, strict=False):
            mine.add(theirs)


SeriesName = tuple[str, str, str, str, str]
"""Project, key, model, target, revision."""


class Series:
    """What is counted per key on a target. `window` has a second's requests and tokens, of the last minute."""

    __slots__ = (
        "_new", "_warm", "cached", "completion", "encoded", "microusd", "minute_requests", "minute_tokens", "name",
        "prompt", "requests", "target", "window",
    )  # fmt: skip

    def __init__(self, name: SeriesName, target: TargetCounters, warm: list[Series]) -> None:
        self.name = name
        self.target = target
        self.encoded = msgspec.Raw(b"null")
        """As JSON, as of the last time it was put in words."""
        self.requests: dict[int, int] = {}
        self.prompt = self.completion = self.cached = self.microusd = 0
        self.window: deque[tuple[int, int, int]] = deque()
        self.minute_requests = self.minute_tokens = 0
        self._new = [0, 0]
        self._warm = warm

    def answered(self, status: int) -> None:
        """A request that came to nothing that is charged."""
        self.requests[status] = self.requests.get(status, 0) + 1
        self._count(0)

    def settled(self, status: int, usage: Usage, microusd: int, times: Times) -> None:
        self.requests[status] = self.requests.get(status, 0) + 1
        self.prompt += usage.prompt_tokens
        self.completion += usage.completion_tokens
        self.cached += usage.cached_tokens
        self.microusd += microusd
        self._count(usage.prompt_tokens + usage.completion_tokens)
        for histogram, took_us in zip(self.target.parts, times):  # noqa: B905  # TTFT is the model's
            if took_us is not None:  # `note`, without four calls
                histogram.counts[bisect_left(histogram.bounds, took_us)] += 1
                histogram.total += took_us
        relay_us = times[3]
        if relay_us and usage.completion_tokens > 1:
            self.target.speed.note((usage.completion_tokens - 1) * 1_000_000 // relay_us)

    def _count(self, tokens: int) -> None:
        new = self._new
        if not new[0]:
            self._warm.append(self)
        new[0] += 1
        new[1] += tokens

    def turn(self, second: int) -> bool:
        """The second is over. Whether anything happened in the last minute."""
        requests, tokens = self._new
        if requests:
            self.window.append((second, requests, tokens))
            self.minute_requests += requests
            self.minute_tokens += tokens
            self._new[0] = self._new[1] = 0
        while self.window and self.window[0][0] <= second - WINDOW_S:
            _, requests, tokens = self.window.popleft()
            self.minute_requests -= requests
            self.minute_tokens -= tokens
        return bool(self.window)

    def plain(self) -> list[Any]:
        requests = {str(status): count for status, count in self.requests.items()}
        return [*self.name, requests, self.prompt, self.completion, self.cached, self.microusd]

    def add(self, plain: list[Any]) -> None:
        requests, *rest = plain[5:]
        for status, count in requests.items():
            self.requests[int(status)] = self.requests.get(int(status), 0) + count
        for name, value in zip(("prompt", "completion", "cached", "microusd"), rest, strict=False):
            setattr(self, name, getattr(self, name) + value)


_COUNTERS = ("upstream_retries", "spilled", "hedged", "snapshot_failures")
_GAUGES = ("in_flight", "connections", "log_trouble")


class Metrics:
    """Counts as integers, touched only by the event loop. `no_model` counts what never got as far as a model."""

    def __init__(self) -> None:
        self.no_model = ModelCounters()
        self._models: dict[str, ModelCounters] = {}
        self._targets: dict[tuple[str, str, str, str], TargetCounters] = {}
        self._series: dict[SeriesName, Series] = {}
        self._new: list[Series] = []
        self._warm: set[Series] = set()
        self._unsaid: deque[Series] = deque()
        self.limited: dict[str, int] = defaultdict(int)
        self.refused: dict[tuple[str, str, str, str], int] = {}
        self.refusals: deque[dict[str, Any]] = deque(maxlen=REFUSALS_KEPT)
        self.flow = FlowMetrics()
        self.standings: list[dict[str, Any]] = []
        self.recorded: dict[str, int] = {}
        """What became of what is told of requests (`what/outcome`), counted off the loop."""
        self.in_flight = 0
        self.connections = 0
        self.upstream_retries = 0
        self.spilled = self.hedged = 0
        self.snapshot_version = 0
        self.snapshot_failures = 0
        self.log_seq = 0
        self.log_trouble = 0
        self.workers = 1

    def plain(self, *, encoded: bool = False, lazily: bool = False) -> dict[str, Any]:
        """As JSON can say it; `encoded` says what `say_some` has put in words by now. `lazily`: for `add_in_steps`,
        what there may be much of is looked at when its step comes."""
        targets = ([*name, one.plain()] for name, one in list(self._targets.items()))
        series = (one.encoded if encoded else one.plain() for one in list(self._series.values()))
        return {
            "models": {"": self.no_model.plain(), **{name: one.plain() for name, one in self._models.items()}},
            "targets": targets if lazily else list(targets),
            "series": series if lazily else list(series),
            "minute": [[*one.name, one.minute_requests, one.minute_tokens] for one in self._warm],
            "refused": [[*name, count] for name, count in self.refused.items()],
            "refusals": list(self.refusals),
            "standings": self.standings,
            "recorded": dict(self.recorded),
            "limited": dict(self.limited),
            "flow": self.flow.plain(),
            "snapshot_version": self.snapshot_version,
            "log_seq": self.log_seq,
            **{name: getattr(self, name) for name in (*_COUNTERS, *_GAUGES)},
        }

    def add(self, plain: Mapping[str, Any], *, alive: bool) -> None:
        """Another gateway's counts on top; of one that is no more, what it counted and not how it stood."""
        for _ in self.add_in_steps(plain, alive=alive):
            pass

    def add_in_steps(self, plain: Mapping[str, Any], *, alive: bool) -> Iterator[None]:
        """`add`, so that something else can be done after each step."""
        for name, counters in plain["models"].items():
            (self.model(name) if name else self.no_model).add(counters)
            yield
        for *name, counters in plain.get("targets", ()):
            self.target(*name).add(counters)
            yield
        for one in plain.get("series", ()):
            if one is not None:
                series = self.series(*one[:5])
                series.add(one)
                self._unsaid.append(series)
                yield
        for *name, count in plain.get("refused", ()):
            self._refuse(tuple(name), count)  # type: ignore[arg-type]
        for what, count in plain.get("recorded", {}).items():
            self.recorded[what] = self.recorded.get(what, 0) + count
        self.flow.add(plain.get("flow", {}), alive=alive)
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
            name = OTHER
        return self._models.setdefault(name, ModelCounters())

    def target(self, project: str, model: str, target: str, revision: str) -> TargetCounters:
        """Those of a project's model on a target's revision; of `other` beyond 200 of them."""
        name = (project, model, target, revision)
        if name not in self._targets and len(self._targets) >= _TARGETS_MAX:
            name = (OTHER,) * 4
        return self._targets.setdefault(name, TargetCounters())

    def series(self, project: str, key: str, model: str, target: str, revision: str) -> Series:
        """A key's counts on a target; keys beyond 1,000 such series count as `other`, then everything does."""
        name = (project, key, model, target, revision)
        if name not in self._series and len(self._series) >= _SERIES_MAX:
            name = (OTHER,) * 5 if len(self._series) >= 2 * _SERIES_MAX else (project, OTHER, model, target, revision)
        found = self._series.get(name)
        if found is None:
            counters = self.target(project, model, target, revision)
            found = self._series[name] = Series(name, counters, self._new)
        return found

    def refuse(self, refusal: dict[str, Any]) -> None:
        """A request that a limit refused: counted by limit, and kept among the last hundred."""
        self._refuse((refusal["project"], refusal["scope"], refusal["name"], refusal["measure"]), 1)
        self.refusals.append(refusal)

    def _refuse(self, name: tuple[str, str, str, str], count: int) -> None:
        if name not in self.refused and len(self.refused) >= _REFUSED_MAX:
            name = (OTHER, name[1], OTHER, name[3])
        self.refused[name] = self.refused.get(name, 0) + count

    def turn(self, second: int) -> None:
        """Called every second: moves the minute on."""
        self._warm.update(self._new)
        self._unsaid.extend(self._new)
        self._new.clear()
        self._warm = {one for one in self._warm if one.turn(second)}

    def say_some(self, most: int = _SAID_MAX) -> None:
        """Puts some of what has changed in words. Called every tick: all at once would hold the loop up."""
        for _ in range(min(most, len(self._unsaid))):
            one = self._unsaid.popleft()
            one.encoded = msgspec.Raw(_encode(one.plain()))

    # ------------------------------------------------------------ text

    def render(self) -> str:
        """The text exposition format, version 0.0.4."""
        return "".join(self.render_in_steps())

    def render_in_steps(self) -> Iterator[str]:
        """`render`, piece by piece: something else can be done after each."""
        lines: list[str] = []
        for _ in self._rendering(lines):
            if lines:
                yield "\n".join(lines) + "\n"
                lines.clear()

    def _rendering(self, lines: list[str]) -> Iterator[None]:
        """Appends lines, and says where others may go on."""
        self._render_models(lines)
        yield
        yield from self._render_series(lines)
        _family(
            lines, "gateway_limited_total", "counter", "Requests answered 429, by the limit that bound.",
            (({"limit": limit}, count) for limit, count in self.limited.items()),
        )  # fmt: skip
        _family(
            lines, "gateway_refused_total", "counter", "Requests refused by a limit, by whose and of what.",
            (
                ({"project": project, "scope": scope, "name": name, "measure": measure}, count)
                for (project, scope, name, measure), count in self.refused.items()
            ),
        )  # fmt: skip
        _family(
            lines, "gateway_recorded_total", "counter", "Records of requests, by what for and what became of them.",
            (
                ({"what": what.partition("/")[0], "outcome": what.partition("/")[2]}, count)
                for what, count in sorted(self.recorded.items())
            ),
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
        for family in self.flow.families():
            _family(lines, *family)
        yield
        yield from self._render_histograms(lines)
        yield

    def _render_models(self, lines: list[str]) -> None:
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

    def _render_series(self, lines: list[str]) -> Iterator[None]:
        named = list(self._series.values())
        name = _head(lines, "gateway_key_requests_total", "counter", "Requests answered, by key and where they went.")
        for one in named:
            inside = _series_labels(one.name)
            lines += [f'{name}{{{inside},status="{status}"}} {count}' for status, count in one.requests.items()]
            yield
        name = _head(lines, "gateway_key_tokens_total", "counter", "Tokens metered, by key and where they went.")
        for one in named:
            inside = _series_labels(one.name)
            lines.append(f'{name}{{{inside},kind="prompt"}} {one.prompt}')
            lines.append(f'{name}{{{inside},kind="completion"}} {one.completion}')
            lines.append(f'{name}{{{inside},kind="cached"}} {one.cached}')
            yield
        text = "Micro-dollars charged, by key and what served."
        name = _head(lines, "gateway_key_charged_microusd_total", "counter", text)
        for one in named:
            lines.append(f"{name}{{{_series_labels(one.name)}}} {one.microusd}")
            yield

    def _render_histograms(self, lines: list[str]) -> Iterator[None]:
        text = "Time that requests waited for what was full, of those that were admitted."
        waits = [({"model": name}, _filled(WAIT_BUCKETS_S, plain)) for name, plain in self.flow.waits.items()]
        yield from _histogram(lines, "gateway_queue_wait_seconds", text, WAIT_BUCKETS_S, waits)
        models = [({"model": name}, one.ttft) for name, one in self._models.items()]
        text = "Time from the request's last byte to the answer's first."
        yield from _histogram(lines, "gateway_ttft_seconds", text, TTFT_BUCKETS_S, models)
        targets = [(dict(zip(_TARGET_LABELS, name, strict=True)), one) for name, one in self._targets.items()]
        for place, part in enumerate(PARTS):
            histograms = [(labels, one.parts[place]) for labels, one in targets]
            yield from _histogram(lines, f"gateway_{part}_seconds", _PART_TEXTS[part], PART_BUCKETS_S, histograms)
        text = "Time between two pieces of a streamed answer."
        yield from _histogram(
            lines, "gateway_inter_token_seconds", text, GAP_BUCKETS_S, [(labels, one.gaps) for labels, one in targets]
        )
        text = "Completion tokens a second after the first, by request."
        speeds = [(labels, one.speed) for labels, one in targets]
        yield from _histogram(lines, "gateway_output_tokens_per_second", text, SPEED_BUCKETS, speeds, 1)


_SERIES_LABELS = ("project", "key", "model", "target", "revision")
_TARGET_LABELS = ("project", "model", "target", "revision")
_PART_TEXTS = {
    "queue": "Time from the request's last byte until it was sent: limits, waiting, choosing.",
    "connect": "Time until a connection took the request, failed attempts included.",
    "first_byte": "Time from there to the answer's first byte.",
    "relay": "Time from the answer's first byte to its last.",
}


def _head(lines: list[str], name: str, kind: str, text: str) -> str:
    """Begins a family; its whole name."""
    lines += [f"# HELP groundplane_{name} {text}", f"# TYPE groundplane_{name} {kind}"]
    return f"groundplane_{name}"


def _family(
    lines: list[str], name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], int]]
) -> None:
    name = _head(lines, name, kind, text)
    lines += [f"{name}{_labels(labels)} {value}" for labels, value in samples]


def _histogram(
    lines: list[str],
    name: str,
    text: str,
    bounds: tuple[float, ...],
    histograms: Iterable[tuple[Mapping[str, str], Histogram]],
    scale: int = 1_000_000,
) -> Iterator[None]:
    name = _head(lines, name, "histogram", text)
    words = [str(bound) for bound in (*bounds, "+Inf")]
    for labels, one in histograms:
        inside = _inside(labels)
        total = 0
        for bound, count in zip(words, one.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{{inside},le="{bound}"}} {total}')
        lines.append(f"{name}_sum{{{inside}}} {one.total / scale:.6f}")
        lines.append(f"{name}_count{{{inside}}} {total}")
        yield


@lru_cache(2 * _SERIES_MAX)
def _series_labels(name: SeriesName) -> str:
    """Put in words once: there may be many, and they are asked for every few seconds."""
    return _inside(dict(zip(_SERIES_LABELS, name, strict=True)))


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + _inside(labels) + "}" if labels else ""


def _inside(labels: Mapping[str, str]) -> str:
    escaped = (
        (name, value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")) for name, value in labels.items()
    )
    return ",".join(f'{name}="{value}"' for name, value in escaped)
