"""What is told of rules: the set in force, a test's outcome, a replay. Records alone: they cross the HTTP door."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from groundplane.errors import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleInfo:
    """A rule for people: what it is over, what it does when it is broken, where it is from, and its condition in CEL.

    `source` is `built-in` or file:line. `text` is empty for a rule in Python.
    """

    id: str
    over: str
    severity: str
    why: str
    hint: str
    text: str
    source: str
    enabled: bool
    locked: bool
    tests: int
    off_because: str = ""
    changed_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """What is in force and since when. `problems` say why the folder as it stands is not; `pending` that it differs."""

    version: str
    loaded_at: datetime
    folder: str
    files: tuple[str, ...]
    rules: tuple[RuleInfo, ...]
    problems: tuple[Problem, ...]
    pending: bool
    refusals: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTestResult:
    """What a test inside a file expected and got. `said` is the rule's own word."""

    rule: str
    name: str
    source: str
    expected: str
    got: str
    said: str

    @property
    def passed(self) -> bool:
        return self.expected == self.got


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleMove:
    """One rule's word on one plan, then and under the proposed rules. `said` is its sentence there, or then."""

    rule: str
    before: str
    after: str
    said: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMove:
    """A plan whose verdict would have been another: `ready`, `needs-approval` or `refused`, and by which rules."""

    plan: str
    project: str
    name: str
    owner: str
    created_at: datetime
    before: str
    after: str
    worst_case_microusd: int
    moves: tuple[RuleMove, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """`changed` has the newest first, at most `changed_count`. `unplayed` says what could not be.

    `kept` are the rules and checks whose word of then stands, because they look at what a plan does not keep.
    `truncated`: there are older plans since then that were not looked at.
    """

    since: datetime
    version: str
    plans: int
    changed_count: int
    newly_refused: int
    newly_allowed: int
    changed: tuple[PlanMove, ...]
    by_rule: Mapping[str, int]
    unplayed: Mapping[str, int]
    kept: tuple[str, ...] = ()
    truncated: bool = False
