"""`ground keys | projects | exposures | whoami`: who belongs where, who may call what, what is reachable."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from groundplane.cli import render
from groundplane.cli.options import Duration, Listing, Moment, Money, connect, output_option
from groundplane.cli.render import Table, Usd
from groundplane.cli.words import moment
from groundplane.domain.access import Exposure, Key, Project, SelfService
from groundplane.identity import Role
from groundplane.units import format_usd

# ---------------------------------------------------------------- keys


@click.group(cls=Listing)
def keys() -> None:
    """Create, list, rotate and revoke keys."""


@keys.command("create")
@click.option("--project", required=True)
@click.option("--role", type=click.Choice([role.value for role in Role]), default=Role.CALLER.value, show_default=True)
@click.option("--name", default="", help="What it is for; the role when left out.")
@click.option("--owner", default="", help="Who answers for it; you when left out.")
@click.option("--models", default="", metavar="A,B", help="Endpoints it may call; all of the project when left out.")
@click.option("--networks", default="", metavar="A,B", help="Networks it may call models from, like 10.0.0.0/8.")
@click.option("--rpm", type=click.IntRange(1), help="Most requests per minute.")
@click.option("--tpm", type=click.IntRange(1), help="Most tokens per minute.")
@click.option("--expires", type=Moment(ahead=True), metavar="TIME", help="A date, a time, or a duration such as 90d.")
@output_option
def create_key(
    project: str,
    role: str,
    name: str,
    owner: str,
    models: str,
    networks: str,
    rpm: int | None,
    tpm: int | None,
    expires: datetime | None,
    output: str,
) -> None:
    """Create a key. Its secret is printed this once and kept nowhere."""
    with connect() as client:
        made = client.create_key(
            name=name or role,
            project=project,
            owner=owner or client.whoami().name,
            role=Role(role),
            models=[model.strip() for model in models.split(",") if model.strip()],
            networks=[network.strip() for network in networks.split(",") if network.strip()],
            requests_per_minute=rpm,
            tokens_per_minute=tpm,
            expires_at=expires,
        )
    if output == "table":
        render.say(
            f"{made.key.role} key {made.key.id} of project {project}; this is the only time its secret is shown:"
        )
    render.show(made, output, lambda: [made.secret])


@keys.command("list")
@click.option("--project", help="Of one project.")
@output_option
def list_keys(project: str | None, output: str) -> None:
    """List keys; their secrets are not known to anybody."""
    with connect() as client:
        found = client.keys(project)
    render.show(found, output, lambda: [_keys_table(found)])


@keys.command("rotate")
@click.argument("key_id", metavar="KEY")
@click.option(
    "--grace", type=Duration(), default="1d", show_default=True, help="How long the secret before opens beside the new."
)
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def rotate_key(key_id: str, grace: int, reason: str, output: str) -> None:
    """Give a key a new secret, printed this once. The one before works on for the grace period."""
    with connect() as client:
        made = client.rotate_key(key_id, grace_s=grace, reason=reason)
    if output == "table":
        until = moment(made.key.old_secret_expires_at)
        render.say(f"key {key_id} has a new secret, shown this once; the one before opens until {until}:")
    render.show(made, output, lambda: [made.secret])


@keys.command("revoke")
@click.argument("key_id", metavar="KEY")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def revoke_key(key_id: str, reason: str, output: str) -> None:
    """End a key at once."""
    with connect() as client:
        key = client.revoke_key(key_id, reason)
    render.show(key, output, lambda: [f"key {key.id} ({key.name}) is revoked since {moment(key.revoked_at)}"])


def _keys_table(found: list[Key]) -> Table:
    now = datetime.now(UTC)
    rows = [
        (
            key.id,
            key.name,
            key.project,
            key.role.value,
            key.owner,
            ",".join(key.models) or "all",
            str(key.requests_per_minute or "-"),
            str(key.tokens_per_minute or "-"),
            _key_state(key, now),
            moment(key.expires_at),
        )
        for key in found
    ]
    columns = ("KEY", "NAME", "PROJECT", "ROLE", "OWNER", "MODELS", "RPM", "TPM", "STATE", "EXPIRES")
    return Table(columns, rows, right=frozenset({"RPM", "TPM"}), empty="no keys; ground keys create --project PROJECT")


def _key_state(key: Key, now: datetime) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


# ---------------------------------------------------------------- projects


@click.group(cls=Listing)
def projects() -> None:
    """Create and list projects."""


@projects.command("create")
@click.argument("name")
@click.option("--owner", required=True, help="Who answers for it.")
@click.option("--cost-center", required=True, help="Who pays.")
@click.option("--budget", type=Money(), metavar="USD", help="Monthly limit; nothing is admitted without one.")
@click.option("--thresholds", default="50,80,100", show_default=True, metavar="P,P", help="Percent that notify.")
@click.option("--accelerators", type=click.IntRange(0), help="Most accelerators it may hold at once: its quota.")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def create_project(
    name: str,
    owner: str,
    cost_center: str,
    budget: int | None,
    thresholds: str,
    accelerators: int | None,
    reason: str,
    output: str,
) -> None:
    """Create a project: a team's home, with its budget and its quota."""
    with connect() as client:
        made = client.create_project(
            name=name,
            owner=owner,
            cost_center=cost_center,
            monthly_limit_microusd=budget,
            thresholds_percent=percents(thresholds),
            reason=reason,
        )
        if accelerators is not None:
            client.set_quota(name, {"accelerators": accelerators}, reason=reason)
    render.show(made, output, lambda: [_projects_table([made])])
    if budget is None and output == "table":
        render.say(f"it has no budget yet: ground budget set {name} 100")


