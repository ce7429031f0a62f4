"""How one value of a spec is read: text as its author wrote it → a checked value, or why not.

Each reader takes a YAML node and the current time, and raises `Unreadable` with every fault it found.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from groundplane.domain.spec.yaml_nodes import is_null, line_of
from groundplane.units import format_bytes, format_duration, format_usd, parse_bytes, parse_duration_s, parse_usd

MAX_TEXT = 65_536
MAX_NUMBER_TEXT = 40
MAX_ITEMS = 4_096
MAX_MICROUSD = 10**15  # a thousand million dollars; also keeps sums of them within 64 bits
MAX_DURATION_S = 3_650 * 86_400
MAX_BYTES = 2**60

Reader = Callable[[Node, datetime], object]

_STR = "tag:yaml.org,2002:str"
_KINDS = {"bool": "a boolean", "int": "a number", "float": "a number", "timestamp": "a date", "null": "nothing"}
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_AMOUNT = re.compile(r"(USD\s*)?\$?(\d{1,10}|\d{1,3}(,\d{3}){1,3})(\.\d+)?")
_RFC3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?\s*([Zz]|[+-]\d\d:\d\d)?")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, on which line, `where` inside the field (`.KEY`, `[2]`, or nothing)."""

    line: int
    message: str
    hint: str = ""
    where: str = ""


class Unreadable(Exception):
    """A value that can't be read, with every fault in it."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__(faults[0].message)
        self.faults = faults


def shown(text: str, limit: int = 60) -> str:
    """A value as a message quotes it: on one line, cut when long."""
    return repr(text if len(text) <= limit else text[: limit - 1] + "…")


def text(pattern: str = "", meaning: str = "", *, empty: bool = False, example: str = "") -> Reader:
    """A string; `pattern` must match all of it, `meaning` says so in words."""

    def read(node: Node, _now: datetime) -> str:
        if is_null(node) and not empty and example:
            raise _bad(node, "is empty", f"write it like {example}")
        value = _string(node)
        if not value and not empty:
            raise _bad(node, "is empty", f"write it like {example}" if example else "")
        if value and pattern and not re.fullmatch(pattern, value):
            raise _bad(node, f"{shown(value)} is not {meaning}", f"write it like {example}" if example else "")
        return value

    return read


def choice(*options: str) -> Reader:
    def read(node: Node, _now: datetime) -> str:
        value = _string(node)
        if value not in options:
            raise _bad(node, f"{shown(value)} is not one of: {', '.join(options)}")
        return value

    return read


def integer(minimum: int, maximum: int) -> Reader:
    def read(node: Node, _now: datetime) -> int:
        value = _plain(node, "a whole number")
        if not re.fullmatch(r"[+-]?\d+", value, re.ASCII):
            raise _bad(node, f"{shown(value)} is not a whole number", f"write it like {max(minimum, 1)}")
        _bounds(node, int(value), minimum, maximum, str)
        return int(value)

    return read


def number(minimum: float, maximum: float) -> Reader:
    def read(node: Node, _now: datetime) -> float:
        value = _plain(node, "a number")
        if not re.fullmatch(r"[+-]?\d+(\.\d+)?", value, re.ASCII):
            raise _bad(node, f"{shown(value)} is not a number", "write it like 2 or 0.5")
        _bounds(node, float(value), minimum, maximum, lambda bound: f"{bound:g}")
        return float(value)

    return read


def boolean(node: Node, _now: datetime) -> bool:
    """Only `true` and `false`: YAML's yes and on are text here."""
    value = _plain(node, "true or false")
    if value.lower() not in {"true", "false"} or not node.tag.endswith(":bool"):
        raise _bad(node, f"{shown(value)} is not true or false", "write true or false")
    return value.lower() == "true"


