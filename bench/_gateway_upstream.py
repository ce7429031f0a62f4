"""An OpenAI-like upstream that costs next to nothing: fixed answers, or streams of 100 frames, one per 10 ms.

python bench/_gateway_upstream.py PORT
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

FRAMES = 100
FRAME_PERIOD_S = 0.01

_USAGE = {"prompt_tokens": 20, "completion_tokens": 100, "total_tokens": 120}
_BODY = json.dumps(
    {
        "id": "chatcmpl-bench",
        "object": "chat.completion",
        "created": 1,
        "model": "bench",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "word " * 80}, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
).encode()
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


_DELTA = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
_FRAME = _chunk(
    b"data: "
    + json.dumps({**_DELTA, "choices": [{"index": 0, "delta": {"content": "word "}, "finish_reason": None}]}).encode()
    + b"\n\n"
)
_END = _chunk(b"data: " + json.dumps({**_DELTA, "choices": [], "usage": _USAGE}).encode() + b"\n\n")
_END += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Upstream(asyncio.Protocol):
    """Knows requests with a Content-Length only; that is what every proxy here sends. GET /lost says when, by the
    machine's monotonic clock, it last lost a connection in the middle of a stream."""

    lost_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.buffer = b""
        self.streaming = False

    def connection_lost(self, exc: Exception | None) -> None:
        if self.streaming:
            Upstream.lost_at = time.monotonic()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0] or b"0")
            if len(self.buffer) < end + 4 + length:
                return
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            if b'"stream":true' in body or b'"stream": true' in body:
                self.streaming = True
                self.transport.write(_STREAM_HEAD)
                asyncio.get_running_loop().call_later(FRAME_PERIOD_S, self.send_frame, FRAMES)
            elif head.startswith(b"get /lost "):
                told = b"%.6f" % Upstream.lost_at
                self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(told), told))
            else:
                self.transport.write(_ANSWER)

    def send_frame(self, left: int) -> None:
        if self.transport.is_closing():
            return
        if left == 0:
            self.streaming = False
            self.transport.write(_END)
            return
        self.transport.write(_FRAME)
        asyncio.get_running_loop().call_later(FRAME_PERIOD_S, self.send_frame, left - 1)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", port, backlog=1024)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))
