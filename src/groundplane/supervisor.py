"""What keeps an installation up: it starts the control plane and the gateway, restarts what crashes, and drains both.

    python -m groundplane.supervisor [--attached] [--no-gateway]

It holds the home's lock and nothing else of value: killed outright, it leaves its children serving, and the next start
ends those first. It tells what happens in JSON lines on standard output; `ground up` turns them into words.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from groundplane import __version__
from groundplane.errors import GroundError, Unavailable
from groundplane.processes import HomeLock, check_port_free, end, make_home, read_mark, write_mark
from groundplane.settings import Settings
from groundplane.wire import ErrorInfo

log = logging.getLogger("groundplane.supervisor")

CONTROL_PLANE, GATEWAY = "control-plane", "gateway"
GATEWAY_WORKERS_DEFAULT_MAX = 8
_GATEWAY_BACKLOG = 2048
READY_LIMIT_S = 60.0
BACKOFF_FIRST_S, BACKOFF_AFTER_READY_MAX_S, BACKOFF_MAX_S = 0.5, 5.0, 30.0
STEADY_S = 10.0
LOGS_KEPT = 4
_TICK_S = 0.25
_LAST_WORDS_BYTES = 2000
_FINAL_CODES = {2, 3, 8}
"""Exit codes of a child that starting again can't cure: invalid settings, a refusal, damaged data."""


class ChildFailed(GroundError):
    """A child ended for good; carries what it said of itself."""

    def __init__(self, info: ErrorInfo, exit_code: int) -> None:
        super().__init__(info.message, info.hint)
        self.info = info
        self.child_exit_code = exit_code


@dataclass(slots=True, kw_only=True)
class Child:
    """One process that we keep running. Times are on the monotonic clock; `restart_at` is None while it runs."""

    name: str
    command: tuple[str, ...]
    process: subprocess.Popen[bytes] | None = None
    report: int | None = None
    said: list[dict[str, Any]] = field(default_factory=list)
    restart_at: float | None = None
    ready_at: float | None = None
    backoff_s: float = 0.0
    restarts: int = 0
    last_exit: int | None = None
    listener: socket.socket | None = None
    """A gateway worker's, kept here: connections wait in it while the worker is away, and none is dropped."""
    gateway_id: str = ""
    leaving: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """Replaced and still finishing what they had begun."""


