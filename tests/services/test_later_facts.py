"""Later facts of versions in services: chained, verified, required; what scans and licences say when they come in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.services.model_house import ADA, EVE, FACTS, House, built

from groundplane.adapters.model_files import FolderModelFiles
from groundplane.adapters.system import RandomIds, SystemClock
from groundplane.domain.canonical import rows_of
from groundplane.domain.gate import Status
from groundplane.domain.provenance.addendum import AddendumKind
from groundplane.domain.provenance.envelope import open_envelope
from groundplane.domain.provenance.required_facts import Stage
from groundplane.errors import IntegrityFailure, InvalidInput, NotFound, Refusal
from groundplane.identity import Actor, Role
from groundplane.ports import Store
from groundplane.services.gates import Gates, Scores
from groundplane.services.registry import Registry
from groundplane.services.required_facts import FactRules
from groundplane.services.scans import Scans

OPS = Actor(name="lea", role=Role.OPERATOR)
EVALUATION = {"name": "nightly", "how": "measured", "metrics": {"f1": 0.93}}
GATE = """apiVersion: groundplane/v1
kind: Gate
metadata: {name: production, project: vision}
spec:
  aliases: [production]
  requirements:
"""


@pytest.fixture
async def house(store: Store, tmp_path: Path) -> AsyncIterator[House]:
    """On each of the three stores."""
    yield await built(store, SystemClock(), tmp_path)


def registry(house: House) -> tuple[Gates, Registry]:
    parts: dict[str, Any] = {
        "store": house.store, "clock": SystemClock(), "ids": RandomIds(), "models": house.models,
        "addenda": house.addenda,
    }  # fmt: skip
    gates = Gates(**parts, engines={})
    return gates, Registry(**parts, gates=gates)


async def test_later_facts_are_chained_one_after_the_other_whoever_adds_them_at_once(house: House) -> None:
    version = await house.register()
    await asyncio.gather(*(house.addenda.add(ADA, "tiny@1", AddendumKind.EVALUATION, EVALUATION) for _ in range(5)))
    await house.addenda.state(ADA, "tiny@1", AddendumKind.SLA, {"sla": "p95 below 200 ms"})
    found = await house.addenda.addenda(ADA, "tiny@1")
    assert [each.sequence for each in found] == [1, 2, 3, 4, 5, 6]
    assert [each.previous_sha256 for each in found] == [version.certificate_sha256, *(f.sha256 for f in found[:-1])]
    assert await house.models.get(ADA, "tiny@1") == version
    checked = await house.verify()
    assert (checked.ok, checked.addenda) == (True, 6)
    assert (await house.actions()).count("model.addendum") == 6
    told = await house.models.certificate(ADA, "tiny@1")
    assert len(told["addenda"]) == 6  # type: ignore[arg-type]


async def test_what_a_person_says_is_stated_and_never_a_waiver(house: House) -> None:
    await house.register()
    made = await house.addenda.state(ADA, "tiny@1", AddendumKind.EVALUATION, EVALUATION)
    assert made.facts["how"] == "stated"
    with pytest.raises(InvalidInput, match="can't be stated"):
        await house.addenda.state(ADA, "tiny@1", AddendumKind.WAIVER, {})
    with pytest.raises(NotFound):
        await house.addenda.state(EVE, "tiny@1", AddendumKind.SLA, {"sla": "x"})
    with pytest.raises(InvalidInput, match="can't go back"):
        await house.addenda.state(ADA, "tiny@1", AddendumKind.ROLLBACK_TARGET, {"target": "tiny@1"})


async def test_an_addendum_that_is_taken_away_or_changed_is_missed(house: House) -> None:
    await house.register()
    first = await house.addenda.add(ADA, "tiny@1", AddendumKind.EVALUATION, EVALUATION)
    async with house.store.transaction() as tx:
        # As somebody with the database in hand would: a row that claims more than was signed.
        forged = replace(first, id="tiny@1#2", sequence=2, facts={**EVALUATION, "metrics": {"f1": 0.99}})
        await tx.insert(forged)
    checked = await house.verify()
    assert not checked.ok and "does not follow" in str(checked.problems[0])
    with pytest.raises(IntegrityFailure):
        await house.models.certificate(ADA, "tiny@1")


async def test_moves_and_waivers_and_evidence_become_known_of_the_version(house: House) -> None:
    gates, names = registry(house)
    await gates.define(OPS, GATE + "    - {metric: accuracy, at_least: 0.9}\n")
    await house.register()
    await gates.state(ADA, "tiny@1", Scores(metric="accuracy", successes=95, trials=100))
    await names.move(ADA, "tiny", "production", "1", "good")
    await house.register()
    until = SystemClock().now() + timedelta(days=1)
    await gates.waive(
        OPS, gate_id="vision/production", requirement="accuracy", owner="lea", reason="late", expires_at=until
    )
    await names.move(ADA, "tiny", "production", "2", "waived")
    first = [(str(each.kind), each.facts) for each in await house.addenda.addenda(ADA, "tiny@1")]
    second = [(str(each.kind), each.facts) for each in await house.addenda.addenda(ADA, "tiny@2")]
    assert [(kind, facts["metrics"]) for kind, facts in first] == [("evaluation", {"accuracy": 0.95})]
    assert [kind for kind, _ in second] == ["rollback-target", "waiver"]
    assert (second[0][1]["target"], second[1][1]["reason"]) == ("tiny@1", "late")
    await names.rollback(ADA, "tiny", "production", "bad")
    assert len(await house.addenda.addenda(ADA, "tiny@1")) == 1  # what a rollback left is no place to go back to
    card = await names.card(ADA, "tiny@2")
    assert "goes back to tiny@1 at production" in card and "waived by lea" in card


# ---------------------------------------------------------------- required facts


async def test_a_project_requires_facts_at_registration_deployment_and_load(house: House, tmp_path: Path) -> None:
    rules = FactRules(store=house.store, clock=SystemClock(), models=house.models)
    await house.register()
    await rules.require(OPS, "vision", ["licence, not dirty, evaluations>=1"], "audit")
    with pytest.raises(Refusal) as refused:
        await house.register()
    (only,) = refused.value.refusals
    assert (only.need, "commit every change" in only.hint) == ("not dirty", True)
    assert len(await house.models.versions(ADA, "tiny")) == 1  # nothing was written

    clean = await house.register(facts=replace(FACTS, code_dirty=False))
    with pytest.raises(Refusal, match="evaluations>=1"):
        await house.models.demand_facts(clean, Stage.DEPLOY)
    with pytest.raises(Refusal, match="evaluations>=1"):
        await house.models.materialise(clean.id, tmp_path / "engine")
    assert not (tmp_path / "engine").exists()
    await house.addenda.add(ADA, clean.id, AddendumKind.EVALUATION, EVALUATION)
    await house.models.demand_facts(clean, Stage.DEPLOY)
    await house.models.materialise(clean.id, tmp_path / "engine")

    with pytest.raises(Refusal, match="not dirty"):  # one of before the rule is asked as well
        await house.models.materialise("tiny@1", tmp_path / "old")
    assert [each.fact for each in await rules.missing(ADA, "tiny@1", Stage.DEPLOY)] == ["not dirty", "evaluations>=1"]
    await rules.release(OPS, "vision", "done")
    await house.models.materialise("tiny@1", tmp_path / "old")
    assert [each for each in await house.actions() if each.startswith("facts.")] == ["facts.require", "facts.release"]


async def test_rules_are_changed_with_a_reason_and_seen_by_their_project(house: House) -> None:
    rules = FactRules(store=house.store, clock=SystemClock(), models=house.models)
    for words, reason in ((["licence"], ""), (["colour"], "x"), ([], "x")):
        with pytest.raises(InvalidInput):
            await rules.require(OPS, "vision", words, reason)
    with pytest.raises(NotFound):
        await rules.require(OPS, "nowhere", ["licence"], "x")
    await rules.require(OPS, "vision", ["licence"], "x")
    again = await rules.require(OPS, "vision", ["data", "licence"], "y")
    assert again.required == ("data", "licence")
    assert [each.id for each in await rules.rules(ADA)] == ["vision"] and await rules.rules(EVE) == []


async def test_facts_of_a_broken_chain_are_no_facts(house: House) -> None:
    rules = FactRules(store=house.store, clock=SystemClock(), models=house.models)
    version = await house.register()
    made = await house.addenda.add(ADA, "tiny@1", AddendumKind.EVALUATION, EVALUATION)
    await rules.require(OPS, "vision", ["evaluations"], "x")
    await house.models.demand_facts(version, Stage.LOAD)
    async with house.store.transaction() as tx:
        await tx.insert(replace(made, id="tiny@1#2", sequence=2))
    with pytest.raises(IntegrityFailure):
        await house.models.demand_facts(version, Stage.LOAD)


# ---------------------------------------------------------------- scans and licences


async def test_a_gate_takes_a_scan_by_the_rules_of_now_and_no_older_one(
    house: House, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gates, _ = registry(house)
    await gates.define(OPS, GATE + "    - {scan: clean}\n")
    await house.register()
    (verdict,) = (await gates.check(ADA, "tiny@1", "production")).verdicts
    assert verdict.status is Status.MET and verdict.evidence_id == "tiny@1#scan"
    monkeypatch.setattr(house.models, "scan_rules", lambda: "e" * 64)
    (verdict,) = (await gates.check(ADA, "tiny@1", "production")).verdicts
    assert verdict.status is Status.NO_EVIDENCE and "ground models scan tiny@1" in verdict.hint
    scans = Scans(
        store=house.store, clock=SystemClock(), ids=RandomIds(), models=house.models, blobs=house.blobs,
        files=FolderModelFiles(), scratch=tmp_path / "scratch",
    )  # fmt: skip
    await scans.scan(ADA, "tiny@1")
    (verdict,) = (await gates.check(ADA, "tiny@1", "production")).verdicts
    assert verdict.status is Status.MET
    assert [each.name for each in await scans.scans(ADA, ref="tiny@1")] == ["clean", "clean"]
    assert await scans.scans(EVE) == []


async def test_the_licence_of_what_it_is_made_from_is_judged_when_it_comes_in(house: House) -> None:
    await house.register("base", replace(FACTS, license="cc-by-nc-4.0"))
    with pytest.raises(Refusal, match="cc-by-nc-4.0 forbids commercial use"):
        await house.register(facts=replace(FACTS, base_model="base@1", license="MIT"))
    await house.register(facts=replace(FACTS, base_model="base@1", license="cc-by-nc-4.0"))


async def test_a_base_written_like_a_version_that_is_not_here_is_stated_as_unknown(house: House) -> None:
    await house.register("base")
    version = await house.register(facts=replace(FACTS, base_model="base@1, base@9, vision/bsae@1, org/elsewhere"))
    said = rows_of(open_envelope(version.certificate).predicate, "unknown")
    assert {row["fact"]: row["why"] for row in said if str(row["fact"]).startswith("base_model")} == {
        f"base_model.{name}.license": f"{name} is no version registered here, so its licence was not compared"
        for name in ("base@9", "vision/bsae@1")
    }


async def test_weights_beyond_the_memory_of_their_target_are_refused(house: House) -> None:
    with pytest.raises(Refusal, match="memory"):
        await house.register(facts=replace(FACTS, target_memory_bytes=1000))
    version = await house.register(facts=replace(FACTS, target_memory_bytes=10_000))
    said = open_envelope(version.certificate).statement["predicate"]
    assert isinstance(said, dict) and said["target_memory_bytes"] == 10_000
    with pytest.raises(NotFound):
        await house.register(facts=replace(FACTS, rollback_target="tiny@9"))
