"""What crosses the HTTP door about hosted providers and routes. A provider's key goes in, and never out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from groundplane.domain.serving.provider import ProviderKind
from groundplane.domain.serving.queueing import Priority
from groundplane.domain.serving.routing import RoutePolicy
from groundplane.domain.serving.usage import TOKENS_MAX
from groundplane.wire.bounds import MONEY_MAX_MICROUSD, STRICT, check_range, check_text

PRICES = (
    "prompt", "completion", "cached", "written", "written_1h", "audio_prompt", "audio_completion", "long_prompt",
    "long_completion",
)  # fmt: skip
"""Of a target, each in micro-dollars per million tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderRequest:
    """An empty `key` keeps the one given before."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    project: str
    name: str
    kind: ProviderKind
    base_url: str = ""
    api_version: str = ""
    region: str = ""
    private: bool = False
    key: str = field(default="", repr=False)
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(project=self.project, name=self.name, base_url=self.base_url, reason=self.reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRequest:
    """An endpoint, or a provider and its model. Prices are micro-dollars per million tokens; those of a provider's
    model that are not given are the catalogue's, as are its bounds: of the model itself, or of the row it is `like`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    endpoint: str = ""
    provider: str = ""
    model: str = ""
    weight: int = 1
    order: int = 0
    prompt_microusd_per_million: int | None = None
    completion_microusd_per_million: int | None = None
    cached_microusd_per_million: int | None = None
    written_microusd_per_million: int | None = None
    written_1h_microusd_per_million: int | None = None
    audio_prompt_microusd_per_million: int | None = None
    audio_completion_microusd_per_million: int | None = None
    long_above_tokens: int | None = None
    long_prompt_microusd_per_million: int | None = None
    long_completion_microusd_per_million: int | None = None
    max_output_tokens: int | None = None
    context_tokens: int | None = None
    like: str = ""

    def __post_init__(self) -> None:
        check_text(like=self.like)
        check_range("long_above_tokens", self.long_above_tokens, 1, TOKENS_MAX)
        for name in PRICES:
            price = f"{name}_microusd_per_million"
            check_range(price, getattr(self, price), 0, MONEY_MAX_MICROUSD)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPriorityRequest:
    """What one key's requests have, and the most they may ask for."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    key_id: str
    priority: Priority

    def __post_init__(self) -> None:
        check_text(key_id=self.key_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRequest:
    """How requests wait for what is full: `size` of them at most, each `wait_ms` at most."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    size: int = 100
    wait_ms: int = 30_000
    priority: Priority = Priority.NORMAL
    keys: tuple[KeyPriorityRequest, ...] = ()
    weight: int = 1
    concurrency_max: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRequest:
    """How long answers are kept. `sampled`: also those of requests that ask for chance."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    ttl_s: int
    sampled: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRequest:
    """`hedge_ms`: after how long without an answer a second target is asked too. Without `queue` nothing waits,
    without `cache` nothing is kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    project: str
    model: str
    targets: tuple[TargetRequest, ...]
    policy: RoutePolicy = RoutePolicy.WEIGHTED
    sticky: bool = False
    hedge_ms: int | None = None
    queue: QueueRequest | None = None
    cache: CacheRequest | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        check_text(project=self.project, model=self.model, reason=self.reason)
