"""The gateway's configuration: compiled here from keys, endpoints and budgets, versioned, swapped whole.

The gateway reads nothing else, so it starts and serves while the control plane is down.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from urllib.parse import urlsplit

from groundplane.domain.access import Key
from groundplane.domain.endpoint import Endpoint, EndpointStatus
from groundplane.domain.serving.limits import Limit, Measure, WhenDown
from groundplane.domain.serving.prediction import Keeping, PredictionRule
from groundplane.domain.serving.provider import Provider, ProviderKind, RouteRule, RouteTarget
from groundplane.domain.serving.queueing import KeyPriority, Priority, QueueRule
from groundplane.domain.serving.response_cache import CacheRule
from groundplane.domain.serving.routing import RoutePolicy
from groundplane.domain.serving.usage import dearest, worst_case
from groundplane.domain.spec import SpecialPrices, TokenPrice
from groundplane.errors import IntegrityFailure
from groundplane.identity import Role

FORMAT = 2
_MAGIC = b"groundplane-snapshot"
MAX_OUTPUT_TOKENS = 4096
"""The longest answer of an endpoint of ours that is not said to have a context."""
LONGEST_ANSWER_TOKENS = 262_144
"""Twice what any hosted model is said to answer with that does not fill its context: for a model nobody knows."""

LONGEST_CONTEXT_TOKENS = 2_000_000
"""No hosted model that the catalogue knows reads more at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotKey:
    """A key's secret as the gateway needs it; a key with two live secrets is here twice.

    Empty `models` allows all of the project, empty `networks` every address. `expires_at` is epoch seconds.
    """

    id: str
    secret_sha256: str
    project: str
    owner: str
    role: str
    models: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires_at: float | None = None
    networks: tuple[str, ...] = ()
    when_down: str = WhenDown.LOCAL.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place a route's requests can go. `max_output_tokens` bounds an answer whose request names no limit,
    `context_tokens` every prompt; 0 is not known.

    `kind` is a provider's, empty for an endpoint of ours; its key is in the file `key_file`, read anew when
    `key_version` changes. `private`: its address may be in a private network.
    """

    endpoint: str
    revision: int
    base_url: str
    upstream_model: str
    price: TokenPrice
    weight: int = 1
    max_output_tokens: int = MAX_OUTPUT_TOKENS
    context_tokens: int = 0
    order: int = 0
    region: str = ""
    kind: str = ""
    key_file: str = ""
    key_version: int = 0
    api_version: str = ""
    private: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A model name of a project and where it leads. `created_at` is epoch seconds. `sticky`: sessions stay where they
    are; `hedge_ms`: after how long without an answer a second target is asked too."""

    model: str
    project: str
    targets: tuple[Target, ...]
    created_at: int = 0
    policy: str = RoutePolicy.WEIGHTED.value
    sticky: bool = False
    hedge_ms: int | None = None
    queue: QueueRule | None = None
    cache: CacheRule | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All a gateway knows. `budgets`: micro-dollars left per project, after usage up to `ingested[gateway id]`.

    `limits` are those of projects (`vision`), models (`vision/tiny`), endpoints and keys (by id) beyond the keys' own.
    """

    version: int
    compiled_at: float
    keys: tuple[SnapshotKey, ...] = ()
    routes: tuple[Route, ...] = ()
    budgets: dict[str, int] = field(default_factory=dict)
    ingested: dict[str, int] = field(default_factory=dict)
    limits: tuple[Limit, ...] = ()
    predictions: tuple[Keeping, ...] = ()


def compile_snapshot(
    *,
    keys: Sequence[Key],
    endpoints: Sequence[Endpoint],
    budgets: Mapping[str, int],
    ingested: Mapping[str, int],
    version: int,
    now: datetime,
    limits: Sequence[Limit] = (),
    predictions: Sequence[PredictionRule] = (),
    providers: Sequence[Provider] = (),
    rules: Sequence[RouteRule] = (),
) -> Snapshot:
    """What the gateway may serve as of `now`: live keys, ready endpoints, micro-dollars left per project.

    `ingested` must have been read before `budgets`: a settlement missing from both would be spent twice.
    A project absent from `budgets` has none, and nothing of it is admitted.
    """
    live = [key for key in keys if key.revoked_at is None and (key.expires_at is None or key.expires_at > now)]
    return Snapshot(
        version=version,
        compiled_at=now.timestamp(),
        keys=tuple(one for key in sorted(live, key=lambda key: key.id) for one in _secrets(key, now)),
        routes=compile_routes(endpoints, providers, rules),
        budgets=dict(sorted(budgets.items())),
        ingested=dict(sorted(ingested.items())),
        limits=tuple(sorted(limits, key=lambda limit: limit.id)),
        predictions=tuple(
            Keeping(rule.project, rule.model, rule.sample_percent if rule.enabled else 0.0, rule.content, rule.redact)
            for rule in sorted(predictions, key=lambda rule: rule.id)
            if rule.enabled or rule.model  # a model's own rule that is off is off, whatever its project's says
        ),
    )


def dearest_requests(routes: Sequence[Route]) -> dict[str, int]:
    """Micro-dollars that one request may cost at most, by project: the whole context read, the longest answer given."""
    found: dict[str, int] = {}
    for route in routes:
        for target in route.targets:
            reads = target.context_tokens or (LONGEST_CONTEXT_TOKENS if target.kind else 0)
            cost = worst_case(reads, target.max_output_tokens, dearest(target.price))
            found[route.project] = max(cost, found.get(route.project, 0))
    return found


def _secrets(key: Key, now: datetime) -> list[SnapshotKey]:
    """The key once for each of its live secrets."""
    found, until = [_key(key)], key.old_secret_expires_at
    if key.old_secret_sha256 and until is not None and until > now:
        ends = until if key.expires_at is None else min(until, key.expires_at)
        found.append(replace(found[0], secret_sha256=key.old_secret_sha256, expires_at=ends.timestamp()))
    return found


def _key(key: Key) -> SnapshotKey:
    return SnapshotKey(
        id=key.id,
        secret_sha256=key.secret_sha256,
        project=key.project,
        owner=key.owner,
        role=key.role.value,
        models=key.models,
        networks=key.networks,
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        expires_at=None if key.expires_at is None else key.expires_at.timestamp(),
    )


def compile_routes(
    endpoints: Sequence[Endpoint], providers: Sequence[Provider], rules: Sequence[RouteRule]
) -> tuple[Route, ...]:
    """A route for every ready endpoint, under its own name, and those that were set, which come before them."""
    endpoints = [one for one in endpoints if one.status is EndpointStatus.READY and one.base_url]
    served = {(one.project, one.id): one for one in endpoints}
    hosted = {one.id: one for one in providers}
    found = {
        (one.project, one.id): Route(
            model=one.id,
            project=one.project,
            targets=(_endpoint_target(one, RouteTarget(endpoint=one.id)),),
            created_at=int(one.created_at.timestamp()),
        )
        for one in endpoints
    }
    for rule in rules:
        targets: list[Target] = []
        for wanted in rule.targets:
            endpoint = served.get((rule.project, wanted.endpoint))
            provider = hosted.get(f"{rule.project}:{wanted.provider}")
            if endpoint is not None:
                targets.append(_endpoint_target(endpoint, wanted))
            elif provider is not None and wanted.price is not None:
                targets.append(_provider_target(provider, wanted, wanted.price))
        found[rule.project, rule.model] = Route(
            model=rule.model,
            project=rule.project,
            targets=tuple(targets),
            created_at=int(rule.set_at.timestamp()),
            policy=rule.policy.value,
            sticky=rule.sticky,
            hedge_ms=rule.hedge_ms,
            queue=rule.queue,
            cache=rule.cache,
        )
    return tuple(found[name] for name in sorted(found, key=lambda name: (name[1], name[0])))


def _endpoint_target(endpoint: Endpoint, wanted: RouteTarget) -> Target:
    serving = endpoint.spec.serving
    longest = wanted.max_output_tokens or (MAX_OUTPUT_TOKENS if serving is None else serving.context)
    return Target(
        endpoint=endpoint.id,
        revision=endpoint.revision,
        base_url=endpoint.base_url,
        upstream_model=endpoint.id,
        price=wanted.price or endpoint.spec.token_price,
        weight=wanted.weight,
        max_output_tokens=longest,
        context_tokens=wanted.context_tokens or (0 if serving is None else serving.context),
        order=wanted.order,
    )


def _provider_target(provider: Provider, wanted: RouteTarget, price: TokenPrice) -> Target:
    # An answer is no longer than the context it is read in; and where nobody knows that either, than any there is.
    longest = wanted.max_output_tokens or wanted.context_tokens or LONGEST_ANSWER_TOKENS
    return Target(
        endpoint=provider.id,
        revision=0,
        base_url=provider.base_url,
        upstream_model=wanted.model,
        price=price,
        weight=wanted.weight,
        max_output_tokens=longest,
        context_tokens=wanted.context_tokens or 0,
        order=wanted.order,
        region=provider.region,
        kind=provider.kind.value,
        key_file=f"{provider.project}/{provider.name}",
        key_version=provider.key_version,
        api_version=provider.api_version,
        private=provider.private,
    )


def encode(snapshot: Snapshot) -> bytes:
    """A line with the SHA-256 of the rest, so that a reader never acts on damaged bytes; a line of JSON with all but
    keys; then a line per key, its secret's digest first, so that a reader need not decode keys nobody uses."""
    rest = asdict(replace(snapshot, keys=()))
    del rest["keys"]
    lines = [_json(rest)]
    for key in snapshot.keys:
        value = asdict(key)
        lines.append(f"{value.pop('secret_sha256')} {_json(value)}")
    body = ("\n".join(lines) + "\n").encode()
    return b"%b %d %b\n%b" % (_MAGIC, FORMAT, hashlib.sha256(body).hexdigest().encode(), body)


