"""What a workload costs a month: a hosted API, by the token or by provisioned units, or cards of one's own.

Every option carries its arithmetic and the dates of its prices. A provisioned unit counts prompt tokens, and a
completion token as several; cached prompt tokens count nothing (Microsoft, provisioned throughput sizing, 2026-05).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from math import ceil

from groundplane.domain.catalogue.entries import ProvisionedPrice, ProvisionedUnits, TokenListPrice
from groundplane.domain.hardware import Accelerator, InstanceType
from groundplane.domain.serving.usage import rate
from groundplane.domain.sizing.memory import BYTES_PER_WEIGHT, Serving, gb
from groundplane.domain.sizing.model_shape import ModelShape
from groundplane.domain.sizing.parallelism import Fabric, serving_layout
from groundplane.domain.sizing.roofline import Efficiencies, estimate_serving
from groundplane.domain.spec import TokenPrice
from groundplane.errors import InvalidInput, Problem
from groundplane.units import exact_usd, format_usd

HOURS_PER_MONTH = 730
"""What clouds count a month as: 365 × 24 ÷ 12."""

BATCH_MAX = 256
"""Sequences at once on one replica: servers' usual upper setting."""

PEAK_TIME_SHARE = 0.1
"""Share of the active time that is peak, where nobody says otherwise. Our assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Requests as they come: an average over the active hours, and a peak `peak_factor` times as high.

    `peak_share` of the active time is at the peak, the rest at whatever keeps the average. `cached_share` of the prompt
    tokens is read from the provider's cache. `always_on` keeps cards up outside the active hours.
    """

    requests_per_minute: float
    prompt_tokens: int
    completion_tokens: int
    peak_factor: float = 1.0
    peak_share: float = PEAK_TIME_SHARE
    hours_per_day: float = 24.0
    cached_share: float = 0.0
    always_on: bool = False

    def __post_init__(self) -> None:
        ranges = {
            "requests_per_minute": (self.requests_per_minute, 1e-4, 1e7),
            "prompt_tokens": (self.prompt_tokens, 1, 10**7),
            "completion_tokens": (self.completion_tokens, 0, 10**7),
            "peak_factor": (self.peak_factor, 1, 1e4),
            "peak_share": (self.peak_share, 0, 1),
            "hours_per_day": (self.hours_per_day, 0.01, 24),
            "cached_share": (self.cached_share, 0, 1),
        }
        problems = [
            Problem(field=name, message=f"must be from {low:g} to {high:g}, is {value:g}")
            for name, (value, low, high) in ranges.items()
            if not low <= value <= high
        ]
        if problems:
            raise InvalidInput(str(problems[0]), "ground compare --help", problems)

    @property
    def active_hours(self) -> float:
        return HOURS_PER_MONTH * self.hours_per_day / 24

    @property
    def requests(self) -> int:
        """In a month, at least one."""
        return max(1, round(self.requests_per_minute * 60 * self.active_hours))

    @property
    def tokens(self) -> int:
        return self.requests * (self.prompt_tokens + self.completion_tokens)

    @property
    def peak_requests_per_minute(self) -> float:
        return self.requests_per_minute * self.peak_factor

    @property
    def levels(self) -> tuple[tuple[float, float], ...]:
        """(Share of the active time, requests a minute) at the peak and beside it; together they keep the average.

        Where the peak alone would be above the average, it lasts only as long as the average allows.
        """
        share = min(self.peak_share, 1 / self.peak_factor)
        if self.peak_factor == 1 or share == 0:
            return ((1.0, self.requests_per_minute),)
        beside = self.requests_per_minute * max(0.0, 1 - share * self.peak_factor) / (1 - share)
        return ((share, self.peak_requests_per_minute), (1 - share, beside))


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to serve the workload. `worst_microusd_per_month` is never below the expected one.

    `utilisation` is the load over what the option could carry in its paid hours; `break_even` the utilisation from
    which it is cheaper than the cheapest hosted price by the token, above 1 where it never is. None: does not apply.
    """

    kind: str
    name: str
    what: str
    microusd_per_month: int
    worst_microusd_per_month: int
    microusd_per_1000_requests: int
    microusd_per_million_tokens: int
    utilisation: float | None
    break_even: float | None
    price_as_of: str
    lines: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Cheapest first; `left_out` says why something asked for is not among the options."""

    workload: Workload
    requests_per_month: int
    tokens_per_month: int
    options: tuple[Option, ...]
    left_out: tuple[str, ...]
    lines: tuple[str, ...]


