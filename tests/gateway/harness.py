"""Real sockets around the gateway: an upstream that can misbehave, a raw client, and ways to run the gateway."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from groundplane.adapters.snapshot_file import SnapshotFile
from groundplane.adapters.usage_log import FolderUsageLog
from groundplane.domain.ledger import UsageRecord
from groundplane.domain.serving.limits import Limit, Measure, Share
from groundplane.domain.serving.snapshot import Route, Snapshot, SnapshotKey, Target, encode
from groundplane.domain.spec import TokenPrice
from groundplane.gateway.server import Gateway
from groundplane.gateway.state import GatewayState, Options
from groundplane.gateway.wal import WriteAheadLog

SECRET = "gp-caller-secret"
PRICE = TokenPrice(prompt_microusd_per_million=1_000_000, completion_microusd_per_million=2_000_000)
"""1 micro-dollar per prompt token, 2 per completion token."""


# ---------------------------------------------------------------- upstream


@dataclass
class Seen:
    """A request as it reached the upstream."""

    path: str
    headers: dict[str, str]
    body: bytes
    aborted_at: float | None = None


class Exchange:
    """One request in the mock upstream's hands: answer it well or badly."""

    def __init__(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen = seen
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def json(self, value: object, status: int = 200) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        await self.send(head.encode() + body)

    async def begin_stream(self) -> None:
        await self.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    def cut(self) -> None:
        self.writer.transport.abort()


Behaviour = Callable[[Exchange], Awaitable[None]]


class MockUpstream:
    """An OpenAI-like server on a free loopback port. `behave` decides each answer; `seen` keeps each request."""

    def __init__(self, behave: Behaviour, certificate: Path | None = None) -> None:
        """`certificate`: with its key, where the server is to speak TLS."""
        self._certificate = certificate
        self.behave = behave
        self.seen: list[Seen] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.base_url = ""

    async def start(self) -> None:
        context = None
        if self._certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self._certificate)
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context)
        self.base_url = f"http{'s' if context else ''}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *lines = head.decode("latin-1").split("\r\n")
                headers = {n.lower(): v.strip() for n, _, v in (one.partition(":") for one in lines if one)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                seen = Seen(line.split(" ")[1], headers, body)
                self.seen.append(seen)
                await self.behave(Exchange(seen, reader, writer))
        except (asyncio.IncompleteReadError, ConnectionError):
            if self.seen:
                self.seen[-1].aborted_at = self.seen[-1].aborted_at or time.monotonic()
        except asyncio.CancelledError:
            pass
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def usage(prompt: int = 7, completion: int = 5, cached: int = 0) -> dict[str, object]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def completion(text: str = "hello there", **used: int) -> dict[str, object]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "tiny",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "unknown_field": {"kept": [1, 2.50, "ü"]},
        "usage": usage(**used),
    }


