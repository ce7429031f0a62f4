"""`ground catalog update` from end to end: a file, its difference, the question, the writing, and what shows it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FILES = Path(__file__).parents[1] / "recon_files"
SKU = "Standard_NC24ads_A100_v4"
ROWS = f"""\
table: instance_types
as_of: 2026-11-20
sources:
  contract: {{what: our agreement, where: finance share, as_of: 2026-11-01}}
rows:
  - {{cloud: azure, name: {SKU}, region: eastus, cpus: 24, memory_gib: 220, accelerators: 1,
     accelerator: nvidia-a100-80gb-pcie, usd_per_hour: 2.95, price_as_of: 2026-11-01, status: current,
     sources: [contract], as_of: 2026-11-01}}
"""


@pytest.fixture
def own(up: Any) -> Iterator[Path]:
    """The operator's part of the catalogue, empty before and after: the installation is shared."""
    folder = up.path / "catalog"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def shown_row(say: Any, up: Any) -> Any:
    rows = say(up, "catalog", "show", "instance_types", "--filter", SKU, "-o", "json").data
    return next(row for row in rows if row["region"] == "eastus")


def test_a_file_is_shown_as_a_difference_then_written_then_seen_everywhere(
    up: Any, say: Any, own: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text(ROWS)
    file = str(tmp_path / "own.yaml")
    before = shown_row(say, up)["usd_per_hour"]

    dry = say(up, "catalog", "update", file, "--dry-run")
    assert dry.code == 0
    moved = re.search(
        rf"instance_types +azure {SKU} eastus +changed +usd_per_hour +\${before} +\$2.95 +(-[\d.]+) %", dry.out
    )
    assert moved and float(moved[1]) == pytest.approx(100 * (2.95 - before) / before, abs=0.05)
    assert "0 added, 1 changed, 0 removed" in dry.out
    unasked = say(up, "catalog", "update", file)
    assert unasked.code == 2 and "hint: add --yes" in unasked.err
    assert not own.exists() and shown_row(say, up)["usd_per_hour"] == before

    done = say(up, "catalog", "update", file, "--yes", "--reason", "new contract")
    assert done.code == 0 and "written; recon shows it now" in done.out
    assert shown_row(say, up)["usd_per_hour"] == 2.95
    assert re.search(rf"{SKU}.*operator", say(up, "catalog", "show", "instance_types", "--filter", SKU).out)
    assert re.search(r"instance_types +\d+ +1 ", say(up, "catalog", "show").out)
    assert "$2.95" in say(up, "recon", "--sku", SKU).out
    (event, *_) = say(up, "audit", "log", "-o", "json").data
    assert (event["action"], event["reason"]) == ("catalog.update", "new contract")
    again = say(up, "catalog", "update", file, "--yes")
    assert again.code == 0 and "nothing would change" in again.out


def test_a_price_list_as_published_sets_the_prices_of_known_skus(up: Any, say: Any, own: Path) -> None:
    said = say(up, "catalog", "update", str(FILES / "azure_retail_prices.json"), "--as-of", "2026-11-20", "--yes")
    assert said.code == 0, said.err
    assert re.search(r"azure.*, \d+ machine prices, \d+ of SKUs in the catalogue", said.err)
    assert "written" in said.out
    assert str(shown_row(say, up)["price_as_of"]).startswith("2026-11")


@pytest.mark.parametrize(
    ("name", "text", "code", "says"),
    [
        ("missing.yaml", None, 4, "no file"),
        ("notes.txt", "hello", 2, "is neither YAML rows nor a price list"),
        ("wrong.yaml", ROWS.replace("usd_per_hour: 2.95", "usd_per_hour: cheap"), 2, "usd_per_hour"),
        ("torn.yaml", "table: [", 2, "torn.yaml"),
        ("other.yaml", ROWS.replace("instance_types", "instances"), 2, "instances"),
    ],
)
def test_a_file_at_fault_is_named_and_nothing_is_written(
    up: Any, say: Any, own: Path, tmp_path: Path, name: str, text: str | None, code: int, says: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    said = say(up, "catalog", "update", str(tmp_path / name), "--yes")
    assert said.code == code and says in said.err and "Traceback" not in said.err
    assert not own.exists()
