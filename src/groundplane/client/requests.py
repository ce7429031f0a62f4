"""The part of the SDK that takes requests: a message in, work items, answers and specs out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from groundplane.domain.intake import QuotaFact
from groundplane.domain.intake.request import Request
from groundplane.errors import InvalidInput
from groundplane.wire import ReasonRequest
from groundplane.wire.requests import AnswersRequest, MessageRequest, SpecsBody

Answer = TypeVar("Answer")


class RequestCalls(ABC):
    """Mixed into `groundplane.client.Client`, which sends."""

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

    @abstractmethod
    def _call(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
    ) -> Answer: ...


def _path(request_id: str) -> str:
    if not request_id.strip("."):
        raise InvalidInput(f"{request_id!r} is no request", "ground request list shows yours")
    return f"/v1/requests/{quote(request_id, safe='')}"
