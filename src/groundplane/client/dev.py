"""The part of the SDK that attaches to dev environments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from groundplane.client.httpx_alone import httpx
from groundplane.client.transport import Transport, error_from, part
from groundplane.domain import dev
from groundplane.domain.dev import DevInfo, DevUse, SshConfig
from groundplane.errors import InvalidInput
from groundplane.wire.dev import Attached, AttachRequest


class DevCalls(Transport):
    def dev_environments(self) -> list[DevUse]:
        """Dev environments that are not over, the newest first."""
        return self._get("/v1/dev", list[DevUse])

    def attach(
        self, run_id: str, *, session: str = "main", rows: int = 24, columns: int = 80, term: str = "xterm"
    ) -> Attached:
        """A shell in the environment: the session's, when it is there already."""
        return self._attach(run_id, {"session": session, "rows": rows, "columns": columns, "term": term})

    def attach_port(self, run_id: str, port: int) -> Attached:
        """A connection to a port that somebody listens on in the environment."""
        return self._attach(run_id, {"kind": "tcp", "port": port})

    def attached_frames(self, run_id: str, attached: Attached) -> Iterator[tuple[bytes, bytes]]:
        """(letter, payload) as they come, until it is over. Unavailable when the connection breaks."""
        frames = dev.Frames()
        path = self._place(run_id, attached)
        try:
            with self._http.stream("GET", path, timeout=httpx.Timeout(5.0, read=None)) as answer:
                if not answer.is_success:
                    answer.read()
                    raise error_from(answer)
                for data in answer.iter_raw():
                    yield from frames.feed(data)
        except httpx.TransportError as error:
            raise self._silent(error) from None

    def send_attached(self, run_id: str, attached: Attached, data: bytes) -> None:
        """What is typed, or sent to the port."""
        self._send("POST", self._place(run_id, attached), content=dev.frame(dev.DATA, data))

    def resize_attached(self, run_id: str, attached: Attached, rows: int, columns: int) -> None:
        size = f"[{rows}, {columns}]".encode()
        self._send("POST", self._place(run_id, attached), content=dev.frame(dev.RESIZE, size))

    def end_attached(self, run_id: str, attached: Attached) -> None:
        """Nothing more is sent to the port; what it answers still comes."""
        self._send("POST", self._place(run_id, attached), content=dev.frame(dev.END, b""))

    def detach(self, run_id: str, attached: Attached) -> None:
        """Lets go; the shell goes on."""
        self._send("DELETE", self._place(run_id, attached))

    def dev_info(self, run_id: str) -> DevInfo:
        """Sessions, folder, Jupyter's port and token."""
        return self._get(f"/v1/runs/{part(run_id)}/dev", DevInfo)

    def ssh_config(self, run_id: str) -> SshConfig:
        """A block for ~/.ssh/config; it says why where there is none."""
        return self._get(f"/v1/runs/{part(run_id)}/ssh-config", SshConfig)

    def _attach(self, run_id: str, wish: dict[str, Any]) -> Attached:
        try:
            body = AttachRequest(**wish)
        except ValueError as error:
            raise InvalidInput(str(error)) from None
        return self._call("POST", f"/v1/runs/{part(run_id)}/attach", Attached, body=body)

    def _place(self, run_id: str, attached: Attached) -> str:
        return f"/v1/runs/{part(run_id)}/attach/{part(attached.id)}"
