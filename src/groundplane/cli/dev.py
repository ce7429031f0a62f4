"""`ground dev` and `ground attach`: shells, Jupyter and editors on a pool's nodes, as runs."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import click

from groundplane.cli import render
from groundplane.cli.options import Listing, connect, output_option
from groundplane.cli.words import moment
from groundplane.domain import dev as words
from groundplane.domain.dev import idle_words
from groundplane.domain.run import Run, RunStatus
from groundplane.errors import Conflict, GroundError, InvalidInput, Unavailable

if TYPE_CHECKING:
    from groundplane.client import Client
    from groundplane.wire.dev import Attached

DETACH_KEY = b"\x1d"  # Ctrl-]
CHUNK = 2**15
_POLL_S = 0.3


@click.group(cls=Listing)
def dev() -> None:
    """Start a dev environment, look at it, and reach its ports and its node.

    It is a run: queued, budgeted, stopped when it idles or its end date comes. ground stop ends it; its files are kept.
    """


@dev.command()
@click.argument("name")
@click.option("--project", required=True, help="Whose budget pays.")
@click.option("--owner", required=True, help="Who answers for it.")
@click.option("--cost-center", required=True, help="Where the money is booked.")
@click.option("--cpus", type=float, default=1.0, show_default=True)
@click.option("--memory", default="2GiB", show_default=True)
@click.option("--accelerators", type=click.IntRange(0), default=0, show_default=True)
@click.option("--accelerator", default="", help="Which; any when left out.")
@click.option("--pool", default="local", show_default=True)
@click.option("--for", "duration", default="8h", show_default=True, help="How long at most.")
@click.option("--idle", default="1h", show_default=True, help="Stop after so long without input, output or work.")
@click.option("--max-cost", required=True, help="The most it may cost, like $5.")
@click.option("--workdir", default="", help="An absolute folder on the node; an own, empty one when left out.")
@click.option("--isolation", default="", help="How it is kept apart; the installation's when left out.")
@click.option("--jupyter", is_flag=True, help="With Jupyter, which must be installed there; see ground dev tunnel.")
@click.option("--ssh-config", is_flag=True, help="Print a block for ~/.ssh/config once it runs (ssh pools).")
@output_option
def start(name: str, output: str, ssh_config: bool, **said: object) -> None:
    """Start a dev environment and wait until it runs."""
    with connect() as client:
        applied = client.apply(_spec(name, said))
        run = _wait(client, applied.runs[0].id)
        config = client.ssh_config(run.id) if ssh_config else None
    render.show(run, output, lambda: [f"{run.id} runs: ground attach {run.id}"])
    if config is not None:
        _print_config(config)


@dev.command("list")
@output_option
def list_(output: str) -> None:
    """List dev environments that are not over: where, who looks at them, and how long nobody has been at work."""
    with connect() as client:
        found = client.dev_environments()
    headings = ("RUN", "NAME", "PROJECT", "OWNER", "KIND", "STATE", "NODE", "ATTACHED", "IDLE", "ENDS AT THE LATEST")
    rows = [
        (
            each.run_id,
            each.name,
            each.project,
            each.owner,
            each.kind,
            each.status.value,
            f"{each.pool}/{each.node}" if each.node else each.pool,
            ", ".join(each.attached) or "-",
            idle_words(each),
            moment(each.end_date),
        )
        for each in found
    ]
    render.show(found, output, lambda: [render.Table(headings, rows, empty="none; ground dev start NAME begins one")])


@dev.command()
@click.argument("run_id", metavar="RUN")
@output_option
def show(run_id: str, output: str) -> None:
    """Show a dev environment's sessions, folder, and Jupyter's port and token."""
    with connect() as client:
        found = client.dev_info(run_id)
    lines = [f"sessions: {', '.join(found.sessions) or 'none yet'}", f"folder: {found.folder}"]
    if found.jupyter_port:
        lines.append(f"jupyter listens on its port {found.jupyter_port}: ground dev tunnel {run_id}")
    render.show(found, output, lambda: lines)


@dev.command("ssh-config")
@click.argument("run_id", metavar="RUN")
@output_option
def ssh_config_(run_id: str, output: str) -> None:
    """Print a block for ~/.ssh/config, for VS Code over SSH. Only runs on ssh pools have one."""
    with connect() as client:
        config = client.ssh_config(run_id)
    if output == "table":
        _print_config(config)
    else:
        render.show(config, output, lambda: [config.text])


@dev.command()
@click.argument("run_id", metavar="RUN")
@click.option("--port", type=click.IntRange(1, 65_535), help="A port in there; Jupyter's when left out.")
@click.option("--local-port", type=click.IntRange(0, 65_535), default=0, help="Here; a free one when left out.")
def tunnel(run_id: str, port: int | None, local_port: int) -> None:
    """Reach a port of a dev environment, Jupyter's when none is named, from 127.0.0.1 here until Ctrl-C."""
    with connect() as client, socket.create_server(("127.0.0.1", local_port)) as server:
        token = ""
        if port is None:
            found = client.dev_info(run_id)
            if not found.jupyter_port:
                raise InvalidInput(f"{run_id} runs no Jupyter", "name a port: --port; or start it with --jupyter")
            port, token = found.jupyter_port, found.jupyter_token
        here = f"http://127.0.0.1:{server.getsockname()[1]}/" + (f"?token={token}" if token else "")
        render.say(f"port {port} of {run_id} is {here}\nCtrl-C ends the tunnel; the environment goes on")
        with suppress(KeyboardInterrupt):
            while True:
                link, _ = server.accept()
                threading.Thread(target=_carry, args=(client, run_id, port, link), daemon=True).start()


