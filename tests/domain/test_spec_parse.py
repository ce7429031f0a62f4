"""What good specs mean, and that parsing is strict, bounded and total."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain.spec import (
    DataSource,
    EndpointSpec,
    JobSpec,
    Metadata,
    ModelOutput,
    Resources,
    Retry,
    TokenPrice,
    spec_digest,
)
from groundplane.domain.spec import fields as spec_fields
from groundplane.domain.spec import reference as spec_reference
from groundplane.domain.spec.parse import dump, parse, parse_one, with_absolute_paths
from groundplane.domain.spec.yaml_nodes import decode
from groundplane.errors import InvalidInput

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

JOB = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: tiny-lm, project: default, owner: ana, cost_center: research, labels: {team: nlp}}
spec:
  command: [python, train.py, --epochs, 3]
  workdir: .
  env: {A: "1"}
  pool: local
  resources: {cpus: 2, memory: 2GiB, disk: 1GiB, accelerators: 0, accelerator: "", nodes: 1}
  end_date: 2026-12-01
  max_cost: $0.50
  max_duration: 30m
  idle_limit: 10m
  control_plane_gone_limit: 1h
  stop_grace: 10s
  retry: {max_attempts: 3, backoff: 1s}
  data: [{name: corpus, path: data/corpus.txt}]
  outputs: {models: [{name: tiny-lm, path: model, license: Apache-2.0, framework: jax}]}
"""
ENDPOINT = """\
apiVersion: groundplane/v1
kind: Endpoint
metadata: {name: tiny, project: default, owner: ana, cost_center: research}
spec:
  model: tiny-lm@1
  resources: {cpus: 1, memory: 512MiB}
  end_date: 7d
  max_cost: $50
  token_price: {prompt: $0.10, completion: $0.40, cached: $0.02}
"""


def test_every_field_of_a_job_is_read():
    assert parse(JOB, now=NOW) == (
        JobSpec(
            metadata=Metadata(
                name="tiny-lm", project="default", owner="ana", cost_center="research", labels={"team": "nlp"}
            ),
            command=("python", "train.py", "--epochs", "3"),
            resources=Resources(cpus=2, memory_bytes=2 * 2**30, disk_bytes=2**30),
            end_date=datetime(2026, 12, 1, 23, 59, 59, tzinfo=UTC),
            max_cost_microusd=500_000,
            max_duration_s=1800,
            workdir=".",
            env={"A": "1"},
            retry=Retry(max_attempts=3, backoff_s=1),
            idle_limit_s=600,
            control_plane_gone_limit_s=3600,
            data=(DataSource(name="corpus", path="data/corpus.txt"),),
            outputs=(ModelOutput(name="tiny-lm", path="model", license="Apache-2.0", framework="jax"),),
        ),
    )


def test_every_field_of_an_endpoint_is_read():
    assert parse_one(ENDPOINT, now=NOW) == EndpointSpec(
        metadata=Metadata(name="tiny", project="default", owner="ana", cost_center="research"),
        model="tiny-lm@1",
        resources=Resources(cpus=1, memory_bytes=512 * 2**20),
        end_date=NOW + timedelta(days=7),
        max_cost_microusd=50_000_000,
        max_duration_s=7 * 86_400,
        token_price=TokenPrice(
            prompt_microusd_per_million=100_000,
            completion_microusd_per_million=400_000,
            cached_microusd_per_million=20_000,
        ),
    )


def test_a_file_may_hold_several_documents_and_empty_ones_are_skipped():
    specs = parse(f"---\n{JOB}---\n---\n{ENDPOINT}---\n", now=NOW)
    assert [type(spec) for spec in specs] == [JobSpec, EndpointSpec]


