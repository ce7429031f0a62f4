"""Outlooks: what the catalogue, the clouds and the budget say of one spec, gathered for the decisions about it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial

from groundplane.domain.access import Project
from groundplane.domain.budget import Budget, budget_id, period_of
from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.planning import checks as plan_checks
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning import quota_check, recon, storage_check
from groundplane.domain.planning.checks import Facts
from groundplane.domain.planning.choices import Judge, Market, cloud_offers
from groundplane.domain.planning.outlook import Basis, BudgetImpact, Choice, Outlook, QuotaShot
from groundplane.domain.planning.plan import Offer, Plan, Ranking, RejectedOffer, Verdict, same_sku
from groundplane.domain.planning.recon import CloudView, Gap, HaltedMachine, SkuRow, Wanted
from groundplane.domain.planning.work import GFLOPS_PER_VCPU, Meter, Work, work_of
from groundplane.domain.sizing.report import SizeReport
from groundplane.domain.spec import EndpointSpec, JobSpec
from groundplane.domain.staging import SourceSpeed
from groundplane.errors import Refused
from groundplane.ports import Clock, Tx
from groundplane.services.recon import Recon
from groundplane.units import format_duration

Spec = JobSpec | EndpointSpec
PATIENCE_S = 20.0
"""How long a plan waits for a cloud's live answer; a slower one is kept for the next plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Considered:
    """One spec against everything that was gathered for it. `facts` lack the budget, which only a transaction has."""

    spec: Spec
    facts: Facts
    offers: tuple[Offer, ...]
    readings: tuple[storage_check.Reading, ...]
    catalogue: Catalogue
    quotas: tuple[QuotaShot, ...]

    @property
    def ranking(self) -> Ranking:
        return self.facts.ranking


