"""One field of the dialect, and the texts that names, people and paths in it are written in."""

from __future__ import annotations

from dataclasses import dataclass

from groundplane.domain.spec.values import Reader

API_VERSION = "groundplane/v1"
JOB, ENDPOINT, DEV, EVALUATION, BATCH = "Job", "Endpoint", "Dev", "Evaluation", "Batch"
KINDS = (JOB, ENDPOINT, DEV, EVALUATION, BATCH)

LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
LABEL_MEANING = "a name (lowercase letters, digits and -, at most 63, starting and ending with a letter or digit)"
MODEL = r"[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?"
MODEL_MEANING = "a model name (lowercase letters, digits, . _ and -, at most 128)"
PATH_INSIDE = r"(?!/)(?!(.*/)?\.\.(/|$))[^\0]+"
PERSON = r"[^\s\x00-\x1f][^\x00-\x1f]{0,127}"
SKU = r"[A-Za-z0-9][A-Za-z0-9._-]{1,79}"
TIER = r"[a-z0-9][a-z0-9-]{0,63}"
ARCHITECTURE = r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}"
FILE_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
IMAGE = r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,255}"
BEST_BY = r"[A-Za-z0-9_.@/-]{1,64}/(min|max)"
ONE_LINE = r"[^\x00-\x1f]{0,256}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field. `path` is dotted, `[]` marks items of a list; `default` is what a spec without it means, as text."""

    path: str
    read: Reader
    takes: str
    meaning: str
    kinds: tuple[str, ...] = KINDS
    required: bool = False
    default: str = ""
    example: str = ""

    @property
    def section(self) -> str:
        return self.path.rpartition(".")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]
