"""Where a model may be adopted from besides this machine: Hugging Face hubs, and MLflow tracking servers.

Both are read over their documented routes alone, into a folder, each file checked against the size and digest that the
source states. Facts that the source knows come along; whether they are believed is the adopter's to say.
Sources: Hugging Face Hub API (`/api/models/{repo}/revision`, `/tree`, `/resolve`); MLflow REST API 2.0
(model-versions, registered-models/alias, runs, logged-models, mlflow-artifacts), as MLflow 3 speaks it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from groundplane.domain.model import path_fault
from groundplane.domain.provenance.certificate import is_commit
from groundplane.domain.provenance.model_card import CARD, facts_of
from groundplane.domain.scanning.licences import plain
from groundplane.errors import Conflict, IntegrityFailure, InvalidInput, NotFound, Unauthenticated, Unavailable
from groundplane.units import format_bytes

HF_ENDPOINT = "https://huggingface.co"
FILES_MAX = 20_000
PAGES_MAX = 1_000
TIMEOUT_S = 60.0
_CHUNK_BYTES = 2**20
_AGAIN = "try again; if it stays so, don't use it"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_NOT_PART = {".gitattributes"}
_FLAVOURS = ("transformers", "pytorch", "tensorflow", "keras", "sklearn", "xgboost", "lightgbm", "onnx", "spacy")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Remote:
    """One file to fetch; what is empty or None was not stated. `git_oid` is git's SHA-1 over the file as a blob."""

    path: str
    url: str
    size_bytes: int | None = None
    sha256: str = ""
    git_oid: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What came: from where exactly, and the facts that the source states, by the names of `certificate.Facts`."""

    source: str
    files: int
    size_bytes: int
    facts: dict[str, Any] = field(default_factory=dict)


def fetch(source: str, folder: Path, env: Mapping[str, str] = os.environ) -> Fetched:
    """Fills `folder` with a remote model's files. Unauthenticated, NotFound, Unavailable, IntegrityFailure, or

    InvalidInput for an address that is none. What was fetched before a failure is the caller's to remove.
    """
    if source.startswith("hf:"):
        return _hub(source.removeprefix("hf:"), folder, env)
    return _mlflow(source.removeprefix("mlflow:"), folder, env)


# ---------------------------------------------------------------- Hugging Face


def _hub(address: str, folder: Path, env: Mapping[str, str]) -> Fetched:
    repository, _, revision = address.partition("@")
    revision = revision or "main"
    if not _REPOSITORY.fullmatch(repository) or revision != revision.strip() or not revision.isprintable():
        raise InvalidInput(f"hf:{address} names no repository", "write hf:org/name@revision")
    endpoint = (env.get("HF_ENDPOINT") or HF_ENDPOINT).rstrip("/")
    token = env.get("HF_TOKEN", "")
    with _Wire(endpoint, {"Authorization": f"Bearer {token}"} if token else {}, "HF_TOKEN") as wire:
        info = wire.ask(f"/api/models/{repository}/revision/{quote(revision, safe='')}")
        commit = str(info.get("sha") or "")
        if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
            raise Unavailable(f"{endpoint} states no commit of {repository}@{revision}", "is it a Hugging Face hub?")
        files = [
            _Remote(
                path=str(row.get("path")),
                url=f"/{repository}/resolve/{commit}/{quote(str(row.get('path')))}",
                size_bytes=row.get("size") if isinstance(row.get("size"), int) else None,
                sha256=str((row.get("lfs") or {}).get("oid") or ""),
                git_oid="" if row.get("lfs") else str(row.get("oid") or ""),
            )
            for row in wire.pages(f"/api/models/{repository}/tree/{commit}?recursive=true")
            if row.get("type") == "file" and str(row.get("path")) not in _NOT_PART
        ]
        size_bytes = wire.fetch_all(files, folder)
    facts = _card_facts(folder, info.get("cardData"))
    return Fetched(source=f"hf:{repository}@{commit}", files=len(files), size_bytes=size_bytes, facts=facts)


def _card_facts(folder: Path, card_data: object) -> dict[str, Any]:
    """What the card says, in our own words where it uses them; a card that can't be read says nothing."""
    facts: dict[str, Any] = {}
    try:
        stated = facts_of((folder / CARD).read_text(encoding="utf-8")) if (folder / CARD).is_file() else None
    except (InvalidInput, UnicodeDecodeError):
        stated = None
    if stated is not None:
        names = ("owner", "license", "framework", "base_model", "code_commit", "training_run", "metrics", "sla",
                 "hyperparameters")  # fmt: skip
        facts = {name: value for name in names if (value := getattr(stated, name))}
        if stated.data:
            facts["data"] = [(each.name, each.sha256) for each in stated.data]
    data = card_data if isinstance(card_data, Mapping) else {}
    licence, base = data.get("license"), data.get("base_model")
    if isinstance(licence, str) and licence not in ("other", "unknown"):
        facts.setdefault("license", plain(licence))
    if base:
        facts.setdefault("base_model", ", ".join(map(str, base)) if isinstance(base, list) else str(base))
    return facts


