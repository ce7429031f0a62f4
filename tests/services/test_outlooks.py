"""Outlooks over real catalogue rows and clouds that answer, fall silent, or change their mind before apply."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from groundplane.adapters.catalog_overlay import OperatorCatalog
from groundplane.adapters.executors.memory import MemoryExecutor
from groundplane.adapters.machine import ThisMachine
from groundplane.adapters.notify import MemoryNotifier
from groundplane.adapters.prices import BookPriceBook
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.cli.outlook_views import outlook_views
from groundplane.cli.render import Table
from groundplane.domain.access import Project
from groundplane.domain.planning.plan import Plan, PlanStatus
from groundplane.domain.planning.recon import CloudSku, CloudView, Quota
from groundplane.domain.planning.report import elsewhere, markdown
from groundplane.identity import Actor, Role
from groundplane.services import outlooks
from groundplane.services.approvals import Approvals
from groundplane.services.outlooks import Outlooks
from groundplane.services.plans import Plans
from groundplane.services.recon import Recon

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ANA = Actor(name="ana", role=Role.MEMBER, project="default")
A100 = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: tune, project: default, owner: ana, cost_center: research}
spec:
  command: [python, train.py]
  resources: {cpus: 24, memory: 200GiB, accelerators: 1, instance_type: NC24ads_A100_v4, region: eastus}
  end_date: 30d
  max_cost: $1,000
  max_duration: 1d
"""


class SetClock:
    time = NOW

    def now(self) -> datetime:
        return self.time


class SaidCloud:
    """A cloud that answers what it is told to, once it may."""

    cloud = "azure"

    def __init__(self) -> None:
        self.used, self.limit, self.asked, self.may_answer = 0.0, 96.0, 0, asyncio.Event()
        self.may_answer.set()

    async def look(self, regions: Sequence[str]) -> list[CloudView]:
        self.asked += 1
        await self.may_answer.wait()
        family = "StandardNCADSA100v4Family"
        sku = CloudSku(name="Standard_NC24ads_A100_v4", cpus=24, memory_bytes=220 * 2**30, quota_family=family)
        return [
            CloudView(
                cloud="azure",
                region=region,
                source="said",
                read_at=NOW,
                skus=(sku,),
                quotas=(
                    Quota(cloud="azure", region=region, family=family, unit="vCPU", used=self.used, limit=self.limit),
                ),
            )
            for region in regions
        ]


class World:
    def __init__(self, folder: Path) -> None:
        self.store, self.clock, self.cloud, self.rules = (
            MemoryStore(),
            SetClock(),
            SaidCloud(),
            {"eu-only": "2", "weekend": "3", "tags": "4"},
        )
        self.book = OperatorCatalog(folder / "catalog")
        prices = BookPriceBook(local_price_microusd_per_hour=1, as_of=NOW.date(), hardware=self.book.hardware)
        self.recon = Recon(
            store=self.store,
            clock=self.clock,
            machine=ThisMachine(folder),
            executors={},
            prices=prices,
            catalog=self.book,
            clouds=(self.cloud,),
        )
        self.plans = Plans(
            store=self.store,
            clock=self.clock,
            ids=RandomIds(self.clock),
            executors={"local": MemoryExecutor(self.clock, pool="local")},
            prices=prices,
            approvals=Approvals(
                store=self.store, clock=self.clock, notify=MemoryNotifier(), validity_s=3600, four_eyes=True
            ),
            hardware=self.book.hardware,
            outlooks=Outlooks(
                clock=self.clock,
                catalogue=self.book.catalogue,
                registered=("local",),
                recon=self.recon,
                rules=lambda: self.rules,
            ),
        )

    async def plan(self, text: str = A100) -> Plan:
        (plan,) = await self.plans.plan(ANA, text)
        return plan


@pytest.fixture
async def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    async with world.store.transaction() as tx:
        await tx.insert(Project(id="default", owner="ana", cost_center="research", created_at=NOW))
    return world


def rules(plan: Plan) -> set[str]:
    return {verdict.rule for verdict in plan.verdicts if verdict.refused is not None}


async def test_what_changed_of_quota_and_rules_is_told_with_its_figures(world: World) -> None:
    plan = await world.plan()
    assert plan.outlook is not None
    assert [(shot.used, shot.limit) for shot in plan.outlook.quotas] == [(0.0, 96.0)]
    assert [change.rule for change in await world.plans.recheck(plan)] == ["executor"]
    world.cloud.used, world.rules = 90.0, {"no-latest": "1", "eu-only": "2", "tags": "9"}
    world.clock.time = NOW.replace(hour=13)  # what was answered before is too old by now
    changed = {change.rule: str(change) for change in await world.plans.recheck(plan)}
    assert set(changed) == {"executor", "rules-unchanged", "quota-unchanged", "quota"}
    assert changed["rules-unchanged"].endswith("has came: no-latest; went: weekend; changed: tags")
    assert changed["quota-unchanged"].endswith("in azure eastus, has 90 of 96")
    assert changed["quota"].startswith("quota: needs 24 vCPU of StandardNCADSA100v4Family")


