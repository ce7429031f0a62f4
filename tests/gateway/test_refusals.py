"""A flood of requests that are refused: shaped by reading its connections later, and by nothing else."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

from tests.gateway.harness import MockUpstream, RawClient, ask, chat, get, key, post, route, running

from groundplane.gateway.reports import _storms
from groundplane.gateway.state import Options
from groundplane.gateway.turns import network_of

FLOOD = "gp-flood-secret"
FLOODING = key(FLOOD, id="flood", requests_per_minute=1)


async def test_a_flood_is_answered_at_its_pace_while_another_key_passes(tmp_path: Path, upstream: MockUpstream) -> None:
    per_s, connections = 80, 64
    options = Options(drain_s=0.2, refusals_per_s=per_s)
    routes = (route("tiny", upstream.base_url),)
    async with running(tmp_path, options, keys=(key(), FLOODING), routes=routes) as bench:
        statuses: Counter[int] = Counter()
        asked = 0
        over = False

        async def flood(client: RawClient) -> None:
            nonlocal asked
            while not over:
                asked += 1
                await client.send(post(chat(), secret=FLOOD))
                statuses[(await client.answer()).status] += 1

        clients = [await RawClient.open(bench.port) for _ in range(connections)]
        other = await RawClient.open(bench.port)
        began = time.monotonic()
        flooding = [asyncio.create_task(flood(client)) for client in clients]
        passed = 0
        while passed < 50 or statuses[429] < 2 * per_s:
            await other.send(post(chat()))
            assert (await other.answer()).status == 200
            passed += 1
        over = True
        await asyncio.wait_for(asyncio.gather(*flooding), 30)
        took_s = time.monotonic() - began
        assert bench.gateway is not None
        state = bench.gateway.state
        (told,) = _storms(state)
        text = (await ask(bench.port, get("/metrics", None))).body.decode()
        for client in (*clients, other):
            await client.close()
    # One of each connection is out before it is read late. A machine that is slow can only make it less.
    assert statuses[429] <= per_s * (1 + took_s) + connections + 1
    assert statuses.total() == asked and statuses[200] >= 1
    assert told["key_id"] == "flood" and told["read_late"] == state.metrics.flow.read_late["key"] > 0
    assert f'groundplane_gateway_read_late_total{{of="key"}} {told["read_late"]}' in text


async def test_pipelined_refusals_are_all_answered_in_order_also_to_who_half_closes(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    options = Options(drain_s=0.2, refusals_per_s=40)
    async with running(tmp_path, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        client = await RawClient.open(bench.port)
        for number in range(60):
            client.writer.write(post(chat(), secret="wrong", headers=f"x-request-id: r-{number}\r\n"))
        client.writer.write_eof()
        answers = [await client.answer() for _ in range(60)]
        assert [one.headers["x-request-id"] for one in answers] == [f"r-{number}" for number in range(60)]
        assert {one.status for one in answers} == {401}
        assert await client.closed()
        await client.close()
        assert bench.gateway is not None
        assert bench.gateway.state.metrics.flow.read_late["address"] > 0
        await bench.until(lambda: not bench.gateway.state.clients)  # type: ignore[union-attr]


async def test_who_connects_anew_for_each_refusal_is_read_late_and_answered(
    tmp_path: Path, upstream: MockUpstream
) -> None:
    options = Options(drain_s=0.2, refusals_per_s=20)
    async with running(tmp_path, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        kept = await RawClient.open(bench.port)
        began = time.monotonic()
        refused = 0
        while refused < 60:
            answers = await asyncio.gather(*(ask(bench.port, post(chat(), secret=f"w-{n}")) for n in range(10)))
            assert {one.status for one in answers} == {401}
            refused += 10
            await kept.send(post(chat()))
            assert (await kept.answer()).status == 200
        assert refused <= 20 * (1 + time.monotonic() - began) + 1
        assert (await ask(bench.port, post(chat()))).status == 200
        await kept.close()


async def test_a_drain_reads_what_was_sent_while_nobody_read(tmp_path: Path, upstream: MockUpstream) -> None:
    options = Options(drain_s=120, refusals_per_s=1)
    async with running(tmp_path, options, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        kept, idle = await RawClient.open(bench.port), await RawClient.open(bench.port)
        for client in (idle, kept):
            for _ in range(2):
                await client.send(get("/v1/models", "wrong"))
                assert (await client.answer()).status == 401
        await kept.send(post(chat()))
        began = time.monotonic()
    answer = await kept.answer()
    assert answer.status == 200 and answer.headers["connection"] == "close"
    assert await kept.closed() and await idle.closed()
    assert time.monotonic() - began < 120, "the drain waited for its deadline"
    await kept.close()
    await idle.close()


async def test_a_pipeline_gets_one_request_of_every_turn(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        greedy, other = await RawClient.open(bench.port), await RawClient.open(bench.port)
        greedy.writer.write(get("/healthz", None) * 5000)
        other.writer.write(get("/healthz", None))
        assert (await other.answer()).status == 200
        assert bench.gateway is not None
        assert bench.gateway.state.metrics.no_model.requests[200] < 500
        assert [(await greedy.answer()).status for _ in range(5000)] == [200] * 5000
        await greedy.close()
        await other.close()


def test_an_ipv6_network_counts_as_one_address() -> None:
    assert network_of("2001:db8:1:2::3") == network_of("2001:db8:1:2:ffff::") != network_of("2001:db8:1:3::3")
    assert network_of("fe80::1%eth0") == network_of("fe80::2") and network_of("192.0.2.7") == "192.0.2.7"
