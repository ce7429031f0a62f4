"""Evaluation: rows asked, answers judged, a line for each item. Answers are kept as they come: a kill loses few."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from groundplane.domain import batch, evaluation, judging
from groundplane.domain.evaluation import Item
from groundplane.domain.judging import Judgement
from groundplane.domain.spec.inference import EvaluationNeed, JudgeNeed
from groundplane.errors import InvalidInput, Unavailable
from groundplane.jobs.calls import Answer, Asker, side_by_side
from groundplane.jobs.files import put_bytes, put_json, rows, say

RECORDS = "items.jsonl"
SUMMARY = "evaluation.json"
ANSWERS = "answers.jsonl"
PROGRESS = "progress.json"
_JUDGE_TOKENS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One row as it is asked."""

    id: str
    prompt: str
    expected: str
    slices: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One kept answer: to `item`, the `turn`-th time."""

    item: str
    turn: int
    text: str
    error: str
    latency_s: float
    logprob: float | None
    prompt_tokens: int
    completion_tokens: int
    model: str
    fingerprint: str


def evaluate(need: EvaluationNeed, path: Path, model: str, target: Asker, gateway: Asker, output: Path) -> None:
    """Writes `items.jsonl` and `evaluation.json`. Raises InvalidInput for rows that can't be judged."""
    questions = read_questions(need, path)
    kept = _Kept(output / ANSWERS)
    wanted = [(each, turn) for turn in range(need.repeats) for each in questions if not kept.has(each.id, turn)]
    total = len(questions) * need.repeats

    def ask(pair: tuple[Question, int]) -> Said:
        return _ask(need, pair, model, target)

    for number, said in enumerate(side_by_side(ask, wanted, need.asking.at_once), total - len(wanted) + 1):
        kept.add(said)
        if number % 20 == 0 or number == total:
            put_json(output / PROGRESS, {"rows": total, "done": number})
            say(f"{number:,} of {total:,} answers")
    first = [kept.get(each.id, 0) for each in questions]
    if all(said.error for said in first):
        raise Unavailable(f"{model} answered none of {len(first)} rows: {first[0].error}", "is it served? ground ps")

    def judged(pair: tuple[Question, Said]) -> Item:
        return _judged(need, *pair, gateway)

    items = list(side_by_side(judged, zip(questions, first, strict=True), need.asking.at_once))
    evaluation.summarise(need, items)  # what can't be judged is told by the job, in its own log
    put_bytes(output / RECORDS, b"".join(json.dumps(asdict(item)).encode() + b"\n" for item in items))
    every = list(kept.every())
    put_json(
        output / SUMMARY,
        {
            "items_sha256": items_sha256(questions),
            "prompt_tokens": sum(said.prompt_tokens for said in every),
            "completion_tokens": sum(said.completion_tokens for said in every),
            "requests": sum(not said.error for said in every),
            "models": sorted({said.model for said in every if said.model}),
            "fingerprints": sorted({said.fingerprint for said in every if said.fingerprint}),
            "agreement": _agreement(questions, kept, need.repeats),
        },
    )


def read_questions(need: EvaluationNeed, path: Path) -> list[Question]:
    """Every row, checked: columns that are declared must be there, ids must differ. InvalidInput names the line."""
    template = need.asking.prompt or f"{{{need.input}}}"
    needs_expected = any(judge.kind != "llm" and not (judge.kind == "regex" and judge.pattern) for judge in need.judges)
    columns = [*judging.columns_of(template), *need.slices, *([need.item] if need.item else [])]
    columns += [need.expected] if needs_expected else []
    found: dict[str, Question] = {}
    for number, row in rows(path):
        if need.limit and len(found) >= need.limit:
            break
        if isinstance(row, str):
            raise InvalidInput(f"{path.name}: {row}", "mend the file and register it anew")
        missing = [name for name in columns if name not in row]
        if missing:
            hint = f"it has {', '.join(list(row)[:20])}; say which columns are meant: input, expected, prompt"
            raise InvalidInput(f"{path.name}: line {number} has no column {missing[0]!r}", hint)
        name = judging.text_of(row[need.item]) if need.item else str(len(found) + 1)
        if name in found:
            raise InvalidInput(f"{path.name}: line {number}: item {name!r} occurs twice", "ids must differ")
        found[name] = Question(
            id=name,
            prompt=judging.filled(template, row),
            expected=judging.text_of(row.get(need.expected, "")),
            slices={column: judging.text_of(row[column]) for column in need.slices},
        )
        if len(found) > evaluation.ITEMS_MAX:
            raise InvalidInput(f"{path.name} has more than {evaluation.ITEMS_MAX:,} rows", "add limit, or split it")
    if not found:
        raise InvalidInput(f"{path.name} has no rows", "register a dataset that has some")
    return list(found.values())


def items_sha256(questions: list[Question]) -> str:
    """Names exactly these rows: ids, what is asked, what is expected, in this order."""
    digest = hashlib.sha256()
    for each in questions:
        digest.update(json.dumps([each.id, each.prompt, each.expected]).encode() + b"\n")
    return digest.hexdigest()


def _ask(need: EvaluationNeed, pair: tuple[Question, int], model: str, target: Asker) -> Said:
    question, turn = pair
    path, body = batch.asked(need.asking, question.prompt, need.logprobs)
    answer = target.ask(path, {**body, "model": model})
    text = batch.answer_of(answer.body) if answer.ok else None
    prompt_tokens, completion_tokens = answer.tokens()
    return Said(
        item=question.id,
        turn=turn,
        text=text or "",
        error=answer.why_not or ("" if text is not None else "the answer holds no text"),
        latency_s=round(answer.latency_s, 6),
        logprob=_mean_logprob(answer.body) if answer.ok else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        model=_word(answer, "model"),
        fingerprint=_word(answer, "system_fingerprint"),
    )


