"""What cannot be computed: the time, and fresh names."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol


class Clock(Protocol):
    def now(self) -> datetime:
        """The current time, timezone-aware UTC. It can be set back: nothing may rely on it only growing."""
        ...


class Ids(Protocol):
    def new(self, prefix: str) -> str:
        """A fresh id such as `run-01jd3k9x7q2m`: unique, sortable by creation, safe in paths and host names."""
        ...
