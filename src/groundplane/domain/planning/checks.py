"""What a plan is checked for beyond policy: sums over hardware, data, quota and time, each with its figures.

A check finds what stands in the way of the chosen offer, or of the nearest one where none fits. Policy's rules say what
is allowed; these say what would go wrong.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from groundplane.domain.hardware import Hardware
from groundplane.domain.planning.choices import Judge
from groundplane.domain.planning.outlook import BudgetImpact, Choice
from groundplane.domain.planning.plan import Offer, Ranking, Verdict, same_sku
from groundplane.domain.planning.recon import SkuRow
from groundplane.domain.planning.storage_check import rate
from groundplane.domain.planning.work import Meter, Work, main_memory
from groundplane.domain.sizing.memory import gb
from groundplane.domain.spec import EndpointSpec, JobSpec, Resources
from groundplane.errors import Refused
from groundplane.units import MICROUSD_PER_USD, format_bytes, format_duration, format_usd

NOBODY = frozenset(
    ("-", "?", "anyone", "n/a", "na", "nobody", "none", "null", "tbd", "test", "todo", "unassigned", "unknown", "x")
)
"""Names that answer for nothing: work under them is ownerless from its first day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything the checks may look at. `best` is the offer the plan is for, None where nothing is big enough.

    `in_the_way` are the reasons against `best`, or against the nearest offer. `accelerated` are choices that have what
    processors lack; `ways_out` are sentences on quota that could be had, `data_known` the inputs whose speed is known.
    """

    spec: JobSpec | EndpointSpec
    ranking: Ranking
    judge: Judge
    meter: Meter
    hardware: Hardware
    rows: tuple[SkuRow, ...]
    registered: frozenset[str]
    work: Work | None = None
    wrong_work: Refused | None = None
    in_the_way: tuple[Refused, ...] = ()
    accelerated: tuple[Choice, ...] = ()
    ways_out: tuple[str, ...] = ()
    storage: tuple[Refused, ...] = ()
    data_known: frozenset[str] = frozenset()
    budget: BudgetImpact | None = None
    gaps: tuple[str, ...] = ()

    @property
    def best(self) -> Offer | None:
        return self.ranking.best.offer if self.ranking.best is not None else None

    def because(self, *rules: str) -> list[Refused]:
        """What is in the way by one of these rules."""
        return [reason for reason in self.in_the_way if reason.rule in rules]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. It returns what it found, nothing when all is well; `warns` ones never refuse."""

    id: str
    why: str
    find: Callable[[Facts], Iterable[Refused]]
    warns: bool = False
    at_apply: bool = True


def verdicts(facts: Facts, *, at_apply: bool = False) -> tuple[Verdict, ...]:
    """Every check's verdict, in the table's order."""
    return tuple(_verdict(check, facts) for check in CHECKS if check.at_apply or not at_apply)


def nearest(spec: JobSpec | EndpointSpec, ranking: Ranking) -> tuple[Refused, ...]:
    """The reasons against the offer that comes nearest to what a spec names, where none fits."""
    need = spec.resources
    for item in ranking.rejected:
        named = not need.instance_type or same_sku(item.node_type, need.instance_type)
        if named and (item.pool == spec.pool or need.names_cloud) and item.reasons[0].rule not in _ELSEWHERE:
            return item.reasons
    return ()


_ELSEWHERE = frozenset({"pool", "instance-type", "cloud", "region", "purchase"})
_SIZE = ("cpus", "memory", "disk", "nodes", "accelerator", "price", "interruptions")


def _verdict(check: Check, facts: Facts) -> Verdict:
    found = list(check.find(facts))
    if not found:
        return Verdict(rule=check.id, why=check.why, refused=None)
    joined = Refused(
        rule=check.id,
        need="; ".join(each.need for each in found),
        have="; ".join(each.have for each in found),
        hint="; ".join(dict.fromkeys(each.hint for each in found if each.hint)),
    )
    if check.warns:
        return Verdict(
            rule=check.id, why=check.why, refused=None, warning=f"{joined.have}; {joined.need}: {joined.hint}"
        )
    return Verdict(rule=check.id, why=check.why, refused=joined)


# ---------------------------------------------------------------- what is asked for


def _owner(facts: Facts) -> Iterable[Refused]:
    meta = facts.spec.metadata
    for field, value in (("owner", meta.owner), ("cost_center", meta.cost_center)):
        if value.strip().lower() in NOBODY:
            weekend = facts.accelerated or facts.judge.choices([facts.best], facts.best)[0] if facts.best else ()
            cost = f"; a weekend of it idle is {format_usd(weekend[0].idle_weekend_microusd)}" if weekend else ""
            hint = f"set metadata.{field} to who answers for it"
            yield Refused(rule="owner-named", need=f"somebody in metadata.{field}", have=f"{value!r}{cost}", hint=hint)


