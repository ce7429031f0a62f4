"""Where a signing key lies on a PKCS#11 token, from its URI. Source: RFC 7512."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from groundplane.errors import InvalidInput

_KNOWN = ("token", "object", "module-path", "pin-source")
_FORM = "pkcs11:token=NAME;object=LABEL?module-path=/FILE.so&pin-source=file:/FILE, or pin-source=env:VARIABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """The label of a key pair, its token, the library that speaks to it, and what holds the PIN: one of the two."""

    token: str
    label: str
    module: str
    pin_file: str = ""
    pin_variable: str = ""


def token_key(uri: str) -> TokenKey:
    """Raises InvalidInput that says what is wrong and never repeats the URI: it may hold a PIN."""
    scheme, _, rest = uri.strip().partition(":")
    path, _, query = rest.partition("?")
    if scheme.lower() != "pkcs11":
        raise InvalidInput("GROUND_SIGNING_KEY is no PKCS#11 URI", f"write {_FORM}")
    found: dict[str, str] = {}
    for each in filter(None, [*path.split(";"), *query.split("&")]):
        name, _, value = each.partition("=")
        if name == "pin-value":
            hint = "write pin-source=file:/FILE (mode 0600) or pin-source=env:VARIABLE, and change the PIN"
            raise InvalidInput("GROUND_SIGNING_KEY holds a PIN (pin-value), which others may have seen", hint)
        if name not in _KNOWN or name in found:
            problem = "twice" if name in found else "unknown here"
            raise InvalidInput(f"GROUND_SIGNING_KEY has an attribute that is {problem}: {name}", f"write {_FORM}")
        found[name] = unquote(value)
    if missing := [name for name in _KNOWN if not found.get(name)]:
        raise InvalidInput(f"GROUND_SIGNING_KEY lacks {', '.join(missing)}", f"write {_FORM}")
    source = urlsplit(found["pin-source"])
    in_file = source.scheme in {"", "file"} and source.path.startswith("/")
    if not in_file and (source.scheme != "env" or not source.path):
        raise InvalidInput(
            "GROUND_SIGNING_KEY has a pin-source that is neither file:/FILE nor env:VARIABLE", f"write {_FORM}"
        )
    if not found["module-path"].startswith("/"):
        raise InvalidInput("GROUND_SIGNING_KEY has a module-path that is not absolute", f"write {_FORM}")
    return TokenKey(
        token=found["token"],
        label=found["object"],
        module=found["module-path"],
        pin_file=source.path if in_file else "",
        pin_variable="" if in_file else source.path,
    )