def _json(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def decode(data: bytes) -> Snapshot:
    """Raises IntegrityFailure when the bytes are not exactly what `encode` wrote."""
    head, lines = index(data)
    return replace(head, keys=tuple(read_key(digest, text) for digest, text in lines.items()))


def index(data: bytes) -> tuple[Snapshot, dict[bytes, bytes]]:
    """A snapshot without its keys, and each key's text by its secret's digest in hex, to `read_key` when it is used.

    Raises IntegrityFailure when the bytes are not exactly what `encode` wrote. Takes a millisecond per thousand keys.
    """
    first, _, body = data.partition(b"\n")
    magic, _, rest = first.partition(b" ")
    number, _, digest = rest.partition(b" ")
    if magic != _MAGIC:
        raise IntegrityFailure("this is no snapshot")
    if number != b"%d" % FORMAT:
        raise IntegrityFailure(f"the snapshot has format {number[:9].decode('ascii', 'replace')}, not {FORMAT}")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise IntegrityFailure("the snapshot does not match its SHA-256")
    head, *lines = body[:-1].split(b"\n")
    try:
        value = json.loads(head)
        value["routes"] = tuple(_snapshot_route(one) for one in value["routes"])
        value["limits"] = tuple(_snapshot_limit(one) for one in value["limits"])
        value["predictions"] = tuple(Keeping(**one) for one in value.get("predictions", ()))
        return Snapshot(**value), {line[:64]: line[65:] for line in lines}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityFailure(f"the snapshot can't be read: {type(error).__name__}: {error}") from None


def read_key(digest: bytes, text: bytes) -> SnapshotKey:
    """One key of `index`. Raises IntegrityFailure."""
    try:
        value = json.loads(text)
        return _snapshot_key({**value, "secret_sha256": digest.decode("ascii")})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise IntegrityFailure(f"a key of the snapshot can't be read: {type(error).__name__}: {error}") from None


def _snapshot_limit(value: Mapping[str, object]) -> Limit:
    raw = dict(value)
    measure, when_down = Measure(str(raw.pop("measure"))), WhenDown(str(raw.pop("when_down")))
    return Limit(measure=measure, when_down=when_down, **raw)  # type: ignore[arg-type]


def _snapshot_key(value: Mapping[str, object]) -> SnapshotKey:
    raw = dict(value)
    raw["role"] = Role(str(raw["role"])).value
    models = raw.pop("models")
    assert isinstance(models, list)
    networks = raw.pop("networks")
    assert isinstance(networks, list)
    bytes.fromhex(str(raw["secret_sha256"]))
    return SnapshotKey(**raw, models=tuple(models), networks=tuple(networks))  # type: ignore[arg-type]


def _snapshot_route(value: Mapping[str, object]) -> Route:
    raw = dict(value)
    targets = raw.pop("targets")
    assert isinstance(targets, list)
    raw["policy"] = RoutePolicy(str(raw.get("policy", RoutePolicy.WEIGHTED.value))).value
    queue, cache = raw.get("queue"), raw.get("cache")
    raw["queue"] = _snapshot_queue(queue) if isinstance(queue, dict) else None
    raw["cache"] = CacheRule(**cache) if isinstance(cache, dict) else None
    return Route(**raw, targets=tuple(_snapshot_target(one) for one in targets))  # type: ignore[arg-type]


def _snapshot_queue(value: Mapping[str, object]) -> QueueRule:
    raw = dict(value)
    keys = raw.pop("keys")
    assert isinstance(keys, list)
    named = tuple(KeyPriority(key_id=str(one["key_id"]), priority=Priority(one["priority"])) for one in keys)
    return QueueRule(**{**raw, "keys": named, "priority": Priority(str(raw["priority"]))})  # type: ignore[arg-type]


def _snapshot_target(value: Mapping[str, object]) -> Target:
    raw = dict(value)
    price = raw.pop("price")
    assert isinstance(price, dict)
    url = urlsplit(str(raw["base_url"]))
    if url.scheme not in {"http", "https"} or not url.hostname or not url.netloc.isascii() or url.port == 0:
        raise ValueError(f"{raw['base_url']!r} is no http or https address")
    if raw.get("kind"):
        ProviderKind(str(raw["kind"]))
    special = price.pop("special", None)
    special = None if special is None else SpecialPrices(**special)
    return Target(**raw, price=TokenPrice(**price, special=special))  # type: ignore[arg-type]
