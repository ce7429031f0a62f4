"""Plan before spend, through the real command and server: each story's figures are summed up here once more."""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.journeys.conftest import Installation, bring_up, free_ports, shut_down

FILES = Path(__file__).parent.parent / "recon_files"
GIB = 2**30
H100_FAMILY = "StandardNCadsH100v5Family"

AZ = """\
#!/bin/sh
# Answers like `az`, from files: one for each question and region.
region=any
for word in "$@"; do [ "$before" = --location ] && region=$word; before=$word; done
[ "$region" = eastuss ] && { echo "[]"; exit; }
case "$1 $2" in
  "vm list") cat "$ANSWERS/machines.json" ;;
  "vm list-skus") cat "$ANSWERS/skus.json" ;;
  "vm list-usage") cat "$ANSWERS/usage-$region.json" 2>/dev/null || cat "$ANSWERS/usage-any.json" ;;
  *) echo "ERROR: unknown $*" >&2; exit 2 ;;
esac
"""


class Azure:
    """An `az` on the path that tells what a test lets it tell."""

    def __init__(self, folder: Path) -> None:
        self.answers, self.tools = folder / "answers", folder / "tools"
        self.answers.mkdir(parents=True)
        self.tools.mkdir()
        script = self.tools / "az"
        script.write_text(AZ.replace("$ANSWERS", str(self.answers)))
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        skus = json.loads((FILES / "az_list_skus.json").read_text())
        for sku in skus:
            sku["restrictions"] = []
        self._write("skus", skus)
        machines = json.loads((FILES / "az_vm_list.json").read_text())
        machines[0]["hardwareProfile"]["vmSize"] = "Standard_NC40ads_H100_v5"
        self._write("machines", machines)
        self.quota("any", used=0, limit=400)

    def quota(self, region: str, *, used: int, limit: int, family: str = H100_FAMILY) -> None:
        """Every family has plenty but this one."""
        usage = json.loads((FILES / "az_list_usage.json").read_text())
        for entry in usage:
            entry["currentValue"], entry["limit"] = 0, 2_000
            if entry["name"]["value"] == family:
                entry["currentValue"], entry["limit"] = used, limit
        self._write(f"usage-{region}", usage)

    def _write(self, name: str, value: Any) -> None:
        (self.answers / f"{name}.json").write_text(json.dumps(value))


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Azure:
    made = Azure(tmp_path_factory.mktemp("azure"))
    made.quota("eastus", used=96, limit=96)
    return made


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory, azure: Azure) -> Iterator[Installation]:
    port, gateway_port = free_ports(2)
    path = os.pathsep.join((str(azure.tools), str(Path(sys.executable).parent), "/usr/bin", "/bin"))
    home = tmp_path_factory.mktemp("plans") / "ground"
    made = Installation(home, port, gateway_port, {"PATH": path})
    yield bring_up(made)
    shut_down(made)


@pytest.fixture
def planned(plane: Installation) -> Callable[..., Any]:
    """Plans a spec of these fields; gives the plan and what refuses it, by rule. `sdk` spares a process."""

    def make(name: str, *, expect: int | None = 3, sdk: bool = False, **spec: object) -> tuple[Any, dict[str, Any]]:
        body = {"end_date": "30d", "max_cost": "$100000", "max_duration": "4d"} | spec
        path = plane.job(name, ["python", "train.py"], **body)
        if sdk:
            (plan,) = msgspec.to_builtins(plane.client.plan(path.read_text()))
        else:
            done = plane.ground("plan", "-f", str(path), "-o", "json", expect=expect)
            (plan,) = json.loads(done.stdout)
        refused = {v["rule"]: v["refused"] for v in plan["verdicts"] if v["refused"] is not None}
        assert (plan["status"] == "refused") is bool(refused)
        return plan, refused

    return make


def dollars(price_microusd: int, hours: float, nodes: int) -> float:
    return price_microusd / 1e6 * hours * nodes


def choice(plan: Any, node_type: str, purchase: str = "on-demand") -> Any:
    return next(c for c in plan["outlook"]["choices"] if (c["node_type"], c["purchase"]) == (node_type, purchase))


# ---------------------------------------------------------------- T2: nobody's machines


