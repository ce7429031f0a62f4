"""Sums over what a message says: does the model fit the cards, is the data read in time, does the budget last.

Each takes the figures that speak for the request: what is refused here can't be rescued by what is not said yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from groundplane.domain.intake import Fact, ItemKind, Risk
from groundplane.domain.intake.circumstances import Circumstances, machine_of, whole
from groundplane.domain.intake.facts import shown
from groundplane.domain.intake.lexicon import InstanceName, squeezed
from groundplane.domain.sizing.memory import BYTES_PER_WEIGHT, STATE_BYTES_PER_PARAM, Optimizer, Precision, gb
from groundplane.units import cost_microusd, exact_usd, format_duration, format_usd

_GPU_WORK = frozenset({ItemKind.CAPACITY, ItemKind.BATCH, ItemKind.ENDPOINT})
_TRAINS = frozenset({ItemKind.CAPACITY, ItemKind.INCIDENT})
"""What may be training: an incident is one when a GPU ran out of memory."""
_QLORA_BYTES = 0.5
CPU_MEMORY_FACTOR = 2
"""Loading holds the weights twice for a moment: as read and as placed."""


def too_large(about: Circumstances) -> Iterator[Risk]:
    """A model whose least memory is more than all the cards together have."""
    params = _params(about)
    cards, each_gb, card = _cards(about)
    oom = about.kind is ItemKind.INCIDENT and about.has("error", "out of memory") is not None
    if not (about.kind in _GPU_WORK or oom) or params is None or not cards or not each_gb:
        return
    width, what, sure = _bytes_per_param(about)
    need, have = params * width, cards * each_gb * 1e9
    if need <= have:
        return
    verb = "serve" if about.kind is ItemKind.ENDPOINT else "train"
    on = f" --gpus {cards}x{card}" if card else ""
    yield Risk(
        id="model-too-large" if sure else "method-too-large",
        level="high" if sure else "medium",
        message=f"{params / 1e9:g}B parameters x {width:g} bytes ({what}) = {gb(need)} at least; "
        f"{cards} x {card or 'a card'} with {each_gb:g} GB have {gb(have)}",
        hint=f"ground size --params {params / 1e9:g}B --{verb}{on} shows what would fit",
        span=first.span if (first := about.of("accelerator") or about.of("instance_type")) else None,
    )


def too_little_memory(about: Circumstances) -> Iterator[Risk]:
    """Main memory below twice the weights: loading is killed halfway."""
    params, memory = _params(about), about.of("memory")
    if params is None or memory is None or not isinstance(memory.value, int):
        return
    width, word = _weight_bytes(about)
    need = CPU_MEMORY_FACTOR * params * width
    if memory.value < need:
        yield Risk(
            id="memory-limit",
            level="high",
            message=f"{shown(memory)} of memory: loading {params / 1e9:g}B parameters in {word} needs "
            f"{CPU_MEMORY_FACTOR} x {gb(params * width)} = {gb(need)}; below it loading is killed (exit 137)",
            hint=f"give it {gb(need)} at least, or load shard by shard onto the GPU",
            span=memory.span,
        )


def too_slow(about: Circumstances) -> Iterator[Risk]:
    """Data that can't be read in the time the job has."""
    size, rate, duration = about.of("dataset_size"), about.of("data_rate"), about.of("duration")
    if size is None or rate is None or not isinstance(size.value, int) or not isinstance(rate.value, int):
        return
    if not rate.value:
        return
    epochs = about.of("epochs")
    passes = max(1.0, float(epochs.value)) if epochs is not None and not isinstance(epochs.value, str) else 1.0
    once_h = size.value / rate.value / 3600
    took = f"{shown(size)} / {shown(rate)} = {once_h:.2f} h a pass"
    took += f", {passes:g} passes {once_h * passes:.2f} h" if passes > 1 else ""
    if duration is None or isinstance(duration.value, str):
        yield Risk(id="data-speed", level="low", message=took, hint="the job can't be faster than that", span=rate.span)
        return
    if once_h * passes * 3600 <= duration.value:
        return
    needed = size.value * passes / duration.value / 1e6
    yield Risk(
        id="data-starvation",
        level="high",
        message=f"{took}, and the job has {format_duration(duration.value)}: it needs {needed:,.1f} MB/s",
        hint="copy the data to local NVMe before the machines are paid for, or read it from a faster tier",
        span=rate.span,
    )


def too_expensive(about: Circumstances) -> Iterator[Risk]:
    """A budget that the cheapest machine of the catalogue would use up before the work is over."""
    budget, duration = about.of("budget"), about.of("duration")
    if about.kind not in _GPU_WORK or budget is None or budget.unit != "microusd" or not isinstance(budget.value, int):
        return
    if duration is None or isinstance(duration.value, str) or "per " in budget.note:
        return
    found = _price(about)
    if found is None:
        return
    count, price, what = found
    cost = cost_microusd(price, int(duration.value), count)
    if cost <= budget.value:
        return
    lasts_h = budget.value / (price * count)
    yield Risk(
        id="over-budget",
        level="high",
        message=f"{count} x {what} x {exact_usd(price)} x {duration.value / 3600:g} h = {format_usd(cost)} "
        f"on demand; the budget of {format_usd(budget.value)} lasts {lasts_h:,.1f} h",
        hint="ask which one holds, the budget, the time or the machines; ground plan shows spot beside it",
        span=budget.span,
    )


