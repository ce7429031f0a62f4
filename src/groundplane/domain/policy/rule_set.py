"""The rules in force, put together once: built-in ones, the operator's files over them, settings, a digest.

`build` refuses files that contradict each other; `RuleSet.judge` says every rule's word on a plan.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from groundplane.domain.intake.request import Request
from groundplane.domain.planning.checks import CHECKS
from groundplane.domain.planning.plan import Verdict
from groundplane.domain.policy.builtin import RULES
from groundplane.domain.policy.defaults import DEFAULTS, DEFAULTS_NAME
from groundplane.domain.policy.expressions import ExpressionFault, Message, Values
from groundplane.domain.policy.records import RuleInfo, RuleTestResult
from groundplane.domain.policy.rule import Finding, Rule, Subject
from groundplane.domain.policy.rule_files import (
    DeclaredRule,
    PolicyFile,
    RuleChange,
    Severity,
    faults_as_error,
    read_policy_file,
)
from groundplane.domain.policy.sample import sample_view, schema
from groundplane.domain.policy.view import PolicySettings, plan_view, request_view
from groundplane.domain.spec import EndpointSpec
from groundplane.errors import InvalidInput, Problem, Refused

LOCKED = frozenset(
    {
        "owner", "cost-center", "limits-set", "command", "end-date-ahead", "pool-known", "offer-fits", "max-cost",
        "model-exists", "public-needs-exposure", "policy-input",
    }
)  # fmt: skip
"""Rules that the rest of the house rests on: nobody is excepted, no file changes them."""

MAX_RULES = 2_000

_LIMITS = {
    "self-service-accelerators": "Much hardware at once is a team's decision.",
    "self-service-plan": "Much money at once is a team's decision.",
    "self-service-month": "Many small plans are a large one.",
}
"""What `domain.approval` asks beyond a project's own limits."""

_ELSEWHERE = frozenset({*_LIMITS, *(check.id for check in CHECKS)})
"""Names of what else judges a plan: a verdict has one author."""

_MEND = "an operator mends the rule; ground policy test shows it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A rule with what the operator's files say of it. `changed_by` is the file and line of that word."""

    rule: Rule | DeclaredRule
    severity: Severity
    enabled: bool = True
    off_because: str = ""
    hint: Message | None = None
    changed_by: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """Immutable; swapped whole. `version` is the SHA-256 hex of everything that can change a verdict."""

    settings: PolicySettings
    judged: tuple[Judged, ...]
    version: str

    def judge(self, subject: Subject, *, at_apply: bool = False) -> tuple[Verdict, ...]:
        """Every rule's word on a plan: a rule that can't be judged refuses, unless it would only warn."""
        subject = replace(
            subject, horizon_days=self.settings.end_date_days, price_stale_days=self.settings.price_stale_days
        )
        built_in = [
            _verdict_of_python(each, each.rule, subject)
            for each in self.judged
            if each.enabled and isinstance(each.rule, Rule) and (each.rule.at_apply or not at_apply)
        ]
        about = {"spec", "plan"}
        if isinstance(subject.spec, EndpointSpec):
            about |= {"endpoint", "model"} if subject.model is not None else {"endpoint"}
        return (*built_in, *self.declared(plan_view(subject, self.settings), about))

    def judge_request(self, request: Request, now: datetime) -> tuple[Verdict, ...]:
        """The word of every rule over requests."""
        return self.declared(request_view(request, now, self.settings), {"request"})

    def declared(self, view: Mapping[str, object], about: Iterable[str]) -> tuple[Verdict, ...]:
        """The verdicts of the rules in CEL over one of `about`. One verdict when no rule can look at the subject."""
        asked = [
            (each, each.rule)
            for each in self.judged
            if each.enabled and isinstance(each.rule, DeclaredRule) and each.rule.over in set(about)
        ]
        if not asked:
            return ()
        try:
            values = Values(view)
        except ExpressionFault as fault:
            seen = Finding(need="values that rules may look at", have=fault.message, hint=fault.hint)
            return (_broken("policy-input", "Nothing passes unseen.", Severity.REFUSE, seen),)
        return tuple(_verdict_of_expression(each, rule, values) for each, rule in asked)

    def digests(self) -> dict[str, str]:
        """Each rule's own digest by its id, and that of the settings: what of a set differs from another."""
        found = {each.rule.id: _digest(_essence(each)) for each in self.judged}
        return {"settings": _digest(asdict(self.settings)), **found}

    def rule(self, id: str) -> Judged | None:
        return next((each for each in self.judged if each.rule.id == id), None)

    def infos(self) -> tuple[RuleInfo, ...]:
        """Every rule for people; with them what else judges each plan, by sums (`plan_checks`) and projects' limits."""
        sums = (_elsewhere(each.id, each.why, Severity.WARN if each.warns else Severity.REFUSE) for each in CHECKS)
        limits = (_elsewhere(id, why, Severity.APPROVE) for id, why in _LIMITS.items())
        return (*(_info(each) for each in self.judged), *sums, *limits)


# ---------------------------------------------------------------- putting it together


