"""The part of the SDK that looks after machines: pools, nodes, cordons."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from groundplane.domain.node import Cordon, Node, PoolView
from groundplane.wire import ReasonRequest

Answer = TypeVar("Answer")


class NodeCalls(ABC):
    """Mixed into `groundplane.client.Client`, which sends."""

    def pools(self) -> list[PoolView]:
        return self._call("GET", "/v1/pools", list[PoolView])

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

    @abstractmethod
    def _call(
        self,
        method: str,
        path: str,
        answer: type[Answer],
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
    ) -> Answer: ...

    @abstractmethod
    def _send(self, method: str, path: str, *, params: Mapping[str, Any] | None = None) -> Any: ...


def _path(pool: str, name: str) -> str:
    return f"/v1/nodes/{quote(pool, safe='')}/{quote(name, safe='')}"
