"""Gates: defined, judged on kept evidence, measured for, approved, waived. Every move of an alias passes here."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.access import checked_text
from groundplane.domain.canonical import part_of, rows_of
from groundplane.domain.conditions import AtLeast
from groundplane.domain.dataset import DatasetVersion
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.gate import (
    MEASURED,
    SAMPLES_MAX,
    STATED,
    Case,
    DataAge,
    Evidence,
    Gate,
    GateApproval,
    GateCheck,
    Kind,
    Waiver,
    evaluation_of,
    judge,
    waived,
)
from groundplane.domain.gate_file import REQUESTS_MAX, read_gates
from groundplane.domain.model import ModelVersion, check_alias
from groundplane.domain.policy.exceptions import checked_expiry
from groundplane.domain.provenance import certificate as cert
from groundplane.domain.provenance.addendum import AddendumKind
from groundplane.domain.registry import AliasMove, ModelAlias
from groundplane.domain.run import Run
from groundplane.errors import Conflict, InvalidInput, NotFound, Refusal, Refused, Unavailable
from groundplane.identity import Actor
from groundplane.ports import Clock, Ids, ModelServer, Store, Tx
from groundplane.services.access import visible_project
from groundplane.services.addenda import Addenda
from groundplane.services.audit_trail import Teller
from groundplane.services.models import Models

MAX_LISTED = 1_000
AT_ONCE_MAX = 32
_EVIDENCE_MAX = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What somebody states about a version: a score for each example, or how many of how many were right."""

    metric: str
    values: tuple[float, ...] = ()
    successes: int | None = None
    trials: int | None = None
    note: str = ""