# ---------------------------------------------------------------- MLflow


def _mlflow(address: str, folder: Path, env: Mapping[str, str]) -> Fetched:
    uri = env.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if urlsplit(uri).scheme not in ("http", "https"):
        raise InvalidInput(
            f"MLFLOW_TRACKING_URI is {uri or 'not set'}", "set it to the tracking server, such as http://mlflow:5000"
        )
    headers, auth = {}, None
    # Name and password come before a token, as MLflow's own client has it.
    if (user := env.get("MLFLOW_TRACKING_USERNAME")) and (password := env.get("MLFLOW_TRACKING_PASSWORD")):
        auth = (user, password)
    elif token := env.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    with _Wire(uri, headers, "MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and _PASSWORD,", auth) as wire:
        exact, place, run_id, facts = _find(wire, address)
        root = _proxied(place)
        files = list(_artifacts(wire, root, ""))
        if not files:
            raise NotFound(f"mlflow:{address} has no files at {place}", "was the model logged?")
        size_bytes = wire.fetch_all(files, folder)
        facts = {**facts, **(_run_facts(wire, run_id) if run_id else {}), **_flavour(folder)}
    return Fetched(source=f"mlflow:{exact}", files=len(files), size_bytes=size_bytes, facts=facts)


def _find(wire: _Wire, address: str) -> tuple[str, str, str, dict[str, Any]]:
    """(exact address, where its files are, the run that made it, what is known of it)."""
    if found := re.fullmatch(r"runs:/([\w-]+)/(.+)", address):
        run = wire.ask("/api/2.0/mlflow/runs/get", run_id=found[1])["run"]
        path = found[2].strip("/")
        place = f"{str(run['info']['artifact_uri']).rstrip('/')}/{path}"
        # MLflow 3 keeps a logged model apart from its run's files; the run's outputs say which it is.
        for output in (run.get("outputs") or {}).get("model_outputs", ()):
            model = wire.ask(f"/api/2.0/mlflow/logged-models/{quote(str(output['model_id']), safe='')}")["model"]
            if model["info"].get("name") == path:
                place = str(model["info"]["artifact_uri"])
        return address, place, found[1], {}
    if found := re.fullmatch(r"models:/(m-[0-9a-f]+)", address):
        info = wire.ask(f"/api/2.0/mlflow/logged-models/{found[1]}")["model"]["info"]
        return address, str(info["artifact_uri"]), str(info.get("source_run_id") or ""), {}
    found = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/([0-9]+|latest))", address)
    if found is None:
        raise InvalidInput(
            f"mlflow:{address} is no model", "write mlflow:models:/NAME/VERSION, models:/NAME@ALIAS or runs:/RUN/PATH"
        )
    name, alias, number = found[1], found[2], found[3]
    if alias:
        row = wire.ask("/api/2.0/mlflow/registered-models/alias", name=name, alias=alias)["model_version"]
    elif number == "latest":
        listed = wire.ask("/api/2.0/mlflow/model-versions/search", filter=f"name='{_quoted(name)}'", max_results=1000)
        rows = listed.get("model_versions") or []
        if not rows:
            raise NotFound(f"there is no model {name} at {wire.base}", "")
        row = max(rows, key=lambda each: int(each["version"]))
    else:
        row = wire.ask("/api/2.0/mlflow/model-versions/get", name=name, version=number)["model_version"]
    version = str(row["version"])
    place = wire.ask("/api/2.0/mlflow/model-versions/get-download-uri", name=name, version=version)["artifact_uri"]
    if logged := re.fullmatch(r"models:/(m-[0-9a-f]+)", str(place)):
        place = wire.ask(f"/api/2.0/mlflow/logged-models/{logged[1]}")["model"]["info"]["artifact_uri"]
    described = {"description": str(row["description"])} if row.get("description") else {}
    return f"models:/{name}/{version}", str(place), str(row.get("run_id") or ""), described


