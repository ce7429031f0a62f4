"""Aliases, their history, rollback, search, differences, tags, archive and cards, on each store."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tests.services.model_house import ADA, EVE, FACTS, House, built, doors_of

from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds
from groundplane.domain.hub import Kind
from groundplane.domain.provenance.model_card import facts_of
from groundplane.domain.registry import ModelAlias, MoveKind, Query, metric_bound
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Refusal
from groundplane.ports import Clock, Store
from groundplane.services.gates import Gates
from groundplane.services.registry import Registry


def registry_of(house: House, clock: Clock) -> Registry:
    ids = RandomIds()
    gates = Gates(store=house.store, clock=clock, ids=ids, models=house.models, engines={}, addenda=house.addenda)
    return Registry(store=house.store, clock=clock, ids=ids, models=house.models, gates=gates, addenda=house.addenda)


@pytest.fixture
async def house(clock: Clock, tmp_path: Path) -> House:
    return await built(MemoryStore(), clock, tmp_path)


@pytest.fixture
async def registry(house: House, clock: Clock) -> Registry:
    for _ in range(3):
        await house.register()
    return registry_of(house, clock)


async def moves(registry: Registry, alias: str = "production") -> list[tuple[str, int | None, int | None, str]]:
    found = await registry.history(ADA, "tiny", alias)
    return [(str(move.kind), move.from_number, move.to_number, move.reason) for move in reversed(found)]


# ---------------------------------------------------------------- aliases


async def test_an_alias_stands_for_a_version_wherever_one_is_named(store: Store, clock: Clock, tmp_path: Path) -> None:
    house = await built(store, clock, tmp_path)
    registry = registry_of(house, clock)
    await house.register()
    await house.register()
    moved = await registry.move(ADA, "tiny", "production", "1", "it is the first")
    assert (moved.kind, moved.from_number, moved.to_number, moved.by) == (MoveKind.SET, None, 1, "ada")
    assert (await house.models.get(ADA, "tiny@production")).number == 1
    assert (await house.models.verify(ADA, "tiny@production")).ref == "tiny@1"
    assert (await house.models.certificate(ADA, "tiny@production"))["key_id"] == house.signer.key_id
    hub, _ = doors_of(house, clock)
    assert (await hub.revision(ADA, Kind.MODELS, "vision", "tiny", "production")).number == 1
    await registry.move(ADA, "tiny", "production", "latest", "better")
    assert (await hub.revision(ADA, Kind.MODELS, "vision", "tiny", "production")).number == 2
    assert [(row.id, row.number) for row in await registry.aliases(ADA, "tiny")] == [("tiny@production", 2)]
    assert (await registry.view(ADA, "tiny@2")).aliases == ("production",)
    assert (await house.actions())[-3:] == ["alias.set", "alias.set", "model.addendum"]


async def test_history_keeps_who_when_and_why_of_every_move(registry: Registry) -> None:
    await registry.move(ADA, "tiny", "production", "1", "first")
    await registry.move(ADA, "tiny", "production", "2", "second")
    await registry.rollback(ADA, "tiny", "production", "second is slow")
    await registry.remove(ADA, "tiny", "production", "not served any more")
    await registry.move(ADA, "tiny", "production", "3", "served again")
    assert await moves(registry) == [
        ("set", None, 1, "first"),
        ("set", 1, 2, "second"),
        ("rollback", 2, 1, "second is slow"),
        ("remove", 1, None, "not served any more"),
        ("set", None, 3, "served again"),
    ]


async def test_rolling_back_twice_goes_back_twice(registry: Registry) -> None:
    for number in ("1", "2", "3"):
        await registry.move(ADA, "tiny", "production", number, "on")
    assert (await registry.rollback(ADA, "tiny", "production", "bad")).to_number == 2
    assert (await registry.rollback(ADA, "tiny", "production", "bad, too")).to_number == 1
    with pytest.raises(Refusal, match="stood for 1 only"):
        await registry.rollback(ADA, "tiny", "production", "and now?")


async def test_moving_to_where_it_stands_moves_nothing(registry: Registry) -> None:
    first = await registry.move(ADA, "tiny", "production", "1", "once")
    assert await registry.move(ADA, "tiny", "production", "1", "twice") == first


async def test_one_of_two_moves_at_once_wins_and_the_other_is_told_or_follows(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    house = await built(store, clock, tmp_path)
    registry = registry_of(house, clock)
    for _ in range(4):
        await house.register()
    await registry.move(ADA, "tiny", "production", "1", "first")
    answers = await asyncio.gather(
        *(registry.move(ADA, "tiny", "production", str(number), "race") for number in (2, 3, 4)),
        return_exceptions=True,
    )
    assert all(not isinstance(answer, BaseException) or isinstance(answer, Conflict) for answer in answers)
    found = await moves(registry)
    # Whatever the order: each move begins where the one before it ended.
    assert all(before[2] == after[1] for before, after in pairwise(found))
    assert (await registry.aliases(ADA, "tiny"))[0].number == found[-1][2]


@pytest.mark.parametrize("alias", ["latest", "main", "3", "v3", "deadbeef", "Production", "a", "a" * 33, "a b", ""])
async def test_what_could_be_a_number_a_branch_or_a_commit_is_no_alias(registry: Registry, alias: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        await registry.move(ADA, "tiny", alias, "1", "why")
    assert refusal.value.hint


async def test_a_move_needs_a_reason_a_version_and_eyes_that_see_it(registry: Registry) -> None:
    with pytest.raises(InvalidInput):
        await registry.move(ADA, "tiny", "production", "1", " ")
    with pytest.raises(NotFound, match="no tiny@9"):
        await registry.move(ADA, "tiny", "production", "9", "why")
    for act in (
        registry.move(EVE, "tiny", "production", "1", "why"),
        registry.rollback(EVE, "tiny", "production", "why"),
        registry.remove(EVE, "tiny", "production", "why"),
        registry.history(EVE, "tiny", "production"),
        registry.aliases(EVE, "tiny"),
        registry.tag(EVE, "tiny@1", {"a": "b"}),
        registry.archive(EVE, "tiny@1", "why"),
        registry.diff(EVE, "tiny@1", "tiny@2"),
        registry.card(EVE, "tiny@1"),
    ):
        with pytest.raises(NotFound):
            await act
    with pytest.raises(NotFound, match="no alias staging"):
        await registry.view(ADA, "tiny@staging")


async def test_no_alias_comes_to_stand_for_a_version_that_was_touched(house: House, registry: Registry) -> None:
    await house.tamper(owner="mallory")
    with pytest.raises(IntegrityFailure, match="tiny@1 is not what was signed"):
        await registry.move(ADA, "tiny", "production", "1", "why")


async def test_an_alias_whose_row_was_changed_beside_the_gates_is_followed_nowhere(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    house = await built(store, clock, tmp_path)
    registry = registry_of(house, clock)
    await house.register()
    await house.register()
    await registry.move(ADA, "tiny", "production", "1", "it is the first")
    async with house.store.transaction() as tx:
        row = await tx.get(ModelAlias, "tiny@production")
        assert row is not None
        await tx.update(replace(row, number=2))
    hub, oci = doors_of(house, clock)
    for door in (
        house.models.get(ADA, "tiny@production"),
        house.models.verify(ADA, "tiny@production"),
        hub.revision(ADA, Kind.MODELS, "vision", "tiny", "production"),
        oci.manifest(ADA, "vision", "tiny", "production"),
    ):
        with pytest.raises(IntegrityFailure, match=r"its row says tiny@2, the audit trail tiny@1"):
            await door
    await registry.remove(ADA, "tiny", "production", "somebody changed its row")
    await registry.move(ADA, "tiny", "production", "1", "as it was")
    assert (await house.models.get(ADA, "tiny@production")).number == 1


# ---------------------------------------------------------------- archive, tags


async def test_an_archived_version_is_hidden_and_no_alias_stands_for_it(registry: Registry) -> None:
    await registry.move(ADA, "tiny", "production", "2", "on")
    with pytest.raises(Refusal, match="tiny@production"):
        await registry.archive(ADA, "tiny@2", "old")
    await registry.archive(ADA, "tiny@1", "old")
    assert {entry.id for entry in await registry.search(ADA, Query())} == {"tiny@3", "tiny@2"}
    assert [entry.id for entry in await registry.search(ADA, Query(archived=True))] == ["tiny@1"]
    with pytest.raises(Refusal, match="archived by ada: old"):
        await registry.move(ADA, "tiny", "production", "1", "back")
    assert not (await registry.unarchive(ADA, "tiny@1")).archived
    await registry.move(ADA, "tiny", "production", "1", "back")
    with pytest.raises(InvalidInput, match="another version tomorrow"):
        await registry.archive(ADA, "tiny@latest", "old")


async def test_tags_are_set_changed_and_taken_away(registry: Registry, house: House) -> None:
    view = await registry.tag(ADA, "tiny@1", {"stage": "trial", "team": "vision"})
    assert view.tags == {"stage": "trial", "team": "vision"}
    assert (await registry.tag(ADA, "tiny@1", {"stage": "done", "team": None})).tags == {"stage": "done"}
    assert (await house.models.verify(ADA, "tiny@1")).ok
    for bad in ({"": "x"}, {"a b": "x"}, {"a": "x\n"}, {"a": "x" * 300}, {f"t{n}": "" for n in range(51)}):
        with pytest.raises(InvalidInput):
            await registry.tag(ADA, "tiny@1", bad)
    assert (await registry.view(ADA, "tiny@1")).tags == {"stage": "done"}


# ---------------------------------------------------------------- search


SEARCHES: list[tuple[Mapping[str, object], list[str]]] = [
    ({}, ["other@1", "tiny@2", "tiny@1"]),
    ({"text": "IN"}, ["tiny@2", "tiny@1"]),
    ({"text": "t%"}, []),
    ({"license": "MIT"}, ["other@1"]),
    ({"project": "vision"}, ["other@1", "tiny@2", "tiny@1"]),
    ({"project": "speech"}, []),
    ({"tags": (("stage", ""),)}, ["tiny@2", "tiny@1"]),
    ({"tags": (("stage", "trial"),)}, ["tiny@1"]),
    ({"tags": (("stage", "trial"), ("team", "a"))}, ["tiny@1"]),
    ({"tags": (("stage", "done"), ("team", "a"))}, []),
    ({"metrics": (("f1", 0.9, None),)}, ["other@1", "tiny@2"]),
    ({"metrics": (("f1", None, 0.9),)}, ["tiny@1"]),
    ({"metrics": (("f1", 0.9, None), ("loss", None, 1.0))}, ["other@1"]),
    ({"metrics": (("loss", None, None),), "text": "oth"}, ["other@1"]),
    ({"metrics": (("f1", 0.95, 0.95),)}, ["tiny@2"]),
    ({"limit": 1}, ["other@1"]),
]


async def test_versions_are_found_by_name_project_licence_tag_and_metric(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    house = await built(store, clock, tmp_path)
    registry = registry_of(house, clock)
    await house.register(facts=replace(FACTS, metrics={"f1": 0.9 - 1e-9}))
    clock.advance(1)  # type: ignore[attr-defined]
    await house.register(facts=replace(FACTS, metrics={"f1": 0.95}))
    clock.advance(1)  # type: ignore[attr-defined]
    await house.register("other", replace(FACTS, license="MIT", metrics={"f1": 0.99, "loss": 0.5}))
    await registry.tag(ADA, "tiny@1", {"stage": "trial", "team": "a"})
    await registry.tag(ADA, "tiny@2", {"stage": "done"})
    for asked, expected in SEARCHES:
        found = await registry.search(ADA, Query(**asked))  # type: ignore[arg-type]
        assert [entry.id for entry in found] == expected, asked
    assert await registry.search(EVE, Query()) == []
    assert await registry.search(EVE, Query(project="vision")) == []


def test_a_metric_bound_is_read_or_refused() -> None:
    assert metric_bound("f1>=0.9") == ("f1", 0.9, None)
    assert metric_bound("loss<=1e-3") == ("loss", None, 0.001)
    assert metric_bound("f1") == ("f1", None, None)
    for bad in ("f1=0.9", "f1>=x", ">=1", "f1>=.", ""):
        with pytest.raises(InvalidInput):
            metric_bound(bad)


# ---------------------------------------------------------------- differences, cards


async def test_a_diff_names_what_changed_and_nothing_else(house: House, registry: Registry) -> None:
    assert (await registry.diff(ADA, "tiny@1", "tiny@2")).differences == ()
    (house.source / "config.json").write_bytes(b'{"layers": 3}')
    (house.source / "new.txt").write_text("new")
    await house.register(facts=replace(FACTS, metrics={"f1": 0.95}, code_commit="3" * 40, cost_microusd=5))
    found = await registry.diff(ADA, "tiny@1", "tiny@4")
    named = {(each.part, each.name) for each in found.differences}
    assert named == {
        ("code", "commit"),
        ("cost", "cost_microusd"),
        ("files", "config.json"),
        ("files", "new.txt"),
        ("metrics", "f1"),
        ("tensors", "new.txt format"),
    }
    assert found.new_bytes == len(b'{"layers": 3}') + 3
    assert ("metrics", "0.93", "0.95") in {(each.part, each.before, each.after) for each in found.differences}


async def test_a_diff_names_the_tensors_that_changed_wherever_they_lie(house: House, registry: Registry) -> None:
    rng = np.random.default_rng(7)
    large = rng.standard_normal((600, 1024), dtype=np.float32)
    kept = {"b.large": large, "c.norm": np.ones(8, np.float32), "d.scalar": np.array(2, np.float32)}
    shutil.rmtree(house.source / "weights")
    one = house.source / "model.safetensors"
    one.write_bytes(save({"a.bias": np.zeros(3, np.float32), **kept, "z.gone": np.ones(1, np.float32)}))
    await house.register()
    one.unlink()
    other = large.copy()
    other[-1, -1] += 1
    (house.source / "model-00001.safetensors").write_bytes(save({"c.norm": kept["c.norm"], "b.large": other}))
    made = {"a.bias": np.zeros(3, np.float16), "d.scalar": kept["d.scalar"], "e.new": np.ones(5, np.int8)}
    (house.source / "model-00002.safetensors").write_bytes(save(made))
    await house.register()
    found = [each for each in (await registry.diff(ADA, "tiny@4", "tiny@5")).differences if each.part == "tensors"]
    named = {each.name: (each.before.split(",")[0], each.after.split(",")[0]) for each in found if "." in each.name[:2]}
    assert named == {
        "a.bias": ("F32 3", "F16 3"),
        "b.large": ("F32 600×1024", "F32 600×1024"),
        "e.new": ("", "I8 5"),
        "z.gone": ("F32 1", ""),
    }
    assert (await registry.diff(ADA, "tiny@4", "tiny@4")).differences == ()


async def test_a_card_says_the_facts_and_reads_back_as_the_same_facts(house: House, registry: Registry) -> None:
    await registry.move(ADA, "tiny", "production", "1", "on")
    card = await registry.card(ADA, "tiny@production")
    assert "stands at `production`" in card
    assert "| f1 | 0.93 |" in card
    facts = facts_of(card)
    for name in ("owner", "license", "code_commit", "training_run", "metrics", "cost_microusd"):
        assert getattr(facts, name) == getattr(FACTS, name), name
    assert [(data.name, data.sha256) for data in facts.data] == [("corpus", "1" * 64)]


async def test_text_in_facts_cannot_break_a_cards_tables(house: House, registry: Registry) -> None:
    await house.register(facts=replace(FACTS, base_model="a | b\n## gone", framework="`x`"))
    card = await registry.card(ADA, "tiny@latest")
    assert "\n## gone" not in card.split("---")[2]
    assert "a \\| b" in card
