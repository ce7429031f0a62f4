"""Laws of gateways that share limits, or are left alone: rounds that say what does not hold, and what happened.

Each takes an empty folder and returns (what is broken, what was done); both the tests and `make soak` play them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from tests.gateway.harness import (
    Answer,
    Exchange,
    MockUpstream,
    RawClient,
    Workers,
    chat,
    completion,
    key,
    poll,
    post,
    route,
    start_workers,
    write_snapshot,
)

from groundplane.domain.serving.limits import Limit, Measure, WhenDown

RPM, TPM, DOLLARS = 300, 12_000, 30_000
TOKENS, COST = 30, 50
"""What each answer here uses: 10 + 20 tokens, and micro-dollars at the harness's prices."""
DEADLINE_S = 0.010
SLACK_S = 1.0
"""How much later than the deadline an answer may be: this machine's scheduler, not the gateway's patience."""


async def thirty(exchange: Exchange) -> None:
    await exchange.json(completion(prompt=10, completion=20))


@contextlib.asynccontextmanager
async def redis(folder: Path) -> AsyncIterator[tuple[str, int]]:
    """A server of our own on a socket: its address and process id."""
    path = folder / "redis.sock"
    program = shutil.which("redis-server") or "redis-server"
    server = subprocess.Popen(
        [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)],
        stdout=subprocess.DEVNULL,
    )
    try:
        await poll(path.exists, 10)
        yield f"unix://{path}", server.pid
    finally:
        server.send_signal(signal.SIGCONT)
        server.terminate()
        server.wait(10)


@contextlib.asynccontextmanager
async def machines(folder: Path, url: str, *, workers: int = 1, **snapshot: object) -> AsyncIterator[list[Workers]]:
    """Two gateways that keep their limits in one Redis."""
    started: list[Workers] = []
    try:
        for name in ("one", "two"):
            (folder / name).mkdir()
            await write_snapshot(folder / name, 1, **snapshot)
            arguments = ("--node", name, "--nodes", "2")
            started.append(await asyncio.to_thread(start_workers, folder / name, workers, *arguments, limits_url=url))
        yield started
    finally:
        for one in started:
            await asyncio.to_thread(one.stop)


async def callers(
    ports: list[int], secret: str, stop: asyncio.Event, told: list[tuple[int, float]], model: str
) -> None:
    """Twelve connections ask until told to stop; notes each status and how long it took."""

    async def caller(port: int) -> None:
        client = await RawClient.open(port)
        request = post(chat(max_tokens=20) | {"model": model}, secret=secret)
        while not stop.is_set():
            began = time.monotonic()
            await client.send(request)
            answer: Answer = await client.answer()
            told.append((answer.status, time.monotonic() - began))
            if answer.status != 200:
                await asyncio.sleep(0.005)
        await client.close()

    await asyncio.gather(*(caller(ports[number % len(ports)]) for number in range(12)))


async def redis_round(folder: Path, seconds: float = 5.0) -> tuple[str, str]:
    """Two machines of two workers, one Redis: requests, tokens and dollars as counted where the requests arrive."""
    upstream = MockUpstream(thirty)
    await upstream.start()
    routes = tuple(route(model, upstream.base_url) for model in ("by-requests", "by-tokens", "by-dollars"))
    limits = (
        Limit("model", "vision/by-requests", Measure.REQUESTS, RPM, WhenDown.CLOSED),
        Limit("model", "vision/by-tokens", Measure.TOKENS, TPM, WhenDown.CLOSED),
        Limit("model", "vision/by-dollars", Measure.DOLLARS_DAY, DOLLARS, WhenDown.CLOSED),
    )
    told: dict[str, list[tuple[int, float]]] = {one.model: [] for one in routes}
    async with (
        redis(folder) as (url, _),
        machines(
            folder, url, workers=2, keys=(key(),), routes=routes, limits=limits, budgets={"vision": 10**12}
        ) as both,
    ):
        ports = [one.port for one in both]
        began, stop = time.monotonic(), asyncio.Event()
        tasks = [asyncio.create_task(callers(ports, "gp-caller-secret", stop, told[m], m)) for m in told]

        def look() -> bool:
            admitted = {model: sum(status == 200 for status, _ in one) for model, one in told.items()}
            return admitted["by-requests"] >= 0.9 * RPM and COST * admitted["by-dollars"] >= 0.9 * DOLLARS

        # A slow machine misses Redis's deadline often, and a closed limit then says no: it takes as long as it takes.
        while time.monotonic() < began + seconds or not (look() or time.monotonic() > began + 40):
            await asyncio.sleep(0.05)
        stop.set()
        await asyncio.gather(*tasks)
        minutes = (time.monotonic() - began) / 60
    arrived = Counter(one.body.split(b'"model": "')[1].split(b'"')[0].decode() for one in upstream.seen)
    await upstream.stop()
    laws = {
        f"{arrived['by-requests']} requests passed {RPM}": arrived["by-requests"] > RPM * (1 + minutes),
        f"{TOKENS * arrived['by-tokens']} tokens passed {TPM}": TOKENS * arrived["by-tokens"] > TPM * (1 + minutes),
        f"{COST * arrived['by-dollars']} dollars passed {DOLLARS}": COST * arrived["by-dollars"] > DOLLARS,
        "limits were not used up": arrived["by-requests"] < 0.9 * RPM or COST * arrived["by-dollars"] < 0.9 * DOLLARS,
        "answers other than 200, 429, 503": {status for one in told.values() for status, _ in one} - {200, 429, 503}
        != set(),
    }
    said = (
        f"two machines, one Redis, {sum(map(len, told.values()))} requests in {60 * minutes:.1f} s: "
        f"{arrived['by-requests']} of {RPM} requests/min, {TOKENS * arrived['by-tokens']} of {TPM} tokens/min, "
        f"{COST * arrived['by-dollars']} of {DOLLARS} micro-dollars"
    )
    return _broken(laws), said


