"""Preflight through the real command and server: what is wrong is said before it is paid for."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

MIB = 2**20
# A driver whose state is a file's content: 0 well, 18 versions differ. As after a kernel update under a running node.
DRIVER = r"""
#include <stdio.h>
#include <string.h>
int nvmlInit_v2(void) {
  FILE *f = fopen(STATE, "r"); int status = 9;
  if (f) { if (fscanf(f, "%d", &status) != 1) status = 9; fclose(f); }
  return status; }
int nvmlSystemGetDriverVersion(char *s, unsigned n) { strncpy(s, "550.54.15", n); return 0; }
int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { *h = (void *)(long)(i + 1); return 0; }
int nvmlDeviceGetName(void *h, char *s, unsigned n) { strncpy(s, "NVIDIA H100 80GB HBM3", n); return 0; }
int nvmlDeviceGetUtilizationRates(void *h, unsigned *u) { u[0] = u[1] = 0; return 0; }
int nvmlDeviceGetMemoryInfo(void *h, unsigned long long *m) { m[0] = 81559ULL << 20; m[1] = m[0]; m[2] = 0; return 0; }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *t) { *t = 40; return 0; }
int cuInit(unsigned flags) { return 0; }
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
"""


class Storage(http.server.BaseHTTPRequestHandler):
    """A storage service: one thing the caller has no role for, one behind a firewall, one that is slow."""

    def do_GET(self) -> None:
        refusals = {
            "/role": b"<Error><Code>AuthorizationPermissionMismatch</Code></Error>",
            "/firewall": b"<Error><Code>AuthorizationFailure</Code></Error>",
        }
        refusal = refusals.get(self.path)
        self.send_response(403 if refusal else 200)
        self.send_header("Content-Length", str(len(refusal) if refusal else 64 * MIB))
        self.end_headers()
        try:
            if refusal:
                self.wfile.write(refusal)
            else:
                for _ in range(64):  # 2 MiB, then 20 MB/s at most
                    self.wfile.write(b"x" * MIB)
                    time.sleep(0.05)
        except OSError:
            return  # the reader has seen enough

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def storage() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refused(shared: Any, path: Path) -> str:
    """What `ground preflight -f` says when it refuses; a submitted run must then end the same way, unpaid."""
    said: str = shared.ground("preflight", "-f", str(path), expect=3).stderr
    assert said.startswith("error: ")
    return said


def test_t3_a_checkpoint_target_that_cant_be_written_fails_before_the_first_paid_second(
    shared: Any, tmp_path: Path
) -> None:
    target = tmp_path / "share"
    target.write_text("a file where the folder should be")
    path = shared.job("weekend", ["sh", "-c", "sleep 60"], checkpoint_dir=str(target))
    assert "preflight checkpoints" in refused(shared, path)
    run_id = shared.submit(path)
    detail = shared.wait_run(run_id, "failed")
    assert detail.run.end_reason == "preflight-failed"
    assert [attempt.started_at for attempt in detail.attempts] == [None]
    assert shared.log(run_id) == ""
    assert [row for row in shared.data("cost", "--by", "run") if row["group"] == run_id] == []
    explained = shared.ground("explain", run_id).stdout
    assert f"write, sync and read back in {target}" in explained
    target.unlink()
    target.mkdir()
    assert shared.wait_run(shared.submit(shared.job("monday", ["true"], checkpoint_dir=str(target))), "succeeded")


def test_t7_data_that_comes_too_slowly_for_the_time_there_is_is_refused_with_the_sum(shared: Any, storage: str) -> None:
    data = [{"name": "corpus", "path": "/data", "url": f"{storage}/slow", "size": "2TB"}]
    path = shared.job("midnight", ["true"], data=data, max_duration="4h", max_cost="$5")
    said = refused(shared, path)
    assert "138.9 MB/s (2.0 TB × 1 ÷ 4.00 h)" in said
    assert "stage it to the node's own disk" in said
    (report,) = json.loads(shared.ground("preflight", "-f", str(path), "-o", "json", expect=3).stdout)
    (found,) = [each for each in report["results"] if each["name"] == "data:corpus"]
    hours = 2e12 / found["figures"]["bytes_per_s"] / 3600
    assert f"takes {hours:.2f} h" in found["hint"]


def test_t21_a_403_says_whether_the_role_or_the_firewall_is_missing(shared: Any, storage: str) -> None:
    for place, words in (("role", "no role for it"), ("firewall", "a firewall denies it")):
        data = [{"name": "corpus", "path": "/data", "url": f"{storage}/{place}"}]
        assert words in refused(shared, shared.job(f"mount-{place}", ["true"], data=data))


@pytest.mark.needs("tmpfs")
def test_t26_old_villains_are_each_named_with_their_fix(shared: Any, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(full)], check=True, timeout=20)
    try:
        said = refused(shared, shared.job("villain-disk", ["true"], checkpoint_dir=str(full)))
        assert "is full" in said and "spec.checkpoint_dir" in said
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True, timeout=20)
    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as silent:
        nobody = [{"name": "corpus", "path": "/data", "url": f"http://127.0.0.1:{silent.server_address[1]}/x"}]
        said = refused(shared, shared.job("villain-network", ["true"], data=nobody))
    assert "network timeout" in said and "no route" in said
    private = Path("/var/tmp") / f"ground-private-{os.getpid()}"
    private.mkdir(mode=0o700)
    try:
        data = [{"name": "corpus", "path": str(private)}]
        said = refused(shared, shared.job("villain-permission", ["true"], data=data, isolation="user"))
        assert "permission denied" in said and "setfacl" in said
    finally:
        private.rmdir()


def test_t26_an_expired_certificate_is_named_with_its_day(shared: Any, tmp_path: Path) -> None:
    pem = tmp_path / "cert.pem"
    pem.write_bytes(expired_certificate())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Storage) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"https://localhost:{server.server_address[1]}/slow"
        data = [{"name": "corpus", "path": "/data", "url": url}]
        env = {"SSL_CERT_FILE": str(pem)}
        said = refused(shared, shared.job("villain-certificate", ["true"], data=data, env=env))
        server.shutdown()
    assert "expired certificate" in said and "renew the certificate of localhost" in said


@pytest.mark.needs("compiler")
def test_t16_a_driver_that_a_kernel_update_broke_cordons_its_idle_node(
    new_installation: Callable[..., Any], wait: Callable[..., Any], tmp_path: Path
) -> None:
    state = tmp_path / "driver-state"
    state.write_text("0")
    (tmp_path / "driver.c").write_text(DRIVER.replace("STATE", json.dumps(str(state))))
    flags = ["-shared", "-fPIC", "-w", "-o", "libnvidia-ml.so.1", "driver.c"]
    subprocess.run(["gcc", *flags], cwd=tmp_path, check=True, timeout=60)
    (tmp_path / "libcuda.so.1").symlink_to("libnvidia-ml.so.1")
    plane = new_installation(LD_LIBRARY_PATH=str(tmp_path), GROUND_PREFLIGHT_IDLE="1s")
    plane.ground("up", "--detach")
    plane.ground("projects", "create", "research", "--owner", "ana", "--cost-center", "r1", "--budget", "$20")
    wait(lambda: any("preflight_checks" in line and '"driver"' in line for line in metrics(plane)), "a probe")
    assert not any(line.startswith("ground_nodes_cordoned") for line in metrics(plane))
    state.write_text("18")
    wait(lambda: any(line.startswith("ground_nodes_cordoned") for line in metrics(plane)), "a cordon")
    (event,) = [each for each in plane.data("audit", "log") if each["action"] == "node.cordon"]
    assert "driver and library versions differ" in event["reason"]
    assert "restart the node" in event["after"]["hint"]
    run_id = plane.submit(plane.job("after", ["true"]))
    wait(lambda: "cordoned" in plane.ground("explain", run_id).stdout, "the reason why it waits")


def expired_certificate() -> bytes:
    """Of localhost, signed by itself, three days over; with its key."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now - timedelta(days=3))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    return made.public_bytes(serialization.Encoding.PEM) + private


def metrics(plane: Any) -> list[str]:
    ask = urllib.request.Request(f"http://127.0.0.1:{plane.port}/metrics")
    ask.add_header("Authorization", f"Bearer {plane.admin_key}")
    with urllib.request.urlopen(ask, timeout=10) as answer:
        return str(answer.read().decode()).splitlines()
