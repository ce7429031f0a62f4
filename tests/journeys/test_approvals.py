"""Plan → approve → apply: eight cards wait for a lead's yes, through the real command and server.

The machine's cards are simulated by a driver library of our own, so that the pool offers eight of them.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.journeys.conftest import GROUND, Installation, bring_up, free_ports, shut_down

from groundplane.client import Client
from groundplane.domain.planning.plan import Plan, PlanStatus

EIGHT_CARDS = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 8; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "NVIDIA H100 80GB HBM3", n); return 0; }
int nvmlDeviceGetUtilizationRates(void *h, unsigned *u) { u[0] = 1; u[1] = 1; return 0; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) {
  m[0] = 81559ULL << 20; m[1] = 80000ULL << 20; m[2] = 1559ULL << 20; return 0; }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *t) { *t = 61; return 0; }
"""
CARDS = {"cpus": 1, "memory": "64MiB", "accelerators": 8}
pytestmark = pytest.mark.needs("compiler")


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation on a machine with eight cards, and a project whose people are ana, lea and the admin."""
    folder = tmp_path_factory.mktemp("approvals")
    (folder / "nvml.c").write_text(EIGHT_CARDS)
    library = folder / "libnvidia-ml.so.1"
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", library, folder / "nvml.c"], check=True, timeout=60)
    port, gateway_port = free_ports(2)
    made = Installation(folder / "ground", port, gateway_port, {"LD_LIBRARY_PATH": str(folder)})
    yield bring_up(made)
    shut_down(made)


def key(plane: Installation, owner: str, role: str) -> Installation:
    """The same installation, used by somebody else."""
    made = plane.data("keys", "create", "--project", "research", "--role", role, "--owner", owner)
    return replace(plane, extra_env={**plane.extra_env, "GROUND_KEY": made["secret"]})


@pytest.fixture(scope="module")
def ana(plane: Installation) -> Installation:
    return key(plane, "ana", "member")


@pytest.fixture(scope="module")
def lea(plane: Installation) -> Installation:
    return key(plane, "lea", "lead")


def planned(who: Installation, name: str, **spec: object) -> Plan:
    path = who.job(name, "echo trained", **{"resources": CARDS, **spec})
    with Client(f"http://127.0.0.1:{who.port}", who.extra_env["GROUND_KEY"]) as client:
        return client.plan(path.read_text())[0]


def test_eight_cards_wait_for_a_leads_yes_and_are_then_admitted(
    plane: Installation, ana: Installation, lea: Installation
) -> None:
    spec = str(ana.job("llm", "echo trained", resources=CARDS))
    asked = ana.ground("apply", "-f", spec, "--yes", expect=10)
    why = "8 accelerators; project research takes up to 4 without approval"
    assert f"self-service-accelerators: {why}" in asked.stderr
    (waiting,) = ana.data("approvals")
    plan = waiting["id"]
    assert f"hint: ground approve {plan}: admin, lea may; then ground apply {plan}" in asked.stderr

    ana.ground("approve", plan, expect=7)  # a member may not
    own = planned(lea, "own")
    own_yes = lea.ground("approve", own.id, expect=3)
    assert "four-eyes: needs somebody other than lea" in own_yes.stderr
    lea.ground("reject", own.id, "--reason", "only a try")

    given = lea.ground("approve", plan, "--comment", "for the release")
    assert given.stdout.startswith(f"{plan} is approved by lea until ")
    run = ana.data("apply", plan, "--yes")["runs"][0]
    assert plane.client.run(run["id"]).run.plan_id == plan
    plane.ground("stop", run["id"])  # the cards are no cards: nothing could compute on them
    trail = [event for event in plane.data("audit", "log") if event["object_id"] == plan]
    assert [(event["actor"], event["action"]) for event in trail] == [("lea", "plan.approve"), ("ana", "plan.create")]
    plane.ground("audit", "verify")


def test_apply_waits_for_a_yes_as_long_as_it_is_told_to(
    plane: Installation, ana: Installation, lea: Installation
) -> None:
    plan = planned(ana, "patient")
    too_long = ana.ground("apply", plan.id, "--yes", "--wait-approval", "1s", expect=10)
    assert "approval: needs 1 approval" in too_long.stderr
    waiting = subprocess.Popen(
        [GROUND, "apply", plan.id, "--yes", "--wait-approval", "1m", "-o", "json"],
        env=ana.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    asking = subprocess.Popen(
        [GROUND, "apply", plan.id, "--wait-approval", "1m"],
        env=ana.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for process in (waiting, asking):
        assert process.stderr is not None
        while "waiting up to 1m" not in (line := process.stderr.readline()):
            assert line, "it ended without waiting"
    lea.ground("approve", plan.id)
    out, err = waiting.communicate(timeout=90)
    _, after = asking.communicate(timeout=90)
    assert asking.returncode == 2 and "there is no terminal to ask on" in after
    assert "worst case" not in after, "the plan was shown before the wait, and is no other now"
    assert waiting.returncode == 0, err
    (run,) = json.loads(out)["runs"]
    assert run["plan_id"] == plan.id
    plane.ground("stop", run["id"])
    assert f"{plan.id} is approved by lea" in err


def test_a_rejected_plan_stays_rejected(ana: Installation, lea: Installation) -> None:
    plan = planned(ana, "dear")
    lea.ground("approve", plan.id)
    lea.ground("reject", plan.id, expect=2)
    lea.ground("reject", plan.id, "--reason", "the cards are promised elsewhere")
    told = ana.ground("apply", plan.id, "--yes", "--wait-approval", "1m", expect=3)
    assert "rejected by lea: the cards are promised elsewhere" in told.stderr
    lea.ground("approve", plan.id, expect=3)
    assert ana.data("approvals", plan.id)["approval"]["status"] == "rejected"


def test_limits_are_set_shown_and_obeyed(plane: Installation, ana: Installation) -> None:
    ana.ground("projects", "set", "research", "--accelerators", "8", expect=7)
    plane.ground("projects", "set", "research", expect=2)
    plane.ground("projects", "set", "research", "--per-month", "plenty", expect=2)
    said = plane.ground("projects", "set", "research", "--accelerators", "8", "--per-month", "$100", "--reason", "ok")
    assert said.stdout == "project research takes 8 accelerators a run and $500.00 a plan and $100.00 a month " \
        "without approval\n"  # fmt: skip
    assert planned(ana, "allowed").status is PlanStatus.READY
    plane.ground("projects", "set", "research", "--accelerators", "4", "--per-month", "none")
    assert planned(ana, "again").status is PlanStatus.NEEDS_APPROVAL
    (event, *_) = [e for e in plane.data("audit", "log") if e["action"] == "project.set"]
    assert (event["before"]["accelerators_max"], event["after"]["accelerators_max"]) == (8, 4)


def test_a_changed_price_undoes_the_approval_and_time_ends_a_question(
    plane: Installation, ana: Installation, lea: Installation, wait: Callable[..., Any]
) -> None:
    plan = planned(ana, "priced")
    lea.ground("approve", plan.id)
    plane.ground("down", "--stop-runs")
    plane.extra_env.update(GROUND_LOCAL_PRICE="0.72", GROUND_APPROVAL_EXPIRY="2s")
    plane.ground("up", "--detach")
    told = ana.ground("apply", plan.id, "--yes", expect=3)
    assert "price-unchanged: needs $0.36/h" in told.stderr and "has $0.72/h" in told.stderr
    assert "the new plan needs approval anew" in told.stderr

    late = planned(ana, "late", max_cost="$1")
    wait(lambda: ana.data("approvals", late.id)["approval"]["status"] == "expired", "the question to end")
    assert "it expired at" in lea.ground("approve", late.id, expect=3).stderr
    assert "approval-expired" in ana.ground("apply", late.id, "--yes", expect=3).stderr

    def written() -> bool:
        return any(e["action"] == "plan.expire" and e["object_id"] == late.id for e in plane.data("audit", "log"))

    wait(written, "the end to be written down")
    log = plane.home / "log" / "control-plane.log"
    for kind in ("needed", "given", "rejected", "expired"):
        wait(lambda kind=kind: f"approval.{kind}: plan-" in log.read_text(), f"the notice of {kind}")
    assert "ground_approvals{project=\"research\",status=\"applied\"}" in plane.client.metrics()  # fmt: skip
