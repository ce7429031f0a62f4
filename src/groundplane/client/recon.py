"""The part of the SDK that looks around: reconnaissance and the catalogue, one typed method per API call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from groundplane.client.transport import Transport, part
from groundplane.domain.catalogue.changes import TableView
from groundplane.domain.catalogue.price_lists import ListPrice
from groundplane.domain.planning.recon import Machine, Reconnaissance, Wanted
from groundplane.wire.catalog import CatalogDocument, CatalogRequest, CatalogUpdate

LIVE_PATIENCE_S = 600.0


class ReconCalls(Transport):
    def recon(self, wanted: Wanted | None = None, *, live: bool = False) -> Reconnaissance:
        """Raises InvalidInput for a filter that names nothing known. `live` asks the clouds: it can take minutes."""
        asked = wanted or Wanted()
        params: dict[str, Any] = {
            "gpu_memory_bytes": asked.gpu_memory_bytes,
            "gpu": asked.gpu,
            "cloud": asked.cloud,
            "region": asked.region,
            "sku": asked.sku,
            "max_price_microusd_per_hour": asked.max_price_microusd_per_hour,
            "include_retired": "true" if asked.include_retired else None,
            "live": "true" if live else None,
        }
        return self._call("GET", "/v1/recon", Reconnaissance, params=params, timeout_s=LIVE_PATIENCE_S)

    def measure_machine(self) -> Machine:
        """The control plane's machine with the speed of its disks: some seconds for each."""
        return self._call("POST", "/v1/recon/measure", Machine, timeout_s=LIVE_PATIENCE_S)

    def catalog(self) -> list[TableView]:
        """The tables, without their rows."""
        return self._call("GET", "/v1/catalog", list[TableView])

    def catalog_table(self, name: str) -> TableView:
        """One table with its rows. Raises NotFound naming the tables that there are."""
        return self._call("GET", f"/v1/catalog/{part(name)}", TableView)

    def update_catalog(
        self,
        *,
        documents: Mapping[str, str] | None = None,
        prices: Sequence[ListPrice] = (),
        regions: Sequence[str] = (),
        replace: bool = False,
        expect: str = "",
        reason: str = "",
    ) -> CatalogUpdate:
        """Without `expect` shows what would change; with the digest of that carries it out, or raises Conflict."""
        body = CatalogRequest(
            documents=tuple(CatalogDocument(name=name, text=text) for name, text in (documents or {}).items()),
            prices=tuple(prices),
            regions=tuple(regions),
            replace=replace,
            expect=expect,
            reason=reason,
        )
        return self._call("POST", "/v1/catalog", CatalogUpdate, body=body)