def workload_lines(load: Workload) -> tuple[str, ...]:
    """The month's requests and tokens, written out."""
    lines = [
        f"active hours: {HOURS_PER_MONTH} h a month × {load.hours_per_day:g}/24 = {load.active_hours:,.1f} h",
        f"requests: {load.requests_per_minute:g} a minute × 60 × {load.active_hours:,.1f} h = {load.requests:,}",
        f"tokens: {load.requests:,} × ({load.prompt_tokens:,} prompt + {load.completion_tokens:,} completion) = "
        f"{load.tokens:,}",
    ]
    if load.peak_factor > 1:
        levels = ", ".join(f"{per_minute:,.1f} a minute for {share:.0%}" for share, per_minute in load.levels)
        lines.append(f"levels: {levels} of the active time")
    return tuple(lines)


def cheapest_first(options: Iterable[Option]) -> tuple[Option, ...]:
    """By expected dollars a month; among equals by the worst case, then by name."""
    return tuple(sorted(options, key=lambda o: (o.microusd_per_month, o.worst_microusd_per_month, o.kind, o.name)))


# ---------------------------------------------------------------- by the token


def token_options(load: Workload, price: TokenListPrice) -> tuple[Option, ...]:
    """The list price by the token, and by batch where the provider gives a discount for it."""
    month, formula = _tokens_cost(load, price, load.requests)
    found = [_option(load, "hosted", price.id, "standard, by the token", month, month, None, None, price, (formula,))]
    if price.batch_discount:
        cheaper = round(month * (1 - price.batch_discount))
        line = f"{format_usd(month)} × (1 - {price.batch_discount:.0%} off for batch) = {format_usd(cheaper)}"
        note = "answers come within 24 hours, not while somebody waits"
        what = "batch, by the token"
        lines = (formula, line)
        found.append(_option(load, "batch", price.id, what, cheaper, cheaper, None, None, price, lines, (note,)))
    return tuple(found)


def _tokens_cost(load: Workload, price: TokenListPrice, requests: int) -> tuple[int, str]:
    """Micro-dollars of so many requests, and the arithmetic. Without a cached price, cached tokens cost the full."""
    prompt, completion = requests * load.prompt_tokens, requests * load.completion_tokens
    cached = round(prompt * load.cached_share)
    per_cached = price.cached_microusd_per_million
    if per_cached is None:
        per_cached = price.prompt_microusd_per_million
    rates = TokenPrice(
        prompt_microusd_per_million=price.prompt_microusd_per_million,
        completion_microusd_per_million=price.completion_microusd_per_million,
        cached_microusd_per_million=per_cached,
    )
    cost = rate(prompt, completion, cached, rates)
    parts = [f"{prompt - cached:,} prompt × {exact_usd(price.prompt_microusd_per_million)}/1M"]
    if cached:
        parts.append(f"{cached:,} cached × {exact_usd(per_cached)}/1M")
    parts.append(f"{completion:,} completion × {exact_usd(price.completion_microusd_per_million)}/1M")
    return cost, f"{' + '.join(parts)} = {format_usd(cost)}"


# ---------------------------------------------------------------- provisioned units


