"""The snapshot made ready for look-ups: keys with all that requests of them need, and the limits they have to keep."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

from groundplane.domain.serving.limits import PURSES, Limit, Measure, WhenDown
from groundplane.domain.serving.snapshot import Snapshot, SnapshotKey, read_key
from groundplane.gateway.lanes import Lane
from groundplane.gateway.targets import RouteState
from groundplane.identity import ROLE_PERMISSIONS, Permission, Role


@dataclass(slots=True)
class KeyState:
    """A key with everything a request of it needs. `routes` are its project's; `allowed` are the key's."""

    key: SnapshotKey
    routes: dict[str, RouteState]
    allowed: dict[str, RouteState]
    may_call: bool
    may_read_metrics: bool
    expires_at: float
    lanes: dict[str, Lane] = field(default_factory=dict)
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def admits(self, peer: str) -> bool:
        """Whether the key may be used from this address: from anywhere, when it names no networks."""
        if not self.networks:
            return True
        try:
            address = ip_address(peer)
        except ValueError:
            return False
        return any(address in network for network in self.networks)


class Tables:
    """One snapshot, ready: keys by the SHA-256 digest of their secret, decoded when first used."""

    def __init__(
        self,
        snapshot: Snapshot,
        keys: dict[bytes, bytes],
        routes: dict[str, dict[str, RouteState]],
    ) -> None:
        self.version = snapshot.version
        self.budgets = snapshot.budgets
        self._keys = keys
        self._routes = routes
        self._limits: dict[tuple[str, str], list[Limit]] = {}
        for limit in snapshot.limits:
            self._limits.setdefault((limit.scope, limit.name), []).append(dated(limit, snapshot.version))
        self._states: dict[bytes, KeyState] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def key(self, digest: bytes) -> KeyState | None:
        """The key with this digest; None when there is none. Whether it has expired is the caller's to ask."""
        state = self._states.get(digest)
        if state is None:
            text = self._keys.get(digest)
            if text is None:
                return None
            key = read_key(digest, text)
            state = self._states[digest] = _key_state(key, self._routes.get(key.project, {}))
        return state

    def routes(self) -> Iterator[RouteState]:
        for routes in self._routes.values():
            yield from routes.values()

    def endpoint_limits(self, name: str) -> list[Limit]:
        return self._limits.get(("endpoint", name), [])

    def limits(self, key: SnapshotKey, route: RouteState) -> list[Limit]:
        """Every limit that a request of this key on this route has to keep, whatever target answers."""
        found: dict[str, Limit] = {}
        for measure, value in (
            (Measure.REQUESTS, key.requests_per_minute),
            (Measure.TOKENS, key.tokens_per_minute),
        ):
            if value is not None:
                limit = Limit("key", key.id, measure, value, WhenDown(key.when_down))
                found[limit.id] = limit
        scopes = [("key", key.id), ("project", key.project), ("model", f"{key.project}/{route.route.model}")]
        endpoints = {one.target.endpoint for one in route.targets}
        if len(endpoints) == 1:
            scopes += [("endpoint", endpoints.pop())]
        for scope in scopes:
            # What was set for the key later replaces what it was made with.
            found |= {limit.id: limit for limit in self._limits.get(scope, [])}
        return list(found.values())


def _key_state(key: SnapshotKey, routes: dict[str, RouteState]) -> KeyState:
    permissions = ROLE_PERMISSIONS[Role(key.role)]
    return KeyState(
        key=key,
        routes=routes,
        allowed={name: one for name, one in routes.items() if name in key.models} if key.models else routes,
        may_call=Permission.INFERENCE in permissions,
        may_read_metrics=Permission.SYSTEM_READ in permissions,
        expires_at=float("inf") if key.expires_at is None else key.expires_at,
        networks=tuple(ip_network(network) for network in key.networks),
    )


def dated(limit: Limit, version: int) -> Limit:
    """What is left of dollars is true for one snapshot, and orders by it."""
    return replace(limit, version=version) if limit.measure in PURSES else limit
