"""What `ports.Store` and `ports.Tx` promise, sentence by sentence, on memory, SQLite and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from groundplane.audit import EventDraft, check_chain
from groundplane.domain.access import Exposure, Key, Project
from groundplane.domain.approval import Approval, Vote
from groundplane.domain.budget import Budget, Hold, HoldStatus
from groundplane.domain.conditions import Among, AtLeast, Below, Between, By, Contains, Greatest
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.ledger import LedgerEntry, UsageRecord
from groundplane.domain.model import ManifestFile, ModelVersion
from groundplane.domain.planning.plan import Offer, Plan, PlanStatus, Verdict
from groundplane.domain.run import Attempt, Checkpoint, EndReason, Run, RunStatus
from groundplane.domain.spec import DataSource, EndpointSpec, JobSpec, Metadata, ModelOutput, Resources, TokenPrice
from groundplane.domain.tracking.records import (
    Experiment,
    Measured,
    Point,
    RunMetrics,
    TrackedRun,
    TrackedState,
    merged,
)
from groundplane.errors import Conflict, InvalidInput, Refused
from groundplane.identity import Role
from groundplane.ports import Store, Tx

NOW = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
META = Metadata(name="tiny-lm", project="vision", owner="ana", cost_center="r&d", labels={"team": "ü"})
JOB = JobSpec(
    metadata=META,
    command=("sh", "-c", "echo 'hi'"),
    resources=Resources(cpus=1.5, memory_bytes=2**33),
    end_date=NOW + timedelta(days=1),
    max_cost_microusd=5_000_000,
    max_duration_s=3600,
    env={"A": "1"},
    data=(DataSource(name="text", path="/data", sha256="0" * 64),),
    outputs=(ModelOutput(name="tiny"),),
)
ENDPOINT = EndpointSpec(
    metadata=META,
    model="tiny@1",
    resources=Resources(cpus=1, memory_bytes=2**30),
    end_date=NOW,
    max_cost_microusd=1,
    max_duration_s=60,
    token_price=TokenPrice(prompt_microusd_per_million=1, completion_microusd_per_million=2),
)
OFFER = Offer(
    pool="local",
    node_type="here",
    cpus=2,
    memory_bytes=2**34,
    disk_free_bytes=2**40,
    accelerators=0,
    accelerator="",
    price_microusd_per_hour=100_000,
    price_as_of=NOW.date(),
    price_source="book",
)


def a_run(id: str = "run-1", **changes: Any) -> Run:
    run = Run(
        id=id,
        name="tiny-lm",
        project="vision",
        owner="ana",
        cost_center="r&d",
        spec=JOB,
        spec_digest="d",
        plan_id="plan-1",
        hold_id="hold-1",
        pool="local",
        price_microusd_per_hour=100_000,
        created_by="ana",
        created_at=NOW,
        end_date=NOW,
        due_at=NOW,
    )
    return replace(run, **changes)


def a_project(id: str = "vision", **changes: Any) -> Project:
    return replace(Project(id=id, owner="ana", cost_center="r&d", created_at=NOW), **changes)


def an_entry(id: str, **changes: Any) -> LedgerEntry:
    entry = LedgerEntry(
        id=id,
        kind="compute",
        project="vision",
        owner="ana",
        cost_center="r&d",
        quantity=60,
        amount_microusd=100,
        price="$0.10",
        occurred_at=NOW,
        posted_at=NOW,
    )
    return replace(entry, **changes)


BUDGET = Budget(id="vision:2026-11", project="vision", period="2026-11", limit_microusd=10**9, fired_percent=(50,))
HOLD = Hold(id="hold-1", budget_id=BUDGET.id, project="vision", subject="run/run-1", amount_microusd=5, created_at=NOW)
USAGE = UsageRecord(
    id="req-1",
    key_id="key-1",
    project="vision",
    model="tiny",
    endpoint="tiny",
    revision=1,
    status=200,
    prompt_tokens=10,
    completion_tokens=5,
    cached_tokens=0,
    amount_microusd=7,
    estimated=True,
    ttft_ms=12.5,
    duration_ms=80.25,
    started_at=NOW,
)
EVERY_KIND: Sequence[Any] = (
    a_project(monthly_limit_microusd=10**12, thresholds_percent=(10, 100)),
    Key(
        id="key-1",
        name="laptop",
        project="vision",
        owner="ana",
        role=Role.CALLER,
        secret_sha256="ab" * 32,
        models=("tiny", "größer"),
        requests_per_minute=60,
        created_at=NOW,
        expires_at=NOW + timedelta(days=1),
    ),
    Exposure(id="0.0.0.0:4710", owner="ana", reason="demo \u2603", created_at=NOW, expires_at=NOW),
    BUDGET,
    HOLD,
    an_entry("compute-1", amount_microusd=2**62),
    USAGE,
    replace(USAGE, id="req-2", ttft_ms=None, estimated=False),
    Plan(
        id="plan-1",
        project="vision",
        owner="ana",
        kind="Job",
        job=JOB,
        spec_digest="d",
        offer=OFFER,
        max_duration_s=60,
        worst_case_microusd=7,
        arithmetic="1 × 2",
        verdicts=(
            Verdict(rule="end", why="all ends", refused=None),
            Verdict(rule="max-cost", why="w", refused=Refused(rule="max-cost", need="1", have="2", hint="h")),
        ),
        status=PlanStatus.REFUSED,
        hash="h",
        created_by="ana",
        created_at=NOW,
    ),
    Approval(
        id="plan-1",
        project="vision",
        kind="job",
        name="tiny",
        owner="ana",
        created_by="bo",
        plan_hash="h",
        worst_case_microusd=7,
        reasons=("self-service-plan: much",),
        needed=2,
        four_eyes=True,
        validity_s=60,
        votes=(Vote(by="lea", role=Role.LEAD, key_id="key-1", plan_hash="h", comment="", at=NOW),),
        requested_at=NOW,
        expires_at=NOW + timedelta(seconds=60),
        due_at=NOW,
    ),
    a_run(stop_requested=EndReason.BUDGET_SPENT, started_at=NOW, due_at=None),
    Attempt(id="attempt-1", run_id="run-1", number=1, pool="local", started=True, created_at=NOW, exit_code=-9),
    Checkpoint(
        id="run-1:40",
        run_id="run-1",
        attempt_id="attempt-1",
        step=40,
        path="/c",
        size_bytes=9,
        found_at=NOW,
        metrics={"loss": 1.5, "diverged": float("inf"), "tiny": 1e-300},
    ),
    Endpoint(
        id="tiny",
        project="vision",
        owner="ana",
        cost_center="r&d",
        spec=ENDPOINT,
        model_version="tiny@1",
        status=EndpointStatus.READY,
        stop_requested=True,
        created_by="ana",
        created_at=NOW,
        end_date=NOW,
        due_at=NOW,
    ),
    ModelVersion(
        id="tiny@1",
        name="tiny",
        number=1,
        project="vision",
        owner="ana",
        files=(ManifestFile(path="a/model.safetensors", sha256="0" * 64, size_bytes=2**40),),
        manifest_sha256="m",
        size_bytes=2**40,
        certificate='{"a":1}',
        certificate_sha256="c",
        metrics={"f1": 0.92},
        created_by="ana",
        created_at=NOW,
    ),
)


def a_draft(what: object = 1) -> EventDraft:
    return EventDraft(
        at=NOW, actor="ana", action="run.submit", object_kind="run", object_id="run-1", after={"what": what}
    )


async def add(store: Store, *rows: Any) -> None:
    async with store.transaction() as tx:
        for row in rows:
            await tx.insert(row)


# ---------------------------------------------------------------- transactions


async def test_leaving_the_block_commits_all_of_it(store: Store) -> None:
    async with store.transaction() as tx:
        for row in EVERY_KIND:
            await tx.insert(row)
        await tx.append_event(a_draft())
    async with store.transaction() as tx:
        for row in EVERY_KIND:
            assert await tx.get(type(row), row.id) == row
            assert row in await tx.find(type(row))
        head = await tx.chain_head()
        assert head is not None and head.id == 1


async def test_an_exception_commits_nothing_of_it(store: Store) -> None:
    await add(store, a_project())
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.insert(a_project("other"))
            await tx.update(replace(a_project(), owner="bo"))
            await tx.delete(Project, "vision")
            await tx.append_event(a_draft())
            raise ZeroDivisionError
    async with store.transaction() as tx:
        assert await tx.find(Project) == [a_project()]
        assert await tx.chain_head() is None


async def test_writes_rise_with_what_was_written_and_with_nothing_else(store: Store) -> None:
    seen = [store.writes]

    async def rises(step: Callable[[Tx], Awaitable[object]]) -> bool:
        async with store.transaction() as tx:
            await step(tx)
        seen.append(store.writes)
        return seen[-1] > seen[-2]

    def claim(tx: Tx) -> Awaitable[object]:
        return tx.claim(Run, now=NOW, owner="us", lease_s=60, limit=10)

    assert await rises(lambda tx: tx.insert(a_run()))
    assert await rises(lambda tx: tx.insert_many_once([a_project("a"), a_project("b")]))
    assert not await rises(lambda tx: tx.find(Run))
    assert await rises(claim)
    assert not await rises(claim), "it is leased: there was nothing to claim"
    assert await rises(lambda tx: tx.delete(Project, "a"))
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.insert(a_project("c"))
            raise ZeroDivisionError
    assert store.writes == seen[-1], "what was taken back counts as nothing"


async def test_a_transaction_sees_its_own_writes(store: Store) -> None:
    async with store.transaction() as tx:
        await tx.insert(a_project())
        changed = await tx.update(replace(a_project(), owner="bo"))
        assert await tx.get(Project, "vision") == changed
        assert await tx.find(Project, {"owner": "bo"}) == [changed]
        assert await tx.total(Project, "*") == {(): 1}
        assert await tx.delete(Project, "vision")
        assert await tx.get(Project, "vision") is None


async def test_opening_a_second_one_inside_it_is_a_runtime_error(store: Store) -> None:
    async with store.transaction() as tx:
        with pytest.raises(RuntimeError, match="inside a transaction"):
            async with store.transaction():
                pass
        await tx.insert(a_project())
    async with store.transaction() as tx:
        assert await tx.get(Project, "vision") is not None


async def test_a_task_spawned_inside_may_open_its_own(store: Store) -> None:
    async def later() -> None:
        await add(store, a_project("second"))

    async with store.transaction() as tx:
        task = asyncio.create_task(later())
        await tx.insert(a_project("first"))
    await task
    async with store.transaction() as tx:
        assert [row.id for row in await tx.find(Project)] == ["first", "second"]


async def test_a_cancelled_task_leaves_no_open_transaction(store: Store) -> None:
    await add(store, a_project())
    for pauses in range(12):
        inside = asyncio.Event()

        async def hold(inside: asyncio.Event = inside) -> None:
            async with store.transaction() as tx:
                await tx.get(Project, "vision", lock=True)
                inside.set()
                for number in range(1000):
                    await tx.insert_once(a_project(f"p{number}"))
                await asyncio.sleep(60)

        task = asyncio.create_task(hold())
        await inside.wait()
        for _ in range(pauses * 3):
            await asyncio.sleep(0)  # cancelled at another point each time
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(5), store.transaction() as tx:
            row = await tx.get(Project, "vision", lock=True)
            assert row is not None
            assert [each.id for each in await tx.find(Project)] == ["vision"]
            await tx.update(row)


async def test_a_task_cancelled_while_it_waits_takes_no_lock(store: Store) -> None:
    await add(store, a_project())

    async def wait_for_lock() -> None:
        async with store.transaction() as tx:
            await tx.get(Project, "vision", lock=True)

    async with store.transaction() as tx:
        await tx.get(Project, "vision", lock=True)
        waiting = [asyncio.create_task(wait_for_lock()) for _ in range(5)]
        await asyncio.sleep(0.05)
        for task in waiting[::2]:
            task.cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, False, True, False, True]
    async with asyncio.timeout(5), store.transaction() as tx:
        assert await tx.get(Project, "vision", lock=True)


# ---------------------------------------------------------------- get, find


async def test_get_gives_the_row_or_none(store: Store) -> None:
    await add(store, a_project())
    async with store.transaction() as tx:
        assert await tx.get(Project, "vision") == a_project()
        assert await tx.get(Project, "nothing") is None
        assert await tx.get(Run, "vision") is None


async def test_lock_makes_other_transactions_that_lock_it_wait(store: Store) -> None:
    await add(store, a_project(monthly_limit_microusd=0))

    async def add_one() -> None:
        async with store.transaction() as tx:
            row = await tx.get(Project, "vision", lock=True)
            assert row is not None and row.monthly_limit_microusd is not None
            await asyncio.sleep(0.001)
            await tx.update(replace(row, monthly_limit_microusd=row.monthly_limit_microusd + 1))

    await asyncio.gather(*(add_one() for _ in range(20)))
    async with store.transaction() as tx:
        row = await tx.get(Project, "vision")
        assert row is not None and (row.monthly_limit_microusd, row.version) == (20, 20)


async def test_find_compares_columns(store: Store) -> None:
    runs = [
        a_run("run-1", status=RunStatus.PENDING, end_reason=None, attempt=1),
        a_run("run-2", status=RunStatus.RUNNING, end_reason=None, attempt=2),
        a_run("run-3", status=RunStatus.FAILED, end_reason=EndReason.KILLED, attempt=3, started_at=NOW),
    ]
    await add(store, *runs)
    expected: list[tuple[dict[str, object], list[int]]] = [
        ({"status": RunStatus.RUNNING}, [2]),
        ({"status": "running"}, [2]),
        ({"status": (RunStatus.RUNNING, RunStatus.FAILED)}, [2, 3]),
        ({"status": ()}, []),
        ({"end_reason": None}, [1, 2]),
        ({"end_reason": (None, EndReason.KILLED)}, [1, 2, 3]),
        ({"attempt": AtLeast(2)}, [2, 3]),
        ({"attempt": Below(2)}, [1]),
        ({"attempt": Between(2, 3)}, [2]),
        ({"started_at": Below(NOW + timedelta(days=1))}, [3]),
        ({"started_at": AtLeast(NOW)}, [3]),
        ({"created_at": NOW.astimezone(timezone(timedelta(hours=5)))}, [1, 2, 3]),
        ({"status": RunStatus.FAILED, "attempt": 1}, []),
        ({"project": "vision' OR 1=1 --"}, []),
        ({"name": Contains("ny-l")}, [1, 2, 3]),
        ({"name": Contains("t%y")}, []),
        ({"id": Among(Run, "id", {"attempt": AtLeast(2), "id": Among(Run, "id", {"attempt": Below(3)})})}, [2]),
        ({"id": Among(Run, "id", {"attempt": 9})}, []),
        ({"attempt": Greatest("project")}, [3]),
        ({"attempt": Greatest("status"), "end_reason": None}, [1, 2]),
        ({"attempt": Greatest("project", {"end_reason": None})}, [2]),
        ({"attempt": Greatest("project", {"end_reason": None}), "status": RunStatus.PENDING}, []),
        ({"attempt": Greatest("project", {"status": ()})}, []),
    ]
    async with store.transaction() as tx:
        for where, numbers in expected:
            assert [row.attempt for row in await tx.find(Run, where)] == numbers, where
            assert await tx.count(Run, where, most=9) == len(numbers)
            assert await tx.count(Run, where, most=1) == min(1, len(numbers))


async def test_find_orders_and_pages_alike_everywhere(store: Store) -> None:
    # Mixed case, umlauts and hyphens are where a database's own locale would sort another way.
    names = ["b", "a-b", "ab", "B", "ä", "a", "Z", "z", "\U0001f600", "\uffee"]
    await add(store, *(a_run(f"run-{name}", name=name, started_at=None if name == "z" else NOW) for name in names))
    async with store.transaction() as tx:
        assert [row.name for row in await tx.find(Run, order="name")] == sorted(names)
        assert [row.name for row in await tx.find(Run, order="-name")] == sorted(names, reverse=True)
        assert [row.name for row in await tx.find(Run, order="name", limit=3, offset=2)] == sorted(names)[2:5]
        assert [row.name for row in await tx.find(Run, order="name", offset=8)] == sorted(names)[8:]
        assert await tx.find(Run, limit=0) == []
        by_start = [row.name for row in await tx.find(Run, order="started_at")]
        assert by_start[0] == "z" and by_start[1:] == sorted(set(names) - {"z"})
        assert (await tx.find(Run, order="-started_at"))[-1].name == "z"


async def test_pages_by_key_join_up_where_many_rows_share_it(store: Store) -> None:
    await add(store, *(a_run(f"run-{n}", attempt=n // 3, created_at=NOW + timedelta(days=n % 2)) for n in range(10)))
    async with store.transaction() as tx:
        for order in ("attempt", "-attempt", "created_at", "-created_at", "id", "-id"):
            everything = await tx.find(Run, order=order)
            after, found = None, []
            while page := await tx.find(Run, {"project": "vision"}, order=order, limit=3, after=after):
                found += page
                after = (getattr(page[-1], order.removeprefix("-")), page[-1].id)
            assert found == everything, order


async def test_rows_are_ordered_by_what_json_in_them_says_and_pages_join_up(store: Store) -> None:
    names = ["b", "ä", "B", None, "\U0001f600", "a", "with \0", "a", None, "z"]
    losses = [0.5, math.nan, -math.inf, 1e-300, 2.0, math.inf, 0.5, None, 1e300, -3.25]
    experiment = Experiment(id="exp-1", project="p", name="e", created_by="ana", created_at=NOW, updated_at=NOW)
    told = [
        (
            TrackedRun(
                id=f"trk-{n}", experiment_id="exp-1", project="p", name="", started_ms=n // 2, created_by="ana",
                created_at=NOW, tags={} if name is None else {"a.b/c d": name}, state=list(TrackedState)[n % 3],
                ended_ms=n % 4 or None,
            ),
            RunMetrics(
                id=f"trk-{n}", latest=merged("{}", [Measured(key="m-1", point=Point(value=loss, timestamp_ms=1))])
            ),
            loss,
        )
        for n, (name, loss) in enumerate(zip(names, losses, strict=True)) if loss is not None
    ]  # fmt: skip
    await add(store, experiment, *(run for run, _, _ in told), *(row for _, row, _ in told))
    value = {run.id: None if math.isnan(loss) else loss for run, _, loss in told}

    def says(run: TrackedRun, by: By) -> Any:
        return value[run.id] if by.key == "m-1" else run.tags.get(by.key) if by.key else getattr(run, by.column)

    async with store.transaction() as tx:
        joined = await tx.joined(TrackedRun, "id", by=("stage", "state"), where={"project": "p"})
        assert await tx.joined(TrackedRun, "id", by=("stage",), where={"project": "q"}) == {}
    assert sorted(sorted(text.split(",")) for text in joined.values()) == [
        sorted(run.id for run, _, _ in told if run.state is state) for state in list(TrackedState)[:3]
    ]

    loss = By("latest", key="m-1", kind=RunMetrics, is_number=True)
    tag = By("tags", key="a.b/c d")
    newest = By("started_ms", descending=True)
    flipped = replace(loss, descending=True), replace(tag, descending=True)
    orders = [(loss,), (tag,), *((each,) for each in flipped), (By("state"), flipped[0]), (By("ended_ms"), tag)]
    orders += [(By("tags", key='no such "key'),), (By("latest", key="'; --", kind=RunMetrics, is_number=True),)]
    async with store.transaction() as tx:
        for order in orders:
            by = (*order, newest)
            expected = sorted((run for run, _, _ in told), key=lambda run: run.id)
            for each in reversed(by):
                have = [run for run in expected if says(run, each) is not None]
                have.sort(key=lambda run: says(run, each), reverse=each.descending)
                expected = have + [run for run in expected if says(run, each) is None]
            after, found = None, []
            while page := await tx.ranked(TrackedRun, {"experiment_id": "exp-1"}, by, limit=4, after=after):
                found += [run.id for run, _ in page]
                after = json.loads(json.dumps(page[-1][1]))
            assert found == [run.id for run in expected], order


@pytest.mark.parametrize("where", [{"spec": JOB}, {"nothing": 1}])
async def test_nested_and_unknown_columns_cant_be_asked_for(store: Store, where: dict[str, object]) -> None:
    async with store.transaction() as tx:
        with pytest.raises(ValueError):
            await tx.find(Run, where)
        with pytest.raises(ValueError):
            await tx.find(Run, order=next(iter(where)))
        with pytest.raises(ValueError):
            await tx.total(Run, "attempt", by=tuple(where))


async def test_what_was_read_cant_change_what_is_stored(store: Store) -> None:
    metrics = {"loss": 1.0}
    row = Checkpoint(
        id="run-1:1", run_id="run-1", attempt_id="a", step=1, path="/", size_bytes=1, found_at=NOW, metrics=metrics
    )
    await add(store, a_run(), row)
    metrics["loss"] = 2.0
    async with store.transaction() as tx:
        (read,) = await tx.find(Checkpoint)
        read.metrics["loss"] = 3.0
        (again,) = await tx.find(Checkpoint)
        assert again.metrics == {"loss": 1.0}


# ---------------------------------------------------------------- insert, update, delete


async def test_insert_raises_conflict_when_its_id_is_taken(store: Store) -> None:
    await add(store, a_project())
    async with store.transaction() as tx:
        with pytest.raises(Conflict):
            await tx.insert(a_project(owner="bo"))
        await tx.insert(a_project("other"))  # the transaction can go on
    async with store.transaction() as tx:
        assert [(row.id, row.owner) for row in await tx.find(Project)] == [("other", "ana"), ("vision", "ana")]


async def test_insert_once_twice_is_the_same_as_once(store: Store) -> None:
    async with store.transaction() as tx:
        assert await tx.insert_once(an_entry("e-1"))
        assert not await tx.insert_once(an_entry("e-1", amount_microusd=999))
    async with store.transaction() as tx:
        assert not await tx.insert_once(an_entry("e-1", amount_microusd=999))
        assert await tx.total(LedgerEntry, "amount_microusd") == {(): 100}


async def test_insert_once_is_once_under_concurrency(store: Store) -> None:
    async def try_it() -> bool:
        async with store.transaction() as tx:
            return await tx.insert_once(an_entry("e-1"))

    assert sum(await asyncio.gather(*(try_it() for _ in range(20)))) == 1


async def test_insert_many_once_says_which_were_added(store: Store) -> None:
    entries = [an_entry(f"e-{number:05}") for number in range(2500)]
    await add(store, entries[7], entries[2400])
    async with store.transaction() as tx:
        added = await tx.insert_many_once([*entries, entries[3]])
        assert added == {entry.id for entry in entries} - {"e-00007", "e-02400"}
        assert await tx.insert_many_once(entries) == frozenset()
        assert await tx.insert_many_once([]) == frozenset()
        assert await tx.total(LedgerEntry, "*") == {(): 2500}


async def test_what_must_be_unique_is(store: Store) -> None:
    run, attempt = a_run(), Attempt(id="attempt-1", run_id="run-1", number=1, pool="local", created_at=NOW)
    await add(store, BUDGET, HOLD, run, attempt)
    async with store.transaction() as tx:
        for clash in (replace(BUDGET, id="x"), replace(HOLD, id="x"), replace(attempt, id="x")):
            with pytest.raises(Conflict):
                await tx.insert(clash)
            with pytest.raises(Conflict):
                await tx.insert_once(clash)
        await tx.insert(replace(HOLD, id="hold-2", status=HoldStatus.VOIDED))  # only one may be pending
    async with store.transaction() as tx:
        assert [row.id for row in await tx.find(Hold)] == ["hold-1", "hold-2"]


async def test_a_row_cant_refer_to_one_that_is_not_there(store: Store) -> None:
    for orphan in (HOLD, Attempt(id="attempt-1", run_id="run-1", number=1, pool="local", created_at=NOW)):
        with pytest.raises(Conflict):
            await add(store, orphan)
    await add(store, BUDGET, HOLD)
    with pytest.raises(Conflict):
        async with store.transaction() as tx:
            await tx.delete(Budget, BUDGET.id)


async def test_update_returns_the_row_with_the_next_version(store: Store) -> None:
    await add(store, a_project())
    async with store.transaction() as tx:
        changed = await tx.update(replace(a_project(), owner="bo"))
        assert (changed.owner, changed.version) == ("bo", 1)
        again = await tx.update(replace(changed, owner="cy"))
        assert again.version == 2
    async with store.transaction() as tx:
        assert await tx.get(Project, "vision") == again


async def test_update_raises_conflict_when_somebody_else_changed_it_meanwhile(store: Store) -> None:
    await add(store, a_project())
    async with store.transaction() as tx:
        await tx.update(a_project())
    async with store.transaction() as tx:
        with pytest.raises(Conflict):
            await tx.update(replace(a_project(), owner="late"))
        with pytest.raises(Conflict):
            await tx.update(a_project("nothing"))
        await tx.insert(a_project("other"))  # the transaction can go on
    async with store.transaction() as tx:
        assert {row.id: row.owner for row in await tx.find(Project)} == {"vision": "ana", "other": "ana"}


async def test_of_concurrent_updates_of_one_version_one_wins(store: Store) -> None:
    await add(store, a_project())
    async with store.transaction() as tx:
        read = await tx.get(Project, "vision")
    assert read is not None

    async def change(owner: str) -> str | None:
        try:
            async with store.transaction() as tx:
                await tx.update(replace(read, owner=owner))
        except Conflict:
            return None
        return owner

    winners = [owner for owner in await asyncio.gather(*(change(f"o{n}") for n in range(20))) if owner]
    async with store.transaction() as tx:
        row = await tx.get(Project, "vision")
    assert row is not None and winners == [row.owner]


async def test_delete_says_whether_it_was_there(store: Store) -> None:
    await add(store, a_project())
    async with store.transaction() as tx:
        assert await tx.delete(Project, "vision")
        assert not await tx.delete(Project, "vision")


async def test_money_and_events_are_append_only(store: Store) -> None:
    await add(store, an_entry("e-1"))
    async with store.transaction() as tx:
        event = await tx.append_event(a_draft())
        for row in (an_entry("e-1"), event):
            with pytest.raises(TypeError, match="append-only"):
                await tx.update(row)
            with pytest.raises(TypeError, match="append-only"):
                await tx.delete(type(row), str(row.id))


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (a_project(monthly_limit_microusd=-1), ValueError),
        (replace(BUDGET, held_microusd=-1), ValueError),
        (a_project(created_at=datetime(2026, 1, 1)), ValueError),
        (a_project(owner="a\0b"), InvalidInput),
        (a_project(owner="\ud800"), InvalidInput),
        (a_project(monthly_limit_microusd=2**63), InvalidInput),
        (replace(USAGE, duration_ms=float("nan")), InvalidInput),
    ],
    ids=["money", "held", "zone", "nul", "surrogate", "64-bit", "nan"],
)
async def test_no_store_takes_what_one_could_not_hold(store: Store, row: Any, error: type[Exception]) -> None:
    async with store.transaction() as tx:
        with pytest.raises(error):
            await tx.insert(row)
        with pytest.raises(error):
            await tx.update(row) if hasattr(row, "version") else await tx.insert_once(row)


# ---------------------------------------------------------------- claim


async def claimed(store: Store, now: datetime = NOW, owner: str = "me", limit: int = 10) -> list[Run]:
    async with store.transaction() as tx:
        return await tx.claim(Run, now=now, owner=owner, lease_s=30, limit=limit)


async def test_claim_takes_what_is_due_and_unleased_oldest_first(store: Store) -> None:
    def at(seconds: int) -> datetime:
        return NOW + timedelta(seconds=seconds)

    await add(
        store,
        a_run("run-late", due_at=at(-1)),
        a_run("run-early", due_at=at(-9)),
        a_run("run-now", due_at=NOW),
        a_run("run-future", due_at=at(1)),
        a_run("run-never", due_at=None),
        a_run("run-leased", due_at=at(-5), lease_owner="other", lease_expires_at=at(1)),
        a_run("run-expired", due_at=at(-4), lease_owner="other", lease_expires_at=NOW),
    )
    rows = await claimed(store, limit=3)
    assert [row.id for row in rows] == ["run-early", "run-expired", "run-late"]
    assert {(row.lease_owner, row.lease_expires_at, row.version) for row in rows} == {("me", at(30), 1)}
    async with store.transaction() as tx:
        assert await tx.get(Run, "run-early") == rows[0]
    assert [row.id for row in await claimed(store)] == ["run-now"]
    assert await claimed(store) == []


async def test_two_claimers_never_get_the_same_row(store: Store) -> None:
    await add(store, *(a_run(f"run-{number:03}") for number in range(60)))

    async def worker(name: str) -> list[str]:
        mine: list[str] = []
        while rows := await claimed(store, owner=name, limit=4):
            mine += [row.id for row in rows]
        return mine

    shares = await asyncio.gather(*(worker(f"worker-{number}") for number in range(8)))
    taken = sorted(id for share in shares for id in share)
    assert taken == [f"run-{number:03}" for number in range(60)]


async def test_a_claimer_that_dies_loses_its_rows_when_the_lease_expires(store: Store) -> None:
    await add(store, a_run())
    (dead,) = await claimed(store, owner="dead")
    assert await claimed(store, now=NOW + timedelta(seconds=29), owner="next") == []
    (alive,) = await claimed(store, now=NOW + timedelta(seconds=30), owner="next")
    assert alive.lease_owner == "next"
    async with store.transaction() as tx:
        with pytest.raises(Conflict):  # the version is the fencing token
            await tx.update(replace(dead, status=RunStatus.RUNNING))


# ---------------------------------------------------------------- total


async def test_total_sums_and_groups(store: Store) -> None:
    await add(
        store,
        an_entry("e-1", amount_microusd=2**61, kind="compute"),
        an_entry("e-2", amount_microusd=5, kind="tokens", owner="bo"),
        an_entry("e-3", amount_microusd=7, kind="tokens", owner="bo", occurred_at=NOW + timedelta(days=1)),
    )
    soon = {"occurred_at": Between(NOW, NOW + timedelta(days=1))}
    async with store.transaction() as tx:
        assert await tx.total(LedgerEntry, "amount_microusd") == {(): 2**61 + 12}
        assert await tx.total(LedgerEntry, "amount_microusd", by=("kind", "owner")) == {
            ("compute", "ana"): 2**61,
            ("tokens", "bo"): 12,
        }
        assert await tx.total(LedgerEntry, "amount_microusd", by=("owner",), where=soon) == {
            ("ana",): 2**61,
            ("bo",): 5,
        }
        assert await tx.total(LedgerEntry, "*", by=("owner",)) == {("ana",): 1, ("bo",): 2}
        assert await tx.total(LedgerEntry, "*") == {(): 3}
        assert await tx.total(UsageRecord, "prompt_tokens") == {(): 0}
        assert await tx.total(UsageRecord, "prompt_tokens", by=("model",)) == {}
        assert await tx.total(Run, "attempt", by=("status",)) == {}
        with pytest.raises(ValueError):
            await tx.total(LedgerEntry, "owner")


async def test_groups_come_back_as_values_of_their_type(store: Store) -> None:
    await add(store, a_run("run-1", attempt=2), a_run("run-2", attempt=3, started_at=NOW))
    async with store.transaction() as tx:
        found = await tx.total(Run, "attempt", by=("status", "started_at"))
    assert found == {(RunStatus.PENDING, None): 2, (RunStatus.PENDING, NOW): 3}
    assert all(isinstance(status, RunStatus) for status, _ in found)


# ---------------------------------------------------------------- events


async def test_events_are_sealed_in_order_and_come_back_as_they_were(store: Store) -> None:
    strange = {"when": NOW, "role": Role.ADMIN, "tuple": (1, 2), "float": 1e5, "nan": float("nan"), 3: "ü"}
    async with store.transaction() as tx:
        first = await tx.append_event(a_draft(strange))
        second = await tx.append_event(
            replace(a_draft(), at=NOW.astimezone(timezone(timedelta(hours=-7))), reason='"; DROP TABLE events')
        )
        assert (await tx.chain_head()) is not None
    assert (first.id, second.id, second.previous_hash) == (1, 2, first.hash)
    read = [event async for event in store.events()]
    assert [event.hash for event in read] == [first.hash, second.hash]
    assert check_chain(read, 2, second.hash) is None
    assert read[1] == second and read[1].at == NOW
    async with store.transaction() as tx:
        newest = await tx.find(type(first), order="-id", limit=1)
        assert newest == [second] and await tx.get(type(first), "2") == second


async def test_the_chain_holds_under_twenty_concurrent_transactions(store: Store) -> None:
    async def change(number: int) -> None:
        async with store.transaction() as tx:
            await tx.insert(a_project(f"p{number}"))
            await tx.append_event(a_draft(number))
            await asyncio.sleep(0)
            await tx.append_event(a_draft(-number))
            if number % 5 == 0:
                raise ZeroDivisionError  # a rolled-back event leaves no gap

    await asyncio.gather(*(change(number) for number in range(20)), return_exceptions=True)
    events = [event async for event in store.events()]
    async with store.transaction() as tx:
        head = await tx.chain_head()
    assert head is not None and head.id == len(events) == 32
    assert check_chain(events, head.id, head.hash) is None


async def test_events_are_streamed_while_more_are_written(store: Store) -> None:
    async with store.transaction() as tx:
        for number in range(1010):  # more than one page
            await tx.append_event(a_draft(number))
    seen = 0
    async for event in store.events():
        seen += 1
        assert event.id == seen
        if seen == 10:
            async with store.transaction() as tx:
                await tx.append_event(a_draft("meanwhile"))
    assert seen >= 1010


async def test_a_reader_may_leave_the_stream_early(store: Store) -> None:
    async with store.transaction() as tx:
        for number in range(3):
            await tx.append_event(a_draft(number))
    events = store.events()
    assert (await anext(events)).id == 1
    await events.aclose()
    async with asyncio.timeout(5):
        await add(store, a_project())


async def test_closing_twice_is_the_same_as_once(store: Store) -> None:
    await store.close()
    await store.close()
