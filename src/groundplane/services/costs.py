"""Money: reserved before it is spent, settled while it is spent, reported from the ledger.

Every hold and every charge of a budget is decided under that budget's row lock, so the limit holds under concurrency.
The transaction-level methods (`hold`, `post`, `close`) leave the audit event to their caller, who knows why.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from groundplane.audit import EventDraft
from groundplane.domain import budget as money
from groundplane.domain import ledger
from groundplane.domain.access import Key, Project, is_active, may_infer
from groundplane.domain.budget import Budget, Hold, HoldStatus
from groundplane.domain.conditions import Below, Between
from groundplane.domain.ledger import CostRow, LedgerEntry, UsageRecord
from groundplane.errors import InvalidInput, NotFound, Refused
from groundplane.identity import CROSS_PROJECT, SYSTEM, Actor
from groundplane.ports import Clock, Ids, Notice, Notifier, Store, Tx, UsageLog
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller
from groundplane.services.gateway_limits import charge_limits
from groundplane.units import format_usd

_CLOSED_HOLDS_SHOWN = 200
_HTTP_ERROR = 400
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Purse:
    """What is known of one project's money for the gateway. `wanted`: active keys reach models, and it has a budget."""

    project: Project
    wanted: bool
    hold: Hold | None
    budget: Budget | None


