"""The operator's own rows under the home's `catalog/` folder: merged from files and price lists, checked, put in place.

Rows are kept as they were written: units stay those of the table, sources travel with the rows that name them.
"""

from __future__ import annotations

import difflib
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from groundplane.adapters import catalog_files
from groundplane.adapters.atomic_file import replace_durably
from groundplane.adapters.catalog_columns import COMMON, TABLES, Table
from groundplane.domain.catalogue.changes import CatalogueChange, Proposal, TableView, changes
from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.catalogue.price_lists import ListPrice
from groundplane.domain.hardware import Hardware
from groundplane.errors import InvalidInput, NotFound

PRICED_TABLE = "instance_types"
_MICROUSD = 1_000_000
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
Raw = dict[str, Any]
_Stamp = tuple[tuple[str, int, int, int], ...]


@dataclass
class _Draft:
    """An operator's file in the making: raw rows by key, and the sources they name."""

    rows: dict[str, Raw] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    as_of: str = ""


class OperatorCatalog:
    """Implements `ports.CatalogBook` over the shipped catalogue and one folder of the operator's files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaded: tuple[_Stamp, Catalogue] | None = None

    def hardware(self) -> Hardware:
        return self.catalogue().hardware

    def catalogue(self) -> Catalogue:
        stamp = self._stamp()
        if self._loaded is None or self._loaded[0] != stamp:
            self._loaded = (stamp, catalog_files.load_catalogue(self._folder))
        return self._loaded[1]

    def _stamp(self) -> _Stamp:
        """Changes when a file of the operator's does: each with its inode, time and size."""
        stats = [(path.name, path.stat()) for path in sorted(self._folder.glob("*.yaml"))]
        return tuple((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats)

    def tables(self) -> list[TableView]:
        return [self._view(name, with_rows=False) for name in TABLES]

    def table(self, name: str) -> TableView:
        if name not in TABLES:
            near = difflib.get_close_matches(name, TABLES, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(TABLES)}"
            raise NotFound(f"the catalogue has no table {name!r}", hint)
        return self._view(name, with_rows=True)

    def propose(
        self, *, documents: Mapping[str, str], prices: Sequence[ListPrice], regions: Sequence[str], replace: bool
    ) -> Proposal:
        drafts: dict[str, _Draft] = {}
        notes: list[str] = []
        for file, text in documents.items():
            self._merge_document(drafts, file, text, replace=replace)
        if prices:
            draft = self._draft(drafts, PRICED_TABLE)
            notes += _merge_prices(draft, self._effective_raw(draft), prices, regions)
        if not documents and not prices:
            raise InvalidInput("there is nothing to update from", "give YAML rows or a price list")
        files = {name: _text(name, draft) for name, draft in drafts.items() if draft.rows or self._path(name).exists()}
        found = self._checked_changes(files)
        touched = {change.table for change in found}
        files = {name: text for name, text in files.items() if name in touched}
        return Proposal(files=files, changes=tuple(found), notes=tuple(notes), base=self._base())

    def write(self, proposal: Proposal) -> None:
        for name, text in proposal.files.items():
            if text:
                replace_durably(self._path(name), text.encode(), mode=0o644)
            else:
                self._path(name).unlink(missing_ok=True)

    # ---- merging

    def _merge_document(self, drafts: dict[str, _Draft], file: str, text: str, *, replace: bool) -> None:
        raw = catalog_files.read_document(file, text)
        name = str(raw.get("table", ""))
        if name not in TABLES:
            raise InvalidInput(f"{file}: table is {raw.get('table')!r}", f"name one of: {', '.join(TABLES)}")
        if replace and raw.get("rows") == []:
            drafts[name] = _Draft()  # an empty list says: none of mine any more
            return
        rows = catalog_files.read_table(file, text, TABLES[name])
        draft = _Draft() if replace and name not in drafts else self._draft(drafts, name)
        drafts[name] = draft
        draft.as_of = str(raw.get("as_of", "") or draft.as_of)
        renamed = _take_sources(draft, raw["sources"])
        for row, given in zip(rows, raw["rows"], strict=True):
            given = {**given, "sources": [renamed[source] for source in given["sources"]]}
            draft.rows[catalog_files.row_key(TABLES[name], row)] = given

    def _draft(self, drafts: dict[str, _Draft], name: str) -> _Draft:
        """The operator's file of a table as it is now, to be added to."""
        if name not in drafts:
            drafts[name] = _Draft()
            path = self._path(name)
            if path.exists():
                self._merge_document(drafts, path.name, catalog_files.read_text(path), replace=False)
        return drafts[name]

    def _effective_raw(self, draft: _Draft) -> dict[str, tuple[Raw, Mapping[str, Any]]]:
        """Key → raw row with its file's sources, of every instance type: the operator's, then the shipped."""
        shipped = catalog_files.read_document(PRICED_TABLE, catalog_files.shipped_text(PRICED_TABLE))
        known = {key: (row, draft.sources) for key, row in draft.rows.items()}
        for row in shipped["rows"]:
            known.setdefault(catalog_files.row_key(TABLES[PRICED_TABLE], row), (row, shipped["sources"]))
        return known

    # ---- checking

    def _checked_changes(self, files: Mapping[str, str]) -> list[CatalogueChange]:
        """Loads the whole catalogue as it would be, so that rows that refer to each other are checked too."""
        with tempfile.TemporaryDirectory(prefix="ground-catalog-") as place:
            ahead = Path(place)
            for path in sorted(self._folder.glob("*.yaml")):
                shutil.copyfile(path, ahead / path.name)
            for name, text in files.items():
                (ahead / f"{name}.yaml").unlink(missing_ok=True)
                if text:
                    (ahead / f"{name}.yaml").write_text(text, encoding="utf-8")
            catalog_files.load_catalogue(ahead)
            found = []
            for name in files:
                before, after = (_by_key(name, folder) for folder in (self._folder, ahead))
                found += changes(name, before, after)
        return found

    def _base(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(self._folder.glob("*.yaml")):
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        return digest.hexdigest()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.yaml"

    def _view(self, name: str, *, with_rows: bool) -> TableView:
        table, rows = TABLES[name], catalog_files.load_table(name, self._folder)
        own = catalog_files.own_rows(name, self._folder)
        days = sorted(row["as_of"] for row in rows if row["as_of"] != "undated")
        return TableView(
            table=name,
            key=(*table.key, *table.apart),
            row_count=len(rows),
            as_of="" if not days else days[0] if days[0] == days[-1] else f"{days[0]} to {days[-1]}",
            own=tuple(catalog_files.row_key(table, row) for row in own),
            rows=tuple(_plain(row) for row in rows) if with_rows else (),
        )


def _by_key(name: str, folder: Path) -> dict[str, Raw]:
    table = TABLES[name]
    return {catalog_files.row_key(table, row): row for row in catalog_files.load_table(name, folder)}


def _take_sources(draft: _Draft, sources: Mapping[str, Any]) -> dict[str, str]:
    """Adds sources to a draft; a short name that already means something else gets a number. Old name → new name."""
    renamed = {}
    for name, meaning in sources.items():
        taken, number = name, 2
        while draft.sources.get(taken, meaning) != meaning:
            taken, number = f"{name}{number}", number + 1
        draft.sources[taken] = meaning
        renamed[name] = taken
    return renamed


def _merge_prices(
    draft: _Draft,
    known: Mapping[str, tuple[Raw, Mapping[str, Any]]],
    prices: Sequence[ListPrice],
    regions: Sequence[str],
) -> list[str]:
    """New prices onto the rows that have their SKU and region; other regions only when asked for by name."""
    table = TABLES[PRICED_TABLE]
    shapes: dict[tuple[str, str], list[tuple[Raw, Mapping[str, Any]]]] = {}
    for row, sources in known.values():
        shapes.setdefault((row["cloud"], row["name"].lower()), []).append((row, sources))
    free: list[str] = []
    elsewhere = strange = 0
    for price in prices:
        rows = shapes.get((price.cloud, price.sku.lower()))
        if rows is None:
            strange += 1
            continue
        if price.price_microusd_per_hour == 0:
            free.append(f"{price.sku} in {price.region}")
            continue
        here = next((pair for pair in rows if pair[0].get("region", "") == price.region), None)
        if here is None and price.region not in regions:
            elsewhere += 1
            continue
        row, sources = here or rows[0]
        made = _repriced(draft, row, sources, price)
        draft.rows[catalog_files.row_key(table, made)] = made
    notes = []
    if free:
        notes.append(f"a price of $0 was left out ({free[0]}, {len(free)} in all): the rows keep the price they have")
    if elsewhere:
        notes.append(f"{elsewhere} prices are of regions that the catalogue has not: --region NAME takes them in")
    if strange:
        notes.append(f"{strange} prices are of SKUs that the catalogue has not: add them as YAML rows first")
    return notes


def _repriced(draft: _Draft, row: Raw, sources: Mapping[str, Any], price: ListPrice) -> Raw:
    """A row with a list's price in place of its own, naming the list as a source."""
    day = price.as_of.isoformat()
    elsewhere = row.get("region", "") != price.region
    made = {**row, "region": price.region, "price_as_of": day, "as_of": day}
    if elsewhere:  # the prices of the region whose shape this is are not this region's
        for column in ("usd_per_hour", "spot_usd_per_hour", "spot_as_of"):
            made.pop(column, None)
    if price.price_microusd_per_hour is not None:
        made["usd_per_hour"] = price.price_microusd_per_hour / _MICROUSD
    if price.spot_microusd_per_hour:
        made |= {"spot_usd_per_hour": price.spot_microusd_per_hour / _MICROUSD, "spot_as_of": day}
    listed, spot = made.get("usd_per_hour"), made.get("spot_usd_per_hour")
    if listed is not None and spot is not None and spot > listed:
        made.pop("spot_usd_per_hour")  # an old spot price above the new list price says nothing any more
    if price.composed:
        made["estimated"] = sorted({*row.get("estimated", ()), "price"})
    short = {"azure": "azure-retail", "aws": "aws-offer", "gcp": "gcp-billing"}[price.cloud]
    meaning = {"what": f"{price.cloud} price list", "where": "ground catalog update", "as_of": day}
    named = {source: sources[source] for source in row["sources"]}
    (kept, new) = _take_sources(draft, named), _take_sources(draft, {short: meaning})
    made["sources"] = list(dict.fromkeys([*kept.values(), new[short]]))
    return made


def _text(name: str, draft: _Draft) -> str:
    """The file's YAML, one row a line; empty for no rows, which takes the file away."""
    if not draft.rows:
        return ""
    used = {source for row in draft.rows.values() for source in row["sources"]}
    head = {
        "table": name,
        "as_of": draft.as_of or max(str(row["as_of"]) for row in draft.rows.values()),
        "sources": {source: meaning for source, meaning in draft.sources.items() if source in used},
    }
    rows = (_yaml(_ordered(TABLES[name], row), flow=True).strip() for row in draft.rows.values())
    return "\n".join([_yaml(head, flow=False).rstrip(), "rows:", *(f"  - {row}" for row in rows)]) + "\n"


def _ordered(table: Table, row: Raw) -> Raw:
    columns = [column.name for column in (*table.columns, *COMMON)]
    return {name: row[name] for name in columns if name in row}


def _yaml(value: Any, *, flow: bool) -> str:
    return str(
        yaml.dump(value, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, default_flow_style=flow, width=10**6)
    )


def _plain(row: Mapping[str, Any]) -> Raw:
    """A row as JSON takes it: days as text, lists for tuples, columns without a value left out."""
    return {
        name: value.isoformat() if isinstance(value, date) else list(value) if isinstance(value, tuple) else value
        for name, value in row.items()
        if value not in (None, "", (), {})
    }
