"""The gateway's figures as a real Prometheus reads them, with the alerts and the dashboard that are shipped."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.harness import (
    DONE,
    Exchange,
    MockUpstream,
    RawClient,
    ask,
    chat,
    event,
    get,
    key,
    poll,
    post,
    route,
    running,
    usage_event,
    well_behaved,
)

from groundplane.domain.serving.limits import Limit, Measure

pytestmark = pytest.mark.needs("prometheus")
WORDS = ("one ", "two ", "three ", "four ", "five ")
SHIPPED = Path(__file__).parent.parent.parent / "deploy" / "monitoring"


@pytest.fixture
def programs() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for program in started:
        program.terminate()
        program.wait(20)


def expressions() -> dict[str, list[str]]:
    """Each panel's queries, with Grafana's variables filled in."""
    dashboard = json.loads((SHIPPED / "gateway-dashboard.json").read_text())
    found: dict[str, list[str]] = {}
    for panel in dashboard["panels"]:
        for one in panel.get("targets", ()):
            expression = one["expr"].replace("$__rate_interval", "1m")
            found.setdefault(panel["title"], []).append(re.sub(r"\$(?:instance|model|project)", ".*", expression))
    return found


def test_the_alerts_are_rules_and_fire_when_they_should() -> None:
    for words in (("check", "rules", "gateway-alerts.yml"), ("test", "rules", "gateway-alerts.test.yml")):
        done = subprocess.run(["promtool", *words], cwd=SHIPPED, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


async def test_prometheus_takes_every_figure_and_every_panel_has_what_it_shows(
    tmp_path: Path, upstream: MockUpstream, programs: list[subprocess.Popen[bytes]]
) -> None:
    limit = Limit("key", "key-2", Measure.REQUESTS, 1)
    keys = (key(), key("gp-caller-other", id="key-2"))
    async with running(tmp_path, keys=keys, routes=(route("tiny", upstream.base_url),), limits=(limit,)) as bench:
        for number in range(9):
            assert (await ask(bench.port, post(chat(stream=number % 2 == 0)))).status == 200
        await _stream_word_by_word(bench.port, upstream)
        statuses = [(await ask(bench.port, post(chat(), secret="gp-caller-other"))).status for _ in range(3)]
        assert statuses == [200, 429, 429]
        text = (await ask(bench.port, get("/metrics"))).body
        checked = await asyncio.to_thread(
            subprocess.run, ["promtool", "check", "metrics"], input=text, capture_output=True, check=False
        )
        complaints = [line for line in checked.stderr.decode().splitlines() if line and "_microusd" not in line]
        assert complaints == [], "promtool has something to say"
        port = await asyncio.to_thread(_prometheus, tmp_path, bench.port, programs)

        async def value(expression: str) -> float:
            return await asyncio.to_thread(_value, port, expression)

        async def until(expression: str, wanted: float) -> None:
            async with asyncio.timeout(40):
                while await value(expression) != wanted:
                    await asyncio.sleep(0.2)

        labels = 'project="vision",key="key-1",model="tiny",target="tiny",revision="1",status="200"'
        await until(f"groundplane_gateway_key_requests_total{{{labels}}}", 10)
        assert await value('sum(groundplane_gateway_refused_total{name="key-2"})') == 2
        assert await value("sum(groundplane_gateway_first_byte_seconds_count)") == 11
        assert await value("sum(groundplane_gateway_inter_token_seconds_count)") >= 4
        assert await value("sum(groundplane_gateway_output_tokens_per_second_count)") > 0
        for title, queries in expressions().items():
            for expression in queries:
                answer = await asyncio.to_thread(_query, port, expression)
                assert answer["status"] == "success", (title, expression)
        families = set(re.findall(rb"^# TYPE (\S+)", text, re.MULTILINE))
        named = {
            name for some in expressions().values() for one in some for name in re.findall(r"groundplane_\w+", one)
        }
        known = {name.decode() for name in families}
        assert {re.sub(r"_bucket$", "", name) for name in named} <= known, "a panel shows what no gateway tells"
        rules = httpx.get(f"http://127.0.0.1:{port}/api/v1/rules", trust_env=False).json()["data"]["groups"][0]["rules"]
        assert len(rules) == 7


async def _stream_word_by_word(port: int, upstream: MockUpstream) -> None:
    """A stream whose words come one by one: the next is sent when the one before has arrived."""
    turn = asyncio.Semaphore(1)

    async def one_by_one(exchange: Exchange) -> None:
        await exchange.begin_stream()
        for word in WORDS:
            await turn.acquire()
            await exchange.chunk(event(word))
        await exchange.chunk(usage_event() + DONE)
        await exchange.end()

    upstream.behave = one_by_one
    client = await RawClient.open(port)
    await client.send(post(chat(stream=True)))
    for word in WORDS:
        await client.reader.readuntil(word.encode())
        turn.release()
    await client.reader.readuntil(b"[DONE]")
    await client.close()
    upstream.behave = well_behaved


def _prometheus(folder: Path, target: int, programs: list[subprocess.Popen[bytes]]) -> int:
    """Scrapes the gateway four times a second, with the shipped alerts; returns once it serves."""
    config = {
        "global": {"scrape_interval": "250ms", "scrape_timeout": "250ms"},
        "rule_files": [str(SHIPPED / "gateway-alerts.yml")],
        "scrape_configs": [
            {"job_name": "groundplane-gateway", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
        ],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    words = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
    words += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    programs.append(subprocess.Popen(["prometheus", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
    asyncio.run(poll(lambda: _is_ready(port), 40))
    return port


def _is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/-/ready", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _query(port: int, expression: str) -> dict[str, Any]:
    answer = httpx.get(
        f"http://127.0.0.1:{port}/api/v1/query", params={"query": expression}, timeout=20, trust_env=False
    )
    found: dict[str, Any] = answer.json()
    return found


def _value(port: int, expression: str) -> float:
    result = _query(port, expression)["data"]["result"]
    return float(result[0]["value"][1]) if result else -1.0
