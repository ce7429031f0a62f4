"""What lies in a model's text files that a loader would obey: templates, programs, licences.

Only what some loader of models is known to act on is looked for; ordinary code beside a model is said, not refused.
"""

# ruff: noqa: E501 - a pattern broken over several lines is harder to read than a long one

from __future__ import annotations

import base64
import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from groundplane.domain.model import path_fault
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.code_scan import acting_code
from groundplane.domain.scanning.licences import stated_licence
from groundplane.domain.scanning.loader_targets import acting_target, is_dotted, is_keras, keras_fault, names_program
from groundplane.domain.scanning.pickle_scan import scan_for_pickle
from groundplane.domain.scanning.protobuf_scan import acting_operation_in_text
from groundplane.domain.scanning.secrets_scan import judge_secrets
from groundplane.domain.scanning.setup_scan import is_started_by_hand, own_backend, own_filter, runs_by_itself
from groundplane.domain.scanning.templates_scan import Template, injection
from groundplane.domain.scanning.yaml_scan import read_yaml
from groundplane.errors import Refused

_TEMPLATE_NAMES = re.compile(r".*\.(jinja|jinja2|j2)$|chat_template[^.]*$", re.IGNORECASE)
_YAML_NAMES = re.compile(r".*\.(yaml|yml)$|mlmodel$", re.IGNORECASE)
_JSON_NAMES = (".json", ".jsonc", ".index", ".json5")
_SETTING_NAMES = (".toml", ".cfg", ".ini", ".conf", ".properties")
_GRAPH_NAMES = (".pbtxt", ".prototxt", ".textproto", ".pb.txt", ".graphtxt")
_CODE_NAMES = (".py", ".pyw", ".sh", ".ipynb", ".r", ".lua", ".js")
_REQUIREMENTS = re.compile(
    r"(?:requirements.*\.(?:txt|in)|(?:conda|environment|python_env).*\.ya?ml|pipfile|pip\.(?:conf|ini))$"
)
_TARGET_KEYS = frozenset({"_target_", "target", "class_path", "loader_module", "callable", "parent_library"})
_POINTERS = ("version https://git-lfs.github.com/spec/v1", "# xet version ", "version https://hawser.github.com/spec")
# Words that loaders obey; in a file that a strict reader can't read they are obeyed by a lenient one.
_OBEYED = re.compile(
    r'chat_template|auto_map|_target_|"(?:Lambda|__lambda__|TFSMLayer|TorchModuleWrapper)"|\\u00[2-7][0-9a-fA-F]'
)
_ENTITY = re.compile(r"<!ENTITY\b|<!DOCTYPE\s+(?!html\b|svg\b|plist\b)[\w:.-]+\s+(?:SYSTEM|PUBLIC)\b", re.IGNORECASE)
_ACTING_XML = {
    re.compile(r"<xi:include\b|http://www\.w3\.org/2001/XInclude"): "includes other files",
    re.compile(r"<xsl:(?:stylesheet|transform)\b|<\?xml-stylesheet\b"): "is or calls a stylesheet, which is a program",
}
_ACTING_ROOTS = {
    "java": (re.compile(r"XMLDecoder"), "makes Java objects when it is read"),
    "svg": (re.compile(r"<script\b", re.IGNORECASE), "is a drawing with a script"),
    "net": (
        re.compile(r"""\s(?:library|path|bin|plugin)\s*=\s*["'](?:/|[A-Za-z]:|[^"']{0,200}(?:\.\./|\.so\b|\.dll\b))"""),
        "is a network that takes code or weights from elsewhere",
    ),
}
"""A document's root → what it may not hold, and what that does."""
# OpenVINO's layers are of its numbered operation sets; others are an extension's.
_OWN_LAYERS = re.compile(
    r"""<layer\b[^<>]{0,400}\bversion\s*=\s*["'](?!opset\d{1,2}["']|extension["']|experimental["'])([^"']{1,60})["']"""
)
_REMOTE_SHELL = re.compile(
    r"/dev/tcp/[\w.$]|\bbash -i\s*[>&]|\bn(?:c|cat) (?:-\w+ )*-\w*[ec] ?/bin/|\bmkfifo /tmp/\w+\s*;"
)
_SCRIPT = re.compile(r"<script\b", re.IGNORECASE)
_DOCUMENT_SCRIPT = re.compile(r"/(?:JavaScript|JS|Launch|EmbeddedFile|#4[aA]avaScript)\b|\\objdata\b")
_ROOT = re.compile(r"<([A-Za-z][\w.-]*)")
_NESTED_XML_MAX = 500
_ENCODING = re.compile(r"""^<\?xml[^>]{0,80}encoding\s*=\s*["']([^"']{1,40})""")
_ENCODINGS = re.compile(
    r"utf-?(?:8|16)|us-ascii|ascii|iso-8859-\d{1,2}|windows-125\d|gb18030|gbk|gb2312|big5|euc-\w\w|shift_jis",
    re.IGNORECASE,
)
# In base64 `gA` and a letter from I to X are a pickle's header of protocol 2 to 5.
# Y29zC and the like are an import of protocol 0: cos, cposix, csubprocess, cbuiltins.
# H4sI and eJ, eN, eA, eF are what gzip and zlib begin with; 80 and 02 to 05 are the same header in hex.
_PACKED = re.compile(
    r"(?<![A-Za-z0-9+/])(?:(?:gA[I-X]|H4sI|e[AFJN]|Y(?:29zC|3Bvc2l4C|3N1YnByb2Nl|2J1aWx0aW5z|19fYnVpbHRpbl))(?:[A-Za-z0-9+/_-]|\\?\r?\n|\\n){13,65536}={0,2}|80(?i:0[2-5](?:[0-9a-f]{2}){12,65536}))"
)
_PACKED_MAX = 2000
_INSECURE = re.compile(
    r"""^[^#\n]*?(?:--trusted-host\b|(?<![\w+])http://|\b(?:git|svn|hg|bzr)\+(?:http|git|svn|ftp)://|\bfile:/)""",
    re.MULTILINE,
)
_OUTSIDE = re.compile(
    r"""^[ \t]*(?:-[rce]\s*|--(?:requirement|constraint|editable)[= ]\s*)(?:/|\.\./|~)""", re.MULTILINE
)
_ELSEWHERE = re.compile(r"""^[ \t]*(?:-[ \t]+)?["']?((?:--(?:extra-)?index-url|--find-links|-i|-f)\b.{0,80}|(?:-e|--editable)\b.{0,80}|\./.{1,80}|(?:[\w.\[\]-]+\s*@\s*)?(?:git\+|https://).{1,80})""", re.MULTILINE)  # fmt: skip
_R_TEXT = re.compile(r"A\n[23]\n\d{1,9}\n\d{1,9}\n")
_PLACES = frozenset(
    {
        "weight_map",
        "paths",
        "python_model",
        "model_code_path",
        "default_model_filename",
        "op_library_filename",
        "serializedFile",
        "modelFile",
    }
)
"""Keys whose values are files that a loader opens (safetensors' index, TensorFlow.js, MLflow, Triton)."""
_OPENED = frozenset(
    {"tokenizer_file", "vocab_file", "merges_file", "spm_file", "source_spm", "target_spm", "emoji_file", "vocab_data",
     "base_model_name_or_path", "archive_file", "weights_file", "vectors", "init_tok2vec", "preset", "model_checkpoint_path"}
)  # fmt: skip
"""Keys whose values some loader opens when nothing lies in the folder; honest models leave their makers' paths there."""
_HANDLERS = frozenset({"handler", "implementation", "entryPoint", "service", "entrypoint"})
"""Keys whose values are a server's own code."""
_CLASSES = frozenset({"model_type", "quant_method", "tokenizer_class", "architectures", "feature_extractor_type"})
"""Keys whose values are names of classes or modules, which loaders look up or import."""
_FETCHED = frozenset(
    {
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "custom_generate",
        "custom_pipeline",
    }
)
"""Keys whose values are another repository's code when they hold a slash."""
_JSONPICKLE = frozenset(
    ["object", "reduce", "function", "type", "repr", "class", "method", "newargs", "newargsex", "initargs"]
)
_NAME_MAX = 200
_EXPRESSION = re.compile(r"__import__\s*\(|\bos\.(?:system|popen)\s*\(|^\s*(?:exec|eval)\s*\(|\bsubprocess\.\w+\s*\(")
_SETTING = re.compile(r"""^[ \t]*["']?([\w.@-]{1,80})["']?\s*[=:]\s*["']?([^"'\n#]{1,200})""", re.MULTILINE)
_TRITON = re.compile(
    r"""\b(op_library_filename|default_model_filename|EXECUTION_ENV_PATH)\b[^"']{0,60}["']([^"']*)["'][^"'}]{0,40}(?:string_value\s*:\s*["']([^"']*)["'])?"""
)
_SPARK = ("pyspark.", "org.apache.spark.", "sparknlp.", "com.johnsnowlabs.", "synapse.", "xgboost.")
_IMPORTS = re.compile(r"^[ \t-]*custom_imports[ \t]*:", re.MULTILINE)
_KNOWN_LIBRARIES = ("transformers", "peft", "diffusers", "torch", "sentence_transformers", "timm", "onnxruntime", "optimum",
                    "stable_diffusion", "flax", "k_diffusion")  # fmt: skip


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
    if name == "checkpoint" or name.endswith(_SETTING_NAMES):
        found = _Found()
        for key, value in _SETTING.findall(text):
            found.pair(key, value.strip())
        return found.seen(path, details)
    named = name.endswith(_JSON_NAMES)
    if named or (text.lstrip()[:1] in {"{", "["} and not name.endswith(_CODE_NAMES)):
        return _read_json(path, text, details, named=named)
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
    if name.endswith((".py", ".pyw")) and (acts := acting_code(text)):
        return _program(path, acts)
    if not name.endswith((*_CODE_NAMES, ".md")) and not _TEMPLATE_NAMES.match(name) and (end := injection(text)):
        return _program(path, f"holds a template that reaches for Python: {end}")
    if not name.endswith(".md") and (shell := _REMOTE_SHELL.search(text)):
        return _program(path, f"opens a shell to somebody else: {shell[0][:60]}")
    if text.startswith("#!") or (name.endswith((".html", ".htm")) and _SCRIPT.search(text)):
        details["code"] = True
    if text.startswith(("%PDF-", "{\\rtf")) and (script := _DOCUMENT_SCRIPT.search(text)):
        return _program(path, f"is a document with {script[0]}, which readers run")
    if text.startswith("#!") and name.endswith((".bin", ".dat", ".weights", ".model", ".data")):
        return _program(path, "is a program, named as weights are")
    if _R_TEXT.match(text):
        return _program(path, "is saved from R, whose promises run when they are read")
    if text.lstrip()[:1] == "<" and (fault := _markup_fault(text)):
        return Refused(
            rule="xml-entities",
            need="XML without entities, programs or definitions of its own",
            have=f"{path} {fault}",
            hint="write it again without them: what it stands for belongs in the file",
        )
    operation = acting_operation_in_text(text) if name.endswith(_GRAPH_NAMES) else ""
    if operation:
        return _program(path, f"is a graph with {operation}, which acts on what surrounds it")
    if name.endswith(_GRAPH_NAMES) and re.search(r"""\btype\s*:\s*["']Python["']""", text):
        return _program(path, "has a layer of Python code")
    if name.endswith(_GRAPH_NAMES) and re.search(r"""^\s*backend\s*:\s*["']python["']""", text, re.MULTILINE):
        details["custom_code"] = ["a backend of Python"]
    for key, *said in _TRITON.findall(text) if name.endswith(_GRAPH_NAMES) else ():
        if key == "op_library_filename" or any(place and path_fault(place) is not None for place in said):
            return _program(path, f"lets its server load what {key} names")
    if acts := runs_by_itself(name, text):
        return _program(path, acts)
    if is_started_by_hand(path):
        details["code"] = True
    if backend := own_backend(name, text) or own_filter(name, text):
        details["custom_code"] = [backend]
    if text.lstrip()[:1] == "<" and (layers := sorted(set(_OWN_LAYERS.findall(text)))):
        details["custom_code"] = [f"layers of {name}" for name in layers[:10]]
    if _REQUIREMENTS.search(name) and (installed := _judge_requirements(path, text, details)):
        return installed
    return _program(path, "holds a pickle, packed as text") if _packed_program(text) else None


