"""What is told of requests: the prediction log, spans, live requests, and the figures by key; across workers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from tests.gateway.harness import (
    MockUpstream,
    Workers,
    ask,
    chat,
    get,
    key,
    poll,
    post,
    route,
    running,
    start_workers,
    write_snapshot,
)
from tests.gateway.otlp import Collector, attributes

from groundplane.domain.serving.limits import Limit, Measure
from groundplane.domain.serving.prediction import Keeping, Prediction

SAID = "I am ana@example.org, card 4111 1111 1111 1111"
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def fleets() -> Iterator[list[Workers]]:
    started: list[Workers] = []
    yield started
    for workers in started:
        workers.stop()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    made.start()
    yield made
    made.stop()


def records(folder: Path) -> list[dict[str, Any]]:
    found = [
        json.loads(line)
        for path in sorted(folder.glob("vision/*/*.jsonl"))
        for line in path.read_bytes().split(b"\n")[:-1]
    ]
    return sorted(found, key=lambda one: str(one["at"]))


class Follower:
    """Binds the socket that gateways tell live requests to."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setblocking(False)
        folder = os.open(path.parent, os.O_PATH)
        self.socket.bind(f"/proc/self/fd/{folder}/{path.name}")
        os.close(folder)
        self.seen: list[dict[str, Any]] = []

    def look(self) -> list[dict[str, Any]]:
        while True:
            try:
                self.seen += [json.loads(line) for line in self.socket.recv(65_536).splitlines()]
            except BlockingIOError:
                return self.seen


async def test_requests_of_all_workers_are_kept_traced_and_told_and_nothing_personal_is_in_them(
    tmp_path: Path, upstream: MockUpstream, fleets: list[Workers], collector: Collector
) -> None:
    collector.statuses = [503]
    follower = Follower(tmp_path / "shared" / "tail.sock")
    kept = tmp_path / "predictions"
    await write_snapshot(
        tmp_path,
        1,
        keys=(key(), key("gp-caller-other", id="key-2", owner="ben")),
        routes=(route("tiny", upstream.base_url), route("quiet", upstream.base_url)),
        limits=(Limit("key", "key-2", Measure.REQUESTS, 1),),
        predictions=(Keeping("vision", "", 100.0, True, True), Keeping("vision", "quiet", 0.0, True, True)),
    )
    words = ("--predictions", str(kept), "--traces-url", collector.url, "--traces-percent", "0")
    workers = await asyncio.to_thread(start_workers, tmp_path, 2, *words)
    fleets.append(workers)
    # Each worker is asked, whichever the kernel gives a connection to.
    body = {"messages": [{"role": "user", "content": SAID}], "user": "ana-7", "temperature": 0.5, "max_tokens": 9}
    for _ in range(12):
        assert (await ask(workers.port, post(chat(**body), headers=f"traceparent: {PARENT}\r\n"))).status == 200
        follower.look()
    stream = await ask(workers.port, post(chat(stream=True), headers="x-subject: ben\r\n"))
    assert stream.status == 200 and stream.whole
    await ask(workers.port, post(chat(model="quiet")))
    assert (await ask(workers.port, post(chat(), secret="gp-caller-other"))).status == 200
    refused = await ask(workers.port, post(chat(), secret="gp-caller-other"))
    assert refused.status == 429
    assert (await ask(workers.port, post(chat(model="none")))).status == 404

    await poll(lambda: len(records(kept)) >= 15, 30)
    told = records(kept)
    assert len(told) == 15 and {path.suffix for path in kept.glob("vision/*/*")} == {".jsonl"}
    assert len(list(kept.glob("vision/*/*.jsonl"))) == 2, "both workers write"
    _check_records(told, kept)

    await poll(lambda: len(collector.spans) >= 60, 30)
    assert collector.answered > len(collector.requests), "the collector was away at first"
    _check_spans(collector, upstream)

    await poll(lambda: len(follower.look()) >= 17, 30)
    seen = follower.seen
    assert sorted(one["status"] for one in seen) == [200] * 15 + [404, 429]
    (limited,) = (one for one in seen if one["status"] == 429)
    assert limited["limit"] == "key:key-2:requests per minute" and limited["error"] == "rate_limit_exceeded"
    assert limited["id"] == refused.headers["x-request-id"]
    assert "ana@example.org" not in json.dumps(seen)

    await _check_metrics(workers.port)
    follower.socket.close()


