"""`ground policy`: the rules that plans are judged by, their tests, their replay, and exceptions from them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, Moment, connect, output_option
from groundplane.cli.render import Cell, Table, Usd, View
from groundplane.cli.words import age, counted, moment
from groundplane.errors import InvalidInput, NotFound
from groundplane.settings import Settings

if TYPE_CHECKING:
    from groundplane.domain.policy.exceptions import PolicyException
    from groundplane.domain.policy.records import PlanMove, PolicyState, Replay, RuleInfo, RuleTestResult

FAILED_CODE = 9
"""What a test that says something else than it should ends with; as a run that did not succeed."""

_SEVERITIES = {"refuse": "refuses", "approve": "asks", "warn": "warns"}


@click.group(cls=Listing)
def policy() -> None:
    """List, test, replay and reload the rules that plans are judged by, and except from them."""


@policy.command("list")
@click.option("--over", type=click.Choice(["spec", "plan", "endpoint", "model", "request"]), help="Only rules over it.")
@output_option
def list_(over: str | None, output: str) -> None:
    """List the rules in force: what each does when it is broken, and where it is from."""
    with connect() as client:
        state = client.policy()
    rules = [rule for rule in state.rules if over in (None, rule.over)]
    render.show(state, output, lambda: [_head(state), _rules_table(rules)])
    if output == "table":
        _say_state(state)


@policy.command("show")
@click.argument("rule_id", metavar="RULE")
@output_option
def show(rule_id: str, output: str) -> None:
    """Show one rule: its condition, why it is there, and the way forward it names."""
    with connect() as client:
        rule = client.policy_rule(rule_id)
    render.show(rule, output, lambda: _rule_views(rule))


@policy.command("test")
@click.argument("paths", nargs=-1, type=click.Path(), metavar="[FILE|FOLDER]...")
@click.option("--built-in/--no-built-in", default=True, show_default=True, help="The built-in rules' tests, too.")
@output_option
def test(paths: tuple[str, ...], built_in: bool, output: str) -> int:
    """Run the tests inside policy files, here, without a control plane.

    Without a path the folder of GROUND_POLICY (else policy under GROUND_HOME) is taken. Exits with 9 when a test says
    something else than it should, with 2 when a file can't be used.
    """
    from groundplane.domain.policy import rule_set  # noqa: PLC0415 - loads CEL, which other commands don't need

    texts = _texts(paths or _default_folder())
    files = rule_set.read_files(texts)
    rules = rule_set.build(files)
    tested = (*((rule_set.built_in_file(),) if built_in else ()), *files)
    results = rule_set.run_tests(tested, rules.settings)
    untested = [rule.id for file in files for rule in file.rules if not rule.tests]
    render.show(results, output, lambda: _results_views(results))
    if output == "table":
        for id in untested:
            render.say(f"rule {id} has no tests")
    return 0 if all(result.passed for result in results) else FAILED_CODE


@policy.command("replay")
@click.argument("paths", nargs=-1, required=True, type=click.Path(), metavar="FILE...")
@click.option("--since", type=Moment(ahead=False), default="30d", show_default=True, help="How far to look back.")
@output_option
def replay(paths: tuple[str, ...], since: datetime, output: str) -> None:
    """Show which past plans would have been judged otherwise with these files in force.

    A file replaces the one of its name in force and is added otherwise. Nothing is stored and no plan changes.
    """
    with connect() as client:
        made = client.replay_policy(_texts(paths), since)
    render.show(made, output, lambda: _replay_views(made))


@policy.command("reload")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def reload(reason: str, output: str) -> None:
    """Put the policy folder in force as it is now: all of it, or nothing when a file has a fault."""
    with connect() as client:
        state = client.reload_policy(reason)
    render.show(state, output, lambda: [_head(state)])


@policy.command("check")
@click.argument("request_id", metavar="REQUEST")
@output_option
def check(request_id: str, output: str) -> None:
    """Say what the rules over requests make of one."""
    with connect() as client:
        verdicts = client.request_verdicts(request_id)
    rows = [(v.rule, *_word(v.refused is not None, v.approval, v.warning, str(v.refused)), v.why) for v in verdicts]
    empty = "no rule is over requests"
    render.show(verdicts, output, lambda: [Table(("RULE", "VERDICT", "SAYS", "WHY"), rows, empty=empty)])


# ---------------------------------------------------------------- exceptions


@policy.group("except", cls=Listing)
def exceptions() -> None:
    """Lift a rule for a while: owned, reasoned, ending by itself."""


@exceptions.command("add")
@click.argument("rule_id", metavar="RULE")
@click.option("--project", required=True, help="For whose work.")
@click.option("--name", default="", help="Only for the spec of this name; for all of the project when left out.")
@click.option("--owner", default="", help="Who answers for it; you when left out.")
@click.option("--reason", required=True, help="Why the rule does not hold here.")
@click.option("--expires", type=Moment(ahead=True), required=True, metavar="TIME", help="A date, or a duration: 14d.")
@output_option
def add_exception(
    rule_id: str, project: str, name: str, owner: str, reason: str, expires: datetime, output: str
) -> None:
    """Lift a rule until the exception expires. Plans made before stay as they are: plan again."""
    with connect() as client:
        made = client.add_policy_exception(
            rule=rule_id,
            project=project,
            name=name,
            owner=owner or client.whoami().name,
            reason=reason,
            expires_at=expires,
        )
    render.show(made, output, lambda: [_exceptions_table([made])])


@exceptions.command("list")
@click.option("--project", help="Of one project.")
@click.option("--all", "over_too", is_flag=True, help="Those that have ended, too.")
@output_option
def list_exceptions(project: str | None, over_too: bool, output: str) -> None:
    """List exceptions, soonest to end first."""
    with connect() as client:
        found = client.policy_exceptions(project=project, over_too=over_too)
    render.show(found, output, lambda: [_exceptions_table(found)])


@exceptions.command("remove")
@click.argument("exception_id", metavar="EXCEPTION")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def remove_exception(exception_id: str, reason: str, output: str) -> None:
    """End an exception now."""
    with connect() as client:
        ended = client.remove_policy_exception(exception_id, reason)
    render.show(ended, output, lambda: [f"{ended.rule} holds again for {_scope(ended)}"])


# ---------------------------------------------------------------- files


def _default_folder() -> tuple[str, ...]:
    settings = Settings.from_env()
    folder = Path(settings.policy_dir).expanduser() if settings.policy_dir else settings.home / "policy"
    return (str(folder),) if folder.is_dir() else ()


def _texts(paths: Sequence[str]) -> dict[str, str]:
    """The files' texts by name; a folder stands for the YAML files in it."""
    found: dict[str, str] = {}
    for given in paths:
        path = Path(given)
        files = sorted(_policy_files(path)) if path.is_dir() else [path]
        for file in files:
            if file.name in found:
                raise InvalidInput(f"two files are called {file.name}", "rename one: files are told apart by name")
            found[file.name] = _text(file)
    return found


