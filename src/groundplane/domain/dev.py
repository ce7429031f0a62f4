"""Dev environments: the words that go between whoever attaches and the program on the node, and ways in over SSH.

A frame is a letter, its length in four bytes, big end first, and the payload: `runner/dev_host.py` speaks the same.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise

from groundplane.domain.run import RunStatus
from groundplane.units import format_duration

HEAD = struct.Struct(">cI")
OPEN, DATA, RESIZE, OVER, END = b"o", b"d", b"r", b"x", b"e"
MOST_FRAME = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What somebody attaches to: a `shell` by the name of its session, a `tcp` port in there, or `info`."""

    kind: str = "shell"
    session: str = "main"
    rows: int = 24
    columns: int = 80
    term: str = "xterm"
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SshPlace:
    """How the control plane reaches the run's node: `options` is its ssh command, `folder` the run's working folder."""

    node: str
    options: tuple[str, ...]
    folder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DevInfo:
    """What a dev environment holds now. Port and token are Jupyter's; 0 and empty without one."""

    run_id: str
    sessions: tuple[str, ...] = ()
    folder: str = ""
    jupyter_port: int = 0
    jupyter_token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevUse:
    """A dev environment that is not over. `idle_s` is how long nobody has been at work in it; None while that is
    unknown. `attached` are the names of those who look at it through this control plane now.
    """

    run_id: str
    name: str
    project: str
    owner: str
    pool: str
    node: str
    status: RunStatus
    kind: str
    started_at: datetime | None
    end_date: datetime
    idle_s: float | None = None
    idle_limit_s: int | None = None
    attached: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SshConfig:
    """A block for ~/.ssh/config; empty with `why` where there is no way in over SSH."""

    run_id: str
    host: str = ""
    text: str = ""
    folder: str = ""
    why: str = ""


def idle_words(use: DevUse) -> str:
    """`12m of 30m`: how long nobody has been at work, and when that ends it."""
    if use.idle_s is None:
        return "unknown" if use.status is RunStatus.RUNNING else "-"
    limit = f" of {format_duration(use.idle_limit_s)}" if use.idle_limit_s else ", no limit"
    return format_duration(use.idle_s) + limit


def frame(kind: bytes, data: bytes) -> bytes:
    return HEAD.pack(kind, len(data)) + data


def opening(wish: Wish) -> bytes:
    """The first frame of a connection."""
    words = {name: getattr(wish, name) for name in ("kind", "session", "rows", "columns", "term", "port")}
    return frame(OPEN, json.dumps(words).encode())


class Frames:
    """Whole frames out of bytes as they come."""

    def __init__(self) -> None:
        self._came = b""

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """(letter, payload) of each frame that is whole. ValueError when it is another language."""
        self._came += data
        while len(self._came) >= HEAD.size:
            kind, length = HEAD.unpack_from(self._came)
            if length > MOST_FRAME:
                raise ValueError(f"a frame of {length} bytes is none of ours")
            if len(self._came) < HEAD.size + length:
                return
            payload = self._came[HEAD.size : HEAD.size + length]
            self._came = self._came[HEAD.size + length :]
            yield kind, payload


def ssh_config(run_id: str, place: SshPlace | None) -> SshConfig:
    """The block that lets VS Code and others reach the run's node, from how the control plane reaches it."""
    if place is None:
        why = "the run is on the control plane's own machine: open its folder there, or use ground attach"
        return SshConfig(run_id=run_id, why=why)
    words, found = list(place.options), {}
    named = {"-p": "Port", "-l": "User"}
    kept = ("UserKnownHostsFile", "IdentityFile", "IdentitiesOnly", "StrictHostKeyChecking")
    for flag, value in pairwise(words):
        if flag in named:
            found[named[flag]] = value
        name, _, text = value.partition("=")
        if flag == "-o" and name in kept:
            found[name] = text
    host = f"ground-{run_id}"
    lines = [
        f"# {place.folder} on node {place.node}: the run's working folder.",
        "# A connection is the pool's account on that node, beside the run: not within its limits or isolation.",
        f"Host {host}",
        f"  HostName {words[-1]}",
        *(f"  {name} {text}" for name, text in found.items()),
    ]
    return SshConfig(run_id=run_id, host=host, text="\n".join(lines) + "\n", folder=place.folder)
