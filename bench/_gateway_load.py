"""A load generator for one HTTP/1.1 server: raw protocol, closed loop, or one round of streams.

    python bench/_gateway_load.py answers PORT CONNECTIONS SECONDS
    python bench/_gateway_load.py varied PORT CONNECTIONS SECONDS      every head with a trace of its own
    python bench/_gateway_load.py streams PORT STREAMS

Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from typing import cast

import uvloop

SECRET = "gp-bench-secret"


def request(stream: bool, trace: str = "") -> bytes:
    body = {"model": "bench", "messages": [{"role": "user", "content": "x" * 80}], "max_tokens": 200}
    text = json.dumps(body | ({"stream": True} if stream else {}), separators=(",", ":"))
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {SECRET}\r\n"
        f"content-type: application/json\r\n{trace}content-length: {len(text)}\r\n\r\n{text}"
    ).encode()


class Caller(asyncio.Protocol):
    """Sends the next request when the last answer is complete."""

    def __init__(self, latencies_s: list[float], varied: bool = False) -> None:
        self.varied = varied
        self.latencies_s = latencies_s
        self.request = request(stream=False)
        self.buffer = b""
        self.stopped = False
        self.failed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:

        self.transport = cast(asyncio.Transport, transport)
        self.ask()

    def ask(self) -> None:
        text = self.request
        if self.varied:
            text = request(
                stream=False, trace=f"traceparent: 00-{random.getrandbits(128):032x}-00f067aa0ba902b7-01\r\n"
            )
        self.asked_at = time.perf_counter()
        self.transport.write(text)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = int(self.buffer[:end].lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(self.buffer) < end + 4 + length:
            return
        self.failed = self.failed or not self.buffer.startswith(b"HTTP/1.1 200")
        self.buffer = b""
        self.latencies_s.append(time.perf_counter() - self.asked_at)
        if self.stopped:
            self.transport.close()
        else:
            self.ask()


async def answers(port: int, connections: int, seconds: float, varied: bool) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    latencies_s: list[float] = []
    callers = [
        (await loop.create_connection(lambda: Caller(latencies_s, varied), "127.0.0.1", port))[1]
        for _ in range(connections)
    ]
    began = time.perf_counter()
    latencies_s.clear()
    await asyncio.sleep(seconds)
    count, took_s = len(latencies_s), time.perf_counter() - began
    for caller in callers:
        caller.stopped = True
    await asyncio.sleep(0.1)
    ranked = statistics.quantiles(latencies_s[:count], n=100)
    return {
        "requests": len(latencies_s),
        "per_s": count / took_s,
        "p50_ms": ranked[49] * 1000,
        "p99_ms": ranked[98] * 1000,
        "failed": any(caller.failed for caller in callers),
    }


async def one_stream(port: int) -> int:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(stream=True))
    text = await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    return text.count(b"data: ") if b"[DONE]" in text else 0


async def streams(port: int, count: int) -> dict[str, object]:
    frames = await asyncio.gather(*(one_stream(port) for _ in range(count)))
    return {"frames": sum(frames), "failed": 0 in frames}


def main() -> None:
    kind, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        measured = kind in {"answers", "varied"}
        work = answers(port, count, float(sys.argv[4]), kind == "varied") if measured else streams(port, count)
        print(json.dumps(runner.run(work)))


if __name__ == "__main__":
    main()
