"""What a runner saw around an attempt before its command started, as it is kept, and as the certificate states it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from groundplane.domain.canonical import part_of, rows_of
from groundplane.domain.provenance.certificate import (
    AcceleratorFact,
    Circumstances,
    CodeFact,
    ContainerFact,
    EnergyFact,
    EnvironmentFact,
    HardwareFact,
    is_commit,
)
from groundplane.domain.run import Attempt

_NO_ENERGY = "its node reports no power of accelerators, and the attempt had none whose power the catalogue knows"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptCircumstances:
    """An attempt's circumstances. id = the attempt's. `members` are the runners' documents by rank.

    `energy_j` is what its accelerators took, None while nobody measured it; `energy_how` says how it is known.
    """

    id: str
    run_id: str
    project: str
    at: datetime
    members: tuple[dict[str, object], ...] = ()
    energy_j: float | None = None
    energy_how: str = ""
    version: int = 0


Document = Mapping[str, object]


def as_seen(rows: Sequence[AttemptCircumstances], attempts: Sequence[Attempt]) -> Circumstances | None:
    """The newest attempt's circumstances, in the certificate's words; None when no runner looked at any.

    What another node of the gang, or an earlier attempt, had otherwise is said under `unknown`: one certificate can't
    state two commits as one.
    """
    numbers = {attempt.id: attempt.number for attempt in attempts}
    known = sorted((row for row in rows if row.members), key=lambda row: numbers.get(row.id, 0))
    if not known:
        return None
    newest = known[-1]
    first, number = newest.members[0], numbers.get(newest.id, 0)
    unknown = [(str(fact), str(why)) for fact, why in _pairs(first.get("unknown"))]
    for rank, other in enumerate(newest.members[1:], 1):
        unknown += _unlike(first, other, f"rank {rank} of the gang")
    for row in known[:-1]:
        unknown += _unlike(first, row.members[0], f"attempt {numbers.get(row.id)}")
    code = _code(part_of(first, "code"))
    if code is not None and not is_commit(code.commit):
        unknown.append(("code.commit", f"its node told {code.commit[:80]!r}, which is no git object id"))
        code = None
    return Circumstances(
        observed=f"before the command of attempt {number} started, {first.get('observed_at')}",
        code=code,
        environment=_environment(part_of(first, "environment")),
        hardware=_hardware(part_of(first, "hardware"), len(newest.members)),
        container=_container(part_of(first, "container")),
        unknown=tuple(unknown),
    )


def energy(
    rows: Sequence[AttemptCircumstances], attempts: Sequence[Attempt], power_w: Callable[[str], int | None]
) -> tuple[EnergyFact | None, str]:
    """What a run's accelerators took in all attempts: measured, else estimated, else None and why.

    `power_w(name)` is a card's board power as the catalogue has it (thermal design power), None when it is unknown.
    """
    ran = [attempt for attempt in attempts if attempt.started_at is not None and attempt.ended_at is not None]
    by_id = {row.id: row for row in rows}
    if not ran or any(attempt.id not in by_id for attempt in ran):
        return None, "not every attempt was looked at by its runner"
    kept = [by_id[attempt.id] for attempt in ran]
    measured = [row.energy_j for row in kept if row.energy_j is not None]
    if len(measured) == len(ran):
        basis = kept[-1].energy_how + (f", summed over {len(ran)} attempts" if len(ran) > 1 else "")
        return EnergyFact(joules=round(sum(measured), 3), how="measured", basis=basis), ""
    joules, terms = 0.0, []
    for attempt, row in zip(ran, kept, strict=True):
        assert attempt.started_at is not None and attempt.ended_at is not None
        seconds = (attempt.ended_at - attempt.started_at).total_seconds()
        cards = [card for member in row.members for card in _cards(member)]
        watts = [power_w(str(card.get("name"))) for card in cards]
        if not cards:
            return None, _NO_ENERGY
        if any(each is None for each in watts):
            return None, f"no power was measured, and the catalogue has none of {cards[watts.index(None)].get('name')}"
        total_w = sum(each or 0 for each in watts)
        joules += total_w * seconds
        terms.append(f"{len(cards)} x {total_w / len(cards):g} W x {seconds:.1f} s")
    basis = f"estimated: board power (TDP) of the catalogue x time: {' + '.join(terms)} = {joules:.0f} J"
    return EnergyFact(joules=round(joules, 3), how="estimated", basis=basis), ""


def _unlike(first: Document, other: Document, who: str) -> list[tuple[str, str]]:
    found = []
    for fact, part, name in (("code.commit", "code", "commit"), ("code.dirty", "code", "dirty"),
                             ("environment", "environment", "packages"), ("container.digest", "container", "digest"),
                             ("hardware.drivers", "hardware", "drivers")):  # fmt: skip
        mine, theirs = part_of(first, part).get(name), part_of(other, part).get(name)
        if mine != theirs:
            told = f": {theirs}" if isinstance(theirs, str | bool) else ""
            found.append((f"{fact} of {who}", f"it was not the one that is stated{told}"))
    return found


def _code(found: Document) -> CodeFact | None:
    if not found:
        return None
    dirty = found.get("dirty")
    return CodeFact(
        commit=str(found.get("commit") or ""),
        dirty=dirty if isinstance(dirty, bool) else None,
        repository=str(found.get("repository") or ""),
    )


def _environment(found: Document) -> EnvironmentFact | None:
    if not found:
        return None
    packages = found.get("packages")
    return EnvironmentFact(
        of="job",
        python=str(found.get("python")),
        platform=str(found.get("platform")),
        packages=tuple(str(each) for each in packages) if isinstance(packages, list) else (),
        lock_files=tuple((str(row.get("path")), str(row.get("sha256"))) for row in rows_of(found, "lock_files")),
    )


def _hardware(found: Document, nodes: int) -> HardwareFact | None:
    if not found:
        return None
    cores, memory = found.get("cores"), found.get("memory_bytes")
    return HardwareFact(
        cpu=str(found.get("cpu") or ""),
        cores=cores if isinstance(cores, int) else 0,
        memory_bytes=memory if isinstance(memory, int) else 0,
        accelerators=tuple(_card(card) for card in rows_of(found, "accelerators"))
        if isinstance(found.get("accelerators"), list)
        else None,
        drivers=tuple((str(row.get("name")), str(row.get("version"))) for row in rows_of(found, "drivers")),
        nodes=nodes,
    )


def _card(found: Document) -> AcceleratorFact:
    memory = found.get("memory_bytes")
    return AcceleratorFact(
        name=str(found.get("name") or "unknown"),
        memory_bytes=memory if isinstance(memory, int) else None,
        driver=str(found.get("driver") or ""),
    )


def _cards(member: Document) -> list[Document]:
    return rows_of(part_of(member, "hardware"), "accelerators")


def _container(found: Document) -> ContainerFact | None:
    if not found:
        return None
    return ContainerFact(
        used=bool(found.get("used")), image=str(found.get("image") or ""), digest=str(found.get("digest") or "")
    )


def _pairs(found: object) -> list[tuple[object, object]]:
    rows = found if isinstance(found, list | tuple) else ()
    return [(row[0], row[1]) for row in rows if isinstance(row, list | tuple) and len(row) == 2]
