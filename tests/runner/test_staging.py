"""Data on the node before the start: from folders, HTTP and S3; shared, resumed, verified, or refused with why."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.server
import json
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from groundplane.domain.run import EndReason, Observation
from groundplane.domain.staging import StagedSource, StagingNeed
from groundplane.runner import fetching
from groundplane.runner.data_cache import DataCache, NoRoom, digest

MIB = 2**20
LIST = 'find "$GROUND_DATA_CORPUS" -type f | sort | xargs sha256sum'


class Shop(http.server.ThreadingHTTPServer):
    """A web server whose files, validators and faults a test sets; it notes what it was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Counter)
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.refuse: dict[str, tuple[int, bytes]] = {}
        self.breaks_after: list[int] = []
        self.ranges = True
        self.pause_s = 0.0
        self.asked: list[tuple[str, str, str]] = []
        self.sent_bytes = 0
        self.on_get: Callable[[str], None] = lambda _: None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def put(self, path: str, data: bytes) -> str:
        self.files[path], self.etags[path] = data, f'"{hashlib.md5(data).hexdigest()}"'
        return f"{self.url}/{path}"

    def handle_error(self, *_: Any) -> None:
        """Readers that hang up are part of the play."""


class Counter(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Shop

    def do_HEAD(self) -> None:
        self._answer(head=True)

    def do_GET(self) -> None:
        self.server.on_get(self.path)
        self._answer(head=False)

    def _answer(self, *, head: bool) -> None:
        shop, path = self.server, unquote(self.path.lstrip("/").partition("?")[0])
        shop.asked.append((self.command, path, self.headers.get("Range") or ""))
        status, body = shop.refuse.get(path, (0, b""))
        if not status:
            status, body = (200, shop.files[path]) if path in shop.files else (404, b"")
        start, etag = 0, shop.etags.get(path, "")
        wanted = self.headers.get("Range", "")
        fresh = self.headers.get("If-Range") in (None, etag)
        if status == 200 and shop.ranges and wanted and fresh and not head:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), int(last or len(body) - 1)
            status, whole, body = 206, len(body), body[start : end + 1]
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{whole}")
        if shop.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if etag:
            self.send_header("ETag", etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if head:
            return
        limit = shop.breaks_after.pop(0) if shop.breaks_after and status < 300 else len(body)
        for at in range(0, limit, 65_536):
            piece = body[at : min(at + 65_536, limit)]
            self.wfile.write(piece)
            shop.sent_bytes += len(piece)
            time.sleep(shop.pause_s)
        if limit < len(body):
            self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def shop() -> Iterator[Shop]:
    with Shop() as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server
        server.shutdown()


def need(source: str, *, scratch: Path | str = "", cache_bytes: int = 0, **fields: Any) -> StagingNeed:
    sources = (StagedSource(name="corpus", source=source, **fields),)
    return StagingNeed(sources=sources, scratch=str(scratch), cache_bytes=cache_bytes)


async def run(
    node: Any, staging: StagingNeed, command: str = LIST, attempt_id: str = "att-1", **order: Any
) -> Observation:
    await node.start(command, attempt_id, staging=staging, **order)
    return await node.ended(attempt_id)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def listed(node: Any, attempt_id: str = "att-1") -> dict[str, str]:
    """What the job saw: path under its data → SHA-256."""
    lines = [line.split(maxsplit=1) for line in node.log(attempt_id).decode().splitlines()]
    return {path.partition("/corpus/")[2]: digest for digest, path in lines}


def stage_check(seen: Observation) -> Any:
    (found,) = [each for each in seen.preflight if each.name == "stage:corpus"]
    return found


# ---------------------------------------------------------------- sources


async def test_a_folder_is_staged_and_the_job_reads_the_copy(node: Any, tmp_path: Path) -> None:
    folder = tmp_path / "share"
    (folder / "deep").mkdir(parents=True)
    content = {"a.bin": os.urandom(3 * MIB), "deep/b.txt": b"b", "empty": b""}
    for path, data in content.items():
        (folder / path).write_bytes(data)
    (folder / "link").symlink_to("/etc/hostname")
    seen = await run(node, need(str(folder)), LIST + '; echo "$GROUND_DATA_DIR" > "$GROUND_OUTPUT_DIR/where"')
    assert seen.end_reason is EndReason.SUCCEEDED, seen.message
    assert listed(node) == {path: sha256(data) for path, data in content.items()}
    check = stage_check(seen)
    assert check.figures["fetched_bytes"] == check.figures["bytes"] == 3 * MIB + 1
    assert check.figures["bytes_per_s"] > 0
    tree = Path((node.home / "runs/run-1/output/where").read_text().strip())
    assert tree.parent.name == "trees" and not tree.exists(), "what the attempt pinned is free once it is over"


async def test_http_with_a_manifest_stages_exactly_what_it_names(node: Any, shop: Shop) -> None:
    files = {"one.bin": os.urandom(MIB), "sub dir/two.bin": os.urandom(10), "unnamed": b"x"}
    for path, data in files.items():
        shop.put(f"set/{path}", data)
    named = {path: sha256(files[path]) for path in ("one.bin", "sub dir/two.bin")}
    shop.put("set/SHA256SUMS", "".join(f"{digest}  {path}\n" for path, digest in named.items()).encode())
    seen = await run(node, need(f"{shop.url}/set", manifest="SHA256SUMS"), 'cd "$GROUND_DATA_CORPUS"; sha256sum */* *')
    assert seen.end_reason in (EndReason.SUCCEEDED, EndReason.COMMAND_FAILED), seen.message
    told = dict(reversed(line.split("  ", 1)) for line in node.log().decode().splitlines() if "  " in line)
    assert told == named
    assert "verified by SHA-256" in stage_check(seen).need


async def test_one_large_file_comes_in_parts_side_by_side(node: Any, shop: Shop) -> None:
    data = secrets.token_bytes(MIB) * 80
    url = shop.put("large.bin", data)
    seen = await run(node, need(url, sha256=sha256(data)))
    assert seen.end_reason is EndReason.SUCCEEDED, seen.message
    assert listed(node) == {"large.bin": sha256(data)}
    parts = {ranged for method, _, ranged in shop.asked if method == "GET"}
    assert parts == {"bytes=0-33554431", "bytes=33554432-67108863", f"bytes=67108864-{len(data) - 1}"}


async def test_broken_connections_are_taken_up_where_they_broke(node: Any, shop: Shop) -> None:
    data = os.urandom(2 * MIB)
    url = shop.put("x.bin", data)
    shop.breaks_after = [300_000, 0, 500_001]
    seen = await run(node, need(url))
    assert seen.end_reason is EndReason.SUCCEEDED, seen.message
    assert listed(node) == {"x.bin": sha256(data)}
    assert shop.sent_bytes == len(data), "nothing was sent twice"


async def test_a_server_without_ranges_starts_over_and_still_arrives(node: Any, shop: Shop) -> None:
    data = os.urandom(MIB)
    shop.ranges = False
    url = shop.put("x.bin", data)
    shop.breaks_after = [500_000]
    seen = await run(node, need(url))
    assert seen.end_reason is EndReason.SUCCEEDED, seen.message
    assert listed(node) == {"x.bin": sha256(data)}


async def test_a_source_that_changes_while_it_is_read_is_read_again_or_refused(node: Any, shop: Shop) -> None:
    url = shop.put("x.bin", b"old" * MIB)
    new = b"new" * MIB

    def change_once(_: str) -> None:
        shop.put("x.bin", new)

    shop.on_get = change_once
    seen = await run(node, need(url))
    assert seen.end_reason is EndReason.SUCCEEDED, seen.message
    assert listed(node) == {"x.bin": sha256(new)}
    shop.on_get = lambda _: (shop.put("y.bin", secrets.token_bytes(9)), None)[1]
    seen = await run(node, need(shop.put("y.bin", b"first")), attempt_id="att-2")
    assert seen.end_reason is EndReason.DATA_REFUSED and "changed while it was read" in seen.message


# ---------------------------------------------------------------- refusals


async def test_a_mismatch_names_file_expected_and_got_and_nothing_starts(node: Any, shop: Shop) -> None:
    url = shop.put("x.bin", b"other bytes")
    wanted = sha256(b"the right bytes")
    seen = await run(node, need(url, sha256=wanted), "echo started")
    assert (seen.end_reason, seen.started_at, node.log()) == (EndReason.DATA_REFUSED, None, b"")
    assert "x.bin" in seen.message and wanted in seen.message and sha256(b"other bytes") in seen.message
    assert list((node.home / "cache/data/objects").glob("??/*")) == []


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, b"<Code>AccessDenied</Code>", "no role for it"),
        (403, b"AuthorizationFailure", "a firewall denies it"),
        (401, b"", "no role for it"),
        (404, b"", "it is missing"),
    ],
)
async def test_no_rights_firewall_and_missing_are_told_apart(
    node: Any, shop: Shop, status: int, body: bytes, words: str
) -> None:
    url = shop.put("x.bin", b"x")
    shop.refuse["x.bin"] = (status, body)
    seen = await run(node, need(url))
    # The head of an answer has no body: what its words say is only known where the server answers a GET.
    assert seen.end_reason is EndReason.DATA_REFUSED
    assert words in seen.message, seen.message


