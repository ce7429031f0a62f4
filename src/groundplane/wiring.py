"""The one place where ports meet adapters. Written out by hand: what is plugged in where is read, not searched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from groundplane.adapters.blobs import FolderBlobStore
from groundplane.adapters.executors.local import LocalExecutor
from groundplane.adapters.model_servers.embedded import EmbeddedModelServer
from groundplane.adapters.notify import LogNotifier
from groundplane.adapters.prices import BookPriceBook
from groundplane.adapters.provenance import MachineProvenance
from groundplane.adapters.run_files import HomeRunFiles
from groundplane.adapters.signing import FileSigner
from groundplane.adapters.snapshot_file import SnapshotFile
from groundplane.adapters.store.sql import SqlStore
from groundplane.adapters.system import RandomIds, SystemClock
from groundplane.adapters.usage_log import FolderUsageLog
from groundplane.ports import Clock, Executor, Store
from groundplane.services.access import Access
from groundplane.services.audit_trail import AuditTrail
from groundplane.services.costs import Costs
from groundplane.services.endpoints import Endpoints
from groundplane.services.gateway_config import GatewayConfig
from groundplane.services.models import Models
from groundplane.services.plans import Plans
from groundplane.services.reconcile import Reconcile
from groundplane.services.runs import Runs
from groundplane.settings import Settings

GATEWAY_ID = "gw-0"


@dataclass(kw_only=True)
class App:
    """One control plane: its settings, its ports, its use cases."""

    settings: Settings
    store: Store
    clock: Clock
    executors: Mapping[str, Executor]
    access: Access
    audit: AuditTrail
    costs: Costs
    plans: Plans
    runs: Runs
    endpoints: Endpoints
    models: Models
    reconcile: Reconcile
    gateway_config: GatewayConfig
    lease_owner: str
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    loops: tuple[object, ...] = ()
    _wakers: list[Callable[[], object]] = field(default_factory=list)

    def on_wake(self, waker: Callable[[], object]) -> None:
        """Registers what `wake` calls."""
        self._wakers.append(waker)

    def wake(self) -> None:
        """Something became due now."""
        for waker in self._wakers:
            waker()

    async def close(self) -> None:
        """Lets go of the database."""
        await self.store.close()
