"""Machines in a message: how many, of which kind, with which accelerators, in which cloud and region."""
# ruff: noqa: E501 - a pattern broken over several lines is harder to read than a long one

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import lru_cache

from groundplane.domain.intake.lexicon import InstanceName, Lexicon, squeezed
from groundplane.domain.intake.numbers import APPROXIMATE, COUNT, NUMBER, Found, number, plain_number, rx

_MACHINE = (
    r"(?:nodes?|vms?|vm's|machines?|servers?|instances?|boxes|box|hosts?|virtual machines?|workstations?|pods?|slices?)"
)
_CARD = r"(?:gpus?|gpu's|gpu cards?|cards?|accelerators?|chips?|tpus?|graphics cards?)"
_LOOSE = (
    r"(?:(?:new|more|additional|extra|dedicated|spot|preemptible|on-demand|big|beefy|large|small|nvidia|amd|cloud|azure|aws|gcp|"
    r"google|linux|ubuntu|bare[ -]metal|of the|of|our|reserved|gpu|gpu-enabled|gpu-backed|high-end|modern|fast|decent|tesla|"
    r"compute|worker|training|inference|ml|ai|identical|powerful|single|separate|physical)[ -])"
)
_NOT_A_CARD = {
    "l4": re.compile(r" ?(?:/ ?l7|load|lb|proxy|balanc|and l7|firewall|rout)"),
    "t4": re.compile(r" ?(?:slip|form|tax|phage)"),
    "a10": re.compile(r" ?(?:highway|road)"),
    "l40": re.compile(r" ?(?:highway|road)"),
    "a40": re.compile(r" ?(?:highway|road)"),
}


def hardware(low: str, lexicon: Lexicon) -> Iterator[Found]:
    """Counts, accelerators, instance types, clouds and regions. The same place may give several facts."""
    pieces: list[str] = []
    at = 0
    for found in instance_types(low, lexicon):
        yield found
        yield from _counted_instances(low, found)
        # `a2-highgpu-8g` holds no A2 card, `Standard_NC24ads_A100_v4` no count of 24.
        pieces += low[at : found.start], "_" * (found.end - found.start)
        at = found.end
    rest = "".join([*pieces, low[at:]])
    yield from _accelerators(rest, lexicon)
    yield from _unknown_cards(rest, lexicon)
    yield from _without(rest)
    yield from _quotas(low)
    yield from _clouds(low)
    yield from _regions(low, lexicon)


# ---------------------------------------------------------------- instance types

_AZURE = r"(?:standard[_ ])?(?:nc|nd|nv|ng|nx|d|ds|e|f|b|m|l|dc|hb|hc)\d{1,3}[a-z]{0,6}(?:[_ ][a-z0-9]{2,10}){0,2}[_ ]v\d\b|standard_[a-z]{1,3}\d{1,3}[a-z0-9_]{0,24}\b"
_AWS = r"\b[a-z]{1,4}\d{1,2}[a-z]{0,4}(?:-[a-z0-9]{2,6})?\.(?:\d{1,3}xlarge|\d{0,3}xl\b|xlarge|large|medium|small|micro|nano|metal)\b"
_GCP = r"\b(?:a2|a3|a4|a4x|g2|g4|n1|n2|n2d|n4|e2|c2|c2d|c3|c3d|c4|t2a|t2d|m1|m2|m3|h3)-(?:highgpu|megagpu|ultragpu|edgegpu|standard|highmem|highcpu|megamem|ultramem|micro|small|medium)(?:-\d{1,3}g?)?\b|\b(?:tpu-)?v(?:5litepod|5p|5e|6e|4)-\d{1,4}\b"
_OCI = r"\b(?:bm|vm)\.(?:gpu|standard|optimized|denseio|dense)[\w.-]*\w"
_INSTANCE = re.compile(rf"(?<![\w.-])(?:(?P<azure>{_AZURE})|(?P<oci>{_OCI})|(?P<aws>{_AWS})|(?P<gcp>{_GCP}))")
_NAMED_FAMILY = {
    "azure": ("nc", "nd", "nv", "ng"),
    "aws": ("p", "g", "trn", "inf", "dl"),
    "gcp": ("a2", "a3", "a4", "g2", "g4", "v", "tpu"),
}


