"""What passes through gateways, over HTTP and the command line: followed, measured, kept, exported and erased.

A real control plane without loops, and two real gateways on its home.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.gateway.harness import MockUpstream, Workers, key, poll, route, start_workers, well_behaved, write_snapshot

from groundplane.domain.serving.limits import Limit, Measure
from groundplane.domain.serving.prediction import Keeping
from groundplane.domain.serving.traffic import Filter
from groundplane.identity import Role

PROJECT = "default"


class Upstream:
    """The mock upstream on a loop of its own, for tests that are no coroutines."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.mock = MockUpstream(well_behaved)
        asyncio.run_coroutine_threadsafe(self.mock.start(), self._loop).result(10)

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self.mock.stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@pytest.fixture(scope="module")
def gateway(served: Any) -> Iterator[Workers]:
    """Two workers on the control plane's home, with two keys of which one may ask once a minute."""
    upstream = Upstream()
    folder = served.home / "gateway"
    limit = served.client.set_limit(
        project=PROJECT, scope="model", name="slow", measure=Measure.REQUESTS, value=1, reason="tests"
    )
    asyncio.run(
        write_snapshot(
            folder,
            1,
            budgets={PROJECT: 10**12},
            keys=(key(project=PROJECT),),
            routes=tuple(route(name, upstream.mock.base_url, project=PROJECT) for name in ("tiny", "slow")),
            limits=(Limit(limit.scope, limit.name, limit.measure, limit.value),),
            predictions=(Keeping(PROJECT, "", 100.0, True, True),),
        )
    )
    workers = start_workers(folder, 2, "--predictions", str(folder / "predictions"), shared=folder)
    yield workers
    workers.stop()
    upstream.stop()


def ask(gateway: Workers, model: str = "tiny", **more: Any) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "mail me at ana@example.org"}], **more}
    headers = {"authorization": "Bearer gp-caller-secret"}
    url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=20, trust_env=False)


def surroundings(served: Any) -> dict[str, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("GROUND_")}
    return env | {"GROUND_HOME": str(served.home), "GROUND_URL": served.url, "GROUND_KEY": served.admin_key}


def ground(served: Any, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "groundplane.cli", *words],
        env=surroundings(served),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == expect, done.stderr
    assert "Traceback" not in done.stderr
    return done


def until(condition: Any) -> None:
    asyncio.run(poll(condition, 30))


def test_requests_are_followed_as_they_end_by_whoever_may(served: Any, gateway: Workers) -> None:
    first = served.client.tail_requests(Filter())
    until((served.home / "gateway" / "tail.sock").exists)
    seen: list[Any] = []

    def look() -> int:
        nonlocal first
        ask(gateway)
        first = served.client.tail_requests(Filter(model="tiny"), after=first.next)
        seen.extend(first.requests)
        return len(seen)

    until(lambda: look() >= 3)
    one = seen[-1]
    assert (one.project, one.status, one.model, one.completion_tokens) == (PROJECT, 200, "tiny", 5)
    assert served.client.tail_requests(Filter(status="5xx"), after=0).requests == ()
    assert served.client.tail_requests(Filter(slow_ms=1e9), after=0).requests == ()
    lead = served.key(Role.LEAD)
    assert len(served.raw("GET", "/v1/traffic/requests?after=0", key=lead).json()["requests"]) >= 3
    for role, status in ((Role.CALLER, 403), (Role.VIEWER, 403)):
        assert served.raw("GET", "/v1/traffic/requests", key=served.key(role)).status_code == status
    assert served.raw("GET", "/v1/traffic/requests?status=banana").status_code == 422
    told = ground(served, "tail", "--status", "9", "--for", "1s", expect=2)
    assert told.stderr.startswith("error: '9' is no status")


def test_the_command_follows_and_filters(served: Any, gateway: Workers) -> None:
    answers: list[str] = []
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            answers.append(ask(gateway, "slow").headers["x-request-id"])
            stop.wait(0.1)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    words = [sys.executable, "-m", "groundplane.cli", "tail", "--status", "429", "-o", "json"]
    follower = subprocess.Popen(
        words,
        env=surroundings(served),
        stdout=subprocess.PIPE,
        text=True,
        # Where tests run in the background of a script, their children would ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (nothing is held by another thread)
    )
    try:
        assert follower.stdout is not None
        lines = [json.loads(follower.stdout.readline()) for _ in range(2)]
        follower.send_signal(signal.SIGINT)
        assert follower.wait(30) == 130
    finally:
        stop.set()
        asking.join()
        follower.kill()
        follower.communicate()
    assert {line["limit"] for line in lines} == {f"model:{PROJECT}/slow:requests per minute"}
    assert {line["id"] for line in lines} <= set(answers)


