"""Requests to a model, tried again where that helps. 429s are honoured by all threads at once."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from itertools import islice
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from groundplane.errors import Refusal, Refused, Unavailable

TRIES = 6
GONE_PATIENCE_S = 600.0
"""How long a server that can't be reached at all may take to come back."""
NEW_KEY_PATIENCE_S = 60.0
NO_MONEY_PATIENCE_S = 60.0
"""The gateway is given money slice by slice: a slice that is spent is no budget that is spent."""
PAUSE_MAX_S = 300.0
WAY = "way-"
"""How the names of sockets begin that lead from a node to the gateway."""
BUSY_PATIENCE_S = 1800.0
"""How long a row may be refused with 429: one that no limit ever lets through must not hold up the others for good."""
_AGAIN = frozenset({408, 425, 500, 502, 503, 504})
_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request. `status` 0: nothing did, and `error` says why. `latency_s` is the last try's."""

    status: int
    body: object
    request_id: str = ""
    latency_s: float = 0.0
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.status == 200

    @property
    def why_not(self) -> str:
        """What the server, or the way to it, said; empty when it went well."""
        if self.ok:
            return ""
        said = self.body.get("error") if isinstance(self.body, dict) else None
        message = said.get("message") if isinstance(said, dict) else None
        return self.error or f"HTTP {self.status}: {str(message or self.body)[:300]}"

    def tokens(self) -> tuple[int, int]:
        """(prompt, completion) as the server counted them; zeros where it did not."""
        usage = self.body.get("usage") if isinstance(self.body, dict) else None
        found = [usage.get(name) if isinstance(usage, dict) else 0 for name in ("prompt_tokens", "completion_tokens")]
        return tuple(each if isinstance(each, int) else 0 for each in found)  # type: ignore[return-value]


class Asker:
    """A server that is asked. Threads share it; each keeps a connection of its own."""

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        timeout_s: float,
        fresh: bool = False,
        patience_s: float = GONE_PATIENCE_S,
        ways: Path | None = None,
    ) -> None:
        """`fresh` asks for answers of the model itself, not of a cache; `patience_s` is for a server that is gone.

        With `ways` the server is behind sockets in that folder, and not at `base_url`.
        """
        self._ways = ways
        parts = urlsplit(base_url)
        self._host, self._port, self._tls = parts.hostname or "", parts.port, parts.scheme == "https"
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        if fresh:
            self._headers["Cache-Control"] = "no-cache, no-store"
        self._timeout_s, self._patience_s = timeout_s, patience_s
        self._local = threading.local()
        self._lock = threading.Lock()
        self._not_before = 0.0
        self._answered = False
        self._broke_since: float | None = None
        self._began = time.monotonic()

    def ask(self, path: str, body: dict[str, object]) -> Answer:
        """One answer, good or bad. Raises Refusal when the money is spent, Unavailable when the server stays away."""
        content = json.dumps(body).encode()
        tries, gone_since, answer = 0, None, Answer(0, None)
        began = time.monotonic()
        while tries < TRIES:
            self._wait_turn()
            started = time.monotonic()
            try:
                status, headers, said = self._once(path, content)
            except (OSError, http.client.HTTPException) as error:
                self._drop()
                answer = Answer(0, None, error=f"{type(error).__name__}: {error}")
                if isinstance(error, TimeoutError):
                    tries, gone_since = tries + 1, None  # it is there, and slow with this row
                    continue
                gone_since = gone_since or started
                if time.monotonic() - gone_since > self._patience_s:
                    where = f"{self._host}:{self._port}" if self._ways is None else "the gateway"
                    raise Unavailable(f"{where} has not answered for {self._patience_s:.0f} s: {error}") from None
                time.sleep(min(2.0, 0.2 * 2**tries))
                continue
            gone_since = None
            latency_s = time.monotonic() - started
            answer = Answer(status, _json(said), headers.get("x-request-id", ""), latency_s)
            if status == 200:
                self._answered, self._broke_since = True, None
                return answer
            if status == 429 and time.monotonic() - began < BUSY_PATIENCE_S:
                self._refused_for_now(answer, headers)
                continue
            if status in (401, 404) and not self._answered and time.monotonic() - self._began < NEW_KEY_PATIENCE_S:
                time.sleep(0.3)  # a new key, or a new endpoint, is on its way to the gateway
                continue
            if status not in _AGAIN:
                return answer
            tries += 1
            time.sleep(min(10.0, _seconds(headers.get("retry-after")) or 0.5 * 2**tries))
        return answer

    def _refused_for_now(self, answer: Answer, headers: dict[str, str]) -> None:
        said = answer.body.get("error") if isinstance(answer.body, dict) else None
        now = time.monotonic()
        broke = isinstance(said, dict) and said.get("code") == "insufficient_quota"
        self._broke_since = (self._broke_since or now) if broke else None
        if self._broke_since is not None and now - self._broke_since > NO_MONEY_PATIENCE_S:
            hint = "raise the project's budget, then submit it again"
            raise Refusal([Refused(rule="budget", need="money for the next row", have=answer.why_not, hint=hint)])
        wait_s = min(PAUSE_MAX_S, _seconds(headers.get("retry-after")) or 1.0)
        with self._lock:
            self._not_before = max(self._not_before, time.monotonic() + wait_s)

    def _wait_turn(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))

    def _once(self, path: str, content: bytes) -> tuple[int, dict[str, str], bytes]:
        connection: http.client.HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._new_connection()
        connection.request("POST", path, content, self._headers)
        response = connection.getresponse()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()

    def _new_connection(self) -> http.client.HTTPConnection:
        if self._ways is not None:
            return _WayConnection(self._ways, self._timeout_s)
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=self._timeout_s)

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None


class _WayConnection(http.client.HTTPConnection):
    """Through the newest way that the control plane holds open; those before it were cut off."""

    def __init__(self, folder: Path, timeout_s: float) -> None:
        super().__init__("gateway", timeout=timeout_s)
        self._folder = folder

    def connect(self) -> None:
        failure: OSError = FileNotFoundError("the control plane has opened no way to the gateway yet")
        for path in sorted(self._folder.glob(f"{WAY}*"), key=lambda each: each.lstat().st_mtime_ns, reverse=True):
            way = socket.socket(socket.AF_UNIX)
            way.settimeout(self.timeout)
            try:
                way.connect(str(path))
            except OSError as error:
                way.close()
                failure = error
                continue
            self.sock = way
            return
        raise failure


def side_by_side(work: Callable[[_In], _Out], given: Iterable[_In], at_once: int) -> Iterator[_Out]:
    """`work` on each, `at_once` at a time, in order. The first failure stops the rest."""
    with ThreadPoolExecutor(at_once) as pool:
        source = iter(given)
        under_way: list[Future[_Out]] = [pool.submit(work, each) for each in islice(source, at_once)]
        try:
            while under_way:
                yield under_way.pop(0).result()
                under_way += [pool.submit(work, each) for each in islice(source, 1)]
        finally:
            for each in under_way:
                each.cancel()


def _json(said: bytes) -> object:
    try:
        value: object = json.loads(said)
    except ValueError:
        return said[:2000].decode("utf-8", "replace")
    return value


def _seconds(text: str | None) -> float | None:
    """Retry-After: seconds, or a date."""
    if not text:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None
