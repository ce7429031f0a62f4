"""A real vLLM loads a version by its name from our hub, answers behind our gateway, and stops where trust does.

Skipped where no `vllm` is on the PATH; docs/guides/engines.md says how one is put there.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import OpenAI

from .conftest import free_ports

STATED = (
    *("--project", "research", "--owner", "ana", "--license", "Apache-2.0", "--framework", "transformers"),
    *("--data", f"none={'1' * 64}", "--code-commit", "2" * 40, "--training-run", "by-hand"),
)
GATE = """
apiVersion: groundplane/v1
kind: Gate
metadata: {name: quality, project: research}
spec:
  aliases: [production]
  requirements:
    - {metric: f1, at_least: 0.9}
"""
# A tokenizer of bytes and random weights: what counts is that two programs say the same of them.
MAKE = """
import json, sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
letters = sorted(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *letters])}
plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
plain.pre_tokenizer, plain.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", model_max_length=512)
tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
torch.manual_seed(7)
sizes = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8)
model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, bos_token_id=0,
                                     eos_token_id=1, **sizes)).eval()
model.save_pretrained(sys.argv[1]), tokenizer.save_pretrained(sys.argv[1])
prompt = tokenizer("<s>Hello", return_tensors="pt", add_special_tokens=False).input_ids
said = model.generate(prompt, max_new_tokens=12, do_sample=False)[0, prompt.shape[1]:]
print(json.dumps({"prompt": prompt.shape[1], "text": tokenizer.decode(said, skip_special_tokens=True)}))
"""


class Engine:
    """`vllm serve` of one revision, its cache in `folder`."""

    def __init__(self, installation: Any, folder: Path, revision: str, *, key: str = "") -> None:
        (self.port,) = free_ports(1)
        folder.mkdir(exist_ok=True)
        self.log = folder / f"{revision}.log"
        env = installation.env | {
            "HF_ENDPOINT": f"http://127.0.0.1:{installation.port}/hf",
            "HF_TOKEN": key or installation.admin_key,
            "HF_HOME": str(folder / "cache"),
            "VLLM_CACHE_ROOT": str(folder / "vllm"),
            "VLLM_API_KEY": "the-engines-own",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NO_USAGE_STATS": "1",
        }
        place = ["--host", "127.0.0.1", "--port", str(self.port)]
        small = ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager", "--max-num-seqs", "4"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                ["vllm", "serve", "research/tiny", "--revision", revision, *place, *small],
                env=env,
                cwd=folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-3000:]
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"http://127.0.0.1:{self.port}/health").is_success
        return False

    def counted(self, what: str) -> int:
        lines = httpx.get(f"http://127.0.0.1:{self.port}/metrics").text.splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(f"vllm:{what}_tokens_total{{")))

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(120)


@contextlib.contextmanager
def serving(installation: Any, folder: Path, revision: str, wait: Callable[..., Any]) -> Iterator[Engine]:
    engine = Engine(installation, folder, revision)
    try:
        wait(engine.answers, "vLLM to answer", 600)
        yield engine
    finally:
        engine.stop()


def refused(installation: Any, folder: Path, revision: str, key: str = "") -> str:
    """What vLLM says as it gives up."""
    engine = Engine(installation, folder, revision, key=key)
    try:
        assert engine.process.wait(600) != 0
    finally:
        engine.stop()
    return engine.log.read_text()


@pytest.mark.needs("vllm")
def test_vllm_serves_what_an_alias_stands_for_behind_the_gateway(
    installation: Any, tmp_path: Path, wait: Callable[..., Any]
) -> None:
    python = Path(shutil.which("vllm") or "").resolve().with_name("python")
    made = subprocess.run([python, "-c", MAKE, tmp_path / "model"], capture_output=True, text=True, check=True)
    expected = json.loads(made.stdout.splitlines()[-1])
    for f1 in ("0.95", "0.5"):
        (tmp_path / "model" / "NOTE.txt").write_text(f1)
        installation.ground(
            "models", "register", str(tmp_path / "model"), "--name", "tiny", *STATED, "--metric", f"f1={f1}"
        )
    (tmp_path / "gate.yaml").write_text(GATE)
    installation.ground("gates", "define", "-f", str(tmp_path / "gate.yaml"))
    installation.ground("models", "alias", "tiny@production", "1", "--reason", "good enough")
    installation.ground("models", "alias", "tiny@production", "2", "--reason", "newer", expect=3)

    with serving(installation, tmp_path, "production", wait) as engine:
        (tmp_path / "key").write_text("the-engines-own")
        place = ("--kind", "openai-compatible", "--url", f"http://127.0.0.1:{engine.port}/v1", "--private")
        installation.ground(
            "providers", "add", "own", "--project", "research", *place, "--key-file", str(tmp_path / "key")
        )
        target = "provider:own/research/tiny,prompt=2,completion=10,context=256"
        installation.ground("routes", "set", "chat", "--project", "research", "--target", target)
        secret = installation.data("keys", "create", "--project", "research", "--name", "app")["secret"]
        bearer = {"Authorization": f"Bearer {secret}"}
        listed = f"{installation.gateway_url}/v1/models"
        wait(lambda: "chat" in httpx.get(listed, headers=bearer).text, "the gateway to know key and route")
        client = OpenAI(base_url=f"{installation.gateway_url}/v1", api_key=secret, max_retries=0)
        asked: Any = {"model": "chat", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0}
        whole = client.chat.completions.create(max_tokens=12, logprobs=True, **asked)
        assert whole.choices[0].message.content == expected["text"]
        assert whole.usage and whole.usage.prompt_tokens == expected["prompt"]
        assert whole.choices[0].logprobs and len(whole.choices[0].logprobs.content or ()) == 12
        events = list(client.chat.completions.create(max_tokens=9, stream=True, **asked))
        assert all(event.choices for event in events), "the usage event is the gateway's alone"
        client.completions.create(model="chat", prompt=["one", "two"], max_tokens=5, temperature=0)

        def charged() -> dict[str, int]:
            (spent,) = installation.data("cost", "--by", "model") or [{}]
            return {kind: spent.get(f"{kind}_tokens", 0) for kind in ("prompt", "completion")}

        counted = {"prompt": engine.counted("prompt"), "completion": engine.counted("generation")}
        assert counted["completion"] == 12 + 9 + 10
        wait(lambda: charged() == counted, "the ledger to have what vLLM counted")

    said = refused(installation, tmp_path, "candidate")
    assert "research/tiny has no revision candidate" in said
    assert "this key is not known here" in refused(installation, tmp_path / "elsewhere", "1", key="gp-viewer-wrong")
    with contextlib.closing(sqlite3.connect(installation.home / "groundplane.db", timeout=60)) as raw, raw:
        raw.execute("UPDATE model_versions SET license = 'MIT' WHERE id = 'tiny@1'")
    said = refused(installation, tmp_path, "production")
    assert "tiny@1 is not what was signed: license: the row says 'MIT'" in said, (
        "what it has in its cache is no way out"
    )
