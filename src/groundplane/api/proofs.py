"""Resume proofs: begun for a spec or a run, and how they ended."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.checkpoints import ResumeProof
from groundplane.identity import Actor, Permission
from groundplane.wire.runs import ProofRequest

router = Router(prefix="/v1/resume-proofs", tags=["checkpoints"])


@router.post("", status_code=201)
async def begin_proof(
    body: ProofRequest, app: Ground, actor: Annotated[Actor, requires(Permission.RUNS_WRITE)]
) -> ResumeProof:
    """Submits a short run of the job, which is killed after its first checkpoint and must go on from there."""
    begun: ResumeProof = await app.proofs.begin(actor, text=body.spec, run_id=body.run_id)
    return begun


@router.get("")
async def list_proofs(
    app: Ground,
    actor: Annotated[Actor, requires(Permission.RUNS_READ)],
    run_id: Annotated[str | None, Query(description="The run that proves it.")] = None,
) -> list[ResumeProof]:
    """Newest first."""
    found: list[ResumeProof] = await app.proofs.proofs(actor, run_id=run_id)
    return found
