"""Services that tests play: whatever answers on the other side, over real HTTP on a loopback port."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: Message
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What is sent back: bytes as they are, anything else as JSON. Without a status the connection is broken off."""

    status: int | None
    body: object = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Played:
    """A service that answers as it is told to, each request in a thread of its own. `url` has no slash at its end."""

    def __init__(
        self,
        answer: Callable[[Asked], Answer],
        *,
        port: int = 0,
        protocol: str = "HTTP/1.1",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = protocol

            def act(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                said = answer(Asked(self.command, self.path, self.headers, body))
                if said.status is None:
                    self.close_connection = True
                    return
                data = said.body if isinstance(said.body, bytes) else json.dumps(said.body).encode()
                self.send_response(said.status)
                for name, value in {**said.headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = act

            def log_message(self, format: str, *args: object) -> None:
                """What matters, the test says."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
            self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # refused certificates are a part
            self.url = f"https://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
