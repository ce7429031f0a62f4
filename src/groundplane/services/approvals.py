"""Approvals: asked for when a plan is beyond what its project may begin alone, given or refused by people, and told of.

Every change is made with the plan's row locked, so that a yes, a no, the end of its time and applying never overlap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from groundplane.audit import EventDraft
from groundplane.domain import approval as rules
from groundplane.domain.access import Key, Project, SelfService, checked_self_service, checked_text
from groundplane.domain.approval import Approval, ApprovalStatus
from groundplane.domain.budget import Budget, budget_id
from groundplane.domain.planning.plan import Plan, PlanStatus, Verdict
from groundplane.domain.spec import EndpointSpec, JobSpec
from groundplane.errors import InvalidInput, NotFound, Refusal, Refused
from groundplane.identity import CROSS_PROJECT, SYSTEM, Actor
from groundplane.ports import Clock, Notice, Notifier, Store, Tx
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller

MAX_LISTED = 1_000
OPEN = (ApprovalStatus.WAITING, ApprovalStatus.APPROVED)
_PLAN_STATUS = {
    ApprovalStatus.WAITING: PlanStatus.NEEDS_APPROVAL,
    ApprovalStatus.APPROVED: PlanStatus.APPROVED,
    ApprovalStatus.REJECTED: PlanStatus.REJECTED,
    ApprovalStatus.EXPIRED: PlanStatus.EXPIRED,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What metrics tell of one project: questions by status, and how long it took on average until one was approved."""

    by_status: Mapping[str, int]
    approved_after_s: float | None


