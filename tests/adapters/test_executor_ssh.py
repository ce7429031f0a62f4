"""Machines reached over SSH: cut cables, power cuts, wrong keys, gangs, two control planes on one node."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.hosts import Hosts, SlowWire

from groundplane.adapters.executors.channels import Patience
from groundplane.adapters.executors.nodes import RunnerOptions
from groundplane.adapters.executors.placements import Placed
from groundplane.adapters.executors.ssh import SshExecutor
from groundplane.domain.node import NodeHealth, Placement
from groundplane.domain.order import Order
from groundplane.domain.pool_file import GONE_LIMIT_DEFAULT_S, PoolDefinition, moved, parse_pools
from groundplane.domain.run import EndReason, Observation
from groundplane.errors import InvalidInput, Unavailable

pytestmark = pytest.mark.needs("sshd")
PATIENCE_S = 90.0
SOON = Patience(connect_s=1, answer_s=1.5, alive_s=1, retry_max_s=0.5)
NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "NVIDIA H100 80GB HBM3", n); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) { m[0] = 81559ULL << 20; m[1] = m[0]; m[2] = 0; return 0; }
int nvmlDeviceGetUtilizationRates(void *h, unsigned *u) { u[0] = 0; u[1] = 0; return 0; }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *t) { *t = 40; return 0; }
"""


class System:
    def now(self) -> datetime:
        return datetime.now(UTC)


class Lab:
    """Executors over the test machines, each with a home of its own unless told otherwise."""

    def __init__(self, hosts: Hosts, place: Path) -> None:
        self.hosts, self.place = hosts, place
        self.opened: list[SshExecutor] = []

    def pool(self, nodes: int = 2, first: dict[str, object] | None = None, **fields: object) -> PoolDefinition:
        listed = [{"name": host.name, "host": host.address} for host in self.hosts.hosts[:nodes]]
        listed[0] |= first or {}  # type: ignore[arg-type]
        body = {
            "user": "root",
            "key_file": str(self.hosts.key),
            "known_hosts": str(self.hosts.known_hosts),
            "price": "$1.20",
            "price_as_of": "2026-11-20",
            "nodes": listed,
            **fields,
        }
        (pool,) = parse_pools(json.dumps({"apiVersion": "groundplane/v1", "kind": "Pools", "pools": {"lab": body}}))
        return pool

    def open(self, nodes: int = 2, home: str = "home", **options: Any) -> SshExecutor:
        pool = options.pop("pool", None) or self.pool(nodes)
        installation = options.pop("installation", "test")
        patience = options.pop("patience", SOON)
        runner = RunnerOptions(sample_period_s=0.2, **options)
        self.opened.append(
            SshExecutor(pool, self.place / home, System(), installation=installation, options=runner, patience=patience)
        )
        return self.opened[-1]

    def order(self, command: str, attempt_id: str = "att-1", **changes: Any) -> Order:
        fields: dict[str, Any] = {
            "attempt_id": attempt_id,
            "run_id": "run-1",
            "number": 1,
            "command": ("sh", "-c", command),
            "workdir": "",
            "env": {},
            "checkpoint_dir": "",
            "output_dir": "",
            "cpus": 1.0,
            "memory_bytes": 0,
            "accelerators": 0,
            "max_duration_s": 300.0,
            "idle_limit_s": None,
            "control_plane_gone_limit_s": None,
            "stop_grace_s": 1.0,
            "not_after": datetime.now(UTC) + timedelta(hours=1),
        }
        return Order(**{**fields, **changes})

    async def until(
        self, executor: SshExecutor, holds: Callable[[Observation], object], attempt_id: str = "att-1"
    ) -> Observation:
        deadline = time.monotonic() + PATIENCE_S
        while not holds(seen := (await executor.observe([attempt_id]))[attempt_id]):
            assert time.monotonic() < deadline, f"still {seen}"
            await asyncio.sleep(0.05)
        return seen

    async def ended(self, executor: SshExecutor, attempt_id: str = "att-1") -> Observation:
        return await self.until(executor, lambda seen: seen.state == "ended", attempt_id)

    async def log(self, executor: SshExecutor, rank: int = 0, attempt_id: str = "att-1") -> bytes:
        return (await executor.log(attempt_id, 0, 10_000, rank)).data


