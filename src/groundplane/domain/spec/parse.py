"""Text → specs, or every fault in it with its line.

parse = compose nodes (yaml_nodes) → walk them along the table of fields (fields) → build the frozen specs
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from groundplane.domain.spec import (
    ArrayElement,
    CheckpointPolicy,
    DataSource,
    EndpointSpec,
    JobSpec,
    Metadata,
    ModelOutput,
    Resources,
    Retry,
    ServingNeed,
    TokenPrice,
    TrainingNeed,
)
from groundplane.domain.spec.fields import (
    API_VERSION,
    BATCH,
    DEV,
    ENDPOINT,
    EVALUATION,
    JOB,
    KINDS,
    Field,
    fields_of,
    sections_of,
)
from groundplane.domain.spec.inference import INPUT
from groundplane.domain.spec.inference import faults as inference_faults
from groundplane.domain.spec.inference_fields import batch_need, evaluation_need, need_body
from groundplane.domain.spec.sources import SCHEMES, faults
from groundplane.domain.spec.values import Fault, Unreadable, entries, kind_of, shown
from groundplane.domain.spec.yaml_nodes import compose_documents, is_null, line_of
from groundplane.errors import InvalidInput, Problem
from groundplane.units import format_count

__all__ = ["dump", "dump_whole", "parse", "parse_one", "with_absolute_paths"]

MAX_PROBLEMS = 100
MAX_LIST_ITEMS = 256
ARRAY_INDEX = "GROUND_ARRAY_INDEX"
DEV_IDLE_LIMIT_S = 3600

_COMMON_NAMES = {
    "gpu": "accelerators", "gpus": "accelerators", "gpu_count": "accelerators", "num_gpus": "accelerators",
    "gpu_type": "accelerator", "gpu_model": "accelerator", "ram": "memory", "mem": "memory", "storage": "disk",
    "cwd": "workdir", "working_dir": "workdir", "environment": "env", "timeout": "max_duration",
    "time_limit": "max_duration", "due": "deadline", "expires": "end_date", "budget": "max_cost",
    "queue": "pool", "partition": "pool", "args": "command", "entrypoint": "command", "team": "project",
    "namespace": "project", "price": "token_price", "replicas": "nodes", "sku": "instance_type",
    "vm_size": "instance_type", "machine_type": "instance_type", "location": "region",
}  # fmt: skip
"""What other dialects call our fields."""

Spec = JobSpec | EndpointSpec


def parse(text: str, *, now: datetime) -> tuple[Spec, ...]:
    """Every document of a spec file, in order. `now` (aware, UTC) is what relative and past end dates are held against.

    Raises InvalidInput with every problem found, each with its 1-based line.
    """
    documents = compose_documents(text)
    problems: list[Problem] = []
    specs: list[Spec] = []
    seen: dict[tuple[str, str], int] = {}
    for node in documents:
        reading = _Reading(now=now)
        spec = _document(node, reading)
        problems += reading.problems
        if spec is not None:
            specs += elements_of(spec, reading.array)
            first = seen.setdefault((type(spec).__name__, spec.metadata.name), line_of(node))
            if first != line_of(node):
                message = f"{spec.metadata.name!r} is also the document on line {first}"
                problems.append(
                    Problem(field="metadata.name", message=message, line=line_of(node), hint="rename one of them")
                )
    if problems:
        raise _invalid(problems)
    return tuple(specs)


def parse_one(text: str, *, now: datetime) -> Spec:
    """The only document of a text. Raises InvalidInput when there are several."""
    specs = parse(text, now=now)
    if len(specs) != 1:
        raise InvalidInput(f"{len(specs)} documents where one is expected", "split the file")
    return specs[0]


def dump(spec: Spec) -> str:
    """A spec as YAML that parses back to the same spec while its end date is ahead; an array's element stands alone."""
    return yaml.safe_dump(_as_document(spec), sort_keys=False, allow_unicode=True, width=100)


def dump_whole(spec: Spec) -> str:
    """`dump`, but an element of an array becomes the array: what it was submitted as."""
    document = _as_document(spec)
    if isinstance(spec, JobSpec) and spec.array is not None:
        at_once = f"%{spec.array.at_once}" if spec.array.at_once else ""
        document["spec"]["array"] = f"{spec.array.first}-{spec.array.last}{at_once}"
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


