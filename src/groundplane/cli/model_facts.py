"""What somebody states about a model with flags, as the facts of its certificate."""

from __future__ import annotations

from collections.abc import Sequence

import click

from groundplane.domain.certificate import DataFact, Facts


def facts_of(stated: dict[str, object]) -> Facts:
    """What somebody states with the flags of `register`."""
    given = {name: value for name, value in stated.items() if name not in {"data", "metric", "license_", "cost"}}
    return Facts(
        license=str(stated["license_"]),
        data=tuple(DataFact(name=name, sha256=digest) for name, digest in _pairs(stated["data"], "--data")),
        metrics={name: _number(name, value) for name, value in _pairs(stated["metric"], "--metric")},
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
