"""Model versions through the whole service: registered, listed, verified, laid out, and never believed when touched."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.services.model_house import ADA, EVE, FACTS, NOW, House, built

from groundplane.adapters.store.memory import MemoryStore
from groundplane.audit import check_chain
from groundplane.domain.artifact import StorageQuota
from groundplane.domain.model import ModelVersion
from groundplane.domain.provenance.certificate import Circumstances, Facts
from groundplane.domain.run import Attempt, Checkpoint, EndReason, Run, RunStatus
from groundplane.domain.spec import DataSource, JobSpec, Metadata, ModelOutput, Resources
from groundplane.errors import Conflict, InvalidInput, NotFound, Refusal, Unavailable
from groundplane.identity import SYSTEM, Actor
from groundplane.ports import Clock, Store
from groundplane.services.models import Verification


@pytest.fixture
async def house(clock: Clock, tmp_path: Path) -> House:
    return await built(MemoryStore(), clock, tmp_path)


@pytest.fixture
async def every_house(store: Store, clock: Clock, tmp_path: Path) -> House:
    """On each store in turn: for what depends on how rows are kept."""
    return await built(store, clock, tmp_path)


def statement(version: ModelVersion) -> dict[str, object]:
    body: dict[str, object] = json.loads(base64.b64decode(json.loads(version.certificate)["payload"]))["predicate"]
    return body


# ---------------------------------------------------------------- registering by hand


async def test_a_folder_becomes_a_verified_signed_version(every_house: House, tmp_path: Path) -> None:
    version = await every_house.register()
    assert (version.id, version.number, version.created_by) == ("tiny@1", 1, "ada")
    assert [file.path for file in version.files] == [
        "config.json",
        "empty.txt",
        "weights/model.safetensors",
        "日本語.txt",
    ]
    checked = await every_house.verify("tiny@latest")
    assert checked == Verification(
        ref="tiny@1",
        ok=True,
        checked_files=4,
        checked_bytes=version.size_bytes,
        key_id=every_house.signer.key_id,
        problems=(),
    )
    target = await every_house.models.materialise("tiny@1", tmp_path / "models" / "tiny@1")
    for file in version.files:
        assert (target / file.path).read_bytes() == (every_house.source / file.path).read_bytes()
    assert await every_house.actions() == ["model.register"]


async def test_a_single_file_becomes_a_version_too(house: House) -> None:
    source = house.source / "weights" / "model.safetensors"
    version = await house.models.register(ADA, name="one", project="vision", source=source, facts=FACTS)
    assert [file.path for file in version.files] == ["model.safetensors"]


async def test_the_next_registration_gets_the_next_number_and_shares_the_bytes(house: House) -> None:
    await house.register()
    (house.source / "config.json").write_bytes(b'{"layers": 3}')
    second = await house.register()
    assert second.id == "tiny@2"
    assert (await house.blobs.usage()).files == 5


async def test_a_registration_without_facts_lists_every_missing_one_with_its_flag_and_field(house: House) -> None:
    with pytest.raises(Refusal) as refusal:
        await house.register(facts=Facts())
    assert [refused.hint for refused in refusal.value.refusals] == [
        "add --owner NAME (facts.owner in a request)",
        "add --license SPDX-ID (facts.license in a request)",
        "add --data NAME@VERSION or NAME=SHA256 (facts.data in a request)",
        "add --code-commit COMMIT (facts.code_commit in a request)",
        "add --training-run ID (facts.training_run in a request)",
        "add --metric NAME=VALUE (facts.metrics in a request)",
    ]
    assert await house.actions() == []
    assert house.packs() == []


async def test_the_friday_checkpoint_is_refused_for_what_it_is_and_for_what_it_lacks(house: House) -> None:
    path = house.home / "model_final_v2_FIXED.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model_final_v2_FIXED/data.pkl", pickle.dumps({"state": [1, 2]}, 2))
        archive.writestr("model_final_v2_FIXED/data/0", b"\0" * 400)
    with pytest.raises(Refusal) as refusal:
        await house.models.register(ADA, name="churn", project="vision", source=path, facts=Facts(owner="ada"))
    assert [refused.rule for refused in refusal.value.refusals] == ["no-pickles"] + ["birth-certificate"] * 5
    assert "safetensors" in refusal.value.hint
    assert house.packs() == []


@pytest.mark.parametrize("name", ["weights/model.safetensors", "notes.md", "deep/er/x.bin"])
async def test_one_pickle_anywhere_in_the_folder_is_enough(house: House, name: str) -> None:
    (house.source / name).parent.mkdir(parents=True, exist_ok=True)
    (house.source / name).write_bytes(pickle.dumps({"a": 1}, 4))
    with pytest.raises(Refusal, match=name):
        await house.register()


async def test_links_pipes_and_empty_folders_are_refused(house: House) -> None:
    (house.source / "link").symlink_to("/etc/hostname")
    (house.source / "folder").symlink_to("/etc")
    os.mkfifo(house.source / "pipe")
    with pytest.raises(Refusal) as refusal:
        await house.register()
    assert sorted(refused.have for refused in refusal.value.refusals) == [
        "'folder' is a symbolic link",
        "'link' is a symbolic link",
        "'pipe' is a pipe",
    ]
    (house.home / "void" / "inner").mkdir(parents=True)
    (house.home / "void" / "zero").write_bytes(b"")
    for source, have in (
        (house.home / "void" / "inner", "no file in inner"),
        (house.home / "void", "zero of 0 B"),
    ):
        with pytest.raises(Refusal, match=f"at least one file with content, has {have}"):
            await house.models.register(ADA, name="x", project="vision", source=source, facts=FACTS)
    with pytest.raises(NotFound):
        await house.models.register(ADA, name="x", project="vision", source=house.home / "absent", facts=FACTS)


async def test_names_no_version_may_hold_are_refused(house: House) -> None:
    (house.source / "a\\b").write_bytes(b"x")
    (house.source / "line\nbreak").write_bytes(b"x")
    (house.source / os.fsdecode(b"\xff.txt")).write_bytes(b"x")
    with pytest.raises(Refusal) as refusal:
        await house.register()
    assert {refused.rule for refused in refusal.value.refusals} == {"file-path"}
    assert len(refusal.value.refusals) == 3


async def test_a_project_one_does_not_see_is_not_there(house: House) -> None:
    with pytest.raises(NotFound, match="no project 'vision'"):
        await house.models.register(EVE, name="x", project="vision", source=house.source, facts=FACTS)
    with pytest.raises(NotFound, match="no project 'absent'"):
        await house.models.register(SYSTEM, name="x", project="absent", source=house.source, facts=FACTS)


async def test_a_name_belongs_to_the_project_that_took_it_first(house: House) -> None:
    await house.register()
    with pytest.raises(Refusal, match="another project"):
        await house.register(actor=EVE)
    with pytest.raises(InvalidInput):
        await house.register(name="../tiny")


async def test_registrations_at_the_same_time_get_different_numbers(every_house: House) -> None:
    versions = await asyncio.gather(*(every_house.register() for _ in range(12)))
    assert sorted(version.number for version in versions) == list(range(1, 13))
    for version in versions:
        assert (await every_house.verify(version.id)).ok
    events = [event async for event in every_house.store.events()]
    assert len(events) == 12
    assert check_chain(events, 12, events[-1].hash) is None


def meanwhile(house: House, monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """While the files are stored for the first time, something happens to them."""
    put_files, left = type(house.blobs).put_files, [happens]

    async def put(blobs: Any, paths: Sequence[Path]) -> object:
        done = await put_files(blobs, paths)
        while left:
            left.pop()()
        return done

    monkeypatch.setattr(type(house.blobs), "put_files", put)


async def test_files_that_others_link_meanwhile_are_registered_all_the_same(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    meanwhile(house, monkeypatch, lambda: os.link(house.source / "config.json", house.home / "another-upload"))
    assert (await house.register()).number == 1
    assert (await house.verify()).ok


async def test_what_is_stored_is_what_was_looked_at_whoever_writes_meanwhile(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = house.source / "config.json"

    def written_behind_our_back(text: bytes) -> None:
        times = config.stat()
        config.write_bytes(text)
        os.utime(config, ns=(times.st_atime_ns, times.st_mtime_ns))

    meanwhile(house, monkeypatch, lambda: written_behind_our_back(b'{"layers": 9}'))
    made = await house.register()
    assert {file.path: file.sha256 for file in made.files}["config.json"] == hashlib.sha256(
        config.read_bytes()
    ).hexdigest()
    meanwhile(house, monkeypatch, lambda: written_behind_our_back(b"cos\nsystem\n)."[:13]))
    with pytest.raises(Conflict, match="config.json changed while it was being registered"):
        await house.register()
    config.write_bytes(b'{"layers": 9}')
    meanwhile(house, monkeypatch, lambda: config.write_bytes(b'{"layers": 10}'))
    with pytest.raises(Conflict, match="config.json changed while it was being registered"):
        await house.register()


async def test_a_full_store_registers_nothing_and_loses_nothing(clock: Clock, tmp_path: Path) -> None:
    house = await built(MemoryStore(), clock, tmp_path, quota_bytes=4000)
    await house.register()
    (house.source / "more.bin").write_bytes(b"\1\2\3\xff" * 900)
    with pytest.raises(Unavailable, match="needs 3600 bytes"):
        await house.register()
    assert [version.id for version in await house.models.versions(ADA)] == ["tiny@1"]
    assert (await house.verify()).ok
    (house.source / "more.bin").unlink()
    assert (await house.register()).number == 2


async def test_what_was_not_stated_is_unknown_and_says_so(house: House) -> None:
    (house.source / "model.bin").write_bytes(b"\6\0\0\0\x0fTransformerSpec\0\xff\xfe")
    predicate = statement(await house.register())
    assert predicate["origin"] == "stated"
    assert predicate["hardware"] == {"stated": "2 × A100"}
    unknown = {entry["fact"] for entry in predicate["unknown"]}  # type: ignore[attr-defined]
    assert {"environment", "framework", "cost_microusd", "code.dirty", "files.model.bin.format"} <= unknown


# ---------------------------------------------------------------- a run's output


def job(workdir: Path, *data: DataSource) -> JobSpec:
    return JobSpec(
        metadata=Metadata(name="train", project="vision", owner="ada", cost_center="cc1"),
        command=("python3", "train.py"),
        resources=Resources(cpus=1, memory_bytes=2**30),
        end_date=NOW + timedelta(days=1),
        max_cost_microusd=1_000_000,
        max_duration_s=600,
        workdir=str(workdir),
        data=data,
    )


def a_run(spec: JobSpec) -> Run:
    return Run(
        id="run-1",
        name="train",
        project="vision",
        owner="ada",
        cost_center="cc1",
        spec=spec,
        spec_digest="d" * 64,
        plan_id="plan-1",
        hold_id="hold-1",
        pool="local",
        price_microusd_per_hour=100_000,
        status=RunStatus.RUNNING,
        created_by="ada",
        created_at=NOW,
        started_at=NOW,
        end_date=NOW + timedelta(days=1),
        due_at=NOW,
    )


ATTEMPTS = (
    Attempt(id="att-1", run_id="run-1", number=1, pool="local", node="n1", created_at=NOW, end_reason=EndReason.KILLED),
    Attempt(id="att-2", run_id="run-1", number=2, pool="local", node="n1", created_at=NOW, resumed_from_step=40),
)
OUTPUT = ModelOutput(name="tiny", license="Apache-2.0", framework="jax")
SEEN = Circumstances(observed="at the start")


async def test_a_runs_output_becomes_a_version_that_tells_its_life(every_house: House, tmp_path: Path) -> None:
    workdir = tmp_path / "work"
    workdir.mkdir()
    (workdir / "corpus.txt").write_text("text")
    for command in (["init", "-q"], ["add", "-A"], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"]):
        subprocess.run(["git", *command], cwd=workdir, check=True)
    (workdir / "train.py").write_text("changed")
    spec = job(workdir, DataSource(name="corpus", path="corpus.txt"), DataSource(name="web", path="s3://elsewhere"))
    async with every_house.store.transaction() as tx:
        await tx.insert(a_run(spec))
        for step in (40, 80):
            point = Checkpoint(
                id=f"run-1:{step}", run_id="run-1", attempt_id="att-1", step=step, path="p", size_bytes=1, found_at=NOW
            )
            await tx.insert(point)
    version = await every_house.models.register_run_output(
        a_run(spec), ATTEMPTS, OUTPUT, every_house.source, {"loss": 1.5, "bad": float("nan")}, 4213
    )
    assert (version.run_id, version.created_by, version.metrics) == ("run-1", "ada", {"loss": 1.5})
    predicate = statement(version)
    assert predicate["origin"] == "run"
    assert predicate["cost_microusd"] == 4213
    run = predicate["run"]
    assert isinstance(run, dict)
    assert run["attempts"] == 2
    assert run["end_reasons"] == ["killed"]
    assert run["resumed_from_steps"] == [40]
    assert (run["checkpoints"], run["last_step"], run["nodes"]) == (2, 80, ["n1"])
    code = predicate["code"]
    assert isinstance(code, dict)
    assert code["dirty"] is True
    assert len(code["commit"]) == 40
    data = predicate["data"]
    assert isinstance(data, list)
    assert data[0]["how"] == "measured"
    assert data[0]["size_bytes"] == 4
    environment = predicate["environment"]
    assert isinstance(environment, dict)
    assert environment["of"] == "job"
    assert predicate["hardware"]["memory_bytes"] > 0  # type: ignore[index]
    unknown = {entry["fact"] for entry in predicate["unknown"]}  # type: ignore[attr-defined]
    to_come = {"evaluations", "waivers", "sla", "rollback_target"}
    assert unknown == {"metrics.bad", "data.web.sha256", "base_model", "hyperparameters", "energy"} | to_come
    assert (await every_house.verify()).ok


async def test_registering_an_output_twice_gives_the_same_version(house: House, tmp_path: Path) -> None:
    arguments = (a_run(job(tmp_path)), ATTEMPTS, OUTPUT, house.source, {"loss": 1.5}, 4213)
    first = await house.models.register_run_output(*arguments, circumstances=SEEN)
    (house.source / "config.json").write_bytes(b"something else by now")
    assert await house.models.register_run_output(*arguments, circumstances=SEEN) == first
    assert await house.actions() == ["model.register"]


async def test_registering_an_output_many_times_at_once_gives_one_version(every_house: House, tmp_path: Path) -> None:
    await every_house.register()
    arguments = (a_run(job(tmp_path)), ATTEMPTS, OUTPUT, every_house.source, {"loss": 1.5}, 4213)
    versions = await asyncio.gather(
        *(every_house.models.register_run_output(*arguments, circumstances=SEEN) for _ in range(8)),
        every_house.register(),
    )
    assert len({version.id for version in versions[:8]}) == 1
    assert {version.number for version in await every_house.models.versions(ADA, "tiny")} == {1, 2, 3}


async def test_a_run_that_wrote_a_pickle_or_nothing_is_refused_with_the_reason(house: House, tmp_path: Path) -> None:
    (house.source / "optimizer.pt").write_bytes(pickle.dumps([1], 3))
    with pytest.raises(Refusal, match=r"optimizer\.pt"):
        await house.models.register_run_output(
            a_run(job(tmp_path)), ATTEMPTS, OUTPUT, house.source, {}, 0, circumstances=SEEN
        )
    with pytest.raises(NotFound):
        await house.models.register_run_output(
            a_run(job(tmp_path)), ATTEMPTS, OUTPUT, tmp_path / "none", {}, 0, circumstances=SEEN
        )


async def test_a_run_without_licence_or_metrics_is_registered_and_says_what_is_unknown(
    house: House, tmp_path: Path
) -> None:
    version = await house.models.register_run_output(
        a_run(job(tmp_path)), ATTEMPTS, ModelOutput(name="tiny"), house.source, {}, 0, circumstances=SEEN
    )
    unknown = {entry["fact"] for entry in statement(version)["unknown"]}  # type: ignore[attr-defined]
    assert {"license", "framework", "metrics"} <= unknown


# ---------------------------------------------------------------- reading


async def test_a_wrong_name_or_number_gets_the_nearest_right_one(house: House) -> None:
    await house.register()
    with pytest.raises(NotFound) as refusal:
        await house.models.get(ADA, "tinny@1")
    assert "did you mean tiny?" in refusal.value.hint
    with pytest.raises(NotFound) as refusal:
        await house.models.get(ADA, "tiny@9")
    assert "up to 1" in refusal.value.hint
    with pytest.raises(InvalidInput) as bare:
        await house.models.get(ADA, "tiny")
    assert "tiny@latest" in bare.value.hint


async def test_another_projects_models_are_not_there(house: House) -> None:
    await house.register()
    await house.register(name="ears", actor=EVE)
    assert [version.id for version in await house.models.versions(EVE)] == ["ears@1"]
    assert [version.id for version in await house.models.versions(SYSTEM)] == ["ears@1", "tiny@1"]
    for call in (
        house.models.get(EVE, "tiny@1"),
        house.models.verify(EVE, "tiny@latest"),
        house.models.certificate(EVE, "tiny@1"),
        house.models.versions(EVE, "tiny"),
    ):
        with pytest.raises(NotFound) as refusal:
            await call
        assert "tiny" not in refusal.value.hint


async def test_versions_come_newest_first(every_house: House) -> None:
    for _ in range(11):
        await every_house.register()
    assert [version.number for version in await every_house.models.versions(ADA, "tiny")] == list(range(11, 0, -1))
    assert (await every_house.models.get(ADA, "tiny@latest")).number == 11


async def test_names_come_in_pages_each_with_its_newest_version(every_house: House) -> None:
    for name, actor in (("tiny", ADA), ("tiny", ADA), ("large", ADA), ("tiny.1", ADA), ("ears", EVE)):
        await every_house.register(name, actor=actor)

    async def names(after: str = "", actor: Actor = SYSTEM, limit: int = 2) -> list[str]:
        return [version.id for version in await every_house.models.names(actor, after=after, limit=limit)]

    assert await names() == ["ears@1", "large@1"]
    assert await names("large") == ["tiny@2", "tiny.1@1"]
    assert await names("tiny") == ["tiny.1@1"]
    assert await names("tiny.1") == []
    assert await names(actor=EVE) == ["ears@1"]
    with pytest.raises(InvalidInput, match="no model name"):
        await names("a\0b")


async def test_a_new_key_signs_what_follows_and_what_was_signed_before_stays_true(house: House) -> None:
    await house.register()
    key_id, before = await house.models.rotate_signing_key(ADA, "a year has passed")
    await house.register()
    checked = [await house.verify(ref) for ref in ("tiny@1", "tiny@2")]
    assert [(each.ok, each.key_id) for each in checked] == [(True, before), (True, key_id)]
    assert set(house.models.public_keys()) == {before, key_id}
    (event,) = [each async for each in house.store.events() if each.action == "signing-key.rotate"]
    assert (event.before, event.after, event.reason) == ({"key_id": before}, {"key_id": key_id}, "a year has passed")
    with pytest.raises(InvalidInput):
        await house.models.rotate_signing_key(ADA, " ")


async def test_the_certificate_is_shown_with_its_meaning(house: House) -> None:
    version = await house.register()
    found = await house.models.certificate(ADA, "tiny@1")
    assert found["key_id"] == house.signer.key_id
    assert found["sha256"] == version.certificate_sha256
    assert found["envelope"] == json.loads(version.certificate)
    assert found["statement"]["predicateType"] == "https://groundplane.dev/birth-certificate/v1"  # type: ignore[index]


async def test_a_registration_over_the_projects_quota_is_refused_and_an_equal_one_is_not(house: House) -> None:
    first = await house.register()
    async with house.store.transaction() as tx:
        await tx.insert(StorageQuota(id="vision", limit_bytes=first.size_bytes))
    assert (await house.register()).number == 2
    (house.source / "config.json").write_bytes(b"{}" + b" " * 500)
    with pytest.raises(Refusal) as refusal:
        await house.register()
    assert [refused.rule for refused in refusal.value.refusals] == ["storage-quota"]
