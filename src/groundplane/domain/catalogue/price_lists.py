"""The clouds' published price lists, read: each format becomes the same list of prices per SKU and region.

Azure Retail Prices (JSON), AWS offer files (JSON and CSV), Google Cloud Billing SKUs (JSON). Only Linux machines by the
hour, on demand or spot, in US dollars: licences, reservations, and other products in the same lists are left out.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any

from groundplane.errors import InvalidInput

MICROUSD = 1_000_000


class PriceFormat(StrEnum):
    AZURE_JSON = "Azure Retail Prices JSON"
    AWS_JSON = "AWS price list JSON"
    AWS_CSV = "AWS price list CSV"
    GCP_JSON = "Google Cloud SKU JSON"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPrice:
    """One SKU's price in one region, in micro-dollars an hour, as of a day. None: this list does not say."""

    cloud: str
    sku: str
    region: str
    price_microusd_per_hour: int | None
    spot_microusd_per_hour: int | None
    as_of: date
    composed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineShape:
    """What a machine type of Google's is made of: its list has prices of cores, memory and cards, not of machines."""

    sku: str
    family: str
    cpus: float
    memory_gib: float
    accelerators: float
    accelerator: str


def price_format(file: str, head: str) -> PriceFormat | None:
    """Which list a file is, by its name's end and its first few thousand characters. None: none of them."""
    if '"FormatVersion"' in head and not head.lstrip().startswith("{"):
        return PriceFormat.AWS_CSV
    if not file.lower().endswith((".yaml", ".yml")) and head.lstrip().startswith(("{", "[")):
        if '"formatVersion"' in head or '"offerCode"' in head:
            return PriceFormat.AWS_JSON
        if '"BillingCurrency"' in head or '"retailPrice"' in head or '"armSkuName"' in head:
            return PriceFormat.AZURE_JSON
        if '"serviceRegions"' in head or '"pricingInfo"' in head or '"skuId"' in head:
            return PriceFormat.GCP_JSON
    return None


def read_prices(
    kind: PriceFormat, file: str, text: str, *, shapes: Sequence[MachineShape] = (), as_of: date
) -> list[ListPrice]:
    """Every price of a list. Raises InvalidInput naming the file when it is not what its head promised.

    `shapes` are Google's machine types to be priced; `as_of` dates the lists that don't say when they were published:
    Azure's and Google's only say since when each price has held, which may be years.
    """
    try:
        if kind is PriceFormat.AWS_CSV:
            return list(_aws_csv(file, text.splitlines()))
        document = json.loads(text)
        if kind is PriceFormat.AZURE_JSON:
            return azure_prices(document, as_of)
        if kind is PriceFormat.AWS_JSON:
            return _aws_offer(document)
        return google_prices(document, shapes, as_of)
    except InvalidInput:
        raise
    except RecursionError:
        raise InvalidInput(f"{file}: is nested too deep for a price list", "download it again") from None
    except (KeyError, TypeError, AttributeError, ValueError, InvalidOperation, csv.Error) as error:
        what = f"{type(error).__name__} {str(error)[:120]}"
        raise InvalidInput(f"{file}: is no {kind} that can be read: {what}", "download it again, whole") from None


# ---------------------------------------------------------------- Azure


def azure_prices(document: Mapping[str, Any], as_of: date) -> list[ListPrice]:
    """Retail Prices API pages → prices. Windows, Low Priority, DevTest and reservations are left out.

    Source: learn.microsoft.com, Azure Retail Prices REST API; fields armSkuName, armRegionName, retailPrice, skuName.
    """
    found: dict[tuple[str, str], ListPrice] = {}
    for item in document["Items"]:
        if not _is_azure_machine(item):
            continue
        if item["currencyCode"] != "USD":
            raise InvalidInput(
                f"the price of {item['armSkuName']} is in {item['currencyCode']}, not in USD",
                "ask for it in dollars: ?currencyCode='USD'",
            )
        key = (item["armSkuName"], item["armRegionName"])
        amount = _microusd(item["retailPrice"])
        day = date.fromisoformat(str(item["effectiveStartDate"])[:10])
        spot = str(item["skuName"]).endswith(" Spot")
        price = ListPrice(
            cloud="azure",
            sku=key[0],
            region=key[1],
            price_microusd_per_hour=None if spot else amount,
            spot_microusd_per_hour=amount if spot else None,
            as_of=day,
        )
        found[key] = _joined(found.get(key), price)
    return [replace(price, as_of=as_of) for price in found.values()]


