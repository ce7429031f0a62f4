"""Machines that are taken away: notices in each cloud's published format, and what the job gets to do."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.stage import Answer, Asked, Played

from groundplane.domain.run import EndReason
from groundplane.runner.spot import SpotWatch

SAVE_ON_TERM = """
import hashlib, json, os, signal, sys, time
def save(*_):
    folder = os.path.join(os.environ["GROUND_CHECKPOINT_DIR"], "step-7")
    os.makedirs(folder)
    with open(folder + "/w", "wb") as file: file.write(b"weights")
    files = [{"path": "w", "sha256": hashlib.sha256(b"weights").hexdigest(), "bytes": 7}]
    with open(folder + "/manifest.json", "w") as file: json.dump({"step": 7, "files": files}, file)
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
time.sleep(60)
"""


class Metadata:
    """A metadata service of one cloud, in the format that its documents give. `taken` makes the notice come."""

    def __init__(self, cloud: str) -> None:
        self.cloud, self.taken, self.asked = cloud, False, list[str]()
        self._played = Played(self._answer)
        self.url, self.close = self._played.url, self._played.close

    def _answer(self, asked: Asked) -> Answer:
        if asked.method == "PUT":
            ok = self.cloud == "aws" and asked.path == "/latest/api/token"
            ok = ok and bool(asked.headers["X-aws-ec2-metadata-token-ttl-seconds"])
            return Answer(200, b"token-1") if ok else Answer(405)
        self.asked.append(asked.path)
        part = {"azure": self._azure, "aws": self._aws, "google": self._google, "nobody": self._nobody}[self.cloud]
        return Answer(*part(asked.path, asked.headers))

    def _azure(self, path: str, headers: Any) -> tuple[int, bytes]:
        if headers["Metadata"] != "true":
            return 400, b""
        if path.startswith("/metadata/instance/compute/name"):
            return 200, b"vm-7"
        if not path.startswith("/metadata/scheduledevents?api-version=2020-07-01"):
            return 404, b""
        other = {"EventId": "1", "EventType": "Preempt", "ResourceType": "VirtualMachine", "Resources": ["vm-8"],
                 "EventStatus": "Scheduled", "NotBefore": "Mon, 19 Sep 2016 18:29:47 GMT"}  # fmt: skip
        when = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
        ours = {**other, "EventId": "2", "Resources": ["vm-7"], "NotBefore": when}
        freeze = {**ours, "EventType": "Freeze"}
        events = [other, freeze, *([ours] if self.taken else [])]
        return 200, json.dumps({"DocumentIncarnation": 2, "Events": events}).encode()

    def _aws(self, path: str, headers: Any) -> tuple[int, bytes]:
        if headers["X-aws-ec2-metadata-token"] != "token-1":
            return 401, b""
        if path != "/latest/meta-data/spot/instance-action" or not self.taken:
            return 404, b""
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 120))
        return 200, json.dumps({"action": "terminate", "time": when}).encode()

    def _google(self, path: str, headers: Any) -> tuple[int, bytes]:
        if headers["Metadata-Flavor"] != "Google" or path != "/computeMetadata/v1/instance/preempted":
            return 404, b""
        return 200, b"TRUE" if self.taken else b"FALSE"

    def _nobody(self, path: str, headers: Any) -> tuple[int, bytes]:
        return 200, b"<html>a captive portal</html>"


@pytest.fixture
def metadata() -> Iterator[Callable[[str], Metadata]]:
    made: list[Metadata] = []

    def make(cloud: str) -> Metadata:
        made.append(Metadata(cloud))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("cloud", "words", "left_s"),
    [("azure", "Azure evicts", 30), ("aws", "AWS will terminate", 120), ("google", "Google Cloud preempts", 30)],
)
def test_a_notice_is_understood(metadata: Callable[[str], Metadata], cloud: str, words: str, left_s: float) -> None:
    service = metadata(cloud)
    watch = SpotWatch(service.url)
    assert watch.ask() is None
    assert watch.trouble == ""
    service.taken = True
    notice = watch.ask()
    assert notice is not None
    assert notice["text"].startswith(words)
    assert left_s - 3 < notice["left_s"] <= left_s


def test_what_answers_like_no_cloud_gives_no_notice_and_says_so(metadata: Callable[[str], Metadata]) -> None:
    service = metadata("nobody")
    service.taken = True
    watch = SpotWatch(service.url)
    assert watch.ask() is None
    assert watch.trouble


async def test_a_job_gets_to_save_before_its_machine_goes(
    node_with: Callable[..., Any], metadata: Callable[[str], Metadata]
) -> None:
    service = metadata("azure")
    node = node_with(spot_metadata_url=service.url)
    await node.python(SAVE_ON_TERM, spot=True)
    await node.said(b"ready")
    service.taken = True
    seen = await node.ended()
    assert seen.end_reason is EndReason.SPOT_RECLAIMED
    assert seen.message.startswith("Azure evicts this machine at ")
    assert [found.step for found in seen.checkpoints] == [7]
    assert seen.unfit_node


async def test_a_simulated_notice_says_that_it_is_one(node_with: Callable[..., Any], tmp_path: Any) -> None:
    node = node_with(spot_metadata_url=f"simulated:{tmp_path / 'notice'}")
    await node.python(SAVE_ON_TERM, spot=True)
    await node.said(b"ready")
    (tmp_path / "notice").touch()
    seen = await node.ended()
    assert seen.end_reason is EndReason.SPOT_RECLAIMED
    assert "simulated" in seen.message


async def test_a_job_that_may_not_run_on_spot_asks_nobody(
    node_with: Callable[..., Any], metadata: Callable[[str], Metadata]
) -> None:
    service = metadata("google")
    node = node_with(spot_metadata_url=service.url)
    await node.start("sleep 0.5")
    await node.ended()
    assert service.asked == []


async def test_a_node_says_beforehand_whether_it_would_see_a_notice(
    node_with: Callable[..., Any], metadata: Callable[[str], Metadata], tmp_path: Path
) -> None:
    service = metadata("aws")
    assert await node_with(tmp_path / "cloud", spot_metadata_url=service.url).executor.spot_blind() == {}
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens here
        deaf = node_with(tmp_path / "cellar", spot_metadata_url=f"http://127.0.0.1:{closed.getsockname()[1]}")
        ((where, why),) = (await deaf.executor.spot_blind()).items()
    assert where
    assert "Connection refused" in why
    simulated = node_with(tmp_path / "played", spot_metadata_url=f"simulated:{tmp_path}/notice")
    assert await simulated.executor.spot_blind() == {}
