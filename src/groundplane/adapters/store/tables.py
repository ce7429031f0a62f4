"""Row kinds as tables: columns derived from the frozen dataclasses, constraints and indexes declared beside them.

Scalar fields become typed columns, everything nested becomes JSON text. What a table forbids (negative money, a
second pending hold of one subject) the in-memory store forbids from the same declaration.
"""

from __future__ import annotations

import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from enum import StrEnum
from functools import cache

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from groundplane.audit import Event
from groundplane.domain.access import Exposure, Key, Project
from groundplane.domain.approval import Approval
from groundplane.domain.artifact import Arrival, Artifact, StorageQuota
from groundplane.domain.batch import Batch
from groundplane.domain.budget import Budget, Hold, HoldStatus
from groundplane.domain.checkpoints import ResumeProof
from groundplane.domain.dataset import DatasetVersion, Erasure, LineageEdge
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.evaluation import Evaluation
from groundplane.domain.gate import Evidence, Gate, GateApproval, GateCheck, Waiver
from groundplane.domain.intake.request import Request
from groundplane.domain.ledger import LedgerEntry, UsageRecord
from groundplane.domain.lineage import LineageCursor, OutsideEdge, OutsideEvent
from groundplane.domain.model import ModelVersion
from groundplane.domain.node import Cordon
from groundplane.domain.oci_push import PushedManifest, PushedTag
from groundplane.domain.planning.plan import Plan
from groundplane.domain.policy.exceptions import PolicyException
from groundplane.domain.preflight import PreflightReport
from groundplane.domain.provenance.addendum import Addendum
from groundplane.domain.provenance.circumstances import AttemptCircumstances
from groundplane.domain.provenance.required_facts import RequiredFacts
from groundplane.domain.queue import ProjectQuota, QueueEntry, QueueState, Reservation, Schedule
from groundplane.domain.registry import AliasMove, ModelAlias, RegistryEntry, VersionLabel
from groundplane.domain.run import Attempt, Checkpoint, Run
from groundplane.domain.serving.limits import LimitRule
from groundplane.domain.serving.prediction import PredictionRule
from groundplane.domain.serving.provider import Provider, RouteRule
from groundplane.domain.tracking.records import (
    Experiment,
    LoggedFile,
    LoggedModel,
    MetricPart,
    ModelName,
    RunMetrics,
    TrackedRun,
    VersionOrigin,
)
from groundplane.errors import InvalidInput

SCHEMA_REVISION = "0024"
"""The newest migration; a database at another revision is upgraded on open, or refused when it is newer."""

