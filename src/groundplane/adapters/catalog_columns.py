"""The catalogue's tables: which columns each has, what may stand in them, and what must hold for a whole row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from groundplane.units import parse_duration_s

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """One column. `read` turns the YAML value into ours or raises ValueError with what is wrong with it."""

    name: str
    read: Callable[[Any], Any]
    required: bool = False
    default: Any = None


def must(name: str, read: Callable[[Any], Any], default: Any = None) -> Column:
    """A column that every row has; `default` stands in while a faulty row is checked further."""
    return Column(name, read, required=True, default=default)


@dataclass(frozen=True, slots=True)
class Table:
    """One file. `key` columns together name a row; `check` looks at a whole row and says (column, what is wrong).

    `apart` are columns that tell rows of one name apart, such as the region of a price.
    """

    name: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    check: Callable[[Row], tuple[str, str] | None] | None = None
    apart: tuple[str, ...] = ()


# ---------------------------------------------------------------- readers


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not text")
    return value


def one_of(*options: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if value not in options:
            raise ValueError(f"{value!r} is not one of: {', '.join(options)}")
        return str(value)

    return read


def number(low: float, high: float) -> Callable[[Any], float]:
    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise ValueError(f"{value!r} is not a number from {low:g} to {high:g}")
        return value

    return read


def whole(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"{value!r} is not a whole number from {low} to {high}")
        return value

    return read


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError("must be a list of text")
    return tuple(value)


def day(value: Any) -> date:
    """A date; a price without one is worth nothing."""
    if isinstance(value, date):
        return value
    try:
        return date.fromisoformat(str(value))
    except ValueError:
        raise ValueError(f"{value!r} is not a date such as 2026-11-20") from None


def as_of(value: Any) -> str:
    """A date, a month, a year, or `undated` for a source that gives none."""
    shown = str(value)
    if not re.fullmatch(r"\d{4}(-\d\d(-\d\d)?)?|undated", shown):
        raise ValueError(f"{value!r} is not a date, a month, a year or undated")
    return shown


def numbers(*names: str) -> Callable[[Any], dict[str, float]]:
    def read(value: Any) -> dict[str, float]:
        if not isinstance(value, dict) or not set(value) <= set(names):
            raise ValueError(f"must map some of {', '.join(names)} to numbers")
        return {name: number(0, 10**9)(item) for name, item in value.items()}

    return read


def level(value: Any) -> float | str:
    """An alert's level: a number, or words where it is not one."""
    return text(value) if isinstance(value, str) else number(-(10**9), 10**9)(value)


def pattern(value: Any) -> str:
    try:
        re.compile(text(value))
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return str(value)


def anything(value: Any) -> Any:
    return value


def lasting(value: Any) -> int:
    """A duration, in seconds."""
    return parse_duration_s(value)


USD = number(0, 10**6)
COMMON = (
    must("sources", texts, ()),
    must("as_of", as_of, ""),
    Column("estimated", texts, default=()),
    Column("notes", text, default=""),
    Column("conflict", text, default=""),
)


# ---------------------------------------------------------------- tables


def _spot_below_list(row: Row) -> tuple[str, str] | None:
    listed, spot = row["usd_per_hour"], row["spot_usd_per_hour"]
    if listed is not None and listed <= 0:
        return "usd_per_hour", "is 0: leave it out when the price is not known"
    if listed is not None and spot is not None and spot > listed:
        return "spot_usd_per_hour", f"{spot} is above the list price {listed}"
    if listed is not None and not row["region"]:
        return "region", "is missing: a price belongs to a region"
    if row["status"] in ("retired", "retirement_announced") and row["retired_on"] is None:
        return "retired_on", f"is missing: the status is {row['status']}"
    return None


def _cache_adds_up(row: Row) -> tuple[str, str] | None:
    mla = row["mla"]
    per = mla["kv_lora_rank"] + mla["qk_rope_head_dim"] if mla else 2 * row["kv_heads"] * row["head_dim"]
    wanted = row["full_layers"] * int(per) * 2
    if wanted != row["kv_bytes_per_token_16bit"]:
        return "kv_bytes_per_token_16bit", f"is {row['kv_bytes_per_token_16bit']}, the shape gives {wanted}"
    if row["active_billion"] > row["params_billion"]:
        return "active_billion", f"{row['active_billion']} is above params_billion {row['params_billion']}"
    return None


def _prices_add_up(row: Row) -> tuple[str, str] | None:
    if row["cached"] is not None and row["cached"] > row["prompt"]:
        return "cached", f"{row['cached']} is above the prompt price {row['prompt']}"
    if row["long_context"] and not {"above_tokens", "prompt", "completion"} <= row["long_context"].keys():
        return "long_context", "needs above_tokens, prompt and completion"
    return None


def _term_whole(row: Row) -> tuple[str, str] | None:
    if row["kind"] == "reserved" and row["months"] is None:
        return "months", "is missing: a reservation has a term"
    return None


