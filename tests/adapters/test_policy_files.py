"""The port of policy files: one suite for the folder and for memory, then what only a folder can do."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundplane.adapters.policy_files import FolderPolicyFiles, MemoryPolicyFiles
from groundplane.errors import IntegrityFailure, InvalidInput
from groundplane.ports import PolicyFiles

TEAM = "policy: groundplane/policy/v1\n"


@pytest.fixture(params=["folder", "memory"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> PolicyFiles:
    if request.param == "memory":
        return MemoryPolicyFiles({"a.yaml": TEAM})
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "a.yaml").write_text(TEAM)
    return FolderPolicyFiles(tmp_path / "policy", tmp_path / "kept.json")


async def test_policy_files_are_read_and_the_last_good_ones_kept(files: PolicyFiles):
    assert await files.read() == {"a.yaml": TEAM}
    assert await files.last_good() == {}
    await files.keep({"a.yaml": TEAM})
    await files.keep({"b.yaml": "x"})
    assert await files.last_good() == {"b.yaml": "x"}
    assert files.folder


async def test_a_folder_takes_its_yaml_files_and_says_which_it_cannot_read(tmp_path: Path):
    folder = tmp_path / "policy"
    files = FolderPolicyFiles(folder, tmp_path / "kept.json")
    assert await files.read() == {}
    folder.mkdir()
    for name in ("b.yml", ".hidden.yaml", "notes.txt", "a.yaml~"):
        (folder / name).write_text("x")
    assert list(await files.read()) == ["b.yml"]
    (folder / "c.yaml").write_bytes(b"\xff")
    (folder / "d.yaml").mkdir()
    with pytest.raises(InvalidInput) as caught:
        await files.read()
    assert [problem.field for problem in caught.value.problems] == ["c.yaml", "d.yaml"]
    (tmp_path / "kept.json").write_text('{"sha256": "x", "files": {}}')
    with pytest.raises(IntegrityFailure, match="is not what was written"):
        await files.last_good()
