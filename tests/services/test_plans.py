"""Plans over a real store, pools and prices: what is written down, who sees it, and what a changed world says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from groundplane.adapters.executors.memory import MemoryExecutor
from groundplane.adapters.notify import MemoryNotifier
from groundplane.adapters.prices import BookPriceBook
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.audit import Event
from groundplane.domain.access import Exposure, Project
from groundplane.domain.hardware import Hardware, InstanceType
from groundplane.domain.model import ModelVersion
from groundplane.domain.planning.plan import Offer, Plan, PlanStatus
from groundplane.errors import InvalidInput, NotFound, Unavailable
from groundplane.identity import Actor, Role
from groundplane.services.approvals import Approvals
from groundplane.services.plans import Plans

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
GIB = 2**30
ADMIN = Actor(name="ops", role=Role.ADMIN)
ANA = Actor(name="ana", role=Role.MEMBER, project="default")
BO = Actor(name="bo", role=Role.MEMBER, project="vision")

JOB = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: tiny-lm, project: default, owner: ana, cost_center: research}
spec:
  command: [python, train.py]
  resources: {cpus: 2, memory: 2GiB}
  end_date: 7d
  max_cost: $0.50
  max_duration: 30m
"""
ENDPOINT = """\
apiVersion: groundplane/v1
kind: Endpoint
metadata: {name: tiny, project: default, owner: ana, cost_center: research}
spec:
  model: tiny-lm@1
  resources: {cpus: 1, memory: 512MiB}
  end_date: 1d
  max_cost: $5
  token_price: {prompt: $0.10, completion: $0.40}
"""
NODE = Offer(
    pool="local",
    node_type="this-machine",
    cpus=4,
    memory_bytes=8 * GIB,
    disk_free_bytes=100 * GIB,
    accelerators=0,
    accelerator="",
    price_microusd_per_hour=0,
    price_as_of=NOW.date(),
    price_source="",
)
GPU_TYPE = InstanceType(
    cloud="azure",
    name="Standard_NC24ads_A100_v4",
    region="eastus",
    accelerators=1,
    accelerator="nvidia-a100-80gb-pcie",
    cpus=24,
    memory_bytes=220 * GIB,
    disk_bytes=None,
    network_gbps=20,
    rdma_gbps=None,
    price_microusd_per_hour=3_673_000,
    spot_microusd_per_hour=None,
    price_as_of=date(2026, 11, 1),
    quota_family="NCADSA100v4",
    status="current",
    retirement_date=None,
    as_of="2026-11-01",
    sources=("x",),
    estimated=False,
)


class SetClock:
    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time


class Pool(MemoryExecutor):
    """A pool in memory whose nodes change between plan and apply."""

    def __init__(self, clock: SetClock, *offers: Offer) -> None:
        super().__init__(clock)
        self.nodes: Sequence[Offer] = offers
        self.silent = False

    async def offers(self) -> Sequence[Offer]:
        if self.silent:
            raise Unavailable("no answer after 5 s", "look at the pool")
        return self.nodes


class World:
    """One installation: its store, pools, price and clock, to be changed by the tests."""

    def __init__(self) -> None:
        self.store, self.clock = MemoryStore(), SetClock()
        self.local = Pool(self.clock, NODE)
        self.cloud = Pool(self.clock, replace(NODE, pool="cloud", node_type=GPU_TYPE.name, accelerators=1))
        self.plans = self.with_price(100_000)

    def with_price(self, microusd: int, as_of: date = date(2026, 11, 1), pools: str = "local") -> Plans:
        hardware = Hardware(instance_types=(GPU_TYPE,))
        book = BookPriceBook(local_price_microusd_per_hour=microusd, as_of=as_of, hardware=lambda: hardware)
        known = {"local": self.local, "cloud": self.cloud}
        executors = {name: known[name] for name in pools.split()}
        approvals = Approvals(
            store=self.store, clock=self.clock, notify=MemoryNotifier(), validity_s=3600, four_eyes=True
        )
        return Plans(
            store=self.store, clock=self.clock, ids=RandomIds(self.clock), executors=executors, prices=book,
            approvals=approvals, hardware=lambda: hardware, gateway_addresses=("10.0.0.4:4710",),
        )  # fmt: skip

    async def add(self, row: object) -> None:
        async with self.store.transaction() as tx:
            await tx.insert(row)

    async def events(self) -> list[Event]:
        return [event async for event in self.store.events()]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    for name in ("default", "vision"):
        await world.add(Project(id=name, owner="ana", cost_center="research", created_at=NOW))
    yield world
    await world.store.close()


