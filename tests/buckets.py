"""Object stores on loopback: a real server for each protocol, as the tests of everything that keeps bytes use them.

- `s3`: moto's S3 server.
- `azure`: Azurite, Microsoft's own emulator of Azure Blob Storage; needs("azurite").
- `google`: Google's client as it is, against moto: Google's XML API and S3 share their requests. It
  checks none of Google's signatures; no emulator of Google's own XML API can be installed from a package registry.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass
from email.utils import formatdate
from functools import cached_property
from pathlib import Path
from types import TracebackType

ACCOUNT = "devstoreaccount1"
# Azurite's documented, public key.
ACCOUNT_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

# Ends with pytest, however that ends.
_OF_PYTEST = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket, with a prefix, and the environment that reaches it."""

    url: str
    environment: dict[str, str]


class BucketServers:
    """The servers, each started when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> BucketServers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def bucket(self, kind: str) -> Bucket:
        """A fresh one of the kind `s3`, `azure` or `google`."""
        name = f"store{secrets.token_hex(6)}"
        if kind == "azure":
            create_container(self.azurite, name)
            return Bucket(f"az://{name}/here", azure_environment(self.azurite))
        self._create_s3(name)
        if kind == "s3":
            return Bucket(f"s3://{name}/here", s3_environment(self.moto))
        environment = {"GOOGLE_SERVICE_ACCOUNT": str(self._service_account), "GOOGLE_ALLOW_HTTP": "true"}
        return Bucket(f"gs://{name}/here", environment)

    @cached_property
    def moto(self) -> str:
        """The address of an S3 server."""
        from moto.server import ThreadedMotoServer

        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        self._stack.callback(server.stop)
        host, port = server.get_host_and_port()
        return f"http://{host}:{port}"

    @cached_property
    def azurite(self) -> str:
        """The address of an account of an Azure Blob server."""
        program = shutil.which("azurite-blob")
        assert program is not None, "mark the test with needs('azurite')"
        command = [program, "--blobHost", "127.0.0.1", "--blobPort", "0", "--inMemoryPersistence", "--silent"]
        log = self._folder / "azurite.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _OF_PYTEST, *command, "--disableTelemetry", "--skipApiVersionCheck"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._folder,
            )
        self._stack.callback(_end, process)
        deadline, said = time.monotonic() + 120, ""
        while "successfully listens on" not in said:
            assert process.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.02)
            said = log.read_text()
        return f"{said.partition('successfully listens on ')[2].split()[0]}/{ACCOUNT}"

    @cached_property
    def _service_account(self) -> Path:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(65537, 2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account = {"gcs_base_url": self.moto, "client_email": "ground@tests.example", "private_key_id": "1"}
        path = self._folder / "service-account.json"
        path.write_text(json.dumps({**account, "private_key": key.decode()}))
        return path

    def _create_s3(self, name: str) -> None:
        import boto3

        client = boto3.client(
            "s3",
            endpoint_url=self.moto,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        client.create_bucket(Bucket=name)
        client.close()


def s3_environment(address: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }


def azure_environment(address: str, key: str = ACCOUNT_KEY) -> dict[str, str]:
    return {
        "AZURE_STORAGE_ENDPOINT": address,
        "AZURE_ALLOW_HTTP": "true",
        "AZURE_STORAGE_ACCOUNT_NAME": ACCOUNT,
        "AZURE_STORAGE_ACCOUNT_KEY": key,
    }


def create_container(address: str, name: str) -> None:
    """Signed by hand with the shared key, as Azure documents it: creating containers is no store's work."""
    version = "2021-08-06"
    date = formatdate(usegmt=True)
    headers = f"x-ms-date:{date}\nx-ms-version:{version}"
    words = "PUT" + "\n" * 12 + f"{headers}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), words.encode(), hashlib.sha256).digest()
    signed = f"SharedKey {ACCOUNT}:{base64.b64encode(digest).decode()}"
    request = urllib.request.Request(
        f"{address}/{name}?restype=container",
        method="PUT",
        data=b"",
        headers={"x-ms-date": date, "x-ms-version": version, "Authorization": signed, "Content-Type": ""},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 201


def container_signature(name: str, permissions: str) -> str:
    """A shared access signature of a container, for an hour, as Azure documents it for version 2020-12-06."""
    version, expires = "2020-12-06", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    words = [permissions, "", expires, f"/blob/{ACCOUNT}/{name}", "", "", "https,http", version, "c", *[""] * 7]
    digest = hmac.new(base64.b64decode(ACCOUNT_KEY), "\n".join(words).encode(), hashlib.sha256).digest()
    signed = {"sv": version, "sr": "c", "sp": permissions, "se": expires, "spr": "https,http"}
    return urllib.parse.urlencode({**signed, "sig": base64.b64encode(digest).decode()})


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait(30)
