"""A version's files as the OpenSSF model-signing tool reads them: one subject over all files, in a Sigstore bundle.

That tool signs with keys on NIST curves, never Ed25519, so this is beside the birth certificate and names its digest.
Source: model_signing 1.1.1 (`signing.py`: predicate v1.0, method `files`; `sign_ec_key.py`); Sigstore bundle v0.3.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence

from groundplane.domain.canonical import canonical_json
from groundplane.domain.model import ManifestFile
from groundplane.domain.provenance.certificate import PAYLOAD_TYPE, STATEMENT_TYPE, pae

PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"


def signing_bundle(
    name: str,
    files: Sequence[ManifestFile],
    certificate_sha256: str,
    public_key_pem: str,
    sign: Callable[[bytes], bytes],
) -> dict[str, object]:
    """The bundle, which upstream verifies beside the files. `sign` is ECDSA with SHA-256 over what it is given."""
    ordered = sorted(files, key=lambda file: file.path)
    root = hashlib.sha256(b"".join(bytes.fromhex(file.sha256) for file in ordered)).hexdigest()
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": ["model.sig"],
            },
            "resources": [{"name": file.path, "algorithm": "sha256", "digest": file.sha256} for file in ordered],
            "birth_certificate": {"sha256": certificate_sha256},
        },
    }
    payload = canonical_json(statement)
    return {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": hashlib.sha256(public_key_pem.encode()).hexdigest()},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(sign(pae(PAYLOAD_TYPE, payload))).decode(), "keyid": ""}],
        },
    }
