"""What crosses the HTTP door about projects, keys, limits and exposures besides the domain's own records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar

from groundplane.domain.access import Key
from groundplane.domain.serving.limits import Measure, WhenDown
from groundplane.identity import Role
from groundplane.wire.bounds import RATE_MAX, STRICT, check_money, check_range, check_text, check_zone


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
        check_text(name=self.name, owner=self.owner, cost_center=self.cost_center, reason=self.reason)
        check_money(self.monthly_limit_microusd, self.thresholds_percent)


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
        check_text(name=self.name, project=self.project, owner=self.owner)
        for model in self.models:
            check_text(models=model)
        for network in self.networks:
            check_text(networks=network)
        check_zone("expires_at", self.expires_at)
        check_range("requests_per_minute", self.requests_per_minute, 1, RATE_MAX)
        check_range("tokens_per_minute", self.tokens_per_minute, 1, RATE_MAX)


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
        check_text(address=self.address, owner=self.owner, reason=self.reason)
        check_zone("expires_at", self.expires_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitRequest:
    """One limit of a project, or of a model, endpoint or key of it, which `name` names. Dollars are micro-dollars;
    without `when_down` they are fail-closed, and the rest local-share."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    project: str
    scope: str
    name: str
    measure: Measure
    value: int
    when_down: WhenDown | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RotationRequest:
    """`grace_s`: how long the secret before opens beside the new one."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    grace_s: int = 86_400
    reason: str = ""