class Gates:
    """Use cases over gates. `allow` is what stands behind every move of an alias, through whichever door it comes."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        ids: Ids,
        models: Models,
        engines: Mapping[str, ModelServer],
        addenda: Addenda,
    ) -> None:
        self._store, self._clock, self._ids = store, clock, ids
        self._tell = Teller(clock, "gate")
        self._models, self._engines, self._addenda = models, engines, addenda
        self.verdicts: Counter[tuple[str, str]] = Counter()
        """(kind of requirement's gate, verdict) → how often since this process began."""

    # ------------------------------------------------------------ the gates

    async def define(self, actor: Actor, text: str) -> list[Gate]:
        """Takes every gate of a YAML stream, in place of those of the same name; all of them, or none.

        Raises InvalidInput with every fault and its line, NotFound for an unseen project.
        """
        gates = read_gates(text, by=actor.name, now=self._clock.now())
        async with self._store.transaction() as tx:
            for gate in gates:
                await visible_project(tx, actor, gate.project)
                await tx.delete(Gate, gate.id)
                await tx.insert(gate)
            for gate in gates:
                after: dict[str, object] = {
                    "model": gate.model,
                    "aliases": list(gate.aliases),
                    "requirements": [each.id for each in gate.requirements],
                }
                await self._tell(tx, actor, "gate.define", gate.id, gate.project, after)
        return gates

    async def gates(self, actor: Actor, *, model: str = "", project: str = "") -> list[Gate]:
        """By id; those before any alias of `model` when one is given."""
        async with self._store.transaction() as tx:
            found = await tx.find(Gate, {"project": project} if project else None, limit=MAX_LISTED)
        return [
            gate
            for gate in found
            if actor.sees(gate.project) and (not model or any(gate.guards(model, alias) for alias in gate.aliases))
        ]

    async def remove(self, actor: Actor, gate_id: str, reason: str = "") -> Gate:
        """Takes a gate away. Raises NotFound."""
        async with self._store.transaction() as tx:
            gate = await tx.get(Gate, gate_id)
            if gate is None or not actor.sees(gate.project):
                raise NotFound(f"there is no gate {gate_id}", "ground gates list")
            await tx.delete(Gate, gate_id)
            await self._tell(tx, actor, "gate.remove", gate.id, gate.project, {"name": gate.name}, reason)
        return gate

    # ------------------------------------------------------------ judging

    async def allow(
        self, tx: Tx, actor: Actor, version: ModelVersion, alias: str, current: ModelAlias | None
    ) -> GateCheck:
        """Judges a wanted move inside the caller's transaction and writes the verdicts down, whatever they are.

        `current` is the alias as it stands, locked. The move may happen exactly if the answer has `passed`.
        """
        now = self._clock.now()
        gates = [gate for gate in await tx.find(Gate, {"project": version.project}) if gate.guards(version.name, alias)]
        stood = current.number if current else await _last_number(tx, f"{version.name}@{alias}")
        baseline = f"{version.name}@{stood}" if stood else ""
        verdicts = []
        if gates:
            case = await self._case(tx, version, alias, baseline, now)
            waivers = await tx.find(Waiver, {"project": version.project, "expires_at": AtLeast(now)})
            verdicts = [verdict for gate in gates for verdict in judge(gate, case, waivers)]
        check = GateCheck(
            id=self._ids.new("check"),
            version_id=version.id,
            alias=alias,
            project=version.project,
            baseline=baseline,
            gates=tuple(gate.id for gate in gates),
            verdicts=tuple(verdicts),
            passed=not any(verdict.open for verdict in verdicts),
            by=actor.name,
            at=now,
        )
        await tx.insert(check)
        self.verdicts.update((verdict.gate_id, str(verdict.status)) for verdict in verdicts)
        return check

    async def check(self, actor: Actor, ref: str, alias: str) -> GateCheck:
        """What the gates would say of a move now. Kept as every verdict is; nothing moves."""
        check_alias(alias)
        version = await self._models.get(actor, ref)
        async with self._store.transaction() as tx:
            current = await tx.get(ModelAlias, f"{version.name}@{alias}")
            return await self.allow(tx, actor, version, alias, current)

    async def checks(self, actor: Actor, ref: str, limit: int = 100) -> list[GateCheck]:
        """What gates said of a version, newest first."""
        version = await self._models.get(actor, ref)
        async with self._store.transaction() as tx:
            return await tx.find(GateCheck, {"version_id": version.id}, order="-at", limit=min(limit, MAX_LISTED))

    async def _case(self, tx: Tx, version: ModelVersion, alias: str, baseline: str, now: datetime) -> Case:
        problems = self._models.problems(version)
        said: Mapping[str, object] = {}
        if not problems:
            said = cert.open_envelope(version.certificate).predicate
        where = {"version_id": version.id, "alias": alias}
        approvals = [
            each
            for each in await tx.find(GateApproval, where)
            if each.certificate_sha256 == version.certificate_sha256 and each.by != version.created_by
        ]
        return Case(
            version_id=version.id,
            alias=alias,
            now=now,
            metrics=version.metrics,
            evidence=await _evidence(tx, version.id),
            baseline_id=baseline,
            baseline=await _evidence(tx, baseline) if baseline else (),
            data=await _ages(tx, said, version.project),
            missing_facts=_missing(said),
            certificate_problem=str(problems[0]) if problems else "",
            scan_rules=self._models.scan_rules(),
            approvals=approvals,
        )

    # ------------------------------------------------------------ evidence

    async def evidence(self, actor: Actor, ref: str) -> list[Evidence]:
        """What is known about a version beside its certificate, newest first."""
        version = await self._models.get(actor, ref)
        async with self._store.transaction() as tx:
            return list(await _evidence(tx, version.id))

    async def state(self, actor: Actor, ref: str, scores: Scores) -> Evidence:
        """Keeps what somebody states. It never counts before what the certificate says, and says who stated it."""
        version = await self._models.get(actor, ref)
        counted = scores.successes is not None or scores.trials is not None
        if counted:
            good = scores.successes is not None and scores.trials is not None
            if not good or not 0 <= (scores.successes or 0) <= (scores.trials or 0) or not scores.trials:
                raise InvalidInput("these are no counts", "give --successes K and --trials N with 0 ≤ K ≤ N, N ≥ 1")
        elif not 1 <= len(scores.values) <= SAMPLES_MAX:
            raise InvalidInput(f"{len(scores.values)} values", f"give 1 to {SAMPLES_MAX:,}, or counts")
        return await self._keep(
            actor,
            version,
            Kind.METRIC,
            checked_text(scores.metric, "metric"),
            source=STATED,
            values=scores.values if not counted else (),
            successes=scores.successes,
            trials=scores.trials,
            facts={"note": scores.note} if scores.note else {},
        )

    async def measure(self, actor: Actor, endpoint_name: str, *, requests: int, at_once: int = 1) -> Evidence:
        """Sends real prompts to an endpoint's replica and keeps their latencies and cost for the version it serves.

        Raises Conflict unless it is ready, and when it serves another version at the end than at the beginning.
        """
        if not 1 <= requests <= REQUESTS_MAX or not 1 <= at_once <= AT_ONCE_MAX:
            raise InvalidInput(
                f"{requests} requests, {at_once} at once", f"up to {REQUESTS_MAX:,} requests, {AT_ONCE_MAX} at once"
            )
        endpoint, run = await self._serving(actor, endpoint_name)
        engine = self._engines.get(endpoint.spec.engine)
        if engine is None:
            raise Unavailable(f"engine {endpoint.spec.engine} is not known here", "serve it on this installation")
        gate = asyncio.Semaphore(at_once)
        failures: list[str] = []

        async def ask() -> float | None:
            async with gate:
                answer = await engine.ready(endpoint.base_url, endpoint.id)
            if not answer.ok:
                failures.append(answer.detail)
            return answer.latency_s if answer.ok else None

        started = time.monotonic()
        answers = await asyncio.gather(*(ask() for _ in range(requests)))
        wall_s = time.monotonic() - started
        after, _ = await self._serving(actor, endpoint_name)
        if (after.model_version, after.run_id) != (endpoint.model_version, endpoint.run_id):
            raise Conflict(f"{endpoint_name} was deployed anew while it was measured", "measure it again")
        values = tuple(round(latency, 6) for latency in answers if latency is not None)
        if not values:
            raise Unavailable(f"{endpoint_name} answered none of {requests} prompts: {failures[0]}", "ground explain")
        cost = None
        if run is not None:
            cost = -(-round(run.price_microusd_per_hour * wall_s * 1000) // (3600 * len(values)))
        facts = {
            "endpoint": endpoint.id,
            "run": endpoint.run_id,
            "at_once": str(at_once),
            "failed": str(len(failures)),
            "requests_per_s": f"{len(values) / wall_s:.2f}" if wall_s else "",
            "prompt": "the engine's test prompt, one token",
        }
        version = await self._models.get(actor, endpoint.model_version)
        return await self._keep(
            actor, version, Kind.LATENCY, "latency", source=MEASURED, values=values, cost=cost, facts=facts
        )

    async def _serving(self, actor: Actor, name: str) -> tuple[Endpoint, Run | None]:
        async with self._store.transaction() as tx:
            endpoint = await tx.get(Endpoint, name)
            if endpoint is None or not actor.sees(endpoint.project):
                raise NotFound(f"no endpoint {name}", "ground endpoints lists those you can see")
            if endpoint.status is not EndpointStatus.READY or not endpoint.base_url:
                raise Conflict(f"endpoint {name} is {endpoint.status}", "wait until it is ready: ground endpoints")
            return endpoint, await tx.get(Run, endpoint.run_id)

    async def _keep(
        self,
        actor: Actor,
        version: ModelVersion,
        kind: Kind,
        name: str,
        *,
        source: str,
        values: tuple[float, ...] = (),
        successes: int | None = None,
        trials: int | None = None,
        cost: int | None = None,
        facts: dict[str, str],
    ) -> Evidence:
        made = Evidence(
            id=self._ids.new("ev"),
            version_id=version.id,
            project=version.project,
            kind=kind,
            name=name,
            source=source,
            by=actor.name,
            at=self._clock.now(),
            values=values,
            successes=successes,
            trials=trials,
            cost_microusd_per_1000=cost,
            facts=facts,
        )
        after: dict[str, object] = {"version": version.id, "kind": str(kind), "name": name, "source": source}
        async with self._store.transaction() as tx:
            await tx.insert(made)
            if not self._models.problems(version):  # nothing is chained to a certificate that does not hold
                await self._addenda.append(tx, actor, version, AddendumKind.EVALUATION, evaluation_of(made))
            await self._tell(tx, actor, "gate.evidence", made.id, version.project, after)
        return made

    # ------------------------------------------------------------ people

    async def approve(self, actor: Actor, ref: str, alias: str, comment: str = "") -> GateApproval:
        """One person's yes to a version under an alias. Refused to whoever registered it: four eyes."""
        check_alias(alias)
        version = await self._models.get(actor, ref)
        if actor.name == version.created_by:
            raise Refusal([_own_work(version)])
        given = GateApproval(
            id=f"{version.id}@{alias}/{actor.name}",
            version_id=version.id,
            alias=alias,
            project=version.project,
            certificate_sha256=version.certificate_sha256,
            by=actor.name,
            role=str(actor.role),
            at=self._clock.now(),
            comment=comment,
        )
        async with self._store.transaction() as tx:
            if await tx.insert_once(given):
                after: dict[str, object] = {"version": version.id, "alias": alias}
                await self._tell(tx, actor, "gate.approve", given.id, version.project, after, comment)
        return given

    async def waive(
        self,
        actor: Actor,
        *,
        gate_id: str,
        requirement: str,
        owner: str,
        reason: str,
        expires_at: datetime,
        version_id: str = "",
    ) -> Waiver:
        """Lifts a requirement for a while, for one version or for all. NotFound for what is not there."""
        now = self._clock.now()
        version = await self._models.get(actor, version_id) if version_id else None
        async with self._store.transaction() as tx:
            gate = await tx.get(Gate, gate_id)
            if gate is None or not actor.sees(gate.project):
                raise NotFound(f"there is no gate {gate_id}", "ground gates list")
            if requirement not in {each.id for each in gate.requirements}:
                known = ", ".join(each.id for each in gate.requirements)
                raise NotFound(f"{gate.id} has no requirement {requirement}", f"it has {known}")
            made = Waiver(
                id=self._ids.new("waive"),
                gate_id=gate.id,
                requirement=requirement,
                version_id=version.id if version else "",
                project=gate.project,
                owner=checked_text(owner, "owner"),
                reason=checked_text(reason, "reason"),
                expires_at=checked_expiry(expires_at, now),
                created_by=actor.name,
                created_at=now,
            )
            await tx.insert(made)
            after: dict[str, object] = {
                "gate": gate.id,
                "requirement": made.requirement,
                "version": made.version_id,
                "owner": made.owner,
                "expires_at": made.expires_at,
            }
            if version is not None:
                self._models.demand(version)
                await self._addenda.append(tx, actor, version, AddendumKind.WAIVER, waived(made), made.reason)
            await self._tell(tx, actor, "gate.waive", made.id, gate.project, after, made.reason)
        return made

    async def waivers(self, actor: Actor, *, over_too: bool = False) -> list[Waiver]:
        """Those that hold, soonest to end first."""
        where = {} if over_too else {"expires_at": AtLeast(self._clock.now())}
        async with self._store.transaction() as tx:
            found = await tx.find(Waiver, where, order="expires_at", limit=MAX_LISTED)
        return [each for each in found if actor.sees(each.project)]

    async def unwaive(self, actor: Actor, waiver_id: str, reason: str = "") -> Waiver:
        """Ends a waiver now. Raises NotFound."""
        async with self._store.transaction() as tx:
            found = await tx.get(Waiver, waiver_id)
            if found is None or not actor.sees(found.project):
                raise NotFound(f"there is no waiver {waiver_id}", "ground gates waivers")
            await tx.delete(Waiver, waiver_id)
            after: dict[str, object] = {"gate": found.gate_id, "requirement": found.requirement}
            version = await tx.get(ModelVersion, found.version_id) if found.version_id else None
            if version is not None and not self._models.problems(version):
                facts = {**waived(found), "ended": f"{self._clock.now():%Y-%m-%d %H:%M} UTC"}
                await self._addenda.append(tx, actor, version, AddendumKind.WAIVER, facts, reason)
            await self._tell(tx, actor, "gate.unwaive", waiver_id, found.project, after, reason)
        return found


async def _evidence(tx: Tx, version_id: str) -> Sequence[Evidence]:
    """The newest of each source: what many state must not push out what was measured."""
    found: list[Evidence] = []
    for source in (MEASURED, STATED):
        where = {"version_id": version_id, "source": source}
        found += await tx.find(Evidence, where, order="-at", limit=_EVIDENCE_MAX)
    return sorted(found, key=lambda each: each.at, reverse=True)


async def _last_number(tx: Tx, alias_id: str) -> int | None:
    """What an alias that was taken away stood for: what comes after it is no worse, or is refused, all the same."""
    last = await tx.find(AliasMove, {"alias_id": alias_id}, order="-sequence", limit=1)
    return last[0].from_number if last else None


async def _ages(tx: Tx, said: Mapping[str, object], project: str) -> list[DataAge]:
    """How old each dataset of the certificate is, by its digest: a name alone proves nothing.

    What the version's own project says of these bytes counts before what any other does.
    """
    rows = rows_of(said, "data")
    digests = tuple({str(row.get("sha256")) for row in rows if row.get("sha256")})
    known = {}
    if digests:
        rows_known = await tx.find(DatasetVersion, {"digest": digests}, order="number")
        for found in sorted(rows_known, key=lambda row: row.project == project):
            known[found.digest] = found
    ages = []
    for row in rows:
        found_ = known.get(str(row.get("sha256")))
        as_of, limit = (found_.as_of, found_.fresh_for_s) if found_ else (None, None)
        ages.append(DataAge(name=str(row.get("name")), as_of=as_of, fresh_for_s=limit))
    return ages


def _missing(said: Mapping[str, object]) -> tuple[str, ...]:
    """Required facts that a certificate does not state."""
    version, data = part_of(said, "version"), rows_of(said, "data")
    stated: dict[str, object] = {
        "owner": version.get("owner"),
        "license": version.get("license"),
        "data": data and all(row.get("sha256") for row in data),
        "code_commit": part_of(said, "code").get("commit"),
        "training_run": part_of(said, "run").get("id"),
        "metrics": said.get("metrics"),
    }
    return tuple(name for name in cert.REQUIRED_FACTS if not stated[name])


_SOMEBODY_ELSE = "ask a lead or an operator; a key stands for its owner, whoever uses it: ground whoami"


def _own_work(version: ModelVersion) -> Refused:
    have = f"{version.created_by}, who registered {version.id}"
    return Refused(rule="four-eyes", need="somebody else", have=have, hint=_SOMEBODY_ELSE)
