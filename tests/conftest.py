"""What all tests share: services that a machine may lack are asked for by name, `@pytest.mark.needs("postgresql")`.

A test whose service is missing is skipped; where GROUND_REQUIRE names the service (as CI does), it fails instead.

`store` is each of the three stores in turn; `postgresql_url` and `sqlite_url` are fresh, migrated databases. The
PostgreSQL server is started on the first use, as an unprivileged user on a free loopback port, and dies with pytest.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from tests import tokens
from tests.buckets import BucketServers
from tests.hosts import Hosts
from tests.hosts import available as hosts_available

from groundplane.adapters.store.memory import MemoryStore
from groundplane.adapters.store.sql import SqlStore
from groundplane.adapters.system import RandomIds
from groundplane.ports import Store

_T = TypeVar("_T")

# Examples take as long as they take on a busy machine: what is found is judged, never how fast.
settings.register_profile("groundplane", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("groundplane")


def _postgresql_bin() -> Path | None:
    """The folder of the server programs, which Debian keeps off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


def _has_postgresql() -> bool:
    return _postgresql_bin() is not None


def _has_chromium() -> bool:
    return shutil.which("chromium") is not None


def _has_bubblewrap() -> bool:
    """Whether a sandbox can be made, not only whether the program is there."""
    trial = ["bwrap", "--ro-bind", "/", "/", "--unshare-user", "--unshare-pid", "--proc", "/proc", "true"]
    return shutil.which("bwrap") is not None and subprocess.run(trial, capture_output=True, check=False).returncode == 0


def _has_podman() -> bool:
    return shutil.which("podman") is not None and shutil.which("busybox") is not None and os.geteuid() == 0


def _has_skopeo() -> bool:
    return shutil.which("skopeo") is not None


def _has_azurite() -> bool:
    """Microsoft's emulator of Azure Blob Storage: `npm install azurite` somewhere whose `.bin` is on the PATH."""
    return shutil.which("azurite-blob") is not None


def _has_redis() -> bool:
    return shutil.which("redis-server") is not None


@functools.cache
def _has_node_openai() -> bool:
    """Whether Node finds the `openai` package: `npm install openai` somewhere that NODE_PATH names."""
    node = shutil.which("node")
    command = [node or "node", "-e", "require('openai')"]
    return node is not None and subprocess.run(command, capture_output=True, check=False).returncode == 0


def _has_openai_description() -> bool:
    """OpenAI's published description, in a file that GROUND_OPENAPI names."""
    return Path(os.environ.get("GROUND_OPENAPI") or "/nowhere").is_file()


def _has_torchrun() -> bool:
    return shutil.which("torchrun") is not None


def _has_root() -> bool:
    return os.geteuid() == 0


def _has_cgroups() -> bool:
    """Whether the kernel lets us count a job's processes, in version 1 or 2."""
    tree = Path("/sys/fs/cgroup")
    delegated = tree / "cgroup.subtree_control"
    return os.access(tree / "pids", os.W_OK) or (os.access(delegated, os.W_OK) and "pids" in delegated.read_text())


def _has_jupyter() -> bool:
    return shutil.which("jupyter") is not None and shutil.which("jupyter-server") is not None


def _has_py_spy() -> bool:
    return shutil.which("py-spy") is not None


def _has_compiler() -> bool:
    return shutil.which("gcc") is not None


@functools.cache
def _has_tmpfs() -> bool:
    """Whether a small disk of our own can be mounted: root alone is not enough in a locked-down container."""
    with tempfile.TemporaryDirectory() as place:
        mount = shutil.which("mount")
        if mount is None or os.geteuid() != 0:
            return False
        made = subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False
        )
        if made.returncode == 0:
            subprocess.run(["umount", place], check=True)
        return made.returncode == 0


@functools.cache
def _has_ext4() -> bool:
    """Whether a small disk with a device below it can be made and mounted."""
    if shutil.which("mkfs.ext4") is None or not _has_tmpfs():
        return False
    with tempfile.TemporaryDirectory() as place:
        image = Path(place) / "image"
        image.touch()
        os.truncate(image, 2**20)
        subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
        mounted = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, check=False)
        if mounted.returncode == 0:
            subprocess.run(["umount", place], check=True)
        return mounted.returncode == 0


def _has_transformers() -> bool:
    """Whether PyTorch is on the PATH in an environment of its own, with the library beside it."""
    torchrun = shutil.which("torchrun")
    return torchrun is not None and any(Path(torchrun).parent.parent.glob("lib/*/site-packages/transformers"))


