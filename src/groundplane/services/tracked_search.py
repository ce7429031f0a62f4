"""The registry searched as MLflow clients search it: names and versions by what was said of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.model import ModelVersion
from groundplane.domain.registry import LabelKind, ModelAlias, RegistryEntry, VersionLabel
from groundplane.domain.tracking.filter import (
    Condition,
    PageKey,
    key_token,
    matches,
    ordered,
    page,
    parse_filter,
    parse_order,
    token_key,
)
from groundplane.domain.tracking.filter import Facts as Shape
from groundplane.domain.tracking.records import ModelName, VersionOrigin
from groundplane.domain.tracking.search import MODEL_NAMES, MODEL_VERSIONS, millis
from groundplane.identity import CROSS_PROJECT, Actor
from groundplane.ports import Store, Tx
from groundplane.services.registry import MAX_LISTED
from groundplane.services.tracked_models import NameShown, TrackedModels, VersionShown, no_origin
from groundplane.services.tracking import Search
from groundplane.services.walking import walk

_PROMPT_TAG = "mlflow.prompt.is_prompt"
"""Clients that look for models ask for those of which this is not 'true', and mean those without it too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listed:
    """What a search looks at of a version: its certificate is a hundred times as long."""

    entry: RegistryEntry
    origin: VersionOrigin
    tags: Mapping[str, str]


class TrackedSearch:
    """What of the registry fits a filter. Nothing is left out of one: what can't be asked is refused."""

    def __init__(self, *, store: Store, models: TrackedModels) -> None:
        self._store, self._models = store, models

    async def names(self, actor: Actor, search: Search) -> tuple[list[NameShown], str]:
        """Registered models by name and tags, by name unless ordered otherwise, and the next page's token."""
        conditions, orders = parse_filter(search.filter, MODEL_NAMES), parse_order(search.order, MODEL_NAMES)
        one = _equal(conditions, "name")
        async with self._store.transaction() as tx:
            rows = await tx.find(ModelName, None if one is None else {"id": one})
            where = {} if one is None else {"name": one}
            named = await tx.total(RegistryEntry, "*", by=("name", "project"), where=where)
            said = {row.id: row for row in rows if actor.sees(row.project)}
            implied = {str(name) for name, project in named if actor.sees(str(project))} - said.keys()
            # Times are seldom asked for, and those of names that nobody described are their versions'.
            times = await _times(tx, implied) if any(each.name != "name" for each in orders) else {}
        shapes = {name: _name_shape(name, said.get(name), times.get(name)) for name in sorted({*said, *implied})}
        found = [name for name, shape in shapes.items() if matches(conditions, shape)]
        question = (search.filter, tuple(search.order))
        names, token = page(ordered(found, orders, shapes.__getitem__), search.token, search.limit, question)
        return [await self._models.name(actor, name) for name in names], token

    async def versions(self, actor: Actor, search: Search) -> tuple[list[VersionShown], str]:
        """By name, run, source and tags; newest first unless ordered otherwise."""
        conditions, orders = parse_filter(search.filter, MODEL_VERSIONS), parse_order(search.order, MODEL_VERSIONS)
        where: dict[str, object] = {} if actor.role in CROSS_PROJECT else {"project": actor.project}
        if (name := _equal(conditions, "name")) is not None:
            where["name"] = name
        question = (search.filter, tuple(search.order))
        async with self._store.transaction() as tx:
            if (run_id := _equal(conditions, "run_id")) is not None:
                of_run = await tx.find(VersionOrigin, {"run_id": run_id})
                where["id"] = tuple(each.id for each in of_run)

            async def sift(entries: list[RegistryEntry]) -> list[tuple[PageKey, _Listed]]:
                listed = [(_key_of(each.entry), each) for each in await _listed(tx, entries)]
                return [(key, each) for key, each in listed if matches(conditions, _version_shape(each))]

            async def read(after: PageKey | None, size: int) -> list[RegistryEntry]:
                behind = (datetime.fromisoformat(str(after[0])), after[1]) if after else None
                both: list[RegistryEntry] = []
                # Each by itself, as the index has them.
                for archived in (False, True):
                    asked = {**where, "archived": archived}
                    both += await tx.find(RegistryEntry, asked, order="-created_at", limit=size, after=behind)
                both.sort(key=lambda entry: entry.id)
                return sorted(both, key=lambda entry: entry.created_at, reverse=True)[:size]

            if not orders:
                after = token_key(search.token, question, str)
                found, last = await walk(read, sift, _key_of, after, search.limit)
                return await _shown(tx, found), key_token(last, question)
            entries = await tx.find(RegistryEntry, where, order="-created_at")
            parts = [await sift(entries[start : start + MAX_LISTED]) for start in range(0, len(entries), MAX_LISTED)]
            every = [each for part in parts for _, each in part]
            found, token = page(ordered(every, orders, _version_shape), search.token, search.limit, question)
            return await _shown(tx, found), token


