"""What an update would do to the catalogue: rows added, changed and removed, and prices that moved too far to trust."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

FLAGGED_PERCENT = 50.0
"""A price that moves further than this is more often a wrong unit or a wrong SKU than a new price."""

PRICE_COLUMNS = {
    "instance_types": ("usd_per_hour", "spot_usd_per_hour"),
    "token_prices": ("prompt", "completion"),
    "provisioned_prices": ("usd_per_unit_hour",),
    "storage_tiers": ("usd_per_gib_month", "usd_per_gb_month"),
    "network_links": ("rate",),
}
"""Table → the columns that are money, in dollars per the table's unit."""


class ChangeKind(StrEnum):
    ADDED = "added"
    CHANGED = "changed"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceMove:
    """One money column of a changed row, in dollars as the table writes it. `percent` is None from or to no price."""

    column: str
    before: float | None
    after: float | None
    percent: float | None
    flagged: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueChange:
    """One row's change. `columns` names what differs, prices included."""

    table: str
    row: str
    kind: ChangeKind
    columns: tuple[str, ...] = ()
    prices: tuple[PriceMove, ...] = ()

    @property
    def flagged(self) -> bool:
        return any(move.flagged for move in self.prices)


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The operator's files as they would be after an update: `files` maps table → whole YAML text.

    `base` is the digest of the files that it was worked out from, so that a second update in between shows.
    """

    files: dict[str, str]
    changes: tuple[CatalogueChange, ...]
    notes: tuple[str, ...]
    base: str

    @property
    def digest(self) -> str:
        """SHA-256 hex over what would be written and what it is based on: what was shown is what is applied."""
        text = json.dumps([self.base, self.files], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class TableView:
    """One table as it stands: `own` names the rows that are the operator's. `rows` is empty in a list of tables."""

    table: str
    key: tuple[str, ...]
    row_count: int
    as_of: str
    own: tuple[str, ...]
    rows: tuple[dict[str, Any], ...] = ()


def changes(
    table: str, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> list[CatalogueChange]:
    """Rows by key, before and after → what changed, removed ones last. Sources and notes alone are no change."""
    found = []
    for key, row in after.items():
        if key not in before:
            prices = _moves(table, {}, row)
            found.append(CatalogueChange(table=table, row=key, kind=ChangeKind.ADDED, prices=prices))
            continue
        differing = tuple(name for name in row if name not in _ASIDE and row[name] != before[key].get(name))
        if differing:
            moves = _moves(table, before[key], row)
            found.append(
                CatalogueChange(table=table, row=key, kind=ChangeKind.CHANGED, columns=differing, prices=moves)
            )
    gone = (key for key in before if key not in after)
    return found + [CatalogueChange(table=table, row=key, kind=ChangeKind.REMOVED) for key in gone]


_ASIDE = {"sources", "notes", "conflict", "estimated"}


def _moves(table: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[PriceMove, ...]:
    moves = []
    for column in PRICE_COLUMNS.get(table, ()):
        old, new = before.get(column), after.get(column)
        if old == new:
            continue
        percent = (new - old) / old * 100 if old and new is not None else None
        flagged = percent is not None and abs(percent) > FLAGGED_PERCENT
        moves.append(PriceMove(column=column, before=old, after=new, percent=percent, flagged=flagged))
    return tuple(moves)


def summary(found: Sequence[CatalogueChange]) -> str:
    """`2 added, 31 changed (1 by more than 50 %), 0 removed`."""
    counts = {kind: sum(change.kind is kind for change in found) for kind in ChangeKind}
    flagged = sum(change.flagged for change in found)
    far = f" ({flagged} by more than {FLAGGED_PERCENT:g} %)" if flagged else ""
    added, changed, removed = (counts[kind] for kind in (ChangeKind.ADDED, ChangeKind.CHANGED, ChangeKind.REMOVED))
    return f"{added} added, {changed} changed{far}, {removed} removed"