class Supervisor:
    """The heart: `run` is the whole life of an installation. SIGUSR1 replaces the gateway's workers one by one."""

    def __init__(self, settings: Settings, *, attached: bool, with_gateway: bool) -> None:
        self._settings = settings
        self._attached = attached
        self._listening = True
        self._stop_because = ""
        self._replace_gateways = False
        self._wake_read, self._wake_write = os.pipe()
        for descriptor in (self._wake_read, self._wake_write):
            os.set_blocking(descriptor, False)
        self._children = [Child(name=CONTROL_PLANE, command=("groundplane.server",))]
        if with_gateway:
            workers = settings.gateway_workers or min(os.cpu_count() or 1, GATEWAY_WORKERS_DEFAULT_MAX)
            self._children += [gateway_child(settings, number, workers) for number in range(workers)]

    def run(self) -> None:
        """Up, until a signal or the end of an attached terminal; then down. Raises GroundError when it can't be up."""
        home = self._settings.home
        make_home(home)
        lock = HomeLock(home / "run" / "up.lock")
        lock.take()
        try:
            with self._signals():
                self._end_leftovers()
                self._check_ports()
                try:
                    self._listen()
                    self._up()
                    self._watch()
                finally:
                    self._down()
        finally:
            (home / "run" / "up.json").unlink(missing_ok=True)
            lock.release()

    # ------------------------------------------------------------ up

    def _end_leftovers(self) -> None:
        """Children of a supervisor that was killed: they hold the ports, the database and the gateway's log."""
        marked = sorted(path.stem for path in (self._settings.home / "run").glob(f"{GATEWAY}*.pid"))
        for name in (*marked, CONTROL_PLANE):
            process = read_mark(self._pid_file(name))
            if process is not None:
                how = end(process, wait_s=self._settings.drain_s + 2)
                self._tell("leftover", name=name, pid=process.pid, how=how)

    def _check_ports(self) -> None:
        check_port_free(self._settings.host, self._settings.port, "GROUND_PORT")
        if len(self._children) > 1:
            check_port_free(self._settings.gateway_host, self._settings.gateway_port, "GROUND_GATEWAY_PORT")

    def _listen(self) -> None:
        """One socket per gateway worker on the same port: the kernel spreads connections over them."""
        for child in self._children:
            if child.name != CONTROL_PLANE:
                host, port = self._settings.gateway_host, self._settings.gateway_port
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                child.listener = socket.socket(family, socket.SOCK_STREAM)
                child.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                child.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                child.listener.bind((host, port))
                child.listener.listen(_GATEWAY_BACKLOG)

    def _up(self) -> None:
        for child in self._children:
            self._start(child)
            if child.name == CONTROL_PLANE:
                self._await_ready(child)
        for child in self._children:
            self._await_ready(child)
            if self._stop_because:
                return
        addresses = {"url": self._settings.base_url, "log_dir": str(self._settings.home / "log")}
        if len(self._children) > 1:
            addresses["gateway_url"] = self._settings.gateway_url
        self._tell("ready", pid=os.getpid(), **addresses)

    def _start(self, child: Child) -> None:
        report_read, report_write = os.pipe()
        command = [sys.executable, "-P", "-m", *child.command]
        command += ["--report-fd", str(report_write)]
        passed = [report_write]
        if child.listener is not None:
            command += ["--fd", str(child.listener.fileno()), "--gateway-id", child.gateway_id]
            passed.append(child.listener.fileno())
        with self._log_file(child.name).open("ab") as output:
            child.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=passed,
                # Ctrl-C in a terminal reaches us alone; children are told when it is their turn.
                start_new_session=True,
                cwd=self._settings.home,
                env={**os.environ, "GROUND_HOME": str(self._settings.home), "PYTHONUNBUFFERED": "1"},
            )
        os.close(report_write)
        os.set_blocking(report_read, False)
        child.report, child.said = report_read, []
        child.ready_at = child.restart_at = None
        with self._surviving(f"the pid of the {child.name} can't be remembered"):
            write_mark(self._pid_file(child.name), child.process.pid)
        log.info("started %s, pid %s", child.name, child.process.pid)
        self._remember()

    def _await_ready(self, child: Child) -> None:
        deadline = time.monotonic() + READY_LIMIT_S
        while not self._is_ready(child):
            if self._stop_because:
                return
            if child.process is not None and child.process.poll() is not None:
                self._hear(child)
                raise self._failure(child, child.process.returncode)
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"the {child.name} is not ready after {READY_LIMIT_S:.0f} s", f"see {self._log_file(child.name)}"
                )
            self._pause(0.05)

    def _is_ready(self, child: Child) -> bool:
        self._hear(child)
        return any(words["event"] == "ready" for words in child.said)

    def _hear(self, child: Child) -> None:
        """Reads what the child reported; passes on the admin key, which is shown once and never logged."""
        if child.report is None:
            return
        with contextlib.suppress(BlockingIOError):
            heard = os.read(child.report, 65536)
            for line in heard.splitlines():
                words = json.loads(line)
                child.said.append(words)
                if words["event"] == "ready":
                    child.ready_at = time.monotonic()
                if words["event"] == "admin-key":
                    self._say({"event": "admin-key", "secret": words["secret"], "path": words["path"]})
            if not heard:
                os.close(child.report)
                child.report = None

    def _failure(self, child: Child, code: int) -> ChildFailed:
        for words in child.said:
            if words["event"] == "failed":
                return ChildFailed(msgspec.convert(words["error"], ErrorInfo), words["exit_code"])
        path = self._log_file(child.name)
        last = _last_line(path)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        message = f"the {child.name} ended with {how}" + (f": {last}" if last else "")
        return ChildFailed(ErrorInfo(code="unavailable", message=message, hint=f"see {path}"), code if code > 0 else 1)

    # ------------------------------------------------------------ watch

    def _watch(self) -> None:
        next_rotation = 0.0
        while not self._stop_because:
            if self._replace_gateways:
                self._replace_gateways = False
                self._replace()
            for child in self._children:
                self._look_at(child)
            if time.monotonic() >= next_rotation:
                next_rotation = time.monotonic() + 5
                self._rotate_logs()
            self._pause(_TICK_S)
        self._tell("stopping", because=self._stop_because)

    def _replace(self) -> None:
        """A new process for each gateway worker, on the same socket; the one before finishes what it has begun.

        The new one has another id, because two must not write one log: `gw-0` and `gw-0r` take turns.
        """
        for child in self._children:
            if child.listener is None or child.process is None or child.restart_at is not None:
                continue
            before, id_before = child.process, child.gateway_id
            if any(one.poll() is None for one in child.leaving):
                continue  # the id is still in use by one that drains
            child.gateway_id = id_before[:-1] if id_before.endswith("r") else f"{id_before}r"
            if child.report is not None:
                os.close(child.report)
            with self._surviving(f"the pid of the leaving {child.name} can't be remembered"):
                write_mark(self._pid_file(f"{GATEWAY}_leaving-{child.name}"), before.pid)
            self._start(child)
            try:
                self._await_ready(child)
            except GroundError as error:
                log.warning("%s is not replaced: %s", child.name, error.message)
                child.process.kill()
                child.process.wait(10)
                child.process, child.gateway_id = before, id_before
                continue
            before.terminate()
            child.leaving = [before]
            self._tell("replaced", name=child.name, pid=child.process.pid, before=before.pid)

    def _rotate_logs(self) -> None:
        for name in (*[child.name for child in self._children], "supervisor"):
            with self._surviving(f"{name}.log can't be rotated"):
                rotate(self._log_file(name), self._settings.process_log_limit_bytes)

    @contextlib.contextmanager
    def _surviving(self, what: str) -> Iterator[None]:
        """A full disk must not take down what still runs: bookkeeping that can't be written is logged and left."""
        try:
            yield
        except OSError as error:
            log.warning("%s: %s", what, error)

    def _look_at(self, child: Child) -> None:
        now = time.monotonic()
        if child.restart_at is not None:
            if now >= child.restart_at:
                self._start(child)
            return
        self._hear(child)
        child.leaving = [one for one in child.leaving if one.poll() is None]
        assert child.process is not None
        code = child.process.poll()
        if code is None:
            return
        self._hear(child)
        if code in _FINAL_CODES:
            raise self._failure(child, code)
        child.restarts += 1
        child.last_exit = code
        ready_for_s = None if child.ready_at is None else now - child.ready_at
        child.backoff_s = next_backoff(child.backoff_s, ready_for_s, was_killed=code < 0)
        child.restart_at = now + child.backoff_s
        self._tell("crashed", name=child.name, exit=code, restart_in_s=child.backoff_s, restarts=child.restarts)
        self._remember()

    def _pause(self, seconds: float) -> None:
        """Waits, but no longer than until a signal or, when attached, the end of who started us."""
        sources: list[int] = [self._wake_read]
        if self._attached:
            sources.append(sys.stdin.fileno())
        ready, _, _ = select.select(sources, [], [], seconds)
        if self._wake_read in ready:
            os.read(self._wake_read, 512)
        elif ready and not os.read(sys.stdin.fileno(), 512):
            self._stop_because = self._stop_because or "the terminal that started it is gone"
            self._attached = False

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        def on_signal(number: int, _frame: object) -> None:
            self._stop_because = self._stop_because or signal.Signals(number).name

        def on_replace(_number: int, _frame: object) -> None:
            self._replace_gateways = True

        previous_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        previous = {
            number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        }
        previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, on_replace)
        try:
            yield
        finally:
            signal.set_wakeup_fd(previous_wakeup)
            for number, handler in previous.items():
                signal.signal(number, handler)

    # ------------------------------------------------------------ down

    def _down(self) -> None:
        """The gateway first: what it answered while draining still reaches the ledger of a living control plane."""
        for child in self._children:
            if child.listener is not None:
                child.listener.close()
        for child in self._children:
            # All gateways at once: one after the other would take as long as their longest requests together.
            if child.name != CONTROL_PLANE and child.process is not None and child.process.poll() is None:
                child.process.terminate()
        for child in self._children:
            for leaving in child.leaving:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    leaving.wait(self._settings.drain_s)
                leaving.kill()
                leaving.wait(10)
            self._pid_file(f"{GATEWAY}_leaving-{child.name}").unlink(missing_ok=True)
        for child in reversed(self._children):
            if child.process is None:
                continue
            if child.process.poll() is None:
                how = self._drain(child, self._settings.drain_s + 4)
                self._tell("stopped", name=child.name, how=how)
            self._pid_file(child.name).unlink(missing_ok=True)
            if child.report is not None:
                os.close(child.report)
                child.report = None

    def _drain(self, child: Child, limit_s: float) -> str:
        assert child.process is not None
        child.process.terminate()
        try:
            child.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            log.warning("%s did not drain within %.0f s and is killed", child.name, limit_s)
            child.process.kill()
            child.process.wait(10)
            return "killed"
        return "stopped"

    # ------------------------------------------------------------ telling

    def _tell(self, event: str, **facts: object) -> None:
        log.info("%s %s", event, " ".join(f"{name}={value}" for name, value in facts.items()))
        self._say({"event": event, **facts})

    def _say(self, words: dict[str, object]) -> None:
        if not self._listening:
            return
        try:
            sys.stdout.write(json.dumps(words) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:
            # Who started us detached left once we were ready. The log goes on.
            self._listening = False
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def _remember(self) -> None:
        """What `ground status` reads without asking anybody."""
        children = [
            {
                "name": child.name,
                "pid": child.process.pid if child.process else None,
                "restarts": child.restarts,
                "last_exit": child.last_exit,
            }
            for child in self._children
        ]
        path = self._settings.home / "run" / "up.json"
        draft = path.with_suffix(".draft")
        with self._surviving("what runs can't be remembered"):
            draft.write_text(json.dumps({"pid": os.getpid(), "version": __version__, "children": children}))
            draft.replace(path)

    def _pid_file(self, name: str) -> Path:
        return self._settings.home / "run" / f"{name}.pid"

    def _log_file(self, name: str) -> Path:
        return self._settings.home / "log" / f"{name}.log"


def next_backoff(before_s: float, ready_for_s: float | None, *, was_killed: bool = False) -> float:
    """The pause before a child is started again, in seconds; `ready_for_s` is None when it never got ready.

    One that ran well or `was_killed` by a signal lacks nothing: it is back soon, however often that happens. One that
    ends by itself without coming up is given time.
    """
    if ready_for_s is not None and ready_for_s >= STEADY_S:
        return BACKOFF_FIRST_S
    longest_s = BACKOFF_MAX_S if ready_for_s is None and not was_killed else BACKOFF_AFTER_READY_MAX_S
    return min(max(BACKOFF_FIRST_S, 2 * before_s), longest_s)


def rotate(path: Path, limit_bytes: int) -> bool:
    """Copies a log that grew over the limit aside and empties it in place; says whether it did.

    In place, because children append through a descriptor that outlives this process; lines written between copy and
    cut are lost, which a process log can bear.
    """
    try:
        if path.stat().st_size <= limit_bytes:
            return False
    except FileNotFoundError:
        return False
    for number in range(LOGS_KEPT - 1, 0, -1):
        older = path.with_name(f"{path.name}.{number}")
        if older.exists():
            older.replace(path.with_name(f"{path.name}.{number + 1}"))
    shutil.copyfile(path, path.with_name(f"{path.name}.1"))
    os.truncate(path, 0)
    return True


def gateway_child(settings: Settings, number: int, workers: int) -> Child:
    """The gateway's worker of that number: its own log, and limits and metrics shared with the others."""
    folder = settings.home / "gateway"
    name = GATEWAY if number == 0 else f"{GATEWAY}-{number}"
    options = (
        *("--snapshot", str(folder / "snapshot.json"), "--wal", str(folder / "wal")),
        *("--workers", str(workers), "--shared", str(folder)),
        *("--nodes", str(settings.gateway_nodes), "--provider-keys", str(settings.home / "provider-keys")),
        *("--predictions", str(settings.predictions_folder), "--cache-max", str(settings.gateway_cache_bytes)),
        *("--body-max", str(settings.gateway_body_bytes)),
        *("--traces-url", settings.traces_url, "--traces-percent", str(settings.traces_percent)),
    )
    return Child(name=name, command=("groundplane.gateway", *options), gateway_id=f"gw-{number}")


def _last_line(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _LAST_WORDS_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 after a stop, a GroundError's own code when it could not be up."""
    parser = argparse.ArgumentParser(prog="python -m groundplane.supervisor", description="Keeps an installation up.")
    parser.add_argument("--attached", action="store_true", help="stop when standard input ends")
    parser.add_argument("--no-gateway", action="store_true", help="the control plane alone")
    options = parser.parse_args(arguments)
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, format="%(asctime)sZ %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings.from_env()
        Supervisor(settings, attached=options.attached, with_gateway=not options.no_gateway).run()
    except ChildFailed as error:
        return _fail(error.info, error.child_exit_code)
    except GroundError as error:
        return _fail(ErrorInfo(code=error.code, message=error.message, hint=error.hint), error.exit_code)
    return 0


def _fail(info: ErrorInfo, exit_code: int) -> int:
    log.error("%s", info.message)
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.buffer.write(msgspec.json.encode({"event": "failed", "error": info, "exit_code": exit_code}) + b"\n")
        sys.stdout.flush()
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
