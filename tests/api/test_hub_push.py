"""Pushing with an unmodified `huggingface_hub` client: a commit is a version, or a list of what is missing."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import huggingface_hub as hf
import huggingface_hub.constants
import pytest
from huggingface_hub.errors import BadRequestError, EntryNotFoundError, HfHubHTTPError

from groundplane.identity import Role

# huggingface_hub sends bodies the way its own HTTP library is leaving behind.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content:DeprecationWarning")

CARD = f"""---
license: apache-2.0
library_name: transformers
base_model: default/base
groundplane:
  owner: ana
  data:
    - {{name: corpus, sha256: {"a" * 64}}}
  code_commit: "{"0" * 40}"
  training_run: elsewhere-1
  metrics: {{loss: 1.5}}
  cost_usd: 12.5
---
# A model
"""


def safetensors(fill: bytes) -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + fill * 16


@pytest.fixture(autouse=True)
def plain_uploads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/guides/models.md tells people: without the hub's own chunk service."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub(served: Any) -> hf.HfApi:
    return hf.HfApi(endpoint=f"{served.url}/hf", token=served.admin_key)


def model(folder: Path, fill: bytes = b"\0", card: str = CARD) -> Path:
    (folder / "extra").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(safetensors(fill))
    (folder / "config.json").write_text("{}")
    (folder / "extra" / "empty.txt").write_bytes(b"")
    (folder / "README.md").write_text(card)
    return folder


def test_a_pushed_folder_is_a_signed_version(served: Any, hub: hf.HfApi, tmp_path: Path) -> None:
    before = set((served.home / "uploads").glob("upl-*"))
    hub.create_repo("default/pushed")
    told = hub.upload_folder(repo_id="default/pushed", folder_path=model(tmp_path / "m"), commit_message="first")
    version = served.client.model_version("pushed", 1)
    assert told.oid == version.certificate_sha256[:40]
    assert [file.path for file in version.files] == ["README.md", "config.json", "extra/empty.txt", "model.safetensors"]
    assert (version.owner, version.license, version.metrics) == ("ana", "apache-2.0", {"loss": 1.5})
    statement = served.client.certificate("pushed", 1).statement
    assert statement["predicate"]["version"]["base_model"] == "default/base"
    assert served.client.verify_model("pushed", 1).ok
    assert set((served.home / "uploads").glob("upl-*")) <= before, "what is registered leaves the landing place"
    with pytest.raises(HfHubHTTPError, match="exists already"):
        hub.create_repo("default/pushed")
    assert hub.create_repo("default/pushed", exist_ok=True)


def test_a_commit_changes_what_it_names_and_keeps_the_rest(served: Any, hub: hf.HfApi, tmp_path: Path) -> None:
    repo = "default/amended"
    hub.upload_folder(repo_id=repo, folder_path=model(tmp_path / "m"))
    hub.upload_file(repo_id=repo, path_or_fileobj=safetensors(b"\1"), path_in_repo="model.safetensors")
    hub.delete_file(repo_id=repo, path_in_repo="extra/empty.txt")
    first, second, third = (served.client.model_version("amended", number) for number in (1, 2, 3))
    changed = {file.path for file in first.files} - {file.path for file in second.files if file in first.files}
    assert changed == {"model.safetensors"}
    assert {file.path for file in second.files} - {file.path for file in third.files} == {"extra/empty.txt"}
    parent = hub.model_info(repo, revision="v1").sha
    with pytest.raises(HfHubHTTPError, match="is at .* not at"):
        hub.upload_file(repo_id=repo, path_or_fileobj=b"{}", path_in_repo="x.json", parent_commit=parent)


def test_what_changes_nothing_makes_no_version_and_what_is_copied_does_not_travel(
    served: Any, hub: hf.HfApi, tmp_path: Path
) -> None:
    repo, folder = "default/copied", model(tmp_path / "m")
    first = hub.upload_folder(repo_id=repo, folder_path=folder)
    assert hub.upload_folder(repo_id=repo, folder_path=folder).oid == first.oid
    with pytest.raises(EntryNotFoundError, match="no file or folder gone"):
        hub.delete_file(repo_id=repo, path_in_repo="gone.txt")
    lines = [
        json.dumps({"key": "lfsFile", "value": {"path": file.path, "oid": file.sha256}}).encode()
        for file in versions(served, repo)[0]
    ]
    again = served.raw("POST", f"/hf/api/models/{repo}/commit/main", content=b"\n".join(lines))
    assert again.json()["commitOid"] == first.oid
    hub.create_commit(repo, [hf.CommitOperationDelete("extra/empty.txt")], commit_message="less")
    copies = [
        hf.CommitOperationCopy("model.safetensors", "old/model.safetensors", src_revision="v1"),
        hf.CommitOperationCopy("extra/empty.txt", "back.txt", src_revision="v1"),
    ]
    hub.create_commit(repo, copies, commit_message="copies")
    whole, less, more = versions(served, repo)
    assert len(less) == len(whole) - 1
    digests = {file.path: file.sha256 for file in more}
    assert digests["old/model.safetensors"] == digests["model.safetensors"]
    assert digests["back.txt"] == hashlib.sha256(b"").hexdigest()
    assert served.client.verify_model("copied", 3).ok


def test_a_pull_request_is_refused_and_nothing_is_registered_under_its_name(
    served: Any, hub: hf.HfApi, tmp_path: Path
) -> None:
    repo = "default/reviewed"
    hub.upload_folder(repo_id=repo, folder_path=model(tmp_path / "m"))
    with pytest.raises(HfHubHTTPError, match="pull requests are not offered"):
        hub.upload_file(repo_id=repo, path_or_fileobj=b"x", path_in_repo="x.txt", create_pr=True)
    sent = served.raw("POST", f"/hf/api/models/{repo}/commit/main?create_pr=1", content=b"")
    assert (sent.status_code, len(versions(served, repo))) == (422, 1)


def test_the_hubs_own_chunk_service_says_how_to_go_without_it(served: Any) -> None:
    """Its client, `hf_xet`, tells people nothing of an answer but its address."""
    answer = served.raw("GET", "/hf/api/models/default/any/xet-write-token/main", follow_redirects=True)
    assert (answer.status_code, answer.url.path) == (404, "/hf/no-xet-here/set-HF_HUB_DISABLE_XET=1")


def versions(served: Any, repo: str) -> list[Any]:
    """The files of each version, the first first."""
    return [version.files for version in reversed(served.client.model(repo.partition("/")[2]))]


def test_a_card_that_is_silent_is_told_every_missing_fact(hub: hf.HfApi, served: Any, tmp_path: Path) -> None:
    folder = model(tmp_path / "m", card="# Nothing stated")
    with pytest.raises(HfHubHTTPError) as refused:
        hub.upload_folder(repo_id="default/silent-card", folder_path=folder)
    for fact in ("owner", "license", "data", "code commit", "training run", "metrics"):
        assert fact in str(refused.value)
    assert "write it in the head of README.md: groundplane: {owner: NAME}" in str(refused.value)
    with pytest.raises(HfHubHTTPError, match="no repository"):
        hub.model_info("default/silent-card")


def test_a_pickle_is_refused(hub: hf.HfApi, tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    (folder / "model.pkl").write_bytes(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x02id\x85R.")
    with pytest.raises(HfHubHTTPError, match="model.pkl"):
        hub.upload_folder(repo_id="default/pickled", folder_path=folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("code_commit: 0123", "groundplane.code_commit: is 83; write it as text"),
        ("data: corpus", "groundplane.data: is no list"),
        ("metrics: {loss: low}", "groundplane.metrics: is no mapping of names to numbers"),
        ("cost_usd: lots", "groundplane.cost_usd: is no number"),
        ("code_dirty: maybe", "groundplane.code_dirty: is neither"),
        ("colour: gold", "groundplane.colour: is no field"),
    ],
)
def test_a_faulty_card_is_refused_before_anything_is_sent(
    hub: hf.HfApi, tmp_path: Path, line: str, message: str
) -> None:
    folder = model(tmp_path / "m", card=f"---\ngroundplane:\n  {line}\n---\n")
    with pytest.raises((ValueError, BadRequestError)) as refused:
        hub.upload_folder(repo_id="default/faulty", folder_path=folder)
    assert message in str(refused.value)


def test_a_reader_pushes_nothing_and_a_stranger_sees_nothing(served: Any, tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    reader = hf.HfApi(endpoint=f"{served.url}/hf", token=served.key(Role.VIEWER))
    with pytest.raises(HfHubHTTPError, match="may not models:write"):
        reader.upload_folder(repo_id="default/read-only", folder_path=folder)
    served.client.create_project(name="outsiders", owner="bo", cost_center="cc-3")
    stranger = hf.HfApi(endpoint=f"{served.url}/hf", token=served.key(Role.MEMBER, "outsiders"))
    with pytest.raises(HfHubHTTPError, match="no repository"):
        stranger.upload_folder(repo_id="default/strange", folder_path=folder)


def test_a_link_takes_only_the_bytes_it_names(served: Any) -> None:
    oid = "ab" * 32
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 4}]}
    path = "/hf/default/linked.git/info/lfs/objects/batch"
    href = served.raw("POST", path, json=batch).json()["objects"][0]["actions"]["upload"]["href"]
    link = href.removeprefix(served.url)
    answer = served.raw("PUT", link, key="", content=b"else")
    assert answer.status_code == 422
    assert "not abab" in answer.headers["x-error-message"]
    assert served.raw("PUT", link.replace("upl-", "upl-0"), key="", content=b"else").status_code == 404
    assert "actions" in served.raw("POST", path, json=batch).json()["objects"][0], "nothing was kept"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"{", "line 1 of the commit can't be read"),
        (b'{"key": "copyFile", "value": {}}', "the operation copyFile is not offered"),
        (b'{"key": "file", "value": {"path": "a", "content": "%%"}}', "a is no base64"),
        (b'{"key": "lfsFile", "value": {"path": "a", "oid": "' + b"c" * 64 + b'"}}', "a was not uploaded"),
        (b'{"key": "file", "value": {"path": "../a", "content": ""}}', "'../a' has the part '..'"),
    ],
)
def test_a_bad_commit_is_told_and_registers_nothing(served: Any, body: bytes, message: str) -> None:
    answer = served.raw("POST", "/hf/api/models/default/bad/commit/main", content=body)
    assert answer.status_code in (404, 422)
    assert message in answer.headers["x-error-message"]
    assert served.raw("GET", "/hf/api/models/default/bad").status_code == 404
