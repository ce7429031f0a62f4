"""What the documents promise, checked against the code: nothing undocumented, nothing documented that is gone."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from groundplane.cli.root import ground
from groundplane.errors import GroundError
from groundplane.settings import Settings

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"

VOCABULARY = (
    "project", "pool", "node", "accelerator", "SKU", "instance type", "offer", "request", "job spec", "run", "attempt",
    "plan", "hold", "preflight", "checkpoint", "dataset", "artifact", "model version", "birth certificate", "gate",
    "endpoint", "revision", "replica", "rollout", "route", "key", "usage", "ledger entry", "budget", "finding",
    "exposure",
)  # fmt: skip
FILLED = "\N{REPLACEMENT CHARACTER}"
JARGON = ("TPM", "RPM", "TTFT", "GCRA", "MFU", "KV cache")


def text(*parts: str) -> str:
    return DOCS.joinpath(*parts).read_text(encoding="utf-8")


def documents() -> list[Path]:
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "--cached", "--others", "--exclude-standard", "--", "*.md"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    return [ROOT / name for name in listed if (ROOT / name).exists()]


# ---------------------------------------------------------------- the map


def modules() -> set[str]:
    package = ROOT / "src" / "groundplane"
    return {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.stat().st_size > 0 and path.name != "__init__.py"
    }


def mapped() -> list[str]:
    return re.findall(r"^- `([\w/.]+\.py)`: \S.*$", text("MAP.md"), re.MULTILINE)


def test_every_module_has_one_line_on_the_map_and_no_module_that_is_gone_has() -> None:
    assert sorted(mapped()) == sorted(modules()), "make docs"


def test_every_module_says_what_it_is_for_on_the_map() -> None:
    lines = re.findall(r"^- `[^`]+`: (.*)$", text("MAP.md"), re.MULTILINE)
    assert not [line for line in lines if len(line) < 15]


# ---------------------------------------------------------------- the reference


def test_every_setting_is_documented() -> None:
    page = text("reference", "settings.md")
    missing = [item.metadata["variable"] for item in dataclasses.fields(Settings)]
    assert not [variable for variable in missing if f"`{variable}`" not in page]


def commands(group: click.Command, path: str = "ground") -> Iterator[str]:
    if not isinstance(group, click.Group):
        yield path
        return
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        if not command.hidden:
            yield from commands(command, f"{path} {name}")


def test_every_command_is_documented() -> None:
    page = text("reference", "cli.md")
    assert not [command for command in commands(ground) if command not in page]


def error_codes(kind: type[GroundError] = GroundError) -> Iterator[str]:
    yield kind.code
    for child in kind.__subclasses__():
        if child.__module__ == GroundError.__module__:
            yield from error_codes(child)


def said_by(path: Path) -> Iterator[str]:
    """A page's text, or the texts in a module; what is filled in while it runs stands as FILLED."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield re.sub(r"\{\{.*?\}\}", FILLED, text)
        return
    for node in ast.walk(ast.parse(text)) if "ground " in text else ():
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else FILLED for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def misspelt(words: list[str]) -> str:
    """What of a command line names nothing: a command, or an option. Empty for one that can be typed."""
    command: click.Command = ground
    context = click.Context(ground)
    while isinstance(command, click.Group) and words and re.fullmatch("[a-z][a-z-]*", words[0]):
        try:
            _, found, words = command.resolve_command(context, words)
        except click.UsageError:
            # `ground endpoints lists those`: a group that lists by itself, and the sentence that it stands in.
            return "" if words[0] == "lists" else words[0]
        assert found is not None
        command, context = found, click.Context(found, parent=context)
    known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"-h", "--help"}
    options = (word.partition("=")[0] for word in words if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word))
    return next((name for name in options if name not in known and not isinstance(command, click.Group)), "")


def test_every_command_that_a_message_or_a_guide_names_can_be_typed() -> None:
    sources = [*(ROOT / "src" / "groundplane").rglob("*.py"), *(ROOT / "src").rglob("*.html")]
    wrong = []
    for path in (*sources, ROOT / "README.md", *(DOCS / "guides").glob("*.md")):
        for said in said_by(path):
            for line in re.findall(r"(?:(?<=[`'\"(])|(?<=: )|(?<=\$ )|^)ground ([a-z][^\n`;<|,()&#]*)", said):
                words = [word.rstrip(".:") for word in line.replace("\\", " ").split() if FILLED not in word]
                if name := misspelt(words):
                    wrong.append(f"{path.name}: ground {line.strip()}: there is no {name}")
    assert wrong == []


def test_every_error_code_is_documented() -> None:
    page = text("reference", "errors.md")
    assert not [code for code in error_codes() if f"`{code}`" not in page]


# ---------------------------------------------------------------- dependencies


def dependencies() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    groups = [project["project"]["dependencies"], *project["project"]["optional-dependencies"].values()]
    groups += project["dependency-groups"].values()
    return {re.split(r"[\[<>=~! ]", line)[0] for group in groups for line in group}


