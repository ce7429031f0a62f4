"""What training scripts tell as they go: experiments, runs, parameters, tags, metrics. Any MLflow client may tell it.

Points of metrics are no events on the trail: they are data of their run, a thousand times as many as everything else,
and nothing is decided by them that does not leave a trace of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from groundplane.domain.access import Key
from groundplane.domain.run import Run
from groundplane.domain.tracking import records as domain
from groundplane.domain.tracking.filter import (
    key_token,
    matches,
    ordered,
    page,
    parse_filter,
    parse_order,
    token_place,
)
from groundplane.domain.tracking.records import (
    DEFAULT_EXPERIMENT,
    DEFAULT_EXPERIMENT_ID,
    STATE_OF,
    DatasetUse,
    Experiment,
    Measured,
    MetricPart,
    ModelMade,
    Point,
    RunMetrics,
    Stage,
    TrackedRun,
    TrackedState,
)
from groundplane.domain.tracking.search import EXPERIMENTS, RUNS, experiment_facts, millis, run_facts, run_ranks
from groundplane.errors import Conflict, Forbidden, InvalidInput, NotFound
from groundplane.identity import CROSS_PROJECT, Actor
from groundplane.ports import Clock, Ids, Store, Tx
from groundplane.services.access import JobTokens
from groundplane.services.audit_trail import Teller
from groundplane.services.measures import HINT, Measures, measure, metrics_of, stale, told_by
from groundplane.services.walking import walk

RUN_NAME_TAG = "mlflow.runName"
Place = list[object]
"""Where a run stands in an order: what it is ordered by, and its id."""
MAX_LISTED = 1_000


class AlreadyThere(Conflict):
    """The name is taken. Kept apart: clients ask whether it is this conflict, and go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A tracked run with the latest value of each of its metrics."""

    run: TrackedRun
    latest: Mapping[str, Point]
    points: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched for: a filter and orders as clients write them, how many at most, from where on."""

    filter: str = ""
    order: Sequence[str] = ()
    limit: int = 1_000
    token: str = ""
    stages: tuple[Stage, ...] = (Stage.ACTIVE,)


