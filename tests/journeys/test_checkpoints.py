"""Checkpoints and crashes through the real command and server: copied, kept, pulled, laid back, gone on from."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Writes a checkpoint per step, and goes on from the newest it is given. `die_at` kills it there in its first attempts.
TRAIN = r"""
import hashlib, json, os, signal, sys, time
last, die_at, dies, pause = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
root, resume = os.environ["GROUND_CHECKPOINT_DIR"], os.environ["GROUND_RESUME_FROM"]
step = json.load(open(resume + "/manifest.json"))["step"] if resume else 0
print("from step", step, flush=True)
while step < last:
    time.sleep(pause)
    step += 1
    data = b"state %d" % step * 1000
    draft = f"{root}/.step-{step}"
    os.makedirs(draft, exist_ok=True)
    open(draft + "/w.bin", "wb").write(data)
    files = [{"path": "w.bin", "sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}]
    json.dump({"step": step, "files": files, "metrics": {"loss": 1 / step}}, open(draft + "/manifest.json", "w"))
    if not os.path.exists(f"{root}/step-{step}"): os.rename(draft, f"{root}/step-{step}")
    print("step", step, flush=True)
    if step == die_at and int(os.environ["GROUND_ATTEMPT"]) <= dies:
        time.sleep(float(os.environ.get("LINGER", "3")))
        os.kill(os.getpid(), signal.SIGKILL)
"""


def train(*arguments: object) -> list[str]:
    return ["python3", "-c", TRAIN, *map(str, arguments)]


def test_a_checkpoint_outlives_its_node_and_is_pulled_and_laid_back(
    shared: Any, wait: Callable[..., Any], tmp_path: Path
) -> None:
    path = shared.job("keeper", train(6, 0, 0, 0.1), checkpoints={"keep_last": 2, "best_by": "loss/max"})
    run_id = shared.submit(path)
    shared.wait_run(run_id, "succeeded")

    def settled() -> Any:
        rows = shared.data("checkpoints", run_id)
        kept = [row["step"] for row in rows if not row["removed_at"]]
        copied = [row["step"] for row in rows if row["copy"] == "copied"]
        return rows if {5, 6} <= set(kept) and len(kept) <= 3 and {5, 6} <= set(copied) else None

    rows = wait(settled, "the newest two to be copied and the others to be gone")
    node = next(row["node"] for row in rows if row["step"] == 6)
    folder = shared.home / "runs" / run_id / "checkpoints"
    before = (folder / "step-6" / "w.bin").read_bytes()
    shared.ground("checkpoints", "pull", run_id, str(tmp_path / "here"))
    assert (tmp_path / "here" / "w.bin").read_bytes() == before
    shutil.rmtree(folder / "step-6")
    said = shared.ground("checkpoints", "restore", run_id, "--node", node).stderr
    assert "step 6" in said
    assert (folder / "step-6" / "w.bin").read_bytes() == before
    manifest = (folder / "step-6" / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == next(row["manifest_sha256"] for row in rows if row["step"] == 6)
    assert "sha256:" in shared.ground("checkpoints", "list", run_id).stdout
    actions = [event["action"] for event in json.loads(shared.ground("audit", "log", "-o", "json").stdout)]
    assert {"checkpoint.copy", "checkpoint.restore"} <= set(actions)


def test_what_is_not_there_is_said_so(shared: Any, tmp_path: Path) -> None:
    assert "no run" in shared.ground("checkpoints", "run-none", expect=4).stderr
    run_id = shared.submit(shared.job("empty", "true"))
    shared.wait_run(run_id, "succeeded")
    assert "no copy" in shared.ground("checkpoints", "pull", run_id, str(tmp_path / "x"), expect=4).stderr
    assert "never taken for hung" in shared.ground("stacks", run_id).stderr
