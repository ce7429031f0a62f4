"""The built-in rules that need more than an expression: suggestions, sums in the message, the catalogue.

Those that one expression tells are data, in `defaults`. docs/reference/policy.md has both.
"""

from __future__ import annotations

import difflib
from datetime import datetime

from groundplane.domain.hardware import InstanceType
from groundplane.domain.planning.plan import compact_duration, longest_s, same_sku
from groundplane.domain.policy.rule import Finding, Rule, Subject
from groundplane.domain.policy.work_rules import WORK_RULES
from groundplane.domain.spec import JobSpec
from groundplane.units import MICROUSD_PER_USD, exact_usd, format_bytes, format_duration

WEIGHTS_TO_MEMORY = 2
_LOADED = {"embedded": (("config.json",), ("tokenizer.json",), ("model.safetensors", "model.safetensors.index.json"))}
"""Engine → what it loads a model by: of each group, one file at the version's root."""


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


def _model_files(subject: Subject) -> Finding | None:
    spec, model = subject.spec, subject.model
    if isinstance(spec, JobSpec) or model is None or not model.files:
        return None
    paths = [file.path for file in model.files]
    missing = [names[0] for names in _LOADED.get(spec.engine, ()) if not set(names) & set(paths)]
    if not missing:
        return None
    more = f" and {len(paths) - 3:,} more" if len(paths) > 3 else ""
    return Finding(need=f"{', '.join(missing)} in {model.id}", have=f"{', '.join(paths[:3])}{more}")


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
    *WORK_RULES,
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
        id="model-files",
        why="An engine that lacks a file ends right after its start, again and again.",
        hint="register the folder that save_pretrained wrote, with its tokenizer, or use an engine of your own",
        check=_model_files,
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
