"""Names, references, paths and manifests of model versions."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundplane.domain.canonical import canonical_json, parse_json
from groundplane.domain.model import (
    ManifestFile,
    check_name,
    check_sha256,
    manifest,
    manifest_bytes,
    manifest_sha256,
    parse_ref,
    path_fault,
    path_refusals,
)
from groundplane.errors import InvalidInput

texts = st.text(st.characters(codec="utf-8"))
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)
files = st.builds(
    ManifestFile,
    path=texts.filter(bool),
    sha256=st.text("0123456789abcdef", min_size=64, max_size=64),
    size_bytes=st.integers(0, 2**50),
)


def test_a_reference_names_one_version_or_the_newest() -> None:
    assert parse_ref("tiny-lm@3").number == 3
    assert parse_ref("tiny-lm@latest").number is None
    assert str(parse_ref("tiny-lm@12")) == "tiny-lm@12"


@pytest.mark.parametrize(
    "text", ["tiny-lm", "tiny-lm@", "tiny-lm@0", "tiny-lm@-1", "tiny-lm@v3", "@1", "a@1@2", "../x@1"]
)
def test_anything_else_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        parse_ref(text)
    assert refusal.value.hint


@pytest.mark.parametrize("name", ["", "A", "a/b", "a..b", ".a", "a-", "a" * 64, "ä", "a b", "a\n"])
def test_a_model_name_is_safe_in_paths_and_addresses(name: str) -> None:
    with pytest.raises(InvalidInput):
        check_name(name)


@pytest.mark.parametrize("digest", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_a_digest_is_64_hex_digits_and_nothing_else(digest: str) -> None:
    with pytest.raises(InvalidInput):
        check_sha256(digest)


@pytest.mark.parametrize("path", ["model.safetensors", "a/b/c.json", "日本語/モデル.json", "with space", "..a", "a..b"])
def test_plain_relative_paths_pass(path: str) -> None:
    assert path_fault(path) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "./a",
        "a/",
        "a\\b",
        "a\0b",
        "a\nb",
        "x\u202egpj.exe",
        "\udcff",
        "n" * 256,
    ],
)
def test_other_paths_say_what_is_wrong(path: str) -> None:
    assert path_fault(path)


def test_two_names_that_read_the_same_are_refused() -> None:
    (refused,) = path_refusals(["caf\u00e9.json", "cafe\u0301.json"])
    assert "reads the same" in refused.have


def test_a_file_cannot_be_a_folder_too() -> None:
    (refused,) = path_refusals(["a", "a/b"])
    assert "lies below the file" in refused.have


@settings(deadline=None)
@given(json_values)
def test_canonical_json_reads_back_and_has_one_spelling(value: object) -> None:
    written = canonical_json(value)
    assert parse_json(written) == value
    assert canonical_json(parse_json(written)) == written


@settings(deadline=None)
@given(st.dictionaries(texts, st.integers(), min_size=2, max_size=6))
def test_the_order_in_which_keys_were_given_does_not_show(value: dict[str, int]) -> None:
    assert canonical_json(dict(reversed(value.items()))) == canonical_json(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {1: 2}, {"a": b"bytes"}, object()])
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(InvalidInput):
        canonical_json(value)


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "NaN", "[Infinity]", "{", "[" * 100_000])
def test_reading_is_strict(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_json(text)


@settings(deadline=None)
@given(st.lists(files, max_size=6, unique_by=lambda file: file.path))
def test_a_manifest_does_not_depend_on_the_order_files_were_found_in(found: list[ManifestFile]) -> None:
    assert manifest_sha256(found) == manifest_sha256(list(reversed(found)))
    assert json.loads(manifest_bytes(found)) == [
        {"path": file.path, "sha256": file.sha256, "size_bytes": file.size_bytes} for file in manifest(found)
    ]


@settings(deadline=None)
@given(files, st.sampled_from(["path", "sha256", "size_bytes"]))
def test_a_manifest_changes_with_every_fact_in_it(file: ManifestFile, field: str) -> None:
    facts = {"path": file.path, "sha256": file.sha256, "size_bytes": file.size_bytes}
    facts[field] = {"path": file.path + "x", "sha256": file.sha256[::-1] + "0", "size_bytes": file.size_bytes + 1}[
        field
    ]
    assert manifest_sha256([ManifestFile(**facts)]) != manifest_sha256([file])  # type: ignore[arg-type]
