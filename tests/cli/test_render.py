"""Printing: exact for programs, aligned for people, harmless for terminals."""

from __future__ import annotations

import json
import sys
import threading

import pytest
import yaml

from groundplane.cli import render
from groundplane.cli.render import Table, Usd, clean
from groundplane.errors import Conflict, InvalidInput, Problem, Refusal, Refused

ROWS = [("tiny", Usd(1_000_000)), ("漢字", Usd(10_500_000)), ("", Usd(0)), ("one", Usd(59))]
TABLE = Table(("NAME", "COST"), ROWS, right=frozenset({"COST"}))


def test_a_table_in_a_pipe_is_aligned_plain_and_uncut(capsys: pytest.CaptureFixture[str]) -> None:
    render.show([], "table", lambda: [TABLE, Table(("X",), [("y" * 500,)])])
    said = capsys.readouterr().out
    assert said.startswith(
        "NAME        COST\ntiny   $1.000000\n漢字  $10.500000\n-      $0.000000\none    $0.000059\n\nX\n"
    )
    assert "y" * 500 in said
    assert "\x1b" not in said


def test_an_empty_table_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    render.show([], "table", lambda: [Table(("X",), [], empty="no runs yet")])
    assert capsys.readouterr().out == "no runs yet\n"


def test_json_and_yaml_are_exact_and_alone_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    value = {"cost_microusd": 12_345_678_901, "name": "grün", "none": None}
    render.show(value, "json", list)
    said = capsys.readouterr()
    assert (json.loads(said.out), said.err) == (value, "")
    render.show(value, "yaml", list)
    assert yaml.safe_load(capsys.readouterr().out) == value


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain ünïcode", "plain ünïcode"), ("a\x1b[31mb", "a\ufffd[31mb"), ("a\r\nb\x07", "a\ufffd b\ufffd")],
)
def test_what_comes_from_elsewhere_does_not_steer_the_terminal(text: str, shown: str) -> None:
    assert clean(text) == shown


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_wait_is_told_on_a_terminal_and_nowhere_else(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setattr(render, "SILENCE_MAX_S", 0.0)
    told = threading.Event()
    monkeypatch.setattr(render, "say", lambda text: told.set())
    with render.patience():
        assert told.wait(30 if terminal else 0) is terminal
    monkeypatch.setattr(render, "SILENCE_MAX_S", 3600.0)
    with render.patience():
        pass
    assert capsys.readouterr() == ("", "")


def test_one_fault_is_one_line_and_its_hint(capsys: pytest.CaptureFixture[str]) -> None:
    error = InvalidInput(
        "line 7: spec.gpus: unknown field",
        "fix it",
        [Problem(field="spec.gpus", message="unknown field", line=7, hint="did you mean accelerators?")],
    )
    error.details["source"] = "job.yaml"
    render.error(error)
    assert capsys.readouterr().err == "error: job.yaml:7: spec.gpus: unknown field\nhint: did you mean accelerators?\n"


def test_several_refusals_are_listed_each_with_its_way_forward(capsys: pytest.CaptureFixture[str]) -> None:
    refused = [Refused(rule=f"rule-{n}", need="1", have="0", hint=f"do {n}") for n in (1, 2)]
    render.error(Refusal(refused))
    assert capsys.readouterr().err == (
        "error: refused for 2 reasons\n  rule-1: needs 1, has 0\n    do 1\n  rule-2: needs 1, has 0\n    do 2\n"
    )


def test_an_error_without_a_hint_has_none(capsys: pytest.CaptureFixture[str]) -> None:
    render.error(Conflict("it changed"))
    assert capsys.readouterr().err == "error: it changed\n"
