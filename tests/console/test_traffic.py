"""Traffic in the console, in headless Chromium over real gateways: rates, limits, refusals, live requests, the log."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect
from tests.console.plane import Plane, poll
from tests.gateway.harness import MockUpstream, Workers, start_workers, well_behaved

from groundplane.domain.serving.provider import ProviderKind
from groundplane.identity import Role
from groundplane.wire.routes import ProviderRequest, RouteRequest, TargetRequest

pytestmark = pytest.mark.needs("chromium")


@pytest.fixture(scope="module")
def upstream() -> Iterator[MockUpstream]:
    """On a loop of its own: these tests are no coroutines."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    mock = MockUpstream(well_behaved)
    asyncio.run_coroutine_threadsafe(mock.start(), loop).result(10)
    yield mock
    asyncio.run_coroutine_threadsafe(mock.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="module")
def gateway(plane: Plane, upstream: MockUpstream) -> Iterator[Workers]:
    """A worker on the control plane's home, with a route to the upstream."""
    plane.client.set_provider(
        ProviderRequest(
            project="vision",
            name="mock",
            kind=ProviderKind.COMPATIBLE,
            base_url=f"{upstream.base_url}/v1",
            private=True,
            key="sk-mock",
        )
    )
    price = {"prompt_microusd_per_million": 1, "completion_microusd_per_million": 1}
    target = TargetRequest(provider="mock", model="tiny", like="gpt-4o", **price)
    plane.client.set_route(RouteRequest(project="vision", model="tiny", targets=(target,)))
    folder = plane.home / "gateway"
    poll((folder / "snapshot.json").exists, "a snapshot")
    words = ("--provider-keys", str(plane.home / "provider-keys"), "--predictions", str(folder / "predictions"))
    workers = start_workers(folder, 1, *words, shared=folder)
    yield workers
    workers.stop()


def ask(gateway: Workers, secret: str, said: str = "hi", **more: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": said}], "max_tokens": 5, **more}
    url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
    return httpx.post(url, json=body, headers={"authorization": f"Bearer {secret}"}, timeout=20, trust_env=False)


def test_rates_limits_refusals_and_live_requests_are_seen_and_a_limit_is_set_and_lifted(
    page: Page, plane: Plane, gateway: Workers, tmp_path: Path
) -> None:
    secret = plane.key_for(Role.CALLER, "app")
    poll(lambda: ask(gateway, secret).status_code == 200, "the key to reach the gateway")
    page.goto(f"{plane.url}/console/routes")
    expect(page.locator("main")).to_contain_text("max_output, context from the catalogue's gpt-4o of 2026-08-01")
    page.goto(f"{plane.url}/console/traffic")
    expect(page.get_by_role("region", name="Rates")).to_contain_text("app")
    form = page.locator("form[action='/console/traffic/limits']")
    form.locator("[name=project]").select_option("vision")
    form.locator("[name=scope]").select_option("model")
    form.locator("[name=name]").fill("tiny")
    form.locator("[name=measure]").select_option("requests per minute")
    form.locator("[name=value]").fill("2")
    form.get_by_label("Why").fill("a trial")
    form.get_by_role("button", name="Set limit").click()
    poll(lambda: ask(gateway, secret).status_code == 429, "the limit to be kept")
    # By itself: nobody reloads the page.
    expect(page.locator("#refusals")).to_contain_text("requests per minute of model vision/tiny")
    expect(page.locator("#limits")).to_contain_text("model vision/tiny")
    page.get_by_role("link", name="Requests as they end").click()
    expect(page.get_by_role("heading", name="Live requests")).to_be_visible()
    told = poll(lambda: _told(page, gateway, secret), "live requests on the page")
    assert "model:vision/tiny:requests per minute" in told
    page.get_by_label("Status").fill("200")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#tail")).not_to_contain_text("429")
    page.goto(f"{plane.url}/console/traffic")
    lift = page.locator("form[action='/console/traffic/limits/lift']")
    lift.locator("[name=id]").select_option("model:vision/tiny:requests per minute")
    lift.get_by_label("Why").fill("the trial is over")
    lift.get_by_role("button", name="Lift limit").click()
    poll(lambda: ask(gateway, secret).status_code == 200, "the limit to be lifted")
    page.screenshot(path=str(tmp_path / "traffic.png"), full_page=True)


def _told(page: Page, gateway: Workers, secret: str) -> str:
    ask(gateway, secret)
    text = page.locator("#tail").inner_text()
    return text if "429" in text else ""


def test_what_is_kept_is_switched_on_read_and_erased_and_a_key_is_rotated(
    page: Page, plane: Plane, gateway: Workers
) -> None:
    secret = plane.key_for(Role.CALLER, "keeper")
    page.goto(f"{plane.url}/console/traffic/predictions")
    keep = page.locator("form[action='/console/traffic/predictions/rules']")
    keep.get_by_label("Project").select_option("vision")
    keep.get_by_label("Why").fill("a trial")
    keep.get_by_role("button", name="Keep").click()
    expect(page.get_by_role("region", name="What is kept")).to_contain_text("redacted")

    def kept() -> bool:
        ask(gateway, secret, "mail ana@example.org <b>now</b>", user="ben")
        return bool(plane.client.predictions("vision", subject="ben").records)

    poll(kept, "a record")
    page.goto(f"{plane.url}/console/traffic/predictions?project=vision")
    page.get_by_role("region", name="Records").get_by_role("link").first.click()
    expect(page.locator("pre").first).to_have_text("mail [email] <b>now</b>")
    expect(page.locator("main")).to_contain_text("1 email")
    page.goto(f"{plane.url}/console/traffic/predictions?project=vision")
    erase = page.locator("form[action='/console/traffic/predictions/erase']")
    erase.get_by_label("Subject").fill("ben")
    erase.get_by_label("Why").fill("asked to")
    erase.get_by_role("button", name="Erase records").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("records erased")
    expect(page.locator("main")).to_contain_text("a second look found 0")

    page.goto(f"{plane.url}/console/keys")
    row = page.get_by_role("row").filter(has_text="keeper")
    row.get_by_text("Rotate").click()
    row.get_by_label("The old secret opens for").fill("0s")
    row.get_by_label("Why").first.fill("lost")
    row.get_by_role("button", name="New secret for keeper").click()
    fresh = page.locator("#secret").inner_text()
    poll(lambda: ask(gateway, fresh).status_code == 200, "the new secret to open")
    poll(lambda: ask(gateway, secret).status_code == 401, "the old secret to end")
