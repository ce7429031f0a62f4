"""The price book: this machine at the operator's price, everything else from the catalogue, each with its date."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import date

from groundplane.domain.hardware import Hardware
from groundplane.domain.planning.plan import Offer
from groundplane.errors import InvalidInput, NotFound


class BookPriceBook:
    """Implements `ports.PriceBook`.

    A pool that knows its own prices keeps them. Nodes of `local_pools` cost what the operator set, as of the date it
    was set; other nodes cost what the catalogue says for an instance type of that name, as it stands when it is asked.
    A price of 0 is allowed and flagged by policy.
    """

    def __init__(
        self,
        *,
        local_price_microusd_per_hour: int,
        as_of: date,
        local_pools: tuple[str, ...] = ("local",),
        hardware: Callable[[], Hardware] = Hardware,
    ) -> None:
        if local_price_microusd_per_hour < 0:
            raise InvalidInput("the local price is below $0", "set GROUND_LOCAL_PRICE to dollars per hour, like 0.10")
        self._local_price = local_price_microusd_per_hour
        self._as_of = as_of
        self._local_pools = frozenset(local_pools)
        self._hardware = hardware

    def price(self, offer: Offer) -> Offer:
        """The offer with price, date and source. NotFound when neither the operator nor the catalogue priced it."""
        if offer.price_source:
            return offer
        if offer.pool in self._local_pools:
            return replace(
                offer,
                price_microusd_per_hour=self._local_price,
                price_as_of=self._as_of,
                price_source="set by the operator",
            )
        item = self._hardware().instance_type(offer.node_type)
        if item is None or item.price_microusd_per_hour is None:
            raise NotFound(
                f"no price for {offer.node_type} in pool {offer.pool}",
                "add it to the price book, with its date and source",
            )
        return replace(
            offer,
            price_microusd_per_hour=item.price_microusd_per_hour,
            price_as_of=item.price_as_of,
            price_source=f"{item.cloud} {item.region} on-demand list price",
        )
