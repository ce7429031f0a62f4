"""What every executor promises, whatever stands behind it: run on real processes and on the scripted pool alike."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from tests.hosts import Hosts

from groundplane.adapters.executors.local import LocalExecutor
from groundplane.adapters.executors.memory import MemoryExecutor, Script
from groundplane.adapters.executors.nodes import RunnerOptions
from groundplane.adapters.executors.ssh import SshExecutor
from groundplane.domain.order import Order
from groundplane.domain.pool_file import PoolDefinition, parse_pools
from groundplane.domain.run import EndReason, FoundCheckpoint, Observation
from groundplane.errors import Conflict, Unavailable
from groundplane.ports import Executor
from groundplane.runner.files import read_state

pytestmark = pytest.mark.asyncio(loop_scope="module")
needs_sshd = pytest.mark.needs("sshd")
PATIENCE_S = 90.0

SAVES = """
import hashlib, json, os, time
for step in (10, 20):
    folder = os.path.join(os.environ["GROUND_CHECKPOINT_DIR"], f"step-{step}")
    os.makedirs(folder)
    open(os.path.join(folder, "w"), "wb").write(b"1234")
    files = [{"path": "w", "sha256": hashlib.sha256(b"1234").hexdigest(), "bytes": 4}]
    with open(os.path.join(folder, "manifest.json"), "w") as file:
        json.dump({"step": step, "files": files, "metrics": {"loss": 0.5}}, file)
time.sleep(60)
"""

# Each behaviour twice: as a command for pools that run commands, as a script for the one that does not.
COMMANDS = {
    "succeeds": ("sh", "-c", "echo one; echo two"),
    "exits 3": ("sh", "-c", "echo one; exit 3"),
    "is missing": ("no-such-program",),
    "runs on": ("sh", "-c", "echo one; exec sleep 60"),
    "saves": ("python3", "-I", "-S", "-c", SAVES),
}
SCRIPTS = {
    "succeeds": Script(log=((0.0, b"one\n"), (0.1, b"two\n")), ends_after_s=0.2),
    "exits 3": Script(log=((0.0, b"one\n"),), ends_after_s=0.1, end_reason=EndReason.COMMAND_FAILED, exit_code=3),
    "is missing": Script(end_reason=EndReason.COMMAND_NOT_FOUND, exit_code=None),
    "runs on": Script(log=((0.0, b"one\n"),), ends_after_s=None),
    "saves": Script(
        checkpoints=tuple(
            (step / 100, FoundCheckpoint(step=step, path=f"/c/step-{step}", size_bytes=4, metrics={"loss": 0.5}))
            for step in (10, 20)
        ),
        ends_after_s=None,
        seen=({"environment": {"packages": []}, "hardware": {"drivers": [{"name": "linux kernel"}]}, "unknown": []},),
    ),
}


class Hand:
    """A clock moved by hand."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.at


class System:
    def now(self) -> datetime:
        return datetime.now(UTC)


class Pool:
    """An executor under test, with the means to give it work and to let time pass."""

    _numbers = itertools.count(1)

    def __init__(self, executor: Executor, home: Path, clock: Hand | System, reopen: Callable[[], Executor]) -> None:
        self.executor, self.home, self.clock, self.reopen = executor, home, clock, reopen
        # Each test has attempts of its own, for tests share the machines behind SSH and the connections to them.
        self.tag = f"{next(self._numbers):03}"
        self.one, self.two, self.never = (f"att-{self.tag}-{name}" for name in ("one", "two", "never"))

    def order(self, does: str, attempt_id: str = "", **changes: Any) -> Order:
        fields: dict[str, Any] = {
            "attempt_id": attempt_id or self.one,
            "run_id": f"run-{self.tag}",
            "number": 1,
            "command": COMMANDS[does],
            "workdir": "",
            "env": {"DOES": does},
            "checkpoint_dir": str(self.home / "checkpoints"),
            "output_dir": str(self.home / "output"),
            "cpus": 1.0,
            "memory_bytes": 0,
            "accelerators": 0,
            "max_duration_s": 3600.0,
            "idle_limit_s": None,
            "control_plane_gone_limit_s": None,
            "stop_grace_s": 1.0,
            "not_after": self.clock.now() + timedelta(hours=2),
        }
        return Order(**{**fields, **changes})

    async def start(self, does: str, attempt_id: str = "", **changes: Any) -> None:
        await self.executor.start(self.order(does, attempt_id, **changes))

    async def attempts(self) -> list[str]:
        """What the executor has of this test."""
        return [each for each in await self.executor.attempts() if each.startswith(f"att-{self.tag}-")]

    async def see(self, attempt_id: str = "") -> Observation:
        attempt_id = attempt_id or self.one
        return (await self.executor.observe([attempt_id]))[attempt_id]

    async def until(self, holds: Callable[[Observation], object], attempt_id: str = "") -> Observation:
        deadline = time.monotonic() + PATIENCE_S
        while not holds(seen := await self.see(attempt_id)):
            assert time.monotonic() < deadline, f"still {seen}"
            if isinstance(self.clock, Hand):
                self.clock.at += timedelta(seconds=0.05)
            await asyncio.sleep(0 if isinstance(self.clock, Hand) else 0.03)
        return seen

    async def ended(self, attempt_id: str = "") -> Observation:
        return await self.until(lambda seen: seen.state == "ended", attempt_id)

    async def said(self, words: bytes) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while words not in (await self.executor.log(self.one, 0, 1000)).data:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.03)


