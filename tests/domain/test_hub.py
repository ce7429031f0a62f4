"""What names mean to a hub's clients: revisions, and GGUF files by their quantisation."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from groundplane.domain.hub import Kind, Revision, Wanted, gguf_file, wanted
from groundplane.domain.model import ManifestFile


@pytest.mark.parametrize(
    ("revision", "meant"),
    [
        ("main", Wanted()),
        ("latest", Wanted()),
        ("3", Wanted(number=3)),
        ("v3", Wanted(number=3)),
        ("v1234567", Wanted(number=1_234_567)),
        ("1234567", Wanted(commit="1234567")),
        ("abcdef0", Wanted(commit="abcdef0")),
        ("production", Wanted(alias="production")),
        ("refs/pr/1", None),
        ("0", None),
    ],
)
def test_a_revision_is_a_branch_a_number_a_commit_or_an_alias(revision: str, meant: Wanted | None) -> None:
    assert wanted(revision) == meant


def of_files(*names: str) -> Revision:
    files = tuple(ManifestFile(path=name, sha256="a" * 64, size_bytes=1) for name in names)
    told = {"id": "m@1", "project": "p", "name": "m", "number": 1, "commit": "c" * 40, "license": "", "made_by": "ana"}
    return Revision(kind=Kind.MODELS, files=files, made_at=datetime(2026, 11, 22, tzinfo=UTC), **told)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("tag", "file"),
    [
        ("latest", "m-q4_k_m.gguf"),
        ("Q4_K_M", "m-q4_k_m.gguf"),
        ("q8_0", "big/m-Q8_0-00001-of-00002.gguf"),
        ("F16", "m.F16.gguf"),
        ("Q4", None),
        (".*", None),
    ],
)
def test_a_quantisation_names_one_file(tag: str, file: str | None) -> None:
    parts = [f"big/m-Q8_0-0000{part}-of-00002.gguf" for part in (1, 2)]
    found = gguf_file(of_files("config.json", "mmproj-F16.gguf", "m.F16.gguf", "m-q4_k_m.gguf", *parts), tag)
    assert (found.path if found else None) == file


def test_without_the_usual_quantisation_the_first_file_is_meant() -> None:
    assert gguf_file(of_files("m-Q8_0.gguf", "a-IQ1_S.gguf"), "latest") is not None
    assert gguf_file(of_files("model.safetensors"), "latest") is None
