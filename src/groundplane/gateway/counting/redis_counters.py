"""Limits of several machines, kept in one Redis or Valkey: the same decisions, by the server's clock, in one script.

An answer is awaited 10 ms; then each limit's `when_down` decides: refuse, admit, or admit from this holder's part of
the limit alone. After three silences in a row nobody waits: a breaker is open for a second, then longer, up to ten.
Dollars of a gateway that is gone are held for a day, in case it comes back with what it spent, or until the ledger has
all of its log. What was charged and not confirmed is charged again, so a lost answer errs on the safe side; what was
handed out and not heard of is taken back by stating, on each new connection, what this holder has.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from groundplane.domain.serving.limits import (
    PURSES,
    SCALES,
    Account,
    Binding,
    Entry,
    Limit,
    Measure,
    Moment,
    Share,
    WhenDown,
    worse,
)
from groundplane.gateway.counting.counters import Want
from groundplane.gateway.counting.resp import RespConnection, RespError, call, connect

_DEADLINE_S = 0.010
_READ_S = 0.001
_LATE_KEPT_S = 1.0
_CONNECT_DEADLINE_S = 2.0
_BELIEF_S = 30
_SILENCES_TO_OPEN = 3
_RETRY_NS = 1_000_000_000
_PAUSE_FIRST_S, _PAUSE_MAX_S = 1.0, 10.0
_WORDS = {
    Measure.REQUESTS: b"minute",
    Measure.TOKENS: b"minute",
    Measure.TOKENS_DAY: b"day",
    Measure.CONCURRENT: b"concurrent",
    **dict.fromkeys(PURSES, b"budget"),
}
_PREFIX = b"groundplane:limit:"
_FIGURES_AT_ONCE = 100


@dataclass(slots=True)
class _Ask:
    """A transaction on its way. `done` when its asker was told, by the answer or by the deadline."""

    wants: Sequence[Want]
    entries: Sequence[Entry]
    now: Moment
    then: Callable[[Binding | None], None] | None
    timer: asyncio.TimerHandle | None = None
    done: bool = False


class RedisCounters:
    """Implements `Counters` for one of `holders` gateways that share a server. `holder` is unique among them."""

    alone = False

    def __init__(self, url: str, holder: str, holders: int) -> None:
        self._url = url
        self._holder = holder.encode()
        self._holders = max(1, holders)
        self._script = files("groundplane.gateway.counting").joinpath("limits.lua").read_bytes()
        self._sha = b""
        self._connection: RespConnection | None = None
        self._stated: set[str] = set()
        self._shares: dict[str, Share] = {}
        self._local: dict[str, Account] = {}
        self._lent: dict[str, int] = {}
        self._silences = 0
        self._closed_at_s = 0.0
        self._pause_s = _PAUSE_FIRST_S
        self._task: asyncio.Task[None] | None = None
        self._tried = asyncio.Event()
        self._beat: asyncio.TimerHandle | None = None
        self._closing = False

    # ------------------------------------------------------------ the port

    def refill(self, wants: Sequence[Want], now: Moment, then: Callable[[Binding | None], None]) -> None:
        if not self._usable():
            then(self._without(wants, now))
            return
        self._send(wants, now, then)

    def flush(self, shares: Iterable[Share], now: Moment) -> None:
        if not self._usable():
            return
        for share in shares:
            kept = share.free if share.touched and not share.tight else 0
            share.touched = False
            share.free -= kept
            self._send([(share, 0)], now, None)
            share.free += kept

    def declare(self, share: Share, held: int, now: Moment) -> None:
        share.held = held
        share.at_ns = now.ns
        self._shares[share.limit.id] = share
        self._stated.discard(share.limit.id)

    def let_go(self, gateway_id: str, figures: Sequence[Limit], now: Moment, then: Callable[[bool], None]) -> None:
        """States for the one that is gone, with the figures that contain what it spent, that it has nothing."""
        if not self._usable():
            then(False)
            return
        connection = self._connection
        assert connection is not None
        holder = b"%b:%b" % (self._holder.rpartition(b":")[0], gateway_id.encode())
        waiting = list(range(0, len(figures), _FIGURES_AT_ONCE)) or [0]
        lost = False

        def answered(reply: bytes | None) -> None:
            nonlocal lost
            waiting.pop()
            lost = lost or reply is None
            if not waiting:
                then(not lost)

        for start in tuple(waiting):
            some = figures[start : start + _FIGURES_AT_ONCE]
            keys = [_PREFIX + one.id.encode() for one in some]
            words = [holder, b"%d" % (_BELIEF_S * 1_000_000), b"%d" % self._holders]
            for one in some:
                words += [_WORDS[one.measure], b"%d" % one.value, b"%d" % one.version, b"0", b"0", b"0", b"0"]
            connection.send(answered, b"EVALSHA", self._sha, b"%d" % len(keys), *keys, *words)

    def close(self) -> None:
        """What this holder has goes back with its last words; without them it is believed for half a minute."""
        self._closing = True
        if self._beat is not None:
            self._beat.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._connection is not None:
            self._connection.close()

    # ------------------------------------------------------------ asking

    def _usable(self) -> bool:
        loop = asyncio.get_running_loop()
        if self._connection is None:
            if self._task is None and loop.time() >= self._closed_at_s and not self._closing:
                self._task = loop.create_task(self._connect())
            return False
        return loop.time() >= self._closed_at_s

    def _send(self, wants: Sequence[Want], now: Moment, then: Callable[[Binding | None], None] | None) -> None:
        connection = self._connection
        assert connection is not None
        stated = [share.held if share.limit.id not in self._stated else -1 for share, _ in wants]
        entries = [share.settlement(need) for share, need in wants]
        ask = _Ask(wants, entries, now, then)
        if then is not None:
            ask.timer = asyncio.get_running_loop().call_later(_DEADLINE_S, self._late, ask)
        keys = [_PREFIX + entry.limit.id.encode() for entry in entries]
        words = [self._holder, b"%d" % (_BELIEF_S * 1_000_000), b"%d" % self._holders]
        for (share, _), entry, mine in zip(wants, entries, stated, strict=True):
            limit = entry.limit
            words += [_WORDS[limit.measure], b"%d" % limit.value, b"%d" % limit.version]
            words += [b"%d" % number for number in (entry.used, entry.back, entry.need, mine)]
            self._stated.add(limit.id)
            if (entry.used or limit.id in self._lent) and limit.when_down is WhenDown.LOCAL:
                # What this holder used counts in its own part too, should the server go away.
                _, account = self._part(share, now)
                scale = SCALES[limit.measure]
                # What was lent of it and used is charged here and now; of a rate, some of it may have passed already.
                account.level -= min(self._lent.pop(limit.id, 0) * scale, account.level)
                account.level += entry.used * scale
        connection.send(
            lambda reply: self._answered(ask, reply), b"EVALSHA", self._sha, b"%d" % len(keys), *keys, *words
        )

    def _late(self, ask: _Ask) -> None:
        """The deadline has passed; but when this loop was busy, the answer may be there and not have been read."""
        if not ask.done:
            ask.timer = asyncio.get_running_loop().call_later(_READ_S, self._silence, ask)

    def _silence(self, ask: _Ask) -> None:
        """The deadline has passed: the asker is told without the server. Its answer still counts when it comes."""
        if ask.done:
            return
        ask.done = True
        self._failed()
        assert ask.then is not None
        ask.then(self._without(ask.wants, ask.now))

    def _answered(self, ask: _Ask, reply: bytes | None) -> None:
        if ask.timer is not None:
            ask.timer.cancel()
        if reply is None:
            # Whether it was charged nobody knows: it is charged again, and what is held is stated anew.
            for entry, (share, _) in zip(ask.entries, ask.wants, strict=True):
                share.used += entry.used
                share.held += entry.used
            self._failed()
            told = None if ask.done or ask.then is None else self._without(ask.wants, ask.now)
        else:
            self._silences, self._closed_at_s, self._pause_s = 0, 0.0, _PAUSE_FIRST_S
            told = self._read(ask, reply.split(b" "))
        if ask.then is not None and not ask.done:
            ask.done = True
            ask.then(told)

    def _read(self, ask: _Ask, words: list[bytes]) -> Binding | None:
        binding, rest = None, words[1:]
        if words[0] == b"0":
            index, left, wait_us = int(words[1]) - 1, int(words[2]), int(words[3])
            entry = ask.entries[index]
            binding = Binding(entry.limit, left, entry.need, None if wait_us < 0 else wait_us * 1000)
            rest = words[4:]
        for number, (share, need) in enumerate(ask.wants):
            units, level, held = rest[3 * number : 3 * number + 3]
            share.take_in(int(units), need)
            share.level = int(float(level) * SCALES[share.limit.measure])
            share.all_held, share.at_ns = int(held), ask.now.ns
            if ask.done and share.free > 0 and need > 0:
                # An answer that came too late: its asker is gone. The next one has these units without asking, or
                # a server that is always late would hand them out to nobody.
                asyncio.get_running_loop().call_later(_LATE_KEPT_S, self._give_back, share)
        return binding

    def _give_back(self, share: Share) -> None:
        """What nobody took, so that others may have it."""
        if share.free > 0:
            loop = asyncio.get_running_loop()
            self.flush([share], Moment(int(loop.time() * 1e9), 0.0))
            if share.free > 0 and not self._closing:  # a slice in use, or the server is away
                loop.call_later(_LATE_KEPT_S, self._give_back, share)

    # ------------------------------------------------------------ without the server

    def _failed(self) -> None:
        self._silences += 1
        if self._silences >= _SILENCES_TO_OPEN:
            loop = asyncio.get_running_loop()
            if loop.time() >= self._closed_at_s:
                self._closed_at_s = loop.time() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)

    def _without(self, wants: Sequence[Want], now: Moment) -> Binding | None:
        """Each limit's own word for this: all of them admit, or nothing is taken."""
        binding: Binding | None = None
        for share, need in wants:
            limit = share.limit
            if limit.when_down is WhenDown.CLOSED:
                return Binding(limit, 0, need, None, store_down=True)
            if limit.when_down is WhenDown.LOCAL:
                part, account = self._part(share, now)
                if limit.id not in self._lent and limit.measure is not Measure.CONCURRENT:
                    # What was handed out before is part of the part.
                    self._lent[limit.id] = share.held
                    account.level += share.held * SCALES[limit.measure]
                wait_ns = account.wait_ns(part, need, now)
                # What was left of the whole when the server last spoke is known too, and was shared since by others.
                known = share.standing(now.ns)[0]
                if wait_ns != 0 or known < need:
                    left = max(0, min(known, account.left(limit.measure)))
                    binding = worse(binding, Binding(limit, left, need, wait_ns or _RETRY_NS))
        if binding is not None:
            return binding
        for share, need in wants:
            if share.limit.when_down is WhenDown.LOCAL and share.limit.measure is not Measure.CONCURRENT:
                scaled = need * SCALES[share.limit.measure]
                self._local[share.limit.id].level += scaled
                self._lent[share.limit.id] += need
                share.level += scaled
            share.take_in(need, need)
        return None

    def _part(self, share: Share, now: Moment) -> tuple[Limit, Account]:
        """This holder's part of a limit, and what was admitted from it."""
        limit = share.limit
        value = limit.value // self._holders
        part = Limit(limit.scope, limit.name, limit.measure, value, limit.when_down, limit.version)
        account = self._local.get(limit.id)
        if account is None or (limit.measure in PURSES and account.version < limit.version):
            account = self._local[limit.id] = Account(value, at=now.ns if SCALES[limit.measure] != 1 else 0)
            self._lent.pop(limit.id, None)
        account.bring(part, now)
        if limit.measure is Measure.CONCURRENT:
            account.held = share.in_flight
        return part, account

    # ------------------------------------------------------------ connection

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_DEADLINE_S):
                connection = await connect(self._url, self._lost)
                self._sha = await call(connection, b"SCRIPT", b"LOAD", self._script)
        except (OSError, RespError, TimeoutError):
            self._closed_at_s = loop.time() + self._pause_s
            self._pause_s = min(2 * self._pause_s, _PAUSE_MAX_S)
        else:
            # A server that is there and refuses to write (a replica, a full one) fails all the same: only an answer
            # closes the breaker.
            self._stated.clear()
            self._connection = connection
            self._heartbeat()
        finally:
            self._task = None
            self._tried.set()

    def _lost(self) -> None:
        self._connection = None

    def _heartbeat(self) -> None:
        """Says of everything that is held that it still is, well before the others stop believing it."""
        if self._beat is not None:
            self._beat.cancel()
        if self._closing:
            return
        self._beat = asyncio.get_running_loop().call_later(_BELIEF_S / 3, self._heartbeat)
        if self._usable():
            now = Moment(int(asyncio.get_running_loop().time() * 1e9), 0.0)
            for share in self._shares.values():
                # Dollars of an earlier life are believed for a day: they are given up by stating what is held now.
                if share.held or (share.purse is not None and share.limit.id not in self._stated):
                    kept, share.free = share.free, 0
                    self._send([(share, 0)], now, None)
                    share.free = kept

    async def ready(self, deadline_s: float = 2.0) -> bool:
        """Connects at the start, so that the first requests need not do without. Says whether it did."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline_s):
                if self._task is None and self._connection is None:
                    self._task = asyncio.get_running_loop().create_task(self._connect())
                await self._tried.wait()
        return self._connection is not None
