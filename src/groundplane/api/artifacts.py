"""Artifacts: push, list, read, prove, delete; and the upkeep of the store beneath them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import Query, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.api.uploads import Landing
from groundplane.domain.artifact import Arrival, Artifact, ArtifactCheck, Collected, ProjectStorage, ScrubReport
from groundplane.domain.model import ManifestFile
from groundplane.identity import Actor, Permission
from groundplane.services.artifacts import Pushed
from groundplane.wire.artifacts import (
    CollectRequest,
    FilePieces,
    Known,
    KnownRequest,
    PushRequest,
    QuotaRequest,
    ScrubRequest,
    StorageView,
)
from groundplane.wiring import App

router = Router(prefix="/v1", tags=["artifacts"])
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
Keeper = Annotated[Actor, requires(Permission.STORAGE_WRITE)]
RANGE_BYTES_MAX = 16 * 2**20
LAYOUT_FILES, LAYOUT_PIECES = 500, 5000
"""How much of an artifact is told of in one answer."""


@router.get("/artifacts")
async def list_artifacts(
    app: Ground, actor: Reader, project: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[Artifact]:
    """Newest first."""
    found: list[Artifact] = await app.artifacts.artifacts(actor, project=project, limit=limit)
    return found


@router.post("/artifacts", status_code=201)
async def push_artifact(body: PushRequest, app: Ground, landing: Landing, actor: Writer) -> Artifact:
    """Turns an upload into an artifact. Files are read where they are: nothing passes through here again."""
    artifact: Artifact = await app.artifacts.push(actor, await _pushed(body, landing, actor))
    await landing.discard(body.upload_id, actor.key_id)
    return artifact


@router.get("/arrivals")
async def list_arrivals(app: Ground, actor: Reader, project: str | None = None) -> list[Arrival]:
    """Pushes that are stored and not artifacts yet, oldest first."""
    found: list[Arrival] = await app.artifacts.arriving.arrivals(actor, project=project)
    return found


@router.post("/arrivals", status_code=202)
async def push_arrival(body: PushRequest, app: Ground, landing: Landing, actor: Writer) -> Arrival:
    """Stores an upload, every byte, without waiting for its files' SHA-256; the artifact of that id follows by itself.

    Asking for that artifact waits for it. `known` must be empty.
    """
    arrival: Arrival = await app.artifacts.receive(actor, await _pushed(body, landing, actor))
    await landing.discard(body.upload_id, actor.key_id)
    return arrival


async def _pushed(body: PushRequest, landing: Landing, actor: Actor) -> Pushed:
    return Pushed(
        name=body.name,
        project=body.project,
        sources=await landing.sources(body.upload_id, actor.key_id),
        known=body.known,
        keep_until=body.keep_until,
        pinned=body.pinned,
    )


@router.post("/artifacts/known")
async def known_files(body: KnownRequest, app: Ground, actor: Writer) -> Known:
    """Which files need not be sent. A body because there may be many; changes nothing."""
    return Known(sha256s=await app.artifacts.known(actor, body.sha256s))


@router.get("/artifacts/{ref}")
async def get_artifact(ref: str, app: Ground, actor: Reader) -> Artifact:
    """One artifact by its id, or the newest of a name. One that is arriving is waited for."""
    artifact: Artifact = await app.artifacts.get(actor, ref)
    return artifact


@router.delete("/artifacts/{ref}")
async def delete_artifact(ref: str, app: Ground, actor: Writer, reason: str = "") -> Artifact | Arrival:
    """Takes the name away; the bytes go with the next collection unless something else needs them."""
    artifact: Artifact | Arrival = await app.artifacts.delete(actor, ref, reason)
    return artifact


@router.post("/artifacts/{ref}/verify")
async def verify_artifact(ref: str, app: Ground, actor: Reader) -> ArtifactCheck:
    """Reads every piece again; `problems` name file and piece."""
    check: ArtifactCheck = await app.artifacts.verify(actor, ref)
    return check


@router.get("/artifacts/{ref}/pieces")
async def get_pieces(ref: str, path: str, app: Ground, actor: Reader) -> FilePieces:
    """A file's pieces, and where a client reads them without us: a path on this machine, or a signed URL."""
    return await file_pieces(app, actor, await app.artifacts.file(actor, ref, path))


@router.get("/artifacts/{ref}/layout")
async def get_layout(ref: str, app: Ground, actor: Reader, offset: Annotated[int, Query(ge=0)] = 0) -> list[FilePieces]:
    """The pieces of its files, in their order, from `offset` on; ask again behind what came."""
    artifact: Artifact = await app.artifacts.get(actor, ref)
    return await files_pieces(app, actor, artifact.files, offset)


async def files_pieces(app: App, actor: Actor, files: Sequence[ManifestFile], offset: int) -> list[FilePieces]:
    """Some files that the actor was found to see: one large one, or many small ones."""
    found: list[FilePieces] = []
    count = 0
    for file in files[offset : offset + LAYOUT_FILES]:
        found.append(await file_pieces(app, actor, file))
        count += len(found[-1].pieces)
        if count >= LAYOUT_PIECES:
            break
    return found


async def file_pieces(app: App, actor: Actor, file: ManifestFile) -> FilePieces:
    """A file that the actor was found to see, as a pull needs it."""
    pieces, addresses = await app.artifacts.pieces(actor, file)
    return FilePieces(sha256=file.sha256, size_bytes=file.size_bytes, pieces=tuple(pieces), addresses=addresses)


@router.get("/artifacts/{ref}/content", response_class=Response)
async def get_content(
    ref: str,
    path: str,
    app: Ground,
    actor: Reader,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=RANGE_BYTES_MAX)] = RANGE_BYTES_MAX,
) -> Response:
    """A range of a file, verified before it is sent; no bytes past its end."""
    data = await app.artifacts.content(await app.artifacts.file(actor, ref, path), offset, limit)
    return Response(data, media_type="application/octet-stream")


# ---------------------------------------------------------------- the store


@router.get("/storage")
async def get_storage(app: Ground, actor: Reader) -> StorageView:
    """What the store holds and what it saves by sharing, and what each project keeps."""
    usage, projects = await app.artifacts.usage(actor)
    return StorageView(store=usage, sharing=round(usage.sharing, 3), projects=tuple(projects))


@router.post("/storage/collect")
async def collect_storage(body: CollectRequest, app: Ground, actor: Keeper) -> Collected:
    """Ends artifacts whose retention is over and removes what nothing refers to. Spares every push under way."""
    collected: Collected = await app.artifacts.collect(actor, grace_s=body.grace_s, thorough=body.thorough)
    return collected


@router.post("/storage/scrub")
async def scrub_storage(body: ScrubRequest, app: Ground, actor: Keeper) -> ScrubReport:
    """Reads the store and names each damaged piece and what uses it. Changes nothing."""
    report: ScrubReport = await app.artifacts.scrub(actor, body.limit_bytes, body.after)
    return report


@router.put("/storage/quotas/{project}")
async def set_quota(project: str, body: QuotaRequest, app: Ground, actor: Keeper) -> ProjectStorage:
    """The most bytes a project may keep. Below what it keeps now, it deletes nothing and refuses what comes."""
    storage: ProjectStorage = await app.artifacts.set_quota(actor, project, body.limit_bytes)
    return storage
