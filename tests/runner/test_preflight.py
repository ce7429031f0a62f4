"""Checks on the node: real refusals by real servers and file systems, a driver library built here, and bounded time."""

from __future__ import annotations

import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.stage import Answer, Asked, Played

from groundplane.domain.isolation import JobIsolation
from groundplane.domain.preflight import CheckResult, CheckStatus, DataNeed, PreflightNeed
from groundplane.domain.run import EndReason
from groundplane.runner import preflight_accelerators, preflight_network, preflight_storage

NVML = r"""
#include <string.h>
int nvmlInit_v2(void) { return STATUS; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "550.54.15", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "NVIDIA H100 80GB HBM3", n); return 0; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) { m[0] = 81559ULL << 20; m[1] = m[0]; m[2] = 0; return 0; }
int nvmlDeviceGetUtilizationRates(void *h, unsigned *u) { u[0] = u[1] = 0; return 0; }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *t) { *t = 40; return 0; }
int nvmlDeviceGetTotalEccErrors(void *h, int type, int counter, unsigned long long *n) { *n = ECC; return 0; }
int nvmlDeviceGetCurrentClocksThrottleReasons(void *h, unsigned long long *bits) { *bits = THROTTLE; return 0; }
int nvmlDeviceGetNvLinkState(void *h, unsigned link, unsigned *up) {
  if (link >= 4) return 2; *up = !(LINKDOWN && (long)h == 2 && link == 3); return 0; }
int cuInit(unsigned flags) { return CUINIT; }
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int cuDeviceGet(int *d, int i) { *d = i; return 0; }
int cuCtxCreate_v2(void **c, unsigned f, int d) { *c = (void *)1; return 0; }
int cuCtxDestroy_v2(void *c) { return 0; }
int cuCtxSynchronize(void) { return 0; }
int cuMemAlloc_v2(unsigned long long *p, unsigned long n) { *p = 1; return 0; }
int usleep(unsigned);
int cuMemcpyDtoD_v2(unsigned long long a, unsigned long long b, unsigned long n) { usleep(1000); return 0; }
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Builds a driver library with faults: `driver(STATUS=18)`."""

    def build(**faults: int) -> str:
        folder = tmp_path_factory.mktemp("driver")
        (folder / "nvml.c").write_text(NVML)
        known = {"STATUS": 0, "ECC": 0, "THROTTLE": 0, "LINKDOWN": 0, "CUINIT": 0} | faults
        flags = [f"-D{name}={value}" for name, value in known.items()]
        library = folder / "libfake.so"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-w", *flags, "-o", str(library), str(folder / "nvml.c")], check=True
        )
        return str(library)

    return build


def asking(library: str, cards: int = 2, **preflight: Any) -> dict[str, Any]:
    indexes = list(range(cards))
    return {
        "accelerators": cards,
        "accelerator_indexes": indexes,
        "nvml_library": library,
        "cuda_library": library,
        "preflight": preflight,
    }


NOWHERE = Path("/nowhere")


@pytest.mark.needs("compiler")
def test_a_whole_chain_of_drivers_is_told_with_its_versions(driver: Any) -> None:
    order = asking(driver())
    assert preflight_accelerators.driver(order, NOWHERE)["have"] == "driver 550.54.15, CUDA 12.4"
    assert preflight_accelerators.accelerators(order, NOWHERE)["status"] == "ok"
    assert preflight_accelerators.topology(order, NOWHERE)["have"] == "4 NVLinks each"


@pytest.mark.needs("compiler")
@pytest.mark.parametrize(
    ("fault", "check", "words"),
    [
        ({"STATUS": 18}, "driver", "driver and library versions differ"),
        ({"STATUS": 9}, "driver", "the driver is not loaded"),
        ({"CUINIT": 803}, "driver", "driver and CUDA library differ"),
        ({"ECC": 3}, "accelerators", "3 uncorrected memory errors"),
        ({"THROTTLE": 0x40}, "accelerators", "hardware thermal slowdown"),
        ({"LINKDOWN": 1}, "topology", "accelerator 1: 3"),
    ],
)
def test_a_fault_of_the_cards_is_named_and_is_the_nodes(driver: Any, fault: Any, check: str, words: str) -> None:
    found = getattr(preflight_accelerators, check)(asking(driver(**fault)), NOWHERE)
    assert (found["status"], found["fault"]) == ("failed", "node")
    assert words in found["have"] and found["hint"]


@pytest.mark.needs("compiler")
def test_a_missing_card_and_a_missing_library_are_the_nodes_fault(driver: Any) -> None:
    assert preflight_accelerators.accelerators(asking(driver(), cards=4), NOWHERE)["have"] == "2"
    found = preflight_accelerators.driver(asking("libnvidia-nowhere.so.1"), NOWHERE)
    assert found["fault"] == "node" and "install the driver" in found["hint"]


