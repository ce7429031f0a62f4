"""What several gateways tell becomes one picture; the dead and the damaged tell nothing."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from groundplane.adapters.gateway_reports import FileReports, MemoryReports
from groundplane.adapters.gateway_traffic import KEPT, FileFigures, MemoryFigures, MemoryTail, SocketTail
from groundplane.domain.serving.traffic import Passed
from groundplane.ports.traffic import GatewayFigures, GatewayReports, RequestTail

QUEUE = {"project": "vision", "model": "big", "size": 100}
REPLICA = {"project": "vision", "model": "big", "target": "tiny", "most": 8}
STORM = {"project": "vision", "key_id": "key-1"}


def finding(samples: int, saved: int, key_id: str = "key-1") -> dict[str, object]:
    numbers = {"changing_tokens": 9, "prefix_tokens": 0, "static_tokens": 1800, "common_percent": 100}
    names = {"project": "vision", "model": "big", "key_id": key_id, "place": "system line 1", "samples": samples}
    return {**names, **numbers, "saved_tokens_per_1000_requests": saved, "saved_microusd_per_1000_requests": 5}


REPORTS: dict[str, dict[str, object]] = {
    "gw-0": {
        "queues": [{**QUEUE, "waiting": 3, "by_priority": {"high": 1, "normal": 2}, "longest_wait_ms": 900}],
        "replicas": [{**REPLICA, "in_flight": 4, "limit": 5}],
        "storms": [{**STORM, "early": 3, "repeated": 4}],
        "findings": [finding(64, 10), finding(20, 90, "key-2")],
    },
    "gw-1": {
        "queues": [{**QUEUE, "waiting": 1, "by_priority": {"normal": 1, "low": 0}, "longest_wait_ms": 1200}],
        "replicas": [{**REPLICA, "in_flight": 1, "limit": 2}],
        "storms": [{**STORM, "early": 1, "repeated": 6}],
        "findings": [finding(10, 80)],
    },
    "gw-dead": {"queues": [{**QUEUE, "waiting": 50, "by_priority": {}, "longest_wait_ms": 1}]},
}


@pytest.fixture(params=["memory", "files"])
def reports(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[GatewayReports]:
    """Two living gateways; the files have a dead one's beside theirs."""
    if request.param == "memory":
        memory = MemoryReports()
        memory.told = {name: report for name, report in REPORTS.items() if name != "gw-dead"}
        yield memory
        return
    with in_files(tmp_path) as found:
        yield found


@contextlib.contextmanager
def in_files(tmp_path: Path) -> Iterator[FileReports]:
    told, alive = tmp_path / "reports", tmp_path / "metrics"
    told.mkdir()
    alive.mkdir()
    locks = []
    for name, report in REPORTS.items():
        (told / f"{name}.json").write_text(json.dumps(report))
        fd = os.open(alive / f"{name}.alive", os.O_RDWR | os.O_CREAT)
        locks.append(fd)
        if name != "gw-dead":
            fcntl.flock(fd, fcntl.LOCK_EX)
    (told / "gw-1.json.draft").write_text("{")
    yield FileReports(told, alive)
    for fd in locks:
        os.close(fd)


async def test_living_gateways_are_added_up(reports: GatewayReports) -> None:
    standing = await reports.standing()
    (queue,), (replica,), (storm,) = standing.queues, standing.replicas, standing.storms
    assert standing.workers == 2
    assert (queue.waiting, queue.longest_wait_ms, queue.size) == (4, 1200, 100)
    assert queue.by_priority == {"high": 1, "normal": 3}
    assert (replica.in_flight, replica.limit, replica.most) == (5, 7, 16)
    assert (storm.early, storm.repeated) == (4, 10)


async def test_of_two_findings_the_one_with_more_samples_counts_and_the_dearest_is_first(
    reports: GatewayReports,
) -> None:
    found = await reports.findings()
    assert [(one.key_id, one.samples) for one in found] == [("key-2", 20), ("key-1", 64)]


async def test_a_damaged_report_and_a_missing_folder_tell_nothing(tmp_path: Path) -> None:
    with in_files(tmp_path) as reports:
        (tmp_path / "reports" / "gw-0.json").write_text('{"queues": [{"project": 1}]}')
        assert (await reports.standing()).workers == 1
    nobody = await FileReports(tmp_path / "nowhere", tmp_path).standing()
    assert (nobody.workers, nobody.queues) == (0, ())


def passed(number: int) -> Passed:
    return Passed(id=f"req-{number}", at_s=float(number), project="vision", status=200)


@pytest.fixture(params=["memory", "socket"])
async def tail(
    tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[RequestTail, Callable[[int], None]]]:
    """A tail, and what tells it of a request."""
    if request.param == "memory":
        memory = MemoryTail()
        yield memory, lambda number: memory.tell(passed(number))
        return
    path = tmp_path / "tail.sock"
    listening = SocketTail(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as gateway:

        def tell(number: int) -> None:
            gateway.sendto(msgspec.json.encode(passed(number)), str(path))

        yield listening, tell
    await listening.close()
    assert not path.exists()


async def test_a_tail_tells_what_came_from_where_one_stood(
    tail: tuple[RequestTail, Callable[[int], None]],
) -> None:
    listening, tell = tail
    assert await listening.after(None, 0) == ([], 1, 0)
    tell(1)
    found, place, missed = await listening.after(1, 30)
    assert ([one.id for _, one in found], place, missed) == (["req-1"], 2, 0)
    assert await listening.after(place, 0) == ([], 2, 0)
    for number in range(2, KEPT + 12):
        tell(number)
        await asyncio.sleep(0)  # the socket's reader gets its turn
    found, place, missed = await listening.after(1, 0)
    assert (len(found), place, missed) == (KEPT, KEPT + 12, 11)
    assert (await listening.after(place + 500, 0))[0] == []


@pytest.mark.parametrize("where", ["memory", "files"])
async def test_figures_of_living_gateways_are_one_picture(tmp_path: Path, where: str) -> None:
    told = {"gw-0": {"in_flight": 2}, "gw-1": {"in_flight": 3}}
    memory, files = MemoryFigures(), FileFigures(tmp_path)
    memory.told = told
    for name, figures in {**told, "gw-dead": {"in_flight": 50}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(figures))
    with (tmp_path / "gw-0.alive").open("w") as first, (tmp_path / "gw-1.alive").open("w") as second:
        for lock in (first, second):
            fcntl.flock(lock, fcntl.LOCK_EX)
        port: GatewayFigures = memory if where == "memory" else files
        live = await port.live()
    assert (live.workers, live.in_flight) == (2, 5)
