"""The bounds of what may cross the HTTP door: text, numbers, money and times that a record refuses to hold."""

from __future__ import annotations

import unicodedata
from datetime import datetime
from typing import Any

STRICT: dict[str, Any] = {"extra": "forbid"}
TEXT_MAX = 1_000
MONEY_MAX_MICROUSD = 10**15
RATE_MAX = 10**9


def check_text(**values: str) -> None:
    """ValueError for text that no database or terminal should meet: too long, or with control characters."""
    for name, value in values.items():
        if len(value) > TEXT_MAX:
            raise ValueError(f"{name} has {len(value)} characters; {TEXT_MAX} is the most")
        if any(unicodedata.category(character) in {"Cc", "Cs"} for character in value):
            raise ValueError(f"{name} holds a control character")


def check_zone(name: str, moment: datetime | None) -> None:
    if moment is not None and moment.utcoffset() is None:
        raise ValueError(f"{name} has no time zone; write 2026-12-01T18:00:00Z")


def check_money(limit_microusd: int | None, thresholds_percent: tuple[int, ...]) -> None:
    check_range("monthly_limit_microusd", limit_microusd, 0, MONEY_MAX_MICROUSD)
    if len(thresholds_percent) > 20:
        raise ValueError(f"thresholds_percent has {len(thresholds_percent)} entries; 20 is the most")
    for percent in thresholds_percent:
        check_range("thresholds_percent", percent, 1, 1_000)


def check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, is {value}")
