"""Dev environments on a node: shells on real terminals that outlive whoever looks at them, ports, idleness, walls."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from groundplane.domain import dev
from groundplane.domain.dev import Wish
from groundplane.domain.isolation import JobIsolation
from groundplane.domain.run import EndReason
from groundplane.errors import Unavailable

PATIENCE_S = 90.0


class Screen:
    """One who attached: what they saw so far, and how it ended."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._frames = stream, dev.Frames()
        self.seen, self.status = b"", None

    async def send(self, frame: bytes) -> None:
        await self._stream.write(frame)

    async def type(self, text: str) -> None:
        await self._stream.write(dev.frame(dev.DATA, text.encode()))

    async def resize(self, rows: int, columns: int) -> None:
        await self._stream.write(dev.frame(dev.RESIZE, json.dumps([rows, columns]).encode()))

    async def until(self, words: bytes) -> bytes:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                while words not in self.seen and await self._more():
                    pass
        assert words in self.seen, self.seen
        return self.seen

    async def over(self) -> int | None:
        async with asyncio.timeout(PATIENCE_S):
            while await self._more():
                pass
        return self.status

    async def leave(self) -> None:
        await self._stream.close()

    async def _more(self) -> bool:
        data = await self._stream.read(2**16)
        for kind, payload in self._frames.feed(data):
            if kind == dev.DATA:
                self.seen += payload
            elif kind == dev.OVER:
                self.status = int(payload)
        return bool(data)


Attach = Callable[..., Awaitable[Screen]]


@pytest.fixture
async def attach() -> AsyncIterator[Attach]:
    """Attaches to a node's environment; everybody lets go at the end."""
    opened: list[Screen] = []

    async def open_one(node: Any, wish: Wish | None = None, attempt_id: str = "att-1") -> Screen:
        opened.append(Screen(await node.executor.open_stream(attempt_id)))
        await opened[-1].send(dev.opening(wish or Wish()))
        return opened[-1]

    yield open_one
    for screen in opened:
        await screen.leave()


async def open_dev(node: Any, kind: str = "shell", attempt_id: str = "att-1", **order: Any) -> None:
    order = {"env": {"PS1": "$ ", "SHELL": "/bin/sh"}, **order}
    await node.start("unused", attempt_id, dev=kind, **order)
    await node.said(b"dev environment ready", attempt_id)


async def test_a_shell_has_the_jobs_environment_and_ends_with_its_status(node: Any, attach: Attach) -> None:
    await open_dev(node, env={"COLOUR": "blue", "SHELL": "/bin/sh"})
    screen = await attach(node, Wish(rows=33, columns=101))
    await screen.type("echo $COLOUR-$GROUND_RUN_ID; stty size; pwd; tty; exit 7\n")
    assert await screen.over() == 7
    assert b"blue-run-1" in screen.seen and b"33 101" in screen.seen and b"/dev/pts/" in screen.seen
    assert str(node.folder() / "work").encode() in screen.seen
    assert (await node.see()).state == "running", "the environment outlives its shells"


async def test_letting_go_leaves_the_shell_and_the_next_attach_finds_it(node: Any, attach: Attach) -> None:
    await open_dev(node)
    screen = await attach(node)
    await screen.type("kept=yes; echo on-$((40+2)); sleep 300 & echo\n")
    await screen.until(b"on-42")
    await screen.leave()
    again = await attach(node)
    await again.until(b"on-42")
    await again.type("kill -0 $! && echo still-$kept-$((1+1))\n")
    await again.until(b"still-yes-2")


async def test_several_attach_to_one_session_and_another_name_is_another_shell(node: Any, attach: Attach) -> None:
    await open_dev(node)
    first, second, other = [await attach(node, Wish(session=name)) for name in ("main", "main", "own")]
    await first.type("echo from-$((40+2)); mine=1\n")
    await second.until(b"from-42")
    await other.type("echo none-${mine:-of-mine}\n")
    assert b"from-42" not in await other.until(b"none-of-mine")
    await second.type("exit 3\n")
    assert [await first.over(), await second.over()] == [3, 3]
    await other.type("exit\n")
    assert await other.over() == 0


async def test_interrupts_and_new_sizes_reach_what_runs_in_the_terminal(node: Any, attach: Attach) -> None:
    await open_dev(node)
    screen = await attach(node)
    # A shell of its own says go and becomes the sleep: what is interrupted is never a shell between two commands.
    await screen.type("sh -c 'echo go-$((1+1)); exec sleep 300'\n")
    await screen.until(b"go-2")
    await screen.type("\x03")
    await screen.resize(50, 120)
    # A terminal drops what was typed ahead of an interrupt that is still on its way.
    await screen.until(b"^C")
    await screen.type("\n" * 3 + "stty size\n")
    await screen.until(b"50 120")


async def test_a_port_inside_is_reached_and_one_where_nobody_listens_ends(node: Any, attach: Attach) -> None:
    await open_dev(node)

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.read()).upper())
        writer.close()

    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    screen = await attach(node, Wish(kind="tcp", port=port))
    await screen.type("hello " * 50_000)
    await screen.send(dev.frame(dev.END, b""))
    assert await screen.over() == 0
    assert screen.seen == b"HELLO " * 50_000
    silent = await attach(node, Wish(kind="tcp", port=port))
    await silent.send(dev.frame(dev.END, b""))
    assert (await silent.over(), silent.seen) == (0, b""), "the end arrives though nothing came before it"
    server.close()
    await server.wait_closed()
    nobody = await attach(node, Wish(kind="tcp", port=port))
    assert await nobody.over() is None and nobody.seen == b""
    assert (await node.see()).state == "running"


