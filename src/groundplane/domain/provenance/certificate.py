"""The birth certificate: where a model version comes from, stated once, signed, and checkable offline by a stranger.

A DSSE envelope around an in-toto Statement v1. Its subjects are the version's files by SHA-256; its predicate holds the
facts. A fact nobody could establish is listed under `unknown` with the reason; it is never left out silently.
Source: DSSE protocol 1.0.2; in-toto attestation Statement v1.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime

from groundplane.domain.canonical import part_of
from groundplane.domain.model import ManifestFile, ModelVersion, manifest, manifest_sha256
from groundplane.domain.provenance.envelope import PAYLOAD_TYPE as PAYLOAD_TYPE
from groundplane.domain.provenance.envelope import open_envelope as open_envelope
from groundplane.domain.provenance.envelope import pae as pae
from groundplane.domain.provenance.envelope import seal as seal
from groundplane.errors import InvalidInput, Problem, Refused

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://groundplane.dev/birth-certificate/v1"

REQUIRED_FACTS = ("owner", "license", "data", "code_commit", "training_run", "metrics")
"""What a model registered by hand must come with."""
MAY_BE_UNKNOWN = ("data", "code_commit", "training_run", "metrics")
"""What an adopted model may lack, when somebody says why. Who answers for it, and its terms, are always known."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

Unknown = tuple[str, str]
"""A fact, and why nobody knows it."""


