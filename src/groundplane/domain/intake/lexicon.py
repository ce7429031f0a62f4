"""The names a message may use: accelerators, instance types, models, regions, terms. Passed in as values.

An empty lexicon works: then only spellings that name themselves (`p5.48xlarge`, `us-east-1`) are recognised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date

from groundplane.domain.hardware import Accelerator, Hardware, InstanceType
from groundplane.domain.sizing.model_shape import ModelShape

_VENDORS = r"^(?:nvidia|amd|intel|google)-"
_FORM = r"(?:pcie|sxm\d?|nvl|hbm\w+|server|blackwell)"


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceleratorName:
    """One accelerator: `family` is what people say (`a100`); a family may come with several memory sizes."""

    id: str
    family: str
    memory_gb: int
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceName:
    """One instance type. `accelerators` is 0 for a machine without any. None: the catalogue does not say."""

    name: str
    cloud: str
    accelerators: float = 0
    accelerator: str = ""
    cpus: float | None = None
    memory_bytes: int | None = None
    price_microusd_per_hour: int | None = None
    retired: bool = False
    retires_on: date | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelName:
    """One model of the catalogue."""

    id: str
    hf_id: str = ""
    parameters_billion: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sense:
    """One meaning of a term. `words` around the term speak for it; the first sense holds when none does."""

    means: str
    explanation: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A word of the field with its meanings, the usual one first."""

    term: str
    senses: tuple[Sense, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexicon:
    """Everything by name. Building one compiles its patterns: build it once and pass it along."""

    accelerators: tuple[AcceleratorName, ...] = ()
    instance_types: tuple[InstanceName, ...] = ()
    models: tuple[ModelName, ...] = ()
    regions: tuple[tuple[str, str], ...] = ()
    terms: tuple[Term, ...] = ()
    instances: dict[str, InstanceName] = field(init=False, repr=False, compare=False)
    families: dict[str, tuple[AcceleratorName, ...]] = field(init=False, repr=False, compare=False)
    family_pattern: str = field(init=False, repr=False, compare=False)
    spoken: dict[str, str] = field(init=False, repr=False, compare=False)
    model_ids: dict[str, ModelName] = field(init=False, repr=False, compare=False)
    clouds_of: dict[str, tuple[str, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        instances: dict[str, InstanceName] = {}
        for item in self.instance_types:
            for name in (item.name.lower(), item.name.lower().removeprefix("standard_")):
                instances.setdefault(name, item)
        families: dict[str, list[AcceleratorName]] = {}
        spoken: dict[str, str] = {}
        for named in self.accelerators:
            families.setdefault(named.family, []).append(named)
            for word in (named.family, *named.aliases):
                spoken.setdefault(squeezed(word), named.family)
        for family in (*_BUILT_IN, *families):
            spoken[squeezed(family)] = family
        clouds: dict[str, list[str]] = {}
        for cloud, region in self.regions:
            clouds.setdefault(region.lower(), []).append(cloud)
        self._set("instances", instances)
        self._set("families", {family: tuple(names) for family, names in families.items()})
        self._set("spoken", spoken)
        self._set("family_pattern", _alternatives({*_BUILT_IN, *(f for f in families), *_aliases(self.accelerators)}))
        self._set("model_ids", {model.id.lower(): model for model in self.models})
        self._set("clouds_of", {region: tuple(dict.fromkeys(names)) for region, names in clouds.items()})

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def family(self, written: str) -> str:
        """`A100`, `a 100`, `H100-SXM` → the family's name; what the catalogue does not know stays as written."""
        plain = squeezed(written)
        return self.spoken.get(plain, plain)

    def instance(self, written: str) -> InstanceName | None:
        """An instance type by its name, with or without Azure's `Standard_`."""
        return self.instances.get(written.lower().replace(" ", "_"))


_BUILT_IN = (
    "h100", "h200", "b200", "b300", "gb200", "gb300", "a100", "v100", "p100", "k80", "a10", "a10g", "a16", "a30", "a40",
    "l4", "l40", "l40s", "t4", "rtx 4090", "rtx 5090", "rtx 3090", "rtx a6000", "rtx 6000 ada", "mi210", "mi250",
    "mi250x", "mi300x", "mi325x", "mi355x", "tpu v4", "tpu v5e", "tpu v5p", "tpu v6e", "trillium", "gaudi 2", "gaudi 3",
    "trainium", "trainium2", "inferentia2", "gh200",
)  # fmt: skip
"""What people call accelerators, whether the catalogue has a row for them or not."""


def squeezed(name: str) -> str:
    """Letters and digits alone, in small letters."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def lexicon_of(
    hardware: Hardware, models: Iterable[ModelShape], terms: Iterable[Term], today: date, regions: Iterable[str] = ()
) -> Lexicon:
    """The catalogue's names. `regions` are `cloud/region` texts beyond those that have instance types."""
    own = ((item.cloud, item.region) for item in hardware.instance_types)
    more = ((cloud, region) for cloud, _, region in (text.partition("/") for text in regions))
    return Lexicon(
        accelerators=tuple(_accelerator(item) for item in hardware.accelerators),
        instance_types=tuple(_instance(item, today) for item in hardware.instance_types),
        models=tuple(ModelName(id=m.id, hf_id=m.hf_id, parameters_billion=m.params / 1e9) for m in models),
        regions=tuple(dict.fromkeys((*own, *more))),
        terms=tuple(terms),
    )


def _accelerator(item: Accelerator) -> AcceleratorName:
    words = re.sub(_VENDORS, "", item.id).split("-")
    family = " ".join(word for word in words if not re.fullmatch(rf"\d+gb|{_FORM}", word))
    return AcceleratorName(
        id=item.id,
        family=family.replace("gaudi2", "gaudi 2").replace("gaudi3", "gaudi 3"),
        memory_gb=round(item.memory_nominal_gib),
        aliases=tuple(alias.lower() for alias in item.aliases),
    )


def _instance(item: InstanceType, today: date) -> InstanceName:
    return InstanceName(
        name=item.name,
        cloud=item.cloud,
        accelerators=item.accelerators,
        accelerator=item.accelerator,
        cpus=item.cpus,
        memory_bytes=item.memory_bytes,
        price_microusd_per_hour=item.price_microusd_per_hour,
        retired=item.is_retired(today),
        retires_on=item.retirement_date,
    )


def _aliases(accelerators: Iterable[AcceleratorName]) -> set[str]:
    # An alias with a memory size in it (`A100-40GB`) is read in two steps, as the plain name and its size.
    return {alias for item in accelerators for alias in item.aliases if not re.search(r"\d\s?gb", alias)}


def _alternatives(names: Iterable[str]) -> str:
    """One pattern for all names, the longest first; words may be joined by a space, a hyphen or nothing."""
    longest_first = sorted({name.lower() for name in names}, key=lambda name: (-len(name), name))
    flexible = (re.sub(r"\\?[ -]", "[ -]?", re.escape(name)) for name in longest_first)
    return "(?:" + "|".join(dict.fromkeys(flexible)) + ")"
