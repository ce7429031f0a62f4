"""A msgpack file as Flax writes its weights: every length within the file, every array of plain numbers and its size.

Nothing is unpacked: values are passed over one by one. Source: the MessagePack specification; flax/serialization.py.
"""

from __future__ import annotations

import math
import re

from groundplane.domain.scanning.byte_view import ByteView

_VALUES_MAX = 1_000_000
_NESTED_MAX = 200
_ARRAYS, _COMPLEX_NUMBER, _TIME = {1, 3}, 2, 255
_DTYPE_BYTES_MAX = 40
_DTYPE = re.compile(r"(?:b?float|u?int|complex|str|bytes|datetime|timedelta)(\d{1,6})\w*(?:\[\w+\])?|bool")
_FIXED_BYTES = {0xC0: 0, 0xC2: 0, 0xC3: 0, 0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2,
                0xD2: 4, 0xD3: 8}  # fmt: skip
_SIZED = {0xC4: 1, 0xC5: 2, 0xC6: 4, 0xD9: 1, 0xDA: 2, 0xDB: 4}
_COUNTED = {0xDC: (2, 1), 0xDD: (4, 1), 0xDE: (2, 2), 0xDF: (4, 2)}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}


class MsgpackFault(ValueError):
    """It is no msgpack of weights; the message says where, and which rule it breaks."""


def read_msgpack(view: ByteView) -> int:
    """How many arrays it holds. Raises MsgpackFault."""
    reader = _Reader(view)
    end = reader.value(0)
    if end != view.size_bytes:
        raise MsgpackFault(f"{view.size_bytes - end:,} bytes lie behind its only value")
    return reader.arrays


class _Reader:
    """Passes over values; `left` are the open collections' values still to come, so that depth costs no stack."""

    def __init__(self, view: ByteView) -> None:
        self._view = view
        self.arrays = 0

    def value(self, at: int) -> int:
        """Where the value at `at` ends, with all that is in it."""
        left, values = [1], 0
        while left:
            if not left[-1]:
                left.pop()
                continue
            left[-1] -= 1
            values += 1
            if values > _VALUES_MAX or len(left) > _NESTED_MAX:
                raise MsgpackFault(f"it holds over {_VALUES_MAX:,} values, or nests over {_NESTED_MAX} deep")
            at, inside = self._one(at)
            if inside:
                left.append(inside)
        return at

    def _one(self, at: int) -> tuple[int, int]:
        """Where what follows begins, and how many values of it belong to the one at `at`."""
        tag, after = self._number(at, 1), at + 1
        if tag < 0x80 or tag >= 0xE0:
            return after, 0
        if tag < 0x90:
            return self._counted(after, 2 * (tag & 15))
        if tag < 0xA0:
            return self._counted(after, tag & 15)
        if tag < 0xC0:
            return self._skip(after, tag & 31), 0
        if tag in _FIXED_BYTES:
            return self._skip(after, _FIXED_BYTES[tag]), 0
        if tag in _SIZED:
            width = _SIZED[tag]
            return self._skip(after + width, self._number(after, width)), 0
        if tag in _COUNTED:
            width, each = _COUNTED[tag]
            return self._counted(after + width, each * self._number(after, width))
        if 0xD4 <= tag <= 0xD8:
            return self._extension(after, 1 << (tag - 0xD4)), 0
        if tag in _EXTENSIONS:
            width = _EXTENSIONS[tag]
            return self._extension(after + width, self._number(after, width)), 0
        raise MsgpackFault(f"there is no value at byte {at:,}")

    def _counted(self, at: int, count: int) -> tuple[int, int]:
        if count > self._view.size_bytes - at:
            raise MsgpackFault(f"{count:,} values at byte {at:,} are more than the file has bytes")
        return at, count

    def _skip(self, at: int, count: int) -> int:
        if at + count > self._view.size_bytes:
            raise MsgpackFault(f"{count:,} bytes at byte {at:,} go on after the file's end")
        return at + count

    def _number(self, at: int, width: int) -> int:
        self._skip(at, width)
        return int.from_bytes(self._view.at(at, width), "big")

    def _extension(self, at: int, size: int) -> int:
        kind = self._number(at, 1)
        end = self._skip(at + 1, size)
        if kind in _ARRAYS:
            self._array(at + 1, end)
        elif kind not in {_COMPLEX_NUMBER, _TIME}:
            raise MsgpackFault(f"it holds a value of the type {kind}, which Flax does not write")
        return end

    def _array(self, at: int, end: int) -> None:
        """An array is a list of three: its shape, the name of its dtype, its bytes."""
        if self._number(at, 1) != 0x93:
            raise MsgpackFault(f"the array at byte {at:,} is none")
        shape, at = self._shape(at + 1)
        tag = self._number(at, 1)
        short = 0xA0 <= tag < 0xC0
        size = tag & 31 if short else self._number(at + 1, 1) if tag in {0xD9, 0xC4} else _DTYPE_BYTES_MAX + 1
        at += 1 if short else 2
        dtype = self._view.at(at, min(size, _DTYPE_BYTES_MAX)).decode(errors="replace")
        known = _DTYPE.fullmatch(dtype)
        if known is None:
            raise MsgpackFault(f"an array has the dtype {dtype!r}, which is none of plain numbers")
        at += size
        width = _SIZED.get(self._number(at, 1), 0)
        held = self._number(at + 1, width) if width else -1
        bits = int(known[1] or 8)
        if held < 0 or held != math.prod(shape) * max(bits, 8) // 8 or at + 1 + width + held != end:
            raise MsgpackFault(f"an array of {dtype} {shape!s:.60} has {held:,} bytes")
        self.arrays += 1

    def _shape(self, at: int) -> tuple[list[int], int]:
        tag = self._number(at, 1)
        if not 0x90 <= tag < 0xA0:
            raise MsgpackFault(f"the array at byte {at:,} has no shape")
        shape, at = [], at + 1
        for _ in range(tag & 15):
            first = self._number(at, 1)
            width = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}.get(first, 0)
            if first >= 0x80 and not width:
                raise MsgpackFault(f"the array at byte {at:,} has a shape that is none")
            shape.append(self._number(at + 1, width) if width else first)
            at += 1 + width
        return shape, at