def instance_types(low: str, lexicon: Lexicon) -> Iterator[Found]:
    """Names of instance types; one the catalogue does not know says which ones come near."""
    for match in _INSTANCE.finditer(low):
        written = match[0]
        known = lexicon.instance(written)
        if known is not None:
            yield Found("instance_type", known.name, match.start(), match.end())
            continue
        if "_" not in written and match["azure"] and " " in written and not re.search(r"^n[cdvg]|^standard", written):
            continue  # `b200 gpu v2` is no machine.
        near = near_instances(written.replace(" ", "_"), lexicon)
        note = "not in the catalogue" + (f"; near it: {', '.join(near)}" if near else "")
        yield Found("instance_type", written.replace(" ", "_"), match.start(), match.end(), "", note)


def near_instances(written: str, lexicon: Lexicon) -> tuple[str, ...]:
    """Up to three names of the catalogue that look like a misspelt one."""
    names = tuple(sorted(lexicon.instances))
    return tuple(dict.fromkeys(lexicon.instances[close].name for close in _near(written.lower(), names)))[:3]


@lru_cache(maxsize=256)
def _near(written: str, names: tuple[str, ...]) -> tuple[str, ...]:
    # The first letters say the cloud and the family: comparing with those alone keeps a long list cheap.
    start = written.removeprefix("standard_")[:1]
    close = [name for name in names if name.removeprefix("standard_")[:1] == start]
    return tuple(difflib.get_close_matches(written, close, 5, 0.72))


def is_accelerated(name: str, lexicon: Lexicon) -> bool | None:
    """Whether a type has an accelerator: by the catalogue, else by its cloud's naming. None when neither says."""
    known: InstanceName | None = lexicon.instance(name)
    if known is not None:
        return known.accelerators > 0
    match = _INSTANCE.match(name.lower())
    if match is None or match.lastgroup is None:
        return None
    if match.lastgroup == "oci":
        return ".gpu" in name.lower()
    plain = name.lower().removeprefix("standard_")
    letters = plain if match.lastgroup == "gcp" else re.match(r"[a-z]*", plain)[0]  # type: ignore[index]
    families = _NAMED_FAMILY[match.lastgroup]
    return letters.startswith(families) if match.lastgroup != "aws" else letters in {*families, "gr"}


def _counted_instances(low: str, found: Found) -> Iterator[Found]:
    before = re.search(
        rf"({COUNT})~(?:\(\w+\)~)?(?:x|\*|of)?~{_LOOSE}{{0,3}}$".replace("~", " ?"),
        low[max(0, found.start - 48) : found.start],
    )
    if before is not None:
        begins = max(0, found.start - 48) + before.start()
        yield Found("machines", plain_number(number(before[1])), begins, found.end)
        return
    after = re.match(r" ?(?:x|\*) ?(\d{1,4})\b(?! ?gpu)", low[found.end : found.end + 8])
    if after is not None:
        yield Found("machines", int(after[1]), found.start, found.end + after.end())


# ---------------------------------------------------------------- accelerators and counts