def money(*, zero: bool = False) -> Reader:
    """Dollars → micro-dollars, above $0 unless `zero` allows it."""

    def read(node: Node, _now: datetime) -> int:
        value = _plain(node, "an amount of dollars")
        if re.match(r"[$]?\s*-", value):
            raise _bad(node, f"{shown(value)} is below $0", "write it like $12.50")
        if not _AMOUNT.fullmatch(value):
            raise _bad(node, f"{shown(value)} is no amount of dollars", "write it like $12.50")
        amount = _unit(node, parse_usd, value)
        if amount == 0 and not zero:
            raise _bad(node, f"must be more than $0, is {value}", "write the most it may cost, like $0.50")
        _bounds(node, amount, 0, MAX_MICROUSD, format_usd)
        return amount

    return read


def size(minimum: int) -> Reader:
    """Bytes."""

    def read(node: Node, _now: datetime) -> int:
        value = _plain(node, "a size")
        if value.startswith("-"):
            raise _bad(node, f"{shown(value)} is below 0", "write it like 512MB or 16GiB")
        count = _unit(node, parse_bytes, value)
        if 0 < count < minimum and value.isdigit():
            raise _bad(node, f"{value} has no unit, so it means {value} bytes", f"write {value}GiB or {value}MiB")
        _bounds(node, count, minimum, MAX_BYTES, format_bytes)
        return count

    return read


def rate(node: Node, _now: datetime) -> int:
    """Bytes a second: `60MB/s`."""
    value = _plain(node, "a rate").removesuffix("/s").strip()
    hint = "write it like 60MB/s"
    if value.startswith("-") or value.isdigit():
        raise _bad(node, f"{value} has no unit" if value.isdigit() else f"{shown(value)} is below 0", hint)
    count = _unit(node, parse_bytes, value)
    if count == 0:
        raise _bad(node, "must be more than 0", hint)
    _bounds(node, count, 1, MAX_BYTES, format_bytes)
    return count


def count(minimum: int) -> Reader:
    """A large number as people write it: `7B`, `350M`, `2000000`."""
    scale = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}

    def read(node: Node, _now: datetime) -> int:
        value = _plain(node, "a number")
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMBT]?)", value.upper().replace(",", ""), re.ASCII)
        if match is None:
            raise _bad(node, f"{shown(value)} is no number", "write it like 7B or 350M")
        amount = round(Decimal(match[1]) * scale[match[2]])
        _bounds(node, amount, minimum, 10**18, lambda bound: f"{bound:,}")
        return amount

    return read


def duration(minimum_s: int = 1) -> Reader:
    """Seconds."""

    def read(node: Node, _now: datetime) -> int:
        value = _plain(node, "a duration")
        if value.startswith("-"):
            raise _bad(node, f"{shown(value)} is below 0", "write it like 90s, 30m, 1h30m or 2d")
        seconds = _unit(node, parse_duration_s, value)
        if minimum_s <= seconds <= MAX_DURATION_S:
            return seconds
        limit = f"at least {minimum_s}s" if seconds < minimum_s else f"at most {MAX_DURATION_S // 86_400}d"
        raise _bad(node, f"must be {limit}, is {value}", "write it like 90s, 30m, 1h30m or 2d")

    return read


def end_date(node: Node, now: datetime) -> datetime:
    """A date (through the end of that day, UTC), an RFC 3339 time, or a duration from now; always in the future."""
    value = _plain(node, "a date")
    hint = "write 2026-12-01, 2026-12-01T18:00:00Z, or a duration from now such as 7d"
    moment = _moment(node, value, now, hint)
    if moment <= now:
        ago = format_duration((now - moment).total_seconds())
        raise _bad(
            node,
            f"{value} is in the past: it is {now:%Y-%m-%dT%H:%M:%SZ}, so that ended {ago} ago",
            "write a date in the future, or a duration from now such as 7d",
        )
    return moment


