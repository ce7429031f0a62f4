"""What there is to run on, and the catalogue behind it: reconnaissance, measuring, showing and updating."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.catalogue.changes import Proposal, TableView, summary
from groundplane.domain.planning.recon import Machine, Reconnaissance, Wanted
from groundplane.identity import Actor, Permission
from groundplane.wire.catalog import CatalogRequest, CatalogUpdate

router = Router(prefix="/v1", tags=["recon"])
Reader = Annotated[Actor, requires(Permission.SYSTEM_READ)]
Keeper = Annotated[Actor, requires(Permission.CATALOG_WRITE)]
Name = Annotated[str, Query(max_length=100)]


@router.get("/recon")
async def get_recon(
    app: Ground,
    actor: Reader,
    gpu_memory_bytes: Annotated[int | None, Query(ge=0, description="Least memory of one accelerator.")] = None,
    gpu: Name = "",
    cloud: Name = "",
    region: Name = "",
    sku: Name = "",
    max_price_microusd_per_hour: Annotated[int | None, Query(ge=0)] = None,
    include_retired: bool = False,
    live: Annotated[bool, Query(description="Ask the clouds too, with the control plane's own credentials.")] = False,
) -> Reconnaissance:
    """This machine, every pool's offers, and the SKUs that fit the filters, with price, quota and restriction."""
    wanted = Wanted(
        gpu_memory_bytes=gpu_memory_bytes,
        gpu=gpu,
        cloud=cloud.lower(),
        region=region.lower(),
        sku=sku,
        max_price_microusd_per_hour=max_price_microusd_per_hour,
        include_retired=include_retired,
    )
    found: Reconnaissance = await app.recon.recon(actor, wanted, live=live)
    return found


@router.post("/recon/measure")
async def measure_machine(app: Ground, actor: Keeper) -> Machine:
    """Measures this machine's disks with bounded temporary files, and says what it has."""
    machine: Machine = await app.recon.measure(actor)
    return machine


@router.get("/catalog")
async def list_catalog(app: Ground, actor: Reader) -> list[TableView]:
    """The catalogue's tables, without their rows."""
    tables: list[TableView] = await app.catalog.tables(actor)
    return tables


@router.get("/catalog/{table}")
async def get_catalog_table(table: str, app: Ground, actor: Reader) -> TableView:
    """One table with its rows, the operator's first."""
    view: TableView = await app.catalog.table(actor, table)
    return view


@router.post("/catalog")
async def update_catalog(body: CatalogRequest, app: Ground, actor: Keeper) -> CatalogUpdate:
    """Shows what an update would change; with the digest of what was shown in `expect`, carries it out."""
    given = {
        "documents": {document.name: document.text for document in body.documents},
        "prices": body.prices,
        "regions": body.regions,
        "replace": body.replace,
    }
    proposal: Proposal
    if body.expect:
        proposal = await app.catalog.update(actor, **given, expect=body.expect, reason=body.reason)
    else:
        proposal = await app.catalog.propose(actor, **given)
    return CatalogUpdate(
        changes=proposal.changes,
        notes=proposal.notes,
        summary=summary(proposal.changes),
        digest=proposal.digest,
        applied=bool(body.expect),
    )
