"""The catalogue, shown and updated: what would change is shown first, and exactly that is written and audited."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from groundplane.domain.catalogue.changes import CatalogueChange, ChangeKind, Proposal, TableView, summary
from groundplane.domain.catalogue.price_lists import ListPrice
from groundplane.errors import Conflict
from groundplane.identity import Actor
from groundplane.ports import CatalogBook, Clock, Store, Tx
from groundplane.services.audit_trail import Teller

_AUDITED_MAX = 200


class Catalog:
    """Reads for anyone who may see the system, updates for operators."""

    def __init__(self, *, store: Store, clock: Clock, book: CatalogBook) -> None:
        self._store = store
        self._tell = Teller(clock, "catalog")
        self._book = book
        self._writing = asyncio.Lock()

    async def tables(self, actor: Actor) -> list[TableView]:
        """Every table, without its rows."""
        return await asyncio.to_thread(self._book.tables)

    async def table(self, actor: Actor, name: str) -> TableView:
        """One table with its rows. NotFound names the tables that there are."""
        return await asyncio.to_thread(self._book.table, name)

    async def propose(
        self,
        actor: Actor,
        *,
        documents: Mapping[str, str],
        prices: Sequence[ListPrice],
        regions: Sequence[str] = (),
        replace: bool = False,
    ) -> Proposal:
        """What an update would do. `documents` are operator's YAML files by name; `prices` come from price lists.

        Raises InvalidInput with every fault of every file.
        """
        return await asyncio.to_thread(
            self._book.propose, documents=documents, prices=prices, regions=regions, replace=replace
        )

    async def update(
        self,
        actor: Actor,
        *,
        documents: Mapping[str, str],
        prices: Sequence[ListPrice],
        regions: Sequence[str] = (),
        replace: bool = False,
        expect: str,
        reason: str = "",
    ) -> Proposal:
        """Carries the update out. Conflict unless it is still, to the byte, the one whose digest is `expect`.

        Audited first: should the files not go in place, neither does the event.
        """
        async with self._writing:
            proposal = await self.propose(actor, documents=documents, prices=prices, regions=regions, replace=replace)
            if proposal.digest != expect:
                raise Conflict("the catalogue changed since the update was shown", "look at it again: run it once more")
            async with self._store.transaction() as tx:
                await self._note(tx, actor, proposal, reason)
                await asyncio.to_thread(self._book.write, proposal)
        return proposal

    async def _note(self, tx: Tx, actor: Actor, proposal: Proposal, reason: str) -> None:
        told = proposal.changes[:_AUDITED_MAX]
        before = {_name(change): _prices(change, after=False) for change in told if change.kind is not ChangeKind.ADDED}
        after = {
            "summary": summary(proposal.changes),
            "digest": proposal.digest,
            **{_name(change): _prices(change, after=True) for change in told},
        }
        files = ",".join(sorted(proposal.files))
        await self._tell(tx, actor, "catalog.update", files, "", after, reason, before=before)


def _name(change: CatalogueChange) -> str:
    return f"{change.table} {change.row}"


def _prices(change: CatalogueChange, *, after: bool) -> dict[str, object]:
    said: dict[str, object] = {"kind": change.kind.value} if after else {}
    return said | {move.column: move.after if after else move.before for move in change.prices}
