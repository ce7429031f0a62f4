"""The fields of kind: Evaluation and kind: Batch, from the dialect to their needs and back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from typing import Any

from groundplane.domain.model import ALIAS
from groundplane.domain.spec import values as v
from groundplane.domain.spec.field import BATCH, EVALUATION, LABEL, LABEL_MEANING, MODEL, MODEL_MEANING, Field
from groundplane.domain.spec.inference import APIS, FORMATS, JUDGES, Asking, BatchNeed, EvaluationNeed, JudgeNeed

ALSO = (
    "pool", "max_duration", "idle_limit", "stop_grace", "retry", "priority", "needs", "schedule", "timezone",
    "missed_ticks", "preflight", "deadline",
)  # fmt: skip
"""Fields of a job's spec that these kinds have too."""

_BOTH, _EVALUATION, _BATCH = (EVALUATION, BATCH), (EVALUATION,), (BATCH,)
_COLUMN = r"[^\x00-\x1f{}]{1,128}"
_TEMPLATE = r"[^\0]{1,4096}"
_SERVED = r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}"
_INSIDE = r"(?!/)(?!(.*/)?\.\.(/|$))[^\0]{1,1024}"


def inference_fields() -> Iterable[Field]:
    """What evaluations and batches have besides the fields of every job."""
    yield from _asking()
    yield from _evaluation()
    yield from _judges()
    yield from _batch()


def _asking() -> Iterable[Field]:
    yield Field(
        path="spec.dataset", kinds=_BOTH,
        read=v.text(rf"{MODEL}@([1-9]\d{{0,8}}|latest)", "a dataset's version such as qa@2", example="qa@2"),
        takes="name@version", required=True, example="qa@2", meaning="The dataset whose rows are asked.",
    )  # fmt: skip
    yield Field(
        path="spec.file", kinds=_BOTH, read=v.text(_INSIDE, "a path inside the dataset", example="qa.jsonl"),
        takes="relative path", default="its only file", meaning="Which file of the dataset: JSONL or CSV.",
    )  # fmt: skip
    yield Field(
        path="spec.endpoint", kinds=_BOTH, read=v.text(_SERVED, "a served name", example="chat"), takes="name",
        default="see `model`", meaning="The served name that is asked through the gateway: an endpoint or a route.",
    )  # fmt: skip
    yield Field(
        path="spec.model", kinds=_BOTH,
        read=v.text(rf"{MODEL}@([1-9]\d{{0,8}}|(?!latest$){ALIAS})", "a model version such as tiny-lm@1",
                    example="tiny-lm@1"),
        takes="name@version or name@alias", default="see `endpoint`",
        meaning="The registered version that is asked, served beside the job for as long as it runs.",
    )  # fmt: skip
    yield Field(
        path="spec.engine", kinds=_BOTH, read=v.text(LABEL, LABEL_MEANING, example="embedded"), takes="name",
        default="embedded", meaning="What serves `model`.",
    )  # fmt: skip
    yield Field(
        path="spec.api", kinds=_BOTH, read=v.choice(*APIS), takes="`chat` or `completions`", default="chat",
        meaning="How it is asked: chat messages, or a plain prompt.",
    )  # fmt: skip
    yield Field(
        path="spec.prompt", kinds=_BOTH, read=v.text(_TEMPLATE, "a template", example='"Q: {question}"'),
        takes="text with `{column}`", default="the `input` column",
        meaning="What is asked for a row: columns in braces are filled in; `{{` is a brace.",
    )  # fmt: skip
    yield Field(
        path="spec.system", kinds=_BOTH, read=v.text(_TEMPLATE, "a text"), takes="text", default="none",
        meaning="The system message before it.",
    )  # fmt: skip
    yield Field(
        path="spec.max_tokens", kinds=_BOTH, read=v.integer(1, 1_000_000), takes="whole number ≥ 1", default="256",
        meaning="How long an answer may be.",
    )  # fmt: skip
    yield Field(
        path="spec.temperature", kinds=_BOTH, read=v.number(0, 2), takes="0 to 2", default="0",
        meaning="How freely answers vary; 0 keeps them as steady as the model can.",
    )  # fmt: skip
    yield Field(
        path="spec.at_once", kinds=_BOTH, read=v.integer(1, 256), takes="whole number ≥ 1", default="4",
        meaning="Requests under way at a time, at most.",
    )  # fmt: skip
    yield Field(
        path="spec.timeout", kinds=_BOTH, read=v.duration(), takes="duration ≥ 1s", default="2m",
        meaning="How long one answer may take; it is then tried again.",
    )  # fmt: skip