def _is_azure_machine(item: Mapping[str, Any]) -> bool:
    name = str(item.get("skuName", ""))
    return (
        item.get("serviceName") == "Virtual Machines"
        and item.get("type") == "Consumption"
        and item.get("unitOfMeasure") == "1 Hour"
        and bool(item.get("armSkuName"))
        and "Windows" not in str(item.get("productName", ""))
        and "CloudServices" not in str(item.get("productName", "")).replace(" ", "")
        and not name.endswith("Low Priority")
        and item.get("isPrimaryMeterRegion", True) is not False
    )


# ---------------------------------------------------------------- AWS


def _aws_offer(document: Mapping[str, Any]) -> list[ListPrice]:
    """An EC2 offer file: products by SKU, and on-demand terms by SKU."""
    terms = document["terms"]["OnDemand"]
    day = _day(document.get("publicationDate"))
    made = (
        _aws_product(product, {"OnDemand": terms.get(sku, {})}, day) for sku, product in document["products"].items()
    )
    return [price for price in made if price is not None]


def aws_products(entries: Iterable[str | Mapping[str, Any]]) -> list[ListPrice]:
    """What the Price List service's GetProducts gives: one JSON text (or object) per product, with its terms."""
    found = []
    for entry in entries:
        document = json.loads(entry) if isinstance(entry, str) else entry
        day = _day(document.get("publicationDate"))
        price = _aws_product(document["product"], document.get("terms") or {}, day)
        if price is not None:
            found.append(price)
    return found


def _aws_product(product: Mapping[str, Any], terms: Mapping[str, Any], day: date | None) -> ListPrice | None:
    has = product.get("attributes") or {}
    if not product.get("productFamily", "").startswith("Compute Instance") or not _is_aws_machine(has):
        return None
    for term in terms.get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension["unit"] not in ("Hrs", "Hours") or "USD" not in dimension["pricePerUnit"]:
                continue
            return ListPrice(
                cloud="aws",
                sku=has["instanceType"],
                region=has["regionCode"],
                price_microusd_per_hour=_microusd(dimension["pricePerUnit"]["USD"]),
                spot_microusd_per_hour=None,
                as_of=day or date.fromisoformat(term["effectiveDate"][:10]),
            )
    return None


def _is_aws_machine(has: Mapping[str, Any]) -> bool:
    return (
        has.get("operatingSystem") == "Linux"
        and has.get("tenancy") == "Shared"
        and has.get("preInstalledSw") == "NA"
        and has.get("capacitystatus") == "Used"
        and bool(has.get("instanceType"))
        and bool(has.get("regionCode"))
    )


def _aws_csv(file: str, lines: Sequence[str]) -> Iterator[ListPrice]:
    """The CSV form: a few lines of `"key","value"`, then a header, then one line per price."""
    at = next((number for number, line in enumerate(lines) if line.startswith('"SKU"')), None)
    if at is None:
        raise InvalidInput(f'{file}: has no header line beginning with "SKU"', "download it again, whole")
    preamble = {row[0]: row[1] for row in csv.reader(lines[:at]) if len(row) > 1}
    day = _day(preamble.get("Publication Date"))
    for row in csv.DictReader(lines[at:]):
        has = {
            "operatingSystem": row["Operating System"],
            "tenancy": row["Tenancy"],
            "preInstalledSw": row["Pre Installed S/W"],
            "capacitystatus": row["CapacityStatus"],
            "instanceType": row["Instance Type"],
            "regionCode": row["Region Code"],
        }
        if row["TermType"] != "OnDemand" or row["Unit"] not in ("Hrs", "Hours") or row["Currency"] != "USD":
            continue
        if not row["Product Family"].startswith("Compute Instance") or not _is_aws_machine(has):
            continue
        yield ListPrice(
            cloud="aws",
            sku=has["instanceType"],
            region=has["regionCode"],
            price_microusd_per_hour=_microusd(row["PricePerUnit"]),
            spot_microusd_per_hour=None,
            as_of=day or date.fromisoformat(row["EffectiveDate"][:10]),
        )


# ---------------------------------------------------------------- Google

_CORE = re.compile(r"^(?:Spot Preemptible )?(\w+)(?: \w+)? Instance Core running in", re.IGNORECASE)
_RAM = re.compile(r"^(?:Spot Preemptible )?(\w+)(?: \w+)? Instance Ram running in", re.IGNORECASE)
_GPU = re.compile(r"^(?:Nvidia )?(?:Tesla )?(.+?) GPU (?:attached to Spot Preemptible VMs )?running in", re.IGNORECASE)