def version(size_bytes: int = 4 * 2**20, project: str = "default") -> ModelVersion:
    return ModelVersion(
        id="tiny-lm@1", name="tiny-lm", number=1, project=project, owner="ana", files=(), manifest_sha256="0" * 64,
        size_bytes=size_bytes, certificate="{}", certificate_sha256="0" * 64, created_by="ana", created_at=NOW,
    )  # fmt: skip


def refused(plan: Plan) -> dict[str, str]:
    return {v.rule: f"{v.refused} | {v.refused.hint}" for v in plan.verdicts if v.refused is not None}


async def test_a_job_is_planned_priced_and_written_down(world: World):
    (plan,) = await world.plans.plan(ANA, JOB)
    assert plan.status is PlanStatus.READY
    assert plan.arithmetic == "$0.10/h × 1 node × 0.50 h = $0.05"
    assert plan.offer is not None and plan.offer.price_as_of == date(2026, 11, 1)
    assert plan.offer.price_source == "set by the operator"
    assert (plan.kind, plan.project, plan.owner, plan.created_by) == ("job", "default", "ana", "ana")
    assert await world.plans.get(ANA, plan.id) == plan
    (event,) = await world.events()
    assert (event.action, event.object_id, event.actor) == ("plan.create", plan.id, "ana")
    assert event.after["worst_case_microusd"] == 50_000
    assert await world.plans.recheck(plan) == []


async def test_a_refused_plan_is_kept_with_every_reason(world: World):
    text = JOB.replace("cpus: 2", "cpus: 64").replace("7d", "200d")
    (plan,) = await world.plans.plan(ANA, text)
    assert plan.status is PlanStatus.REFUSED
    assert refused(plan) == {
        "end-date-horizon": "end-date-horizon: needs an end date within 90 days, has 2027-06-08 12:00 UTC,"
        " 200 days away"
        " | set spec.end_date: 90d and renew it when the work goes on",
        "offer-fits": "offer-fits: needs 64 CPUs, has cpus 4 on local/this-machine | lower resources.cpus to 4",
    }
    (event,) = await world.events()
    assert event.after["refused"] == ["end-date-horizon", "offer-fits"]


async def test_documents_are_planned_together_or_not_at_all(world: World):
    plans = await world.plans.plan(ANA, f"{JOB}---\n{ENDPOINT}")
    assert [plan.kind for plan in plans] == ["job", "endpoint"]
    with pytest.raises(NotFound, match="no project vision"):
        await world.plans.plan(ANA, f"{JOB}---\n{ENDPOINT.replace('project: default', 'project: vision')}")
    with pytest.raises(InvalidInput, match="unknown field"):
        await world.plans.plan(ANA, f"{JOB}---\n{ENDPOINT}  zzz: 1\n")
    assert len(await world.plans.plans(ANA)) == 2


async def test_a_project_one_does_not_see_does_not_exist(world: World):
    (plan,) = await world.plans.plan(ANA, JOB)
    with pytest.raises(NotFound, match="no project default"):
        await world.plans.plan(BO, JOB)
    with pytest.raises(NotFound, match=f"no plan {plan.id}"):
        await world.plans.get(BO, plan.id)
    assert await world.plans.plans(BO) == []
    assert [found.id for found in await world.plans.plans(ADMIN)] == [plan.id]
    with pytest.raises(NotFound, match="no project nobody"):
        await world.plans.plan(ADMIN, JOB.replace("project: default", "project: nobody"))


