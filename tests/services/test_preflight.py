"""Orders furnished with walls and checks, nodes cordoned for their faults, and idle nodes asked."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from groundplane.adapters.executors.memory import MemoryExecutor
from groundplane.adapters.secrets import FolderSecrets
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.domain.hardware import Hardware
from groundplane.domain.isolation import Isolation, IsolationPolicy
from groundplane.domain.order import Order
from groundplane.domain.planning.plan import Offer
from groundplane.domain.preflight import CheckResult, CheckStatus, PreflightReport
from groundplane.domain.run import Attempt, EndReason, Observation, Run
from groundplane.domain.spec import JobSpec
from groundplane.domain.spec.parse import parse_one
from groundplane.errors import InvalidInput, NotFound, Unavailable
from groundplane.identity import SYSTEM, Actor, Role
from groundplane.services.cordons import Cordons
from groundplane.services.preflight import Preflight

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
ADMIN = Actor(name="ops", role=Role.ADMIN)
JOB = """
apiVersion: groundplane/v1
kind: Job
metadata: {name: a, project: vision, owner: o, cost_center: c}
spec:
  command: [x]
  pool: memory
  resources: {cpus: 1, memory: 1GiB}
  end_date: 7d
  max_cost: $1
  max_duration: 4h
"""
GOOD = CheckResult(name="accelerators", status=CheckStatus.OK, figures={"count": 2})
BAD = CheckResult(
    name="driver", status=CheckStatus.FAILED, need="one version", have="they differ", hint="restart", fault="node"
)


class Clock:
    moment = NOW

    def now(self) -> datetime:
        return self.moment


class House:
    """A preflight over a pool of two simulated nodes with two cards each."""

    def __init__(self, folder: Path, policy: IsolationPolicy | None = None) -> None:
        self.clock, self.store = Clock(), MemoryStore()
        self.answers: dict[str, CheckResult] = {}
        self.asked: list[str] = []
        offer = Offer(
            pool="memory", node_type="n", cpus=8, memory_bytes=2**36, disk_free_bytes=2**36, accelerators=2,
            accelerator="h100-80gb", price_microusd_per_hour=1, price_as_of=date(2026, 11, 1), price_source="", nodes=2,
        )  # fmt: skip
        self.executor = MemoryExecutor(self.clock, offers=(offer,), check=self.answer)
        self.cordons = Cordons(store=self.store, clock=self.clock)
        self.secrets = folder / "secrets"
        self.preflight = Preflight(
            store=self.store,
            clock=self.clock,
            ids=RandomIds(),
            executors={"memory": self.executor},
            cordons=self.cordons,
            secrets=FolderSecrets(self.secrets),
            hardware=Hardware,
            policy=policy or IsolationPolicy(),
            budget_s=15,
            idle_period_s=300,
        )

    def answer(self, order: Order, node: str) -> list[CheckResult]:
        self.asked.append(node)
        return [self.answers.get(node, GOOD)]

    async def actions(self) -> list[str]:
        return [event.action async for event in self.store.events()]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def job(**changes: object) -> JobSpec:
    spec = parse_one(JOB, now=NOW)
    assert isinstance(spec, JobSpec)
    return replace(spec, **changes)


def run_of(spec: JobSpec) -> Run:
    return Run(
        id="run-1", name="a", project="vision", owner="o", cost_center="c", spec=spec, spec_digest="", plan_id="p",
        hold_id="h", pool="memory", price_microusd_per_hour=1, created_by="o", created_at=NOW,
        end_date=NOW + timedelta(days=7), due_at=NOW,
    )  # fmt: skip


def order_of(spec: JobSpec) -> Order:
    return Order(
        attempt_id="run-1-1", run_id="run-1", number=1, command=spec.command, workdir="", env={}, output_dir="/o",
        checkpoint_dir="/c", cpus=1, memory_bytes=1, accelerators=0, max_duration_s=1, idle_limit_s=None,
        control_plane_gone_limit_s=None, stop_grace_s=1, not_after=NOW,
    )  # fmt: skip


async def furnished(house: House, spec: JobSpec) -> Order:
    return await house.preflight.furnish(run_of(spec), order_of(spec))


async def test_an_order_gets_walls_checks_and_its_own_checkpoint_target(tmp_path: Path) -> None:
    house = House(tmp_path, IsolationPolicy(minimum=Isolation.USER, first_uid=900, uids=5, pids_limit=7))
    order = await furnished(house, job(checkpoint_dir="/mnt/ckpt/", network=False))
    assert (order.isolation.mode, order.isolation.first_uid, order.isolation.network) == ("user", 900, False)
    assert (order.checkpoint_dir, order.checkpoint_share) == ("/mnt/ckpt/run-1", "/mnt/ckpt")
    assert order.pids_limit == 7 and order.preflight is not None
    off = await furnished(house, job(preflight=False))
    assert off.preflight is None and off.checkpoint_dir == "/c"


async def test_secrets_of_the_project_are_read_and_never_shown(house: House) -> None:
    (house.secrets / "vision").mkdir(parents=True)
    (house.secrets / "vision" / "token").write_text("hunter2")
    order = await furnished(house, job(secrets=("token",)))
    assert order.secrets == {"token": "hunter2"}
    assert "hunter2" not in repr(order)
    with pytest.raises(Unavailable, match="no secret other of project vision"):
        await furnished(house, job(secrets=("other",)))


async def test_cordoned_nodes_are_avoided_and_a_pool_of_them_is_waited_for(house: House) -> None:
    await house.cordons.cordon(ADMIN, "memory", "memory-0", "smells burnt")
    assert (await furnished(house, job())).avoid == ("memory-0",)
    await house.cordons.cordon(ADMIN, "memory", "memory-1", "too")
    with pytest.raises(Unavailable, match="every node of pool memory is cordoned; memory-0: smells burnt"):
        await furnished(house, job())
    await house.cordons.uncordon(ADMIN, "memory", "memory-0")
    assert (await furnished(house, job())).avoid == ("memory-1",)
    with pytest.raises(NotFound):
        await house.cordons.uncordon(ADMIN, "memory", "memory-0")
    assert await house.actions() == ["node.cordon", "node.cordon", "node.uncordon"]


async def test_a_nodes_fault_is_kept_and_cordons_it_once(house: House) -> None:
    attempt = Attempt(id="run-1-1", run_id="run-1", number=1, pool="memory", created_at=NOW)
    seen = Observation(
        attempt_id="run-1-1", state="ended", node="memory-0", end_reason=EndReason.NODE_UNFIT, preflight=(GOOD, BAD),
        unfit_node="memory-0",
    )  # fmt: skip
    for _ in range(2):
        async with house.store.transaction() as tx:
            await house.preflight.note(tx, run_of(job()), attempt, seen)
    cordon = (await house.cordons.of_pool("memory"))["memory-0"]
    assert (cordon.reason, cordon.hint, cordon.cordoned_by) == (
        "preflight driver: they differ",
        "restart",
        SYSTEM.name,
    )
    async with house.store.transaction() as tx:
        (report,) = await tx.find(PreflightReport, {"subject": "run-1-1"})
    assert report.failed == (BAD,)
    assert house.preflight.counts == {("accelerators", "ok"): 1, ("driver", "failed"): 1}
    assert await house.actions() == ["node.cordon"]


async def test_a_runs_own_fault_cordons_nobody(house: House) -> None:
    attempt = Attempt(id="run-1-1", run_id="run-1", number=1, pool="memory", created_at=NOW)
    seen = Observation(
        attempt_id="run-1-1", state="ended", node="memory-0", end_reason=EndReason.PREFLIGHT_FAILED,
        preflight=(replace(BAD, fault="run"),),
    )  # fmt: skip
    async with house.store.transaction() as tx:
        await house.preflight.note(tx, run_of(job()), attempt, seen)
    assert await house.cordons.of_pool() == {}


async def test_asking_for_a_spec_asks_every_node_and_is_on_the_trail(house: House) -> None:
    house.answers["memory-1"] = BAD
    reports = await house.preflight.check(ADMIN, JOB)
    assert [(report.node, len(report.failed)) for report in reports] == [("memory-0", 0), ("memory-1", 1)]
    assert await house.cordons.of_pool() == {}, "asking changes nothing"
    assert await house.actions() == ["preflight.check"]
    (one,) = await house.preflight.check(ADMIN, JOB, node="memory-1")
    assert one.node == "memory-1"
    with pytest.raises(NotFound, match="no node x"):
        await house.preflight.check(ADMIN, JOB, node="x")
    with pytest.raises(NotFound, match="no project vision"):
        await house.preflight.check(Actor(name="bo", role=Role.MEMBER, project="other"), JOB)
    with pytest.raises(InvalidInput):
        await house.preflight.check(ADMIN, "kind: Job")


async def test_an_idle_node_whose_driver_broke_is_cordoned_on_the_next_round(house: House) -> None:
    await house.preflight.probe_idle()
    await house.preflight.probe_idle()
    assert house.asked == ["memory-0", "memory-1"], "each once a period"
    house.answers["memory-1"] = BAD
    house.clock.moment += timedelta(minutes=5)
    await house.preflight.probe_idle()
    assert set(await house.cordons.of_pool("memory")) == {"memory-1"}
    house.clock.moment += timedelta(minutes=5)
    await house.preflight.probe_idle()
    assert house.asked[4:] == ["memory-0"], "a cordoned node is left alone"


async def test_a_silent_node_is_not_cordoned_for_its_silence(house: House) -> None:
    house.executor.reachable = False
    await house.preflight.probe_idle()
    assert await house.cordons.of_pool() == {}
