"""OpenLineage events: our runs and versions in its words, and what others say in it read back.

Names: a job is NAMESPACE/PROJECT and the run's name; a dataset is NAMESPACE and PROJECT/datasets/NAME, a model
PROJECT/models/NAME; which version it was is in the `version` facet. A dataset's place is among its symlinks, in the
names that other tools give it. Sources: OpenLineage spec 2-0-2, its facets and its Naming.md.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.canonical import canonical_json
from groundplane.domain.dataset import DatasetVersion
from groundplane.domain.model import ModelVersion
from groundplane.domain.run import Run, RunStatus
from groundplane.domain.spec import DataSource
from groundplane.errors import InvalidInput, Problem

SPEC = "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/"
PRODUCER = "https://groundplane.dev/groundplane"
STATES = frozenset({"START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"})
EVENT_BYTES_MAX = 2**20
DATASETS_MAX = 1_000
TEXT_MAX = 2_000
_FACETS = "https://openlineage.io/spec/facets/"
_OWN_FACETS = "https://groundplane.dev/lineage/v1#/"
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]*://[^/]*)/?(.*)")

Document = dict[str, object]


# ---------------------------------------------------------------- out


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What an event tells of a run: its state, when, what it reads and what it made."""

    run: Run
    state: str
    at: datetime
    inputs: Sequence[Document]
    outputs: Sequence[Document]


def run_event(told: Told, namespace: str) -> Document:
    """A RunEvent. The same moment of the same run is the same document, however often it is made."""
    run = told.run
    facets: Document = {
        "groundplane_run": _own("Run", {"id": run.id, "pool": run.pool, "attempt": run.attempt, "plan": run.plan_id})
    }
    if told.state in {"FAIL", "ABORT"}:
        said = {"message": run.message or str(run.end_reason or told.state), "programmingLanguage": "unknown"}
        facets["errorMessage"] = _facet("1-0-1/ErrorMessageRunFacet", said)
    return {
        **_base("RunEvent", told.at),
        "eventType": told.state,
        "run": {"runId": run_uuid(namespace, run.id), "facets": facets},
        "job": {
            "namespace": f"{namespace}/{run.project}",
            "name": run.name,
            "facets": {
                "jobType": _facet(
                    "2-0-4/JobTypeJobFacet",
                    {"processingType": "BATCH", "integration": "GROUNDPLANE", "jobType": _kind(run)},
                ),
                "ownership": _facet("1-0-1/OwnershipJobFacet", {"owners": [{"name": run.owner, "type": "OWNER"}]}),
            },
        },
        "inputs": list(told.inputs),
        "outputs": list(told.outputs),
    }


def _kind(run: Run) -> str:
    return "EVALUATION" if run.spec.evaluation is not None else "INFERENCE" if run.spec.batch is not None else "JOB"


def dataset_event(dataset: Document, at: datetime) -> Document:
    """A DatasetEvent: a version that no run of ours made, or whose bytes were erased."""
    return {**_base("DatasetEvent", at), "dataset": dataset}


def run_uuid(namespace: str, run_id: str) -> str:
    """Runs have UUIDs there: this one follows from the id, so every event of a run has the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{PRODUCER}/{namespace}/{run_id}"))


def end_state(status: RunStatus) -> str:
    """How a run that is over ended."""
    return {RunStatus.SUCCEEDED: "COMPLETE", RunStatus.FAILED: "FAIL"}.get(status, "ABORT")


def dataset_of(version: DatasetVersion, namespace: str, *, dropped: bool = False) -> Document:
    """A dataset's version with what is known of it. Which column came from which is not known here: it is not said."""
    facets: Document = {
        "version": _facet("1-0-1/DatasetVersionDatasetFacet", {"datasetVersion": str(version.number)}),
        "documentation": _facet("1-1-0/DocumentationDatasetFacet", {"description": version.description or version.id}),
        "ownership": _facet("1-0-1/OwnershipDatasetFacet", {"owners": [{"name": version.owner, "type": "OWNER"}]}),
        "groundplane_version": _own(
            "Version",
            {"id": version.id, "sha256": version.digest, "license": version.license, "kind": "dataset"},
        ),
    }
    if version.profile.columns:
        fields = [{"name": column.name, "type": column.kind} for column in version.profile.columns]
        facets["schema"] = _facet("1-2-0/SchemaDatasetFacet", {"fields": fields})
    place = _place(version.location)
    if place is not None:
        identifiers = [{"namespace": place[0], "name": place[1], "type": "LOCATION"}]
        facets["symlinks"] = _facet("1-0-1/SymlinksDatasetFacet", {"identifiers": identifiers})
    if dropped:
        change = {"lifecycleStateChange": "DROP"}
        facets["lifecycleStateChange"] = _facet("1-0-1/LifecycleStateChangeDatasetFacet", change)
    return {"namespace": namespace, "name": f"{version.project}/datasets/{version.name}", "facets": facets}