def test_what_is_left_out_or_empty_takes_its_default():
    left_out = JOB.replace('  env: {A: "1"}\n', "").replace("  stop_grace: 10s\n", "")
    empty = JOB.replace('{A: "1"}', "").replace("stop_grace: 10s", "stop_grace:")
    assert parse(left_out, now=NOW) == parse(empty, now=NOW)
    assert parse_one(empty, now=NOW).env == {}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-12-01", datetime(2026, 12, 1, 23, 59, 59, tzinfo=UTC)),
        ("2026-11-20", datetime(2026, 11, 20, 23, 59, 59, tzinfo=UTC)),
        ("2026-12-01T18:00:00Z", datetime(2026, 12, 1, 18, tzinfo=UTC)),
        ("2026-12-01 18:00:00 +02:00", datetime(2026, 12, 1, 16, tzinfo=UTC)),
        ('"2026-12-01t18:00:00.25z"', datetime(2026, 12, 1, 18, 0, 0, 250_000, tzinfo=UTC)),
        ("7d", NOW + timedelta(days=7)),
        ("1h30m", NOW + timedelta(minutes=90)),
    ],
)
def test_an_end_date_is_a_day_a_moment_or_a_time_from_now(written: str, meant: datetime):
    assert parse_one(JOB.replace("2026-12-01", written), now=NOW).end_date == meant


def test_a_command_written_as_one_text_goes_to_the_shell():
    spec = parse_one(JOB.replace("[python, train.py, --epochs, 3]", "echo a && echo b"), now=NOW)
    assert spec.command == ("sh", "-c", "echo a && echo b")


def test_arguments_keep_the_spelling_of_their_numbers():
    spec = parse_one(JOB.replace("3]", "1e-3, 0x10, 1.10]"), now=NOW)
    assert spec.command[-3:] == ("1e-3", "0x10", "1.10")


def test_an_anchor_may_be_used_again():
    text = JOB.replace("metadata: {name", "metadata: {labels: &tags {a: b}, name").replace(", labels: {team: nlp}", "")
    assert parse_one(text.replace('{A: "1"}', "*tags"), now=NOW).env == {"a": "b"}


def test_the_digest_follows_the_meaning_and_not_the_spelling():
    one = parse_one(JOB, now=NOW)
    assert spec_digest(one) == spec_digest(parse_one(JOB.replace("30m", "1800s").replace("2GiB", "2048MiB"), now=NOW))
    assert spec_digest(one) != spec_digest(parse_one(JOB.replace("30m", "31m"), now=NOW))
    assert len(spec_digest(one)) == 64


def test_relative_paths_become_absolute_in_place():
    changed = with_absolute_paths(f"{JOB}---\n{ENDPOINT}", "/srv/a b")
    job, _ = parse(changed, now=NOW)
    assert isinstance(job, JobSpec)
    assert job.workdir == "/srv/a b"
    assert job.data[0].path == "/srv/a b/data/corpus.txt"
    assert changed.count("\n") == f"{JOB}---\n{ENDPOINT}".count("\n")
    assert with_absolute_paths(changed, "/elsewhere") == changed


def test_making_paths_absolute_leaves_a_faulty_spec_to_be_judged_by_the_parser():
    assert with_absolute_paths("just text", "/srv") == "just text"
    assert with_absolute_paths("spec: [1]", "/srv") == "spec: [1]"
    with pytest.raises(InvalidInput, match="not valid YAML"):
        with_absolute_paths("a: [", "/srv")


def test_bytes_become_text_or_name_the_bad_byte():
    assert decode("\ufeffkind: Jöb".encode()) == "kind: Jöb"
    with pytest.raises(InvalidInput) as caught:
        decode(b"a: 1\nb: \xff\xfe")
    assert str(caught.value) == "line 2: byte 0xff at offset 8 is not UTF-8"
    assert caught.value.hint == "save the file as UTF-8"


def test_the_reference_page_is_the_parsers_own_table():
    page = Path(__file__).parents[2] / "docs" / "reference" / "spec.md"
    assert page.read_text(encoding="utf-8") == spec_reference.reference(), (
        "write spec_reference.reference() to docs/reference/spec.md"
    )


# ---------------------------------------------------------------- properties