# ---------------------------------------------------------------- endpoints


async def test_an_endpoint_needs_a_registered_version(world: World):
    (before,) = await world.plans.plan(ANA, ENDPOINT)
    assert refused(before)["model-exists"].startswith("model-exists: needs a registered model version, has tiny-lm@1")
    await world.add(version())
    (after,) = await world.plans.plan(ANA, ENDPOINT)
    assert after.status is PlanStatus.READY
    (typo,) = await world.plans.plan(ANA, ENDPOINT.replace("tiny-lm@1", "tiny-lm@7"))
    assert refused(typo)["model-exists"].endswith("| registered: tiny-lm@1")


async def test_another_teams_version_is_not_even_named(world: World):
    await world.add(version(project="vision"))
    (plan,) = await world.plans.plan(ANA, ENDPOINT)
    assert refused(plan)["model-exists"].endswith("| ground models list shows what is registered")
    (seen,) = await world.plans.plan(ADMIN, ENDPOINT)
    assert seen.status is PlanStatus.READY


async def test_weights_need_twice_their_size_in_memory(world: World):
    await world.add(version(size_bytes=300 * 2**20))
    (plan,) = await world.plans.plan(ANA, ENDPOINT)
    assert refused(plan) == {
        "model-memory": "model-memory: needs 2 × 300.0 MiB of weights = 600.0 MiB, has resources.memory 512.0 MiB"
        " | set resources.memory: 600MiB, or serve a smaller or quantised model"
    }


async def test_a_public_endpoint_needs_an_exposure_that_lasts(world: World):
    await world.add(version())
    public = f"{ENDPOINT}  public: true\n"
    (before,) = await world.plans.plan(ANA, public)
    assert list(refused(before)) == ["public-needs-exposure"]
    until = NOW + timedelta(hours=1)
    await world.add(Exposure(id="10.0.0.4:4710", owner="ana", reason="demo", created_at=NOW, expires_at=until))
    (after,) = await world.plans.plan(ANA, public)
    assert after.status is PlanStatus.READY
    world.clock.time = until
    assert [item.rule for item in await world.plans.recheck(after)] == ["public-needs-exposure"]


# ---------------------------------------------------------------- pools and prices


async def test_other_pools_are_shown_with_how_to_use_them(world: World):
    plans = world.with_price(100_000, pools="local cloud")
    (plan,) = await plans.plan(ANA, JOB.replace("cpus: 2", "cpus: 64"))
    assert [(item.pool, item.reasons[0].rule) for item in plan.rejected] == [("local", "cpus"), ("cloud", "pool")]
    (there,) = await plans.plan(ANA, JOB.replace("  end_date", "  pool: cloud\n  end_date").replace("$0.50", "$5"))
    assert there.arithmetic == "$3.673/h × 1 node × 0.50 h = $1.8365"
    assert there.offer is not None and there.offer.price_source == "azure eastus on-demand list price"


async def test_a_silent_pool_refuses_its_own_plans_and_nobody_elses(world: World):
    plans = world.with_price(100_000, pools="local cloud")
    world.cloud.silent = True
    (here,) = await plans.plan(ANA, JOB)
    assert here.status is PlanStatus.READY
    (there,) = await plans.plan(ANA, JOB.replace("  end_date", "  pool: cloud\n  end_date"))
    assert refused(there)["offer-fits"].startswith(
        "offer-fits: needs an offer, has pool cloud does not answer: no answer"
    )
    world.local.silent = True
    with pytest.raises(Unavailable, match="pool local does not answer"):
        await plans.recheck(here)


async def test_a_node_without_a_price_is_rejected_for_that(world: World):
    world.cloud.nodes = [replace(NODE, pool="cloud", node_type="mystery")]
    plans = world.with_price(100_000, pools="local cloud")
    (plan,) = await plans.plan(ANA, JOB.replace("  end_date", "  pool: cloud\n  end_date"))
    assert refused(plan) == {
        "offer-fits": "offer-fits: needs a price, has price none on cloud/mystery"
        " | add it to the price book, with its date and source"
    }


