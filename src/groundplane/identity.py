"""Who is asking, and what they may do.

One table: role → permissions. Every API route declares one permission; a route without one fails the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    ADMIN = "admin"
    OPERATOR = "operator"
    LEAD = "lead"
    MEMBER = "member"
    FINANCE = "finance"
    SECURITY = "security"
    VIEWER = "viewer"
    CALLER = "caller"
    JOB = "job"


class Permission(StrEnum):
    """`resource:verb`. `read` sees, `write` changes one's own project's objects, `admin` changes anyone's."""

    RUNS_READ = "runs:read"
    RUNS_WRITE = "runs:write"
    PLANS_APPROVE = "plans:approve"
    MODELS_READ = "models:read"
    MODELS_WRITE = "models:write"
    ENDPOINTS_READ = "endpoints:read"
    ENDPOINTS_WRITE = "endpoints:write"
    COSTS_READ = "costs:read"
    BUDGETS_WRITE = "budgets:write"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    PROJECTS_READ = "projects:read"
    PROJECTS_WRITE = "projects:write"
    REQUESTS_READ = "requests:read"
    REQUESTS_WRITE = "requests:write"
    AUDIT_READ = "audit:read"
    SYSTEM_READ = "system:read"
    SYSTEM_WRITE = "system:write"
    STORAGE_WRITE = "storage:write"
    CATALOG_WRITE = "catalog:write"
    POLICY_READ = "policy:read"
    POLICY_WRITE = "policy:write"
    NODES_WRITE = "nodes:write"
    TRAFFIC_READ = "traffic:read"
    PREDICTIONS_READ = "predictions:read"
    PREDICTIONS_WRITE = "predictions:write"
    INFERENCE = "inference:call"
    TRACKING_READ = "tracking:read"
    TRACKING_WRITE = "tracking:write"


P = Permission
_READ = {P.RUNS_READ, P.MODELS_READ, P.ENDPOINTS_READ, P.COSTS_READ, P.PROJECTS_READ, P.SYSTEM_READ, P.REQUESTS_READ}
_READ |= {P.POLICY_READ, P.TRACKING_READ}
_MEMBER = _READ | {P.REQUESTS_WRITE, P.RUNS_WRITE, P.MODELS_WRITE, P.ENDPOINTS_WRITE, P.KEYS_READ, P.INFERENCE}
_MEMBER |= {P.TRAFFIC_READ}
_MEMBER |= {P.TRACKING_WRITE}

ROLE_PERMISSIONS: dict[Role, frozenset[Permission]] = {
    Role.ADMIN: frozenset(Permission),
    Role.OPERATOR: frozenset(set(Permission) - {P.SYSTEM_WRITE}),
    Role.LEAD: frozenset(_MEMBER | {P.PLANS_APPROVE, P.PREDICTIONS_READ}),
    Role.MEMBER: frozenset(_MEMBER),
    Role.FINANCE: frozenset(_READ | {P.BUDGETS_WRITE}),
    Role.SECURITY: frozenset(
        _READ
        | {P.AUDIT_READ, P.KEYS_READ, P.KEYS_WRITE, P.POLICY_WRITE}
        | {P.TRAFFIC_READ, P.PREDICTIONS_READ, P.PREDICTIONS_WRITE}
    ),
    Role.VIEWER: frozenset(_READ),
    Role.CALLER: frozenset({P.INFERENCE}),
    # What a running job may do with the token it is given: tell of itself, and read what it builds on.
    Role.JOB: frozenset({P.TRACKING_READ, P.TRACKING_WRITE, P.MODELS_READ}),
}

CROSS_PROJECT = frozenset({Role.ADMIN, Role.OPERATOR, Role.FINANCE, Role.SECURITY})


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """An authenticated caller. `project` is None for roles that see every project; `run_id` is a job's own run."""

    name: str
    role: Role
    key_id: str = ""
    project: str | None = None
    run_id: str = ""

    def may(self, permission: Permission) -> bool:
        return permission in ROLE_PERMISSIONS[self.role]

    def sees(self, project: str) -> bool:
        """Whether objects of this project exist for the caller."""
        return self.role in CROSS_PROJECT or self.project == project


SYSTEM = Actor(name="groundplane", role=Role.ADMIN)
"""The control plane acting by itself: loops write their audit events under this name."""
