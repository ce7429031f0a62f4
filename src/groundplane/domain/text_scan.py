"""What lies in a model's text files that a loader would obey: templates, programs, licences.

Only what some loader of models is known to act on is looked for; ordinary code beside a model is said, not refused.
"""

# ruff: noqa: E501 - a pattern broken over several lines is harder to read than a long one

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from groundplane.domain.byte_view import ByteView
from groundplane.domain.licences import stated_licence
from groundplane.domain.loader_targets import acting_target, is_dotted, keras_fault
from groundplane.domain.model import path_fault
from groundplane.domain.pickle_scan import scan_for_pickle
from groundplane.domain.protobuf_scan import acting_operation_in_text
from groundplane.domain.templates_scan import Template
from groundplane.domain.yaml_scan import read_yaml
from groundplane.errors import Refused

_TEMPLATE_NAMES = re.compile(r".*\.(jinja|jinja2|j2)$|chat_template[^.]*$", re.IGNORECASE)
_YAML_NAMES = re.compile(r".*\.(yaml|yml)$|mlmodel$", re.IGNORECASE)
_JSON_NAMES = (".json", ".jsonc", ".index", ".json5")
_GRAPH_NAMES = (".pbtxt", ".prototxt", ".textproto", ".pb.txt", ".graphtxt")
_CODE_NAMES = (".py", ".sh", ".so", ".ipynb", ".r", ".lua", ".js")
_REQUIREMENTS = re.compile(r"(?:requirements.*\.(?:txt|in)|(?:conda|environment|python_env).*\.ya?ml|pipfile)$")
_TARGET_KEYS = frozenset({"_target_", "target", "class_path", "loader_module", "callable", "parent_library"})
_POINTERS = ("version https://git-lfs.github.com/spec/v1", "# xet version ", "version https://hawser.github.com/spec")
# Words that loaders obey; in a file that a strict reader can't read they are obeyed by a lenient one.
_OBEYED = re.compile(r'chat_template|auto_map|_target_|"(?:Lambda|__lambda__|TFSMLayer)"|\\u00[2-7][0-9a-fA-F]')
_ENTITY = re.compile(r"<!ENTITY\b|<!DOCTYPE\s+(?!html\b|svg\b|plist\b)[\w:.-]+\s+(?:SYSTEM|PUBLIC)\b", re.IGNORECASE)
_ENCODING = re.compile(r"""^<\?xml[^>]{0,80}encoding\s*=\s*["']([^"']{1,40})""")
_ENCODINGS = re.compile(
    r"utf-?(?:8|16)|us-ascii|ascii|iso-8859-\d{1,2}|windows-125\d|gb18030|gbk|gb2312|big5|euc-\w\w|shift_jis",
    re.IGNORECASE,
)
# In base64 `gA` and a letter from I to X are a pickle's header of protocol 2 to 5.
_PACKED = re.compile(r"gA[I-X][A-Za-z0-9+/_-]{13,65536}={0,2}")
_PACKED_MAX = 2000
_INSECURE = re.compile(
    r"""^\s*(?:-\s+)?["']?(?:--trusted-host\b|(?:--?[\w-]+[= ]\s*|[\w.\[\]-]+\s*@\s*)?http://)""", re.MULTILINE
)
_ELSEWHERE = re.compile(r"""^\s*(?:-\s+)?["']?((?:--(?:extra-)?index-url|--find-links|-i|-f)\b.{0,80}|(?:[\w.\[\]-]+\s*@\s*)?(?:git\+|https://).{1,80})""", re.MULTILINE)  # fmt: skip
_R_TEXT = re.compile(r"A\n[23]\n\d{1,9}\n\d{1,9}\n")
_KNOWN_LIBRARIES = ("transformers", "peft", "diffusers", "torch", "sentence_transformers", "timm")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSeen:
    """What a text file holds for the certificate (`details`), for rendering, and against entering."""

    details: dict[str, object] = field(default_factory=dict)
    templates: tuple[Template, ...] = ()
    refused: Refused | None = None


