"""Reconnaissance: this machine, every pool's offers and the clouds, gathered for the decision that orders them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta

from groundplane.domain.hardware import Hardware
from groundplane.domain.intake import QuotaFact
from groundplane.domain.planning import quota_check, recon
from groundplane.domain.planning.plan import Offer, same_sku
from groundplane.domain.planning.recon import CloudView, Gap, Machine, Reconnaissance, SilentPool, Wanted
from groundplane.errors import NotFound, Unavailable
from groundplane.identity import Actor
from groundplane.ports import CatalogBook, Clock, CloudSource, Executor, MachineProbe, PriceBook, Store
from groundplane.services.audit_trail import Teller

LIVE_AGE_S = 300
REQUEST_PATIENCE_S = 10.0


class Recon:
    """Answers "what could we run, where, for how much". A cloud's answer is kept for `live_age_s` seconds."""

    def __init__(
        self,
        *,
        store: Store,
        clock: Clock,
        machine: MachineProbe,
        executors: Mapping[str, Executor],
        prices: PriceBook,
        catalog: CatalogBook,
        clouds: Sequence[CloudSource],
        live_age_s: int = LIVE_AGE_S,
    ) -> None:
        self._store = store
        self._clock = clock
        self._tell = Teller(clock, "machine")
        self._machine = machine
        self._executors = executors
        self._prices = prices
        self._catalog = catalog
        self._clouds = clouds
        self._live_age = timedelta(seconds=live_age_s)
        self._kept: dict[tuple[str, tuple[str, ...]], tuple[datetime, list[CloudView]]] = {}
        self._asking = asyncio.Lock()
        self._measuring = asyncio.Lock()
        self._under_way: dict[tuple[str, tuple[str, ...]], asyncio.Future[list[CloudView]]] = {}

    async def recon(self, actor: Actor, wanted: Wanted, *, live: bool = False) -> Reconnaissance:
        """Everything that fits the filters. `live` asks the clouds too; what does not answer is told as a gap.

        Raises InvalidInput for a filter that names nothing known, with what looks like it.
        """
        hardware = await asyncio.to_thread(self._catalog.hardware)
        views = await self._views(hardware, wanted) if live else []
        found = recon.survey(hardware, views, wanted, self._clock.now().date())
        machine = await self._machine.look()
        offers, silent = await self._offers()
        answered = sorted({view.source for view in views if view.skus is not None or view.quotas is not None})
        return Reconnaissance(
            at=self._clock.now(),
            machine=machine,
            offers=tuple(offers),
            silent=tuple(silent),
            survey=found,
            live=tuple(answered),
            catalogue_as_of=recon.as_of(hardware.instance_types),
        )

    async def measure(self, actor: Actor) -> Machine:
        """This machine with the speed of its disks. One measurement at a time: two would slow each other down."""
        async with self._measuring:
            machine = await self._machine.measure()
        rates = {
            disk.mount: {"write_bytes_per_s": disk.write_bytes_per_s, "read_bytes_per_s": disk.read_bytes_per_s}
            for disk in machine.disks
        }
        async with self._store.transaction() as tx:
            await self._tell(tx, actor, "machine.measure", machine.node, "", rates)
        return machine

    def known(self) -> list[CloudView]:
        """What the clouds answered lately, the newest of each region, without asking again."""
        now = self._clock.now()
        found: dict[tuple[str, str], CloudView] = {}
        for at, views in sorted(self._kept.values(), key=lambda kept: kept[0]):
            if timedelta() <= now - at < self._live_age:
                found |= {(view.cloud, view.region): view for view in views}
        return list(found.values())

    async def quotas(self, clouds: Sequence[str], skus: Sequence[str], regions: Sequence[str]) -> tuple[QuotaFact, ...]:
        """What clouds, SKUs and regions that somebody named have left; without any, what was answered lately.

        Waits for a cloud at most `REQUEST_PATIENCE_S`; what it does not answer by then is not there.
        """
        hardware = await asyncio.to_thread(self._catalog.hardware)
        views = self.known()
        if clouds or skus or regions:
            places: dict[str, set[str]] = {}
            for item in hardware.instance_types:
                wanted = not skus or any(same_sku(item.name, sku) for sku in skus)
                here = item.cloud in (clouds or (item.cloud,)) and item.region in (regions or (item.region,))
                if wanted and here and item.region:
                    places.setdefault(item.cloud, set()).add(item.region)
            views, _ = await self.ask({cloud: sorted(found) for cloud, found in places.items()}, REQUEST_PATIENCE_S)
        if not views:
            return ()
        survey = recon.survey(hardware, views, Wanted(), self._clock.now().date())
        return quota_check.as_facts(survey.rows, skus)

    async def ask(self, places: Mapping[str, Sequence[str]], patience_s: float) -> tuple[list[CloudView], list[Gap]]:
        """Views of these regions by cloud, live or answered lately; and what did not answer within `patience_s`.

        A cloud that is slower goes on answering, for whoever asks next; two who ask the same wait for one answer.
        """
        sources = {source.cloud: source for source in self._clouds}
        tasks = {
            cloud: self._shared(sources[cloud], tuple(regions))
            for cloud, regions in places.items()
            if cloud in sources and regions
        }
        if tasks:
            await asyncio.wait(tasks.values(), timeout=patience_s)
        views: list[CloudView] = []
        gaps: list[Gap] = []
        for cloud, task in tasks.items():
            if task.done():
                views += task.result()
                continue
            why = f"{cloud} did not answer within {patience_s:g} s"
            gaps.append(Gap(cloud=cloud, region="", what="live data", why=why, hint="plan again in a minute"))
        gaps += [gap for view in views for gap in view.gaps]
        return views, gaps

    def _shared(self, source: CloudSource, regions: tuple[str, ...]) -> asyncio.Future[list[CloudView]]:
        key = (source.cloud, regions)
        if key not in self._under_way:
            task = asyncio.ensure_future(self._of_regions(source, regions))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return self._under_way[key]

    async def _of_regions(self, source: CloudSource, regions: tuple[str, ...]) -> list[CloudView]:
        known = {view.region: view for view in self.known() if view.cloud == source.cloud}
        if all(region in known for region in regions):
            return [known[region] for region in regions]
        return await self._look(source, regions)

    async def _views(self, hardware: Hardware, wanted: Wanted) -> list[CloudView]:
        async with self._asking:
            answers = await asyncio.gather(*(self._ask(source, hardware, wanted) for source in self._clouds))
        return [view for answer in answers for view in answer]

    async def _ask(self, source: CloudSource, hardware: Hardware, wanted: Wanted) -> list[CloudView]:
        regions = recon.regions_to_ask(hardware, source.cloud, wanted)
        return await self._look(source, regions) if regions else []

    async def _look(self, source: CloudSource, regions: tuple[str, ...]) -> list[CloudView]:
        key, now = (source.cloud, regions), self._clock.now()
        kept = self._kept.get(key)
        if kept is not None and timedelta() <= now - kept[0] < self._live_age:
            return kept[1]
        views = await source.look(regions)
        # A gap may be mended any moment (somebody signs in): only whole answers are kept.
        if not any(view.gaps for view in views):
            self._kept[key] = (now, views)
        return views

    async def _offers(self) -> tuple[list[Offer], list[SilentPool]]:
        offers: list[Offer] = []
        silent: list[SilentPool] = []
        for pool, executor in sorted(self._executors.items()):
            try:
                found = await executor.offers()
            except Unavailable as error:
                silent.append(SilentPool(pool=pool, why=error.message))
                continue
            for offer in found:
                try:
                    offers.append(self._prices.price(offer))
                except NotFound as error:
                    silent.append(SilentPool(pool=pool, why=error.message))
        return offers, silent
