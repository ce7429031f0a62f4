"""A scrape of many keys' figures: put together between requests, whole, and once for all who ask meanwhile."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.gateway.harness import RawClient, ask, get, key, route, running

from groundplane.domain.serving.usage import Usage
from groundplane.gateway.telemetry.aside import Files
from groundplane.gateway.telemetry.metrics import Metrics
from groundplane.gateway.telemetry.metrics_files import MetricsFiles
from groundplane.gateway.telemetry.scrapes import Scrapes


def fill(metrics: Metrics, keys: int) -> None:
    for number in range(keys):
        series = metrics.series("vision", f"key-{number}", "tiny", f"endpoint-{number % 50}", "1")
        series.settled(200, Usage(10, 5, 0), 7, (1, 1, 1, 1, 3))


async def test_requests_are_answered_while_a_thousand_keys_are_told_of(tmp_path: Path) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", "http://127.0.0.1:9"),)) as bench:
        assert bench.gateway is not None
        state = bench.gateway.state
        fill(state.metrics, 1_000)
        other = await RawClient.open(bench.port)
        scraping = [asyncio.create_task(ask(bench.port, get("/metrics", None))) for _ in range(3)]
        answered = 0
        while not all(one.done() for one in scraping):
            await other.send(get("/healthz", None))
            assert (await other.answer()).status == 200
            answered += 1
        scrapes = [await one for one in scraping]
        await other.close()
    assert answered >= 5
    assert len({one.body for one in scrapes}) == 1
    text = scrapes[0].body.decode()
    assert text.count("groundplane_gateway_key_charged_microusd_total{") == 1_000
    assert text.endswith("\n") and "\n\n" not in text
    assert scrapes[0].headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_a_caller_who_leaves_a_scrape_takes_it_from_nobody(tmp_path: Path) -> None:
    async with running(tmp_path, keys=(key(),), routes=(route("tiny", "http://127.0.0.1:9"),)) as bench:
        assert bench.gateway is not None
        fill(bench.gateway.state.metrics, 1_000)
        gone, stays = await RawClient.open(bench.port), await RawClient.open(bench.port)
        for client in (gone, stays):
            await client.send(get("/metrics", None))
        await gone.close()
        assert (await stays.answer()).whole
        assert (await ask(bench.port, get("/metrics", None))).status == 200
        await stays.close()


def test_steps_come_to_what_all_at_once_comes_to(tmp_path: Path) -> None:
    mine, theirs = Metrics(), Metrics()
    fill(mine, 30)
    fill(theirs, 40)
    written = Files()
    files = MetricsFiles(tmp_path, "gw-0", written), MetricsFiles(tmp_path, "gw-1", written)
    theirs.turn(1)
    theirs.say_some()
    files[1].publish(theirs)
    written.close()
    text = "".join(files[0].rendered(mine))
    whole = Metrics()
    whole.workers = 0
    whole.add(mine.plain(), alive=True)
    whole.add(theirs.plain(), alive=True)
    assert text == whole.render()
    assert 'key="key-29"' in text and "groundplane_gateway_workers 2\n" in text


async def test_a_scrape_that_breaks_does_not_break_the_next() -> None:
    said = iter([[1 / 1], []])

    def rendered():  # type: ignore[no-untyped-def]
        yield "a\n"
        if next(said):
            raise OSError("no such folder")

    scrapes = Scrapes(rendered)
    with pytest.raises(OSError):
        scrapes.ask(lambda _: None)
    told: list[bytes] = []
    scrapes.ask(told.append)
    while not told:
        await asyncio.sleep(0)
    assert told == [b"a\n"]
