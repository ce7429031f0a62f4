"""Answers that were given before: which may be kept, under what name, for how long, and which go when there are many.

A name holds the project, so no tenant sees another's answers, and everything that the answer depends on: the route as
it is now, the path, the versions asked for, and every byte of the body. Only whole answers with status 200 are kept.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from groundplane.errors import InvalidInput

TTL_MAX_S = 30 * 86_400
ENTRY_OVERHEAD_BYTES = 512
"""What an answer takes beside its bytes, about."""
_MAX_AGE = re.compile(rb"max-age=(\d{1,9})")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRule:
    """How long a route's answers are kept. `sampled`: also those of requests that ask for chance (temperature)."""

    ttl_s: int
    sampled: bool = False


def check_cache(rule: CacheRule) -> None:
    """InvalidInput when a route can't keep answers like that."""
    if not 1 <= rule.ttl_s <= TTL_MAX_S:
        raise InvalidInput(f"answers kept for {rule.ttl_s} s are not between 1 and {TTL_MAX_S}", "--cache 10m")


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request says of caches. `fresh`: not from the cache; `store`: the answer may be kept."""

    fresh: bool = False
    store: bool = True
    max_age_s: int | None = None


_ANY = Wish()


def read_wish(cache_control: bytes) -> Wish:
    """`no-cache`, `no-store` and `max-age=SECONDS`; what is not understood asks for nothing. RFC 9111, 5.2.1."""
    if not cache_control:
        return _ANY
    fresh = False
    store = True
    max_age: int | None = None
    for one in cache_control.lower().split(b","):
        word = one.strip(b" \t")
        if word == b"no-cache":
            fresh = True
        elif word == b"no-store":
            fresh, store = True, False
        else:
            match = _MAX_AGE.fullmatch(word)
            if match is not None:
                max_age = int(match[1])
    return Wish(fresh, store, max_age)


def answer_name(project: str, parts: Sequence[bytes]) -> bytes:
    """The name of the answer to a request: equal only for the same project and the same parts."""
    digest = hashlib.blake2b(project.encode(), digest_size=32, person=b"gp answers")
    for part in parts:
        digest.update(len(part).to_bytes(8) + part)
    return len(project.encode()).to_bytes(2) + digest.digest()


@dataclass(frozen=True, slots=True)
class Kept:
    """One answer. `body` is as the caller got it; `streamed` says that it is a stream's content.

    `microusd` is what it was charged at, and what each use of it saves; `source` who gave it.
    """

    project: str
    at_s: float
    until_s: float
    content_type: bytes
    body: bytes
    streamed: bool
    microusd: int = 0
    source: str = ""

    @property
    def size_bytes(self) -> int:
        return len(self.body) + ENTRY_OVERHEAD_BYTES

    def serves(self, wish: Wish, now_s: float) -> bool:
        """Whether it is young enough, for its route and for the caller."""
        return now_s < self.until_s and (wish.max_age_s is None or now_s - self.at_s <= wish.max_age_s)


class Shelf:
    """Answers within `most_bytes`. When they are more, the project that has most loses what it used longest ago."""

    __slots__ = ("_bytes", "_most_bytes", "_projects")

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._projects: dict[str, OrderedDict[bytes, Kept]] = {}
        self._bytes: dict[str, int] = {}

    @property
    def size_bytes(self) -> int:
        return sum(self._bytes.values())

    def __len__(self) -> int:
        return sum(map(len, self._projects.values()))

    def __iter__(self) -> Iterator[Kept]:
        for answers in self._projects.values():
            yield from answers.values()

    def find(self, project: str, name: bytes, now_s: float) -> Kept | None:
        """The answer of that name, if it has not expired; it counts as used now."""
        answers = self._projects.get(project)
        kept = None if answers is None else answers.get(name)
        if kept is None:
            return None
        assert answers is not None
        if now_s >= kept.until_s:
            self.drop(project, name)
            return None
        answers.move_to_end(name)
        return kept

    def put(self, name: bytes, kept: Kept) -> bool:
        """Keeps it in place of an earlier one. False when it alone is more than all may be."""
        self.drop(kept.project, name)
        if kept.size_bytes > self._most_bytes:
            return False
        self._projects.setdefault(kept.project, OrderedDict())[name] = kept
        self._bytes[kept.project] = self._bytes.get(kept.project, 0) + kept.size_bytes
        while self.size_bytes > self._most_bytes:
            # What came last stays: where it is all that its project has, it is the turn of the next largest one.
            others = [one for one, answers in self._projects.items() if one != kept.project or len(answers) > 1]
            largest = max(others, key=lambda project: self._bytes[project])
            self.drop(largest, next(iter(self._projects[largest])))
        return True

    def drop(self, project: str, name: bytes) -> None:
        """Forgets it, if it is there."""
        answers = self._projects.get(project)
        kept = None if answers is None else answers.pop(name, None)
        if kept is None:
            return
        self._bytes[project] -= kept.size_bytes
        if not answers:
            del self._projects[project], self._bytes[project]

    def drop_expired(self, now_s: float) -> None:
        """Forgets what has expired."""
        old = [(p, name) for p, one in self._projects.items() for name, kept in one.items() if now_s >= kept.until_s]
        for project, name in old:
            self.drop(project, name)