async def test_nonsense_on_the_socket_hurts_nobody_else(node: Any, attach: Attach) -> None:
    await open_dev(node)
    screen = await attach(node)
    for words in (b"GET / HTTP/1.1\r\n\r\n", dev.frame(b"o", b"no json"), dev.frame(b"o", b'{"kind": "moon"}')):
        stream = await node.executor.open_stream("att-1")
        await stream.write(words)
        async with asyncio.timeout(PATIENCE_S):
            assert await stream.read(10) == b""
        await stream.close()
    await screen.type("echo alive-$((1+1))\n")
    await screen.until(b"alive-2")


async def test_an_idle_environment_stops_and_one_where_somebody_types_does_not(node_with: Any, attach: Attach) -> None:
    node = node_with(sample_period_s=0.1)
    await open_dev(node, idle_limit_s=1.5)
    screen = await attach(node)
    typed_until = time.monotonic() + 3.0
    while time.monotonic() < typed_until:
        await screen.type("\n")
        await asyncio.sleep(0.2)
    assert (await node.see()).state == "running"
    seen = await node.ended()
    assert seen.end_reason is EndReason.IDLE
    assert (node.folder() / "work").is_dir(), "its files are kept"
    assert node.processes() == []
    with pytest.raises(Unavailable):
        await node.executor.open_stream("att-1")


async def test_stopping_ends_every_shell_and_what_ran_in_it(node: Any, attach: Attach) -> None:
    await open_dev(node)
    screen = await attach(node)
    await screen.type("sleep 300 & setsid sleep 301 & echo begun-$((1+1))\n")
    await screen.until(b"begun-2")
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    assert (await node.ended()).end_reason is EndReason.STOPPED_BY_USER
    assert node.processes() == []


async def test_jupyter_that_is_not_installed_says_so(node: Any, attach: Attach) -> None:
    await node.start("unused", dev="jupyter", env={"PATH": "/usr/bin:/bin"})
    seen = await node.ended()
    assert seen.end_reason is EndReason.COMMAND_NOT_FOUND
    assert b"jupyter is not installed in this environment" in node.log()


async def test_jupyter_listens_on_loopback_with_a_token_that_no_process_list_shows(
    node: Any, attach: Attach, tmp_path: Path
) -> None:
    """A stand-in with Jupyter's options: what it was told is what counts here."""
    program = tmp_path / "bin" / "jupyter"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nfor word in "$@"; do case $word in --ServerApp.port=*) port=${word#*=};; esac; done\n'
        'echo "said: $*; token of ${#JUPYTER_TOKEN} letters"\n'
        'exec python3 -m http.server --bind 127.0.0.1 "$port"\n'
    )
    program.chmod(0o755)
    await open_dev(node, "jupyter", env={"PATH": f"{program.parent}:/usr/bin:/bin"})
    screen = await attach(node, Wish(kind="info"))
    await screen.over()
    about = json.loads(screen.seen)["jupyter"]
    log = (await node.said(b"said: ")).decode()
    assert "--ServerApp.ip=127.0.0.1" in log and f"--ServerApp.port={about['port']}" in log
    assert len(about["token"]) >= 24 and about["token"] not in log

    async def answers() -> bytes:
        page = await attach(node, Wish(kind="tcp", port=about["port"]))
        with suppress(Unavailable):  # nobody listens yet
            await page.type("GET / HTTP/1.0\r\n\r\n")
            await page.over()
        return page.seen

    deadline = time.monotonic() + PATIENCE_S
    while not (seen := await answers()).startswith(b"HTTP/1.0 200"):
        assert time.monotonic() < deadline, seen
        await asyncio.sleep(0.1)


@pytest.mark.needs("root")
@pytest.mark.parametrize("mode", ["user", pytest.param("bubblewrap", marks=pytest.mark.needs("bubblewrap"))])
async def test_behind_walls_the_shell_is_the_jobs_user(node: Any, attach: Attach, mode: str) -> None:
    await open_dev(node, isolation=JobIsolation(mode=mode))
    screen = await attach(node)
    await screen.type("id -u; exit\n")
    assert await screen.over() == 0, (screen.seen, node.log())
    uid = node.state()["uid"]
    assert uid >= 710_000 and str(uid).encode() in screen.seen
    mode_bits = (node.folder() / "work" / ".ground" / "attach").stat().st_mode
    assert stat.S_ISSOCK(mode_bits) and mode_bits & 0o077 == 0


@pytest.mark.needs("root")
async def test_a_job_cant_lead_us_to_a_socket_that_is_not_its_own(node: Any, attach: Attach, tmp_path: Path) -> None:
    await open_dev(node, isolation=JobIsolation(mode="user"))
    place = node.folder() / "work" / ".ground" / "attach"
    place.unlink()
    place.symlink_to(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "s"))
        other.listen()
        with pytest.raises(Unavailable, match="user 0 answers where the job's user"):
            await node.executor.open_stream("att-1")
