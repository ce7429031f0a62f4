"""Answers laid over what was read: what is still asked, and the specs that follow when nothing required is missing."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal

import yaml

from groundplane.domain.intake import SPEC_KINDS, Fact, Intake, ItemKind, QuotaFact, Span, WorkItem
from groundplane.domain.intake.circumstances import Circumstances
from groundplane.domain.intake.facts import FACTS, Value, known_fact
from groundplane.domain.intake.lexicon import InstanceName, Lexicon
from groundplane.domain.intake.questions import asked_of, is_hosted, questions
from groundplane.domain.intake.read import lent
from groundplane.domain.intake.request import Missing, NextStep, Request, SpecDraft, Specs, answer_for
from groundplane.domain.intake.risks import risks
from groundplane.domain.sizing.memory import Method
from groundplane.domain.spec.fields import API_VERSION, ENDPOINT, JOB
from groundplane.domain.spec.parse import parse
from groundplane.errors import InvalidInput, Problem

_OPTIONAL_NAMES = """
    name pool disk accelerators team instance_type precision optimizer epochs context data_rate checkpoint_every
    checkpoint_dir start_date compliance
"""
_OPTIONAL = frozenset(_OPTIONAL_NAMES.split())
"""Never asked for, yet an answer is taken, for work that a spec describes."""


def checked(answers: Mapping[str, str], intake: Intake) -> dict[str, str]:
    """Answers as they are stored. Raises InvalidInput with every one that names no fact or can't be read."""
    problems: list[Problem] = []
    good: dict[str, str] = {}
    numbers = {str(item.number): item for item in intake.items}
    for key, text in answers.items():
        number, _, fact = key.rpartition(".")
        name = fact.strip().replace("-", "_")
        if (number and number not in numbers) or name not in FACTS:
            problems.append(Problem(field=key, message=_unknown(number, name, numbers), hint=_did_you_mean(name)))
            continue
        try:
            known_fact(name).read(text)
        except ValueError as error:
            problems.append(Problem(field=key, message=str(error), hint=f"write it like {known_fact(name).example}"))
            continue
        about = [numbers[number]] if number else list(numbers.values())
        if not any(_takes(item, name) for item in about):
            kinds = " or ".join(dict.fromkeys(item.kind.value for item in about))
            message = f"{name} says nothing about {kinds}: it would change nothing"
            problems.append(Problem(field=key, message=message, hint="ground request show ID lists what is asked for"))
            continue
        good[f"{number}.{name}" if number else name] = " ".join(text.split())
    if problems:
        count = f"{len(problems)} answers can't be taken" if len(problems) > 1 else str(problems[0])
        raise InvalidInput(count, problems[0].hint if len(problems) == 1 else "", problems)
    return good


def _takes(item: WorkItem, name: str) -> bool:
    """Whether an answer changes anything: what is asked for, may be said, or was read and can be corrected."""
    optional = name in _OPTIONAL and item.kind in SPEC_KINDS
    return optional or name in asked_of(item.kind) or any(fact.name == name for fact in item.facts)


def _unknown(number: str, name: str, numbers: Mapping[str, WorkItem]) -> str:
    if number and number not in numbers:
        return f"there is no item {number}; the request has {len(numbers)}"
    return f"{name!r} is no fact that is asked for"