class Outlooks:
    """Considers specs. `catalogue` gives the rows as they stand; `recon` is asked live for a cloud a spec names.

    `registered` has the pools that can start something, as they come and go. `rules` names the policy in force: a plan
    is bound to it. `speeds` tells how fast sources were read before.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        catalogue: Callable[[], Catalogue],
        registered: Collection[str],
        recon: Recon | None = None,
        price_stale_days: int = 30,
        rules: Callable[[], Mapping[str, str]] = dict,
        speeds: Callable[[JobSpec], Awaitable[Mapping[str, SourceSpeed]]] | None = None,
    ) -> None:
        self._clock = clock
        self._catalogue = catalogue
        self._registered = registered
        self._recon = recon
        self._stale_days = price_stale_days
        self._rules = rules
        self._speeds = speeds
        self._meter: tuple[Catalogue, Meter] | None = None

    async def consider(self, spec: Spec, offers: Sequence[Offer], unpriced: Sequence[RejectedOffer] = ()) -> Considered:
        """The spec against the pools' offers and the clouds'. What a cloud did not answer stays unknown."""
        catalogue = await asyncio.to_thread(self._catalogue)
        views, gaps = await self._views(catalogue, spec)
        measured = await self._speeds(spec) if self._speeds is not None and isinstance(spec, JobSpec) else {}
        consider = partial(self._consider, spec, offers, unpriced, catalogue, gaps=gaps, measured=measured)
        found = await asyncio.to_thread(consider, views)
        if any(reason.rule == "quota" for reason in found.facts.in_the_way) and self._recon is not None:
            # Only who is refused for quota waits for what the other regions say.
            more = await self._elsewhere(catalogue, views)
            if more:
                views = [*views, *more]
                found = await asyncio.to_thread(consider, views)
        return found

    def verdicts(
        self, considered: Considered, budget: BudgetImpact | None, *, at_apply: bool = False
    ) -> tuple[Verdict, ...]:
        """Every check's verdict."""
        return plan_checks.verdicts(replace(considered.facts, budget=budget), at_apply=at_apply)

    async def budget(self, tx: Tx, considered: Considered) -> BudgetImpact | None:
        """What the worst case would do to the project's month; None for a project without a budget."""
        now, project = self._clock.now(), considered.spec.metadata.project
        month = await tx.get(Budget, budget_id(project, now))
        if month is None:
            owner = await tx.get(Project, project)
            if owner is None or owner.monthly_limit_microusd is None:
                return None
            limit = left = owner.monthly_limit_microusd
        else:
            limit = month.limit_microusd
            left = limit - month.held_microusd - month.posted_microusd
        best = considered.ranking.best
        worst = best.worst_case_microusd if best is not None else 0
        return BudgetImpact(
            period=period_of(now),
            limit_microusd=limit,
            left_before_microusd=left,
            left_after_microusd=left - worst,
            percent_of_limit=round(100 * worst / limit, 2) if limit else 0.0,
        )

    def outlook(self, considered: Considered) -> Outlook:
        """Everything the plan shows, but for the budget."""
        facts, spec = considered.facts, considered.spec
        best = facts.best
        choices, left_out = facts.judge.choices(considered.offers, best, facts.accelerated)
        chosen = next((each for each in choices if each.chosen), None)
        if chosen is None and best is not None:
            chosen = replace(facts.judge.choice(best), chosen=True)
            choices = (chosen, *choices)
        scratch = None
        if best is not None:
            item = considered.catalogue.hardware.instance_type(best.node_type)
            scratch = item.disk_bytes if item is not None else best.disk_free_bytes
        weekend = chosen.idle_weekend_microusd if chosen is not None else 0
        tiers = considered.catalogue.storage
        report = _report(facts, best)
        return Outlook(
            choices=choices,
            expected_microusd=chosen.expected_microusd if chosen is not None else 0,
            worst_case_microusd=chosen.worst_case_microusd if chosen is not None else 0,
            idle_weekend_microusd=weekend,
            idle_weekend=_weekend(chosen),
            basis=self._basis(choices, considered.quotas),
            time_basis=_time_basis(spec, facts.work),
            memory=report.explain if report is not None else (),
            fixes=tuple(fix.what for fix in report.fixes) if report is not None else (),
            storage=tuple(each.formula for each in considered.readings),
            staging=storage_check.staging(spec, considered.readings, tiers, scratch)
            if isinstance(spec, JobSpec)
            else (),
            quotas=considered.quotas,
            room=facts.ways_out,
            assumptions=_assumptions(considered, choices),
            choices_left_out=left_out,
        )

    def changes(self, plan: Plan, considered: Considered) -> list[Refused]:
        """What of the plan's basis is no longer: its rules, the limits it counted on, or anybody to start it."""
        found: list[Refused] = []
        if plan.offer is not None and plan.offer.pool not in self._registered:
            found.append(plan_checks.not_runnable(plan.offer, self._registered))
        if plan.outlook is None:
            return found
        again = "plan again: ground plan -f SPEC"
        each_rule = self._each_rule()
        rules = _digest(each_rule)
        if rules != plan.outlook.basis.rules:
            have = _difference(plan.outlook.basis.each_rule, each_rule) or f"those of {rules[:12]}"
            need = f"the rules of {plan.outlook.basis.rules[:12]}"
            found.append(Refused(rule="rules-unchanged", need=need, have=have, hint=again))
        now = {(shot.cloud, shot.region, shot.family): shot for shot in considered.quotas}
        for shot in plan.outlook.quotas:
            current = now.get((shot.cloud, shot.region, shot.family))
            if current is not None and (current.used, current.limit) != (shot.used, shot.limit):
                need = f"{_of(shot)} {shot.unit} used of {shot.family} in {shot.cloud} {shot.region}"
                found.append(Refused(rule="quota-unchanged", need=need, have=_of(current), hint=again))
        return found

    # ------------------------------------------------------------ the parts

    async def _views(self, catalogue: Catalogue, spec: Spec) -> tuple[list[CloudView], tuple[str, ...]]:
        if self._recon is None:
            return [], ()
        need = spec.resources
        if not need.names_cloud:
            return self._recon.known(), ()
        places = _places(catalogue, spec)
        views, gaps = await self._recon.ask(places, PATIENCE_S)
        return views, tuple(dict.fromkeys(_gap(each) for each in gaps))

    async def _elsewhere(self, catalogue: Catalogue, views: Sequence[CloudView]) -> list[CloudView]:
        assert self._recon is not None
        read = {(view.cloud, view.region) for view in views}
        clouds = {cloud for cloud, _ in read}
        everywhere: dict[str, set[str]] = {}
        for item in catalogue.hardware.instance_types:
            if item.cloud in clouds and item.region and (item.cloud, item.region) not in read:
                everywhere.setdefault(item.cloud, set()).add(item.region)
        places = {cloud: tuple(sorted(regions)) for cloud, regions in everywhere.items()}
        more, _ = await self._recon.ask(places, PATIENCE_S)
        return more

    def _consider(
        self,
        spec: Spec,
        offers: Sequence[Offer],
        unpriced: Sequence[RejectedOffer],
        catalogue: Catalogue,
        views: Sequence[CloudView],
        *,
        gaps: tuple[str, ...],
        measured: Mapping[str, SourceSpeed],
    ) -> Considered:
        hardware, now, need = catalogue.hardware, self._clock.now(), spec.resources
        survey = recon.survey(hardware, views, Wanted(include_retired=True), now.date())
        meter, registered = self._meter_of(catalogue), frozenset(self._registered)
        market = Market(pools=tuple(offers), rows=survey.rows, terms=catalogue.purchase_terms, registered=registered)
        given = work_of(spec, catalogue)
        work = given if isinstance(given, Work) else None
        judge = Judge(spec, market, catalogue, meter, work, now=now, stale_days=self._stale_days)
        clouds = cloud_offers(market, need)
        candidates = [*offers, *(_named(clouds, spec) if need.names_cloud else ())]
        ranking = planning.rank(spec, candidates, hardware, unpriced, judge)
        in_the_way: tuple[Refused, ...] = ()
        if ranking.best is None:
            big_enough = planning.rank(spec, candidates, hardware, unpriced)
            in_the_way = plan_checks.nearest(spec, ranking)
            if big_enough.best is not None:
                ranking = replace(big_enough, rejected=ranking.rejected)
                in_the_way = judge.reasons(big_enough.best.offer)
        everything = (*offers, *clouds)
        readings: tuple[storage_check.Reading, ...] = ()
        bad_storage: tuple[Refused, ...] = ()
        if isinstance(spec, JobSpec):
            readings, wrong_tiers = storage_check.readings(spec, catalogue.storage, measured)
            bad_storage = (*wrong_tiers, *storage_check.too_slow(spec, readings, catalogue.storage))
        facts = Facts(
            spec=spec,
            ranking=ranking,
            judge=judge,
            meter=meter,
            hardware=hardware,
            rows=survey.rows,
            registered=registered,
            work=work,
            wrong_work=given if isinstance(given, Refused) else None,
            in_the_way=in_the_way,
            accelerated=tuple(judge.accelerated(everything)) if _wants_better(judge, ranking, in_the_way) else (),
            ways_out=_ways_out(spec, survey.rows, survey.halted, in_the_way),
            storage=bad_storage,
            data_known=frozenset(each.source.name for each in readings),
            gaps=gaps,
        )
        shots = quota_check.snapshot(_target_rows(spec, survey.rows)) if need.names_cloud else ()
        return Considered(
            spec=spec, facts=facts, offers=everything, readings=readings, catalogue=catalogue, quotas=shots
        )

    def _meter_of(self, catalogue: Catalogue) -> Meter:
        """Sums are remembered for as long as the catalogue is the same."""
        if self._meter is None or self._meter[0] is not catalogue:
            self._meter = (catalogue, Meter(catalogue))
        return self._meter[1]

    def _basis(self, choices: Sequence[Choice], quotas: Sequence[QuotaShot]) -> Basis:
        prices = [
            [each.place, each.node_type, each.purchase, each.price_microusd_per_hour, each.price_as_of.isoformat()]
            for each in choices
        ]
        each_rule = self._each_rule()
        return Basis(
            prices=_digest(prices),
            quotas=_digest([asdict(each) for each in quotas]),
            rules=_digest(each_rule),
            each_rule=each_rule,
        )

    def _each_rule(self) -> tuple[str, ...]:
        """`id:digest` of every rule and every check, in order of the ids."""
        digests = {**{check.id: "" for check in plan_checks.CHECKS}, **self._rules()}
        return tuple(f"{rule}:{digest[:16]}" for rule, digest in sorted(digests.items()))


