"""A Llama-architecture language model in JAX: parameters under their Hugging Face names, in their Hugging Face shapes.

Keeping the names and the [out, in] orientation of `LlamaForCausalLM` means that saving the parameters *is* the
export: nothing is renamed or transposed between the trainer and the engine that serves the model.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, jax.Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The model's sizes. `context` is the longest sequence in tokens, in training and when served."""

    vocab: int = 1024
    width: int = 192
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    ffn: int = 512
    context: int = 256
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


def init(shape: Shape, seed: int) -> Params:
    """Fresh float32 parameters: normal(0, 0.02), output projections scaled down by depth as in GPT-2; norms are 1."""
    rng = np.random.default_rng(seed)
    kv_width = shape.kv_heads * shape.head_dim
    deep = 0.02 / np.sqrt(2 * shape.layers)

    def normal(rows: int, columns: int, scale: float = 0.02) -> jax.Array:
        return jnp.asarray(rng.normal(0.0, scale, (rows, columns)).astype(np.float32))

    params = {"model.embed_tokens.weight": normal(shape.vocab, shape.width)}
    for index in range(shape.layers):
        at = f"model.layers.{index}."
        params[at + "input_layernorm.weight"] = jnp.ones(shape.width)
        params[at + "self_attn.q_proj.weight"] = normal(shape.width, shape.width)
        params[at + "self_attn.k_proj.weight"] = normal(kv_width, shape.width)
        params[at + "self_attn.v_proj.weight"] = normal(kv_width, shape.width)
        params[at + "self_attn.o_proj.weight"] = normal(shape.width, shape.width, deep)
        params[at + "post_attention_layernorm.weight"] = jnp.ones(shape.width)
        params[at + "mlp.gate_proj.weight"] = normal(shape.ffn, shape.width)
        params[at + "mlp.up_proj.weight"] = normal(shape.ffn, shape.width)
        params[at + "mlp.down_proj.weight"] = normal(shape.width, shape.ffn, deep)
    params["model.norm.weight"] = jnp.ones(shape.width)
    params["lm_head.weight"] = normal(shape.vocab, shape.width)
    return params


def _rms_norm(x: jax.Array, gain: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * gain


def _rope_tables(shape: Shape, length: int) -> tuple[jax.Array, jax.Array]:
    """cos and sin, [length, head_dim]: frequencies repeated in halves, the convention of Hugging Face's Llama."""
    inverse = 1.0 / shape.rope_theta ** (np.arange(0, shape.head_dim, 2) / shape.head_dim)
    angles = np.outer(np.arange(length), inverse)
    angles = np.concatenate([angles, angles], axis=-1).astype(np.float32)
    return jnp.asarray(np.cos(angles)), jnp.asarray(np.sin(angles))


def _rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """x: [batch, length, heads, head_dim]; pairs dimension i with i + head_dim/2 ("rotate half")."""
    first, second = jnp.split(x, 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    return x * cos[:, None, :] + turned * sin[:, None, :]


def _attention(x: jax.Array, params: Params, at: str, shape: Shape) -> jax.Array:
    """Causal grouped-query attention; x: [batch, length, width]."""
    batch, length, _ = x.shape
    cos, sin = _rope_tables(shape, length)

    group = shape.heads // shape.kv_heads

    def heads(name: str, count: int) -> jax.Array:
        return (x @ params[f"{at}{name}.weight"].T).reshape(batch, length, count, shape.head_dim)

    queries = _rotate(heads("q_proj", shape.heads), cos, sin).transpose(0, 2, 1, 3)
    # Query head h reads key/value head h // group. Copying those is faster on a CPU than contracting over groups.
    keys = jnp.repeat(_rotate(heads("k_proj", shape.kv_heads), cos, sin), group, axis=2).transpose(0, 2, 1, 3)
    values = jnp.repeat(heads("v_proj", shape.kv_heads), group, axis=2).transpose(0, 2, 1, 3)
    scores = queries @ keys.swapaxes(-1, -2) / np.sqrt(shape.head_dim)
    visible = np.tril(np.ones((length, length), dtype=bool))
    weights = jax.nn.softmax(jnp.where(visible, scores, -1e9), axis=-1)
    mixed = (weights @ values).transpose(0, 2, 1, 3).reshape(batch, length, shape.width)
    return mixed @ params[at + "o_proj.weight"].T


def forward(params: Params, tokens: jax.Array, shape: Shape) -> jax.Array:
    """Next-token logits [batch, length, vocab] for token ids [batch, length]."""
    x = params["model.embed_tokens.weight"][tokens]
    for index in range(shape.layers):
        at = f"model.layers.{index}."
        normed = _rms_norm(x, params[at + "input_layernorm.weight"], shape.norm_eps)
        x = x + _attention(normed, params, at + "self_attn.", shape)
        normed = _rms_norm(x, params[at + "post_attention_layernorm.weight"], shape.norm_eps)
        gate = jax.nn.silu(normed @ params[at + "mlp.gate_proj.weight"].T)
        up = normed @ params[at + "mlp.up_proj.weight"].T
        x = x + (gate * up) @ params[at + "mlp.down_proj.weight"].T
    x = _rms_norm(x, params["model.norm.weight"], shape.norm_eps)
    return x @ params["lm_head.weight"].T


def loss(params: Params, tokens: jax.Array, shape: Shape) -> jax.Array:
    """Mean cross-entropy in nats per token; tokens: [batch, length + 1]."""
    logits = forward(params, tokens[:, :-1], shape)
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)
    return -jnp.mean(picked)


def hf_config(shape: Shape, bos: int, eos: int) -> dict[str, object]:
    """The `config.json` that makes `LlamaForCausalLM` build exactly this model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab,
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }
