"""What a runner sees around a job before its command starts: code, packages, container, drivers; and what it takes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.runner.test_node import NVML

from groundplane.runner.circumstances import python_of

POWER = """
#include <stdlib.h>
static unsigned long long taken;
int nvmlDeviceGetTotalEnergyConsumption(void *h, unsigned long long *mj) {
  COUNTS; taken += 500; *mj = taken; return 0; }
int nvmlDeviceGetPowerUsage(void *h, unsigned *mw) { *mw = 250000; return 0; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "570.133.20", n); return 0; }
int nvmlSystemGetCudaDriverVersion(int *v) { *v = 12080; return 0; }
"""


def git(folder: Path, *words: str) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "HOME": str(folder)}
    who = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    return subprocess.run(["git", *who, *words], cwd=folder, env=env, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir(mode=0o755)
    (folder / "train.py").write_text("print('hi')\n")
    (folder / "uv.lock").write_text("version = 1\n")
    git(folder, "init", "-q")
    git(folder, "remote", "add", "origin", "https://ana:secret@example.org/r.git")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    return folder


def seen(node: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((node.folder() / "circumstances.json").read_bytes())
    return found


def driver(tmp_path: Path, counts: str = "") -> str:
    source, library = tmp_path / "power.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(NVML + POWER.replace("COUNTS", counts))
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True, timeout=60)
    return str(library)


async def test_code_and_packages_are_those_before_the_command_changed_them(node: Any, checkout: Path) -> None:
    await node.start([sys.executable, "-c", "open('new.txt', 'w').write('x')"], workdir=str(checkout), observe=True)
    await node.ended()
    assert git(checkout, "status", "--porcelain")  # dirty by now
    (told,) = await node.executor.circumstances("att-1")
    commit = git(checkout, "rev-parse", "HEAD").strip()
    assert told["code"] == {"commit": commit, "dirty": False, "repository": "https://example.org/r.git"}
    assert told["environment"]["python"].startswith("CPython 3.")
    assert any(package.startswith("pytest==") for package in told["environment"]["packages"])
    locked = hashlib.sha256((checkout / "uv.lock").read_bytes()).hexdigest()
    assert told["environment"]["lock_files"] == [{"path": "uv.lock", "sha256": locked}]
    assert told["container"] == {"used": False, "image": "", "digest": ""}
    assert told["hardware"]["drivers"][0] == {"name": "linux kernel", "version": os.uname().release}
    assert told["hardware"]["accelerators"] == [] and told["unknown"] == []


async def test_a_dirty_checkout_and_a_command_without_python_say_so(node: Any, checkout: Path) -> None:
    (checkout / "train.py").write_text("print('other')\n")
    await node.start("true", workdir=str(checkout), observe=True)
    await node.ended()
    told = seen(node)
    assert told["code"]["dirty"] is True
    assert told["environment"] is None
    assert [fact for fact, _ in told["unknown"]] == ["environment"]


async def test_nobody_looks_unless_it_is_asked_for(node: Any) -> None:
    await node.start("true")
    await node.ended()
    assert not (node.folder() / "circumstances.json").exists()
    assert await node.executor.circumstances("att-1") == []
    assert await node.executor.circumstances("never-was") == []


@pytest.mark.needs("root")
async def test_a_checkout_of_another_user_is_read_with_the_jobs_own_rights(node: Any, checkout: Path) -> None:
    os.chown(checkout, 4321, 4321)
    open_to_all(checkout)
    await node.start("true", workdir=str(checkout), observe=True, isolation=_isolation("user"))
    await node.ended()
    assert seen(node)["code"]["commit"] == git_as_owner(checkout)


@pytest.mark.needs("bubblewrap")
async def test_behind_a_sandbox_the_same_is_seen_from_inside(node: Any, checkout: Path) -> None:
    open_to_all(checkout)
    (checkout / "python3").write_text(
        """#!/bin/sh\ntest -w /usr || echo '["CPython 3.99", "Linux", ["inside==1"]]'\n"""
    )
    (checkout / "python3").chmod(0o755)
    await node.start(["./python3", "x.py"], workdir=str(checkout), observe=True, isolation=_isolation("bubblewrap"))
    assert (await node.ended()).exit_code == 0, node.log()
    told = seen(node)
    assert told["code"]["dirty"] is True, told["unknown"]
    assert told["environment"]["packages"] == ["inside==1"], told["unknown"]


def open_to_all(folder: Path) -> None:
    for place in (folder, *folder.parents):
        place.chmod(place.stat().st_mode | 0o055)
        if place.name.startswith("pytest-of-"):
            break


def git_as_owner(folder: Path) -> str:
    return git(folder, "-c", "safe.directory=*", "rev-parse", "HEAD").strip()


def _isolation(mode: str) -> Any:
    from groundplane.domain.isolation import Isolation, JobIsolation

    return JobIsolation(mode=Isolation(mode))


@pytest.mark.needs("compiler")
async def test_the_chain_of_drivers_goes_from_the_kernel_to_cuda(node_with: Any, tmp_path: Path) -> None:
    node = node_with(nvml_library=driver(tmp_path))
    await node.start("sleep 1", accelerators=2, observe=True)
    ended = await node.ended()
    told = seen(node)["hardware"]
    versions = {row["name"]: row["version"] for row in told["drivers"]}
    assert versions["nvidia driver library"] == "570.133.20" and versions["CUDA of the driver"] == "12.8"
    assert [card["driver"] for card in told["accelerators"]] == ["570.133.20"] * 2
    assert ended.energy_how == "measured by the energy counters of 2 accelerators"
    assert ended.energy_j is not None and ended.energy_j > 0


@pytest.mark.needs("compiler")
async def test_cards_without_a_counter_are_summed_from_samples_of_their_power(node_with: Any, tmp_path: Path) -> None:
    node = node_with(nvml_library=driver(tmp_path, "return 3"))
    await node.start("sleep 2", accelerators=1)
    ended = await node.ended()
    assert "samples of the power of 1 accelerators" in ended.energy_how
    assert ended.started_at is not None and ended.ended_at is not None and ended.energy_j is not None
    # 250 W for at most as long as it ran; the last samples may be missing on a busy machine.
    assert 0 < ended.energy_j <= 250 * ((ended.ended_at - ended.started_at).total_seconds() + 1)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (["python3", "-m", "x"], "python3"),
        (["env", "A=1", "python3", "x.py"], "python3"),
        (["sh", "-c", "cd /tmp && A=1 python3 train.py | tee log"], "python3"),
        (["bash", "-lc", "exec torchrun --nproc 2 train.py"], "python3"),
        (["bash", "-c", "echo 'unfinished"], ""),
        (["./venv/bin/python", "x.py"], ""),
        (["true"], ""),
    ],
)
def test_the_python_that_a_command_starts_is_found(tmp_path: Path, command: list[str], found: str) -> None:
    for name, text in (("python3", "#!/bin/sh\n"), ("torchrun", f"#!{tmp_path}/python3\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    assert python_of(command, str(tmp_path), str(tmp_path)) == (str(tmp_path / found) if found else "")
