"""What tracking takes, keeps and finds: the search language, metrics, parameters, facts of a certificate."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.provenance.certificate import DataFact, Facts, missing_facts
from groundplane.domain.tracking import records as tracking
from groundplane.domain.tracking.facts import Shown, facts_of_tags, refusal_of
from groundplane.domain.tracking.filter import Condition, matches, ordered, page, parse_filter, parse_order
from groundplane.domain.tracking.records import Measured, Point, TrackedRun
from groundplane.domain.tracking.search import RUNS, run_facts
from groundplane.domain.tracking.views import compared, view_of
from groundplane.errors import InvalidInput

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def a_run(id: str = "r", **changes: object) -> TrackedRun:
    values: dict[str, object] = {"params": {"size": "big"}, "tags": {"a b": "x"}, **changes}
    return TrackedRun(
        id=id, experiment_id="e", project="p", name=id, started_ms=5, created_by="ana", created_at=NOW, **values
    )  # type: ignore[arg-type]


def holds(text: str, run: TrackedRun | None = None, **latest: float) -> bool:
    points = {name: Point(value=value, timestamp_ms=1) for name, value in latest.items()}
    return matches(parse_filter(text, RUNS), run_facts(run or a_run(), points))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "metrics.loss < 0.5",
        "metric.loss<=.25 and params.size='big'",
        'metrics.`loss` = 2.5e-1 AND parameters.size != "small"',
        "tags.\"a b\" ILIKE 'X%' AND tags.none IS NULL AND params.size IS NOT NULL",
        "run_id IN ('q', 'r') AND status NOT IN ('FAILED') AND attributes.start_time >= 5",
        "params.size = 'big' AND metrics.loss <> 1",
    ],
)
def test_a_filter_that_holds(text: str) -> None:
    assert holds(text, loss=0.25)


@pytest.mark.parametrize(
    "text",
    [
        "metrics.loss > 0.5",
        "metrics.other < 1",
        "metrics.other != 1",
        "params.size LIKE 'bi'",
        "tags.`a b` LIKE 'X'",
        "tags.`a b` IS NULL",
        "run_id NOT IN ('r')",
        "end_time > 0",
    ],
)
def test_a_filter_that_does_not_hold(text: str) -> None:
    assert not holds(text, loss=0.25)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("metrics.loss < 'a'", "a number was expected"),
        ("metrics.loss < 1 OR metrics.loss > 2", "AND was expected"),
        ("NOT metrics.loss < 1", "no field 'NOT'"),
        ("params.size > 'a'", "can't be compared with >"),
        ("params.size = big", "a quoted text was expected"),
        ("params.size = 'big", "can't be read at character"),
        ("metrics.loss <", "ends too early"),
        ("metrics.loss < 1 AND", "ends too early"),
        ("metrics.loss < 1 metrics.x < 2", "AND was expected"),
        ("datasets.owner = 'x'", "datasets have no owner"),
        ("run_id IN 'a'", "a list was expected"),
        ("run_id IN ('a' 'b')", "',' or ')' was expected"),
        ("tags.x IN ('a')", "can't be compared with IN"),
        ("loss = 1", "no field 'loss'"),
        ("status = 'a'; DROP TABLE runs", "can't be read at character 13"),
        (" AND ".join(["metrics.a < 1"] * 101), "over 100 conditions"),
    ],
)
def test_a_filter_that_is_not_understood_is_refused_with_its_place(text: str, why: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_filter(text, RUNS)
    assert why in refused.value.message


@given(st.text("aB.\\%_", max_size=8), st.text("aB.\\", max_size=10))
def test_like_means_what_a_pattern_means(pattern: str, text: str) -> None:
    parts = {"%": ".*", "_": "."}
    meant = re.compile("".join(parts.get(each) or re.escape(each) for each in pattern), re.DOTALL)
    condition = Condition("tag", "t", "LIKE", pattern)
    assert matches((condition,), {"tag": {"t": text}}) == bool(meant.fullmatch(text))


def test_a_pattern_of_many_wildcards_is_answered_at_once() -> None:
    condition = Condition("tag", "t", "LIKE", "%a" * 200 + "b")
    assert not matches((condition,), {"tag": {"t": "a" * 8_000}})


@given(st.text(max_size=60))
def test_no_text_breaks_the_reader_of_filters(text: str) -> None:
    try:
        parse_filter(text, RUNS)
    except InvalidInput as refused:
        assert refused.message


def test_what_has_no_value_comes_last_either_way() -> None:
    values = {"a": 1.0, "b": math.nan, "c": 3.0, "d": None}

    def facts(name: str) -> dict[str, dict[str, object]]:
        return {"metric": {} if values[name] is None else {"x": values[name]}}

    for direction, expected in (("ASC", "acbd"), ("DESC", "cabd")):
        assert "".join(ordered("abcd", parse_order([f"metrics.x {direction}"], RUNS), facts)) == expected


def test_pages_join_up_and_a_foreign_token_is_refused() -> None:
    found, token, rounds = [], "", 0
    while True:
        part, token = page(range(10), token, 4, "question")
        found += part
        rounds += 1
        if not token:
            break
    assert (found, rounds) == (list(range(10)), 3)
    _, token = page(range(10), "", 4, "question")
    for question, given_token in (("another", token), ("question", "nonsense"), ("question", "e30=")):
        with pytest.raises(InvalidInput, match="page token"):
            page(range(10), given_token, 4, question)


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(numbers, st.integers(0, 2**50), st.integers(-5, 5)), max_size=30))
def test_points_come_back_as_they_went_in_once_each(rows: list[tuple[float, int, int]]) -> None:
    points = [Point(value=value, timestamp_ms=at, step=step) for value, at, step in rows]
    text = tracking.encode_points(points)
    twice = tracking.history([("loss", text), ("loss", text)], "loss")
    assert sorted(map(repr, twice)) == sorted({repr(each) for each in points})
    assert [each.step for each in twice] == sorted(each.step for each in twice)


def test_many_metrics_of_one_call_lie_in_few_rows_and_are_found_by_name() -> None:
    points = {f"m{n}": [Point(value=float(n), timestamp_ms=n, step=0)] for n in range(1_000)}
    parts = tracking.parts_of(points)
    assert len(parts) == tracking.BUCKETS
    for key in ("m0", "m517", "m999"):
        held = [(part, text) for part, text in parts.items() if part in (key, tracking.bucket_of(key))]
        assert tracking.history(held, key) == points[key]
    few = {key: points[key] for key in ("m0", "m1")}
    assert set(tracking.parts_of(few)) == {"m0", "m1"}


def test_the_latest_value_is_of_the_last_step_whatever_came_last() -> None:
    def measured(value: float, step: int, at: int = 0) -> Measured:
        return Measured(key="loss", point=Point(value=value, timestamp_ms=at, step=step))

    latest = tracking.merged("{}", [measured(1.0, 5), measured(2.0, 3)])
    assert tracking.decode_latest(latest)["loss"].value == 1.0
    latest = tracking.merged(latest, [measured(math.nan, 6), measured(0.5, 5)])
    assert math.isnan(tracking.decode_latest(latest)["loss"].value)
    with pytest.raises(InvalidInput, match="5000 is the most"):
        tracking.merged("{}", [Measured(key=f"m{n}", point=Point(value=0, timestamp_ms=0)) for n in range(5_001)])


@pytest.mark.parametrize("key", ["", "../up", "/root", "a/../b", "tab\t", "a" * 251, "quo'te", "a//b"])
def test_a_name_that_could_climb_or_hide_is_refused(key: str) -> None:
    with pytest.raises(InvalidInput):
        tracking.check_key(key, "metric")


def test_a_parameter_is_written_once() -> None:
    assert tracking.with_params({"a": "1"}, {"a": "1", "b": "2"}) == {"a": "1", "b": "2"}
    with pytest.raises(InvalidInput, match="'1' already"):
        tracking.with_params({"a": "1"}, {"a": "2"})


def test_a_listing_shows_one_floor() -> None:
    files = [("a.txt", 1), ("b/c.txt", 2), ("b/d/e.txt", 3)]
    assert [(each.path, each.is_dir) for each in tracking.listing(files, "")] == [("a.txt", False), ("b", True)]
    assert [(each.path, each.is_dir) for each in tracking.listing(files, "b")] == [("b/c.txt", False), ("b/d", True)]
    assert [each.size_bytes for each in tracking.listing(files, "a.txt")] == [1]
    assert tracking.listing(files, "c") == []


def test_points_are_thinned_to_the_first_the_last_and_some_between() -> None:
    points = [Point(value=n, timestamp_ms=n, step=n) for n in range(1000)]
    assert [each.step for each in tracking.thinned(points, 5)] == [0, 1, 998, 999]
    assert [each.step for each in tracking.thinned(points, 2)] == [0, 999]
    assert tracking.thinned(points[:2], 3) == points[:2]


@given(st.lists(numbers, min_size=1, max_size=300), st.integers(4, 60))
def test_what_is_drawn_keeps_ends_extremes_and_that_something_was_no_number(values: list[float], most: int) -> None:
    points = [Point(value=value, timestamp_ms=0, step=step) for step, value in enumerate(values)]
    kept = tracking.thinned(points, most)
    assert len(kept) <= max(most, 2) and [kept[0], kept[-1]] == [points[0], points[-1]]
    assert [each.step for each in kept] == sorted({each.step for each in kept})
    inner = [value for value in values[1:-1] if math.isfinite(value)]
    if most >= 5 and inner:
        assert {min(inner), max(inner)} <= {each.value for each in kept}
    if most >= 5:
        assert all(map(math.isfinite, values)) == all(math.isfinite(each.value) for each in kept)
    text = ",".join(tracking.encode_points([each]) for each in reversed(points))
    drawn = tracking.drawn([("loss", text), ("#00", '{"other":[[1.0,0,0]]}')], ["loss", "gone"], most)
    assert [repr(each) for each in drawn["loss"]] == [repr(each) for each in kept] and set(drawn) == {"loss"}


# ---------------------------------------------------------------- facts


def shown(**changes: object) -> Shown:
    values: dict[str, object] = {"registrant": "ana", "run_id": "r", "metrics": {"loss": 0.5}, "params": {"lr": "1"}}
    return Shown(**{**values, **changes})  # type: ignore[arg-type]


def test_tags_come_before_the_card_and_both_before_what_the_run_shows() -> None:
    card = Facts(license="MIT", framework="jax", metrics={"f1": 0.9})
    tags = {
        "groundplane.license": "Apache-2.0",
        "groundplane.data.text": "a" * 64,
        "mlflow.source.git.commit": "c" * 40,
    }
    facts = facts_of_tags(card, tags, shown(metrics={"loss": 0.5, "broken": math.nan}))
    assert (facts.license, facts.framework, facts.owner, facts.code_commit) == ("Apache-2.0", "jax", "ana", "c" * 40)
    assert facts.data == (DataFact(name="text", sha256="a" * 64),)
    assert facts.metrics == {"loss": 0.5, "f1": 0.9} and facts.hyperparameters == {"lr": "1"}
    assert missing_facts(facts) == ()
    short = facts_of_tags(card, {**tags, "mlflow.source.git.commit": "c0ffee1"}, shown())
    assert [(each.name, "a whole git object id" in refusal_of(each).hint) for each in missing_facts(short)] == [
        ("code_commit", True)
    ]


def test_every_missing_fact_names_its_tag() -> None:
    missing = missing_facts(facts_of_tags(Facts(), {}, shown(metrics={})))
    hints = {each.name: refusal_of(each).hint for each in missing}
    assert set(hints) == {"license", "data", "code_commit", "metrics"}
    assert "groundplane.license" in hints["license"] and "groundplane.data.<name>" in hints["data"]
    assert "groundplane.unknown.code_commit" in hints["code_commit"]


@pytest.mark.parametrize(
    "tags",
    [
        {"groundplane.licence": "MIT"},
        {"groundplane.data.text": "md5:123"},
        {"groundplane.cost_usd": "much"},
        {"groundplane.code_dirty": "perhaps"},
        {"groundplane.unknown.license": "why"},
    ],
)
def test_a_fact_that_is_none_or_can_not_be_read_is_refused(tags: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="groundplane"):
        facts_of_tags(Facts(), tags, shown())


def test_runs_side_by_side_tell_first_what_differs() -> None:
    views = [
        view_of(a_run("a", params={"lr": "1", "seed": "0"}), {"loss": Point(value=math.nan, timestamp_ms=0)}, 1),
        view_of(a_run("b", params={"lr": "2", "seed": "0"}), {}, 0),
    ]
    rows = [(row.part, row.name, row.values, row.differs) for row in compared(views).rows]
    assert rows[:3] == [
        ("parameter", "lr", ("1", "2"), True),
        ("parameter", "seed", ("0", "0"), False),
        ("metric", "loss", ("nan", ""), True),
    ]
    assert views[0].metrics["loss"].value is None
