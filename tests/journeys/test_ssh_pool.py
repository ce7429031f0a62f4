"""A pool of machines reached over SSH, from its file to a registered model: through the real command and server."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from tests.faults import pool_file
from tests.hosts import Hosts
from tests.journeys.conftest import Installation, bring_up

MAKES_A_MODEL = textwrap.dedent("""
    import json, os, struct
    folder = os.path.join(os.environ["GROUND_OUTPUT_DIR"], "model")
    os.makedirs(folder)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + bytes(8))
    print("made on", os.uname().nodename)
""")


@pytest.fixture
def lab(new_installation: Callable[..., Installation], hosts: Hosts) -> Installation:
    """An installation with the pool `lab` of four machines."""
    installation = new_installation()
    installation.home.mkdir()
    (installation.home / "pools.yaml").write_text(json.dumps(pool_file(hosts)))
    return bring_up(installation)


@pytest.mark.needs("sshd")
def test_a_model_trained_on_another_machine_is_registered_here(lab: Any, hosts: Hosts) -> None:
    pools = {pool["name"]: pool for pool in lab.data("pools")}
    assert (pools["lab"]["nodes"], pools["lab"]["ready"]) == (4, 4)
    assert pools["lab"]["price_low_microusd_per_hour"] == 1_200_000
    offers = [offer for offer in lab.data("recon")["offers"] if offer["pool"] == "lab"]
    assert [(offer["nodes"], offer["price_source"]) for offer in offers] == [(4, "the pool file")]
    lab.ground("nodes", "cordon", "n0", "--pool", "lab", "--reason", "fan is loud")
    assert "fan is loud" in lab.ground("nodes", "list", "--pool", "lab").stdout
    job = lab.job(
        "far",
        ["python3", "-c", MAKES_A_MODEL],
        pool="lab",
        max_cost="$1",
        outputs={"models": [{"name": "far-model", "path": "model", "license": "MIT", "framework": "none"}]},
    )
    detail = lab.wait_run(lab.submit(job), "succeeded", "failed", timeout_s=60)
    assert detail.run.status == "succeeded", detail.run.message
    assert detail.attempts[0].node in {"n1", "n2", "n3"}
    assert "far-model@1" in detail.run.message
    assert f"made on {detail.attempts[0].node}" in lab.log(detail.run.id)
    lab.ground("nodes", "uncordon", "n0")
    assert {node["cordoned"] for node in lab.data("nodes")} == {""}


@pytest.mark.needs("sshd")
def test_a_pool_file_with_a_fault_keeps_the_control_plane_down_and_says_where(
    new_installation: Callable[..., Installation], hosts: Hosts
) -> None:
    installation = new_installation()
    installation.home.mkdir()
    file = pool_file(hosts)
    file["pools"]["lab"]["prize"] = "$1"  # type: ignore[index]
    (installation.home / "pools.yaml").write_text(json.dumps(file, indent=1))
    done = installation.ground("up", "--detach", expect=None)
    assert done.returncode != 0
    assert "prize" in done.stderr
    assert "line " in done.stderr
