"""A load generator for one HTTP/1.1 server: raw protocol on sockets kept open. Prints one JSON object.

python bench/_gateway_load.py answers PORT --connections 64 --seconds 1.2     closed loop; --varied: each head new
python bench/_gateway_load.py paced PORT --rate 1000 --seconds 5              open loop: timed from when it was due
python bench/_gateway_load.py streams PORT --streams 50                       all at once, each read to its end
python bench/_gateway_load.py leave PORT --count 100 --upstream PORT          how soon the upstream hears of it
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import os
import random
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import cast

import uvloop

SECRET = "gp-bench-secret"
_CONNECTIONS_MAX = 512


def request(stream: bool, lines: str = "", secret: str = SECRET) -> bytes:
    body = {"model": "bench", "messages": [{"role": "user", "content": "x" * 80}], "max_tokens": 200}
    text = json.dumps(body | ({"stream": True} if stream else {}), separators=(",", ":"))
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {secret}\r\n"
        f"content-type: application/json\r\n{lines}content-length: {len(text)}\r\n\r\n{text}"
    ).encode()


class Caller(asyncio.Protocol):
    """One connection: asks when it is told to, and says when the answer is there."""

    def __init__(self, answered: Callable[[Caller, int], None]) -> None:
        self.answered = answered
        self.buffer = b""
        self.due_s = 0.0
        self.missing = -1
        self.chunked = False
        self.status = 0
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None

    def ask(self, text: bytes, due_s: float) -> None:
        self.due_s = due_s
        assert self.transport is not None, "the proxy closed a connection"
        self.transport.write(text)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.missing < 0 and not self.chunked and not self._head():
            return
        if self.chunked:
            if not self.buffer.endswith(b"0\r\n\r\n"):
                return
        elif len(self.buffer) < self.missing:
            return
        self.buffer, self.missing, self.chunked = b"", -1, False
        self.answered(self, self.status)

    def _head(self) -> bool:
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = self.buffer[:end].lower()
        self.status = int(head[9:12])
        self.chunked = b"transfer-encoding: chunked" in head
        if not self.chunked:
            self.missing = end + 4 + int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
        return True


async def connect(port: int, answered: Callable[[Caller, int], None]) -> Caller:
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(lambda: Caller(answered), "127.0.0.1", port))[1]


def figures(latencies_s: list[float], took_s: float, failed: int) -> dict[str, object]:
    ranked = statistics.quantiles(latencies_s, n=100) if len(latencies_s) > 1 else [0.0] * 99
    return {
        "requests": len(latencies_s),
        "per_s": len(latencies_s) / took_s,
        "p50_ms": ranked[49] * 1000,
        "p99_ms": ranked[98] * 1000,
        "failed": failed,
    }


async def answers(options: argparse.Namespace) -> dict[str, object]:
    """Closed loop: each connection asks again when its answer is there. `--requests` bounds their number."""
    latencies_s: list[float] = []
    failed = 0
    stopped = asyncio.Event()
    plain = request(False, options.lines, options.secret)

    def text() -> bytes:
        if not options.varied:
            return plain
        trace = f"traceparent: 00-{random.getrandbits(128):032x}-00f067aa0ba902b7-01\r\n"
        return request(False, options.lines + trace, options.secret)

    def answered(caller: Caller, status: int) -> None:
        nonlocal failed
        now = time.perf_counter()
        latencies_s.append(now - caller.due_s)
        failed += status not in options.good
        if options.requests and len(latencies_s) >= options.requests:
            stopped.set()
        if not stopped.is_set():
            caller.ask(text(), now)

    callers = [await connect(options.port, answered) for _ in range(options.connections)]
    began = time.perf_counter()
    for caller in callers:
        caller.ask(text(), time.perf_counter())
    try:
        await asyncio.wait_for(stopped.wait(), options.seconds)
    except TimeoutError:
        stopped.set()
    took_s = time.perf_counter() - began
    told = figures(latencies_s, took_s, failed)
    await asyncio.sleep(0.1)
    return told | {"requests": len(latencies_s)}


def _open_one(idle: deque[Caller]) -> Caller | None:
    """The one used last. What was opened while requests piled up may have been closed since, as idle."""
    while idle:
        caller = idle.pop()
        if caller.transport is not None:
            return caller
    return None


class _Spec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "first_s", "first_ns")]


async def paced(options: argparse.Namespace) -> dict[str, object]:
    """Open loop: a request falls due every 1 / rate, whether or not others are answered; its time counts from then.

    A kernel timer, because the loop's own have a millisecond's resolution.
    """
    loop = asyncio.get_running_loop()
    latencies_s: list[float] = []
    idle: deque[Caller] = deque()
    waiting: deque[float] = deque()
    text = request(False, options.lines, options.secret)
    failed = opened = early = 0

    def answered(caller: Caller, status: int) -> None:
        nonlocal failed, early
        if caller.due_s >= began + options.settle:
            latencies_s.append(time.perf_counter() - caller.due_s)
        else:
            early += 1
        failed += status not in options.good
        if waiting:
            caller.ask(text, waiting.popleft())
        else:
            idle.append(caller)

    async def one_more() -> None:
        caller = await connect(options.port, answered)
        if waiting:
            caller.ask(text, waiting.popleft())
        else:
            idle.append(caller)

    for _ in range(options.connections):
        idle.append(await connect(options.port, answered))
    interval_ns = int(1e9 / options.rate)
    libc = ctypes.CDLL(None, use_errno=True)
    timer = libc.timerfd_create(1, os.O_NONBLOCK | os.O_CLOEXEC)
    spec = _Spec(*divmod(interval_ns, 10**9), *divmod(interval_ns, 10**9))
    began = time.perf_counter()
    libc.timerfd_settime(timer, 0, ctypes.byref(spec), None)
    due = 0
    tasks: set[asyncio.Task[None]] = set()

    def tick() -> None:
        nonlocal due, opened
        for _ in range(int.from_bytes(os.read(timer, 8), "little")):
            due += 1
            due_s = began + due * interval_ns / 1e9
            caller = _open_one(idle)
            if caller is not None:
                caller.ask(text, due_s)
                continue
            waiting.append(due_s)
            if options.connections + opened < _CONNECTIONS_MAX:
                opened += 1
                task = loop.create_task(one_more())
                tasks.add(task)
                task.add_done_callback(tasks.discard)

    loop.add_reader(timer, tick)
    await asyncio.sleep(options.settle + options.seconds)
    loop.remove_reader(timer)
    os.close(timer)
    took_s = time.perf_counter() - began - options.settle
    await asyncio.sleep(0.3)
    unanswered = due - early - len(latencies_s)
    # What is overdue counts with the time it has waited so far, or overload would look like speed.
    latencies_s += [time.perf_counter() - due_s for due_s in waiting]
    return figures(latencies_s, took_s, failed) | {"due": due, "unanswered": unanswered, "connections": opened}


async def one_stream(options: argparse.Namespace, first_s: list[float], opened: asyncio.Semaphore) -> int:
    async with opened:
        reader, writer = await asyncio.open_connection("127.0.0.1", options.port, limit=2**20)
    began = time.perf_counter()
    writer.write(request(True, options.lines, options.secret))
    try:
        pieces = [await reader.readuntil(b"data: ")]
    except asyncio.IncompleteReadError:
        return 0
    first_s.append(time.perf_counter() - began)
    while not pieces[-1].endswith(b"0\r\n\r\n"):
        piece = await reader.read(65_536)
        if not piece:
            return 0
        pieces.append(piece)
    writer.close()
    text = b"".join(pieces)
    return text.count(b"data: ") if b"[DONE]" in text else 0


async def streams(options: argparse.Namespace) -> dict[str, object]:
    first_s: list[float] = []
    gate = asyncio.Semaphore(200)
    frames = await asyncio.gather(*(one_stream(options, first_s, gate) for _ in range(options.streams)))
    whole = sum(count > 0 for count in frames)
    ranked = statistics.quantiles(first_s, n=100) if len(first_s) > 1 else [0.0] * 99
    return {
        "frames": sum(frames),
        "whole": whole,
        "failed": options.streams - whole,
        "first_p50_ms": ranked[49] * 1000,
        "first_p99_ms": ranked[98] * 1000,
    }


async def leave(options: argparse.Namespace) -> dict[str, object]:
    """Reads a stream's first frame and hangs up; the upstream says when its connection broke."""
    took_s = []
    for _ in range(options.count):
        reader, writer = await asyncio.open_connection("127.0.0.1", options.port)
        writer.write(request(True, options.lines, options.secret))
        await reader.readuntil(b"data: ")
        left_at = time.monotonic()
        writer.close()
        lost_at = await _lost_at(options.upstream, left_at)
        took_s.append(lost_at - left_at)
    ranked = statistics.quantiles(took_s, n=100)
    return {"p50_ms": ranked[49] * 1000, "p99_ms": ranked[98] * 1000, "max_ms": max(took_s) * 1000, "failed": 0}


async def _lost_at(upstream: int, since: float) -> float:
    """The upstream's word on the newest stream it lost; both clocks are the machine's."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        reader, writer = await asyncio.open_connection("127.0.0.1", upstream)
        writer.write(b"GET /lost HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        lost_at = float(await reader.readexactly(length))
        writer.close()
        if lost_at >= since:
            return lost_at
        await asyncio.sleep(0.005)
    return since + 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=("answers", "paced", "streams", "leave"))
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=1.2)
    parser.add_argument("--requests", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1000)
    parser.add_argument("--settle", type=float, default=0.0, help="seconds of paced requests that are not counted")
    parser.add_argument("--streams", type=int, default=50)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--upstream", type=int, default=0)
    parser.add_argument("--varied", action="store_true")
    parser.add_argument("--secret", default=SECRET)
    parser.add_argument("--header", action="append", default=[])
    parser.add_argument("--good", type=int, action="append", help="statuses that are no failure; 200 unless given")
    options = parser.parse_args()
    options.good = set(options.good or (200,))
    options.lines = "".join(f"{line}\r\n" for line in options.header)
    works = {"answers": answers, "paced": paced, "streams": streams, "leave": leave}
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(works[options.kind](options))))


if __name__ == "__main__":
    main()
