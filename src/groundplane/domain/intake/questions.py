"""What is still missing, per kind of work: asked for once, with why it matters and how to answer."""
# ruff: noqa: E501 - tables of words and questions read better with one row a line

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from groundplane.domain.intake import Contradiction, Fact, ItemKind, Question
from groundplane.domain.intake.facts import known_fact, shown
from groundplane.domain.intake.lexicon import Lexicon

K = ItemKind


@dataclass(frozen=True, slots=True)
class _Ask:
    fact: str
    why: str
    choices: tuple[str, ...] = ()
    required: bool = False
    unless: tuple[str, ...] = ()


_WHO = (
    _Ask("owner", "somebody answers for it, and is asked before it is stopped", required=True),
    _Ask("cost_center", "the money is booked there", required=True),
    _Ask("project", "its budget pays, its members see it", required=True),
    _Ask("end_date", "nothing runs without an end: it is stopped then, its data kept", required=True),
    _Ask("budget", "the most it may cost; a plan whose worst case is above is refused", required=True),
)
_WHERE = (
    _Ask("cpus", "CPU cores on each machine: loading data needs 4 to 16 per GPU", ("4", "8", "16"), True, ("instance_type:cpus",)),
    _Ask("memory", "main memory on each machine, at least twice the weights", ("16GiB", "64GiB", "256GiB"), True, ("instance_type:memory",)),
    _Ask("cloud", "prices, quotas and lead times differ", ("local", "azure", "aws", "gcp"), False, ("instance_type", "pool")),
    _Ask("region", "quota is counted per region, and data should lie near", (), False, ("pool",)),
)  # fmt: skip
_GPUS = (
    _Ask("accelerator", "memory and price hang on it; the model's size decides", ("a100-80gb", "h100-80gb", "l4", "none"), False, ("instance_type",)),
    _Ask("accelerators_per_machine", "GPUs on each machine; 0 for CPU work", ("0", "1", "4", "8"), True, ("instance_type:accelerators", "accelerators+machines")),
    _Ask("machines", "how many machines start together", ("1", "2", "4", "8"), True, ("instance_type:accelerators+accelerators", "accelerators+accelerators_per_machine")),
)  # fmt: skip
_TRAINING = (
    _Ask("workload", "training and serving need different machines", ("fine-tuning", "training", "batch-inference", "serving")),
    _Ask("model", "which model is trained: memory and time are computed from it"),
    _Ask("parameters", "how many parameters: a 7B model in FP16 with Adam needs 92-104 GB to train", ("7", "13", "70"), False, ("model:parameters",)),
    _Ask("method", "a full fine-tune needs several times the memory of LoRA", ("full", "lora", "qlora")),
    _Ask("data_location", "which data, and where it is: it must be reachable and readable fast enough"),
    _Ask("dataset_size", "how much data: it must arrive before the deadline", (), False, ("dataset_items",)),
    _Ask("duration", "the longest it may run; it is stopped then", ("4h", "24h", "72h"), True),
    _Ask("command", "what is started on the machines", ("python train.py",), True),
    _Ask("checkpoint", "without checkpoints a crash loses everything", ("yes", "no")),
    _Ask("deadline", "when the machines are needed: quota and data need lead time"),
    _Ask("finish_by", "when the result is needed: hours are held against it, and it becomes the spec's deadline"),
)  # fmt: skip
_SERVING = (
    _Ask("model", "which registered version is served, as name@version", ("tiny-lm@1",), True),
    _Ask("parameters", "how many parameters: the weights and the KV cache must fit", ("7", "13", "70"), False, ("model:parameters",)),
    _Ask("visibility", "private unless an exposure with owner, reason and expiry exists", ("private", "public")),
    _Ask("requests_per_minute", "sizes the replicas", (), False, ("tokens_per_minute", "requests_per_second", "users", "concurrency", "requests_per_day")),
    _Ask("latency", "what callers count on, such as P95 below 200 ms"),
    _Ask("price_prompt", "what callers are charged per million prompt tokens", ("$0", "$0.10", "$0.50"), True),
    _Ask("price_completion", "what callers are charged per million completion tokens", ("$0", "$0.40", "$1.50"), True),
    _Ask("deadline", "when callers need it"),
)  # fmt: skip
_HOSTED = (
    *(ask for ask in _SERVING if ask.fact in {"visibility", "requests_per_minute", "latency", "deadline"}),
    *(ask for ask in _WHO if ask.fact in {"owner", "project", "budget"}),
)  # fmt: skip
"""A model behind somebody else's API needs no machines, only a route, a key and a limit."""
_ASKS: Mapping[ItemKind, tuple[_Ask, ...]] = {
    K.CAPACITY: (*_TRAINING, *_GPUS, *_WHERE, *_WHO),
    K.BATCH: (*(ask for ask in _TRAINING if ask.fact not in {"method", "checkpoint", "finish_by"}), *_GPUS, *_WHERE, *_WHO),
    K.ENDPOINT: (*_SERVING, *_GPUS, *_WHERE, *_WHO),
    K.MONITORING: (
        _Ask("object", "which endpoint, run or project is watched"),
        _Ask("metrics", "tokens per minute, requests, latency, GPU use and cost are measured", ("tokens per minute", "p95 latency", "GPU utilisation", "cost")),
        _Ask("threshold", "an alert needs a number", ("80% of the limit",), False, ("tokens_per_minute", "requests_per_minute", "latency")),
        _Ask("notify", "an alert nobody gets is none"),
        _Ask("owner", "somebody acts on the alerts"),
    ),
    K.DATA: (
        _Ask("data_location", "where it is now, or should be"),
        _Ask("dataset_size", "decides tier, time and price", (), False, ("dataset_items", "size", "disk")),
        _Ask("compliance", "personal or confidential data needs a cleared pool", ("none", "pii", "health", "confidential")),
        *(ask for ask in _WHO if ask.fact in {"owner", "cost_center", "end_date"}),
    ),
    K.ACCESS: (
        _Ask("people", "each person gets an own key", (), False, ("owner",)),
        _Ask("project", "access is per project"),
        _Ask("role", "the least that does", ("member", "lead", "viewer", "caller", "finance", "security", "operator")),
        _Ask("end_date", "keys expire"),
    ),
    K.INCIDENT: (
        _Ask("object", "which run or endpoint it is about", (), False, ("model", "address")),
        _Ask("since", "what changed just before is the first suspect", (), False, ("date", "start_date")),
        _Ask("error", "the exact message, with the lines around it"),
    ),
    K.COST: (
        _Ask("period", "which days are meant", ("last month", "this month", "last 7 days"), False, ("date", "start_date", "end_date", "duration")),
        _Ask("group_by", "how the sum is split", ("project", "model", "run", "key", "owner", "cost_center")),
    ),
    K.LIFECYCLE: (
        _Ask("object", "which run, endpoint or machine is meant", (), False, ("instance_type", "model")),
        _Ask("end_date", "when it ends", (), False, ("deadline", "date", "duration")),
        _Ask("keep_data", "what is stopped keeps its data unless said otherwise", ("yes", "no")),
        _Ask("owner", "the owner agrees first"),
    ),
    K.UNCLEAR: (_Ask("purpose", "what is asked for was not understood; say it in English with what, how much, until when"),),
}  # fmt: skip


