"""Strict HTTP/1.1 at the door: what is ambiguous, too large or too slow is refused, and never smuggled through."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from pathlib import Path

import httptools
import pytest
from tests.gateway.harness import SECRET, MockUpstream, RawClient, ask, chat, get, key, post, purse, route, running

from groundplane.gateway.client_side import Phase
from groundplane.gateway.protocol.errors import Fault
from groundplane.gateway.protocol.http1 import ChunkDecoder, HeadMemo, Malformed, parse_request_head
from groundplane.gateway.state import Options

AUTH = f"authorization: Bearer {SECRET}\r\n".encode()
BODY = b'{"model":"tiny","messages":[]}'


def request(*lines: bytes, body: bytes = BODY, line: bytes = b"POST /v1/chat/completions HTTP/1.1") -> bytes:
    return b"\r\n".join((line, b"host: x", AUTH.strip(), *lines)) + b"\r\n\r\n" + body


LENGTH = b"content-length: %d" % len(BODY)
SMUGGLED = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request(LENGTH, b"transfer-encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED), 400),
        (request(b"transfer-encoding: chunked", LENGTH, body=b"0\r\n\r\n" + SMUGGLED), 400),
        (request(LENGTH, LENGTH), 400),
        (request(LENGTH, b"content-length: 3"), 400),
        (request(b"content-length: +3"), 400),
        (request(b"content-length: 0x10"), 400),
        (request(b"content-length: -1"), 400),
        (request(b"content-length: 3, 3"), 400),
        (request(b"content-length: \xb2"), 400),
        (request(b"content-length: 99999999999999999999"), 400),
        (request(b"transfer-encoding: chunked, chunked"), 501),
        (request(b"transfer-encoding: identity"), 501),
        (request(b"transfer-encoding: gzip, chunked"), 501),
        (request(b"transfer-encoding: xchunked"), 501),
        (request(b"transfer-encoding: chunked", b"transfer-encoding: chunked"), 400),
        (request(b"transfer-encoding : chunked"), 400),
        (request(b" transfer-encoding: chunked"), 400),
        (request(b"x: a\r\n folded"), 400),
        (request(b"x: a\rb"), 400),
        (request(b"x: a\x00b"), 400),
        (request(b"x\x00: a"), 400),
        (request(b": a"), 400),
        (request(b"x"), 400),
        (request(b"x: a\nsmuggled: b"), 400),
        (request(b"host: y", LENGTH), 400),
        (request(AUTH.strip(), LENGTH), 400),
        (b"GET /v1/models HTTP/1.1\r\n" + AUTH + b"\r\n", 400),
        (b"GET /v1/models HTTP/1.1\nhost: x\n\n", 400),
        (b"GET /v1/models HTTP/1.0\r\nhost: x\r\n\r\n", 505),
        (b"GET /v1/models HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET  /v1/models HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /v1/mo dels HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /v1/models\r\nhost: x\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 20_000, 431),
        (b"GET /v1/models HTTP/1.1\r\nhost: x\r\n" + b"".join(b"x%d: a\r\n" % i for i in range(200)) + b"\r\n", 431),
        (request(b"expect: 200-ok", LENGTH), 417),
    ],
)
async def test_ambiguous_requests_are_refused_and_the_connection_closed(
    tmp_path: Path, upstream: MockUpstream, data: bytes, status: int
) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        await client.send(data)
        answer = await client.answer()
        assert answer.status == status and answer.headers["connection"] == "close"
        assert answer.error["message"]
        assert await client.closed()
        await client.close()
    assert upstream.seen == []


@pytest.mark.parametrize(
    "chunks", [b"5\r\nhello\r\nzz\r\n", b"5\r\nhello!\r\n0\r\n\r\n", b"-1\r\n", b"0x3\r\nabc\r\n", b" 3\r\n"]
)
async def test_malformed_chunks_are_refused(tmp_path: Path, upstream: MockUpstream, chunks: bytes) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        answer = await ask(bench.port, request(b"transfer-encoding: chunked", body=chunks))
    assert answer.status == 400 and upstream.seen == []


async def test_chunked_requests_are_accepted(tmp_path: Path, upstream: MockUpstream) -> None:
    chunked = b"".join(b"%x;x=y\r\n%c\r\n" % (1, byte) for byte in BODY) + b"0\r\nx-trailer: 1\r\n\r\n"
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        for _ in range(2):
            await client.send(request(b"transfer-encoding: chunked", body=chunked))
            assert (await client.answer()).status == 200
        await client.close()
    assert [seen.body for seen in upstream.seen] == [BODY, BODY]
    assert "transfer-encoding" not in upstream.seen[0].headers


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        await client.send(post(chat()) + get("/v1/models") + b"\r\n" + post(chat(), secret="wrong") + post(chat()))
        answers = [await client.answer() for _ in range(4)]
        await client.close()
    assert [answer.status for answer in answers] == [200, 200, 401, 200]
    assert answers[1].json["object"] == "list"


async def test_a_long_pipeline_waits_for_its_reader(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        await client.send(post(chat()) + get("/healthz", None) * 5000)
        statuses = [(await client.answer()).status for _ in range(5001)]
        await client.close()
    assert set(statuses) == {200}


async def test_a_body_of_100_mb_is_refused_without_reading_it_into_memory(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        assert bench.gateway is not None
        client = await RawClient.open(bench.port)
        size = 100 * 2**20
        client.writer.write(request(b"content-length: %d" % size, body=b""))
        piece = b"x" * 2**20
        most = 0
        for _ in range(100):
            client.writer.write(piece)
            most = max(most, bench.gateway.state.bodies_bytes)
            if client.reader._buffer:  # type: ignore[attr-defined]
                break
            await asyncio.sleep(0)
        answer = await client.answer()
        assert (answer.status, answer.error["code"]) == (413, "request_too_large")
        assert str(size) in answer.error["message"] and str(32 * 2**20) in answer.error["message"]
        assert most == 0
        await client.close()
    assert upstream.seen == []


async def test_an_endless_chunked_body_is_refused_at_the_limit(tmp_path: Path, upstream: MockUpstream) -> None:
    options = Options(body_max_bytes=100_000, drain_s=0.2)
    async with running(tmp_path, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        assert bench.gateway is not None
        client = await RawClient.open(bench.port)
        await client.send(request(b"transfer-encoding: chunked", body=b""))
        for _ in range(30):
            client.writer.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        answer = await client.answer()
        assert answer.status == 413
        assert bench.gateway.state.bodies_bytes == 0
        await client.close()


async def test_the_client_is_told_to_continue_only_when_its_head_is_good(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        await client.send(request(LENGTH, b"expect: 100-continue", body=b""))
        assert (await client.head())[0] == 100
        await client.send(BODY)
        assert (await client.answer()).status == 200
        await client.close()
        answer = await ask(bench.port, post(BODY, secret="wrong", headers="expect: 100-continue\r\n"))
        assert answer.status == 401
        answer = await ask(bench.port, post(BODY, headers="content-encoding: gzip\r\n"))
        assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"not json", "invalid_json"),
        (b"[1]", "invalid_type"),
        (b'"text"', "invalid_type"),
        (b"{}", "missing_required_parameter"),
        (b'{"model": ""}', "missing_required_parameter"),
        (b'{"model": null}', "missing_required_parameter"),
        (b'{"model": 5}', "invalid_type"),
        (b'{"model": "tiny", "stream": "yes"}', "invalid_type"),
        (b'{"model": "tiny", "max_tokens": "many"}', "invalid_type"),
        (b'{"model": "tiny"} trailing', "invalid_json"),
        (b'{"model": "tiny", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json"),
        (b'{"model": "\xff\xfe"}', "invalid_json"),
        (b'{"model": "tiny", "x": "\xff"}', "invalid_json"),
        (b'{"model": "\\ud800"}', "invalid_json"),
        (b'{"model": "unknown"}', "model_not_found"),
        (b'{"model": "\\u0000\\r\\nx: y"}', "model_not_found"),
    ],
)
async def test_bad_bodies_are_named(tmp_path: Path, upstream: MockUpstream, body: bytes, code: str) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        await client.send(post(body))
        answer = await client.answer()
        assert answer.error["code"] == code and answer.status == (404 if code == "model_not_found" else 400)
        await client.send(post(chat()))
        assert (await client.answer()).status == 200, "the connection stays usable"
        await client.close()
    assert len(upstream.seen) == 1


async def test_unknown_paths_and_methods(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        port = bench.port
        assert (await ask(port, get("/"))).status == 404
        assert (await ask(port, get("/v1/../healthz"))).status == 404
        assert (await ask(port, post(chat(), path="/v1/answers"))).status == 404
        assert (await ask(port, get("/v1/chat/completions"))).headers["allow"] == "POST"
        assert (await ask(port, post(chat(), path="/v1/models"))).status == 405
        assert (await ask(port, get("/v1/models/%2e%2e%2f"))).status == 404
        assert (await ask(port, post(chat(), path="/v1/chat/completions?api-version=1"))).status == 200
        assert (await ask(port, get("http://elsewhere/v1/models"))).status == 200, "RFC 9112, 3.2.2"
        client = await RawClient.open(port)
        for path in ("/healthz", "/v1/models"):
            await client.send(get(path).replace(b"GET", b"HEAD"))
            status, headers = await client.head()
            assert status == 200 and int(headers["content-length"]) > 0
        await client.send(get("/v1/chat/completions").replace(b"GET", b"HEAD"))
        assert (await client.head())[0] == 405
        await client.send(get("/healthz"))
        assert (await client.answer()).status == 200, "answers to HEAD have no body"
        await client.close()


async def test_more_connections_than_there_is_room_for_are_told_so_and_leave_room_again(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    options = Options(clients_max=2, drain_s=0.2)
    async with running(tmp_path, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        first, second = await RawClient.open(bench.port), await RawClient.open(bench.port)
        await first.send(get("/healthz"))
        await first.answer()
        answer = await ask(bench.port, get("/healthz"))
        assert (answer.status, answer.error["code"], answer.headers["connection"]) == (503, "overloaded", "close")
        await second.close()
        while (answer := await ask(bench.port, post(chat()))).status == 503:
            await asyncio.sleep(0.01)
        assert answer.status == 200
        await first.close()


async def test_slow_requests_time_out(tmp_path: Path, upstream: MockUpstream) -> None:
    options = Options(head_timeout_s=0.2, body_timeout_s=0.2, keep_alive_s=0.3, linger_s=0.3, drain_s=0.2)
    async with running(tmp_path, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        for start in (b"POST /v1/chat", request(LENGTH, body=b"{")):
            client = await RawClient.open(bench.port)
            await client.send(start)
            assert (await client.answer()).status == 408
            assert await client.closed()
            await client.close()
        drip = await RawClient.open(bench.port)
        await drip.send(request(LENGTH, body=b"{"))
        answer = asyncio.ensure_future(drip.answer())
        while not answer.done():
            with contextlib.suppress(ConnectionError):
                await drip.send(b" ")  # a byte now and then keeps nothing open
            await asyncio.sleep(0.05)
        assert (await answer).status == 408
        await drip.close()
        idle = await RawClient.open(bench.port)
        await idle.send(get("/healthz"))
        await idle.answer()
        assert await idle.closed(), "an idle connection is closed after its keep-alive time"
        await idle.close()


def test_heads_are_read_as_llhttp_reads_them() -> None:
    """Whatever this grammar accepts, an independent parser reads with the same method, target and framing."""
    chance = random.Random(4710)
    pieces = [
        b"content-length: 0",
        b"x-a: b",
        b"X-A:\tb ",
        b"connection: close",
        b"transfer-encoding: chunked",
        b"x: ",
        b"y:\xff",
    ]
    junk = [b"\r", b"\n", b" ", b"\t", b"\x00", b":", b"\r\n", b"\x7f", b"chunked", b"content-length: 4"]
    accepted = 0
    for _ in range(20_000):
        lines = [b"GET /v1/models HTTP/1.1", b"host: x", *chance.choices(pieces, k=chance.randrange(4))]
        data = b"\r\n".join(lines) + b"\r\n\r\n"
        if chance.random() < 0.7:
            at = chance.randrange(len(data) - 4)
            data = data[:at] + chance.choice(junk) + data[at + chance.randrange(2) :]
        end = data.find(b"\r\n\r\n") + 4
        try:
            head = parse_request_head(data, end)
        except Fault:
            continue
        accepted += 1
        seen = _Llhttp()
        parser = httptools.HttpRequestParser(seen)
        try:
            parser.feed_data(data[:end])
        except httptools.HttpParserInvalidMethodError:
            assert head.method != b"GET", data  # any token is a method to us; a path then takes GET or POST only
            continue
        assert parser.get_method() == head.method and seen.url == head.target
        assert {n.lower(): v.strip(b" \t") for n, v in seen.headers} == head.headers
        if head.content_length == 0:
            assert seen.complete, data
    assert accepted > 3000


class _Llhttp:
    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_message_complete(self) -> None:
        self.complete = True


def test_a_head_seen_before_is_read_as_a_new_one_is() -> None:
    """Every way to change a byte of a good request, or its length: what is taken for a repetition is one."""
    good = request(LENGTH, b"x-more: 1")
    lengths = [b"", b"0", b"030", b"29", b"31", b"+30", b"3 0", b"30 ", b"\xb2", b"3\r\n0", b"%016d" % len(BODY)]
    lengths += [b"30\r\nx: content-length: 30", b"30\r\ncontent-length: 30", b"30\r\nContent-Length: 3"]
    changed = [good.replace(b": 30\r\n", b": %b\r\n" % one) for one in lengths]
    assert good not in changed
    bad_bytes = [b"\r", b"\n", b" ", b"0", b"a", b":", b"\xff"]
    changed += [good[:place] + one + good[place + 1 :] for place in range(len(good)) for one in bad_bytes]
    changed += [good[:place] for place in range(len(good))] + [good + more for more in (b"x", good)]
    memo = HeadMemo(parse_request_head)
    found = memo.whole(good, None)
    assert found is not None and memo.whole(good, found[0]) == found
    for data in changed:
        end = data.find(b"\r\n\r\n") + 4
        for last in (found[0], None):
            taken = None
            with contextlib.suppress(Fault):  # it is parsed for itself then, and refused for the same reason
                taken = memo.whole(data, last)
            if taken is not None:
                read, seen = parse_request_head(data, end), taken[0].head
                assert taken[1] == end and read.content_length == len(data) - end
                assert {**seen.headers, b"content-length": b""} == {**read.headers, b"content-length": b""}
                assert (seen.method, seen.target) == (read.method, read.target)


def test_chunked_bodies_are_decoded_however_they_are_cut() -> None:
    chance = random.Random(4711)
    for _ in range(500):
        content = chance.randbytes(chance.randrange(1, 200))
        wire, at = b"", 0
        while at < len(content):
            size = chance.randrange(1, 50)
            piece = content[at : at + size]
            wire += b"%X\r\n%b\r\n" % (len(piece), piece)
            at += size
        wire += b"0\r\n\r\nREST"
        decoder, out, at = ChunkDecoder(), b"", 0
        while not decoder.done:
            step = chance.randrange(1, 20)
            out += decoder.feed(wire[at : at + step])
            at += step
        assert out == content
        assert decoder.rest + wire[at:] == b"REST"


@pytest.mark.parametrize("wire", [b"1\n", b"g\r\n", b"1\r\nab\r\n", b"f" * 300, b"0\r\nbad trailer\r\n", b"\r\n"])
def test_malformed_chunks_raise(wire: bytes) -> None:
    with pytest.raises(Malformed):
        ChunkDecoder().feed(wire + b"\r\n" * 4)


async def test_random_requests_crash_nothing(tmp_path: Path, upstream: MockUpstream) -> None:
    """Mutated requests for a few seconds: every answer is well-formed, nothing leaks, and the gateway still serves."""
    chance = random.Random(20_260)
    errors: list[dict[str, object]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: errors.append(context))
    seeds = [
        post(chat()),
        post(chat(stream=True)),
        get("/v1/models"),
        post({"model": "tiny", "prompt": ["a"]}, path="/v1/completions"),
    ]
    seeds.append(request(b"transfer-encoding: chunked", body=b"1e\r\n" + BODY + b"\r\n0\r\n\r\n"))
    options = Options(drain_s=0.2, refusals_per_s=1_000_000)
    async with running(tmp_path, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        assert bench.gateway is not None
        end = time.monotonic() + 4.0
        count = 0
        while time.monotonic() < end:
            data = bytearray(b"".join(chance.choices(seeds, k=chance.randrange(1, 4))))
            for _ in range(chance.randrange(6)):
                at = chance.randrange(len(data))
                action = chance.randrange(3)
                if action == 0:
                    data[at] = chance.randrange(256)
                elif action == 1:
                    del data[at : at + chance.randrange(1, 30)]
                else:
                    data[at:at] = chance.choice([b"\r\n", b"\x00", b"{", b'"', b"0\r\n\r\n", b":", b"\xff" * 5])
            client = await RawClient.open(bench.port)
            client.writer.write(bytes(data[: len(data) // 2]))
            await asyncio.sleep(0)
            client.writer.write(bytes(data[len(data) // 2 :]))
            if chance.random() < 0.5:
                client.writer.write_eof()
                with contextlib.suppress(ConnectionResetError):  # how a request cut in its middle may end
                    received = await client.reader.read()
                    assert received == b"" or received.startswith(b"HTTP/1.1 ")
            await client.close()
            count += 1
        assert (await ask(bench.port, post(chat()))).status == 200
        state = bench.gateway.state
        await bench.until(lambda: not state.clients)
        assert state.metrics.in_flight == 0 and state.bodies_bytes == 0
        assert purse(state).in_flight == 0
        records = await bench.records()
    loop.set_exception_handler(None)
    assert errors == [] and count > 200
    assert len({record.id for record in records}) == len(records)


async def test_a_late_request_whose_caller_has_just_left_does_not_stop_the_clock(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    """Its refusal is what tells the machine that nobody is there any more: closing our side fails then."""
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        assert bench.gateway is not None
        state = bench.gateway.state
        client = socket.create_connection(("127.0.0.1", bench.port))
        client.sendall(request(LENGTH)[:-3])
        await bench.until(lambda: any(one._phase is Phase.BODY for one in state.clients), 30)
        (connection,) = state.clients
        client.close()
        connection.deadline_s = 0.0
        connection.sweep(1.0)  # before the loop has read that the caller is gone
        await bench.until(lambda: not state.clients, 30)
        assert state.bodies_bytes == 0
