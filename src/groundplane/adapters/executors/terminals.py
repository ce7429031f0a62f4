"""Ways into dev environments: a stream of bytes to an attempt's host, on this machine or over SSH."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from groundplane.adapters.executors.channels import DirectChannel, SshChannel
from groundplane.domain.dev import SshPlace
from groundplane.errors import NotFound, Unavailable
from groundplane.runner.dev import connect

# What is started on the node expands the home folder as the desk's own start does.
_ATTACH = (
    "import os,sys;r,p,f=[os.path.expanduser(a) for a in sys.argv[1:4]];"
    "os.execv(sys.executable,[sys.executable,'-I','-S',p,'--attach',f])"
)


class Stream:
    """Bytes both ways; `close` lets go of it, and what runs there goes on."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        process: asyncio.subprocess.Process | None = None,
    ) -> None:
        self._reader, self._writer, self._process = reader, writer, process

    async def read(self, limit_bytes: int) -> bytes:
        with contextlib.suppress(OSError):
            return await self._reader.read(limit_bytes)
        return b""

    async def write(self, data: bytes) -> None:
        """Unavailable when nobody takes it any more."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise Unavailable(f"the connection to the run broke off: {error}", "attach again") from error

    async def close(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)
            await self._process.wait()


class TerminalCalls(ABC):
    """Mixed into the executor over nodes."""

    async def open_stream(self, attempt_id: str, rank: int = 0) -> Stream:
        where = self._member(attempt_id, rank)
        if where is None:
            raise NotFound(f"{attempt_id} runs on no node now", "ground ps shows where runs are")
        link, member = where
        if isinstance(link.channel, DirectChannel):
            return await _open_here(link.channel.desk.folder_of(member))
        await link.channel.call("ping")  # the runner is on the node after that
        return await _open_there(link.channel, member)

    async def ssh_place(self, attempt_id: str, rank: int = 0) -> SshPlace | None:
        where = self._member(attempt_id, rank)
        if where is None:
            raise NotFound(f"{attempt_id} runs on no node now", "ground ps shows where runs are")
        link, member = where
        if not isinstance(link.channel, SshChannel):
            return None
        return SshPlace(
            node=link.name, options=link.channel.command, folder=f"{link.channel.desk[0]}/attempts/{member}/work"
        )

    @abstractmethod
    def _member(self, attempt_id: str, rank: int) -> tuple[Any, str] | None: ...


class NoTerminals:
    """The same for a pool that runs nothing."""

    async def open_stream(self, attempt_id: str, rank: int = 0) -> Stream:
        raise Unavailable(f"{attempt_id} is simulated: there is nothing to attach to", "choose a real pool")

    async def ssh_place(self, attempt_id: str, rank: int = 0) -> SshPlace | None:
        return None


async def _open_here(folder: Path) -> Stream:
    try:
        link = await asyncio.to_thread(connect, folder)
    except OSError as error:
        raise Unavailable(f"{folder.name} takes no connection: {error.strerror}", "has it started?") from error
    return Stream(*await asyncio.open_unix_connection(sock=link))


async def _open_there(channel: SshChannel, member: str) -> Stream:
    words = (channel.root, channel.program, f"{channel.desk[0]}/attempts/{member}")
    remote = f"exec {channel.python} -I -S -c {shlex.quote(_ATTACH)} {shlex.join(words)}"
    process = await asyncio.create_subprocess_exec(
        *channel.command,
        remote,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdin is not None and process.stdout is not None
    return Stream(process.stdout, process.stdin, process)
