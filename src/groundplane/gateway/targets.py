"""Where a route's requests go, made ready for them: targets with their upstreams, and routes with their targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib.parse import quote

from groundplane.domain.serving.provider import ProviderKind
from groundplane.domain.serving.queueing import Priority, QueueRule
from groundplane.domain.serving.response_cache import CacheRule
from groundplane.domain.serving.routing import RoutePolicy, Standing
from groundplane.domain.serving.snapshot import LONGEST_CONTEXT_TOKENS, Route, SnapshotKey, Target
from groundplane.gateway.protocol.doors import Door
from groundplane.gateway.records import constant_members
from groundplane.gateway.telemetry.metrics import Metrics, ModelCounters, Series
from groundplane.gateway.upstream import Upstream

JSON = b"application/json"
_QUERY_NAMES = {
    ProviderKind.AZURE.value: frozenset({b"api-version"}),
    ProviderKind.ANTHROPIC.value: frozenset({b"beta"}),
    ProviderKind.OPENAI.value: frozenset[bytes](),
}


@dataclass(slots=True)
class TargetState:
    """A target with its upstream, and what is prepared for it: request heads by path, and books by key."""

    target: Target
    upstream: Upstream
    standing: Standing = field(default_factory=Standing)
    key: bytes | None = b""
    """A provider's key; None when it can't be read, and the target can't be asked."""
    place: str = ""
    """Where it is, the same for every route that leads there."""
    heads: dict[bytes, bytes] = field(default_factory=dict)
    books: dict[str, tuple[bytes, Series]] = field(default_factory=dict)

    def booked(self, key: SnapshotKey, model: str, metrics: Metrics) -> tuple[bytes, Series]:
        """What every record of this key here says, and what is counted of it."""
        book = self.books.get(key.id)
        if book is None:
            revision = str(self.target.revision) if self.target.revision else ""
            series = metrics.series(key.project, key.id, model, self.target.endpoint, revision)
            book = self.books[key.id] = constant_members(key, model, self.target), series
        return book

    def request_head(self, path: bytes, content_type: bytes, query: bytes = b"") -> bytes:
        """The request head's part that is the same for every request of this content type to this path."""
        head = self.heads.get(path)
        if head is None or query or content_type is not JSON:
            fields = b"host: %b\r\naccept-encoding: identity\r\n%bcontent-type: %b\r\n"
            fields %= (self.upstream.authority, self._key_lines(), content_type)
            head = b"POST %b HTTP/1.1\r\n%b" % (self._path(path, self._asked(query)), fields)
            if content_type is JSON and not query:
                self.heads[path] = head
        return head

    @property
    def name(self) -> str:
        """The same on every gateway."""
        return f"{self.target.endpoint}/{self.target.upstream_model}"

    def is_open(self, now_ns: int) -> bool:
        """Whether it may be asked now."""
        return (
            self.key is not None
            and self.standing.rests_until_ns <= now_ns
            and self.standing.has_room
            and not self.upstream.circuit.is_open(now_ns)
        )

    def speaks(self, door: Door) -> bool:
        """Whether the path is one of the target's API. Endpoints of ours, and who is like OpenAI, say so themselves."""
        kind = self.target.kind
        if kind == ProviderKind.ANTHROPIC:
            return door.anthropic
        return not (door.anthropic and kind in {ProviderKind.OPENAI, ProviderKind.AZURE})

    def passed(self, lines: bytes) -> bytes:
        """The caller's header lines that go on; Anthropic wants a version from everybody."""
        if self.target.kind == ProviderKind.ANTHROPIC and b"anthropic-version:" not in lines:
            lines += b"anthropic-version: 2023-06-01\r\n"
        return lines

    def _asked(self, query: bytes) -> bytes:
        """What of the caller's query this API knows, with its question mark; endpoints, and who is like OpenAI, get
        all of it."""
        known = _QUERY_NAMES.get(self.target.kind)
        if query and known is not None:
            query = b"&".join(pair for pair in query.split(b"&") if pair.partition(b"=")[0] in known)
        return b"?" + query if query else b""

    def _path(self, path: bytes, query: bytes) -> bytes:
        kind, upstream = self.target.kind, self.upstream
        if not kind:
            return upstream.prefix + path + query
        if kind == ProviderKind.ANTHROPIC:
            return upstream.path.removesuffix(b"/v1") + path + query
        rest = path.removeprefix(b"/v1")
        if kind != ProviderKind.AZURE:
            return (upstream.path or b"/v1") + rest + query
        if rest == b"/responses":
            return upstream.path + b"/openai/v1/responses" + query
        deployment = quote(self.target.upstream_model, safe="").encode()
        query = query or b"?api-version=%b" % self.target.api_version.encode()
        return b"%b/openai/deployments/%b%b%b" % (upstream.path, deployment, rest, query)

    def _key_lines(self) -> bytes:
        if not self.target.kind or not self.key:
            return b""
        return _KEY_LINES.get(self.target.kind, b"authorization: Bearer %b\r\n") % self.key


_KEY_LINES: dict[str, bytes] = {ProviderKind.AZURE: b"api-key: %b\r\n", ProviderKind.ANTHROPIC: b"x-api-key: %b\r\n"}


@dataclass(slots=True)
class RouteState:
    """A route with its targets' states, its counters, and the longest answer and prompt any target has; 0 is not known.
    `far_tokens`: what a prompt may have that refers to something elsewhere, if that is more than the request.

    `only`: its one target, where there is nothing to choose. `lines`: where its requests wait for targets' limits and
    for replicas in `places`. `print`: changes with whatever its answers depend on. `reads_fields`: where single
    fields stand in a request matters: a target calls the model otherwise or has more, or prompts go by their head.
    """

    route: Route
    targets: tuple[TargetState, ...]
    counters: ModelCounters
    max_output_tokens: int
    policy: RoutePolicy = RoutePolicy.WEIGHTED
    only: TargetState | None = None
    queue: QueueRule | None = None
    cache: CacheRule | None = None
    priorities: dict[str, Priority] = field(default_factory=dict)
    places: tuple[str, ...] = ()
    gates_line: str = ""
    replicas_line: str = ""
    lines: tuple[str, ...] = ()
    print: bytes = b""
    reads_fields: bool = False
    context_tokens: int = 0
    far_tokens: int = 0


def fill_in(route: RouteState) -> None:
    """What is read of requests of the route, where they wait, and what its kept answers depend on."""
    rule = route.route
    route.reads_fields = route.policy is RoutePolicy.PREFIX or any(
        one.target.kind or one.target.upstream_model != rule.model for one in route.targets
    )
    contexts = [one.target.context_tokens for one in route.targets]
    route.context_tokens = max(contexts) if contexts and all(contexts) else 0
    if not route.context_tokens and any(one.target.kind for one in route.targets):
        route.far_tokens = LONGEST_CONTEXT_TOKENS
    route.queue, route.cache = rule.queue, rule.cache
    if rule.queue is not None:
        route.priorities = {one.key_id: one.priority for one in rule.queue.keys}
        route.places = tuple(sorted(one.place for one in route.targets))
        route.gates_line = f"targets of {rule.project}/{rule.model}"
        route.replicas_line = f"replicas {', '.join(route.places)}"
        route.lines = (route.gates_line, route.replicas_line)
    if rule.cache is not None:
        answering = [
            (one.target.endpoint, one.target.revision, one.target.base_url, one.target.upstream_model)
            for one in route.targets
        ]
        route.print = repr(answering).encode()