def event(content: str, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": None}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": [choice], **more}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def usage_event(**used: int) -> bytes:
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": []}
    return b"data: " + json.dumps({**chunk, "usage": usage(**used)}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


async def well_behaved(exchange: Exchange) -> None:
    """Streams five words or answers whole, with usage as the request asks for it."""
    request = json.loads(exchange.seen.body)
    if not request.get("stream"):
        await exchange.json(completion())
        return
    await exchange.begin_stream()
    for word in ("one ", "two ", "three ", "four ", "five"):
        await exchange.chunk(event(word))
    if (request.get("stream_options") or {}).get("include_usage"):
        await exchange.chunk(usage_event())
    await exchange.chunk(DONE)
    await exchange.end()


# ---------------------------------------------------------------- gateway


def key(secret: str = SECRET, **more: object) -> SnapshotKey:
    values: dict[str, object] = {"id": "key-1", "project": "vision", "owner": "ana", "role": "caller", **more}
    return SnapshotKey(secret_sha256=hashlib.sha256(secret.encode()).hexdigest(), **values)  # type: ignore[arg-type]


def route(model: str, *base_urls: str, project: str = "vision", **more: object) -> Route:
    targets = tuple(
        Target(
            endpoint=model,
            revision=1,
            base_url=url,
            **{"upstream_model": model, "price": PRICE, **more},  # type: ignore[arg-type]
        )
        for url in base_urls
    )
    return Route(model=model, project=project, targets=targets, created_at=1_700_000_000)


@dataclass
class Bench:
    """A running gateway with its files."""

    folder: Path
    port: int
    gateway: Gateway | None = None
    version: int = 0
    process: subprocess.Popen[str] | None = None
    usage_log: FolderUsageLog = field(init=False)

    def __post_init__(self) -> None:
        self.usage_log = FolderUsageLog(self.folder / "wal")

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def records(self) -> list[UsageRecord]:
        return await self.usage_log.read(100_000)

    async def publish(self, **values: object) -> None:
        self.version += 1
        await write_snapshot(self.folder, self.version, **values)

    async def until(self, condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
        await poll(condition, deadline_s)


async def poll(condition: Callable[[], bool], deadline_s: float = 60.0) -> None:
    """Waits until the condition holds; fails when the deadline passes first."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        await asyncio.sleep(0.005)


async def write_snapshot(folder: Path, version: int, **values: object) -> None:
    values = {"budgets": {"vision": 10**12}, **values}
    snapshot = Snapshot(version=version, compiled_at=time.time(), **values)  # type: ignore[arg-type]
    await SnapshotFile(folder / "snapshot.json").publish(encode(snapshot))


def purse(state: GatewayState, project: str = "vision") -> Share:
    """The gateway's share of a project's budget."""
    return state._shares[Limit("project", project, Measure.BUDGET, 0).id]


def left(state: GatewayState, project: str = "vision") -> int:
    """Micro-dollars of a project's budget that can be reserved now."""
    share = purse(state, project)
    return share.limit.value - share.held + share.free


@contextlib.asynccontextmanager
async def running(
    folder: Path,
    options: Options | None = None,
    *,
    log: dict[str, int] | None = None,
    listener: socket.socket | None = None,
    **snapshot: object,
) -> AsyncIterator[Bench]:
    """The gateway in this process. Without snapshot values it starts without a snapshot."""
    if snapshot:
        await write_snapshot(folder, 1, **snapshot)
    wal = WriteAheadLog(folder / "wal", "gw", **{"free_min_bytes": 0, **(log or {})})
    gateway = Gateway(
        snapshot_path=folder / "snapshot.json",
        log=wal,
        gateway_id="gw",
        options=options or Options(drain_s=0.2),
        keys_folder=folder / "provider-keys",
    )
    port = await gateway.start("127.0.0.1", 0, listener)
    try:
        yield Bench(folder, port, gateway, version=1)
    finally:
        await gateway.stop()


def start_process(folder: Path, *arguments: str) -> Bench:
    """The gateway as it runs in production. Returns once it listens."""
    command = [sys.executable, "-m", "groundplane.gateway", "--port", "0", "--gateway-id", "gw"]
    command += ["--snapshot", str(folder / "snapshot.json"), "--wal", str(folder / "wal"), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.search(r":(\d+)$", line.strip())
    if found is None:
        _, errors = process.communicate(timeout=60)
        raise AssertionError(f"the gateway did not start: {line} {errors}")
    return Bench(folder, int(found[1]), process=process, version=1)


def stop_process(bench: Bench) -> None:
    process = bench.process
    assert process is not None
    if process.poll() is None:
        process.kill()
    process.communicate(timeout=60)


# ---------------------------------------------------------------- raw client


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    whole: bool

    @property
    def json(self) -> dict[str, object]:
        value = json.loads(self.body)
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> dict[str, str]:
        value = self.json["error"]
        assert isinstance(value, dict)
        return value


class RawClient:
    """Sends exactly the bytes it is given, and reads answers as RFC 9112 says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, port: int) -> RawClient:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**26))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        block = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *lines = block.split("\r\n")
        return int(line.split(" ")[1]), {n.lower(): v.strip() for n, _, v in (x.partition(":") for x in lines if x)}

    async def answer(self) -> Answer:
        status, headers = await self.head()
        if headers.get("transfer-encoding") != "chunked":
            length = int(headers["content-length"])
            body = await self.reader.read(length) if length else b""
            while len(body) < length:
                more = await self.reader.read(length - len(body))
                if not more:
                    break
                body += more
            return Answer(status, headers, body, len(body) == length)
        pieces = []
        while True:
            try:
                size = int((await self.reader.readuntil(b"\r\n"))[:-2], 16)
                pieces.append((await self.reader.readexactly(size + 2))[:-2])
            except (asyncio.IncompleteReadError, ConnectionResetError):
                return Answer(status, headers, b"".join(pieces), False)
            if size == 0:
                return Answer(status, headers, b"".join(pieces), True)

    async def closed(self, deadline_s: float = 30.0) -> bool:
        """Whether the gateway closes the connection, reading whatever comes before."""
        try:
            async with asyncio.timeout(deadline_s):
                while await self.reader.read(65_536):
                    pass
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True
        return True

    async def close(self) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


def post(body: object, *, path: str = "/v1/chat/completions", secret: str | None = SECRET, headers: str = "") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    auth = f"authorization: Bearer {secret}\r\n" if secret is not None else ""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{auth}{headers}content-length: {len(data)}\r\n\r\n"
    return head.encode() + data


def get(path: str, secret: str | None = SECRET) -> bytes:
    auth = f"authorization: Bearer {secret}\r\n" if secret is not None else ""
    return f"GET {path} HTTP/1.1\r\nhost: x\r\n{auth}\r\n".encode()


def chat(stream: bool = False, **more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **more}


async def ask(port: int, data: bytes) -> Answer:
    """One request on one connection."""
    client = await RawClient.open(port)
    try:
        await client.send(data)
        async with asyncio.timeout(20):
            return await client.answer()
    finally:
        await client.close()


# ---------------------------------------------------------------- workers


@dataclass
class Workers:
    """Several gateways on one port, as the supervisor starts them: the sockets outlive the processes."""

    folder: Path
    listeners: list[socket.socket]
    arguments: tuple[str, ...] = ()
    limits_url: str = ""
    processes: list[subprocess.Popen[str]] = field(default_factory=list)
    shared: Path | None = None

    @property
    def port(self) -> int:
        port: int = self.listeners[0].getsockname()[1]
        return port

    def start(self, number: int, turn: str = "") -> None:
        """Starts one worker; returns once it serves. `turn`: `r` for the other of two ids that take turns."""
        listener = self.listeners[number]
        read, write = os.pipe()
        command = [sys.executable, "-m", "groundplane.gateway", "--gateway-id", f"gw-{number}{turn}", "--free-min", "0"]
        command += ["--snapshot", str(self.folder / "snapshot.json"), "--wal", str(self.folder / "wal")]
        command += ["--workers", str(len(self.listeners)), "--shared", str(self.shared or self.folder / "shared")]
        command += ["--fd", str(listener.fileno()), "--report-fd", str(write), *self.arguments]
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            text=True,
            pass_fds=(listener.fileno(), write),
            env={**os.environ, "GROUND_GATEWAY_LIMITS_URL": self.limits_url},
        )
        os.close(write)
        told = os.read(read, 100)
        os.close(read)
        assert b"ready" in told, "the worker did not start"
        self.processes[number : number + 1] = [process]

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            assert process.wait(20) == 0
        for listener in self.listeners:
            listener.close()


def start_workers(
    folder: Path, count: int, *arguments: str, limits_url: str = "", shared: Path | None = None
) -> Workers:
    """`count` gateways on a free port."""
    port, listeners = 0, []
    for _ in range(count):
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(1024)
        listener.setblocking(False)
        port = listener.getsockname()[1]
        listeners.append(listener)
    workers = Workers(folder, listeners, arguments, limits_url, shared=shared)
    for number in range(count):
        workers.start(number)
    return workers
