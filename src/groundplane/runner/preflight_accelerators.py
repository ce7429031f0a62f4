"""The chain from card to framework, and the cards' health, as the driver tells them."""

from __future__ import annotations

import ctypes
import os
import re
import time
from pathlib import Path

from groundplane.runner.samples import NVML_LIBRARY, Nvml
from groundplane.runner.verdicts import failed, ok, rate, skipped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document

CUDA_LIBRARY = "libcuda.so.1"
MODULE_VERSION = Path("/proc/driver/nvidia/version")
NO_ACCELERATORS = "no accelerators are asked for"
# Source: NVML API reference, nvmlReturn_t.
NVML_ERRORS = {
    9: "the driver is not loaded",
    12: "the library is missing or damaged",
    15: "the card has fallen off the bus",
    18: "driver and library versions differ",
}
NVML_HINTS = {
    9: "modprobe nvidia; after a kernel update build the module anew (dkms autoinstall) and restart the node",
    18: "restart the node: the kernel still runs the old module under the new library",
}
# Clocks held back by the hardware itself: power brake, heat, slowdown. Source: NVML, nvmlClocksThrottleReasons.
BAD_THROTTLE = {0x8: "hardware slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake"}
# Xids after which a card or node needs hands. Source: NVIDIA Xid catalogue, 2026-08: 48 double-bit ECC, 62 and 119/120
# GSP or firmware halts, 64 row remapping failed, 74 NVLink, 79 off the bus, 95 uncontained memory error.
BAD_XIDS = {48, 62, 64, 74, 79, 95, 119, 120}
XID = re.compile(rb"NVRM: Xid \((?:PCI:)?([\w:.]+)\): (\d+)")
XID_AGE_S = 3600
LEAST_SHARE_OF_BANDWIDTH = 0.5


def driver(order: Document, _: Path) -> Document:
    """Kernel module, NVML and libcuda: all there, and of one version."""
    if not order.get("accelerators"):
        return skipped(NO_ACCELERATORS)
    need = "kernel module, driver library and CUDA of one version"
    try:
        library = ctypes.CDLL(order.get("nvml_library") or NVML_LIBRARY)
    except OSError as error:
        return failed(need, f"no driver library: {error}", "install the driver on the node", fault="node")
    status = library.nvmlInit_v2()
    version = _text(library, "nvmlSystemGetDriverVersion") if status == 0 else ""
    module = _module_version()
    if status:
        have = NVML_ERRORS.get(status, f"NVML status {status}") + (f"; kernel module {module}" if module else "")
        hint = NVML_HINTS.get(status, "see dmesg | grep -i nvrm on the node")
        return failed(need, have, hint, fault="node", nvml_status=status)
    if module and version and module != version:
        return failed(need, f"kernel module {module}, library {version}", NVML_HINTS[18], fault="node")
    cuda, trouble = _cuda_version(order.get("cuda_library") or CUDA_LIBRARY)
    if trouble:
        hint = "install the CUDA driver library of the same version as the kernel module"
        return failed(need, trouble, hint, fault="node")
    return ok(need, f"driver {version or 'unknown'}, CUDA {cuda // 1000}.{cuda % 1000 // 10}", cuda_version=cuda)


def accelerators(order: Document, _: Path) -> Document:
    """Enough cards, none with memory errors that stay, lost lanes of heat, or a bad Xid in the last hour."""
    wanted = int(order.get("accelerators") or 0)
    if not wanted:
        return skipped(NO_ACCELERATORS)
    need = f"{wanted} healthy accelerators"
    try:
        nvml = Nvml(order.get("nvml_library") or NVML_LIBRARY)
    except OSError as error:
        return failed(need, str(error), "see check driver", fault="node")
    count = nvml.count()
    if count < wanted:
        hint = "a card has gone: nvidia-smi -L, dmesg | grep -i xid, then restart or replace"
        return failed(need, f"{count}", hint, fault="node", count=count)
    indexes = order.get("accelerator_indexes") or list(range(count))
    troubles = [f"accelerator {index}: {trouble}" for index in indexes for trouble in _troubles(nvml, index)]
    recent, unread = recent_xids()
    troubles += [f"Xid {number} on {place}" for place, number in recent if number in BAD_XIDS]
    if troubles:
        hint = "drain the node, reset or replace the card: nvidia-smi -q -d ECC,PERFORMANCE,ROW_REMAPPER"
        return failed(need, "; ".join(troubles), hint, fault="node", count=count)
    return ok(need, f"{count}, no lasting errors{unread}", count=count)


def topology(order: Document, _: Path) -> Document:
    """How the assigned cards are joined: NVLink, or PCIe alone."""
    indexes = order.get("accelerator_indexes") or []
    if len(indexes) < 2:
        return skipped("one accelerator has no other to talk to" if indexes else NO_ACCELERATORS)
    try:
        nvml = Nvml(order.get("nvml_library") or NVML_LIBRARY)
    except OSError as error:
        return skipped(str(error))
    links = [nvml.active_links(index) for index in indexes]
    if max(links) == 0:
        return ok("a known way between accelerators", "PCIe alone", nvlinks=0)
    if min(links) < max(links):
        have = ", ".join(f"accelerator {index}: {links[place]}" for place, index in enumerate(indexes))
        hint = "an NVLink is down: nvidia-smi nvlink --status, then reset or replace"
        return failed(f"{max(links)} NVLinks on each accelerator", have, hint, fault="node", nvlinks=min(links))
    return ok("a known way between accelerators", f"{min(links)} NVLinks each", nvlinks=min(links))


