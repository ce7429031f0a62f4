"""A spec becomes a plan: offers that fit, what they cost, what policy says, hash-bound to what it was computed from.

filter (`fit`) → rank and price (`rank`) → verdicts (`RuleSet.judge`) → `seal`; and before it is applied, `changes`
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Protocol

from groundplane.domain.hardware import Hardware
from groundplane.domain.planning.outlook import Basis, Outlook
from groundplane.domain.spec import EndpointSpec, JobSpec, Resources, spec_digest
from groundplane.errors import Refused
from groundplane.units import cost_microusd, exact_usd, format_bytes, format_count

MAX_ALTERNATIVES = 10
MAX_REJECTED = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """A place to run: a pool's node type with its price. `price_source` says where the number is from, and when.

    `nodes` is how many such nodes the pool has. A cloud's offer names its `cloud`, `region` and `purchase`; an hour
    of it may cost `ceiling_microusd_per_hour` where that is more, and `term_hours` are paid whether used or not.
    `isolation` are the ways in which a pool's nodes keep jobs apart; empty when that is not known. `alone` when its
    nodes keep the files of runs to themselves: none sees what another run left. `serves` when the gateway reaches the
    ports of what runs there.
    """

    pool: str
    node_type: str
    cpus: float
    memory_bytes: int
    disk_free_bytes: int
    accelerators: int
    accelerator: str
    price_microusd_per_hour: int
    price_as_of: date
    price_source: str
    simulated: bool = False
    nodes: int = 1
    cloud: str = ""
    region: str = ""
    purchase: str = ""
    ceiling_microusd_per_hour: int = 0
    term_hours: int = 0
    isolation: tuple[str, ...] = ()
    alone: bool = False
    serves: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One policy rule's answer on one spec. `refused` is None when nothing stands in the way; a `warning` does not.

    `approval` is why somebody else must agree before it is applied, with its number; empty when nobody need.
    `exception` says until when and by whom a rule that would speak is lifted.
    """

    rule: str
    why: str
    refused: Refused | None
    warning: str = ""
    approval: str = ""
    exception: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """An offer that fits, with what it costs at most for this spec. `arithmetic` is the sum, written out."""

    offer: Offer
    worst_case_microusd: int
    arithmetic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedOffer:
    """An offer that does not fit, with every number that stands in the way."""

    pool: str
    node_type: str
    reasons: tuple[Refused, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Offers for one spec: the cheapest that fit, cheapest first, and the nearest that do not."""

    quotes: tuple[Quote, ...]
    rejected: tuple[RejectedOffer, ...]

    @property
    def best(self) -> Quote | None:
        return self.quotes[0] if self.quotes else None


class Objector(Protocol):
    """Whoever finds reasons against an offer beyond what it has: asked of all, told of those that are shown."""

    def objects(self, offer: Offer) -> bool:
        """Whether there is a reason."""
        ...

    def reasons(self, offer: Offer) -> tuple[Refused, ...]:
        """Every reason, with its figures."""
        ...


class PlanStatus(StrEnum):
    READY = "ready"
    NEEDS_APPROVAL = "needs-approval"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    REFUSED = "refused"
    APPLIED = "applied"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would happen and cost. Immutable but for `status` and `applied_to`.

    `hash` binds it to spec, offer, price and verdicts. `alternatives` are the next cheapest offers that fit,
    `rejected` the nearest that do not.
    """

    id: str
    project: str
    owner: str
    kind: str
    job: JobSpec | None = None
    endpoint: EndpointSpec | None = None
    spec_digest: str
    offer: Offer | None
    max_duration_s: int
    worst_case_microusd: int
    arithmetic: str
    verdicts: tuple[Verdict, ...]
    status: PlanStatus
    hash: str
    created_by: str
    created_at: datetime
    applied_to: str = ""
    alternatives: tuple[Quote, ...] = ()
    rejected: tuple[RejectedOffer, ...] = ()
    outlook: Outlook | None = None
    version: int = 0


def fit(need: Resources, pool: str, offer: Offer, hardware: Hardware) -> tuple[Refused, ...]:
    """Every reason why an offer can't carry a spec; empty when it can. More of anything never adds a reason."""
    misses = _misses(need, pool, offer, hardware.same_accelerator)
    return tuple(_reason(rule, need, pool, offer) for rule in misses)


def fit_anywhere(need: Resources, offer: Offer, hardware: Hardware) -> tuple[Refused, ...]:
    """`fit` for what an offer has, wherever it is: another pool, type or cloud than the one asked for is no reason."""
    return tuple(_reason(rule, need, offer.pool, offer) for rule in lacks(need, offer, hardware.same_accelerator))


def rank(
    spec: JobSpec | EndpointSpec,
    offers: Sequence[Offer],
    hardware: Hardware,
    unpriced: Sequence[RejectedOffer] = (),
    also: Objector | None = None,
) -> Ranking:
    """Filters, prices and ranks. Cheapest worst case first; among equals the smallest node, then by name.

    `unpriced` are offers that were rejected before, for want of a price; `also` objects beyond `resources`.
    """
    need = spec.resources
    same = functools.cache(hardware.same_accelerator)  # ten thousand offers name a few dozen accelerators
    fitting: list[tuple[int, Offer]] = []
    missing: list[tuple[tuple[str, ...], Offer]] = []
    for offer in offers:
        misses = _misses(need, spec.pool, offer, same)
        if misses or (also is not None and also.objects(offer)):
            missing.append((misses, offer))
        else:
            fitting.append((worst_case(spec, offer), offer))
    fitting.sort(key=lambda pair: (pair[0], *_size(pair[1])))
    missing.sort(key=_nearness)
    # Only what is shown is written out: that is most of the work, and nobody reads the last of ten thousand.
    quotes = [
        Quote(offer=offer, worst_case_microusd=worst, arithmetic=arithmetic(spec, offer, worst))
        for worst, offer in fitting[: 1 + MAX_ALTERNATIVES]
    ]
    rejected = [
        RejectedOffer(
            pool=offer.pool,
            node_type=offer.node_type,
            reasons=(
                *(_reason(rule, need, spec.pool, offer) for rule in misses),
                *(also.reasons(offer) if also is not None and not _PLACE.intersection(misses) else ()),
            ),
        )
        for misses, offer in missing[:MAX_REJECTED]
    ]
    own = [item for item in unpriced if item.pool == spec.pool]
    others = [item for item in unpriced if item.pool != spec.pool]
    return Ranking(quotes=tuple(quotes), rejected=(*own, *rejected, *others)[:MAX_REJECTED])


def _misses(need: Resources, pool: str, offer: Offer, same: Callable[[str, str], bool]) -> tuple[str, ...]:
    """The rules an offer fails, in the order they are told; those of another place are told for that alone."""
    elsewhere = _elsewhere(need, pool, offer)
    return (elsewhere,) if elsewhere else lacks(need, offer, same)


_PLACE = frozenset({"pool", "instance-type", "cloud", "region", "purchase"})
"""Rules that an offer fails for where it is, not for what it has."""


def _nearness(miss: tuple[tuple[str, ...], Offer]) -> tuple[bool, int, str, str]:
    """The fewest reasons first; what is elsewhere comes last."""
    rules, offer = miss
    return bool(_PLACE.intersection(rules)), len(rules), offer.pool, offer.node_type


def _elsewhere(need: Resources, pool: str, offer: Offer) -> str:
    """Why an offer is in the wrong place; empty when it is in the right one."""
    named = not need.instance_type or same_sku(offer.node_type, need.instance_type)
    if not offer.cloud:
        if offer.pool != pool:
            return "pool"
        if not named:
            return "instance-type"
        return "cloud" if need.names_cloud and not need.instance_type else ""
    if not need.names_cloud:
        return "pool"
    if not named:
        return "instance-type"
    if need.cloud not in ("", offer.cloud):
        return "cloud"
    if need.region not in ("", offer.region):
        return "region"
    return "" if (need.purchase or "on-demand") == offer.purchase else "purchase"


def same_sku(name: str, asked: str) -> bool:
    """Azure's own tools write `Standard_NC24ads_A100_v4`, people write it without the first word."""
    return name.lower().removeprefix("standard_") == asked.lower().removeprefix("standard_")


def lacks(need: Resources, offer: Offer, same: Callable[[str, str], bool]) -> tuple[str, ...]:
    """The rules by which an offer has too little, in the order they are told."""
    misses: list[str] = []
    if need.cpus > offer.cpus:
        misses.append("cpus")
    if need.memory_bytes > offer.memory_bytes:
        misses.append("memory")
    if need.disk_bytes > offer.disk_free_bytes:
        misses.append("disk")
    if need.accelerators > offer.accelerators:
        misses.append("accelerators")
    if need.nodes > offer.nodes:
        misses.append("nodes")
    if need.accelerators and "accelerators" not in misses and not same(need.accelerator, offer.accelerator):
        misses.append("accelerator")
    return tuple(misses)


def _reason(rule: str, need: Resources, pool: str, offer: Offer) -> Refused:
    """A failed rule with its numbers and a way forward."""
    if rule == "pool":
        hint = f"set pool: {offer.pool} to use it"
        if offer.cloud:
            hint = f"set resources.cloud: {offer.cloud} and resources.region: {offer.region} to plan it there"
        return Refused(rule=rule, need=f"pool {pool}", have=f"pool {offer.pool}", hint=hint)
    if rule == "instance-type":
        hint = f"leave out resources.instance_type, or name {offer.node_type}"
        return Refused(rule=rule, need=need.instance_type, have=offer.node_type, hint=hint)
    if rule in ("cloud", "region", "purchase"):
        asked = getattr(need, rule) or ("on-demand" if rule == "purchase" else f"no {rule}")
        have = getattr(offer, rule) or f"pool {offer.pool}"
        return Refused(rule=rule, need=asked, have=have, hint=f"set resources.{rule} to use it")
    if rule == "cpus":
        hint = f"lower resources.cpus to {offer.cpus:g}"
        return Refused(rule=rule, need=format_count(need.cpus, "CPU"), have=f"{offer.cpus:g}", hint=hint)
    if rule == "memory":
        return _too_small(rule, need.memory_bytes, offer.memory_bytes)
    if rule == "disk":
        return _too_small(rule, need.disk_bytes, offer.disk_free_bytes)
    if rule == "accelerators":
        have = f"{offer.accelerators} × {offer.accelerator}" if offer.accelerators else "none"
        wanted = f"{need.accelerators} × {need.accelerator or 'accelerator'}"
        hint = "choose a pool with accelerators" if not offer.accelerators else "spread it over more nodes"
        return Refused(rule=rule, need=wanted, have=have, hint=hint)
    if rule == "nodes":
        hint = f"lower resources.nodes to {offer.nodes}"
        return Refused(rule=rule, need=f"{need.nodes} nodes", have=str(offer.nodes), hint=hint)
    hint = f"set resources.accelerator: {offer.accelerator}, or leave it out to take any"
    return Refused(rule="accelerator", need=need.accelerator, have=offer.accelerator, hint=hint)


def worst_case(spec: JobSpec | EndpointSpec, offer: Offer, nodes: int | None = None) -> int:
    """What an offer may cost for a spec at most: until its max duration, at the highest price; a term is paid whole."""
    seconds = offer.term_hours * 3600 or spec.max_duration_s
    highest = max(offer.price_microusd_per_hour, offer.ceiling_microusd_per_hour)
    return cost_microusd(highest, seconds, spec.resources.nodes if nodes is None else nodes)


def arithmetic(spec: JobSpec | EndpointSpec, offer: Offer, worst_case_microusd: int) -> str:
    """`$0.10/h × 1 node × 0.50 h = $0.05`: every figure exact, so that anyone can do the sum again."""
    seconds = offer.term_hours * 3600 or spec.max_duration_s
    highest = max(offer.price_microusd_per_hour, offer.ceiling_microusd_per_hour)
    return written_out(highest, spec.resources.nodes, seconds, worst_case_microusd)


def written_out(price_microusd_per_hour: int, nodes: int, seconds: int, amount_microusd: int) -> str:
    """The sum behind an amount."""
    hours = f"{seconds / 3600:,.2f} h" if seconds % 36 == 0 else f"{seconds:,} s ÷ 3,600 s/h"
    return (
        f"{exact_usd(price_microusd_per_hour)}/h × {format_count(nodes, 'node')} × {hours}"
        f" = {exact_usd(amount_microusd)}"
    )


def longest_s(spec: JobSpec | EndpointSpec, offer: Offer) -> int:
    """The longest duration whose worst case stays within the spec's max cost, in whole seconds; 0 when none does."""
    highest = max(offer.price_microusd_per_hour, offer.ceiling_microusd_per_hour)
    if offer.term_hours:
        return 0  # a term is paid whole, however short the work
    per_hour = highest * spec.resources.nodes
    if per_hour == 0:
        return spec.max_duration_s
    return min(spec.max_duration_s, spec.max_cost_microusd * 3600 // per_hour)


def compact_duration(seconds: int) -> str:
    """As a spec writes it, exactly: `1h30m`, `45s`."""
    parts, left = [], seconds
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if left >= size:
            parts.append(f"{left // size}{unit}")
            left %= size
    return "".join(parts) or "0s"


def spec_size(count: int) -> str:
    """As a spec writes it, rounded down to whole MiB: `8GiB`, `1536MiB`."""
    return f"{count // 2**30}GiB" if count >= 2**30 and count % 2**30 == 0 else f"{count // 2**20}MiB"


def seal(
    spec: JobSpec | EndpointSpec,
    ranking: Ranking,
    verdicts: tuple[Verdict, ...],
    *,
    id: str,
    created_by: str,
    now: datetime,
    outlook: Outlook | None = None,
) -> Plan:
    """The plan, hashed: refused when any verdict refuses, else in need of approval when any asks for it, else ready."""
    best, digest = ranking.best, spec_digest(spec)
    offer = best.offer if best else None
    is_job = isinstance(spec, JobSpec)
    status = PlanStatus.NEEDS_APPROVAL if any(verdict.approval for verdict in verdicts) else PlanStatus.READY
    if best is None or any(verdict.refused is not None for verdict in verdicts):
        status = PlanStatus.REFUSED
    return Plan(
        id=id,
        project=spec.metadata.project,
        owner=spec.metadata.owner,
        kind="job" if is_job else "endpoint",
        job=spec if isinstance(spec, JobSpec) else None,
        endpoint=spec if isinstance(spec, EndpointSpec) else None,
        spec_digest=digest,
        offer=offer,
        max_duration_s=spec.max_duration_s,
        worst_case_microusd=best.worst_case_microusd if best else 0,
        arithmetic=best.arithmetic if best else "",
        verdicts=verdicts,
        status=status,
        hash=plan_hash(digest, offer, verdicts, outlook.basis if outlook is not None else None),
        created_by=created_by,
        created_at=now,
        alternatives=ranking.quotes[1:],
        rejected=ranking.rejected,
        outlook=outlook,
    )


def plan_hash(digest: str, offer: Offer | None, verdicts: Sequence[Verdict], basis: Basis | None = None) -> str:
    """SHA-256 hex over the spec's digest, the offer with its price and date, each rule with its answer, and the basis.

    Free disk is left out: it changes by the minute, and `changes` checks that the plan still fits.
    """
    place = None if offer is None else {key: v for key, v in asdict(offer).items() if key != "disk_free_bytes"}
    body: dict[str, object] = {
        "spec": digest,
        "offer": place,
        "verdicts": [
            [
                v.rule,
                None if v.refused is None else asdict(v.refused),
                v.warning,
                *filter(None, (v.approval, v.exception)),
            ]
            for v in verdicts
        ],
    }
    if basis is not None:
        body["basis"] = {"prices": basis.prices, "quotas": basis.quotas, "rules": basis.rules}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_iso)
    return hashlib.sha256(canonical.encode()).hexdigest()


def changes(plan: Plan, ranking: Ranking, verdicts: Sequence[Verdict]) -> list[Refused]:
    """What is no longer as it was planned: the node, its fit, its price, or a rule's answer. Empty: apply it.

    A rule that asks for approval now and did not when the plan was made is a change, too.

    `ranking` and `verdicts` are today's, over the offers of the planned pool and node type alone (`same_place`).
    """
    if plan.offer is None:
        return []
    planned = plan.offer
    found: list[Refused] = []
    now = next((quote.offer for quote in ranking.quotes if same_place(quote.offer, planned)), None)
    if now is None:
        found.append(_gone(planned, ranking))
    else:
        if now.price_microusd_per_hour != planned.price_microusd_per_hour:
            found.append(_price_changed(planned, now))
        if (now.accelerators, now.accelerator) != (planned.accelerators, planned.accelerator):
            need = f"{planned.node_type} with {planned.accelerators} × {planned.accelerator or 'no accelerator'}"
            have = f"{now.accelerators} × {now.accelerator or 'no accelerator'}"
            found.append(Refused(rule="node-unchanged", need=need, have=have, hint=_AGAIN))
    before = {verdict.rule for verdict in plan.verdicts if verdict.refused is not None}
    # That it no longer fits, or costs more, is told above in better words.
    skipped = before | {"offer-fits", "max-cost"}
    found += [v.refused for v in verdicts if v.refused is not None and v.rule not in skipped]
    asked = {verdict.rule for verdict in plan.verdicts if verdict.approval}
    found += [
        Refused(rule=v.rule, need="a plan that asked for this approval", have=v.approval, hint=_AGAIN)
        for v in verdicts
        if v.approval and v.rule not in asked
    ]
    return found


_AGAIN = "plan again: ground plan -f SPEC"


def _gone(planned: Offer, ranking: Ranking) -> Refused:
    place = f"{planned.pool}/{planned.node_type}"
    rejected = next((r for r in ranking.rejected if (r.pool, r.node_type) == (planned.pool, planned.node_type)), None)
    if rejected is None:
        return Refused(rule="offer-still-there", need=place, have="it is no longer offered", hint=_AGAIN)
    first = rejected.reasons[0]
    have = f"{first.rule} {first.have}"
    return Refused(rule="offer-still-fits", need=f"{first.need} on {place}", have=have, hint=_AGAIN)


def _price_changed(planned: Offer, now: Offer) -> Refused:
    return Refused(
        rule="price-unchanged",
        need=f"{exact_usd(planned.price_microusd_per_hour)}/h ({planned.price_as_of})",
        have=f"{exact_usd(now.price_microusd_per_hour)}/h ({now.price_as_of})",
        hint=_AGAIN,
    )


def _too_small(what: str, need_bytes: int, have_bytes: int) -> Refused:
    need, have = format_bytes(need_bytes), format_bytes(have_bytes)
    if need == have:  # they differ below one decimal: then only the bytes tell them apart
        need, have = f"{need_bytes:,} bytes", f"{have_bytes:,} bytes"
    hint = f"lower resources.{what} to {spec_size(have_bytes)}"
    return Refused(rule=what, need=f"{need} {what}", have=have, hint=hint)


def _size(offer: Offer) -> tuple[float | str, ...]:
    small_first = (offer.accelerators, offer.memory_bytes, offer.cpus)
    return (*small_first, offer.pool, offer.node_type, offer.accelerator, offer.nodes)


def same_place(one: Offer, other: Offer) -> bool:
    """Whether two offers are the same pool's same node type, bought in the same way."""
    return (one.pool, one.node_type, one.purchase) == (other.pool, other.node_type, other.purchase)


def _iso(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} has no canonical form")
