"""From a trained model to an answered and billed request, through the real command, server and gateway."""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai import AuthenticationError, NotFoundError, OpenAI, PermissionDeniedError, RateLimitError

TINY_LM = Path(__file__).parents[2] / "examples" / "tiny-lm"
ENDPOINT = """
apiVersion: groundplane/v1
kind: Endpoint
metadata: {{name: {name}, project: research, owner: ana, cost_center: r1}}
spec:
  model: {model}
  resources: {{cpus: 1, memory: 512MiB}}
  end_date: {end_date}
  max_cost: $0.20
  max_duration: 30m
  token_price: {{prompt: $1000, completion: $2000}}
"""


def endpoint_file(folder: Path, name: str, model: str = "tiny-lm@1") -> Path:
    path = folder / f"{name}.yaml"
    end_date = (datetime.now(UTC) + timedelta(days=2)).date().isoformat()
    path.write_text(ENDPOINT.format(name=name, model=model, end_date=end_date))
    return path


@pytest.fixture(scope="module")
def served(shared: Any) -> Iterator[Any]:
    """The installation with `tiny-lm@1` trained for a few steps and served as `tiny`."""
    job = shared.job(
        "tiny-lm",
        [sys.executable, "train.py", "--steps", "12"],
        workdir=str(TINY_LM),
        resources={"cpus": 1, "memory": "2GiB"},
        outputs={"models": [{"name": "tiny-lm", "path": ".", "license": "Apache-2.0", "framework": "jax"}]},
    )
    run_id = shared.submit(job)
    detail = shared.wait_run(run_id, "succeeded", "failed", timeout_s=120)
    assert detail.run.status == "succeeded", detail.run.message
    shared.ground("apply", "-f", str(endpoint_file(shared.home.parent, "tiny")), "--yes", "--wait")
    yield shared


@pytest.fixture(scope="module")
def key(served: Any) -> str:
    return new_key(served, "caller")


def new_key(served: Any, name: str, *options: str) -> str:
    made = served.data("keys", "create", "--name", name, "--project", "research", "--owner", "ana", *options)
    secret: str = made["secret"]
    base = served.gateway_url
    deadline = 50
    while httpx.get(f"{base}/v1/models", headers={"authorization": f"Bearer {secret}"}).status_code == 401:
        deadline -= 1
        assert deadline, "a new key must work within seconds"
        httpx.get(f"{base}/healthz")
    return secret


def openai(served: Any, key: str) -> OpenAI:
    return OpenAI(base_url=f"{served.gateway_url}/v1", api_key=key, max_retries=0)


def test_the_version_carries_a_certificate_that_verifies(served: Any) -> None:
    verified = served.data("models", "verify", "tiny-lm@1")
    assert verified["ok"] is True
    shown = served.ground("models", "show", "tiny-lm@1").stdout
    for fact in ("Apache-2.0", "ana", "run-"):
        assert fact in shown


def test_the_unmodified_openai_client_completes_chats_and_streams(served: Any, key: str) -> None:
    client = openai(served, key)
    assert [model.id for model in client.models.list()] == ["tiny"]
    done = client.completions.create(model="tiny", prompt="In the beginning", max_tokens=8)
    assert done.usage is not None
    assert done.usage.completion_tokens > 0
    chat = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "hello"}], max_tokens=8)
    assert chat.choices[0].message.content is not None
    pieces = list(client.completions.create(model="tiny", prompt="And", max_tokens=8, stream=True))
    assert pieces[-1].choices[0].finish_reason in {"length", "stop"}


def test_errors_are_openais_errors(served: Any, key: str) -> None:
    with pytest.raises(AuthenticationError):
        openai(served, "gp-caller-nobody").models.list()
    with pytest.raises(NotFoundError):
        openai(served, key).completions.create(model="no-such-model", prompt="x")
    other = new_key(served, "elsewhere", "--models", "another-model")
    with pytest.raises((PermissionDeniedError, NotFoundError)):
        openai(served, other).completions.create(model="tiny", prompt="x")


def test_a_rate_limit_answers_429_with_an_honest_retry_after(served: Any) -> None:
    client = openai(served, new_key(served, "slow", "--rpm", "2"))
    with pytest.raises(RateLimitError) as limited:
        for _ in range(6):
            client.completions.create(model="tiny", prompt="x", max_tokens=1)
    assert 0 < float(limited.value.response.headers["retry-after"]) <= 60


def test_a_revoked_key_stops_working_within_a_second(served: Any, wait: Callable[..., Any]) -> None:
    secret = new_key(served, "brief")
    (found,) = [k for k in served.data("keys", "list") if k["name"] == "brief"]
    served.ground("keys", "revoke", found["id"])
    headers = {"authorization": f"Bearer {secret}"}
    wait(lambda: httpx.get(f"{served.gateway_url}/v1/models", headers=headers).status_code == 401, "401", 3)


def test_every_answer_before_a_gateway_kill_is_in_the_ledger_once(served: Any, wait: Callable[..., Any]) -> None:
    client = openai(served, new_key(served, "counted"))
    (found,) = [k for k in served.data("keys", "list") if k["name"] == "counted"]

    def call(_: int) -> int:
        done = client.completions.create(model="tiny", prompt="And", max_tokens=1)
        return done.usage.prompt_tokens + done.usage.completion_tokens  # type: ignore[union-attr]

    with ThreadPoolExecutor(4) as pool:
        tokens = sum(pool.map(call, range(200)))
    gateway = served.process_running("groundplane.gateway")
    os.kill(gateway.pid, signal.SIGKILL)

    def row() -> dict[str, Any]:
        rows = served.data("cost", "--by", "key")
        return next((r for r in rows if r["group"] == found["id"]), {"requests": 0})

    wait(lambda: row()["requests"] >= 200, "200 requests in the ledger", 30)
    wait(lambda: httpx.get(f"{served.gateway_url}/healthz").status_code == 200 if _up(served) else False, "gateway", 20)
    counted = row()
    assert counted["requests"] == 200
    assert counted["prompt_tokens"] + counted["completion_tokens"] == tokens


