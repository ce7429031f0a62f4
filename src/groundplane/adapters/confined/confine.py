"""The first thing a confined program does: it gives up all it will not need, before it reads what it can't trust.

Limits first, then the network, the identity, and every system call that does more than read, write and take memory.
What could not be given up is told, so that the caller can refuse.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from dataclasses import dataclass
from pathlib import Path

from groundplane.adapters.confined.syscalls import allow_only_memory_and_open_files

NOBODY = 65534
_CLONE_NEWNET = 0x40000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4


@dataclass(frozen=True, slots=True)
class Confined:
    """What could not be taken away (`network`, `identity`), and whether the kernel filters the system calls."""

    left: list[str]
    filtered: bool


def confine(*, memory_bytes: int, cpu_s: int, file_bytes: int) -> Confined:
    """Limits this process for good."""
    # Where memory runs short the kernel ends this process before any other.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    alone = not _routes() or libc.unshare(_CLONE_NEWNET) == 0
    anonymous = os.geteuid() != 0 or _become_nobody()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Neither a further process nor a thread, and no file but those already open.
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    filtered = allow_only_memory_and_open_files(libc)
    # Whoever can't open a socket has no network either.
    given_up = {"network": alone or filtered, "identity": anonymous}
    return Confined([name for name, gone in given_up.items() if not gone], filtered)


def _become_nobody() -> bool:
    try:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    except OSError:
        return False
    return True


def _routes() -> bool:
    """Whether there is any interface but the loopback one."""
    try:
        return any(found.name != "lo" for found in Path("/sys/class/net").iterdir())
    except OSError:
        return True
