"""What an attempt's accelerators took, in joules: by their own counters, else from samples of their power."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document
    from groundplane.runner.samples import Sampler

COUNTERS = "measured by the energy counters of {cards} accelerators"
SAMPLES = "measured by {samples} samples of the power of {cards} accelerators"


class EnergyMeter:
    """Begun when the command starts, told of every sample. Nothing is known without cards that report."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler
        self._before: list[float] | None = None
        self._at, self._power_w = 0.0, 0.0
        self._samples, self._joules = 0, 0.0

    def begin(self) -> None:
        self._before, self._at = self._sampler.energy_j(), time.monotonic()

    def sampled(self, sample: Document) -> Document:
        """What was taken so far: {"joules", "how"}, or {}."""
        cards = sample["accelerators"]
        after, now = (self._sampler.energy_j() if self._before else None), time.monotonic()
        if self._before and after:
            taken = sum(after) - sum(self._before)
            return {"joules": round(max(0.0, taken), 3), "how": COUNTERS.format(cards=len(after))}
        if not cards or any("power_w" not in card for card in cards):
            return {}
        power_w = sum(card["power_w"] for card in cards)
        # A rectangle up to the first sample, trapezoids from there on.
        mean_w = power_w if not self._samples else (power_w + self._power_w) / 2
        self._joules += mean_w * (now - self._at)
        self._samples, self._power_w, self._at = self._samples + 1, power_w, now
        return {"joules": round(self._joules, 3), "how": SAMPLES.format(samples=self._samples, cards=len(cards))}