def _difference(planned: Sequence[str], now: Sequence[str]) -> str:
    """`came: no-latest; went: eu-only; changed: require-tags`. Empty for a plan that did not write its rules down."""
    before = dict(each.split(":", 1) for each in planned)
    after = dict(each.split(":", 1) for each in now)
    if not before:
        return ""
    said = {
        "came": [rule for rule in after if rule not in before],
        "went": [rule for rule in before if rule not in after],
        "changed": [rule for rule in after if before.get(rule, after[rule]) != after[rule]],
    }
    return "; ".join(f"{what}: {', '.join(rules)}" for what, rules in said.items() if rules)


# ---------------------------------------------------------------- what a spec names


def _places(catalogue: Catalogue, spec: Spec) -> dict[str, tuple[str, ...]]:
    """Cloud → regions that a spec's instance type, cloud and region mean."""
    need = spec.resources
    found: dict[str, set[str]] = {}
    for item in catalogue.hardware.instance_types:
        named = not need.instance_type or same_sku(item.name, need.instance_type)
        if named and need.cloud in ("", item.cloud) and need.region in ("", item.region) and item.region:
            found.setdefault(item.cloud, set()).add(item.region)
    if not found and need.cloud and need.region:
        found[need.cloud] = {need.region}
    return {cloud: tuple(sorted(regions)) for cloud, regions in found.items()}


