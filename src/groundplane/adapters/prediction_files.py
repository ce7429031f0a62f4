"""The prediction log's files as the control plane reads, rewrites and removes them.

Recorders append to the hour in progress; every change here happens under the same lock (`flock` of the file), writes
the new file beside it and renames, so that a reader, and a recorder that waits, sees the old or the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gzip
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from groundplane.adapters.atomic_file import write_atomically
from groundplane.client import parquet
from groundplane.domain.prediction import (
    Form,
    Holdings,
    PredictionRule,
    RewrittenFile,
    Wanted,
    parse_file_name,
    pseudonym,
    rule_of,
)
from groundplane.errors import Unavailable
from groundplane.ports.traffic import Erased, Page

_SALT_FILE = ".salt"
_ENDINGS = {Form.JSONL: "jsonl.gz", Form.PARQUET: "parquet"}
_PLACE = "~"
_decode = msgspec.json.Decoder(dict[str, Any]).decode
Record = dict[str, Any]


class FolderPredictions:
    """Implements `ports.traffic.PredictionLog` over a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def can_write(self, form: Form) -> bool:
        return form is Form.JSONL or parquet.is_installed()

    async def read(self, project: str, wanted: Wanted, limit: int, *, after: str = "", newest: bool = False) -> Page:
        return await asyncio.to_thread(self._read, project, wanted, (limit, after, newest))

    async def pseudonym(self, project: str, subject: str) -> str:
        return await asyncio.to_thread(lambda: pseudonym(self._salt(), project, subject))

    async def holdings(self, project: str) -> Holdings:
        return await asyncio.to_thread(self._holdings, project)

    async def erase(self, project: str, subject: str) -> Erased:
        return await asyncio.to_thread(self._erase, project, subject)

    async def upkeep(self, project: str, rules: Sequence[PredictionRule], now: datetime) -> int:
        return await asyncio.to_thread(self._upkeep, project, rules, now)

    # ------------------------------------------------------------ reading

    def _files(self, project: str) -> list[str]:
        """Names below the project's folder, oldest first. Where an hour stands twice, its conversion was cut off
        before the original was removed: the original counts."""
        folder = self._folder / project
        if not folder.is_dir():
            return []
        found: dict[tuple[str, str, str], str] = {}
        for path in folder.glob("*/*"):
            name = f"{path.parent.name}/{path.name}"
            parsed = parse_file_name(name)
            if parsed is not None and (parsed[3] == "jsonl" or parsed[:3] not in found):
                found[parsed[:3]] = name
        return [found[place] for place in sorted(found)]

    def _read(self, project: str, wanted: Wanted, how: tuple[int, str, bool]) -> Page:
        """By hours, and within one by time over all writers; a place is a record's time and id."""
        limit, after, newest = how
        beyond = tuple(after.split(_PLACE, 1)) if _PLACE in after else None
        first = max(_hour_at(wanted.since), "" if beyond is None or newest else _hour_at(beyond[0]))
        last = min(_hour_at(wanted.until) or "~", "~" if beyond is None or not newest else _hour_at(beyond[0]))
        hours: dict[str, list[str]] = {}
        for name in self._files(project):
            # A record is filed under the hour its request began in.
            if first <= name[:13] <= last:
                hours.setdefault(name[:13], []).append(name)
        records: list[Record] = []
        for hour in sorted(hours, reverse=newest):
            found = [one for name in hours[hour] for one in self._records(project, name) if wanted.holds(one)]
            for one in sorted(found, key=_place, reverse=newest):
                if beyond is None or (_place(one) < beyond if newest else _place(one) > beyond):
                    records.append(one)
                    if len(records) == limit:
                        return Page(records, _PLACE.join(_place(one)))
        return Page(records, "")

    def _records(self, project: str, name: str) -> Iterator[Record]:
        try:
            yield from _read_file(self._folder / project / name)
        except FileNotFoundError:
            return  # removed or converted since it was listed
        except (OSError, EOFError, ValueError) as error:
            raise Unavailable(
                f"{name} of the prediction log can't be read: {error}", "move it aside, or restore it"
            ) from error

    def _holdings(self, project: str) -> Holdings:
        names = self._files(project)
        size = sum((self._folder / project / name).stat().st_size for name in names)
        days = [name[:10] for name in names]
        return Holdings(
            project=project,
            files=len(names),
            size_bytes=size,
            first_day=min(days, default=""),
            last_day=max(days, default=""),
        )

    def _salt(self) -> bytes:
        """Made by the first recorder that needs it; before that there is no record to look for."""
        try:
            return (self._folder / _SALT_FILE).read_bytes()
        except FileNotFoundError:
            return b""

    # ------------------------------------------------------------ changing

    def _erase(self, project: str, subject: str) -> Erased:
        name_there = pseudonym(self._salt(), project, subject)
        removed = looked_at = left = 0
        files: list[RewrittenFile] = []
        for name in self._files(project):
            with _locked(self._folder / project / name) as path:
                if path is None:
                    continue
                data = path.read_bytes()
                records = list(self._records(project, name))
                kept = [one for one in records if one["subject"] != name_there]
                looked_at += len(records)
                if len(kept) == len(records):
                    continue
                after = _encode_file(kept, path.suffix) if kept else b""
                if kept:
                    write_atomically(path, after)
                else:
                    path.unlink()
                removed += len(records) - len(kept)
                files.append(
                    RewrittenFile(
                        name=name,
                        removed=len(records) - len(kept),
                        kept=len(kept),
                        sha256_before=hashlib.sha256(data).hexdigest(),
                        sha256_after=hashlib.sha256(after).hexdigest() if kept else "",
                    )
                )
        for name in self._files(project):
            left += sum(one["subject"] == name_there for one in self._records(project, name))
        return Erased(name_there, removed, looked_at, left, tuple(files))

    def _upkeep(self, project: str, rules: Sequence[PredictionRule], now: datetime) -> int:
        removed = 0
        for name in self._files(project):
            path = self._folder / project / name
            day, hour, writer, ending = _parsed(name)
            rule = rule_of(writer, rules)
            if day < (now - timedelta(days=rule.retention_days)).date().isoformat():
                with _locked(path) as held:
                    if held is not None:
                        held.unlink()
                        removed += 1
                _remove_if_empty(path.parent)
            elif ending == "jsonl" and f"{day}/{hour}" < now.strftime("%Y-%m-%d/%H") and self.can_write(rule.form):
                self._convert(project, name, rule.form)
        return removed

    def _convert(self, project: str, name: str, form: Form) -> None:
        """An hour that is over, in the form it is kept in."""
        path = self._folder / project / name
        with _locked(path) as held:
            if held is None:
                return
            target = path.with_name(f"{path.name.removesuffix('jsonl')}{_ENDINGS[form]}")
            records = list(_read_file(path))
            if records:
                write_atomically(target, _encode_file(records, target.suffix))
            path.unlink()


