"""Lineage told to a real HTTP receiver that judges every event by OpenLineage's own schemas, and lineage heard."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import referencing
from tests.conftest import ManualClock
from tests.services.model_house import ADA, EVE, House, built
from tests.services.test_datasets import FILES, POINTED, STATED, job
from tests.stage import Answer, Asked, Played

from groundplane.adapters.lineage import FileLineage, HttpLineage, MemoryLineage
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.audit import EventDraft
from groundplane.domain.dataset import Column, Profile, edge
from groundplane.domain.run import Run, RunStatus
from groundplane.domain.spec import DataSource
from groundplane.errors import InvalidInput, NotFound, Unavailable
from groundplane.services.datasets import Datasets
from groundplane.services.lineage import OpenLineage

SPEC = Path(__file__).parents[1] / "openlineage"
SCHEMAS = {path.stem: json.loads(path.read_text()) for path in SPEC.glob("*.json")}
REGISTRY: Any = referencing.Registry().with_resources(
    (schema["$id"], referencing.Resource.from_contents(schema)) for schema in SCHEMAS.values()
)


def faults(event: dict[str, Any]) -> list[str]:
    """What OpenLineage's schemas find wrong: with the event, and with each of its facets by the schema it names."""

    def judged(value: object, schema: object) -> list[str]:
        validator = jsonschema.Draft202012Validator(
            schema,  # type: ignore[arg-type]
            registry=REGISTRY,
            format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
        )
        return [error.message for error in validator.iter_errors(value)]

    found = judged(event, SCHEMAS["OpenLineage"])
    datasets = [*event.get("inputs", []), *event.get("outputs", []), event.get("dataset", {})]
    holders = [event.get("run", {}), event.get("job", {}), *datasets]
    for name, facet in (pair for holder in holders for pair in holder.get("facets", {}).items()):
        if facet["_schemaURL"].startswith("https://openlineage.io/"):
            document, _, kind = facet["_schemaURL"].partition("#/$defs/")
            assert SCHEMAS[kind]["$id"] == document, f"{name} names another version of its schema"
            found += judged({name: facet}, SCHEMAS[kind])
    return found


