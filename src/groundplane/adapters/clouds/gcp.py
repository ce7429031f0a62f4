"""Google Cloud as `gcloud` tells it: machine types with their accelerators, and quota of the region and the project.

Source: `gcloud compute machine-types list`, `regions describe`, `project-info describe`, each with `--format=json`.
A stopped machine of Google's takes neither CPU nor GPU quota, so none is listed as eating it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from groundplane.adapters.clouds.command import ask
from groundplane.domain.planning.recon import CloudSku, CloudView, Gap, Quota
from groundplane.errors import Unavailable
from groundplane.ports import Clock

MIB = 2**20
SIGN_IN = "gcloud auth login && gcloud config set project PROJECT"
_Parsed = TypeVar("_Parsed")


class GoogleCloud:
    """Implements `ports.CloudSource` with the operator's own `gcloud`."""

    cloud = "gcp"

    def __init__(self, clock: Clock, *, command: str = "gcloud", timeout_s: float = 90.0) -> None:
        self._clock = clock
        self._command = command
        self._timeout_s = timeout_s

    async def look(self, regions: Sequence[str]) -> list[CloudView]:
        """One view per region. A tool that is missing or not signed in is one gap, not one per region."""
        try:
            everywhere = await self._ask(["compute", "project-info", "describe"], lambda a: parse_quotas(a, "global"))
        except Unavailable as error:
            gap = Gap(cloud="gcp", region="", what="live data", why=error.message, hint=error.hint)
            return [CloudView(cloud="gcp", region="", source="gcloud", read_at=self._clock.now(), gaps=(gap,))]
        return list(await asyncio.gather(*(self._region(region, everywhere) for region in regions)))

    async def _region(self, region: str, everywhere: list[Quota]) -> CloudView:
        gaps: list[Gap] = []
        skus = quotas = None
        try:
            listed = ["compute", "machine-types", "list", f"--filter=zone~^{region}-"]
            skus = await self._ask(listed, parse_machine_types)
        except Unavailable as error:
            gaps.append(Gap(cloud="gcp", region=region, what="SKUs", why=error.message, hint=error.hint))
        try:
            described = ["compute", "regions", "describe", region]
            quotas = await self._ask(described, lambda answer: parse_quotas(answer, region))
        except Unavailable as error:
            gaps.append(Gap(cloud="gcp", region=region, what="quota", why=error.message, hint=error.hint))
        totals = [quota for quota in everywhere if quota.family == "GPUS_ALL_REGIONS"]
        return CloudView(
            cloud="gcp",
            region=region,
            source="gcloud",
            read_at=self._clock.now(),
            skus=None if skus is None else tuple(skus),
            quotas=None if quotas is None else (*quotas, *totals),
            gaps=tuple(gaps),
        )

    async def _ask(self, words: list[str], parse: Callable[[Any], _Parsed]) -> _Parsed:
        command = [self._command, *words, "--format=json", "--quiet"]
        answer = await asyncio.to_thread(ask, command, timeout_s=self._timeout_s, sign_in=SIGN_IN)
        try:
            return parse(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"gcloud {' '.join(words[:3])} answered in a shape that is not known: {error!r}"
            raise Unavailable(what, "gcloud version; a newer or older one may answer differently") from None


# ---------------------------------------------------------------- parsers


def parse_machine_types(answer: list[dict[str, Any]]) -> list[CloudSku]:
    """`gcloud compute machine-types list --format=json` → one SKU per name with the zones that have it."""
    zones: dict[str, set[str]] = {}
    entries: dict[str, dict[str, Any]] = {}
    for entry in answer:
        zones.setdefault(entry["name"], set()).add(entry["zone"].rsplit("/", 1)[-1])
        entries.setdefault(entry["name"], entry)
    found = []
    for name, entry in entries.items():
        cards = entry.get("accelerators") or ()
        gone = entry.get("deprecated") or {}
        found.append(
            CloudSku(
                name=name,
                cpus=float(entry["guestCpus"]),
                memory_bytes=int(entry["memoryMb"]) * MIB,
                accelerators=float(sum(int(card["guestAcceleratorCount"]) for card in cards)),
                accelerator=cards[0]["guestAcceleratorType"] if cards else "",
                restriction=f"{gone['state'].lower()} by Google" if gone.get("state") else "",
                zones=tuple(sorted(zones[name])),
            )
        )
    return found


def parse_quotas(answer: dict[str, Any], region: str) -> list[Quota]:
    """`gcloud compute regions describe` and `project-info describe` → their limits."""
    return [
        Quota(
            cloud="gcp",
            region=region,
            family=entry["metric"],
            unit="accelerator" if "GPUS" in entry["metric"] else "vCPU",
            used=float(entry["usage"]) if "usage" in entry else None,
            limit=float(entry["limit"]),
        )
        for entry in answer.get("quotas") or ()
        # Preemptible and committed machines count against limits of their own.
        if not entry["metric"].startswith(("PREEMPTIBLE_", "COMMITTED_"))
        and ("GPUS" in entry["metric"] or entry["metric"].endswith("CPUS"))
    ]