def _hour_at(moment: str) -> str:
    """`2026-11-21T18:04:00.000Z` as names have it: `2026-11-21/18`."""
    return moment[:13].replace("T", "/")


def _place(record: Record) -> tuple[str, str]:
    return record["at"], record["id"]


def _parsed(name: str) -> tuple[str, str, str, str]:
    parsed = parse_file_name(name)
    assert parsed is not None, "the name was parsed when it was listed"
    return parsed


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path | None]:
    """Holds the lock that recorders append under; None when the file is gone by then."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        yield None
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            current = path.stat().st_ino == os.fstat(fd).st_ino
        except FileNotFoundError:
            current = False
        yield path if current else None
    finally:
        os.close(fd)


def _read_file(path: Path) -> Iterator[Record]:
    if path.suffix == ".parquet":
        yield from parquet.read(path)
        return
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    # The last line may be half written when its writer died.
    for line in data[: data.rfind(b"\n") + 1].splitlines():
        yield _decode(line)


def _encode_file(records: list[Record], suffix: str) -> bytes:
    if suffix == ".parquet":
        sink = io.BytesIO()
        parquet.write(sink, records)
        return sink.getvalue()
    data = b"".join(msgspec.json.encode(one) + b"\n" for one in records)
    return gzip.compress(data, 6, mtime=0) if suffix == ".gz" else data
