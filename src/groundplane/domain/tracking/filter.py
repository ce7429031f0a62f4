"""The search language of tracking clients: `metrics.loss < 0.5 AND tags.kind LIKE 'b%'`, and how results are ordered.

What is not understood is refused with the place where it stands; nothing is ever left out of a condition silently.
Source: MLflow search syntax, version 3.17.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

from groundplane.errors import InvalidInput

FILTER_CHARACTERS_MAX = 10_000
CONDITIONS_MAX = 100
RESULTS_MAX = 50_000
Facts = Mapping[str, Mapping[str, object]]
"""What a condition looks at: kind (metric, param, tag, attribute, dataset) → name → value.

A dataset's value is a tuple of texts: it holds when one of them does.
"""
T = TypeVar("T")

_KINDS = {
    "metric": "metric", "metrics": "metric",
    "param": "param", "params": "param", "parameter": "param", "parameters": "param",
    "tag": "tag", "tags": "tag",
    "attribute": "attribute", "attributes": "attribute", "attr": "attribute", "run": "attribute",
    "dataset": "dataset", "datasets": "dataset",
}  # fmt: skip
_NUMERIC = ("=", "!=", "<", "<=", ">", ">=")
_TEXTS = ("=", "!=", "LIKE", "ILIKE")
_LISTS = ("IN", "NOT IN")
_NULLS = ("IS NULL", "IS NOT NULL")
_TOKEN = re.compile(
    r"""\s+
    | (?P<text>'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")
    | (?P<key>`[^`]*`)
    | (?P<number>[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![\w.])
    | (?P<sign><=|>=|!=|<>|=|<|>|\(|\)|,)
    | (?P<dot>\.)
    | (?P<word>[A-Za-z_][\w/-]*)
    """,
    re.VERBOSE,
)
_INT64_MAX = 2**63 - 1
_LONE_NUMBER = {"nan": math.nan, "inf": math.inf, "infinity": math.inf}


@dataclass(frozen=True, slots=True)
class Grammar:
    """What may be asked of one kind of thing: its attributes, by name as clients write it → as we keep it."""

    what: str
    kinds: tuple[str, ...]
    numbers: Mapping[str, str]
    texts: Mapping[str, str]
    order_only: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ("name", "digest", "context")


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison. `value` is a number, a text, a tuple of texts, or None for IS (NOT) NULL."""

    kind: str
    name: str
    operator: str
    value: object


@dataclass(frozen=True, slots=True)
class Order:
    kind: str
    name: str
    descending: bool


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    at: int


# ---------------------------------------------------------------- reading


def parse_filter(text: str, grammar: Grammar) -> tuple[Condition, ...]:
    """The conditions that must all hold; none for an empty filter. Raises InvalidInput naming the place of a fault."""
    if len(text) > FILTER_CHARACTERS_MAX:
        raise InvalidInput(f"the filter has {len(text):,} characters; {FILTER_CHARACTERS_MAX:,} is the most")
    reader = _Reader(text, _tokens(text), grammar)
    found: list[Condition] = []
    while not reader.done():
        if found:
            reader.word("AND")
        found.append(reader.condition())
        if len(found) > CONDITIONS_MAX:
            raise InvalidInput(f"the filter has over {CONDITIONS_MAX} conditions", "ask for less at once")
    return tuple(found)


def parse_order(texts: Sequence[str], grammar: Grammar) -> tuple[Order, ...]:
    """`metrics.loss ASC` and so on. Raises InvalidInput."""
    found = []
    for text in texts:
        reader = _Reader(text, _tokens(text), grammar)
        kind, name = reader.identifier(for_order=True)
        descending = False
        if not reader.done():
            direction = reader.take().text.upper()
            if direction not in {"ASC", "DESC"} or not reader.done():
                raise InvalidInput(f"{text[:80]!r} is no order", "write NAME, NAME ASC or NAME DESC")
            descending = direction == "DESC"
        if kind == "dataset":
            raise InvalidInput(f"{text[:80]!r}: a run may have many datasets, so none orders it", "filter by them")
        found.append(Order(kind, name, descending))
    return tuple(found)


def _tokens(text: str) -> list[_Token]:
    found, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise InvalidInput(
                f"the filter can't be read at character {at + 1}: {text[at : at + 20]!r}",
                "write like: metrics.loss < 0.5 AND params.kind = 'big' AND tags.`a b` LIKE 'x%'",
            )
        if match.lastgroup:
            found.append(_Token(match.lastgroup, match[0], at))
        at = match.end()
    return found


class _Reader:
    """Walks over the tokens of one filter."""

    def __init__(self, text: str, tokens: list[_Token], grammar: Grammar) -> None:
        self._text, self._tokens, self._grammar = text, tokens, grammar
        self._at = 0

    def done(self) -> bool:
        return self._at >= len(self._tokens)

    def take(self) -> _Token:
        if self.done():
            raise InvalidInput(f"the filter {self._text[:80]!r} ends too early", "write NAME OPERATOR VALUE")
        token = self._tokens[self._at]
        self._at += 1
        return token

    def word(self, wanted: str) -> None:
        token = self.take()
        if token.text.upper() != wanted:
            hint = "conditions are joined with AND alone; there is no OR and no NOT before them"
            raise self._fault(token, f"{wanted} was expected", hint)

    def identifier(self, *, for_order: bool = False) -> tuple[str, str]:
        """(kind, name as we keep it)"""
        token = self.take()
        if token.kind not in {"word", "key", "text"}:
            raise self._fault(token, "a name was expected", "write metrics.loss, params.kind, tags.team or a field")
        kind = _KINDS.get(token.text.lower()) if token.kind == "word" else None
        if kind is None or self.done() or self._tokens[self._at].kind != "dot":
            return "attribute", self._attribute(token, _bare(token), for_order=for_order)
        if kind not in self._grammar.kinds:
            known = ", ".join(self._grammar.kinds)
            raise self._fault(token, f"{self._grammar.what} have no {token.text}", f"they have {known}")
        self.take()
        name = self._dotted()
        if kind == "attribute":
            return kind, self._attribute(token, name, for_order=for_order)
        if kind == "dataset" and name not in self._grammar.dataset:
            raise self._fault(token, f"datasets have no {name}", "ask for datasets.name, .digest or .context")
        return kind, name

    def _dotted(self) -> str:
        """A name with dots in it, or a quoted one. It ends where an operator begins."""
        first = self.take()
        if first.kind in {"key", "text"}:
            return _bare(first)
        parts, end = [first.text], first.at + len(first.text)
        while not self.done() and self._tokens[self._at].at == end:
            token = self._tokens[self._at]
            if token.kind not in {"dot", "word", "number"}:
                break
            parts.append(self.take().text)
            end = token.at + len(token.text)
        return "".join(parts)

    def _attribute(self, token: _Token, name: str, *, for_order: bool) -> str:
        found = self._grammar.numbers.get(name) or self._grammar.texts.get(name)
        if found is None and for_order and name in self._grammar.order_only:
            found = name
        if found is None:
            known = ", ".join(sorted({*self._grammar.numbers, *self._grammar.texts}))
            raise self._fault(token, f"{self._grammar.what} have no field {name[:60]!r}", f"they have {known}")
        return found

    def condition(self) -> Condition:
        kind, name = self.identifier()
        numeric = kind == "metric" or (kind == "attribute" and name in self._grammar.numbers.values())
        token = self.take()
        operator = self._operator(token)
        allowed: tuple[str, ...] = _NUMERIC if numeric else _TEXTS
        if kind in {"param", "tag"}:
            allowed += _NULLS
        elif not numeric:
            allowed += _LISTS
        if operator not in allowed:
            raise self._fault(token, f"{name} can't be compared with {operator}", f"use one of {', '.join(allowed)}")
        if operator in _NULLS:
            return Condition(kind, name, operator, None)
        if operator in _LISTS:
            return Condition(kind, name, operator, self._texts())
        return Condition(kind, name, operator, self._number() if numeric else self._string())

    def _operator(self, token: _Token) -> str:
        word = token.text.upper()
        if word == "NOT":
            self.word("IN")
            return "NOT IN"
        if word == "IS":
            following = self.take()
            if following.text.upper() == "NULL":
                return "IS NULL"
            if following.text.upper() == "NOT":
                self.word("NULL")
                return "IS NOT NULL"
            raise self._fault(following, "NULL or NOT NULL was expected", "write tags.x IS NULL")
        return "!=" if word == "<>" else word

    def _number(self) -> float:
        token = self.take()
        bare = token.text.strip("'\"").lower() if token.kind in {"text", "word"} else token.text
        try:
            return _LONE_NUMBER[bare] if bare in _LONE_NUMBER else float(token.text)
        except ValueError:
            raise self._fault(token, "a number was expected", "write metrics.loss < 0.5") from None

    def _string(self) -> str:
        token = self.take()
        if token.kind != "text":
            raise self._fault(token, "a quoted text was expected", "write params.kind = 'big'")
        return _bare(token)

    def _texts(self) -> tuple[str, ...]:
        opened = self.take()
        if opened.text != "(":
            raise self._fault(opened, "a list was expected", "write run_id IN ('a', 'b')")
        found = [self._string()]
        while (token := self.take()).text == ",":
            found.append(self._string())
        if token.text != ")":
            raise self._fault(token, "',' or ')' was expected", "write run_id IN ('a', 'b')")
        return tuple(found)

    def _fault(self, token: _Token, why: str, hint: str) -> InvalidInput:
        return InvalidInput(f"the filter at character {token.at + 1}, {token.text[:40]!r}: {why}", hint)


def _bare(token: _Token) -> str:
    if token.kind == "key":
        return token.text[1:-1]
    if token.kind == "text":
        quote = token.text[0]
        return re.sub(r"\\(.)", r"\1", token.text[1:-1].replace(quote * 2, quote))
    return token.text


# ---------------------------------------------------------------- deciding


def matches(conditions: Sequence[Condition], facts: Facts) -> bool:
    """Whether all hold. What a thing does not have matches no condition but IS NULL."""
    return all(_holds(each, facts.get(each.kind, {}).get(each.name)) for each in conditions)


def _holds(condition: Condition, have: object) -> bool:
    if condition.operator == "IS NULL":
        return have is None
    if condition.operator == "IS NOT NULL":
        return have is not None
    if have is None:
        return False
    if isinstance(have, tuple):
        return any(_holds(condition, each) for each in have)
    return _COMPARE[condition.operator](have, condition.value)


def _like(flags: int) -> Callable[[object, object], bool]:
    def compare(have: object, want: object) -> bool:
        return _is_like(str(have), _pieces(str(want), flags))

    return compare


def _is_like(text: str, pieces: tuple[re.Pattern[str], ...]) -> bool:
    """Piece after piece, each at its first place: one pattern with many `%` in it could be tried for hours."""
    if len(pieces) == 1:
        return pieces[0].fullmatch(text) is not None
    found = pieces[0].match(text)
    for piece in pieces[1:-1]:
        found = piece.search(text, found.end()) if found else None
    if found is None:
        return False
    # What `_` and letters stand for is one character each, so the last piece has a length of its own.
    start = len(text) - _length(pieces[-1])
    return start >= found.end() and pieces[-1].match(text, start) is not None


def _length(piece: re.Pattern[str]) -> int:
    return len(re.sub(r"\\(.)", r"\1", piece.pattern, flags=re.DOTALL))


@functools.lru_cache(maxsize=256)
def _pieces(text: str, flags: int) -> tuple[re.Pattern[str], ...]:
    """What stands between the `%` signs; `_` stands for any one character."""
    parts = ("".join("." if each == "_" else re.escape(each) for each in piece) for piece in text.split("%"))
    return tuple(re.compile(part, flags | re.DOTALL) for part in parts)


def _less(have: object, want: object) -> bool:
    return float(str(have)) < float(str(want))


_COMPARE: dict[str, Callable[[object, object], bool]] = {
    "=": lambda have, want: have == want,
    "!=": lambda have, want: have != want,
    "<": _less,
    ">": lambda have, want: _less(want, have),
    "<=": lambda have, want: have == want or _less(have, want),
    ">=": lambda have, want: have == want or _less(want, have),
    "LIKE": _like(0),
    "ILIKE": _like(re.IGNORECASE),
    "IN": lambda have, want: have in (want if isinstance(want, tuple) else ()),
    "NOT IN": lambda have, want: have not in (want if isinstance(want, tuple) else ()),
}


def ordered(things: Sequence[T], orders: Sequence[Order], facts_of: Callable[[T], Facts]) -> list[T]:
    """Sorted by the first order, then the next; what has no value, or NaN, comes last either way. Ties stay."""
    found = [(facts_of(thing), thing) for thing in things]
    for order in reversed(orders):

        def value(pair: tuple[Facts, T], order: Order = order) -> object:
            have = pair[0].get(order.kind, {}).get(order.name)
            return None if isinstance(have, float) and math.isnan(have) else have

        there = [pair for pair in found if value(pair) is not None]
        missing = [pair for pair in found if value(pair) is None]
        there.sort(key=lambda pair: _sortable(value(pair)), reverse=order.descending)
        found = there + missing
    return [thing for _, thing in found]


def _sortable(value: object) -> tuple[float, str]:
    return (float(value), "") if isinstance(value, int | float) else (0.0, str(value))


# ---------------------------------------------------------------- pages


def page(found: Sequence[T], token: str, limit: int, question: object) -> tuple[list[T], str]:
    """The part after the token, and the token of the next part ("" at the end). InvalidInput for another's token."""
    check_limit(limit)
    start = _place(token, question, int) if token else 0
    if start < 0:
        raise _foreign()
    end = start + limit
    return list(found[start:end]), _token(end, question) if end < len(found) else ""


PageKey = tuple[int | str, str]
"""Where something stands in an order that is kept by an index: what it is ordered by, and its id."""


def key_token(key: Sequence[object] | None, question: object) -> str:
    """The token of the part behind this key; "" for None."""
    return _token([*key], question) if key else ""


def token_key(token: str, question: object, kind: type[int] | type[str]) -> PageKey | None:
    """The key that a token of `key_token` stands for. InvalidInput for another search's."""
    found = token_place(token, question, ((kind,),))
    return None if found is None else (cast("int | str", found[0]), cast(str, found[1]))


def token_place(token: str, question: object, kinds: Sequence[tuple[type, ...]]) -> list[object] | None:
    """The same of a key of several values, each of one of its kinds. Who makes tokens up gets no further than here."""
    if not token:
        return None
    found = _place(token, question, list)
    all_kinds = (*kinds, (str,))
    if len(found) != len(all_kinds):
        raise _foreign()
    for value, allowed in zip(found, all_kinds, strict=True):
        if type(value) not in allowed or (type(value) is int and abs(value) > _INT64_MAX):
            raise _foreign()
    return found


def check_limit(limit: int) -> None:
    if not 1 <= limit <= RESULTS_MAX:
        raise InvalidInput(f"max_results must be 1 to {RESULTS_MAX:,}, not {limit}")


def _token(place: object, question: object) -> str:
    return base64.urlsafe_b64encode(json.dumps([place, _asked(question)]).encode()).decode()


def _place(token: str, question: object, kind: type[T]) -> T:
    try:
        place, asked = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (binascii.Error, ValueError, TypeError):
        raise _foreign() from None
    if asked != _asked(question) or not isinstance(place, kind):
        raise _foreign()
    return place


def _asked(question: object) -> str:
    return hashlib.sha256(repr(question).encode()).hexdigest()[:16]


def _foreign() -> InvalidInput:
    return InvalidInput("the page token is not one of this search", "begin again without a token")
