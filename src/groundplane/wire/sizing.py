"""What crosses the HTTP door to have sums done: what to size, what to compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from groundplane.wire.bounds import MONEY_MAX_MICROUSD, STRICT, check_range, check_text


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
        check_text(model=self.model, params=self.params, gpus=self.gpus)
        for name in ("batch", "sequence", "context", "dataset_tokens", "shards", "lora_rank"):
            check_range(name, getattr(self, name), 0, MONEY_MAX_MICROUSD)
        for name in ("tensor_parallel", "pipeline_parallel", "node_gpus"):
            check_range(name, getattr(self, name), 0, 4_096)


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
        check_text(model=self.model, gpus=self.gpus, cloud=self.cloud)
        for api in self.apis:
            check_text(apis=api)
