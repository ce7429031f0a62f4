"""URIs of keys on PKCS#11 tokens: read, or refused without repeating them."""

from __future__ import annotations

import pytest

from groundplane.domain.provenance.token_key import TokenKey, token_key
from groundplane.errors import InvalidInput
from groundplane.settings import Settings

GOOD = "pkcs11:token=ground%20plane;object=signing?module-path=/lib/p11.so&pin-source=file:/run/pin"


@pytest.mark.parametrize("source", ["file:/run/pin", "file:///run/pin", "/run/pin"])
def test_a_uri_names_a_key_its_token_and_where_the_pin_is(source: str) -> None:
    read = token_key(GOOD.replace("file:/run/pin", source))
    assert read == TokenKey(token="ground plane", label="signing", module="/lib/p11.so", pin_file="/run/pin")
    assert token_key(GOOD.replace("file:/run/pin", "env:PIN")).pin_variable == "PIN"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pin-source=file:/run/pin", "pin-value=4711", r"holds a PIN \(pin-value\)"),
        ("pkcs11:", "https:", "no PKCS#11 URI"),
        ("object=signing", "object=", "lacks object"),
        ("token=ground%20plane;", "", "lacks token"),
        ("?", "?pin-vaule=4711&", "unknown here: pin-vaule"),
        ("object=signing", "object=signing;object=4711", "twice: object"),
        ("file:/run/pin", "|cat /run/4711", "neither file:/FILE nor env:VARIABLE"),
        ("file:/run/pin", "4711", "neither file:/FILE nor env:VARIABLE"),
        ("/lib/p11.so", "p11.so", "not absolute"),
    ],
)
def test_anything_else_is_refused_and_not_repeated(old: str, new: str, message: str) -> None:
    with pytest.raises(InvalidInput, match=message) as refusal:
        Settings.from_env({"GROUND_SIGNING_KEY": GOOD.replace(old, new)})
    assert refusal.value.hint
    assert "4711" not in f"{refusal.value} {refusal.value.hint}"
