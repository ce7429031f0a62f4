"""What a scan of a model says: every finding with its file, and whether the model may enter.

Each file is judged by itself (`model_files.inspect`); here all together: licences that can't be combined, names
that read alike, weights that do not fit the memory they are meant for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from groundplane.domain.model import path_refusals
from groundplane.domain.scanning.licences import TERMS, Terms, conflicts
from groundplane.domain.scanning.model_formats import ONLY_WEIGHTS, Format
from groundplane.errors import Refused
from groundplane.units import format_bytes

SCANNER_VERSION = "6"
"""Counted up when what is looked for changes; evidence of an older scanner is stale."""
CUSTOM_OPERATION, UNKNOWN_FORMAT = "custom-operation", "unknown-format"
"""Warnings that a gate counts: with them nobody can say what a loader does."""
_SEVERITIES = ("refused", "convert", "warning")
_WEIGHTS = frozenset({Format.SAFETENSORS, Format.GGUF, Format.ONNX, Format.TFLITE, Format.COREML,
                      Format.MSGPACK, Format.NPY, Format.NPZ, Format.HDF5, Format.KERAS, Format.BINARY, Format.PICKLE,
                      Format.TORCH_ZIP, Format.TORCH_LEGACY, Format.TORCH_TAR})  # fmt: skip


class Seen(Protocol):
    """A file that was looked at."""

    @property
    def path(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def format(self) -> str: ...
    @property
    def details(self) -> Mapping[str, object]: ...
    @property
    def refused(self) -> Refused | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing found. `path` "": all files.

    `severity`: `refused` keeps the model out; `convert` keeps it out as it is, a pickle that only makes weights and
    enters as safetensors; `warning` is to be known.
    """

    path: str
    rule: str
    severity: str
    message: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanReport:
    """What was scanned and found. `ok`: nothing in it is refused outright; `weights_bytes` must be loaded."""

    subject: str
    ok: bool
    files: int
    size_bytes: int
    weights_bytes: int
    formats: dict[str, int]
    findings: tuple[Finding, ...]


def judge_scan(
    subject: str,
    seen: Sequence[Seen],
    *,
    license: str = "",
    base_licenses: Mapping[str, str] | None = None,
    memory_bytes: int | None = None,
    data_licenses: Mapping[str, str] | None = None,
) -> ScanReport:
    """Everything found in the files, what keeps the model out first.

    `license` is what is declared, `base_licenses` say (model it is made from → its licence), `data_licenses` the same
    of its data, `memory_bytes` is what one copy of the weights must fit. Whether a model adapts data that asks for the
    same licence is disputed: that is a warning.
    """
    findings = [
        _refusal(file.path, file.refused, "convert" if file.details.get(ONLY_WEIGHTS) else "refused")
        for file in seen
        if file.refused is not None
    ]
    findings += [_refusal("", refused) for refused in path_refusals([file.path for file in seen])]
    others = [(file.path, str(file.details["license"])) for file in seen if file.details.get("license")]
    others += sorted((base_licenses or {}).items())
    findings += [
        Finding(
            path=found.where,
            rule="licence-conflict",
            severity="refused",
            message=f"needs terms that can be combined, has {found.where}: {found.why}",
            hint="declare a licence that keeps what it asks, or leave out what is under it",
        )
        for found in conflicts(license, others)
    ]
    for conflict in conflicts(license, sorted((data_licenses or {}).items())):
        disputed = TERMS.get(conflict.licence) is Terms.SHARE
        findings.append(
            Finding(
                path=conflict.where,
                rule="data-licence",
                severity="warning" if disputed else "refused",
                message=f"needs data whose terms allow it, has {conflict.where}: {conflict.why}",
                hint="declare a licence that keeps what the data asks, or train without it",
            )
        )
    weights_bytes = sum(file.size_bytes for file in seen if file.format in _WEIGHTS)
    if memory_bytes is not None and weights_bytes > memory_bytes:
        message = f"needs weights within {format_bytes(memory_bytes)}, has {format_bytes(weights_bytes)}"
        hint = "quantise it, spread it over more accelerators, or choose a larger one: ground size"
        findings.append(Finding(path="", rule="memory", severity="refused", message=message, hint=hint))
    for file in seen:
        findings += _warnings(file)
    findings.sort(key=lambda finding: (_SEVERITIES.index(finding.severity), finding.path, finding.rule))
    return ScanReport(
        subject=subject,
        ok=all(finding.severity != "refused" for finding in findings),
        files=len(seen),
        size_bytes=sum(file.size_bytes for file in seen),
        weights_bytes=weights_bytes,
        formats=dict(sorted(Counter(str(file.format) or "special" for file in seen).items())),
        findings=tuple(findings),
    )


