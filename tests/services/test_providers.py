"""Hosted providers and routes: set by whoever may make keys, refused when they could leak a key, told to gateways."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.stage import Answer, Asked, Played

from groundplane.adapters.catalog_files import load_catalogue
from groundplane.adapters.gateway_reports import MemoryReports
from groundplane.adapters.provider_keys import FolderProviderKeys
from groundplane.adapters.provider_probe import HttpProviderProbe
from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.system import RandomIds, SystemClock
from groundplane.domain.serving.provider import Provider, ProviderKind, RouteRule, address_fault
from groundplane.domain.serving.routing import RoutePolicy
from groundplane.domain.serving.snapshot import compile_snapshot, decode, encode
from groundplane.errors import Conflict, InvalidInput, NotFound
from groundplane.identity import Actor, Role
from groundplane.services.access import Access
from groundplane.services.providers import Providers
from groundplane.services.routes import Routes
from groundplane.wire.routes import TargetRequest

ADMIN = Actor(name="ana", role=Role.ADMIN, key_id="k")
STRANGER = Actor(name="ben", role=Role.MEMBER, key_id="k2", project="other")
PRICE = {"prompt_microusd_per_million": 2_500_000, "completion_microusd_per_million": 10_000_000}
KEY = "sk-secret-of-the-provider"
AZURE = {"kind": ProviderKind.AZURE, "base_url": "https://eu.openai.azure.com/", "api_version": "2024-10-21"}


@dataclass
class House:
    store: MemoryStore
    providers: Providers
    routes: Routes
    folder: Path

    async def add(self, name: str = "hosted", **values: object) -> Provider:
        values = {"kind": ProviderKind.OPENAI, "key": KEY, **values}
        return await self.providers.add(ADMIN, project="vision", name=name, **values)  # type: ignore[arg-type]


@pytest.fixture
async def house(tmp_path: Path) -> House:
    store, clock = MemoryStore(), SystemClock()
    access = Access(store=store, clock=clock, ids=RandomIds())
    await access.create_project(ADMIN, name="vision", owner="ana", cost_center="cc")
    keys = FolderProviderKeys(tmp_path)
    providers = Providers(store=store, clock=clock, keys=keys, probe=HttpProviderProbe(timeout_s=5))
    return House(
        store, providers, Routes(store=store, clock=clock, reports=MemoryReports(), catalogue=load_catalogue), tmp_path
    )


async def test_a_providers_key_is_in_its_file_and_nowhere_else(house: House) -> None:
    provider = await house.add()
    path = house.folder / "vision" / "hosted"
    assert path.read_text() == KEY + "\n" and path.stat().st_mode & 0o777 == 0o600
    assert provider.base_url == "https://api.openai.com/v1" and provider.key_version == 1
    assert (await house.add(key="sk-other")).key_version == 2, "gateways read the new key"
    assert (await house.add(key="", region="eu")).key_version == 2
    assert path.read_text() == "sk-other\n"
    kept = repr(vars(house.store))
    assert "https://api.openai.com/v1" in kept and "provider.set" in kept and "sk-" not in kept
    await house.providers.remove(ADMIN, "vision", "hosted")
    assert not path.exists() and await house.providers.providers(ADMIN) == []


@pytest.mark.parametrize(
    "values",
    [
        {"name": "Upper"},
        {"key": ""},
        {"key": "two words"},
        {"kind": ProviderKind.COMPATIBLE},
        {"base_url": "http://api.example.com/v1"},
        {"base_url": "https://user:secret@api.example.com"},
        {"base_url": "https://api.example.com/v1?x=1"},
        {"base_url": "ftp://api.example.com"},
        {"base_url": "https://10.0.0.1/v1"},
        {"base_url": "https://[::1]/v1"},
        {"base_url": "http://169.254.169.254/latest", "private": True},
        {"base_url": "https://api.example.com:99999"},
        {**AZURE, "api_version": ""},
        {"api_version": "2024-10-21"},
        {"region": "EU West"},
    ],
)
async def test_a_provider_that_could_leak_its_key_is_refused(house: House, values: dict[str, object]) -> None:
    with pytest.raises(InvalidInput):
        await house.add(**values)  # type: ignore[arg-type]
    assert not list(house.folder.rglob("*hosted*"))


async def test_a_key_given_for_one_address_is_not_sent_to_another(house: House) -> None:
    await house.add()
    with pytest.raises(InvalidInput, match="give its key again"):
        await house.add(key="", base_url="https://elsewhere.example.com/v1")


async def test_an_engine_of_ones_own_has_a_key_too(house: House) -> None:
    with pytest.raises(InvalidInput, match="needs its key") as refused:
        await house.add(kind=ProviderKind.COMPATIBLE, base_url="http://127.0.0.1:8000/v1", private=True, key="")
    assert refused.value.hint.endswith("an engine of yours: the word after its --api-key")


@given(st.ip_addresses())
def test_addresses_of_private_networks_are_for_private_providers_only(address: object) -> None:
    one = ip_address(str(address))
    if not address_fault(one, private=False):
        assert one.is_global and not one.is_link_local and not address_fault(one, private=True)
    if one.is_link_local:
        assert address_fault(one, private=True), "machines' own credentials are there"


def test_an_address_within_another_is_judged_by_what_it_is() -> None:
    assert address_fault(ip_address("::ffff:169.254.169.254"), private=True)
    assert address_fault(ip_address("::ffff:10.0.0.1"), private=False)
    assert not address_fault(ip_address("10.0.0.1"), private=True)


async def test_strangers_see_and_touch_nothing(house: House) -> None:
    await house.add()
    assert await house.providers.providers(STRANGER) == []
    for act in (house.providers.test, house.providers.remove):
        with pytest.raises(NotFound):
            await act(STRANGER, "vision", "hosted")
    with pytest.raises(NotFound):
        await house.routes.routes(STRANGER, "vision")


# ---------------------------------------------------------------- routes


def to(provider: str = "hosted", model: str = "gpt-4o", **more: object) -> TargetRequest:
    return TargetRequest(provider=provider, model=model, **{**PRICE, **more})  # type: ignore[arg-type]


async def set_route(house: House, *targets: TargetRequest, **more: object) -> RouteRule:
    return await house.routes.set_route(ADMIN, project="vision", model="big", targets=targets, **more)  # type: ignore[arg-type]


async def test_a_route_reaches_gateways_with_the_name_of_its_keys_file_alone(house: House) -> None:
    provider = await house.add("azure", **AZURE, region="eu")
    await house.add()
    targets = (to("azure", "gpt4", weight=3, max_output_tokens=900), to(order=1))
    rule = await set_route(house, *targets, policy=RoutePolicy.LEAST_LOADED, sticky=True, hedge_ms=200)
    snapshot = compile_snapshot(
        keys=[],
        endpoints=[],
        budgets={},
        ingested={},
        version=1,
        now=rule.set_at,
        providers=await house.providers.providers(ADMIN),
        rules=[rule],
    )
    encoded = encode(snapshot)
    assert KEY.encode() not in encoded
    assert decode(encoded) == snapshot
    (route,) = snapshot.routes
    assert (route.policy, route.sticky, route.hedge_ms) == ("least-loaded", True, 200)
    first = route.targets[0]
    assert (first.kind, first.key_file, first.key_version) == ("azure", "vision/azure", provider.key_version)
    assert (first.endpoint, first.weight, first.region, first.private) == ("vision:azure", 3, "eu", False)


async def test_a_target_that_is_gone_takes_nothing_else_with_it(house: House) -> None:
    await house.add()
    rule = await set_route(house, to())
    snapshot = compile_snapshot(
        keys=[], endpoints=[], budgets={}, ingested={}, version=1, now=rule.set_at, rules=[rule]
    )
    assert snapshot.routes[0].targets == ()


async def test_a_provider_with_a_route_stays(house: House) -> None:
    await house.add()
    await set_route(house, to())
    with pytest.raises(Conflict, match="route big"):
        await house.providers.remove(ADMIN, "vision", "hosted")
    await house.routes.remove(ADMIN, "vision", "big")
    await house.providers.remove(ADMIN, "vision", "hosted")
    with pytest.raises(NotFound):
        await house.routes.remove(ADMIN, "vision", "big")


async def test_what_the_catalogue_fills_in_is_in_the_answer_and_in_the_audit_trail(house: House) -> None:
    await house.add("azure", **AZURE)
    rule = await set_route(
        house, TargetRequest(provider="azure", model="gpt-4o"), to("azure", "our-chat", like="azure/gpt-4o-mini")
    )
    plain, alike = rule.targets
    assert plain.taken == {
        "prompt": 2_500_000, "completion": 10_000_000, "cached": 1_250_000, "max_output": 16_384, "context": 128_000
    }  # fmt: skip
    assert alike.taken == {"max_output": 16_384, "context": 128_000}, "named prices win"
    assert await house.routes.routes(ADMIN) == [rule]
    (event,) = [one async for one in house.store.events() if one.action == "route.set"]
    assert event.after["listed"] == {
        "azure/gpt-4o": {"row": "azure/gpt-4o", "as_of": "2026-08-01", **plain.taken},
        "azure/our-chat": {"row": "azure/gpt-4o-mini", "as_of": "2026-08-01", **alike.taken},
    }


@pytest.mark.parametrize(
    ("targets", "more", "error"),
    [
        ((), {}, InvalidInput),
        ((TargetRequest(),), {}, InvalidInput),
        ((TargetRequest(endpoint="tiny", provider="hosted", model="m"),), {}, InvalidInput),
        ((TargetRequest(provider="hosted", model="m"),), {}, InvalidInput),
        ((to(model="m"),), {}, InvalidInput),
        ((to(like="gpt-nothing"),), {}, InvalidInput),
        ((to(model=""),), {}, InvalidInput),
        ((to(), to()), {}, InvalidInput),
        ((to(weight=-1),), {}, InvalidInput),
        ((to(),), {"hedge_ms": 0}, InvalidInput),
        ((to("nobody"),), {}, NotFound),
        ((TargetRequest(endpoint="nothing"),), {}, NotFound),
    ],
)
async def test_a_route_that_makes_no_sense_is_refused(
    house: House, targets: tuple[TargetRequest, ...], more: dict[str, object], error: type[Exception]
) -> None:
    await house.add()
    with pytest.raises(error):
        await set_route(house, *targets, **more)


# ---------------------------------------------------------------- asking a provider


class Hosted(Played):
    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        super().__init__(self._answer)
        self.url = f"http://localhost:{self.port}"

    def _answer(self, asked: Asked) -> Answer:
        self.asked.append((asked.path, asked.headers.get("authorization") or asked.headers.get("api-key") or ""))
        good = KEY in self.asked[-1][1]
        return Answer(200, {"data": [{"id": "a"}, {"id": "b"}]}) if good else Answer(401, {"error": {}})


@pytest.fixture
def hosted() -> Iterator[Hosted]:
    with closing(Hosted()) as played:
        yield played


async def test_a_provider_is_asked_with_its_key(house: House, hosted: Hosted) -> None:
    await house.add(kind=ProviderKind.COMPATIBLE, base_url=hosted.url, private=True)
    check = await house.providers.test(ADMIN, "vision", "hosted")
    assert (check.ok, check.models, hosted.asked) == (True, 2, [("/v1/models", f"Bearer {KEY}")])
    await house.add("azure", **{**AZURE, "base_url": hosted.url}, private=True, key="sk-wrong")
    refused = await house.providers.test(ADMIN, "vision", "azure")
    assert (refused.ok, refused.said) == (False, "the key is refused")
    assert hosted.asked[-1] == ("/openai/models?api-version=2024-10-21", "sk-wrong")


async def test_a_name_that_leads_into_a_private_network_is_not_asked(house: House, hosted: Hosted) -> None:
    await house.add(kind=ProviderKind.COMPATIBLE, base_url=f"https://localhost:{hosted.port}/v1")
    check = await house.providers.test(ADMIN, "vision", "hosted")
    assert not check.ok and "private network" in check.said and not hosted.asked
