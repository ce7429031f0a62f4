"""The built-in rules that need more than an expression: suggestions, sums in the message, the catalogue.

Those that one expression tells are data, in `defaults`. docs/reference/policy.md has both.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from groundplane.domain.access import Exposure
from groundplane.domain.hardware import Hardware, InstanceType
from groundplane.domain.isolation import MEANING, STRENGTH, Isolation, IsolationPolicy, effective
from groundplane.domain.model import ModelVersion
from groundplane.domain.planning.plan import Ranking, compact_duration, longest_s, same_sku
from groundplane.domain.spec import EndpointSpec, JobSpec
from groundplane.units import MICROUSD_PER_USD, exact_usd, format_bytes, format_duration

MAX_HORIZON_DAYS = 90
WEIGHTS_TO_MEMORY = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Everything the rules may look at: the spec, the offers found for it, and what the store knows of it."""

    spec: JobSpec | EndpointSpec
    ranking: Ranking
    hardware: Hardware
    now: datetime
    pools: tuple[str, ...]
    silent_pools: dict[str, str]
    price_stale_days: int = 30
    model: ModelVersion | None = None
    known_versions: tuple[str, ...] = ()
    exposure: Exposure | None = None
    horizon_days: int = MAX_HORIZON_DAYS
    isolation: IsolationPolicy = IsolationPolicy()
    secrets: frozenset[str] = frozenset()
    resume_proof: str = ""
    spot_blind: Mapping[str, str] = field(default_factory=dict)
    unfit: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check found: the number it needs, the one there is, and a way forward better than the rule's own."""

    need: str
    have: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """`warns` rules never refuse. Those not `at_apply` are judged once: time alone would turn them, harmlessly.

    `live` rules look at what the plan does not keep (pools, the registry, the catalogue): they can't be replayed.
    """

    id: str
    why: str
    hint: str
    check: Callable[[Subject], Finding | None]
    warns: bool = False
    at_apply: bool = True
    live: bool = False


# ---------------------------------------------------------------- who and until when


def _end_ahead(subject: Subject) -> Finding | None:
    end, now = subject.spec.end_date, subject.now
    return None if end > now else Finding(need=f"an end date after {_time(now)}", have=_time(end))


def _end_near(subject: Subject) -> Finding | None:
    days = (subject.spec.end_date - subject.now).total_seconds() / 86_400
    if days <= subject.horizon_days:
        return None
    return Finding(
        need=f"an end date within {subject.horizon_days} days",
        have=f"{_time(subject.spec.end_date)}, {days:.0f} days away",
        hint=f"set spec.end_date: {subject.horizon_days}d and renew it when the work goes on",
    )


def _duration_before_end(subject: Subject) -> Finding | None:
    left_s = int((subject.spec.end_date - subject.now).total_seconds())
    if subject.spec.max_duration_s <= left_s or left_s <= 0:
        return None
    return Finding(
        need=f"max_duration of at most {format_duration(left_s)}, the time left until {_time(subject.spec.end_date)}",
        have=format_duration(subject.spec.max_duration_s),
        hint=f"set max_duration: {compact_duration(left_s)}, or a later end_date",
    )


# ---------------------------------------------------------------- what is run


