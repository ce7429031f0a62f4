"""The only module that prints. Results go to standard output, everything said about them to standard error.

Tables are for people and may change; `-o json` and `-o yaml` are exact and stable. Colour only on a terminal, and never
where NO_COLOR is set; no meaning is carried by colour alone.
"""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from groundplane.units import format_usd, usd_decimals

if TYPE_CHECKING:
    from groundplane.errors import GroundError, Problem, Refused

SILENCE_MAX_S = 2.0
STYLES = {
    **dict.fromkeys(("ready", "running", "succeeded", "ok", "up", "pass", "active", "approved"), "green"),
    **dict.fromkeys(("failed", "refused", "down", "revoked", "expired", "broken", "refuses", "rejected"), "red"),
    **dict.fromkeys(("pending", "starting", "deploying", "stopping", "warns", "waiting", "needs-approval"), "yellow"),
    **dict.fromkeys(("stopped", "applied", "voided", "posted"), "dim"),
}


@dataclass(frozen=True, slots=True)
class Usd:
    """An amount in a table's cell: all of a column get the same decimals. `exact` is for prices."""

    microusd: int
    exact: bool = False


Cell = str | Usd


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings. `right` names the columns of figures. `empty` is said instead of a table without rows."""

    columns: tuple[str, ...]
    rows: Sequence[Sequence[Cell]]
    right: frozenset[str] = frozenset()
    empty: str = "nothing here yet"
    title: str = ""


View = Table | str
"""A table, or a line of text."""


def show(value: Any, output: str, view: Callable[[], Sequence[View]]) -> None:
    """A result: `value` exactly as JSON or YAML, or `view()` for people."""
    if output == "json":
        import msgspec  # noqa: PLC0415 - loaded by the commands that print data

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
    elif output == "yaml":
        import msgspec  # noqa: PLC0415
        import yaml  # noqa: PLC0415

        plain = msgspec.to_builtins(value)
        sys.stdout.write(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=100))
    else:
        _print_views(view(), sys.stdout)
    sys.stdout.flush()


def views(*parts: View) -> None:
    """Tables and lines about a result, on standard error: what a person reads before answering a question."""
    _print_views(parts, sys.stderr)


def text(document: str) -> None:
    """A document of several lines, such as Markdown, as result."""
    kept = "\n".join(clean(each) for each in document.split("\n"))
    sys.stdout.write(kept if kept.endswith("\n") else kept + "\n")
    sys.stdout.flush()


def line(text: str) -> None:
    """One line of result."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def raw(data: bytes) -> None:
    """Bytes of result, untouched: a job's log is not ours to edit."""
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def say(text: str) -> None:
    """One line about what is happening."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def error(failure: GroundError) -> None:
    """`error:` one line, every problem or refusal under it when there are several, then `hint:` the way forward."""
    source = str(failure.details.get("source", ""))
    problems: tuple[Problem, ...] = getattr(failure, "problems", ())
    refusals: tuple[Refused, ...] = getattr(failure, "refusals", ())
    lines = [(_where(problem, source), problem.hint) for problem in problems]
    lines += [(str(refused), refused.hint) for refused in refusals]
    if len(lines) > 1:
        what = f"{source or 'the input'} has {len(lines)} problems" if problems else f"refused for {len(lines)} reasons"
        _styled("error:", "bold red", what)
        for text, way in lines:
            sys.stderr.write(f"  {clean(text)}\n" + (f"    {clean(way)}\n" if way else ""))
        return
    text, hint = lines[0] if lines else (failure.message, failure.hint)
    _styled("error:", "bold red", text)
    if way := hint or failure.hint:
        _styled("hint:", "bold cyan", way)


def usage_error(message: str, command: str) -> None:
    _styled("error:", "bold red", message[:1].lower() + message[1:])
    _styled("hint:", "bold cyan", command)


def unexpected(failure: Exception, log: str) -> None:
    """A defect of ours: named, written down, never thrown at the reader."""
    what = f"{type(failure).__name__}: {failure}" if str(failure) else type(failure).__name__
    _styled("error:", "bold red", f"unexpected {what.splitlines()[0]}")
    _styled("hint:", "bold cyan", f"this is a defect of ours; the details are in {log}")


def interrupted() -> None:
    sys.stderr.write("\ninterrupted\n")


def is_terminal() -> bool:
    """Whether a person can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> bool:
    """y or N, on standard error, so that standard output stays a result."""
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def prompt(question: str) -> str:
    """One line of text, asked for on standard error; empty when there is none."""
    sys.stderr.write(f"{clean(question)}: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip()


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Says on a terminal that an answer takes long, so that nobody takes it for a hang."""
    if not sys.stderr.isatty():
        yield
        return
    import threading  # noqa: PLC0415 - commands that only print don't need it

    telling = threading.Timer(SILENCE_MAX_S, say, ("still at it: the control plane has not answered yet",))
    telling.daemon = True
    telling.start()
    try:
        yield
    finally:
        telling.cancel()


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere. Yields the function that adds to it."""
    if not sys.stderr.isatty():
        yield lambda amount: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda amount: bar.advance(task, amount)


def clean(text: str) -> str:
    """Without control characters: a name from elsewhere must not steer the terminal. Newlines become spaces."""
    if text.isprintable():
        return text
    kept = (" " if character in "\n\t" else character for character in text)
    return "".join(
        character if unicodedata.category(character) != "Cc" else "\N{REPLACEMENT CHARACTER}" for character in kept
    )


def _where(problem: Problem, source: str) -> str:
    """`job.yaml:7: spec.resources.gpus: unknown field`, as editors and compilers write it."""
    if not (source and problem.line):
        return str(problem)
    return f"{source}:{problem.line}: " + (f"{problem.field}: {problem.message}" if problem.field else problem.message)


def _styled(label: str, style: str, text: str) -> None:
    codes = {"bold red": "\x1b[1;31m", "bold cyan": "\x1b[1;36m"}
    shown = f"{codes[style]}{label}\x1b[0m" if _coloured(sys.stderr) else label
    sys.stderr.write(f"{shown} {clean(text)}\n")


def _coloured(stream: Any) -> bool:
    return bool(stream.isatty()) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _print_views(parts: Sequence[View], stream: Any) -> None:
    for number, part in enumerate(parts):
        if isinstance(part, str):
            stream.write(clean(part) + "\n")
            continue
        if number:
            stream.write("\n")
        if part.title:
            stream.write(clean(part.title) + "\n")
        if not part.rows:
            stream.write(clean(part.empty) + "\n")
        elif stream.isatty():
            _rich_table(part, stream)
        else:
            _plain_table(part, stream)
    stream.flush()


def _texts(table: Table) -> Iterator[tuple[str, ...]]:
    """The rows with their amounts written out."""
    columns = []
    for column in zip(*table.rows, strict=True):
        amounts = [cell for cell in column if isinstance(cell, Usd)]
        decimals = max((usd_decimals([each.microusd], exact=each.exact) for each in amounts), default=0)
        columns.append([format_usd(each.microusd, decimals) if isinstance(each, Usd) else each for each in column])
    return zip(*columns, strict=True)


def _plain_table(table: Table, stream: Any) -> None:
    """Aligned columns without colour or cut: what `awk` and `grep` expect."""
    cells = [[clean(cell) or "-" for cell in row] for row in _texts(table)]
    widths = [max(_width(row[at]) for row in [list(table.columns), *cells]) for at in range(len(table.columns))]
    for row in [list(table.columns), *cells]:
        parts = [
            " " * (width - _width(cell)) + cell if name in table.right else cell + " " * (width - _width(cell))
            for cell, width, name in zip(row, widths, table.columns, strict=True)
        ]
        stream.write("  ".join(parts).rstrip() + "\n")


def _width(text: str) -> int:
    wide = sum(1 for character in text if unicodedata.east_asian_width(character) in "WF")
    marks = sum(1 for character in text if unicodedata.combining(character))
    return len(text) + wide - marks


def _rich_table(table: Table, stream: Any) -> None:
    from rich.console import Console  # noqa: PLC0415 - a fifth of a second that pipes need not pay
    from rich.table import Table as RichTable  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = RichTable(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in table.columns:
        drawn.add_column(name, justify="right" if name in table.right else "left", overflow="fold")
    for row in _texts(table):
        drawn.add_row(*(Text(clean(cell) or "-", style=STYLES.get(cell.lower(), "")) for cell in row))
    Console(file=stream, highlight=False).print(drawn)
