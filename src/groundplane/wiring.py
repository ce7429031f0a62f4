"""The one place where ports meet adapters. Written out by hand: what is plugged in where is read, not searched."""

from __future__ import annotations

import asyncio
import importlib.util
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Protocol

from groundplane.adapters.artifacts import PackStore, bucket_store, folder_store, seal_key
from groundplane.adapters.catalog_overlay import OperatorCatalog
from groundplane.adapters.clouds.aws import AwsCloud
from groundplane.adapters.clouds.azure import AzureCloud
from groundplane.adapters.clouds.gcp import GoogleCloud
from groundplane.adapters.executors.local import LocalExecutor
from groundplane.adapters.executors.nodes import RunnerOptions
from groundplane.adapters.executors.pool_book import PoolBook
from groundplane.adapters.executors.ssh import SshExecutor, installation_id
from groundplane.adapters.gap_filler import ChatGapFiller
from groundplane.adapters.gateway_reports import FileReports
from groundplane.adapters.gateway_traffic import FileFigures, SocketTail
from groundplane.adapters.jargon import Vocabulary
from groundplane.adapters.job_program import packed_program
from groundplane.adapters.job_tokens import FileJobTokens
from groundplane.adapters.lineage import FileLineage, HttpLineage
from groundplane.adapters.machine import ThisMachine
from groundplane.adapters.model_files import FolderModelFiles
from groundplane.adapters.model_servers.embedded import EmbeddedModelServer
from groundplane.adapters.notify import LogNotifier
from groundplane.adapters.policy_files import FolderPolicyFiles
from groundplane.adapters.prediction_log import FolderPredictions
from groundplane.adapters.prices import BookPriceBook
from groundplane.adapters.provenance import MachineProvenance
from groundplane.adapters.provider_keys import FolderProviderKeys
from groundplane.adapters.provider_probe import HttpProviderProbe
from groundplane.adapters.run_files import HomeRunFiles
from groundplane.adapters.secrets import FolderSecrets
from groundplane.adapters.signing import FileSigner
from groundplane.adapters.snapshot_file import SnapshotFile
from groundplane.adapters.store.sql import SqlStore
from groundplane.adapters.system import RandomIds, SystemClock
from groundplane.adapters.usage_log import FolderUsageLog
from groundplane.domain.isolation import Isolation, IsolationPolicy
from groundplane.domain.provenance.token_key import token_key
from groundplane.errors import InvalidInput
from groundplane.ports import Clock, Executor, ModelServer, Signer, Store
from groundplane.services.access import Access
from groundplane.services.addenda import Addenda
from groundplane.services.approvals import Approvals
from groundplane.services.artifacts import Artifacts
from groundplane.services.audit_trail import AuditTrail
from groundplane.services.batches import Batches
from groundplane.services.catalog import Catalog
from groundplane.services.checkpoints import CheckpointExecutor, Checkpoints
from groundplane.services.cordons import Cordons
from groundplane.services.costs import Costs
from groundplane.services.datasets import Datasets
from groundplane.services.dev import Dev, DevExecutor
from groundplane.services.endpoints import Endpoints
from groundplane.services.evaluations import Evaluations
from groundplane.services.gates import Gates
from groundplane.services.gateway_config import GatewayConfig
from groundplane.services.gateway_limits import GatewayLimits
from groundplane.services.hub import Hub
from groundplane.services.inference import Inference
from groundplane.services.lineage import LineageSink, OpenLineage
from groundplane.services.logged_models import LoggedModels
from groundplane.services.models import Models
from groundplane.services.nodes import Nodes
from groundplane.services.oci_registry import OciRegistry
from groundplane.services.outlooks import Outlooks
from groundplane.services.plans import Plans
from groundplane.services.policy import Policies
from groundplane.services.pools import Pools
from groundplane.services.predictions import Predictions
from groundplane.services.preflight import Preflight
from groundplane.services.proofs import Proofs
from groundplane.services.providers import Providers
from groundplane.services.queue import Queue
from groundplane.services.quotas import Quotas
from groundplane.services.reach import Reach
from groundplane.services.recon import Recon
from groundplane.services.reconcile import Reconcile
from groundplane.services.registry import Registry
from groundplane.services.requests import Requests
from groundplane.services.required_facts import FactRules
from groundplane.services.retention import Retention
from groundplane.services.routes import Routes
from groundplane.services.runs import Runs
from groundplane.services.scans import Scans
from groundplane.services.schedules import Schedules
from groundplane.services.sizing import Sizings
from groundplane.services.staging import DataExecutor, Staging
from groundplane.services.standing import Standing
from groundplane.services.tracked_models import TrackedModels
from groundplane.services.tracked_search import TrackedSearch
from groundplane.services.tracking import JobTracking, Tracking
from groundplane.services.traffic import Traffic
from groundplane.services.watchdogs import Watchdogs
from groundplane.settings import Settings