class Costs:
    """Budgets, holds, the ledger, and what is reported of them."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        ids: Ids,
        usage_log: UsageLog,
        gateway_slice_microusd: int,
        notify: Notifier,
    ) -> None:
        self._store = store
        self._clock = clock
        self._tell, self._tell_project = Teller(clock, "budget"), Teller(clock, "project")
        self._ids = ids
        self._usage_log = usage_log
        self._slice_microusd = gateway_slice_microusd
        self._dearest_microusd: Mapping[str, int] = {}
        self._notify = notify
        self._unsent: list[Notice] = []

    # ------------------------------------------------------------ inside a caller's transaction

    async def hold(self, tx: Tx, *, project: str, subject: str, amount_microusd: int) -> Hold | Refused:
        """Reserves money for a subject until `close`. Conflict when the subject has a pending hold already."""
        now = self._clock.now()
        opened = await self._month(tx, project, now)
        if opened is None:
            return money.no_budget(project)
        reserved = money.reserve(opened, amount_microusd)
        if isinstance(reserved, Refused):
            return reserved
        hold = self._new_hold(opened, subject, amount_microusd, now)
        await tx.insert(hold)
        await tx.update(reserved)
        return hold

    async def post(self, tx: Tx, entry: LedgerEntry) -> bool:
        """Charges an entry once: False when its id is in the ledger already.

        It is paid from its hold, in the month that reserved it. What the hold can't cover is taken from the budget,
        even beyond the limit, because it was spent; the event `hold.overrun` says so.
        """
        added, overruns = await self._charge(tx, [entry])
        for draft in overruns:
            await tx.append_event(draft)
        return bool(added)

    async def close(self, tx: Tx, hold_id: str) -> Hold:
        """Frees what remains of a hold. Twice is the same as once. NotFound when there is no such hold."""
        budget, hold = await self._locked_hold(tx, hold_id)
        return await self._release(tx, budget, hold)

    async def _release(self, tx: Tx, budget: Budget, hold: Hold) -> Hold:
        if hold.status is not HoldStatus.PENDING:
            return hold
        freed, closed = money.release(budget, hold, self._clock.now())
        await tx.update(freed)
        return await tx.update(closed)

    async def _locked_hold(self, tx: Tx, hold_id: str) -> tuple[Budget, Hold]:
        """A hold and its budget, the budget locked. Holds change only under that lock, so it is read after locking."""
        found = await tx.get(Hold, hold_id)
        if found is None:
            raise NotFound(f"no hold {hold_id}")
        budget = await tx.get(Budget, found.budget_id, lock=True)
        hold = await tx.get(Hold, hold_id)
        assert budget is not None and hold is not None, f"the database lost the budget of hold {hold_id}"
        return budget, hold

    async def _month(self, tx: Tx, project: str, moment: datetime, *, always: bool = False) -> Budget | None:
        """The project's budget of a month, locked; made from the project's monthly limit when it is the first asked.

        None for a project without a budget, unless `always`: what was spent is written down even so.
        """
        budget_id = money.budget_id(project, moment)
        budget = await tx.get(Budget, budget_id, lock=True)
        if budget is not None:
            return budget
        # The project's row is locked so that `set_budget` can't change the limit between our reading and writing.
        owner = await tx.get(Project, project, lock=True)
        limit = owner.monthly_limit_microusd if owner is not None else None
        if limit is None and not always:
            return None
        fresh = Budget(id=budget_id, project=project, period=money.period_of(moment), limit_microusd=limit or 0)
        if owner is not None:
            fresh = replace(fresh, thresholds_percent=owner.thresholds_percent)
        await tx.insert_once(fresh)
        return await tx.get(Budget, budget_id, lock=True)

    def _new_hold(self, budget: Budget, subject: str, amount_microusd: int, now: datetime) -> Hold:
        return Hold(
            id=self._ids.new("hold"),
            budget_id=budget.id,
            project=budget.project,
            subject=subject,
            amount_microusd=amount_microusd,
            created_at=now,
        )

    async def _charge(self, tx: Tx, entries: Sequence[LedgerEntry]) -> tuple[frozenset[str], list[EventDraft]]:
        """Writes new entries and moves their money: one lock and one update per hold or month, however many entries.

        Returns the ids that were new, and the events to append at the end of the transaction.
        """
        groups: dict[tuple[str, str, str], list[LedgerEntry]] = defaultdict(list)
        for entry in entries:
            month = "" if entry.hold_id else money.period_of(entry.occurred_at)
            groups[entry.project, entry.hold_id, month].append(entry)
        added: set[str] = set()
        overruns: list[EventDraft] = []
        # Sorted, so that two transactions lock the same budgets in the same order.
        for (project, hold_id, _), group in sorted(groups.items(), key=lambda item: item[0]):
            hold: Hold | None = None
            if hold_id:
                budget, hold = await self._locked_hold(tx, hold_id)
            else:
                opened = await self._month(tx, project, group[0].occurred_at, always=True)
                assert opened is not None
                budget = opened
            new = await tx.insert_many_once(group)
            amounts = {entry.id: entry.amount_microusd for entry in group if entry.id in new}
            added |= new
            if not sum(amounts.values()):
                continue
            posting = money.post(budget, hold, sum(amounts.values()))
            await tx.update(posting.budget)
            if posting.hold is not None:
                await tx.update(posting.hold)
                if more := posting.overrun_microusd:
                    why = f"{format_usd(more)} more was spent than {posting.hold.subject} had reserved"
                    event = self._hold_event("hold.overrun", posting.hold, why, taken_from_budget_microusd=more)
                    overruns.append(event)
        return frozenset(added), overruns

    def _hold_event(self, action: str, hold: Hold, reason: str, **more: object) -> EventDraft:
        after = {"subject": hold.subject, "held_microusd": hold.amount_microusd, "spent_microusd": hold.posted_microusd}
        return EventDraft(
            at=self._clock.now(),
            actor=SYSTEM.name,
            action=action,
            object_kind="hold",
            object_id=hold.id,
            project=hold.project,
            after=after | more,
            reason=reason,
        )

    # ------------------------------------------------------------ budgets

    async def set_budget(
        self,
        actor: Actor,
        *,
        project: str,
        monthly_limit_microusd: int | None,
        thresholds_percent: tuple[int, ...] = (50, 80, 100),
        reason: str = "",
    ) -> Budget:
        """The monthly limit from this month on; None takes the budget away. Money already held stays held."""
        limit = money.checked_limit(monthly_limit_microusd)
        thresholds = money.checked_thresholds(thresholds_percent)
        now = self._clock.now()
        async with self._store.transaction() as tx:
            before = await visible_project(tx, actor, project, lock=True)
            await tx.update(replace(before, monthly_limit_microusd=limit, thresholds_percent=thresholds))
            month = await self._month(tx, project, now, always=True)
            assert month is not None
            changed = money.relimited(month, limit or 0, thresholds)
            if changed != month:
                changed = await tx.update(changed)
            was = _limit_facts(before.monthly_limit_microusd, before.thresholds_percent)
            after = _limit_facts(limit, thresholds)
            await self._tell_project(tx, actor, "budget.set", project, project, after, reason, before=was)
        return changed

    async def budget(self, actor: Actor, project: str) -> Budget:
        """This month's limit, what is held and what is spent. NotFound for a project without a budget."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            found = await visible_project(tx, actor, project)
            if found.monthly_limit_microusd is None:
                raise NotFound(f"project {project} has no budget", money.no_budget(project).hint)
            month = await tx.get(Budget, money.budget_id(project, now)) or await self._month(tx, project, now)
            assert month is not None
            return month

    async def budget_actions(self) -> list[Notice]:
        """Tells people of each threshold that spending crossed, once: the event is written, then the notice sent.

        Raises Unavailable when a notice could not be sent; it is sent again by the next call.
        """
        now = self._clock.now()
        async with self._store.transaction() as tx:
            budgets = await tx.find(Budget, {"period": self._recent_periods(now)})
        for budget in budgets:
            if money.due_actions(budget):
                self._unsent += await self._fire(budget.id, now)
        sent = []
        while self._unsent:
            await self._notify.send(self._unsent[0])
            sent.append(self._unsent.pop(0))
        return sent

    def _recent_periods(self, now: datetime) -> tuple[str, ...]:
        # A run admitted last month still spends from last month's budget.
        year, month = now.year, now.month
        return tuple(f"{(year * 12 + month - 1 - back) // 12}-{(month - 1 - back) % 12 + 1:02}" for back in range(3))

    async def _fire(self, budget_id: str, now: datetime) -> list[Notice]:
        async with self._store.transaction() as tx:
            budget = await tx.get(Budget, budget_id, lock=True)
            assert budget is not None, f"budget {budget_id} vanished"
            due = money.due_actions(budget)
            if not due:  # another process was first
                return []
            await tx.update(replace(budget, fired_percent=tuple(sorted({*budget.fired_percent, *due}))))
            notices = [_notice(budget, percent, now) for percent in due]
            for percent, notice in zip(due, notices, strict=True):
                after = {
                    "percent": percent,
                    "spent_microusd": budget.posted_microusd,
                    "limit_microusd": budget.limit_microusd,
                }
                await self._tell(tx, SYSTEM, "budget.threshold", budget.id, budget.project, after, notice.title)
            return notices

    async def holds(self, actor: Actor, project: str | None = None) -> list[Hold]:
        """Every pending hold the actor sees, then the newest closed ones."""
        async with self._store.transaction() as tx:
            where: dict[str, object] = {}
            if project is not None:
                await visible_project(tx, actor, project)
                where["project"] = project
            elif actor.role not in CROSS_PROJECT:
                where["project"] = actor.project
            pending = await tx.find(Hold, where | {"status": HoldStatus.PENDING}, order="-created_at")
            over = where | {"status": (HoldStatus.POSTED, HoldStatus.VOIDED)}
            return pending + await tx.find(Hold, over, order="-closed_at", limit=_CLOSED_HOLDS_SHOWN)

    # ------------------------------------------------------------ the gateway's money

    async def ingest(self, limit: int = 1000) -> int:
        """Takes settled requests from the gateway's log into the ledger; returns how many were read.

        Each request id is charged once: a crash between commit and acknowledgement makes the log give the same
        records again, and their ids are in the ledger by then.
        """
        records = await self._usage_log.read(limit)
        if not records:
            return 0
        async with self._store.transaction() as tx:
            new = await tx.insert_many_once(records)
            if new:
                fresh = {record.id: record for record in reversed(records) if record.id in new}
                await charge_limits(tx, list(fresh.values()))
                _, overruns = await self._charge(tx, await self._rated(tx, list(fresh.values())))
                for draft in overruns:
                    await tx.append_event(draft)
        await self._usage_log.acknowledge(len(records))
        return len(records)

    async def _rated(self, tx: Tx, records: Sequence[UsageRecord]) -> list[LedgerEntry]:
        """A ledger entry for every answered request, and for a failed one that cost something."""
        names = tuple({record.project for record in records})
        keys = {key.id: key for key in await tx.find(Key, {"id": tuple({record.key_id for record in records})})}
        projects = {project.id: project for project in await tx.find(Project, {"id": names})}
        subjects = tuple(_subject(name) for name in names)
        pending = await tx.find(Hold, {"subject": subjects, "status": HoldStatus.PENDING})
        holds = {hold.project: hold.id for hold in pending}
        now = self._clock.now()
        entries = []
        for record in records:
            if record.status >= _HTTP_ERROR and not record.amount_microusd:
                continue
            key, project = keys.get(record.key_id), projects.get(record.project)
            owner = key.owner if key else project.owner if project else _UNKNOWN
            center = project.cost_center if project else _UNKNOWN
            hold_id = holds.get(record.project, "")
            entries.append(ledger.token_entry(record, owner=owner, cost_center=center, hold_id=hold_id, now=now))
        return entries

    async def top_up_gateway(self, dearest_microusd: Mapping[str, int] | None = None) -> None:
        """Keeps one pending hold `gateway/<project>` for each project whose keys reach models.

        It is filled up to the slice, or to a share of what is left of the month; a new month gets a new hold, and
        a project whose last key ended gets its money back. `dearest_microusd`: what one request may cost at most, by
        project: a slice has room for it.
        """
        now = self._clock.now()
        self._dearest_microusd = dearest_microusd or {}
        for purse in await self._purses(now):
            if self._needs_top_up(purse, now):
                async with self._store.transaction() as tx:
                    await self._top_up(tx, purse, now)

    async def gateway_budgets(self) -> dict[str, int]:
        """Micro-dollars the gateway may still spend per project, after all usage in the ledger.

        A project with a budget and nothing left is there with 0; one without a budget is absent.
        """
        found: dict[str, int] = {}
        for purse in await self._purses(self._clock.now()):
            if purse.hold is not None:
                found[purse.project.id] = purse.hold.remaining_microusd
            elif purse.wanted:
                found[purse.project.id] = 0
        return found

    async def _purses(self, now: datetime) -> list[_Purse]:
        async with self._store.transaction() as tx:
            projects = await tx.find(Project)
            keys = await tx.find(Key, {"revoked_at": None})
            subjects = tuple(_subject(project.id) for project in projects)
            pending = await tx.find(Hold, {"subject": subjects, "status": HoldStatus.PENDING})
            months = await tx.find(Budget, {"period": money.period_of(now)})
        callers = {key.project for key in keys if may_infer(key) and is_active(key, now)}
        holds = {hold.project: hold for hold in pending}
        budgets = {budget.project: budget for budget in months}
        return [
            _Purse(
                project=project,
                wanted=project.id in callers and project.monthly_limit_microusd is not None,
                hold=holds.get(project.id),
                budget=budgets.get(project.id),
            )
            for project in projects
        ]

    def _needs_top_up(self, purse: _Purse, now: datetime) -> bool:
        """A look without a lock, so that the loop writes only when something is to be done."""
        hold = purse.hold
        if not purse.wanted:
            return hold is not None
        if hold is not None and hold.budget_id != money.budget_id(purse.project.id, now):
            return True
        return purse.budget is None or self._missing_microusd(purse.budget, hold) > 0

    def _missing_microusd(self, budget: Budget, hold: Hold | None) -> int:
        held = hold.remaining_microusd if hold is not None else 0
        dearest = self._dearest_microusd.get(budget.project, 0)
        return money.slice_missing_microusd(budget, held, self._slice_microusd, dearest)

    async def _top_up(self, tx: Tx, purse: _Purse, now: datetime) -> None:
        name = purse.project.id
        events: list[EventDraft] = []
        hold: Hold | None = None
        if purse.hold is not None:
            budget, hold = await self._locked_hold(tx, purse.hold.id)
            if not purse.wanted or hold.budget_id != money.budget_id(name, now):
                why = "a new month began" if purse.wanted else "no active key of a project with a budget needs it"
                closed = await self._release(tx, budget, hold)
                events.append(self._hold_event("hold.close", closed, why))
                hold = None
        opened = await self._month(tx, name, now) if purse.wanted else None
        if opened is not None:
            await self._fill(tx, opened, hold, now, events)
        for draft in events:
            await tx.append_event(draft)

    async def _fill(self, tx: Tx, budget: Budget, hold: Hold | None, now: datetime, events: list[EventDraft]) -> None:
        if hold is not None and hold.status is HoldStatus.PENDING:
            grown_budget, grown = money.grow(budget, hold, self._missing_microusd(budget, hold))
            if grown != hold:
                await tx.update(grown_budget)
                await tx.update(grown)
            return
        if await tx.find(Hold, {"subject": _subject(budget.project), "status": HoldStatus.PENDING}, limit=1):
            return  # another process was first
        amount = self._missing_microusd(budget, None)
        reserved = money.reserve(budget, amount)
        if amount == 0 or isinstance(reserved, Refused):
            return
        fresh = self._new_hold(budget, _subject(budget.project), amount, now)
        await tx.insert(fresh)
        await tx.update(reserved)
        events.append(self._hold_event("hold.open", fresh, "the gateway spends from it"))

    # ------------------------------------------------------------ reports

    async def report(self, actor: Actor, *, by: str, since: datetime, until: datetime) -> list[CostRow]:
        """What `since ≤ time < until` cost, per group, dearest first, of the projects the actor sees."""
        column = ledger.GROUPINGS.get(by)
        if column is None:
            raise InvalidInput(f"costs can't be grouped by {by[:40]!r}", f"one of: {', '.join(ledger.GROUPINGS)}")
        if since >= until:
            raise InvalidInput(f"the period from {since} to {until} is empty", "put since before until")
        where: dict[str, object] = {} if actor.role in CROSS_PROJECT else {"project": actor.project}
        charged = where | {"occurred_at": Between(since, until)}
        async with self._store.transaction() as tx:
            sums = await tx.total(LedgerEntry, "amount_microusd", by=(column, "kind", "endpoint"), where=charged)
            tokens = await self._token_counts(tx, by, where | {"started_at": Between(since, until)})
        amounts: dict[tuple[str, str, bool], int] = defaultdict(int)
        for (group, kind, endpoint), amount in sums.items():
            amounts[str(group), str(kind), bool(endpoint)] += amount
        return ledger.cost_rows(amounts, tokens)

    async def _token_counts(self, tx: Tx, by: str, where: dict[str, object]) -> dict[str, dict[str, int]]:
        """Per group: prompt, completion and cached tokens, and answered requests. Requests belong to no run."""
        columns = {"key": "key_id", "owner": "key_id", "cost_center": "project", "project": "project", "model": "model"}
        column = columns.get(by)
        names: dict[str, str] = {}
        if by == "owner":
            names = {key.id: key.owner for key in await tx.find(Key)}
        elif by == "cost_center":
            names = {project.id: project.cost_center for project in await tx.find(Project)}
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        answered = where | {"status": Below(_HTTP_ERROR)}
        for what, name, wanted in (
            ("prompt_tokens", "prompt_tokens", where),
            ("completion_tokens", "completion_tokens", where),
            ("cached_tokens", "cached_tokens", where),
            ("requests", "*", answered),
            ("saved_microusd", "saved_microusd", where),
            ("cache_hits", "*", where | {"cache": "hit"}),
        ):
            sums = await tx.total(UsageRecord, name, by=(column,) if column else (), where=wanted)
            for group, number in sums.items():
                label = str(group[0]) if group else ""
                if number:
                    counts[names.get(label, _UNKNOWN) if names else label][what] += number
        return counts


def _subject(project: str) -> str:
    return f"gateway/{project}"


def _limit_facts(limit_microusd: int | None, thresholds_percent: tuple[int, ...]) -> dict[str, object]:
    limit = None if limit_microusd is None else format_usd(limit_microusd)
    return {"monthly_limit": limit, "thresholds_percent": thresholds_percent}


def _notice(budget: Budget, percent: int, now: datetime) -> Notice:
    spent, limit = format_usd(budget.posted_microusd), format_usd(budget.limit_microusd)
    return Notice(
        at=now,
        kind="budget.threshold",
        project=budget.project,
        title=f"project {budget.project} has spent {percent}% of its budget for {budget.period}: {spent} of {limit}",
        text=f"{format_usd(money.left_microusd(budget))} is left; raise it with "
        f"`ground budget set {budget.project} USD`, see where it went with `ground cost --by run`",
    )
