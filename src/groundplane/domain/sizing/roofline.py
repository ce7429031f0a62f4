"""How fast it can go: operations and bytes against what the card can do, and the share of that which is reached.

A step takes as long as the slower of its arithmetic and its memory traffic (Williams et al., Roofline, 2009). Training
takes 6 operations per parameter and token (Kaplan et al., 2020): 2 forward, 4 back; frozen weights spare 2 of those 4;
recomputing activations adds 2. The shares reached are rows of the catalogue, with their sources.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from groundplane.domain.hardware import Accelerator
from groundplane.domain.sizing.memory import (
    BYTES_PER_WEIGHT,
    Checkpointing,
    Method,
    Precision,
    Serving,
    Training,
    gb,
    kv_cache,
    training_memory,
)
from groundplane.domain.sizing.model_shape import ModelShape
from groundplane.domain.sizing.parallelism import Fabric, serving_traffic, training_traffic
from groundplane.errors import InvalidInput

ALL_REDUCE_LATENCY_S = 10e-6
"""A small message between two cards. Source: catalogue, network_links, p2p-latency (about 10 us, unofficial there)."""

MICRO_BATCHES_PER_STAGE = 4
"""How many micro-batches a pipeline is assumed to be fed per stage: its bubble is then under a fifth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """The share of a card's peak that work of one kind reaches: seldom under `low`, seldom over `high`."""

    id: str
    low: float
    high: float
    meaning: str
    as_of: str
    sources: tuple[str, ...]
    estimated: bool

    @property
    def expected(self) -> float:
        return (self.low + self.high) / 2

    def __str__(self) -> str:
        return f"{self.low:.0%} to {self.high:.0%} {self.meaning}"


EPOCHS_MAX = 10**6

_READ_ONLY = frozenset({"weights", "frozen weights", "frozen weights in 4 bits", "two gathered layers"})

