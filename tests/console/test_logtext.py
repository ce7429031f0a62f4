"""Log bytes as text: whatever a job prints, a page can show it, and nothing is lost or shown twice between pieces."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from groundplane.console.logtext import readable


@given(st.text(st.characters(blacklist_categories=["Cc", "Cs"])), st.data())
def test_text_cut_anywhere_is_read_whole_piece_by_piece(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    cut = data.draw(st.integers(0, len(raw)))
    first, used = readable(raw[:cut], complete=False)
    rest, _ = readable(raw[used:], complete=True)
    assert first + rest == text


@given(st.binary())
def test_any_bytes_are_readable_and_all_of_them_are_taken_in_the_end(raw: bytes) -> None:
    text, used = readable(raw, complete=True)
    assert used == len(raw)
    assert not [character for character in text if character < " " and character not in "\n\t"]


@given(st.binary(min_size=4))
def test_a_piece_that_is_not_the_last_always_makes_progress(raw: bytes) -> None:
    assert readable(raw, complete=False)[1] >= len(raw) - 3


def test_bytes_that_are_no_utf8_show_as_replacement_characters() -> None:
    assert readable(b"loss \xff\xfe 1.2\n", complete=True)[0] == "loss \ufffd\ufffd 1.2\n"


def test_colours_and_cursor_moves_are_left_out() -> None:
    assert readable(b"\x1b[1;32mstep\x1b[0m 3\x1b[K\n", complete=True)[0] == "step 3\n"


def test_of_a_progress_bar_the_last_state_is_kept() -> None:
    assert readable(b"10%\r50%\r100%\ndone\r\n", complete=True)[0] == "100%\ndone\n"


def test_a_megabyte_on_one_line_is_read_in_linear_time() -> None:
    began = time.process_time()
    readable(b"x" * 2**20 + b"\r" + b"y" * 2**20, complete=True)
    assert time.process_time() - began < 20, "squared, it would take hours"