_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one row kind is stored. `pending_unique` columns are unique among rows whose status is `pending`.

    An append-only kind can be inserted and read, never changed or deleted.
    """

    row: type
    table: str
    unique: tuple[tuple[str, ...], ...] = ()
    indexes: tuple[tuple[str, ...], ...] = ()
    not_negative: tuple[str, ...] = ()
    references: Mapping[str, type] = field(default_factory=dict)
    pending_unique: tuple[str, ...] = ()
    append_only: bool = False


KINDS: dict[type, Kind] = {
    kind.row: kind
    for kind in (
        Kind(row=Project, table="projects", not_negative=("monthly_limit_microusd",)),
        Kind(row=Key, table="keys", unique=(("secret_sha256",),), indexes=(("project",), ("old_secret_sha256",))),
        Kind(row=LimitRule, table="gateway_limits", indexes=(("project",),), not_negative=("value",)),
        Kind(row=Provider, table="providers", indexes=(("project",),)),
        Kind(row=RouteRule, table="routes", indexes=(("project",),)),
        Kind(row=PredictionRule, table="prediction_rules", indexes=(("project",),)),
        Kind(row=Exposure, table="exposures"),
        Kind(
            row=Budget,
            table="budgets",
            unique=(("project", "period"),),
            not_negative=("limit_microusd", "held_microusd", "posted_microusd"),
        ),
        Kind(
            row=Hold,
            table="holds",
            indexes=(("budget_id",), ("project", "status")),
            not_negative=("amount_microusd", "posted_microusd"),
            references={"budget_id": Budget},
            pending_unique=("subject",),
        ),
        Kind(
            row=LedgerEntry,
            table="ledger_entries",
            indexes=(("occurred_at",), ("project", "occurred_at"), ("run_id",), ("hold_id",)),
            not_negative=("quantity", "amount_microusd"),
            append_only=True,
        ),
        Kind(
            row=UsageRecord,
            table="usage_records",
            indexes=(("started_at",), ("project", "started_at")),
            not_negative=("prompt_tokens", "completion_tokens", "cached_tokens", "amount_microusd"),
            append_only=True,
        ),
        Kind(
            row=Plan,
            table="plans",
            indexes=(("project", "created_at"),),
            not_negative=("worst_case_microusd",),
        ),
        Kind(
            row=Approval,
            table="approvals",
            indexes=(("due_at",), ("project", "requested_at"), ("status", "requested_at")),
            not_negative=("worst_case_microusd", "waited_s"),
            references={"id": Plan},
        ),
        Kind(row=PolicyException, table="policy_exceptions", indexes=(("project", "expires_at"),)),
        Kind(
            row=Run,
            table="runs",
            indexes=(("due_at",), ("project", "created_at"), ("status", "created_at"), ("dev", "status")),
            not_negative=("price_microusd_per_hour",),
        ),
        Kind(
            row=Attempt,
            table="attempts",
            unique=(("run_id", "number"),),
            indexes=(("idle_since",),),
            references={"run_id": Run},
        ),
        Kind(
            row=Checkpoint,
            table="checkpoints",
            unique=(("run_id", "step"),),
            indexes=(("copy",),),
            not_negative=("size_bytes",),
            references={"run_id": Run},
        ),
        Kind(row=ResumeProof, table="resume_proofs", indexes=(("status",),)),
        Kind(row=Endpoint, table="endpoints", indexes=(("due_at",), ("project", "created_at"))),
        Kind(
            row=ModelVersion,
            table="model_versions",
            unique=(("name", "number"),),
            indexes=(("project", "created_at"), ("name", "certificate_sha256")),
            not_negative=("size_bytes",),
        ),
        Kind(
            row=Addendum,
            table="certificate_addenda",
            unique=(("version_id", "sequence"),),
            indexes=(("project", "at"),),
            references={"version_id": ModelVersion},
            append_only=True,
        ),
        Kind(
            row=AttemptCircumstances,
            table="attempt_circumstances",
            indexes=(("run_id",),),
            references={"id": Attempt},
        ),
        Kind(row=RequiredFacts, table="required_facts", references={"id": Project}),
        Kind(row=ModelAlias, table="model_aliases", indexes=(("name",),)),
        Kind(row=AliasMove, table="alias_moves", unique=(("alias_id", "sequence"),), append_only=True),
        Kind(
            row=RegistryEntry,
            table="registry_entries",
            indexes=(
                ("archived", "created_at"),
                ("project", "archived", "created_at"),
                ("license", "archived", "created_at"),
                ("name", "number"),
            ),
            references={"id": ModelVersion},
        ),
        Kind(
            row=VersionLabel,
            table="version_labels",
            indexes=(("kind", "name", "value"), ("kind", "name", "text"), ("version_id", "kind", "name", "value")),
        ),
        Kind(row=Gate, table="gates", indexes=(("project",),)),
        Kind(row=Evidence, table="gate_evidence", indexes=(("version_id", "at"),), append_only=True),
        Kind(row=GateApproval, table="gate_approvals", indexes=(("version_id", "alias"),)),
        Kind(row=Waiver, table="gate_waivers", indexes=(("project", "expires_at"),)),
        Kind(row=GateCheck, table="gate_checks", indexes=(("version_id", "at"), ("project", "at")), append_only=True),
        Kind(
            row=DatasetVersion,
            table="dataset_versions",
            unique=(("name", "number"),),
            indexes=(("project", "created_at"), ("digest",), ("kept",), ("name", "commit")),
            not_negative=("size_bytes",),
        ),
        Kind(row=LineageEdge, table="lineage_edges", indexes=(("parent",), ("child",))),
        Kind(row=LineageCursor, table="lineage_cursors"),
        Kind(row=OutsideEvent, table="outside_events", indexes=(("project", "at"),)),
        Kind(row=OutsideEdge, table="outside_edges", indexes=(("parent",), ("child",))),
        Kind(
            row=PushedManifest,
            table="pushed_manifests",
            indexes=(("name",), ("project",)),
            not_negative=("size_bytes",),
        ),
        Kind(row=PushedTag, table="pushed_tags", indexes=(("name",),)),
        Kind(row=Erasure, table="erasures", indexes=(("dataset_id", "at"),), append_only=True),
        Kind(row=Experiment, table="experiments", unique=(("project", "name"),)),
        Kind(
            row=TrackedRun,
            table="tracked_runs",
            indexes=(("experiment_id", "started_ms"), ("job",)),
            references={"experiment_id": Experiment},
        ),
        Kind(row=RunMetrics, table="run_metrics", references={"id": TrackedRun}),
        Kind(row=MetricPart, table="metric_parts", indexes=(("run_id", "key"),), append_only=True),
        Kind(
            row=LoggedModel,
            table="logged_models",
            indexes=(("experiment_id", "created_at"), ("run_id",)),
            references={"experiment_id": Experiment},
        ),
        Kind(
            row=LoggedFile,
            table="logged_files",
            indexes=(("root",), ("project",)),
            not_negative=("size_bytes",),
        ),
        Kind(row=ModelName, table="model_names", indexes=(("project",),)),
        Kind(row=VersionOrigin, table="version_origins", indexes=(("name",), ("run_id",))),
        Kind(row=Cordon, table="cordons"),
        Kind(row=PreflightReport, table="preflight_reports", indexes=(("subject", "at"),)),
        Kind(
            row=Request,
            table="requests",
            indexes=(("project", "created_at"), ("status", "created_at")),
        ),
        Kind(
            row=Artifact,
            table="artifacts",
            indexes=(("project", "created_at"), ("name", "created_at")),
            not_negative=("size_bytes",),
        ),
        Kind(row=Arrival, table="arrivals", indexes=(("name",),), not_negative=("size_bytes",)),
        Kind(row=StorageQuota, table="storage_quotas", not_negative=("limit_bytes",)),
        Kind(row=QueueEntry, table="queue_entries", indexes=(("pool", "stage"),), references={"id": Run}),
        Kind(
            row=ProjectQuota,
            table="project_quotas",
            not_negative=("accelerators", "cpus_milli", "memory_bytes", "runs"),
            references={"id": Project},
        ),
        Kind(
            row=Reservation,
            table="reservations",
            indexes=(("pool", "ends_at"),),
            references={"project": Project},
        ),
        Kind(row=QueueState, table="queue_state"),
        Kind(row=Schedule, table="schedules", indexes=(("due_at",),), references={"project": Project}),
        Kind(
            row=Evaluation,
            table="evaluations",
            indexes=(("project", "name", "at"), ("model_version",)),
            not_negative=("cost_microusd",),
            append_only=True,
        ),
        Kind(
            row=Batch,
            table="batches",
            indexes=(("project", "at"),),
            not_negative=("cost_microusd",),
            append_only=True,
        ),
        Kind(
            row=Event,
            table="events",
            indexes=(("object_kind", "object_id"), ("project",)),
            append_only=True,
        ),
    )
}


class UtcDateTime(TypeDecorator[datetime]):
    """Timezone-aware UTC: `timestamptz` on PostgreSQL, sortable UTC text on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; rows hold UTC")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class EnumText(TypeDecorator[StrEnum]):
    """A StrEnum as its text, so that the database can be read without our code."""

    impl = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
    cache_ok = True

    def __init__(self, enum: type[StrEnum]) -> None:
        super().__init__()
        self.enum = enum

    def process_bind_param(self, value: StrEnum | str | None, dialect: Dialect) -> str | None:
        return None if value is None else self.enum(value).value

    def process_result_value(self, value: str | None, dialect: Dialect) -> StrEnum | None:
        return None if value is None else self.enum(value)


