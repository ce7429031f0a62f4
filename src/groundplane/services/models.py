"""Model versions: registered once, immutable, verified whenever they are used."""

from __future__ import annotations

import asyncio
import difflib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blake3 import blake3

from groundplane import __version__
from groundplane.audit import Event
from groundplane.domain.access import checked_text
from groundplane.domain.canonical import parse_json
from groundplane.domain.conditions import Greatest
from groundplane.domain.model import (
    ManifestFile,
    ModelVersion,
    check_name,
    parse_ref,
    path_refusals,
)
from groundplane.domain.pieces import PIECE_BYTES_MAX
from groundplane.domain.provenance import certificate as cert
from groundplane.domain.provenance.addendum import Addendum, check_rows
from groundplane.domain.provenance.birth import Delivery, Watched, delivered, of_copy, of_run, stated
from groundplane.domain.provenance.circumstances import AttemptCircumstances, as_seen
from groundplane.domain.provenance.circumstances import energy as energy_of
from groundplane.domain.provenance.mlbom import ml_bom
from groundplane.domain.provenance.required_facts import Missing, Stage
from groundplane.domain.provenance.signing_bundle import signing_bundle
from groundplane.domain.registry import ModelAlias, RegistryEntry
from groundplane.domain.run import Attempt, Checkpoint, Run
from groundplane.domain.scanning.tensor_header import HEADER_BYTES_MAX, HeaderFault
from groundplane.domain.spec import ModelOutput
from groundplane.domain.tensors import fingerprint, parts, starts, tensors_of
from groundplane.errors import IntegrityFailure, InvalidInput, NotFound, Problem, Refusal, Refused
from groundplane.identity import CROSS_PROJECT, SYSTEM, Actor
from groundplane.ports import BlobStore, Clock, FoundFile, ModelFiles, Provenance, Signer, Store
from groundplane.services.access import visible_project
from groundplane.services.aliases import standing
from groundplane.services.artifacts import named
from groundplane.services.audit_trail import Teller
from groundplane.services.registration import Draft, Registration, missing_facts, newest_version, output_of
from groundplane.units import format_bytes

LOCAL_POOL = "local"
NEAR_AMONG = 1_000
"""So many versions are looked at for a name like one that is not there: a wrong name costs no more in a large house."""
_EXAMINED_MAX, _EXAMINED_BYTES_MAX = 32, 16 << 20
"""So many certificates, of so many bytes together, are remembered as examined: clients ask file by file."""
_SOFTWARE = f"groundplane {__version__}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What a check of a version found. `problems` name the file or the part; `ok` means there are none."""

    ref: str
    ok: bool
    checked_files: int
    checked_bytes: int
    key_id: str
    problems: tuple[Problem, ...]
    addenda: int = 0