def read_text(path: str, text: str) -> TextSeen:
    """Reads configurations as their loaders do; anything else is looked at for what lies in any text."""
    name = PurePosixPath(path).name.lower()
    text = text.removeprefix("\ufeff")
    details: dict[str, object] = {}
    licence = stated_licence(name, text)
    if licence:
        details["license"] = licence
    refused = _judge_any(path, name, text, details)
    if refused is not None:
        return TextSeen(details=details, refused=refused)
    if _TEMPLATE_NAMES.match(name):
        return TextSeen(details=details, templates=(Template(name="the template", source=text),))
    if _YAML_NAMES.match(name):
        return _read_yaml(path, text, details)
    if name.endswith(_JSON_NAMES):
        return _read_json(path, text, details)
    if name.endswith(_CODE_NAMES):
        details["code"] = True
    return TextSeen(details=details)


def _judge_any(path: str, name: str, text: str, details: dict[str, object]) -> Refused | None:
    """What is told from the text itself, or from names that are no configuration's."""
    if text.startswith(_POINTERS):
        return Refused(
            rule="pointer",
            need="the file itself",
            have=f"{path} is a pointer to a file that was not fetched ({len(text):,} letters)",
            hint="fetch what it points at: git lfs pull, or hf download",
        )
    if _R_TEXT.match(text):
        return _program(path, "is saved from R, whose promises run when they are read")
    if text.lstrip()[:1] == "<" and (fault := _markup_fault(text)):
        return Refused(
            rule="xml-entities",
            need="XML without entities or definitions of its own",
            have=f"{path} {fault}",
            hint="write it again without a document type: what it stands for belongs in the file",
        )
    operation = acting_operation_in_text(text) if name.endswith(_GRAPH_NAMES) else ""
    if operation:
        return _program(path, f"is a graph with {operation}, which acts on what surrounds it")
    if name.endswith(_GRAPH_NAMES) and re.search(r"""\btype\s*:\s*["']Python["']""", text):
        return _program(path, "has a layer of Python code")
    if _REQUIREMENTS.search(name) and (installed := _judge_requirements(path, text, details)):
        return installed
    return _program(path, "holds a pickle in base64") if _packed_program(text) else None


def _markup_fault(text: str) -> str:
    found = _ENTITY.search(text)
    if found:
        return f"holds {found[0][:40]}, which can grow without end or read other files"
    encoding = _ENCODING.match(text)
    return f"says that it is written in {encoding[1]}" if encoding and not _ENCODINGS.fullmatch(encoding[1]) else ""


def _judge_requirements(path: str, text: str, details: dict[str, object]) -> Refused | None:
    found = _INSECURE.search(text)
    if found:
        return Refused(
            rule="requirements",
            need="packages from addresses that prove who they are",
            have=f"{path} installs from an address without TLS on line {text.count(chr(10), 0, found.end()) + 1}",
            hint="name the package and its version, or an https address",
        )
    elsewhere = [match[1].strip()[:100] for match in _ELSEWHERE.finditer(text)]
    if elsewhere:
        details["custom_code"] = elsewhere[:10]
    return None


