"""The node itself: memory limits, full disks, accelerators, and what a pool offers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from groundplane.adapters.executors.channels import RUNNER
from groundplane.adapters.executors.local import LocalExecutor
from groundplane.adapters.executors.nodes import RunnerOptions
from groundplane.adapters.executors.observing import accelerator_name
from groundplane.domain.run import EndReason
from groundplane.errors import Conflict, InvalidInput, Unavailable

GREEDY = "import time\nheap = []\nwhile True:\n    heap.append(b'x' * 2**20)\n    time.sleep(0.002)"

NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "NVIDIA H100 80GB HBM3", n); return 0; }
int nvmlDeviceGetUtilizationRates(void *h, unsigned *u) { u[0] = 40 + (unsigned)(long)h; u[1] = 7; return 0; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) {
  m[0] = 81559ULL << 20; m[1] = 80000ULL << 20; m[2] = 1559ULL << 20; return 0; }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *t) { *t = 61; return 0; }
"""


@pytest.fixture
def nvml(tmp_path: Path) -> str:
    source, library = tmp_path / "nvml.c", tmp_path / "libnvidia-ml.so.1"
    source.write_text(NVML)
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True, timeout=60)
    return str(library)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=True, timeout=20)
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True, timeout=20)


async def test_a_job_over_its_memory_limit_is_out_of_memory(node: Any) -> None:
    await node.python(GREEDY, memory_bytes=64 * 2**20)
    seen = await node.ended()
    assert seen.end_reason is EndReason.OUT_OF_MEMORY
    assert not node.state()["cgroup"] or not Path(node.state()["cgroup"]).exists()


async def test_without_cgroups_the_runner_watches_memory_itself(node: Any, tmp_path: Path) -> None:
    hidden = tmp_path / "groundplane" / "runner"
    shutil.copytree(RUNNER, hidden)
    (hidden.parent / "__init__.py").touch()
    life = hidden / "life.py"
    before = life.read_text()
    life.write_text(before.replace("self.cgroups = make_cgroups(", "self.cgroups = {} and make_cgroups("))
    assert life.read_text() != before
    node.executor = LocalExecutor(node.home, node.executor._clock, options=node.options, runner=hidden)
    await node.python(GREEDY, memory_bytes=64 * 2**20)
    seen = await node.ended()
    assert node.state()["limits"]["memory"] == "watched"
    assert seen.end_reason is EndReason.OUT_OF_MEMORY
    assert str(64 * 2**20) in seen.message


async def test_a_job_within_its_memory_limit_is_left_alone(node: Any) -> None:
    await node.python("heap = b'x' * (16 * 2**20)", memory_bytes=256 * 2**20)
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED


@pytest.mark.needs("tmpfs")
async def test_a_full_disk_ends_the_attempt_instead_of_hanging_it(node_with: Any, small_disk: Path) -> None:
    node = node_with(small_disk / "home")
    await node.start("while :; do echo filling the disk with words nobody reads; done", stop_grace_s=0.5)
    seen = await node.ended()
    assert seen.end_reason is EndReason.DISK_FULL
    assert node.processes() == []
    assert os.statvfs(small_disk).f_bavail * 4096 < 2**17


@pytest.mark.needs("tmpfs")
async def test_a_job_that_fills_the_disk_itself_still_gets_its_ending_written(node_with: Any, small_disk: Path) -> None:
    node = node_with(small_disk / "home")
    await node.start("dd if=/dev/zero of=big bs=64k count=1000; exit 1", stop_grace_s=0.5)
    assert (await node.ended()).end_reason is EndReason.DISK_FULL


@pytest.mark.needs("tmpfs")
async def test_a_disk_full_before_the_start_is_unavailable(node_with: Any, small_disk: Path) -> None:
    (small_disk / "home" / "attempts").mkdir(parents=True)
    node = node_with(small_disk / "home")
    with pytest.raises(OSError, match="No space"):
        (small_disk / "ballast").write_bytes(b"x" * 2**21)
    with pytest.raises(Unavailable, match=r"No space left|exited with status 1"):
        await node.start("echo ran")
    assert node.log() == b""


