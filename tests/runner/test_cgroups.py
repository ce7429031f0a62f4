"""Limits kept by the kernel: which hierarchy is used, what is written there, and that a job feels it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from groundplane.domain.run import EndReason
from groundplane.runner.cgroups import cgroup_version, make_cgroups, own_cgroups

LIMITS = {"memory": 64 * 2**20, "cpu": 1.5, "pids": 100}


def tree(root: Path, *, v2: str = "", v1: tuple[str, ...] = ()) -> Path:
    """A /proc/self and the hierarchies it names, as files: `v2` are the controllers the unified one hands on."""
    proc = root / "proc"
    proc.mkdir()
    places, mounts = ["0::/slice/us"], [f"30 1 0:1 / {root}/unified rw - cgroup2 cgroup2 rw"]
    own = root / "unified" / "slice" / "us"
    own.mkdir(parents=True)
    for folder in (own, own.parent):
        (folder / "cgroup.controllers").write_text(v2)
        (folder / "cgroup.type").write_text("domain")
        (folder / "cgroup.subtree_control").write_text(v2 if folder == own.parent else "")
    for number, controller in enumerate(v1, 1):
        (root / controller / "us").mkdir(parents=True)
        places.append(f"{number}:{controller}:/us")
        mounts.append(f"3{number} 1 0:{number} / {root}/{controller} rw - cgroup cgroup rw,{controller}")
    (proc / "cgroup").write_text("\n".join(places) + "\n")
    (proc / "mountinfo").write_text("\n".join(mounts) + "\n")
    return proc


def test_the_unified_hierarchy_keeps_all_limits_in_one_cgroup(tmp_path: Path) -> None:
    proc = tree(tmp_path, v2="memory cpu pids", v1=("memory",))
    made = make_cgroups("job", LIMITS, proc)
    folder = tmp_path / "unified" / "slice" / "job"
    assert made == {"memory": str(folder), "cpu": str(folder), "pids": str(folder)}
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "memory.max": str(64 * 2**20),
        "cpu.max": "150000 100000",
        "pids.max": "100",
    }
    assert cgroup_version(made["cpu"]) == 2


def test_a_hybrid_node_uses_version_1_for_what_version_2_does_not_hand_on(tmp_path: Path) -> None:
    proc = tree(tmp_path, v2="hugetlb pids", v1=("memory", "cpu"))
    made = make_cgroups("job", LIMITS, proc)
    assert {name: cgroup_version(folder) for name, folder in made.items()} == {"memory": 1, "cpu": 1, "pids": 2}
    assert (tmp_path / "memory/us/job/memory.limit_in_bytes").read_text() == str(64 * 2**20)
    assert (tmp_path / "cpu/us/job/cpu.cfs_quota_us").read_text() == "150000"


def test_without_any_hierarchy_there_is_no_cgroup_and_no_error(tmp_path: Path) -> None:
    assert make_cgroups("job", LIMITS, tree(tmp_path)) == {}


def test_a_limit_of_nothing_makes_no_cgroup(tmp_path: Path) -> None:
    proc = tree(tmp_path, v2="memory cpu pids")
    assert make_cgroups("job", {"memory": 0, "cpu": 0, "pids": 0}, proc) == {}


def test_our_own_place_in_the_tree_is_found() -> None:
    assert all(version in (1, 2) for controller in ("memory", "cpu", "pids") for _, version in own_cgroups(controller))


@pytest.mark.needs("cgroups")
async def test_a_job_gets_its_share_of_cpu_and_no_more_processes_than_it_may(node: Any) -> None:
    spin = "import os, time\nend = time.monotonic() + 0.8\nwhile time.monotonic() < end: pass\nprint(os.times().user)"
    await node.python(spin, cpus=0.25, pids_limit=20)
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED
    assert float(node.log()) < 0.45, "0.8 s at a quarter of a CPU"
    assert node.state()["limits"]["cpu"] in ("cgroup1", "cgroup2")
    await node.start("for i in $(seq 40); do sleep 5 & done; echo all", "att-2", pids_limit=20)
    await node.ended("att-2")
    assert b"fork" in node.log("att-2")
    for folder in node.state("att-2")["cgroups"].values():
        assert not Path(folder).exists()