def questions(
    kind: ItemKind, facts: Collection[Fact], contradictions: Collection[Contradiction], lexicon: Lexicon
) -> tuple[Question, ...]:
    """What is missing of an item, most telling first. A fact with two values is asked for again, with both as choices."""
    known = {fact.name for fact in facts}
    disputed = {each.fact: each for each in contradictions}
    derived = _derived(facts, lexicon)
    asked: list[Question] = []
    for each in disputed.values():
        pair = (shown(each.first), shown(each.second))
        why = f"the message says both {each.first.text!r} and {each.second.text!r}"
        asked.append(_question(each.fact, why, pair, any(a.fact == each.fact and a.required for a in _ASKS[kind])))
    for fact in facts:
        if isinstance(fact.value, str) and fact.note.startswith("a range") and fact.name not in disputed:
            asked.append(_question(fact.name, f"{fact.text!r} is a range", tuple(fact.value.split(" to ")), True))
    for ask in _HOSTED if kind is K.ENDPOINT and any(is_hosted(fact) for fact in facts) else _ASKS[kind]:
        if ask.fact in known or ask.fact in disputed or any(_given(option, known, derived) for option in ask.unless):
            continue
        asked.append(_question(ask.fact, ask.why, ask.choices, ask.required))
    if foreign := next((f for f in facts if f.name == "budget" and f.unit != "microusd"), None):
        asked.append(_question("budget", f"{foreign.text!r} is not in dollars: plans are priced in dollars", (), True))
    return tuple(asked)


def is_hosted(fact: Fact) -> bool:
    """Whether a fact names a model that only its maker serves."""
    return fact.name == "model" and fact.note.startswith("a hosted model")


def asked_of(kind: ItemKind) -> frozenset[str]:
    """The facts that an item of this kind may be asked for."""
    return frozenset(ask.fact for ask in _ASKS[kind])


def _question(fact: str, why: str, choices: tuple[str, ...], required: bool) -> Question:
    how = f"{fact}={choices[0] if choices else known_fact(fact).example}"
    return Question(fact=fact, why=why, how=how, choices=choices, required=required)


def _given(option: str, known: set[str], derived: set[str]) -> bool:
    """`a+b` needs both; `instance_type:cpus` needs a type whose CPUs the catalogue states."""
    return all(part in derived if ":" in part else part in known for part in option.split("+"))


def _derived(facts: Collection[Fact], lexicon: Lexicon) -> set[str]:
    return set(_from_catalogue(facts, lexicon))


def _from_catalogue(facts: Collection[Fact], lexicon: Lexicon) -> Iterator[str]:
    for fact in facts:
        if fact.name == "instance_type" and (machine := lexicon.instance(str(fact.value))) is not None:
            yield "instance_type:accelerators"
            yield from ["instance_type:cpus"] if machine.cpus is not None else []
            yield from ["instance_type:memory"] if machine.memory_bytes is not None else []
        if fact.name == "model" and str(fact.value).lower() in lexicon.model_ids:
            yield "model:parameters"