async def test_a_network_that_is_down_is_no_refusal(node: Any, shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    url = shop.put("x.bin", b"x")
    shop.shutdown()
    shop.server_close()
    seen = await run(node, need(url))
    assert seen.end_reason is EndReason.DATA_UNREACHABLE
    assert "connection refused" in seen.message


async def test_a_folder_that_is_missing_or_closed_says_so(node: Any, tmp_path: Path) -> None:
    seen = await run(node, need(str(tmp_path / "nowhere")))
    assert seen.end_reason is EndReason.DATA_REFUSED and "is missing on this node" in seen.message


@pytest.mark.parametrize("line", ["0" * 64 + "  ../outside", "0" * 64 + "  /etc/passwd", "no digest"])
async def test_a_manifest_cant_lead_outside(node: Any, shop: Shop, line: str) -> None:
    shop.put("set/SUMS", line.encode())
    seen = await run(node, need(f"{shop.url}/set/", manifest="SUMS"))
    assert seen.end_reason is EndReason.DATA_REFUSED


# ---------------------------------------------------------------- the cache


async def test_a_second_run_finds_it_in_the_cache(node: Any, shop: Shop) -> None:
    url = shop.put("x.bin", os.urandom(MIB))
    await run(node, need(url))
    before = shop.sent_bytes
    seen = await run(node, need(url), attempt_id="att-2")
    assert seen.end_reason is EndReason.SUCCEEDED
    assert shop.sent_bytes == before
    assert stage_check(seen).have == "all of it was in the node's cache"


async def test_runs_that_stage_the_same_at_the_same_time_fetch_it_once(node: Any, shop: Shop) -> None:
    data = os.urandom(2 * MIB)
    url = shop.put("x.bin", data)
    shop.pause_s = 0.01
    names = [f"att-{number}" for number in range(4)]
    await asyncio.gather(*(node.start(LIST, name, staging=need(url)) for name in names))
    for name in names:
        assert (await node.ended(name)).end_reason is EndReason.SUCCEEDED
        assert listed(node, name) == {"x.bin": sha256(data)}
    assert shop.sent_bytes == len(data)


async def test_a_copy_that_was_written_to_is_noticed_and_fetched_anew(node: Any, shop: Shop) -> None:
    data = os.urandom(1000)
    url = shop.put("x.bin", data)
    await run(node, need(url))
    (kept,) = (node.home / "cache/data/objects").glob("??/*")
    kept.chmod(0o644)
    kept.write_bytes(b"damaged")
    seen = await run(node, need(url), attempt_id="att-2")
    assert seen.end_reason is EndReason.SUCCEEDED
    assert listed(node, "att-2") == {"x.bin": sha256(data)}


async def test_killed_halfway_the_next_attempt_goes_on_from_there(node: Any, shop: Shop) -> None:
    data = os.urandom(8 * MIB)
    url = shop.put("x.bin", data)
    shop.pause_s = 0.02
    await node.start(LIST, staging=need(url))
    await node.until(lambda seen: seen.staging is not None and seen.staging.done_bytes > 3 * MIB)
    os.kill(node.state()["runner_pid"], signal.SIGKILL)
    assert (await node.ended()).end_reason is EndReason.RUNNER_LOST
    shop.pause_s, before = 0.0, len(shop.asked)
    seen = await run(node, need(url), attempt_id="att-2")
    assert seen.end_reason is EndReason.SUCCEEDED, seen.message
    assert listed(node, "att-2") == {"x.bin": sha256(data)}
    starts = [int(ranged.removeprefix("bytes=").split("-")[0]) for _, _, ranged in shop.asked[before:] if ranged]
    assert starts and min(starts) > MIB, shop.asked[before:]


async def test_stopping_while_it_stages_ends_it_unrun_and_keeps_what_came(node: Any, shop: Shop) -> None:
    url = shop.put("x.bin", os.urandom(8 * MIB))
    shop.pause_s = 0.05
    await node.start("echo started", staging=need(url), idle_limit_s=0.2)
    seen = await node.until(lambda seen: seen.staging is not None and seen.staging.done_bytes > MIB)
    assert seen.state == "starting" and "staging corpus" in seen.staging.sentence
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    seen = await node.ended()
    assert (seen.end_reason, node.log()) == (EndReason.STOPPED_BY_USER, b"")
    assert any((node.home / "cache/data/partial").glob("*"))


def test_what_was_used_longest_ago_goes_first_and_what_is_pinned_stays(tmp_path: Path) -> None:
    cache = DataCache(tmp_path / "data", 1000).open()
    keep(cache, b"a" * 400)
    keep(cache, b"b" * 400)
    a, b = sha256(b"a" * 400), sha256(b"b" * 400)
    assert cache.find(a), "used again: b is the older one now"
    tree, lock = cache.claim("att-1")
    cache.room(300)
    assert (cache.find(a), cache.find(b)) == (True, False)
    assert cache.take(a, tree / "corpus" / "a")
    with pytest.raises(NoRoom, match="limit of 1.0 kB, of which running work uses 400 B"):
        cache.room(700)
    assert cache.clear()["files"] == 0
    os.close(lock)
    assert cache.clear() == {"files": 1, "bytes": 400}, "a dead attempt pins nothing"


def test_the_operating_systems_disk_keeps_its_last_tenth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = DataCache(tmp_path / "data", 10**18).open()
    disk = os.statvfs(tmp_path)
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    on_os_disk = tmp_path.stat().st_dev == Path("/").stat().st_dev
    if not on_os_disk:
        monkeypatch.setattr(DataCache, "_on_os_disk", lambda _: True)
    root = os.statvfs("/")
    kept = int(root.f_blocks * root.f_frsize * 0.10)
    with pytest.raises(NoRoom, match=r"the last 10% .* stay with the operating system") as refused:
        cache.room(max(free - kept, 0) + 64 * MIB)
    assert refused.value.reason == "disk-full" and total >= free


def keep(cache: DataCache, data: bytes) -> None:
    draft = cache.partial(sha256(data))
    draft.write_bytes(data)
    cache.commit(draft, sha256(data), "")


@pytest.mark.needs("tmpfs")
async def test_a_full_disk_is_said_before_the_first_byte_and_nothing_starts(
    node: Any, shop: Shop, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=True, timeout=20)
    try:
        url = shop.put("x.bin", os.urandom(3 * MIB))
        seen = await run(node, need(url, scratch=small), "echo started")
        assert (seen.end_reason, node.log(), shop.sent_bytes) == (EndReason.DISK_FULL, b"", 0)
        assert "3.1 MB" in seen.message and str(small) in seen.message
        fits = shop.put("y.bin", os.urandom(MIB))
        assert (await run(node, need(fits, scratch=small), attempt_id="att-2")).end_reason is EndReason.SUCCEEDED
        after = shop.put("z.bin", os.urandom(3 * MIB // 2))
        seen = await run(node, need(after, scratch=small), attempt_id="att-3")
        assert seen.end_reason is EndReason.SUCCEEDED, "what nobody uses made room"
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True, timeout=20)


# ---------------------------------------------------------------- walls


@pytest.mark.needs("root")
async def test_a_job_of_another_user_reads_its_data_and_cant_stage_what_it_may_not_read(node: Any) -> None:
    from groundplane.domain.isolation import JobIsolation

    place = Path("/var/tmp") / f"ground-staged-{os.getpid()}"
    place.mkdir(mode=0o755)
    try:
        (place / "open.txt").write_text("open")
        order = {"isolation": JobIsolation(mode="user")}
        seen = await run(node, need(str(place)), LIST, **order)
        assert seen.end_reason is EndReason.SUCCEEDED, (seen.message, node.log())
        assert listed(node) == {"open.txt": sha256(b"open")}
        (place / "closed.txt").write_text("closed")
        (place / "closed.txt").chmod(0o600)
        seen = await run(node, need(str(place)), LIST, "att-2", **order)
        assert seen.end_reason is EndReason.DATA_REFUSED and "permission denied" in seen.message
    finally:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()


# ---------------------------------------------------------------- S3


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A real S3 server that checks signatures, and a client that may do everything."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        access = {"region_name": "us-east-1", "endpoint_url": url}
        root = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        iam = boto3.client("iam", **access, **root)
        stack.callback(iam.close)
        iam.create_user(UserName="reader")
        keys = iam.create_access_key(UserName="reader")["AccessKey"]
        every = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        iam.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(every))
        s3 = boto3.client("s3", **access, **root)
        stack.callback(s3.close)
        s3.create_bucket(Bucket="data")
        secret = (
            f"[default]\naws_access_key_id = {keys['AccessKeyId']}\naws_secret_access_key = {keys['SecretAccessKey']}\n"
        )
        yield url, s3, secret


@pytest.fixture
def guarded(s3: Any) -> Iterator[Any]:
    """From here on the server refuses what is not signed rightly."""
    from moto import settings

    url, client, secret = s3

    def guard(after: float) -> None:
        settings.INITIAL_NO_AUTH_ACTION_COUNT = after

    def put(key: str, data: bytes) -> None:
        guard(float("inf"))
        client.put_object(Bucket="data", Key=key, Body=data)
        guard(0)

    yield url, put, secret
    guard(float("inf"))


async def test_objects_below_a_prefix_are_staged_with_signed_requests(node: Any, guarded: Any) -> None:
    url, put, secret = guarded
    content = {f"part {number:04}/ä+{number}.bin": os.urandom(10) for number in range(12)}
    for path, data in content.items():
        put(f"corpus/{path}", data)
    staging = need("s3://data/corpus/", endpoint=url, secret="s3-key")
    listing = 'cd "$GROUND_DATA_CORPUS" && find . -type f -print0 | xargs -0 sha256sum'
    seen = await run(node, staging, listing, secrets={"s3-key": secret})
    assert seen.end_reason is EndReason.SUCCEEDED, seen.message
    told = dict(reversed(line.split("  ./", 1)) for line in node.log().decode().splitlines())
    assert told == {path: sha256(data) for path, data in content.items()}


async def test_one_large_object_comes_in_signed_parts(node: Any, guarded: Any) -> None:
    url, put, secret = guarded
    data = secrets.token_bytes(MIB) * 66
    put("large.bin", data)
    staging = need("s3://data/large.bin", endpoint=url, secret="s3-key", sha256=sha256(data))
    seen = await run(node, staging, secrets={"s3-key": secret})
    assert seen.end_reason is EndReason.SUCCEEDED, seen.message
    assert listed(node) == {"large.bin": sha256(data)}


async def test_a_wrong_key_is_refused_and_said(node: Any, guarded: Any) -> None:
    url, put, secret = guarded
    put("corpus/x", b"x")
    staging = need("s3://data/corpus/", endpoint=url, secret="s3-key")
    seen = await run(node, staging, secrets={"s3-key": secret.rstrip()[:-2] + "xx\n"})
    assert seen.end_reason is EndReason.DATA_REFUSED and "SignatureDoesNotMatch" in seen.message, seen.message
    seen = await run(node, staging, attempt_id="att-2", secrets={"s3-key": "hello"})
    assert "aws_access_key_id" in seen.message


async def test_a_missing_bucket_and_an_empty_prefix_are_named(node: Any, s3: Any) -> None:
    url = s3[0]
    seen = await run(node, need("s3://nowhere/x/", endpoint=url))
    assert seen.end_reason is EndReason.DATA_REFUSED and "missing" in seen.message
    seen = await run(node, need("s3://data/nothing/here/", endpoint=url), attempt_id="att-2")
    assert seen.end_reason is EndReason.DATA_REFUSED and "s3://data/nothing/here/" in seen.message


def test_a_signature_is_what_aws_documents() -> None:
    """The example of AWS's own documentation: GET ?max-keys=2&prefix=J on examplebucket."""
    keys = {"access_key_id": "AKIAIOSFODNN7EXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"}
    at_s = 1369353600.0
    headers = fetching.signature(
        "GET", "https://examplebucket.s3.amazonaws.com", "/", "max-keys=2&prefix=J", keys, "us-east-1", at_s
    )
    assert headers["Authorization"].endswith("34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7")


# ---------------------------------------------------------------- what the control plane brings


async def test_files_of_the_control_plane_arrive_verified_and_resumed(node: Any) -> None:
    from groundplane.domain.staging import StagedFile
    from groundplane.runner.desk import Desk, No

    data = os.urandom(1000)
    files = (StagedFile(path="in/x.bin", sha256=sha256(data), size_bytes=1000),)
    await node.start(LIST, staging=need("artifact:corpus", files=files))
    desk = Desk(node.home, pool="local", nvml_library="none", reservations=node.home / "run")
    import base64

    def put(offset: int, piece: bytes) -> Any:
        text = base64.b64encode(piece).decode()
        arguments = {"attempt_id": "att-1", "sha256": sha256(data), "size_bytes": 1000, "offset": offset, "data": text}
        return desk.handle("put", arguments)

    await node.until(lambda seen: seen.staging is not None)
    assert desk.handle("missing", {"attempt_id": "att-1"}) == {"missing": {sha256(data): 0}}
    assert put(0, data[:400]) == {"have": 400}
    assert put(0, data[:400]) == {"have": 400}, "twice is once"
    with pytest.raises(No, match="damaged on its way"):
        put(400, bytes(600))
    assert put(0, data[:400]) == {"have": 400}
    assert put(400, data[400:]) == {"have": 1000}
    assert (await node.ended()).end_reason is EndReason.SUCCEEDED
    assert listed(node) == {"in/x.bin": sha256(data)}
    assert desk.handle("missing", {"attempt_id": "att-1"}) == {"missing": {}}
    shown = desk.handle("data_cache", {"scratch": "", "limit_bytes": 0, "clear": True})
    assert (shown["cleared_files"], shown["cleared_bytes"], shown["files"]) == (1, 1000, 0)


def test_digest_of_what_is_gone_is_none(tmp_path: Path) -> None:
    assert digest(tmp_path / "gone") == ""
