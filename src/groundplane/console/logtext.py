"""Log bytes as text for a page: any bytes are readable, and no character is torn between two pieces."""

from __future__ import annotations

import re

# CSI sequences (colours, cursor moves) and other two-byte escapes: noise on a page.
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def readable(data: bytes, *, complete: bool) -> tuple[str, int]:
    """The text, and how many of the bytes it covers: a character cut at the end waits for the next piece.

    Bytes that are no UTF-8 become U+FFFD; escape sequences go; other control characters become U+FFFD.
    """
    used = len(data) if complete else len(data) - _unfinished(data)
    text = data[:used].decode("utf-8", errors="replace")
    lines = _ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")
    # A progress bar rewrites its line; only its last state is kept.
    text = "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in lines)
    return _CONTROLS.sub("\ufffd", text), used


def _unfinished(data: bytes) -> int:
    """Bytes at the end that begin a UTF-8 character which is not all there yet; 0 to 3."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte < 0x80:
            return 0
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if back < length else 0
    return 0
