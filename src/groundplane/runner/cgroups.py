"""Limits kept by the kernel, where it and our rights allow them: memory, CPU time, number of processes."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

CONTROLLERS = ("memory", "cpu", "pids")
CPU_PERIOD_US = 100_000
PROC = Path("/proc/self")


def own_cgroups(controller: str, proc: Path = PROC) -> list[tuple[Path, int]]:
    """(this process's cgroup folder, cgroup version) for a controller; the unified hierarchy first."""
    own = {}
    for line in (proc / "cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    found: list[tuple[Path, int]] = []
    for line in (proc / "mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup2" and "" in own:
            found.insert(0, (Path(mount) / os.path.relpath(own[""], root), 2))
        elif kind == "cgroup" and controller in options.split(",") and controller in own:
            found.append((Path(mount) / os.path.relpath(own[controller], root), 1))
    return found


def make_cgroups(name: str, limits: dict[str, float], proc: Path = PROC) -> dict[str, str]:
    """Controller → folder of a new cgroup that keeps its limit: `memory` in bytes, `cpu` in cores, `pids` in processes.

    A limit of 0 is none. What the kernel or our rights don't allow is left out.
    """
    made: dict[str, str] = {}
    for controller in CONTROLLERS:
        if limits.get(controller):
            folder = _make(controller, name, limits[controller], proc)
            if folder:
                made[controller] = folder
    return made


def cgroup_version(folder: str) -> int:
    """1 or 2: in version 2 every cgroup says which controllers it has."""
    return 2 if (Path(folder).parent / "cgroup.controllers").exists() else 1


def remove_cgroup(folder: str) -> None:
    for _ in range(50 if folder else 0):
        try:
            Path(folder).rmdir()
        except FileNotFoundError:
            return
        except OSError:  # busy: the kernel is still taking its last process away
            time.sleep(0.02)


def oom_kills(cgroup: str) -> int:
    """How often the kernel ran out of memory: in this cgroup, or on the node when there is none."""
    files = [Path(cgroup) / "memory.events", Path(cgroup) / "memory.oom_control"] if cgroup else [Path("/proc/vmstat")]
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            return sum(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill "))
    return 0


def _make(controller: str, name: str, limit: float, proc: Path) -> str:
    for parent, version in cgroup_parents(controller, proc):
        folder = parent / name
        with contextlib.suppress(OSError):  # not ours to write: try the next
            folder.mkdir(exist_ok=True)
            for file, text, needed in _writes(controller, version, limit):
                if needed or (folder / file).exists():  # swap accounting may be off
                    (folder / file).write_text(text)
            return str(folder)
        remove_cgroup(str(folder))
    return ""


def cgroup_parents(controller: str, proc: Path = PROC) -> list[tuple[Path, int]]:
    """Where a limited child may be made: in version 2 under a cgroup that hands the controller on."""
    found: list[tuple[Path, int]] = []
    for here, version in own_cgroups(controller, proc):
        # In version 2 a cgroup that has processes can't have limited children: our parent's may be delegated to us.
        for parent in (here, here.parent) if version == 2 else (here,):
            if version == 1 or _hands_on(parent, controller):
                found.append((parent, version))
    return found


def _hands_on(parent: Path, controller: str) -> bool:
    control, offered = parent / "cgroup.subtree_control", parent / "cgroup.controllers"
    if not control.exists():
        return False
    if controller in control.read_text().split():
        return True
    # The root of the tree, which has no type, may have processes and limited children at once.
    root = not (parent / "cgroup.type").exists()
    if root and offered.exists() and controller in offered.read_text().split():
        with contextlib.suppress(OSError):
            control.write_text(f"+{controller}")
            return controller in control.read_text().lstrip("+").split()
    return False


def _writes(controller: str, version: int, limit: float) -> list[tuple[str, str, bool]]:
    """(file, text, whether the limit hangs on it) in the order in which the kernel takes them.

    Source: kernel documentation, admin-guide/cgroup-v2 and cgroup-v1/memory, sched-bwc, pids.
    """
    if controller == "memory":
        size = str(int(limit))
        if version == 2:
            return [("memory.max", size, True), ("memory.swap.max", "0", False), ("memory.oom.group", "1", False)]
        return [("memory.limit_in_bytes", size, True), ("memory.memsw.limit_in_bytes", size, False)]
    if controller == "cpu":
        quota_us = max(1_000, int(limit * CPU_PERIOD_US))  # the kernel takes no less than a millisecond
        if version == 2:
            return [("cpu.max", f"{quota_us} {CPU_PERIOD_US}", True)]
        return [("cpu.cfs_period_us", str(CPU_PERIOD_US), True), ("cpu.cfs_quota_us", str(quota_us), True)]
    return [("pids.max", str(int(limit)), True)]
