"""The prediction log: rules by project and model, records paged and found, kept for so long, erased with proof."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from groundplane.adapters.prediction_log import FolderPredictions, MemoryPredictions
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.domain.serving.prediction import Form, Keeping, Wanted, writer_of
from groundplane.domain.serving.snapshot import compile_snapshot, decode, encode
from groundplane.errors import InvalidInput, NotFound
from groundplane.gateway.telemetry.predictions import PredictionWriter, record_of
from groundplane.gateway.telemetry.sighting import CONTENT, KEEP, OWN, REDACT, Sighting
from groundplane.identity import Actor, Role
from groundplane.ports.traffic import PredictionLog
from groundplane.services.access import Access
from groundplane.services.predictions import Predictions

ADMIN = Actor(name="ana", role=Role.ADMIN, key_id="k", project=None)
OUTSIDER = Actor(name="eve", role=Role.LEAD, key_id="e", project="other")
NOW = datetime(2026, 3, 20, 9, 30, tzinfo=UTC)


class SettableClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.moment = NOW

    def now(self) -> datetime:
        return self.moment


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture
async def store(clock: SettableClock) -> MemoryStore:
    made = MemoryStore()
    access = Access(store=made, clock=clock, ids=RandomIds())
    for name in ("vision", "other"):
        await access.create_project(ADMIN, name=name, owner="ana", cost_center="cc")
    return made


@pytest.fixture
def predictions(store: MemoryStore, clock: SettableClock, tmp_path: Path) -> Predictions:
    return Predictions(store=store, clock=clock, log=FolderPredictions(tmp_path))


Write = Callable[..., object]


@pytest.fixture(params=["memory", "folder"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[PredictionLog, Write]:
    """A log, and what a gateway's recorder does to it."""
    if request.param == "folder":
        return FolderPredictions(tmp_path), lambda sightings, gateway="gw-0": write(tmp_path, sightings, gateway)
    memory = MemoryPredictions()

    def keep(sightings: list[Sighting], gateway: str = "gw-0") -> None:
        for one in sightings:
            memory.keep(record_of(one, memory.salt).plain(), writer_of(gateway, one.model if one.flags & OWN else ""))

    return memory, keep


@pytest.fixture
def kept(store: MemoryStore, clock: SettableClock, log: tuple[PredictionLog, Write]) -> tuple[Predictions, Write]:
    return Predictions(store=store, clock=clock, log=log[0]), log[1]


def seen(number: int, at: datetime, subject: str = "", **more: Any) -> Sighting:
    request = {"model": "tiny", "messages": [{"role": "user", "content": f"question {number}"}], "user": subject}
    answer = {"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}
    values = {"model": "tiny", "path": "/v1/chat/completions", "status": 200, "duration_us": 1500, **more}
    return Sighting(
        KEEP | CONTENT | REDACT,
        f"req-{number}",
        at.timestamp(),
        "vision",
        request=json.dumps(request).encode(),
        answer=json.dumps(answer).encode(),
        **values,
    )


def write(folder: Path, sightings: list[Sighting], gateway: str = "gw-0") -> dict[str, int]:
    counts: dict[str, int] = {}
    writer = PredictionWriter(folder, gateway, counts)
    for one in sightings:
        writer.add(one)
    writer.close()
    return counts


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.glob("vision/*/*"))


async def actions(store: MemoryStore) -> list[tuple[str, Any]]:
    return [(event.action, event.after) async for event in store.events()]


async def test_rules_are_set_changed_told_and_reach_gateways(predictions: Predictions, store: MemoryStore) -> None:
    rule = await predictions.set_rule(ADMIN, project="vision", changes={})
    assert (rule.enabled, rule.sample_percent, rule.redact, rule.retention_days) == (True, 100.0, True, 30)
    rule = await predictions.set_rule(ADMIN, project="vision", changes={"sample_percent": 5.0}, reason="volume")
    assert (rule.sample_percent, rule.redact) == (5.0, True)
    off = await predictions.set_rule(ADMIN, project="vision", model="quiet", changes={"enabled": False})
    snapshot = compile_snapshot(
        keys=(), endpoints=(), budgets={}, ingested={}, version=1, now=NOW, predictions=[rule, off]
    )
    assert decode(encode(snapshot)).predictions == (
        Keeping("vision", "", 5.0, True, True),
        Keeping("vision", "quiet", 0.0, True, True),
    )
    assert [one.id for one in await predictions.rules(ADMIN)] == ["vision", "vision:quiet"]
    assert await predictions.rules(OUTSIDER) == []
    for changes in ({"sample_percent": 0.0}, {"sample_percent": 101.0}, {"retention_days": 0}):
        with pytest.raises(InvalidInput):
            await predictions.set_rule(ADMIN, project="vision", changes=changes)
    with pytest.raises(NotFound):
        await predictions.set_rule(OUTSIDER, project="vision", changes={})
    assert [action for action, _ in await actions(store)].count("predictions.set") == 3


