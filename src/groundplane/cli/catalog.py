"""`ground catalog`: what the catalogue says, and keeping it true with one's own rows and the clouds' price lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, agreed, connect, output_option
from groundplane.cli.render import Table, View
from groundplane.domain.catalogue.changes import PRICE_COLUMNS, CatalogueChange, PriceMove, TableView
from groundplane.domain.catalogue.price_lists import GOOGLE_CARDS, ListPrice, MachineShape, price_format, read_prices
from groundplane.errors import InvalidInput, NotFound
from groundplane.units import format_bytes

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.wire.catalog import CatalogUpdate

LIST_MAX_BYTES = 512 * 2**20
_HEAD_CHARACTERS = 8192
_CELL_MAX = 48
_CHANGES_SHOWN = 60
_COLUMNS_SHOWN = 8


@click.group(cls=Listing, bare="show")
def catalog() -> None:
    """Show the catalogue, and update it from one's own rows or a fresh price list."""


@catalog.command("show")
@click.argument("table", required=False)
@click.option("--filter", "word", default="", metavar="WORD", help="Rows that have this in their name.")
@output_option
def show(table: str | None, word: str, output: str) -> None:
    """Show the catalogue's tables, or the rows of one: the operator's first."""
    with connect() as client:
        if table is None:
            tables = client.catalog()
            render.show(tables, output, lambda: [_tables(tables)])
            return
        view = client.catalog_table(table)
    rows = [row for row in view.rows if word.lower() in _name(view, row).lower()]
    if word and not rows:
        raise NotFound(f"no row of {table} has {word!r} in its name", f"ground catalog show {table} lists all")
    render.show(rows, output, lambda: [_rows(view, rows)])


@catalog.command("update")
@click.argument("files", nargs=-1, required=True, metavar="FILE…")
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
@click.option("--region", "regions", multiple=True, metavar="NAME", help="Take in prices of this region too.")
@click.option("--replace", is_flag=True, help="The operator's table becomes what the file says: other rows go.")
@click.option("--as-of", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The day a list was fetched.")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@click.option("--dry-run", is_flag=True, help="Show what would change, and stop.")
@output_option
def update(
    files: tuple[str, ...],
    yes: bool,
    regions: tuple[str, ...],
    replace: bool,
    as_of: datetime | None,
    reason: str,
    dry_run: bool,
    output: str,
) -> None:
    """Merge YAML rows or price lists into the operator's part of the catalogue, after showing what would change.

    Price lists are read as published: Azure Retail Prices JSON, AWS offer files (JSON, CSV), Google Cloud SKUs (JSON).
    They set the prices of SKUs and regions that the catalogue has; a change of more than 50 % is flagged.
    """
    with connect() as client:
        documents, prices = _read(client, files, as_of.date() if as_of else None)
        given: dict[str, Any] = {"documents": documents, "prices": prices, "regions": regions, "replace": replace}
        shown = client.update_catalog(**given)
        if dry_run or not shown.changes:
            render.show(shown, output, lambda: update_views(shown))
            return
        if not yes:
            render.views(*update_views(shown))
            _confirm(shown)
        done = client.update_catalog(**given, expect=shown.digest, reason=reason)
    render.show(done, output, lambda: [*update_views(done), "written; recon shows it now, plans from the next start"])


def update_views(shown: CatalogUpdate) -> list[View]:
    """The difference for people, what moved furthest first."""
    changes = sorted(shown.changes, key=_furthest, reverse=True)
    rows = [cells for change in changes[:_CHANGES_SHOWN] for cells in _change_rows(change)]
    columns = ("TABLE", "ROW", "CHANGE", "COLUMN", "BEFORE", "AFTER", "PERCENT", "")
    right = frozenset({"BEFORE", "AFTER", "PERCENT"})
    views: list[View] = [Table(columns, rows, right=right, empty="nothing would change")]
    if len(changes) > _CHANGES_SHOWN:
        views.append(f"and {len(changes) - _CHANGES_SHOWN} more: -o json shows all")
    return [*views, *(f"note: {note}" for note in shown.notes), shown.summary]


def _furthest(change: CatalogueChange) -> float:
    return max((abs(move.percent) for move in change.prices if move.percent is not None), default=0.0)


def _change_rows(change: CatalogueChange) -> Iterator[tuple[str, ...]]:
    if not change.prices:
        what = ", ".join(change.columns) or "-"
        yield change.table, change.row, change.kind.value, what, "-", "-", "-", ""
    for move in change.prices:
        yield (change.table, change.row, change.kind.value, move.column, *_move_cells(move))


def _move_cells(move: PriceMove) -> tuple[str, str, str, str]:
    before, after = ("-" if value is None else f"${value:,.6g}" for value in (move.before, move.after))
    percent = "-" if move.percent is None else f"{move.percent:+.1f} %"
    return before, after, percent, "more than 50 %: right unit, right SKU?" if move.flagged else ""


def _confirm(shown: CatalogUpdate) -> None:
    if not agreed("catalog update", "writes", f"Write this ({shown.summary})?"):
        raise click.Abort


# ---------------------------------------------------------------- reading files


def _read(client: Client, files: Sequence[str], as_of: date | None) -> tuple[dict[str, str], list[ListPrice]]:
    """The files as YAML documents by name and prices; of prices, only those of SKUs that the catalogue has."""
    documents: dict[str, str] = {}
    prices: list[ListPrice] = []
    table: TableView | None = None
    for file in files:
        text, day = _file_text(file)
        kind = price_format(file, text[:_HEAD_CHARACTERS])
        if kind is not None:
            table = table or client.catalog_table("instance_types")
            known = {(row["cloud"], row["name"].lower()) for row in table.rows}
            found = read_prices(kind, file, text, shapes=_google_shapes(table), as_of=as_of or day)
            ours = [price for price in found if (price.cloud, price.sku.lower()) in known]
            render.say(f"{file}: {kind}, {len(found):,} machine prices, {len(ours):,} of SKUs in the catalogue")
            prices += ours
        elif file.lower().endswith((".yaml", ".yml")):
            documents[_document_name(documents, file)] = text
        else:
            raise InvalidInput(
                f"{file} is neither YAML rows nor a price list that is known",
                "known: Azure Retail Prices JSON, AWS offer JSON or CSV, Google Cloud SKU JSON, our YAML (.yaml)",
            )
    return documents, prices


def _document_name(taken: dict[str, str], file: str) -> str:
    name = Path(file).name
    return name if name not in taken else file


def _file_text(file: str) -> tuple[str, date]:
    path = Path(file)
    try:
        facts = path.stat()
        if facts.st_size > LIST_MAX_BYTES:
            size, limit = format_bytes(facts.st_size), format_bytes(LIST_MAX_BYTES)
            raise InvalidInput(f"{file} has {size}; the limit is {limit}", "take the price list of one region")
        return path.read_text(encoding="utf-8-sig"), datetime.fromtimestamp(facts.st_mtime, UTC).date()
    except FileNotFoundError:
        raise NotFound(f"no file {file}", "give the path of YAML rows or of a price list") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"{file} is not UTF-8 text (byte {error.start})", "unpack it first, if it is packed"
        ) from None
    except OSError as error:
        raise InvalidInput(f"{file} can't be read: {error.strerror}", "give the path of a file") from None


