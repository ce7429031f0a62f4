"""The SDK: errors as the same tree, logs that survive restarts, and servers that are not ours."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from tests.stage import Answer, Played

from groundplane import errors
from groundplane.api.errors import error_response
from groundplane.client import Client, error_of
from groundplane.domain.run import Run, RunStatus
from groundplane.domain.spec import JobSpec, Metadata, Resources
from groundplane.errors import (
    ApprovalNeeded,
    GroundError,
    IntegrityFailure,
    InvalidInput,
    Problem,
    Refusal,
    Refused,
    Unavailable,
)
from groundplane.wire import ErrorBody
from groundplane.wire.runs import RunDetail

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def scripted(request: pytest.FixtureRequest) -> Callable[[Callable[[str], Answer]], Client]:
    """Makes a client of a server that answers a path with the function given."""

    def make(answer: Callable[[str], Answer]) -> Client:
        played = Played(lambda asked: answer(asked.path))
        client = Client(played.url, "gp-x")
        request.addfinalizer(played.close)
        request.addfinalizer(client.close)
        return client

    return make


def run(status: RunStatus, attempt: int) -> bytes:
    spec = JobSpec(
        metadata=Metadata(name="a", project="p", owner="o", cost_center="c"),
        command=("true",),
        resources=Resources(cpus=1, memory_bytes=1),
        end_date=NOW,
        max_cost_microusd=1,
        max_duration_s=1,
    )
    found = Run(
        id="run-1",
        name="a",
        project="p",
        owner="o",
        cost_center="c",
        spec=spec,
        spec_digest="",
        plan_id="",
        hold_id="",
        pool="local",
        price_microusd_per_hour=1,
        status=status,
        attempt=attempt,
        created_by="o",
        created_at=NOW,
        end_date=NOW,
        due_at=None,
    )
    return msgspec.json.encode(RunDetail(run=found, attempts=(), checkpoints=()))


# ---------------------------------------------------------------- errors


def every_error() -> list[GroundError]:
    refused = Refused(rule="r", need="1", have="0", hint="h")
    special: list[GroundError] = [
        InvalidInput("m", "h", [Problem(field="f", message="x", line=3, hint="y")]),
        Refusal([refused, refused]),
        ApprovalNeeded([refused]),
    ]
    plain = [
        kind("a message", "a hint")
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, GroundError) and kind not in {type(error) for error in special}
    ]
    return [*special, *plain]


@pytest.mark.parametrize("error", every_error(), ids=lambda error: type(error).__name__)
def test_every_error_arrives_as_what_it_was(error: GroundError) -> None:
    sent = error_response(error, "req-1")
    arrived = error_of(msgspec.json.decode(bytes(sent.body), type=ErrorBody).error)
    assert type(arrived) is type(error)
    assert (arrived.message, arrived.hint, arrived.exit_code) == (error.message, error.hint, error.exit_code)
    assert getattr(arrived, "problems", ()) == getattr(error, "problems", ())
    assert getattr(arrived, "refusals", ()) == getattr(error, "refusals", ())
    assert sent.status_code == error.http_status


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (502, b"<html>bad gateway</html>", Unavailable),
        (200, b"<html>a login page</html>", Unavailable),
        (200, b'{"name": 3}', Unavailable),
        (401, b'{"error": {"code": "invalid_api_key", "message": "no"}}', errors.Unauthenticated),
        (404, b'{"error": {"code": "of_tomorrow", "message": "no"}}', errors.NotFound),
        (409, b'{"error": {"code": "refused", "message": "no", "hint": "ask"}}', Refusal),
        (409, b'{"error": {"code": "approval-needed", "message": "no", "hint": "ask"}}', ApprovalNeeded),
        (418, b'{"error": {"code": "of_tomorrow", "message": "no"}}', GroundError),
    ],
)
def test_an_answer_that_is_not_ours_is_told_so(
    scripted: Any, status: int, body: bytes, kind: type[GroundError]
) -> None:
    with pytest.raises(kind) as told:
        scripted(lambda _: Answer(status, body)).whoami()
    assert type(told.value) is kind
    assert told.value.hint


def test_integrity_failures_keep_their_exit_code(scripted: Any) -> None:
    sent = error_response(IntegrityFailure("damaged", "restore it"))
    with pytest.raises(IntegrityFailure) as told:
        scripted(lambda _: Answer(422, bytes(sent.body))).whoami()
    assert told.value.exit_code == 8


def test_a_read_is_asked_again_when_the_connection_breaks_and_a_change_is_not(scripted: Any) -> None:
    asked: list[str] = []

    def answer(path: str) -> Answer:
        asked.append(path)
        return Answer(None) if len(asked) % 2 else Answer(200, [])

    client = scripted(answer)
    assert client.runs() == []
    assert len(asked) == 2
    with pytest.raises(Unavailable, match="broke the connection off"):
        client.plan("x")
    assert len(asked) == 3


def test_nothing_there_hints_at_ground_up() -> None:
    with Client("http://127.0.0.1:9", "gp-x") as client, pytest.raises(Unavailable) as told:
        client.whoami()
    assert told.value.hint == "start it: ground up"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_a_name_that_is_no_name_never_becomes_a_path(name: str) -> None:
    with Client("http://127.0.0.1:9", "gp-x") as client, pytest.raises(InvalidInput):
        client.run(name)


# ---------------------------------------------------------------- logs


class LogServer:
    """Two attempts' logs, handed out in small pieces, with an outage in between."""

    def __init__(self, outages: int) -> None:
        self.logs = {1: b"one\ntwo\n", 2: b"three\n\xff\n"}
        self.outages = outages
        self.served = 0

    def __call__(self, path: str) -> Answer:
        self.served += 1
        if self.outages and self.served in range(4, 4 + self.outages):
            return Answer(503, bytes(error_response(Unavailable("restarting")).body))
        if "/log" not in path:
            return Answer(200, run(RunStatus.SUCCEEDED, 2))
        asked = dict(pair.split("=") for pair in path.partition("?")[2].split("&"))
        number, offset = int(asked.get("attempt", 1)), int(asked.get("offset", 0))
        data = self.logs[number][offset : offset + 3]
        headers = {
            "X-Ground-Attempt": str(number),
            "X-Ground-Next-Offset": str(offset + len(data)),
            "X-Ground-Complete": "true" if offset + len(data) == len(self.logs[number]) else "false",
        }
        return Answer(200, data, headers)


