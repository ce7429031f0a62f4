"""A language model's shape: what memory and compute sums are made from, and where it can be read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from groundplane.errors import InvalidInput, Problem

# These families have two matrices in their feed-forward block; all newer ones have a gate as a third.
_UNGATED = frozenset({"gpt2", "gpt_neox", "gptj", "opt", "bloom", "phi", "falcon", "mpt", "starcoder2", "gpt_bigcode"})
# A config leaves out what its class has as default: these classes tie input and output embeddings.
_TIED = frozenset({"gpt2", "opt", "bloom", "gemma", "gemma2", "gemma3", "gemma3_text", "mpt", "gpt_bigcode", "falcon"})
_NAMES: dict[str, tuple[str, ...]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocab": ("vocab_size",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """Mixture of experts: `count` per layer of which `active` work on a token, each `intermediate` wide."""

    count: int
    active: int
    intermediate: int
    shared: int = 0
    dense_layers: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention: the cache keeps `kv_rank + rope_dim` numbers per layer, for all heads together."""

    kv_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int
    query_rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """`params` in all, `active_params` for one token. The cache of `full_layers` grows with the context; that of
    `window_layers` stops at `window` tokens; other layers (linear attention) keep a state of constant size.
    """

    id: str
    hf_id: str = ""
    params: int
    active_params: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    context: int
    dtype: str
    tied_embeddings: bool
    gated: bool = True
    full_layers: int
    window: int = 0
    window_layers: int = 0
    experts: Experts | None = None
    latent: LatentAttention | None = None
    license: str = ""
    estimated: bool = False
    as_of: str = ""
    sources: tuple[str, ...] = ()

    @property
    def embedding_params(self) -> int:
        """Input and output embeddings; one matrix when they are tied."""
        return self.vocab * self.hidden * (1 if self.tied_embeddings else 2)

    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """One layer's matrices (one expert's) as (inputs, outputs): what LoRA adapts and Adafactor factors."""
        heads, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        wide = self.experts.intermediate if self.experts else self.intermediate
        matrices = {
            "q": (self.hidden, heads),
            "k": (self.hidden, kv),
            "v": (self.hidden, kv),
            "o": (heads, self.hidden),
        }
        if self.gated:
            matrices["gate"] = (self.hidden, wide)
        return {**matrices, "up": (self.hidden, wide), "down": (wide, self.hidden)}


def count_params(shape: ModelShape) -> tuple[int, int]:
    """(All, active for one token) parameters from the shape; norms and biases, under 0.1 %, are left out."""
    matrices = 3 if shape.gated else 2
    dense = matrices * shape.hidden * shape.intermediate
    attention = _attention_params(shape) * shape.layers
    if shape.experts is None:
        total = attention + dense * shape.layers + shape.embedding_params
        return total, total
    moe = shape.experts
    sparse_layers = shape.layers - moe.dense_layers
    one = matrices * shape.hidden * moe.intermediate
    router = shape.hidden * moe.count
    common = attention + dense * moe.dense_layers + shape.embedding_params + (router + one * moe.shared) * sparse_layers
    return common + one * moe.count * sparse_layers, common + one * moe.active * sparse_layers


def _attention_params(shape: ModelShape) -> int:
    if shape.latent is None:
        return shape.hidden * shape.head_dim * 2 * (shape.heads + shape.kv_heads)
    mla = shape.latent
    query_out = shape.heads * (mla.nope_dim + mla.rope_dim)
    query = (shape.hidden + query_out) * mla.query_rank if mla.query_rank else shape.hidden * query_out
    keys_values = shape.hidden * (mla.kv_rank + mla.rope_dim) + mla.kv_rank * shape.heads * (
        mla.nope_dim + mla.value_dim
    )
    return query + keys_values + shape.heads * mla.value_dim * shape.hidden


