"""This machine: processor, memory, disks and how fast they are, cards, and the chain of drivers from card to framework.

Reads /proc, /sys and the loader's cache; the runner, a program of its own, asks the driver, so that a driver that hangs
or crashes takes nothing of the control plane with it.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import psutil

from groundplane.domain.planning.recon import Card, Disk, DriverLink, Machine, chain_verdict
from groundplane.errors import Unavailable

MIB = 2**20
FACTS_PATIENCE_S = 30.0
MEASURE_BYTES = 256 * MIB
MEASURE_S = 4.0
_PIECE = 4 * MIB
_FREE_SHARE = 10
_DISPLAY_CLASSES = ("0x0300", "0x0302", "0x1200")
_LIBRARIES = (
    ("libcuda", "the driver's own CUDA library", "install the driver's compute libraries: libcuda.so.1 comes with it"),
    ("libnvidia-ml", "what nvidia-smi asks", "install the driver's utilities: libnvidia-ml.so.1 comes with them"),
    ("libcudart", "CUDA runtime", "install the CUDA toolkit, or use an image or wheel that brings it"),
    ("libcublas", "CUDA linear algebra", "install the CUDA toolkit, or use an image or wheel that brings it"),
    ("libcudnn", "CUDA neural networks", "install cuDNN, or use an image or wheel that brings it"),
    ("libnccl", "talk between cards", "install NCCL, or use an image or wheel that brings it"),
)


class ThisMachine:
    """Implements `ports.MachineProbe`. `root` stands in for / in tests; `home` is where measuring may write."""

    def __init__(self, home: Path, *, root: Path = Path("/"), nvml_library: str = "") -> None:
        self._home = home
        self._root = root
        self._nvml_library = nvml_library

    async def look(self) -> Machine:
        """Everything but speeds. Raises Unavailable when the runner, which asks the driver, does not answer."""
        return await asyncio.to_thread(self._look)

    async def measure(self) -> Machine:
        """With each writable disk's speed, from a file of at most 256 MiB, a tenth of what is free, and 4 s a way."""
        return await asyncio.to_thread(self._measured)

    def _look(self) -> Machine:
        facts = self._facts()
        cards = tuple(Card(**card) for card in facts["accelerators"])
        on_bus = cards_on_bus(self._root)
        chain = driver_chain(self._root, libraries=loader_cache(), cards_on_bus=on_bus, cards_seen=len(cards))
        return Machine(
            node=facts["node"],
            cpu_model=cpu_model(self._root),
            cpus_usable=facts["cpus"],
            cpus_present=os.cpu_count() or 1,
            memory_bytes=facts["memory_bytes"],
            memory_available_bytes=min(psutil.virtual_memory().available, facts["memory_bytes"]),
            disks=tuple(disks(self._home)),
            accelerators=cards,
            driver_chain=tuple(chain),
            verdict=chain_verdict(on_bus, len(cards), chain),
        )

    def _measured(self) -> Machine:
        machine = self._look()
        home = next((disk.mount for disk in machine.disks if _holds(disk.mount, self._home)), "")
        measured = (
            measure_disk(disk, self._home if disk.mount == home else Path(disk.mount)) for disk in machine.disks
        )
        return replace(machine, disks=tuple(measured))

    def _facts(self) -> dict[str, Any]:
        program = str(resources.files("groundplane") / "runner")
        words = [self._nvml_library] if self._nvml_library else []
        try:
            done = subprocess.run(
                [sys.executable, "-I", "-S", program, "--facts", str(self._home), *words],
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=FACTS_PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"the driver did not answer within {FACTS_PATIENCE_S:g} s", "nvidia-smi; see the kernel log for an Xid"
            ) from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise Unavailable(f"this machine can't be looked at: {said[-1]}", f"is {self._home} readable?")
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts


# ---------------------------------------------------------------- processor and disks


