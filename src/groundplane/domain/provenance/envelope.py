"""The DSSE envelope around what is signed: one payload, one signature, one spelling.

Source: DSSE protocol 1.0.2.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from groundplane.domain.canonical import canonical_json, parse_json, part_of
from groundplane.errors import InvalidInput

PAYLOAD_TYPE = "application/vnd.in-toto+json"


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes a signature covers, payload type included."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(body: Mapping[str, object], key_id: str, sign: Callable[[bytes], bytes]) -> str:
    """The signed envelope as canonical JSON text. `sign` signs the PAE with the key named `key_id`."""
    payload = canonical_json(body)
    signature = sign(pae(PAYLOAD_TYPE, payload))
    envelope = {
        "payloadType": PAYLOAD_TYPE,
        "payload": _encode(payload),
        "signatures": [{"keyid": key_id, "sig": _encode(signature)}],
    }
    return canonical_json(envelope).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """An envelope taken apart: the exact bytes that were signed, their meaning, who signed."""

    payload: bytes
    statement: dict[str, object]
    key_id: str
    signature: bytes

    @property
    def predicate(self) -> Mapping[str, object]:
        """What the statement says of its subject."""
        return part_of(self.statement, "predicate")


def open_envelope(text: str) -> Opened:
    """Takes the text apart, strictly: one spelling only, so that no byte can change unnoticed. Trusts nothing yet.

    Raises InvalidInput naming the part that is not as `seal` writes it.
    """
    envelope = parse_json(text)
    if not isinstance(envelope, dict) or set(envelope) != {"payload", "payloadType", "signatures"}:
        hint = "ground models certificate NAME@VERSION --envelope prints one"
        raise InvalidInput("the certificate is no DSSE envelope", hint)
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise InvalidInput(f"the certificate's payloadType is {envelope['payloadType']!r}")
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or len(signatures) != 1 or not isinstance(signatures[0], dict):
        raise InvalidInput("the certificate does not have exactly one signature")
    if set(signatures[0]) != {"keyid", "sig"} or not isinstance(signatures[0]["keyid"], str):
        raise InvalidInput("the certificate's signature does not have exactly keyid and sig")
    payload = _decode(envelope["payload"], "payload")
    signature = _decode(signatures[0]["sig"], "signature")
    if canonical_json(envelope).decode() != text:
        raise InvalidInput("the certificate's text is not in canonical form")
    body = parse_json(payload)
    if not isinstance(body, dict) or canonical_json(body) != payload:
        raise InvalidInput("the certificate's payload is no canonical JSON object")
    return Opened(payload=payload, statement=body, key_id=signatures[0]["keyid"], signature=signature)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: object, what: str) -> bytes:
    if not isinstance(text, str):
        raise InvalidInput(f"the certificate's {what} is no text")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(f"the certificate's {what} is no base64") from None
    if _encode(data) != text:
        raise InvalidInput(f"the certificate's {what} is not in canonical base64")
    return data
