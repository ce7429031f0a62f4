"""Datasets through the whole service: registered, compared, verified, followed to what came of them, erased."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.services.model_house import ADA, EVE, FACTS, NOW, House, built

from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.domain.artifact import Artifact, StorageQuota
from groundplane.domain.dataset import (
    DatasetFacts,
    DatasetVersion,
    Pointer,
    descendants,
    digest_of,
    edge,
    parse_dataset_ref,
    run_edges,
)
from groundplane.domain.dataset_profile import Profiler
from groundplane.domain.evaluation import Evaluation
from groundplane.domain.model import ManifestFile
from groundplane.domain.provenance.certificate import DataFact
from groundplane.domain.spec import DataSource, JobSpec, Metadata, Resources
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Refusal
from groundplane.ports import Clock, Store
from groundplane.services import artifacts
from groundplane.services.artifacts import Artifacts, Pushed
from groundplane.services.datasets import Datasets, Offered
from groundplane.services.pins import pinned

STATED = DatasetFacts(owner="ada", license="CC-BY-4.0", classification="internal")


def told(path: str, content: bytes) -> ManifestFile:
    return ManifestFile(path=path, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))


FILES = (told("a.csv", b"x,y\n1,2\n"), told("b/c.csv", b"x,y\n3,4\n"))
POINTED = Offered(name="corpus", project="vision", location="/data/corpus", files=FILES)


class Archive:
    """A house with datasets and artifacts."""

    def __init__(self, house: House, clock: Clock) -> None:
        self.house, self.clock = house, clock
        ids = RandomIds()
        self.datasets = Datasets(store=house.store, clock=clock, ids=ids, blobs=house.blobs, signer=house.signer)
        self.artifacts = Artifacts(store=house.store, clock=clock, ids=ids, blobs=house.blobs)

    async def managed(self, *names: str) -> DatasetVersion:
        folder = self.house.home / "rows"
        folder.mkdir(exist_ok=True)
        sources = {}
        for name in names:
            (folder / name).write_text("" if name == "empty.csv" else f"id,name\n1,{name}\n")
            sources[name] = folder / name
        artifact = await self.artifacts.push(ADA, Pushed(name="corpus", project="vision", sources=sources))
        offered = Offered(name="corpus", project="vision", artifact_id=artifact.id)
        return await self.datasets.register(ADA, offered, STATED)


@pytest.fixture
async def archive(clock: Clock, tmp_path: Path) -> Archive:
    return Archive(await built(MemoryStore(), clock, tmp_path), clock)


# ---------------------------------------------------------------- registering


async def test_a_version_is_registered_listed_and_found(store: Store, clock: Clock, tmp_path: Path) -> None:
    archive = Archive(await built(store, clock, tmp_path), clock)
    made = await archive.datasets.register(ADA, POINTED, STATED)
    assert (made.id, made.pointer, made.how, made.kept) == ("corpus@1", Pointer.FOLDER, "declared", False)
    assert made.digest == digest_of(FILES)
    assert await archive.datasets.get(ADA, "corpus@latest") == made
    assert await archive.datasets.register(ADA, POINTED, STATED) == made, "the same again is the same version"
    other = replace(POINTED, files=FILES[:1])
    assert (await archive.datasets.register(ADA, other, STATED)).digest == FILES[0].sha256
    assert [row.id for row in await archive.datasets.datasets(ADA)] == ["corpus@2", "corpus@1"]
    assert await archive.datasets.datasets(EVE) == []
    assert await archive.house.actions() == ["dataset.register", "dataset.register"]


async def test_every_missing_fact_and_every_bad_path_is_told_at_once(archive: Archive) -> None:
    bad = replace(POINTED, files=(told("../a", b"x"), told("b", b"y")))
    with pytest.raises(Refusal) as refusal:
        await archive.datasets.register(ADA, bad, DatasetFacts(classification="cosmic"))
    assert [each.rule for each in refusal.value.refusals] == ["dataset-facts"] * 3 + ["file-path"]
    assert refusal.value.refusals[0].hint == "add --owner NAME (facts.owner in a request)"
    for offered in (
        replace(POINTED, location="corpus"),
        replace(POINTED, files=()),
        replace(POINTED, files=(ManifestFile(path="a", sha256="x", size_bytes=1),)),
        replace(POINTED, files=(ManifestFile(path="a", sha256="1" * 64, size_bytes=-1),)),
    ):
        with pytest.raises(InvalidInput):
            await archive.datasets.register(ADA, offered, STATED)
    with pytest.raises(InvalidInput, match="'Corpus' is no dataset name"):
        await archive.datasets.register(ADA, replace(POINTED, name="Corpus"), STATED)
    with pytest.raises(NotFound, match="no artifact art-1"):
        await archive.datasets.register(ADA, Offered(name="c", project="vision", artifact_id="art-1"), STATED)
    with pytest.raises(NotFound):
        await archive.datasets.register(EVE, POINTED, STATED)
    await archive.datasets.register(ADA, POINTED, STATED)
    with pytest.raises(Refusal, match="belongs to another project"):
        await archive.datasets.register(EVE, replace(POINTED, project="speech"), STATED)
    with pytest.raises(NotFound, match="no dataset corpsu"):
        await archive.datasets.datasets(ADA, name="corpsu")


async def test_a_managed_copy_is_kept_verified_and_counted_in_the_quota(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "GRACE_MIN_S", 0.0)
    made = await archive.managed("a.csv", "b.csv")
    assert (made.pointer, made.how, made.kept) == (Pointer.MANAGED, "measured", True)
    async with archive.house.store.transaction() as tx:
        await tx.delete(Artifact, made.location.removeprefix("artifact:"))
    await archive.artifacts.collect(ADA, grace_s=0.0, thorough=True)
    assert (await archive.datasets.verify(ADA, "corpus@1")).ok, "a collection spares what a dataset holds"
    await archive.house.rot(made.files[0].sha256)
    checked = await archive.datasets.verify(ADA, "corpus@1")
    assert [problem.field for problem in checked.problems] == ["file a.csv"]
    async with archive.house.store.transaction() as tx:
        await tx.insert(StorageQuota(id="vision", limit_bytes=made.size_bytes))
    with pytest.raises(Refusal, match="storage-quota"):
        await archive.managed("c.csv")
    with pytest.raises(InvalidInput, match="not kept here"):
        await archive.datasets.verify(ADA, (await archive.datasets.register(ADA, POINTED, STATED)).id)


def test_fresh_is_what_is_younger_than_its_limit() -> None:
    row = DatasetVersion(
        id="c@1", name="c", number=1, project="p", owner="o", license="l", classification="public", description="",
        digest="1" * 64, how="declared", files=FILES, size_bytes=1, pointer=Pointer.FOLDER, location="/d",
        profile=Profiler().profile, as_of=NOW, fresh_for_s=None, retain_until=None, created_by="a", created_at=NOW,
        kept=False,
    )  # fmt: skip
    assert row.fresh_at(NOW) is None
    dated = replace(row, fresh_for_s=60)
    assert dated.fresh_at(NOW + timedelta(seconds=60))
    assert dated.fresh_at(NOW + timedelta(seconds=61)) is False


async def test_a_diff_names_files_columns_and_facts(archive: Archive) -> None:
    await archive.datasets.register(ADA, POINTED, STATED)
    changed = replace(POINTED, files=(told("a.csv", b"x,z\n1,2\n"), told("d.csv", b"x")))
    await archive.datasets.register(ADA, changed, replace(STATED, license="MIT"))
    found = await archive.datasets.diff(ADA, "corpus@1", "corpus@2")
    assert (found.added, found.removed, found.changed, found.same_bytes) == (("d.csv",), ("b/c.csv",), ("a.csv",), 0)
    assert found.facts["license"] == ("CC-BY-4.0", "MIT")
    with pytest.raises(NotFound):
        await archive.datasets.diff(EVE, "corpus@1", "corpus@2")


# ---------------------------------------------------------------- lineage


def job(*data: DataSource) -> JobSpec:
    return JobSpec(
        metadata=Metadata(name="j", project="vision", owner="ada", cost_center="c"),
        command=("true",),
        resources=Resources(cpus=1, memory_bytes=1),
        end_date=NOW,
        max_cost_microusd=1,
        max_duration_s=1,
        data=data,
    )


async def test_a_spec_that_names_a_dataset_gets_its_place_digest_and_class(archive: Archive) -> None:
    await archive.datasets.register(ADA, POINTED, replace(STATED, classification="restricted"))
    kept = await archive.managed("a.csv")
    asked = job(DataSource(name="d", dataset="corpus@1"), DataSource(name="e", dataset="corpus@latest"))
    async with archive.house.store.transaction() as tx:
        found = await pinned(tx, ADA, asked)
    assert isinstance(found, JobSpec)
    first, second = found.data
    assert (first.dataset, first.path, first.sha256) == ("corpus@1", "/data/corpus", digest_of(FILES))
    assert first.classification == "restricted"
    assert (second.dataset, second.path, second.source, second.sha256) == ("corpus@2", "", kept.location, kept.digest)
    await archive.datasets.register(ADA, replace(POINTED, name="one", files=FILES[:1]), STATED)
    async with archive.house.store.transaction() as tx:
        single = await pinned(tx, ADA, job(DataSource(name="d", dataset="one@1")))
        assert isinstance(single, JobSpec)
        assert (single.data[0].path, single.data[0].sha256) == ("/data/corpus/a.csv", FILES[0].sha256)
        with pytest.raises(NotFound):
            await pinned(tx, EVE, job(DataSource(name="d", dataset="corpus@1")))


async def test_lineage_leads_from_data_to_runs_to_models_to_their_descendants(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    archive = Archive(await built(store, clock, tmp_path), clock)
    made = await archive.datasets.register(ADA, POINTED, STATED)
    async with store.transaction() as tx:
        await tx.insert_many_once(run_edges("run-1", "vision", [DataSource(name="d", dataset="corpus@1")], NOW))
        await tx.insert_many_once([edge("run:run-1", "model:early@1", "vision", NOW)])
    await archive.house.register(facts=replace(FACTS, data=(DataFact(name="any", sha256=made.digest),)))
    await archive.house.register("tuned", replace(FACTS, base_model="tiny@1"))
    await archive.house.register("adapter", replace(FACTS, base_model="vision/tiny"))
    await archive.house.register("merged", replace(FACTS, base_model="elsewhere/llama, adapter@latest"))
    await archive.house.register("other", replace(FACTS, base_model="speech/tiny"))
    found = await archive.datasets.lineage(ADA, "corpus@1")
    assert found.runs == ("run-1",)
    assert set(found.models) == {"early@1", "tiny@1", "tuned@1", "adapter@1", "merged@1"}


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=30))
def test_descendants_are_what_can_be_reached_and_rings_end(pairs: list[tuple[int, int]]) -> None:
    edges = [edge(f"n{a}", f"n{b}", "p", NOW) for a, b in dict.fromkeys(pairs)]
    reached = {"n0"}
    for _ in range(10):
        reached |= {each.child for each in edges if each.parent in reached}
    assert {each.id for each in descendants(["n0"], edges)} == {each.id for each in edges if each.parent in reached}


# ---------------------------------------------------------------- erasure


def asked_rows_of(dataset: str) -> Evaluation:
    """An evaluation whose records are the artifact art-7."""
    return Evaluation(
        id="run-9", name="nightly", project="vision", owner="ada", target="chat", model_version="", dataset=dataset,
        dataset_sha256="", items_sha256="", items=1, failed=0, confidence=0.95, scores=(), slices=(),
        latency_p50_s=None, latency_p95_s=None, prompt_tokens=0, completion_tokens=0, cost_microusd=0,
        cost_microusd_per_1000=0, cost_source="ledger", models=(), fingerprints=(), agreement=None,
        records_id="art-7", records_sha256="", compared_with="", alarms=(), at=NOW,
    )  # fmt: skip


async def test_an_erasure_says_who_used_it_takes_the_bytes_and_is_signed(
    store: Store, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "GRACE_MIN_S", 0.0)
    archive = Archive(await built(store, clock, tmp_path), clock)
    made = await archive.managed("a.csv", "b.csv", "empty.csv")
    await archive.house.register(facts=replace(FACTS, data=(DataFact(name="corpus", sha256=made.digest),)))
    successor = await archive.managed("b.csv")
    async with store.transaction() as tx:
        await tx.insert(edge("dataset:corpus@1", "run:run-1", "vision", NOW))
        await tx.insert(edge("run:run-1", "dataset:answers@1", "vision", NOW))
        theirs = replace(successor, id="speech-corpus@1", name="speech-corpus", project="speech")
        await tx.insert(theirs)
        await tx.insert(asked_rows_of("corpus@1"))
    again = {"a.csv": archive.house.home / "rows" / "a.csv"}
    arrival = await archive.artifacts.receive(ADA, Pushed(name="again", project="vision", sources=again))
    with pytest.raises(Conflict, match=f"{arrival.id} is arriving"):
        await archive.datasets.register(ADA, Offered(name="c", project="vision", artifact_id=arrival.id), STATED)
    clock.advance(1)  # type: ignore[attr-defined]
    erased = await archive.datasets.erase(
        ADA, "corpus@1", records="subject 4711", reason="asked to be forgotten", replacement="corpus@2"
    )
    assert erased.models == ("tiny@1",)
    assert any("tiny@1 was made from it" in each for each in erased.left)
    assert "answers@1 was made from it: look whether it quotes these records" in erased.left
    assert "art-7 holds what evaluation nightly asked of it: ground artifacts rm" in erased.left
    assert "nodes where run-1 ran may keep copies: ground data cache clear" in erased.left
    assert not any("speech" in each or "empty" in each for each in erased.left), "neither unseen nor without a byte"
    assert any(f"{successor.id} holds 1 of the same files" in each for each in erased.left)
    assert any(f"{arrival.id} is arriving, with files of the same size" in each for each in erased.left)
    proof = await archive.datasets.proof(ADA, erased.id)
    statement = proof["statement"]
    assert isinstance(statement, dict)
    assert statement["predicate"]["replaced_by"] == "corpus@2"
    assert statement["predicate"]["used_by"] == {"runs": ["run-1"], "models": ["tiny@1"]}
    assert {each["name"] for each in statement["subject"]} == {"a.csv", "b.csv", "empty.csv"}
    await archive.artifacts.collect(ADA, grace_s=0.0, thorough=True)
    left = await archive.house.blobs.whole(frozenset(file.sha256 for file in made.files if file.size_bytes))
    assert left == {successor.files[0].sha256}, "what another version needs stays, the rest is gone"
    with pytest.raises(Conflict, match="was erased by"):
        await archive.datasets.erase(ADA, "corpus@1", records="all", reason="again")
    async with store.transaction() as tx:
        with pytest.raises(Refusal, match="not erased"):
            await pinned(tx, ADA, job(DataSource(name="d", dataset="corpus@1")))
    assert [each.id for each in await archive.datasets.erasures(ADA, "corpus")] == [erased.id]
    assert await archive.datasets.erasures(EVE) == []
    assert (await archive.house.actions())[-2:] == ["dataset.erase", "storage.collect"]


async def test_data_that_lies_elsewhere_is_left_for_its_owner_to_clear(archive: Archive) -> None:
    await archive.datasets.register(ADA, POINTED, STATED)
    erased = await archive.datasets.erase(ADA, "corpus@1", records="all", reason="contract ended")
    assert erased.left == ("delete the bytes at /data/corpus: they are not kept here",)
    with pytest.raises(Conflict, match="was erased by"):
        await archive.datasets.verify(ADA, "corpus@1")


@pytest.mark.parametrize(
    "change",
    [{"license": "WTFPL"}, {"owner": "eve"}, {"classification": "public"}, {"digest": "9" * 64}, {"commit": "0" * 40}],
    ids=lambda change: next(iter(change)),
)
async def test_a_row_that_somebody_touched_is_not_what_was_registered(archive: Archive, change: dict[str, str]) -> None:
    made = await archive.managed("a.csv")
    async with archive.house.store.transaction() as tx:
        await tx.update(replace(made, **change))  # type: ignore[arg-type]
    checked = await archive.datasets.verify(ADA, "corpus@1")
    assert [problem.field for problem in checked.problems] == list(change)


async def test_of_erased_tables_only_their_shape_is_kept(archive: Archive) -> None:
    seen = profile("people.csv", "name,age", "ada,36", "grace,")
    await archive.datasets.register(ADA, replace(POINTED, profile=seen), STATED)
    erased = await archive.datasets.erase(ADA, "corpus@1", records="ada", reason="asked to be forgotten")
    assert "bounds and means of its columns are deleted" in erased.done
    left = (await archive.datasets.get(ADA, "corpus@1")).profile
    assert (left.rows, [(each.name, each.kind, each.nulls) for each in left.columns]) == (
        2, [("name", "text", 0), ("age", "integer", 1)]
    )  # fmt: skip
    assert not any(each.low or each.high or each.mean for each in left.columns)


async def test_a_proof_that_was_touched_is_no_proof(archive: Archive) -> None:
    await archive.datasets.register(ADA, POINTED, STATED)
    erased = await archive.datasets.erase(ADA, "corpus@1", records="all", reason="contract ended")
    envelope = json.loads(erased.statement)
    signature = bytearray(base64.b64decode(envelope["signatures"][0]["sig"]))
    signature[0] ^= 1
    assert not archive.house.signer.verify(b"", bytes(signature), erased.key_id)
    touched = replace(erased, id="erase-2", statement=erased.statement.replace(
        envelope["signatures"][0]["sig"], base64.b64encode(bytes(signature)).decode()
    ))  # fmt: skip
    async with archive.house.store.transaction() as tx:
        await tx.insert(touched)
    with pytest.raises(IntegrityFailure):
        await archive.datasets.proof(ADA, "erase-2")
    with pytest.raises(NotFound):
        await archive.datasets.proof(EVE, erased.id)


@pytest.mark.parametrize("text", ["corpus", "corpus@", "corpus@0", "corpus@v1", "@1", "corpus@production"])
def test_anything_but_a_number_or_latest_is_no_version(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_dataset_ref(text)


# ---------------------------------------------------------------- what is in tables


def profile(name: str, *lines: str):  # type: ignore[no-untyped-def]
    profiler = Profiler()
    profiler.table(name, lines)
    return profiler.profile


def test_a_csv_is_looked_into_column_by_column() -> None:
    found = profile("a.csv", "id,score,name,empty\n", '1,0.5,"b, c",\n', "2,2,a,\n", "3,,a,\n")
    assert (found.rows, found.tables, found.unread) == (3, 1, ())
    columns = [(c.name, c.kind, c.nulls, c.distinct, c.low, c.high, c.mean) for c in found.columns]
    assert columns == [
        ("id", "integer", 0, 3, "1", "3", 2.0),
        ("score", "number", 1, 2, "0.5", "2", 1.25),
        ("name", "text", 0, 2, "a", "b, c", None),
        ("empty", "empty", 3, 0, "", "", None),
    ]


def test_jsonl_may_leave_out_fields_and_nest() -> None:
    found = profile("a.jsonl", '{"a": 1, "b": true}\n', "\n", '{"a": "x", "c": [1]}\n')
    assert [(c.name, c.kind, c.nulls) for c in found.columns] == [
        ("a", "mixed", 0),
        ("b", "boolean", 1),
        ("c", "nested", 1),
    ]


@pytest.mark.parametrize(
    ("name", "lines", "fault"),
    [
        ("a.csv", ["x,y\n", "1\n"], "1 cells under 2 headings"),
        ("a.csv", ["x,x\n", "1,2\n"], "two columns of one name"),
        ("a.csv", ["x\n", '"1\n'], "unexpected end of data"),
        ("a.jsonl", ["[1]\n"], "no object"),
        ("a.jsonl", ["{\n"], "Expecting"),
        ("a.jsonl", ['{"a":' * 100_000 + "1" + "}" * 100_000 + "\n"], "nested too deeply"),
        ("a.csv", [",".join(f"c{n}" for n in range(501)) + "\n", ",".join("1" * 501) + "\n"], "more than 500 columns"),
    ],
)
def test_what_cannot_be_read_is_noted_and_ends_its_table_alone(name: str, lines: list[str], fault: str) -> None:
    profiler = Profiler()
    profiler.table(name, lines)
    profiler.table("b.csv", ["ok\n", "1\n"])
    profiler.skip("c.parquet")
    assert fault in profiler.profile.unread[0]
    assert profiler.profile.unread[-1] == "c.parquet: Parquet is not looked into"
    assert ("ok" in {column.name for column in profiler.profile.columns}) == ("500" not in fault)


@given(st.lists(st.lists(st.text(max_size=8), min_size=2, max_size=2), max_size=20))
def test_any_cells_are_counted_without_an_error(rows: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["a", "b"], *rows])
    found = profile("x.csv", *io.StringIO(text.getvalue(), newline=""))
    assert found.rows == len(rows)
    assert not found.unread
