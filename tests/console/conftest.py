"""A real control plane for the console's tests: the server's own process on a home and a port of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from tests.console.browsing import FLAGS, sign_in, watched
from tests.console.plane import Plane, poll


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    home = tmp_path_factory.mktemp("console") / "ground"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {name: value for name, value in os.environ.items() if not name.startswith("GROUND_")} | {
        "GROUND_HOME": str(home),
        "GROUND_PORT": str(port),
        "GROUND_LOCAL_PRICE": "0.36",
    }
    log = home.parent / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [sys.executable, "-m", "groundplane.server"], env=env, stdout=output, stderr=output, start_new_session=True
        )
    opened = contextlib.ExitStack()
    try:
        made = Plane(f"http://127.0.0.1:{port}", home, opened)
        poll(lambda: _answers(made.url) or server.poll() is not None, "the control plane to answer", 60)
        assert server.poll() is None, log.read_text()
        made.client.create_project(
            name="vision", owner="dana", cost_center="cc-1", monthly_limit_microusd=20_000_000, reason="tests"
        )
        yield made
        for run in made.client.runs(status="active"):
            made.client.stop_run(run.id, "the tests are over")
        poll(lambda: not made.client.runs(status="active"), "the runs to end")
    finally:
        opened.close()
        server.terminate()
        server.wait(timeout=30)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, plane: Plane) -> Iterator[Page]:
    """A signed-in page. A script error, a blocked resource or a dialog on any page fails the test."""
    context = browser.new_context()
    page, complaints = watched(context)
    sign_in(page, plane)
    yield page
    context.close()
    assert not complaints
