"""A real control plane in this process: the wired application behind a real HTTP server, without loops or gateway."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from groundplane.api.app import create_app
from groundplane.client import Client
from groundplane.identity import Role
from groundplane.processes import make_home
from groundplane.server import http_config
from groundplane.settings import Settings
from groundplane.wiring import build

REQUEST_LIMIT_BYTES = 8 * 2**20
UPLOAD_LIMIT_BYTES = 3 * 2**20


@dataclass
class Served:
    """One control plane: its address, its admin key, and both clients."""

    url: str
    home: Path
    admin_key: str
    client: Client

    def raw(self, method: str, path: str, *, key: str | None = None, **options: Any) -> httpx.Response:
        """A request as any program would send it, with the admin key unless another is given ("" sends none)."""
        secret = self.admin_key if key is None else key
        headers = {**({"Authorization": f"Bearer {secret}"} if secret else {}), **options.pop("headers", {})}
        return httpx.request(method, self.url + path, headers=headers, timeout=30, trust_env=False, **options)

    def key(self, role: Role, project: str = "default") -> str:
        made = self.client.create_key(name=f"a {role}", project=project, owner="tests", role=role)
        return made.secret


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with control_plane(tmp_path_factory.mktemp("api") / "ground") as plane:
        yield plane


@contextlib.contextmanager
def control_plane(home: Path, **more: Any) -> Iterator[Served]:
    """One that answers until the block ends; `more` are settings beside its home, its port and its small limits."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = Settings(
        home=home, port=port, request_limit_bytes=REQUEST_LIMIT_BYTES, upload_limit_bytes=UPLOAD_LIMIT_BYTES, **more
    )
    make_home(home)
    secrets: list[str] = []
    servers: list[uvicorn.Server] = []
    ready = threading.Event()
    failed: list[BaseException] = []

    async def serve() -> None:
        app = await build(settings)
        secrets.append(await app.access.bootstrap() or "")
        servers.append(_Server(http_config(create_app(app), settings), ready))
        await servers[0].serve(sockets=[listener])
        await app.close()

    def run() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(60), "the control plane did not start"
    if failed:
        listener.close()
        raise failed[0]
    with Client(f"http://127.0.0.1:{port}", secrets[0]) as client:
        client.set_budget("default", monthly_limit_microusd=100_000_000)
        yield Served(f"http://127.0.0.1:{port}", home, secrets[0], client)
    servers[0].should_exit = True
    thread.join(30)
    listener.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: threading.Event) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready.set()
