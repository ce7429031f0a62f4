"""The house kept tidy: sizes, names, broad catches, prints, docstrings, left-over marks, sleeping tests.

Every exception stands in a table with its reason; a row that no longer applies fails too, so the tables don't rot.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "groundplane"

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

JUNK_DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "tools", "lib"}

LONG_FILES = {
    "tests/adapters/test_store_conformance.py": "one port's whole contract, read from top to bottom",
}

LONG_FUNCTIONS = {
    "src/groundplane/domain/spec/fields.py::_job": "a table of fields, one a row",
    "src/groundplane/wiring.py::build": "what is plugged in where, written out by hand",
}

BROAD_CATCHES = {
    "src/groundplane/adapters/confined/convert_weights.py::_convert": "the confined process's net",
    "src/groundplane/adapters/model_servers/generation.py::_read_tokenizer": "tokenizers raises bare Exception",
    "src/groundplane/adapters/store/engines.py::to_its_end": "only waits; `task.result()` raises what it was",
    "src/groundplane/api/middleware.py::RequestScope.__call__": "the HTTP process's net: logs, answers 500",
    "src/groundplane/cli/root.py::run": "the command line's net: one line for people, exit 1",
    "src/groundplane/runner/serve.py::serve.answer": "the node's end of the wire: whoever asked must hear of it",
    "src/groundplane/loops/worker.py::run_loop": "the loops' net: logs, counts, comes again with back-off",
}

PRINTING = {
    "src/groundplane/cli/render.py": "the one module that prints to people",
    "src/groundplane/runner/__main__.py": "runs beside the job, where nobody else reports",
}

SLEEPING_TESTS = {
    "tests/adapters/test_store_conformance.py": "nothing tells that a task waits for a database's lock",
    "tests/adapters/test_store_databases.py": "nothing tells that another process's lock is waited for",
    "tests/gateway/test_counters.py": "Retry-After is taken at its word",
    "tests/gateway/test_limits.py": "a key expires by the clock, and Retry-After is taken at its word",
}


def python_files(*folders: str) -> list[Path]:
    """The tracked and new Python files of these folders; ignored ones are not ours to judge."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "--", *folders],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [ROOT / name for name in listed if name.endswith(".py") and (ROOT / name).exists()]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of a file with its dotted name: `Class.method`, `outer.inner`."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{prefix}{child.name}", child
                yield from walk(child, f"{prefix}{child.name}.")
            elif isinstance(child, ast.ClassDef):
                yield from walk(child, f"{prefix}{child.name}.")
            else:
                yield from walk(child, prefix)

    yield from walk(tree(path), "")


def owner_of(path: Path, line: int) -> str:
    """`file::innermost function` around a line; `file::<module>` outside any."""
    inside = [
        (function.lineno, name) for name, function in functions(path) if function.lineno <= line <= function.end_lineno
    ]
    return f"{name_of(path)}::{max(inside)[1] if inside else '<module>'}"


def check(found: set[str], allowed: dict[str, str], what: str) -> None:
    """Fails on what is found and not allowed, and on what is allowed and no longer found."""
    assert not found - set(allowed), f"{what}: {sorted(found - set(allowed))}"
    assert not set(allowed) - found, f"no longer true, take it off the list: {sorted(set(allowed) - found)}"


def test_no_file_is_longer_than_one_sitting() -> None:
    long = {
        name_of(path)
        for path in python_files("src", "tests", "bench", "examples")
        if len(path.read_text(encoding="utf-8").splitlines()) > FILE_LINES_MAX
    }
    check(long, LONG_FILES, f"files over {FILE_LINES_MAX} lines; split along a decision")


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{name_of(path)}::{name}"
        for path in python_files("src", "bench", "examples")
        for name, function in functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES_MAX
        # A function that only gathers nested ones (routes) is as long as its parts, which are measured themselves.
        and not _only_gathers(function)
    }
    check(long, LONG_FUNCTIONS, f"functions over {FUNCTION_LINES_MAX} lines")


