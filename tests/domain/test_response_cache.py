"""Kept answers: whose they are, how long they last, and which go when there are too many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.serving.response_cache import (
    ENTRY_OVERHEAD_BYTES,
    CacheRule,
    Kept,
    Shelf,
    Wish,
    answer_name,
    check_cache,
    read_wish,
)
from groundplane.errors import InvalidInput


def kept(project: str = "a", size: int = 10, at_s: float = 0.0, ttl_s: float = 60.0) -> Kept:
    return Kept(project, at_s, at_s + ttl_s, b"application/json", b"x" * size, streamed=False)


_puts = st.tuples(st.sampled_from("abc"), st.integers(0, 20), st.integers(0, 3000), st.integers(0, 100))


@given(st.lists(_puts, max_size=100))
def test_no_more_is_kept_than_may_be_and_what_came_last_is_there(puts: list[tuple[str, int, int, int]]) -> None:
    shelf = Shelf(8_000)
    for project, name, size, at_s in puts:
        one = kept(project, size, at_s)
        assert shelf.put(b"%d" % name, one)
        assert shelf.find(project, b"%d" % name, at_s) is one
        assert shelf.size_bytes == sum(entry.size_bytes for entry in shelf) <= 8_000
    shelf.drop_expired(1_000)
    assert len(shelf) == shelf.size_bytes == 0


@given(st.integers(20, 200))
def test_a_project_that_keeps_much_pushes_out_its_own(count: int) -> None:
    shelf = Shelf(20 * (100 + ENTRY_OVERHEAD_BYTES))
    mine = kept("small", 100)
    shelf.put(b"mine", mine)
    for number in range(count):
        shelf.put(b"%d" % number, kept("large", 100))
    assert shelf.find("small", b"mine", 1) is mine


def test_what_was_used_longest_ago_goes_first() -> None:
    shelf = Shelf(3 * (10 + ENTRY_OVERHEAD_BYTES))
    for name in (b"1", b"2", b"3"):
        shelf.put(name, kept())
    shelf.find("a", b"1", 1)
    shelf.put(b"4", kept())
    assert [shelf.find("a", name, 1) is None for name in (b"1", b"2", b"3", b"4")] == [False, True, False, False]


def test_what_is_larger_than_all_of_it_is_not_kept() -> None:
    shelf = Shelf(1_000)
    assert not shelf.put(b"1", kept(size=2_000))
    assert len(shelf) == 0


@given(st.lists(st.binary(max_size=20), max_size=4), st.lists(st.binary(max_size=20), max_size=4))
def test_a_name_is_of_one_project_and_of_one_question(one: list[bytes], other: list[bytes]) -> None:
    assert (answer_name("a", one) == answer_name("a", other)) == (one == other)
    assert answer_name("a", one) != answer_name("b", one)


@pytest.mark.parametrize(
    ("header", "wish"),
    [
        (b"", Wish()),
        (b"no-cache", Wish(fresh=True)),
        (b"No-Store", Wish(fresh=True, store=False)),
        (b"max-age=30, foo", Wish(max_age_s=30)),
        (b"max-age=-1, max-age=soon", Wish()),
    ],
)
def test_what_a_request_says_of_caches(header: bytes, wish: Wish) -> None:
    assert read_wish(header) == wish


def test_a_caller_may_want_a_younger_answer() -> None:
    one = kept(at_s=100, ttl_s=60)
    assert one.serves(Wish(), 159) and not one.serves(Wish(), 160)
    assert one.serves(Wish(max_age_s=10), 110) and not one.serves(Wish(max_age_s=10), 111)


@pytest.mark.parametrize("ttl_s", [0, -1, 31 * 86_400])
def test_a_time_to_keep_that_is_none_is_refused(ttl_s: int) -> None:
    with pytest.raises(InvalidInput, match=str(ttl_s)):
        check_cache(CacheRule(ttl_s=ttl_s))


def test_a_large_answer_does_not_push_itself_out() -> None:
    shelf = Shelf(8_000)
    shelf.put(b"1", kept("a", 2_500))
    shelf.put(b"2", kept("b", 2_500))
    large = kept("c", 3_000)
    shelf.put(b"3", large)
    assert shelf.find("c", b"3", 1) is large and len(shelf) == 2
