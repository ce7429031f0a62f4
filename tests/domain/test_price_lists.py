"""The clouds' published price lists: what is taken, what is left out, and what a broken file says."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from groundplane.domain.catalogue.price_lists import ListPrice, MachineShape, PriceFormat, price_format, read_prices
from groundplane.errors import InvalidInput

FILES = Path(__file__).parent.parent / "recon_files"
DAY = date(2026, 11, 20)
A2 = MachineShape(sku="a2-highgpu-1g", family="a2", cpus=12, memory_gib=85, accelerators=1, accelerator="A100")
A2_ULTRA = MachineShape(
    sku="a2-ultragpu-1g", family="a2", cpus=12, memory_gib=170, accelerators=1, accelerator="A100 80GB"
)


def read(name: str, *shapes: MachineShape) -> list[ListPrice]:
    text = (FILES / name).read_text()
    kind = price_format(name, text[:4096])
    assert kind is not None
    return read_prices(kind, name, text, shapes=shapes, as_of=DAY)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("azure_retail_prices.json", PriceFormat.AZURE_JSON),
        ("aws_offer.json", PriceFormat.AWS_JSON),
        ("aws_offer.csv", PriceFormat.AWS_CSV),
        ("gcp_skus.json", PriceFormat.GCP_JSON),
        ("az_list_usage.json", None),
    ],
)
def test_a_list_is_known_by_its_head(name: str, kind: PriceFormat | None) -> None:
    assert price_format(name, (FILES / name).read_text()[:4096]) == kind


def test_azure_linux_on_demand_and_spot_are_taken_and_windows_reservations_and_low_priority_left_out() -> None:
    by_place = {(price.sku, price.region): price for price in read("azure_retail_prices.json")}
    a100 = by_place["Standard_NC24ads_A100_v4", "eastus"]
    assert (a100.price_microusd_per_hour, a100.spot_microusd_per_hour) == (3_306_000, 661_200)
    assert a100.as_of == DAY, "since when a price has held says nothing about how old the list is"
    assert by_place["Standard_NC24ads_A100_v4", "westeurope"].price_microusd_per_hour == 4_200_000
    assert len(by_place) == 4


@pytest.mark.parametrize("name", ["aws_offer.json", "aws_offer.csv"])
def test_both_forms_of_an_aws_offer_file_say_the_same(name: str) -> None:
    (price,) = read(name)
    assert price == ListPrice(
        cloud="aws",
        sku="p4d.24xlarge",
        region="us-east-1",
        price_microusd_per_hour=20_000_000,
        spot_microusd_per_hour=None,
        as_of=date(2026, 11, 10),
    )


def test_a_google_machine_is_the_sum_of_its_parts_and_only_where_all_are_priced() -> None:
    (price,) = read("gcp_skus.json", A2, A2_ULTRA)
    # 12 × $0.031611 + 85 × $0.004237 + 1 × $2.933908: us-east1 has no card in the list, 80 GB cards have no price.
    assert price.price_microusd_per_hour == 379_332 + 360_145 + 2_933_908
    assert (price.region, price.composed) == ("us-central1", True)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        (PriceFormat.AZURE_JSON, '{"BillingCurrency":"USD"', "is no Azure Retail Prices JSON that can be read"),
        (PriceFormat.AZURE_JSON, "[]", "is no Azure Retail Prices JSON"),
        (PriceFormat.AWS_JSON, '{"formatVersion":"v1.0","products":{}}', "is no AWS price list JSON"),
        (PriceFormat.AWS_CSV, '"FormatVersion","v1.0"\n', 'has no header line beginning with "SKU"'),
        (PriceFormat.GCP_JSON, '{"skus":[{"skuId":"1"}]}', "is no Google Cloud SKU JSON"),
    ],
)
def test_a_broken_list_is_named_and_nothing_of_it_is_taken(kind: PriceFormat, text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        read_prices(kind, "prices.json", text, as_of=DAY)
    assert message in raised.value.message and raised.value.message.startswith("prices.json")


def test_another_currency_is_refused_and_not_taken_for_dollars() -> None:
    text = (FILES / "azure_retail_prices.json").read_text().replace('"currencyCode":"USD"', '"currencyCode":"EUR"')
    with pytest.raises(InvalidInput) as raised:
        read_prices(PriceFormat.AZURE_JSON, "p.json", text, as_of=DAY)
    assert "is in EUR, not in USD" in raised.value.message
