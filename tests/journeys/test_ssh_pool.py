"""A pool of machines reached over SSH, from its file to a registered model: through the real command and server."""

from __future__ import annotations

import hashlib
import json
import os
import textwrap
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.faults import pool_file
from tests.hosts import Hosts
from tests.journeys.conftest import Installation, bring_up, free_ports, shut_down, wait_for

MAKES_A_MODEL = textwrap.dedent("""
    import json, os, struct
    folder = os.path.join(os.environ["GROUND_OUTPUT_DIR"], "model")
    os.makedirs(folder)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header + bytes(8))
    print("made on", os.uname().nodename)
""")


ENDPOINT = """
apiVersion: groundplane/v1
kind: Endpoint
metadata: {{name: far, project: research, owner: ana, cost_center: r1}}
spec:
  model: far-model@1
  pool: lab
  resources: {{cpus: 1, memory: 512MiB}}
  end_date: {end_date}
  max_cost: $2
  max_duration: 30m
  token_price: {{prompt: $1000, completion: $2000}}
"""


@pytest.fixture(scope="module")
def lab(session_hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """An installation with the pool `lab` of four machines."""
    session_hosts.mend()
    installation = Installation(tmp_path_factory.mktemp("lab") / "ground", *free_ports(2))
    installation.home.mkdir()
    (installation.home / "pools.yaml").write_text(json.dumps(pool_file(session_hosts)))
    yield wait_until_ready(bring_up(installation))
    shut_down(installation)
    session_hosts.clear()


def wait_until_ready(lab: Any) -> Any:
    """All four machines have answered: they are connected to beside the start, and a busy machine takes a while."""

    def ready() -> bool:
        return {pool["name"]: pool["ready"] for pool in lab.data("pools")}["lab"] == 4

    wait_for(ready, "all nodes to answer", 60)
    return lab


@pytest.mark.needs("sshd")
def test_a_model_trained_on_another_machine_is_registered_here(lab: Any) -> None:
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
def test_a_registered_model_and_an_artifact_are_staged_to_every_node_of_a_gang(lab: Any, tmp_path: Path) -> None:
    made = lab.job(
        "base",
        ["python3", "-c", MAKES_A_MODEL],
        pool="lab",
        max_cost="$1",
        outputs={"models": [{"name": "base-model", "path": "model", "license": "MIT", "framework": "none"}]},
    )
    detail = lab.wait_run(lab.submit(made), "succeeded", "failed")
    assert detail.run.status == "succeeded", detail.run.message
    pairs = tmp_path / "pairs"
    pairs.mkdir()
    (pairs / "pairs.bin").write_bytes(body := os.urandom(3 * 2**20))
    lab.ground("artifacts", "push", str(pairs), "--name", "pairs", "--project", "research")
    look = 'cd "$GROUND_DATA_DIR" && find . -name "*.bin" -o -name "*.safetensors" | sort | xargs sha256sum'
    data = [{"name": "base", "from": "model:base-model@1"}, {"name": "pairs", "from": "artifact:pairs"}]
    small = {"cpus": 0.5, "memory": "64MiB", "nodes": 2}
    gang = lab.submit(lab.job("tuned", look, pool="lab", max_cost="$1", data=data, resources=small))
    detail = lab.wait_run(gang, "succeeded", "failed")
    assert detail.run.status == "succeeded", detail.run.message
    files = {file.path: file.sha256 for file in lab.client.model_version("base-model", 1).files}
    wanted = f"{files['model.safetensors']}  ./base/model.safetensors\n"
    wanted += f"{hashlib.sha256(body).hexdigest()}  ./pairs/pairs.bin\n"
    for rank in (0, 1):
        assert lab.ground("logs", gang, "--rank", str(rank)).stdout == wanted
    assert len(set(detail.attempts[0].node.split(","))) == 2
    data = [{"name": "base", "from": "model:base-model@9"}]
    absent = lab.job("absent", ["true"], pool="lab", max_cost="$1", data=data)
    assert "has no model base-model@9" in lab.ground("plan", "-f", str(absent), expect=4).stderr


@pytest.mark.needs("sshd")
def test_an_endpoint_is_refused_on_a_pool_that_the_gateway_cant_reach(lab: Any, tmp_path: Path) -> None:
    path = tmp_path / "far.yaml"
    path.write_text(ENDPOINT.format(end_date=(datetime.now(UTC) + timedelta(days=2)).date().isoformat()))
    refused = lab.ground("plan", "-f", str(path), expect=3)
    assert "the nodes of pool lab are reached over SSH alone" in refused.stdout + refused.stderr


@pytest.mark.needs("sshd")
def test_the_pool_file_is_read_anew_and_never_leaves_what_runs_behind(
    lab: Any, session_hosts: Hosts, wait: Callable[..., Any]
) -> None:
    path, file = lab.home / "pools.yaml", pool_file(session_hosts)
    held = lab.submit(lab.job("held", ["sleep", "60"], pool="lab", max_cost="$1"))
    node = lab.wait_run(held, "running").attempts[0].node
    listed = file["pools"]["lab"]["nodes"]  # type: ignore[index]
    path.write_text(json.dumps({**file, "kind": "Pool"}, indent=1))
    assert "must be Pools, is Pool" in lab.ground("pools", "reload", expect=2).stderr
    file["pools"]["lab"]["nodes"] = [each for each in listed if each["name"] != node]  # type: ignore[index]
    path.write_text(json.dumps(file))
    assert f"node {node} of pool lab has 1 attempt;" in lab.ground("pools", "reload", expect=None).stderr
    gone = next(name for name in ("n1", "n2", "n3") if name != node)
    kept = [each for each in listed if each["name"] != gone]
    file["pools"]["lab"]["nodes"] = kept  # type: ignore[index]
    kept[0]["price"] = "$3"
    file["pools"]["attic"] = {**file["pools"]["lab"], "nodes": [{**listed[0], "name": "old"}]}  # type: ignore[index]
    path.write_text(json.dumps(file))
    changes = lab.data("pools", "reload", "--reason", "one was sold")
    assert changes == {"added": ["attic", "attic/old"], "removed": [f"lab/{gone}"], "changed": ["lab/n0"]}
    assert lab.data("pools", "reload") == {"added": [], "removed": [], "changed": []}
    assert {each["name"] for each in lab.data("pools")} == {"local", "lab", "attic"}
    assert gone not in {each["name"] for each in lab.data("nodes") if each["pool"] == "lab"}
    assert lab.client.run(held).run.status == "running"
    new = lab.submit(lab.job("on-a-new-pool", ["true"], pool="attic", max_cost="$1"))
    assert lab.wait_run(new, "succeeded", "failed").run.status == "succeeded"
    host = next(each for each in session_hosts.hosts if each.name == node)
    host.cut()
    try:
        wait(lambda: f"waits for {node}, silent for" in lab.ground("explain", held).stdout, "the silence to be told")
        assert "its dead-man timer ends the job after 4h" in lab.ground("explain", held).stdout
    finally:
        host.mend()
    lab.ground("stop", held)
    assert lab.wait_run(held, "stopped", "failed").run.end_reason == "stopped-by-user"
    events = [each for each in lab.data("audit", "log") if each["action"] == "pools.reload"]
    assert sorted(each["reason"] for each in events) == ["", "one was sold"]


@pytest.mark.needs("sshd")
@pytest.mark.needs("root")
def test_a_pool_that_asks_for_walls_gives_them_to_jobs_that_ask_for_none(lab: Any) -> None:
    path = lab.home / "pools.yaml"
    before = path.read_text()
    file = json.loads(before)
    file["pools"]["lab"]["isolation"] = "user"
    path.write_text(json.dumps(file))
    assert "lab" in lab.data("pools", "reload")["changed"]
    small = {"cpus": 0.5, "memory": "64MiB"}
    weaker = lab.job("weaker", ["id", "-u"], pool="lab", max_cost="$1", isolation="none", resources=small)
    refused = lab.ground("plan", "-f", str(weaker), expect=3)
    assert "isolation-minimum: needs isolation user or stronger, has none" in refused.stdout + refused.stderr
    silent = lab.submit(lab.job("silent", ["id", "-u"], pool="lab", max_cost="$1", resources=small))
    detail = lab.wait_run(silent, "succeeded", "failed")
    assert detail.run.status == "succeeded", detail.run.message
    assert int(lab.log(silent)) >= 710_000
    lab.ground("plan", "-f", str(lab.job("here", ["id", "-u"], isolation="none")))  # the local pool asks for nothing
    path.write_text(before)
    lab.ground("pools", "reload")


@pytest.mark.needs("sshd")
def test_a_pool_file_with_a_fault_keeps_the_control_plane_down_and_says_where(
    new_installation: Callable[..., Installation], session_hosts: Hosts
) -> None:
    installation = new_installation()
    installation.home.mkdir()
    file = pool_file(session_hosts)
    file["pools"]["lab"]["prize"] = "$1"  # type: ignore[index]
    (installation.home / "pools.yaml").write_text(json.dumps(file, indent=1))
    done = installation.ground("up", "--detach", expect=None)
    assert done.returncode != 0
    assert "prize" in done.stderr
    assert "line " in done.stderr


@pytest.mark.needs("sshd")
def test_a_gang_starts_whole_or_not_at_all_and_a_pipeline_reads_what_was_made_there(
    new_installation: Callable[..., Installation], hosts: Hosts, tmp_path: Path, wait: Callable[..., Any]
) -> None:
    lab = new_installation()
    lab.home.mkdir()
    file = pool_file(hosts)
    file["pools"]["lab"]["shared_dir"] = str(tmp_path / "shared")  # type: ignore[index]
    (lab.home / "pools.yaml").write_text(json.dumps(file))
    wait_until_ready(bring_up(lab))
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
