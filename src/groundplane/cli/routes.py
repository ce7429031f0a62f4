"""`ground providers` and `ground routes`: hosted models next to our own endpoints, and which name leads where."""

from __future__ import annotations

from typing import Any

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Table
from groundplane.domain.provider import Provider, ProviderKind, RouteRule, RouteTarget
from groundplane.domain.routing import RoutePolicy
from groundplane.errors import InvalidInput, Unavailable
from groundplane.units import parse_duration_s, parse_usd
from groundplane.wire.routes import ProviderRequest, RouteRequest, TargetRequest

_reason = click.option("--reason", default="", help="Why: written to the audit trail.")
_project = click.option("--project", required=True)


@click.group()
def providers() -> None:
    """Ask hosted providers for models, with a key that stays in the gateway's hands."""


@providers.command("add")
@click.argument("name")
@_project
@click.option("--kind", type=click.Choice([one.value for one in ProviderKind]), required=True)
@click.option("--url", default="", help="Its address; OpenAI's and Anthropic's are known.")
@click.option("--api-version", default="", help="Azure OpenAI's, like 2024-10-21.")
@click.option("--region", default="", help="Where its quota is: another region is asked when this one is short.")
@click.option("--private", is_flag=True, help="Its address may be in your own network, and plain HTTP.")
@click.option("--key-file", type=click.File("r"), help="File with its key; - reads it from a pipe.")
@_reason
@output_option
def add_provider(name: str, project: str, kind: str, url: str, output: str, **more: Any) -> None:
    """Add or change a provider. Without --key-file the key given before stays."""
    key_file = more["key_file"]
    request = ProviderRequest(
        project=project,
        name=name,
        kind=ProviderKind(kind),
        base_url=url,
        api_version=more["api_version"],
        region=more["region"],
        private=more["private"],
        key="" if key_file is None else key_file.read(4096).strip(),
        reason=more["reason"],
    )
    with connect() as client:
        made = client.set_provider(request)
    render.show(made, output, lambda: [_providers_table([made])])


@providers.command("list")
@click.option("--project", help="Of one project.")
@output_option
def list_providers(project: str | None, output: str) -> None:
    """List providers; their keys are not shown anywhere."""
    with connect() as client:
        found = client.providers(project)
    render.show(found, output, lambda: [_providers_table(found)])


@providers.command("test")
@click.argument("name")
@_project
@output_option
def test_provider(name: str, project: str, output: str) -> None:
    """Ask a provider for its models, which shows whether its address, certificate and key are good."""
    with connect() as client:
        check = client.test_provider(project, name)
    if not check.ok:
        raise Unavailable(f"provider {name}: {check.said}", f"ground providers add {name} --project {project} …")
    models = "" if check.models is None else f", {check.models} models"
    render.show(check, output, lambda: [f"provider {name} answers in {check.took_ms} ms{models}"])


@providers.command("remove")
@click.argument("name")
@_project
@_reason
@output_option
def remove_provider(name: str, project: str, reason: str, output: str) -> None:
    """Forget a provider and its key."""
    with connect() as client:
        gone = client.remove_provider(project, name, reason)
    render.show(gone, output, lambda: [f"provider {gone.name} is forgotten, and its key"])


@click.group()
def routes() -> None:
    """Say which endpoints and providers a model name leads to, and how one of them is chosen."""