def _markup_fault(text: str) -> str:
    found = _ENTITY.search(text)
    if found:
        return f"holds {found[0][:40]}, which can grow without end or read other files"
    acts = next((what for pattern, what in _ACTING_XML.items() if pattern.search(text)), "")
    root = _ROOT.search(text)
    pattern, what = _ACTING_ROOTS.get(root[1].lower() if root else "", (None, ""))
    acts = acts or (what if pattern is not None and pattern.search(text) else "")
    if acts:
        return acts
    if (root is None or root[1].lower() != "html") and _too_deep(text):
        return f"nests over {_NESTED_XML_MAX} deep"
    encoding = _ENCODING.match(text)
    return f"says that it is written in {encoding[1]}" if encoding and not _ENCODINGS.fullmatch(encoding[1]) else ""


def _too_deep(text: str) -> bool:
    depth = 0
    for tag in re.finditer(r"<(/?)[A-Za-z][^<>]{0,4000}?(/?)>", text):
        depth += 0 if tag[2] else -1 if tag[1] else 1
        if depth > _NESTED_XML_MAX:
            return True
    return False


def judge_told(path: str, text: str) -> Refused | None:
    """What may be in no text, also in those that a binary file carries: credentials, packed programs, templates."""
    end = injection(text)
    if end:
        return _program(path, f"holds a template that reaches for Python: {end}")
    return judge_secrets(path, text) or (
        _program(path, "holds a pickle, packed as text") if _packed_program(text) else None
    )


