"""The pool file: which machines make up a pool, how they are reached, and what they cost.

Text → definitions, or every fault in it with its line. docs/guides/pools.md explains each field.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any

from yaml.nodes import MappingNode, Node, SequenceNode

from groundplane.domain.isolation import Isolation
from groundplane.domain.spec import values as v
from groundplane.domain.spec.values import Fault, Reader, Unreadable, entries, kind_of, shown
from groundplane.domain.spec.yaml_nodes import compose_documents, line_of
from groundplane.errors import InvalidInput, Problem

API_VERSION, KIND = "groundplane/v1", "Pools"
MAX_NODES = 4_096
GONE_LIMIT_DEFAULT_S = 4 * 3600
"""Longer than a control plane is away in ordinary trouble; nothing waits for a dead node over night."""
_NAME = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME_MEANING = "a name (lowercase letters, digits and -, at most 63)"
_HOST = r"[A-Za-z0-9\[][A-Za-z0-9.:%_\]-]{0,252}"
_USER = r"[a-z_][a-z0-9_.-]{0,63}"
_PATH = r"[^\x00-\x1f]{1,4096}"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeDefinition:
    """A machine. `address` is what other nodes of the pool reach it by: `host` unless the file says otherwise."""

    name: str
    host: str
    port: int
    user: str
    key_file: str
    address: str
    node_type: str
    price_microusd_per_hour: int
    price_as_of: date
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolDefinition:
    """A pool of the `ssh` executor. `shared_dir` is empty when runs keep their files on their node.

    `control_plane_gone_limit_s` is the dead-man timer of jobs that set none; None: they have none. `isolation` is what
    jobs get here that ask for nothing, and the least that they may ask for; None leaves that to the installation.
    """

    name: str
    known_hosts: str
    ssh_config: str
    python: str
    root: str
    shared_dir: str
    nodes: tuple[NodeDefinition, ...]
    control_plane_gone_limit_s: int | None
    isolation: Isolation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolChanges:
    """What a pool file read anew has changed: names of pools, and of nodes as `pool/node`."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def compare(before: PoolDefinition | None, after: PoolDefinition | None) -> PoolChanges:
    """What became of one pool; None where there is none."""
    if before is None or after is None:
        pool = before or after
        assert pool is not None
        names = (pool.name, *(f"{pool.name}/{node.name}" for node in pool.nodes))
        return PoolChanges(added=names) if before is None else PoolChanges(removed=names)
    had, has = _by_name(before), _by_name(after)
    changed = [before.name] if replace(before, nodes=()) != replace(after, nodes=()) else []
    changed += [f"{after.name}/{name}" for name in has if name in had and has[name] != had[name]]
    return PoolChanges(
        added=tuple(f"{after.name}/{name}" for name in has if name not in had),
        removed=tuple(f"{after.name}/{name}" for name in had if name not in has),
        changed=tuple(changed),
    )


def moved(before: PoolDefinition, after: PoolDefinition | None) -> list[str]:
    """The nodes whose attempts would be out of reach: gone, another machine or account, or another folder."""
    if after is None or (before.root, before.shared_dir) != (after.root, after.shared_dir):
        return [node.name for node in before.nodes]
    has = _by_name(after)

    def place(node: NodeDefinition) -> tuple[str, int, str]:
        return node.host, node.port, node.user

    return [node.name for node in before.nodes if node.name not in has or place(node) != place(has[node.name])]


def _by_name(pool: PoolDefinition) -> dict[str, NodeDefinition]:
    return {node.name: node for node in pool.nodes}


def _day(node: Node, _now: datetime) -> date:
    text = str(getattr(node, "value", ""))
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise Unreadable(Fault(line_of(node), f"{shown(text)} is no date", "write it like 2026-11-20")) from None


def _duration_or_never(node: Node, now: datetime) -> int | None:
    if getattr(node, "value", "") == "never":
        return None
    seconds: int = v.duration()(node, now)  # type: ignore[assignment]
    return seconds


