"""What crosses the HTTP door besides the domain's own records: requests, envelopes and views.

The API reads and writes these shapes, the client reads and writes the same ones; neither knows the other.
Requests refuse fields they don't know, so a misspelt one is an error and not a silence.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from groundplane.audit import ChainBreak
from groundplane.domain.access import Key
from groundplane.domain.approval import Approval
from groundplane.domain.budget import Budget
from groundplane.domain.catalogue_changes import CatalogueChange
from groundplane.domain.certificate import Facts
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.intake import QuotaFact
from groundplane.domain.intake.request import Missing, NextStep, SpecDraft
from groundplane.domain.ledger import CostRow
from groundplane.domain.planning import Plan
from groundplane.domain.price_lists import ListPrice
from groundplane.domain.run import Attempt, Checkpoint, Run
from groundplane.errors import Problem, Refused
from groundplane.identity import Permission, Role

STRICT: dict[str, Any] = {"extra": "forbid"}
TEXT_MAX = 1_000
MONEY_MAX_MICROUSD = 10**15
RATE_MAX = 10**9


# ---------------------------------------------------------------- errors


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo:
    """One error for people and programs. `code` is stable; `problems` and `refusals` say every reason."""

    code: str
    message: str
    hint: str = ""
    problems: tuple[Problem, ...] = ()
    refusals: tuple[Refused, ...] = ()
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBody:
    error: ErrorInfo


# ---------------------------------------------------------------- system


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`status` is ok, or says which part does not answer."""

    status: str
    version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whoami:
    name: str
    role: Role
    project: str | None
    key_id: str
    permissions: tuple[Permission, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The installation in one look. Counts and money cover the projects that the caller sees."""

    version: str
    started_at: datetime
    now: datetime
    database: str
    home: str
    disk_free_bytes: int
    disk_total_bytes: int
    gateway_url: str
    projects: int
    runs_active: dict[str, int]
    endpoints: dict[str, int]
    model_versions: int
    holds_pending: int
    held_microusd: int
    policy: str = ""


# ---------------------------------------------------------------- plans and runs


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecRequest:
    """YAML of one or more documents; relative paths are refused or taken as the spec's rules say."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    spec: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightRequest:
    """YAML of jobs whose pools' nodes are checked; `node` names one, empty means every node."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    spec: str
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlansBody:
    plans: tuple[Plan, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What one plan became: a run or an endpoint."""

    run: Run | None = None
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedAll:
    plans: tuple[Plan, ...]
    runs: tuple[Run, ...]
    endpoints: tuple[Endpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetail:
    run: Run
    attempts: tuple[Attempt, ...]
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunExplanation:
    """Why a run is where it is: one sentence, then the facts behind it."""

    sentence: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReasonRequest:
    """Why somebody does this: written to the audit trail."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    reason: str = ""

    def __post_init__(self) -> None:
        _check_text(reason=self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApproveRequest:
    """A yes. `hash` is that of the plan as it was seen, or its beginning; empty trusts the plan's id alone."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    comment: str = ""
    hash: str = ""

    def __post_init__(self) -> None:
        _check_text(comment=self.comment, hash=self.hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalView:
    """The question whether a plan may be applied, and the names of those who may still agree."""

    approval: Approval
    approvers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfServiceRequest:
    """What a project may begin without asking, all of it anew."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    accelerators_max: int
    plan_max_microusd: int
    month_max_microusd: int | None = None
    second_threshold_microusd: int | None = None
    second_approvals: int = 2
    reason: str = ""

    def __post_init__(self) -> None:
        _check_text(reason=self.reason)
        for name in ("plan_max_microusd", "month_max_microusd", "second_threshold_microusd"):
            _check_range(name, getattr(self, name), 0, MONEY_MAX_MICROUSD)
        _check_range("accelerators_max", self.accelerators_max, 0, RATE_MAX)
        _check_range("second_approvals", self.second_approvals, 1, RATE_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPiece:
    """A piece of one attempt's log. `complete` when this attempt writes no more."""

    data: bytes
    attempt: int
    next_offset: int
    complete: bool


# ---------------------------------------------------------------- models


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A landing place for files before they are registered; it is swept a day after its last use.

    `folder` is where it lies: who can write there is the control plane's own user and may name files instead of sending
    them, in `sources.json` (relative path → absolute path). `files` are those that arrived.
    """

    id: str
    folder: str = ""
    files: tuple[UploadedFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadedFile:
    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterRequest:
    """What an upload becomes, and who and what it comes from; the registry names the facts that are missing."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    upload_id: str
    project: str
    facts: Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelCheck:
    """Whether a version is still what was signed; `problems` names each file or record that is not."""

    ref: str
    ok: bool
    checked_files: int
    checked_bytes: int
    key_id: str
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A birth certificate: the signed DSSE envelope, the in-toto statement inside it, who signed, and its digest."""

    envelope: dict[str, Any]
    statement: dict[str, Any]
    key_id: str
    sha256: str


# ---------------------------------------------------------------- access


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectRequest:
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    name: str
    owner: str
    cost_center: str
    monthly_limit_microusd: int | None = None
    thresholds_percent: tuple[int, ...] = (50, 80, 100)
    reason: str = ""

    def __post_init__(self) -> None:
        _check_text(name=self.name, owner=self.owner, cost_center=self.cost_center, reason=self.reason)
        _check_money(self.monthly_limit_microusd, self.thresholds_percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRequest:
    """Empty `models` on a caller key allows every model of the project."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    name: str
    project: str
    owner: str
    role: Role
    models: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    expires_at: datetime | None = None

    def __post_init__(self) -> None:
        _check_text(name=self.name, project=self.project, owner=self.owner)
        for model in self.models:
            _check_text(models=model)
        for network in self.networks:
            _check_text(networks=network)
        _check_zone("expires_at", self.expires_at)
        _check_range("requests_per_minute", self.requests_per_minute, 1, RATE_MAX)
        _check_range("tokens_per_minute", self.tokens_per_minute, 1, RATE_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewKey:
    """A key with its secret. The secret is shown this once; only its SHA-256 is kept."""

    key: Key
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposureRequest:
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    address: str
    owner: str
    reason: str
    expires_at: datetime

    def __post_init__(self) -> None:
        _check_text(address=self.address, owner=self.owner, reason=self.reason)
        _check_zone("expires_at", self.expires_at)


# ---------------------------------------------------------------- policy


@dataclass(frozen=True, slots=True, kw_only=True)
class ExceptionRequest:
    """Which rule is lifted for which project, or one name in it; by whom, why and until when."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    rule: str
    project: str
    owner: str
    reason: str
    expires_at: datetime
    name: str = ""

    def __post_init__(self) -> None:
        _check_text(rule=self.rule, project=self.project, name=self.name, owner=self.owner, reason=self.reason)
        _check_zone("expires_at", self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """Proposed policy files by name, over those in force, and how far back to look."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    files: dict[str, str]
    since: datetime

    def __post_init__(self) -> None:
        _check_text(**{f"files.{number}": name for number, name in enumerate(self.files)})
        _check_zone("since", self.since)


# ---------------------------------------------------------------- money


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRequest:
    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    monthly_limit_microusd: int | None
    thresholds_percent: tuple[int, ...] = (50, 80, 100)
    reason: str = ""

    def __post_init__(self) -> None:
        _check_text(reason=self.reason)
        _check_money(self.monthly_limit_microusd, self.thresholds_percent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The Monday report: what the period cost, for whom, what is still running, and what is reserved."""

    since: datetime
    until: datetime
    total_microusd: int
    by_project: tuple[CostRow, ...]
    by_model: tuple[CostRow, ...]
    by_run: tuple[CostRow, ...]
    by_owner: tuple[CostRow, ...]
    budgets: tuple[Budget, ...]
    runs_active: tuple[Run, ...]
    endpoints_active: tuple[Endpoint, ...]
    held_microusd: int


# ---------------------------------------------------------------- sizing


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRequest:
    """What to size. One of `model` (a catalogue name), `config` (a config.json's content) and `params` (7B).

    `gpus` is an accelerator, with a count where it is given: a100-80gb, 8xh100. `fabric` is a link of the catalogue.
    Words are those of the sizing sums: precision bf16, method lora, optimizer adam-8bit.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    model: str = ""
    config: dict[str, Any] | None = None
    params: str = ""
    purpose: str = "train"
    gpus: str = ""
    node_gpus: int = 8
    fabric: str = "ib-ndr"
    precision: str = "bf16"
    batch: int = 1
    method: str = "full"
    optimizer: str = "adam"
    sequence: int = 2_048
    checkpointing: bool = False
    master_weights: bool = False
    lora_rank: int = 16
    lora_targets: tuple[str, ...] = ("q", "v")
    zero: int = 0
    shards: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    dataset_tokens: int = 0
    epochs: float = 1.0
    context: int = 4_096
    cache_precision: str = "bf16"
    headroom: float = 0.2
    prompt_tokens: int = 0

    def __post_init__(self) -> None:
        _check_text(model=self.model, params=self.params, gpus=self.gpus)
        for name in ("batch", "sequence", "context", "dataset_tokens", "shards", "lora_rank"):
            _check_range(name, getattr(self, name), 0, MONEY_MAX_MICROUSD)
        for name in ("tensor_parallel", "pipeline_parallel", "node_gpus"):
            _check_range(name, getattr(self, name), 0, 4_096)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareRequest:
    """A workload and what to hold side by side: hosted models in `apis`, an open `model` on cards of one's own."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    requests_per_minute: float
    prompt_tokens: int
    completion_tokens: int
    peak_factor: float = 1.0
    peak_share: float = 0.1
    hours_per_day: float = 24.0
    cached_share: float = 0.0
    always_on: bool = False
    apis: tuple[str, ...] = ()
    model: str = ""
    precision: str = "bf16"
    gpus: str = ""
    cloud: str = ""
    deployment: str = "global"

    def __post_init__(self) -> None:
        _check_text(model=self.model, gpus=self.gpus, cloud=self.cloud)
        for api in self.apis:
            _check_text(apis=api)


# ---------------------------------------------------------------- audit


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditVerdict:
    """Whether the trail is whole: how many events were checked, and where it breaks if it does."""

    events: int
    broken: ChainBreak | None = None


# ---------------------------------------------------------------- catalogue


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogDocument:
    """An operator's file of rows: its name, for what is said about it, and its YAML."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRequest:
    """Rows and prices to merge. `regions` takes in prices of regions the catalogue has not yet. `replace`: the
    operator's table becomes what the file says. `expect` is the digest of the update that was shown; empty only shows.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    documents: tuple[CatalogDocument, ...] = ()
    prices: tuple[ListPrice, ...] = ()
    regions: tuple[str, ...] = ()
    replace: bool = False
    expect: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        _check_text(reason=self.reason, **{f"documents.{n}.name": d.name for n, d in enumerate(self.documents)})


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogUpdate:
    """What an update would change, or did when `applied`. `digest` names exactly this update."""

    changes: tuple[CatalogueChange, ...]
    notes: tuple[str, ...]
    summary: str
    digest: str
    applied: bool


# ---------------------------------------------------------------- requests


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageRequest:
    """A pasted message, at most 64 KiB. `quotas` are limits that whoever pastes it knows of."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    message: str
    project: str | None = None
    quotas: tuple[QuotaFact, ...] = ()

    def __post_init__(self) -> None:
        _check_text(project=self.project or "")
        if len(self.quotas) > 100:
            raise ValueError(f"quotas has {len(self.quotas)} entries; 100 is the most")
        for quota in self.quotas:
            _check_text(cloud=quota.cloud, region=quota.region, family=quota.family, source=quota.source)
            for name in ("limit", "used", "lead_time_low_h", "lead_time_high_h"):
                _check_range(name, getattr(quota, name), 0, RATE_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswersRequest:
    """Fact → answer. `owner` answers for every item, `2.model` for item 2; empty takes an earlier answer back."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    answers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecsBody:
    """What a request comes to. `yaml` is every document in one text, for `ground plan -f -`."""

    documents: tuple[SpecDraft, ...]
    missing: tuple[Missing, ...]
    steps: tuple[NextStep, ...]
    yaml: str


# ---------------------------------------------------------------- bounds


def _check_text(**values: str) -> None:
    """ValueError for text that no database or terminal should meet: too long, or with control characters."""
    for name, value in values.items():
        if len(value) > TEXT_MAX:
            raise ValueError(f"{name} has {len(value)} characters; {TEXT_MAX} is the most")
        if any(unicodedata.category(character) in {"Cc", "Cs"} for character in value):
            raise ValueError(f"{name} holds a control character")


def _check_zone(name: str, moment: datetime | None) -> None:
    if moment is not None and moment.utcoffset() is None:
        raise ValueError(f"{name} has no time zone; write 2026-12-01T18:00:00Z")


def _check_money(limit_microusd: int | None, thresholds_percent: tuple[int, ...]) -> None:
    _check_range("monthly_limit_microusd", limit_microusd, 0, MONEY_MAX_MICROUSD)
    if len(thresholds_percent) > 20:
        raise ValueError(f"thresholds_percent has {len(thresholds_percent)} entries; 20 is the most")
    for percent in thresholds_percent:
        _check_range("thresholds_percent", percent, 1, 1_000)


def _check_range(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise ValueError(f"{name} must be between {low} and {high}, is {value}")
