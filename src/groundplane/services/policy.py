"""The rules in force: read from the operator's folder, kept when that can't be used, judged, excepted, replayed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from groundplane.audit import Event, EventDraft
from groundplane.domain import access
from groundplane.domain.access import Project
from groundplane.domain.conditions import AtLeast
from groundplane.domain.intake.request import Request
from groundplane.domain.model import ModelVersion
from groundplane.domain.planning.plan import Plan, Verdict
from groundplane.domain.policy import rule_set
from groundplane.domain.policy.exceptions import PolicyException, checked_expiry, lifted
from groundplane.domain.policy.records import PolicyState, Replay, RuleInfo
from groundplane.domain.policy.replay import MAX_PLANS, replay
from groundplane.domain.policy.rule import Subject
from groundplane.domain.policy.rule_set import LOCKED, RuleSet
from groundplane.errors import InvalidInput, NotFound, Problem
from groundplane.identity import SYSTEM, Actor
from groundplane.ports import Clock, Ids, PolicyFiles, Store, Tx

MAX_EXCEPTIONS = 1_000
MAX_FILES = 100


class Policies:
    """Use cases over rules and exceptions. Without files the built-in rules are in force."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids, files: PolicyFiles | None = None) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._files = files
        self._rules: RuleSet = rule_set.built_in()
        self._texts: dict[str, str] = {}
        self._problems: tuple[Problem, ...] = ()
        self._loaded_at = clock.now()
        self._reload = asyncio.Lock()
        self.refusals: Counter[str] = Counter()
        """Plans that each rule refused since this process began."""

    @property
    def rules(self) -> RuleSet:
        return self._rules

    @property
    def version(self) -> str:
        """What a plan is bound to: changes whenever a verdict or its words could."""
        return self._rules.version

    @property
    def digests(self) -> dict[str, str]:
        """Each rule's digest by its id, and that of the settings."""
        return self._rules.digests()

    @property
    def summary(self) -> str:
        """What is in force, in one line; with the first reason why the folder is not."""
        said = f"{len(self._rules.judged)} rules, version {self.version[:12]}"
        return said if self.healthy else f"{said}; the folder is NOT in force: {self.problem}"

    @property
    def problem(self) -> str:
        """Why the folder as it was last read is not in force; empty when it is."""
        return str(self._problems[0]) if self._problems else ""

    @property
    def healthy(self) -> bool:
        """Whether the folder as it was last read is what is in force."""
        return not self._problems

    # ------------------------------------------------------------ the rules in force

    async def start(self) -> None:
        """Reads the folder as the process begins. A folder that can't be used leaves the set that was last in force."""
        if self._files is None:
            return
        # First the set that was in force before, so that a broken file never quietly opens what was closed.
        await self._take(SYSTEM, await self._files.last_good(), "last good rules")
        try:
            await self.reload(SYSTEM, "start")
        except InvalidInput as error:
            self._problems = error.problems or (Problem(field="", message=error.message, hint=error.hint),)

    async def reload(self, actor: Actor, reason: str = "") -> PolicyState:
        """Reads the folder and takes all of it, or nothing: InvalidInput tells every fault, and the old set stays."""
        async with self._reload:
            texts = await self._read()
            try:
                await self._take(actor, texts, reason)
            except InvalidInput as error:
                self._problems = error.problems
                raise
            if self._files is not None:
                await self._files.keep(texts)
            self._problems = ()
        return await self.state()

    async def state(self) -> PolicyState:
        """The set in force, and whether the folder has become another since."""
        try:
            now_there = await self._read()
        except InvalidInput:
            now_there = {"": ""}
        return PolicyState(
            version=self._rules.version,
            loaded_at=self._loaded_at,
            folder=self._files.folder if self._files else "",
            files=tuple(sorted(self._texts)),
            rules=self._rules.infos(),
            problems=self._problems,
            pending=now_there != self._texts,
            refusals=dict(self.refusals),
        )

    def rule(self, rule_id: str) -> RuleInfo:
        """Raises NotFound."""
        found = next((each for each in self._rules.infos() if each.id == rule_id), None)
        if found is None:
            raise NotFound(f"no rule {rule_id}", "ground policy list")
        return found

    async def _read(self) -> dict[str, str]:
        return await self._files.read() if self._files is not None else {}

    async def _take(self, actor: Actor, texts: dict[str, str], reason: str) -> None:
        rules = await asyncio.to_thread(_built, texts)
        now = self._clock.now()
        async with self._store.transaction() as tx:
            last = await tx.find(Event, {"object_kind": "policy", "object_id": "rules"}, order="-id", limit=1)
            before = last[0].after if last else {"version": rule_set.built_in().version}
            if before.get("version") != rules.version:
                after: dict[str, object] = {"version": rules.version, "files": sorted(texts)}
                after |= _changes(self._rules, rules)
                await _tell(tx, actor, now, "policy.change", "rules", before=before, after=after, reason=reason)
        self._rules, self._texts, self._loaded_at = rules, dict(texts), now

    # ------------------------------------------------------------ judging

    async def judge(self, tx: Tx, subject: Subject, *, at_apply: bool = False) -> tuple[Verdict, ...]:
        """Every rule's word on a plan, lifted where an exception holds; refusals are counted when it is made."""
        meta, now = subject.spec.metadata, subject.now
        verdicts = self._rules.judge(subject, at_apply=at_apply)
        if any(verdict.refused is not None or verdict.approval for verdict in verdicts):
            where: dict[str, object] = {"project": meta.project, "expires_at": AtLeast(now)}
            held = await tx.find(PolicyException, where, limit=MAX_EXCEPTIONS)
            verdicts = lifted(verdicts, held, LOCKED, project=meta.project, name=meta.name, now=now)
        if not at_apply:
            self.refusals.update(verdict.rule for verdict in verdicts if verdict.refused is not None)
        return verdicts

    async def judge_request(self, actor: Actor, request_id: str) -> tuple[Verdict, ...]:
        """The word of every rule over requests on one of them."""
        async with self._store.transaction() as tx:
            request = await tx.get(Request, request_id)
        if request is None or not actor.sees(request.project):
            raise NotFound(f"no request {request_id}", "ground request list shows yours")
        return self._rules.judge_request(request, self._clock.now())

    # ------------------------------------------------------------ exceptions

    async def add_exception(
        self,
        actor: Actor,
        *,
        rule: str,
        project: str,
        owner: str,
        reason: str,
        expires_at: datetime,
        name: str = "",
    ) -> PolicyException:
        """Lifts a rule for a project, or for one name in it. NotFound for a rule or a project that is not there."""
        found = self.rule(rule)
        if found.locked:
            raise InvalidInput(f"nobody is excepted from {rule}: {found.why}", found.hint)
        now = self._clock.now()
        made = PolicyException(
            id=self._ids.new("exc"),
            rule=rule,
            project=project,
            name=name and access.checked_name(name, "name"),
            owner=access.checked_text(owner, "owner"),
            reason=access.checked_text(reason, "reason"),
            expires_at=checked_expiry(expires_at, now),
            created_by=actor.name,
            created_at=now,
        )
        async with self._store.transaction() as tx:
            if not actor.sees(project) or await tx.get(Project, project) is None:
                raise NotFound(f"no project {project[:80]!r}", "ground projects list")
            await tx.insert(made)
            await _tell(tx, actor, now, "policy.except", made.id, project, after=_facts(made), reason=made.reason)
        return made

    async def exceptions(
        self, actor: Actor, *, project: str | None = None, over_too: bool = False
    ) -> list[PolicyException]:
        """Those that hold, soonest to end first; with `over_too` those that have ended as well."""
        now = self._clock.now()
        where: dict[str, object] = {} if over_too else {"expires_at": AtLeast(now)}
        if project is not None:
            where["project"] = project
        async with self._store.transaction() as tx:
            found = await tx.find(PolicyException, where, order="expires_at", limit=MAX_EXCEPTIONS)
        return [each for each in found if actor.sees(each.project) and (over_too or each.expires_at > now)]

    async def remove_exception(self, actor: Actor, exception_id: str, reason: str = "") -> PolicyException:
        """Ends it now: what is planned or applied from here on is judged by the rule again. Raises NotFound."""
        now = self._clock.now()
        async with self._store.transaction() as tx:
            found = await tx.get(PolicyException, exception_id, lock=True)
            if found is None or not actor.sees(found.project):
                raise NotFound(f"no exception {exception_id}", "ground policy except list")
            await tx.delete(PolicyException, exception_id)
            await _tell(tx, actor, now, "policy.unexcept", found.id, found.project, before=_facts(found), reason=reason)
        return replace(found, expires_at=min(found.expires_at, now))

    # ------------------------------------------------------------ replay

    async def replay(self, actor: Actor, texts: Mapping[str, str], since: datetime) -> Replay:
        """What the folder would have said with `texts` laid over it, of the plans made since then that the actor sees.

        Nothing is stored. At most `MAX_PLANS` plans, the newest. Raises InvalidInput for files that can't be used.
        """
        proposed = {**self._texts, **texts}
        where: dict[str, object] = {"created_at": AtLeast(since)}
        if actor.project is not None and not actor.sees(""):
            where["project"] = actor.project
        async with self._store.transaction() as tx:
            plans = await tx.find(Plan, where, order="-created_at", limit=MAX_PLANS + 1)
            names = tuple({plan.endpoint.model for plan in plans if plan.endpoint is not None})
            models = await tx.find(ModelVersion, {"id": names}) if names else []
        seen = [plan for plan in plans[:MAX_PLANS] if actor.sees(plan.project)]
        return await asyncio.to_thread(
            _replayed, proposed, self._rules, seen, {each.id: each for each in models}, since, len(plans) > MAX_PLANS
        )


