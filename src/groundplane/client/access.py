"""The part of the SDK that lets in: keys, projects, exposures."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from groundplane.client.transport import Transport, made, part
from groundplane.domain.access import Exposure, Key, Project
from groundplane.identity import Role
from groundplane.wire.access import ExposureRequest, KeyRequest, NewKey, ProjectRequest

DEFAULT_THRESHOLDS_PERCENT = (50, 80, 100)


class AccessCalls(Transport):
    def keys(self, project: str | None = None) -> list[Key]:
        """Without their secrets' hashes: those never leave the control plane."""
        return self._get("/v1/keys", list[Key], params={"project": project})

    def create_key(
        self,
        *,
        name: str,
        project: str,
        owner: str,
        role: Role,
        models: Sequence[str] = (),
        networks: Sequence[str] = (),
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        expires_at: datetime | None = None,
    ) -> NewKey:
        """The answer holds the secret, this once."""
        body = made(
            KeyRequest,
            name=name,
            project=project,
            owner=owner,
            role=role,
            models=tuple(models),
            networks=tuple(networks),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            expires_at=expires_at,
        )
        return self._call("POST", "/v1/keys", NewKey, body=body)

    def revoke_key(self, key_id: str, reason: str = "") -> Key:
        return self._call("DELETE", f"/v1/keys/{part(key_id)}", Key, params={"reason": reason})

    def projects(self) -> list[Project]:
        return self._get("/v1/projects", list[Project])

    def project(self, name: str) -> Project:
        return self._get(f"/v1/projects/{part(name)}", Project)

    def create_project(
        self,
        *,
        name: str,
        owner: str,
        cost_center: str,
        monthly_limit_microusd: int | None = None,
        thresholds_percent: Sequence[int] = DEFAULT_THRESHOLDS_PERCENT,
        reason: str = "",
    ) -> Project:
        body = made(
            ProjectRequest,
            name=name,
            owner=owner,
            cost_center=cost_center,
            monthly_limit_microusd=monthly_limit_microusd,
            thresholds_percent=tuple(thresholds_percent),
            reason=reason,
        )
        return self._call("POST", "/v1/projects", Project, body=body)

    def exposures(self) -> list[Exposure]:
        return self._get("/v1/exposures", list[Exposure])

    def expose(self, *, address: str, owner: str, reason: str, expires_at: datetime) -> Exposure:
        body = made(ExposureRequest, address=address, owner=owner, reason=reason, expires_at=expires_at)
        return self._call("POST", "/v1/exposures", Exposure, body=body)

    def withdraw_exposure(self, address: str, reason: str = "") -> None:
        self._send("DELETE", f"/v1/exposures/{part(address)}", params={"reason": reason})
