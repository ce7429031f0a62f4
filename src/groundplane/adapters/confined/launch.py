"""Starts a confined program: under bubblewrap when there is one, and in any case within the limits it sets itself."""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from groundplane.errors import Unavailable

TOLD_BYTES_MAX = 128 * 2**20
"""So much a program may say about itself: a line for each of half a million tensors."""

_PACKAGE_ROOT = Path(__file__).parents[3]
_PIECE_BYTES = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a confined program ended: its status (negative: the signal), what it wrote, and what held it."""

    status: int
    output: bytes
    errors: str
    walls: str


def launch(
    program: str,
    arguments: Sequence[str],
    *,
    source: IO[bytes] | bytes,
    target: IO[bytes] | None = None,
    timeout_s: float,
) -> Ended:
    """Runs `groundplane.adapters.confined.<program>` with `source` as its input, open and nothing else to read.

    `target`, an open file, takes its output; otherwise the output comes back. Killed after `timeout_s`, and when it
    says more than TOLD_BYTES_MAX: status -9.
    """
    held = _bubblewrap()
    paths = [str(_PACKAGE_ROOT), *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    starter = f"import sys; sys.path[:0] = {paths!r}; import runpy; sys.argv[:1] = [{program!r}]; "
    starter += f"runpy.run_module('groundplane.adapters.confined.{program}', run_name='__main__')"
    command = [*held, sys.executable, "-I", "-S", "-B", "-c", starter, *arguments]
    with tempfile.TemporaryFile() as given:
        if isinstance(source, bytes):
            given.write(source)
            given.seek(0)
        child = subprocess.Popen(
            command,
            stdin=given if isinstance(source, bytes) else source,
            stdout=subprocess.PIPE if target is None else target,
            stderr=subprocess.PIPE,
            env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
            cwd="/",
            start_new_session=True,
        )
    with child:
        told = _listen(child, timeout_s)
    return Ended(
        status=child.returncode,
        output=bytes(told.get(child.stdout, b"")),
        errors=told[child.stderr].decode(errors="replace"),
        walls="bubblewrap, limits" if held else "limits",
    )


def _listen(child: subprocess.Popen[bytes], timeout_s: float) -> dict[IO[bytes] | None, bytearray]:
    """What the program says, until it ends; it is ended when it goes on for too long, or says too much."""
    told: dict[IO[bytes] | None, bytearray] = {pipe: bytearray() for pipe in (child.stdout, child.stderr) if pipe}
    deadline_s = time.monotonic() + timeout_s
    try:
        with selectors.DefaultSelector() as pipes:
            for pipe, said in told.items():
                assert pipe is not None
                pipes.register(pipe, selectors.EVENT_READ, said)
            while pipes.get_map() and sum(map(len, told.values())) <= TOLD_BYTES_MAX:
                ready = pipes.select(max(0.0, deadline_s - time.monotonic()))
                if not ready:
                    return told
                for key, _ in ready:
                    piece = os.read(key.fd, _PIECE_BYTES)
                    key.data.extend(piece)
                    if not piece:
                        pipes.unregister(key.fileobj)
            if not pipes.get_map():
                # Whoever has closed its pipes may still be there.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(max(0.0, deadline_s - time.monotonic()))
    finally:
        if child.poll() is None:
            # With whatever it started, were that possible: nothing of it may go on writing.
            os.killpg(child.pid, signal.SIGKILL)
    return told


@functools.cache
def _bubblewrap() -> list[str]:
    """The words before the program; none where bubblewrap is missing or may not make namespaces. Asked once."""
    found = shutil.which("bwrap")
    if found is None:
        return []
    words = [found, "--unshare-net", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent"]
    words += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"]
    tried = subprocess.run([*words, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    return [*words, "--"] if tried.returncode == 0 else []


def demand_walls(left: object) -> None:
    """Raises Unavailable when the program could not give up what it must."""
    if isinstance(left, list) and left:
        names = " and ".join(str(item) for item in left)
        raise Unavailable(
            f"a process without {names} can't be made here", "install bubblewrap, or allow user namespaces"
        )