@pytest.fixture
async def lab(hosts: Hosts, tmp_path: Path) -> AsyncIterator[Lab]:
    made = Lab(hosts, tmp_path)
    yield made
    for executor in made.opened:
        await executor.close()


async def running(lab: Lab, executor: SshExecutor, attempt_id: str = "att-1") -> Observation:
    return await lab.until(executor, lambda seen: seen.state == "running", attempt_id)


# ---------------------------------------------------------------- cables and power


async def test_behind_a_cut_cable_jobs_go_on_unknown_to_us_and_end_by_their_own_timer_alone(lab: Lab) -> None:
    executor = lab.open(1)
    host = lab.hosts.hosts[0]
    await executor.start(lab.order("for i in $(seq 3000); do echo $i; sleep 0.1; done"))
    await executor.start(lab.order("sleep 300", "att-2", control_plane_gone_limit_s=2.5))
    await executor.beat()
    before = await running(lab, executor)
    await running(lab, executor, "att-2")
    await executor.beat()
    host.cut()
    seen = await lab.until(executor, lambda seen: seen.state == "unknown")
    assert seen.end_reason is None
    assert seen.silent_since is not None
    assert seen.gone_limit_s == GONE_LIMIT_DEFAULT_S, "the pool's, for the order set none"
    with pytest.raises(Unavailable):
        await executor.stop("att-1", EndReason.STOPPED_BY_USER)
    assert await executor.attempts() == ["att-1", "att-2"]
    state = host.root / "test" / "attempts" / "att-2" / "state.json"
    deadline = time.monotonic() + PATIENCE_S
    while json.loads(state.read_text())["state"] != "ended":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    host.mend()
    assert (await running(lab, executor)).started_at == before.started_at
    assert (await lab.ended(executor, "att-2")).end_reason is EndReason.CONTROL_PLANE_GONE
    numbers = (await lab.log(executor)).split()
    assert numbers == [str(number + 1).encode() for number in range(len(numbers))]


async def test_a_power_cut_ends_the_attempt_and_leaves_no_process(lab: Lab) -> None:
    executor = lab.open()
    await executor.start(lab.order("sleep 300"))
    seen = await running(lab, executor)
    host = next(each for each in lab.hosts.hosts if each.name == seen.node)
    host.crash()
    assert (await lab.until(executor, lambda seen: seen.state == "unknown")).end_reason is None
    host.start()
    host.wait()
    over = await lab.ended(executor)
    assert over.end_reason is EndReason.RUNNER_LOST
    await executor.release("att-1")
    assert await executor.attempts() == []


async def test_another_control_plane_on_the_same_home_adopts_what_runs(lab: Lab) -> None:
    first = lab.open()
    await first.start(lab.order("sleep 300"))
    await running(lab, first)
    await first.close()
    shutil.rmtree(lab.place / "home")  # even its own notes are gone
    second = lab.open()
    assert (await running(lab, second)).state == "running"
    await second.start(lab.order("sleep 300"))
    await second.stop("att-1", EndReason.MAX_COST)
    assert (await lab.ended(second)).end_reason is EndReason.MAX_COST