@lru_cache(maxsize=8)
def _patterns(family: str) -> dict[str, re.Pattern[str]]:
    card = rf"(?:nvidia |amd |tesla )?(?P<card>{family})s?"
    size = r"(?:[ -]?(?:sxm\d?|pcie|nvl|nvlink))?(?:[ -]?\(?(?P<size>\d{2,3})~-?gi?b?\b(?! (?:of )?(?:ram|disk|data))\)?)?(?:[ -]?(?:sxm\d?|pcie|nvl|nvlink))?"
    many = rf"(?P<many>{COUNT})"
    each = rf"(?P<each>{NUMBER}|{COUNT})"
    return {
        "grid": rx(rf"{many}~[x*]~(?P<each>\d{{1,3}})~(?:x~)?(?:(?:{card}{size})|(?:nvidia )?gpus?)\b"),
        "grid_after": rx(rf"{many}~{_LOOSE}{{0,3}}{_MACHINE}~x~(?P<each>\d{{1,3}})~(?:x~)?(?:(?:{card}{size})|{_CARD})"),
        "each": rx(
            rf"{many}~(?:x~)?{_LOOSE}{{0,4}}(?:{card}{size} )?{_MACHINE},?~(?:each )?(?:with|having|w/|of|at|containing|x)~(?:of )?(?:each )?"
            rf"(?:a total of )?{each}~(?:x~)?{_LOOSE}{{0,3}}(?:(?P<card2>{family})s?(?:[ -]?(?P<size2>\d{{2,3}})~gb)?(?: {_CARD})?|{_CARD})"
        ),
        "dashed": rx(rf"{many}~(?:x~)?(?P<each>\d{{1,3}})(?:[x-]|-?x-?)(?:{card}{size}|gpu)[ -](?:gpu )?{_MACHINE}\b"),
        "one_of": rx(rf"(?<![\w.])(?P<each>\d{{1,3}})(?:[x-]|-?x-?)(?:{card}{size}|gpu)[ -](?:gpu )?{_MACHINE}\b|\b(?:a|an|one|each) (?P<each2>\d{{1,3}})~x?~(?:{card.replace('card>', 'card2>')}|gpu) (?:gpu )?(?:node|vm|box|machine|server|instance|host)\b"),
        "per": rx(rf"(?P<each>{COUNT})(?: |~x~){_LOOSE}{{0,2}}(?:{card}{size}(?: {_CARD})?|{_CARD})(?:~/~| (?:per|each|in each|on each|a)\b~)(?:{_MACHINE})?"),
        "machines": rx(rf"{many}~(?:x~)?{_LOOSE}{{0,4}}(?:{card}{size}~-?(?:gpu )?{_LOOSE}{{0,2}})?{_MACHINE}\b(?! ?(?:pending|stuck|crash))"),
        "cards": rx(rf"{many}~(?:x~|\*~|of the |of )?{_LOOSE}{{0,3}}{card}{size}(?: {_CARD})?(?![\w-]*\d)"),
        "cards_after": rx(rf"\b(?P<card>{family})s?{'' if not family else size}~(?:gpus?~)?(?:x|\*|:)~(?P<many>\d{{1,4}})\b(?!~(?:gb|k|%))"),
        "gpus": rx(rf"(?P<many>{COUNT}|\b(?:a )?single)~(?:x~|\*~)?{_LOOSE}{{0,3}}(?:{NUMBER}~gb )?{_CARD}\b(?!~(?:vms?|nodes?|machines?|servers?|instances?|hosts?|hours?|h\b|memory|quota|boxes|box|/))"),
        "gpu_count": rx(r"\b(?:number of |num[ _]|# ?of )?gpus?(?: count)?~[:=]~(?P<many>\d{1,4})\b"),
        "range": rx(rf"(?<![\w.])(?P<low>[1-9]\d{{0,3}})~(?:-|to|or)~(?P<high>\d{{1,4}})~{_LOOSE}{{0,3}}(?:{card}{size}|{_CARD}|{_MACHINE})\b"),
        "alone": rx(rf"(?:(?<![\w./-])|(?<=\dx)){card}{size}(?![\w]|-\w|\.\d)"),
    }  # fmt: skip


