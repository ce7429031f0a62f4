"""How much memory a model needs to be trained or served, line by line, so that anyone can do the sum again.

GB here is 10^9 bytes, as in parameter counts; cards are compared in bytes.

Sources: Rajbhandari et al., ZeRO (2020), for what is sharded; Korthikanti et al., Reducing Activation Recomputation
in Large Transformer Models (2022), for activations; Dettmers et al., QLoRA (2023), for 4-bit weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import ceil

from groundplane.domain.hardware import Accelerator
from groundplane.domain.sizing.model_shape import ModelShape
from groundplane.errors import InvalidInput, Problem

GB = 10**9

CONTEXT_RESERVE = 0.05
"""Share of a card kept free for the driver's context and fragmentation. Our estimate."""


class Precision(StrEnum):
    FP32 = "fp32"
    TF32 = "tf32"
    BF16 = "bf16"
    FP16 = "fp16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"


BYTES_PER_WEIGHT: dict[Precision, float] = {
    Precision.FP32: 4,
    Precision.TF32: 4,  # TF32 is a way to multiply: weights stay FP32
    Precision.BF16: 2,
    Precision.FP16: 2,
    Precision.FP8: 1,
    Precision.INT8: 1,
    Precision.INT4: 0.5,
}


class Optimizer(StrEnum):
    ADAM = "adam"
    ADAM_8BIT = "adam-8bit"
    ADAFACTOR = "adafactor"
    SGD = "sgd"
    SGD_MOMENTUM = "sgd-momentum"


STATE_BYTES_PER_PARAM: dict[Optimizer, float] = {
    Optimizer.ADAM: 8,  # two moments in FP32
    Optimizer.ADAM_8BIT: 2,  # two moments in one byte each; their block constants are under 1 %
    Optimizer.ADAFACTOR: 0,  # a row and a column per matrix, counted apart
    Optimizer.SGD: 0,
    Optimizer.SGD_MOMENTUM: 4,
}


class Method(StrEnum):
    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


class Checkpointing(StrEnum):
    """What of the activations is kept for the backward pass: all (fused attention keeps no scores), or block inputs."""

    NONE = "none"
    FULL = "full"


# 4 bits, and 0.127 bits of doubly quantised block constants, per weight.
_NF4_BYTES = (4 + 0.127) / 8
_FEED_FORWARD = frozenset({"gate", "up", "down"})
_ADAPTER_BYTES = 16  # 16-bit weight and gradient, FP32 master copy and two FP32 moments


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A way to train. `batch` is sequences per card and step; `shards` cards share states as `zero` says (3 = FSDP).

    `master_weights` adds the FP32 copy of 16-bit weights that many frameworks keep.
    """

    precision: Precision = Precision.BF16
    optimizer: Optimizer = Optimizer.ADAM
    method: Method = Method.FULL
    batch: int = 1
    sequence: int = 2_048
    checkpointing: Checkpointing = Checkpointing.NONE
    fused_attention: bool = True
    master_weights: bool = False
    lora_rank: int = 16
    lora_targets: tuple[str, ...] = ("q", "v")
    zero: int = 0
    shards: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1

    @property
    def cards(self) -> int:
        return self.shards * self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A way to serve: `batch` sequences of `context` tokens at once; `headroom` is a share on top, kept free."""

    precision: Precision = Precision.BF16
    cache_precision: Precision = Precision.BF16
    batch: int = 1
    context: int = 4_096
    tensor_parallel: int = 1
    headroom: float = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One part of a sum: its bytes on one card, and the arithmetic."""

    name: str
    size_bytes: int
    formula: str

    def __str__(self) -> str:
        return f"{self.name}: {self.formula} = {gb(self.size_bytes)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizing:
    """Memory on each card. `notes` say what the sum assumes."""

    lines: tuple[Line, ...]
    cards: int
    notes: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        return sum(line.size_bytes for line in self.lines)

    def explain(self) -> tuple[str, ...]:
        """Each line, their sum, and the notes."""
        per = f" on each of {self.cards} cards" if self.cards > 1 else ""
        return (*map(str, self.lines), f"total: {gb(self.total_bytes)}{per}", *self.notes)

    def fits(self, card: Accelerator) -> bool:
        """Whether it fits the card with its reserve kept free."""
        return self.total_bytes <= usable_bytes(card)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One change that lowers the sum, and the sum it leads to."""

    what: str
    training: Training
    sizing: Sizing


