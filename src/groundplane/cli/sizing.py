"""`ground size | compare`: sums before spending."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from groundplane.cli import render
from groundplane.cli.options import connect, output_option
from groundplane.cli.render import Cell, Table, Usd, View
from groundplane.domain.sizing.memory import Method, Optimizer, Precision, gb
from groundplane.domain.sizing.roofline import duration, words
from groundplane.errors import InvalidInput
from groundplane.wire.sizing import CompareRequest, SizeRequest

if TYPE_CHECKING:
    from groundplane.domain.planning.compare import Comparison, Option
    from groundplane.domain.sizing.parallelism import Layout
    from groundplane.domain.sizing.report import SizeReport

Command = TypeVar("Command", bound=Callable[..., Any])
CONFIG_MAX_BYTES = 4 * 2**20
_PRECISIONS = click.Choice([each.value for each in Precision])
_explain_option = click.option("--explain", "explained", is_flag=True, help="Print each formula with its numbers.")


def _options(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    """Options in the order in which they are written."""

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


_model_options = _options(
    click.argument("name", default="", metavar="[MODEL]"),
    click.option("--model", default="", help="The same as MODEL: a model of the catalogue, llama-3.1-70b."),
    click.option("--config", type=click.Path(path_type=Path), help="A config.json, instead of a name."),
    click.option("--params", default="", metavar="N", help="A plain number of parameters: 7B, 350M."),
    click.option("--train", "purpose", flag_value="train", default=True, help="Size a training (the default)."),
    click.option("--serve", "purpose", flag_value="serve", help="Size one replica that serves."),
    click.option("--gpus", default="", metavar="[Nx]GPU", help="The card, and how many: a100-80gb, 8xh100."),
    click.option("--node-gpus", default=8, show_default=True, help="Cards in one node."),
    click.option("--fabric", default="ib-ndr", show_default=True, help="The link between nodes, of the catalogue."),
    click.option("--precision", type=_PRECISIONS, default="bf16", show_default=True),
    click.option("--batch", default=1, show_default=True, help="Sequences at once, on each card when training."),
    click.option("--tensor-parallel", "--tp", default=1, show_default=True, help="Cards that split each layer."),
)
_training_options = _options(
    click.option("--method", type=click.Choice([each.value for each in Method]), default="full", show_default=True),
    click.option("--optimizer", type=click.Choice([o.value for o in Optimizer]), default="adam", show_default=True),
    click.option("--seq", "sequence", default=2_048, show_default=True, help="Tokens of a training sequence."),
    click.option("--checkpointing", is_flag=True, help="Gradient checkpointing: recompute activations."),
    click.option("--master-weights", is_flag=True, help="Keep an FP32 copy of the weights."),
    click.option("--lora-rank", default=16, show_default=True),
    click.option("--lora-targets", default="q,v", show_default=True, metavar="M,M", help="The adapted matrices."),
    click.option("--zero", type=click.IntRange(0, 3), default=0, show_default=True, help="ZeRO's stage."),
    click.option("--fsdp", is_flag=True, help="The same as --zero 3."),
    click.option("--shards", default=1, show_default=True, help="Cards that share the states, or replicate them."),
    click.option("--pipeline-parallel", "--pp", default=1, show_default=True, help="Stages of layers."),
    click.option("--dataset-tokens", default=0, metavar="N", help="Tokens of the data set: gives the run's length."),
    click.option("--epochs", default=1.0, show_default=True, help="Passes over the data set."),
)
_serving_options = _options(
    click.option("--context", default=4_096, show_default=True, help="Tokens of each sequence, prompt and answer."),
    click.option("--cache-precision", type=_PRECISIONS, default="bf16", show_default=True),
    click.option("--headroom", default=0.2, show_default=True, help="Share on top, for buffers and fragmentation."),
    click.option("--prompt-tokens", default=0, help="Tokens of a prompt [the whole context]."),
)


@click.command()
@_model_options
@_training_options
@_serving_options
@_explain_option
@output_option
def size(
    name: str, config: Path | None, lora_targets: str, zero: int, fsdp: bool, explained: bool, output: str, **given: Any
) -> None:
    """Say how much memory and time a model takes, on which cards, and what would make it fit.

    ground size llama-3.1-70b --train --method lora --seq 4096 --gpus a100-80gb
    """
    if name and given["model"]:
        raise click.UsageError(f"Two models are named: {name} and {given['model']}.")
    given["model"] = name or given["model"]
    targets = tuple(target.strip() for target in lora_targets.split(",") if target.strip())
    request = _request(
        SizeRequest,
        config=_config(config) if config is not None else None,
        lora_targets=targets,
        zero=3 if fsdp else zero,
        **given,
    )
    with connect() as client:
        report = client.size(request)
    render.show(report, output, lambda: _size_views(report, explained))


@click.command()
@click.option("--rpm", "requests_per_minute", type=float, required=True, help="Requests a minute, on average.")
@click.option("--prompt-tokens", type=int, required=True, help="Prompt tokens of one request.")
@click.option("--completion-tokens", type=int, required=True, help="Completion tokens of one request.")
@click.option("--peak-factor", default=1.0, show_default=True, help="The peak, as a multiple of the average.")
@click.option("--peak-share", default=0.1, show_default=True, help="Share of the active time that is peak.")
@click.option("--hours-per-day", default=24.0, show_default=True, help="Active hours of a day.")
@click.option("--cached-share", default=0.0, show_default=True, help="Share of prompt tokens read from the cache.")
@click.option("--always-on", is_flag=True, help="Own cards stay up outside the active hours.")
@click.option("--api", "apis", multiple=True, metavar="MODEL", help="A hosted model; may be given several times.")
@click.option("--model", default="", help="An open model, on cards of one's own, and where it is hosted.")
@click.option("--precision", type=_PRECISIONS, default="bf16", show_default=True, help="Of the open model's weights.")
@click.option("--gpus", default="", metavar="GPU", help="Only this card.")
@click.option("--cloud", default="", help="Only machines of azure, aws or gcp.")
@click.option("--deployment", default="global", show_default=True, help="Of provisioned units.")
@_explain_option
@output_option
def compare(explained: bool, output: str, **given: Any) -> None:
    """Hold a hosted API, provisioned units and cards of one's own side by side, cheapest first.

    ground compare --rpm 60 --prompt-tokens 1500 --completion-tokens 300 --api azure/gpt-4o --model llama-3.3-70b
    """
    request = _request(CompareRequest, **given)
    with connect() as client:
        made = client.compare(request)
    render.show(made, output, lambda: _compare_views(made, explained))


Request = TypeVar("Request", SizeRequest, CompareRequest)


def _request(kind: type[Request], **values: Any) -> Request:
    try:
        return kind(**values)
    except ValueError as error:
        raise InvalidInput(str(error), "see --help") from None


def _config(path: Path) -> dict[str, Any]:
    """The content of a config.json. Raises InvalidInput for anything else."""
    try:
        data = path.read_bytes()[: CONFIG_MAX_BYTES + 1]
        content = json.loads(data) if len(data) <= CONFIG_MAX_BYTES else None
    except OSError as error:
        raise InvalidInput(f"{path} can't be read: {error.strerror}", "name a model's config.json") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is no JSON: {error}", "name a model's config.json") from None
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} is no config.json: it holds no object", "name a model's config.json")
    return content


# ---------------------------------------------------------------- views


def _size_views(report: SizeReport, explained: bool) -> list[View]:
    many = report.layout.cards > 1
    active = f", {report.active_params / 1e9:.4g}B active" if report.active_params != report.params else ""
    size = f"{report.params / 1e9:.4g}B parameters{active}"
    views: list[View] = [
        f"{report.model if report.model == size else f'{report.model} ({size})'}: {report.purpose}, {report.way}",
        f"layout: {report.layout.words}",
        Table(
            ("PART", "EACH CARD"),
            [
                *((line.name, gb(line.size_bytes)) for line in report.lines),
                ("total", gb(report.per_card_bytes)),
                *([(f"all {report.layout.cards} cards", gb(report.total_bytes))] if many else []),
            ],
            right=frozenset({"EACH CARD"}),
        ),
        _verdict(report),
        f"CPU memory: at least {gb(report.cpu_memory_bytes)} (2 × weights)",
    ]
    if report.estimate is not None:
        views += _time_lines(report)
    views += [f"{each.axis} over {each.link}: {each.advice}" for each in report.advice]
    if report.fixes:
        rows = [(str(number), fix.what) for number, fix in enumerate(report.fixes, 1)]
        views.append(Table(("", "WHAT WOULD HELP, LEAST INTRUSIVE FIRST"), rows))
    views += [f"note: {note}" for note in report.notes]
    if explained:
        views += ["how:", *(f"  {line}" for line in report.explain)]
    return views


def _verdict(report: SizeReport) -> str:
    if report.fits is None:
        cards = ", ".join(report.holding[:4]) or "no card of the catalogue alone"
        return f"holds it, smallest first: {cards}"
    verdict = "fits" if report.fits else "does not fit"
    text = f"{verdict} {report.card}: {gb(report.per_card_bytes)} of {gb(report.card_usable_bytes)} usable"
    if report.fits:
        return text
    smallest = report.smallest
    return f"{text}; smallest layout that fits: {_layout(smallest) if smallest else 'none found'}"


def _layout(layout: Layout) -> str:
    cards = f"{layout.cards} cards" if layout.cards > 1 else "1 card"
    nodes = f" on {layout.nodes} nodes" if layout.nodes > 1 else ""
    return f"{cards}{nodes}, {layout.words}, {gb(layout.per_card_bytes)} each"


def _time_lines(report: SizeReport) -> list[View]:
    told = report.estimate
    assert told is not None
    rate = told.tokens_per_s
    lines: list[View] = [
        f"throughput: {rate.worst:,.0f} to {rate.best:,.0f} tokens/s (expected {rate.expected:,.0f}), "
        f"bound by {told.bound}",
        f"{'step' if report.purpose == 'train' else 'time per token'}: {words(told.step)}",
    ]
    if told.first_token is not None:
        lines.append(f"time to first token: {words(told.first_token)}")
    if told.total is not None:
        lines.append(
            f"whole run: {words(told.total)} (expected {duration(told.total.expected_s)}), {told.steps:,} steps"
        )
    return lines


def _compare_views(made: Comparison, explained: bool) -> list[View]:
    columns = ("KIND", "NAME", "WHAT", "PER MONTH", "WORST", "1000 REQ", "1M TOKENS", "USED", "BREAK-EVEN", "PRICE OF")
    right = frozenset({"PER MONTH", "WORST", "1000 REQ", "1M TOKENS", "USED", "BREAK-EVEN"})
    views: list[View] = [
        f"{made.requests_per_month:,} requests and {made.tokens_per_month:,} tokens a month",
        Table(columns, [_option_row(option) for option in made.options], right=right),
        *(f"left out: {why}" for why in made.left_out),
    ]
    if explained:
        views += ["how:", *(f"  {line}" for line in made.lines)]
        views += [line for option in made.options for line in _option_lines(option)]
    return views


def _option_row(option: Option) -> tuple[Cell, ...]:
    return (
        option.kind,
        option.name,
        option.what,
        Usd(option.microusd_per_month),
        Usd(option.worst_microusd_per_month),
        Usd(option.microusd_per_1000_requests),
        Usd(option.microusd_per_million_tokens),
        _percent(option.utilisation),
        _percent(option.break_even),
        option.price_as_of,
    )


def _option_lines(option: Option) -> Sequence[str]:
    head = f"{option.kind} {option.name}, {option.what} (price of {option.price_as_of}):"
    return (head, *(f"  {line}" for line in option.lines), *(f"  note: {note}" for note in option.notes))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
