"""How a node's desk is reached: in this process, or over SSH.

A call ends in one of three ways that must not be mixed up: it is answered; it was never sent (`Unsent`), so nothing has
happened; or it was sent and not answered (`Unanswered`), so it may have happened.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import json
import os
import shlex
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from groundplane.adapters.executors.ssh_words import explain
from groundplane.errors import Conflict, GroundError, InvalidInput, Unavailable
from groundplane.runner.desk import Desk, No

Document = dict[str, Any]
RUNNER = Path(__file__).resolve().parents[2] / "runner"
LINE_LIMIT_BYTES = 64 * 2**20
CHATTER_MAX_BYTES = 2**20
ENDS_S = 1.0
"""How long a login that hung up may take to say with which status."""
NEED, HAVE = b"GROUND need\n", b"GROUND have\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a node may take: to let us in, to answer a plain question; and the longest pause between two tries.

    A connection that is dead without saying so is found out after two times `alive_s`.
    """

    connect_s: float = 10.0
    answer_s: float = 10.0
    ping_s: float = 3.0
    alive_s: int = 4
    retry_max_s: float = 15.0


RETRY_S, FRESH_S = 0.25, 1.0


class Unsent(Unavailable):
    """The node does not answer; it has not heard of this call. `refused` when it answers and lets nobody in."""

    refused = False


class Unanswered(Unavailable):
    """The node was asked and did not answer: it may have done it."""


class Channel(Protocol):
    async def call(self, operation: str, patience_s: float = 0.0, **arguments: Any) -> Document:
        """Asks the desk; `patience_s` where it may take longer than a plain question.

        Raises Unsent, Unanswered, or what the desk says no with.
        """
        ...

    async def close(self) -> None:
        """Lets go of the connection; what runs goes on."""
        ...


