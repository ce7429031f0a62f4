"""Hosted providers and routes: where models of others are asked, and which model name leads where.

A provider's key is in the secret store alone; here is only how often it was replaced, so that gateways read it anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import urlsplit

from groundplane.domain.serving.queueing import QueueRule, check_queue
from groundplane.domain.serving.response_cache import CacheRule, check_cache
from groundplane.domain.serving.routing import RoutePolicy
from groundplane.domain.spec import SpecialPrices, TokenPrice
from groundplane.errors import InvalidInput

_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_API_VERSION = re.compile(r"[A-Za-z0-9.-]{1,40}")
_KEY = re.compile(r"[\x21-\x7e]{1,1000}")
OUTPUT_TOKENS_MAX = 10_000_000
CONTEXT_TOKENS_MAX = 100_000_000
TARGETS_MAX = 20
HEDGE_MIN_MS = 1
HEDGE_MAX_MS = 60_000


class ProviderKind(StrEnum):
    """How a provider is spoken to: paths, and the header that its key goes in."""

    OPENAI = "openai"
    AZURE = "azure"
    ANTHROPIC = "anthropic"
    COMPATIBLE = "openai-compatible"


DEFAULT_URLS = {
    ProviderKind.OPENAI: "https://api.openai.com/v1",
    ProviderKind.ANTHROPIC: "https://api.anthropic.com",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """id is `project:name`. `private`: its address may be in a private network, and plain HTTP is allowed there."""

    id: str
    name: str
    project: str
    kind: ProviderKind
    base_url: str
    api_version: str = ""
    region: str = ""
    private: bool = False
    key_version: int = 0
    set_by: str
    set_at: datetime
    version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderCheck:
    """What a provider said when it was asked for its models."""

    ok: bool
    said: str
    status: int | None = None
    models: int | None = None
    took_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """What of a target was taken from a dated row of the catalogue's token prices, because nobody named it: words of
    `RouteTarget.taken`. `long_above_tokens`: longer prompts are dearer there, and not here, where a price was named."""

    row: str
    as_of: str
    took: tuple[str, ...]
    long_above_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteTarget:
    """An endpoint of ours or a provider of the project, with the model's name there.

    `order`: lower ones are asked first. The price is what callers are charged; an endpoint has one of its own.
    `max_output_tokens`: the longest answer there is when a request names no limit; `context_tokens`: the longest prompt
    and answer together. None is not known. `listed`: where what nobody named is from.
    """

    endpoint: str = ""
    provider: str = ""
    model: str = ""
    weight: int = 1
    order: int = 0
    price: TokenPrice | None = None
    max_output_tokens: int | None = None
    context_tokens: int | None = None
    listed: Listed | None = None

    @property
    def name(self) -> str:
        return self.endpoint or f"{self.provider}/{self.model}"

    @property
    def taken(self) -> dict[str, int]:
        """The figures that `listed` gave: micro-dollars per million tokens, and tokens."""
        price = self.price
        if self.listed is None or price is None:
            return {}
        special = price.special or SpecialPrices()
        figures = {
            "prompt": price.prompt_microusd_per_million,
            "completion": price.completion_microusd_per_million,
            "cached": price.cached_microusd_per_million,
            "written": price.written,
            "written_1h": special.written_1h,
            "long_above": special.long_above_tokens,
            "long_prompt": special.long_prompt,
            "long_completion": special.long_completion,
            "max_output": self.max_output_tokens,
            "context": self.context_tokens,
        }
        return {name: figures[name] or 0 for name in self.listed.took}


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteRule:
    """A model name of a project and where it leads, as somebody set it. id is `project:model`."""

    id: str
    project: str
    model: str
    policy: RoutePolicy
    targets: tuple[RouteTarget, ...]
    sticky: bool = False
    hedge_ms: int | None = None
    queue: QueueRule | None = None
    cache: CacheRule | None = None
    set_by: str
    set_at: datetime
    version: int = 0


def check_provider(
    name: str, kind: ProviderKind, base_url: str, api_version: str, *, region: str, private: bool
) -> str:
    """The address as it is kept. InvalidInput when a provider like this can't be asked safely."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"{name[:80]!r} is no provider name", "lower-case letters, digits and dashes, at most 63")
    base_url = base_url or DEFAULT_URLS.get(kind, "")
    if not base_url:
        raise InvalidInput(f"a provider of kind {kind.value} needs its address", "--url https://…")
    try:
        url = urlsplit(base_url)
        port = url.port
    except ValueError:
        url, port = urlsplit(""), None
    plain = url.scheme in {"http", "https"} and url.hostname and url.netloc.isascii() and port != 0
    if not plain or url.username is not None or url.query or url.fragment or not base_url.isprintable():
        raise InvalidInput(f"{base_url[:200]!r} is no address of a provider", "like https://api.example.com/v1")
    if url.scheme == "http" and not private:
        raise InvalidInput(
            "a provider's key may not travel in the clear", "use https, or --private in your own network"
        )
    try:
        fault = address_fault(ip_address(url.hostname or ""), private=private)
    except ValueError:
        fault = ""  # a name: what it stands for is judged when it is connected to
    if fault:
        raise InvalidInput(fault, "use the provider's public address, or --private in your own network")
    if kind is ProviderKind.AZURE and not _API_VERSION.fullmatch(api_version):
        raise InvalidInput("Azure OpenAI needs the version of its API", "--api-version 2024-10-21")
    if kind is not ProviderKind.AZURE and api_version:
        raise InvalidInput(f"a provider of kind {kind.value} has no API version", "leave --api-version out")
    if region and not _NAME.fullmatch(region):
        raise InvalidInput(f"{region[:80]!r} is no region", "lower-case letters, digits and dashes")
    return base_url.rstrip("/")