_name = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
_words = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_categories=["Cc"]), max_size=30)
_word = _words.filter(lambda text: text.strip() == text and text != "")
_micros = st.integers(1, 10**15)
_metadata = st.builds(
    Metadata,
    name=_name,
    project=_name,
    owner=_word,
    cost_center=_word,
    labels=st.dictionaries(_name, _words, max_size=3),
)
_resources = st.builds(
    Resources,
    cpus=st.integers(1, 4096).map(float) | st.sampled_from([0.5, 0.25, 1.5]),
    memory_bytes=st.integers(2**20, 2**45),
    disk_bytes=st.integers(0, 2**45),
    accelerators=st.integers(0, 16),
    accelerator=st.sampled_from(["", "h100-sxm-80gb", "A100"]),
    nodes=st.integers(1, 100),
)
_ends = st.integers(1, 3 * 10**14).map(lambda micros: NOW + timedelta(microseconds=micros))
_seconds = st.integers(1, 3650 * 86_400)
_jobs = st.builds(
    JobSpec,
    metadata=_metadata,
    command=st.lists(_words, max_size=4).flatmap(lambda rest: _word.map(lambda first: (first, *rest))),
    resources=_resources,
    end_date=_ends,
    max_cost_microusd=_micros,
    max_duration_s=_seconds,
    workdir=st.sampled_from(["", ".", "/srv/x: y", "#a"]),
    env=st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,9}", fullmatch=True), _words, max_size=3),
    pool=_name,
    retry=st.builds(Retry, max_attempts=st.integers(1, 100), backoff_s=st.integers(0, 1000)),
    idle_limit_s=st.none() | _seconds,
    control_plane_gone_limit_s=st.none() | _seconds,
    stop_grace_s=st.integers(0, 1000),
    data=st.lists(st.builds(DataSource, name=_name, path=_word), max_size=2).map(tuple),
    outputs=st.lists(st.builds(ModelOutput, name=_name), max_size=2).map(tuple),
)
_prices = st.integers(0, 10**12)
_endpoints = st.builds(
    EndpointSpec,
    metadata=_metadata,
    model=_name.map(lambda name: f"{name}@7"),
    resources=_resources,
    end_date=_ends,
    max_cost_microusd=_micros,
    max_duration_s=_seconds,
    token_price=st.builds(
        TokenPrice,
        prompt_microusd_per_million=_prices,
        completion_microusd_per_million=_prices,
        cached_microusd_per_million=_prices,
    ),
    pool=_name,
    public=st.booleans(),
    ready_timeout_s=_seconds,
)


@settings(max_examples=80, deadline=None)
@given(spec=_jobs | _endpoints)
def test_a_dumped_spec_parses_back_to_itself(spec: JobSpec | EndpointSpec):
    assert parse(dump(spec), now=NOW) == (spec,)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_parses_or_is_invalid_input(text: str):
    try:
        parse(text, now=NOW)
    except InvalidInput as error:
        assert error.problems


_tree = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["$1", "7d", "1GiB"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [field.name.removesuffix("[]") for field in spec_fields.FIELDS] + ["spec", "metadata", "x"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=25,
)


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(["Job", "Endpoint", "Jb"]), metadata=_tree, body=_tree)
def test_any_tree_of_known_words_parses_or_is_invalid_input(kind: str, metadata: object, body: object):
    import yaml

    document = {"apiVersion": "groundplane/v1", "kind": kind, "metadata": metadata, "spec": body}
    try:
        parse(yaml.safe_dump(document), now=NOW)
    except InvalidInput as error:
        assert all(problem.line is not None for problem in error.problems)


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, len(JOB)), cut=st.integers(0, 12), insert=st.text(":-[]{}&*!|>'\"%@`#, \n\tab1$", max_size=6))
def test_any_slip_of_the_pen_parses_or_is_invalid_input(at: int, cut: int, insert: str):
    try:
        parse(JOB[:at] + insert + JOB[at + cut :], now=NOW)
    except InvalidInput as error:
        assert error.problems
        with_absolute = error.problems[0].line
        assert with_absolute is None or with_absolute >= 1
