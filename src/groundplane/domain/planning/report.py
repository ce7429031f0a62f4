"""A plan as people read it: its choices as rows, what it rests on as sentences, and all of it as Markdown.

The command line, the console and the API show the same words and figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from groundplane.domain.planning.outlook import BudgetImpact, Choice, Outlook
from groundplane.domain.planning.plan import Plan, PlanStatus, Verdict
from groundplane.units import format_bytes, format_count, format_duration, format_usd, usd_decimals

CHOICE_HEADINGS = (
    "WHERE", "MACHINE", "BOUGHT", "NODES", "ACCELERATORS", "$/H", "HOURS", "EXPECTED", "WORST CASE", "QUOTA",
    "LEAD",
)  # fmt: skip
RIGHT = frozenset({"NODES", "$/H", "HOURS", "EXPECTED", "WORST CASE"})

NAMED = 2
"""So many machines are named before the rest are counted."""

WORTH_CHOOSING_MICROUSD = 1_000_000
"""What work may cost at worst before its choices are laid out unasked."""

Section = tuple[str, tuple[str, ...]]
"""A title and its sentences."""


def choice_rows(choices: Sequence[Choice]) -> list[tuple[str, ...]]:
    """Choices under `CHOICE_HEADINGS`. `*` marks the chosen one, `stale` a price too old to be trusted."""
    decimals = (
        usd_decimals((each.price_microusd_per_hour for each in choices), exact=True),
        usd_decimals((each.expected_microusd for each in choices), rough=True),
        usd_decimals((each.worst_case_microusd for each in choices), rough=True),
    )
    return [_choice_row(each, *decimals) for each in choices]


def _choice_row(choice: Choice, of_price: int, of_expected: int, of_worst: int) -> tuple[str, ...]:
    cards = f"{choice.accelerators:g} × {choice.accelerator}" if choice.accelerators else "-"
    price = format_usd(choice.price_microusd_per_hour, of_price) + (" stale" if choice.price_stale else "")
    return (
        _where(choice),
        choice.node_type,
        str(choice.purchase),
        str(choice.nodes),
        cards,
        price,
        f"{choice.hours:,.2f}",
        format_usd(choice.expected_microusd, of_expected),
        format_usd(choice.worst_case_microusd, of_worst),
        choice.quota or "-",
        _lead(choice),
    )


def _where(choice: Choice) -> str:
    place = ("* " if choice.chosen else "") + choice.place
    return place + (" SIMULATED" if choice.simulated else "") + ("" if choice.fits else ", refused")


def fitting(outlook: Outlook) -> tuple[Choice, ...]:
    """What fits, cheapest first; then the chosen one where something stands in its way."""
    refused = (each for each in outlook.choices if each.chosen and not each.fits)
    return (*(each for each in outlook.choices if each.fits), *refused)


def elsewhere(plan: Plan) -> str:
    """One line in place of the choices, where choosing is not worth a page: small work that may begin as planned."""
    outlook, offer = plan.outlook, plan.offer
    if outlook is None or offer is None or plan.status is not PlanStatus.READY:
        return ""
    if plan.worst_case_microusd >= WORTH_CHOOSING_MICROUSD or offer.accelerators:
        return ""
    others = [each for each in fitting(outlook) if not each.chosen]
    if not others:
        return "nothing else fits"
    least = others[0]
    return (
        f"the cheapest of {len(others)} other ways: {format_usd(least.expected_microusd)} expected"
        f" ({least.place}, {least.node_type}, {least.purchase})"
    )


def misfits(plan: Plan) -> tuple[tuple[str, str, str, str], ...]:
    """(where, machine, bought, why not) of each choice that does not fit, and of what has no price."""
    if plan.outlook is None:
        return ()
    found = [
        (each.place, each.node_type, str(each.purchase), "; ".join(map(str, each.reasons)))
        for each in plan.outlook.choices
        if not each.fits
    ]
    unpriced = [each for each in plan.rejected if each.reasons[0].rule == "price"]
    return (*found, *((f"pool {each.pool}", each.node_type, "-", str(each.reasons[0])) for each in unpriced))


def notes(outlook: Outlook) -> tuple[str, ...]:
    """What the shown choices note: re-work, terms, layouts."""
    told: dict[str, list[str]] = {}
    for each in fitting(outlook):
        for note in each.notes:
            told.setdefault(note, []).append(f"{each.node_type} {each.purchase}")
    return tuple(
        f"{', '.join(names[:NAMED])}{f' and {len(names) - NAMED} more' if len(names) > NAMED else ''}: {note}"
        for note, names in told.items()
    )


def money(plan: Plan) -> tuple[str, ...]:
    """Expected and worst case, an idle weekend, and the budget."""
    outlook = plan.outlook
    if outlook is None or plan.offer is None:
        return ()
    lines = [
        f"expected {format_usd(outlook.expected_microusd)}, at worst {format_usd(outlook.worst_case_microusd)}",
        f"one idle weekend, Friday evening to Monday morning: {outlook.idle_weekend}",
    ]
    return (*lines, budget_line(outlook.budget)) if outlook.budget is not None else tuple(lines)


def budget_line(impact: BudgetImpact) -> str:
    """`2026-11: $20.00 of $20.00 left, $15.68 after it (21.6 % of the month)`."""
    return (
        f"{impact.period}: {format_usd(impact.left_before_microusd)} of {format_usd(impact.limit_microusd)} left,"
        f" {format_usd(impact.left_after_microusd)} after it ({impact.percent_of_limit:g} % of the month)"
    )


def sections(plan: Plan) -> tuple[Section, ...]:
    """Everything an outlook says in sentences; empty ones are left out."""
    outlook = plan.outlook
    if outlook is None:
        return ()
    every = (
        ("money", money(plan)),
        ("memory", outlook.memory),
        ("what would make it fit, in order", outlook.fixes),
        ("data", outlook.storage),
        ("staging plan", outlook.staging),
        ("where there is room", outlook.room),
        ("notes", notes(outlook)),
        ("assumptions", (outlook.time_basis, *outlook.assumptions)),
    )
    return tuple((title, tuple(filter(None, lines))) for title, lines in every if any(lines))


# ---------------------------------------------------------------- markdown


def markdown(plan: Plan) -> str:
    """The plan for a ticket or a pull request."""
    spec = plan.job or plan.endpoint
    assert spec is not None
    parts = [
        f"## Plan `{plan.id}`: {_text(spec.metadata.name)} is **{plan.status}**",
        "",
        *_bullets(_head(plan)),
    ]
    refused = [verdict for verdict in plan.verdicts if verdict.refused is not None]
    if refused:
        parts += ["", "### Refused", "", *_bullets(map(_refusal, refused), escaped=True)]
    warned = [verdict for verdict in plan.verdicts if verdict.warning or verdict.approval or verdict.exception]
    if warned:
        said = [f"**{v.rule}**: {_text(v.warning or v.approval or v.exception)}" for v in warned]
        parts += ["", "### Warnings and approvals", "", *_bullets(said, escaped=True)]
    if plan.outlook is not None:
        shown = fitting(plan.outlook)
        if shown:
            parts += ["", "### Alternatives side by side", "", *_table(CHOICE_HEADINGS, choice_rows(shown))]
        for title, lines in sections(plan):
            parts += ["", f"### {title.capitalize()}", "", *_bullets(lines)]
        rejected = misfits(plan)
        if rejected:
            table = _table(("WHERE", "MACHINE", "BOUGHT", "WHY NOT"), rejected)
            summary = f"<details><summary>{len(rejected)} that do not fit</summary>"
            parts += ["", summary, "", *table, "", "</details>"]
    parts += ["", f"Hash `{plan.hash}`, spec `{plan.spec_digest[:16]}`, made {plan.created_at:%Y-%m-%d %H:%M} UTC."]
    return "\n".join(parts) + "\n"


def _head(plan: Plan) -> list[str]:
    spec = plan.job or plan.endpoint
    assert spec is not None
    meta, offer = spec.metadata, plan.offer
    where = "nowhere: no offer fits"
    if offer is not None:
        cards = f", {offer.accelerators} × {offer.accelerator}" if offer.accelerators else ""
        kind = f"{format_count(offer.cpus, 'CPU')}, {format_bytes(offer.memory_bytes)}{cards}"
        where = f"{spec.resources.nodes} × {offer.node_type} in {offer.pool} ({kind})"
    return [
        f"project {meta.project}, owner {meta.owner}, cost center {meta.cost_center}",
        f"runs on {where}{', SIMULATED' if offer is not None and offer.simulated else ''}",
        f"at most {format_duration(plan.max_duration_s)}, stopped {spec.end_date:%Y-%m-%d %H:%M} UTC at the latest",
        f"worst case {plan.arithmetic or format_usd(plan.worst_case_microusd)}",
    ]


def _refusal(verdict: Verdict) -> str:
    refused = verdict.refused
    assert refused is not None
    return f"**{verdict.rule}**: needs {_text(refused.need)}, has {_text(refused.have)}. *{_text(refused.hint)}*"


def _bullets(lines: Iterable[str], *, escaped: bool = False) -> list[str]:
    return [f"- {line if escaped else _text(line)}" for line in lines]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [
        f"| {' | '.join(headings)} |",
        "|" + "|".join("---:" if each in RIGHT else "---" for each in headings) + "|",
    ]
    return lines + [f"| {' | '.join(_text(cell) for cell in row)} |" for row in rows]


def _text(text: str) -> str:
    """Words from elsewhere neither break a table nor become markup."""
    plain = " ".join(text.split())
    for mark in ("\\", "|", "`", "*", "_", "[", "]", "<", ">"):
        plain = plain.replace(mark, f"\\{mark}")
    return plain


def _lead(choice: Choice) -> str:
    if choice.lead_time_h is None:
        return "unknown"
    low, high = choice.lead_time_h
    return "now" if high == 0 else f"{low}-{high} h"
