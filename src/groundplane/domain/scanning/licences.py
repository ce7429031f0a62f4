"""Licences of models: what a file says, and whether a model may be offered under what is declared for it.

A small table, not a lawyer: it knows the licences that most models carry, says what can't be combined, and says when it
does not know. Sources: the licences' own texts; the SPDX list 3.27; GNU "Various licenses and comments"; Creative
Commons "Wiki/cc license compatibility" for adaptations.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Terms(StrEnum):
    """What a licence asks of whoever passes on something made from the work."""

    FREE = "asks for its notice"
    SHARE = "asks for the same licence"
    USE = "restricts what it is used for, and its restrictions travel along"
    NO_TRADE = "forbids commercial use"
    CLOSED = "forbids passing on what is made from it"


_FREE = ("apache-2.0", "mit", "mit-0", "bsd-2-clause", "bsd-3-clause", "isc", "zlib", "cc0-1.0", "cc-by-4.0",
         "cc-by-3.0", "unlicense", "cdla-permissive-2.0", "odc-by-1.0", "afl-3.0", "ecl-2.0", "bsl-1.0", "wtfpl",
         "0bsd", "postgresql", "artistic-2.0", "ms-pl", "ofl-1.1")  # fmt: skip
_SHARE = ("gpl-2.0", "gpl-3.0", "agpl-3.0", "lgpl-2.1", "lgpl-3.0", "mpl-2.0", "epl-2.0", "eupl-1.2", "cc-by-sa-4.0",
          "cc-by-sa-3.0", "odbl-1.0", "cdla-sharing-1.0")  # fmt: skip
_USE = ("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigscience-bloom-rail-1.0",
        "bigcode-openrail-m", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "deepseek",
        "apple-amlr", "tongyi-qianwen", "falcon-llm")  # fmt: skip
_NO_TRADE = ("cc-by-nc-4.0", "cc-by-nc-3.0", "cc-by-nc-2.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-3.0",
             "fair-noncommercial-research-license")  # fmt: skip
_CLOSED = ("cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-nd-3.0")
TERMS: dict[str, Terms] = {
    **dict.fromkeys(_FREE, Terms.FREE),
    **dict.fromkeys(_SHARE, Terms.SHARE),
    **dict.fromkeys(_USE, Terms.USE),
    **dict.fromkeys(_NO_TRADE, Terms.NO_TRADE),
    **dict.fromkeys(_CLOSED, Terms.CLOSED),
}
_ONWARD: dict[str, frozenset[str]] = {
    "mpl-2.0": frozenset({"gpl-2.0", "gpl-3.0", "lgpl-2.1", "lgpl-3.0", "agpl-3.0"}),
    "lgpl-2.1": frozenset({"gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0"}),
    "lgpl-3.0": frozenset({"gpl-3.0", "agpl-3.0"}),
    "gpl-3.0": frozenset({"agpl-3.0"}),
    "cc-by-sa-3.0": frozenset({"cc-by-sa-4.0"}),
    "cc-by-sa-4.0": frozenset({"gpl-3.0"}),
    "cc-by-nc-4.0": frozenset({"cc-by-nc-sa-4.0"}),
    "cc-by-nc-3.0": frozenset({"cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-3.0"}),
}
"""From a licence, to those beside itself under which something made from the work may be offered."""

_TEXTS = (
    (re.compile(r"Apache License\s+Version 2\.0"), "apache-2.0"),
    (re.compile(r"GNU AFFERO GENERAL PUBLIC LICENSE\s+Version 3"), "agpl-3.0"),
    (re.compile(r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 3"), "lgpl-3.0"),
    (re.compile(r"GNU LESSER GENERAL PUBLIC LICENSE\s+Version 2\.1"), "lgpl-2.1"),
    (re.compile(r"GNU GENERAL PUBLIC LICENSE\s+Version 3"), "gpl-3.0"),
    (re.compile(r"GNU GENERAL PUBLIC LICENSE\s+Version 2"), "gpl-2.0"),
    (re.compile(r"Mozilla Public License,? [Vv]ersion 2\.0"), "mpl-2.0"),
    (re.compile(r"Permission is hereby granted, free of charge, to any person obtaining a copy"), "mit"),
    (re.compile(r"Attribution-NonCommercial-NoDerivatives 4\.0"), "cc-by-nc-nd-4.0"),
    (re.compile(r"Attribution-NonCommercial-ShareAlike 4\.0"), "cc-by-nc-sa-4.0"),
    (re.compile(r"Attribution-NonCommercial 4\.0"), "cc-by-nc-4.0"),
    (re.compile(r"Attribution-ShareAlike 4\.0"), "cc-by-sa-4.0"),
    (re.compile(r"Attribution-NoDerivatives 4\.0"), "cc-by-nd-4.0"),
    (re.compile(r"Attribution 4\.0 International"), "cc-by-4.0"),
    (re.compile(r"LLAMA 2 COMMUNITY LICENSE"), "llama2"),
    (re.compile(r"(?i)META LLAMA 3 COMMUNITY LICENSE"), "llama3"),
    (re.compile(r"(?i)LLAMA 3\.1 COMMUNITY LICENSE"), "llama3.1"),
    (re.compile(r"(?i)LLAMA 3\.2 COMMUNITY LICENSE"), "llama3.2"),
    (re.compile(r"(?i)LLAMA 3\.3 COMMUNITY LICENSE"), "llama3.3"),
    (re.compile(r"Gemma Terms of Use"), "gemma"),
    (re.compile(r"CreativeML Open RAIL"), "creativeml-openrail-m"),
)
_HEAD = 4000
_LICENCE_NAME = re.compile(r"(licen[cs]e|copying)([._-].*)?$", re.IGNORECASE)
_CARD_LICENCE = re.compile(r"^license:[\s\[-]*[\"']?([\w.+-]*\w)[\"']?[ \t]*[\],]?", re.MULTILINE | re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LicenceConflict:
    """Why a model can't be offered as declared: where the other licence stands, and what it asks."""

    where: str
    licence: str
    why: str


def plain(licence: str) -> str:
    """A licence's name as the table has it: case, `-only` and `-or-later` aside."""
    return re.sub(r"-(only|or-later)$", "", licence.strip().lower())


def stated_licence(name: str, text: str) -> str:
    """The licence that a licence file or a model card states; "" for other files and unknown texts."""
    if _LICENCE_NAME.match(name):
        return next((licence for pattern, licence in _TEXTS if pattern.search(text[:_HEAD])), "")
    if name == "readme.md" and text.startswith("---\n"):
        found = _CARD_LICENCE.search(text[: max(0, text.find("\n---", 4))])
        return plain(found[1]) if found else ""
    return ""


def conflicts(declared: str, others: Iterable[tuple[str, str]]) -> tuple[LicenceConflict, ...]:
    """What stands against `declared`, given (where, licence) of the model's own files and of what it is made from."""
    wanted = plain(declared)
    return tuple(
        LicenceConflict(where=where, licence=licence, why=why)
        for where, licence in others
        if (why := _why_not(wanted, plain(licence)))
    )


def _why_not(wanted: str, other: str) -> str:
    if not wanted or not other or wanted == other or wanted in _ONWARD.get(other, frozenset()):
        return ""
    terms = TERMS.get(other)
    if terms is Terms.FREE or terms is None:
        return ""
    return f"{other} {terms}; {wanted} is declared"