def _equal(conditions: Sequence[Condition], name: str) -> str | None:
    """The text that an attribute must equal, when one condition says so."""
    return next(
        (
            str(each.value)
            for each in conditions
            if each.kind == "attribute" and each.name == name and each.operator == "="
        ),
        None,
    )


def _name_shape(name: str, said: ModelName | None, times: tuple[datetime, datetime] | None) -> Shape:
    shape: dict[str, object] = {"name": name}
    if said is not None:
        times = said.created_at, said.updated_at
    if times is not None:
        created, updated = times
        shape |= dict.fromkeys(("timestamp", "last_updated_timestamp"), millis(updated))
        shape["creation_timestamp"] = millis(created)
    tags = said.tags if said is not None else {}
    return {"tag": {_PROMPT_TAG: "false", **tags}, "attribute": shape}


async def _times(tx: Tx, names: Collection[str]) -> dict[str, tuple[datetime, datetime]]:
    """When a name's first and its last version were made."""
    found: dict[str, tuple[datetime, datetime]] = {}
    for entry in await tx.find(RegistryEntry, order="created_at"):
        if entry.name in names:
            first, _ = found.get(entry.name, (entry.created_at, entry.created_at))
            found[entry.name] = first, entry.created_at
    return found


async def _listed(tx: Tx, entries: Sequence[RegistryEntry]) -> list[_Listed]:
    """With what a filter may ask: two statements for all of them."""
    ids = tuple(entry.id for entry in entries)
    origins = {row.id: row for row in await tx.find(VersionOrigin, {"id": ids})}
    tags: dict[str, dict[str, str]] = {}
    for label in await tx.find(VersionLabel, {"version_id": ids, "kind": LabelKind.TAG}):
        tags.setdefault(label.version_id, {})[label.name] = label.text
    return [
        _Listed(entry=each, origin=origins.get(each.id) or no_origin(each), tags=tags.get(each.id, {}))
        for each in entries
    ]


async def _shown(tx: Tx, found: Sequence[_Listed]) -> list[VersionShown]:
    versions: dict[str, ModelVersion] = {}
    standing: dict[str, list[str]] = {}
    for start in range(0, len(found), MAX_LISTED):
        part = [each.entry for each in found[start : start + MAX_LISTED]]
        versions |= {row.id: row for row in await tx.find(ModelVersion, {"id": tuple(each.id for each in part)})}
        names = tuple({each.name for each in part})
        for row in await tx.find(ModelAlias, {"name": names}, order="alias"):
            kept = standing.setdefault(f"{row.name}@{row.number}", [])
            if row.alias not in kept:
                kept.append(row.alias)
    return [
        VersionShown(
            version=versions[each.entry.id],
            origin=each.origin,
            aliases=tuple(standing.get(each.entry.id, ())),
            tags=each.tags,
            archived=each.entry.archived,
        )
        for each in found
    ]


def _key_of(entry: RegistryEntry) -> PageKey:
    return entry.created_at.isoformat(), entry.id


def _version_shape(found: _Listed) -> Shape:
    entry, origin = found.entry, found.origin
    return {
        "tag": found.tags,
        "attribute": {
            "name": entry.name,
            "version_number": entry.number,
            "run_id": origin.run_id,
            "source_path": origin.source,
            "creation_timestamp": millis(entry.created_at),
            "last_updated_timestamp": millis(origin.updated_at),
        },
    }
