"""Terms of the field in a message, explained. A term with several senses is read by the words around it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

from groundplane.domain.intake import Explained
from groundplane.domain.intake.lexicon import Lexicon, Sense, Term
from groundplane.domain.intake.text import Readable

_AROUND = 90


def explained(text: Readable, lexicon: Lexicon) -> Iterator[Explained]:
    """Each sense of each term once, in the order of the message."""
    pattern, terms = _compiled(lexicon.terms)
    seen: set[tuple[str, str]] = set()
    if pattern is None:
        return
    for match in pattern.finditer(text.low):
        term = terms[match[0].rstrip("s") if match[0] not in terms else match[0]]
        around = (
            text.low[max(0, match.start() - _AROUND) : match.start()]
            + " "
            + text.low[match.end() : match.end() + _AROUND]
        )
        sense, because = _sense(term, around)
        if (term.term, sense.means) in seen:
            continue
        seen.add((term.term, sense.means))
        yield Explained(
            term=term.term,
            means=sense.means,
            explanation=sense.explanation,
            because=because,
            span=text.clean.span(match.start(), match.end()),
        )


def _sense(term: Term, around: str) -> tuple[Sense, str]:
    if len(term.senses) == 1:
        return term.senses[0], ""
    counted = [
        (sum(1 for word in sense.words if re.search(rf"\b{re.escape(word)}", around)), -at, sense)
        for at, sense in enumerate(term.senses)
    ]
    count, _, best = max(counted, key=lambda each: each[:2])
    if count == 0:
        others = " or ".join(sense.means for sense in term.senses[1:])
        return term.senses[0], f"its usual sense here; nothing around it points to {others}"
    word = next(word for word in best.words if re.search(rf"\b{re.escape(word)}", around))
    return best, f"{word!r} stands near it"


@lru_cache(maxsize=8)
def _compiled(terms: tuple[Term, ...]) -> tuple[re.Pattern[str] | None, dict[str, Term]]:
    by_word = {word.lower(): term for term in terms for word in (term.term, *term.aliases)}
    if not by_word:
        return None, {}
    words = sorted(by_word, key=lambda word: -len(word))
    return re.compile(
        r"(?<![\w-])(?:" + "|".join(re.escape(word) for word in words) + r")(?:(?<=[a-z])s)?(?![\w-])"
    ), by_word