def _work(facts: Facts) -> Iterable[Refused]:
    return [facts.wrong_work] if facts.wrong_work is not None else []


def _deadline(facts: Facts) -> Iterable[Refused]:
    spec = facts.spec
    if spec.deadline is not None and spec.deadline > spec.end_date:
        yield Refused(
            rule="deadline",
            need=f"a deadline before it is stopped, on {spec.end_date:%Y-%m-%d %H:%M} UTC",
            have=f"{spec.deadline:%Y-%m-%d %H:%M} UTC",
            hint="set spec.end_date after spec.deadline",
        )


def _instance_type(facts: Facts) -> Iterable[Refused]:
    need, rows = facts.spec.resources, facts.rows
    if not need.names_cloud or facts.best is not None:
        return
    of_cloud = [row for row in rows if need.cloud in ("", row.cloud)]
    if need.region and not any(row.region == need.region for row in of_cloud):
        other = sorted({row.cloud for row in rows if row.region == need.region})
        hint = (
            f"{need.region} is a region of {' and '.join(other)}" if other else _near(need.region, _regions(of_cloud))
        )
        of = f" of {need.cloud}" if need.cloud else ""
        yield Refused(rule="instance-type", need=f"a region{of} that the catalogue knows", have=need.region, hint=hint)
        return
    if not need.instance_type:
        if not facts.in_the_way:
            have = "none with a known price"
            hint = "name another region, or add prices: ground catalog update"
            yield Refused(rule="instance-type", need=f"a machine in {_asked(need)}", have=have, hint=hint)
        return
    same = [row for row in rows if same_sku(row.name, need.instance_type)]
    if not same:
        near = _near(need.instance_type, {row.name for row in of_cloud})
        have = need.instance_type
        yield Refused(rule="instance-type", need="an instance type that somebody sells", have=have, hint=near)
        return
    here = [row for row in same if need.cloud in ("", row.cloud) and need.region in ("", row.region)]
    if not here:
        places = ", ".join(sorted({f"{row.cloud} {row.region}" for row in same})[:5])
        need_there = f"{same[0].name} in {_asked(need)}"
        yield Refused(rule="instance-type", need=need_there, have="not known there", hint=f"it is known in {places}")
    elif not any(row.price_microusd_per_hour for row in here):
        retired = f", retired on {here[0].retirement_date}" if here[0].retirement_date else ""
        hint = f"add its price with ground catalog update{_instead(facts)}"
        yield Refused(rule="instance-type", need=f"a price of {here[0].name}", have=f"none{retired}", hint=hint)
    elif not facts.in_the_way:
        sold, hint = f"{here[0].name} bought {need.purchase or 'on-demand'}", "set resources.purchase: on-demand"
        yield Refused(rule="instance-type", need=sold, have="no price or size of that is known", hint=hint)


def _replacement(facts: Facts) -> Iterable[Refused]:
    """What does the same as a machine that is no longer sold; policy refuses the machine itself."""
    for reason in facts.because("retired"):
        shown = "; ".join(side_by_side(each) for each in facts.accelerated) or "ground recon lists what is sold"
        yield Refused(rule="replacement", need="one that is sold would be", have=reason.have, hint=shown)


def _asked(need: Resources) -> str:
    return " ".join(filter(None, (need.cloud, need.region)))


def _regions(rows: Iterable[SkuRow]) -> set[str]:
    return {row.region for row in rows if row.region}


def _near(word: str, known: Iterable[str]) -> str:
    """Names that look like a misspelt one; the first few where none does."""
    names = {name.lower().removeprefix("standard_"): name for name in known}
    close = difflib.get_close_matches(word.lower().removeprefix("standard_"), names, 3, 0.5)
    if close:
        return f"did you mean {', '.join(names[each] for each in close)}?"
    return f"known: {', '.join(sorted(names.values())[:8])} …" if names else "ground recon lists them"


# ---------------------------------------------------------------- what it would run on


def _gpu_work(facts: Facts) -> Iterable[Refused]:
    """Accelerator work on a machine without any: with what it would cost where it belongs."""
    found = facts.because("gpu-work", "accelerators")
    if not found and facts.best is None and facts.work is not None and not facts.spec.resources.names_cloud:
        found = _on_processors(facts)
    machine = facts.spec.resources.instance_type
    for reason in found:
        have = f"{reason.have} on {machine}" if machine and machine not in reason.have else reason.have
        yield replace(reason, have=have, hint=f"{reason.hint}{_instead(facts)}")


