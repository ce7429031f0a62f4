"""The installation's Ed25519 signing key on a PKCS#11 token: an HSM, SoftHSM, or a key service."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pkcs11
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass, PKCS11Error, TokenFlag

from groundplane.adapters.signing import FileSigner, Trust, key_id_of, pem_of, read_private
from groundplane.domain.provenance.token_key import TokenKey
from groundplane.errors import IntegrityFailure, Refusal, Refused, Unavailable

_Done = TypeVar("_Done")

# What a token answers that makes no keys, or none for us.
_MAKES_NO_KEYS = (
    pkcs11.AttributeValueInvalid,
    pkcs11.DomainParamsInvalid,
    pkcs11.FunctionNotSupported,
    pkcs11.FunctionRejected,
    pkcs11.MechanismInvalid,
    pkcs11.SessionReadOnly,
    pkcs11.TemplateInconsistent,
    pkcs11.TokenWriteProtected,
)


class TokenSigner:
    """ports.Signer whose private key never leaves its token. Whom it trusts is in `<directory>/trusted`, as with files.

    Key pairs are told apart by their labels: LABEL, then LABEL-2, LABEL-3. The highest number that has both halves
    signs, so a pair that a crash left half made never does. LABEL-interchange (P-256) is the second key where the token
    has one; else that one is a file. The constructor logs in and tries the key: it raises Unavailable when the token
    does not answer. A session that breaks later is opened anew, once; a PIN that was refused is not tried again.
    """

    def __init__(self, key: TokenKey, directory: Path) -> None:
        self._key, self._trust, self._files = key, Trust(directory), FileSigner(directory)
        # The library is initialised without threads, and is one for the process: a call at a time.
        self._lock = threading.Lock()
        self._label = self._key_id = self._refused_pin = ""
        self._session: pkcs11.Session | None = None
        self._private: pkcs11.PrivateKey
        self._public: Ed25519PublicKey
        self._second: tuple[pkcs11.PrivateKey, EllipticCurvePublicKey] | None = None
        self._answered(lambda: None)

    @property
    def key_id(self) -> str:
        return self._key_id

    def sign(self, payload: bytes) -> bytes:
        return self._answered(lambda: self._signed(self._private, self._public, payload))

    def verify(self, payload: bytes, signature: bytes, key_id: str) -> bool:
        return self._trust.verify(payload, signature, key_id)

    def public_keys(self) -> dict[str, str]:
        return self._trust.public_keys()

    def interchange_public_key(self) -> str:
        return pem_of(self._second[1]).decode() if self._second else self._files.interchange_public_key()

    def sign_interchange(self, payload: bytes) -> bytes:
        if self._second is None:
            return self._files.sign_interchange(payload)
        # Hashed here: every token knows plain ECDSA, not all know it with a hash.
        digest = hashlib.sha256(payload).digest()
        raw = self._answered(lambda: self._second[0].sign(digest, mechanism=Mechanism.ECDSA))
        return encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))

    def rotate(self) -> str:
        """As FileSigner's, with a pair that the token makes. Refusal when it makes none. The old pair stays there."""
        with self._lock, self._telling():
            try:
                session = self._open(writes=True)
                if Mechanism.EC_EDWARDS_KEY_PAIR_GEN not in session.token.slot.get_mechanisms():
                    raise pkcs11.MechanismInvalid
                old = self._half(session, ObjectClass.PUBLIC_KEY, self._label)
                curve = {Attribute.EC_PARAMS: old[Attribute.EC_PARAMS]}
                label = f"{self._key.label}-{max(set().union(*self._numbers(session))) + 1}"
                session.create_domain_parameters(KeyType.EC_EDWARDS, curve, local=True).generate_keypair(
                    label=label,
                    store=True,
                    mechanism=Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
                    private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
                )
            except _MAKES_NO_KEYS as error:
                need, have = "a token that makes Ed25519 key pairs", f"{type(error).__name__} from {self._key.token}"
                hint = "make the pair with the token's own tools, labelled with the next number, and start anew"
                raise Refusal([Refused(rule="signing-key", need=need, have=have, hint=hint)]) from None
            self._take(session, label)
            return self._key_id

    def _signed(self, private: pkcs11.PrivateKey, public: Ed25519PublicKey, payload: bytes) -> bytes:
        signature = bytes(private.sign(payload, mechanism=Mechanism.EDDSA))
        try:
            public.verify(signature, payload)
        except InvalidSignature:
            message = f"what {private.label} on token {self._key.token} signed does not hold with its public key"
            raise IntegrityFailure(message, "the halves under this label are not of one pair") from None
        return signature

    def _answered(self, work: Callable[[], _Done]) -> _Done:
        with self._lock, self._telling():
            if self._session is not None:
                try:
                    return work()
                except PKCS11Error:
                    self._session = None
            session = self._open()
            self._take(session, self._label or self._newest(session), self._key_id)
            return work()

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except PKCS11Error as error:
            self._session = None
            words = f"the token {self._key.token} does not sign: {type(error).__name__} {error}".rstrip()
            raise Unavailable(words, "see that the token is there and knows CKM_EDDSA, then try again") from None

    def _open(self, writes: bool = False) -> pkcs11.Session:
        key, pin, self._session = self._key, self._pin(), None
        try:
            library = pkcs11.lib(key.module)
            # A token that came back is seen by some libraries only when they start; it ends old sessions, too.
            library.reinitialize()
        except PKCS11Error as error:
            hint = "module-path is the token's library; what configures it must be set where the control plane starts"
            words = f"the PKCS#11 library {key.module} does not start: {type(error).__name__} {error}".rstrip()
            raise Unavailable(words, hint) from None
        try:
            token = library.get_token(token_label=key.token)
            if token.flags & TokenFlag.USER_PIN_FINAL_TRY:
                raise Unavailable(
                    f"the token {key.token} has one try left for its PIN", "log in with its own tools first"
                )
            return token.open(user_pin=pin, rw=writes)
        except (pkcs11.NoSuchToken, pkcs11.MultipleTokensReturned) as error:
            count = "no token" if isinstance(error, pkcs11.NoSuchToken) else "several tokens"
            hint = "pkcs11-tool --module FILE.so --list-slots shows the labels"
            raise Unavailable(f"{key.module} has {count} labelled {key.token}", hint) from None
        except (pkcs11.PinIncorrect, pkcs11.PinInvalid, pkcs11.PinLenRange):
            self._refused_pin = pin
            raise Unavailable(f"the token {key.token} refuses the PIN", f"correct {self._pin_place()}") from None
        except (pkcs11.PinLocked, pkcs11.PinExpired, pkcs11.UserPinNotInitialized) as error:
            hint = "its security officer sets a new PIN"
            raise Unavailable(f"the token {key.token} lets nobody in: {type(error).__name__}", hint) from None

    def _take(self, session: pkcs11.Session, label: str, key_id: str = "") -> None:
        """Signs with this pair from now on: tried first, then trusted. A `key_id` says which it must be."""
        private = self._half(session, ObjectClass.PRIVATE_KEY, label)
        public = Ed25519PublicKey.from_public_bytes(_point(self._half(session, ObjectClass.PUBLIC_KEY, label), 32))
        if key_id not in {"", key_id_of(public)}:
            message = f"{label} on token {self._key.token} is another key than before"
            raise IntegrityFailure(message, "put the key back, or start anew to sign with this one")
        self._signed(private, public, b"groundplane")
        second = f"{self._key.label}-interchange"
        if self._second or list(session.get_objects({Attribute.LABEL: second, Attribute.KEY_TYPE: KeyType.EC})):
            point = _point(self._half(session, ObjectClass.PUBLIC_KEY, second, KeyType.EC), 65)
            try:
                second_public = EllipticCurvePublicKey.from_encoded_point(SECP256R1(), point)
            except ValueError:
                raise IntegrityFailure(f"{second} on token {self._key.token} is no P-256 key", "remove it") from None
            self._second = self._half(session, ObjectClass.PRIVATE_KEY, second, KeyType.EC), second_public
        if not key_id:
            self._trust.add(public)
        self._session, self._label, self._private, self._public = session, label, private, public
        self._key_id = key_id_of(public)

    def _newest(self, session: pkcs11.Session) -> str:
        private, public = self._numbers(session)
        number = max(private & public, default=1)
        return self._key.label + (f"-{number}" if number > 1 else "")

    def _numbers(self, session: pkcs11.Session) -> tuple[set[int], set[int]]:
        """Those of the private and of the public halves."""
        pattern = re.compile(re.escape(self._key.label) + r"(?:-([2-9]|[1-9][0-9]+))?")

        def numbers(half: ObjectClass) -> set[int]:
            found = session.get_objects({Attribute.CLASS: half, Attribute.KEY_TYPE: KeyType.EC_EDWARDS})
            return {int(match[1] or 1) for each in found if (match := pattern.fullmatch(each.label))}

        return numbers(ObjectClass.PRIVATE_KEY), numbers(ObjectClass.PUBLIC_KEY)

    def _half(
        self, session: pkcs11.Session, half: ObjectClass, label: str, kind: KeyType = KeyType.EC_EDWARDS
    ) -> pkcs11.PrivateKey | pkcs11.PublicKey:
        found = list(session.get_objects({Attribute.CLASS: half, Attribute.KEY_TYPE: kind, Attribute.LABEL: label}))
        if len(found) != 1:
            curve = "edwards25519" if kind == KeyType.EC_EDWARDS else "prime256v1"
            what = f"{half.name.lower().replace('_', ' ')}s of {curve}"
            message = f"the token {self._key.token} has {len(found)} {what} labelled {label}; it must be 1"
            makes = f"--login --keypairgen --key-type EC:{curve} --label {label}"
            hint = f"pkcs11-tool --module {self._key.module} --token-label {self._key.token} {makes}"
            raise Unavailable(message, "take the others away, or name another label" if found else hint)
        return found[0]

    def _pin(self) -> str:
        place, found = self._pin_place(), os.environ.get(self._key.pin_variable, "").encode()
        if self._key.pin_file:
            found = read_private(Path(self._key.pin_file), "PIN file") or b""
        pin = found.decode(errors="replace").strip()
        if not pin:
            raise Unavailable(f"there is no PIN in {place}", "write it there, and only its owner may read it")
        if pin == self._refused_pin:
            message = f"the token {self._key.token} refused the PIN in {place}, which is not tried again"
            raise Unavailable(message, "tokens lock after a few wrong ones: correct it there, or start anew")
        return pin

    def _pin_place(self) -> str:
        return self._key.pin_file or f"the variable {self._key.pin_variable}"


def _point(public: pkcs11.PublicKey | pkcs11.PrivateKey, size_bytes: int) -> bytes:
    """The public key's point: bare, or in an OCTET STRING or a BIT STRING, as versions of PKCS#11 have it."""
    found = bytes(public[Attribute.EC_POINT])
    if len(found) - size_bytes not in {0, 2, 3}:
        message = f"the public key {public.label} has a point of {len(found)} bytes; {size_bytes} are needed"
        raise IntegrityFailure(message, "the pair must be on the curve of its kind")
    return found[-size_bytes:]