def _quoted(name: str) -> str:
    return name.replace("'", "\\'")


def _proxied(place: str) -> str:
    """The path of an artifact at the tracking server's own store; other stores are not read with others' keys."""
    parts = urlsplit(place)
    if parts.scheme != "mlflow-artifacts":
        raise Unavailable(
            f"its files are at {place}, which the tracking server does not hand out",
            "start it with --serve-artifacts, or fetch them yourself and adopt the folder",
        )
    return parts.path.strip("/")


def _artifacts(wire: _Wire, root: str, below: str, depth: int = 0) -> Iterator[_Remote]:
    if depth > 20:
        raise Unavailable(f"{root} has folders 20 deep", "adopt a part of it")
    listed = wire.ask("/api/2.0/mlflow-artifacts/artifacts", path=f"{root}/{below}".rstrip("/"))
    for row in listed.get("files") or []:
        # Servers say paths from the asked folder; its last part is all that counts here.
        path = f"{below}/{PurePosixPath(str(row['path'])).name}".lstrip("/")
        if row.get("is_dir"):
            yield from _artifacts(wire, root, path, depth + 1)
        else:
            size = row.get("file_size")
            url = f"/api/2.0/mlflow-artifacts/artifacts/{quote(f'{root}/{path}')}"
            yield _Remote(path=path, url=url, size_bytes=int(size) if size is not None else None)


def _run_facts(wire: _Wire, run_id: str) -> dict[str, Any]:
    """Metrics, parameters, commit, user and data of the run that made it; its id alone where the run is gone."""
    try:
        data = wire.ask("/api/2.0/mlflow/runs/get", run_id=run_id)["run"]
    except NotFound:
        return {"training_run": f"mlflow:{run_id}"}
    tags = {row["key"]: row["value"] for row in data["data"].get("tags") or []}
    facts: dict[str, Any] = {
        "training_run": f"mlflow:{run_id}",
        "metrics": {row["key"]: float(row["value"]) for row in data["data"].get("metrics") or []},
        "hyperparameters": {row["key"]: str(row["value"]) for row in data["data"].get("params") or []},
        "code_commit": commit if is_commit(commit := tags.get("mlflow.source.git.commit", "")) else "",
        "code_repository": tags.get("mlflow.source.git.repoURL", ""),
    }
    digests = [
        (str(row["dataset"]["name"]), str(row["dataset"]["digest"]))
        for row in (data.get("inputs") or {}).get("dataset_inputs") or []
        if re.fullmatch(r"[0-9a-f]{64}", str(row["dataset"].get("digest")))
    ]
    if digests:
        facts["data"] = digests
    return {name: value for name, value in facts.items() if value}


def _flavour(folder: Path) -> dict[str, Any]:
    """The framework that the MLmodel file names; read as text, for it is only a hint."""
    path = folder / "MLmodel"
    text = path.read_text(encoding="utf-8", errors="replace")[: 2**16] if path.is_file() else ""
    named = set(re.findall(r"^  ([a-z_]+):\s*$", text, re.MULTILINE))
    framework = next((name for name in _FLAVOURS if name in named), "")
    return {"framework": framework} if framework else {}


# ---------------------------------------------------------------- the wire


def _message(answer: httpx.Response) -> str:
    """What an error says for people: its JSON's message, else its first letters."""
    try:
        told = answer.json()
    except ValueError:
        told = None
    said = told.get("message") or told.get("error") if isinstance(told, dict) else None
    return (said if isinstance(said, str) else answer.text)[:200].replace("\n", " ")


