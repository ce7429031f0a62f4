"""Attempts on machines reached over SSH: no agent to install, a Python ≥ 3.9 and an account is all they need.

One `ssh` process of the system's OpenSSH per node is kept; a desk at its other end answers. Why it and not a library:
docs/decisions/0006-ssh-client.md.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from groundplane.adapters.atomic_file import replace_durably
from groundplane.adapters.executors.channels import RUNNER, Channel, Patience, SshChannel
from groundplane.adapters.executors.links import Link
from groundplane.adapters.executors.nodes import NodesExecutor, RunnerOptions
from groundplane.adapters.executors.placements import Placements
from groundplane.domain.pool_file import NodeDefinition, PoolDefinition, parse_pools
from groundplane.errors import InvalidInput, Problem
from groundplane.ports import Clock


class SshExecutor(NodesExecutor):
    """ports.Executor on a pool of the pool file. `installation` names our folder on the nodes, other than theirs."""

    def __init__(
        self,
        pool: PoolDefinition,
        home: Path,
        clock: Clock,
        *,
        installation: str,
        options: RunnerOptions | None = None,
        runner: Path = RUNNER,
        patience: Patience | None = None,
    ) -> None:
        self._patience, self._runner = patience or Patience(), runner
        self._own = installation
        placements = Placements(home / "run" / "placements" / pool.name)
        super().__init__(pool.name, [], clock, placements=placements, options=options)
        self._obey(pool)

    async def redefine(self, pool: PoolDefinition) -> None:
        """Takes the pool's new description; connections that it does not touch are kept."""
        for channel in self._obey(pool):
            await channel.close()

    def holding(self) -> Counter[str]:
        """How many attempts each node has, or may have."""
        assert self._placements is not None
        known = self._placements.all().values()
        return Counter(node for placed in known if not placed.released for node in placed.members)

    def _obey(self, pool: PoolDefinition) -> list[Channel]:
        """Returns the channels that nobody uses any more."""
        before, self._links = self._links, {}
        self._fit.clear()  # whoever reads the file anew has changed something
        self._shared_dir = pool.shared_dir or None
        self._gone_limit_s = pool.control_plane_gone_limit_s
        unused: list[Channel] = []
        for node in pool.nodes:
            known = before.pop(node.name, None)
            channel = self._channel(pool, node)
            if known is not None and isinstance(known.channel, SshChannel) and known.channel.leads_where(channel):
                channel = known.channel
            elif known is not None:
                unused.append(known.channel)
            link = _link(node, channel)
            if known is not None:
                link.facts, link.heard_at, link.under_way = known.facts, known.heard_at, known.under_way
                link.failure = known.failure if channel is known.channel else None
            channel.on_connect = self.adopter(node.name)
            self._links[node.name] = link
        return [*unused, *(link.channel for link in before.values())]

    def _channel(self, pool: PoolDefinition, node: NodeDefinition) -> SshChannel:
        return SshChannel(
            node.name,
            ssh_command(pool, node, self._patience),
            desk=(f"{pool.root}/{self._own}", pool.name, self._options.nvml_library, pool.root),
            root=pool.root,
            python=pool.python,
            runner=self._runner,
            patience=self._patience,
        )


def ssh_command(pool: PoolDefinition, node: NodeDefinition, patience: Patience) -> tuple[str, ...]:
    """OpenSSH's client and its options for a node: never a question, never an unknown host key, nothing forwarded."""
    options = {
        "BatchMode": "yes",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": _expanded(pool.known_hosts),
        "GlobalKnownHostsFile": "none",
        "UpdateHostKeys": "no",
        "CheckHostIP": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "ForwardAgent": "no",
        "ForwardX11": "no",
        "ClearAllForwardings": "yes",
        "PermitLocalCommand": "no",
        "ControlMaster": "no",
        "ControlPath": "none",
        "ConnectTimeout": str(max(1, round(patience.connect_s))),
        "ServerAliveInterval": str(patience.alive_s),
        "ServerAliveCountMax": "2",
        "LogLevel": "ERROR",
        **({"IdentityFile": _expanded(node.key_file), "IdentitiesOnly": "yes"} if node.key_file else {}),
    }
    flags = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    config = _expanded(pool.ssh_config) if pool.ssh_config else "none"
    host = node.host.strip("[]")
    return ("ssh", "-T", "-F", config, *flags, "-p", str(node.port), "-l", node.user, "--", host)


def read_pool_file(path: Path) -> tuple[PoolDefinition, ...]:
    """The pools of the file; none when there is no file. InvalidInput names each fault with its line, and each file
    that it names and that can't be used."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path} can't be read: {error}", "check its rights and that it is text") from None
    pools = parse_pools(text)
    problems = [problem for pool in pools for problem in _unusable(pool)]
    if pools and shutil.which("ssh") is None:
        problems.append(Problem(field="pools", message="this machine has no ssh", hint="install openssh-client"))
    if problems:
        raise InvalidInput(f"the pool file {path}: {problems[0]}", problems[0].hint, problems)
    return pools


def installation_id(home: Path) -> str:
    """What tells this control plane's folders on nodes from another's; made once."""
    file = home / "installation"
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        replace_durably(file, secrets.token_hex(6).encode())
        return file.read_text().strip()


def _unusable(pool: PoolDefinition) -> Sequence[Problem]:
    found: list[Problem] = []
    place = f"pools.{pool.name}"
    files = {f"{place}.known_hosts": pool.known_hosts, f"{place}.ssh_config": pool.ssh_config}
    files |= {f"{place}.nodes.{node.name}.key_file": node.key_file for node in pool.nodes}
    seen: set[str] = set()
    for field, name in files.items():
        if not name or name in seen:
            continue
        seen.add(name)
        file = Path(_expanded(name))
        if not file.is_file():
            found.append(
                Problem(field=field, message=f"{file} is no file", hint="give the path of a file on this server")
            )
        elif not os.access(file, os.R_OK):
            found.append(Problem(field=field, message=f"{file} can't be read by this server", hint="check its owner"))
        elif field.endswith("key_file") and stat.S_IMODE(file.stat().st_mode) & 0o077:
            found.append(Problem(field=field, message=f"{file} can be read by others", hint=f"chmod 600 {file}"))
    return found


def _expanded(path: str) -> str:
    return str(Path(path).expanduser())


def _link(node: NodeDefinition, channel: SshChannel) -> Link:
    return Link(
        name=node.name,
        channel=channel,
        address=node.address,
        labels=tuple(sorted(node.labels.items())),
        node_type=node.node_type,
        price_microusd_per_hour=node.price_microusd_per_hour,
        price_as_of=node.price_as_of,
    )
