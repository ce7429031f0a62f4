"""Requests: a pasted message is read, stored, asked about, answered, and ends in specs that can be planned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from groundplane.audit import EventDraft
from groundplane.domain.access import Project
from groundplane.domain.intake import MESSAGE_MAX_BYTES, SPEC_KINDS, Intake, QuotaFact
from groundplane.domain.intake.answers import answered, checked, specs
from groundplane.domain.intake.lexicon import Lexicon
from groundplane.domain.intake.read import read
from groundplane.domain.intake.request import Request, RequestStatus, Specs, Suggestion
from groundplane.errors import Conflict, InvalidInput, NotFound, TooLarge, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, GapFiller, Ids, QuotaSource, Store, Tx
from groundplane.units import format_bytes

MAX_LISTED = 1_000
ANSWERS_MAX = 200


class Requests:
    """Stored messages. `lexicon` gives the catalogue's names as they stand, `quotas` are what is known of the clouds'
    limits, `live` what they say; each request keeps those it was judged by.
    """

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        ids: Ids,
        lexicon: Callable[[], Lexicon],
        quotas: Sequence[QuotaFact] = (),
        live: QuotaSource | None = None,
        gap_filler: GapFiller | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._lexicon = lexicon
        self._quotas = tuple(quotas)
        self._live = live
        self._gap_filler = gap_filler

    async def create(
        self, actor: Actor, message: str, *, project: str | None = None, quotas: Sequence[QuotaFact] = ()
    ) -> Request:
        """Reads and stores a message. Raises InvalidInput when it is empty, TooLarge, NotFound for the project."""
        size_bytes = len(message.encode(errors="replace"))
        if size_bytes > MESSAGE_MAX_BYTES:
            raise TooLarge(
                f"the message has {size_bytes:,} bytes; {format_bytes(MESSAGE_MAX_BYTES)} is the most",
                "paste the message without its attachments and logs",
            )
        if not message.strip():
            raise InvalidInput("the message is empty", "paste what the team wrote: ground request message.txt")
        message = _storable(message)
        now, known = self._clock.now(), (*quotas, *self._quotas)
        # A long message takes a second or two: reading it must not hold up everybody else's requests.
        intake = await asyncio.to_thread(read, message, self._lexicon(), now, known)
        if not quotas and (more := await self._live_quotas(intake)):
            # What somebody states with the message counts instead of what a cloud says.
            known = (*known, *more)
            intake = await asyncio.to_thread(read, message, self._lexicon(), now, known)
        suggestions, note = await self._suggestions(message, intake)
        async with self._store.transaction() as tx:
            owner = project or actor.project or ""
            if owner:
                await _visible_project(tx, actor, owner)
            answers = {"project": owner} if owner and not _names_project(intake) else {}
            intake = answered(intake, answers, self._lexicon(), now, known)
            request = Request(
                id=self._ids.new("req"), project=owner, status=RequestStatus.OPEN, message=message, intake=intake,
                answers=answers, quotas=known, suggestions=suggestions, suggestions_note=note, created_by=actor.name,
                created_at=now, updated_at=now,
            )  # fmt: skip
            request = replace(request, status=self._status(request))
            await tx.insert(request)
            await tx.append_event(_event(request, actor, "request.create", {"items": _kinds(intake)}))
        return request

    async def get(self, actor: Actor, request_id: str) -> Request:
        """Raises NotFound for a request that does not exist or belongs to a project the actor doesn't see."""
        async with self._store.transaction() as tx:
            return await self._load(tx, actor, request_id)

    async def requests(
        self, actor: Actor, *, project: str | None = None, status: RequestStatus | None = None, limit: int = 100
    ) -> list[Request]:
        """Newest first; only those of projects the actor sees."""
        where: dict[str, object] = {}
        if project is not None or not actor.sees(""):
            where["project"] = project if project is not None else (actor.project or "")
        if status is not None:
            where["status"] = status
        async with self._store.transaction() as tx:
            found = await tx.find(Request, where, order="-created_at", limit=min(limit, MAX_LISTED))
        return [request for request in found if _sees(actor, request)]

    async def answer(self, actor: Actor, request_id: str, answers: Mapping[str, str]) -> Request:
        """Adds answers; an empty one takes an earlier answer back. The same answers twice are the same as once.

        Raises InvalidInput with every answer that can't be taken (none is then), Conflict when it is closed.
        """
        async with self._store.transaction() as tx:
            request = await self._load(tx, actor, request_id, lock=True)
            if request.status is RequestStatus.CLOSED:
                raise Conflict(f"{request.id} is closed", "paste the message again as a new request")
            given = checked({key: text for key, text in answers.items() if text.strip()}, request.intake)
            taken_back = {key.replace("-", "_") for key, text in answers.items() if not text.strip()}
            merged = {key: text for key, text in request.answers.items() if key not in taken_back} | given
            if len(merged) > ANSWERS_MAX:
                raise InvalidInput(f"{len(merged)} answers; {ANSWERS_MAX} is the most", "start a new request")
            for key, name in given.items():
                if key.rpartition(".")[2] == "project":
                    await _visible_project(tx, actor, name)
            now = self._clock.now()
            intake = answered(request.intake, merged, self._lexicon(), now, request.quotas)
            project = request.project or merged.get("project", "")
            changed = replace(request, answers=merged, intake=intake, project=project, updated_at=now)
            changed = await tx.update(replace(changed, status=self._status(changed)))
            await tx.append_event(_event(changed, actor, "request.answer", {"answers": dict(given)}))
        return changed

    async def close(self, actor: Actor, request_id: str, reason: str) -> Request:
        """Closes it for good; its specs can still be read. Twice is the same as once."""
        async with self._store.transaction() as tx:
            request = await self._load(tx, actor, request_id, lock=True)
            if request.status is RequestStatus.CLOSED:
                return request
            closed = replace(request, status=RequestStatus.CLOSED, updated_at=self._clock.now())
            closed = await tx.update(closed)
            await tx.append_event(_event(closed, actor, "request.close", {}, reason))
        return closed

    async def specs(self, actor: Actor, request_id: str) -> Specs:
        """Documents to plan, and what is missing of the others."""
        return self._specs(await self.get(actor, request_id))

    def _specs(self, request: Request) -> Specs:
        return specs(request, self._lexicon(), self._clock.now())

    def _status(self, request: Request) -> RequestStatus:
        made = self._specs(request)
        return RequestStatus.READY if made.documents and not made.missing else RequestStatus.OPEN

    async def _live_quotas(self, intake: Intake) -> tuple[QuotaFact, ...]:
        if self._live is None or not any(item.kind in SPEC_KINDS for item in intake.items):
            return ()
        facts = [*intake.shared, *(fact for item in intake.items for fact in item.facts)]

        def named(name: str) -> list[str]:
            return sorted({str(fact.value) for fact in facts if fact.name == name})

        return await self._live.quotas(named("cloud"), named("instance_type"), named("region"))

    async def _suggestions(self, message: str, intake: Intake) -> tuple[tuple[Suggestion, ...], str]:
        if self._gap_filler is None:
            return (), ""
        asked = tuple((item.number, q.fact, q.why) for item in intake.items for q in item.questions)
        try:
            return await self._gap_filler.suggest(message, asked), ""
        except Unavailable as error:
            # The rules have read the message; without proposals a person answers as before.
            return (), f"no suggestions: {error.message}"

    async def _load(self, tx: Tx, actor: Actor, request_id: str, *, lock: bool = False) -> Request:
        request = await tx.get(Request, request_id, lock=lock)
        if request is None or not _sees(actor, request):
            raise NotFound(f"no request {request_id}", "ground request list shows yours")
        return request


def _sees(actor: Actor, request: Request) -> bool:
    return actor.sees(request.project)


async def _visible_project(tx: Tx, actor: Actor, name: str) -> None:
    if not actor.sees(name) or await tx.get(Project, name) is None:
        raise NotFound(f"no project {name}", "ground projects list shows yours; ground projects create makes one")


def _names_project(intake: Intake) -> bool:
    return any(fact.name == "project" for fact in intake.shared)


def _storable(message: str) -> str:
    """No NUL and no half of a surrogate pair: databases refuse them. One mark for each keeps places true."""
    return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in message)


def _kinds(intake: Intake) -> list[str]:
    return [item.kind.value for item in intake.items]


def _event(
    request: Request, actor: Actor, action: str, after: dict[str, object], reason: str = ""
) -> EventDraft:  # The message itself stays out of the trail: it may hold what should be deleted one day.
    return EventDraft(
        at=request.updated_at,
        actor=actor.name,
        action=action,
        object_kind="request",
        object_id=request.id,
        project=request.project,
        after={"status": str(request.status), **after},
        reason=reason,
    )
