"""A pool of machines reached over SSH, from its file to a registered model: through the real command and server."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from pathlib import Path
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
def test_a_gang_starts_whole_or_not_at_all_and_a_pipeline_reads_what_was_made_there(
    new_installation: Callable[..., Installation], hosts: Hosts, tmp_path: Path, wait: Callable[..., Any]
) -> None:
    lab = new_installation()
    lab.home.mkdir()
    file = pool_file(hosts)
    file["pools"]["lab"]["shared_dir"] = str(tmp_path / "shared")  # type: ignore[index]
    (lab.home / "pools.yaml").write_text(json.dumps(file))
    bring_up(lab)
    lab.ground("nodes", "cordon", "n1", "--pool", "lab", "--reason", "Xid 79")
    small = {"cpus": 0.5, "memory": "64MiB"}
    gang = lab.submit(lab.job("gang", ["true"], pool="lab", max_cost="$1", resources={**small, "nodes": 4}))
    prepare = lab.job("prepare", "uname -n > $GROUND_OUTPUT_DIR/made-on", pool="lab", max_cost="$1", resources=small)
    train = lab.job("train", 'cat "$GROUND_INPUT_PREPARE/made-on"', pool="lab", max_cost="$1", resources=small,
                    needs=["prepare"])  # fmt: skip
    (tmp_path / "both.yaml").write_text(f"{prepare.read_text()}\n---\n{train.read_text()}")
    applied = json.loads(lab.ground("apply", "-f", str(tmp_path / "both.yaml"), "--yes", "-o", "json").stdout)
    first, second = (lab.wait_run(run["id"], "succeeded", "failed") for run in applied["runs"])
    assert (first.run.status, second.run.status) == ("succeeded", "succeeded"), second.run.message
    assert first.run.ended_at <= second.attempts[0].started_at
    assert lab.log(second.run.id) == f"{first.attempts[0].node}\n"

    sentence = lab.data("explain", gang)["sentence"]
    assert "cordon: it needs 4 nodes with 0.5 CPUs and 64.0 MiB each; 3 take work, cordoned: n1 (Xid 79)" in sentence
    assert sentence.endswith("with 3 nodes it would start now.")
    assert lab.client.run(gang).attempts == ()
    lab.ground("nodes", "uncordon", "n1", "--pool", "lab")
    detail = lab.wait_run(gang, "succeeded", "failed")
    assert detail.run.status == "succeeded", detail.run.message
    assert sorted(detail.attempts[0].node.split(",")) == ["n0", "n1", "n2", "n3"]


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
