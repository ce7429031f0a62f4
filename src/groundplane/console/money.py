"""Budgets as the pages need them."""

from __future__ import annotations

from typing import Any

from groundplane.domain.budget import Budget
from groundplane.identity import Actor


async def budgets_of(ground: Any, actor: Actor) -> list[Budget]:
    """This month's budget of every project that the actor sees and that has one, by name."""
    projects = await ground.access.projects(actor)
    return [
        await ground.costs.budget(actor, project.id)
        for project in projects
        if project.monthly_limit_microusd is not None
    ]