async def test_what_other_pools_lack_does_not_explain_this_one(world: World):
    world.cloud.nodes = [replace(NODE, pool="cloud", node_type="mystery")]
    plans = world.with_price(100_000, pools="local cloud")
    (plan,) = await plans.plan(ANA, JOB.replace("cpus: 2", "cpus: 64"))
    assert [item.pool for item in plan.rejected] == ["local", "cloud"]
    assert refused(plan)["offer-fits"].startswith("offer-fits: needs 64 CPUs, has cpus 4 on local/this-machine")
    world.local.nodes = []
    (empty,) = await plans.plan(ANA, JOB)
    assert refused(empty)["offer-fits"].startswith("offer-fits: needs an offer, has pool local has no nodes")


async def test_a_stale_price_is_flagged_and_a_zero_price_too(world: World):
    plans = world.with_price(0, as_of=date(2026, 1, 1))
    (plan,) = await plans.plan(ANA, JOB)
    warned = {verdict.rule: verdict.warning for verdict in plan.verdicts if verdict.warning}
    assert list(warned) == ["price-fresh", "price-not-zero"]
    assert warned["price-fresh"].startswith("the price is of 2026-01-01, 323 days old; at most 30 days are trusted")
    assert plan.status is PlanStatus.READY


async def test_a_changed_world_is_told_apart(world: World):
    (plan,) = await world.plans.plan(ANA, JOB)
    dearer = world.with_price(120_000, as_of=date(2026, 11, 20))
    assert [str(change) for change in await dearer.recheck(plan)] == [
        "price-unchanged: needs $0.10/h (2026-11-01), has $0.12/h (2026-11-20)"
    ]
    world.local.nodes = [replace(NODE, memory_bytes=GIB)]
    assert [change.rule for change in await world.plans.recheck(plan)] == ["offer-still-fits"]
    world.local.nodes = []
    assert [change.rule for change in await world.plans.recheck(plan)] == ["offer-still-there"]
    world.local.nodes = [replace(NODE, disk_free_bytes=GIB)]
    assert await world.plans.recheck(plan) == []
    world.clock.time = NOW + timedelta(days=8)
    assert [change.rule for change in await world.plans.recheck(plan)] == ["end-date-ahead"]


async def test_a_deleted_model_stops_an_endpoint_plan_from_being_applied(world: World):
    await world.add(version())
    (plan,) = await world.plans.plan(ANA, ENDPOINT)
    async with world.store.transaction() as tx:
        await tx.delete(ModelVersion, "tiny-lm@1")
    assert [change.rule for change in await world.plans.recheck(plan)] == ["model-exists"]


async def test_the_clock_set_back_between_plan_and_apply_changes_nothing(world: World):
    (plan,) = await world.plans.plan(ANA, JOB)
    world.clock.time = NOW - timedelta(days=1)
    assert await world.plans.recheck(plan) == []


async def test_an_end_counted_from_now_is_judged_at_the_moment_it_was_read_at(world: World):
    class Ticking(SetClock):
        def now(self) -> datetime:
            self.time += timedelta(seconds=1)
            return self.time

    world.clock = Ticking()
    world.plans = world.with_price(100_000)
    await world.add(version())
    (plan,) = await world.plans.plan(ANA, ENDPOINT)
    assert plan.endpoint is not None and plan.endpoint.max_duration_s == 24 * 3600
    assert refused(plan) == {}


async def test_who_lacks_accelerators_is_not_told_to_lower_cpus(world: World):
    (plan,) = await world.plans.plan(ANA, JOB.replace("{cpus: 2,", "{cpus: 64, accelerators: 8,"))
    assert "choose a pool with accelerators" in refused(plan)["offer-fits"]
    assert "lower resources.cpus" not in refused(plan)["offer-fits"]
