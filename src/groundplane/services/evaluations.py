"""Evaluations: collected from their jobs, kept as evidence, compared with those before them, told of when they fall."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import msgspec

from groundplane.domain import evaluation as judged
from groundplane.domain.batch import cost_per_1000
from groundplane.domain.conditions import AtLeast
from groundplane.domain.dataset import DatasetVersion
from groundplane.domain.evaluation import Alarm, Evaluation, EvaluationComparison, Item, Past
from groundplane.domain.gate import MEASURED, Evidence, Kind
from groundplane.domain.model import ModelVersion
from groundplane.domain.provenance.addendum import AddendumKind
from groundplane.domain.run import Run
from groundplane.domain.serving.provider import RouteRule
from groundplane.domain.spec.inference import EvaluationNeed
from groundplane.errors import InvalidInput, NotFound
from groundplane.identity import SYSTEM, Actor
from groundplane.jobs.evaluate import RECORDS, SUMMARY
from groundplane.ports import BlobStore, Clock, Notice, Notifier, RunFiles, Store, Tx
from groundplane.services.addenda import Addenda
from groundplane.services.artifacts import Artifacts, Pushed
from groundplane.services.audit_trail import Teller
from groundplane.services.inference import asked_edges, asked_version, data_age, read_json, spent
from groundplane.services.models import Models

MAX_LISTED = 1_000
NEWEST_DAYS = 7
_PIECE_BYTES = 4 * 2**20
_ALTERNATIVES_MAX = 3


class Evaluations:
    """Use cases over evaluations that ended. What still runs is a run like any other."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        files: RunFiles,
        blobs: BlobStore,
        artifacts: Artifacts,
        models: Models,
        addenda: Addenda,
        notify: Notifier,
    ) -> None:
        self._store, self._clock, self._files = store, clock, files
        self._blobs, self._artifacts, self._models, self._addenda = blobs, artifacts, models, addenda
        self._notify = notify
        self._tell = Teller(clock, "evaluation")
        self._unsent: list[Notice] = []
        self.raised: Counter[tuple[str, str]] = Counter()
        """(project, kind of alarm) → how often since this process began."""

    # ------------------------------------------------------------ from the job

    async def collect(self, run: Run) -> str:
        """Makes the evaluation of what its job wrote: records, evidence, addendum, alarms. Twice is once."""
        need = run.spec.evaluation
        assert need is not None
        async with self._store.transaction() as tx:
            known = await tx.get(Evaluation, run.id)
        if known is not None:
            return f"evaluation {known.id}"
        summary = await read_json(self._files.output_path(run.id, SUMMARY))
        now = self._clock.now()
        async with self._store.transaction() as tx:
            version_id = await asked_version(tx, run, need)
            cost = await spent(tx, run, need, _count(summary, "requests"), now)
        records = self._files.output_path(run.id, RECORDS)
        pushed = Pushed(name=f"evaluation-{run.name}", project=run.project, sources={RECORDS: records})
        artifact = await self._artifacts.push(SYSTEM, pushed)
        items = await self._items(artifact.files[0].sha256, artifact.files[0].size_bytes)
        made = _made(run, need, items, summary, now)
        made = replace(
            made,
            model_version=version_id,
            cost_microusd=cost.amount_microusd,
            cost_microusd_per_1000=cost_per_1000(cost.amount_microusd, max(1, _count(summary, "requests"))),
            cost_source=cost.source,
            records_id=artifact.id,
            records_sha256=artifact.files[0].sha256,
        )
        made = await self._held_against(need, made, items)
        await self._keep(made, items)
        return f"evaluation {made.id}"

    async def _held_against(self, need: EvaluationNeed, made: Evaluation, items: Sequence[Item]) -> Evaluation:
        since = made.at - timedelta(days=judged.SLIDING_DAYS)
        where = {"project": made.project, "name": made.name, "at": AtLeast(since)}
        async with self._store.transaction() as tx:
            earlier = await tx.find(Evaluation, where, order="at", limit=MAX_LISTED)
            data = await tx.get(DatasetVersion, made.dataset)
            words = f"{made.model_version or made.target}, {await data_age(tx, made.model_version, made.at)}"
        same = [each for each in earlier if each.items_sha256 == made.items_sha256]
        last = await self._past(same[-1]) if same else None
        oldest = await self._past(same[0]) if len(same) > 1 else None
        found = judged.alarms(need, made, items, last, oldest, words)
        if any(alarm.kind == "changed" for alarm in found) and same:
            hint = judged.pinned_hint(await self._alternatives(made, same[-1]))
            found = tuple(
                replace(alarm, hint=alarm.hint + hint) if alarm.kind == "changed" else alarm for alarm in found
            )
        return replace(
            made,
            alarms=found,
            compared_with=same[-1].id if same else "",
            dataset_sha256=data.digest if data is not None else "",
        )

    async def _past(self, found: Evaluation) -> Past | None:
        try:
            return Past(evaluation=found, items=await self.items_of(found))
        except NotFound:
            return None  # its records were deleted: nothing to hold this one against

    async def _alternatives(self, made: Evaluation, last: Evaluation) -> list[str]:
        """What stays the same under its name: the dated name that answered before, and versions of our own."""
        dated = [name for name in last.models if name not in (*made.models, made.target)]
        async with self._store.transaction() as tx:
            rule = await tx.get(RouteRule, f"{made.project}:{made.target}")
            asked = {target.model for target in rule.targets} if rule is not None else set()
            others = await tx.find(Evaluation, {"project": made.project}, order="-at", limit=MAX_LISTED)
        own = [
            f"{each.model_version} ({', '.join(f'{score.metric} {score.mean:.3f}' for score in each.scores)})"
            for each in others
            if each.items_sha256 == made.items_sha256 and each.model_version not in ("", made.model_version)
        ]
        return list(dict.fromkeys([*(name for name in dated if name not in asked), *own]))[:_ALTERNATIVES_MAX]

    async def _keep(self, made: Evaluation, items: Sequence[Item]) -> None:
        async with self._store.transaction() as tx:
            if not await tx.insert_once(made):
                return
            version = await tx.get(ModelVersion, made.model_version) if made.model_version else None
            if version is not None and version.project == made.project:
                self._models.demand(version)  # what is not what was signed must not gather evidence
                await tx.insert_many_once(
                    await asked_edges(tx, made.project, made.target, version.id, made.id, made.at)
                )
                await self._attach(tx, version, made, items)
            after: dict[str, object] = {
                "target": made.target,
                "version": made.model_version,
                "dataset": made.dataset,
                "scores": {score.metric: round(score.mean, 6) for score in made.scores},
                "alarms": [alarm.kind for alarm in made.alarms],
            }
            await self._tell(tx, SYSTEM, "evaluation.record", made.id, made.project, after)
            for alarm in made.alarms:
                said: dict[str, object] = {"kind": alarm.kind, "need": alarm.need, "have": alarm.have}
                await self._tell(tx, SYSTEM, "evaluation.alarm", made.id, made.project, said, alarm.title)
        for alarm in made.alarms:
            self.raised[made.project, alarm.kind] += 1
            self._unsent.append(_notice(made, alarm))

    async def _attach(self, tx: Tx, version: ModelVersion, made: Evaluation, items: Sequence[Item]) -> None:
        """Evidence for gates, one for each metric, and an addendum to the birth certificate."""
        for score in made.scores:
            evidence = Evidence(
                id=f"ev-{made.id}-{score.metric}",
                version_id=version.id,
                project=version.project,
                kind=Kind.METRIC,
                name=score.metric,
                source=MEASURED,
                by=SYSTEM.name,
                at=made.at,
                values=judged.values_of(items, score.metric),
                cost_microusd_per_1000=made.cost_microusd_per_1000,
                facts=dict(judged.facts_of(made)),
            )
            await tx.insert_once(evidence)
        facts: dict[str, object] = {
            "name": made.name,
            "how": MEASURED,
            "metrics": {score.metric: score.mean for score in made.scores},
            "intervals": {score.metric: [score.low, score.high] for score in made.scores},
            "dataset": made.dataset,
            "dataset_sha256": made.dataset_sha256,
            "samples": made.items,
            "run": made.id,
        }
        await self._addenda.append(tx, SYSTEM, version, AddendumKind.EVALUATION, facts)

    async def send_alarms(self) -> None:
        """Tells people what was not told yet. Unavailable when the channel is down: the next call tries again."""
        while self._unsent:
            await self._notify.send(self._unsent[0])
            self._unsent.pop(0)

    # ------------------------------------------------------------ reading

    async def evaluations(
        self, actor: Actor, *, project: str = "", name: str = "", version: str = "", limit: int = 100
    ) -> list[Evaluation]:
        """Newest first; of one name or model version when given. Only those of projects the actor sees."""
        where = {"project": project, "name": name, "model_version": version}
        if not project and not actor.sees(""):
            where["project"] = actor.project or ""
        async with self._store.transaction() as tx:
            asked = {key: value for key, value in where.items() if value}
            found = await tx.find(Evaluation, asked, order="-at", limit=min(limit, MAX_LISTED))
        return [each for each in found if actor.sees(each.project)]

    async def get(self, actor: Actor, evaluation_id: str) -> Evaluation:
        """NotFound, also while its run goes on."""
        async with self._store.transaction() as tx:
            found = await tx.get(Evaluation, evaluation_id)
            run = await tx.get(Run, evaluation_id) if found is None else None
        if found is not None and actor.sees(found.project):
            return found
        if run is not None and actor.sees(run.project) and run.spec.evaluation is not None:
            raise NotFound(f"{evaluation_id} is {run.status}: it has no result", f"ground explain {evaluation_id}")
        raise NotFound(f"there is no evaluation {evaluation_id[:80]}", "ground eval list")

    async def items(
        self, actor: Actor, evaluation_id: str, *, metric: str = "", limit: int = 100, offset: int = 0
    ) -> list[Item]:
        """Its items, the worst first: what was wrong, or could not be judged, is what people look for."""
        found = await self.items_of(await self.get(actor, evaluation_id))
        if metric and found and metric not in {name for item in found for name in item.scores}:
            raise NotFound(f"{evaluation_id} has no metric {metric}", "ground eval show lists them")

        def worst(item: Item) -> float:
            return item.worst if not metric else judged.values_of([item], metric)[0]

        return sorted(found, key=worst)[offset : offset + limit]

    async def compare(self, actor: Actor, before: str, after: str) -> EvaluationComparison:
        """Two evaluations beside each other, item by item where both asked the same."""
        first, second = await self.get(actor, before), await self.get(actor, after)
        return judged.compare(first, second, await self.items_of(first), await self.items_of(second), second.confidence)

    async def newest(self, actor: Actor) -> list[Evaluation]:
        """The newest of each name within a week, for metrics and the overview: what is older tells of the past."""
        where = {"at": AtLeast(self._clock.now() - timedelta(days=NEWEST_DAYS))}
        async with self._store.transaction() as tx:
            found = await tx.find(Evaluation, where, order="-at", limit=MAX_LISTED)
        seen: dict[tuple[str, str], Evaluation] = {}
        for each in found:
            if actor.sees(each.project):
                seen.setdefault((each.project, each.name), each)
        return list(seen.values())

    async def items_of(self, found: Evaluation) -> list[Item]:
        """Every item in order. NotFound when its records were deleted from the store."""
        artifact = await self._artifacts.get(SYSTEM, found.records_id)
        return await self._items(found.records_sha256, artifact.size_bytes)

    async def _items(self, sha256: str, size_bytes: int) -> list[Item]:
        content = b""
        while len(content) < size_bytes:
            piece = await self._blobs.read(sha256, len(content), _PIECE_BYTES)
            if not piece:
                break
            content += piece
        return [msgspec.convert(json.loads(line), Item) for line in content.splitlines()]


