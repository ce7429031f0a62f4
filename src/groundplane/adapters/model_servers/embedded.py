"""The embedded engine behind the ModelServer port: how to start it, and whether it really answers."""

from __future__ import annotations

import importlib.util
import sys
import time
from pathlib import Path

import httpx

from groundplane.ports import Readiness

_NEEDS = ("ctranslate2", "tokenizers", "safetensors", "numpy")
_ANSWER_TIMEOUT_S = 30.0


class EmbeddedModelServer:
    """Serves Llama-architecture models on the CPU with CTranslate2, one process per replica.

    The engine's libraries are looked for and never imported here: a control plane without them still runs.
    """

    packages = (*_NEEDS, "groundplane")

    def unavailable(self) -> str | None:
        """What is missing and how to get it; None when the engine can run."""
        missing = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
        if not missing:
            return None
        return f"{', '.join(missing)} not installed: pip install 'groundplane[engine]'"

    def command(self, *, model_dir: Path, name: str, port: int, threads: int, cache_dir: Path) -> tuple[str, ...]:
        """The argv of a server on 127.0.0.1:port. `threads` is the CPU threads it may use in all, at least 1."""
        return (
            sys.executable,
            "-m",
            "groundplane.adapters.model_servers.engine",
            *("--model-dir", str(model_dir), "--name", name, "--port", str(port)),
            *("--threads", str(threads), "--cache-dir", str(cache_dir)),
        )

    async def ready(self, base_url: str, model: str) -> Readiness:
        """Ready means that a test prompt was answered with at least one token; a healthy port alone is not enough."""
        order = {"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0}
        try:
            # Loading certificates for a plain address took longer than an answer does, and was counted as latency.
            tls = base_url.startswith("https://")
            async with httpx.AsyncClient(timeout=_ANSWER_TIMEOUT_S, trust_env=False, verify=tls) as client:
                started = time.monotonic()
                response = await client.post(f"{base_url.rstrip('/')}/v1/completions", json=order)
        except httpx.ConnectError:
            return Readiness(ok=False, detail=f"nothing listens at {base_url} yet")
        except httpx.TransportError as error:
            return Readiness(ok=False, detail=f"no answer from {base_url}: {error or type(error).__name__}")
        latency_s = time.monotonic() - started
        try:
            answer = response.json()
        except ValueError:
            return Readiness(ok=False, detail=f"HTTP {response.status_code}, not JSON", latency_s=latency_s)
        if response.status_code != 200:
            error_object = answer.get("error") if isinstance(answer, dict) else None
            said = error_object.get("message", "") if isinstance(error_object, dict) else ""
            return Readiness(ok=False, detail=f"HTTP {response.status_code}: {said}", latency_s=latency_s)
        usage = answer.get("usage") if isinstance(answer, dict) else None
        tokens = usage.get("completion_tokens", 0) if isinstance(usage, dict) else 0
        if not isinstance(tokens, int) or tokens < 1:
            return Readiness(ok=False, detail="the test prompt was answered with no token", latency_s=latency_s)
        return Readiness(ok=True, detail=f"answered {tokens} token in {latency_s:.3f} s", latency_s=latency_s)
