"""Bad specs, and the exact words people read about them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from groundplane.domain.spec.parse import parse
from groundplane.domain.spec.yaml_nodes import MAX_ALIASES, MAX_BYTES, MAX_DEPTH, MAX_DOCUMENTS, MAX_VALUES
from groundplane.errors import InvalidInput

NOW = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)

# Line numbers below count from here.
GOOD = """\
apiVersion: groundplane/v1
kind: Job
metadata: {name: tiny, project: default, owner: ana, cost_center: research}
spec:
  command: [python, train.py]
  env: {A: "1"}
  resources: {cpus: 2, memory: 2GiB}
  end_date: 7d
  max_cost: $0.50
  max_duration: 30m
"""
SERVE = """\
apiVersion: groundplane/v1
kind: Endpoint
metadata: {name: tiny, project: default, owner: ana, cost_center: research}
spec:
  model: tiny@1
  resources: {cpus: 1, memory: 1GiB}
  end_date: 7d
  max_cost: $5
  token_price: {prompt: $0.10, completion: $0.40}
"""


def said(text: str) -> list[str]:
    """Every problem as `line N: field: message | hint`."""
    with pytest.raises(InvalidInput) as caught:
        parse(text, now=NOW)
    return [f"{problem} | {problem.hint}" for problem in caught.value.problems]


def _swapped(old: str, new: str, base: str = GOOD) -> str:
    assert old in base
    return base.replace(old, new)


def test_the_base_of_these_cases_is_itself_good():
    assert len(parse(f"{GOOD}---\n{SERVE}", now=NOW)) == 2


CASES: dict[str, tuple[str, list[str]]] = {
    "unknown field": (
        _swapped("max_duration", "max_durration"),
        [
            "line 5: spec.max_duration: is required | write it like max_duration: 30m",
            "line 10: spec.max_durration: unknown field | did you mean max_duration?",
        ],
    ),
    "another dialect's word": (
        _swapped("cpus: 2", "cpus: 2, gpus: 4"),
        ["line 7: spec.resources.gpus: unknown field | did you mean accelerators?"],
    ),
    "camel case": (
        _swapped("max_cost", "maxCost"),
        [
            "line 5: spec.max_cost: is required | write it like max_cost: $0.50",
            "line 9: spec.maxCost: unknown field | did you mean max_cost?",
        ],
    ),
    "right field, wrong place": (
        _swapped("owner: ana", "owner: ana, max_cost: $1"),
        ["line 3: metadata.max_cost: unknown field | it belongs to spec: spec.max_cost"],
    ),
    "field of the other kind": (
        _swapped("  end_date", "  model: tiny@1\n  end_date"),
        ["line 8: spec.model: unknown field | it belongs to spec.training: spec.training.model"],
    ),
    "field of nothing": (
        _swapped("cpus: 2", "cpus: 2, zzz: 1"),
        [
            "line 7: spec.resources.zzz: unknown field | "
            "known here: accelerator, accelerators, cloud, cpus, disk, instance_type, memory, nodes, nodes_min, "
            "purchase, region"
        ],
    ),
    "field written twice": (
        _swapped("  end_date", "  end_date: 3d\n  end_date"),
        ["line 9: spec: 'end_date' is written twice; the first is on line 8 | keep one of them"],
    ),
    "negative accelerators": (
        _swapped("cpus: 2", "cpus: 2, accelerators: -1"),
        ["line 7: spec.resources.accelerators: must be at least 0, is -1 | write 0 or more"],
    ),
    "half an accelerator": (
        _swapped("cpus: 2", "cpus: 2, accelerators: 0.5"),
        ["line 7: spec.resources.accelerators: '0.5' is not a whole number | write it like 1"],
    ),
    "no nodes": (
        _swapped("cpus: 2", "cpus: 2, nodes: 0"),
        ["line 7: spec.resources.nodes: must be at least 1, is 0 | write 1 or more"],
    ),
    "no CPUs": (
        _swapped("cpus: 2", "cpus: 0"),
        ["line 7: spec.resources.cpus: must be at least 0.1, is 0 | write 0.1 or more"],
    ),
    "CPUs not a number": (
        _swapped("cpus: 2", "cpus: .nan"),
        ["line 7: spec.resources.cpus: '.nan' is not a number | write it like 2 or 0.5"],
    ),
    "memory without a unit": (
        _swapped("2GiB", "2"),
        ["line 7: spec.resources.memory: 2 has no unit, so it means 2 bytes | write 2GiB or 2MiB"],
    ),
    "memory in an unknown unit": (
        _swapped("2GiB", "2GiBs"),
        ["line 7: spec.resources.memory: '2GiBs' is no size | write it like 512MB or 16GiB"],
    ),
    "negative memory": (
        _swapped("2GiB", "-2GiB"),
        ["line 7: spec.resources.memory: '-2GiB' is below 0 | write it like 512MB or 16GiB"],
    ),
    "more memory than there is": (
        _swapped("2GiB", "9999999PiB"),
        ["line 7: spec.resources.memory: must be at most 1024.0 PiB, is 9999999.0 PiB | write 1024.0 PiB or less"],
    ),
    "end date in the past": (
        _swapped("7d", "2020-01-01"),
        [
            "line 8: spec.end_date: 2020-01-01 is in the past: it is 2026-11-20T12:00:00Z, so that ended 2514d 12h ago"
            " | write a date in the future, or a duration from now such as 7d"
        ],
    ),
    "end date now": (
        _swapped("7d", "0d"),
        [
            "line 8: spec.end_date: 0d is in the past: it is 2026-11-20T12:00:00Z, so that ended 0s ago"
            " | write a date in the future, or a duration from now such as 7d"
        ],
    ),
    "end date that does not exist": (
        _swapped("7d", "2026-02-30"),
        [
            "line 8: spec.end_date: '2026-02-30' is no date | "
            "write 2026-12-01, 2026-12-01T18:00:00Z, or a duration from now such as 7d"
        ],
    ),
    "end date without a time zone": (
        _swapped("7d", "2026-12-01T10:00:00"),
        ["line 8: spec.end_date: 2026-12-01T10:00:00 has no time zone | write 2026-12-01T10:00:00Z for UTC"],
    ),
    "end date at the end of time": (
        _swapped("7d", "9999-12-31T23:59:59-23:00"),
        [
            "line 8: spec.end_date: '9999-12-31T23:59:59-23:00' is no date | "
            "write 2026-12-01, 2026-12-01T18:00:00Z, or a duration from now such as 7d"
        ],
    ),
    "end date never": (
        _swapped("7d", "never"),
        [
            "line 8: spec.end_date: 'never' is no date | "
            "write 2026-12-01, 2026-12-01T18:00:00Z, or a duration from now such as 7d"
        ],
    ),
    "zero cost": (
        _swapped("$0.50", "0"),
        ["line 9: spec.max_cost: must be more than $0, is 0 | write the most it may cost, like $0.50"],
    ),
    "negative cost": (
        _swapped("$0.50", "-$5"),
        ["line 9: spec.max_cost: '-$5' is below $0 | write it like $12.50"],
    ),
    "cost in euros": (
        _swapped("$0.50", "5 EUR"),
        ["line 9: spec.max_cost: '5 EUR' is no amount of dollars | write it like $12.50"],
    ),
    "cost finer than money": (
        _swapped("$0.50", "$0.0000001"),
        ["line 9: spec.max_cost: '$0.0000001' is finer than a micro-dollar ($0.000001) | "],
    ),
    "cost as a power bomb": (
        _swapped("$0.50", "1e999999999"),
        ["line 9: spec.max_cost: '1e999999999' is no amount of dollars | write it like $12.50"],
    ),
    "cost beyond reason": (
        _swapped("$0.50", "$9999999999"),
        [
            "line 9: spec.max_cost: must be at most $1,000,000,000.00, is $9,999,999,999.00"
            " | write $1,000,000,000.00 or less"
        ],
    ),
    "no duration": (
        _swapped("30m", "0s"),
        ["line 10: spec.max_duration: must be at least 1s, is 0s | write it like 90s, 30m, 1h30m or 2d"],
    ),
    "duration forever": (
        _swapped("30m", "forever"),
        ["line 10: spec.max_duration: 'forever' is no duration | write it like 90s, 30m, 1h30m or 2d"],
    ),
    "duration of an age": (
        _swapped("30m", "99999w"),
        ["line 10: spec.max_duration: must be at most 3650d, is 99999w | write it like 90s, 30m, 1h30m or 2d"],
    ),
    "a boolean and a number in env": (
        _swapped('{A: "1"}', "{A: yes, B: 1, C: 2026-01-01, D: }"),
        [
            "line 6: spec.env.A: 'yes' is read by YAML as a boolean | write it in quotes: \"yes\"",
            "line 6: spec.env.B: '1' is read by YAML as a number | write it in quotes: \"1\"",
            "line 6: spec.env.C: '2026-01-01' is read by YAML as a date | write it in quotes: \"2026-01-01\"",
            'line 6: spec.env.D: is empty | write "" if it is meant to be empty',
        ],
    ),
    "a key YAML takes for a boolean": (
        _swapped('{A: "1"}', '{no: "1"}'),
        ["line 6: spec.env: the key 'no' is not a string | put it in quotes"],
    ),
    "an impossible variable": (
        _swapped('{A: "1"}', '{"A=B": "1"}'),
        ["line 6: spec.env.A=B: 'A=B' is not an environment variable's name | "],
    ),
    "env as a list": (
        _swapped('{A: "1"}', "[A=1]"),
        ["line 6: spec.env: must be a mapping of fields, is a list | "],
    ),
    "an owner that is a number": (
        _swapped("owner: ana", "owner: 3"),
        ["line 3: metadata.owner: '3' is read by YAML as a number | write it in quotes: \"3\""],
    ),
    "an owner of nothing": (
        _swapped("owner: ana", "owner: "),
        ["line 3: metadata.owner: is empty | write it like ana"],
    ),
    "no owner": (
        _swapped(", owner: ana", ""),
        ["line 3: metadata.owner: is required | write it like owner: ana"],
    ),
    "a name with capitals": (
        _swapped("name: tiny", "name: Tiny LM"),
        [
            "line 3: metadata.name: 'Tiny LM' is not a name (lowercase letters, digits and -, at most 63, starting"
            " and ending with a letter or digit) | write it like tiny-lm"
        ],
    ),
    "a name that climbs": (
        _swapped("project: default", "project: ../etc"),
        [
            "line 3: metadata.project: '../etc' is not a name (lowercase letters, digits and -, at most 63, starting"
            " and ending with a letter or digit) | write it like default"
        ],
    ),
    "empty command": (
        _swapped("[python, train.py]", "[]"),
        ["line 5: spec.command: is empty | write the program and its arguments: [python, train.py]"],
    ),
    "blank command": (
        _swapped("[python, train.py]", '" "'),
        ["line 5: spec.command: is empty | write the program and its arguments: [python, train.py]"],
    ),
    "a list in the command": (
        _swapped("train.py]", "[a], {b: c}, no]"),
        [
            "line 5: spec.command[1]: must be a string, is a list | ",
            "line 5: spec.command[2]: must be a string, is a mapping | ",
            "line 5: spec.command[3]: 'no' is read by YAML as a boolean | write it in quotes: \"no\"",
        ],
    ),
    "resources missing": (
        _swapped("  resources: {cpus: 2, memory: 2GiB}\n", ""),
        [
            "line 5: spec.resources.cpus: is required | write it like cpus: 2",
            "line 5: spec.resources.memory: is required | write it like memory: 2GiB",
        ],
    ),
    "resources as text": (
        _swapped("{cpus: 2, memory: 2GiB}", "big"),
        ["line 7: spec.resources: must be a mapping of fields, is the text 'big' | "],
    ),
    "outputs that leave their folder": (
        f"{GOOD}  outputs: {{models: [{{name: a, path: ../../etc}}, {{path: x}}]}}\n",
        [
            "line 11: spec.outputs.models[].path: '../../etc' is not a path inside the output folder"
            " | write it like model",
            "line 11: spec.outputs.models[].name: is required | write it like name: tiny-lm",
        ],
    ),
    "data as a mapping": (
        f"{GOOD}  data: {{name: a, path: b}}\n",
        ["line 11: spec.data: must be a list, is a mapping | start each item with `- `"],
    ),
    "a digest too short": (
        f"{GOOD}  data: [{{name: a, path: b, sha256: abc}}]\n",
        ["line 11: spec.data[].sha256: 'abc' is not a SHA-256 (64 lowercase hex digits) | "],
    ),
    "no retries at all": (
        f"{GOOD}  retry: {{max_attempts: 0}}\n",
        ["line 11: spec.retry.max_attempts: must be at least 1, is 0 | write 1 or more"],
    ),
    "a merge key": (
        _swapped("{cpus: 2, memory: 2GiB}", "{<<: {cpus: 2}, memory: 2GiB}"),
        [
            "line 7: spec.resources: merge keys (<<) are not supported | write the fields out",
            "line 7: spec.resources.cpus: is required | write it like cpus: 2",
        ],
    ),
    "a tag that would make an object": (
        _swapped("owner: ana", "owner: !!python/object/apply:os.system [id]"),
        ["line 3: metadata.owner: must be a string, is a list | "],
    ),
    "a tag of one's own": (
        _swapped("owner: ana", "owner: !secret ana"),
        ["line 3: metadata.owner: the tag '!secret' is not supported | remove it"],
    ),
    "kind missing": (
        _swapped("kind: Job\n", ""),
        ["line 1: kind: is required | write kind: Job"],
    ),
    "kind misspelt": (
        _swapped("kind: Job", "kind: Jobs"),
        ["line 2: kind: 'Jobs' is not one of: Job, Endpoint, Dev, Evaluation, Batch | did you mean Job?"],
    ),
    "another version of the dialect": (
        _swapped("groundplane/v1", "groundplane/v2"),
        ["line 1: apiVersion: 'groundplane/v2' is not one of: groundplane/v1 | "],
    ),
    "spec missing": (
        GOOD.partition("spec:")[0],
        [
            "line 1: spec.command: is required | write it like command: [python, train.py]",
            "line 1: spec.max_duration: is required | write it like max_duration: 30m",
            "line 1: spec.resources.cpus: is required | write it like cpus: 2",
            "line 1: spec.resources.memory: is required | write it like memory: 2GiB",
            "line 1: spec.end_date: is required | write it like end_date: 7d",
            "line 1: spec.max_cost: is required | write it like max_cost: $0.50",
        ],
    ),
    "a document that is a list": (
        "- a\n- b\n",
        [
            "line 1: the document must be a mapping of fields, is a list"
            " | a spec starts with `apiVersion: groundplane/v1`"
        ],
    ),
    "nothing": ("", ["line 1: the document is empty | a spec starts with `apiVersion: groundplane/v1`"]),
    "only a comment": (
        "# later\n---\n",
        ["line 1: the document is empty | a spec starts with `apiVersion: groundplane/v1`"],
    ),
    "a control character": (
        _swapped("owner: ana", "owner: a\x1b[31mna"),
        ["line 3: the control character U+001B is not allowed | remove it"],
    ),
    "half a surrogate": (
        _swapped("owner: ana", "owner: a\ud800"),
        ["line 3: the control character U+D800 is not allowed | remove it"],
    ),
    "the same name twice": (
        f"{GOOD}---\n{GOOD}",
        ["line 12: metadata.name: 'tiny' is also the document on line 1 | rename one of them"],
    ),
    "faults in two documents": (
        f"{_swapped('cpus: 2', 'cpus: x')}---\n{_swapped('prompt: $0.10', 'prompt: free', SERVE)}",
        [
            "line 7: spec.resources.cpus: 'x' is not a number | write it like 2 or 0.5",
            "line 20: spec.token_price.prompt: 'free' is no amount of dollars | write it like $12.50",
        ],
    ),
    "a model without a version": (
        _swapped("tiny@1", "tiny", SERVE),
        ["line 5: spec.model: 'tiny' is not a model version such as tiny-lm@1 | write it like tiny-lm@1"],
    ),
    "an endpoint without prices": (
        _swapped("  token_price: {prompt: $0.10, completion: $0.40}\n", "", SERVE),
        [
            "line 5: spec.token_price.prompt: is required | write it like prompt: $0.10",
            "line 5: spec.token_price.completion: is required | write it like completion: $0.40",
        ],
    ),
    "public in other words": (
        f"{SERVE}  public: on\n",
        ["line 10: spec.public: 'on' is not true or false | write true or false"],
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.replace(" ", "-"))
def test_a_bad_spec_is_told_what_is_wrong_and_where(case: str):
    text, expected = CASES[case]
    assert said(text) == expected


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [
        ("a: [1, 2\nb: 3\n", 2, 2),
        ("a: b: c\n", 1, 5),
        ("a: 1\n\tb: 2\n", 2, 1),
        ("a: *nobody\n", 1, 4),
        ("a: %\n", 1, 4),
    ],
)
def test_broken_yaml_is_named_by_line_and_column(text: str, line: int, column: int):
    (only,) = said(text)
    assert only.startswith(f"line {line}: not valid YAML: ")
    assert f"(column {column})" in only
    assert only.endswith("check the indentation, colons and quotes just before it")


def test_the_error_itself_names_the_first_problem_and_counts_the_rest():
    with pytest.raises(InvalidInput) as caught:
        parse(_swapped("cpus: 2, memory: 2GiB", "cpus: x, memory: y"), now=NOW)
    assert str(caught.value) == ("line 7: spec.resources.cpus: 'x' is not a number (and 1 more problem)")
    assert caught.value.hint == "write it like 2 or 0.5"


def test_size_depth_aliases_and_documents_are_bounded():
    assert said("#" * (MAX_BYTES + 1)) == [
        "the document has 1,048,577 bytes; the limit is 1,048,576"
        " | split it into several files, or move the data out of the spec"
    ]
    assert said("[" * 200_000) == [f"line 1: nested deeper than {MAX_DEPTH} levels | no field of a spec is that deep"]
    assert said("a: &a x\nb: [" + "*a, " * (MAX_ALIASES + 1) + "]") == [
        f"line 2: more than {MAX_ALIASES} aliases | write the values out"
    ]
    assert said("a: [" + "1," * (MAX_VALUES + 1) + "]") == [
        "line 1: more than 20,000 keys and values | move the data out of the spec"
    ]
    assert said("--- 1\n" * (MAX_DOCUMENTS + 1)) == [
        f"line {MAX_DOCUMENTS + 1}: more than {MAX_DOCUMENTS} documents | split it into several files"
    ]


def test_an_alias_bomb_and_a_list_that_holds_itself_are_answered_at_once():
    pairs = zip("abcdefgh", "bcdefghi", strict=True)
    laughs = "a: &a [x, x]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairs)
    assert said(laughs) == ["line 1: kind: is required | write kind: Job"]
    assert said(_swapped("[python, train.py]", "&me [*me]")) == [
        "line 5: spec.command[0]: must be a string, is a list | "
    ]
    assert said(_swapped("{cpus: 2, memory: 2GiB}", "&r {cpus: 2, memory: 2GiB, disk: *r}")) == [
        "line 7: spec.resources.disk: must be a size, is a mapping | "
    ]


def test_thousands_of_faults_are_reported_as_the_first_hundred():
    wrong = "".join(f"  x{number}: 1\n" for number in range(3_000))
    assert len(said(GOOD + wrong)) == 100


@pytest.mark.parametrize("written", ['env: {A: "b\\0c"}', 'command: [echo, "a\\0b"]', 'workdir: "/srv/a\\0b"'])
def test_a_nul_is_refused_where_it_is_written(written: str) -> None:
    """No program can be started with one, and no database keeps it."""
    head = ["apiVersion: groundplane/v1", "kind: Job", "metadata: {name: nul, project: p, owner: ana, cost_center: r1}"]
    spec = ["resources: {cpus: 1, memory: 1GiB}", "end_date: 2d", "max_cost: $1", written]
    spec[:0] = [] if written.startswith("command") else ["command: [echo, x]"]
    lines = "\n".join([*head, "spec:", *(f"  {line}" for line in spec)])
    with pytest.raises(InvalidInput) as error:
        parse(lines, now=datetime(2026, 3, 2, tzinfo=UTC))
    (problem,) = [each for each in error.value.problems if "NUL" in each.message]
    assert problem.line == len(lines.splitlines())
