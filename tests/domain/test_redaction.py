"""Personal data and credentials are replaced by typed marks; what only looks like them is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain.serving.redaction import TEXT_MAX_CHARACTERS, Redactions, redact, redact_value

FOUND = [
    ("mail ana.ruiz+lab@example.co.uk today", "mail [email] today"),
    ("card 4111 1111 1111 1111, thanks", "card [card], thanks"),
    ("card 5555-5555-5555-4444.", "card [card]."),
    ("amex 378282246310005", "amex [card]"),
    ("to DE89 3704 0044 0532 0130 00 please", "to [iban] please"),
    ("to GB29NWBK60161331926819", "to [iban]"),
    ("call +49 30 901820", "call [phone]"),
    ("call +1 (415) 555-2671 now", "call [phone] now"),
    ("call (030) 901-820-44", "call [phone]"),
    ("call 415-555-2671", "call [phone]"),
    ("ssn 536-90-4399", "ssn [national-id]"),
    ("dni 12345678Z", "dni [national-id]"),
    ("nie X1234567L", "nie [national-id]"),
    ("nhs 943 476 5919", "nhs [national-id]"),
    ("idnr 86 095 742 719", "idnr [national-id]"),
    ("nir 2 55 08 14 168 025 38", "nir [national-id]"),
    ("key sk-proj-abcdefghijklmnopqrstuvwx", "key [secret]"),
    ("AKIAIOSFODNN7ABCDEFG is mine", "[secret] is mine"),
    ("Authorization: Bearer abcdefghijklmnopqrstuvwxyz012345", "Authorization: [secret]"),
    ("password: hunter2hunter2", "[secret]"),
    (
        "gp-caller-abcdefghijklmnopqrstuvwxyz234567abcdefgh",
        "[secret]",
    ),
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_what_has_a_form_is_replaced_by_its_mark(text: str, expected: str) -> None:
    found = Redactions()
    assert redact(text, found) == expected
    assert sum(found.counts.values()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "order 4111 1111 1111 1112 is late",  # no card: the check digit is wrong
        "DE89 3704 0044 0532 0130 01 is no account",
        "000-12-3456",
        "12345678A",
        "pi is 3.14159265358979",
        "version 1.2.3-rc.4 of 2026-11-21 10:20:30",
        "0.95 0.87 0.93",
        "run-0a1b2c3d took 1234567 us",
        "a@b",
        "the secret of success: work",
        "ratio 16:9, 1920x1080",
    ],
)
def test_what_only_looks_like_it_is_left_alone(text: str) -> None:
    found = Redactions()
    assert redact(text, found) == text and not found.counts


def test_every_text_of_a_json_value_is_looked_at_and_counted() -> None:
    found = Redactions()
    value = {
        "role": "user",
        "content": [{"type": "text", "text": "a@example.org and b@example.org"}, 4111111111111111, True, None, 1.5],
        "by c@example.org": 1,
    }
    assert redact_value(value, found) == {
        "role": "user",
        "content": [{"type": "text", "text": "[email] and [email]"}, "[card]", True, None, 1.5],
        "by [email]": 1,
    }
    assert found.counts == {"email": 3, "card": 1}


def test_what_is_too_long_to_be_looked_at_is_not_kept() -> None:
    found = Redactions()
    assert redact("x" * (TEXT_MAX_CHARACTERS + 10), found).endswith("x[too-long]")
    assert found.counts == {"too-long": 1}


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text, Redactions())
    assert redact(once, Redactions()) == once


@pytest.mark.parametrize("piece", ["1 ", "a@", "DE12 ", "+1", "a.b-", "password:", "x@y.", "0-", "1-", "eyJ"])
def test_long_text_of_what_almost_matches_comes_through(piece: str) -> None:
    text = piece * (60_000 // len(piece))
    once = redact(text, Redactions())
    assert once and redact(once, Redactions()) == once
