"""The pool file: what it says becomes pools; what it gets wrong is told with its line, all at once."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundplane.domain.isolation import Isolation, IsolationPolicy, effective
from groundplane.domain.pool_file import GONE_LIMIT_DEFAULT_S, parse_pools
from groundplane.errors import InvalidInput

GOOD = """\
apiVersion: groundplane/v1
kind: Pools
pools:
  lab:
    user: ground
    key_file: ~/.ssh/key
    known_hosts: ~/.ssh/known_hosts
    price: $1.20
    price_as_of: 2026-11-20
    labels: {site: basement}
    nodes:
      - {name: alpha, host: 10.0.0.11}
      - {name: beta, host: beta.lab, port: 2222, user: ana, address: 10.1.0.12, price: $2, type: a100x4}
"""


def test_a_node_takes_from_its_pool_what_it_does_not_say_itself() -> None:
    (pool,) = parse_pools(GOOD)
    alpha, beta = pool.nodes
    assert pool.control_plane_gone_limit_s == GONE_LIMIT_DEFAULT_S
    for written, limit_s in (("never", None), ("90m", 5400)):
        (other,) = parse_pools(GOOD.replace("    user:", f"    control_plane_gone_limit: {written}\n    user:"))
        assert other.control_plane_gone_limit_s == limit_s
    assert (pool.name, pool.python, pool.root, pool.shared_dir) == ("lab", "python3", "~/.groundplane-node", "")
    assert (alpha.user, alpha.port, alpha.host, alpha.price_microusd_per_hour) == (
        "ground",
        22,
        "10.0.0.11",
        1_200_000,
    )
    assert (beta.user, beta.port, beta.address, beta.price_microusd_per_hour) == ("ana", 2222, "10.1.0.12", 2_000_000)
    assert (beta.node_type, beta.price_as_of) == ("a100x4", date(2026, 11, 20))
    assert beta.labels == {"site": "basement"}


@pytest.mark.parametrize(
    ("find", "replace", "line", "words"),
    [
        ("    price: $1.20\n", "", 11, "price: is missing"),
        ("    price_as_of: 2026-11-20\n", "", 11, "price_as_of: is missing"),
        ("    known_hosts: ~/.ssh/known_hosts\n", "", 5, "host keys are always checked"),
        ("user: ground", "usr: ground", 5, "is no field"),
        ("$1.20", "-3", 8, "below $0"),
        ("2026-11-20", "yesterday", 9, "is no date"),
        ("name: beta", "name: alpha", 13, "also the node on line 12"),
        ("host: 10.0.0.11", "host: -oProxyCommand=x", 12, "host name or address"),
        ("user: ground", "user: -oProxyCommand", 5, "user's name"),
        ("port: 2222", "port: 99999", 13, "99999"),
        ("  lab:", "  local:", 5, "local is this machine"),
        ("  lab:", "  Lab_1:", 5, "a name"),
        ("kind: Pools", "kind: Pool", 1, "must be Pools"),
        ("    nodes:", "    nodes: []\n    other:", 11, "must be a list of nodes"),
    ],
)
def test_a_fault_is_told_with_its_line(find: str, replace: str, line: int, words: str) -> None:
    assert find in GOOD
    with pytest.raises(InvalidInput) as raised:
        parse_pools(GOOD.replace(find, replace, 1))
    told = [str(problem) for problem in raised.value.problems]
    assert any(words in each and f"line {line}:" in each for each in told), told


def test_all_faults_come_at_once() -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_pools(GOOD.replace("ground\n", "0ne\n").replace("$1.20", "free").replace("10.0.0.11", "-x"))
    assert len(raised.value.problems) >= 3


@given(st.text(max_size=200))
def test_no_text_ends_in_anything_but_pools_or_problems(text: str) -> None:
    for candidate in (text, GOOD + text, GOOD.replace("alpha", text)):
        try:
            parse_pools(candidate)
        except InvalidInput:
            continue


def test_a_pool_may_ask_for_walls_that_its_specs_can_only_strengthen() -> None:
    (pool,) = parse_pools(GOOD.replace("    user:", "    isolation: bubblewrap\n    user:"))
    assert pool.isolation is Isolation.BUBBLEWRAP
    ours = IsolationPolicy(default=Isolation.NONE, minimum=Isolation.USER, pools={"lab": Isolation.BUBBLEWRAP})
    there, here = ours.in_pool("lab"), ours.in_pool("local")
    assert (there.default, there.minimum) == (Isolation.BUBBLEWRAP, Isolation.BUBBLEWRAP)
    assert effective("", there) is Isolation.BUBBLEWRAP
    assert here == ours
    weak = replace(ours, pools={"lab": Isolation.NONE}).in_pool("lab")
    assert effective("", weak) is Isolation.USER, "the installation's minimum holds everywhere"
    with pytest.raises(InvalidInput, match=r"isolation.*is not one of: none, user, bubblewrap, podman"):
        parse_pools(GOOD.replace("    user:", "    isolation: vm\n    user:"))