def command(node: Node, now: datetime) -> tuple[str, ...]:
    """argv as a list, or one string for `sh -c`. Numbers in the list are taken as written."""
    if isinstance(node, ScalarNode):
        line = _string(node)
        if not line.strip():
            raise _bad(node, "is empty", "write the program and its arguments: [python, train.py]")
        return ("sh", "-c", line)
    words = _items(node, lambda item: item.value if item.tag in _NUMBERS else _string(item))
    if not words or not words[0].strip():
        raise _bad(node, "is empty", "write the program and its arguments: [python, train.py]")
    return words


def texts(pattern: str, meaning: str, *, example: str) -> Reader:
    """A list of different strings, each matching the whole `pattern`."""
    one = text(pattern, meaning, example=example)

    def read(node: Node, now: datetime) -> tuple[str, ...]:
        values = _items(node, lambda item: str(one(item, now)))
        for value in values:
            if values.count(value) > 1:
                raise _bad(node, f"{shown(value)} is listed twice", "keep one of them")
        return values

    return read


_ARRAY = re.compile(r"(\d{1,6})(?:-(\d{1,6}))?(?:%([1-9]\d{0,5}))?", re.ASCII)
MAX_ARRAY = 1_000


def array(node: Node, _now: datetime) -> tuple[int, int, int]:
    """`1-100%10` → first index, last index, how many run at once; 0 is no limit."""
    value = _plain(node, "a range of indexes")
    hint = "write it like 1-100, or 1-100%10 for at most 10 at once"
    match = _ARRAY.fullmatch(value)
    if match is None:
        raise _bad(node, f"{shown(value)} is no range of indexes", hint)
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise _bad(node, f"{shown(value)} ends before it begins", hint)
    if last - first >= MAX_ARRAY:
        raise _bad(node, f"{shown(value)} has {last - first + 1:,} elements; the limit is {MAX_ARRAY:,}", hint)
    return first, last, int(match[3] or 0)


def text_map(key_pattern: str, key_meaning: str) -> Reader:
    """A mapping of strings to strings."""

    def read(node: Node, _now: datetime) -> dict[str, str]:
        faults: list[Fault] = []
        values: dict[str, str] = {}
        for key, value in entries(node, faults):
            try:
                if not re.fullmatch(key_pattern, key):
                    raise _bad(value, f"{shown(key)} is not {key_meaning}")
                values[key] = _string(value)
            except Unreadable as error:
                faults += [Fault(f.line, f.message, f.hint, f".{key[:60]}{f.where}") for f in error.faults]
        if faults:
            raise Unreadable(*faults)
        return values

    return read


def entries(node: Node, faults: list[Fault]) -> Iterator[tuple[str, Node]]:
    """The entries of a mapping; faults take note of keys that are no strings, or written twice."""
    if not isinstance(node, MappingNode):
        raise _bad(node, f"must be a mapping of fields, is {kind_of(node)}")
    first_line: dict[str, int] = {}
    if len(node.value) > MAX_ITEMS:
        raise _bad(node, f"has {len(node.value)} entries; the limit is {MAX_ITEMS}")
    for key, value in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            faults.append(Fault(line_of(key), "merge keys (<<) are not supported", "write the fields out"))
        elif not isinstance(key, ScalarNode) or key.tag != _STR:
            written = key.value if isinstance(key, ScalarNode) else kind_of(key)
            faults.append(Fault(line_of(key), f"the key {shown(str(written))} is not a string", "put it in quotes"))
        elif key.value in first_line:
            message = f"{shown(key.value)} is written twice; the first is on line {first_line[key.value]}"
            faults.append(Fault(line_of(key), message, "keep one of them"))
        else:
            first_line[key.value] = line_of(key)
            yield key.value, value


def kind_of(node: Node) -> str:
    """What a node is, for people."""
    if isinstance(node, MappingNode):
        return "a mapping"
    if isinstance(node, SequenceNode):
        return "a list"
    if is_null(node):
        return "empty"
    return _KINDS.get(node.tag.rpartition(":")[2], f"the text {shown(str(node.value), 30)}")