def _command(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or (spec.command and spec.command[0].strip()):
        return None
    return Finding(need="a command", have="nothing")


def _no_schedule(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or not spec.schedule:
        return None
    return Finding(need="a job without a schedule", have=f"schedule {spec.schedule!r}")


def _absolute_paths(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec):
        return None
    paths = [("workdir", spec.workdir), *((f"data {item.name}", item.path) for item in spec.data)]
    relative = [f"{what} {path}" for what, path in paths if path and not path.startswith("/")]
    return Finding(need="absolute paths", have=", ".join(relative)) if relative else None


_ACCELERATOR_WORK = re.compile(
    r"--device[= ]cuda|\bcuda:\d|--backend[= ]nccl|--(num[-_])?gpus?[= ][1-9]"
    r"|--nproc[-_]per[-_]node[= ]gpu|--use[-_]cuda\b",
    re.IGNORECASE,
)


def _accelerator_work(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or spec.resources.accelerators:
        return None
    match = _ACCELERATOR_WORK.search(" ".join(spec.command))
    if match is None:
        return None
    return Finding(
        need=f"an accelerator for {match[0]!r} in the command",
        have="resources.accelerators: 0",
        hint="set resources.accelerators: 1 and its kind, or let the command run on CPU",
    )


def _accelerator_known(subject: Subject) -> Finding | None:
    asked, hardware = subject.spec.resources.accelerator, subject.hardware
    if not asked or not hardware.accelerators or hardware.accelerator(asked) or hardware.accelerators_like(asked):
        return None
    near = hardware.near_accelerators(asked)
    hint = f"did you mean {' or '.join(near)}?" if near else ""
    return Finding(need="an accelerator the catalogue knows", have=asked, hint=hint)


# ---------------------------------------------------------------- how it is kept apart, and checked


def _isolation_possible(subject: Subject) -> Finding | None:
    spec, best = subject.spec, subject.ranking.best
    if isinstance(spec, EndpointSpec) or best is None or not best.offer.isolation:
        return None
    mode, possible = effective(spec.isolation, subject.isolation), best.offer.isolation
    if mode.value in possible:
        return None
    return Finding(
        need=f"isolation {mode} ({MEANING[mode]})",
        have=f"pool {spec.pool} can give: {', '.join(possible)}",
        hint=f"set isolation: {possible[-1]}, or choose another pool",
    )


def _isolation_enough(subject: Subject) -> Finding | None:
    spec, least = subject.spec, subject.isolation.minimum
    if isinstance(spec, EndpointSpec) or not spec.isolation:
        return None
    if STRENGTH[Isolation(spec.isolation)] >= STRENGTH[least]:
        return None
    return Finding(need=f"isolation {least} or stronger", have=spec.isolation, hint=f"set isolation: {least}")


def _isolation_whole(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec):
        return None
    mode = effective(spec.isolation, subject.isolation)
    if mode is Isolation.PODMAN and not spec.image:
        return Finding(need="spec.image for isolation podman", have="nothing", hint="set image: to one on the nodes")
    if spec.image and mode is not Isolation.PODMAN:
        return Finding(need=f"isolation podman for image {spec.image}", have=mode, hint="set isolation: podman")
    if not spec.network and STRENGTH[mode] < STRENGTH[Isolation.BUBBLEWRAP]:
        hint = "set isolation: bubblewrap or podman"
        return Finding(need="a sandbox to take the network away", have=f"isolation {mode}", hint=hint)
    return None


def _needs_in_reach(subject: Subject) -> Finding | None:
    spec, best = subject.spec, subject.ranking.best
    if isinstance(spec, EndpointSpec) or not spec.needs or best is None or not best.offer.alone:
        return None
    return Finding(
        need=f"the output of {', '.join(spec.needs)} on the node",
        have=f"the nodes of pool {spec.pool} keep the files of runs to themselves",
    )


def _endpoint_in_reach(subject: Subject) -> Finding | None:
    best = subject.ranking.best
    if not isinstance(subject.spec, EndpointSpec) or best is None or best.offer.serves:
        return None
    return Finding(
        need="a pool whose nodes the gateway reaches",
        have=f"the nodes of pool {subject.spec.pool} are reached over SSH alone",
    )


def _asking_in_reach(subject: Subject) -> Finding | None:
    spec, unfit = subject.spec, subject.unfit
    if isinstance(spec, EndpointSpec) or spec.inference is None or not unfit:
        return None
    node, why = min(unfit.items())
    needs = "Python 3.11 and a way to the gateway" if spec.inference.asking.endpoint else "Python 3.11 and the engine"
    return Finding(need=f"nodes with {needs}", have=f"{len(unfit)} of pool {spec.pool} can't run it; {node}: {why}")


def _secrets_known(subject: Subject) -> Finding | None:
    spec = subject.spec
    missing = [] if isinstance(spec, EndpointSpec) else [name for name in spec.secrets if name not in subject.secrets]
    if not missing:
        return None
    need = f"secrets of project {spec.metadata.project}: {', '.join(missing)}"
    return Finding(need=need, have=", ".join(sorted(subject.secrets)) or "none")


def _preflight_on(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or spec.preflight:
        return None
    return Finding(need="faults of node and storage are paid for until the job meets them", have="preflight is off")


def _resume_proven(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or not spec.spot or subject.resume_proof == "proved":
        return None
    have = {"": "none was made", "running": "one is under way"}.get(subject.resume_proof, subject.resume_proof)
    return Finding(need="a resume seen after a test kill, of this very command", have=have)


def _spot_seen(subject: Subject) -> Finding | None:
    spec, blind = subject.spec, subject.spot_blind
    if isinstance(spec, EndpointSpec) or not spec.spot or not blind:
        return None
    node, why = min(blind.items())
    return Finding(
        need="a metadata service that tells when a machine is taken back",
        have=f"spot notices can't be seen on {len(blind)} nodes of pool {spec.pool}; {node}: {why}",
    )


def _spot_watched(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, EndpointSpec) or spec.resources.purchase != "spot" or spec.spot:
        return None
    return Finding(need="notices are watched for with spec.spot: true", have="resources.purchase: spot alone")


# ---------------------------------------------------------------- where, and for how much


def _pool_known(subject: Subject) -> Finding | None:
    if subject.spec.pool in subject.pools:
        return None
    return Finding(need=f"one of the pools: {', '.join(subject.pools) or 'none yet'}", have=subject.spec.pool)


def _offer_fits(subject: Subject) -> Finding | None:
    spec, ranking = subject.spec, subject.ranking
    if ranking.best is not None or spec.pool not in subject.pools or spec.resources.names_cloud:
        return None
    if spec.pool in subject.silent_pools:
        have = f"pool {spec.pool} does not answer: {subject.silent_pools[spec.pool]}"
        return Finding(need="an offer", have=have, hint="try again, or choose another pool")
    own = [item for item in ranking.rejected if item.pool == spec.pool]
    if not own:
        return Finding(need="an offer", have=f"pool {spec.pool} has no nodes", hint="choose another pool")
    # The nearest miss: the fewest reasons stand in its way.
    miss = own[0]
    have = "; ".join(f"{reason.rule} {reason.have}" for reason in miss.reasons)
    need = "; ".join(reason.need for reason in miss.reasons)
    # Nobody gets accelerators by lowering CPUs: what can't be had there at all decides the way forward.
    main = next((reason for reason in miss.reasons if reason.rule in ("accelerators", "accelerator")), miss.reasons[0])
    hint = main.hint
    if main.rule == "accelerators":
        hint += ", or plan it in a cloud: resources.cloud: azure, aws or gcp"
    return Finding(need=need, have=f"{have} on {miss.pool}/{miss.node_type}", hint=hint)


def _max_cost(subject: Subject) -> Finding | None:
    spec, best = subject.spec, subject.ranking.best
    if best is None or best.worst_case_microusd <= spec.max_cost_microusd:
        return None
    cent = MICROUSD_PER_USD // 100
    would_do = exact_usd(-(-best.worst_case_microusd // cent) * cent)
    fitting_s = longest_s(spec, best.offer)
    shorter = f"max_duration: {compact_duration(fitting_s)} fits, or " if fitting_s else ""
    return Finding(
        need=f"{exact_usd(best.worst_case_microusd)} in the worst case ({best.arithmetic})",
        have=f"max_cost {exact_usd(spec.max_cost_microusd)}",
        hint=f"{shorter}set max_cost: {would_do}",
    )


def _price_fresh(subject: Subject) -> Finding | None:
    best, today = subject.ranking.best, subject.now.date()
    if best is None:
        return None
    age_days = (today - best.offer.price_as_of).days
    if 0 <= age_days <= subject.price_stale_days:
        return None
    have = f"the price is of {best.offer.price_as_of}, {age_days} days old"
    if age_days < 0:
        have = f"the price is of {best.offer.price_as_of}, which is still to come"
    return Finding(need=f"at most {subject.price_stale_days} days are trusted", have=have)


def _not_retired(subject: Subject) -> Finding | None:
    item, today = _instance_type(subject), subject.now.date()
    if item is None or not item.is_retired(today):
        return None
    return Finding(need=f"an instance type still sold on {today}", have=f"{item.name}, {_retirement(item)}")


def _not_retiring(subject: Subject) -> Finding | None:
    item = _instance_type(subject)
    if item is None or item.is_retired(subject.now.date()) or not item.is_retired(subject.spec.end_date.date()):
        return None
    return Finding(need=f"the end date is {subject.spec.end_date.date()}", have=f"{item.name} is {_retirement(item)}")


def _instance_type(subject: Subject) -> InstanceType | None:
    """The machine it would run on, or where none is big enough the one that is asked for."""
    best, named = subject.ranking.best, subject.spec.resources.instance_type
    if best is not None:
        return subject.hardware.instance_type(best.offer.node_type)
    same = [item for item in subject.hardware.instance_types if named and same_sku(item.name, named)]
    # Sold somewhere is sold.
    return next((item for item in same if not item.is_retired(subject.now.date())), same[0] if same else None)


def _retirement(item: InstanceType) -> str:
    return f"retired on {item.retirement_date}" if item.retirement_date else "retired"


# ---------------------------------------------------------------- what is served


def _model_exists(subject: Subject) -> Finding | None:
    spec = subject.spec
    if isinstance(spec, JobSpec) or subject.model is not None:
        return None
    name = spec.model.rpartition("@")[0]
    same = [version for version in subject.known_versions if version.rpartition("@")[0] == name]
    near = same[-3:] or difflib.get_close_matches(spec.model, subject.known_versions, 3, 0.5)
    hint = f"registered: {', '.join(near)}" if near else "ground models list shows what is registered"
    return Finding(need="a registered model version", have=spec.model, hint=hint)


def _model_memory(subject: Subject) -> Finding | None:
    spec, model = subject.spec, subject.model
    if isinstance(spec, JobSpec) or model is None:
        return None
    need_bytes, have_bytes = WEIGHTS_TO_MEMORY * model.size_bytes, spec.resources.memory_bytes
    if need_bytes <= have_bytes:
        return None
    rounded = f"{-(-need_bytes // 2**30)}GiB" if need_bytes > 2**30 else f"{-(-need_bytes // 2**20)}MiB"
    return Finding(
        need=f"{WEIGHTS_TO_MEMORY} × {format_bytes(model.size_bytes)} of weights = {format_bytes(need_bytes)}",
        have=f"resources.memory {format_bytes(have_bytes)}",
        hint=f"set resources.memory: {rounded}, or serve a smaller or quantised model",
    )


def _exposed(subject: Subject) -> Finding | None:
    spec, exposure = subject.spec, subject.exposure
    if isinstance(spec, JobSpec) or not spec.public:
        return None
    if exposure is not None and exposure.expires_at > subject.now:
        return None
    have = "none" if exposure is None else f"one that expired on {_time(exposure.expires_at)}"
    return Finding(need="an exposure with owner, reason and expiry", have=have)


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


RULES: tuple[Rule, ...] = (
    Rule(
        id="end-date-ahead",
        why="What has no end in the future is stopped before it starts.",
        hint="set spec.end_date to a date in the future",
        check=_end_ahead,
    ),
    Rule(
        id="end-date-horizon",
        why="What is not looked at again for months is forgotten and goes on costing.",
        hint="set a nearer spec.end_date and renew it when the work goes on",
        check=_end_near,
        at_apply=False,
    ),
    Rule(
        id="duration-before-end",
        why="A run that can't finish before its end date would be paid for and cut off.",
        hint="shorten spec.max_duration",
        check=_duration_before_end,
        at_apply=False,
    ),
    Rule(id="command", why="A job is a command.", hint="set spec.command", check=_command),
    Rule(
        id="absolute-paths",
        why="A node can't know what a path on the author's machine is relative to.",
        hint="ground plan -f FILE makes them absolute; over the API send absolute paths",
        check=_absolute_paths,
    ),
    Rule(
        id="no-schedule",
        why="A job with a schedule is no run to start now, but one to submit at times.",
        hint="ground schedules create -f FILE keeps it; leave the schedule out to run it once, now",
        check=_no_schedule,
    ),
    Rule(
        id="accelerator-known",
        why="A name nobody sells waits for ever.",
        hint="ground recon lists the names",
        check=_accelerator_known,
        live=True,
    ),
    Rule(
        id="accelerator-work",
        why="Accelerator work on a CPU node fails after minutes, or costs its hours many times over.",
        hint="set resources.accelerators",
        check=_accelerator_work,
    ),
    Rule(
        id="isolation-whole",
        why="A wall that is half asked for is none.",
        hint="see docs/guides/jobs.md, isolation",
        check=_isolation_whole,
        live=True,
    ),
    Rule(
        id="isolation-minimum",
        why="The installation asks for at least this much between jobs.",
        hint="set a stronger spec.isolation",
        check=_isolation_enough,
        live=True,
    ),
    Rule(
        id="isolation-possible",
        why="What a pool can't give is said before the run waits for it.",
        hint="choose another spec.isolation, or another pool",
        check=_isolation_possible,
        live=True,
    ),
    Rule(
        id="needs-in-reach",
        why="A job that can't read what it needs fails after it was paid for.",
        hint="give the pool a shared_dir in the pool file, or stage an artifact: spec.data with from: artifact:…",
        check=_needs_in_reach,
        live=True,
    ),
    Rule(
        id="endpoint-in-reach",
        why="A replica whose port the gateway can't reach would be paid for and answer nobody.",
        hint="set pool: local to serve on this machine",
        check=_endpoint_in_reach,
        live=True,
    ),
    Rule(
        id="asking-in-reach",
        why="An evaluation or a batch that can't ask its model fails after it was paid for.",
        hint="set pool: local, mend the nodes, or cordon them",
        check=_asking_in_reach,
        at_apply=False,
        live=True,
    ),
    Rule(
        id="secrets-known",
        why="A job without its secrets fails after it was paid for.",
        hint="put the file under the secrets folder: GROUND_SECRETS",
        check=_secrets_known,
        live=True,
    ),
    Rule(
        id="resume-proven",
        why="A machine that may be taken away any minute is for jobs that were seen to go on from their checkpoint.",
        hint="ground prove-resume -f FILE kills a short run once and looks; or leave spec.spot out",
        check=_resume_proven,
        live=True,
    ),
    Rule(
        id="spot-seen",
        why="Without a notice a job has no time to save: it goes on from the last checkpoint that it wrote by itself.",
        hint="write checkpoints often; on machines that no cloud takes back, leave spec.spot out",
        check=_spot_seen,
        warns=True,
        at_apply=False,
        live=True,
    ),
    Rule(
        id="spot-watched",
        why="A spot machine gives half a minute to two minutes of notice: enough to save, for who listens.",
        hint="set spec.spot: true",
        check=_spot_watched,
        warns=True,
    ),
    Rule(
        id="preflight-on",
        why="A check before the start costs seconds; the same fault at 3 a.m. costs the night.",
        hint="leave preflight out, or set it to true",
        check=_preflight_on,
        warns=True,
    ),
    Rule(
        id="pool-known",
        why="Work goes to a registered pool.",
        hint="set spec.pool to one of them",
        check=_pool_known,
        live=True,
    ),
    Rule(
        id="offer-fits",
        why="Work that no node can carry would wait for ever.",
        hint="lower spec.resources, or choose another pool",
        check=_offer_fits,
        live=True,
    ),
    Rule(
        id="max-cost",
        why="Money is reserved before it is spent: the worst case must be within what the author allows.",
        hint="raise spec.max_cost or lower spec.max_duration",
        check=_max_cost,
    ),
    Rule(
        id="price-fresh",
        why="A stale price makes a wrong bill.",
        hint="set the price anew, with its date",
        check=_price_fresh,
        warns=True,
    ),
    Rule(
        id="not-retired",
        why="Price lists keep instance types that can't be had any more.",
        hint="choose a current instance type: ground recon",
        check=_not_retired,
        live=True,
    ),
    Rule(
        id="not-retiring",
        why="An instance type that is retired in the middle takes the work with it.",
        hint="choose an instance type without a retirement date",
        check=_not_retiring,
        warns=True,
        live=True,
    ),
    Rule(
        id="model-exists",
        why="An endpoint serves a registered, verified version, never a loose file.",
        hint="register it: ground models register",
        check=_model_exists,
        live=True,
    ),
    Rule(
        id="model-memory",
        why="While weights load they are in memory twice; with less the server is killed and restarted, for ever.",
        hint="raise resources.memory",
        check=_model_memory,
        live=True,
    ),
    Rule(
        id="public-needs-exposure",
        why="Private by default: what is reachable from outside has an owner, a reason and an expiry date.",
        hint="set public: false, or record one: ground exposures add",
        check=_exposed,
        live=True,
    ),
)
