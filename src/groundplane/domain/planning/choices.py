"""Every way to buy the work a spec describes, side by side: a cloud's SKUs as offers, and offers as choices.

survey rows → `cloud_offers` → `Judge.reasons` (what stands in the way) → `Judge.choices` (hours and dollars, cheapest
fitting first). Spot is summed up with the re-work that interruptions cost, reserved as the term that is paid.

Source: Young, A first order approximation to the optimum checkpoint interval (1974): an interruption costs half an
interval and a restart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import NamedTuple

from groundplane.domain.catalogue.entries import Catalogue, PurchaseTerm
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning.outlook import WEEKEND_H, Choice, Purchase
from groundplane.domain.planning.plan import Offer, same_sku
from groundplane.domain.planning.quota_check import Room, room_for
from groundplane.domain.planning.recon import SkuRow
from groundplane.domain.planning.work import HOURS_MAX, SMALL_MODEL_PARAMS, Fitness, Meter, Work, main_memory
from groundplane.domain.spec import EndpointSpec, JobSpec, Resources
from groundplane.errors import Refused
from groundplane.units import cost_microusd, format_count, format_duration, format_usd

ATTACHABLE_DISK_BYTES = 32 * 2**40
"""What a cloud's machine can have attached, at least: disks are bought beside it. Our estimate."""

CHECKPOINT_EVERY_S = 1_800
"""Taken when the spec says nothing of `checkpoint_every`. Our estimate."""

RESERVED_SHOWN = 3
"""A term is shown for the cheapest so many machines: for one piece of work it seldom pays."""

FITTING_SHOWN, REJECTED_SHOWN = 15, 20

_ANYTHING = Fitness()