class PoolExecutor(CheckpointExecutor, DataExecutor, DevExecutor, Protocol):
    """What a pool's executor can do in all."""


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
    requests: Requests
    plans: Plans
    policies: Policies
    approvals: Approvals
    runs: Runs
    endpoints: Endpoints
    models: Models
    artifacts: Artifacts
    registry: Registry
    tracking: Tracking
    logged_models: LoggedModels
    tracked_models: TrackedModels
    tracked_search: TrackedSearch
    addenda: Addenda
    fact_rules: FactRules
    gates: Gates
    scans: Scans
    datasets: Datasets
    retention: Retention
    evaluations: Evaluations
    batches: Batches
    hub: Hub
    oci: OciRegistry
    lineage: OpenLineage
    recon: Recon
    catalog: Catalog
    sizings: Sizings
    reconcile: Reconcile
    preflight: Preflight
    staging: Staging
    dev: Dev
    cordons: Cordons
    checkpoints: Checkpoints
    proofs: Proofs
    watchdogs: Watchdogs
    nodes: Nodes
    pools: Pools
    queue: Queue
    standing: Standing
    quotas: Quotas
    schedules: Schedules
    gateway_config: GatewayConfig
    gateway_limits: GatewayLimits
    providers: Providers
    routes: Routes
    predictions: Predictions
    traffic: Traffic
    lease_owner: str
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    wakers: list[Callable[[], object]]
    loops: tuple[object, ...] = ()

    def on_wake(self, waker: Callable[[], object]) -> None:
        """Registers what is called when something became due."""
        self.wakers.append(waker)

    async def close(self) -> None:
        """Lets go of nodes and of the database."""
        await self.traffic.close()
        await self.checkpoints.close()
        await self.dev.close()
        for executor in self.executors.values():
            await executor.close()
        await self.store.close()


