"""The machine's clock and its chance."""

from __future__ import annotations

import secrets
import threading
from datetime import UTC, datetime

from groundplane.ports import Clock

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 35
_DIGITS = 16  # 45 bits of milliseconds (until the year 3084) and 35 random ones, five bits a digit


class SystemClock:
    """The system's time, UTC."""

    def now(self) -> datetime:
        return datetime.now(UTC)


class RandomIds:
    """Ids such as `run-01jd3k9x7q2m4w8z`: sixteen base-32 digits, sorted by creation.

    Within a process each id is greater than the one before, also when the clock is set back. Between processes two
    ids of the same millisecond collide once in 34 billion, and the store refuses the second.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._last = 0

    def new(self, prefix: str) -> str:
        milliseconds = int(self._clock.now().timestamp() * 1000)
        fresh = milliseconds << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
        with self._lock:
            self._last = max(fresh, self._last + 1)
            number = self._last
        digits = "".join(_ALPHABET[number >> shift & 31] for shift in range(5 * (_DIGITS - 1), -1, -5))
        return f"{prefix}-{digits}"
