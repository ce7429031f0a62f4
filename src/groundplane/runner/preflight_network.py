"""Names, certificates, HTTP sources and the way between nodes: each failure told apart from the others."""

from __future__ import annotations

import errno
import http.client
import re
import socket
import ssl
import threading
import time
from datetime import datetime, timezone
from pathlib import Path
from urllib.parse import urlsplit

from groundplane.runner.preflight_storage import judge_speed
from groundplane.runner.verdicts import failed, ok, rate, skipped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document

TIMEOUT_S = 5.0
SAMPLE_BYTES, SAMPLE_S = 16 * 2**20, 1.0
SAID_BYTES = 4096
BLOCK = 2**16
# Words of storage services and proxies that refuse by network rules, however valid the caller's rights are. Source:
# Azure Storage error codes (AuthorizationFailure is sent for network rules, AuthorizationPermissionMismatch for roles),
# VPC Service Controls and VPC endpoint policies' own messages, Squid's X-Squid-Error, checked 2026-11.
FIREWALL_WORDS = (
    rb"AuthorizationFailure",
    rb"IpAuthorizationError",
    rb"vpcServiceControls",
    rb"VPC endpoint policy",
    rb"network (rule|acl|security)",
    rb"firewall",
    rb"ERR_ACCESS_DENIED",
    rb"IP address .{0,60}(not allowed|not authorized|blocked)",
)
ROLE_WORDS = (
    rb"AuthorizationPermissionMismatch",
    rb"InsufficientAccountPermissions",
    rb"AccessDenied",
    rb"Access Denied",
    rb"does not have [\w.]+ access",
    rb"InvalidAccessKeyId",
    rb"SignatureDoesNotMatch",
    rb"AuthenticationFailed",
)


def dns(source: Document, _: Document) -> Document:
    """Whether the source's name has an address here."""
    host = urlsplit(source["url"]).hostname or ""
    need = f"an address for {host}"
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        hint = "check the spelling; else /etc/resolv.conf on the node, and whether its name server answers"
        return failed(need, f"none: {error.strerror}", hint, fault="run")
    return ok(need, ", ".join(sorted({each[4][0] for each in found})[:4]))


def tls(source: Document, order: Document) -> Document:
    """Whether the source's certificate is trusted, for its name, and lasts as long as the run may."""
    parts = urlsplit(source["url"])
    if parts.scheme != "https":
        return skipped("the source is not behind TLS")
    host, port = parts.hostname or "", parts.port or 443
    need = f"a valid certificate of {host}:{port} until the run's end"
    try:
        left_s = _certificate_left_s(host, port, context(order))
    except ssl.SSLCertVerificationError as error:
        return bad_certificate(need, host, port, error)
    except OSError as error:
        return skipped(f"{host}:{port} gave no certificate: {error}")
    runs_s = float(order["max_duration_s"])
    have = f"it lasts {left_s / 86400:.1f} more days"
    if left_s < runs_s:
        hint = "renew it before the run starts: it would expire while the job reads"
        return failed(need, f"{have}, the run up to {runs_s / 86400:.1f}", hint, fault="run", left_s=left_s)
    return ok(need, have, left_s=left_s)


def data(source: Document, order: Document) -> Document:
    """Reads the beginning of an HTTP source. Network, certificate, missing object, role and firewall are told apart."""
    url = source["url"]
    parts = urlsplit(url)
    host = parts.hostname or ""
    need = f"read {_without_query(url)}"
    try:
        status, said, read_bytes, took_s = _get(url, order)
    except socket.gaierror as error:
        return failed(
            need, f"the name {host} has no address: {error.strerror}", "check the spelling and DNS", fault="run"
        )
    except ssl.SSLCertVerificationError as error:
        return bad_certificate(need, host, parts.port or 443, error)
    except (TimeoutError, socket.timeout):  # noqa: UP041 (Python 3.9 tells them apart)
        have = f"network timeout: {host} did not answer within {TIMEOUT_S:g} s"
        hint = "a firewall drops it or there is no route: open it from the node's network, or use a private endpoint"
        return failed(need, have, hint, fault="run")
    except ConnectionRefusedError:
        hint = "is the server up, and the port right?"
        return failed(need, f"connection refused by {host}: nothing listens there", hint, fault="run")
    except (OSError, http.client.HTTPException) as error:
        unreachable = getattr(error, "errno", None) in (errno.ENETUNREACH, errno.EHOSTUNREACH)
        have = f"network: no route to {host}" if unreachable else f"network: {error or type(error).__name__}"
        return failed(need, have, "check the node's routes and firewall", fault="run")
    if status in (200, 206):
        return judge_speed(source, order, read_bytes, took_s, need)
    return refused(need, status, said)


