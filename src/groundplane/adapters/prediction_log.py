"""The prediction log as the control plane reads, rewrites and removes it: in memory, and in the recorders' files.

Recorders append to the hour in progress; every change to a file happens under the same lock (`flock`), writes the new
file beside it and renames, so that a reader, and a recorder that waits, sees the old or the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gzip
import hashlib
import io
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from groundplane.adapters.atomic_file import replace_durably
from groundplane.client import parquet
from groundplane.domain.serving.prediction import (
    PSEUDONYM,
    Erasure,
    Form,
    Holdings,
    PredictionRule,
    RewrittenFile,
    Wanted,
    file_name,
    parse_file_name,
    pseudonym,
    rule_of,
)
from groundplane.errors import Unavailable
from groundplane.ports.traffic import Page

_SALT_FILE = ".salt"
_ENDINGS = {Form.JSONL: "jsonl.gz", Form.PARQUET: "parquet"}
_PLACE = "~"
_decode = msgspec.json.Decoder(dict[str, Any]).decode
Record = dict[str, Any]


class _Hours(ABC):
    """What both have in common: records by hour and writer, under names as `prediction.file_name` gives them."""

    async def read(self, project: str, wanted: Wanted, limit: int, *, after: str = "", newest: bool = False) -> Page:
        return await asyncio.to_thread(self._read, project, wanted, (limit, after, newest))

    async def holdings(self, project: str) -> Holdings:
        return await asyncio.to_thread(self._holdings, project)

    async def erase(self, project: str, subject: str, at: datetime) -> Erasure:
        return await asyncio.to_thread(self._erase, project, subject, at)

    async def upkeep(self, project: str, rules: Sequence[PredictionRule], now: datetime) -> int:
        return await asyncio.to_thread(self._upkeep, project, rules, now)

    @property
    @abstractmethod
    def salt(self) -> bytes:
        """What pseudonyms are made with; empty before there is a record."""

    @abstractmethod
    def _names(self, project: str) -> list[str]:
        """Oldest first, each hour of a writer once."""

    @abstractmethod
    def _records(self, project: str, name: str) -> list[Record]:
        """Unavailable for what can't be read; nothing where it is gone."""

    @abstractmethod
    def _size_bytes(self, project: str, name: str) -> int: ...

    @abstractmethod
    def _without(self, project: str, name: str, subject: str) -> tuple[int, RewrittenFile | None]:
        """Rewrites it if it has records of the subject: how many were looked at, and what was changed."""

    @abstractmethod
    def _remove(self, project: str, name: str) -> bool:
        """Whether it was there."""

    def _settle(self, project: str, name: str, form: Form) -> None:  # noqa: B027 (memory has no forms)
        """Gives an hour that is over the form it is kept in."""

    def _read(self, project: str, wanted: Wanted, how: tuple[int, str, bool]) -> Page:
        """By hours, and within one by time over all writers; a place is a record's time and id."""
        limit, after, newest = how
        beyond = tuple(after.split(_PLACE, 1)) if _PLACE in after else None
        if wanted.subject and not wanted.subject.startswith(PSEUDONYM):
            wanted = replace(wanted, subject=pseudonym(self.salt, project, wanted.subject))
        first = max(_hour_at(wanted.since), "" if beyond is None or newest else _hour_at(beyond[0]))
        last = min(_hour_at(wanted.until) or "~", "~" if beyond is None or not newest else _hour_at(beyond[0]))
        hours: dict[str, list[str]] = {}
        for name in self._names(project):
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

    def _holdings(self, project: str) -> Holdings:
        names = self._names(project)
        return Holdings(
            project=project,
            files=len(names),
            size_bytes=sum(self._size_bytes(project, name) for name in names),
            first_day=names[0][:10] if names else "",
            last_day=names[-1][:10] if names else "",
        )

    def _erase(self, project: str, subject: str, at: datetime) -> Erasure:
        name_there = pseudonym(self.salt, project, subject)
        done = [self._without(project, name, name_there) for name in self._names(project)]
        left = [one for name in self._names(project) for one in self._records(project, name)]
        return Erasure(
            project=project,
            subject=name_there,
            at=at,
            removed=sum(file.removed for _, file in done if file is not None),
            looked_at=sum(looked_at for looked_at, _ in done),
            left=sum(one["subject"] == name_there for one in left),
            files=tuple(file for _, file in done if file is not None),
        )

    def _upkeep(self, project: str, rules: Sequence[PredictionRule], now: datetime) -> int:
        removed = 0
        for name in self._names(project):
            day, hour, writer, ending = _parsed(name)
            rule = rule_of(writer, rules)
            if day < (now - timedelta(days=rule.retention_days)).date().isoformat():
                removed += self._remove(project, name)
            elif ending == "jsonl" and f"{day}/{hour}" < now.strftime("%Y-%m-%d/%H"):
                self._settle(project, name, rule.form)
        return removed