def gb(count: float) -> str:
    """`14.00 GB`, `8.4 MB`, `70.3 kB`."""
    for unit, size, digits in (("GB", 10**9, 2), ("MB", 10**6, 1), ("kB", 10**3, 1)):
        if abs(count) >= size * 0.9995 or unit == "kB":
            return f"{count / size:,.{digits}f} {unit}"
    raise AssertionError("unreachable")


def usable_bytes(card: Accelerator) -> int:
    return int(card.memory_bytes * (1 - CONTEXT_RESERVE))


# ---------------------------------------------------------------- training


def training_memory(shape: ModelShape, training: Training) -> Sizing:
    """Weights, gradients, optimizer states and activations on each card. Raises InvalidInput when it can't be."""
    _check_training(shape, training)
    params = shape.params
    split = training.tensor_parallel * training.pipeline_parallel
    if training.method is Method.FULL:
        lines = _full_states(shape, training, params, split)
    else:
        lines = _adapter_states(shape, training, split)
    lines += [_activations(shape, training), _logits(shape, training)]
    if training.zero == 3 and training.shards > 1:
        lines.append(_gathered(shape, training))
    return Sizing(lines=tuple(lines), cards=training.cards, notes=_training_notes(shape, training))


def lora_params(shape: ModelShape, rank: int, targets: tuple[str, ...]) -> int:
    """Trainable parameters: rank × (inputs + outputs) of every adapted matrix, in every layer."""
    matrices = shape.linear_layers()
    unknown = [target for target in targets if target not in matrices]
    if unknown or not targets:
        have = ", ".join(unknown) or "nothing"
        raise InvalidInput(f"LoRA targets {have}", f"choose among {', '.join(matrices)}")
    copies = {name: shape.experts.count if shape.experts and name in _FEED_FORWARD else 1 for name in targets}
    return shape.layers * sum(rank * sum(matrices[name]) * copies[name] for name in targets)


def _full_states(shape: ModelShape, training: Training, params: int, split: int) -> list[Line]:
    weight = _trained_bytes(training.precision)
    shards = {stage: training.shards if training.zero >= stage else 1 for stage in (1, 2, 3)}
    lines = [
        _per_param("weights", params, weight, split * shards[3]),
        _per_param("gradients", params, weight, split * shards[2]),
    ]
    if training.master_weights and weight < 4:
        lines.append(_per_param("FP32 master weights", params, 4, split * shards[1]))
    if training.optimizer is Optimizer.ADAFACTOR:
        factors = lora_params(shape, 1, tuple(shape.linear_layers()))
        factors += shape.embedding_params // max(1, shape.hidden)
        lines.append(_per_param("Adafactor rows and columns", factors, 4, split * shards[1], "factors"))
    elif STATE_BYTES_PER_PARAM[training.optimizer]:
        state = STATE_BYTES_PER_PARAM[training.optimizer]
        lines.append(_per_param(f"{training.optimizer} states", params, state, split * shards[1]))
    return lines


def _adapter_states(shape: ModelShape, training: Training, split: int) -> list[Line]:
    """Frozen weights, sharded only by ZeRO-3, and small trained matrices with all their states."""
    base = split * (training.shards if training.zero == 3 else 1)
    lines: list[Line] = []
    if training.method is Method.QLORA:
        kept = min(shape.embedding_params, shape.params)
        lines.append(_per_param("frozen weights in 4 bits", shape.params - kept, _NF4_BYTES, base))
        lines.append(_per_param("embeddings in 16 bits", kept, 2, base))
    else:
        lines.append(_per_param("frozen weights", shape.params, BYTES_PER_WEIGHT[training.precision], base))
    trained = lora_params(shape, training.lora_rank, training.lora_targets)
    shards = training.shards if training.zero else 1
    lines.append(_per_param("adapters, gradients and states", trained, _ADAPTER_BYTES, split * shards, "trained"))
    return lines


