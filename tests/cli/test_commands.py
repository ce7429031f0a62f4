"""The command itself: quick to start, the same everywhere, and never a traceback."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest

from groundplane import __version__, client
from groundplane.cli import render
from groundplane.cli.options import parse_moment
from groundplane.cli.root import COMMANDS, ground, run
from groundplane.client import PARTS, Client
from groundplane.client.transport import Transport
from groundplane.errors import InvalidInput

LIBRARIES = ("httpx", "rich", "yaml", "jinja2", "cryptography", "asyncio", "ssl")
RARELY_NEEDED = ("yaml", "jinja2", "groundplane.domain.spec.parse", "groundplane.domain.scanning.model_files")
HEAVY = (
    *LIBRARIES,
    "msgspec",
    "psutil",
    "fastapi",
    "sqlalchemy",
    "groundplane.client",
    "groundplane.domain.spec.parse",
)
READING = re.compile(
    r" (list|show|status|ps|plan|explain|cost|report|verify|log|holds|whoami|settings|exposures|models)$"
)


def commands(command: click.Command = ground, path: str = "ground") -> Iterator[tuple[str, click.Command]]:
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from commands(child, f"{path} {name}")


def loaded(program: str, *, of: Sequence[str]) -> list[str]:
    """Which of these modules a fresh interpreter has after a program."""
    program += "; import sys; print(*(name for name in sys.argv[1:] if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program, *of], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


def test_help_loads_nothing_that_it_does_not_need() -> None:
    assert loaded("from groundplane.cli.root import run; run(['--help'])", of=HEAVY) == []


def test_no_command_loads_what_only_some_of_its_uses_need() -> None:
    modules = ", ".join(f"groundplane.cli.{module}" for module in sorted({module for module, _ in COMMANDS.values()}))
    assert loaded(f"import {modules}", of=(*LIBRARIES, "groundplane.client", *RARELY_NEEDED)) == []


def test_the_sdk_loads_a_part_when_one_of_its_calls_is_made() -> None:
    parts = tuple(f"groundplane.client.{part.partition('.')[0]}" for part in PARTS)
    wanted = ("rich", "pygments", "click", *RARELY_NEEDED, *parts)
    make = "from groundplane.client import Client; client = Client('http://127.0.0.1:1', 'a key')"
    assert loaded(make, of=wanted) == []
    assert loaded(f"{make}; client.models", of=wanted) == ["groundplane.client.models"]
    assert loaded(f"{make}; Client.follow_log", of=wanted) == ["groundplane.client.runs"]


def test_the_table_of_the_sdk_has_every_call_once() -> None:
    # The type checker sees the parts as base classes; what runs is this table.
    found = {}
    for path in Path(client.__file__).parent.glob("*.py"):
        for name, kind in vars(importlib.import_module(f"groundplane.client.{path.stem}")).items():
            if isinstance(kind, type) and kind is not Transport and Transport in kind.__bases__ and name != "_Calls":
                found[f"{path.stem}.{name}"] = {call for call in vars(kind) if not call.startswith("_")}
    assert {part: set(calls.split()) for part, calls in PARTS.items()} == found
    calls = [call for calls in PARTS.values() for call in calls.split()]
    assert len(calls) == len(set(calls))
    assert all(callable(getattr(Client, call)) for call in calls)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_of_each_command_what_the_command_says_of_itself(name: str) -> None:
    command = ground.get_command(click.Context(ground), name)
    assert command is not None
    said = " ".join((command.help or "").split("\n\n")[0].split())
    assert said.startswith(COMMANDS[name][1])


def test_every_command_and_every_option_that_is_not_plain_explains_itself() -> None:
    for path, command in commands():
        assert command.help, path
        assert command.help.split("\n\n")[0].rstrip().endswith("."), path


def test_every_reading_command_answers_in_json_and_yaml() -> None:
    for path, command in commands():
        if READING.search(path) and not isinstance(command, click.Group):
            assert any(parameter.name == "output" for parameter in command.params), path


def test_a_group_that_can_list_does_so_when_no_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    for path, command in commands():
        if "list" in getattr(command, "commands", ()) and path not in {"ground request", "ground checkpoints"}:
            assert run([*path.split()[1:], "-o", "json", "--help"]) == 0
            assert capsys.readouterr().out.startswith(f"Usage: {path} list "), path
            assert run([*path.split()[1:], "ls", "--help"]) == 0, path
            assert capsys.readouterr().out.startswith(f"Usage: {path} ls "), path


@pytest.mark.parametrize("words", ["schedules remove", "artifacts delete", "gates rm", "routes delete"])
def test_what_takes_away_answers_to_every_word_for_it(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words.split(), "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: ground {words} ")


def test_a_misspelt_command_is_met_with_the_one_that_was_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["statsu"]) == 2
    assert capsys.readouterr().err == "error: 'statsu' is no command. Did you mean status?\nhint: ground --help\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ps", "--nonsense"], "error: no such option '--nonsense'.\nhint: ground ps --help\n"),
        (["ps", "-o", "xml"], "error: invalid value for '-o' / '--output': 'xml' is not one of"),
        (["plan"], "error: give either a plan id or -f FILE."),
        (["apply"], "error: give either a plan id or -f FILE."),
        (["budget", "set", "x", "ten"], "'ten' is no amount of dollars; write it like $12.50"),
        (["keys", "create", "--project", "x", "--expires", "soon"], "'soon' is no time; write 2026-12-01"),
        (["ps", "--active", "--status", "failed"], "error: give either --active or --status."),
        (["models", "tiny-lm@1"], "hint: ground models show tiny-lm@1\n"),
        (["eval", "lst"], "hint: ground eval list\n"),
        (["artifacts", "store"], "hint: ground artifacts --help\n"),
    ],
)
def test_a_wrong_word_is_named_and_exits_with_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(words) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.splitlines()[-1].startswith("hint: ground ")
    assert said.out == ""


def test_version_and_bare_groups_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"ground {__version__}\n"
    assert run(["data"]) == 0
    assert "clear" in capsys.readouterr().out
    assert run([]) == 0
    assert "explain" in capsys.readouterr().out


def test_a_defect_is_written_down_and_not_thrown_at_anybody(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("the innards\nof it")

    (tmp_path / "log").mkdir()
    monkeypatch.setenv("GROUND_HOME", str(tmp_path))
    monkeypatch.setattr(render, "show", broken)
    assert run(["settings"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected ZeroDivisionError: the innards\nhint: this is a defect of ours")
    assert "Traceback" not in said
    (log,) = (tmp_path / "log").iterdir()
    assert "Traceback" in log.read_text()
    assert str(log) in said


def test_a_reader_that_has_enough_ends_it_quietly(tmp_path: Path) -> None:
    command = f"{sys.executable} -m groundplane.cli settings -o json | head -c 1"
    env = {**os.environ, "GROUND_HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, env=env, check=False
    )
    assert done.stderr == ""
    assert done.stdout == "["


def test_settings_show_values_and_mask_secrets(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GROUND_KEY", "gp-admin-secret")
    monkeypatch.setenv("GROUND_DATABASE_URL", "postgresql+asyncpg://ground:hunter2@db/ground")
    assert run(["settings", "-o", "json"]) == 0
    shown = capsys.readouterr().out
    assert "gp-admin-secret" not in shown
    assert "hunter2" not in shown
    assert "ground:****@db" in shown


@pytest.mark.parametrize(("text", "says"), [("30", "30 has no unit"), ("2027-01-01", "2027-01-01 lies ahead")])
def test_a_time_to_look_back_to_has_a_unit_and_has_been(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse_moment(text, datetime(2026, 11, 21, tzinfo=UTC), ahead=False)