async def build(settings: Settings) -> App:
    """Opens the database (migrating it) and plugs everything in. Raises what the parts raise when they can't start."""
    home = settings.home
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    clock = SystemClock()
    ids = RandomIds()
    store = await SqlStore.open(settings.database_url or f"sqlite:///{home / 'groundplane.db'}")
    usage_log = FolderUsageLog(home / "gateway" / "wal")
    files = HomeRunFiles(home)
    options = RunnerOptions(
        log_line_limit_bytes=settings.log_line_limit_bytes, spot_metadata_url=settings.spot_metadata_url
    )
    executors: dict[str, PoolExecutor] = {"local": LocalExecutor(home, clock, options=options)}
    pool_book = PoolBook(
        Path(settings.pool_file or home / "pools.yaml").expanduser(),
        lambda pool: SshExecutor(pool, home, clock, installation=installation_id(home), options=options),
        take=executors.__setitem__,
        drop=executors.__delitem__,
    )
    pool_book.open()
    wakers: list[Callable[[], object]] = []

    def wake() -> None:
        for waker in wakers:
            waker()

    blobs, signer = _artifact_store(settings), await asyncio.to_thread(_signer, settings)
    models = Models(
        store=store,
        clock=clock,
        blobs=blobs,
        signer=signer,
        files=FolderModelFiles(),
        provenance=MachineProvenance(),
        power_w=lambda name: card.power_w or None if (card := catalog_book.hardware().accelerator(name)) else None,
    )
    addenda = Addenda(store=store, clock=clock, signer=signer, models=models)
    engines: dict[str, ModelServer] = {"embedded": EmbeddedModelServer()}
    gates = Gates(store=store, clock=clock, ids=ids, models=models, engines=engines, addenda=addenda)
    notifier = LogNotifier()
    costs = Costs(
        store=store,
        clock=clock,
        ids=ids,
        usage_log=usage_log,
        gateway_slice_microusd=settings.gateway_slice_microusd,
        notify=notifier,
    )
    catalog_book = OperatorCatalog(home / "catalog")
    prices = BookPriceBook(
        local_price_microusd_per_hour=settings.local_price_microusd_per_hour,
        as_of=date.fromisoformat(settings.local_price_as_of) if settings.local_price_as_of else clock.now().date(),
        hardware=catalog_book.hardware,
    )
    recon = Recon(
        store=store,
        clock=clock,
        machine=ThisMachine(home),
        executors=executors,
        prices=prices,
        catalog=catalog_book,
        clouds=(AzureCloud(clock), AwsCloud(clock), GoogleCloud(clock)),
    )
    approvals = Approvals(
        store=store,
        clock=clock,
        notify=notifier,
        validity_s=settings.approval_expiry_s,
        four_eyes=settings.approval_four_eyes,
    )
    policy_dir = Path(settings.policy_dir).expanduser() if settings.policy_dir else home / "policy"
    policies = Policies(
        store=store, clock=clock, ids=ids, files=FolderPolicyFiles(policy_dir, home / "policy-in-force.json")
    )
    await policies.start()
    cordons, secrets = Cordons(store=store, clock=clock), FolderSecrets(_secrets_dir(settings))
    isolation = _isolation_policy(settings, pool_book.isolation)
    staging = Staging(
        store=store,
        clock=clock,
        blobs=blobs,
        executors=executors,
        scratch=settings.scratch,
        cache_bytes=settings.data_cache_bytes,
    )
    gateway = settings.gateway_url.partition("://")[2]
    reach = Reach(store=store, executors=executors, engines=engines, models=models, files=files, gateway=gateway)
    plans = Plans(
        store=store,
        clock=clock,
        ids=ids,
        executors=executors,
        prices=prices,
        approvals=approvals,
        policies=policies,
        hardware=catalog_book.hardware,
        outlooks=Outlooks(
            clock=clock,
            catalogue=catalog_book.catalogue,
            registered=executors,
            recon=recon,
            rules=lambda: policies.digests,
            speeds=staging.speeds,
        ),
        gateway_addresses=(settings.gateway_host,),
        isolation=isolation,
        secrets=secrets,
        kept=staging.need,
        unfit=reach.unfit,
    )
    preflight = Preflight(
        store=store,
        clock=clock,
        ids=ids,
        executors=executors,
        cordons=cordons,
        secrets=secrets,
        hardware=catalog_book.hardware,
        policy=isolation,
        budget_s=settings.preflight_budget_s,
        idle_period_s=settings.preflight_idle_s,
        staging=staging,
        packages=reach.packages,
    )
    watchdogs = Watchdogs(
        store=store,
        clock=clock,
        executors=executors,
        cordons=cordons,
        notify=notifier,
        storm_percent=settings.storm_percent,
        settle_s=settings.storm_settle_s,
        idle_notice_s=settings.idle_notice_s,
    )
    checkpoints = Checkpoints(
        store=store,
        clock=clock,
        executors=executors,
        blobs=blobs,
        folder=home / "staging" / "checkpoints",
        bytes_per_s=settings.checkpoint_bandwidth_bytes,
        home_of=files.checkpoint_dir,
        copying=settings.checkpoint_copies,
    )
    access = Access(store=store, clock=clock, ids=ids, jobs=FileJobTokens(home / "keys"))
    artifacts = Artifacts(store=store, clock=clock, ids=ids, blobs=blobs)
    datasets = Datasets(store=store, clock=clock, ids=ids, blobs=blobs, signer=signer)
    evaluations = Evaluations(
        store=store,
        clock=clock,
        files=files,
        blobs=blobs,
        artifacts=artifacts,
        models=models,
        addenda=addenda,
        notify=notifier,
    )
    batches = Batches(store=store, clock=clock, files=files, artifacts=artifacts, datasets=datasets, reach=reach)
    inference = Inference(
        store=store,
        clock=clock,
        access=access,
        models=models,
        engines=engines,
        files=files,
        gateway_url=settings.gateway_url,
        command=(sys.executable, "-m", "groundplane.jobs"),
        program=packed_program,
        reach=reach,
        evaluations=evaluations,
        batches=batches,
    )
    queue = Queue(store=store, clock=clock, executors=executors, half_life_s=settings.share_half_life_s, wake=wake)
    standing = Standing(store=store, clock=clock, executors=executors, queue=queue)
    runs = Runs(
        store=store,
        clock=clock,
        ids=ids,
        plans=plans,
        approvals=approvals,
        costs=costs,
        executors=executors,
        wake=wake,
        standing=standing,
        staging=staging,
    )
    registry = Registry(store=store, clock=clock, ids=ids, models=models, gates=gates, addenda=addenda)
    tracking = Tracking(store=store, clock=clock, ids=ids)
    logged = LoggedModels(store=store, clock=clock, ids=ids, blobs=blobs, tracking=tracking)
    tracked_models = TrackedModels(
        store=store,
        clock=clock,
        models=models,
        registry=registry,
        tracking=tracking,
        logged=logged,
        scratch=home / "scratch",
    )
    return App(
        settings=settings,
        store=store,
        clock=clock,
        executors=executors,
        access=access,
        audit=AuditTrail(store=store),
        costs=costs,
        requests=Requests(
            store=store,
            clock=clock,
            ids=ids,
            lexicon=Vocabulary(catalog_book.catalogue, clock).lexicon,
            live=recon,
            gap_filler=_gap_filler(settings),
        ),
        plans=plans,
        policies=policies,
        approvals=approvals,
        runs=runs,
        endpoints=Endpoints(
            store=store,
            clock=clock,
            plans=plans,
            approvals=approvals,
            runs=runs,
            models=models,
            engines=engines,
            files=files,
            period_s=settings.reconcile_period_s,
            wake=wake,
        ),
        models=models,
        artifacts=artifacts,
        addenda=addenda,
        fact_rules=FactRules(store=store, clock=clock, models=models),
        registry=registry,
        tracking=tracking,
        logged_models=logged,
        tracked_models=tracked_models,
        tracked_search=TrackedSearch(store=store, models=tracked_models),
        gates=gates,
        scans=Scans(
            store=store,
            clock=clock,
            ids=ids,
            models=models,
            blobs=blobs,
            files=FolderModelFiles(),
            scratch=home / "scratch",
        ),
        datasets=datasets,
        retention=Retention(
            store=store, clock=clock, datasets=datasets, notify=notifier, notice_s=settings.retention_notice_s
        ),
        evaluations=evaluations,
        batches=batches,
        hub=Hub(store=store, models=models, datasets=datasets, blobs=blobs),
        oci=OciRegistry(store=store, clock=clock, models=models, blobs=blobs, files=FolderModelFiles()),
        lineage=OpenLineage(
            store=store, clock=clock, sink=_lineage_sink(settings, secrets), namespace=settings.lineage_namespace
        ),
        sizings=Sizings(catalogue=catalog_book.catalogue, clock=clock),
        recon=recon,
        catalog=Catalog(store=store, clock=clock, book=catalog_book),
        pools=Pools(store=store, clock=clock, source=pool_book, wake=wake),
        queue=queue,
        standing=standing,
        schedules=Schedules(store=store, clock=clock, plans=plans, runs=runs),
        quotas=Quotas(store=store, clock=clock, ids=ids, executors=executors),
        reconcile=Reconcile(
            store=store,
            clock=clock,
            executors=executors,
            costs=costs,
            models=models,
            files=files,
            period_s=settings.reconcile_period_s,
            wake=wake,
            preflight=preflight,
            checkpoints=checkpoints,
            watchdogs=watchdogs,
            tracking=JobTracking(clock=clock, tokens=FileJobTokens(home / "keys"), urls=_tracking_urls(settings)),
            inference=inference,
        ),
        preflight=preflight,
        staging=staging,
        dev=Dev(store=store, clock=clock, ids=ids, executors=executors),
        checkpoints=checkpoints,
        watchdogs=watchdogs,
        proofs=Proofs(store=store, clock=clock, executors=executors, plans=plans, runs=runs),
        cordons=cordons,
        nodes=Nodes(store=store, clock=clock, executors=executors, prices=prices, cordons=cordons),
        gateway_limits=GatewayLimits(store=store, clock=clock),
        providers=Providers(
            store=store, clock=clock, keys=FolderProviderKeys(home / "provider-keys"), probe=HttpProviderProbe()
        ),
        routes=Routes(
            store=store,
            clock=clock,
            reports=FileReports(home / "gateway" / "reports", home / "gateway" / "metrics"),
            catalogue=catalog_book.catalogue,
        ),
        predictions=Predictions(store=store, clock=clock, log=FolderPredictions(settings.predictions_folder)),
        traffic=Traffic(
            store=store,
            tail=SocketTail(home / "gateway" / "tail.sock"),
            figures=FileFigures(home / "gateway" / "metrics"),
        ),
        gateway_config=GatewayConfig(
            store=store,
            clock=clock,
            costs=costs,
            usage_log=usage_log,
            sink=SnapshotFile(home / "gateway" / "snapshot.json"),
            catalogue=catalog_book.catalogue,
        ),
        lease_owner=f"{socket.gethostname()}:{home}",
        wakers=wakers,
    )


