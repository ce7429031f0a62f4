"""Chat templates, rendered once where they can do no harm, to see that they end and stay within limits."""

from __future__ import annotations

import json
from collections.abc import Sequence

from groundplane.adapters.confined.launch import demand_walls, launch
from groundplane.domain.scanning.templates_scan import Template, refusal
from groundplane.errors import Refused

_CPU_S = 2
_TIMEOUT_S = 60.0


def render_templates(path: str, templates: Sequence[Template]) -> Refused | None:
    """The first template that breaks out of the sandbox's rules, or does not end in time and memory; else None.

    All are rendered in one process; when that is killed, each is rendered alone, to name the one.
    """
    outcomes = _outcomes([template.source for template in templates])
    if outcomes is None and len(templates) > 1:
        return next((found for each in templates if (found := render_templates(path, [each]))), None)
    if outcomes is None:
        outcomes = [f"does not end within {_CPU_S} seconds of computing, or takes more memory than any prompt needs"]
    for template, outcome in zip(templates, outcomes, strict=True):
        if outcome:
            return refusal(path, template.name, outcome)
    return None


def _outcomes(sources: list[str]) -> list[str] | None:
    """What each did wrong; None when the process says nothing that can be one answer for each."""
    ended = launch("render_templates", [str(_CPU_S)], source=json.dumps(sources).encode(), timeout_s=_TIMEOUT_S)
    if ended.status != 0:
        return None
    try:
        found = json.loads(ended.output)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, dict):
        demand_walls(found.get("left"))
    told = isinstance(found, list) and len(found) == len(sources) and all(isinstance(each, str) for each in found)
    return found if told else None
