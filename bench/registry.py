"""How long a question to the registry takes as it grows: every kind, interleaved, p50 and p99.

Hub and OCI clients ask for one model that has a tenth as many versions as there are of all others. The first question
by a digest notes the digests of the versions that came since the last such question: it is told by itself.

python bench/registry.py                          # SQLite in a temporary folder
python bench/registry.py postgresql://user@host/empty_database
python bench/registry.py --versions 100000 --rounds 60
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg

from groundplane.adapters.artifacts import folder_store
from groundplane.adapters.model_files import FolderModelFiles
from groundplane.adapters.provenance import MachineProvenance
from groundplane.adapters.signing import FileSigner
from groundplane.adapters.store.sql import SqlStore
from groundplane.adapters.system import RandomIds, SystemClock
from groundplane.domain.access import Project
from groundplane.domain.hub import MAIN, Kind
from groundplane.domain.model import ModelVersion
from groundplane.domain.oci import manifest
from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.domain.registry import LabelKind, Query, VersionLabel, entry_of, label_id, metric_labels
from groundplane.identity import SYSTEM, Actor, Role
from groundplane.services.addenda import Addenda
from groundplane.services.datasets import Datasets
from groundplane.services.gates import Gates
from groundplane.services.hub import Hub
from groundplane.services.models import Models
from groundplane.services.oci_registry import OciRegistry
from groundplane.services.registry import Registry

GOAL_P99_S = 0.1
SIZES = (1_000, 10_000, 100_000)
BATCH = 2_000
WORDS = ("churn", "fraud", "vision", "speech", "rank", "embed", "chat", "price")
LICENSES = ("Apache-2.0", "MIT", "proprietary")
START = datetime(2026, 1, 1, tzinfo=UTC)
DEEP, TEAM = "deep", "team-1"
FACTS = Facts(
    owner="bench",
    license="MIT",
    data=(DataFact(name="corpus", sha256="1" * 64),),
    code_commit="2" * 40,
    training_run="elsewhere",
    metrics={"f1": 0.93},
)
MEMBER = Actor(name="ada", role=Role.MEMBER, project="team-3")
QUESTIONS: dict[str, tuple[Actor, Query]] = {
    "newest": (SYSTEM, Query()),
    "part of a name": (SYSTEM, Query(text="fraud-77")),
    "a name of nothing": (SYSTEM, Query(text="no such name")),
    "one's own project": (MEMBER, Query(text="chat")),
    "licence": (SYSTEM, Query(license="proprietary")),
    "rare tag": (SYSTEM, Query(tags=(("stage", "golden"),))),
    "common tag": (SYSTEM, Query(tags=(("stage", "trial"),))),
    "metric, many": (SYSTEM, Query(metrics=(("f1", 0.1, None),))),
    "metric, few": (SYSTEM, Query(metrics=(("f1", 0.999, None),))),
    "everything": (
        SYSTEM,
        Query(text="rank", license="MIT", tags=(("stage", "trial"),), metrics=(("f1", 0.5, None), ("loss", None, 1.5))),
    ),
}


def version(number: int, chance: random.Random) -> ModelVersion:
    name = f"{chance.choice(WORDS)}-{number // 10}"
    return ModelVersion(
        id=f"{name}@{number}", name=name, number=number, project=f"team-{number % 20}", owner="bench", files=(),
        manifest_sha256="", size_bytes=number, certificate="c" * 4_000, certificate_sha256="",
        license=chance.choice(LICENSES), metrics={"f1": chance.random(), "loss": 3 * chance.random()},
        created_by="bench", created_at=START + timedelta(seconds=number),
    )  # fmt: skip


async def grow(store: SqlStore, start: int, stop: int, chance: random.Random) -> None:
    for first in range(start, stop, BATCH):
        rows = [version(number, chance) for number in range(first, min(first + BATCH, stop))]
        labels = [label for row in rows for label in metric_labels(row)]
        for row in rows:
            text = "golden" if row.number % 5_000 == 0 else "trial" if row.number % 2 else "done"
            label = label_id(row.id, LabelKind.TAG, "stage")
            labels.append(VersionLabel(id=label, version_id=row.id, kind=LabelKind.TAG, name="stage", text=text))
        async with store.transaction() as tx:
            await tx.insert_many_once(rows)
            await tx.insert_many_once([entry_of(row) for row in rows])
            await tx.insert_many_once(labels)


async def deepen(store: SqlStore, models: Models, source: Path, stop: int, chance: random.Random) -> ModelVersion:
    """One name with that many versions: made up, but for the last, which is registered and signed. Returns that."""
    async with store.transaction() as tx:
        newest = await tx.find(ModelVersion, {"name": DEEP}, order="-number", limit=1)
    start = newest[0].number + 1 if newest else 1
    for first in range(start, stop, BATCH):
        numbers = range(first, min(first + BATCH, stop))
        rows = [replace(version(each, chance), id=f"{DEEP}@{each}", name=DEEP, project=TEAM) for each in numbers]
        async with store.transaction() as tx:
            await tx.insert_many_once(rows)
            await tx.insert_many_once([entry_of(row) for row in rows])
    return await models.register(SYSTEM, name=DEEP, project=TEAM, source=source, facts=FACTS)


async def analyze(url: str) -> None:
    """What autovacuum does within a minute: PostgreSQL plans badly for tables that just grew tenfold."""
    if not url:
        return
    connection = await asyncpg.connect(url)
    await connection.execute("ANALYZE")
    await connection.close()


def asks(
    registry: Registry, hub: Hub, oci: OciRegistry, models: Models, last: ModelVersion
) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every kind of question, by name."""

    def search(actor: Actor, query: Query) -> Callable[[], Awaitable[object]]:
        return lambda: registry.search(actor, query)

    def look(revision: str) -> Callable[[], Awaitable[object]]:
        return lambda: hub.revision(SYSTEM, Kind.MODELS, TEAM, DEEP, revision)

    def find(text: str) -> Callable[[], Awaitable[object]]:
        return lambda: hub.search(SYSTEM, Kind.MODELS, text=text, project="", tags=(), limit=100)

    commit, digest = last.certificate_sha256[:40], manifest(last).digest
    nothing = f"sha256:{'0' * 64}"
    return {
        **{name: search(*question) for name, question in QUESTIONS.items()},
        **{f"hub revision: {name}": look(each) for name, each in (("main", MAIN), ("v", f"v{last.number}"))},
        "hub revision: commit": look(commit),
        "hub search": find("fraud-77"),
        "hub list": find(""),
        "oci manifest: digest": lambda: oci.manifest(SYSTEM, TEAM, DEEP, digest),
        "oci manifest: latest": lambda: oci.manifest(SYSTEM, TEAM, DEEP, "latest"),
        "oci blob: none like it": lambda: oci.blobs(SYSTEM, TEAM, DEEP, [nothing]),
        "oci referrers": lambda: oci.referrers(SYSTEM, TEAM, DEEP, digest, ""),
        "oci tags": lambda: oci.tags(SYSTEM, TEAM, DEEP, after="v5", limit=100),
        "a page of models": lambda: models.names(SYSTEM, after="", limit=50),
    }


