"""A node's cache: it spares the way to the store, forgets the least used first, and is never believed."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from tests.api.conftest import Served

from groundplane.client import artifacts as sdk
from groundplane.client.node_cache import NodeCache
from groundplane.errors import InvalidInput


def file(folder: Path, seed: int, size_bytes: int = 1000) -> tuple[str, Path]:
    path = folder / f"file-{seed}"
    path.write_bytes(random.Random(seed).randbytes(size_bytes))
    return hashlib.sha256(path.read_bytes()).hexdigest(), path


def test_the_least_recently_used_goes_first_and_pinned_files_stay(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 3000)
    files = [file(tmp_path, seed) for seed in range(4)]
    for age, (sha256, path) in enumerate(files[:3]):
        assert cache.take(sha256, path, pin=age == 0)
        os.utime(tmp_path / "cache" / "files" / sha256, (age + 1, age + 1))
    assert cache.give(files[1][0], tmp_path / "out")
    assert cache.take(*files[3])
    assert [cache.give(sha256, tmp_path / "out") for sha256, _ in files] == [True, True, False, True]
    assert cache.used_bytes == 3000
    cache.unpin(files[0][0])


def test_what_does_not_fit_beside_the_pinned_is_not_kept_and_nothing_is_lost_for_it(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 3000)
    pinned = file(tmp_path, 1, 2000)
    assert cache.take(*pinned, pin=True)
    assert not cache.take(*file(tmp_path, 2, 1500))
    assert cache.take(*file(tmp_path, 3, 900))
    assert cache.used_bytes == 2900
    with pytest.raises(InvalidInput):
        NodeCache(tmp_path / "none", 0)


def test_drafts_of_a_dead_process_are_swept(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "cache", 3000)
    (tmp_path / "cache" / "files" / ".dead").write_bytes(b"half")
    cache.take(*file(tmp_path, 1))
    assert not (tmp_path / "cache" / "files" / ".dead").exists()


def test_a_second_pull_asks_for_no_bytes_and_a_rotten_cache_heals(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, path = file(tmp_path, int.from_bytes(os.urandom(4)), 3_000_000)
    artifact = served.client.push(path, name="cached", project="default")
    asked: list[int] = []
    pull_file = sdk.pull_file

    def remote(pieces: object, target: Path, through_us: object, progress: object) -> None:
        pieces.addresses.clear()  # type: ignore[attr-defined]
        pull_file(pieces, target, lambda at, n: asked.append(n) or through_us(at, n), progress)  # type: ignore

    monkeypatch.setattr(sdk, "pull_file", remote)
    cache = NodeCache(tmp_path / "cache", 10_000_000)
    served.client.pull(artifact.id, tmp_path / "one", cache=cache)
    assert sum(asked) == 3_000_000
    asked.clear()
    served.client.pull(artifact.id, tmp_path / "two", cache=cache)
    assert asked == []
    cached = tmp_path / "cache" / "files" / artifact.files[0].sha256
    data = bytearray(cached.read_bytes())
    data[5] ^= 1
    cached.write_bytes(data)
    served.client.pull(artifact.id, tmp_path / "three", cache=cache)
    assert asked
    for place in ("one", "two", "three"):
        assert (tmp_path / place / path.name).read_bytes() == path.read_bytes()
