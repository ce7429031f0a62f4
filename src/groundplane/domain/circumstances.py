"""What a runner saw around an attempt before its command started, as it is kept, and as the certificate states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptCircumstances:
    """An attempt's circumstances. id = the attempt's. `members` are the runners' documents by rank.

    `energy_j` is what its accelerators took, None while nobody measured it; `energy_how` says how it is known.
    """

    id: str
    run_id: str
    project: str
    at: datetime
    members: tuple[dict[str, object], ...] = ()
    energy_j: float | None = None
    energy_how: str = ""
    version: int = 0


Document = Mapping[str, object]
