"""The gateway as a process: killed, drained, started without the control plane, and refused its port or its disk."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from tests.gateway.harness import (
    DONE,
    SECRET,
    Bench,
    Exchange,
    MockUpstream,
    RawClient,
    ask,
    chat,
    event,
    get,
    key,
    poll,
    post,
    route,
    start_process,
    stop_process,
    write_snapshot,
)


@pytest.fixture
def benches() -> Iterator[list[Bench]]:
    """Processes started by a test, ended with it."""
    started: list[Bench] = []
    yield started
    for bench in started:
        stop_process(bench)


async def start(benches: list[Bench], folder: Path, upstream: MockUpstream, *arguments: str) -> Bench:
    await write_snapshot(folder, 1, keys=(key(),), routes=(route("tiny", upstream.base_url),))
    bench = await asyncio.to_thread(start_process, folder, "--free-min", "0", *arguments)
    benches.append(bench)
    return bench


async def test_every_answered_request_survives_kill_9_once(
    tmp_path: Path, upstream: MockUpstream, benches: list[Bench]
) -> None:
    bench = await start(benches, tmp_path, upstream)
    assert bench.process is not None
    answered: list[str] = []

    async def caller() -> None:
        client = await RawClient.open(bench.port)
        try:
            while True:
                await client.send(post(chat(stream=len(answered) % 2 == 0)))
                answer = await client.answer()
                if answer.whole:
                    answered.append(answer.headers["x-request-id"])
        except (asyncio.IncompleteReadError, ConnectionError):
            await client.close()

    callers = [asyncio.create_task(caller()) for _ in range(8)]
    await poll(lambda: len(answered) >= 200, 20)
    bench.process.send_signal(signal.SIGKILL)
    await asyncio.gather(*callers)
    again = await start(benches, tmp_path, upstream)
    records = await again.records()
    told = [record.id for record in records]
    assert len(told) == len(set(told))
    assert len(answered) >= 200 and set(answered) <= set(told)
    whole = [record for record in records if record.id in set(answered)]
    assert {(r.status, r.prompt_tokens, r.completion_tokens) for r in whole} == {(200, 7, 5)}
    assert {record.estimated for record in records if record.id not in set(answered)} <= {True, False}
    assert len(records) <= len(upstream.seen)


async def test_the_money_spent_before_a_crash_is_still_spent_after_it(
    tmp_path: Path, upstream: MockUpstream, benches: list[Bench]
) -> None:
    """The control plane is down: the snapshot stays as it is, so the log alone knows what was spent."""
    values = {"keys": (key(),), "routes": (route("tiny", upstream.base_url),), "budgets": {"vision": 300}}
    for crash in range(3):
        await write_snapshot(tmp_path, 1, **values)
        bench = await asyncio.to_thread(start_process, tmp_path, "--free-min", "0")
        benches.append(bench)
        assert bench.process is not None
        for _ in range(5):
            await ask(bench.port, post(chat(max_tokens=5)))
        bench.process.kill()
        bench.process.wait()
        assert crash < 3
    spent = sum(record.amount_microusd for record in await bench.records())
    assert spent == 17 * len(upstream.seen) <= 300
    assert len(upstream.seen) > 10


async def test_sigterm_finishes_what_is_in_flight_and_exits_0(
    tmp_path: Path, upstream: MockUpstream, benches: list[Bench]
) -> None:
    go_on = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(event("one"))
        await go_on.wait()
        await exchange.chunk(DONE)
        await exchange.end()

    upstream.behave = slow
    bench = await start(benches, tmp_path, upstream)
    assert bench.process is not None
    idle, busy = await RawClient.open(bench.port), await RawClient.open(bench.port)
    await idle.send(get("/healthz"))
    await idle.answer()
    await busy.send(post(chat(stream=True)))
    await busy.head()
    bench.process.send_signal(signal.SIGTERM)
    assert await idle.closed(), "an idle connection is closed"
    with pytest.raises(ConnectionRefusedError):
        await RawClient.open(bench.port)
    go_on.set()
    assert b"[DONE]" in await busy.reader.readuntil(b"0\r\n\r\n")
    assert await asyncio.to_thread(bench.process.wait, 10) == 0
    assert [record.status for record in await bench.records()] == [200]
    await idle.close()
    await busy.close()


async def test_draining_is_bounded(tmp_path: Path, upstream: MockUpstream, benches: list[Bench]) -> None:
    async def endless(exchange: Exchange) -> None:
        await exchange.begin_stream()
        await exchange.chunk(event("one"))
        await exchange.reader.readexactly(1)

    upstream.behave = endless
    bench = await start(benches, tmp_path, upstream, "--drain", "0.3")
    assert bench.process is not None
    client = await RawClient.open(bench.port)
    await client.send(post(chat(stream=True)))
    bench.process.send_signal(signal.SIGTERM)
    answer = await client.answer()
    assert answer.status == 200 and not answer.whole and b'"gateway_stopping"' in answer.body
    assert b"[DONE]" not in answer.body
    assert await asyncio.to_thread(bench.process.wait, 30) == 0
    assert [record.status for record in await bench.records()] == [503]
    await client.close()


async def test_the_unmodified_client_talks_to_the_process(
    tmp_path: Path, upstream: MockUpstream, benches: list[Bench]
) -> None:
    bench = await start(benches, tmp_path, upstream)

    def talk() -> list[str]:
        with openai.OpenAI(base_url=bench.base_url, api_key=SECRET) as client:
            messages = [{"role": "user", "content": "hi"}]
            whole = client.chat.completions.create(model="tiny", messages=messages)  # type: ignore[arg-type]
            stream = client.chat.completions.create(model="tiny", messages=messages, stream=True)  # type: ignore[arg-type]
            words = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            return [whole.choices[0].message.content or "", words]

    assert await asyncio.to_thread(talk) == ["hello there", "one two three four five"]


async def test_a_taken_port_is_named(tmp_path: Path, upstream: MockUpstream, benches: list[Bench]) -> None:
    bench = await start(benches, tmp_path, upstream)
    command = [sys.executable, "-m", "groundplane.gateway", "--port", str(bench.port)]
    command += ["--snapshot", str(tmp_path / "s.json"), "--wal", str(tmp_path / "other")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error == f"error: port {bench.port} on 127.0.0.1 is taken by another process"
    assert hint.startswith("hint: ")


async def test_a_log_in_use_is_named(tmp_path: Path, upstream: MockUpstream, benches: list[Bench]) -> None:
    await start(benches, tmp_path, upstream)
    command = [sys.executable, "-m", "groundplane.gateway", "--port", "0", "--gateway-id", "gw"]
    command += ["--snapshot", str(tmp_path / "s.json"), "--wal", str(tmp_path / "wal")]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 5 and done.stderr.startswith("error: gateway id gw is in use")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 KiB where the log is kept."""
    place = tmp_path / "wal"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)], check=True, timeout=20)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=20)