def bandwidth(order: Document, _: Path) -> Document:
    """The first node of a gang listens for the others; each of those sends to it for a second and says how fast.

    Who can't send is at fault, not who waits: when several can't, the way to the first node is what they share.
    """
    peer = order["preflight"]["peer"]
    wait_s = float(peer.get("wait_s") or TIMEOUT_S)
    host, port, least = peer["host"], int(peer["port"]), float(peer.get("least_bytes_per_s") or 0)
    if peer.get("listen"):
        came = receive(host, port, wait_s, int(peer["peers"]))
        slowest = min(came, default=0.0)
        have = f"{len(came)} of {peer['peers']} other nodes sent to it" + (
            f", the slowest {rate(slowest)}" if came else ""
        )
        return ok("to be reached by the gang", have, nodes=len(came), bytes_per_s=slowest)
    need = f"{rate(least)} to {host}" if least else f"to reach {host}, the gang's first node"
    try:
        carried, took_s = transmit(host, port, wait_s)
    except OSError as error:
        hint = "check the link and the firewall between the two nodes"
        return failed(need, f"{host}:{port}: {error}", hint, fault="node")
    measured = carried / max(took_s, 1e-6)
    if measured < least:
        hint = "a slow link holds the whole gang up: check its speed and errors with ethtool"
        return failed(need, rate(measured), hint, fault="node", bytes_per_s=measured)
    return ok(need, rate(measured), bytes_per_s=measured)


def receive(host: str, port: int, wait_s: float, peers: int = 1) -> list[float]:
    """Bytes a second of each peer that sent within `wait_s`, side by side."""
    until, came = time.monotonic() + wait_s, []
    threads = []

    def drain(link: socket.socket) -> None:
        with link:
            link.settimeout(wait_s)
            carried, began = 0, time.monotonic()
            while part := link.recv(BLOCK):
                carried += len(part)
            came.append(carried / max(time.monotonic() - began, 1e-6))

    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((host, port))
        server.listen(peers)
        while len(threads) < peers and time.monotonic() < until:
            server.settimeout(max(0.01, until - time.monotonic()))
            try:
                link, _ = server.accept()
            except (TimeoutError, socket.timeout):  # noqa: UP041 (Python 3.9 tells them apart)
                break
            threads.append(threading.Thread(target=drain, args=(link,), daemon=True))
            threads[-1].start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()) + SAMPLE_S)
    return came


def transmit(host: str, port: int, wait_s: float) -> tuple[int, float]:
    """(bytes, seconds) sent to a peer for a second. OSError when it does not listen within `wait_s`."""
    until = time.monotonic() + wait_s
    while True:
        try:
            link = socket.create_connection((host, port), timeout=wait_s)
        except ConnectionRefusedError:
            if time.monotonic() >= until:
                raise
            time.sleep(0.05)
        else:
            break
    with link:
        carried, block = 0, bytes(BLOCK)
        began = time.monotonic()
        while time.monotonic() - began < SAMPLE_S:
            link.sendall(block)
            carried += len(block)
        link.shutdown(socket.SHUT_WR)
        link.recv(1)  # the other side closes when it has everything
        return carried, time.monotonic() - began


# ---------------------------------------------------------------- HTTP and certificates


def _get(url: str, order: Document) -> tuple[int, bytes, int, float]:
    """(status, first words of a refusal, bytes, seconds) of reading the source's beginning."""
    parts = urlsplit(url)
    host, path = parts.hostname or "", (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if parts.scheme == "https":
        link: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, parts.port, timeout=TIMEOUT_S, context=context(order)
        )
    else:
        link = http.client.HTTPConnection(host, parts.port, timeout=TIMEOUT_S)
    try:
        link.request(
            "GET", path, headers={"Range": f"bytes=0-{SAMPLE_BYTES - 1}", "User-Agent": "groundplane-preflight"}
        )
        answer = link.getresponse()
        if answer.status not in (200, 206):
            return answer.status, str(answer.headers).encode() + answer.read(SAID_BYTES), 0, 0.0
        read_bytes, began = 0, time.monotonic()
        while read_bytes < SAMPLE_BYTES and time.monotonic() - began < SAMPLE_S:
            part = answer.read1(BLOCK)
            if not part:
                break
            read_bytes += len(part)
        return answer.status, b"", read_bytes, time.monotonic() - began
    finally:
        link.close()