def test_machines_that_nobody_owns_are_found_before_they_cost(plane: Installation, planned: Callable[..., Any]) -> None:
    path = plane.job("sprawl", "true", resources={"cpus": 1, "memory": "1GiB"})
    document = json.loads(path.read_text())
    del document["metadata"]["owner"], document["metadata"]["cost_center"]
    path.write_text(json.dumps(document, indent=1))
    refused = plane.ground("plan", "-f", str(path), expect=2)
    assert "metadata.owner: is required" in refused.stderr and "metadata.cost_center: is required" in refused.stderr
    document["metadata"] |= {"owner": "unknown", "cost_center": "r1"}
    document["spec"] |= {
        "resources": {"cpus": 24, "memory": "220GiB", "accelerators": 1, "nodes": 4,
                      "instance_type": "Standard_NC24ads_A100_v4"},
        "max_duration": "21d", "end_date": "30d", "max_cost": "$10000",
    }  # fmt: skip
    path.write_text(json.dumps(document, indent=1))
    done = plane.ground("plan", "-f", str(path), "-o", "json", expect=3)
    (plan,) = json.loads(done.stdout)
    verdicts = {verdict["rule"]: verdict for verdict in plan["verdicts"]}
    assert "somebody in metadata.owner, has 'unknown'" in done.stderr
    assert f"idle is ${4 * 3.673 * 60:,.2f}" in verdicts["owner-named"]["refused"]["have"]
    # Four of them for three weeks: what nobody asked for would have cost.
    assert plan["worst_case_microusd"] == round(4 * 3.673 * 24 * 21 * 1e6)


# ---------------------------------------------------------------- T7: data that can't arrive in time


def test_a_four_hour_job_is_refused_the_share_that_needs_nine(planned: Callable[..., Any]) -> None:
    need = {"cpus": 64, "memory": "512GiB", "accelerators": 8, "accelerator": "a100", "cloud": "azure"}
    data = [{"name": "corpus", "path": "/mnt/corpus", "size": "2TB", "throughput": "60MB/s"}]
    plan, refused = planned("midnight", resources=need, max_duration="4h", data=data)
    assert list(refused) == ["storage"]
    a_pass_h, enough = 2e12 / 60e6 / 3600, 2e12 / (4 * 3600) / 1e6
    assert (round(a_pass_h, 2), math.ceil(enough)) == (9.26, 139)
    assert refused["storage"]["have"].endswith(f": {a_pass_h:.2f} h")
    assert f"{enough:.1f} MB/s" in refused["storage"]["need"]
    assert plan["outlook"]["storage"] == [f"corpus: 2.00 TB ÷ 60 MB/s (as the spec says) = {a_pass_h:.2f} h a pass"]
    before, at_start, then = plan["outlook"]["staging"]
    assert f"{a_pass_h:.2f} h" in before
    assert f"{2e12 / 5e9 / 60:.2f} min" in at_start and f"{2e12 / 5e9 / 60:.2f} min" in then


def test_enough_throughput_is_enough(planned: Callable[..., Any]) -> None:
    need = {"cpus": 1, "memory": "256MiB"}
    data = [{"name": "corpus", "path": "/mnt/corpus", "size": "2TB", "throughput": "139MB/s"}]
    planned("in-time", sdk=True, expect=0, resources=need, max_duration="4h", data=data)
    _, refused = planned("twice", sdk=True, resources=need, max_duration="4h", data=[data[0] | {"passes": 2}])
    assert f"{2 * 2e12 / 139e6 / 3600:.2f} h" in refused["storage"]["have"]


# ---------------------------------------------------------------- T8 and T10: the wrong machine


def test_a_gpu_cluster_of_processors_is_refused_with_hours_and_dollars_beside_it(planned: Callable[..., Any]) -> None:
    need = {"cpus": 64, "memory": "256GiB", "nodes": 8, "cloud": "azure", "region": "eastus"}
    work = {"model": "llama-3.1-8b", "method": "lora", "tokens": "1B"}
    named = need | {"instance_type": "Standard_D64s_v5"}
    plan, refused = planned("gpu-cluster", resources=named, training=work)
    assert list(refused) == ["gpu-work"]
    params, layers, sequence, width = 8.03e9, 32, 2_048, 4_096
    flop = (4 * params + 3 * 2 * layers * sequence * width) * 1e9
    hours = flop / (8 * 64 * 90e9 * (0.25 + 0.45) / 2) / 3600
    slow = choice(plan, "Standard_D64s_v5")
    assert slow["hours"] == pytest.approx(hours, rel=0.001)
    assert slow["expected_microusd"] / 1e6 == pytest.approx(dollars(3_072_000, hours, 8), rel=0.001)
    assert (
        f"{hours:,.0f} h" in refused["gpu-work"]["have"]
        and f"${slow['expected_microusd'] / 1e6:,.2f}" in (refused["gpu-work"]["have"])
    )
    beside = [c for c in plan["outlook"]["choices"] if c["fits"] and c["purchase"] == "on-demand"]
    fast = next(c for c in beside if c["accelerators"] and c["place"].startswith("azure"))
    assert fast["accelerators"] and fast["hours"] < slow["hours"] / 5
    assert fast["expected_microusd"] < slow["expected_microusd"] / 10
    told = f"{fast['hours']:,.2f} h, ${fast['expected_microusd'] / 1e6:,.2f}"
    assert told in refused["gpu-work"]["hint"]


