"""Python files beside a model: does one start programs, run text as code, or reach behind the interpreter?

Code that a model brings is run by whoever loads it with that code. Layers and tokenizers do sums; what is named here is
done by none of them. Imports are followed to the names they give, so that another name for a call is no other call.
Ordinary code is said in the report, not refused. Source: Python's library reference; the loaders published as malware.
"""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator

_LETTERS_MAX = 400_000
_TURNED = re.compile("[\u202a-\u202e\u2066-\u2069]")
"""Marks of writing direction: a program reads otherwise than it is shown (CVE-2021-42574)."""
_ACTS = re.compile(
    r"(?:os|posix|nt)\.(?:system|popen\w*|exec[lv]\w*|spawn\w+|posix_spawnp?|startfile|forkpty|dup2)"
    r"|(?:subprocess|commands|runpy)\.\w+|pty\.spawn|(?:builtins\.)?(?:eval|exec|__import__)|builtins\.compile"
    r"|(?:marshal|pickle|_pickle|cPickle|dill|cloudpickle)\.loads|ctypes\.(?:\w*DLL|cdll\.\w+|windll\.\w+)"
    r"|(?:_posixsubprocess|_winapi|_ctypes)\.\w+|socket\.(?:socket|create_connection)"
    r"|asyncio\.(?:create_)?subprocess\w*(?:\.\w+)?|pip\.(?:main|_internal\.[\w.]+)|code\.\w+"
)
# Of something worked out, whose name nobody knows: a module from a dictionary, a library.
_METHODS = frozenset({".system", ".popen", ".Popen", ".check_output", ".dlopen"})
_BEHIND = frozenset({"__builtins__", "__subclasses__"})
_MODULES = frozenset({"os", "posix", "nt", "subprocess", "pty", "builtins", "ctypes", "marshal", "runpy", "socket"})
_PLACES = re.compile(r"LD_PRELOAD|/etc/(?:passwd|shadow)\b|\.ssh/(?:id_|authorized)|\.aws/credentials|/dev/tcp/")
_CODING = re.compile(r"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_CODINGS = re.compile(
    r"utf[-_]?8(?:[-_]sig)?|us[-_]ascii|ascii|latin[-_]?1|iso[-_]8859[-_]\d{1,2}|cp125\d", re.IGNORECASE
)
# For what this Python can't parse: older and newer ones may.
_WRITTEN = re.compile(
    r"(?<![\w.])(?:exec|eval|__import__)\s*\(|\bos\s*\.\s*(?:system|popen|exec[lv]|spawn)|\bsubprocess\b|__builtins__"
)


def acting_code(text: str) -> str:
    """What the program does that no model's code needs, in words with its line; "" when nothing is known."""
    if turned := _TURNED.search(text):
        where = text.count("\n", 0, turned.start()) + 1
        return f"turns the order in which its letters are shown on line {where}, which hides what it says"
    for line in text.split("\n", 2)[:2]:
        coding = _CODING.match(line)
        if coding and not _CODINGS.fullmatch(coding[1]):
            return f"says that it is written in {coding[1][:40]}, which hides what it says"
    if len(text) > _LETTERS_MAX:
        return _as_written(text)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (RecursionError, MemoryError):
        return "nests too deep to be checked"
    except (SyntaxError, ValueError):
        return _as_written(text)
    return next(_found(tree), "")


def _as_written(text: str) -> str:
    found = _WRITTEN.search(text)
    return f"calls {found[0].strip(' (')} on line {text.count(chr(10), 0, found.start()) + 1}" if found else ""


def _found(tree: ast.Module) -> Iterator[str]:
    known = _imports(tree)
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module in _MODULES
            and any(each.name == "*" for each in node.names)
        ):
            yield f"takes all of {node.module} on line {node.lineno}"
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and any(
            _ACTS.fullmatch(_dotted(each, known)) for each in node.decorator_list
        ):
            yield f"decorates {node.name[:60]} with what runs programs on line {node.lineno}"
        elif isinstance(node, ast.Call):
            name = _dotted(node.func, known)
            if _ACTS.fullmatch(name) or name in _METHODS or _imports_by_name(name, node):
                yield f"calls {name.strip('.')[:60]} on line {node.lineno}"
        elif (isinstance(node, ast.Name) and node.id in _BEHIND) or (
            isinstance(node, ast.Attribute) and node.attr in _BEHIND
        ):
            yield f"reaches for {node.id if isinstance(node, ast.Name) else node.attr} on line {node.lineno}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_place(node.value):
            yield f"names {node.value[:60]!r} on line {node.lineno}"


def _is_place(text: str) -> bool:
    """A place that no model's code needs, given as such: prose that mentions one has more words."""
    return text == "__builtins__" or (" " not in text and _PLACES.search(text) is not None)


def _imports_by_name(name: str, call: ast.Call) -> bool:
    first = call.args[0] if call.args else None
    asked = first.value if isinstance(first, ast.Constant) else None
    return name == "importlib.import_module" and isinstance(asked, str) and asked.partition(".")[0] in _MODULES


def _imports(tree: ast.Module) -> dict[str, str]:
    """What each name stands for that an import gives, or a plain assignment of an imported name."""
    known: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for each in node.names:
                known[each.asname or each.name.partition(".")[0]] = (
                    each.name if each.asname else each.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            known.update({each.asname or each.name: f"{node.module}.{each.name}" for each in node.names})
        elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = _dotted(node.value, known)
            if _ACTS.fullmatch(name):
                known[node.targets[0].id] = name
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in {"eval", "exec"}:
            known.setdefault(node.name, f"own.{node.name}")
    return known


def _dotted(node: ast.expr, known: dict[str, str]) -> str:
    """`a.b.c` with its first name resolved; "" for anything else. A method of something worked out is `.name`."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    first = known.get(node.id, node.id) if isinstance(node, ast.Name) else ""
    return ".".join([first, *reversed(parts)])
