"""Confined programs: whatever runs in one, it reads and writes what is open, and ends; its words are not believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from groundplane.adapters import templates
from groundplane.adapters.confined import launch as launching
from groundplane.adapters.confined.syscalls import _MACHINES, allow_only_memory_and_open_files
from groundplane.domain.scanning.templates_scan import Template

CAPTIVE = """
import ctypes, json, mmap, os, resource, signal, socket, sys, threading
from groundplane.adapters.confined.confine import confine

parent, secret, own = int(sys.argv[1]), sys.argv[2], os.getpid()
libc = ctypes.CDLL(None, use_errno=True)
buffer = ctypes.create_string_buffer(64)
confined = confine(memory_bytes=2**30, cpu_s=20, file_bytes=2**20)

def asked(value):
    if value == -1:
        raise OSError(ctypes.get_errno(), "refused")

ways = {
    "open a file": lambda: open(secret),
    "make a file": lambda: open("/tmp/made-by-a-captive", "w"),
    "link to a file": lambda: os.symlink(secret, "/tmp/linked-by-a-captive"),
    "list a folder": lambda: os.listdir("/"),
    "look at a path": lambda: os.stat(secret),
    "read the parent's environment": lambda: open(f"/proc/{parent}/environ"),
    "read the parent's memory": lambda: asked(libc.process_vm_readv(parent, buffer, 1, buffer, 1, 0)),
    "trace the parent": lambda: asked(libc.ptrace(16, parent, None, None)),
    "signal the parent": lambda: os.kill(parent, 0),
    "make a socket": lambda: socket.socket(),
    "make a pair of sockets": lambda: socket.socketpair(),
    "fork": os.fork,
    "start a thread": lambda: threading.Thread(target=print).start(),
    "run a program": lambda: os.execv("/bin/true", ["true"]),
    "map new code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC),
    "take back its rights": lambda: os.setresuid(0, 0, 0) or asked(-1 if os.geteuid() else 0),
    "raise a limit": lambda: resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40)),
    "take more memory": lambda: bytes(2**31),
    "hold a descriptor more": lambda: os.dup(0),
    "write without end": lambda: [os.write(1, bytes(2**19)) for _ in range(8)] and None,
}
open_to_it = []
for name, way in ways.items():
    try:
        way()
    except (OSError, MemoryError, RuntimeError, ValueError):
        continue
    open_to_it.append(name)
told = {"open to it": open_to_it, "left": confined.left, "filtered": confined.filtered}
os.write(2, json.dumps(told).encode())
os._exit(0)
"""


def test_a_captive_reaches_nothing_but_what_is_open(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("nobody's business")
    with (tmp_path / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-c", CAPTIVE, str(os.getpid()), str(secret)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stderr)
    assert told == {"open to it": [], "left": [], "filtered": True}
    assert (tmp_path / "out").stat().st_size == 2**20


def test_a_confined_program_sees_no_environment_and_no_descriptor_of_its_starter(tmp_path: Path) -> None:
    held = (tmp_path / "held").open("wb")
    os.set_inheritable(held.fileno(), True)
    found = subprocess.run(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)],
        capture_output=True,
        env={**os.environ, "GROUND_SECRET": "x"},
        pass_fds=[held.fileno()],
        check=True,
        text=True,
    )
    held.close()
    told = json.loads(found.stdout)
    assert told["environment"] == ["HOME", "LC_ALL", "PATH"]
    assert not [name for name in told["descriptors"] if str(tmp_path) in name]


# Launches a program of its own making as the real ones are launched.
LAUNCHER = """
import sys
from pathlib import Path
from groundplane.adapters.confined import launch

root = Path(sys.argv[1]) / "root"
package = root / "groundplane" / "adapters" / "confined"
package.mkdir(parents=True)
for folder in (root / "groundplane", root / "groundplane" / "adapters", package):
    (folder / "__init__.py").touch()
(package / "spy.py").write_text('''
import json, os
names = []
for number in os.listdir("/proc/self/fd"):
    try:
        names.append(os.readlink(f"/proc/self/fd/{number}"))
    except OSError:
        pass
print(json.dumps({"environment": sorted(set(os.environ) - {"PWD"}), "descriptors": names}))
''')
launch._PACKAGE_ROOT = root
print(launch.launch("spy", [], source=b"", timeout_s=60).output.decode())
"""


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.write(2, bytes(65536))",
        "import os\nwhile True: os.write(1, bytes(65536))",
        "import os, time\nos.close(1); os.close(2); time.sleep(3600)",
        "import time; time.sleep(3600)",
    ],
    ids=["talks without end", "writes without end", "closes its pipes and stays", "stays"],
)
def test_who_says_too_much_or_stays_too_long_is_ended(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "TOLD_BYTES_MAX", 2**20)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as child:
        told = launching._listen(child, 0.5 if "sleep" in program else 300.0)
    assert child.returncode == -9
    assert sum(map(len, told.values())) < 2**21


@pytest.mark.parametrize("said", [b"", b"[" * 100_000, b"{}", b"[]", b'["", ""]', b"[null]", b"[0]"])
def test_templates_are_refused_when_nothing_believable_is_said_of_them(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = launching.Ended(status=0, output=said, errors="", walls="")
    monkeypatch.setattr(templates, "launch", lambda *_, **__: ended)
    assert templates.render_templates("x", [Template(name="a", source="{{ 1 }}")]) is not None


def test_the_tables_of_system_calls_name_as_many_on_each_machine() -> None:
    assert len({(len(machine.allowed), len(set(machine.allowed))) for machine in _MACHINES.values()}) == 1


def test_a_machine_without_a_table_is_not_claimed_to_be_filtered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert not allow_only_memory_and_open_files(None)  # type: ignore[arg-type]