GPU_MAKERS = ("nvidia-", "amd-")
"""Work that does not name its accelerator is taken to be written for GPUs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Market:
    """What is for sale: pools' priced offers, the clouds' rows, and what is known of the terms of buying."""

    pools: tuple[Offer, ...]
    rows: tuple[SkuRow, ...]
    terms: tuple[PurchaseTerm, ...]
    registered: frozenset[str]


def cloud_offers(market: Market, need: Resources) -> list[Offer]:
    """Offers of the clouds, each way of buying one; without a price there is none. Retired ones only when named."""
    offers: list[Offer] = []
    for row in market.rows:
        named = bool(need.instance_type) and same_sku(row.name, need.instance_type)
        if not row.price_microusd_per_hour or (row.status == "retired" and not named):
            continue
        if row.cpus is None or row.memory_bytes is None or (0 < row.accelerators < 1 and not named):
            continue
        offers += _ways_to_buy(row, market.terms)
    return offers


def _ways_to_buy(row: SkuRow, terms: Iterable[PurchaseTerm]) -> list[Offer]:
    assert row.price_microusd_per_hour and row.cpus is not None and row.memory_bytes is not None
    listed = Offer(
        pool=f"{row.cloud} {row.region}",
        node_type=row.name,
        cpus=row.cpus,
        memory_bytes=row.memory_bytes,
        disk_free_bytes=ATTACHABLE_DISK_BYTES,
        accelerators=int(row.accelerators),
        accelerator=row.accelerator if row.accelerators >= 1 else "",
        price_microusd_per_hour=row.price_microusd_per_hour,
        price_as_of=row.price_as_of or date.min,
        price_source=row.price_source,
        nodes=10_000,  # the quota is the limit, and is checked apart
        cloud=row.cloud,
        region=row.region,
        purchase=Purchase.ON_DEMAND,
    )
    offers = [listed]
    if row.spot_microusd_per_hour:
        spot = replace(
            listed,
            price_microusd_per_hour=row.spot_microusd_per_hour,
            ceiling_microusd_per_hour=row.price_microusd_per_hour,
            purchase=Purchase.SPOT,
        )
        offers.append(spot)
    for term in terms:
        if term.kind == Purchase.RESERVED and term.cloud == row.cloud:
            price = -(-row.price_microusd_per_hour * round((1 - term.discount) * 10_000) // 10_000)
            source = f"{row.price_source} less {term.discount:.0%}: {term.id}, as of {term.as_of}"
            offers.append(
                replace(
                    listed,
                    price_microusd_per_hour=price,
                    price_source=source,
                    purchase=Purchase.RESERVED,
                    term_hours=term.hours,
                )
            )
    return offers


class Appraisal(NamedTuple):
    """An offer for so much, and its place in the order: reasons against it, expected and worst case, seconds, names."""

    key: tuple[int, int, int, int, str, str, str]
    offer: Offer
    need: Resources

    @property
    def fits(self) -> bool:
        return not self.key[0]


class Judge:
    """Holds offers against one spec: what stands in the way of each, and what each would cost.

    `now` and `stale_days` decide which prices are too old to be trusted without saying so.
    """

    def __init__(
        self,
        spec: JobSpec | EndpointSpec,
        market: Market,
        catalogue: Catalogue,
        meter: Meter,
        work: Work | None,
        *,
        now: datetime,
        stale_days: int,
    ) -> None:
        self.spec, self.work, self.now = spec, work, now
        self._market, self._catalogue, self._meter = market, catalogue, meter
        self._stale_days = stale_days
        self._rows: Mapping[tuple[str, str, str], SkuRow] = {(r.cloud, r.region, r.name): r for r in market.rows}
        self._fits: dict[tuple[str, int, float, int, int], Fitness] = {}
        self._same = functools.cache(catalogue.hardware.same_accelerator)
        self._needs: dict[tuple[int, str], Resources] = {}
        self.needs_accelerator = self._needs_accelerator()

    # ------------------------------------------------------------ what stands in the way

    def objects(self, offer: Offer) -> bool:
        """Whether anything beyond `resources` keeps an offer from carrying it."""
        return bool(self._objections(offer, self.spec.resources))

    def reasons(self, offer: Offer) -> tuple[Refused, ...]:
        """What beyond `resources` keeps an offer from carrying it: memory, time, restriction, quota, lead time."""
        return self._reasons(offer, self.spec.resources)

    def _objections(self, offer: Offer, need: Resources) -> tuple[str, ...]:
        """The rules that speak against an offer for so much; words for them are made for those that are shown."""
        found: list[str] = []
        fit = self.fitness(offer, need)
        room = self.room(offer, need.nodes)
        if self.is_retired(offer):
            found.append("retired")
        if self.needs_accelerator and not need.accelerators:
            found.append("gpu-work")
        elif fit.short is not None:
            found.append(fit.short.rule)
        elif self.work is not None and offer.accelerators and need.accelerators and fit.report is None:
            found.append("accelerator-known")
        elif (hours := self._hours(offer, fit, need.nodes)) is None:
            found.append("interruptions")
        elif fit.hours is not None and hours * 3600 > self.spec.max_duration_s:
            found.append("time")
        elif fit.hours is not None and hours > self._hours_left:
            found.append("in-time")
        if room is not None and (room.short or room.row.restriction):
            found.append("room")
        return tuple(found)

    def _reasons(self, offer: Offer, need: Resources) -> tuple[Refused, ...]:
        """The objections in words."""
        found: list[Refused] = []
        fit = self.fitness(offer, need)
        for rule in self._objections(offer, need):
            if rule == "retired":
                found.append(self._gone(offer))
            elif rule == "gpu-work":
                found.append(self._no_accelerator(offer, fit, need.nodes))
            elif rule == "accelerator-known":
                found.append(_unknown_card(offer))
            elif rule == "interruptions":
                found.append(_never_done(self._rate(offer)[0], need.nodes))
            elif rule == "time":
                found.append(self._too_slow(offer, self._hours(offer, fit, need.nodes) or 0.0, need.nodes))
            elif rule == "in-time":
                found.append(self._too_late(offer, self._hours(offer, fit, need.nodes) or 0.0, need.nodes))
            elif rule == "room":
                room = self.room(offer, need.nodes)
                assert room is not None
                found += room.refusals(self.spec, self.now, fit.hours or 0.0)
            else:
                assert fit.short is not None
                found.append(fit.short)
        return tuple(found)

    def fitness(self, offer: Offer, need: Resources) -> Fitness:
        """The work on as many nodes of an offer, on the accelerators that are asked for."""
        if self.work is None:
            return _ANYTHING
        count = min(need.accelerators, offer.accelerators)
        key = (offer.accelerator, count, offer.cpus if not count else 0.0, need.nodes, offer.accelerators)
        if key not in self._fits:
            self._fits[key] = self._meter.on(
                self.work,
                accelerator=offer.accelerator,
                accelerators=count,
                cpus=offer.cpus,
                nodes=need.nodes,
                of=max(1, offer.accelerators),
            )
        return self._fits[key]

    def room(self, offer: Offer, nodes: int) -> Room | None:
        """What the cloud's limits leave for so many nodes; None for a pool's offer."""
        row = self._rows.get((offer.cloud, offer.region, offer.node_type))
        return None if row is None else room_for(row, nodes, spot=offer.purchase == Purchase.SPOT)

    def _needs_accelerator(self) -> bool:
        """Work that processors can't do in time, or that is so big that doing it there is taken for a mistake."""
        work = self.work
        if self.spec.resources.accelerators:
            return True
        if work is None or work.training is None:
            return False
        return work.shape.params >= SMALL_MODEL_PARAMS

    def _no_accelerator(self, offer: Offer, fit: Fitness, nodes: int) -> Refused:
        assert self.work is not None
        took = ""
        if fit.hours is not None:
            amount = cost_microusd(offer.price_microusd_per_hour, fit.hours * 3600, nodes)
            took = f": {fit.hours:,.0f} h, {format_usd(amount)} ({fit.note})"
        return Refused(
            rule="gpu-work",
            need=f"accelerators for {self.work.words}",
            have=f"{nodes} × {offer.node_type} with {format_count(offer.cpus, 'CPU')}, resources.accelerators: 0{took}",
            hint="set resources.accelerators: 1 and an accelerator",
        )

    def _too_slow(self, offer: Offer, hours: float, nodes: int) -> Refused:
        enough = f"{-(-int(hours * 60) // 60) + 1}h"
        return Refused(
            rule="time",
            need=f"{hours:,.2f} h on {nodes} × {offer.node_type}",
            have=f"max_duration {format_duration(self.spec.max_duration_s)}",
            hint=f"set max_duration: {enough}, take more accelerators, or spread it over more nodes",
        )

    @property
    def _hours_left(self) -> float:
        """Until the result is needed."""
        due = self.spec.deadline
        return math.inf if due is None else (due - self.now).total_seconds() / 3600

    def _too_late(self, offer: Offer, hours: float, nodes: int) -> Refused:
        return Refused(
            rule="in-time",
            need=f"{hours:,.2f} h on {nodes} × {offer.node_type}",
            have=f"{max(0.0, self._hours_left):,.2f} h until the deadline",
            hint="take more accelerators or nodes, begin earlier, or set a later spec.deadline",
        )

    # ------------------------------------------------------------ hours and dollars

    def _rate(self, offer: Offer) -> tuple[float, str]:
        """Interruptions of one node in a day, and where the figure is from; 0 unless it is spot."""
        if offer.purchase != Purchase.SPOT:
            return 0.0, ""
        if isinstance(self.spec, JobSpec) and self.spec.interruptions_per_day is not None:
            return self.spec.interruptions_per_day, "the spec"
        term = self._term(offer)
        return (0.0, "") if term is None else (term.interruptions_per_day, f"{term.id}, as of {term.as_of}")

    def _term(self, offer: Offer) -> PurchaseTerm | None:
        return next((t for t in self._market.terms if (t.cloud, t.kind) == (offer.cloud, offer.purchase)), None)

    def _hours(self, offer: Offer, fit: Fitness, nodes: int) -> float | None:
        """Expected hours with re-work; None when interruptions undo more than is done."""
        hours = self.spec.max_duration_s / 3600 if fit.hours is None else fit.hours
        rate, _ = self._rate(offer)
        if not rate or fit.hours is None:
            return hours  # what may run until its max duration runs until then, interrupted or not
        term = self._term(offer)
        every_s = getattr(self.spec, "checkpoint_every_s", None) or CHECKPOINT_EVERY_S
        lost_s = every_s / 2 + (term.restart_s if term is not None else 0)
        kept = 1 - rate * nodes * lost_s / 86_400
        return min(hours / kept, HOURS_MAX) if kept > 0 else None

    def _cost(self, offer: Offer, need: Resources) -> tuple[int, int, int, int]:
        """(expected, worst case) in micro-dollars, seconds of work, seconds paid."""
        hours = self._hours(offer, self.fitness(offer, need), need.nodes)
        work_s = self.spec.max_duration_s if hours is None else math.ceil(round(hours * 3600, 6))
        paid_s = offer.term_hours * 3600 or work_s
        expected = cost_microusd(offer.price_microusd_per_hour, paid_s, need.nodes)
        return expected, max(planning.worst_case(self.spec, offer, need.nodes), expected), work_s, paid_s

    def appraise(self, offer: Offer, need: Resources) -> Appraisal:
        """How many reasons are against an offer, and what it costs: enough to put ten thousand in order."""
        against = len(planning.lacks(need, offer, self._same)) + len(self._objections(offer, need))
        expected, worst, work_s, _ = self._cost(offer, need)
        return Appraisal((against, expected, worst, work_s, offer.pool, offer.node_type, offer.purchase), offer, need)

    def choice(self, offer: Offer, need: Resources | None = None) -> Choice:
        """The offer with its hours and dollars, and every reason against it, for what is asked or for `need`."""
        asked = need or self.spec.resources
        count = asked.nodes
        reasons = planning.fit_anywhere(asked, offer, self._catalogue.hardware) + self._reasons(offer, asked)
        fit, room = self.fitness(offer, asked), self.room(offer, count)
        expected, worst, work_s, seconds = self._cost(offer, asked)
        age_days = (self.now.date() - offer.price_as_of).days
        return Choice(
            place=offer.pool if offer.cloud else f"pool {offer.pool}",
            node_type=offer.node_type,
            purchase=self._purchase(offer),
            nodes=count,
            cpus=offer.cpus,
            memory_bytes=offer.memory_bytes,
            accelerators=offer.accelerators,
            accelerator=offer.accelerator,
            price_microusd_per_hour=offer.price_microusd_per_hour,
            price_as_of=offer.price_as_of,
            price_source=offer.price_source,
            price_stale=not 0 <= age_days <= self._stale_days,
            hours=work_s / 3600,
            worst_hours=max(self.spec.max_duration_s, work_s) / 3600,
            expected_microusd=expected,
            worst_case_microusd=worst,
            arithmetic=planning.written_out(offer.price_microusd_per_hour, count, seconds, expected),
            idle_weekend_microusd=cost_microusd(offer.price_microusd_per_hour, WEEKEND_H * 3600, count),
            lead_time_h=(0, 0) if room is None else room.lead_time_h,
            quota="" if room is None else room.words,
            fits=not reasons,
            runnable=offer.pool in self._market.registered,
            simulated=offer.simulated,
            reasons=reasons,
            notes=self._notes(offer, fit, count),
        )

    def _purchase(self, offer: Offer) -> Purchase:
        if offer.purchase:
            return Purchase(offer.purchase)
        sold = self._catalogue.hardware.instance_type(offer.node_type) is not None
        return Purchase.ON_DEMAND if sold else Purchase.ON_PREM

    def _notes(self, offer: Offer, fit: Fitness, nodes: int) -> tuple[str, ...]:
        notes: list[str] = []
        rate, source = self._rate(offer)
        if offer.purchase == Purchase.SPOT:
            every_s = getattr(self.spec, "checkpoint_every_s", None)
            every = f"{format_duration(every_s or CHECKPOINT_EVERY_S)}{'' if every_s else ' assumed'}"
            notes.append(f"interruptions a day: {rate * nodes:g} ({source}); a checkpoint every {every}")
        if offer.term_hours:
            listed = self._rows[offer.cloud, offer.region, offer.node_type].price_microusd_per_hour or 0
            pays = -(-offer.price_microusd_per_hour * offer.term_hours // listed)
            share = pays / offer.term_hours
            notes.append(f"{offer.term_hours:,} h are paid; it pays from {pays:,} h of use ({share:.0%})")
        row = self._rows.get((offer.cloud, offer.region, offer.node_type))
        if row is not None and row.status == "preview":
            notes.append("in preview")
        if not offer.cloud and offer.pool != self.spec.pool:
            notes.append(f"set pool: {offer.pool} to use it")
        if fit.report is not None and fit.hours is not None:
            layout, there = fit.report.layout, offer.accelerators * nodes
            notes += [layout.words] if layout.cards > 1 else []
            notes += [f"{there - layout.cards} of its {there} accelerators idle"] if layout.cards < there else []
        return tuple(notes)

    # ------------------------------------------------------------ all of them

    def choices(
        self, offers: Sequence[Offer], chosen: Offer | None, kept: Sequence[Choice] = ()
    ) -> tuple[tuple[Choice, ...], int]:
        """Fitting ones cheapest first, `kept` ones among them, then the nearest that don't; and how many more don't.

        Where the work needs accelerators and the spec names none, machines that have them are offered as well, with
        as few nodes as hold it.
        """
        made = [self._best(offer) for offer in offers if not offer.term_hours]
        fitting = sorted((each for each in made if each.fits), key=_key)
        misfits = sorted((each for each in made if not each.fits), key=_key)
        needs = {(each.offer.pool, each.offer.node_type): each.need for each in fitting[:RESERVED_SHOWN]}
        terms = [
            self.appraise(offer, needs.get((offer.pool, offer.node_type), self.spec.resources))
            for offer in offers
            if offer.term_hours and ((offer.pool, offer.node_type) in needs or offer == chosen)
        ]
        own = [each for each in fitting[FITTING_SHOWN:] if each.offer == chosen]
        shown = [*fitting[:FITTING_SHOWN], *own, *(term for term in terms if term.fits)]
        choices = [self._marked(self.choice(each.offer, each.need), each.offer, chosen) for each in shown]
        choices += [each for each in kept if each not in choices]
        choices.sort(key=_order)
        choices += [self._marked(self.choice(m.offer, m.need), m.offer, chosen) for m in misfits[:REJECTED_SHOWN]]
        return tuple(choices), len(misfits[REJECTED_SHOWN:]) + sum(not term.fits for term in terms)

    def accelerated(self, offers: Sequence[Offer], count: int = 3) -> list[Choice]:
        """The cheapest fitting choices with accelerators, on demand, one of each kind of machine.

        Of the kind and cloud that were asked for, where there are any; else of any kind, then of any cloud.
        """
        need = self.spec.resources
        clouds = {need.cloud} if need.cloud else {c for c, _, name in self._rows if same_sku(name, need.instance_type)}
        able = [each for each in offers if each.accelerators and each.purchase in ("", Purchase.ON_DEMAND)]
        for kind in dict.fromkeys((need.accelerator, "")):
            for near in (True, False):
                found: dict[str, Appraisal] = {}
                for offer in able:
                    if (near and offer.cloud not in clouds) or not (kind or offer.accelerator.startswith(GPU_MAKERS)):
                        continue
                    each = self._best(offer, kind)
                    best = found.get(offer.node_type)
                    if each.fits and (best is None or each.key < best.key):
                        found[offer.node_type] = each
                if found:
                    nearest = sorted(found.values(), key=_key)[:count]
                    return [self.choice(each.offer, each.need) for each in nearest]
        return []

    def is_retired(self, offer: Offer) -> bool:
        """Whether the offer's machine is no longer sold."""
        row = self._rows.get((offer.cloud, offer.region, offer.node_type))
        if row is None:
            return False
        day = row.retirement_date
        return row.status == "retired" or (day is not None and day <= self.now.date())

    def _gone(self, offer: Offer) -> Refused:
        day = self._rows[offer.cloud, offer.region, offer.node_type].retirement_date
        have = f"{offer.node_type}, retired{f' on {day}' if day else ''}"
        return Refused(rule="retired", need="a machine that is still sold", have=have, hint="choose another")

    def _best(self, offer: Offer, kind: str | None = None) -> Appraisal:
        """The offer as it is asked for, or with as few nodes as hold the work where the spec leaves that open."""
        need = self._eased(offer, kind)
        if need is None:
            return self.appraise(offer, self.spec.resources)
        tried = [self.appraise(offer, self._of_nodes(need, nodes)) for nodes in _counts(self.spec.resources.nodes)]
        return min(tried, key=_key)

    def _of_nodes(self, need: Resources, nodes: int) -> Resources:
        return need if need.nodes == nodes else replace(need, nodes=nodes)

    def _eased(self, offer: Offer, kind: str | None = None) -> Resources | None:
        """What is asked of a machine with accelerators by a spec that was written for processors; None: as it is.

        `kind` asks for that accelerator even of a spec that says how many it wants.
        """
        need = self.spec.resources
        if not offer.accelerators or not self.needs_accelerator or (need.accelerators and kind is None):
            return None
        count = need.accelerators or offer.accelerators
        key = (count, kind or "")
        if key not in self._needs:
            memory = main_memory(self.work)[0] if self.work is not None else min(need.memory_bytes, 2**30)
            eased = replace(need, cpus=0.1, memory_bytes=memory, accelerators=count, accelerator=kind or "")
            self._needs[key] = eased
        return self._needs[key]

    def _marked(self, choice: Choice, offer: Offer, chosen: Offer | None) -> Choice:
        same = offer == chosen and choice.nodes == self.spec.resources.nodes
        return replace(choice, chosen=True) if same else choice


def _key(appraisal: Appraisal) -> tuple[int, int, int, int, str, str, str]:
    return appraisal.key


def _counts(nodes: int) -> Iterable[int]:
    count = 1
    while count < nodes:
        yield count
        count *= 2
    yield nodes


def _order(choice: Choice) -> tuple[int, int, float, str, str, str]:
    """Cheapest expected first; among equals the smaller worst case, the shorter time, then by name."""
    cost = (choice.expected_microusd, choice.worst_case_microusd, choice.hours)
    return (*cost, choice.place, choice.node_type, choice.purchase)


def _unknown_card(offer: Offer) -> Refused:
    return Refused(
        rule="accelerator-known",
        need="a card whose memory and speed the catalogue knows",
        have=offer.accelerator,
        hint="add it to accelerators.yaml: ground catalog update",
    )


def _never_done(rate: float, nodes: int) -> Refused:
    return Refused(
        rule="interruptions",
        need="more done between interruptions than each undoes",
        have=f"{rate * nodes:g} interruptions a day over {nodes} nodes",
        hint="set checkpoint_every to less, or buy it on demand",
    )