def _accelerators(low: str, lexicon: Lexicon) -> Iterator[Found]:
    patterns = _patterns(lexicon.family_pattern)
    taken: list[tuple[int, int]] = []
    by_place: dict[int, tuple[int, list[Found]]] = {}
    for order in (
        "range",
        "grid",
        "grid_after",
        "each",
        "dashed",
        "one_of",
        "machines",
        "per",
        "cards",
        "cards_after",
        "gpus",
        "gpu_count",
    ):
        for match in patterns[order].finditer(low):
            begins = match.start()
            if begins in by_place or _is_other(low, match):
                continue
            by_place[begins] = (match.end(), list(_counts(order, match)))
    for begins in sorted(by_place):
        end, facts = by_place[begins]
        if taken and begins < taken[-1][1]:
            continue  # The longer wording has been read already.
        taken.append((begins, end))
        minus = low[begins - 1 : begins] == "-" and low[max(0, begins - 2) : begins - 1] == " "
        yield from (_impossible(fact, low) if minus or _is_no_count(fact) else fact for fact in facts)
    if not any(fact.name in _COUNTED for _, facts in by_place.values() for fact in facts):
        yield from _labelled(low, patterns["alone"])
    for match in patterns["alone"].finditer(low):
        if not _is_other(low, match):
            yield from _card(match, "card", "size", lexicon)


_COUNTED = frozenset({"machines", "accelerators", "accelerators_per_machine"})


def _is_no_count(fact: Found) -> bool:
    return fact.name in _COUNTED and (isinstance(fact.value, float) or (fact.name == "machines" and fact.value == 0))


def _impossible(fact: Found, low: str) -> Found:
    """A count that nobody can have: part of a machine, none of them, less than none."""
    written = low[max(0, fact.start - 1) : fact.end].strip()
    return Found("impossible", written, fact.start, fact.end, "", f"no number of {fact.name.replace('_', ' ')}")


_QUANTITY = rx(r"\b(?:qty|quantity|how many|count)~[:=]~(?P<many>\d{1,4})\b")


def _labelled(low: str, card: re.Pattern[str]) -> Iterator[Found]:
    """`qty: 6` in a form that names a card and no other count."""
    found = _QUANTITY.search(low)
    if found is not None and card.search(low):
        yield Found("accelerators", int(found["many"]), found.start(), found.end(), "", "read as cards, not machines")


def _is_other(low: str, match: re.Match[str]) -> bool:
    card = match.groupdict().get("card")
    other = _NOT_A_CARD.get(card or "")
    return other is not None and other.match(low, match.end("card")) is not None


def _counts(order: str, match: re.Match[str]) -> Iterator[Found]:
    groups = match.groupdict()
    start, end = match.span()
    if order == "range":
        name = "machines" if re.search(rf"{_MACHINE}$", match[0]) else "accelerators"
        yield Found(
            name, f"{groups['low']} to {groups['high']}", start, end, "", "a range: which number is planned for?"
        )
        return
    many = groups.get("many")
    each = groups.get("each") or groups.get("each2")
    note = f"{many!r} read as 2" if many and " ".join(many.split()) in APPROXIMATE else ""
    if order in {"grid", "grid_after", "each", "dashed"}:
        machines, per_machine = number(str(many)), number(str(each))
        yield Found("machines", plain_number(machines), start, end, "", note)
        yield Found("accelerators_per_machine", plain_number(per_machine), start, end)
        return
    if order in {"one_of", "per"}:
        yield Found("accelerators_per_machine", plain_number(number(str(each))), start, end)
        return
    yield Found(
        "machines" if order == "machines" else "accelerators", plain_number(number(str(many))), start, end, "", note
    )


def _card(match: re.Match[str], name: str, size: str, lexicon: Lexicon) -> Iterator[Found]:
    family = lexicon.family(match[name])
    memory = match.groupdict().get(size)
    known = lexicon.families.get(family, ())
    unknown = "not in the catalogue" if lexicon.accelerators else ""
    sizes = sorted({item.memory_gb for item in known})
    slug = family.replace(" ", "-")
    if memory:
        note = "" if not sizes or int(memory) in sizes else f"the catalogue knows it with {_listed(sizes)} GB"
        yield Found("accelerator", f"{slug}-{memory}gb", match.start(), match.end(), "", note)
        return
    note = f"comes with {_listed(sizes)} GB" if len(sizes) > 1 else "" if known else unknown
    yield Found("accelerator", slug, match.start(), match.end(), "", note)