def _evaluation() -> Iterable[Field]:
    column = v.text(_COLUMN, "a column's name", example="question")
    yield Field(path="spec.input", kinds=_EVALUATION, read=column, takes="column", default="input",
                meaning="What is asked, when there is no `prompt`.")  # fmt: skip
    yield Field(path="spec.expected", kinds=_EVALUATION, read=column, takes="column", default="expected",
                meaning="What the answer is judged against.")  # fmt: skip
    yield Field(path="spec.item", kinds=_EVALUATION, read=column, takes="column", default="the row's number",
                meaning="What names a row, so that evaluations can be compared item by item.")  # fmt: skip
    yield Field(
        path="spec.slices", kinds=_EVALUATION, read=v.texts(_COLUMN, "a column's name", example="topic"),
        takes="list of columns", default="none", meaning="Scores are also told for each value of these.",
    )  # fmt: skip
    yield Field(
        path="spec.repeats", kinds=_EVALUATION, read=v.integer(1, 20), takes="1 to 20", default="1",
        meaning="How often each row is asked: more than once tells how much answers vary by themselves.",
    )  # fmt: skip
    yield Field(
        path="spec.limit", kinds=_EVALUATION, read=v.integer(1, 10_000), takes="1 to 10000", default="all",
        meaning="Only the first rows.",
    )  # fmt: skip
    yield Field(
        path="spec.confidence", kinds=_EVALUATION, read=v.number(0.5, 0.999), takes="0.5 to 0.999", default="0.95",
        meaning="How sure the intervals of scores are.",
    )  # fmt: skip
    yield Field(
        path="spec.logprobs", kinds=_EVALUATION, read=v.boolean, takes="true or false", default="false",
        meaning="Ask for log probabilities too: they show a changed model before its words do.",
    )  # fmt: skip
    yield Field(
        path="spec.watch", kinds=_EVALUATION, read=v.boolean, takes="true or false", default="true",
        meaning="Compare with the evaluations of this name before it, and raise alarms.",
    )  # fmt: skip


def _judges() -> Iterable[Field]:
    yield Field(
        path="spec.judges[].kind", kinds=_EVALUATION, read=v.choice(*JUDGES), takes="a judge", required=True,
        example="exact", meaning=f"How answers are judged: {', '.join(JUDGES)}.",
    )  # fmt: skip
    yield Field(
        path="spec.judges[].name", kinds=_EVALUATION, read=v.text(MODEL, MODEL_MEANING, example="accuracy"),
        takes="name", default="the kind", meaning="The metric it gives, as gates ask for it.",
    )  # fmt: skip
    yield Field(path="spec.judges[].ignore_case", kinds=_EVALUATION, read=v.boolean, takes="true or false",
                default="false", meaning="For exact, contains, choice and regex.")  # fmt: skip
    yield Field(path="spec.judges[].tolerance", kinds=_EVALUATION, read=v.number(0, 1e12), takes="number ≥ 0",
                default="0", meaning="numeric: how far off the last number of the answer may be.")  # fmt: skip
    yield Field(
        path="spec.judges[].pattern", kinds=_EVALUATION,
        read=v.text(_TEMPLATE, "a regular expression", example="'^yes'"), takes="regular expression",
        default="the expected answer", meaning="regex: what must be found in the answer.",
    )  # fmt: skip
    yield Field(
        path="spec.judges[].choices", kinds=_EVALUATION, read=v.texts(r"[^\0]{1,64}", "a choice", example="A"),
        takes="list of text", default="none", meaning="choice: the first of these in the answer is what it chose.",
    )  # fmt: skip
    yield Field(
        path="spec.judges[].model", kinds=_EVALUATION, read=v.text(_SERVED, "a served name", example="judge"),
        takes="name", default="none", meaning="embedding and llm: who is asked, behind the gateway.",
    )  # fmt: skip
    yield Field(
        path="spec.judges[].rubric", kinds=_EVALUATION, read=v.text(_TEMPLATE, "a text"), takes="text",
        default="none", meaning="llm: what makes an answer right.",
    )  # fmt: skip
    yield Field(path="spec.judges[].votes", kinds=_EVALUATION, read=v.integer(1, 15), takes="odd number", default="3",
                meaning="llm: how often it is asked about each answer; the majority counts.")  # fmt: skip
    yield Field(path="spec.judges[].pass_at", kinds=_EVALUATION, read=v.number(-1, 1), takes="-1 to 1", default="0.8",
                meaning="embedding: the cosine from which an answer is right.")  # fmt: skip
    yield Field(path="spec.judges[].alarm_below", kinds=_EVALUATION, read=v.number(-1, 1), takes="-1 to 1",
                default="none", meaning="A mean under it raises an alarm.")  # fmt: skip