def with_absolute_paths(text: str, folder: str) -> str:
    """The text with relative `spec.workdir` and `spec.data[].path` made absolute, counted from `folder`.

    Only those values are replaced, in place, so that line numbers stay what the author sees.
    Raises InvalidInput when the text is no YAML.
    """
    spots: list[tuple[int, int, str]] = []
    for document in compose_documents(text):
        spec = _child(document, "spec")
        found = [_child(spec, "workdir")]
        data = _child(spec, "data")
        if isinstance(data, SequenceNode):
            found += [_child(item, name) for item in data.value for name in ("path", "from")]
        for node in found:
            if isinstance(node, ScalarNode) and node.style not in {"|", ">"} and _relative(str(node.value)):
                path = folder.rstrip("/") if node.value == "." else f"{folder.rstrip('/')}/{node.value}"
                quoted = yaml.safe_dump(path or "/", default_style='"', width=2**31, allow_unicode=True).strip()
                spots.append((node.start_mark.index, node.end_mark.index, quoted))
    offset = 1 if text.startswith("\ufeff") else 0
    for start, end, path in sorted(set(spots), reverse=True):
        text = text[: start + offset] + path + text[end + offset :]
    return text


def elements_of(spec: Spec, array: tuple[int, int, int] | None) -> list[Spec]:
    """The runs of an array, named `<name>-<index>`; a spec that is none is its own only element."""
    if array is None or not isinstance(spec, JobSpec):
        return [spec]
    first, last, at_once = array
    name = spec.metadata.name
    return [
        replace(
            spec,
            metadata=replace(spec.metadata, name=f"{name}-{index}"),
            env=spec.env | {ARRAY_INDEX: str(index)},
            array=ArrayElement(name=name, index=index, at_once=at_once, first=first, last=last),
        )
        for index in range(first, last + 1)
    ]


# ---------------------------------------------------------------- walking the nodes


@dataclass(slots=True)
class _Reading:
    """One document being read: its time, its array when it is one, and the problems so far."""

    now: datetime
    array: tuple[int, int, int] | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def full(self) -> bool:
        return len(self.problems) >= MAX_PROBLEMS

    def add(self, path: str, fault: Fault) -> None:
        if not self.full:
            where = path + fault.where
            self.problems.append(Problem(field=where, message=fault.message, line=fault.line, hint=fault.hint))


def _document(node: Node, reading: _Reading) -> Spec | None:
    if not isinstance(node, MappingNode):
        hint = f"a spec starts with `apiVersion: {API_VERSION}`"
        reading.add("", Fault(line_of(node), f"the document must be a mapping of fields, is {kind_of(node)}", hint))
        return None
    kind_node = _child(node, "kind")
    kind = str(kind_node.value) if isinstance(kind_node, ScalarNode) else ""
    kind = DEV if kind == "dev" else kind
    if kind not in KINDS:
        # Without a kind there is no telling which fields belong: say that, and nothing that might mislead.
        where = kind_node or node
        near = _near(kind, KINDS)
        message = "is required" if kind_node is None else f"{shown(kind)} is not one of: {', '.join(KINDS)}"
        reading.add("kind", Fault(line_of(where), message, f"did you mean {near}?" if near else "write kind: Job"))
        return None
    values = _section(node, "", kind, reading)
    if reading.problems:
        return None
    reading.array = values["spec"].pop("array", None)
    if kind == ENDPOINT:
        return _endpoint(values, reading.now)
    if kind == DEV:
        values["spec"] = {"command": ("dev",), "dev": "shell", "idle_limit": DEV_IDLE_LIMIT_S, **values["spec"]}
    if kind in (EVALUATION, BATCH):
        said = values["spec"]
        values["spec"] = {**said, "command": (kind.lower(),), "data": [{"name": INPUT, "dataset": said["dataset"]}]}
    job = _job(values, kind)
    _check_sources(job, _child(_child(node, "spec"), "data"), reading)
    for name, message, hint in inference_faults(job.inference, job.resources.nodes) if job.inference else ():
        where = _child(_child(node, "spec"), name) or _child(node, "spec") or node
        reading.add(f"spec.{name}", Fault(line_of(where), message, hint))
    return None if reading.problems else job