@pytest.mark.needs("compiler")
def test_memory_bandwidth_is_held_against_the_catalogue(driver: Any) -> None:
    library = driver()  # 256 MiB in at least a millisecond: 0.5 TB/s at most
    slow = preflight_accelerators.compute(asking(library, memory_bytes_per_s=3.35e12), NOWHERE)
    assert slow["status"] == "failed" and "50%" in slow["need"] and slow["figures"]["bytes_per_s"] < 0.54e12
    assert preflight_accelerators.compute(asking(library, memory_bytes_per_s=1e9), NOWHERE)["status"] == "ok"
    assert preflight_accelerators.compute({"accelerator_indexes": []}, NOWHERE)["status"] == "skipped"


def test_xids_of_the_last_hour_are_read_from_the_kernels_log(tmp_path: Path) -> None:
    now_us = int(time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6)
    lines = [
        f"4,1,{now_us - 60_000_000},-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1, GPU has fallen off the bus.",
        f"4,2,{now_us - 7200_000_000},-;NVRM: Xid (PCI:0000:3b:00): 48, pid=1, two hours ago",
        f"6,3,{now_us},-;eth0: link up",
    ]
    (tmp_path / "kmsg").write_text("\n".join(lines) + "\n")
    assert preflight_accelerators.recent_xids(str(tmp_path / "kmsg")) == ([("0000:3b:00", 79)], "")


# ---------------------------------------------------------------- storage and data


def order_for(target: Path, **more: Any) -> dict[str, Any]:
    return {"checkpoint_dir": str(target), "max_duration_s": 3600.0, "env": {}, "preflight": {}, **more}


def test_a_writable_target_is_timed_and_left_empty(tmp_path: Path) -> None:
    found = preflight_storage.checkpoints(order_for(tmp_path / "target"), NOWHERE)
    assert found["status"] == "ok" and found["figures"]["write_bytes_per_s"] > 0
    assert list((tmp_path / "target").iterdir()) == []


def test_the_members_of_a_gang_probe_a_shared_folder_at_once(tmp_path: Path) -> None:
    order = order_for(tmp_path / "target")
    with ThreadPoolExecutor(4) as nodes:  # of one process, and so with one id: ids of two nodes may be the same
        found = list(nodes.map(lambda _: preflight_storage.checkpoints(order, NOWHERE), range(4)))
    assert [(each["status"], each["have"]) for each in found if each["status"] != "ok"] == []
    assert list((tmp_path / "target").iterdir()) == []


@pytest.mark.needs("tmpfs")
@pytest.mark.parametrize(("options", "words"), [("size=64k", "is full"), ("size=1m,ro", "read-only file system")])
def test_a_full_or_read_only_target_is_named(tmp_path: Path, options: str, words: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)], check=True, timeout=20)
    try:
        found = preflight_storage.checkpoints(order_for(tmp_path / "run", checkpoint_share=str(tmp_path)), NOWHERE)
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True, timeout=20)
    assert (found["status"], found["fault"]) == ("failed", "run")
    assert words in found["have"] and "spec.checkpoint_dir" in found["hint"]


def test_a_share_that_is_not_mounted_is_not_made_by_mistake(tmp_path: Path) -> None:
    share = tmp_path / "not-mounted"
    found = preflight_storage.checkpoints(order_for(share / "run-1", checkpoint_share=str(share)), NOWHERE)
    assert found["status"] == "failed" and "is missing" in found["have"]
    assert not share.exists()