def _has_vllm() -> bool:
    """`vllm` on the PATH in an environment of its own, gigabytes large: docs/guides/engines.md says how it is run."""
    return shutil.which("vllm") is not None


def _has_node_llama_cpp() -> bool:
    """A real llama.cpp: `npm install node-llama-cpp` somewhere whose `.bin` is on the PATH."""
    return shutil.which("node-llama-cpp") is not None


def _has_softhsm2() -> bool:
    """A real PKCS#11 token, in software."""
    return tokens.LIBRARY is not None and shutil.which("softhsm2-util") is not None


def _has_prometheus() -> bool:
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


SERVICES: dict[str, Callable[[], bool]] = {
    "prometheus": _has_prometheus,
    "transformers": _has_transformers,
    "vllm": _has_vllm,
    "node-llama-cpp": _has_node_llama_cpp,
    "postgresql": _has_postgresql,
    "chromium": _has_chromium,
    "redis": _has_redis,
    "compiler": _has_compiler,
    "jupyter": _has_jupyter,
    "py-spy": _has_py_spy,
    "root": _has_root,
    "cgroups": _has_cgroups,
    "skopeo": _has_skopeo,
    "node-openai": _has_node_openai,
    "openai-description": _has_openai_description,
    "azurite": _has_azurite,
    "torchrun": _has_torchrun,
    "bubblewrap": _has_bubblewrap,
    "podman": _has_podman,
    "tmpfs": _has_tmpfs,
    "ext4": _has_ext4,
    "softhsm2": _has_softhsm2,
    "sshd": hosts_available,
}


JOURNEYS = Path(__file__).parent / "journeys"


def pytest_runtest_setup(item: pytest.Item) -> None:
    required = {name for name in os.environ.get("GROUND_REQUIRE", "").split(",") if name}
    for marker in item.iter_markers("needs"):
        (service,) = marker.args
        if service not in SERVICES:
            pytest.fail(f"tests/conftest.py does not know the service {service!r}", pytrace=False)
        if not SERVICES[service]():
            if service in required:
                pytest.fail(f"GROUND_REQUIRE names {service}, and this machine has none", pytrace=False)
            pytest.skip(f"this machine has no {service}")


