"""What people type, against a real installation: each command's words, exit status and machine output."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import pty
import re
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

JOB = """apiVersion: groundplane/v1
kind: Job
metadata:
  name: {name}
  project: research
  owner: ana
  cost_center: r1
spec:
  command: [sh, -c, "{command}"]
  workdir: .
  resources: {{cpus: 1, memory: 64MiB}}
  end_date: 2d
  max_cost: "$0.05"
  max_duration: 5m
"""
RUN_ID = re.compile(r"run-[0-9a-z]+")


def job(folder: Path, name: str, command: str, **changes: str) -> Path:
    text = JOB.format(name=name, command=command)
    for old, new in changes.items():
        text = re.sub(rf"(?m)^(\s*){old}:.*$", rf"\g<1>{new}", text)
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


# ---------------------------------------------------------------- plan, apply, follow


def test_a_plan_shows_its_price_its_sum_and_its_hash(up: Any, say: Any, tmp_path: Path) -> None:
    said = say(up, "plan", "-f", str(job(tmp_path, "shown", "true")))
    assert said.code == 0
    assert re.match(r"plan-\w+: job shown of project research is ready\n  runs on     local / ", said.out)
    assert "worst case  $0.10/h × 1 node × 300 s ÷ 3,600 s/h = $0.008334" in said.out
    assert "rules and checks ok" in said.out
    assert re.search(r"^apply it: ground apply plan-", said.err, re.MULTILINE)
    every = say(up, "plan", "--rules", "-f", str(job(tmp_path, "shown", "true")))
    assert re.search(r"^max-cost\s+ok ", every.out, re.MULTILINE)


def test_machine_output_is_the_plan_itself(up: Any, say: Any, tmp_path: Path) -> None:
    (made,) = say(up, "plan", "-o", "json", "-f", str(job(tmp_path, "exact", "true"))).data
    assert made["worst_case_microusd"] == 8_334
    assert made["job"]["workdir"] == str(tmp_path), "paths are counted from the spec's own folder"


def test_a_refused_plan_is_shown_and_exits_with_3(up: Any, say: Any, tmp_path: Path) -> None:
    path = job(tmp_path, "costly", "true", max_cost='max_cost: "$0.001"')
    for words in (["plan"], ["apply", "--yes"]):
        said = say(up, *words, "-f", str(path))
        assert said.code == 3
        assert "max-cost" in said.out + said.err
        assert re.search(r"^error: max-cost: needs .*, has max_cost \$0\.001", said.err, re.MULTILINE)
        assert said.err.splitlines()[-1].startswith("hint: ")


def test_apply_without_a_terminal_wants_yes(up: Any, say: Any, tmp_path: Path) -> None:
    said = say(up, "apply", "-f", str(job(tmp_path, "asked", "true")))
    assert said.code == 2
    assert said.out == ""
    assert said.err.endswith(
        "error: apply asks before it spends, and there is no terminal to ask on\nhint: add --yes\n"
    )


PROMPT = b"[y/N] "


def at_a_terminal(up: Any, answer: bytes, *words: str, **extra: str) -> tuple[int, str]:
    """Runs the command where it believes a person to be, and answers its question."""
    ours, theirs = pty.openpty()
    environment = {**up.env, "TERM": "xterm", "COLUMNS": "160", **extra}
    command = [sys.executable, "-m", "groundplane.cli", *words]
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said, deadline = b"", time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux tells the end of a terminal this way.
                break
            said += piece
            if not piece:
                break
            if said.endswith(PROMPT) and answer:
                os.write(ours, answer)
        code = process.wait(timeout=60)
    os.close(ours)
    return code, said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(("answer", "code", "words"), [(b"y\n", 0, "is pending"), (b"n\n", 130, "nothing was applied")])
def test_at_a_terminal_apply_asks_first(up: Any, tmp_path: Path, answer: bytes, code: int, words: str) -> None:
    path = job(tmp_path, f"asked-{code}", "true")
    ended, said = at_a_terminal(up, answer, "apply", "-f", str(path), NO_COLOR="1")
    assert ended == code, said
    assert re.search(r"Apply plan-\w+, holding up to \$0\.008334\? \[y/N\]", said), said
    assert words in said


def test_colour_is_for_terminals_and_stays_away_where_it_is_not_wanted(up: Any) -> None:
    assert "\x1b[" in at_a_terminal(up, b"", "projects", "list")[1]
    assert "\x1b[" in at_a_terminal(up, b"", "logs", "run-none")[1]
    assert "\x1b[" not in at_a_terminal(up, b"", "logs", "run-none", NO_COLOR="1")[1]
    plain = at_a_terminal(up, b"", "projects", "list", NO_COLOR="1")[1]
    assert "\x1b[3" not in plain
    assert "research" in plain


@pytest.mark.parametrize(
    ("command", "code", "words"), [("echo well; exit 0", 0, "succeeded"), ("echo ill; exit 3", 9, "exit")]
)
def test_waiting_shows_the_log_and_exits_by_the_outcome(
    up: Any, say: Any, tmp_path: Path, command: str, code: int, words: str
) -> None:
    said = say(up, "apply", "--yes", "--wait", "-f", str(job(tmp_path, f"waited-{code}", command)))
    assert said.code == code, said.err
    assert command.split()[1].rstrip(";") in said.out
    assert words in said.out


def test_a_run_is_listed_explained_logged_and_stopped(up: Any, say: Any, tmp_path: Path) -> None:
    command = r"printf 'one\\ntwo\\nthree\\n\\377\\n'; exec sleep 300"
    applied = say(up, "apply", "--yes", "-o", "json", "-f", str(job(tmp_path, "long", command))).data
    run_id = applied["runs"][0]["id"]
    try:
        with up.client as client:
            for piece in client.follow_log(run_id):
                if piece.data.endswith(b"\xff\n"):
                    break
        assert run_id in say(up, "ps", "--active").out
        logged = up_bytes(up, "logs", run_id)
        assert logged == b"one\ntwo\nthree\n\xff\n", "the job's own bytes"
        assert up_bytes(up, "logs", run_id, "--tail", "2") == b"three\n\xff\n"
        told = say(up, "explain", run_id, "-o", "json").data
        assert (told["run"]["id"], len(told["attempts"])) == (run_id, 1)
        assert told["sentence"]
    finally:
        stopped = say(up, "stop", run_id, "--reason", "seen enough", "--wait")
    assert stopped.out == f"{run_id} is stopped\n"
    (event,) = [e for e in say(up, "audit", "log", "--id", run_id, "-o", "json").data if e["action"] == "run.stop"]
    assert event["reason"] == "seen enough"


def up_bytes(up: Any, *words: str) -> bytes:
    command = [sys.executable, "-m", "groundplane.cli", *words]
    return subprocess.run(command, env=up.env, capture_output=True, check=True, timeout=60).stdout


def test_the_same_idempotency_key_starts_nothing_twice(up: Any, say: Any, tmp_path: Path) -> None:
    path = job(tmp_path, "once", "true")
    first, again = (
        say(up, "apply", "--yes", "--idempotency-key", "monday", "-o", "json", "-f", str(path)).data["runs"][0]["id"]
        for _ in range(2)
    )
    assert first == again


def test_a_file_of_two_documents_is_two_runs(up: Any, say: Any, tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("---\n".join(job(tmp_path, name, "true").read_text() for name in ("first", "second")))
    applied = say(up, "apply", "--yes", "--wait", "-o", "json", "-f", str(path))
    assert applied.code == 0
    assert [run["name"] for run in applied.data["runs"]] == ["first", "second"]


# ---------------------------------------------------------------- broken specs, word for word


def test_several_faults_are_listed_like_a_compiler_does(up: Any, say: Any, tmp_path: Path) -> None:
    path = job(
        tmp_path, "faulty", "true", max_cost='max_costs: "$1"', resources="resources: {cpus: -1, gpus: 2, memory: 1GiB}"
    )
    said = say(up, "plan", "-f", str(path))
    assert said.code == 2
    assert said.out == ""
    assert said.err.startswith(f"error: {path} has 4 problems\n")
    assert f"  {path}:11: spec.resources.cpus: must be at least 0.1, is -1\n" in said.err
    assert f"  {path}:11: spec.resources.gpus: unknown field\n    did you mean accelerators?\n" in said.err
    assert f"  {path}:13: spec.max_costs: unknown field\n    did you mean max_cost?\n" in said.err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1\nb: }", ":2: not valid YAML: "),
        (b"", "the document is empty"),
        (b"\xff\xfe", "is not UTF-8 text (byte 0)"),
        (b"kind: Jobb\n", "'Jobb' is not one of"),
        (b"a: b\n" * 300_000, "is over 1.0 MiB"),
    ],
)
def test_a_file_that_is_no_spec_says_why(up: Any, say: Any, tmp_path: Path, text: bytes, message: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text)
    said = say(up, "plan", "-f", str(path))
    assert said.code == 2
    assert message in said.err
    assert said.err.startswith("error: ")


def test_an_end_date_in_the_past_is_told_by_how_much(up: Any, say: Any, tmp_path: Path) -> None:
    said = say(up, "plan", "-f", str(job(tmp_path, "late", "true", end_date="end_date: 2020-01-01")))
    assert said.code == 2
    assert "2020-01-01 is in the past" in said.err


def test_a_missing_file_and_a_folder_are_named(up: Any, say: Any, tmp_path: Path) -> None:
    missing = say(up, "plan", "-f", str(tmp_path / "none.yaml"))
    assert (missing.code, missing.err.splitlines()[0]) == (4, f"error: no file {tmp_path / 'none.yaml'}")
    assert say(up, "plan", "-f", str(tmp_path)).code == 2


# ---------------------------------------------------------------- whom and where


def test_nothing_answering_says_how_to_start_it(home: Any, say: Any) -> None:
    home.extra["GROUND_KEY"] = "gp-admin-x"
    said = say(home, "ps")
    assert (said.code, said.out) == (6, "")
    assert said.err == f"error: nothing answers at http://127.0.0.1:{home.port}\nhint: start it: ground up\n"


def test_without_a_key_it_says_where_keys_come_from(home: Any, say: Any) -> None:
    said = say(home, "ps")
    assert said.code == 7
    assert "GROUND_KEY is not set" in said.err


@pytest.mark.parametrize("key", ["gp-admin-wrong", "schlüssel", "two\nlines"])
def test_a_wrong_key_exits_with_7(up: Any, say: Any, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setitem(up.extra, "GROUND_KEY", key)
    said = say(up, "ps")
    assert said.code == 7
    assert said.err.startswith("error: ")


def test_an_address_that_is_no_control_plane_is_told(up: Any, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(up.extra, "GROUND_KEY", "gp-admin-x")
    monkeypatch.setitem(up.extra, "GROUND_URL", f"http://127.0.0.1:{up.gateway_port}")
    said = say(up, "ps")
    assert said.code == 4
    assert "hint: is GROUND_URL the address of a control plane?" in said.err
    monkeypatch.setitem(up.extra, "GROUND_URL", "ftp://somewhere")
    assert say(up, "ps").code == 2


def test_a_misspelt_setting_is_refused(up: Any, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(up.extra, "GROUND_GATEWAY_PORTS", "1")
    said = say(up, "ps")
    assert said.code == 2
    assert said.err == "error: GROUND_GATEWAY_PORTS is no setting\nhint: did you mean GROUND_GATEWAY_PORT?\n"


# ---------------------------------------------------------------- access and money


def test_a_key_is_made_used_listed_and_revoked(up: Any, say: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = say(up, "keys", "create", "--project", "research", "--role", "viewer", "--name", "eyes", "--expires", "1d")
    secret = made.out.strip()
    assert secret.startswith("gp-viewer-")
    assert "only time" in made.err
    monkeypatch.setitem(up.extra, "GROUND_KEY", secret)
    assert "viewer, project research" in say(up, "whoami").out
    refused = say(up, "projects", "create", "x", "--owner", "a", "--cost-center", "b")
    assert (refused.code, "viewer" in refused.err) == (7, True)
    monkeypatch.delitem(up.extra, "GROUND_KEY")
    (row,) = [key for key in say(up, "keys", "list", "-o", "json").data if key["name"] == "eyes"]
    assert row["secret_sha256"] == ""
    assert "is revoked since" in say(up, "keys", "revoke", row["id"], "--reason", "over").out
    assert re.search(rf"^{row['id']} .* revoked ", say(up, "keys", "list").out, re.MULTILINE)


def test_budgets_are_set_shown_and_in_whole_microdollars(up: Any, say: Any) -> None:
    say(up, "projects", "create", "vision", "--owner", "bo", "--cost-center", "v1")
    assert say(up, "budget", "show", "vision").code == 4
    set_ = say(up, "budget", "set", "vision", "$12.345678", "--reason", "quarter", "-o", "json")
    assert set_.data["limit_microusd"] == 12_345_678
    assert "vision" in say(up, "budget", "show").out
    assert say(up, "budget", "holds", "--project", "vision").out == "no money is reserved\n"
    for nothing, next_step in (("limits", "ground limits set"), ("routes", "ground routes set"), ("dev", "ground dev")):
        assert next_step in say(up, nothing, "list").out


def test_reports_add_up(up: Any, say: Any) -> None:
    report = say(up, "report", "-o", "json").data
    for name in ("by_project", "by_owner", "by_run"):
        assert sum(row["total_microusd"] for row in report[name]) == report["total_microusd"]
    shown = say(up, "report").out
    for title in ("By project", "By model", "Budgets of this month", "Running", "Serving"):
        assert title in shown
    for by in ("project", "model", "run", "key", "owner", "cost-center", "cost_center"):
        assert say(up, "cost", "--by", by, "--since", "1d").code == 0


def test_the_trail_is_whole(up: Any, say: Any) -> None:
    verdict = say(up, "audit", "verify", "-o", "json")
    assert (verdict.code, verdict.data["broken"]) == (0, None)
    assert say(up, "audit", "verify").out.endswith("the trail is whole\n")
    assert "project.create" in say(up, "audit", "log", "--kind", "project").out


def test_exposures_are_added_shown_and_withdrawn(up: Any, say: Any) -> None:
    ends = (datetime.now(UTC) + timedelta(days=3)).date().isoformat()
    words = ("exposures", "add", "10.0.0.5:4710", "--owner", "ana", "--reason", "a pilot", "--expires", ends)
    added = say(up, *words, "-o", "json")
    assert added.data["expires_at"].startswith(f"{ends}T23:59:59")
    assert "10.0.0.5:4710  active" in say(up, "exposures").out
    assert say(up, "exposures", "withdraw", "10.0.0.5:4710").code == 0
    assert say(up, "exposures").out == "nothing is reachable beyond loopback\n"


# ---------------------------------------------------------------- models


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


FACTS = ("--owner", "ana", "--license", "Apache-2.0", "--framework", "jax", "--code-commit", "0" * 40,
         "--training-run", "elsewhere-7", "--data", f"corpus={'a' * 64}", "--metric", "loss=1.5")  # fmt: skip


def test_a_folder_is_registered_shown_verified_and_certified(up: Any, say: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "model.safetensors").write_bytes(safetensors())
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    registered = say(up, "models", "register", str(tmp_path), "--name", "by-hand", "--project", "research", *FACTS)
    assert registered.code == 0, registered.err
    assert registered.out.startswith("registered by-hand@1\n")
    assert "by-hand@1" in say(up, "models").out
    shown = say(up, "models", "show", "by-hand@latest")
    assert hashlib.sha256(safetensors()).hexdigest() in shown.out
    assert "tokenizer/tokenizer.json" in shown.out
    assert "are as key" in say(up, "models", "verify", "by-hand@1").out
    certified = say(up, "models", "certificate", "by-hand@1", "-o", "json").data
    assert certified["statement"]["predicateType"].startswith("https://groundplane.dev/")
    assert "payload" in say(up, "models", "certificate", "by-hand@1", "--envelope").data


def test_a_flipped_bit_is_found_and_exits_with_8(up: Any, say: Any, tmp_path: Path) -> None:
    body = safetensors()[:-1] + b"\x07"
    (tmp_path / "model.safetensors").write_bytes(body)
    say(up, "models", "register", str(tmp_path), "--name", "flipped", "--project", "research", *FACTS)
    (pack,) = [path for path in (up.path / "store").rglob("*") if path.is_file() and body[-16:] in path.read_bytes()]
    pack.chmod(0o600)
    pack.write_bytes(pack.read_bytes().replace(body[-16:], body[-16:-1] + b"\x06"))
    said = say(up, "models", "verify", "flipped@1")
    assert said.code == 8
    assert "model.safetensors" in said.err
    assert said.err.startswith("error: flipped@1 is not what was signed")


def test_a_loose_pickle_is_refused_before_it_travels(up: Any, say: Any, tmp_path: Path) -> None:
    stray = tmp_path / "model_final_v2_FIXED.pt"
    stray.write_bytes(pickle.dumps({"weights": [0.0]}))
    before = list((up.path / "uploads").iterdir())
    said = say(up, "models", "register", str(stray), "--name", "final", "--project", "research")
    assert said.code == 3
    assert said.err.startswith("error: refused for 7 reasons\n  no-pickles: ")
    for flag in ("--owner", "--license", "--data", "--code-commit", "--training-run", "--metric"):
        assert f"    add {flag}" in said.err
    assert list((up.path / "uploads").iterdir()) == before


@pytest.mark.parametrize(
    ("ref", "code"), [("nothing@1", 4), ("by-hand", 2), ("by-hand@0", 2), ("By-Hand@1", 2), ("../x@1", 2)]
)
def test_a_reference_that_names_nothing_is_told_so(up: Any, say: Any, ref: str, code: int) -> None:
    assert say(up, "models", "verify", ref).code == code


def test_names_of_nothing_are_not_found(up: Any, say: Callable[..., Any]) -> None:
    asked = ("logs run-none", "explain run-none", "stop run-none", "stop none", "endpoints show none")
    for words in (*asked, "apply plan-none --yes", "keys revoke key-none"):
        said = say(up, *words.split())
        assert said.code == 4, words
        assert said.err.startswith("error: no "), said.err
        assert "hint: " in said.err
