"""What this node gives a process like us."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from groundplane.runner.cgroups import CONTROLLERS, cgroup_parents, own_cgroups
from groundplane.runner.isolation import possible_modes
from groundplane.runner.samples import NVML_LIBRARY, Nvml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document


def node_memory_bytes() -> int:
    """What the machine has, or the least that a cgroup above us allows."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for here, version in own_cgroups("memory"):
        for parent in (here, *here.parents):
            limit = parent / ("memory.max" if version == 2 else "memory.limit_in_bytes")
            if limit.exists() and (text := limit.read_text().strip()) != "max":
                memory = min(memory, int(text))
    return memory


def facts(folder: Path, nvml_library: str = NVML_LIBRARY) -> Document:
    """What this node gives a process like us: CPUs, memory and free disk in bytes, accelerators by NVML index."""
    cpus = float(len(os.sched_getaffinity(0)))
    for here, version in own_cgroups("cpu"):
        for parent in (here, *here.parents):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if version == 2:
                    quota, period = (parent / "cpu.max").read_text().split()
                else:
                    quota, period = ((parent / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
                if quota != "max" and int(quota) > 0:
                    cpus = min(cpus, int(quota) / int(period))
    cards: list[Document] = []
    with contextlib.suppress(OSError):  # no NVML: a node without NVIDIA cards
        nvml = Nvml(nvml_library)
        for index in range(nvml.count()):
            total = nvml.measure(index).get("memory_total_bytes", 0.0)
            cards.append({"index": index, "name": nvml.name(index), "memory_bytes": int(total)})
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    return {
        "node": os.uname().nodename,
        "cpus": cpus,
        "memory_bytes": node_memory_bytes(),
        "disk_free_bytes": free,
        "accelerators": cards,
        "isolation": possible_modes(),
        "limits": {name: f"cgroup{places[0][1]}" for name in CONTROLLERS if (places := _limited(name))},
    }


def _limited(controller: str) -> list[tuple[Path, int]]:
    """Where this process may make limited cgroups."""
    return [(parent, version) for parent, version in cgroup_parents(controller) if os.access(parent, os.W_OK)]
