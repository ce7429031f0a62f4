"""What is around a job before its command starts: its code, its packages, its container, the machine and its drivers.

Looked at with the job's own rights, in a process of its own: a repository or an interpreter that hangs keeps that one,
never the runner. What can't be seen is listed under `unknown` with the reason; nothing is guessed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import time
from pathlib import Path

from groundplane.runner.files import now_text
from groundplane.runner.isolation import podman_engine
from groundplane.runner.job import job_environment
from groundplane.runner.node import node_memory_bytes
from groundplane.runner.samples import NVML_LIBRARY, Nvml

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from groundplane.runner.files import Document
    from groundplane.runner.isolation import Sandbox

LIMIT_S = 30.0
ASK_TIMEOUT_S = 20.0
PACKAGES_MAX = 10_000
LOCK_BYTES_MAX = 16 * 2**20
LOCK_FILES = ("uv.lock", "poetry.lock", "pdm.lock", "pylock.toml", "Pipfile.lock", "conda-lock.yml", "pixi.lock",
              "requirements.txt", "environment.yml")  # fmt: skip
MODULE_VERSION = Path("/proc/driver/nvidia/version")
QUESTION = """
import json, platform
try:
    from importlib import metadata
except ImportError:
    import importlib_metadata as metadata
found = {(d.metadata["Name"] or "").lower() + "==" + (d.version or "") for d in metadata.distributions()}
python = platform.python_implementation() + " " + platform.python_version()
print(json.dumps([python, platform.platform(), sorted(found)]))
"""
_PYTHON = re.compile(r"(python|pypy)(\d+(\.\d+)?)?")
_BEFORE = {"env", "exec", "nice", "time", "command", "numactl", "nohup", "stdbuf"}
_SHELLS = {"sh", "bash", "dash", "zsh"}


class Look:
    """One look, begun when it is made. `collect` until it says True, then `close` for what was seen."""

    def __init__(self, order: Document, folder: Path, sandbox: Sandbox, workdir: str) -> None:
        self._found: Document = {"observed_at": now_text(), "unknown": []}
        self._deadline = time.monotonic() + LIMIT_S
        self._text = b""
        self._left = {"hardware", "code", "environment", "container"}
        self._pipe, end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(self._pipe)
            _look(order, folder, sandbox, workdir, end)
        os.close(end)
        self.pids = [pid]

    def collect(self, wait_s: float) -> bool:
        """Takes in what is ready, for at most that long; True when all is known or the time is up."""
        while self._left and time.monotonic() < self._deadline:
            if not select.select([self._pipe], [], [], wait_s)[0]:
                return time.monotonic() >= self._deadline
            said = os.read(self._pipe, 2**16)
            if not said:
                return True
            *lines, self._text = (self._text + said).split(b"\n")
            for line in lines:
                part, found, unknown = json.loads(line)
                self._left.discard(part)
                self._found[part] = found
                self._found["unknown"] += unknown
        return True

    def close(self) -> Document:
        """Ends the look. What gave no answer is unknown."""
        for pid in self.pids:
            for end in (os.killpg, os.kill):  # its own group, once it has made one
                with contextlib.suppress(ProcessLookupError):
                    end(pid, signal.SIGKILL)
        os.close(self._pipe)
        for part in sorted(self._left):
            self._found[part] = None
            self._found["unknown"].append([part, f"the node did not say within {LIMIT_S:g} s"])
        return self._found


def _look(order: Document, folder: Path, sandbox: Sandbox, workdir: str, pipe: int) -> None:
    """In the forked child: one line for each part as it is known. Never returns."""
    unknown: list[list[str]] = []

    def part(name: str, find: Callable[[], Document | None]) -> None:
        unknown.clear()
        try:
            found = find()
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # said, not silent
            found = None
            unknown.append([name, f"looking at it broke: {error!r}"])
        line = json.dumps([name, found, unknown]).encode() + b"\n"
        while line:
            line = line[os.write(pipe, line) :]

    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        part("hardware", lambda: hardware(order, unknown))
        part("container", lambda: container(sandbox, unknown))
        sandbox.enter()
        env = job_environment(order, folder, "", sandbox)
        part("code", lambda: code(workdir, sandbox, unknown))
        part("environment", lambda: environment(order, workdir, sandbox, env, unknown))
    except OSError as error:
        for name in ("code", "environment"):
            os.write(pipe, json.dumps([name, None, [[name, f"the job's rights: {error}"]]]).encode() + b"\n")
    finally:
        os._exit(0)


# ---------------------------------------------------------------- hardware and drivers


def hardware(order: Document, unknown: list[list[str]]) -> Document:
    """The machine, the attempt's cards, and the chain of drivers from the kernel up."""
    indexes = order.get("accelerator_indexes") or []
    kernel, libc = os.uname().release, os.confstr("CS_GNU_LIBC_VERSION") or ""
    drivers = [{"name": "linux kernel", "version": kernel}]
    cards: list[Document] | None = []
    if indexes:
        try:
            nvml = Nvml(order.get("nvml_library") or NVML_LIBRARY)
            drivers += _nvidia_chain(nvml, unknown)
            cards = [_card(nvml, index) for index in indexes]
        except OSError as error:
            cards = None
            unknown.append(["hardware.accelerators", f"the driver library does not answer: {error}"])
    drivers += [{"name": "libc", "version": libc}] if libc else []
    return {
        "node": os.uname().nodename,
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "memory_bytes": node_memory_bytes(),
        "accelerators": cards,
        "drivers": drivers,
    }


