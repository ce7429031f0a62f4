"""Everything Groundplane asks of the outside world, as small protocols.

Each method's docstring answers: what if it is called twice, dies halfway, or never answers?
Adapters implement these; `wiring.py` is the only place that knows which adapter stands behind which port.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Protocol, TypeVar

from groundplane.audit import Event, EventDraft
from groundplane.domain.catalogue import Catalogue
from groundplane.domain.catalogue_changes import Proposal, TableView
from groundplane.domain.certificate import Circumstances, DataFact, Unknown
from groundplane.domain.conditions import Among as Among
from groundplane.domain.conditions import AtLeast as AtLeast
from groundplane.domain.conditions import Below as Below
from groundplane.domain.conditions import Between as Between
from groundplane.domain.conditions import Contains as Contains
from groundplane.domain.hardware import Hardware
from groundplane.domain.intake import QuotaFact
from groundplane.domain.intake.request import Suggestion
from groundplane.domain.isolation import JobIsolation as JobIsolation
from groundplane.domain.ledger import UsageRecord
from groundplane.domain.model import ManifestFile
from groundplane.domain.node import Node as Node
from groundplane.domain.node import Placement as Placement
from groundplane.domain.order import LogChunk as LogChunk
from groundplane.domain.order import Order as Order
from groundplane.domain.order import Sample as Sample
from groundplane.domain.planning import Offer
from groundplane.domain.preflight import CheckResult as CheckResult
from groundplane.domain.preflight import PreflightNeed as PreflightNeed
from groundplane.domain.price_lists import ListPrice
from groundplane.domain.recon import CloudView, Machine
from groundplane.domain.run import EndReason
from groundplane.domain.run import FoundCheckpoint as FoundCheckpoint
from groundplane.domain.run import Observation as Observation
from groundplane.domain.spec import JobSpec
from groundplane.errors import Problem, Refused, Unavailable

Row = TypeVar("Row")
"""A frozen dataclass with an `id`, and a `version` when it can change."""


class Clock(Protocol):
    def now(self) -> datetime:
        """The current time, timezone-aware UTC. It can be set back: nothing may rely on it only growing."""
        ...


class Ids(Protocol):
    def new(self, prefix: str) -> str:
        """A fresh id such as `run-01jd3k9x7q2m`: unique, sortable by creation, safe in paths and host names."""
        ...


# ---------------------------------------------------------------- store


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainHead:
    """The newest event's number and hash, kept apart from the events themselves."""

    id: int
    hash: str


class Tx(Protocol):
    """One transaction: every method sees one consistent state; leaving the block commits all of it or nothing.

    Two methods may see two states: lock a row before reading what is to be changed. After Conflict from `insert` or
    from a stale `update` the transaction can go on. Opening a second one inside it is a RuntimeError.
    """

    async def get(self, kind: type[Row], id: str, *, lock: bool = False) -> Row | None:
        """The row, or None. `lock` makes other transactions that lock it wait until this one ends."""
        ...

    async def find(
        self,
        kind: type[Row],
        where: Mapping[str, object] | None = None,
        *,
        order: str = "id",
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Row]:
        """Rows whose columns equal `where`, ordered; `-x` descends.

        A tuple value means "one of"; AtLeast, Below and Between are ranges; Contains and Among say what they mean.
        """
        ...

    async def insert(self, row: Row) -> None:
        """Adds a row. Raises Conflict when its id is taken."""
        ...

    async def insert_once(self, row: Row) -> bool:
        """Adds a row unless its id is taken; says whether it was added. Twice is the same as once."""
        ...

    async def insert_many_once(self, rows: Sequence[Row]) -> frozenset[str]:
        """`insert_once` for many rows of one kind in few round trips; returns the ids that were added."""
        ...

    async def update(self, row: Row) -> Row:
        """Replaces the row if its stored version still equals `row.version`; returns it with version + 1.

        Raises Conflict when somebody else changed it meanwhile: this is the fencing token of a lease.
        """
        ...

    async def delete(self, kind: type[object], id: str) -> bool:
        """Removes the row; says whether it was there."""
        ...

    async def claim(self, kind: type[Row], *, now: datetime, owner: str, lease_s: float, limit: int) -> list[Row]:
        """Takes up to `limit` rows that are due (`due_at ≤ now`) and unleased or expired, oldest due first.

        Each gets `lease_owner`, `lease_expires_at` and a new version. Two claimers never get the same row.
        A claimer that dies loses its rows when the lease expires.
        """
        ...

    async def total(
        self,
        kind: type[object],
        column: str,
        *,
        by: Sequence[str] = (),
        where: Mapping[str, object] | None = None,
    ) -> dict[tuple[object, ...], int]:
        """Sum of an integer column, grouped: {(group values…): sum}. An empty `by` gives {(): sum}.

        Column `*` counts rows.
        """
        ...

    async def append_event(self, draft: EventDraft) -> Event:
        """Seals the draft onto the audit chain, in this transaction.

        The chain is locked until the transaction ends: append last, after the rows the event tells of.
        """
        ...

    async def chain_head(self) -> ChainHead | None:
        """The newest event's number and hash; None on an empty trail."""
        ...


