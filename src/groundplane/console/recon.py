"""What there is to run on, as a page: this machine, the pools, the clouds' SKUs by filter. Live only when asked to."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import PageRoute, page
from groundplane.domain.planning.recon import CLOUDS, Wanted
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission
from groundplane.units import parse_bytes, parse_usd

ROWS_SHOWN = 100
Word = Annotated[str, Query(max_length=100)]


def routes() -> Router:
    router = Router(route_class=PageRoute, prefix="/recon")

    @router.get("")
    async def recon(
        request: Request,
        actor: Annotated[Actor, requires(Permission.SYSTEM_READ)],
        ground: Ground,
        gpu: Word = "",
        gpu_memory: Word = "",
        cloud: Word = "",
        region: Word = "",
        max_price: Word = "",
        retired: bool = False,
        live: bool = False,
    ) -> Response:
        asked = {"gpu": gpu, "gpu_memory": gpu_memory, "cloud": cloud, "region": region, "max_price": max_price}
        problem: InvalidInput | None = None
        try:
            found = await ground.recon.recon(actor, wanted(**asked, retired=retired), live=live)
        except InvalidInput as error:
            # A filter that names nothing keeps the page, and what was typed, so that it can be put right.
            problem, found = error, await ground.recon.recon(actor, Wanted(), live=False)
        return page(
            request,
            "recon.html",
            actor,
            http_status=200 if problem is None else problem.http_status,
            found=found,
            rows=found.survey.rows[:ROWS_SHOWN] if problem is None else (),
            asked=asked,
            retired=retired,
            live=live,
            clouds=CLOUDS,
            problem=problem,
        )

    return router


def wanted(*, gpu: str, gpu_memory: str, cloud: str, region: str, max_price: str, retired: bool) -> Wanted:
    """The form's words as filters. Raises InvalidInput for a size or an amount that is none."""
    try:
        return Wanted(
            gpu=gpu.strip(),
            gpu_memory_bytes=parse_bytes(gpu_memory) if gpu_memory.strip() else None,
            cloud=cloud.strip().lower(),
            region=region.strip().lower(),
            max_price_microusd_per_hour=parse_usd(max_price) if max_price.strip() else None,
            include_retired=retired,
        )
    except ValueError as error:
        raise InvalidInput(str(error), "sizes are written like 80GB, money like $12.50") from None
