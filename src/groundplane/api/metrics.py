"""What the API counts about itself, and what the installation is doing, in Prometheus' terms."""

from __future__ import annotations

from collections import Counter as Tally
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from groundplane import __version__
from groundplane.domain.registry import source_kind
from groundplane.errors import NotFound
from groundplane.identity import Actor
from groundplane.units import MICROUSD_PER_USD

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ACTIVE_RUNS_MAX = 10_000
_BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class HttpMetrics:
    """Requests by route template, so that ids never become label values. One registry per application."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "ground_http_requests", "Requests answered.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "ground_http_request_seconds",
            "Time from the request's head to the end of its answer.",
            ("method", "route"),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        build = Gauge("ground_build_info", "Always 1; its label names the build.", ("version",), registry=self.registry)
        build.labels(__version__).set(1)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)

    def render(self) -> bytes:
        """The exposition text of this registry."""
        return generate_latest(self.registry)


async def plane_metrics(app: Any, actor: Actor) -> bytes:
    """Runs, endpoints, money and loops as they stand now; of the projects that the caller sees."""
    registry = CollectorRegistry()
    runs = Gauge("ground_runs", "Runs that are not over.", ("project", "status"), registry=registry)
    active = await app.runs.runs(actor, project=None, status="active", limit=_ACTIVE_RUNS_MAX)
    for (project, status), count in Tally((run.project, run.status.value) for run in active).items():
        runs.labels(project, status).set(count)
    plans = Gauge("ground_plans", "Plans made, by what became of them.", ("project", "status"), registry=registry)
    for (project, status), count in (await app.plans.counts(actor)).items():
        plans.labels(project, status).set(count)
    endpoints = Gauge("ground_endpoints", "Endpoints.", ("project", "status"), registry=registry)
    for (project, status), count in Tally(
        (e.project, e.status.value) for e in await app.endpoints.endpoints(actor)
    ).items():
        endpoints.labels(project, status).set(count)
    budget = Gauge(
        "ground_budget_dollars", "This month's limit, held and posted.", ("project", "part"), registry=registry
    )
    for project in await app.access.projects(actor):
        try:
            month = await app.costs.budget(actor, project.id)
        except NotFound:
            continue  # a project without a budget has no money to show
        for part in ("limit", "held", "posted"):
            budget.labels(project.id, part).set(getattr(month, f"{part}_microusd") / MICROUSD_PER_USD)
    approvals = Gauge("ground_approvals", "Plans that needed approval.", ("project", "status"), registry=registry)
    waits = Gauge("ground_approval_wait_seconds", "Mean time from plan to approval.", ("project",), registry=registry)
    for name, tally in (await app.approvals.tallies(actor)).items():
        for status, number in tally.by_status.items():
            approvals.labels(name, status).set(number)
        if tally.approved_after_s is not None:
            waits.labels(name).set(tally.approved_after_s)
    refusals = Gauge("ground_policy_refusals", "Plans a rule refused since the start.", ("rule",), registry=registry)
    for rule, count in app.policies.refusals.items():
        refusals.labels(rule).set(count)
    current = Gauge("ground_policy_current", "1 when the policy files as last read are in force.", registry=registry)
    current.set(app.policies.healthy)
    checked = ("check", "verdict")
    checks = Gauge("ground_preflight_checks", "Checks of nodes since the start.", checked, registry=registry)
    for (check, verdict), count in app.preflight.counts.items():
        checks.labels(check, verdict).set(count)
    cordons = Gauge("ground_nodes_cordoned", "Nodes that take no new work.", ("pool",), registry=registry)
    for pool, number in Tally(each.pool for each in (await app.cordons.of_pool()).values()).items():
        cordons.labels(pool).set(number)
    await _registry_metrics(app, actor, registry)
    await _inference_metrics(app, actor, registry)
    await _tracking_metrics(app, actor, registry)
    await _storage_metrics(app, actor, registry)
    await _lineage_metrics(app, actor, registry)
    machines = Gauge("ground_nodes", "Nodes by how they are.", ("pool", "health"), registry=registry)
    for (pool, health), number in (await app.nodes.tally(actor)).items():
        machines.labels(pool, health).set(number)
    await _queue_metrics(app, actor, registry)
    await _prediction_metrics(app, actor, registry)
    _watch_metrics(app, registry)
    steps = Gauge("ground_loop_steps", "Steps a loop has taken.", ("loop",), registry=registry)
    failures = Gauge("ground_loop_failures", "Steps of a loop that failed.", ("loop",), registry=registry)
    seconds = Gauge("ground_loop_last_step_seconds", "How long a loop's last step took.", ("loop",), registry=registry)
    for loop in app.loops:
        steps.labels(loop.name).set(loop.steps)
        failures.labels(loop.name).set(loop.failures)
        seconds.labels(loop.name).set(loop.last_step_s)
    return generate_latest(registry)


async def _tracking_metrics(app: Any, actor: Actor, registry: CollectorRegistry) -> None:
    runs, points = await app.tracking.counts()
    tracked = Gauge("ground_tracked_runs", "Runs that scripts told of.", ("project",), registry=registry)
    for project, number in runs.items():
        if actor.sees(project):
            tracked.labels(project).set(number)
    Gauge("ground_tracked_points", "Points of metrics that are kept.", registry=registry).set(points)


async def _registry_metrics(app: Any, actor: Actor, registry: CollectorRegistry) -> None:
    trusted = Gauge("ground_signing_keys", "Public keys whose signatures count here.", registry=registry)
    trusted.set(len(app.models.public_keys()))
    aliases = Gauge("ground_model_aliases", "Aliases of models.", ("project",), registry=registry)
    for project, number in (await app.registry.counts()).items():
        if actor.sees(project):
            aliases.labels(project).set(number)
    where = ("project", "where")
    kept = Gauge("ground_datasets", "Versions of datasets that are not erased.", where, registry=registry)
    for (project, pointer), number in (await app.datasets.counts()).items():
        if actor.sees(project):
            kept.labels(project, pointer).set(number)
    scans = Gauge("ground_model_scans", "Scans that are kept, by outcome.", ("project", "outcome"), registry=registry)
    for (project, outcome), number in (await app.scans.outcomes()).items():
        if actor.sees(project):
            scans.labels(project, outcome).set(number)
    adopted = Gauge("ground_models_adopted", "Versions adopted from elsewhere.", ("project", "from"), registry=registry)
    for (project, source), number in Tally(
        (entry.project, source_kind(source)) for entry, source in await app.scans.adoptions(actor)
    ).items():
        adopted.labels(project, source).set(number)
    later = Gauge("ground_model_addenda", "Later facts of versions.", ("project", "kind"), registry=registry)
    for (project, addendum), number in (await app.addenda.counts()).items():
        if actor.sees(project):
            later.labels(project, addendum).set(number)
    judged = ("gate", "verdict")
    verdicts = Gauge("ground_gate_verdicts", "Verdicts of gates since the start.", judged, registry=registry)
    for (gate, verdict), number in app.gates.verdicts.items():
        if actor.sees(gate.partition("/")[0]):
            verdicts.labels(gate, verdict).set(number)


async def _inference_metrics(app: Any, actor: Actor, registry: CollectorRegistry) -> None:
    """What models scored last, what that raised, and how many rows batches answered."""
    named = ("project", "evaluation", "metric")
    scores = Gauge("ground_evaluation_score", "Mean score of the newest evaluation.", named, registry=registry)
    for each in await app.evaluations.newest(actor):
        for score in each.scores:
            scores.labels(each.project, each.name, score.metric).set(score.mean)
    kinds = ("project", "kind")
    alarms = Gauge("ground_evaluation_alarms", "Alarms of evaluations since the start.", kinds, registry=registry)
    for (project, kind), number in app.evaluations.raised.items():
        if actor.sees(project):
            alarms.labels(project, kind).set(number)
    what = ("project", "what")
    rows = Gauge("ground_batch_rows", "Rows that batches have answered, and those in error.", what, registry=registry)
    for (project, name), number in (await app.batches.counts()).items():
        if actor.sees(project):
            rows.labels(project, name).set(number)


def _watch_metrics(app: Any, registry: CollectorRegistry) -> None:
    """Checkpoints carried, and what watchdogs saw, since the start."""
    kinds = Gauge("ground_checkpoints", "Checkpoints handled since the start.", ("what",), registry=registry)
    carried = app.checkpoints.counts
    for what in ("copied", "restored", "removed", "failed"):
        kinds.labels(what).set(getattr(carried, what))
    watched = Gauge("ground_watchdogs", "Storms, hangs and idle clocks since the start.", ("what",), registry=registry)
    for what, number in app.watchdogs.counts.items():
        watched.labels(what).set(number)
    storm = Gauge("ground_fleet_storm", "1 while silence of nodes is taken for our own network.", registry=registry)
    storm.set(app.watchdogs.braked())
    copied_bytes = Gauge("ground_checkpoint_copied_bytes", "Bytes copied since the start.", registry=registry)
    copied_bytes.set(carried.copied_bytes)
    came = ("from",)
    staged = Gauge("ground_staged_bytes", "Bytes staged since the start, by their way.", came, registry=registry)
    staged.labels("source").set(app.staging.fetched_bytes)
    staged.labels("cache").set(app.staging.cached_bytes)
    attached = Gauge("ground_dev_attached", "Connections to dev environments that are open.", registry=registry)
    attached.set(app.dev.attached)


async def _lineage_metrics(app: Any, actor: Actor, registry: CollectorRegistry) -> None:
    standing = await app.lineage.standing()
    events = Gauge("ground_lineage_events", "What the lineage receiver was told.", ("outcome",), registry=registry)
    events.labels("told").set(standing.told)
    events.labels("refused").set(standing.refused)
    behind = Gauge("ground_lineage_behind", "Events of the trail that it was not told of yet.", registry=registry)
    behind.set(standing.behind)
    heard = Gauge("ground_lineage_heard", "Events that jobs outside told.", ("project",), registry=registry)
    for project, number in (await app.lineage.counts()).items():
        if actor.sees(project):
            heard.labels(project).set(number)
    pushes = Gauge("ground_oci_pushes", "Manifests pushed over OCI since the start.", ("outcome",), registry=registry)
    for outcome, number in app.oci.outcomes.items():
        pushes.labels(outcome).set(number)


async def _storage_metrics(app: Any, actor: Actor, registry: CollectorRegistry) -> None:
    usage, projects = await app.artifacts.totals(actor)
    store = Gauge(
        "ground_store_bytes",
        "The artifact store: its files' bytes, the bytes stored for them, and what its disk could still take.",
        ("part",),
        registry=registry,
    )
    for part, size_bytes in (("files", usage.file_bytes), ("stored", usage.stored_bytes), ("free", usage.free_bytes)):
        if size_bytes is not None:
            store.labels(part).set(size_bytes)
    Gauge("ground_store_sharing_ratio", "Bytes of files per stored byte.", registry=registry).set(usage.sharing)
    damage = Gauge("ground_store_damage", "Damaged places and lost files that scrubs found.", registry=registry)
    damage.set(app.artifacts.damaged_spots)
    over = Gauge("ground_dataset_retentions", "Retentions that ended since the start.", ("outcome",), registry=registry)
    for outcome, number in app.retention.outcomes.items():
        over.labels(outcome).set(number)
    freed = Gauge("ground_store_freed_bytes", "Bytes collections freed since the start.", registry=registry)
    freed.set(app.artifacts.freed_bytes)
    arriving = Gauge("ground_store_arriving_bytes", "Bytes of pushes that lack a SHA-256 yet.", registry=registry)
    arriving.set(sum(each.size_bytes for each in await app.artifacts.arriving.arrivals(actor)))
    kept = Gauge(
        "ground_storage_kept_bytes",
        "Bytes of a project's artifacts and model versions; a file in two of them counts twice.",
        ("project",),
        registry=registry,
    )
    for project, size_bytes in projects.items():
        kept.labels(project).set(size_bytes)


async def _prediction_metrics(app: Any, actor: Actor, registry: CollectorRegistry) -> None:
    kept = Gauge("ground_prediction_bytes", "Bytes of the prediction log.", ("project",), registry=registry)
    for one in await app.predictions.holdings(actor):
        kept.labels(one.project).set(one.size_bytes)
    gone = Gauge("ground_predictions_removed", "Removed since the start.", ("why",), registry=registry)
    for why, count in app.predictions.counts.items():
        gone.labels(why).set(count)


async def _queue_metrics(app: Any, actor: Actor, registry: CollectorRegistry) -> None:
    """How long the queues are, and what passes over them decided since the first one."""
    line = ("pool", "project", "class")
    waiting = Gauge("ground_queue_waiting", "Runs that wait in a pool's queue.", line, registry=registry)
    oldest = Gauge("ground_queue_oldest_seconds", "How long the oldest of them waits.", line, registry=registry)
    tally = await app.queue.tally()
    for labels, (count, oldest_s) in tally.waiting.items():
        if actor.sees(labels[1]):
            waiting.labels(*labels).set(count)
            oldest.labels(*labels).set(oldest_s)
    starts = Gauge("ground_queue_starts", "Runs that were given a place.", ("class",), registry=registry)
    waited = Gauge("ground_queue_waited_seconds", "Seconds they had waited, summed.", ("class",), registry=registry)
    for name, count in tally.started.items():
        starts.labels(name).set(count)
        waited.labels(name).set(tally.waited_s.get(name, 0.0))
    Gauge("ground_queue_preemptions", "Runs asked to make room.", registry=registry).set(tally.preemptions)
    Gauge("ground_queue_passes", "Passes that decided something.", registry=registry).set(tally.passes)
