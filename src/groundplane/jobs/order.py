"""What such a program is told: its need, whom to ask, with which key, and where its rows lie."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundplane.domain.spec.inference import INPUT, MODEL, TAKEN, Asking, BatchNeed, EvaluationNeed, JudgeNeed
from groundplane.errors import IntegrityFailure, InvalidInput, NotFound

ORDER_FILE = "order.json"
PROBLEM_FILE = "problem.json"
STAGED = f"GROUND_DATA_{INPUT.upper()}"
STAGED_MODEL = f"GROUND_DATA_{MODEL.upper()}"
STAGED_SHARDS = f"GROUND_DATA_{TAKEN.upper()}"
SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramOrder:
    """Exactly one of `evaluation` and `batch` is set. `serve` is the argv of a server to start, with `{port}`; empty
    asks the gateway. Far from the control plane it has `{python}`, `{model}` and `{cache}` too, and an empty
    `gateway_url` means the ways that are opened into the attempt's folder. `path` is where the data lies, empty when it
    was staged; `files` are its files' SHA-256."""

    target: str
    gateway_url: str
    key: str
    files: dict[str, str]
    path: str = ""
    serve: tuple[str, ...] = ()
    evaluation: EvaluationNeed | None = None
    batch: BatchNeed | None = None


def order_of(content: bytes) -> ProgramOrder:
    """The order as the control plane wrote it. Nodes have Python and nothing else to read it with."""
    said: dict[str, Any] = json.loads(content)
    said["serve"] = tuple(said["serve"])
    for name, kind in (("evaluation", EvaluationNeed), ("batch", BatchNeed)):
        if (need := said[name]) is None:
            continue
        need["asking"] = Asking(**need["asking"])
        if "judges" in need:
            judges = (JudgeNeed(**{**each, "choices": tuple(each["choices"])}) for each in need["judges"])
            need |= {"judges": tuple(judges), "slices": tuple(need["slices"])}
        said[name] = kind(**need)
    return ProgramOrder(**said)


def data_file(order: ProgramOrder, environment: Mapping[str, str]) -> Path:
    """The file with the rows, with the bytes that were registered. NotFound, InvalidInput, IntegrityFailure."""
    need = order.evaluation or order.batch
    assert need is not None
    wanted = need.file or _only(need.dataset, order.files)
    if wanted not in order.files:
        raise NotFound(f"{need.dataset} has no file {wanted}", f"it has {', '.join(sorted(order.files)[:10])}")
    place = Path(order.path or environment.get(STAGED, ""))
    if not place.suffix and not place.exists() and not order.path and STAGED not in environment:
        raise NotFound(f"{need.dataset} was not brought to this node", "ground explain says what its data waits for")
    path = place / wanted if place.is_dir() else place
    try:
        digest = hashlib.sha256()
        with path.open("rb") as source:
            while piece := source.read(2**20):
                digest.update(piece)
    except OSError as error:
        raise NotFound(f"{path} can't be read: {error.strerror}", "is the folder mounted on this node?") from None
    if digest.hexdigest() != order.files[wanted]:
        raise IntegrityFailure(
            f"{path} is not what was registered as {need.dataset}", "register it anew: ground datasets register"
        )
    return path


def _only(dataset: str, files: Mapping[str, str]) -> str:
    fit = [name for name in files if name.endswith(SUFFIXES)]
    if len(fit) != 1:
        have = f"{len(fit)} files of rows" if fit else "no file of rows"
        raise InvalidInput(f"{dataset} has {have} ({', '.join(SUFFIXES)})", "name one: spec.file")
    return fit[0]
