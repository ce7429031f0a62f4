"""Batch inference: which rows make which shard, how a row becomes a request, and how an answer becomes a line.

Source of the lines' shape: OpenAI API reference, Batch, "The request input object" and "The request output object".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.judging import filled, text_of
from groundplane.domain.spec.inference import Asking
from groundplane.errors import InvalidInput

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
CUSTOM_ID_MAX = 512
_BOUNDARY = re.compile(r"[\x00-\x1f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One batch that ended. id is its run's. `output` is the dataset version made; empty when too many rows failed."""

    id: str
    name: str
    project: str
    owner: str
    target: str
    model_version: str
    dataset: str
    output: str
    artifact_id: str
    rows: int
    errors: int
    shards: int
    prompt_tokens: int
    completion_tokens: int
    cost_microusd: int
    cost_microusd_per_1000: int
    cost_source: str
    at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProgress:
    """How far a batch is. `rows` is 0 until its file was read."""

    run_id: str
    status: str
    rows: int = 0
    done: int = 0
    errors: int = 0
    shards: int = 0
    shards_done: int = 0
    result: Batch | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One row's request. The body's `model` is set when it is sent: whom to ask is the spec's to say."""

    custom_id: str
    url: str
    body: dict[str, object]


def shards(rows: int, shard_rows: int) -> list[tuple[int, int]]:
    """(first row, one past the last) of each shard: every row in exactly one, in order."""
    return [(first, min(first + shard_rows, rows)) for first in range(0, rows, shard_rows)]


def openai_request(row: Mapping[str, object], number: int) -> Request:
    """A line of a Batch API file. InvalidInput says what is wrong with it; `number` counts lines from 1."""
    custom_id, url, body = row.get("custom_id"), row.get("url"), row.get("body")
    where = f"line {number}"
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= CUSTOM_ID_MAX or _BOUNDARY.search(custom_id):
        raise InvalidInput(f"{where}: custom_id must be a text of 1 to {CUSTOM_ID_MAX} characters")
    if row.get("method", "POST") != "POST":
        raise InvalidInput(f"{where}: method must be POST, is {str(row.get('method'))[:20]!r}")
    if url not in URLS:
        raise InvalidInput(f"{where}: url must be one of {', '.join(URLS)}, is {str(url)[:60]!r}")
    if not isinstance(body, dict):
        raise InvalidInput(f"{where}: body must be an object")
    if body.get("stream"):
        raise InvalidInput(f"{where}: stream must not be set in a batch")
    return Request(custom_id, str(url), dict(body))


def table_request(asking: Asking, row: Mapping[str, object], number: int) -> Request:
    """The request that a table's row makes. InvalidInput names a column that the row lacks."""
    try:
        prompt = filled(asking.prompt, row)
    except KeyError as error:
        have = ", ".join(list(row)[:20])
        raise InvalidInput(f"line {number}: there is no column {error.args[0]!r}", f"the row has {have}") from None
    url, body = asked(asking, prompt)
    return Request(text_of(row.get("custom_id", f"row-{number}")), url, body)


def asked(asking: Asking, prompt: str, logprobs: bool = False) -> tuple[str, dict[str, object]]:
    """The path and body of one question."""
    body: dict[str, object] = {"max_tokens": asking.max_tokens, "temperature": asking.temperature}
    if asking.api == "completions":
        text = f"{asking.system}\n\n{prompt}" if asking.system else prompt
        return "/v1/completions", {**body, "prompt": text, **({"logprobs": 0} if logprobs else {})}
    said = [{"role": "system", "content": asking.system}] if asking.system else []
    said.append({"role": "user", "content": prompt})
    return "/v1/chat/completions", {**body, "messages": said, **({"logprobs": True} if logprobs else {})}


def response_line(custom_id: str, request_id: str, status: int, body: object, error: str) -> dict[str, object]:
    """A line of the output: an answer, also one that refuses, or why there is none."""
    name = hashlib.sha256(custom_id.encode()).hexdigest()[:24]
    response = {"status_code": status, "request_id": request_id, "body": body} if status else None
    wrong = {"code": "no_answer", "message": error} if error and not status else None
    return {"id": f"batch_req_{name}", "custom_id": custom_id, "response": response, "error": wrong}


def table_line(row: Mapping[str, object], answer: str, error: str) -> dict[str, object]:
    """The row with an `answer` and an `error` column; one of them is empty."""
    return {**row, "answer": answer, "error": error}


def answer_of(body: object) -> str | None:
    """The text of a chat or a completion; None when it holds none."""
    choices = body.get("choices") if isinstance(body, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(first, dict):
        return None
    message = first.get("message")
    text = message.get("content") if isinstance(message, dict) else first.get("text")
    return text if isinstance(text, str) else None


def kept_name(run_id: str) -> str:
    """The artifact with the finished shards of a batch that another takes up again."""
    return f"{run_id}-shards"


def cost_per_1000(cost_microusd: int, count: int) -> int:
    """Micro-dollars for 1,000, rounded up; 0 of nothing."""
    return -(-cost_microusd * 1000 // count) if count else 0