# ---------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFact:
    """A dataset the model was made from. `how`: declared (somebody said so), measured (hashed here), or disputed."""

    name: str
    sha256: str = ""
    size_bytes: int | None = None
    how: str = "declared"


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeFact:
    """The code that made it. `commit` is empty outside version control; `dirty` is None when nobody knows."""

    commit: str = ""
    dirty: bool | None = None
    repository: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentFact:
    """An interpreter and its installed packages, `name==version`, sorted. `of` says whose environment it is.

    `lock_files` are (path, SHA-256) of the lock files that lay beside the code.
    """

    of: str
    python: str
    platform: str
    packages: tuple[str, ...]
    lock_files: tuple[tuple[str, str], ...] = ()

    @property
    def packages_sha256(self) -> str:
        """SHA-256 hex of the list, one package a line."""
        return hashlib.sha256("".join(f"{package}\n" for package in self.packages).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorFact:
    name: str
    memory_bytes: int | None = None
    driver: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareFact:
    """The machine. `accelerators` is empty when it has none, None when nobody could tell.

    `drivers` is the chain from the kernel up, (name, version) each; `nodes` are as many like it.
    """

    cpu: str
    cores: int
    memory_bytes: int
    accelerators: tuple[AcceleratorFact, ...] | None
    drivers: tuple[tuple[str, str], ...] = ()
    nodes: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerFact:
    """Whether the job ran in a container, and in which image; `digest` is the image's."""

    used: bool
    image: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EnergyFact:
    """What the accelerators took. `how`: measured or estimated; `basis` says by what, or by which formula."""

    joules: float
    how: str
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What can be seen around a run, and when it was looked at: at its start, or only at registration."""

    observed: str
    code: CodeFact | None = None
    environment: EnvironmentFact | None = None
    hardware: HardwareFact | None = None
    container: ContainerFact | None = None
    data: tuple[DataFact, ...] = ()
    unknown: tuple[Unknown, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFact:
    """The run that made the model; None where only its id was stated. One resumed step per attempt that went on."""

    id: str
    spec_digest: str = ""
    created_by: str = ""
    attempts: int | None = None
    end_reasons: tuple[str, ...] = ()
    resumed_from_steps: tuple[int, ...] = ()
    checkpoints: int | None = None
    last_step: int | None = None
    nodes: tuple[str, ...] = ()
    started_at: datetime | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdoptedFile:
    """A file that was converted on its way in: what it was made from, and how it is known to hold the same tensors."""

    path: str
    source_path: str
    source_sha256: str
    source_format: str
    tensors: int
    tensors_sha256: str
    """SHA-256 over the lines `name sha256` of every tensor, sorted: the same for the source and for the file."""
    left_out: tuple[str, ...] = ()
    walls: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What somebody states about a model registered by hand. `missing_facts` says what is still needed."""

    owner: str = ""
    license: str = ""
    framework: str = ""
    description: str = ""
    base_model: str = ""
    data: tuple[DataFact, ...] = ()
    code_commit: str = ""
    code_dirty: bool | None = None
    code_repository: str = ""
    training_run: str = ""
    hardware: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    hyperparameters: dict[str, str] = field(default_factory=dict)
    cost_microusd: int | None = None
    sla: str = ""
    rollback_target: str = ""
    target_memory_bytes: int | None = None
    """What one copy of the weights must fit where it will be loaded."""
    unknown: dict[str, str] = field(default_factory=dict)
    """Fact of MAY_BE_UNKNOWN → why nobody knows it. Said so in the certificate, where gates can see it."""
    adopted: tuple[AdoptedFile, ...] = ()
    adopted_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingFact:
    """A fact the certificate requires, the question it answers, and the flag that supplies it. `name` is its field."""

    name: str
    question: str
    flag: str

    def refused(self) -> Refused:
        return Refused(
            rule="birth-certificate",
            need=f"{self.name.replace('_', ' ')} ({self.question})",
            have="nothing",
            hint=f"add {self.flag} (facts.{self.name} in a request)",
        )


_QUESTIONS: dict[str, tuple[str, str]] = {
    "owner": ("who answers for it?", "--owner NAME"),
    "license": ("under which terms may it be used?", "--license SPDX-ID"),
    "framework": ("what made it and loads it?", "--framework NAME"),
    "base_model": ("what was it fine-tuned from?", "--base-model NAME@VERSION"),
    "data": ("what was it trained on?", "--data NAME@VERSION or NAME=SHA256"),
    "code_commit": ("which code made it?", "--code-commit COMMIT"),
    "training_run": ("which run made it, when and where?", "--training-run ID"),
    "metrics": ("how good is it, by which measure?", "--metric NAME=VALUE"),
    "cost_microusd": ("what did it cost?", "--cost USD"),
    "hardware": ("on what was it made?", "--hardware TEXT"),
    "hyperparameters": ("with which hyper-parameters?", "--param NAME=VALUE"),
    "sla": ("which level of service is promised for it?", "--sla TEXT"),
    "rollback_target": ("which version is gone back to?", "--rollback-target NAME@NUMBER"),
}


def missing_facts(facts: Facts, required: Sequence[str] = REQUIRED_FACTS) -> tuple[MissingFact, ...]:
    """What is required and not given, in the order asked. A dataset without a digest does not count as given."""
    missing = []
    for name in required:
        value = getattr(facts, name)
        given = value is not None if name == "cost_microusd" else bool(value)
        if name == "data":
            given = given and all(data.name and data.sha256 for data in facts.data)
        if isinstance(value, str):
            given = bool(value.strip())
        if not given and not (name in MAY_BE_UNKNOWN and facts.unknown.get(name, "").strip()):
            question, flag = _QUESTIONS[name]
            missing.append(MissingFact(name=name, question=question, flag=flag))
    return tuple(missing)


def is_commit(text: str) -> bool:
    """A whole git object id, SHA-1 or SHA-256. Source: gitglossary(7), object identifier."""
    return bool(_COMMIT.fullmatch(text))


def misstated(facts: Facts) -> tuple[Refused, ...]:
    """What is stated and can't be so: a digest that is none, a commit that is not whole.

    An abbreviated commit means another object in another repository, or later on.
    """
    refused = [
        Refused(
            rule="data-digest",
            need="the SHA-256 of the data: 64 lower-case hex digits",
            have=f"{data.name} with {data.sha256[:80]!r}",
            hint="sha256sum FILE prints that of a file; data registered here is named without it: --data NAME@VERSION",
        )
        for data in facts.data
        if data.sha256 and not _SHA256.fullmatch(data.sha256)
    ]
    return (*refused, *_no_commit(facts.code_commit))


def _no_commit(said: str) -> tuple[Refused, ...]:
    if not said.strip() or is_commit(said):
        return ()
    short = re.fullmatch(r"[0-9a-f]{4,39}", said)
    hint = f"git rev-parse {said if short else 'HEAD'} prints it"
    return (
        Refused(
            rule="code-commit",
            need="a whole git object id: 40 or 64 lower-case hex digits",
            have=f"{said[:80]!r}{f', {len(said)} of them' if short else ''}",
            hint=hint if short else f"{hint}; code that is in no git repository is unknown, with the reason why",
        ),
    )


def finite_metrics(metrics: Mapping[str, float]) -> tuple[dict[str, float], tuple[tuple[str, str], ...]]:
    """Metrics JSON can hold, and the others as unknown facts: a loss of NaN is no measurement."""
    known = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    unknown = tuple(
        (f"metrics.{name}", f"the run reported {metrics[name]}") for name in sorted(metrics) if name not in known
    )
    return known, unknown


# ---------------------------------------------------------------- statement


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """What a certificate states beside its row. `origin`: run (we watched it) or stated (a person said so)."""

    origin: str
    framework: str = ""
    description: str = ""
    base_model: str = ""
    hardware_stated: str = ""
    run: RunFact | None
    circumstances: Circumstances
    cost_microusd: int | None
    energy: EnergyFact | None = None
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    sla: str = ""
    rollback_target: str = ""
    target_memory_bytes: int | None = None
    formats: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """path → {"format": …, and what is known of the file}"""
    unknown: tuple[tuple[str, str], ...] = ()
    software: str
    adopted: Sequence[AdoptedFile] = ()
    adopted_from: str = ""
    copy_of: ModelVersion | None = None
    """What it is a copy of: then everything else is what that one's certificate states."""


def statement(row: ModelVersion, birth: Birth) -> dict[str, object]:
    """The in-toto Statement of a version. The row's certificate and its digest are made from it, so not part of it."""
    seen = birth.circumstances
    files = manifest(row.files)
    unknown = {*birth.unknown, *seen.unknown, *_to_come(birth)}
    predicate: dict[str, object] = {
        "version": {
            "id": row.id,
            "name": row.name,
            "number": row.number,
            "project": row.project,
            "owner": row.owner,
            "license": row.license,
            "run_id": row.run_id,
            "framework": birth.framework,
            "description": birth.description,
            "base_model": birth.base_model,
        },
        "created": {"at": _time(row.created_at), "by": row.created_by, "software": birth.software},
        "manifest": {
            "sha256": row.manifest_sha256,
            "size_bytes": row.size_bytes,
            "files": [
                {
                    "path": file.path,
                    "sha256": file.sha256,
                    "size_bytes": file.size_bytes,
                    **birth.formats.get(file.path, {}),
                }
                for file in files
            ],
        },
        "origin": birth.origin,
        **_adoption(birth),
        **_copy(birth),
        "observed": seen.observed,
        "run": None if birth.run is None else _run(birth.run),
        "data": [{"name": d.name, "sha256": d.sha256, "size_bytes": d.size_bytes, "how": d.how} for d in seen.data],
        "code": None if seen.code is None else _code(seen.code),
        "environment": None if seen.environment is None else _environment(seen.environment),
        "container": None if seen.container is None else asdict(seen.container),
        "hardware": _hardware(seen.hardware, birth.hardware_stated),
        "hyperparameters": dict(birth.hyperparameters),
        "metrics": dict(row.metrics),
        "cost_microusd": birth.cost_microusd,
        "energy": None if birth.energy is None else asdict(birth.energy),
        "sla": birth.sla,
        "rollback_target": birth.rollback_target,
        "target_memory_bytes": birth.target_memory_bytes,
        "unknown": [{"fact": fact, "why": why} for fact, why in sorted(unknown)],
    }
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": file.path, "digest": {"sha256": file.sha256}} for file in files],
        "predicateType": PREDICATE_TYPE,
        "predicate": predicate,
    }