def _named(offers: Sequence[Offer], spec: Spec) -> list[Offer]:
    need = spec.resources
    return [
        offer
        for offer in offers
        if (not need.instance_type or same_sku(offer.node_type, need.instance_type))
        and need.cloud in ("", offer.cloud)
        and need.region in ("", offer.region)
    ]


def _target_rows(spec: Spec, rows: Sequence[SkuRow]) -> list[SkuRow]:
    need = spec.resources
    return [
        row
        for row in rows
        if (not need.instance_type or same_sku(row.name, need.instance_type))
        and need.cloud in ("", row.cloud)
        and need.region in ("", row.region)
    ]


def _ways_out(
    spec: Spec, rows: Sequence[SkuRow], halted: Sequence[HaltedMachine], in_the_way: Sequence[Refused]
) -> tuple[str, ...]:
    if not any(reason.rule == "quota" for reason in in_the_way):
        return ()
    need = spec.resources
    target = next(iter(_target_rows(spec, rows)), None)
    if target is None:
        return ()
    same = [row for row in rows if row.cloud == target.cloud and same_sku(row.name, target.name)]
    return quota_check.ways_out(same, halted, need.nodes, target.cloud, target.region)


def _wants_better(judge: Judge, ranking: Ranking, in_the_way: Sequence[Refused]) -> bool:
    """Whether machines with accelerators should be told: the one in question has none, or there is none."""
    if any(reason.rule in ("gpu-work", "accelerators", "accelerator", "time", "retired") for reason in in_the_way):
        return True
    return judge.needs_accelerator and ranking.best is None


# ---------------------------------------------------------------- sentences


def _report(facts: Facts, best: Offer | None) -> SizeReport | None:
    """The sizing of the work on what the plan is for, or on the accelerator that the spec names."""
    need = facts.spec.resources
    if facts.work is None or not need.accelerators:
        return None
    kind = best.accelerator if best is not None and best.accelerators else need.accelerator
    card = facts.hardware.accelerator(kind) or next(iter(facts.hardware.accelerators_like(kind)), None)
    if card is None:
        return None
    fit = facts.meter.on(
        facts.work, accelerator=card.id, accelerators=need.accelerators, cpus=need.cpus, nodes=need.nodes
    )
    return fit.report


def _time_basis(spec: Spec, work: Work | None) -> str:
    longest = f"max_duration, {format_duration(spec.max_duration_s)}"
    if work is None:
        section = "training" if isinstance(spec, JobSpec) else "serving"
        return f"hours are {longest}, everywhere: the spec has no {section} section to sum up"
    if work.training is None:
        return f"hours are {longest}: an endpoint runs until it is stopped"
    if not work.tokens:
        return f"hours are {longest}, everywhere: spec.training.tokens would tell them"
    return (
        f"hours are for {work.tokens:,} tokens × {work.epochs:g} of {work.words}, at the middle of the efficiency range"
    )


def _weekend(chosen: Choice | None) -> str:
    if chosen is None:
        return ""
    return planning.written_out(chosen.price_microusd_per_hour, chosen.nodes, 60 * 3600, chosen.idle_weekend_microusd)


def _assumptions(considered: Considered, choices: Sequence[Choice]) -> tuple[str, ...]:
    """What was taken for granted, each with where it is from."""
    found: list[str] = []
    shown = {(each.place.split()[0], each.purchase) for each in choices if each.fits}
    for term in considered.catalogue.purchase_terms:
        if (term.cloud, term.kind) not in shown:
            continue
        guess = "estimated, " if term.estimated else ""
        source = f"({guess}{', '.join(term.sources)}, as of {term.as_of})"
        if term.kind == "spot":
            found.append(f"{term.id}: interruptions a node and day: {term.interruptions_per_day:g} {source}")
        else:
            found.append(f"{term.id}: {term.discount:.0%} off the list price for {term.hours:,} h {source}")
    if considered.facts.work is not None and considered.facts.work.training is not None:
        found.append(f"a vCPU multiplies {GFLOPS_PER_VCPU} GFLOP/s in FP32 at its peak (our estimate)")
    stale = sum(each.price_stale for each in choices)
    if stale:
        found.append(f"{stale} of {len(choices)} prices shown are too old to be trusted without checking: marked stale")
    found += considered.facts.gaps
    return tuple(found)


def _gap(gap: Gap) -> str:
    place = f"{gap.cloud} {gap.region}".strip()
    return f"no {gap.what} from {place}: {gap.why}"


def _of(shot: QuotaShot) -> str:
    return f"{'?' if shot.used is None else f'{shot.used:g}'} of {'?' if shot.limit is None else f'{shot.limit:g}'}"


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