def ssh_pool(hosts: Hosts, count: int = 4, **fields: object) -> PoolDefinition:
    """A pool of the first `count` machines, as the pool file would describe it."""
    document = {
        "apiVersion": "groundplane/v1",
        "kind": "Pools",
        "pools": {
            "lab": {
                "executor": "ssh",
                "user": "root",
                "key_file": str(hosts.key),
                "known_hosts": str(hosts.known_hosts),
                "price": "$1.20",
                "price_as_of": "2026-11-20",
                "nodes": [{"name": host.name, "host": host.address} for host in hosts.hosts[:count]],
                **fields,
            }
        },
    }
    (pool,) = parse_pools(json.dumps(document))
    return pool


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def opened() -> AsyncIterator[list[SshExecutor]]:
    """The executors behind SSH: the first is every test's, on two machines with one connection to each."""
    executors = list[SshExecutor]()
    yield executors
    for executor in executors:
        await executor.close()


@pytest.fixture(scope="module")
def machines(session_hosts: Hosts) -> Iterator[Hosts]:
    session_hosts.mend()
    yield session_hosts
    session_hosts.clear()


@pytest_asyncio.fixture(loop_scope="module", params=["local", "memory", pytest.param("ssh", marks=needs_sshd)])
async def pool(
    request: pytest.FixtureRequest, opened: list[SshExecutor], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Pool]:
    options = RunnerOptions(sample_period_s=0.2)
    if request.param == "memory":
        hand = Hand()
        two = replace((await MemoryExecutor(hand).offers())[0], nodes=2)
        memory = MemoryExecutor(hand, play=lambda order: SCRIPTS[order.env["DOES"]], offers=[two])
        yield Pool(memory, tmp_path, hand, lambda: memory)
        return
    if request.param == "ssh":
        definition = ssh_pool(request.getfixturevalue("machines"), 2)
        home = tmp_path_factory.getbasetemp() / "conformance"

        def open_ssh() -> SshExecutor:
            opened.append(SshExecutor(definition, home, System(), installation="test", options=options))
            return opened[-1]

        mine = Pool(opened[0] if opened else open_ssh(), home, System(), open_ssh)
        yield mine
        for attempt_id in await mine.attempts():
            await mine.executor.stop(attempt_id, EndReason.STOPPED_BY_USER)
        return
    home = tmp_path / "home"

    def open_local() -> LocalExecutor:
        return LocalExecutor(home, System(), options=options)

    yield Pool(open_local(), tmp_path, System(), open_local)
    for folder in (home / "attempts").glob("*"):
        state = read_state(folder) or {}
        if state.get("state") in {"starting", "running"}:
            os.kill(state["runner_pid"], signal.SIGTERM)


async def test_offers_say_what_the_pool_has(pool: Pool) -> None:
    (offer,) = await pool.executor.offers()
    assert offer.cpus > 0
    assert offer.memory_bytes > 0
    assert offer.disk_free_bytes > 0
    assert (offer.price_microusd_per_hour > 0) == bool(offer.price_source)
    assert offer.simulated == (offer.pool == "memory")