def test_every_dependency_has_a_reason_and_a_licence() -> None:
    rows = dict(re.findall(r"^\| ([\w.-]+) \| \S[^|]* \| (\S[^|]*) \|$", text("dependencies.md"), re.MULTILINE))
    rows.pop("package", None)
    assert not dependencies() - set(rows), f"no line: {sorted(dependencies() - set(rows))}"
    assert not set(rows) - dependencies(), f"no dependency any more: {sorted(set(rows) - dependencies())}"


IMPORTED_AS = {
    "cel-expr-python": "cel_expr_python",
    "cyclonedx-python-lib": "cyclonedx",
    "huggingface-hub": "huggingface_hub",
    "openlineage-python": "openlineage",
    "mlflow-skinny": "mlflow",
    "opentelemetry-proto": "opentelemetry",
    "opentelemetry-semantic-conventions": "opentelemetry",
    "prometheus-client": "prometheus_client",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
    "python-pkcs11": "pkcs11",
}
USED_THROUGH = {
    "asyncpg": "SQLAlchemy's PostgreSQL URLs",
    "editables": "hatchling",
    "flask": "moto's server",
    "flask-cors": "moto's server",
    "hatchling": "pip",
    "import-linter": "make check",
    "moto": "started by tests/adapters/test_clouds.py",
    "mypy": "make check",
    "pandas": "MLflow's autologging",
    "pytest-asyncio": "pytest",
    "pytest-xdist": "pytest",
    "python-multipart": "FastAPI's forms",
    "ruff": "make check",
    "types-psutil": "mypy",
    "types-pyyaml": "mypy",
}


def test_every_dependency_is_used() -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for folder in ("src", "tests", "examples", "bench")
        for path in (ROOT / folder).rglob("*.py")
    )
    imported = set(re.findall(r"^\s*(?:import|from) (\w+)", source, re.MULTILINE))
    unused = {name for name in dependencies() if IMPORTED_AS.get(name, name) not in imported}
    assert not unused - set(USED_THROUGH), f"nobody imports {sorted(unused - set(USED_THROUGH))}"


def test_every_dependency_is_locked_with_its_hash() -> None:
    lock = (ROOT / "requirements" / "dev.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^([a-z0-9.-]+)==\S+.*\\$", lock, re.MULTILINE))
    assert not {name.lower().replace("_", "-") for name in dependencies()} - locked


# ---------------------------------------------------------------- words, links, records


@pytest.mark.parametrize("word", [*VOCABULARY, *JARGON])
def test_the_glossary_explains(word: str) -> None:
    heads = re.findall(r"^\*\*(.+?)\*\*", text("GLOSSARY.md"), re.MULTILINE)
    assert word in {each.strip() for head in heads for each in head.split(",")}


def links(document: Path) -> Iterator[str]:
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose):
        if not re.match(r"[a-z]+:", target):
            yield target


def anchors(document: Path) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_every_link_between_documents_resolves() -> None:
    broken = []
    for document in documents():
        for target in links(document):
            name, _, anchor = target.partition("#")
            found = (document.parent / name).resolve() if name else document
            if not found.exists() or (anchor and found.suffix == ".md" and anchor not in anchors(found)):
                broken.append(f"{document.relative_to(ROOT)}: {target}")
    assert not broken


def test_every_decision_is_indexed_and_says_what_it_decides() -> None:
    records = sorted(path for path in (DOCS / "decisions").glob("[0-9]*.md"))
    index = text("decisions", "README.md")
    assert records
    for number, record in enumerate(records, start=1):
        assert record.name.startswith(f"{number:04}-"), f"{record.name}: numbers follow each other"
        assert f"({record.name})" in index, f"{record.name} is not in docs/decisions/README.md"
        body = record.read_text(encoding="utf-8")
        for part in ("## Decision", "## Why", "## Consequences"):
            assert part in body, f"{record.name} lacks {part!r}"


def test_the_changelog_has_a_place_for_what_comes_next() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## Unreleased$", changelog, re.MULTILINE)
    assert re.search(r"^- \S", changelog, re.MULTILINE)


def test_the_readme_names_the_commands_that_the_makefile_has() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"`make ([a-z]+)`", (ROOT / "README.md").read_text(encoding="utf-8")))
    assert named
    assert not named - targets


def test_every_name_in_the_architecture_exists() -> None:
    package = ROOT / "src" / "groundplane"
    gone = []
    for file, name in re.findall(r"`((?:\w+/)*\w+\.py)(?: ([\w.]+))?`", text("ARCHITECTURE.md")):
        path = package / file
        if not path.exists() or (name and not _defines(path, name)):
            gone.append(f"{file} {name}".strip())
    assert not gone


def _defines(path: Path, dotted: str) -> bool:
    body: list[ast.stmt] = ast.parse(path.read_text(encoding="utf-8")).body
    for part in dotted.split("."):
        found = next((node for node in body if part in _names(node)), None)
        if found is None:
            return False
        body = getattr(found, "body", [])
    return True


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}
