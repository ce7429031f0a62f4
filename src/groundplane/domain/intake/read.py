"""`read(message)`: text in, work items out. Deterministic, linear in the length, and it never raises.

readable → facts by place → pieces by kind → items → questions and risks → jargon.
"""
# ruff: noqa: E501 - tables of words and questions read better with one row a line

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime

from groundplane.domain.intake import SPEC_KINDS, Contradiction, Fact, Intake, ItemKind, QuotaFact, Span, WorkItem
from groundplane.domain.intake.circumstances import Circumstances
from groundplane.domain.intake.dates import dates, impossible_days
from groundplane.domain.intake.facts import shown
from groundplane.domain.intake.hardware import hardware
from groundplane.domain.intake.jargon import explained
from groundplane.domain.intake.kinds import Group, Piece, groups, pieces
from groundplane.domain.intake.language import is_understood
from groundplane.domain.intake.lexicon import Lexicon
from groundplane.domain.intake.numbers import Found, quantities
from groundplane.domain.intake.questions import questions
from groundplane.domain.intake.risks import message_risks, risks
from groundplane.domain.intake.text import Readable, Sentence, readable
from groundplane.domain.intake.words import names

_SHARED_NAMES = """
    owner team project cost_center cloud region environment compliance budget end_date model parameters
    precision
"""
_SINGLE_NAMES = """
    accelerators accelerators_per_machine machines deadline end_date start_date owner project cost_center
    visibility budget finish_by duration tokens_per_minute requests_per_minute latency region cloud parameters method
    precision accelerator model
"""

SHARED = frozenset(_SHARED_NAMES.split())
"""Said once, these hold for every item that has none of its own."""
SINGLE = frozenset(_SINGLE_NAMES.split())
"""Facts an item has one value of: a second one contradicts the first."""
FACTS_MAX = 2_000
_SWALLOWED = {
    "latency": ("latency_change",), "parameters": ("instance_type",),
    **dict.fromkeys(("size", "dataset_size", "memory", "disk", "model_size"), ("accelerator", "accelerators", "accelerators_per_machine", "machines")),
}  # fmt: skip
"""Readings that give way to a longer one of another name: the 80 GB of `H100 80GB` are no data."""
_ONLY_FOR = {
    "metrics": {ItemKind.MONITORING}, "action": {ItemKind.LIFECYCLE}, "error": {ItemKind.INCIDENT},
    "group_by": {ItemKind.COST}, "people": {ItemKind.ACCESS}, "period": {ItemKind.COST},
}  # fmt: skip
"""Words that are facts for one kind of work only: `cost` is a metric where monitoring is asked for."""
_RENAMED = {"finish_by": (frozenset({ItemKind.CAPACITY, ItemKind.BATCH}), "deadline")}
"""Facts that only some kinds of work have, and what they are for the others: an endpoint has no result to wait for."""
_DECIDED = SPEC_KINDS | {ItemKind.LIFECYCLE, ItemKind.DATA, ItemKind.MONITORING}
"""Kinds that ask for one state of things: in an incident two latencies are a before and an after."""
_HARDWARE = frozenset({"machines", "accelerators", "accelerators_per_machine", "instance_type", "accelerator"})
_ORDERS = re.compile(
    r"\b(?:ignore|disregard|forget|override) (?:all |any |the |your |my )*(?:previous|prior|above|earlier|other|system)? ?(?:instructions?|rules|prompts?|polic(?:y|ies)|guardrails)\b"
    r"|\byou are now\b|\byou are (?:the |an? )?(?:approver|admin(?:istrator)?|assistant|bot|language model)\b|\bmark (?:this|it|the|my) (?:request )?(?:as )?approved\b|\b(?:do not|don'?t|never) (?:mention|report|show|list) (?:any |the |these )?(?:risks?|warnings?|problems?)\b|\bapproved\W{1,4}true\b|\bsystem prompt\b|\bapprove (?:this|it|everything) (?:automatically|immediately|yourself|without)\b|\bwithout (?:any )?approval\b|\bas an ai\b"
)
_ENGLISH_FREE = frozenset({"instance_type", "accelerator", "model", "region", "data_location", "address"})
"""Names that mean the same in every language."""


