"""What machines and accelerators are called, and what they have: names are matched here and nowhere else."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field
from datetime import date


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """One accelerator. `memory_bytes` is what the driver reports where known: nominal sizes overstate by up to 7 %.

    `dense_tflops` maps fp16, bf16, fp8, int8_tops, fp4 to dense (not sparse) peak figures.
    """

    id: str
    name: str
    vendor: str
    architecture: str
    memory_bytes: int
    memory_nominal_gib: float
    bandwidth_bytes_per_s: int
    dense_tflops: dict[str, float]
    interconnect: str
    interconnect_bytes_per_s: int
    power_w: int
    aliases: tuple[str, ...]
    as_of: str
    sources: tuple[str, ...]
    estimated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceType:
    """What a cloud sells, in one region. None: the source did not say. `accelerators` below 1 is a share of one."""

    cloud: str
    name: str
    region: str
    accelerators: float
    accelerator: str
    cpus: float | None
    memory_bytes: int | None
    disk_bytes: int | None
    network_gbps: float | None
    rdma_gbps: float | None
    price_microusd_per_hour: int | None
    spot_microusd_per_hour: int | None
    price_as_of: date
    quota_family: str
    status: str
    retirement_date: date | None
    as_of: str
    sources: tuple[str, ...]
    estimated: bool

    def is_retired(self, today: date) -> bool:
        return self.status == "retired" or (self.retirement_date is not None and self.retirement_date <= today)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """The catalogue's hardware, as decisions see it. Empty means: nothing is known beyond the names themselves."""

    accelerators: tuple[Accelerator, ...] = ()
    instance_types: tuple[InstanceType, ...] = ()
    _by_type: dict[str, InstanceType] = field(init=False, repr=False, compare=False)
    _by_name: dict[str, Accelerator] = field(init=False, repr=False, compare=False)
    _named: tuple[tuple[frozenset[str], Accelerator], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        names: dict[str, Accelerator] = {}
        for item in self.accelerators:
            for name in (item.id, item.name, *item.aliases):
                names.setdefault(_plain(name), item)
        types: dict[str, InstanceType] = {}
        for kind in self.instance_types:  # the first region of a type stands for it; the operator's rows come first
            types.setdefault(kind.name.lower(), kind)
        object.__setattr__(self, "_by_type", types)
        object.__setattr__(self, "_by_name", names)
        object.__setattr__(self, "_named", tuple((_row_words(item), item) for item in self.accelerators))

    def accelerator(self, name: str) -> Accelerator | None:
        """The one accelerator a name means: its id, its full name, an alias, or words that fit only one."""
        known = self._by_name.get(_plain(name))
        if known is not None:
            return known
        fitting = self.accelerators_like(name)
        return fitting[0] if len(fitting) == 1 else None

    def accelerators_like(self, name: str) -> tuple[Accelerator, ...]:
        """Every accelerator a name may mean: `h100` is each H100, `h100-80gb` each with 80 GB."""
        words = _words(name)
        return tuple(item for known, item in self._named if words and _within(words, known))

    def same_accelerator(self, asked: str, offered: str) -> bool:
        """Whether what a node has is what was asked for; a family name is met by each of its members."""
        if not asked:
            return True
        row = self.accelerator(offered)
        words = _words(offered) | (_row_words(row) if row is not None else frozenset())
        if _within(_words(asked), words):
            return True
        # A driver may not tell two boards of one chip apart: then either is taken for what was asked.
        wanted = self.accelerator(asked)
        return row is None and wanted is not None and wanted in self.accelerators_like(offered)

    def instance_type(self, name: str) -> InstanceType | None:
        return self._by_type.get(name.lower())

    def near_accelerators(self, name: str, count: int = 3) -> tuple[str, ...]:
        """Catalogue names that look like a misspelt one."""
        names = {_plain(alias): alias.lower() for item in self.accelerators for alias in (*item.aliases, item.id)}
        return tuple(names[close] for close in difflib.get_close_matches(_plain(name), names, count, 0.5))


def _within(asked: frozenset[str], offered: frozenset[str]) -> bool:
    # `sxm` is asked for, `sxm4` and `sxm5` are sold.
    return all(word in offered or (word == "sxm" and any(o.startswith("sxm") for o in offered)) for word in asked)


def _row_words(item: Accelerator) -> frozenset[str]:
    return _words(item.id) | _words(item.name)


def _words(name: str) -> frozenset[str]:
    """`NVIDIA A100-SXM4-80GB` → a100, sxm4, 80gb. The maker and the word GPU say nothing a model name does not."""
    found = re.findall(r"[a-z0-9.]+", re.sub(r"(\d+)\s*(gib|gb|g)\b", r"\1gb", name.lower()))
    return frozenset(found) - {"nvidia", "amd", "intel", "google", "gpu", "tesla", "hbm3", "hbm2e"}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]|nvidia|tesla", "", name.lower())
