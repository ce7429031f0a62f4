"""One answer to "will it fit, how fast is it, and what if not": memory, layout, time, links and remedies together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from groundplane.domain.hardware import Accelerator
from groundplane.domain.sizing.memory import (
    BYTES_PER_WEIGHT,
    CONTEXT_RESERVE,
    Line,
    Method,
    Precision,
    Serving,
    Sizing,
    Training,
    cards_that_fit,
    gb,
    remedies,
    serving_memory,
    training_memory,
    usable_bytes,
)
from groundplane.domain.sizing.model_shape import ModelShape
from groundplane.domain.sizing.parallelism import (
    Advice,
    Fabric,
    Layout,
    Link,
    advise,
    layout_of,
    serving_layout,
    serving_traffic,
    training_layout,
    training_traffic,
    training_words,
)
from groundplane.domain.sizing.roofline import (
    Efficiencies,
    Estimate,
    estimate_serving,
    estimate_training,
    has_peak,
    words,
)
from groundplane.errors import InvalidInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """One change that lowers the sum, and the sum it leads to."""

    what: str
    per_card_bytes: int
    cards: int
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeReport:
    """`lines` are the memory of one card and add up to `per_card_bytes`; `total_bytes` is all cards together.

    `fits` is None without a card to hold it against. `layout` is the one the sum is for, `smallest` the one with the
    fewest cards of this kind, None when none was found. `holding` are the catalogue's cards that hold it on one.
    """

    model: str
    purpose: str
    way: str
    params: int
    active_params: int
    card: str
    card_usable_bytes: int
    lines: tuple[Line, ...]
    per_card_bytes: int
    total_bytes: int
    layout: Layout
    fits: bool | None
    smallest: Layout | None
    holding: tuple[str, ...]
    cpu_memory_bytes: int
    cpu_formula: str
    estimate: Estimate | None
    advice: tuple[Advice, ...]
    fixes: tuple[Fix, ...]
    notes: tuple[str, ...]
    explain: tuple[str, ...]

    def noting(self, more: tuple[str, ...]) -> SizeReport:
        """The same with what was assumed on the way to it said first."""
        return replace(self, notes=(*more, *self.notes))


def cpu_memory(shape: ModelShape, precision: Precision) -> tuple[int, str]:
    """Main memory to load it: twice its weights, which are there as read and as they are handed over."""
    weights = shape.params * BYTES_PER_WEIGHT[precision]
    need = ceil(2 * weights)
    return need, f"2 × {gb(weights)} of weights = {gb(need)}"


def size_training(
    shape: ModelShape,
    training: Training,
    cards: tuple[Accelerator, ...],
    *,
    card: Accelerator | None,
    fabric: Fabric | None,
    efficiencies: Efficiencies,
    count: int | None = None,
    dataset_tokens: int = 0,
    epochs: float = 1.0,
) -> SizeReport:
    """The report for a training. `cards` are the catalogue's; `count` cards are spread over as they fit best.

    Raises InvalidInput for what can't be trained.
    """
    asked = training
    if card is not None and fabric is not None and count is not None and training.cards == 1:
        spread = training_layout(shape, training, card, fabric, count)
        # Where nothing fits on so many, the most sharded layout shows how much is missing.
        asked = spread[0] if spread else replace(training, zero=3 if count > 1 else 0, shards=count)
    sizing = training_memory(shape, asked)
    smallest = estimate = None
    advice: tuple[Advice, ...] = ()
    fixes: tuple[Fix, ...] = ()
    fits = sizing.fits(card) if card is not None else None
    if card is not None and fabric is not None:
        found = training_layout(shape, training, card, fabric)
        smallest = layout_of(found[1], training_words(found[0]), fabric) if found else None
        timed = asked if fits or found is None else found[0]
        if has_peak(card):
            estimate = estimate_training(
                shape, timed, card, fabric, efficiencies, dataset_tokens=dataset_tokens, epochs=epochs
            )
            advice = advise(training_traffic(shape, timed), fabric, estimate.step.expected_s)
        if not fits:
            fixes = _training_fixes(shape, asked, card, cards, sizing, fabric)
    precision = Precision.INT4 if training.method is Method.QLORA else training.precision
    way = f"{training.method} in {training.precision}, {training.batch} × {training.sequence:,} tokens a card"
    layout = layout_of(sizing, training_words(asked), fabric or _no_fabric(sizing))
    # QLoRA quantises while it loads: main memory sees the 16-bit weights.
    loaded = Precision.BF16 if precision is Precision.INT4 else precision
    return _report(shape, "train", way, sizing, layout, card, cards, fits, smallest, estimate, advice, fixes, loaded)


def size_serving(
    shape: ModelShape,
    serving: Serving,
    cards: tuple[Accelerator, ...],
    *,
    card: Accelerator | None,
    fabric: Fabric | None,
    efficiencies: Efficiencies,
    count: int | None = None,
    prompt_tokens: int = 0,
) -> SizeReport:
    """The report for one replica that serves. Raises InvalidInput for what can't be served."""
    asked = replace(serving, tensor_parallel=count) if count and serving.tensor_parallel == 1 else serving
    if shape.heads % asked.tensor_parallel:
        divisors = [str(each) for each in (1, 2, 4, 8, 16) if shape.heads % each == 0]
        raise InvalidInput(
            f"{asked.tensor_parallel} cards do not divide {shape.heads} heads", f"choose {', '.join(divisors)}"
        )
    sizing = serving_memory(shape, asked)
    smallest = estimate = None
    advice: tuple[Advice, ...] = ()
    fixes: tuple[Fix, ...] = ()
    fits = sizing.fits(card) if card is not None else None
    if card is not None and fabric is not None:
        found = serving_layout(shape, serving, card, fabric)
        smallest = layout_of(found[1], _serving_words(found[0]), fabric) if found else None
        timed = asked if fits or found is None else found[0]
        if has_peak(card):
            estimate = estimate_serving(shape, timed, card, fabric, efficiencies, prompt_tokens=prompt_tokens)
            traffic = serving_traffic(shape, timed, timed.batch)
            advice = advise((traffic,) if traffic else (), fabric, estimate.step.expected_s)
        if not fits:
            fixes = _serving_fixes(shape, asked, card, cards, sizing, fabric)
    way = f"{serving.precision}, {serving.batch} sequences of {serving.context:,} tokens"
    layout = layout_of(sizing, _serving_words(asked), fabric or _no_fabric(sizing))
    loaded = serving.precision
    return _report(shape, "serve", way, sizing, layout, card, cards, fits, smallest, estimate, advice, fixes, loaded)