def _judge_requirements(path: str, text: str, details: dict[str, object]) -> Refused | None:
    found = _INSECURE.search(text) or _OUTSIDE.search(text)
    if found:
        return Refused(
            rule="requirements",
            need="packages from addresses that prove who they are",
            have=f"{path} installs from an address without TLS, or from elsewhere on the machine, on line {text.count(chr(10), 0, found.end()) + 1}",
            hint="name the package and its version, or an https address",
        )
    elsewhere = [match[1].strip()[:100] for match in _ELSEWHERE.finditer(text)]
    if elsewhere:
        details["custom_code"] = elsewhere[:10]
    return None


def _packed_program(text: str) -> bool:
    for count, found in enumerate(_PACKED.finditer(text)):
        walk = scan_for_pickle(ByteView.of(_unpacked(found[0])))
        if (walk is not None and walk.imports) or count > _PACKED_MAX:
            return walk is not None
    return False


def _unpacked(packed: str) -> bytes:
    if packed.startswith("80"):
        return bytes.fromhex(packed)
    plain = re.sub(r"\\n|[\\\s]", "", packed).rstrip("=").replace("-", "+").replace("_", "/")
    data = base64.b64decode(plain[: len(plain) // 4 * 4])
    if packed.startswith(("g", "Y")):
        return data
    try:
        return zlib.decompressobj(47).decompress(data, 2**16)
    except zlib.error:
        return b""


# ---------------------------------------------------------------- YAML and JSON


def _read_yaml(path: str, text: str, details: dict[str, object]) -> TextSeen:
    seen = read_yaml(text, acting_target)
    if seen.fault:
        return TextSeen(details=details, refused=_program(path, seen.fault))
    found = _Found()
    if _IMPORTS.search(text):
        found.custom_code.add("custom_imports")
    for key, value in seen.pairs:
        found.pair(key, True if value.lower() == "true" else value)
    return found.seen(path, details)


def _read_json(path: str, text: str, details: dict[str, object], *, named: bool = True) -> TextSeen:
    """`named`: its readers take it for JSON, however it is written; else it is JSON when a strict reader reads it."""
    found = _Found()
    if PurePosixPath(path).name.lower() in {"model_index.json", "modules.json"}:
        found.parts = True
    try:
        json.loads(text, object_pairs_hook=found.take)
    except RecursionError:
        return TextSeen(details=details, refused=_program(path, "nests deeper than readers read"))
    except ValueError:
        obeyed = _OBEYED.search(text) if named else None
        if obeyed is None:
            if path.lower().endswith(".json"):
                details["unreadable"] = "JSON"
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
        self.outside: list[str] = []
        self.twice = False
        """Whether a key is given twice somewhere: readers differ on which one counts."""
        self.parts = False
        """Whether the file names a pipeline's parts: libraries with classes, and folders."""

    def take(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        for key, value in pairs:
            self.pair(key, value)
            if key == "class_name":
                self._program(keras_fault({key: value}))
        made = dict(pairs)
        module, name = made.get("module"), made.get("class_name")
        if isinstance(module, str) and isinstance(name, str) and not is_keras(module):
            self.custom_code.add(f"{module}.{name}"[:100])
        if made.get("lc") and isinstance(made.get("id"), list):
            self._class("id", made["id"])
        if "__loader__" in made and acting_target(f"{made.get('__module__')}.{made.get('__class__')}"):
            self._program(f"lets skops make a {made.get('__class__')!s:.40} of {made.get('__module__')!s:.40}")
        self._program(keras_fault(made))
        if len(made) != len(pairs):
            self.twice = True
            self._program(keras_fault(dict(reversed(pairs))))
        return made

    def pair(self, key: str, value: object) -> None:
        """One key and what it has."""
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and len(name) < _NAME_MAX and (names_program(name) or _EXPRESSION.search(name)):
                self._program(f"holds {name[:60]!r}, which runs programs")
        if key == "chat_template" or key.endswith(("_template", "_templates")):
            self._templates(key, value)
        elif key in _TARGET_KEYS and isinstance(value, str):
            self._target(key, value)
        elif key == "auto_map" and isinstance(value, dict):
            self._code([word for item in value.values() for word in (item if isinstance(item, list) else [item])])
        elif key == "impl" and isinstance(value, str) and (is_dotted(value) or "--" in value):
            self._code([value])
        elif key in _FETCHED and isinstance(value, str) and "/" in value:
            self._code([f"{value}--"])
        elif key == "trust_remote_code" and value is True:
            self.custom_code.add(key)
        elif key in _PLACES:
            self._places(key, value)
        elif key in _CLASSES:
            self._class(key, value)
        elif key in _OPENED and isinstance(value, str) and ("://" in value or path_fault(value) is not None) and value:
            self.outside.append(f"{key} {value[:80]!r}")
        elif key.startswith("@") and isinstance(value, str) and (key == "@callbacks" or not value.startswith("spacy")):
            self.custom_code.add(value[:100])
        elif key == "custom_imports" or (key == "op" and value == "Custom"):
            self.custom_code.add(key)
        elif key.rpartition(".")[2] in _HANDLERS and isinstance(value, str) and re.search(r"\w[.:]\w", value):
            self.custom_code.add(value[:100])
        elif key == "itemInfoEntries" and isinstance(value, dict):
            self._places(key, [each.get("path") for each in value.values() if isinstance(each, dict)])
        elif key == "model_class" and isinstance(value, str) and is_dotted(value) and not value.startswith(_SPARK):
            self.custom_code.add(value[:100])
        elif key.startswith("py/") and key.removeprefix("py/") in _JSONPICKLE:
            self._program(f"holds {key}, which makes Python objects when jsonpickle reads it")
        elif self.parts:
            self._part(key, value)

    def _places(self, key: str, value: object) -> None:
        """Files that a loader opens, in a list or by name: they lie in the model's folder."""
        if key == "weight_map" and not (
            isinstance(value, dict) and all(isinstance(each, str) for each in value.values())
        ):
            self._program("says that tensors lie in what is no file")
        places = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        outside = next((each for each in places if isinstance(each, str) and path_fault(each) is not None), None)
        if outside:
            self._program(f"says that a file lies in {outside[:80]!r}, outside the model's folder")

    def _part(self, key: str, value: object) -> None:
        """A part of a pipeline: [library, class], or the dotted name of a module's class, or its folder."""
        names = [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
        if key == "path" and isinstance(value, str) and value and path_fault(value) is not None:
            self._places(key, value)
        elif key == "_class_name" and isinstance(value, str) and not value.isidentifier():
            self._program(f"has the class {value[:60]!r}, which is the name of none")
        elif key == "_class_name" and isinstance(value, list):
            self._code([".".join(str(name) for name in value)])
        elif key == "type" and isinstance(value, str):
            names = [value]
        if len(names) == 2 and not re.fullmatch(r"[\w.]+", names[0]):
            self._program(f"takes a class from {names[0][:60]!r}, which is no library")
        elif names and acting_target(".".join(names)):
            self._program(f"lets its loader call {'.'.join(names)[:60]}")
        elif names and (is_dotted(names[0]) or len(names) == 2) and not names[0].startswith(_KNOWN_LIBRARIES):
            self.custom_code.add(names[0][:100])

    def _class(self, key: str, value: object) -> None:
        names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
        strange = next((name for name in names if re.search(r"\\|\.\.|^[/~]", name)), None)
        if strange is not None:
            self._program(f"has the {key} {strange[:60]!r}, which is the name of no class")
        elif acting_target(".".join(names)) and (len(names) > 1 or is_dotted(names[0])):
            self._program(f"lets its loader call {'.'.join(names)[:60]}")

    def _target(self, key: str, value: str) -> None:
        if acting_target(value) and (key != "target" or is_dotted(value)):
            self._program(f"lets its loader call {value[:60]}")
        elif value == "mlflow.pyfunc.model":
            self.custom_code.add(value)
        elif key in {"loader_module", "parent_library"} and not value.startswith((*_KNOWN_LIBRARIES, "mlflow.")):
            self.custom_code.add(value[:100])

    def _code(self, names: list[object]) -> None:
        for name in names:
            if isinstance(name, str) and "--" in name:
                self._program(
                    f"fetches its code from {name.partition('--')[0][:80]!r}, which is no part of the version"
                )
            elif isinstance(name, str) and (".." in name or "/" in name or "\\" in name):
                self._program(f"takes its code from {name[:80]!r}, which is no module of the folder's")
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
        if self.twice:
            details["unreadable"] = "JSON"
        if self.outside:
            details["outside"] = self.outside[:10]
        refused = _program(path, self.programs[0]) if self.programs else None
        return TextSeen(details=details, templates=tuple(self.templates), refused=refused)


def _program(path: str, what: str) -> Refused:
    return Refused(
        rule="no-programs",
        need="configuration that says what, not what to run",
        have=f"{path} {what}",
        hint="take it out of the file; code belongs in the image that serves the model",
    )
