"""Where a version stands and what became known later; gates, required facts, scans."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Form, Request, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.console.web import HOME, PageRoute, back, page
from groundplane.domain.gate import Evidence
from groundplane.domain.provenance.addendum import AddendumKind, summary
from groundplane.domain.provenance.required_facts import FACT_NAMES, Missing, Stage
from groundplane.errors import IntegrityFailure, InvalidInput
from groundplane.identity import Actor, Permission

Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
Word = Annotated[str, Form(max_length=500)]
Warden = Annotated[Actor, requires(Permission.POLICY_WRITE)]
SHOWN = 20
LISTED = 100


def routes() -> Router:
    router = Router(route_class=PageRoute)

    @router.get("/gates")
    async def gates(request: Request, actor: Reader, ground: Ground) -> Response:
        return page(
            request,
            "gates.html",
            actor,
            gates=await ground.gates.gates(actor),
            waivers=await ground.gates.waivers(actor, over_too=True),
            rules=await ground.fact_rules.rules(actor),
            projects=[project.id for project in await ground.access.projects(actor)],
            facts=(*FACT_NAMES, "metrics.NAME"),
            may_require=actor.may(Permission.POLICY_WRITE),
        )

    @router.post("/gates/required-facts")
    async def require(
        actor: Warden, ground: Ground, project: Word = "", facts: Word = "", reason: Word = ""
    ) -> Response:
        if facts.strip():
            await ground.fact_rules.require(actor, project, facts.split(","), reason)
        else:
            await ground.fact_rules.release(actor, project, reason)
        return back(f"{HOME}/gates")

    @router.get("/scans")
    async def scans(request: Request, actor: Reader, ground: Ground) -> Response:
        found = await ground.scans.scans(actor, limit=LISTED)
        adopted = (await ground.scans.adoptions(actor))[:LISTED]
        return page(request, "scans.html", actor, scans=[_scan(each) for each in found], adopted=adopted)

    @router.post("/models/{ref}/scan")
    async def scan(ref: str, actor: Writer, ground: Ground) -> Response:
        """Reads every stored byte: work, hence a form and no link."""
        await ground.scans.scan(actor, ref)
        return back(f"{HOME}/scans")

    @router.post("/models/{ref}/addenda")
    async def add(ref: str, actor: Writer, ground: Ground, kind: Word = "", text: Word = "") -> Response:
        version = await ground.models.get(actor, ref)
        stated = {"sla": "sla", "rollback-target": "target"}
        if kind not in stated:
            raise InvalidInput(f"{kind!r} can't be stated here", "ground models add states evaluations")
        await ground.addenda.state(actor, version.id, AddendumKind(kind), {stated[kind]: text})
        return back(f"{HOME}/models/{version.id}")

    @router.post("/models/{ref}/alias")
    async def move(ref: str, actor: Writer, ground: Ground, alias: Word = "", reason: Word = "") -> Response:
        version = await ground.models.get(actor, ref)
        await ground.registry.move(actor, version.name, alias.strip(), str(version.number), reason)
        return back(f"{HOME}/models/{version.id}")

    @router.post("/models/{ref}/copy")
    async def copy(ref: str, actor: Writer, ground: Ground, name: Word = "", reason: Word = "") -> Response:
        made = await ground.tracked_models.copy(actor, ref, name.strip(), reason=reason.strip())
        return back(f"{HOME}/models/{made.id}")

    @router.post("/models/{ref}/rollback")
    async def rollback(ref: str, actor: Writer, ground: Ground, alias: Word = "", reason: Word = "") -> Response:
        version = await ground.models.get(actor, ref)
        moved = await ground.registry.rollback(actor, version.name, alias.strip(), reason)
        return back(f"{HOME}/models/{version.name}@{moved.to_number}")

    return router


def _scan(found: Evidence) -> dict[str, Any]:
    findings = [text for name, text in sorted(found.facts.items()) if name.startswith("finding ")]
    return {"row": found, "findings": findings, "rules": found.facts.get("rules", "")[:12]}


async def _missing(ground: Any, actor: Actor, ref: str) -> tuple[Missing, ...] | str:
    """What the project requires of a deployment; or, of a certificate that does not hold, why nobody can say."""
    try:
        missing: tuple[Missing, ...] = await ground.fact_rules.missing(actor, ref, Stage.DEPLOY)
    except IntegrityFailure as error:
        return error.message
    return missing


async def standing(ground: Any, actor: Actor, ref: str) -> dict[str, Any]:
    """What a version's page shows beside its certificate."""
    view = await ground.registry.view(actor, ref)
    name = view.version.name
    checks = await ground.gates.checks(actor, ref, limit=1)
    return {
        "view": view,
        "histories": {alias: await ground.registry.history(actor, name, alias, SHOWN) for alias in view.aliases},
        "check": checks[0] if checks else None,
        "later": [(each, summary(each)) for each in await ground.addenda.addenda(actor, ref)],
        "missing": await _missing(ground, actor, ref),
        "scans": [_scan(each) for each in await ground.scans.scans(actor, ref=ref, limit=1)],
        "may_move": actor.may(Permission.MODELS_WRITE),
    }