def test_a_typo_of_four_thousand_dollars_stops_at_the_plan(planned: Callable[..., Any]) -> None:
    need = {"cpus": 6, "memory": "64GiB", "accelerators": 1, "cloud": "azure"}
    plan, refused = planned("typo", resources=need | {"instance_type": "Standard_D16s_v5"})
    assert refused["gpu-work"]["have"] == "none on Standard_D16s_v5"
    right = f"1 × Standard_NC24ads_A100_v4 in azure eastus (1 × nvidia-a100-80gb-pcie) 96.00 h, ${3.673 * 96:,.2f}"
    assert right in refused["gpu-work"]["hint"]
    assert plan["offer"] is None
    meant, retired = planned("meant", resources=need | {"instance_type": "NC6s_v3", "accelerator": "v100"})
    assert "retired on 2025-09-30" in retired["not-retired"]["have"]
    instead = next(v["warning"] for v in meant["verdicts"] if v["rule"] == "replacement")
    assert "nvidia-v100" in instead


# ---------------------------------------------------------------- T9 and T19: memory


def test_seven_billion_parameters_do_not_fit_forty_gigabytes(planned: Callable[..., Any]) -> None:
    need = {"cpus": 8, "memory": "64GiB", "accelerators": 1, "instance_type": "Standard_ND96asr_v4"}
    work = {"params": "7B", "precision": "fp16", "optimizer": "adam"}
    plan, refused = planned("two-in-the-morning", resources=need, training=work)
    assert list(refused) == ["accelerator-memory"]
    states = 7e9 * (2 + 2 + 8)
    activations = 2_048 * 34 * 4_096 * 32 + 2_048 * 32_000 * 6
    total = (states + activations) / 1e9
    assert 92 <= total <= 104
    assert refused["accelerator-memory"]["need"].startswith(f"{total:.2f} GB")
    fixes = plan["outlook"]["fixes"]
    order = ["gradient checkpointing", "ZeRO-3 or FSDP", "8-bit Adam", "LoRA", "QLoRA", "a bigger card"]
    assert [next(word for word in order if fix.startswith(word)) for fix in fixes] == order
    less = {fix.split(":")[0]: float(fix.split(": ")[1].split(" GB")[0]) for fix in fixes[:-1]}
    recomputed = (states + 2_048 * (2 * 4_096 * 32 + 34 * 4_096) + 2_048 * 32_000 * 6) / 1e9
    assert less["gradient checkpointing"] == pytest.approx(recomputed, abs=0.01)
    assert less["8-bit Adam"] == pytest.approx(total - 7 * (8 - 2), abs=0.01)
    assert all(each < total for each in less.values())
    small, _ = planned("smaller", sdk=True, expect=0, resources=need, training=work | {"method": "lora"})
    assert not small["outlook"]["fixes"]


def test_sixteen_gibibytes_do_not_load_seven_billion_parameters(plane: Installation) -> None:
    document = {
        "apiVersion": "groundplane/v1",
        "kind": "Endpoint",
        "metadata": {"name": "chat", "project": "research", "owner": "ana", "cost_center": "r1"},
        "spec": {
            "model": "chat-7b@1",
            "serving": {"params": "7B", "precision": "fp16"},
            "resources": {"cpus": 1, "memory": "16GiB"},
            "end_date": "1d",
            "max_cost": "$20",
            "token_price": {"prompt": "$0.10", "completion": "$0.40"},
        },
    }
    path = plane.home.parent / "chat.yaml"

    def refusals(memory: str) -> dict[str, Any]:
        document["spec"]["resources"]["memory"] = memory  # type: ignore[index]
        path.write_text(json.dumps(document))
        (plan,) = json.loads(plane.ground("plan", "-f", str(path), "-o", "json", expect=3).stdout)
        return {v["rule"]: v["refused"] for v in plan["verdicts"] if v["refused"] is not None}

    needed = 2 * 7e9 * 2
    assert 28e9 <= needed <= 32 * GIB
    told = refusals("16GiB")["cpu-memory"]
    assert told["need"] == f"2 × {7e9 * 2 / 1e9:.2f} GB of weights = {needed / 1e9:.2f} GB"
    assert told["hint"].startswith(f"set resources.memory: {math.ceil(needed / GIB)}GiB")
    assert "cpu-memory" not in refusals(f"{math.ceil(needed / GIB)}GiB")