def _made(
    run: Run, need: EvaluationNeed, items: Sequence[Item], summary: dict[str, object], now: datetime
) -> Evaluation:
    scores, slices = judged.summarise(need, items)
    p50, p95 = judged.latencies(items)
    return Evaluation(
        id=run.id,
        name=run.name,
        project=run.project,
        owner=run.owner,
        target=need.asking.endpoint or need.asking.model,
        model_version="",
        dataset=run.spec.data[0].dataset,
        dataset_sha256="",
        items_sha256=str(summary.get("items_sha256", "")),
        items=len(items),
        failed=sum(bool(item.error) for item in items),
        confidence=need.confidence,
        scores=scores,
        slices=slices,
        latency_p50_s=p50,
        latency_p95_s=p95,
        prompt_tokens=_count(summary, "prompt_tokens"),
        completion_tokens=_count(summary, "completion_tokens"),
        cost_microusd=0,
        cost_microusd_per_1000=0,
        cost_source="",
        models=_texts(summary, "models"),
        fingerprints=_texts(summary, "fingerprints"),
        agreement=_share(summary, "agreement"),
        records_id="",
        records_sha256="",
        compared_with="",
        alarms=(),
        at=now,
    )


def _notice(made: Evaluation, alarm: Alarm) -> Notice:
    text = f"need {alarm.need}; have {alarm.have}. {alarm.hint}"
    return Notice(at=made.at, kind=f"evaluation.{alarm.kind}", project=made.project, title=alarm.title, text=text)


def _count(summary: dict[str, object], name: str) -> int:
    value = summary.get(name)
    if not isinstance(value, int) or value < 0:
        raise InvalidInput(f"the job's summary has no {name}", "submit it again")
    return value


def _texts(summary: dict[str, object], name: str) -> tuple[str, ...]:
    value = summary.get(name)
    return tuple(str(each) for each in value) if isinstance(value, list) else ()


def _share(summary: dict[str, object], name: str) -> float | None:
    value = summary.get(name)
    return float(value) if isinstance(value, int | float) else None
