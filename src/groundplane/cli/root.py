"""`ground` itself: the table of commands, loaded when called, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from groundplane import __version__
from groundplane.cli import render
from groundplane.cli.options import INTERRUPTED_CODE
from groundplane.errors import GroundError

COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("processes", "Start the control plane and the gateway on this machine."),
    "down": ("processes", "Stop the control plane and the gateway."),
    "status": ("processes", "Show processes, version, counts, money held and disk."),
    "recon": ("recon", "Show what could be run, where, for how much: this machine, every pool, and the clouds."),
    "catalog": ("catalog", "Show the catalogue, and update it from one's own rows or a fresh price list."),
    "pools": ("nodes", "List pools: nodes, accelerators, price, and why one does not answer; read the pool file anew."),
    "nodes": ("nodes", "List and show nodes; keep new work away from one, and let it there again."),
    "request": ("requests", "Turn a pasted message into work items, questions, risks and specs."),
    "plan": ("plans", "Show what a spec would do and cost, and what forbids it."),
    "apply": ("plans", "Carry out a spec (-f) or a plan made before (its id), after showing it and asking."),
    "approve": ("approvals", "Agree to a plan that is beyond what its project may begin alone."),
    "reject": ("approvals", "Say no to a plan, for good."),
    "approvals": ("approvals", "Show which plans wait for somebody's yes, and what became of others."),
    "preflight": ("preflight", "Check nodes, storage and data of a spec (-f), or show what was checked for a run."),
    "ps": ("runs", "List runs, newest first."),
    "who": ("queue", "Say who holds every accelerator and node, and who waits for them."),
    "queue": ("queue", "List what waits, in the order in which it starts, with why and until when."),
    "quotas": ("queue", "Show and set what projects may hold at once."),
    "reserve": ("queue", "Keep capacity for a project from a time to a time."),
    "schedules": ("queue", "Submit jobs at times."),
    "logs": ("runs", "Print a run's log: the bytes that the job wrote, as they are."),
    "explain": (
        "runs",
        "Say where a run is and why, or what becomes of a plan, in a sentence and the facts.",
    ),
    "data": ("data", "Follow a run's data to its node; list and clear what nodes keep."),
    "dev": ("dev", "Start a dev environment, look at it, and reach its ports and its node."),
    "attach": ("dev", "Open a shell in a dev environment."),
    "checkpoints": ("checkpoints", "List a run's checkpoints, pull one here, lay one on a node."),
    "prove-resume": ("checkpoints", "Kill a short run after its first checkpoint, and see whether it goes on."),
    "stacks": ("checkpoints", "Print what a run's processes were doing when it was taken for hung."),
    "stop": ("runs", "Stop runs and endpoints."),
    "artifacts": ("artifacts", "Push, pull and list files; see what the store holds, collect and scrub it."),
    "datasets": ("datasets", "Register, compare, verify, follow and erase datasets."),
    "lineage": ("lineage", "Follow versions to what they were made from and into, here and outside."),
    "models": ("models", "List, show, search, register, verify and promote models."),
    "gates": ("gates", "Requirements on evidence before an alias moves: define, check, measure, approve, waive."),
    "eval": ("evaluations", "Evaluate models on a dataset's rows: run, list, show, compare."),
    "batch": ("evaluations", "Answer a dataset's rows with a model, in shards that survive a kill: run, list, status."),
    "endpoints": ("endpoints", "List and show endpoints."),
    "limits": ("limits", "Limit what goes through the gateway."),
    "routes": ("routes", "Say which endpoints and providers a model name leads to, and how one of them is chosen."),
    "tail": ("tail", "Follow requests through the gateways as they end."),
    "predictions": ("predictions", "Keep prompts and answers of a project: show, export, erase, and what is kept."),
    "providers": ("routes", "Ask hosted providers for models, with a key that stays in the gateway's hands."),
    "experiments": ("experiments", "Show experiments, their runs and what was measured in them."),
    "keys": ("access", "Create, list, rotate and revoke keys."),
    "projects": ("access", "Create and list projects."),
    "exposures": ("access", "What may be reachable beyond loopback: owned, reasoned, ending."),
    "whoami": ("access", "Show whom the key stands for, and what it may do."),
    "budget": ("money", "Show and set budgets."),
    "cost": ("money", "Show what was spent, by project, model, run, key, owner or cost centre."),
    "report": ("money", "The Monday report: what was spent and by whom, what is reserved, what is running."),
    "size": ("sizing", "Say how much memory and time a model takes, on which cards, and what would make it fit."),
    "compare": ("sizing", "Hold a hosted API, provisioned units and cards of one's own side by side, cheapest first."),
    "policy": ("policy", "List, test, replay and reload the rules that plans are judged by, and except from them."),
    "audit": ("audit", "Read and prove the audit trail."),
    "settings": ("settings", "List every setting with its value and where that comes from."),
}
"""Command → (module under groundplane.cli, one line of help). Modules load when their command is called."""


class LazyGroup(click.Group):
    """Lists commands from the table and imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"groundplane.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            raise click.UsageError(f"{args[0]!r} is no command.{_did_you_mean(args[0])}", ctx)
        return super().resolve_command(ctx, args)


