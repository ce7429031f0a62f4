"""From a Hugging Face Llama folder to a CTranslate2 model, without torch or transformers.

CTranslate2's own converter loads the model through transformers first (over 1 GB of packages). The layout it fills is
public and small, so it is filled here straight from the safetensors files. What this engine would compute wrongly is
refused by name instead of converted.
Source: ctranslate2 4.8 `converters/transformers.py`, class LlamaLoader.
Only ever imported inside the engine process: it needs the `engine` extra.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import common_spec, transformer_spec  # type: ignore[import-untyped]
from safetensors import SafetensorError, deserialize

from groundplane.errors import InvalidInput

CONVERTER_REVISION = 1
"""Raised when the converted layout changes, so that an old cache is not reused."""

_INDEX = "model.safetensors.index.json"
_READY = "converted.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """What of `config.json` decides the computation. `context` is in tokens."""

    vocab: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    rope_theta: float
    norm_eps: float
    tied: bool


def read_config(model_dir: Path) -> LlamaConfig:
    """Raises InvalidInput when the file is missing, unreadable, or describes what this engine can't compute."""
    raw = _read_json(model_dir / "config.json")
    if raw.get("architectures") != ["LlamaForCausalLM"]:
        raise InvalidInput(
            f"{model_dir.name}: architecture {raw.get('architectures')} is not LlamaForCausalLM",
            "serve it with another engine",
        )
    # Newer writers nest the rotary settings; both spellings are in use.
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    unsupported = {
        "hidden_act": (raw.get("hidden_act", "silu"), "silu"),
        "rope_type": (kind, "default"),
        "attention_bias": (raw.get("attention_bias", False), False),
        "mlp_bias": (raw.get("mlp_bias", False), False),
        "quantization_config": (raw.get("quantization_config"), None),
    }
    for field, (have, need) in unsupported.items():
        if have != need:
            raise InvalidInput(f"{model_dir.name}: {field} is {have!r}, this engine computes only {need!r}")
    try:
        heads, width = int(raw["num_attention_heads"]), int(raw["hidden_size"])
        config = LlamaConfig(
            vocab=int(raw["vocab_size"]),
            layers=int(raw["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(raw.get("num_key_value_heads") or heads),
            context=int(raw["max_position_embeddings"]),
            rope_theta=float(rope.get("rope_theta", raw.get("rope_theta", 10_000.0))),
            norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
            tied=bool(raw.get("tie_word_embeddings", False)),
        )
    except KeyError as missing:
        raise InvalidInput(f"{model_dir.name}/config.json lacks {missing}") from None
    head_dim = raw.get("head_dim") or width // heads
    if head_dim * heads != width:
        raise InvalidInput(f"{model_dir.name}: head_dim {head_dim} × {heads} heads is not hidden_size {width}")
    return config


def read_tensors(model_dir: Path) -> dict[str, np.ndarray]:
    """Every tensor of the folder as float32, from one safetensors file or an index of several. Raises InvalidInput."""
    index = model_dir / _INDEX
    names = sorted(set(_read_json(index)["weight_map"].values())) if index.exists() else ["model.safetensors"]
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        try:
            parts = deserialize((model_dir / name).read_bytes())  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            raise InvalidInput(f"{model_dir.name}: {name} is missing") from None
        except SafetensorError as error:
            raise InvalidInput(f"{model_dir.name}/{name} is not a safetensors file: {error}") from None
        for key, part in parts:
            tensors[key] = _as_float32(key, part)
    return tensors


def _as_float32(name: str, part: dict[str, Any]) -> np.ndarray:
    data, shape = part["data"], part["shape"]
    match part["dtype"]:
        case "F32":
            values = np.frombuffer(data, dtype=np.float32)
        case "F16":
            values = np.frombuffer(data, dtype=np.float16).astype(np.float32)
        case "BF16":
            # bfloat16 is the upper half of a float32; numpy has no type for it.
            values = (np.frombuffer(data, dtype=np.uint16).astype(np.uint32) << 16).view(np.float32)
        case other:
            raise InvalidInput(f"tensor {name} is stored as {other}; this engine reads F32, F16 and BF16")
    return values.reshape(shape)


def build_spec(
    config: LlamaConfig, tensors: dict[str, np.ndarray], tokens: list[str], specials: dict[str, str]
) -> transformer_spec.TransformerDecoderModelSpec:
    """The filled CTranslate2 layout. `tokens` are by id; `specials` has bos and eos. Raises InvalidInput on a
    tensor that is missing or left over: either way the result would not be the model that was trained."""
    left = dict(tensors)

    def take(name: str) -> np.ndarray:
        try:
            return left.pop(name)
        except KeyError:
            raise InvalidInput(f"the weights lack {name}") from None

    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config.layers,
        config.heads,
        activation=common_spec.Activation.SWISH,
        pre_norm=True,
        ffn_glu=True,
        rms_norm=True,
        rotary_dim=0,
        rotary_interleave=False,
        rotary_base=config.rope_theta,
        num_heads_kv=None if config.kv_heads == config.heads else config.kv_heads,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = take("model.embed_tokens.weight")
    decoder.layer_norm.gamma = take("model.norm.weight")
    if config.tied:
        decoder.projection.weight = decoder.embeddings.weight
        left.pop("lm_head.weight", None)
    else:
        decoder.projection.weight = take("lm_head.weight")
    for number, layer in enumerate(decoder.layer):
        at = f"model.layers.{number}."
        layer.self_attention.layer_norm.gamma = take(at + "input_layernorm.weight")
        queries_keys_values = [take(f"{at}self_attn.{part}_proj.weight") for part in "qkv"]
        layer.self_attention.linear[0].weight = np.concatenate(queries_keys_values)
        layer.self_attention.linear[1].weight = take(at + "self_attn.o_proj.weight")
        layer.ffn.layer_norm.gamma = take(at + "post_attention_layernorm.weight")
        layer.ffn.linear_0.weight = take(at + "mlp.gate_proj.weight")
        layer.ffn.linear_0_noact.weight = take(at + "mlp.up_proj.weight")
        layer.ffn.linear_1.weight = take(at + "mlp.down_proj.weight")
        left.pop(at + "self_attn.rotary_emb.inv_freq", None)
    if left:
        raise InvalidInput(f"the weights have {len(left)} tensors a Llama has no use for: {sorted(left)[0]} …")
    spec.register_vocabulary(tokens)
    spec.config.bos_token, spec.config.eos_token = specials["bos"], specials["eos"]
    spec.config.unk_token = ""
    spec.config.layer_norm_epsilon = config.norm_eps
    return spec


def convert(model_dir: Path, cache_dir: Path, tokens: list[str], specials: dict[str, str]) -> Path:
    """The converted model's folder under `cache_dir`, made once per content of the model folder.

    Two processes converting at once both succeed: each fills a folder of its own and the first rename wins.
    """
    digest = _digest(model_dir)
    final = cache_dir / f"llama-{digest[:32]}"
    if (final / _READY).exists():
        return final
    config = read_config(model_dir)
    padded = tokens + [f"<extra_id_{n}>" for n in range(config.vocab - len(tokens))]
    spec = build_spec(config, read_tensors(model_dir), padded[: config.vocab], specials)
    spec.validate()
    spec.optimize()
    cache_dir.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".converting-", dir=cache_dir))
    try:
        spec.save(str(partial))
        (partial / _READY).write_text(json.dumps({"source": digest, "revision": CONVERTER_REVISION}) + "\n")
        try:
            partial.rename(final)
        except OSError:
            if not (final / _READY).exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def _digest(model_dir: Path) -> str:
    """SHA-256 over everything the conversion reads; names and sizes separate the files' bytes."""
    total = hashlib.sha256(f"revision {CONVERTER_REVISION}\n".encode())
    wanted = ["config.json", "tokenizer.json", "tokenizer_config.json", _INDEX]
    paths = [model_dir / name for name in wanted if (model_dir / name).exists()]
    for path in [*paths, *sorted(model_dir.glob("*.safetensors"))]:
        total.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def read_optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or an empty one when there is no such file. Raises InvalidInput when unreadable."""
    return _read_json(path) if path.exists() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InvalidInput(f"{path.parent.name}: {path.name} is missing") from None
    except ValueError as error:
        raise InvalidInput(f"{path.parent.name}/{path.name} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidInput(f"{path.parent.name}/{path.name} is not a JSON object")
    return value
