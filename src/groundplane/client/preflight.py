"""The part of the SDK that asks nodes before they are paid for."""

from __future__ import annotations

from groundplane.client.transport import Transport, part
from groundplane.domain.preflight import PreflightReport
from groundplane.wire.plans import PreflightRequest

PATIENCE_S = 300.0


class PreflightCalls(Transport):
    def preflight(self, spec: str, *, node: str = "") -> list[PreflightReport]:
        """One report per node. Failed checks are told, not raised."""
        body = PreflightRequest(spec=spec, node=node)
        return self._call("POST", "/v1/preflight", list[PreflightReport], body=body, timeout_s=PATIENCE_S)

    def run_preflight(self, run_id: str) -> list[PreflightReport]:
        """What nodes answered before each attempt."""
        return self._call("GET", f"/v1/runs/{part(run_id)}/preflight", list[PreflightReport])
