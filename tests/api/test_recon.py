"""Recon and the catalogue through the door: filters, who may change what, and an update that is what was shown."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date

import pytest
from tests.api.conftest import Served

from groundplane.client import Client
from groundplane.domain.catalogue.price_lists import ListPrice
from groundplane.domain.planning.recon import Wanted
from groundplane.errors import Conflict, Forbidden, InvalidInput, NotFound
from groundplane.identity import Role
from groundplane.wire.sizing import CompareRequest

A100 = "azure Standard_NC24ads_A100_v4 eastus"
ROWS = """\
table: instance_types
as_of: 2026-11-20
sources:
  contract: {what: our agreement, where: finance share, as_of: 2026-11-01}
rows:
  - {cloud: azure, name: Standard_NC24ads_A100_v4, region: eastus, cpus: 24, memory_gib: 220, accelerators: 1,
     accelerator: nvidia-a100-80gb-pcie, usd_per_hour: USD, price_as_of: 2026-11-01, status: current,
     sources: [contract], as_of: 2026-11-01}
"""


@pytest.fixture
def own_rows(served: Served) -> Iterator[None]:
    """Whatever a test writes is gone after it: the control plane is shared."""
    yield
    for path in (served.home / "catalog").glob("*.yaml"):
        path.unlink()


def price(microusd: int, sku: str = "Standard_NC24ads_A100_v4", region: str = "eastus") -> ListPrice:
    return ListPrice(
        cloud="azure",
        sku=sku,
        region=region,
        price_microusd_per_hour=microusd,
        spot_microusd_per_hour=None,
        as_of=date(2026, 11, 20),
    )


def test_recon_shows_machine_pools_and_skus(served: Served) -> None:
    found = served.client.recon(Wanted(gpu_memory_bytes=80 * 10**9, cloud="azure", region="eastus2"))
    assert found.machine.cpus_usable > 0
    assert [offer.pool for offer in found.offers] == ["local"]
    assert found.survey.rows and {row.region for row in found.survey.rows} == {"eastus2"}
    assert all(row.quotas is None for row in found.survey.rows)
    assert found.live == ()


def test_a_misspelt_filter_is_an_error_with_a_way_forward(served: Served) -> None:
    with pytest.raises(InvalidInput) as raised:
        served.client.recon(Wanted(sku="NC24ads_A100_v5"))
    assert "did you mean" in raised.value.hint


def test_a_size_without_its_unit_is_no_filter_that_lets_everything_pass(served: Served) -> None:
    with pytest.raises(InvalidInput) as raised:
        served.client.recon(Wanted(gpu_memory_bytes=80))
    assert raised.value.hint == "give the unit: --gpu-memory 80GB"


def test_measuring_and_updating_need_the_permission_and_looking_does_not(served: Served) -> None:
    with Client(served.url, served.key(Role.VIEWER)) as viewer:
        assert viewer.recon(Wanted(gpu="h100")).survey.rows
        assert viewer.catalog()
        for change in (viewer.measure_machine, lambda: viewer.update_catalog(prices=[price(1)])):
            with pytest.raises(Forbidden):
                change()


def test_the_catalogue_lists_its_tables_and_a_tables_rows(served: Served) -> None:
    tables = {view.table: view for view in served.client.catalog()}
    assert tables["instance_types"].row_count >= 216 and not tables["instance_types"].rows
    view = served.client.catalog_table("instance_types")
    assert any(row["name"] == "Standard_NC24ads_A100_v4" for row in view.rows)
    with pytest.raises(NotFound) as raised:
        served.client.catalog_table("instance_type")
    assert raised.value.hint == "did you mean instance_types?"


@pytest.mark.usefixtures("own_rows")
def test_an_update_is_shown_then_written_as_shown_and_audited(served: Served) -> None:
    shown = served.client.update_catalog(documents={"own.yaml": ROWS.replace("USD", "2.95")})
    (change,) = shown.changes
    assert (change.row, change.kind) == (A100, "changed")
    move = next(each for each in change.prices if each.column == "usd_per_hour")
    assert (move.before, move.after, move.flagged) == (3.673, 2.95, False)
    assert not shown.applied and not list((served.home / "catalog").glob("*.yaml"))
    done = served.client.update_catalog(
        documents={"own.yaml": ROWS.replace("USD", "2.95")}, expect=shown.digest, reason="new contract"
    )
    assert done.applied
    (row,) = served.client.recon(Wanted(sku="NC24ads_A100_v4")).survey.rows
    assert row.price_microusd_per_hour == 2_950_000
    event = served.client.audit_events(limit=1)[0]
    assert (event.action, event.reason) == ("catalog.update", "new contract")
    assert event.before[f"instance_types {A100}"] == {"usd_per_hour": 3.673, "spot_usd_per_hour": 0.444433}
    assert served.client.catalog_table("instance_types").own == (A100,)


@pytest.mark.usefixtures("own_rows")
def test_requests_and_sums_know_a_new_row_at_once(served: Served) -> None:
    rows = ROWS.replace("USD", "1.25").replace("NC24ads_A100_v4", "NC24zz_A100_v9")
    message = "We need 2 x Standard_NC24zz_A100_v9 to fine-tune llama-3.1-8b with LoRA"

    def strange() -> bool:
        (item,) = served.client.create_request(message).intake.items
        return any(risk.id == "unknown-sku" for risk in item.risks)

    def own_cards() -> str:
        asked = CompareRequest(
            requests_per_minute=60,
            prompt_tokens=500,
            completion_tokens=200,
            model="llama-3.1-8b",
            gpus="a100-80gb-pcie",
        )
        return " ".join(option.what for option in served.client.compare(asked).options)

    assert strange() and "NC24zz" not in own_cards()
    shown = served.client.update_catalog(documents={"own.yaml": rows})
    served.client.update_catalog(documents={"own.yaml": rows}, expect=shown.digest)
    assert not strange() and "NC24zz" in own_cards()


@pytest.mark.usefixtures("own_rows")
def test_an_update_shown_before_another_was_written_is_refused(served: Served) -> None:
    early = served.client.update_catalog(prices=[price(3_000_000)])
    late = served.client.update_catalog(prices=[price(3_100_000)])
    served.client.update_catalog(prices=[price(3_100_000)], expect=late.digest)
    with pytest.raises(Conflict):
        served.client.update_catalog(prices=[price(3_000_000)], expect=early.digest)


@pytest.mark.usefixtures("own_rows")
def test_a_price_that_moves_too_far_is_flagged_and_one_of_0_left_out(served: Served) -> None:
    shown = served.client.update_catalog(prices=[price(1_000_000), price(0, sku="Standard_ND96isr_H100_v5")])
    (change,) = shown.changes
    move = next(each for each in change.prices if each.column == "usd_per_hour")
    assert move.flagged and move.percent == pytest.approx(-72.77, abs=0.01)
    assert shown.summary == "0 added, 1 changed (1 by more than 50 %), 0 removed"
    assert any("a price of $0 was left out (Standard_ND96isr_H100_v5" in note for note in shown.notes)


@pytest.mark.usefixtures("own_rows")
def test_a_region_is_taken_in_only_when_named_and_keeps_no_other_regions_price(served: Served) -> None:
    new = [price(4_200_000, region="westeurope")]
    assert not served.client.update_catalog(prices=new).changes
    shown = served.client.update_catalog(prices=new, regions=["westeurope"])
    assert [change.kind for change in shown.changes] == ["added"]
    served.client.update_catalog(prices=new, regions=["westeurope"], expect=shown.digest)
    rows = served.client.recon(Wanted(sku="NC24ads_A100_v4")).survey.rows
    assert [(row.region, row.price_microusd_per_hour) for row in rows] == [
        ("eastus", 3_673_000),
        ("westeurope", 4_200_000),
    ]
    assert rows[1].spot_microusd_per_hour is None


@pytest.mark.usefixtures("own_rows")
def test_replacing_takes_ones_other_rows_back(served: Served) -> None:
    two = ROWS.replace("USD", "2.95")
    shown = served.client.update_catalog(documents={"own.yaml": two})
    served.client.update_catalog(documents={"own.yaml": two}, expect=shown.digest)
    empty = "table: instance_types\nsources: {}\nrows: []\n"
    back = served.client.update_catalog(documents={"own.yaml": empty}, replace=True)
    assert [(change.row, change.kind) for change in back.changes] == [(A100, "changed")]
    served.client.update_catalog(documents={"own.yaml": empty}, replace=True, expect=back.digest)
    assert not list((served.home / "catalog").glob("*.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (ROWS.replace("USD", "0"), "usd_per_hour: is 0"),
        (ROWS.replace("USD", "two"), "'two' is not a number"),
        (ROWS.replace("instance_types", "instances", 1), "table is 'instances'"),
        (ROWS.replace("nvidia-a100-80gb-pcie", "nvidia-a101").replace("USD", "1"), "'nvidia-a101' is not in"),
        ("rows: [", "not valid YAML"),
        ("", "must be a mapping"),
    ],
)
def test_faulty_rows_are_named_and_nothing_is_written(served: Served, text: str, message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        served.client.update_catalog(documents={"own.yaml": text})
    assert message in raised.value.message
    assert not list((served.home / "catalog").glob("*.yaml"))


def test_an_update_from_nothing_is_refused(served: Served) -> None:
    with pytest.raises(InvalidInput):
        served.client.update_catalog()