def _google_shapes(table: TableView) -> list[MachineShape]:
    """Google's machine types of the catalogue that its price list has the parts of."""
    shapes: dict[str, MachineShape] = {}
    for row in table.rows:
        card = row.get("accelerator", "")
        if row["cloud"] != "gcp" or "cpus" not in row or "memory_gib" not in row:
            continue
        if row.get("accelerators") and card not in GOOGLE_CARDS:
            continue
        shapes[row["name"]] = MachineShape(
            sku=row["name"],
            family=row["name"].split("-")[0],
            cpus=row["cpus"],
            memory_gib=row["memory_gib"],
            accelerators=row.get("accelerators", 0),
            accelerator=GOOGLE_CARDS.get(card, ""),
        )
    return list(shapes.values())


# ---------------------------------------------------------------- showing


def _tables(tables: Sequence[TableView]) -> Table:
    rows = [(view.table, str(view.row_count), str(len(view.own)), view.as_of) for view in tables]
    return Table(("TABLE", "ROWS", "OWN", "AS OF"), rows, right=frozenset({"ROWS", "OWN"}))


def _name(view: TableView, row: dict[str, Any]) -> str:
    return " ".join(str(row[column]) for column in view.key if row.get(column) not in (None, ""))


def _rows(view: TableView, rows: Sequence[dict[str, Any]]) -> Table:
    """The key, what fits on a line, and where it is from; -o json has every column."""
    plain = [name for name in _columns(rows) if name not in ("sources", "as_of", "notes", "conflict", "estimated")]
    flat = [name for name in plain if not any(isinstance(row.get(name), list | dict) for row in rows)]
    telling = [*PRICE_COLUMNS.get(view.table, ()), "status", "retired_on"]
    columns = [name for name in flat if name not in telling][:_COLUMNS_SHOWN] + [n for n in telling if n in flat]
    own = set(view.own)
    cells = [
        (
            *(_cell(row.get(name)) for name in columns),
            row["as_of"],
            "operator" if _name(view, row) in own else ",".join(row["sources"]),
        )
        for row in rows
    ]
    heads = tuple(name.upper().replace("_", " ") for name in columns)
    return Table((*heads, "AS OF", "FROM"), cells, title=f"{view.table}, {len(rows)} rows:")


def _columns(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _cell(value: Any) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _CELL_MAX else text[: _CELL_MAX - 1] + "…"
