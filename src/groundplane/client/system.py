"""The part of the SDK that asks after the installation: health, who is asking, measures, and the trail."""

from __future__ import annotations

from groundplane.audit import Event
from groundplane.client.transport import Transport
from groundplane.wire.system import AuditVerdict, Health, Status, Whoami


class SystemCalls(Transport):
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
