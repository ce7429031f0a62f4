"""Gates: defined, asked, measured for, approved and waived. Aliases move through them whichever door moves them."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.gate import Evidence, Gate, GateApproval, GateCheck, Waiver
from groundplane.identity import Actor, Permission
from groundplane.services.gates import Scores
from groundplane.wire.registry import EvidenceRequest, GateCheckRequest, GateText, MeasureRequest, WaiverRequest

router = Router(prefix="/v1/gates", tags=["gates"])
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
Warden = Annotated[Actor, requires(Permission.POLICY_WRITE)]


@router.get("")
async def list_gates(app: Ground, actor: Reader, model: str = "", project: str = "") -> list[Gate]:
    """Gates by id, of one model or project when named."""
    found: list[Gate] = await app.gates.gates(actor, model=model, project=project)
    return found


@router.put("")
async def define_gates(body: GateText, app: Ground, actor: Warden) -> list[Gate]:
    """Takes every gate of the YAML, in place of those of the same name; all of them, or none."""
    made: list[Gate] = await app.gates.define(actor, body.text)
    return made


@router.post("/check")
async def check_gates(body: GateCheckRequest, app: Ground, actor: Writer) -> GateCheck:
    """What the gates say of a version under an alias, now. Nothing moves; the verdicts are kept."""
    made: GateCheck = await app.gates.check(actor, body.ref, body.alias)
    return made


@router.get("/checks")
async def list_gate_checks(
    app: Ground, actor: Reader, ref: str, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[GateCheck]:
    """What gates said of a version, newest first."""
    found: list[GateCheck] = await app.gates.checks(actor, ref, limit)
    return found


@router.get("/evidence")
async def list_evidence(app: Ground, actor: Reader, ref: str) -> list[Evidence]:
    """What is known about a version beside its certificate, newest first."""
    found: list[Evidence] = await app.gates.evidence(actor, ref)
    return found


@router.post("/evidence", status_code=201)
async def state_evidence(body: EvidenceRequest, app: Ground, actor: Writer) -> Evidence:
    """Keeps scores that somebody states, under their name. They never outweigh the certificate."""
    scores = Scores(
        metric=body.metric,
        values=tuple(body.values),
        successes=body.successes,
        trials=body.trials,
        note=body.note,
    )
    made: Evidence = await app.gates.state(actor, body.ref, scores)
    return made


@router.post("/measure", status_code=201)
async def measure_endpoint(body: MeasureRequest, app: Ground, actor: Writer) -> Evidence:
    """Sends real prompts to a ready endpoint; latencies and cost become evidence of the version it serves."""
    made: Evidence = await app.gates.measure(actor, body.endpoint, requests=body.requests, at_once=body.at_once)
    return made


@router.post("/approve", status_code=201)
async def approve_version(
    body: GateCheckRequest, app: Ground, actor: Annotated[Actor, requires(Permission.PLANS_APPROVE)]
) -> GateApproval:
    """A yes to a version under an alias. Not from whoever registered it."""
    given: GateApproval = await app.gates.approve(actor, body.ref, body.alias, body.comment)
    return given


@router.get("/waivers")
async def list_waivers(app: Ground, actor: Reader, all: bool = False) -> list[Waiver]:
    """Those that hold, soonest to end first; with `all` those that have ended as well."""
    found: list[Waiver] = await app.gates.waivers(actor, over_too=all)
    return found


@router.post("/waivers", status_code=201)
async def waive_requirement(body: WaiverRequest, app: Ground, actor: Warden) -> Waiver:
    """Lifts one requirement until the waiver ends by itself."""
    made: Waiver = await app.gates.waive(
        actor,
        gate_id=body.gate_id,
        requirement=body.requirement,
        version_id=body.version_id,
        owner=body.owner,
        reason=body.reason,
        expires_at=body.expires_at,
    )
    return made


@router.delete("/waivers/{waiver_id}")
async def end_waiver(waiver_id: str, app: Ground, actor: Warden, reason: str = "") -> Waiver:
    """Ends a waiver now."""
    ended: Waiver = await app.gates.unwaive(actor, waiver_id, reason)
    return ended


# Last: its path has room for a waiver's too.
@router.delete("/{project}/{name}")
async def remove_gate(project: str, name: str, app: Ground, actor: Warden, reason: str = "") -> Gate:
    """Takes a gate away."""
    removed: Gate = await app.gates.remove(actor, f"{project}/{name}", reason)
    return removed
