"""One attempt from its order to its ended state."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import threading
import time
from pathlib import Path

from groundplane.runner import dev, preflight
from groundplane.runner.cgroups import cgroup_version, make_cgroups, oom_kills, remove_cgroup
from groundplane.runner.checkpoints import Checkpoints
from groundplane.runner.endings import FULL_DISK, write_ended
from groundplane.runner.energy import EnergyMeter
from groundplane.runner.files import boot_s, now_text, parse_time, read_document, write_document
from groundplane.runner.hang import HangWatch
from groundplane.runner.isolation import NotPossible, Sandbox
from groundplane.runner.job import StartFailed, become_job, job_environment, libc, start_failed
from groundplane.runner.log import Log
from groundplane.runner.node import node_memory_bytes
from groundplane.runner.processes import descendants, process_stat, send, start_ticks
from groundplane.runner.samples import NVML_LIBRARY, Sampler, private_bytes
from groundplane.runner.spot import METADATA_URL, SpotWatch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from groundplane.runner.circumstances import Look
    from groundplane.runner.files import Document
    from groundplane.runner.staging import Staging

CHECK_PERIOD_S = 0.25
STRAGGLER_GRACE_S = 2.0
SPOT_MARGIN_S = 2.0
LAST_LOOK_S = 1800.0
"""For the hashes of the last checkpoints: 1 TB at 600 MB/s, each file once."""
SAMPLES_LIMIT_BYTES = 4 * 2**20
RESERVE_BYTES = 64 * 2**10
REPORTED_CHECKPOINTS = 100
FULL_DISK_WORDS = (b"No space left on device", b"Disk quota exceeded")
PR_SET_CHILD_SUBREAPER, F_SETPIPE_SZ = 36, 1031


class Runner:
    """One attempt from its order to its ended state. The caller holds the attempt's lock."""

    def __init__(self, folder: Path, order: Document, state: Document) -> None:
        self.folder, self.order, self.state = folder, order, state
        if order.get("dev"):
            order["command"] = dev.command(order, folder)
        self.dev_activity = 0
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
        self.cgroups: dict[str, str] = {}
        self.sandbox = Sandbox(folder, order, self.workdir)
        self.abandoned: list[int] = []
        self.staging: Staging | None = None
        self.oom_kills_before = self.peak_bytes = 0
        accelerators = order.get("accelerator_indexes") or []
        self.sampler = Sampler(str(folder), accelerators, order.get("nvml_library") or NVML_LIBRARY)
        self.energy = EnergyMeter(self.sampler)
        self.look: Look | None = None
        self.last_look_until = float("inf")
        self.checkpoints = Checkpoints(Path(order["checkpoint_dir"]), lambda: time.monotonic() > self.last_look_until)
        self.found: list[Document] = []
        self.hang = HangWatch(order, folder)
        self.spot = SpotWatch(order.get("spot_metadata_url") or METADATA_URL) if order.get("spot") else None
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
                    self.prepare()
                if not self.stop_reason:
                    self.preflight()
                if not self.stop_reason:
                    self.stage()
                if not self.stop_reason:
                    self.see_circumstances()
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

    def prepare(self) -> None:
        """Makes the attempt's folders, and walls around it. StartFailed when this node can't."""
        (self.folder / "work").mkdir(exist_ok=True)
        share = self.order.get("checkpoint_share") or ""
        for wanted in (self.order["checkpoint_dir"], self.order["output_dir"]):
            try:  # a share that is not mounted must not be made on the node's own disk
                Path(wanted).mkdir(exist_ok=True, parents=not (share and wanted.startswith(share)))
            except OSError as error:
                if not self.order.get("preflight"):  # else that says what is wrong with it, in better words
                    if error.errno in FULL_DISK:
                        raise
                    raise StartFailed("start-failed", f"{wanted} can't be made: {error.strerror}") from None
        try:
            self.sandbox.prepare()
        except NotPossible as error:
            raise StartFailed("start-failed", f"isolation {self.sandbox.mode} is not possible here: {error}") from None
        if self.sandbox.secrets_dir or self.sandbox.container:
            self.state.update(secrets_dir=self.sandbox.secrets_dir, container=self.sandbox.container)
            write_document(self.folder / "state.json", self.state)
            write_document(self.folder / "order.json", self.order)  # secrets are out of it now
        if self.order.get("observe"):
            # Most jobs leave no model behind: they need not pay for its libraries, nor for the look.
            from groundplane.runner.circumstances import Look  # noqa: PLC0415

            self.look = Look(self.order, self.folder, self.sandbox, self.workdir)
            self.abandoned = [*self.abandoned, *self.look.pids]

    def preflight(self) -> None:
        """The order's checks on this node, before the first paid second; a failed one ends the attempt unrun."""
        if not self.order.get("preflight"):
            return
        inspection = preflight.Inspection(self.order, self.folder, self.sandbox.enter)
        self.abandoned = [*self.abandoned, *inspection.pids]
        while not self.stop_reason and not inspection.collect(CHECK_PERIOD_S):
            self.enforce()
        found = inspection.close()
        self.state.update(preflight=found, heartbeat_at=now_text())
        reason, message = preflight.verdict(found)
        if reason and not self.stop_reason:
            self.stop_reason, self.stop_message = reason, message

    def stage(self) -> None:
        """The order's data on this node's own disk, verified; what can't be had ends the attempt unrun."""
        if not self.order.get("staging"):
            return
        # Its libraries cost every job's start 30 ms: most jobs stage nothing.
        from groundplane.runner.staging import Staging, environment  # noqa: PLC0415

        checked = self.state.pop("preflight", [])  # told with what staging finds, as one answer
        self.duration_end_at = float("inf")  # the job's time begins when it does
        self.staging = staging = Staging(self.order, self.folder, self.sandbox)
        while not self.stop_reason and not staging.collect(CHECK_PERIOD_S):
            self.active_at = time.monotonic()
            self.enforce()
            self.state.update(staging=staging.progress, heartbeat_at=now_text())
            write_document(self.folder / "state.json", self.state, durable=False)
        staging.close()
        self.state.update(preflight=[*checked, *staging.results], staging=staging.progress)
        if staging.wrong and not self.stop_reason:
            self.stop_reason, self.stop_message = staging.wrong["reason"], staging.wrong["message"]
        self.sandbox.staged = str(staging.tree)
        self.order["env"] = {**self.order["env"], **environment(self.order, staging.tree)}

    def see_circumstances(self) -> None:
        """Writes down what is around the job, before its command can change it. The look began with the folders."""
        if self.look is None:
            return
        while not self.stop_reason and not self.look.collect(CHECK_PERIOD_S):
            self.enforce()
        write_document(self.folder / "circumstances.json", self.look.close())
        self.look = None

    def launch(self) -> None:
        """Starts the command; returns once it runs. StartFailed when it can't."""
        resume = self.checkpoints.newest()
        self.found = [resume] if resume else []
        self.state["resumed_from_step"] = resume["step"] if resume else None
        limits = {"memory": self.memory_bytes, "cpu": self.order["cpus"], "pids": self.order.get("pids_limit") or 0}
        if not self.sandbox.container:  # podman makes its own
            self.cgroups = make_cgroups(f"ground-{self.folder.name}-{os.getpid()}", limits)
        self.oom_kills_before = oom_kills(self.cgroup)
        env = job_environment(self.order, self.folder, resume["path"] if resume else "", self.sandbox)
        problem = self.fork(env)
        if problem and problem[0] == "cgroup":
            self.drop_cgroups()
            problem = self.fork(env)
        if problem:
            raise start_failed(problem, self.order["command"][0], self.workdir)
        self.duration_end_at = boot_s() + self.order["max_duration_s"]
        self.active_at = time.monotonic()
        self.energy.begin()
        self.hang.begin()
        self.state.update(state="running", pid=self.pid, pgid=self.pid, start_ticks=start_ticks(self.pid))
        self.state.update(started_at=now_text(), isolation=self.sandbox.mode, uid=self.sandbox.uid)
        self.state.update(cgroup=self.cgroup, cgroups=self.cgroups, limits=self.kept_by(limits))
        self.state.update(checkpoints=self.found, heartbeat_at=now_text())
        write_document(self.folder / "state.json", self.state)
        self.scanner.start()
        if self.spot is not None:
            self.spot.start()

    @property
    def cgroup(self) -> str:
        """The folder that limits memory; "" without one."""
        return self.cgroups.get("memory", "")

    def drop_cgroups(self) -> None:
        for folder in dict.fromkeys(self.cgroups.values()):
            remove_cgroup(folder)
        self.cgroups = {}

    def kept_by(self, limits: dict[str, float]) -> dict[str, str]:
        """Who keeps each limit: the kernel (`cgroup2`, `cgroup1`), podman, the runner (`watched`), nobody (`none`)."""
        found = {}
        for name, limit in limits.items():
            if limit and name in self.cgroups:
                found[name] = f"cgroup{cgroup_version(self.cgroups[name])}"
            elif limit and self.sandbox.container:
                found[name] = "podman"
            else:
                found[name] = "watched" if limit and name == "memory" else "none"
        return found

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
            become_job(self.sandbox, env, list(self.cgroups.values()), output_end, report_end)
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
            self.hang.output()
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
            reason = str(wish.get("reason") or "stopped-by-user")
            self.stop(reason, str(wish.get("message") or ""), grace_s=0 if reason == "test-kill" else None)
        if self.spot is not None and self.spot.notice is not None:
            left_s = self.spot.notice["left_s"]
            grace_s = self.grace_s if left_s is None else max(0.0, min(self.grace_s, left_s - SPOT_MARGIN_S))
            self.stop("spot-reclaimed", self.spot.notice["text"], grace_s=grace_s)
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
        if self.memory_bytes and not self.cgroup and not self.sandbox.container and self.pid:
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
            self.signal_job(signal.SIGTERM if self.kill_at > time.monotonic() else signal.SIGKILL)

    def signal_job(self, number: int) -> None:
        """To the job's process group; a sandbox's own program would die of SIGTERM first and take the job with it."""
        if self.sandbox.mode == "bubblewrap" and number != signal.SIGKILL:
            send([pid for pid in descendants(os.getpid()) if pid != self.pid], number)
        elif self.sandbox.container:
            send([self.pid], number)  # podman hands it on
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def measure(self) -> None:
        """One line of samples.jsonl, and a heartbeat."""
        sample = self.sampler.take()
        busy = [card.get("utilization_percent", 0) for card in sample["accelerators"]]
        if max([sample["cpu_percent"], *busy]) >= (self.order.get("idle_percent") or 2.0):
            self.active_at = time.monotonic()
        if self.order.get("dev") and dev.last_activity(self.folder) != self.dev_activity:
            self.dev_activity, self.active_at = dev.last_activity(self.folder), time.monotonic()
        if not self.stop_reason:  # what a job says when it is told to go is no progress: its hang stays on record
            self.hang.sampled(sample["accelerators"], self.found[-1]["step"] if self.found else -1)
        idle_s = time.monotonic() - self.active_at
        self.state.update(hang=self.hang.found, active_at=now_text(time.time() - idle_s))
        self.state.update(energy=self.energy.sampled(sample))
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
        if self.look is not None:
            self.look.close()
        self.clear()
        if not self.log_broken:
            with self.full_disk_ends_it():
                self.log.close()
        self.closing.set()
        # What a job leaves may be a file without an end: the attempt has one.
        self.last_look_until = time.monotonic() + LAST_LOOK_S
        if self.spot is not None:
            self.spot.close()
        if self.scanner.is_alive():
            self.scanner.join()
            self.found = self.checkpoints.scan()
        reason, exit_code, message = self.judge()
        self.sandbox.close()
        self.drop_cgroups()
        if self.staging:
            self.staging.let_go()
        self.state.update(state="ended", ended_at=now_text(), heartbeat_at=now_text(), end_reason=reason)
        self.state.update(exit_code=exit_code, message=message, checkpoints=self.found[-REPORTED_CHECKPOINTS:])
        write_ended(self.folder, self.state)

    def clear(self) -> None:
        """Ends what the command left behind, even what moved to another session; the rest of the output is read."""
        kill_at = time.monotonic() + (0 if self.stop_reason else min(self.grace_s, STRAGGLER_GRACE_S))
        self.reap()
        if not self.childless:
            send(self.left(), signal.SIGTERM)
        while not self.childless and (left := self.left()):
            if self.output >= 0:
                self.pump()
            if time.monotonic() >= kill_at:
                send(left, signal.SIGKILL)
            select.select([self.woken], [], [], 0.02)
            with contextlib.suppress(BlockingIOError):
                os.read(self.woken, 4096)
            self.reap()
        deadline = time.monotonic() + STRAGGLER_GRACE_S
        while self.output >= 0 and time.monotonic() < deadline and select.select([self.output], [], [], 0)[0]:
            if not self.pump():
                break

    def left(self) -> list[int]:
        """Processes below this one, without killed checks that hang in the kernel: nobody can wait for those."""
        return [pid for pid in descendants(os.getpid()) if pid not in self.abandoned]

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
        wall = self.sandbox.trouble(code, self.log.tail)
        if wall:
            return wall[0], code, wall[1]
        short_of_memory = oom_kills(self.cgroup) > self.oom_kills_before
        if short_of_memory and (self.cgroup or (self.sandbox.container and signalled == signal.SIGKILL)):
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
            return "killed", code, f"{signal_name(signalled)} from outside ended it"
        if code == 127:
            return "command-not-found", code, "the shell did not find a program (exit status 127)"
        return "command-failed", code, f"it exited with status {code}"


def signal_name(number: int) -> str:
    """`SIGSEGV`; a real-time signal between the first and the last has only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
