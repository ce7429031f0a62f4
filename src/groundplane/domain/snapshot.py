"""The gateway's configuration: compiled here from keys, endpoints and budgets, versioned, swapped whole.

The gateway reads nothing else, so it starts and serves while the control plane is down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from urllib.parse import urlsplit

from groundplane.domain.access import Key
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.spec import TokenPrice
from groundplane.errors import IntegrityFailure
from groundplane.identity import Role

FORMAT = 1
MAX_OUTPUT_TOKENS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotKey:
    """A key as the gateway needs it. Empty `models` allows all of the project. `expires_at` is epoch seconds."""

    id: str
    secret_sha256: str
    project: str
    owner: str
    role: str
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place a route's requests can go. `max_output_tokens` bounds an answer whose request names no limit."""

    endpoint: str
    revision: int
    base_url: str
    upstream_model: str
    price: TokenPrice
    weight: int = 1
    max_output_tokens: int = MAX_OUTPUT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A model name of a project and where it leads. `created_at` is epoch seconds."""

    model: str
    project: str
    targets: tuple[Target, ...]
    created_at: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All a gateway knows. `budgets`: micro-dollars left per project, after usage up to `ingested[gateway id]`."""

    version: int
    compiled_at: float
    keys: tuple[SnapshotKey, ...] = ()
    routes: tuple[Route, ...] = ()
    budgets: dict[str, int] = field(default_factory=dict)
    ingested: dict[str, int] = field(default_factory=dict)


def compile_snapshot(
    *,
    keys: Sequence[Key],
    endpoints: Sequence[Endpoint],
    budgets: Mapping[str, int],
    ingested: Mapping[str, int],
    version: int,
    now: datetime,
) -> Snapshot:
    """What the gateway may serve as of `now`: live keys, ready endpoints, micro-dollars left per project.

    `ingested` must have been read before `budgets`: a settlement missing from both would be spent twice.
    A project absent from `budgets` has none, and nothing of it is admitted.
    """
    live = [key for key in keys if key.revoked_at is None and (key.expires_at is None or key.expires_at > now)]
    ready = [one for one in endpoints if one.status is EndpointStatus.READY and one.base_url]
    return Snapshot(
        version=version,
        compiled_at=now.timestamp(),
        keys=tuple(_key(key) for key in sorted(live, key=lambda key: key.id)),
        routes=tuple(_route(one) for one in sorted(ready, key=lambda one: one.id)),
        budgets=dict(sorted(budgets.items())),
        ingested=dict(sorted(ingested.items())),
    )


def _key(key: Key) -> SnapshotKey:
    return SnapshotKey(
        id=key.id,
        secret_sha256=key.secret_sha256,
        project=key.project,
        owner=key.owner,
        role=key.role.value,
        models=key.models,
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        expires_at=None if key.expires_at is None else key.expires_at.timestamp(),
    )


def _route(endpoint: Endpoint) -> Route:
    target = Target(
        endpoint=endpoint.id,
        revision=endpoint.revision,
        base_url=endpoint.base_url,
        upstream_model=endpoint.id,
        price=endpoint.spec.token_price,
    )
    return Route(
        model=endpoint.id,
        project=endpoint.project,
        targets=(target,),
        created_at=int(endpoint.created_at.timestamp()),
    )


def encode(snapshot: Snapshot) -> bytes:
    """JSON with its own SHA-256, so that a reader never acts on damaged bytes."""
    body = json.dumps(asdict(snapshot), sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(body.encode()).hexdigest()
    return f'{{"format":{FORMAT},"sha256":"{digest}","snapshot":{body}}}\n'.encode()


def decode(data: bytes) -> Snapshot:
    """Raises IntegrityFailure when the bytes are not exactly what `encode` wrote."""
    try:
        envelope = json.loads(data)
        if envelope["format"] != FORMAT:
            raise IntegrityFailure(f"the snapshot has format {envelope['format']}, this gateway reads {FORMAT}")
        value = envelope["snapshot"]
        body = json.dumps(value, sort_keys=True, separators=(",", ":"))
        if hashlib.sha256(body.encode()).hexdigest() != envelope["sha256"]:
            raise IntegrityFailure("the snapshot does not match its SHA-256")
        return _snapshot(value)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityFailure(f"the snapshot can't be read: {type(error).__name__}: {error}") from None


def _snapshot(value: Mapping[str, object]) -> Snapshot:
    raw = dict(value)
    keys = raw.pop("keys")
    routes = raw.pop("routes")
    assert isinstance(keys, list) and isinstance(routes, list)
    return Snapshot(
        **raw,  # type: ignore[arg-type]
        keys=tuple(_snapshot_key(one) for one in keys),
        routes=tuple(_snapshot_route(one) for one in routes),
    )


def _snapshot_key(value: Mapping[str, object]) -> SnapshotKey:
    raw = dict(value)
    raw["role"] = Role(str(raw["role"])).value
    models = raw.pop("models")
    assert isinstance(models, list)
    bytes.fromhex(str(raw["secret_sha256"]))
    return SnapshotKey(**raw, models=tuple(models))  # type: ignore[arg-type]


def _snapshot_route(value: Mapping[str, object]) -> Route:
    raw = dict(value)
    targets = raw.pop("targets")
    assert isinstance(targets, list)
    return Route(**raw, targets=tuple(_snapshot_target(one) for one in targets))  # type: ignore[arg-type]


def _snapshot_target(value: Mapping[str, object]) -> Target:
    raw = dict(value)
    price = raw.pop("price")
    assert isinstance(price, dict)
    url = urlsplit(str(raw["base_url"]))
    if url.scheme not in {"http", "https"} or not url.hostname or not url.netloc.isascii() or url.port == 0:
        raise ValueError(f"{raw['base_url']!r} is no http or https address")
    return Target(**raw, price=TokenPrice(**price))  # type: ignore[arg-type]
