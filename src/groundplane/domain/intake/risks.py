"""What can go wrong with what was asked, before anything is paid: each risk with its number and a way forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime

from groundplane.domain.intake import ItemKind, QuotaFact, Risk, Span, sums
from groundplane.domain.intake.circumstances import (
    Circumstances,
    day_of,
    deadline_of,
    first_span,
    machine_of,
    wants_gpus,
    whole,
)
from groundplane.domain.intake.facts import shown, shown_value
from groundplane.domain.intake.hardware import is_accelerated, near_instances
from groundplane.domain.intake.lexicon import InstanceName
from groundplane.units import cost_microusd, exact_usd, format_usd

K = ItemKind
_COMPUTE = frozenset({K.CAPACITY, K.BATCH, K.ENDPOINT})
WEEKEND_IDLE_HOURS = 60
"""Friday evening to Monday morning: what an unattended weekend bills."""
USUAL_LEAD_TIME_H = (24, 72)
"""How long a quota increase usually takes. A source's own figure goes first."""


def risks(about: Circumstances) -> tuple[Risk, ...]:
    """Every risk, the highest first."""
    found = [risk for rule in _RULES for risk in rule(about)]
    order = {"high": 0, "medium": 1, "low": 2}
    return tuple(sorted(found, key=lambda risk: order[risk.level]))


# ---------------------------------------------------------------- time and quota


def _quota(about: Circumstances) -> Iterator[Risk]:
    stated = tuple(_stated(about))
    if about.kind not in _COMPUTE or not (stated or wants_gpus(about)):
        return
    cloud, region = about.of("cloud"), about.of("region")
    machine = machine_of(about)
    named = str(cloud.value) if cloud else machine.cloud if machine else ""
    if named in {"on-prem", "local"}:
        return
    fitting = [
        *stated,
        *(q for q in about.quotas if named in ("", q.cloud) and (not region or q.region in ("", str(region.value)))),
    ]
    deadline = deadline_of(about)
    if not fitting:
        if deadline is not None or named:
            yield _unknown_quota(about, named, deadline)
        return
    for quota in fitting:
        need = _needed(about, quota, machine)
        if quota.left > 0 and (need is None or need <= quota.left):
            continue
        yield _short_quota(about, quota, need, deadline)


def _stated(about: Circumstances) -> Iterator[QuotaFact]:
    """Quotas that the message itself tells of."""
    cloud, region = about.of("cloud"), about.of("region")
    for fact in about.every("quota"):
        used, limit = sums.stated_quota(fact)
        yield QuotaFact(
            cloud=str(cloud.value) if cloud else "", region=str(region.value) if region else "",
            limit=limit, used=used, unit=fact.unit, source="the message",
        )  # fmt: skip


