"""A model card written from what the registry knows: facts of the certificate, where it stands, what gates said.

Its head is what `domain.provenance.model_card` reads, so a card that was pulled and pushed again states the same facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import yaml

from groundplane.domain.canonical import part_of, rows_of
from groundplane.domain.gate import GateCheck
from groundplane.domain.model import ModelVersion
from groundplane.domain.provenance.model_card import OURS
from groundplane.units import MICROUSD_PER_USD, format_bytes, format_usd

Facts = Mapping[str, object]


def card_of(
    version: ModelVersion,
    said: Facts,
    *,
    aliases: Sequence[str] = (),
    tags: Mapping[str, str],
    checks: Sequence[GateCheck],
    later: Sequence[str] = (),
) -> str:
    """The card in Markdown. `said` is the certificate's predicate; `checks` are newest first, `later` its addenda."""
    stated, code, cost = part_of(said, "version"), part_of(said, "code"), said.get("cost_microusd")
    lines = ["---", yaml.safe_dump(_head(version, said), sort_keys=False, allow_unicode=True).rstrip(), "---", ""]
    lines += [f"# {version.id}", ""]
    if description := str(stated.get("description") or ""):
        lines += [description, ""]
    standing = f"stands at {', '.join(f'`{alias}`' for alias in aliases)}" if aliases else "stands at no alias"
    lines += [f"A model of project {version.project}; {version.owner} answers for it. This version {standing}.", ""]
    rows = [
        ("licence", version.license or "not stated"),
        ("base model", stated.get("base_model") or "not stated"),
        ("framework", stated.get("framework") or "not stated"),
        ("made by", version.run_id or _by_hand(part_of(said, "adoption"))),
        ("registered", f"{version.created_at:%Y-%m-%d %H:%M} UTC by {version.created_by}"),
        ("code", _code(code)),
        ("hardware", _hardware(said)),
        ("container", _container(part_of(said, "container"))),
        ("packages", _packages(part_of(said, "environment"))),
        ("cost", format_usd(cost) if isinstance(cost, int) else "not known"),
        ("energy", _energy(part_of(said, "energy"))),
        ("level of service", said.get("sla") or "not stated"),
        ("size", f"{format_bytes(version.size_bytes)} in {len(version.files):,} file{'s' * (len(version.files) != 1)}"),
        ("certificate", f"sha256:{version.certificate_sha256}"),
        *(("tag " + name, text) for name, text in tags.items()),
    ]
    lines += _table(("fact", "value"), rows)
    lines += ["## How good it is", ""]
    metrics = [(name, f"{value:.6g}") for name, value in sorted(version.metrics.items())]
    lines += _table(("metric", "value"), metrics) if metrics else ["No metric is stated.", ""]
    lines += ["## What it was made from", ""]
    data = [(_cell(row, "name"), f"sha256:{_cell(row, 'sha256')}", _cell(row, "how")) for row in rows_of(said, "data")]
    lines += _table(("data", "digest", "known by"), data) if data else ["Its data is not known.", ""]
    if parameters := part_of(said, "hyperparameters"):
        lines += ["## Hyper-parameters", "", *_table(("name", "value"), sorted(parameters.items()))]
    if later:
        lines += ["## What became known later", "", *(f"- {_escaped(each)}" for each in later), ""]
    if checks:
        lines += ["## What gates said", ""]
        newest = checks[0]
        lines += [
            f"For `{newest.alias}`, {newest.at:%Y-%m-%d %H:%M} UTC: {'passed' if newest.passed else 'refused'}.",
            "",
        ]
        verdicts = [(each.requirement, str(each.status), each.need, each.have) for each in newest.verdicts]
        lines += _table(("requirement", "verdict", "needs", "has"), verdicts)
    if unknown := rows_of(said, "unknown"):
        lines += ["## What nobody could establish", ""]
        lines += [f"- {_cell(row, 'fact')}: {_cell(row, 'why')}" for row in unknown] + [""]
    return "\n".join(lines)


def _head(version: ModelVersion, said: Facts) -> dict[str, object]:
    stated, code, cost = part_of(said, "version"), part_of(said, "code"), said.get("cost_microusd")
    run = part_of(said, "run")
    ours: dict[str, object] = {
        "owner": version.owner,
        "description": stated.get("description"),
        "code_commit": code.get("commit"),
        "code_dirty": code.get("dirty"),
        "code_repository": code.get("repository"),
        "training_run": run.get("id"),
        "data": [{"name": _cell(row, "name"), "sha256": _cell(row, "sha256")} for row in rows_of(said, "data")],
        "metrics": dict(version.metrics),
        "hyperparameters": dict(part_of(said, "hyperparameters")),
        "sla": said.get("sla"),
        "rollback_target": said.get("rollback_target"),
        "target_memory_bytes": said.get("target_memory_bytes"),
        "cost_usd": cost / MICROUSD_PER_USD if isinstance(cost, int) else None,
    }
    head: dict[str, object] = {
        "license": version.license,
        "library_name": stated.get("framework"),
        "base_model": stated.get("base_model"),
        OURS: {name: value for name, value in ours.items() if value not in (None, "", [], {})},
    }
    return {name: value for name, value in head.items() if value not in (None, "", {})}


def _by_hand(adoption: Facts) -> str:
    return f"adopted from {adoption['from']}" if adoption.get("from") else "registered by hand"


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    lines += [f"| {' | '.join(_escaped(str(cell)) for cell in row)} |" for row in rows]
    return [*lines, ""]


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _code(code: Facts) -> str:
    if not code.get("commit"):
        return "not known"
    dirty = {True: ", with changes that were not committed", False: ""}.get(bool(code.get("dirty")), "")
    return f"{code['commit']}{dirty}" + (f" of {code['repository']}" if code.get("repository") else "")


def _hardware(said: Facts) -> str:
    found = part_of(said, "hardware")
    if found.get("stated"):
        return str(found["stated"])
    cards = [str(_cell(row, "name")) for row in rows_of(found, "accelerators")]
    return ", ".join([str(found.get("cpu")), *cards]) if found else "not known"


def _container(found: Facts) -> str:
    if not found:
        return "not known"
    return f"{found.get('image')} {found.get('digest') or 'of unknown digest'}" if found.get("used") else "none"


def _packages(found: Facts) -> str:
    packages = found.get("packages")
    if not isinstance(packages, list):
        return "not known"
    return f"{len(packages)} of the {found.get('of')}, {found.get('python')}, sha256:{found.get('packages_sha256')}"


def _energy(found: Facts) -> str:
    joules = found.get("joules")
    if not isinstance(joules, int | float):
        return "not known"
    return f"{joules / 3_600_000:.6g} kWh, {found.get('how')} ({found.get('basis')})"


def _cell(row: Facts, name: str) -> str:
    return str(row.get(name) or "")
