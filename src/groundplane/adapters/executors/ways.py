"""Our own programs on nodes: whether they can run there, their way back to the gateway, and what they have written.

A way is a socket in the attempt's folder that ssh forwards to an address seen from here. It is made anew under another
name whenever it is cut; it ends with the control plane, and with the attempt.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import secrets
import shlex
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from groundplane.adapters.executors.channels import Document, SshChannel
from groundplane.adapters.executors.ssh_words import explain
from groundplane.errors import GroundError, Unavailable
from groundplane.jobs.calls import WAY

PYTHON_MIN = (3, 11)
SOCKET_PATH_MAX = 107
"""Source: sun_path of struct sockaddr_un on Linux, 108 bytes with its end."""
NAME_BYTES = 64
"""What the path of a way is longer than our folder on its node, at most."""
LOOK_PATIENCE_S = 20.0
OPEN_PATIENCE_S = 20.0
FIT_S = 600.0
RETRY_S, RETRY_MAX_S = 0.25, 15.0
log = logging.getLogger(__name__)

# Says that the way is open; ends when whoever opened it does, and takes the socket along.
_HOLD = """
import os, sys
print("open", flush=True)
sys.stdin.read()
os.path.exists(sys.argv[1]) and os.unlink(sys.argv[1])
"""


class WayCalls(ABC):
    """Mixed into the executor over nodes. Nodes of this machine need no way, and have what we have."""

    @property
    def python(self) -> str:
        """What runs Python on the nodes, as a shell reads it; "" where that is this very process's."""
        return next((ch.python for link in self._links.values() if isinstance(ch := link.channel, SshChannel)), "")

    async def unfit(self, packages: Sequence[str], address: str) -> Mapping[str, str]:
        async def ask(name: str, link: Any) -> tuple[str, str]:
            wanted = (name, tuple(packages), address)
            if time.monotonic() - self._fit.get(wanted, float("-inf")) < FIT_S:
                return name, ""
            try:
                why = await self._why_unfit(link, packages, address)
            except Unavailable:  # whether it answers is told elsewhere
                return name, ""
            if not why:
                self._fit[wanted] = time.monotonic()
            return name, why

        far = [(name, link) for name, link in self._links.items() if isinstance(link.channel, SshChannel)]
        answers = await asyncio.gather(*(ask(name, link) for name, link in far if link.failure is None))
        return {name: why for name, why in answers if why}

    async def _why_unfit(self, link: Any, packages: Sequence[str], address: str) -> str:
        said = await self._ask(link, "python", LOOK_PATIENCE_S, packages=list(packages))
        if tuple(said["version"]) < PYTHON_MIN:
            return f"its {link.channel.python} is {'.'.join(map(str, said['version']))}, which is older than 3.11"
        if missing := [name for name in packages if name not in said["packages"]]:
            return f"its {link.channel.python} has no {', '.join(missing)}"
        if not address:
            return ""
        length = len(os.fsencode(said["root"])) + NAME_BYTES
        if length > SOCKET_PATH_MAX:
            return f"a socket under {said['root']} would have a path of {length} bytes; {SOCKET_PATH_MAX} are possible"
        process = await _dig(link.channel, f"{said['root']}/{_name()}", address)
        try:
            return "" if await _opened(process) else await _trouble(link.name, process)
        finally:
            await _ended(process)

    async def open_way(self, attempt_id: str, address: str) -> None:
        where = self._member(attempt_id, 0)
        way = self._ways.get(attempt_id)
        if where is None or not isinstance(where[0].channel, SshChannel) or (way is not None and not way.done()):
            return
        link, member = where
        root = (await self._ask(link, "python", LOOK_PATIENCE_S, packages=[]))["root"]
        folder = f"{root}/attempts/{member}"
        self._ways[attempt_id] = asyncio.get_running_loop().create_task(
            _kept_open(link.name, link.channel, folder, address)
        )

    async def close_ways(self, attempt_ids: Iterable[str]) -> None:
        """Twice is the same as once."""
        for way in [self._ways.pop(each) for each in attempt_ids if each in self._ways]:
            way.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await way

    async def output_file(self, attempt_id: str, run_id: str, path: str) -> bytes | None:
        where = self._member(attempt_id, 0)
        if where is None or self._sees_files:
            return None
        root = f"{self._shared_dir}/runs/{run_id}/output" if self._shared_dir else ""
        try:
            said = await self._ask(where[0], "read", run_id=run_id, root=root, path=path, offset=0)
        except GroundError as error:  # it is not there yet, or its node is silent: both are told elsewhere
            log.info("%s of %s is not read: %s", path, run_id, error.message)
            return None
        return base64.b64decode(said["data"])

    _links: Mapping[str, Any]
    _ways: dict[str, asyncio.Task[None]]
    _fit: dict[tuple[str, tuple[str, ...], str], float]
    _shared_dir: str | None

    @property
    @abstractmethod
    def _sees_files(self) -> bool: ...

    @abstractmethod
    async def _ask(self, link: Any, operation: str, patience_s: float = 0.0, **arguments: Any) -> Document: ...

    @abstractmethod
    def _member(self, attempt_id: str, rank: int) -> tuple[Any, str] | None: ...


