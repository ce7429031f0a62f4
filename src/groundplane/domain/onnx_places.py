"""Where an ONNX model reads weights from outside its own file.

ONNX is a protobuf; a tensor's place is a pair of texts, `location` and a path. The pairs are found without the schema:
every message that holds the text `location` as one field and another text beside it counts, in either order.
Source: onnx.proto, StringStringEntryProto and TensorProto.external_data.
"""

from __future__ import annotations

from groundplane.domain.byte_view import ByteView

_KEY = b"\x0a\x08location"
_WINDOW_BYTES = 1 << 20
_AROUND_BYTES = 4096 + 16
_PLACES_MAX = 100_000


def external_data(view: ByteView) -> list[str]:
    """The paths, in file order; each as it is written."""
    places: list[str] = []
    offset = 0
    while offset < view.size_bytes and len(places) < _PLACES_MAX:
        begin = max(0, offset - _AROUND_BYTES)
        window = view.at(begin, _WINDOW_BYTES + 2 * _AROUND_BYTES)
        at = window.find(_KEY, offset - begin)
        while 0 <= at < offset - begin + _WINDOW_BYTES:
            places += _beside(window, at)
            at = window.find(_KEY, at + 1)
        offset += _WINDOW_BYTES
    return places


def _beside(window: bytes, at: int) -> list[str]:
    """The value after the key, or, where a writer put it first, before it."""
    after = at + len(_KEY)
    if window[after : after + 1] == b"\x12":
        size, start = _varint(window, after + 1)
        return [window[start : start + size].decode(errors="replace")]
    for begin in range(max(0, at - _AROUND_BYTES), at - 1):
        if window[begin] == 0x12:
            size, start = _varint(window, begin + 1)
            if start + size == at:
                return [window[start:at].decode(errors="replace")]
    return []


def _varint(window: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(window) and shift < 64:
        byte = window[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            break
    return value, at
