"""What all doors for MLflow clients share: their errors, how their requests are read, how their words are spelt.

Requests are protobuf messages as JSON: 64-bit integers may come as text, numbers as "NaN". Fields that are newer than
this server are let pass, as clients expect; search texts are never read half.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from groundplane.api.errors import from_validation
from groundplane.api.routing import Route
from groundplane.errors import (
    AccessError,
    Conflict,
    Forbidden,
    GroundError,
    IntegrityFailure,
    InvalidInput,
    NotFound,
    Refusal,
    TooLarge,
    Unavailable,
)
from groundplane.services.tracking import AlreadyThere

T = TypeVar("T")
Number = int | float | str
PREFIX = "/mlflow"


class NoEndpoint(NotFound):
    """The path is none of those served here. Kept beside the door: only this wire tells it from a missing object."""


# Clients try again for minutes on any 5xx, so none is sent for what will not be otherwise next time.
_ERRORS: tuple[tuple[type[GroundError], str, int], ...] = (
    (NoEndpoint, "ENDPOINT_NOT_FOUND", 404),
    (NotFound, "RESOURCE_DOES_NOT_EXIST", 404),
    (AlreadyThere, "RESOURCE_ALREADY_EXISTS", 400),
    (Conflict, "RESOURCE_CONFLICT", 409),
    (Refusal, "BAD_REQUEST", 400),
    (TooLarge, "INVALID_PARAMETER_VALUE", 413),
    (InvalidInput, "INVALID_PARAMETER_VALUE", 400),
    (Forbidden, "PERMISSION_DENIED", 403),
    (AccessError, "UNAUTHENTICATED", 401),
    (IntegrityFailure, "DATA_LOSS", 422),
    (Unavailable, "TEMPORARILY_UNAVAILABLE", 503),
)


class MlflowRoute(Route):
    """Errors as MLflow clients read them: `{"error_code", "message"}`, with our hint in the message."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                return await handle(request)
            except GroundError as error:
                return error_answer(error)
            except RequestValidationError as error:
                return error_answer(from_validation(error))

        return handled


def error_answer(error: GroundError) -> Response:
    code, status = next(
        ((code, status) for kind, code, status in _ERRORS if isinstance(error, kind)), ("INTERNAL_ERROR", 500)
    )
    headers = {"Retry-After": "1"} if status == 503 else {}
    return answer({"error_code": code, "message": sentence(error)}, status, headers)


def sentence(error: GroundError) -> str:
    """Everything that stands against it, each with its way forward."""
    if isinstance(error, Refusal):
        return "; ".join(f"{each} ({each.hint})" if each.hint else str(each) for each in error.refusals)
    return f"{error.message} ({error.hint})" if error.hint else error.message


def answer(document: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(document), status, dict(headers or {}), media_type="application/json")


async def read(request: Request, kind: type[T]) -> T:
    """The body, or for a GET the query, as this message. Raises InvalidInput naming what can't be read."""
    try:
        if request.method == "GET":
            return msgspec.convert(_query(request, kind), type=kind, strict=False)
        return msgspec.json.decode(await request.body() or b"{}", type=kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidInput(f"the request can't be taken: {error}", "use an official client") from None
    except msgspec.DecodeError as error:
        raise InvalidInput(f"the body is no valid JSON: {error}", "use an official client") from None


def _query(request: Request, kind: type) -> dict[str, object]:
    lists = {field.name for field in msgspec.structs.fields(kind) if "list" in str(field.type)}
    return {
        name: request.query_params.getlist(name) if name in lists else request.query_params[name]
        for name in request.query_params
    }


def number(value: Number, what: str) -> float:
    """A double of protobuf's JSON, where NaN and the infinities are texts."""
    try:
        return float(value)
    except ValueError:
        raise InvalidInput(f"{what}: {str(value)[:40]!r} is no number") from None


def told_number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


class Pair(msgspec.Struct):
    key: str = ""
    value: str = ""


def mapping(values: Iterable[Pair]) -> dict[str, str]:
    return {each.key: each.value for each in values}


def needed(value: str, name: str) -> str:
    if not value:
        raise InvalidInput(f"missing value for required parameter '{name}'", "use an official client")
    return value
