"""The job of a dev environment: shells that outlive whoever looks at them, ways to its ports, and Jupyter when asked.

A copy of it lies in the attempt's work folder, which every sandbox and container sees: it imports nothing of ours. One
socket beside it takes connections; frames go both ways: a letter, the length in four bytes, the payload.
First comes `o` with a JSON object (`kind`: shell, tcp or info), then `d` data, `r` a new size as [rows, columns]; back
come `d`, and `x` with the exit status when it is over; `e` says that no more input follows.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import secrets
import selectors
import shutil
import signal
import socket
import struct
import sys
import termios
import time
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

HEAD = struct.Struct(">cI")
MOST_FRAME = 2**20
KEPT_BYTES = 2**16
MOST_WAITING = 4 * 2**20
CHUNK = 2**15
ACTIVITY_PERIOD_S = 1.0
GONE_S = 0.2
QUIET_S = 0.5
END_OF_INPUT = b"\x04"


class Peer:
    """Whoever is connected: what came and is no whole frame yet, what waits to be sent, and whom it talks to."""

    def __init__(self, link: socket.socket) -> None:
        self.link, self.came, self.waiting = link, b"", b""
        self.ending = False
        self.partner: Shell | Way | None = None

    def send(self, kind: bytes, data: bytes) -> None:
        self.waiting += HEAD.pack(kind, len(data)) + data


class Shell:
    """A shell on a terminal of its own, with everybody who looks at it; `kept` is what a newcomer is shown."""

    def __init__(self, name: str, pid: int, terminal: int) -> None:
        self.name, self.pid, self.terminal = name, pid, terminal
        self.kept, self.waiting = b"", b""
        self.peers: list[Peer] = []
        self.input_over, self.active_at = False, time.monotonic()


class Way:
    """A connection to a port in here."""

    def __init__(self, link: socket.socket, peer: Peer) -> None:
        self.link, self.peer, self.waiting = link, peer, b""
        self.shut = False


class Host:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(0o700, parents=True, exist_ok=True)
        self._select = selectors.DefaultSelector()
        self._shells: dict[str, Shell] = {}
        self._peers: set[Peer] = set()
        self._ways: set[Way] = set()
        self._touched_at = 0.0
        self._jupyter: dict[str, Any] = {}
        self._jupyter_pid = 0
        self._listener = self._listen()
        self._select.register(self._listener, selectors.EVENT_READ, self._listener)

    def run(self, jupyter: bool) -> int:
        """Until it is told to end, or Jupyter ends by itself."""
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        if jupyter and not self._start_jupyter():
            return 127
        _say("dev environment ready: ground attach " + os.environ.get("GROUND_RUN_ID", ""))
        while True:
            for peer in list(self._peers):
                self._watch(peer.link, peer, bool(peer.waiting))
            for shell in self._shells.values():
                self._watch(shell.terminal, shell, bool(shell.waiting))
            for way in self._ways:
                self._watch(way.link, way, bool(way.waiting) or way.shut)
            for key, events in self._select.select(GONE_S if self._shells or self._jupyter_pid else None):
                self._serve(key.data, events)
            self._reap()
            if self._jupyter_pid == -1:
                _say("jupyter has ended")
                return 1

    def _watch(self, place: Any, data: Any, sends: bool) -> None:
        crowded = isinstance(data, Way) and len(data.peer.waiting) > MOST_WAITING
        events = (0 if crowded else selectors.EVENT_READ) | (selectors.EVENT_WRITE if sends else 0)
        try:
            key = self._select.get_key(place)
        except KeyError:
            key = None
        if key is None and events:
            self._select.register(place, events, data)
        elif key is not None and events != key.events:
            if events:
                self._select.modify(place, events, data)
            else:
                self._select.unregister(place)

    def _serve(self, data: Any, events: int) -> None:
        if data is self._listener:
            link, _ = self._listener.accept()
            link.setblocking(False)
            self._peers.add(Peer(link))
        elif isinstance(data, Peer) and data in self._peers:
            self._serve_peer(data, events)
        elif isinstance(data, Shell) and data.name in self._shells:
            self._serve_shell(data, events)
        elif isinstance(data, Way) and data in self._ways:
            self._serve_way(data, events)

    # ---- whoever is connected

    def _serve_peer(self, peer: Peer, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and peer.waiting:
                peer.waiting = peer.waiting[peer.link.send(peer.waiting) :]
            if events & selectors.EVENT_READ:
                came = peer.link.recv(CHUNK)
                if not came:
                    return self._forget(peer)
                peer.came += came
                self._take_frames(peer)
        except BlockingIOError:
            return None
        except (OSError, ValueError, KeyError, TypeError):  # it broke off, or speaks another language
            return self._forget(peer)
        if peer.ending and not peer.waiting:
            self._forget(peer)
        return None

    def _take_frames(self, peer: Peer) -> None:
        while len(peer.came) >= HEAD.size:
            kind, length = HEAD.unpack_from(peer.came)
            if length > MOST_FRAME:
                raise ValueError("a frame that long is none of ours")
            if len(peer.came) < HEAD.size + length:
                return
            data, peer.came = peer.came[HEAD.size : HEAD.size + length], peer.came[HEAD.size + length :]
            self._take(peer, kind, data)

    def _take(self, peer: Peer, kind: bytes, data: bytes) -> None:
        partner = peer.partner
        if kind == b"o" and partner is None:
            self._open(peer, json.loads(data))
        elif kind == b"d" and partner is not None:
            partner.waiting += data
            self._touch()
        elif kind == b"r" and isinstance(partner, Shell):
            _resize(partner.terminal, *json.loads(data))
        elif kind == b"e" and isinstance(partner, Way):
            partner.shut = True
        elif kind == b"e" and isinstance(partner, Shell):
            partner.input_over = True

    def _open(self, peer: Peer, wish: dict[str, Any]) -> None:
        if wish["kind"] == "shell":
            shell = self._shells.get(str(wish.get("session") or "main")) or self._new_shell(wish)
            shell.peers.append(peer)
            peer.partner = shell
            _resize(shell.terminal, int(wish.get("rows") or 24), int(wish.get("columns") or 80))
            if shell.kept:
                peer.send(b"d", shell.kept)
            self._touch()
        elif wish["kind"] == "tcp":
            link = socket.create_connection(("127.0.0.1", int(wish["port"])), timeout=5)
            link.setblocking(False)
            peer.partner = Way(link, peer)
            self._ways.add(peer.partner)
        elif wish["kind"] == "info":
            sessions = [{"name": shell.name, "attached": len(shell.peers)} for shell in self._shells.values()]
            said = {"sessions": sessions, "jupyter": self._jupyter, "folder": str(Path.cwd())}
            peer.send(b"d", json.dumps(said).encode())
            self._end(peer, 0)
        else:
            raise ValueError("no such kind")

    def _end(self, peer: Peer, status: int) -> None:
        peer.send(b"x", str(status).encode())
        peer.ending = True

    def _forget(self, peer: Peer) -> None:
        self._peers.discard(peer)
        self._drop(peer.link)
        peer.link.close()
        if isinstance(peer.partner, Shell) and peer in peer.partner.peers:
            peer.partner.peers.remove(peer)  # the shell goes on
        elif isinstance(peer.partner, Way):
            self._close_way(peer.partner)

    # ---- shells

    def _new_shell(self, wish: dict[str, Any]) -> Shell:
        name = str(wish.get("session") or "main")
        program = os.environ.get("SHELL") or shutil.which("bash") or "/bin/sh"
        pid, terminal = pty.fork()
        if pid == 0:
            try:
                os.environ["TERM"] = str(wish.get("term") or "xterm")
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os.execv(program, [program, "-i"])  # noqa: S606 (the person's own shell)
            finally:
                os._exit(127)
        os.set_blocking(terminal, False)
        self._shells[name] = Shell(name, pid, terminal)
        return self._shells[name]

    def _serve_shell(self, shell: Shell, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and shell.waiting:
                shell.waiting = shell.waiting[os.write(shell.terminal, shell.waiting) :]
            if events & selectors.EVENT_READ:
                came = os.read(shell.terminal, CHUNK)
                if not came:
                    raise OSError
                self._touch()
                shell.active_at = time.monotonic()
                shell.kept = (shell.kept + came)[-KEPT_BYTES:]
                for peer in list(shell.peers):
                    peer.send(b"d", came)
                    if len(peer.waiting) > MOST_WAITING:  # one who reads nothing must not hold up the others
                        self._forget(peer)
        except BlockingIOError:
            return
        except OSError:  # the last process on the terminal has closed it
            self._over(shell)

    def _over(self, shell: Shell) -> None:
        """The shell has ended; what it started without its terminal goes on."""
        del self._shells[shell.name]
        self._drop(shell.terminal)
        os.close(shell.terminal)
        deadline, status = time.monotonic() + GONE_S, 0
        while time.monotonic() < deadline:
            with contextlib.suppress(ChildProcessError):
                pid, ended = os.waitpid(shell.pid, os.WNOHANG)
                if pid:
                    status = os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else 128 + os.WTERMSIG(ended)
                    break
                time.sleep(0.01)
                continue
            break
        for peer in shell.peers:
            self._end(peer, status)

    def _reap(self) -> None:
        for shell in list(self._shells.values()):
            with contextlib.suppress(ChildProcessError):
                # Only looked at: its status is taken once its terminal has been read to the end.
                found = os.waitid(os.P_PID, shell.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is not None and not self._readable(shell.terminal):
                    self._over(shell)
                elif shell.input_over and time.monotonic() - shell.active_at > QUIET_S:
                    # Again and again: a shell that sets its terminal up just then loses what came before.
                    shell.active_at = time.monotonic()
                    shell.waiting += END_OF_INPUT
        if self._jupyter_pid > 0:
            pid, _ = os.waitpid(self._jupyter_pid, os.WNOHANG)
            if pid:
                self._jupyter_pid = -1

    def _readable(self, place: int) -> bool:
        with selectors.PollSelector() as look:
            look.register(place, selectors.EVENT_READ)
            return bool(look.select(0))

    # ---- ports

    def _serve_way(self, way: Way, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE and way.waiting:
                way.waiting = way.waiting[way.link.send(way.waiting) :]
            if way.shut and not way.waiting:
                way.link.shutdown(socket.SHUT_WR)
                way.shut = False
            if events & selectors.EVENT_READ:
                came = way.link.recv(CHUNK)
                if not came:
                    raise OSError
                way.peer.send(b"d", came)
        except BlockingIOError:
            return
        except OSError:
            self._end(way.peer, 0)
            self._close_way(way)

    def _close_way(self, way: Way) -> None:
        if way in self._ways:
            self._ways.discard(way)
            self._drop(way.link)
            way.link.close()

    # ---- the rest

    def _start_jupyter(self) -> bool:
        program = shutil.which("jupyter")
        if program is None:
            _say("jupyter is not installed in this environment: pip install jupyterlab there")
            return False
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        token = secrets.token_urlsafe(24)
        words = ["--no-browser", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
        words += ["--allow-root"] if os.geteuid() == 0 else []
        self._jupyter = {"port": port, "token": token}
        self._jupyter_pid = os.fork()
        if self._jupyter_pid == 0:
            try:
                os.environ["JUPYTER_TOKEN"] = token  # not among its arguments, which everybody on the node can see
                os.execv(program, [program, "server", *words])  # noqa: S606 (the environment's own)
            finally:
                os._exit(127)
        return True

    def _touch(self) -> None:
        """Tells the runner that somebody is at work; it reads the file's time."""
        if time.monotonic() - self._touched_at > ACTIVITY_PERIOD_S:
            self._touched_at = time.monotonic()
            (self._folder / "activity").write_text(str(time.time()))

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX)
        folder = os.open(self._folder, os.O_PATH)
        path = Path(f"/proc/self/fd/{folder}/attach")  # a socket's path is short, an attempt's may not be
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        listener.bind(str(path))
        os.umask(before)
        os.close(folder)
        listener.listen(64)
        listener.setblocking(False)
        return listener

    def _drop(self, place: Any) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._select.unregister(place)


def _say(line: str) -> None:
    """Into the run's log."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _resize(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


if __name__ == "__main__":
    sys.exit(Host(Path(os.environ["GROUND_ATTEMPT_DIR"], "work", ".ground")).run("--jupyter" in sys.argv[1:]))
