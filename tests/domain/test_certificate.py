"""Birth certificates: what they state, how they are signed, and that no part of one can change unnoticed."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from dataclasses import fields, replace
from datetime import UTC, datetime

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain.canonical import canonical_json
from groundplane.domain.model import ManifestFile, ModelVersion, manifest, manifest_sha256
from groundplane.domain.provenance.certificate import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    REQUIRED_FACTS,
    STATEMENT_TYPE,
    Birth,
    Circumstances,
    CodeFact,
    DataFact,
    EnvironmentFact,
    Facts,
    HardwareFact,
    RunFact,
    examined,
    finite_metrics,
    missing_facts,
    misstated,
    open_envelope,
    pae,
    seal,
    statement,
)
from groundplane.errors import InvalidInput

KEY = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
KEY_ID = "0" * 64
FACTS = Facts(
    owner="ada",
    license="Apache-2.0",
    data=(DataFact(name="corpus", sha256="1" * 64),),
    code_commit="2" * 40,
    training_run="run-1",
    metrics={"f1": 0.93},
)


def verify(payload: bytes, signature: bytes, key_id: str) -> bool:
    try:
        KEY.public_key().verify(signature, payload)
    except InvalidSignature:
        return False
    return key_id == KEY_ID


def certified(row: ModelVersion, birth: Birth) -> ModelVersion:
    text = seal(statement(row, birth), KEY_ID, KEY.sign)
    return replace(row, certificate=text, certificate_sha256=hashlib.sha256(text.encode()).hexdigest())


def version() -> ModelVersion:
    files = manifest(
        [
            ManifestFile(path="weights/model.safetensors", sha256="a" * 64, size_bytes=10),
            ManifestFile(path="config.json", sha256="b" * 64, size_bytes=3),
        ]
    )
    row = ModelVersion(
        id="tiny@2",
        name="tiny",
        number=2,
        project="vision",
        owner="ada",
        files=files,
        manifest_sha256=manifest_sha256(files),
        size_bytes=13,
        certificate="",
        certificate_sha256="",
        run_id="run-1",
        license="Apache-2.0",
        metrics={"loss": 1.25},
        created_by="ada",
        created_at=datetime(2026, 11, 21, 8, 0, 0, 123, tzinfo=UTC),
    )
    return certified(row, birth())


def birth() -> Birth:
    return Birth(
        origin="run",
        framework="jax",
        run=RunFact(
            id="run-1", spec_digest="c" * 64, attempts=2, resumed_from_steps=(40,), checkpoints=3, last_step=90
        ),
        circumstances=Circumstances(
            observed="at the start",
            code=CodeFact(commit="d" * 40, dirty=True),
            environment=EnvironmentFact(of="job", python="CPython 3.11", platform="Linux", packages=("a==1", "b==2")),
            hardware=HardwareFact(cpu="x", cores=2, memory_bytes=5, accelerators=()),
            data=(DataFact(name="corpus", sha256="1" * 64, how="measured"),),
        ),
        cost_microusd=4213,
        formats={"config.json": {"format": "text"}},
        unknown=(("license", "the spec does not say"),),
        software="groundplane",
    )


def test_the_pre_authentication_encoding_is_that_of_the_specification() -> None:
    """Source: the test vector in DSSE's protocol.md."""
    assert pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pae("é", "ü".encode()) == b"DSSEv1 2 \xc3\xa9 2 \xc3\xbc"


