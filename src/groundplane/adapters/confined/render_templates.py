"""A program of its own: renders chat templates that nobody has vouched for, in Jinja's sandbox, within limits.

Standard input: a JSON list of sources. Standard output: a JSON list, one text each: empty when it rendered (or refused
the sample messages by its own raise_exception), else what it did. It is killed when it goes over a limit.
"""

from __future__ import annotations

import json
import linecache  # noqa: F401 - what errors load when they come: later no file can be opened
import sys
import traceback  # noqa: F401
from typing import Any

import jinja2.debug  # noqa: F401
from jinja2 import TemplateError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from groundplane.adapters.confined.confine import confine
from groundplane.domain.scanning.templates_scan import environment

OUTPUT_MAX = 1_000_000
_MESSAGES = [
    {"role": "system", "content": "You are kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "How are you?"},
]
_TOOL = {"type": "function", "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}}}
_CASES: tuple[dict[str, Any], ...] = (
    {"messages": _MESSAGES, "add_generation_prompt": True},
    {"messages": _MESSAGES[1:], "add_generation_prompt": False},
    {"messages": _MESSAGES[1:2], "add_generation_prompt": True, "tools": [_TOOL], "documents": []},
    {"messages": []},
)


class Declined(Exception):
    """The template says that it does not take these messages."""


def _decline(message: str = "") -> None:
    raise Declined(message)


def render(environment: ImmutableSandboxedEnvironment, source: str) -> str:
    """What the template did wrong, or nothing."""
    try:
        template = environment.from_string(source)
    except TemplateError as error:
        return f"can't be compiled: {type(error).__name__}"
    helpers = {
        "raise_exception": _decline,
        "strftime_now": lambda _: "2026-01-01",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    for case in _CASES:
        written = 0
        try:
            for part in template.generate(**helpers, **case):
                written += len(part)
                if written > OUTPUT_MAX:
                    return f"writes more than {OUTPUT_MAX:,} characters for four short messages"
        except SecurityError as error:
            return f"is stopped by the sandbox: {str(error)[:120]}"
        except (MemoryError, OverflowError):
            return "asks for more memory, or a larger range, than any prompt needs"
        except RecursionError:
            return "calls itself without end"
        except (Declined, TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError):
            # It does not take these messages; that is its right.
            continue
    return ""


def main() -> None:
    made = environment()
    render(made, "{{ messages[9].content.x }}")
    render(made, "{% raise %}")
    render(made, "{{ messages | tojson }}{{ strftime_now('%d') }}{% for m in messages %}{{ m.role }}{% endfor %}")
    sources = json.load(sys.stdin)
    confined = confine(memory_bytes=768 * 2**20, cpu_s=int(sys.argv[1]), file_bytes=0)
    if confined.left:
        json.dump({"left": confined.left}, sys.stdout)
        return
    json.dump([render(made, source) for source in sources], sys.stdout)


if __name__ == "__main__":
    main()
