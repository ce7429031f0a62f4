"""A request at the gate: which route it may take, what a refusal says, and the limits an answer tells."""

from __future__ import annotations

from operator import itemgetter

from groundplane.domain.serving.limits import PURSES, UNITS, Binding, Measure
from groundplane.gateway.lanes import Lane
from groundplane.gateway.protocol.errors import Fault
from groundplane.gateway.tables import KeyState
from groundplane.gateway.targets import RouteState
from groundplane.units import format_usd

_NANOSECONDS = 1_000_000_000


def find_route(key: KeyState, model: str) -> RouteState:
    """Raises Fault 403 for a model the key may not use, 404 for one its project does not have."""
    route = key.allowed.get(model)
    if route is not None:
        return route
    shown = model if len(model) <= 100 else model[:97] + "..."
    if model in key.routes:
        raise Fault(
            403,
            f"this key may not use the model {shown!r}",
            "model_not_allowed",
            type="permission_error",
            param="model",
        )
    raise Fault(
        404, f"the model {shown!r} does not exist in project {key.key.project}", "model_not_found", param="model"
    )


# ---------------------------------------------------------------- refusals


def refusal(lane: Lane, binding: Binding, now_ns: int) -> Fault:
    """The 429 that names the limit, how much it has left, and when to come back."""
    fault = _refusal(lane, binding, now_ns)
    fault.binding = binding
    return fault


def _refusal(lane: Lane, binding: Binding, now_ns: int) -> Fault:
    limit = binding.limit
    if binding.store_down:
        message = f"the {limit.measure.value} of {limit.scope} {limit.name} can't be checked at the moment"
        return Fault(503, message, "limits_unavailable", "server_error", headers=b"retry-after: 1\r\n")
    if limit.measure in PURSES:
        return _out_of_money(lane, binding)
    headers = limit_headers(lane, now_ns)
    unit = UNITS[limit.measure]
    told = (
        f"rate limit reached on {limit.measure.value} of {limit.scope} {limit.name}: "
        f"limit {limit.value}, left {binding.left}, this request needs {binding.requested} {unit}"
    )
    if binding.retry_after_ns is None:
        told += "; it can never fit: send a shorter prompt or a smaller max_tokens"
        return Fault(429, told, "rate_limit_exceeded", type=unit, headers=headers + b"x-should-retry: false\r\n")
    wait_ms = -(-binding.retry_after_ns // 1_000_000)
    told += f"; try again in {_span(binding.retry_after_ns).decode()}"
    headers += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-wait_ms // 1000), wait_ms)
    return Fault(429, told, "rate_limit_exceeded", type=unit, headers=headers)


def no_budget(lane: Lane) -> Fault:
    told = f"project {lane.key.project} has no budget, so nothing of it is served"
    headers = b"x-should-retry: false\r\n"
    return Fault(429, told, "insufficient_quota", type="insufficient_quota", headers=headers)


def _out_of_money(lane: Lane, binding: Binding) -> Fault:
    limit = binding.limit
    told = (
        f"{limit.scope} {limit.name} has {format_usd(binding.left)} left of its {limit.measure.value}; "
        f"this request may cost up to {format_usd(binding.requested)}"
    )
    share = next((one for one in lane.money if one.limit.id == limit.id), None)
    reserved = 0 if share is None else share.in_flight
    final = share is None or binding.requested > limit.value - share.unseen
    if not final and reserved > 0:
        told += f" ({format_usd(reserved)} is reserved by requests in flight)"
    if final and limit.measure in _BEGINS:
        told += f"; it begins anew {_BEGINS[limit.measure]}"
    # No Retry-After: nobody knows when there is money again. Waiting helps only while requests in flight hold it.
    headers = b"x-should-retry: false\r\n" if final else b""
    return Fault(429, told, "insufficient_quota", type="insufficient_quota", headers=headers)


_BEGINS = {Measure.DOLLARS_DAY: "at midnight UTC", Measure.DOLLARS_MONTH: "on the first of the month, UTC"}


def limit_headers(lane: Lane, now_ns: int) -> bytes:
    """`x-ratelimit-*` lines for requests and tokens a minute; where several scopes have one, of the fullest."""
    lines = b""
    for words, shares in ((_REQUESTS, lane.ones), (_TOKENS, lane.minute_tokens)):
        if shares:
            share = shares[0]
            left, full_in_ns = share.standing(now_ns)
            if len(shares) > 1:
                left, full_in_ns, share = min(((*one.standing(now_ns), one) for one in shares), key=itemgetter(0))
            lines += words % (share.limit.value, left, _span(full_in_ns))
    return lines


_LINES = b"x-ratelimit-limit-%b: %%d\r\nx-ratelimit-remaining-%b: %%d\r\nx-ratelimit-reset-%b: %%b\r\n"
_REQUESTS = _LINES % ((b"requests",) * 3)
_TOKENS = _LINES % ((b"tokens",) * 3)


def _span(nanoseconds: int) -> bytes:
    """As OpenAI writes spans: `120ms`, `1s`, `6m0s`."""
    if nanoseconds < _NANOSECONDS:
        return b"%dms" % -(-nanoseconds // 1_000_000)
    seconds = -(-nanoseconds // _NANOSECONDS)
    return b"%ds" % seconds if seconds < 60 else b"%dm%ds" % divmod(seconds, 60)
