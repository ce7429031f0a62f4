"""What every request passes through, as plain ASGI: its id, its measure, its size, and the net below it."""

from __future__ import annotations

import logging
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundplane.api.errors import error_response, unexpected
from groundplane.api.metrics import HttpMetrics
from groundplane.errors import TooLarge
from groundplane.units import format_bytes

log = logging.getLogger("groundplane.api")

UPLOAD_PREFIXES = (
    "/v1/uploads/",
    "/hf/lfs/",
    "/mlflow/api/2.0/mlflow-artifacts/artifacts/",
    "/v2/",
    "/v1/piece-uploads/",
)
_DRAIN_LIMIT_BYTES = 256 * 2**20
_DRAIN_LIMIT_S = 5.0
_GIVEN_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestScope:
    """Names, measures and logs each request; turns what nobody caught into a 500 without a traceback."""

    def __init__(self, app: ASGIApp, metrics: HttpMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        started = time.monotonic()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            # The outermost net: it logs the whole story under the id that the caller is told.
            log.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if status:
                raise
            await error_response(unexpected(request_id), request_id)(scope, receive, send_with_id)
        finally:
            elapsed_s = time.monotonic() - started
            # Unknown paths share one label: a scan of random URLs must not grow the registry.
            route = getattr(scope.get("route"), "path", "unmatched")
            self.metrics.observe(scope["method"], route, status, elapsed_s)
            log.info("%s %s %s %.1fms id=%s", scope["method"], route, status, elapsed_s * 1000, request_id)


class BodyLimit:
    """Answers 413 before a body over the limit is read into memory; uploads are counted where they land."""

    def __init__(self, app: ASGIApp, limit_bytes: int) -> None:
        self.app = app
        self.limit_bytes = limit_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(UPLOAD_PREFIXES):
            await self.app(scope, receive, send)
            return
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if declared.isdigit() and int(declared) > self.limit_bytes:
            await self._refuse(scope, receive, send, int(declared))
            return
        await self._count(scope, receive, send)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        """For bodies that come in chunks, with no length declared."""
        seen_bytes, over, started = 0, False, False

        async def counted() -> Message:
            nonlocal seen_bytes, over
            if over:
                return {"type": "http.disconnect"}
            message = await receive()
            seen_bytes += len(message.get("body", b""))
            if seen_bytes > self.limit_bytes:
                over = True
                return {"type": "http.disconnect"}
            return message

        async def guarded(message: Message) -> None:
            nonlocal started
            if over and not started:
                return  # The application's own answer to a cut body would hide the reason.
            started = True
            await send(message)

        try:
            await self.app(scope, counted, guarded)
        finally:
            if over and not started:
                await self._refuse(scope, receive, send, seen_bytes)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, size_bytes: int) -> None:
        error = TooLarge(
            f"the body has {format_bytes(size_bytes)} or more; this route takes {format_bytes(self.limit_bytes)}",
            "models are uploaded with: ground models register",
        )
        response = error_response(error, scope.get("state", {}).get("request_id", ""))
        headers = [*response.raw_headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": error.http_status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        await _drain(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _drain(receive: Receive) -> None:
    """Reads a bounded rest of the body: closing on unread bytes would reset the connection under our answer."""
    drained_bytes, deadline = 0, time.monotonic() + _DRAIN_LIMIT_S
    while drained_bytes < _DRAIN_LIMIT_BYTES and time.monotonic() < deadline:
        message = await receive()
        drained_bytes += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


def _request_id(scope: Scope) -> str:
    """The caller's own id when it is a plain word, so that traces join; ours otherwise."""
    given = dict(scope["headers"]).get(b"x-request-id", b"")
    return given.decode() if _GIVEN_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
