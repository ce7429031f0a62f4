"""What a proposed set of rules would have said of past plans, each as it was: its spec, its offers, its day.

A rule that looks at what a plan does not keep (the pools, the registry, the catalogue of that day) keeps the word it
gave then; so do the planner's own checks (quota, storage, deadline). What can't be replayed is counted with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from datetime import datetime

from groundplane.domain.hardware import Hardware
from groundplane.domain.model import ModelVersion
from groundplane.domain.planning.plan import Plan, Quote, Ranking, Verdict
from groundplane.domain.policy.records import PlanMove, Replay, RuleMove
from groundplane.domain.policy.rule import Rule, Subject
from groundplane.domain.policy.rule_set import RuleSet, outcome

MAX_PLANS = 2_000
MAX_SHOWN = 200


def replay(
    rules: RuleSet,
    plans: Iterable[Plan],
    models: Mapping[str, ModelVersion],
    *,
    since: datetime,
    dropped: frozenset[str] = frozenset(),
    truncated: bool = False,
) -> Replay:
    """Judges each plan anew. `models` are the versions that endpoints' plans name, as far as they are still there.

    `dropped` are rules in force that the proposed ones lack: their word goes, that of others unknown here stays.
    """
    changed: list[PlanMove] = []
    by_rule: Counter[str] = Counter()
    unplayed: Counter[str] = Counter()
    kept: set[str] = set()
    count = refused = allowed = 0
    played = dropped | {e.rule.id for e in rules.judged if not (isinstance(e.rule, Rule) and e.rule.live)}
    for plan in plans:
        subject = _subject(plan, models)
        if isinstance(subject, str):
            unplayed[subject] += 1
            continue
        count += 1
        kept |= {verdict.rule for verdict in plan.verdicts} - played
        move = _move(plan, rules, subject, played, unplayed)
        if move is None:
            continue
        changed.append(move)
        by_rule.update(each.rule for each in move.moves)
        refused += move.after == "refused" != move.before
        allowed += move.before == "refused" != move.after
    return Replay(
        since=since, version=rules.version, plans=count, changed_count=len(changed), newly_refused=refused,
        newly_allowed=allowed, changed=tuple(changed[:MAX_SHOWN]), by_rule=dict(by_rule.most_common()),
        unplayed=dict(unplayed.most_common()), kept=tuple(sorted(kept)), truncated=truncated,
    )  # fmt: skip


def _move(plan: Plan, rules: RuleSet, subject: Subject, played: Set[str], unplayed: Counter[str]) -> PlanMove | None:
    then = {verdict.rule: verdict for verdict in plan.verdicts}
    now: dict[str, Verdict] = {}
    for verdict in rules.judge(subject):
        if verdict.rule not in played:
            continue
        if verdict.refused is not None and verdict.refused.need == "a rule that can be judged":
            unplayed[f"rule {verdict.rule} can't be judged: {verdict.refused.have}"] += 1
        before = then.get(verdict.rule)
        # An exception that held then is taken to hold still: otherwise each one would look like a change of the rules.
        now[verdict.rule] = (
            before if before is not None and before.exception and outcome(verdict)[0] != "pass" else verdict
        )
    now |= {rule: verdict for rule, verdict in then.items() if rule not in played}
    moves = tuple(_rule_moves(then, now))
    if not moves:
        return None
    spec = plan.job or plan.endpoint
    return PlanMove(
        plan=plan.id, project=plan.project, name=spec.metadata.name if spec else "", owner=plan.owner,
        created_at=plan.created_at, before=_status(then), after=_status(now),
        worst_case_microusd=plan.worst_case_microusd, moves=moves,
    )  # fmt: skip


def _rule_moves(then: Mapping[str, Verdict], now: Mapping[str, Verdict]) -> Iterable[RuleMove]:
    for rule in dict.fromkeys((*then, *now)):
        before, said_then = outcome(then[rule]) if rule in then else ("pass", "")
        after, said_now = outcome(now[rule]) if rule in now else ("pass", "")
        if before != after:
            yield RuleMove(rule=rule, before=before, after=after, said=said_now or said_then)


def _status(verdicts: Mapping[str, Verdict]) -> str:
    if any(verdict.refused is not None for verdict in verdicts.values()):
        return "refused"
    return "needs-approval" if any(verdict.approval for verdict in verdicts.values()) else "ready"


def _subject(plan: Plan, models: Mapping[str, ModelVersion]) -> Subject | str:
    """What was judged then, as far as the plan keeps it; a sentence when that is not enough."""
    spec = plan.job or plan.endpoint
    if spec is None:
        return "the plan keeps no spec"
    model = models.get(plan.endpoint.model) if plan.endpoint else None
    if plan.endpoint is not None and model is None:
        return "the endpoint's model is not registered any more"
    quotes: tuple[Quote, ...] = ()
    if plan.offer is not None:
        best = Quote(offer=plan.offer, worst_case_microusd=plan.worst_case_microusd, arithmetic=plan.arithmetic)
        quotes = (best, *plan.alternatives)
    ranking = Ranking(quotes=quotes, rejected=plan.rejected)
    return Subject(
        spec=spec, ranking=ranking, hardware=Hardware(), now=plan.created_at, pools=(spec.pool,), silent_pools={},
        model=model,
    )  # fmt: skip
