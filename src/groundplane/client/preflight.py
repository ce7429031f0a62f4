"""The part of the SDK that asks nodes before they are paid for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from groundplane.domain.preflight import PreflightReport
from groundplane.wire.plans import PreflightRequest

Answer = TypeVar("Answer")
PATIENCE_S = 300.0


class PreflightCalls(ABC):
    """Mixed into `groundplane.client.Client`, which sends."""

    def preflight(self, spec: str, *, node: str = "") -> list[PreflightReport]:
        """One report per node. Failed checks are told, not raised."""
        body = PreflightRequest(spec=spec, node=node)
        return self._call("POST", "/v1/preflight", list[PreflightReport], body=body, timeout_s=PATIENCE_S)

    def run_preflight(self, run_id: str) -> list[PreflightReport]:
        """What nodes answered before each attempt."""
        return self._call("GET", f"/v1/runs/{quote(run_id, safe='')}/preflight", list[PreflightReport])

    @abstractmethod
    def _call(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Answer: ...
