"""The embedded engine as callers meet it: a real process, a really trained (if barely) model, the openai client."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from groundplane.adapters.model_servers.embedded import EmbeddedModelServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny-lm"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
PROMPTS = ("And the LORD said", "In the beginning", "naïve 日本 🎉")
LONG_CONTEXT = 16_384
TRAIN = [
    *(sys.executable, str(EXAMPLE / "train.py")),
    *("--steps", "12", "--length", "64", "--vocab", "384", "--width", "96", "--layers", "2"),
]


def until(holds: Callable[[], object], what: str, deadline_s: float = 90.0) -> None:
    end = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < end, f"after {deadline_s} s: not {what}"
        time.sleep(0.02)


@dataclass
class Served:
    url: str
    process: subprocess.Popen[str]

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@contextmanager
def serving(model_dir: Path, folder: Path, *options: str) -> Iterator[Served]:
    folder.mkdir(parents=True, exist_ok=True)
    port_file = folder / "port"
    command = EmbeddedModelServer().command(
        model_dir=model_dir, name="tiny", port=0, threads=1, cache_dir=folder / "cache"
    )
    process = subprocess.Popen(
        [*command, "--port-file", str(port_file), *options],
        env=ENV,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        until(lambda: port_file.exists() or process.poll() is not None, "listening")
        assert process.poll() is None, process.communicate()[0]
        served = Served(f"http://127.0.0.1:{port_file.read_text().strip()}", process)
        until(lambda: httpx.get(f"{served.url}/health").status_code == 200, "healthy")
        yield served
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model after 12 steps of the real trainer."""
    folder = tmp_path_factory.mktemp("trained")
    places = ["--output-dir", str(folder / "model"), "--checkpoint-dir", str(folder / "checkpoints")]
    subprocess.run([*TRAIN, *places], env=ENV, check=True)
    return folder / "model"