class Approvals:
    """Use cases over approvals, the gate that admission asks, and the step their loop takes."""

    def __init__(self, *, store: Store, clock: Clock, notify: Notifier, validity_s: int, four_eyes: bool) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "project")
        self._notify = notify
        self._validity_s = validity_s
        self._four_eyes = four_eyes

    # ------------------------------------------------------------ inside a caller's transaction

    async def verdicts(
        self, tx: Tx, spec: JobSpec | EndpointSpec, worst_case_microusd: int, *, by: str = "", lock: bool = False
    ) -> tuple[Verdict, ...]:
        """One verdict per self-service limit that this work is beyond. `lock` keeps the month's sum from moving.

        `by` plans it: the question that a plan of theirs would replace is not counted as waiting.
        """
        name = spec.metadata.project
        project = await tx.get(Project, name)
        limits = project.self_service if project is not None else SelfService()
        taken = 0
        if limits.month_max_microusd is not None:
            this_month = budget_id(name, self._clock.now())
            month = await tx.get(Budget, this_month, lock=lock)
            if month is None and lock:
                # The month's first plans race before its row is there to be locked: the project's stands in for it.
                await tx.get(Project, name, lock=True)
                month = await tx.get(Budget, this_month, lock=True)
            waiting = [
                asked.worst_case_microusd
                for asked in await tx.find(Approval, {"project": name, "status": OPEN})
                if not (by and rules.is_same_work(asked, spec, by))
            ]
            taken = sum(waiting) + (month.held_microusd + month.posted_microusd if month is not None else 0)
        return rules.beyond(spec, worst_case_microusd, limits, taken)

    async def ask(self, tx: Tx, *plans: Plan) -> list[EventDraft]:
        """Writes the question down for each of these new plans that needs approval, in place of the same person's
        earlier question about the same work. Returns the events to append at the end of the transaction.
        """
        events: list[EventDraft] = []
        for plan in plans:
            if plan.status is PlanStatus.NEEDS_APPROVAL:
                project = await tx.get(Project, plan.project)
                limits = project.self_service if project is not None else SelfService()
                events += await self._replace(tx, plan)
                await tx.insert(rules.ask(plan, limits, four_eyes=self._four_eyes, validity_s=self._validity_s))
        return events

    async def _replace(self, tx: Tx, plan: Plan) -> list[EventDraft]:
        where = {"project": plan.project, "status": ApprovalStatus.WAITING, "created_by": plan.created_by}
        events: list[EventDraft] = []
        spec = plan.job or plan.endpoint
        assert spec is not None, f"plan {plan.id} plans nothing"
        for found in await tx.find(Approval, where):
            if not rules.is_same_work(found, spec, plan.created_by):
                continue
            older = await tx.get(Plan, found.id, lock=True)
            before = await tx.get(Approval, found.id, lock=True)
            if older is None or before is None or not rules.is_same_work(before, spec, plan.created_by):
                continue  # somebody said yes meanwhile
            after = rules.replaced(before, plan.id, self._clock.now())
            await tx.update(after)
            await tx.update(replace(older, status=_PLAN_STATUS[after.status]))
            events.append(self._event(older, after, "plan.expire", plan.created_by, after.rejection, {}))
        return events

    async def refusals(self, tx: Tx, plan: Plan) -> tuple[Refused, ...]:
        """Why a plan (its row locked) may not be applied for want of approval; empty when it may."""
        spec = plan.job or plan.endpoint
        if plan.status in {PlanStatus.REFUSED, PlanStatus.APPLIED}:
            return ()  # said by admission
        if not rules.reasons(plan):
            # It was within the limits when it was planned; they or the month may have moved since.
            over = () if spec is None else await self.verdicts(tx, spec, plan.worst_case_microusd, lock=True)
            hint = "plan again and have it approved: ground plan -f SPEC"
            return tuple(Refused(rule=v.rule, need="approval", have=v.approval, hint=hint) for v in over)
        approval = await tx.get(Approval, plan.id, lock=True)
        names = await self._approvers(tx, approval) if approval is not None else ()
        found = rules.blocked(plan, approval, names, self._clock.now())
        return (found,) if found is not None else ()

    async def used(self, tx: Tx, plan: Plan) -> None:
        """The plan is applied: its approval, if it needed one, serves nothing else."""
        approval = await tx.get(Approval, plan.id, lock=True) if rules.reasons(plan) else None
        if approval is not None:
            await tx.update(replace(approval, status=ApprovalStatus.APPLIED, due_at=None, lease_owner=""))

    # ------------------------------------------------------------ people's use cases

    async def approve(self, actor: Actor, plan_id: str, *, comment: str = "", seen_hash: str = "") -> Approval:
        """This person's yes. Twice is the same as once. Raises NotFound, Refusal (four eyes, over, another hash)."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            plan, before = await self._locked(tx, actor, plan_id)
            after = rules.approve(before, plan, actor, now, comment=_comment(comment), seen_hash=seen_hash)
            if isinstance(after, Refused):
                raise Refusal([after])
            if after == before:
                return before
            facts: dict[str, object] = {"approvals": f"{len(rules.counted(after, plan.hash))} of {after.needed}"}
            return await self._write(tx, plan, after, "plan.approve", actor.name, comment, facts)

    async def reject(self, actor: Actor, plan_id: str, reason: str) -> Approval:
        """A no, final for this plan, also when it was approved and not applied yet. Raises NotFound, Refusal."""
        said = checked_text(reason, "reason")
        now = self._clock.now()
        async with self._store.transaction() as tx:
            plan, before = await self._locked(tx, actor, plan_id)
            after = rules.reject(before, actor, now, said)
            if isinstance(after, Refused):
                raise Refusal([after])
            if after == before:
                return before
            return await self._write(tx, plan, after, "plan.reject", actor.name, said, {})

    async def approvals(
        self, actor: Actor, *, project: str | None = None, status: str | None = None, limit: int = 100
    ) -> list[Approval]:
        """Newest first; only those of projects the actor sees. `status` is an ApprovalStatus, or `open`."""
        where: dict[str, object] = {}
        if project is not None or actor.role not in CROSS_PROJECT:
            where["project"] = project if project is not None else (actor.project or "")
        if status == "open":
            where["status"] = OPEN
        elif status is not None:
            if status not in set(ApprovalStatus):
                known = ", ".join(["open", *ApprovalStatus])
                raise InvalidInput(f"unknown approval status {status[:40]!r}", f"one of: {known}")
            where["status"] = ApprovalStatus(status)
        now = self._clock.now()
        async with self._store.transaction() as tx:
            found = await tx.find(Approval, where, order="-requested_at", limit=min(limit, MAX_LISTED))
        seen = [rules.expire(approval, now) for approval in found if actor.sees(approval.project)]
        return [a for a in seen if status is None or status == a.status or (status == "open" and a.status.is_open)]

    async def get(self, actor: Actor, plan_id: str) -> tuple[Approval, tuple[str, ...]]:
        """The question about a plan, and who may still agree. NotFound for a plan that needs none or is not seen."""
        async with self._store.transaction() as tx:
            approval = await tx.get(Approval, plan_id)
            if approval is None or not actor.sees(approval.project):
                raise _not_found(plan_id)
            return rules.expire(approval, self._clock.now()), await self._approvers(tx, approval)

    async def require(self, *plans: Plan) -> None:
        """Raises as admission would when any plan waits for approval: for callers with work to do before admission."""
        async with self._store.transaction() as tx:
            refused = tuple([reason for plan in plans for reason in await self.refusals(tx, plan)])
        if refused:
            raise rules.refusal(refused)

    async def set_limits(self, actor: Actor, name: str, limits: SelfService, reason: str = "") -> Project:
        """What the project may begin without asking, from the next plan on. Plans that wait go on waiting."""
        wanted = checked_self_service(limits)
        async with self._store.transaction() as tx:
            before = await visible_project(tx, actor, name, lock=True)
            if before.self_service == wanted:
                return before
            changed = await tx.update(replace(before, self_service=wanted))
            was = asdict(before.self_service)
            await self._tell(tx, actor, "project.set", name, name, asdict(wanted), reason, before=was)
        return changed

    async def tallies(self, actor: Actor) -> dict[str, Tally]:
        """Per project that the actor sees."""
        passed = (ApprovalStatus.APPROVED, ApprovalStatus.APPLIED)
        async with self._store.transaction() as tx:
            counts = await tx.total(Approval, "*", by=("project", "status"))
            waits = await tx.total(Approval, "waited_s", by=("project",), where={"status": passed})
        found: dict[str, dict[str, int]] = {}
        for (project, status), number in counts.items():
            if actor.sees(str(project)):
                found.setdefault(str(project), {})[str(status)] = number
        tallies: dict[str, Tally] = {}
        for project, by_status in found.items():
            number = sum(by_status.get(status, 0) for status in passed)
            mean_s = waits.get((project,), 0) / number if number else None
            tallies[project] = Tally(by_status=by_status, approved_after_s=mean_s)
        return tallies

    # ------------------------------------------------------------ what happens by itself

    async def step(self, claimed: Approval) -> None:
        """One look at one claimed question: end it when its time is over, tell people what they don't know yet.

        A notice that could not be sent raises Unavailable and is sent again when the lease is over; one may come twice.
        """
        now = self._clock.now()
        approval = claimed
        if claimed.status.is_open and rules.is_expired(claimed, now):
            ended = await self._expire(claimed)
            if ended is None:
                return
            approval = ended
        what = rules.untold(approval, now)
        if what:
            async with self._store.transaction() as tx:
                names = await self._approvers(tx, approval)
            title, text = rules.headline(approval, what, names)
            kind = f"approval.{what.partition('-')[0]}"
            await self._notify.send(Notice(at=now, kind=kind, project=approval.project, title=title, text=text))
        async with self._store.transaction() as tx:
            await tx.update(rules.told(approval, what))

    async def _expire(self, claimed: Approval) -> Approval | None:
        async with self._store.transaction() as tx:
            plan = await tx.get(Plan, claimed.id, lock=True)
            before = await tx.get(Approval, claimed.id, lock=True)
            if plan is None or before is None or before.version != claimed.version:
                return None  # somebody was faster: it is due again
            after = rules.expire(before, self._clock.now())
            return await self._write(tx, plan, after, "plan.expire", SYSTEM.name, "", {})

    # ------------------------------------------------------------ parts

    async def _locked(self, tx: Tx, actor: Actor, plan_id: str) -> tuple[Plan, Approval]:
        plan = await tx.get(Plan, plan_id, lock=True)
        if plan is None or not actor.sees(plan.project):
            raise NotFound(f"no plan {plan_id[:80]}", "ground approvals lists what waits")
        approval = await tx.get(Approval, plan_id, lock=True)
        if approval is None:
            need = "a plan that needs approval"
            hint = f"ground apply {plan_id}" if plan.status is PlanStatus.READY else "plan again: ground plan -f SPEC"
            raise Refusal([Refused(rule="approval-open", need=need, have=f"{plan_id} is {plan.status}", hint=hint)])
        return plan, approval

    async def _write(
        self, tx: Tx, plan: Plan, after: Approval, action: str, by: str, reason: str, facts: dict[str, object]
    ) -> Approval:
        written = await tx.update(after)
        if plan.status is not _PLAN_STATUS[after.status]:
            await tx.update(replace(plan, status=_PLAN_STATUS[after.status]))
        await tx.append_event(self._event(plan, after, action, by, reason, facts))
        return written

    def _event(
        self, plan: Plan, after: Approval, action: str, by: str, reason: str, facts: dict[str, object]
    ) -> EventDraft:
        return EventDraft(
            at=self._clock.now(),
            actor=by,
            action=action,
            object_kind="plan",
            object_id=plan.id,
            project=plan.project,
            before={"status": str(plan.status)},
            after={"status": str(_PLAN_STATUS[after.status]), "hash": plan.hash, **facts},
            reason=reason,
        )

    async def _approvers(self, tx: Tx, approval: Approval) -> tuple[str, ...]:
        keys = await tx.find(Key, {"role": rules.APPROVING_ROLES, "revoked_at": None})
        return rules.approvers(keys, approval, self._clock.now())


def _comment(text: str) -> str:
    return checked_text(text, "comment") if text.strip() else ""


def _not_found(plan_id: str) -> NotFound:
    return NotFound(f"no approval of {plan_id[:80]}", "ground approvals lists what waits")
