"""The forked child that becomes the job."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import signal
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from groundplane.runner.files import Document
    from groundplane.runner.isolation import Sandbox

KEPT_ENV = ("PATH", "HOME", "LANG", "TZ", "TMPDIR")
PR_SET_PDEATHSIG = 1


def job_environment(order: Document, folder: Path, resume_from: str, sandbox: Sandbox) -> dict[str, str]:
    """A clean environment: the few variables kept, what the order sets, and ours, which win."""
    env = {name: value for name, value in os.environ.items() if name in KEPT_ENV or name.startswith("LC_")}
    env["PYTHONUNBUFFERED"] = "1"  # without it a Python job's log lags behind by kilobytes
    if sandbox.mode != "none":  # the home of the runner's user is not the job's
        env["HOME"] = str(folder / "work")
        env.pop("TMPDIR", None)
    env.update(order["env"])
    if sandbox.secrets_dir:
        env["GROUND_SECRETS_DIR"] = sandbox.secrets_dir
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


def become_job(sandbox: Sandbox, env: dict[str, str], cgroups: list[str], output: int, report: int) -> None:
    """In the forked child: its own session, limits and pipes, then the command. Reports over `report` what failed."""
    stage = "start"
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        with contextlib.suppress(OSError):  # when the node runs out of memory, the job goes before its runner
            Path("/proc/self/oom_score_adj").write_text("500")
        stage = "cgroup"
        for cgroup in dict.fromkeys(cgroups):
            (Path(cgroup) / "cgroup.procs").write_text("0")
        stage = "isolation"
        sandbox.enter()
        # No runner, no job: nobody would enforce its limits. Changing the user takes this away, so it comes after.
        libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        stage = "workdir"
        os.chdir("/" if sandbox.wraps else sandbox.workdir)
        stage = "command"
        argv = sandbox.argv(env)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvpe(argv[0], argv, env)  # noqa: S606 (the job's own argv)
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


def start_failed(problem: list[Any], program: str, workdir: str) -> StartFailed:
    stage, number, text = problem
    if stage == "workdir":
        return StartFailed("command-not-found", f"the working folder {workdir} can't be entered: {text}")
    if stage == "command" and number in (errno.ENOENT, errno.EACCES, errno.ENOTDIR, errno.ENOEXEC, errno.EISDIR):
        return StartFailed("command-not-found", f"{program} can't be executed: {text}")
    return StartFailed("start-failed", f"{program} could not be started ({stage}): {text}")