def compute(order: Document, _: Path) -> Document:
    """Memory bandwidth of each assigned card, copied on the card itself, against the catalogue's figure.

    Source: CUDA driver API, cuMemcpyDtoD: a copy reads and writes, so it moves its size twice.
    """
    indexes = order.get("accelerator_indexes") or []
    if not indexes:
        return skipped("no accelerator: nothing to measure")
    figure = float((order.get("preflight") or {}).get("memory_bytes_per_s") or 0)
    try:
        cuda = _Cuda(order.get("cuda_library") or CUDA_LIBRARY)
        measured = {index: cuda.copied_bytes_per_s(index) for index in indexes}
    except OSError as error:
        return skipped(f"not measured: {error}")
    slowest = min(measured, key=lambda index: measured[index])
    have = f"{rate(measured[slowest])} on accelerator {slowest}"
    if not figure:
        return ok("memory bandwidth", f"{have}; the catalogue has no figure", bytes_per_s=measured[slowest])
    need = f"at least {LEAST_SHARE_OF_BANDWIDTH:.0%} of the catalogue's {rate(figure)}"
    if measured[slowest] < LEAST_SHARE_OF_BANDWIDTH * figure:
        hint = "a throttled, shared or failing card: nvidia-smi -q -d PERFORMANCE,CLOCK"
        return failed(need, have, hint, fault="node", bytes_per_s=measured[slowest])
    return ok(need, have, bytes_per_s=measured[slowest])


def recent_xids(path: str = "/dev/kmsg") -> tuple[list[tuple[str, int]], str]:
    """(PCI address, Xid) of the kernel's messages of the last hour; and a remark when they can't be read."""
    found: list[tuple[str, int]] = []
    try:
        log = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        return [], f"; Xids not looked for: {error.strerror}"
    after_us = (time.clock_gettime(time.CLOCK_MONOTONIC) - XID_AGE_S) * 1e6
    try:
        while True:
            try:
                record = os.read(log, 8192)
            except BlockingIOError:
                break
            except BrokenPipeError:  # overwritten while we read: go on with what is left
                continue
            if not record:
                break
            for line in record.split(b"\n"):
                head, _, text = line.partition(b";")
                match = XID.search(text)
                if match and int(head.split(b",")[2]) >= after_us:
                    found.append((match[1].decode(), int(match[2])))
    finally:
        os.close(log)
    return found, ""


def _troubles(nvml: Nvml, index: int) -> list[str]:
    """What is lastingly wrong with a card; a figure the driver does not give is no trouble."""
    found = []
    uncorrected = nvml.uncorrected_errors(index)
    if uncorrected:
        found.append(f"{uncorrected} uncorrected memory errors")
    if nvml.remapping_failed(index):
        found.append("a memory row could not be remapped")
    throttled = nvml.throttle_reasons(index)
    found += [word for bit, word in BAD_THROTTLE.items() if throttled & bit]
    return found


def _module_version() -> str:
    try:
        text = MODULE_VERSION.read_text()
    except OSError:
        return ""
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else ""


def _text(library: ctypes.CDLL, function: str) -> str:
    buffer = ctypes.create_string_buffer(96)
    call = getattr(library, function, None)
    return "" if call is None or call(buffer, 96) else buffer.value.decode(errors="replace")


def _cuda_version(name: str) -> tuple[int, str]:
    """(version such as 12040, "") or (0, what is wrong)."""
    try:
        library = ctypes.CDLL(name)
    except OSError as error:
        return 0, f"no CUDA library: {error}"
    if status := library.cuInit(0):
        return 0, f"cuInit says {status}" + (": driver and CUDA library differ" if status == 803 else "")
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    return number.value, ""


class _Cuda:
    """Enough of CUDA's driver API to time a copy on a card."""

    COPY_BYTES, TIMES = 256 * 2**20, 8

    def __init__(self, name: str) -> None:
        self._cuda = ctypes.CDLL(name)
        self._do("cuInit", 0)

    def copied_bytes_per_s(self, index: int) -> float:
        context, one, two = ctypes.c_void_p(), ctypes.c_uint64(), ctypes.c_uint64()
        device = ctypes.c_int()
        self._do("cuDeviceGet", ctypes.byref(device), index)
        self._do("cuCtxCreate_v2", ctypes.byref(context), 0, device)
        try:
            size = ctypes.c_size_t(self.COPY_BYTES)
            self._do("cuMemAlloc_v2", ctypes.byref(one), size)
            self._do("cuMemAlloc_v2", ctypes.byref(two), size)
            self._do("cuMemcpyDtoD_v2", two, one, size)  # the first one wakes the card
            self._do("cuCtxSynchronize")
            began = time.monotonic()
            for _ in range(self.TIMES):
                self._do("cuMemcpyDtoD_v2", two, one, size)
            self._do("cuCtxSynchronize")
            return 2 * self.COPY_BYTES * self.TIMES / max(time.monotonic() - began, 1e-9)
        finally:
            self._do("cuCtxDestroy_v2", context)  # its memory goes with it

    def _do(self, name: str, *arguments: object) -> None:
        call = getattr(self._cuda, name, None)
        status = -1 if call is None else call(*arguments)
        if status:
            raise OSError(f"{name} says {status}")
