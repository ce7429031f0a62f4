"""Policies over real stores: what is in force, what a broken folder does, exceptions on plans, the trail, replays."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from groundplane.adapters.executors.memory import MemoryExecutor
from groundplane.adapters.notify import MemoryNotifier
from groundplane.adapters.policy_files import MemoryPolicyFiles
from groundplane.adapters.prices import BookPriceBook
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.store.sql import SqlStore
from groundplane.adapters.system import RandomIds
from groundplane.audit import Event, check_chain
from groundplane.domain.access import Project
from groundplane.domain.planning import report as plan_report
from groundplane.domain.planning.plan import Offer, Plan
from groundplane.domain.policy import rule_set
from groundplane.errors import InvalidInput, NotFound
from groundplane.identity import Actor, Role
from groundplane.ports import PolicyFiles, Store
from groundplane.services.approvals import Approvals
from groundplane.services.plans import Plans
from groundplane.services.policy import Policies

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ADMIN = Actor(name="ops", role=Role.ADMIN)
ANA = Actor(name="ana", role=Role.MEMBER, project="default")
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
TEAM = """\
policy: groundplane/policy/v1
rules:
  - id: team-label
    over: spec
    require: has(spec.labels.team)
    why: Somebody must be called.
    hint: set metadata.labels.team