@click.command()
@click.argument("run_id", metavar="RUN")
@click.option("--session", default="main", show_default=True, help="Another name is another shell.")
def attach(run_id: str, session: str) -> int:
    """Open a shell in a dev environment. Ctrl-] lets go of it: it and what runs in it go on for the next attach.

    Several people may attach to one session; they see and type the same. With input from a pipe, the shell reads it and
    ends; its exit status is this command's.
    """
    with connect() as client:
        size = os.get_terminal_size() if sys.stdin.isatty() and sys.stdout.isatty() else os.terminal_size((80, 24))
        term = os.environ.get("TERM") or "xterm"
        attached = client.attach(run_id, session=session, rows=size.lines, columns=size.columns, term=term)
        return _converse(client, run_id, attached)


# ---------------------------------------------------------------- attached


def _converse(client: Client, run_id: str, attached: Attached) -> int:
    """Keys there, letters here, until the shell ends (its status) or the person lets go (0)."""
    let_go = threading.Event()
    ended: list[int] = []

    def type_keys() -> None:
        with suppress(GroundError, ValueError, OSError):  # it is over: the other thread says how
            while True:
                keys = os.read(sys.stdin.fileno(), CHUNK)
                if sys.stdin.isatty() and DETACH_KEY in keys:
                    keys = keys.partition(DETACH_KEY)[0]
                    let_go.set()
                if keys:
                    client.send_attached(run_id, attached, keys)
                if let_go.is_set():
                    client.detach(run_id, attached)
                elif not keys:
                    client.end_attached(run_id, attached)
                if let_go.is_set() or not keys:
                    return

    with _raw_terminal(), _resizing(lambda r, c: client.resize_attached(run_id, attached, r, c)):
        threading.Thread(target=type_keys, daemon=True).start()
        try:
            for kind, payload in client.attached_frames(run_id, attached):
                if kind == words.DATA:
                    render.raw(payload)
                elif kind == words.OVER:
                    ended.append(int(payload))
        except Unavailable:
            if not let_go.is_set():
                raise
    if let_go.is_set():
        render.say(f"\ndetached; {run_id} goes on: ground attach {run_id}")
        return 0
    if not ended:
        raise Unavailable(f"the connection to {run_id} is over", f"ground explain {run_id} says how it is")
    return ended[0]


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Every key goes to the far end, also Ctrl-C, while this holds."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin, termios.TCSADRAIN)  # keys that were typed ahead are kept
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


@contextmanager
def _resizing(tell: Callable[[int, int], None]) -> Iterator[None]:
    if not sys.stdout.isatty():
        yield
        return

    def resized(*_: object) -> None:
        size = os.get_terminal_size()
        with suppress(GroundError):
            tell(size.lines, size.columns)

    before = signal.signal(signal.SIGWINCH, resized)
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


def _carry(client: Client, run_id: str, port: int, link: socket.socket) -> None:
    """One connection of a tunnel, until either side ends it."""

    def bring() -> None:
        with suppress(GroundError, OSError):
            for kind, payload in client.attached_frames(run_id, attached):
                if kind == words.DATA:
                    link.sendall(payload)
        with suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)

    with link:
        try:
            attached = client.attach_port(run_id, port)
            back = threading.Thread(target=bring, daemon=True)
            back.start()
            while select.select([link], [], [])[0] and (data := link.recv(CHUNK)):
                client.send_attached(run_id, attached, data)
            client.end_attached(run_id, attached)
            back.join()
        except (GroundError, OSError, ValueError) as error:
            render.say(f"a connection ended: {error}")


# ---------------------------------------------------------------- the rest


def _spec(name: str, said: dict[str, object]) -> str:
    resources = {"cpus": said["cpus"], "memory": said["memory"], "accelerators": said["accelerators"]}
    if said["accelerator"]:
        resources["accelerator"] = said["accelerator"]
    spec: dict[str, object] = {
        "dev": "jupyter" if said["jupyter"] else "shell",
        "pool": said["pool"],
        "resources": resources,
        "max_duration": said["duration"],
        "end_date": said["duration"],
        "idle_limit": said["idle"],
        "max_cost": said["max_cost"],
    }
    spec |= {field: said[field] for field in ("workdir", "isolation") if said[field]}
    metadata = {"name": name, **{field: said[field] for field in ("project", "owner", "cost_center")}}
    # JSON is YAML.
    return json.dumps({"apiVersion": "groundplane/v1", "kind": "Dev", "metadata": metadata, "spec": spec})


def _wait(client: Client, run_id: str) -> Run:
    said = ""
    while True:
        run = client.run(run_id).run
        if run.status is RunStatus.RUNNING:
            return run
        if run.status.is_over:
            raise Conflict(f"{run_id} {run.status}: {run.message}", f"ground logs {run_id}")
        if run.message != said:
            said = run.message
            render.say(f"{run_id} is {run.status}: {said}")
        time.sleep(_POLL_S)


def _print_config(config: words.SshConfig) -> None:
    if config.why:
        raise InvalidInput(f"there is no ssh configuration for {config.run_id}", config.why)
    render.line(config.text.rstrip())
