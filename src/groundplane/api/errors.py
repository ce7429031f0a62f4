"""Errors become answers: one JSON shape for every refusal, fault and defect.

`{"error": {"code", "message", "hint", "problems": […], "refusals": […], "request_id"}}`; the status is the error's own.
A traceback never leaves the process: an unexpected exception is a 500 whose request id finds it in the log.
"""

from __future__ import annotations

import re

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from groundplane.errors import GroundError, InvalidInput, NotFound, Problem, TooLarge, Unavailable
from groundplane.wire import ErrorBody, ErrorInfo


class MethodNotAllowed(InvalidInput):
    """The path exists, the verb does not. Kept beside the door: only HTTP knows verbs."""

    http_status = 405


class BadRequest(InvalidInput):
    """The bytes are no request that the framework could read."""

    http_status = 400


def error_info(error: GroundError, request_id: str) -> ErrorInfo:
    """The error as it crosses the door."""
    return ErrorInfo(
        code=error.code,
        message=error.message,
        hint=error.hint,
        problems=tuple(getattr(error, "problems", ())),
        refusals=tuple(getattr(error, "refusals", ())),
        request_id=request_id,
    )


def error_response(error: GroundError, request_id: str = "") -> Response:
    headers: dict[str, str] = {}
    if error.http_status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="groundplane"'
    if isinstance(error, Unavailable):
        headers["Retry-After"] = "1"
    body = msgspec.json.encode(ErrorBody(error=error_info(error, request_id)))
    return Response(body, status_code=error.http_status, headers=headers, media_type="application/json")


def unexpected(request_id: str) -> GroundError:
    """What the caller learns of a defect: that it is ours, and how to find it."""
    return GroundError(
        "the control plane failed on this request; it is a defect of ours, not of yours",
        f"look for request id {request_id} in log/control-plane.log under GROUND_HOME",
    )


def from_validation(error: RequestValidationError) -> InvalidInput:
    """FastAPI's findings in our words: one problem per field."""
    problems = []
    for found in error.errors():
        place = [str(part) for part in found["loc"]]
        if found["type"] == "json_invalid":
            reason = found.get("ctx", {}).get("error", "it can't be parsed")
            return InvalidInput(
                f"the body is no valid JSON: {reason} (at byte {place[-1]})",
                "send application/json; the shapes are in /openapi.json",
            )
        if place == ["body"] and isinstance(found.get("input"), bytes):
            hint = "send Content-Type: application/json; the shapes are in /openapi.json"
            return InvalidInput("the body was not sent as JSON", hint)
        name = ".".join(place[1:]) or place[0]
        problems.append(Problem(field=name, message=_words(found)))
    summary = str(problems[0]) if len(problems) == 1 else f"{len(problems)} fields can't be taken; first: {problems[0]}"
    return InvalidInput(summary, "the shapes are in /openapi.json", problems)


def _words(found: dict[str, object]) -> str:
    kind, message = str(found["type"]), str(found["msg"])
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        return "is no field of this request"
    if kind == "missing":
        return "is required"
    return re.sub(r"^(Value error, |Input )", "", message)


def from_http(error: HTTPException, request: Request) -> GroundError:
    if error.status_code == 404:
        return NotFound(f"there is no {request.url.path} here", "the routes are in /openapi.json")
    if error.status_code == 405:
        return MethodNotAllowed(f"{request.url.path} does not take {request.method}", "the routes are in /openapi.json")
    if error.status_code == 413:
        return TooLarge("the body is larger than this route takes")
    return BadRequest(f"the request can't be read: {error.detail}", "the shapes are in /openapi.json")


def install(api: FastAPI) -> None:
    """Gives the application our answers for every kind of error it can raise."""

    async def on_ground(request: Request, error: Exception) -> Response:
        assert isinstance(error, GroundError)
        return error_response(error, request_id_of(request))

    async def on_validation(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return error_response(from_validation(error), request_id_of(request))

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return error_response(from_http(error, request), request_id_of(request))

    api.add_exception_handler(GroundError, on_ground)
    api.add_exception_handler(RequestValidationError, on_validation)
    api.add_exception_handler(HTTPException, on_http)


def request_id_of(request: Request) -> str:
    return str(request.scope.get("state", {}).get("request_id", ""))
