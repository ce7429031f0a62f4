"""Every error Groundplane raises on purpose, in one tree.

    GroundError
    ├── InvalidInput      what was sent can't be understood         exit 2   HTTP 422
    ├── Refusal           understood, and the answer is no          exit 3   HTTP 409
    │   └── ApprovalNeeded    somebody else must agree first        exit 10  HTTP 409
    ├── NotFound          no such object                            exit 4   HTTP 404
    ├── Conflict          the world changed, or it exists already   exit 5   HTTP 409
    ├── AlreadyUp         a second `ground up` on one home          exit 1
    ├── Unavailable       a part we need does not answer            exit 6   HTTP 503
    ├── AccessError                                                 exit 7
    │   ├── Unauthenticated   no key, or a wrong one                         HTTP 401
    │   └── Forbidden         a good key without this permission             HTTP 403
    ├── TooLarge          over a size limit                         exit 2   HTTP 413
    └── IntegrityFailure  bytes or records are not what was signed  exit 8   HTTP 422

Anything else that escapes is a defect of ours: exit 1, HTTP 500.

`Refused` is a value, not an error: domain code returns it, doors turn it into a `Refusal`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A "no" with its reason: the rule, the number it needs, the number there is, and a way forward."""

    rule: str
    need: str
    have: str
    hint: str

    def __str__(self) -> str:
        return f"{self.rule}: needs {self.need}, has {self.have}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One fault in an input document: where (dotted field, 1-based line) and what."""

    field: str
    message: str
    line: int | None = None
    hint: str = ""

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        return f"{where}{self.field}: {self.message}" if self.field else f"{where}{self.message}"


@dataclass(eq=False)
class GroundError(Exception):
    """The root. `message` is one line; `hint` is the way forward; `code` is stable and documented."""

    message: str
    hint: str = ""
    details: dict[str, object] = field(default_factory=dict)

    code: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500

    def __str__(self) -> str:
        return self.message


class InvalidInput(GroundError):
    """The input can't be understood. `problems` lists each fault with its line."""

    code, exit_code, http_status = "invalid-input", 2, 422

    def __init__(self, message: str, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(message, hint)
        self.problems = tuple(problems)


class Refusal(GroundError):
    """Understood and refused: carries every `Refused` that applied, the first one in the message."""

    code, exit_code, http_status = "refused", 3, 409

    def __init__(self, refusals: Sequence[Refused]) -> None:
        first = refusals[0]
        super().__init__(str(first), first.hint)
        self.refusals = tuple(refusals)


class ApprovalNeeded(Refusal):
    """Nothing is wrong with the plan, but somebody else must agree before it is applied."""

    code, exit_code = "approval-needed", 10


class NotFound(GroundError):
    code, exit_code, http_status = "not-found", 4, 404


class Conflict(GroundError):
    code, exit_code, http_status = "conflict", 5, 409


class AlreadyUp(GroundError):
    code, exit_code, http_status = "already-up", 1, 409


class Unavailable(GroundError):
    code, exit_code, http_status = "unavailable", 6, 503


class AccessError(GroundError):
    code, exit_code, http_status = "access", 7, 403


class Unauthenticated(AccessError):
    code, http_status = "unauthenticated", 401


class Forbidden(AccessError):
    code, http_status = "forbidden", 403


class TooLarge(GroundError):
    code, exit_code, http_status = "too-large", 2, 413


class IntegrityFailure(GroundError):
    code, exit_code, http_status = "integrity", 8, 422
