"""What `ground recon` says in words: unknown where nobody said, the tightest limit, the lead time."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.cli.recon import lead_time_words, quota_words, recon_views
from groundplane.cli.render import Table
from groundplane.domain.planning.recon import (
    CloudView,
    Gap,
    HaltedMachine,
    Machine,
    Quota,
    Reconnaissance,
    Wanted,
    survey,
)

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
QUOTA = Quota(cloud="azure", region="eastus", family="f", unit="vCPU", used=0, limit=96)


def test_quota_that_nobody_read_is_unknown_and_never_0() -> None:
    assert quota_words(None) == "unknown"
    assert quota_words((replace(QUOTA, used=None),)) == "?/96 vCPU"
    assert quota_words((QUOTA,)) == "0/96 vCPU"


def test_lead_time_is_now_a_request_or_unknown() -> None:
    assert [lead_time_words(hours) for hours in (None, (0, 0), (24, 72))] == [
        "unknown",
        "now",
        "24–72 h (quota request)",
    ]


def test_machines_that_only_eat_quota_and_missing_sources_are_told() -> None:
    halted = HaltedMachine(
        cloud="azure", region="eastus", name="train-old", sku="Standard_NC24ads_A100_v4", group="RG", cpus=24,
        state="stopped, not deallocated", hint="az vm deallocate -g RG -n train-old",
    )  # fmt: skip
    gap = Gap(cloud="azure", region="eastus", what="quota", why="az exited with status 3", hint="az login")
    view = CloudView(cloud="azure", region="eastus", source="az", read_at=NOW, halted=(halted,), gaps=(gap,))
    machine = Machine(
        node="n1", cpu_model="EPYC", cpus_usable=2, cpus_present=4, memory_bytes=2**33, memory_available_bytes=2**32,
        disks=(), accelerators=(), driver_chain=(), verdict="no accelerator: CPU work only",
    )  # fmt: skip
    found = Reconnaissance(
        at=NOW, machine=machine, offers=(), silent=(), live=(), catalogue_as_of="2026-08-03",
        survey=survey(load_catalogue().hardware, [view], Wanted(cloud="azure"), date(2026, 11, 20)),
    )  # fmt: skip
    views = recon_views(found)
    table = next(each for each in views if isinstance(each, Table) and each.title.startswith("stopped"))
    assert table.rows[0][2] == "train-old" and table.rows[0][-1] == halted.hint
    assert "no quota from azure eastus: az exited with status 3; hint: az login" in views
    assert any(isinstance(each, str) and each.startswith("and ") and "more" in each for each in views)
