"""A copy of a version: the same content and facts under another name, signed and judged anew."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ManualClock
from tests.services.model_house import ADA, EVE, FACTS, NOW, House, built

from groundplane.adapters.store.memory import MemoryStore
from groundplane.domain.artifact import StorageQuota
from groundplane.domain.dataset import LineageEdge
from groundplane.domain.model import ModelVersion
from groundplane.domain.provenance import certificate as cert
from groundplane.domain.run import Attempt, EndReason, Run, RunStatus
from groundplane.domain.spec import JobSpec, Metadata, ModelOutput, Resources
from groundplane.errors import IntegrityFailure, NotFound, Refusal
from groundplane.identity import SYSTEM
from groundplane.services.required_facts import FactRules

SEEN = cert.Circumstances(
    observed="at the start",
    code=cert.CodeFact(commit="a" * 40, dirty=True, repository="https://example.com/code"),
    environment=cert.EnvironmentFact(
        of="the job", python="3.12.1", platform="linux", packages=("a==1", "b==2"), lock_files=(("uv.lock", "b" * 64),)
    ),
    hardware=cert.HardwareFact(
        cpu="EPYC", cores=8, memory_bytes=2**36, accelerators=(cert.AcceleratorFact(name="H200", driver="570"),),
        drivers=(("kernel", "6.8"), ("nvidia", "570")), nodes=2,
    ),
    container=cert.ContainerFact(used=True, image="train:1", digest="sha256:" + "c" * 64),
    data=(cert.DataFact(name="corpus", sha256="1" * 64, size_bytes=7, how="measured"),),
    unknown=(("data.web.sha256", "it lies elsewhere"),),
)  # fmt: skip
ADOPTED = replace(
    FACTS,
    adopted_from="stray",
    adopted=(
        cert.AdoptedFile(
            path="weights/model.safetensors", source_path="model.bin", source_sha256="d" * 64, tensors=1,
            source_format="torch-zip", tensors_sha256="e" * 64, left_out=("epoch",), walls="bubblewrap",
        ),
    ),
    base_model="elsewhere@3", cost_microusd=7, sla="99.9 %", target_memory_bytes=2**33,
    hyperparameters={"lr": "0.1"}, unknown={"data": "its author left"},
)  # fmt: skip
ANEW = {"version", "created", "copy_of", "unknown", "rollback_target"}


@pytest.fixture
async def house(clock: ManualClock, tmp_path: Path) -> House:
    return await built(MemoryStore(), clock, tmp_path)


def predicate(version: ModelVersion) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(base64.b64decode(json.loads(version.certificate)["payload"]))["predicate"]
    return body


def run_of(folder: Path) -> Run:
    spec = JobSpec(
        metadata=Metadata(name="train", project="vision", owner="ada", cost_center="cc1"), command=("python3", "t.py"),
        resources=Resources(cpus=1, memory_bytes=2**30), end_date=NOW + timedelta(days=1), max_cost_microusd=1_000_000,
        max_duration_s=600, workdir=str(folder),
    )  # fmt: skip
    return Run(
        id="run-1", name="train", project="vision", owner="ada", cost_center="cc1", spec=spec, spec_digest="d" * 64,
        plan_id="plan-1", hold_id="hold-1", pool="local", price_microusd_per_hour=100_000, status=RunStatus.RUNNING,
        created_by="ada", created_at=NOW, started_at=NOW, end_date=NOW + timedelta(days=1), due_at=NOW,
    )  # fmt: skip


async def copied(house: House, source: ModelVersion, name: str = "live", project: str = "vision") -> ModelVersion:
    tree = house.home / f"tree-{name}-{source.number}"
    return await house.models.copy(SYSTEM, source, tree, name=name, project=project, reason="to serve it")


async def test_a_copy_states_what_its_source_does_and_which_it_is(house: House, clock: ManualClock) -> None:
    ended = Attempt(id="att-1", run_id="run-1", number=1, pool="local", node="n1", created_at=NOW,
                    ended_at=NOW, end_reason=EndReason.KILLED, resumed_from_step=40)  # fmt: skip
    made = await house.models.register_run_output(
        run_of(house.home), [ended], ModelOutput(name="tiny", license="MIT", framework="jax"), house.source,
        {"loss": 1.5}, 4213, circumstances=SEEN, hyperparameters={"lr": "0.1"},
    )  # fmt: skip
    adopted = await house.register("stray", replace(ADOPTED, rollback_target=(await house.register("stray")).id))
    clock.advance(3600)
    for number, source in enumerate((made, adopted), 1):
        copy = await copied(house, source)
        was, says = predicate(source), predicate(copy)
        assert (copy.id, copy.files, copy.metrics, copy.license) == (
            f"live@{number}", source.files, source.metrics, source.license,
        )  # fmt: skip
        assert says["copy_of"] == {"version": source.id, "certificate_sha256": source.certificate_sha256}
        assert {key: says[key] for key in was.keys() - ANEW} == {key: was[key] for key in was.keys() - ANEW}
        assert {**was["version"], "id": copy.id, "name": "live", "number": number, "run_id": ""} == says["version"]
        assert (says["created"]["by"], says["created"]["at"] > was["created"]["at"]) == ("groundplane", True)
        assert all(row in says["unknown"] for row in was["unknown"])
        assert (await house.models.verify(SYSTEM, copy.id)).ok
        async with house.store.transaction() as tx:
            (edge,) = await tx.find(LineageEdge, {"parent": f"model:{source.id}"})
        assert edge.child == f"model:{copy.id}"
    assert says["rollback_target"] == ""
    again = await copied(house, await house.models.get(SYSTEM, "live@1"), "live-too")
    assert predicate(again)["copy_of"]["version"] == "live@1"


async def test_a_copy_is_judged_as_any_new_version(house: House, clock: ManualClock) -> None:
    source = await house.register()
    rules = FactRules(store=house.store, clock=clock, models=house.models)
    await rules.require(SYSTEM, "speech", ["not dirty"], "audit")
    with pytest.raises(Refusal, match="not dirty"):
        await copied(house, source, "ears", "speech")
    await house.register("taken", actor=EVE, facts=replace(FACTS, code_dirty=False))
    with pytest.raises(Refusal, match="belongs to another project"):
        await copied(house, source, "taken")
    with pytest.raises(NotFound, match="no project 'absent'"):
        await copied(house, source, "lost", "absent")
    async with house.store.transaction() as tx:
        await tx.insert(StorageQuota(id="speech", limit_bytes=1))
    await rules.release(SYSTEM, "speech", "enough")
    with pytest.raises(Refusal, match="quota"):
        await copied(house, source, "large", "speech")
    await house.tamper(license="MIT")
    with pytest.raises(IntegrityFailure, match="tiny@1 is not what was signed"):
        await copied(house, await house.models.get(ADA, "tiny@1"), "bad")
    assert [version.id for version in await house.models.versions(SYSTEM)] == ["taken@1", "tiny@1"]
