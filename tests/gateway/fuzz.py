"""Requests that nobody should send, by the thousand: `python -m tests.gateway.fuzz [--minutes 10] [--seed N]`.

Good requests of every path are cut, doubled, spliced and given second lengths. Whatever comes of it: the gateway
answers in HTTP, never with 500, and raises nothing; what reaches the upstream is accounted for once, under the id that
the upstream saw; it never sees a caller's key, nor a path that is not forwarded; and nothing stays behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.gateway.harness import (
    SECRET,
    MockUpstream,
    RawClient,
    chat,
    get,
    key,
    poll,
    post,
    route,
    running,
    well_behaved,
)

from groundplane.gateway.protocol.doors import DOORS
from groundplane.gateway.state import Options

_FORM = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\ntiny\r\n--b--\r\n'
_PIECES = (
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"0\r\n\r\n", b":", b" ", b"\t", b"\0", b"\xff", b"{", b'"', b"\\u0000",
    b"transfer-encoding: chunked\r\n", b"Transfer-Encoding : chunked\r\n", b"transfer-encoding: identity\r\n",
    b"content-length: 0\r\n", b"content-length: 5\r\n", b"Content-Length: +7\r\n", b"content-length: 1, 1\r\n",
    b" folded\r\n", b"host: y\r\n", b"connection: close\r\n", b"expect: 100-continue\r\n", b"upgrade: h2c\r\n",
    b"authorization: Bearer other\r\n", b"x-api-key: other\r\n", b"5;ext=\"\r\n", b"HTTP/1.0",
    b"GET / HTTP/1.1\r\n\r\n", b"POST /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", b',"model":"huge"', b'"stream":true',
    b"\xe2\x80\xa8", b"-1", b"f" * 20,
)  # fmt: skip
_STATUSES = frozenset({200, 400, 401, 403, 404, 405, 408, 413, 415, 417, 429, 431, 501, 502, 503, 505})


@dataclass
class Found:
    """How many requests were sent and reached the upstream, and how they were answered."""

    sent: int = 0
    reached: int = 0
    answers: Counter[int] = field(default_factory=Counter)


def _good(chance: random.Random) -> bytes:
    path = chance.choice([*DOORS]).decode()
    if DOORS[path.encode()].form:
        return post(_FORM, path=path, headers="content-type: multipart/form-data; boundary=b\r\n")
    body = chat(stream=chance.random() < 0.3)
    if chance.random() < 0.3:
        data = json.dumps(body).encode()
        cut = chance.randrange(len(data))
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (data[:cut], data[cut:]) if piece)
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {SECRET}\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        return head.encode() + chunks + b"0\r\n\r\n"
    return chance.choice([post(body, path=path)] * 4 + [get("/v1/models"), get("/healthz")])


def mutated(chance: random.Random) -> bytes:
    """One to three requests in a row, damaged in up to three places."""
    data = bytearray(b"".join(_good(chance) for _ in range(chance.randint(1, 3))))
    for _ in range(chance.randint(0, 3)):
        place = chance.randrange(len(data) + 1)
        line = data.find(b"\r\n", place) + 2
        match chance.randrange(6):
            case 0:
                data[place:place] = chance.choice(_PIECES)
            case 1 if line >= 2:
                data[line:line] = chance.choice(_PIECES)
            case 2:
                del data[place : place + chance.randint(1, 8)]
            case 3 if place < len(data):
                data[place] = chance.randrange(256)
            case 4:
                del data[place:]
            case _:
                end = min(len(data), place + chance.randint(1, 40))
                data[place:place] = data[place:end]
        if not data:
            break
    return bytes(data) or b"\r\n"


async def _send(port: int, data: bytes, chance: random.Random, found: Found) -> None:
    """Sends in a few pieces and reads all answers that come; the gateway may close, or wait for more, but not hang."""
    client = await RawClient.open(port)
    try:
        cuts = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randrange(3)))
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            client.writer.write(data[start:end])
            await asyncio.sleep(0)
        client.writer.write(b"\r\n")
        while True:
            async with asyncio.timeout(0.3):
                status, headers = await client.head()
                if status == 100:
                    continue
                assert status in _STATUSES, (status, data)
                found.answers[status] += 1
                if headers.get("transfer-encoding") == "chunked":
                    size = 1
                    while size:
                        size = int((await client.reader.readuntil(b"\r\n"))[:-2], 16)
                        await client.reader.readexactly(size + 2)
                else:
                    await client.reader.readexactly(int(headers["content-length"]))
    except (TimeoutError, asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        await client.close()


async def fuzz(folder: Path, seconds: float, seed: int) -> Found:
    """AssertionError names the bytes, or what does not add up."""
    chance, found = random.Random(seed), Found()
    raised: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: raised.append(context))
    upstream = MockUpstream(well_behaved)

    async def behave(exchange: object) -> None:
        try:
            await well_behaved(exchange)  # type: ignore[arg-type]
        except ValueError:  # a form is no JSON
            await exchange.json({"text": "hello"})  # type: ignore[attr-defined]

    upstream.behave = behave
    await upstream.start()
    options = Options(head_timeout_s=0.5, body_timeout_s=0.5, linger_s=0.2, drain_s=1.0, refusals_per_s=1_000_000)
    async with running(folder, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        assert bench.gateway is not None
        state = bench.gateway.state
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            batch = [mutated(chance) for _ in range(16)]
            found.sent += len(batch)
            await asyncio.gather(*(_send(bench.port, data, chance, found) for data in batch))
        await poll(lambda: not state.clients and state.metrics.in_flight == 0, 10.0)
        assert not raised, raised[0]
        for seen in upstream.seen:
            assert seen.path.encode() in DOORS, seen
            assert not {"authorization", "x-api-key", "transfer-encoding"} & seen.headers.keys(), seen
            assert SECRET not in repr(seen.headers), seen
        statuses = {record.id: record.status for record in await bench.records()}
        ids = Counter(seen.headers["x-request-id"] for seen in upstream.seen)
        assert set(ids.values()) <= {1} and ids.keys() <= statuses.keys(), "each request is sent and accounted once"
        # Who leaves at once may be gone before the upstream has read the request.
        assert {statuses[one] for one in statuses.keys() - ids.keys()} <= {499}
        found.reached = len(ids)
        assert (state.bodies_bytes, state.metrics.in_flight) == (0, 0)
        assert all(share.in_flight == 0 for share in state._shares.values()), "every reservation came back"
    await upstream.stop()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    end, round_ = time.monotonic() + 60 * arguments.minutes, 0
    total = Found()
    while time.monotonic() < end:
        with tempfile.TemporaryDirectory() as folder:
            one = asyncio.run(fuzz(Path(folder), min(20.0, end - time.monotonic()), arguments.seed + round_))
        total.sent += one.sent
        total.reached += one.reached
        total.answers += one.answers
        round_ += 1
    print(f"seed {arguments.seed}: {total.sent} connections, answers {dict(sorted(total.answers.items()))}")


if __name__ == "__main__":
    main()
