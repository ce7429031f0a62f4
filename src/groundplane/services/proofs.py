"""Proofs that a job resumes: a short run is killed after its first checkpoint, and must go on from there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from groundplane.domain.checkpoints import Judged, ProofStatus, ResumeProof, judge_resume, proof_id
from groundplane.domain.run import Attempt, Checkpoint, EndReason, Run
from groundplane.domain.spec import JobSpec, Retry
from groundplane.domain.spec.parse import dump, parse_one
from groundplane.errors import Conflict, InvalidInput, NotFound, Unavailable
from groundplane.identity import SYSTEM, Actor
from groundplane.ports import Clock, Executor, Store, Tx
from groundplane.services.audit_trail import Teller
from groundplane.services.plans import Plans
from groundplane.services.runs import Runs

LONGEST_S = 1800
SUFFIX = "-resume-proof"
log = logging.getLogger(__name__)


class Proofs:
    """Begins proofs, takes each a step further, and tells how they ended."""

    def __init__(
        self, *, store: Store, clock: Clock, executors: Mapping[str, Executor], plans: Plans, runs: Runs
    ) -> None:
        self._store, self._clock, self._executors = store, clock, executors
        self._tell = Teller(clock, "run")
        self._plans, self._runs = plans, runs

    async def begin(self, actor: Actor, *, text: str = "", run_id: str = "") -> ResumeProof:
        """Submits the short run, at the cost of at most half an hour of it. Refusal, NotFound, Conflict, InvalidInput.

        An earlier proof of the same command is replaced; one under way is a Conflict.
        """
        spec = await self._spec(actor, text, run_id)
        async with self._store.transaction() as tx:
            before = await tx.get(ResumeProof, proof_id(spec))
        if before is not None and before.status is ProofStatus.RUNNING:
            raise Conflict(f"{before.run_id} is proving this already", f"ground explain {before.run_id}")
        (plan,) = await self._plans.plan(actor, dump(_short(spec)))
        run = await self._runs.submit(actor, plan.id)
        fresh = ResumeProof(
            id=proof_id(spec),
            project=run.project,
            run_id=run.id,
            asked_by=actor.name,
            asked_at=self._clock.now(),
            version=before.version if before is not None else 0,
        )
        async with self._store.transaction() as tx:
            kept = await tx.update(fresh) if before is not None else fresh
            if before is None:
                await tx.insert(fresh)
            await self._note(tx, actor, "resume-proof.begin", kept)
        return kept

    async def proofs(self, actor: Actor, *, run_id: str | None = None) -> list[ResumeProof]:
        """Newest first; of one run, or all that the actor sees."""
        async with self._store.transaction() as tx:
            found = await tx.find(ResumeProof, {"run_id": run_id} if run_id else {}, order="-asked_at", limit=500)
        return [proof for proof in found if actor.sees(proof.project)]

    async def step(self) -> bool:
        """Looks at every proof under way. One that can't be looked at now is looked at again."""
        async with self._store.transaction() as tx:
            under_way = await tx.find(ResumeProof, {"status": ProofStatus.RUNNING})
        for proof in under_way:
            try:
                await self._advance(proof)
            except (Conflict, Unavailable) as error:
                log.info("proof of %s waits: %s", proof.run_id, error.message)
        return False

    async def _advance(self, proof: ResumeProof) -> None:
        async with self._store.transaction() as tx:
            run = await tx.get(Run, proof.run_id)
            attempts = await tx.find(Attempt, {"run_id": proof.run_id}, order="number")
            saved = await tx.find(Checkpoint, {"run_id": proof.run_id}, order="-step", limit=1)
        if run is None:
            await self._finish(proof, Judged(False, None, "its run is gone"))
            return
        killed = next((each for each in attempts if each.end_reason is EndReason.TEST_KILL), None)
        if killed is None:
            if run.status.is_over:
                why = f"it ended as {run.end_reason} before it could be killed: let it write a checkpoint earlier"
                await self._finish(proof, Judged(False, None, why))
            elif saved and attempts and attempts[-1].end_reason is None:
                await self._executors[run.pool].stop(attempts[-1].id, EndReason.TEST_KILL)
            return
        step = max(killed.last_step or 0, saved[0].step if saved and saved[0].attempt_id == killed.id else 0)
        if proof.killed_at_step is None:
            async with self._store.transaction() as tx:
                proof = await tx.update(replace(proof, killed_at_step=step))
        after = next((each for each in attempts if each.number > killed.number and each.started_at), None)
        if after is None:
            if run.status.is_over:
                await self._finish(proof, Judged(False, None, f"it was not started again: {run.message}"))
            return
        await self._judge(proof, run, after)

    async def _judge(self, proof: ResumeProof, run: Run, after: Attempt) -> None:
        assert proof.killed_at_step is not None
        assert after.started_at is not None
        seen = (await self._executors[run.pool].observe([after.id]))[after.id]
        found = [
            (each.step, datetime.fromtimestamp(each.written_at_s, UTC) if each.written_at_s else None)
            for each in seen.checkpoints
        ]
        if seen.state == "absent" and after.end_reason is not None:
            words = (
                "the second attempt ended before it was looked at: let the job run longer after its first checkpoint"
            )
            await self._finish(proof, Judged(False, None, words))
            return
        over = seen.state == "ended"
        judged = judge_resume(proof.killed_at_step, found, after.started_at, over=over)
        if judged is not None:
            await self._finish(proof, judged)

    async def _finish(self, proof: ResumeProof, judged: Judged) -> None:
        status = ProofStatus.PROVED if judged.proved else ProofStatus.FAILED
        async with self._store.transaction() as tx:
            ended = await tx.update(
                replace(
                    proof,
                    status=status,
                    continued_at_step=judged.step,
                    message=judged.sentence,
                    ended_at=self._clock.now(),
                )
            )
            await self._note(tx, SYSTEM, "resume-proof.end", ended)
        try:
            await self._runs.stop(SYSTEM, proof.run_id, "the resume proof is done")
        except NotFound:
            log.info("the run of proof %s is gone", proof.id)

    async def _spec(self, actor: Actor, text: str, run_id: str) -> JobSpec:
        if run_id:
            return (await self._runs.get(actor, run_id)).spec
        spec = await asyncio.to_thread(parse_one, text, now=self._clock.now())
        if not isinstance(spec, JobSpec):
            raise InvalidInput(f"{spec.metadata.name} is an endpoint", "only jobs resume: kind: Job")
        return spec

    async def _note(self, tx: Tx, actor: Actor, action: str, proof: ResumeProof) -> None:
        after = {"proof": proof.id, "status": proof.status.value, "killed_at_step": proof.killed_at_step}
        await self._tell(tx, actor, action, proof.run_id, proof.project, after, proof.message)


def _short(spec: JobSpec) -> JobSpec:
    """The same command with nothing at stake: half an hour, no outputs, no spot, no array, no schedule."""
    name = f"{spec.metadata.name[: 63 - len(SUFFIX)].rstrip('-')}{SUFFIX}"
    return replace(
        spec,
        metadata=replace(spec.metadata, name=name),
        max_duration_s=min(spec.max_duration_s, LONGEST_S),
        retry=Retry(max_attempts=2, backoff_s=1),
        outputs=(),
        spot=False,
        array=None,
        schedule="",
    )