class Models:
    """Registers, lists, verifies and lays out model versions."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        blobs: BlobStore,
        signer: Signer,
        files: ModelFiles,
        provenance: Provenance,
        power_w: Callable[[str], int | None] = lambda _: None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._blobs = blobs
        self._signer = signer
        self._files = files
        self._provenance = provenance
        self._power_w = power_w
        self._examined: dict[str, tuple[ModelVersion, cert.Examined]] = {}
        self._registration = Registration(store=store, clock=clock, blobs=blobs, signer=signer, files=files)

    # ------------------------------------------------------------ registering

    async def register(
        self,
        actor: Actor,
        *,
        name: str,
        project: str,
        source: Path,
        facts: cert.Facts,
        reason: str = "",
        delivery: Delivery | None = None,
    ) -> ModelVersion:
        """Makes the next version of `name` from a file or folder the control plane may read, such as an upload.

        Raises Refusal with all that stands against it at once: files that may not enter, facts that are missing.
        Nothing is stored then. NotFound for an unseen project, Conflict when a file changes meanwhile.
        """
        check_name(name)
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
        found = await self._files.scan(source)
        missing = delivery.missing if delivery else tuple(fact.refused() for fact in cert.missing_facts(facts))
        refusals = (*_refusals(source, found), *missing, *cert.misstated(facts))
        if refusals:
            raise Refusal(refusals)
        if facts.rollback_target:
            await self._demand_target(actor, name, facts.rollback_target)
        draft = Draft(
            name=name,
            project=project,
            owner=facts.owner,
            license=facts.license,
            run_id="",
            metrics=cert.finite_metrics(facts.metrics)[0],
            created_by=actor.name,
            birth=stated(facts, found, _SOFTWARE),
            reason=reason,
        )
        if delivery is not None:
            draft = replace(draft, birth=delivered(draft.birth, delivery), rows=delivery.rows)
        return await self._registration.register(actor, draft, found)

    async def register_run_output(
        self,
        run: Run,
        attempts: Sequence[Attempt],
        output: ModelOutput,
        directory: Path,
        metrics: Mapping[str, float],
        cost_microusd: int,
        checkpoints: Sequence[Checkpoint] | None = None,
        *,
        circumstances: cert.Circumstances | None = None,
        hyperparameters: Mapping[str, str] | None = None,
    ) -> ModelVersion:
        """Makes a version from what a run has written. Twice for one run and output gives the same version.

        `checkpoints` and `circumstances` are read from the store unless given; what no runner looked at is looked up
        now, and says so. Facts nobody knows are stated as unknown. Raises Refusal when a file may not enter or a fact
        that the project requires is missing, NotFound without the folder, Conflict when it is still written to.
        """
        known = await self._of_run(run.id, output.name)
        if known is not None:
            return known
        found = await self._files.scan(directory)
        refusals = _refusals(directory, found)
        if refusals:
            raise Refusal(refusals)
        async with self._store.transaction() as tx:
            kept = await tx.find(AttemptCircumstances, {"run_id": run.id})
            if checkpoints is None:
                checkpoints = await tx.find(Checkpoint, {"run_id": run.id}, order="step")
        energy, no_energy = energy_of(kept, attempts, self._power_w)
        watched = Watched(
            run=run,
            attempts=attempts,
            checkpoints=checkpoints,
            circumstances=circumstances or await self._circumstances(run, attempts, kept),
            metrics=metrics,
            hyperparameters=hyperparameters or {},
            cost_microusd=cost_microusd,
            energy=energy,
            no_energy=no_energy,
        )
        draft = Draft(
            name=output.name,
            project=run.project,
            owner=run.owner,
            license=output.license,
            run_id=run.id,
            metrics=cert.finite_metrics(metrics)[0],
            created_by=run.created_by,
            birth=of_run(watched, output, found, _SOFTWARE),
            reason=f"output of {run.id}",
        )
        return await self._registration.register(SYSTEM, draft, found)

    async def copy(
        self, actor: Actor, source: ModelVersion, tree: Path, *, name: str, project: str, reason: str
    ) -> ModelVersion:
        """Makes the next version of `name` with the content of another one, which its certificate names.

        What is known of the source is stated again; who copies it, and when, is new, and so is the judgement: the
        files are laid out in `tree`, which must not exist yet, and scanned by the rules of now; quota and the required
        facts of the project are asked. Raises what `register` does, and IntegrityFailure when the source is damaged.
        """
        check_name(name)
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
        self.demand(source)
        await self._files.place(tree, source.files, self._blobs)
        found = await self._files.scan(tree)
        said = cert.open_envelope(source.certificate).predicate
        if refusals := _refusals(tree, found):
            raise Refusal(refusals)
        draft = Draft(
            name=name,
            project=project,
            owner=source.owner,
            license=source.license,
            run_id="",
            metrics=source.metrics,
            created_by=actor.name,
            birth=of_copy(source, said, _SOFTWARE),
            reason=reason,
        )
        return await self._registration.register(actor, draft, found)

    async def _circumstances(
        self, run: Run, attempts: Sequence[Attempt], kept: Sequence[AttemptCircumstances]
    ) -> cert.Circumstances:
        """What the runner saw before the command started; else, for attempts of before, what can be seen now."""
        seen = as_seen(kept, attempts)
        if seen is None:
            return await self._provenance.look(run.spec, "at registration, after the run ended")
        data, unknown = await self._provenance.look_at_data(run.spec, here=run.pool == LOCAL_POOL)
        return replace(seen, data=data, unknown=(*seen.unknown, *unknown))

    async def _demand_target(self, actor: Actor, name: str, target: str) -> None:
        wanted = parse_ref(target)
        if wanted.number is None or wanted.name != name:
            raise InvalidInput(f"{target} can't be gone back to from {name}", f"name a version: {name}@NUMBER")
        await self.get(actor, target)

    # ------------------------------------------------------------ reading

    async def versions(self, actor: Actor, name: str | None = None) -> list[ModelVersion]:
        """The versions the actor sees, by name, newest first. NotFound for a name of which there are none."""
        async with self._store.transaction() as tx:
            found = await tx.find(ModelVersion, _seen_by(actor) | ({} if name is None else {"name": name}))
        if name is not None and not found:
            raise await self.unknown(actor, name)
        return sorted(found, key=lambda version: (version.name, -version.number))

    async def names(self, actor: Actor, *, after: str, limit: int) -> list[ModelVersion]:
        """The newest version of each of the next `limit` names behind `after`, by name, of those the actor sees."""
        if after:
            check_name(after)
        where = {**_seen_by(actor), "number": Greatest("name")}
        behind = (after, f"{after}@~")  # sorts after the ids of all its versions
        async with self._store.transaction() as tx:
            found = await tx.find(RegistryEntry, where, order="name", limit=limit, after=behind)
            ids = tuple(entry.id for entry in found)
            return await tx.find(ModelVersion, {"id": ids}, order="name")

    async def count(self, actor: Actor) -> int:
        """How many versions the actor sees."""
        async with self._store.transaction() as tx:
            return (await tx.total(RegistryEntry, "*", where=_seen_by(actor))).get((), 0)

    async def newest(self, actor: Actor, name: str) -> ModelVersion:
        """The version with the greatest number. NotFound for a name of which the actor sees none."""
        async with self._store.transaction() as tx:
            found = await newest_version(tx, name)
        if found is None or not actor.sees(found.project):
            raise await self.unknown(actor, name)
        return found

    async def get(self, actor: Actor, ref: str) -> ModelVersion:
        """`name@3`, `name@production` or `name@latest`. NotFound with the nearest names or numbers, InvalidInput."""
        wanted = parse_ref(ref)
        newest = await self.newest(actor, wanted.name)
        if wanted.number is None and not wanted.alias:
            return newest
        async with self._store.transaction() as tx:
            alias = await standing(tx, str(wanted)) if wanted.alias else None
            number = alias.number if alias else wanted.number
            found = await tx.get(ModelVersion, f"{wanted.name}@{number}")
        if found is None and wanted.alias:
            known = ", ".join(sorted(await self.aliases(wanted.name))) or "none yet"
            hint = f"it has {known}; to set it: ground models alias {wanted} {newest.number} --reason WHY"
            raise NotFound(f"{wanted.name} has no alias {wanted.alias}", hint)
        if found is None:
            raise NotFound(f"there is no {wanted}", f"{wanted.name} has versions up to {newest.number}")
        return found

    async def aliases(self, name: str) -> dict[str, int]:
        """Every alias of a model with the number it stands for."""
        async with self._store.transaction() as tx:
            return {row.alias: row.number for row in await tx.find(ModelAlias, {"name": name}, order="alias")}

    async def file(self, actor: Actor, ref: str, path: str) -> ManifestFile:
        """One of a version's files, to be read. NotFound; IntegrityFailure unless the version is what was signed."""
        return named(await self.files(actor, ref), path, ref)

    async def files(self, actor: Actor, ref: str) -> tuple[ManifestFile, ...]:
        """A version's files, to be read. NotFound; IntegrityFailure unless the version is what was signed."""
        version = await self.get(actor, ref)
        self.demand(version)
        return version.files

    async def tensors(self, file: ManifestFile) -> dict[str, str]:
        """A stored safetensors file's tensors, name → what is in it; none for another file. Reads next to nothing.

        Raises NotFound or IntegrityFailure where what must be read is gone or damaged.
        """
        (length,) = struct.unpack("<Q", (await self._blobs.read(file.sha256, 0, 8)).ljust(8, b"\xff"))
        if length > HEADER_BYTES_MAX:
            return {}
        try:
            found = tensors_of(await self._blobs.read(file.sha256, 0, 8 + length), file.size_bytes)
        except HeaderFault:
            return {}
        pieces = starts([(each.blake3, each.size_bytes) for each in await self._blobs.pieces(file.sha256)])
        known, at, window = dict[str, str](), 0, b""
        for tensor in found:
            digests = []
            for part in parts(tensor, pieces):
                if not isinstance(part, str):
                    begin, size_bytes = part
                    if not at <= begin <= begin + size_bytes <= at + len(window):
                        at, window = begin, await self._blobs.read(file.sha256, begin, PIECE_BYTES_MAX)
                    part = blake3(window[begin - at : begin - at + size_bytes]).hexdigest()
                digests.append(part)
            known[tensor.name] = fingerprint(tensor, digests)
        return known

    async def certificate(self, actor: Actor, ref: str) -> dict[str, object]:
        """{"envelope" (DSSE), "statement" (its meaning), "key_id", "sha256", "addenda" (envelopes, oldest first)}.

        IntegrityFailure unless all of them hold.
        """
        version = await self.get(actor, ref)
        self.demand(version)
        opened = cert.open_envelope(version.certificate)
        return {
            "envelope": parse_json(version.certificate),
            "statement": opened.statement,
            "key_id": opened.key_id,
            "sha256": version.certificate_sha256,
            "addenda": [parse_json(each.envelope) for each in await self._addenda(version)],
        }

    async def bom(self, actor: Actor, ref: str) -> dict[str, object]:
        """The version as a CycloneDX bill of materials, from its certificate. IntegrityFailure unless that holds."""
        found = await self.certificate(actor, ref)
        statement = found["statement"]
        assert isinstance(statement, dict)
        version = await self.get(actor, ref)
        return ml_bom(statement, str(found["sha256"]), str(found["key_id"]), await self._addenda(version))

    async def signing_bundle(self, actor: Actor, ref: str) -> dict[str, object]:
        """{"bundle" (for the OpenSSF model-signing tool), "public_key" (PEM)}. IntegrityFailure unless it holds."""
        version = await self.get(actor, ref)
        self.demand(version)
        pem = self._signer.interchange_public_key()
        bundle = signing_bundle(
            version.name, version.files, version.certificate_sha256, pem, self._signer.sign_interchange
        )
        return {"bundle": bundle, "public_key": pem}

    async def rotate_signing_key(self, actor: Actor, reason: str) -> tuple[str, str]:
        """Certificates, addenda and erasures are signed by a new key from now on; (its id, the id of the one before).

        What was signed before stays true: the old public key stays trusted until somebody takes it away.
        """
        reason, before = checked_text(reason, "reason"), self._signer.key_id
        # On the loop: a certificate names its key and is signed by it, and no rotation may come in between.
        key_id = self._signer.rotate()
        tell = Teller(self._clock, "signing-key")
        async with self._store.transaction() as tx:
            await tell(
                tx, actor, "signing-key.rotate", key_id, "", {"key_id": key_id}, reason, before={"key_id": before}
            )
        return key_id, before

    @property
    def signing_key_id(self) -> str:
        """Of the key that signs now."""
        return self._signer.key_id

    def public_keys(self) -> dict[str, str]:
        """key id → PEM of every key whose certificates count here."""
        return dict(self._signer.public_keys())

    async def unknown(self, actor: Actor, name: str) -> NotFound:
        """That there is no such model, with the nearest names among the versions that the actor saw come last."""
        asked = {**_seen_by(actor), "archived": False}
        async with self._store.transaction() as tx:
            last = await tx.find(RegistryEntry, asked, order="-created_at", limit=NEAR_AMONG)
        near = difflib.get_close_matches(name, {row.name for row in last}, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "ground models list shows the ones you see"
        return NotFound(f"there is no model {name}", hint)

    # ------------------------------------------------------------ verifying

    async def verify(self, actor: Actor, ref: str) -> Verification:
        """Re-hashes every file; checks manifest, row, certificate, addenda and signatures. Damage is an answer."""
        version = await self.get(actor, ref)
        addenda, lost = await self._addenda_problems(version)
        problems = [*self.problems(version), *lost]
        results = await asyncio.gather(
            *(self._blobs.verify(file.sha256, file.size_bytes) for file in version.files), return_exceptions=True
        )
        checked = 0
        for file, result in zip(version.files, results, strict=True):
            if result is None:
                checked += file.size_bytes
            elif isinstance(result, IntegrityFailure | NotFound):
                problems.append(Problem(field=f"file {file.path}", message=result.message, hint=result.hint))
            else:
                raise result
        return Verification(
            ref=version.id,
            ok=not problems,
            checked_files=len(version.files),
            checked_bytes=checked,
            key_id=_key_id(version),
            problems=tuple(problems),
            addenda=addenda,
        )

    async def materialise(self, ref: str, target: Path, *, stage: Stage | None = Stage.LOAD) -> Path:
        """Lays a version out in `target`, verified, by one rename; a folder that is already exactly it is kept.

        Fails closed: raises IntegrityFailure, leaving no new folder, when certificate, row or any byte is wrong; and
        Refusal when a fact that its project requires at this stage is not known; without a stage none is asked for.
        """
        version = await self.cleared(ref, stage)
        await self._files.place(target, version.files, self._blobs)
        return target

    async def cleared(self, ref: str, stage: Stage | None = Stage.LOAD) -> ModelVersion:
        """A version that may be laid out. Raises what `materialise` does before it touches a file."""
        version = await self.get(SYSTEM, ref)
        self.demand(version)
        if stage is not None:
            await self.demand_facts(version, stage)
        return version

    async def _addenda(self, version: ModelVersion) -> list[Addendum]:
        """A version's addenda, oldest first. IntegrityFailure unless each is what was signed."""
        _, lost = await self._addenda_problems(version)
        _demand(version, lost)
        async with self._store.transaction() as tx:
            return await tx.find(Addendum, {"version_id": version.id}, order="sequence")

    async def _addenda_problems(self, version: ModelVersion) -> tuple[int, tuple[Problem, ...]]:
        """How many addenda there are, and what is wrong with them: the trail knows which there must be."""
        async with self._store.transaction() as tx:
            addenda = await tx.find(Addendum, {"version_id": version.id}, order="sequence")
            told = {"object_kind": "model", "object_id": version.id, "action": "model.addendum"}
            on_trail = [str(event.after.get("sha256")) for event in await tx.find(Event, told, order="id")]
        return len(addenda), check_rows(version, addenda, on_trail, self._signer.verify)

    async def missing_facts(self, version: ModelVersion, stage: Stage) -> tuple[Missing, ...]:
        """What its project requires at this stage and nobody knows. IntegrityFailure when certificate or addenda fail:

        facts that are not what was signed are no facts.
        """
        self.demand(version)
        addenda = await self._addenda(version)
        async with self._store.transaction() as tx:
            return await missing_facts(tx, version, addenda, stage)

    async def demand_facts(self, version: ModelVersion, stage: Stage) -> None:
        """Refusal naming each required fact that is missing, and how it is supplied."""
        if missing := await self.missing_facts(version, stage):
            raise Refusal([each.refused(version.id, version.project) for each in missing])

    def scan_rules(self) -> str:
        """The digest of the rules by which files are judged now."""
        return self._files.rules_sha256()

    def demand(self, version: ModelVersion) -> None:
        """IntegrityFailure unless row, certificate and signature are what was signed."""
        _demand(version, self.problems(version))

    def problems(self, version: ModelVersion) -> tuple[Problem, ...]:
        """What is wrong with a version's row, certificate and signature; its files' bytes are `verify`'s to read."""
        known = self._examined.pop(version.id, None)
        if known is None or known[0] != version:
            bad = tuple(
                Problem(field=f"file {refused.have}", message="is no path a version may have")
                for refused in path_refusals([file.path for file in version.files])
            )
            found = cert.examined(version)
            known = (version, replace(found, faults=(*found.faults, *bad)))
        self._examined[version.id] = known
        while len(self._examined) > _EXAMINED_MAX or self._examined_bytes() > _EXAMINED_BYTES_MAX:
            del self._examined[next(iter(self._examined))]
        return known[1].problems(self._signer.verify)

    def _examined_bytes(self) -> int:
        return sum(len(row.certificate) for row, _ in self._examined.values())

    async def _of_run(self, run_id: str, name: str) -> ModelVersion | None:
        async with self._store.transaction() as tx:
            return await output_of(tx, run_id, name)


def _seen_by(actor: Actor) -> dict[str, object]:
    """Which rows exist for the actor."""
    return {} if actor.role in CROSS_PROJECT else {"project": actor.project}


def _demand(version: ModelVersion, problems: Sequence[Problem]) -> None:
    if problems:
        hint = f"ground models verify {version.id} lists every problem"
        details: dict[str, object] = {"problems": [str(problem) for problem in problems]}
        raise IntegrityFailure(f"{version.id} is not what was signed: {problems[0]}", hint, details)


def _key_id(version: ModelVersion) -> str:
    try:
        return cert.open_envelope(version.certificate).key_id
    except InvalidInput:
        return ""


# ---------------------------------------------------------------- judging what comes in


def _refusals(source: Path, found: Sequence[FoundFile]) -> tuple[Refused, ...]:
    """Everything that stands against these files; the worst first."""
    refusals = [file.refused for file in found if file.refused is not None]
    refusals.sort(key=lambda refused: refused.rule != "no-pickles")
    refusals.extend(path_refusals([file.path for file in found]))
    if not refusals and not any(file.size_bytes for file in found):
        # An upload lies where only the control plane looks: its files have names that whoever sent them knows.
        more = f" and {len(found) - 1} more" if found[1:] else ""
        have = f"{found[0].path}{more} of {format_bytes(0)}" if found else f"no file in {source.name}"
        hint = "give the folder that holds the model's files, or look why the run wrote nothing"
        refusals.append(Refused(rule="model-files", need="at least one file with content", have=have, hint=hint))
    return tuple(refusals)