def _to_come(birth: Birth) -> list[tuple[str, str]]:
    """What can't be known when a version is born: it is said in addenda, which are chained to this certificate."""
    later = [("evaluations", "none yet at registration; see its addenda"),
             ("waivers", "none at registration; see its addenda")]  # fmt: skip
    if not birth.sla:
        later.append(("sla", "none was stated at registration; see its addenda"))
    if not birth.rollback_target:
        later.append(("rollback_target", "no alias stood for it yet; see its addenda"))
    return later


def _adoption(birth: Birth) -> dict[str, object]:
    if not birth.adopted_from:
        return {}
    files = [
        {
            "path": file.path,
            "source_path": file.source_path,
            "source_sha256": file.source_sha256,
            "source_format": file.source_format,
            "tensors": file.tensors,
            "tensors_sha256": file.tensors_sha256,
            "left_out": list(file.left_out),
            "walls": file.walls,
        }
        for file in birth.adopted
    ]
    return {"adoption": {"from": birth.adopted_from, "converted": files}}


def _copy(birth: Birth) -> dict[str, object]:
    source = birth.copy_of
    return {"copy_of": {"version": source.id, "certificate_sha256": source.certificate_sha256}} if source else {}


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="microseconds")


def _run(run: RunFact) -> dict[str, object]:
    return {
        "id": run.id,
        "spec_digest": run.spec_digest,
        "created_by": run.created_by,
        "attempts": run.attempts,
        "end_reasons": list(run.end_reasons),
        "resumed_from_steps": list(run.resumed_from_steps),
        "checkpoints": run.checkpoints,
        "last_step": run.last_step,
        "nodes": list(run.nodes),
        "started_at": _time(run.started_at),
        "ended_at": _time(run.ended_at),
    }


