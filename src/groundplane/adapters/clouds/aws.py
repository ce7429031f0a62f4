"""AWS through boto3: instance types, vCPU quota granted and used, on-demand and spot prices.

Source: EC2 DescribeInstanceTypes, DescribeInstances, DescribeSpotPriceHistory; Service Quotas ListServiceQuotas; the
Price List service's GetProducts. A stopped instance takes no vCPU quota on AWS, so none is listed as eating it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from groundplane.domain.catalogue.price_lists import aws_products
from groundplane.domain.planning.recon import CloudSku, CloudView, Gap, Quota
from groundplane.errors import Unavailable
from groundplane.ports import Clock

MIB = 2**20
SIGN_IN = "aws configure, or set AWS_PROFILE for the control plane"
QUOTA_CODES = (
    (re.compile(r"(p)\d"), "L-417A185B"),
    (re.compile(r"(g|gr|vt)\d"), "L-DB2E81BA"),
    (re.compile(r"(inf)\d"), "L-1945791B"),
    (re.compile(r"(trn)\d"), "L-2C3B7624"),
    (re.compile(r"(dl)\d"), "L-6E869C2A"),
    (re.compile(r"(f)\d"), "L-74FC7D96"),
    (re.compile(r"(x)\d"), "L-7295265B"),
    (re.compile(r"(a|c|d|h|i|im|is|m|r|t|z)\d"), "L-1216C47A"),
)
"""Instance class → the quota of its running on-demand vCPUs. Source: EC2 user guide, on-demand instance quotas."""
_Answer = TypeVar("_Answer")
_PRICED = {"operatingSystem": "Linux", "tenancy": "Shared", "preInstalledSw": "NA", "capacitystatus": "Used"}


class AwsCloud:
    """Implements `ports.CloudSource` with the operator's own credentials, found as every AWS tool finds them.

    `endpoint_url` sends every call to one address; empty leaves that to AWS' own settings.
    """

    cloud = "aws"

    def __init__(self, clock: Clock, *, endpoint_url: str = "", timeout_s: float = 20.0) -> None:
        self._clock = clock
        self._endpoint_url = endpoint_url
        self._timeout_s = timeout_s

    async def look(self, regions: Sequence[str]) -> list[CloudView]:
        """One view per region; without boto3 or credentials one gap says so."""
        if importlib.util.find_spec("boto3") is None:
            why, hint = "boto3 is not installed where the control plane runs", "pip install 'groundplane[aws]'"
            return [self._silent(why, hint)]
        if not self._endpoint_url and not await asyncio.to_thread(_has_credentials):
            return [self._silent("boto3 finds no credentials", SIGN_IN)]
        return list(await asyncio.gather(*(asyncio.to_thread(self._region, region) for region in regions)))

    def _region(self, region: str) -> CloudView:
        gaps: list[Gap] = []

        def read(what: str, ask: Callable[[], _Answer]) -> _Answer | None:
            try:
                return ask()
            except Unavailable as error:
                gaps.append(Gap(cloud="aws", region=region, what=what, why=error.message, hint=error.hint))
                return None

        types = read("SKUs", lambda: self._pages(region, "ec2", "describe_instance_types"))
        limits = read("quota", lambda: self._pages(region, "service-quotas", "list_service_quotas", ServiceCode="ec2"))
        running = read("quota used", lambda: self._pages(region, "ec2", "describe_instances"))
        spot = read("spot prices", lambda: self._spot(region))
        priced = read("prices", lambda: self._prices(region))
        skus = None
        if types is not None:
            skus = tuple(parse_instance_types(types, parse_prices(priced or (), region), parse_spot(spot or ())))
        quotas = None if limits is None else tuple(parse_quotas(limits, running, region))
        return CloudView(
            cloud="aws",
            region=region,
            source="boto3",
            read_at=self._clock.now(),
            skus=skus,
            quotas=quotas,
            gaps=tuple(gaps),
        )

    def _spot(self, region: str) -> list[dict[str, Any]]:
        now: datetime = self._clock.now()
        asked = {"ProductDescriptions": ["Linux/UNIX"], "StartTime": now, "EndTime": now}
        return self._pages(region, "ec2", "describe_spot_price_history", **asked)

    def _prices(self, region: str) -> list[dict[str, Any]]:
        wanted = {**_PRICED, "regionCode": region}
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
        # The price list has one address for all regions.
        return self._pages("us-east-1", "pricing", "get_products", ServiceCode="AmazonEC2", Filters=filters)

    def _pages(self, region: str, service: str, operation: str, **asked: Any) -> list[dict[str, Any]]:
        """Every page of an answer. Raises Unavailable with AWS' own words."""
        # An extra that most installations lack, and slow to import: only who asks AWS pays for it.
        import boto3  # noqa: PLC0415
        from botocore.config import Config  # noqa: PLC0415
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        patience = Config(connect_timeout=5, read_timeout=self._timeout_s, retries={"max_attempts": 2})
        try:
            client = boto3.session.Session().client(
                service, region_name=region, endpoint_url=self._endpoint_url or None, config=patience
            )
            return list(client.get_paginator(operation).paginate(**asked))
        except ClientError as error:
            said = error.response.get("Error", {})
            what = f"{service} refused {operation}: {said.get('Code', '?')}: {str(said.get('Message', ''))[:160]}"
            raise Unavailable(what, "let the credentials read EC2, Service Quotas and Pricing") from None
        except (BotoCoreError, ValueError) as error:
            raise Unavailable(f"{service} did not answer {operation}: {error}", SIGN_IN) from None

    def _silent(self, why: str, hint: str) -> CloudView:
        gap = Gap(cloud="aws", region="", what="live data", why=why, hint=hint)
        return CloudView(cloud="aws", region="", source="boto3", read_at=self._clock.now(), gaps=(gap,))