async def measure(questions: Mapping[str, Callable[[], Awaitable[object]]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each question, round by round, so that what disturbs the machine disturbs all of them."""
    taken: dict[str, list[float]] = {name: [] for name in questions}
    for _ in range(rounds):
        for name, ask in questions.items():
            start = time.perf_counter()
            await ask()
            taken[name].append(time.perf_counter() - start)
    return taken


async def main(url: str, versions: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        store = await SqlStore.open(url or f"sqlite:///{home / 'registry.db'}")
        clock, ids, signer, blobs = (
            SystemClock(),
            RandomIds(),
            FileSigner(home / "keys"),
            folder_store(home / "store", 0),
        )
        models = Models(
            store=store, clock=clock, blobs=blobs, signer=signer, files=FolderModelFiles(),
            provenance=MachineProvenance(),
        )  # fmt: skip
        addenda = Addenda(store=store, clock=clock, signer=signer, models=models)
        gates = Gates(store=store, clock=clock, ids=ids, models=models, engines={}, addenda=addenda)
        registry = Registry(store=store, clock=clock, ids=ids, models=models, gates=gates, addenda=addenda)
        datasets = Datasets(store=store, clock=clock, ids=ids, blobs=blobs, signer=signer)
        hub = Hub(store=store, models=models, datasets=datasets, blobs=blobs)
        oci = OciRegistry(store=store, clock=clock, models=models, blobs=blobs, files=FolderModelFiles())
        (home / "model").mkdir()
        (home / "model" / "weights.txt").write_text("1")
        async with store.transaction() as tx:
            for number in range(20):
                await tx.insert(Project(id=f"team-{number}", owner="bench", cost_center="bench", created_at=START))
        chance, reached = random.Random(7), 0
        for size in [*(each for each in SIZES if each < versions), versions]:
            await grow(store, reached, size, chance)
            last = await deepen(store, models, home / "model", size // 10, chance)
            reached = size
            await analyze(url)
            questions = asks(registry, hub, oci, models, last)
            first = await measure({"by digest": questions["oci manifest: digest"]}, 1)
            taken = await measure(questions, rounds)
            worst_p99_s = 0.0  # of this size: the goal is about the last one
            print(f"{size:,} versions{'':<12}  p50 ms  p99 ms")
            print(f"  {'first by digest':<26} {first['by digest'][0] * 1000:>7.1f}")
            for name, seconds in taken.items():
                p50, p99 = statistics.median(seconds), sorted(seconds)[int(0.99 * (len(seconds) - 1))]
                worst_p99_s = max(worst_p99_s, p99)
                print(f"  {name:<26} {p50 * 1000:>7.1f} {p99 * 1000:>7.1f}")
        verdict = "kept" if worst_p99_s < GOAL_P99_S else "MISSED"
        print(f"goal: p99 of every question under {GOAL_P99_S * 1000:.0f} ms at {versions:,} versions: {verdict}")
        await store.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", nargs="?", default="")
    parser.add_argument("--versions", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=40)
    given = parser.parse_args()
    asyncio.run(main(given.url, given.versions, given.rounds))
