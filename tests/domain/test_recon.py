"""What could be run, where, for how much: the catalogue joined with what clouds answer, filtered and ordered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.domain.hardware import Hardware
from groundplane.domain.planning.recon import (
    CloudSku,
    CloudView,
    DriverLink,
    Quota,
    SkuRow,
    Survey,
    Wanted,
    chain_verdict,
    regions_to_ask,
    survey,
)
from groundplane.errors import InvalidInput

TODAY = date(2026, 11, 20)
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
HARDWARE = load_catalogue().hardware


def found(*views: CloudView, hardware: Hardware = HARDWARE, **filters: object) -> Survey:
    return survey(hardware, views, Wanted(**filters), TODAY)  # type: ignore[arg-type]


def row(said: Survey, name: str) -> SkuRow:
    return next(each for each in said.rows if each.name == name)


def azure(*quotas: tuple[str, float | None, float | None], **view: object) -> CloudView:
    made = tuple(
        Quota(cloud="azure", region="eastus", family=family, unit="vCPU", used=used, limit=limit)
        for family, used, limit in quotas
    )
    return CloudView(cloud="azure", region="eastus", source="az", read_at=NOW, quotas=made, **view)  # type: ignore[arg-type]


def test_the_catalogue_alone_says_where_it_is_from_and_leaves_quota_unknown() -> None:
    said = found(sku="NC24ads_A100_v4")
    (only,) = said.rows
    assert only.source == "catalogue (as of 2026-06-18)"
    assert only.price_microusd_per_hour == 3_673_000
    assert only.quotas is None and only.lead_time_h is None and only.restriction is None
    assert any("quota of 1 of 1 rows is unknown" in note for note in said.notes)


def test_filters_by_memory_count_a_share_of_a_card_as_its_share() -> None:
    names = {each.name for each in found(gpu_memory_bytes=80 * 10**9, cloud="azure").rows}
    assert "Standard_NC24ads_A100_v4" in names
    assert not {"Standard_ND96asr_v4", "Standard_NC4as_T4_v3"} & names
    twelve = {each.name for each in found(gpu_memory_bytes=12 * 10**9, gpu="a10", cloud="azure").rows}
    assert "Standard_NV18ads_A10_v5" in twelve and "Standard_NV12ads_A10_v5" not in twelve


def test_the_cheapest_is_first_and_what_has_no_price_last() -> None:
    prices = [each.price_microusd_per_hour for each in found(include_retired=True).rows]
    known = [price for price in prices if price is not None]
    assert known == sorted(known)
    assert prices == known + [None] * (len(prices) - len(known))


def test_retired_types_are_left_out_and_counted_until_asked_for() -> None:
    said = found(cloud="azure", gpu="v100")
    assert [each.status for each in said.rows] == ["current"]
    assert any("retired left out" in note for note in said.notes)
    assert any(each.retirement_date for each in found(cloud="azure", gpu="v100", include_retired=True).rows)


def test_a_used_up_quota_means_a_request_and_its_lead_time() -> None:
    said = found(azure(("StandardNCADSA100v4Family", 96, 96), ("cores", 96, 350)), sku="NC24ads_A100_v4")
    (only,) = said.rows
    assert only.quotas and (only.quotas[0].used, only.quotas[0].limit) == (96, 96)
    assert only.lead_time_h == (24, 72)


def test_a_regions_total_binds_too_even_when_the_family_has_room() -> None:
    said = found(azure(("StandardNCADSA100v4Family", 0, 96), ("cores", 340, 350)), sku="NC24ads_A100_v4")
    assert said.rows[0].lead_time_h == (24, 72)
    assert said.rows[0].quotas and said.rows[0].quotas[0].family == "cores"


def test_enough_quota_means_now_and_a_missing_number_means_unknown() -> None:
    room = found(azure(("StandardNCADSA100v4Family", 0, 24), ("cores", 0, 350)), sku="NC24ads_A100_v4")
    assert room.rows[0].lead_time_h == (0, 0)
    silent = found(azure(("StandardNCADSA100v4Family", None, 24)), sku="NC24ads_A100_v4")
    assert silent.rows[0].lead_time_h is None
    other = found(azure(("standardDSv5Family", 0, 24)), sku="NC24ads_A100_v4")
    assert other.rows[0].quotas is None, "a family that the cloud did not name is unknown, not 0"


def test_a_sku_that_the_cloud_does_not_list_is_said_to_be_missing_there() -> None:
    view = azure(skus=(CloudSku(name="Standard_D64s_v5", cpus=64),))
    assert row(found(view, cloud="azure"), "Standard_NC24ads_A100_v4").restriction == (
        "not offered in this region to this account"
    )


def test_a_live_answer_is_marked_and_its_price_of_0_is_not_taken() -> None:
    sku = CloudSku(name="Standard_NC24ads_A100_v4", restriction="", price_microusd_per_hour=0)
    said = found(azure(skus=(sku,)), sku="Standard_NC24ads_A100_v4")
    assert said.rows[0].source == "live (az, 2026-11-20 12:00Z)"
    assert said.rows[0].price_microusd_per_hour == 3_673_000
    assert any("price of $0" in note for note in said.notes)


def test_another_regions_price_is_not_this_ones() -> None:
    sku = CloudSku(name="Standard_NC24ads_A100_v4")
    view = CloudView(cloud="azure", region="westeurope", source="az", read_at=NOW, skus=(sku,))
    (only,) = found(view, region="westeurope").rows
    assert only.price_microusd_per_hour is None and only.accelerator == "nvidia-a100-80gb-pcie"


def test_two_clouds_with_a_region_of_the_same_name_are_both_shown_and_said() -> None:
    moved = tuple(replace(each, region="south") for each in HARDWARE.instance_types if each.cloud != "gcp")
    twins = Hardware(accelerators=HARDWARE.accelerators, instance_types=moved)
    said = found(hardware=twins, region="south")
    assert {each.cloud for each in said.rows} == {"aws", "azure"}
    assert said.notes[0].startswith("aws and azure both have a region south")
    one = found(hardware=twins, region="south", cloud="aws")
    assert {each.cloud for each in one.rows} == {"aws"} and "both have" not in " ".join(one.notes)


@pytest.mark.parametrize(
    ("filters", "message", "hint"),
    [
        ({"sku": "NC24ads_A100_v5"}, "no SKU is called 'NC24ads_A100_v5'", "did you mean NC24ads_A100_v4"),
        ({"gpu": "h1000"}, "no SKU has an accelerator called 'h1000'", "h100"),
        ({"cloud": "azur"}, "'azur' is no cloud", "did you mean azure?"),
        ({"region": "eastus22"}, "nothing is known of a region 'eastus22'", "eastus2"),
        ({"region": "eastus", "cloud": "aws"}, "nothing is known of a region 'eastus' of aws", "a region of azure"),
        ({"sku": "p4d.24xlarge", "cloud": "azure"}, "no SKU is called", "it is a SKU of aws"),
        ({"max_price_microusd_per_hour": 0}, "a --max-price of $0 leaves nothing", "--max-price 5"),
        ({"gpu_memory_bytes": 0}, "a --gpu-memory of 0", "80GB"),
    ],
)
def test_a_filter_that_names_nothing_says_what_looks_like_it(
    filters: dict[str, object], message: str, hint: str
) -> None:
    with pytest.raises(InvalidInput) as raised:
        found(**filters)
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_filters_that_leave_nothing_say_which_to_loosen() -> None:
    said = found(gpu="h100", max_price_microusd_per_hour=1_000)
    assert not said.rows
    assert any("raise --max-price above $0.001" in note for note in said.notes)


def test_only_the_region_asked_for_is_asked_and_of_the_cloud_that_has_it() -> None:
    assert regions_to_ask(HARDWARE, "azure", Wanted(region="eastus2")) == ("eastus2",)
    assert regions_to_ask(HARDWARE, "aws", Wanted(region="eastus2")) == ()
    assert regions_to_ask(HARDWARE, "aws", Wanted(cloud="azure")) == ()
    assert regions_to_ask(HARDWARE, "azure", Wanted(cloud="azure", region="westeurope")) == ("westeurope",)
    assert "us-east-1" in regions_to_ask(HARDWARE, "aws", Wanted())


def test_the_chain_names_its_first_missing_link() -> None:
    module = DriverLink(name="kernel module nvidia", found="", hint="reinstall")
    library = DriverLink(name="libcuda", found="/usr/lib/libcuda.so.1")
    assert chain_verdict(0, 0, []) == "no accelerator: CPU work only"
    assert chain_verdict(2, 0, [module, library]) == "broken at kernel module nvidia: 2 cards on the bus, 0 answer"
    assert chain_verdict(1, 1, [library]) == "whole: 1 accelerator answers"


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 200_000_000), st.integers(1, 200_000_000))
def test_a_higher_price_limit_never_shows_less(one: int, other: int) -> None:
    low, high = sorted((one, other))
    fewer = {(r.cloud, r.region, r.name) for r in found(max_price_microusd_per_hour=low).rows}
    assert fewer <= {(r.cloud, r.region, r.name) for r in found(max_price_microusd_per_hour=high).rows}
