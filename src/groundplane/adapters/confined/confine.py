"""The first thing a confined program does: it gives up all it will not need, before it reads what it can't trust.

Limits first, then the network, then the identity. What could not be given up is told, so that the caller can refuse.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

NOBODY = 65534
_CLONE_NEWNET, _CLONE_NEWNS = 0x40000000, 0x00020000
_PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 38, 4


def confine(*, memory_bytes: int, cpu_s: int, file_bytes: int) -> list[str]:
    """Limits this process for good. Returns what could not be taken away: `network`, `identity`."""
    left = []
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))
    libc = ctypes.CDLL(None, use_errno=True)
    if _routes() and libc.unshare(_CLONE_NEWNET) != 0:
        left.append("network")
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
        except OSError:
            left.append("identity")
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    # Neither a further process nor a thread, and no file but those already open.
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    return left


def _routes() -> bool:
    """Whether there is any interface but the loopback one."""
    try:
        return any(found.name != "lo" for found in Path("/sys/class/net").iterdir())
    except OSError:
        return True
