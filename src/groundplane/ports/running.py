"""Where attempts run, and the folders and secrets that go with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from groundplane.domain.node import Node
from groundplane.domain.order import LogChunk, Order, Sample
from groundplane.domain.planning.plan import Offer
from groundplane.domain.preflight import CheckResult
from groundplane.domain.run import EndReason, Observation
from groundplane.errors import Unavailable


class Unplaced(Unavailable):
    """The nodes an attempt was meant for can't take it, and nothing of it was started: it may go elsewhere."""


class Executor(Protocol):
    """Runs attempts on one pool of nodes."""

    async def offers(self) -> Sequence[Offer]:
        """What this pool's nodes are, with free disk; without a price of the pool's own, the price book fills it in."""
        ...

    async def nodes(self) -> Sequence[Node]:
        """Every node of the pool, also those that do not answer, which say so. Asking changes nothing."""
        ...

    async def spot_blind(self) -> Mapping[str, str]:
        """Nodes on which the notice of a cloud that takes its machine back would not be seen, each with why.

        Nodes that do not answer are left out. Asking changes nothing.
        """
        ...

    async def preflight(self, order: Order, node: str) -> Sequence[CheckResult]:
        """Carries out an order's checks on one node and starts nothing; twice measures twice. Raises Unavailable."""
        ...

    async def start(self, order: Order) -> None:
        """Starts the attempt, once: a second call with the same attempt id changes nothing. Raises Unavailable,
        or Unplaced when it is certain that nothing was started.

        Dying halfway leaves an attempt that the next call finishes starting, or that `observe` reports as ended.
        """
        ...

    async def observe(self, attempt_ids: Sequence[str]) -> dict[str, Observation]:
        """The state of each attempt. What can't be found out is `unknown`, never guessed."""
        ...

    async def stop(self, attempt_id: str, reason: EndReason) -> None:
        """Asks the job to end (SIGTERM, then SIGKILL after its grace), recording the reason.

        Returns at once; a second call changes nothing.
        """
        ...

    async def log(self, attempt_id: str, offset: int, limit_bytes: int, rank: int = 0) -> LogChunk:
        """A piece of one member's log; an offset past the end gives no bytes."""
        ...

    async def samples(self, attempt_id: str, limit: int) -> list[Sample]:
        """The newest samples, oldest first."""
        ...

    async def circumstances(self, attempt_id: str) -> list[dict[str, object]]:
        """What each member's runner saw before its command, by rank; none without `observe`. Raises Unavailable."""
        ...

    async def attempts(self) -> list[str]:
        """Every attempt id this pool knows, ours or orphaned: what adoption and the sweep start from."""
        ...

    async def release(self, attempt_id: str) -> None:
        """Forgets an ended attempt's bookkeeping, keeping its log, checkpoints and outputs. Idempotent."""
        ...

    async def beat(self) -> None:
        """Tells the runners that the control plane is alive; feeds their dead-man timers."""
        ...

    async def bring_outputs(self, attempt_id: str, run_id: str, target: Path) -> None:
        """Copies the run's output files from its first member's node to `target`, unless they are there already.

        Twice brings what changed. Dying halfway leaves whole files only. Raises Unavailable when the node is silent.
        """
        ...

    async def close(self) -> None:
        """Lets go of connections; what runs goes on. Twice is the same as once."""
        ...


class SecretStore(Protocol):
    """Secrets of projects: what their jobs may know and nobody may see."""

    async def read(self, project: str, name: str) -> str:
        """The secret's text, bytes that are no UTF-8 escaped. NotFound, or Unavailable when it can't be read."""
        ...

    async def names(self, project: str) -> frozenset[str]:
        """Which there are; their values are not read."""
        ...


class RunFiles(Protocol):
    """Where runs keep what outlives their attempts, on storage that the control plane sees."""

    def checkpoint_dir(self, run_id: str) -> str:
        """The run's checkpoint folder, shared by all its attempts; made when missing."""
        ...

    def output_dir(self, run_id: str) -> str:
        """The run's output folder; made when missing."""
        ...

    def output_path(self, run_id: str, relative: str) -> Path:
        """A folder inside the output folder. InvalidInput when `relative` would leave it."""
        ...

    def model_dir(self, version_id: str) -> Path:
        """Where a model version is laid out for serving; its parent exists."""
        ...

    def engine_cache(self) -> Path:
        """Where engines keep converted weights; made when missing."""
        ...

    def metrics(self, run_id: str) -> dict[str, float]:
        """The numbers of the run's `metrics.json` output; empty without one, InvalidInput when unreadable."""
        ...

    def hyperparameters(self, run_id: str) -> dict[str, str]:
        """The values of the run's `params.json` output as text; like `metrics` otherwise."""
        ...

    def free_port(self) -> int:
        """A loopback port nobody listens on now. Another process may take it first: then the attempt retries."""
        ...
