"""Files that are there whole or not at all, and rows read from tables."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from groundplane.errors import InvalidInput

ROW_BYTES_MAX = 4 * 2**20


def say(line: str) -> None:
    """A line of the job's log, now."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def put_bytes(path: Path, content: bytes) -> None:
    """Replaces a file, durably; a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as target:
        target.write(content)
        target.flush()
        os.fsync(target.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def put_json(path: Path, value: object) -> None:
    put_bytes(path, json.dumps(value, ensure_ascii=False).encode())


def rows(path: Path) -> Iterator[tuple[int, dict[str, object] | str]]:
    """(line, row) of each row of a JSONL or CSV file; a text in place of the row says what is wrong with it.

    InvalidInput for a file that has no rows at all: no UTF-8, no header.
    """
    try:
        yield from _table(path) if path.suffix in (".csv", ".tsv") else _lines(path)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path.name} is not UTF-8 at byte {error.start:,}", "save it as UTF-8") from None


def _lines(path: Path) -> Iterator[tuple[int, dict[str, object] | str]]:
    with path.open("rb") as source:
        number = 0
        while line := source.readline(ROW_BYTES_MAX + 1):
            number += 1
            if len(line) > ROW_BYTES_MAX:
                raise InvalidInput(f"{path.name}: line {number} is longer than {ROW_BYTES_MAX:,} bytes", "split it")
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield number, f"line {number} is no JSON: {error}"
                continue
            yield number, value if isinstance(value, dict) else f"line {number} is no JSON object"


def _table(path: Path) -> Iterator[tuple[int, dict[str, object] | str]]:
    with path.open(encoding="utf-8-sig", newline="") as source:
        reader = csv.reader(source, delimiter="\t" if path.suffix == ".tsv" else ",")
        try:
            header = next(reader)
        except StopIteration:
            raise InvalidInput(f"{path.name} is empty", "its first line names the columns") from None
        if len(set(header)) != len(header):
            doubled = next(name for name in header if header.count(name) > 1)
            raise InvalidInput(f"{path.name} names column {doubled!r} twice", "give each a name of its own")
        try:
            for cells in reader:
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield reader.line_num, f"line {reader.line_num} has {len(cells)} cells for {len(header)} columns"
                else:
                    yield reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise InvalidInput(f"{path.name}: line {reader.line_num}: {error}", "save it as CSV (RFC 4180)") from None
