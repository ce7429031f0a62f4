"""What somebody states about a model with flags, as the facts of its certificate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.units import parse_bytes

_OWN_READING = {"data", "metric", "license_", "cost", "param", "code_state", "memory"}


def further_facts(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of facts that a project may require beyond what every registration needs."""
    options = (
        click.option("--code-clean/--code-dirty", "code_state", default=None, help="Whether files were as committed."),
        click.option("--param", multiple=True, metavar="NAME=VALUE", help="A hyper-parameter; may be given again."),
        click.option("--sla", default="", metavar="TEXT", help="The level of service that is promised for it."),
        click.option("--rollback-target", default="", metavar="NAME@NUMBER", help="The version that is gone back to."),
        click.option("--memory", default="", metavar="SIZE", help="What its weights must fit, such as 24GiB."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def facts_of(stated: dict[str, object]) -> Facts:
    """What somebody states with the flags of `register`."""
    given = {name: value for name, value in stated.items() if name not in _OWN_READING}
    clean, memory = stated["code_state"], str(stated["memory"])
    return Facts(
        license=str(stated["license_"]),
        data=tuple(DataFact(name=name, sha256=digest) for name, digest in _pairs(stated["data"], "--data")),
        metrics={name: _number(name, value) for name, value in _pairs(stated["metric"], "--metric")},
        hyperparameters=dict(_pairs(stated["param"], "--param")),
        code_dirty=None if clean is None else not clean,
        target_memory_bytes=parse_bytes(memory) if memory else None,
        cost_microusd=stated["cost"] if isinstance(stated["cost"], int) else None,
        **{name: str(value) for name, value in given.items()},  # type: ignore[arg-type]
    )


def _pairs(words: object, option: str) -> list[tuple[str, str]]:
    assert isinstance(words, Sequence)
    pairs = []
    for word in words:
        name, equals, value = str(word).partition("=")
        if not (name and equals and value):
            raise click.UsageError(f"{option} takes NAME=VALUE, not {word!r}.")
        pairs.append((name, value))
    return pairs


def _number(name: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise click.UsageError(f"--metric {name} must be a number, not {value!r}.") from None
