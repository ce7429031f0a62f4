"""The program beside a job: starts it, keeps its log and samples, finds its checkpoints, ends it when a limit says so.

    python runner.py ATTEMPT_DIR            run the attempt in the foreground
    python runner.py --detach ATTEMPT_DIR   the same in a session of its own; returns once the attempt is on record
    python runner.py --look ATTEMPT_DIR...  one JSON line per attempt; ends what a dead runner left behind
    python runner.py --facts FOLDER [NVML]  one JSON line: what this node has

One standard-library file for any Python ≥ 3.9 on Linux: it is copied to nodes as it is. It obeys its order and the
node's own clocks, so limits hold while the control plane is down. docs/guides/jobs.md is the contract with the job.
A life: lock → "starting" recorded → newest checkpoint verified → fork → pump, enforce, measure, reap → clear → "ended".
"""
# ruff: noqa: UP017 (Python 3.9 reads this file)

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import sys
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

TYPE_CHECKING = False  # as type checkers know it; importing typing would add a tenth to every job's start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Document = dict[str, Any]

KEPT_ENV = ("PATH", "HOME", "LANG", "TZ", "TMPDIR")
TAIL_BYTES = 16_384
CHECK_PERIOD_S = 0.25
STRAGGLER_GRACE_S = 2.0
SAMPLES_LIMIT_BYTES = 4 * 2**20
RESERVE_BYTES = 64 * 2**10
REPORTED_CHECKPOINTS = 100
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
FULL_DISK_WORDS = (b"No space left on device", b"Disk quota exceeded")
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, F_SETPIPE_SZ = 1, 36, 1031
NVML_LIBRARY = "libnvidia-ml.so.1"


# ---------------------------------------------------------------- files


def now_text(at: float | None = None) -> str:
    return datetime.fromtimestamp(time.time() if at is None else at, timezone.utc).isoformat()


def read_document(path: Path) -> Document | None:
    """The JSON object in the file; None when there is no file. ValueError when it is something else."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(document, dict):
        raise ValueError(f"{path} holds no JSON object")
    return document


def write_document(path: Path, document: Document, durable: bool = True) -> None:
    """Replaces the file whole: a reader sees the old or the new one. `durable` survives a power cut."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with fresh.open("wb") as file:
            file.write(json.dumps(document).encode())
            file.flush()
            if durable:
                os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    if durable:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def take_lock(folder: Path, patience_s: float) -> int | None:
    """The descriptor that holds the attempt's lock; None when another process keeps it longer than `patience_s`."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(lock)
                return None
            time.sleep(0.02)
        else:
            return lock


# ---------------------------------------------------------------- processes


def process_stat(pid: int) -> list[str] | None:
    """/proc/PID/stat after the name: [0] state, [1] ppid, [3] session, [11:15] CPU ticks, [19] start, [21] pages."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_ticks(pid: int) -> int | None:
    stat = process_stat(pid)
    return None if stat is None else int(stat[19])


def all_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def descendants(root: int) -> list[int]:
    """Every process below `root`, whatever group or session it moved to."""
    found: list[int] = []
    todo = [root]
    by_parent: dict[int, list[int]] | None = None
    if not Path(f"/proc/{root}/task/{root}/children").exists():  # a kernel without CONFIG_PROC_CHILDREN
        by_parent = {}
        for pid in all_pids():
            stat = process_stat(pid)
            if stat is not None:
                by_parent.setdefault(int(stat[1]), []).append(pid)
    while todo:
        parent = todo.pop()
        below = children(parent) if by_parent is None else by_parent.get(parent, [])
        found += below
        todo += below
    return found


