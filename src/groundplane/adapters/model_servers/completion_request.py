"""What callers of the embedded engine may ask, in the OpenAI shapes, and what they are told when it can't be done.

A parameter that would change the answer and is not supported is refused; one that would not (`user`, `metadata`) is
ignored. Every refusal is the OpenAI error object, so unmodified clients raise their usual exceptions.
Source: OpenAI API reference, /v1/completions and /v1/chat/completions, 2026-11.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

STOPS_MAX = 4
DEFAULT_COMPLETION_TOKENS = 16
"""What OpenAI's /v1/completions answers when max_tokens is left out."""


@dataclass(eq=False)
class ApiError(Exception):
    """An answer that is an error: HTTP status and the fields of the OpenAI error object."""

    status: int
    message: str
    kind: str = "invalid_request_error"
    code: str | None = None
    param: str | None = None
    retry_after_s: int | None = None

    def body(self) -> dict[str, object]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to pick tokens. `max_tokens` None means as many as the context holds; temperature 0 is greedy."""

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One understood request: exactly one of `messages` (chat), `text` and `token_ids` is set."""

    model: str
    messages: list[dict[str, Any]] | None = None
    text: str | None = None
    token_ids: list[int] | None = None
    sampling: Sampling
    stream: bool
    include_usage: bool


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Common(msgspec.Struct):
    model: str
    max_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    # Known, and refused unless they say what would happen anyway.
    logit_bias: dict[str, float] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


class _Completion(_Common):
    prompt: str | list[Any] | None = None
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None


class _Chat(_Common, kw_only=True):
    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    max_completion_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    logprobs: bool | None = None
    tools: list[Any] | None = None
    functions: list[Any] | None = None
    response_format: dict[str, Any] | None = None
    modalities: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Defaults:
    """Sampling when the caller says nothing: the model's own `generation_config.json`, else OpenAI's 1.0."""

    temperature: float = 1.0
    top_p: float = 1.0


def parse_completion(body: bytes, defaults: Defaults) -> Ask:
    """Reads a /v1/completions body. Raises ApiError (400)."""
    raw = _decode(body, _Completion)
    assert isinstance(raw, _Completion)
    refusals = {"best_of": (raw.best_of or 1) > 1, "echo": raw.echo, "suffix": raw.suffix}
    _refuse(raw, {**refusals, "logprobs": raw.logprobs is not None})
    limit = DEFAULT_COMPLETION_TOKENS if raw.max_tokens is None else raw.max_tokens
    prompt: Any = raw.prompt
    if isinstance(prompt, list) and len(prompt) == 1 and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _ask(raw, _sampling(raw, limit, defaults), text=prompt)
    if isinstance(prompt, list) and prompt and all(type(item) is int for item in prompt):
        return _ask(raw, _sampling(raw, limit, defaults), token_ids=prompt)
    raise ApiError(400, "prompt must be one string or one list of token ids", param="prompt")


def parse_chat(body: bytes, defaults: Defaults) -> Ask:
    """Reads a /v1/chat/completions body. Raises ApiError (400)."""
    raw = _decode(body, _Chat)
    assert isinstance(raw, _Chat)
    form = (raw.response_format or {}).get("type", "text")
    refusals = {"logprobs": raw.logprobs, "tools": raw.tools, "functions": raw.functions}
    spoken = raw.modalities not in (None, ["text"])
    _refuse(raw, {**refusals, "response_format": form != "text", "modalities": spoken})
    limit = raw.max_tokens if raw.max_completion_tokens is None else raw.max_completion_tokens
    messages = [{"role": item.role, "content": _plain(item, at)} for at, item in enumerate(raw.messages)]
    return _ask(raw, _sampling(raw, limit, defaults), messages=messages)


def _decode(body: bytes, shape: type[_Common]) -> _Common:
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.ValidationError as error:
        # msgspec names the place as `$.max_tokens`; callers know the field by its bare name.
        _, _, place = str(error).partition(" - at `$.")
        raise ApiError(400, str(error).replace("`$.", "`"), param=place.rstrip("`") or None) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None


def _refuse(raw: _Common, more: dict[str, object]) -> None:
    asked = {
        "n": raw.n not in (None, 1),
        "logit_bias": raw.logit_bias,
        "presence_penalty": raw.presence_penalty,
        "frequency_penalty": raw.frequency_penalty,
        **more,
    }
    for name, wanted in asked.items():
        if wanted:
            raise ApiError(
                400,
                f"this engine does not support {name} with that value; leave it out",
                code="unsupported_parameter",
                param=name,
            )


def _sampling(raw: _Common, max_tokens: int | None, defaults: Defaults) -> Sampling:
    stop = (raw.stop,) if isinstance(raw.stop, str) else tuple(raw.stop or ())
    if len(stop) > STOPS_MAX or not all(stop):
        raise ApiError(400, f"stop takes 1 to {STOPS_MAX} non-empty strings, got {len(stop)}", param="stop")
    return Sampling(
        max_tokens=max_tokens,
        temperature=defaults.temperature if raw.temperature is None else raw.temperature,
        top_p=defaults.top_p if raw.top_p is None else raw.top_p,
        seed=raw.seed,
        stop=stop,
    )


def _ask(raw: _Common, sampling: Sampling, **prompt: Any) -> Ask:
    usage = raw.stream_options is not None and raw.stream_options.include_usage
    if raw.stream_options is not None and not raw.stream:
        raise ApiError(400, "stream_options needs stream: true", param="stream_options")
    return Ask(model=raw.model, sampling=sampling, stream=bool(raw.stream), include_usage=usage, **prompt)


def _plain(message: _Message, at: int) -> str:
    """The message's text; a list of parts is joined. Anything but text is refused: this engine reads nothing else."""
    if isinstance(message.content, str):
        return message.content
    texts = []
    for part in message.content or ():
        if part.type != "text" or part.text is None:
            raise ApiError(400, f"content of type {part.type!r} is not text", param=f"messages[{at}].content")
        texts.append(part.text)
    return "".join(texts)
