"""How a checked row of the catalogue becomes a value of the domain: units are scaled here and nowhere else."""

from __future__ import annotations

from decimal import Decimal

from groundplane.adapters.catalog_columns import Row
from groundplane.domain.catalogue.entries import (
    LongContextPrice,
    ProvisionedPrice,
    ProvisionedUnits,
    PurchaseTerm,
    Signature,
    StorageTier,
    Threshold,
    TokenListPrice,
    XidCode,
)
from groundplane.domain.hardware import Accelerator, InstanceType
from groundplane.domain.sizing.model_shape import Experts, LatentAttention, ModelShape
from groundplane.domain.sizing.parallelism import Link
from groundplane.domain.sizing.roofline import Efficiency
from groundplane.units import MICROUSD_PER_USD

GIB, MIB, GB, MB = 2**30, 2**20, 10**9, 10**6


def accelerator(row: Row) -> Accelerator:
    return Accelerator(
        id=row["id"],
        name=row["name"],
        vendor=row["vendor"],
        architecture=row["architecture"],
        memory_bytes=row["usable_mib"] * MIB if row["usable_mib"] else int(row["memory_gib"] * GIB),
        memory_nominal_gib=row["memory_gib"],
        bandwidth_bytes_per_s=int(row["bandwidth_gb_per_s"] * GB),
        dense_tflops=row["dense_tflops"],
        interconnect=row["link"],
        interconnect_bytes_per_s=int(row["link_gb_per_s"] * GB),
        power_w=int(row["power_w"] or 0),
        aliases=row["aliases"],
        as_of=row["as_of"],
        sources=row["sources"],
        estimated=bool(row["estimated"]),
    )


def instance_type(row: Row) -> InstanceType:
    return InstanceType(
        cloud=row["cloud"],
        name=row["name"],
        region=row["region"],
        accelerators=row["accelerators"],
        accelerator=row["accelerator"] or row["accelerator_name"],
        cpus=row["cpus"],
        memory_bytes=_scaled(row["memory_gib"], GIB),
        disk_bytes=_scaled(row["disk_gib"], GIB),
        network_gbps=row["network_gbps"],
        rdma_gbps=row["rdma_gbps"],
        price_microusd_per_hour=_micros(row["usd_per_hour"]),
        spot_microusd_per_hour=_micros(row["spot_usd_per_hour"]),
        price_as_of=row["price_as_of"],
        quota_family=row["quota_family"],
        status=row["status"],
        retirement_date=row["retired_on"],
        as_of=row["as_of"],
        sources=row["sources"],
        estimated=bool(row["estimated"]),
    )


def model(row: Row) -> ModelShape:
    moe, mla = row["moe"], row["mla"]
    experts = latent = None
    if moe:
        experts = Experts(
            count=int(moe["experts"]),
            active=int(moe["active_experts"]),
            intermediate=int(moe["expert_intermediate"]),
            shared=int(moe["shared_experts"]),
            dense_layers=int(moe["dense_layers"]),
        )
    if mla:
        latent = LatentAttention(
            kv_rank=int(mla["kv_lora_rank"]),
            rope_dim=int(mla["qk_rope_head_dim"]),
            nope_dim=int(mla["qk_nope_head_dim"]),
            value_dim=int(mla["v_head_dim"]),
            query_rank=int(mla["q_lora_rank"]),
        )
    same = ("id", "hf_id", "layers", "hidden", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "context",
            "dtype", "tied_embeddings", "gated", "full_layers", "window", "window_layers", "license", "as_of",
            "sources")  # fmt: skip
    return ModelShape(
        params=round(row["params_billion"] * GB),
        active_params=round(row["active_billion"] * GB),
        experts=experts,
        latent=latent,
        **{name: row[name] for name in same},
    )


def token_price(row: Row) -> TokenListPrice:
    longer = row["long_context"]
    return TokenListPrice(
        id=row["id"],
        provider=row["provider"],
        mode=row["mode"],
        prompt_microusd_per_million=_micros(row["prompt"]) or 0,
        completion_microusd_per_million=_micros(row["completion"]) or 0,
        cached_microusd_per_million=_micros(row["cached"]),
        batch_discount=row["batch_discount"],
        context=row["context"],
        as_of=row["as_of"],
        sources=row["sources"],
        estimated=bool(row["estimated"]),
        written_microusd_per_million=_micros(row["cache_write"]),
        written_1h_microusd_per_million=_micros(row["cache_write_1h"]),
        max_output=row["max_output"],
        long_context=None
        if not longer
        else LongContextPrice(
            above_tokens=int(longer["above_tokens"]),
            prompt_microusd_per_million=_micros(longer["prompt"]) or 0,
            completion_microusd_per_million=_micros(longer["completion"]) or 0,
        ),
    )


