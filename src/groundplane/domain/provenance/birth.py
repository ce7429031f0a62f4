"""What a certificate states about a version's making: from what somebody says, or from a run that was watched."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec

from groundplane.domain.canonical import part_of, rows_of
from groundplane.domain.model import ModelVersion
from groundplane.domain.provenance import certificate as cert
from groundplane.domain.run import Attempt, Checkpoint, Run
from groundplane.domain.scanning.model_formats import Format
from groundplane.domain.scanning.report import Seen
from groundplane.domain.spec import ModelOutput
from groundplane.errors import Refused

UNOBSERVED = "not observed: stated at registration"
_UNSTATED = "the spec's output does not say"
_NOT_OURS = "the model was not made by a run of this installation"
_NOT_STATED = "not stated at registration"
Fact = TypeVar("Fact")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A run that ended, and what is known of it beside its rows."""

    run: Run
    attempts: Sequence[Attempt]
    checkpoints: Sequence[Checkpoint]
    circumstances: cert.Circumstances
    metrics: Mapping[str, float]
    hyperparameters: Mapping[str, str] = field(default_factory=dict)
    cost_microusd: int
    energy: cert.EnergyFact | None = None
    no_energy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A registration by a door of its own: what the certificate says of the way, and the rows that come with it.

    `rows` is asked for the version in the transaction that inserts it: what it raises undoes the registration.
    `missing` says in the door's words which facts are missing.
    """

    how: str
    missing: tuple[Refused, ...]
    rows: Callable[[ModelVersion], Sequence[object]]


def stated(facts: cert.Facts, files: Sequence[Seen], software: str) -> cert.Birth:
    """Of a model registered by hand."""
    _, odd = cert.finite_metrics(facts.metrics)
    code = cert.CodeFact(commit=facts.code_commit, dirty=facts.code_dirty, repository=facts.code_repository)
    return cert.Birth(
        origin="adopted" if facts.adopted_from else "stated",
        adopted=facts.adopted,
        adopted_from=facts.adopted_from,
        framework=facts.framework,
        description=facts.description,
        base_model=facts.base_model,
        hardware_stated=facts.hardware,
        run=cert.RunFact(id=facts.training_run) if facts.training_run else None,
        circumstances=cert.Circumstances(observed=UNOBSERVED, code=code, data=facts.data),
        cost_microusd=facts.cost_microusd,
        hyperparameters=facts.hyperparameters,
        sla=facts.sla,
        rollback_target=facts.rollback_target,
        target_memory_bytes=facts.target_memory_bytes,
        formats=formats(files),
        unknown=(*odd, *unrecognised(files), *_unstated(facts)),
        software=software,
    )


def delivered(birth: cert.Birth, delivery: Delivery) -> cert.Birth:
    """The birth, with the way by which the version came."""
    seen = birth.circumstances
    return replace(birth, circumstances=replace(seen, observed=f"{seen.observed}; {delivery.how}"))


def of_run(watched: Watched, output: ModelOutput, files: Sequence[Seen], software: str) -> cert.Birth:
    """Of a run's output."""
    _, odd = cert.finite_metrics(watched.metrics)
    unstated = [(name, _UNSTATED) for name in ("license", "framework", "base_model") if not getattr(output, name)]
    if not watched.metrics:
        unstated.append(("metrics", "the run reported none"))
    if not watched.hyperparameters:
        unstated.append(("hyperparameters", "the run wrote no params.json"))
    if watched.energy is None:
        unstated.append(("energy", watched.no_energy))
    return cert.Birth(
        origin="run",
        framework=output.framework,
        base_model=output.base_model,
        run=_run_fact(watched.run, watched.attempts, watched.checkpoints),
        circumstances=watched.circumstances,
        cost_microusd=watched.cost_microusd,
        energy=watched.energy,
        hyperparameters=watched.hyperparameters,
        sla=output.sla,
        formats=formats(files),
        unknown=(*odd, *unstated, *unrecognised(files)),
        software=software,
    )


