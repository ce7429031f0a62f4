"""One range of a file's bytes, as HTTP asks for it."""

from __future__ import annotations

import re

_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})")


def parse_range(header: str, size_bytes: int) -> tuple[int, int] | None:
    """(first byte, one past the last) of a `Range` header, or None where the whole file is the answer.

    Several ranges and other units are ignored, as RFC 9110 §14.2 allows. ValueError for a range outside the file (416).
    """
    matched = _RANGE.fullmatch(header.replace(" ", ""))
    if matched is None or matched[1] == matched[2] == "":
        return None
    if matched[1] == "":
        last = int(matched[2])
        if last == 0 or size_bytes == 0:
            raise ValueError(header)
        return max(0, size_bytes - last), size_bytes
    start, stop = int(matched[1]), size_bytes if matched[2] == "" else min(int(matched[2]) + 1, size_bytes)
    if matched[2] and int(matched[2]) < start:
        return None
    if start >= size_bytes:
        raise ValueError(header)
    return start, stop
