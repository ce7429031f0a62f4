"""Who must agree to a plan, who may, and whether they have: tables and properties of the decision."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain import approval as rules
from groundplane.domain.access import Key, SelfService, checked_self_service
from groundplane.domain.admission import refusals
from groundplane.domain.approval import Approval, ApprovalStatus, approve, beyond, blocked, counted, reject
from groundplane.domain.planning.plan import Plan, PlanStatus, Verdict
from groundplane.domain.spec import JobSpec, Metadata, Resources
from groundplane.errors import InvalidInput, Refused
from groundplane.identity import Actor, Role

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
VALIDITY_S = 72 * 3600
USD = 1_000_000


def job(*, accelerators: int = 0, nodes: int = 1) -> JobSpec:
    return JobSpec(
        metadata=Metadata(name="llm", project="vision", owner="bo", cost_center="r1"),
        command=("train",),
        resources=Resources(cpus=1, memory_bytes=1, accelerators=accelerators, nodes=nodes),
        end_date=NOW + 100 * HOUR,
        max_cost_microusd=1_000 * USD,
        max_duration_s=3600,
    )


def a_plan(**changes: Any) -> Plan:
    plan = Plan(
        id="plan-1",
        project="vision",
        owner="bo",
        kind="job",
        job=job(accelerators=8),
        spec_digest="d",
        offer=None,
        max_duration_s=3600,
        worst_case_microusd=620 * USD,
        arithmetic="",
        verdicts=(Verdict(rule="self-service-plan", why="w", refused=None, approval="up to $620.00"),),
        status=PlanStatus.NEEDS_APPROVAL,
        hash="a" * 64,
        created_by="ana",
        created_at=NOW,
    )
    return replace(plan, **changes)


def asked(plan: Plan | None = None, *, limits: SelfService | None = None, four_eyes: bool = True) -> Approval:
    return rules.ask(plan or a_plan(), limits or SelfService(), four_eyes=four_eyes, validity_s=VALIDITY_S)


def person(name: str, role: Role = Role.LEAD) -> Actor:
    return Actor(name=name, role=role, key_id=f"key-{name}", project="vision")


def yes(approval: Approval, name: str, at: datetime = NOW, plan: Plan | None = None) -> Approval:
    given = approve(approval, plan or a_plan(), person(name), at)
    assert isinstance(given, Approval), given
    return given


def no(answer: Approval | Refused) -> Refused:
    assert isinstance(answer, Refused), answer
    return answer


# ---------------------------------------------------------------- does it need approval


def test_a_plan_within_every_limit_asks_nobody() -> None:
    assert beyond(job(accelerators=4), 500 * USD, SelfService(), taken_microusd=10**12) == ()


def test_each_limit_that_is_passed_is_told_with_both_numbers() -> None:
    limits = SelfService(month_max_microusd=1_000 * USD)
    found = {v.rule: v.approval for v in beyond(job(accelerators=4, nodes=2), 620 * USD, limits, 500 * USD)}
    assert found == {
        "self-service-accelerators": "8 accelerators (2 nodes × 4); project vision takes up to 4 without approval",
        "self-service-plan": "up to $620.00; project vision spends up to $500.00 a plan without approval",
        "self-service-month": "$500.00 held, spent and waiting this month and up to $620.00 more; "
        "project vision spends up to $1,000.00 a month without approval",
    }


@given(
    accelerators=st.integers(0, 64),
    nodes=st.integers(1, 16),
    worst=st.integers(0, 10**10),
    taken=st.integers(0, 10**10),
    limits=st.builds(
        SelfService,
        accelerators_max=st.integers(0, 64),
        plan_max_microusd=st.integers(0, 10**10),
        month_max_microusd=st.none() | st.integers(0, 10**10),
    ),
)
def test_higher_limits_never_ask_for_more(
    accelerators: int, nodes: int, worst: int, taken: int, limits: SelfService
) -> None:
    def asks(of: SelfService) -> set[str]:
        return {v.rule for v in beyond(job(accelerators=accelerators, nodes=nodes), worst, of, taken)}

    wider = replace(
        limits, accelerators_max=limits.accelerators_max + 1, plan_max_microusd=limits.plan_max_microusd + 1
    )
    assert asks(wider) <= asks(limits)
    assert asks(replace(limits, month_max_microusd=None)) <= asks(limits)


@pytest.mark.parametrize(
    "wrong",
    [
        SelfService(accelerators_max=-1),
        SelfService(plan_max_microusd=-1),
        SelfService(month_max_microusd=10**18),
        SelfService(second_threshold_microusd=-5),
        SelfService(second_approvals=0),
    ],
)
def test_limits_that_mean_nothing_are_refused(wrong: SelfService) -> None:
    with pytest.raises(InvalidInput):
        checked_self_service(wrong)


# ---------------------------------------------------------------- yes and no


def test_one_yes_of_somebody_else_is_enough() -> None:
    plan, waiting = a_plan(), asked()
    refused = blocked(plan, waiting, ("lea", "op"), NOW)
    assert refused is not None and refused.rule == rules.RULE
    assert "up to $620.00" in refused.need and refused.have == "none"
    assert refused.hint == "ground approve plan-1: lea, op may; then ground apply plan-1"

    approved = yes(waiting, "lea", NOW + HOUR)
    assert (approved.status, approved.waited_s) == (ApprovalStatus.APPROVED, 3600)
    assert blocked(plan, approved, (), NOW + HOUR) is None


@pytest.mark.parametrize("name", ["ana", "bo", "Ana", " BO "])
def test_neither_who_planned_nor_who_owns_may_agree(name: str) -> None:
    refused = no(approve(asked(), a_plan(), person(name, Role.ADMIN), NOW))
    assert refused.rule == "four-eyes" and "ana" in refused.need and "bo" in refused.need


def test_a_single_person_may_agree_where_four_eyes_are_off() -> None:
    approved = yes(asked(four_eyes=False), "ana")
    assert approved.status is ApprovalStatus.APPROVED
    assert blocked(a_plan(), approved, (), NOW) is None


def test_dear_plans_need_several_people_and_one_person_counts_once() -> None:
    limits = SelfService(second_threshold_microusd=600 * USD, second_approvals=2)
    waiting = yes(asked(limits=limits), "lea")
    assert waiting.status is ApprovalStatus.WAITING
    assert yes(waiting, "LEA") == waiting
    refused = blocked(a_plan(), waiting, ("op",), NOW)
    assert refused is not None and refused.have == "1 (lea)" and refused.need.startswith("2 approvals")
    approved = yes(waiting, "op", NOW + 70 * HOUR)
    assert approved.expires_at == waiting.expires_at, "no yes is used when it is older than an approval may be"
    assert approved.status is ApprovalStatus.APPROVED and counted(approved, "a" * 64) == ("lea", "op")
    assert asked(limits=replace(limits, second_threshold_microusd=620 * USD)).needed == 1


def test_a_yes_to_what_was_not_seen_is_refused() -> None:
    refused = no(approve(asked(), a_plan(), person("lea"), NOW, seen_hash="b" * 16))
    assert refused.rule == "approval-hash" and "b" * 16 in refused.have
    assert isinstance(approve(asked(), a_plan(), person("lea"), NOW, seen_hash="a" * 12), Approval)


def test_an_approval_serves_no_other_plan_and_no_other_hash() -> None:
    approved = yes(asked(), "lea")
    other_hash = blocked(a_plan(hash="b" * 64), approved, ("op",), NOW)
    assert other_hash is not None and other_hash.rule == rules.RULE
    other_plan = blocked(a_plan(id="plan-2"), approved, ("op",), NOW)
    assert other_plan is not None and other_plan.have == "none was asked for"


def test_a_no_is_final() -> None:
    for before in (asked(), yes(asked(), "lea")):
        rejected = reject(before, person("op"), NOW, "too dear")
        assert isinstance(rejected, Approval)
        refused = blocked(a_plan(), rejected, (), NOW)
        assert refused is not None and refused.have == "rejected by op: too dear"
        assert no(approve(rejected, a_plan(), person("max"), NOW)).have == "rejected by op: too dear"
        assert reject(rejected, person("op"), NOW, "again") == rejected
        assert no(reject(rejected, person("max"), NOW, "me too")).rule == "approval-open"


def test_time_ends_a_question_and_an_approval_whether_or_not_somebody_wrote_it_down() -> None:
    end = NOW + timedelta(seconds=VALIDITY_S)
    late = no(approve(asked(), a_plan(), person("lea"), end))
    assert late.have == "it expired at 2026-11-23 12:00 UTC"
    approved = yes(asked(), "lea", NOW + HOUR)
    assert approved.expires_at == end + HOUR
    assert blocked(a_plan(), approved, (), end) is None
    refused = blocked(a_plan(), approved, (), end + HOUR)
    assert refused is not None and refused.rule == "approval-expired"
    assert rules.expire(approved, end).status is ApprovalStatus.APPROVED
    assert rules.expire(approved, end + HOUR).status is ApprovalStatus.EXPIRED


def test_planning_the_same_work_anew_replaces_a_question_nobody_answered_yet() -> None:
    assert rules.is_same_work(asked(), job(accelerators=2), "ana")
    assert not rules.is_same_work(asked(), job(), "max")
    one_of_two = yes(asked(limits=SelfService(second_threshold_microusd=0)), "lea")
    for answered in (one_of_two, yes(asked(), "lea")):
        assert not rules.is_same_work(answered, job(), "ana")
    elsewhere = replace(job(), metadata=replace(job().metadata, project="other"))
    assert not rules.is_same_work(asked(), elsewhere, "ana")
    over = rules.replaced(asked(), "plan-2", NOW)
    assert (over.status, rules.untold(over, NOW), over.due_at) == (ApprovalStatus.EXPIRED, "", None)
    assert no(approve(over, a_plan(), person("lea"), NOW)).have == "replaced by plan-2"
    refused = blocked(a_plan(), over, (), NOW)
    assert refused is not None and refused.have == "replaced by plan-2"


def test_a_question_is_asked_only_about_what_needs_it() -> None:
    with pytest.raises(ValueError, match="needs no approval"):
        asked(a_plan(verdicts=()))
    assert blocked(a_plan(verdicts=()), None, (), NOW) is None


NAMES = st.sampled_from(["ana", "Ana", "bo", "lea", "LEA ", "op", "max"])
STEPS = st.lists(
    st.tuples(st.just("yes"), NAMES, st.sampled_from(["a" * 64, "b" * 64, ""]))
    | st.tuples(st.just("no"), NAMES, st.just(""))
    | st.tuples(st.just("hours"), st.integers(0, 80), st.just("")),
    max_size=12,
)


@given(steps=STEPS, needed=st.integers(1, 3), four_eyes=st.booleans())
def test_whatever_happens_nothing_is_applied_without_enough_other_people(
    steps: list[tuple[str, Any, str]], needed: int, four_eyes: bool
) -> None:
    limits = SelfService(second_threshold_microusd=0, second_approvals=needed)
    plan, approval, now = a_plan(), asked(limits=limits, four_eyes=four_eyes), NOW
    ended = False
    for what, who, seen in steps:
        if what == "hours":
            now += who * HOUR
            after: Approval | Refused = rules.expire(approval, now)
        elif what == "yes":
            after = approve(approval, replace(plan, hash=seen or plan.hash), person(who), now, seen_hash=seen)
        else:
            after = reject(approval, person(who), now, "no")
        approval = after if isinstance(after, Approval) else approval
        ended = ended or approval.status in {ApprovalStatus.REJECTED, ApprovalStatus.EXPIRED}
        people = {vote.by.strip().lower() for vote in approval.votes if vote.plan_hash == plan.hash}
        if four_eyes:
            people -= {"ana", "bo"}
        if blocked(plan, approval, (), now) is None:
            assert len(people) >= needed
            assert not ended and now < approval.expires_at
            assert all(now - vote.at < timedelta(seconds=VALIDITY_S) for vote in approval.votes)
        assert blocked(replace(plan, hash="c" * 64), approval, (), now) is not None
        assert blocked(replace(plan, id="plan-2"), approval, (), now) is not None


# ---------------------------------------------------------------- who may agree, and what people are told


def a_key(owner: str, role: Role, project: str = "vision", **changes: Any) -> Key:
    key = Key(
        id=f"key-{owner}-{role}",
        name="k",
        project=project,
        owner=owner,
        role=role,
        secret_sha256=f"{owner}{role}{project}",
        created_at=NOW,
    )
    return replace(key, **changes)


def test_those_who_may_agree_have_the_role_the_project_and_a_key_that_opens() -> None:
    keys = [
        a_key("ana", Role.LEAD),
        a_key("lea", Role.LEAD),
        a_key("lea", Role.OPERATOR),
        a_key("far", Role.LEAD, "other"),
        a_key("op", Role.OPERATOR, "other"),
        a_key("mem", Role.MEMBER),
        a_key("fin", Role.FINANCE),
        a_key("gone", Role.LEAD, revoked_at=NOW),
        a_key("old", Role.LEAD, expires_at=NOW),
    ]
    assert rules.approvers(keys, asked(), NOW) == ("lea", "op")
    assert rules.approvers(keys, asked(four_eyes=False), NOW) == ("ana", "lea", "op")
    limits = SelfService(second_threshold_microusd=0)
    assert rules.approvers(keys, yes(asked(limits=limits), "lea"), NOW) == ("op",)


def test_nobody_who_may_is_said_with_the_way_to_somebody() -> None:
    refused = blocked(a_plan(), asked(), (), NOW)
    assert refused is not None
    assert "a key of the role admin, operator, lead whose owner is not ana" in refused.hint


def test_each_notice_is_due_once_and_in_its_time() -> None:
    def heard(approval: Approval, at: datetime) -> tuple[list[str], Approval]:
        said = []
        while what := rules.untold(approval, at):
            said.append(what)
            approval = rules.told(approval, what)
        return said, rules.told(approval, "")

    limits = SelfService(second_threshold_microusd=0)
    said, approval = heard(asked(limits=limits), NOW)
    assert said == ["needed"] and approval.due_at == NOW + timedelta(seconds=VALIDITY_S) - 12 * HOUR
    said, approval = heard(approval, NOW + 61 * HOUR)
    assert said == ["expiring-waiting"] and approval.due_at == approval.expires_at
    said, approval = heard(yes(approval, "lea", NOW + 62 * HOUR), NOW + 62 * HOUR)
    assert said == ["given-1"]
    said, approval = heard(yes(approval, "op", NOW + 63 * HOUR), NOW + 63 * HOUR)
    assert said == ["given-2"] and approval.due_at == approval.expires_at - 12 * HOUR
    said, approval = heard(approval, approval.expires_at - HOUR)
    assert said == ["expiring-approved"]
    said, approval = heard(rules.expire(approval, approval.expires_at), approval.expires_at)
    assert said == ["expired"] and approval.due_at is None


def test_notices_name_the_plan_the_money_the_people_and_the_way() -> None:
    title, text = rules.headline(asked(), "needed", ("lea", "op"))
    assert title == (
        "plan-1 of project vision needs 1 approval until 2026-11-23 12:00 UTC: "
        "job llm for up to $620.00, planned by ana"
    )
    assert text.endswith("ground approve plan-1, or ground reject plan-1 --reason WHY: lea, op may")
    title, text = rules.headline(yes(asked(), "lea"), "given-1", ())
    assert title.startswith("plan-1 of project vision is approved by lea")
    assert text.startswith("ground apply plan-1")
    expired = rules.expire(asked(), NOW + 100 * HOUR)
    assert "was not approved in time" in rules.headline(expired, "expired", ())[0]


def test_a_changed_world_says_that_the_approval_does_not_carry_over() -> None:
    change = Refused(rule="price-unchanged", need="$1.00/h", have="$2.00/h", hint="h")
    found = refusals(a_plan(status=PlanStatus.APPROVED), (change,))
    assert [refused.rule for refused in found] == ["price-unchanged", "approval-carries-over"]
    assert refusals(a_plan(status=PlanStatus.READY), (change,)) == (change,)
