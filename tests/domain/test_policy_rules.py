"""Rules in CEL: what an expression may be, how files are read, what a set says, exceptions and replays."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain.hardware import Hardware
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning.plan import Offer, Plan, PlanStatus, Verdict
from groundplane.domain.policy import rule_set
from groundplane.domain.policy.exceptions import PolicyException, checked_expiry, lifted
from groundplane.domain.policy.expressions import MAX_TEXT_CHARACTERS, ExpressionFault, Values, compiled, message, shown
from groundplane.domain.policy.replay import replay
from groundplane.domain.policy.rule import Subject
from groundplane.domain.policy.rule_files import read_policy_file
from groundplane.domain.policy.rule_set import LOCKED, RuleSet, build, built_in, built_in_file, outcome, read_files
from groundplane.domain.policy.sample import sample_view, schema
from groundplane.domain.policy.view import PolicySettings, images
from groundplane.domain.spec import DataSource, EndpointSpec, JobSpec, Metadata, Resources, TokenPrice
from groundplane.errors import InvalidInput, Refused

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SCHEMA = schema()
WHO = Metadata(name="nightly", project="vision", owner="ana", cost_center="research")
JOB = JobSpec(
    metadata=WHO, command=("python", "train.py"), resources=Resources(cpus=2, memory_bytes=2**31),
    end_date=NOW + timedelta(days=7), max_cost_microusd=500_000, max_duration_s=1800,
)  # fmt: skip
SERVE = EndpointSpec(
    metadata=WHO, model="tiny-lm@2", resources=Resources(cpus=2, memory_bytes=2**35), end_date=NOW + timedelta(days=7),
    max_cost_microusd=50_000_000, max_duration_s=7 * 86_400,
    token_price=TokenPrice(prompt_microusd_per_million=1, completion_microusd_per_million=1),
)  # fmt: skip
NODE = Offer(
    pool="local", node_type="this-machine", cpus=8, memory_bytes=2**36, disk_free_bytes=2**38, accelerators=0,
    accelerator="", price_microusd_per_hour=100_000, price_as_of=NOW.date(), price_source="set by the operator",
)  # fmt: skip


def values(**changed: Any) -> Values:
    view = sample_view("plan", PolicySettings())
    return Values({**view, "spec": {**view["spec"], **changed}})  # type: ignore[dict-item]


def truth(text: str, **spec: Any) -> bool:
    return compiled(text, SCHEMA).holds(values(**spec))


def fault(text: str, **spec: Any) -> str:
    with pytest.raises(ExpressionFault) as caught:
        compiled(text, SCHEMA).holds(values(**spec))
    return f"{caught.value.message} | {caught.value.hint}"


def subject(spec: JobSpec | EndpointSpec = JOB, *offers: Offer) -> Subject:
    return Subject(
        spec=spec, ranking=planning.rank(spec, offers or (NODE,), Hardware()), hardware=Hardware(), now=NOW,
        pools=("local", spec.pool), silent_pools={},
    )  # fmt: skip


def rules(*lines: str) -> RuleSet:
    return build(read_files({"ours.yaml": file(*lines)}))


def file(*lines: str) -> str:
    return "\n".join(("policy: groundplane/policy/v1", *lines)) + "\n"


def faults(*lines: str) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        rules(*lines)
    return [f"{problem} | {problem.hint}" for problem in caught.value.problems]


def rule(id: str = "ours", **fields: str) -> tuple[str, ...]:
    body = {"over": "spec", "require": "spec.nodes <= 4", "why": "Few nodes.", "hint": "use fewer"} | fields
    return ("rules:", f"  - id: {id}", *(f"    {name}: {value}" for name, value in body.items() if value))


# ---------------------------------------------------------------- expressions


def test_an_expression_compares_and_walks_what_it_is_given():
    assert truth("spec.nodes <= 4 && spec.owner == 'ana'")
    assert truth("spec.labels.exists(name, name == 'team' && spec.labels[name] == 'a')", labels={"team": "a"})
    assert not truth("'team' in spec.labels")
    assert truth("timestamp(spec.end_date) > now && now > timestamp('2026-01-01T00:00:00Z')")
    assert truth("spec.cpus > 1 && spec.cpus < 2.5")  # whole and broken numbers compare


def test_what_can_be_known_to_fail_is_told_when_it_is_read():
    assert fault("spec.memroy_bytes > 1") == "spec has no memroy_bytes | did you mean spec.memory_bytes?"
    assert fault("spec.owner.name == 'ana'") == "spec.owner has no name | it is a value such as ana"
    assert fault("nope(3)").startswith("undeclared reference to 'nope' (character 5) | it may ask for spec, ")
    assert fault("'team' in labels").endswith(" | did you mean spec.labels?")
    assert fault("1 +").startswith("syntax error: mismatched input")
    assert fault("spec.nodes + 1").startswith("does not give true or false | compare it")
    assert fault("spec.nodes").startswith("gives 1, not true or false | compare it")
    assert fault("'text'").startswith("does not give true or false")
    assert fault(" ") == "is empty | write a condition such as spec.nodes <= 4"
    with pytest.raises(ExpressionFault, match="request is not there for this rule"):
        compiled("request.message == ''", {"spec": SCHEMA["spec"]})


def test_what_is_only_known_when_it_is_judged_is_one_clear_line():
    assert fault("spec.labels.team == 'a'").startswith('key not found in map : "team"')
    assert fault("spec.nodes > 'x'").startswith("no matching overloads found : _>_(int64, string)")
    assert fault("spec.nodes / 0 == 1").startswith("divide by zero")
    assert fault("9223372036854775807 + spec.nodes > 0").startswith("integer overflow")
    assert fault("spec.name.matches(spec.workdir)", workdir="(").startswith("invalid regular expression")
    assert "33,000 characters, more than rules may look at" in fault("true", env={"A": "x" * 33_000})
    assert "beyond 64 bits" in fault("true", nodes=2**70)


TOO_MUCH = {
    "long": "true" + " || true" * 200,
    "nested": "(" * 25 + "true" + ")" * 25,
    "doubling": "['aaaaaaaaaa'].map(a, a + a)[0] != ''",
    "walking": "spec.data.all(a, spec.data.all(b, spec.data.all(c, true)))",
    "matching": " && ".join(["spec.name.matches('a')"] * 5),
    "three quotes": "spec.name == '''a'''",
    "behind a comment": "true // it's\n && ['a'].map(a, a + a)[0] != '' // it's",
    "behind a raw text": "spec.name != r'\\' && ['a'].map(a, a + a)[0] != ''",
}


@pytest.mark.parametrize("kind", TOO_MUCH)
def test_what_could_take_long_is_refused_when_it_is_read(kind: str):
    with pytest.raises(ExpressionFault):
        compiled(TOO_MUCH[kind], SCHEMA)


def test_the_worst_that_may_be_written_ends_soon():
    """Four regular expressions over the longest text there may be, on as many items as there may be."""
    text = "spec.data.all(a, " + " && ".join(["!spec.workdir.matches('(x|y)*z')"] * 4) + ")"
    data = [f"d{number}" for number in range(2_000)]
    began = time.process_time()
    assert truth(text, data=data, workdir="x" * MAX_TEXT_CHARACTERS)
    with pytest.raises(ExpressionFault, match="iteration budget exceeded"):
        truth("spec.data.all(a, spec.data.all(b, a + b != ''))", data=data)
    assert time.process_time() - began < 20


NAMES = st.sampled_from(["spec", "plan", "project", "settings", "now", "spec.labels", "spec.nodes", "x", "size"])
PIECES = st.one_of(
    NAMES,
    st.sampled_from([".", "(", ")", "[", "]", "{", "}", "'", '"', "&&", "||", "!", "==", "<", "+", "?", ":", ","]),
    st.sampled_from([".all(x, ", ".map(x, ", "has(", "matches('", "1", "1.5", "'a'", "true", "null", "\\", "//", "\n"]),
    st.text(max_size=6),
)


@given(st.lists(PIECES, max_size=14).map("".join))
@settings(max_examples=300, deadline=None)
def test_no_text_gets_past_as_anything_but_an_expression_or_a_fault(text: str):
    try:
        compiled(text, SCHEMA, truth=False).evaluate(values())
    except ExpressionFault as caught:
        assert caught.message
        assert "\n" not in caught.message


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({"labels": st.dictionaries(st.text(max_size=5), PLAIN), "nodes": PLAIN, "name": PLAIN}))
@settings(max_examples=200, deadline=None)
def test_no_value_crashes_the_rules(changed: dict[str, Any]):
    for text in ("spec.nodes > 4", "spec.labels.all(k, spec.labels[k] != '')", "spec.name.startsWith('a')"):
        try:
            compiled(text, SCHEMA).holds(values(**changed))
        except ExpressionFault as caught:
            assert caught.message


@given(st.text(max_size=120) | st.lists(PIECES, max_size=20).map("".join))
@settings(max_examples=150, deadline=None)
def test_no_file_is_read_as_anything_but_rules_or_faults_with_their_place(text: str):
    for content in (text, file("rules:", f"  - {text}"), file(*rule(require=f"{text!r}"))):
        try:
            read_policy_file("any.yaml", content, SCHEMA)
        except InvalidInput as caught:
            assert all(problem.field.startswith("any.yaml") for problem in caught.problems)


def test_values_in_a_message_are_written_for_people():
    made = message("{spec.nodes} of {settings.required_labels}; {spec.labels}, {spec.cpus}, {now}", SCHEMA)
    assert made.render(values(cpus=1234.5)) == "1 of nothing; nothing, 1,234.5, 2026-11-20 12:00 UTC"
    assert message("{spec.labels.team}", SCHEMA).render(values()) == "?"
    assert shown(["a", True, {"b": 1.0}]) == "a, true, b=1"
    assert len(shown("x" * 1_000)) == 300
    for broken in ("{spec.nodes", "}", "{nodes +}"):
        with pytest.raises(ExpressionFault):
            message(broken, SCHEMA)


# ---------------------------------------------------------------- files and sets


def test_the_built_in_tests_pass_and_every_rule_told_as_data_has_some():
    results = rule_set.run_tests([built_in_file()], PolicySettings())
    assert [each for each in results if not each.passed] == []
    assert all(rule.tests for rule in built_in_file().rules)
    assert {"refuse", "pass"} <= {test.expect for rule in built_in_file().rules for test in rule.tests}
    assert set(LOCKED) - {"policy-input"} <= {info.id for info in built_in().infos()}


def test_a_rule_of_an_operator_says_what_it_needs_and_what_there_is():
    few = rules(
        *rule(need='"at most 4 nodes"', have='"{spec.nodes}"', hint='"{spec.name}: use {spec.nodes - 4} fewer"')
    )
    verdict = few.judge(subject(replace(JOB, resources=replace(JOB.resources, nodes=6)), replace(NODE, nodes=9)))[-1]
    assert verdict.refused == Refused(rule="ours", need="at most 4 nodes", have="6", hint="nightly: use 2 fewer")
    assert few.judge(subject())[-1] == Verdict(rule="ours", why="Few nodes.", refused=None)


@pytest.mark.parametrize(
    ("severity", "expected"),
    [
        ("refuse", ("refuse", "ours: needs Few nodes, has nightly breaks it")),
        ("approve", ("approve", "nightly breaks it; Few nodes")),
        ("warn", ("warn", "nightly breaks it; Few nodes: use fewer")),
    ],
)
def test_a_broken_rule_refuses_asks_or_warns(severity: str, expected: tuple[str, str]):
    ours = rules(*rule(require="spec.nodes > 4", severity=severity))
    assert outcome(ours.judge(subject())[-1]) == expected


def test_a_rule_that_cannot_be_judged_refuses_and_names_its_place_but_a_warning_only_warns():
    refused = rules(*rule(require="spec.labels.team != ''")).judge(subject())[-1].refused
    assert refused is not None
    assert refused.need == "a rule that can be judged"
    assert refused.have == 'key not found in map : "team" (ours.yaml:3)'
    warned = rules(*rule(require="spec.labels.team != ''", severity="warn")).judge(subject())[-1]
    assert warned.refused is None
    assert "a rule that can be judged" in warned.warning


def test_more_text_than_rules_may_look_at_is_refused_once():
    long = replace(JOB, env={"A": "x" * 40_000})
    refused = [verdict.refused for verdict in built_in().judge(subject(long)) if verdict.refused is not None]
    assert [each.rule for each in refused] == ["policy-input"]
    assert "spec.env.A has 40,000 characters" in refused[0].have


def test_when_says_what_a_rule_is_about_and_alone_is_what_it_forbids():
    ours = rules(*rule(when="spec.nodes > 1", require="has(spec.labels.team)"))
    assert ours.judge(subject())[-1].refused is None
    wide = subject(replace(JOB, resources=replace(JOB.resources, nodes=2)), replace(NODE, nodes=2))
    assert ours.judge(wide)[-1].refused is not None
    forbidden = rules(*rule(when="spec.owner == 'ana'", require=""))
    assert forbidden.judge(subject())[-1].refused is not None


def test_rules_over_endpoints_models_and_requests_speak_only_of_those():
    for over, text in (
        ("endpoint", "!spec.public"),
        ("model", "model.license != ''"),
        ("request", "request.message != ''"),
    ):
        ours = rules(*rule(over=over, require=f'"{text}"'))
        assert "ours" not in {verdict.rule for verdict in ours.judge(subject())}
    public = rules(*rule(over="endpoint", require='"!spec.public"'))
    assert public.judge(subject(replace(SERVE, public=True)))[-1].refused is not None


FAULTS = {
    "not YAML": (("rules: [",), "ours.yaml:3: not valid YAML"),
    "no version": (("rulez: []",), "ours.yaml:2: the file: unknown field rulez | did you mean rules?"),
    "no id": (
        ("rules:", "  - {over: spec, require: 'true', why: w, hint: h}"),
        "ours.yaml:3: a rule needs an id | write it like",
    ),
    "a bad id": (rule("Our Rule"), "ours.yaml:3: id: 'Our Rule' is not a rule's name"),
    "no why": (rule(why=""), "ours.yaml:3: rule ours: why is required | write it like why: Every dollar"),
    "unknown over": (
        rule(over="job"),
        "ours.yaml:4: rule ours: over: 'job' is not one of: spec, plan, endpoint, model",
    ),
    "a misspelt field": (
        rule(require="spec.nods > 1"),
        "ours.yaml:5: rule ours: require spec has no nods | did you mean",
    ),
    "not there for it": (
        rule(require="plan.nodes > 1"),
        "ours.yaml:5: rule ours: require plan is not there for this rule",
    ),
    "severity": (
        rule(severity="deny"),
        "ours.yaml:8: rule ours: severity: 'deny' is not one of: refuse, approve, warn",
    ),
    "a brace": (rule(hint='"{oops"'), "ours.yaml:7: rule ours: hint has a brace without its other"),
    "locked": (rule("owner"), "ours.yaml:3: rule owner is locked | the rest of the house rests on it"),
    "nobody's": (
        ("rules:", "  - {id: imge-pinned, severity: warn}"),
        "ours.yaml:3: no rule imge-pinned is defined | did",
    ),
    "says nothing": (("rules:", "  - {id: image-pinned}"), "ours.yaml:3: rule image-pinned says nothing"),
    "off without a why": (
        ("rules:", "  - {id: image-pinned, enabled: false}"),
        "ours.yaml:3: rule image-pinned: why is",
    ),
    "an unknown setting": (
        ("settings: {end_days: 3}",),
        "ours.yaml:2: settings: unknown field end_days | did you mean",
    ),
    "a wrong setting": (
        ("settings: {end_date_days: soon}",),
        "ours.yaml:2: settings.end_date_days: 'soon' is not a whole",
    ),
    "a wrong amount": (("settings: {approval_cost: -1}",), "ours.yaml:2: settings.approval_cost: '-1' is below $0"),
    "a wrong class": (
        ("settings: {pool_clearances: {local: top}}",),
        "ours.yaml:2: settings.pool_clearances.local: 'top'",
    ),
    "a test without expect": (
        rule(tests="[{given: {}}]"),
        "ours.yaml:8: rule ours: test 1 needs expect | one of: pass",
    ),
    "a test of nothing": (
        rule(tests="[{given: {spec: {nods: 1}}, expect: pass}]"),
        "ours.yaml:8: rule ours: test 1: given.spec: unknown field nods | did you mean nodes?",
    ),
    "a test of another kind": (
        rule(tests="[{given: {spec: {nodes: many}}, expect: pass}]"),
        "ours.yaml:8: rule ours: test 1: given.spec.nodes: must be a whole number, is the text 'many'",
    ),
}


@pytest.mark.parametrize("case", FAULTS, ids=lambda case: case.replace(" ", "-"))
def test_a_fault_is_told_with_file_and_line(case: str):
    lines, said = FAULTS[case]
    (only,) = faults(*lines)
    assert only.startswith(said)


def test_every_fault_of_every_file_is_told_at_once():
    texts = {"a.yaml": file(*rule(require="spec.nods > 1", severity="deny")), "b.yaml": "policy: v9"}
    with pytest.raises(InvalidInput) as caught:
        read_files(texts)
    assert [problem.field for problem in caught.value.problems] == ["a.yaml:8", "a.yaml:5", "b.yaml:1"]
    assert caught.value.message.endswith("(and 2 more problems)")


def test_two_files_may_not_say_two_things_of_one():
    two = {
        "a.yaml": file("settings: {end_date_days: 3}", *rule()),
        "b.yaml": file("settings: {end_date_days: 4}", *rule()),
    }
    with pytest.raises(InvalidInput) as caught:
        build(read_files(two))
    assert [str(problem) for problem in caught.value.problems] == [
        "b.yaml:4: rule ours is also at a.yaml:4",
        "b.yaml:2: settings.end_date_days is also at a.yaml:2",
    ]


def test_a_file_sets_thresholds_and_changes_rules_by_name():
    ours = rules(
        "settings:", "  end_date_days: 3", "  required_labels: [team]", "  approval_accelerators: 4",
        "  approval_cost: $0.01", "  allowed_skus: {vision: [a100-80gb], '*': [this-machine]}", "rules:",
        "  - {id: accelerator-work, severity: warn}", "  - {id: labels-required, hint: ask the platform team}",
        "  - {id: image-pinned, enabled: false, why: We pin by digest elsewhere.}",
    )  # fmt: skip
    gpu = replace(JOB, command=("docker", "run", "x:latest", "--device=cuda"))
    said = {verdict.rule: outcome(verdict) for verdict in ours.judge(subject(gpu))}
    assert said["end-date-horizon"][0] == "refuse"
    assert "within 3 days" in said["end-date-horizon"][1]
    assert said["labels-required"] == ("refuse", "labels-required: needs labels team, has nothing")
    assert said["approval-cost"] == ("approve", "$0.05 in the worst case; up to $0.01 need no approval")
    assert said["approval-accelerators"] == ("pass", "")
    assert said["sku-allowed"] == ("refuse", "sku-allowed: needs one of a100-80gb for project vision, has this-machine")
    assert said["accelerator-work"][0] == "warn"
    assert "image-pinned" not in said
    (off,) = [info for info in ours.infos() if not info.enabled]
    assert (off.id, off.off_because, off.changed_by) == ("image-pinned", "We pin by digest elsewhere.", "ours.yaml:11")
    (hinted,) = [info for info in ours.infos() if info.id == "labels-required"]
    assert hinted.hint == "ask the platform team"
    other = replace(
        JOB, metadata=replace(WHO, project="default", labels={"team": "a"}), end_date=NOW + timedelta(days=2)
    )
    assert [v.rule for v in ours.judge(subject(other)) if v.refused] == []


def test_a_rule_of_an_operator_may_stand_in_for_a_built_in_one():
    ours = rules(*rule("data-clearance", over="plan", require="plan.has_offer"))
    (info,) = [each for each in ours.infos() if each.id == "data-clearance"]
    assert (info.source, info.changed_by, info.text) == ("ours.yaml:3", "ours.yaml:3", "require plan.has_offer")


def test_the_version_changes_with_whatever_can_change_a_verdict_and_with_nothing_else():
    base = rules(*rule()).version
    assert rules("# a remark", *rule()).version == base
    assert build(read_files({"other.yaml": file(*rule())})).version == base
    assert base != built_in().version
    for changed in (rule(require="spec.nodes <= 5"), rule(severity="warn"), rule(hint="other"), rule("renamed")):
        assert rules(*changed).version != base
    assert rules("settings: {end_date_days: 30}", *rule()).version != base


def test_data_goes_only_where_it_is_cleared_to_go():
    secret = replace(JOB, data=(DataSource(name="hr", path="/data/hr", classification="restricted"),))
    azure = replace(NODE, pool="azure eastus", node_type="Standard_NC24ads_A100_v4")
    away = replace(secret, pool="azure eastus")

    def clearance(spec: JobSpec, offer: Offer, *lines: str) -> tuple[str, str]:
        ours = rules(*lines) if lines else built_in()
        return outcome(next(v for v in ours.judge(subject(spec, offer)) if v.rule == "data-clearance"))

    assert clearance(secret, NODE) == ("pass", "")
    said = "needs a pool cleared for restricted data, has pool azure eastus, cleared for internal"
    assert clearance(away, azure) == ("refuse", f"data-clearance: {said}")
    assert clearance(away, azure, "settings: {pool_clearances: {azure: restricted}}")[0] == "pass"
    closer = "settings: {pool_clearances: {azure: restricted, azure/eastus: public}}"
    assert clearance(away, azure, closer)[0] == "refuse"
    plain = replace(away, data=(DataSource(name="hr", path="/data/hr"),))
    assert clearance(plain, azure)[0] == "pass"
    assert clearance(plain, azure, "settings: {default_classification: confidential}")[0] == "refuse"


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (
            "docker run --rm -v /a:/b --gpus=all nvcr.io/nvidia/pytorch:latest python x.py",
            ["nvcr.io/nvidia/pytorch:latest"],
        ),
        ("podman pull train && podman run -e A=1 train:1.2", ["train", "train:1.2"]),
        ("apptainer exec docker://org/img:latest python", ["org/img:latest"]),
        ("python train.py --tag latest", []),
        ("docker run", []),
    ],
)
def test_images_are_found_where_a_job_names_them(command: str, found: list[str]):
    assert images(replace(JOB, command=("sh", "-c", command))) == found
    assert images(replace(JOB, image="own:2", env={"TRAIN_IMAGE": "t:1", "IMAGENET": "x"})) == ["own:2", "t:1"]


# ---------------------------------------------------------------- exceptions


def exception(rule: str = "labels-required", days: float = 7, **changed: Any) -> PolicyException:
    made = PolicyException(
        id=f"exc-{days}", rule=rule, project="vision", name="", owner="ana", reason="founding",
        expires_at=NOW + timedelta(days=days), created_by="ops", created_at=NOW,
    )  # fmt: skip
    return replace(made, **changed)


BROKEN = Verdict(rule="labels-required", why="w", refused=Refused(rule="labels-required", need="a", have="b", hint="c"))
ASKING = Verdict(rule="approval-cost", why="w", refused=None, approval="$600; up to $500")


def lift(verdict: Verdict, *held: PolicyException, now: datetime = NOW) -> Verdict:
    return lifted((verdict,), held, LOCKED, project="vision", name="nightly", now=now)[0]


def test_an_exception_lifts_its_rule_for_its_project_and_name_until_it_ends():
    told = lift(BROKEN, exception(days=1), exception(days=3))
    assert (told.refused, told.exception) == (None, "excepted until 2026-11-23 12:00 UTC by ana: founding")
    assert lift(ASKING, exception("approval-cost")).approval == ""
    assert lift(BROKEN, exception(name="nightly")).refused is None
    for other in (exception(name="other"), exception(project="default"), exception("sku-allowed"), exception(days=0)):
        assert lift(BROKEN, other) == BROKEN
    assert lift(BROKEN, exception(days=1), now=NOW + timedelta(days=1)) == BROKEN
    fine = Verdict(rule="labels-required", why="w", refused=None, warning="hm")
    assert lift(fine, exception()) == fine


def test_nobody_is_excepted_from_what_is_locked():
    locked = Verdict(rule="owner", why="w", refused=Refused(rule="owner", need="a", have="b", hint="c"))
    assert lift(locked, exception("owner")) == locked


def test_an_exception_ends_in_the_future_and_within_a_year():
    assert checked_expiry(NOW + timedelta(days=366), NOW)
    for wrong in (NOW, NOW - timedelta(days=1), NOW + timedelta(days=367)):
        with pytest.raises(InvalidInput):
            checked_expiry(wrong, NOW)


# ---------------------------------------------------------------- replay


def plan(number: int, spec: JobSpec | EndpointSpec = JOB, offer: Offer | None = NODE) -> Plan:
    about = subject(spec, *((offer,) if offer else (replace(NODE, cpus=1),)))
    made = planning.seal(spec, about.ranking, built_in().judge(about), id=f"plan-{number}", created_by="ana", now=NOW)
    assert made.status is (PlanStatus.READY if offer else PlanStatus.REFUSED)
    return made


def test_a_replay_under_the_same_rules_changes_nothing():
    labelled = replace(JOB, metadata=replace(WHO, labels={"team": "a"}))
    made = replay(built_in(), [plan(1), plan(2, labelled), plan(3, JOB, None)], {}, since=NOW)
    assert (made.plans, made.changed_count, made.changed, made.unplayed) == (3, 0, (), {})


def test_a_replay_says_which_plans_would_have_changed_and_by_which_rule():
    ours = rules("settings: {approval_cost: $0.01}", *rule("team", require="has(spec.labels.team)"))
    labelled = replace(JOB, metadata=replace(WHO, labels={"team": "a"}))
    made = replay(ours, [plan(2, labelled), plan(1)], {}, since=NOW)
    assert (made.plans, made.changed_count, made.newly_refused, made.newly_allowed) == (2, 2, 1, 0)
    assert [(each.plan, each.before, each.after) for each in made.changed] == [
        ("plan-2", "ready", "needs-approval"), ("plan-1", "ready", "refused"),
    ]  # fmt: skip
    assert {move.rule: (move.before, move.after) for move in made.changed[1].moves} == {
        "approval-cost": ("pass", "approve"), "team": ("pass", "refuse"),
    }  # fmt: skip
    assert made.by_rule == {"approval-cost": 2, "team": 1}


def test_a_replay_shows_what_a_softer_rule_would_have_let_pass():
    broken = replace(JOB, resources=replace(JOB.resources, nodes=6))
    node = replace(NODE, nodes=9)
    strict = rules(*rule())
    about = subject(broken, node)
    refused = planning.seal(broken, about.ranking, strict.judge(about), id="p", created_by="ana", now=NOW)
    made = replay(built_in(), [refused], {}, since=NOW)
    # What nobody here knows keeps its word, as other checks of a plan do; what is in force and would go does not.
    assert made.changed_count == 0
    (gone,) = replay(built_in(), [refused], {}, since=NOW, dropped=frozenset({"ours"})).changed
    assert (gone.before, gone.after) == ("refused", "ready")
    softer = replay(rules(*rule(severity="warn")), [refused], {}, since=NOW)
    (move,) = softer.changed
    assert (move.before, move.after, softer.newly_allowed) == ("refused", "ready", 1)


def test_a_replay_counts_what_it_could_not_do():
    about = subject(SERVE)
    endpoint = planning.seal(SERVE, about.ranking, (), id="e", created_by="ana", now=NOW)
    ours = rules(*rule(require="spec.labels.team != ''"))
    made = replay(ours, [endpoint, plan(1)], {}, since=NOW, truncated=True)
    assert made.plans == 1
    assert made.truncated
    assert made.unplayed == {
        "the endpoint's model is not registered any more": 1,
        'rule ours can\'t be judged: key not found in map : "team" (ours.yaml:3)': 1,
    }
