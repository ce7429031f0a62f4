"""Processes of this machine as we remember them: pid files that outlive a pid's reuse, locks, and who holds a port.

Shared by what starts the installation (supervisor) and what asks about it (CLI). Linux first; elsewhere psutil answers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from groundplane.errors import AlreadyUp, Conflict, GroundError, InvalidInput

_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessMark:
    """A process for certain: a pid is used again, a pid with its start is not."""

    pid: int
    start: str


def mark(pid: int) -> ProcessMark | None:
    """The living process of that pid; None when there is none (a zombie does not live)."""
    start = _start(pid)
    return ProcessMark(pid=pid, start=start) if start else None


def is_alive(process: ProcessMark) -> bool:
    return _start(process.pid) == process.start


def _start(pid: int) -> str:
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        with contextlib.suppress(psutil.NoSuchProcess):
            other = psutil.Process(pid)
            return "" if other.status() == psutil.STATUS_ZOMBIE else str(other.create_time())
        return ""
    try:
        # The name stands in parentheses and may hold anything; the fields after it are numbered from 3.
        fields = stat.read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return "" if fields[0] in "ZX" else fields[19]


# ---------------------------------------------------------------- the home

HOME_FOLDERS = ("keys", "store", "attempts", "runs", "models", "gateway/wal", "uploads", "run", "log")


def make_home(home: Path) -> None:
    """The folders of an installation, closed to other users. Raises InvalidInput when they can't be made."""
    try:
        for folder in (home, *(home / name for name in HOME_FOLDERS)):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.chmod(0o700)
        (home / "keys").chmod(0o700)
    except OSError as error:
        raise InvalidInput(
            f"{error.filename} can't be made: {error.strerror}", "set GROUND_HOME to a folder of yours"
        ) from None


# ---------------------------------------------------------------- pid files


def write_mark(path: Path, pid: int) -> None:
    """Remembers a living process; replaces what was remembered before."""
    found = mark(pid)
    if found is None:
        path.unlink(missing_ok=True)
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(asdict(found)))
    draft.replace(path)


def read_mark(path: Path) -> ProcessMark | None:
    """The process that the file remembers, if it still lives."""
    try:
        remembered = ProcessMark(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return remembered if is_alive(remembered) else None


def end(process: ProcessMark, *, wait_s: float) -> str:
    """SIGTERM, a bounded wait, SIGKILL. Says which it took: `gone`, `stopped` or `killed`."""
    if not _send(process, signal.SIGTERM):
        return "gone"
    if wait_gone(process, wait_s):
        return "stopped"
    _send(process, signal.SIGKILL)
    wait_gone(process, 5.0)
    return "killed"


def wait_gone(process: ProcessMark, wait_s: float) -> bool:
    """Waits at most `wait_s` for the process to end; says whether it did."""
    deadline = time.monotonic() + wait_s
    while is_alive(process):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _send(process: ProcessMark, number: signal.Signals) -> bool:
    if not is_alive(process):
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


# ---------------------------------------------------------------- locks


class HomeLock:
    """One supervisor per home. The kernel lets go of the lock when its holder dies, however it dies."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        """Raises AlreadyUp with the holder's pid."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            holder = read_mark(self._path)
            who = f"pid {holder.pid}" if holder else "another process"
            raise AlreadyUp(
                f"{self._path.parent.parent} is already up ({who})",
                "ground status shows it, ground down stops it; another installation needs another GROUND_HOME",
            ) from None
        found = mark(os.getpid())
        assert found is not None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(asdict(found)).encode())
        self._descriptor = descriptor

    def release(self) -> None:
        """Twice is the same as once."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


# ---------------------------------------------------------------- ports


def check_port_free(host: str, port: int, variable: str) -> None:
    """Raises Conflict naming the port and, when it can be known, who holds it; InvalidInput for an address not ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise InvalidInput(f"{host!r} is no address: {error.strerror}", f"set {variable} to one") from None
    with socket.socket(family, kind, protocol) as probe:
        # What servers do: a port that only lingers in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            raise _unusable(error, host, port, variable) from None


def _unusable(error: OSError, host: str, port: int, variable: str) -> GroundError:
    if error.errno == errno.EADDRINUSE:
        holder = port_holder(port)
        by = f" by {holder}" if holder else ""
        return Conflict(f"port {port} on {host} is taken{by}", f"stop it, or choose another port with {variable}")
    return InvalidInput(f"{host}:{port} can't be bound: {error.strerror}", f"choose another address with {variable}")


def port_holder(port: int) -> str:
    """`pid 4242 (python3 -m http.server)` when the system tells us; "" otherwise."""
    try:
        found = psutil.net_connections("tcp")
        pids = [c.pid for c in found if c.status == psutil.CONN_LISTEN and c.laddr and c.laddr.port == port]
        pid = next(filter(None, pids), None)
        if pid is None:
            return ""
        words = psutil.Process(pid).cmdline() or [psutil.Process(pid).name()]
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return ""
    return f"pid {pid} ({' '.join(words)[:80]})"
