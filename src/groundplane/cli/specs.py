"""Spec files as commands read them: one place for what can be wrong with a file before its words are looked at."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from groundplane.errors import InvalidInput, NotFound
from groundplane.units import format_bytes

SPEC_MAX_BYTES = 1 << 20


@contextmanager
def spec_text(path: str | Path) -> Iterator[str]:
    """The text of a spec file, `-` for standard input, with its relative paths made absolute.

    What is found wrong with it inside the block, here or by the control plane, names the file.
    """
    from groundplane.domain.spec.parse import with_absolute_paths  # noqa: PLC0415 - with it comes YAML

    stdin = str(path) == "-"
    source = "standard input" if stdin else str(path)
    folder = Path.cwd() if stdin else Path(path).resolve().parent
    try:
        yield with_absolute_paths(_read(path, source), str(folder))
    except InvalidInput as error:
        error.details["source"] = source
        raise


def _read(path: str | Path, source: str) -> str:
    try:
        if source == str(path):
            with Path(path).open("rb") as file:
                data = file.read(SPEC_MAX_BYTES + 1)
        else:
            data = sys.stdin.buffer.read(SPEC_MAX_BYTES + 1)
        text = data.decode()
    except FileNotFoundError:
        raise NotFound(f"no file {path}", "give the path of a spec: ground plan -f job.yaml") from None
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", "give the path of a spec in YAML") from None
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{source} is not UTF-8 text (byte {error.start})", "save the spec as UTF-8") from None
    if len(data) > SPEC_MAX_BYTES:
        raise InvalidInput(f"{source} is over {format_bytes(SPEC_MAX_BYTES)}", "a spec is a few lines of YAML")
    return text