def _policy_files(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix in {".yaml", ".yml"} and not p.name.startswith(".")]


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read((1 << 20) + 1)
    except FileNotFoundError:
        raise NotFound(f"no file {path}", "give the path of a policy file") from None
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", "give the path of a policy file") from None
    if len(data) > 1 << 20:
        raise InvalidInput(f"{path} is over 1 MiB", "split it into several files")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text (byte {error.start})", "save it as UTF-8") from None


# ---------------------------------------------------------------- for people


def _head(state: PolicyState) -> str:
    files = f"{counted(len(state.files), 'file')} of {state.folder}" if state.files else ""
    return (
        f"{len(state.rules)} rules, version {state.version[:12]}, in force since {moment(state.loaded_at)}"
        f"{f', with {files}' if files else ', built-in ones alone'}"
    )


def _say_state(state: PolicyState) -> None:
    for problem in state.problems:
        render.say(f"not in force: {problem}")
    if state.problems:
        render.say("what was last in force stays; mend the file, then: ground policy reload")
    elif state.pending:
        render.say("the folder has changed since: ground policy test, then ground policy reload")


def _rules_table(rules: Sequence[RuleInfo]) -> Table:
    rows = [
        (
            rule.id,
            rule.over,
            _SEVERITIES[rule.severity] if rule.enabled else "off",
            "locked" if rule.locked else "",
            rule.changed_by or rule.source,
            rule.off_because or rule.why,
        )
        for rule in rules
    ]
    return Table(("RULE", "OVER", "BROKEN", "CHANGE", "FROM", "WHY"), rows)


