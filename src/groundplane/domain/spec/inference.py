"""What kind: Evaluation and kind: Batch ask for: questions over a dataset's rows, put to a model."""

from __future__ import annotations

from dataclasses import dataclass, replace

JUDGES = ("exact", "numeric", "regex", "contains", "choice", "embedding", "llm")
"""How an answer is judged. `docs/guides/evaluation.md` says what each needs."""
APIS = ("chat", "completions")
FORMATS = ("openai", "table")
INPUT = "input"
"""The name of the data source with its rows."""
MODEL = "model"
"""The name of the data source with a version's files, where they are brought to another machine."""
TAKEN = "taken"
"""The name of the data source with the finished shards of the run that a batch takes up again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asking:
    """Whom to ask, and how. Exactly one of `endpoint` (a served name or a route) and `model` (`name@version`) is set.

    A version is served beside the job by `engine`. `prompt` is a template with `{column}`; `at_once` requests at most
    are under way.
    """

    endpoint: str = ""
    model: str = ""
    engine: str = "embedded"
    api: str = "chat"
    prompt: str = ""
    system: str = ""
    max_tokens: int = 256
    temperature: float = 0.0
    at_once: int = 4
    timeout_s: int = 120


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeNeed:
    """One judge. `name` is the metric it gives. Which fields count depends on the kind.

    numeric: `tolerance`, absolute. regex: `pattern`, or each row's expected answer. choice: one of `choices` alone.
    embedding: `model`, right from a cosine of `pass_at` on. llm: `model`, `rubric`, `votes` asked of it for each item.
    An evaluation whose mean is under `alarm_below` raises an alarm.
    """

    kind: str
    name: str
    ignore_case: bool = False
    tolerance: float = 0.0
    pattern: str = ""
    choices: tuple[str, ...] = ()
    model: str = ""
    rubric: str = ""
    votes: int = 3
    pass_at: float = 0.8
    alarm_below: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationNeed:
    """Rows with expected answers, and who judges what a model says to them.

    `item` is the column of the rows' ids (their number without one), `slices` are columns to tell scores by. Each row
    is asked `repeats` times: the first answer is judged, the others tell how much answers vary by themselves. `limit`
    takes only the first rows; 0 takes all. `watch` compares with the evaluation before it and raises alarms.
    """

    dataset: str
    asking: Asking
    judges: tuple[JudgeNeed, ...]
    file: str = ""
    input: str = "input"
    expected: str = "expected"
    item: str = ""
    slices: tuple[str, ...] = ()
    repeats: int = 1
    limit: int = 0
    confidence: float = 0.95
    logprobs: bool = False
    watch: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNeed:
    """Rows to be answered. `openai` rows are requests as OpenAI's Batch API takes them; of a `table`, `prompt` is made.

    Shards of `shard_rows` are written whole. With more than `bad_rows` rows in error the run fails. The answers become
    the next version of dataset `output`. `resume` is a run of the same work that failed: its finished shards are taken.
    """

    dataset: str
    asking: Asking
    output: str
    file: str = ""
    format: str = "openai"
    shard_rows: int = 100
    bad_rows: int = 0
    resume: str = ""

    def same_work(self, other: BatchNeed) -> bool:
        """Whether shards of one are shards of the other: the same rows, asked alike, cut alike."""

        def work(need: BatchNeed) -> BatchNeed:
            asking = replace(need.asking, at_once=1, timeout_s=1)
            return replace(need, asking=asking, bad_rows=0, resume="", output="")

        return work(self) == work(other)


def faults(need: EvaluationNeed | BatchNeed, nodes: int) -> list[tuple[str, str, str]]:
    """(field below `spec`, message, hint) of what fields that fit alone have against each other."""
    found: list[tuple[str, str, str]] = []
    asking = need.asking
    if nodes != 1:
        found.append(("resources", f"it asks from one node, not from {nodes}", "write nodes: 1; at_once asks faster"))
    if bool(asking.endpoint) == bool(asking.model):
        said = "both are given" if asking.model else "neither is given"
        found.append(("endpoint", f"exactly one of endpoint and model says whom to ask: {said}", "keep one of them"))
    if isinstance(need, BatchNeed):
        if need.format == "table" and not asking.prompt:
            found.append(("prompt", "is required for format: table", 'write it like prompt: "Summarise: {text}"'))
        if need.format == "openai" and (asking.prompt or asking.system):
            found.append(("prompt", "is not used: rows of format openai are whole requests", "remove it"))
        return found
    names = [judge.name for judge in need.judges]
    if not names:
        found.append(("judges", "is required: at least one judge", "write it like judges: [{kind: exact}]"))
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        found.append(("judges", f"{doubled[0]!r} names two judges", "give each a name of its own"))
    for judge in need.judges:
        if judge.kind in ("embedding", "llm") and not judge.model:
            found.append(("judges", f"judge {judge.name} needs a model behind the gateway", "add model: NAME"))
        if judge.kind == "llm" and not judge.rubric:
            found.append(("judges", f"judge {judge.name} needs a rubric", "add rubric: what makes an answer right"))
        if judge.kind == "llm" and judge.votes % 2 == 0:
            found.append(("judges", f"{judge.votes} votes can end in a tie", "ask for an odd number of votes"))
        if judge.kind == "choice" and len(judge.choices) < 2:
            found.append(("judges", f"judge {judge.name} needs two choices or more", "add choices: [A, B, C, D]"))
    return found
