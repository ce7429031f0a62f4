"""Keys: made, listed, rotated, revoked. A secret is answered once, at its making; hashes of secrets never leave."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.access import Key
from groundplane.identity import Actor, Permission
from groundplane.wire.access import KeyRequest, NewKey, RotationRequest

router = Router(prefix="/v1/keys", tags=["keys"])
Writer = Annotated[Actor, requires(Permission.KEYS_WRITE)]


@router.get("")
async def list_keys(
    app: Ground, actor: Annotated[Actor, requires(Permission.KEYS_READ)], project: str | None = None
) -> list[Key]:
    """Every key that the caller sees, without the hashes of their secrets."""
    return [_shown(key) for key in await app.access.keys(actor, project)]


@router.post("", status_code=201)
async def create_key(body: KeyRequest, app: Ground, actor: Writer) -> NewKey:
    """Makes a key. Its secret is in this answer and nowhere else."""
    key, secret = await app.access.create_key(
        actor,
        name=body.name,
        project=body.project,
        owner=body.owner,
        role=body.role,
        models=body.models,
        networks=body.networks,
        requests_per_minute=body.requests_per_minute,
        tokens_per_minute=body.tokens_per_minute,
        expires_at=body.expires_at,
    )
    return NewKey(key=_shown(key), secret=secret)


@router.post("/{key_id}/rotate")
async def rotate_key(key_id: str, body: RotationRequest, app: Ground, actor: Writer) -> NewKey:
    """Gives a key a new secret; the one it had opens for the grace period too."""
    key, secret = await app.access.rotate_key(actor, key_id, grace_s=body.grace_s, reason=body.reason)
    return NewKey(key=_shown(key), secret=secret)


@router.delete("/{key_id}")
async def revoke_key(key_id: str, app: Ground, actor: Writer, reason: str = "") -> Key:
    """Ends a key at once. Its row stays: what it did remains attributable."""
    return _shown(await app.access.revoke_key(actor, key_id, reason))


def _shown(key: Key) -> Key:
    return replace(key, secret_sha256="", old_secret_sha256="")
