"""Writes docs/MAP.md: one line per module, taken from the first sentence of its docstring. `make docs` runs it."""

from __future__ import annotations

import ast
from pathlib import Path

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "src" / "groundplane"
LINE_MAX = 180

HEAD = """# Map

One line per module of `src/groundplane/`, the mind first: the order in which it is best read. Made by `make docs`
from the modules' own first sentences. How they hang together: [ARCHITECTURE.md](ARCHITECTURE.md).
"""

ROOMS = {
    "domain": "The mind: pure decisions",
    "ports": "What we ask of the world",
    "services": "Use cases",
    "wire": "What crosses the HTTP door",
    "client": "The Python SDK",
    "": "Everyone's",
    "loops": "What happens by itself",
    "cli": "A door: the command line",
    "api": "A door: HTTP",
    "console": "A door: the browser",
    "gateway": "The data plane",
    "adapters": "The outside world",
    "runner": "Beside the job",
    "jobs": "Jobs of our own",
    "catalog": "Data",
}


def render() -> str:
    """The whole page. A module in a folder without a room is a KeyError: give it one."""
    by_room: dict[str, list[str]] = {room: [] for room in ROOMS}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if path.name != "__init__.py":
            by_room[name.partition("/")[0] if "/" in name else ""].append(f"- `{name}`: {_sentence(path)}")
    parts = [HEAD]
    for room, lines in by_room.items():
        if lines:
            folder = f" (`{room}/`)" if room else ""
            parts.append(f"## {ROOMS[room]}{folder}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _sentence(path: Path) -> str:
    """The docstring's first paragraph, cut after a sentence when it is long."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n\n")[0]
    line = " ".join(paragraph.split())
    if len(line) <= LINE_MAX:
        return line
    return line[: line.rfind(". ", 0, LINE_MAX) + 1] or line[: line.rfind(" ", 0, LINE_MAX)] + " …"


if __name__ == "__main__":
    (DOCS / "MAP.md").write_text(render(), encoding="utf-8")