def _rule_views(rule: RuleInfo) -> list[View]:
    changed = f", changed at {rule.changed_by}" if rule.changed_by else ""
    lines: list[View] = [
        f"{rule.id}: over a {rule.over}; {_SEVERITIES[rule.severity]} when it is broken"
        + ("" if rule.enabled else f"; OFF: {rule.off_because}"),
        f"  why         {rule.why}",
        f"  condition   {rule.text or 'in Python'}",
        f"  hint        {rule.hint}",
        f"  from        {rule.source}{changed}, {counted(rule.tests, 'test')} inside",
    ]
    if rule.locked:
        lines.append("  locked      nobody is excepted, and no file changes it")
    return lines


def _results_views(results: Sequence[RuleTestResult]) -> list[View]:
    failed = [each for each in results if not each.passed]
    views: list[View] = [f"{len(results) - len(failed)} of {len(results)} tests pass"]
    if failed:
        rows = [(e.source, e.rule, e.name, e.expected, e.got, e.said) for e in failed]
        views.append(Table(("AT", "RULE", "TEST", "EXPECTED", "GOT", "SAYS"), rows))
    return views


def _replay_views(made: Replay) -> list[View]:
    views: list[View] = [
        f"{made.plans} plans since {moment(made.since)}: {made.changed_count} would have been judged otherwise, "
        f"{made.newly_refused} refused that were not, {made.newly_allowed} allowed that were refused"
    ]
    rows = [_move_row(move) for move in made.changed]
    if rows:
        columns = ("PLAN", "MADE", "PROJECT", "NAME", "OWNER", "WORST CASE", "THEN", "NOW", "BECAUSE")
        views.append(Table(columns, rows, right=frozenset({"WORST CASE"})))
    if made.changed_count > len(rows):
        views.append(f"… and {made.changed_count - len(rows)} more")
    views += [f"not replayed: {count} × {why}" for why, count in made.unplayed.items()]
    if made.kept:
        views.append(
            f"{len(made.kept)} rules and checks look at what a plan does not keep, and were not judged anew; "
            f"their word of then stands: {', '.join(made.kept)}"
        )
    if made.truncated:
        views.append("older plans since then were not looked at; choose a later --since")
    return views


def _move_row(move: PlanMove) -> tuple[Cell, ...]:
    because = "; ".join(f"{each.rule}: {each.before} → {each.after} ({each.said})" for each in move.moves)
    return (
        move.plan,
        moment(move.created_at),
        move.project,
        move.name,
        move.owner,
        Usd(move.worst_case_microusd),
        move.before,
        move.after,
        because,
    )


def _exceptions_table(found: Sequence[PolicyException]) -> Table:
    now = datetime.now(UTC)
    rows = [
        (
            each.id,
            each.rule,
            each.project,
            each.name or "all",
            each.owner,
            f"in {age(now, each.expires_at)}" if each.expires_at > now else "expired",
            moment(each.expires_at),
            each.reason,
        )
        for each in found
    ]
    columns = ("EXCEPTION", "RULE", "PROJECT", "NAME", "OWNER", "ENDS", "AT", "REASON")
    return Table(columns, rows, empty="nobody is excepted from any rule")


def _scope(each: PolicyException) -> str:
    return f"{each.name} of project {each.project}" if each.name else f"project {each.project}"


def _word(refused: bool, approval: str, warning: str, said: str) -> tuple[str, str]:
    if refused:
        return "refuses", said
    if approval:
        return "asks", approval
    return ("warns", warning) if warning else ("ok", "")
