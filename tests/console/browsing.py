"""Headless Chromium on the console: how it is started, what it complains of, and how one signs in."""

from __future__ import annotations

from playwright.sync_api import BrowserContext, Page, expect
from tests.console.plane import Plane

expect.set_options(timeout=20_000)

FLAGS = [
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # No look-ups of its own: the machine's network is not the browser's business.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def watched(context: BrowserContext) -> tuple[Page, list[str]]:
    complaints: list[str] = []
    page = context.new_page()
    page.set_default_timeout(15_000)
    page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: (complaints.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    return page, complaints


def sign_in(page: Page, plane: Plane) -> None:
    page.goto(plane.url)
    page.get_by_label("Key").fill(plane.key)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Overview", level=1)).to_be_visible()
