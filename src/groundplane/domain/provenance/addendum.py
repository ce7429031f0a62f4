"""What becomes known of a version after it was registered: statements signed one by one, chained to its certificate.

A certificate never changes. An evaluation, a waiver, the version to go back to, a promise of service come later; each
is an in-toto statement whose subject is the certificate, by digest, and which names the digest of the one before it.
Whoever holds the certificate, the addenda and a public key can check all of it without a server. What a chain can't say
by itself is whether it goes on: the audit trail says that, where there is one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from groundplane.domain.access import checked_text
from groundplane.domain.canonical import part_of
from groundplane.domain.model import ModelVersion, check_sha256, parse_ref
from groundplane.domain.provenance.certificate import STATEMENT_TYPE
from groundplane.domain.provenance.envelope import PAYLOAD_TYPE, open_envelope, pae, seal
from groundplane.errors import InvalidInput, Problem

PREDICATE_TYPE = "https://groundplane.dev/birth-certificate/addendum/v1"
METRICS_MAX = 200
ADDENDA_MAX = 10_000
"""Of one version: a nightly evaluation for 27 years."""
_HINT = "restore the database from a backup; ground audit verify says whether the trail is whole"
_OPTIONAL_TEXTS = ("dataset", "run", "evidence", "suite", "note", "summary")


class AddendumKind(StrEnum):
    EVALUATION = "evaluation"
    WAIVER = "waiver"
    ROLLBACK_TARGET = "rollback-target"
    SLA = "sla"


STATABLE = (AddendumKind.EVALUATION, AddendumKind.ROLLBACK_TARGET, AddendumKind.SLA)
"""What somebody may state by hand. Waivers are written where they are given: at the gate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Addendum:
    """A later fact of a version. id = `<version>#<sequence>`; `envelope` is what was signed, `facts` what it says.

    `previous_sha256` is the digest of the addendum before it, or of the certificate; `sha256` is that of `envelope`.
    """

    id: str
    version_id: str
    project: str
    sequence: int
    kind: AddendumKind
    facts: dict[str, object] = field(default_factory=dict)
    envelope: str
    sha256: str
    previous_sha256: str
    by: str
    at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What is to be added: its kind, its facts (as `checked_facts` returns them), who says so and when."""

    kind: AddendumKind
    facts: Mapping[str, object]
    by: str
    at: datetime
    software: str


def checked_facts(kind: AddendumKind, facts: Mapping[str, object]) -> dict[str, object]:
    """The facts as they are signed, or InvalidInput with what is wrong. Fields that a kind does not know are refused.

    evaluation: `name`, `how` (measured or stated), `metrics` {name: number}, and where known `dataset`,
    `dataset_sha256`, `run`, `evidence`, `suite`, `note`, `summary`, `samples`, `intervals` {name: [low, high]}.
    rollback-target: `target` NAME@NUMBER, and `alias`, `target_certificate_sha256`.
    sla: `sla`, one line. waiver: `gate`, `requirement`, `owner`, `reason`, `until`, `waiver`, `ended`.
    """
    checked = _CHECKS[kind](facts)
    unknown = sorted(set(facts) - set(checked) - {name for name, value in facts.items() if value in (None, "", {}, [])})
    if unknown:
        raise InvalidInput(f"{unknown[0]!r} is no fact of {_named(kind)}", f"it has {', '.join(sorted(checked))}")
    return checked


def sealed(
    row: ModelVersion, last: Addendum | None, draft: Draft, key_id: str, sign: Callable[[bytes], bytes]
) -> Addendum:
    """The next addendum of a version, signed; `last` is the newest one there is."""
    sequence = last.sequence + 1 if last else 1
    if sequence > ADDENDA_MAX:
        raise InvalidInput(f"{row.id} has {ADDENDA_MAX:,} addenda already", "register a new version")
    previous = last.sha256 if last else row.certificate_sha256
    facts = dict(draft.facts)
    text = seal(_statement(row, sequence, previous, draft), key_id, sign)
    return Addendum(
        id=f"{row.id}#{sequence}",
        version_id=row.id,
        project=row.project,
        sequence=sequence,
        kind=draft.kind,
        facts=facts,
        envelope=text,
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        previous_sha256=previous,
        by=draft.by,
        at=draft.at,
    )


def _statement(row: ModelVersion, sequence: int, previous: str, draft: Draft) -> dict[str, object]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": f"{row.id} birth certificate", "digest": {"sha256": row.certificate_sha256}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "version": row.id,
            "sequence": sequence,
            "previous_sha256": previous,
            "kind": str(draft.kind),
            "facts": dict(draft.facts),
            "created": {
                "at": draft.at.isoformat(timespec="microseconds"),
                "by": draft.by,
                "software": draft.software,
            },
        },
    }


# ---------------------------------------------------------------- checking


def check_chain(
    certificate_sha256: str, envelopes: Sequence[str], verify: Callable[[bytes, bytes, str], bool]
) -> tuple[Problem, ...]:
    """What is wrong with a certificate's addenda, in their order: a stranger's check. Empty when all hold.

    `verify(payload, signature, key_id)` answers whether a trusted key signed.
    """
    problems: list[Problem] = []
    previous = certificate_sha256
    for position, text in enumerate(envelopes, 1):
        where = f"addendum {position}"
        try:
            opened = open_envelope(text)
        except InvalidInput as error:
            problems.append(Problem(field=where, message=error.message.replace("the certificate", "it"), hint=_HINT))
            previous = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
            continue
        if not verify(pae(PAYLOAD_TYPE, opened.payload), opened.signature, opened.key_id):
            message = f"no trusted key signed this; it names key {opened.key_id[:16]}"
            problems.append(Problem(field=f"{where} signature", message=message, hint=_HINT))
        body, said = opened.statement, opened.predicate
        subjects = body.get("subject")
        digests = [part_of(each, "digest").get("sha256") for each in subjects] if isinstance(subjects, list) else []
        if body.get("predicateType") != PREDICATE_TYPE or digests != [certificate_sha256]:
            problems.append(Problem(field=where, message="is about another certificate", hint=_HINT))
        if said.get("sequence") != position or said.get("previous_sha256") != previous:
            message = f"says it is number {said.get('sequence')} and does not follow the one before it"
            problems.append(Problem(field=where, message=message, hint=_HINT))
        previous = hashlib.sha256(text.encode()).hexdigest()
    return tuple(problems)


def check_rows(
    row: ModelVersion,
    addenda: Sequence[Addendum],
    on_trail: Sequence[str],
    verify: Callable[[bytes, bytes, str], bool],
) -> tuple[Problem, ...]:
    """`check_chain`, and that the rows say what was signed, and that each digest of the audit trail is among them."""
    problems = list(check_chain(row.certificate_sha256, [each.envelope for each in addenda], verify))
    for each in addenda:
        if hashlib.sha256(each.envelope.encode(errors="surrogatepass")).hexdigest() != each.sha256:
            problems.append(Problem(field=f"addendum {each.sequence}", message="is not the text whose digest its row "
                                    "holds", hint=_HINT))  # fmt: skip
            continue
        try:
            said = open_envelope(each.envelope).predicate
        except InvalidInput:
            continue  # said above
        created = part_of(said, "created")
        at = each.at.isoformat(timespec="microseconds")
        have = (each.version_id, each.sequence, str(each.kind), each.previous_sha256, each.by, at, each.facts)
        signed = tuple(said.get(name) for name in ("version", "sequence", "kind", "previous_sha256"))
        if have != (*signed, created.get("by"), created.get("at"), said.get("facts")):
            problems.append(
                Problem(field=f"addendum {each.sequence}", message="its row does not say what was signed", hint=_HINT)
            )
    known = {each.sha256 for each in addenda}
    lost = [digest for digest in on_trail if digest not in known]
    if lost:
        message = f"{len(lost)} of {len(on_trail)} on the audit trail are gone, the first is sha256:{lost[0][:16]}…"
        problems.append(Problem(field="addenda", message=message, hint=_HINT))
    return tuple(problems)


def said(envelope: str) -> str:
    """What an envelope that holds says, in one line, for whoever has no rows: `2 evaluation: …`."""
    body = open_envelope(envelope).predicate
    kind, created = AddendumKind(str(body.get("kind"))), part_of(body, "created")
    return f"{body.get('sequence')} {kind}: {in_words(kind, part_of(body, 'facts'), str(created.get('by')))}"


def summary(addendum: Addendum) -> str:
    """What an addendum says, in one line."""
    return in_words(addendum.kind, addendum.facts, addendum.by)


def in_words(kind: AddendumKind, facts: Mapping[str, object], by: str) -> str:
    """What facts of a kind say, in one line."""
    if kind is AddendumKind.EVALUATION:
        metrics = facts.get("metrics")
        told = ", ".join(f"{name} {value:.6g}" for name, value in metrics.items()) if isinstance(metrics, dict) else ""
        on = f" on {facts['dataset']}" if facts.get("dataset") else ""
        return f"{facts.get('name')}: {told}{on} ({facts.get('how')} by {by})"
    if kind is AddendumKind.WAIVER:
        ended = f", ended {facts['ended']}" if facts.get("ended") else f" until {facts.get('until')}"
        what = f"{facts.get('gate')} {facts.get('requirement')}"
        return f"{what} waived by {facts.get('owner')}{ended}: {facts.get('reason')}"
    if kind is AddendumKind.ROLLBACK_TARGET:
        at = f" at {facts['alias']}" if facts.get("alias") else ""
        return f"goes back to {facts.get('target')}{at}"
    return str(facts.get("sla"))


# ---------------------------------------------------------------- facts of each kind


def _evaluation(facts: Mapping[str, object]) -> dict[str, object]:
    how = str(facts.get("how") or "stated")
    if how not in {"measured", "stated"}:
        raise InvalidInput(f"how is measured or stated, not {how!r}")
    metrics = _numbers(facts.get("metrics"), "metrics")
    if not metrics:
        raise InvalidInput("an evaluation needs at least one metric", "give --metric NAME=VALUE")
    checked: dict[str, object] = {"name": _text(facts, "name"), "how": how, "metrics": metrics}
    checked |= {name: _text(facts, name) for name in _OPTIONAL_TEXTS if facts.get(name)}
    if facts.get("dataset_sha256"):
        checked["dataset_sha256"] = check_sha256(str(facts["dataset_sha256"]))
    samples = facts.get("samples")
    if samples is not None:
        if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
            raise InvalidInput(f"samples is a whole number from 1, not {samples!r}")
        checked["samples"] = samples
    intervals = facts.get("intervals")
    if isinstance(intervals, Mapping) and intervals:
        pairs = {str(name): list(_numbers(dict(enumerate(ends)), f"interval of {name}").values())
                 for name, ends in intervals.items() if isinstance(ends, list | tuple)}  # fmt: skip
        if set(pairs) - set(metrics) or any(len(ends) != 2 or ends[0] > ends[1] for ends in pairs.values()):
            raise InvalidInput("intervals are [low, high] by the name of a metric")
        checked["intervals"] = pairs
    return checked


def _waiver(facts: Mapping[str, object]) -> dict[str, object]:
    names = ("gate", "requirement", "owner", "reason", "until")
    checked: dict[str, object] = {name: _text(facts, name) for name in names}
    return checked | {name: _text(facts, name) for name in ("waiver", "ended") if facts.get(name)}


def _rollback_target(facts: Mapping[str, object]) -> dict[str, object]:
    target = parse_ref(_text(facts, "target"))
    if target.number is None:
        raise InvalidInput(f"{target} may stand for another version tomorrow", "name the version by its number")
    checked: dict[str, object] = {"target": str(target)}
    if facts.get("alias"):
        checked["alias"] = _text(facts, "alias")
    if facts.get("target_certificate_sha256"):
        checked["target_certificate_sha256"] = check_sha256(str(facts["target_certificate_sha256"]))
    return checked


def _sla(facts: Mapping[str, object]) -> dict[str, object]:
    return {"sla": _text(facts, "sla")}


def _text(facts: Mapping[str, object], name: str) -> str:
    return checked_text(str(facts.get(name) or ""), name)


def _numbers(found: object, what: str) -> dict[str, float]:
    if not isinstance(found, Mapping) or len(found) > METRICS_MAX:
        raise InvalidInput(f"{what} is a mapping of at most {METRICS_MAX} names to numbers")
    for name, value in found.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInput(f"{what}: {name} is {value!r}, no finite number")
    return {checked_text(str(name), what): float(value) for name, value in found.items()}


def _named(kind: AddendumKind) -> str:
    return {"evaluation": "an evaluation", "sla": "an SLA"}.get(str(kind), f"a {kind}")


_CHECKS = {
    AddendumKind.EVALUATION: _evaluation,
    AddendumKind.WAIVER: _waiver,
    AddendumKind.ROLLBACK_TARGET: _rollback_target,
    AddendumKind.SLA: _sla,
}
assert set(_CHECKS) == set(AddendumKind)
