"""The part of the SDK about what passes through the gateways: live requests, rates, and the prediction log."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import msgspec

from groundplane.client.transport import Transport, part
from groundplane.domain.serving.prediction import Erasure, Holdings, PredictionRule
from groundplane.domain.serving.traffic import Filter, Live, Tail
from groundplane.wire.traffic import ErasureRequest, ExportNote, PredictionPage, PredictionRuleRequest

_WAIT_S = 20.0
_EXPORT_PAGE = 1000


class TrafficCalls(Transport):
    def live_traffic(self, project: str | None = None) -> Live:
        """The last minute by key and model, limits with what is used of them, and the newest refusals."""
        return self._get("/v1/traffic/live", Live, params={"project": project})

    def tail_requests(self, wanted: Filter, *, after: int | None = None, wait_s: float = 0.0) -> Tail:
        """What ended since `after`; waits up to 25 s for something."""
        params: dict[str, Any] = {
            "project": wanted.project,
            "model": wanted.model,
            "key": wanted.key_id,
            "status": wanted.status,
            "slow_ms": wanted.slow_ms or None,
            "after": after,
            "wait_s": wait_s or None,
        }
        return self._get("/v1/traffic/requests", Tail, params=params)

    def follow_requests(self, wanted: Filter) -> Iterator[Tail]:
        """Requests as they end, for ever; the first answer is empty and says that somebody listens now."""
        tail = self.tail_requests(wanted)
        while True:
            yield tail
            tail = self.tail_requests(wanted, after=tail.next, wait_s=_WAIT_S)

    # ------------------------------------------------------------ prediction log

    def prediction_rules(self, project: str | None = None) -> list[PredictionRule]:
        """What is kept; a project without a rule keeps nothing."""
        return self._get("/v1/predictions/rules", list[PredictionRule], params={"project": project})

    def set_prediction_rule(self, request: PredictionRuleRequest) -> PredictionRule:
        """Sets what is kept of a project or a model."""
        return self._call("PUT", "/v1/predictions/rules", PredictionRule, body=request)

    def prediction_holdings(self) -> list[Holdings]:
        """How much is kept, and of which days."""
        return self._get("/v1/predictions/holdings", list[Holdings])

    def predictions(self, project: str, **wanted: Any) -> PredictionPage:
        """Records, newest first: `since`, `until` (times), `model`, `key`, `status`, `subject`, `limit`, `after`."""
        given = {
            name: value.isoformat() if isinstance(value, datetime) else str(value).lower() if value is True else value
            for name, value in wanted.items()
        }
        return self._get("/v1/predictions", PredictionPage, params={"project": project, **given})

    def every_prediction(self, project: str, **wanted: Any) -> Iterator[dict[str, Any]]:
        """All that is wanted, oldest first, page by page."""
        after = ""
        while True:
            page = self.predictions(project, **wanted, oldest_first=True, limit=_EXPORT_PAGE, after=after)
            yield from page.records
            after = page.next
            if not after:
                return

    def prediction(self, project: str, request_id: str) -> dict[str, Any]:
        """One record."""
        return self._get(f"/v1/predictions/{part(project)}/{part(request_id)}", dict[str, Any])

    def note_prediction_export(self, project: str, records: int, to: str) -> None:
        """Says on the trail that records were copied elsewhere."""
        body = msgspec.json.encode(ExportNote(project=project, records=records, to=to))
        self._send("POST", "/v1/predictions/exports", content=body, headers={"Content-Type": "application/json"})

    def erase_predictions(self, project: str, subject: str, reason: str = "") -> Erasure:
        """Removes a subject's records from every file; the answer is the proof."""
        body = ErasureRequest(project=project, subject=subject, reason=reason)
        return self._call("POST", "/v1/predictions/erase", Erasure, body=body, timeout_s=600.0)
