"""What is asked of the outside world about hosted providers."""

from __future__ import annotations

from typing import Protocol

from groundplane.domain.serving.provider import Provider, ProviderCheck


class ProviderKeys(Protocol):
    """Hosted providers' keys: written, and read by whoever speaks to them, but shown to nobody."""

    async def put(self, project: str, name: str, key: str) -> None:
        """Keeps or replaces a key, whole. Unavailable when it can't be kept."""
        ...

    async def read(self, project: str, name: str) -> str:
        """NotFound, or Unavailable when it can't be read."""
        ...

    async def remove(self, project: str, name: str) -> None:
        """Twice is the same as once."""
        ...


class ProviderProbe(Protocol):
    """Asks a provider whether it answers us."""

    async def probe(self, provider: Provider, key: str) -> ProviderCheck:
        """One question; what goes wrong is in the answer. Never raises for what the provider does."""
        ...
