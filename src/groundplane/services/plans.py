"""Plans: a spec is parsed, offers are gathered and priced, rules are judged, and the outcome is written down.

What a plan costs is nothing; what it says no to costs nothing either.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime

from groundplane.audit import EventDraft
from groundplane.domain.access import Exposure, Project
from groundplane.domain.admission import circle_in
from groundplane.domain.checkpoints import ProofStatus, ResumeProof, proof_id
from groundplane.domain.hardware import Hardware
from groundplane.domain.isolation import IsolationPolicy
from groundplane.domain.model import ModelVersion
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning.outlook import Outlook
from groundplane.domain.planning.plan import Offer, Plan, PlanStatus, RejectedOffer
from groundplane.domain.policy.rule import Subject
from groundplane.domain.spec import EndpointSpec, JobSpec
from groundplane.domain.spec.parse import parse
from groundplane.errors import InvalidInput, NotFound, Refused, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, Executor, Ids, PriceBook, SecretStore, Store, Tx
from groundplane.services.approvals import Approvals
from groundplane.services.outlooks import Considered, Outlooks
from groundplane.services.pins import pinned
from groundplane.services.policy import Policies

MAX_LISTED = 1_000


@dataclass(frozen=True, slots=True)
class _Market:
    """What the pools offer right now: priced offers, offers without a price, and pools that did not answer.

    `blind`: pool → nodes that would not see a cloud take them back, with why; of pools that spot jobs ask for.
    `unfit`: an evaluation's or a batch's `project/name` → nodes of its pool on which it can't run, with why.
    """

    offers: tuple[Offer, ...]
    unpriced: tuple[RejectedOffer, ...]
    silent: dict[str, str]
    blind: dict[str, Mapping[str, str]] = field(default_factory=dict)
    unfit: dict[str, Mapping[str, str]] = field(default_factory=dict)


class Plans:
    """Makes, keeps and rechecks plans. `gateway_addresses` are what an exposure of a public endpoint may name.

    `hardware` gives the catalogue as it stands; `kept` raises NotFound for a job whose data our own store lacks;
    `unfit` tells which nodes of its pool an evaluation or a batch can't run on.
    Without `outlooks` plans show verdicts and pools' offers alone.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        ids: Ids,
        executors: Mapping[str, Executor],
        prices: PriceBook,
        approvals: Approvals,
        policies: Policies | None = None,
        hardware: Callable[[], Hardware] = Hardware,
        outlooks: Outlooks | None = None,
        gateway_addresses: tuple[str, ...] = (),
        price_stale_days: int = 30,
        isolation: IsolationPolicy | None = None,
        secrets: SecretStore | None = None,
        kept: Callable[[JobSpec], Awaitable[object]] | None = None,
        unfit: Callable[[JobSpec], Awaitable[Mapping[str, str]]] | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._executors = executors
        self._prices = prices
        self._approvals = approvals
        self._policies = policies or Policies(store=store, clock=clock, ids=ids)
        self._hardware = hardware
        self._outlooks = outlooks
        self._gateway_addresses = gateway_addresses
        self._price_stale_days = price_stale_days
        self._isolation = isolation or IsolationPolicy()
        self._secrets = secrets
        self._kept = kept
        self._unfit_for = unfit

    async def plan(self, actor: Actor, text: str) -> list[Plan]:
        """One plan per document, refused ones too; all are written down, or none.

        Raises InvalidInput with every fault in the text, NotFound for a project the actor doesn't see.
        """
        # A document may have a megabyte: reading it must not hold up everybody else's requests.
        # One look at the clock: an end "1d" from now read at one moment and judged at a later one would be too near.
        now = self._clock.now()
        specs = await asyncio.to_thread(parse, text, now=now)
        if names := circle_in([spec for spec in specs if isinstance(spec, JobSpec)]):
            words = f"the jobs need each other in a circle: {' → '.join(names)}"
            raise InvalidInput(words, "take one of these needs away, and put what is needed first")
        async with self._store.transaction() as tx:
            for spec in specs:
                await self._project(tx, actor, spec.metadata.project)
            specs = tuple([await pinned(tx, actor, spec) for spec in specs])
        for spec in specs:
            # What comes before it may make what it stages; else nobody will, and it would wait until its end date.
            if self._kept is not None and isinstance(spec, JobSpec) and spec.data and not spec.needs:
                await self._kept(spec)
        market = await self._market()
        market = replace(market, blind=await self._blind(specs, market), unfit=await self._unfit(specs, market))
        considered = [await self._consider(spec, market) for spec in specs]
        outlooks = [await self._outlook(found) for found in considered]
        plans: list[Plan] = []
        async with self._store.transaction() as tx:
            for spec in specs:
                await self._project(tx, actor, spec.metadata.project)
            for spec, found, outlook in zip(specs, considered, outlooks, strict=True):
                plan = await self._draw_up(tx, actor, spec, market, found, outlook, now)
                await tx.insert(plan)
                plans.append(plan)
            replaced = await self._approvals.ask(tx, *plans)
            # The chain is locked from the first event on: no other row may be waited for after it.
            for draft in (*replaced, *map(_event, plans)):
                await tx.append_event(draft)
        return plans

    async def get(self, actor: Actor, plan_id: str) -> Plan:
        """Raises NotFound for a plan that does not exist or belongs to a project the actor doesn't see."""
        async with self._store.transaction() as tx:
            plan = await tx.get(Plan, plan_id)
        if plan is None or not actor.sees(plan.project):
            raise NotFound(f"no plan {plan_id}", "ground plan -f SPEC makes one")
        return plan

    async def plans(self, actor: Actor, *, project: str | None = None, limit: int = 100) -> list[Plan]:
        """Newest first; only those of projects the actor sees."""
        where: dict[str, object] = {} if project is None else {"project": project}
        if project is None and actor.project is not None and not actor.sees(""):
            where["project"] = actor.project
        async with self._store.transaction() as tx:
            found = await tx.find(Plan, where, order="-created_at", limit=min(limit, MAX_LISTED))
        return [plan for plan in found if actor.sees(plan.project)]

    async def counts(self, actor: Actor) -> dict[tuple[str, str], int]:
        """(project, status) → plans, of the projects that the actor sees."""
        async with self._store.transaction() as tx:
            found = await tx.total(Plan, "*", by=("project", "status"))
        return {(str(p), str(status)): n for (p, status), n in found.items() if actor.sees(str(p))}

    async def recheck(self, plan: Plan) -> list[Refused]:
        """What changed since the plan was made: node, fit, price, rules. Empty when it may be applied as it stands.

        Raises Unavailable when the plan's pool does not answer: what can't be seen is not taken for unchanged.
        """
        spec = plan.job or plan.endpoint
        if spec is None or plan.offer is None:
            return []
        now = self._clock.now()
        market = await self._market(only=plan.offer.pool)
        found = await self._consider(spec, market)
        if plan.offer.pool in market.silent:
            raise Unavailable(
                f"pool {plan.offer.pool} does not answer: {market.silent[plan.offer.pool]}", "try again in a moment"
            )
        everywhere = market.offers if found is None else found.offers
        place = tuple(offer for offer in everywhere if planning.same_place(offer, plan.offer))
        async with self._store.transaction() as tx:
            subject = await self._subject(tx, None, spec, replace(market, offers=place), None, now)
            verdicts = await self._policies.judge(tx, subject, at_apply=True)
        if self._outlooks is None or found is None:
            return planning.changes(plan, subject.ranking, verdicts)
        verdicts += self._outlooks.verdicts(found, None, at_apply=True)
        return [*self._outlooks.changes(plan, found), *planning.changes(plan, subject.ranking, verdicts)]

    # ------------------------------------------------------------ the parts of a plan

    async def _consider(self, spec: JobSpec | EndpointSpec, market: _Market) -> Considered | None:
        if self._outlooks is None:
            return None
        return await self._outlooks.consider(spec, market.offers, market.unpriced)

    async def _outlook(self, found: Considered | None) -> Outlook | None:
        if self._outlooks is None or found is None:
            return None
        return await asyncio.to_thread(self._outlooks.outlook, found)

    async def _draw_up(
        self,
        tx: Tx,
        actor: Actor,
        spec: JobSpec | EndpointSpec,
        market: _Market,
        found: Considered | None,
        outlook: Outlook | None,
        now: datetime,
    ) -> Plan:
        subject = await self._subject(tx, actor, spec, market, found, now)
        verdicts = await self._policies.judge(tx, subject)
        if self._outlooks is not None and found is not None and outlook is not None:
            outlook = replace(outlook, budget=await self._outlooks.budget(tx, found))
            verdicts += self._outlooks.verdicts(found, outlook.budget)
        if subject.ranking.best is not None:
            verdicts += await self._approvals.verdicts(
                tx, spec, subject.ranking.best.worst_case_microusd, by=actor.name
            )
        return planning.seal(
            spec,
            subject.ranking,
            verdicts,
            id=self._ids.new("plan"),
            created_by=actor.name,
            now=subject.now,
            outlook=outlook,
        )

    async def _subject(
        self,
        tx: Tx,
        actor: Actor | None,
        spec: JobSpec | EndpointSpec,
        market: _Market,
        found: Considered | None,
        now: datetime,
    ) -> Subject:
        model: ModelVersion | None = None
        versions: tuple[str, ...] = ()
        exposure: Exposure | None = None
        if isinstance(spec, EndpointSpec):
            model, versions = await self._model(tx, actor, spec)
            exposure = await self._exposure(tx, spec) if spec.public else None
        hardware = self._hardware()
        ranking = found.ranking if found else planning.rank(spec, market.offers, hardware, market.unpriced)
        return Subject(
            spec=spec,
            ranking=ranking,
            hardware=hardware,
            now=now,
            pools=tuple(sorted(self._executors)),
            silent_pools=market.silent,
            price_stale_days=self._price_stale_days,
            model=model,
            known_versions=versions,
            exposure=exposure,
            isolation=self._isolation.in_pool(spec.pool),
            secrets=await self._secret_names(spec),
            resume_proof=await self._resume_proof(tx, spec),
            spot_blind=market.blind.get(spec.pool, {}),
            unfit=market.unfit.get(f"{spec.metadata.project}/{spec.metadata.name}", {}),
        )

    async def _resume_proof(self, tx: Tx, spec: JobSpec | EndpointSpec) -> str:
        """How far the proof is that a spot job resumes: "" without one, its status, or why it failed."""
        if isinstance(spec, EndpointSpec) or not spec.spot:
            return ""
        proof = await tx.get(ResumeProof, proof_id(spec))
        if proof is None:
            return ""
        return proof.message if proof.status is ProofStatus.FAILED else proof.status.value

    async def _secret_names(self, spec: JobSpec | EndpointSpec) -> frozenset[str]:
        if isinstance(spec, EndpointSpec) or not spec.secrets or self._secrets is None:
            return frozenset()
        return await self._secrets.names(spec.metadata.project)

    async def offers(self) -> tuple[tuple[Offer, ...], dict[str, str]]:
        """Every priced offer of every pool, and for each pool that does not answer, why."""
        market = await self._market()
        return market.offers, market.silent

    async def _market(self, only: str | None = None) -> _Market:
        pools = [pool for pool in sorted(self._executors) if only in (None, pool)]
        answers = await asyncio.gather(*(self._offers(pool) for pool in pools))
        offers: list[Offer] = []
        unpriced: list[RejectedOffer] = []
        silent: dict[str, str] = {}
        for pool, answer in zip(pools, answers, strict=True):
            if isinstance(answer, Unavailable):
                silent[pool] = answer.message
                continue
            for offer in answer:
                try:
                    offers.append(self._prices.price(offer))
                except NotFound as error:
                    reason = Refused(rule="price", need="a price", have="none", hint=error.hint)
                    unpriced.append(RejectedOffer(pool=offer.pool, node_type=offer.node_type, reasons=(reason,)))
        return _Market(tuple(offers), tuple(unpriced), silent)

    async def _blind(self, specs: Sequence[JobSpec | EndpointSpec], market: _Market) -> dict[str, Mapping[str, str]]:
        asked = {spec.pool for spec in specs if isinstance(spec, JobSpec) and spec.spot}
        pools = sorted(asked & set(self._executors) - set(market.silent))
        found: dict[str, Mapping[str, str]] = {}
        for pool in pools:
            with suppress(Unavailable):  # that it does not answer is told by a rule of its own
                found[pool] = await self._executors[pool].spot_blind()
        return found

    async def _unfit(self, specs: Sequence[JobSpec | EndpointSpec], market: _Market) -> dict[str, Mapping[str, str]]:
        found: dict[str, Mapping[str, str]] = {}
        for spec in specs:
            if self._unfit_for is None or not isinstance(spec, JobSpec) or spec.inference is None:
                continue
            if spec.pool in self._executors and spec.pool not in market.silent:
                found[f"{spec.metadata.project}/{spec.metadata.name}"] = await self._unfit_for(spec)
        return found

    async def _offers(self, pool: str) -> tuple[Offer, ...] | Unavailable:
        """A pool that does not answer must not keep the others' plans from being made."""
        try:
            return tuple(await self._executors[pool].offers())
        except Unavailable as error:
            return error

    async def _project(self, tx: Tx, actor: Actor, name: str) -> None:
        if not actor.sees(name) or await tx.get(Project, name) is None:
            raise NotFound(f"no project {name}", "ground projects list shows yours; ground projects create makes one")

    async def _model(
        self, tx: Tx, actor: Actor | None, spec: EndpointSpec
    ) -> tuple[ModelVersion | None, tuple[str, ...]]:
        """The version, when it may be served from this project, else what could be meant instead."""

        def visible(version: ModelVersion) -> bool:
            own = version.project == spec.metadata.project
            return own or (actor is not None and actor.sees(version.project))

        version = await tx.get(ModelVersion, spec.model)
        # At apply there is no actor: whoever was allowed to plan with this version has been checked then.
        if version is not None and (actor is None or visible(version)):
            return version, ()
        found = await tx.find(ModelVersion, order="id", limit=MAX_LISTED)
        return None, tuple(other.id for other in found if visible(other))

    async def _exposure(self, tx: Tx, spec: EndpointSpec) -> Exposure | None:
        """The exposure that lasts longest among those of the endpoint's name and of the gateway's addresses."""
        names = (spec.metadata.name, *self._gateway_addresses)
        found = await tx.find(Exposure, {"id": names}, order="-expires_at", limit=1)
        return found[0] if found else None


def _event(plan: Plan) -> EventDraft:
    refused = [verdict.rule for verdict in plan.verdicts if verdict.refused is not None]
    after: dict[str, object] = {
        "kind": plan.kind,
        "spec_digest": plan.spec_digest,
        "hash": plan.hash,
        "status": str(plan.status),
        "worst_case_microusd": plan.worst_case_microusd,
    }
    if plan.outlook is not None:
        after["expected_microusd"] = plan.outlook.expected_microusd
        after["rules"] = plan.outlook.basis.rules
    if plan.offer is not None:
        after["place"] = f"{plan.offer.pool}/{plan.offer.node_type}"
    if plan.status is PlanStatus.REFUSED:
        after["refused"] = refused
    if plan.status is PlanStatus.NEEDS_APPROVAL:
        after["approval"] = [verdict.rule for verdict in plan.verdicts if verdict.approval]
    return EventDraft(
        at=plan.created_at,
        actor=plan.created_by,
        action="plan.create",
        object_kind="plan",
        object_id=plan.id,
        project=plan.project,
        after=after,
    )
