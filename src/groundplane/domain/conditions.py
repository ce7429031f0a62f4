"""What rows are asked for beside equality: ranges, parts of texts, what other rows say of them, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class AtLeast:
    """A `where` value: the column is at or after this."""

    value: object


@dataclass(frozen=True, slots=True)
class Below:
    """A `where` value: the column is before this."""

    value: object


@dataclass(frozen=True, slots=True)
class Between:
    """A `where` value: the column is at or after `low` and before `high`."""

    low: object
    high: object


@dataclass(frozen=True, slots=True)
class Contains:
    """A `where` value: the text column holds this lower-case text somewhere."""

    text: str


@dataclass(frozen=True, slots=True)
class Among:
    """A `where` value: the column is one of `column` of the rows of another kind that match `where`.

    What has to hold of several such rows is said by an Among inside an Among. Each row is looked up by itself: quick
    where many match and few are wanted.
    """

    kind: type
    column: str
    where: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Greatest:
    """A `where` value: the column is the greatest that rows with the same `per` have of it, among those that match
    `where`: the newest version of each name."""

    per: str
    where: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class By:
    """What rows are ordered by: a column, or with `key` what the JSON object in it has there.

    `kind` is another kind whose row of the same id has the column. `is_number`: there is a list that begins with a
    number, or with `nan`, `inf` or `-inf`. What is not there, and `nan`, comes last, descending too.
    """

    column: str
    descending: bool = False
    key: str = ""
    kind: type | None = None
    is_number: bool = False