async def test_a_started_attempt_runs_and_ends(pool: Pool) -> None:
    await pool.start("succeeds")
    seen = await pool.ended()
    assert (seen.end_reason, seen.exit_code) == (EndReason.SUCCEEDED, 0)
    assert seen.node
    assert seen.started_at is not None
    assert seen.ended_at is not None
    assert seen.started_at <= seen.ended_at
    assert seen.last_log_at is not None


@pytest.mark.parametrize(
    ("does", "reason", "exit_code"),
    [("exits 3", EndReason.COMMAND_FAILED, 3), ("is missing", EndReason.COMMAND_NOT_FOUND, None)],
)
async def test_endings_carry_their_reason(pool: Pool, does: str, reason: EndReason, exit_code: int | None) -> None:
    await pool.start(does)
    seen = await pool.ended()
    assert seen.end_reason is reason
    assert seen.exit_code == exit_code


async def test_starting_twice_starts_once(pool: Pool) -> None:
    await asyncio.gather(*(pool.start("succeeds") for _ in range(4)))
    await pool.ended()
    await pool.start("succeeds")
    assert (await pool.executor.log(pool.one, 0, 1000)).data == b"one\ntwo\n"
    assert await pool.attempts() == [pool.one]


async def test_what_was_never_started_is_absent(pool: Pool) -> None:
    await pool.start("runs on")
    seen = await pool.executor.observe([pool.never, pool.one])
    assert seen[pool.never].state == "absent"
    assert seen[pool.never].end_reason is None
    assert seen[pool.one].state in {"starting", "running"}
    assert await pool.executor.observe([]) == {}


async def test_a_stop_ends_it_with_its_reason_and_the_first_reason_stays(pool: Pool) -> None:
    await pool.start("runs on")
    await pool.until(lambda seen: seen.state == "running")
    await pool.executor.stop(pool.one, EndReason.MAX_COST)
    await pool.executor.stop(pool.one, EndReason.STOPPED_BY_USER)
    assert (await pool.ended()).end_reason is EndReason.MAX_COST
    await pool.executor.stop(pool.one, EndReason.STOPPED_BY_USER)
    assert (await pool.see()).end_reason is EndReason.MAX_COST


async def test_a_stop_before_the_start_means_it_never_runs(pool: Pool) -> None:
    await pool.executor.stop(pool.one, EndReason.BUDGET_SPENT)
    assert (await pool.see()).state == "absent"
    await pool.start("succeeds")
    seen = await pool.ended()
    assert (seen.end_reason, seen.started_at) == (EndReason.BUDGET_SPENT, None)
    assert (await pool.executor.log(pool.one, 0, 1000)).data == b""


async def test_a_log_goes_on_from_any_offset(pool: Pool) -> None:
    await pool.start("succeeds")
    await pool.ended()
    first = await pool.executor.log(pool.one, 0, 5)
    assert (first.data, first.next_offset, first.complete) == (b"one\nt", 5, False)
    rest = await pool.executor.log(pool.one, first.next_offset, 1000)
    assert (rest.data, rest.offset, rest.next_offset, rest.complete) == (b"wo\n", 5, 8, True)
    past = await pool.executor.log(pool.one, 99, 1000)
    assert (past.data, past.next_offset, past.complete) == (b"", 99, True)


async def test_a_running_log_is_not_complete(pool: Pool) -> None:
    await pool.start("runs on")
    await pool.said(b"one\n")
    chunk = await pool.executor.log(pool.one, 4, 1000)
    assert (chunk.data, chunk.next_offset, chunk.complete) == (b"", 4, False)


async def test_nobodys_log_and_samples_are_empty(pool: Pool) -> None:
    assert (await pool.executor.log(pool.never, 0, 1000)).data == b""
    assert await pool.executor.samples(pool.never, 10) == []


async def test_samples_are_the_newest_oldest_first(pool: Pool) -> None:
    await pool.start("runs on")
    await pool.until(lambda seen: seen.memory_bytes)
    if isinstance(pool.clock, Hand):
        pool.clock.at += timedelta(seconds=10)
    samples = await pool.executor.samples(pool.one, 100)
    assert 0 < len(await pool.executor.samples(pool.one, 1)) <= 1
    assert [each.at for each in samples] == sorted(each.at for each in samples)
    assert samples[0].memory_bytes > 0


