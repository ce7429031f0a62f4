"""Names that move become what they stand for now: a plan is bound to a number and a digest, never to an alias."""

from __future__ import annotations

from dataclasses import replace

from groundplane.domain.dataset import DatasetVersion, Pointer, parse_dataset_ref
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.model import ModelVersion, parse_ref
from groundplane.domain.run import Run
from groundplane.domain.serving.provider import Provider, RouteRule
from groundplane.domain.spec import DataSource, EndpointSpec, JobSpec
from groundplane.domain.spec.inference import MODEL, TAKEN
from groundplane.errors import NotFound, Refusal, Refused
from groundplane.identity import Actor
from groundplane.ports import Tx
from groundplane.services.aliases import standing
from groundplane.services.inference import refuse_other_work

INSIDE_ONLY = ("confidential", "restricted")
"""Rows of these classes are sent to no provider outside the private network."""


async def pinned(tx: Tx, actor: Actor, spec: JobSpec | EndpointSpec) -> JobSpec | EndpointSpec:
    """The spec with its model's alias as a number and its datasets as digests. NotFound for a name of nothing."""
    if isinstance(spec, EndpointSpec):
        wanted = parse_ref(spec.model)
        if not wanted.alias:
            return spec
        alias = await standing(tx, str(wanted))
        if alias is None or not (actor.sees(alias.project) or alias.project == spec.metadata.project):
            raise NotFound(f"{wanted.name} has no alias {wanted.alias}", "ground models aliases lists those there are")
        return replace(spec, model=f"{alias.name}@{alias.number}")
    if not any(source.dataset for source in spec.data):
        return spec
    fixed = replace(spec, data=tuple([await _source(tx, actor, source) for source in spec.data]))
    return await _asking(tx, actor, fixed) if fixed.inference is not None else fixed


async def _asking(tx: Tx, actor: Actor, spec: JobSpec) -> JobSpec:
    """An evaluation or a batch with the version that is asked as a number. NotFound for whom nobody can ask."""
    need = spec.evaluation or spec.batch
    assert need is not None
    asking, project = need.asking, spec.metadata.project
    if asking.model:
        wanted = parse_ref(asking.model)
        if wanted.alias:
            alias = await standing(tx, str(wanted))
            if alias is None or alias.project != project:
                raise NotFound(f"{wanted.name} has no alias {wanted.alias}", "ground models aliases lists them")
            asking = replace(asking, model=f"{alias.name}@{alias.number}")
        version = await tx.get(ModelVersion, asking.model)
        if version is None or version.project != project:
            raise NotFound(f"project {project} has no model version {asking.model}", "ground models list")
        if spec.pool != "local":  # its files are brought to the node, as its rows are
            files = DataSource(name=MODEL, source=f"model:{version.id}", size_bytes=version.size_bytes)
            spec = replace(spec, data=(spec.data[0], files))
    names = [asking.endpoint, *(judge.model for judge in (spec.evaluation.judges if spec.evaluation else ()))]
    for name in names:
        endpoint = await tx.get(Endpoint, name) if name else None
        served = endpoint is not None and endpoint.project == project
        if name and not served and await tx.get(RouteRule, f"{project}:{name}") is None:
            raise NotFound(f"project {project} has no endpoint or route {name}", "ground endpoints; ground routes list")
        await _keep_inside(tx, project, name, spec.data[0])
    if spec.evaluation is not None:
        return replace(spec, evaluation=replace(spec.evaluation, asking=asking, dataset=spec.data[0].dataset))
    assert spec.batch is not None
    fixed = replace(spec.batch, asking=asking, dataset=spec.data[0].dataset)
    if fixed.resume:
        refuse_other_work(await tx.get(Run, fixed.resume), project, fixed, spec.data[0].sha256)
        spec = replace(spec, data=(*spec.data, DataSource(name=TAKEN, source=f"shards:{fixed.resume}")))
    return replace(spec, batch=fixed)


async def _keep_inside(tx: Tx, project: str, name: str, source: DataSource) -> None:
    """Raises Refusal where rows that are confidential would be sent to a provider outside the private network."""
    rule = await tx.get(RouteRule, f"{project}:{name}") if name else None
    if rule is None or source.classification not in INSIDE_ONLY:
        return
    for target in rule.targets:
        provider = await tx.get(Provider, f"{project}:{target.provider}") if target.provider else None
        if provider is not None and not provider.private:
            have = f"{source.dataset}, {source.classification}, and {name}, which leads to provider {provider.name}"
            hint = "ask an endpoint of your own, a private provider, or a version: spec.model"
            need = "rows that may leave the private network"
            raise Refusal([Refused(rule="hosted-data", need=need, have=have, hint=hint)])


async def _source(tx: Tx, actor: Actor, source: DataSource) -> DataSource:
    if not source.dataset:
        return source
    found = await dataset(tx, actor, source.dataset)
    if found.erased_at is not None:
        hint = f"train on another version: ground datasets list {found.name}"
        raise Refusal([Refused(rule="erased", need="data that was not erased", have=found.id, hint=hint)])
    path, staged = source.path, source.source
    if not path and not staged:
        if found.pointer is Pointer.FOLDER:
            path = found.location
            only = found.files[0].path if len(found.files) == 1 else ""
            if only and not path.endswith(f"/{only}"):
                # One file's digest is its own, a folder's is its manifest's: the file itself is what is measured.
                path = f"{path.rstrip('/')}/{only}"
        elif found.pointer is Pointer.MANAGED or len(found.files) == 1:
            staged = found.location
        else:
            hint = "add path: FOLDER where it is mounted, or from: SOURCE with a manifest"
            raise Refusal([Refused(rule="dataset-place", need="a way to its files", have=found.location, hint=hint)])
    outside = bool(staged) and found.pointer is not Pointer.MANAGED and len(found.files) > 1
    # What is measured at the run's start is held against this digest: other data is then called disputed.
    return replace(
        source,
        dataset=found.id,
        path=path,
        source=staged,
        sha256=source.sha256 or ("" if outside else found.digest),
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