class Store(Protocol):
    """The one durable memory of the control plane."""

    def transaction(self) -> AbstractAsyncContextManager[Tx]:
        """Opens a transaction.

        Raises Unavailable when the database does not answer, IntegrityFailure when it is damaged.
        """
        ...

    def events(self) -> AsyncGenerator[Event, None]:
        """Every audit event in order, streamed."""
        ...

    async def close(self) -> None:
        """Lets go of connections. Twice is the same as once."""
        ...


# ---------------------------------------------------------------- executors


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


class PolicyFiles(Protocol):
    """The operator's folder of rules, and a copy of what was last in force."""

    @property
    def folder(self) -> str:
        """Where it is, for people."""
        ...

    async def read(self) -> dict[str, str]:
        """Every policy file by name; none when the folder is not there. InvalidInput for what can't be read as text."""
        ...

    async def last_good(self) -> dict[str, str]:
        """What `keep` was last given; nothing at first. IntegrityFailure when it was damaged."""
        ...

    async def keep(self, texts: Mapping[str, str]) -> None:
        """Remembers a set that is in force, whole or not at all. Twice is the same as once."""
        ...


# ---------------------------------------------------------------- models


class BlobStore(Protocol):
    """Content-addressed bytes: what is stored under a digest never changes."""

    async def put_file(self, path: Path) -> tuple[str, int]:
        """Stores a file's bytes; returns (SHA-256 hex, size). Twice stores once. A crash leaves nothing visible.

        Raises Unavailable when the store is full, naming bytes needed and free.
        """
        ...

    async def put_files(self, paths: Sequence[Path]) -> list[tuple[str, int]]:
        """`put_file` for many files at once, in their order: all of them or, when one fails, none."""
        ...

    async def fetch(self, sha256: str, target: Path) -> None:
        """Writes the blob to `target` atomically, verified. NotFound, or IntegrityFailure when the bytes changed."""
        ...

    async def verify(self, sha256: str, size_bytes: int) -> None:
        """Re-hashes the stored bytes. Raises IntegrityFailure or NotFound, naming the blob."""
        ...

    async def read(self, sha256: str, offset: int, limit_bytes: int) -> bytes:
        """A range of a blob."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file of a model that wants in. `stamp` changes when the file does; `refused` says why it may not enter."""

    path: str
    source: Path
    size_bytes: int
    stamp: tuple[int, ...]
    format: str = ""
    details: Mapping[str, object] = field(default_factory=dict)
    refused: Refused | None = None


class ModelFiles(Protocol):
    """Folders of model files. Nothing in them is trusted, loaded or followed elsewhere."""

    async def scan(self, source: Path) -> tuple[FoundFile, ...]:
        """Every file below `source` (or `source` itself) with what it really is. Only reads. NotFound, InvalidInput."""
        ...

    def rules_sha256(self) -> str:
        """A digest of the rules that `scan` judges by; another one means that a scan would look for other things."""
        ...

    async def unchanged(self, found: Sequence[FoundFile]) -> None:
        """Raises Conflict naming the first file that is no longer the one that was looked at."""
        ...

    async def problems(self, folder: Path, files: Sequence[ManifestFile]) -> tuple[Problem, ...]:
        """How a laid-out folder differs from the manifest: re-hashes all of it. Empty when it is exactly that."""
        ...

    async def place(self, folder: Path, files: Sequence[ManifestFile], blobs: BlobStore) -> None:
        """Makes `folder` hold exactly these files, verified, by one rename. Nothing to do when it does already.

        Two callers at once: one works, the other waits and finds it done. A crash leaves the old folder or none; the
        next call clears up. Raises IntegrityFailure and NotFound like `BlobStore.fetch`, Unavailable on a full disk.
        """
        ...


class Provenance(Protocol):
    """What can be seen around a job on this machine. What can't be seen is stated as unknown, never guessed."""

    async def look(self, spec: JobSpec, observed: str) -> Circumstances:
        """Code, environment, hardware and data of a job, `observed` saying when. Never raises for what is not there."""
        ...

    async def look_at_data(self, spec: JobSpec, *, here: bool) -> tuple[tuple[DataFact, ...], tuple[Unknown, ...]]:
        """The job's data, and what of it is unknown; paths are read only when they are `here`, on this machine."""
        ...