async def test_the_hash_binds_prices_quota_and_rules(world: World) -> None:
    first = await world.plan()
    same = await world.plan()
    assert first.hash == same.hash and first.outlook is not None and same.outlook is not None
    world.rules = {"no-latest": "1"}
    other = await world.plan()
    assert other.hash != first.hash and other.outlook is not None
    unruled = {"rules": "", "each_rule": ()}
    assert replace(other.outlook.basis, **unruled) == replace(first.outlook.basis, **unruled)
    world.cloud.used = 24.0
    world.clock.time = NOW.replace(hour=13)
    third = await world.plan()
    assert third.outlook is not None and third.outlook.basis.quotas != first.outlook.basis.quotas


async def test_a_slow_cloud_is_a_gap_now_and_an_answer_later(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlooks, "PATIENCE_S", 0.02)
    world.cloud.may_answer.clear()
    world.cloud.used = 96.0
    before = await world.plan()
    (warning,) = [verdict.warning for verdict in before.verdicts if verdict.rule == "quota-known"]
    assert "azure did not answer within 0.02 s" in warning and "quota" not in rules(before)
    world.cloud.may_answer.set()
    views, gaps = await world.recon.ask({"azure": ["eastus"]}, 30)
    assert (len(views), gaps, world.cloud.asked) == (1, [], 1)  # one answer for both who asked
    assert "quota" in rules(await world.plan())


async def test_without_any_live_source_nothing_is_refused_for_quota(world: World) -> None:
    world.cloud.cloud = "somewhere-else"
    plan = await world.plan()
    assert rules(plan) == set()
    (warning,) = [verdict.warning for verdict in plan.verdicts if verdict.rule == "quota-known"]
    assert "no live source answered" in warning


