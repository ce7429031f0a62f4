"""Data brought to the node first, through the real command and server."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

MIB = 2**20


class Depot(http.server.ThreadingHTTPServer):
    """A slow web server: `pause_s` after each 64 KiB. Whole files only, with their ETags."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Clerk)
        self.files: dict[str, bytes] = {}
        self.pause_s = 0.0
        self.sent_bytes = 0
        self.second_half = threading.Event()
        self.second_half.set()

    def put(self, name: str, data: bytes) -> str:
        self.files[f"/{name}"] = data
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Clerk(http.server.BaseHTTPRequestHandler):
    server: Depot

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        data = self.server.files.get(self.path)
        self.send_response(404 if data is None else 200)
        self.send_header("Content-Length", str(len(data or b"")))
        self.send_header("ETag", f'"{hashlib.md5(data or b"").hexdigest()}"')
        self.end_headers()
        if self.command == "HEAD":
            return
        for at in range(0, len(data or b""), 65_536):
            try:
                self.wfile.write((data or b"")[at : at + 65_536])
            except OSError:
                return
            if at > len(data or b"") // 2:
                self.server.second_half.wait(60)
            self.server.sent_bytes += len((data or b"")[at : at + 65_536])
            time.sleep(self.server.pause_s)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def depot() -> Iterator[Depot]:
    with Depot() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_t7_slow_data_is_staged_with_progress_and_its_speed_is_what_the_next_plan_counts_with(
    shared: Any, depot: Depot, wait: Any
) -> None:
    corpus = os.urandom(6 * MIB)
    url = depot.put("corpus.bin", corpus)
    depot.pause_s = 0.01
    depot.second_half.clear()  # it comes when everybody has told of the first
    source = {"name": "corpus", "from": url, "sha256": sha256(corpus), "size": "6MiB"}
    command = ["sh", "-c", 'sha256sum < "$GROUND_DATA_CORPUS/corpus.bin"; ls "$GROUND_DATA_DIR"']
    run_id = shared.submit(shared.job("staged", command, data=[source]))
    told = wait(lambda: shared.data("data", "progress", run_id)["progress"], "a figure of progress")
    assert told["bytes"] == 6 * MIB and told["files"] == 1
    line = wait(
        lambda: next((row for row in shared.ground("ps").stdout.splitlines() if run_id in row and "MB/s" in row), ""),
        "ps to tell of it",
    )
    assert "staging corpus" in line and "of 6.0 MiB" in line
    assert "staging corpus" in shared.ground("explain", run_id).stdout
    depot.second_half.set()
    shared.ground("data", "progress", run_id, "--follow")
    shared.wait_run(run_id, "succeeded")
    assert shared.log(run_id).split() == [sha256(corpus), "-", "corpus"]

    (result,) = shared.data("data", "progress", run_id)["results"]
    measured = result["figures"]["bytes_per_s"]
    assert result["name"] == "stage:corpus" and 0 < measured < 10 * MIB
    (row,) = shared.data("data", "cache", "list")
    assert (row["files"], row["bytes"], row["pinned_bytes"]) == (1, 6 * MIB, 0)

    # Without staging, the same source for a job of four hours is refused with the speed that was measured.
    reading = {"name": "corpus", "path": "/data", "url": url, "size": "2TB"}
    refused = shared.ground(
        "plan", "-f", str(shared.job("night", ["true"], data=[reading], max_duration="4h")), expect=3
    )
    assert "measured on" in refused.stderr + refused.stdout
    staged = {**source, "size": "2TB"}
    plan = shared.ground(
        "plan", "-f", str(shared.job("night2", ["true"], data=[staged], max_duration="4h", max_cost="$2"))
    )
    assert "once, before the start" in plan.stdout + plan.stderr


def test_a_second_run_reads_the_nodes_copy_and_clearing_takes_what_nobody_uses(shared: Any, depot: Depot) -> None:
    depot.pause_s = 0.0
    url = depot.put("shared.bin", os.urandom(MIB))
    for number in range(2):
        before = depot.sent_bytes
        path = shared.job(f"again-{number}", ["true"], data=[{"name": "x", "from": url}])
        shared.wait_run(shared.submit(path), "succeeded")
        assert depot.sent_bytes - before == (0 if number else MIB)
    (row,) = shared.data("data", "cache", "clear", "--pool", "local", "--reason", "a new month")
    assert row["cleared_bytes"] >= MIB and row["bytes"] == 0
    (event,) = [each for each in shared.data("audit", "log") if each["action"] == "data.clear"]
    assert event["reason"] == "a new month"


def test_data_that_is_not_what_the_spec_says_never_starts_a_job(shared: Any, depot: Depot) -> None:
    url = depot.put("other.bin", b"other")
    wanted = sha256(b"wanted")
    path = shared.job("wrong-data", ["true"], data=[{"name": "x", "from": url, "sha256": wanted}])
    detail = shared.wait_run(shared.submit(path), "failed")
    assert detail.run.end_reason == "data-refused" and detail.attempts[0].started_at is None
    assert all(word in detail.run.message for word in ("other.bin", wanted, sha256(b"other")))
    gone = shared.job("gone-data", ["true"], data=[{"name": "x", "from": url + "-not-there"}])
    assert "it is missing" in shared.wait_run(shared.submit(gone), "failed").run.message
    said = shared.ground("preflight", "-f", str(gone), expect=3).stderr
    assert "preflight data:x" in said and "it is missing" in said


def test_an_artifact_comes_to_the_job_by_its_name(shared: Any, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "deep").mkdir(parents=True)
    big, small = os.urandom(5 * MIB), b"small"
    (folder / "deep" / "big.bin").write_bytes(big)
    (folder / "small.txt").write_bytes(small)
    shared.ground("artifacts", "push", str(folder), "--name", "training-set", "--project", "research")
    command = ["sh", "-c", 'cd "$GROUND_DATA_SET_1" && find . -type f | sort | xargs sha256sum']
    path = shared.job("from-store", command, data=[{"name": "set-1", "from": "artifact:training-set"}])
    run_id = shared.submit(path)
    shared.wait_run(run_id, "succeeded")
    lines = [line.split() for line in shared.log(run_id).splitlines()]
    assert lines == [[sha256(big), "./deep/big.bin"], [sha256(small), "./small.txt"]]
    for source in ("artifact:nowhere", "artifact:../../etc/passwd", "model:nothing@1"):
        absent = shared.job("absent", ["true"], data=[{"name": "x", "from": source}])
        said = shared.ground("plan", "-f", str(absent), expect=4).stderr
        assert f"project research has no {source.partition(':')[0]} {source.partition(':')[2]}" in said


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"name": "x"}, "spec.data[].path: is required"),
        ({"name": "x", "from": "ftp://host/x"}, "is no source"),
        ({"name": "x", "path": "/x", "from": "/y"}, "can't both be given"),
        ({"name": "x", "from": "s3://b/k", "secret": "nowhere"}, "is not in spec.secrets"),
        ({"name": "x", "from": "/y", "endpoint": "http://h"}, "belongs to s3:// sources"),
    ],
)
def test_a_source_that_can_be_none_is_refused_with_its_line(shared: Any, source: dict[str, str], words: str) -> None:
    said = shared.ground("plan", "-f", str(shared.job("bad-source", ["true"], data=[source])), expect=None)
    assert said.returncode != 0 and words in said.stderr, said.stderr
    assert json.loads(shared.ground("ps", "-o", "json").stdout) is not None