def cpu_model(root: Path = Path("/")) -> str:
    """As the kernel names it; the architecture where it names none (as on ARM)."""
    try:
        text = (root / "proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return os.uname().machine
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else os.uname().machine


def disks(home: Path) -> list[Disk]:
    """File systems that data could lie on, each device once, and always the one that holds `home`."""
    mounted = [part for part in psutil.disk_partitions(all=True) if Path(part.mountpoint).is_dir()]
    of_home = max((part for part in mounted if _holds(part.mountpoint, home)), key=lambda part: len(part.mountpoint))
    physical = [part for part in mounted if part.device.startswith("/dev/") or part.fstype in ("nfs", "nfs4", "lustre")]
    chosen: dict[str, Any] = {}
    for part in (of_home, *sorted(physical, key=lambda part: len(part.mountpoint))):
        chosen.setdefault(part.device, part)
    found = []
    for part in chosen.values():
        try:
            usage = shutil.disk_usage(part.mountpoint)
        except OSError:  # a share that went away: it has nothing to offer
            continue
        if usage.total:
            found.append(
                Disk(
                    mount=part.mountpoint,
                    device=part.device,
                    kind=part.fstype,
                    total_bytes=usage.total,
                    free_bytes=usage.free,
                )
            )
    return found


def _holds(mount: str, path: Path) -> bool:
    return path.is_relative_to(mount)


def measure_disk(disk: Disk, folder: Path, *, size_bytes: int = MEASURE_BYTES, limit_s: float = MEASURE_S) -> Disk:
    """The disk with its sequential rates, through a file that is gone afterwards; or why it was not measured."""
    size_bytes = min(size_bytes, disk.free_bytes // _FREE_SHARE) // _PIECE * _PIECE
    if size_bytes < _PIECE:
        return replace(disk, measured=f"not measured: only {disk.free_bytes:,} bytes are free")
    try:
        with tempfile.TemporaryFile(dir=folder, prefix=".ground-measure-") as file:
            return _timed(disk, file.fileno(), size_bytes, limit_s)
    except OSError as error:
        return replace(disk, measured=f"not measured: {error.strerror or error}")


def _timed(disk: Disk, descriptor: int, size_bytes: int, limit_s: float) -> Disk:
    piece = os.urandom(_PIECE)  # what compresses well would flatter file systems that compress
    written, began = 0, time.monotonic()
    while written < size_bytes and time.monotonic() - began < limit_s:
        written += os.write(descriptor, piece)
    os.fsync(descriptor)
    write_s = time.monotonic() - began
    # What was just written is still in memory: dropped, so that the disk is read and not the cache.
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.lseek(descriptor, 0, os.SEEK_SET)
    read, began = 0, time.monotonic()
    while time.monotonic() - began < limit_s and (got := os.read(descriptor, _PIECE)):
        read += len(got)
    read_s = time.monotonic() - began
    return replace(
        disk,
        write_bytes_per_s=written / max(write_s, 1e-9),
        read_bytes_per_s=read / max(read_s, 1e-9),
        measured=f"sequential, {written // MIB} MiB written and synced, {read // MIB} MiB read with the cache dropped",
    )


# ---------------------------------------------------------------- from card to framework


def cards_on_bus(root: Path = Path("/")) -> int:
    """NVIDIA and AMD accelerators on the PCI bus, whether or not a driver serves them."""
    count = 0
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        vendor, kind = _line(device / "vendor"), _line(device / "class")
        # Processors with graphics of their own are AMD display devices too: only what computes counts there.
        count += kind.startswith(_DISPLAY_CLASSES) and (vendor == "0x10de" or (vendor == "0x1002" and "0x12" in kind))
    return count


def loader_cache() -> dict[str, str]:
    """Library → file, as the dynamic loader would find it. Empty where there is no `ldconfig`."""
    program = shutil.which("ldconfig") or shutil.which("ldconfig", path="/usr/sbin:/sbin")
    if program is None:
        return {}
    try:
        done = subprocess.run([program, "-p"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_loader_cache(done.stdout)


def parse_loader_cache(text: str) -> dict[str, str]:
    """`ldconfig -p` → the first file for each library's name without its version."""
    found: dict[str, str] = {}
    for name, path in re.findall(r"^\s*(lib[\w+-]+)\.so\S* .*=> (\S+)$", text, re.MULTILINE):
        found.setdefault(name, path)
    return found


def driver_chain(root: Path, *, libraries: dict[str, str], cards_on_bus: int, cards_seen: int) -> list[DriverLink]:
    """Each link, from the kernel's module up; empty when there is no card to drive and no driver."""
    module = _line(root / "sys/module/nvidia/version")
    loaded = module or ("loaded" if (root / "sys/module/nvidia").is_dir() else "")
    if not (cards_on_bus or cards_seen or loaded or "libcuda" in libraries):
        return []
    running = _line(root / "proc/driver/nvidia/version")
    version = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", running)
    kernel = _line(root / "proc/sys/kernel/osrelease") or "this kernel"
    nodes = sorted(path.name for path in (root / "dev").glob("nvidia[0-9]*"))
    chain = [
        DriverLink(
            name="kernel module nvidia",
            found=loaded,
            hint="" if loaded else f"no module for {kernel}: reinstall the driver, or boot the kernel it was built for",
        ),
        DriverLink(
            name="driver version",
            found=version[1] if version else module,
            hint="" if version or module else "load the module: modprobe nvidia",
        ),
        DriverLink(
            name="device files",
            found=", ".join(nodes),
            hint="" if nodes else "nvidia-modprobe makes /dev/nvidia0; a container must be given the devices",
        ),
    ]
    for name, what, hint in _LIBRARIES:
        path = libraries.get(name, "")
        chain.append(DriverLink(name=f"{name} ({what})", found=path, hint="" if path else hint))
    return chain


def _line(path: Path) -> str:
    """The first line of a small file of the kernel's; empty when there is none."""
    try:
        return path.read_text(errors="replace").split("\n", 1)[0].strip()
    except OSError:
        return ""