async def test_records_are_found_and_paged_both_ways(kept: tuple[Predictions, Write]) -> None:
    predictions, write = kept
    at = [NOW - timedelta(minutes=20 * number) for number in range(9, -1, -1)]
    mixed = [
        seen(number, when, "ben") if number % 2 else seen(number, when, "ida", status=429)
        for number, when in enumerate(at)
    ]
    write(mixed[::2])
    write(mixed[1::2], "gw-1")
    for newest in (True, False):
        found, after = [], ""
        while True:
            page = await predictions.page(ADMIN, "vision", Wanted(), 3, after=after, newest=newest)
            found += [one["id"] for one in page.records]
            after = page.next
            if not after:
                break
        assert found == [f"req-{number}" for number in (range(9, -1, -1) if newest else range(10))]
    limited = await predictions.page(ADMIN, "vision", Wanted(status=429), 100)
    assert {one["id"] for one in limited.records} == {f"req-{number}" for number in range(0, 10, 2)}
    of_ben = await predictions.page(ADMIN, "vision", Wanted(subject="ben"), 100)
    assert len(of_ben.records) == 5 and all(one["subject"] != "ben" for one in of_ben.records)
    since = at[7].isoformat(timespec="milliseconds").replace("+00:00", "Z")
    late = await predictions.page(ADMIN, "vision", Wanted(since=since), 100)
    assert [one["id"] for one in late.records] == ["req-9", "req-8", "req-7"]
    record = await predictions.record(ADMIN, "vision", "req-3")
    assert record["messages"] == [{"role": "user", "content": "question 3"}]
    assert record["answer"] == [{"role": "assistant", "content": "yes"}]
    with pytest.raises(NotFound):
        await predictions.record(ADMIN, "vision", "req-99")
    with pytest.raises(NotFound):
        await predictions.page(OUTSIDER, "vision", Wanted(), 10)


@pytest.mark.parametrize("form", list(Form))
async def test_a_subject_is_erased_everywhere_and_the_trail_has_the_proof(
    kept: tuple[Predictions, Write], store: MemoryStore, tmp_path: Path, form: Form
) -> None:
    predictions, write = kept
    old, fresh = NOW - timedelta(days=2), NOW
    write([seen(1, old, "ben"), seen(2, old, "ida"), seen(3, old - timedelta(hours=1), "ben")])
    await predictions.set_rule(ADMIN, project="vision", changes={"form": form})
    await predictions.upkeep()
    write([seen(4, fresh, "ben"), seen(5, fresh, "ida")])
    ending = "parquet" if form is Form.PARQUET else "jsonl.gz"
    assert [name.partition(".")[2] for name in files(tmp_path)] in ([ending, ending, "jsonl"], [])  # or in memory
    done = await predictions.erase(ADMIN, "vision", "ben", "asked to")
    assert (done.removed, done.looked_at, done.left, len(done.files)) == (3, 5, 0, 3)
    assert [one.kept for one in done.files] == [0, 1, 1] and done.files[0].sha256_after == ""
    left = await predictions.page(ADMIN, "vision", Wanted(), 100)
    assert [one["id"] for one in left.records] == ["req-5", "req-2"]
    again = await predictions.erase(ADMIN, "vision", "ben", "asked to")
    assert (again.removed, again.left, again.files) == (0, 0, ())
    told = [after for action, after in await actions(store) if action == "predictions.erase"]
    assert [one["removed"] for one in told] == [3, 0] and "ben" not in json.dumps(told)
    with pytest.raises(InvalidInput):
        await predictions.erase(ADMIN, "vision", "  ")