def read(message: str, lexicon: Lexicon, now: datetime, quotas: Sequence[QuotaFact] = ()) -> Intake:
    """Reads a message. `now` is timezone-aware UTC; `quotas` are what the clouds say they let us have."""
    text = readable(message)
    understood = [is_understood(text.low[s.start : s.end]) for s in text.sentences]
    found = _facts(text, understood, lexicon, now)
    parts, foreign = _parts(text, understood, found)
    by_piece, outside = _assign(parts, found)
    made, loose = groups(text.low, parts, [bool(each) for each in by_piece])
    facts_of = {id(part): facts for part, facts in zip(parts, by_piece, strict=True)}
    shared = _deduped(fact for part in loose for fact in facts_of[id(part)] if fact.name not in _ONLY_FOR)
    drafts = [(group, _deduped(f for part in group.pieces for f in facts_of[id(part)])) for group in made]
    everywhere = _deduped((*shared, *(f for _, facts in drafts for f in facts if f.name in SHARED)))
    items = [
        _item(number, group, facts, everywhere, text, lexicon, now, tuple(quotas))
        for number, (group, facts) in enumerate(drafts, start=1)
    ]
    if foreign or not items:
        items.append(_not_understood(len(items) + 1, foreign, message, text, outside if foreign else shared, lexicon))
    strange = tuple(text.clean.span(s.start, s.end) for s in foreign)
    return Intake(
        read_at=now,
        items=tuple(items),
        shared=_shared_only(everywhere, shared),
        risks=message_risks([text.clean.span(*match.span()) for match in _ORDERS.finditer(text.low)]),
        jargon=tuple(explained(text, lexicon)),
        corrections=tuple(each for each in text.corrections if not _inside(each.span, strange)),
        not_understood=strange,
        ignored=text.ignored,
    )


def _inside(span: Span, others: Sequence[Span]) -> bool:
    return any(other.start <= span.start and span.end <= other.end for other in others)


# ---------------------------------------------------------------- facts


def _facts(text: Readable, understood: Sequence[bool], lexicon: Lexicon, now: datetime) -> list[tuple[int, Fact]]:
    """Every fact with its place in the plain text, in order; overlapping readings of one name keep the longest."""
    low = text.low
    every = [
        *quantities(low),
        *dates(low, now),
        *impossible_days(low),
        *hardware(low, lexicon),
        *names(low, text.clean.plain, lexicon),
    ]
    every.sort(key=lambda found: (found.start, -found.end, found.name, str(found.value)))
    ends: dict[str, int] = {}
    kept: list[tuple[int, Fact]] = []
    at = 0
    for found in every:
        if found.start < ends.get(found.name, 0):
            continue
        while at < len(text.sentences) and text.sentences[at].end <= found.start:
            at += 1
        inside = at < len(text.sentences) and text.sentences[at].start <= found.start
        if inside and not understood[at] and found.name not in _ENGLISH_FREE:
            continue
        if any(found.start < ends.get(name, 0) and found.end <= ends[name] for name in _SWALLOWED.get(found.name, ())):
            continue
        ends[found.name] = max(found.end, ends.get(found.name, 0))
        kept.append((found.start, _fact(found, text)))
        if len(kept) == FACTS_MAX:
            break
    return kept


def _fact(found: Found, text: Readable) -> Fact:
    return Fact(
        name=found.name,
        value=found.value,
        text=text.clean.plain[found.start : found.end].replace("\n", " "),
        span=text.clean.span(found.start, found.end),
        unit=found.unit,
        note=found.note,
    )