def _low_to_high(row: Row) -> tuple[str, str] | None:
    return ("high", f"{row['high']} is below low {row['low']}") if row["high"] < row["low"] else None


def _matches_its_example(row: Row) -> tuple[str, str] | None:
    if not re.search(row["regex"], row["example"]):
        return "regex", "does not match its own example"
    if re.search(row["regex"], "") or re.search(row["regex"], "INFO step 10 loss 2.31 lr 3e-4 tokens/s 41000"):
        return "regex", "matches an empty or a healthy line"
    return None


def _critical_beyond_warning(row: Row) -> tuple[str, str] | None:
    low, high = row["warning"], row["critical"]
    if low is None and high is None:
        return "warning", "is missing, and so is critical"
    if isinstance(low, str) or isinstance(high, str) or low is None or high is None:
        return None
    rising = row["operator"].startswith(">")
    return (
        ("critical", f"{high} is on the wrong side of warning {low}")
        if (high < low if rising else high > low)
        else None
    )


_MOE = ("experts", "active_experts", "shared_experts", "expert_intermediate", "dense_layers")
_MLA = ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "q_lora_rank")
_SIZE = whole(1, 10**9)

TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "accelerators",
            ("id",),
            (
                must("id", text),
                must("name", text),
                must("vendor", text),
                must("architecture", text),
                Column("form_factor", text),
                Column("compute_capability", anything),
                Column("aliases", texts, default=()),
                must("memory_gib", number(1, 1000), 1),
                Column("usable_mib", whole(1000, 10**6)),
                Column("memory_type", text),
                must("bandwidth_gb_per_s", number(10, 10**5), 0),
                Column("dense_tflops", numbers("fp16", "bf16", "fp8", "int8", "fp4"), default={}),
                Column("power_w", number(10, 5000)),
                Column("link", text, default="none"),
                Column("link_gb_per_s", number(0, 10**5), default=0),
                Column("pcie", text),
                Column("slices", anything, default=()),
                Column("partitions", whole(1, 64)),
            ),
        ),
        Table(
            "instance_types",
            ("cloud", "name"),
            (
                must("cloud", one_of("azure", "aws", "gcp")),
                must("name", text),
                Column("region", text, default=""),
                Column("cpus", number(0.1, 10_000)),
                Column("memory_gib", number(0.1, 10**6)),
                Column("disk_gib", number(0, 10**7)),
                Column("accelerators", number(0, 1024), default=0),
                Column("accelerator", text, default=""),
                Column("accelerator_name", text, default=""),
                Column("network_gbps", number(0, 10**5)),
                Column("rdma", text),
                Column("rdma_gbps", number(0, 10**5)),
                Column("usd_per_hour", USD),
                Column("spot_usd_per_hour", USD),
                must("price_as_of", day),
                Column("spot_as_of", as_of),
                Column("quota_family", text, default=""),
                Column(
                    "status",
                    one_of("current", "preview", "previous_generation", "retirement_announced", "retired"),
                    required=True,
                ),
                Column("retired_on", day),
                Column("retirement_announced", anything),
            ),
            _spot_below_list,
            apart=("region",),
        ),
        Table(
            "models",
            ("id",),
            (
                must("id", text),
                must("hf_id", text),
                Column("family", text),
                Column("license", text, default=""),
                must("params_billion", number(0.001, 10**5), 1),
                must("active_billion", number(0.001, 10**5), 1),
                Column("params_from", one_of("computed", "name")),
                *(
                    must(name, _SIZE, 1)
                    for name in (
                        "layers",
                        "hidden",
                        "heads",
                        "kv_heads",
                        "head_dim",
                        "intermediate",
                        "vocab",
                        "context",
                    )
                ),
                must("dtype", text),
                must("attention", one_of("mha", "gqa", "mqa", "mla", "hybrid-linear")),
                Column("tied_embeddings", flag, default=False),
                Column("gated", flag, default=True),
                must("full_layers", whole(0, 10_000), 1),
                Column("window", _SIZE, default=0),
                Column("window_layers", whole(0, 10_000), default=0),
                Column("moe", numbers(*_MOE)),
                Column("mla", numbers(*_MLA)),
                must("kv_bytes_per_token_16bit", whole(0, 10**9), 0),
            ),
            _cache_adds_up,
        ),
        Table(
            "token_prices",
            ("id",),
            (
                must("id", text),
                must("provider", text),
                must("mode", one_of("chat", "embedding")),
                must("prompt", USD, 0),
                must("completion", USD, 0),
                Column("cached", USD),
                Column("cache_write", USD),
                Column("cache_write_1h", USD),
                Column("batch_discount", number(0, 0.95), default=0),
                Column("context", whole(0, 10**9)),
                Column("max_output", whole(0, 10**9)),
                Column("long_context", numbers("above_tokens", "prompt", "completion", "cached")),
            ),
            _prices_add_up,
        ),
        Table(
            "provisioned_units",
            ("model",),
            (
                must("model", text),
                must("prompt_tpm_per_unit", number(1, 10**7)),
                Column("completion_weight", number(0, 100)),
                Column("latency_target", text),
                must("minimum", numbers("global", "data_zone", "regional")),
                must("step", numbers("global", "data_zone", "regional")),
            ),
        ),
        Table(
            "provisioned_prices",
            ("deployment",),
            (
                must("deployment", one_of("global", "data_zone", "regional")),
                must("usd_per_unit_hour", USD),
                Column("usd_per_unit_month", USD),
                Column("usd_per_unit_year", USD),
            ),
        ),
        Table(
            "efficiency",
            ("id",),
            (
                must("id", one_of("training-compute", "prefill-compute", "decode-bandwidth", "link")),
                must("low", number(0.01, 1), 0.01),
                must("high", number(0.01, 1), 1),
                must("meaning", text),
            ),
            _low_to_high,
        ),
        Table(
            "storage_tiers",
            ("id",),
            (
                must("id", text),
                must("cloud", text),
                must("name", text),
                must("kind", text),
                Column("mb_per_s", number(0, 10**7)),
                Column("mb_per_s_per_tib", number(0, 10**7)),
                Column("scope", text, default=""),
                Column("latency", text),
                Column("usd_per_gib_month", USD),
                Column("usd_per_gb_month", USD),
                Column("included", flag, default=False),
                Column("cost_note", text),
                must("shared", flag),
                must("durable", flag),
                Column("use", text, default=""),
                Column("min_gib", number(0, 10**9)),
                Column("max_gib", number(0, 10**9)),
                Column("step_gib", number(0, 10**9)),
            ),
        ),
        Table(
            "purchase_terms",
            ("id",),
            (
                must("id", text),
                must("cloud", one_of("azure", "aws", "gcp")),
                must("kind", one_of("spot", "reserved")),
                Column("months", whole(1, 120)),
                Column("discount", number(0, 0.95), default=0),
                Column("interruptions_per_day", number(0, 1000), default=0),
                Column("restart", lasting, default=0),
            ),
            _term_whole,
        ),
        Table(
            "network_links",
            ("id",),
            (
                must("id", text),
                must("name", text),
                Column("rate", number(0, 10**6)),
                Column("rates", numbers("zone", "region", "internet")),
                must("unit", text),
                Column("direction", text, default=""),
                Column("latency", text),
            ),
        ),
        Table(
            "xid",
            ("code",),
            (
                must("code", whole(0, 10_000)),
                must("mnemonic", text),
                must("name", text),
                must("status", one_of("active", "unused")),
                must("category", text),
                must("severity", one_of("info", "warning", "critical")),
                must("meaning", text),
                must(
                    "action",
                    one_of(
                        "ignore",
                        "restart_app",
                        "check_app",
                        "follow_related_xid",
                        "reset_gpu",
                        "reboot_node",
                        "restart_vm",
                        "drain_and_rma",
                        "check_hardware",
                        "update_software",
                        "contact_support",
                    ),
                ),
                must("retry", one_of("yes", "no", "conditional")),
                must("same_node", flag),
                must("other_node", flag),
                Column("verdicts", anything, default={}),
            ),
        ),
        Table(
            "dcgm_health",
            ("result",),
            (
                must("result", text),
                must("action", text),
            ),
        ),
        Table(
            "signatures",
            ("id",),
            (
                must("id", text),
                must("category", text),
                must("severity", one_of("info", "warning", "error", "critical")),
                must("regex", pattern),
                must("example", text),
                must("cause", text),
                must("checks", texts, ()),
                must("fixes", texts, ()),
                must("retry", one_of("yes", "no", "conditional")),
                must("other_node", flag),
                must("advice", text),
            ),
            _matches_its_example,
        ),
        Table(
            "thresholds",
            ("id",),
            (
                must("id", text),
                must("signal", text),
                must("metric", text),
                must("unit", text),
                must("operator", text),
                Column("warning", level),
                Column("warning_for", lasting, default=0),
                Column("critical", level),
                Column("critical_for", lasting, default=0),
                must("priority", one_of("P1", "P2", "P3")),
                must("scope", text),
                must("meaning", text),
                Column("expression", text),
                Column("variants", texts, default=()),
            ),
            _critical_beyond_warning,
        ),
        Table(
            "dcgm_fields",
            ("field",),
            (
                must("field", text),
                must("id", whole(0, 100_000)),
                Column("new_name", text),
                must("unit", text),
                must("meaning", text),
                must("exporter_default", flag),
                Column("type", text),
                Column("reading", text),
            ),
        ),
        Table(
            "server_metrics",
            ("name",),
            (
                must("name", text),
                must("unit", text),
                must("type", text),
                *(Column(name, text) for name in ("vllm", "vllm_legacy", "sglang", "tgi", "llamacpp")),
            ),
        ),
    )
}
