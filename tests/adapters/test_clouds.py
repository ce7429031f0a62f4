"""The clouds' own tools: parsers on realistic answers, their bad days, and AWS on a server that answers like it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import ManualClock

from groundplane.adapters.clouds import aws, azure, gcp
from groundplane.adapters.clouds.aws import AwsCloud
from groundplane.adapters.clouds.azure import AzureCloud
from groundplane.adapters.clouds.gcp import GoogleCloud

FILES = Path(__file__).parent.parent / "recon_files"
GIB = 2**30


def answer(name: str) -> Any:
    return json.loads((FILES / name).read_text())


# ---------------------------------------------------------------- parsers


def test_azure_sizes_come_with_their_family_and_what_forbids_them() -> None:
    skus = {sku.name: sku for sku in azure.parse_skus(answer("az_list_skus.json"))}
    a100 = skus["Standard_NC24ads_A100_v4"]
    assert (a100.cpus, a100.memory_bytes, a100.accelerators, a100.restriction) == (24, 220 * GIB, 1, "")
    assert skus["Standard_NC40ads_H100_v5"].restriction == "not available to this subscription"
    assert skus["Standard_ND96asr_v4"].restriction == "not available to this subscription in zone 1, 3"
    assert "Premium_LRS" not in skus


def test_azure_usage_is_read_whether_numbers_come_as_text_or_not() -> None:
    quotas = {quota.family: quota for quota in azure.parse_usage(answer("az_list_usage.json"), "eastus")}
    assert (quotas["StandardNCADSA100v4Family"].used, quotas["StandardNCADSA100v4Family"].limit) == (96, 96)
    assert quotas["cores"].free == 254
    assert "availabilitySets" not in quotas


def test_only_machines_that_are_stopped_and_not_deallocated_eat_quota() -> None:
    (machine,) = azure.parse_halted(answer("az_vm_list.json"))
    assert (machine.name, machine.hint) == ("train-old", "az vm deallocate -g RG-VISION -n train-old")


def test_google_types_are_one_per_name_with_the_zones_that_have_them() -> None:
    skus = {sku.name: sku for sku in gcp.parse_machine_types(answer("gcloud_machine_types.json"))}
    assert skus["a2-highgpu-1g"].zones == ("us-central1-a", "us-central1-f")
    assert (skus["a2-highgpu-1g"].accelerators, skus["a2-highgpu-1g"].memory_bytes) == (1, 85 * GIB)
    assert skus["n1-standard-4"].restriction == "deprecated by Google"


def test_google_quota_leaves_preemptible_and_disks_out() -> None:
    quotas = {quota.family: quota for quota in gcp.parse_quotas(answer("gcloud_region.json"), "us-central1")}
    assert set(quotas) == {"CPUS", "NVIDIA_A100_GPUS"}
    assert (quotas["NVIDIA_A100_GPUS"].unit, quotas["NVIDIA_A100_GPUS"].free) == ("accelerator", 15)


@pytest.mark.parametrize(
    ("name", "code"),
    [("p5.48xlarge", "L-417A185B"), ("g6e.xlarge", "L-DB2E81BA"), ("trn1.2xlarge", "L-2C3B7624"),
     ("inf2.xlarge", "L-1945791B"), ("m7i.large", "L-1216C47A"), ("p6-b200.48xlarge", "L-417A185B"),
     ("mac2.metal", "")],
)  # fmt: skip
def test_an_aws_type_counts_against_its_classes_quota(name: str, code: str) -> None:
    assert aws.quota_code(name) == code


def test_aws_quota_used_counts_running_on_demand_vcpus_alone() -> None:
    def instance(state: str, kind: str = "p4d.24xlarge", **more: Any) -> dict[str, Any]:
        shape = {"CoreCount": 48, "ThreadsPerCore": 2}
        return {"InstanceType": kind, "State": {"Name": state}, "CpuOptions": shape, **more}

    running = [instance("running"), instance("stopped"), instance("running", InstanceLifecycle="spot")]
    limits = [{"Quotas": [{"QuotaCode": "L-417A185B", "Value": 192.0}, {"QuotaCode": "L-0000", "Value": 1.0}]}]
    pages = [{"Reservations": [{"Instances": running}]}]
    (quota,) = aws.parse_quotas(limits, pages, "us-east-1")
    assert (quota.used, quota.limit, quota.free) == (96, 192, 96)
    (unseen,) = aws.parse_quotas(limits, None, "us-east-1")
    assert unseen.used is None and unseen.free is None
    silent = {"InstanceType": "p4d.24xlarge", "State": {"Name": "running"}}
    (untold,) = aws.parse_quotas(limits, [{"Reservations": [{"Instances": [silent]}]}], "us-east-1")
    assert untold.used is None, "an instance that does not say how many vCPUs it has is not 0 of them"


def test_the_cheapest_zone_is_the_spot_price() -> None:
    history = [{"InstanceType": "p4d.24xlarge", "SpotPrice": price} for price in ("9.1000", "8.2500", "9.9")]
    assert aws.parse_spot([{"SpotPriceHistory": history}]) == {"p4d.24xlarge": 8_250_000}


def test_the_price_list_service_answers_texts_within_its_answer() -> None:
    offer = answer("aws_offer.json")
    (code, product), *_ = offer["products"].items()
    text = json.dumps({"product": product, "terms": {"OnDemand": offer["terms"]["OnDemand"][code]},
                       "publicationDate": offer["publicationDate"]})  # fmt: skip
    assert aws.parse_prices([{"PriceList": [text]}], "us-east-1") == {"p4d.24xlarge": 20_000_000}


# ---------------------------------------------------------------- the tools


def tool(folder: Path, name: str, body: str) -> str:
    """A program that stands where the cloud's tool stands, and answers with files."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


