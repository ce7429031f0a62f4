"""The registry around model versions: aliases, search, gates with their evidence; datasets, lineage, erasures."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

# Spelt out here, not imported: a migration must not change when the code does.
_TEXT: Any = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
_JSON: Any = sa.Text()
_INTEGER: Any = sa.BigInteger()
_NUMBER: Any = sa.Double()
_BOOLEAN: Any = sa.Boolean(create_constraint=False)
_MOMENT: Any = sa.DateTime(timezone=True)
_KINDS: dict[str, Any] = {
    "text": _TEXT, "json": _JSON, "int": _INTEGER, "float": _NUMBER, "bool": _BOOLEAN, "time": _MOMENT
}  # fmt: skip
_BATCH = 500


def upgrade() -> None:
    _registry()
    _gates()
    _datasets()
    _fill()


def _table(name: str, columns: str, *constraints: Any) -> None:
    """`columns`: `name:kind` each, `?` at the end where it may be NULL."""
    made = []
    for word in columns.split():
        column, _, kind = word.partition(":")
        made.append(sa.Column(column, _KINDS[kind.rstrip("?")], nullable=kind.endswith("?")))
    op.create_table(name, *made, *constraints, sa.PrimaryKeyConstraint("id", name=f"pk_{name}"))


def _index(table: str, *columns: str) -> None:
    op.create_index(f"ix_{table}_{'_'.join(columns)}", table, list(columns))


def _registry() -> None:
    _table(
        "model_aliases",
        "id:text name:text alias:text number:int project:text moved_by:text moved_at:time reason:text version:int",
    )
    _index("model_aliases", "name")
    _table(
        "alias_moves",
        "id:text alias_id:text project:text sequence:int kind:text from_number:int? to_number:int? by:text at:time "
        "reason:text check_id:text version:int",
        sa.UniqueConstraint("alias_id", "sequence", name="uq_alias_moves_alias_id_sequence"),
    )
    _table(
        "registry_entries",
        "id:text name:text number:int project:text owner:text license:text run_id:text size_bytes:int created_at:time "
        "archived:bool archived_by:text archived_at:time? archived_reason:text version:int",
        sa.ForeignKeyConstraint(["id"], ["model_versions.id"], name="fk_registry_entries_id"),
    )
    _index("registry_entries", "archived", "created_at")
    _index("registry_entries", "project", "archived", "created_at")
    _index("registry_entries", "license", "archived", "created_at")
    _index("registry_entries", "name", "number")
    _table("version_labels", "id:text version_id:text kind:text name:text text:text value:float? version:int")
    _index("version_labels", "kind", "name", "value")
    _index("version_labels", "kind", "name", "text")
    _index("version_labels", "version_id", "kind", "name", "value")


def _gates() -> None:
    _table(
        "gates",
        "id:text name:text project:text model:text aliases:json requirements:json created_by:text created_at:time "
        "version:int",
    )
    _index("gates", "project")
    _table(
        "gate_evidence",
        "id:text version_id:text project:text kind:text name:text source:text by:text at:time values:json "
        "successes:int? trials:int? cost_microusd_per_1000:int? facts:json version:int",
    )
    _index("gate_evidence", "version_id", "at")
    _table(
        "gate_approvals",
        "id:text version_id:text alias:text project:text certificate_sha256:text by:text role:text at:time "
        "comment:text version:int",
    )
    _index("gate_approvals", "version_id", "alias")
    _table(
        "gate_waivers",
        "id:text gate_id:text requirement:text version_id:text project:text owner:text reason:text expires_at:time "
        "created_by:text created_at:time version:int",
    )
    _index("gate_waivers", "project", "expires_at")
    _table(
        "gate_checks",
        "id:text version_id:text alias:text project:text baseline:text gates:json verdicts:json passed:bool by:text "
        "at:time version:int",
    )
    _index("gate_checks", "version_id", "at")
    _index("gate_checks", "project", "at")


def _datasets() -> None:
    _table(
        "dataset_versions",
        "id:text name:text number:int project:text owner:text license:text classification:text description:text "
        "digest:text how:text files:json size_bytes:int pointer:text location:text profile:json as_of:time "
        "fresh_for_s:int? retain_until:time? created_by:text created_at:time kept:bool erased_at:time? erasure_id:text "
        "version:int",
        sa.UniqueConstraint("name", "number", name="uq_dataset_versions_name_number"),
        sa.CheckConstraint("size_bytes >= 0", name=op.f("ck_dataset_versions_size_bytes")),
    )
    _index("dataset_versions", "project", "created_at")
    _index("dataset_versions", "digest")
    _index("dataset_versions", "kept")
    _table("lineage_edges", "id:text parent:text child:text project:text at:time version:int")
    _index("lineage_edges", "parent")
    _index("lineage_edges", "child")
    _table(
        "erasures",
        "id:text dataset_id:text project:text records:text reason:text requested_by:text at:time runs:json "
        "models:json done:json left:json statement:text key_id:text version:int",
    )
    _index("erasures", "dataset_id", "at")


def _fill() -> None:
    """Versions of before get their entry and labels, so that a search finds them."""
    op.execute(
        "INSERT INTO registry_entries (id, name, number, project, owner, license, run_id, size_bytes, created_at, "
        "archived, archived_by, archived_reason, version) SELECT id, name, number, project, owner, license, run_id, "
        "size_bytes, created_at, false, '', '', 0 FROM model_versions"
    )
    labels = sa.table(
        "version_labels",
        *(sa.column(name) for name in ("id", "version_id", "kind", "name", "text", "value", "version")),
    )
    bind = op.get_bind()
    found = bind.execute(sa.text("SELECT id, metrics FROM model_versions")).fetchall()
    rows = [
        {
            "id": f"{version_id}#metric/{name}",
            "version_id": version_id,
            "kind": "metric",
            "name": name,
            "text": "",
            "value": value,
            "version": 0,
        }
        for version_id, metrics in found
        for name, value in json.loads(metrics).items()
    ]
    for start in range(0, len(rows), _BATCH):
        bind.execute(labels.insert(), rows[start : start + _BATCH])
