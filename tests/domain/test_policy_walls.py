"""The rules on isolation, secrets and preflight: what a pool can't give is said before the run waits for it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

from groundplane.domain.hardware import Hardware
from groundplane.domain.isolation import Isolation, IsolationPolicy
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning.plan import Offer
from groundplane.domain.policy.rule import Subject
from groundplane.domain.policy.rule_set import built_in
from groundplane.domain.spec import EndpointSpec, JobSpec, Metadata, Resources, TokenPrice

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
JOB = JobSpec(
    metadata=Metadata(name="tiny", project="vision", owner="ana", cost_center="research"),
    command=("python", "train.py"),
    resources=Resources(cpus=2, memory_bytes=2**31),
    end_date=NOW + timedelta(days=7),
    max_cost_microusd=500_000,
    max_duration_s=1800,
)
NODE = Offer(
    pool="local", node_type="this-machine", cpus=8, memory_bytes=2**36, disk_free_bytes=2**36, accelerators=0,
    accelerator="", price_microusd_per_hour=100_000, price_as_of=date(2026, 11, 1), price_source="the operator",
    isolation=("none", "user"),
)  # fmt: skip


def said(
    spec: JobSpec | EndpointSpec,
    policy: IsolationPolicy | None = None,
    secrets: frozenset[str] = frozenset(),
    node: Offer = NODE,
) -> list[str]:
    about = Subject(
        spec=spec,
        ranking=planning.rank(spec, (node,), Hardware()),
        hardware=Hardware(),
        now=NOW,
        pools=("local",),
        silent_pools={},
        isolation=policy or IsolationPolicy(),
        secrets=secrets,
    )
    verdicts = built_in().judge(about)
    refused = [f"{each.refused} | {each.refused.hint}" for each in verdicts if each.refused is not None]
    return refused + [f"{each.rule}? {each.warning}" for each in verdicts if each.warning]


def test_what_the_pool_can_give_passes() -> None:
    assert said(replace(JOB, isolation="user")) == []


def test_isolation_that_no_node_of_the_pool_can_give_is_refused_with_what_it_can() -> None:
    (word,) = said(replace(JOB, isolation="bubblewrap"))
    assert word.startswith("isolation-possible: needs isolation bubblewrap")
    assert word.endswith("has pool local can give: none, user | set isolation: user, or choose another pool")


def test_what_is_needed_of_another_run_must_be_seen_by_the_pools_nodes() -> None:
    spec = replace(JOB, needs=("prepare",))
    assert said(spec) == []
    (word,) = said(spec, node=replace(NODE, alone=True))
    assert word.startswith(
        "needs-in-reach: needs the output of prepare on the node, "
        "has the nodes of pool local keep the files of runs to themselves"
    )
    assert "shared_dir" in word


def test_an_endpoint_is_refused_where_the_gateway_cant_reach_its_replicas() -> None:
    spec = EndpointSpec(
        metadata=JOB.metadata,
        model="tiny@1",
        resources=JOB.resources,
        end_date=JOB.end_date,
        max_cost_microusd=JOB.max_cost_microusd,
        max_duration_s=JOB.max_duration_s,
        token_price=TokenPrice(prompt_microusd_per_million=1, completion_microusd_per_million=1),
    )
    assert not [word for word in said(spec) if word.startswith("endpoint-in-reach")]
    (word,) = [word for word in said(spec, node=replace(NODE, serves=False)) if word.startswith("endpoint-in-reach")]
    assert "reached over SSH alone" in word
    assert word.endswith("| set pool: local to serve on this machine")


def test_the_installations_default_is_judged_like_a_choice() -> None:
    (word,) = said(JOB, IsolationPolicy(default=Isolation.BUBBLEWRAP))
    assert word.startswith("isolation-possible")


def test_less_than_the_minimum_is_refused_and_saying_nothing_gets_it() -> None:
    least = IsolationPolicy(minimum=Isolation.USER)
    assert said(JOB, least) == []
    (word,) = said(replace(JOB, isolation="none"), least)
    assert word == "isolation-minimum: needs isolation user or stronger, has none | set isolation: user"


def test_half_a_wall_is_refused() -> None:
    for spec, need in (
        (replace(JOB, isolation="user", image="x:1"), "isolation podman for image x:1"),
        (replace(JOB, network=False), "a sandbox to take the network away"),
    ):
        (word,) = said(spec)
        assert word.startswith(f"isolation-whole: needs {need}")


def test_secrets_that_the_project_does_not_have_are_refused() -> None:
    wants = replace(JOB, secrets=("hub", "wandb"))
    assert said(wants, secrets=frozenset({"hub", "wandb"})) == []
    (word,) = said(wants, secrets=frozenset({"hub"}))
    assert word.startswith("secrets-known: needs secrets of project vision: wandb, has hub")


def test_going_without_preflight_is_warned_of() -> None:
    (word,) = said(replace(JOB, preflight=False))
    assert word.startswith("preflight-on? preflight is off")
