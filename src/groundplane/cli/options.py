"""What commands share: options, the opened client, and words turned into values."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from groundplane.cli import render
from groundplane.errors import InvalidInput
from groundplane.settings import Settings
from groundplane.units import parse_bytes, parse_duration_s, parse_usd

if TYPE_CHECKING:
    from groundplane.client import Client

INTERRUPTED_CODE = 130
"""What shells call the end by Ctrl-C; also that of a question answered with no."""

Command = TypeVar("Command", bound=Callable[..., Any])


_SAME = (("list", "ls"), ("remove", "delete", "rm"))
"""Words that people type for one another: each stands for the one that the group has."""


class Listing(click.Group):
    """A group that lists when no command is named: `ground models -o json` is `ground models list -o json`."""

    def __init__(self, *args: Any, bare: str = "list", **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self._bare = bare

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = [self._bare, *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        same = next((words for words in _SAME if cmd_name in words), ())
        return super().get_command(ctx, next((word for word in same if word in self.commands), cmd_name))


def output_option(command: Command) -> Command:
    """`-o table|json|yaml`: every command that reads has it."""
    option = click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json", "yaml"]),
        default="table",
        show_default=True,
        help="table is for people; json and yaml are exact.",
    )
    return option(command)


def connect() -> Client:
    """The client for GROUND_URL and GROUND_KEY."""
    # The HTTP library takes longer to import than most answers take: only commands that call pay for it.
    from groundplane.client import Client  # noqa: PLC0415

    client = Client.from_settings(Settings.from_env())
    client.patience = render.patience
    return client


def agreed(command: str, does: str, question: str) -> bool:
    """Whether a person says yes to it. InvalidInput where there is nobody to ask."""
    if not render.is_terminal():
        raise InvalidInput(f"{command} asks before it {does}, and there is no terminal to ask on", "add --yes")
    return render.ask(question)


class Money(click.ParamType[int]):
    """`$12.50`, `12.50` → micro-dollars."""

    name = "usd"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_usd(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Duration(click.ParamType[int]):
    """`90s`, `1h30m`, `2d` → seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_duration_s(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[int]):
    """`80GB`, `80GiB` → bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Moment(click.ParamType[datetime]):
    """A date (its first second), an RFC 3339 time with zone, or a duration counted from now: ahead, or back."""

    name = "time"

    def __init__(self, *, ahead: bool) -> None:
        self._ahead = ahead

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return parse_moment(str(value), datetime.now(UTC), ahead=self._ahead)
        except InvalidInput as error:
            self.fail(f"{error.message}; {error.hint}", param, ctx)


def parse_moment(text: str, now: datetime, *, ahead: bool) -> datetime:
    """`2026-12-01`, `2026-12-01T18:00:00Z` or `7d` as a time. A date is its last second ahead, its first back."""
    hint = "write 2026-12-01, 2026-12-01T18:00:00Z, or a duration such as 7d"
    if text.strip().isdigit():
        raise InvalidInput(f"{text} has no unit", hint)
    moment = _moment(text, now, hint, ahead=ahead)
    if not ahead and moment > now:
        raise InvalidInput(f"{text} lies ahead", "give a time that has been")
    return moment


def _moment(text: str, now: datetime, hint: str, *, ahead: bool) -> datetime:
    try:
        if len(text) == len("2026-12-01") and text.count("-") == 2:
            return datetime.fromisoformat(f"{text}T{'23:59:59' if ahead else '00:00:00'}+00:00")
        if "T" in text or " " in text:
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                raise InvalidInput(f"{text} has no time zone", f"write {text}Z for UTC")
            return moment.astimezone(UTC)
        span = timedelta(seconds=parse_duration_s(text))
        return now + span if ahead else now - span
    except (ValueError, OverflowError):
        raise InvalidInput(f"{text!r} is no time", hint) from None
