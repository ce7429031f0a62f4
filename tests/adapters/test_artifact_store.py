"""One conformance suite for every place of packs; then what only a folder can do wrong."""

from __future__ import annotations

import asyncio
import base64
import os
import random
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.adapters.artifact_files import digest, safetensors, tensors, write
from tests.artifact_kills import kill_at_a_bucket
from tests.buckets import container_signature
from tests.conftest import BUCKETS

from groundplane.adapters.artifacts import PackStore, bucket_store, folder_store, memory_store
from groundplane.adapters.artifacts.bucket import BucketObjects
from groundplane.adapters.artifacts.index import Index
from groundplane.adapters.artifacts.writing import Push
from groundplane.client.sending import pieces_of, put_at
from groundplane.domain.packs import Recipe
from groundplane.errors import IntegrityFailure, InvalidInput, NotFound, TooLarge, Unavailable

MIB = 2**20
Make = Callable[[int], PackStore]


@pytest.fixture(params=["folder", "memory", *BUCKETS])
def make(request: pytest.FixtureRequest, tmp_path: Path, new_bucket: Callable[[str], str]) -> Make:
    """Opens a store with a quota in bytes (0: none)."""
    if request.param == "folder":
        return lambda quota_bytes: folder_store(tmp_path / "store", quota_bytes)
    if request.param == "memory":
        return memory_store
    url = new_bucket(request.param)
    return lambda quota_bytes: bucket_store(url, quota_bytes)


@pytest.fixture
def folder(tmp_path: Path) -> PackStore:
    return folder_store(tmp_path / "store")


# ---------------------------------------------------------------- every store


