"""Requests and answers of every API in the words of one log, and what of them is never kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain.serving.prediction import (
    Prediction,
    Wanted,
    clean,
    dialect_of,
    parse_file_name,
    pseudonym,
    read_answer,
    read_request,
)


def stream(*events: object) -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in events) + b"data: [DONE]\n\n"


def delta(index: int, **said: Any) -> dict[str, Any]:
    reason = said.pop("finish_reason", None)
    choice = {"index": index, "delta": said, "finish_reason": reason}
    return {"id": "c1", "model": "tiny-1", "choices": [choice]}


@pytest.mark.parametrize(
    ("body", "messages", "subject"),
    [
        (
            {"messages": [{"role": "user", "content": "hi"}], "user": "ben", "temperature": 1},
            [{"role": "user", "content": "hi"}],
            "ben",
        ),
        (
            {"system": "be kind", "messages": [{"role": "user", "content": "hi"}], "metadata": {"user_id": "ida"}},
            [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
            "ida",
        ),
        ({"prompt": ["one", "two"]}, [{"role": "user", "content": ["one", "two"]}], ""),
        (
            {"instructions": "be kind", "input": "hi", "safety_identifier": "s-1"},
            [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"}],
            "s-1",
        ),
        (
            {"input": ["a", "b"]},
            [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}],
            "",
        ),
        ({"messages": "no list", "user": 7}, [{"role": "user", "content": "no list"}], ""),
    ],
)
def test_every_api_asks_in_the_same_words(body: dict[str, Any], messages: list[Any], subject: str) -> None:
    asked = read_request(json.dumps({"model": "tiny", **body}).encode())
    assert (asked.messages, asked.subject) == (messages, subject)
    assert asked.parameters == {name: body[name] for name in ("temperature", "safety_identifier") if name in body}


def test_a_chat_stream_is_put_together_by_choice_with_its_tool_calls() -> None:
    call = {"index": 0, "function": {"name": "look", "arguments": '{"a'}}
    body = stream(
        delta(0, role="assistant", content="Hel"),
        delta(1, content="Ad"),
        delta(0, content="lo"),
        delta(1, content="ieu", tool_calls=[call]),
        delta(1, tool_calls=[{"index": 0, "function": {"arguments": '":1}'}}]),
        delta(0, finish_reason="stop"),
        delta(1, finish_reason="tool_calls"),
    )
    said = read_answer(body)
    assert said.answer == [
        {"role": "assistant", "content": "Hello"},
        {"role": "assistant", "content": "Adieu", "tool_calls": [{"name": "look", "arguments": '{"a":1}'}]},
    ]
    assert (said.finish_reasons, said.model, said.id) == (["stop", "tool_calls"], "tiny-1", "c1")


def test_streams_of_messages_and_responses_are_put_together() -> None:
    messages = stream(
        {"type": "message_start", "message": {"id": "m1", "model": "opus", "content": []}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hel"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    )
    said = read_answer(messages)
    assert said.answer == [{"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}]
    assert (said.finish_reasons, said.model, said.id) == (["end_turn"], "opus", "m1")
    output = [{"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}]
    response = {"id": "r1", "model": "gpt", "status": "completed", "output": output}
    cut = ({"type": "response.output_text.delta", "delta": "Hel"}, {"type": "response.output_text.delta", "delta": "l"})
    assert read_answer(stream(*cut)).answer == [{"role": "assistant", "content": "Hell"}]
    whole = read_answer(stream(*cut, {"type": "response.completed", "response": response}))
    assert whole.answer == [{"role": "assistant", **output[0]}] and whole.id == "r1"


def test_whole_answers_are_read_whatever_api_they_are_of() -> None:
    text = {"choices": [{"text": "once", "finish_reason": "length"}], "model": "tiny"}
    assert read_answer(json.dumps(text).encode()).answer == [{"role": "assistant", "content": "once"}]
    vectors = {"data": [{"embedding": [0.1]}, {"embedding": [0.2]}]}
    assert read_answer(json.dumps(vectors).encode()).answer == [{"role": "assistant", "content": "[2 results]"}]
    error = {"error": {"message": "no", "code": "x"}}
    assert read_answer(json.dumps(error).encode()).answer[0]["role"] == "error"
    assert read_answer(b"\x00\x01 audio").answer == [] and read_answer(b"").answer == []


def test_pictures_and_sound_are_never_kept_and_the_rest_is_redacted_on_demand() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400}}
    sound = {"type": "input_audio", "input_audio": {"data": "UklGRg" * 10, "format": "wav"}}
    for redacted in (True, False):
        record = Prediction(
            id="r", at="", project="p", key_id="k", owner="o", model="m", target="t", revision=1, upstream_model="m",
            endpoint="/v1/chat/completions", dialect="openai.chat", stream=False, status=200, prompt_tokens=1,
            completion_tokens=1, cached_tokens=0, estimated=False, amount_microusd=0, queue_ms=0.0, connect_ms=0.0,
            first_byte_ms=None, relay_ms=None, ttft_ms=None, duration_ms=0.0,
            messages=[{"role": "user", "content": [picture, sound, {"type": "text", "text": "a@example.org"}]}],
            parameters={"tools": [{"description": "mail a@example.org"}]},
        )  # fmt: skip
        clean(record, redacted=redacted)
        kept = json.dumps(record.plain())
        assert "AAAA" not in kept and "UklGRg" not in kept and "[data of 422 characters]" in kept
        assert ("a@example.org" in kept) is not redacted
        assert record.redactions == ({"email": 2} if redacted else {})


def test_a_subject_is_a_pseudonym_of_its_project_and_installation() -> None:
    one = pseudonym(b"salt", "vision", "ben")
    assert one == pseudonym(b"salt", "vision", "ben") and one.startswith("sub-") and "ben" not in one
    others = (b"pepper", "vision", "ben"), (b"salt", "other", "ben"), (b"salt", "vision", "ida")
    assert all(pseudonym(*other) != one for other in others)
    assert pseudonym(b"salt", "vision", "") == ""


def test_names_of_files_and_dialects() -> None:
    assert parse_file_name("2026-11-21/18-gw-0r.jsonl.gz") == ("2026-11-21", "18", "gw-0r", "jsonl.gz")
    for name in ("2026-11-21/18-gw-0.txt", "../18-gw-0.jsonl", "2026-11-21/.18-gw-0.jsonl.1.tmp", ".salt"):
        assert parse_file_name(name) is None
    assert (
        dialect_of("/v1/messages") == "anthropic.messages" and dialect_of("/v1/audio/speech") == "openai.audio.speech"
    )
    record = {"at": "2026-11-21T18:00:00.000Z", "model": "m", "key_id": "k", "status": 200, "subject": "s"}
    assert Wanted(since="2026-11-21T18:00:00.000Z", until="2026-11-21T18:00:00.001Z", model="m").holds(record)
    assert not Wanted(until="2026-11-21T18:00:00.000Z").holds(record) and not Wanted(status=429).holds(record)


_NAMES = st.sampled_from(
    ["choices", "delta", "message", "content", "type", "index", "tool_calls", "function", "output", "response", "usage",
     "content_block", "text", "data", "error", "messages", "prompt", "input", "system", "metadata", "user", "model"]
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(_NAMES, _JSON, max_size=5), st.lists(st.dictionaries(_NAMES, _JSON, max_size=4), max_size=3))
def test_no_body_however_odd_stops_the_recorder(body: dict[str, Any], events: list[dict[str, Any]]) -> None:
    read_request(json.dumps(body).encode())
    read_answer(json.dumps(body).encode())
    kinds = ("content_block_start", "content_block_delta", "message_start", "message_delta", "response.completed")
    read_answer(stream(*events, *({**one, "type": kind} for one in events for kind in kinds)))