def _card(nvml: Nvml, index: int) -> Document:
    memory = nvml.measure(index).get("memory_total_bytes")
    return {
        "name": nvml.name(index),
        "memory_bytes": None if memory is None else int(memory),
        "driver": nvml.driver_version(),
    }


def _nvidia_chain(nvml: Nvml, unknown: list[list[str]]) -> list[Document]:
    """Kernel module, driver library, and the newest CUDA it can run. Source: NVML API reference, system queries."""
    found = []
    try:
        module = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", MODULE_VERSION.read_text())
        if module:
            found.append({"name": "nvidia kernel module", "version": module[1]})
    except OSError as error:
        unknown.append(["hardware.drivers.module", f"{MODULE_VERSION} can't be read: {error.strerror}"])
    versions = (("nvidia driver library", nvml.driver_version()), ("CUDA of the driver", nvml.cuda_version()))
    for name, version in versions:
        if version:
            found.append({"name": name, "version": version})
        else:
            unknown.append([f"hardware.drivers.{name}", "the driver library does not say"])
    return found


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return os.uname().machine
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else os.uname().machine


# ---------------------------------------------------------------- container


def container(sandbox: Sandbox, unknown: list[list[str]]) -> Document:
    """The image a job runs in, by digest: the registry's where the image has one, else that of its content."""
    if not sandbox.container:
        return {"used": False, "image": "", "digest": ""}
    asked = ["podman", *podman_engine(), "image", "inspect", "--format", "{{.Digest}} {{.Id}}", sandbox.image]
    words = (_ask(asked, "/", {**os.environ}) or "").split()
    digest = next((word for word in words if word.startswith("sha256:")), "")
    if not digest and len(words) == 1 and re.fullmatch(r"[0-9a-f]{64}", words[0]):
        digest = f"sha256:{words[0]}"
    if not digest:
        unknown.append(["container.digest", f"podman does not know image {sandbox.image}"])
    return {"used": True, "image": sandbox.image, "digest": digest}


# ---------------------------------------------------------------- code


def code(workdir: str, sandbox: Sandbox, unknown: list[list[str]]) -> Document | None:
    """The git commit of the working folder, and whether files differ from it; None outside git."""
    commit = _git(workdir, "rev-parse", "--verify", "HEAD")
    if commit is None:
        why = "git is not installed on the node" if shutil.which("git") is None else "is in no git repository"
        text = why if "git is not" in why else f"{workdir} {why} with a commit"
        unknown.append(["code.commit", text])
        return None
    dirty = None
    if sandbox.container:
        # Comparing files may run a repository's own filters, which belong inside the container's walls.
        unknown.append(["code.dirty", "the job runs in a container; its checkout was not compared from outside"])
    else:
        changes = _git(workdir, "status", "--porcelain", "--untracked-files=normal")
        dirty = None if changes is None else bool(changes)
        if changes is None:
            unknown.append(["code.dirty", f"git status did not answer within {ASK_TIMEOUT_S:g} s"])
    remote = _git(workdir, "config", "--get", "remote.origin.url") or ""
    return {"commit": commit, "dirty": dirty, "repository": re.sub(r"(?<=://)[^/@]*@", "", remote)}


