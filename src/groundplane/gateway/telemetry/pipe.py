"""The way to the recorder: a bounded buffer, and the thread that empties it into a socket. What the loop adds to a full
one is dropped and counted, never waited for."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections import deque
from typing import Any

import msgspec

from groundplane.gateway.telemetry.sighting import KEEP, LENGTH, TAIL, TRACE, Sighting, TelemetryOptions

_BUFFER_MAX_BYTES = 64 * 2**20
_BUFFER_MAX = 20_000
_SIGHTING_BYTES = 1024
"""What one costs besides the bytes of request and answer, roughly."""
_RESTART_AFTER_S = 1.0
_CLOSE_LIMIT_S = 8.0


class Pipe:
    """The buffer, and the thread that empties it into the recorder's socket. The loop adds, the thread takes."""

    def __init__(self, options: TelemetryOptions) -> None:
        self._options = options
        self._buffer: deque[Sighting] = deque()
        self._added_bytes = self._taken_bytes = 0
        self._event = threading.Event()
        self._closing = False
        self._counts: dict[str, int] = {}
        self._lives: dict[str, int] = {}
        self._child: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._heard = b""
        self.trouble = ""
        # A daemon: it must not keep a gateway from ending that did not get to close it.
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)
        self._thread.start()

    def add(self, seen: Sighting) -> bool:
        size_bytes = _SIGHTING_BYTES + len(seen.request) + len(seen.answer)
        if len(self._buffer) >= _BUFFER_MAX or self._added_bytes - self._taken_bytes + size_bytes > _BUFFER_MAX_BYTES:
            return False
        self._added_bytes += size_bytes
        self._buffer.append(seen)
        return True

    def wake(self) -> None:
        """The thread looks once a tick, not once a request: waking it costs a system call."""
        if self._buffer:
            self._event.set()

    def counts(self) -> dict[str, int]:
        """What became of things, by `what/outcome`, since the start."""
        return dict(self._counts)

    def close(self) -> None:
        self._closing = True
        self._event.set()
        self._thread.join(_CLOSE_LIMIT_S)
        if self._child is not None and self._child.poll() is None:
            self._child.kill()

    # ------------------------------------------------------------ the thread

    def _run(self) -> None:
        encode = msgspec.msgpack.Encoder().encode
        while True:
            # Feedback is looked for even when there is nothing to pass on.
            self._event.wait(0.5)
            self._event.clear()
            while self._buffer:
                seen = self._buffer.popleft()
                self._taken_bytes += _SIGHTING_BYTES + len(seen.request) + len(seen.answer)
                data = encode(seen)
                if not self._send(LENGTH.pack(len(data)) + data):
                    self._lose(seen)
            self._hear()
            if self._closing:
                self._end()
                return

    def _send(self, data: bytes) -> bool:
        for _ in range(2):
            if self._socket is None and not self._start():
                return False
            assert self._socket is not None
            try:
                self._socket.sendall(data)
            except OSError:
                self._gone()
                continue
            return True
        return False

    def _start(self) -> bool:
        ours, theirs = socket.socketpair()
        options = self._options
        words: dict[str, Any] = {
            "gateway_id": options.gateway_id,
            "predictions": None if options.predictions is None else str(options.predictions),
            "tail": None if options.tail is None else str(options.tail),
            "traces_url": options.traces_url,
            "traces_headers": options.traces_headers,
        }
        command = [sys.executable, "-P", "-m", "groundplane.gateway.telemetry.recorder", "--fd", str(theirs.fileno())]
        try:
            self._child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=(theirs.fileno(),)
            )
        except OSError as error:
            self.trouble = f"the recorder can't be started: {error}"
            ours.close()
            time.sleep(_RESTART_AFTER_S)
            return False
        finally:
            theirs.close()
        self._socket, self._heard = ours, b""
        data = msgspec.msgpack.encode(words)
        try:
            ours.sendall(LENGTH.pack(len(data)) + data)
        except OSError:
            self._gone()
            return False
        self.trouble = ""
        return True

    def _gone(self) -> None:
        """The recorder died: another one is started for what comes next, not at once."""
        self._hear()
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        if self._child is not None:
            code = self._child.wait()
            self.trouble = f"the recorder ended with {code}"
        self._lives = dict(self._counts)
        time.sleep(_RESTART_AFTER_S)

    def _lose(self, seen: Sighting) -> None:
        for flag, what in ((KEEP, "prediction"), (TRACE, "span"), (TAIL, "tail")):
            if seen.flags & flag:
                name = f"{what}/lost"
                self._counts[name] = self._counts.get(name, 0) + 1
                self._lives[name] = self._lives.get(name, 0) + 1

    def _hear(self) -> None:
        """What the recorder counted since its start, as lines of JSON; the last line tells."""
        if self._socket is None:
            return
        try:
            while True:
                data = self._socket.recv(65_536, socket.MSG_DONTWAIT)
                if not data:
                    return
                self._heard += data
        except OSError:
            pass
        whole, _, self._heard = self._heard.rpartition(b"\n")
        if whole:
            told: dict[str, Any] = msgspec.json.decode(whole.rpartition(b"\n")[2])
            self.trouble = told.pop("trouble", "")
            merged = dict(self._lives)
            for what, count in told.items():
                merged[what] = merged.get(what, 0) + count
            self._counts = merged

    def _end(self) -> None:
        """Says that nothing more comes, and hears what became of the rest."""
        if self._socket is None or self._child is None:
            return
        self._socket.shutdown(socket.SHUT_WR)
        try:
            self._child.wait(_CLOSE_LIMIT_S - 2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._hear()
        self._socket.close()
        self._socket = None