class Signer(Protocol):
    """The installation's signing key."""

    @property
    def key_id(self) -> str:
        """A stable fingerprint of the public key."""
        ...

    def sign(self, payload: bytes) -> bytes:
        """An Ed25519 signature over the payload."""
        ...

    def verify(self, payload: bytes, signature: bytes, key_id: str) -> bool:
        """Whether a trusted key of that id signed exactly these bytes."""
        ...

    def public_keys(self) -> Mapping[str, str]:
        """key id → PEM of every trusted public key: what a stranger needs to check certificates."""
        ...

    def interchange_public_key(self) -> str:
        """PEM of a second key, on P-256, for tools that know no Ed25519. Made on first use, kept from then on."""
        ...

    def sign_interchange(self, payload: bytes) -> bytes:
        """An ECDSA signature (SHA-256, DER) by that second key. It never signs birth certificates."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """Whether a model server answered a real test prompt, how long it took, and what it said otherwise."""

    ok: bool
    detail: str
    latency_s: float | None = None


class ModelServer(Protocol):
    """A kind of engine that serves one model version as an OpenAI-compatible process."""

    def unavailable(self) -> str | None:
        """Why this engine can't be used on this machine, with the fix; None when it can."""
        ...

    def command(self, *, model_dir: Path, name: str, port: str, threads: int, cache_dir: Path) -> tuple[str, ...]:
        """The argv that serves the model on 127.0.0.1:port. `port` may be a placeholder filled in at each start."""
        ...

    async def ready(self, base_url: str, model: str) -> Readiness:
        """Sends a test prompt. Never raises for a server that does not answer: that is `ok=False`."""
        ...


# ---------------------------------------------------------------- gateway, money


class UsageLog(Protocol):
    """The gateway's write-ahead log as the control plane reads it."""

    async def read(self, limit: int) -> list[UsageRecord]:
        """Settled requests not yet acknowledged, oldest first. Reading again returns the same ones."""
        ...

    async def acknowledge(self, count: int) -> None:
        """Marks the first `count` records of the last `read` as safely in the ledger.

        A crash before this is durable means that they come again.
        """
        ...

    async def ingested(self) -> dict[str, int]:
        """Per gateway id, the sequence number up to which everything was acknowledged."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What people should know now: `kind` such as `budget.threshold`, a one-line `title`, a `text` with the fix."""

    at: datetime
    kind: str
    project: str
    title: str
    text: str


class Notifier(Protocol):
    """How people are told."""

    async def send(self, notice: Notice) -> None:
        """Tells them. Raises Unavailable when it could not; the caller sends again, so a notice may arrive twice."""
        ...


class SnapshotSink(Protocol):
    """Where the compiled gateway configuration goes."""

    async def publish(self, snapshot: bytes) -> None:
        """Replaces the snapshot whole and durably; a reader sees the old or the new one, never a mixture."""
        ...


class PriceBook(Protocol):
    """Dated prices of node types."""

    def price(self, offer: Offer) -> Offer:
        """The offer with its hourly price, date and source filled in. NotFound when the book has no price for it."""
        ...


# ---------------------------------------------------------------- what there is to run on


class MachineProbe(Protocol):
    """The machine that the control plane runs on. Raises Unavailable when its driver does not answer in time."""

    async def look(self) -> Machine:
        """What it has, without speeds. Changes nothing."""
        ...

    async def measure(self) -> Machine:
        """With the speed of its disks, through bounded temporary files that are gone afterwards, however it ends."""
        ...


class CloudSource(Protocol):
    """One cloud, asked with the operator's own tools and credentials. It only reads."""

    @property
    def cloud(self) -> str:
        """As the catalogue names it."""
        ...

    async def look(self, regions: Sequence[str]) -> list[CloudView]:
        """One view per region. What did not answer is a gap in the view, with its reason; never an error or a guess."""
        ...


class CatalogBook(Protocol):
    """The catalogue with the operator's rows laid over it. Raises InvalidInput for files of the operator's at fault."""

    def hardware(self) -> Hardware:
        """Accelerators and instance types as they stand now."""
        ...

    def catalogue(self) -> Catalogue:
        """All of it as it stands now; the same object for as long as no file changed."""
        ...

    def tables(self) -> list[TableView]:
        """Every table without its rows."""
        ...

    def table(self, name: str) -> TableView:
        """One table with its rows. NotFound for a name that is no table."""
        ...

    def propose(
        self, *, documents: Mapping[str, str], prices: Sequence[ListPrice], regions: Sequence[str], replace: bool
    ) -> Proposal:
        """The operator's files as they would be, checked whole. Writes nothing. Raises InvalidInput with all faults."""
        ...

    def write(self, proposal: Proposal) -> None:
        """Puts the proposed files in place, each whole or not at all. Twice is the same as once."""
        ...


# ---------------------------------------------------------------- requests


class GapFiller(Protocol):
    """Something that reads the message and proposes facts that are still missing."""

    async def suggest(self, message: str, asked: Sequence[tuple[int, str, str]]) -> tuple[Suggestion, ...]:
        """Proposals for (item, fact, why it matters), each with the words it goes by. Raises Unavailable.

        Calling it twice costs twice and may answer otherwise; nothing depends on its answer.
        """
        ...


class QuotaSource(Protocol):
    """What the clouds have left, as they say it now or lately."""

    async def quotas(self, clouds: Sequence[str], skus: Sequence[str], regions: Sequence[str]) -> tuple[QuotaFact, ...]:
        """Of what is named, else of everything known. What did not answer is not there; nothing is raised for it."""
        ...
