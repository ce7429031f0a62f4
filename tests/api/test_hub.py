"""The registry as a Hugging Face hub: an unmodified `huggingface_hub` client, then the wire itself."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub as hf
import pytest
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from groundplane.domain.dataset import DatasetFacts
from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.errors import Refusal
from groundplane.identity import Role

FACTS = Facts(
    owner="ana",
    license="Apache-2.0",
    framework="jax",
    data=(DataFact(name="corpus", sha256="a" * 64),),
    code_commit="0" * 40,
    training_run="elsewhere-1",
    metrics={"loss": 1.5},
)
REPO = "default/hubbed"
LARGE = 3 * 2**20 // 2 + 7
"""More than one chunk, and no whole number of them."""
GGUF = struct.pack("<4sIQQ", b"GGUF", 3, 0, 0)
"""A file without tensors and metadata."""


def weights(first: float, tensors: int = 1, size: int = LARGE // 4 * 4) -> bytes:
    told = {
        f"w{at}": {"dtype": "F32", "shape": [size // 4], "data_offsets": [at * size, (at + 1) * size]}
        for at in range(tensors)
    }
    header = json.dumps(told).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", first) + os.urandom(tensors * size - 4)


def register(served: Any, name: str, content: dict[str, bytes], folder: Path) -> str:
    """A version of these files; its id."""
    upload = served.client.create_upload()
    for path, data in content.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        served.client.upload_file(upload.id, path, folder / path)
    return str(served.client.register_model(name, upload_id=upload.id, project="default", facts=FACTS).id)


@pytest.fixture(scope="module")
def files(served: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, bytes]]:
    """Two versions of a model; the content of each."""
    versions = []
    for number in (1, 2):
        folder = tmp_path_factory.mktemp("model")
        content = {
            "model.safetensors": weights(number),
            "config.json": b'{"version": %d}' % number,
            "tokenizer/vocab.txt": b"a\nb\n",
            "empty.txt": b"",
        }
        register(served, "hubbed", content, folder)
        versions.append(content)
    return versions


@pytest.fixture
def hub(served: Any, files: Any) -> hf.HfApi:
    return hf.HfApi(endpoint=f"{served.url}/hf", token=served.admin_key)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "cache"


def content_of(folder: str | Path) -> dict[str, bytes]:
    root = Path(folder)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_snapshot_of_main_is_the_newest_version_byte_for_byte(hub: hf.HfApi, files: Any, cache: Path) -> None:
    assert content_of(hub.snapshot_download(REPO, cache_dir=cache)) == files[1]


@pytest.mark.parametrize("revision", ["1", "v1"])
def test_a_version_is_a_revision(hub: hf.HfApi, files: Any, cache: Path, revision: str) -> None:
    assert content_of(hub.snapshot_download(REPO, revision=revision, cache_dir=cache)) == files[0]


def test_a_commit_names_its_version_for_ever(hub: hf.HfApi, files: Any, cache: Path) -> None:
    commit = hub.model_info(REPO, revision="v1").sha
    assert commit is not None
    assert commit != hub.model_info(REPO).sha
    assert content_of(hub.snapshot_download(REPO, revision=commit, cache_dir=cache)) == files[0]
    assert hub.model_info(REPO, revision=commit[:8]).sha == commit


def test_a_second_download_sends_no_bytes_again(hub: hf.HfApi, cache: Path) -> None:
    first = hub.hf_hub_download(REPO, "model.safetensors", cache_dir=cache)
    before = Path(first).resolve().stat().st_mtime_ns
    second = hub.hf_hub_download(REPO, "model.safetensors", cache_dir=cache)
    assert second == first
    assert Path(second).resolve().stat().st_mtime_ns == before


def test_a_broken_download_goes_on_where_it_stopped(hub: hf.HfApi, served: Any, files: Any, cache: Path) -> None:
    whole = files[1]["model.safetensors"]
    digest = hashlib.sha256(whole).hexdigest()
    begun = cache / "models--default--hubbed" / "blobs" / f"{digest}.incomplete"
    begun.parent.mkdir(parents=True)
    begun.write_bytes(whole[: LARGE // 2])
    assert Path(hub.hf_hub_download(REPO, "model.safetensors", cache_dir=cache)).read_bytes() == whole


def test_info_tells_files_with_their_digests_and_the_licence(hub: hf.HfApi, files: Any) -> None:
    info = hub.model_info(REPO, files_metadata=True)
    assert {each.rfilename for each in info.siblings or []} == set(files[1])
    for each in info.siblings or []:
        assert each.lfs is not None
        assert each.lfs.sha256 == hashlib.sha256(files[1][each.rfilename]).hexdigest()
        assert each.size == len(files[1][each.rfilename])
    assert info.private
    assert info.tags == ["license:apache-2.0"]


def test_trees_paths_and_refs_are_listed(hub: hf.HfApi, files: Any) -> None:
    top = {entry.path for entry in hub.list_repo_tree(REPO)}
    assert top == {"config.json", "empty.txt", "model.safetensors", "tokenizer"}
    deep = {entry.path for entry in hub.list_repo_tree(REPO, recursive=True)}
    assert deep == top | {"tokenizer/vocab.txt"}
    assert {entry.path for entry in hub.list_repo_tree(REPO, "tokenizer")} == {"tokenizer/vocab.txt"}
    assert set(hub.list_repo_files(REPO)) == set(files[1])
    assert [entry.path for entry in hub.get_paths_info(REPO, ["config.json", "tokenizer", "gone"])] == [
        "config.json",
        "tokenizer",
    ]
    refs = hub.list_repo_refs(REPO)
    assert [branch.name for branch in refs.branches] == ["main"]
    assert [tag.name for tag in refs.tags] == ["v1", "v2"]
    assert refs.tags[1].target_commit == refs.branches[0].target_commit


def test_the_filesystem_reads_a_range(served: Any, hub: hf.HfApi, files: Any) -> None:
    filesystem = hf.HfFileSystem(endpoint=f"{served.url}/hf", token=served.admin_key, skip_instance_cache=True)
    with filesystem.open(f"{REPO}/model.safetensors", "rb") as file:
        file.seek(LARGE // 2)
        assert file.read(1000) == files[1]["model.safetensors"][LARGE // 2 : LARGE // 2 + 1000]


def test_repositories_are_searched_and_the_caller_knows_itself(hub: hf.HfApi) -> None:
    assert REPO in [model.id for model in hub.list_models(search="HUBB")]
    assert not list(hub.list_models(search="hubbed", author="elsewhere"))
    assert hub.whoami()["type"] == "user"


def test_what_is_not_there_is_told_apart(hub: hf.HfApi, cache: Path) -> None:
    with pytest.raises(RepositoryNotFoundError, match="there is no repository default/absent"):
        hub.model_info("default/absent")
    with pytest.raises(RepositoryNotFoundError, match="did you mean default/hubbed"):
        hub.model_info("elsewhere/hubbed")
    with pytest.raises(RevisionNotFoundError, match="no revision v9"):
        hub.model_info(REPO, revision="v9")
    with pytest.raises(EntryNotFoundError, match=r"no file gone\.bin"):
        hub.hf_hub_download(REPO, "gone.bin", cache_dir=cache)
    with pytest.raises(EntryNotFoundError, match="no folder gone"):
        list(hub.list_repo_tree(REPO, "gone"))
    assert list(cache.glob("models--default--hubbed/.no_exist/*/gone.bin")), "clients remember what is not there"
    assert not hub.file_exists(REPO, "gone.bin")
    assert hub.file_exists(REPO, "config.json")


def test_an_alias_that_a_gate_refused_says_so_and_names_no_way_around_it(
    served: Any, hub: hf.HfApi, tmp_path: Path
) -> None:
    gate = """apiVersion: groundplane/v1
