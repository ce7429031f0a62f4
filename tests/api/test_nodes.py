"""Nodes and pools through the door: what there is, and keeping new work away from a node."""

from __future__ import annotations

import os

import pytest
from tests.api.conftest import Served

from groundplane.client import Client
from groundplane.errors import Forbidden, InvalidInput, NotFound
from groundplane.identity import Role

HERE = os.uname().nodename


def test_this_machine_is_a_node_and_its_pool_has_a_price(served: Served) -> None:
    (node,) = served.client.nodes()
    assert (node.name, node.pool, node.health.value, node.cordoned) == (HERE, "local", "ready", "")
    assert node.cpus > 0
    (pool,) = served.client.pools()
    assert (pool.name, pool.nodes, pool.ready) == ("local", 1, 1)
    assert pool.price_low_microusd_per_hour == pool.price_high_microusd_per_hour


def test_a_cordon_keeps_its_first_reason_until_it_is_lifted(served: Served) -> None:
    served.client.cordon("local", HERE, "Xid 79 on GPU 3")
    served.client.cordon("local", HERE, "another")
    assert served.client.node("local", HERE).cordoned == "Xid 79 on GPU 3"
    assert served.client.pools()[0].cordoned == 1
    served.client.uncordon("local", HERE, "card replaced")
    assert served.client.node("local", HERE).cordoned == ""
    with pytest.raises(NotFound):
        served.client.uncordon("local", HERE)
    told = {event.action: event for event in served.client.audit_events() if event.object_id == f"local/{HERE}"}
    assert told["node.cordon"].reason == "Xid 79 on GPU 3"
    assert told["node.uncordon"].reason == "card replaced"


def test_nobody_and_nothing_is_cordoned_by_mistake(served: Served) -> None:
    with pytest.raises(NotFound, match="has no node nowhere"):
        served.client.cordon("local", "nowhere", "why")
    with pytest.raises(NotFound, match="no pool moon"):
        served.client.nodes("moon")
    with pytest.raises(InvalidInput):
        served.client.cordon("local", HERE, "  ")
    with Client(served.url, served.key(Role.VIEWER)) as viewer:
        assert viewer.nodes()
        with pytest.raises(Forbidden):
            viewer.cordon("local", HERE, "why")


def test_nodes_are_metrics(served: Served) -> None:
    assert 'ground_nodes{health="ready",pool="local"} 1.0' in served.raw("GET", "/metrics").text
