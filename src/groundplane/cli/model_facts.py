"""What somebody states about a model with flags, as the facts of its certificate."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Sequence
from typing import Any

import click

from groundplane.cli.options import Size, connect
from groundplane.domain.canonical import rows_of
from groundplane.domain.model import ModelVersion
from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.domain.provenance.envelope import open_envelope
from groundplane.domain.scanning.licences import TERMS, plain

DATA = "NAME@VERSION|NAME=SHA256"
"""How data is named: as a registered dataset, or by its digest."""
_OWN_READING = {"data", "metric", "license_", "cost", "param", "code_state", "memory"}


def further_facts(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of facts that a project may require beyond what every registration needs."""
    options = (
        click.option("--code-clean/--code-dirty", "code_state", default=None, help="Whether files were as committed."),
        click.option("--param", multiple=True, metavar="NAME=VALUE", help="A hyper-parameter; may be given again."),
        click.option("--sla", default="", metavar="TEXT", help="The level of service that is promised for it."),
        click.option("--rollback-target", default="", metavar="NAME@NUMBER", help="The version that is gone back to."),
        click.option("--memory", type=Size(), metavar="SIZE", help="What its weights must fit, such as 24GiB."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def facts_of(stated: dict[str, object]) -> Facts:
    """What somebody states with the flags of `register`."""
    given = {name: value for name, value in stated.items() if name not in _OWN_READING}
    clean, memory = stated["code_state"], stated["memory"]
    return Facts(
        license=str(stated["license_"]),
        data=data_of(stated["data"]),
        metrics=metrics_of(stated["metric"]),
        hyperparameters=dict(_pairs(stated["param"], "--param")),
        code_dirty=None if clean is None else not clean,
        target_memory_bytes=memory if isinstance(memory, int) else None,
        cost_microusd=stated["cost"] if isinstance(stated["cost"], int) else None,
        **{name: str(value) for name, value in given.items()},  # type: ignore[arg-type]
    )


def data_of(words: object) -> tuple[DataFact, ...]:
    """`NAME=SHA256` as it stands; the digest of `NAME@VERSION` is asked of the control plane, which registered it."""
    assert isinstance(words, Sequence)
    registered = [word for word in words if "=" not in word and "@" in word]
    known = {}
    if registered:
        with connect() as client:
            known = {word: client.dataset(word) for word in registered}
    stated = _pairs([word for word in words if word not in known], "--data", "NAME@VERSION or NAME=SHA256")
    return (
        *(DataFact(name=row.id, sha256=row.digest, size_bytes=row.size_bytes) for row in known.values()),
        *(DataFact(name=name, sha256=digest) for name, digest in stated),
    )


def metrics_of(words: object) -> dict[str, float]:
    """`NAME=VALUE` with finite numbers: what is none measures nothing."""
    return {name: _number(name, value) for name, value in _pairs(words, "--metric")}


def remarks(version: ModelVersion) -> list[str]:
    """Lines about what was not compared: terms that nobody here knows, and those of a base that is not here."""
    said = rows_of(open_envelope(version.certificate).predicate, "unknown")
    found = [str(row["why"]) for row in said if str(row["fact"]).startswith("base_model.")]
    return [f"  to be known: {each}" for each in (licence_remark(version.license), *found) if each]


def licence_remark(licence: str) -> str:
    """What is to be said of a licence whose terms nobody here knows; "" for the others."""
    known = plain(licence)
    if not known or known in TERMS:
        return ""
    near = difflib.get_close_matches(known, TERMS, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"the terms of {licence!r} are not known here, so nothing was compared with them{meant}"


def _pairs(words: object, option: str, takes: str = "NAME=VALUE") -> list[tuple[str, str]]:
    assert isinstance(words, Sequence)
    pairs = []
    for word in words:
        name, equals, value = str(word).partition("=")
        if not (name and equals and value):
            raise click.UsageError(f"{option} takes {takes}, not {word!r}.")
        pairs.append((name, value))
    return pairs


def _number(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise click.UsageError(f"--metric {name} must be a finite number, not {value!r}.")
    return number