def _activations(shape: ModelShape, training: Training) -> Line:
    """Korthikanti et al., equation 2 with tensor parallelism; scores are not kept by fused attention.

    A pipeline's first stage has as many micro-batches in flight as there are stages: their parts add up to all layers.
    """
    tokens, hidden, tp = training.batch * training.sequence, shape.hidden, training.tensor_parallel
    wide = 2 if _trained_bytes(training.precision) == 4 else 1
    token_bytes = (10 + 24 / tp) * hidden * wide
    formula = f"{10 + 24 / tp:g} × {hidden:,} hidden"
    if not training.fused_attention:
        token_bytes += 5 * shape.heads * training.sequence / tp * wide
        formula = f"({formula} + 5 × {shape.heads} heads × {training.sequence:,}{_over(tp)})"
    if wide == 2:
        formula += " × 2 for FP32"
    what = f"{training.batch} × {training.sequence:,} tokens"
    if training.checkpointing is Checkpointing.FULL:
        kept = 2 * hidden * wide * shape.layers
        size = ceil(tokens * (kept + token_bytes))
        formula = f"{what} × (2 × {hidden:,}{' × 2' if wide == 2 else ''} × {shape.layers} layers + {formula} for one)"
        return Line(name="activations, recomputed", size_bytes=size, formula=formula)
    size = ceil(tokens * token_bytes * shape.layers)
    return Line(name="activations", size_bytes=size, formula=f"{what} × {formula} × {shape.layers} layers")


def _logits(shape: ModelShape, training: Training) -> Line:
    """The loss is computed in FP32 over the whole vocabulary: logits and their gradient."""
    tokens, tp = training.batch * training.sequence, training.tensor_parallel
    size = ceil(tokens * shape.vocab * 6 / tp)
    formula = f"{tokens:,} tokens × {shape.vocab:,} words × (2 + 4) B{_over(tp)}"
    return Line(name="logits", size_bytes=size, formula=formula)


def _gathered(shape: ModelShape, training: Training) -> Line:
    """While one layer works, ZeRO-3 has fetched the next: two layers stand unsharded."""
    per_layer = (shape.params - min(shape.embedding_params, shape.params)) // shape.layers
    width = _NF4_BYTES if training.method is Method.QLORA else _trained_bytes(training.precision)
    return _per_param("two gathered layers", 2 * per_layer, width, training.tensor_parallel)


def _training_notes(shape: ModelShape, training: Training) -> tuple[str, ...]:
    notes: list[str] = []
    if training.method is Method.FULL and not training.master_weights and _trained_bytes(training.precision) < 4:
        extra = gb(4 * shape.params / training.cards)
        notes.append(
            f"a framework that keeps FP32 master weights needs {extra} more: mixed precision is 16 B a parameter"
        )
    if shape.estimated:
        notes.append("the shape is the usual one of its size; a config.json gives the exact one")
    if shape.experts is not None:
        notes.append("activations are those of a dense model of this width: an estimate for experts")
    return tuple(notes)


