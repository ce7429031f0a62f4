"""docs/reference/spec.md: the dialect as a page, made from the parser's own table."""

from __future__ import annotations

from groundplane.domain.spec.field import BATCH, DEV, ENDPOINT, EVALUATION, JOB
from groundplane.domain.spec.fields import NOT_FOR_DEV, dev_fields, fields_of
from groundplane.domain.spec.inference_fields import ALSO


def reference() -> str:
    """docs/reference/spec.md."""
    lines = [
        "# Spec reference",
        "",
        "Generated from the parser's own table (`src/groundplane/domain/spec/fields.py`); a test keeps them equal.",
        "A file holds one or more YAML documents, separated by `---`. Sizes are written like `512MB` or `16GiB`,",
        "durations like `90s`, `30m`, `1h30m` or `2d`, money like `$12.50`.",
    ]
    for kind in (JOB, ENDPOINT):
        lines += ["", f"## {kind}", "", "| field | takes | default | meaning |", "|---|---|---|---|"]
        for path, field in fields_of(kind).items():
            default = f"**required**, like `{field.example}`" if field.required else field.default
            lines.append(f"| `{path}` | {field.takes} | {default} | {field.meaning} |")
    lines += ["", f"## {DEV}", "", "A dev environment: every field of a Job without "]
    lines[-1] += ", ".join(f"`{name}`" for name in NOT_FOR_DEV) + "; `idle_limit` is `1h` when left out. And:"
    lines += ["", "| field | takes | default | meaning |", "|---|---|---|---|"]
    lines += [f"| `{each.path}` | {each.takes} | {each.default} | {each.meaning} |" for each in dev_fields()]
    lines += _special(EVALUATION, "Rows put to a model, and judged. Besides these, as for a Job: ")
    lines += _special(BATCH, "Rows put to a model, and answered. Besides these, as for a Job: ")
    lines += [
        "",
        "## Limits",
        "",
        "A file has at most 1 MiB, 64 documents, 32 levels, 64 aliases and 20,000 keys and values. Merge keys",
        "(`<<`) and custom tags are refused, and so is a field written twice. Values that YAML 1.1 would turn into",
        "something else (`yes`, `1.10`, `2026-12-01`) must be quoted where text is expected; numbers in `command`",
        "are taken as written.",
    ]
    return "\n".join(lines) + "\n"


def _special(kind: str, words: str) -> list[str]:
    shared = ("metadata", "spec.resources", "spec.end_date", "spec.max_cost")
    also = ", ".join(f"`{name}`" for name in (*ALSO, "metadata", "resources", "end_date", "max_cost"))
    lines = ["", f"## {kind}", "", f"{words}{also}.", "", "| field | takes | default | meaning |", "|---|---|---|---|"]
    for path, field in fields_of(kind).items():
        if "." not in path or path.startswith(shared) or path.split(".")[1] in ALSO:
            continue
        default = f"**required**, like `{field.example}`" if field.required else field.default
        lines.append(f"| `{path}` | {field.takes} | {default} | {field.meaning} |")
    return lines