def _items(node: Node, read: Callable[[ScalarNode], str]) -> tuple[str, ...]:
    if not isinstance(node, SequenceNode):
        raise _bad(node, f"must be a list, is {kind_of(node)}")
    if len(node.value) > MAX_ITEMS:
        raise _bad(node, f"has {len(node.value)} items; the limit is {MAX_ITEMS}")
    faults: list[Fault] = []
    values: list[str] = []
    for index, item in enumerate(node.value):
        try:
            if not isinstance(item, ScalarNode):
                raise _bad(item, f"must be a string, is {kind_of(item)}")
            values.append(read(item))
        except Unreadable as error:
            faults += [Fault(f.line, f.message, f.hint, f"[{index}]{f.where}") for f in error.faults]
    if faults:
        raise Unreadable(*faults)
    return tuple(values)


def _string(node: Node) -> str:
    """The text of a string node. What YAML reads as something else is refused: `no` and 1.10 lose their shape."""
    if not isinstance(node, ScalarNode):
        raise _bad(node, f"must be a string, is {kind_of(node)}")
    if is_null(node):
        raise _bad(node, "is empty", 'write "" if it is meant to be empty')
    if node.tag != _STR:
        known = _KINDS.get(node.tag.removeprefix("tag:yaml.org,2002:"))
        if known is None:
            raise _bad(node, f"the tag {shown(str(node.tag))} is not supported", "remove it")
        raise _bad(
            node, f"{shown(str(node.value))} is read by YAML as {known}", f'write it in quotes: "{node.value[:40]}"'
        )
    if len(node.value) > MAX_TEXT:
        raise _bad(node, f"has {len(node.value)} characters; the limit is {MAX_TEXT}")
    if "\0" in node.value:
        raise _bad(
            node, f"{shown(str(node.value))} holds a NUL, which no program and no file can be given", "remove it"
        )
    return str(node.value)


def _plain(node: Node, meaning: str) -> str:
    """The spelling of a short scalar such as a number, whatever type YAML takes it for."""
    if not isinstance(node, ScalarNode):
        raise _bad(node, f"must be {meaning}, is {kind_of(node)}")
    if not node.tag.startswith("tag:yaml.org,2002:"):
        raise _bad(node, f"the tag {shown(str(node.tag))} is not supported", "remove it")
    value = str(node.value).strip()
    if not value:
        raise _bad(node, "is empty", f"write {meaning}")
    if len(value) > MAX_NUMBER_TEXT:
        raise _bad(node, f"{shown(value)} is not {meaning}")
    return value


def _unit(node: Node, parse: Callable[[str], int], value: str) -> int:
    try:
        return parse(value)
    except ValueError as error:
        message, _, hint = str(error).partition("; ")
        raise _bad(node, message, hint) from None


def _moment(node: Node, value: str, now: datetime, hint: str) -> datetime:
    try:
        if re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII):
            return datetime.fromisoformat(f"{value}T23:59:59+00:00")
        if _RFC3339.fullmatch(value):
            moment = datetime.fromisoformat(re.sub(r"\s+(?=[Zz+-])", "", value).upper())
            if moment.tzinfo is None:
                raise _bad(node, f"{value} has no time zone", f"write {value}Z for UTC")
            return moment.astimezone(UTC)
        seconds = parse_duration_s(value) if not value.isdigit() else None
        if seconds is not None and seconds <= MAX_DURATION_S:
            return now + timedelta(seconds=seconds)
    except (ValueError, OverflowError):
        raise _bad(node, f"{shown(value)} is no date", hint) from None
    raise _bad(node, f"{shown(value)} is no date", hint)


def _bounds(node: Node, value: float, low: float, high: float, show: Callable[..., str]) -> None:
    if value < low:
        raise _bad(node, f"must be at least {show(low)}, is {show(value)}", f"write {show(low)} or more")
    if value > high:
        raise _bad(node, f"must be at most {show(high)}, is {show(value)}", f"write {show(high)} or less")


def _bad(node: Node, message: str, hint: str = "") -> Unreadable:
    return Unreadable(Fault(line_of(node), message, hint))
