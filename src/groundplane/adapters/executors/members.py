"""The members of an attempt: their ids on nodes, and what they find each other by."""

from __future__ import annotations

import re
from collections.abc import Sequence

from groundplane.adapters.executors.placements import Placed
from groundplane.domain.order import Order
from groundplane.domain.queue import INPUT_PREFIX

MEMBER = re.compile(r"(?P<attempt>.+)\.r(?P<rank>\d+)of(?P<size>\d+)")


def members_of(attempt_id: str, placed: Placed) -> list[tuple[str, str]]:
    """(node, the member's id there) by rank."""
    size = len(placed.members)
    if size == 1:
        return [(placed.members[0], attempt_id)]
    return [(node, f"{attempt_id}.r{rank}of{size}") for rank, node in enumerate(placed.members)]


def split(member: str) -> tuple[str, int, int]:
    """(attempt id, rank, size) of a member's id."""
    found = MEMBER.fullmatch(member)
    return (found["attempt"], int(found["rank"]), int(found["size"])) if found else (member, 0, 1)


def as_seen_there(order: Order, shared_dir: str | None) -> dict[str, str]:
    """The order's environment with the folders that it needs as nodes with a shared folder see them."""
    if not shared_dir:
        return dict(order.env)
    here, there = order.output_dir.removesuffix(f"{order.run_id}/output"), f"{shared_dir}/runs/"
    return {
        name: ":".join(there + path.removeprefix(here) if path.startswith(here) else path for path in value.split(":"))
        if name.startswith(INPUT_PREFIX)
        else value
        for name, value in order.env.items()
    }


def environment(placed: Placed, rank: int, addresses: Sequence[str], accelerators: int) -> dict[str, str]:
    """What members find each other by; `addresses` by rank. The PET_ ones are torchrun's own names for its options.

    Source: PyTorch, torch.distributed.run and argparse_util (env PET_<option>); docs/guides/pools.md.
    """
    size = len(placed.members)
    said = {"GROUND_NODES": str(size), "GROUND_NODE_RANK": str(rank), "GROUND_NODE": placed.members[rank]}
    if size == 1:
        return said
    address, port = addresses[0], str(placed.port)
    said |= {"GROUND_NODE_ADDRESSES": ",".join(addresses), "MASTER_ADDR": address, "MASTER_PORT": port}
    said |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": "0", "NODE_RANK": str(rank)}
    said |= {"PET_NNODES": str(size), "PET_NODE_RANK": str(rank)}
    said |= {"PET_MASTER_ADDR": address, "PET_MASTER_PORT": port}
    if accelerators:
        said["PET_NPROC_PER_NODE"] = str(accelerators)
    return said