def model_of(version: ModelVersion, namespace: str) -> Document:
    """A model's version, as the dataset that it is to others."""
    stated = {
        "id": version.id,
        "sha256": version.manifest_sha256,
        "license": version.license,
        "kind": "model",
        "certificate_sha256": version.certificate_sha256,
        "metrics": dict(version.metrics),
    }
    return {
        "namespace": namespace,
        "name": f"{version.project}/models/{version.name}",
        "facets": {
            "version": _facet("1-0-1/DatasetVersionDatasetFacet", {"datasetVersion": str(version.number)}),
            "documentation": _facet("1-1-0/DocumentationDatasetFacet", {"description": f"model {version.id}"}),
            "ownership": _facet("1-0-1/OwnershipDatasetFacet", {"owners": [{"name": version.owner, "type": "OWNER"}]}),
            "groundplane_version": _own("Version", stated),
        },
    }


def source_of(source: DataSource) -> Document | None:
    """Data of a run that is no registered dataset, by its place; None when not even that is known."""
    place = _place(source.source or source.url or source.path)
    if place is None:
        return None
    facets: Document = {}
    if source.sha256:
        facets["version"] = _facet("1-0-1/DatasetVersionDatasetFacet", {"datasetVersion": f"sha256:{source.sha256}"})
    return {"namespace": place[0], "name": place[1], "facets": facets}


def _place(location: str) -> tuple[str, str] | None:
    found = _ADDRESS.fullmatch(location)
    if found is not None:
        return found.group(1), found.group(2).rstrip("/") or "/"
    return ("file", location) if location.startswith("/") else None


def _base(kind: str, at: datetime) -> Document:
    return {"eventTime": at.isoformat(timespec="microseconds"), "producer": PRODUCER, "schemaURL": f"{SPEC}{kind}"}


def _facet(schema: str, values: Mapping[str, object]) -> Document:
    name = schema.partition("/")[2]
    return {"_producer": PRODUCER, "_schemaURL": f"{_FACETS}{schema}.json#/$defs/{name}", **values}


def _own(name: str, values: Mapping[str, object]) -> Document:
    return {"_producer": PRODUCER, "_schemaURL": f"{_OWN_FACETS}{name}", **values}


