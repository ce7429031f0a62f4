"""Writes docs/reference/*.md from the code. `make docs` runs it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from groundplane import errors
from groundplane.api.access import OPEN_ROUTES, requirement_of
from groundplane.api.app import ROUTERS, create_app
from groundplane.cli.following import UNSUCCESSFUL_CODE
from groundplane.cli.options import INTERRUPTED_CODE
from groundplane.cli.root import COMMANDS, ground
from groundplane.domain.policy import rule_set
from groundplane.domain.spec import reference as spec_reference
from groundplane.errors import GroundError
from groundplane.identity import ROLE_PERMISSIONS, Permission, Role
from groundplane.settings import Settings, shown

REFERENCE = Path(__file__).parent / "reference"
MADE = "<!-- Made by docs/make_reference.py from the code; change it there. -->\n"


def settings_page() -> str:
    """Every setting of `settings.py`."""
    rows = [
        (
            f"`{item.metadata['variable']}`",
            f"`{shown(item.name, item.default)}`" if item.default != "" else "",
            item.metadata["meaning"],
        )
        for item in dataclasses.fields(Settings)
    ]
    return f"""# Settings

{MADE}
Each is an environment variable, read once when a process starts. `ground settings` shows them as they stand, and where
each value comes from. Durations are written like `90s` or `1h30m`, sizes like `512MB` or `16GiB`, money like `$12.50`.
A variable whose name is nearly that of a setting is refused, so that a misspelt one is not silently ignored.

{_table(("setting", "default", "meaning"), rows)}
"""


def cli_page() -> str:
    """Every command with its help, as `ground COMMAND --help` prints it."""
    summaries = [(f"[`ground {name}`](#ground-{name})", words) for name, (_, words) in COMMANDS.items()]
    parts = [
        f"""# The `ground` command

{MADE}
Results go to standard output, everything said about them to standard error. Every command that reads takes
`-o table|json|yaml`; `json` and `yaml` are exact: money in micro-dollars, times in UTC, sizes in bytes. Exit codes:
[errors.md](errors.md).

{_table(("command", "what it does"), summaries)}
"""
    ]
    for path, context in _commands(ground):
        if path != "ground":
            parts.append(f"## `{path}`\n\n```text\n{_help(context)}\n```\n")
    return "\n".join(parts)


def errors_page() -> str:
    """The error tree, and every exit code."""
    rows = [
        (f"`{kind.code}`", str(kind.exit_code), str(kind.http_status), _meaning(kind)) for kind in _kinds(GroundError)
    ]
    by_exit: dict[int, list[str]] = {}
    for kind in _kinds(GroundError):
        by_exit.setdefault(kind.exit_code, []).append(f"`{kind.code}`")
    exits = [
        ("0", "it worked; with `--wait`, the run succeeded or the endpoint is ready"),
        *((str(code), ", ".join(dict.fromkeys(codes))) for code, codes in sorted(by_exit.items())),
        (str(UNSUCCESSFUL_CODE), "what was followed with `--wait` failed, was stopped, or did not become ready"),
        (str(INTERRUPTED_CODE), "interrupted with Ctrl-C, or answered no"),
    ]
    return f"""# Errors and exit codes

{MADE}
An error is one line that says what is wrong with the number that broke the rule, and a hint that says the way forward:

```text
error: max-cost: needs at most $0.01, has $0.05
hint: raise spec.max_cost to $0.05, or shorten spec.max_duration
```

The API answers every error in one shape; `code` is stable, `problems` names each fault of an input with its line,
`refusals` each rule that said no, and `request_id` finds the request in `log/control-plane.log`:

```json
{{"error": {{"code": "refused", "message": "…", "hint": "…", "problems": [], "request_id": "req-…",
  "refusals": [{{"rule": "…", "need": "…", "have": "…", "hint": "…"}}]}}}}
```

## Codes

{_table(("code", "exit", "HTTP", "meaning"), rows)}

## Exit codes of `ground`