def _report(
    shape: ModelShape,
    purpose: str,
    way: str,
    sizing: Sizing,
    layout: Layout,
    card: Accelerator | None,
    cards: tuple[Accelerator, ...],
    fits: bool | None,
    smallest: Layout | None,
    estimate: Estimate | None,
    advice: tuple[Advice, ...],
    fixes: tuple[Fix, ...],
    loaded: Precision,
) -> SizeReport:
    need, formula = cpu_memory(shape, loaded)
    notes = [*sizing.notes, *(estimate.notes if estimate else ())]
    if card is not None and fits is False and smallest is not None:
        notes.append(f"time and links are those of the smallest layout that fits: {smallest.words}")
    if card is not None and estimate is None:
        notes.append(f"no time can be told: the catalogue has no dense_tflops of {card.name}")
    if card is not None and card.estimated:
        notes.append(f"some figures of {card.name} are estimated in the catalogue (as of {card.as_of})")
    explain = [*map(str, sizing.lines), f"total on each card: {gb(sizing.total_bytes)}"]
    if sizing.cards > 1:
        explain.append(f"total: {sizing.cards} × {gb(sizing.total_bytes)} = {gb(sizing.total_bytes * sizing.cards)}")
    if card is not None:
        usable = gb(usable_bytes(card))
        explain.append(f"usable of {card.name}: {gb(card.memory_bytes)} × {1 - CONTEXT_RESERVE:.0%} = {usable}")
    explain.append(f"CPU memory: {formula}")
    if estimate is not None:
        explain += [*map(str, estimate.figures), f"step: {words(estimate.step)}, bound by {estimate.bound}"]
    explain += [f"{each.axis}: {each.formula}" for each in advice]
    return SizeReport(
        model=shape.id,
        purpose=purpose,
        way=way,
        params=shape.params,
        active_params=shape.active_params,
        card=card.name if card else "",
        card_usable_bytes=usable_bytes(card) if card else 0,
        lines=sizing.lines,
        per_card_bytes=sizing.total_bytes,
        total_bytes=sizing.total_bytes * sizing.cards,
        layout=layout,
        fits=fits,
        smallest=smallest,
        holding=tuple(each.name for each in cards_that_fit(sizing, cards)),
        cpu_memory_bytes=need,
        cpu_formula=formula,
        estimate=estimate,
        advice=advice,
        fixes=fixes,
        notes=tuple(notes),
        explain=tuple(explain),
    )