# ---------------------------------------------------------------- figures


def _params(about: Circumstances) -> int | None:
    fact = about.of("parameters")
    if fact is not None and not isinstance(fact.value, str):
        return round(fact.value * 1e9)
    model = about.of("model")
    row = about.lexicon.model_ids.get(str(model.value).lower()) if model else None
    return round(row.parameters_billion * 1e9) if row is not None and row.parameters_billion else None


def _cards(about: Circumstances) -> tuple[int, float, str]:
    """How many cards in all, the memory of each in GB, and their name. Several sizes: the largest speaks."""
    machine = machine_of(about)
    machines = whole(about, "machines")
    each = whole(about, "accelerators_per_machine") or (int(machine.accelerators) if machine else 0)
    count = whole(about, "accelerators") or max(machines, 1) * each
    fact = about.of("accelerator")
    memory = about.of("accelerator_memory")
    named = str(fact.value) if fact else machine.accelerator if machine else ""
    sizes = [name.memory_gb for name in about.lexicon.accelerators if _is_card(named, name.id, name.family)]
    written = re.search(r"-(\d+)gb$", named)
    if written:
        return count, float(written[1]), named
    if memory is not None and isinstance(memory.value, int):
        return count, memory.value / 1e9, named
    return count, float(max(sizes, default=0)), named


def _is_card(named: str, card_id: str, family: str) -> bool:
    return bool(named) and (named == card_id or squeezed(named) == squeezed(family))


def _bytes_per_param(about: Circumstances) -> tuple[float, str, bool]:
    """The least that a parameter takes, what that is, and whether the message leaves no other way."""
    width, word = _weight_bytes(about)
    if about.kind not in _TRAINS:
        return width, f"weights in {word}", True
    method, optimizer = about.of("method"), about.of("optimizer")
    said = str(method.value) if method else ""
    if said == "qlora":
        return _QLORA_BYTES, "weights in 4 bits", True
    if said == "lora":
        return width, f"weights in {word}", True
    word = str(optimizer.value) if optimizer else Optimizer.ADAM.value
    full = 2 * width + STATE_BYTES_PER_PARAM[Optimizer(word)]
    what = f"weights, gradients and {word} states"
    cards, each_gb, _ = _cards(about)
    params = _params(about) or 0
    if said or params * width > cards * each_gb * 1e9:
        # Not even the weights fit: no method in these bits does.
        return (full, what, True) if said else (width, f"the weights alone in {_weight_bytes(about)[1]}", True)
    return full, f"{what}, if all weights are trained", False


def _weight_bytes(about: Circumstances) -> tuple[float, str]:
    fact = about.of("precision")
    word = str(fact.value) if fact else "16 bits"
    return (BYTES_PER_WEIGHT[Precision(word)], word) if fact else (2.0, word)


def _price(about: Circumstances) -> tuple[int, int, str] | None:
    """How many, micro-dollars an hour each, of what: the type that is named, else the cheapest card of that kind."""
    machine = machine_of(about)
    if machine is not None:
        machines = whole(about, "machines") or 1
        return (machines, machine.price_microusd_per_hour, machine.name) if machine.price_microusd_per_hour else None
    cards, _, named = _cards(about)
    family = re.sub(r"-\d+gb$", "", named)
    rows = [row for row in about.lexicon.instance_types if _sells(row, named, family, about)]
    if not cards or not rows:
        return None
    cheapest = min(rows, key=_card_price)
    return cards, int(_card_price(cheapest)), f"{named} (cheapest: {cheapest.name} in {cheapest.cloud})"


def _sells(row: InstanceName, named: str, family: str, about: Circumstances) -> bool:
    cloud = about.of("cloud")
    if not row.accelerators or not row.price_microusd_per_hour or row.retired or (cloud and cloud.value != row.cloud):
        return False
    card = next((name for name in about.lexicon.accelerators if name.id == row.accelerator), None)
    size = re.search(r"-(\d+)gb$", named)
    like = card is not None and squeezed(card.family) == squeezed(family)
    return card is not None and (named == card.id or (like and (size is None or int(size[1]) == card.memory_gb)))


def _card_price(row: InstanceName) -> Fraction:
    return Fraction(row.price_microusd_per_hour or 0) / Fraction(row.accelerators)


def stated_quota(fact: Fact) -> tuple[int, int]:
    """`96 of 96 used` → (96, 96)."""
    used, limit = re.findall(r"\d+", str(fact.value))[:2]
    return int(used), int(limit)
