"""Exceptions: a rule lifted for a while, for one project or one piece of its work, by somebody with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from groundplane.domain.planning.plan import Verdict
from groundplane.errors import InvalidInput

MAX_EXCEPTION_DAYS = 366


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyException:
    """Lifts `rule` for `project` until `expires_at`; for one spec's `name`, or for all of them when it is empty.

    It ends by itself: nothing has to run for that.
    """

    id: str
    rule: str
    project: str
    name: str
    owner: str
    reason: str
    expires_at: datetime
    created_by: str
    created_at: datetime
    version: int = 0

    def covers(self, rule: str, project: str, name: str, now: datetime) -> bool:
        if (self.rule, self.project) != (rule, project) or now >= self.expires_at:
            return False
        return not self.name or self.name == name

    def __str__(self) -> str:
        return f"excepted until {self.expires_at:%Y-%m-%d %H:%M} UTC by {self.owner}: {self.reason}"


def checked_expiry(expires_at: datetime, now: datetime) -> datetime:
    """Raises InvalidInput for a time that is past, or too far away to be an exception."""
    if expires_at <= now:
        raise InvalidInput(f"{expires_at:%Y-%m-%d %H:%M} UTC is past", "an exception ends in the future: 14d")
    if expires_at - now > timedelta(days=MAX_EXCEPTION_DAYS):
        days = (expires_at - now).days
        raise InvalidInput(
            f"{days} days is more than an exception may last ({MAX_EXCEPTION_DAYS})",
            "change the rule, or choose an earlier end",
        )
    return expires_at


def lifted(
    verdicts: Sequence[Verdict],
    exceptions: Iterable[PolicyException],
    locked: frozenset[str],
    *,
    project: str,
    name: str,
    now: datetime,
) -> tuple[Verdict, ...]:
    """The verdicts, those that refuse or ask for approval lifted where an exception covers them; it says so.

    `locked` rules are never lifted.
    """
    held = [each for each in exceptions if each.rule not in locked]
    return tuple(_lifted(verdict, held, project, name, now) for verdict in verdicts)


def _lifted(verdict: Verdict, exceptions: Sequence[PolicyException], project: str, name: str, now: datetime) -> Verdict:
    if verdict.refused is None and not verdict.approval:
        return verdict
    covering = [each for each in exceptions if each.covers(verdict.rule, project, name, now)]
    if not covering:
        return verdict
    longest = max(covering, key=lambda each: (each.expires_at, each.id))
    return replace(verdict, refused=None, approval="", exception=str(longest))
