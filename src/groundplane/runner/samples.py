"""What the job uses: CPU, memory, disk, accelerators."""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from pathlib import Path

from groundplane.runner.files import now_text
from groundplane.runner.processes import descendants, process_stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document

NVML_LIBRARY = "libnvidia-ml.so.1"


class Nvml:
    """NVIDIA's management library by ctypes. OSError when the node has none or no driver answers.

    A figure that a card or an older library does not give counts as 0: nothing known.
    Source: NVML API reference, nvmlDeviceGetUtilizationRates, nvmlDeviceGetMemoryInfo, nvmlDeviceGetTemperature,
    nvmlDeviceGetTotalEccErrors, nvmlDeviceGetRemappedRows, nvmlDeviceGetCurrentClocksThrottleReasons,
    nvmlDeviceGetNvLinkState, nvmlDeviceGetPowerUsage (milliwatts), nvmlDeviceGetTotalEnergyConsumption (millijoules
    since the driver was loaded), nvmlSystemGetDriverVersion, nvmlSystemGetCudaDriverVersion.
    """

    MOST_NVLINKS = 18

    def __init__(self, library: str = NVML_LIBRARY) -> None:
        self._nvml = ctypes.CDLL(library)
        if status := self._nvml.nvmlInit_v2():
            raise OSError(f"{library} does not start: NVML status {status}")

    def count(self) -> int:
        number = ctypes.c_uint()
        return 0 if self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(number)) else number.value

    def name(self, index: int) -> str:
        buffer = ctypes.create_string_buffer(96)
        failed = self._nvml.nvmlDeviceGetName(self._handle(index), buffer, 96)
        return "" if failed else buffer.value.decode(errors="replace")

    def driver_version(self) -> str:
        buffer, call = ctypes.create_string_buffer(96), getattr(self._nvml, "nvmlSystemGetDriverVersion", None)
        return "" if call is None or call(buffer, 96) else buffer.value.decode(errors="replace")

    def cuda_version(self) -> str:
        """The newest CUDA this driver runs, such as 12.8."""
        number, call = ctypes.c_int(), getattr(self._nvml, "nvmlSystemGetCudaDriverVersion", None)
        known = call is not None and not call(ctypes.byref(number))
        return f"{number.value // 1000}.{number.value % 1000 // 10}" if known else ""

    def energy_j(self, index: int) -> float | None:
        """Taken since the driver was loaded; None for cards that don't count."""
        millijoules = ctypes.c_ulonglong()
        return (
            None if self._ask("TotalEnergyConsumption", index, ctypes.byref(millijoules)) else millijoules.value / 1e3
        )

    def measure(self, index: int) -> dict[str, float]:
        """Utilisation in percent, memory in bytes, temperature in °C, power in watts, where the card gives them."""
        handle, found = self._handle(index), {"index": float(index)}
        rates, memory, celsius = (ctypes.c_uint * 2)(), (ctypes.c_ulonglong * 3)(), ctypes.c_uint()
        if not self._nvml.nvmlDeviceGetUtilizationRates(handle, rates):
            found["utilization_percent"] = float(rates[0])
        if not self._nvml.nvmlDeviceGetMemoryInfo(handle, memory):
            found["memory_total_bytes"], found["memory_used_bytes"] = float(memory[0]), float(memory[2])
        if not self._nvml.nvmlDeviceGetTemperature(handle, 0, ctypes.byref(celsius)):
            found["temperature_celsius"] = float(celsius.value)
        milliwatts = ctypes.c_uint()
        if not self._ask("PowerUsage", index, ctypes.byref(milliwatts)):
            found["power_w"] = milliwatts.value / 1e3
        return found

    def uncorrected_errors(self, index: int) -> int:
        """ECC errors since the driver was loaded that no code could mend."""
        number = ctypes.c_ulonglong()
        return 0 if self._ask("TotalEccErrors", index, 1, 0, ctypes.byref(number)) else number.value

    def remapping_failed(self, index: int) -> bool:
        rows = [ctypes.c_uint() for _ in range(4)]  # corrected, uncorrected, pending, failed
        return not self._ask("RemappedRows", index, *map(ctypes.byref, rows)) and bool(rows[3].value)

    def throttle_reasons(self, index: int) -> int:
        bits = ctypes.c_ulonglong()
        return 0 if self._ask("CurrentClocksThrottleReasons", index, ctypes.byref(bits)) else bits.value

    def active_links(self, index: int) -> int:
        """NVLinks that are up."""
        active = 0
        for link in range(self.MOST_NVLINKS):
            state = ctypes.c_uint()
            if self._ask("NvLinkState", index, link, ctypes.byref(state)):
                break
            active += state.value
        return active

    def _ask(self, what: str, index: int, *arguments: object) -> int:
        """NVML's status; an older library that does not know the function counts as a failure."""
        call = getattr(self._nvml, f"nvmlDeviceGet{what}", None)
        return -1 if call is None else int(call(self._handle(index), *arguments))

    def _handle(self, index: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
        return handle


class Sampler:
    """Measures the whole tree of processes below this one, the disk and the assigned accelerators."""

    def __init__(self, disk: str, accelerators: list[int], nvml_library: str) -> None:
        self._disk, self._accelerators = disk, accelerators
        self._nvml = None
        if accelerators:
            with contextlib.suppress(OSError):  # no library on this node: samples go without
                self._nvml = Nvml(nvml_library)
        self._tick_s, self._page_bytes = 1 / os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
        self._cpu_s, self._at = 0.0, time.monotonic()

    def energy_j(self) -> list[float] | None:
        """Each assigned card's energy counter; None unless all of them count."""
        if self._nvml is None:
            return None
        counts = [count for index in self._accelerators if (count := self._nvml.energy_j(index)) is not None]
        return counts if counts and len(counts) == len(self._accelerators) else None

    def take(self) -> Document:
        stats = [stat for stat in map(process_stat, descendants(os.getpid())) if stat is not None]
        times = os.times()
        # Time of children already reaped counts with their parent (fields 13, 14), ours included: nothing gets lost.
        cpu_s = sum(int(ticks) for stat in stats for ticks in stat[11:15]) * self._tick_s
        cpu_s += times.children_user + times.children_system
        now = time.monotonic()
        percent = 100 * max(0.0, cpu_s - self._cpu_s) / max(now - self._at, 0.001)
        self._cpu_s, self._at = cpu_s, now
        disk = os.statvfs(self._disk)
        return {
            "at": now_text(),
            "cpu_percent": round(percent, 1),
            "memory_bytes": sum(int(stat[21]) for stat in stats) * self._page_bytes,
            "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            "accelerators": [self._nvml.measure(index) for index in self._accelerators] if self._nvml else [],
        }


def private_bytes(pids: list[int]) -> int:
    """Memory of the processes with shared pages counted once in sum (PSS): what a limit may fairly be held against."""
    total = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total
