"""What crosses the HTTP door about model versions besides the domain's own records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from groundplane.domain.provenance.certificate import Facts
from groundplane.errors import Problem
from groundplane.wire.bounds import STRICT, check_range, check_text


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterRequest:
    """What an upload becomes, and who and what it comes from; the registry names the facts that are missing."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    upload_id: str
    project: str
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class ScanRequest:
    """What a version is scanned against: the licences of what it is made from, and the memory its weights must fit."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    base_licenses: dict[str, str] = field(default_factory=dict)
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        check_range("memory_bytes", self.memory_bytes, 0, 2**63 - 1)
        if len(self.base_licenses) > 100:
            raise ValueError(f"base_licenses has {len(self.base_licenses)} entries; 100 is the most")
        for model, licence in self.base_licenses.items():
            check_text(base_licenses=f"{model} {licence}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCheck:
    """Whether a version is still what was signed; `problems` names each file or record that is not."""

    ref: str
    ok: bool
    checked_files: int
    checked_bytes: int
    key_id: str
    problems: tuple[Problem, ...] = ()
    addenda: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A birth certificate: the signed DSSE envelope, the in-toto statement inside it, who signed, its digest; and

    the signed envelopes of its addenda, oldest first.
    """

    envelope: dict[str, Any]
    statement: dict[str, Any]
    key_id: str
    sha256: str
    addenda: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKeys:
    """key id → PEM of each key whose certificates count."""

    keys: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SigningKey:
    """The id of the key that signs from now on, and of the one before, which stays trusted."""

    key_id: str
    before: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSignature:
    """A Sigstore bundle over a version's files, and the PEM of the key that signed it."""

    bundle: dict[str, Any]
    public_key: str