def _check_training(shape: ModelShape, training: Training) -> None:
    problems: list[Problem] = []
    for name in ("batch", "sequence", "lora_rank", "shards", "tensor_parallel", "pipeline_parallel"):
        if getattr(training, name) < 1:
            problems.append(Problem(field=name, message=f"must be at least 1, is {getattr(training, name)}"))
    if training.zero not in (0, 1, 2, 3):
        problems.append(Problem(field="zero", message=f"{training.zero} is no stage: 0, 1, 2 or 3 (FSDP is 3)"))
    if training.method is Method.FULL and training.precision in (Precision.INT8, Precision.INT4):
        hint = "weights in whole numbers have no gradients: choose qlora, or bf16"
        problems.append(Problem(field="precision", message=f"{training.precision} can't be trained", hint=hint))
    if shape.heads % training.tensor_parallel:
        message = f"{training.tensor_parallel} does not divide {shape.heads} heads"
        problems.append(Problem(field="tensor_parallel", message=message))
    if training.pipeline_parallel > shape.layers:
        message = f"{training.pipeline_parallel} stages for {shape.layers} layers"
        problems.append(Problem(field="pipeline_parallel", message=message))
    if problems:
        raise InvalidInput(str(problems[0]), problems[0].hint or "ground size --help", problems)


# ---------------------------------------------------------------- what would make it fit


def remedies(shape: ModelShape, training: Training, card: Accelerator, node_cards: int = 8) -> tuple[Remedy, ...]:
    """Ordered fixes for a run that does not fit its card, the least intrusive first, each with its own new sum."""
    changes: list[tuple[str, Callable[[Training], Training]]] = [
        ("batch 1, with accumulation", lambda t: replace(t, batch=1)),
        ("fused attention", lambda t: replace(t, fused_attention=True)),
        ("gradient checkpointing", lambda t: replace(t, checkpointing=Checkpointing.FULL)),
        (f"ZeRO-3 or FSDP over {node_cards} cards", lambda t: replace(t, zero=3, shards=max(t.shards, node_cards))),
        ("BF16 instead of FP32", lambda t: replace(t, precision=Precision.BF16) if _is_wide(t) else t),
        ("8-bit Adam", lambda t: replace(t, optimizer=Optimizer.ADAM_8BIT) if t.optimizer is Optimizer.ADAM else t),
        ("LoRA", lambda t: replace(t, method=Method.LORA) if t.method is Method.FULL else t),
        ("QLoRA", lambda t: replace(t, method=Method.QLORA)),
    ]
    found: list[Remedy] = []
    for what, change in changes:
        changed = change(training)
        if changed == training:
            continue
        sizing = training_memory(shape, changed)
        verdict = "fits" if sizing.fits(card) else "does not fit yet"
        text = f"{what}: {gb(sizing.total_bytes)}, {verdict} {card.name} ({gb(usable_bytes(card))} usable)"
        found.append(Remedy(what=text, training=changed, sizing=sizing))
    return tuple(found)


def cards_that_fit(sizing: Sizing, cards: tuple[Accelerator, ...]) -> tuple[Accelerator, ...]:
    """The cards that hold it, smallest first."""
    return tuple(sorted((c for c in cards if sizing.fits(c)), key=lambda card: (card.memory_bytes, card.id)))


def _is_wide(training: Training) -> bool:
    return training.precision in (Precision.FP32, Precision.TF32)


# ---------------------------------------------------------------- serving


def serving_memory(shape: ModelShape, serving: Serving) -> Sizing:
    """Weights, key-value cache and headroom on each card. Raises InvalidInput for what can't be served."""
    _check_serving(shape, serving)
    tp = serving.tensor_parallel
    weights = _per_param("weights", shape.params, BYTES_PER_WEIGHT[serving.precision], tp)
    cache = kv_cache(shape, serving)
    used = weights.size_bytes + cache.size_bytes
    headroom = Line(
        name="headroom",
        size_bytes=ceil(used * serving.headroom),
        formula=f"{serving.headroom:.0%} of {gb(used)} for activations, buffers and fragmentation",
    )
    notes = [f"CPU memory while loading: 2 × {gb(shape.params * BYTES_PER_WEIGHT[serving.precision])} of weights"]
    if shape.full_layers + shape.window_layers < shape.layers:
        rest = shape.layers - shape.full_layers - shape.window_layers
        notes.append(f"{rest} layers keep a state of constant size, which is not in the sum")
    return Sizing(lines=(weights, cache, headroom), cards=tp, notes=tuple(notes))


