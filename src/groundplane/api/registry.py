"""The registry around versions: aliases and their history, search, differences, tags, archive, cards."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query, Response

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain import registry as domain
from groundplane.domain.model import ModelVersion
from groundplane.domain.registry import AliasMove, ModelAlias, RegistryEntry, VersionDiff, VersionView
from groundplane.errors import InvalidInput
from groundplane.identity import Actor, Permission
from groundplane.wire import ReasonRequest
from groundplane.wire.registry import CopyRequest, MoveRequest, TagsRequest

router = Router(prefix="/v1", tags=["models"])
Reader = Annotated[Actor, requires(Permission.MODELS_READ)]
Writer = Annotated[Actor, requires(Permission.MODELS_WRITE)]


@router.get("/registry/search")
async def search_versions(
    app: Ground,
    actor: Reader,
    q: str = "",
    project: str = "",
    license: str = "",
    tag: Annotated[list[str] | None, Query()] = None,
    metric: Annotated[list[str] | None, Query()] = None,
    archived: bool = False,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[RegistryEntry]:
    """Versions, newest first. `tag` is NAME or NAME=TEXT, `metric` is NAME>=X or NAME<=X; both may be given again."""
    query = domain.Query(
        text=q,
        project=project,
        license=license,
        tags=tuple((name, text) for name, _, text in (each.partition("=") for each in tag or ())),
        metrics=tuple(domain.metric_bound(each) for each in metric or ()),
        archived=archived,
        limit=limit,
    )
    found: list[RegistryEntry] = await app.registry.search(actor, query)
    return found


@router.get("/registry/diff")
async def diff_versions(app: Ground, actor: Reader, before: str, after: str) -> VersionDiff:
    """Everything that differs between two versions, such as `tiny@production` and `tiny@4`."""
    found: VersionDiff = await app.registry.diff(actor, before, after)
    return found


@router.get("/models/{name}/aliases")
async def list_aliases(name: str, app: Ground, actor: Reader) -> list[ModelAlias]:
    """What a model's aliases stand for."""
    found: list[ModelAlias] = await app.registry.aliases(actor, name)
    return found


@router.get("/models/{name}/aliases/{alias}")
async def get_alias_history(name: str, alias: str, app: Ground, actor: Reader) -> list[AliasMove]:
    """Every move of an alias, newest first: who, when, why, and the check its gates made."""
    found: list[AliasMove] = await app.registry.history(actor, name, alias)
    return found


@router.put("/models/{name}/aliases/{alias}")
async def move_alias(name: str, alias: str, body: MoveRequest, app: Ground, actor: Writer) -> AliasMove:
    """Lets an alias stand for a version, if its gates agree; refused with every requirement that is not met."""
    moved: AliasMove = await app.registry.move(actor, name, alias, body.to, body.reason)
    return moved


@router.post("/models/{name}/aliases/{alias}/rollback")
async def roll_back_alias(name: str, alias: str, body: ReasonRequest, app: Ground, actor: Writer) -> AliasMove:
    """Back to what the alias stood for before."""
    moved: AliasMove = await app.registry.rollback(actor, name, alias, body.reason)
    return moved


@router.delete("/models/{name}/aliases/{alias}")
async def remove_alias(name: str, alias: str, app: Ground, actor: Writer, reason: str = "") -> AliasMove:
    """Takes an alias away; its history stays."""
    moved: AliasMove = await app.registry.remove(actor, name, alias, reason)
    return moved


@router.get("/models/{name}/versions/{version}/registry")
async def get_registry_view(name: str, version: str, app: Ground, actor: Reader) -> VersionView:
    """A version with its aliases and tags, and whether it is archived."""
    found: VersionView = await app.registry.view(actor, f"{name}@{version}")
    return found


@router.get(
    "/models/{name}/versions/{version}/card",
    response_class=Response,
    responses={200: {"content": {"text/markdown": {}}}},
)
async def get_card(name: str, version: str, app: Ground, actor: Reader) -> Response:
    """The model card, written from facts, in Markdown."""
    card: str = await app.registry.card(actor, f"{name}@{version}")
    return Response(card, media_type="text/markdown; charset=utf-8")


@router.put("/models/{name}/versions/{version}/tags")
async def tag_version(name: str, version: str, body: TagsRequest, app: Ground, actor: Writer) -> VersionView:
    """Sets tags; null takes one away."""
    if not body.tags:
        raise InvalidInput("no tags are given", 'send {"tags": {"stage": "trial"}}')
    found: VersionView = await app.registry.tag(actor, f"{name}@{version}", body.tags)
    return found


@router.post("/models/{name}/versions/{version}/copy", status_code=201)
async def copy_version(name: str, version: str, body: CopyRequest, app: Ground, actor: Writer) -> ModelVersion:
    """The same content as the next version of another name, with a certificate that names its source; judged anew."""
    made: ModelVersion = await app.tracked_models.copy(
        actor, f"{name}@{version}", body.name, project=body.project, reason=body.reason
    )
    return made


@router.post("/models/{name}/versions/{version}/archive")
async def archive_version(name: str, version: str, body: ReasonRequest, app: Ground, actor: Writer) -> VersionView:
    """Hides a version from searches and keeps aliases off it. Nothing is deleted."""
    found: VersionView = await app.registry.archive(actor, f"{name}@{version}", body.reason)
    return found


@router.post("/models/{name}/versions/{version}/unarchive")
async def unarchive_version(name: str, version: str, body: ReasonRequest, app: Ground, actor: Writer) -> VersionView:
    """Brings an archived version back."""
    found: VersionView = await app.registry.unarchive(actor, f"{name}@{version}", body.reason)
    return found
