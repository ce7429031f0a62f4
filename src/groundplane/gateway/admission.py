"""A request at the gate, before anything goes upstream: which route, how much to reserve, what a refusal says."""

from __future__ import annotations

from groundplane.domain.limits import Ask, Binding, Limit, Meter, admit
from groundplane.domain.usage import estimated_tokens, worst_case
from groundplane.gateway.errors import Fault
from groundplane.gateway.json_body import Fields
from groundplane.gateway.state import KeyState, RouteState
from groundplane.units import format_usd

_DEFAULT_COMPLETION_TOKENS = 512
"""Reserved of tokens per minute when a request names no limit; money is reserved for the route's longest answer."""

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


def ask_for(route: RouteState, fields: Fields, body_bytes: int, *, generates: bool) -> Ask:
    """Tokens estimated, dollars at worst, over every target that may answer. Embeddings generate nothing."""
    tokens = most = 0
    if generates:
        answers, limit = fields.answers(), fields.answer_tokens_max
        longest = route.max_output_tokens
        tokens = answers * (min(_DEFAULT_COMPLETION_TOKENS, longest) if limit is None else limit)
        most = answers * (longest if limit is None else limit)
    microusd = 0
    for one in route.targets:
        microusd = max(microusd, worst_case(body_bytes, most, one.target.price))
    return Ask(estimated_tokens(body_bytes) + tokens, microusd)


def reserve(key: KeyState, ask: Ask, now_ns: int) -> None:
    """Takes from every limit of the key or from none; raises Fault 429 naming the one that binds."""
    binding = admit(key.requests, key.tokens, key.purse, ask, now_ns)
    if binding is not None:
        raise _refusal(key, binding, now_ns)


def _refusal(key: KeyState, binding: Binding, now_ns: int) -> Fault:
    if binding.limit is Limit.BUDGET:
        return _out_of_money(key, binding)
    headers = limit_headers(key, now_ns)
    unit = "requests" if binding.limit is Limit.REQUESTS else "tokens"
    told = (
        f"rate limit reached on {binding.limit} of key {key.key.id}: "
        f"limit {binding.limit_value}, left {binding.left}, this request needs {binding.requested} {unit}"
    )
    if binding.retry_after_ns is None:
        told += "; it can never fit: send a shorter prompt or a smaller max_tokens"
        return Fault(429, told, "rate_limit_exceeded", type=unit, headers=headers + b"x-should-retry: false\r\n")
    wait_ms = -(-binding.retry_after_ns // 1_000_000)
    told += f"; try again in {_span(binding.retry_after_ns).decode()}"
    headers += b"retry-after: %d\r\nretry-after-ms: %d\r\n" % (-(-wait_ms // 1000), wait_ms)
    return Fault(429, told, "rate_limit_exceeded", type=unit, headers=headers)


def _out_of_money(key: KeyState, binding: Binding) -> Fault:
    project, purse = key.key.project, key.purse
    if purse.remaining is None:
        told, final = f"project {project} has no budget, so nothing of it is served", True
    else:
        left = max(0, binding.left)
        told = (
            f"project {project} has {format_usd(left)} left of its budget; "
            f"this request may cost up to {format_usd(binding.requested)}"
        )
        final = binding.requested > purse.remaining - purse.unseen
        if not final:
            told += f" ({format_usd(purse.reserved)} is reserved by requests in flight)"
    # No Retry-After: nobody knows when there is money again. Waiting helps only while requests in flight hold it.
    headers = b"x-should-retry: false\r\n" if final else b""
    return Fault(429, told, "insufficient_quota", type="insufficient_quota", headers=headers)


def limit_headers(key: KeyState, now_ns: int) -> bytes:
    """`x-ratelimit-*` lines for the limits this key has."""
    lines = b""
    if key.requests is not None:
        lines += _meter_lines(b"requests", key.requests, now_ns)
    if key.tokens is not None:
        lines += _meter_lines(b"tokens", key.tokens, now_ns)
    return lines


def _meter_lines(unit: bytes, meter: Meter, now_ns: int) -> bytes:
    left, full_in_ns = meter.standing(now_ns)
    return b"x-ratelimit-limit-%b: %d\r\nx-ratelimit-remaining-%b: %d\r\nx-ratelimit-reset-%b: %b\r\n" % (
        unit,
        meter.limit,
        unit,
        left,
        unit,
        _span(full_in_ns),
    )


def _span(nanoseconds: int) -> bytes:
    """As OpenAI writes spans: `120ms`, `1s`, `6m0s`."""
    if nanoseconds < _NANOSECONDS:
        return b"%dms" % -(-nanoseconds // 1_000_000)
    seconds = -(-nanoseconds // _NANOSECONDS)
    return b"%ds" % seconds if seconds < 60 else b"%dm%ds" % divmod(seconds, 60)