# ---------------------------------------------------------------- in


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """A dataset as somebody outside names it: by names, by a version if they said one, by a digest if they did."""

    namespace: str
    name: str
    version: str = ""
    sha256: str = ""
    others: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        return f"outside:{self.namespace}/{self.name}"

    def own(self, namespace: str) -> tuple[str, str, str, int] | None:
        """(datasets or models, project, name, number) where it is one of ours by name and number."""
        if self.namespace != namespace or not re.fullmatch(r"[1-9][0-9]{0,8}", self.version):
            return None
        project, _, rest = self.name.partition("/")
        kind, _, name = rest.partition("/")
        return (kind, project, name, int(self.version)) if kind in {"datasets", "models"} and name else None

    @property
    def places(self) -> tuple[str, ...]:
        """Where it lies, as a location of ours is written."""
        pairs = ((self.namespace, self.name), *self.others)
        return tuple(name if namespace == "file" else f"{namespace}/{name}" for namespace, name in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """An event from outside that was read. `id` is its digest: the same event twice has the same."""

    id: str
    state: str
    at: datetime
    producer: str
    job: str
    run: str
    inputs: tuple[Named, ...]
    outputs: tuple[Named, ...]


def heard(document: object) -> Heard:
    """InvalidInput names everything that is wrong with the event."""
    problems: list[Problem] = []
    if not isinstance(document, dict):
        raise InvalidInput("the event is no JSON object", "send one OpenLineage event at a time")
    job, run = _part(document, "job", problems), _part(document, "run", problems)
    at = _moment(document.get("eventTime"), problems)
    state = document.get("eventType") or "OTHER"
    if not isinstance(state, str) or state not in STATES:
        problems.append(Problem(field="eventType", message=f"is {str(state)[:40]!r}; known are {sorted(STATES)}"))
    if "job" in document:
        for name in ("namespace", "name"):
            _text(job.get(name), f"job.{name}", problems)
    elif "dataset" not in document:
        problems.append(Problem(field="job", message="is required"))
    run_id = run.get("runId", "")
    if "run" in document:
        try:
            uuid.UUID(str(run_id))
        except ValueError:
            problems.append(Problem(field="run.runId", message=f"is {str(run_id)[:60]!r}, no UUID"))
    inputs = _datasets(document.get("inputs"), "inputs", problems)
    outputs = _datasets(document.get("outputs"), "outputs", problems)
    producer = _text(document.get("producer"), "producer", problems)
    if problems or at is None:
        raise InvalidInput(f"the event can't be taken: {problems[0]}", "the shape is OpenLineage 2-0-2", problems)
    return Heard(
        id=hashlib.sha256(canonical_json(document)).hexdigest(),
        state=str(state),
        at=at,
        producer=producer,
        job=f"{job.get('namespace', '')}/{job.get('name', '')}" if job else "",
        run=str(run_id),
        inputs=inputs,
        outputs=outputs,
    )


def _part(document: Mapping[str, object], name: str, problems: list[Problem]) -> Mapping[str, object]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        problems.append(Problem(field=name, message="is no object"))
        return {}
    return value


def _text(value: object, field: str, problems: list[Problem]) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= TEXT_MAX or not value.isprintable():
        problems.append(Problem(field=field, message=f"is no printable text of 1 to {TEXT_MAX:,} characters"))
        return ""
    return value


def _moment(value: object, problems: list[Problem]) -> datetime | None:
    try:
        at = datetime.fromisoformat(str(value))
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        problems.append(Problem(field="eventTime", message=f"is {str(value)[:40]!r}, no time with a zone"))
        return None
    return at


def _datasets(value: object, field: str, problems: list[Problem]) -> tuple[Named, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > DATASETS_MAX:
        problems.append(Problem(field=field, message=f"is no list of at most {DATASETS_MAX:,} datasets"))
        return ()
    found = []
    for number, each in enumerate(value):
        if not isinstance(each, dict):
            problems.append(Problem(field=f"{field}.{number}", message="is no object"))
            continue
        facets = each.get("facets")
        found.append(
            Named(
                namespace=_text(each.get("namespace"), f"{field}.{number}.namespace", problems),
                name=_text(each.get("name"), f"{field}.{number}.name", problems),
                **_said(facets if isinstance(facets, dict) else {}),  # type: ignore[arg-type]
            )
        )
    return tuple(found)


def _said(facets: Mapping[str, object]) -> Document:
    """Version, digest and other names of a dataset from its facets; what is not understood is passed over."""
    said: Document = {}
    version = facets.get("version")
    text = str(version.get("datasetVersion", ""))[:TEXT_MAX] if isinstance(version, dict) else ""
    digest = _DIGEST.fullmatch(text)
    if digest is None and text.isprintable():
        said["version"] = text
    for facet in facets.values():
        stated = facet.get("sha256") if isinstance(facet, dict) else None
        digest = digest or (_DIGEST.fullmatch(stated) if isinstance(stated, str) else None)
    if digest is not None:
        said["sha256"] = digest.group(1)
    symlinks = facets.get("symlinks")
    listed = symlinks.get("identifiers") if isinstance(symlinks, dict) else None
    if isinstance(listed, list):
        pairs = [(each.get("namespace"), each.get("name")) for each in listed if isinstance(each, dict)]
        said["others"] = tuple((str(namespace), str(name)) for namespace, name in pairs[:20] if namespace and name)
    return said
