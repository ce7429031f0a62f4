"""T1, the Monday message: pasted into the real command, it ends in specs that the real plan reads."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from tests.domain.intake_messages import MONDAY
from tests.journeys.conftest import Installation

END = (datetime.now(UTC) + timedelta(days=30)).date().isoformat()
ANSWERS = {
    "project": "research", "owner": "ana", "cost_center": "r1", "end_date": END, "budget": "$2",
    "cpus": "1", "memory": "256MiB", "accelerators_per_machine": "0", "price_prompt": "$0.10",
    "price_completion": "$0.40", "1.machines": "1", "1.duration": "5m", "1.command": "echo trained",
    "2.machines": "1", "2.model": "tiny-lm@1",
}  # fmt: skip


def piped(shared: Installation, text: str, *args: str) -> subprocess.CompletedProcess[str]:
    return shared.ground(*args, text=text, expect=None)


def test_the_monday_message_becomes_three_items_and_then_a_plan(shared: Installation) -> None:
    read = piped(shared, MONDAY, "request", "-", "--quota", "azure/eastus=0@24-72h")
    assert read.returncode == 0, read.stderr
    assert "3 items, open" in read.stdout
    assert "capacity for fine-tuning: 8 GPU machines" in read.stdout
    assert "private inference endpoint" in read.stdout
    assert "tokens per minute monitoring" in read.stdout
    assert "TPM: tokens per minute" in read.stdout
    assert "quota azure/eastus: 0 of 0 vCPU left" in read.stdout
    assert "24-72 h" in read.stdout

    request: Any = shared.data("request", "list")[0]
    flags = [part for name, text in ANSWERS.items() for part in ("-a", f"{name}={text}")]
    answered = shared.data("request", "answer", request["id"], *flags)
    assert answered["status"] == "ready"
    specs = shared.ground("request", "specs", request["id"])
    assert "item 3 (monitoring)" in specs.stderr

    job = specs.stdout.split("---\n")[0]
    planned = piped(shared, job, "plan", "-f", "-", "-o", "json")
    assert planned.returncode == 0, planned.stderr
    (plan,) = json.loads(planned.stdout)
    assert (plan["kind"], plan["project"], plan["status"]) == ("job", "research", "ready")
    both = piped(shared, specs.stdout, "plan", "-f", "-")
    # The endpoint's model is not registered here: the plan is read, and says so.
    assert both.returncode == 3, both.stderr
    assert "tiny-lm@1" in both.stdout + both.stderr


def test_what_is_wrong_with_an_answer_is_said_with_the_way_forward(shared: Installation) -> None:
    made = json.loads(piped(shared, "4 A100 for training", "request", "-", "-o", "json").stdout)
    refused = shared.ground("request", "answer", made["id"], "-a", "ownr=ana", expect=2)
    assert "did you mean owner?" in refused.stderr
    shown = shared.ground("request", "show", made["id"], "-o", "yaml")
    assert "kind: capacity" in shown.stdout
    closed = shared.ground("request", "close", made["id"], "--reason", "asked by mistake")
    assert closed.stdout == f"request {made['id']} is closed\n"


@pytest.mark.parametrize(
    ("text", "args", "code", "says"),
    [
        ("", ("request", "-"), 2, "the message is empty"),
        ("x" * 70_000, ("request", "-"), 2, "64.0 KiB"),
        ("hello", ("request", "nowhere.txt"), 4, "no file nowhere.txt"),
        ("8 GPUs", ("request", "-", "--quota", "plenty"), 2, "is no quota"),
        ("8 GPUs", ("request", "-", "-a", "owner"), 2, "is no answer"),
    ],
)
def test_bad_input_is_one_line_and_a_hint(
    shared: Installation, text: str, args: tuple[str, ...], code: int, says: str
) -> None:
    done = piped(shared, text, *args)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_the_console_reads_answers_and_shows_hostile_text_as_text(shared: Installation) -> None:
    url = f"http://127.0.0.1:{shared.port}"
    with httpx.Client(base_url=url, headers={"Origin": url}, follow_redirects=True, timeout=30) as browser:
        browser.post("/console/login", data={"key": shared.admin_key})
        hostile = MONDAY + "\r\n<script>document.title='taken'</script>"
        page = browser.post("/console/requests", data={"message": hostile, "project": "research"})
        assert page.status_code == 200, page.text
        assert "private inference endpoint" in page.text
        assert "<script>document.title" not in page.text
        where = page.url.path
        answered = browser.post(f"{where}/answers", data={"1.owner": "ana", "2.owner": ""})
        assert "<dt>1.owner</dt><dd>ana</dd>" in answered.text
        assert where.rsplit("/", 1)[1] in browser.get("/console/requests").text