@pytest.fixture(scope="module")
def long_model_dir(model_dir: Path) -> Path:
    """The same weights with a long context, so that a generation lasts long enough to be interrupted."""
    folder = model_dir.with_name("long-model")
    shutil.copytree(model_dir, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": LONG_CONTEXT}))
    return folder


@pytest.fixture(scope="module")
def server(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(model_dir, tmp_path_factory.mktemp("engine")) as served:
        yield served


@pytest.fixture(scope="module")
def long_server(long_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(long_model_dir, tmp_path_factory.mktemp("long"), "--queue", "0") as served:
        yield served


def test_the_converted_model_computes_the_trainers_logits(model_dir: Path, tmp_path: Path) -> None:
    from functools import partial

    import ctranslate2
    import jax
    import jax.numpy as jnp
    from safetensors.numpy import load_file

    from groundplane.adapters.model_servers.generation import LoadedModel

    sys.path.insert(0, str(EXAMPLE))
    try:
        import model as trainer
    finally:
        sys.path.remove(str(EXAMPLE))
    loaded = LoadedModel(model_dir, tmp_path, parallel=1, threads_each=1)
    config = json.loads((model_dir / "config.json").read_text())
    shape = trainer.Shape(
        vocab=config["vocab_size"],
        width=config["hidden_size"],
        layers=config["num_hidden_layers"],
        context=config["max_position_embeddings"],
    )
    params = {name: jnp.asarray(value) for name, value in load_file(model_dir / "model.safetensors").items()}
    generator = ctranslate2.Generator(str(loaded.converted), compute_type="float32")
    forward = jax.jit(partial(trainer.forward, shape=shape))
    for prompt in PROMPTS:
        ids = loaded.tokenizer.encode(prompt).ids
        # Padding at the end changes nothing before it, and one compiled length serves all prompts.
        ours = np.asarray(forward(params, jnp.asarray([ids + [0] * (32 - len(ids))])))[:, : len(ids)]
        theirs = np.asarray(generator.forward_batch([[loaded.tokens[token] for token in ids]]))
        np.testing.assert_allclose(theirs, ours, atol=2e-4)


def test_greedy_answers_are_the_trainers_own(model_dir: Path, server: Served, tmp_path: Path) -> None:
    checkpoints = model_dir.parent / "checkpoints"
    command = [*TRAIN, "--checkpoint-dir", str(checkpoints), "--output-dir", "out", "--sample-tokens", "40"]
    samples = [option for prompt in PROMPTS for option in ("--sample", prompt)]
    said = subprocess.run([*command, *samples], env=ENV, cwd=tmp_path, check=True, capture_output=True, text=True)
    expected = [
        json.loads(line.removeprefix("sample "))["text"]
        for line in said.stdout.splitlines()
        if line.startswith("sample ")
    ]
    assert len(expected) == len(PROMPTS)
    for prompt, continuation in zip(PROMPTS, expected, strict=True):
        answer = server.client().completions.create(model="tiny", prompt=prompt, max_tokens=40, temperature=0)
        assert answer.choices[0].text.rstrip("\ufffd") == continuation.rstrip("\ufffd")


def test_a_whole_answer_counts_its_tokens_and_says_why_it_ended(server: Served) -> None:
    answer = server.client().completions.create(model="tiny", prompt="And God said", max_tokens=7, temperature=0)
    assert answer.object == "text_completion"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 7
    assert answer.usage.prompt_tokens > 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 7
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 0


def test_a_streamed_chat_is_the_whole_chat_in_pieces(server: Served) -> None:
    client = server.client()
    order = {"model": "tiny", "messages": [{"role": "user", "content": "Abraham"}], "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**order)
    chunks = list(client.chat.completions.create(**order, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices and c.choices[0].finish_reason] == ["length"]
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_the_same_seed_gives_the_same_text_streamed_or_not_and_whole_characters_only(server: Served) -> None:
    client, texts = server.client(), set()
    for seed in range(6):
        # Temperature 2 on a barely trained byte-level model: many pieces are broken or partial UTF-8.
        order = {"model": "tiny", "prompt": "日本", "max_tokens": 40, "temperature": 2.0, "seed": seed}
        whole = client.completions.create(**order).choices[0].text
        pieces = [chunk.choices[0].text for chunk in client.completions.create(**order, stream=True)]
        assert "".join(pieces) == whole
        texts.add(whole)
    assert len(texts) > 1


def test_without_a_seed_samples_differ(server: Served) -> None:
    order = {"model": "tiny", "prompt": "And", "max_tokens": 30, "temperature": 1.5}
    assert len({server.client().completions.create(**order).choices[0].text for _ in range(4)}) > 1


def test_a_stop_string_ends_the_answer_before_itself(server: Served) -> None:
    client = server.client()
    order = {"model": "tiny", "prompt": "And the", "max_tokens": 40, "temperature": 0}
    full = client.completions.create(**order).choices[0].text
    stop = full[5:8]
    cut = client.completions.create(**order, stop=[stop, "never"]).choices[0]
    assert (cut.text, cut.finish_reason) == (full[: full.index(stop)], "stop")
    streamed = [chunk.choices[0] for chunk in client.completions.create(**order, stop=stop, stream=True)]
    assert "".join(choice.text for choice in streamed) == cut.text
    assert streamed[-1].finish_reason == "stop"


def test_a_chat_may_use_all_the_context_and_no_more(server: Served) -> None:
    client, messages = server.client(), [{"role": "user", "content": "Go"}]
    answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0)
    assert answer.usage is not None
    assert answer.usage.total_tokens == 64 or answer.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=messages, max_completion_tokens=64)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"logprobs": 3}, "logprobs"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"prompt": ["two", "prompts"]}, "prompt"),
        ({"prompt": [99_999]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(server: Served, change: dict[str, object], param: str) -> None:
    body = {"model": "tiny", "prompt": "And", "max_tokens": 2, **change}
    response = httpx.post(f"{server.url}/v1/completions", json=body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_bodies_that_are_not_requests_are_refused(server: Served) -> None:
    url = f"{server.url}/v1/chat/completions"
    for body in (b"{", b"\xff\xfe", b"[]", b'{"model": "tiny"}', b'{"model": "tiny", "messages": []}'):
        response = httpx.post(url, content=body)
        assert (response.status_code, "message" in response.json()["error"]) == (400, True), body
    image = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}
    assert httpx.post(url, json={"model": "tiny", "messages": [image]}).status_code == 400
    assert httpx.post(url, content=b" " * (1 << 20) + b"{}").status_code == 413

    def endless() -> Iterator[bytes]:
        for _ in range(40):
            yield b" " * 65_536

    assert httpx.post(url, content=endless()).status_code == 413


def test_another_models_name_is_not_found(server: Served) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        server.client().completions.create(model="gpt", prompt="x")
    assert refused.value.code == "model_not_found"
    assert [card.id for card in server.client().models.list()] == ["tiny"]


def test_many_callers_at_once_are_all_answered(server: Served) -> None:
    def ask(number: int) -> bool:
        order = {"model": "tiny", "prompt": f"And {number}", "max_tokens": 10, "temperature": 0}
        answer = server.client().completions.create(**order)
        assert answer.usage is not None
        return answer.choices[0].finish_reason == "stop" or answer.usage.completion_tokens == 10

    with ThreadPoolExecutor(12) as callers:
        assert all(callers.map(ask, range(24)))
    until(lambda: server.metric("groundplane_engine_requests_running") == 0, "idle again")


def test_a_caller_that_hangs_up_stops_its_generation(long_server: Served) -> None:
    order = {"model": "tiny", "prompt": "And", "max_tokens": LONG_CONTEXT - 100, "temperature": 0}
    url = f"{long_server.url}/v1/completions"
    with httpx.stream("POST", url, json={**order, "stream": True}) as response:
        lines = response.iter_lines()  # kept: dropping the iterator would already hang up
        assert next(lines).startswith("data: ")
        assert long_server.metric("groundplane_engine_requests_running") == 1
    until(lambda: long_server.metric("groundplane_engine_requests_running") == 0, "stopped after a stream")
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=order, timeout=0.3)
    until(lambda: long_server.metric("groundplane_engine_requests_running") == 0, "stopped after a whole answer")
    assert long_server.metric("groundplane_engine_cancelled_total") == 2


def test_a_full_queue_answers_503_with_retry_after(long_server: Served) -> None:
    url = f"{long_server.url}/v1/completions"
    order = {"model": "tiny", "prompt": "And", "max_tokens": LONG_CONTEXT - 100, "temperature": 0}
    with httpx.stream("POST", url, json={**order, "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        second = httpx.post(url, json=order)
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        assert second.json()["error"]["code"] == "overloaded"
    until(lambda: long_server.metric("groundplane_engine_requests_running") == 0, "free again")


def test_sigterm_lets_the_running_answer_finish(long_model_dir: Path, tmp_path: Path) -> None:
    with serving(long_model_dir, tmp_path) as served:
        order = {"model": "tiny", "prompt": "And", "max_tokens": 500, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{served.url}/v1/completions", json=order) as response:
            lines = response.iter_lines()
            next(lines)
            served.process.send_signal(signal.SIGTERM)
            assert [line for line in lines if line][-1] == "data: [DONE]"
        assert served.process.wait(timeout=60) == 0


async def test_it_is_ready_only_when_it_answered_a_prompt(server: Served) -> None:
    engine = EmbeddedModelServer()
    assert engine.unavailable() is None
    good = await engine.ready(server.url, "tiny")
    assert good.ok
    assert good.latency_s is not None
    assert not (await engine.ready(server.url, "another")).ok
    assert "nothing listens" in (await engine.ready("http://127.0.0.1:1", "tiny")).detail


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 64), "not a safetensors file"),
        (lambda d: (d / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (
            lambda d: (d / "config.json").write_text(
                (d / "config.json").read_text().replace('"hidden_act": "silu"', '"hidden_act": "gelu"')
            ),
            "hidden_act is 'gelu'",
        ),
        (
            lambda d: (d / "config.json").write_text(
                (d / "config.json").read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 3')
            ),
            "the weights lack model.layers.2",
        ),
    ],
    ids=["weights", "tokenizer", "activation", "layers"],
)
def test_a_model_it_would_compute_wrongly_is_refused(
    model_dir: Path, tmp_path: Path, damage: Callable[[Path], object], said: str
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(model_dir, broken)
    damage(broken)
    command = EmbeddedModelServer().command(
        model_dir=broken, name="tiny", port=0, threads=1, cache_dir=tmp_path / "cache"
    )
    ended = subprocess.run(command, check=False, env=ENV, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: ")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_binds_loopback_only(model_dir: Path, tmp_path: Path) -> None:
    command = EmbeddedModelServer().command(model_dir=model_dir, name="tiny", port=0, threads=1, cache_dir=tmp_path)
    ended = subprocess.run(
        [*command, "--host", "0.0.0.0"], check=False, env=ENV, capture_output=True, text=True, timeout=30
    )
    assert ended.returncode == 2
    assert "not a loopback address" in ended.stderr