@pytest.mark.parametrize("size_bytes", [0, 1, 2047, 65_536, MIB, 9 * MIB + 17])
async def test_what_was_put_can_be_read_fetched_and_verified(make: Make, tmp_path: Path, size_bytes: int) -> None:
    store, data = make(0), random.Random(size_bytes).randbytes(size_bytes)
    sha256, size = await store.put_file(write(tmp_path / "a", data))
    assert (sha256, size) == (digest(data), size_bytes)
    await store.verify(sha256, size_bytes)
    await store.fetch(sha256, tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    assert await store.read(sha256, 1, 10) == data[1:11]
    assert await store.read(sha256, size_bytes + 5, 10) == b""


async def test_pieces_are_told_of_only_where_a_named_file_has_them(make: Make, tmp_path: Path) -> None:
    store, data = make(0), random.Random(7).randbytes(2 * MIB + 3)
    source = write(tmp_path / "a", data)
    sha256, _ = await store.put_file(source)
    other, _ = await store.put_file(write(tmp_path / "b", b"other"))
    found_sha256, pieces = pieces_of(source)
    names = frozenset(piece.digest.hex() for piece in pieces)
    assert (found_sha256, len(names)) == (sha256, 3), "a client cuts as the store does"
    asked = names | {"0" * 64}
    assert await store.shared(asked, frozenset({sha256, other})) == names
    assert await store.shared(asked, frozenset({other, "1" * 64})) == frozenset()
    last = pieces[-1]
    assert await store.piece(last.digest.hex(), last.length) == data[-3:]
    with pytest.raises(IntegrityFailure):
        await store.piece("0" * 64, 1)


async def test_putting_twice_is_the_same_as_once(make: Make, tmp_path: Path) -> None:
    store = make(0)
    first = await store.put_file(write(tmp_path / "a", b"same"))
    assert await store.put_file(write(tmp_path / "b", b"same")) == first
    await store.verify(*first)


async def test_many_puts_at_once_keep_apart(make: Make, tmp_path: Path) -> None:
    store = make(0)
    paths = [write(tmp_path / str(number), bytes([number % 7]) * 5000 * (number % 7 + 1)) for number in range(60)]
    results = await asyncio.gather(*(store.put_file(path) for path in paths))
    assert [result[0] for result in results] == [digest(path.read_bytes()) for path in paths]


async def test_an_absent_blob_is_not_found(make: Make, tmp_path: Path) -> None:
    store = make(0)
    for call in (store.fetch("0" * 64, tmp_path / "x"), store.verify("0" * 64, 1), store.read("0" * 64, 0, 1)):
        with pytest.raises(NotFound, match="000000"):
            await call
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("bad", ["../../etc/passwd", "A" * 64, "a" * 63, "", "/" * 64, "..", "a" * 63 + "/"])
async def test_what_is_no_digest_never_becomes_a_path(make: Make, tmp_path: Path, bad: str) -> None:
    store = make(0)
    for call in (store.fetch(bad, tmp_path / "x"), store.verify(bad, 1), store.read(bad, 0, 1)):
        with pytest.raises(InvalidInput):
            await call


async def test_a_range_before_the_beginning_is_refused(make: Make, tmp_path: Path) -> None:
    store = make(0)
    sha256, _ = await store.put_file(write(tmp_path / "a", b"abc"))
    with pytest.raises(InvalidInput):
        await store.read(sha256, -1, 2)


async def test_a_wrong_size_is_an_integrity_failure(make: Make, tmp_path: Path) -> None:
    store = make(0)
    sha256, _ = await store.put_file(write(tmp_path / "a", b"abc"))
    with pytest.raises(IntegrityFailure, match="3 bytes, not 4"):
        await store.verify(sha256, 4)


async def test_a_full_quota_names_what_is_needed_and_what_is_free(make: Make, tmp_path: Path) -> None:
    store = make(1000)
    kept = await store.put_file(write(tmp_path / "a", b"a" * 700))
    with pytest.raises(Unavailable, match="needs 400 bytes") as refusal:
        await store.put_file(write(tmp_path / "b", b"b" * 400))
    assert "300 bytes free" in refusal.value.message
    assert "GROUND_STORE_QUOTA" in refusal.value.hint
    assert refusal.value.details == {"need_bytes": 400, "free_bytes": 300}
    with pytest.raises(NotFound):
        await store.read(digest(b"b" * 400), 0, 1)
    await store.verify(*kept)
    assert await store.put_file(write(tmp_path / "c", b"c" * 300)) == (digest(b"c" * 300), 300)


async def test_what_is_stored_already_needs_no_room(make: Make, tmp_path: Path) -> None:
    store = make(1000)
    kept = await store.put_file(write(tmp_path / "a", b"a" * 900))
    assert await store.put_file(write(tmp_path / "again", b"a" * 900)) == kept


async def test_the_quota_holds_when_many_put_at_once(make: Make, tmp_path: Path) -> None:
    store = make(10_000)
    paths = [write(tmp_path / str(number), bytes([number]) * 1000) for number in range(40)]
    results = await asyncio.gather(*(store.put_file(path) for path in paths), return_exceptions=True)
    assert sum(isinstance(result, tuple) for result in results) == 10
    assert sum(isinstance(result, Unavailable) for result in results) == 30


async def test_only_regular_files_are_stored(make: Make, tmp_path: Path) -> None:
    store = make(0)
    (tmp_path / "link").symlink_to(write(tmp_path / "real", b"x"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dir").mkdir()
    for name in ("link", "pipe", "dir"):
        with pytest.raises(InvalidInput):
            await store.put_file(tmp_path / name)
    with pytest.raises(InvalidInput):
        await store.put_file(Path("/dev/null"))
    with pytest.raises(NotFound):
        await store.put_file(tmp_path / "absent")


async def test_many_files_are_stored_together_or_not_at_all(make: Make, tmp_path: Path) -> None:
    store = make(5000)
    paths = [write(tmp_path / str(number), bytes([number]) * 1000) for number in range(8)]
    with pytest.raises(Unavailable):
        await store.put_files(paths)
    usage = await store.usage()
    assert (usage.files, usage.stored_bytes) == (0, 0)
    stored = await store.put_files([*paths[:4], paths[0]])
    assert stored == [(digest(path.read_bytes()), 1000) for path in [*paths[:4], paths[0]]]
    assert (await store.usage()).packs == 1


async def test_a_changed_tensor_or_header_stores_only_its_difference(make: Make, tmp_path: Path) -> None:
    store, parts = make(0), tensors(1)
    await store.put_file(write(tmp_path / "base", safetensors(parts)))
    base = (await store.usage()).stored_bytes
    await store.put_file(write(tmp_path / "tuned", safetensors({**parts, "layer.3": bytes(300_000)})))
    tuned = (await store.usage()).stored_bytes
    assert tuned - base == 300_000
    described = write(tmp_path / "described", safetensors(parts, {"description": "long " * 500}))
    sha256, _ = await store.put_file(described)
    assert (await store.usage()).stored_bytes - tuned < 5000
    await store.fetch(sha256, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == described.read_bytes()


# ---------------------------------------------------------------- every store: without the SHA-256


async def test_what_was_put_without_its_sha256_is_whole_at_once_and_gets_it_later(make: Make, tmp_path: Path) -> None:
    store, contents = make(0), [safetensors(tensors(9, count=32)), b"small", b""]
    paths = [write(tmp_path / str(number), data) for number, data in enumerate(contents)]
    stored = await store.put_unnamed(paths)
    assert [size_bytes for _, size_bytes in stored] == [len(data) for data in contents]
    for (recipe, size_bytes), data in zip(stored, contents, strict=True):
        assert recipe != digest(data)
        await store.verify(recipe, size_bytes)
        await store.fetch(recipe, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == data
    assert await store.put_unnamed(paths) == stored
    before = await store.usage()
    recipes = [recipe for recipe, _ in stored]
    for _ in range(2):
        assert await store.name(recipes) == [digest(data) for data in contents]
    after = await store.usage()
    assert (after.files, after.stored_bytes, after.sharing) == (before.files, before.stored_bytes, before.sharing)
    for data in contents:
        await store.verify(digest(data), len(data))


async def test_a_name_comes_from_a_file_without_one_and_outlives_it(make: Make, tmp_path: Path) -> None:
    store, data = make(0), random.Random(10).randbytes(3 * MIB)
    [(recipe, size_bytes)] = await store.put_unnamed([write(tmp_path / "a", data)])
    await store.collect(frozenset({recipe}), grace_s=0, thorough=True)
    await store.verify(recipe, size_bytes)
    [sha256] = await store.name([recipe])
    for known in (sha256, "0" * 64):
        with pytest.raises(NotFound, match=known[:16]):
            await store.name([recipe, known])
    assert (await store.collect(frozenset({sha256}), grace_s=0, thorough=True)).files == 1
    await store.verify(sha256, size_bytes)
    with pytest.raises(NotFound):
        await store.name([recipe])


# ---------------------------------------------------------------- every store: collection


async def test_a_collection_removes_what_nothing_refers_to_and_keeps_shared_pieces(make: Make, tmp_path: Path) -> None:
    store, parts = make(0), tensors(2)
    kept = await store.put_file(write(tmp_path / "kept", safetensors(parts)))
    dropped, _ = await store.put_file(write(tmp_path / "dropped", safetensors({**parts, "layer.0": bytes(300_000)})))
    other, _ = await store.put_file(write(tmp_path / "other", random.Random(3).randbytes(2 * MIB)))
    done = await store.collect(frozenset({kept[0]}), grace_s=0, thorough=True)
    assert done.files == 2
    assert done.freed_bytes > 2 * MIB
    await store.verify(*kept)
    for sha256 in (dropped, other):
        with pytest.raises(NotFound):
            await store.read(sha256, 0, 1)
    assert (await store.usage()).stored_bytes == kept[1]
    again = await store.collect(frozenset({kept[0]}), grace_s=0, thorough=True)
    assert (again.files, again.freed_bytes) == (0, 0)


async def test_pushes_of_one_content_at_once_all_hold_and_a_collection_leaves_one_copy(
    make: Make, tmp_path: Path
) -> None:
    store, data = make(0), random.Random(13).randbytes(2 * MIB)
    paths = [write(tmp_path / str(number), data) for number in range(5)]
    stored = await asyncio.gather(*(store.put_file(path) for path in paths))
    assert set(stored) == {(digest(data), len(data))}
    await store.collect(frozenset({digest(data)}), grace_s=0, thorough=True)
    assert (await store.usage()).stored_bytes == len(data)
    await store.verify(digest(data), len(data))


async def test_a_collection_spares_what_was_pushed_within_the_grace(make: Make, tmp_path: Path) -> None:
    store = make(0)
    young = await store.put_file(write(tmp_path / "young", b"y" * 5000))
    done = await store.collect(frozenset(), grace_s=3600)
    assert (done.files, done.waiting_bytes) == (0, 5000)
    assert (await store.collect(frozenset({young[0]}), grace_s=3600)).waiting_bytes == 0
    await store.verify(*young)


async def test_many_small_packs_become_few(make: Make, tmp_path: Path) -> None:
    store = make(0)
    stored = [await store.put_file(write(tmp_path / str(number), b"%d" % number * 100)) for number in range(40)]
    assert (await store.usage()).packs == 40
    await store.collect(frozenset(sha256 for sha256, _ in stored), grace_s=0)
    assert (await store.usage()).packs == 1
    for sha256, size_bytes in stored:
        await store.verify(sha256, size_bytes)


async def test_collections_during_pushes_lose_nothing(make: Make, tmp_path: Path) -> None:
    store, chance = make(0), random.Random(5)
    shared = [chance.randbytes(200_000) for _ in range(6)]
    kept: set[str] = set()
    files: list[tuple[str, int]] = []

    async def push(number: int) -> None:
        parts = {f"t{index}": shared[(number + index) % 6] for index in range(4)}
        path = write(tmp_path / str(number), safetensors(parts, {"n": str(number)}))
        for _ in range(5):
            sha256, size_bytes = await store.put_file(path)
            kept.add(sha256)
            files.append((sha256, size_bytes))
            await store.verify(sha256, size_bytes)
            if number % 2:
                kept.discard(sha256)

    async def collecting(done: asyncio.Event) -> None:
        while not done.is_set():
            await store.collect(frozenset(kept), grace_s=60, thorough=True)

    done = asyncio.Event()
    collector = asyncio.create_task(collecting(done))
    await asyncio.gather(*(push(number) for number in range(6)))
    done.set()
    await collector
    for sha256, size_bytes in files:
        await store.verify(sha256, size_bytes)


async def test_a_collection_that_looked_before_a_push_was_published_spares_its_file(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make(0)
    finish, packs = Push.finish, store._index.packs

    def overtaken(push: Push, recipes: Sequence[Recipe]) -> None:
        seen = [packs()]
        finish(push, recipes)
        with monkeypatch.context() as patched:
            patched.setattr(store._index, "packs", lambda: seen.pop() if seen else packs())
            store._collect(frozenset(), 60, thorough=True)

    monkeypatch.setattr(Push, "finish", overtaken)
    for name in ("new", "known already"):
        sha256, size_bytes = await store.put_file(write(tmp_path / name, b"x" * 300_000))
        await store.verify(sha256, size_bytes)


async def test_wherever_a_collection_dies_no_file_is_told_of_without_its_pieces(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, parts = make(0), tensors(4)
    stored = await store.put_unnamed([write(tmp_path / "a", safetensors(parts))])
    await store.put_file(write(tmp_path / "b", safetensors({**parts, "layer.0": bytes(300_000)})))
    await store.name([recipe for recipe, _ in stored])
    delete, told = store._objects.delete, []

    def watched(name: str) -> None:
        delete(name)
        left = Index(store._objects)
        told.append(len(left.recipes()))
        assert all(left.is_whole(recipe) for recipe in left.recipes())

    monkeypatch.setattr(store._objects, "delete", watched)
    await store.collect(frozenset(), grace_s=0)
    assert told == [2, 1, 0]


# ---------------------------------------------------------------- folder


async def test_packs_are_read_only_and_one_content_is_one_pack(folder: PackStore, tmp_path: Path) -> None:
    await folder.put_file(write(tmp_path / "a", b"abc"))
    await folder.put_file(write(tmp_path / "b", b"abc"))
    (pack,) = (tmp_path / "store" / "packs").iterdir()
    assert stat.S_IMODE(pack.stat().st_mode) == 0o444


async def test_twenty_thousand_small_files_are_a_handful_of_packs(folder: PackStore, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    paths = [write(tmp_path / "many" / str(number), b"%d" % number * 50) for number in range(2000)]
    stored = await folder.put_files(paths)
    assert (await folder.usage()).packs == 1
    assert [sha256 for sha256, _ in stored] == [digest(path.read_bytes()) for path in paths]


async def test_files_of_the_first_release_are_read_moved_by_a_push_and_collected(tmp_path: Path) -> None:
    contents = [b"old one", b"old two"]
    for content in contents:
        blob = tmp_path / "store" / "sha256" / digest(content)[:2] / digest(content)[2:]
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
    store = folder_store(tmp_path / "store")
    for content in contents:
        await store.verify(digest(content), 7)
        await store.fetch(digest(content), tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == content
        assert await store.read(digest(content), 4, 3) == content[4:]
    assert (await store.usage()).legacy_bytes == 14
    await store.put_file(write(tmp_path / "a", contents[0]))
    assert (await store.usage()).legacy_bytes == 7
    await store.verify(digest(contents[0]), 7)
    await store.collect(frozenset({digest(contents[0])}), grace_s=0)
    assert (await store.usage()).legacy_bytes == 0
    with pytest.raises(NotFound):
        await store.read(digest(contents[1]), 0, 1)


async def test_packs_move_to_the_cold_folder_and_are_read_from_there(tmp_path: Path) -> None:
    store = folder_store(tmp_path / "store", cold=tmp_path / "cold")
    kept = await store.put_file(write(tmp_path / "a", random.Random(7).randbytes(MIB)))
    assert await store.cool(unread_s=3600) == 0
    assert await store.cool(unread_s=0) > MIB
    assert list((tmp_path / "store" / "packs").iterdir()) == []
    await store.verify(*kept)
    await folder_store(tmp_path / "store", cold=tmp_path / "cold").verify(*kept)


async def test_a_collection_refuses_while_another_process_has_the_store_open(folder: PackStore, tmp_path: Path) -> None:
    script = "import sys; from pathlib import Path; from groundplane.adapters.artifacts import folder_store\n"
    script += "folder_store(Path(sys.argv[1])); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(Unavailable, match="another process"):
            await folder.collect(frozenset(), grace_s=0)
        other.communicate()
    await folder.collect(frozenset(), grace_s=0)


async def test_fetch_replaces_what_lies_at_the_target_whole(folder: PackStore, tmp_path: Path) -> None:
    sha256, _ = await folder.put_file(write(tmp_path / "a", b"new"))
    await folder.fetch(sha256, write(tmp_path / "target", b"something older and longer"))
    assert (tmp_path / "target").read_bytes() == b"new"


async def test_the_quota_counts_what_an_earlier_process_stored(tmp_path: Path) -> None:
    await folder_store(tmp_path / "store").put_file(write(tmp_path / "a", b"a" * 700))
    with pytest.raises(Unavailable, match="300 bytes free"):
        await folder_store(tmp_path / "store", 1000).put_file(write(tmp_path / "b", b"b" * 400))


async def test_a_bucket_is_read_by_a_signed_url_and_by_the_next_process(bucket: str, tmp_path: Path) -> None:
    content = random.Random(12).randbytes(3 * MIB)
    sha256, size_bytes = await bucket_store(bucket).put_file(write(tmp_path / "a", content))
    store = bucket_store(bucket)
    await store.verify(sha256, size_bytes)
    first = (await store.pieces(sha256))[0]
    with urllib.request.urlopen(await store.address(first.pack)) as answer:
        assert answer.read()[first.offset : first.offset + first.size_bytes] == content[: first.size_bytes]
    assert (await store.usage()).free_bytes is None, "a bucket does not say what it could still take"


async def test_a_bundle_put_at_a_signed_address_is_taken_once(bucket: str) -> None:
    store = bucket_store(bucket)
    address = await store.landing("upl-1/a")
    assert put_at(address, b"bytes that pass us by")
    assert await store.take_landing("upl-1/a", 100) == b"bytes that pass us by"
    with pytest.raises(NotFound):
        await store.take_landing("upl-1/a", 100)
    assert put_at(await store.landing("upl-1/b"), b"x" * 101)
    with pytest.raises(TooLarge):
        await store.take_landing("upl-1/b", 100)
    assert put_at(await store.landing("upl-1/c"), b"left behind")
    objects = BucketObjects(bucket)
    assert (objects.sweep_landing(3600), objects.sweep_landing(-1), objects.sweep_landing(-1)) == (0, 1, 0)
    assert not put_at("http://127.0.0.1:9/nobody", b"x")


async def test_a_bucket_that_is_not_there_is_named(bucket: str, tmp_path: Path) -> None:
    scheme, _, name, _ = bucket.split("/")
    with pytest.raises(Unavailable, match=rf"{scheme}//nothinghere/at-all .* 404 Not Found, \w+"):
        bucket_store(f"{scheme}//nothinghere/at-all")
    store = bucket_store(bucket)
    store._objects = BucketObjects(f"{scheme}//{name}gone/here")
    store._index._objects = store._objects
    with pytest.raises(Unavailable, match="404 Not Found"):
        await store.put_file(write(tmp_path / "a", b"a bucket that goes while it is used"))


@pytest.mark.needs("azurite")
async def test_a_wrong_key_is_said_without_giving_anything_away(
    new_bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = new_bucket("azure")
    wrong = base64.b64encode(b"w" * 64).decode()
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", wrong)
    with pytest.raises(Unavailable, match="403 Forbidden, Auth") as refused:
        bucket_store(url)
    assert "credentials" in refused.value.hint
    assert wrong not in str(refused.value) and "sig" not in str(refused.value)


@pytest.mark.needs("azurite")
async def test_a_key_that_may_only_read_is_refused_by_name_and_nothing_is_stored(
    new_bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    url = new_bucket("azure")
    kept = await bucket_store(url).put_file(write(tmp_path / "a", b"kept"))
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY")
    monkeypatch.setenv("AZURE_STORAGE_SAS_KEY", container_signature(url.split("/")[2], "rl"))
    store = bucket_store(url)
    await store.verify(*kept)
    with pytest.raises(Unavailable, match="403 Forbidden, Auth") as refused:
        await store.put_file(write(tmp_path / "b", b"not allowed"))
    assert "sig" not in str(refused.value)
    assert (await store.usage()).files == 1
    assert await store.landing("upl-1/a") == "", "what can't sign has no address to give"


async def test_kills_leave_nothing_half_in_a_bucket(bucket: str, tmp_path: Path) -> None:
    await kill_at_a_bucket(bucket, tmp_path, 4, random.Random(4701))
