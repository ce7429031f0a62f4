"""Batch inference: rows in shards, each shard written whole and once, what is there already left as it is.

A shard's figures are durable before its rows appear under their name; so rows that are there are complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundplane.domain import batch
from groundplane.domain.spec.inference import BatchNeed
from groundplane.errors import InvalidInput
from groundplane.jobs.calls import Asker, side_by_side
from groundplane.jobs.files import put_bytes, put_json, rows, say

ANSWERS = "answers.jsonl"
SUMMARY = "batch.json"
PROGRESS = "progress.json"
SHARDS = "shards"
PACK = "shards.tar"
Row = tuple[int, dict[str, object] | str]


def answer_rows(need: BatchNeed, path: Path, model: str, target: Asker, output: Path) -> dict[str, Any]:
    """Answers every row that no earlier attempt has answered; stops early when too many are in error."""
    total, doubled = _look_over(need, path)
    plan = batch.shards(total, need.shard_rows)
    folder = output / SHARDS
    folder.mkdir(parents=True, exist_ok=True)
    sums = {"rows": 0, "errors": 0, "prompt_tokens": 0, "completion_tokens": 0, "asked": 0}
    sums |= {"taken": 0, "taken_errors": 0}  # of shards that an earlier run answered, and paid for
    shards_done, source = 0, rows(path)
    for index, (first, last) in enumerate(plan):
        part = [next(source) for _ in range(last - first)]
        figures = _done(folder, index)
        if figures is None:
            figures = _answer(need, part, model, target, doubled, (folder, index))
            sums["asked"] += figures["rows"]
        for name in ("rows", "errors", "prompt_tokens", "completion_tokens"):
            sums[name] += figures[name]
        if figures.get("taken"):
            sums["taken"] += figures["rows"]
            sums["taken_errors"] += figures["errors"]
        shards_done += 1
        progress = {"rows": total, "done": sums["rows"], "errors": sums["errors"]}
        put_json(output / PROGRESS, {**progress, "shards": len(plan), "shards_done": shards_done})
        say(f"{sums['rows']:,} of {total:,} rows, {sums['errors']:,} in error")
        if sums["errors"] > need.bad_rows:
            break
    answers = _assemble(folder, shards_done, output / ANSWERS)
    summary = {**sums, "total": total, "shards": len(plan), "shards_done": shards_done, "sha256": answers}
    put_json(output / SUMMARY, summary)
    return summary


def pack_shards(folder: Path, target: Path) -> None:
    """Writes finished shards as one file: shards are many and small. The same bytes for the same shards."""
    with tarfile.open(target, "w") as pack:
        for path in sorted(folder.glob("*.jsonl")):
            if _done(folder, int(path.stem)) is not None:
                for each in (path.with_suffix(".json"), path):
                    member = tarfile.TarInfo(each.name)
                    member.size = each.stat().st_size
                    with each.open("rb") as content:
                        pack.addfile(member, content)


def take_shards(packed: Path, folder: Path) -> int:
    """Lays out those that are not here yet, marked as taken; how many. Twice is the same as once."""
    folder.mkdir(parents=True, exist_ok=True)
    taken, figures = 0, b""
    with tarfile.open(packed, "r:") as pack:
        for member in pack:
            content = pack.extractfile(member)
            assert content is not None
            target = folder / Path(member.name).name
            if target.suffix == ".json":  # a shard's figures come first
                figures = content.read()
            elif not target.exists():
                put_json(target.with_suffix(".json"), {**json.loads(figures), "taken": True})
                put_bytes(target, content.read())
                taken += 1
    return taken


def _look_over(need: BatchNeed, path: Path) -> tuple[int, frozenset[str]]:
    """How many rows there are, and which ids stand on two of them. InvalidInput for none."""
    total, seen, doubled = 0, set[bytes](), set[str]()
    for _, row in rows(path):
        total += 1
        custom_id = row.get("custom_id") if isinstance(row, dict) and need.format == "openai" else None
        if isinstance(custom_id, str):
            digest = hashlib.sha256(custom_id.encode("utf-8", "surrogatepass")).digest()[:16]
            if digest in seen:
                doubled.add(custom_id)
            seen.add(digest)
    if not total:
        raise InvalidInput(f"{path.name} has no rows", "register a dataset that has some")
    return total, frozenset(doubled)


def _answer(
    need: BatchNeed, part: list[Row], model: str, target: Asker, doubled: frozenset[str], place: tuple[Path, int]
) -> dict[str, Any]:
    def work(row: Row) -> tuple[bytes, bool, int, int]:
        return _one(need, row, model, target, doubled)

    lines, errors, prompt_tokens, completion_tokens = [], 0, 0, 0
    for line, wrong, prompt, completion in side_by_side(work, part, need.asking.at_once):
        lines.append(line)
        errors += wrong
        prompt_tokens += prompt
        completion_tokens += completion
    content = b"".join(lines)
    figures = {
        "rows": len(lines),
        "errors": errors,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    folder, index = place
    put_json(folder / f"{index:06d}.json", figures)
    put_bytes(folder / f"{index:06d}.jsonl", content)
    return figures


def _one(need: BatchNeed, row: Row, model: str, target: Asker, doubled: frozenset[str]) -> tuple[bytes, bool, int, int]:
    """One row's line of output, whether it is in error, and its tokens."""
    number, said = row
    table = need.format == "table"
    try:
        if isinstance(said, str):
            raise InvalidInput(said)
        request = batch.table_request(need.asking, said, number) if table else batch.openai_request(said, number)
        if request.custom_id in doubled:
            raise InvalidInput(f"line {number}: custom_id {request.custom_id!r} occurs twice")
    except InvalidInput as error:
        wrong = f"{error.message}; {error.hint}" if error.hint else error.message
        return _line(need, row, None, "", wrong), True, 0, 0
    answer = target.ask(request.url, {**request.body, "model": model})
    prompt, completion = answer.tokens()
    if not table:
        line = batch.response_line(
            request.custom_id, answer.request_id, answer.status, answer.body, "" if answer.ok else answer.why_not
        )
        return _json_line(line), not answer.ok, prompt, completion
    text = batch.answer_of(answer.body) if answer.ok else None
    wrong = answer.why_not or ("" if text is not None else "the answer holds no text")
    return _line(need, row, text, request.custom_id, wrong), bool(wrong), prompt, completion


