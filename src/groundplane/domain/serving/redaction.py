"""Personal data and credentials in free text, replaced by typed marks such as `[email]`.

Where a number carries check digits they are checked, so that an order number is not taken for a card. What has no form
of its own (names, addresses, what somebody is ill with) is not found: this lessens what is kept, and makes nothing
anonymous. Sources: RFC 5321 (addresses of mail), ITU-T E.164 (telephone numbers), ISO/IEC 7812-1 (Luhn), ISO 13616
(IBAN), SSA "Randomization" (US), RD 1553/2005 (Spain), NHS data dictionary (NHS number), Finanzverwaltung "IdNr"
(Germany, ISO 7064 MOD 11,10), INSEE "NIR" (France), the issuers' documented prefixes of tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from groundplane.domain.scanning.secrets_scan import KEY_PATTERNS

TEXT_MAX_CHARACTERS = 4_000_000
_IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "PT",
        26: "IS TR", 27: "FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB PL", 29: "BR EG PS QA UA", 30: "JO KW MU",
        31: "MT SC", 32: "LC",
    }.items()
    for country in countries.split()
}  # fmt: skip
_CARD_LENGTHS = {"2": (16,), "3": (14, 15, 16), "4": (13, 16, 19), "5": (16,), "6": (16, 17, 18, 19)}
_NOT_DIGIT = re.compile(r"\D")
_NOT_ALNUM = re.compile(r"[^A-Z0-9]")


@dataclass(slots=True)
class Redactions:
    """How many marks of each type were set."""

    counts: dict[str, int] = field(default_factory=dict)

    def note(self, mark: str) -> str:
        self.counts[mark] = self.counts.get(mark, 0) + 1
        return f"[{mark}]"


def redact(text: str, found: Redactions) -> str:
    """The text with marks in place of what was recognised, counted in `found`. Longer than 4 million characters, the
    rest is dropped and marked too: what was not looked at is not kept."""
    if len(text) > TEXT_MAX_CHARACTERS:
        text = text[:TEXT_MAX_CHARACTERS] + found.note("too-long")
    for mark, pattern, measure in _RULES:
        if pattern.search(text) is not None:
            text = pattern.sub(_replacer(mark, measure, found), text)
    return text


def redact_value(value: object, found: Redactions) -> object:
    """The same for every text in a JSON value; names of members too, because callers choose them."""
    if isinstance(value, str):
        return redact(value, found)
    if isinstance(value, list):
        return [redact_value(one, found) for one in value]
    if isinstance(value, dict):
        return {redact(str(name), found): redact_value(one, found) for name, one in value.items()}
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 9_999_999:
        text = redact(str(value), found)  # a card or a national id may come as a number
        return value if text == str(value) else text
    return value


def _replacer(mark: str, measure: Callable[[str], int], found: Redactions) -> Callable[[re.Match[str]], str]:
    def replaced(match: re.Match[str]) -> str:
        length = measure(match[0])
        return found.note(mark) + match[0][length:] if length else match[0]

    return replaced


def _if(is_one: Callable[[str], bool]) -> Callable[[str], int]:
    """How much of a match is meant: all or nothing."""
    return lambda text: len(text) if is_one(text) else 0


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _is_card(text: str) -> bool:
    """By issuer's range, its lengths, and Luhn; a run of one digit is a placeholder."""
    digits = _NOT_DIGIT.sub("", text)
    return len(digits) in _CARD_LENGTHS.get(digits[0], ()) and len(set(digits)) > 1 and _luhn(digits)


def _iban_characters(text: str) -> int:
    """How many characters of the text are an IBAN: the country's length, and 1 modulo 97. A word may follow."""
    wanted = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    places = [place for place, one in enumerate(text) if one.isalnum()]
    if not 0 < wanted <= len(places):
        return 0
    end = places[wanted - 1] + 1
    if text[end : end + 1].isalnum():
        return 0
    compact = _NOT_ALNUM.sub("", text[:end].upper())
    return end if int("".join(str(int(one, 36)) for one in compact[4:] + compact[:4])) % 97 == 1 else 0


def _is_us_ssn(text: str) -> bool:
    area, group, serial = text[:3], text[4:6], text[7:]
    return area not in {"000", "666"} and area[0] != "9" and group != "00" and serial != "0000"