def _packed_program(text: str) -> bool:
    for count, found in enumerate(_PACKED.finditer(text)):
        packed = found[0].rstrip("=").replace("-", "+").replace("_", "/")
        data = base64.b64decode(packed[: len(packed) // 4 * 4])
        walk = scan_for_pickle(ByteView.of(data))
        if (walk is not None and walk.imports) or count > _PACKED_MAX:
            return walk is not None
    return False


# ---------------------------------------------------------------- YAML and JSON


def _read_yaml(path: str, text: str, details: dict[str, object]) -> TextSeen:
    seen = read_yaml(text, acting_target)
    if seen.fault:
        return TextSeen(details=details, refused=_program(path, seen.fault))
    found = _Found()
    for key, value in seen.pairs:
        found.pair(key, True if value.lower() == "true" else value)
    return found.seen(path, details)


def _read_json(path: str, text: str, details: dict[str, object]) -> TextSeen:
    found = _Found()
    try:
        json.loads(text, object_pairs_hook=found.take)
    except (ValueError, RecursionError):
        obeyed = _OBEYED.search(text)
        if obeyed is None:
            return TextSeen(details=details)
        what = f"is no JSON that a strict reader reads, and holds {obeyed[0]}, which lenient ones obey"
        return TextSeen(details=details, refused=_program(path, what))
    return found.seen(path, details)


def judge_configuration(path: str, text: str) -> Refused | None:
    """What is wrong with a JSON text inside another file, read as a configuration of its own."""
    return _read_json(path, text, {}).refused


class _Found:
    """Collects while the text is read: every pair is seen, also the one that a later pair of the same name hides."""

    def __init__(self) -> None:
        self.templates: list[Template] = []
        self.programs: list[str] = []
        self.custom_code: set[str] = set()

    def take(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        for key, value in pairs:
            self.pair(key, value)
            if key == "class_name":
                self._program(keras_fault({key: value}))
        made = dict(pairs)
        self._program(keras_fault(made))
        if len(made) != len(pairs):
            self._program(keras_fault(dict(reversed(pairs))))
        return made

    def pair(self, key: str, value: object) -> None:
        """One key and what it has."""
        if key == "chat_template" or key.endswith(("_template", "_templates")):
            self._templates(key, value)
        elif key in _TARGET_KEYS and isinstance(value, str):
            self._target(key, value)
        elif key == "auto_map" and isinstance(value, dict):
            self._code([word for item in value.values() for word in (item if isinstance(item, list) else [item])])
        elif key == "impl" and isinstance(value, str) and is_dotted(value):
            self.custom_code.add(value[:100])
        elif key == "trust_remote_code" and value is True:
            self.custom_code.add(key)
        elif key == "weight_map" and isinstance(value, dict):
            outside = next((place for place in value.values() if path_fault(str(place)) is not None), None)
            if outside is not None:
                self._program(f"says that weights lie in {str(outside)[:80]!r}, outside the model's folder")

    def _target(self, key: str, value: str) -> None:
        if acting_target(value) and (key != "target" or is_dotted(value)):
            self._program(f"lets its loader call {value[:60]}")
        elif key in {"loader_module", "parent_library"} and not value.startswith((*_KNOWN_LIBRARIES, "mlflow.")):
            self.custom_code.add(value[:100])

    def _code(self, names: list[object]) -> None:
        for name in names:
            if isinstance(name, str) and "--" in name:
                self._program(
                    f"fetches its code from {name.partition('--')[0][:80]!r}, which is no part of the version"
                )
            elif name is not None:
                self.custom_code.add(str(name)[:100])

    def _program(self, fault: str) -> None:
        if fault:
            self.programs.append(fault)

    def _templates(self, name: str, value: object) -> None:
        if isinstance(value, str) and ("{{" in value or "{%" in value):
            self.templates.append(Template(name=name, source=value))
        elif isinstance(value, list):
            for item in value:
                self._templates(name, item.get("template") if isinstance(item, dict) else item)
        elif isinstance(value, dict):
            for item in value.values():
                self._templates(name, item)

    def seen(self, path: str, details: dict[str, object]) -> TextSeen:
        """Everything found, for the certificate and against entering."""
        if self.custom_code:
            details["custom_code"] = sorted(self.custom_code)[:10]
        refused = _program(path, self.programs[0]) if self.programs else None
        return TextSeen(details=details, templates=tuple(self.templates), refused=refused)


def _program(path: str, what: str) -> Refused:
    return Refused(
        rule="no-programs",
        need="configuration that says what, not what to run",
        have=f"{path} {what}",
        hint="take it out of the file; code belongs in the image that serves the model",
    )