@projects.command("set")
@click.argument("name")
@click.option("--accelerators", type=click.IntRange(0), help="Most accelerators of one run without approval.")
@click.option("--per-plan", type=Money(), metavar="USD", help="Most that one plan may cost without approval.")
@click.option("--per-month", metavar="USD|none", help="Most held, spent and waiting in a month without approval.")
@click.option("--several-above", metavar="USD|none", help="Above this worst case several people must agree.")
@click.option("--several", type=click.IntRange(1, 10), help="How many people that is.")
@click.option("--reason", default="", help="Why: written to the audit trail.")
@output_option
def set_project(
    name: str,
    accelerators: int | None,
    per_plan: int | None,
    per_month: str | None,
    several_above: str | None,
    several: int | None,
    reason: str,
    output: str,
) -> None:
    """Set what a project may begin without approval, from the next plan on.

    What is not given stays as it is.
    """
    if all(value is None for value in (accelerators, per_plan, per_month, several_above, several)):
        raise click.UsageError("Give at least one limit, such as --accelerators 8.")
    with connect() as client:
        now = client.project(name).self_service
        changed = client.set_self_service(
            name,
            SelfService(
                accelerators_max=now.accelerators_max if accelerators is None else accelerators,
                plan_max_microusd=now.plan_max_microusd if per_plan is None else per_plan,
                month_max_microusd=_or_none(per_month, now.month_max_microusd),
                second_threshold_microusd=_or_none(several_above, now.second_threshold_microusd),
                second_approvals=several or now.second_approvals,
            ),
            reason,
        )
    render.show(changed, output, lambda: [f"project {name} takes {self_service_words(changed.self_service)}"])


def _or_none(text: str | None, now: int | None) -> int | None:
    """An amount, or `none` for no limit; what is not given stays."""
    if text is None:
        return now
    amount: int | None = None if text.lower() == "none" else Money().convert(text, None, None)
    return amount


def self_service_words(limits: SelfService) -> str:
    """What a project may begin without approval, in one line."""
    month = "" if limits.month_max_microusd is None else f" and {format_usd(limits.month_max_microusd)} a month"
    words = (
        f"{limits.accelerators_max} accelerators a run and {format_usd(limits.plan_max_microusd)} a plan{month}"
        " without approval"
    )
    if limits.second_threshold_microusd is not None:
        words += f"; {limits.second_approvals} people above {format_usd(limits.second_threshold_microusd)}"
    return words