@pytest.mark.needs("tmpfs")
async def test_a_full_disk_refuses_requests_rather_than_serve_unmetered(
    tmp_path: Path, upstream: MockUpstream, small_disk: Path, benches: list[Bench]
) -> None:
    bench = await start(benches, tmp_path, upstream)
    whole: list[str] = []
    refused = None
    client = await RawClient.open(bench.port)
    for _ in range(1000):
        try:
            await client.send(post(chat()))
            answer = await client.answer()
        except (asyncio.IncompleteReadError, ConnectionError):
            await client.close()
            client = await RawClient.open(bench.port)
            continue  # the settlement did not fit: the answer is broken off
        if answer.status == 200:
            whole.append(answer.headers["x-request-id"])
        else:
            refused = answer
            break
    await client.close()
    assert refused is not None and (refused.status, refused.error["code"]) == (503, "usage_log_unavailable")
    told = [record.id for record in await bench.records()]
    assert set(whole) <= set(told) and len(told) == len(set(told)) and len(whole) > 100
    assert small_disk.is_dir()


async def test_too_little_free_space_refuses_from_the_start(
    tmp_path: Path, upstream: MockUpstream, benches: list[Bench]
) -> None:
    bench = await start(benches, tmp_path, upstream, "--free-min", "1000000TB")
    answer = await ask(bench.port, post(chat()))
    assert (answer.status, answer.error["code"]) == (503, "usage_log_unavailable")
    assert upstream.seen == []


async def test_hundreds_of_clients_at_once_are_all_answered_and_metered(
    tmp_path: Path, upstream: MockUpstream, benches: list[Bench]
) -> None:
    bench = await start(benches, tmp_path, upstream)
    answers = await asyncio.gather(*(ask(bench.port, post(chat(stream=n % 3 == 0))) for n in range(400)))
    assert all(answer.status == 200 and answer.whole for answer in answers)
    assert {a.headers["x-request-id"] for a in answers} == {r.id for r in await bench.records()}
    assert threading.active_count() < 50
