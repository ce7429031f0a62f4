"""The snapshot file is replaced whole: a reader sees the old or the new one, whatever happens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from groundplane.adapters.snapshot_file import SnapshotFile
from groundplane.domain.serving.snapshot import Snapshot, decode, encode
from groundplane.errors import Unavailable


async def test_a_reader_never_sees_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "gateway" / "snapshot.json"
    sink = SnapshotFile(path)
    snapshots = [encode(Snapshot(version=n, compiled_at=0.0, budgets={"p" * n: n})) for n in range(1, 60)]
    await sink.publish(snapshots[0])
    seen = []
    publishing = asyncio.gather(*(sink.publish(one) for one in snapshots[1:]))
    while not publishing.done():
        seen.append(decode(path.read_bytes()).version)
        await asyncio.sleep(0)
    await publishing
    assert seen and [one.name for one in path.parent.iterdir()] == ["snapshot.json"]
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unavailable, match=r"snapshot\.json can't be written"):
        await SnapshotFile(tmp_path / "file" / "snapshot.json").publish(b"{}")