def _has_credentials() -> bool:
    import boto3  # noqa: PLC0415 - an extra that most installations lack
    from botocore.exceptions import BotoCoreError  # noqa: PLC0415

    try:
        return boto3.session.Session().get_credentials() is not None
    except BotoCoreError:
        return False


# ---------------------------------------------------------------- parsers


def parse_instance_types(
    pages: Iterable[Mapping[str, Any]], prices: Mapping[str, int], spot: Mapping[str, int]
) -> list[CloudSku]:
    """DescribeInstanceTypes' pages → SKUs, with the prices that are known, in micro-dollars an hour."""
    return [
        _sku(entry, prices, spot)
        for page in pages
        for entry in page["InstanceTypes"]
        if "on-demand" in entry.get("SupportedUsageClasses", ("on-demand",))
    ]


def _sku(entry: Mapping[str, Any], prices: Mapping[str, int], spot: Mapping[str, int]) -> CloudSku:
    cards = (entry.get("GpuInfo") or {}).get("Gpus") or (entry.get("NeuronInfo") or {}).get("NeuronDevices") or ()
    cards = cards or (entry.get("InferenceAcceleratorInfo") or {}).get("Accelerators") or ()
    card = cards[0] if cards else {}
    memory_mib = (card.get("MemoryInfo") or {}).get("SizeInMiB")
    size = f" {round(memory_mib / 1024)}GB" if memory_mib else ""
    name = entry["InstanceType"]
    return CloudSku(
        name=name,
        cpus=float(entry["VCpuInfo"]["DefaultVCpus"]),
        memory_bytes=int(entry["MemoryInfo"]["SizeInMiB"]) * MIB,
        accelerators=float(sum(int(each.get("Count", 0)) for each in cards)),
        accelerator=f"{card.get('Manufacturer', '')} {card.get('Name', '')}{size}".strip(),
        quota_family=quota_code(name),
        price_microusd_per_hour=prices.get(name),
        spot_microusd_per_hour=spot.get(name),
    )


def quota_code(instance_type: str) -> str:
    """The quota that an instance type counts against; empty for classes we don't know."""
    return next((code for shape, code in QUOTA_CODES if shape.match(instance_type)), "")


def parse_quotas(
    limits: Iterable[Mapping[str, Any]], running: Iterable[Mapping[str, Any]] | None, region: str
) -> list[Quota]:
    """ListServiceQuotas' pages, and DescribeInstances' for what is used; None there leaves `used` unknown."""
    used = None if running is None else _running_vcpus(running)
    codes = {code for _, code in QUOTA_CODES}
    return [
        Quota(
            cloud="aws",
            region=region,
            family=entry["QuotaCode"],
            unit="vCPU",
            used=None if used is None else used.get(entry["QuotaCode"], 0.0),
            limit=float(entry["Value"]),
        )
        for page in limits
        for entry in page["Quotas"]
        if entry["QuotaCode"] in codes
    ]


def _running_vcpus(pages: Iterable[Mapping[str, Any]]) -> dict[str, float | None]:
    """Quota code → vCPUs of running on-demand instances; None where an instance does not say how many it has."""
    used: dict[str, float | None] = {}
    for instance in (each for page in pages for group in page["Reservations"] for each in group["Instances"]):
        if instance["State"]["Name"] not in ("pending", "running") or instance.get("InstanceLifecycle") == "spot":
            continue
        code, shape = quota_code(instance["InstanceType"]), instance.get("CpuOptions") or {}
        before = used.get(code, 0.0)
        known = before is not None and "CoreCount" in shape
        used[code] = (before or 0.0) + shape["CoreCount"] * shape.get("ThreadsPerCore", 1) if known else None
    return used


def parse_prices(pages: Iterable[Mapping[str, Any]], region: str) -> dict[str, int]:
    """GetProducts' pages → instance type → micro-dollars an hour, Linux, shared, on demand."""
    return {
        price.sku: price.price_microusd_per_hour
        for page in pages
        for price in aws_products(page["PriceList"])
        if price.region == region and price.price_microusd_per_hour
    }


def parse_spot(pages: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """DescribeSpotPriceHistory's pages → instance type → the cheapest zone's price in micro-dollars an hour."""
    cheapest: dict[str, int] = {}
    for entry in (each for page in pages for each in page["SpotPriceHistory"]):
        price = round(float(entry["SpotPrice"]) * 1_000_000)
        name = entry["InstanceType"]
        cheapest[name] = min(price, cheapest.get(name, price))
    return cheapest
