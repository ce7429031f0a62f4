"""How a model is spread over cards: the smallest layout that fits, what each axis sends, and which link may carry it.

Sources: Shoeybi et al., Megatron-LM (2019), for tensor parallelism's all-reduces; Rajbhandari et al., ZeRO (2020), for
the volumes of sharded data parallelism; a ring all-reduce sends 2 (n - 1) / n of its data from each card.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from groundplane.domain.hardware import Accelerator
from groundplane.domain.sizing.memory import (
    BYTES_PER_WEIGHT,
    Checkpointing,
    Method,
    Precision,
    Serving,
    Sizing,
    Training,
    gb,
    lora_params,
    serving_memory,
    training_memory,
)
from groundplane.domain.sizing.model_shape import ModelShape
from groundplane.errors import InvalidInput

CARDS_MAX = 4_096
"""Beyond that a layout is no longer found by trying; nobody asks a sizing command for it."""

TENSOR_SHARE_MAX = 0.25
"""Tensor parallelism waits for its link at every layer: above this share of a step it costs more than it brings.
Our estimate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A link between cards, in one direction and per card."""

    id: str
    name: str
    bytes_per_s: int
    as_of: str = ""
    sources: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({self.bytes_per_s / 1e9:g} GB/s each way)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """What joins the cards: `node_cards` of them by `inside`, nodes by `across`, two by `pair` where a bridge does."""

    node_cards: int
    inside: Link
    across: Link
    pair: Link | None = None

    def link(self, cards: int) -> Link:
        """The slowest link that a group of so many neighbouring cards must use."""
        if cards <= 2 <= self.node_cards and self.pair is not None:
            return self.pair
        return self.inside if cards <= self.node_cards else self.across


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one axis of parallelism sends from each card in one step. `group` cards share it, `span` apart."""

    axis: str
    group: int
    span: int
    size_bytes: int
    formula: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One axis, the link it uses, the time it takes there in a step, and what follows from that."""

    axis: str
    link: str
    size_bytes: int
    time_s: float
    advice: str
    formula: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A way to spread it over cards, and the memory each then needs."""

    cards: int
    nodes: int
    words: str
    per_card_bytes: int
    total_bytes: int


def fabric_of(card: Accelerator, pcie: Link, across: Link, node_cards: int = 8) -> Fabric:
    """Nodes of such cards: joined by the card's own link where it has one, by PCIe where it has none.

    The catalogue counts both directions of a card's own link, so one direction is half of it. A bridge joins two cards
    alone: the rest of the node has PCIe.
    """
    if card.interconnect_bytes_per_s <= 0:
        return Fabric(node_cards=node_cards, inside=pcie, across=across)
    own = Link(
        id="card",
        name=card.interconnect,
        bytes_per_s=card.interconnect_bytes_per_s // 2,
        as_of=card.as_of,
        sources=card.sources,
    )
    if "bridge" in card.interconnect.lower():
        return Fabric(node_cards=node_cards, inside=pcie, across=across, pair=own)
    return Fabric(node_cards=node_cards, inside=own, across=across)


# ---------------------------------------------------------------- layouts


def training_layout(
    shape: ModelShape, training: Training, card: Accelerator, fabric: Fabric, cards: int | None = None
) -> tuple[Training, Sizing] | None:
    """The layout with the fewest cards that fits (or on exactly `cards`); None when there is none.

    On so many cards the least traffic is taken first: one replica each, ZeRO-1, 2, 3, then tensor and pipeline splits.
    """
    for count in _counts(cards):
        for candidate in _training_candidates(shape, training, fabric, count):
            sizing = training_memory(shape, candidate)
            if sizing.fits(card):
                return candidate, sizing
    return None


def serving_layout(
    shape: ModelShape, serving: Serving, card: Accelerator, fabric: Fabric, cards: int | None = None
) -> tuple[Serving, Sizing] | None:
    """The fewest cards of one replica that fit (or exactly `cards`), split by tensor parallelism; None when none do."""
    for count in _counts(cards):
        if shape.heads % count or (cards is None and count > fabric.node_cards):
            continue
        candidate = replace(serving, tensor_parallel=count)
        sizing = serving_memory(shape, candidate)
        if sizing.fits(card):
            return candidate, sizing
    return None


