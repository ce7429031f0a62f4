"""Orders by what JSON text holds, in the words of the two databases, and where a page of such an order goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from groundplane.adapters.store.tables import TABLES, EnumText, scalar_column
from groundplane.domain.conditions import By

_SQLITE_INFINITY = "9e999"
_NOT_A_NUMBER = "nan"
_NUL, _NEXT = r"\u0000", r"\u0001"
"""PostgreSQL reads no JSON with a NUL in a text: the character after it stands for it."""


def rank_of(by: By, kind: type, others: Mapping[type, sa.FromClause], dialect: str) -> sa.ColumnElement[Any]:
    """What rows are ordered by. `others` are the tables of other kinds, joined by their ids."""
    column: sa.ColumnElement[Any] = (others[by.kind] if by.kind is not None else TABLES[kind]).c[by.column]
    if not by.key:
        scalar_column(by.kind or kind, by.column)
        # A page may go on behind any text, not only behind one of the enumeration.
        return sa.type_coerce(column, sa.Text()) if isinstance(column.type, EnumText) else column
    return _in_sqlite(column, by) if dialect == "sqlite" else _in_postgresql(column, by)


def _in_sqlite(column: sa.ColumnElement[Any], by: By) -> sa.ColumnElement[Any]:
    label = by.key.replace('"', "")  # no key has one, so this finds nothing
    path = f'$."{label}"[0]' if by.is_number else f'$."{label}"'
    found = sa.func.json_extract(sa.cast(column, sa.Text), path, type_=sa.Double() if by.is_number else sa.Text())
    if not by.is_number:
        return found
    texts = {_NOT_A_NUMBER: sa.null(), "inf": sa.text(_SQLITE_INFINITY), "-inf": sa.text(f"-{_SQLITE_INFINITY}")}
    whens = [(sa.cast(found, sa.Text) == text, value) for text, value in texts.items()]
    return sa.case(*whens, else_=sa.cast(found, sa.Double))


def _in_postgresql(column: sa.ColumnElement[Any], by: By) -> sa.ColumnElement[Any]:
    whole = sa.cast(sa.func.replace(sa.cast(column, sa.Text), _NUL, _NEXT), postgresql.JSON)
    if by.is_number:
        text = sa.func.json_extract_path_text(whole, by.key, "0", type_=sa.Text())
        return sa.cast(sa.func.nullif(text, _NOT_A_NUMBER), sa.Double)
    return sa.func.json_extract_path_text(whole, by.key, type_=sa.Text()).collate("C")


def ordering(ranks: Sequence[sa.ColumnElement[Any]], by: Sequence[By]) -> list[sa.ColumnElement[Any]]:
    return [(rank.desc() if each.descending else rank.asc()).nulls_last() for rank, each in zip(ranks, by, strict=True)]


def behind(
    ranks: Sequence[sa.ColumnElement[Any]], by: Sequence[By], id: sa.ColumnElement[Any], place: Sequence[Any]
) -> sa.ColumnElement[bool]:
    """Whether a row stands behind a place: the values of the ranks and the id of a row. None stands behind all."""
    *values, last_id = place
    ways: list[sa.ColumnElement[bool]] = []
    same: list[sa.ColumnElement[bool]] = []
    for rank, each, value in zip(ranks, by, values, strict=True):
        if value is not None:
            further = rank < value if each.descending else rank > value
            ways.append(sa.and_(*same, sa.or_(further, rank.is_(None))))
        same.append(rank.is_(None) if value is None else rank == value)
    return sa.or_(*ways, sa.and_(*same, id > last_id))
