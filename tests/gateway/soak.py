"""The gateway's laws for as long as one likes: `python -m tests.gateway.soak [--minutes 10] [--requests 10000]`.

Rounds with 1, 2 and 4 workers: callers that leave, an upstream that cuts, workers that are killed; limits of requests,
tokens and dollars. After each round, what the upstream saw is compared with the log: every request once, no limit
passed, and what was reserved and not used can be reserved again. Then the rounds of `laws.py`: two machines on one
Redis, that Redis paused for 30 s, and gateways without a control plane. Exits 1 at the first law that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from tests.gateway.harness import (
    Exchange,
    MockUpstream,
    RawClient,
    Workers,
    ask,
    chat,
    completion,
    event,
    key,
    post,
    route,
    start_workers,
    usage_event,
    write_snapshot,
)
from tests.gateway.laws import alone_round, pause_round, redis_round

from groundplane.adapters.usage_log import FolderUsageLog
from groundplane.domain.ledger import UsageRecord
from groundplane.domain.serving.limits import Limit, Measure

RPM, TPM, DOLLARS = 400, 12_000, 20_000
"""Of the keys `rpm` and `tpm`, and of the budget of project `speech`, in micro-dollars."""
PLENTY = 5_000_000
"""Micro-dollars per day of the key `free`: never spent, so that what is reserved and not used can be looked for."""


@dataclass
class Round:
    """One round's upstream, what it saw, and what callers had."""

    chance: random.Random
    seen: Counter[str] = field(default_factory=Counter)
    spent: Counter[str] = field(default_factory=Counter)
    answered: set[str] = field(default_factory=set)
    began: float = field(default_factory=time.monotonic)

    async def behave(self, exchange: Exchange) -> None:
        """Answers with 10 + 20 tokens; one stream in ten is cut."""
        self.seen[exchange.seen.headers["x-request-id"]] += 1
        body = json.loads(exchange.seen.body)
        self.spent[f"{body['user']} requests"] += 1
        self.spent[f"{body['user']} tokens"] += 30
        if not body["stream"]:
            await exchange.json(completion(prompt=10, completion=20))
            return
        cut = self.chance.random() < 0.1
        await exchange.begin_stream()
        for word in ("one ", "two ", "three "):
            await exchange.chunk(event(word))
            if cut:
                exchange.cut()
                return
        await exchange.chunk(usage_event(prompt=10, completion=20))
        await exchange.chunk(b"data: [DONE]\n\n")
        await exchange.end()

    async def caller(self, port: int, stop: asyncio.Event) -> None:
        while not stop.is_set():
            client = None
            try:
                client = await RawClient.open(port)
                for _ in range(self.chance.randrange(1, 20)):
                    user = self.chance.choice(["rpm", "tpm", "usd", "free"])
                    model = "talk" if user == "usd" else "tiny"
                    body = chat(stream=self.chance.random() < 0.5, max_tokens=20, user=user) | {"model": model}
                    await client.send(post(body, secret=user))
                    if self.chance.random() < 0.05:
                        break
                    async with asyncio.timeout(30):
                        answer = await client.answer()
                    if answer.status == 200 and answer.whole:
                        self.answered.add(answer.headers["x-request-id"])
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                if client is not None:
                    await client.close()

    async def _comes_back(self, records: list[UsageRecord], port: int) -> bool:
        """Whether all that the key `free` has not spent can be reserved by one request."""
        left = PLENTY - sum(record.amount_microusd for record in records if record.key_id == "key-f")
        body = chat(max_tokens=(left - 300) // 2, user="free")
        end = time.monotonic() + 10
        while (await ask(port, post(body, secret="free"))).status != 200:
            if time.monotonic() > end:
                return False
            await asyncio.sleep(0.1)
        return True

    async def check(self, folder: Path, port: int) -> str:
        """What does not hold, in words; empty when all does."""
        minutes = (time.monotonic() - self.began) / 60
        records = await FolderUsageLog(folder / "wal").read(10**7)
        told = Counter(record.id for record in records)
        twice = [one for one, count in told.items() if count > 1]
        missing = [one for one in self.seen if one not in told]
        unpaid = self.answered - {record.id for record in records if record.status == 200}
        dollars = sum(record.amount_microusd for record in records if record.project == "speech")
        laws = {
            f"{len(twice)} requests are in the log twice": bool(twice),
            f"{len(missing)} requests of the upstream are not in the log": bool(missing),
            f"{len(unpaid)} answers are not in the log as such": bool(unpaid),
            "requests a minute were passed": self.spent["rpm requests"] > RPM * (1 + minutes),
            "tokens a minute were passed": self.spent["tpm tokens"] > TPM * (1 + minutes),
            f"{dollars} micro-dollars were spent": dollars > DOLLARS,
            "what was reserved and not used did not come back": not await self._comes_back(records, port),
        }
        return "; ".join(words for words, broken in laws.items() if broken)


async def round_of(folder: Path, count: int, requests: int, seed: int) -> tuple[str, str]:
    """One round; returns what does not hold, and what happened in words."""
    one = Round(random.Random(seed))
    upstream = MockUpstream(one.behave)
    await upstream.start()
    keys = (
        key("rpm", id="key-r", requests_per_minute=RPM),
        key("tpm", id="key-t", tokens_per_minute=TPM),
        key("usd", id="key-u", project="speech"),
        key("free", id="key-f"),
    )
    routes = (route("tiny", upstream.base_url), route("talk", upstream.base_url, project="speech"))
    limits = (Limit("key", "key-f", Measure.DOLLARS_DAY, PLENTY),)
    budgets = {"vision": 10**12, "speech": DOLLARS}
    await write_snapshot(folder, 1, keys=keys, routes=routes, budgets=budgets, limits=limits)
    workers: Workers = await asyncio.to_thread(start_workers, folder, count)
    stop = asyncio.Event()
    tasks = [asyncio.create_task(one.caller(workers.port, stop)) for _ in range(24)]
    kills, rss = 0, 0
    end = time.monotonic() + 120
    while len(one.seen) < requests and time.monotonic() < end:
        goal = len(one.seen) + requests // 6
        while len(one.seen) < goal and time.monotonic() < end:
            await asyncio.sleep(0.05)
        victim = one.chance.randrange(count)
        workers.processes[victim].send_signal(signal.SIGKILL)
        await asyncio.to_thread(workers.processes[victim].wait)
        await asyncio.to_thread(workers.start, victim)
        kills += 1
    stop.set()
    await asyncio.gather(*tasks)
    rss = max(psutil.Process(process.pid).memory_info().rss for process in workers.processes)
    said = f"{count} workers: {len(one.seen)} requests, {len(one.answered)} answered, {kills} kills, {rss >> 20} MiB"
    broken = await one.check(folder, workers.port)
    await asyncio.to_thread(workers.stop)
    await upstream.stop()
    return broken, said


def _laws_of_machines(pause_s: float) -> bool:
    """The rounds of `laws.py`, once each; False when one does not hold."""
    rounds = (redis_round, lambda folder: pause_round(folder, pause_s), alone_round)
    for one in rounds:
        with tempfile.TemporaryDirectory() as folder:
            broken, said = asyncio.run(one(Path(folder)))
        print(f"{said}{'' if not broken else f'; BROKEN: {broken}'}", flush=True)
        if broken:
            return False
    return True


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--minutes", type=float, default=10)
    arguments.add_argument("--requests", type=int, default=10_000, help="of one round")
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--pause-s", type=float, default=30, help="how long Redis is paused")
    options = arguments.parse_args()
    end = time.monotonic() + 60 * options.minutes
    if not _laws_of_machines(options.pause_s):
        return 1
    for number, count in enumerate(itertools.cycle((1, 2, 4))):
        with tempfile.TemporaryDirectory() as folder:
            broken, said = asyncio.run(round_of(Path(folder), count, options.requests, options.seed + number))
        print(f"{said}{'' if not broken else f'; BROKEN: {broken}'}", flush=True)
        if broken:
            return 1
        if time.monotonic() > end:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
