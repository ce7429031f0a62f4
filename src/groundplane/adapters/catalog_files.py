"""The catalogue's files: read, checked row by row against a table of columns, and turned into what the domain uses.

Each file has `table`, `as_of`, `sources` and `rows`; each row names its sources, its date, and the columns that were
estimated. An operator's own files, in the same form, replace rows of the same key or add new ones.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from collections.abc import Mapping, Sequence
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml

from groundplane.adapters import catalog_rows
from groundplane.adapters.catalog_columns import COMMON, TABLES, Column, Table
from groundplane.domain.catalogue.entries import Catalogue
from groundplane.domain.hardware import Hardware
from groundplane.errors import InvalidInput, Problem

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_FILE_BYTES = 16 * 2**20

Row = dict[str, Any]


def load_catalogue(overlay: Path | None = None) -> Catalogue:
    """The shipped catalogue with the operator's rows laid over it. Raises InvalidInput naming file, row and field."""
    tables = {name: load_table(name, overlay) for name in TABLES}
    return Catalogue(
        hardware=_hardware(tables),
        models=tuple(catalog_rows.model(row) for row in tables["models"]),
        token_prices=tuple(catalog_rows.token_price(row) for row in tables["token_prices"]),
        provisioned_units=tuple(catalog_rows.provisioned_units(row) for row in tables["provisioned_units"]),
        provisioned_prices=tuple(catalog_rows.provisioned_price(row) for row in tables["provisioned_prices"]),
        efficiencies={row["id"]: catalog_rows.efficiency(row) for row in tables["efficiency"]},
        links={link.id: link for link in map(catalog_rows.link, tables["network_links"]) if link is not None},
        storage=tuple(catalog_rows.storage_tier(row) for row in tables["storage_tiers"]),
        xids=tuple(catalog_rows.xid(row) for row in tables["xid"]),
        signatures=tuple(catalog_rows.signature(row) for row in tables["signatures"]),
        thresholds=tuple(catalog_rows.threshold(row) for row in tables["thresholds"]),
        purchase_terms=tuple(catalog_rows.purchase_term(row) for row in tables["purchase_terms"]),
    )


def load_table(name: str, overlay: Path | None = None) -> list[Row]:
    """The checked rows of one table: the operator's first, then the shipped ones whose key the operator has not."""
    table = TABLES[name]
    rows = {row_key(table, row): row for row in own_rows(name, overlay)}
    for row in _shipped(name):
        rows.setdefault(row_key(table, row), row)
    return list(rows.values())


def own_rows(name: str, overlay: Path | None) -> list[Row]:
    """The checked rows of the operator's own file of a table; none when there is no such file."""
    own = overlay / f"{name}.yaml" if overlay is not None else None
    return read_table(own.name, read_text(own), TABLES[name]) if own is not None and own.exists() else []


def shipped_text(name: str) -> str:
    """A shipped file as it is: with its sources, which copied rows go on naming."""
    return read_text(importlib.resources.files("groundplane.catalog") / f"{name}.yaml")


def read_table(file: str, text: str, table: Table) -> list[Row]:
    """The rows of one file. Raises InvalidInput with every fault: file, row, column and what is wrong."""
    document = read_document(file, text)
    problems: list[Problem] = []
    if document.get("table") != table.name:
        message = f"is {document.get('table')!r}, expected {table.name!r}"
        problems.append(Problem(field=f"{file}: table", message=message))
    sources = document.get("sources")
    if not isinstance(sources, dict):
        problems.append(Problem(field=f"{file}: sources", message="must map a short name to what, where and as_of"))
        sources = {}
    rows = document.get("rows")
    if not isinstance(rows, list) or not rows:
        problems.append(Problem(field=f"{file}: rows", message="must be a list of rows"))
        rows = []
    checked: list[Row] = []
    seen: dict[str, int] = {}
    for number, raw in enumerate(rows, 1):
        row = _checked(file, number, raw, table, sources, problems)
        first = seen.setdefault(row_key(table, row), number) if row else number
        if first != number:
            where = f"{file}, row {row_key(table, row)}"
            problems.append(Problem(field=where, message=f"is row {number} and row {first}"))
        checked.append(row)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidInput(f"{problems[0]}{more}", problems[0].hint or "correct the file", problems[:100])
    return checked


