"""What can be seen around a job on this machine: its code, its environment, the hardware, its data."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import psutil

from groundplane.domain.model import ManifestFile, manifest_sha256
from groundplane.domain.provenance.certificate import (
    AcceleratorFact,
    Circumstances,
    CodeFact,
    DataFact,
    EnvironmentFact,
    HardwareFact,
    Unknown,
)
from groundplane.domain.spec import DataSource, JobSpec

_ASK_TIMEOUT_S = 20.0
_PYTHON = re.compile(r"(python|pypy)(\d+(\.\d+)?)?")
_QUESTION = """
import importlib.metadata, json, platform
found = {(d.metadata["Name"] or "").lower() + "==" + (d.version or "") for d in importlib.metadata.distributions()}
python = platform.python_implementation() + " " + platform.python_version()
print(json.dumps([python, platform.platform(), sorted(found)]))
"""


class MachineProvenance:
    """ports.Provenance on this machine. `data_bytes_max` bounds how much of one data source is hashed."""

    def __init__(self, *, data_bytes_max: int = 16 * 2**30) -> None:
        self._data_bytes_max = data_bytes_max

    async def look(self, spec: JobSpec, observed: str) -> Circumstances:
        return await asyncio.to_thread(self._look, spec, observed)

    async def look_at_data(self, spec: JobSpec, *, here: bool) -> tuple[tuple[DataFact, ...], tuple[Unknown, ...]]:
        unknown: list[tuple[str, str]] = []
        data = await asyncio.to_thread(self._all_data, spec, unknown, here)
        return data, tuple(unknown)

    def _all_data(self, spec: JobSpec, unknown: list[tuple[str, str]], here: bool = True) -> tuple[DataFact, ...]:
        if not spec.data:
            unknown.append(("data", "the spec names no data"))
        workdir = Path(spec.workdir or Path.cwd())
        return tuple(self._data(source, workdir, unknown, here) for source in spec.data)

    def _look(self, spec: JobSpec, observed: str) -> Circumstances:
        unknown: list[tuple[str, str]] = []
        workdir = Path(spec.workdir or Path.cwd())
        data = self._all_data(spec, unknown)
        hardware = machine()
        if hardware.accelerators is None:
            unknown.append(("hardware.accelerators", "there are NVIDIA devices, but their library does not answer"))
        return Circumstances(
            observed=observed,
            code=_code(workdir, unknown),
            environment=_environment(spec, workdir, unknown),
            hardware=hardware,
            data=data,
            unknown=tuple(unknown),
        )

    def _data(self, source: DataSource, workdir: Path, unknown: list[tuple[str, str]], here: bool) -> DataFact:
        if source.dataset:
            source = replace(source, name=source.dataset, dataset="")
        if source.source:
            if not source.sha256:
                why = f"staged from {source.source}; the spec gives no SHA-256"
                unknown.append((f"data.{source.name}.sha256", why))
            return DataFact(name=source.name, sha256=source.sha256, size_bytes=source.size_bytes or None)
        if not here:
            # The same path on this machine may hold anything: what lies on the node is the node's.
            if not source.sha256:
                why = f"{source.path} lies on the node; the spec gives no SHA-256"
                unknown.append((f"data.{source.name}.sha256", why))
            return DataFact(name=source.name, sha256=source.sha256, size_bytes=source.size_bytes or None)
        path = workdir / source.path
        size_bytes = _size_bytes(path)
        if size_bytes is None or size_bytes > self._data_bytes_max:
            why = "is not a path on this machine" if size_bytes is None else f"has {size_bytes} bytes, too many to hash"
            if not source.sha256:
                unknown.append((f"data.{source.name}.sha256", f"{source.path} {why}"))
            return DataFact(name=source.name, sha256=source.sha256, size_bytes=size_bytes)
        measured = _digest(path)
        if source.sha256 and measured != source.sha256:
            why = f"the spec declares {source.sha256}, {source.path} has {measured}"
            unknown.append((f"data.{source.name}.sha256", why))
            return DataFact(name=source.name, sha256=measured, size_bytes=size_bytes, how="disputed")
        return DataFact(name=source.name, sha256=measured, size_bytes=size_bytes, how="measured")


# ---------------------------------------------------------------- code


def _code(workdir: Path, unknown: list[tuple[str, str]]) -> CodeFact | None:
    """The git commit of the working folder and whether files differ from it; None outside git."""
    commit = _git(workdir, "rev-parse", "--verify", "HEAD")
    if commit is None:
        unknown.append(("code.commit", f"{workdir} is in no git repository with a commit"))
        return None
    changes = _git(workdir, "status", "--porcelain", "--untracked-files=normal")
    if changes is None:
        unknown.append(("code.dirty", "git status did not answer"))
    remote = _git(workdir, "config", "--get", "remote.origin.url") or ""
    return CodeFact(commit=commit, dirty=None if changes is None else bool(changes), repository=_no_secret(remote))


def _git(workdir: Path, *arguments: str) -> str | None:
    # Another's repository must not run anything: no hooks, no file-system monitor, no pager, no prompts, no locks.
    command = [
        "git",
        "-c",
        "core.fsmonitor=false",
        "-c",
        "core.hooksPath=/dev/null",
        "--no-optional-locks",
        "--no-pager",
    ]
    environment = {"PATH": os.environ.get("PATH", os.defpath), "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    return _ask([*command, *arguments], workdir, {**environment, "HOME": os.environ.get("HOME", "/")})


def _no_secret(url: str) -> str:
    """A repository's address without the user and password some people write into it."""
    return re.sub(r"(?<=://)[^/@]*@", "", url)