def test_a_certificate_states_every_fact() -> None:
    body = open_envelope(version().certificate).statement
    assert body["_type"] == STATEMENT_TYPE
    assert body["predicateType"] == PREDICATE_TYPE
    assert body["subject"] == [
        {"name": "config.json", "digest": {"sha256": "b" * 64}},
        {"name": "weights/model.safetensors", "digest": {"sha256": "a" * 64}},
    ]
    predicate = body["predicate"]
    assert isinstance(predicate, dict)
    assert predicate["run"]["attempts"] == 2
    assert predicate["run"]["resumed_from_steps"] == [40]
    assert predicate["code"] == {"commit": "d" * 40, "dirty": True, "repository": ""}
    assert predicate["environment"]["packages_sha256"] == hashlib.sha256(b"a==1\nb==2\n").hexdigest()
    assert predicate["data"][0]["sha256"] == "1" * 64
    assert predicate["cost_microusd"] == 4213
    assert predicate["metrics"] == {"loss": 1.25}
    unknown = {row["fact"]: row["why"] for row in predicate["unknown"]}
    assert unknown.pop("license") == "the spec does not say"
    assert set(unknown) == {"evaluations", "waivers", "sla", "rollback_target"}
    assert all("see its addenda" in why for why in unknown.values())
    assert predicate["created"]["at"] == "2026-11-21T08:00:00.000123+00:00"


def test_an_untouched_version_has_no_problems() -> None:
    assert examined(version()).problems(verify) == ()


def test_a_stranger_needs_only_the_public_key() -> None:
    envelope = json.loads(version().certificate)
    payload = base64.b64decode(envelope["payload"])
    kind = envelope["payloadType"]
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    KEY.public_key().verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)


CHANGES: dict[str, object] = {
    "id": "tiny@3",
    "name": "tin",
    "number": 3,
    "project": "vasion",
    "owner": "bob",
    "files": (ManifestFile(path="config.json", sha256="b" * 64, size_bytes=13),),
    "manifest_sha256": "f" * 64,
    "size_bytes": 14,
    "certificate": "{}",
    "certificate_sha256": "e" * 64,
    "run_id": "run-2",
    "license": "MIT",
    "metrics": {"loss": 1.2500000000000002},
    "created_by": "eve",
    "created_at": datetime(2026, 11, 21, 8, 0, 0, 124, tzinfo=UTC),
}


