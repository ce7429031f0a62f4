"""Memory limits kept by the kernel, where it and our rights allow them."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path


def own_cgroups(controller: str) -> list[tuple[Path, int]]:
    """(this process's cgroup folder, cgroup version) for a controller; the unified hierarchy first."""
    own = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    found: list[tuple[Path, int]] = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        root, mount = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup2" and "" in own:
            found.insert(0, (Path(mount) / os.path.relpath(own[""], root), 2))
        elif kind == "cgroup" and controller in options.split(",") and controller in own:
            found.append((Path(mount) / os.path.relpath(own[controller], root), 1))
    return found


def make_cgroup(name: str, limit_bytes: int) -> str:
    """A cgroup of this name with a memory limit; "" where the kernel or our rights don't allow one."""
    parents: list[tuple[Path, int]] = []
    for here, version in own_cgroups("memory"):
        # In version 2 a cgroup that has processes can't have limited children: our parent's may be delegated to us.
        for parent in (here, here.parent) if version == 2 else (here,):
            control = parent / "cgroup.subtree_control"
            if version == 1 or (control.exists() and "memory" in control.read_text().split()):
                parents.append((parent, version))
    for parent, version in parents:
        folder = parent / name
        with contextlib.suppress(OSError):  # not ours to write: try the next
            folder.mkdir(exist_ok=True)
            (folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")).write_text(str(limit_bytes))
            swap = ("memory.swap.max", "0"), ("memory.memsw.limit_in_bytes", str(limit_bytes))
            for extra, text in (*swap, ("memory.oom.group", "1")):
                if (folder / extra).exists():  # swap accounting may be off
                    (folder / extra).write_text(text)
            return str(folder)
        remove_cgroup(str(folder))
    return ""


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