@routes.command("set")
@click.argument("model")
@_project
@click.option(
    "--target",
    "targets",
    multiple=True,
    required=True,
    metavar="TARGET",
    help="endpoint:NAME or provider:NAME/MODEL, then ,weight=3 ,order=1 and dollars per million tokens: "
    ",prompt=2.50 ,completion=10 ,cached=1.25; ,max_output=16384 is the longest answer. Lower orders are asked first. "
    "May be repeated.",
)
@click.option(
    "--policy",
    type=click.Choice([one.value for one in RoutePolicy]),
    default=RoutePolicy.WEIGHTED.value,
    show_default=True,
)
@click.option("--sticky", is_flag=True, help="Requests with the same x-session-id go to the same target.")
@click.option("--hedge", help="Ask a second target after this long without an answer, like 2s.")
@_reason
@output_option
def set_route(model: str, project: str, targets: tuple[str, ...], policy: str, output: str, **more: Any) -> None:
    """Set where a model name leads; all of the route is replaced."""
    request = RouteRequest(
        project=project,
        model=model,
        targets=tuple(parse_target(text) for text in targets),
        policy=RoutePolicy(policy),
        sticky=more["sticky"],
        hedge_ms=None if more["hedge"] is None else _milliseconds(more["hedge"]),
        reason=more["reason"],
    )
    with connect() as client:
        made = client.set_route(request)
    render.show(made, output, lambda: [_routes_table([made])])


@routes.command("list")
@click.option("--project", help="Of one project.")
@output_option
def list_routes(project: str | None, output: str) -> None:
    """List routes; an endpoint without one is reached by its own name."""
    with connect() as client:
        found = client.routes(project)
    render.show(found, output, lambda: [_routes_table(found)])


@routes.command("remove")
@click.argument("model")
@_project
@_reason
@output_option
def remove_route(model: str, project: str, reason: str, output: str) -> None:
    """Take a route away."""
    with connect() as client:
        gone = client.remove_route(project, model, reason)
    render.show(gone, output, lambda: [f"route {gone.model} of project {gone.project} is gone"])


def parse_target(text: str) -> TargetRequest:
    """`provider:azure/gpt-4o,weight=3,order=1,prompt=2.50,completion=10` in words of the API."""
    place, *options = text.split(",")
    scheme, _, name = place.partition(":")
    values: dict[str, Any] = {}
    if scheme == "endpoint" and name:
        values["endpoint"] = name
    elif scheme == "provider" and name:
        values["provider"], _, values["model"] = name.partition("/")
    else:
        raise InvalidInput(f"{text[:100]!r} is no target", "endpoint:NAME or provider:NAME/MODEL")
    for option in options:
        key, _, value = option.partition("=")
        try:
            if key in {"weight", "order"}:
                values[key] = int(value)
            elif key == "max_output":
                values["max_output_tokens"] = int(value)
            elif key in {"prompt", "completion", "cached"}:
                values[f"{key}_microusd_per_million"] = parse_usd(value)
            else:
                raise ValueError
        except ValueError:
            hint = "weight=3, order=1, prompt=2.50, completion=10, cached=1.25, max_output=16384"
            raise InvalidInput(f"{option[:60]!r} of target {place[:60]} can't be understood", hint) from None
    return TargetRequest(**values)


def _milliseconds(text: str) -> int:
    try:
        return int(text.removesuffix("ms")) if text.endswith("ms") else parse_duration_s(text) * 1000
    except ValueError:
        raise InvalidInput(f"{text[:40]!r} is no time to hedge after", "like 200ms or 2s") from None


def _providers_table(found: list[Provider]) -> Table:
    rows = [(one.name, one.project, one.kind.value, one.base_url, one.region, one.set_by) for one in found]
    return Table(("PROVIDER", "PROJECT", "KIND", "ADDRESS", "REGION", "SET BY"), rows)


def _routes_table(found: list[RouteRule]) -> Table:
    rows = [
        (rule.model, rule.project, rule.policy.value, str(one.order), str(one.weight), _place(one))
        for rule in found
        for one in sorted(rule.targets, key=lambda one: one.order)
    ]
    return Table(
        ("MODEL", "PROJECT", "POLICY", "ORDER", "WEIGHT", "TARGET"), rows, right=frozenset({"ORDER", "WEIGHT"})
    )


def _place(target: RouteTarget) -> str:
    return f"endpoint:{target.endpoint}" if target.endpoint else f"provider:{target.provider}/{target.model}"