@pytest.mark.parametrize("field", [field.name for field in fields(ModelVersion) if field.name != "version"])
def test_a_change_in_any_column_of_the_row_is_found_and_named(field: str) -> None:
    problems = examined(replace(version(), **{field: CHANGES[field]})).problems(verify)  # type: ignore[arg-type]
    named = " ".join(problem.field for problem in problems)
    assert {"files": "weights/model.safetensors", "certificate_sha256": "certificate"}.get(field, field) in named


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_flipped_bit_anywhere_in_the_certificate_is_found(data: st.DataObject) -> None:
    row = version()
    raw = bytearray(row.certificate.encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    text = raw.decode("utf-8", errors="surrogateescape")
    assert examined(replace(row, certificate=text)).problems(verify)
    # Also when whoever flipped it put the digest right.
    digest = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
    assert examined(replace(row, certificate=text, certificate_sha256=digest)).problems(verify)


@settings(deadline=None)
@given(st.sampled_from(["sha256", "path", "size_bytes"]), st.integers(0, 1))
def test_a_changed_file_entry_is_found_even_when_the_manifest_digest_was_put_right(part: str, position: int) -> None:
    row = version()
    entry = row.files[position]
    changed = replace(entry, **{part: {"sha256": "9" * 64, "path": "other", "size_bytes": 99}[part]})  # type: ignore[arg-type]
    files = tuple(changed if file is entry else file for file in row.files)
    forged = replace(
        row, files=files, manifest_sha256=manifest_sha256(files), size_bytes=sum(file.size_bytes for file in files)
    )
    assert any(entry.path in problem.field for problem in examined(forged).problems(verify))


def test_a_certificate_signed_by_a_stranger_is_not_trusted() -> None:
    stranger = Ed25519PrivateKey.generate()
    row = version()
    text = seal(statement(row, birth()), KEY_ID, stranger.sign)
    forged = replace(row, certificate=text, certificate_sha256=hashlib.sha256(text.encode()).hexdigest())
    assert [problem.field for problem in examined(forged).problems(verify)] == ["certificate signature"]


def test_a_certificate_of_another_version_does_not_fit() -> None:
    row, other = version(), replace(version(), number=1, id="tiny@1")
    forged = replace(other, certificate=row.certificate, certificate_sha256=row.certificate_sha256)
    assert {problem.field for problem in examined(forged).problems(verify)} == {"id", "number"}


@pytest.mark.parametrize(
    "change",
    [
        {"payloadType": "application/json"},
        {"signatures": []},
        {"signatures": [{"keyid": "a"}]},
        {"signatures": [{"keyid": "a", "sig": "AA=="}, {"keyid": "a", "sig": "AA=="}]},
        {"signatures": [{"keyid": "a", "sig": "AB=="}]},
        {"payload": "!"},
        {"payload": 1},
        {"payload": base64.b64encode(b'{"a": 1}').decode()},
        {"payload": base64.b64encode(b"[]").decode()},
        {"extra": 1},
    ],
)
def test_an_envelope_has_one_form_only(change: dict[str, object]) -> None:
    envelope = {
        "payload": base64.b64encode(b"{}").decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": "a", "sig": "AA=="}],
    }
    assert open_envelope(canonical_json(envelope).decode()).statement == {}
    with pytest.raises(InvalidInput):
        open_envelope(canonical_json({**envelope, **change}).decode())
    with pytest.raises(InvalidInput):
        open_envelope(json.dumps(envelope, indent=1))


def test_what_a_certificate_still_needs_is_asked_for_with_the_flag_that_gives_it() -> None:
    assert [missing.name for missing in missing_facts(Facts())] == list(REQUIRED_FACTS)
    assert missing_facts(FACTS) == ()
    for name, empty in {
        "owner": " ",
        "license": "",
        "data": (),
        "code_commit": "",
        "training_run": "",
        "metrics": {},
    }.items():
        (missing,) = missing_facts(replace(FACTS, **{name: empty}))  # type: ignore[arg-type]
        assert missing.name == name
        assert missing.flag.startswith("--")
        assert missing.refused().hint == f"add {missing.flag} (facts.{name} in a request)"


@pytest.mark.parametrize(
    ("commit", "have", "hint"),
    [
        ("2f0c1aa", "'2f0c1aa', 7 of them", "git rev-parse 2f0c1aa prints it"),
        ("2" * 41, f"'{'2' * 41}'", "git rev-parse HEAD"),
        ("A" * 40, f"'{'A' * 40}'", "git rev-parse HEAD prints it; code"),
        ("main", "'main'", "git rev-parse HEAD prints it; code that is in no git repository is unknown"),
        ("2" * 40 + "-dirty", f"'{'2' * 40}-dirty'", "git rev-parse HEAD"),
    ],
)
def test_a_commit_is_a_whole_object_id_or_none(commit: str, have: str, hint: str) -> None:
    (refused,) = misstated(replace(FACTS, code_commit=commit))
    assert (refused.rule, refused.have) == ("code-commit", have) and refused.hint.startswith(hint)
    assert misstated(replace(FACTS, code_commit="2" * 64)) == misstated(replace(FACTS, code_commit="")) == ()


def test_data_without_a_digest_is_not_given() -> None:
    assert [fact.name for fact in missing_facts(replace(FACTS, data=(DataFact(name="corpus"),)))] == ["data"]


def test_a_cost_of_nothing_is_a_cost() -> None:
    assert missing_facts(replace(FACTS, cost_microusd=0), ["cost_microusd"]) == ()
    assert missing_facts(FACTS, ["cost_microusd"]) != ()


def test_a_metric_that_is_no_number_is_unknown_and_not_hidden() -> None:
    known, unknown = finite_metrics({"loss": math.nan, "f1": 0.5, "top": math.inf})
    assert known == {"f1": 0.5}
    assert unknown == (("metrics.loss", "the run reported nan"), ("metrics.top", "the run reported inf"))
