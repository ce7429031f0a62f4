"""The registry: aliases that move through gates and remember, search, differences, tags, archive, cards."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import replace

from groundplane.domain.access import checked_text
from groundplane.domain.canonical import part_of
from groundplane.domain.conditions import Among, AtLeast, Between, Contains
from groundplane.domain.gate import GateCheck, Verdict, Waiver, waived
from groundplane.domain.model import ModelVersion, check_alias, parse_ref
from groundplane.domain.provenance.addendum import AddendumKind, summary
from groundplane.domain.provenance.card import card_of
from groundplane.domain.registry import (
    ADOPTED,
    TAGS_MAX,
    AliasMove,
    LabelKind,
    ModelAlias,
    MoveKind,
    Query,
    RegistryEntry,
    VersionDiff,
    VersionLabel,
    VersionView,
    check_tag,
    differences,
    label_id,
    rollback_target,
)
from groundplane.domain.tensors import changed
from groundplane.errors import Conflict, InvalidInput, NotFound, Refusal, Refused
from groundplane.identity import Actor
from groundplane.ports import Clock, Ids, Store, Tx
from groundplane.services.addenda import Addenda
from groundplane.services.audit_trail import Teller
from groundplane.services.gates import Gates
from groundplane.services.models import Models

MAX_LISTED = 1_000
FEW = 1_000
"""So many matches are fetched and sorted; more are met soon enough by walking from the newest."""
_ENDLESS = sys.float_info.max


class Registry:
    """Use cases over what moves around versions. Versions themselves are `Models`' and never change."""

    def __init__(self, *, store: Store, clock: Clock, ids: Ids, models: Models, gates: Gates, addenda: Addenda) -> None:
        self._store, self._clock, self._ids = store, clock, ids
        self._tell = Teller(clock, "model")
        self._models, self._gates, self._addenda = models, gates, addenda

    # ------------------------------------------------------------ aliases

    async def move(self, actor: Actor, name: str, alias: str, to: str, reason: str) -> AliasMove:
        """Lets an alias stand for another version, if its gates agree; where it stands there already, nothing moves.

        Raises Refusal with every requirement that is not met; the verdicts are kept either way. Conflict when somebody
        else moved it meanwhile.
        """
        return await self._move(actor, name, alias, to, checked_text(reason, "reason"), MoveKind.SET)

    async def rollback(self, actor: Actor, name: str, alias: str, reason: str) -> AliasMove:
        """Back to what the alias stood for before. Its gates are asked and their verdicts kept, but don't stop it:

        a version that stood there passed then, and evidence that has aged must not hold up the way out. A version
        whose certificate no longer holds, or that was archived, is refused.
        """
        check_alias(alias)
        await self._models.newest(actor, name)  # NotFound for what the actor doesn't see
        async with self._store.transaction() as tx:
            current = await tx.get(ModelAlias, f"{name}@{alias}")
            moves = await tx.find(AliasMove, {"alias_id": f"{name}@{alias}"}, order="sequence")
        target = rollback_target(moves, current.number) if current else None
        if target is None:
            have = f"{name}@{alias}, which stood for {current.number} only" if current else f"no alias {name}@{alias}"
            hint = f"ground models history {name}@{alias}"
            raise Refusal([Refused(rule="rollback", need="an earlier version to go back to", have=have, hint=hint)])
        reason = checked_text(reason, "reason")
        return await self._move(actor, name, alias, str(target), reason, MoveKind.ROLLBACK)

    async def remove(self, actor: Actor, name: str, alias: str, reason: str) -> AliasMove:
        """Takes an alias away. Its history stays. Raises NotFound."""
        check_alias(alias)
        reason = checked_text(reason, "reason")
        await self._models.newest(actor, name)
        async with self._store.transaction() as tx:
            current = await tx.get(ModelAlias, f"{name}@{alias}", lock=True)
            if current is None:
                raise NotFound(f"{name} has no alias {alias}", f"ground models aliases {name}")
            await tx.delete(ModelAlias, current.id)
            return await self._note_move(tx, actor, current, MoveKind.REMOVE, current.number, None, reason, "")

    async def aliases(self, actor: Actor, name: str) -> list[ModelAlias]:
        """What a model's aliases stand for, by alias. Raises NotFound."""
        await self._models.newest(actor, name)
        async with self._store.transaction() as tx:
            return await tx.find(ModelAlias, {"name": name}, order="alias")

    async def history(self, actor: Actor, name: str, alias: str, limit: int = MAX_LISTED) -> list[AliasMove]:
        """The moves of an alias, newest first, removed ones included. Raises NotFound."""
        check_alias(alias)
        await self._models.newest(actor, name)
        async with self._store.transaction() as tx:
            moves = await tx.find(AliasMove, {"alias_id": f"{name}@{alias}"}, order="-sequence", limit=limit)
        if not moves:
            raise NotFound(f"{name} never had an alias {alias}", f"ground models aliases {name}")
        return moves

    async def counts(self) -> dict[str, int]:
        """Project → aliases."""
        async with self._store.transaction() as tx:
            found = await tx.total(ModelAlias, "*", by=("project",))
        return {str(project): number for (project,), number in found.items()}

    async def _move(self, actor: Actor, name: str, alias: str, to: str, reason: str, kind: MoveKind) -> AliasMove:
        check_alias(alias)
        version = await self._models.get(actor, f"{name}@{to}")
        self._models.demand(version)
        async with self._store.transaction() as tx:
            current = await tx.get(ModelAlias, f"{name}@{alias}", lock=True)
            if current is not None and current.number == version.number:
                last = await tx.find(AliasMove, {"alias_id": current.id}, order="-sequence", limit=1)
                return last[0]
            entry = await tx.get(RegistryEntry, version.id, lock=True)
            if entry is not None and entry.archived:
                have = f"{version.id}, archived by {entry.archived_by}: {entry.archived_reason}"
                hint = f"ground models unarchive {version.id}"
                raise Refusal([Refused(rule="archived", need="a version that is not archived", have=have, hint=hint)])
            check = await self._gates.allow(tx, actor, version, alias, current)
            if check.passed or kind is MoveKind.ROLLBACK:
                return await self._stand(tx, actor, version, alias, current, kind, reason, check)
            await self._tell(
                tx, actor, "alias.refused", f"{name}@{alias}", version.project,
                {"version": version.id, "check": check.id, "open": [each.requirement for each in _open(check)]}, reason,
            )  # fmt: skip
        raise Refusal([verdict.refused() for verdict in _open(check)])

    async def _stand(
        self,
        tx: Tx,
        actor: Actor,
        version: ModelVersion,
        alias: str,
        current: ModelAlias | None,
        kind: MoveKind,
        reason: str,
        check: GateCheck,
    ) -> AliasMove:
        row = ModelAlias(
            id=f"{version.name}@{alias}",
            name=version.name,
            alias=alias,
            number=version.number,
            project=version.project,
            moved_by=actor.name,
            moved_at=self._clock.now(),
            reason=reason,
            version=current.version if current else 0,
        )
        if current is None:
            await tx.insert(row)
        else:
            await tx.update(row)
        before = current.number if current else None
        move = await self._note_move(tx, actor, row, kind, before, version.number, reason, check.id)
        # What a rollback left is no place to go back to.
        await self._chain(tx, actor, version, alias, before if kind is MoveKind.SET else None, check)
        return move

    async def _chain(
        self, tx: Tx, actor: Actor, version: ModelVersion, alias: str, before: int | None, check: GateCheck
    ) -> None:
        """What the move makes known of the version: what it goes back to, and by which waivers it came here."""
        target = await tx.get(ModelVersion, f"{version.name}@{before}") if before is not None else None
        if target is not None:
            facts = {"target": target.id, "alias": alias, "target_certificate_sha256": target.certificate_sha256}
            await self._addenda.append(tx, actor, version, AddendumKind.ROLLBACK_TARGET, facts)
        for verdict in check.verdicts:
            waiver = await tx.get(Waiver, verdict.waiver_id) if verdict.waiver_id else None
            if waiver is not None and not waiver.version_id:  # one for this version alone was chained when it was given
                await self._addenda.append(tx, actor, version, AddendumKind.WAIVER, waived(waiver), waiver.reason)

    async def _note_move(
        self,
        tx: Tx,
        actor: Actor,
        alias: ModelAlias,
        kind: MoveKind,
        before: int | None,
        after: int | None,
        reason: str,
        check_id: str,
    ) -> AliasMove:
        last = await tx.find(AliasMove, {"alias_id": alias.id}, order="-sequence", limit=1)
        move = AliasMove(
            id=self._ids.new("move"),
            alias_id=alias.id,
            project=alias.project,
            sequence=last[0].sequence + 1 if last else 1,
            kind=kind,
            from_number=before,
            to_number=after,
            by=actor.name,
            at=self._clock.now(),
            reason=reason,
            check_id=check_id,
        )
        await tx.insert(move)
        told: dict[str, object] = {"from": before, "to": after, "check": check_id}
        await self._tell(tx, actor, f"alias.{kind}", alias.id, alias.project, told, reason)
        return move

    # ------------------------------------------------------------ search

    async def search(self, actor: Actor, query: Query) -> list[RegistryEntry]:
        """Versions by name, project, licence, tags and metrics; newest first. The index answers, not the versions."""
        where: dict[str, object] = {"archived": query.archived}
        if query.text:
            where["name"] = Contains(query.text.lower())
        if query.license:
            where["license"] = query.license
        if query.project:
            where["project"] = query.project
        elif actor.project is not None and not actor.sees(""):
            where["project"] = actor.project
        if query.project and not actor.sees(query.project):
            return []
        limit = min(query.limit, MAX_LISTED)
        async with self._store.transaction() as tx:
            ids = await _few_with(tx, _labels(query), where)
            few: dict[str, object] | None = None if ids is None else {"id": tuple(ids)}
            if few is None and query.text:
                named = {"name": where["name"]}
                if (number := await tx.count(RegistryEntry, named, most=FEW + 1)) <= FEW:
                    few = named if number else {"id": ()}
            if few is None:
                return await tx.find(RegistryEntry, where, order="-created_at", limit=limit)
            # Asked for by nothing else and in the order of the index that has them: a database that is told more
            # walks all versions that are not archived, or all of the newest.
            ((column, among),) = few.items()
            found = await tx.find(RegistryEntry, few, order=column) if among else []
        found = [entry for entry in found if _fits(entry, where)]
        return sorted(found, key=lambda entry: (entry.created_at, entry.number), reverse=True)[:limit]

    async def entries(self, actor: Actor, name: str, limit: int) -> list[RegistryEntry]:
        """The newest versions of a name, archived ones too. Raises NotFound."""
        await self._models.newest(actor, name)
        async with self._store.transaction() as tx:
            return await tx.find(RegistryEntry, {"name": name}, order="-number", limit=limit)

    async def view(self, actor: Actor, ref: str) -> VersionView:
        """A version with what moves around it."""
        version = await self._models.get(actor, ref)
        async with self._store.transaction() as tx:
            entry = await tx.get(RegistryEntry, version.id)
            tags = await _tags(tx, version.id)
            aliases = await tx.find(ModelAlias, {"name": version.name}, order="alias")
            adopted = await tx.get(VersionLabel, label_id(version.id, LabelKind.ORIGIN, ADOPTED))
        return VersionView(
            version=version,
            aliases=tuple(row.alias for row in aliases if row.number == version.number),
            tags=tags,
            archived=entry.archived if entry else False,
            archived_reason=entry.archived_reason if entry else "",
            adopted_from=adopted.text if adopted else "",
        )

    # ------------------------------------------------------------ differences, cards

    async def diff(self, actor: Actor, before: str, after: str) -> VersionDiff:
        """Everything that differs between two versions. IntegrityFailure when a certificate does not hold."""
        old, new = await self._models.get(actor, before), await self._models.get(actor, after)
        found = differences(old, new, await self._predicate(actor, old), await self._predicate(actor, new))
        tensors = changed(await self._tensors(old, besides=new), await self._tensors(new, besides=old))
        return replace(found, differences=(*found.differences, *tensors))

    async def _tensors(self, version: ModelVersion, *, besides: ModelVersion) -> dict[str, str]:
        """Those in files that the other version has not: a file of both holds no difference."""
        shared = {file.sha256 for file in besides.files}
        found: dict[str, str] = {}
        for file in version.files:
            if file.path.endswith(".safetensors") and file.sha256 not in shared:
                found |= await self._models.tensors(file)
        return found

    async def card(self, actor: Actor, ref: str) -> str:
        """A version's model card, in Markdown."""
        view = await self.view(actor, ref)
        checks = await self._gates.checks(actor, view.version.id, limit=1)
        said = await self._predicate(actor, view.version)
        later = [summary(each) for each in await self._addenda.addenda(actor, view.version.id)]
        return card_of(view.version, said, aliases=view.aliases, tags=view.tags, checks=checks, later=later)

    async def _predicate(self, actor: Actor, version: ModelVersion) -> Mapping[str, object]:
        return part_of((await self._models.certificate(actor, version.id))["statement"], "predicate")

    # ------------------------------------------------------------ tags, archive

    async def tag(self, actor: Actor, ref: str, tags: Mapping[str, str | None]) -> VersionView:
        """Sets tags; None takes one away. They are no part of what is signed."""
        version = await self._models.get(actor, ref)
        for name, text in tags.items():
            check_tag(name, text or "")
        async with self._store.transaction() as tx:
            await tx.get(RegistryEntry, version.id, lock=True)
            before = await _tags(tx, version.id)
            for name, text in tags.items():
                label = label_id(version.id, LabelKind.TAG, name)
                await tx.delete(VersionLabel, label)
                if text is not None:
                    await tx.insert(
                        VersionLabel(id=label, version_id=version.id, kind=LabelKind.TAG, name=name, text=text)
                    )
            after = await _tags(tx, version.id)
            if len(after) > TAGS_MAX:
                raise InvalidInput(f"{version.id} would have {len(after)} tags; {TAGS_MAX} is the most", "drop some")
            if before != after:
                told: dict[str, object] = {"tags": after}
                await self._tell(tx, actor, "model.tag", version.id, version.project, told)
        return await self.view(actor, version.id)

    async def archive(self, actor: Actor, ref: str, reason: str) -> VersionView:
        """Hides a version from searches and keeps aliases off it. Its bytes and certificate stay. Twice is once.

        Refused while an alias stands for it.
        """
        if parse_ref(ref).number is None:
            raise InvalidInput(f"{ref} may stand for another version tomorrow", "name the version by its number")
        version = await self._models.get(actor, ref)
        reason = checked_text(reason, "reason")
        async with self._store.transaction() as tx:
            entry = await self._entry(tx, version)
            standing = [row.id for row in await tx.find(ModelAlias, {"name": version.name, "number": version.number})]
            if standing:
                have, hint = ", ".join(standing), "move these aliases first: ground models alias"
                raise Refusal(
                    [Refused(rule="archive", need="a version that no alias stands for", have=have, hint=hint)]
                )
            if not entry.archived:
                now = self._clock.now()
                archived = replace(
                    entry, archived=True, archived_by=actor.name, archived_at=now, archived_reason=reason
                )
                await tx.update(archived)
                await self._tell(tx, actor, "model.archive", version.id, version.project, {"archived": True}, reason)
        return await self.view(actor, version.id)

    async def unarchive(self, actor: Actor, ref: str, reason: str = "") -> VersionView:
        """Brings an archived version back. Twice is once."""
        version = await self._models.get(actor, ref)
        async with self._store.transaction() as tx:
            entry = await self._entry(tx, version)
            if entry.archived:
                back = replace(entry, archived=False, archived_by="", archived_at=None, archived_reason="")
                await tx.update(back)
                await self._tell(tx, actor, "model.unarchive", version.id, version.project, {"archived": False}, reason)
        return await self.view(actor, version.id)

    async def _entry(self, tx: Tx, version: ModelVersion) -> RegistryEntry:
        entry = await tx.get(RegistryEntry, version.id, lock=True)
        if entry is None:
            raise Conflict(f"{version.id} has no entry in the registry", "restore the database from a backup")
        return entry