class NoWays:
    """The same for a pool that runs nothing."""

    python = ""

    async def unfit(self, packages: Sequence[str], address: str) -> Mapping[str, str]:
        return {}

    async def open_way(self, attempt_id: str, address: str) -> None:
        """Nobody would go there."""

    async def output_file(self, attempt_id: str, run_id: str, path: str) -> bytes | None:
        return None


def _name() -> str:
    return f"{WAY}{secrets.token_hex(3)}"


async def _dig(channel: SshChannel, path: str, address: str) -> asyncio.subprocess.Process:
    """An ssh of its own beside the desk's: what goes through it must not hold up the desk."""
    ssh, *words = ["ClearAllForwardings=no" if each == "ClearAllForwardings=yes" else each for each in channel.command]
    forward = ("-o", "ExitOnForwardFailure=yes", "-R", f"{path}:{address}")
    remote = f"exec {channel.python} -I -S -c {shlex.quote(_HOLD)} {shlex.quote(path)}"
    return await asyncio.create_subprocess_exec(
        ssh,
        *forward,
        *words,
        remote,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def _opened(process: asyncio.subprocess.Process) -> bool:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(OPEN_PATIENCE_S):
            while line := await process.stdout.readline():
                if line == b"open\n":
                    return True
    except (TimeoutError, ValueError):  # silent, or its login prints a line without end
        return False
    return False


async def _trouble(name: str, process: asyncio.subprocess.Process) -> str:
    """Why no way came of it, in a line."""
    await _ended(process)
    assert process.stderr is not None
    said = (await process.stderr.read(4096)).decode(errors="replace").strip()
    if "forward" in said:
        return "its sshd forwards no sockets: AllowStreamLocalForwarding yes in its sshd_config lets it"
    return explain(name, said, process.returncode or 255)[0]


async def _kept_open(name: str, channel: SshChannel, folder: str, address: str) -> None:
    wait_s = RETRY_S
    while True:
        process = await _dig(channel, f"{folder}/{_name()}", address)
        try:
            if await _opened(process):
                wait_s = RETRY_S
                await process.wait()
            else:
                log.warning("%s has no way to %s: %s", folder, address, await _trouble(name, process))
        finally:
            await _ended(process)
        await asyncio.sleep(wait_s)
        wait_s = min(2 * wait_s, RETRY_MAX_S)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """By its own will when it is told that nobody needs it, so that its socket goes too; else by force."""
    if process.returncode is not None:
        return
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(2.0):
            await process.wait()
    except (TimeoutError, asyncio.CancelledError) as stopped:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        if isinstance(stopped, asyncio.CancelledError):
            raise
