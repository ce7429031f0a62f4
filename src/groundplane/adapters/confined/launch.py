"""Starts a confined program: under bubblewrap when there is one, and in any case within the limits it sets itself."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from groundplane.errors import Unavailable

_PACKAGE_ROOT = Path(__file__).parents[3]


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

    `target`, an open file, takes its output; otherwise the output comes back. Killed after `timeout_s`: status -9.
    """
    held = _bubblewrap()
    paths = [str(_PACKAGE_ROOT), *(path for path in sys.path if path.endswith(("site-packages", "dist-packages")))]
    starter = f"import sys; sys.path[:0] = {paths!r}; import runpy; sys.argv[:1] = [{program!r}]; "
    starter += f"runpy.run_module('groundplane.adapters.confined.{program}', run_name='__main__')"
    command = [*held, sys.executable, "-I", "-S", "-B", "-c", starter, *arguments]
    child = subprocess.Popen(
        command,
        stdin=subprocess.PIPE if isinstance(source, bytes) else source,
        stdout=subprocess.PIPE if target is None else target,
        stderr=subprocess.PIPE,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"},
        cwd="/",
        start_new_session=True,
    )
    try:
        output, errors = child.communicate(source if isinstance(source, bytes) else None, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        output, errors = child.communicate()
    walls = "bubblewrap, limits" if held else "limits"
    return Ended(status=child.returncode, output=output or b"", errors=errors.decode(errors="replace"), walls=walls)


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
