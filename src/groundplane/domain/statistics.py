"""Confidence intervals for what was sampled: shares of successes by Wilson and Newcombe, means by a seeded bootstrap.

Sources: E. B. Wilson 1927; R. G. Newcombe 1998, "Interval estimation for the difference between independent
proportions", method 10; B. Efron 1979 (percentile bootstrap).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

ROUNDS = 1_000
LARGE = 200
"""Samples of this size or more: their means are normal enough, and resampling would only say so slowly."""
_MULTIPLIER, _INCREMENT, _MASK = 6364136223846793005, 1442695040888963407, (1 << 64) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Scores of examples, or how many of how many succeeded."""

    values: tuple[float, ...] = ()
    successes: int | None = None
    trials: int | None = None

    @property
    def counted(self) -> bool:
        return self.successes is not None and self.trials is not None and self.trials > 0

    @property
    def usable(self) -> bool:
        """Whether an interval can be told from it: two values at least, or counts."""
        return self.counted or len(self.values) > 1

    @property
    def mean(self) -> float | None:
        """None of nothing."""
        if self.successes is not None and self.trials:
            return self.successes / self.trials
        return math.fsum(self.values) / len(self.values) if self.values else None


def quantile(values: Sequence[float], q: float) -> float:
    """The value that a share `q` of the values is at or under: the nearest rank, so it is one that was measured."""
    if not values or not 0 < q <= 1:
        raise ValueError(f"no {q} quantile of {len(values)} values")
    return sorted(values)[math.ceil(q * len(values)) - 1]


def wilson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """The score interval of a share."""
    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is no share")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, spread = successes / trials, z * z / trials
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def difference(new: Sample, old: Sample, confidence: float) -> tuple[float, float]:
    """The interval of mean(new) − mean(old). Counts on both sides by Newcombe, else by resampling each side."""
    if new.counted and old.counted:
        return _newcombe(new, old, confidence)
    first, second = _expanded(new), _expanded(old)
    if min(len(first), len(second)) >= LARGE:
        return _welch(first, second, confidence)
    return _bootstrap(first, second, confidence)


def _newcombe(new: Sample, old: Sample, confidence: float) -> tuple[float, float]:
    assert new.successes is not None and new.trials is not None
    assert old.successes is not None and old.trials is not None
    p, q = new.successes / new.trials, old.successes / old.trials
    low_p, high_p = wilson(new.successes, new.trials, confidence)
    low_q, high_q = wilson(old.successes, old.trials, confidence)
    low = p - q - math.hypot(p - low_p, high_q - q)
    high = p - q + math.hypot(high_p - p, q - low_q)
    return low, high


def _expanded(sample: Sample) -> Sequence[float]:
    if sample.successes is not None and sample.trials is not None:
        return [1.0] * sample.successes + [0.0] * (sample.trials - sample.successes)
    return sample.values


def _welch(new: Sequence[float], old: Sequence[float], confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = math.fsum(new) / len(new) - math.fsum(old) / len(old)
    half = z * math.sqrt(_variance(new) / len(new) + _variance(old) / len(old))
    return middle - half, middle + half


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


def _bootstrap(new: Sequence[float], old: Sequence[float], confidence: float) -> tuple[float, float]:
    """The percentile interval of `ROUNDS` resamplings. The same samples give the same interval, every time."""
    state = 0x9E3779B97F4A7C15
    rounds = max(200, min(ROUNDS, 400_000 // (len(new) + len(old))))
    found = []
    for _ in range(rounds):
        means = []
        for values in (new, old):
            total, count = 0.0, len(values)
            for _ in range(count):
                state = (state * _MULTIPLIER + _INCREMENT) & _MASK
                total += values[((state >> 32) * count) >> 32]
            means.append(total / count)
        found.append(means[0] - means[1])
    found.sort()
    edge = (1 - confidence) / 2
    return found[int(edge * (rounds - 1))], found[math.ceil((1 - edge) * (rounds - 1))]


def interval(values: Sequence[float], confidence: float) -> tuple[float, float]:
    """The interval of a mean: Wilson's for zeros and ones, else by the normal law or by resampling."""
    if all(value in (0.0, 1.0) for value in values):
        return wilson(round(math.fsum(values)), len(values), confidence)
    return _around_mean(values, confidence)


def paired_difference(new: Sequence[float], old: Sequence[float], confidence: float) -> tuple[float, float]:
    """The interval of the mean of new − old, item by item: what moved both alike cancels out.

    Zeros and ones by Newcombe's method 10 for pairs. ValueError for other lengths, or none.
    Source: R. G. Newcombe 1998, "Improved confidence intervals for the difference between binomial proportions based
    on paired data".
    """
    if len(new) != len(old) or not new:
        raise ValueError(f"{len(new)} and {len(old)} values are no pairs")
    if all(value in (0.0, 1.0) for value in (*new, *old)):
        return _newcombe_paired(new, old, confidence)
    return _around_mean([first - second for first, second in zip(new, old, strict=True)], confidence)


def _around_mean(values: Sequence[float], confidence: float) -> tuple[float, float]:
    if len(values) < 2:
        # One value says nothing about how far the next one may lie.
        return -math.inf, math.inf
    if len(values) >= LARGE:
        return _welch(values, (0.0, 0.0), confidence)
    return _bootstrap(values, (0.0,), confidence)


def _newcombe_paired(new: Sequence[float], old: Sequence[float], confidence: float) -> tuple[float, float]:
    count = len(new)
    both = sum(a == b == 1.0 for a, b in zip(new, old, strict=True))
    only_new, only_old = sum(new) - both, sum(old) - both
    neither = count - both - only_new - only_old
    p, q = sum(new) / count, sum(old) / count
    low_p, high_p = wilson(round(sum(new)), count, confidence)
    low_q, high_q = wilson(round(sum(old)), count, confidence)
    rest = (both + only_new) * (only_old + neither) * (both + only_old) * (only_new + neither)
    bound = both * neither - only_new * only_old
    if bound > 0:
        bound = max(bound - count / 2, 0.0)
    tie = bound / math.sqrt(rest) if rest else 0.0
    down_p, up_p, down_q, up_q = p - low_p, high_p - p, q - low_q, high_q - q
    low = p - q - math.sqrt(max(0.0, down_p**2 - 2 * tie * down_p * up_q + up_q**2))
    high = p - q + math.sqrt(max(0.0, up_p**2 - 2 * tie * up_p * down_q + down_q**2))
    return low, high
