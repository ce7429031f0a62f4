"""Artifacts over HTTP: named on this machine, sent from elsewhere, pulled by pieces, and broken off at any moment."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.api.conftest import Served

from groundplane.api.artifacts import LAYOUT_FILES
from groundplane.api.staging import Staging
from groundplane.client import Client
from groundplane.client import artifacts as sdk
from groundplane.errors import Forbidden, IntegrityFailure, InvalidInput, NotFound
from groundplane.identity import Role

MIB = 2**20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "model"
    (made / "weights").mkdir(parents=True)
    (made / "weights" / "a.bin").write_bytes(random.Random(str(tmp_path)).randbytes(MIB + 17))
    (made / "weights" / "b.bin").write_bytes(random.Random(1).randbytes(300_000))
    (made / "empty").write_bytes(b"")
    return made


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client on another machine: it can't write where uploads land, and sees no pack."""
    monkeypatch.setattr(sdk, "_name_sources", lambda folder, files: False)
    pull_file = sdk.pull_file
    monkeypatch.setattr(
        sdk,
        "pull_file",
        lambda file, target, through_us, progress: pull_file(
            type(file)(sha256=file.sha256, size_bytes=file.size_bytes, pieces=file.pieces, addresses={}),
            target,
            through_us,
            progress,
        ),
    )


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_folder_is_named_on_this_machine_and_pulled_back(served: Served, folder: Path, tmp_path: Path) -> None:
    counted: list[int] = []
    artifact = served.client.push(folder, name="tiny", project="default", progress=counted.append)
    assert sum(counted) == artifact.size_bytes == MIB + 300_017
    counted.clear()
    served.client.pull("tiny", tmp_path / "out", progress=counted.append)
    assert content(tmp_path / "out") == content(folder)
    assert sum(counted) == artifact.size_bytes
    assert served.client.verify_artifact(artifact.id).ok


