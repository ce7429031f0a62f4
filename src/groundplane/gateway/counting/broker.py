"""Limits of one machine's workers, in memory they share: a mapped file of accounts under one lock.

    accounts.shm              a header, then one row per limit: which, level, at, held, value, version
    <holder>.held             what that holder has of each row, in the same order; locked while the holder lives, and
                              deleted once the ledger has what it spent

Every change is made under the file's lock, in about ten microseconds; shares are handed out in slices, so most requests
need none. The kernel lets go of a lock when its holder dies. What a dead holder had of a rate counts as used: its
requests may have reached their upstream. Rows are found by hash; they are never freed while a worker lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from groundplane.domain.serving.limits import (
    DAY_S,
    PURSES,
    SCALES,
    Account,
    Binding,
    Limit,
    Measure,
    Moment,
    Share,
    transact,
)
from groundplane.errors import Unavailable
from groundplane.gateway.counting.counters import Want

ROWS = 1 << 17
_MAGIC = b"gplimit1"
_HEADER = struct.Struct("<8s36s")
_HEADER_BYTES = 64
_ROW = struct.Struct("<16s16sqqqq")
_HELD = struct.Struct("<q")
_MEASURES = tuple(Measure)
_EMPTY = bytes(16)
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class BrokerCounters:
    """Implements `Counters` for one of `holders` workers of this machine. The folder is theirs alone."""

    def __init__(self, folder: Path, holder: str, holders: int) -> None:
        """Joins the others. Raises Unavailable when the folder can't be used or the holder's name is in use."""
        self._folder = folder
        self._holder = holder
        self._holders = holders
        self.alone = holders == 1
        self._rows: dict[str, int] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._fd, self._map = _mapped(folder / "accounts.shm", _HEADER_BYTES + ROWS * _ROW.size)
            with self._locked():  # what a dead holder left is looked at, and deleted, under this lock too
                self._held_fd, self._held = _mapped(folder / f"{holder}.held", ROWS * _HELD.size)
                fcntl.flock(self._held_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._begin()
                self._count_the_dead()
        except BlockingIOError:
            raise Unavailable(f"{holder} keeps limits in {folder} already", "give this gateway another id") from None
        except OSError as error:
            raise Unavailable(f"the limits in {folder} can't be kept: {error.strerror}", "check its owner") from error

    # ------------------------------------------------------------ the port

    def refill(self, wants: Sequence[Want], now: Moment, then: Callable[[Binding | None], None]) -> None:
        with self._locked():
            rows = [self._row(share.limit) for share, _ in wants]
            accounts = [self._load(row) for row in rows]
            told = transact([share.settlement(need) for share, need in wants], accounts, self._holders, now)
            granted = [0] * len(wants) if isinstance(told, Binding) else told
            for (share, need), row, account, units in zip(wants, rows, accounts, granted, strict=True):
                share.take_in(units, need)
                share.seen(account, now.ns)
                self._store(row, account, share.held)
        then(told if isinstance(told, Binding) else None)

    def flush(self, shares: Iterable[Share], now: Moment) -> None:
        with self._locked():
            for share in shares:
                kept = share.free if share.touched and not share.tight else 0
                share.touched = False
                share.free -= kept
                row = self._row(share.limit)
                account = self._load(row)
                transact([share.settlement(0)], [account], self._holders, now)
                share.free = kept
                share.seen(account, now.ns)
                self._store(row, account, share.held)

    def declare(self, share: Share, held: int, now: Moment) -> None:
        with self._locked():
            row = self._row(share.limit)
            account = self._load(row)
            account.bring(share.limit, now)
            before: int = _HELD.unpack_from(self._held, row * _HELD.size)[0]
            account.held += held - before
            share.held = held
            share.seen(account, now.ns)
            self._store(row, account, held)

    def let_go(self, gateway_id: str, figures: Sequence[Limit], now: Moment, then: Callable[[bool], None]) -> None:
        then(self._let_go(self._folder / f"{gateway_id}.held", figures, now))

    def _let_go(self, path: Path, figures: Sequence[Limit], now: Moment) -> bool:
        with self._locked():
            if not path.exists():
                return True
            fd, held = _mapped(path, ROWS * _HELD.size)
            try:
                if not _lock_is_free(fd):
                    return False
                self._return_spent(held, figures, now)
                path.unlink()
                return True
            finally:
                held.close()
                os.close(fd)

    def _return_spent(self, held: mmap.mmap, figures: Sequence[Limit], now: Moment) -> None:
        """With the figures that contain it, and not before: an account may have older ones still."""
        rows = {row for row, units in enumerate(memoryview(held[:]).cast("q").tolist()) if units}
        for limit in figures if rows else ():
            row = self._row(limit)
            if row in rows:
                account = self._load(row)
                account.bring(limit, now)
                self._write(row, account)
        self._fold(held, list(rows), dollars=True)

    def close(self) -> None:
        """Counts what is held as used, and leaves. Spent dollars stay held: this holder's, should it come back, or
        until the ledger has all of its records."""
        with self._locked():
            self._fold(self._held, self._used())
        self._map.close()
        self._held.close()
        os.close(self._held_fd)
        os.close(self._fd)

    # ------------------------------------------------------------ the table

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _row(self, limit: Limit) -> int:
        """The limit's row, taken if it has none. Raises Unavailable when all are taken."""
        row = self._rows.get(limit.id)
        if row is None:
            name = hashlib.blake2b(limit.id.encode(), digest_size=15).digest() + bytes([_MEASURES.index(limit.measure)])
            row = self._rows[limit.id] = self._find(name)
        return row

    def _find(self, name: bytes) -> int:
        first = int.from_bytes(name[:8], "little") % ROWS
        for step in range(ROWS):
            row = (first + step) % ROWS
            at = _HEADER_BYTES + row * _ROW.size
            found = self._map[at : at + 16]
            if found == _EMPTY:
                self._map[at : at + 16] = name
            if found in (_EMPTY, name):
                return row
        raise Unavailable(f"all {ROWS} limits of {self._folder} are taken", "restart the gateway to begin anew")

    def _load(self, row: int) -> Account:
        _, level, at, held, value, version = _ROW.unpack_from(self._map, _HEADER_BYTES + row * _ROW.size)
        return Account(value, int.from_bytes(level, "little"), at, held, version)

    def _store(self, row: int, account: Account, held: int) -> None:
        # The row first: a death between the two leaves units held by nobody, which the next start counts as used.
        self._write(row, account)
        _HELD.pack_into(self._held, row * _HELD.size, held)

    # ------------------------------------------------------------ lives and deaths

    def _begin(self) -> None:
        """A new file, or one of an earlier boot, whose monotonic clock has begun anew since."""
        boot = _BOOT_ID.read_bytes()[:36] if _BOOT_ID.exists() else b""
        magic, seen = _HEADER.unpack_from(self._map, 0)
        if magic == _MAGIC and seen.rstrip(b"\0") != boot:
            for row in self._used():
                if SCALES[self._measure(row)] != 1:
                    account = self._load(row)
                    account.at = 0
                    self._write(row, account)
        _HEADER.pack_into(self._map, 0, _MAGIC, boot)

    def _used(self) -> list[int]:
        """Every row that is taken."""
        words = memoryview(self._map[_HEADER_BYTES:]).cast("Q")[:: _ROW.size // 8].tolist()
        return [row for row, word in enumerate(words) if word]

    def _measure(self, row: int) -> Measure:
        return _MEASURES[self._map[_HEADER_BYTES + row * _ROW.size + 15]]

    def _count_the_dead(self) -> None:
        """Holders that are no more, this one's earlier life among them: their part of a rate was used."""
        used = self._used()
        sums = dict.fromkeys(used, 0)
        for path in self._folder.glob("*.held"):
            mine = path.stem == self._holder
            # Dollars wait for a holder that may come back with what it spent; after a day they do not.
            gone = not mine and time.time() - path.stat().st_mtime > DAY_S
            fd, held = (-1, self._held) if mine else _mapped(path, ROWS * _HELD.size)
            try:
                if mine or _lock_is_free(fd):
                    self._fold(held, used, dollars=gone)
                for row in used:
                    sums[row] += _HELD.unpack_from(held, row * _HELD.size)[0]
            finally:
                if not mine:
                    held.close()
                    os.close(fd)
        for row in used:
            account = self._load(row)
            lost = account.held - sums[row]
            if lost:
                measure = self._measure(row)
                if lost > 0 and measure is not Measure.CONCURRENT and measure not in PURSES:
                    account.level += lost * SCALES[measure]
                account.held -= lost
                self._write(row, account)

    def _fold(self, held: mmap.mmap, used: list[int], *, dollars: bool = False) -> None:
        """Counts a holder's units as used, or returns them where they were only lent; dollars stay unless said."""
        for row in used:
            units: int = _HELD.unpack_from(held, row * _HELD.size)[0]
            measure = self._measure(row)
            if not units or (measure in PURSES and not dollars):
                continue
            account = self._load(row)
            account.held -= units
            if measure is not Measure.CONCURRENT and measure not in PURSES:
                account.level += units * SCALES[measure]
            self._write(row, account)
            _HELD.pack_into(held, row * _HELD.size, 0)

    def _write(self, row: int, account: Account) -> None:
        at = _HEADER_BYTES + row * _ROW.size
        level = account.level.to_bytes(16, "little")
        name = self._map[at : at + 16]
        _ROW.pack_into(self._map, at, name, level, account.at, account.held, account.value, account.version)


def _lock_is_free(fd: int) -> bool:
    """Whether nobody holds this file; takes it until it is closed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _mapped(path: Path, size: int) -> tuple[int, mmap.mmap]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.fstat(fd).st_size != size:  # even to the same size it would make a dead holder's file look fresh
            os.ftruncate(fd, size)
        return fd, mmap.mmap(fd, size)
    except OSError:
        os.close(fd)
        raise
