"""Evaluations: what a model scored on a dataset's rows, how sure that is, and what changed since the last time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from groundplane.domain.spec.inference import EvaluationNeed
from groundplane.domain.statistics import interval, paired_difference, quantile, wilson
from groundplane.errors import InvalidInput
from groundplane.units import format_duration

ITEMS_MAX = 10_000
SLIDING_DAYS = 30
_NOISE_UNKNOWN = 0.1
"""Without repeats nobody knows how much answers vary by themselves: so much is granted."""
_SLICES_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """One judge's mean over `count` judged items with its interval. `unjudged` items count in no mean.

    `agreement` is the share of an llm judge's votes that agreed with their majority.
    """

    metric: str
    judge: str
    count: int
    mean: float
    low: float
    high: float
    unjudged: int = 0
    agreement: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceScore:
    """A score over the items whose `column` says `value`."""

    column: str
    value: str
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """What an evaluation shows that people should know. `kind`: below, worse, sliding or changed."""

    kind: str
    title: str
    need: str
    have: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """One evaluation that ended. id is its run's. `items_sha256` names which rows with which expectations it asked.

    `model_version` is empty for what is hosted elsewhere. `cost_source`: `ledger` (what the gateway charged) or
    `compute` (what the run cost). `records_id` is the artifact with a line for each item. `models` and `fingerprints`
    are what answers said of themselves; `agreement` the share of repeated answers that were the same.
    """

    id: str
    name: str
    project: str
    owner: str
    target: str
    model_version: str
    dataset: str
    dataset_sha256: str
    items_sha256: str
    items: int
    failed: int
    confidence: float
    scores: tuple[Score, ...]
    slices: tuple[SliceScore, ...]
    latency_p50_s: float | None
    latency_p95_s: float | None
    prompt_tokens: int
    completion_tokens: int
    cost_microusd: int
    cost_microusd_per_1000: int
    cost_source: str
    models: tuple[str, ...]
    fingerprints: tuple[str, ...]
    agreement: float | None
    records_id: str
    records_sha256: str
    compared_with: str
    alarms: tuple[Alarm, ...]
    at: datetime
    version: int = 0

    def score(self, metric: str) -> Score | None:
        return next((each for each in self.scores if each.metric == metric), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One row, asked and judged. `scores` by metric, None where a judge could not say. `error` is why nothing came.

    `agreement` is, for each llm judge, the share of its votes that agreed with their majority.
    """

    id: str
    question: str
    expected: str
    answer: str
    scores: dict[str, float | None]
    why: dict[str, str]
    slices: dict[str, str]
    latency_s: float | None = None
    logprob: float | None = None
    error: str = ""
    agreement: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> float:
        """The lowest score; what could not be judged or asked comes first."""
        if self.error or any(score is None for score in self.scores.values()):
            return -math.inf
        return min((score for score in self.scores.values() if score is not None), default=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricDifference:
    """Two evaluations' means of one metric: item by item where both asked the same (`paired`)."""

    metric: str
    before: float
    after: float
    low: float
    high: float
    paired: bool

    @property
    def significant(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationComparison:
    """Two evaluations beside each other; `worse` and `better` are ids of items whose score of any metric moved."""

    before: Evaluation
    after: Evaluation
    metrics: tuple[MetricDifference, ...]
    answers_changed: int
    answers_in_common: int
    worse: tuple[str, ...]
    better: tuple[str, ...]


def summarise(need: EvaluationNeed, items: Sequence[Item]) -> tuple[tuple[Score, ...], tuple[SliceScore, ...]]:
    """Scores of all items, and by slice. InvalidInput when a judge that is a model could not be read."""
    scores = []
    for judge in need.judges:
        made = _score(judge.name, judge.kind, items, need.confidence)
        if made.unjudged and judge.kind in ("llm", "embedding"):
            first = next(item for item in items if not item.error and item.scores.get(judge.name) is None)
            raise InvalidInput(
                f"judge {judge.name} could not judge {made.unjudged} of {len(items)} items, {first.id} first: "
                f"{first.why.get(judge.name, '')}",
                "a stronger model as judge, or a plainer rubric: what can't be read is not counted as right",
            )
        scores.append(made)
    slices = []
    for column in need.slices:
        values = sorted({item.slices.get(column, "") for item in items})
        if len(values) > _SLICES_MAX:
            hint = "slice by a column of few values"
            raise InvalidInput(f"slice {column} has {len(values):,} values; the limit is {_SLICES_MAX}", hint)
        for value in values:
            some = [item for item in items if item.slices.get(column, "") == value]
            slices += [
                SliceScore(column=column, value=value, score=_score(judge.name, judge.kind, some, need.confidence))
                for judge in need.judges
            ]
    return tuple(scores), tuple(slices)


def _score(metric: str, judge: str, items: Sequence[Item], confidence: float) -> Score:
    """Items that got no answer count as wrong: a model that fails is not better for it."""
    values = [0.0 if item.error else item.scores.get(metric) for item in items]
    known = [value for value in values if value is not None]
    low, high = interval(known, confidence) if len(known) > 1 or known in ([0.0], [1.0]) else (-1.0, 1.0)
    mean = math.fsum(known) / len(known) if known else 0.0
    agreed = [item.agreement[metric] for item in items if metric in item.agreement]
    return Score(
        metric=metric,
        judge=judge,
        count=len(known),
        mean=mean,
        low=max(min(low, mean), -1.0),  # rounding may put a bound a hair beyond the mean itself
        high=min(max(high, mean), 1.0),
        unjudged=len(values) - len(known),
        agreement=math.fsum(agreed) / len(agreed) if agreed else None,
    )


def latencies(items: Sequence[Item]) -> tuple[float | None, float | None]:
    """P50 and P95 of answered items, in seconds."""
    known = [item.latency_s for item in items if item.latency_s is not None]
    return (quantile(known, 0.5), quantile(known, 0.95)) if known else (None, None)


def values_of(items: Sequence[Item], metric: str) -> tuple[float, ...]:
    """Scores in the items' order, for evidence and pairing: no answer is 0."""
    return tuple(float(item.scores.get(metric) or 0.0) if not item.error else 0.0 for item in items)


# ---------------------------------------------------------------- two evaluations


def compare(
    before: Evaluation, after: Evaluation, old: Sequence[Item], new: Sequence[Item], confidence: float = 0.95
) -> EvaluationComparison:
    """What moved between two evaluations. Items are paired by id; InvalidInput when they have no metric in common."""
    metrics = [each.metric for each in after.scores if before.score(each.metric) is not None]
    if not metrics:
        raise InvalidInput(f"{before.id} and {after.id} have no metric in common", "give their judges the same names")
    earlier = {item.id: item for item in old}
    pairs = [(earlier[item.id], item) for item in new if item.id in earlier]
    paired = before.items_sha256 == after.items_sha256 and len(pairs) == len(new)
    differences = []
    for metric in metrics:
        first, second = before.score(metric), after.score(metric)
        assert first is not None and second is not None
        if paired:
            low, high = paired_difference(
                values_of([b for _, b in pairs], metric), values_of([a for a, _ in pairs], metric), confidence
            )
        else:
            low, high = _apart(first, second)
        differences.append(
            MetricDifference(
                metric=metric,
                before=first.mean,
                after=second.mean,
                low=max(low, -2.0),  # scores lie between -1 and 1
                high=min(high, 2.0),
                paired=paired,
            )
        )
    moved = [(b.id, _moved(a, b, metrics)) for a, b in pairs]
    return EvaluationComparison(
        before=before,
        after=after,
        metrics=tuple(differences),
        answers_changed=sum(a.answer != b.answer for a, b in pairs),
        answers_in_common=len(pairs),
        worse=tuple(item for item, by in moved if by < 0),
        better=tuple(item for item, by in moved if by > 0),
    )


def _apart(first: Score, second: Score) -> tuple[float, float]:
    """Newcombe's way of putting two intervals together: each side's distance, as a hypotenuse."""
    gap = second.mean - first.mean
    low = gap - math.hypot(second.mean - second.low, first.high - first.mean)
    return low, gap + math.hypot(second.high - second.mean, first.mean - first.low)


def _moved(before: Item, after: Item, metrics: Sequence[str]) -> float:
    """The fall if any metric fell, else the rise."""
    steps = [values_of([after], metric)[0] - values_of([before], metric)[0] for metric in metrics]
    return min(steps) if min(steps) < 0 else max(steps)


# ---------------------------------------------------------------- alarms


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """An evaluation from before, with its items where they can still be read."""

    evaluation: Evaluation
    items: Sequence[Item]


def alarms(
    need: EvaluationNeed, now: Evaluation, items: Sequence[Item], last: Past | None, oldest: Past | None, words: str
) -> tuple[Alarm, ...]:
    """What an evaluation shows that people should know. `words` say which version and how old its data is.

    Held against each judge's own limit, against the last evaluation of the same rows, against the oldest within
    30 days (a slide that no night shows), and, where the version did not change, for a change of the model itself.
    """
    found = []
    for judge in need.judges:
        score = now.score(judge.name)
        if score is not None and judge.alarm_below is not None and score.mean < judge.alarm_below:
            found.append(
                Alarm(
                    kind="below",
                    title=f"{now.name}: {judge.name} of {now.target} is {score.mean:.3f}, below {judge.alarm_below:g}",
                    need=f"{judge.name} of {judge.alarm_below:g} or more",
                    have=f"{score.mean:.3f} ({score.low:.3f} to {score.high:.3f}); {words}",
                    hint=f"look at the wrong answers: ground eval show {now.id} --items",
                )
            )
    if not need.watch:
        return tuple(found)
    fell = _worse(now, items, last, "worse", words)
    found += fell or _worse(now, items, oldest, "sliding", words)
    if last is not None and last.evaluation.model_version == now.model_version:
        found += _changed(now, items, last, words)
    return tuple(found)


def _worse(now: Evaluation, items: Sequence[Item], past: Past | None, kind: str, words: str) -> list[Alarm]:
    if past is None or past.evaluation.items_sha256 != now.items_sha256:
        return []
    found = []
    for each in compare(past.evaluation, now, past.items, items, now.confidence).metrics:
        if each.high < 0:
            since = format_duration((now.at - past.evaluation.at).total_seconds())
            over = "since the last evaluation" if kind == "worse" else "over time"
            found.append(
                Alarm(
                    kind=kind,
                    title=f"{now.name}: {each.metric} of {now.target} fell {over}: {each.before:.3f} to "
                    f"{each.after:.3f} in {since}",
                    need=f"{each.metric} not below {past.evaluation.id}",
                    have=f"{each.low:+.3f} to {each.high:+.3f} ({now.confidence:.0%} sure); {words}",
                    hint=f"ground eval compare {past.evaluation.id} {now.id}",
                )
            )
    return found


def _changed(now: Evaluation, items: Sequence[Item], last: Past, words: str) -> list[Alarm]:
    """Signs that the same name is another model now. Each says what was seen; a name alone proves nothing."""
    before = last.evaluation
    if before.target != now.target or before.items_sha256 != now.items_sha256:
        return []
    signs = []
    for what, old, new in (
        ("it calls itself", before.models, now.models),
        ("its fingerprint is", before.fingerprints, now.fingerprints),
    ):
        if old and new and not set(old) & set(new):
            signs.append(f"{what} {', '.join(new[:3])}, was {', '.join(old[:3])}")
    earlier = {item.id: item for item in last.items}
    pairs = [(earlier[item.id], item) for item in items if item.id in earlier and not item.error]
    changed = sum(old.answer != new.answer for old, new in pairs)
    if pairs:
        low, _ = wilson(changed, len(pairs), now.confidence)
        noise = 1.0 - min(1.0 if each is None else each for each in (before.agreement, now.agreement))
        granted = noise if before.agreement is not None and now.agreement is not None else _NOISE_UNKNOWN
        if low > granted:
            signs.append(f"{changed} of {len(pairs)} answers differ; by themselves {granted:.0%} do")
    shifts = [(new.logprob, old.logprob) for old, new in pairs if new.logprob is not None and old.logprob is not None]
    if len(shifts) > 1:
        low, high = paired_difference([each[0] for each in shifts], [each[1] for each in shifts], now.confidence)
        if low > 0 or high < 0:
            signs.append(f"log probabilities moved by {low:+.4f} to {high:+.4f} a token")
    if not signs:
        return []
    return [
        Alarm(
            kind="changed",
            title=f"{now.name}: {now.target} answers as another model does since {before.at:%Y-%m-%d %H:%M} UTC",
            need=f"the model that answered {before.id}",
            have=f"{'; '.join(signs)}; {words}",
            hint=f"ground eval compare {before.id} {now.id}",
        )
    ]


def pinned_hint(alternatives: Sequence[str]) -> str:
    """The way forward after a silent change."""
    return f"; pinned alternatives: {', '.join(alternatives)}" if alternatives else ""


def facts_of(made: Evaluation) -> Mapping[str, str]:
    """What evidence for gates says of its circumstances. `items` lets two versions be compared item by item."""
    return {
        "evaluation": made.id,
        "dataset": made.dataset,
        "items": made.items_sha256,
        "target": made.target,
        "records": made.records_sha256,
    }