@pytest.mark.parametrize("outages", [0, 2])
def test_a_followed_log_gives_every_byte_once_through_attempts_and_outages(scripted: Any, outages: int) -> None:
    pieces = list(scripted(LogServer(outages)).follow_log("run-1", attempt=1))
    assert b"".join(piece.data for piece in pieces) == b"one\ntwo\nthree\n\xff\n"
    assert [piece.attempt for piece in pieces] == sorted(piece.attempt for piece in pieces)


def test_a_log_that_stays_silent_is_given_up(scripted: Any) -> None:
    silent = bytes(error_response(Unavailable("down")).body)
    with pytest.raises(Unavailable):
        list(scripted(lambda _: Answer(503, silent)).follow_log("run-1", patience_s=0))


def test_a_log_is_read_to_its_present_end(scripted: Any) -> None:
    assert b"".join(piece.data for piece in scripted(LogServer(0)).read_log("run-1", 1)) == b"one\ntwo\n"


def test_waiting_ends_with_the_run_or_with_the_time(scripted: Any) -> None:
    over = scripted(lambda _: Answer(200, run(RunStatus.FAILED, 1)))
    assert over.wait("run-1").status is RunStatus.FAILED
    going = scripted(lambda _: Answer(200, run(RunStatus.RUNNING, 1)))
    with pytest.raises(Unavailable, match="still running"):
        going.wait("run-1", timeout_s=0)
