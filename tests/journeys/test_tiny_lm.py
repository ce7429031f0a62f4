"""The example trainer is killed in every way a night offers, and goes on from its last complete checkpoint."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from safetensors.numpy import load_file
from tokenizers import Tokenizer

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-lm"
SMALL = ["--length", "64", "--vocab", "384", "--width", "96", "--layers", "2", "--log-every", "5"]
EXIT_TERMINATED = 143


class Trainer:
    """The example as a runner starts it: only environment variables say where things go."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoints, self.output = folder, folder / "checkpoints", folder / "output"
        self.env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GROUND_RUN_ID": "run-test",
            "GROUND_CHECKPOINT_DIR": str(self.checkpoints),
            "GROUND_OUTPUT_DIR": str(self.output),
            "GROUND_RESUME_FROM": "",
        }

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(EXAMPLE / "train.py"), *SMALL, *options],
            env=self.env,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def run(self, *options: str) -> str:
        process = self.start(*options)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 0, said
        return said

    def steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.checkpoints.glob("step-*"))


def until(holds: Callable[[], object], process: subprocess.Popen[str], deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end, f"not within {deadline_s} s"
        time.sleep(0.02)


def example_module(name: str) -> ModuleType:
    """A module of the example, loaded under a name of its own: its folder is not on the path."""
    spec = importlib.util.spec_from_file_location(f"tiny_lm_{name}", EXAMPLE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logged_steps(said: str) -> list[int]:
    return [int(step) for step in re.findall(r"^step (\d+)/", said, flags=re.MULTILINE)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A run of 40 steps that nothing disturbed."""
    trainer = Trainer(tmp_path_factory.mktemp("whole"))
    trainer.run("--steps", "40", "--checkpoint-every", "10")
    return trainer


def test_a_run_killed_in_the_middle_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    process = trainer.start("--steps", "100000", "--checkpoint-every", "10")
    try:
        until(trainer.steps, process)
    finally:
        process.kill()
        process.communicate()
    last = max(trainer.steps())
    said = trainer.run("--steps", str(last + 20), "--checkpoint-every", "10")
    assert f"resumed from step {last}" in said
    assert min(logged_steps(said)) > last
    assert trainer.steps() == [last, last + 10, last + 20]


def test_a_resumed_run_sees_the_data_it_would_have_seen(finished: Trainer, tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    shutil.copytree(finished.checkpoints, trainer.checkpoints)
    shutil.rmtree(trainer.checkpoints / "step-000040")
    spoil(trainer.checkpoints / "step-000030", "flipped bit")
    said = trainer.run("--steps", "40", "--checkpoint-every", "10")
    assert "ignored checkpoint step-000030/state.safetensors" in said
    assert "resumed from step 20" in said
    whole, resumed = (json.loads((t.output / "metrics.json").read_text()) for t in (finished, trainer))
    assert resumed["loss"] == pytest.approx(whole["loss"], abs=2e-3)
    assert resumed["eval_loss"] == pytest.approx(whole["eval_loss"], abs=2e-3)
    assert resumed["tokens"] == whole["tokens"]


@pytest.mark.parametrize("damage", ["half-written", "no manifest", "empty file", "flipped bit"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(finished: Trainer, tmp_path: Path, damage: str) -> None:
    shutil.copytree(finished.checkpoints, tmp_path, dirs_exist_ok=True)
    newest = tmp_path / "step-000040"
    spoil(newest, damage)
    # A runner may name the newest checkpoint it saw; it is verified all the same.
    found = example_module("checkpoints").newest(tmp_path, newest)
    assert found is not None
    assert found[0]["step"] == 30


def spoil(checkpoint: Path, damage: str) -> None:
    state = checkpoint / "state.safetensors"
    match damage:
        case "half-written":
            checkpoint.rename(checkpoint.with_name(".step-000050.partial"))
        case "no manifest":
            (checkpoint / "manifest.json").unlink()
        case "empty file":
            state.write_bytes(b"")
        case "flipped bit":
            data = bytearray(state.read_bytes())
            data[len(data) // 2] ^= 1
            state.write_bytes(data)


def test_sigterm_checkpoints_at_once_and_exits_143(tmp_path: Path) -> None:
    trainer = Trainer(tmp_path)
    process = trainer.start("--steps", "100000", "--checkpoint-every", "100000")
    assert process.stdout is not None
    while not (line := process.stdout.readline()).startswith("step 10/"):
        assert line, "ended before step 10"
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == EXIT_TERMINATED
    (step,) = trainer.steps()
    assert step >= 10
    assert f"terminated at step {step}" in said


def test_a_checkpoint_of_another_recipe_is_refused_with_a_hint(finished: Trainer) -> None:
    process = finished.start("--steps", "50", "--seed", "7")
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "error: checkpoint step 40 was made with another corpus, seed or model size" in said
    assert "hint: " in said


def test_the_manifest_says_what_is_in_the_checkpoint(finished: Trainer) -> None:
    folder = finished.checkpoints / "step-000040"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["step"], manifest["run_id"]) == (40, "run-test")
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}
    for name, entry in manifest["files"].items():
        assert entry["bytes"] == (folder / name).stat().st_size
    assert manifest["metrics"]["loss"] < 6.0


def test_the_result_is_a_whole_hugging_face_folder(finished: Trainer) -> None:
    names = {path.name for path in finished.output.iterdir()}
    described = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert names == {*described, "model.safetensors", "metrics.json"}
    config = json.loads((finished.output / "config.json").read_text())
    metrics = json.loads((finished.output / "metrics.json").read_text())
    weights = load_file(finished.output / "model.safetensors")
    assert weights["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    kv_width = config["num_key_value_heads"] * config["head_dim"]
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (kv_width, config["hidden_size"])
    assert metrics["parameters"] == sum(value.size for value in weights.values())
    assert 0 < metrics["eval_loss"] < 6.0
    tokenizer = Tokenizer.from_file(str(finished.output / "tokenizer.json"))
    assert tokenizer.decode(tokenizer.encode("naïve 日本 🎉").ids) == "naïve 日本 🎉"
    assert tokenizer.encode("And").ids[0] == config["bos_token_id"]
