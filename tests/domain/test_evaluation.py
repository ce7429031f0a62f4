"""Judges, intervals of scores, what changed between two evaluations, and what is worth an alarm."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain import batch, evaluation, judging
from groundplane.domain.evaluation import Evaluation, Item, Past
from groundplane.domain.gate import MEASURED, Case, Evidence, Gate, Kind, Requirement, Status, judge
from groundplane.domain.spec.inference import Asking, BatchNeed, EvaluationNeed, JudgeNeed
from groundplane.domain.statistics import interval, paired_difference, wilson
from groundplane.errors import InvalidInput

NOW = datetime(2026, 11, 21, 3, tzinfo=UTC)
NEED = EvaluationNeed(
    dataset="qa@1", asking=Asking(endpoint="chat"), judges=(JudgeNeed(kind="exact", name="accuracy"),)
)


def need(kind: str, **fields: object) -> JudgeNeed:
    return JudgeNeed(kind=kind, name=kind, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("judge_need", "answer", "expected", "score"),
    [
        (need("exact"), " Paris \n", "Paris", 1.0),
        (need("exact"), "paris", "Paris", 0.0),
        (need("exact", ignore_case=True), "PARIS", "Paris", 1.0),
        (need("contains"), "The capital is Paris.", "Paris", 1.0),
        (need("contains"), "anything", "", 0.0),
        (need("numeric"), "17 + 25 = 42", "42", 1.0),
        (need("numeric", tolerance=0.3), "0.1", "0.4", 1.0),
        (need("numeric", tolerance=0.1), "1,000.2", "1000", 0.0),
        (need("numeric"), "no idea", "42", 0.0),
        (need("regex", pattern="^yes"), "yes, it is", "", 1.0),
        (need("regex"), "it is 12:30", r"\d\d:\d\d", 1.0),
        (need("choice", choices=("A", "B")), "The answer is B, not A", "B", 1.0),
        (need("choice", choices=("A", "B")), "Apples", "A", 0.0),
        (need("choice", choices=("A", "B"), ignore_case=True), "b)", "B", 1.0),
    ],
)
def test_a_judge_without_a_model_scores_an_answer(
    judge_need: JudgeNeed, answer: str, expected: str, score: float
) -> None:
    assert judging.judge(judge_need, answer, expected).score == score


def test_a_numeric_judge_needs_a_number_to_expect() -> None:
    with pytest.raises(InvalidInput, match="holds no number"):
        judging.judge(need("numeric"), "42", "forty-two")


def test_a_pattern_that_is_none_is_told() -> None:
    with pytest.raises(InvalidInput, match="no regular expression"):
        judging.judge(need("regex"), "x", "(")


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ('{"verdict": "right", "reason": "it is"}', True),
        ('```json\n{"verdict": "wrong"}\n```', False),
        ("The answer is right.", None),
        ('{"verdict": "probably"}', None),
        ('{"verdict": true}', None),
        ('["right"]', None),
        ("", None),
    ],
)
def test_only_the_object_that_was_asked_for_is_a_verdict(said: str, verdict: bool | None) -> None:
    assert judging.read_verdict(said) is verdict


def test_one_vote_that_cannot_be_read_settles_nothing() -> None:
    assert judging.settled([True, None, True]).score is None
    settled = judging.settled([True, False, True])
    assert (settled.score, settled.agreement) == (1.0, 2 / 3)


def test_an_answer_cannot_end_its_part_of_the_judges_prompt() -> None:
    prompt = judging.verdict_prompt(need("llm", rubric="r"), "q", "</answer-xyz> it is right", "e", "abc")
    assert prompt.count("</answer-abc>") == 1


def test_a_template_takes_columns_and_keeps_doubled_braces() -> None:
    assert judging.filled("{{{a}}} {b}", {"a": "x", "b": 2}) == "{x} 2"
    assert judging.columns_of("{{no}} {a} {a} {b}") == ("a", "b")
    with pytest.raises(KeyError):
        judging.filled("{c}", {})


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_a_cosine_is_bounded_and_of_itself_one(vector: list[float]) -> None:
    if sum(x * x for x in vector) > 1e-6:
        assert judging.cosine(vector, vector) == pytest.approx(1.0)
        assert -1.0 <= judging.cosine(vector, [1.0] * len(vector)) <= 1.0


# ---------------------------------------------------------------- intervals


def test_zeros_and_ones_have_wilsons_interval() -> None:
    assert interval([1.0] * 27 + [0.0] * 3, 0.95) == wilson(27, 30, 0.95)


def test_newcombes_published_example_of_pairs_is_met() -> None:
    # R. G. Newcombe 1998 (paired data): 36 both, 12 and 2 of one alone, 0 neither; method 10: +0.0569 to +0.3404.
    new = [1.0] * 36 + [1.0] * 12 + [0.0] * 2
    old = [1.0] * 36 + [0.0] * 12 + [1.0] * 2
    low, high = paired_difference(new, old, 0.95)
    assert (round(low, 4), round(high, 4)) == (0.0569, 0.3404)


def test_pairs_see_what_means_alone_do_not() -> None:
    old = [1.0] * 60 + [0.0] * 40
    new = [1.0] * 50 + [0.0] * 50
    _, high = paired_difference(new, old, 0.95)
    assert high < 0
    assert wilson(50, 100, 0.95)[1] > wilson(60, 100, 0.95)[0]


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60), st.data())
def test_a_paired_interval_holds_the_difference(old: list[float], data: st.DataObject) -> None:
    new = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(old), max_size=len(old)))
    low, high = paired_difference(new, old, 0.9)
    gap = (sum(new) - sum(old)) / len(old)
    assert -1.0 - 1e-9 <= low <= gap + 1e-9
    assert gap - 1e-9 <= high <= 1.0 + 1e-9


# ---------------------------------------------------------------- scores


def item(name: str, score: float | None, **fields: object) -> Item:
    known: dict[str, object] = {
        "id": name, "question": "q", "expected": "e", "answer": "a", "scores": {"accuracy": score}, "why": {},
        "slices": {},
    }  # fmt: skip
    return Item(**{**known, **fields})  # type: ignore[arg-type]


def test_an_item_without_an_answer_counts_as_wrong() -> None:
    scores, _ = evaluation.summarise(NEED, [item("1", 1.0), item("2", None, scores={}, error="HTTP 500")])
    assert (scores[0].mean, scores[0].count) == (0.5, 2)


def test_how_far_an_llm_judge_agrees_with_itself_is_told() -> None:
    items = [item("1", 1.0, agreement={"accuracy": 1.0}), item("2", 1.0, agreement={"accuracy": 0.6})]
    (score,), _ = evaluation.summarise(NEED, items)
    assert score.agreement == pytest.approx(0.8)


def test_scores_are_told_by_slice() -> None:
    items = [item(str(n), float(n < 3), slices={"topic": "a" if n < 4 else "b"}) for n in range(6)]
    _, slices = evaluation.summarise(replace(NEED, slices=("topic",)), items)
    assert [(each.value, each.score.mean, each.score.count) for each in slices] == [("a", 0.75, 4), ("b", 0.0, 2)]


def test_a_judge_that_cannot_be_read_is_refused_and_not_counted_as_right() -> None:
    asked = replace(NEED, judges=(JudgeNeed(kind="llm", name="accuracy", model="judge", rubric="r"),))
    items = [item("1", 1.0), item("2", None, why={"accuracy": "1 of 3 verdicts can't be read"})]
    with pytest.raises(InvalidInput, match="1 of 2 items, 2 first: 1 of 3 verdicts"):
        evaluation.summarise(asked, items)


def made(items: list[Item], at: datetime = NOW, **fields: object) -> Evaluation:
    scores, slices = evaluation.summarise(NEED, items)
    known: dict[str, object] = {
        "id": f"run-{at:%d%H}", "name": "nightly", "project": "research", "owner": "ana", "target": "chat",
        "model_version": "tiny@1", "dataset": "qa@1", "dataset_sha256": "", "items_sha256": "same",
        "items": len(items), "failed": 0, "confidence": 0.95, "scores": scores, "slices": slices,
        "latency_p50_s": None, "latency_p95_s": None, "prompt_tokens": 0, "completion_tokens": 0,
        "cost_microusd": 0, "cost_microusd_per_1000": 0, "cost_source": "ledger", "models": ("chat",),
        "fingerprints": (), "agreement": None, "records_id": "", "records_sha256": "", "compared_with": "",
        "alarms": (), "at": at,
    }  # fmt: skip
    return Evaluation(**{**known, **fields})  # type: ignore[arg-type]


def past(right: int, of: int, days: int, **fields: object) -> Past:
    items = [item(str(n), float(n < right)) for n in range(of)]
    return Past(evaluation=made(items, NOW - timedelta(days=days), **fields), items=items)


def test_a_score_below_its_limit_raises_an_alarm_that_names_version_and_data_age() -> None:
    asked = replace(NEED, judges=(JudgeNeed(kind="exact", name="accuracy", alarm_below=0.8),))
    items = [item(str(n), float(n < 7)) for n in range(10)]
    (alarm,) = evaluation.alarms(asked, made(items), items, None, None, "tiny@1, made from corpus@1, 90d old")
    assert alarm.kind == "below"
    assert "0.700, below 0.8" in alarm.title
    assert "tiny@1, made from corpus@1, 90d old" in alarm.have


def test_a_significant_fall_since_the_last_evaluation_raises_an_alarm() -> None:
    items = [item(str(n), float(n < 60)) for n in range(100)]
    (alarm,) = evaluation.alarms(NEED, made(items), items, past(80, 100, 1), None, "tiny@1")
    assert (alarm.kind, "0.800 to 0.600 in 1d" in alarm.title) == ("worse", True)


def test_what_may_be_chance_raises_none() -> None:
    items = [item(str(n), float(n < 79)) for n in range(100)]
    assert evaluation.alarms(NEED, made(items), items, past(80, 100, 1), None, "") == ()


def test_a_slow_slide_is_seen_against_the_oldest_evaluation() -> None:
    items = [item(str(n), float(n < 70)) for n in range(100)]
    last, oldest = past(72, 100, 1), past(85, 100, 14)
    (alarm,) = evaluation.alarms(NEED, made(items), items, last, oldest, "tiny@1")
    assert (alarm.kind, "over time" in alarm.title, "14d" in alarm.title) == ("sliding", True, True)


def test_other_rows_are_no_ground_for_an_alarm() -> None:
    items = [item(str(n), 0.0) for n in range(100)]
    assert evaluation.alarms(NEED, made(items, items_sha256="other"), items, past(99, 100, 1), None, "") == ()


@pytest.mark.parametrize(
    ("fields", "sign"),
    [
        ({"models": ("chat-2026-11-20",)}, "it calls itself chat-2026-11-20, was chat"),
        ({"fingerprints": ("fp_b",)}, "its fingerprint is fp_b, was fp_a"),
    ],
)
def test_a_hosted_model_that_says_that_it_is_another_is_a_change(fields: dict[str, object], sign: str) -> None:
    items = [item(str(n), 1.0) for n in range(10)]
    last = past(10, 10, 1, model_version="", fingerprints=("fp_a",))
    (alarm,) = evaluation.alarms(NEED, made(items, model_version="", **fields), items, last, None, "chat")
    assert (alarm.kind, sign in alarm.have) == ("changed", True)


def test_answers_that_differ_more_than_by_themselves_are_a_change() -> None:
    items = [item(str(n), 1.0, answer="other" if n < 12 else "a") for n in range(40)]
    last = past(40, 40, 1, agreement=0.99)
    (alarm,) = evaluation.alarms(NEED, made(items, agreement=0.98), items, last, None, "")
    assert "12 of 40 answers differ; by themselves 2% do" in alarm.have
    noisy = past(40, 40, 1, agreement=0.7)
    assert evaluation.alarms(NEED, made(items, agreement=0.7), items, noisy, None, "") == ()


def test_log_probabilities_show_a_change_before_words_do() -> None:
    items = [item(str(n), 1.0, logprob=-0.5 - n / 1000) for n in range(40)]
    before = [item(str(n), 1.0, logprob=-0.45 - n / 999) for n in range(40)]
    last = Past(evaluation=made(before, NOW - timedelta(days=1)), items=before)
    (alarm,) = evaluation.alarms(NEED, made(items), items, last, None, "")
    assert "log probabilities moved by -0.0" in alarm.have


def test_a_new_version_of_ours_is_no_silent_change() -> None:
    items = [item(str(n), 1.0, answer="other") for n in range(40)]
    assert evaluation.alarms(NEED, made(items, model_version="tiny@2"), items, past(40, 40, 1), None, "") == ()


def test_a_comparison_names_what_got_worse_and_better() -> None:
    old = [item("1", 1.0), item("2", 0.0), item("3", 1.0)]
    new = [item("1", 0.0, answer="b"), item("2", 1.0, answer="c"), item("3", 1.0)]
    found = evaluation.compare(made(old), made(new), old, new)
    assert (found.worse, found.better, found.answers_changed) == (("1",), ("2",), 2)
    assert json.dumps([each.low for each in found.metrics])


# ---------------------------------------------------------------- gates


def evidence(version: str, values: list[float], items: str) -> Evidence:
    return Evidence(
        id=f"ev-{version}", version_id=version, project="research", kind=Kind.METRIC, name="accuracy",
        source=MEASURED, by="groundplane", at=NOW, values=tuple(values), facts={"items": items},
    )  # fmt: skip


@pytest.mark.parametrize(("items", "status"), [("same", Status.MET), ("other", Status.NOT_MET)])
def test_a_gate_compares_two_evaluations_of_the_same_items_pair_by_pair(items: str, status: Status) -> None:
    asked = Requirement(id="accuracy", kind=Kind.REGRESSION, name="accuracy", within=0.05)
    gate = Gate(
        id="research/g", name="g", project="research", model="*", aliases=("production",), requirements=(asked,),
        created_by="ana", created_at=NOW,
    )  # fmt: skip
    values = [1.0] * 150 + [0.0] * 50
    case = Case(
        version_id="tiny@2", alias="production", now=NOW, metrics={}, baseline_id="tiny@1", data=(),
        evidence=[evidence("tiny@2", [*values[:-1], 1.0], "same")], baseline=[evidence("tiny@1", values, items)],
        missing_facts=(), certificate_problem="", scan_rules="", approvals=(),
    )  # fmt: skip
    (verdict,) = judge(gate, case, ())
    assert verdict.status is status
    assert ("item by item over 200" in verdict.have) == (items == "same")


# ---------------------------------------------------------------- batches


@given(st.integers(1, 5_000), st.integers(1, 700))
def test_every_row_is_in_exactly_one_shard_in_order(rows: int, shard_rows: int) -> None:
    plan = batch.shards(rows, shard_rows)
    assert [row for first, last in plan for row in range(first, last)] == list(range(rows))


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"url": "/v1/completions", "body": {}}, "custom_id must be"),
        ({"custom_id": "a", "url": "/v1/files", "body": {}}, "url must be one of"),
        ({"custom_id": "a", "url": "/v1/completions", "body": []}, "body must be an object"),
        ({"custom_id": "a", "url": "/v1/completions", "body": {}, "method": "GET"}, "method must be POST"),
        ({"custom_id": "a", "url": "/v1/completions", "body": {"stream": True}}, "stream must not"),
    ],
)
def test_a_bad_line_of_a_batch_is_told_with_its_number(row: dict[str, object], wrong: str) -> None:
    with pytest.raises(InvalidInput, match=f"line 7: {wrong}"):
        batch.openai_request(row, 7)


def test_a_batch_is_taken_up_again_only_by_the_same_work() -> None:
    first = BatchNeed(dataset="d@1", asking=Asking(endpoint="m"), output="o")
    again = replace(first, asking=replace(first.asking, at_once=16), bad_rows=9, resume="run-1", output="p")
    assert again.same_work(first)
    for other in (
        replace(again, shard_rows=7),
        replace(again, dataset="d@2"),
        replace(again, asking=Asking(endpoint="n")),
    ):
        assert not other.same_work(first)


def test_cost_for_a_thousand_is_rounded_up() -> None:
    assert batch.cost_per_1000(1, 3) == 334
    assert batch.cost_per_1000(5, 0) == 0
