"""Records of the prediction log as Parquet, and back: a column a field, always of the same type.

What callers shape (parameters, messages, answers) is a column of JSON text. Needs the extra `parquet`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from groundplane.domain.serving.prediction import Prediction

_BATCH = 2000
_JSON = {"dict[str, Any]", "list[dict[str, Any]]", "dict[str, int]", "list[str]"}
_KINDS = {name: str(kind) for name, kind in Prediction.__annotations__.items()}
_TEXTS = frozenset(name for name, kind in _KINDS.items() if kind in _JSON)


def is_installed() -> bool:
    """Whether the extra is there."""
    return importlib.util.find_spec("pyarrow") is not None


def write(file: BinaryIO, records: Iterable[dict[str, Any]]) -> int:
    """Writes the records, a few thousand in memory at a time; how many there were."""
    import pyarrow as pa  # noqa: PLC0415 - an extra
    import pyarrow.parquet as pq  # noqa: PLC0415

    types = {"str": pa.string(), "int": pa.int64(), "bool": pa.bool_(), "float": pa.float64()}
    schema = pa.schema([(name, types.get(kind.removesuffix(" | None"), pa.string())) for name, kind in _KINDS.items()])
    count = 0
    rows: list[dict[str, Any]] = []
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for record in records:
            rows.append(_row(record))
            count += 1
            if len(rows) == _BATCH:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows or not count:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return count


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records as they were written. ValueError for a file that is none of ours."""
    import pyarrow.parquet as pq  # noqa: PLC0415 - an extra

    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_BATCH):
            for row in batch.to_pylist():
                yield {name: msgspec.json.decode(value) if name in _TEXTS else value for name, value in row.items()}


def _row(record: dict[str, Any]) -> dict[str, Any]:
    return {name: msgspec.json.encode(value).decode() if name in _TEXTS else value for name, value in record.items()}
