"""httpx without its own command line, whose terminal libraries are half of what importing it costs."""

from __future__ import annotations

import sys

_COMMAND_LINE = "httpx._main"

if "httpx" not in sys.modules:
    # None in place of a module makes importing it fail; httpx then goes without, as where `rich` isn't installed.
    sys.modules[_COMMAND_LINE] = None  # type: ignore[assignment]

import httpx  # noqa: E402 - what stands above is for this line

if sys.modules.get(_COMMAND_LINE, httpx) is None:
    del sys.modules[_COMMAND_LINE]

__all__ = ["httpx"]
