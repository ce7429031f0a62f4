"""Searches in an order that the store keeps: read in parts from where the last page ended, until a page is full."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from groundplane.domain.tracking.filter import check_limit

Row = TypeVar("Row")
Key = TypeVar("Key")
Found = TypeVar("Found")
_PART_MIN, _PART_MAX = 100, 1_000


async def walk(
    read: Callable[[Key | None, int], Awaitable[list[Row]]],
    sift: Callable[[list[Row]], Awaitable[Sequence[tuple[Key, Found]]]],
    key_of: Callable[[Row], Key],
    after: Key | None,
    limit: int,
) -> tuple[list[Found], Key | None]:
    """Up to `limit` of what matches behind `after`, and the key to go on from; None at the end.

    `read` gives so many rows behind a key, `sift` what of them matches. A deep page costs what the first one does.
    """
    check_limit(limit)
    found: list[tuple[Key, Found]] = []
    size = min(max(limit + 1, _PART_MIN), _PART_MAX)
    while True:
        rows = await read(after, size)
        found += await sift(rows)
        if len(found) > limit:
            return [each for _, each in found[:limit]], found[limit - 1][0]
        if len(rows) < size:
            return [each for _, each in found], None
        after = key_of(rows[-1])
