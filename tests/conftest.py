"""What all tests share: services that a machine may lack are asked for by name, `@pytest.mark.needs("postgresql")`.

A test whose service is missing is skipped; where GROUND_REQUIRE names the service (as CI does), it fails instead.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest


def _has_postgresql() -> bool:
    # Debian keeps the server programs off the PATH.
    return shutil.which("initdb") is not None or any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def _has_chromium() -> bool:
    return shutil.which("chromium") is not None


def _has_compiler() -> bool:
    return shutil.which("gcc") is not None


@functools.cache
def _has_tmpfs() -> bool:
    """Whether a small disk of our own can be mounted: root alone is not enough in a locked-down container."""
    with tempfile.TemporaryDirectory() as place:
        mount = shutil.which("mount")
        if mount is None or os.geteuid() != 0:
            return False
        made = subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
        )
        if made.returncode == 0:
            subprocess.run(["umount", place], check=True)
        return made.returncode == 0


SERVICES: dict[str, Callable[[], bool]] = {
    "postgresql": _has_postgresql,
    "chromium": _has_chromium,
    "compiler": _has_compiler,
    "tmpfs": _has_tmpfs,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = {name for name in os.environ.get("GROUND_REQUIRE", "").split(",") if name}
    for marker in item.iter_markers("needs"):
        (service,) = marker.args
        if service not in SERVICES:
            pytest.fail(f"tests/conftest.py does not know the service {service!r}", pytrace=False)
        if not SERVICES[service]():
            if service in required:
                pytest.fail(f"GROUND_REQUIRE names {service}, and this machine has none", pytrace=False)
            pytest.skip(f"this machine has no {service}")


def pytest_configure(config: pytest.Config) -> None:
    unknown = {name for name in os.environ.get("GROUND_REQUIRE", "").split(",") if name} - set(SERVICES)
    if unknown:
        raise pytest.UsageError(f"GROUND_REQUIRE names {sorted(unknown)}; known are {sorted(SERVICES)}")
