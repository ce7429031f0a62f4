"""Addenda to birth certificates: later facts of a version, signed, chained and audited in one transaction.

    await addenda.add(actor, "churn@4", AddendumKind.EVALUATION, {
        "name": "nightly", "how": "measured", "metrics": {"f1": 0.93}, "intervals": {"f1": [0.91, 0.95]},
        "dataset": "churn-eval@3", "dataset_sha256": "…", "samples": 2000, "run": "run-…", "evidence": "ev-…",
    })

Inside a transaction of one's own it is `append`. Required facts of a project (`evaluations>=1`) count these.
"""

from __future__ import annotations

from collections.abc import Mapping

from groundplane import __version__
from groundplane.domain.model import ModelVersion
from groundplane.domain.provenance.addendum import STATABLE, Addendum, AddendumKind, Draft, checked_facts, sealed
from groundplane.domain.registry import RegistryEntry
from groundplane.errors import InvalidInput
from groundplane.identity import Actor
from groundplane.ports import Clock, Signer, Store, Tx
from groundplane.services.audit_trail import Teller
from groundplane.services.models import Models

MAX_LISTED = 1_000


class Addenda:
    """Adds and lists what became known of versions after they were registered."""

    def __init__(self, *, store: Store, clock: Clock, signer: Signer, models: Models) -> None:
        self._store, self._clock, self._signer, self._models = store, clock, signer, models
        self._tell = Teller(clock, "model")

    async def add(
        self, actor: Actor, ref: str, kind: AddendumKind, facts: Mapping[str, object], reason: str = ""
    ) -> Addendum:
        """Signs a later fact of a version and chains it to its certificate. Twice adds it twice.

        `facts` by kind: see `domain.provenance.addendum.checked_facts`. An evaluation says `how`: `measured` when this
        installation ran it, `stated` when somebody says so. Raises NotFound, InvalidInput naming the field, and
        IntegrityFailure when the certificate does not hold: nothing is chained to what is not what was signed.
        """
        version = await self._models.get(actor, ref)
        self._models.demand(version)
        checked = checked_facts(kind, facts)
        if kind is AddendumKind.ROLLBACK_TARGET:
            target = await self._models.get(actor, str(checked["target"]))
            self._models.demand(target)
            if target.id == version.id or target.name != version.name:
                raise InvalidInput(
                    f"{version.id} can't go back to {target.id}", f"name another version of {version.name}"
                )
            checked["target_certificate_sha256"] = target.certificate_sha256
        async with self._store.transaction() as tx:
            return await self.append(tx, actor, version, kind, checked, reason)

    async def state(
        self, actor: Actor, ref: str, kind: AddendumKind, facts: Mapping[str, object], reason: str = ""
    ) -> Addendum:
        """`add` for what a person says: waivers are given at gates, and an evaluation is `stated`, whatever is sent."""
        if kind not in STATABLE:
            raise InvalidInput(f"a {kind} can't be stated", f"it is one of {', '.join(STATABLE)}; ground gates waive")
        if kind is AddendumKind.EVALUATION:
            facts = {**facts, "how": "stated"}
        return await self.add(actor, ref, kind, facts, reason)

    async def append(
        self,
        tx: Tx,
        actor: Actor,
        version: ModelVersion,
        kind: AddendumKind,
        facts: Mapping[str, object],
        reason: str = "",
    ) -> Addendum:
        """`add` in the caller's transaction, with a version whose certificate was checked. Call it near the end.

        The version's registry entry is locked, so two at once get two numbers; the audit event comes with it.
        """
        checked = checked_facts(kind, facts)
        await tx.get(RegistryEntry, version.id, lock=True)
        last = await tx.find(Addendum, {"version_id": version.id}, order="-sequence", limit=1)
        draft = Draft(
            kind=kind, facts=checked, by=actor.name, at=self._clock.now(), software=f"groundplane {__version__}"
        )
        made = sealed(version, last[0] if last else None, draft, self._signer.key_id, self._signer.sign)
        await tx.insert(made)
        after: dict[str, object] = {"addendum": made.id, "kind": str(kind), "sha256": made.sha256}
        await self._tell(tx, actor, "model.addendum", version.id, version.project, after, reason)
        return made

    async def addenda(self, actor: Actor, ref: str) -> list[Addendum]:
        """A version's addenda, oldest first. Raises NotFound."""
        version = await self._models.get(actor, ref)
        async with self._store.transaction() as tx:
            return await tx.find(Addendum, {"version_id": version.id}, order="sequence", limit=MAX_LISTED)

    async def counts(self) -> dict[tuple[str, str], int]:
        """(project, kind) → addenda."""
        async with self._store.transaction() as tx:
            found = await tx.total(Addendum, "*", by=("project", "kind"))
        return {(str(project), str(kind)): number for (project, kind), number in found.items()}