def _no_fabric(sizing: Sizing) -> Fabric:
    """Without a card, a node is a usual one: nothing is said about its links."""
    nothing = Link(id="", name="", bytes_per_s=1)
    return Fabric(node_cards=8 if sizing.cards > 1 else 1, inside=nothing, across=nothing)


def _serving_words(serving: Serving) -> str:
    return f"tensor parallel {serving.tensor_parallel}" if serving.tensor_parallel > 1 else "one card"


# ---------------------------------------------------------------- what would make it fit


def _training_fixes(
    shape: ModelShape,
    training: Training,
    card: Accelerator,
    cards: tuple[Accelerator, ...],
    sizing: Sizing,
    fabric: Fabric,
) -> tuple[Fix, ...]:
    found = [
        Fix(
            what=each.what,
            per_card_bytes=each.sizing.total_bytes,
            cards=each.sizing.cards,
            fits=each.sizing.fits(card),
        )
        for each in remedies(shape, training, card, fabric.node_cards)
        if each.sizing.total_bytes < sizing.total_bytes
    ]
    if not any(each.fits for each in found):
        found += _together(shape, training, card, fabric)
    return (*found, _bigger_card(sizing, cards))


def _together(shape: ModelShape, training: Training, card: Accelerator, fabric: Fabric) -> list[Fix]:
    """The first remedies in their order, one upon another, until it fits; nothing when even all of them don't do."""
    taken: list[str] = []
    while True:
        sizing = training_memory(shape, training)
        smaller = [
            each
            for each in remedies(shape, training, card, fabric.node_cards)
            if each.sizing.total_bytes < sizing.total_bytes
        ]
        if not smaller:
            return []
        training, sizing = smaller[0].training, smaller[0].sizing
        taken.append(smaller[0].what.split(":")[0])
        if sizing.fits(card):
            text = f"{' + '.join(taken)}: {gb(sizing.total_bytes)}, fits {card.name} ({gb(usable_bytes(card))} usable)"
            return [Fix(what=text, per_card_bytes=sizing.total_bytes, cards=sizing.cards, fits=True)]


def _serving_fixes(
    shape: ModelShape,
    serving: Serving,
    card: Accelerator,
    cards: tuple[Accelerator, ...],
    sizing: Sizing,
    fabric: Fabric,
) -> tuple[Fix, ...]:
    """The least intrusive first: fewer sequences, a shorter context, fewer bits, more cards, a bigger card."""
    changes = [
        (f"batch {max(1, serving.batch // 2)}", replace(serving, batch=max(1, serving.batch // 2))),
        (f"context {serving.context // 2:,}", replace(serving, context=max(1, serving.context // 2))),
        ("cache in FP8", replace(serving, cache_precision=Precision.FP8)),
        ("weights in FP8", replace(serving, precision=Precision.FP8)),
        ("weights in INT4", replace(serving, precision=Precision.INT4)),
    ]
    split = serving_layout(shape, serving, card, fabric)
    if split is not None:
        changes.append((f"tensor parallel {split[0].tensor_parallel}", split[0]))
    found = []
    for what, changed in changes:
        now = serving_memory(shape, changed)
        if now.total_bytes >= sizing.total_bytes:
            continue
        verdict = "fits" if now.fits(card) else "does not fit yet"
        text = f"{what}: {gb(now.total_bytes)} a card, {verdict} {card.name} ({gb(usable_bytes(card))} usable)"
        found.append(Fix(what=text, per_card_bytes=now.total_bytes, cards=now.cards, fits=now.fits(card)))
    return (*found, _bigger_card(sizing, cards))


def _bigger_card(sizing: Sizing, cards: tuple[Accelerator, ...]) -> Fix:
    holding = cards_that_fit(sizing, cards)
    if holding:
        usable = gb(usable_bytes(holding[0]))
        what = f"a bigger card: {holding[0].name} holds {gb(sizing.total_bytes)} ({usable} usable)"
    else:
        biggest = max(map(usable_bytes, cards), default=0)
        most = f"the biggest has {gb(biggest)} usable"
        what = f"a bigger card: none in the catalogue holds {gb(sizing.total_bytes)} ({most})"
    return Fix(what=what, per_card_bytes=sizing.total_bytes, cards=sizing.cards, fits=bool(holding))