kind: Gate
metadata: {name: loss, project: default}
spec:
  model: guarded
  aliases: [production]
  requirements:
    - {metric: loss, at_most: 1.0}
"""
    register(served, "guarded", {"config.json": b"{}"}, tmp_path)
    served.client.define_gates(gate)
    with pytest.raises(Refusal):
        served.client.move_alias("guarded", "production", to="1", reason="try")
    with pytest.raises(RevisionNotFoundError) as refused:
        hub.snapshot_download("default/guarded", revision="production", cache_dir=tmp_path)
    assert "guarded@1 may not stand there: gate default/loss: loss: needs loss <= 1" in str(refused.value)
    assert "ground gates checks guarded@1" in str(refused.value)
    assert "main" not in str(refused.value)


def test_a_key_without_the_right_gets_the_sentence_and_is_not_sent_to_look_for_its_network(
    served: Any, files: Any, cache: Path
) -> None:
    caller = hf.HfApi(endpoint=f"{served.url}/hf", token=served.key(Role.CALLER))
    with pytest.raises(GatedRepoError, match="has the role caller, which may not models:read") as refused:
        caller.hf_hub_download(REPO, "config.json", cache_dir=cache)
    assert str(refused.value).count("has the role caller") == 1


def test_what_is_not_what_was_signed_stops_a_client_that_has_it_in_its_cache(
    served: Any, hub: hf.HfApi, tmp_path: Path
) -> None:
    made = register(served, "forged", {"config.json": b"{}"}, tmp_path / "files")
    hub.snapshot_download("default/forged", cache_dir=tmp_path)
    with contextlib.closing(sqlite3.connect(served.home / "groundplane.db", timeout=60)) as raw, raw:
        raw.execute("UPDATE model_versions SET license = 'MIT' WHERE id = ?", (made,))
    for load in (hub.snapshot_download, lambda repo, **more: hub.hf_hub_download(repo, "config.json", **more)):
        with pytest.raises(RevisionNotFoundError, match="forged@1 is not what was signed: license: the row says 'MIT'"):
            load("default/forged", cache_dir=tmp_path)


def test_damaged_bytes_end_a_download_with_the_reason(served: Any, hub: hf.HfApi, tmp_path: Path) -> None:
    content = weights(3, tensors=2, size=5 * 2**18)
    register(served, "bitten", {"model.safetensors": content}, tmp_path / "files")
    seen = content[-64:]
    for pack in (served.home / "store" / "packs").iterdir():
        at = pack.read_bytes().find(seen)
        if at >= 0:
            pack.chmod(0o644)
            with pack.open("r+b") as file:
                file.seek(at)
                file.write(bytes([seen[0] ^ 1]))
            break
    else:
        pytest.fail("no pack has the end of the file")
    with pytest.raises(RevisionNotFoundError, match=r"piece [0-9a-f]{64} has changed"):
        hub.hf_hub_download("default/bitten", "model.safetensors", cache_dir=tmp_path)


def test_a_gguf_file_is_found_by_its_quantisation(served: Any, tmp_path: Path) -> None:
    """As node-llama-cpp asks for `hf:default/quantised:Q8_0`, and llama.cpp did before it read trees."""
    names = ("mmproj-F16.gguf", "q-Q8_0-00001-of-00002.gguf", "q-Q8_0-00002-of-00002.gguf", "q-q4_k_m.gguf")
    register(served, "quantised", dict.fromkeys(names, GGUF), tmp_path)

    def file_of(tag: str) -> str:
        answer = served.raw("GET", f"/hf/v2/default/quantised/manifests/{tag}")
        return str(answer.json()["ggufFile"]["rfilename"]) if answer.is_success else answer.headers["x-error-message"]

    assert file_of("Q8_0") == "q-Q8_0-00001-of-00002.gguf"
    assert file_of("IQ2_M").startswith("quantised@1 has no GGUF file with IQ2_M in its name; ground models show")
    assert served.raw("GET", "/hf/v2/default/hubbed/manifests/latest").status_code == 404


def test_versions_are_commits_and_each_file_says_which_changed_it_last(hub: hf.HfApi, files: Any) -> None:
    newest, first = hub.list_repo_commits(REPO)
    assert [newest.title, first.title] == ["registered hubbed@2", "registered hubbed@1"]
    assert [each.commit_id for each in hub.list_repo_commits(REPO, revision="v1")] == [first.commit_id]
    last = {each.path: each.last_commit.oid for each in hub.list_repo_tree(REPO, recursive=True, expand=True)}
    assert last["model.safetensors"] == last["config.json"] == newest.commit_id
    assert last["tokenizer"] == last["tokenizer/vocab.txt"] == last["empty.txt"] == first.commit_id
    (told,) = hub.get_paths_info(REPO, ["empty.txt"], expand=True)
    assert told.last_commit.oid == first.commit_id


def test_a_filter_is_never_left_out_and_what_is_not_kept_says_so(hub: hf.HfApi, files: Any) -> None:
    assert REPO in [model.id for model in hub.list_models(filter="license:apache-2.0", sort="last_modified")]
    assert not list(hub.list_models(search="hubbed", filter="license:mit"))
    hub.auth_check(REPO)
    with pytest.raises(RepositoryNotFoundError):
        hub.auth_check("default/absent")
    for call in (lambda: hub.space_info(REPO), lambda: hub.create_branch(REPO, branch="dev")):
        with pytest.raises(HfHubHTTPError, match="here") as refused:
            call()
        assert not isinstance(refused.value, RepositoryNotFoundError), "the repository is there"


def test_a_dataset_that_is_kept_here_is_a_repository_too(served: Any, hub: hf.HfApi, tmp_path: Path) -> None:
    facts = DatasetFacts(owner="ana", license="MIT", classification="internal")
    versions = []
    for number in (1, 2):
        folder = tmp_path / f"data{number}"
        (folder / "data").mkdir(parents=True)
        (folder / "data" / "train.csv").write_text("text,label\n" + "a,1\n" * number)
        (folder / "README.md").write_text("# rows")
        pushed = served.client.push(folder, name="rows", project="default")
        served.client.register_dataset("rows", project="default", facts=facts, artifact_id=pushed.id)
        versions.append(content_of(folder))
    served.client.register_dataset(
        "far", project="default", facts=facts, location="s3://elsewhere/far", files=pushed.files
    )
    assert "default/rows" in [each.id for each in hub.list_datasets()]
    told = hub.dataset_info("default/rows", files_metadata=True)
    assert (told.sha, told.tags) != (hub.dataset_info("default/rows", revision="v1").sha, [])
    for revision, content in (("v1", versions[0]), ("main", versions[1]), (told.sha, versions[1])):
        got = hub.snapshot_download("default/rows", repo_type="dataset", revision=revision, cache_dir=tmp_path / "c")
        assert content_of(got) == content
    filesystem = hf.HfFileSystem(endpoint=f"{served.url}/hf", token=served.admin_key, skip_instance_cache=True)
    assert filesystem.read_text("datasets/default/rows@v1/data/train.csv") == "text,label\na,1\n"
    with pytest.raises(RepositoryNotFoundError, match="far@1 lies at s3://elsewhere/far"):
        hub.dataset_info("default/far")
    stranger = hf.HfApi(endpoint=f"{served.url}/hf", token=served.key(Role.MEMBER, project_of(served, "far-away")))
    with pytest.raises(RepositoryNotFoundError):
        stranger.dataset_info("default/rows")


def test_a_key_spelt_as_a_hubs_token_walks_the_way_of_llama_cpp(served: Any, files: Any) -> None:
    """It sends no token that is not `hf_` and letters and digits, and asks so (llama.cpp `common/hf-cache.cpp`)."""
    spelt = "hf_" + served.key(Role.VIEWER, "default").replace("-", "")
    assert re.fullmatch("hf_[0-9A-Za-z]{34,253}", spelt)
    refs = served.raw("GET", f"/hf/api/models/{REPO}/refs", key=spelt).json()
    commit = next(branch["targetCommit"] for branch in refs["branches"] if branch["name"] == "main")
    listed = served.raw("GET", f"/hf/api/models/{REPO}/tree/{commit}?recursive=true", key=spelt).json()
    weights = next(each for each in listed if each["path"] == "model.safetensors")
    got = served.raw("GET", f"/hf/{REPO}/resolve/{commit}/{weights['path']}", key=spelt).content
    assert hashlib.sha256(got).hexdigest() == weights["lfs"]["oid"]
    for wrong in (spelt[:-1] + "7", "hf_gp" + "a" * 40, "hf_gpviewer"):
        assert served.raw("GET", f"/hf/api/models/{REPO}/refs", key=wrong).status_code == 401


def project_of(served: Any, name: str) -> str:
    served.client.create_project(name=name, owner="bo", cost_center="cc-2")
    return name


def test_another_projects_key_and_no_key_see_nothing(served: Any, hub: hf.HfApi) -> None:
    stranger = hf.HfApi(endpoint=f"{served.url}/hf", token=served.key(Role.MEMBER, project_of(served, "strangers")))
    with pytest.raises(RepositoryNotFoundError):
        stranger.model_info(REPO)
    nobody = hf.HfApi(endpoint=f"{served.url}/hf", token=False)
    with pytest.raises(HfHubHTTPError, match="this needs a key"):
        nobody.model_info(REPO)


@pytest.mark.parametrize(
    ("asked", "status", "told", "part"),
    [
        ("bytes=0-0", 206, "bytes 0-0/14", slice(0, 1)),
        ("bytes=5-", 206, "bytes 5-13/14", slice(5, 14)),
        ("bytes=-3", 206, "bytes 11-13/14", slice(11, 14)),
        ("bytes=3-99", 206, "bytes 3-13/14", slice(3, 14)),
        ("bytes=14-", 416, "bytes */14", slice(0, 0)),
        ("bytes=-0", 416, "bytes */14", slice(0, 0)),
        ("bytes=4-2", 200, None, slice(0, 14)),
        ("bytes=0-1,4-5", 200, None, slice(0, 14)),
        ("items=0-1", 200, None, slice(0, 14)),
    ],
)
def test_ranges_are_answered_by_the_book(
    served: Any, files: Any, asked: str, status: int, told: str | None, part: slice
) -> None:
    path = f"/hf/{REPO}/resolve/main/config.json"
    answer = served.raw("GET", path, headers={"Range": asked})
    assert (answer.status_code, answer.headers.get("content-range")) == (status, told)
    assert answer.content == files[1]["config.json"][part]
    head = served.raw("HEAD", path, headers={"Range": asked})
    assert (head.status_code, head.content) == (status, b"")
    assert head.headers.get("content-length", "0") == str(len(answer.content))


def test_an_etag_is_the_files_digest_and_saves_the_answer(served: Any, files: Any) -> None:
    path = f"/hf/{REPO}/resolve/main/config.json"
    whole = files[1]["config.json"]
    answer = served.raw("GET", path)
    etag = answer.headers["etag"]
    assert etag == f'"{hashlib.sha256(whole).hexdigest()}"'
    assert served.raw("GET", path, headers={"If-None-Match": etag}).status_code == 304
    other = served.raw("GET", path, headers={"Range": "bytes=0-3", "If-Range": '"another"'})
    assert (other.status_code, other.content) == (200, whole)


def test_a_body_that_names_no_paths_is_told(served: Any, files: Any) -> None:
    answer = served.raw("POST", f"/hf/api/models/{REPO}/paths-info/main", json={"path": "config.json"})
    assert answer.status_code == 422
    assert "names no paths" in answer.headers["x-error-message"]
