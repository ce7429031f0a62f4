"""How the SDK speaks HTTP: one connection, bodies and answers as records, errors as the GroundError tree."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import msgspec

from groundplane import __version__
from groundplane.client.httpx_alone import httpx
from groundplane.errors import GroundError, InvalidInput, Refusal, Refused, Unauthenticated, Unavailable
from groundplane.wire import ErrorBody, ErrorInfo

Answer = TypeVar("Answer")


class Transport:
    """A kept connection, and how calls are sent, tried again and understood. Each part of the SDK stands on it.

    `patience` is entered while an answer is waited for: a place to say so where it takes long.
    """

    patience: Callable[[], AbstractContextManager[None]] = nullcontext

    def __init__(self, base_url: str, key: str, *, timeout_s: float = 60.0) -> None:
        self.base_url = base_url.rstrip("/")
        if not (key.isascii() and key.isprintable()):
            raise Unauthenticated("the key holds characters that no key has", "set GROUND_KEY to the key alone")
        if not self.base_url.startswith(("http://", "https://")):
            raise InvalidInput(f"{base_url!r} is no address", "write GROUND_URL like http://127.0.0.1:4700")
        self._http = httpx.Client(
            base_url=self.base_url,
            headers={"Authorization": f"Bearer {key}", "User-Agent": f"groundplane/{__version__}"},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            # Given up well before the server does, so that a change never meets a connection being closed.
            limits=httpx.Limits(keepalive_expiry=10.0),
            # A control plane is addressed directly: proxies from the environment would see its keys.
            trust_env=False,
            # Reading the system's certificates takes longer than a command does: not for an address without TLS.
            verify=self.base_url.startswith("https://"),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of connections. Twice is the same as once."""
        self._http.close()

    def _get(self, path: str, answer: type[Answer], *, params: Mapping[str, Any] | None = None) -> Answer:
        return _decoded(self._send("GET", path, params=params), answer)

    def _call(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        *,
        body: Any = None,
        content: Iterator[bytes] | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        sent: Any = content
        headers = {name: value for name, value in (headers or {}).items() if value}
        if body is not None:
            sent = msgspec.json.encode(body)
            headers["Content-Type"] = "application/json"
        return _decoded(
            self._send(method, path, params=params, content=sent, headers=headers, timeout_s=timeout_s), answer
        )

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        given = {name: value for name, value in (params or {}).items() if value is not None and value != ""}
        timeout = httpx.USE_CLIENT_DEFAULT if timeout_s is None else httpx.Timeout(timeout_s, connect=5.0)
        request = self._http.build_request(
            method, path, params=given or None, content=content, headers=headers, timeout=timeout
        )
        try:
            with self.patience():
                response = self._http.send(request)
        except httpx.RemoteProtocolError as error:
            if method != "GET":
                raise self._silent(error) from None
            # The server closed a kept-alive connection as we used it: asking again changes nothing.
            response = self._retried(request)
        except httpx.TransportError as error:
            raise self._silent(error) from None
        if response.is_success:
            return response
        raise error_from(response)

    def _retried(self, request: httpx.Request) -> httpx.Response:
        try:
            return self._http.send(request)
        except httpx.TransportError as error:
            raise self._silent(error) from None

    def _silent(self, error: httpx.TransportError) -> Unavailable:
        if isinstance(error, httpx.ConnectError):
            return Unavailable(f"nothing answers at {self.base_url}", "start it: ground up")
        what = "took too long to answer" if isinstance(error, httpx.TimeoutException) else "broke the connection off"
        return Unavailable(f"the control plane at {self.base_url} {what}", "see: ground status")


def error_from(response: httpx.Response) -> GroundError:
    """The error that the control plane sent, as the same class it raised there."""
    try:
        info = msgspec.json.decode(response.content, type=ErrorBody).error
    except msgspec.DecodeError:
        address = f"{response.request.url.host}:{response.request.url.port}"
        return Unavailable(
            f"{address} answered {response.status_code}, not as Groundplane does",
            "is GROUND_URL the address of a control plane?",
        )
    known = _kinds(GroundError)
    if info.code in known:
        return error_of(info)
    # Another server's error in a like shape, or a newer version's code: the status still says what kind it is.
    by_status = {kind.http_status: kind for kind in reversed(known.values()) if not issubclass(kind, Refusal)}
    kind = by_status.get(response.status_code, GroundError)
    return kind(info.message, info.hint or "is GROUND_URL the address of a control plane?")


def error_of(info: ErrorInfo) -> GroundError:
    """An error from its wire form."""
    if info.code == InvalidInput.code:
        return InvalidInput(info.message, info.hint, info.problems)
    kind = _kinds(GroundError).get(info.code, GroundError)
    if issubclass(kind, Refusal):
        # A server that tells no reasons one by one is no reason to lose the one it told.
        return kind(info.refusals or (Refused(rule=info.code, need=info.message, have="no reasons", hint=info.hint),))
    return kind(info.message, info.hint)


def made(kind: type[Answer], /, **values: Any) -> Answer:
    """A request; what its bounds refuse is refused here as the control plane would."""
    try:
        return kind(**values)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def part(text: str, *, hint: str = "name the object") -> str:
    """One path segment: what stands in it can't become another path."""
    if not text.strip("."):
        raise InvalidInput(f"{text!r} is no name", hint)
    return quote(text, safe="")


def _kinds(root: type[GroundError]) -> dict[str, type[GroundError]]:
    found = {root.code: root}
    for kind in root.__subclasses__():
        found = {**_kinds(kind), **found} if kind.code == root.code else {**found, **_kinds(kind)}
    return found


def _decoded(response: httpx.Response, answer: type[Answer]) -> Answer:
    try:
        return msgspec.json.decode(response.content, type=answer)
    except msgspec.DecodeError as error:
        raise Unavailable(
            f"{response.request.url.path} answered in a shape that this version doesn't know: {error}",
            f"use the same version on both sides; this is {__version__}",
        ) from None
