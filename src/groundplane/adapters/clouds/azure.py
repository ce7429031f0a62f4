"""Azure as `az` tells it: sizes with their restrictions, quota used and granted, machines stopped but not deallocated.

Source: `az vm list-skus`, `az vm list-usage`, `az vm list -d`, each with `-o json`; their published shapes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from groundplane.adapters.clouds.command import ask
from groundplane.domain.planning.recon import CloudSku, CloudView, Gap, HaltedMachine, Quota
from groundplane.errors import Unavailable
from groundplane.ports import Clock

GIB = 2**30
SIGN_IN = "az login"
_Parsed = TypeVar("_Parsed")
_REASONS = {
    "NotAvailableForSubscription": "not available to this subscription",
    "QuotaId": "not sold with this kind of subscription",
}


class AzureCloud:
    """Implements `ports.CloudSource` with the operator's own `az`."""

    cloud = "azure"

    def __init__(self, clock: Clock, *, command: str = "az", timeout_s: float = 90.0) -> None:
        self._clock = clock
        self._command = command
        self._timeout_s = timeout_s

    async def look(self, regions: Sequence[str]) -> list[CloudView]:
        """One view per region. A tool that is missing or not signed in is one gap, not one per region."""
        machines: list[HaltedMachine] = []
        unlisted: list[Gap] = []
        try:
            machines = await self._ask(["vm", "list", "-d"], parse_halted)
        except Unavailable as error:
            if "not installed" in error.message or SIGN_IN in error.message:
                return [self._silent(error)]
            # Whoever may not list machines may still see sizes and quota.
            unlisted = [Gap(cloud="azure", region="", what="stopped machines", why=error.message, hint=error.hint)]
        return list(await asyncio.gather(*(self._region(region, machines, unlisted) for region in regions)))

    async def _region(self, region: str, machines: list[HaltedMachine], unlisted: list[Gap]) -> CloudView:
        gaps = list(unlisted)
        skus = quotas = None
        here = ["--location", region]
        try:
            skus = await self._ask(
                ["vm", "list-skus", *here, "--resource-type", "virtualMachines", "--all"], parse_skus
            )
        except Unavailable as error:
            gaps.append(Gap(cloud="azure", region=region, what="SKUs", why=error.message, hint=error.hint))
        try:
            quotas = await self._ask(["vm", "list-usage", *here], lambda answer: parse_usage(answer, region))
        except Unavailable as error:
            gaps.append(Gap(cloud="azure", region=region, what="quota", why=error.message, hint=error.hint))
        cpus = {sku.name: sku.cpus for sku in skus or ()}
        return CloudView(
            cloud="azure",
            region=region,
            source="az",
            read_at=self._clock.now(),
            skus=None if skus is None else tuple(skus),
            quotas=None if quotas is None else tuple(quotas),
            halted=tuple(
                replace(machine, cpus=cpus.get(machine.sku)) for machine in machines if machine.region == region
            ),
            gaps=tuple(gaps),
        )

    async def _ask(self, words: list[str], parse: Callable[[Any], _Parsed]) -> _Parsed:
        command = [self._command, *words, "-o", "json"]
        answer = await asyncio.to_thread(ask, command, timeout_s=self._timeout_s, sign_in=SIGN_IN)
        try:
            return parse(answer)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"az {' '.join(words[:2])} answered in a shape that is not known: {error!r}"
            raise Unavailable(what, "az version; a newer or older one may answer differently") from None

    def _silent(self, error: Unavailable) -> CloudView:
        gap = Gap(cloud="azure", region="", what="live data", why=error.message, hint=error.hint)
        return CloudView(cloud="azure", region="", source="az", read_at=self._clock.now(), gaps=(gap,))


# ---------------------------------------------------------------- parsers


def parse_skus(answer: list[dict[str, Any]]) -> list[CloudSku]:
    """`az vm list-skus -o json` → sizes. Restrictions of every zone or of the region are told; of some zones, named."""
    return [_sku(entry) for entry in answer if entry.get("resourceType", "virtualMachines") == "virtualMachines"]


def _sku(entry: dict[str, Any]) -> CloudSku:
    can = {each["name"]: each["value"] for each in entry.get("capabilities") or ()}
    zones = sorted({zone for place in entry.get("locationInfo") or () for zone in place.get("zones") or ()})
    return CloudSku(
        name=entry["name"],
        cpus=_number(can.get("vCPUs")),
        memory_bytes=None if (memory := _number(can.get("MemoryGB"))) is None else int(memory * GIB),
        accelerators=_number(can.get("GPUs")) or 0,
        quota_family=entry.get("family") or "",
        restriction=_restriction(entry.get("restrictions") or (), zones),
        zones=tuple(zones),
    )


def _restriction(restrictions: Sequence[dict[str, Any]], zones: Sequence[str]) -> str:
    for each in restrictions:
        if each["type"] == "Location":
            return _REASONS.get(each.get("reasonCode", ""), each.get("reasonCode") or "restricted")
    closed = sorted({zone for each in restrictions for zone in (each.get("restrictionInfo") or {}).get("zones") or ()})
    if not closed:
        return ""
    reason = restrictions[0].get("reasonCode", "")
    why = _REASONS.get(reason, reason or "restricted")
    return why if set(closed) >= set(zones) else f"{why} in zone {', '.join(closed)}"


def parse_usage(answer: list[dict[str, Any]], region: str) -> list[Quota]:
    """`az vm list-usage -o json` → limits in vCPUs; numbers come as text or as numbers, by the tool's version."""
    quotas = []
    for entry in answer:
        name = entry["name"]["value"]
        if name in ("availabilitySets", "virtualMachines", "virtualMachineScaleSets") or "Disk" in name:
            continue
        used, limit = _number(entry.get("currentValue")), _number(entry.get("limit"))
        quotas.append(Quota(cloud="azure", region=region, family=name, unit="vCPU", used=used, limit=limit))
    return quotas


def parse_halted(answer: list[dict[str, Any]]) -> list[HaltedMachine]:
    """`az vm list -d -o json` → machines that are stopped and not deallocated: they keep quota, and are billed."""
    return [
        HaltedMachine(
            cloud="azure",
            region=entry["location"],
            name=entry["name"],
            sku=entry["hardwareProfile"]["vmSize"],
            group=entry["resourceGroup"],
            state="stopped, not deallocated",
            cpus=None,
            hint=f"az vm deallocate -g {entry['resourceGroup']} -n {entry['name']}",
        )
        for entry in answer
        if (entry.get("powerState") or "").lower() == "vm stopped"
    ]


def _number(value: Any) -> float | None:
    return None if value is None or value == "" else float(value)
