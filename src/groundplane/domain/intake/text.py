"""A message made readable: what is markup, quotation or noise goes, and every character knows where it came from.

Work is linear in the message's length: each step is one pass that edits places, and no place is edited twice.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from groundplane.domain.intake import Correction, Span
from groundplane.domain.intake.spelling import near_word


@dataclass(frozen=True, slots=True)
class Clean:
    """Plain text. Character i stands for the message's characters `starts[i]` up to `ends[i]`."""

    plain: str
    starts: Sequence[int]
    ends: Sequence[int]

    def span(self, start: int, end: int) -> Span:
        """Where in the message a piece of the plain text comes from."""
        return Span(start=self.starts[start], end=max(self.ends[end - 1], self.starts[start]))

    def edited(self, edits: Sequence[tuple[int, int, str]]) -> Clean:
        """With pieces (start, end, replacement) replaced; they must be in order and apart."""
        if not edits:
            return self
        plain: list[str] = []
        starts: list[int] = []
        ends: list[int] = []
        at = 0
        for start, end, text in edits:
            plain += self.plain[at:start], text
            starts += self.starts[at:start]
            ends += self.ends[at:start]
            if text:
                starts += [self.starts[start]] * len(text)
                ends += [self.ends[end - 1]] * len(text)
            at = end
        plain.append(self.plain[at:])
        starts += self.starts[at:]
        ends += self.ends[at:]
        return Clean("".join(plain), starts, ends)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A stretch of the plain text. `entry` numbers the point of a list it stands in; 0 outside lists."""

    start: int
    end: int
    entry: int = 0


@dataclass(frozen=True, slots=True)
class Readable:
    """What is left to read. `low` is `clean.plain` in small letters, character by character."""

    clean: Clean
    low: str
    sentences: tuple[Sentence, ...]
    corrections: tuple[Correction, ...]
    ignored: tuple[Span, ...]


def readable(message: str) -> Readable:
    """Prepares a message. Never raises; a message of nothing but noise has no sentences."""
    clean = Clean(message, range(len(message)), range(1, len(message) + 1))
    clean = clean.edited(list(_odd_characters(clean.plain)))
    ignored = _ignored(clean.plain)
    spans = tuple(clean.span(start, end) for start, end, _ in ignored if clean.plain[start:end].strip())
    clean = clean.edited(ignored)
    clean = clean.edited(list(_white(clean.plain)))
    clean, corrections = _spelled(clean)
    low = _lower(clean.plain)
    sentences = tuple(_sentences(low))
    # A line that wraps is a space; what stands between sentences stays, so that no pattern reaches across.
    pieces: list[str] = []
    at = 0
    for sentence in sentences:
        pieces += low[at : sentence.start], low[sentence.start : sentence.end].replace("\n", " ")
        at = sentence.end
    return Readable(clean, "".join([*pieces, low[at:]]), sentences, corrections, spans)


# ---------------------------------------------------------------- characters

_SAME = {
    "‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "–": "-", "—": "-", "‑": "-", "−": "-", "×": "x",
    "≤": "<", "≥": ">", "…": ".", "•": "*", "·": "*", "‣": "*", "▪": "*", "₂": "2",
}  # fmt: skip


def _odd_characters(text: str) -> Iterator[tuple[int, int, str]]:
    """Control and invisible characters go, look-alikes of plain ones become plain."""
    for match in re.finditer(r"[\x00-\x08\x0b-\x1f\x7f]|[^\x00-\x7f]", text):
        character = match[0]
        if (plain := _plain_character(character)) != character:
            yield match.start(), match.end(), plain


def _plain_character(character: str) -> str:
    if character in _SAME:
        return _SAME[character]
    category = unicodedata.category(character)
    if category == "Cf":
        return ""
    if category in {"Cc", "Cs", "Co", "Cn", "Zs", "Zl", "Zp"}:
        return "\n" if category in {"Zl", "Zp"} else " "
    normal = unicodedata.normalize("NFKC", character)
    return normal if len(normal) == 1 else character


def _lower(text: str) -> str:
    low = text.lower()
    if len(low) == len(text):
        return low
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in text)


# ---------------------------------------------------------------- what is not part of the message

_TAG = re.compile(r"</?[a-zA-Z!][^<>]{0,300}>|&(?:nbsp|amp|lt|gt|quot|#\d{1,6});")
_QUOTED = re.compile(r"^[ \t]*>[^\n]*", re.MULTILINE)
_HEADER = re.compile(
    r"^(?:(?:from|to|cc):[ \t](?![ \t]*\d)|(?:bcc|sent|date|reply-to|x-[\w-]{1,40}):[ \t])[^\n]*",
    re.MULTILINE | re.IGNORECASE,
)
_CLOCK = r"\[?\d{1,2}[:.]\d{2}(?:[:.]\d{2})?(?: ?[AaPp][Mm])?\]?"
_WHO = r"[\w.@-]{1,30}(?: [A-Z][\w.-]{0,30})?"
_SPEAKER = re.compile(
    rf"^{_CLOCK}[ \t]+(?:<[^>\n]{{1,40}}>|{_WHO}:)(?=[ \t])|^{_WHO}[ \t]+{_CLOCK}[ \t]*$",
    re.MULTILINE,
)
"""Who says a line of a chat, and when: `[9:41 AM] lena:`, or a line `Lena  9:41 AM` of its own."""
_TAIL = re.compile(
    r"^-- ?$|^-{2,} ?(?:original message|forwarded message)|^on [^\n]{5,200} wrote:[ \t]*$|^_{10,}[ \t]*$"
    r"|^(?:sent from my |get outlook for )[^\n]{0,60}$"
    r"|^this (?:e-?mail|message)[^\n]{0,80}(?:confidential|intended)",
    re.MULTILINE | re.IGNORECASE,
)
_SIGN_OFF = re.compile(
    r"^(?:best|kind|warm|many thanks|regards|cheers|thanks|thank you|thx|br|sincerely|yours)[\w ]{0,20}[,.!]?[ \t]*\n"
    r"(?=(?:[^\n]{0,60}\n?){0,6}\Z)",
    re.MULTILINE | re.IGNORECASE,
)


def _ignored(text: str) -> list[tuple[int, int, str]]:
    """Markup, quotations, mail headers and signatures, merged where they overlap."""
    found = [(match.start(), match.end()) for match in _TAG.finditer(text)]
    found += [(match.start(), match.end()) for match in _QUOTED.finditer(text)]
    found += [(match.start(), match.end()) for match in _HEADER.finditer(text)]
    found += [(match.start(), match.end()) for match in _SPEAKER.finditer(text)]
    found += _script_blocks(text)
    # A bare "FYI" over a forwarded message: then the forwarded message is the message.
    end = len(text)
    if (tail := _TAIL.search(text)) is not None and len(text[: tail.start()].split()) >= 4:
        found.append((tail.start(), len(text)))
        end = tail.start()
    if sign_off := _SIGN_OFF.search(text[:end].rstrip() + "\n", max(0, end - 500)):
        found.append((min(sign_off.end(), end), end))
    merged: list[tuple[int, int, str]] = []
    for start, end in sorted(found):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), merged[-1][2])
        elif start < end:
            merged.append((start, end, ""))
    speaks = {match.start() for match in _SPEAKER.finditer(text)}
    # Each line of a chat is a sentence of its own.
    return [
        (start, end, "\n\n" if start in speaks else "\n" if "\n" in text[start:end] else " ")
        for start, end, _ in merged
    ]


def _script_blocks(text: str) -> Iterator[tuple[int, int]]:
    low = _lower(text)
    for name in ("script", "style"):
        at = low.find(f"<{name}")
        while at >= 0:
            end = low.find(f"</{name}", at)
            if end < 0:
                break
            yield at, end
            at = low.find(f"<{name}", end)


def _white(text: str) -> Iterator[tuple[int, int, str]]:
    """A run of spaces is one space, a run of lines is one line end (two when lines between are empty)."""
    for match in re.finditer(r"[ \t\n]{2,}|\t", text):
        lines = match[0].count("\n")
        yield match.start(), match.end(), "\n\n" if lines > 1 else "\n" if lines else " "


def _spelled(clean: Clean) -> tuple[Clean, tuple[Correction, ...]]:
    edits: list[tuple[int, int, str]] = []
    known: dict[str, str | None] = {}
    low = _lower(clean.plain)
    for match in re.finditer(r"(?<![\w./@:])[a-z]{5,24}(?![\w@/]|\.\w|-\d)", low):
        word = match[0]
        if word not in known:
            known[word] = near_word(word)
        if (meant := known[word]) is not None:
            edits.append((match.start(), match.end(), meant))
    corrections = tuple(
        Correction(written=clean.plain[start:end], read_as=meant, span=clean.span(start, end))
        for start, end, meant in edits
    )
    return clean.edited(edits), corrections


# ---------------------------------------------------------------- sentences

_BREAK = re.compile(
    r"(?P<bullet>(?:^|\n+) ?(?:[-*+#]{1,3} |-(?=\d)|\(?\d{1,2}[.)](?!\d) ?|\(?[a-h]\) ))"
    r"|(?P<inline>(?<=[ :;,])\(?\d\) )"
    r"|\n(?=(?:[a-z][a-z /_-]{1,30}) ?[:=])"
    r"|\n\n+"
    r"|(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)(?<!\betc)(?<!approx)(?<!\bmax)(?<!\bmin)(?<!\bno)[.!?]+(?=\s|$)"
)


def _sentences(low: str) -> Iterator[Sentence]:
    at, entry, points = 0, 0, 0
    for match in _BREAK.finditer(low):
        if _has_words(low, at, match.start()):
            yield Sentence(at, match.start(), entry)
        at = match.end()
        if match["bullet"] or match["inline"]:
            points += 1
            entry = points
        elif match[0].startswith("\n\n"):
            entry = 0
    if _has_words(low, at, len(low)):
        yield Sentence(at, len(low), entry)


_WORD = re.compile(r"\w")


def _has_words(low: str, start: int, end: int) -> bool:
    return _WORD.search(low, start, end) is not None