{_table(("exit", "meaning"), exits)}
"""


def api_page() -> str:
    """Every route, with the permission it asks for and the roles that have it."""
    document = create_app(None).openapi()
    needs = {
        (method, getattr(route, "path_format", "")): requirement_of(route)
        for router in ROUTERS
        for route in router.routes
        for method in sorted(getattr(route, "methods", ()))
    }
    rows = []
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            need = needs[(verb.upper(), path)]
            asked = (
                "nothing"
                if path in OPEN_ROUTES
                else (f"`{need.permission}`" if need and need.permission else "any key")
            )
            rows.append((f"`{verb.upper()} {path}`", f"`{operation['operationId']}`", asked, _summary(operation)))
    roles = [
        (f"`{permission}`", ", ".join(role.value for role in Role if permission in ROLE_PERMISSIONS[role]))
        for permission in Permission
    ]
    open_rows = [(f"`{path}`", why) for path, why in OPEN_ROUTES.items()]
    return f"""# The API

{MADE}
The control plane speaks JSON over HTTP on `http://127.0.0.1:4700` unless told otherwise. Send a key as
`Authorization: Bearer gp-…`. The whole document, with every shape, is at `/openapi.json`;
`groundplane.client.Client` has one typed method per route. Money is integer micro-dollars, times are RFC 3339 in UTC.
Errors: [errors.md](errors.md).

A body over the limit (`GROUND_REQUEST_LIMIT`) is answered 413 before it is read; models are uploaded file by file with
`PUT /v1/uploads/…` and then registered. `POST …/apply` takes an `Idempotency-Key`: the same key gives the run
that it gave the first time. `GET /v1/runs/{{run_id}}/log` answers raw bytes, with
`X-Ground-Next-Offset`, `X-Ground-Complete` and `X-Ground-Attempt`.

`X-Request-ID` is answered on every request, the caller's own when it sent one.

`/metrics` is Prometheus' text format and needs a key with `system:read`, on loopback too: a scraper sends a viewer key
with `authorization: {{credentials_file: …}}`.

## Routes

{_table(("route", "operation", "needs", "what it does"), rows)}

## Open routes

{_table(("route", "why no key"), open_rows)}

## Permissions

{_table(("permission", "roles"), roles)}
"""


PAGES = {"settings.md": settings_page, "cli.md": cli_page, "api.md": api_page, "errors.md": errors_page}


def main() -> None:
    REFERENCE.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page(), encoding="utf-8")
    # These two hold themselves against their pages in the tests of what they describe.
    (REFERENCE / "policy.md").write_text(rule_set.reference(), encoding="utf-8")
    (REFERENCE / "spec.md").write_text(spec_reference.reference(), encoding="utf-8")


def _commands(
    command: click.Command, path: str = "ground", parent: click.Context | None = None
) -> Iterator[tuple[str, click.Context]]:
    context = click.Context(
        command,
        help_option_names=["-h", "--help"],
        info_name=path.rpartition(" ")[2],
        parent=parent,
        max_content_width=100,
        terminal_width=100,
    )
    yield path, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _commands(child, f"{path} {name}", context)


def _help(context: click.Context) -> str:
    lines = context.command.get_help(context).splitlines()
    return "\n".join(line.rstrip() for line in lines)


def _kinds(root: type[GroundError]) -> list[type[GroundError]]:
    """The tree's classes that have a code of their own, root first."""
    found = [root]
    for child in root.__subclasses__():
        if child.__module__ == root.__module__:
            found += _kinds(child)
    return found


def _meaning(kind: type[GroundError]) -> str:
    """From the drawing at the top of errors.py, where every class has its line."""
    match = re.search(
        rf"[├└]── {kind.__name__}\s+(.*?)\s*(?:exit \d+.*|HTTP \d+.*)?$", errors.__doc__ or "", re.MULTILINE
    )
    if kind is GroundError:
        return "a defect of ours; the log says more"
    return match[1] if match and match[1] else "see the ones below"


def _summary(operation: dict[str, Any]) -> str:
    words = operation.get("description") or operation["summary"]
    return " ".join(words.split())


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