async def test_a_pool_that_changes_keeps_what_runs_and_the_connections_that_it_does_not_touch(lab: Lab) -> None:
    executor = lab.open(2)
    await executor.start(lab.order("sleep 300"))
    seen = await running(lab, executor)
    kept = executor._links[seen.node].channel
    wider = lab.pool(3)
    left = tuple(node for node in wider.nodes if node.name in {seen.node, "n2"})
    await executor.redefine(replace(wider, nodes=left))
    assert executor._links[seen.node].channel is kept
    assert {(node.name, node.health) for node in await executor.nodes()} == {
        (seen.node, NodeHealth.READY),
        ("n2", NodeHealth.READY),
    }
    assert (await running(lab, executor)).started_at == seen.started_at
    assert executor.holding() == {seen.node: 1}
    elsewhere = [replace(node, port=23) for node in left]
    assert moved(wider, replace(wider, nodes=tuple(elsewhere))) == [node.name for node in wider.nodes]


async def test_an_attempt_that_no_node_has_is_unknown_until_every_node_was_heard(lab: Lab) -> None:
    lab.hosts.hosts[1].cut()
    executor = lab.open()
    assert (await executor.observe(["att-9"]))["att-9"].state == "unknown"
    lab.hosts.hosts[1].mend()
    seen = await lab.until(executor, lambda seen: seen.state == "absent", "att-9")
    assert seen.end_reason is None


async def test_with_a_silent_node_single_attempts_go_elsewhere_and_stay_and_gangs_start_whole_later(lab: Lab) -> None:
    executor = lab.open()
    first, second = lab.hosts.hosts[:2]
    await executor.nodes()
    first.cut()
    await asyncio.wait_for(executor.start(lab.order("sleep 300")), 40)
    assert (await running(lab, executor)).node == "n1"
    with pytest.raises(Unavailable):
        await executor.start(lab.order("echo whole", "att-2", nodes=2))
    assert (await executor.observe(["att-2"]))["att-2"].state == "absent"
    assert [each.parent.name for each in second.root.glob("test/attempts/*/state.json")] == ["att-1"]
    first.mend()
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            await executor.start(lab.order("echo whole", "att-2", nodes=2))
            break
        except Unavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
    assert (await lab.ended(executor, "att-2")).end_reason is EndReason.SUCCEEDED
    assert (await executor.nodes())[0].health is NodeHealth.READY
    assert (await running(lab, executor)).node == "n1"
    assert not (first.root / "test" / "attempts" / "att-1" / "state.json").exists()


# ---------------------------------------------------------------- what a node needs


@pytest.mark.parametrize(
    ("change", "says", "hint", "health"),
    [
        ({"port": 23}, "nothing listens", "start sshd", NodeHealth.SILENT),
        ({"user": "nobody"}, "refuses our key", "authorized_keys", NodeHealth.REFUSED),
        ({"host": "no-such-host.invalid"}, "can't be resolved", "DNS", NodeHealth.SILENT),
    ],
)
async def test_what_is_wrong_with_a_node_is_told_apart(
    lab: Lab, change: dict[str, object], says: str, hint: str, health: NodeHealth
) -> None:
    executor = lab.open(pool=lab.pool(1, first=change))
    error = await _failure(executor)
    assert says in error.message
    assert hint in error.hint
    (node,) = await executor.nodes()
    assert (node.health, node.reason, node.hint) == (health, error.message, error.hint)


async def _failure(executor: SshExecutor) -> Unavailable:
    try:
        await executor.offers()
    except Unavailable as error:
        return error
    raise AssertionError("it offers something")


async def test_an_unknown_and_a_changed_host_key_are_told_apart_and_never_accepted(lab: Lab) -> None:
    empty = lab.place / "empty"
    empty.touch()
    error = await _failure(lab.open(pool=lab.pool(1, known_hosts=str(empty))))
    assert "not in known_hosts" in error.message
    assert "ssh-keyscan" in error.hint
    others = lab.hosts.known_hosts.read_text().splitlines()
    swapped = lab.place / "swapped"
    swapped.write_text(f"{lab.hosts.hosts[0].address} {others[1].partition(' ')[2]}\n")
    error = await _failure(lab.open(pool=lab.pool(1, known_hosts=str(swapped))))
    assert "is not the one in known_hosts" in error.message