def test_data_too_slow_for_the_time_there_is_is_refused_with_the_sum(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(os.urandom(4 * 2**20))
    source = {"name": "d", "path": str(tmp_path), "size_bytes": 2 * 10**12, "passes": 1}
    found = preflight_storage.judge_speed(source, {"max_duration_s": 4 * 3600}, 60_000_000, 1.0, "read")
    assert found["need"] == "138.9 MB/s (2.0 TB × 1 ÷ 4.00 h)"
    assert found["have"].startswith("60.0 MB/s")
    assert "it takes 9.26 h" in found["hint"]
    assert preflight_storage.data({**source, "size_bytes": 10}, order_for(tmp_path))["status"] == "ok"


def test_missing_and_empty_data_are_told_apart(tmp_path: Path) -> None:
    missing = preflight_storage.data({"name": "d", "path": str(tmp_path / "x")}, order_for(tmp_path))
    assert "is missing" in missing["have"]
    assert preflight_storage.data({"name": "d", "path": str(tmp_path)}, order_for(tmp_path))["have"] == "none"


# ---------------------------------------------------------------- servers

ROLE = b"<Error><Code>AuthorizationPermissionMismatch</Code></Error>"
FIREWALL = b"<Error><Code>AuthorizationFailure</Code><Message>This request is not authorized</Message></Error>"


ANSWERS: dict[str, tuple[int, bytes]] = {
    "/role": (403, ROLE),
    "/firewall": (403, FIREWALL),
    "/mute": (403, b""),
    "/gone": (404, b""),
    "/unwell": (503, b""),
    "/data": (200, b"x" * 2**21),
}


def shelf_answer(asked: Asked) -> Answer:
    return Answer(*ANSWERS[asked.path.partition("?")[0]])


@pytest.fixture(scope="module")
def shelf() -> Iterator[str]:
    with closing(Played(shelf_answer)) as played:
        yield played.url


def read(url: str, **order: Any) -> dict[str, Any]:
    return preflight_network.data({"name": "d", "url": url}, {**order_for(NOWHERE), **order})


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/role", "403: no role for it (AuthorizationPermissionMismatch)"),
        ("/firewall", "403: a firewall denies it (AuthorizationFailure)"),
        ("/mute", "403: no role for it (the server answers, so the network lets us through)"),
        ("/gone", "404: it is missing"),
        ("/unwell", "status 503"),
    ],
)
def test_a_refusing_server_is_read_right(shelf: str, path: str, words: str) -> None:
    found = read(shelf + path + "?sig=secret")
    assert found["have"] == words and found["hint"]
    assert "secret" not in str(found)


def test_a_good_source_is_read_and_timed(shelf: str) -> None:
    found = read(shelf + "/data")
    assert found["status"] == "ok" and found["figures"]["read_bytes"] == 2**21


def test_a_closed_port_a_silent_host_and_an_unknown_name_are_three_things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight_network, "TIMEOUT_S", 0.3)
    with socket.socket() as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        silent.bind(("127.0.0.1", 0))
        silent.listen(1)
        assert "connection refused" in read(f"http://127.0.0.1:{closed.getsockname()[1]}/x")["have"]
        assert "network timeout" in read(f"http://127.0.0.1:{silent.getsockname()[1]}/x")["have"]
    assert "has no address" in read("http://no-such-host.invalid/x")["have"]