"""
NODE = Offer(
    pool="local", node_type="this-machine", cpus=4, memory_bytes=2**33, disk_free_bytes=2**37, accelerators=0,
    accelerator="", price_microusd_per_hour=0, price_as_of=date(2026, 11, 1), price_source="",
)  # fmt: skip


class SetClock:
    """A clock that the test turns."""

    def __init__(self) -> None:
        self.time = NOW

    def now(self) -> datetime:
        return self.time

    def pass_by(self, **span: float) -> None:
        self.time += timedelta(**span)


class House:
    """Policies and plans over one store."""

    def __init__(self, store: Store, files: PolicyFiles) -> None:
        self.store, self.files, self.clock = store, files, SetClock()
        self.policies = Policies(store=store, clock=self.clock, ids=RandomIds(self.clock), files=files)
        self.plans = Plans(
            store=store,
            clock=self.clock,
            ids=RandomIds(self.clock),
            executors={"local": MemoryExecutor(self.clock, offers=(NODE,))},
            prices=BookPriceBook(local_price_microusd_per_hour=100_000, as_of=NOW.date()),
            approvals=Approvals(
                store=store, clock=self.clock, notify=MemoryNotifier(), validity_s=3600, four_eyes=True
            ),
            policies=self.policies,
        )

    async def plan(self, text: str = JOB) -> Plan:
        (made,) = await self.plans.plan(ADMIN, text)
        return made

    async def said(self, plan: Plan | None = None) -> dict[str, str]:
        """What refuses, asks or is lifted; that the pool in memory is simulated is warned of everywhere."""
        made = plan or await self.plan()
        words = {verdict.rule: rule_set.outcome(verdict)[0] for verdict in made.verdicts}
        return {rule: word for rule, word in words.items() if word not in {"pass", "warn"}}

    async def events(self) -> list[Event]:
        return [event async for event in self.store.events()]


async def opened(store: Store, texts: Mapping[str, str] | None = None) -> House:
    house = House(store, MemoryPolicyFiles(texts))
    async with store.transaction() as tx:
        for name in ("default", "vision"):
            await tx.insert(Project(id=name, owner="ana", cost_center="research", created_at=NOW))
    await house.policies.start()
    return house


@pytest.fixture
async def house() -> House:
    return await opened(MemoryStore())


async def test_a_new_folder_is_in_force_after_a_reload_and_the_trail_says_what_changed(house: House):
    assert await house.said() == {}
    first = house.policies.version
    house.files.texts["team.yaml"] = TEAM  # type: ignore[attr-defined]
    assert (await house.policies.state()).pending
    assert house.policies.version == first
    state = await house.policies.reload(ADMIN, "who is called at night")
    assert (state.pending, state.problems, state.files) == (False, (), ("team.yaml",))
    assert await house.said() == {"team-label": "refuse"}
    assert house.policies.refusals == {"team-label": 1}
    (event,) = [each for each in await house.events() if each.action == "policy.change"]
    assert (event.actor, event.reason, event.before["version"]) == ("ops", "who is called at night", first)
    assert (event.after["added"], event.after["removed"]) == (["team-label"], [])
    # Reading the same folder again changes nothing, so the trail says nothing.
    await house.policies.reload(ADMIN)
    assert len([each for each in await house.events() if each.action == "policy.change"]) == 1


async def test_a_broken_folder_keeps_the_last_good_rules_even_over_a_restart(house: House):
    house.files.texts["team.yaml"] = TEAM  # type: ignore[attr-defined]
    await house.policies.reload(ADMIN)
    good = house.policies.version
    house.files.texts["broken.yaml"] = TEAM.replace("labels.team", "lables.team")  # type: ignore[attr-defined]
    with pytest.raises(InvalidInput, match=r"broken\.yaml:5"):
        await house.policies.reload(ADMIN)
    assert (house.policies.version, house.policies.healthy) == (good, False)
    again = House(house.store, house.files)
    await again.policies.start()
    assert (again.policies.version, again.policies.healthy) == (good, False)
    assert (await again.policies.state()).problems[0].field == "broken.yaml:5"
    assert await again.said() == {"team-label": "refuse"}
    del house.files.texts["broken.yaml"]  # type: ignore[attr-defined]
    await again.policies.reload(ADMIN)
    assert again.policies.healthy


async def test_an_exception_lifts_a_rule_until_it_ends_and_says_so_on_the_plan(house: House):
    house.files.texts["team.yaml"] = TEAM  # type: ignore[attr-defined]
    await house.policies.reload(ADMIN)
    refused = await house.plan()
    made = await house.policies.add_exception(
        ADMIN, rule="team-label", project="default", owner="ana", reason="founding", expires_at=NOW + timedelta(hours=1)
    )
    plan = await house.plan()
    assert plan.status == "ready"
    assert await house.said(plan) == {"team-label": "excepted"}
    assert await house.plans.recheck(plan) == []
    assert [each.id for each in await house.policies.exceptions(ANA)] == [made.id]
    house.clock.pass_by(hours=1)
    assert await house.said() == {"team-label": "refuse"}
    # What was planned while it held is not applied after it ended.
    assert [each.rule for each in await house.plans.recheck(plan)] == ["team-label"]
    assert [each.id for each in await house.policies.exceptions(ANA)] == []
    assert [each.id for each in await house.policies.exceptions(ANA, over_too=True)] == [made.id]
    assert plan.hash != refused.hash
    assert "excepted until 2026-11-20 13:00 UTC by ana: founding" in plan_report.markdown(plan)


async def test_an_exception_can_be_ended_and_both_are_on_the_trail(house: House):
    add: dict[str, Any] = {
        "rule": "sku-allowed",
        "owner": "ana",
        "reason": "trial",
        "expires_at": NOW + timedelta(days=3),
    }
    made = await house.policies.add_exception(ADMIN, project="vision", name="nightly", **add)
    ended = await house.policies.remove_exception(ADMIN, made.id, "trial is over")
    assert ended.expires_at == NOW
    assert await house.policies.exceptions(ADMIN, over_too=True) == []
    trail = [(e.action, e.object_id, e.project, e.reason) for e in await house.events() if e.object_kind == "policy"]
    assert trail == [
        ("policy.except", made.id, "vision", "trial"), ("policy.unexcept", made.id, "vision", "trial is over"),
    ]  # fmt: skip
    events = await house.events()
    assert check_chain(events, events[-1].id, events[-1].hash) is None


async def test_an_exception_needs_a_rule_a_project_a_reason_and_an_end(house: House):
    good: dict[str, Any] = {
        "rule": "sku-allowed", "project": "default", "owner": "ana", "reason": "trial",
        "expires_at": NOW + timedelta(days=3),
    }  # fmt: skip
    for error, changed in (
        (NotFound, {"rule": "sku-alowed"}),
        (NotFound, {"project": "nobody"}),
        (InvalidInput, {"rule": "max-cost"}),
        (InvalidInput, {"reason": " "}),
        (InvalidInput, {"owner": ""}),
        (InvalidInput, {"name": "Not A Name"}),
        (InvalidInput, {"expires_at": NOW}),
        (InvalidInput, {"expires_at": NOW + timedelta(days=400)}),
    ):
        with pytest.raises(error):
            await house.policies.add_exception(ADMIN, **{**good, **changed})
    security = Actor(name="sec", role=Role.MEMBER, project="vision")
    with pytest.raises(NotFound):
        await house.policies.add_exception(security, **good)
    with pytest.raises(NotFound):
        await house.policies.remove_exception(ADMIN, "exc-nowhere")
    with pytest.raises(NotFound):
        house.policies.rule("nowhere")
    assert await house.events() == []


async def test_plans_are_replayed_as_they_were_and_only_those_that_are_seen(house: House):
    for project in ("default", "vision", "default"):
        await house.plan(JOB.replace("project: default", f"project: {project}"))
    house.clock.pass_by(days=40)  # the specs' end dates are past: a replay looks at them on their day
    await house.plan()
    made = await house.policies.replay(ADMIN, {"team.yaml": TEAM}, NOW)
    assert (made.plans, made.newly_refused, made.by_rule) == (4, 4, {"team-label": 4})
    assert made.changed[0].created_at > made.changed[-1].created_at
    assert {"pool-known", "offer-fits"} <= set(made.kept)
    assert not {"team-label", "end-date-ahead"} & set(made.kept)
    assert (await house.policies.replay(ADMIN, {"team.yaml": TEAM}, NOW + timedelta(days=30))).plans == 1
    assert (await house.policies.replay(ANA, {"team.yaml": TEAM}, NOW)).plans == 3
    assert (await house.policies.replay(ADMIN, {}, NOW)).changed_count == 0
    with pytest.raises(InvalidInput, match=r"team\.yaml:1"):
        await house.policies.replay(ADMIN, {"team.yaml": "rules: []"}, NOW)
    assert [each.action for each in await house.events() if each.action.startswith("policy")] == []


async def test_a_replay_shows_rules_that_would_go(house: House):
    house.files.texts["team.yaml"] = TEAM  # type: ignore[attr-defined]
    await house.policies.reload(ADMIN)
    await house.plan()
    emptied = await house.policies.replay(ADMIN, {"team.yaml": "policy: groundplane/policy/v1\n"}, NOW)
    assert (emptied.newly_allowed, emptied.by_rule) == (1, {"team-label": 1})


async def test_exceptions_and_plans_live_in_a_database_too(tmp_path: Path):
    store = await SqlStore.open(f"sqlite:///{tmp_path / 'g.db'}")
    try:
        house = await opened(store, {"team.yaml": TEAM})
        assert await house.said() == {"team-label": "refuse"}
        end = NOW + timedelta(days=1)
        await house.policies.add_exception(
            ADMIN, rule="team-label", project="default", owner="ana", reason="x", expires_at=end
        )
        plan = await house.plans.get(ADMIN, (await house.plan()).id)
        assert await house.said(plan) == {"team-label": "excepted"}
    finally:
        await store.close()