async def test_a_node_without_python_and_one_without_room_say_so(lab: Lab) -> None:
    error = await _failure(lab.open(pool=lab.pool(1, python="python9")))
    assert "has no such python" in error.message
    error = await _failure(lab.open(pool=lab.pool(1, root="/proc/ground")))
    assert "may not write our folder" in error.message and "set root" in error.hint


@pytest.mark.parametrize("chatter", ["echo welcome; printf 'no newline'", "for i in $(seq 2000); do echo $i; done"])
async def test_what_an_accounts_login_prints_is_passed_over(lab: Lab, chatter: str) -> None:
    host = lab.hosts.hosts[0]
    (host.home / ".bashrc").write_text(f"{chatter}\n")
    try:
        assert await lab.open(1).offers()
        shutil.rmtree(host.root / "runner")
        assert await lab.open(1, home="again").offers(), "the runner is copied past it as well"
    finally:
        (host.home / ".bashrc").unlink()


@pytest.mark.parametrize(
    ("login", "says"),
    [
        ("yes", "prints over 1048576 bytes"),
        ("head -c 100000000 /dev/zero", "prints over"),
        ("exit 7", "ended the connection (status 7)"),
        ("echo this account is closed >&2; exit 1", "this account is closed"),
        ("printf 'GROUND have\\n[1, 2]\\n'; cat >/dev/null", "is not our desk"),
        ('printf \'GROUND have\\n{"id": 1, "done": 7}\\n\'; cat >/dev/null', ""),
        ('printf \'GROUND have\\n{"id": [], "done": {}}\\n\'; cat >/dev/null', ""),
        ("sleep 60", "does not answer"),
    ],
)
async def test_a_login_that_is_no_desk_of_ours_is_told_and_breaks_nothing(lab: Lab, login: str, says: str) -> None:
    host = lab.hosts.hosts[0]
    (host.home / ".bashrc").write_text(f"{login}\n")
    try:
        # Who ends by himself may take his time on a busy machine; for who never does, waiting is the test.
        patience = Patience(connect_s=30) if "prints" in says or "exit" in login else SOON
        error = await _failure(lab.open(1, patience=patience))
        assert says in error.message
    finally:
        (host.home / ".bashrc").unlink()


async def test_the_runner_is_copied_once_and_again_when_damaged(lab: Lab) -> None:
    host = lab.hosts.hosts[0]
    await lab.open(1).offers()
    (folder,) = (host.root / "runner").iterdir()
    file = folder / "groundplane" / "runner" / "life.py"
    stamp = file.stat().st_mtime_ns
    await lab.open(1).offers()
    assert file.stat().st_mtime_ns == stamp
    file.write_text("broken")
    await lab.open(1).offers()
    assert "class Runner" in file.read_text()


