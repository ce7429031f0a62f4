"""Sizing and comparing through the real control plane: answers, permissions, and what is wrong with a question."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from groundplane.client import Client
from groundplane.errors import Forbidden, InvalidInput
from groundplane.identity import Role
from groundplane.wire.sizing import CompareRequest, SizeRequest

SEVEN_B = SizeRequest(params="7B", precision="fp16", gpus="a100-40gb-sxm4")
WORKLOAD = CompareRequest(
    requests_per_minute=60, prompt_tokens=1_500, completion_tokens=300, peak_factor=3, apis=("azure/gpt-4o",)
)
CONFIG = {
    "model_type": "llama", "num_hidden_layers": 32, "hidden_size": 4_096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14_336, "vocab_size": 128_256, "max_position_embeddings": 8_192,
}  # fmt: skip


def test_a_size_arrives_as_it_was_made(served: Any) -> None:
    report = served.client.size(SEVEN_B)
    assert 92e9 <= report.per_card_bytes <= 104e9
    assert report.fits is False
    assert report.estimate is not None
    assert report.fixes
    assert report.per_card_bytes == sum(line.size_bytes for line in report.lines)


def test_a_config_gives_the_size_of_the_model_it_describes(served: Any) -> None:
    report = served.client.size(SizeRequest(config=CONFIG, purpose="serve", batch=4, context=8_192))
    assert 8.0e9 < report.params < 8.1e9
    assert report.fits is None
    assert report.holding


@pytest.mark.parametrize(("family", "taken"), [("a100", "nvidia-a100-40gb-sxm4"), ("gaudi", "intel-gaudi2-96gb")])
def test_a_family_of_cards_takes_one_and_says_which(served: Any, family: str, taken: str) -> None:
    report = served.client.size(replace(SEVEN_B, gpus=f"2x {family}"))
    assert report.layout.cards == 2
    assert report.notes[0].startswith(f"{family} may be several: taken {taken}, not ")


@pytest.mark.parametrize(
    ("request_", "message", "hint"),
    [
        (SizeRequest(model="lama-3.1-70b"), "no model 'lama-3.1-70b'", "llama-3.1-70b"),
        (replace(SEVEN_B, gpus="h1000"), "no accelerator 'h1000'", "h100"),
        (replace(SEVEN_B, fabric="string"), "no link 'string'", "ib-ndr"),
        (replace(SEVEN_B, precision="fp7"), "'fp7' is not one of", "bf16"),
        (replace(SEVEN_B, purpose="dream"), "'dream' is not one of", "train"),
        (replace(SEVEN_B, gpus="0xh100"), "0 cards", "8x"),
        (replace(SEVEN_B, batch=0), "batch: must be at least 1, is 0", ""),
        (replace(SEVEN_B, params="7 apples"), "is no number of parameters", "7B"),
        (replace(SEVEN_B, epochs=-1.0), "no amount of data", ""),
        (replace(SEVEN_B, epochs=1e300, dataset_tokens=5), "no amount of data", ""),
        (replace(SEVEN_B, gpus="3xh100", purpose="serve"), "3 cards do not divide 32 heads", "choose 1, 2, 4"),
        (SizeRequest(), "no model is named", "--params"),
        (replace(SEVEN_B, model="llama-3.1-8b"), "named twice", "--params"),
        (SizeRequest(config={"a": 1}), "num_hidden_layers", "config.json"),
        (SizeRequest(model="llama-3.1-8b", purpose="serve", context=10**7), "was built for", "131072"),
    ],
)
def test_a_wrong_question_is_told_with_the_way_forward(
    served: Any, request_: SizeRequest, message: str, hint: str
) -> None:
    with pytest.raises(InvalidInput) as told:
        served.client.size(request_)
    assert message in told.value.message
    assert hint in told.value.hint


def test_a_field_that_is_not_known_is_refused(served: Any) -> None:
    answer = served.raw("POST", "/v1/size", json={"params": "7B", "gpuz": "h100"})
    assert answer.status_code == 422
    assert "gpuz" in answer.text


def test_a_comparison_ranks_hosted_provisioned_and_own(served: Any) -> None:
    made = served.client.compare(replace(WORKLOAD, model="llama-3.3-70b"))
    kinds = {option.kind for option in made.options}
    assert kinds == {"hosted", "provisioned", "self-hosted"}
    months = [option.microusd_per_month for option in made.options]
    assert months == sorted(months)
    assert all(option.price_as_of and option.lines for option in made.options)
    assert all(o.break_even is not None for o in made.options if o.kind == "self-hosted")


@pytest.mark.parametrize(
    ("request_", "message", "hint"),
    [
        (replace(WORKLOAD, apis=("gpt-4oo",)), "no hosted model 'gpt-4oo'", "gpt-4o"),
        (replace(WORKLOAD, apis=()), "nothing to compare", "--api"),
        (replace(WORKLOAD, requests_per_minute=0), "requests_per_minute: must be from", ""),
        (replace(WORKLOAD, model="llama-3.3-70b", cloud="oracle"), "no cloud 'oracle'", "azure"),
        (replace(WORKLOAD, deployment="galactic"), "no deployment 'galactic'", "global"),
    ],
)
def test_a_wrong_workload_is_told_with_the_way_forward(
    served: Any, request_: CompareRequest, message: str, hint: str
) -> None:
    with pytest.raises(InvalidInput) as told:
        served.client.compare(request_)
    assert message in told.value.message
    assert hint in told.value.hint


def test_a_viewer_may_size_and_compare_and_a_caller_may_not(served: Any) -> None:
    with Client(served.url, served.key(Role.VIEWER)) as viewer:
        assert viewer.size(SEVEN_B).lines
        assert viewer.compare(WORKLOAD).options
    with Client(served.url, served.key(Role.CALLER)) as caller:
        with pytest.raises(Forbidden):
            caller.size(SEVEN_B)
        with pytest.raises(Forbidden):
            caller.compare(WORKLOAD)
