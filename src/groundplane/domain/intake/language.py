"""Whether a sentence is in a language that is read here. What is not is said to be not understood, never guessed at."""

from __future__ import annotations

import re

_ENGLISH_WORDS = """
    the a an we i you our your my is are be to for of and with by on in it this that need needs want can could
    please have has do does will would should set up not from as at or but so if there they their new get us how
    what why which when
"""
_OTHER_WORDS = """
    wir brauchen bitte und für eine einen einer ein der das den dem ist nicht mit auch bis zum zur können könnt
    mittwoch freitag nous avons besoin pour une les des avec est dans sur vous pouvez d'ici mercredi vendredi
    aussi merci cette notre du au necesitamos para por una los las con favor también gracias el del que
    miércoles viernes puede este nuestro abbiamo bisogno per favore anche della delle grazie entro mercoledì
    venerdì gli il che di precisamos também obrigado até quarta sexta-feira uma não em seu nosso wij hebben
    nodig voor graag ook het een bedankt tegen woensdag vrijdag onze potrzebujemy proszę dla oraz do środy
    piątku nasz się jest na ihtiyacımız var için lütfen ve bir kadar çarşamba cuma vi behöver till och tack
    också ett före onsdag fredag
"""

_ENGLISH = frozenset(_ENGLISH_WORDS.split())
# German, French, Spanish, Italian, Portuguese, Dutch, Polish, Turkish, Swedish: words that English does not have.
_OTHERS = frozenset(_OTHER_WORDS.split()) - _ENGLISH
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)?")


def is_understood(sentence: str) -> bool:
    """False for other scripts, and where words of other languages outnumber English ones. Short pieces pass."""
    words = _WORD.findall(sentence[:4000])
    letters = [character for word in words for character in word]
    if not letters:
        return True
    # Latin letters end at U+024F; what lies beyond is another script.
    foreign_letters = sum(character > "\u024f" for character in letters)
    if foreign_letters * 2 > len(letters):
        return False
    english = sum(word in _ENGLISH for word in words)
    others = sum(word in _OTHERS for word in words)
    return not (others >= 2 and others > english)
