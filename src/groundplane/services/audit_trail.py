"""The audit trail, read and proved."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing

from groundplane.audit import GENESIS, ChainBreak, ChainCheck, Event, EventDraft
from groundplane.errors import IntegrityFailure
from groundplane.identity import CROSS_PROJECT, Actor
from groundplane.ports import ChainHead, Clock, Store, Tx

_NONE = ChainHead(id=0, hash=GENESIS)


class Teller:
    """Puts changes of one kind of object on the trail, in the transaction that makes them."""

    def __init__(self, clock: Clock, object_kind: str) -> None:
        self._clock = clock
        self._kind = object_kind

    async def __call__(
        self,
        tx: Tx,
        actor: Actor,
        action: str,
        object_id: str,
        project: str,
        after: Mapping[str, object],
        reason: str = "",
        *,
        before: Mapping[str, object] | None = None,
    ) -> None:
        """Appends the event; call it last, after the rows it tells of."""
        await tx.append_event(
            EventDraft(
                at=self._clock.now(),
                actor=actor.name,
                action=action,
                object_kind=self._kind,
                object_id=object_id,
                project=project,
                before=dict(before or {}),
                after=dict(after),
                reason=reason,
            )
        )


class AuditTrail:
    """Reads and verifies; writing is `tx.append_event`, in the transaction of the change itself."""

    def __init__(self, *, store: Store) -> None:
        self._store = store

    async def verify(self) -> tuple[int, ChainBreak | None]:
        """Walks the whole chain: (events that are true, the first place where it is broken or None).

        Events may be appended meanwhile: the head is read before and after, and the walk must end between the two.
        """
        before = await self._head()
        check = ChainCheck()
        reached = before.id == 0
        try:
            async with aclosing(self._store.events()) as events:
                async for event in events:
                    broken = check.feed(event)
                    if broken is not None:
                        return check.number, broken
                    if event.id == before.id:
                        reached = event.hash == before.hash
        except IntegrityFailure as damage:
            # An event that can't even be read was changed by somebody: that is a finding, not a failure to verify.
            return check.number, ChainBreak(event_id=check.number + 1, what=damage.message)
        if not reached:
            return check.number, check.finish(before.id, before.hash)
        after = await self._head()
        if check.number > after.id:
            return check.number, check.finish(after.id, after.hash)
        return check.number, None

    async def events(
        self, actor: Actor, *, limit: int = 50, object_kind: str | None = None, object_id: str | None = None
    ) -> list[Event]:
        """Newest first; of the actor's own project for roles bound to one."""
        where: dict[str, object] = {}
        if actor.role not in CROSS_PROJECT:
            where["project"] = actor.project
        if object_kind is not None:
            where["object_kind"] = object_kind
        if object_id is not None:
            where["object_id"] = object_id
        async with self._store.transaction() as tx:
            return await tx.find(Event, where, order="-id", limit=limit)

    async def _head(self) -> ChainHead:
        async with self._store.transaction() as tx:
            return await tx.chain_head() or _NONE
