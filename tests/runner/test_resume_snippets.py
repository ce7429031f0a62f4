"""The snippets of docs/guides/checkpoints.md: all are Python, and the JAX one is run, killed and gone on with."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from groundplane.domain.run import EndReason

GUIDE = (Path(__file__).parents[2] / "docs" / "guides" / "checkpoints.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.splitlines()[0][:40])
def test_every_snippet_is_python_and_uses_names_that_seal_has(snippet: str) -> None:
    tree = ast.parse(snippet)
    sealed = {each.name for each in ast.parse(SNIPPETS[0]).body if isinstance(each, ast.FunctionDef)} | {
        "ROOT",
        "RESUME",
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "seal":
            assert {alias.name for alias in node.names} <= sealed


async def test_the_jax_snippet_resumes_after_a_kill(node: Any, tmp_path: Path) -> None:
    (tmp_path / "seal.py").write_text(SNIPPETS[0])
    snippet = next(each for each in SNIPPETS if "import jax," in each)
    slow = snippet.replace("    step += 1\n", "    step += 1; import time; time.sleep(0.02)\n", 1)
    (tmp_path / "slow.py").write_text(slow)
    env = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}
    await node.start([sys.executable, "slow.py"], workdir=str(tmp_path), env=env)
    await node.until(lambda seen: seen.checkpoints, patience_s=60)
    await node.executor.stop("att-1", EndReason.TEST_KILL)
    killed = await node.ended()
    assert killed.end_reason is EndReason.TEST_KILL
    step = max(found.step for found in killed.checkpoints)
    await node.start([sys.executable, "slow.py"], attempt_id="att-2", number=2, workdir=str(tmp_path), env=env)
    await node.until(lambda seen: any(each.step > step for each in seen.checkpoints), "att-2", patience_s=60)
    assert f"from step {step}\n".encode() in node.log("att-2")
    await node.executor.stop("att-2", EndReason.STOPPED_BY_USER)
    assert max(found.step for found in (await node.ended("att-2")).checkpoints) > step
