"""Uploads: files on their way to the registry, streamed to disk and never held in memory."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.api.staging import Staging
from groundplane.identity import Actor, Permission
from groundplane.wire.artifacts import Upload, UploadedFile

router = Router(prefix="/v1/uploads", tags=["models"])
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
_BODY = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"format": "binary"}}}}}


def staging(app: Ground) -> Staging:
    """The landing place of this installation."""
    return Staging(app.settings.home / "uploads", app.settings.upload_limit_bytes)


Landing = Annotated[Staging, Depends(staging)]


@router.post("", status_code=201)
async def create_upload(landing: Landing, actor: Writer) -> Upload:
    """Begins an upload. Only the key that began it can add to it or register it."""
    upload_id = await landing.begin(actor.key_id)
    return Upload(id=upload_id, folder=str(landing.place(upload_id, actor.key_id)))


@router.get("/{upload_id}")
async def get_upload(upload_id: str, landing: Landing, actor: Writer) -> Upload:
    """What has arrived: a broken push goes on from here."""
    files = await landing.files(upload_id, actor.key_id)
    return Upload(id=upload_id, folder=str(landing.place(upload_id, actor.key_id)), files=files)


@router.put("/{upload_id}/{path:path}", openapi_extra=_BODY)
async def upload_file(upload_id: str, path: str, request: Request, landing: Landing, actor: Writer) -> UploadedFile:
    """One file, whole or not at all; `path` is where it lies in the model's folder. Twice replaces it."""
    declared = request.headers.get("content-length", "0")
    declared_bytes = int(declared) if declared.isdigit() else 0
    return await landing.receive(upload_id, actor.key_id, path, request.stream(), declared_bytes)


@router.delete("/{upload_id}", status_code=204)
async def delete_upload(upload_id: str, landing: Landing, actor: Writer) -> None:
    """Lets go of an upload and its files."""
    await landing.discard(upload_id, actor.key_id)
