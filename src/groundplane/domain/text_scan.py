"""What lies in a model's text files that a loader would obey: templates, programs, licences.

Only what some loader of models is known to act on is looked for; ordinary code beside a model is said, not refused.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from groundplane.domain.licences import stated_licence
from groundplane.domain.templates_scan import Template
from groundplane.errors import Refused

_TEMPLATE_NAMES = re.compile(r".*\.(jinja|jinja2|j2)$", re.IGNORECASE)
# PyYAML's full and unsafe loaders make any object of these tags.
_YAML_PROGRAM = re.compile(
    r"!!python/|!<tag:yaml\.org,2002:python/|^%TAG\s+\S+\s+tag:yaml\.org,2002:python", re.MULTILINE
)
# Hydra calls what `_target_` names; these are what nobody trains with. Source: CVE-2025-23304 (NeMo) and its relatives.
_TARGET = re.compile(r"^(builtins|os|posix|nt|subprocess|sys|shutil|pty|socket|runpy|importlib|pickle|dill|marshal"
                     r"|ctypes|code|commands|webbrowser|asyncio|multiprocessing|eval|exec)(\.|$)")  # fmt: skip
_YAML_TARGET = re.compile(r"""["']?_target_["']?\s*:\s*["']?([\w.]+)""")
_KERAS_CLASSES = {"Lambda", "__lambda__", "TFSMLayer"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSeen:
    """What a text file holds for the certificate (`details`), for rendering, and against entering."""

    details: dict[str, object] = field(default_factory=dict)
    templates: tuple[Template, ...] = ()
    refused: Refused | None = None


def read_text(path: str, text: str) -> TextSeen:
    """Reads configurations as their loaders do; anything else is looked at for its licence alone."""
    name = PurePosixPath(path).name.lower()
    details: dict[str, object] = {}
    licence = stated_licence(name, text)
    if licence:
        details["license"] = licence
    if _TEMPLATE_NAMES.match(name):
        return TextSeen(details=details, templates=(Template(name="the template", source=text),))
    if name.endswith((".yaml", ".yml")):
        return TextSeen(details=details, refused=_judge_yaml(path, text))
    if name.endswith((".json", ".jsonc", ".index")):
        return _read_json(path, text, details)
    if name.endswith((".py", ".sh", ".so", ".ipynb")):
        details["code"] = True
    return TextSeen(details=details)


def _judge_yaml(path: str, text: str) -> Refused | None:
    found = _YAML_PROGRAM.search(text)
    if found:
        return _program(path, f"holds {found[0].strip()}…, which makes Python objects when it is loaded")
    for match in _YAML_TARGET.finditer(text):
        if _TARGET.match(match[1]):
            return _program(path, f"lets its loader call {match[1]}")
    return None


def _read_json(path: str, text: str, details: dict[str, object]) -> TextSeen:
    found = _Found()
    try:
        json.loads(text, object_pairs_hook=found.take)
    except (ValueError, RecursionError):
        # No loader reads it either; a template in it would never be rendered.
        return TextSeen(details=details)
    if found.custom_code:
        details["custom_code"] = sorted(found.custom_code)[:10]
    refused = _program(path, found.programs[0]) if found.programs else None
    return TextSeen(details=details, templates=tuple(found.templates), refused=refused)


class _Found:
    """Collects while the JSON is read: every pair is seen, also the one that a later pair of the same name hides."""

    def __init__(self) -> None:
        self.templates: list[Template] = []
        self.programs: list[str] = []
        self.custom_code: set[str] = set()

    def take(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        for key, value in pairs:
            if key == "chat_template" or key.endswith("_template"):
                self._templates(key, value)
            elif key == "_target_" and isinstance(value, str) and _TARGET.match(value):
                self.programs.append(f"lets its loader call {value[:60]}")
            elif key == "class_name" and value in _KERAS_CLASSES:
                self.programs.append(f"describes a Keras layer {value}, which carries a program")
            elif key == "auto_map" and isinstance(value, dict):
                self.custom_code |= {str(item)[:100] for item in value.values()}
        return dict(pairs)

    def _templates(self, name: str, value: object) -> None:
        if isinstance(value, str) and ("{{" in value or "{%" in value):
            self.templates.append(Template(name=name, source=value))
        elif isinstance(value, list):
            for item in value:
                self._templates(name, item.get("template") if isinstance(item, dict) else item)
        elif isinstance(value, dict):
            for item in value.values():
                self._templates(name, item)


def _program(path: str, what: str) -> Refused:
    return Refused(
        rule="no-programs",
        need="configuration that says what, not what to run",
        have=f"{path} {what}",
        hint="take it out of the file; code belongs in the image that serves the model",
    )
