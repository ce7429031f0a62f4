"""Models: list, look at, register, prove."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Path, Query, Response

from groundplane.api.access import Ground, requires
from groundplane.api.artifacts import RANGE_BYTES_MAX, file_pieces, files_pieces
from groundplane.api.routing import Router
from groundplane.api.uploads import Landing
from groundplane.domain.model import ModelVersion
from groundplane.domain.scanning.report import ScanReport
from groundplane.identity import Actor, Permission
from groundplane.wire import ReasonRequest
from groundplane.wire.artifacts import FilePieces
from groundplane.wire.models import (
    Certificate,
    ModelCheck,
    ModelSignature,
    PublicKeys,
    RegisterRequest,
    ScanRequest,
    SigningKey,
)

router = Router(prefix="/v1/models", tags=["models"])
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Keeper = Annotated[Actor, requires(Permission.SYSTEM_WRITE)]
Number = Annotated[str, Path(description="A number, an alias, or `latest`.")]


@router.get("")
async def list_models(app: Ground, actor: Reader) -> list[ModelVersion]:
    """Every version that the caller sees, by name, newest first."""
    versions: list[ModelVersion] = await app.models.versions(actor)
    return versions


@router.get("/-/public-keys")
async def get_public_keys(app: Ground, actor: Reader) -> PublicKeys:
    """The public keys whose signatures count here: all that a stranger needs to check a certificate."""
    return PublicKeys(keys=app.models.public_keys())


@router.post("/-/signing-key/rotate")
async def rotate_signing_key(body: ReasonRequest, app: Ground, actor: Keeper) -> SigningKey:
    """Signs with a new key from now on. What was signed before stays true."""
    key_id, before = await app.models.rotate_signing_key(actor, body.reason)
    return SigningKey(key_id=key_id, before=before)


@router.get("/{name}")
async def get_model(name: str, app: Ground, actor: Reader) -> list[ModelVersion]:
    """A model's versions, newest first."""
    versions: list[ModelVersion] = await app.models.versions(actor, name)
    return versions


@router.get("/{name}/versions/{number}")
async def get_version(name: str, number: Number, app: Ground, actor: Reader) -> ModelVersion:
    """One version with its files."""
    version: ModelVersion = await app.models.get(actor, f"{name}@{number}")
    return version


@router.get("/{name}/versions/{number}/pieces")
async def get_version_pieces(name: str, number: Number, path: str, app: Ground, actor: Reader) -> FilePieces:
    """A file's pieces, and where a client reads them without us. An error unless the version is what was signed."""
    return await file_pieces(app, actor, await app.models.file(actor, f"{name}@{number}", path))


@router.get("/{name}/versions/{number}/layout")
async def get_version_layout(
    name: str, number: Number, app: Ground, actor: Reader, offset: Annotated[int, Query(ge=0)] = 0
) -> list[FilePieces]:
    """The pieces of its files, in their order, from `offset` on; ask again behind what came. An error as above."""
    return await files_pieces(app, actor, await app.models.files(actor, f"{name}@{number}"), offset)


@router.get("/{name}/versions/{number}/content", response_class=Response)
async def get_version_content(
    name: str,
    number: Number,
    path: str,
    app: Ground,
    actor: Reader,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=RANGE_BYTES_MAX)] = RANGE_BYTES_MAX,
) -> Response:
    """A range of a file, verified before it is sent. An error unless the version is what was signed."""
    data = await app.artifacts.content(await app.models.file(actor, f"{name}@{number}", path), offset, limit)
    return Response(data, media_type="application/octet-stream")


@router.post("/{name}/versions", status_code=201)
async def register_model(
    name: str,
    body: RegisterRequest,
    app: Ground,
    landing: Landing,
    actor: Annotated[Actor, requires(Permission.MODELS_WRITE)],
) -> ModelVersion:
    """Turns an upload into an immutable, signed version. Refused with the list of missing facts, and for pickles."""
    folder = await landing.folder(body.upload_id, actor.key_id)
    version: ModelVersion = await app.models.register(
        actor, name=name, project=body.project, source=folder, facts=body.facts
    )
    await landing.discard(body.upload_id, actor.key_id)
    return version


@router.post("/{name}/versions/{number}/verify")
async def verify_model(name: str, number: Number, app: Ground, actor: Reader) -> ModelCheck:
    """Re-hashes every file and checks the certificate; `problems` names what is not as it was signed."""
    checked = await app.models.verify(actor, f"{name}@{number}")
    return ModelCheck(
        ref=checked.ref,
        ok=checked.ok,
        checked_files=checked.checked_files,
        checked_bytes=checked.checked_bytes,
        key_id=checked.key_id,
        problems=tuple(checked.problems),
        addenda=checked.addenda,
    )


@router.post("/{name}/versions/{number}/scan")
async def scan_model(name: str, number: Number, body: ScanRequest, app: Ground, actor: Writer) -> ScanReport:
    """Looks at every stored file anew; what is found is answered, and kept as evidence of the version."""
    report: ScanReport = await app.scans.scan(
        actor, f"{name}@{number}", base_licenses=body.base_licenses, memory_bytes=body.memory_bytes
    )
    return report


@router.get("/{name}/versions/{number}/bom")
async def get_bom(name: str, number: Number, app: Ground, actor: Reader) -> dict[str, Any]:
    """A CycloneDX 1.6 machine-learning bill of materials, made from the certificate."""
    made: dict[str, Any] = await app.models.bom(actor, f"{name}@{number}")
    return made


@router.get("/{name}/versions/{number}/signature")
async def get_signature(name: str, number: Number, app: Ground, actor: Reader) -> ModelSignature:
    """The files' signature as the OpenSSF model-signing tool reads it, and the key to check it with."""
    return ModelSignature(**await app.models.signing_bundle(actor, f"{name}@{number}"))


@router.get("/{name}/versions/{number}/certificate")
async def get_certificate(name: str, number: Number, app: Ground, actor: Reader) -> Certificate:
    """The signed envelope and the statement in it. An error when the signature does not hold."""
    return Certificate(**await app.models.certificate(actor, f"{name}@{number}"))