class DirectChannel:
    """The desk of this machine, in this process."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    async def call(self, operation: str, patience_s: float = 0.0, **arguments: Any) -> Document:
        try:
            return await asyncio.to_thread(self.desk.handle, operation, arguments)
        except No as no:
            raise _error(no.kind, no.message, no.hint) from no

    async def close(self) -> None:
        """Nothing is held."""


class SshChannel:
    """A desk behind one `ssh` process that is kept: the runner is copied there when its digest is not yet known.

    `command` is ssh with its options and the host; `desk` the arguments of `--serve`. The connection is made at the
    first call; after a failure, calls fail at once while a task of its own tries again.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        desk: Sequence[str],
        root: str,
        python: str = "python3",
        runner: Path = RUNNER,
        patience: Patience | None = None,
        on_connect: Callable[[Document], Awaitable[None]] | None = None,
    ) -> None:
        self._name, self.command, self.desk = name, tuple(command), tuple(desk)
        self.root, self.python, self._runner = root, python, runner
        self._patience = patience or Patience()
        self.on_connect = on_connect
        self._process: asyncio.subprocess.Process | None = None
        self._pending: dict[int, asyncio.Future[Document]] = {}
        self._numbers = itertools.count(1)
        self._connecting = asyncio.Lock()
        self._failure: Unsent | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._retry: asyncio.Task[None] | None = None
        self._closed = False
        self._heard_at = float("-inf")

    @property
    def program(self) -> str:
        """Where the runner's program lies on the node."""
        return f"{self.root}/runner/{_package(self._runner)[1]}/groundplane/runner"

    def leads_where(self, other: SshChannel) -> bool:
        """Whether both reach the same desk in the same way."""
        ours = self.command, self.desk, self.root, self.python
        return ours == (other.command, other.desk, other.root, other.python)

    async def call(self, operation: str, patience_s: float = 0.0, **arguments: Any) -> Document:
        await self._connected()
        if patience_s > self._patience.answer_s and time.monotonic() - self._heard_at > FRESH_S:
            # What may take long, and may not happen twice, is not sent down a line that is dead already.
            try:
                await self._ask("ping", self._patience.ping_s, {})
            except Unanswered as error:
                raise self._unsent(error.message, error.hint) from error
        return await self._ask(operation, max(patience_s, self._patience.answer_s), arguments)

    async def close(self) -> None:
        self._closed = True
        if self._retry is not None:
            self._retry.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._retry
        self._hang_up()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # ---- asking

    async def _ask(self, operation: str, patience_s: float, arguments: Document) -> Document:
        process = self._process
        if process is None or process.stdin is None:
            raise self._unsent("the connection is gone", "it is made anew")
        number = next(self._numbers)
        answer: asyncio.Future[Document] = asyncio.get_running_loop().create_future()
        self._pending[number] = answer
        try:
            process.stdin.write(json.dumps({"id": number, "do": operation, "with": arguments}).encode() + b"\n")
            async with asyncio.timeout(patience_s):
                await process.stdin.drain()
                reply = await answer
        except (TimeoutError, OSError) as error:
            self._hang_up()
            self._give_up(
                self._unsent(f"node {self._name} did not answer within {patience_s:g} s", "it is asked again")
            )
            why = f"node {self._name} did not answer {operation} within {patience_s:g} s"
            raise Unanswered(why, "what runs there goes on; it is asked again") from error
        finally:
            self._pending.pop(number, None)
        self._heard_at = time.monotonic()
        if "no" in reply:
            raise _error(reply["no"]["kind"], reply["no"]["message"], reply["no"]["hint"])
        done: Document = reply["done"]
        return done

    async def _listen(self, process: asyncio.subprocess.Process, noise: asyncio.Task[bytes]) -> None:
        """Hands answers to whoever waits, until the connection ends."""
        assert process.stdout is not None
        strange = b""
        try:
            while line := await process.stdout.readline():
                reply = json.loads(line)
                waiting = self._pending.get(reply["id"])
                if not isinstance(reply.get("no", reply.get("done")), dict):
                    raise TypeError
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            if not isinstance(error, OSError):
                strange = b"ground: what speaks there is not our desk: does the account's login print or ask something?"
        if self._process is process:
            self._process = None
        status = await _ended(process, 0.0 if strange else ENDS_S)
        message, hint, _ = explain(self._name, (strange or await noise).decode(errors="replace"), status)
        for waiting in self._pending.values():
            if not waiting.done():
                waiting.set_exception(Unanswered(f"{message}; it may have done what it was asked", hint))
        self._pending.clear()
        if not self._closed and self._failure is None:
            self._give_up(self._unsent(message, hint))

    # ---- connecting

    async def _connected(self) -> None:
        if self._process is not None:
            return
        if self._failure is not None:
            raise self._unsent(self._failure.message, self._failure.hint, refused=self._failure.refused)
        async with self._connecting:
            if self._process is not None:
                return
            await self._connect()

    def _give_up(self, failure: Unsent) -> Unsent:
        """From now on calls fail at once, until a task of our own has connected again."""
        self._failure = failure
        if not self._closed and (self._retry is None or self._retry.done()):
            self._retry = asyncio.get_running_loop().create_task(self._keep_trying())
        return failure

    async def _keep_trying(self) -> None:
        wait_s = RETRY_S
        while not self._closed and self._process is None:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, self._patience.retry_max_s)
            with contextlib.suppress(Unavailable):
                async with self._connecting:
                    if self._process is None:
                        await self._connect()

    async def _connect(self) -> None:
        """Logs in, copies the runner when it is missing, starts the desk, and hears what it has. Raises Unsent."""
        began = time.monotonic()
        files, digest = _package(self._runner)
        where = [self.root, digest, str(len(files)), *self.desk]
        remote = f"exec {self.python} -I -S -c {shlex.quote(_BOOT)} {shlex.join(where)}"
        process = await asyncio.create_subprocess_exec(
            *self.command,
            remote,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LINE_LIMIT_BYTES,
            start_new_session=True,  # a Ctrl-C at the server's terminal is not for it
        )
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        noise = asyncio.get_running_loop().create_task(_last_words(process.stderr))
        try:
            async with asyncio.timeout(2 * self._patience.connect_s):
                if await _greeting(process.stdout) == NEED:
                    process.stdin.write(files)
                    await process.stdin.drain()
                    await _greeting(process.stdout)
        except asyncio.CancelledError:
            _kill(process)
            await asyncio.wait([noise])
            await process.wait()
            raise
        except (EOFError, TimeoutError, OSError, ValueError) as error:
            status = await _ended(process, ENDS_S if isinstance(error, EOFError) else 0.0)
            said = (await noise).decode(errors="replace")
            if isinstance(error, ValueError):
                said = f"ground: {error}"
            if isinstance(error, TimeoutError):
                said, status = said or "Connection timed out", 255
            raise self._give_up(self._unsent(*explain(self._name, said, status))) from None
        self._process = process
        listener = asyncio.get_running_loop().create_task(self._listen(process, noise))
        self._tasks.add(listener)
        listener.add_done_callback(self._tasks.discard)
        try:
            hello = await self._ask("hello", self._patience.answer_s, {})
            if self.on_connect is not None:
                await self.on_connect({**hello, "connect_s": time.monotonic() - began})
        except GroundError as error:
            self._hang_up()
            raise self._give_up(self._unsent(error.message, error.hint)) from error
        self._failure = None

    def _hang_up(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            _kill(process)

    def _unsent(self, message: str, hint: str, refused: bool = False) -> Unsent:
        error = Unsent(message, hint)
        error.refused = refused
        return error


async def _greeting(stream: asyncio.StreamReader) -> bytes:
    """NEED or HAVE, after whatever the account's login prints, with a newline behind it or without.

    EOFError when it ends, ValueError when it prints without end.
    """
    chatter = 0
    while chatter <= CHATTER_MAX_BYTES:
        try:
            line = await stream.readline()
        except ValueError:  # a line without an end
            break
        if not line:
            raise EOFError
        if line.endswith((NEED, HAVE)):
            return NEED if line.endswith(NEED) else HAVE
        chatter += len(line)
    raise ValueError(f"its login prints over {CHATTER_MAX_BYTES} bytes: print nothing where ssh runs a command")


async def _ended(process: asyncio.subprocess.Process, grace_s: float) -> int:
    """Its status: its own if it ends within the grace, else that of being killed."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(grace_s):
            return await process.wait()
    _kill(process)
    return await process.wait()


def _kill(process: asyncio.subprocess.Process) -> None:
    """Not by its method, which polls first and so takes the exit status from asyncio's own watcher."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def _error(kind: str, message: str, hint: str) -> GroundError:
    kinds: dict[str, type[GroundError]] = {"conflict": Conflict, "invalid-input": InvalidInput}
    return kinds.get(kind, Unavailable)(message, hint)


async def _last_words(stream: asyncio.StreamReader) -> bytes:
    said = b""
    while chunk := await stream.read(4096):
        said = (said + chunk)[-8192:]
    return said


def _package(runner: Path) -> tuple[bytes, str]:
    """The runner's files as one JSON object, and its SHA-256."""
    files = json.dumps({path.name: path.read_text() for path in sorted(runner.glob("*.py"))}, sort_keys=True).encode()
    return files, hashlib.sha256(files).hexdigest()


# Runs on the node before anything of ours is there: makes sure that runner/<digest>/ is whole, then becomes the desk.
_BOOT_TEXT = """
import hashlib, json, os, sys
if sys.version_info < (3, 9):
    sys.exit("ground: python %d.%d is too old; the runner needs 3.9" % sys.version_info[:2])
root, digest, size = os.path.expanduser(sys.argv[1]), sys.argv[2], int(sys.argv[3])
home = os.path.join(root, "runner", digest)
inside = os.path.join("groundplane", "runner")
here = os.path.join(home, inside)
def whole():
    try:
        names = sorted(name for name in os.listdir(here) if name.endswith(".py"))
        texts = {name: open(os.path.join(here, name), encoding="utf-8").read() for name in names}
    except (OSError, ValueError):
        return False
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest() == digest
if not whole():
    os.write(1, b"GROUND need\\n")
    data = b""
    while len(data) < size:
        chunk = os.read(0, size - len(data))
        if not chunk:
            sys.exit("ground: the connection ended while the runner was copied")
        data += chunk
    if hashlib.sha256(data).hexdigest() != digest:
        sys.exit("ground: the copy of the runner was damaged on its way")
    fresh = "%s.%d" % (home, os.getpid())
    os.makedirs(os.path.join(fresh, inside), 0o700)
    for name, text in json.loads(data).items():
        with open(os.path.join(fresh, inside, name), "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    try:
        os.rename(fresh, home)
    except OSError:
        if not whole():
            os.rename(home, fresh + ".damaged")
            os.rename(fresh, home)
os.write(1, b"GROUND have\\n")
os.chdir("/")
desk = [os.path.expanduser(each) for each in sys.argv[4:]]
os.execv(sys.executable, [sys.executable, "-I", "-S", here, "--serve"] + desk)
"""
_BOOT = f"import base64;exec(base64.b64decode('{base64.b64encode(_BOOT_TEXT.encode()).decode()}'))"
