"""The part of the SDK that takes requests: a message in, work items, answers and specs out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from groundplane.client.transport import Transport, part
from groundplane.domain.intake import QuotaFact
from groundplane.domain.intake.request import Request
from groundplane.wire import ReasonRequest
from groundplane.wire.requests import AnswersRequest, MessageRequest, SpecsBody

_HINT = "ground request list shows yours"


class RequestCalls(Transport):
    def create_request(self, message: str, *, project: str | None = None, quotas: Sequence[QuotaFact] = ()) -> Request:
        """Reads and stores a message. Raises InvalidInput when it is empty, TooLarge above 64 KiB."""
        body = MessageRequest(message=message, project=project, quotas=tuple(quotas))
        return self._call("POST", "/v1/requests", Request, body=body)

    def requests(self, *, project: str | None = None, status: str | None = None, limit: int = 100) -> list[Request]:
        """Newest first. `status` is open, ready or closed."""
        params = {"project": project, "status": status, "limit": limit}
        return self._call("GET", "/v1/requests", list[Request], params=params)

    def request(self, request_id: str) -> Request:
        return self._call("GET", _path(request_id), Request)

    def answer_request(self, request_id: str, answers: Mapping[str, str]) -> Request:
        """`owner` answers for every item, `2.model` for item 2; an empty answer takes an earlier one back.

        Raises InvalidInput naming every answer that can't be taken; none is taken then.
        """
        body = AnswersRequest(answers=dict(answers))
        return self._call("POST", f"{_path(request_id)}/answers", Request, body=body)

    def request_specs(self, request_id: str) -> SpecsBody:
        """YAML to plan, what is missing, and steps for items that no spec describes."""
        return self._call("GET", f"{_path(request_id)}/specs", SpecsBody)

    def close_request(self, request_id: str, reason: str = "") -> Request:
        """Twice is the same as once."""
        return self._call("POST", f"{_path(request_id)}/close", Request, body=ReasonRequest(reason=reason))


def _path(request_id: str) -> str:
    return f"/v1/requests/{part(request_id, hint=_HINT)}"
