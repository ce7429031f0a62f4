"""Hosted providers: who is asked for models of others, and where; their keys are kept apart and shown to nobody."""

from __future__ import annotations

from dataclasses import replace

from groundplane.domain.serving.provider import (
    Provider,
    ProviderCheck,
    ProviderKind,
    RouteRule,
    check_key,
    check_provider,
)
from groundplane.errors import Conflict, InvalidInput, NotFound
from groundplane.identity import Actor
from groundplane.ports import Clock, Store, Tx
from groundplane.ports.providers import ProviderKeys, ProviderProbe
from groundplane.services.access import visible_project
from groundplane.services.audit_trail import Teller


class Providers:
    """Each provider is one row; gateways know of a change with their next snapshot."""

    def __init__(self, *, store: Store, clock: Clock, keys: ProviderKeys, probe: ProviderProbe) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "provider")
        self._keys = keys
        self._probe = probe

    async def add(
        self,
        actor: Actor,
        *,
        project: str,
        name: str,
        kind: ProviderKind,
        base_url: str = "",
        api_version: str = "",
        region: str = "",
        private: bool = False,
        key: str = "",
        reason: str = "",
    ) -> Provider:
        """Adds or changes a provider. Twice is the same as once. Without `key` the one given before stays.

        The key is kept before the row names it: a gateway that reads of the new one finds it.
        """
        base_url = check_provider(name, kind, base_url, api_version, region=region, private=private)
        secret = check_key(key) if key else ""
        provider = Provider(
            id=f"{project}:{name}",
            name=name,
            project=project,
            kind=kind,
            base_url=base_url,
            api_version=api_version,
            region=region,
            private=private,
            set_by=actor.name,
            set_at=self._clock.now(),
        )
        async with self._store.transaction() as tx:
            await visible_project(tx, actor, project)
            before = await tx.get(Provider, provider.id, lock=True)
            if before is None and not secret:
                hint = "--key-file FILE, or - to read it from a pipe"
                own = "; an engine of yours: the word after its --api-key" if kind is ProviderKind.COMPATIBLE else ""
                raise InvalidInput(f"provider {name} needs its key", hint + own)
            if before is not None and not secret and before.base_url != base_url:
                # A key given for one address must not be sent to another one by whoever may change addresses.
                raise InvalidInput(f"provider {name} gets another address: give its key again", "--key-file FILE")
            if secret:
                await self._keys.put(project, name, secret)
            version = 0 if before is None else before.key_version
            provider = replace(provider, key_version=version + 1 if secret else version)
            if before is None:
                await tx.insert(provider)
            else:
                provider = await tx.update(replace(provider, version=before.version))
            after: dict[str, object] = {"kind": kind.value, "base_url": base_url, "key_version": provider.key_version}
            await self._tell(tx, actor, "provider.set", provider.id, provider.project, after, reason)
        return provider

    async def providers(self, actor: Actor, project: str | None = None) -> list[Provider]:
        """Those of the projects the actor sees, by id."""
        async with self._store.transaction() as tx:
            if project is not None:
                await visible_project(tx, actor, project)
            found = await tx.find(Provider, None if project is None else {"project": project}, order="id")
        return [one for one in found if actor.sees(one.project)]

    async def test(self, actor: Actor, project: str, name: str) -> ProviderCheck:
        """Asks the provider for its models with its key. NotFound; what goes wrong there is in the answer."""
        async with self._store.transaction() as tx:
            provider = await self._get(tx, actor, project, name)
        return await self._probe.probe(provider, await self._keys.read(project, name))

    async def remove(self, actor: Actor, project: str, name: str, reason: str = "") -> Provider:
        """Forgets a provider and its key. Conflict while a route leads there."""
        async with self._store.transaction() as tx:
            provider = await self._get(tx, actor, project, name)
            for rule in await tx.find(RouteRule, {"project": project}, order="id"):
                if any(target.provider == name for target in rule.targets):
                    raise Conflict(
                        f"route {rule.model} leads to provider {name}",
                        f"ground routes remove {rule.model} --project {project}",
                    )
            await tx.delete(Provider, provider.id)
            await self._tell(tx, actor, "provider.remove", provider.id, provider.project, {}, reason)
        await self._keys.remove(project, name)
        return provider

    async def _get(self, tx: Tx, actor: Actor, project: str, name: str) -> Provider:
        provider = await tx.get(Provider, f"{project}:{name}", lock=True)
        if provider is None or not actor.sees(project):
            raise NotFound(f"no provider {name[:80]!r} in project {project[:80]}", "ground providers list")
        return provider