def _word(answer: Answer, name: str) -> str:
    value = answer.body.get(name) if isinstance(answer.body, dict) else None
    return value[:200] if isinstance(value, str) and answer.ok else ""


def _mean_logprob(body: object) -> float | None:
    """The mean log probability a token of the answer, of chats and of completions; None without them."""
    try:
        found = body["choices"][0]["logprobs"]  # type: ignore[index]
        each = found.get("token_logprobs") or [token["logprob"] for token in found["content"]]
        known = [float(value) for value in each if value is not None]
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        return None
    return sum(known) / len(known) if known else None


class _Kept:
    """Answers on disk, appended as they come. A line that a kill cut short is dropped, and its row asked again."""

    def __init__(self, path: Path) -> None:
        self._known: dict[tuple[str, int], Said] = {}
        whole = 0
        if path.exists():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            for line in content[:whole].splitlines():
                said = Said(**json.loads(line))
                if not said.error:
                    self._known[said.item, said.turn] = said
        self._file = path.open("r+b" if path.exists() else "wb")
        self._file.truncate(whole)
        self._file.seek(whole)
        self._lock = threading.Lock()

    def has(self, item: str, turn: int) -> bool:
        return (item, turn) in self._known

    def add(self, said: Said) -> None:
        with self._lock:
            self._known[said.item, said.turn] = said
            self._file.write(json.dumps(asdict(said)).encode() + b"\n")
            self._file.flush()

    def get(self, item: str, turn: int) -> Said:
        return self._known[item, turn]

    def every(self) -> Iterator[Said]:
        yield from self._known.values()


def _agreement(questions: list[Question], kept: _Kept, repeats: int) -> float | None:
    """The share of repeated answers that are what the first one was; None without repeats."""
    if repeats < 2:
        return None
    same = sum(
        kept.get(each.id, turn).text == kept.get(each.id, 0).text for each in questions for turn in range(1, repeats)
    )
    return same / (len(questions) * (repeats - 1))


# ---------------------------------------------------------------- judging


def _judged(need: EvaluationNeed, question: Question, said: Said, gateway: Asker) -> Item:
    found: dict[str, Judgement] = {}
    if not said.error:
        for judge in need.judges:
            found[judge.name] = _judgement(judge, question, said.text, gateway)
    return Item(
        id=question.id,
        question=question.prompt,
        expected=question.expected,
        answer=said.text,
        scores={name: each.score for name, each in found.items()},
        why={name: each.why for name, each in found.items() if each.why},
        slices=question.slices,
        latency_s=None if said.error else said.latency_s,
        logprob=said.logprob,
        error=said.error,
        agreement={name: each.agreement for name, each in found.items() if each.agreement is not None},
    )


def _judgement(judge: JudgeNeed, question: Question, text: str, gateway: Asker) -> Judgement:
    if judge.kind == "llm":
        return _verdict(judge, question, text, gateway)
    if judge.kind == "embedding":
        return _closeness(judge, question, text, gateway)
    try:
        return judging.judge(judge, text, question.expected)
    except InvalidInput as error:
        raise InvalidInput(f"item {question.id}: {error.message}", error.hint) from None


def _verdict(judge: JudgeNeed, question: Question, text: str, gateway: Asker) -> Judgement:
    mark = secrets.token_hex(8)
    asked = judging.verdict_prompt(judge, question.prompt, text, question.expected, mark)
    messages = [{"role": "system", "content": judging.VERDICT_SYSTEM}, {"role": "user", "content": asked}]
    votes: list[bool | None] = []
    for turn in range(judge.votes):
        body: dict[str, object] = {"model": judge.model, "messages": messages, "max_tokens": _JUDGE_TOKENS}
        # One vote is the judge's steadiest; several must be free to differ, or they are one vote.
        body |= {"temperature": 0.0 if judge.votes == 1 else 0.7, "seed": turn}
        answer = gateway.ask("/v1/chat/completions", body)
        if not answer.ok:
            return Judgement(None, f"judge {judge.model}: {answer.why_not}")
        votes.append(judging.read_verdict(batch.answer_of(answer.body) or ""))
    return judging.settled(votes)


def _closeness(judge: JudgeNeed, question: Question, text: str, gateway: Asker) -> Judgement:
    if not text.strip():
        return Judgement(0.0, "an empty answer")
    answer = gateway.ask("/v1/embeddings", {"model": judge.model, "input": [text, question.expected]})
    if not answer.ok:
        return Judgement(None, f"embeddings of {judge.model}: {answer.why_not}")
    vectors = _vectors(answer.body)
    if len(vectors) != 2:
        return Judgement(None, f"{judge.model} gave {len(vectors)} embeddings for 2 texts")
    near = judging.cosine(*vectors)
    return Judgement(float(near >= judge.pass_at), f"cosine {near:.4f}")


def _vectors(body: object) -> list[list[float]]:
    data = body.get("data") if isinstance(body, Mapping) else None
    ordered: list[Any] = sorted(
        (each for each in data or () if isinstance(each, dict)), key=lambda each: each.get("index", 0)
    )
    return [[float(x) for x in each["embedding"]] for each in ordered if isinstance(each.get("embedding"), list)]
