"""The part of the SDK that follows data to nodes."""

from __future__ import annotations

from groundplane.client.transport import Transport, part
from groundplane.domain.staging import NodeCache, StagedData

_PATIENCE_S = 180.0


class DataCalls(Transport):
    def run_data(self, run_id: str) -> StagedData:
        """How far a run's data is, and what came of each source."""
        return self._get(f"/v1/runs/{part(run_id)}/data", StagedData)

    def data_caches(self, *, pool: str = "", node: str = "") -> list[NodeCache]:
        """What nodes keep of staged data."""
        return self._get("/v1/data/caches", list[NodeCache], params={"pool": pool, "node": node})

    def clear_data_caches(self, pool: str, *, node: str = "", reason: str = "") -> list[NodeCache]:
        """Removes what no run uses, and says what is left."""
        params = {"pool": pool, "node": node, "reason": reason}
        return self._call("DELETE", "/v1/data/caches", list[NodeCache], params=params, timeout_s=_PATIENCE_S)