def refusals_of(report: ScanReport) -> tuple[Refused, ...]:
    """What keeps the model out as it is, in the form in which a door refuses."""
    return tuple(
        Refused(rule=found.rule, need=need.removeprefix("needs "), have=have, hint=found.hint)
        for found in report.findings
        if found.severity != "warning"
        for need, _, have in [found.message.partition(", has ")]
    )


def _refusal(path: str, refused: Refused, severity: str = "refused") -> Finding:
    message = f"needs {refused.need}, has {refused.have}"
    return Finding(path=path, rule=refused.rule, severity=severity, message=message, hint=refused.hint)


def _warnings(file: Seen) -> list[Finding]:
    found = []
    custom = file.details.get("custom_code")
    if isinstance(custom, list) and custom:
        message = f"asks for code that is not in the weights: {', '.join(str(name) for name in custom[:3])}"
        hint = "load it without trust_remote_code, or read that code first"
        found.append(Finding(path=file.path, rule="custom-code", severity="warning", message=message, hint=hint))
    elif file.details.get("code"):
        message = "is code: nothing here runs it, and whoever loads the model with it does"
        found.append(Finding(path=file.path, rule="custom-code", severity="warning", message=message))
    outside = file.details.get("outside")
    if isinstance(outside, list) and outside:
        message = (
            f"names files outside the folder, which some loaders open: {', '.join(str(name) for name in outside[:3])}"
        )
        found.append(Finding(path=file.path, rule="outside-files", severity="warning", message=message))
    if file.details.get("unreadable"):
        message = (
            f"is no {file.details['unreadable']} that a strict reader reads: what a lenient one sees, nobody knows"
        )
        found.append(Finding(path=file.path, rule="unreadable", severity="warning", message=message))
    if file.details.get("behind"):
        message = f"has {file.details['behind']:,} bytes behind the picture's end"
        found.append(Finding(path=file.path, rule="hidden-bytes", severity="warning", message=message))
    if isinstance(said := file.details.get("template_says"), list):
        message = f"writes more than messages: {', '.join(str(each) for each in said[:3])}"
        found.append(Finding(path=file.path, rule="template-says", severity="warning", message=message))
    if file.details.get("sample_secret"):
        message = f"holds {file.details['sample_secret']}, as manuals write it"
        found.append(Finding(path=file.path, rule="no-secrets", severity="warning", message=message))
    licence = str(file.details.get("license", ""))
    if licence and licence not in TERMS:
        message = f"states the licence {licence}, whose terms are not known here"
        found.append(Finding(path=file.path, rule="licence-unknown", severity="warning", message=message))
    operators = file.details.get("foreign_operators")
    if isinstance(operators, list) and operators:
        message = f"needs operators that its runtime has not: {', '.join(str(name) for name in operators[:3])}"
        hint = "whoever loads it brings their code: read it, or convert the model with operators that TFLite has"
        found.append(Finding(path=file.path, rule=CUSTOM_OPERATION, severity="warning", message=message, hint=hint))
    if file.format == Format.BINARY and file.refused is None:
        message = "its bytes are of no format known here: nobody can say what loads them"
        found.append(Finding(path=file.path, rule=UNKNOWN_FORMAT, severity="warning", message=message))
    return found