def _signer(settings: Settings) -> Signer:
    folder = settings.home / "keys"
    if not settings.signing_key:
        return FileSigner(folder)
    if importlib.util.find_spec("pkcs11") is None:
        raise InvalidInput("GROUND_SIGNING_KEY needs the hsm extra", "pip install 'groundplane[hsm]'")
    from groundplane.adapters.token_signer import TokenSigner  # noqa: PLC0415 - an extra

    return TokenSigner(token_key(settings.signing_key), folder)


def _artifact_store(settings: Settings) -> PackStore:
    key = seal_key(settings.home / "keys")
    if settings.store_url and settings.store_cold:
        raise InvalidInput(
            f"GROUND_STORE_COLD={settings.store_cold} is a second folder, and the packs lie in {settings.store_url}",
            "unset GROUND_STORE_COLD; give the bucket a lifecycle rule to a class that is read at once",
        )
    if settings.store_url:
        return bucket_store(settings.store_url, settings.store_quota_bytes, key=key)
    cold = Path(settings.store_cold).expanduser() if settings.store_cold else None
    return folder_store(settings.home / "store", settings.store_quota_bytes, key=key, cold=cold)


def _tracking_urls(settings: Settings) -> dict[str, str]:
    """Where jobs reach tracking: those of this machine by themselves, those of others where the operator says."""
    if settings.tracking_url == "off":
        return {}
    return {"local": f"{settings.base_url}/mlflow", "": settings.tracking_url}


def _lineage_sink(settings: Settings, secrets: FolderSecrets) -> LineageSink | None:
    if not settings.lineage_url:
        return None
    if settings.lineage_url.startswith("/"):
        return FileLineage(Path(settings.lineage_url))
    project, _, name = settings.lineage_secret.partition("/")

    async def key() -> str:
        return await secrets.read(project, name) if settings.lineage_secret else ""

    return HttpLineage(settings.lineage_url, key)


def _secrets_dir(settings: Settings) -> Path:
    return Path(settings.secrets_dir).expanduser() if settings.secrets_dir else settings.home / "secrets"


def _isolation_policy(settings: Settings, pools: Mapping[str, Isolation]) -> IsolationPolicy:
    first, _, last = settings.job_uids.partition("-")
    return IsolationPolicy(
        default=Isolation(settings.isolation),
        minimum=Isolation(settings.isolation_minimum),
        first_uid=int(first),
        uids=int(last) - int(first) + 1,
        pids_limit=settings.job_pids_limit,
        pools=pools,
    )


def _gap_filler(settings: Settings) -> ChatGapFiller | None:
    if not settings.request_llm_url:
        return None
    return ChatGapFiller(url=settings.request_llm_url, model=settings.request_llm_model, key=settings.request_llm_key)
