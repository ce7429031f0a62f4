"""The job's output on disk, bounded."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES = 16_384


class Log:
    """The job's output as it comes. A line over `line_limit` bytes is cut, the whole at `total_limit`; both say so.

    The last TAIL_BYTES reach the file even then, because that is where errors stand.
    """

    def __init__(self, path: Path, line_limit: int, total_limit: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._line_limit, self._total_limit = line_limit, total_limit
        self._line_bytes = self._cut_bytes = self._dropped_bytes = self.written_bytes = 0
        self.tail = b""

    def feed(self, chunk: bytes) -> None:
        """Takes output of any form. OSError when the disk refuses it; the rest of the chunk is then lost."""
        self.tail = chunk[-TAIL_BYTES:] if len(chunk) >= TAIL_BYTES else (self.tail + chunk)[-TAIL_BYTES:]
        if not self._cut_bytes and self._line_bytes + len(chunk) <= self._line_limit:
            self._line_bytes = min(
                self._line_bytes + len(chunk), len(chunk) - 1 - max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
            )
            self._write(chunk)
            return
        kept: list[bytes] = []
        for line in chunk.splitlines(keepends=True):  # at newlines, and at the carriage returns of progress bars
            text = line.rstrip(b"\r\n")
            room = min(self._line_limit - self._line_bytes, len(text))
            kept.append(text[:room])
            self._line_bytes += room
            self._cut_bytes += len(text) - room
            if len(text) < len(line):
                kept.append(self._end_of_cut() + line[len(text) :])
                self._line_bytes = 0
        self._write(b"".join(kept))

    def close(self) -> None:
        self._write(self._end_of_cut())
        if self._dropped_bytes:
            lost = max(0, self._dropped_bytes - len(self.tail))
            note = f"\n[... cut {lost} bytes: the log reached its limit of {self._total_limit} bytes]\n".encode()
            self._put(note + self.tail[-self._dropped_bytes :])
        os.close(self._file)

    def _end_of_cut(self) -> bytes:
        marker = f"[... cut {self._cut_bytes} bytes]".encode() if self._cut_bytes else b""
        self._cut_bytes = 0
        return marker

    def _write(self, data: bytes) -> None:
        room = max(0, self._total_limit - self.written_bytes)
        self._dropped_bytes += max(0, len(data) - room)
        self._put(data[:room])

    def _put(self, data: bytes) -> None:
        while data:
            written = os.write(self._file, data)
            self.written_bytes += written
            data = data[written:]
