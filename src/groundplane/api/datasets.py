"""Datasets: register, look at, compare, verify, follow, erase with proof."""

from __future__ import annotations

from typing import Annotated

from fastapi import Path

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.dataset import DatasetCheck, DatasetDiff, DatasetVersion, Erasure, Lineage
from groundplane.identity import Actor, Permission
from groundplane.services.datasets import Offered
from groundplane.wire.datasets import DatasetRequest, EraseRequest
from groundplane.wire.models import Certificate

router = Router(prefix="/v1/datasets", tags=["datasets"])
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]
Version = Annotated[str, Path(description="A number, or `latest`.")]


@router.get("")
async def list_datasets(app: Ground, actor: Reader, name: str = "", project: str = "") -> list[DatasetVersion]:
    """Versions by name, newest first."""
    found: list[DatasetVersion] = await app.datasets.datasets(actor, name=name, project=project)
    return found


@router.post("", status_code=201)
async def register_dataset(body: DatasetRequest, app: Ground, actor: Writer) -> DatasetVersion:
    """Makes the next version; refused with every missing fact. The newest comes back when nothing would differ."""
    offered = Offered(
        name=body.name,
        project=body.project,
        location=body.location,
        artifact_id=body.artifact_id,
        files=tuple(body.files),
        profile=body.profile,
    )
    made: DatasetVersion = await app.datasets.register(actor, offered, body.facts)
    return made


@router.get("/diff")
async def diff_datasets(app: Ground, actor: Reader, before: str, after: str) -> DatasetDiff:
    """Files, columns and facts that differ between two versions."""
    found: DatasetDiff = await app.datasets.diff(actor, before, after)
    return found


@router.get("/erasures")
async def list_erasures(app: Ground, actor: Reader, ref: str = "") -> list[Erasure]:
    """What was erased, newest first."""
    found: list[Erasure] = await app.datasets.erasures(actor, ref)
    return found


@router.get("/erasures/{erasure_id}")
async def get_erasure_proof(erasure_id: str, app: Ground, actor: Reader) -> Certificate:
    """The signed statement of an erasure. An error when its signature does not hold."""
    return Certificate(**await app.datasets.proof(actor, erasure_id))


@router.get("/{name}/versions/{version}")
async def get_dataset(name: str, version: Version, app: Ground, actor: Reader) -> DatasetVersion:
    """One version with its files and what is in its tables."""
    found: DatasetVersion = await app.datasets.get(actor, f"{name}@{version}")
    return found


@router.get("/{name}/versions/{version}/lineage")
async def get_lineage(name: str, version: Version, app: Ground, actor: Reader) -> Lineage:
    """The runs that read it, the models made from it, and the models made from these."""
    found: Lineage = await app.datasets.lineage(actor, f"{name}@{version}")
    return found


@router.post("/{name}/versions/{version}/verify")
async def verify_dataset(name: str, version: Version, app: Ground, actor: Reader) -> DatasetCheck:
    """Reads every byte of a managed copy again."""
    checked: DatasetCheck = await app.datasets.verify(actor, f"{name}@{version}")
    return checked


@router.post("/{name}/versions/{version}/erase", status_code=201)
async def erase_dataset(name: str, version: Version, body: EraseRequest, app: Ground, actor: Writer) -> Erasure:
    """Takes a version's bytes away and signs what was done, who used it, and what is left for others to do."""
    erased: Erasure = await app.datasets.erase(
        actor, f"{name}@{version}", records=body.records, reason=body.reason, replacement=body.replacement
    )
    return erased