def refused(need: str, status: int, said: bytes) -> Document:
    """A status that is no success: what refuses, the identity's role, the network's rules, or neither."""
    if status in (401, 403):
        word = _found(FIREWALL_WORDS, said)
        if word:
            have = f"{status}: a firewall denies it ({word})"
            hint = "let this node's network in: add its subnet or a private endpoint to the storage's network rules"
            return failed(need, have, hint, fault="run")
        word = _found(ROLE_WORDS, said) or "the server answers, so the network lets us through"
        hint = (
            "grant the identity that reads a role such as Storage Blob Data Reader or s3:GetObject, or renew its token"
        )
        return failed(need, f"{status}: no role for it ({word})", hint, fault="run")
    if status == 407:
        return failed(
            need, "407: a proxy on the way wants credentials", "ask for an exception in the proxy", fault="run"
        )
    if status in (404, 410):
        return failed(need, f"{status}: it is missing", "check the name and whether it was deleted", fault="run")
    if status in (301, 302, 303, 307, 308):
        return failed(need, f"{status}: it has moved", "name the address that it moved to", fault="run")
    return failed(need, f"status {status}", "the storage is unwell: try later, look at its status page", fault="run")


def _found(words: tuple[bytes, ...], said: bytes) -> str:
    match = next(filter(None, (re.search(word, said, re.IGNORECASE) for word in words)), None)
    return match[0].decode(errors="replace") if match else ""


def context(order: Document) -> ssl.SSLContext:
    """Trusts what the job would trust."""
    return ssl.create_default_context(cafile=(order.get("env") or {}).get("SSL_CERT_FILE") or None)


def _certificate_left_s(host: str, port: int, context: ssl.SSLContext) -> float:
    link = socket.create_connection((host, port), timeout=TIMEOUT_S)
    with link, context.wrap_socket(link, server_hostname=host) as secured:
        ends = str((secured.getpeercert() or {}).get("notAfter", ""))
        return ssl.cert_time_to_seconds(ends) - time.time()


def bad_certificate(need: str, host: str, port: int, error: ssl.SSLCertVerificationError) -> Document:
    """Source: X509_V_ERR codes of OpenSSL: 9 not yet valid, 10 expired, 62 another host, 18 to 21 not trusted."""
    if error.verify_code == 10:
        have = f"expired certificate: it ended {_ended(host, port)}"
        return failed(need, have, f"renew the certificate of {host}", fault="run")
    if error.verify_code == 9:
        return failed(need, "the certificate is not valid yet", "is the node's clock right?", fault="run")
    if error.verify_code == 62:
        return failed(need, f"the certificate is not for {host}", "use the name it was issued for", fault="run")
    have = f"the certificate is not trusted: {error.verify_message}"
    return failed(need, have, "set env SSL_CERT_FILE to the bundle that signed it", fault="run")


def _ended(host: str, port: int) -> str:
    """The day a certificate that can't be verified ended. Its dates are the first two times in it (RFC 5280, 4.1)."""
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    try:
        link = socket.create_connection((host, port), timeout=TIMEOUT_S)
        with link, unverified.wrap_socket(link, server_hostname=host) as secured:
            raw = secured.getpeercert(binary_form=True) or b""
    except OSError:
        return "some time ago"
    times = re.findall(rb"\x17\x0d(\d{12})Z|\x18\x0f(\d{14})Z", raw)
    if len(times) < 2:
        return "some time ago"
    short, long = times[1]
    text, layout = (long, "%Y%m%d%H%M%S") if long else (short, "%y%m%d%H%M%S")
    return f"on {datetime.strptime(text.decode(), layout).replace(tzinfo=timezone.utc):%Y-%m-%d}"


def _without_query(url: str) -> str:
    """Signed addresses carry their right to read in the query: that is nobody else's business."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
