"""`ground request`: a pasted message becomes work items, questions, risks, and specs to plan."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table, View
from groundplane.cli.words import age, counted, moment
from groundplane.domain.intake import MESSAGE_MAX_BYTES, SPEC_KINDS, QuotaFact, WorkItem
from groundplane.domain.intake.facts import known_fact, shown
from groundplane.domain.intake.request import Request, RequestStatus, Specs
from groundplane.errors import InvalidInput, NotFound, TooLarge
from groundplane.units import format_bytes

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.domain.planning.plan import Verdict
    from groundplane.wire.requests import SpecsBody

_QUOTA = re.compile(
    r"""(?P<cloud>[a-z-]+)(?:/(?P<region>[a-z0-9-]+))?(?:/(?P<family>[\w.-]+))?
    =(?:(?P<left>\d{1,9})[ ]of[ ])?(?P<limit>\d{1,9})[ ]?(?P<unit>gpu|vcpu)?s?
    (?:@(?P<low>\d{1,4})-(?P<high>\d{1,4})h?)?""",
    re.IGNORECASE | re.VERBOSE,
)


class _Requests(click.Group):
    """`ground request FILE` means `ground request new FILE`: pasting is what people come for."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = next((arg for arg in args if not arg.startswith("-") or arg == "-"), None)
        if (first is None and args and args[0] not in {"-h", "--help"}) or (first and first not in self.commands):
            args = ["new", *args]
        elif not args and not sys.stdin.isatty():
            args = ["new", "-"]
        return super().parse_args(ctx, args)


@click.group(cls=_Requests, name="request")
def request() -> None:
    """Turn a pasted message into work items, questions, risks and specs.

    ground request FILE reads a file, ground request - standard input. Each is short for ground request new.
    """


def _answers_option(command: click.decorators.FC) -> click.decorators.FC:
    return click.option(
        "-a", "--answer", "answers", multiple=True, metavar="FACT=VALUE",
        help="Answers a question: owner=ana for every item, 2.model=tiny-lm@1 for item 2. May be repeated.",
    )(command)  # fmt: skip


@request.command()
@click.argument("path", default="-", metavar="[FILE|-]")
@click.option("--project", help="Whose request it is; a key of a project says so itself.")
@_answers_option
@click.option(
    "--quota",
    "quotas",
    multiple=True,
    metavar="CLOUD[/REGION[/FAMILY]]=LIMIT",
    help="A known quota, such as azure/eastus=0, or azure/eastus=48 of 96 vCPU@24-72h with its lead time in hours.",
)
@click.option("--ask/--no-ask", default=None, help="Ask for what is missing; on a terminal it does unless told not to.")
@output_option
def new(
    path: str, project: str | None, answers: tuple[str, ...], quotas: tuple[str, ...], ask: bool | None, output: str
) -> None:
    """Read a message (a file, or - for standard input) and store what it asks for."""
    given = _given(answers)
    stated = tuple(_quota(text) for text in quotas)
    message = _message(path)
    with connect() as client:
        made = client.create_request(message, project=project, quotas=stated)
        if given:
            made = client.answer_request(made.id, given)
        wants_to_ask = render.is_terminal() and path != "-" if ask is None else ask
        if wants_to_ask and output == "table":
            render.views(*request_views(made))
            made = _interview(client, made)
        render.show(made, output, lambda: request_views(made))
    if output == "table":
        _say_next(made)


@request.command()
@click.argument("request_id", metavar="REQUEST")
@output_option
def show(request_id: str, output: str) -> None:
    """Show a request: what it asks for, what is missing, what is at risk."""
    with connect() as client:
        found = client.request(request_id)
        verdicts = client.request_verdicts(request_id) if output == "table" else []
    render.show(found, output, lambda: [*request_views(found), *_verdict_views(verdicts)])
    if output == "table":
        _say_next(found)


