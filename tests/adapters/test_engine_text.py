"""The engine's text handling: whole characters, exact stops."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from groundplane.adapters.model_servers.text_stream import Detokenizer, StopStrings


class Bytes:
    """A decoder whose token ids are bytes: the worst case for characters of several bytes."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode(errors="replace")


@given(st.text())
def test_any_text_arrives_whole_and_only_in_whole_characters(text: str) -> None:
    stream = Detokenizer(Bytes())
    pieces = [stream.push(byte) for byte in text.encode()] + [stream.finish()]
    # The replacement character itself looks like an unfinished one at the very end.
    assert "".join(pieces) == text.rstrip("\ufffd") or "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@given(st.binary(max_size=60))
def test_broken_bytes_never_stop_the_stream(data: bytes) -> None:
    stream = Detokenizer(Bytes())
    text = "".join([*(stream.push(byte) for byte in data), stream.finish()])
    text.encode()
    assert text.replace("\ufffd", "") == data.decode(errors="replace").replace("\ufffd", "")


def test_an_unfinished_character_at_the_end_is_left_out() -> None:
    stream = Detokenizer(Bytes())
    assert "".join(stream.push(byte) for byte in "ab🎉".encode()[:-1]) + stream.finish() == "ab"


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=4), st.data())
def test_stop_strings_cut_the_same_place_however_the_text_arrives(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    places = [text.find(stop) for stop in stops if stop in text]
    stream, out, at = StopStrings(tuple(stops)), "", 0
    while at < len(text) and not stream.found:
        step = data.draw(st.integers(1, 3))
        out += stream.push(text[at : at + step])
        at += step
    out += "" if stream.found else stream.finish()
    assert stream.found == bool(places)
    if places:
        # A longer stop string that begins earlier may still be incomplete when a later, shorter one is found.
        assert text.startswith(out)
        assert any(text.startswith(stop, len(out)) for stop in stops)
    else:
        assert out == text