def _parts(
    text: Readable, understood: Sequence[bool], found: Sequence[tuple[int, Fact]]
) -> tuple[list[Piece], list[Sentence]]:
    readable_ones = [s for s, known in zip(text.sentences, understood, strict=True) if known]
    foreign = [s for s, known in zip(text.sentences, understood, strict=True) if not known]
    places = [(place, fact.name) for place, fact in found if fact.name in _HARDWARE]
    parts = pieces(text.low, readable_ones, places)
    return parts, foreign


def _assign(parts: Sequence[Piece], found: Sequence[tuple[int, Fact]]) -> tuple[list[list[Fact]], tuple[Fact, ...]]:
    """Each fact to the piece it stands in, and what stands in none: in a sentence that was not understood."""
    by_piece: list[list[Fact]] = [[] for _ in parts]
    outside: list[Fact] = []
    at = 0
    for place, fact in found:
        while at + 1 < len(parts) and parts[at + 1].start <= place:
            at += 1
        inside = bool(parts) and parts[at].start <= place < parts[at].end
        (by_piece[at] if inside else outside).append(fact)
    return by_piece, _deduped(outside)


def _renamed(fact: Fact, kind: ItemKind) -> Fact:
    kinds, name = _RENAMED.get(fact.name, (frozenset({kind}), fact.name))
    return fact if kind in kinds else replace(fact, name=name)


def _deduped(facts: Iterator[Fact] | Sequence[Fact]) -> tuple[Fact, ...]:
    seen: dict[tuple[str, object, str, str], Fact] = {}
    for fact in facts:
        # The same latency as P50 and as P99 is two facts.
        key = (fact.name, fact.value, fact.unit, fact.note if fact.name in {"latency", "budget"} else "")
        seen.setdefault(key, fact)
    return tuple(seen.values())


def _shared_only(everywhere: Sequence[Fact], loose: Sequence[Fact]) -> tuple[Fact, ...]:
    return _deduped((*loose, *(fact for fact in everywhere if fact.name in SHARED)))


# ---------------------------------------------------------------- items


def _item(
    number: int, group: Group, facts: tuple[Fact, ...], everywhere: tuple[Fact, ...],
    text: Readable, lexicon: Lexicon, now: datetime, quotas: tuple[QuotaFact, ...],
) -> WorkItem:  # fmt: skip
    facts = tuple(_renamed(fact, group.kind) for fact in facts if group.kind in _ONLY_FOR.get(fact.name, {group.kind}))
    own = {fact.name for fact in facts}
    borrowed = tuple(fact for fact in everywhere if fact.name not in own and _lends(fact, group.kind))
    known = (*facts, *borrowed)
    contradictions = _contradictions(facts) if group.kind in _DECIDED else ()
    about = Circumstances(group.kind, known, contradictions, quotas, lexicon, now)
    return WorkItem(
        number=number,
        kind=group.kind,
        title=_title(group.kind, facts),
        sentences=tuple(text.clean.span(*_trimmed(text.low, part)) for part in group.pieces),
        facts=facts,
        questions=questions(group.kind, known, contradictions, lexicon),
        risks=risks(about),
        contradictions=contradictions,
    )


def lent(intake: Intake, item: WorkItem) -> tuple[Fact, ...]:
    """What holds for the whole message and so for an item that says nothing of it itself."""
    own = {fact.name for fact in item.facts}
    return tuple(fact for fact in intake.shared if fact.name not in own and _lends(fact, item.kind))


def _lends(fact: Fact, kind: ItemKind) -> bool:
    """The model that is fine-tuned is not yet the registered version that is served: that one is asked for."""
    return not (fact.name in {"model", "budget", "end_date"} and kind is not ItemKind.CAPACITY)


