"""Bytes looked at without holding them all: decisions on large files stay pure and read only what they need."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ByteView:
    """`size_bytes` bytes, readable at any offset. `read(offset, count)` gives fewer bytes only at the end."""

    read: Callable[[int, int], bytes]
    size_bytes: int

    @classmethod
    def of(cls, data: bytes) -> ByteView:
        return cls(lambda offset, count: data[offset : offset + count], len(data))

    def at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset`; none outside the view."""
        if offset < 0 or count <= 0 or offset >= self.size_bytes:
            return b""
        return self.read(offset, min(count, self.size_bytes - offset))

    def part(self, offset: int, size_bytes: int) -> ByteView:
        """A view of a piece, cut to what there is."""
        inside = max(0, min(size_bytes, self.size_bytes - offset))
        return ByteView(lambda at, count: self.at(offset + at, min(count, inside - at)), inside)

    def find(self, needle: bytes, *, window_bytes: int = 1 << 20) -> int:
        """The first offset of `needle`, or -1; reads the whole view in windows."""
        offset = 0
        while offset < self.size_bytes:
            window = self.at(offset, window_bytes + len(needle) - 1)
            found = window.find(needle)
            if found >= 0:
                return offset + found
            offset += window_bytes
        return -1

    def search(self, pattern: re.Pattern[bytes], *, longest_bytes: int, window_bytes: int = 1 << 20) -> bytes | None:
        """The first text that `pattern`, whose matches are at most so long, finds anywhere in the view."""
        offset = 0
        while offset < self.size_bytes:
            found = pattern.search(self.at(offset, window_bytes + longest_bytes - 1))
            if found is not None:
                return found[0]
            offset += window_bytes
        return None

    def places(self, pattern: re.Pattern[bytes], *, longest_bytes: int, window_bytes: int = 1 << 20) -> Iterator[int]:
        """Where `pattern`, whose matches are at most so long, is found, in order."""
        offset = 0
        while offset < self.size_bytes:
            for found in pattern.finditer(self.at(offset, window_bytes + longest_bytes - 1)):
                if found.start() < window_bytes:
                    yield offset + found.start()
            offset += window_bytes