def _code(code: CodeFact) -> dict[str, object]:
    return {"commit": code.commit, "dirty": code.dirty, "repository": code.repository}


def _environment(found: EnvironmentFact) -> dict[str, object]:
    return {
        "of": found.of,
        "python": found.python,
        "platform": found.platform,
        "packages_sha256": found.packages_sha256,
        "packages": list(found.packages),
        "lock_files": [{"path": path, "sha256": sha256} for path, sha256 in found.lock_files],
    }


def _hardware(found: HardwareFact | None, stated: str) -> dict[str, object] | None:
    if found is None:
        return {"stated": stated} if stated else None
    cards = found.accelerators
    return {
        "cpu": found.cpu,
        "cores": found.cores,
        "memory_bytes": found.memory_bytes,
        "accelerators": None
        if cards is None
        else [{"name": c.name, "memory_bytes": c.memory_bytes, "driver": c.driver} for c in cards],
        "drivers": [{"name": name, "version": version} for name, version in found.drivers],
        "nodes": found.nodes,
    }


# ---------------------------------------------------------------- checking


@dataclass(frozen=True, slots=True)
class Examined:
    """What one look at a row and its certificate found, whoever signed. `signed`: what, the signature, by which key."""

    signed: tuple[bytes, bytes, str] | None
    faults: tuple[Problem, ...]

    def problems(self, verify: Callable[[bytes, bytes, str], bool]) -> tuple[Problem, ...]:
        """The faults, and before them that no trusted key signed: `verify(payload, signature, key_id)` answers that."""
        if self.signed is None or verify(*self.signed):
            return self.faults
        message = f"no trusted key signed this; it names key {self.signed[2][:16]}"
        return (Problem(field="certificate signature", message=message, hint=_HINT), *self.faults)


def examined(row: ModelVersion) -> Examined:
    """Everything wrong with a version's row and certificate but for trust; the files' bytes are checked elsewhere.

    The work grows with the number of files, and the outcome follows from the row alone.
    """
    if hashlib.sha256(row.certificate.encode(errors="surrogatepass")).hexdigest() != row.certificate_sha256:
        text = "the certificate's text is not the one whose digest the version's row holds"
        return Examined(None, (Problem(field="certificate", message=text, hint=_HINT), *_check_manifest(row)))
    try:
        opened = open_envelope(row.certificate)
    except InvalidInput as error:
        fault = Problem(field="certificate", message=error.message, hint=_HINT)
        return Examined(None, (fault, *_check_manifest(row)))
    signed = (pae(PAYLOAD_TYPE, opened.payload), opened.signature, opened.key_id)
    return Examined(signed, (*_check_statement(row, opened.statement), *_check_manifest(row)))


