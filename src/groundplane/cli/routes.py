"""`ground providers` and `ground routes`: hosted models next to our own endpoints, and which name leads where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, connect, output_option
from groundplane.cli.render import Table, Usd
from groundplane.domain.serving.provider import Provider, ProviderKind, RouteRule, RouteTarget
from groundplane.domain.serving.queueing import Priority, QueueStanding
from groundplane.domain.serving.routing import RoutePolicy
from groundplane.errors import InvalidInput, Unavailable
from groundplane.units import exact_usd, parse_duration_s, parse_usd
from groundplane.wire.routes import (
    PRICES,
    CacheRequest,
    KeyPriorityRequest,
    ProviderRequest,
    QueueRequest,
    RouteRequest,
    TargetRequest,
)

if TYPE_CHECKING:
    from groundplane.domain.serving.prompt_lint import PromptFinding

_reason = click.option("--reason", default="", help="Why: written to the audit trail.")
_project = click.option("--project", required=True)
_TOKENS = frozenset({"max_output", "context", "long_above"})
_PRIORITY = click.Choice([one.value for one in Priority])


@click.group(cls=Listing)
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


@click.group(cls=Listing)
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
    ",prompt=2.50 ,completion=10 ,cached=1.25 ,written=3.125 (read from and written to a prompt cache); "
    ",written_1h= for an hour, ,audio_prompt= ,audio_completion= of sound, ,long_prompt= ,long_completion= where the "
    "prompt has more than ,long_above= tokens; ,max_output=16384 is the longest answer, ,context=128000 the longest "
    "prompt. What is not named is the catalogue's for that model, or for the row named: ,like=azure/gpt-4o. Lower "
    "orders are asked first. May be repeated.",
)
@click.option(
    "--policy",
    type=click.Choice([one.value for one in RoutePolicy]),
    default=RoutePolicy.WEIGHTED.value,
    show_default=True,
)
@click.option("--sticky", is_flag=True, help="Requests with the same x-session-id go to the same target.")
@click.option("--hedge", help="Ask a second target after this long without an answer, like 2s.")
@click.option("--queue-size", type=click.IntRange(0), help="Most requests that wait for what is full.  [100]")
@click.option("--queue-wait", help="Longest that one waits, like 20s.  [30s]")
@click.option("--queue-priority", type=_PRIORITY, help="What requests have, and the most they may ask for.  [normal]")
@click.option("--queue-key", "queue_keys", multiple=True, metavar="KEY=PRIORITY", help="The same, for one key.")
@click.option("--queue-weight", type=click.IntRange(1), help="The project's part of replicas it shares.  [1]")
@click.option("--concurrency-max", type=click.IntRange(1), help="Adapt what a replica is sent at once, up to this.")
@click.option("--cache", help="Keep answers that can only be one, this long, like 10m.")
@click.option("--cache-sampled", is_flag=True, help="Keep also answers of requests that ask for chance.")
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
        queue=_queue(more),
        cache=_cache(more["cache"], sampled=more["cache_sampled"]),
        reason=more["reason"],
    )
    with connect() as client:
        made = client.set_route(request)
    render.show(made, output, lambda: [_routes_table([made]), *_listed(made)])


@routes.command("list")
@click.option("--project", help="Of one project.")
@output_option
def list_routes(project: str | None, output: str) -> None:
    """List routes; an endpoint without one is reached by its own name."""
    with connect() as client:
        found = client.routes(project)
    render.show(found, output, lambda: [_routes_table(found)])


@routes.command("queue")
@click.option("--project", help="Of one project.")
@output_option
def show_queue(project: str | None, output: str) -> None:
    """Show what waits at the gateway, what replicas are sent, and who retries too soon."""
    with connect() as client:
        found = client.queue_standing(project)
    render.show(found, output, lambda: [_queues_table(found), _replicas_table(found), _storms_table(found)])


@routes.command("lint")
@click.option("--project", help="Of one project.")
@output_option
def lint(project: str | None, output: str) -> None:
    """Show prompts in an order that providers' caches can't use, and what another order saves."""
    with connect() as client:
        found = client.prompt_findings(project)
    render.show(found, output, lambda: [_findings_table(found)])


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
            elif key == "like" and value:
                values[key] = value
            elif key in {"max_output", "context"}:
                values[f"{key}_tokens"] = int(value)
            elif key == "long_above":
                values["long_above_tokens"] = int(value)
            elif key in PRICES:
                values[f"{key}_microusd_per_million"] = parse_usd(value)
            else:
                raise ValueError
        except ValueError:
            hint = "weight=3, order=1, prompt=2.5, completion=10, cached=1, written=3, max_output=16384, context=128000"
            hint += ", like=azure/gpt-4o, written_1h=5, audio_prompt=40, audio_completion=80, long_above=272000, "
            hint += "long_prompt=5, long_completion=15"
            raise InvalidInput(f"{option[:60]!r} of target {place[:60]} can't be understood", hint) from None
    return TargetRequest(**values)


def _milliseconds(text: str, what: str = "time to hedge after") -> int:
    try:
        return int(text.removesuffix("ms")) if text.endswith("ms") else parse_duration_s(text) * 1000
    except ValueError:
        raise InvalidInput(f"{text[:40]!r} is no {what}", "like 200ms or 2s") from None


def _queue(given: dict[str, Any]) -> QueueRequest | None:
    """None where none of its options is given: then nothing waits."""
    values = {
        name: given[option]
        for name, option in (("size", "queue_size"), ("weight", "queue_weight"), ("concurrency_max", "concurrency_max"))
        if given[option] is not None
    }
    if given["queue_wait"] is not None:
        values["wait_ms"] = _milliseconds(given["queue_wait"], "time to wait")
    if given["queue_priority"] is not None:
        values["priority"] = Priority(given["queue_priority"])
    if given["queue_keys"]:
        values["keys"] = tuple(_key_priority(text) for text in given["queue_keys"])
    return QueueRequest(**values) if values else None


def _key_priority(text: str) -> KeyPriorityRequest:
    key_id, _, word = text.rpartition("=")
    try:
        return KeyPriorityRequest(key_id=key_id, priority=Priority(word))
    except ValueError:
        raise InvalidInput(f"{text[:80]!r} is no key with a priority", "--queue-key KEY=high, normal or low") from None


def _cache(ttl: str | None, *, sampled: bool) -> CacheRequest | None:
    if ttl is None:
        if sampled:
            raise InvalidInput("--cache-sampled needs --cache", "--cache 10m --cache-sampled")
        return None
    try:
        return CacheRequest(ttl_s=parse_duration_s(ttl), sampled=sampled)
    except ValueError:
        raise InvalidInput(f"{ttl[:40]!r} is no time to keep answers", "like 10m or 1h") from None


def _providers_table(found: list[Provider]) -> Table:
    rows = [(one.name, one.project, one.kind.value, one.base_url, one.region, one.set_by) for one in found]
    empty = "no hosted providers; ground providers add --help"
    return Table(("PROVIDER", "PROJECT", "KIND", "ADDRESS", "REGION", "SET BY"), rows, empty=empty)


def _routes_table(found: list[RouteRule]) -> Table:
    rows = [
        (rule.model, rule.project, rule.policy.value, str(one.order), str(one.weight), _place(one), _manners(rule))
        for rule in found
        for one in sorted(rule.targets, key=lambda one: one.order)
    ]
    columns = ("MODEL", "PROJECT", "POLICY", "ORDER", "WEIGHT", "TARGET", "WAITS, KEEPS")
    empty = "no routes: each endpoint is reached by its own name; ground routes set --help"
    return Table(columns, rows, right=frozenset({"ORDER", "WEIGHT"}), empty=empty)


def _listed(rule: RouteRule) -> list[str]:
    """What the catalogue filled in, in the words of `--target`, and from which of its rows."""
    said = []
    for one in rule.targets:
        listed = one.listed
        if listed is None:
            continue
        figures = [
            f"{name} {value:,} tokens" if name in _TOKENS else f"{name} {exact_usd(value)}"
            for name, value in one.taken.items()
        ]
        if figures:
            row = f"{listed.row} of {listed.as_of}"
            said.append(f"{_place(one)} has from the catalogue's row {row}, per million tokens: {', '.join(figures)}")
        if listed.long_above_tokens is not None:
            longer = f"{_place(one)} costs more above {listed.long_above_tokens:,} tokens of prompt by {listed.row}"
            said.append(f"{longer}: not charged beside a price of your own without long_above= and its prices")
    return said


def _manners(rule: RouteRule) -> str:
    queue, cache = rule.queue, rule.cache
    said = [] if queue is None else [f"queue {queue.size} for {queue.wait_ms / 1000:g} s"]
    if queue is not None and queue.concurrency_max is not None:
        said.append(f"up to {queue.concurrency_max} at once")
    if cache is not None:
        said.append(f"answers {cache.ttl_s} s")
    return ", ".join(said) or "-"


def _queues_table(found: QueueStanding) -> Table:
    rows = [
        (
            one.model,
            one.project,
            str(one.waiting),
            str(one.size),
            " ".join(f"{name}:{count}" for name, count in one.by_priority.items() if count) or "-",
            f"{one.longest_wait_ms / 1000:.1f} s" if one.waiting else "-",
        )
        for one in found.queues
    ]
    empty = "no gateway tells" if not found.workers else "no route has a queue"
    columns = ("MODEL", "PROJECT", "WAITING", "OF", "PRIORITIES", "LONGEST")
    return Table(columns, rows, right=frozenset({"WAITING", "OF", "LONGEST"}), empty=empty)


def _replicas_table(found: QueueStanding) -> Table:
    rows = [
        (one.target, one.model, one.project, str(one.in_flight), str(one.limit), str(one.most))
        for one in found.replicas
    ]
    columns = ("REPLICA", "MODEL", "PROJECT", "IN FLIGHT", "NOW AT MOST", "EVER AT MOST")
    empty = "no replica's concurrency is adapted"
    return Table(columns, rows, right=frozenset(columns[3:]), empty=empty, title="Replicas")


def _storms_table(found: QueueStanding) -> Table:
    rows = [(one.key_id, one.project, str(one.early), str(one.repeated), str(one.read_late)) for one in found.storms]
    columns = ("KEY", "PROJECT", "TOO SOON", "SAME BODY", "READ LATE")
    empty = "nobody retries too soon"
    return Table(columns, rows, right=frozenset(columns[2:]), empty=empty, title="Retry storms, last minute")


def _findings_table(found: list[PromptFinding]) -> Table:
    rows = [
        (
            one.model,
            one.project,
            one.key_id,
            one.place,
            f"{one.changing_tokens:,}",
            f"{one.static_tokens:,}",
            f"{one.common_percent}%",
            f"{one.saved_tokens_per_1000_requests:,}",
            Usd(one.saved_microusd_per_1000_requests, exact=True),
        )
        for one in found
    ]
    columns = ("MODEL", "PROJECT", "KEY", "MOVE BEHIND", "CHANGES", "STATIC", "OF", "TOKENS/1000 REQ", "SAVES/1000 REQ")
    empty = "no prompt is in an order that costs (each key needs 8 samples)"
    return Table(columns, rows, right=frozenset(columns[4:]), empty=empty)


def _place(target: RouteTarget) -> str:
    return f"endpoint:{target.endpoint}" if target.endpoint else f"provider:{target.provider}/{target.model}"
