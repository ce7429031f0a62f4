"""Where limits are kept: the port, and its first adapter, one process alone.

`broker` keeps them in memory that the workers of a machine share, `redis` for several machines. All of them hand out
units by `domain.serving.limits.transact`, so all of them refuse alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from groundplane.domain.serving.limits import Account, Binding, Limit, Moment, Share, transact

Want = tuple[Share, int]
"""A share, and how many units a request needs of it."""


class Counters(Protocol):
    """Keeps accounts of limits and fills this holder's shares. Called on the event loop's thread only.

    `alone` says that nobody else holds shares of the same limits: then what is idle need not go back.
    """

    alone: bool

    def refill(self, wants: Sequence[Want], now: Moment, then: Callable[[Binding | None], None]) -> None:
        """Settles what these shares owe and gets what each needs: all or nothing. Tells `then` the refusal, or None.

        Twice: asks twice. Halfway: nothing is handed out. Never answered: `then` is told within the adapter's
        deadline, by each limit's `when_down`.
        """

    def flush(self, shares: Iterable[Share], now: Moment) -> None:
        """Charges what was used and gives back what is free, unless it is a slice of plenty in use since the last."""

    def declare(self, share: Share, held: int, now: Moment) -> None:
        """This holder's first word on a share in this life: it holds so much, whatever it held before."""

    def let_go(self, gateway_id: str, figures: Sequence[Limit], now: Moment, then: Callable[[bool], None]) -> None:
        """A gateway of this machine is gone, and the ledger's `figures` of dollars have all that it spent: that need
        not be held any more. `then` is told whether it is not. Twice: nothing more happens. Halfway: try again. The
        caller sees to it that the gateway does not come back meanwhile."""

    def close(self) -> None:
        """Gives up what is held for nobody; spent dollars stay held until `let_go`."""


class MemoryCounters:
    """For one process alone: accounts are objects."""

    alone = True

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def _account(self, share: Share) -> Account:
        limit = share.limit
        account = self._accounts.get(limit.id)
        if account is None:
            account = self._accounts[limit.id] = Account(limit.value)
        return account

    def refill(self, wants: Sequence[Want], now: Moment, then: Callable[[Binding | None], None]) -> None:
        accounts = [self._account(share) for share, _ in wants]
        told = transact([share.settlement(need) for share, need in wants], accounts, 1, now)
        granted = [0] * len(wants) if isinstance(told, Binding) else told
        for (share, need), account, units in zip(wants, accounts, granted, strict=True):
            share.take_in(units, need)
            share.seen(account, now.ns)
        then(told if isinstance(told, Binding) else None)

    def flush(self, shares: Iterable[Share], now: Moment) -> None:
        for share in shares:
            account = self._account(share)
            free, share.free = share.free, 0
            transact([share.settlement(0)], [account], 1, now)
            share.free = free
            share.seen(account, now.ns)

    def declare(self, share: Share, held: int, now: Moment) -> None:
        account = self._account(share)
        account.bring(share.limit, now)
        account.held += held - share.held
        share.held = held
        share.seen(account, now.ns)

    def let_go(self, gateway_id: str, figures: Sequence[Limit], now: Moment, then: Callable[[bool], None]) -> None:
        """There are no others."""
        then(True)

    def close(self) -> None:
        """Nothing outlives the process."""