def _did_you_mean(name: str) -> str:
    near = difflib.get_close_matches(name, FACTS, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else "ground request show ID lists what is asked for"


def answered(
    intake: Intake, answers: Mapping[str, str], lexicon: Lexicon, now: datetime, quotas: tuple[QuotaFact, ...]
) -> Intake:
    """The intake with questions and risks as they stand after the answers. What was read stays as it was read."""
    items = []
    for item in intake.items:
        facts = known(intake, item, answers)
        disputes = tuple(c for c in item.contradictions if answer_for(answers, item.number, c.fact) is None)
        about = Circumstances(item.kind, facts, disputes, quotas, lexicon, now)
        asked = questions(item.kind, facts, disputes, lexicon)
        items.append(replace(item, questions=asked, risks=risks(about)))
    return replace(intake, items=tuple(items))


def known(intake: Intake, item: WorkItem, answers: Mapping[str, str]) -> tuple[Fact, ...]:
    """All facts of an item: answers first, then its own words, then what holds for the whole message."""
    given = tuple(_given(item, answers))
    names = {fact.name for fact in given}
    read = tuple(fact for fact in (*item.facts, *lent(intake, item)) if fact.name not in names)
    return (*given, *read)


def _given(item: WorkItem, answers: Mapping[str, str]) -> Iterator[Fact]:
    for name in FACTS:
        text = answer_for(answers, item.number, name)
        if text is not None and _takes(item, name):
            row = known_fact(name)
            nowhere = Span(start=0, end=0)
            yield Fact(name=name, value=row.read(text), text=text, span=nowhere, unit=row.unit, note="answered")


# ---------------------------------------------------------------- specs


def specs(request: Request, lexicon: Lexicon, now: datetime) -> Specs:
    """Documents for the items that have everything, what is missing of the others, and steps for the rest."""
    documents: list[SpecDraft] = []
    missing: list[Missing] = []
    steps: list[NextStep] = []
    for item in request.intake.items:
        if item.kind not in SPEC_KINDS:
            steps.append(NextStep(item=item.number, kind=item.kind.value, what=_STEPS[item.kind]))
            continue
        if item.kind is ItemKind.ENDPOINT and any(map(is_hosted, known(request.intake, item, request.answers))):
            steps.append(NextStep(item=item.number, kind=item.kind.value, what=_HOSTED_STEP))
            continue
        wanted = [
            Missing(item=item.number, fact=question.fact, why=question.why, how=f"{item.number}.{question.how}")
            for question in item.questions
            if question.required
        ]
        if not wanted:
            draft, wanted = _draft(request, item, lexicon, now)
            documents += [draft] if draft is not None else []
        missing += wanted
    return Specs(documents=tuple(documents), missing=tuple(missing), steps=tuple(steps))


_STEPS = {
    ItemKind.MONITORING: (
        "tokens and requests are metered per key as soon as callers use the gateway: ground keys create "
        "--tpm N --rpm N, then ground cost --by key and GET /metrics"
    ),
    ItemKind.DATA: "name the data in spec.data of the job that reads it; moving it is done with the storage's own tool",
    ItemKind.ACCESS: "one key per person: ground keys create --project PROJECT --role ROLE --owner PERSON",
    ItemKind.INCIDENT: "ground explain RUN says where a run is and why; ground logs RUN shows what it wrote last",
    ItemKind.COST: "ground cost --by project|model|run|key|owner|cost_center --since DATE; ground report for the week; "
    "ground compare holds a hosted API, provisioned units and cards of one's own side by side",
    ItemKind.LIFECYCLE: "ground stop RUN|ENDPOINT --reason TEXT keeps the data; to extend, plan it with a later end",
    ItemKind.UNCLEAR: "ask the sender what was meant, and paste the answer as a new request",
}


_HOSTED_STEP = (
    "its provider serves the model and raises its quota; here its callers get keys and limits: ground keys create, "
    "ground limits set, and ground compare --api MODEL holds it against provisioned units and cards of one's own"
)


@dataclass(frozen=True, slots=True)
class _Values:
    """An item's facts by name, and what the catalogue adds to them."""

    facts: Mapping[str, Fact]
    lexicon: Lexicon

    def get(self, name: str) -> Value | None:
        fact = self.facts.get(name)
        return fact.value if fact is not None else None

    def whole(self, name: str) -> int | None:
        value = self.get(name)
        return value if isinstance(value, int) else None


def _draft(request: Request, item: WorkItem, lexicon: Lexicon, now: datetime) -> tuple[SpecDraft | None, list[Missing]]:
    facts: dict[str, Fact] = {}
    for fact in known(request.intake, item, request.answers):
        facts.setdefault(fact.name, fact)
    values = _Values(facts, lexicon)
    name = str(values.get("name") or f"{request.id}-{item.number}")
    kind = ENDPOINT if item.kind is ItemKind.ENDPOINT else JOB
    resources, problems = _resources(item, values)
    if problems:
        return None, problems
    spec: dict[str, object] = _serving(values) if kind == ENDPOINT else _working(values)
    spec |= {
        "resources": resources,
        "end_date": str(values.get("end_date")),
        "max_cost": _dollars(values.get("budget")),
    }
    if pool := values.get("pool"):
        spec["pool"] = pool
    if due := _result_by(item, values):
        spec["deadline"] = due
    metadata: dict[str, object] = {field: str(values.get(field)) for field in ("project", "owner", "cost_center")}
    document = {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": {"name": name, **metadata, "labels": _labels(request, values)},
        "spec": spec,
    }
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)
    try:
        parse(text, now=now)
    except InvalidInput as error:
        return None, [_wrong(item, problem) for problem in error.problems]
    return SpecDraft(item=item.number, kind=kind, name=name, yaml=text), []


def _result_by(item: WorkItem, values: _Values) -> str:
    """When the result is needed. "By Wednesday" for machines is another day: a label says it, nothing waits for it."""
    due = values.get("finish_by") or (values.get("deadline") if item.kind is ItemKind.BATCH else None)
    return str(due or "")


def _working(values: _Values) -> dict[str, object]:
    spec: dict[str, object] = {"command": str(values.get("command")), "max_duration": f"{values.get('duration')}s"}
    if training := _training(values):
        spec["training"] = training
    if data := _data(values):
        spec["data"] = [data]
    if every := values.whole("checkpoint_every"):
        spec["checkpoint_every"] = f"{every}s"
    if (folder := str(values.get("checkpoint_dir") or "")).startswith("/"):
        spec["checkpoint_dir"] = folder
    return spec