def _short_quota(about: Circumstances, quota: QuotaFact, need: int | None, deadline: datetime | None) -> Risk:
    where = "/".join(part for part in (quota.cloud, quota.region) if part)
    family = f" for {quota.family}" if quota.family else ""
    needed = f", {need} {quota.unit} are needed" if need is not None else ""
    low, high = _lead_time(quota)
    lead = f"an increase takes {low}-{high} h"
    span = None
    if deadline is not None:
        hours = max(0, int((deadline - about.now).total_seconds() // 3600))
        span = first_span(about, "deadline")
        verdict = (
            "too late in every case" if low > hours else "it may come too late" if high > hours else "just in time"
        )
        lead += f", and {day_of(deadline)} ends in {hours} h: {verdict}"
    return Risk(
        id="quota",
        level="high" if deadline is None or high * 3600 > (deadline - about.now).total_seconds() else "medium",
        message=f"quota {where}{family}: {quota.left} of {quota.limit} {quota.unit} left{needed}; {lead}",
        hint="ask for the increase today, and plan for another region, another GPU or a smaller start",
        span=span,
    )


def _unknown_quota(about: Circumstances, cloud: str, deadline: datetime | None) -> Risk:
    low, high = USUAL_LEAD_TIME_H
    where = f" in {cloud}" if cloud else ""
    if deadline is None:
        when = ""
    else:
        hours = max(0, int((deadline - about.now).total_seconds() // 3600))
        when = f"; {day_of(deadline)} ends in {hours} h"
    return Risk(
        id="quota-unknown",
        level="medium",
        message=f"no source says what quota is left{where}; an increase usually takes {low}-{high} h{when}",
        hint="ground recon shows quotas where credentials exist; or state it: --quota CLOUD[/REGION]=LIMIT",
        span=first_span(about, "deadline"),
    )


def _lead_time(quota: QuotaFact) -> tuple[int, int]:
    low = USUAL_LEAD_TIME_H[0] if quota.lead_time_low_h is None else quota.lead_time_low_h
    high = max(low, USUAL_LEAD_TIME_H[1] if quota.lead_time_high_h is None else quota.lead_time_high_h)
    return low, high


def _needed(about: Circumstances, quota: QuotaFact, machine: InstanceName | None) -> int | None:
    machines = whole(about, "machines")
    if quota.unit.lower() == "vcpu":
        if not machines and (cpus := whole(about, "cpus")):
            return cpus  # "40 vCPU" without a number of machines are 40 in all.
        each = machine.cpus if machine and machine.cpus else whole(about, "cpus")
        return int(machines * each) if machines and each else None
    total, each = whole(about, "accelerators"), whole(about, "accelerators_per_machine")
    return total or (machines * each if machines and each else machines) or None


def _deadlines(about: Circumstances) -> Iterator[Risk]:
    for name in ("deadline", "end_date", "start_date"):
        for fact in about.every(name):
            if "in the past" in fact.note:
                yield Risk(
                    id="past-date",
                    level="high",
                    message=f"{fact.text!r} is {fact.value}, before today ({about.now:%Y-%m-%d})",
                    hint=f"ask which day is meant: --answer {name}=YYYY-MM-DD",
                    span=fact.span,
                )
            elif "as day/month" in fact.note:
                yield Risk(
                    id="ambiguous-date",
                    level="medium",
                    message=f"{fact.text!r} can be two days: {fact.note}",
                    hint=f"ask which day is meant: --answer {name}=YYYY-MM-DD",
                    span=fact.span,
                )
    for fact in about.every("impossible"):
        message = f"{fact.text.strip()!r} can't be meant: {fact.note}"
        yield Risk(id="impossible", level="high", message=message, hint="ask what is meant", span=fact.span)
    start, end = about.of("start_date"), about.of("end_date")
    if start and end and str(end.value) < str(start.value):
        message = f"it ends on {end.value}, before it starts on {start.value}"
        yield Risk(id="ends-before-start", level="medium", message=message, hint="ask for both dates", span=end.span)


def _checkpoints(about: Circumstances) -> Iterator[Risk]:
    if about.kind is not K.CAPACITY or about.has("checkpoint", "yes") or about.has("workload", "serving"):
        return
    deadline = deadline_of(about)
    off = about.has("checkpoint", "no")
    weekend = about.has("runs_at_weekend", "yes")
    friday = deadline is not None and deadline.weekday() == 5
    if off is not None or weekend is not None or friday:
        when = "the deadline is a Friday" if friday else "it runs over the weekend" if weekend else ""
        said = "checkpoints are off" if off else "the message says nothing of checkpoints"
        yield Risk(
            id="no-checkpoint",
            level="high",
            message=f"{said}{f', and {when}' if when else ''}: a crash at 03:00 loses all work since the start",
            hint="write checkpoints to durable storage, and try one write and one read before the first paid hour",
            span=off.span if off else None,
        )


def _no_end(about: Circumstances) -> Iterator[Risk]:
    if about.kind not in _COMPUTE or about.of("end_date") or about.of("duration"):
        return
    forever = about.has("runs_always", "yes")
    said = f"{forever.text!r} is no end date" if forever else "no end date is given"
    yield Risk(
        id="no-end-date",
        level="medium",
        message=f"{said}: what nobody ends is billed until somebody notices",
        hint="--answer end_date=YYYY-MM-DD; it can be extended",
        span=forever.span if forever else None,
    )


def _weekend(about: Circumstances) -> Iterator[Risk]:
    if about.kind not in _COMPUTE:
        return
    machine = machine_of(about)
    machines = whole(about, "machines") or (1 if about.of("instance_type") else 0)
    if machine is None or not machine.price_microusd_per_hour or not machines:
        return
    price = machine.price_microusd_per_hour
    cost = cost_microusd(price, WEEKEND_IDLE_HOURS * 3600, machines)
    yield Risk(
        id="weekend-idle",
        level="medium",
        message=f"an idle weekend costs {machines} x {exact_usd(price)} x {WEEKEND_IDLE_HOURS} h = {format_usd(cost)}",
        hint="set spec.idle_limit, and an end date before the weekend",
    )


def _data_arrival(about: Circumstances) -> Iterator[Risk]:
    size, deadline = about.of("dataset_size"), deadline_of(about)
    if size is None or deadline is None or not isinstance(size.value, int) or deadline <= about.now:
        return
    seconds = (deadline - about.now).total_seconds()
    needed = size.value / seconds / 1e6
    if needed >= 1:
        yield Risk(
            id="data-transfer",
            level="low" if needed < 50 else "medium",
            message=f"{shown(size)} until the end of {day_of(deadline)} need {needed:,.0f} MB/s, without a pause, once",
            hint="say where the data lies; staging it on local NVMe first is often the fix",
            span=size.span,
        )


# ---------------------------------------------------------------- hardware


def _machines(about: Circumstances) -> Iterator[Risk]:
    for fact in about.every("instance_type"):
        name = str(fact.value)
        machine = about.lexicon.instance(name)
        if machine is None and about.lexicon.instances:
            near = near_instances(name, about.lexicon)
            yield Risk(
                id="unknown-sku",
                level="medium",
                message=f"{fact.text} is not in the catalogue",
                hint=f"did they mean {' or '.join(near)}?" if near else "check the name with the cloud's own list",
                span=fact.span,
            )
        if machine is not None and machine.retired:
            when = f" since {machine.retires_on}" if machine.retires_on else ""
            hint = "take a current type with the same GPU memory: ground recon lists them"
            yield Risk(
                id="retired-sku", level="high", message=f"{machine.name} is retired{when}", hint=hint, span=fact.span
            )
        elif machine is not None and machine.retires_on is not None:
            message = f"{machine.name} retires on {machine.retires_on}"
            yield Risk(id="retiring-sku", level="medium", message=message, hint="plan the move", span=fact.span)
        if is_accelerated(name, about.lexicon) is False and about.kind in _COMPUTE and wants_gpus(about):
            yield Risk(
                id="cpu-sku",
                level="high",
                message=f"{fact.text} has no GPU, and this is GPU work",
                hint="take a GPU type; training on CPUs takes many times the hours, so it is rarely cheaper",
                span=fact.span,
            )


def _cards(about: Circumstances) -> Iterator[Risk]:
    for fact in about.every("accelerator"):
        if fact.note.startswith("comes with") and not about.of("instance_type"):
            message = f"{fact.text} {fact.note}: half the memory may not hold the model"
            yield Risk(
                id="ambiguous-gpu",
                level="low",
                message=message,
                hint=f"--answer accelerator={fact.value}-80gb",
                span=fact.span,
            )
        elif fact.note and not fact.note.startswith("comes with"):
            yield Risk(
                id="unknown-gpu",
                level="medium",
                message=f"{fact.text}: {fact.note}",
                hint="check the name",
                span=fact.span,
            )


def _models(about: Circumstances) -> Iterator[Risk]:
    for fact in about.every("model"):
        if fact.note.startswith("a hosted model") and about.kind in {K.CAPACITY, K.ENDPOINT, K.BATCH}:
            message = f"{fact.text} is {fact.note}"
            hint = "use the provider's own fine-tuning or API, or choose an open model"
            yield Risk(id="hosted-model", level="medium", message=message, hint=hint, span=fact.span)


# ---------------------------------------------------------------- money, exposure, people, data


def _currency(about: Circumstances) -> Iterator[Risk]:
    for fact in (*about.every("budget"), *about.every("money")):
        if fact.unit != "microusd":
            message = f"{fact.text!r} is {shown_value(fact.value, fact.unit)}: plans are priced in dollars"
            hint = "--answer budget=$AMOUNT, at the rate finance uses"
            yield Risk(id="currency", level="medium", message=message, hint=hint, span=fact.span)


def _exposure(about: Circumstances) -> Iterator[Risk]:
    public = about.has("visibility", "public")
    if public is None or about.kind not in {K.ENDPOINT, K.UNCLEAR, K.CAPACITY}:
        return
    auth = [fact for fact in about.every("auth") if fact.value != "none"]
    said = about.has("auth", "none")
    if said is not None or not auth:
        wording = f"{said.text!r}" if said else "nothing is said of authentication"
        yield Risk(
            id="public-without-auth",
            level="high",
            message=f"a public address is asked for, and {wording}: anybody could call it at your cost",
            hint="keep it private; or ground exposures add, with owner, reason and expiry, and keys for every caller",
            span=said.span if said else public.span,
        )
    if rules := about.every("compliance"):
        message = f"{rules[0].text!r} and a public address do not go together"
        yield Risk(
            id="public-with-data", level="high", message=message, hint="keep the endpoint private", span=public.span
        )


def _shell(about: Circumstances) -> Iterator[Risk]:
    for fact in about.every("shell_access"):
        if fact.value == "everyone":
            yield Risk(
                id="ssh-everyone",
                level="high",
                message=f"{fact.text!r}: shared shells leave no owner, no queue and no trail",
                hint="submit runs to the queue; give single persons a role with an end date",
                span=fact.span,
            )


def _personal(about: Circumstances) -> Iterator[Risk]:
    for fact in about.every("compliance")[:3]:
        yield Risk(
            id="data-rules",
            level="medium",
            message=f"{fact.text!r}: the data is under rules ({fact.value})",
            hint="only a pool cleared for it may hold it; ask security before the data moves",
            span=fact.span,
        )


def _contradictions(about: Circumstances) -> Iterator[Risk]:
    for each in about.contradictions:
        words = each.fact.replace("_", " ")
        yield Risk(
            id="contradiction",
            level="high",
            message=f"{each.first.text!r} and {each.second.text!r} contradict each other ({words})",
            hint=f"ask which one holds: --answer {each.fact}={each.second.value}",
            span=each.second.span,
        )


_RULES: tuple[Callable[[Circumstances], Iterator[Risk]], ...] = (
    _quota, _deadlines, _checkpoints, _no_end, _weekend, _data_arrival, _machines, _cards, _models, _currency,
    _exposure, _shell, _personal, _contradictions, sums.too_large, sums.too_little_memory, sums.too_slow,
    sums.too_expensive,
)  # fmt: skip


def message_risks(instructions: Sequence[Span]) -> tuple[Risk, ...]:
    """Risks of the message as a whole: text that gives orders to a reader which is a program."""
    return tuple(
        Risk(
            id="instructions-in-text",
            level="medium",
            message="the message tells its reader to ignore rules or approve itself; it was read as text, no more",
            hint="approval is a person's, in the tool; ask the sender what was meant",
            span=span,
        )
        for span in instructions[:1]
    )