def _batch() -> Iterable[Field]:
    yield Field(
        path="spec.format", kinds=_BATCH, read=v.choice(*FORMATS), takes="`openai` or `table`", default="openai",
        meaning="Rows are whole requests of OpenAI's Batch API, or columns for `prompt`.",
    )  # fmt: skip
    yield Field(
        path="spec.output", kinds=_BATCH, read=v.text(MODEL, MODEL_MEANING, example="answers"), takes="name",
        required=True, example="answers", meaning="The dataset that gets the answers as its next version.",
    )  # fmt: skip
    yield Field(
        path="spec.shard_rows", kinds=_BATCH, read=v.integer(1, 100_000), takes="whole number ≥ 1", default="100",
        meaning="Rows of a shard: what is asked again at most when the job is killed in the middle.",
    )  # fmt: skip
    yield Field(
        path="spec.bad_rows", kinds=_BATCH, read=v.integer(0, 1_000_000_000), takes="whole number ≥ 0", default="0",
        meaning="How many rows may end in an error; with more the run fails, and what was answered is kept.",
    )  # fmt: skip
    yield Field(
        path="spec.resume", kinds=_BATCH, read=v.text(r"run-[a-z0-9]{1,40}", "a run's id", example="run-01jd3k9x7q2m"),
        takes="a run's id", default="none",
        meaning="A batch of the same rows, asked and cut alike, that failed: its finished shards are not asked again.",
    )  # fmt: skip


# ---------------------------------------------------------------- building, and back

_ASKING = tuple(each.name for each in fields(Asking) if each.name != "timeout_s")


def evaluation_need(spec: Mapping[str, Any]) -> EvaluationNeed:
    """The need of a checked spec; a judge without a name is called as its kind."""
    own = {each.name for each in fields(EvaluationNeed)} - {"asking", "judges"}
    judges = [JudgeNeed(**{"name": said["kind"], **said}) for said in spec.get("judges", ())]
    return EvaluationNeed(
        asking=_asked(spec), judges=tuple(judges), **{name: spec[name] for name in own if name in spec}
    )


def batch_need(spec: Mapping[str, Any]) -> BatchNeed:
    """The need of a checked spec."""
    own = {each.name for each in fields(BatchNeed)} - {"asking"}
    return BatchNeed(asking=_asked(spec), **{name: spec[name] for name in own if name in spec})


def _asked(spec: Mapping[str, Any]) -> Asking:
    timeout = {"timeout_s": spec["timeout"]} if "timeout" in spec else {}
    return Asking(**{name: spec[name] for name in _ASKING if name in spec}, **timeout)


def need_body(need: EvaluationNeed | BatchNeed) -> dict[str, Any]:
    """The need as the dialect writes it, without what is left at its default."""
    body = _changed(need, skip=("asking", "judges"))
    asked = _changed(need.asking, skip=("timeout_s",))
    if need.asking.timeout_s != Asking().timeout_s:
        asked["timeout"] = f"{need.asking.timeout_s}s"
    body |= asked
    if isinstance(need, EvaluationNeed):
        body["judges"] = [{"kind": judge.kind, "name": judge.name, **_changed(judge)} for judge in need.judges]
    return body


def _changed(record: Any, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    plain = asdict(record)
    return {
        each.name: list(value) if isinstance(value := plain[each.name], tuple) else value
        for each in fields(record)
        if each.name not in skip and plain[each.name] != each.default
    }
