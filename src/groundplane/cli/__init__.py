"""The doors for people: parse, call the client, render. `render.py` is the only module that prints.

Importing this package loads nothing but this line; `ground --help` must answer before a person notices.
"""

from __future__ import annotations

import sys


def main() -> None:
    """The `ground` command."""
    from groundplane.cli.root import run  # noqa: PLC0415 - keeps importing this package free

    sys.exit(run(sys.argv[1:]))
