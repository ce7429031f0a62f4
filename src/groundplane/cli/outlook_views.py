"""A plan's outlook on the terminal: the choices side by side, and what they rest on in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from groundplane.cli.render import Table, View
from groundplane.domain.planning import report as plan_report

if TYPE_CHECKING:
    from groundplane.domain.planning.plan import Plan

REJECTED_SHOWN = 5
BELOW = frozenset({"notes", "assumptions"})


def outlook_views(made: Plan, *, rejected: bool = False, choices: bool = False) -> list[View]:
    """Choices as a table, sections as indented sentences, and the nearest that do not fit; all with `rejected`.

    Of small work the choices are one line, unless `choices` or `rejected` ask for them.
    """
    outlook = made.outlook
    if outlook is None:
        return []
    lines: list[View] = []
    sections = plan_report.sections(made)
    for title, sentences in sections:
        if title not in BELOW:
            lines += [f"  {title}:", *(f"    {sentence}" for sentence in sentences)]
    if not (choices or rejected) and (line := plan_report.elsewhere(made)):
        return [*lines, f"  elsewhere   {line}: --choices"]
    if shown := plan_report.fitting(outlook):
        rows = plan_report.choice_rows(shown)
        title = "every way to buy it, cheapest fitting first (* is this plan):"
        lines.append(Table(plan_report.CHOICE_HEADINGS, rows, right=plan_report.RIGHT, title=title))
    if misfits := plan_report.misfits(made):
        kept = misfits if rejected else misfits[:REJECTED_SHOWN]
        more = len(misfits) - len(kept) + outlook.choices_left_out
        title = f"does not fit (the nearest {len(kept)}; {more} more: --rejected):" if more else "does not fit:"
        lines.append(Table(("WHERE", "MACHINE", "BOUGHT", "REASON"), kept, title=title))
    for title, sentences in sections:
        if title in BELOW:
            lines += [f"{title}:", *(f"  {sentence}" for sentence in sentences)]
    return lines
