"""`transformers` reads a model from our hub as from any, and computes with it exactly what it did before."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from groundplane.domain.provenance.certificate import DataFact, Facts

FACTS = Facts(
    owner="ana",
    license="Apache-2.0",
    framework="transformers",
    data=(DataFact(name="none", sha256="a" * 64),),
    code_commit="0" * 40,
    training_run="made-for-a-test",
    metrics={"loss": 1.0},
)
# In an environment of their own: the libraries weigh a gigabyte, and read HF_ENDPOINT when they are imported.
MAKE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(7)
config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(config).eval()
model.save_pretrained(sys.argv[1])
torch.save(model(torch.arange(12).reshape(1, 12)).logits.detach(), sys.argv[2])
"""
READ = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], revision=sys.argv[2]).eval()
logits = model(torch.arange(12).reshape(1, 12)).logits.detach()
assert torch.equal(logits, torch.load(sys.argv[3])), (logits - torch.load(sys.argv[3])).abs().max()
print("equal", tuple(logits.shape))
"""


def python(text: str, *words: str, **env: str) -> str:
    torchrun = shutil.which("torchrun")
    assert torchrun is not None
    done = subprocess.run(
        [Path(torchrun).with_name("python"), "-c", text, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.needs("transformers")
def test_a_model_from_our_hub_gives_the_very_logits_it_gave_before(served: Any, tmp_path: Path) -> None:
    folder, logits = tmp_path / "model", tmp_path / "logits.pt"
    python(MAKE, str(folder), str(logits))
    upload = served.client.create_upload()
    for file in sorted(folder.iterdir()):
        served.client.upload_file(upload.id, file.name, file)
    served.client.register_model("llama-tiny", upload_id=upload.id, project="default", facts=FACTS)
    hub = {"HF_ENDPOINT": f"{served.url}/hf", "HF_TOKEN": served.admin_key, "HF_HOME": str(tmp_path / "cache")}
    said = python(READ, "default/llama-tiny", "v1", str(logits), **hub)
    assert said.split("\n")[-2] == "equal (1, 12, 64)"
