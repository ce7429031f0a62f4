"""Files that a system, a shell or a tool acts on because of how they are named, whatever they hold.

Weights, configuration and text are named otherwise, so nothing is lost by leaving these out.
Source: Windows' PATHEXT and "Dangerous file types" (Outlook), freedesktop's Desktop Entry, Python's `site` and pytest's
documents, the workspace settings of editors and coding tools.
"""

from __future__ import annotations

from pathlib import PurePosixPath

_STARTED = frozenset(
    {".exe", ".scr", ".pif", ".com", ".cpl", ".msi", ".msp", ".bat", ".cmd", ".ps1", ".psm1", ".vbs", ".vbe", ".jse",
     ".wsf", ".wsh", ".hta", ".lnk", ".url", ".scf", ".reg", ".desktop", ".dll", ".sys", ".pyd", ".so", ".dylib",
     ".node", ".command", ".jar", ".war", ".ear", ".apk", ".vsix", ".docm", ".xlsm", ".pptm", ".llamafile", ".appimage",
     ".php", ".phar", ".swf", ".rpm", ".deb", ".pkg", ".dmg", ".iso"}
)  # fmt: skip
_ENGINES = frozenset({".engine", ".trt", ".plan", ".ptx", ".cubin", ".fatbin", ".hsaco"})
_BY_PYTHON = frozenset({"conftest.py", "sitecustomize.py", "usercustomize.py"})
_BY_TOOLS = frozenset(
    {".envrc", ".netrc", "_netrc", ".npmrc", ".pypirc", ".bashrc", ".bash_profile", ".profile", ".zshrc", ".zshenv",
     ".gitmodules", ".mcp.json", ".cursorrules", ".pre-commit-config.yaml", "autorun.inf", "desktop.ini",
     "authorized_keys"}
)  # fmt: skip
_FOLDERS = frozenset({".vscode", ".idea", ".devcontainer", ".ssh", ".aws", ".gnupg", ".kube", ".claude", ".cursor"})


def acted_on(path: str) -> str:
    """What acts on a file of this name, in words; "" when nothing is known to."""
    parts = PurePosixPath(path.lower()).parts
    name, suffix = parts[-1], PurePosixPath(parts[-1]).suffix
    if suffix in _STARTED:
        return f"is named as a program is ({suffix}): systems start it when it is opened"
    if suffix in _ENGINES:
        return f"is named as an engine is ({suffix}): compiled for an accelerator, and run as it is"
    if name in _BY_PYTHON:
        return "is run by Python or pytest wherever it lies"
    folder = next((part for part in parts[:-1] if part in _FOLDERS), "")
    if folder or name in _BY_TOOLS:
        return f"is obeyed by tools ({folder or name}), some of which run what it says when the folder is opened"
    return ""
