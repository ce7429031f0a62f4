"""What crosses the HTTP door to update the catalogue: rows and prices to merge, and what that changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from groundplane.domain.catalogue.changes import CatalogueChange
from groundplane.domain.catalogue.price_lists import ListPrice
from groundplane.wire.bounds import STRICT, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogDocument:
    """An operator's file of rows: its name, for what is said about it, and its YAML."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRequest:
    """Rows and prices to merge. `regions` takes in prices of regions the catalogue has not yet. `replace`: the
    operator's table becomes what the file says. `expect` is the digest of the update that was shown; empty only shows.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    documents: tuple[CatalogDocument, ...] = ()
    prices: tuple[ListPrice, ...] = ()
    regions: tuple[str, ...] = ()
    replace: bool = False
    expect: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(reason=self.reason, **{f"documents.{n}.name": d.name for n, d in enumerate(self.documents)})


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogUpdate:
    """What an update would change, or did when `applied`. `digest` names exactly this update."""

    changes: tuple[CatalogueChange, ...]
    notes: tuple[str, ...]
    summary: str
    digest: str
    applied: bool