async def test_what_is_around_a_job_is_seen_before_it_starts_when_it_is_asked_for(pool: Pool) -> None:
    await pool.start("saves", observe=True)
    await pool.until(lambda seen: seen.started_at)
    (seen,) = await pool.executor.circumstances(pool.one)
    assert seen["hardware"]["drivers"][0]["name"] == "linux kernel"  # type: ignore[index]
    assert isinstance(seen["environment"]["packages"], list)  # type: ignore[index]
    assert await pool.executor.circumstances(pool.never) == []


async def test_checkpoints_are_reported_while_it_runs(pool: Pool) -> None:
    await pool.start("saves")
    seen = await pool.until(lambda seen: len(seen.checkpoints) == 2)
    assert seen.state == "running"
    assert [(found.step, found.size_bytes) for found in seen.checkpoints] == [(10, 4), (20, 4)]
    assert seen.checkpoints[-1].metrics == {"loss": 0.5}


@pytest.mark.parametrize(
    ("limit", "reason"),
    [({"max_duration_s": 0.3}, EndReason.MAX_DURATION), ({"not_after": -1.0}, EndReason.END_DATE)],
)
async def test_limits_hold_without_anybody_asking(pool: Pool, limit: dict[str, Any], reason: EndReason) -> None:
    if "not_after" in limit:
        limit = {"not_after": pool.clock.now() + timedelta(seconds=limit["not_after"])}
    await pool.start("runs on", **limit)
    assert (await pool.ended()).end_reason is reason


async def test_another_control_plane_finds_what_runs_and_carries_on(pool: Pool) -> None:
    await pool.start("runs on", pool.one)
    await pool.start("runs on", pool.two)
    await pool.until(lambda seen: seen.state == "running", pool.two)
    pool.executor = pool.reopen()
    assert await pool.attempts() == [pool.one, pool.two]
    assert (await pool.see(pool.two)).state == "running"
    await pool.executor.stop(pool.two, EndReason.STOPPED_BY_USER)
    assert (await pool.ended(pool.two)).end_reason is EndReason.STOPPED_BY_USER
    assert (await pool.see(pool.one)).state == "running"


async def test_a_running_attempt_is_not_released(pool: Pool) -> None:
    await pool.start("runs on")
    with pytest.raises(Conflict):
        await pool.executor.release(pool.one)
    assert (await pool.until(lambda seen: seen.state == "running")).state == "running"


async def test_a_released_attempt_is_forgotten_but_its_log_stays(pool: Pool) -> None:
    await pool.start("succeeds")
    await pool.ended()
    await pool.executor.release(pool.one)
    await pool.executor.release(pool.one)
    await pool.executor.release(pool.never)
    assert (await pool.see()).state == "absent"
    assert await pool.attempts() == []
    log = await pool.executor.log(pool.one, 0, 1000)
    assert (log.data, log.complete) == (b"one\ntwo\n", True)
    await pool.start("succeeds")  # a late, repeated start must not run it again
    assert (await pool.see()).state == "absent"
    assert (await pool.executor.log(pool.one, 0, 1000)).data == b"one\ntwo\n"


async def test_a_stop_of_the_unknown_can_be_swept_away(pool: Pool) -> None:
    await pool.executor.stop(pool.one, EndReason.STOPPED_BY_USER)
    assert await pool.attempts() == [pool.one]
    await pool.executor.release(pool.one)
    assert await pool.attempts() == []


async def test_a_gang_runs_as_one_or_is_refused_where_there_is_one_node(pool: Pool) -> None:
    if len(await pool.executor.nodes()) < 2:
        if isinstance(pool.executor, LocalExecutor):
            with pytest.raises(Unavailable, match="has one"):
                await pool.start("succeeds", nodes=2)
        return
    await pool.start("succeeds", nodes=2)
    seen = await pool.ended()
    assert seen.end_reason is EndReason.SUCCEEDED
    assert len(seen.node.split(",")) == 2
    for rank in (0, 1):
        assert (await pool.executor.log(pool.one, 0, 1000, rank)).data == b"one\ntwo\n"
    assert await pool.attempts() == [pool.one]


async def test_nodes_say_what_they_have_and_how_they_are(pool: Pool) -> None:
    for node in await pool.executor.nodes():
        assert node.takes_work
        assert node.cpus > 0
        assert node.memory_bytes > 0


async def test_beating_is_harmless_at_any_time(pool: Pool) -> None:
    await pool.executor.beat()
    await pool.executor.beat()
