"""The part of the SDK that knows lineage."""

from __future__ import annotations

from typing import Any

from groundplane.client.transport import Transport, part
from groundplane.domain.lineage import LineageStanding, LineageView, OutsideEvent, Received


class LineageCalls(Transport):
    def lineage_of(self, node: str) -> LineageView:
        """`model:NAME@3` or `dataset:NAME@1`: what it was made from, what was made from it, what others say."""
        return self._get(f"/v1/lineage/nodes/{part(node)}", LineageView)

    def lineage_events(self, limit: int = 100) -> list[OutsideEvent]:
        """What jobs outside have told, newest first."""
        return self._get("/v1/lineage/events", list[OutsideEvent], params={"limit": limit})

    def lineage_standing(self) -> LineageStanding:
        """How far the receiver of our lineage was told."""
        return self._get("/v1/lineage/standing", LineageStanding)

    def send_lineage(self, event: dict[str, Any]) -> Received:
        """An OpenLineage event of a job outside. Twice is the same as once."""
        return self._call("POST", "/api/v1/lineage", Received, body=event)
