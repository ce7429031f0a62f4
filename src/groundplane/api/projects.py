"""Projects and their budgets."""

from __future__ import annotations

from typing import Annotated

from groundplane.api.access import Ground, requires
from groundplane.api.routing import Router
from groundplane.domain.access import Project
from groundplane.domain.budget import Budget
from groundplane.identity import Actor, Permission
from groundplane.wire.access import ProjectRequest
from groundplane.wire.money import BudgetRequest

router = Router(prefix="/v1/projects", tags=["projects"])
Reader = Annotated[Actor, requires(Permission.PROJECTS_READ)]


@router.get("")
async def list_projects(app: Ground, actor: Reader) -> list[Project]:
    """The projects that the caller sees."""
    projects: list[Project] = await app.access.projects(actor)
    return projects


@router.post("", status_code=201)
async def create_project(
    body: ProjectRequest, app: Ground, actor: Annotated[Actor, requires(Permission.PROJECTS_WRITE)]
) -> Project:
    """A team's home, with its budget when a limit is given."""
    project: Project = await app.access.create_project(
        actor,
        name=body.name,
        owner=body.owner,
        cost_center=body.cost_center,
        monthly_limit_microusd=body.monthly_limit_microusd,
        thresholds_percent=body.thresholds_percent,
        reason=body.reason,
    )
    return project


@router.get("/{name}")
async def get_project(name: str, app: Ground, actor: Reader) -> Project:
    """One project."""
    project: Project = await app.access.project(actor, name)
    return project


@router.get("/{name}/budget")
async def get_budget(name: str, app: Ground, actor: Annotated[Actor, requires(Permission.COSTS_READ)]) -> Budget:
    """This month's limit, what is held and what is spent."""
    budget: Budget = await app.costs.budget(actor, name)
    return budget


@router.put("/{name}/budget")
async def set_budget(
    name: str, body: BudgetRequest, app: Ground, actor: Annotated[Actor, requires(Permission.BUDGETS_WRITE)]
) -> Budget:
    """Sets the monthly limit, from this month on. Money already held stays held."""
    budget: Budget = await app.costs.set_budget(
        actor,
        project=name,
        monthly_limit_microusd=body.monthly_limit_microusd,
        thresholds_percent=body.thresholds_percent,
        reason=body.reason,
    )
    return budget