def of_copy(source: ModelVersion, said: Mapping[str, object], software: str) -> cert.Birth:
    """Of a copy of a version: everything that the predicate of its certificate says, and what it is a copy of.

    The version that is gone back to stays behind: it is one of the source's own name.
    """
    version, hardware, adoption = part_of(said, "version"), part_of(said, "hardware"), part_of(said, "adoption")
    files = rows_of(part_of(said, "manifest"), "files")
    known = ("path", "sha256", "size_bytes")
    return cert.Birth(
        origin=str(said["origin"]),
        framework=str(version.get("framework", "")),
        description=str(version.get("description", "")),
        base_model=str(version.get("base_model", "")),
        hardware_stated=str(hardware.get("stated", "")),
        run=_read(said.get("run"), cert.RunFact),
        circumstances=cert.Circumstances(
            observed=str(said["observed"]),
            code=_read(said.get("code"), cert.CodeFact),
            environment=_read(_paired(said.get("environment"), "lock_files", "path", "sha256"), cert.EnvironmentFact),
            hardware=_read(_paired(hardware, "drivers", "name", "version"), cert.HardwareFact)
            if "cpu" in hardware
            else None,
            container=_read(said.get("container"), cert.ContainerFact),
            data=msgspec.convert(said["data"], tuple[cert.DataFact, ...]),
        ),
        cost_microusd=msgspec.convert(said.get("cost_microusd"), int | None),
        energy=_read(said.get("energy"), cert.EnergyFact),
        hyperparameters=msgspec.convert(said.get("hyperparameters", {}), dict[str, str]),
        sla=str(said.get("sla", "")),
        target_memory_bytes=msgspec.convert(said.get("target_memory_bytes"), int | None),
        formats={str(row["path"]): {key: each for key, each in row.items() if key not in known} for row in files},
        unknown=tuple((str(row["fact"]), str(row["why"])) for row in rows_of(said, "unknown")),
        software=software,
        adopted=msgspec.convert(adoption.get("converted", ()), tuple[cert.AdoptedFile, ...]),
        adopted_from=str(adoption.get("from", "")),
        copy_of=source,
    )


def _read(value: object, kind: type[Fact]) -> Fact | None:
    return None if value is None else msgspec.convert(value, kind)


def _paired(value: object, name: str, first: str, second: str) -> object:
    """A fact whose pairs are spelt out as rows, with pairs."""
    if not isinstance(value, Mapping):
        return value
    return {**value, name: [(row[first], row[second]) for row in rows_of(value, name)]}


def formats(files: Sequence[Seen]) -> dict[str, dict[str, object]]:
    """path → {"format", and what is known of the file}."""
    return {file.path: {"format": file.format, **file.details} for file in files}


def unrecognised(files: Sequence[Seen]) -> list[tuple[str, str]]:
    return [
        (f"files.{file.path}.format", "its bytes are of no format known here; it was stored as it is")
        for file in files
        if file.format == Format.BINARY
    ]


def _unstated(facts: cert.Facts) -> list[tuple[str, str]]:
    names = ("framework", "base_model", "hardware", "cost_microusd", "code_repository")
    missing = [(name, _NOT_STATED) for name in names if getattr(facts, name) in {None, ""}]
    if facts.code_dirty is None:
        missing.append(("code.dirty", _NOT_STATED))
    if not facts.hyperparameters:
        missing.append(("hyperparameters", _NOT_STATED))
    missing += [(name, why) for name, why in sorted(facts.unknown.items()) if name in cert.MAY_BE_UNKNOWN]
    return [*missing, *((name, _NOT_OURS) for name in ("environment", "container", "hardware.drivers", "energy"))]


def _run_fact(run: Run, attempts: Sequence[Attempt], checkpoints: Sequence[Checkpoint]) -> cert.RunFact:
    steps = [attempt.last_step for attempt in attempts if attempt.last_step is not None]
    steps += [checkpoint.step for checkpoint in checkpoints]
    return cert.RunFact(
        id=run.id,
        spec_digest=run.spec_digest,
        created_by=run.created_by,
        attempts=len(attempts),
        end_reasons=tuple(str(attempt.end_reason) for attempt in attempts if attempt.end_reason),
        resumed_from_steps=tuple(a.resumed_from_step for a in attempts if a.resumed_from_step is not None),
        checkpoints=len(checkpoints),
        last_step=max(steps, default=None),
        nodes=tuple(dict.fromkeys(attempt.node for attempt in attempts if attempt.node)),
        started_at=run.started_at or min((a.started_at for a in attempts if a.started_at), default=None),
        ended_at=run.ended_at or max((a.ended_at for a in attempts if a.ended_at), default=None),
    )