class JsonText(TypeDecorator[object]):
    """A nested value as JSON text.

    Text, not jsonb: jsonb turns 1e5 into an integer and refuses NaN, and both would come back as another value
    than was sealed into the audit chain.
    """

    impl = sa.Text
    cache_ok = True

    def __init__(self, hint: object) -> None:
        super().__init__()
        self.hint = hint
        self._decoder: msgspec.json.Decoder[object] = msgspec.json.Decoder(hint)

    def process_bind_param(self, value: object, dialect: Dialect) -> str | None:
        if value is None:
            return None
        return json.dumps(msgspec.to_builtins(value), separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: Dialect) -> object:
        if value is None:
            return None
        try:
            return self._decoder.decode(value)
        except msgspec.DecodeError:
            # Python writes numbers that JSON has not: NaN, infinities, integers beyond 64 bits.
            return msgspec.convert(json.loads(value), self.hint)


# The "C" collation orders by code point, as Python and SQLite do; the database's own locale must not matter.
_TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_SCALARS: dict[type, TypeEngine[typing.Any]] = {
    str: _TEXT,
    bool: sa.Boolean(create_constraint=False),
    int: sa.BigInteger(),
    float: sa.Double(),
    datetime: UtcDateTime(),
    date: sa.Date(),
}


