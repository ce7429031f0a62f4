"""Machines to run attempts on: network namespaces with an sshd each, on a bridge of their own.

A host has its own network, processes, host name and home folder; killing its first process is a power cut. Everything
goes when pytest does, however it ends: processes by a death signal, interfaces with their namespaces, and what a killed
session left is cleared by the next.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

TOOLS = ("sshd", "ssh", "ssh-keygen", "ip", "unshare", "mount")
PREFIX = "gnd"
_INIT = """
set -e
mount --make-rprivate /
if [ -n "$4" ]; then
    mkdir -p "$1/home/$4"
    mount --bind "/root/$4" "$1/home/$4"
fi
mount --rbind "$1/home" /root
mount -t tmpfs -o size=16m tmpfs /dev/shm
hostname "$2"
exec "$3" -D -e -f "$1/sshd_config" 2>>"$1/sshd.log"
"""
# Gets a death signal from this process, then becomes the command.
_WITH_US = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"


@functools.cache
def available() -> bool:
    """Whether hosts can be made here: the tools, and the right to make namespaces."""
    if os.geteuid() != 0 or any(_tool(each) is None for each in TOOLS):
        return False
    probe = ["unshare", "--net", "--mount", "--pid", "--uts", "--fork", "--mount-proc", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


@dataclass
class Host:
    """One machine. `home` is its /root as seen from here; `link` the end of its cable on our side."""

    name: str
    namespace: str
    link: str
    address: str
    folder: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def root(self) -> Path:
        """Where the pool keeps its things."""
        return self.home / ".groundplane-node"

    def start(self) -> None:
        if self.process is not None and self.process.poll() is None:
            return
        namespaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child=KILL", "--mount-proc"]
        init = ["sh", "-c", _INIT, "init", str(self.folder), self.name, str(_tool("sshd")), _python_at_home()]
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WITH_US, "ip", "netns", "exec", self.namespace, *namespaces, *init],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8"},
        )

    def wait(self, patience_s: float = 90.0) -> None:
        deadline = time.monotonic() + patience_s
        while True:
            try:
                with socket.create_connection((self.address, 22), timeout=0.5):
                    return
            except OSError:
                assert time.monotonic() < deadline, (self.folder / "sshd.log").read_text()
                time.sleep(0.02)

    def crash(self) -> None:
        """Every process of the host is gone at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def cut(self) -> None:
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        _ip("link", "set", self.link, "up")

    def processes(self) -> list[int]:
        """Pids, as we see them, of everything in the host's network."""
        mine = Path(f"/run/netns/{self.namespace}").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if (entry / "ns" / "net").stat().st_ino == mine:
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