class Receiver(Played):
    """An OpenLineage receiver: keeps what is valid, answers 422 for the rest, and fails when it is told to."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.answers: list[int] = []
        super().__init__(self._answer, protocol="HTTP/1.0")  # nobody closes what is kept open
        self.url += "/api/v1/lineage"

    def _answer(self, asked: Asked) -> Answer:
        self.keys.add(asked.headers.get("Authorization", ""))
        wrong = faults(asked.json)
        status = self.answers.pop(0) if self.answers else 422 if wrong else 201
        if status == 201:
            self.events.append(asked.json)
        return Answer(status, wrong)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with closing(Receiver()) as played:
        yield played


class Scene:
    """A dataset, a run that reads it and makes a model, and a model from elsewhere: as rows and on the trail."""

    def __init__(self, house: House, clock: ManualClock) -> None:
        self.house, self.store, self.clock = house, house.store, clock
        self.datasets = Datasets(
            store=house.store, clock=clock, ids=RandomIds(clock), blobs=house.blobs, signer=house.signer
        )

    async def played(self, status: RunStatus = RunStatus.SUCCEEDED, run_id: str = "run-1") -> None:
        columns = (Column(name="text", kind="text", nulls=0, distinct=2),)
        offered = replace(POINTED, location="s3://corpora/v1", profile=Profile(rows=2, tables=1, columns=columns))
        await self.datasets.register(ADA, offered, STATED)
        sources = (DataSource(name="d", dataset="corpus@1"), DataSource(name="e", path="/data/extra", sha256="e" * 64))
        run = Run(
            id=run_id, name="train", project="vision", owner="ada", cost_center="c", spec=job(*sources),
            spec_digest="s", plan_id="plan-1", hold_id="hold-1", pool="local", price_microusd_per_hour=0,
            status=status, message="exit code 3" if status is RunStatus.FAILED else "", created_by="ada",
            created_at=self.clock.now(), end_date=self.clock.now(), due_at=None,
        )  # fmt: skip
        made = await self.house.register()
        async with self.store.transaction() as tx:
            await tx.insert(run)
            await self._event(tx, run, "run.attempt", {"attempt": 1})
            await self._event(tx, run, "run.attempt", {"attempt": 2})
        async with self.store.transaction() as tx:
            await tx.insert(edge(f"run:{run_id}", f"model:{made.id}", "vision", self.clock.now()))
            await self._event(tx, run, "run.end", {"status": status.value})

    async def _event(self, tx: Any, run: Run, action: str, after: dict[str, object]) -> None:
        await tx.append_event(
            EventDraft(
                at=self.clock.now(), actor="groundplane", action=action, object_kind="run", object_id=run.id,
                project=run.project, after=after,
            )
        )  # fmt: skip

    def lineage(self, sink: Any = None) -> OpenLineage:
        return OpenLineage(store=self.store, clock=self.clock, sink=sink, namespace="plane")


@pytest.fixture
async def scene(clock: ManualClock, tmp_path: Path) -> Scene:
    return Scene(await built(MemoryStore(), clock, tmp_path), clock)


async def a_key() -> str:
    return "s3cret\n"


async def test_a_receiver_hears_of_every_step_of_a_run_in_valid_events(scene: Scene, receiver: Receiver) -> None:
    await scene.played()
    lineage = scene.lineage(HttpLineage(receiver.url, a_key))
    await lineage.step()
    told, standing = receiver.events, await lineage.standing()
    assert (standing.refused, standing.error, standing.behind) == (0, "", 0)
    assert [event.get("eventType", "dataset") for event in told] == [
        "dataset",
        "dataset",
        "START",
        "RUNNING",
        "COMPLETE",
    ]
    assert receiver.keys == {"Bearer s3cret"}
    assert told[0]["dataset"]["name"] == "vision/datasets/corpus"
    assert told[1]["dataset"]["name"] == "vision/models/tiny"
    start, end = told[2], told[4]
    assert len({event["run"]["runId"] for event in told[2:]}) == 1
    assert (end["job"]["namespace"], end["job"]["name"]) == ("plane/vision", "train")
    corpus, extra = end["inputs"]
    assert corpus["facets"]["version"]["datasetVersion"] == "1"
    assert corpus["facets"]["schema"]["fields"] == [{"name": "text", "type": "text"}]
    assert corpus["facets"]["symlinks"]["identifiers"][0]["namespace"] == "s3://corpora"
    assert (extra["namespace"], extra["name"]) == ("file", "/data/extra")
    assert start["outputs"] == []
    assert end["outputs"][0]["facets"]["groundplane_version"]["id"] == "tiny@1"


async def test_a_failed_run_says_why_and_an_erased_dataset_is_dropped(scene: Scene, receiver: Receiver) -> None:
    await scene.played(RunStatus.FAILED)
    await scene.datasets.erase(ADA, "corpus@1", records="all", reason="asked")
    await scene.lineage(HttpLineage(receiver.url, a_key)).step()
    (failed,) = [event for event in receiver.events if event.get("eventType") == "FAIL"]
    assert failed["run"]["facets"]["errorMessage"]["message"] == "exit code 3"
    dropped = receiver.events[-1]["dataset"]["facets"]["lifecycleStateChange"]
    assert dropped["lifecycleStateChange"] == "DROP"


async def test_a_receiver_that_fails_is_told_the_rest_later_and_nothing_twice(scene: Scene, receiver: Receiver) -> None:
    await scene.played()
    lineage = scene.lineage(HttpLineage(receiver.url, a_key))
    receiver.answers = [201, 503, 401]
    await lineage.step()
    assert len(receiver.events) == 1
    standing = await lineage.standing()
    assert (standing.failures, "answered 503" in standing.error, standing.behind > 0) == (1, True, True)
    await lineage.step()
    assert receiver.answers == [401], "it was asked again before its time"
    scene.clock.advance(10)
    await lineage.step()
    assert (await lineage.standing()).failures == 2
    scene.clock.advance(10)
    # Another process goes on where this one was: the cursor is a row.
    await scene.lineage(HttpLineage(receiver.url, a_key)).step()
    assert len(receiver.events) == 5
    assert len({json.dumps(event, sort_keys=True) for event in receiver.events}) == 5


async def test_an_event_that_is_refused_does_not_hold_up_the_others(scene: Scene, receiver: Receiver) -> None:
    await scene.played()
    receiver.answers = [422]
    lineage = scene.lineage(HttpLineage(receiver.url, a_key))
    await lineage.step()
    assert (len(receiver.events), (await lineage.standing()).refused) == (4, 1)


async def test_a_file_holds_one_event_a_line_and_outlives_a_cut_line(scene: Scene, tmp_path: Path) -> None:
    await scene.played()
    place = tmp_path / "told" / "lineage.jsonl"
    place.parent.mkdir()
    place.write_bytes(b'{"cut')
    await scene.lineage(FileLineage(place)).step()
    cut, *lines = place.read_text().splitlines()
    assert (cut, len(lines), faults(json.loads(lines[-1]))) == ('{"cut', 5, [])
    with pytest.raises(Unavailable):
        await FileLineage(Path("/proc/nowhere/x")).tell({})


async def test_who_does_not_answer_is_named_without_the_key(scene: Scene) -> None:
    sink = HttpLineage("http://ana:pw@127.0.0.1:9/lineage?token=x", a_key)
    with pytest.raises(Unavailable, match="does not answer") as raised:
        await sink.tell({})
    assert not re.search("pw|token|s3cret", raised.value.message)


async def test_memory_keeps_what_it_is_told_and_fails_when_asked_to(scene: Scene) -> None:
    sink = MemoryLineage()
    await sink.tell({"a": 1})
    assert sink.told == [{"a": 1}]
    sink.failing = Unavailable("away")
    with pytest.raises(Unavailable):
        await sink.tell({})


# ---------------------------------------------------------------- from outside


def said(inputs: list[dict[str, Any]], outputs: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    return {
        "eventType": "COMPLETE",
        "eventTime": "2026-11-20T12:00:00Z",
        "producer": "https://example.com/etl",
        "schemaURL": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent",
        "run": {"runId": "0197e0d1-7a49-7c3e-8a6d-3f3b6c1f3a10"},
        "job": {"namespace": "airflow", "name": "etl.daily"},
        "inputs": inputs,
        "outputs": outputs,
        **more,
    }


TABLE = {"namespace": "postgres://db:5432", "name": "sales.orders"}


async def test_what_others_say_is_matched_by_name_by_digest_and_by_place(scene: Scene) -> None:
    await scene.played()
    lineage = scene.lineage()
    corpus = await scene.datasets.get(ADA, "corpus@1")
    by_name = {"namespace": "plane", "name": "vision/models/tiny", "facets": {"version": {"datasetVersion": "1"}}}
    by_digest = {"namespace": "x", "name": "y", "facets": {"version": {"datasetVersion": f"sha256:{corpus.digest}"}}}
    by_place = {"namespace": "s3://corpora", "name": "v1"}
    event = said([TABLE], [by_digest])
    first = await lineage.receive(ADA, event)
    assert (first.new, first.matched, first.unmatched) == (
        True, ("dataset:corpus@1",), ("outside:postgres://db:5432/sales.orders",),
    )  # fmt: skip
    assert (await lineage.receive(ADA, event)).new is False
    second = await lineage.receive(ADA, said([by_name, by_place], [{"namespace": "powerbi", "name": "report"}]))
    assert second.matched == ("dataset:corpus@1", "model:tiny@1")
    view = await lineage.view(ADA, "model:tiny@1")
    assert ("run:run-1", "model:tiny@1") in view.edges
    assert {(each.parent, each.child) for each in view.outside} == {
        ("model:tiny@1", "outside:powerbi/report"),
    }
    with pytest.raises(InvalidInput, match="names no version") as unclear:
        await lineage.view(ADA, "corpus@1")
    assert unclear.value.hint == "write model:corpus@1 or dataset:corpus@1"
    around = await lineage.view(ADA, "dataset:corpus@1")
    assert ("outside:postgres://db:5432/sales.orders", "dataset:corpus@1") in {
        (each.parent, each.child) for each in around.outside
    }
    assert [each.child for each in (await scene.datasets.lineage(ADA, "corpus@1")).outside] == [
        "outside:powerbi/report"
    ]
    assert [event.job for event in await lineage.heard(ADA)] == ["airflow/etl.daily"] * 2


async def test_a_stranger_matches_nothing_and_sees_nothing(scene: Scene) -> None:
    await scene.played()
    lineage = scene.lineage()
    by_place = {"namespace": "s3://corpora", "name": "v1"}
    assert (await lineage.receive(EVE, said([by_place], [TABLE]))).matched == ()
    assert await lineage.heard(ADA) == []
    with pytest.raises(NotFound):
        await lineage.view(EVE, "dataset:corpus@1")


async def test_of_two_versions_in_one_place_none_is_guessed(scene: Scene) -> None:
    await scene.played()
    await scene.datasets.register(ADA, replace(POINTED, location="s3://corpora/v1", files=FILES[:1]), STATED)
    place = {"namespace": "s3://corpora", "name": "v1"}
    lineage = scene.lineage()
    assert (await lineage.receive(ADA, said([place], [TABLE]))).matched == ()
    versioned = {**place, "facets": {"version": {"datasetVersion": "2"}}}
    assert (await lineage.receive(ADA, said([versioned], [TABLE]))).matched == ("dataset:corpus@2",)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"eventTime": "yesterday"}, "eventTime"),
        ({"eventType": "DONE"}, "eventType"),
        ({"run": {"runId": "1"}}, "run.runId"),
        ({"job": {"namespace": "a"}}, "job.name"),
        ({"job": "a"}, "job"),
        ({"producer": ""}, "producer"),
        ({"inputs": {}}, "inputs"),
        ({"inputs": [{"namespace": "a", "name": "b\n"}]}, "inputs.0.name"),
        ({"outputs": [1]}, "outputs.0"),
    ],
)
async def test_what_is_no_event_is_told_field_by_field(scene: Scene, change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        await scene.lineage().receive(ADA, {**said([TABLE], []), **change})
    assert field in {problem.field for problem in raised.value.problems}