def check_files(statement: Mapping[str, object], digests: Mapping[str, str]) -> tuple[Problem, ...]:
    """How files differ from a statement's subjects, given path → SHA-256 of what is there: a stranger's check."""
    rows = statement.get("subject")
    subjects = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    signed = {str(row.get("name")): str(part_of(row, "digest").get("sha256")) for row in subjects}
    if not signed or statement.get("_type") != STATEMENT_TYPE:
        return (Problem(field="certificate", message="it names no files"),)
    problems = []
    for path in sorted({*signed, *digests}):
        if path not in digests:
            problems.append(Problem(field=f"file {path}", message="is missing"))
        elif path not in signed:
            problems.append(Problem(field=f"file {path}", message="is not in the certificate"))
        elif signed[path] != digests[path]:
            problems.append(Problem(field=f"file {path}", message="is not what was signed"))
    return tuple(problems)


_HINT = "register the files anew, or restore the database from a backup"


def _check_manifest(row: ModelVersion) -> list[Problem]:
    found = manifest_sha256(row.files)
    problems = []
    if found != row.manifest_sha256:
        message = f"the list of files has digest {found[:16]}…, the row says {row.manifest_sha256[:16]}…"
        problems.append(Problem(field="manifest", message=message, hint=_HINT))
    total = sum(file.size_bytes for file in row.files)
    if total != row.size_bytes:
        problems.append(Problem(field="size_bytes", message=f"files add up to {total}, the row says {row.size_bytes}"))
    return problems


def _check_statement(row: ModelVersion, body: Mapping[str, object]) -> list[Problem]:
    if body.get("_type") != STATEMENT_TYPE or body.get("predicateType") != PREDICATE_TYPE:
        return [Problem(field="certificate", message="the payload is no birth certificate", hint=_HINT)]
    predicate = part_of(body, "predicate")
    version, created, listed = (part_of(predicate, name) for name in ("version", "created", "manifest"))
    stated: dict[str, tuple[object, object]] = {
        "id": (version.get("id"), row.id),
        "name": (version.get("name"), row.name),
        "number": (version.get("number"), row.number),
        "project": (version.get("project"), row.project),
        "owner": (version.get("owner"), row.owner),
        "license": (version.get("license"), row.license),
        "run_id": (version.get("run_id"), row.run_id),
        "created_by": (created.get("by"), row.created_by),
        "created_at": (created.get("at"), _time(row.created_at)),
        "metrics": (predicate.get("metrics"), dict(row.metrics)),
        "manifest_sha256": (listed.get("sha256"), row.manifest_sha256),
        "size_bytes": (listed.get("size_bytes"), row.size_bytes),
    }
    problems = [
        Problem(field=name, message=f"the row says {_short(have)}, the certificate {_short(signed)}", hint=_HINT)
        for name, (signed, have) in stated.items()
        if signed != have
    ]
    return [*problems, *_check_files(row.files, listed, body)]


def _check_files(
    files: Sequence[ManifestFile], listed: Mapping[str, object], body: Mapping[str, object]
) -> list[Problem]:
    entries, subjects = listed.get("files"), body.get("subject")
    if not isinstance(entries, list) or not isinstance(subjects, list):
        return [Problem(field="certificate", message="the certificate lists no files", hint=_HINT)]
    signed = {
        str(entry.get("path")): (entry.get("sha256"), entry.get("size_bytes"))
        for entry in entries
        if isinstance(entry, dict)
    }
    have = {file.path: (file.sha256, file.size_bytes) for file in files}
    problems = []
    for path in sorted({*signed, *have}):
        if path not in have:
            problems.append(Problem(field=f"file {path}", message="is certified and missing from the row", hint=_HINT))
        elif path not in signed:
            problems.append(Problem(field=f"file {path}", message="is in the row and not certified", hint=_HINT))
        elif signed[path] != have[path]:
            message = "has another digest or size in the row than in the certificate"
            problems.append(Problem(field=f"file {path}", message=message, hint=_HINT))
    expected = [{"name": file.path, "digest": {"sha256": file.sha256}} for file in manifest(files)]
    if not problems and subjects != expected:
        problems.append(Problem(field="certificate", message="its subjects are not its files", hint=_HINT))
    return problems


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
