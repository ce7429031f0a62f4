"""The part of the SDK about the gateway's limits, and about replacing a key's secret."""

from __future__ import annotations

from groundplane.client.transport import Transport, part
from groundplane.domain.serving.limits import LimitRule, Measure, WhenDown
from groundplane.wire.access import LimitRequest, NewKey, RotationRequest


class LimitCalls(Transport):
    def rotate_key(self, key_id: str, *, grace_s: int = 86_400, reason: str = "") -> NewKey:
        """The answer holds the new secret, this once; the one before opens for `grace_s` more."""
        body = RotationRequest(grace_s=grace_s, reason=reason)
        return self._call("POST", f"/v1/keys/{part(key_id)}/rotate", NewKey, body=body)

    def limits(self, project: str | None = None) -> list[LimitRule]:
        """Limits at the gateway; those that keys carry themselves are with the keys."""
        return self._call("GET", "/v1/limits", list[LimitRule], params={"project": project})

    def set_limit(
        self,
        *,
        project: str,
        scope: str,
        name: str,
        measure: Measure,
        value: int,
        when_down: WhenDown | None = None,
        reason: str = "",
    ) -> LimitRule:
        """`name` is the key's, model's or endpoint's; of a project's limit, the project's. Dollars are millionths."""
        body = LimitRequest(
            project=project,
            scope=scope,
            name=name,
            measure=measure,
            value=value,
            when_down=when_down,
            reason=reason,
        )
        return self._call("PUT", "/v1/limits", LimitRule, body=body)

    def lift_limit(self, limit_id: str, reason: str = "") -> LimitRule:
        """Takes a limit away."""
        return self._call("DELETE", "/v1/limits", LimitRule, params={"id": limit_id, "reason": reason})