def children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended while we looked
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found += map(int, (task / "children").read_text().split())
    return found


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def leftovers(folder: Path, state: Document) -> list[int]:
    """Living processes that are provably this attempt's, never a stranger with a reused pid: by its mark in their
    environment, by the job's pid and start tick, by its cgroup; and the job's session when one is in it."""
    if state.get("folder", str(folder)) != str(folder):
        return []  # a copy of somebody's home: the processes belong to the original
    marks = {f"GROUND_ATTEMPT_ID={folder.name}".encode(), f"GROUND_ATTEMPT_DIR={folder}".encode()}
    ours: set[int] = set()
    sessions: dict[int, int] = {}
    for pid in all_pids():
        stat = process_stat(pid)
        if stat is None or stat[0] in "ZX" or pid == os.getpid():
            continue
        sessions[pid] = int(stat[3])
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or another user's
            if marks <= set(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")):
                ours.add(pid)
        if pid == state.get("pid") and int(stat[19]) == state.get("start_ticks"):
            ours.add(pid)
    if state.get("cgroup"):
        with contextlib.suppress(FileNotFoundError):
            ours |= set(map(int, (Path(state["cgroup"]) / "cgroup.procs").read_text().split()))
    if any(sessions.get(pid) == state.get("pid") for pid in ours):
        ours |= {pid for pid, session in sessions.items() if session == state.get("pid")}
    return sorted(ours)


def kill_leftovers(folder: Path, state: Document, patience_s: float = 10.0) -> int:
    """Kills them all and waits until they are gone; how many there were. TimeoutError when one can't be killed."""
    seen: set[int] = set()
    deadline = time.monotonic() + patience_s
    while ours := leftovers(folder, state):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {ours} of {folder.name} do not die")
        seen |= set(ours)
        send(ours, signal.SIGKILL)
        time.sleep(0.02)
    return len(seen)


def look(folder: Path) -> Document:
    """What is known of the attempt: its state document, `{"state": "absent"}`, or `{"state": "unstarted"}` when it was
    ordered and no runner has it. When its runner died, ends what is left of the job and records that, once."""
    if not (folder / "order.json").exists():
        return {"state": "absent"}
    lock = take_lock(folder, 0)
    if lock is None:
        return read_document(folder / "state.json") or {"state": "starting"}
    try:
        try:
            state = read_document(folder / "state.json")
        except ValueError:  # a power cut may leave it damaged; its runner is dead in any case
            state = {"attempt_id": folder.name, "state": "running", "checkpoints": []}
        if state is None:
            return {"state": "unstarted"}
        return state if state["state"] == "ended" else bury(folder, state)
    finally:
        os.close(lock)


def bury(folder: Path, state: Document) -> Document:
    """Ends an attempt whose runner is dead. The caller holds its lock."""
    killed = kill_leftovers(folder, state)
    remove_cgroup(state.get("cgroup", ""))
    rebooted = state.get("boot_id", boot_id()) != boot_id()
    state.update(
        state="ended",
        end_reason="node-lost" if rebooted else "runner-lost",
        ended_at=now_text() if killed else state.get("heartbeat_at", now_text()),
        message="the node restarted under the job"
        if rebooted
        else f"the runner died; {killed} leftover processes ended",
    )
    write_ended(folder, state)
    return state


# ---------------------------------------------------------------- memory limit


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


# ---------------------------------------------------------------- log


class Log:
    """The job's output as it comes. A line over `line_limit` bytes is cut, the whole at `total_limit`; both say so.

    The last TAIL_BYTES reach the file even then, because that is where errors stand.
    """

    def __init__(self, path: Path, line_limit: int, total_limit: int) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._line_limit, self._total_limit = line_limit, total_limit
        self._line_bytes = self._cut_bytes = self._dropped_bytes = self.written_bytes = 0
        self.tail = b""

    def feed(self, chunk: bytes) -> None:
        """Takes output of any form. OSError when the disk refuses it; the rest of the chunk is then lost."""
        self.tail = chunk[-TAIL_BYTES:] if len(chunk) >= TAIL_BYTES else (self.tail + chunk)[-TAIL_BYTES:]
        if not self._cut_bytes and self._line_bytes + len(chunk) <= self._line_limit:
            self._line_bytes = min(
                self._line_bytes + len(chunk), len(chunk) - 1 - max(chunk.rfind(b"\n"), chunk.rfind(b"\r"))
            )
            self._write(chunk)
            return
        kept: list[bytes] = []
        for line in chunk.splitlines(keepends=True):  # at newlines, and at the carriage returns of progress bars
            text = line.rstrip(b"\r\n")
            room = min(self._line_limit - self._line_bytes, len(text))
            kept.append(text[:room])
            self._line_bytes += room
            self._cut_bytes += len(text) - room
            if len(text) < len(line):
                kept.append(self._end_of_cut() + line[len(text) :])
                self._line_bytes = 0
        self._write(b"".join(kept))

    def close(self) -> None:
        self._write(self._end_of_cut())
        if self._dropped_bytes:
            lost = max(0, self._dropped_bytes - len(self.tail))
            note = f"\n[... cut {lost} bytes: the log reached its limit of {self._total_limit} bytes]\n".encode()
            self._put(note + self.tail[-self._dropped_bytes :])
        os.close(self._file)

    def _end_of_cut(self) -> bytes:
        marker = f"[... cut {self._cut_bytes} bytes]".encode() if self._cut_bytes else b""
        self._cut_bytes = 0
        return marker

    def _write(self, data: bytes) -> None:
        room = max(0, self._total_limit - self.written_bytes)
        self._dropped_bytes += max(0, len(data) - room)
        self._put(data[:room])

    def _put(self, data: bytes) -> None:
        while data:
            written = os.write(self._file, data)
            self.written_bytes += written
            data = data[written:]


# ---------------------------------------------------------------- samples


class Nvml:
    """NVIDIA's management library by ctypes. OSError when the node has none or no driver answers.

    Source: NVML API reference, nvmlDeviceGetUtilizationRates, nvmlDeviceGetMemoryInfo, nvmlDeviceGetTemperature.
    """

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

    def measure(self, index: int) -> dict[str, float]:
        """Utilisation in percent, memory in bytes, temperature in °C; a figure the card does not give is left out."""
        handle, found = self._handle(index), {"index": float(index)}
        rates, memory, celsius = (ctypes.c_uint * 2)(), (ctypes.c_ulonglong * 3)(), ctypes.c_uint()
        if not self._nvml.nvmlDeviceGetUtilizationRates(handle, rates):
            found["utilization_percent"] = float(rates[0])
        if not self._nvml.nvmlDeviceGetMemoryInfo(handle, memory):
            found["memory_total_bytes"], found["memory_used_bytes"] = float(memory[0]), float(memory[2])
        if not self._nvml.nvmlDeviceGetTemperature(handle, 0, ctypes.byref(celsius)):
            found["temperature_celsius"] = float(celsius.value)
        return found

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


# ---------------------------------------------------------------- checkpoints


class Checkpoints:
    """Finds complete checkpoints: subfolders whose manifest.json lists files that are all there, each hashed once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._judged: dict[str, tuple[object, Document | None]] = {}

    def newest(self) -> Document | None:
        """The complete checkpoint with the highest step; older ones are not hashed unless the newer are damaged."""
        candidates = ((self._read(path), path) for path in self._folders())
        by_step = sorted(((found[0]["step"], path) for found, path in candidates if found), reverse=True)
        return next((found for _, path in by_step if (found := self._judge(path))), None)

    def scan(self) -> list[Document]:
        """Every complete checkpoint in order of step."""
        found = [checkpoint for path in self._folders() if (checkpoint := self._judge(path))]
        return sorted(found, key=lambda checkpoint: (checkpoint["step"], checkpoint["path"]))

    def _folders(self) -> list[Path]:
        try:
            entries = list(self._folder.iterdir())
        except FileNotFoundError:
            return []
        return [path for path in entries if path.is_dir() and not path.is_symlink() and not path.name.startswith(".")]

    def _judge(self, path: Path) -> Document | None:
        read = self._read(path)
        if read is None:
            return None
        manifest, signature = read
        if self._judged.get(path.name, (None,))[0] != signature:
            good = all(sha256(path / file["path"]) == file["sha256"] for file in manifest["files"])
            size = sum(file["bytes"] for file in manifest["files"])
            found = {"step": manifest["step"], "path": str(path), "size_bytes": size, "metrics": manifest["metrics"]}
            self._judged[path.name] = (signature, found if good else None)
        return self._judged[path.name][1]

    def _read(self, path: Path) -> tuple[Document, object] | None:
        """The manifest and a signature of what it lists; None while anything is missing, short or malformed."""
        try:
            manifest = read_document(path / "manifest.json")
            if manifest is None or type(manifest["step"]) is not int or not manifest["files"]:
                return None
            if isinstance(manifest["files"], dict):  # {path: {sha256, bytes}} says the same
                manifest["files"] = [{"path": path, **about} for path, about in manifest["files"].items()]
            signature: list[object] = [(path / "manifest.json").stat().st_mtime_ns]
            for file in manifest["files"]:
                inside = Path(file["path"])
                about = (path / inside).stat()
                if inside.is_absolute() or ".." in inside.parts or about.st_size != file["bytes"]:
                    return None
                signature.append((file["path"], file["sha256"], about.st_size, about.st_mtime_ns))
            numbers = (manifest.get("metrics") or {}).items()
            manifest["metrics"] = {str(k): float(v) for k, v in numbers if isinstance(v, (int, float)) and v - v == 0}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # half-written or not a manifest of ours
            return None
        return manifest, signature


def sha256(path: Path) -> str:
    import hashlib  # noqa: PLC0415 (it brings OpenSSL along: 4 MiB that a job without checkpoints need not pay)

    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:  # removed while we read it: not complete
        return ""
    return digest.hexdigest()


# ---------------------------------------------------------------- the job


def job_environment(order: Document, folder: Path, resume_from: str) -> dict[str, str]:
    """A clean environment: the few variables kept, what the order sets, and ours, which win."""
    env = {name: value for name, value in os.environ.items() if name in KEPT_ENV or name.startswith("LC_")}
    env["PYTHONUNBUFFERED"] = "1"  # without it a Python job's log lags behind by kilobytes
    env.update(order["env"])
    env.update(
        GROUND_RUN_ID=order["run_id"],
        GROUND_ATTEMPT=str(order["number"]),
        GROUND_ATTEMPT_ID=folder.name,
        GROUND_ATTEMPT_DIR=str(folder),
        GROUND_CHECKPOINT_DIR=order["checkpoint_dir"],
        GROUND_OUTPUT_DIR=order["output_dir"],
        GROUND_RESUME_FROM=resume_from,
        CUDA_DEVICE_ORDER="PCI_BUS_ID",  # the numbering NVML uses
        CUDA_VISIBLE_DEVICES=",".join(map(str, order.get("accelerator_indexes", []))),
    )
    return env


def become_job(order: Document, workdir: str, env: dict[str, str], cgroup: str, output: int, report: int) -> None:
    """In the forked child: its own session, limits and pipes, then the command. Reports over `report` what failed."""
    stage = "start"
    try:
        os.setsid()
        libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # no runner, no job: nobody would enforce its limits
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # when the node runs out of memory, the job goes before its runner
            Path("/proc/self/oom_score_adj").write_text("500")
        stage = "cgroup"
        if cgroup:
            (Path(cgroup) / "cgroup.procs").write_text("0")
        stage = "workdir"
        os.chdir(workdir)
        stage = "command"
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvpe(order["command"][0], order["command"], env)  # noqa: S606 (the job's own argv)
    except OSError as error:
        os.write(report, json.dumps([stage, error.errno, error.strerror]).encode())
    finally:
        os._exit(127)


def libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


class StartFailed(Exception):
    """The command could not be started: the end reason and a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Runner:
    """One attempt from its order to its ended state. The caller holds the attempt's lock."""

    def __init__(self, folder: Path, order: Document, state: Document) -> None:
        self.folder, self.order, self.state = folder, order, state
        self.workdir = order["workdir"] or str(folder / "work")
        self.grace_s, self.memory_bytes = float(order["stop_grace_s"]), int(order["memory_bytes"])
        self.sample_period_s = order.get("sample_period_s") or 2.0
        # Limits are counted on clocks nobody can set. A suspended node's time counts for dates, not for silence.
        self.end_at = boot_s() + parse_time(order["not_after"]) - time.time()
        self.duration_end_at = boot_s() + order["max_duration_s"]
        self.active_at = self.beat_at = time.monotonic()
        self.beat: bytes | None = None
        self.pid = 0
        self.status: int | None = None
        self.childless = False
        self.stop_reason = self.stop_message = ""
        self.kill_at = float("inf")
        self.cgroup = ""
        self.oom_kills_before = self.peak_bytes = 0
        accelerators = order.get("accelerator_indexes") or []
        self.sampler = Sampler(str(folder), accelerators, order.get("nvml_library") or NVML_LIBRARY)
        self.checkpoints = Checkpoints(Path(order["checkpoint_dir"]))
        self.found: list[Document] = []
        self.closing = threading.Event()
        self.scanner = threading.Thread(target=self.scan_checkpoints, daemon=True)
        limits = order.get("log_line_limit_bytes") or 2**16, order.get("log_limit_bytes") or 2**30
        self.log = Log(folder / "log", *limits)
        self.log_broken = False
        self.output = self.woken = -1

    def run(self) -> None:
        """Runs the attempt to its end. Whatever happens, no process of the job and no unended state stays behind."""
        self.woken, wakeup = os.pipe()
        for end in (self.woken, wakeup):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda got, _: self.stop("killed", f"the runner got {signal.Signals(got).name}"))
        libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        try:
            self.enforce()
            with self.full_disk_ends_it():
                (self.folder / "reserve").write_bytes(b"\0" * RESERVE_BYTES)  # room for the last words on a full disk
                if not self.stop_reason:
                    self.launch()
            self.watch()
        except StartFailed as failure:
            self.stop_reason, self.stop_message = failure.reason, str(failure)
        except Exception as error:
            self.stop_reason, self.stop_message = "runner-lost", f"the runner failed: {error!r}"
            raise
        finally:
            self.finish()

    @contextlib.contextmanager
    def full_disk_ends_it(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in FULL_DISK:
                raise
            self.stop("disk-full", f"the node's disk is full: {error.strerror}")

    # ---- start

    def launch(self) -> None:
        """Starts the command; returns once it runs. StartFailed when it can't."""
        for wanted in (self.order["checkpoint_dir"], self.order["output_dir"], str(self.folder / "work")):
            Path(wanted).mkdir(parents=True, exist_ok=True)
        resume = self.checkpoints.newest()
        self.found = [resume] if resume else []
        self.state["resumed_from_step"] = resume["step"] if resume else None
        if self.memory_bytes:
            self.cgroup = make_cgroup(f"ground-{self.folder.name}-{os.getpid()}", self.memory_bytes)
        self.oom_kills_before = oom_kills(self.cgroup)
        env = job_environment(self.order, self.folder, resume["path"] if resume else "")
        problem = self.fork(env)
        if problem and problem[0] == "cgroup":
            remove_cgroup(self.cgroup)
            self.cgroup = ""
            problem = self.fork(env)
        if problem:
            raise start_failed(problem, self.order["command"][0], self.workdir)
        self.duration_end_at = boot_s() + self.order["max_duration_s"]
        self.active_at = time.monotonic()
        ticks, limit = start_ticks(self.pid), "cgroup" if self.cgroup else "watched" if self.memory_bytes else "none"
        self.state.update(state="running", pid=self.pid, pgid=self.pid, start_ticks=ticks, started_at=now_text())
        self.state.update(cgroup=self.cgroup, memory_limit=limit, checkpoints=self.found, heartbeat_at=now_text())
        write_document(self.folder / "state.json", self.state)
        self.scanner.start()

    def fork(self, env: dict[str, str]) -> list[Any]:
        """Forks the job; [] when its command runs, [stage, errno, text] when it can't."""
        if self.output >= 0:
            os.close(self.output)
        self.output, output_end = os.pipe()
        report, report_end = os.pipe()
        os.set_blocking(self.output, False)
        with contextlib.suppress(OSError):  # a fast job waits less on a larger pipe; the node may not allow it
            fcntl.fcntl(self.output, F_SETPIPE_SZ, 2**20)
        pid = os.fork()
        if pid == 0:
            become_job(self.order, self.workdir, env, self.cgroup, output_end, report_end)
        os.close(output_end)
        os.close(report_end)
        with os.fdopen(report, "rb") as pipe:  # it closes when the command is executed
            said = pipe.read()
        self.pid = 0 if said else pid
        return json.loads(said) if said else []

    def scan_checkpoints(self) -> None:
        """A thread of its own: hashing must not hold up the log. Yields the CPU to the job."""
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
        while not self.closing.wait(self.sample_period_s):
            self.found = self.checkpoints.scan()

    # ---- while it runs

    def watch(self) -> None:
        """Pumps output and keeps the limits until the command has ended."""
        poller = select.poll()
        for source in (self.output, self.woken):
            if source >= 0:
                poller.register(source, select.POLLIN)
        check_at, sample_at = time.monotonic(), time.monotonic() + min(0.5, self.sample_period_s)
        while self.pid and self.status is None:
            wait_s = min(check_at, sample_at, self.kill_at) - time.monotonic()
            for source, _ in poller.poll(max(0.0, wait_s) * 1000 + 1):
                if source == self.woken:
                    os.read(self.woken, 4096)
                elif not self.pump():
                    poller.unregister(source)
            self.reap()
            now = time.monotonic()
            if now >= self.kill_at:
                send(descendants(os.getpid()), signal.SIGKILL)
                self.kill_at = now + 0.1
            if now >= check_at:
                self.enforce()
                check_at = now + CHECK_PERIOD_S
            if now >= sample_at:
                with self.full_disk_ends_it():
                    self.measure()
                sample_at = now + self.sample_period_s

    def pump(self) -> bool:
        """Moves what the pipe holds into the log; False once every writer is gone."""
        for _ in range(8):
            try:
                chunk = os.read(self.output, 2**18)
            except BlockingIOError:
                return True
            if not chunk:
                return False
            self.active_at = time.monotonic()
            self.state["last_log_at"] = now_text()
            if not self.log_broken:
                self.log_broken = True
                with self.full_disk_ends_it():
                    self.log.feed(chunk)
                    self.log_broken = False
        return True

    def reap(self) -> None:
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            if pid == 0:
                return
            self.peak_bytes = max(self.peak_bytes, usage.ru_maxrss * 1024)
            if pid == self.pid:
                self.status = status

    def enforce(self) -> None:
        """Asks the job to end when its order, its limits or the silence of the control plane say so."""
        order, now_s = self.order, time.monotonic()
        try:
            wish = read_document(self.folder / "stop")
        except ValueError:
            wish = {}
        if wish is not None:
            self.stop(str(wish.get("reason") or "stopped-by-user"), str(wish.get("message") or ""))
        if boot_s() >= self.end_at:
            self.stop("end-date", f"the end date {order['not_after']} is reached")
        if boot_s() >= self.duration_end_at:
            self.stop("max-duration", f"it ran for the {order['max_duration_s']:g} s it may")
        idle_limit_s, gone_limit_s = order["idle_limit_s"], order["control_plane_gone_limit_s"]
        if idle_limit_s is not None and now_s - self.active_at >= idle_limit_s:
            self.stop("idle", f"no output and no work for {idle_limit_s:g} s")
        if gone_limit_s is not None:
            with contextlib.suppress(FileNotFoundError):
                beat = Path(order["beat_path"]).read_bytes()
                if beat != self.beat:  # its content counts: file times move with the wall clock
                    self.beat, self.beat_at = beat, now_s
            if now_s - self.beat_at >= gone_limit_s:
                self.stop("control-plane-gone", f"the control plane was silent for {gone_limit_s:g} s")
        if self.memory_bytes and not self.cgroup and self.pid:
            pids = descendants(os.getpid())
            stats = [stat for stat in map(process_stat, pids) if stat is not None]
            resident = sum(int(stat[21]) for stat in stats) * os.sysconf("SC_PAGE_SIZE")
            if resident > self.memory_bytes and (used := private_bytes(pids)) > self.memory_bytes:
                self.stop("out-of-memory", f"it used {used} bytes of the {self.memory_bytes} it may", grace_s=0)

    def stop(self, reason: str, message: str, grace_s: float | None = None) -> None:
        """SIGTERM now, SIGKILL after the grace. The first reason stays."""
        if self.stop_reason or self.status is not None:
            return
        self.stop_reason, self.stop_message = reason, message
        self.kill_at = time.monotonic() + (self.grace_s if grace_s is None else grace_s)
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGTERM if self.kill_at > time.monotonic() else signal.SIGKILL)

    def measure(self) -> None:
        """One line of samples.jsonl, and a heartbeat."""
        sample = self.sampler.take()
        busy = [card.get("utilization_percent", 0) for card in sample["accelerators"]]
        if max([sample["cpu_percent"], *busy]) >= (self.order.get("idle_percent") or 2.0):
            self.active_at = time.monotonic()
        self.state.update(sample=sample, heartbeat_at=now_text(), checkpoints=self.found[-REPORTED_CHECKPOINTS:])
        path = self.folder / "samples.jsonl"
        with path.open("ab") as file:
            file.write(json.dumps(sample).encode() + b"\n")
        if path.stat().st_size > SAMPLES_LIMIT_BYTES:
            path.replace(path.with_suffix(".jsonl.1"))
        write_document(self.folder / "state.json", self.state, durable=False)

    # ---- end

    def finish(self) -> None:
        """Every process gone, the log whole, the last checkpoint found, the ending on record: in this order."""
        self.clear()
        if not self.log_broken:
            with self.full_disk_ends_it():
                self.log.close()
        self.closing.set()
        if self.scanner.is_alive():
            self.scanner.join()
            self.found = self.checkpoints.scan()
        reason, exit_code, message = self.judge()
        remove_cgroup(self.cgroup)
        self.state.update(state="ended", ended_at=now_text(), heartbeat_at=now_text(), end_reason=reason)
        self.state.update(exit_code=exit_code, message=message, checkpoints=self.found[-REPORTED_CHECKPOINTS:])
        write_ended(self.folder, self.state)

    def clear(self) -> None:
        """Ends what the command left behind, even what moved to another session; the rest of the output is read."""
        kill_at = time.monotonic() + (0 if self.stop_reason else min(self.grace_s, STRAGGLER_GRACE_S))
        self.reap()
        if not self.childless:
            send(descendants(os.getpid()), signal.SIGTERM)
        while not self.childless:
            if self.output >= 0:
                self.pump()
            if time.monotonic() >= kill_at:
                send(descendants(os.getpid()), signal.SIGKILL)
            select.select([self.woken], [], [], 0.02)
            with contextlib.suppress(BlockingIOError):
                os.read(self.woken, 4096)
            self.reap()
        deadline = time.monotonic() + STRAGGLER_GRACE_S
        while self.output >= 0 and time.monotonic() < deadline and select.select([self.output], [], [], 0)[0]:
            if not self.pump():
                break

    def judge(self) -> tuple[str, int | None, str]:
        """(end reason, exit code, message) from what we asked for, the exit status, the kernel and the last words."""
        code = None if self.status is None else os.WEXITSTATUS(self.status)
        signalled = os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else 0
        if signalled:
            code = 128 + signalled  # as shells count
        elif code in (128 + signal.SIGKILL, 128 + signal.SIGTERM):
            signalled = code - 128  # a shell reports its child's death so
        if self.stop_reason:
            return self.stop_reason, code, self.stop_message
        if code == 0:
            return "succeeded", 0, ""
        short_of_memory = oom_kills(self.cgroup) > self.oom_kills_before
        if short_of_memory and self.cgroup:
            return "out-of-memory", code, f"the kernel ended it at its limit of {self.memory_bytes} bytes"
        # The node's count covers everybody: it means this job only when the job was a large part of the node.
        if short_of_memory and signalled == signal.SIGKILL and self.peak_bytes > node_memory_bytes() / 4:
            return (
                "out-of-memory",
                code,
                f"the node ran out of memory; one process of the job held {self.peak_bytes} bytes",
            )
        if any(words in self.log.tail for words in FULL_DISK_WORDS):
            return "disk-full", code, f"it exited with status {code} and said: No space left on device"
        if signalled:
            return "killed", code, f"{signal.Signals(signalled).name} from outside ended it"
        if code == 127:
            return "command-not-found", code, "the shell did not find a program (exit status 127)"
        return "command-failed", code, f"it exited with status {code}"


