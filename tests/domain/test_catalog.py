"""The shipped catalogue holds together, and a wrong row is named by file, row and column."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from groundplane.adapters.catalog_columns import TABLES
from groundplane.adapters.catalog_files import load_catalogue, load_table, read_table
from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.sizing.model_shape import count_params
from groundplane.errors import InvalidInput
from groundplane.units import exact_usd

GOOD = """\
table: accelerators
as_of: 2026-11-20
sources:
  sheet: {what: a data sheet, where: vendor.example, as_of: 2026-11-01}
rows:
  - {id: acme-x1-32gb, name: Acme X1, vendor: acme, architecture: One, memory_gib: 32, bandwidth_gb_per_s: 900,
     dense_tflops: {bf16: 100}, aliases: [X1], sources: [sheet], as_of: 2026-11-01, estimated: [bandwidth_gb_per_s]}
"""


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return load_catalogue()


# ---------------------------------------------------------------- what is shipped


@pytest.mark.parametrize("name", sorted(TABLES))
def test_every_shipped_table_passes_its_own_checks(name: str):
    rows = load_table(name)
    assert rows
    for row in rows:
        assert row["sources"] and row["as_of"]


def test_where_sources_contradict_each_other_the_row_says_which_one_it_took():
    told = {name: [row["conflict"] for row in load_table(name) if row.get("conflict")] for name in TABLES}
    assert sum(map(len, told.values())) >= 40
    for name, conflicts in told.items():
        for conflict in conflicts:
            assert len(conflict.split()) >= 5, f"{name}: {conflict!r} says too little"
    (node,) = [row for row in load_table("instance_types") if row["name"] == "a3-ultragpu-8g"]
    assert "2,944 GB" in node["conflict"], "the other figure"
    assert "2,952" in node["conflict"], "and the one that was taken"


def test_every_shipped_file_is_a_table_and_speaks_of_the_project_alone():
    folder = Path(__file__).parents[2] / "src" / "groundplane" / "catalog"
    files = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.yaml")}
    assert set(files) == {*TABLES, "jargon"}, "jargon is words, read by adapters.jargon; all else is tables"
    for text in files.values():
        assert not re.search(r"/(work|root|home|opt|tmp)/", text)


def test_the_catalogue_is_as_large_as_it_claims(catalogue: Catalogue):
    hardware = catalogue.hardware
    assert len(hardware.accelerators) >= 36
    assert len(hardware.instance_types) >= 216
    assert {item.cloud for item in hardware.instance_types} == {"azure", "aws", "gcp"}
    assert len(catalogue.models) >= 67
    assert sum(code.active for code in catalogue.xids) >= 60
    assert len(catalogue.signatures) >= 150


def test_prices_come_with_their_day_and_are_exact(catalogue: Catalogue):
    item = catalogue.hardware.instance_type("standard_nc24ads_a100_v4")
    assert item is not None
    assert exact_usd(item.price_microusd_per_hour or 0) == "$3.673"
    assert item.price_as_of == date(2026, 6, 18)
    # Four untagged ones for three weeks.
    assert exact_usd((item.price_microusd_per_hour or 0) * 4 * 24 * 21) == "$7,404.768"


def test_retired_types_stay_listed_with_their_date(catalogue: Catalogue):
    retired = [item for item in catalogue.hardware.instance_types if item.status == "retired"]
    assert len(retired) >= 29
    assert all(item.retirement_date is not None for item in retired)
    old = catalogue.hardware.instance_type("Standard_NC6s_v3")
    assert old is not None and old.is_retired(date(2026, 11, 20))
    announced = catalogue.hardware.instance_type("Standard_DS2_v2")
    assert announced is not None and announced.status == "retirement_announced"
    assert announced.is_retired(date(2028, 5, 1)) and not announced.is_retired(date(2028, 4, 30))


def test_parameter_counts_follow_from_the_published_shapes(catalogue: Catalogue):
    computed = [row["id"] for row in load_table("models") if row["params_from"] == "computed"]
    checked = 0
    for shape in catalogue.models:
        if shape.id not in computed or (shape.experts and shape.experts.dense_layers):
            continue  # a dense layer beside experts has a width of its own that the row does not give
        total, active = count_params(shape)
        assert total == pytest.approx(shape.params, rel=0.005), shape.id
        assert active == pytest.approx(shape.active_params, rel=0.005), shape.id
        checked += 1
    assert checked >= 40


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("NVIDIA A100-SXM4-80GB", "nvidia-a100-80gb-sxm4"),
        ("NVIDIA A100 80GB PCIe", "nvidia-a100-80gb-pcie"),
        ("NVIDIA H100 80GB HBM3", "nvidia-h100-80gb-sxm5"),
        ("NVIDIA H100 NVL", "nvidia-h100-94gb-nvl"),
        ("NVIDIA H200", "nvidia-h200-141gb-sxm5"),
        ("Tesla V100-SXM2-16GB", "nvidia-v100-16gb"),
        ("NVIDIA GeForce RTX 4090", "nvidia-rtx-4090-24gb"),
        ("AMD Instinct MI300X", "amd-mi300x-192gb"),
        ("h100", "nvidia-h100-80gb-sxm5"),
        ("Trillium", "google-tpu-v6e"),
    ],
)
def test_an_accelerator_is_known_by_what_drivers_and_people_call_it(catalogue: Catalogue, said: str, meant: str):
    found = catalogue.hardware.accelerator(said)
    assert found is not None and found.id == meant


def test_a_family_means_each_member_and_a_typo_is_suggested(catalogue: Catalogue):
    hardware = catalogue.hardware
    assert {item.id for item in hardware.accelerators_like("a100-80gb")} == {
        "nvidia-a100-80gb-pcie",
        "nvidia-a100-80gb-sxm4",
    }
    assert hardware.accelerators_like("") == ()
    assert hardware.same_accelerator("a100", "NVIDIA A100-SXM4-40GB")
    assert not hardware.same_accelerator("a100-80gb", "NVIDIA A100-SXM4-40GB")
    assert hardware.same_accelerator("nvidia-h200-141gb-sxm5", "NVIDIA H200")
    # The driver's name leaves open which board it is: either request takes it.
    assert hardware.same_accelerator("nvidia-h200-141gb-nvl", "h200-141gb")
    assert "h100" in hardware.near_accelerators("h10o")
    assert hardware.accelerator("abacus") is None


def test_models_are_found_by_either_name(catalogue: Catalogue):
    assert catalogue.model("Llama-3.1-70B") is catalogue.model("meta-llama/Meta-Llama-3.1-70B") is not None
    assert catalogue.model("gpt-99") is None


# ---------------------------------------------------------------- what is wrong is named


def faults(text: str, table: str = "accelerators") -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        read_table(f"{table}.yaml", text, TABLES[table])
    return [str(problem) for problem in caught.value.problems]


CASES = {
    "a number that is none": ("memory_gib: 32", "memory_gib: x", "memory_gib: 'x' is not a number from 1 to 1000"),
    "a number out of range": ("memory_gib: 32", "memory_gib: -1", "memory_gib: -1 is not a number from 1 to 1000"),
    "a truth for a number": ("memory_gib: 32", "memory_gib: true", "memory_gib: True is not a number from 1 to 1000"),
    "a missing column": ("vendor: acme, ", "", "vendor: is missing"),
    "an unknown source": ("sources: [sheet]", "sources: [rumour]", "sources: 'rumour' is not in the file's sources"),
    "no source": ("sources: [sheet], ", "", "sources: is missing"),
    "no date": (", as_of: 2026-11-01, estimated", ", estimated", "as_of: is missing"),
    "a vague date": (", as_of: 2026-11-01, est", ", as_of: lately, est",
                     "as_of: 'lately' is not a date, a month, a year or undated"),
    "an estimate of nothing": ("[bandwidth_gb_per_s]", "[speed]", "estimated: 'speed' is no column"),
    "a list that is none": ("aliases: [X1]", "aliases: X1", "aliases: must be a list of text"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_a_wrong_row_is_named_by_file_row_and_column(case: str):
    old, new, message = CASES[case]
    assert old in GOOD
    assert faults(GOOD.replace(old, new)) == [f"accelerators.yaml, row acme-x1-32gb: {message}"]


def test_an_unknown_column_and_a_row_written_twice_are_named():
    assert faults(GOOD.replace("vendor: acme", "vendor: acme, colour: red")) == [
        "accelerators.yaml, row acme-x1-32gb: colour: unknown column"
    ]
    row = GOOD[GOOD.index("  - {id") :]
    assert faults(GOOD + row) == ["accelerators.yaml, row acme-x1-32gb: is row 2 and row 1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "accelerators.yaml: not valid YAML: "),
        ("- a", "accelerators.yaml: must be a mapping with table, sources and rows"),
        ("table: models\nsources: {}\nrows: []\n", "accelerators.yaml: table: is 'models', expected 'accelerators'"),
        ("table: accelerators\nsources: {}\nrows: [1]\n", "accelerators.yaml, row 1: must be a mapping of columns"),
        ("", "accelerators.yaml: must be a mapping with table, sources and rows"),
    ],
)
def test_a_file_that_is_no_table_is_named(text: str, message: str):
    with pytest.raises(InvalidInput) as caught:
        read_table("accelerators.yaml", text, TABLES["accelerators"])
    assert str(caught.value).startswith(message)


def _priced(**changed: str) -> str:
    row = {
        "cloud": "aws", "name": "x1.large", "region": "us-east-1", "usd_per_hour": "1.5", "spot_usd_per_hour": "0.5",
        "price_as_of": "2026-11-01", "status": "current", "sources": "[s]", "as_of": "2026-11-01",
    } | changed  # fmt: skip
    body = ", ".join(f"{key}: {value}" for key, value in row.items() if value)
    return f"table: instance_types\nsources: {{s: {{what: x}}}}\nrows:\n  - {{{body}}}\n"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"spot_usd_per_hour": "2"}, "spot_usd_per_hour: 2 is above the list price 1.5"),
        ({"usd_per_hour": "0"}, "usd_per_hour: is 0: leave it out when the price is not known"),
        ({"region": ""}, "region: is missing: a price belongs to a region"),
        ({"status": "retired"}, "retired_on: is missing: the status is retired"),
        ({"price_as_of": "spring"}, "price_as_of: 'spring' is not a date such as 2026-11-20"),
        ({"cloud": "moon"}, "cloud: 'moon' is not one of: azure, aws, gcp"),
    ],
)
def test_a_price_that_can_not_be_right_is_refused(changed: dict[str, str], message: str):
    name = f"{changed.get('cloud', 'aws')} x1.large"
    assert faults(_priced(**changed), "instance_types") == [f"instance_types.yaml, row {name}: {message}"]


# ---------------------------------------------------------------- the operator's own rows


def test_an_operators_rows_replace_and_add(tmp_path: Path):
    (tmp_path / "accelerators.yaml").write_text(GOOD, encoding="utf-8")
    text = _priced(cloud="azure", name="Standard_NC24ads_A100_v4", region="eastus", usd_per_hour="2.5")
    (tmp_path / "instance_types.yaml").write_text(text, encoding="utf-8")
    hardware, shipped = load_catalogue(tmp_path).hardware, load_catalogue().hardware
    assert len(hardware.accelerators) == len(shipped.accelerators) + 1
    assert len(hardware.instance_types) == len(shipped.instance_types)
    mine = hardware.instance_type("Standard_NC24ads_A100_v4")
    assert mine is not None and mine.price_microusd_per_hour == 2_500_000
    known = hardware.accelerator("x1")
    assert known is not None and known.memory_bytes == 32 * 2**30 and known.estimated


def test_an_operators_faulty_file_is_named(tmp_path: Path):
    (tmp_path / "accelerators.yaml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidInput, match="is not UTF-8 at byte 0"):
        load_catalogue(tmp_path)
    (tmp_path / "accelerators.yaml").unlink()
    text = _priced(accelerator="nvidia-z900")
    (tmp_path / "instance_types.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"row aws x1\.large: accelerator: 'nvidia-z900' is not in"):
        load_catalogue(tmp_path)
