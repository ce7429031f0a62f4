"""What an HDF5 file reaches for outside itself, and the JSON that it carries: read from the bytes, without the library.

Three of the format's messages name other files: external links, external storage and virtual datasets. Each is found
by its fixed bytes and believed only when what it points at is there, so that weights are not taken for one.
Source: HDF5 File Format Specification 3.0, IV.A.2.g (link), IV.A.2.h (external data files), IV.A.2.i (layout).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from itertools import chain

from groundplane.domain.scanning.byte_view import ByteView

_WINDOW_BYTES = 1 << 20
_MESSAGE_BYTES = 2048
_JSON_BYTES_MAX = 64 * 2**20
_JSON_MAX = 1000
_LINK = re.compile(rb"\x01[\x08-\x0f\x18-\x1f](?=[\x40-\xff])")
_STORAGE = re.compile(rb"\x01\0\0\0(?!\0\0)..(?!\0\0)..", re.DOTALL)
_VIRTUAL = re.compile(rb"\x04\x03(?=.{8}.\0\0\0)", re.DOTALL)
_SIGNS = (_LINK, _STORAGE, _VIRTUAL)
_JSON_BEGINS = re.compile(rb'\{\s*"(?:module|class_name|name|config|keras_version|registered_name)"')


def outside(view: ByteView, base: int) -> str:
    """The first file outside that it would read, in words; "" when there is none. `base` is where the HDF5 begins."""
    offset = 0
    while offset < view.size_bytes:
        window = view.at(offset, _WINDOW_BYTES + _MESSAGE_BYTES)
        for match in chain.from_iterable(sign.finditer(window) for sign in _SIGNS):
            if match.start() >= _WINDOW_BYTES:
                continue
            found = _judge(view, base, window[match.start() : match.start() + _MESSAGE_BYTES])
            if found:
                return found
        offset += _WINDOW_BYTES
    return ""


# Dataspace messages: the message's type, size and flags, then version, rank and flags. Old headers, then new ones.
_SPACES = (
    (re.compile(rb"\x01\0(.)\0[\0-\x07]\0\0\0\x01([\x01-\x20])([\0-\x03])\0{5}", re.DOTALL), 8),
    (re.compile(rb"\x01(.)\0[\0-\x7f]\x02([\x01-\x20])([\0\x01])\x01", re.DOTALL), 4),
)
_SPACES_MAX = 500_000
_SQUEEZED_MAX = 1100
_CLAIMED_MIN = 2**31


def oversized(view: ByteView) -> str:
    """The first dataset that says it has far more elements than the file's bytes unpack to, in words; "" when none.

    deflate makes at most 1,032 bytes of one; a reader takes memory for what the dataset says.
    """
    limit = max(_CLAIMED_MIN, _SQUEEZED_MAX * view.size_bytes)
    for pattern, fixed_bytes in _SPACES:
        for count, place in enumerate(view.places(pattern, longest_bytes=16)):
            found = pattern.match(view.at(place, 16))
            if count > _SPACES_MAX or found is None:
                return f"holds over {_SPACES_MAX:,} datasets"
            rank = found[2][0]
            if found[1][0] != (fixed_bytes + 8 * rank * (1 + (found[3][0] & 1))) & 0xFF:
                continue
            sizes = view.at(place + found.end(), 8 * rank)
            shape = [int.from_bytes(sizes[at : at + 8], "little") for at in range(0, len(sizes), 8)]
            if len(sizes) == 8 * rank and all(0 < size < 2**48 for size in shape) and math.prod(shape) > limit:
                said = " x ".join(f"{size:,}" for size in shape)
                return f"holds a dataset of {said} elements in {view.size_bytes:,} bytes"
    return ""


def _judge(view: ByteView, base: int, message: bytes) -> str:
    if message[0] == 4:
        return _virtual(view, base, message)
    return _storage(view, base, message) if message[1] == 0 else _link(message)


def _link(message: bytes) -> str:
    """A link message of the external type: version, flags, type, [order], [letters], length, name, size, place."""
    flags = message[1]
    kind, at = message[2], 3 + 8 * bool(flags & 4) + bool(flags & 16)
    width = 1 << (flags & 3)
    size = int.from_bytes(message[at : at + width], "little")
    at += width
    name, at = message[at : at + size], at + size
    value_size = int.from_bytes(message[at : at + 2], "little")
    value = message[at + 2 : at + 2 + value_size]
    if not (0 < size < 1024 and len(name) == size and len(value) == value_size and _printable(name)):
        return ""
    parts = value[1:].split(b"\0")
    if kind != 64:
        # Links of a user's own type run what was registered for them.
        return ""
    if value[:1] == b"\0" and len(parts) == 3 and not parts[2] and all(map(_printable, parts[:2])):
        return f"{parts[0].decode(errors='replace')!r} through the link {name.decode(errors='replace')!r}"
    return ""


def _printable(text: bytes) -> bool:
    return bool(text) and all(byte >= 32 for byte in text)


def _storage(view: ByteView, base: int, message: bytes) -> str:
    """A list of external files: version, slots, used slots, and the heap that holds the names."""
    slots, used = int.from_bytes(message[4:6], "little"), int.from_bytes(message[6:8], "little")
    heap = base + int.from_bytes(message[8:16], "little")
    if not 0 < used <= slots or view.at(heap, 4) != b"HEAP":
        return ""
    segment = base + int.from_bytes(view.at(heap + 24, 8), "little")
    name = view.at(segment + int.from_bytes(message[16:24], "little"), 1024).split(b"\0")[0]
    return f"{name.decode(errors='replace')!r}, where a dataset is stored"


def _virtual(view: ByteView, base: int, message: bytes) -> str:
    """A virtual layout: its sources' names are in a global heap's object."""
    heap, index = base + int.from_bytes(message[2:10], "little"), int.from_bytes(message[10:14], "little")
    if view.at(heap, 4) != b"GCOL":
        return ""
    size, at = int.from_bytes(view.at(heap + 8, 8), "little"), heap + 16
    while at < heap + size:
        number, held = int.from_bytes(view.at(at, 2), "little"), int.from_bytes(view.at(at + 8, 8), "little")
        if number == index:
            name = view.at(at + 16 + 9, 1024).split(b"\0")[0]
            return "" if name == b"." else f"{name.decode(errors='replace')!r}, which a virtual dataset shows"
        if not number:
            break
        at += 16 + -(-held // 8) * 8
    return ""


def configurations(view: ByteView) -> Iterator[str]:
    """The JSON texts in it that look like Keras' configurations, each once."""
    offset = 0
    for _ in range(_JSON_MAX):
        found = _next_json(view, offset)
        if found is None:
            return
        raw = view.at(found, _JSON_BYTES_MAX)
        text = raw[: end if (end := raw.find(b"\0")) >= 0 else len(raw)].decode(errors="replace")
        try:
            _, length = json.JSONDecoder().raw_decode(text)
        except (ValueError, RecursionError):
            yield text[:4096]
            length = 1
        else:
            yield text[:length]
        offset = found + max(1, len(text[:length].encode(errors="replace")))


def _next_json(view: ByteView, offset: int) -> int | None:
    while offset < view.size_bytes:
        window = view.at(offset, _WINDOW_BYTES + 64)
        found = _JSON_BEGINS.search(window)
        if found is not None:
            return offset + found.start()
        offset += _WINDOW_BYTES
    return None