def _checked(
    file: str, number: int, raw: object, table: Table, sources: Mapping[str, object], problems: list[Problem]
) -> Row:
    """One row with every column read; faults go to `problems`."""
    if not isinstance(raw, dict):
        problems.append(Problem(field=f"{file}, row {number}", message="must be a mapping of columns"))
        return {}
    label = " ".join(str(raw[key]) for key in table.key if raw.get(key) is not None) or str(number)

    def fault(column: str, message: str, hint: str = "") -> None:
        problems.append(Problem(field=f"{file}, row {label}: {column}", message=message, hint=hint))

    columns: dict[str, Column] = {column.name: column for column in (*table.columns, *COMMON)}
    for name in raw:
        if name not in columns:
            fault(str(name), "unknown column", f"known: {', '.join(sorted(columns))}")
    row: Row = {}
    for name, column in columns.items():
        value = raw.get(name)
        if value is None:
            if column.required:
                fault(name, "is missing")
            row[name] = column.default
            continue
        try:
            row[name] = column.read(value)
        except ValueError as error:
            fault(name, str(error))
            row[name] = column.default
    for source in row["sources"] or ():
        if source not in sources:
            fault("sources", f"{source!r} is not in the file's sources")
    for name in row["estimated"] or ():
        if name not in columns and name not in ("all", "price"):
            fault("estimated", f"{name!r} is no column")
    if table.check is not None and not any(problem.field.startswith(f"{file}, row {label}:") for problem in problems):
        wrong = table.check(row)
        if wrong:
            fault(*wrong)
    return row


def read_document(file: str, text: str) -> dict[str, Any]:
    try:
        document = yaml.load(text, Loader=_LOADER)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        message = " ".join(str(error).split())[:200]
        raise InvalidInput(f"{file}: not valid YAML: {message}", "correct the file") from None
    if not isinstance(document, dict):
        raise InvalidInput(f"{file}: must be a mapping with table, sources and rows", "correct the file")
    return document


def read_text(path: Path | Traversable) -> str:
    if isinstance(path, Path) and path.stat().st_size > MAX_FILE_BYTES:
        raise InvalidInput(f"{path}: has {path.stat().st_size:,} bytes; the limit is {MAX_FILE_BYTES:,}", "split it")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path}: is not UTF-8 at byte {error.start}", "save the file as UTF-8") from None


@functools.cache
def _shipped(name: str) -> tuple[Row, ...]:
    """What the package brings does not change while the process runs: reading it once is enough."""
    file = importlib.resources.files("groundplane.catalog") / f"{name}.yaml"
    return tuple(read_table(f"{name}.yaml", read_text(file), TABLES[name]))


def row_key(table: Table, row: Mapping[str, Any]) -> str:
    """What one row is called and no other: `azure Standard_NC24ads_A100_v4 eastus`."""
    named = [str(row.get(column)) for column in table.key]
    return " ".join(named + [str(row[column]) for column in table.apart if row.get(column)])


def _hardware(tables: Mapping[str, Sequence[Row]]) -> Hardware:
    hardware = Hardware(
        accelerators=tuple(catalog_rows.accelerator(row) for row in tables["accelerators"]),
        instance_types=tuple(catalog_rows.instance_type(row) for row in tables["instance_types"]),
    )
    known = {item.id for item in hardware.accelerators}
    for item in hardware.instance_types:
        if item.accelerator and re.match(r"[a-z]+-", item.accelerator) and item.accelerator not in known:
            raise InvalidInput(
                f"instance_types.yaml, row {item.cloud} {item.name}: accelerator: {item.accelerator!r} is not in"
                " accelerators.yaml",
                "add the accelerator, or name it in accelerator_name",
            )
    return hardware
