"""What planning costs: ten thousand offers ranked and set side by side, a spec parsed, the catalogue loaded.

    python bench/plan.py [--rounds 15] [--json]

In one process, without API or database. Each figure is a median over the rounds, with its growth over the size of
its input: offers filtered, priced and ranked, rules judged and the plan sealed; the same offers held against a
training and set side by side with their hours and dollars; the catalogue's own offers in that way; specs of 1 to 1,000
environment variables, and the worst documents the limits allow.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.hardware import Hardware
from groundplane.domain.planning import plan as planning
from groundplane.domain.planning.choices import Judge, Market, cloud_offers
from groundplane.domain.planning.plan import Offer
from groundplane.domain.planning.recon import SkuRow, Wanted, survey
from groundplane.domain.planning.work import Meter, Work, work_of
from groundplane.domain.policy import rule_set
from groundplane.domain.policy.builtin import Subject
from groundplane.domain.spec import JobSpec, Metadata, Resources, TrainingNeed
from groundplane.domain.spec.parse import parse
from groundplane.domain.spec.yaml_nodes import MAX_BYTES
from groundplane.errors import InvalidInput

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
GIB = 2**30
RANK_LIMIT_MS = 200
PARSE_LIMIT_MS = 50
RULES = rule_set.built_in()

SPEC = """\
apiVersion: groundplane/v1
kind: Job
metadata: {{name: tiny, project: default, owner: ana, cost_center: research}}
spec:
  command: [python, train.py]
  resources: {{cpus: 2, memory: 2GiB}}
  end_date: 7d
  max_cost: $0.50
  max_duration: 30m
  env:
{env}
"""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()
    start = time.perf_counter()
    catalogue = load_catalogue()
    hardware = catalogue.hardware
    figures: dict[str, float] = {"catalogue loaded and checked, first time, ms": (time.perf_counter() - start) * 1000}
    for count in (100, 1_000, 10_000):
        offers = some_offers(count, hardware)
        figures[f"{count:,} offers to a sealed plan, ms"] = median_ms(
            lambda o=offers: plan(o, hardware), options.rounds
        )
        figures[f"{count:,} offers side by side, ms"] = median_ms(
            lambda o=offers: side_by_side(o, catalogue, ()), options.rounds
        )
    rows = survey(hardware, (), Wanted(include_retired=True), NOW.date()).rows
    figures[f"{len(rows)} rows of the catalogue side by side, ms"] = median_ms(
        lambda: side_by_side([], catalogue, rows), options.rounds
    )
    for count in (1, 100, 1_000):
        text = SPEC.format(env="\n".join(f'    V{number}: "{number}"' for number in range(count)))
        figures[f"spec of {len(text):,} bytes parsed, ms"] = median_ms(lambda t=text: parse(t, now=NOW), options.rounds)
    for name, text in worst_documents().items():
        figures[f"{name}, refused, ms"] = median_ms(lambda t=text: refused(t), 3)
    if options.json:
        print(json.dumps({name: round(value, 3) for name, value in figures.items()}, indent=2))
    else:
        for name, value in figures.items():
            print(f"{name:<48} {value:9.2f}")
    ranked = figures["10,000 offers to a sealed plan, ms"]
    parsed = next(value for name, value in figures.items() if name.startswith("spec of"))
    if ranked > RANK_LIMIT_MS or parsed > PARSE_LIMIT_MS:
        raise SystemExit(f"error: over the limits of {RANK_LIMIT_MS} ms to rank and {PARSE_LIMIT_MS} ms to parse")


def plan(offers: list[Offer], hardware: Hardware) -> None:
    ranking = planning.rank(JOB, offers, hardware)
    subject = Subject(spec=JOB, ranking=ranking, hardware=hardware, now=NOW, pools=("cloud", "local"), silent_pools={})
    sealed = planning.seal(JOB, ranking, RULES.judge(subject), id="plan-1", created_by="ana", now=NOW)
    assert sealed.offer is not None


def side_by_side(offers: list[Offer], catalogue: Catalogue, rows: tuple[SkuRow, ...]) -> None:
    """A training of 8B parameters over the offers; sums over cards are made anew each time, as for a first plan."""
    market = Market(pools=tuple(offers), rows=rows, terms=catalogue.purchase_terms, registered=frozenset({"cloud"}))
    work = work_of(TRAINING, catalogue)
    assert isinstance(work, Work)
    judge = Judge(TRAINING, market, catalogue, Meter(catalogue), work, now=NOW, stale_days=30)
    ranking = planning.rank(TRAINING, offers, catalogue.hardware, also=judge)
    everything = [*offers, *cloud_offers(market, TRAINING.resources)]
    choices, _ = judge.choices(everything, ranking.best.offer if ranking.best else None)
    assert any(choice.fits for choice in choices)


JOB = JobSpec(
    metadata=Metadata(name="tiny", project="default", owner="ana", cost_center="research"),
    command=("python", "train.py"),
    resources=Resources(cpus=8, memory_bytes=32 * GIB, accelerators=1, accelerator="a100"),
    end_date=NOW + timedelta(days=7),
    max_cost_microusd=10**9,
    max_duration_s=3600,
    pool="cloud",
)


TRAINING = replace(
    JOB,
    training=TrainingNeed(model="llama-3.1-8b", method="lora", tokens=10**7),
    resources=Resources(cpus=8, memory_bytes=32 * GIB, accelerators=1),
)


def some_offers(count: int, hardware: Hardware) -> list[Offer]:
    chance = random.Random(7)
    names = [item.id for item in hardware.accelerators]
    return [
        Offer(
            pool="cloud",
            node_type=f"type-{number}",
            cpus=chance.choice([4, 8, 16, 64]),
            memory_bytes=chance.choice([16, 64, 256]) * GIB,
            disk_free_bytes=1000 * GIB,
            accelerators=chance.choice([0, 1, 4, 8]),
            accelerator=chance.choice(names),
            price_microusd_per_hour=chance.randrange(10**5, 10**8),
            price_as_of=date(2026, 11, 1),
            price_source="bench",
        )
        for number in range(count)
    ]


def worst_documents() -> dict[str, str]:
    """The largest of each kind that is still looked at."""
    wide = SPEC.format(env="".join(f"    V{number}: {number}\n" for number in range(4_000)))
    return {
        "1 MiB of unknown fields": "apiVersion: groundplane/v1\nkind: Job\n"
        + "".join(f"field_{number}: 1\n" for number in range(MAX_BYTES // 17)),
        "4,000 faulty values": wide,
        "1 MiB of brackets": "[" * MAX_BYTES,
    }


def refused(text: str) -> None:
    try:
        parse(text, now=NOW)
    except InvalidInput:
        return
    raise AssertionError("this document should have been refused")


def median_ms(work: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


if __name__ == "__main__":
    main()