async def test_one_region_name_in_two_clouds_takes_offers_of_each_and_says_so(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "catalog"
    folder.mkdir(exist_ok=True)
    (folder / "instance_types.yaml").write_text(
        "table: instance_types\nas_of: 2026-11-20\nsources: {c: {what: us, where: here, as_of: 2026-11-01}}\nrows:\n"
        "  - {cloud: aws, name: mine.large, region: eastus, cpus: 8, memory_gib: 32, usd_per_hour: 0.01,"
        " price_as_of: 2026-11-01, status: current, sources: [c], as_of: 2026-11-01}\n"
    )
    text = A100.replace(
        "cpus: 24, memory: 200GiB, accelerators: 1, instance_type: NC24ads_A100_v4, ", "cpus: 4, memory: 8GiB, "
    )
    plan = await world.plan(text)
    assert plan.offer is not None and plan.offer.pool == "aws eastus"
    (warning,) = [verdict.warning for verdict in plan.verdicts if verdict.rule == "region-clear"]
    assert warning.startswith("aws and azure both have a region eastus")
    chosen = await world.plan(text.replace("region: eastus", "region: eastus, cloud: azure"))
    assert chosen.offer is not None and chosen.offer.pool == "azure eastus"


async def test_counts_are_by_project_and_status(world: World) -> None:
    await world.plan()
    assert await world.plans.counts(ANA) == {("default", "ready"): 1}
    assert await world.plans.counts(Actor(name="bo", role=Role.MEMBER, project="other")) == {}


STRANGE = st.fixed_dictionaries(
    {
        "resources": st.fixed_dictionaries(
            {
                "cpus": st.sampled_from([0.1, 4, 4096]),
                "memory": st.sampled_from(["1MiB", "64GiB", "900TiB"]),
                "nodes": st.sampled_from([1, 3, 10_000]),
                "accelerators": st.sampled_from([0, 1, 1024]),
            },
            optional={
                "accelerator": st.sampled_from(["a100", "nonsense", "Trainium2"]),
                "instance_type": st.sampled_from(["Standard_D64s_v5", "zzz", "Standard_NV6ads_A10_v5", "trn1.2xlarge"]),
                "cloud": st.sampled_from(["azure", "aws", "gcp"]),
                "region": st.sampled_from(["eastus", "nowhere"]),
                "purchase": st.sampled_from(["spot", "reserved"]),
            },
        ),
        "training": st.fixed_dictionaries(
            {"precision": st.sampled_from(["fp32", "int4"]), "batch": st.sampled_from([1, 65_536])},
            optional={
                "params": st.sampled_from(["1", "7B", "1000000T"]),
                "model": st.sampled_from(["deepseek-v3", "nope"]),
                "tokens": st.sampled_from([1, "1000000T"]),
            },
        ),
        "data": st.just(
            [{"name": "d", "path": "/d", "size": "900PiB", "passes": 10_000, "tier": "cosmos", "throughput": "1B/s"}]
        ),
        "max_duration": st.sampled_from(["1s", "80d"]),
        "interruptions_per_day": st.sampled_from([0, 10_000]),
    }
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=STRANGE)
async def test_the_strangest_specs_end_in_verdicts_that_can_be_stored(world: World, body: dict[str, Any]) -> None:
    document = {
        "apiVersion": "groundplane/v1",
        "kind": "Job",
        "metadata": {"name": "odd", "project": "default", "owner": "ana", "cost_center": "r1"},
        "spec": {"command": "true", "end_date": "90d", "max_cost": "$5", **body},
    }
    plan = await world.plan(json.dumps(document))
    assert plan.outlook is not None and plan.status in ("refused", "needs-approval", "ready")
    assert rules(plan) or plan.status != "refused"
    assert all(0 <= c.expected_microusd <= c.worst_case_microusd < 2**63 for c in plan.outlook.choices)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
    assert markdown(plan).count("\n## ") == 0


WORK = A100.replace("  max_duration: 1d\n", "  max_duration: 10d\n  training: {params: 7B, method: lora, tokens: 1B}\n")


async def test_work_that_ends_after_its_deadline_is_refused_with_its_hours(world: World) -> None:
    in_time = await world.plan(WORK)
    hours = next(choice.hours for choice in in_time.outlook.choices if choice.chosen)  # type: ignore[union-attr]
    assert "in-time" not in rules(in_time) and hours > 12
    late = await world.plan(WORK + "  deadline: 12h\n")
    (refused,) = [v.refused for v in late.verdicts if v.rule == "in-time" and v.refused]
    assert refused.need == f"{hours:,.2f} h on 1 × Standard_NC24ads_A100_v4"
    assert refused.have == "12.00 h until the deadline"


def warning(plan: Plan, rule: str) -> str:
    return next(verdict.warning for verdict in plan.verdicts if verdict.rule == rule)


async def test_hours_that_nobody_knows_are_held_against_the_deadline_as_far_as_they_are_known(world: World) -> None:
    said = warning(await world.plan(A100 + "  deadline: 12h\n"), "deadline-clear")
    assert said.startswith("it may run 1d, and the deadline is in 12.00 h")
    assert not warning(await world.plan(A100 + "  deadline: 2d\n"), "deadline-clear")


async def test_data_of_unknown_speed_is_told_with_the_rate_that_would_do(world: World) -> None:
    data = "  data: [{name: d, path: /mnt/d, size: 750GB, passes: 4, tier: aws-efs}]\n"
    said = warning(await world.plan(A100.replace("max_duration: 1d", "max_duration: 90m") + data), "storage-known")
    assert "how fast d is read is unknown: no rate is known of aws-efs" in said
    assert f"750.00 GB × 4 passes ÷ 1h 30m = {750e9 * 4 / 5400 / 1e6:.1f} MB/s at least" in said


async def test_a_retired_machine_is_told_even_where_it_would_be_too_small(world: World) -> None:
    old = A100.replace("cpus: 24, memory: 200GiB", "cpus: 16, memory: 64GiB").replace("NC24ads_A100_v4", "NC6s_v3")
    refused = rules(await world.plan(old))
    assert {"not-retired", "machine-size"} <= refused


SMALL = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: count, project: default, owner: ana, cost_center: research}
spec: {command: [wc, data], resources: {cpus: 1, memory: 256MiB}, end_date: 2d, max_cost: $1, max_duration: 10m}
"""


async def test_small_work_has_its_choices_told_in_one_line(world: World) -> None:
    small = await world.plan(SMALL)
    assert small.status is PlanStatus.READY and small.outlook is not None, [
        str(v.refused) for v in small.verdicts if v.refused
    ]
    others = [each for each in small.outlook.choices if each.fits and not each.chosen]
    line = elsewhere(small)
    assert line.startswith(f"the cheapest of {len(others)} other ways: $")
    assert others[0].node_type in line and others[0].place in line
    (folded,) = [view for view in outlook_views(small) if "elsewhere" in str(view)]
    assert str(folded).endswith(f"{line}: --choices")
    tables = [view for view in outlook_views(small, choices=True) if isinstance(view, Table)]
    assert len(tables[0].rows) == len(others) + 1
    assert elsewhere(await world.plan(A100)) == "", "cards are worth choosing"
    refused = await world.plan(SMALL.replace("cpus: 1", "cpus: 4000"))
    assert elsewhere(refused) == "", "what is refused shows every way out"