def _did_you_mean(word: str) -> str:
    import difflib  # noqa: PLC0415 - needed only when a command is misspelt

    near = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Settings are GROUND_ environment variables: ground settings. Exit codes: docs/reference/errors.md.",
)
@click.version_option(__version__, message="ground %(version)s")
def ground() -> None:
    """A self-service control plane for AI infrastructure: plan, run, register, serve, meter, bill, stop."""


def run(arguments: Sequence[str]) -> int:
    """One command, from its words to its exit status. Nothing a person did wrong ends in a traceback."""
    try:
        result = ground.main(list(arguments), prog_name="ground", standalone_mode=False)
    except GroundError as error:
        render.error(error)
        return error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        render.line(error.ctx.get_help() if error.ctx else error.format_message())
        return 0
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "ground"
        render.usage_error(error.format_message(), _way_on(error, where))
        return 2
    except click.ClickException as error:
        render.usage_error(error.format_message(), "ground --help")
        return 2
    except (click.Abort, KeyboardInterrupt):
        render.interrupted()
        return INTERRUPTED_CODE
    except BrokenPipeError:
        # Whoever read our output has enough; pointing stdout elsewhere keeps the interpreter from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        # The boundary of the process: everything known was caught above, so this is a defect of ours.
        render.unexpected(error, _note_down(error))
        return 1
    return result if isinstance(result, int) else 0


def _way_on(error: click.UsageError, where: str) -> str:
    """The command to type instead: the nearest one, or `show` for what reads like a name; else the help."""
    import difflib  # noqa: PLC0415
    import re  # noqa: PLC0415

    group = error.ctx.command if error.ctx else None
    found = re.match(r"No such command '(\S+)'", error.message)
    if found is not None and isinstance(group, click.Group):
        if near := difflib.get_close_matches(found[1], group.commands, 1, 0.6):
            return f"{where} {near[0]}"
        if "show" in group.commands and re.search(r"[@\d-]", found[1]):
            return f"{where} show {found[1]}"
    return f"{where} --help"


def _note_down(error: Exception) -> str:
    """The traceback in a file of its own under the home's log folder, or where temporary files go."""
    import tempfile  # noqa: PLC0415 - not paid for by commands that succeed
    import traceback  # noqa: PLC0415

    home = Path(os.environ.get("GROUND_HOME") or "~/.groundplane").expanduser()
    folder = home / "log" if (home / "log").is_dir() else Path(tempfile.gettempdir())
    descriptor, name = tempfile.mkstemp(prefix="cli-", suffix=".log", dir=folder)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"ground {__version__}\narguments: {sys.argv[1:]}\n\n")
        traceback.print_exception(error, file=file)
    return name