def start_failed(problem: list[Any], program: str, workdir: str) -> StartFailed:
    stage, number, text = problem
    if stage == "workdir":
        return StartFailed("command-not-found", f"the working folder {workdir} can't be entered: {text}")
    if stage == "command" and number in (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.EISDIR):
        return StartFailed("command-not-found", f"{program} can't be executed: {text}")
    return StartFailed("start-failed", f"{program} could not be started ({stage}): {text}")


def write_ended(folder: Path, state: Document, patience_s: float = 10.0) -> None:
    """Writes the last state, on a full disk too: its room was set aside at the start."""
    (folder / "reserve").unlink(missing_ok=True)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return write_document(folder / "state.json", state)
        except OSError as error:
            if error.errno not in FULL_DISK or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def boot_s() -> float:
    """Seconds since boot, suspended time included; nobody can set it back."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def parse_time(text: str) -> float:
    return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()


# ---------------------------------------------------------------- the node


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
    }


# ---------------------------------------------------------------- doors


def attempt(folder: Path, on_record: Callable[[], object]) -> None:
    """Runs the attempt unless another runner has it or had it; calls `on_record` once that is decided and durable."""
    lock = take_lock(folder, 1.0)
    if lock is None:
        on_record()
        return
    state = read_document(folder / "state.json")
    if state is not None:
        if state["state"] != "ended":
            bury(folder, state)  # started before: running it again could double what it did
        on_record()
        return
    state = {"attempt_id": folder.name, "state": "starting", "runner_pid": os.getpid(), "boot_id": boot_id()}
    state.update(folder=str(folder), checkpoints=[], heartbeat_at=now_text())
    write_document(folder / "state.json", state)
    on_record()
    try:
        runner = Runner(folder, read_document(folder / "order.json") or {}, state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        full = isinstance(error, OSError) and error.errno in FULL_DISK
        state.update(
            end_reason="disk-full" if full else "start-failed", message=f"its order can't be obeyed: {error!r}"
        )
        state.update(state="ended", ended_at=now_text())
        write_ended(folder, state)
        return
    runner.run()


def detach(folder: Path) -> int:
    """Forks a runner into a session of its own; returns 0 once the attempt is on record, 1 when it could not be."""
    ready, ready_end = os.pipe()
    if os.fork():
        os.close(ready_end)
        return 0 if os.read(ready, 1) else 1
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)

    def on_record() -> None:
        os.dup2(os.open(folder / "runner.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
        os.write(ready_end, b"1")
        os.close(ready_end)

    attempt(folder, on_record)
    return 0


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--facts"] and len(arguments) in (2, 3):
        sys.stdout.write(json.dumps(facts(Path(arguments[1]), *arguments[2:])) + "\n")
    elif arguments[:1] == ["--look"]:
        for folder in arguments[1:]:
            try:
                found = look(Path(folder).resolve())
            except (OSError, ValueError) as error:  # unreadable, or processes that don't die: not known, so not claimed
                found = {"state": "unknown", "message": str(error)}
            sys.stdout.write(json.dumps(found) + "\n")
    elif arguments[:1] == ["--detach"] and len(arguments) == 2:
        return detach(Path(arguments[1]).resolve())
    elif len(arguments) == 1 and not arguments[0].startswith("-"):
        attempt(Path(arguments[0]).resolve(), lambda: None)
    else:
        sys.stderr.write(f"error: can't read {arguments}\nhint: {(__doc__ or '').strip()}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
