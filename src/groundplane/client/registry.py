"""The part of the SDK that knows what moves around versions: aliases, search, differences, tags, gates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from groundplane.client.transport import Transport, made, part
from groundplane.domain.gate import Evidence, Gate, GateApproval, GateCheck, Waiver
from groundplane.domain.model import ModelVersion, parse_ref
from groundplane.domain.registry import AliasMove, ModelAlias, RegistryEntry, VersionDiff, VersionView
from groundplane.wire import ReasonRequest
from groundplane.wire.registry import (
    CopyRequest,
    EvidenceRequest,
    GateCheckRequest,
    GateText,
    MeasureRequest,
    MoveRequest,
    TagsRequest,
    WaiverRequest,
)

_WORK_TIMEOUT_S = 3600
"""Of what takes as long as reading a model's files or asking its endpoint does."""


class RegistryCalls(Transport):
    # ------------------------------------------------------------ aliases

    def aliases(self, name: str) -> list[ModelAlias]:
        return self._get(f"/v1/models/{part(name)}/aliases", list[ModelAlias])

    def alias_history(self, name: str, alias: str) -> list[AliasMove]:
        """Newest first."""
        return self._get(_alias(name, alias), list[AliasMove])

    def move_alias(self, name: str, alias: str, *, to: str, reason: str) -> AliasMove:
        """Raises Refusal with every requirement of its gates that is not met."""
        return self._call("PUT", _alias(name, alias), AliasMove, body=made(MoveRequest, to=to, reason=reason))

    def roll_back_alias(self, name: str, alias: str, reason: str) -> AliasMove:
        body = made(ReasonRequest, reason=reason)
        return self._call("POST", f"{_alias(name, alias)}/rollback", AliasMove, body=body)

    def remove_alias(self, name: str, alias: str, reason: str) -> AliasMove:
        return self._call("DELETE", _alias(name, alias), AliasMove, params={"reason": reason})

    # ------------------------------------------------------------ versions

    def search_versions(
        self,
        text: str = "",
        *,
        project: str = "",
        license: str = "",
        tags: Sequence[str] = (),
        metrics: Sequence[str] = (),
        archived: bool = False,
        limit: int = 100,
    ) -> list[RegistryEntry]:
        """Newest first. `tags` are NAME or NAME=TEXT, `metrics` NAME>=X or NAME<=X."""
        params = {
            "q": text,
            "project": project,
            "license": license,
            "tag": list(tags) or None,
            "metric": list(metrics) or None,
            "archived": "true" if archived else None,
            "limit": limit,
        }
        return self._get("/v1/registry/search", list[RegistryEntry], params=params)

    def diff_versions(self, before: str, after: str) -> VersionDiff:
        return self._get("/v1/registry/diff", VersionDiff, params={"before": before, "after": after})

    def version_view(self, ref: str) -> VersionView:
        return self._get(f"{_version(ref)}/registry", VersionView)

    def model_card(self, ref: str) -> str:
        """Markdown."""
        return self._send("GET", f"{_version(ref)}/card").text

    def tag_version(self, ref: str, tags: Mapping[str, str | None]) -> VersionView:
        return self._call("PUT", f"{_version(ref)}/tags", VersionView, body=made(TagsRequest, tags=dict(tags)))

    def copy_version(self, ref: str, name: str, *, project: str = "", reason: str = "") -> ModelVersion:
        """The same content as the next version of `name`, scanned anew. Raises Refusal with what stands against it."""
        body = made(CopyRequest, name=name, project=project, reason=reason)
        return self._call("POST", f"{_version(ref)}/copy", ModelVersion, body=body, timeout_s=_WORK_TIMEOUT_S)

    def archive_version(self, ref: str, reason: str) -> VersionView:
        body = made(ReasonRequest, reason=reason)
        return self._call("POST", f"{_version(ref)}/archive", VersionView, body=body)

    def unarchive_version(self, ref: str, reason: str = "") -> VersionView:
        body = made(ReasonRequest, reason=reason)
        return self._call("POST", f"{_version(ref)}/unarchive", VersionView, body=body)

    # ------------------------------------------------------------ gates

    def gates(self, *, model: str = "", project: str = "") -> list[Gate]:
        return self._get("/v1/gates", list[Gate], params={"model": model, "project": project})

    def define_gates(self, text: str) -> list[Gate]:
        """From YAML; InvalidInput names every fault with its line."""
        return self._call("PUT", "/v1/gates", list[Gate], body=made(GateText, text=text))

    def remove_gate(self, gate_id: str, reason: str = "") -> Gate:
        project, _, name = gate_id.partition("/")
        return self._call("DELETE", f"/v1/gates/{part(project)}/{part(name)}", Gate, params={"reason": reason})

    def check_gates(self, ref: str, alias: str) -> GateCheck:
        return self._call("POST", "/v1/gates/check", GateCheck, body=made(GateCheckRequest, ref=ref, alias=alias))

    def gate_checks(self, ref: str) -> list[GateCheck]:
        return self._get("/v1/gates/checks", list[GateCheck], params={"ref": ref})

    def evidence(self, ref: str) -> list[Evidence]:
        return self._get("/v1/gates/evidence", list[Evidence], params={"ref": ref})

    def state_evidence(
        self,
        ref: str,
        metric: str,
        *,
        values: Sequence[float] = (),
        successes: int | None = None,
        trials: int | None = None,
        note: str = "",
    ) -> Evidence:
        body = made(
            EvidenceRequest,
            ref=ref,
            metric=metric,
            values=list(values),
            successes=successes,
            trials=trials,
            note=note,
        )
        return self._call("POST", "/v1/gates/evidence", Evidence, body=body)

    def measure(self, endpoint: str, *, requests: int = 100, at_once: int = 1) -> Evidence:
        """Takes as long as the endpoint takes to answer that many prompts."""
        body = made(MeasureRequest, endpoint=endpoint, requests=requests, at_once=at_once)
        return self._call("POST", "/v1/gates/measure", Evidence, body=body, timeout_s=_WORK_TIMEOUT_S)

    def approve_version(self, ref: str, alias: str, comment: str = "") -> GateApproval:
        body = made(GateCheckRequest, ref=ref, alias=alias, comment=comment)
        return self._call("POST", "/v1/gates/approve", GateApproval, body=body)

    def waivers(self, *, over_too: bool = False) -> list[Waiver]:
        return self._get("/v1/gates/waivers", list[Waiver], params={"all": "true" if over_too else None})

    def waive(
        self, gate_id: str, requirement: str, *, owner: str, reason: str, expires_at: datetime, version_id: str = ""
    ) -> Waiver:
        body = made(
            WaiverRequest,
            gate_id=gate_id,
            requirement=requirement,
            owner=owner,
            reason=reason,
            expires_at=expires_at,
            version_id=version_id,
        )
        return self._call("POST", "/v1/gates/waivers", Waiver, body=body)

    def end_waiver(self, waiver_id: str, reason: str = "") -> Waiver:
        return self._call("DELETE", f"/v1/gates/waivers/{part(waiver_id)}", Waiver, params={"reason": reason})


def _alias(name: str, alias: str) -> str:
    return f"/v1/models/{part(name)}/aliases/{part(alias)}"


def _version(ref: str) -> str:
    wanted = parse_ref(ref)
    return f"/v1/models/{part(wanted.name)}/versions/{part(str(wanted).partition('@')[2])}"