def _on_processors(facts: Facts) -> list[Refused]:
    assert facts.work is not None
    if not facts.judge.needs_accelerator or facts.spec.resources.accelerators:
        return []
    hint = "set resources.accelerators: 1 and an accelerator"
    need = f"accelerators for {facts.work.words}"
    return [Refused(rule="gpu-work", need=need, have="resources.accelerators: 0", hint=hint)]


def _instead(facts: Facts) -> str:
    """`; Standard_NC24ads_A100_v4: 9.20 h, $33.79`: what has accelerators, hours and dollars beside it."""
    shown = [f"{side_by_side(each)}" for each in facts.accelerated]
    return f"; with accelerators: {'; '.join(shown)}" if shown else ""


def side_by_side(choice: Choice) -> str:
    """One choice as a clause."""
    cards = f"{choice.accelerators:g} × {choice.accelerator}" if choice.accelerators else "no accelerator"
    return (
        f"{choice.nodes} × {choice.node_type} in {choice.place} ({cards}) {choice.hours:,.2f} h,"
        f" {format_usd(choice.expected_microusd)}"
    )


def _accelerator_memory(facts: Facts) -> Iterable[Refused]:
    found = facts.because("accelerator-memory", "work")
    need = facts.spec.resources
    if not found and facts.best is None and facts.work is not None and need.accelerators and need.accelerator:
        card = facts.hardware.accelerator(need.accelerator)
        like = facts.hardware.accelerators_like(need.accelerator)
        biggest = card or (max(like, key=lambda each: each.memory_bytes) if like else None)
        if biggest is not None:
            fit = facts.meter.on(
                facts.work, accelerator=biggest.id, accelerators=need.accelerators, cpus=need.cpus, nodes=need.nodes
            )
            found = [fit.short] if fit.short is not None else []
    return found