class Hosts:
    """`count` hosts named n0, n1, …; one key lets in, and `known_hosts` holds their host keys."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.key, self.known_hosts = folder, folder / "key", folder / "known_hosts"
        self._tag = f"{PREFIX}{os.getpid()}"
        self._bridge = f"{self._tag}b"
        _clear_leftovers()
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks itself in before a login
        network = _free_network()
        atexit.register(self.remove)
        self._keygen(self.key)
        lines = [f"link add {self._bridge} type bridge", f"addr add {network}.1/24 dev {self._bridge}"]
        lines.append(f"link set {self._bridge} up")
        self.hosts: list[Host] = []
        for number in range(count):
            namespace = f"{self._tag}n{number}"
            host = Host(
                f"n{number}", namespace, f"{self._tag}v{number}", f"{network}.{10 + number}", folder / f"n{number}"
            )
            lines.append(f"netns add {namespace}")
            lines.append(f"link add {host.link} type veth peer name eth0 netns {namespace}")
            lines.append(f"link set {host.link} master {self._bridge} up")
            self._write(host)
            self.hosts.append(host)
        _batch(lines)
        for host in self.hosts:
            inside = [f"addr add {host.address}/24 dev eth0", "link set eth0 up", "link set lo up"]
            _batch(inside, namespace=host.namespace)
            host.start()
        for host in self.hosts:
            host.wait()

    def mend(self) -> None:
        """Every host up and reachable again."""
        for host in self.hosts:
            host.mend()
            host.start()
        for host in self.hosts:
            host.wait()

    def clear(self) -> None:
        """Ends what attempts left on the hosts, and empties their homes."""
        for host in self.hosts:
            for pid in host.processes():
                if host.process is not None and _is_ours(pid):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
            shutil.rmtree(host.root, ignore_errors=True)

    def remove(self) -> None:
        for host in self.hosts:
            host.crash()
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)
        self.hosts = []
        atexit.unregister(self.remove)

    def _write(self, host: Host) -> None:
        (host.home / ".ssh").mkdir(parents=True, mode=0o700)
        (host.home / ".ssh" / "authorized_keys").write_text(self.key.with_suffix(".pub").read_text())
        self._keygen(host.folder / "host_key")
        public = (host.folder / "host_key.pub").read_text().split()
        with self.known_hosts.open("a") as file:
            file.write(f"{host.address} {public[0]} {public[1]}\n")
        config = {
            "ListenAddress": host.address,
            "HostKey": host.folder / "host_key",
            "AuthorizedKeysFile": ".ssh/authorized_keys",
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "UseDNS": "no",
            "PermitRootLogin": "yes",
            "MaxStartups": "100",
            "KexAlgorithms": "curve25519-sha256",  # half the time to log in of the first choice
            "LogLevel": "ERROR",
        }
        (host.folder / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in config.items()))

    def _keygen(self, path: Path) -> None:
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)


class SlowWire:
    """A TCP proxy on our side of a host's cable: every byte arrives `delay_s` later, at most `bytes_per_s` of them.

    A context manager; `address` and `port` lead to the host's sshd.
    """

    def __init__(self, host: Host, delay_s: float, bytes_per_s: float) -> None:
        self.host, self.delay_s, self.bytes_per_s = host, delay_s, bytes_per_s
        self.address = f"{host.address.rpartition('.')[0]}.1"
        self._listener = socket.create_server((self.address, 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []

    def __enter__(self) -> SlowWire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        for end in (self._listener, *self._ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def known_host(self) -> str:
        """The line of known_hosts for this way to the host."""
        kind, key = (self.host.folder / "host_key.pub").read_text().split()[:2]
        return f"[{self.address}]:{self.port} {kind} {key}\n"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection((self.host.address, 22), timeout=10)
                theirs.settimeout(None)
                self._ends += [ours, theirs]
                for source, sink in ((ours, theirs), (theirs, ours)):
                    on_the_way: queue.Queue[tuple[float, bytes]] = queue.Queue()
                    threading.Thread(target=self._take, args=(source, on_the_way), daemon=True).start()
                    threading.Thread(target=self._hand_on, args=(sink, on_the_way), daemon=True).start()

    def _take(self, source: socket.socket, on_the_way: queue.Queue[tuple[float, bytes]]) -> None:
        chunk = b"?"
        while chunk:
            try:
                chunk = source.recv(16_384)
            except OSError:
                chunk = b""
            on_the_way.put((time.monotonic() + self.delay_s, chunk))

    def _hand_on(self, sink: socket.socket, on_the_way: queue.Queue[tuple[float, bytes]]) -> None:
        free_at = 0.0
        with contextlib.suppress(OSError):
            while (item := on_the_way.get())[1]:
                due, chunk = item
                free_at = max(due, free_at) + len(chunk) / self.bytes_per_s
                time.sleep(max(0.0, free_at - time.monotonic()))
                sink.sendall(chunk)
            sink.shutdown(socket.SHUT_WR)


def _python_at_home() -> str:
    """Where our Python lies below /root, if it does: hosts have a home of their own, and must see it all the same."""
    base = Path(sys.base_prefix)
    return str(base.relative_to("/root")) if base.is_relative_to("/root") else ""


def _is_ours(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
        marks = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return b"groundplane/runner" in words or b"GROUND_ATTEMPT_ID=" in marks


def _tool(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _batch(lines: list[str], namespace: str = "") -> None:
    inside = ["-n", namespace] if namespace else []
    command = ["ip", *inside, "-batch", "-"]
    done = subprocess.run(command, input="\n".join(lines), text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def _free_network() -> str:
    """A /24 of the range kept for tests between networks. Source: RFC 2544, 198.18.0.0/15."""
    taken = subprocess.run(["ip", "-o", "addr"], check=True, capture_output=True, text=True).stdout
    numbers = [os.getpid() % 250, *range(250)]
    return next(f"198.18.{number}" for number in numbers if f"198.18.{number}." not in taken)


def _clear_leftovers() -> None:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=False).stdout
    for pid in {int(found) for found in re.findall(rf"{PREFIX}(\d+)[nb]", listed + links)}:
        if not Path(f"/proc/{pid}").exists():
            for namespace in re.findall(rf"^({PREFIX}{pid}n\d+)", listed, re.MULTILINE):
                subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", f"{PREFIX}{pid}b"], capture_output=True, check=False)


if __name__ == "__main__":
    import tempfile

    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        made = Hosts(Path(place), int(sys.argv[1]) if len(sys.argv) > 1 else 4)
        print(f"{len(made.hosts)} hosts in {time.monotonic() - began:.2f} s: {[host.address for host in made.hosts]}")
        command = ["ssh", "-i", str(made.key), "-o", f"UserKnownHostsFile={made.known_hosts}", "-F", "none"]
        subprocess.run([*command, f"root@{made.hosts[0].address}", "hostname; ls -la ~; ps ax"], check=False)
        made.remove()