class Tracking:
    """Use cases of experiments and tracked runs. A key's project is where its experiments live."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids) -> None:
        self._store, self._clock, self._ids = store, clock, ids
        self._tell = Teller(clock, "experiment")
        self._tell_run = Teller(clock, "tracked-run")
        self._measures = Measures(store, self._run)

    # ------------------------------------------------------------ experiments

    async def create_experiment(self, actor: Actor, name: str, tags: Mapping[str, str]) -> Experiment:
        """Raises AlreadyThere, also when the one of that name is deleted: it can be restored."""
        domain.check_experiment_name(name)
        async with self._store.transaction() as tx:
            project = await home(tx, actor)
            if found := await _named(tx, project, name):
                state = "there already" if found[0].stage is Stage.ACTIVE else "there, and deleted"
                raise AlreadyThere(f"experiment {name[:80]!r} is {state}: {found[0].id}", "take it, or another name")
            experiment = await self._made(tx, actor, project, name, domain.with_tags({}, tags))
            await self._settle_job(tx, actor, experiment)
            return experiment

    async def experiment(self, actor: Actor, experiment_id: str) -> Experiment:
        """By its id; `0` is the project's `Default`, made when it is first asked for. Raises NotFound."""
        async with self._store.transaction() as tx:
            return await self._experiment(tx, actor, experiment_id)

    async def find(self, actor: Actor, name: str) -> Experiment:
        """By its id or its name, as people write either. Raises NotFound."""
        if name.startswith("exp-") or name == DEFAULT_EXPERIMENT_ID:
            return await self.experiment(actor, name)
        return await self.experiment_named(actor, name)

    async def experiment_named(self, actor: Actor, name: str) -> Experiment:
        """By its name in the key's project. A job that names one before it logs has its run there."""
        async with self._store.transaction() as tx:
            project = await home(tx, actor)
            if name == DEFAULT_EXPERIMENT:
                return await self._experiment(tx, actor, DEFAULT_EXPERIMENT_ID)
            found = await _named(tx, project, name)
            if not found:
                raise NotFound(f"there is no experiment {name[:80]!r} in project {project}", HINT)
            await self._settle_job(tx, actor, found[0])
            return found[0]

    async def search_experiments(
        self, actor: Actor, search: Search, project: str | None = None
    ) -> tuple[list[Experiment], str]:
        """Those of one project (the key's, unless another that the actor sees), newest first, and the next token."""
        conditions, orders = parse_filter(search.filter, EXPERIMENTS), parse_order(search.order, EXPERIMENTS)
        async with self._store.transaction() as tx:
            home_project = project if project is not None else await home(tx, actor)
            where = {"project": home_project, "stage": search.stages}
            found = await tx.find(Experiment, where, order="-created_at") if actor.sees(home_project) else []
        found = [each for each in found if matches(conditions, experiment_facts(each))]
        question = (home_project, search.filter, tuple(search.order), search.stages)
        return page(ordered(found, orders, experiment_facts), search.token, search.limit, question)

    async def experiments(self, actor: Actor) -> list[tuple[Experiment, int]]:
        """Every experiment that the actor sees, newest first, with the number of its runs."""
        own = {} if actor.role in CROSS_PROJECT else {"project": actor.project}
        async with self._store.transaction() as tx:
            found = await tx.find(Experiment, {"stage": Stage.ACTIVE, **own}, order="-created_at", limit=MAX_LISTED)
            of_these = {"experiment_id": tuple(each.id for each in found), "stage": Stage.ACTIVE}
            counts = await tx.total(TrackedRun, "*", by=("experiment_id",), where=of_these) if found else {}
        return [(each, counts.get((each.id,), 0)) for each in found]

    async def rename_experiment(self, actor: Actor, experiment_id: str, name: str) -> Experiment:
        domain.check_experiment_name(name)
        async with self._store.transaction() as tx:
            before = await self._owned(tx, actor, experiment_id)
            if (taken := await _named(tx, before.project, name)) and taken[0].id != before.id:
                raise AlreadyThere(f"experiment {name[:80]!r} is there already: {taken[0].id}", "take another name")
            after = await tx.update(replace(before, name=name, updated_at=self._clock.now()))
            told: dict[str, object] = {"from": before.name, "to": name}
            await self._tell(tx, actor, "experiment.rename", after.id, after.project, told)
            return after

    async def set_experiment_stage(self, actor: Actor, experiment_id: str, stage: Stage) -> Experiment:
        """Hides or restores it; its runs stay as they are. Nothing is lost. Twice is once."""
        async with self._store.transaction() as tx:
            before = await self._owned(tx, actor, experiment_id)
            if before.stage is stage:
                return before
            after = await tx.update(replace(before, stage=stage, updated_at=self._clock.now()))
            action = "experiment.delete" if stage is Stage.DELETED else "experiment.restore"
            await self._tell(tx, actor, action, after.id, after.project, {"name": after.name})
            return after

    async def tag_experiment(self, actor: Actor, experiment_id: str, key: str, value: str | None) -> None:
        """Sets a tag; None takes it away, NotFound when it is not there."""
        async with self._store.transaction() as tx:
            before = await self._experiment(tx, actor, experiment_id, lock=True)
            tags = (
                domain.without_tag(before.tags, key) if value is None else domain.with_tags(before.tags, {key: value})
            )
            await tx.update(replace(before, tags=tags, updated_at=self._clock.now()))

    async def _owned(self, tx: Tx, actor: Actor, experiment_id: str) -> Experiment:
        if actor.run_id:
            raise Forbidden("a job's key makes experiments; it does not rename or delete them", "use a key of your own")
        return await self._experiment(tx, actor, experiment_id, lock=True)

    async def _experiment(self, tx: Tx, actor: Actor, experiment_id: str, *, lock: bool = False) -> Experiment:
        if experiment_id == DEFAULT_EXPERIMENT_ID:
            project = await home(tx, actor)
            known = await _named(tx, project, DEFAULT_EXPERIMENT)
            return known[0] if known else await self._made(tx, actor, project, DEFAULT_EXPERIMENT, {})
        found = await tx.get(Experiment, experiment_id, lock=lock)
        if found is None or not actor.sees(found.project):
            raise NotFound(f"there is no experiment {experiment_id[:80]}", HINT)
        return found

    async def _made(self, tx: Tx, actor: Actor, project: str, name: str, tags: dict[str, str]) -> Experiment:
        now = self._clock.now()
        experiment = Experiment(
            id=self._ids.new("exp"),
            project=project,
            name=name,
            tags=tags,
            created_by=actor.name,
            created_at=now,
            updated_at=now,
        )
        try:
            await tx.insert(experiment)
        except Conflict:
            # Two processes of one job may ask for the same name at once: both get the one that is there.
            return (await _named(tx, project, name))[0]
        await self._tell(tx, actor, "experiment.create", experiment.id, project, {"name": name})
        return experiment

    # ------------------------------------------------------------ runs

    async def create_run(
        self, actor: Actor, experiment_id: str, *, name: str, user: str, started_ms: int, tags: Mapping[str, str]
    ) -> Told:
        """Begins a run. A job's belongs to the job's Groundplane run."""
        async with self._store.transaction() as tx:
            experiment = await self._experiment(tx, actor, experiment_id)
            if experiment.stage is not Stage.ACTIVE:
                raise InvalidInput(f"experiment {experiment.name} is deleted", "restore it, or take another one")
            run_id = self._ids.new("trk")
            shown = name or tags.get(RUN_NAME_TAG) or run_id
            run = await self._begun(
                tx,
                actor,
                TrackedRun(
                    id=run_id,
                    experiment_id=experiment.id,
                    project=experiment.project,
                    name=shown,
                    user=user or actor.name,
                    job=actor.run_id,
                    started_ms=started_ms or millis(self._clock.now()),
                    tags=domain.with_tags({}, {**tags, RUN_NAME_TAG: shown}),
                    created_by=actor.name,
                    created_at=self._clock.now(),
                ),
            )
        return Told(run=run, latest={})

    async def run(self, actor: Actor, run_id: str) -> Told:
        """One run. Raises NotFound. A job's own is made when the job first asks for it."""
        async with self._store.transaction() as tx:
            run = await self._run(tx, actor, run_id)
            return await _told(tx, run)

    async def of_job(self, actor: Actor, job: str) -> list[Told]:
        """What the job of a Groundplane run has told, its own run first. Empty when it told nothing."""
        async with self._store.transaction() as tx:
            found = await tx.find(TrackedRun, {"job": job, "stage": Stage.ACTIVE}, order="created_at", limit=MAX_LISTED)
            seen = sorted((run for run in found if actor.sees(run.project)), key=lambda run: run.id != job)
            return [await _told(tx, run) for run in seen]

    async def search_runs(self, actor: Actor, experiment_ids: Sequence[str], search: Search) -> tuple[list[Told], str]:
        """Runs of these experiments, newest first unless ordered otherwise, and the next page's token.

        Experiments that the actor does not see have no runs for it.
        """
        conditions, orders = parse_filter(search.filter, RUNS), parse_order(search.order, RUNS)
        async with self._store.transaction() as tx:
            ids = []
            for experiment_id in experiment_ids:
                if experiment_id == DEFAULT_EXPERIMENT_ID:
                    experiment_id = (await self._experiment(tx, actor, experiment_id)).id
                ids.append(experiment_id)
            where: dict[str, object] = {"experiment_id": tuple(ids), "stage": search.stages}
            if actor.role not in CROSS_PROJECT:
                where["project"] = actor.project
            question = (tuple(ids), search.filter, tuple(search.order), search.stages)

            async def sift(runs: list[tuple[TrackedRun, Place]]) -> list[tuple[Place, Told]]:
                rows = {row.id: row for row in await tx.find(RunMetrics, {"id": tuple(run.id for run, _ in runs)})}
                told = [(place, _as_told(run, rows[run.id])) for run, place in runs]
                return [(place, each) for place, each in told if matches(conditions, _facts_of(each))]

            async def read(after: Place | None, size: int) -> list[tuple[TrackedRun, Place]]:
                if not orders:  # an index keeps this one
                    key = (after[0], str(after[1])) if after else None
                    found = await tx.find(TrackedRun, where, order="-started_ms", limit=size, after=key)
                    return [(run, [run.started_ms, run.id]) for run in found]
                return await tx.ranked(TrackedRun, where, by, limit=size, after=after)

            if not ids:
                return [], ""
            by, kinds = run_ranks(orders)
            after = token_place(search.token, question, kinds)
            found, last = await walk(read, sift, lambda pair: pair[1], after, search.limit)
            return found, key_token(last, question)

    async def update_run(
        self, actor: Actor, run_id: str, *, state: TrackedState | None, ended_ms: int | None, name: str
    ) -> TrackedRun:
        """Its state, when it ended, its name; what is not given stays."""
        async with self._store.transaction() as tx:
            before = await self._own_run(tx, actor, run_id)
            shown = name or before.name
            return await tx.update(
                replace(
                    before,
                    state=state or before.state,
                    ended_ms=ended_ms if ended_ms is not None else None if state is TrackedState.RUNNING
                    else before.ended_ms,
                    name=shown,
                    tags=domain.with_tags(before.tags, {RUN_NAME_TAG: shown}),
                )
            )  # fmt: skip

    async def set_run_stage(self, actor: Actor, run_id: str, stage: Stage) -> TrackedRun:
        """Deletes or restores a run. Twice is once."""
        async with self._store.transaction() as tx:
            before = await self._run(tx, actor, run_id, lock=True)
            if actor.run_id:
                raise Forbidden("a job's key deletes no runs", "use a key of your own")
            if before.stage is stage:
                return before
            after = await tx.update(replace(before, stage=stage))
            await stale(tx, run_id)
            action = "tracked-run.delete" if stage is Stage.DELETED else "tracked-run.restore"
            told: dict[str, object] = {"name": after.name, "experiment": after.experiment_id}
            await self._tell_run(tx, actor, action, after.id, after.project, told)
            return after

    # ------------------------------------------------------------ what a run tells

    async def log(
        self,
        actor: Actor,
        run_id: str,
        *,
        metrics: Sequence[Measured] = (),
        params: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Metrics, parameters and tags of a run: all of them or none. A call that comes twice counts once."""
        domain.check_batch(len(metrics), len(params or {}), len(tags or {}))
        domain.check_measured(metrics)
        if metrics and not params and not tags and not any(each.model_id for each in metrics):
            await self._measures.log(actor, run_id, metrics)
            return
        async with self._store.transaction() as tx:
            run = await self._own_run(tx, actor, run_id, lock=bool(params or tags))
            if params or tags:
                changed = replace(
                    run,
                    params=domain.with_params(run.params, params or {}),
                    tags=domain.with_tags(run.tags, tags or {}),
                    name=(tags or {}).get(RUN_NAME_TAG) or run.name,
                )
                if changed != run:
                    await tx.update(changed)
            if metrics:
                await measure(tx, run, await metrics_of(tx, run.id), metrics)

    async def delete_tag(self, actor: Actor, run_id: str, key: str) -> None:
        """Raises NotFound when the run has no such tag."""
        async with self._store.transaction() as tx:
            run = await self._own_run(tx, actor, run_id)
            await tx.update(replace(run, tags=domain.without_tag(run.tags, key)))

    async def log_inputs(
        self, actor: Actor, run_id: str, datasets: Sequence[DatasetUse], models: Sequence[str] = ()
    ) -> None:
        """What a run has read. Twice is once."""
        async with self._store.transaction() as tx:
            run = await self._own_run(tx, actor, run_id)
            both = tuple(dict.fromkeys((*run.model_inputs, *models)))
            await tx.update(replace(run, datasets=domain.with_datasets(run.datasets, datasets), model_inputs=both))

    async def log_outputs(self, actor: Actor, run_id: str, models: Sequence[ModelMade]) -> None:
        """Which logged models a run has made. Twice is once."""
        async with self._store.transaction() as tx:
            run = await self._own_run(tx, actor, run_id)
            made = {each.model_id: each for each in (*run.model_outputs, *models)}
            await tx.update(replace(run, model_outputs=tuple(made.values())))

    async def history(self, actor: Actor, run_id: str, key: str) -> list[Point]:
        """Every point of a metric, by step and time. Empty for a metric that the run has not."""
        async with self._store.transaction() as tx:
            await self._run(tx, actor, run_id)
            where = {"run_id": run_id, "key": (key, domain.bucket_of(key))}
            parts = await tx.joined(MetricPart, "points", by=("key",), where=where)
        return domain.history(((str(part), text) for (part,), text in parts.items()), key)

    async def histories(
        self, actor: Actor, run_ids: Sequence[str], keys: Sequence[str], most: int
    ) -> dict[str, dict[str, list[Point]]]:
        """Metric → run that has it → at most so many of its points: what is drawn, by one question."""
        names = tuple({*keys, *map(domain.bucket_of, keys)})
        async with self._store.transaction() as tx:
            for run_id in run_ids:
                await self._run(tx, actor, run_id)
            where = {"run_id": tuple(run_ids), "key": names}
            parts = await tx.joined(MetricPart, "points", by=("run_id", "key"), where=where)
        # Many points take a while to read: meanwhile others are answered.
        return await asyncio.to_thread(_drawn, parts, run_ids, keys, most)

    async def counts(self) -> tuple[dict[str, int], int]:
        """Project → tracked runs; and the points of metrics in all."""
        async with self._store.transaction() as tx:
            runs = await tx.total(TrackedRun, "*", by=("project",))
            points = await tx.total(RunMetrics, "points")
        return {str(project): number for (project,), number in runs.items()}, points.get((), 0)

    # ------------------------------------------------------------ jobs of Groundplane

    async def _run(self, tx: Tx, actor: Actor, run_id: str, *, lock: bool = False) -> TrackedRun:
        found = await tx.get(TrackedRun, run_id, lock=lock)
        if found is None and actor.run_id and actor.run_id == run_id:
            found = await self._job_run(tx, actor, None)
        if found is None or not actor.sees(found.project):
            raise NotFound(f"there is no tracked run {run_id[:80]}", HINT)
        return found

    async def _own_run(self, tx: Tx, actor: Actor, run_id: str, *, lock: bool = True) -> TrackedRun:
        """A run that the actor may tell about. InvalidInput when it is deleted."""
        return told_by(actor, await self._run(tx, actor, run_id, lock=lock))

    async def _settle_job(self, tx: Tx, actor: Actor, experiment: Experiment) -> None:
        """A job that names an experiment before it tells anything has its run there."""
        if actor.run_id and experiment.stage is Stage.ACTIVE and await tx.get(TrackedRun, actor.run_id) is None:
            await self._job_run(tx, actor, experiment)

    async def _job_run(self, tx: Tx, actor: Actor, experiment: Experiment | None) -> TrackedRun | None:
        """The tracked run of a Groundplane run, which has its id; in the experiment of its name unless told."""
        job = await tx.get(Run, actor.run_id)
        if job is None:
            return None
        if experiment is None:
            name = job.spec.env.get("MLFLOW_EXPERIMENT_NAME") or job.name
            known = await _named(tx, job.project, name)
            experiment = known[0] if known else await self._made(tx, actor, job.project, name, {})
        return await self._begun(
            tx,
            actor,
            TrackedRun(
                id=job.id,
                experiment_id=experiment.id,
                project=job.project,
                name=job.name,
                user=job.owner,
                job=job.id,
                state=STATE_OF[job.status],
                started_ms=millis(job.started_at or self._clock.now()),
                tags={RUN_NAME_TAG: job.name, "groundplane.run": job.id, "groundplane.spec": job.spec_digest},
                created_by=job.created_by,
                created_at=self._clock.now(),
            ),
        )

    async def _begun(self, tx: Tx, actor: Actor, run: TrackedRun) -> TrackedRun:
        if not await tx.insert_once(run):
            # Every process of a job asks for the job's run, and one of them was first.
            return await tx.get(TrackedRun, run.id) or run
        await tx.insert(RunMetrics(id=run.id))
        told: dict[str, object] = {"name": run.name, "experiment": run.experiment_id, "job": run.job}
        await self._tell_run(tx, actor, "tracked-run.begin", run.id, run.project, told)
        return run


class JobTracking:
    """What the reconcile of runs needs of tracking: the way there for jobs, what they measured, and its end.

    `urls` is where jobs of a pool reach tracking; the pool "" stands for all others. A pool without one has none.
    """

    def __init__(self, *, clock: Clock, tokens: JobTokens, urls: Mapping[str, str]) -> None:
        self._clock, self._tokens, self._urls = clock, tokens, urls

    def environment(self, run: Run) -> dict[str, str]:
        """Variables with which `mlflow.log_metric` just works; none for endpoints, jobs without network, and specs

        that name a tracking server of their own.
        """
        url = self._urls.get(run.pool) or self._urls.get("", "")
        own = any(name.startswith("MLFLOW_TRACKING_") for name in run.spec.env)
        if run.endpoint or not url or own or not run.spec.network:
            return {}
        return {
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_TRACKING_TOKEN": self._tokens.issue(run.id),
            "MLFLOW_EXPERIMENT_NAME": run.name,
            "MLFLOW_RUN_ID": run.id,
        }

    async def end(self, tx: Tx, run: Run) -> None:
        """The job is over: what it left running is over too, and ended as the job did."""
        for told in await tx.find(TrackedRun, {"job": run.id}):
            if told.state in {TrackedState.RUNNING, TrackedState.SCHEDULED}:
                await tx.update(replace(told, state=STATE_OF[run.status], ended_ms=millis(self._clock.now())))

    async def told(self, tx: Tx, run: Run) -> tuple[dict[str, float], dict[str, str]]:
        """The latest metrics and the parameters of the job's own run: what its outputs' certificates state.

        Metrics of the machine are left out: they say nothing of the model.
        """
        own = await tx.get(TrackedRun, run.id)
        if own is None:
            return {}, {}
        latest = (await _told(tx, own)).latest
        return {key: point.value for key, point in latest.items() if not key.startswith("system/")}, own.params


async def home(tx: Tx, actor: Actor) -> str:
    """The project in which the actor's experiments live: its key's."""
    if actor.project is not None:
        return actor.project
    key = await tx.get(Key, actor.key_id) if actor.key_id else None
    if key is None:
        raise InvalidInput(f"{actor.name} belongs to no project", "use a key of a project")
    return key.project


async def _named(tx: Tx, project: str, name: str) -> list[Experiment]:
    return await tx.find(Experiment, {"project": project, "name": name}, limit=1)


async def _told(tx: Tx, run: TrackedRun) -> Told:
    return _as_told(run, await tx.get(RunMetrics, run.id))


def _as_told(run: TrackedRun, row: RunMetrics | None) -> Told:
    latest = domain.decode_latest(row.latest) if row is not None else {}
    return Told(run=run, latest=latest, points=row.points if row is not None else 0)


def _drawn(
    parts: Mapping[tuple[object, ...], str], run_ids: Sequence[str], keys: Sequence[str], most: int
) -> dict[str, dict[str, list[Point]]]:
    by_run: dict[str, list[tuple[str, str]]] = {run_id: [] for run_id in run_ids}
    for (run_id, key), text in parts.items():
        by_run[str(run_id)].append((str(key), text))
    found = {run_id: domain.drawn(of_run, keys, most) for run_id, of_run in by_run.items()}
    return {key: {run_id: lines[key] for run_id, lines in found.items() if key in lines} for key in keys}


def _facts_of(told: Told) -> Mapping[str, Mapping[str, object]]:
    return run_facts(told.run, told.latest)
