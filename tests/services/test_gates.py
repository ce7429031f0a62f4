"""Gates before aliases: every kind of requirement met, missed and without evidence; waivers, approvals, measuring."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.domain.hostile_models import tflite
from tests.services.model_house import ADA, EVE, FACTS, NOW, House, built

from groundplane.adapters.model_servers.embedded import EmbeddedModelServer
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.domain.dataset import DatasetVersion, Pointer, Profile
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.gate import Evidence, GateCheck, Kind, Status
from groundplane.domain.gate_file import read_gates
from groundplane.domain.provenance.certificate import Facts
from groundplane.domain.spec import EndpointSpec, Metadata, Resources, TokenPrice
from groundplane.errors import Conflict, InvalidInput, NotFound, Refusal, Unavailable
from groundplane.identity import Actor, Role
from groundplane.ports import Clock, Store
from groundplane.services.gates import Gates, Scores
from groundplane.services.registry import Registry

LEA = Actor(name="lea", role=Role.LEAD, project="vision")
OPS = Actor(name="ops", role=Role.OPERATOR)
HEAD = """
apiVersion: groundplane/v1
kind: Gate
metadata: {name: production, project: vision}
spec:
  model: "ti*"
  aliases: [production]
  requirements:
"""


class Hall:
    """A house with its gates and its registry."""

    def __init__(self, house: House, clock: Clock) -> None:
        self.house, self.clock = house, clock
        ids = RandomIds()
        self.gates = Gates(
            store=house.store,
            clock=clock,
            ids=ids,
            models=house.models,
            engines={"embedded": EmbeddedModelServer()},
            addenda=house.addenda,
        )
        self.registry = Registry(
            store=house.store, clock=clock, ids=ids, models=house.models, gates=self.gates, addenda=house.addenda
        )

    async def demand(self, *requirements: str) -> None:
        await self.gates.define(OPS, HEAD + "".join(f"    - {each}\n" for each in requirements))

    async def ask(self, ref: str = "tiny@latest") -> GateCheck:
        return await self.gates.check(ADA, ref, "production")

    async def say(self, ref: str = "tiny@latest") -> tuple[Status, str]:
        (verdict,) = (await self.ask(ref)).verdicts
        return verdict.status, verdict.have

    async def register(self, facts: Facts = FACTS) -> None:
        await self.house.register(facts=facts)

    async def know(self, **change: object) -> None:
        row = Evidence(
            id=f"ev-{change.get('id', 1)}", version_id="tiny@1", project="vision", kind=Kind.LATENCY, name="latency",
            source="measured", by="ada", at=self.clock.now(),
        )  # fmt: skip
        async with self.house.store.transaction() as tx:
            await tx.insert(replace(row, **{name: value for name, value in change.items() if name != "id"}))  # type: ignore[arg-type]


@pytest.fixture
async def hall(clock: Clock, tmp_path: Path) -> Hall:
    made = Hall(await built(MemoryStore(), clock, tmp_path), clock)
    await made.register()
    return made


# ---------------------------------------------------------------- moves


async def test_an_alias_moves_only_when_every_requirement_is_met(store: Store, clock: Clock, tmp_path: Path) -> None:
    hall = Hall(await built(store, clock, tmp_path), clock)
    await hall.demand("{metric: f1, at_least: 0.92}", "{certificate: complete}", "{scan: clean}")
    await hall.register(replace(FACTS, metrics={"f1": 0.91}))
    await hall.register(replace(FACTS, metrics={"f1": 0.92}))
    with pytest.raises(Refusal) as refusal:
        await hall.registry.move(ADA, "tiny", "production", "1", "ship it")
    assert [(each.rule, each.need, each.have) for each in refusal.value.refusals] == [
        ("gate vision/production: f1", "f1 ≥ 0.92", "f1 0.91 (certificate)")
    ]
    assert (await hall.registry.move(ADA, "tiny", "production", "2", "ship it")).to_number == 2
    kept = await hall.gates.checks(ADA, "tiny@1")
    assert [(check.passed, check.by, check.gates) for check in kept] == [(False, "ada", ("vision/production",))]
    assert [str(each.status) for each in kept[0].verdicts] == ["not-met", "met", "met"]
    (move,) = await hall.registry.history(ADA, "tiny", "production")
    assert move.check_id == (await hall.gates.checks(ADA, "tiny@2"))[0].id
    assert "alias.refused" in await hall.house.actions()
    assert (await hall.registry.move(ADA, "tiny", "staging", "1", "no gate is before staging")).to_number == 1


async def test_a_rollback_is_judged_and_not_held_up(hall: Hall) -> None:
    await hall.registry.move(ADA, "tiny", "production", "1", "before there were gates")
    await hall.register()
    await hall.registry.move(ADA, "tiny", "production", "2", "on")
    await hall.demand("{metric: f1, at_least: 0.99}")
    moved = await hall.registry.rollback(ADA, "tiny", "production", "it answers nonsense")
    assert moved.to_number == 1
    (check,) = [each for each in await hall.gates.checks(ADA, "tiny@1") if each.id == moved.check_id]
    assert not check.passed


async def test_gates_of_another_project_or_model_do_not_stand_in_the_way(hall: Hall) -> None:
    text = HEAD.replace("vision", "speech") + "    - {metric: f1, at_least: 0.99}\n"
    await hall.gates.define(OPS, text)
    await hall.gates.define(OPS, HEAD.replace("ti*", "other") + "    - {metric: f1, at_least: 0.99}\n")
    assert (await hall.ask()).gates == ()
    assert await hall.gates.gates(ADA, model="tiny") == []
    assert [gate.id for gate in await hall.gates.gates(ADA)] == ["vision/production"]


# ---------------------------------------------------------------- each kind of requirement


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ("at_least: 0.93", Status.MET),
        ("at_least: 93%", Status.MET),
        ("above: 0.93", Status.NOT_MET),
        ("at_most: 0.93", Status.MET),
        ("below: 0.93", Status.NOT_MET),
        ("at_least: 0.9, at_most: 0.95", Status.MET),
        ("at_least: 0.94, at_most: 0.95", Status.NOT_MET),
    ],
)
async def test_a_metric_keeps_to_its_bounds(hall: Hall, asked: str, status: Status) -> None:
    await hall.demand(f"{{metric: f1, {asked}}}")
    assert (await hall.say())[0] is status


async def test_what_was_measured_counts_before_the_certificate_and_what_is_stated_after_it(hall: Hall) -> None:
    await hall.demand("{metric: f1, at_least: 0.95}")
    await hall.gates.state(ADA, "tiny@1", Scores(metric="f1", successes=99, trials=100))
    assert await hall.say() == (Status.NOT_MET, "f1 0.93 (certificate)")
    await hall.know(kind=Kind.METRIC, name="f1", successes=97, trials=100)
    assert await hall.say() == (Status.MET, "f1 0.97 (measured by ada)")
    hall.clock.advance(1)  # type: ignore[attr-defined]
    for number in range(201):
        await hall.know(id=f"said-{number}", kind=Kind.METRIC, name="noise", source="stated", values=(1.0,))
    hall.clock.advance(1)  # type: ignore[attr-defined]
    assert await hall.say() == (Status.MET, "f1 0.97 (measured by ada)"), "many words push out no measurement"
    await hall.demand("{metric: recall, at_least: 0.5}")
    assert (await hall.say())[0] is Status.NO_EVIDENCE
    await hall.gates.state(ADA, "tiny@1", Scores(metric="recall", values=(0.5, 0.7)))
    assert await hall.say() == (Status.MET, "recall 0.6 (stated by ada)")


async def test_latency_counts_from_enough_measured_requests_without_failures(hall: Hall) -> None:
    await hall.demand("{latency: p95, below: 200ms, requests: 100}")
    assert (await hall.say())[0] is Status.NO_EVIDENCE
    await hall.know(id=1, values=(0.01,) * 99)
    assert (await hall.say())[0] is Status.NO_EVIDENCE
    hall.clock.advance(1)  # type: ignore[attr-defined]
    await hall.know(id=2, values=(0.01,) * 95 + (0.9,) * 5)
    assert await hall.say() == (Status.MET, "P95 10.0 ms over 100 requests (measured)")
    hall.clock.advance(1)  # type: ignore[attr-defined]
    await hall.know(id=3, values=(0.01,) * 94 + (0.2,) * 6)
    assert (await hall.say())[0] is Status.NOT_MET
    hall.clock.advance(1)  # type: ignore[attr-defined]
    await hall.know(id=4, values=(0.01,) * 100, facts={"failed": "1"})
    assert await hall.say() == (Status.NOT_MET, "P95 10.0 ms over 100 requests, 1 of them failed (measured)")
    hall.clock.advance(1)  # type: ignore[attr-defined]
    await hall.know(id=5, values=(0.01,) * 100, source="stated")
    assert (await hall.say())[0] is Status.NOT_MET, "a stated latency is no measured one"


async def test_a_regression_is_judged_by_its_confidence_interval(hall: Hall) -> None:
    await hall.demand("{regression: accuracy, within: 0.02, confidence: 95%}")
    assert (await hall.say())[0] is Status.MET, "nothing stands there yet"
    await hall.gates.state(ADA, "tiny@1", Scores(metric="accuracy", successes=900, trials=1000))
    await hall.registry.move(ADA, "tiny", "production", "1", "first")
    await hall.register()
    assert (await hall.say("tiny@2"))[0] is Status.NO_EVIDENCE
    await hall.gates.state(ADA, "tiny@2", Scores(metric="accuracy", successes=90, trials=100))
    status, have = await hall.say("tiny@2")
    assert status is Status.NOT_MET, "100 examples can't tell 2 % apart"
    assert have.startswith("0.9 against 0.9: difference -0.07")
    hall.clock.advance(1)  # type: ignore[attr-defined]
    await hall.gates.state(ADA, "tiny@2", Scores(metric="accuracy", successes=9_050, trials=10_000))
    assert (await hall.say("tiny@2"))[0] is Status.MET
    assert (await hall.registry.move(ADA, "tiny", "production", "2", "as good")).from_number == 1
    await hall.registry.remove(ADA, "tiny", "production", "so that nothing stands there")
    await hall.register()
    await hall.gates.state(ADA, "tiny@3", Scores(metric="accuracy", successes=5_000, trials=10_000))
    assert (await hall.say("tiny@3"))[0] is Status.NOT_MET, "what stood there last is still what it is held against"


async def test_cost_is_what_a_measured_run_came_to(hall: Hall) -> None:
    await hall.demand("{cost_per_1000_requests: $0.50}")
    assert (await hall.say())[0] is Status.NO_EVIDENCE
    await hall.know(values=(0.1,), cost_microusd_per_1000=500_000)
    assert await hall.say() == (Status.MET, "$0.50")
    hall.clock.advance(1)  # type: ignore[attr-defined]
    await hall.know(id=2, values=(0.1,), cost_microusd_per_1000=500_001)
    assert (await hall.say())[0] is Status.NOT_MET


async def test_data_is_as_old_as_its_registered_dataset(hall: Hall) -> None:
    await hall.demand("{data_age: 30d}")
    assert await hall.say() == (Status.NO_EVIDENCE, "corpus, whose age nobody knows")
    row = DatasetVersion(
        id="corpus@1", name="corpus", number=1, project="vision", owner="ada", license="MIT", classification="internal",
        description="", digest="1" * 64, how="declared", files=(), size_bytes=1, pointer=Pointer.FOLDER,
        location="/data", profile=Profile(), as_of=hall.clock.now() - timedelta(days=29), fresh_for_s=86_400 * 7,
        retain_until=None, created_by="ada", created_at=NOW, kept=False,
    )  # fmt: skip
    async with hall.house.store.transaction() as tx:
        await tx.insert(row)
        await tx.insert(replace(row, id="other@2", name="other", number=2, project="speech", as_of=hall.clock.now()))
    assert await hall.say() == (Status.MET, "corpus is 29d old")
    await hall.demand("{data_age: own}")
    assert (await hall.say())[0] is Status.NOT_MET
    await hall.demand("{data_age: 28d}")
    assert (await hall.say())[0] is Status.NOT_MET


async def test_an_incomplete_or_broken_certificate_is_not_complete(hall: Hall) -> None:
    await hall.demand("{certificate: complete}")
    assert (await hall.say())[0] is Status.MET
    await hall.house.tamper(license="MIT")
    status, have = await hall.say("tiny@1")
    assert status is Status.NOT_MET
    assert "license" in have


async def test_bytes_of_no_known_format_and_operators_of_its_own_are_not_clean(hall: Hall) -> None:
    await hall.demand("{scan: clean}")
    assert (await hall.say())[0] is Status.MET
    (hall.house.source / "blob.dat").write_bytes(bytes(range(1, 256)) * 5)
    await hall.register()
    assert await hall.say() == (Status.NOT_MET, "blob.dat is of no format known here")
    (hall.house.source / "blob.dat").unlink()
    (hall.house.source / "net.tflite").write_bytes(tflite("custom"))
    await hall.register()
    assert await hall.say() == (Status.NOT_MET, "net.tflite needs operators of its own")


# ---------------------------------------------------------------- people


async def test_a_version_needs_other_eyes_than_its_makers(hall: Hall) -> None:
    await hall.demand("{approvals: 1}")
    with pytest.raises(Refusal, match="four-eyes"):
        await hall.gates.approve(ADA, "tiny@1", "production")
    assert (await hall.say())[0] is Status.NOT_MET
    given = await hall.gates.approve(LEA, "tiny@1", "production", "looks right")
    assert await hall.gates.approve(LEA, "tiny@1", "production") == replace(given, comment="")
    assert await hall.say() == (Status.MET, "1 (lea)")
    await hall.register()
    assert (await hall.say("tiny@2"))[0] is Status.NOT_MET, "a yes is to one version"


async def test_a_waiver_lifts_one_requirement_until_it_ends(hall: Hall) -> None:
    await hall.demand("{metric: f1, at_least: 0.99}", "{metric: recall, at_least: 0.5}")
    until = hall.clock.now() + timedelta(days=1)
    waive = {"gate_id": "vision/production", "owner": "ops", "reason": "known", "expires_at": until}
    made = await hall.gates.waive(OPS, requirement="f1", **waive)  # type: ignore[arg-type]
    await hall.gates.waive(OPS, requirement="recall", version_id="tiny@1", **waive)  # type: ignore[arg-type]
    check = await hall.ask("tiny@1")
    assert check.passed
    assert [str(each.status) for each in check.verdicts] == ["waived", "waived"]
    assert check.verdicts[0].waiver.endswith("by ops: known")
    await hall.register()
    assert [str(each.status) for each in (await hall.ask("tiny@2")).verdicts] == ["waived", "no-evidence"]
    assert len(await hall.gates.waivers(ADA)) == 2
    assert await hall.gates.waivers(EVE) == []
    await hall.gates.unwaive(OPS, made.id)
    assert [str(each.status) for each in (await hall.ask("tiny@1")).verdicts] == ["not-met", "waived"]
    hall.clock.advance(86_400)  # type: ignore[attr-defined]
    assert [str(each.status) for each in (await hall.ask("tiny@1")).verdicts] == ["not-met", "no-evidence"]
    with pytest.raises(NotFound, match="no requirement speed"):
        await hall.gates.waive(OPS, requirement="speed", **waive)  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="is past"):
        await hall.gates.waive(OPS, requirement="f1", **waive)  # type: ignore[arg-type]


# ---------------------------------------------------------------- measuring


@pytest.fixture
async def replica() -> AsyncIterator[tuple[str, list[int]]]:
    """A server that answers completions; its list holds the status of each answer to come, then 200."""
    statuses: list[int] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        await reader.readexactly(length)
        body = b'{"usage": {"completion_tokens": 1}}'
        status = statuses.pop() if statuses else 200
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (status, len(body), body))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", statuses
    server.close()
    await server.wait_closed()


async def serve(hall: Hall, url: str, status: EndpointStatus = EndpointStatus.READY) -> None:
    spec = EndpointSpec(
        metadata=Metadata(name="tiny", project="vision", owner="ada", cost_center="c"),
        model="tiny@1",
        resources=Resources(cpus=1, memory_bytes=2**30),
        end_date=NOW,
        max_cost_microusd=1,
        max_duration_s=60,
        token_price=TokenPrice(prompt_microusd_per_million=1, completion_microusd_per_million=1),
    )
    row = Endpoint(
        id="tiny", project="vision", owner="ada", cost_center="c", spec=spec, model_version="tiny@1", base_url=url,
        status=status, created_by="ada", created_at=NOW, end_date=NOW, due_at=None,
    )  # fmt: skip
    async with hall.house.store.transaction() as tx:
        await tx.insert(row)


async def test_a_measured_run_becomes_evidence_of_the_version_that_is_served(
    hall: Hall, replica: tuple[str, list[int]]
) -> None:
    await hall.demand("{latency: p95, below: 20s, requests: 20}")
    await serve(hall, replica[0])
    made = await hall.gates.measure(ADA, "tiny", requests=20, at_once=4)
    assert (made.version_id, made.source, len(made.values)) == ("tiny@1", "measured", 20)
    assert (await hall.say("tiny@1"))[0] is Status.MET
    replica[1].append(500)
    made = await hall.gates.measure(ADA, "tiny", requests=21)
    assert (len(made.values), made.facts["failed"]) == (20, "1")
    hall.clock.advance(1)  # type: ignore[attr-defined]


async def test_what_is_not_ready_or_does_not_answer_is_not_measured(hall: Hall, replica: tuple[str, list[int]]) -> None:
    with pytest.raises(NotFound):
        await hall.gates.measure(ADA, "tiny", requests=1)
    await serve(hall, replica[0])
    replica[1].extend([500] * 3)
    with pytest.raises(Unavailable, match="answered none of 3"):
        await hall.gates.measure(ADA, "tiny", requests=3)
    with pytest.raises(NotFound):
        await hall.gates.measure(EVE, "tiny", requests=1)
    for requests, at_once in ((0, 1), (2_001, 1), (1, 0), (1, 33)):
        with pytest.raises(InvalidInput):
            await hall.gates.measure(ADA, "tiny", requests=requests, at_once=at_once)
    async with hall.house.store.transaction() as tx:
        row = await tx.get(Endpoint, "tiny")
        assert row is not None
        await tx.update(replace(row, status=EndpointStatus.STOPPED))
    with pytest.raises(Conflict, match="is stopped"):
        await hall.gates.measure(ADA, "tiny", requests=1)


@pytest.mark.parametrize(
    "scores",
    [
        Scores(metric="f1"),
        Scores(metric="f1", successes=1),
        Scores(metric="f1", trials=1),
        Scores(metric="f1", successes=2, trials=1),
        Scores(metric="", values=(1.0,)),
        Scores(metric="f1", values=(0.5,) * 10_001),
    ],
)
async def test_scores_that_say_nothing_are_refused(hall: Hall, scores: Scores) -> None:
    with pytest.raises(InvalidInput):
        await hall.gates.state(ADA, "tiny@1", scores)


# ---------------------------------------------------------------- the file


def test_a_gate_is_read_with_its_units() -> None:
    text = HEAD + "    - {latency: p99, at_most: 1.5s, requests: 50}\n    - {regression: loss, better: lower}\n"
    (gate,) = read_gates(text, by="ops", now=NOW)
    latency, regression = gate.requirements
    assert (latency.percentile, latency.at_most, latency.requests, latency.below) == (99.0, 1.5, 50, False)
    assert (regression.lower_is_better, regression.within, regression.confidence) == (True, 0.0, 0.95)


BROKEN = [
    ("{metric: f1}", "has no bound"),
    ("{metric: f1, at_least: high}", "is no number"),
    ("{metric: f1, at_least: .inf}", "is no number"),
    ("{metric: f1, at_least: 1, above: 2}", "second bound"),
    ("{metric: f1, at_least: 1, colour: red}", "is no field here"),
    ("{metric: f1, at_least: 1, latency: p95}", "asks for 2 things"),
    ("{latency: p95, below: 200}", "is no latency"),
    ("{latency: p42, below: 1s}", "can't be 'p42'"),
    ("{latency: p95, below: 1s, requests: 0}", "whole number"),
    ("{latency: p95, below: 1s, requests: 99999}", "whole number"),
    ("{regression: f1, confidence: 1}", "is no confidence"),
    ("{regression: f1, within: -1}", "is below 0"),
    ("{cost_per_1000_requests: much}", "no amount"),
    ("{data_age: old}", "is no duration"),
    ("{scan: dirty}", "can't be 'dirty'"),
    ("{approvals: 11}", "whole number"),
    ("{}", "asks for 0 things"),
    ("hello", "is no mapping"),
]


@pytest.mark.parametrize(("requirement", "fault"), BROKEN)
def test_every_fault_is_named_with_its_line(requirement: str, fault: str) -> None:
    with pytest.raises(InvalidInput) as found:
        read_gates(HEAD + f"    - {{metric: ok, at_least: 1}}\n    - {requirement}\n", by="ops", now=NOW)
    assert any(fault in problem.message for problem in found.value.problems), found.value.problems
    assert {problem.line for problem in found.value.problems} == {10}


def test_all_faults_of_all_gates_are_told_at_once_and_none_is_taken() -> None:
    text = (
        HEAD + "    - {metric: a}\n    - {metric: b}\n    - {metric: c, at_least: 1}\n    - {metric: c, at_least: 2}\n"
    )
    with pytest.raises(InvalidInput) as found:
        read_gates(text + "---\nkind: Gate\n", by="ops", now=NOW)
    assert len(found.value.problems) >= 5
