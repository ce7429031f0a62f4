"""Gates: requirements on evidence that stand before an alias may move. Pure: evidence in, a verdict each out.

What has no evidence is not met: a gate never passes by silence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase

from groundplane.domain.model import ModelVersion
from groundplane.domain.scanning.report import CUSTOM_OPERATION, SCANNER_VERSION, UNKNOWN_FORMAT, ScanReport
from groundplane.domain.statistics import Sample, difference, paired_difference, quantile
from groundplane.errors import Refused
from groundplane.units import format_duration, format_usd

SAMPLES_MAX = 10_000
KEPT_FINDINGS = 20
MEASURED, STATED = "measured", "stated"


class Kind(StrEnum):
    METRIC = "metric"
    LATENCY = "latency"
    REGRESSION = "regression"
    COST = "cost"
    FRESHNESS = "freshness"
    SCAN = "scan"
    CERTIFICATE = "certificate"
    APPROVALS = "approvals"


class Status(StrEnum):
    MET = "met"
    NOT_MET = "not-met"
    NO_EVIDENCE = "no-evidence"
    WAIVED = "waived"


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One requirement. `id` names it in its gate. Which fields count depends on the kind.

    metric: `name`, `at_least` or `at_most`. latency: `percentile` under `at_most` seconds over `requests` or more.
    regression: `name` not worse than the alias's current version by more than `within`, at `confidence`; `at_most` 1
    says that less is better. cost: `at_most` micro-dollars for 1,000 requests. freshness: `at_most` seconds, or the
    dataset's own limit when None. approvals: `at_least` people.
    """

    id: str
    kind: Kind
    name: str = ""
    at_least: float | None = None
    at_most: float | None = None
    percentile: float = 95.0
    requests: int = 0
    within: float = 0.0
    confidence: float = 0.95
    lower_is_better: bool = False
    above: bool = False
    below: bool = False

    @property
    def asked(self) -> str:
        """What a requirement asks, for people: `P95 below 200 ms over 50 requests`."""
        low = "above" if self.above else "≥"
        high = "below" if self.below else "≤"
        match self.kind:
            case Kind.METRIC:
                words = [] if self.at_least is None else [f"{low} {self.at_least:g}"]
                words += [] if self.at_most is None else [f"{high} {self.at_most:g}"]
                return f"{self.name} {' and '.join(words)}"
            case Kind.LATENCY:
                limit_ms = (self.at_most or 0) * 1000
                return f"P{self.percentile:g} {high} {limit_ms:g} ms over {self.requests} requests"
            case Kind.REGRESSION:
                return f"{self.name} within {self.within:g} of what stands there ({self.confidence:.0%})"
            case Kind.COST:
                return f"≤ {format_usd(int(self.at_most or 0))} for 1,000 requests"
            case Kind.FRESHNESS:
                age = self.at_most
                return f"data ≤ {format_duration(age)} old" if age else "data within its own limit"
            case Kind.APPROVALS:
                wanted = int(self.at_least or 1)
                return "the approval of 1 person" if wanted == 1 else f"the approval of {wanted} people"
            case Kind.SCAN:
                return "every file scanned clean"
            case Kind.CERTIFICATE:
                return "a complete certificate that holds"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """Requirements before the aliases of a project's models. id = `<project>/<name>`; `model` may hold `*`."""

    id: str
    name: str
    project: str
    model: str
    aliases: tuple[str, ...]
    requirements: tuple[Requirement, ...]
    created_by: str
    created_at: datetime
    version: int = 0

    def guards(self, model: str, alias: str) -> bool:
        """Whether it stands before this move."""
        return fnmatchcase(model, self.model) and any(fnmatchcase(alias, each) for each in self.aliases)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Something measured or stated about a version. `source`: `measured` here, or `stated` by whoever sent it.

    `values` are samples in the kind's unit (seconds, or a score for each example); `successes` of `trials` stand for
    many zeros and ones. `facts` say under what circumstances.
    """

    id: str
    version_id: str
    project: str
    kind: Kind
    name: str
    source: str
    by: str
    at: datetime
    values: tuple[float, ...] = ()
    successes: int | None = None
    trials: int | None = None
    cost_microusd_per_1000: int | None = None
    facts: dict[str, str] = field(default_factory=dict)
    version: int = 0

    @property
    def sample(self) -> Sample:
        return Sample(values=self.values, successes=self.successes, trials=self.trials)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateApproval:
    """One person's yes to a version under an alias. id = `<version>@<alias>/<by>`. It is for this certificate alone."""

    id: str
    version_id: str
    alias: str
    project: str
    certificate_sha256: str
    by: str
    role: str
    at: datetime
    comment: str = ""
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiver:
    """Lifts one requirement of a gate until it expires by itself; for one version, or for all when that is empty."""

    id: str
    gate_id: str
    requirement: str
    version_id: str
    project: str
    owner: str
    reason: str
    expires_at: datetime
    created_by: str
    created_at: datetime
    version: int = 0

    def covers(self, gate_id: str, requirement: str, version_id: str, now: datetime) -> bool:
        if (self.gate_id, self.requirement) != (gate_id, requirement) or now >= self.expires_at:
            return False
        return self.version_id in ("", version_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A gate's word on one requirement: what it needs, what there is, from which evidence, and the way forward."""

    gate_id: str
    requirement: str
    status: Status
    need: str
    have: str
    hint: str = ""
    evidence_id: str = ""
    waiver: str = ""
    waiver_id: str = ""

    @property
    def open(self) -> bool:
        """Whether it stands in the way."""
        return self.status in (Status.NOT_MET, Status.NO_EVIDENCE)

    def refused(self) -> Refused:
        return Refused(rule=f"gate {self.gate_id}: {self.requirement}", need=self.need, have=self.have, hint=self.hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateCheck:
    """All verdicts on one wanted move, kept with what they rest on. `baseline` is the version that stood there."""

    id: str
    version_id: str
    alias: str
    project: str
    baseline: str
    gates: tuple[str, ...]
    verdicts: tuple[Verdict, ...]
    passed: bool
    by: str
    at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DataAge:
    """How old one dataset of a version is; `as_of` None where nobody knows that data here."""

    name: str
    as_of: datetime | None
    fresh_for_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Everything a gate looks at when a version wants an alias. `evidence` is newest first."""

    version_id: str
    alias: str
    now: datetime
    metrics: Mapping[str, float]
    evidence: Sequence[Evidence]
    baseline_id: str
    baseline: Sequence[Evidence]
    data: Sequence[DataAge]
    missing_facts: Sequence[str]
    certificate_problem: str
    scan_rules: str
    """The digest of the rules that a scan would judge by now."""
    approvals: Sequence[GateApproval]


def scan_evidence(id: str, version: ModelVersion, report: ScanReport, rules: str, by: str, at: datetime) -> Evidence:
    """What a scan found, as evidence of the version: by which scanner and rules, and the first findings in words."""
    shown = {
        f"finding {number:02}": f"{finding.severity}: {finding.rule}: {finding.path or 'all files'}"
        for number, finding in enumerate(report.findings[:KEPT_FINDINGS], 1)
    }
    refused = sum(finding.severity == "refused" for finding in report.findings)
    odd = sum(finding.rule == UNKNOWN_FORMAT for finding in report.findings)
    own = sum(finding.rule == CUSTOM_OPERATION for finding in report.findings)
    outcome = "refused" if refused else "warnings" if report.findings else "clean"
    counts = {"files": report.files, "findings": len(report.findings), "refused": refused, "unknown_formats": odd}
    counts["custom_operations"] = own
    return Evidence(
        id=id,
        version_id=version.id,
        project=version.project,
        kind=Kind.SCAN,
        name=outcome,
        source=MEASURED,
        by=by,
        at=at,
        successes=report.files - len({each.path for each in report.findings if each.severity == "refused"}),
        trials=report.files,
        facts={
            **shown,
            **{name: str(count) for name, count in counts.items()},
            "scanner": SCANNER_VERSION,
            "rules": rules,
        },
    )


def evaluation_of(evidence: Evidence) -> dict[str, object]:
    """Evidence as the facts of an evaluation's addendum: its mean, or its percentiles, and the evidence's id."""
    mean = evidence.sample.mean
    metrics: dict[str, float] = {} if mean is None else {evidence.name: mean}
    if evidence.kind is Kind.LATENCY:
        metrics = {f"latency_p{percent}_s": quantile(evidence.values, percent / 100) for percent in (50, 95, 99)}
    if evidence.cost_microusd_per_1000 is not None:
        metrics["cost_usd_per_1000_requests"] = evidence.cost_microusd_per_1000 / 1e6
    told: dict[str, object] = {"name": evidence.name, "how": evidence.source, "metrics": metrics}
    told["samples"] = evidence.trials if evidence.trials is not None else len(evidence.values)
    note = evidence.facts.get("note", "")
    return {**told, "evidence": evidence.id, **({"note": note} if note.strip() and note.isprintable() else {})}


def waived(waiver: Waiver) -> dict[str, object]:
    """A waiver as the facts of its addendum."""
    return {
        "gate": waiver.gate_id,
        "requirement": waiver.requirement,
        "owner": waiver.owner,
        "reason": waiver.reason,
        "until": f"{waiver.expires_at:%Y-%m-%d %H:%M} UTC",
        "waiver": waiver.id,
    }


def judge(gate: Gate, case: Case, waivers: Sequence[Waiver]) -> tuple[Verdict, ...]:
    """A verdict for each requirement, in the gate's order; what is not met is lifted where a waiver covers it."""
    verdicts = []
    for requirement in gate.requirements:
        verdict = _JUDGES[requirement.kind](gate.id, requirement, case)
        covering = [each for each in waivers if each.covers(gate.id, requirement.id, case.version_id, case.now)]
        if verdict.open and covering:
            longest = max(covering, key=lambda each: (each.expires_at, each.id))
            said = f"waived until {longest.expires_at:%Y-%m-%d %H:%M} UTC by {longest.owner}: {longest.reason}"
            verdict = replace(verdict, status=Status.WAIVED, hint="", waiver=said, waiver_id=longest.id)
        verdicts.append(verdict)
    return tuple(verdicts)


def _newest(evidence: Sequence[Evidence], kind: Kind, name: str = "") -> Evidence | None:
    return next((each for each in evidence if each.kind is kind and (not name or each.name == name)), None)


def _verdict(
    gate_id: str,
    asked: Requirement,
    met: bool,
    need: str,
    have: str,
    *,
    hint: str = "",
    evidence: Evidence | None = None,
) -> Verdict:
    status = Status.MET if met else Status.NOT_MET
    return Verdict(
        gate_id=gate_id, requirement=asked.id, status=status, need=need, have=have,
        hint="" if met else hint, evidence_id=evidence.id if evidence else "",
    )  # fmt: skip


def _without(gate_id: str, asked: Requirement, need: str, have: str, hint: str) -> Verdict:
    return Verdict(gate_id=gate_id, requirement=asked.id, status=Status.NO_EVIDENCE, need=need, have=have, hint=hint)


def _limits(asked: Requirement) -> str:
    words = []
    if asked.at_least is not None:
        words.append(f"{'above' if asked.above else '≥'} {asked.at_least:g}")
    if asked.at_most is not None:
        words.append(f"{'below' if asked.below else '≤'} {asked.at_most:g}")
    return " and ".join(words)


def within_limits(asked: Requirement, value: float) -> bool:
    """Whether a value keeps to a requirement's bounds. NaN keeps to none."""
    low, high = asked.at_least, asked.at_most
    good_low = low is None or (value > low if asked.above else value >= low)
    good_high = high is None or (value < high if asked.below else value <= high)
    return good_low and good_high


def _metric(gate_id: str, asked: Requirement, case: Case) -> Verdict:
    """What was measured here counts first, then the certificate, and last what somebody stated."""
    need = f"{asked.name} {_limits(asked)}"
    known = [each for each in case.evidence if each.kind is Kind.METRIC and each.name == asked.name]
    evidence = next((each for each in known if each.source == MEASURED), None)
    if evidence is None and asked.name not in case.metrics:
        evidence = known[0] if known else None
    value = evidence.sample.mean if evidence else case.metrics.get(asked.name)
    if value is None:
        stated = f"ground gates evidence {case.version_id} --metric {asked.name} --successes K --trials N"
        hint = f"evaluate it (ground eval run), register versions with --metric {asked.name}=VALUE, or: {stated}"
        return _without(gate_id, asked, need, f"no {asked.name} of {case.version_id}", hint)
    have = f"{asked.name} {value:.6g}" + (f" ({evidence.source} by {evidence.by})" if evidence else " (certificate)")
    hint = f"register a version with {asked.name} {_limits(asked)}, or: {_waive(gate_id, asked, case)}"
    return _verdict(gate_id, asked, within_limits(asked, value), need, have, hint=hint, evidence=evidence)


def _latency(gate_id: str, asked: Requirement, case: Case) -> Verdict:
    limit_s = asked.at_most or 0.0
    need = (
        f"P{asked.percentile:g} {'below' if asked.below else '≤'} {limit_s * 1000:g} ms over {asked.requests} requests"
    )
    measured = [each for each in case.evidence if each.source == MEASURED]
    evidence = _newest(measured, Kind.LATENCY)
    hint = f"serve {case.version_id} and measure it: ground gates measure ENDPOINT --requests {asked.requests}"
    if evidence is None:
        return _without(gate_id, asked, need, f"no measured run of {case.version_id}", hint)
    if len(evidence.values) < asked.requests:
        return _without(gate_id, asked, need, f"a run of {len(evidence.values)} requests", hint)
    value = quantile(evidence.values, asked.percentile / 100)
    failed = int(evidence.facts.get("failed", "0"))
    told = f", {failed} of them failed" if failed else ""
    have = f"P{asked.percentile:g} {value * 1000:.1f} ms over {len(evidence.values)} requests{told} ({evidence.source})"
    hint = "a smaller or faster model, or more capacity for the endpoint; then measure again"
    good = within_limits(asked, value) and not failed
    return _verdict(gate_id, asked, good, need, have, hint=hint, evidence=evidence)


def _regression(gate_id: str, asked: Requirement, case: Case) -> Verdict:
    percent = f"{asked.confidence:.0%}"
    need = (
        f"{asked.name} not worse than {case.baseline_id or case.alias} by more than {asked.within:g} ({percent} sure)"
    )
    if not case.baseline_id or case.baseline_id == case.version_id:
        return _verdict(gate_id, asked, True, need, f"no other version stands at {case.alias}: nothing to fall behind")
    new, old = (_newest(each, Kind.METRIC, asked.name) for each in (case.evidence, case.baseline))
    for each, of in ((new, case.version_id), (old, case.baseline_id)):
        if each is None or not each.sample.usable:
            hint = f"ground gates evidence {of} --metric {asked.name} --successes K --trials N (or --values FILE)"
            return _without(gate_id, asked, need, f"no samples of {asked.name} of {of}", hint)
    assert new is not None and old is not None
    if paired := _same_items(case, asked.name):
        new, old = paired
        low, high = paired_difference(new.values, old.values, asked.confidence)
    else:
        low, high = difference(new.sample, old.sample, asked.confidence)
    worst = -high if asked.lower_is_better else low
    how = f", item by item over {len(new.values):,}" if paired else ""
    have = f"{new.sample.mean:.4g} against {old.sample.mean:.4g}: difference {low:+.4g} to {high:+.4g} ({percent}{how})"
    hint = "evaluate on more examples to narrow the interval, or train a better version"
    return _verdict(gate_id, asked, worst >= -asked.within, need, have, hint=hint, evidence=new)


def _same_items(case: Case, name: str) -> tuple[Evidence, Evidence] | None:
    """The newest evaluations of both versions on the very same items: what moved both alike cancels out."""
    new, old = (
        [each for each in evidence if (each.kind, each.name) == (Kind.METRIC, name) and each.facts.get("items")]
        for evidence in (case.evidence, case.baseline)
    )
    for each in new:
        other = next((other for other in old if other.facts["items"] == each.facts["items"]), None)
        if other is not None and len(each.values) == len(other.values) > 0:
            return each, other
    return None


def _cost(gate_id: str, asked: Requirement, case: Case) -> Verdict:
    limit = int(asked.at_most or 0)
    need = f"at most {format_usd(limit)} for 1,000 requests"
    evidence = next((each for each in case.evidence if each.cost_microusd_per_1000 is not None), None)
    if evidence is None or evidence.cost_microusd_per_1000 is None:
        hint = f"serve {case.version_id} and measure it: ground gates measure ENDPOINT"
        return _without(gate_id, asked, need, f"no measured cost of {case.version_id}", hint)
    cost = evidence.cost_microusd_per_1000
    hint = "a cheaper node, or more requests at once on the same one; then measure again"
    return _verdict(gate_id, asked, cost <= limit, need, format_usd(cost), hint=hint, evidence=evidence)


def _waive(gate_id: str, asked: Requirement, case: Case) -> str:
    return f"ground gates waive {gate_id} {asked.id} --version {case.version_id} --owner WHO --reason WHY --until 7d"


def _freshness(gate_id: str, asked: Requirement, case: Case) -> Verdict:
    need = (
        f"data of at most {format_duration(asked.at_most)}" if asked.at_most else "data within its own freshness limit"
    )
    if not case.data:
        return _without(gate_id, asked, need, "no data in the certificate", "register the version with its data")
    late, unknown, ages = [], [], []
    for each in case.data:
        limit_s = asked.at_most or each.fresh_for_s
        if each.as_of is None or limit_s is None:
            unknown.append(each.name)
            continue
        age_s = (case.now - each.as_of).total_seconds()
        ages.append(f"{each.name} is {format_duration(age_s)} old")
        if age_s > limit_s:
            late.append(ages[-1])
    if unknown and not late:
        have = f"{', '.join(unknown)}, whose age nobody knows"
        return _without(gate_id, asked, need, have, "register it: ground datasets register, with the same digest")
    hint = "train on fresher data"
    return _verdict(gate_id, asked, not late, need, ", ".join(late or ages), hint=hint)


def _scan(gate_id: str, asked: Requirement, case: Case) -> Verdict:
    need = "every file scanned clean, by the rules of now"
    evidence = next((each for each in case.evidence if each.kind is Kind.SCAN and each.source == MEASURED), None)
    again = f"ground models scan {case.version_id}"
    if evidence is None:
        return _without(gate_id, asked, need, f"no scan of {case.version_id}", again)
    facts = evidence.facts
    if (facts.get("scanner"), facts.get("rules")) != (SCANNER_VERSION, case.scan_rules):
        by = f"scanner {facts.get('scanner') or 'unknown'}, rules {(facts.get('rules') or 'unknown')[:12]}"
        have = f"a scan of {evidence.at:%Y-%m-%d} by {by}; now it is {SCANNER_VERSION}, rules {case.scan_rules[:12]}"
        return _without(gate_id, asked, need, have, f"it is stale; scan it anew: {again}")
    found = [tuple(text.split(": ", 2)) for name, text in sorted(facts.items()) if name.startswith("finding ")]
    bad = [f"{words[-1]}: {words[1]}" for words in found if words[0] == "refused"]
    bad += [f"{words[-1]} is of no format known here" for words in found if words[1] == UNKNOWN_FORMAT]
    bad += [f"{words[-1]} needs operators of its own" for words in found if words[1] == CUSTOM_OPERATION]
    clean = all(facts.get(name) == "0" for name in ("refused", "unknown_formats", "custom_operations"))
    have = "; ".join(bad) or "every file is of a known format that can't run code"
    hint = f"register the version anew without these files; what was found: {again}"
    return _verdict(gate_id, asked, clean, need, have, hint=hint, evidence=evidence)


def _certificate(gate_id: str, asked: Requirement, case: Case) -> Verdict:
    missing = ", ".join(case.missing_facts)
    have = case.certificate_problem or (f"it does not say: {missing}" if missing else "complete, and signed")
    good = not case.certificate_problem and not missing
    hint = f"ground models verify {case.version_id}; register it anew with every fact"
    return _verdict(gate_id, asked, good, "a complete birth certificate that holds", have, hint=hint)


def _approvals(gate_id: str, asked: Requirement, case: Case) -> Verdict:
    wanted = int(asked.at_least or 1)
    names = ", ".join(each.by for each in case.approvals)
    have = f"{len(case.approvals)}" + (f" ({names})" if names else "")
    hint = f"ground gates approve {case.version_id} --alias {case.alias}, by somebody who may and did not register it"
    need = "1 approval" if wanted == 1 else f"{wanted} approvals"
    return _verdict(gate_id, asked, len(case.approvals) >= wanted, need, have, hint=hint)


_JUDGES = {
    Kind.METRIC: _metric,
    Kind.LATENCY: _latency,
    Kind.REGRESSION: _regression,
    Kind.COST: _cost,
    Kind.FRESHNESS: _freshness,
    Kind.SCAN: _scan,
    Kind.CERTIFICATE: _certificate,
    Kind.APPROVALS: _approvals,
}
assert set(_JUDGES) == set(Kind)
