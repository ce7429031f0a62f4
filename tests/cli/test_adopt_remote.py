"""`ground models adopt hf:…` and `mlflow:…`: from another registry to a certificate, each byte as stated there."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from safetensors.numpy import save
from tests.adapters.torch_files import torch_zip, whole
from tests.stage import Answer, Asked, Played

from groundplane.adapters import model_sources
from groundplane.domain.provenance.certificate import DataFact, Facts
from groundplane.errors import NotFound

STATED = ("--owner", "ana", "--license", "Apache-2.0", "--metric", "f1=0.9")
NOWHERE = ("--unknown", "data=nobody says", "--unknown", "code_commit=nobody says", "--unknown", "training_run=no")
COMMIT = "c" * 40
WEIGHTS = save({"w": np.arange(6, dtype=np.float32)})


class Hub(Played):
    """A hub that says what it is told to, on a free loopback port."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {"model.safetensors": WEIGHTS, "config.json": b"{}"}
        self.listed: list[dict[str, Any]] | None = None
        self.key = self.elsewhere = ""
        self.asked: list[str] = []
        self.keys = set[str]()
        super().__init__(self._answer)

    def _answer(self, asked: Asked) -> Answer:
        key = asked.headers.get("Authorization", "")
        self.asked.append(asked.path)
        self.keys.add(key)
        return self.answer(asked.path, key)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"type": "file", "path": path, "size": len(data), "oid": _git(data),
             **({"lfs": {"oid": hashlib.sha256(data).hexdigest()}} if path.endswith(".safetensors") else {})}
            for path, data in self.files.items()
        ]  # fmt: skip

    def answer(self, path: str, key: str) -> Answer:
        if self.key and key != f"Bearer {self.key}":
            return Answer(401, b"Invalid credentials")
        if path.startswith("/api/models/org/name/revision/"):
            return Answer(200, {"sha": COMMIT, "cardData": {"license": "MIT", "base_model": "org/base"}})
        if path.startswith(f"/api/models/org/name/tree/{COMMIT}"):
            rows = self.listed if self.listed is not None else self.rows()
            page = int(path.partition("page=")[2] or 0)  # one row a page: the real hub has pages, too
            more = {"Link": f'<{self.url}{path.partition("&page")[0]}&page={page + 1}>; rel="next"'}
            return Answer(200, rows[page : page + 1], more if page + 1 < len(rows) else {})
        name = path.removeprefix(f"/org/name/resolve/{COMMIT}/")
        if self.elsewhere:
            return Answer(302, headers={"Location": self.elsewhere + path})
        return Answer(200, self.files[name]) if name in self.files else Answer(404, b"Entry not found")


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub()
    monkeypatch.setenv("HF_ENDPOINT", made.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield made
    made.close()


def test_a_model_comes_from_a_hub_with_what_its_card_states(up: Any, say: Any, hub: Hub) -> None:
    hub.files["nested/tokenizer.json"] = b'{"a": 1}'
    words = ("models", "adopt", "hf:org/name@v1", "--name", "from-hub", "--project", "research", "--owner", "ana")
    said = say(up, *words)
    assert said.code == 3 and "--data" in said.err and "--license" not in said.err  # its card has the licence
    said = say(up, *words, "--metric", "f1=0.9", *NOWHERE)
    assert said.code == 0, said.err
    told = say(up, "models", "certificate", "from-hub@1", "-o", "json").data["statement"]
    predicate = told["predicate"]
    assert predicate["adoption"]["from"] == f"hf:org/name@{COMMIT}"
    assert (predicate["version"]["license"], predicate["version"]["base_model"]) == ("mit", "org/base")
    digests = {row["name"]: row["digest"]["sha256"] for row in told["subject"]}
    assert digests == {path: hashlib.sha256(data).hexdigest() for path, data in hub.files.items()}
    with up.client as client:
        (entry, *_) = client.adoptions()
    assert entry.id == "from-hub@1"


def test_weights_in_a_hubs_pickle_are_converted_on_the_way(up: Any, say: Any, hub: Hub) -> None:
    weights = {"layer.w": whole("0", np.ones((4, 3), np.float32))}
    hub.files = {"pytorch_model.bin": torch_zip({"state_dict": weights}), "config.json": b"{}"}
    words = ("models", "adopt", "hf:org/name", "--name", "unpickled", "--project", "research")
    said = say(up, *words, *STATED, *NOWHERE)
    assert said.code == 0, said.err
    assert "pytorch_model.bin → model.safetensors: 1 tensors, each compared" in said.out


@pytest.mark.parametrize(
    ("listed", "code", "words"),
    [
        ({"path": "config.json", "size": 2, "lfs": {"oid": "0" * 64}}, 8, "has digest"),
        ({"path": "config.json", "size": 2, "oid": "0" * 40}, 8, "has digest"),
        ({"path": "config.json", "size": 1, "oid": _git(b"{}")}, 8, "1 are stated"),
        ({"path": "../config.json", "size": 2}, 2, "has the part '..'"),
        ({"path": "gone.json", "size": 2}, 4, "answered 404"),
        ({"path": "config.json", "size": 2**62}, 6, "free"),
    ],
)
def test_what_is_not_as_stated_does_not_come_in(
    up: Any, say: Any, hub: Hub, listed: dict[str, Any], code: int, words: str
) -> None:
    hub.listed = [{"type": "file", **listed}]
    said = say(up, "models", "adopt", "hf:org/name", "--name", "bad", "--project", "research", *STATED, *NOWHERE)
    assert (said.code, words in said.err) == (code, True), said.err


def test_a_hub_that_wants_a_key_is_told_apart_from_one_that_is_down(
    up: Any, say: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.key = "secret-of-the-hub"
    words = ("models", "adopt", "hf:org/name", "--name", "bad", "--project", "research", *STATED, *NOWHERE)
    refused = say(up, *words)
    assert refused.code == 7 and "HF_TOKEN" in refused.err
    monkeypatch.setenv("HF_TOKEN", "another")
    assert say(up, *words).code == 7
    monkeypatch.setenv("HF_TOKEN", hub.key)
    elsewhere = Hub()  # where the hub's files lie, as with the real one: it gets no key
    hub.elsewhere, elsewhere.files = elsewhere.url, hub.files
    private = say(up, *words)
    assert private.code == 0, private.err
    assert hub.key not in private.out + private.err
    assert hub.keys == {"", "Bearer another", f"Bearer {hub.key}"} and elsewhere.keys == {""}
    elsewhere.close()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    silent = say(up, *words)
    assert silent.code == 6 and "does not answer" in silent.err
    assert say(up, "models", "adopt", "hf:org name", *words[3:]).code == 2


def test_of_a_run_that_the_tracking_server_has_lost_the_name_is_kept() -> None:
    class Forgetful:
        def ask(self, path: str, **asked: object) -> dict[str, Any]:
            raise NotFound(f"no run {asked['run_id']}", "")

    assert model_sources._run_facts(Forgetful(), "8f2c") == {"training_run": "mlflow:8f2c"}  # type: ignore[arg-type]


def test_our_own_hub_and_tracking_server_are_sources_as_any(
    up: Any, say: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, base = (up.path / "keys" / "admin").read_text().strip(), f"http://127.0.0.1:{up.port}"
    monkeypatch.setenv("HF_ENDPOINT", f"{base}/hf")
    monkeypatch.setenv("HF_TOKEN", key)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{base}/mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", key)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_bytes(b"{}")
    data = (DataFact(name="corpus", sha256="1" * 64),)
    facts = Facts(owner="ana", license="MIT", data=data, code_commit="2" * 40, training_run="r", metrics={"f1": 0.9})
    with up.client as ours:
        upload = ours.create_upload()
        for name in ("model.safetensors", "config.json"):
            ours.upload_file(upload.id, name, folder / name)
        ours.register_model("origin", upload_id=upload.id, project="research", facts=facts)

    words = ("--project", "research", *STATED, *NOWHERE)
    hubbed = say(up, "models", "adopt", "hf:research/origin@v1", "--name", "from-own-hub", *words)
    assert hubbed.code == 0, hubbed.err
    mirrored = say(up, "models", "adopt", "mlflow:models:/origin/1", "--name", "from-own-mlflow", *words)
    assert mirrored.code == 0, mirrored.err

    # A name with a password goes before a token, as MLflow's client has it.
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ana")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    unknown = say(up, "models", "adopt", "mlflow:models:/origin/1", "--name", "x", *words)
    assert unknown.code == 7 and "MLFLOW_TRACKING_USERNAME" in unknown.err, unknown.err
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", key)
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "wrong")
    named = say(up, "models", "adopt", "mlflow:models:/origin/1", "--name", "from-named", *words)
    assert named.code == 0 and key not in named.out + named.err, named.err

    client = mlflow.MlflowClient(tracking_uri=f"{base}/mlflow")
    run = client.create_run(client.create_experiment("adoptable"))
    client.log_metric(run.info.run_id, "f1", 0.93)
    client.log_param(run.info.run_id, "lr", "1e-4")
    client.set_tag(run.info.run_id, "mlflow.source.git.commit", "4" * 40)
    client.log_artifacts(run.info.run_id, str(folder), "model")
    source = f"mlflow:runs:/{run.info.run_id}/model"
    given = ("--project", "research", "--owner", "ana", "--license", "MIT", "--unknown", "data=nobody says")
    tracked = say(up, "models", "adopt", source, "--name", "from-run", *given)
    assert tracked.code == 0, tracked.err
    said = say(up, "models", "certificate", "from-run@1", "-o", "json").data["statement"]["predicate"]
    assert (said["metrics"], said["hyperparameters"], said["code"]["commit"]) == (
        {"f1": 0.93},
        {"lr": "1e-4"},
        "4" * 40,
    )
    assert said["run"]["id"] == f"mlflow:{run.info.run_id}"
    assert {row["fact"]: row["why"] for row in said["unknown"]}["data"] == "nobody says"

    missing = say(up, "models", "adopt", "mlflow:models:/origin/9", "--name", "x", *words)
    assert missing.code == 4, missing.err
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert say(up, "models", "adopt", "mlflow:models:/origin/1", "--name", "x", *words).code == 2
