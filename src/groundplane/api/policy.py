"""Policy: the rules in force, exceptions from them, and what other rules would have said of past plans."""

from __future__ import annotations

from typing import Annotated

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.planning.plan import Verdict
from groundplane.domain.policy.exceptions import PolicyException
from groundplane.domain.policy.records import PolicyState, Replay, RuleInfo
from groundplane.identity import Actor, Permission
from groundplane.wire import ReasonRequest
from groundplane.wire.policy import ExceptionRequest, ReplayRequest

router = Router(prefix="/v1/policy", tags=["policy"])
Reader = Annotated[Actor, requires(Permission.POLICY_READ)]
Writer = Annotated[Actor, requires(Permission.POLICY_WRITE)]


@router.get("")
async def get_policy(app: Ground, actor: Reader) -> PolicyState:
    """Every rule in force, the set's version, and why the operator's folder is not what is in force, if so."""
    state: PolicyState = await app.policies.state()
    return state


@router.get("/rules/{rule_id}")
async def get_policy_rule(rule_id: str, app: Ground, actor: Reader) -> RuleInfo:
    """One rule: what it asks, why, and what it does when it is broken."""
    rule: RuleInfo = app.policies.rule(rule_id)
    return rule


@router.post("/reload")
async def reload_policy(body: ReasonRequest, app: Ground, actor: Writer) -> PolicyState:
    """Reads the operator's folder anew: all of it is taken, or nothing and every fault is told."""
    state: PolicyState = await app.policies.reload(actor, body.reason)
    return state


@router.post("/replay")
async def replay_policy(body: ReplayRequest, app: Ground, actor: Writer) -> Replay:
    """Judges past plans by the rules in force with these files laid over them. Nothing is stored."""
    made: Replay = await app.policies.replay(actor, body.files, body.since)
    return made


@router.get("/requests/{request_id}/verdicts")
async def get_request_verdicts(
    request_id: str, app: Ground, actor: Annotated[Actor, requires(Permission.REQUESTS_READ)]
) -> list[Verdict]:
    """What the rules over requests say of one."""
    verdicts: tuple[Verdict, ...] = await app.policies.judge_request(actor, request_id)
    return list(verdicts)


@router.get("/exceptions")
async def list_exceptions(
    app: Ground, actor: Reader, project: str | None = None, all: bool = False
) -> list[PolicyException]:
    """Those that hold, soonest to end first; with `all` those that have ended as well."""
    found: list[PolicyException] = await app.policies.exceptions(actor, project=project, over_too=all)
    return found


@router.post("/exceptions", status_code=201)
async def create_exception(body: ExceptionRequest, app: Ground, actor: Writer) -> PolicyException:
    """Lifts a rule for a project, or for one name in it, until it expires by itself."""
    made: PolicyException = await app.policies.add_exception(
        actor,
        rule=body.rule,
        project=body.project,
        name=body.name,
        owner=body.owner,
        reason=body.reason,
        expires_at=body.expires_at,
    )
    return made


@router.delete("/exceptions/{exception_id}")
async def remove_exception(exception_id: str, app: Ground, actor: Writer, reason: str = "") -> PolicyException:
    """Ends it now."""
    ended: PolicyException = await app.policies.remove_exception(actor, exception_id, reason)
    return ended