# ---------------------------------------------------------------- T20: the quota wall


def test_the_quota_wall_is_met_at_the_plan(planned: Callable[..., Any], plane: Installation) -> None:
    need = {"cpus": 40, "memory": "300GiB", "accelerators": 1, "instance_type": "Standard_NC40ads_H100_v5"}
    plan, refused = planned("wall", resources=need | {"region": "eastus"}, deadline="2d")
    assert set(refused) == {"quota", "lead-time"}
    assert refused["quota"]["need"].startswith("40 vCPU of StandardNCadsH100v5Family")
    assert refused["quota"]["have"] == "0 free in azure eastus: 96 of 96 vCPU used"
    assert "az vm deallocate -g RG-VISION -n train-old" in refused["quota"]["hint"]
    assert "azure eastus2 has room for 1 × Standard_NC40ads_H100_v5: 0 of 400 vCPU used" in plan["outlook"]["room"]
    assert "up to 72.00 h" in refused["lead-time"]["need"] and refused["lead-time"]["have"].startswith("48.00 h")
    late, only_quota = planned("wall-in-time", sdk=True, resources=need | {"region": "eastus"}, deadline="4d")
    assert set(only_quota) == {"quota"}
    assert late["outlook"]["quotas"][0]["used"] == 96
    done = plane.ground("apply", plan["id"], "--yes", expect=3)
    assert "quota: needs 40 vCPU" in done.stderr


def test_a_request_is_judged_by_the_clouds_own_quota(plane: Installation) -> None:
    message = "We need 1 x Standard_NC40ads_H100_v5 on azure in eastus for a training job by 2030-01-02."
    path = plane.home.parent / "message.txt"
    path.write_text(message)
    made = plane.data("request", "new", str(path), "--project", "research")
    (quota,) = [risk for item in made["intake"]["items"] for risk in item["risks"] if risk["id"] == "quota"]
    assert "0 of 96 vCPU left, 40 vCPU are needed" in quota["message"]


# ---------------------------------------------------------------- what a plan carries


def test_a_clouds_offer_is_planned_and_never_run_elsewhere(planned: Callable[..., Any], plane: Installation) -> None:
    need = {"cpus": 24, "memory": "200GiB", "accelerators": 1, "instance_type": "Standard_NC24ads_A100_v4"}
    plan, _ = planned("cloud", expect=0, resources=need, max_duration="1d", max_cost="$400")
    assert plan["offer"]["pool"] == "azure eastus"
    outlook = plan["outlook"]
    assert 0 <= outlook["expected_microusd"] <= outlook["worst_case_microusd"] == round(3.673 * 24 * 1e6)
    assert outlook["idle_weekend"] == "$3.673/h × 1 node × 60.00 h = $220.38"
    assert outlook["budget"]["left_after_microusd"] == round((20 - 3.673 * 24) * 1e6)
    (warned,) = [each["warning"] for each in plan["verdicts"] if each["rule"] == "budget-left"]
    assert warned.endswith(f"a larger budget: ground budget set {plan['project']} 89")
    assert outlook["budget"]["percent_of_limit"] == pytest.approx(100 * 3.673 * 24 / 20, abs=0.01)
    assert choice(plan, "Standard_NC24ads_A100_v4")["price_stale"]
    spot = choice(plan, "Standard_NC24ads_A100_v4", "spot")
    assert spot["worst_case_microusd"] == outlook["worst_case_microusd"] and spot["expected_microusd"] < 11 * 10**6
    done = plane.ground("apply", plan["id"], "--yes", expect=3)
    assert "executor: needs a pool that starts Standard_NC24ads_A100_v4 in azure eastus" in done.stderr
    assert plane.data("ps") == []
    same = plane.ground("plan", plan["id"], "-o", "markdown").stdout
    assert same == plane.client.plan_markdown(plan["id"])
    assert "### Alternatives side by side" in same and "| \\* azure eastus |" in same


