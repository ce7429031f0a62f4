"""What journeys that ask models share: a small model of two steps, what is stated of it, and somebody else's models."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.stage import Answer, Asked, Played

TRAINER = Path(__file__).parents[2] / "examples" / "tiny-lm" / "train.py"
STATED = (
    *("--project", "research", "--owner", "ana", "--license", "Apache-2.0", "--framework", "jax"),
    *("--code-commit", "2" * 40, "--training-run", "friday-1", "--metric", "loss=3.1"),
)
FACTS = ("--project", "research", "--owner", "ana", "--license", "CC0-1.0", "--classification", "internal")


def trained(folder: Path) -> Path:
    """A small model as safetensors, after two steps of the real trainer."""
    command = [sys.executable, str(TRAINER), "--steps", "2", "--length", "64", "--vocab", "384", "--width", "64"]
    places = ["--layers", "1", "--output-dir", str(folder / "model"), "--checkpoint-dir", str(folder / "steps")]
    subprocess.run([*command, *places], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)
    return folder / "model"


class HostedModels(ABC):
    """An OpenAI-compatible provider on this machine. Subclasses say what its models answer, while `go` is set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()
        self.url = ""

    @abstractmethod
    def answer(self, model: str, prompt: str) -> tuple[int, dict[str, Any]]:
        """A status and a body."""

    @contextmanager
    def serving(self) -> Iterator[None]:
        def answer(asked: Asked) -> Answer:
            body = asked.json
            return Answer(*self.answer(body["model"], str(body["messages"][-1]["content"])))

        with closing(Played(answer)) as played:
            self.url = f"{played.url}/v1"
            yield
            self.go.set()


def completion(text: str, model: str, **more: str) -> dict[str, Any]:
    """A chat completion of 10 and 5 tokens."""
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": model, "choices": [choice], "usage": usage}
    return {**body, **more}