@request.command(name="list")
@click.option("--project", help="Only this project's.")
@click.option("--status", type=click.Choice([status.value for status in RequestStatus]), help="Only these.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True)
@output_option
def list_(project: str | None, status: str | None, limit: int, output: str) -> None:
    """List requests, newest first."""
    with connect() as client:
        found = client.requests(project=project, status=status, limit=limit)
    render.show(found, output, lambda: [_list_table(found)])


@request.command()
@click.argument("request_id", metavar="REQUEST")
@_answers_option
@output_option
def answer(request_id: str, answers: tuple[str, ...], output: str) -> None:
    """Answer questions with -a FACT=VALUE; without any, on a terminal, be asked. FACT= takes an answer back."""
    given = _given(answers, may_be_empty=True)
    with connect() as client:
        if given:
            found = client.answer_request(request_id, given)
        elif render.is_terminal():
            found = _interview(client, client.request(request_id))
        else:
            raise InvalidInput("no answer is given, and there is no terminal to ask on", "add -a owner=ana")
    render.show(found, output, lambda: request_views(found))
    if output == "table":
        _say_next(found)


@request.command()
@click.argument("request_id", metavar="REQUEST")
@output_option
def specs(request_id: str, output: str) -> None:
    """Print the specs, ready for ground plan -f -; what is still missing goes to standard error."""
    with connect() as client:
        made = client.request_specs(request_id)
    if output != "table":
        render.show(made, output, list)
        return
    if made.yaml:
        render.line(made.yaml.rstrip("\n"))
    _say_missing(made, request_id)


@request.command()
@click.argument("request_id", metavar="REQUEST")
@click.option("--reason", default="", help="Why; written to the audit trail.")
@output_option
def close(request_id: str, reason: str, output: str) -> None:
    """Close a request for good. It can still be read."""
    with connect() as client:
        closed = client.close_request(request_id, reason)
    render.show(closed, output, lambda: [f"request {closed.id} is {closed.status}"])


# ---------------------------------------------------------------- words


def request_views(found: Request) -> list[View]:
    """A request for people: each item with its facts, questions and risks, then jargon and notes."""
    whose = f"project {found.project}" if found.project else "no project yet"
    lines: list[View] = [f"{found.id}: {counted(len(found.intake.items), 'item')}, {found.status}, {whose}"]
    for item in found.intake.items:
        lines += _item_views(found, item)
    if shared := found.intake.shared:
        lines.append("")
        lines.append("holds for every item: " + ", ".join(f"{known_fact(f.name).label} {shown(f)}" for f in shared))
    if found.answers:
        lines.append("answered: " + ", ".join(f"{key}={text}" for key, text in found.answers.items()))
    for risk in found.intake.risks:
        lines.append(f"{risk.level} risk: {risk.message}")
    for term in found.intake.jargon:
        because = f" ({term.because})" if term.because else ""
        lines.append(f"{term.term}: {term.means}: {term.explanation}{because}")
    for fix in found.intake.corrections:
        lines.append(f"read {fix.written!r} as {fix.read_as!r}")
    for span in found.intake.not_understood:
        lines.append(f"not understood: {_piece(found.message, span.start, span.end)}")
    for made in found.suggestions:
        lines.append(
            f"suggestion by {made.source}, not taken: {made.item}.{made.fact}={made.value} (from {made.quote!r})"
        )
    if found.suggestions_note:
        lines.append(found.suggestions_note)
    return lines


def _verdict_views(verdicts: Sequence[Verdict]) -> list[View]:
    """What policy says of the request; rules that are kept are counted."""
    rows = [
        (verdict.rule, word, verdict.why, str(verdict.refused or verdict.approval or verdict.warning))
        for verdict in verdicts
        if (word := "refuses" if verdict.refused else "asks" if verdict.approval else "warns" * bool(verdict.warning))
    ]
    if not verdicts:
        return []
    kept = f"policy: {len(verdicts) - len(rows)} of {len(verdicts)} rules over requests are kept"
    return ["", kept, *([Table(("RULE", "SAYS", "WHY", "BECAUSE"), rows)] if rows else [])]


def _item_views(found: Request, item: WorkItem) -> list[View]:
    lines: list[View] = ["", f"{item.number}. {item.title}  [{item.kind}]"]
    lines += [f'   "{_piece(found.message, span.start, span.end)}"' for span in item.sentences[:4]]
    facts = [(known_fact(f.name).label, shown(f), f.text, f.note) for f in item.facts]
    if facts:
        lines.append(Table(("KNOWN", "VALUE", "FROM", "NOTE"), facts))
    asked = [
        (q.fact, "yes" if q.required else "", q.why, " | ".join(q.choices) or known_fact(q.fact).example)
        for q in sorted(item.questions, key=lambda question: not question.required)
    ]
    if asked:
        lines.append(Table(("MISSING", "NEEDED", "WHY", "SUCH AS"), asked))
    risky = [(risk.level, risk.message, risk.hint) for risk in item.risks]
    if risky:
        lines.append(Table(("RISK", "WHAT", "WAY FORWARD"), risky))
    return lines


def _list_table(found: Sequence[Request]) -> Table:
    rows = [
        (
            each.id,
            each.project,
            each.status.value,
            str(len(each.intake.items)),
            str(sum(q.required for item in each.intake.items for q in item.questions)),
            moment(each.created_at),
            age(each.created_at, each.updated_at),
            _piece(each.message, 0, 60),
        )
        for each in found
    ]
    return Table(
        ("REQUEST", "PROJECT", "STATUS", "ITEMS", "MISSING", "CREATED", "ANSWERED AFTER", "MESSAGE"),
        rows,
        right=frozenset({"ITEMS", "MISSING"}),
        empty="no requests; ground request FILE reads one",
    )


def _say_next(found: Request) -> None:
    if found.status is RequestStatus.READY:
        render.say(f"plan it: ground request specs {found.id} | ground plan -f -")
    elif found.status is RequestStatus.OPEN:
        first = next((q for item in found.intake.items for q in item.questions if q.required), None)
        if first is not None:
            render.say(f"answer it: ground request answer {found.id} -a {first.how}")
        elif not any(item.kind in SPEC_KINDS for item in found.intake.items):
            render.say(f"what to do: ground request specs {found.id}; then ground request close {found.id}")


def _say_missing(made: Specs | SpecsBody, request_id: str) -> None:
    for step in made.steps:
        render.say(f"item {step.item} ({step.kind}): {step.what}")
    for each in made.missing:
        render.say(f"item {each.item} lacks {each.fact}: {each.why}")
    if made.missing:
        render.say(f"answer it: ground request answer {request_id} -a {made.missing[0].how}")


def _piece(message: str, start: int, end: int) -> str:
    text = " ".join(message[start:end].split())
    return text if len(text) <= 160 else f"{text[:159]}…"


# ---------------------------------------------------------------- input


def _interview(client: Client, found: Request) -> Request:
    """Asks for each required fact once; an empty line leaves it open. Wrong answers are asked for again."""
    asked: set[str] = set()
    while True:
        question = next(
            (q for item in found.intake.items for q in item.questions if q.required and q.fact not in asked), None
        )
        if question is None:
            return found
        such_as = " | ".join(question.choices) or known_fact(question.fact).example
        text = render.prompt(f"{question.fact} ({question.why}) [{such_as}; empty leaves it open]")
        if not text:
            asked.add(question.fact)
            continue
        try:
            found = client.answer_request(found.id, {question.fact: text})
            asked.add(question.fact)
        except InvalidInput as error:
            render.error(error)


def _given(answers: Sequence[str], *, may_be_empty: bool = False) -> dict[str, str]:
    given: dict[str, str] = {}
    for each in answers:
        fact, equals, text = each.partition("=")
        if not equals or not fact.strip() or not (text.strip() or may_be_empty):
            raise InvalidInput(f"{each!r} is no answer", "write it like -a owner=ana, or -a 2.model=tiny-lm@1")
        given[fact.strip()] = text.strip()
    return given


def _quota(text: str) -> QuotaFact:
    match = _QUOTA.fullmatch(text.strip())
    if match is None:
        raise InvalidInput(f"{text!r} is no quota", "write it like azure/eastus=0 or azure/eastus=48 of 96 vCPU@24-72h")
    return QuotaFact(
        cloud=match["cloud"].lower(),
        region=(match["region"] or "").lower(),
        family=match["family"] or "",
        limit=int(match["limit"]),
        # "48 of 96" is how much is left of how much.
        used=int(match["limit"]) - min(int(match["left"]), int(match["limit"])) if match["left"] else 0,
        unit="GPU" if (match["unit"] or "").lower() == "gpu" else "vCPU",
        lead_time_low_h=int(match["low"]) if match["low"] else None,
        lead_time_high_h=int(match["high"]) if match["high"] else None,
        source="stated with the request",
    )


def _message(path: str) -> str:
    source = "standard input" if path == "-" else path
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MESSAGE_MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as file:
                data = file.read(MESSAGE_MAX_BYTES + 1)
        text = data.decode()
    except FileNotFoundError:
        raise NotFound(f"no file {path}", "give the path of a message: ground request message.txt, or -") from None
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", "give the path of a text file") from None
    except UnicodeDecodeError as error:
        if len(data) <= MESSAGE_MAX_BYTES:
            hint = "save the message as UTF-8"
            raise InvalidInput(f"{source} is not UTF-8 text (byte {error.start})", hint) from None
        text = ""
    if len(data) > MESSAGE_MAX_BYTES:
        raise TooLarge(f"{source} is over {format_bytes(MESSAGE_MAX_BYTES)}", "paste it without attachments and logs")
    return text
