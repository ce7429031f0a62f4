"""Cutting files into pieces, and packs: properties that hold for any bytes."""

from __future__ import annotations

import json
from itertools import accumulate

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.packs import Directory, PackFault, Piece, decode, encode, is_sealed, pack_pieces, sealed, spans
from groundplane.domain.pieces import PIECE_BYTES_MAX, SMALL_TENSOR_BYTES, cut
from groundplane.domain.scanning.byte_view import ByteView

SIZES = st.lists(
    st.one_of(
        st.integers(0, 300),
        st.sampled_from([SMALL_TENSOR_BYTES - 1, SMALL_TENSOR_BYTES, SMALL_TENSOR_BYTES + 1]),
        st.sampled_from([PIECE_BYTES_MAX, PIECE_BYTES_MAX + 1, 2 * PIECE_BYTES_MAX + 5]),
    ),
    max_size=8,
)


def file_of(sizes: list[int], fill: int = 0, metadata: str = "") -> bytes:
    header: dict[str, object] = {"__metadata__": {"note": metadata}} if metadata else {}
    ends = list(accumulate(sizes))
    for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
        header[f"t{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [end - size, end]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes([fill]) * sum(sizes)


def pieces_of(data: bytes) -> list[bytes]:
    return [data[offset : offset + length] for offset, length in spans(cut(ByteView.of(data)))]


@given(st.one_of(st.binary(max_size=4000), SIZES.map(file_of), st.binary(max_size=100).map(lambda head: head * 30_000)))
def test_the_pieces_of_any_bytes_join_to_the_same_bytes(data: bytes) -> None:
    pieces = pieces_of(data)
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= PIECE_BYTES_MAX for piece in pieces)


@given(SIZES, st.binary(min_size=1, max_size=60))
def test_a_spoilt_header_is_cut_by_size_and_still_joins(sizes: list[int], noise: bytes) -> None:
    data = bytearray(file_of(sizes))
    data[9 : 9 + len(noise)] = noise
    assert b"".join(pieces_of(bytes(data))) == bytes(data)


@given(SIZES.filter(lambda sizes: sum(sizes) > 0), st.data())
def test_a_changed_tensor_moves_no_cut(sizes: list[int], data: st.DataObject) -> None:
    base = file_of(sizes)
    changed = bytearray(base)
    number = data.draw(st.sampled_from([index for index, size in enumerate(sizes) if size]))
    begin = len(base) - sum(sizes) + sum(sizes[:number])
    changed[begin : begin + sizes[number]] = b"\xff" * sizes[number]
    assert cut(ByteView.of(base)) == cut(ByteView.of(bytes(changed)))
    new = [piece for piece, old in zip(pieces_of(bytes(changed)), pieces_of(base), strict=True) if piece != old]
    # What it shares a piece with is small.
    assert sum(map(len, new)) <= sizes[number] + 2 * SMALL_TENSOR_BYTES


@given(SIZES, st.text(max_size=50))
def test_a_changed_header_changes_no_piece_of_the_data(sizes: list[int], note: str) -> None:
    base, described = pieces_of(file_of(sizes)), pieces_of(file_of(sizes, metadata=note))
    assert base[1:] == described[1:]


@given(st.lists(st.binary(min_size=1, max_size=100), max_size=20), st.binary(min_size=32, max_size=32))
def test_a_directory_reads_back_as_it_was_written(contents: list[bytes], key: bytes) -> None:
    pieces = tuple(Piece(blake3(content).digest(), len(content)) for content in contents)
    data = b"".join(contents)
    recipe = sealed(key, bytes(32), len(data), pack_pieces(pieces))
    name, tail = encode(Directory(pieces=pieces, recipes=(recipe,)))
    found = decode(name, len(data) + len(tail), tail)
    assert found == Directory(pieces=pieces, recipes=(recipe,))
    assert is_sealed(key, found.recipes[0])
    assert not is_sealed(b"another key of thirty-two bytes!", found.recipes[0])


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=5), st.data())
def test_no_bit_of_a_directory_can_change_unnoticed(contents: list[bytes], data: st.DataObject) -> None:
    pieces = tuple(Piece(blake3(content).digest(), len(content)) for content in contents)
    name, tail = encode(Directory(pieces=pieces, recipes=()))
    pack_bytes = sum(map(len, contents)) + len(tail)
    rotten = bytearray(tail)
    rotten[data.draw(st.integers(0, len(tail) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(PackFault):
        decode(name, pack_bytes, bytes(rotten))
    with pytest.raises(PackFault):
        decode(name, pack_bytes + 1, tail)
