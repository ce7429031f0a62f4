"""`ground policy test` where there is no control plane, and what its other commands say of bad input."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Home, Said

from groundplane.cli.root import run
from groundplane.domain.policy import rule_set

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "policy.md"
RULE = """\
policy: groundplane/policy/v1
rules:
  - id: few-nodes
    over: spec
    require: spec.nodes <= 4
    why: Few nodes.
    hint: use fewer
    tests:
      - {given: {spec: {nodes: 4}}, expect: pass}
      - {name: too many, given: {spec: {nodes: 5}}, expect: refuse}
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No control plane, and a home without a folder."""
    monkeypatch.setenv("GROUND_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GROUND_PORT", "1")


def test_the_tests_of_a_file_and_of_the_built_in_rules_run_offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULE)
    assert run(["policy", "test", str(rules), "-o", "json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert {"few-nodes", "image-pinned"} <= {each["rule"] for each in results}
    assert run(["policy", "test", "--no-built-in"]) == 0
    assert capsys.readouterr().out == "0 of 0 tests pass\n"
    (tmp_path / "home" / "policy").mkdir(parents=True)
    rules.rename(tmp_path / "home" / "policy" / "rules.yaml")
    assert run(["policy", "test", "--no-built-in"]) == 0
    assert capsys.readouterr().out == "2 of 2 tests pass\n"


def test_a_test_that_fails_shows_what_the_rule_said_and_ends_with_9(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULE.replace("<= 4", "<= 5").replace("    tests:", "    severity: warn\n    tests:"))
    assert run(["policy", "test", str(rules), "--no-built-in"]) == 9
    out = capsys.readouterr().out
    assert out.startswith("1 of 2 tests pass\n")
    assert re.search(r"rules\.yaml:11 +few-nodes +too many +refuse +pass", out)
    (tmp_path / "more.yaml").write_text(RULE.replace("few-nodes", "few").partition("    tests:")[0])
    assert run(["policy", "test", str(tmp_path), "--no-built-in"]) == 9
    assert "rule few has no tests" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 4, "no file"),
        (b"\xff", 2, "is not UTF-8 text (byte 0)"),
        (b"x" * (1 << 21), 2, "is over 1 MiB"),
        (b"rules: []", 2, "error: a.yaml:1: policy is required"),
        (
            RULE.replace("spec.nodes <=", "spec.node <=").encode(),
            2,
            "error: a.yaml:5: rule few-nodes: require spec has no",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line_and_a_hint(
    text: bytes | None, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "a.yaml"
    if text is not None:
        path.write_bytes(text)
    assert run(["policy", "test", str(path)]) == code
    err = capsys.readouterr().err
    assert said in err
    assert "hint: " in err


def test_two_files_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.yaml").write_text(RULE)
    assert run(["policy", "test", str(tmp_path / "one"), str(tmp_path / "two")]) == 2
    assert "two files are called a.yaml" in capsys.readouterr().err


def test_the_guides_examples_are_policy_files_whose_tests_pass():
    blocks = re.findall(r"```yaml\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3
    for number, block in enumerate(blocks):
        files = rule_set.read_files({f"guide-{number}.yaml": block})
        results = rule_set.run_tests(files, rule_set.build(files).settings)
        assert all(result.passed for result in results)


def test_the_guide_names_every_field_that_a_rule_may_ask_for():
    guide = GUIDE.read_text(encoding="utf-8")
    for root, fields in rule_set.schema().items():
        if isinstance(fields, dict) and root != "settings":
            missing = [name for name in fields if f"`{name}`" not in guide]
            assert not missing, f"{root}: {missing}"


def test_policy_on_a_running_installation(up: Home, say: Callable[..., Said]):
    listed = say(up, "policy", "list", "--over", "endpoint").out
    assert "private-endpoints" in listed and "image-pinned" not in listed
    shown = say(up, "policy", "show", "image-pinned").out
    assert "condition   when size(spec.images) > 0; require" in shown
    unknown = say(up, "policy", "show", "image-pined")
    assert (unknown.code, "no rule image-pined" in unknown.err) == (4, True)
    assert "nobody is excepted" in say(up, "policy", "except").out
    missing = say(up, "policy", "except", "add", "sku-allowed", "--project", "default")
    assert (missing.code, "--reason" in missing.err) == (2, True)
    nowhere = say(up, "policy", "replay", "nowhere.yaml")
    assert (nowhere.code, "no file" in nowhere.err) == (4, True)
