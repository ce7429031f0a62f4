"""A model version as a CycloneDX 1.6 machine-learning bill of materials.

Everything in it is read from the birth certificate; what the certificate calls unknown is left out here, and said in a
property. Source: CycloneDX 1.6 JSON schema, `modelCard`; ECMA-424.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence

from groundplane.domain.canonical import part_of, rows_of
from groundplane.domain.provenance.addendum import Addendum, AddendumKind, summary
from groundplane.domain.scanning.licences import TERMS, plain

SPEC_VERSION = "1.6"
_NAMESPACE = uuid.UUID("6e1b0f7e-4f0f-5a53-9a53-1f6d3a6b8c55")
_SPDX = {name: name for name in TERMS} | {
    "apache-2.0": "Apache-2.0", "mit": "MIT", "mit-0": "MIT-0", "bsd-2-clause": "BSD-2-Clause", "isc": "ISC",
    "bsd-3-clause": "BSD-3-Clause", "cc0-1.0": "CC0-1.0", "cc-by-4.0": "CC-BY-4.0", "cc-by-3.0": "CC-BY-3.0",
    "unlicense": "Unlicense", "mpl-2.0": "MPL-2.0", "gpl-2.0": "GPL-2.0-only", "gpl-3.0": "GPL-3.0-only",
    "agpl-3.0": "AGPL-3.0-only", "lgpl-2.1": "LGPL-2.1-only", "lgpl-3.0": "LGPL-3.0-only", "epl-2.0": "EPL-2.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0", "cc-by-nc-4.0": "CC-BY-NC-4.0", "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "cc-by-nd-4.0": "CC-BY-ND-4.0", "cc-by-nc-nd-4.0": "CC-BY-NC-ND-4.0",
}  # fmt: skip
_SPDX_LISTED = re.compile(r"[A-Z][A-Za-z]*-")


def ml_bom(
    statement: Mapping[str, object], certificate_sha256: str, key_id: str, addenda: Sequence[Addendum] = ()
) -> dict[str, object]:
    """The document for a birth certificate's statement and its addenda. The same ones give the same document."""
    said = part_of(statement, "predicate")
    version, created, listed = part_of(said, "version"), part_of(said, "created"), part_of(said, "manifest")
    ref = f"model:{version.get('id')}"
    data = [row for row in rows_of(said, "data") if row.get("name")]
    base = str(version.get("base_model") or "")
    packages = _packages(part_of(said, "environment"))
    model: dict[str, object] = {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": str(version.get("name")),
        "version": str(version.get("number")),
        "description": str(version.get("description") or ""),
        "supplier": {"name": str(version.get("owner") or "unknown")},
        "hashes": [{"alg": "SHA-256", "content": str(listed.get("sha256"))}],
        "licenses": _licences(str(version.get("license") or "")),
        "modelCard": _card(said, data, addenda),
        "components": [
            {
                "type": "file",
                "bom-ref": f"{ref}/{file.get('path')}",
                "name": str(file.get("path")),
                "hashes": [{"alg": "SHA-256", "content": str(file.get("sha256"))}],
            }
            for file in rows_of(listed, "files")
        ],
        "properties": [*_properties(said, certificate_sha256, key_id), *_later(addenda)],
    }
    if base:
        ancestors = [
            {"type": "machine-learning-model", "name": name.strip()} for name in base.split(",") if name.strip()
        ]
        model["pedigree"] = {"ancestors": ancestors}
    components: list[dict[str, object]] = [_dataset(row) for row in data] + packages
    return {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, certificate_sha256)}",
        "version": 1 + len(addenda),
        "metadata": {
            "timestamp": addenda[-1].at.isoformat() if addenda else str(created.get("at")),
            "tools": {"components": [{"type": "application", "name": str(created.get("software") or "groundplane")}]},
            "component": {key: value for key, value in model.items() if value not in ("", [])},
        },
        "components": components,
        "dependencies": [{"ref": ref, "dependsOn": [str(component["bom-ref"]) for component in components]}],
    }