def provisioned_options(
    load: Workload, units: ProvisionedUnits, price: ProvisionedPrice, standard: TokenListPrice
) -> tuple[Option, ...]:
    """For each term a unit is sold by: units for the peak, and the number with spillover to the standard price that
    costs least.

    Nothing where the units are not sold in this kind of deployment or their completion weight is not known.
    """
    if units.completion_weight is None or price.deployment not in units.minimum:
        return ()
    per_request = load.prompt_tokens * (1 - load.cached_share) + load.completion_tokens * units.completion_weight
    if per_request <= 0:
        return ()  # prompts read from the cache whole and no completions: units would have nothing to carry
    most = _allowed(load.peak_requests_per_minute * per_request / units.prompt_tokens_per_minute, units, price)
    least, step = units.minimum[price.deployment], units.step[price.deployment]
    # Past so many steps one more changes the sum by less than a percent: a coarser walk finds as good a number.
    stride = step * max(1, (most - least) // step // 1_000)
    found: list[Option] = []
    for term in _terms(price):
        found.append(_provisioned(load, units, price, standard, most, term))
        fewer = (_provisioned(load, units, price, standard, count, term) for count in range(least, most, stride))
        spilled = min(fewer, key=lambda option: option.microusd_per_month, default=None)
        found += [spilled] if spilled else []
    return tuple(found)


def _terms(price: ProvisionedPrice) -> tuple[tuple[str, int], ...]:
    """(Words, micro-dollars a unit and month): by the hour or month, whichever is less; by the year where that is."""
    hourly = round(price.microusd_per_unit_hour * HOURS_PER_MONTH)
    month = price.microusd_per_unit_month
    short = ("hourly", hourly) if month is None or hourly <= month else ("reserved for a month", month)
    if price.microusd_per_unit_year is None or price.microusd_per_unit_year >= 12 * short[1]:
        return (short,)
    return (short, ("reserved for a year", round(price.microusd_per_unit_year / 12)))


def _allowed(need: float, units: ProvisionedUnits, price: ProvisionedPrice) -> int:
    """Units as they are sold: at least the minimum, then in whole steps."""
    least, step = units.minimum[price.deployment], units.step[price.deployment]
    return least + max(0, ceil((need - least) / step - 1e-9)) * step


def _provisioned(
    load: Workload,
    units: ProvisionedUnits,
    price: ProvisionedPrice,
    standard: TokenListPrice,
    count: int,
    term: tuple[str, int],
) -> Option:
    weight = units.completion_weight or 0
    per_request = load.prompt_tokens * (1 - load.cached_share) + load.completion_tokens * weight
    carried = count * units.prompt_tokens_per_minute / per_request
    spilled_share = sum(share * max(0.0, each - carried) for share, each in load.levels) / load.requests_per_minute
    spilled = min(load.requests, round(load.requests * spilled_share))
    bought, unit_month = term
    fixed = count * unit_month
    extra, extra_formula = _tokens_cost(load, standard, spilled) if spilled else (0, "")
    full = carried * 60 * HOURS_PER_MONTH
    by_token, _ = _tokens_cost(load, standard, load.requests)
    worth = full * by_token / load.requests
    lines = [
        f"one request: {load.prompt_tokens:,} × {1 - load.cached_share:.0%} + {load.completion_tokens:,} × {weight:g}"
        f" = {per_request:,.0f} tokens as units count them",
        f"peak: {load.peak_requests_per_minute:,.1f} requests a minute × {per_request:,.0f} ÷ "
        f"{units.prompt_tokens_per_minute:,} a unit = "
        f"{load.peak_requests_per_minute * per_request / units.prompt_tokens_per_minute:,.1f} units",
        f"{count:,} units (from {units.minimum[price.deployment]}, in steps of {units.step[price.deployment]}) × "
        f"{format_usd(unit_month)} a month, {bought} = {format_usd(fixed)}",
    ]
    if spilled:
        lines.append(f"spillover: {spilled:,} of {load.requests:,} requests at the standard price: {extra_formula}")
    if worth:
        lines.append(
            f"break-even: {format_usd(fixed)} ÷ {format_usd(round(worth))} for all that {count:,} units carry in a"
            f" month, by the token = {fixed / worth:.0%} used"
        )
    return _option(
        load,
        "provisioned",
        f"{standard.id} {price.deployment}",
        f"{count:,} provisioned units {bought}, "
        + (f"{spilled_share:.1%} spilled over" if spilled else "sized for the peak"),
        fixed + extra,
        fixed + extra,
        min(1.0, (load.requests - spilled) / full) if full else None,
        fixed / worth if worth else None,
        standard,
        tuple(lines),
        (f"units as of {units.as_of}, their price as of {price.as_of}",),
        as_of=min(units.as_of, price.as_of, standard.as_of),
    )


# ---------------------------------------------------------------- one's own cards


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one replica carries: requests a minute at the low, the middle and the high efficiency."""

    serving: Serving
    cards: int
    worst_per_minute: float
    expected_per_minute: float
    lines: tuple[str, ...]


def replica_capacity(
    load: Workload, shape: ModelShape, serving: Serving, card: Accelerator, fabric: Fabric, efficiencies: Efficiencies
) -> Capacity | None:
    """The fewest cards of one node that hold the model with the biggest batch that fits them; None where none do.

    A request takes its prompt, and its share of a token step for each completion token; a batch's contexts are all
    counted at their full length.
    """
    context = max(1, load.prompt_tokens + load.completion_tokens)
    first = Serving(precision=serving.precision, cache_precision=serving.cache_precision, batch=1, context=context)
    found = serving_layout(shape, first, card, fabric)
    if found is None:
        return None
    group, batch = found[0].tensor_parallel, 1
    for wider in (2**power for power in range(BATCH_MAX.bit_length() - 1, 0, -1)):
        grown = Serving(
            precision=serving.precision, cache_precision=serving.cache_precision, batch=wider, context=context
        )
        if serving_layout(shape, grown, card, fabric, group) is not None:
            batch = wider
            break
    chosen = Serving(
        precision=serving.precision,
        cache_precision=serving.cache_precision,
        batch=batch,
        context=context,
        tensor_parallel=group,
    )
    told = estimate_serving(shape, chosen, card, fabric, efficiencies, prompt_tokens=load.prompt_tokens)
    assert told.first_token is not None
    worst = told.first_token.worst_s + load.completion_tokens * told.step.worst_s / batch
    expected = told.first_token.expected_s + load.completion_tokens * told.step.expected_s / batch
    line = (
        f"a request on one replica ({group} × {card.name}, batch {batch}): prompt "
        f"{told.first_token.expected_s * 1000:,.1f} ms + {load.completion_tokens:,} tokens × "
        f"{told.step.expected_s * 1000:,.2f} ms ÷ {batch} = {expected * 1000:,.1f} ms, {60 / expected:,.1f} a minute "
        f"({60 / worst:,.1f} in the worst case)"
    )
    return Capacity(
        serving=chosen,
        cards=group,
        worst_per_minute=60 / worst,
        expected_per_minute=60 / expected,
        lines=(line, *map(str, told.figures)),
    )


def self_hosted_option(
    load: Workload,
    shape: ModelShape,
    capacity: Capacity,
    instance: InstanceType,
    hosted_microusd_per_month: int | None,
) -> Option | None:
    """Enough of one instance type for the peak; None where a replica does not fit it or it has no price.

    `hosted_microusd_per_month` is the cheapest price by the token for the same load, what break-even is held against.
    """
    hourly = instance.price_microusd_per_hour
    replicas_each = int(instance.accelerators // capacity.cards)
    if hourly is None or replicas_each < 1:
        return None
    hours = float(HOURS_PER_MONTH) if load.always_on else load.active_hours
    peak = load.peak_requests_per_minute
    count = ceil(peak / (capacity.expected_per_minute * replicas_each))
    worst_count = max(count, ceil(peak / (capacity.worst_per_minute * replicas_each)))
    month, worst = round(count * hourly * hours), round(worst_count * hourly * hours)
    full = count * replicas_each * capacity.expected_per_minute * 60 * hours
    per_request = None if hosted_microusd_per_month is None else hosted_microusd_per_month / load.requests
    break_even = month / (full * per_request) if per_request else None
    lines = [
        *capacity.lines,
        f"peak: {peak:,.1f} requests a minute ÷ ({replicas_each} replicas × {capacity.expected_per_minute:,.1f}) = "
        f"{count} × {instance.name} (in the worst case {worst_count})",
        f"{count} × {exact_usd(hourly)}/h × {hours:,.1f} h = {format_usd(month)}",
    ]
    if per_request and break_even is not None:
        lines.append(
            f"break-even: {format_usd(month)} ÷ ({full:,.0f} requests at full use × {exact_usd(round(per_request))})"
            f" = {break_even:.0%} used"
        )
    batch = capacity.serving.batch
    what = f"{count} × {instance.name} ({instance.accelerators:g} × {instance.accelerator}), batch {batch}"
    notes = ["people, storage, network and spare machines are not in the sum"]
    if instance.memory_bytes is not None:
        weights = 2 * shape.params * BYTES_PER_WEIGHT[capacity.serving.precision]
        if instance.memory_bytes < weights:
            have, need = gb(instance.memory_bytes), gb(weights)
            notes.append(f"{have} of main memory is under the {need} (2 × weights) that loading may take")
    used = load.requests / full
    as_of = instance.price_as_of.isoformat()
    kind, name = "self-hosted", f"{shape.id} on {instance.cloud}"
    return _option(
        load, kind, name, what, month, worst, used, break_even, None, tuple(lines), tuple(notes), as_of=as_of
    )


def buyable(instances: Iterable[InstanceType], today: date) -> tuple[InstanceType, ...]:
    """Those with accelerators and a price that can be had today."""
    return tuple(
        each
        for each in instances
        if each.accelerators >= 1
        and each.price_microusd_per_hour
        and not each.is_retired(today)
        and each.status in ("current", "previous_generation")
    )


def _option(
    load: Workload,
    kind: str,
    name: str,
    what: str,
    month: int,
    worst: int,
    utilisation: float | None,
    break_even: float | None,
    price: TokenListPrice | None,
    lines: tuple[str, ...],
    notes: tuple[str, ...] = (),
    as_of: str = "",
) -> Option:
    if price is not None and price.estimated:
        notes = (*notes, f"some figures of {price.id} are estimated in the catalogue")
    return Option(
        kind=kind,
        name=name,
        what=what,
        microusd_per_month=month,
        worst_microusd_per_month=worst,
        microusd_per_1000_requests=round(month * 1_000 / load.requests),
        microusd_per_million_tokens=round(month * 1_000_000 / load.tokens),
        utilisation=utilisation,
        break_even=break_even,
        price_as_of=as_of or (price.as_of if price else ""),
        lines=(
            *lines,
            f"per 1,000 requests: {format_usd(month)} ÷ {load.requests:,} × 1,000 = "
            f"{format_usd(round(month * 1_000 / load.requests))}",
            f"per 1M tokens: {format_usd(month)} ÷ {load.tokens:,} × 1M = "
            f"{format_usd(round(month * 1_000_000 / load.tokens))}",
        ),
        notes=notes,
    )
