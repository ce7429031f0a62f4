"""Damage to a version, bit by bit: found, named, and never served; and folders laid out for engines."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from tests.services.model_house import ADA, NOW, House, built, doors_of, flip

from groundplane.adapters.model_files import FolderModelFiles
from groundplane.adapters.store.memory import MemoryStore
from groundplane.domain.hub import Kind
from groundplane.domain.model import ManifestFile
from groundplane.errors import IntegrityFailure
from groundplane.ports import Clock, Store


@pytest.fixture
async def house(clock: Clock, tmp_path: Path) -> House:
    return await built(MemoryStore(), clock, tmp_path)


@pytest.fixture
async def every_house(store: Store, clock: Clock, tmp_path: Path) -> House:
    """On each store in turn: for what depends on how rows are kept."""
    return await built(store, clock, tmp_path)


# ---------------------------------------------------------------- damage


async def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(house: House) -> None:
    version = await house.register()
    for file in version.files:
        if not file.size_bytes:
            continue
        await house.rot(file.sha256)
        checked = await house.verify()
        assert not checked.ok
        assert [problem.field for problem in checked.problems] == [f"file {file.path}"]
        with pytest.raises(IntegrityFailure, match=file.sha256):
            await house.models.materialise("tiny@1", house.home / "out")
        assert not (house.home / "out").exists()
        await house.rot(file.sha256)
    assert (await house.verify()).ok


async def test_a_removed_pack_is_found_and_every_file_in_it_named(house: House) -> None:
    version = await house.register()
    for pack in house.packs():
        pack.unlink()
    checked = await house.verify()
    held = [f"file {file.path}" for file in version.files if file.size_bytes]
    assert [problem.field for problem in checked.problems] == held
    with pytest.raises(IntegrityFailure, match="missing"):
        await house.models.materialise("tiny@1", house.home / "out")
    assert not (house.home / "out").exists()


CHANGES: dict[str, object] = {
    "owner": "eve",
    "license": "MIT",
    "run_id": "run-9",
    "metrics": {"f1": 0.99},
    "created_by": "eve",
    "created_at": NOW + timedelta(microseconds=1),
    "manifest_sha256": "0" * 64,
    "size_bytes": 1,
    "certificate_sha256": "0" * 64,
}


@pytest.mark.parametrize("column", list(CHANGES))
async def test_a_changed_column_is_found_named_and_nothing_is_served(
    every_house: House, clock: Clock, column: str
) -> None:
    await every_house.register()
    await every_house.tamper(**{column: CHANGES[column]})
    checked = await every_house.verify()
    assert not checked.ok
    assert any((column if column != "certificate_sha256" else "certificate") in p.field for p in checked.problems)
    with pytest.raises(IntegrityFailure, match="not what was signed"):
        await every_house.models.materialise("tiny@1", every_house.home / "out")
    with pytest.raises(IntegrityFailure):
        await every_house.models.certificate(ADA, "tiny@1")
    assert not (every_house.home / "out").exists()
    hub, oci = doors_of(every_house, clock)
    with pytest.raises(IntegrityFailure, match="not what was signed"):
        await hub.revision(ADA, Kind.MODELS, "vision", "tiny", "main")
    with pytest.raises(IntegrityFailure, match="not what was signed"):
        await hub.parent(ADA, "vision", "tiny", "")
    with pytest.raises(IntegrityFailure):
        await every_house.models.file(ADA, "tiny@1", "model.safetensors")
    with pytest.raises(IntegrityFailure, match="not what was signed"):
        await oci.manifest(ADA, "vision", "tiny", "latest")


async def test_a_certificate_that_held_a_moment_ago_holds_for_that_very_row_alone(house: House) -> None:
    version = await house.register()
    for column, value in CHANGES.items():
        assert house.models.problems(version) == ()
        assert house.models.problems(replace(version, **{column: value})), column  # type: ignore[arg-type]


async def test_a_swapped_file_is_found_even_when_its_blob_exists(every_house: House) -> None:
    version = await every_house.register()
    config, weights = version.files[0], version.files[2]
    swapped = ManifestFile(path=weights.path, sha256=config.sha256, size_bytes=config.size_bytes)
    await every_house.tamper(files=(config, version.files[1], swapped, version.files[3]))
    fields = [problem.field for problem in (await every_house.verify()).problems]
    assert "manifest" in fields
    assert f"file {weights.path}" in fields


async def test_a_manifest_cannot_be_made_to_write_outside_its_folder(house: House) -> None:
    version = await house.register()
    escaped = ManifestFile(path="../../escaped", sha256=version.files[0].sha256, size_bytes=version.files[0].size_bytes)
    await house.tamper(files=(escaped,))
    with pytest.raises(IntegrityFailure):
        await house.models.materialise("tiny@1", house.home / "models" / "out")
    assert not list(house.home.rglob("escaped"))


async def test_a_flipped_bit_in_the_certificate_is_found(house: House) -> None:
    version = await house.register()
    for position in range(0, len(version.certificate), 97):
        text = version.certificate
        changed = text[:position] + chr(ord(text[position]) ^ 1) + text[position + 1 :]
        await house.tamper(certificate=changed)
        assert "certificate" in (await house.verify()).problems[0].field
        await house.tamper(certificate=text)
    assert (await house.verify()).ok


async def test_without_trust_in_its_key_a_version_is_not_served(house: House) -> None:
    await house.register()
    old = house.signer.key_id
    house.signer.rotate()
    assert (await house.verify()).ok
    (house.home / "keys" / "trusted" / f"{old}.pub").unlink()
    assert [problem.field for problem in (await house.verify()).problems] == ["certificate signature"]
    with pytest.raises(IntegrityFailure, match="no trusted key"):
        await house.models.materialise("tiny@1", house.home / "out")


# ---------------------------------------------------------------- laying out


async def test_a_folder_that_is_already_right_is_kept(house: House) -> None:
    await house.register()
    target = await house.models.materialise("tiny@1", house.home / "out" / "tiny@1")
    before = (target / "config.json").stat()
    assert stat.S_IMODE(before.st_mode) == 0o444
    await house.models.materialise("tiny@1", target)
    assert (target / "config.json").stat().st_ino == before.st_ino


@pytest.mark.parametrize("damage", ["flip", "remove", "add", "link", "empty"])
async def test_a_folder_that_somebody_touched_is_laid_out_anew(house: House, damage: str) -> None:
    await house.register()
    target = await house.models.materialise("tiny@1", house.home / "out" / "tiny@1")
    config = target / "config.json"
    if damage == "flip":
        flip(config)
    elif damage == "remove":
        config.unlink()
    elif damage == "add":
        (target / "sitecustomize.py").write_text("import os")
    elif damage == "link":
        content = config.read_bytes()
        config.unlink()
        (house.home / "elsewhere").write_bytes(content)
        config.symlink_to(house.home / "elsewhere")
    else:
        config.chmod(0o644)
        config.write_bytes(b"")
    await house.models.materialise("tiny@1", target)
    assert not config.is_symlink()
    assert config.read_bytes() == b'{"layers": 2}'
    assert sorted(path.name for path in target.iterdir()) == ["config.json", "empty.txt", "weights", "日本語.txt"]
    assert sorted(path.name for path in target.parent.iterdir()) == [".tiny@1.lock", "tiny@1"]


async def test_many_at_once_lay_out_one_whole_folder(house: House) -> None:
    await house.register()
    target = house.home / "out" / "tiny@1"
    await asyncio.gather(*(house.models.materialise("tiny@1", target) for _ in range(8)))
    assert await FolderModelFiles().problems(target, (await house.models.get(ADA, "tiny@1")).files) == ()


async def test_what_a_crash_left_beside_the_folder_is_cleared_up(house: House) -> None:
    await house.register()
    stale = house.home / "out" / ".tiny@1.0123456789ab.part"
    other = house.home / "out" / ".tiny@12.0123456789ab.part"
    stale.mkdir(parents=True)
    other.mkdir()
    (stale / "half").write_bytes(b"x")
    await house.models.materialise("tiny@1", house.home / "out" / "tiny@1")
    assert not stale.exists()
    assert other.exists()