def _trimmed(low: str, part: Piece) -> tuple[int, int]:
    start, end = part.start, part.end
    while start < end - 1 and low[start] in " \n,;:-*":
        start += 1
    tail = re.search(
        r"(?:[\s,;:/&+-]|\b(?:and|plus|also|then|but|with|as well as|along with|additionally)\b)+$",
        low[max(start, end - 40) : end],
    )
    end = max(start + 1, end - len(tail[0])) if tail else end
    return start, end


def _contradictions(facts: Sequence[Fact]) -> tuple[Contradiction, ...]:
    """For each fact that can have one value only: the first value and the first other one."""
    first: dict[str, Fact] = {}
    found: dict[str, Contradiction] = {}
    for fact in facts:
        if fact.name not in SINGLE:
            continue
        key = f"{fact.name}/{fact.note}" if fact.name in {"latency", "budget"} else fact.name
        before = first.setdefault(key, fact)
        if key not in found and before is not fact and _differs(before, fact):
            found[key] = Contradiction(fact=fact.name, first=before, second=fact)
    return tuple(found.values())


def _differs(one: Fact, other: Fact) -> bool:
    if (one.value, one.unit) == (other.value, other.unit):
        return False
    # `llama` is no other model than `llama-3.1-8b`, `a100` no other card than `a100-80gb`, QLoRA is a LoRA.
    left, right = str(one.value), str(other.value)
    if one.name in {"model", "accelerator", "region", "method"} and (left in right or right in left):
        return False
    return not (one.name == "machines" and other.unit != one.unit)


def _title(kind: ItemKind, facts: Sequence[Fact]) -> str:
    """One line for people: the kind and its most telling facts."""
    first: dict[str, Fact] = {}
    for fact in facts:
        first.setdefault(fact.name, fact)

    def word(name: str, template: str = "{}") -> str:
        value = shown(first[name]) if name in first else ""
        return template.format(value, s="" if value == "1" else "s") if value else ""

    heads = {
        ItemKind.CAPACITY: f"capacity for {first['workload'].value}" if "workload" in first else "capacity",
        ItemKind.BATCH: "batch inference",
        ItemKind.ENDPOINT: f"{word('visibility')} inference endpoint".strip(),
        ItemKind.MONITORING: f"{' and '.join(str(f.value) for f in facts if f.name == 'metrics')} monitoring".strip(),
        ItemKind.DATA: "data and storage",
        ItemKind.ACCESS: "access",
        ItemKind.INCIDENT: "incident",
        ItemKind.COST: "cost question",
        ItemKind.LIFECYCLE: f"{word('action')} something that runs".strip(),
        ItemKind.UNCLEAR: "unclear",
    }
    machines = word(
        "machines",
        "{} GPU machine{s}" if "machines" in first and "gpu" in first["machines"].text.lower() else "{} machine{s}",
    )
    details = (
        machines, word("accelerators_per_machine", "{} GPU{s} each"), word("accelerators", "{} GPU{s}"), word("accelerator"),
        word("instance_type"), word("model"), word("tokens_per_minute"), word("requests_per_second"), word("dataset_size"),
        word("deadline", "by {}"), word("finish_by", "result by {}"),
    )  # fmt: skip
    said = ", ".join(detail for detail in details if detail)
    return f"{heads[kind]}: {said}" if said else heads[kind]


def _not_understood(
    number: int, foreign: Sequence[Sentence], message: str, text: Readable, loose: tuple[Fact, ...], lexicon: Lexicon
) -> WorkItem:
    """What is left when nothing was asked for, or was asked for in words that are not read here."""
    spans = [text.clean.span(s.start, s.end) for s in foreign or text.sentences]
    kind = ItemKind.UNCLEAR
    title = "not understood: not written in English" if foreign else "unclear: no work is recognised in it"
    if not message.strip():
        title = "unclear: the message is empty"
    everything = (Span(start=0, end=len(message)),) if message else ()
    return WorkItem(
        number=number, kind=kind, title=title, sentences=tuple(spans) or everything,
        facts=loose, questions=questions(kind, (), (), lexicon),
    )  # fmt: skip
