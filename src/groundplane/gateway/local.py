"""What the gateway answers by itself: the models a key may use, health, metrics."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

import msgspec

from groundplane.gateway.admission import find_route
from groundplane.gateway.protocol.errors import Fault, answer
from groundplane.gateway.protocol.http1 import RequestHead
from groundplane.gateway.state import GatewayState
from groundplane.gateway.tables import KeyState
from groundplane.gateway.targets import RouteState

LOCAL_PATHS = frozenset({b"/healthz", b"/metrics", b"/v1/models"})
METRICS = b"/metrics"
_METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"[^\x00-\x1f\x7f]{1,200}")


def needs_key(path: bytes, peer_is_local: bool) -> bool:
    """Health is open; metrics name models, so beyond this machine they need a key."""
    return path != b"/healthz" and not (path == b"/metrics" and peer_is_local)


def answer_locally(state: GatewayState, head: RequestHead, key: KeyState | None, *, close: bool) -> bytes:
    """The whole answer. Raises Fault. Who names a version of Anthropic's API gets models in its words."""
    path, card = head.path, _anthropic_card if b"anthropic-version" in head.headers else _card
    if path == b"/healthz":
        body = _health(state)
    else:
        assert key is not None, "every /v1 path needs a key"
        if not key.may_call:
            raise Fault(403, f"keys of role {key.key.role} may not call models", "role_forbidden", "permission_error")
        if path == b"/v1/models":
            cards = [card(one) for one in key.allowed.values()]
            listed: dict[str, object] = {"object": "list", "data": cards}
            if card is _anthropic_card:
                ends = (cards[0]["id"], cards[-1]["id"]) if cards else (None, None)
                listed = {"data": cards, "has_more": False, "first_id": ends[0], "last_id": ends[1]}
            body = msgspec.json.encode(listed)
        else:
            body = msgspec.json.encode(card(_model(key, path.removeprefix(b"/v1/models/"))))
    state.metrics.no_model.answered(200)
    return answer(200, body, state.new_request_id(), close=close)


def check_may_scrape(key: KeyState | None) -> None:
    """Raises Fault 403 for a key whose role may not read metrics."""
    if key is not None and not key.may_read_metrics:
        raise Fault(403, f"keys of role {key.key.role} may not read metrics", "role_forbidden", "permission_error")


def answer_scrape(state: GatewayState, text: bytes, *, close: bool) -> bytes:
    """The whole answer to who asked for metrics."""
    state.metrics.no_model.answered(200)
    return answer(200, text, state.new_request_id(), close=close, content_type=_METRICS_TYPE)


def _health(state: GatewayState) -> bytes:
    tables = state.tables
    return msgspec.json.encode(
        {
            "status": "waiting for a snapshot" if tables is None else "draining" if state.draining else "ok",
            "snapshot_version": None if tables is None else tables.version,
            "snapshot_trouble": state.snapshot_trouble,
            "usage_log_trouble": state.log.trouble,
            "telemetry_trouble": state.telemetry.trouble,
        }
    )


def _model(key: KeyState, quoted: bytes) -> RouteState:
    name = unquote_to_bytes(quoted).decode("utf-8", "replace")
    if not _NAME.fullmatch(name):
        raise Fault(404, "that is no model name", "model_not_found", param="model")
    return find_route(key, name)


def _card(route: RouteState) -> dict[str, object]:
    one = route.route
    return {"id": one.model, "object": "model", "created": one.created_at, "owned_by": one.project}


def _anthropic_card(route: RouteState) -> dict[str, object]:
    one = route.route
    created = datetime.fromtimestamp(one.created_at, UTC).isoformat().replace("+00:00", "Z")
    return {"type": "model", "id": one.model, "display_name": one.model, "created_at": created}
