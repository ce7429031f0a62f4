"""The recorder: a process beside a gateway that writes the prediction log, exports traces, and tells who follows.

It reads frames from a socket (`telemetry.LENGTH`, then msgpack): first where things go, then one `Sighting` each. It
answers with lines of JSON: what it counted since its start. When the socket ends it finishes what it has and exits.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import msgspec

from groundplane.gateway.telemetry.predictions import PredictionWriter
from groundplane.gateway.telemetry.sighting import KEEP, LENGTH, TAIL, TRACE, Sighting
from groundplane.gateway.telemetry.tailing import TailSender
from groundplane.gateway.telemetry.traces import TraceExporter

_LOOK_S = 0.25
_READ_BYTES = 2**20
_NICENESS = 5


class _Frames:
    """Whole frames out of a socket's bytes."""

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._buffer = bytearray()
        self.ended = False

    def read(self) -> list[bytes]:
        """Those that are there after waiting a moment."""
        found = []
        ready, _, _ = select.select([self._source], [], [], _LOOK_S)
        if ready:
            data = self._source.recv(_READ_BYTES)
            self.ended = not data
            self._buffer += data
        start = 0
        while len(self._buffer) - start >= LENGTH.size:
            (length,) = LENGTH.unpack_from(self._buffer, start)
            end = start + LENGTH.size + length
            if len(self._buffer) < end:
                break
            found.append(bytes(self._buffer[start + LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return found


def main(argv: list[str]) -> int:
    """Serves until the socket ends."""
    parser = argparse.ArgumentParser(prog="python -m groundplane.gateway.telemetry.recorder")
    parser.add_argument("--fd", type=int, required=True)
    source = socket.socket(fileno=parser.parse_args(argv).fd)
    # Ctrl-C in a terminal is for the gateway: it ends us when it has passed everything on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(_NICENESS)
    frames = _Frames(source)
    found: list[bytes] = []
    while not found:
        if frames.ended:
            return 0
        found = frames.read()
    words: dict[str, Any] = msgspec.msgpack.decode(found.pop(0))
    decode = msgspec.msgpack.Decoder(Sighting).decode
    counts: dict[str, int] = {}
    writer = PredictionWriter(Path(words["predictions"] or "."), words["gateway_id"], counts)
    exporter = TraceExporter(words["traces_url"], words["traces_headers"], words["gateway_id"], counts)
    tail = TailSender(Path(words["tail"] or "."), counts)
    told = b""
    while True:
        for data in found:
            seen = decode(data)
            if seen.flags & TAIL:
                tail.add(seen)
            if seen.flags & TRACE:
                exporter.add(seen)
            if seen.flags & KEEP:
                writer.add(seen)
        tail.flush()
        if frames.ended:
            writer.close()
            exporter.close()
        else:
            writer.flush()
        line = msgspec.json.encode({**counts, "trouble": writer.trouble or exporter.trouble}) + b"\n"
        if line != told:
            told = line
            try:
                source.send(line, socket.MSG_DONTWAIT)
            except OSError:
                told = b""  # said again with the next look, unless nobody listens any more
        if frames.ended:
            return 0
        found = frames.read()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