# ---------------------------------------------------------------- environment


def _environment(spec: JobSpec, workdir: Path, unknown: list[tuple[str, str]]) -> EnvironmentFact:
    """The job's interpreter's packages when its command starts a Python; else the control plane's own, saying so."""
    interpreter = _interpreter(spec, workdir)
    if interpreter is not None:
        answer = _ask([interpreter, "-I", "-c", _QUESTION], Path("/"), {"PATH": os.defpath})
        found = _packages(answer)
        if found is not None:
            return found
        unknown.append(("environment", f"{interpreter} did not list its packages within {_ASK_TIMEOUT_S:.0f} s"))
    else:
        unknown.append(("environment", "the command starts no Python; this is the control plane's own environment"))
    return own_environment()


def own_environment() -> EnvironmentFact:
    """This process's interpreter and packages."""
    found = {f"{(d.metadata['Name'] or '').lower()}=={d.version}" for d in importlib.metadata.distributions()}
    return EnvironmentFact(
        of="control plane",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        platform=platform.platform(),
        packages=tuple(sorted(found)),
    )


def _packages(answer: str | None) -> EnvironmentFact | None:
    try:
        python, system, packages = json.loads(answer or "")
        return EnvironmentFact(
            of="job", python=str(python), platform=str(system), packages=tuple(str(package) for package in packages)
        )
    except (ValueError, TypeError):
        return None


def _interpreter(spec: JobSpec, workdir: Path) -> str | None:
    """The Python that the command starts, as a path; looks through `sh -c` and `env`, at the first program only."""
    words = list(spec.command)
    if len(words) >= 3 and Path(words[0]).name in {"sh", "bash", "dash"} and words[1] == "-c":
        try:
            words = shlex.split(words[2], comments=True)
        except ValueError:
            return None
    while words and (Path(words[0]).name in {"env", "exec", "nice"} or re.fullmatch(r"\w+=.*", words[0])):
        words = words[1:]
    if not words or not _PYTHON.fullmatch(Path(words[0]).name):
        return None
    if "/" in words[0]:
        # Not resolved: a virtual environment's python is a link, and its name is what makes it one.
        path = workdir / words[0]
        return str(path) if os.access(path, os.X_OK) else None
    return shutil.which(words[0], path=spec.env.get("PATH") or os.environ.get("PATH"))


# ---------------------------------------------------------------- hardware


def machine() -> HardwareFact:
    """This machine: processor model, logical cores, memory, NVIDIA cards."""
    return HardwareFact(
        cpu=_cpu_model(),
        cores=psutil.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        accelerators=_accelerators(),
    )


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except FileNotFoundError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.machine()


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _accelerators() -> tuple[AcceleratorFact, ...] | None:
    """The NVIDIA cards by NVML. Empty without any, None when devices are there and the library is not.

    Source: NVML API reference: nvmlInit_v2, nvmlDeviceGetCount_v2, nvmlDeviceGetName, nvmlDeviceGetMemoryInfo.
    """
    devices = any(re.fullmatch(r"nvidia\d+", path.name) for path in Path("/dev").iterdir())
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
        if nvml.nvmlInit_v2() != 0:
            return None if devices else ()
    except (OSError, AttributeError):
        return None if devices else ()
    try:
        count, driver = ctypes.c_uint(), ctypes.create_string_buffer(96)
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return None
        nvml.nvmlSystemGetDriverVersion(driver, len(driver))
        return tuple(_accelerator(nvml, index, driver.value.decode()) for index in range(count.value))
    finally:
        nvml.nvmlShutdown()


def _accelerator(nvml: ctypes.CDLL, index: int, driver: str) -> AcceleratorFact:
    handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), _Memory()
    if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) != 0:
        return AcceleratorFact(name="unknown NVIDIA device", driver=driver)
    nvml.nvmlDeviceGetName(handle, name, len(name))
    known = nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
    return AcceleratorFact(name=name.value.decode(), memory_bytes=memory.total if known else None, driver=driver)


# ---------------------------------------------------------------- data


def _size_bytes(path: Path) -> int | None:
    """Of a file, or of all files below a folder; None for what is neither."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return None
    if stat.S_ISREG(mode):
        return path.stat().st_size
    if stat.S_ISDIR(mode):
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return None


def _digest(path: Path) -> str:
    """A file's SHA-256; a folder's is that of its manifest, as for a model version."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    files = [
        ManifestFile(path=file.relative_to(path).as_posix(), sha256=_digest(file), size_bytes=file.stat().st_size)
        for file in path.rglob("*")
        if file.is_file()
    ]
    return manifest_sha256(files)


# ---------------------------------------------------------------- asking other programs


def _ask(command: list[str], workdir: Path, environment: Mapping[str, str]) -> str | None:
    """A program's answer, or None when it is absent, slow, or ends with an error."""
    try:
        done = subprocess.run(
            command, cwd=workdir, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True,
            timeout=_ASK_TIMEOUT_S, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None