@functools.cache
def built_in_file() -> PolicyFile:
    return read_policy_file(DEFAULTS_NAME, DEFAULTS, schema())


@functools.cache
def built_in() -> RuleSet:
    """The rules without any file of an operator's."""
    return build(())


def read_files(texts: Mapping[str, str]) -> tuple[PolicyFile, ...]:
    """Every file, by name. Raises InvalidInput with the faults of all of them."""
    files: list[PolicyFile] = []
    problems: list[Problem] = []
    for name in sorted(texts):
        try:
            files.append(read_policy_file(name, texts[name], schema()))
        except InvalidInput as error:
            problems += error.problems
    if problems:
        raise faults_as_error(problems)
    return tuple(files)


def build(files: Sequence[PolicyFile]) -> RuleSet:
    """Raises InvalidInput where files say two things of one rule or setting, or name a rule that nobody defines."""
    problems: list[Problem] = []
    if (count := sum(len(file.rules) for file in files)) > MAX_RULES:
        raise InvalidInput(
            f"{count:,} rules in all; the limit is {MAX_RULES:,}", "each is judged on every plan: merge some"
        )
    judged: dict[str, Judged] = {
        rule.id: Judged(rule=rule, severity=Severity.WARN if rule.warns else Severity.REFUSE) for rule in RULES
    }
    judged |= {rule.id: Judged(rule=rule, severity=rule.severity) for rule in built_in_file().rules}
    said: dict[str, str] = {}
    rules_first: list[DeclaredRule | RuleChange] = [rule for file in files for rule in file.rules]
    rules_first += [change for file in files for change in file.changes]
    for entry in rules_first:
        problem = _conflict(entry, judged, said)
        if problem:
            problems.append(problem)
            continue
        said[entry.id] = entry.source
        before = judged.get(entry.id)
        if isinstance(entry, DeclaredRule):
            changed = entry.source if before else ""
            judged[entry.id] = Judged(rule=entry, severity=entry.severity, changed_by=changed)
        elif before is not None:
            judged[entry.id] = replace(
                before, severity=entry.severity or before.severity, enabled=entry.enabled,
                off_because="" if entry.enabled else entry.why, hint=entry.hint or before.hint, changed_by=entry.source,
            )  # fmt: skip
    settings = _settings(files, problems)
    if problems:
        raise faults_as_error(problems)
    rules = tuple(judged.values())
    return RuleSet(settings=settings, judged=rules, version=_version(settings, rules))


def _conflict(
    entry: DeclaredRule | RuleChange, judged: Mapping[str, Judged], said: Mapping[str, str]
) -> Problem | None:
    if entry.id in said:
        return _problem(entry.source, f"rule {entry.id} is also at {said[entry.id]}", "keep one of them")
    if entry.id in LOCKED | _ELSEWHERE:
        hint = "the rest of the house rests on it; write a rule of another name"
        return _problem(entry.source, f"rule {entry.id} is locked", hint)
    if isinstance(entry, RuleChange) and entry.id not in judged:
        near = difflib.get_close_matches(entry.id, judged, 1, 0.6)
        hint = f"did you mean {near[0]}?" if near else "write when or require to define it"
        return _problem(entry.source, f"no rule {entry.id} is defined", hint)
    return None


def _settings(files: Sequence[PolicyFile], problems: list[Problem]) -> PolicySettings:
    found: dict[str, Any] = {}
    where: dict[str, str] = {}
    for file in files:
        for name, value in file.settings.items():
            source = f"{file.name}:{file.setting_lines[name]}"
            if name in found:
                problems.append(_problem(source, f"settings.{name} is also at {where[name]}", "keep one of them"))
            found[name], where[name] = value, source
    return PolicySettings(**found)


def _problem(source: str, message: str, hint: str) -> Problem:
    file, _, line = source.rpartition(":")
    return Problem(field=file, message=message, line=int(line), hint=hint)


def _version(settings: PolicySettings, rules: Sequence[Judged]) -> str:
    body = {"settings": asdict(settings), "rules": [_essence(each) for each in rules]}
    return _digest(body)


def _digest(body: object) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _essence(each: Judged) -> list[object]:
    """What can change a rule's verdict or its words; not where it is written."""
    rule = each.rule
    own: list[object] = [rule.id, each.severity.value, each.enabled, rule.why, each.hint.text if each.hint else ""]
    if isinstance(rule, DeclaredRule):
        own += [rule.over, rule.text, rule.need.text, rule.have.text, rule.hint.text]
    return own


# ---------------------------------------------------------------- judging


def _verdict_of_python(each: Judged, rule: Rule, subject: Subject) -> Verdict:
    found = rule.check(subject)
    if found is None:
        return Verdict(rule=rule.id, why=rule.why, refused=None)
    changed = each.hint.text if each.hint else ""
    return _broken(rule.id, rule.why, each.severity, replace(found, hint=changed or found.hint or rule.hint))