def _check_records(told: list[dict[str, Any]], kept: Path) -> None:
    every = b"".join(path.read_bytes() for path in kept.rglob("*.jsonl"))
    assert b"ana@example.org" not in every and b"4111" not in every and b"ana-7" not in every
    assert {frozenset(one) for one in told} == {frozenset(Prediction.__slots__)}
    first, stream, refused = told[0], told[12], told[14]
    assert first["messages"] == [{"role": "user", "content": "I am [email], card [card]"}]
    assert first["redactions"] == {"email": 1, "card": 1}
    assert first["answer"][0]["content"] == "hello there" and first["finish_reasons"] == ["stop"]
    assert first["parameters"] == {"temperature": 0.5, "max_tokens": 9}
    assert (first["prompt_tokens"], first["completion_tokens"], first["amount_microusd"]) == (7, 5, 17)
    assert first["trace_id"] == PARENT.split("-")[1] and first["dialect"] == "openai.chat"
    parts = [first[f"{part}_ms"] for part in ("queue", "connect", "first_byte", "relay")]
    assert min(parts) >= 0 and sum(parts) == pytest.approx(first["duration_ms"], abs=0.01)
    assert stream["answer"] == [{"role": "assistant", "content": "one two three four five"}]
    assert re.fullmatch(r"sub-[0-9a-f]{32}", stream["subject"]) and stream["subject"] != first["subject"]
    assert len({one["subject"] for one in told[:12]}) == 1
    assert (refused["status"], refused["error"], refused["answer"]) == (429, "rate_limit_exceeded", [])


def _check_spans(collector: Collector, upstream: MockUpstream) -> None:
    spans = collector.spans
    roots = {span.span_id: span for span in spans if span.name == "chat tiny"}
    assert len(roots) == 12, "those without a sampled parent are not traced"
    root = next(iter(roots.values()))
    trace, parent = PARENT.split("-")[1:3]
    assert root.trace_id.hex() == trace and root.parent_span_id.hex() == parent
    children = [span for span in spans if span.parent_span_id == root.span_id]
    assert [span.name for span in children] == ["queue", "connect", "first byte", "relay"]
    assert children[0].start_time_unix_nano == root.start_time_unix_nano
    assert abs(children[-1].end_time_unix_nano - root.end_time_unix_nano) < 10_000
    said = attributes(root)
    known = {value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")}
    assert {name for name in said if name.startswith("gen_ai.")} <= known
    assert said["gen_ai.operation.name"] == "chat" and said["gen_ai.request.model"] == "tiny"
    assert (said["gen_ai.usage.input_tokens"], said["gen_ai.usage.output_tokens"]) == (7, 5)
    assert (said["gen_ai.request.temperature"], said["gen_ai.request.max_tokens"]) == (0.5, 9)
    assert said["gen_ai.response.finish_reasons"] == ["stop"] and said["gen_ai.response.model"] == "tiny"
    assert said["server.address"] == "127.0.0.1" and said["server.port"] > 0
    assert "ana@example.org" not in str(spans)
    passed = {seen.headers.get("traceparent", "") for seen in upstream.seen}
    ours = {f"00-{trace}-{span_id.hex()}-01" for span_id in roots}
    assert ours <= passed, "the upstream's span is a child of ours"


async def _check_metrics(port: int) -> None:
    async def told(line: str) -> bool:
        return line in (await ask(port, get("/metrics"))).body.decode()

    labels = 'project="vision",key="key-1",model="tiny",target="tiny",revision="1"'
    for line in (
        f'groundplane_gateway_key_requests_total{{{labels},status="200"}} 13',
        f'groundplane_gateway_key_tokens_total{{{labels},kind="completion"}} 65',
        'groundplane_gateway_refused_total{project="vision",scope="key",name="key-2",measure="requests per minute"} 1',
        'groundplane_gateway_relay_seconds_count{project="vision",model="tiny",target="tiny",revision="1"} 14',
        'groundplane_gateway_recorded_total{what="prediction",outcome="kept"} 15',
        'groundplane_gateway_recorded_total{what="span",outcome="sent"} 12',
    ):
        async with asyncio.timeout(15):
            while not await told(line):
                await asyncio.sleep(0.1)


async def test_what_waits_for_a_collector_that_is_away_is_bounded_and_counted_and_the_rest_arrives(
    tmp_path: Path, upstream: MockUpstream, fleets: list[Workers], collector: Collector
) -> None:
    collector.stop()
    await write_snapshot(tmp_path, 1, keys=(key(),), routes=(route("tiny", upstream.base_url),))
    workers = await asyncio.to_thread(start_workers, tmp_path, 1, "--traces-url", collector.url)
    fleets.append(workers)
    for _ in range(5):
        assert (await ask(workers.port, post(chat()))).status == 200
    collector.start()
    await poll(lambda: len(collector.spans) == 25, 30)
    assert {span.name for span in collector.spans} >= {"chat tiny", "relay"}
    (recorder,) = _children(workers.processes[0].pid)
    os.kill(recorder, signal.SIGKILL)
    await poll(lambda: not Path(f"/proc/{recorder}").exists() or _is_dead(recorder), 10)

    async def asked_again() -> bool:
        assert (await ask(workers.port, post(chat()))).status == 200
        return len(collector.spans) > 25

    async with asyncio.timeout(30):
        while not await asked_again():
            await asyncio.sleep(0.1)


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()] or [
        int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in path.read_text().split()
    ]


def _is_dead(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


async def test_where_nothing_is_wanted_nothing_is_begun(tmp_path: Path, upstream: MockUpstream) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", upstream.base_url),)) as bench:
        assert (await ask(bench.port, post(chat()))).status == 200
        assert bench.gateway is not None
        telemetry = bench.gateway.state.telemetry
        assert not telemetry.active and telemetry._pipe is None
        assert upstream.seen[0].headers.get("traceparent") is None