def test_many_small_files_are_asked_for_together(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(LAYOUT_FILES + 3):
        (tmp_path / "in" / str(number)).write_text(str(number))
    artifact = served.client.push(tmp_path / "in", name="many", project="default")
    asked: list[str] = []
    get = Client._get

    def noting(client: Client, path: str, answer: Any, *, params: Any = None) -> Any:
        asked.append(path)
        return get(client, path, answer, params=params)

    monkeypatch.setattr(Client, "_get", noting)
    served.client.pull(artifact.id, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "in")
    assert asked.count(f"/v1/artifacts/{artifact.id}/layout") == len(asked) == 2


@pytest.mark.usefixtures("elsewhere")
def test_from_elsewhere_only_unknown_files_are_sent(
    served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.client.push(folder, name="sent", project="default")
    sent: list[str] = []
    upload_file = Client.upload_file

    def noting(client: Client, upload_id: str, path: str, source: Path) -> Any:
        sent.append(path)
        return upload_file(client, upload_id, path, source)

    monkeypatch.setattr(Client, "upload_file", noting)
    (folder / "config.json").write_text(f'{{"path": "{tmp_path}"}}')
    artifact = served.client.push(folder, name="sent", project="default")
    assert sent == ["config.json"]
    served.client.pull(artifact.id, tmp_path / "out")
    assert content(tmp_path / "out") == content(folder)


def test_a_push_that_waits_for_no_sha256_is_an_artifact_for_whoever_asks(
    served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for here in (True, False):
        if not here:
            monkeypatch.setattr(sdk, "_name_sources", lambda folder, files: False)
        arrival = served.client.arrive(folder, name="early", project="default")
        assert arrival.size_bytes == MIB + 300_017
        pulled = served.client.pull(arrival.id, tmp_path / str(here))
        assert (pulled.id, content(tmp_path / str(here))) == (arrival.id, content(folder))
    assert arrival.id not in {each.id for each in served.client.arrivals(project="default")}
    body = {"upload_id": served.client.create_upload().id, "name": "early", "project": "default"}
    known = [{"path": "a", "sha256": "0" * 64, "size_bytes": 1}]
    assert served.raw("POST", "/v1/arrivals", json={**body, "known": known}).status_code == 422
    with Client(served.url, served.key(Role.VIEWER)) as viewer, pytest.raises(Forbidden):
        viewer.arrive(folder, name="early", project="default")
    assert "ground_store_arriving_bytes 0" in served.client.metrics()
    assert "artifact.arrive" in {event.action for event in served.client.audit_events()}


@pytest.mark.usefixtures("elsewhere")
def test_a_push_that_broke_off_goes_on_with_what_arrived(
    served: Served, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload = served.client.create_upload()
    served.client.upload_file(upload.id, "weights/a.bin", folder / "weights" / "a.bin")
    sent: list[str] = []
    upload_file = Client.upload_file
    monkeypatch.setattr(
        Client,
        "upload_file",
        lambda client, id, path, source: sent.append(path) or upload_file(client, id, path, source),
    )
    (folder / "weights" / "b.bin").write_bytes(str(tmp_path).encode())
    artifact = served.client.push(folder, name="resumed", project="default", resume=upload.id)
    assert "weights/a.bin" not in sent
    served.client.pull(artifact.id, tmp_path / "out")
    assert content(tmp_path / "out") == content(folder)


@pytest.mark.usefixtures("elsewhere")
def test_a_pull_that_broke_off_reads_only_what_is_missing(served: Served, folder: Path, tmp_path: Path) -> None:
    big = random.Random(str(tmp_path)).randbytes(2 * MIB)
    (folder / "weights" / "a.bin").write_bytes(big)
    artifact = served.client.push(folder, name="part", project="default")
    file = next(file for file in artifact.files if file.path == "weights/a.bin")
    place = tmp_path / "out" / "weights"
    place.mkdir(parents=True)
    (place / f".a.bin.{file.sha256[:16]}.part").write_bytes(big)
    asked: list[int] = []
    pieces = served.client.pieces(artifact.id, file.path)
    through_us = served.client._range_of(artifact.id, file.path)
    sdk.pull_file(
        pieces, place / "a.bin", lambda at, count: asked.append(count) or through_us(at, count), lambda count: None
    )
    assert asked == []
    assert (place / "a.bin").read_bytes() == big


def test_a_piece_that_changed_on_its_way_is_refused_and_named(served: Served, folder: Path, tmp_path: Path) -> None:
    artifact = served.client.push(folder, name="spoilt", project="default")
    pieces = served.client.pieces(artifact.id, "weights/b.bin")
    pieces.addresses.clear()
    with pytest.raises(IntegrityFailure, match=pieces.pieces[0].blake3):
        sdk.pull_file(pieces, tmp_path / "b", lambda at, count: bytes(count), lambda count: None)
    assert not (tmp_path / "b").exists()


def test_nobody_names_files_by_sending_a_list_of_them(served: Served, tmp_path: Path) -> None:
    """The list of sources lies outside the tree that uploads fill: only the control plane's own user writes there."""
    (tmp_path / "x").write_text('{"passwd": "/etc/passwd"}')
    upload = served.client.create_upload()
    served.client.upload_file(upload.id, "sources.json", tmp_path / "x")
    body = {"upload_id": upload.id, "name": "loot", "project": "default"}
    made = served.raw("POST", "/v1/artifacts", json=body).json()
    assert [file["path"] for file in made["files"]] == ["sources.json"]
    answer = served.raw("PUT", f"/v1/uploads/{upload.id}/%2e%2e/sources.json", content=b"{}")
    assert answer.status_code in {404, 422}


def test_links_and_empty_folders_are_refused_before_anything_is_sent(served: Served, tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    with pytest.raises(InvalidInput, match="holds no files"):
        served.client.push(tmp_path / "f", name="x", project="default")
    (tmp_path / "f" / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match="no regular file"):
        served.client.push(tmp_path / "f", name="x", project="default")
    with pytest.raises(NotFound):
        served.client.push(tmp_path / "absent", name="x", project="default")


def test_members_push_and_operators_keep_the_store(served: Served, folder: Path) -> None:
    with Client(served.url, served.key(Role.MEMBER)) as member:
        artifact = member.push(folder, name="mine", project="default")
        for call in (member.collect, member.scrub, lambda: member.set_storage_quota("default", 1)):
            with pytest.raises(Forbidden):
                call()
        assert member.delete_artifact(artifact.id, "done").id == artifact.id
    assert served.client.scrub().ok
    assert served.client.storage().store.packs >= 1
    assert "ground_store_bytes" in served.client.metrics()
    actions = {event.action for event in served.client.audit_events()}
    assert {"artifact.push", "artifact.delete"} <= actions


def test_every_way_is_a_command_too(served: Served, folder: Path, tmp_path: Path) -> None:
    def ground(*words: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "GROUND_URL": served.url, "GROUND_KEY": served.admin_key}
        command = [sys.executable, "-m", "groundplane.cli", "artifacts", *words]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    pushed = ground("push", str(folder), "--name", "by-hand", "--keep-until", "30d", "-o", "json")
    assert pushed.returncode == 0, pushed.stderr
    early = ground("push", str(folder), "--name", "early-by-hand", "--no-wait")
    assert (early.returncode, "its SHA-256 follows" in early.stdout) == (0, True), early.stderr
    assert "sha256:" in ground("show", "early-by-hand").stdout
    assert ground("arriving").stdout == "nothing is arriving\n"
    assert ground("pull", "by-hand", str(tmp_path / "out")).returncode == 0
    assert content(tmp_path / "out") == content(folder)
    for words in (("ls",), ("show", "by-hand"), ("verify", "by-hand"), ("du",), ("gc",), ("scrub",)):
        assert ground(*words).returncode == 0
    refused = ground("quota", "default", "much")
    assert (refused.returncode, "hint: write 500GiB" in refused.stderr) == (2, True)
    assert ground("pull", "absent").returncode == 4


_PULL_FOREVER = """
import sys
from pathlib import Path
from groundplane.api.staging import Staging
from groundplane.client import Client
with Client(sys.argv[1], sys.argv[2]) as client:
    print("ready", flush=True)
    while True:
        client.pull(sys.argv[3], Path(sys.argv[4]))
        client.push(Path(sys.argv[5]), name="again", project="default")
"""


def test_a_client_killed_at_any_moment_leaves_whole_files_and_goes_on(
    served: Served, folder: Path, tmp_path: Path
) -> None:
    artifact = served.client.push(folder, name="killed", project="default")
    wanted, out, chance = content(folder), tmp_path / "out", random.Random(4711)
    command = [sys.executable, "-c", _PULL_FOREVER, served.url, served.admin_key, artifact.id, str(out), str(folder)]
    for _ in range(5):
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(chance.random() * 0.2)
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            child.communicate()
        shown = {path: data for path, data in content(out).items() if not Path(path).name.startswith(".")}
        assert all(wanted[path] == data for path, data in shown.items())
    served.client.pull(artifact.id, out)
    assert content(out) == wanted
    for each in served.client.artifacts(limit=1000):
        if each.name == "again":
            assert {file.path: file.sha256 for file in each.files} == {
                path: hashlib.sha256(data).hexdigest() for path, data in wanted.items()
            }
    assert served.client.scrub().ok


def test_files_named_for_a_registration_are_linked_and_not_sent(
    served: Served, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Client, "upload_file", lambda *given: pytest.fail("it was sent"))
    upload = served.client.create_upload()
    files = sdk.local_files(folder)
    served.client.upload_files(upload, files)
    staging = Staging(served.home / "uploads", 2**30)
    landed = asyncio.run(staging.folder(upload.id, served.client.whoami().key_id))
    assert content(landed) == content(folder)
    assert (landed / "weights" / "a.bin").samefile(folder / "weights" / "a.bin")