class MemoryPredictions(_Hours):
    """Implements `ports.traffic.PredictionLog` over what recorders are said to have kept."""

    def __init__(self) -> None:
        self._salt = os.urandom(16)
        self._kept: dict[str, dict[str, list[Record]]] = {}

    def keep(self, record: Record, writer: str = "memory") -> None:
        """A recorder's part: `record` as `domain.serving.prediction.Prediction` has it."""
        name = file_name(record["at"][:10], record["at"][11:13], writer, "jsonl")
        self._kept.setdefault(record["project"], {}).setdefault(name, []).append(record)

    def can_write(self, form: Form) -> bool:
        return True

    @property
    def salt(self) -> bytes:
        return self._salt

    def _names(self, project: str) -> list[str]:
        return sorted(self._kept.get(project, ()))

    def _records(self, project: str, name: str) -> list[Record]:
        return list(self._kept[project].get(name, ()))

    def _size_bytes(self, project: str, name: str) -> int:
        return len(_encode_file(self._kept[project][name], ""))

    def _without(self, project: str, name: str, subject: str) -> tuple[int, RewrittenFile | None]:
        records = self._kept[project][name]
        _, changed = _left_of(name, records, subject, _encode_file(records, ""), "")
        if changed is not None and changed.kept:
            self._kept[project][name] = [one for one in records if one["subject"] != subject]
        elif changed is not None:
            del self._kept[project][name]
        return len(records), changed

    def _remove(self, project: str, name: str) -> bool:
        return self._kept[project].pop(name, None) is not None


class FolderPredictions(_Hours):
    """The same over a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def can_write(self, form: Form) -> bool:
        return form is Form.JSONL or parquet.is_installed()

    @property
    def salt(self) -> bytes:
        """Made by the first recorder that needs it; before that there is no record to look for."""
        try:
            return (self._folder / _SALT_FILE).read_bytes()
        except FileNotFoundError:
            return b""

    def _names(self, project: str) -> list[str]:
        """Where an hour stands twice, its conversion was cut off before the original was removed: that one counts."""
        found: dict[tuple[str, str, str], str] = {}
        for path in (self._folder / project).glob("*/*"):
            name = f"{path.parent.name}/{path.name}"
            parsed = parse_file_name(name)
            if parsed is not None and (parsed[3] == "jsonl" or parsed[:3] not in found):
                found[parsed[:3]] = name
        return [found[place] for place in sorted(found)]

    def _records(self, project: str, name: str) -> list[Record]:
        try:
            return list(_read_file(self._folder / project / name))
        except FileNotFoundError:
            return []  # removed or converted since it was listed
        except (OSError, EOFError, ValueError) as error:
            raise Unavailable(
                f"{name} of the prediction log can't be read: {error}", "move it aside, or restore it"
            ) from error

    def _size_bytes(self, project: str, name: str) -> int:
        return (self._folder / project / name).stat().st_size

    def _without(self, project: str, name: str, subject: str) -> tuple[int, RewrittenFile | None]:
        with _locked(self._folder / project / name) as path:
            if path is None:
                return 0, None
            records = self._records(project, name)
            after, changed = _left_of(name, records, subject, path.read_bytes(), path.suffix)
            if changed is not None and after:
                replace_durably(path, after)
            elif changed is not None:
                path.unlink()
            return len(records), changed

    def _remove(self, project: str, name: str) -> bool:
        path = self._folder / project / name
        with _locked(path) as held:
            if held is not None:
                held.unlink()
        _remove_if_empty(path.parent)
        return held is not None

    def _settle(self, project: str, name: str, form: Form) -> None:
        if not self.can_write(form):
            return
        path = self._folder / project / name
        with _locked(path) as held:
            if held is None:
                return
            target = path.with_name(f"{path.name.removesuffix('jsonl')}{_ENDINGS[form]}")
            records = list(_read_file(path))
            if records:
                replace_durably(target, _encode_file(records, target.suffix))
            path.unlink()


def _left_of(
    name: str, records: Sequence[Record], subject: str, before: bytes, suffix: str
) -> tuple[bytes, RewrittenFile | None]:
    """What is left without the subject's records, and the proof; none where it has no such records."""
    kept = [one for one in records if one["subject"] != subject]
    if len(kept) == len(records):
        return before, None
    after = _encode_file(kept, suffix) if kept else b""
    return after, RewrittenFile(
        name=name,
        removed=len(records) - len(kept),
        kept=len(kept),
        sha256_before=hashlib.sha256(before).hexdigest(),
        sha256_after=hashlib.sha256(after).hexdigest() if kept else "",
    )


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


def _encode_file(records: Sequence[Record], suffix: str) -> bytes:
    if suffix == ".parquet":
        sink = io.BytesIO()
        parquet.write(sink, list(records))
        return sink.getvalue()
    data = b"".join(msgspec.json.encode(one) + b"\n" for one in records)
    return gzip.compress(data, 6, mtime=0) if suffix == ".gz" else data
