"""The console in headless Chromium: what only a browser can show."""

from __future__ import annotations

import pytest
from playwright.sync_api import Browser, Page, expect
from tests.console.browsing import sign_in, watched
from tests.console.plane import HOSTILE, Plane

from groundplane.domain.run import RunStatus

pytestmark = pytest.mark.needs("chromium")


def test_signing_in_leads_to_the_overview_and_out_again(page: Page) -> None:
    expect(page.get_by_role("link", name="Overview")).to_have_attribute("aria-current", "page")
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_the_log_of_a_running_job_grows_by_itself_and_is_kept_to_its_end(page: Page, plane: Plane) -> None:
    go = plane.home.parent / "go"
    run_id = plane.submit("talker", f"echo one; while [ ! -e {go} ]; do sleep 0.1; done; echo two; echo three")
    plane.wait(run_id, RunStatus.RUNNING)
    page.goto(f"{plane.url}/console/runs/{run_id}")
    log = page.get_by_role("log")
    expect(log).to_contain_text("one")
    expect(page.locator("h1 .state")).to_contain_text("running")
    go.touch()
    expect(log).to_have_text("one\ntwo\nthree\n")
    expect(page.locator("h1 .state")).to_contain_text("succeeded")
    expect(page.locator("#attempts")).to_contain_text("succeeded")


def test_the_log_goes_on_with_the_next_attempt(page: Page, plane: Plane) -> None:
    go = plane.home.parent / "second"
    waits = f"while [ ! -e {go} ]; do sleep 0.1; done"
    run_id = plane.submit("retrier", f"echo try; {waits}; [ -e {go}.done ] || {{ touch {go}.done; kill -9 $$; }}")
    plane.wait(run_id, RunStatus.RUNNING)
    page.goto(f"{plane.url}/console/runs/{run_id}")
    expect(page.get_by_role("log")).to_contain_text("try")
    go.touch()
    expect(page.get_by_role("log")).to_have_text("try\n\n──── attempt 2 ────\ntry\n")
    expect(page.locator("h1 .state")).to_contain_text("succeeded")


def test_scrolling_up_stops_following_and_scrolling_down_goes_on(page: Page, plane: Plane) -> None:
    run_id = plane.submit("tall", "seq 1 500; sleep 60")
    plane.wait(run_id, RunStatus.RUNNING)
    page.goto(f"{plane.url}/console/runs/{run_id}")
    expect(page.get_by_role("log")).to_contain_text("500")
    follow = page.get_by_label("follow")
    expect(follow).to_be_checked()
    page.get_by_role("log").evaluate("log => { log.scrollTop = 0; }")
    expect(follow).not_to_be_checked()
    page.get_by_role("log").evaluate("log => { log.scrollTop = log.scrollHeight; }")
    expect(follow).to_be_checked()
    plane.client.stop_run(run_id, "test over")


def test_a_person_stops_a_run_and_sees_it_stop(page: Page, plane: Plane) -> None:
    run_id = plane.submit("stopme", "sleep 60")
    plane.wait(run_id, RunStatus.RUNNING)
    page.goto(f"{plane.url}/console/runs/{run_id}")
    page.get_by_text("Stop this run").click()
    page.get_by_role("button", name="Stop stopme").click()
    expect(page.locator("h1 .state")).to_contain_text("running")  # the browser asks for the reason first
    page.get_by_label("Why").fill("wrong data")
    page.get_by_role("button", name="Stop stopme").click()
    expect(page.locator("h1 .state")).to_contain_text("stopped")
    assert plane.client.audit_events(limit=20, object_id=run_id, object_kind="run")
    assert "wrong data" in {event.reason for event in plane.client.audit_events(object_kind="run", object_id=run_id)}


def test_the_overview_shows_a_new_run_without_a_reload(page: Page, plane: Plane) -> None:
    run_id = plane.submit("newcomer", "sleep 60")
    expect(page.get_by_role("region", name="Runs that are not over").get_by_text(run_id)).to_be_visible()
    plane.client.stop_run(run_id, "test over")


def test_hostile_markup_runs_nothing(page: Page, plane: Plane) -> None:
    markup = HOSTILE.replace("'", '"')
    run_id = plane.submit("attacker", f"echo '{markup}'; sleep 1; echo '{markup}'", owner=HOSTILE)
    page.goto(f"{plane.url}/console/runs/{run_id}")
    plane.wait(run_id, RunStatus.SUCCEEDED)
    expect(page.get_by_role("log")).to_have_text(f"{markup}\n{markup}\n")
    for path in ("/console", "/console/runs", "/console/audit"):
        page.goto(plane.url + path)
        assert "taken" not in page.title()


def test_a_control_plane_that_does_not_answer_is_told_on_the_page(browser: Browser, plane: Plane) -> None:
    context = browser.new_context()
    page, _ = watched(context)  # the browser complains about the cut, as it should
    sign_in(page, plane)
    page.route("**/console*", lambda route: route.abort())
    expect(page.get_by_role("status")).to_contain_text("no answer from the control plane; as of")
    page.unroute("**/console*")
    expect(page.locator("#connection")).to_be_empty()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_screen(browser: Browser, plane: Plane, scheme: str, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})  # type: ignore[arg-type]
    page, complaints = watched(context)
    sign_in(page, plane)
    for path in ("", "/runs", "/models", "/endpoints", "/costs", "/keys", "/audit"):
        page.goto(f"{plane.url}/console{path}")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        bar = "document.querySelector('header nav')"
        assert page.evaluate(f"{bar}.scrollWidth <= {bar}.clientWidth"), "the pages do not fit the bar"
    context.close()
    assert not complaints


def test_menus_open_one_at_a_time_and_by_keyboard_alone(page: Page) -> None:
    plan, work = page.locator("summary", has_text="Plan"), page.locator("summary", has_text="Work")
    plan.click()
    expect(page.get_by_role("link", name="Recon", exact=True)).to_be_visible()
    work.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="Queue", exact=True)).to_be_visible()
    expect(page.get_by_role("link", name="Recon", exact=True)).to_be_hidden()
    page.keyboard.press("Escape")
    expect(page.get_by_role("link", name="Queue", exact=True)).to_be_hidden()
    expect(work).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Runs", level=1)).to_be_visible()
    expect(page.locator("summary.here")).to_have_text("Work")


def test_everything_can_be_read_without_a_script(browser: Browser, plane: Plane) -> None:
    run_id = plane.submit("quiet", "echo said")
    plane.wait(run_id, RunStatus.SUCCEEDED)
    context = browser.new_context(java_script_enabled=False)
    page, complaints = watched(context)
    sign_in(page, plane)
    page.get_by_text("Work", exact=True).click()
    page.get_by_role("link", name="Runs", exact=True).click()
    page.get_by_role("link", name="quiet").first.click()
    expect(page.get_by_role("log")).to_contain_text("said")
    expect(page.get_by_label("follow")).to_be_hidden()
    context.close()
    assert not complaints
