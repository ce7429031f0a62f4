"""Processes of this node as /proc tells them, and which are an attempt's."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

FIND_PACKAGES = "import sys, importlib.util as u; print(*(n for n in sys.argv[1:] if u.find_spec(n)))"
"""Prints which of its arguments a job's own Python finds, in its site-packages too, which the runner leaves alone."""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document


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
