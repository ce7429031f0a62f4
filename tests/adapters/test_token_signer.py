"""A signing key that never leaves its PKCS#11 token: it signs what files' keys signed, or says why it does not."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from tests.tokens import LIBRARY, Token

from groundplane.adapters.signing import FileSigner, verified_by
from groundplane.adapters.token_signer import TokenSigner
from groundplane.domain.provenance.token_key import token_key
from groundplane.errors import GroundError, IntegrityFailure, Refusal, Unavailable

pytestmark = pytest.mark.needs("softhsm2")

SIGNS_ELSEWHERE = """
import sys
from pathlib import Path
from groundplane.adapters.token_signer import TokenSigner
from groundplane.domain.provenance.token_key import token_key
signer = TokenSigner(token_key(sys.argv[1]), Path(sys.argv[2]))
print(signer.key_id, signer.sign(b"elsewhere").hex())
"""


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Token:
    made = Token(tmp_path / "token")
    monkeypatch.setenv("SOFTHSM2_CONF", made.environment["SOFTHSM2_CONF"])
    made.make_pairs("signing")
    return made


def signer_of(token: Token, tmp_path: Path) -> TokenSigner:
    return TokenSigner(token_key(token.uri()), tmp_path / "keys")


def test_what_files_signed_stays_true_when_a_token_signs_and_a_restart_changes_nothing(
    token: Token, tmp_path: Path
) -> None:
    before = FileSigner(tmp_path / "keys")
    old, signature = before.key_id, before.sign(b"x")
    signer = signer_of(token, tmp_path)
    assert signer.verify(b"x", signature, old)
    command = [sys.executable, "-c", SIGNS_ELSEWHERE, token.uri(), str(tmp_path / "keys")]
    key_id, there = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert key_id == signer.key_id != old
    assert signer.verify(b"elsewhere", bytes.fromhex(there), key_id)
    assert not signer.verify(b"other", bytes.fromhex(there), key_id)
    # What checks certificates offline knows nothing of tokens.
    assert verified_by(signer.public_keys()[key_id].encode(), b"y", signer.sign(b"y")) == key_id
    assert verified_by(signer.public_keys()[old].encode(), b"y", signer.sign(b"y")) == ""


def test_rotation_makes_a_numbered_pair_in_the_token_and_nothing_gets_out(token: Token, tmp_path: Path) -> None:
    signer = signer_of(token, tmp_path)
    first, signature = signer.key_id, signer.sign(b"x")
    second = signer.rotate()
    third = signer.rotate()
    assert len({first, second, third}) == 3 and signer.key_id == third
    assert signer.verify(b"x", signature, first) and signer.verify(b"x", signer.sign(b"x"), third)
    assert signer_of(token, tmp_path).key_id == third
    private = signer_of(token, tmp_path)._private  # with all that the signer itself may do
    assert private.label == "signing-3"
    assert not private[pkcs11.Attribute.EXTRACTABLE] and private[pkcs11.Attribute.NEVER_EXTRACTABLE]
    with pytest.raises(pkcs11.AttributeSensitive):
        private[pkcs11.Attribute.VALUE]


def test_a_pair_that_a_crash_left_half_made_never_signs_and_its_number_is_not_used_again(
    token: Token, tmp_path: Path
) -> None:
    first = signer_of(token, tmp_path).key_id
    token.make_pairs("signing-2", "signing-10")
    token.destroy(("signing-2", "PRIVATE_KEY"), ("signing-10", "PUBLIC_KEY"))
    signer = signer_of(token, tmp_path)
    assert signer.key_id == first
    signer.rotate()
    assert signer._label == "signing-11"


def test_a_token_that_makes_no_keys_refuses_to_rotate_and_signs_on(token: Token, tmp_path: Path) -> None:
    with (token.folder / "softhsm2.conf").open("a") as file:
        file.write("slots.mechanisms = CKM_EDDSA\n")
    signer = signer_of(token, tmp_path)
    before = signer.key_id
    with pytest.raises(Refusal, match="MechanismInvalid from groundplane") as refusal:
        signer.rotate()
    assert "the token's own tools" in refusal.value.hint
    assert signer.key_id == before and signer.verify(b"x", signer.sign(b"x"), before)


def test_the_key_for_other_tools_is_the_tokens_where_it_has_one(token: Token, tmp_path: Path) -> None:
    def checks(signer: TokenSigner) -> None:
        public = load_pem_public_key(signer.interchange_public_key().encode())
        assert isinstance(public, EllipticCurvePublicKey)
        for number in range(8):  # numbers of each length: r and s lose their leading zeros
            public.verify(signer.sign_interchange(bytes([number])), bytes([number]), ECDSA(SHA256()))

    in_file = signer_of(token, tmp_path)
    checks(in_file)
    assert (tmp_path / "keys" / "interchange.pem").exists()
    token.make_pairs("signing-interchange")
    in_token = signer_of(token, tmp_path)
    checks(in_token)
    assert in_token.interchange_public_key() != in_file.interchange_public_key()


def test_many_threads_sign_with_one_session(token: Token, tmp_path: Path) -> None:
    signer = signer_of(token, tmp_path)
    with ThreadPoolExecutor(16) as pool:
        signed = list(pool.map(lambda n: signer.sign(b"%d" % n), range(400)))
    assert all(signer.verify(b"%d" % n, signature, signer.key_id) for n, signature in enumerate(signed))


def test_a_token_that_goes_is_told_and_one_that_comes_back_signs_again(token: Token, tmp_path: Path) -> None:
    signer = signer_of(token, tmp_path)
    signature = signer.sign(b"x")
    token.tokens.rename(token.folder / "gone")
    for _ in range(2):
        with pytest.raises(Unavailable) as gone:
            signer.sign(b"x")
        assert gone.value.hint and "\n" not in gone.value.message
    with pytest.raises(Unavailable):
        signer.rotate()
    assert signer.verify(b"x", signature, signer.key_id)  # a check needs no token
    (token.folder / "gone").rename(token.tokens)
    assert signer.sign(b"x") == signature


def test_another_key_under_the_label_is_not_signed_with_unasked(token: Token, tmp_path: Path) -> None:
    signer = signer_of(token, tmp_path)
    token.destroy(("signing", "PRIVATE_KEY"), ("signing", "PUBLIC_KEY"))
    with pytest.raises(Unavailable, match="0 private keys of edwards25519 labelled signing"):
        signer.sign(b"x")
    token.make_pairs("signing")
    with pytest.raises(IntegrityFailure, match="another key than before"):
        signer.sign(b"x")


def test_a_wrong_pin_is_tried_once(token: Token, tmp_path: Path) -> None:
    signer = signer_of(token, tmp_path)
    token.pin.write_text("0000")
    signer._session.close()  # as the token's service does when it restarts
    with pytest.raises(Unavailable, match="refuses the PIN"):
        signer.sign(b"x")
    with pytest.raises(Unavailable, match="is not tried again"):
        signer.sign(b"x")
    token.pin.write_text("4711")
    assert signer.verify(b"x", signer.sign(b"x"), signer.key_id)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("token=groundplane", "token=other", "has no token labelled other"),
        ("object=signing", "object=sign", "has 0 private keys of edwards25519 labelled sign"),
        (str(LIBRARY), "/nowhere.so", "/nowhere.so does not start: PKCS11Error .* cannot open shared object file"),
        (str(LIBRARY), "/etc/passwd", "/etc/passwd does not start: PKCS11Error .* invalid ELF header"),
        ("/pin", "/nopin", "there is no PIN in .*/nopin"),
    ],
)
def test_what_is_not_there_is_named(token: Token, tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(Unavailable, match=message) as refusal:
        TokenSigner(token_key(token.uri().replace(old, new)), tmp_path / "keys")
    assert refusal.value.hint
    assert not (tmp_path / "keys").exists()


def test_a_pin_that_others_can_read_is_not_used_and_a_variable_may_hold_it(
    token: Token, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token.pin.chmod(0o644)
    with pytest.raises(Unavailable, match="PIN file .* 0644"):
        signer_of(token, tmp_path)
    uri = token.uri().replace(f"file:{token.pin}", "env:TOKEN_PIN")
    with pytest.raises(Unavailable, match="no PIN in the variable TOKEN_PIN"):
        TokenSigner(token_key(uri), tmp_path / "keys")
    monkeypatch.setenv("TOKEN_PIN", "4711")
    assert TokenSigner(token_key(uri), tmp_path / "keys").sign(b"x")


def test_two_keys_under_one_label_are_not_chosen_between(token: Token, tmp_path: Path) -> None:
    token.make_pairs("signing")
    with pytest.raises(GroundError, match="has 2 private keys of edwards25519 labelled signing; it must be 1"):
        signer_of(token, tmp_path)
