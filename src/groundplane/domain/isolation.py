"""How a job is kept apart from its node: the ways there are, which is stronger, and which one a run gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum


class Isolation(StrEnum):
    """Weakest first. Each has everything the ones before it have."""

    NONE = "none"
    USER = "user"
    BUBBLEWRAP = "bubblewrap"
    PODMAN = "podman"


STRENGTH = {mode: place for place, mode in enumerate(Isolation)}
MEANING = {
    Isolation.NONE: "a process group, a folder and limits of its own; it may read what the runner's user may",
    Isolation.USER: "also a user id of its own and no sight of other runs or of the control plane's files",
    Isolation.BUBBLEWRAP: "also a read-only system, an empty /tmp, no other processes, assigned devices only",
    Isolation.PODMAN: "a container of the named image instead of this node's programs",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobIsolation:
    """What an order asks of a node. A job gets one of `uids` user ids from `first_uid` on, where the runner is root."""

    mode: str = Isolation.NONE.value
    image: str = ""
    network: bool = True
    first_uid: int = 710_000
    uids: int = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolationPolicy:
    """The installation's: what a spec that says nothing gets, and the least that a spec may ask for.

    `pools` are ways that pools ask for by themselves: specs there get that, and may only ask for more.
    """

    default: Isolation = Isolation.NONE
    minimum: Isolation = Isolation.NONE
    first_uid: int = 710_000
    uids: int = 1_000
    pids_limit: int = 16_384
    pools: Mapping[str, Isolation] = field(default_factory=dict)

    def in_pool(self, pool: str) -> IsolationPolicy:
        """What holds for the runs of one pool. The installation's minimum holds everywhere."""
        own = self.pools.get(pool)
        if own is None:
            return self
        return replace(self, default=own, minimum=max(own, self.minimum, key=lambda mode: STRENGTH[mode]))


def effective(asked: str, policy: IsolationPolicy) -> Isolation:
    """The way a run is kept apart: what it asked for, else the default, never below the minimum when it did not ask."""
    if asked:
        return Isolation(asked)
    return max(policy.default, policy.minimum, key=lambda mode: STRENGTH[mode])