def test_rates_limits_and_refusals_of_the_last_minute_are_shown(served: Any, gateway: Workers) -> None:
    ask(gateway)
    ask(gateway, "slow")
    ask(gateway, "slow")

    def live() -> Any:
        return served.client.live_traffic(PROJECT)

    until(lambda: len(live().refusals) >= 1 and any(one.tokens >= 12 for one in live().rates))
    told = live()
    assert told.workers == 2
    (rate,) = (one for one in told.rates if one.model == "tiny")
    assert rate.key_id == "key-1" and rate.requests >= 1 and rate.tokens % 12 == 0
    (limit,) = (one for one in told.limits if one.name == f"{PROJECT}/slow")
    assert (limit.project, limit.value, limit.used, limit.part) == (PROJECT, 1, 1, 1.0)
    refusal = told.refusals[0]
    assert (refusal.scope, refusal.name, refusal.model) == ("model", f"{PROJECT}/slow", "slow")
    assert refusal.retry_after_ms is not None and refusal.owner == "ana"
    outsider = served.client.create_project(name="elsewhere", owner="eve", cost_center="cc", reason="tests")
    lead = served.key(Role.LEAD, outsider.id)
    assert served.raw("GET", "/v1/traffic/live", key=lead).json()["rates"] == []
    assert served.raw("GET", f"/v1/traffic/live?project={PROJECT}", key=lead).status_code == 404


def test_what_is_kept_is_listed_exported_and_erased(served: Any, gateway: Workers, tmp_path: Path) -> None:
    wanted = ask(gateway, user="ben").headers["x-request-id"]
    on = ("predictions", "settings", "--project", PROJECT, "--on", "--sample", "50", "--retention", "7")
    assert "50 %" in ground(served, *on, "--reason", "a trial").stdout

    def kept() -> list[Any]:
        return list(served.client.predictions(PROJECT, subject="ben").records)

    until(lambda: [one["id"] for one in kept()] == [wanted])
    shown = ground(served, "predictions", "show", wanted, "--project", PROJECT).stdout
    assert "mail me at [email]" in shown and "hello there" in shown and "ana@example.org" not in shown
    listed = ground(served, "predictions", "list", "--project", PROJECT, "--since", "1h").stdout
    assert wanted in listed
    lines = tmp_path / "kept.jsonl"
    ground(served, "predictions", "export", "--project", PROJECT, "--to", str(lines), "--artifact", "kept")
    ids = [json.loads(line)["id"] for line in lines.read_text().splitlines()]
    assert wanted in ids and len(ids) == len(set(ids)) and lines.stat().st_mode & 0o077 == 0
    assert any(one.name == "kept" for one in served.client.artifacts())
    columns = tmp_path / "kept.parquet"
    ground(served, "predictions", "export", "--project", PROJECT, "--to", str(columns))
    import pyarrow.parquet as pq

    table = pq.read_table(columns).to_pylist()
    assert [one["id"] for one in table][: len(ids)] == ids
    assert json.loads(table[0]["messages"])[0]["role"] == "user"
    erased = ground(
        served, "predictions", "erase", "--project", PROJECT, "--subject", "ben", "--reason", "asked", "-o", "json"
    )
    done = json.loads(erased.stdout)
    assert (done["removed"], done["left"]) == (1, 0) and kept() == []
    events = {event["action"] for event in served.raw("GET", "/v1/audit/events").json()}
    assert {"predictions.set", "predictions.export", "predictions.erase"} <= events
    for role in (Role.CALLER, Role.VIEWER, Role.MEMBER):
        assert served.raw("GET", f"/v1/predictions?project={PROJECT}", key=served.key(role)).status_code == 403
    lead = served.key(Role.LEAD)
    assert served.raw("GET", f"/v1/predictions?project={PROJECT}", key=lead).status_code == 200
    body = {"project": PROJECT, "subject": "ben"}
    assert served.raw("POST", "/v1/predictions/erase", key=lead, json=body).status_code == 403
    refused = ground(served, "predictions", "settings", "--project", PROJECT, "--sample", "0", expect=2)
    assert refused.stderr.startswith("error: a sample of 0 %")
    assert (
        "ends neither"
        in ground(served, "predictions", "export", "--project", PROJECT, "--to", "x.csv", expect=2).stderr
    )
