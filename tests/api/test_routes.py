"""Every route: who may pass, and what the document says of it."""

from __future__ import annotations

import asyncio
import functools
import re
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Match

from groundplane.api.access import OPEN_ROUTES, requirement_of
from groundplane.api.app import ROUTERS, create_app
from groundplane.api.routing import Route, Router
from groundplane.console import pages

JSON_ERRORS = ("401", "403", "404", "409", "413", "422", "500", "503")


def routes() -> list[tuple[str, APIRoute]]:
    """Each route of the API and the console, with its path."""
    listed = [route for router in (*ROUTERS, pages.router()) for route in router.routes]
    return [(route.path, route) for route in listed if isinstance(route, APIRoute)]


@functools.cache
def document() -> dict[str, Any]:
    return create_app(None).openapi()


def test_every_route_asks_for_something_or_stands_on_the_list_of_open_ones() -> None:
    bare = {path for path, route in routes() if requirement_of(route) is None}
    assert bare <= set(OPEN_ROUTES) | {"/console/{rest:path}"}, "declare a permission: requires(Permission.…)"


def test_the_list_of_open_routes_names_only_routes_that_exist() -> None:
    assert set(OPEN_ROUTES) - {"/openapi.json"} <= {path for path, _ in routes()}


def test_the_walk_sees_every_route_of_the_document() -> None:
    walked = {route.path_format for _, route in routes()}
    assert set(document()["paths"]) <= walked
    assert len(document()["paths"]) > 30


def test_every_operation_has_a_name_of_its_own_a_description_and_tags() -> None:
    operations = [operation for verbs in document()["paths"].values() for operation in verbs.values()]
    names = [operation["operationId"] for operation in operations]
    assert len(names) == len(set(names))
    assert not [operation["operationId"] for operation in operations if not operation.get("description")]
    assert not [operation["operationId"] for operation in operations if not operation.get("tags")]


@pytest.mark.parametrize("status", JSON_ERRORS)
def test_every_operation_documents_its_errors_in_our_shape(status: str) -> None:
    for path, verbs in document()["paths"].items():
        for operation in verbs.values():
            schema = operation["responses"][status]["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}, f"{path} {status}"


def test_every_json_answer_has_a_shape() -> None:
    for path, verbs in document()["paths"].items():
        for verb, operation in verbs.items():
            good = next(code for code in operation["responses"] if code.startswith("2"))
            answer = operation["responses"][good].get("content", {}).get("application/json")
            assert answer is None or answer["schema"], f"{verb} {path}"


def test_the_document_declares_the_key_as_the_way_in() -> None:
    made = document()
    assert made["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert made["paths"]["/v1/runs"]["get"]["security"] == [{"key": []}]
    assert "security" not in made["paths"]["/healthz"]["get"]


def test_a_route_is_read_when_first_asked_for() -> None:
    router = Router(prefix="/v1")

    @router.get("/things/{number}")
    async def thing(number: int) -> dict[str, int]:
        return {"number": number}

    @router.get("/unread")
    async def unread(body: NoSuchType) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    class Above(Route):
        pass

    above = Router(route_class=Above, include_in_schema=False)
    above.take(router, "/above")
    api = create_app(None, routers=(router, above))

    async def ask(*paths: str) -> list[tuple[int, Any]]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url="http://here") as client:
            return [(answer.status_code, answer.json()) for answer in [await client.get(path) for path in paths]]

    good, moved, wrong, gone = asyncio.run(ask("/v1/things/7", "/above/v1/things/8", "/v1/things/x", "/v1/nothing"))
    assert (good, moved) == ((200, {"number": 7}), (200, {"number": 8}))
    assert wrong[0] == 422 and gone[0] == 404
    assert [route.include_in_schema for route in above.routes if isinstance(route, Route)] == [False, False]


def test_no_route_stands_in_another_ones_way() -> None:
    api = create_app(None, routers=(pages.router(),))
    declared = [route for route in api.routes if isinstance(route, APIRoute)]
    for route in declared:
        path = re.sub(r"\{\w+(:\w+)?\}", "x", route.path)
        for method in route.methods - {"HEAD"}:
            scope = {"type": "http", "method": method, "path": path, "root_path": "", "headers": []}
            first = next(each for each in declared if each.matches(dict(scope))[0] is Match.FULL)
            assert first is route, f"{method} {route.path} is answered by {first.path}"