def _card(
    said: Mapping[str, object], data: Sequence[Mapping[str, object]], addenda: Sequence[Addendum]
) -> dict[str, object]:
    metrics = part_of(said, "metrics")
    parameters: dict[str, object] = {}
    if data:
        parameters["datasets"] = [{"ref": f"data:{row.get('name')}"} for row in data]
    card: dict[str, object] = {}
    if parameters:
        card["modelParameters"] = parameters
    rows: list[dict[str, object]] = [
        {"type": name, "value": format(value, "g")}
        for name, value in sorted(metrics.items())
        if isinstance(value, int | float)
    ]
    for each in addenda:
        rows += _performance(each) if each.kind is AddendumKind.EVALUATION else []
    if rows:
        card["quantitativeAnalysis"] = {"performanceMetrics": rows}
    return card


def _performance(addendum: Addendum) -> list[dict[str, object]]:
    """An evaluation's metrics, with the data they were measured on and their intervals."""
    facts, rows = addendum.facts, []
    intervals = part_of(facts, "intervals")
    on = str(facts.get("dataset") or facts.get("name"))
    for name, value in sorted(part_of(facts, "metrics").items()):
        row: dict[str, object] = {"type": name, "value": str(value), "slice": on}
        ends = intervals.get(name)
        if isinstance(ends, list | tuple) and len(ends) == 2:
            row["confidenceInterval"] = {"lowerBound": str(ends[0]), "upperBound": str(ends[1])}
        rows.append(row)
    return rows


def _later(addenda: Sequence[Addendum]) -> list[dict[str, object]]:
    return [
        {"name": f"groundplane:addendum:{each.sequence}:{each.kind}", "value": f"{summary(each)}; sha256:{each.sha256}"}
        for each in addenda
    ]


def _dataset(row: Mapping[str, object]) -> dict[str, object]:
    made: dict[str, object] = {"type": "data", "bom-ref": f"data:{row.get('name')}", "name": str(row.get("name"))}
    if row.get("sha256"):
        made["hashes"] = [{"alg": "SHA-256", "content": str(row["sha256"])}]
    made["data"] = [{"type": "dataset", "name": str(row.get("name"))}]
    made["properties"] = [{"name": "groundplane:how", "value": str(row.get("how"))}]
    return made


def _packages(environment: Mapping[str, object]) -> list[dict[str, object]]:
    found = environment.get("packages")
    made: list[dict[str, object]] = []
    for package in sorted({str(item) for item in found}) if isinstance(found, list) else []:
        name, _, version = package.partition("==")
        purl = f"pkg:pypi/{re.sub(r'[-_.]+', '-', name.lower())}@{version}"
        made.append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
    return made


def _licences(licence: str) -> list[dict[str, object]]:
    if not licence:
        return []
    listed = _SPDX.get(plain(licence), "")
    if _SPDX_LISTED.match(listed) or listed in {"MIT", "ISC", "Unlicense"}:
        return [{"license": {"id": listed}}]
    return [{"license": {"name": licence}}]


def _properties(said: Mapping[str, object], certificate_sha256: str, key_id: str) -> list[dict[str, object]]:
    run, code = part_of(said, "run"), part_of(said, "code")
    pairs = {
        "certificate:sha256": certificate_sha256,
        "certificate:key": key_id,
        "origin": said.get("origin"),
        "run": run.get("id"),
        "code:commit": code.get("commit"),
        "code:dirty": code.get("dirty"),
        "cost:microusd": said.get("cost_microusd"),
        "container:image": part_of(said, "container").get("image"),
        "container:digest": part_of(said, "container").get("digest"),
        "environment:packages_sha256": part_of(said, "environment").get("packages_sha256"),
        "energy:joules": part_of(said, "energy").get("joules"),
        "energy:how": part_of(said, "energy").get("how"),
        "energy:basis": part_of(said, "energy").get("basis"),
        "sla": said.get("sla"),
        "rollback_target": said.get("rollback_target"),
        **{f"driver:{row.get('name')}": row.get("version") for row in rows_of(part_of(said, "hardware"), "drivers")},
        **{f"hyperparameter:{name}": value for name, value in sorted(part_of(said, "hyperparameters").items())},
    }
    named: list[dict[str, object]] = [
        {"name": f"groundplane:{name}", "value": _plain(value)}
        for name, value in pairs.items()
        if value not in (None, "")
    ]
    unknown: list[dict[str, object]] = [
        {"name": f"groundplane:unknown:{row.get('fact')}", "value": str(row.get("why"))}
        for row in rows_of(said, "unknown")
    ]
    return [*named, *unknown]


def _plain(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
