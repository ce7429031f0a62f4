"""Names in a configuration that a loader imports and calls, and which of them no model needs.

Hydra, NeMo, Lightning, HyperPyYAML, PEFT, Keras and MLflow all call what a text names. A model names layers and its own
classes; what belongs to Python itself, or loads and runs further things, is refused.
Source: CVE-2025-23304 (NeMo), CVE-2025-1550, -8747, -9906, -12058 (Keras), the gadgets published against picklescan.
"""

from __future__ import annotations

import re
import sys

from groundplane.domain.scanning.protobuf_scan import names_acting_operation

_HARMLESS = re.compile(
    r"(?:collections|math|cmath|datetime|decimal|fractions|enum|dataclasses|random|statistics|uuid|string|pathlib|typing|abc"
    r"|functools\.partial|operator\.(?!attrgetter|methodcaller)|itertools"
    r"|builtins\.(?:dict|list|tuple|set|frozenset|int|float|str|bool|bytes|range|slice|len|min|max|sum|abs|round|sorted|zip))"
    r"(?:\.|$)"
)
_GADGETS = re.compile(
    r"(?:numpy\.(?:testing|f2py|distutils|load|lib\.npyio|core\.records|ctypeslib)"
    r"|torch\.(?:hub|load$|jit\.load|serialization|package|utils\.(?:collect_env|bottleneck|cpp_extension|data\.datapipes|_config_module)"
    r"|distributed\.(?:rpc|elastic|launch|run)|_dynamo|_inductor|fx|testing|ops\.load_library|classes\.load_library)"
    r"|(?:joblib|dill|cloudpickle)\.|pandas\.(?:read_pickle|eval|io\.pickle)|pip(?:\.|$)|setuptools|pkg_resources|_distutils_hack"
    r"|hydra\.(?:utils|_internal)|(?:pytorch_)?lightning\.(?:\w+\.)*cloud_io|omegaconf\.OmegaConf|yaml\.(?:unsafe_|full_)?load|jinja2|mako|IPython|ipykernel|nbconvert|click\.|fire\.|paramiko|fabric"
    r"|requests\.|urllib3|httpx|aiohttp|boto3|fsspec|huggingface_hub|keras\.(?:utils\.get_file|config|(?:src\.)?saving)|tensorflow\.(?:io|keras\.utils\.get_file|py_function|load_library)"
    r"|mlflow\.pyfunc\.load|ray\.(?:remote|init)|numexpr|sympy\.(?:sympify|parsing)|cffi|pyximport|cppyy|numba\.(?:jit|cfunc))"
)
# Modules that a path through another one ends in: torch.serialization.os.system.
_THROUGH = frozenset(
    {"os", "sys", "posix", "nt", "subprocess", "builtins", "__builtins__", "importlib", "ctypes", "pickle", "shutil",
     "socket", "runpy", "pty", "marshal"}
)  # fmt: skip
_PROGRAMS = re.compile(
    r"(?:posix|nt|subprocess|builtins|__builtin__|pty|runpy|commands)[.:]\w+"
    r"|os[.:](?:system|popen\w*|exec[lv]\w*|spawn\w+|posix_spawnp?|startfile|remove|unlink)|shutil[.:]rmtree"
)
_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
_KERAS = ("keras", "tf_keras", "tensorflow", "keras_hub", "keras_nlp", "keras_cv", "keras_core")
_KERAS_PROGRAMS = frozenset({"Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper"})
_KERAS_SYMBOLS = re.compile(
    r"io\.|(?:raw_ops\.)?(?:ReadFile|WriteFile|\w*py_?func\w*)|numpy_function|load_\w+|saved_model\.", re.IGNORECASE
)
_KERAS_ACTS = frozenset(
    [
        "get_file",
        "load_model",
        "load_weights",
        "enable_unsafe_deserialization",
        "deserialize_keras_object",
        "save_model",
        "load_img",
        "image_dataset_from_directory",
        "audio_dataset_from_directory",
        "text_dataset_from_directory",
        "eval",
        "exec",
        "compile",
        "open",
        "__import__",
        "getattr",
        "setattr",
        "system",
        "popen",
    ]
)
_PLAIN_BUILTINS = frozenset(
    {"function", "dict", "list", "tuple", "set", "int", "float", "str", "bool", "slice", "NoneType"}
)
_READS_VOCABULARY = frozenset({"StringLookup", "IntegerLookup", "TextVectorization", "IndexLookup"})


def acting_target(name: str) -> bool:
    """Whether a dotted name that a loader would call belongs to Python itself or loads and runs further things."""
    name = name.strip().lstrip(".")
    top, *further = re.split(r"[.:]", name)
    if any(part in _THROUGH or (part.startswith("__") and part.endswith("__")) for part in further):
        return True
    if _HARMLESS.match(name):
        return False
    return top in sys.stdlib_module_names or top in {"posix", "nt", "eval", "exec"} or bool(_GADGETS.match(name))


def names_program(value: str) -> bool:
    """Whether a text is nothing but the name of a function that runs programs: no configuration needs one."""
    return bool(_PROGRAMS.fullmatch(value))


def is_dotted(name: str) -> bool:
    return bool(_DOTTED.fullmatch(name))


def is_keras(module: str) -> bool:
    """Whether a module is Keras' own, or Python's, of which `keras_fault` says what may be named."""
    return not module or module.partition(".")[0] in {*_KERAS, "builtins"}


def keras_fault(made: dict[str, object]) -> str:
    """What is wrong with an object of a Keras configuration, in words; "" when it is none or plain."""
    name, module, config = made.get("class_name"), made.get("module"), made.get("config")
    if not isinstance(name, str):
        return ""
    if name in _KERAS_PROGRAMS:
        return f"describes a Keras layer {name}, which carries a program"
    if isinstance(module, str) and module:
        top = module.partition(".")[0]
        if module == "builtins":
            wrong = name not in _PLAIN_BUILTINS
        else:
            wrong = top not in _KERAS and acting_target(f"{module}.{name}")
        if wrong or (top in _KERAS and name in _KERAS_ACTS):
            return f"lets Keras call {name[:40]} of {module[:60]}"
        if isinstance(config, str) and config in _KERAS_ACTS:
            return f"lets Keras call {config[:40]} of {module[:60]}"
    symbol = config.get("function") if isinstance(config, dict) else None
    if name == "TFOpLambda" and isinstance(symbol, str) and _KERAS_SYMBOLS.match(symbol):
        return f"lets TensorFlow call {symbol[:60]}"
    if name == "TensorFlowOpLayer" and names_acting_operation(str(config)):
        return "describes a layer of TensorFlow that acts on what surrounds it"
    if name in _READS_VOCABULARY and isinstance(config, dict) and isinstance(config.get("vocabulary"), str):
        return f"lets the layer {name} read {config['vocabulary'][:60]!r} where it is loaded"
    return ""
