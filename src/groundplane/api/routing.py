"""Routers whose routes are made when first asked for. Of some 350, a process's life uses a few.

FastAPI reads an endpoint's signature and builds a validator for each shape in it when the route is declared, and again
for each application and each router that includes it; here all of that waits for the first request, and is done once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.routing import Match, compile_path
from starlette.types import Scope

from groundplane.wire import ErrorBody

_ERRORS = {
    400: "The bytes are no request.",
    401: "No key, or a wrong one.",
    403: "A good key without this permission.",
    404: "No such object, or none that this key sees.",
    409: "Refused with reasons, or the world changed.",
    413: "The body is over the limit.",
    422: "Understood as a request; its content is not valid.",
    500: "A defect of ours; the request id finds it in the log.",
    503: "A part that this needs does not answer.",
}
_SCHEMA = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
_POINTING: dict[int | str, dict[str, Any]] = {
    status: {"description": why, "content": _SCHEMA} for status, why in _ERRORS.items()
}
SHAPING: dict[int | str, dict[str, Any]] = {500: {"description": _ERRORS[500], "model": ErrorBody}}
"""For one route of the document. The others point at the shape that it declares: no validator is built for each."""


class Route(APIRoute):
    """FastAPI's route, which becomes one when something other than its path is looked at."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.path = path
        self.endpoint = endpoint
        self.methods = {method.upper() for method in options.get("methods") or ("GET",)}
        self._options = options
        self._start = path.partition("{")[0]

    def __getattr__(self, name: str) -> Any:
        """Asked only for what is not there yet."""
        if name in {"path_regex", "path_format", "param_convertors"}:
            self.path_regex, self.path_format, self.param_convertors = compile_path(self.path)
        elif name != "_options" and (options := self.__dict__.pop("_options", None)) is not None:
            super().__init__(self.path, self.endpoint, **options)
        else:
            raise AttributeError(name)
        return getattr(self, name)

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        # Most routes are told from a request by how they begin, which is cheaper than a pattern.
        if not scope["path"].startswith(self._start):
            return Match.NONE, {}
        return super().matches(scope)

    def below(self, prefix: str, **changed: Any) -> Self:
        """The same at a longer path, when nobody has looked at it yet."""
        return type(self)(prefix + self.path, self.endpoint, **{**self._options, **changed})


class Router(APIRouter):
    """Declares routes that are made later; its operations are named as their functions, and say how they fail."""

    def __init__(
        self,
        prefix: str = "",
        *,
        tags: list[Any] | None = None,
        route_class: type[Route] = Route,
        include_in_schema: bool = True,
    ) -> None:
        super().__init__(
            prefix=prefix,
            tags=tags,
            route_class=route_class,
            include_in_schema=include_in_schema,
            responses=_POINTING,
            generate_unique_id_function=lambda route: route.name,
        )

    def take(self, other: Router, prefix: str) -> None:
        """Has the other's routes, too, at a longer path; they stand in the document when this router's do."""
        shown = {} if self.include_in_schema else {"include_in_schema": False}
        self.routes += [route.below(prefix, **shown) for route in other.routes if isinstance(route, Route)]
