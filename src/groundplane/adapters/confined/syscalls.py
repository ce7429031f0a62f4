"""A filter over system calls: from now on the process reads and writes what is open, takes memory, and ends.

Nothing else: no file, socket, process, signal or other process's memory, whatever code runs here, and no new code. The
kernel answers each other call with EPERM. Python has no name for this, so the filter is put together by hand.
Source: Linux' seccomp(2), linux/filter.h, linux/audit.h, and the tables of system calls of both machines.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys
from typing import NamedTuple


class _Machine(NamedTuple):
    """What the kernel calls a machine, and its numbers of the calls: those allowed, and those that map memory."""

    architecture: int
    allowed: tuple[int, ...]
    mapping: tuple[int, ...]


# read write close fstat lseek brk rt_sigaction rt_sigprocmask rt_sigreturn pread64 mremap munmap madvise getpid
# exit exit_group sigaltstack futex clock_gettime gettimeofday getrandom; then mmap and mprotect.
_MACHINES = {
    "x86_64": _Machine(
        0xC000003E,
        (0, 1, 3, 5, 8, 12, 13, 14, 15, 17, 25, 11, 28, 39, 60, 231, 131, 202, 228, 96, 318),
        (9, 10),
    ),
    "aarch64": _Machine(
        0xC00000B7,
        (63, 64, 57, 80, 62, 214, 134, 135, 139, 67, 216, 215, 233, 172, 93, 94, 132, 98, 113, 169, 278),
        (222, 226),
    ),
}
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _THIRD_ARGUMENT_AT = 0, 4, 32
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_PROT_EXEC = 4
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


class _Program(ctypes.Structure):
    _fields_ = [("count", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def allow_only_memory_and_open_files(libc: ctypes.CDLL) -> bool:
    """Whether the filter holds now, for good. False on machines without a table here, and where the kernel has none.

    The process must have given up gaining rights (no_new_privs) before.
    """
    machine = _MACHINES.get(platform.machine())
    if machine is None or sys.byteorder != "little":
        return False
    steps = _steps(machine)
    program = _Program(len(steps) // 8, steps)
    return bool(libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _steps(machine: _Machine) -> bytes:
    """The filter: who is asked for by another machine's numbers dies, the rest is looked up from the first to the last.

    A step is a code, how many steps to jump over when it holds and when it does not, and a number.
    """
    head = [(_LOAD, 0, 0, _ARCHITECTURE_AT), (_EQUAL, 1, 0, machine.architecture), (_RETURN, 0, 0, _KILL)]
    head.append((_LOAD, 0, 0, _NUMBER_AT))
    numbers = [*machine.mapping, *machine.allowed]
    asked = []
    for position, number in enumerate(numbers):
        to_end = len(numbers) - position - 1
        # Behind the numbers: no; what maps memory is asked further; yes.
        jump = to_end + 1 if number in machine.mapping else to_end + 3
        asked.append((_EQUAL, jump, 0, number))
    tail = [(_RETURN, 0, 0, _DENY), (_LOAD, 0, 0, _THIRD_ARGUMENT_AT), (_ANY_BIT, 1, 0, _PROT_EXEC)]
    tail += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _DENY)]
    return b"".join(struct.pack("<HBBI", *step) for step in head + asked + tail)