def check_key(key: str) -> str:
    """A provider's key as it goes in a header. InvalidInput when it can't."""
    key = key.strip()
    if not _KEY.fullmatch(key):
        raise InvalidInput("a provider's key is one line of visible ASCII, at most 1,000", "paste it without quotes")
    return key


def address_fault(address: IPv4Address | IPv6Address, *, private: bool) -> str:
    """Why a provider may not be there, or nothing. Link-local ones hold machines' own credentials: never."""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    address = mapped or address
    if address.is_link_local or address.is_multicast or address.is_unspecified or address.is_reserved:
        return f"{address} is no address of a provider"
    if not private and not address.is_global:
        return f"{address} is an address of a private network"
    return ""


def check_route(
    model: str,
    targets: tuple[RouteTarget, ...],
    hedge_ms: int | None,
    queue: QueueRule | None = None,
    cache: CacheRule | None = None,
) -> None:
    """InvalidInput when a route like this makes no sense."""
    if queue is not None:
        check_queue(queue)
    if cache is not None:
        check_cache(cache)
    if not model or len(model) > 200 or not model.isprintable():
        raise InvalidInput("a route needs the model name that callers use", "ground routes set MODEL --target …")
    if not 1 <= len(targets) <= TARGETS_MAX:
        raise InvalidInput(f"a route has 1 to {TARGETS_MAX} targets, this one {len(targets)}", "--target, repeated")
    names = set()
    for one in targets:
        if bool(one.endpoint) == bool(one.provider):
            raise InvalidInput(
                "a target is an endpoint or a provider", "--target endpoint:tiny or provider:openai/gpt-4o"
            )
        if one.provider and not (one.model and len(one.model) <= 200 and one.model.isprintable()):
            raise InvalidInput(f"which model of provider {one.provider[:63]}?", "--target provider:NAME/MODEL")
        if not (0 <= one.weight <= 1_000 and 0 <= one.order <= 100):
            raise InvalidInput("a weight is 0 to 1,000, an order 0 to 100", "weight=3, order=1")
        if one.max_output_tokens is not None and not 1 <= one.max_output_tokens <= OUTPUT_TOKENS_MAX:
            raise InvalidInput(f"an answer has 1 to {OUTPUT_TOKENS_MAX:,} tokens", "max_output=16384")
        if one.context_tokens is not None and not 1 <= one.context_tokens <= CONTEXT_TOKENS_MAX:
            raise InvalidInput(f"a context has 1 to {CONTEXT_TOKENS_MAX:,} tokens", "context=128000")
        names.add((one.endpoint, one.provider, one.model))
    if len(names) != len(targets):
        raise InvalidInput("a target is given twice", "use weight= to send more there")
    if hedge_ms is not None and not HEDGE_MIN_MS <= hedge_ms <= HEDGE_MAX_MS:
        raise InvalidInput(f"{hedge_ms} ms is no time to hedge after", f"{HEDGE_MIN_MS} to {HEDGE_MAX_MS}")
