"""A cloud's command line tool, called with a time limit: its JSON, or a sentence on why there is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from groundplane.errors import Unavailable

ANSWER_MAX_BYTES = 256 * 2**20
_WORDS_MAX = 200


def ask(command: Sequence[str], *, timeout_s: float, sign_in: str) -> Any:
    """What the tool printed, decoded. Raises Unavailable: not installed, too slow, refused, or no JSON.

    `sign_in` is the command that gives the tool credentials: the usual way forward.
    """
    tool = command[0]
    if shutil.which(tool) is None:
        raise Unavailable(f"{tool} is not installed where the control plane runs", f"install {tool}, then: {sign_in}")
    env = {**os.environ, "CLOUDSDK_CORE_DISABLE_PROMPTS": "1", "AZURE_CORE_COLLECT_TELEMETRY": "0"}
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False, env=env
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"{tool} did not answer within {timeout_s:g} s", f"try it by hand: {' '.join(command)}"
        ) from None
    except OSError as error:
        raise Unavailable(f"{tool} can't be started: {error.strerror}", f"try it by hand: {tool} --version") from None
    if done.returncode != 0:
        raise Unavailable(f"{tool} exited with status {done.returncode}: {_last_words(done.stderr)}", sign_in)
    if len(done.stdout) > ANSWER_MAX_BYTES:
        raise Unavailable(
            f"{tool} answered {len(done.stdout):,} bytes; the limit is {ANSWER_MAX_BYTES:,}", "name a region"
        )
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise Unavailable(f"{tool} answered no JSON", f"try it by hand: {' '.join(command)}") from None


def _last_words(stderr: bytes) -> str:
    """The line that says what went wrong: the one that begins with ERROR, else the first."""
    lines = [line.strip() for line in stderr.decode(errors="replace").splitlines() if line.strip()]
    named = next((line for line in lines if line.upper().startswith("ERROR")), lines[0] if lines else "it said nothing")
    return named[:_WORDS_MAX]
