"""The part of the SDK that looks after machines: pools, nodes, cordons."""

from __future__ import annotations

from groundplane.client.transport import Transport, part
from groundplane.domain.node import Cordon, Node, PoolView
from groundplane.domain.pool_file import PoolChanges
from groundplane.wire import ReasonRequest


class NodeCalls(Transport):
    def pools(self) -> list[PoolView]:
        return self._call("GET", "/v1/pools", list[PoolView])

    def reload_pools(self, reason: str = "") -> PoolChanges:
        """InvalidInput with every fault of the pool file; Conflict when what it leaves out is at work."""
        return self._call("POST", "/v1/pools/reload", PoolChanges, body=ReasonRequest(reason=reason))

    def nodes(self, pool: str | None = None) -> list[Node]:
        """Also those that do not answer. NotFound for a pool that there is not."""
        return self._call("GET", "/v1/nodes", list[Node], params={"pool": pool})

    def node(self, pool: str, name: str) -> Node:
        return self._call("GET", _path(pool, name), Node)

    def cordon(self, pool: str, name: str, reason: str) -> Cordon:
        """Sends no new work there; what runs there goes on."""
        return self._call("PUT", f"{_path(pool, name)}/cordon", Cordon, body=ReasonRequest(reason=reason))

    def uncordon(self, pool: str, name: str, reason: str = "") -> None:
        self._send("DELETE", f"{_path(pool, name)}/cordon", params={"reason": reason})


def _path(pool: str, name: str) -> str:
    return f"/v1/nodes/{part(pool)}/{part(name)}"