_CARD_LIKE = rx(
    rf"(?<![\w./-])(?:nvidia )?(?P<card>(?:rtx ?|gtx ?)?(?:[abhlvp]|mi)\d{{2,4}}[a-z]?)s?(?=~-?(?:\d{{2,3}}~-?(?:gb|gib|gig)\b|{_CARD}))"
)


def _unknown_cards(low: str, lexicon: Lexicon) -> Iterator[Found]:
    """`A1000 80GB`: written like a card, and none: with those that come near."""
    for match in _CARD_LIKE.finditer(low):
        card = squeezed(match["card"])
        if card in lexicon.spoken or card.rstrip("s") in lexicon.spoken:
            continue
        near = difflib.get_close_matches(card, sorted(lexicon.spoken), 3, 0.7)
        families = list(dict.fromkeys(lexicon.spoken[name] for name in near))
        note = "not in the catalogue" + (f"; near it: {', '.join(families)}" if near else "")
        yield Found("accelerator", card, match.start(), match.end(), "", note)


_WITHOUT = rx(
    r"\b(?:no|without(?: any)?) (?:gpus?|accelerators?)\b(?! ?(?:left|available|quota|free|yet|anywhere|here|in stock))|\bcpu[- ]only\b"
)


def _without(low: str) -> Iterator[Found]:
    for match in _WITHOUT.finditer(low):
        yield Found("accelerators", 0, match.start(), match.end())


# ---------------------------------------------------------------- quotas stated in the message

_UNIT = r"~(?P<unit>v?-?cpus?|v?-?cores?|gpus?|cards?)?"
_QUOTAS = (
    rx(rf"\bused (?:up )?(?:all )?(?P<used>\d{{1,6}}) (?:out )?of (?:our |the )?(?P<limit>\d{{1,6}}){_UNIT}"),
    rx(rf"(?<![\w.])(?P<used>\d{{1,6}})~(?:of|out of|/)~(?P<limit>\d{{1,6}}){_UNIT} (?:quota )?(?:are |is |already |all )*(?:used|in use|taken|gone|consumed)\b"),
    rx(rf"(?<![\w.])(?P<left>\d{{1,6}})~(?:of|out of|/)~(?P<limit>\d{{1,6}}){_UNIT} (?:quota )?(?:are |is )?(?:left|free|available|remaining)\b"),
    rx(rf"\bquota(?:~(?:there|here|is|of|at|:|=|shows|says|used|currently|still))*~(?P<used>\d{{1,6}})~(?:of|out of|/)~(?P<limit>\d{{1,6}}){_UNIT}"),
    rx(rf"\bquota(?: (?:there|here|is|of|at|shows|says|currently|still|only))*~[:=]?~(?P<limit>\d{{1,6}}|zero)\b{_UNIT}(?!~(?:%|k\b|m\b|tpm|rpm|tokens|requests|gb|tb|of|/))"),
    rx(r"\b(?P<limit>zero|no) (?:gpu |vcpu |cpu )?quota\b(?P<unit>)"),
)  # fmt: skip


def _quotas(low: str) -> Iterator[Found]:
    """What somebody says of a quota: `96 of 96 used`, `quota is 0`. The value is used/limit, the unit vCPU or GPU."""
    ends = -1
    found = sorted((match for pattern in _QUOTAS for match in pattern.finditer(low)), key=lambda each: each.start())
    for match in found:
        if match.start() < ends:
            continue
        ends = match.end()
        parts = match.groupdict()
        limit = 0 if parts["limit"] in ("zero", "no") else int(parts["limit"])
        used = limit - int(parts["left"]) if parts.get("left") else int(parts.get("used") or 0)
        near = low[max(0, match.start() - 60) : match.end() + 24]
        counts_cpus = re.search(r"v?-?cpus?|cores", parts["unit"] or near)
        yield Found("quota", f"{used} of {limit} used", match.start(), match.end(), "vCPU" if counts_cpus else "GPU")