def google_prices(
    document: Mapping[str, Any] | Sequence[Any], shapes: Sequence[MachineShape], as_of: date
) -> list[ListPrice]:
    """Cloud Billing Catalog SKUs of Compute Engine → machine prices: cores + memory + cards, as Google bills them.

    A machine is priced only when every part of it is in the list. Source: cloudbilling.googleapis.com v1 services.skus.
    """
    skus = document["skus"] if isinstance(document, Mapping) else document
    rates: dict[tuple[str, str, str, bool], Decimal] = {}
    for sku in skus:
        part, usage = _google_part(sku), sku["category"]["usageType"]
        if part is None or usage not in ("OnDemand", "Preemptible"):
            continue
        info = sku["pricingInfo"][-1]
        tier = info["pricingExpression"]["tieredRates"][-1]["unitPrice"]
        if tier.get("currencyCode", "USD") != "USD":
            raise InvalidInput(f"the price of {sku['description']} is in {tier['currencyCode']}", "ask for it in USD")
        for region in sku["serviceRegions"]:
            key = (*part, region, usage == "Preemptible")
            rates[key] = Decimal(str(tier.get("units", 0))) + Decimal(tier.get("nanos", 0)) / 10**9
    regions = sorted({key[2] for key in rates})
    made = (_google_machine(shape, region, rates, as_of) for shape in shapes for region in regions)
    return [price for price in made if price is not None]


def _google_part(sku: Mapping[str, Any]) -> tuple[str, str] | None:
    """(`core`, family), (`ram`, family) or (`gpu`, model); None for what is no part of a machine type's price."""
    if sku["category"].get("resourceFamily") != "Compute":
        return None
    text = sku["description"]
    for part, shape in (("core", _CORE), ("ram", _RAM), ("gpu", _GPU)):
        if match := shape.match(text):
            return part, _letters(match[1])
    return None


def _google_machine(
    shape: MachineShape, region: str, rates: Mapping[tuple[str, str, str, bool], Decimal], day: date
) -> ListPrice | None:
    def total(spot: bool) -> int | None:
        core, ram = (rates.get((part, _letters(shape.family), region, spot)) for part in ("core", "ram"))
        if core is None or ram is None:
            return None
        amount = core * Decimal(str(shape.cpus)) + ram * Decimal(str(shape.memory_gib))
        if shape.accelerators:
            card = rates.get(("gpu", _letters(shape.accelerator), region, spot))
            if card is None:
                return None
            amount += card * Decimal(str(shape.accelerators))
        return round(amount * MICROUSD)

    listed, spot = total(False), total(True)
    if listed is None and spot is None:
        return None
    return ListPrice(
        cloud="gcp",
        sku=shape.sku,
        region=region,
        price_microusd_per_hour=listed,
        spot_microusd_per_hour=spot,
        as_of=day,
        composed=True,
    )


GOOGLE_CARDS = {
    "nvidia-t4-16gb": "T4",
    "nvidia-l4-24gb": "L4",
    "nvidia-a100-40gb-sxm4": "A100",
    "nvidia-a100-80gb-sxm4": "A100 80GB",
    "nvidia-h100-80gb-sxm5": "H100 80GB",
    "nvidia-h200-141gb-sxm5": "H200 141GB",
}
"""Our accelerator → the words of Google's SKU descriptions."""


# ---------------------------------------------------------------- what they share


def _joined(before: ListPrice | None, now: ListPrice) -> ListPrice:
    """Two lines of one SKU: its on-demand and its spot price; of two on-demand ones the younger holds."""
    if before is None:
        return now
    younger, older = (now, before) if now.as_of >= before.as_of else (before, now)
    return replace(
        younger,
        price_microusd_per_hour=_first(younger.price_microusd_per_hour, older.price_microusd_per_hour),
        spot_microusd_per_hour=_first(younger.spot_microusd_per_hour, older.spot_microusd_per_hour),
    )


def _first(one: int | None, other: int | None) -> int | None:
    return other if one is None else one


def _microusd(amount: Any) -> int:
    value = Decimal(str(amount))
    if not value.is_finite() or value < 0 or value > 10**6:
        raise ValueError(f"{amount!r} is no price an hour")
    return round(value * MICROUSD)


def _day(text: Any) -> date | None:
    return date.fromisoformat(str(text)[:10]) if text else None


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())
