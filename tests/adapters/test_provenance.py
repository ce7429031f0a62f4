"""What can be seen around a job: and that what can't be seen is stated as unknown."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from groundplane.adapters.provenance import MachineProvenance, machine, own_environment
from groundplane.domain.spec import DataSource, JobSpec, Metadata, Resources


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    return JobSpec(
        metadata=Metadata(name="t", project="p", owner="o", cost_center="c"),
        command=("true",),
        resources=Resources(cpus=1, memory_bytes=1),
        end_date=datetime(2026, 12, 1, tzinfo=UTC) + timedelta(days=1),
        max_cost_microusd=1,
        max_duration_s=1,
        workdir=str(tmp_path),
    )


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


async def test_a_clean_commit_and_its_repository_are_named_without_secrets(spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("x")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "x")
    git(tmp_path, "remote", "add", "origin", "https://user:token@git.example.org/team/repo.git")
    seen = await MachineProvenance().look(spec, "now")
    assert seen.code is not None
    assert len(seen.code.commit) == 40
    assert seen.code.dirty is False
    assert seen.code.repository == "https://git.example.org/team/repo.git"
    (tmp_path / "new.py").write_text("y")
    dirty = await MachineProvenance().look(spec, "now")
    assert dirty.code is not None
    assert dirty.code.dirty is True


async def test_outside_version_control_the_code_is_unknown(spec: JobSpec) -> None:
    seen = await MachineProvenance().look(spec, "now")
    assert seen.code is None
    assert "code.commit" in dict(seen.unknown)


async def test_a_repositorys_hooks_and_monitors_are_not_run(spec: JobSpec, tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("x")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "x")
    hook = tmp_path / "monitor.sh"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path}/canary\n")
    hook.chmod(0o755)
    git(tmp_path, "config", "core.fsmonitor", str(hook))
    await MachineProvenance().look(spec, "now")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "command",
    [
        (sys.executable, "train.py"),
        ("sh", "-c", f"FOO=1 exec {sys.executable} train.py --steps 3"),
        ("env", sys.executable, "train.py"),
    ],
)
async def test_the_jobs_own_interpreter_lists_its_packages(spec: JobSpec, command: tuple[str, ...]) -> None:
    seen = await MachineProvenance().look(replace(spec, command=command), "now")
    assert seen.environment is not None
    assert seen.environment.of == "job"
    assert f"psutil=={psutil.__version__}" in seen.environment.packages
    assert list(seen.environment.packages) == sorted(seen.environment.packages)
    assert seen.environment.packages == own_environment().packages


@pytest.mark.parametrize(
    "command", [("./train.sh",), ("sh", "-c", 'echo "'), ("python-absent-9.9", "x"), ("sh", "-c", "")]
)
async def test_without_a_python_the_environment_is_the_control_planes_and_says_so(
    spec: JobSpec, command: tuple[str, ...]
) -> None:
    seen = await MachineProvenance().look(replace(spec, command=command), "now")
    assert seen.environment is not None
    assert seen.environment.of == "control plane"
    assert "environment" in dict(seen.unknown)


async def test_a_program_that_only_claims_to_be_python_is_not_believed(spec: JobSpec, tmp_path: Path) -> None:
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\necho '[1, 2'\n")
    fake.chmod(0o755)
    seen = await MachineProvenance().look(replace(spec, command=("./python", "x")), "now")
    assert seen.environment is not None
    assert seen.environment.of == "control plane"


async def test_data_is_measured_disputed_or_unknown(spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"text")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(b"1")
    digest = hashlib.sha256(b"text").hexdigest()
    sources = (
        DataSource(name="plain", path="corpus.txt"),
        DataSource(name="declared", path="corpus.txt", sha256=digest),
        DataSource(name="other", path="corpus.txt", sha256="0" * 64),
        DataSource(name="far", path="s3://bucket/x", sha256="1" * 64),
        DataSource(name="nowhere", path="absent"),
        DataSource(name="folder", path="folder"),
    )
    seen = await MachineProvenance().look(replace(spec, data=sources), "now")
    facts = {fact.name: fact for fact in seen.data}
    assert (facts["plain"].sha256, facts["plain"].how, facts["plain"].size_bytes) == (digest, "measured", 4)
    assert facts["declared"].how == "measured"
    assert (facts["other"].sha256, facts["other"].how) == (digest, "disputed")
    assert (facts["far"].sha256, facts["far"].how, facts["far"].size_bytes) == ("1" * 64, "declared", None)
    assert (facts["nowhere"].sha256, facts["nowhere"].how) == ("", "declared")
    assert len(facts["folder"].sha256) == 64
    unknown = dict(seen.unknown)
    assert {"data.other.sha256", "data.nowhere.sha256"} <= set(unknown)
    assert "data.far.sha256" not in unknown


async def test_data_too_large_to_hash_is_unknown(spec: JobSpec, tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"x" * 100)
    seen = await MachineProvenance(data_bytes_max=99).look(
        replace(spec, data=(DataSource(name="b", path="big"),)), "now"
    )
    assert "too many to hash" in dict(seen.unknown)["data.b.sha256"]


def test_the_machine_is_described() -> None:
    found = machine()
    assert found.cpu
    assert found.cores == psutil.cpu_count()
    assert found.memory_bytes == psutil.virtual_memory().total


_TWO_CARDS = """
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { strncpy(text, "580.95", size); return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetName(void *handle, char *text, unsigned size) { strncpy(text, "Test Card 80GB", size); return 0; }
int nvmlDeviceGetMemoryInfo(void *handle, unsigned long long *memory) {
  memory[0] = 85899345920ULL; return handle == (void *)1 ? 0 : 3;
}
"""


@pytest.mark.needs("compiler")
def test_cards_are_read_through_the_drivers_library(tmp_path: Path) -> None:
    (tmp_path / "nvml.c").write_text(_TWO_CARDS)
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "nvml.c"], check=True)
    program = "from groundplane.adapters.provenance import machine; print(machine().accelerators)"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    answer = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert answer.count("name='Test Card 80GB'") == 2
    assert "memory_bytes=85899345920, driver='580.95'" in answer
    assert "memory_bytes=None, driver='580.95'" in answer