def _check_sources(job: JobSpec, node: Node | None, reading: _Reading) -> None:
    items = node.value if isinstance(node, SequenceNode) else ()
    if job.inference is not None:
        return  # its one source is a dataset by name
    for source, item in zip(job.data, items, strict=True):
        for name, message, hint in faults(source, job.secrets):
            line = line_of(_child(item, name) or item)
            reading.add(f"spec.data[].{name}", Fault(line, message, hint))


def _section(node: Node, path: str, kind: str, reading: _Reading) -> dict[str, Any]:
    """The values of one mapping by field name; sections inside become dicts, lists of sections lists of dicts."""
    fields, sections = fields_of(kind), sections_of(kind)
    values: dict[str, Any] = {}
    faults: list[Fault] = []
    try:
        for name, child in entries(node, faults):
            full = f"{path}.{name}" if path else name
            if reading.full:
                break
            if full in fields:
                _leaf(fields[full], child, values, reading)
            elif full in sections and not is_null(child):
                values[name] = _section(child, full, kind, reading)
            elif f"{full}[]" in sections and not is_null(child):
                values[name] = _list(child, full, kind, reading)
            elif full not in sections and f"{full}[]" not in sections:
                reading.add(full, Fault(_line_of_key(node, name), "unknown field", _suggestion(name, path, kind)))
    except Unreadable as error:
        faults += error.faults
    for fault in faults:
        reading.add(path, fault)
    if isinstance(node, MappingNode):
        _missing(node, path, kind, reading)
    return values


def _leaf(spec_field: Field, node: Node, values: dict[str, Any], reading: _Reading) -> None:
    if is_null(node) and not spec_field.required:
        return
    try:
        values[spec_field.name] = spec_field.read(node, reading.now)
    except Unreadable as error:
        for fault in error.faults:
            reading.add(spec_field.path, fault)


def _list(node: Node, path: str, kind: str, reading: _Reading) -> list[dict[str, Any]]:
    if not isinstance(node, SequenceNode):
        reading.add(path, Fault(line_of(node), f"must be a list, is {kind_of(node)}", "start each item with `- `"))
        return []
    if len(node.value) > MAX_LIST_ITEMS:
        reading.add(path, Fault(line_of(node), f"has {len(node.value)} items; the limit is {MAX_LIST_ITEMS}"))
        return []
    return [_section(item, f"{path}[]", kind, reading) for item in node.value]


def _missing(node: MappingNode, path: str, kind: str, reading: _Reading) -> None:
    """Reports the required fields that a mapping lacks, also those of sections that are not there at all."""
    present = {key.value: value for key, value in node.value if isinstance(key, ScalarNode)}
    prefix = f"{path}." if path else ""
    for full, spec_field in fields_of(kind).items():
        if not spec_field.required or not full.startswith(prefix):
            continue
        if "[]" in full[len(prefix) :]:
            continue  # an absent list lacks nothing
        head, _, rest = full[len(prefix) :].partition(".")
        absent = head not in present or (bool(rest) and is_null(present[head]))
        if absent:
            hint = f"write it like {spec_field.name}: {spec_field.example}"
            reading.add(full, Fault(line_of(node), "is required", hint))


def _suggestion(name: str, path: str, kind: str) -> str:
    """The nearest field here, else the place where a field of that name lives."""
    prefix = f"{path}." if path else ""
    known = [*fields_of(kind), *sections_of(kind)]
    here = {full[len(prefix) :].removesuffix("[]") for full in known if full.startswith(prefix)}
    here = {item for item in here if item and "." not in item}
    near = _COMMON_NAMES.get(_plain_name(name), "")
    near = near if near in here else _near(name, sorted(here))
    if near:
        return f"did you mean {near}?"
    elsewhere = [full for full in fields_of(kind) if full.rpartition(".")[2] == _plain_name(name)]
    if elsewhere:
        return f"it belongs to {elsewhere[0].rpartition('.')[0] or 'the top level'}: {elsewhere[0]}"
    others = [other for other in KINDS if other != kind and f"{prefix}{name}" in fields_of(other)]
    if others:
        return f"only kind {others[0]} has it"
    return f"known here: {', '.join(sorted(here))}"