def _git(workdir: str, *arguments: str) -> str | None:
    # No hooks, no file-system monitor, no pager, no prompts, no locks; and whoever owns the checkout, reading is fine.
    options = ("core.fsmonitor=false", "core.hooksPath=/dev/null", "safe.directory=*")
    words = ["git", *(word for option in options for word in ("-c", option)), "--no-optional-locks", "--no-pager"]
    env = {"PATH": os.environ.get("PATH", os.defpath), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C", "HOME": "/"}
    return _ask([*words, *arguments], workdir, env)


# ---------------------------------------------------------------- environment


def environment(
    order: Document, workdir: str, sandbox: Sandbox, env: dict[str, str], unknown: list[list[str]]
) -> Document | None:
    """The packages that the job's interpreter has installed, and the lock files beside its code."""
    locks = lock_files(workdir)
    interpreter = python_of([str(word) for word in order["command"]], workdir, env.get("PATH", ""), sandbox.wraps)
    if not interpreter:
        unknown.append(["environment", f"the command starts no Python that was found: {order['command'][0]}"])
        return None
    asked = sandbox.around([interpreter, "-c", QUESTION], env)
    answer = _ask(asked, "/", env)
    try:
        python, system, packages = json.loads(answer or "")
    except ValueError:
        unknown.append(["environment", f"{interpreter} did not list its packages within {ASK_TIMEOUT_S:g} s"])
        return None
    return {
        "python": str(python),
        "platform": str(system),
        "packages": [str(package) for package in packages[:PACKAGES_MAX]],
        "lock_files": locks,
    }


def lock_files(workdir: str) -> list[Document]:
    """The lock files in the working folder, by digest."""
    found = []
    for name in LOCK_FILES:
        path = Path(workdir) / name
        try:
            if path.is_file() and path.stat().st_size <= LOCK_BYTES_MAX:
                found.append({"path": name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        except OSError:  # not the job's to read: then it is not its lock
            continue
    return found


def python_of(command: list[str], workdir: str, path: str, inside: bool = False) -> str:
    """The first Python that a command starts, as a path: through shells, `env`, and programs whose first line names it.

    "" when there is none, such as for a binary. Not resolved: a virtual environment's python is a link. What is
    `inside` walls or an image can't be looked up from here: its name has to do.
    """
    words = list(command)
    for _ in range(3):
        if len(words) >= 3 and Path(words[0]).name in _SHELLS and re.fullmatch(r"-[a-z]*c", words[1]):
            try:
                lexer = shlex.shlex(words[2], posix=True, punctuation_chars=True)
                lexer.whitespace_split = True
                words = list(lexer)
            except ValueError:
                return ""
            starts = [0, *(at + 1 for at, word in enumerate(words) if re.fullmatch(r"[;&|()]+", word))]
            pieces = (python_of(words[at:], workdir, path, inside) for at in starts)
            return next((found for found in pieces if found), "")
        while words and (Path(words[0]).name in _BEFORE or re.fullmatch(r"(\w+=.*|-.*)", words[0])):
            words = words[1:]
        if not words or Path(words[0]).name not in _SHELLS:
            break
    if inside and words and _PYTHON.fullmatch(Path(words[0]).name):
        return words[0]
    return _interpreter(words[0], workdir, path) if words else ""


def _interpreter(word: str, workdir: str, path: str) -> str:
    found = str(Path(workdir) / word) if "/" in word else shutil.which(word, path=path or None) or ""
    if _PYTHON.fullmatch(Path(word).name):
        return found if "/" not in word or os.access(found, os.X_OK) else ""
    try:
        with Path(found).open("rb") as file:
            line = file.readline(512)
    except OSError:
        return ""
    if not line.startswith(b"#!"):
        return ""
    words = line[2:].decode(errors="replace").split()
    words = words[1:] if words and Path(words[0]).name == "env" else words
    words = [each for each in words if not each.startswith("-")]
    if not words or not _PYTHON.fullmatch(Path(words[0]).name):
        return ""
    return words[0] if "/" in words[0] else shutil.which(words[0], path=path or None) or ""


def _ask(command: list[str], workdir: str, env: dict[str, str]) -> str | None:
    """A program's answer; None when it is absent, slow, or ends with an error."""
    try:
        done = subprocess.run(
            command, cwd=workdir, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