async def test_az_answers_for_a_region_with_sizes_quota_and_halted_machines(tmp_path: Path, clock: ManualClock) -> None:
    body = f"""case "$*" in
*list-skus*) cat {FILES}/az_list_skus.json;;
*list-usage*) cat {FILES}/az_list_usage.json;;
*) cat {FILES}/az_vm_list.json;;
esac"""
    (view,) = await AzureCloud(clock, command=tool(tmp_path, "az", body)).look(["eastus"])
    assert view.skus and view.quotas and not view.gaps
    assert [(machine.name, machine.cpus) for machine in view.halted] == [("train-old", 24)]


@pytest.mark.parametrize("kind", [AzureCloud, GoogleCloud])
async def test_a_tool_that_is_not_installed_is_one_gap_with_the_way_forward(kind: Any, clock: ManualClock) -> None:
    (view,) = await kind(clock, command="no-such-tool-here").look(["one", "two"])
    assert view.skus is None and view.quotas is None
    (gap,) = view.gaps
    assert "no-such-tool-here is not installed" in gap.why and "login" in gap.hint


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("echo 'ERROR: Please run az login to setup account.' >&2; exit 1", "Please run az login"),
        ("exec sleep 60", "did not answer within 0.5 s"),
        ("echo not json", "answered no JSON"),
        ("echo '[{}]'", "answered in a shape that is not known"),
    ],
)
async def test_a_tool_on_a_bad_day_is_a_gap_and_never_a_guess(
    tmp_path: Path, clock: ManualClock, body: str, why: str
) -> None:
    views = await AzureCloud(clock, command=tool(tmp_path, "az", body), timeout_s=0.5).look(["eastus"])
    assert why in views[0].gaps[0].why
    assert all(view.skus is None and view.quotas is None for view in views)


async def test_quota_that_may_not_be_read_leaves_the_sizes_standing(tmp_path: Path, clock: ManualClock) -> None:
    body = f"""case "$*" in
*list-skus*) cat {FILES}/az_list_skus.json;;
*list-usage*) echo "ERROR: (AuthorizationFailed) no access to usages" >&2; exit 3;;
*) echo "[]";;
esac"""
    (view,) = await AzureCloud(clock, command=tool(tmp_path, "az", body)).look(["eastus"])
    assert view.skus and view.quotas is None
    assert [gap.what for gap in view.gaps] == ["quota"] and "AuthorizationFailed" in view.gaps[0].why


async def test_machines_that_may_not_be_listed_leave_sizes_and_quota_standing(
    tmp_path: Path, clock: ManualClock
) -> None:
    body = f"""case "$*" in
*list-skus*) cat {FILES}/az_list_skus.json;;
*list-usage*) cat {FILES}/az_list_usage.json;;
*) echo "ERROR: (AuthorizationFailed) no access to virtualMachines" >&2; exit 3;;
esac"""
    (view,) = await AzureCloud(clock, command=tool(tmp_path, "az", body)).look(["eastus"])
    assert view.skus and view.quotas
    assert [gap.what for gap in view.gaps] == ["stopped machines"]


# ---------------------------------------------------------------- AWS, on a server


@pytest.fixture(scope="module")
def aws_address() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _answers(address):
            assert server.poll() is None and time.monotonic() < deadline, "moto did not start"
            time.sleep(0.1)
        yield address
    finally:
        server.terminate()
        server.wait(30)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/moto-api/data.json", timeout=2):
            return True
    except OSError:
        return False


async def test_aws_answers_through_boto3_and_names_what_it_did_not(
    aws_address: str, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    (view,) = await AwsCloud(clock, endpoint_url=aws_address).look(["us-east-1"])
    assert view.skus is not None and len(view.skus) > 500
    p4d = next(sku for sku in view.skus if sku.name == "p4d.24xlarge")
    assert (p4d.cpus, p4d.accelerators, p4d.accelerator) == (96, 8, "NVIDIA A100 40GB")
    assert p4d.quota_family == "L-417A185B"
    # That server keeps no quotas of EC2 and no price list: said as gaps, and nothing made up for them.
    assert view.quotas is None and p4d.price_microusd_per_hour is None
    assert {gap.what for gap in view.gaps} == {"quota", "prices"}


async def test_an_aws_that_is_not_there_is_a_gap(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    (view,) = await AwsCloud(clock, endpoint_url=address).look(["us-east-1"])
    assert view.skus is None and view.quotas is None
    assert {gap.what for gap in view.gaps} == {"SKUs", "quota", "quota used", "spot prices", "prices"}
