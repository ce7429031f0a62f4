"""What crosses the HTTP door about dev environments besides the domain's own records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from groundplane.domain.dev import Wish
from groundplane.wire.bounds import STRICT, check_range, check_text

KINDS = ("shell", "tcp")


@dataclass(frozen=True, slots=True, kw_only=True)
class AttachRequest:
    """To a `shell` by the name of its session, or to a `tcp` port inside."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    kind: str = "shell"
    session: str = "main"
    rows: int = 24
    columns: int = 80
    term: str = "xterm"
    port: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, is {self.kind!r}")
        check_text(session=self.session, term=self.term)
        check_range("rows", self.rows, 1, 10_000)
        check_range("columns", self.columns, 1, 10_000)
        check_range("port", self.port, 1 if self.kind == "tcp" else 0, 65_535)

    def wish(self) -> Wish:
        return Wish(
            kind=self.kind,
            session=self.session or "main",
            rows=self.rows,
            columns=self.columns,
            term=self.term,
            port=self.port,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A connection, for whoever opened it."""

    id: str