async def test_a_desk_ends_with_its_connection(lab: Lab) -> None:
    executor = lab.open(1)
    await executor.offers()
    host = lab.hosts.hosts[0]
    assert any(b"--serve" in _words(pid) for pid in host.processes())
    await executor.close()
    deadline = time.monotonic() + PATIENCE_S
    while any(b"--serve" in _words(pid) for pid in host.processes()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def _words(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


# ---------------------------------------------------------------- gangs


async def test_members_of_a_gang_know_their_rank_and_end_together_with_one_reason(lab: Lab) -> None:
    executor = lab.open(3)
    command = "echo $RANK/$WORLD_SIZE $NODE_RANK $GROUND_NODES $MASTER_ADDR:$MASTER_PORT $PET_NNODES $PET_NODE_RANK"
    await asyncio.gather(
        executor.start(lab.order(command, nodes=3)),
        executor.start(lab.order("test $RANK != 1 || exit 7; sleep 300", "att-2", nodes=3)),
        executor.start(lab.order("sleep 300", "att-3", nodes=2)),
    )
    await running(lab, executor, "att-3")
    await executor.stop("att-3", EndReason.BUDGET_SPENT)

    seen = await lab.ended(executor)
    assert (seen.end_reason, seen.node) == (EndReason.SUCCEEDED, "n0,n1,n2")
    said = [(await lab.log(executor, rank)).decode().split() for rank in range(3)]
    assert [words[0] for words in said] == ["0/3", "1/3", "2/3"]
    assert [words[1:3] for words in said] == [["0", "3"], ["1", "3"], ["2", "3"]]
    meeting = {words[3] for words in said}
    assert len(meeting) == 1
    assert meeting.pop().startswith(f"{lab.hosts.hosts[0].address}:")
    assert [words[4:] for words in said] == [["3", "0"], ["3", "1"], ["3", "2"]]

    seen = await lab.ended(executor, "att-2")
    assert (seen.end_reason, seen.exit_code) == (EndReason.COMMAND_FAILED, 7)
    assert "rank 1 on n1" in seen.message
    assert (await lab.ended(executor, "att-3")).end_reason is EndReason.BUDGET_SPENT


async def test_a_gang_that_was_half_reserved_when_its_control_plane_died_starts_whole(lab: Lab) -> None:
    first = lab.open(2)
    order = lab.order("echo $MASTER_ADDR:$MASTER_PORT", nodes=2)
    placed = Placed(run_id="run-1", members=("n0", "n1"), port=1)
    await first._links["n0"].channel.call("reserve", order=first._documents(order, placed)[0])
    await first.close()
    second = lab.open(2)
    assert (await lab.until(second, lambda seen: seen.state != "unknown")).state == "absent"
    await second.start(order)
    assert (await lab.ended(second)).end_reason is EndReason.SUCCEEDED
    said = [await lab.log(second, rank) for rank in (0, 1)]
    assert said[0] == said[1]
    assert not said[0].endswith(b":1\n")


async def test_over_a_slow_wire_starting_logs_outputs_and_stops_are_the_same(lab: Lab) -> None:
    patience = Patience(connect_s=10, answer_s=8, alive_s=3, retry_max_s=0.5)
    first, second = lab.hosts.hosts[:2]
    with SlowWire(first, 0.025, 4e6) as near, SlowWire(second, 0.15, 1e6) as far:
        (lab.place / "known").write_text(near.known_host() + far.known_host())
        pool = lab.pool(2, known_hosts=str(lab.place / "known"))
        slow = [
            replace(node, host=wire.address, port=wire.port) for node, wire in zip(pool.nodes, (near, far), strict=True)
        ]
        executor = lab.open(pool=replace(pool, nodes=tuple(slow)), patience=patience)
        command = "seq 20000; cd $GROUND_OUTPUT_DIR; head -c 400000 /dev/zero > w; exec sleep $(( 300 * RANK ))"
        deadline = time.monotonic() + PATIENCE_S
        while {node.health for node in await executor.nodes()} != {NodeHealth.READY}:
            assert time.monotonic() < deadline  # to log in takes a dozen round trips
            await asyncio.sleep(0.1)
        began = time.monotonic()
        await asyncio.gather(*(executor.start(lab.order(command, nodes=2)) for _ in range(2)))
        assert time.monotonic() - began >= 0.3, "a start takes a round trip"
        states: set[str] = set()
        whole = "".join(f"{number}\n" for number in range(1, 20_001)).encode()
        for rank in (0, 1):
            said = b""
            while len(said) < len(whole):
                seen = (await executor.observe(["att-1"]))["att-1"]
                states.add(seen.state)
                said += (await executor.log("att-1", len(said), 40_000, rank)).data
            assert said == whole
        assert states <= {"starting", "running"}
        await executor.bring_outputs("att-1", "run-1", lab.place / "output")
        assert (lab.place / "output" / "w").stat().st_size == 400_000
        await executor.stop("att-1", EndReason.MAX_COST)
        assert (await lab.ended(executor)).end_reason is EndReason.MAX_COST


ALL_REDUCE = """
import os
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
number = torch.tensor([rank + 1.0])
dist.all_reduce(number)
print(f"rank {rank} of {world} has {number.item():g}", flush=True)
dist.destroy_process_group()
"""


@pytest.mark.needs("torchrun")
async def test_torchrun_needs_no_option_to_span_a_gang(lab: Lab) -> None:
    script = lab.place / "train.py"
    script.write_text(ALL_REDUCE)
    executor = lab.open(2, patience=Patience(connect_s=30, answer_s=30, alive_s=1, retry_max_s=0.5))
    torchrun = shutil.which("torchrun")
    await executor.start(lab.order(f"exec {torchrun} {script}", nodes=2, env={"GLOO_SOCKET_IFNAME": "eth0"}))
    assert (await lab.ended(executor)).end_reason is EndReason.SUCCEEDED, await lab.log(executor)
    for rank in (0, 1):
        assert f"rank {rank} of 2 has 3".encode() in await lab.log(executor, rank)


# ---------------------------------------------------------------- accelerators, files


@pytest.mark.needs("compiler")
async def test_two_control_planes_never_get_the_same_accelerator(lab: Lab) -> None:
    source, library = lab.place / "nvml.c", lab.place / "libnvml.so"
    source.write_text(NVML)
    subprocess.run(["gcc", "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True, timeout=60)
    ours = lab.open(1, nvml_library=str(library))
    theirs = lab.open(1, home="other", installation="other", nvml_library=str(library))
    command = "echo $CUDA_VISIBLE_DEVICES; sleep 300"
    await ours.start(lab.order(command, accelerators=1, placements=(Placement(node="n0", accelerators=(1,)),)))
    with pytest.raises(Unavailable, match="indexes"):
        await theirs.start(
            lab.order(command, "att-2", accelerators=1, placements=(Placement(node="n0", accelerators=(1,)),))
        )
    await theirs.start(lab.order(command, "att-2", accelerators=1))
    with pytest.raises(Unavailable, match="0 of 2 are free"):
        await ours.start(lab.order(command, "att-3", accelerators=1))
    await running(lab, ours)
    await running(lab, theirs, "att-2")
    assert (await lab.log(ours)).strip() == b"1"
    assert (await lab.log(theirs, 0, "att-2")).strip() == b"0"
    (node,) = await ours.nodes()
    assert [card.held_by for card in node.accelerators] == ["att-2", "att-1"]


async def test_outputs_come_from_the_node_once_and_whole(lab: Lab) -> None:
    executor = lab.open()
    make = "cd $GROUND_OUTPUT_DIR; mkdir m; head -c 9000000 /dev/zero > m/w; echo 1 > x"
    await executor.start(lab.order(make))
    await lab.ended(executor)
    target = lab.place / "output"
    await executor.bring_outputs("att-1", "run-1", target)
    assert (target / "m" / "w").stat().st_size == 9_000_000
    assert (target / "x").read_text() == "1\n"
    inode = (target / "m" / "w").stat().st_ino
    await executor.bring_outputs("att-1", "run-1", target)
    assert (target / "m" / "w").stat().st_ino == inode
    assert not list(target.rglob("*.part"))


async def test_outputs_that_our_disk_never_holds_are_refused_before_the_first_byte(lab: Lab) -> None:
    executor = lab.open()
    await executor.start(lab.order("truncate -s 9P $GROUND_OUTPUT_DIR/x || truncate -s 8T $GROUND_OUTPUT_DIR/x"))
    await lab.ended(executor)
    target = lab.place / "output"
    with pytest.raises(InvalidInput, match=r"the run's outputs have .*; the whole disk here has"):
        await executor.bring_outputs("att-1", "run-1", target)
    assert not target.exists()
