"""What pulls of artifacts and of model versions share: their options, the folder, the progress bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from groundplane.cli import render
from groundplane.errors import Conflict, InvalidInput
from groundplane.units import parse_bytes

Command = TypeVar("Command", bound=Callable[..., Any])


def pull_options(command: Command) -> Command:
    """TARGET and the options of a node's own cache; the command hands them on to `pull_into`."""
    for option in (
        click.option("--pin", is_flag=True, help="Keep these files in the cache when others have to go."),
        click.option(
            "--cache-limit", default="100GiB", show_default=True, metavar="SIZE", help="Most bytes it may hold."
        ),
        click.option("--cache", type=click.Path(path_type=Path), metavar="DIR", help="This node's own cache of files."),
        click.argument("target", type=click.Path(path_type=Path), required=False),
    ):
        command = option(command)
    return command


def pull_into(
    pull: Callable[..., object], ref: str, name: str, size_bytes: int, target: Path | None, **options: Any
) -> Path:
    """Pulls into the target, or a folder of that name, and returns it. Conflict when it is a file."""
    from groundplane.client.node_cache import NodeCache  # noqa: PLC0415 - the SDK is loaded by commands that call

    place = target or Path(name)
    if place.exists() and not place.is_dir():
        raise Conflict(f"{place} is a file", "give a folder")
    limit_bytes = size_of(options["cache_limit"])
    kept = NodeCache(options["cache"], limit_bytes) if options["cache"] is not None else None
    with render.progress(f"pulling {name}", size_bytes) as advance:
        pull(ref, place, progress=advance, cache=kept, pin=options["pin"])
    return place


def size_of(text: str) -> int:
    """`100GiB` in bytes, as InvalidInput says it."""
    try:
        return parse_bytes(text)
    except ValueError as error:
        raise InvalidInput(f"{text!r} is no size: {error}", "write 500GiB") from None