async def pause_round(folder: Path, pause_s: float = 30.0) -> tuple[str, str]:
    """Redis stands still: closed limits refuse, open ones admit, shared ones admit a part; nobody waits long."""
    upstream = MockUpstream(thirty)
    await upstream.start()
    policies = {"closed": WhenDown.CLOSED, "open": WhenDown.OPEN, "local": WhenDown.LOCAL}
    routes = tuple(route(model, upstream.base_url) for model in policies)
    # So little that no slices are handed out ahead: each request has to ask.
    limits = tuple(Limit("model", f"vision/{model}", Measure.TOKENS_DAY, 4_000, how) for model, how in policies.items())
    async with (
        redis(folder) as (url, pid),
        machines(folder, url, keys=(key(),), routes=routes, limits=limits, budgets={"vision": 10**12}) as both,
    ):
        ports = [one.port for one in both]
        for model in policies:  # both gateways have spoken to Redis once for each
            for port in ports:
                await _one(port, model)
        before = len(upstream.seen)
        told: dict[str, list[tuple[int, float]]] = {model: [] for model in policies}
        stop = asyncio.Event()
        os.kill(pid, signal.SIGSTOP)
        try:
            tasks = [asyncio.create_task(callers(ports, "gp-caller-secret", stop, told[m], m)) for m in told]
            await _until(time.monotonic() + pause_s)
            stop.set()
            await asyncio.gather(*tasks)
        finally:
            os.kill(pid, signal.SIGCONT)
        during = Counter({model: sum(status == 200 for status, _ in one) for model, one in told.items()})
        arrived = len(upstream.seen) - before
        end = time.monotonic() + 20
        while await _one(ports[0], "closed") == 503 and time.monotonic() < end:
            await asyncio.sleep(0.1)
        after = await _one(ports[1], "closed")
    await upstream.stop()
    late = sorted(took for one in told.values() for _, took in one)
    p99, longest = late[int(0.99 * len(late))], late[-1]
    laws = {
        f"a closed limit admitted {during['closed']}": during["closed"] > 0,
        "a closed limit said something else than 503": {s for s, _ in told["closed"]} - {200, 503} != set(),
        "an open limit refused": {status for status, _ in told["open"]} != {200},
        f"shares admitted {during['local']}": not 0.7 * 4_000 <= during["local"] * TOKENS <= 4_000 - 2 * TOKENS,
        "not every admitted request arrived once": arrived != during.total(),
        f"an answer took {longest:.2f} s": p99 > DEADLINE_S + SLACK_S,
        f"Redis is back, and the answer is {after}": after not in {200, 429},
    }
    said = (
        f"Redis paused {pause_s:g} s, {len(late)} requests: closed admitted {during['closed']}, open {during['open']}, "
        f"shares {during['local'] * TOKENS} of 4,000 tokens; p50 {1e3 * late[len(late) // 2]:.1f} ms, "
        f"p99 {1e3 * p99:.1f} ms, longest {1e3 * longest:.0f} ms"
    )
    return _broken(laws), said


async def alone_round(folder: Path, requests: int = 400) -> tuple[str, str]:
    """Nobody publishes any more: workers serve, are killed and started again, and a revoked key stays revoked."""
    upstream = MockUpstream(thirty)
    await upstream.start()
    values = {"routes": (route("tiny", upstream.base_url),), "budgets": {"vision": 10**12}}
    await write_snapshot(folder, 1, keys=(key(), key("gone", id="key-2")), **values)
    workers = await asyncio.to_thread(start_workers, folder, 2)
    statuses: Counter[tuple[str, int]] = Counter()
    try:
        before = await _one(workers.port, "tiny", "gone")
        await write_snapshot(folder, 2, keys=(key(),), **values)
        refused_in_a_row, end = 0, time.monotonic() + 10
        while refused_in_a_row < 40 and time.monotonic() < end:  # whichever worker is met
            refused_in_a_row = refused_in_a_row + 1 if await _one(workers.port, "tiny", "gone") == 401 else 0
        for number in range(requests):
            if number in {requests // 3, 2 * requests // 3}:
                victim = number % 2
                workers.processes[victim].kill()
                await asyncio.to_thread(workers.processes[victim].wait)
                await asyncio.to_thread(workers.start, victim)
            for secret in ("gp-caller-secret", "gone"):
                statuses[secret, await _one(workers.port, "tiny", secret)] += 1
    finally:
        await asyncio.to_thread(workers.stop)
        await upstream.stop()
    served, refused = statuses["gp-caller-secret", 200], statuses["gone", 401]
    laws = {
        "the key was refused before it was revoked": before != 200,
        f"{requests - served} requests were not served": served != requests,
        f"a revoked key was let in {requests - refused} times": refused != requests,
    }
    return _broken(laws), f"without a control plane: {served} served, {refused} refused with a revoked key, 2 kills"


async def _until(end: float) -> None:
    while time.monotonic() < end:
        await asyncio.sleep(0.05)


async def _one(port: int, model: str, secret: str = "gp-caller-secret") -> int:
    client = await RawClient.open(port)
    try:
        await client.send(post(chat(max_tokens=20) | {"model": model}, secret=secret))
        return (await client.answer()).status
    finally:
        await client.close()


def _broken(laws: dict[str, bool]) -> str:
    return "; ".join(words for words, broken in laws.items() if broken)