def _only_gathers(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    own = sum(
        (node.end_lineno or 0) - node.lineno + 1
        for node in function.body
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    )
    return own <= FUNCTION_LINES_MAX // 4


def test_no_module_is_a_junk_drawer() -> None:
    drawers = [name_of(path) for path in python_files("src") if JUNK_DRAWERS & {path.stem, path.parent.name}]
    assert not drawers


def test_only_process_boundaries_catch_everything() -> None:
    broad = set()
    for path in python_files("src", "examples", "bench"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ExceptHandler) and _is_broad(node.type) and not _passes_on(node):
                broad.add(owner_of(path, node.lineno))
            suppresses = isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress")
            if suppresses and any(_is_broad(argument) for argument in node.args):
                broad.add(owner_of(path, node.lineno))
    check(broad, BROAD_CATCHES, "broad catches outside process boundaries")


def _passes_on(handler: ast.ExceptHandler) -> bool:
    """What ends in a bare `raise` swallows nothing."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def _is_broad(kind: ast.expr | None) -> bool:
    if isinstance(kind, ast.Tuple):
        return any(_is_broad(each) for each in kind.elts)
    return kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"})


def test_only_the_renderer_prints() -> None:
    printing = {
        name_of(path)
        for path in python_files("src")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert not printing - set(PRINTING), f"only {sorted(PRINTING)} print: {sorted(printing - set(PRINTING))}"


def test_every_package_says_what_may_live_there() -> None:
    packages = {path.parent for path in python_files("src/groundplane")}
    silent = [
        name_of(package)
        for package in packages
        if not (package / "__init__.py").exists() or not ast.get_docstring(tree(package / "__init__.py"))
    ]
    # Migrations are numbered scripts that Alembic loads by path, not a package anybody imports.
    assert not [name for name in silent if "migrations" not in name]


def test_every_module_says_what_it_is() -> None:
    silent = [
        name_of(path)
        for path in python_files("src", "tests", "bench", "examples")
        if path.read_text(encoding="utf-8").strip() and not ast.get_docstring(tree(path))
    ]
    assert not silent


def test_public_functions_of_the_mind_the_services_and_the_ports_say_what_they_do() -> None:
    silent = [
        f"{name_of(path)}::{name}"
        for path in python_files("src/groundplane/domain", "src/groundplane/services", "src/groundplane/ports")
        for name, function in functions(path)
        if not any(part.startswith("_") for part in name.split("."))
        and not ast.get_docstring(function)
        and not _is_nested(path, name)
        and not _is_fact(function)
    ]
    assert not silent


def _is_fact(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """One or two statements: its name and its types say it."""
    return len(function.body) <= 2


def _is_nested(path: Path, name: str) -> bool:
    """Inside another function: nobody calls it from outside."""
    return any(name.startswith(f"{outer}.") for outer, _ in functions(path))


# Written apart, so that this file does not find itself.
MARKS = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" * 3, "HA" + "CK")) + r")\b")
MACHINE_PATHS = re.compile(r"(?<![\w.~$}/])/(?:wo" + r"rk|ro" + r"ot|far" + r"m|op" + r"t|hom" + r"e)/[\w.]")
TEXT = {".py", ".md", ".toml", ".yaml", ".yml", ".html", ".css", ".js", ".ini", ".cfg", ".sh", ""}


def tracked_text() -> Iterator[tuple[str, str]]:
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in listed:
        path = ROOT / name
        if path.suffix in TEXT and path.is_file() and not name.startswith("requirements/"):
            yield name, path.read_text(encoding="utf-8")


def test_no_mark_of_unfinished_work_is_left() -> None:
    assert not [f"{name}: {match[0]}" for name, text in tracked_text() for match in MARKS.finditer(text)]


def test_no_path_of_somebodys_machine_is_left() -> None:
    assert not [f"{name}: {match[0]}" for name, text in tracked_text() for match in MACHINE_PATHS.finditer(text)]


def test_the_runner_needs_the_standard_library_alone() -> None:
    foreign = set()
    for path in python_files("src/groundplane/runner"):
        for node in ast.walk(tree(path)):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            foreign |= {name for name in named if not f"{name}.".startswith("groundplane.runner.")}
    assert not {name.partition(".")[0] for name in foreign} - sys.stdlib_module_names


def test_the_mind_names_paths_and_opens_none() -> None:
    """import-linter sees modules only: `PurePosixPath` is a name, `Path` is the disk."""
    touching = [
        f"{name_of(path)}:{node.lineno}"
        for path in python_files("src/groundplane/domain")
        for node in ast.walk(tree(path))
        if (
            isinstance(node, ast.ImportFrom)
            and node.module == "pathlib"
            and {a.name for a in node.names} - {"PurePosixPath"}
        )
        or (isinstance(node, ast.Import) and "pathlib" in {alias.name for alias in node.names})
        or (isinstance(node, ast.Call) and ast.unparse(node.func) in {"open", "io.open"})
    ]
    assert not touching


def test_tests_wait_for_something_and_never_just_sleep() -> None:
    sleeping = {
        name_of(path)
        for path in python_files("tests")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) in {"time.sleep", "asyncio.sleep", "sleep"}
        and not _waits_for_something(path, node.lineno)
    }
    check(sleeping, SLEEPING_TESTS, "tests that sleep instead of waiting for something")


def _waits_for_something(path: Path, line: int) -> bool:
    """No blind wait: the pause of a loop that looks again, a mere yield, or the slowness of a played part."""
    text = path.read_text(encoding="utf-8").splitlines()[line - 1]
    plays_a_part = re.match(r"test_\w+\.", owner_of(path, line).partition("::")[2])
    return (
        "sleep(0)" in text
        or plays_a_part is not None
        or any(
            isinstance(node, ast.While | ast.For | ast.AsyncFor) and node.lineno < line <= (node.end_lineno or 0)
            for node in ast.walk(tree(path))
        )
    )


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "Makefile", ".ci/run"])
def test_the_house_has_what_a_stranger_looks_for(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0
