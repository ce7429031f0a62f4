"""What a tracked run and its tags state about a model that is registered from it: the facts of its birth certificate.

A fact is a tag `groundplane.<fact>` on the version or on the run; what the run shows by itself needs no tag.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from groundplane.domain.provenance.certificate import MAY_BE_UNKNOWN, DataFact, Facts, MissingFact, is_commit
from groundplane.domain.tracking.records import DatasetUse
from groundplane.errors import InvalidInput, Refused
from groundplane.units import MICROUSD_PER_USD

PREFIX = "groundplane."
_TEXTS = (
    "owner", "license", "framework", "description", "base_model", "code_commit", "code_repository", "training_run",
    "hardware", "sla", "rollback_target",
)  # fmt: skip
_OTHERS = ("code_dirty", "cost_usd", "data.<name>", "unknown.<fact>")
_OURS = frozenset({"run", "spec"})
"""Tags that the control plane itself puts on a job's run."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT_TAG = "mlflow.source.git.commit"
_REPOSITORY_TAG = "mlflow.source.git.repoURL"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What a run shows without a tag: who registers, its id, what it measured and read."""

    registrant: str
    run_id: str = ""
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    datasets: Sequence[DatasetUse] = ()
    job_data: Sequence[DataFact] = ()


def facts_of_tags(card: Facts, tags: Mapping[str, str], shown: Shown) -> Facts:
    """The facts: tags before the card of the files, both before what the run shows.

    Raises InvalidInput for a `groundplane.` tag that is no fact, or can't be read: none is left out silently.
    """
    stated = {name.removeprefix(PREFIX): text for name, text in tags.items() if name.startswith(PREFIX)}
    texts: dict[str, str] = {}
    data: dict[str, DataFact] = {each.name: each for each in (*_digested(shown.datasets), *shown.job_data, *card.data)}
    unknown: dict[str, str] = dict(card.unknown)
    code_dirty, cost_microusd = card.code_dirty, card.cost_microusd
    for name, text in sorted(stated.items()):
        head, _, rest = name.partition(".")
        if name in _TEXTS:
            texts[name] = text
        elif head == "data" and rest:
            data[rest] = DataFact(name=rest, sha256=_digest(name, text))
        elif head == "unknown" and rest in MAY_BE_UNKNOWN:
            unknown[rest] = text
        elif name == "code_dirty":
            code_dirty = _flag(text)
        elif name == "cost_usd":
            cost_microusd = _cost(text)
        elif name not in _OURS:
            known = ", ".join((*_TEXTS, *_OTHERS))
            raise InvalidInput(f"the tag {PREFIX}{name} is no fact of a birth certificate", f"known are {known}")
    said: dict[str, Any] = {
        name: texts.get(name) or getattr(card, name) or _shown(name, tags, shown) for name in _TEXTS
    }
    return replace(
        card,
        **said,
        data=tuple(data.values()),
        unknown=unknown,
        code_dirty=code_dirty,
        cost_microusd=cost_microusd,
        metrics={**{k: v for k, v in shown.metrics.items() if math.isfinite(v)}, **card.metrics},
        hyperparameters={**shown.params, **card.hyperparameters},
    )


def refusal_of(missing: MissingFact) -> Refused:
    """As an MLflow client can mend it: by a tag."""
    tag = "metrics" if missing.name == "metrics" else f"the tag {PREFIX}{missing.name}"
    how = {
        "data": f"set tags {PREFIX}data.<name>=<sha256> on the run or the version",
        "metrics": "log a metric in the run",
        "code_commit": f"set {tag} on the run or the version; {_COMMIT_TAG} counts when it is a whole git object id",
    }.get(missing.name, f"set {tag} on the run or the version")
    refused = missing.refused()
    if missing.name in MAY_BE_UNKNOWN:
        how += f", or say why nobody knows it: {PREFIX}unknown.{missing.name}=<reason>"
    return replace(refused, hint=how)


def _shown(name: str, tags: Mapping[str, str], shown: Shown) -> str:
    by_itself = {
        "owner": shown.registrant,
        "training_run": shown.run_id,
        # The client writes whole ids by itself. What a person or an old tool wrote there names no code for sure.
        "code_commit": commit if is_commit(commit := tags.get(_COMMIT_TAG, "")) else "",
        "code_repository": tags.get(_REPOSITORY_TAG, ""),
    }
    return by_itself.get(name, "")


def _digested(datasets: Sequence[DatasetUse]) -> list[DataFact]:
    """Datasets whose digest is a SHA-256; a client's own short digest proves nothing and does not count."""
    return [DataFact(name=each.name, sha256=each.digest) for each in datasets if _SHA256.fullmatch(each.digest)]


def _digest(name: str, text: str) -> str:
    if not _SHA256.fullmatch(text):
        raise InvalidInput(f"the tag {PREFIX}{name} is no SHA-256", "write 64 lower-case hex digits: sha256sum FILE")
    return text


def _flag(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise InvalidInput(f"the tag {PREFIX}code_dirty is {text[:40]!r}", "write true or false")
    return text.lower() == "true"


def _cost(text: str) -> int:
    try:
        dollars = float(text)
    except ValueError:
        dollars = math.nan
    if not math.isfinite(dollars) or dollars < 0:
        raise InvalidInput(f"the tag {PREFIX}cost_usd is {text[:40]!r}", "write dollars such as 12.50")
    return math.ceil(dollars * MICROUSD_PER_USD)
