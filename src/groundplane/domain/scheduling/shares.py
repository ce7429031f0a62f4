"""Fair share: what a project holds now and held lately, as a fraction of the pool."""

from __future__ import annotations

from collections.abc import Mapping

from groundplane.domain.scheduling.state import Amount


def dominant(held: Amount, pool: Amount) -> float:
    """The largest fraction of any of the pool's resources. Source: Ghodsi et al., Dominant Resource Fairness, 2011."""
    fractions = [
        part / whole
        for part, whole in (
            (held.accelerators, pool.accelerators),
            (held.cpus_milli, pool.cpus_milli),
            (held.memory_bytes, pool.memory_bytes),
        )
        if whole
    ]
    return max(fractions, default=0.0)


def decayed(
    usage: Mapping[str, float], held: Mapping[str, float], *, elapsed_s: float, half_life_s: float
) -> dict[str, float]:
    """Each project's average share after `elapsed_s` in which it held `held`: the past counts half per half-life.

    An exponentially weighted mean: somebody who always held 0.5 has 0.5. What falls below 1e-6 is forgotten.
    """
    kept = 0.5 ** (max(0.0, elapsed_s) / half_life_s)
    fresh = {
        project: kept * usage.get(project, 0.0) + (1.0 - kept) * held.get(project, 0.0)
        for project in sorted({*usage, *held})
    }
    return {project: share for project, share in fresh.items() if share >= 1e-6}