async def test_days_past_their_retention_are_removed_and_the_trail_told(
    kept: tuple[Predictions, Write], store: MemoryStore, clock: SettableClock, tmp_path: Path
) -> None:
    predictions, write = kept
    write([seen(1, NOW - timedelta(days=40)), seen(2, NOW - timedelta(days=10)), seen(3, NOW)])
    await predictions.set_rule(ADMIN, project="vision", changes={"retention_days": 30})
    await predictions.upkeep()
    assert not (tmp_path / "vision" / "2026-02-08").exists()
    (holding,) = await predictions.holdings(ADMIN)
    assert (holding.files, holding.first_day, holding.last_day) == (2, "2026-03-10", "2026-03-20")
    clock.moment += timedelta(days=100)
    await predictions.set_rule(ADMIN, project="vision", changes={"enabled": False})
    await predictions.upkeep()
    assert files(tmp_path) == []
    assert [one.files for one in await predictions.holdings(ADMIN)] == [0]
    assert [after["files"] for action, after in await actions(store) if action == "predictions.expire"] == [1, 2]


async def test_a_model_with_a_rule_of_its_own_is_kept_as_long_as_that_says(
    kept: tuple[Predictions, Write],
) -> None:
    predictions, write = kept
    old = NOW - timedelta(days=10)
    own = seen(1, old)
    own.flags |= OWN
    write([own, seen(2, old, model="other")])
    await predictions.set_rule(ADMIN, project="vision", changes={"retention_days": 30})
    assert [one.files for one in await predictions.holdings(ADMIN)] == [2]
    await predictions.set_rule(ADMIN, project="vision", model="tiny", changes={"retention_days": 7})
    await predictions.upkeep()
    page = await predictions.page(ADMIN, "vision", Wanted(), 10)
    assert [one["model"] for one in page.records] == ["other"]


async def test_writers_lose_nothing_while_files_are_rewritten(predictions: Predictions, tmp_path: Path) -> None:
    stop = threading.Event()
    kept: list[dict[str, int]] = []

    def keep_on(name: str) -> None:
        number, counts = 0, {}
        writer = PredictionWriter(tmp_path, name, counts)
        while not stop.is_set() or number < 20:
            number += 1
            writer.add(seen(number, NOW, "ben" if number % 2 else "ida"))
            writer.close()
        kept.append({**counts, "number": number})

    writers = [threading.Thread(target=keep_on, args=(f"gw-{place}",)) for place in range(2)]
    for one in writers:
        one.start()
    removed = 0
    for _ in range(10):
        removed += (await predictions.erase(ADMIN, "vision", "ben")).removed
    stop.set()
    for one in writers:
        one.join()
    removed += (await predictions.erase(ADMIN, "vision", "ben")).removed
    left = [one["subject"] for one in _lines(tmp_path)]
    assert removed + len(left) == sum(one["number"] for one in kept)
    assert removed == sum((one["number"] + 1) // 2 for one in kept)


def _lines(folder: Path) -> Iterator[dict[str, Any]]:
    for path in folder.glob("vision/*/*.jsonl"):
        yield from map(json.loads, path.read_text().splitlines())


async def test_half_a_line_of_a_writer_that_died_hides_nothing(predictions: Predictions, tmp_path: Path) -> None:
    write(tmp_path, [seen(1, NOW)])
    (path,) = tmp_path.glob("vision/*/*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"schema":1,"id":"req-2","at"')
    page = await predictions.page(ADMIN, "vision", Wanted(), 10)
    assert [one["id"] for one in page.records] == ["req-1"]
    write(tmp_path, [seen(3, NOW)])
    page = await predictions.page(ADMIN, "vision", Wanted(), 10)
    assert [one["id"] for one in page.records] == ["req-3", "req-1"]


async def test_a_disk_that_refuses_is_counted_and_said(tmp_path: Path) -> None:
    (tmp_path / "vision").write_text("in the way")
    counts: dict[str, int] = {}
    writer = PredictionWriter(tmp_path, "gw-0", counts)
    writer.add(seen(1, NOW))
    writer.close()
    assert counts == {"prediction/failed": 1} and "can't be written" in writer.trouble
    (tmp_path / "vision").unlink()
    writer.add(seen(2, NOW))
    writer.close()
    assert counts == {"prediction/failed": 1, "prediction/kept": 1} and writer.trouble == ""