def _labels(query: Query) -> list[dict[str, object]]:
    """What must hold of labels, one condition each."""
    asked: list[dict[str, object]] = [
        {"kind": LabelKind.TAG, "name": name, **({"text": text} if text else {})} for name, text in query.tags
    ]
    for name, least, most in query.metrics:
        low = -_ENDLESS if least is None else least
        bound: object = AtLeast(low) if most is None else Between(low, math.nextafter(most, math.inf))
        asked.append({"kind": LabelKind.METRIC, "name": name, "value": bound})
    return asked


async def _few_with(tx: Tx, asked: list[dict[str, object]], where: dict[str, object]) -> set[str] | None:
    """The versions that have all these labels, if one of them is rare. Else None, and `where` asks for them.

    A rare label is found by its index; a common one by looking at the newest versions until enough have it.
    """
    ids: set[str] | None = None
    common = []
    for labels in asked:
        if await tx.count(VersionLabel, labels, most=FEW + 1) > FEW:
            common.append(labels)
        else:
            rows = await tx.find(VersionLabel, labels)
            ids = {row.version_id for row in rows} & (ids if ids is not None else {row.version_id for row in rows})
    if ids is None:
        chain: dict[str, object] | None = None
        for labels in common:
            chain = labels if chain is None else {**labels, "version_id": Among(VersionLabel, "version_id", chain)}
        if chain is not None:
            where["id"] = Among(VersionLabel, "version_id", chain)
        return None
    for labels in common:
        ids = {row.version_id for row in await tx.find(VersionLabel, {**labels, "version_id": tuple(ids)})}
    return ids


def _fits(entry: RegistryEntry, where: Mapping[str, object]) -> bool:
    """What `Tx.find` asks of the columns of one row."""
    return all(
        value.text in getattr(entry, column) if isinstance(value, Contains) else getattr(entry, column) == value
        for column, value in where.items()
    )


def _open(check: GateCheck) -> list[Verdict]:
    return [verdict for verdict in check.verdicts if verdict.open]


async def _tags(tx: Tx, version_id: str) -> dict[str, str]:
    found = await tx.find(VersionLabel, {"version_id": version_id, "kind": LabelKind.TAG}, order="name")
    return {label.name: label.text for label in found}