def kv_bytes_per_token(shape: ModelShape, precision: Precision = Precision.BF16, tensor_parallel: int = 1) -> int:
    """What one more token adds to one sequence's cache on each card, in the layers whose cache grows."""
    return ceil(shape.full_layers * _kv_numbers(shape, tensor_parallel) * BYTES_PER_WEIGHT[precision])


def kv_cache(shape: ModelShape, serving: Serving) -> Line:
    """The cache of `batch` sequences of `context` tokens on each card; window layers stop at their window."""
    numbers = _kv_numbers(shape, serving.tensor_parallel)
    width = BYTES_PER_WEIGHT[serving.cache_precision]
    windowed = min(serving.context, shape.window) if shape.window_layers else 0
    tokens = shape.full_layers * serving.context + shape.window_layers * windowed
    if shape.latent is not None:
        per = f"({shape.latent.kv_rank} + {shape.latent.rope_dim}) latent"
    else:
        heads = ceil(shape.kv_heads / serving.tensor_parallel)
        per = f"2 × {heads} KV heads × {shape.head_dim}"
    layers = f"{shape.full_layers} layers × {serving.context:,} tokens"
    if shape.window_layers:
        layers = f"({layers} + {shape.window_layers} layers × {windowed:,} in the window)"
    return Line(
        name="KV cache",
        size_bytes=ceil(serving.batch * tokens * numbers * width),
        formula=f"{serving.batch} sequences × {layers} × {per} × {width:g} B",
    )


def _kv_numbers(shape: ModelShape, tensor_parallel: int) -> int:
    """Numbers cached per token and layer. Heads are spread over cards but never split; a latent is on every card."""
    if shape.latent is not None:
        return shape.latent.kv_rank + shape.latent.rope_dim
    return 2 * ceil(shape.kv_heads / tensor_parallel) * shape.head_dim


def _check_serving(shape: ModelShape, serving: Serving) -> None:
    problems = [
        Problem(field=name, message=f"must be at least 1, is {getattr(serving, name)}")
        for name in ("batch", "context", "tensor_parallel")
        if getattr(serving, name) < 1
    ]
    if not 0 <= serving.headroom <= 1:
        problems.append(Problem(field="headroom", message=f"must be from 0 to 1, is {serving.headroom}"))
    if serving.context > shape.context and not shape.estimated:
        message = f"{serving.context:,} tokens; {shape.id} was built for {shape.context:,}"
        problems.append(Problem(field="context", message=message, hint=f"choose at most {shape.context}"))
    if problems:
        raise InvalidInput(str(problems[0]), problems[0].hint or "ground size --help", problems)


# ---------------------------------------------------------------- parts


def _per_param(name: str, count: int, width: float, split: int, what: str = "parameters") -> Line:
    formula = f"{_count(count)} {what} × {width:.4g} B{_over(split)}"
    return Line(name=name, size_bytes=ceil(count * width / split), formula=formula)


def _trained_bytes(precision: Precision) -> float:
    """Bytes of a weight that is trained: FP8 multiplies in 8 bits, and keeps weights and gradients in 16."""
    return 4 if precision in (Precision.FP32, Precision.TF32) else 2


def _count(count: int) -> str:
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count)


def _over(split: int) -> str:
    return f" ÷ {split}" if split > 1 else ""


def parse_params(text: str) -> int:
    """`7B`, `350M`, `1.1b`, `7000000000` → a number of parameters. Raises InvalidInput."""
    units: Mapping[str, int] = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
    cleaned = text.strip().upper().replace(",", "")
    digits, unit = (cleaned[:-1], cleaned[-1]) if cleaned[-1:] in units and cleaned[-1:] else (cleaned, "")
    if not digits.replace(".", "", 1).isdecimal() or len(digits) > 20:
        raise InvalidInput(f"{text!r} is no number of parameters", "write it like 7B or 350M")
    return round(float(digits) * units[unit])