def _near(name: str, options: Sequence[str]) -> str:
    close = difflib.get_close_matches(_plain_name(name)[:64], [_plain_name(option) for option in options], 1, 0.7)
    return next((option for option in options if close and _plain_name(option) == close[0]), "")


def _plain_name(name: str) -> str:
    """`maxCost`, `max-cost` and `max_cost` are the same word to a person."""
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return snake.replace("-", "_").replace(" ", "_").strip("_")


def _line_of_key(node: Node, name: str) -> int:
    return next((line_of(key) for key, _ in node.value if getattr(key, "value", None) == name), line_of(node))


def _child(node: Node | None, name: str) -> Node | None:
    if not isinstance(node, MappingNode):
        return None
    return next((value for key, value in node.value if isinstance(key, ScalarNode) and key.value == name), None)


def _relative(path: str) -> bool:
    return bool(path) and not path.startswith(("/", *SCHEMES)) and "://" not in path


def _invalid(problems: list[Problem]) -> InvalidInput:
    problems.sort(key=lambda problem: problem.line or 0)
    first, more = problems[0], len(problems) - 1
    message = str(first) if not more else f"{first} (and {format_count(more, 'more problem')})"
    return InvalidInput(message, first.hint or "see docs/reference/spec.md", problems[:MAX_PROBLEMS])


# ---------------------------------------------------------------- building the specs


def _job(values: Mapping[str, Any], kind: str = JOB) -> JobSpec:
    spec = values["spec"]
    optional = {"workdir": "workdir", "env": "env", "pool": "pool", "idle_limit": "idle_limit_s",
                "control_plane_gone_limit": "control_plane_gone_limit_s", "stop_grace": "stop_grace_s",
                "deadline": "deadline", "checkpoint_every": "checkpoint_every_s",
                "interruptions_per_day": "interruptions_per_day", "isolation": "isolation", "image": "image",
                "network": "network", "secrets": "secrets", "preflight": "preflight",
                "checkpoint_dir": "checkpoint_dir", "checkpoint_size": "checkpoint_bytes",
                "priority": "priority", "needs": "needs", "schedule": "schedule", "timezone": "timezone",
                "missed_ticks": "missed_ticks", "dev": "dev", "hang_limit": "hang_limit_s", "spot": "spot"}  # fmt: skip
    return JobSpec(
        metadata=Metadata(**values["metadata"]),
        command=spec["command"],
        resources=_resources(spec["resources"]),
        end_date=spec["end_date"],
        max_cost_microusd=spec["max_cost"],
        max_duration_s=spec["max_duration"],
        retry=Retry(**_renamed(spec.get("retry", {}), {"max_attempts": "max_attempts", "backoff": "backoff_s"})),
        data=tuple(DataSource(**_spelled(item, _DATA)) for item in spec.get("data", ())),
        training=TrainingNeed(**spec["training"]) if "training" in spec else None,
        outputs=tuple(ModelOutput(**item) for item in spec.get("outputs", {}).get("models", ())),
        checkpoints=_checkpoints(spec.get("checkpoints", {})),
        evaluation=evaluation_need(spec) if kind == EVALUATION else None,
        batch=batch_need(spec) if kind == BATCH else None,
        **_renamed(spec, optional),
    )


def _checkpoints(values: Mapping[str, Any]) -> CheckpointPolicy:
    said = dict(values)
    best_by, _, best_mode = said.pop("best_by", "/min").rpartition("/")
    return CheckpointPolicy(best_by=best_by, best_mode=best_mode, **_spelled(said, {"bandwidth": "bytes_per_s"}))


