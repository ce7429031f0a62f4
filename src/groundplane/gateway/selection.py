"""One request's way over its route's targets: which are left, which comes next, and what to say when none is."""

from __future__ import annotations

import hashlib
import random

from groundplane.domain.serving.routing import FAR_RETRY_S, Candidate, RoutePolicy, Wish, choose
from groundplane.gateway.protocol.doors import Door
from groundplane.gateway.protocol.errors import Fault, upstream_fault
from groundplane.gateway.protocol.json_body import Members
from groundplane.gateway.targets import RouteState, TargetState

_HEAD_FIELDS = ("system", "instructions", "tools", "messages", "input", "prompt")
_HEAD_MAX_BYTES = 512


class Selection:
    """The targets of a route that a request has not tried yet."""

    __slots__ = ("_affinity", "_bounded", "_door", "_far_from", "_near", "_route", "_tried")

    def __init__(self, route: RouteState, door: Door, body: bytes, members: Members, session: bytes) -> None:
        self._route = route
        self._door = door
        self._tried = [not one.speaks(door) for one in route.targets]
        self._far_from = self._near = ""
        self._bounded = True
        self._affinity = b""
        if session and route.route.sticky:
            self._affinity, self._bounded = hashlib.blake2b(session, digest_size=32).digest(), False
        elif route.policy is RoutePolicy.PREFIX and not door.form:
            self._affinity = _prompt_head(body, members)

    @property
    def none_left(self) -> bool:
        return all(self._tried)

    def tried_only(self) -> None:
        """The route's one target was asked already."""
        self._tried = [True] * len(self._tried)

    def wait_ns(self, now_ns: int) -> int | None:
        """How long until one of the targets has room: 0 where nobody knows, None where none of them is merely full."""
        rests: list[int] = []
        for tried, one in zip(self._tried, self._route.targets, strict=True):
            if one.key is None or not one.speaks(self._door) or one.upstream.circuit.is_open(now_ns):
                continue
            if one.standing.rests_until_ns > now_ns:
                rests.append(one.standing.rests_until_ns - now_ns)
            elif not tried and not one.standing.has_room:
                return 0
        return min(rests, default=None)

    def next(self, now_ns: int) -> TargetState | None:
        """The next target to ask, which counts as tried from now on; None when none is left that may be asked now."""
        route = self._route
        candidates = [
            Candidate(
                one.target.weight,
                not one.is_open(now_ns),
                self._tried[index],
                one.target.order,
                one.standing.in_flight_tokens,
                one.target.region,
                one.name,
            )
            for index, one in enumerate(route.targets)
        ]
        draws = (random.random(), random.random())  # noqa: S311 - load balancing, not a secret
        wish = Wish(draws, self._affinity, self._bounded, self._far_from, self._near)
        index = choose(candidates, route.policy, wish)
        if index is None:
            return None
        self._tried[index] = True
        return route.targets[index]

    def limited(self, target: TargetState, retry_after_s: float | None) -> None:
        """The target answered 429: a short wait is better spent on another one near it, a long one far from it."""
        region = target.target.region
        self._far_from, self._near = (region, "") if (retry_after_s or 0) > FAR_RETRY_S else ("", region)

    def nobody(self, now_ns: int) -> Fault:
        """Why nobody answers: 404 when none of the targets speaks this API, 429 when they ask to wait, else 503."""
        model, targets = self._route.route.model, [one for one in self._route.targets if one.speaks(self._door)]
        if self._route.targets and not targets:
            told = f"the model {model!r} is served by providers that do not speak the API of this path"
            return Fault(404, told, "path_not_served", param="model")
        rests = [max(0, one.standing.rests_until_ns - now_ns) for one in targets]
        if rests and min(rests) > 0:
            wait_ms = -(-min(rests) // 1_000_000)
            told = f"every provider of model {model!r} limits requests at the moment; try again in {wait_ms} ms"
            headers = b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-wait_ms // 1000), wait_ms)
            return Fault(429, told, "rate_limit_exceeded", type="upstream", headers=headers)
        if any(not one.standing.has_room for one in targets):
            told = f"every replica of model {model!r} has as many requests as it can answer in time"
            headers = b"retry-after: 1\r\n"
            return Fault(429, told, "rate_limit_exceeded", type="requests", headers=headers)
        pauses = (
            max(rest, one.upstream.circuit.closed_at_ns - now_ns) for rest, one in zip(rests, targets, strict=True)
        )
        wait_s = 1 + max(0, min(pauses, default=0)) // 10**9
        told = f"no server of model {model!r} is answering at the moment"
        return upstream_fault(503, told, "upstream_unavailable", b"retry-after: %d\r\n" % wait_s)


def _prompt_head(body: bytes, members: Members) -> bytes:
    """What begins alike in requests that share a prompt: the first bytes of what providers put first."""
    spans = [members[name] for name in _HEAD_FIELDS if name in members]
    head = b"\0".join(body[start : min(end, start + _HEAD_MAX_BYTES)] for start, end in spans)
    return hashlib.blake2b(head, digest_size=32).digest() if head else b""
