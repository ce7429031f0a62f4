"""What the catalogue knows beyond hardware: prices of hosted models, storage, error messages, codes and thresholds.

Every row says where its figures are from (`sources`), as of when, and which of them no source was read for.
"""

from __future__ import annotations

from dataclasses import dataclass

from groundplane.domain.hardware import Hardware
from groundplane.domain.sizing.model_shape import ModelShape
from groundplane.domain.sizing.parallelism import Link
from groundplane.domain.sizing.roofline import Efficiency


@dataclass(frozen=True, slots=True, kw_only=True)
class LongContextPrice:
    """What every token of a request costs whose prompt is longer, in micro-dollars per million tokens."""

    above_tokens: int
    prompt_microusd_per_million: int
    completion_microusd_per_million: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenListPrice:
    """A hosted model's list price, in micro-dollars per million tokens. `batch_discount` is the share taken off.
    `max_output`: its longest answer, in tokens; None is not known."""

    id: str
    provider: str
    mode: str
    prompt_microusd_per_million: int
    completion_microusd_per_million: int
    cached_microusd_per_million: int | None
    batch_discount: float
    context: int | None
    as_of: str
    sources: tuple[str, ...]
    estimated: bool
    written_microusd_per_million: int | None = None
    written_1h_microusd_per_million: int | None = None
    max_output: int | None = None
    long_context: LongContextPrice | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionedUnits:
    """What one provisioned unit of a hosted model carries; None where the source gives no weight of completions.

    `minimum` and `step` are units, by kind of deployment. Cached prompt tokens count nothing.
    """

    model: str
    prompt_tokens_per_minute: int
    completion_weight: float | None
    minimum: dict[str, int]
    step: dict[str, int]
    as_of: str
    sources: tuple[str, ...]
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProvisionedPrice:
    """What one unit costs in one kind of deployment: by the hour, or reserved for a month or a year."""

    deployment: str
    microusd_per_unit_hour: int
    microusd_per_unit_month: int | None
    microusd_per_unit_year: int | None
    as_of: str
    sources: tuple[str, ...]
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PurchaseTerm:
    """How a cloud sells besides by the hour: `spot`, taken away again, or `reserved`, paid for a term.

    `discount` is the share off the list price (reserved). An interruption of a spot machine costs `restart_s` besides
    what was done since the last checkpoint.
    """

    id: str
    cloud: str
    kind: str
    hours: int
    discount: float
    interruptions_per_day: float
    restart_s: int
    as_of: str
    sources: tuple[str, ...]
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageTier:
    """Where data may lie. One of the two rates is set, or neither where the source gives none."""

    id: str
    cloud: str
    name: str
    kind: str
    bytes_per_s: int | None
    bytes_per_s_per_tib: int | None
    scope: str
    microusd_per_gib_month: int | None
    shared: bool
    durable: bool
    use: str
    as_of: str
    sources: tuple[str, ...]
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class XidCode:
    """An NVIDIA driver error code. `retry` is yes, no or conditional; `same_node` and `other_node` say where."""

    code: int
    mnemonic: str
    name: str
    active: bool
    category: str
    severity: str
    meaning: str
    action: str
    retry: str
    same_node: bool
    other_node: bool
    notes: str
    as_of: str
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """An error message: a regular expression searched in one log line, its cause, what to check, what mends it."""

    id: str
    category: str
    severity: str
    regex: str
    example: str
    cause: str
    checks: tuple[str, ...]
    fixes: tuple[str, ...]
    retry: str
    other_node: bool
    advice: str
    as_of: str
    sources: tuple[str, ...]
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """When a signal is worth a warning or a page. None where a level is not used."""

    id: str
    signal: str
    metric: str
    unit: str
    operator: str
    warning: float | str | None
    warning_for_s: int
    critical: float | str | None
    critical_for_s: int
    priority: str
    scope: str
    meaning: str
    as_of: str
    sources: tuple[str, ...]
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalogue:
    """Everything, loaded and checked."""

    hardware: Hardware
    models: tuple[ModelShape, ...]
    token_prices: tuple[TokenListPrice, ...]
    provisioned_units: tuple[ProvisionedUnits, ...]
    provisioned_prices: tuple[ProvisionedPrice, ...]
    efficiencies: dict[str, Efficiency]
    links: dict[str, Link]
    storage: tuple[StorageTier, ...]
    xids: tuple[XidCode, ...]
    signatures: tuple[Signature, ...]
    thresholds: tuple[Threshold, ...]
    purchase_terms: tuple[PurchaseTerm, ...] = ()

    def model(self, name: str) -> ModelShape | None:
        """A model by its catalogue name, its Hugging Face id or the last part of that; capitals don't matter."""
        wanted = name.lower()
        return next((m for m in self.models if wanted in (m.id, m.hf_id.lower(), m.hf_id.lower().split("/")[-1])), None)