def _endpoint(values: Mapping[str, Any], now: datetime) -> EndpointSpec:
    spec = values["spec"]
    optional = {"pool": "pool", "engine": "engine", "public": "public", "ready_timeout": "ready_timeout_s",
                "deadline": "deadline"}  # fmt: skip
    until_end_s = max(1, int((spec["end_date"] - now).total_seconds()))
    price = {name: f"{name}_microusd_per_million" for name in ("prompt", "completion", "cached")}
    return EndpointSpec(
        metadata=Metadata(**values["metadata"]),
        model=spec["model"],
        resources=_resources(spec["resources"]),
        end_date=spec["end_date"],
        max_cost_microusd=spec["max_cost"],
        max_duration_s=spec.get("max_duration", until_end_s),
        token_price=TokenPrice(**_renamed(spec["token_price"], price)),
        serving=ServingNeed(**spec["serving"]) if "serving" in spec else None,
        **_renamed(spec, optional),
    )


def _resources(values: Mapping[str, Any]) -> Resources:
    return Resources(**_spelled(values, {"memory": "memory_bytes", "disk": "disk_bytes"}))


_DATA = {"size": "size_bytes", "throughput": "bytes_per_s", "from": "source"}


def _spelled(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Every value, under our name where ours is another."""
    return {names.get(name, name): value for name, value in values.items()}


def _renamed(values: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {ours: values[theirs] for theirs, ours in names.items() if theirs in values}


# ---------------------------------------------------------------- and back


def _as_document(spec: Spec) -> dict[str, Any]:
    meta = spec.metadata
    kind = _kind_of(spec)
    metadata: dict[str, Any] = {
        "name": spec.array.name if isinstance(spec, JobSpec) and spec.array is not None else meta.name,
        "project": meta.project,
        "owner": meta.owner,
        "cost_center": meta.cost_center,
    }
    if meta.labels:
        metadata["labels"] = dict(meta.labels)
    body = _job_body(spec) if isinstance(spec, JobSpec) else _endpoint_body(spec)
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": body}


def _kind_of(spec: Spec) -> str:
    if isinstance(spec, EndpointSpec):
        return ENDPOINT
    if spec.inference is not None:
        return EVALUATION if spec.evaluation is not None else BATCH
    return DEV if spec.dev else JOB


def _job_body(spec: JobSpec) -> dict[str, Any]:
    what = {"dev": spec.dev} if spec.dev else {"command": list(spec.command)}
    if spec.inference is not None:
        what = need_body(spec.inference)
    body: dict[str, Any] = {**what, **_shared_body(spec)}
    if spec.workdir:
        body["workdir"] = spec.workdir
    if spec.env:
        body["env"] = dict(spec.env)
    if spec.idle_limit_s is not None:
        body["idle_limit"] = f"{spec.idle_limit_s}s"
    if spec.control_plane_gone_limit_s is not None:
        body["control_plane_gone_limit"] = f"{spec.control_plane_gone_limit_s}s"
    body["stop_grace"] = f"{spec.stop_grace_s}s"
    body["retry"] = {"max_attempts": spec.retry.max_attempts, "backoff": f"{spec.retry.backoff_s}s"}
    if spec.data and spec.inference is None:
        body["data"] = [_data_body(each) for each in spec.data]
    if spec.training is not None:
        body["training"] = _need_body(spec.training)
    if spec.checkpoint_every_s is not None:
        body["checkpoint_every"] = f"{spec.checkpoint_every_s}s"
    if spec.interruptions_per_day is not None:
        body["interruptions_per_day"] = spec.interruptions_per_day
    body.update(_walls_body(spec))
    body.update(_queueing_body(spec))
    body.update(_survival_body(spec))
    if spec.outputs:
        models = [
            _without_empty(
                name=o.name, path=o.path, license=o.license, framework=o.framework, base_model=o.base_model, sla=o.sla
            )
            for o in spec.outputs
        ]
        body["outputs"] = {"models": models}
    return body


def _data_body(source: DataSource) -> dict[str, Any]:
    body: dict[str, Any] = _without_empty(
        name=source.name, path=source.path, sha256=source.sha256, tier=source.tier,
        classification=source.classification, url=source.url, endpoint=source.endpoint, region=source.region,
        secret=source.secret, manifest=source.manifest, dataset=source.dataset, **{"from": source.source},
        size=f"{source.size_bytes}B" if source.size_bytes else "",
        throughput=f"{source.bytes_per_s}B/s" if source.bytes_per_s else "",
    )  # fmt: skip
    return body if source.passes == 1 else {**body, "passes": source.passes}


def _need_body(need: TrainingNeed | ServingNeed) -> dict[str, Any]:
    """Without what is unset: no model, no number of parameters or tokens."""
    return {name: value for name, value in asdict(need).items() if value not in ("", 0) or value is False}


def _walls_body(spec: JobSpec) -> dict[str, Any]:
    body: dict[str, Any] = _without_empty(
        isolation=spec.isolation, image=spec.image, checkpoint_dir=spec.checkpoint_dir
    )
    if not spec.network:
        body["network"] = False
    if spec.secrets:
        body["secrets"] = list(spec.secrets)
    if not spec.preflight:
        body["preflight"] = False
    if spec.checkpoint_bytes:
        body["checkpoint_size"] = f"{spec.checkpoint_bytes}B"
    return body


def _survival_body(spec: JobSpec) -> dict[str, Any]:
    policy = spec.checkpoints
    body: dict[str, Any] = {"spot": True} if spec.spot else {}
    if spec.hang_limit_s is not None:
        body["hang_limit"] = f"{spec.hang_limit_s}s"
    checkpoints: dict[str, Any] = {
        name: value for name in ("keep_last", "keep_every") if (value := getattr(policy, name))
    }
    if policy.best_by:
        checkpoints["best_by"] = f"{policy.best_by}/{policy.best_mode}"
    if policy.bytes_per_s:
        checkpoints["bandwidth"] = f"{policy.bytes_per_s}B/s"
    if not policy.copy:
        checkpoints["copy"] = False
    return {**body, "checkpoints": checkpoints} if checkpoints else body


def _queueing_body(spec: JobSpec) -> dict[str, Any]:
    defaults = {"priority": "training", "timezone": "UTC", "missed_ticks": "once", "schedule": ""}
    body: dict[str, Any] = {
        name: getattr(spec, name) for name, default in defaults.items() if getattr(spec, name) != default
    }
    if spec.needs:
        body["needs"] = list(spec.needs)
    if spec.array is not None:
        at_once = f"%{spec.array.at_once}" if spec.array.at_once else ""
        body["array"] = f"{spec.array.index}{at_once}"
    return body


def _endpoint_body(spec: EndpointSpec) -> dict[str, Any]:
    price = spec.token_price
    body = {} if spec.serving is None else {"serving": _need_body(spec.serving)}
    return {
        **body,
        "model": spec.model,
        **_shared_body(spec),
        "token_price": {
            "prompt": _dollars(price.prompt_microusd_per_million),
            "completion": _dollars(price.completion_microusd_per_million),
            "cached": _dollars(price.cached_microusd_per_million),
        },
        "engine": spec.engine,
        "public": spec.public,
        "ready_timeout": f"{spec.ready_timeout_s}s",
    }


def _shared_body(spec: Spec) -> dict[str, Any]:
    need = spec.resources
    resources: dict[str, Any] = {
        "cpus": need.cpus,
        "memory": f"{need.memory_bytes}B",
        "disk": f"{need.disk_bytes}B",
        "accelerators": need.accelerators,
        "nodes": need.nodes,
    }
    named = ("accelerator", "instance_type", "cloud", "region", "purchase")
    resources |= _without_empty(**{name: getattr(need, name) for name in named})
    if need.nodes_min:
        resources["nodes_min"] = need.nodes_min
    deadline = {} if spec.deadline is None else {"deadline": spec.deadline.isoformat(timespec="microseconds")}
    return {
        **deadline,
        "pool": spec.pool,
        "resources": resources,
        "end_date": spec.end_date.isoformat(timespec="microseconds"),
        "max_cost": _dollars(spec.max_cost_microusd),
        "max_duration": f"{spec.max_duration_s}s",
    }


def _dollars(microusd: int) -> str:
    return f"${microusd // 1_000_000}.{microusd % 1_000_000:06d}"


def _without_empty(**values: str) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}