_TEXT = v.text(_PATH, "a path", example="~/.ssh/id_ed25519")
_SHARED: dict[str, Reader] = {
    "user": v.text(_USER, "a user's name", example="ground"),
    "port": v.integer(1, 65535),
    "key_file": _TEXT,
    "type": v.text(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", "a node type", example="h100x8"),
    "price": v.money(zero=True),
    "price_as_of": _day,
    "labels": v.text_map(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}", "a label key"),
}
_POOL: dict[str, Reader] = {
    **_SHARED,
    "executor": v.choice("ssh"),
    "known_hosts": _TEXT,
    "ssh_config": _TEXT,
    "python": v.text(r"[A-Za-z0-9._/-]{1,256}", "a program", example="python3"),
    "root": v.text(r"[A-Za-z0-9._/~-]{1,1024}", "a folder without blanks", example="~/.groundplane-node"),
    "control_plane_gone_limit": _duration_or_never,
    "isolation": v.choice(*Isolation),
    "shared_dir": v.text(r"/[A-Za-z0-9._/-]{1,1024}", "an absolute folder", example="/mnt/shared"),
}
_NODE: dict[str, Reader] = {
    **_SHARED,
    "name": v.text(_NAME, _NAME_MEANING, example="alpha"),
    "host": v.text(_HOST, "a host name or address", example="10.0.0.11"),
    "address": v.text(_HOST, "a host name or address", example="10.1.0.11"),
}
FIELDS = {"pool": tuple(_POOL), "node": tuple(_NODE)}


@dataclass(slots=True)
class _Reading:
    problems: list[Problem] = field(default_factory=list)

    def fault(self, path: str, line: int, message: str, hint: str = "") -> None:
        self.problems.append(Problem(field=path, message=message, line=line, hint=hint))


def parse_pools(text: str) -> tuple[PoolDefinition, ...]:
    """Every pool of the file, in order. Raises InvalidInput with every fault found, each with its 1-based line."""
    documents = compose_documents(text)
    reading = _Reading()
    pools: list[PoolDefinition] = []
    for document in documents:
        top = _mapping(document, "", {"apiVersion", "kind", "pools"}, reading)
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
            written = str(getattr(top.get(name), "value", ""))
            if written != wanted:
                reading.fault(name, line_of(document), f"must be {wanted}, is {written or 'missing'}")
        if "pools" not in top:
            reading.fault("pools", line_of(document), "is missing", "pools: {lab: {…}}")
            continue
        for name, node in _mapping(top["pools"], "pools", None, reading).items():
            pool = _pool(name, node, reading)
            if pool is not None:
                pools.append(pool)
    if reading.problems:
        first = reading.problems[0]
        more = f" (and {len(reading.problems) - 1} more)" if len(reading.problems) > 1 else ""
        raise InvalidInput(f"the pool file: {first}{more}", first.hint, reading.problems)
    return tuple(pools)


def _pool(name: str, node: Node, reading: _Reading) -> PoolDefinition | None:
    path = f"pools.{name}"
    before = len(reading.problems)
    found = _mapping(node, path, {*_POOL, "nodes"}, reading)
    values = _values(found, path, _POOL, reading)
    if name == "local":
        reading.fault(path, line_of(node), "local is this machine", "give the pool another name")
    if not re.fullmatch(_NAME, name):
        reading.fault(path, line_of(node), f"{shown(name)} is not {_NAME_MEANING}", "write it like lab")
    if "known_hosts" not in values and "known_hosts" not in found:
        reading.fault(
            f"{path}.known_hosts", line_of(node), "is missing: host keys are always checked", "known_hosts: FILE"
        )
    nodes = _nodes(found.get("nodes"), node, path, values, reading)
    if len(reading.problems) > before:
        return None
    return PoolDefinition(
        name=name,
        known_hosts=values["known_hosts"],
        ssh_config=values.get("ssh_config", ""),
        python=values.get("python", "python3"),
        root=values.get("root", "~/.groundplane-node"),
        shared_dir=values.get("shared_dir", "").rstrip("/"),
        nodes=nodes,
        control_plane_gone_limit_s=values.get("control_plane_gone_limit", GONE_LIMIT_DEFAULT_S),
        isolation=Isolation(values["isolation"]) if "isolation" in values else None,
    )


def _nodes(
    listed: Node | None, pool: Node, path: str, shared: Mapping[str, Any], reading: _Reading
) -> tuple[NodeDefinition, ...]:
    if not isinstance(listed, SequenceNode) or not listed.value:
        is_now = kind_of(listed) if listed is not None else "missing"
        reading.fault(f"{path}.nodes", line_of(listed or pool), f"must be a list of nodes, is {is_now}", "nodes: [{…}]")
        return ()
    if len(listed.value) > MAX_NODES:
        reading.fault(f"{path}.nodes", line_of(listed), f"has {len(listed.value)} nodes; the limit is {MAX_NODES}")
        return ()
    nodes: list[NodeDefinition] = []
    first_line: dict[str, int] = {}
    for index, item in enumerate(listed.value):
        here = f"{path}.nodes[{index}]"
        before = len(reading.problems)
        own = _values(_mapping(item, here, set(_NODE), reading), here, _NODE, reading)
        values = {**shared, **own, "labels": {**shared.get("labels", {}), **own.get("labels", {})}}
        for name, hint in (("name", "name: alpha"), ("host", "host: 10.0.0.11"), ("price", "price: $1.20, per hour")):
            if name not in values and len(reading.problems) == before:
                reading.fault(f"{here}.{name}", line_of(item), "is missing", hint)
        for name, hint in (("user", "user: ground"), ("price_as_of", "price_as_of: 2026-11-20, the day it is from")):
            if name not in values and len(reading.problems) == before:
                reading.fault(f"{here}.{name}", line_of(item), "is missing, here and in its pool", hint)
        if len(reading.problems) > before:
            continue
        if values["name"] in first_line:
            message = f"{values['name']!r} is also the node on line {first_line[values['name']]}"
            reading.fault(f"{here}.name", line_of(item), message, "rename one of them")
            continue
        first_line[values["name"]] = line_of(item)
        nodes.append(_node(values))
    return tuple(nodes)


def _node(values: Mapping[str, Any]) -> NodeDefinition:
    return NodeDefinition(
        name=values["name"],
        host=values["host"],
        port=values.get("port", 22),
        user=values["user"],
        key_file=values.get("key_file", ""),
        address=values.get("address", values["host"]),
        node_type=values.get("type", ""),
        price_microusd_per_hour=values["price"],
        price_as_of=values["price_as_of"],
        labels=values["labels"],
    )


def _mapping(node: Node, path: str, known: set[str] | None, reading: _Reading) -> dict[str, Node]:
    faults: list[Fault] = []
    found: dict[str, Node] = {}
    if not isinstance(node, MappingNode):
        reading.fault(path, line_of(node), f"must be a mapping of fields, is {kind_of(node)}")
        return found
    for key, value in entries(node, faults):
        if known is not None and key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            reading.fault(f"{path}.{key}".lstrip("."), line_of(value), "is no field of the pool file", hint)
            continue
        found[key] = value
    for fault in faults:
        reading.fault(path, fault.line, fault.message, fault.hint)
    return found


def _values(found: Mapping[str, Node], path: str, readers: Mapping[str, Reader], reading: _Reading) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, node in found.items():
        if name not in readers:
            continue
        try:
            values[name] = readers[name](node, datetime(2000, 1, 1, tzinfo=UTC))
        except Unreadable as error:
            for fault in error.faults:
                reading.fault(f"{path}.{name}{fault.where}", fault.line, fault.message, fault.hint)
    return values