def _line(need: BatchNeed, row: Row, text: str | None, custom_id: str, wrong: str) -> bytes:
    number, said = row
    if need.format == "table":
        return _json_line(batch.table_line(said if isinstance(said, dict) else {"line": number}, text or "", wrong))
    named = said.get("custom_id") if isinstance(said, dict) else None
    custom_id = custom_id or (named if isinstance(named, str) else f"line-{number}")
    return _json_line(batch.response_line(custom_id, "", 0, None, wrong))


def _json_line(value: object) -> bytes:
    # Lone surrogates of a row's escapes stay escapes: the file must be UTF-8.
    return json.dumps(value).encode() + b"\n"


def _done(folder: Path, index: int) -> dict[str, Any] | None:
    """The figures of a shard that is complete; None when it must be answered."""
    try:
        content = (folder / f"{index:06d}.jsonl").read_bytes()
        figures: dict[str, Any] = json.loads((folder / f"{index:06d}.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return figures if figures.get("sha256") == hashlib.sha256(content).hexdigest() else None


def _assemble(folder: Path, count: int, path: Path) -> str:
    """All shards in order as one file; its SHA-256."""
    part = path.with_name(f"{path.name}.part")
    digest = hashlib.sha256()
    with part.open("wb") as target:
        for piece in _pieces(folder, count):
            digest.update(piece)
            target.write(piece)
        target.flush()
        os.fsync(target.fileno())
    shutil.move(part, path)
    return digest.hexdigest()


def _pieces(folder: Path, count: int) -> Iterator[bytes]:
    for index in range(count):
        yield (folder / f"{index:06d}.jsonl").read_bytes()