@cache
def hints(kind: type) -> dict[str, tuple[object, bool]]:
    """Field name → (its type without None, whether None is allowed)."""
    resolved = typing.get_type_hints(kind)
    return {item.name: _without_none(resolved[item.name]) for item in fields(kind)}


def _without_none(hint: object) -> tuple[object, bool]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner = tuple(part for part in typing.get_args(hint) if part is not type(None))
        if len(inner) == 1:
            return inner[0], True
    return hint, False


def is_scalar(hint: object) -> bool:
    """Whether a field of this type is a column of its own, and so can be asked for in `where` and `order`."""
    return isinstance(hint, type) and (hint in _SCALARS or issubclass(hint, StrEnum))


def _column_type(hint: object) -> TypeEngine[typing.Any]:
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return EnumText(hint)
    if is_scalar(hint):
        return _SCALARS[typing.cast(type, hint)]
    return JsonText(hint)


METADATA = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


INDEXES: list[sa.Index] = []
"""In the order of their declaration, in which they are made: of two that serve a question as well, SQLite takes the
newest. A table's own set of them has no order."""


def _table(kind: Kind) -> sa.Table:
    columns: list[sa.Column[typing.Any]] = []
    for name, (hint, optional) in hints(kind.row).items():
        target = kind.references.get(name)
        reference = (sa.ForeignKey(f"{KINDS[target].table}.id"),) if target else ()
        is_id = name == "id"
        columns.append(
            sa.Column(
                name,
                _column_type(hint),
                *reference,
                primary_key=is_id,
                nullable=optional and not is_id,
                autoincrement=False,
            )
        )
    constraints: list[sa.UniqueConstraint | sa.CheckConstraint] = [sa.UniqueConstraint(*names) for names in kind.unique]
    constraints += [sa.CheckConstraint(f"{name} >= 0", name=name) for name in kind.not_negative]
    table = sa.Table(kind.table, METADATA, *columns, *constraints)
    for names in kind.indexes:
        INDEXES.append(sa.Index(f"ix_{kind.table}_{'_'.join(names)}", *(table.c[name] for name in names)))
    for name in kind.pending_unique:
        pending = sa.text("status = 'pending'")
        INDEXES.append(
            sa.Index(
                f"ix_{kind.table}_{name}_pending",
                table.c[name],
                unique=True,
                sqlite_where=pending,
                postgresql_where=pending,
            )
        )
    return table


TABLES: dict[type, sa.Table] = {row: _table(kind) for row, kind in KINDS.items()}

CHAIN_HEAD = sa.Table(
    "chain_head",
    METADATA,
    # One row, id 1: whoever appends an event locks it, so the chain never forks.
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("event_id", sa.BigInteger, nullable=False),
    sa.Column("event_hash", _TEXT, nullable=False),
    sa.CheckConstraint("id = 1", name="one_row"),
)


def scalar_column(kind: type, name: str) -> object:
    """The type of a column that can be compared. ValueError for a name the kind lacks, or a nested field."""
    known = hints(kind)
    if name not in known:
        raise ValueError(f"{kind.__name__} has no column {name!r}")
    if not is_scalar(known[name][0]):
        raise ValueError(f"{kind.__name__}.{name} is nested and can't be compared")
    return known[name][0]


def check_row(row: object) -> None:
    """What every store demands of a row before it is written.

    ValueError for a defect of ours (negative money, a time without a zone), InvalidInput for text or numbers from
    outside that no database can hold.
    """
    kind = KINDS[type(row)]
    for name, (hint, _) in hints(kind.row).items():
        value = getattr(row, name)
        where = f"{kind.table}.{name}"
        if isinstance(value, str):
            _check_text(value, where)
        elif isinstance(value, datetime):
            if value.tzinfo is None:
                raise ValueError(f"{where}: {value!r} has no time zone; rows hold UTC")
        elif isinstance(value, int) and value not in _INT64:
            raise InvalidInput(f"{where}: {value} is beyond 64 bits")
        elif isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput(f"{where}: {value} is no finite number")
        elif value is not None and is_scalar(hint) and not isinstance(value, (int, float, date)):
            raise ValueError(f"{where}: {value!r} is no {hint}")
    for name in kind.not_negative:
        value = getattr(row, name)
        if value is not None and value < 0:
            raise ValueError(f"{kind.table}.{name} must not be negative, got {value}")


def _check_text(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidInput(f"{where}: not valid Unicode text", "send it as UTF-8") from None
    if "\0" in value:
        raise InvalidInput(f"{where}: text must not hold a NUL character", "remove the character U+0000")


PENDING = HoldStatus.PENDING