@pytest.fixture(scope="module")
def authority(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, int], tuple[str, Path]]:
    """Starts a TLS server on loopback whose certificate lasts from and to so many days from now."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def serve(starts_days: int, ends_days: int) -> tuple[str, Path]:
        folder, key = tmp_path_factory.mktemp("tls"), ec.generate_private_key(ec.SECP256R1())
        name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]), datetime.now(UTC)
        made = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=starts_days))
            .not_valid_after(now + timedelta(days=ends_days))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
            .sign(key, hashes.SHA256())
        )
        pem = folder / "cert.pem"
        plain = serialization.NoEncryption()
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        pem.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        served = Played(shelf_answer, tls=context)
        request.addfinalizer(served.close)
        return f"{served.url}/data", pem

    return serve


def test_certificates_expired_untrusted_short_and_good_are_told_apart(authority: Any) -> None:
    def both(days: tuple[int, int], trusted: bool = True, duration_s: float = 3600.0) -> tuple[Any, Any]:
        url, pem = authority(*days)
        env = {"SSL_CERT_FILE": str(pem)} if trusted else {}
        order = {**order_for(NOWHERE), "env": env, "max_duration_s": duration_s}
        return preflight_network.tls({"url": url}, order), preflight_network.data({"name": "d", "url": url}, order)

    ended = (datetime.now(UTC) - timedelta(days=3)).strftime("%Y-%m-%d")
    for found in both((-10, -3)):
        assert found["have"] == f"expired certificate: it ended on {ended}" and "renew" in found["hint"]
    assert "not trusted" in both((-1, 30), trusted=False)[0]["have"]
    assert "the run up to 60.0" in both((-1, 30), duration_s=60 * 86_400.0)[0]["have"]
    assert [found["status"] for found in both((-1, 30))] == ["ok", "ok"]


def test_two_nodes_measure_the_way_between_them() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    heard: list[dict[str, Any]] = []
    listens = {"preflight": {"peer": {"host": "127.0.0.1", "port": port, "listen": True, "peers": 1}}}
    listener = threading.Thread(target=lambda: heard.append(preflight_network.bandwidth(listens, NOWHERE)))
    listener.start()
    order = {"preflight": {"peer": {"host": "127.0.0.1", "port": port, "least_bytes_per_s": 1e18}}}
    found = preflight_network.bandwidth(order, NOWHERE)
    listener.join(60)
    assert heard[0]["have"].startswith("1 of 1 other nodes sent to it")
    assert (found["status"], found["fault"]) == ("failed", "node") and found["figures"]["bytes_per_s"] > 1e6


# ---------------------------------------------------------------- in an attempt


def need(**changes: Any) -> PreflightNeed:
    return PreflightNeed(sent_at=datetime.now(UTC).isoformat(), **changes)


def verdicts(results: tuple[CheckResult, ...]) -> dict[str, str]:
    return {each.name: each.status.value for each in results}


async def test_an_attempt_is_checked_before_its_command_and_says_so(node: Any) -> None:
    await node.start("echo ran", preflight=need())
    seen = await node.ended()
    assert seen.end_reason is EndReason.SUCCEEDED
    assert verdicts(seen.preflight)["checkpoints"] == "ok"
    assert verdicts(seen.preflight)["driver"] == "skipped"


async def test_a_failed_check_ends_the_attempt_unrun_and_unpaid(node: Any, tmp_path: Path) -> None:
    data = (DataNeed(name="corpus", path=str(tmp_path / "nowhere")),)
    await node.start("echo ran", preflight=need(data=data))
    seen = await node.ended()
    assert (seen.end_reason, seen.started_at, node.log()) == (EndReason.PREFLIGHT_FAILED, None, b"")
    assert "data:corpus" in seen.message and "is missing" in seen.message


async def test_a_missing_engine_is_named_before_anything_is_paid_for(node: Any) -> None:
    await node.start("echo ran", preflight=need(packages=("json", "no_such_engine")))
    seen = await node.ended()
    assert (seen.end_reason, seen.started_at, node.log()) == (EndReason.PREFLIGHT_FAILED, None, b"")
    assert "engine" in seen.message and "no no_such_engine" in seen.message
    (told,) = [each for each in seen.preflight if each.name == "engine"]
    assert "pip install 'groundplane[engine]'" in told.hint and told.fault == "run"


@pytest.mark.needs("compiler")
async def test_a_nodes_fault_is_told_with_the_nodes_name(node_with: Any, driver: Any) -> None:
    node = node_with(nvml_library=driver(ECC=2))
    await node.start("echo ran", accelerators=1, preflight=need())
    seen = await node.ended()
    assert (seen.end_reason, seen.unfit_node) == (EndReason.NODE_UNFIT, os.uname().nodename)


async def test_a_wrong_clock_is_the_nodes_fault(node: Any) -> None:
    late = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    await node.start("echo ran", preflight=PreflightNeed(sent_at=late))
    assert (await node.ended()).end_reason is EndReason.NODE_UNFIT


async def test_a_check_that_hangs_holds_the_start_up_for_its_budget_alone(node: Any) -> None:
    """A server that takes the connection and never answers stands for a mount that hangs."""
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:
        data = (DataNeed(name="slow", path="/", url=f"http://127.0.0.1:{silent.server_address[1]}/x"),)
        await node.start("echo ran", preflight=need(data=data, budget_s=0.5))
        seen = await node.ended()
    assert seen.end_reason is EndReason.PREFLIGHT_FAILED
    silent_one = next(each for each in seen.preflight if each.name == "data:slow")
    assert (silent_one.status, silent_one.have) == (CheckStatus.FAILED, "no answer within 0.5 s")


async def test_a_stop_during_preflight_is_obeyed(node: Any) -> None:
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:
        data = (DataNeed(name="slow", path="/", url=f"http://127.0.0.1:{silent.server_address[1]}/x"),)
        await node.start("echo ran", preflight=need(data=data, budget_s=600))
        await node.until(lambda seen: seen.state == "starting")
        await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
        seen = await node.ended()
    assert seen.end_reason is EndReason.STOPPED_BY_USER


@pytest.mark.needs("root")
async def test_checks_of_storage_are_made_with_the_jobs_rights(node: Any) -> None:
    private = Path("/var/tmp") / f"ground-private-{os.getpid()}"
    private.mkdir(mode=0o700)
    try:
        await node.start(
            "echo ran",
            isolation=JobIsolation(mode="user"),
            checkpoint_dir=f"{private}/sub/run-1",
            checkpoint_share=f"{private}/sub",
            preflight=need(data=(DataNeed(name="corpus", path=str(private)),)),
        )
        seen = await node.ended()
    finally:
        shutil.rmtree(private)
    assert seen.end_reason is EndReason.PREFLIGHT_FAILED
    have = next(each.have for each in seen.preflight if each.name == "data:corpus")
    assert have == f"permission denied on {private} for user id {node.state().get('uid') or 710435}"