def test_spot_is_summed_up_with_its_rework(planned: Callable[..., Any]) -> None:
    need = {"cpus": 24, "memory": "64GiB", "accelerators": 1, "instance_type": "Standard_NC24ads_A100_v4"}
    work = {"model": "llama-3.1-8b", "method": "lora", "tokens": "100M"}
    more = {"checkpoint_every": "2h", "interruptions_per_day": 4}
    plan, _ = planned("spot", sdk=True, expect=0, resources=need | {"purchase": "spot"}, training=work, **more)
    listed, spot = choice(plan, need["instance_type"]), choice(plan, need["instance_type"], "spot")
    lost_h = 2 / 2 + 10 / 60
    assert spot["hours"] == pytest.approx(listed["hours"] / (1 - 4 * lost_h / 24), rel=0.001)
    assert spot["chosen"] and plan["worst_case_microusd"] == round(3.673 * 96 * 1e6)
    assert any("4 (the spec); a checkpoint every 2h" in note for note in spot["notes"])


def test_prices_and_plans_follow_an_update_of_the_catalogue(planned: Callable[..., Any], plane: Installation) -> None:
    need = {"cpus": 24, "memory": "200GiB", "accelerators": 1, "instance_type": "Standard_NC24ads_A100_v4"}
    rows = plane.home.parent / "rows.yaml"
    rows.write_text(
        "table: instance_types\nas_of: 2026-11-20\nsources: {c: {what: contract, where: share, as_of: 2026-11-01}}\n"
        "rows:\n  - {cloud: azure, name: Standard_NC24ads_A100_v4, region: eastus, cpus: 24, memory_gib: 220,"
        " accelerators: 1, accelerator: nvidia-a100-80gb-pcie, usd_per_hour: 2.95, price_as_of: 2026-11-01,"
        " status: current, sources: [c], as_of: 2026-11-01}\n"
    )
    before, _ = planned("before", sdk=True, expect=0, resources=need, max_duration="1d", max_cost="$400")
    plane.ground("catalog", "update", str(rows), "--yes")
    after, _ = planned("after", sdk=True, expect=0, resources=need, max_duration="1d", max_cost="$400")
    assert before["worst_case_microusd"] == round(3.673 * 24e6) and after["worst_case_microusd"] == round(2.95 * 24e6)
    assert before["outlook"]["basis"]["prices"] != after["outlook"]["basis"]["prices"]
    done = plane.ground("apply", before["id"], "--yes", expect=3)
    assert "price-unchanged: needs $3.673/h (2026-06-18), has $2.95/h (2026-11-01)" in done.stderr
    (plane.home / "catalog" / "instance_types.yaml").unlink()


@pytest.mark.parametrize(
    ("changed", "rule", "words"),
    [
        ({"instance_type": "NC24ads_A100_v5"}, "instance-type", "did you mean Standard_NC24ads_A100_v4"),
        ({"instance_type": "p5.48xlarge", "cloud": "azure"}, "instance-type", "it is known in aws us-east-1"),
        ({"cloud": "aws", "region": "eastus"}, "instance-type", "eastus is a region of azure"),
        ({"cloud": "azure", "region": "eastuss"}, "instance-type", "did you mean eastus"),
    ],
)
def test_what_nobody_sells_is_told_with_what_looks_like_it(
    planned: Callable[..., Any], changed: dict[str, str], rule: str, words: str
) -> None:
    plan, refused = planned("misspelt", sdk=True, resources={"cpus": 4, "memory": "8GiB"} | changed)
    assert words in refused[rule]["hint"], refused
    assert plan["offer"] is None


def test_contradictions_are_told(planned: Callable[..., Any]) -> None:
    need = {"cpus": 4, "memory": "64GiB"}
    both = {"model": "llama-3.1-8b", "params": "7B"}
    _, refused = planned(
        "both", sdk=True, resources=need, training=both, end_date="2d", deadline="3d", max_duration="1d"
    )
    assert {"work", "deadline"} <= set(refused)
    _, unknown = planned("unknown", sdk=True, resources=need, training={"model": "lama-3.1-8b"})
    assert "did you mean llama-3.1-8b" in unknown["work"]["hint"]