async def test_samples_tell_cpu_memory_and_disk(node: Any) -> None:
    await node.python("import time\nheap = b'x' * (40 * 2**20)\nwhile True: pass")
    seen = await node.until(lambda seen: (seen.cpu_percent or 0) > 20)
    assert seen.memory_bytes > 40 * 2**20
    samples = await node.executor.samples("att-1", 2)
    assert 1 <= len(samples) <= 2
    assert samples[-1].disk_free_bytes > 0
    assert samples[-1].accelerators == ()
    assert samples[-1].at.tzinfo is not None


@pytest.mark.needs("compiler")
async def test_accelerators_are_reserved_by_index_and_measured(node_with: Any, nvml: str) -> None:
    node = node_with(nvml_library=nvml)
    offer = (await node.executor.offers())[0]
    assert (offer.accelerators, offer.accelerator) == (2, "h100-80gb")
    await node.start("echo cards=$CUDA_VISIBLE_DEVICES; sleep 60", "att-1", accelerators=1)
    await node.start("echo cards=$CUDA_VISIBLE_DEVICES; sleep 60", "att-2", accelerators=1)
    await node.said(b"cards=0\n", "att-1")
    await node.said(b"cards=1\n", "att-2")
    with pytest.raises(Unavailable, match="0 of 2 are free"):
        await node.start("true", "att-3", accelerators=1)
    seen = await node.until(lambda seen: seen.accelerator_percent is not None, "att-2")
    assert seen.accelerator_percent == 42.0
    card = (await node.executor.samples("att-2", 1))[0].accelerators[0]
    assert card == {
        "index": 1.0,
        "utilization_percent": 42.0,
        "memory_total_bytes": float(81559 << 20),
        "memory_used_bytes": float(1559 << 20),
        "temperature_celsius": 61.0,
    }
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    await node.ended("att-1")
    await node.start("echo cards=$CUDA_VISIBLE_DEVICES", "att-3", accelerators=1)
    await node.said(b"cards=0\n", "att-3")


async def test_a_node_without_cards_has_none_to_give(node_with: Any) -> None:
    node = node_with(nvml_library="libnothing.so.9")
    offer = (await node.executor.offers())[0]
    assert (offer.pool, offer.accelerators, offer.simulated) == ("local", 0, False)
    assert 0 < offer.cpus <= (os.cpu_count() or 1)
    assert offer.memory_bytes > 2**28
    with pytest.raises(Unavailable, match="0 of 0 are free"):
        await node.start("true", accelerators=1)


async def test_a_running_attempt_cannot_be_released(node: Any) -> None:
    await node.start("sleep 60")
    with pytest.raises(Conflict, match=r"running|starting"):
        await node.executor.release("att-1")


@pytest.mark.parametrize("name", ["", "../other", "a/b", ".hidden", "x" * 200])
async def test_an_attempt_id_is_a_plain_name(node: Any, name: str) -> None:
    with pytest.raises(InvalidInput, match="no attempt id"):
        await node.start("true", name)


@pytest.mark.parametrize(
    ("reported", "mebibytes", "name"),
    [
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", 81559, "h100-80gb"),
        ("NVIDIA H200", 143771, "h200-141gb"),
        ("Tesla T4", 15360, "t4-16gb"),
        ("NVIDIA L40S", 46068, "l40s-48gb"),
        ("NVIDIA A10G", 23028, "a10g-24gb"),
    ],
)
def test_cards_are_named_as_the_catalogue_names_them(reported: str, mebibytes: int, name: str) -> None:
    assert accelerator_name(reported, mebibytes << 20) == name


def test_the_runner_reads_on_python_3_9() -> None:
    import ast

    for path in RUNNER.glob("*.py"):
        ast.parse(path.read_text(), feature_version=(3, 9))


def test_the_runner_explains_itself_to_people() -> None:
    done = subprocess.run([sys.executable, str(RUNNER)], capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error:")
    assert "hint:" in done.stderr


def test_options_reach_the_order_by_name() -> None:
    """The runner reads these names from order.json; renaming one here would silently restore its default."""
    text = (RUNNER / "life.py").read_text()
    for name in RunnerOptions.__slots__:
        assert f'order.get("{name}")' in text