def _is_spanish(text: str) -> bool:
    digits = text[:-1].upper().replace("X", "0").replace("Y", "1").replace("Z", "2").replace("-", "")
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(digits) % 23] == text[-1].upper()


def _is_nhs(text: str) -> bool:
    digits = _NOT_DIGIT.sub("", text)
    check = 11 - sum(int(digit) * weight for digit, weight in zip(digits[:9], range(10, 1, -1), strict=True)) % 11
    return len(set(digits)) > 1 and check != 10 and check % 11 == int(digits[9])


def _is_german_tax_id(text: str) -> bool:
    """ISO 7064 MOD 11,10; exactly one digit of the first ten comes twice or three times."""
    digits = _NOT_DIGIT.sub("", text)
    if digits[0] == "0" or not 8 <= len(set(digits[:10])) <= 9:
        return False
    product = 10
    for digit in digits[:10]:
        total = (int(digit) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def _is_french_nir(text: str) -> bool:
    compact = _NOT_ALNUM.sub("", text.upper())
    body, key = compact[:13].replace("2A", "19").replace("2B", "18"), compact[13:]
    return body.isdigit() and int(key) == 97 - int(body) % 97


def _is_phone(text: str) -> bool:
    """E.164 with its plus or 00, or a national number written in groups: 8 to 15 digits."""
    digits = _NOT_DIGIT.sub("", text)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 2


_EDGE, _END = r"(?<![\w.-])", r"(?![\w-])"
_TOKEN = re.compile(
    "|".join((
        *(pattern.pattern for pattern in KEY_PATTERNS),
        r"\bgp-(?:admin|operator|lead|member|finance|security|viewer|caller)-[a-z2-7]{30,64}\b",
        r"\bsk-(?:ant-|proj-|svcacct-)?[A-Za-z0-9_-]{20,200}\b",
        r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}",
        r"(?i:\bbearer)\s+[A-Za-z0-9._~+/-]{20,}=*",
        r"(?i:\b(?:password|passwd|secret|api[_-]?key|access[_-]?token))[\"']?\s*[:=]\s*[\"']?[^\s\"',;]{6,200}",
    ))
)  # fmt: skip
_RULES: tuple[tuple[str, re.Pattern[str], Callable[[str], int]], ...] = (
    ("secret", _TOKEN, len),
    ("email", re.compile(r"(?<![\w.+-])[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[\w-]{1,63}\.){1,8}[A-Za-z]{2,24}\b"), len),
    ("iban", re.compile(_EDGE + r"[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]{4}){2,7}(?:[ -]?[A-Za-z0-9]{1,3})?" + _END),
     _iban_characters),
    ("national-id",
     re.compile(_EDGE + r"[12] ?\d\d ?(?:0[1-9]|1[0-2]|[2-9]\d) ?(?:\d\d|2[ABab]) ?\d{3} ?\d{3} ?\d\d" + _END),
     _if(_is_french_nir)),
    ("card", re.compile(_EDGE + r"\d(?:[ -]?\d){12,18}" + _END), _if(_is_card)),
    ("national-id", re.compile(_EDGE + r"\d{3}-\d\d-\d{4}" + _END), _if(_is_us_ssn)),
    ("national-id", re.compile(_EDGE + r"(?:\d{8}|[XYZxyz]-?\d{7})-?[A-HJ-NP-TV-Za-hj-np-tv-z]" + _END),
     _if(_is_spanish)),
    ("national-id", re.compile(_EDGE + r"\d{2} ?\d{3} ?\d{3} ?\d{3}" + _END), _if(_is_german_tax_id)),
    ("national-id", re.compile(_EDGE + r"\d{3} \d{3} \d{4}" + _END), _if(_is_nhs)),
    ("phone", re.compile(r"(?<![\w.+-])(?<!\d )(?:\+|00)[1-9](?:[ ./-]?\(?\d\)?){6,14}" + _END), _if(_is_phone)),
    (
        "phone",
        re.compile(r"(?<![\w.(-])(?<!\d )\(?0?\d{2,5}\)?[ /-]\d{3,4}(?:[ -]\d{2,4}){1,3}" + _END),
        _if(_is_phone),
    ),
)  # fmt: skip
"""In this order: an IBAN holds what looks like a card, a card what looks like a telephone number."""
