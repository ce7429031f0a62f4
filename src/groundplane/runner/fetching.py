"""Where staged data comes from: a folder, HTTP(S), an S3-compatible store. Listing, reading from an offset, refusals.

Requests to S3 are signed here with AWS Signature Version 4. Source: AWS, Signature Version 4 signing process, and
ListObjectsV2, GetObject of the S3 API reference, checked 2026-11.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import hmac
import http.client
import os
import re
import socket
import ssl
import stat
import threading
import time
import xml.etree.ElementTree as ET
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote, urljoin, urlsplit

from groundplane.runner.preflight_network import bad_certificate, context, refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from groundplane.runner.files import Document

TIMEOUT_S = 20.0
SAID_BYTES = 4096
MOST_REDIRECTS = 5
MANIFEST_LIMIT_BYTES = 64 * 2**20
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)


class Wrong(Exception):
    """Data can't be staged: why, as an end reason, with what was needed, what there is, and the way forward."""

    def __init__(self, need: str, have: str, hint: str, reason: str = "data-refused") -> None:
        super().__init__(f"need {need}, have {have}; {hint}")
        self.need, self.have, self.hint, self.reason = need, have, hint, reason


class Passing(Exception):
    """The way to the data failed and may work again: a broken connection, a busy server."""


class Changed(Exception):
    """What lies there is not what it was when it was listed."""


class Item:
    """One file of a source. `size_bytes` is -1 when its server does not tell; `validator` is what changes with it."""

    __slots__ = ("modified", "path", "place", "ranges", "sha256", "size_bytes", "validator")

    def __init__(self, path: str, place: str, size_bytes: int, validator: str = "", sha256: str = "") -> None:
        self.path, self.place, self.size_bytes = path, place, size_bytes
        self.validator, self.sha256 = validator, sha256
        self.ranges = False
        self.modified = ""


class Stream:
    """Bytes from `offset` on, which is 0 when the server would not begin where it was asked to."""

    def __init__(self, offset: int, read: object, close: object) -> None:
        self.offset, self._read, self._close = offset, read, close

    def read(self, size_bytes: int) -> bytes:
        """Some bytes, none at the end. Passing when the connection breaks."""
        try:
            data: bytes = self._read(size_bytes)  # type: ignore[operator]
        except (OSError, http.client.HTTPException) as error:
            raise Passing(f"the connection broke: {error or type(error).__name__}") from error
        return data

    def close(self) -> None:
        self._close()  # type: ignore[operator]


def open_source(source: Document, order: Document, secret: str, uid: int) -> FolderSource | HttpSource | S3Source:
    """The source that a staging order names. `uid` is whose rights read folders; 0 is this process's own."""
    address = source["source"]
    kind = urlsplit(address).scheme
    if kind in ("http", "https"):
        return HttpSource(source, order, secret)
    if kind == "s3":
        return S3Source(source, order, secret)
    return FolderSource(source, uid)


def read_manifest(text: str, where: str) -> dict[str, str]:
    """Path → SHA-256 of lines as `sha256sum` writes them. Wrong for a line that is none."""
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"([0-9a-fA-F]{64})[ \t][ *]?(.+)", line)
        if match is None:
            need = f"SHA256  PATH on each line of {where}"
            raise Wrong(need, f"line {number}: {line[:80]!r}", "write it with sha256sum")
        found[safe_path(match[2].removeprefix("./"))] = match[1].lower()
    if not found:
        raise Wrong(f"files in {where}", "it names none", "write it with sha256sum")
    return found


def safe_path(path: str) -> str:
    """The path when it stays inside the folder it is put into. Wrong when not."""
    parts = path.split("/")
    if not path or path.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in path:
        raise Wrong("relative paths without ..", repr(path[:200]), "such a name can't be laid into a folder")
    return path


# ---------------------------------------------------------------- a folder


