"""Memory sums: the figures people quote, done again, and what must hold for every shape."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.adapters.catalog_files import load_catalogue, load_table
from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.hardware import Accelerator
from groundplane.domain.sizing.memory import (
    BYTES_PER_WEIGHT,
    Checkpointing,
    Method,
    Optimizer,
    Precision,
    Serving,
    Training,
    cards_that_fit,
    gb,
    kv_bytes_per_token,
    lora_params,
    parse_params,
    remedies,
    serving_memory,
    training_memory,
)
from groundplane.domain.sizing.model_shape import ModelShape, count_params, shape_from_config, typical_shape
from groundplane.errors import InvalidInput

GB = 10**9
SEVEN_B = typical_shape(7 * GB, name="7B")


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue()


def card(catalogue: Catalogue, name: str) -> Accelerator:
    found = catalogue.hardware.accelerator(name)
    assert found is not None
    return found


def shape(catalogue: Catalogue, name: str) -> ModelShape:
    found = catalogue.model(name)
    assert found is not None
    return found


def part(training: Training, name: str, of: ModelShape = SEVEN_B) -> int:
    return next((line.size_bytes for line in training_memory(of, training).lines if line.name == name), 0)


# ---------------------------------------------------------------- training


def test_seven_billion_parameters_in_fp16_with_adam_need_92_to_104_gb(catalogue: Catalogue):
    short = training_memory(SEVEN_B, Training(precision=Precision.FP16, sequence=2_048))
    long = training_memory(SEVEN_B, Training(precision=Precision.FP16, sequence=4_096))
    assert 92 * GB <= short.total_bytes <= long.total_bytes <= 104 * GB
    for name in ("A100-40GB", "A100-80GB", "H100"):
        assert not short.fits(card(catalogue, name))
    assert short.explain() == (
        "weights: 7B parameters × 2 B = 14.00 GB",
        "gradients: 7B parameters × 2 B = 14.00 GB",
        "adam states: 7B parameters × 8 B = 56.00 GB",
        "activations: 1 × 2,048 tokens × 34 × 4,096 hidden × 32 layers = 9.13 GB",
        "logits: 2,048 tokens × 32,000 words × (2 + 4) B = 393.2 MB",
        "total: 93.52 GB",
        "a framework that keeps FP32 master weights needs 28.00 GB more: mixed precision is 16 B a parameter",
        "the shape is the usual one of its size; a config.json gives the exact one",
    )


def test_the_guide_shows_this_very_sum():
    guide = Path(__file__).parents[2] / "docs" / "guides" / "planning.md"
    sizing = training_memory(typical_shape(7 * GB), Training(precision=Precision.FP16))
    assert "\n".join(sizing.explain()) in guide.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("training", "bytes_per_param"),
    [
        (Training(precision=Precision.FP32), 16),
        (Training(precision=Precision.TF32), 16),
        (Training(precision=Precision.BF16), 12),
        (Training(precision=Precision.FP8), 12),
        (Training(master_weights=True), 16),
        (Training(precision=Precision.FP32, master_weights=True), 16),
        (Training(optimizer=Optimizer.ADAM_8BIT), 6),
        (Training(optimizer=Optimizer.SGD), 4),
        (Training(optimizer=Optimizer.SGD_MOMENTUM), 8),
    ],
)
def test_states_cost_what_precision_and_optimizer_say(training: Training, bytes_per_param: int):
    names = ("weights", "gradients", "FP32 master weights", f"{training.optimizer} states")
    assert sum(part(training, name) for name in names) == bytes_per_param * 7 * GB


def test_adafactor_keeps_rows_and_columns_only():
    assert 0 < part(Training(optimizer=Optimizer.ADAFACTOR), "Adafactor rows and columns") < 20 * 10**6


def test_zero_shards_optimizer_then_gradients_then_weights():
    def states(stage: int) -> tuple[int, int, int]:
        training = Training(zero=stage, shards=8)
        return (part(training, "weights"), part(training, "gradients"), part(training, "adam states"))

    assert states(0) == (14 * GB, 14 * GB, 56 * GB)
    assert states(1) == (14 * GB, 14 * GB, 7 * GB)
    assert states(2) == (14 * GB, 14 * GB // 8, 7 * GB)
    assert states(3) == (14 * GB // 8, 14 * GB // 8, 7 * GB)
    assert part(Training(zero=3, shards=8), "two gathered layers") > 0


def test_tensor_and_pipeline_parallel_split_the_states():
    split = Training(tensor_parallel=4, pipeline_parallel=2)
    assert part(split, "weights") == 14 * GB // 8
    assert training_memory(SEVEN_B, split).cards == 8
    # Layer norms and dropout are on every card: activations shrink by less than the tensor split.
    whole = part(Training(), "activations")
    assert whole / 4 < part(replace(split, pipeline_parallel=1), "activations") < whole
    assert training_memory(SEVEN_B, split).explain()[-3].startswith("total: ")
    assert "on each of 8 cards" in training_memory(SEVEN_B, split).explain()[-3]


def test_checkpointing_keeps_block_inputs_and_one_block():
    full = part(Training(checkpointing=Checkpointing.FULL), "activations, recomputed")
    assert full == 2_048 * (2 * 4_096 * 32 + 34 * 4_096)
    assert full < part(Training(), "activations") / 10


def test_attention_that_keeps_its_scores_grows_with_the_square_of_the_sequence():
    def scores(sequence: int) -> int:
        fused = part(Training(sequence=sequence), "activations")
        return part(Training(sequence=sequence, fused_attention=False), "activations") - fused

    assert scores(4_096) == 4 * scores(2_048)


def test_lora_trains_a_thousandth_and_qlora_freezes_four_bits(catalogue: Catalogue):
    llama = shape(catalogue, "llama-2-7b")
    assert lora_params(llama, 8, ("q", "v")) == 4_194_304
    full = training_memory(llama, Training()).total_bytes
    lora = training_memory(llama, Training(method=Method.LORA))
    qlora = training_memory(llama, Training(method=Method.QLORA, checkpointing=Checkpointing.FULL))
    assert qlora.total_bytes < lora.total_bytes < full / 3
    assert qlora.fits(card(catalogue, "nvidia-t4-16gb"))
    assert [line.name for line in qlora.lines][:2] == ["frozen weights in 4 bits", "embeddings in 16 bits"]


def test_what_does_not_fit_comes_with_ordered_ways_out(catalogue: Catalogue):
    a100 = card(catalogue, "A100-40GB")
    found = remedies(SEVEN_B, Training(precision=Precision.FP32, batch=4, fused_attention=False), a100)
    assert [remedy.what.partition(":")[0] for remedy in found] == [
        "batch 1, with accumulation",
        "fused attention",
        "gradient checkpointing",
        "ZeRO-3 or FSDP over 8 cards",
        "BF16 instead of FP32",
        "8-bit Adam",
        "LoRA",
        "QLoRA",
    ]
    assert all(gb(remedy.sizing.total_bytes) in remedy.what for remedy in found)
    assert "does not fit yet NVIDIA A100 40GB SXM4" in found[-1].what
    bigger = cards_that_fit(training_memory(SEVEN_B, Training()), catalogue.hardware.accelerators)
    assert bigger[0].memory_bytes <= bigger[-1].memory_bytes
    assert "nvidia-h200-141gb-sxm5" in {item.id for item in bigger}


@pytest.mark.parametrize(
    ("training", "message"),
    [
        (Training(precision=Precision.INT4), "precision: int4 can't be trained"),
        (Training(batch=0), "batch: must be at least 1, is 0"),
        (Training(zero=4), "zero: 4 is no stage: 0, 1, 2 or 3 (FSDP is 3)"),
        (Training(tensor_parallel=3), "tensor_parallel: 3 does not divide 32 heads"),
        (Training(pipeline_parallel=64), "pipeline_parallel: 64 stages for 32 layers"),
        (Training(method=Method.LORA, lora_targets=("q", "x")), "LoRA targets x"),
        (Training(method=Method.LORA, lora_targets=()), "LoRA targets nothing"),
    ],
)
def test_what_can_not_be_trained_is_said(training: Training, message: str):
    with pytest.raises(InvalidInput) as caught:
        training_memory(SEVEN_B, training)
    assert str(caught.value) == message
    assert caught.value.hint


# ---------------------------------------------------------------- serving


def test_weights_and_cache_of_every_catalogue_model_match_the_published_shapes(catalogue: Catalogue):
    published = {row["id"]: row for row in load_table("models")}
    assert len(published) >= 20
    for model in catalogue.models:
        row = published[model.id]
        assert kv_bytes_per_token(model) == row["kv_bytes_per_token_16bit"], model.id
        lines = {line.name: line for line in serving_memory(model, Serving(context=512)).lines}
        assert lines["weights"].size_bytes == pytest.approx(2 * row["params_billion"] * GB, rel=1e-6), model.id


@pytest.mark.parametrize(
    ("name", "kv_bytes"),
    [
        ("llama-2-7b", 2 * 32 * 32 * 128 * 2),  # every head has its own
        ("llama-3.1-8b", 2 * 32 * 8 * 128 * 2),  # grouped
        ("qwen2.5-7b", 57_344),
        ("deepseek-v3", 61 * (512 + 64) * 2),  # one latent for all heads
        ("gpt-oss-20b", 24_576),  # half of the layers see a window only
    ],
)
def test_one_more_token_costs(catalogue: Catalogue, name: str, kv_bytes: int):
    assert kv_bytes_per_token(shape(catalogue, name)) == kv_bytes


def test_a_cache_for_32_sequences_of_4096_tokens_is_64_gib(catalogue: Catalogue):
    sizing = serving_memory(shape(catalogue, "llama-2-7b"), Serving(batch=32, context=4_096))
    cache = sizing.lines[1]
    assert cache.size_bytes == 64 * 2**30
    assert str(cache) == ("KV cache: 32 sequences × 32 layers × 4,096 tokens × 2 × 32 KV heads × 128 × 2 B = 68.72 GB")
    assert not sizing.fits(card(catalogue, "A100-80GB"))


def test_a_window_stops_the_cache_from_growing(catalogue: Catalogue):
    gemma = shape(catalogue, "gemma-3-27b")
    short, long = (serving_memory(gemma, Serving(context=tokens)).lines[1] for tokens in (1_024, 32_768))
    assert short.size_bytes == 1_024 * 507_904
    assert long.size_bytes == 32_768 * 81_920 + 1_024 * (507_904 - 81_920)
    assert "52 layers × 1,024 in the window" in long.formula


def test_eight_bits_halve_the_cache_and_the_weights(catalogue: Catalogue):
    llama = shape(catalogue, "llama-3.1-70b")
    wide = serving_memory(llama, Serving())
    narrow = serving_memory(llama, Serving(precision=Precision.FP8, cache_precision=Precision.FP8))
    assert narrow.total_bytes == pytest.approx(wide.total_bytes / 2, abs=2)
    # 141 GB of weights and a fifth on top: three cards of 80 GB at least.
    assert wide.lines[0].size_bytes > 2 * card(catalogue, "A100-80GB").memory_bytes * 0.8


def test_cache_heads_are_spread_over_cards_but_never_split(catalogue: Catalogue):
    llama = shape(catalogue, "llama-3.1-70b")  # 8 KV heads
    assert kv_bytes_per_token(llama, tensor_parallel=4) * 4 == kv_bytes_per_token(llama)
    assert kv_bytes_per_token(llama, tensor_parallel=16) == kv_bytes_per_token(llama, tensor_parallel=8)
    deepseek = shape(catalogue, "deepseek-v3")
    assert kv_bytes_per_token(deepseek, tensor_parallel=8) == kv_bytes_per_token(deepseek)


def test_serving_tells_what_main_memory_loading_takes():
    assert "CPU memory while loading: 2 × 14.00 GB of weights" in serving_memory(SEVEN_B, Serving()).notes


def test_what_can_not_be_served_is_said(catalogue: Catalogue):
    with pytest.raises(InvalidInput, match="8,192 tokens; llama-2-7b was built for 4,096"):
        serving_memory(shape(catalogue, "llama-2-7b"), Serving(context=8_192))
    with pytest.raises(InvalidInput, match="headroom: must be from 0 to 1"):
        serving_memory(SEVEN_B, Serving(headroom=20))


# ---------------------------------------------------------------- where a shape comes from

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
    "num_attention_heads": 128, "num_key_value_heads": 128, "num_hidden_layers": 61, "vocab_size": 129280,
    "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3,
    "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
    "max_position_embeddings": 163840,
}  # fmt: skip


def test_a_config_gives_the_same_shape_as_the_catalogue(catalogue: Catalogue):
    read, known = shape_from_config(LLAMA_8B), shape(catalogue, "llama-3.1-8b")
    assert read.params == pytest.approx(known.params, rel=0.001)
    assert kv_bytes_per_token(read) == kv_bytes_per_token(known)
    deepseek = shape_from_config(DEEPSEEK_V3)
    assert deepseek.params == pytest.approx(671.026 * GB, rel=0.001)
    assert deepseek.active_params == pytest.approx(37.552 * GB, rel=0.005)
    assert kv_bytes_per_token(deepseek) == 70_272


def test_a_config_may_be_nested_windowed_tied_or_of_an_older_family():
    nested = shape_from_config({"model_type": "gemma3", "text_config": {**LLAMA_8B, "model_type": "gemma3_text"}})
    assert nested.tied_embeddings
    layers = ["sliding_attention", "full_attention"] * 16
    windowed = shape_from_config({**LLAMA_8B, "sliding_window": 1_024, "layer_types": layers})
    assert (windowed.full_layers, windowed.window_layers, windowed.window) == (16, 16, 1_024)
    mistral = shape_from_config({**LLAMA_8B, "model_type": "mistral", "sliding_window": 4_096})
    assert (mistral.full_layers, mistral.window_layers) == (0, 32)
    unused = shape_from_config(
        {**LLAMA_8B, "model_type": "qwen2", "sliding_window": 4_096, "use_sliding_window": False}
    )
    assert (unused.full_layers, unused.window_layers) == (32, 0)
    gpt2 = shape_from_config({"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50_257})
    assert gpt2.params == pytest.approx(124 * 10**6, rel=0.01)
    falcon = shape_from_config(
        {"model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71,
         "multi_query": True, "vocab_size": 65024}
    )  # fmt: skip
    assert falcon.kv_heads == 1


def test_a_config_of_something_else_says_what_is_missing():
    with pytest.raises(InvalidInput) as caught:
        shape_from_config({"vocab_size": "many", "hidden_size": 0}, name="vit/config.json")
    assert [str(problem) for problem in caught.value.problems] == [
        "num_hidden_layers: is missing",
        "hidden_size: 0 is no whole number above 0",
        "num_attention_heads: is missing",
        "vocab_size: 'many' is no whole number above 0",
    ]


@pytest.mark.parametrize(
    ("text", "count"), [("7B", 7 * GB), ("350m", 350 * 10**6), ("1.1b", 1_100_000_000), ("70T", 70 * 10**12)]
)
def test_a_number_of_parameters_is_written_as_people_do(text: str, count: int):
    assert parse_params(text) == count


@pytest.mark.parametrize("text", ["", "B", "seven", "1.2.3B", "-7B", "٧B" * 20])
def test_other_words_are_no_number_of_parameters(text: str):
    with pytest.raises(InvalidInput):
        parse_params(text)


def test_a_size_nobody_builds_is_refused():
    with pytest.raises(InvalidInput, match="is no size of a language model"):
        typical_shape(10)


# ---------------------------------------------------------------- properties

_sizes = st.integers(10**6, 10**12).map(typical_shape)
_trainings = st.builds(
    Training,
    precision=st.sampled_from([Precision.FP32, Precision.BF16, Precision.FP8]),
    optimizer=st.sampled_from(list(Optimizer)),
    method=st.sampled_from(list(Method)),
    batch=st.integers(1, 16),
    sequence=st.integers(1, 16_384),
    checkpointing=st.sampled_from(list(Checkpointing)),
    fused_attention=st.booleans(),
    master_weights=st.booleans(),
    lora_rank=st.integers(1, 256),
    zero=st.integers(0, 3),
    shards=st.integers(1, 64),
)


@settings(deadline=None, max_examples=60)
@given(model=_sizes, training=_trainings)
def test_parts_are_never_negative_and_add_up(model: ModelShape, training: Training):
    sizing = training_memory(model, training)
    assert all(line.size_bytes >= 0 for line in sizing.lines)
    assert sizing.total_bytes == sum(line.size_bytes for line in sizing.lines) > 0


@settings(deadline=None, max_examples=60)
@given(model=_sizes, training=_trainings)
def test_more_work_never_needs_less_and_more_sharding_never_more(model: ModelShape, training: Training):
    total = training_memory(model, training).total_bytes
    assert training_memory(model, replace(training, batch=training.batch + 1)).total_bytes > total
    assert training_memory(model, replace(training, sequence=training.sequence + 1)).total_bytes > total
    assert training_memory(model, replace(training, fused_attention=True)).total_bytes <= total
    if training.zero in (1, 2):
        assert training_memory(model, replace(training, shards=training.shards + 1)).total_bytes <= total


@settings(deadline=None, max_examples=60)
@given(
    model=_sizes, batch=st.integers(1, 256), context=st.integers(1, 10**6), precision=st.sampled_from(list(Precision))
)
def test_a_longer_context_never_needs_less(model: ModelShape, batch: int, context: int, precision: Precision):
    short = serving_memory(model, Serving(batch=batch, context=context, precision=precision))
    long = serving_memory(model, Serving(batch=batch, context=context + 1, precision=precision))
    assert 0 < short.total_bytes <= long.total_bytes
    assert short.lines[0].size_bytes >= model.params * BYTES_PER_WEIGHT[precision]


@settings(deadline=None, max_examples=60)
@given(params=st.integers(10**8, 10**12))
def test_a_usual_shape_has_about_the_parameters_it_was_made_for(params: int):
    total, _ = count_params(typical_shape(params))
    assert 0.6 * params <= total <= 1.5 * params
