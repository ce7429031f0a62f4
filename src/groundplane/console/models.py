"""Models as pages: each with its newest version, and one version with its birth certificate, files and verification."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Query, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.certificate import read
from groundplane.console.registry import standing
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.identity import Actor, Permission

PRODUCTION = "production"
SIBLINGS_SHOWN = 20
MODELS_SHOWN = 50
DIFFERENCES_SHOWN = 500
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/models")

    @router.get("")
    async def models(
        request: Request, actor: Reader, ground: Ground, after: Annotated[str, Query(max_length=63)] = ""
    ) -> Response:
        found = await ground.models.names(actor, after=after, limit=MODELS_SHOWN + 1)
        shown = found[:MODELS_SHOWN]
        aliases = {each.name: await ground.models.aliases(each.name) for each in shown}
        more = len(found) > len(shown)
        return page(request, "models.html", actor, models=shown, aliases=aliases, more=more, after=after)

    @router.get("/{ref}")
    async def version(request: Request, ref: str, actor: Reader, ground: Ground) -> Response:
        """A bare name leads to the version that is in production, or else to the newest."""
        if "@" not in ref:
            newest = await ground.models.newest(actor, ref)
            number = (await ground.models.aliases(ref)).get(PRODUCTION, newest.number)
            return back(f"{HOME}/models/{ref}@{number}")
        return await _page(request, ref, actor, ground, verification=None)

    @router.get("/{ref}/against/{before}")
    async def compared(request: Request, ref: str, before: str, actor: Reader, ground: Ground) -> Response:
        found = await ground.registry.diff(actor, before, ref)
        return page(request, "versions_compared.html", actor, found=found, shown=DIFFERENCES_SHOWN)

    @router.post("/{ref}/verify")
    async def verify(request: Request, ref: str, actor: Reader, ground: Ground) -> Response:
        """Re-hashes every file: work, though it changes nothing, hence a form and no link."""
        return await _page(request, ref, actor, ground, verification=await ground.models.verify(actor, ref))

    return router


async def _page(request: Request, ref: str, actor: Actor, ground: Any, *, verification: Any) -> Response:
    version = await ground.models.get(actor, ref)
    siblings = await ground.registry.entries(actor, version.name, SIBLINGS_SHOWN + 1)
    endpoints = [each for each in await ground.endpoints.endpoints(actor) if each.model_version == version.id]
    return page(
        request,
        "model.html",
        actor,
        version=version,
        certificate=read(version.certificate),
        endpoints=endpoints,
        siblings=siblings[:SIBLINGS_SHOWN],
        more=len(siblings) > SIBLINGS_SHOWN,
        aliases=await _by_number(ground, version.name),
        verification=verification,
        packages=await ground.oci.packages_of(version),
        **await standing(ground, actor, version.id),
    )


async def _by_number(ground: Any, name: str) -> dict[int, list[str]]:
    """The aliases that stand for each number."""
    standing: dict[int, list[str]] = {}
    for alias, number in (await ground.models.aliases(name)).items():
        standing.setdefault(number, []).append(alias)
    return standing
