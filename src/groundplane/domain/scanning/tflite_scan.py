"""A TFLite file's operators: which of them are code that TFLite itself has not, and whether its buffers are all there.

Source: tensorflow/lite/schema/schema.fbs (Model, OperatorCode, Buffer); the FlatBuffers encoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from groundplane.domain.scanning.byte_view import ByteView

_CUSTOM = 32
_ENTRIES_MAX = 100_000
_NAME_BYTES_MAX = 256
_OPERATOR_CODES, _BUFFERS = 1, 4
# What TFLite, its task libraries and the compilers for its accelerators register under a name.
_REGISTERED = re.compile(
    r"TFLite_\w+|Flex\w+|tftext:\w+|TFSentencepiece\w+|(?:Custom)?Ngrams|RaggedTensorTo\w+|Signal\w+|SimpleML\w+"
    r"|edgetpu-custom-op|ethos-u|Mfcc|AudioSpectrogram|NumericVerify|Multinomial|Random(?:StandardNormal|Uniform)"
    r"|Hashtable\w*|Atan2|Sign|Irfft2d|Roll|Dilate|Cumsum|AvgPool3D(?:Grad)?|MaxPool3D(?:Grad)?WithArgmax|MaxPool3D"
    r"|MaxPoolingWithArgmax2D|MaxUnpooling2D|Convolution2DTransposeBias|TransformTensor(?:Bilinear)?|TransformLandmarks"
    r"|Landmarks(?:2|To)TransformMatrix|odml\.\w+|stablehlo\.\w+|DISPATCH_OP|CIRCULAR_BUFFER"
)


class TfliteFault(ValueError):
    """A part that the file describes lies outside it; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TfliteSeen:
    """`foreign`: operators that whoever loads the file must bring along, each once; `read`: whether it was readable."""

    read: bool
    foreign: tuple[str, ...] = ()


def read_tflite(view: ByteView) -> TfliteSeen:
    """Reads the tables that name operators and buffers. TfliteFault when a buffer goes on after the file's end."""
    flat = _Flat(view)
    try:
        model = flat.follow(0)
        foreign = dict.fromkeys(
            name for code in flat.tables(model, _OPERATOR_CODES) if (name := _foreign(flat, code)) is not None
        )
        buffers = list(flat.tables(model, _BUFFERS))
    except _Unreadable:
        return TfliteSeen(read=False)
    for number, buffer in enumerate(buffers):
        end = _buffer_end(flat, buffer)
        if end is None or end > view.size_bytes:
            where = "where there is nothing" if end is None else f"at byte {end:,}"
            raise TfliteFault(f"buffer {number:,} ends {where}, the file at {view.size_bytes:,}")
    return TfliteSeen(read=True, foreign=tuple(foreign))


def _foreign(flat: _Flat, code: int) -> str | None:
    """The operator's own name, when it has one that is not known to be registered somewhere."""
    old, new = flat.field(code, 0), flat.field(code, 3)
    number = max(flat.number(old, 1) if old else 0, flat.number(new, 4) if new else 0)
    named = flat.field(code, 1)
    if number != _CUSTOM or not named:
        return None
    at = flat.follow(named)
    size = flat.number(at, 4)
    name = flat.bytes(at + 4, min(size, _NAME_BYTES_MAX)).decode(errors="replace")
    return None if _REGISTERED.fullmatch(name) else name


def _buffer_end(flat: _Flat, buffer: int) -> int | None:
    """Where a buffer's data end; None when the file does not say."""
    try:
        data, offset, size = (flat.field(buffer, number) for number in range(3))
        if data:
            begin = flat.follow(data)
            return begin + 4 + flat.number(begin, 4)
        # Of files over 2 GB: 0 and 1 say that there are no data elsewhere.
        at = flat.number(offset, 8) if offset else 0
        return at + flat.number(size, 8) if at > 1 and size else 0
    except _Unreadable:
        return None


class _Unreadable(Exception):
    """An offset leads out of the file, or a table is none."""


class _Flat:
    """FlatBuffers' tables and vectors, each place checked before it is read."""

    def __init__(self, view: ByteView) -> None:
        self._view = view

    def bytes(self, at: int, count: int) -> bytes:
        found = self._view.at(at, count)
        if len(found) < count:
            raise _Unreadable
        return found

    def number(self, at: int, count: int) -> int:
        return int.from_bytes(self.bytes(at, count), "little")

    def follow(self, at: int) -> int:
        """Where the offset that lies at `at` leads."""
        return at + self.number(at, 4)

    def field(self, table: int, number: int) -> int:
        """Where a table's field lies; 0 when it is left out."""
        fields = table - int.from_bytes(self.bytes(table, 4), "little", signed=True)
        size = self.number(fields, 2)
        if size < 4 or size % 2:
            raise _Unreadable
        offset = self.number(fields + 4 + 2 * number, 2) if 4 + 2 * number < size else 0
        return table + offset if offset else 0

    def tables(self, table: int, number: int) -> Iterator[int]:
        """Where the tables in a vector lie; none when the field is left out."""
        field = self.field(table, number)
        if not field:
            return
        vector = self.follow(field)
        count = self.number(vector, 4)
        if count > _ENTRIES_MAX:
            raise _Unreadable
        for position in range(count):
            yield self.follow(vector + 4 + 4 * position)
