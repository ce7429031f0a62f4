"""The prediction log: one record per kept request, the same for every model and every API, and the rules of keeping.

A record holds what was asked and answered only where somebody switched that on for the project or the model. Who it is
about (`user` of OpenAI's APIs, `metadata.user_id` of Anthropic's, or the header `x-subject`) is kept as a pseudonym
that needs this installation's salt: records of one subject can be found and erased, and no name stands in them.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import msgspec

from groundplane.domain.serving.redaction import Redactions, redact_value
from groundplane.errors import InvalidInput

SCHEMA = 1
RETENTION_MAX_DAYS = 3650
SUBJECT_MAX_CHARACTERS = 512
PSEUDONYM = "sub-"
_DATA_URL_MIN_CHARACTERS = 256
_MODEL_MAX_CHARACTERS = 200
_DIALECTS = {
    "/v1/chat/completions": "openai.chat",
    "/v1/completions": "openai.completions",
    "/v1/responses": "openai.responses",
    "/v1/messages": "anthropic.messages",
    "/v1/messages/count_tokens": "anthropic.count_tokens",
}
_ASKED = frozenset({"model", "messages", "prompt", "input", "system", "instructions", "stream", "user", "metadata"})
_MARK = re.compile(r"_m([0-9a-f]{12})$")
_FILE = re.compile(r"(\d{4}-\d\d-\d\d)/(\d\d)-([a-z0-9][a-z0-9_.-]{0,55}?)\.(jsonl|jsonl\.gz|parquet)")


class Form(StrEnum):
    """What hours that are over are kept as. The hour in progress is JSON lines in any case."""

    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionRule:
    """What of a project's requests is kept. id is the project, or `project:model`; a model's rule goes before.

    `content`: whether prompts and answers are kept, or figures alone. `sample_percent` of requests are kept.
    """

    id: str
    project: str
    model: str = ""
    enabled: bool
    sample_percent: float = 100.0
    content: bool = True
    redact: bool = True
    retention_days: int = 30
    form: Form = Form.JSONL
    set_by: str
    set_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True)
class Keeping:
    """A rule as gateways need it."""

    project: str
    model: str
    sample_percent: float
    content: bool
    redact: bool


@dataclass(slots=True, kw_only=True)
class Prediction:
    """One kept request. Times are RFC 3339 in UTC and milliseconds; `redactions` counts marks by type.

    `messages` and `answer` are lists of `{"role", "content", …}`. `truncated`: the gateway kept only the beginning.
    `from_cache`: the gateway answered by itself, as it had before.
    """

    schema: int = SCHEMA
    id: str
    at: str
    project: str
    key_id: str
    owner: str
    model: str
    target: str
    revision: int
    upstream_model: str
    endpoint: str
    dialect: str
    stream: bool
    status: int
    error: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    answer: list[dict[str, Any]] = field(default_factory=list)
    answer_model: str = ""
    answer_id: str = ""
    finish_reasons: list[str] = field(default_factory=list)
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    estimated: bool
    amount_microusd: int
    queue_ms: float
    connect_ms: float
    first_byte_ms: float | None
    relay_ms: float | None
    ttft_ms: float | None
    duration_ms: float
    subject: str = ""
    trace_id: str = ""
    redactions: dict[str, int] = field(default_factory=dict)
    truncated: bool = False
    from_cache: bool = False

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which records are asked for; what is empty or None does not narrow. `subject` is a pseudonym to `holds`."""

    since: str = ""
    until: str = ""
    model: str = ""
    key_id: str = ""
    status: int | None = None
    subject: str = ""

    def holds(self, record: Mapping[str, Any]) -> bool:
        return (
            (not self.since or record["at"] >= self.since)
            and (not self.until or record["at"] < self.until)
            and (not self.model or record["model"] == self.model)
            and (not self.key_id or record["key_id"] == self.key_id)
            and (self.status is None or record["status"] == self.status)
            and (not self.subject or record["subject"] == self.subject)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RewrittenFile:
    """A file that an erasure changed: what it was, and what it is. An empty `sha256_after`: nothing was left of it."""

    name: str
    removed: int
    kept: int
    sha256_before: str
    sha256_after: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """Proof that a subject's records are gone: counts, files, and a second look that found none."""

    project: str
    subject: str
    at: datetime
    removed: int
    looked_at: int
    left: int
    files: tuple[RewrittenFile, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holdings:
    """What is kept of a project: files, bytes, and the days they are of."""

    project: str
    files: int
    size_bytes: int
    first_day: str
    last_day: str


def check_rule(model: str, sample_percent: float, retention_days: int) -> None:
    """InvalidInput when a rule like this makes no sense."""
    if model and (len(model) > _MODEL_MAX_CHARACTERS or not model.isprintable()):
        raise InvalidInput("that is no model name", "the name that callers use")
    if not 0 < sample_percent <= 100:
        raise InvalidInput(f"a sample of {sample_percent:g} % is not above 0 and at most 100", "like --sample 5")
    if not 1 <= retention_days <= RETENTION_MAX_DAYS:
        raise InvalidInput(
            f"{retention_days} days of retention are not between 1 and {RETENTION_MAX_DAYS}", "like --retention 30"
        )


def pseudonym(salt: bytes, project: str, subject: str) -> str:
    """What stands for a subject in a project's records; empty for nobody."""
    if not subject:
        return ""
    text = f"{project}\0{subject[:SUBJECT_MAX_CHARACTERS]}".encode("utf-8", "surrogatepass")
    return PSEUDONYM + hmac.new(salt, text, hashlib.sha256).hexdigest()[:32]


def file_name(day: str, hour: str, writer: str, ending: str) -> str:
    """Below the project's folder: a folder a day, a file an hour and writer. Models with a rule of their own have
    files of their own (`writer_of`), which are kept as long as that says."""
    return f"{day}/{hour}-{writer}.{ending}"


def writer_of(gateway_id: str, model: str) -> str:
    """The writer's part of a file's name; `model` is empty where the project's rule counts."""
    return f"{gateway_id}_m{_model_mark(model)}" if model else gateway_id


def _model_mark(model: str) -> str:
    return hashlib.sha256(model.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def rule_of(writer: str, rules: Sequence[PredictionRule]) -> PredictionRule:
    """Which of a project's rules a file is under. Where the project itself has none, the longest of its models'."""
    marked = _MARK.search(writer)
    for rule in rules:
        if rule.model and marked is not None and marked[1] == _model_mark(rule.model):
            return rule
    general = next((rule for rule in rules if not rule.model), None)
    return general or max(rules, key=lambda rule: rule.retention_days)


def parse_file_name(name: str) -> tuple[str, str, str, str] | None:
    """(day, hour, writer, ending), or None for any other file."""
    match = _FILE.fullmatch(name)
    return None if match is None else (match[1], match[2], match[3], match[4])


def dialect_of(path: str) -> str:
    return _DIALECTS.get(path) or "openai." + path.removeprefix("/v1/").replace("/", ".")


# ---------------------------------------------------------------- what was asked


@dataclass(slots=True)
class Asked:
    """A request in the words of the log."""

    parameters: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    subject: str = ""


def read_request(body: bytes) -> Asked:
    """What a body of any of the APIs asks. A form, or what is no JSON object, asks nothing that can be kept."""
    value = _object(body)
    if value is None:
        return Asked()
    messages: list[dict[str, Any]] = []
    for name in ("system", "instructions"):
        if value.get(name):
            messages.append({"role": "system", "content": value[name]})
    for name in ("messages", "prompt", "input"):
        said = value.get(name)
        if said is None:
            continue
        for one in said if name != "prompt" and isinstance(said, list) else [said]:
            messages.append(one if isinstance(one, dict) else {"role": "user", "content": one})
    metadata = value.get("metadata")
    subject = value.get("user") or value.get("safety_identifier")
    if not subject and isinstance(metadata, dict):
        subject = metadata.get("user_id")
    parameters = {name: one for name, one in value.items() if name not in _ASKED}
    return Asked(parameters, messages, subject if isinstance(subject, str) else "")


# ---------------------------------------------------------------- what was answered


@dataclass(slots=True)
class Answered:
    """An answer in the words of the log."""

    answer: list[dict[str, Any]] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    model: str = ""
    id: str = ""


def read_answer(body: bytes) -> Answered:
    """A whole answer or the events of a stream, put together as far as they came. Embeddings and pictures are counted,
    not kept."""
    whole = _object(body)
    if whole is not None:
        return _whole(whole)
    found = _Pieces()
    for event in _events(body):
        found.take(event)
    return found.put_together()


def _whole(value: dict[str, Any]) -> Answered:
    said = Answered(model=_text(value.get("model")), id=_text(value.get("id")))
    for choice in _objects(value.get("choices")):
        message = choice.get("message")
        said.answer.append(
            message if isinstance(message, dict) else {"role": "assistant", "content": choice.get("text")}
        )
        _note(said, choice.get("finish_reason"))
    if value.get("type") == "message":
        said.answer.append({"role": "assistant", "content": value.get("content")})
        _note(said, value.get("stop_reason"))
    elif isinstance(value.get("output"), list):
        said.answer += [{"role": "assistant", **one} for one in _objects(value["output"])]
        _note(said, value.get("status"))
    elif isinstance(value.get("data"), list):
        said.answer.append({"role": "assistant", "content": f"[{len(value['data'])} results]"})
    elif isinstance(value.get("text"), str):
        said.answer.append({"role": "assistant", "content": value["text"]})
    elif value.get("error"):
        said.answer.append({"role": "error", "content": value["error"]})
    return said


class _Pieces:
    """A stream's deltas by choice, and calls of tools by their place."""

    def __init__(self) -> None:
        self._said = Answered()
        self._texts: dict[int, list[str]] = {}
        self._calls: dict[int, dict[int, dict[str, Any]]] = {}
        self._reasons: dict[int, str] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._whole: Answered | None = None

    def take(self, event: dict[str, Any]) -> None:
        kind = _text(event.get("type"))
        if kind in {"response.completed", "response.incomplete", "response.failed"}:
            self._whole = _whole(event["response"]) if isinstance(event.get("response"), dict) else None
        elif kind == "message_start" and isinstance(event.get("message"), dict):
            self._said.model, self._said.id = _text(event["message"].get("model")), _text(event["message"].get("id"))
        elif kind == "content_block_start" and isinstance(event.get("content_block"), dict):
            self._blocks[_place(event)] = dict(event["content_block"])
        elif kind == "content_block_delta" and isinstance(event.get("delta"), dict):
            self._grow(self._blocks.setdefault(_place(event), {}), event["delta"])
        elif kind == "message_delta" and isinstance(event.get("delta"), dict):
            _note(self._said, event["delta"].get("stop_reason"))
        elif isinstance(event.get("choices"), list):
            self._said.model = self._said.model or _text(event.get("model"))
            self._said.id = self._said.id or _text(event.get("id"))
            for choice in _objects(event["choices"]):
                self._take_choice(choice)
        elif kind.endswith("output_text.delta"):
            self._texts.setdefault(0, []).append(_text(event.get("delta")))

    @staticmethod
    def _grow(block: dict[str, Any], delta: dict[str, Any]) -> None:
        for name in ("text", "thinking", "partial_json"):
            if isinstance(delta.get(name), str):
                block[name] = _text(block.get(name)) + delta[name]

    def _take_choice(self, choice: dict[str, Any]) -> None:
        place, delta = _place(choice), choice.get("delta")
        text = delta.get("content") if isinstance(delta, dict) else choice.get("text")
        if isinstance(text, str):
            self._texts.setdefault(place, []).append(text)
        for call in _objects(delta.get("tool_calls")) if isinstance(delta, dict) else ():
            known = self._calls.setdefault(place, {}).setdefault(_place(call), {"name": "", "arguments": ""})
            function = call.get("function")
            if isinstance(function, dict):
                known["name"] += _text(function.get("name"))
                known["arguments"] += _text(function.get("arguments"))
        if isinstance(choice.get("finish_reason"), str):
            self._reasons[place] = choice["finish_reason"]

    def put_together(self) -> Answered:
        if self._whole is not None:
            return self._whole
        said = self._said
        for place in sorted(self._texts.keys() | self._calls.keys()):
            message: dict[str, Any] = {"role": "assistant", "content": "".join(self._texts.get(place, ()))}
            if place in self._calls:
                message["tool_calls"] = [self._calls[place][one] for one in sorted(self._calls[place])]
            said.answer.append(message)
        if self._blocks:
            said.answer.append({"role": "assistant", "content": [self._blocks[one] for one in sorted(self._blocks)]})
        said.finish_reasons += [self._reasons[place] for place in sorted(self._reasons)]
        return said


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    for line in body.split(b"\n"):
        if line.startswith(b"data:"):
            event = _object(line[5:].strip())
            if event is not None:
                yield event


def _object(body: bytes) -> dict[str, Any] | None:
    if not body[:64].lstrip().startswith(b"{"):
        return None
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _objects(value: object) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _place(event: Mapping[str, Any]) -> int:
    place = event.get("index", 0)
    return place if isinstance(place, int) else 0


def _note(said: Answered, reason: object) -> None:
    if isinstance(reason, str):
        said.finish_reasons.append(reason)


# ---------------------------------------------------------------- what is kept


def clean(record: Prediction, *, redacted: bool) -> None:
    """Takes out what is not kept: bytes of pictures and sound always, personal data and credentials if asked."""
    found = Redactions()
    record.messages = _without_data(record.messages)  # type: ignore[assignment]
    record.answer = _without_data(record.answer)  # type: ignore[assignment]
    if redacted:
        record.messages = redact_value(record.messages, found)  # type: ignore[assignment]
        record.answer = redact_value(record.answer, found)  # type: ignore[assignment]
        record.parameters = redact_value(record.parameters, found)  # type: ignore[assignment]
        record.redactions = found.counts


def _without_data(value: object) -> object:
    if isinstance(value, str):
        return f"[data of {len(value)} characters]" if _is_data(value) else value
    if isinstance(value, list):
        return [_without_data(one) for one in value]
    if isinstance(value, dict):
        sound = {"data"} if value.get("type") == "base64" or "format" in value else set()
        return {
            name: f"[data of {len(one)} characters]" if name in sound and isinstance(one, str) else _without_data(one)
            for name, one in value.items()
        }
    return value


def _is_data(text: str) -> bool:
    return len(text) > _DATA_URL_MIN_CHARACTERS and text.startswith("data:")
