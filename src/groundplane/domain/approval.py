"""Who must agree before a plan is applied, who may, and whether they have: approvals bound to one plan and its hash.

limits → `beyond` (verdicts that ask) → `ask` → `approve` / `reject` / `expire` → `blocked`, which admission asks
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from groundplane.domain.access import Key, SelfService, is_active
from groundplane.domain.planning.plan import Plan, Verdict
from groundplane.domain.spec import EndpointSpec, JobSpec
from groundplane.errors import ApprovalNeeded, Refusal, Refused
from groundplane.identity import CROSS_PROJECT, ROLE_PERMISSIONS, Actor, Permission, Role
from groundplane.units import format_count, format_usd

RULE = "approval"
"""The rule that a plan in need of approval fails; the only one that somebody's word can lift."""

REMINDER_SHARE = 6
"""A reminder goes out when a sixth of the time is left: 12 h of 72 h."""

APPROVING_ROLES = tuple(role for role in Role if Permission.PLANS_APPROVE in ROLE_PERMISSIONS[role])


class ApprovalStatus(StrEnum):
    WAITING = "waiting"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    APPLIED = "applied"

    @property
    def is_open(self) -> bool:
        return self in {ApprovalStatus.WAITING, ApprovalStatus.APPROVED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Vote:
    """One person's yes to exactly one hash."""

    by: str
    role: Role
    key_id: str
    plan_hash: str
    comment: str
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What becomes of the question whether a plan may be applied. id = the plan's; it never serves another plan.

    `needed` different people must say yes before `expires_at`, and the plan must be applied before it, too: it lies
    `validity_s` after the question, then after the first yes. With `four_eyes` neither who made the plan nor who owns
    the work may say yes. `rejection` is why it ended other than by time. `told` remembers which notices went out;
    `waited_s` is how long it took to decide.
    """

    id: str
    project: str
    kind: str
    name: str
    owner: str
    created_by: str
    plan_hash: str
    worst_case_microusd: int
    reasons: tuple[str, ...]
    needed: int
    four_eyes: bool
    validity_s: int
    status: ApprovalStatus = ApprovalStatus.WAITING
    votes: tuple[Vote, ...] = ()
    rejected_by: str = ""
    rejection: str = ""
    requested_at: datetime
    expires_at: datetime
    decided_at: datetime | None = None
    waited_s: int = 0
    told: tuple[str, ...] = ()
    due_at: datetime | None = None
    lease_owner: str = ""
    lease_expires_at: datetime | None = None
    version: int = 0


# ---------------------------------------------------------------- does it need approval


def beyond(
    spec: JobSpec | EndpointSpec, worst_case_microusd: int, limits: SelfService, taken_microusd: int
) -> tuple[Verdict, ...]:
    """One verdict per self-service limit of the project that this work is beyond; each with its number.

    `taken_microusd` is what the project holds, has spent and waits for in this month, without this work.
    """
    need, project = spec.resources, spec.metadata.project
    accelerators = need.accelerators * need.nodes
    found: list[Verdict] = []
    if accelerators > limits.accelerators_max:
        product = f" ({need.nodes} nodes × {need.accelerators})" if need.nodes > 1 else ""
        said = f"{accelerators} accelerators{product}; project {project} takes up to {limits.accelerators_max}"
        found.append(_asks("self-service-accelerators", "much hardware at once is a team's decision", said))
    if worst_case_microusd > limits.plan_max_microusd:
        most = format_usd(limits.plan_max_microusd)
        said = f"up to {format_usd(worst_case_microusd)}; project {project} spends up to {most} a plan"
        found.append(_asks("self-service-plan", "much money at once is a team's decision", said))
    month = limits.month_max_microusd
    if month is not None and taken_microusd + worst_case_microusd > month:
        said = (
            f"{format_usd(taken_microusd)} held, spent and waiting this month and up to "
            f"{format_usd(worst_case_microusd)} more; project {project} spends up to {format_usd(month)} a month"
        )
        found.append(_asks("self-service-month", "many small plans are a large one", said))
    return tuple(found)


def _asks(rule: str, why: str, said: str) -> Verdict:
    return Verdict(rule=rule, why=why, refused=None, approval=f"{said} without approval")


def reasons(plan: Plan) -> tuple[str, ...]:
    """Why a plan needs approval, each with its rule and number; empty when it does not."""
    return tuple(f"{verdict.rule}: {verdict.approval}" for verdict in plan.verdicts if verdict.approval)


def ask(plan: Plan, limits: SelfService, *, four_eyes: bool, validity_s: int) -> Approval:
    """The question about a plan that needs approval. ValueError for one that doesn't."""
    why = reasons(plan)
    spec = plan.job or plan.endpoint
    if not why or spec is None:
        raise ValueError(f"plan {plan.id} needs no approval")
    threshold = limits.second_threshold_microusd
    many = threshold is not None and plan.worst_case_microusd > threshold
    return Approval(
        id=plan.id,
        project=plan.project,
        kind=plan.kind,
        name=spec.metadata.name,
        owner=plan.owner,
        created_by=plan.created_by,
        plan_hash=plan.hash,
        worst_case_microusd=plan.worst_case_microusd,
        reasons=why,
        needed=limits.second_approvals if many else 1,
        four_eyes=four_eyes,
        validity_s=validity_s,
        requested_at=plan.created_at,
        expires_at=plan.created_at + timedelta(seconds=validity_s),
        due_at=plan.created_at,
    )


# ---------------------------------------------------------------- yes and no


def approve(
    approval: Approval, plan: Plan, actor: Actor, now: datetime, *, comment: str = "", seen_hash: str = ""
) -> Approval | Refused:
    """The question with this person's yes, or why it can't be given. The same person twice is the same as once.

    `seen_hash` is the hash of what the person saw; empty trusts the plan's id alone.
    """
    if refused := _not_open(approval, now):
        return refused
    if plan.hash != approval.plan_hash or (seen_hash and not plan.hash.startswith(seen_hash)):
        return Refused(
            rule="approval-hash",
            need=f"the plan as it was asked about, hash {approval.plan_hash[:16]}",
            have=f"hash {(seen_hash or plan.hash)[:16]}",
            hint=f"look at it again: ground approvals {approval.id}",
        )
    if refused := _four_eyes(approval, actor):
        return refused
    if any(_same(vote.by, actor.name) for vote in approval.votes):
        return approval
    if approval.status is ApprovalStatus.APPROVED:
        by = _names(vote.by for vote in approval.votes)
        hint = f"apply it: ground apply {approval.id}"
        return Refused(rule="approval-open", need="a plan that waits for approval", have=f"approved by {by}", hint=hint)
    vote = Vote(by=actor.name, role=actor.role, key_id=actor.key_id, plan_hash=plan.hash, comment=comment, at=now)
    first = approval.votes == ()
    voted = replace(
        _to_tell(approval, now),
        votes=(*approval.votes, vote),
        # It ends a validity after the first yes, so that no yes is older than that when the plan is applied.
        expires_at=now + timedelta(seconds=approval.validity_s) if first else approval.expires_at,
    )
    if len(counted(voted, plan.hash)) < approval.needed:
        return voted
    return _decided(voted, ApprovalStatus.APPROVED, now)


def may_approve(approval: Approval, actor: Actor, now: datetime) -> bool:
    """Whether this person's yes would change anything: it waits, they may, and they have not said it yet."""
    open_to = approval.status is ApprovalStatus.WAITING and not is_expired(approval, now)
    said = any(_same(vote.by, actor.name) for vote in approval.votes)
    return open_to and not said and _four_eyes(approval, actor) is None


def reject(approval: Approval, actor: Actor, now: datetime, reason: str) -> Approval | Refused:
    """The question answered with no, for good; also what was approved and not applied yet."""
    if approval.status is ApprovalStatus.REJECTED and _same(approval.rejected_by, actor.name):
        return approval
    if refused := _not_open(approval, now):
        return refused
    rejected = replace(_to_tell(approval, now), rejected_by=actor.name, rejection=reason)
    return _decided(rejected, ApprovalStatus.REJECTED, now)


def expire(approval: Approval, now: datetime) -> Approval:
    """The question ended by time, if it is."""
    if not is_expired(approval, now):
        return approval
    return _decided(_to_tell(approval, now), ApprovalStatus.EXPIRED, now)


def replaced(approval: Approval, by: str, now: datetime) -> Approval:
    """The question ended because whoever asked it has planned the same work anew; nobody need be told of it."""
    ended = replace(approval, rejection=f"replaced by {by}", lease_owner="", lease_expires_at=None, due_at=None)
    return _decided(ended, ApprovalStatus.EXPIRED, now)


def is_same_work(approval: Approval, spec: JobSpec | EndpointSpec, by: str) -> bool:
    """Whether a new plan of this person replaces this question: the same work, and nobody has said yes yet."""
    kind = "job" if isinstance(spec, JobSpec) else "endpoint"
    mine = (spec.metadata.project, kind, spec.metadata.name, by)
    same = (approval.project, approval.kind, approval.name, approval.created_by) == mine
    return same and approval.status is ApprovalStatus.WAITING and not approval.votes


def is_expired(approval: Approval, now: datetime) -> bool:
    """Whether time has ended it, written down or not."""
    return approval.status is ApprovalStatus.EXPIRED or (approval.status.is_open and now >= approval.expires_at)


def counted(approval: Approval, plan_hash: str) -> tuple[str, ...]:
    """Whose yes counts for this hash: different people, and with four eyes neither the plan's maker nor its owner."""
    counting: dict[str, str] = {}
    for vote in approval.votes:
        if vote.plan_hash == plan_hash and not (approval.four_eyes and _involved(approval, vote.by)):
            counting.setdefault(_folded(vote.by), vote.by)
    return tuple(counting.values())


def _decided(approval: Approval, status: ApprovalStatus, now: datetime) -> Approval:
    waited_s = approval.waited_s or max(0, round((now - approval.requested_at).total_seconds()))
    return replace(approval, status=status, decided_at=now, waited_s=waited_s)


def _to_tell(approval: Approval, now: datetime) -> Approval:
    # Giving up the lease is safe: whoever was about to tell of it fails its update on the new version.
    return replace(approval, due_at=now, lease_owner="", lease_expires_at=None)


def _not_open(approval: Approval, now: datetime) -> Refused | None:
    if approval.status is ApprovalStatus.APPLIED:
        have = "it was applied"
    elif approval.status is ApprovalStatus.REJECTED:
        have = f"rejected by {approval.rejected_by}: {approval.rejection}"
    elif is_expired(approval, now):
        have = approval.rejection or f"it expired at {_stamp(approval.expires_at)}"
    else:
        return None
    return Refused(rule="approval-open", need="a plan that waits for approval", have=have, hint=_AGAIN)


def _four_eyes(approval: Approval, actor: Actor) -> Refused | None:
    if not approval.four_eyes or not _involved(approval, actor.name):
        return None
    made, owns = approval.created_by, approval.owner
    involved = made if _same(made, owns) else f"{made}, who made the plan, and {owns}, who owns it"
    hint = "ask somebody else; a single person sets GROUND_APPROVAL_FOUR_EYES=off and plans again"
    return Refused(rule="four-eyes", need=f"somebody other than {involved}", have=actor.name, hint=hint)


def _involved(approval: Approval, name: str) -> bool:
    return _same(name, approval.created_by) or _same(name, approval.owner)


def _same(one: str, other: str) -> bool:
    return _folded(one) == _folded(other)


def _folded(name: str) -> str:
    """One person, however the name is typed: `Ana` and `ana ` don't make four eyes."""
    return unicodedata.normalize("NFKC", name).strip().casefold()


# ---------------------------------------------------------------- the gate


def blocked(plan: Plan, approval: Approval | None, approvers: tuple[str, ...], now: datetime) -> Refused | None:
    """Why the plan may not be applied now for want of approval; None when nobody need agree, or enough people did.

    It counts the votes anew and takes no status at its word. `approvers` are those who may agree, for the hint.
    """
    why = reasons(plan)
    if not why:
        return None
    if approval is None or approval.id != plan.id:
        return Refused(rule=RULE, need=f"approval ({'; '.join(why)})", have="none was asked for", hint=_AGAIN)
    if approval.status is ApprovalStatus.REJECTED:
        have = f"rejected by {approval.rejected_by}: {approval.rejection}"
        return Refused(rule="approval-rejected", need="a plan that nobody rejected", have=have, hint=_AGAIN)
    if is_expired(approval, now):
        have = approval.rejection or f"it expired at {_stamp(approval.expires_at)}"
        return Refused(rule="approval-expired", need="an approval in force", have=have, hint=_AGAIN)
    given = counted(approval, plan.hash)
    if len(given) >= approval.needed:
        return None
    return Refused(
        rule=RULE,
        need=f"{format_count(approval.needed, 'approval')} ({'; '.join(why)})",
        have=f"{len(given)} ({_names(given)})" if given else "none",
        hint=f"ground approve {plan.id}: {_who(approval, approvers)}; then ground apply {plan.id}",
    )


def refusal(refused: Sequence[Refused]) -> Refusal:
    """ApprovalNeeded when nothing but somebody's yes is missing, Refusal otherwise: what was rejected waits no more."""
    alone = all(reason.rule == RULE for reason in refused)
    return ApprovalNeeded(refused) if alone else Refusal(refused)


def approvers(keys: Iterable[Key], approval: Approval, now: datetime) -> tuple[str, ...]:
    """Who may still say yes, by name: owners of active keys whose role approves and that see the project."""
    found: dict[str, str] = {}
    for key in keys:
        sees = key.role in CROSS_PROJECT or key.project == approval.project
        if not (key.role in APPROVING_ROLES and sees and is_active(key, now)):
            continue
        if approval.four_eyes and _involved(approval, key.owner):
            continue
        if not any(_same(vote.by, key.owner) for vote in approval.votes):
            found.setdefault(_folded(key.owner), key.owner)
    return tuple(sorted(found.values()))


def _who(approval: Approval, names: tuple[str, ...]) -> str:
    if names:
        return f"{_names(names)} may"
    roles = ", ".join(APPROVING_ROLES)
    but = f" whose owner is not {approval.created_by}" if approval.four_eyes else ""
    return f"nobody may yet; an operator makes a key of the role {roles}{but}"


# ---------------------------------------------------------------- what people are told, and when


def untold(approval: Approval, now: datetime) -> str:
    """The one notice that is due and was not sent: `needed`, `given-1`, `rejected`, `expiring-approved`, `expired`."""
    due = ""
    if approval.status.is_open:
        due = f"given-{len(approval.votes)}" if approval.votes else "needed"
        if now >= _remind_at(approval) and due in approval.told:
            due = f"expiring-{approval.status}"
    elif approval.status is ApprovalStatus.REJECTED or (
        approval.status is ApprovalStatus.EXPIRED and not approval.rejection
    ):
        due = str(approval.status)
    return "" if due in approval.told else due


def told(approval: Approval, what: str) -> Approval:
    """The question after a notice went out: due again when time has something to say."""
    sent = replace(approval, told=(*approval.told, what) if what else approval.told, lease_owner="")
    due = None
    if sent.status.is_open:
        reminded = f"expiring-{sent.status}" in sent.told
        due = sent.expires_at if reminded else _remind_at(sent)
    return replace(sent, due_at=due, lease_expires_at=None)


def headline(approval: Approval, what: str, names: tuple[str, ...]) -> tuple[str, str]:
    """A notice's title and text. `names` are those who may still agree."""
    plan, money = f"{approval.id} of project {approval.project}", format_usd(approval.worst_case_microusd)
    thing = f"{approval.kind} {approval.name} for up to {money}, planned by {approval.created_by}"
    until = f"until {_stamp(approval.expires_at)}"
    by = _names(vote.by for vote in approval.votes)
    left = approval.needed - len(counted(approval, approval.plan_hash))
    missing = format_count(left, "approval")
    if what == "needed":
        why = "; ".join(approval.reasons)
        needs = format_count(approval.needed, "approval")
        return f"{plan} needs {needs} {until}: {thing}", f"{why}; {_way(approval, names)}"
    if what.startswith("given") and left > 0:
        return f"{plan} has {by}'s approval and needs {missing} more: {thing}", _way(approval, names)
    if what.startswith("given"):
        return f"{plan} is approved by {by}: {thing}", f"ground apply {approval.id}, {until}"
    if what == "rejected":
        return f"{plan} is rejected by {approval.rejected_by}: {approval.rejection}", _AGAIN
    if what == "expired":
        state = f"approved by {by}, was not applied" if left <= 0 else "was not approved"
        return f"{plan} {state} in time and has expired: {thing}", _AGAIN
    if approval.status is ApprovalStatus.APPROVED:
        return f"the approval of {plan} ends soon, {_stamp(approval.expires_at)}", f"ground apply {approval.id}"
    return f"{plan} waits for {missing} only {until}: {thing}", _way(approval, names)


_AGAIN = "plan again: ground plan -f SPEC"


def _way(approval: Approval, names: tuple[str, ...]) -> str:
    return f"ground approve {approval.id}, or ground reject {approval.id} --reason WHY: {_who(approval, names)}"


def _remind_at(approval: Approval) -> datetime:
    return approval.expires_at - timedelta(seconds=approval.validity_s / REMINDER_SHARE)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "nobody"


def _stamp(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
