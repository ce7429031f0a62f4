"""The Python SDK: one typed method per API call, answers as the domain's own records, errors as the GroundError tree.

    with Client("http://127.0.0.1:4700", key) as client:
        plan = client.plan(Path("train.yaml").read_text())[0]
        run = client.apply_plan(plan.id).run
        for piece in client.follow_log(run.id): ...

A client is for one thread. A read is tried again once when a kept-alive connection turns out to be closed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from groundplane import __version__
from groundplane.audit import Event
from groundplane.client.approvals import ApprovalCalls
from groundplane.client.artifacts import ArtifactCalls
from groundplane.client.limits import LimitCalls
from groundplane.client.nodes import NodeCalls
from groundplane.client.policy import PolicyCalls
from groundplane.client.preflight import PreflightCalls
from groundplane.client.queue import QueueCalls
from groundplane.client.recon import ReconCalls
from groundplane.client.requests import RequestCalls
from groundplane.domain.access import Exposure, Key, Project
from groundplane.domain.budget import Budget, Hold
from groundplane.domain.certificate import Facts
from groundplane.domain.compare import Comparison
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.ledger import CostRow
from groundplane.domain.model import ModelVersion
from groundplane.domain.planning import Plan
from groundplane.domain.run import Run
from groundplane.domain.sizing_report import SizeReport
from groundplane.errors import GroundError, InvalidInput, Refusal, Unauthenticated, Unavailable
from groundplane.identity import Role
from groundplane.ports import Sample
from groundplane.settings import Settings
from groundplane.wire import ErrorBody, ErrorInfo, ReasonRequest
from groundplane.wire.access import ExposureRequest, KeyRequest, NewKey, ProjectRequest
from groundplane.wire.models import Certificate, ModelCheck, RegisterRequest
from groundplane.wire.money import BudgetRequest, Report
from groundplane.wire.plans import Applied, AppliedAll, PlansBody, SpecRequest
from groundplane.wire.runs import LogPiece, RunDetail, RunExplanation
from groundplane.wire.sizing import CompareRequest, SizeRequest
from groundplane.wire.system import AuditVerdict, Health, Status, Whoami

Answer = TypeVar("Answer")
DEFAULT_THRESHOLDS_PERCENT = (50, 80, 100)
LOG_PIECE_BYTES = 1 << 18
_FOLLOW_PAUSE_FIRST_S, _FOLLOW_PAUSE_MAX_S = 0.1, 1.0


class Client(
    ApprovalCalls,
    ArtifactCalls,
    LimitCalls,
    NodeCalls,
    PolicyCalls,
    PreflightCalls,
    QueueCalls,
    ReconCalls,
    RequestCalls,
):
    """A connection to one control plane. Close it, or use it in a `with` block."""

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

    @classmethod
    def from_settings(cls, settings: Settings) -> Client:
        """The key of GROUND_KEY, or the admin key that the first start left under GROUND_HOME."""
        return cls(settings.base_url, settings.key or _admin_key(settings.home))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of connections. Twice is the same as once."""
        self._http.close()

    # ------------------------------------------------------------ system

    def health(self) -> Health:
        return self._get("/healthz", Health)

    def whoami(self) -> Whoami:
        return self._get("/v1/whoami", Whoami)

    def status(self) -> Status:
        return self._get("/v1/status", Status)

    def metrics(self) -> str:
        """Prometheus' text format."""
        return self._send("GET", "/metrics").text

    # ------------------------------------------------------------ plans

    def plan(self, spec: str) -> tuple[Plan, ...]:
        """One stored plan per document of the spec. Raises InvalidInput with every problem and its line."""
        return self._call("POST", "/v1/plans", PlansBody, body=SpecRequest(spec=spec)).plans

    def get_plan(self, plan_id: str) -> Plan:
        return self._get(f"/v1/plans/{_part(plan_id)}", Plan)

    def plans(self, *, project: str | None = None, limit: int = 20) -> list[Plan]:
        """Newest first."""
        return self._get("/v1/plans", list[Plan], params={"project": project, "limit": limit})

    def plan_markdown(self, plan_id: str) -> str:
        """One plan for a ticket or a pull request."""
        return self._send("GET", f"/v1/plans/{_part(plan_id)}/markdown").text

    def apply_plan(self, plan_id: str, *, idempotency_key: str = "") -> Applied:
        """Raises Refusal with every reason, Conflict when the world changed since the plan."""
        return self._call(
            "POST", f"/v1/plans/{_part(plan_id)}/apply", Applied, headers={"Idempotency-Key": idempotency_key}
        )

    def apply(self, spec: str, *, idempotency_key: str = "") -> AppliedAll:
        """Plans and applies every document. Nothing begins when one is refused."""
        return self._call(
            "POST",
            "/v1/apply",
            AppliedAll,
            body=SpecRequest(spec=spec),
            headers={"Idempotency-Key": idempotency_key},
        )

    # ------------------------------------------------------------ runs

    def runs(self, *, project: str | None = None, status: str | None = None, limit: int = 100) -> list[Run]:
        """Newest first. `status` is a run's status, or `active`."""
        return self._get("/v1/runs", list[Run], params={"project": project, "status": status, "limit": limit})

    def run(self, run_id: str) -> RunDetail:
        return self._get(f"/v1/runs/{_part(run_id)}", RunDetail)

    def explain(self, run_id: str) -> RunExplanation:
        return self._get(f"/v1/runs/{_part(run_id)}/explain", RunExplanation)

    def stop_run(self, run_id: str, reason: str = "") -> Run:
        return self._call("POST", f"/v1/runs/{_part(run_id)}/stop", Run, body=_made(ReasonRequest, reason=reason))

    def samples(self, run_id: str, limit: int = 120) -> list[Sample]:
        """The newest measurements beside the job, oldest first."""
        return self._get(f"/v1/runs/{_part(run_id)}/samples", list[Sample], params={"limit": limit})

    def log(
        self, run_id: str, *, offset: int = 0, limit_bytes: int = LOG_PIECE_BYTES, attempt: int | None = None
    ) -> LogPiece:
        """A piece of one attempt's log, the newest one's by default: raw bytes, as the job wrote them."""
        params = {"offset": offset, "limit": limit_bytes, "attempt": attempt}
        answer = self._send("GET", f"/v1/runs/{_part(run_id)}/log", params=params)
        return LogPiece(
            data=answer.content,
            attempt=int(answer.headers["X-Ground-Attempt"]),
            next_offset=int(answer.headers["X-Ground-Next-Offset"]),
            complete=answer.headers["X-Ground-Complete"] == "true",
        )

    def read_log(self, run_id: str, attempt: int | None = None) -> Iterator[LogPiece]:
        """What one attempt has written so far, piece by piece."""
        offset = 0
        while True:
            piece = self.log(run_id, offset=offset, attempt=attempt)
            if not piece.data:
                return
            yield piece
            offset, attempt = piece.next_offset, piece.attempt

    def follow_log(self, run_id: str, *, attempt: int | None = None, patience_s: float = 120.0) -> Iterator[LogPiece]:
        """Every byte once, from the given attempt (the newest) through later ones, until the run is over.

        Goes on from where it was when the control plane restarts; Unavailable after `patience_s` without an answer.
        """
        offset, pause_s = 0, _FOLLOW_PAUSE_FIRST_S
        silent_since: float | None = None
        waited = False
        while True:
            try:
                piece = self.log(run_id, offset=offset, attempt=attempt)
                over = piece.complete and self._is_last(run_id, piece.attempt)
                silent_since = None
            except Unavailable:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > patience_s:
                    raise
                time.sleep(_FOLLOW_PAUSE_MAX_S)
                continue
            if attempt is None and offset == 0 and waited and piece.attempt > 1:
                attempt = 1  # Followed since before the first attempt: none is skipped.
                continue
            waited = waited or piece.attempt == 0
            if piece.data:
                yield piece
                offset, pause_s = piece.next_offset, _FOLLOW_PAUSE_FIRST_S
            if piece.attempt:
                attempt = piece.attempt
            if over:
                return
            if piece.complete and piece.attempt and self._has_attempt(run_id, piece.attempt + 1):
                attempt, offset = piece.attempt + 1, 0
            elif not piece.data:
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _FOLLOW_PAUSE_MAX_S)

    def wait(self, run_id: str, *, timeout_s: float | None = None) -> Run:
        """The run once it is over. Unavailable when that takes longer than `timeout_s`."""
        began, pause_s = time.monotonic(), _FOLLOW_PAUSE_FIRST_S
        while not (run := self.run(run_id).run).status.is_over:
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise Unavailable(f"{run_id} is still {run.status} after {timeout_s:.0f} s", f"ground explain {run_id}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _FOLLOW_PAUSE_MAX_S)
        return run

    def _is_last(self, run_id: str, attempt: int) -> bool:
        run = self.run(run_id).run
        return run.status.is_over and run.attempt <= attempt

    def _has_attempt(self, run_id: str, number: int) -> bool:
        return self.run(run_id).run.attempt >= number

    # ------------------------------------------------------------ models

    def models(self) -> list[ModelVersion]:
        """Every version, by name, newest first."""
        return self._get("/v1/models", list[ModelVersion])

    def model(self, name: str) -> list[ModelVersion]:
        """One model's versions, newest first."""
        return self._get(f"/v1/models/{_part(name)}", list[ModelVersion])

    def model_version(self, name: str, number: int) -> ModelVersion:
        return self._get(f"/v1/models/{_part(name)}/versions/{number}", ModelVersion)

    def certificate(self, name: str, number: int) -> Certificate:
        """Raises IntegrityFailure when its signature does not hold."""
        return self._get(f"/v1/models/{_part(name)}/versions/{number}/certificate", Certificate)

    def verify_model(self, name: str, number: int) -> ModelCheck:
        """Re-hashes every file: takes as long as reading them does."""
        path = f"/v1/models/{_part(name)}/versions/{number}/verify"
        return self._call("POST", path, ModelCheck, timeout_s=3600)

    def register_model(self, name: str, *, upload_id: str, project: str, facts: Facts) -> ModelVersion:
        """Turns an upload into a signed version. Raises InvalidInput or Refusal with what is missing."""
        body = RegisterRequest(upload_id=upload_id, project=project, facts=facts)
        return self._call("POST", f"/v1/models/{_part(name)}/versions", ModelVersion, body=body, timeout_s=3600)

    # ------------------------------------------------------------ endpoints

    def endpoints(self, project: str | None = None) -> list[Endpoint]:
        return self._get("/v1/endpoints", list[Endpoint], params={"project": project})

    def endpoint(self, name: str) -> Endpoint:
        return self._get(f"/v1/endpoints/{_part(name)}", Endpoint)

    def stop_endpoint(self, name: str, reason: str = "") -> Endpoint:
        return self._call(
            "POST", f"/v1/endpoints/{_part(name)}/stop", Endpoint, body=_made(ReasonRequest, reason=reason)
        )

    # ------------------------------------------------------------ access

    def keys(self, project: str | None = None) -> list[Key]:
        """Without their secrets' hashes: those never leave the control plane."""
        return self._get("/v1/keys", list[Key], params={"project": project})

    def create_key(
        self,
        *,
        name: str,
        project: str,
        owner: str,
        role: Role,
        models: Sequence[str] = (),
        networks: Sequence[str] = (),
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        expires_at: datetime | None = None,
    ) -> NewKey:
        """The answer holds the secret, this once."""
        body = _made(
            KeyRequest,
            name=name,
            project=project,
            owner=owner,
            role=role,
            models=tuple(models),
            networks=tuple(networks),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            expires_at=expires_at,
        )
        return self._call("POST", "/v1/keys", NewKey, body=body)

    def revoke_key(self, key_id: str, reason: str = "") -> Key:
        return self._call("DELETE", f"/v1/keys/{_part(key_id)}", Key, params={"reason": reason})

    def projects(self) -> list[Project]:
        return self._get("/v1/projects", list[Project])

    def project(self, name: str) -> Project:
        return self._get(f"/v1/projects/{_part(name)}", Project)

    def create_project(
        self,
        *,
        name: str,
        owner: str,
        cost_center: str,
        monthly_limit_microusd: int | None = None,
        thresholds_percent: Sequence[int] = DEFAULT_THRESHOLDS_PERCENT,
        reason: str = "",
    ) -> Project:
        body = _made(
            ProjectRequest,
            name=name,
            owner=owner,
            cost_center=cost_center,
            monthly_limit_microusd=monthly_limit_microusd,
            thresholds_percent=tuple(thresholds_percent),
            reason=reason,
        )
        return self._call("POST", "/v1/projects", Project, body=body)

    def exposures(self) -> list[Exposure]:
        return self._get("/v1/exposures", list[Exposure])

    def expose(self, *, address: str, owner: str, reason: str, expires_at: datetime) -> Exposure:
        body = _made(ExposureRequest, address=address, owner=owner, reason=reason, expires_at=expires_at)
        return self._call("POST", "/v1/exposures", Exposure, body=body)

    def withdraw_exposure(self, address: str, reason: str = "") -> None:
        self._send("DELETE", f"/v1/exposures/{_part(address)}", params={"reason": reason})

    # ------------------------------------------------------------ money

    def budget(self, project: str) -> Budget:
        return self._get(f"/v1/projects/{_part(project)}/budget", Budget)

    def set_budget(
        self,
        project: str,
        *,
        monthly_limit_microusd: int | None,
        thresholds_percent: Sequence[int] = DEFAULT_THRESHOLDS_PERCENT,
        reason: str = "",
    ) -> Budget:
        body = _made(
            BudgetRequest,
            monthly_limit_microusd=monthly_limit_microusd,
            thresholds_percent=tuple(thresholds_percent),
            reason=reason,
        )
        return self._call("PUT", f"/v1/projects/{_part(project)}/budget", Budget, body=body)

    def holds(self, project: str | None = None) -> list[Hold]:
        return self._get("/v1/holds", list[Hold], params={"project": project})

    def costs(
        self, *, by: str = "project", since: datetime | None = None, until: datetime | None = None
    ) -> list[CostRow]:
        """`by` is project, model, run, key, owner or cost_center. The last 30 days when no period is given."""
        return self._get("/v1/costs", list[CostRow], params={"by": by, **_period(since, until)})

    def report(self, *, since: datetime | None = None, until: datetime | None = None) -> Report:
        """The last seven days when no period is given."""
        return self._get("/v1/report", Report, params=_period(since, until))

    # ------------------------------------------------------------ sizing

    def size(self, request: SizeRequest) -> SizeReport:
        """Memory, layout, time and remedies. Raises InvalidInput with near matches for names that are not known."""
        return self._call("POST", "/v1/size", SizeReport, body=request)

    def compare(self, request: CompareRequest) -> Comparison:
        """A workload's options with their dollars a month, cheapest first."""
        return self._call("POST", "/v1/compare", Comparison, body=request)

    # ------------------------------------------------------------ audit

    def audit_events(
        self, *, limit: int = 50, object_kind: str | None = None, object_id: str | None = None
    ) -> list[Event]:
        """Newest first."""
        params = {"limit": limit, "object_kind": object_kind, "object_id": object_id}
        return self._get("/v1/audit/events", list[Event], params=params)

    def audit_verify(self) -> AuditVerdict:
        """Walks the whole trail."""
        return self._call("POST", "/v1/audit/verify", AuditVerdict, timeout_s=3600)

    # ------------------------------------------------------------ transport

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


def gateway_answers(gateway_url: str) -> bool:
    """Whether the gateway says that it is healthy; needs no key."""
    try:
        return httpx.get(f"{gateway_url}/healthz", timeout=3.0, trust_env=False).is_success
    except httpx.TransportError:
        return False


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
    if issubclass(kind, Refusal) and info.refusals:
        return kind(info.refusals)
    return kind(info.message, info.hint)


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


def _admin_key(home: Path) -> str:
    path = home / "keys" / "admin"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        raise Unauthenticated(
            f"there is no key: GROUND_KEY is not set and {path} does not exist",
            "ground up makes the first key; anybody else asks an operator for one",
        ) from None
    except PermissionError:
        raise Unauthenticated(f"{path} belongs to somebody else", "set GROUND_KEY to a key of your own") from None


def _made(kind: type[Answer], **values: Any) -> Answer:
    """A request; what its bounds refuse is refused here as the control plane would."""
    try:
        return kind(**values)
    except ValueError as error:
        raise InvalidInput(str(error)) from None


def _part(text: str) -> str:
    """One path segment: what stands in it can't become another path."""
    if not text.strip("."):
        raise InvalidInput(f"{text!r} is no name", "name the object")
    return quote(text, safe="")


def _period(since: datetime | None, until: datetime | None) -> dict[str, str | None]:
    return {
        "since": since.isoformat() if since is not None else None,
        "until": until.isoformat() if until is not None else None,
    }