def typical_shape(params: int, *, name: str = "") -> ModelShape:
    """A plain parameter count → the usual shape of a dense model of that size (hidden = 128 × layers). Estimated.

    Raises InvalidInput below a million or above ten trillion parameters.
    """
    if not 10**6 <= params <= 10**13:
        raise InvalidInput(f"{params:,} parameters is no size of a language model", "write it like 7B or 350M")
    # 12 × layers × hidden² parameters with hidden = 128 × layers, as in the Llama and GPT-3 families, then the
    # embeddings taken off and both rounded to what is built: 7B gives 32 layers of 4,096.
    layers = max(2, round((params / (12 * 128**2)) ** (1 / 3)))
    layers = 8 * round(layers / 8) if layers >= 12 else layers
    hidden = math.sqrt(max(params - 64_000 * 128 * layers, params // 2) / (12 * layers))
    step = 256 if hidden >= 1024 else 64
    hidden = max(step, step * round(hidden / step))
    heads = max(1, hidden // 128)
    return ModelShape(
        id=name or f"{params / 1e9:g}B parameters",
        params=params,
        active_params=params,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=round(hidden * 8 / 3),
        vocab=32_000,
        context=4_096,
        dtype="bfloat16",
        tied_embeddings=False,
        full_layers=layers,
        estimated=True,
    )


def shape_from_config(config: Mapping[str, Any], *, name: str = "config.json") -> ModelShape:
    """A Hugging Face `config.json` → its shape. Raises InvalidInput naming every field that is missing or no number."""
    inner = config.get("text_config")
    text: Mapping[str, Any] = {**config, **inner} if isinstance(inner, Mapping) else config
    problems: list[Problem] = []
    read = {field: _number(text, keys, problems) for field, keys in _NAMES.items()}
    if problems:
        raise InvalidInput(f"{name}: {problems[0]}", "this needs the config.json of a language model", problems)
    layers, hidden, heads, vocab = read["layers"], read["hidden"], read["heads"], read["vocab"]
    kind = str(text.get("model_type", ""))
    head_dim = _optional(text, "head_dim") or hidden // heads
    full, window, window_layers = _attention_layers(text, layers)
    shape = ModelShape(
        id=name,
        params=0,
        active_params=0,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(text, heads),
        head_dim=head_dim,
        intermediate=_optional(text, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden,
        vocab=vocab,
        context=_optional(text, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length") or 2_048,
        dtype=str(text.get("torch_dtype") or text.get("dtype") or "float16"),
        tied_embeddings=bool(text.get("tie_word_embeddings", kind in _TIED)),
        gated=kind not in _UNGATED,
        full_layers=full,
        window=window,
        window_layers=window_layers,
        experts=_experts(text),
        latent=_latent(text, head_dim),
    )
    total, active = count_params(shape)
    return replace(shape, params=total, active_params=active)


def _kv_heads(text: Mapping[str, Any], heads: int) -> int:
    if text.get("multi_query") is True and not text.get("new_decoder_architecture"):
        return 1
    return _optional(text, "num_key_value_heads", "num_kv_heads", "n_head_kv") or heads


def _attention_layers(text: Mapping[str, Any], layers: int) -> tuple[int, int, int]:
    """(Layers with unbounded attention, window in tokens, layers with that window)."""
    window = _optional(text, "sliding_window", "attention_chunk_size") or 0
    kinds = text.get("layer_types")
    if isinstance(kinds, list) and kinds:
        full = sum(kind == "full_attention" for kind in kinds)
        windowed = sum(kind in {"sliding_attention", "chunked_attention"} for kind in kinds)
        return full, window if windowed else 0, windowed
    pattern = _optional(text, "sliding_window_pattern")
    if window and pattern:
        return layers // pattern, window, layers - layers // pattern
    if window and text.get("model_type") == "gemma2":
        return layers // 2, window, layers - layers // 2
    if window and text.get("use_sliding_window", True) and text.get("model_type") not in {"qwen2", "qwen3"}:
        return 0, window, layers
    return layers, 0, 0


def _experts(text: Mapping[str, Any]) -> Experts | None:
    count = _optional(text, "num_local_experts", "num_experts", "n_routed_experts")
    if not count:
        return None
    return Experts(
        count=count,
        active=_optional(text, "num_experts_per_tok", "num_experts_per_token", "moe_topk") or 1,
        intermediate=_optional(text, "moe_intermediate_size", "intermediate_size") or 0,
        shared=_optional(text, "n_shared_experts") or 0,
        dense_layers=_optional(text, "first_k_dense_replace") or 0,
    )


def _latent(text: Mapping[str, Any], head_dim: int) -> LatentAttention | None:
    rank = _optional(text, "kv_lora_rank")
    if not rank:
        return None
    return LatentAttention(
        kv_rank=rank,
        rope_dim=_optional(text, "qk_rope_head_dim") or 0,
        nope_dim=_optional(text, "qk_nope_head_dim") or head_dim,
        value_dim=_optional(text, "v_head_dim") or head_dim,
        query_rank=_optional(text, "q_lora_rank") or 0,
    )


def _number(text: Mapping[str, Any], keys: tuple[str, ...], problems: list[Problem]) -> int:
    found = _optional(text, *keys)
    if found is None or found < 1:
        known = next((text[key] for key in keys if text.get(key) is not None), None)
        message = "is missing" if known is None else f"{known!r} is no whole number above 0"
        problems.append(Problem(field=keys[0], message=message))
        return 1
    return found


def _optional(text: Mapping[str, Any], *keys: str) -> int | None:
    for key in keys:
        value = text.get(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
