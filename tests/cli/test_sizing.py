"""`ground size` and `ground compare`, as people type them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Home


def test_the_example_of_the_help_is_answered(up: Home) -> None:
    asked = "size llama-3.1-70b --train --method lora --seq 4096 --gpus a100-80gb --explain"
    shown = up.ground(*asked.split()).stdout
    for words in ("total", "236.05 GB", "does not fit", "smallest layout that fits: 4 cards", "CPU memory", "step:"):
        assert words in shown
    assert "frozen weights: 70.55B parameters × 2 B = 141.11 GB" in shown


def test_serving_and_a_config_and_json(up: Home, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    shape = {"num_hidden_layers": 32, "hidden_size": 4_096, "num_attention_heads": 32, "vocab_size": 32_000}
    shape["max_position_embeddings"] = 8_192
    config.write_text(json.dumps(shape))
    asked = up.ground("size", "--config", str(config), "--serve", "--batch", "8", "--gpus", "h100", "-o", "json")
    report = json.loads(asked.stdout)
    assert report["fits"] is True
    assert report["per_card_bytes"] == sum(line["size_bytes"] for line in report["lines"])
    assert report["estimate"]["tokens_per_s"]["worst"] <= report["estimate"]["tokens_per_s"]["best"]


def test_a_comparison_is_a_table_cheapest_first(up: Home) -> None:
    asked = "compare --rpm 60 --prompt-tokens 1500 --completion-tokens 300 --api azure/gpt-4o --model llama-3.3-70b"
    shown = up.ground(*asked.split(), "--explain").stdout
    for words in ("KIND", "hosted", "provisioned", "self-hosted", "BREAK-EVEN", "a request on one replica"):
        assert words in shown


def test_what_is_wrong_is_told_in_two_lines(up: Home, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    for words, error, hint in (
        (["--model", "lama-3.1-70b"], "error: no model 'lama-3.1-70b' in the catalogue", "did you mean llama-3.1-70b"),
        (["--config", str(tmp_path / "none")], "can't be read", "config.json"),
        (["--config", str(tmp_path / "list.json")], "it holds no object", "config.json"),
        (["--config", str(tmp_path / "broken.json")], "is no JSON", "config.json"),
        ([], "error: no model is named", "ground size llama-3.1-70b"),
        (["llama-3.1-8b", "--model", "llama-3.1-70b"], "two models are named", "ground size --help"),
        (["llama-3.1-8b", "--params", "7B"], "the model is named twice", "--params 7B"),
    ):
        told = up.ground("size", *words, expect=2).stderr
        assert error in told
        assert hint in told
    told = up.ground("compare", "--rpm", "1", "--prompt-tokens", "1", "--completion-tokens", "1", expect=2).stderr
    assert "there is nothing to compare" in told