class _Wire:
    """One server asked over HTTP: errors in our words, files checked as they come."""

    def __init__(
        self, base: str, headers: Mapping[str, str], key_name: str, auth: tuple[str, str] | None = None
    ) -> None:
        self.base, self._key_name = base, key_name
        # Redirects are followed; httpx takes the key off the request when they lead to another host.
        self._http = httpx.Client(headers=dict(headers), auth=auth, timeout=TIMEOUT_S, follow_redirects=True)

    def __enter__(self) -> _Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, path: str, /, **params: object) -> dict[str, Any]:
        """One JSON object."""
        found = self._json(self._get(f"{self.base}{path}", params))
        if not isinstance(found, dict):
            raise Unavailable(f"{self.base}{path} answers no JSON object", "is it the right server?")
        return found

    def pages(self, path: str) -> Iterator[dict[str, Any]]:
        """The rows of a list that may go on behind a `Link: <…>; rel="next"`."""
        url = f"{self.base}{path}"
        for _ in range(PAGES_MAX):
            answer = self._get(url, {})
            rows = self._json(answer)
            if not isinstance(rows, list):
                raise Unavailable(f"{url} answers no list", "is it the right server?")
            yield from (row for row in rows if isinstance(row, dict))
            following = answer.links.get("next", {}).get("url", "")
            if not following:
                return
            url = following if following.startswith("http") else f"{self.base}{following}"
        raise Unavailable(f"{self.base}{path} has more than {PAGES_MAX} pages", "adopt a part of it")

    def fetch_all(self, files: list[_Remote], folder: Path) -> int:
        """Fetches every file; returns their bytes. Names and room are judged before the first byte travels."""
        if len(files) > FILES_MAX:
            raise Unavailable(f"it has {len(files):,} files; {FILES_MAX:,} is the most", "adopt a part of it")
        for file in files:
            if fault := path_fault(file.path):
                raise InvalidInput(f"its file {file.path!r} {fault}", "adopt a folder without it")
        known, free = sum(file.size_bytes or 0 for file in files), shutil.disk_usage(folder).free
        if known > free:
            raise Unavailable(f"it has {format_bytes(known)}; {folder} has {format_bytes(free)} free", "set TMPDIR")
        return sum(self._fetch(file, folder / file.path) for file in files)

    def _fetch(self, file: _Remote, target: Path) -> int:
        target.parent.mkdir(parents=True, exist_ok=True)
        sha256, size_bytes = hashlib.sha256(), 0
        git = hashlib.sha1(f"blob {file.size_bytes}\0".encode(), usedforsecurity=False)
        try:
            with self._http.stream("GET", f"{self.base}{file.url}") as answer, target.open("xb") as writing:
                self._demand(answer)
                for chunk in answer.iter_bytes(_CHUNK_BYTES):
                    size_bytes += len(chunk)
                    if file.size_bytes is not None and size_bytes > file.size_bytes:
                        break
                    sha256.update(chunk)
                    git.update(chunk)
                    writing.write(chunk)
        except FileExistsError:
            raise Conflict(f"its file {file.path} is listed twice", "adopt a folder without it") from None
        except httpx.HTTPError as error:
            raise Unavailable(f"{file.path} did not come: {error}", "try again") from None
        if file.size_bytes is not None and size_bytes != file.size_bytes:
            message = f"{file.path} came with {size_bytes:,} bytes, {file.size_bytes:,} are stated"
            raise IntegrityFailure(message, _AGAIN)
        stated = file.sha256 or (file.git_oid if file.size_bytes is not None else "")
        have = sha256.hexdigest() if file.sha256 else git.hexdigest()
        if stated and stated != have:
            raise IntegrityFailure(
                f"{file.path} has digest {have[:16]}…, {stated[:16]}… is stated",
                _AGAIN,
            )
        return size_bytes

    def _get(self, url: str, params: Mapping[str, object]) -> httpx.Response:
        given = {name: str(value) for name, value in params.items()}
        try:
            answer = self._http.get(url, params=given or None)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"{self.base} does not answer: {error}", "is the address right, and the server up?"
            ) from None
        self._demand(answer)
        return answer

    def _demand(self, answer: httpx.Response) -> None:
        if answer.is_success:
            return
        if not answer.is_closed:
            answer.read()
        said = answer.headers.get("X-Error-Message") or _message(answer)
        where = f"{self.base} answered {answer.status_code}: {said}"
        if answer.status_code in (401, 403):
            raise Unauthenticated(where, f"set {self._key_name} to a key that may read it")
        if answer.status_code == 404:
            raise NotFound(where, "is the name right, and may the key see it?")
        raise Unavailable(where, "try again later")

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise Unavailable(f"{answer.url} answers no JSON", "is it the right server?") from None
