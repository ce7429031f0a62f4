"""The installation's Ed25519 signing key in a folder, and the public keys it trusts."""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from groundplane.adapters.atomic_file import replace_durably
from groundplane.errors import IntegrityFailure, InvalidInput, Unavailable

_PRIVATE_NAME = "signing.pem"
_INTERCHANGE_NAME = "interchange.pem"


class Trust:
    """Every public key under `<directory>/trusted/*.pub`: it counts by its content, never by its file's name.

    Read anew each time, so that a key taken out of the folder is distrusted at once.
    """

    def __init__(self, directory: Path) -> None:
        self._folder = directory / "trusted"

    def add(self, public: Ed25519PublicKey) -> None:
        path = self._folder / f"{key_id_of(public)}.pub"
        if not path.exists():
            replace_durably(path, pem_of(public), mode=0o644)

    def verify(self, payload: bytes, signature: bytes, key_id: str) -> bool:
        public = self._found().get(key_id)
        if public is None:
            return False
        try:
            public.verify(signature, payload)
        except InvalidSignature:
            return False
        return True

    def public_keys(self) -> dict[str, str]:
        return {key_id: pem_of(public).decode() for key_id, public in sorted(self._found().items())}

    def _found(self) -> dict[str, Ed25519PublicKey]:
        found = {}
        for path in sorted(self._folder.glob("*.pub")):
            try:
                public = load_pem_public_key(path.read_bytes())
            except ValueError as error:
                raise IntegrityFailure(
                    f"the trusted key {path} can't be read: {error}", "replace the file or remove it"
                ) from None
            if not isinstance(public, Ed25519PublicKey):
                raise IntegrityFailure(f"the trusted key {path} is no Ed25519 key", "remove the file")
            found[key_id_of(public)] = public
        return found


class FileSigner:
    """ports.Signer on `<directory>/signing.pem` (mode 0600), made on first use. Earlier keys stay trusted."""

    def __init__(self, directory: Path) -> None:
        self._directory, self._trust = directory, Trust(directory)
        self._loaded: Ed25519PrivateKey | None = None

    @property
    def key_id(self) -> str:
        """SHA-256 hex of the public key as DER SubjectPublicKeyInfo."""
        return key_id_of(self._private().public_key())

    def sign(self, payload: bytes) -> bytes:
        return self._private().sign(payload)

    def verify(self, payload: bytes, signature: bytes, key_id: str) -> bool:
        self._private()
        return self._trust.verify(payload, signature, key_id)

    def public_keys(self) -> dict[str, str]:
        self._private()
        return self._trust.public_keys()

    def interchange_public_key(self) -> str:
        return pem_of(self._interchange().public_key()).decode()

    def sign_interchange(self, payload: bytes) -> bytes:
        return self._interchange().sign(payload, ECDSA(SHA256()))

    def rotate(self) -> str:
        """Makes a new signing key and returns its id. What the old one signed stays trusted."""
        old = self._private()
        self._trust.add(old.public_key())
        new = Ed25519PrivateKey.generate()
        # Trusted before it signs: a crash in between leaves an unused key, never a signature nobody trusts.
        self._trust.add(new.public_key())
        self._write_private(new).replace(self._directory / _PRIVATE_NAME)
        self._loaded = new
        return key_id_of(new.public_key())

    def _private(self) -> Ed25519PrivateKey:
        if self._loaded is None:
            self._loaded = self._load() or self._make()
        return self._loaded

    def _make(self) -> Ed25519PrivateKey:
        made = Ed25519PrivateKey.generate()
        if not self._keep(made, _PRIVATE_NAME):
            found = self._load()
            if found is None:
                raise Unavailable(f"the signing key {self._directory / _PRIVATE_NAME} came and went") from None
            return found
        self._trust.add(made.public_key())
        return made

    def _interchange(self) -> EllipticCurvePrivateKey:
        text = read_private(self._directory / _INTERCHANGE_NAME, "signing key")
        if text is None:
            self._keep(generate_private_key(SECP256R1()), _INTERCHANGE_NAME)
            text = read_private(self._directory / _INTERCHANGE_NAME, "signing key")
        key = self._parsed(text or b"", _INTERCHANGE_NAME)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise IntegrityFailure(f"{self._directory / _INTERCHANGE_NAME} is no P-256 key", "restore it from a backup")
        return key

    def _keep(self, key: Ed25519PrivateKey | EllipticCurvePrivateKey, name: str) -> bool:
        """False when the name is taken: of two processes starting at once, one makes the key."""
        self._directory.mkdir(parents=True, mode=0o700, exist_ok=True)
        draft = self._write_private(key)
        try:
            os.link(draft, self._directory / name)
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        return True

    def _write_private(self, key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> Path:
        draft = self._directory / f".{_PRIVATE_NAME}.{secrets.token_hex(8)}"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
            file.flush()
            os.fsync(file.fileno())
        return draft

    def _load(self) -> Ed25519PrivateKey | None:
        text = read_private(self._directory / _PRIVATE_NAME, "signing key")
        if text is None:
            return None
        key = self._parsed(text, _PRIVATE_NAME)
        if not isinstance(key, Ed25519PrivateKey):
            message = f"the signing key {self._directory / _PRIVATE_NAME} is no Ed25519 key"
            raise IntegrityFailure(message, "restore it from a backup")
        self._trust.add(key.public_key())
        return key

    def _parsed(self, text: bytes, name: str) -> object:
        try:
            return load_pem_private_key(text, password=None)
        except (ValueError, TypeError) as error:
            raise IntegrityFailure(
                f"the signing key {self._directory / name} can't be read: {error}", "restore it from a backup"
            ) from None


def read_private(path: Path, what: str) -> bytes | None:
    """The bytes of a secret file, when nobody else can read or replace it. None when there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"the {what} {path} can't be opened: {os.strerror(error.errno or 0)}"
        raise Unavailable(message, "it must be a file of its own, readable by its owner, not a link") from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            raise Unavailable(
                f"the {what} {path} can be read by others: its mode is {mode:04o}, it must be 0600",
                f"chmod 600 {path}; if anybody may have copied it, make a new one",
            )
        if found.st_uid not in {os.geteuid(), 0}:
            raise Unavailable(
                f"the {what} {path} belongs to user {found.st_uid}, this process runs as {os.geteuid()}",
                f"chown {os.geteuid()} {path}, or start as its owner",
            )
        return file.read()


def verified_by(pem: bytes, payload: bytes, signature: bytes) -> str:
    """The id of the public key when it signed exactly these bytes, else "". InvalidInput for what is no such key."""
    try:
        public = load_pem_public_key(pem)
    except ValueError:
        hint = "give a PEM file, as ground models public-key prints it"
        raise InvalidInput("what was given as the public key is none", hint) from None
    if not isinstance(public, Ed25519PublicKey):
        raise InvalidInput("this is no Ed25519 public key", "ground models public-key shows the one that signs")
    try:
        public.verify(signature, payload)
    except InvalidSignature:
        return ""
    return key_id_of(public)


def key_id_of(public: Ed25519PublicKey) -> str:
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def pem_of(public: Ed25519PublicKey | EllipticCurvePublicKey) -> bytes:
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