def _training(values: _Values) -> dict[str, object]:
    """What memory and hours are summed up from. Without a model there is nothing to sum up."""
    model, billions = str(values.get("model") or ""), values.get("parameters")
    shape: dict[str, object] = {}
    if model.lower() in values.lexicon.model_ids:
        shape["model"] = model
    elif billions is not None:
        shape["params"] = f"{billions}B"
    if not shape or values.get("workload") not in (None, "training", "fine-tuning"):
        return {}
    if (method := values.get("method")) in tuple(Method):
        shape["method"] = method
    for fact, field in (
        ("precision", "precision"),
        ("optimizer", "optimizer"),
        ("context", "sequence"),
        ("epochs", "epochs"),
    ):
        if (value := values.get(fact)) is not None:
            shape[field] = value
    items = values.facts.get("dataset_items")
    if items is not None and items.unit == "tokens":
        shape["tokens"] = items.value
    return shape


def _data(values: _Values) -> dict[str, object]:
    """The data, where it is said exactly: with size, passes and speed, which a plan holds against the time."""
    place = str(values.get("data_location") or "")
    if not place.startswith(("/", "s3://", "https://")):
        return {}
    data: dict[str, object] = {"name": "data", "path" if place.startswith("/") else "from": place}
    if size := values.whole("dataset_size"):
        data["size"] = f"{size}B"
    if rate := values.whole("data_rate"):
        data["throughput"] = f"{rate}B/s"
    if epochs := values.whole("epochs"):
        data["passes"] = epochs
    return data


def _serving(values: _Values) -> dict[str, object]:
    price = {"prompt": _dollars(values.get("price_prompt")), "completion": _dollars(values.get("price_completion"))}
    return {"model": str(values.get("model")), "public": values.get("visibility") == "public", "token_price": price}


def _resources(item: WorkItem, values: _Values) -> tuple[dict[str, object], list[Missing]]:
    """What each machine has. Counts given twice must agree: 16 GPUs on 3 machines are no whole number each."""
    machine = values.lexicon.instance(str(values.get("instance_type") or ""))
    total, each, machines = (
        values.whole("accelerators"), values.whole("accelerators_per_machine"), values.whole("machines")
    )  # fmt: skip
    if each is None and machine is not None:
        each = int(machine.accelerators)
    if each is None and total is not None and machines:
        each = -1 if total % machines else total // machines
    if machines is None and total is not None and each:
        machines = -1 if total % each else total // each
    if each is None or machines is None or each < 0 or machines < 1 or (total is not None and total != each * machines):
        on = f"{machines} machine{'s' if machines != 1 else ''}"
        why = f"{total} GPUs in all, {each if each != -1 else 'a fraction'} each and {on} do not agree"
        how = f"{item.number}.machines=1"
        return {}, [Missing(item=item.number, fact="machines", why=why, how=how)]
    cpus = values.get("cpus") or (machine.cpus if machine else None)
    memory = values.whole("memory") or (machine.memory_bytes if machine else None)
    resources: dict[str, object] = {"cpus": cpus, "memory": f"{memory}B", "accelerators": each, "nodes": machines}
    accelerator = values.get("accelerator") or (machine.accelerator if machine else None)
    if each and accelerator and accelerator != "none":
        resources["accelerator"] = str(accelerator)
    if disk := values.whole("disk"):
        resources["disk"] = f"{disk}B"
    return resources | _market(values, machine), []


def _market(values: _Values, machine: InstanceName | None) -> dict[str, object]:
    """Where it is to be bought, unless a pool is named."""
    cloud = values.get("cloud") or (machine.cloud if machine else None)
    if values.get("pool") or cloud not in ("azure", "aws", "gcp"):
        return {}
    market: dict[str, object] = {"cloud": cloud}
    if machine is not None:
        market["instance_type"] = machine.name
    if region := values.get("region"):
        market["region"] = region
    if values.get("spot") == "yes":
        market["purchase"] = "spot"
    return market


def _labels(request: Request, values: _Values) -> dict[str, str]:
    labels = {"request": request.id}
    for name in ("team", "workload", "method", "environment", "compliance"):
        if (value := values.get(name)) is not None:
            labels[name] = str(value)
    if (needed := values.get("deadline")) is not None:
        labels["needed-by"] = str(needed)
    if (model := values.facts.get("model")) is not None and "@" not in str(model.value):
        labels["base-model"] = str(model.value)
    return labels


def _dollars(microusd: Value | None) -> str:
    return f"${Decimal(str(microusd)) / 1_000_000:f}"


_FIELD_FACTS = {
    "max_duration": "duration", "max_cost": "budget", "prompt": "price_prompt", "completion": "price_completion",
    "accelerators": "accelerators_per_machine", "nodes": "machines",
}  # fmt: skip


def _wrong(item: WorkItem, problem: Problem) -> Missing:
    """A value that the dialect does not take, as the fact to answer anew."""
    last = problem.field.rpartition(".")[2].partition("[")[0]
    fact = _FIELD_FACTS.get(last, last)
    example = known_fact(fact).example
    return Missing(
        item=item.number, fact=fact, why=f"{problem.field}: {problem.message}", how=f"{item.number}.{fact}={example}"
    )