def _cpu_memory(facts: Facts) -> Iterable[Refused]:
    """Weights are in main memory twice while they load."""
    if facts.work is None:
        return
    needed, formula = main_memory(facts.work)
    have = facts.spec.resources.memory_bytes
    spread = facts.spec.resources.nodes if facts.work.training is not None else 1
    if have * spread < needed:
        each = -(-needed // spread)
        yield Refused(
            rule="cpu-memory",
            need=formula,
            have=f"resources.memory {format_bytes(have)}" + (f" on each of {spread} nodes" if spread > 1 else ""),
            hint=f"set resources.memory: {-(-each // 2**30)}GiB; with less the kernel kills it while it loads (137)",
        )


def _named(*rules: str) -> Callable[[Facts], Iterable[Refused]]:
    return lambda facts: facts.because(*rules)


def _size(facts: Facts) -> Iterable[Refused]:
    """What a cloud's machine has too little of; a pool's is policy's to tell."""
    return facts.because(*_SIZE) if facts.spec.resources.names_cloud and facts.best is None else []


def _quota(facts: Facts) -> Iterable[Refused]:
    for reason in facts.because("quota"):
        yield replace(reason, hint="; ".join((reason.hint, *facts.ways_out)))


def _storage(facts: Facts) -> Iterable[Refused]:
    return facts.storage


# ---------------------------------------------------------------- warnings


def _may_be_late(facts: Facts) -> Iterable[Refused]:
    """Where nothing tells the hours: what it may run is longer than what is left until the result is needed."""
    spec = facts.spec
    if not isinstance(spec, JobSpec) or spec.deadline is None or facts.work is not None:
        return
    left_s = (spec.deadline - facts.judge.now).total_seconds()
    if spec.max_duration_s > left_s:
        yield Refused(
            rule="deadline-clear",
            need="its hours can't be summed up without spec.training",
            have=f"it may run {format_duration(spec.max_duration_s)}, and the deadline is in {left_s / 3600:,.2f} h",
            hint="lower max_duration, or say what is trained",
        )


def _storage_unknown(facts: Facts) -> Iterable[Refused]:
    """Data whose speed nobody told: the rate that would do is known all the same."""
    spec = facts.spec
    if not isinstance(spec, JobSpec):
        return
    for source in spec.data:
        if not source.size_bytes or source.name in facts.data_known or source.source:
            continue
        times = f" × {source.passes} passes" if source.passes > 1 else ""
        enough = source.size_bytes * source.passes / spec.max_duration_s
        have = f"no rate is known of {source.tier}" if source.tier else "neither tier nor throughput is given"
        yield Refused(
            rule="storage-known",
            need=f"{gb(source.size_bytes)}{times} ÷ {format_duration(spec.max_duration_s)} = {rate(enough)} at least",
            have=f"how fast {source.name} is read is unknown: {have}",
            hint="measure it and set spec.data[].throughput: ground preflight reads from the node",
        )


def _quota_unknown(facts: Facts) -> Iterable[Refused]:
    best = facts.best
    if best is None or not best.cloud:
        return
    room = facts.judge.room(best, facts.spec.resources.nodes)
    if room is not None and not room.known:
        why = facts.gaps[0] if facts.gaps else "no live source answered"
        hint = "more quota takes 24 to 72 h; ground recon --live asks the cloud"
        have = f"the quota of {best.cloud} {best.region} is unknown ({why})"
        yield Refused(rule="quota-known", need="whether there is room can't be told", have=have, hint=hint)


def _executor(facts: Facts) -> Iterable[Refused]:
    best = facts.best
    if best is not None and best.pool not in facts.registered:
        yield not_runnable(best, facts.registered)


def not_runnable(offer: Offer, registered: Iterable[str]) -> Refused:
    """Why a cloud's offer can be planned and not applied here."""
    pools = ", ".join(sorted(registered)) or "none"
    return Refused(
        rule="executor",
        need=f"a pool that starts {offer.node_type} in {offer.pool}",
        have=f"none registered (pools: {pools})",
        hint="it can be planned, not applied; leave out resources.instance_type, cloud and region to run on a pool",
    )


def _budget(facts: Facts) -> Iterable[Refused]:
    impact = facts.budget
    if impact is not None and impact.left_after_microusd < 0:
        short = impact.limit_microusd - impact.left_after_microusd
        raised = f"ground budget set {facts.spec.metadata.project} {-(-short // MICROUSD_PER_USD)}"
        have = f"{format_usd(impact.left_before_microusd)} is left of {format_usd(impact.limit_microusd)}"
        need = f"{format_usd(impact.left_before_microusd - impact.left_after_microusd)} would be held"
        yield Refused(rule="budget-left", need=need, have=have, hint=f"a larger budget: {raised}")


def _same_region(facts: Facts) -> Iterable[Refused]:
    need = facts.spec.resources
    if not need.region or need.cloud:
        return
    clouds = sorted({row.cloud for row in facts.rows if row.region == need.region})
    if len(clouds) > 1:
        have = f"{' and '.join(clouds)} both have a region {need.region}"
        yield Refused(rule="region-clear", need="offers of each are taken", have=have, hint="set resources.cloud")


CHECKS: tuple[Check, ...] = (
    Check(id="owner-named", why="Work under nobody's name is found by its bill, weeks later.", find=_owner),
    Check(id="deadline", why="What is stopped before it is needed was never wanted.", find=_deadline, at_apply=False),
    Check(id="work", why="Sums over a model need one model.", find=_work),
    Check(id="instance-type", why="A machine that nobody sells there waits for ever.", find=_instance_type),
    Check(
        id="gpu-work",
        why="Accelerator work on processors costs its hours many times over, or fails after minutes.",
        find=_gpu_work,
    ),
    Check(
        id="accelerator-memory", why="What does not fit its cards ends in CUDA out of memory.", find=_accelerator_memory
    ),
    Check(id="cpu-memory", why="While weights load they are in main memory twice.", find=_cpu_memory),
    Check(id="machine-size", why="A machine has what it has.", find=_size),
    Check(id="time", why="What needs longer than it may run is paid for and cut off.", find=_named("time")),
    Check(id="restriction", why="A SKU that is closed to the account never starts.", find=_named("restriction")),
    Check(id="quota", why="Without quota the first machine is refused, after everybody waited.", find=_quota),
    Check(id="lead-time", why="Quota takes days: asked for too late it comes too late.", find=_named("lead-time")),
    Check(id="in-time", why="A result after its deadline is paid for and too late.", find=_named("in-time")),
    Check(id="storage", why="Accelerators that wait for data cost the same as those that work.", find=_storage),
    Check(id="replacement", why="What is retired has a successor.", find=_replacement, warns=True),
    Check(id="quota-known", why="A limit that nobody read may be zero.", find=_quota_unknown, warns=True),
    Check(id="storage-known", why="What nobody measured may be the slow one.", find=_storage_unknown, warns=True),
    Check(
        id="deadline-clear",
        why="What may run past its deadline may end too late.",
        find=_may_be_late,
        warns=True,
        at_apply=False,
    ),
    Check(id="region-clear", why="One name may be two places.", find=_same_region, warns=True),
    Check(id="executor", why="A plan runs where something can start it.", find=_executor, warns=True),
    Check(id="budget-left", why="What the month can't hold is refused at apply.", find=_budget, warns=True),
)

_ids = [check.id for check in CHECKS]
if len(set(_ids)) != len(_ids):
    raise AssertionError(f"two checks share an id: {sorted(_ids)}")
