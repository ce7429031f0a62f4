"""What installers, builders and shells run of a folder's own files, and which files are such a program's.

A model needs none of it: whoever installs, builds or enters the folder would run what it says. What runs by itself is
refused; what somebody must start is said. Source: npm's life-cycle scripts, PEP 517 and 518, ld.so(8), bash(1), and
Ollama's Modelfile.
"""

from __future__ import annotations

import json
import re
import tomllib

from groundplane.domain.model import path_fault

_PROJECT_LETTERS_MAX = 1_000_000
_NPM_SCRIPTS = ("preinstall", "install", "postinstall", "preprepare", "prepare", "postprepare", "prepublish")
_NPM_SOURCES = ("dependencies", "devDependencies", "optionalDependencies", "peerDependencies")
_NO_PROOF = re.compile(r"(?:git\+)?(?:http|git|svn)://|file:(?:/|\.\.)")
_NO_PROOF_PYTHON = re.compile(r"@\s*(?:[a-z]+\+)?(?:http|git|svn)://|@\s*file:")
# Variables that load code into any program of their kind that is started with them.
_LOADS_CODE = re.compile(
    r"^[ \t]*(?:export[ \t]+)?(LD_PRELOAD|LD_AUDIT|DYLD_INSERT_LIBRARIES|PYTHONSTARTUP|BASH_ENV|PROMPT_COMMAND"
    r"|NODE_OPTIONS|PERL5OPT|RUBYOPT|JAVA_TOOL_OPTIONS|GIT_SSH_COMMAND)[ \t]*=",
    re.MULTILINE,
)
_GIT_FILTER = re.compile(r"\b(?:filter|diff|merge)=(?!(?:lfs|xet|binary|text|union|ours)\b)[\w-]+")
_ENVIRONMENT = re.compile(r"\.env(?:\..*|rc)?|.*\.env")
_OLLAMA = re.compile(
    r"^[ \t]*(?:FROM|ADAPTER)[ \t]+([~/.\\][^\s]*|[A-Za-z]:\\[^\s]*|https?://[^\s]*)", re.MULTILINE | re.IGNORECASE
)
_STARTED = re.compile(
    r"(?:dockerfile|containerfile)(?:\..*)?|(?:gnu)?makefile|.*\.mk|justfile|jenkinsfile|rakefile|gemfile"
    r"|vagrantfile|procfile|cmakelists\.txt|build\.(?:rs|gradle)|meson\.build|noxfile\.py|tox\.ini|cog\.ya?ml|docker-compose.*\.ya?ml"
    r"|dvc\.ya?ml|mlproject|skaffold\.ya?ml|snakefile|bentofile\.ya?ml|flow\.dag\.ya?ml|crontab|.*\.(?:service|egg-link)"
    r"|\.gitlab-ci\.yml|azure-pipelines\.yml|.*\.(?:mjs|cjs|ts|pl|rb|lua|ps1|bash|zsh|fish|awk|tcl)"
)


def runs_by_itself(name: str, text: str) -> str:
    """What a tool runs of this file, or opens outside the folder, without being asked for it; "" when nothing.

    `name` is the file's own, in small letters.
    """
    if name == "package.json":
        return _npm(text)
    if name == "binding.gyp":
        return "is built and run when npm installs the folder"
    if name in {"pyproject.toml", "setup.cfg"} and _NO_PROOF_PYTHON.search(text):
        return "installs packages from an address without TLS, or from elsewhere on the machine"
    if _ENVIRONMENT.fullmatch(name) and (found := _LOADS_CODE.search(text)):
        return f"sets {found[1]}, which loads code into programs"
    if name == "modelfile" or name.startswith("modelfile."):
        place = next((place for place in _OLLAMA.findall(text) if path_fault(place.removeprefix("./")) is not None), "")
        return f"takes weights from {place[:80]!r}, outside the model's folder" if place else ""
    return ""


def is_started_by_hand(path: str) -> bool:
    """Whether a file of this name is what somebody's tool runs when it is told to."""
    *folders, name = path.lower().split("/")
    return _STARTED.fullmatch(name) is not None or folders[-2:] == [".github", "workflows"]


def own_backend(name: str, text: str) -> str:
    """The folder's own program that builds it, when its project names one; else ""."""
    if name != "pyproject.toml" or len(text) > _PROJECT_LETTERS_MAX:
        return ""
    try:
        system = tomllib.loads(text).get("build-system")
    except (tomllib.TOMLDecodeError, RecursionError):
        return ""
    if not isinstance(system, dict) or not system.get("backend-path"):
        return ""
    return str(system.get("build-backend", "its own build backend"))[:80]


def own_filter(name: str, text: str) -> str:
    """The program that git is to send files through, when it is none of those that large files need; else ""."""
    found = _GIT_FILTER.search(text) if name == ".gitattributes" else None
    return f"git's {found[0][:80]}" if found else ""


def _npm(text: str) -> str:
    try:
        package = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(package, dict):
        return ""
    scripts = package.get("scripts")
    for hook in _NPM_SCRIPTS:
        if isinstance(scripts, dict) and scripts.get(hook):
            return f"runs {str(scripts[hook])[:60]!r} when npm installs the folder ({hook})"
    for kind in _NPM_SOURCES:
        wanted = package.get(kind)
        sources = wanted.items() if isinstance(wanted, dict) else ()
        name = next((name for name, source in sources if isinstance(source, str) and _NO_PROOF.match(source)), None)
        if name is not None:
            return f"installs {name[:60]!r} from an address without TLS, or from elsewhere on the machine"
    return ""