def _listed(sizes: list[int]) -> str:
    return " or ".join(str(size) for size in sizes)


# ---------------------------------------------------------------- clouds and regions

_CLOUDS = (
    (r"azure|microsoft cloud|aks\b|azureml|azure ml", "azure"),
    (r"\baws\b|amazon web services|\bec2\b|\bsagemaker\b|\beks\b|\bbedrock\b", "aws"),
    (r"\bgcp\b|google cloud|\bgke\b|vertex ai|\bgce\b", "gcp"),
    (r"\boci\b|oracle cloud", "oci"),
    (r"\blambda labs\b|\blambda cloud\b", "lambda"),
    (r"\bcoreweave\b", "coreweave"),
    (r"\brunpod\b", "runpod"),
    (r"\bnebius\b", "nebius"),
    (r"\bon-?prem(?:ises?)?\b|\bour own (?:data ?cent(?:er|re)|hardware|cluster)\b|\bbare[ -]metal\b", "on-prem"),
)
_CLOUD = tuple(
    (re.compile(rf"\b(?:{pattern})\b" if pattern[0] != "\\" else pattern), cloud) for pattern, cloud in _CLOUDS
)
_AWS_REGION = r"(?:us|eu|ap|ca|sa|me|af|il|mx)-(?:gov-)?(?:north|south|east|west|central|northeast|southeast|northwest|southwest)-\d[a-z]?"
_GCP_REGION = r"(?:us|europe|asia|australia|northamerica|southamerica|me|africa)-(?:north|south|east|west|central|northeast|southeast|northwest|southwest)\d{1,2}(?:-[a-f])?"
_AZURE_REGION = (
    r"(?:east|west|central|north central|south central|west central) ?us ?[23]?|(?:north|west) ?europe|uk ?(?:south|west)"
    r"|france ?central|germany ?west ?central|sweden ?central|switzerland ?north|norway ?east|poland ?central|italy ?north"
    r"|spain ?central|canada ?(?:central|east)|brazil ?south|japan ?(?:east|west)|korea ?central|(?:south|central) ?india"
    r"|(?:east|southeast) ?asia|australia ?east|uae ?north|qatar ?central|south ?africa ?north|israel ?central"
)
_REGION = re.compile(
    rf"(?<![\w-])(?:(?P<aws>{_AWS_REGION})|(?P<gcp>{_GCP_REGION})|(?P<azure>{_AZURE_REGION}))(?![\w-])"
)


def _clouds(low: str) -> Iterator[Found]:
    for pattern, cloud in _CLOUD:
        for match in pattern.finditer(low):
            note = "" if cloud.split("-")[0] in match[0] else f"{match[0]} is part of {cloud}"
            yield Found("cloud", cloud, match.start(), match.end(), "", note)


def _regions(low: str, lexicon: Lexicon) -> Iterator[Found]:
    for match in _REGION.finditer(low):
        written = match[0].replace(" ", "") if match["azure"] else match[0]
        if (
            match["azure"]
            and written in {"eastus", "westus", "centralus"}
            and " us" in match[0]
            and _is_place(low, match)
        ):
            continue
        clouds = lexicon.clouds_of.get(written, ())
        note = f"a region of {' and '.join(clouds)}: the cloud must be named" if len(clouds) > 1 else ""
        yield Found("region", written, match.start(), match.end(), "", note)


def _is_place(low: str, match: re.Match[str]) -> bool:
    """`our west us office` is a place, not a data centre."""
    return re.match(r" (?:office|team|coast|customers|colleagues)", low[match.end() : match.end() + 12]) is not None
