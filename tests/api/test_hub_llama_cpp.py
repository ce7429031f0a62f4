"""llama.cpp answers with a model from our hub: node-llama-cpp, a real build of it, pulls by name and by alias."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from array import array
from pathlib import Path
from typing import Any

import pytest

from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.identity import Role

FACTS = Facts(
    owner="ana",
    license="Apache-2.0",
    framework="llama.cpp",
    data=(DataFact(name="none", sha256="a" * 64),),
    code_commit="0" * 40,
    training_run="made-for-a-test",
    metrics={"loss": 1.0},
)
TOKENS = 64
SAY = """
const {getLlama} = await import(process.argv[2]);
const llama = await getLlama({gpu: false, build: "never", logLevel: "error", maxThreads: 1});
const model = await llama.loadModel({modelPath: process.argv[3]});
const sequence = (await model.createContext({contextSize: 64})).getSequence();
const said = [];
for await (const token of sequence.evaluate([1], {temperature: 0})) { said.push(token); if (said.length === 5) break; }
console.log(JSON.stringify(said));
process.exit(0);
"""


def counting_model(step: int) -> bytes:
    """A Llama as GGUF, of one layer that adds nothing: after token t comes (t + step) % TOKENS.

    Source: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
    """
    facts = [
        *(_text(key) + struct.pack("<I", 8) + _text(value) for key, value in _WORDS.items()),
        *(_text(key) + struct.pack("<II", 4, value) for key, value in _NUMBERS.items()),
        _text("llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5),
        _text("tokenizer.ggml.tokens") + _array([chr(48 + token) for token in range(TOKENS)]),
        _text("tokenizer.ggml.merges") + _array([]),
    ]
    ones, zeros = array("f", [1.0] * TOKENS), array("f", bytes(4 * TOKENS**2))
    itself, following = array("f", zeros), array("f", zeros)
    for token in range(TOKENS):
        itself[token * TOKENS + token] = 1.0
        following[(token + step) % TOKENS * TOKENS + token] = 1.0
    tensors = {"token_embd": itself, "output": following, "output_norm": ones}
    tensors |= {f"blk.0.{name}": ones for name in ("attn_norm", "ffn_norm")}
    tensors |= {f"blk.0.attn_{name}": zeros for name in ("q", "k", "v", "output")}
    tensors |= {f"blk.0.ffn_{name}": zeros for name in ("gate", "up", "down")}
    places, data = b"", b""
    for name, values in tensors.items():
        shape = [TOKENS] * (1 if values is ones else 2)
        told = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        places, data = places + _text(f"{name}.weight") + told, data + values.tobytes()
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(facts)) + b"".join(facts) + places
    return head + bytes(-len(head) % 32) + data


_WORDS = {"general.architecture": "llama", "tokenizer.ggml.model": "gpt2"}
_SIZES = ("context_length", "embedding_length", "feed_forward_length", "vocab_size")
_NUMBERS = {
    **{f"llama.{size}": TOKENS for size in _SIZES},
    "llama.block_count": 1,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 2,
    **{f"tokenizer.ggml.{end}_token_id": 0 for end in ("bos", "eos")},
}


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _array(values: list[str]) -> bytes:
    return struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(_text, values))


@pytest.mark.needs("node-llama-cpp")
def test_llama_cpp_answers_with_the_version_that_a_name_stands_for(served: Any, tmp_path: Path) -> None:
    for step in (3, 5):
        (tmp_path / "counting.gguf").write_bytes(counting_model(step))
        upload = served.client.create_upload()
        served.client.upload_file(upload.id, "counting-F32.gguf", tmp_path / "counting.gguf")
        served.client.register_model("counting", upload_id=upload.id, project="default", facts=FACTS)
    served.client.move_alias("counting", "production", to="1", reason="the first one")

    program = shutil.which("node-llama-cpp")
    assert program is not None
    library = Path(program).resolve().parents[1] / "index.js"
    script = tmp_path / "say.mjs"
    script.write_text(SAY)
    env = {**os.environ, "HF_ENDPOINT": f"{served.url}/hf", "HF_TOKEN": served.key(Role.VIEWER)}

    def run(*command: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=env | more, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    def said_by(uri: str, folder: str) -> list[int]:
        pulled = run(program, "pull", "--dir", tmp_path / folder, uri)
        assert pulled.returncode == 0, pulled.stdout + pulled.stderr
        (file,) = (tmp_path / folder).glob("*.gguf")
        done = run("node", script, library.as_uri(), file)
        assert done.returncode == 0, done.stderr
        return [int(token) for token in json.loads(done.stdout.splitlines()[-1])]

    assert said_by("hf:default/counting/counting-F32.gguf#production", "alias") == [4, 7, 10, 13, 16]
    assert said_by("hf:default/counting:F32", "newest") == [6, 11, 16, 21, 26]
    refused = run(program, "pull", "--dir", tmp_path / "none", "hf:default/counting/counting-F32.gguf#staging")
    assert refused.returncode != 0
    assert not list((tmp_path / "none").glob("*.gguf"))
    refused = run(program, "pull", "--dir", tmp_path / "none", "hf:default/counting", HF_TOKEN="gp-viewer-wrong")
    assert refused.returncode != 0