def provisioned_units(row: Row) -> ProvisionedUnits:
    return ProvisionedUnits(
        model=row["model"],
        prompt_tokens_per_minute=round(row["prompt_tpm_per_unit"]),
        completion_weight=row["completion_weight"],
        minimum={kind: int(count) for kind, count in row["minimum"].items()},
        step={kind: int(count) for kind, count in row["step"].items()},
        as_of=row["as_of"],
        sources=row["sources"],
        estimated=bool(row["estimated"]),
    )


def provisioned_price(row: Row) -> ProvisionedPrice:
    return ProvisionedPrice(
        deployment=row["deployment"],
        microusd_per_unit_hour=_micros(row["usd_per_unit_hour"]) or 0,
        microusd_per_unit_month=_micros(row["usd_per_unit_month"]),
        microusd_per_unit_year=_micros(row["usd_per_unit_year"]),
        as_of=row["as_of"],
        sources=row["sources"],
        estimated=bool(row["estimated"]),
    )


def efficiency(row: Row) -> Efficiency:
    same = ("id", "low", "high", "meaning", "as_of", "sources")
    return Efficiency(estimated=bool(row["estimated"]), **{name: row[name] for name in same})


def link(row: Row) -> Link | None:
    """A link with its rate in one direction; None for a row that is no link between cards."""
    scale = {"Gb/s": 10**9 / 8, "GB/s": GB}.get(row["unit"])
    if scale is None or not row["rate"]:
        return None
    one_way = row["rate"] * scale / (2 if row["direction"] == "both ways" else 1)
    return Link(id=row["id"], name=row["name"], bytes_per_s=round(one_way), as_of=row["as_of"], sources=row["sources"])


def purchase_term(row: Row) -> PurchaseTerm:
    same = ("id", "cloud", "kind", "discount", "interruptions_per_day", "as_of", "sources")
    return PurchaseTerm(
        hours=(row["months"] or 0) * 730,
        restart_s=row["restart"],
        estimated=bool(row["estimated"]),
        **{name: row[name] for name in same},
    )


def storage_tier(row: Row) -> StorageTier:
    per_gib = row["usd_per_gib_month"]
    if per_gib is None and row["usd_per_gb_month"] is not None:
        per_gib = row["usd_per_gb_month"] * GIB / GB
    return StorageTier(
        id=row["id"],
        cloud=row["cloud"],
        name=row["name"],
        kind=row["kind"],
        bytes_per_s=_scaled(row["mb_per_s"], MB),
        bytes_per_s_per_tib=_scaled(row["mb_per_s_per_tib"], MB),
        scope=row["scope"],
        microusd_per_gib_month=0 if row["included"] else _micros(per_gib),
        shared=row["shared"],
        durable=row["durable"],
        use=row["use"],
        as_of=row["as_of"],
        sources=row["sources"],
        estimated=bool(row["estimated"]),
    )


def xid(row: Row) -> XidCode:
    same = ("code", "mnemonic", "name", "category", "severity", "meaning", "action", "retry", "same_node", "other_node",
            "notes", "as_of", "sources")  # fmt: skip
    return XidCode(active=row["status"] == "active", **{name: row[name] for name in same})


def signature(row: Row) -> Signature:
    same = ("id", "category", "severity", "regex", "example", "cause", "checks", "fixes", "retry", "other_node",
            "advice", "as_of", "sources")  # fmt: skip
    return Signature(estimated=bool(row["estimated"]), **{name: row[name] for name in same})


def threshold(row: Row) -> Threshold:
    same = ("id", "signal", "metric", "unit", "operator", "warning", "critical", "priority", "scope", "meaning",
            "as_of", "sources")  # fmt: skip
    return Threshold(
        warning_for_s=row["warning_for"],
        critical_for_s=row["critical_for"],
        estimated=bool(row["estimated"]),
        **{name: row[name] for name in same},
    )


def _scaled(value: float | None, unit: int) -> int | None:
    return None if value is None else round(value * unit)


def _micros(usd: float | None) -> int | None:
    # Through its shortest decimal spelling, so that 0.1 is a hundred thousand micro-dollars and not one less.
    return None if usd is None else round(Decimal(repr(usd)) * MICROUSD_PER_USD)