class FolderSource:
    """A file or folder that this node sees: its own disk, a share. Links are left out."""

    def __init__(self, source: Document, uid: int) -> None:
        self._root, self._manifest, self._uid = Path(source["source"]), source.get("manifest") or "", uid

    def survey(self) -> list[Item]:
        with self._as_job():
            try:
                return self._survey()
            except OSError as error:
                raise self._unreadable(error) from None

    def open(self, item: Item, start: int, _end: int) -> Stream:
        with self._as_job():
            try:
                descriptor = os.open(item.place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except FileNotFoundError:
                raise Changed(f"{item.place} is gone") from None
            except OSError as error:
                raise self._unreadable(error) from None
        if _validator(os.fstat(descriptor)) != item.validator:
            os.close(descriptor)
            raise Changed(f"{item.place} was written to")
        os.lseek(descriptor, start, os.SEEK_SET)
        return Stream(start, lambda size: os.read(descriptor, size), lambda: os.close(descriptor))

    def _survey(self) -> list[Item]:
        if not stat.S_ISDIR(self._root.stat().st_mode):
            return [self._item(self._root.name, self._root)]
        if self._manifest:
            place = self._root / safe_path(self._manifest)
            with place.open("rb") as file:
                listed = read_manifest(file.read(MANIFEST_LIMIT_BYTES).decode("utf-8", "replace"), str(place))
            return [self._item(path, self._root / path, sha256) for path, sha256 in listed.items()]
        found = []
        for folder, folders, names in os.walk(self._root, onerror=_raise):
            folders.sort()
            for name in sorted(names):
                path = Path(folder, name)
                if not path.is_symlink() and path.is_file():
                    found.append(self._item(str(path.relative_to(self._root)), path))
        return found

    def _item(self, path: str, place: Path, sha256: str = "") -> Item:
        about = place.stat()
        item = Item(path, str(place), about.st_size, _validator(about), sha256)
        item.ranges = True
        return item

    def _unreadable(self, error: OSError) -> Wrong:
        where = error.filename or str(self._root)
        need = f"read {self._root}"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return Wrong(need, f"{where} is missing on this node", "is the path right, and its share mounted here?")
        if error.errno in (errno.EACCES, errno.EPERM):
            uid = self._uid or os.geteuid()
            hint = f"let user id {uid} read it: setfacl -R -m u:{uid}:rX {self._root}"
            return Wrong(need, f"permission denied on {where} for user id {uid}", hint)
        return Wrong(need, f"{where}: {error.strerror}", "look at it on the node by hand", "data-unreachable")

    @contextlib.contextmanager
    def _as_job(self) -> Iterator[None]:
        """This thread's file rights are the job's: what it may not read must not reach it through us."""
        if not self._uid:
            yield
            return
        libc = ctypes.CDLL(None)
        libc.setfsgid(self._uid)
        libc.setfsuid(self._uid)
        try:
            yield
        finally:
            libc.setfsuid(os.geteuid())
            libc.setfsgid(os.getegid())


def _validator(about: os.stat_result) -> str:
    return f"{about.st_size}-{about.st_mtime_ns}-{about.st_ino}"


def _raise(error: OSError) -> None:
    raise error


# ---------------------------------------------------------------- HTTP


class HttpSource:
    """One address, or with a manifest each file that it names below the address. A secret is sent as a bearer token."""

    def __init__(self, source: Document, order: Document, secret: str) -> None:
        self._address, self._manifest = source["source"], source.get("manifest") or ""
        self._links = Links(order)
        self._token = secret.strip()

    def survey(self) -> list[Item]:
        if not self._manifest:
            name = unquote(PurePosixPath(urlsplit(self._address).path).name) or "data"
            return [self._look(Item(safe_path(name), self._address, -1))]
        base = self._address if self._address.endswith("/") else f"{self._address}/"
        place = urljoin(base, quote(safe_path(self._manifest)))
        _, answer = self._ask("GET", place, {})
        text = answer.read(MANIFEST_LIMIT_BYTES).decode("utf-8", "replace")
        answer.close()
        listed = read_manifest(text, without_query(place))
        return [self._look(Item(p, urljoin(base, quote(p)), -1, sha256=s)) for p, s in listed.items()]

    def open(self, item: Item, start: int, end: int) -> Stream:
        headers = {}
        if start or (end >= 0 and end != item.size_bytes):
            headers["Range"] = f"bytes={start}-{end - 1 if end >= 0 else ''}"
            if item.validator.startswith('"') or item.modified:
                headers["If-Range"] = item.validator if item.validator.startswith('"') else item.modified
        status, answer = self._ask("GET", item.place, headers)
        return _stream(item, status, answer, start)

    def _look(self, item: Item) -> Item:
        # An answer to HEAD has no body: the words that tell who refuses come with a GET.
        status, answer = self._ask("HEAD", item.place, {}, also=(401, 403, 405, 501))
        if status not in (200, 206):
            answer.close()
            status, answer = self._ask("GET", item.place, {"Range": "bytes=0-0"})
        item.ranges = status == 206 or answer.getheader("Accept-Ranges") == "bytes"
        item.size_bytes = _whole_size(status, answer)
        item.validator, item.modified = answer.getheader("ETag") or "", answer.getheader("Last-Modified") or ""
        item.validator = item.validator or item.modified
        answer.close()
        return item

    def _ask(
        self, method: str, address: str, headers: Mapping[str, str], also: tuple[int, ...] = ()
    ) -> tuple[int, http.client.HTTPResponse]:
        first = urlsplit(address)
        for _ in range(MOST_REDIRECTS + 1):
            parts = urlsplit(address)
            sent = dict(headers)
            if self._token and (parts.scheme, parts.netloc) == (first.scheme, first.netloc):
                sent["Authorization"] = f"Bearer {self._token}"
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            answer = self._links.ask(method, address, path, sent)
            moved = answer.getheader("Location")
            if answer.status not in (301, 302, 303, 307, 308) or not moved:
                return _judged(answer, f"read {without_query(address)}", also)
            answer.close()
            address = urljoin(address, moved)
            if urlsplit(address).scheme not in ("http", "https"):
                break
        raise Wrong(f"read {without_query(first.geturl())}", "too many redirects", "name the address it ends at")


def without_query(address: str) -> str:
    """An address fit to be shown: a query may hold a signature."""
    return address.partition("?")[0]


# ---------------------------------------------------------------- S3


class S3Source:
    """`s3://bucket/key`, or all objects below `s3://bucket/prefix/`. Without a secret, requests go unsigned."""

    def __init__(self, source: Document, order: Document, secret: str) -> None:
        parts = urlsplit(source["source"])
        self._bucket, self._prefix = parts.netloc, parts.path.lstrip("/")
        self._manifest = source.get("manifest") or ""
        self._region = source.get("region") or "us-east-1"
        endpoint = source.get("endpoint") or f"https://s3.{self._region}.amazonaws.com"
        self._endpoint = endpoint.rstrip("/")
        self._keys = read_credentials(secret, source.get("secret") or "")
        self._links = Links(order)

    def survey(self) -> list[Item]:
        if self._prefix and not self._prefix.endswith("/"):
            status, answer = self._ask("HEAD", self._prefix, also=(401, 403, 404))
            if status in (401, 403):
                answer.close()
                status, answer = self._ask("GET", self._prefix, also=(404,))
            if status == 200:
                item = self._item(PurePosixPath(self._prefix).name, self._prefix, _whole_size(status, answer))
                item.validator = answer.getheader("ETag") or ""
                answer.close()
                return [item]
            answer.close()
            self._prefix += "/"
        found = {item.path: item for item in self._list()}
        if not found:
            raise Wrong(f"objects in s3://{self._bucket}/{self._prefix}", "none", "check the bucket and the prefix")
        if not self._manifest:
            return list(found.values())
        _, answer = self._ask("GET", self._prefix + safe_path(self._manifest))
        text = answer.read(MANIFEST_LIMIT_BYTES).decode("utf-8", "replace")
        answer.close()
        chosen = []
        for path, sha256 in read_manifest(text, f"s3://{self._bucket}/{self._prefix}{self._manifest}").items():
            if path not in found:
                raise Wrong(f"{path}, which {self._manifest} names", "it is missing", "upload it, or mend the manifest")
            found[path].sha256 = sha256
            chosen.append(found[path])
        return chosen

    def open(self, item: Item, start: int, end: int) -> Stream:
        headers = {"If-Match": item.validator} if item.validator else {}
        if start or (end >= 0 and end != item.size_bytes):
            headers["Range"] = f"bytes={start}-{end - 1 if end >= 0 else ''}"
        status, answer = self._ask("GET", item.place, headers=headers)
        return _stream(item, status, answer, start)

    def _list(self) -> Iterator[Item]:
        token = ""
        while True:
            query = {"list-type": "2", "prefix": self._prefix, **({"continuation-token": token} if token else {})}
            _, answer = self._ask("GET", "", query)
            try:
                page = ET.fromstring(answer.read())  # noqa: S314 (expat expands no external entities)
            except ET.ParseError as error:
                where = f"{self._endpoint}/{self._bucket}"
                raise Wrong(f"a list of {where}", f"no XML: {error}", "is this an S3-compatible endpoint?") from None
            finally:
                answer.close()
            for entry in page.iterfind("{*}Contents"):
                key = entry.findtext("{*}Key") or ""
                if not key.endswith("/"):
                    size = int(entry.findtext("{*}Size") or 0)
                    item = self._item(safe_path(key[len(self._prefix) :]), key, size)
                    item.validator = entry.findtext("{*}ETag") or ""
                    yield item
            token = page.findtext("{*}NextContinuationToken") or ""
            if not token:
                return

    def _item(self, path: str, key: str, size_bytes: int) -> Item:
        item = Item(safe_path(path), key, size_bytes)
        item.ranges = True
        return item

    def _ask(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] | None = None,
        also: tuple[int, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, http.client.HTTPResponse]:
        path = f"{urlsplit(self._endpoint).path}/{quote(self._bucket)}" + (f"/{quote(key, safe='/~')}" if key else "")
        asked = "&".join(f"{quote(n, safe='~')}={quote(v, safe='~')}" for n, v in sorted((query or {}).items()))
        sent = dict(headers or {})
        if self._keys:
            sent |= signature(method, self._endpoint, path, asked, self._keys, self._region)
        answer = self._links.ask(method, self._endpoint, path + (f"?{asked}" if asked else ""), sent)
        return _judged(answer, f"read s3://{self._bucket}/{key or self._prefix}", also)


def read_credentials(text: str, name: str) -> dict[str, str]:
    """Keys from a secret written as AWS's credentials file writes them; {} without a secret. Wrong when it is none."""
    if not name:
        return {}
    lines = (line.split("#")[0].partition("=") for line in text.splitlines())
    found = {key.strip().lower(): value.strip() for key, _, value in lines if value.strip()}
    keys = {each: found.get(f"aws_{each}", "") for each in ("access_key_id", "secret_access_key", "session_token")}
    if not keys["access_key_id"] or not keys["secret_access_key"]:
        need = f"aws_access_key_id = … and aws_secret_access_key = … in the secret {name}"
        raise Wrong(need, "they are not there", "write it like ~/.aws/credentials")
    return keys


def signature(
    method: str,
    endpoint: str,
    path: str,
    query: str,
    keys: Mapping[str, str],
    region: str,
    at_s: float | None = None,
) -> dict[str, str]:
    """The headers that sign a request without a body, for the S3 service. `path` and `query` are encoded already."""
    at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(at_s))
    headers = {"host": urlsplit(endpoint).netloc, "x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": at}
    if keys.get("session_token"):
        headers["x-amz-security-token"] = keys["session_token"]
    names = ";".join(sorted(headers))
    listed = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    canonical = "\n".join((method, path, query, listed, names, EMPTY_SHA256))
    scope = f"{at[:8]}/{region}/s3/aws4_request"
    text = "\n".join(("AWS4-HMAC-SHA256", at, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = b"AWS4" + keys["secret_access_key"].encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signed = hmac.digest(key, text.encode(), "sha256").hex()
    credential = f"{keys['access_key_id']}/{scope}"
    headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={names}, Signature={signed}"
    del headers["host"]  # http.client sends it
    return headers


# ---------------------------------------------------------------- connections


class Links(threading.local):
    """One kept connection per thread and host."""

    def __init__(self, order: Document) -> None:
        self._order = order
        self._open: dict[tuple[str, str], http.client.HTTPConnection] = {}

    def ask(self, method: str, address: str, path: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """The answer's head. Wrong for what another try can't mend, Passing for the rest."""
        parts = urlsplit(address)
        host = parts.hostname or ""
        need = f"read {without_query(address)}"
        place = parts.scheme, parts.netloc
        sent = {"User-Agent": "groundplane-staging", "Accept-Encoding": "identity", **headers}
        for fresh in (False, True):
            link = self._open.pop(place, None)
            if link is None or fresh:
                link, fresh = self._connection(parts.scheme, host, parts.port), True
            try:
                link.request(method, path, headers=sent)
                answer = link.getresponse()
            except ssl.SSLCertVerificationError as error:
                said = bad_certificate(need, host, parts.port or 443, error)
                raise Wrong(need, str(said["have"]), str(said["hint"])) from None
            except (OSError, http.client.HTTPException) as error:
                link.close()
                if not fresh:
                    continue  # a kept connection may have been closed meanwhile
                raise Passing(_network(host, error)) from error
            if not answer.will_close:
                self._open[place] = link
            return answer
        raise AssertionError("the second round always ends")

    def _connection(self, scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
        if scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context(self._order))
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)


def _network(host: str, error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return f"network: the name {host} has no address: {error.strerror}"
    if isinstance(error, (TimeoutError, socket.timeout)):
        return f"network timeout: {host} did not answer within {TIMEOUT_S:g} s"
    if isinstance(error, ConnectionRefusedError):
        return f"network: connection refused by {host}"
    return f"network: {host}: {error or type(error).__name__}"


def _judged(
    answer: http.client.HTTPResponse, need: str, also: Iterable[int] = ()
) -> tuple[int, http.client.HTTPResponse]:
    status = answer.status
    if status in (200, 206, 416, 412) or status in also:
        return status, answer
    said = str(answer.headers).encode() + answer.read(SAID_BYTES)
    answer.close()
    if status in TRY_AGAIN:
        raise Passing(f"status {status} from the storage")
    verdict = refused(need, status, said)
    raise Wrong(need, str(verdict["have"]), str(verdict["hint"]))


def _stream(item: Item, status: int, answer: http.client.HTTPResponse, start: int) -> Stream:
    """The answer's bytes when they are still of the same object. Changed when they are not."""
    now = answer.getheader("ETag") or answer.getheader("Last-Modified") or ""
    if status in (412, 416) or (item.validator and now and now != item.validator):
        answer.close()
        raise Changed(f"it was {item.validator or 'another'}, now it is {now or 'gone'}")
    offset = start
    if status == 200:
        offset = 0
        size = _whole_size(status, answer)
        if item.size_bytes >= 0 and size >= 0 and size != item.size_bytes:
            answer.close()
            raise Changed(f"it had {item.size_bytes} bytes, now it has {size}")
    elif not (answer.getheader("Content-Range") or "").startswith(f"bytes {start}-"):
        answer.close()
        raise Passing(f"asked from byte {start}, the server sent {answer.getheader('Content-Range')}")
    return Stream(offset, answer.read1, answer.close)


def _whole_size(status: int, answer: http.client.HTTPResponse) -> int:
    text = answer.getheader("Content-Length") or ""
    if status == 206:
        text = (answer.getheader("Content-Range") or "").rpartition("/")[2]
    return int(text) if text.isdigit() else -1
