"""`ground models scan` on a path: no server, an exact answer, and an exit status that scripts can rely on."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from groundplane.cli.root import run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(save({"w": np.ones((4, 4), np.float32)}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages[0].content }}"}))
    (tmp_path / "LICENSE").write_text("Attribution-NonCommercial 4.0 International")
    return tmp_path


def test_a_clean_model_is_said_to_be_clean(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "scan", str(model), "-o", "json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["files"], report["formats"]) == (True, 3, {"safetensors": 1, "text": 2})


def test_what_is_found_is_listed_and_ends_in_a_refusal(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "optimizer.pt").write_bytes(pickle.dumps(model))
    (model / "scheduler.pt").write_bytes(pickle.dumps({"a": [1]}))
    (model / "chat_template.jinja").write_text("{{ cycler.__init__.__globals__ }}")
    words = ["models", "scan", str(model), "--license", "MIT", "--memory", "1KiB", "-o", "json"]
    assert run(words) == 3
    told = capsys.readouterr()
    found = {(finding["rule"], finding["severity"]) for finding in json.loads(told.out)["findings"]}
    assert found == {
        ("no-pickles", "refused"),
        ("template-injection", "refused"),
        ("licence-conflict", "refused"),
        ("no-pickles", "convert"),
    }
    assert told.err.startswith("error: refused for 3 reasons")
    assert "ground models adopt" in told.err


def test_weights_that_must_only_be_converted_are_no_alarm(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "optimizer.pt").write_bytes(pickle.dumps({"a": [1]}))
    assert run(["models", "scan", str(model)]) == 0
    assert "may enter once its weights are converted (ground models adopt)" in capsys.readouterr().out


def test_nothing_there_is_not_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "scan", str(tmp_path / "nothing")]) == 4
    assert "there is no file or folder" in capsys.readouterr().err