def _verdict_of_expression(each: Judged, rule: DeclaredRule, values: Values) -> Verdict:
    try:
        kept = (rule.when is not None and not rule.when.holds(values)) or (
            rule.require is not None and rule.require.holds(values)
        )
    except ExpressionFault as fault:
        severity = Severity.WARN if each.severity is Severity.WARN else Severity.REFUSE
        have = f"{fault.message} ({rule.source})"
        found = Finding(need="a rule that can be judged", have=have, hint=fault.hint or _MEND)
        return _broken(rule.id, rule.why, severity, found)
    if kept:
        return Verdict(rule=rule.id, why=rule.why, refused=None)
    hint = (each.hint or rule.hint).render(values)
    found = Finding(need=rule.need.render(values), have=rule.have.render(values), hint=hint)
    return _broken(rule.id, rule.why, each.severity, found)


def _broken(id: str, why: str, severity: Severity, found: Finding) -> Verdict:
    if severity is Severity.WARN:
        return Verdict(rule=id, why=why, refused=None, warning=f"{found.have}; {found.need}: {found.hint}")
    if severity is Severity.APPROVE:
        return Verdict(rule=id, why=why, refused=None, approval=f"{found.have}; {found.need}")
    return Verdict(rule=id, why=why, refused=Refused(rule=id, need=found.need, have=found.have, hint=found.hint))


def _elsewhere(id: str, why: str, severity: Severity) -> RuleInfo:
    hint = (
        "ask for approval: ground approvals"
        if severity is Severity.APPROVE
        else "the plan's own numbers say what would do"
    )
    return RuleInfo(
        id=id, over="plan", severity=severity.value, why=why, hint=hint, text="", source=DEFAULTS_NAME, enabled=True,
        locked=True, tests=0,
    )  # fmt: skip


def _info(each: Judged) -> RuleInfo:
    rule = each.rule
    declared = isinstance(rule, DeclaredRule)
    hint = each.hint.text if each.hint else (rule.hint.text if isinstance(rule, DeclaredRule) else rule.hint)
    source = rule.source if isinstance(rule, DeclaredRule) else DEFAULTS_NAME
    return RuleInfo(
        id=rule.id, over=rule.over if isinstance(rule, DeclaredRule) else "plan", severity=each.severity.value,
        why=rule.why, hint=hint, text=rule.text if isinstance(rule, DeclaredRule) else "",
        source=DEFAULTS_NAME if source.startswith(f"{DEFAULTS_NAME}:") else source, enabled=each.enabled,
        locked=rule.id in LOCKED, tests=len(rule.tests) if declared and isinstance(rule, DeclaredRule) else 0,
        off_because=each.off_because, changed_by=each.changed_by,
    )  # fmt: skip


# ---------------------------------------------------------------- tests inside files


def run_tests(files: Iterable[PolicyFile], settings: PolicySettings) -> tuple[RuleTestResult, ...]:
    """Every test of every rule of `files`, with the rule's own severity; fragments are laid over a good subject."""
    return tuple(
        _run_test(rule, test.name, test.given, test.expect, test.source, settings)
        for file in files
        for rule in file.rules
        for test in rule.tests
    )


def _run_test(
    rule: DeclaredRule, name: str, given: Mapping[str, Any], expect: str, source: str, settings: PolicySettings
) -> RuleTestResult:
    each = Judged(rule=rule, severity=rule.severity)
    try:
        verdict = _verdict_of_expression(each, rule, Values(_laid_over(sample_view(rule.over, settings), given)))
    except ExpressionFault as fault:
        return RuleTestResult(rule=rule.id, name=name, source=source, expected=expect, got="error", said=fault.message)
    got, said = outcome(verdict)
    if verdict.refused is not None and verdict.refused.need == "a rule that can be judged":
        got = "error"
    return RuleTestResult(rule=rule.id, name=name, source=source, expected=expect, got=got, said=said)


def outcome(verdict: Verdict) -> tuple[str, str]:
    """A verdict as one word, and its sentence: `refuse`, `approve`, `warn`, `excepted` or `pass`."""
    if verdict.refused is not None:
        return Severity.REFUSE.value, str(verdict.refused)
    if verdict.approval:
        return Severity.APPROVE.value, verdict.approval
    if verdict.warning:
        return Severity.WARN.value, verdict.warning
    return ("excepted", verdict.exception) if verdict.exception else ("pass", "")


def _laid_over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(base)
    for name, value in given.items():
        under = made.get(name)
        made[name] = _laid_over(under, value) if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return made


def reference() -> str:
    """docs/reference/policy.md."""
    lines = [
        "# Policy reference",
        "",
        "Generated from `src/groundplane/domain/policy/`; a test keeps them equal.",
        "Every plan shows each rule's verdict. A rule without a condition here is written in Python; a locked one",
        "can't be changed, switched off or excepted. How to write one's own: [guides/policy.md](../guides/policy.md).",
        "",
        "| rule | verdict | condition | why | way forward |",
        "|---|---|---|---|---|",
    ]
    words = {"refuse": "refuses", "warn": "warns", "approve": "asks for approval"}
    for info in built_in().infos():
        text = f"`{info.text}`".replace("|", "\\|") if info.text else "in Python"
        verdict = words[info.severity] + (", locked" if info.locked else "")
        lines.append(f"| `{info.id}` | {verdict} | {text} | {info.why} | {info.hint} |")
    return "\n".join(lines) + "\n"
