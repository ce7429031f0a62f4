"""This machine, for real, and the chain from card to framework on machines that have been broken in known ways."""

from __future__ import annotations

import os
from pathlib import Path

from groundplane.adapters.machine import (
    ThisMachine,
    cards_on_bus,
    cpu_model,
    driver_chain,
    measure_disk,
    parse_loader_cache,
)
from groundplane.domain.planning.recon import Disk

MIB = 2**20


def card(root: Path, slot: str, vendor: str, kind: str) -> None:
    device = root / "sys/bus/pci/devices" / slot
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n")
    (device / "class").write_text(kind + "\n")


async def test_this_machine_says_what_a_process_may_use(tmp_path: Path) -> None:
    machine = await ThisMachine(tmp_path, nvml_library="libno-such-driver.so").look()
    assert 0 < machine.cpus_usable <= machine.cpus_present
    assert 0 < machine.memory_available_bytes <= machine.memory_bytes
    assert machine.cpu_model and machine.disks
    assert all(disk.read_bytes_per_s is None for disk in machine.disks), "not measured is not 0"


async def test_measuring_gives_rates_and_leaves_nothing_behind(tmp_path: Path) -> None:
    usage = os.statvfs(tmp_path)
    free = usage.f_bavail * usage.f_frsize
    disk = Disk(mount=str(tmp_path), device="x", kind="ext4", total_bytes=free, free_bytes=free)
    measured = measure_disk(disk, tmp_path, size_bytes=8 * MIB, limit_s=5)
    assert measured.read_bytes_per_s and measured.write_bytes_per_s
    assert "8 MiB written and synced" in measured.measured
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_or_closed_is_not_measured_and_says_why(tmp_path: Path) -> None:
    full = Disk(mount="/", device="x", kind="ext4", total_bytes=MIB, free_bytes=MIB)
    assert measure_disk(full, tmp_path).measured == "not measured: only 1,048,576 bytes are free"
    gone = Disk(mount="/", device="x", kind="ext4", total_bytes=2**40, free_bytes=2**40)
    assert measure_disk(gone, tmp_path / "gone").measured == "not measured: No such file or directory"


def test_a_card_without_its_module_is_seen_on_the_bus_and_the_module_named(tmp_path: Path) -> None:
    card(tmp_path, "0000:00:1e.0", "0x10de", "0x030200")
    card(tmp_path, "0000:00:02.0", "0x8086", "0x030000")
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.8.0-1021-azure\n")
    assert cards_on_bus(tmp_path) == 1
    chain = driver_chain(tmp_path, libraries={}, cards_on_bus=1, cards_seen=0)
    assert chain[0].name == "kernel module nvidia" and not chain[0].found
    assert "6.8.0-1021-azure" in chain[0].hint
    assert all(link.hint for link in chain if not link.found), "what is missing has a way forward"


def test_a_whole_chain_names_versions_and_files(tmp_path: Path) -> None:
    card(tmp_path, "0000:00:1e.0", "0x10de", "0x030200")
    for path, text in {
        "sys/module/nvidia/version": "570.124.06\n",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.124.06  Release\n",
        "dev/nvidia0": "",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    chain = driver_chain(tmp_path, libraries={"libcuda": "/usr/lib/libcuda.so.1"}, cards_on_bus=1, cards_seen=1)
    assert [link.found for link in chain[:4]] == ["570.124.06", "570.124.06", "nvidia0", "/usr/lib/libcuda.so.1"]
    assert [link.name.split()[0] for link in chain if not link.found] == [
        "libnvidia-ml", "libcudart", "libcublas", "libcudnn", "libnccl",
    ]  # fmt: skip


def test_a_machine_without_card_or_driver_has_no_chain_to_mend(tmp_path: Path) -> None:
    assert driver_chain(tmp_path, libraries={}, cards_on_bus=0, cards_seen=0) == []


def test_the_loaders_cache_and_the_processors_name_are_read(tmp_path: Path) -> None:
    text = (
        "\tlibcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1\n\tlibz.so (libc6) => /lib/libz.so\n"
    )
    assert parse_loader_cache(text) == {"libcuda": "/usr/lib/x86_64-linux-gnu/libcuda.so.1", "libz": "/lib/libz.so"}
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nmodel name\t: AMD EPYC 7V13 64-Core Processor\n")
    assert cpu_model(tmp_path) == "AMD EPYC 7V13 64-Core Processor"
