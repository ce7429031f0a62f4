"""Only complete, verified checkpoints are reported and resumed from."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from groundplane.domain.run import EndReason

SAVE = """
import hashlib, json, os, time
def save(step, data=b"weights", **changes):
    folder = os.path.join(os.environ["GROUND_CHECKPOINT_DIR"], f"step-{step}")
    os.makedirs(folder)
    with open(os.path.join(folder, "w.bin"), "wb") as file: file.write(data)
    entry = {"path": "w.bin", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **changes}
    with open(os.path.join(folder, "manifest.json"), "w") as file:
        metrics = {"loss": 1 / step, "note": "x", "bad": float("inf")}
        json.dump({"step": step, "files": [entry], "metrics": metrics}, file)
"""


def checkpoint(root: Path, step: int, data: bytes = b"weights", **changes: Any) -> Path:
    folder = root / f"step-{step}"
    folder.mkdir(parents=True)
    (folder / "w.bin").write_bytes(data)
    entry = {"path": "w.bin", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), **changes}
    (folder / "manifest.json").write_text(json.dumps({"step": step, "files": [entry]}))
    return folder


@pytest.fixture
def store(node: Any) -> Path:
    return Path(node.order("x", "true").checkpoint_dir)


async def test_checkpoints_show_up_while_the_job_runs(node: Any) -> None:
    await node.python(SAVE + "save(10); save(20)\ntime.sleep(60)")
    seen = await node.until(lambda seen: len(seen.checkpoints) == 2)
    assert [found.step for found in seen.checkpoints] == [10, 20]
    assert seen.checkpoints[0].size_bytes == 7
    assert seen.checkpoints[0].metrics == {"loss": 0.1}
    assert seen.checkpoints[1].path.endswith("step-20")


async def test_one_written_at_the_very_end_is_not_missed(node: Any) -> None:
    await node.python(SAVE + "save(7)")
    assert [found.step for found in (await node.ended()).checkpoints] == [7]


async def test_half_written_and_damaged_ones_are_never_reported(node: Any) -> None:
    await node.python(
        SAVE + "save(1)\n"
        "save(2, bytes=99)\n"  # short: still being written
        "save(3, sha256='0' * 64)\n"  # right size, wrong bytes
        "save(4, path='missing.bin')\n"
        "save(5, path='../step-1/w.bin')\n"  # not its own file
        "os.makedirs(os.environ['GROUND_CHECKPOINT_DIR'] + '/step-6')\n"
        "open(os.environ['GROUND_CHECKPOINT_DIR'] + '/step-6/manifest.json', 'w').write('{\"step\": 6, \"fi')\n"
        "os.symlink('step-1', os.environ['GROUND_CHECKPOINT_DIR'] + '/latest')\n"
        "time.sleep(0.5)"
    )
    seen = await node.ended()
    assert seen.end_reason is EndReason.SUCCEEDED
    assert [found.step for found in seen.checkpoints] == [1]


async def test_the_next_attempt_resumes_from_the_newest_complete_one(node: Any, store: Path) -> None:
    checkpoint(store, 10)
    newest = checkpoint(store, 20)
    checkpoint(store, 30, sha256="0" * 64)
    checkpoint(store, 40, bytes=1_000_000)
    await node.start("echo from=$GROUND_RESUME_FROM")
    seen = await node.ended()
    assert node.log() == f"from={newest}\n".encode()
    assert node.state()["resumed_from_step"] == 20
    assert [found.step for found in seen.checkpoints] == [10, 20]


async def test_one_that_was_incomplete_is_found_once_it_is_whole(node: Any, store: Path) -> None:
    folder = checkpoint(store, 5, bytes=14, sha256=hashlib.sha256(b"weights" * 2).hexdigest())
    await node.start("sleep 60")
    await node.until(lambda seen: seen.state == "running" and seen.cpu_percent is not None)
    assert (await node.see()).checkpoints == ()
    (folder / "w.bin").write_bytes(b"weights" * 2)
    assert (await node.until(lambda seen: seen.checkpoints)).checkpoints[0].size_bytes == 14


async def test_one_the_job_removed_is_reported_no_more(node: Any) -> None:
    await node.python(
        SAVE + "import shutil\nsave(1); time.sleep(1); save(2)\n"
        "shutil.rmtree(os.environ['GROUND_CHECKPOINT_DIR'] + '/step-1'); time.sleep(60)"
    )
    await node.until(lambda seen: [found.step for found in seen.checkpoints] == [1])
    await node.until(lambda seen: [found.step for found in seen.checkpoints] == [2])


async def test_files_may_be_listed_by_name(node: Any, store: Path) -> None:
    folder = checkpoint(store, 3)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["files"].pop()
    manifest["files"] = {entry.pop("path"): entry}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    await node.start("true")
    assert [found.step for found in (await node.ended()).checkpoints] == [3]