def _built(texts: Mapping[str, str]) -> RuleSet:
    if len(texts) > MAX_FILES:
        raise InvalidInput(f"{len(texts)} policy files; the limit is {MAX_FILES}", "put several rules into one file")
    return rule_set.build(rule_set.read_files(texts))


def _replayed(
    texts: Mapping[str, str],
    current: RuleSet,
    plans: list[Plan],
    models: Mapping[str, ModelVersion],
    since: datetime,
    truncated: bool,
) -> Replay:
    rules = _built(texts)
    dropped = frozenset(each.rule.id for each in current.judged) - {each.rule.id for each in rules.judged}
    return replay(rules, plans, models, since=since, dropped=dropped, truncated=truncated)


def _changes(before: RuleSet, after: RuleSet) -> dict[str, object]:
    """Which rules came, went and changed, for the trail."""
    old = {each.id: each for each in before.infos()}
    new = {each.id: each for each in after.infos()}
    return {
        "added": sorted(set(new) - set(old)),
        "removed": sorted(set(old) - set(new)),
        "changed": sorted(id for id in set(old) & set(new) if _unplaced(old[id]) != _unplaced(new[id])),
        "settings_changed": before.settings != after.settings,
    }


def _unplaced(info: RuleInfo) -> RuleInfo:
    return replace(info, source="", changed_by="")


def _facts(made: PolicyException) -> dict[str, object]:
    return {"rule": made.rule, "name": made.name, "owner": made.owner, "expires_at": made.expires_at}


async def _tell(
    tx: Tx,
    actor: Actor,
    now: datetime,
    action: str,
    object_id: str,
    project: str = "",
    *,
    before: Mapping[str, object] | None = None,
    after: Mapping[str, object] | None = None,
    reason: str = "",
) -> None:
    await tx.append_event(
        EventDraft(
            at=now, actor=actor.name, action=action, object_kind="policy", object_id=object_id, project=project,
            before=dict(before or {}), after=dict(after or {}), reason=reason,
        )
    )  # fmt: skip
