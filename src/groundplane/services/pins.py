"""Names that move become what they stand for now: a plan is bound to a number and a digest, never to an alias."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath

from groundplane.domain.dataset import DatasetVersion, Pointer, parse_dataset_ref
from groundplane.domain.model import parse_ref
from groundplane.domain.registry import ModelAlias
from groundplane.domain.spec import DataSource, EndpointSpec, JobSpec
from groundplane.errors import NotFound
from groundplane.identity import Actor
from groundplane.ports import Tx


async def pinned(tx: Tx, actor: Actor, spec: JobSpec | EndpointSpec) -> JobSpec | EndpointSpec:
    """The spec with its model's alias as a number and its datasets as digests. NotFound for a name of nothing."""
    if isinstance(spec, EndpointSpec):
        wanted = parse_ref(spec.model)
        if not wanted.alias:
            return spec
        alias = await tx.get(ModelAlias, str(wanted))
        if alias is None or not (actor.sees(alias.project) or alias.project == spec.metadata.project):
            raise NotFound(f"{wanted.name} has no alias {wanted.alias}", "ground models aliases lists those there are")
        return replace(spec, model=f"{alias.name}@{alias.number}")
    if not any(source.dataset for source in spec.data):
        return spec
    return replace(spec, data=tuple([await _source(tx, actor, source) for source in spec.data]))


async def _source(tx: Tx, actor: Actor, source: DataSource) -> DataSource:
    if not source.dataset:
        return source
    found = await dataset(tx, actor, source.dataset)
    # What is measured at the run's start is held against this digest: other data is then called disputed.
    path = source.path or (found.location if found.pointer is Pointer.FOLDER else "")
    if path and path == found.location and len(found.files) == 1 and PurePosixPath(path).name != found.files[0].path:
        path = f"{path.rstrip('/')}/{found.files[0].path}"
    return replace(
        source,
        dataset=found.id,
        path=path,
        sha256=source.sha256 or found.digest,
        size_bytes=source.size_bytes or found.size_bytes,
        classification=source.classification or found.classification,
    )


async def dataset(tx: Tx, actor: Actor, ref: str) -> DatasetVersion:
    """`corpus@2` or `corpus@latest`. Raises NotFound, InvalidInput."""
    name, number = parse_dataset_ref(ref)
    newest = await tx.find(DatasetVersion, {"name": name}, order="-number", limit=1)
    if not newest or not actor.sees(newest[0].project):
        raise NotFound(f"there is no dataset {name}", "ground datasets list shows the ones you see")
    found = newest[0] if number is None else await tx.get(DatasetVersion, f"{name}@{number}")
    if found is None:
        raise NotFound(f"there is no {ref}", f"{name} has versions up to {newest[0].number}")
    return found
