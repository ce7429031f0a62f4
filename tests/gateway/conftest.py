"""A mock upstream, and a Redis, for every test that wants one."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from tests.gateway.harness import MockUpstream, well_behaved


@pytest.fixture
async def upstream() -> AsyncIterator[MockUpstream]:
    mock = MockUpstream(well_behaved)
    await mock.start()
    yield mock
    await mock.stop()


@pytest.fixture(scope="session")
def redis_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """A Redis of the tests' own, on a Unix socket: its address and its process id."""
    folder = tmp_path_factory.mktemp("redis")
    path = folder / "s"
    command = ["redis-server", "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < end and server.poll() is None
        time.sleep(0.01)
    yield f"unix://{path}", server.pid
    server.send_signal(signal.SIGCONT)
    server.terminate()
    server.wait(10)
