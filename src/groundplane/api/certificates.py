"""Later facts of versions, facts that projects require, and what scans found."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.gate import Evidence
from groundplane.domain.provenance.addendum import Addendum
from groundplane.domain.provenance.required_facts import Missing, RequiredFacts, Stage
from groundplane.domain.registry import RegistryEntry
from groundplane.identity import Actor, Permission
from groundplane.wire.certificates import AddendumRequest, RequireRequest

router = Router(prefix="/v1", tags=["models"])
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
Warden = Annotated[Actor, requires(Permission.POLICY_WRITE)]
Limit = Annotated[int, Query(ge=1, le=500)]


@router.get("/models/{name}/versions/{version}/addenda")
async def list_addenda(name: str, version: str, app: Ground, actor: Reader) -> list[Addendum]:
    """What became known of a version after its certificate, oldest first; each with its signed envelope."""
    found: list[Addendum] = await app.addenda.addenda(actor, f"{name}@{version}")
    return found


@router.post("/models/{name}/versions/{version}/addenda", status_code=201)
async def add_addendum(name: str, version: str, body: AddendumRequest, app: Ground, actor: Writer) -> Addendum:
    """Signs a later fact that somebody states, and chains it to the certificate."""
    made: Addendum = await app.addenda.state(actor, f"{name}@{version}", body.kind, body.facts, body.reason)
    return made


@router.get("/models/{name}/versions/{version}/missing-facts")
async def list_missing_facts(
    name: str, version: str, app: Ground, actor: Reader, stage: Stage = Stage.DEPLOY
) -> list[Missing]:
    """What the project requires at this stage and nobody knows, each with how it is supplied."""
    return list(await app.fact_rules.missing(actor, f"{name}@{version}", stage))


@router.get("/required-facts")
async def list_required_facts(app: Ground, actor: Reader) -> list[RequiredFacts]:
    """What each project requires, of the projects that the caller sees."""
    found: list[RequiredFacts] = await app.fact_rules.rules(actor)
    return found


@router.put("/required-facts/{project}")
async def set_required_facts(project: str, body: RequireRequest, app: Ground, actor: Warden) -> RequiredFacts:
    """Takes these facts in place of what was required. Asked at registration, deployment and load from now on."""
    made: RequiredFacts = await app.fact_rules.require(actor, project, body.required, body.reason)
    return made


@router.delete("/required-facts/{project}", status_code=204)
async def remove_required_facts(project: str, app: Ground, actor: Warden, reason: str) -> None:
    """Requires nothing any more."""
    await app.fact_rules.release(actor, project, reason)


@router.get("/scans")
async def list_scans(app: Ground, actor: Reader, ref: str = "", limit: Limit = 100) -> list[Evidence]:
    """What scans found, newest first: of one version, or of every version that the caller sees."""
    found: list[Evidence] = await app.scans.scans(actor, ref=ref, limit=limit)
    return found


@router.get("/adoptions")
async def list_adoptions(app: Ground, actor: Reader, limit: Limit = 100) -> list[RegistryEntry]:
    """Versions that were adopted from elsewhere, newest first."""
    return [entry for entry, _ in (await app.scans.adoptions(actor))[:limit]]
