"""A dev environment as its runner and its desk see it: the command that it is, its activity, the way to its socket."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import struct
import sys
import time
from pathlib import Path

from groundplane.runner.files import read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document

CHUNK, PATIENCE_S = 2**16, 10.0


def command(order: Document, folder: Path) -> list[str]:
    """What runs for a dev environment: a copy of the host where every sandbox sees it, by this node's Python or the
    container's."""
    host = folder / "work" / ".ground" / "host.py"
    host.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    host.write_bytes(Path(__file__).with_name("dev_host.py").read_bytes())
    mode = (order.get("isolation") or {}).get("mode") or "none"
    words = ["python3" if mode == "podman" else _python(mode), "-I", "-S", str(host)]
    return [*words, "--jupyter"] if order["dev"] == "jupyter" else words


def _python(mode: str) -> str:
    """Ours; where the job has a user of its own, one that any user may run."""
    if mode == "none" or os.geteuid() != 0:
        return sys.executable
    for each in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        with contextlib.suppress(OSError):
            real = Path(each).resolve(strict=True)
            if all(above.stat().st_mode & stat.S_IXOTH for above in (real, *real.parents)):
                return each
    return "python3"


def last_activity(folder: Path) -> int:
    """Changes whenever somebody types or something is printed there; 0 before."""
    with contextlib.suppress(OSError):
        return (folder / "work" / ".ground" / "activity").stat().st_mtime_ns
    return 0


def connect(folder: Path, patience_s: float = PATIENCE_S) -> socket.socket:
    """A connection to an attempt's host, and to nobody else. OSError when it runs none.

    A host that was only just started is waited for: it runs before it listens.
    """
    give_up_at = time.monotonic() + patience_s
    while True:
        state = read_document(folder / "state.json") or {}
        try:
            return _connect(folder, state.get("uid") or os.geteuid())
        except (FileNotFoundError, ConnectionRefusedError):
            if state.get("state") != "running" or time.monotonic() > give_up_at:
                raise
        time.sleep(0.05)


def _connect(folder: Path, job_uid: int) -> socket.socket:
    place = os.open(folder / "work" / ".ground", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
    link = socket.socket(socket.AF_UNIX)
    try:
        link.connect(f"/proc/self/fd/{place}/attach")
        # The folder is the job's: it could lead us to a socket that we may use and it may not.
        _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != job_uid:
            raise PermissionError(errno.EPERM, f"user {uid} answers where the job's user {job_uid} should")
    except OSError:
        link.close()
        raise
    finally:
        os.close(place)
    return link


def bridge(folder: Path, source: int, sink: int) -> int:
    """Carries bytes between a pipe and the attempt's host until either ends: the far end of an ssh connection."""
    try:
        link = connect(folder)
    except OSError as error:
        sys.stderr.write(f"ground: nobody answers in {folder.name}: {error.strerror}\n")
        return 1
    far = link.fileno()
    while True:
        ready, _, _ = select.select([source, far], [], [])
        if source in ready:
            data = os.read(source, CHUNK)
            if not data:
                return 0
            link.sendall(data)
        if far in ready:
            data = link.recv(CHUNK)
            if not data:
                return 0
            while data:
                data = data[os.write(sink, data) :]