def pytest_configure(config: pytest.Config) -> None:
    unknown = {name for name in os.environ.get("GROUND_REQUIRE", "").split(",") if name} - set(SERVICES)
    if unknown:
        raise pytest.UsageError(f"GROUND_REQUIRE names {sorted(unknown)}; known are {sorted(SERVICES)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Journeys first: they last longest and wait most, and begun last they would leave one worker at work alone."""
    items.sort(key=lambda item: JOURNEYS not in item.path.parents)


# ---------------------------------------------------------------- PostgreSQL

# Becomes the user (the interpreter itself may lie where that user can't reach), then the server, which gets SIGQUIT, an
# immediate stop, when pytest dies, however it dies (or the thread that started it: start it in the main one).
_SERVER_OF_PYTEST = """
import ctypes, os, signal, sys
user, group, *command = sys.argv[1:]
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(int(group)), os.setuid(int(user))
ctypes.CDLL(None).prctl(1, signal.SIGQUIT)
os.execv(command[0], command)
"""
_names = itertools.count()


class PostgresqlServer:
    """One throw-away server; `url(name)` addresses a database on it."""

    def __init__(self, folder: Path) -> None:
        programs = _postgresql_bin()
        assert programs is not None, "mark the test with needs('postgresql')"
        self._postgres, self._initdb = str(programs / "postgres"), str(programs / "initdb")
        self._data = folder / "data"
        self._log = folder / "log"
        # The server refuses to run as root.
        names = {entry.pw_name for entry in pwd.getpwall()}
        self._user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        if os.geteuid() == 0:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def create(self) -> None:
        command = [self._initdb, "-D", str(self._data), "-A", "trust", "-U", "postgres", "-N", "--locale=C.UTF-8"]
        made = subprocess.run(self._of_pytest(command), capture_output=True, check=False, cwd="/")
        assert made.returncode == 0, made.stderr.decode()

    def start(self) -> None:
        quick = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB")
        here = ("listen_addresses=127.0.0.1", f"port={self.port}", "unix_socket_directories=", "max_connections=60")
        options = [word for setting in (*quick, *here) for word in ("-c", setting)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._of_pytest([self._postgres, "-D", str(self._data), *options]),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def _of_pytest(self, command: list[str]) -> list[str]:
        ids = (str(self._user.pw_uid), str(self._user.pw_gid))
        return [sys.executable, "-c", _SERVER_OF_PYTEST, *ids, *command]

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        import asyncpg

        async def ask() -> bool:
            try:
                connection = await asyncpg.connect(self.url("postgres"), timeout=5)
            except (OSError, asyncpg.PostgresError):
                return False
            await connection.close()
            return True

        return _run(ask())


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    with tempfile.TemporaryDirectory(prefix="ground-postgresql-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        server = PostgresqlServer(Path(folder))
        server.create()
        server.start()
        try:
            _administer(server, "CREATE DATABASE ground_template")
            _run(_make_template(server))
            yield server
        finally:
            server.stop()


async def _make_template(server: PostgresqlServer) -> None:
    store = await SqlStore.open(server.url("ground_template"))
    await store.close()


def _administer(server: PostgresqlServer, statement: str) -> None:
    import asyncpg

    async def execute() -> None:
        connection = await asyncpg.connect(server.url("postgres"))
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    _run(execute())


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """In a thread with a loop of its own: fixtures are also asked for while a test's loop is running."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@pytest.fixture
def empty_postgresql_url(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """A database without any table."""
    name = f"ground_empty_{next(_names)}"
    _administer(postgresql_server, f"CREATE DATABASE {name}")
    yield postgresql_server.url(name)
    _administer(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def postgresql_url(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """A database at the newest schema."""
    name = f"ground_{next(_names)}"
    _administer(postgresql_server, f"CREATE DATABASE {name} TEMPLATE ground_template")
    yield postgresql_server.url(name)
    _administer(postgresql_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def _migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "groundplane.db"

    async def make() -> None:
        store = await SqlStore.open(f"sqlite:///{path}")
        await store.close()

    _run(make())
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, _migrated_sqlite: Path) -> str:
    """A database file at the newest schema."""
    path = tmp_path / "groundplane.db"
    shutil.copy(_migrated_sqlite, path)
    return f"sqlite:///{path}"


# ---------------------------------------------------------------- machines


@pytest.fixture(scope="session")
def session_hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Four machines with an sshd each (tests/hosts.py); mark the test with needs("sshd")."""
    made = Hosts(tmp_path_factory.mktemp("hosts"), 4)
    yield made
    made.remove()


@pytest.fixture
def hosts(session_hosts: Hosts) -> Iterator[Hosts]:
    """The machines, up, reachable and with nothing of ours on them."""
    session_hosts.mend()
    yield session_hosts
    session_hosts.clear()


# ---------------------------------------------------------------- buckets

BUCKETS = ("s3", "google", pytest.param("azure", marks=pytest.mark.needs("azurite")))


@pytest.fixture(scope="session")
def bucket_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BucketServers]:
    """Servers of object stores (tests/buckets.py), started when they are first asked for."""
    with BucketServers(tmp_path_factory.mktemp("buckets")) as servers:
        yield servers


@pytest.fixture
def new_bucket(bucket_servers: BucketServers, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes an empty bucket of a kind and puts into the environment what reaches it; gives its URL."""

    def make(kind: str) -> str:
        made = bucket_servers.bucket(kind)
        for name, value in made.environment.items():
            monkeypatch.setenv(name, value)
        return made.url

    return make


@pytest.fixture(params=BUCKETS)
def bucket(request: pytest.FixtureRequest, new_bucket: Callable[[str], str]) -> str:
    """The URL of an empty bucket of each kind in turn, with the environment that reaches it."""
    return new_bucket(request.param)


# ---------------------------------------------------------------- what services stand on

STORES = ("memory", "sqlite", pytest.param("postgresql", marks=pytest.mark.needs("postgresql")))


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Each store in turn, empty."""
    if request.param == "memory":
        opened: Store = MemoryStore()
    else:
        opened = await SqlStore.open(request.getfixturevalue(f"{request.param}_url"))
    yield opened
    await opened.close()


class ManualClock:
    """A clock that tests set, also backwards."""

    def __init__(self, now: datetime = datetime(2026, 11, 20, 12, tzinfo=UTC)) -> None:
        self.time = now

    def now(self) -> datetime:
        return self.time

    def advance(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def ids(clock: ManualClock) -> RandomIds:
    return RandomIds(clock)
