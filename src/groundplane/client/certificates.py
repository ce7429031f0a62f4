"""The part of the SDK that knows later facts of versions, required facts and scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from groundplane.client.transport import Transport, made, part
from groundplane.domain.gate import Evidence
from groundplane.domain.model import parse_ref
from groundplane.domain.provenance.addendum import Addendum, AddendumKind
from groundplane.domain.provenance.required_facts import Missing, RequiredFacts
from groundplane.domain.registry import RegistryEntry
from groundplane.wire.certificates import AddendumRequest, RequireRequest


class CertificateCalls(Transport):
    def addenda(self, ref: str) -> list[Addendum]:
        """What became known of a version after its certificate, oldest first."""
        return self._get(f"{_version(ref)}/addenda", list[Addendum])

    def add_addendum(self, ref: str, kind: AddendumKind | str, facts: Mapping[str, Any], reason: str = "") -> Addendum:
        """Signs a later fact. InvalidInput names the fact that is not as its kind asks."""
        body = made(AddendumRequest, kind=AddendumKind(kind), facts=dict(facts), reason=reason)
        return self._call("POST", f"{_version(ref)}/addenda", Addendum, body=body)

    def missing_facts(self, ref: str, stage: str = "deploy") -> list[Missing]:
        """What its project requires at `register`, `deploy` or `load` and nobody knows."""
        return self._get(f"{_version(ref)}/missing-facts", list[Missing], params={"stage": stage})

    def required_facts(self) -> list[RequiredFacts]:
        return self._get("/v1/required-facts", list[RequiredFacts])

    def require_facts(self, project: str, required: Sequence[str], reason: str) -> RequiredFacts:
        body = made(RequireRequest, required=list(required), reason=reason)
        return self._call("PUT", f"/v1/required-facts/{part(project)}", RequiredFacts, body=body)

    def release_facts(self, project: str, reason: str) -> None:
        self._send("DELETE", f"/v1/required-facts/{part(project)}", params={"reason": reason})

    def scans(self, ref: str = "", limit: int = 100) -> list[Evidence]:
        """Newest first."""
        return self._get("/v1/scans", list[Evidence], params={"ref": ref or None, "limit": limit})

    def adoptions(self, limit: int = 100) -> list[RegistryEntry]:
        """Newest first."""
        return self._get("/v1/adoptions", list[RegistryEntry], params={"limit": limit})


def _version(ref: str) -> str:
    wanted = parse_ref(ref)
    return f"/v1/models/{part(wanted.name)}/versions/{part(str(wanted).partition('@')[2])}"