Efficiencies = Mapping[str, Efficiency]
"""By id: training-compute, prefill-compute, decode-bandwidth, link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Seconds: at the high efficiency, at the middle, at the low one."""

    best_s: float
    expected_s: float
    worst_s: float

    def times(self, count: float) -> Span:
        """So many of them, one after another."""
        return Span(best_s=self.best_s * count, expected_s=self.expected_s * count, worst_s=self.worst_s * count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Tokens a second, over all cards: in the worst case, expected, at best."""

    worst: float
    expected: float
    best: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number of an estimate and the arithmetic behind it."""

    name: str
    formula: str

    def __str__(self) -> str:
        return f"{self.name}: {self.formula}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Time and throughput. `bound` is what limits a step: compute, memory or network.

    Training: `step` is one optimizer step, `total` the whole run where the data set's size is known. Serving: `step` is
    one token of every sequence, `first_token` the time to the first token of one prompt.
    """

    step: Span
    tokens_per_s: Rate
    bound: str
    figures: tuple[Figure, ...]
    total: Span | None = None
    steps: int = 0
    first_token: Span | None = None
    notes: tuple[str, ...] = ()


def has_peak(card: Accelerator) -> bool:
    """Whether the catalogue says how fast the card multiplies in 16 bits: without that there is no time to tell."""
    return bool(card.dense_tflops.get("bf16") or card.dense_tflops.get("fp16"))


def peak_flops(card: Accelerator, precision: Precision) -> tuple[float, str]:
    """Dense operations a second in that precision, and a note where the card has no such unit.

    Raises InvalidInput when the catalogue has no figure to start from.
    """
    rates = card.dense_tflops
    half = rates.get("bf16") or rates.get("fp16") or 0.0
    if not has_peak(card):
        raise InvalidInput(
            f"{card.name} has no dense_tflops in the catalogue",
            f"add it to {card.id} in $GROUND_HOME/catalog/accelerators.yaml",
        )
    if precision in (Precision.FP32, Precision.TF32):
        return half * 1e12 / 2, f"TF32 multiplies at half the 16-bit rate; plain FP32 on {card.name} is slower still"
    if precision is Precision.FP8:
        if "fp8" in rates:
            return rates["fp8"] * 1e12, ""
        return half * 1e12, f"{card.name} has no FP8 unit: weights are kept in 8 bits, multiplied in 16"
    if precision in (Precision.INT8, Precision.INT4):
        return half * 1e12, f"weights in {precision} are unpacked and multiplied in 16 bits"
    if precision is Precision.BF16 and "bf16" not in rates:
        return half * 1e12, f"{card.name} has no BF16 unit: the figure is FP16's"
    return half * 1e12, ""


# ---------------------------------------------------------------- training


def training_flops_per_token(shape: ModelShape, training: Training) -> tuple[float, str]:
    """Operations for one trained token, and the arithmetic. Attention counts a causal mask: half of all pairs."""
    weights = 6 if training.method is Method.FULL else 4
    passes = 3
    if training.checkpointing is Checkpointing.FULL:
        weights, passes = weights + 2, passes + 1
    attention = 2 * shape.layers * training.sequence * shape.heads * shape.head_dim
    flops = weights * shape.active_params + passes * attention
    formula = (
        f"{weights} × {shape.active_params / 1e9:.4g}B parameters + {passes} × 2 × {shape.layers} layers × "
        f"{training.sequence:,} × {shape.heads * shape.head_dim:,} = {flops / 1e9:,.1f} GFLOP"
    )
    return float(flops), formula


def estimate_training(
    shape: ModelShape,
    training: Training,
    card: Accelerator,
    fabric: Fabric,
    efficiencies: Efficiencies,
    *,
    dataset_tokens: int = 0,
    epochs: float = 1.0,
) -> Estimate:
    """Time of a step, tokens a second over all cards, and the whole run where `dataset_tokens` is given.

    At best the traffic between cards hides behind the work; in the worst case it does not overlap at all.
    """
    if dataset_tokens < 0 or not 0 < epochs <= EPOCHS_MAX:
        raise InvalidInput(f"{dataset_tokens:,} tokens × {epochs:g} epochs is no amount of data", "give both above 0")
    compute, link = efficiencies["training-compute"], efficiencies["link"]
    bandwidth = efficiencies["decode-bandwidth"]
    peak, note = peak_flops(card, training.precision)
    per_token, per_token_formula = training_flops_per_token(shape, training)
    split = training.tensor_parallel * training.pipeline_parallel
    tokens = training.batch * training.sequence
    bubble = _bubble(training.pipeline_parallel)
    flops = per_token * tokens / split * bubble
    moved = _moved_bytes(shape, training)
    sent = [(each, fabric.link(each.span)) for each in training_traffic(shape, training)]
    sent_s = sum(each.size_bytes / path.bytes_per_s for each, path in sent)
    work = {name: flops / peak / share for name, share in _shares(compute).items()}
    memory = {name: moved / card.bandwidth_bytes_per_s / share for name, share in _shares(bandwidth).items()}
    network = {name: sent_s / share for name, share in _shares(link).items()}
    local = {name: max(work[name], memory[name]) for name in work}
    step = Span(
        best_s=max(local["best"], network["best"]),
        expected_s=max(local["expected"], network["expected"]),
        worst_s=local["worst"] + network["worst"],
    )
    bound = max((("compute", work), ("memory", memory), ("network", network)), key=lambda item: item[1]["expected"])[0]
    batch_tokens = tokens * training.shards
    total, steps = None, 0
    if dataset_tokens:
        steps = max(1, -(-round(dataset_tokens * epochs) // batch_tokens))
        total = step.times(steps)
    arithmetic = (
        f"{per_token / 1e9:,.1f} GFLOP × {tokens:,} tokens{f' ÷ {split}' if split > 1 else ''}"
        f"{f' × {bubble:.2f} for the pipeline bubble' if bubble > 1 else ''} ÷ {peak / 1e12:g} TFLOP/s ÷ "
        f"({compute}) = {_both(work)}"
    )
    traffic = f"{gb(moved)} ÷ {card.bandwidth_bytes_per_s / 1e9:,.0f} GB/s ÷ ({bandwidth}) = {_both(memory)}"
    figures = [
        Figure(name="work per token", formula=per_token_formula),
        Figure(name="arithmetic per step and card", formula=arithmetic),
        Figure(name="memory traffic per step and card", formula=traffic),
        *(
            Figure(name=f"{each.axis} traffic per step and card", formula=f"{each.formula} over {path} at {link}")
            for each, path in sent
        ),
        Figure(name="tokens per step", formula=f"{tokens:,} × {training.shards} replicas = {batch_tokens:,}"),
    ]
    if total is not None:
        amount = f"{dataset_tokens:,} tokens × {epochs:g} epochs ÷ {batch_tokens:,} = {steps:,} steps"
        figures.append(Figure(name="whole run", formula=f"{amount} × {words(step)} = {words(total)}"))
    return Estimate(
        step=step,
        tokens_per_s=_rate(batch_tokens, step),
        bound=bound,
        figures=tuple(figures),
        total=total,
        steps=steps,
        notes=_notes(note, (compute, bandwidth, link) if sent else (compute, bandwidth)),
    )


def _bubble(stages: int) -> float:
    """A pipeline of p stages fed m micro-batches takes (m + p - 1) / m of the time without one."""
    batches = MICRO_BATCHES_PER_STAGE * stages
    return (batches + stages - 1) / batches


def _moved_bytes(shape: ModelShape, training: Training) -> int:
    """Weights are read in each pass; gradients, states and activations are written once and read once."""
    split = training.tensor_parallel * training.pipeline_parallel
    passes = 3 if training.checkpointing is Checkpointing.FULL else 2
    if training.method is Method.QLORA:
        width = BYTES_PER_WEIGHT[Precision.INT4]
    else:
        width = 4 if training.precision in (Precision.FP32, Precision.TF32) else 2
    weights = passes * shape.active_params * width / split
    lines = training_memory(shape, training).lines
    kept = sum(line.size_bytes for line in lines if line.name not in _READ_ONLY)
    return round(weights + 2 * kept)


# ---------------------------------------------------------------- serving


def estimate_serving(
    shape: ModelShape,
    serving: Serving,
    card: Accelerator,
    fabric: Fabric,
    efficiencies: Efficiencies,
    *,
    prompt_tokens: int = 0,
) -> Estimate:
    """One replica with every place of its batch taken: time per token, tokens a second, time to the first token.

    `prompt_tokens` 0 takes the whole context as the prompt.
    """
    prompt = prompt_tokens or serving.context
    compute, bandwidth = efficiencies["prefill-compute"], efficiencies["decode-bandwidth"]
    peak, note = peak_flops(card, serving.precision)
    group = serving.tensor_parallel
    weights, weights_words = _weights_read(shape, serving)
    cache = kv_cache(shape, serving).size_bytes
    decode_flops = 2 * shape.active_params * serving.batch / group
    memory = {n: (weights + cache) / card.bandwidth_bytes_per_s / s for n, s in _shares(bandwidth).items()}
    work = {n: decode_flops / peak / s for n, s in _shares(compute).items()}
    sent = _sent(shape, serving, fabric, efficiencies["link"], serving.batch)
    step = _spanned({n: max(memory[n], work[n]) + sent[n] for n in work})
    prefill_flops = _prefill_flops(shape, prompt) / group
    prefill = {n: prefill_flops / peak / s for n, s in _shares(compute).items()}
    ahead = _sent(shape, serving, fabric, efficiencies["link"], prompt)
    once = {n: weights / card.bandwidth_bytes_per_s / s for n, s in _shares(bandwidth).items()}
    first = _spanned({n: max(prefill[n], once[n]) + ahead[n] for n in prefill})
    bound = max((("compute", work), ("memory", memory), ("network", sent)), key=lambda item: item[1]["expected"])[0]
    figures = [
        Figure(
            name="read per token step and card",
            formula=f"weights {weights_words} + cache {gb(cache)} = {gb(weights + cache)} ÷ "
            f"{card.bandwidth_bytes_per_s / 1e9:,.0f} GB/s ÷ ({bandwidth}) = {_both(memory)}",
        ),
        Figure(
            name="arithmetic per token step and card",
            formula=f"2 × {shape.active_params / 1e9:.4g}B parameters × {serving.batch} sequences"
            f"{f' ÷ {group}' if group > 1 else ''} ÷ {peak / 1e12:g} TFLOP/s ÷ ({compute}) = {_both(work)}",
        ),
        Figure(
            name="prompt per card",
            formula=f"{prefill_flops / 1e12:,.2f} TFLOP for {prompt:,} tokens ÷ {peak / 1e12:g} TFLOP/s ÷ ({compute})"
            f" = {_both(prefill)}",
        ),
    ]
    if group > 1:
        figures.append(
            Figure(
                name="tensor traffic per token step",
                formula=f"2 × {shape.layers} all-reduces × {ALL_REDUCE_LATENCY_S * 1e6:g} µs and their bytes over "
                f"{fabric.link(group)} = {_both(sent)}",
            )
        )
    return Estimate(
        step=step,
        tokens_per_s=_rate(serving.batch, step),
        bound=bound,
        figures=tuple(figures),
        first_token=first,
        notes=_notes(note, (compute, bandwidth)),
    )


def _weights_read(shape: ModelShape, serving: Serving) -> tuple[float, str]:
    """Bytes of weights that one token step reads on each card: of experts, those that the batch may need."""
    width = BYTES_PER_WEIGHT[serving.precision]
    read = shape.params
    if shape.experts is not None:
        read = min(shape.params, shape.active_params * serving.batch)
    size = read * width / serving.tensor_parallel
    over = f" ÷ {serving.tensor_parallel}" if serving.tensor_parallel > 1 else ""
    return size, f"{read / 1e9:.4g}B × {width:g} B{over}"


def _prefill_flops(shape: ModelShape, tokens: int) -> float:
    attention = 2 * shape.layers * tokens * shape.heads * shape.head_dim
    return float(tokens * (2 * shape.active_params + attention))


def _sent(shape: ModelShape, serving: Serving, fabric: Fabric, link: Efficiency, tokens: int) -> dict[str, float]:
    """Seconds of tensor parallelism's all-reduces; none of them overlaps with work."""
    traffic = serving_traffic(shape, serving, tokens)
    if traffic is None:
        return {"best": 0.0, "expected": 0.0, "worst": 0.0}
    waits = 2 * shape.layers * ALL_REDUCE_LATENCY_S
    rate = fabric.link(traffic.span).bytes_per_s
    return {name: traffic.size_bytes / rate / share + waits for name, share in _shares(link).items()}


# ---------------------------------------------------------------- parts


def words(span: Span) -> str:
    """`2.1 h to 3.4 h`: at best and in the worst case."""
    return f"{duration(span.best_s)} to {duration(span.worst_s)}"


def duration(seconds: float) -> str:
    """`42 ms`, `3.10 s`, `12.4 min`, `9.26 h`, `31.0 days`."""
    for unit, size in (("days", 172_800), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / (86_400 if unit == 'days' else size):,.2f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.2f} ms"


def _shares(efficiency: Efficiency) -> dict[str, float]:
    return {"best": efficiency.high, "expected": efficiency.expected, "worst": efficiency.low}


def _both(times: Mapping[str, float]) -> str:
    return f"{duration(times['best'])} to {duration(times['worst'])}"


def _spanned(times: Mapping[str, float]) -> Span:
    return Span(best_s=times["best"], expected_s=times["expected"], worst_s=times["worst"])


def _rate(tokens: int, step: Span) -> Rate:
    return Rate(worst=tokens / step.worst_s, expected=tokens / step.expected_s, best=tokens / step.best_s)


def _notes(note: str, used: tuple[Efficiency, ...]) -> tuple[str, ...]:
    said = [note] if note else []
    for each in used:
        guess = ", estimated" if each.estimated else ""
        said.append(f"{each.id}: {each} (as of {each.as_of}, {', '.join(each.sources)}{guess})")
    return tuple(said)
