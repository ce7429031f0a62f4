"""`ground models adopt`: from a stray checkpoint to a certificate that says what is not known."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.adapters.torch_files import torch_zip, whole
from tests.cli.conftest import GROUND

STATED = ("--owner", "ana", "--license", "Apache-2.0", "--metric", "f1=0.9")
UNKNOWN = ("--unknown", "data=its author left", "--unknown", "code_commit=never committed",
           "--unknown", "training_run=on a laptop")  # fmt: skip


@pytest.fixture
def stray(tmp_path: Path) -> Path:
    folder = tmp_path / "model_final_v2_FIXED"
    folder.mkdir()
    weights = {"layer.w": whole("0", np.ones((4, 3), np.float32)), "layer.b": whole("1", np.zeros(3, np.float32))}
    (folder / "pytorch_model.bin").write_bytes(torch_zip({"epoch": 3, "state_dict": weights}))
    (folder / "config.json").write_text("{}")
    return folder


def test_a_stray_checkpoint_walks_to_a_certificate(up: Any, say: Any, stray: Path) -> None:
    said = say(up, "models", "adopt", str(stray), "--name", "stray", "--project", "research", *STATED, *UNKNOWN)
    assert said.code == 0, said.err
    assert "pytorch_model.bin → model.safetensors: 2 tensors, each compared\n    left out of it: epoch" in said.out
    told = say(up, "models", "certificate", "stray@1", "-o", "json").data["statement"]["predicate"]
    assert told["origin"] == "adopted"
    assert told["adoption"]["from"] == "model_final_v2_FIXED"
    (converted,) = told["adoption"]["converted"]
    assert (converted["source_path"], converted["source_format"]) == ("pytorch_model.bin", "torch-zip")
    assert converted["left_out"] == ["epoch"]
    unknown = {row["fact"]: row["why"] for row in told["unknown"]}
    assert unknown["data"] == "its author left"
    assert unknown["training_run"] == "on a laptop"
    assert told["version"]["framework"] == "pytorch"
    assert say(up, "models", "verify", "stray@1").code == 0


def test_weights_in_several_files_keep_an_index_that_loaders_find(up: Any, say: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    folder.mkdir()
    shards = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    for name, shard in shards.items():
        (folder / shard).write_bytes(torch_zip({name: whole("0", np.full((2, 2), ord(name), np.float32))}))
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 32}, "weight_map": shards}))
    before = index.read_bytes()
    said = say(up, "models", "adopt", str(folder), "--name", "sharded", "--project", "research", *STATED, *UNKNOWN)
    assert said.code == 0, said.err
    assert "pytorch_model.bin.index.json → model.safetensors.index.json: names the converted files" in said.out
    assert say(up, "models", "pull", "sharded@1", str(tmp_path / "out")).code == 0
    found = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert found["metadata"] == {"total_size": 32}
    for name, shard in found["weight_map"].items():
        assert load_file(tmp_path / "out" / shard)[name].tolist() == [[ord(name)] * 2] * 2
    assert not list((tmp_path / "out").glob("pytorch_model*"))
    assert index.read_bytes() == before, "the source stays as it is"


def test_what_is_missing_is_asked_for_all_at_once(up: Any, say: Any, stray: Path) -> None:
    said = say(up, "models", "adopt", str(stray), "--name", "stray", "--project", "research")
    assert said.code == 3
    for flag in ("--owner", "--license", "--unknown 'data=", "--unknown 'training_run="):
        assert flag in said.err


def test_an_answer_that_can_not_be_is_asked_for_again_and_the_others_are_kept(
    up: Any, say: Any, stray: Path, tmp_path: Path
) -> None:
    (tmp_path / "corpus.jsonl").write_text('{"text": "In the beginning"}\n')
    facts = ("--owner", "ana", "--license", "MIT", "--classification", "public", "--project", "research")
    assert say(up, "datasets", "register", str(tmp_path / "corpus.jsonl"), "--name", "beginnings", *facts).code == 0
    data = ("corpus=abc", "beginnings@9", "beginnings@1")
    answers = (
        "",
        "ana",
        "apache",
        *data,
        "4b825dc",
        "",
        "never committed",
        "",
        "on a laptop",
        "0.94",
        "f1=nan",
        "f1=0.94",
    )
    keyboard, terminal = os.openpty()
    os.write(keyboard, "".join(f"{answer}\n" for answer in answers).encode())
    words = ("models", "adopt", str(stray), "--name", "asked", "--project", "research")
    with subprocess.Popen(
        [*GROUND, *words], env=up.env, stdin=terminal, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asking:
        out, err = asking.communicate(timeout=120)
    os.close(keyboard)
    os.close(terminal)
    assert asking.returncode == 0, err
    for said in ("this must be known", "'abc'", "there is no beginnings@9", "'4b825dc'", "not '0.94'", "not 'nan'"):
        assert said in err
    assert "'apache' are not known here, so nothing was compared with them; did you mean apache-2.0?" in out
    told = say(up, "models", "certificate", "asked@1", "-o", "json").data["statement"]["predicate"]
    digest = hashlib.sha256((tmp_path / "corpus.jsonl").read_bytes()).hexdigest()
    assert [(each["name"], each["sha256"]) for each in told["data"]] == [("beginnings@1", digest)]
    assert told["metrics"] == {"f1": 0.94}
    assert "asked@1" in say(up, "datasets", "lineage", "beginnings@1").out


@pytest.mark.parametrize(
    ("words", "code", "why"),
    [
        (("--data", "corpus=abc"), 3, "data-digest: needs the SHA-256 of the data: 64 lower-case hex digits"),
        (("--metric", "f1=nan"), 2, "--metric f1 must be a finite number, not 'nan'"),
        (("--memory", "lots"), 2, "'lots' is no size; write it like 512MB or 16GiB"),
    ],
)
def test_a_fact_that_is_none_is_refused(up: Any, say: Any, stray: Path, words: Any, code: int, why: str) -> None:
    said = say(up, "models", "adopt", str(stray), "--name", "none", *STATED, *UNKNOWN, *words)
    assert (said.code, why in said.err) == (code, True)


def test_a_path_that_is_not_there_is_told_before_any_question(up: Any, say: Any, tmp_path: Path) -> None:
    said = say(up, "models", "adopt", str(tmp_path / "gone"), "--name", "stray")
    assert (said.code, "error: there is no file or folder " in said.err) == (4, True)


def test_owner_and_licence_are_never_unknown(up: Any, say: Any, stray: Path) -> None:
    said = say(up, "models", "adopt", str(stray), "--name", "stray", "--unknown", "license=lost")
    assert said.code == 2


def test_a_program_beside_the_weights_is_refused_unless_it_stays_behind(up: Any, say: Any, stray: Path) -> None:
    (stray / "training_args.bin").write_bytes(pickle.dumps(Path("x")))
    words = ("models", "adopt", str(stray), "--name", "beside", "--project", "research", *STATED, *UNKNOWN)
    said = say(up, *words)
    assert said.code == 3
    assert "training_args.bin holds pathlib.PosixPath" in said.err
    said = say(up, *words, "--leave-out", "training_args*")
    assert said.code == 0, said.err
    assert "training_args.bin stayed behind" in said.out


def test_a_file_that_keras_saved_says_what_loads_it(up: Any, say: Any, tmp_path: Path) -> None:
    """Three parts stored in a zip. Source: Keras 3, `keras/src/saving/saving_lib.py`."""
    parts = {"metadata.json": b'{"keras_version": "3.12.0"}', "config.json": b"{}"}
    parts["model.weights.h5"] = b"\x89HDF\r\n\x1a\n" + bytes(600)
    with zipfile.ZipFile(tmp_path / "model.keras", "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    source = str(tmp_path / "model.keras")
    said = say(up, "models", "adopt", source, "--name", "layers", "--project", "research", *STATED, *UNKNOWN)
    assert said.code == 0, said.err
    told = say(up, "models", "certificate", "layers@1", "-o", "json").data["statement"]["predicate"]
    assert told["version"]["framework"] == "keras"
    assert [(each["path"], each["format"]) for each in told["manifest"]["files"]] == [("model.keras", "keras")]