def training_words(training: Training) -> str:
    """`ZeRO-3 over 8 cards × tensor parallel 2`, or `one card`."""
    parts = []
    if training.shards > 1:
        kind = f"ZeRO-{training.zero}" if training.zero else "one replica each"
        parts.append(f"{kind} over {training.shards} cards")
    if training.tensor_parallel > 1:
        parts.append(f"tensor parallel {training.tensor_parallel}")
    if training.pipeline_parallel > 1:
        parts.append(f"pipeline parallel {training.pipeline_parallel}")
    return " × ".join(parts) or "one card"


def layout_of(sizing: Sizing, words: str, fabric: Fabric) -> Layout:
    """A sum as a layout, with the nodes it takes."""
    return Layout(
        cards=sizing.cards,
        nodes=-(-sizing.cards // fabric.node_cards),
        words=words,
        per_card_bytes=sizing.total_bytes,
        total_bytes=sizing.total_bytes * sizing.cards,
    )


def _counts(cards: int | None) -> Iterator[int]:
    if cards is not None:
        if not 1 <= cards <= CARDS_MAX:
            raise InvalidInput(f"{cards} cards: must be from 1 to {CARDS_MAX}", "write it like 8xa100-80gb")
        yield cards
        return
    count = 1
    while count <= CARDS_MAX:
        yield count
        count *= 2


def _training_candidates(shape: ModelShape, training: Training, fabric: Fabric, count: int) -> Iterator[Training]:
    plain = replace(training, tensor_parallel=1, pipeline_parallel=1)
    for zero in (0, 1, 2, 3) if count > 1 else (0,):
        yield replace(plain, zero=zero, shards=count)
    for tensor in (2, 4, 8):
        if tensor > fabric.node_cards or count % tensor or shape.heads % tensor:
            continue
        rest = count // tensor
        yield replace(plain, zero=3 if rest > 1 else 0, shards=rest, tensor_parallel=tensor)
        for pipeline in (2, 4, 8, 16):
            if rest % pipeline == 0 and pipeline <= shape.layers:
                shards = rest // pipeline
                zero = 1 if shards > 1 else 0
                yield replace(plain, zero=zero, shards=shards, tensor_parallel=tensor, pipeline_parallel=pipeline)


# ---------------------------------------------------------------- what is sent


def training_traffic(shape: ModelShape, training: Training) -> tuple[Traffic, ...]:
    """What each axis sends from each card in one step, in the order of what needs the fastest link."""
    tokens = training.batch * training.sequence
    width = 4 if training.precision in (Precision.FP32, Precision.TF32) else 2
    found = []
    if training.tensor_parallel > 1:
        found.append(_tensor_traffic(shape, training, tokens, width))
    if training.shards > 1:
        found.append(_data_traffic(shape, training, width))
    if training.pipeline_parallel > 1:
        size = 2 * tokens * shape.hidden * width
        formula = f"forward and back 2 × {tokens:,} tokens × {shape.hidden:,} hidden × {width} B"
        group = training.pipeline_parallel
        found.append(Traffic(axis="pipeline", group=group, span=training.cards, size_bytes=size, formula=formula))
    return tuple(found)


def serving_traffic(shape: ModelShape, serving: Serving, tokens: int) -> Traffic | None:
    """What tensor parallelism sends from each card for `tokens` tokens at once: two all-reduces a layer."""
    group = serving.tensor_parallel
    if group < 2:
        return None
    size = round(2 * shape.layers * tokens * shape.hidden * 2 * _ring(group))
    formula = (
        f"2 all-reduces × {shape.layers} layers × {tokens:,} tokens × {shape.hidden:,} hidden × 2 B{_share(group)}"
    )
    return Traffic(axis="tensor", group=group, span=group, size_bytes=size, formula=formula)


def _tensor_traffic(shape: ModelShape, training: Training, tokens: int, width: int) -> Traffic:
    group = training.tensor_parallel
    times = 6 if training.checkpointing is Checkpointing.FULL else 4
    layers = shape.layers / training.pipeline_parallel
    size = round(times * layers * tokens * shape.hidden * width * _ring(group))
    what = f"{layers:g} layers × {tokens:,} tokens × {shape.hidden:,} hidden × {width} B"
    formula = f"{times} all-reduces × {what}{_share(group)}"
    return Traffic(axis="tensor", group=group, span=group, size_bytes=size, formula=formula)


def _data_traffic(shape: ModelShape, training: Training, width: int) -> Traffic:
    group = training.shards
    split = training.tensor_parallel * training.pipeline_parallel
    trained = shape.params
    if training.method is not Method.FULL:
        trained = lora_params(shape, training.lora_rank, training.lora_targets)
    gradients = trained * width / split
    if training.zero == 3:
        frozen = BYTES_PER_WEIGHT[Precision.INT4] if training.method is Method.QLORA else width
        weights = shape.params * frozen / split
        size = round((2 * weights + gradients) * (group - 1) / group)
        formula = f"(weights gathered 2 × {gb(weights)} + gradients {gb(gradients)}) × {group - 1}/{group}"
    else:
        size = round(gradients * _ring(group))
        formula = f"gradients {gb(gradients)}{_share(group)}"
    return Traffic(axis="data", group=group, span=training.cards, size_bytes=size, formula=formula)


def _ring(group: int) -> float:
    return 2 * (group - 1) / group


def _share(group: int) -> str:
    return f" × 2 × {group - 1}/{group}"


# ---------------------------------------------------------------- advice


def advise(traffic: tuple[Traffic, ...], fabric: Fabric, compute_s: float) -> tuple[Advice, ...]:
    """What each axis costs on its link beside `compute_s` of work in the same step, and what to do about it."""
    return tuple(_AXES[each.axis](each, fabric, compute_s) for each in traffic)


def _tensor_advice(each: Traffic, fabric: Fabric, compute_s: float) -> Advice:
    link, other = fabric.link(each.span), fabric.across
    time_s, away_s = each.size_bytes / link.bytes_per_s, each.size_bytes / other.bytes_per_s
    share = time_s / (time_s + compute_s) if time_s + compute_s else 0.0
    if link is fabric.across:
        words = f"{each.group} cards do not fit a node of {fabric.node_cards}: split by pipeline across nodes instead"
    elif share > TENSOR_SHARE_MAX:
        words = f"{share:.0%} of a step on {link.name}: use fewer cards per split, or cards with NVLink"
    else:
        words = f"keep it inside the node: across {other.name} it would take {_span(away_s)}"
    return _advice(each, link, time_s, words)


def _data_advice(each: Traffic, fabric: Fabric, compute_s: float) -> Advice:
    link = fabric.link(each.span)
    time_s = each.size_bytes / link.bytes_per_s
    if time_s <= compute_s:
        words = f"hides behind {_span(compute_s)} of work when it overlaps"
    else:
        words = (
            f"longer than the {_span(compute_s)} of work: accumulate gradients over {_steps(time_s, compute_s)} steps"
        )
        if link is fabric.across:
            words += f", or shard within the node and replicate across {link.name}"
    return _advice(each, link, time_s, words)


def _pipeline_advice(each: Traffic, fabric: Fabric, compute_s: float) -> Advice:
    link = fabric.link(each.span)
    words = (
        f"the axis that needs least: right across nodes; at least {4 * each.group} micro-batches keep its bubble small"
    )
    return _advice(each, link, each.size_bytes / link.bytes_per_s, words)


_AXES: dict[str, Callable[[Traffic, Fabric, float], Advice]] = {
    "tensor": _tensor_advice,
    "data": _data_advice,
    "pipeline": _pipeline_advice,
}


def _advice(each: Traffic, link: Link, time_s: float, words: str) -> Advice:
    formula = f"{each.formula} = {gb(each.size_bytes)} ÷ {link.bytes_per_s / 1e9:g} GB/s = {_span(time_s)}"
    values: dict[str, Any] = {"size_bytes": each.size_bytes, "time_s": time_s, "advice": words, "formula": formula}
    return Advice(axis=f"{each.axis} parallel {each.group}", link=str(link), **values)


def _steps(time_s: float, compute_s: float) -> int:
    return max(2, round(time_s / compute_s + 0.5)) if compute_s else 2


def _span(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.2f} ms"