@projects.command("list")
@output_option
def list_projects(output: str) -> None:
    """List the projects that the key sees."""
    with connect() as client:
        found = client.projects()
    render.show(found, output, lambda: [_projects_table(found)])


def percents(text: str) -> tuple[int, ...]:
    """`50,80,100` → the numbers. A usage error otherwise."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise click.UsageError(f"{text!r} is no list of percentages; write it like 50,80,100.") from None


def _projects_table(found: list[Project]) -> Table:
    rows = [
        (
            project.id,
            project.owner,
            project.cost_center,
            Usd(project.monthly_limit_microusd) if project.monthly_limit_microusd is not None else "none",
            ",".join(f"{percent}%" for percent in project.thresholds_percent),
            f"{project.self_service.accelerators_max} acc, {format_usd(project.self_service.plan_max_microusd)}",
            moment(project.created_at),
        )
        for project in found
    ]
    columns = ("PROJECT", "OWNER", "COST CENTRE", "MONTHLY LIMIT", "NOTIFIES AT", "ALONE UP TO", "CREATED")
    empty = "no projects; ground projects create NAME --owner WHO --cost-center CODE --budget 100"
    return Table(columns, rows, right=frozenset({"MONTHLY LIMIT"}), empty=empty)


# ---------------------------------------------------------------- exposures


@click.group(cls=Listing)
def exposures() -> None:
    """What may be reachable beyond loopback: owned, reasoned, ending."""


@exposures.command("list")
@output_option
def list_exposures(output: str) -> None:
    """List exposures, in force and over."""
    with connect() as client:
        found = client.exposures()
    render.show(found, output, lambda: [_exposures_table(found)])


@exposures.command("add")
@click.argument("address", metavar="HOST:PORT")
@click.option("--owner", required=True, help="Who answers for it.")
@click.option("--reason", required=True, help="Why it must be reachable.")
@click.option("--expires", type=Moment(ahead=True), required=True, metavar="TIME", help="A date, or a duration: 30d.")
@output_option
def add_exposure(address: str, owner: str, reason: str, expires: datetime, output: str) -> None:
    """Permit an address beyond loopback until it expires. The next `ground up` may bind it."""
    with connect() as client:
        made = client.expose(address=address, owner=owner, reason=reason, expires_at=expires)
    render.show(made, output, lambda: [_exposures_table([made])])


@exposures.command("withdraw")
@click.argument("address", metavar="HOST:PORT")
@click.option("--reason", default="", help="Why: written to the audit trail.")
def withdraw_exposure(address: str, reason: str) -> None:
    """End a permission now; what is bound to the address stops within a minute."""
    with connect() as client:
        client.withdraw_exposure(address, reason)
    render.line(f"{address} may not be reachable any more")


def _exposures_table(found: list[Exposure]) -> Table:
    now = datetime.now(UTC)
    rows = [
        (
            e.id,
            "active" if e.expires_at > now else "expired",
            e.owner,
            e.reason,
            moment(e.created_at),
            moment(e.expires_at),
        )
        for e in found
    ]
    columns = ("ADDRESS", "STATE", "OWNER", "REASON", "SINCE", "EXPIRES")
    return Table(columns, rows, empty="nothing is reachable beyond loopback")


# ---------------------------------------------------------------- whoami


@click.command()
@output_option
def whoami(output: str) -> None:
    """Show whom the key stands for, and what it may do."""
    with connect() as client:
        me = client.whoami()
    render.show(
        me,
        output,
        lambda: [
            f"{me.name}, {me.role}, {f'project {me.project}' if me.project else 'every project'}, key {me.key_id}",
            _permissions_table(me.permissions),
        ],
    )


def _permissions_table(permissions: Sequence[str]) -> Table:
    acts: dict[str, list[str]] = {}
    for permission in permissions:
        resource, _, act = permission.partition(":")
        acts.setdefault(resource, []).append(act)
    return Table(("ON", "MAY"), [(resource, ", ".join(may)) for resource, may in acts.items()], empty="may nothing")
