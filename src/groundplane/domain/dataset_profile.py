"""What is in tables: rows, columns, kinds and bounds, from CSV, TSV and JSONL, one pass, bounded memory.

Values are never kept but for a column's least and greatest; distinct values are counted up to a limit.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from groundplane.domain.dataset import Column, Profile

COLUMNS_MAX = 500
DISTINCT_MAX = 10_000
SHOWN_MAX = 64
ROW_CHARACTERS_MAX = 10_000_000
TABLES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_UNREAD = {
    ".parquet": "Parquet is not looked into",
    ".arrow": "Arrow is not looked into",
    ".gz": "compressed: not looked into",
    ".zst": "compressed: not looked into",
}


def suffix_of(path: str) -> str:
    """The last suffix of a path, lower-case, with its dot; empty without one."""
    name = path.rpartition("/")[2]
    return f".{name.rpartition('.')[2]}".lower() if "." in name else ""


class Profiler:
    """Fed with one table after the other; `profile` is what they hold together."""

    def __init__(self) -> None:
        self._rows, self._tables = 0, 0
        self._columns: dict[str, _Column] = {}
        self._unread: list[str] = []

    def skip(self, path: str, why: str = "") -> None:
        """Notes a file that no table was read from, if somebody would have expected one."""
        reason = why or _UNREAD.get(suffix_of(path), "")
        if reason:
            self._unread.append(f"{path}: {reason}")

    def table(self, path: str, lines: Iterable[str]) -> None:
        """Reads a table's text. What can't be read ends it, and is noted with its row; what was read before counts."""
        kind = TABLES[suffix_of(path)]
        self._tables += 1
        try:
            for row in _records(kind, lines):
                self._rows += 1
                self._row(row)
        except (ValueError, csv.Error) as error:
            self._unread.append(f"{path}: row {self._rows + 1:,} and on: {error}")

    @property
    def profile(self) -> Profile:
        columns = tuple(column.column(name, self._rows) for name, column in self._columns.items())
        return Profile(rows=self._rows, tables=self._tables, columns=columns, unread=tuple(self._unread[:100]))

    def _row(self, row: Mapping[str, object]) -> None:
        for name, value in row.items():
            column = self._columns.get(name)
            if column is None:
                if len(self._columns) == COLUMNS_MAX:
                    raise ValueError(f"more than {COLUMNS_MAX} columns")
                column = self._columns[name] = _Column()
            column.add(value)


@dataclass(slots=True)
class _Column:
    seen: int = 0
    kinds: set[str] = field(default_factory=set)
    distinct: set[int] = field(default_factory=set)
    low: object = None
    high: object = None
    total: float = 0.0

    def add(self, value: object) -> None:
        if value is None or value == "":
            return
        self.seen += 1
        kind, worth = _read(value)
        if self.kinds and kind not in self.kinds and not {kind, *self.kinds} <= {"integer", "number"}:
            self.low = self.high = None
        self.kinds.add(kind)
        if len(self.distinct) < DISTINCT_MAX:
            self.distinct.add(hash(worth))
        if isinstance(worth, int | float):
            self.total += worth
        if self._one_kind:
            self.low = worth if self.low is None or worth < self.low else self.low  # type: ignore[operator]
            self.high = worth if self.high is None or worth > self.high else self.high  # type: ignore[operator]

    @property
    def _one_kind(self) -> bool:
        return len(self.kinds) == 1 or self.kinds == {"integer", "number"}

    def column(self, name: str, rows: int) -> Column:
        numeric = bool(self.kinds) and self.kinds <= {"integer", "number"}
        kind = "number" if numeric and len(self.kinds) == 2 else next(iter(self.kinds), "empty")
        bounds = self._one_kind
        return Column(
            name=name,
            kind=kind if bounds or not self.kinds else "mixed",
            nulls=rows - self.seen,
            distinct=len(self.distinct),
            low=str(self.low)[:SHOWN_MAX] if bounds else "",
            high=str(self.high)[:SHOWN_MAX] if bounds else "",
            mean=self.total / self.seen if numeric and self.seen else None,
        )


def _read(value: object) -> tuple[str, object]:
    """A value's kind, and the value as its kind compares."""
    if isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false")):
        return "boolean", str(value).lower()
    if isinstance(value, int):
        return "integer", value
    if isinstance(value, float):
        return ("number", value) if math.isfinite(value) else ("text", str(value))
    if not isinstance(value, str):
        return "nested", json.dumps(value, sort_keys=True)[:SHOWN_MAX]
    if len(value) <= 40 and (value[0].isdigit() or value[0] in "+-."):
        try:
            return "integer", int(value)
        except ValueError:
            pass
        try:
            number = float(value)
        except ValueError:
            return "text", value[:SHOWN_MAX]
        if math.isfinite(number):
            return "number", number
    return "text", value[:SHOWN_MAX]


def _records(kind: str, lines: Iterable[str]) -> Iterator[Mapping[str, object]]:
    if kind == "jsonl":
        for line in lines:
            if len(line) > ROW_CHARACTERS_MAX:
                raise ValueError("a line of more than 10 million characters")
            if line.strip():
                try:
                    row = json.loads(line)
                except RecursionError:
                    raise ValueError("nested too deeply") from None
                if not isinstance(row, dict):
                    raise ValueError("a line that is no object")
                yield row
        return
    reader = csv.reader(lines, delimiter="\t" if kind == "tsv" else ",", strict=True)
    head = next(reader, None)
    if head is None:
        return
    if len(set(head)) != len(head):
        raise ValueError("two columns of one name")
    for cells in reader:
        if not cells:
            continue
        if len(cells) != len(head):
            raise ValueError(f"{len(cells)} cells under {len(head)} headings")
        yield dict(zip(head, cells, strict=True))
