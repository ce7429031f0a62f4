"""Time, layouts and remedies: the figures done again, and what must hold for every shape and card."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.hardware import Accelerator
from groundplane.domain.sizing.memory import Checkpointing, Method, Precision, Serving, Training
from groundplane.domain.sizing.model_shape import ModelShape, typical_shape
from groundplane.domain.sizing.parallelism import (
    Fabric,
    Link,
    advise,
    fabric_of,
    serving_layout,
    training_layout,
    training_traffic,
)
from groundplane.domain.sizing.report import SizeReport, size_serving, size_training
from groundplane.domain.sizing.roofline import (
    Estimate,
    duration,
    estimate_serving,
    estimate_training,
    peak_flops,
    training_flops_per_token,
)
from groundplane.errors import InvalidInput

GB = 10**9
CATALOGUE = load_catalogue()
CARDS = CATALOGUE.hardware.accelerators
SHARES = CATALOGUE.efficiencies
SEVEN_B = typical_shape(7 * GB, name="7B")


def card(name: str) -> Accelerator:
    found = CATALOGUE.hardware.accelerator(name)
    assert found is not None
    return found


def model(name: str) -> ModelShape:
    found = CATALOGUE.model(name)
    assert found is not None
    return found


def fabric(of: Accelerator, node_cards: int = 8) -> Fabric:
    return fabric_of(of, CATALOGUE.links["pcie4"], CATALOGUE.links["ib-ndr"], node_cards)


def trained(shape: ModelShape, training: Training, on: Accelerator, tokens: int = 0) -> SizeReport:
    return size_training(shape, training, CARDS, card=on, fabric=fabric(on), efficiencies=SHARES, dataset_tokens=tokens)


def served(shape: ModelShape, serving: Serving, on: Accelerator, count: int | None = None) -> SizeReport:
    return size_serving(shape, serving, CARDS, card=on, fabric=fabric(on), efficiencies=SHARES, count=count)


# ---------------------------------------------------------------- the figures people quote


@pytest.mark.parametrize("sequence", [2_048, 4_096])
def test_the_2_a_m_ticket_needs_92_to_104_gb_and_comes_with_its_ways_out_in_order(sequence: int):
    report = trained(SEVEN_B, Training(precision=Precision.FP16, sequence=sequence), card("A100-40GB-SXM4"))
    assert 92 * GB <= report.per_card_bytes <= 104 * GB
    assert report.fits is False
    assert [fix.what.split(":")[0] for fix in report.fixes] == [
        "gradient checkpointing",
        "ZeRO-3 or FSDP over 8 cards",
        "8-bit Adam",
        "LoRA",
        "QLoRA",
        "a bigger card",
    ]
    for fix in report.fixes[:-1]:
        assert fix.per_card_bytes < report.per_card_bytes
    assert report.smallest is not None
    assert report.smallest.cards == 4
    assert report.cpu_memory_bytes == 28 * GB


def test_a_batch_that_is_too_big_and_wide_weights_come_first_among_the_remedies():
    report = trained(SEVEN_B, Training(precision=Precision.FP32, batch=4), card("A100-80GB-SXM4"))
    names = [fix.what.split(":")[0] for fix in report.fixes]
    assert names[0] == "batch 1, with accumulation"
    assert "BF16 instead of FP32" in names


def test_where_no_single_remedy_does_several_together_are_named():
    report = trained(model("llama-3.1-70b"), Training(method=Method.LORA, sequence=4_096), card("A100-80GB-SXM4"))
    assert "gradient checkpointing + ZeRO-3 or FSDP over 8 cards: 30.79 GB, fits" in report.fixes[-2].what


def test_training_takes_six_operations_per_parameter_and_token():
    flops, formula = training_flops_per_token(SEVEN_B, Training(sequence=2_048))
    attention = 3 * 2 * SEVEN_B.layers * 2_048 * SEVEN_B.heads * SEVEN_B.head_dim
    assert flops == 6 * 7 * GB + attention
    assert formula.startswith("6 × 7B parameters + 3 × 2 × 32 layers × 2,048")
    recomputed, _ = training_flops_per_token(SEVEN_B, Training(sequence=2_048, checkpointing=Checkpointing.FULL))
    frozen, _ = training_flops_per_token(SEVEN_B, Training(sequence=2_048, method=Method.LORA))
    assert frozen < flops < recomputed


def test_a_token_of_a_70b_model_is_bound_by_reading_its_weights():
    report = served(model("llama-3.1-70b"), Serving(batch=1, context=4_096), card("H100-80GB-SXM5"), count=4)
    assert report.estimate is not None
    assert report.estimate.bound == "memory"
    # 141.1 GB of weights over 4 cards of 3,350 GB/s are 10.5 ms at the peak; a 16th as much cache comes on top.
    assert 10.5e-3 < report.estimate.step.best_s < 18e-3


def test_the_cache_of_32_sequences_is_what_is_quoted():
    report = served(model("llama-2-7b"), Serving(batch=32, context=4_096), card("H100-80GB-SXM5"))
    cache = next(line for line in report.lines if line.name == "KV cache")
    assert cache.size_bytes == 64 * 2**30
    assert report.fits is False
    assert report.fixes[0].what.startswith("batch 16")


def test_a_whole_run_is_its_steps_and_its_formula_says_so():
    report = trained(SEVEN_B, Training(checkpointing=Checkpointing.FULL, method=Method.LORA), card("H100"), 10**7)
    told = report.estimate
    assert told is not None
    assert told.total is not None
    assert told.steps == 4_883  # 10,000,000 ÷ 2,048, rounded up
    assert told.total.expected_s == pytest.approx(told.steps * told.step.expected_s)
    assert any(
        line.startswith("whole run: 10,000,000 tokens × 1 epochs ÷ 2,048 = 4,883 steps") for line in report.explain
    )


def test_every_share_of_the_peak_is_told_with_its_source():
    notes = trained(SEVEN_B, Training(), card("H100")).notes
    assert any(note.startswith("training-compute: 25% to 45%") and "llama3" in note for note in notes)


# ---------------------------------------------------------------- layouts and links


def test_tensor_parallelism_belongs_on_nvlink_and_is_refused_across_nodes():
    on = card("H100-80GB-SXM5")
    inside = advise(training_traffic(SEVEN_B, Training(tensor_parallel=8)), fabric(on), 1.0)[0]
    across = advise(training_traffic(SEVEN_B, Training(tensor_parallel=16)), fabric(on), 1.0)[0]
    assert "NVLink" in inside.link
    assert inside.advice.startswith("keep it inside the node: across InfiniBand")
    assert "InfiniBand" in across.link
    assert "split by pipeline across nodes instead" in across.advice


def test_a_bridge_joins_two_cards_and_no_more():
    joined = fabric(card("A100-80GB-PCIe"))
    assert "bridge" in joined.link(2).name
    assert joined.link(4).id == "pcie4"
    assert joined.link(16).id == "ib-ndr"


def test_gradients_over_ethernet_are_told_to_accumulate():
    slow = Link(id="eth", name="Ethernet", bytes_per_s=GB // 8)
    told = advise(training_traffic(SEVEN_B, Training(shards=16)), replace(fabric(card("H100")), across=slow), 1.0)[0]
    assert "accumulate gradients" in told.advice


def test_so_many_cards_are_spread_with_the_least_traffic_that_fits():
    on = card("A100-80GB-SXM4")
    found = training_layout(SEVEN_B, Training(), on, fabric(on), 8)
    assert found is not None
    assert (found[0].zero, found[0].shards) == (1, 8)


def test_a_model_that_no_node_holds_has_no_replica():
    on = card("T4")
    assert serving_layout(model("llama-3.1-70b"), Serving(), on, fabric(on)) is None


def test_a_precision_without_a_unit_says_what_is_multiplied_instead():
    assert "no FP8 unit" in peak_flops(card("A100-80GB-SXM4"), Precision.FP8)[1]
    assert peak_flops(card("H100-80GB-SXM5"), Precision.FP8)[0] == pytest.approx(2 * 989e12)
    with pytest.raises(InvalidInput, match="no dense_tflops"):
        peak_flops(replace(card("T4"), dense_tflops={}), Precision.BF16)


def test_a_card_of_unknown_speed_still_gets_its_memory_sum():
    report = trained(SEVEN_B, Training(), replace(card("H100"), dense_tflops={}))
    assert report.estimate is None
    assert report.fits is False
    assert any(note.startswith("no time can be told") for note in report.notes)


def test_three_cards_do_not_split_32_heads():
    with pytest.raises(InvalidInput, match="3 cards do not divide 32 heads"):
        served(SEVEN_B, Serving(), card("H100"), count=3)


def test_no_data_is_no_run():
    with pytest.raises(InvalidInput, match="no amount of data"):
        estimate_training(SEVEN_B, Training(), card("H100"), fabric(card("H100")), SHARES, dataset_tokens=10, epochs=0)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0012, "1.20 ms"), (3.1, "3.10 s"), (90, "1.50 min"), (33_336, "9.26 h"), (864_000, "10.00 days")],
)
def test_a_time_is_told_in_the_unit_that_suits_it(seconds: float, told: str):
    assert duration(seconds) == told


# ---------------------------------------------------------------- what must hold for all


PARAMS = st.integers(10**8, 10**11)
TRAININGS = st.builds(
    Training,
    precision=st.sampled_from([Precision.BF16, Precision.FP32, Precision.FP8]),
    method=st.sampled_from(Method),
    batch=st.integers(1, 16),
    sequence=st.sampled_from([512, 2_048, 8_192]),
    checkpointing=st.sampled_from(Checkpointing),
    zero=st.integers(0, 3),
    shards=st.sampled_from([1, 2, 8, 64]),
)
SERVINGS = st.builds(Serving, batch=st.integers(1, 64), context=st.integers(1, 4_096))
ON = st.sampled_from([each for each in CARDS if each.dense_tflops])


def ordered(told: Estimate) -> bool:
    spans = [span for span in (told.step, told.total, told.first_token) if span is not None]
    rate = told.tokens_per_s
    return (
        all(0 <= s.best_s <= s.expected_s <= s.worst_s for s in spans) and 0 < rate.worst <= rate.expected <= rate.best
    )


@settings(max_examples=40, deadline=None)
@given(PARAMS, TRAININGS, ON)
def test_parts_add_up_and_the_worst_is_never_better_than_expected(params: int, training: Training, on: Accelerator):
    report = trained(typical_shape(params), training, on, tokens=10**9)
    assert report.per_card_bytes == sum(line.size_bytes for line in report.lines)
    assert report.total_bytes == report.per_card_bytes * report.layout.cards
    assert report.cpu_memory_bytes >= 2 * params * 0.5
    assert report.estimate is not None
    assert ordered(report.estimate)


@settings(max_examples=40, deadline=None)
@given(PARAMS, SERVINGS, ON)
def test_serving_parts_add_up_and_times_are_ordered(params: int, serving: Serving, on: Accelerator):
    report = served(typical_shape(params), serving, on)
    assert report.per_card_bytes == sum(line.size_bytes for line in report.lines)
    assert report.estimate is not None
    assert ordered(report.estimate)


@settings(max_examples=40, deadline=None)
@given(PARAMS, TRAININGS, ON, st.floats(1.0, 8.0))
def test_more_memory_never_makes_a_fitting_plan_unfit(params: int, training: Training, on: Accelerator, times: float):
    shape, bigger = typical_shape(params), replace(on, memory_bytes=int(on.memory_bytes * times))
    small, big = trained(shape, training, on), trained(shape, training, bigger)
    assert not (small.fits and not big.fits)
    if small.smallest is not None:
        assert big.smallest is not None
        assert big.smallest.cards <= small.smallest.cards


@settings(max_examples=40, deadline=None)
@given(PARAMS, TRAININGS, SERVINGS, ON, st.floats(1.0, 8.0))
def test_more_flops_never_take_longer(params: int, training: Training, serving: Serving, on: Accelerator, times: float):
    shape = typical_shape(params)
    faster = replace(on, dense_tflops={name: rate * times for name, rate in on.dense_tflops.items()})
    slow = estimate_training(shape, training, on, fabric(on), SHARES).step
    fast = estimate_training(shape, training, faster, fabric(on), SHARES).step
    assert fast.expected_s <= slow.expected_s
    assert fast.worst_s <= slow.worst_s
    slow = estimate_serving(shape, serving, on, fabric(on), SHARES).step
    assert estimate_serving(shape, serving, faster, fabric(on), SHARES).step.expected_s <= slow.expected_s


def test_the_catalogue_states_every_share_that_is_used(catalogue: Catalogue = CATALOGUE):
    assert set(catalogue.efficiencies) == {"training-compute", "prefill-compute", "decode-bandwidth", "link"}
    assert all(0 < each.low <= each.expected <= each.high <= 1 for each in catalogue.efficiencies.values())
