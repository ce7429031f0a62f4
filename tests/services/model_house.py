"""An installation to register models in: what the tests of model versions stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from groundplane.adapters.artifacts import folder_store
from groundplane.adapters.model_files import FolderModelFiles
from groundplane.adapters.provenance import MachineProvenance
from groundplane.adapters.signing import FileSigner
from groundplane.adapters.system import RandomIds
from groundplane.audit import EventDraft
from groundplane.domain.access import Project
from groundplane.domain.model import ModelVersion
from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.domain.registry import ModelAlias
from groundplane.identity import Actor, Role
from groundplane.ports import Clock, Store
from groundplane.services.addenda import Addenda
from groundplane.services.datasets import Datasets
from groundplane.services.hub import Hub
from groundplane.services.models import Models, Verification
from groundplane.services.oci_registry import OciRegistry

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
ADA = Actor(name="ada", role=Role.MEMBER, project="vision")
EVE = Actor(name="eve", role=Role.MEMBER, project="speech")
FACTS = Facts(
    owner="ada",
    license="Apache-2.0",
    data=(DataFact(name="corpus", sha256="1" * 64),),
    code_commit="2" * 40,
    training_run="slurm-4711",
    metrics={"f1": 0.93},
    hardware="2 × A100",
)
WEIGHTS = save({"a": np.arange(600, dtype=np.float32)})


class House:
    """An installation with two projects, and a model's folder to register from."""

    def __init__(self, store: Store, clock: Clock, home: Path, quota_bytes: int = 0) -> None:
        self.store, self.home = store, home
        self.blobs = folder_store(home / "store", quota_bytes)
        self.signer = FileSigner(home / "keys")
        self.models = Models(
            store=store,
            clock=clock,
            blobs=self.blobs,
            signer=self.signer,
            files=FolderModelFiles(),
            provenance=MachineProvenance(),
        )
        self.addenda = Addenda(store=store, clock=clock, signer=self.signer, models=self.models)
        self.source = home / "source"
        (self.source / "weights").mkdir(parents=True)
        (self.source / "weights" / "model.safetensors").write_bytes(WEIGHTS)
        (self.source / "config.json").write_bytes(b'{"layers": 2}')
        (self.source / "日本語.txt").write_bytes("こんにちは".encode())
        (self.source / "empty.txt").write_bytes(b"")

    async def register(self, name: str = "tiny", facts: Facts = FACTS, actor: Actor = ADA) -> ModelVersion:
        project = actor.project or "vision"
        return await self.models.register(actor, name=name, project=project, source=self.source, facts=facts)

    async def verify(self, ref: str = "tiny@1") -> Verification:
        return await self.models.verify(ADA, ref)

    async def tamper(self, **change: object) -> None:
        async with self.store.transaction() as tx:
            row = await tx.get(ModelVersion, "tiny@1")
            assert row is not None
            await tx.update(replace(row, **change))  # type: ignore[arg-type]

    async def stand(self, alias: str, number: int) -> None:
        """Lets an alias of `tiny` stand for a version, as a move would."""
        async with self.store.transaction() as tx:
            await tx.insert(ModelAlias(id=f"tiny@{alias}", name="tiny", alias=alias, number=number, project="vision",
                                       moved_by="ada", moved_at=NOW))  # fmt: skip
            moved = EventDraft(at=NOW, actor="ada", action="alias.set", object_kind="model",
                               object_id=f"tiny@{alias}", project="vision", after={"to": number})  # fmt: skip
            await tx.append_event(moved)

    def packs(self) -> list[Path]:
        return list((self.home / "store" / "packs").iterdir())

    async def rot(self, sha256: str) -> None:
        """Changes one bit in the middle of a stored file; twice puts it back."""
        piece = (await self.blobs.pieces(sha256))[0]
        pack = self.home / "store" / "packs" / piece.pack
        data = bytearray(pack.read_bytes())
        data[piece.offset + piece.size_bytes // 2] ^= 1
        pack.chmod(0o644)
        pack.write_bytes(data)

    async def actions(self) -> list[str]:
        return [event.action async for event in self.store.events()]


def doors_of(house: House, clock: Clock) -> tuple[Hub, OciRegistry]:
    """What clients of other registries read this installation through."""
    parts = {"store": house.store, "clock": clock, "blobs": house.blobs}
    datasets = Datasets(ids=RandomIds(), signer=house.signer, **parts)  # type: ignore[arg-type]
    oci = OciRegistry(models=house.models, files=FolderModelFiles(), **parts)  # type: ignore[arg-type]
    return Hub(store=house.store, models=house.models, datasets=datasets, blobs=house.blobs), oci


async def built(store: Store, clock: Clock, home: Path, quota_bytes: int = 0) -> House:
    async with store.transaction() as tx:
        for name in ("vision", "speech"):
            await tx.insert(Project(id=name, owner="o", cost_center="c", created_at=NOW))
    return House(store, clock, home, quota_bytes)


class Reading:
    """A store that counts the rows it gave out."""

    def __init__(self, store: Store) -> None:
        self._store, self.rows = store, 0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        async with self._store.transaction() as tx:
            yield _Counted(tx, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class _Counted:
    def __init__(self, tx: Any, of: Reading) -> None:
        self._tx, self._of = tx, of

    def __getattr__(self, name: str) -> Callable[..., Any]:
        asked = getattr(self._tx, name)

        async def counted(*words: Any, **options: Any) -> Any:
            answer = await asked(*words, **options)
            self._of.rows += len(answer) if isinstance(answer, list | dict) else 1
            return answer

        return counted


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
