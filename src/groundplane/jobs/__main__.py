"""The program of kind: Evaluation and kind: Batch. Exits with 0 done, 2 can't be done, 3 too many rows in error."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from groundplane.domain.spec.inference import BatchNeed, EvaluationNeed
from groundplane.errors import GroundError
from groundplane.jobs.batch import PACK, SHARDS, answer_rows, take_shards
from groundplane.jobs.calls import Asker
from groundplane.jobs.evaluate import evaluate
from groundplane.jobs.files import put_json, say
from groundplane.jobs.order import ORDER_FILE, PROBLEM_FILE, STAGED_SHARDS, ProgramOrder, data_file, order_of
from groundplane.jobs.served import served

BESIDE_PATIENCE_S = 30.0
"""A server of our own that is gone does not come back: nobody starts it again."""


def main() -> int:
    """Reads its order, works, and says in `problem.json` why not when it can't."""
    order = order_of((Path(os.environ["GROUND_SECRETS_DIR"]) / ORDER_FILE).read_bytes())
    output = Path(os.environ["GROUND_OUTPUT_DIR"])
    (output / PROBLEM_FILE).unlink(missing_ok=True)  # an earlier attempt's
    try:
        return _work(order, output)
    except GroundError as problem:
        put_json(output / PROBLEM_FILE, {"message": problem.message, "hint": problem.hint})
        say(f"error: {problem.message}")
        if problem.hint:
            say(f"hint: {problem.hint}")
        return 2


def _work(order: ProgramOrder, output: Path) -> int:
    need: EvaluationNeed | BatchNeed = order.evaluation or order.batch  # type: ignore[assignment]
    path = data_file(order, os.environ)
    fresh = order.evaluation is not None
    ways = None if order.gateway_url else Path(os.environ["GROUND_ATTEMPT_DIR"])
    gateway = Asker(order.gateway_url, order.key, timeout_s=need.asking.timeout_s, fresh=fresh, ways=ways)
    with served(order) as base_url:
        beside = Asker(base_url, "", timeout_s=need.asking.timeout_s, patience_s=BESIDE_PATIENCE_S)
        target = beside if base_url else gateway
        if order.evaluation is not None:
            evaluate(order.evaluation, path, order.target, target, gateway, output)
            return 0
        assert order.batch is not None
        if STAGED_SHARDS in os.environ:
            packed = Path(os.environ[STAGED_SHARDS]) / PACK
            say(f"{take_shards(packed, output / SHARDS):,} shards of {order.batch.resume} are taken")
        found = answer_rows(order.batch, path, order.target, target, output)
        say(json.dumps(found))
        if found["errors"] > order.batch.bad_rows:
            problem = f"{found['errors']:,} rows are in error; spec.bad_rows allows {order.batch.bad_rows:,}"
            kept = "what was answered is kept in the run's output folder; mend the rows, or raise spec.bad_rows"
            put_json(output / PROBLEM_FILE, {"message": problem, "hint": kept})
            say(f"error: {problem}")
            return 3
        return 0


if __name__ == "__main__":
    sys.exit(main())