def _up(served: Any) -> bool:
    try:
        httpx.get(f"{served.gateway_url}/healthz")
    except httpx.TransportError:
        return False
    return True


def test_a_stray_pickle_is_refused_with_what_is_missing(served: Any, tmp_path: Path) -> None:
    stray = tmp_path / "model_final_v2_FIXED.pt"
    stray.write_bytes(pickle.dumps({"weights": [0.0] * 8}))
    refused = served.ground("models", "register", str(stray), "--name", "final", "--project", "research", expect=3)
    assert "pickle" in refused.stderr
    assert "safetensors" in refused.stderr


def test_an_engine_that_can_not_load_a_model_says_why(served: Any, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    served.ground("models", "pull", "tiny-lm@1", str(folder))
    config = folder / "config.json"
    config.write_text(config.read_text().replace("LlamaForCausalLM", "GPT2LMHeadModel"))
    facts = ("--owner", "ana", "--license", "Apache-2.0", "--training-run", "elsewhere", "--code-commit", "0" * 40,
             "--data", f"corpus={'1' * 64}", "--metric", "f1=0.93")  # fmt: skip
    served.ground("models", "register", str(folder), "--name", "other", "--project", "research", *facts)
    path = endpoint_file(tmp_path, "other", "other@1")
    said = served.ground("apply", "-f", str(path), "--yes", "--wait", expect=9)
    assert "other@1: architecture ['GPT2LMHeadModel'] is not LlamaForCausalLM" in said.stdout + said.stderr
    for name in ("tokenizer.json", "config.json"):
        (folder / name).unlink()
    served.ground("models", "register", str(folder), "--name", "other", "--project", "research", *facts)
    path = endpoint_file(tmp_path, "bare", "other@2")
    said = served.ground("plan", "-f", str(path), expect=3)
    assert "model-files: needs config.json, tokenizer.json in other@2" in said.stderr


def test_a_flipped_bit_stops_verification_and_deployment_and_is_named(served: Any) -> None:
    (weights,) = (served.home / "runs").rglob("output/**/model.safetensors")
    middle = weights.read_bytes()[weights.stat().st_size // 2 :][:64]
    blob = next(p for p in (served.home / "store").rglob("*") if p.is_file() and middle in p.read_bytes())
    at = blob.read_bytes().index(middle)
    blob.chmod(0o600)
    _flip(blob, at)
    try:
        said = served.ground("models", "verify", "tiny-lm@1", expect=8)
        assert "model.safetensors" in said.stdout + said.stderr
        path = endpoint_file(served.home.parent, "second")
        served.ground("apply", "-f", str(path), "--yes", expect=8)
    finally:
        _flip(blob, at)
        blob.chmod(0o444)
    assert served.data("models", "verify", "tiny-lm@1")["ok"] is True


def _flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_spent_budget_refuses_requests_with_insufficient_quota(served: Any, wait: Callable[..., Any]) -> None:
    secret = new_key(served, "spender")
    spent = served.data("budget", "show", "research")
    limit = (spent["posted_microusd"] + spent["held_microusd"]) / 1e6 + 0.002
    served.ground("budget", "set", "research", f"${limit:.6f}")
    client = openai(served, secret)

    def refused() -> bool:
        try:
            client.completions.create(model="tiny", prompt="And the " * 20, max_tokens=20)
        except RateLimitError as error:
            return error.code == "insufficient_quota"
        return False

    wait(refused, "insufficient_quota", 30)
    after = served.data("budget", "show", "research")
    assert after["posted_microusd"] + after["held_microusd"] <= after["limit_microusd"]
    served.ground("budget", "set", "research", "$20")


def test_a_stopped_endpoint_leaves_the_gateway_and_costs_no_more(
    served: Any, key: str, wait: Callable[..., Any]
) -> None:
    path = endpoint_file(served.home.parent, "brief")
    served.ground("apply", "-f", str(path), "--yes", "--wait")
    client = openai(served, key)
    wait(lambda: "brief" in [m.id for m in client.models.list()], "the new model", 10)
    served.ground("stop", "brief")
    wait(lambda: served.data("endpoints", "show", "brief")["status"] == "stopped", "stopped", 30)
    wait(lambda: "brief" not in [m.id for m in client.models.list()], "the model gone", 10)
    assert not [r for r in served.client.runs(status="active") if r.endpoint == "brief"]
    version, url = served.data("endpoints", "show", "brief")["model_version"], f"http://127.0.0.1:{served.port}"
    with httpx.Client(base_url=url, headers={"Origin": url}, follow_redirects=True, timeout=30) as browser:
        browser.post("/console/login", data={"key": served.admin_key})
        page = browser.get(f"/console/models/{version}").text
    assert 'Serves <a href="/console/endpoints/tiny">tiny</a>.' in page
    assert 'Endpoint <a href="/console/endpoints/brief">brief</a>, which is to serve it, is stopped.' in page
