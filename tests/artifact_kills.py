"""Pushes and pulls killed at random moments: `python -m tests.artifact_kills [--kills 200] [--seed N]`.

Half of the kills hit a process at work in a store's folder: pushing, pulling, collecting. The other half hit clients
over HTTP and the control plane they push to and pull from. After each kill no half-written file is seen; at the end
everything that was acknowledged is there, verified, and what the dead left is gone. Exits 1 when that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from tests.adapters.artifact_files import MIB, digest, shown, write
from tests.journeys.conftest import Installation, bring_up, free_ports, shut_down, wait_for

from groundplane.adapters.artifacts import bucket_store, folder_store, memory_store
from groundplane.client import Client
from groundplane.errors import Unavailable

_IN_A_FOLDER = """
import asyncio, sys
from pathlib import Path
from groundplane.adapters.artifacts import folder_store
async def main():
    store, files, out = folder_store(Path(sys.argv[1])), sorted(Path(sys.argv[2]).iterdir()), Path(sys.argv[3])
    print("ready", flush=True)
    while True:
        stored = await store.put_files(files)
        for number, (sha256, _) in enumerate(stored):
            await store.fetch(sha256, out / str(number))
        await store.collect(frozenset(), grace_s=0, thorough=True)
        await store.name([recipe for recipe, _ in await store.put_unnamed(files)])
        await store.collect(frozenset(), grace_s=0, thorough=True)
asyncio.run(main())
"""
_AT_A_BUCKET = """
import asyncio, sys
from pathlib import Path
from groundplane.adapters.artifacts import bucket_store
async def main():
    store, files = bucket_store(sys.argv[1]), sorted(Path(sys.argv[2]).iterdir())
    print("ready", flush=True)
    while True:
        await store.put_files(files)
        await store.collect(frozenset(), grace_s=0, thorough=True)
asyncio.run(main())
"""
# As from another machine: files are sent, not named, and no pack is read where it lies.
_OVER_HTTP = """
import os, sys, time
from pathlib import Path
from groundplane.client import Client, artifacts, pulling
from groundplane.errors import Unavailable
artifacts._name_sources = lambda folder, files: False
pulling._Pull._pack = lambda self, name: None
url, source, out, told = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
print("ready", flush=True)
with Client(url, os.environ["KEY"]) as client, told.open("a") as log:
    number = 0
    while True:
        number += 1
        (source / "own").write_bytes(os.urandom(3_000_000))
        try:
            push = client.arrive if number % 2 else client.push
            pushed = push(source, name=f"kept-{os.getpid()}-{number}", project="default")
            log.write(pushed.id + "\\n")
            log.flush()
            client.pull(pushed.id, out / str(number % 3))
        except Unavailable:
            time.sleep(0.05)
"""
SERVER_REST_S = 5.0
"""A server that ended sooner is started again ever later."""


async def kill_in_a_folder(folder: Path, kills: int, chance: random.Random) -> None:
    """AssertionError when a store or a target shows half a file, or a dead push leaks a piece."""
    root, source, out = folder / "store", folder / "source", folder / "out"
    for each in (source, out):
        each.mkdir(parents=True)
    for number in range(5):
        write(source / str(number), chance.randbytes(chance.randrange(1, 8 * MIB)))
    contents = {digest(path.read_bytes()) for path in source.iterdir()}
    unnamed = {recipe for recipe, _ in await memory_store().put_unnamed(list(source.iterdir()))}
    for _ in range(kills):
        with _at_work([_IN_A_FOLDER, str(root), str(source), str(out)]):
            time.sleep(chance.random() * 0.3)
        assert await shown(root) <= contents | unnamed
        pulled = [path for path in out.iterdir() if not path.name.startswith(".")]
        assert all(digest(path.read_bytes()) in contents for path in pulled)
    store = folder_store(root)
    assert list((root / "tmp").iterdir()) == []
    for sha256, size_bytes in await store.put_files(sorted(source.iterdir())):
        await store.verify(sha256, size_bytes)
    await store.collect(frozenset(), grace_s=0)
    assert list((root / "packs").iterdir()) == [], "a dead push leaked a piece"
    store.close()


async def kill_at_a_bucket(url: str, folder: Path, kills: int, chance: random.Random) -> None:
    """AssertionError when what a killed process left in a bucket is half a pack, or is in the next one's way."""
    source = folder / "source"
    source.mkdir(parents=True)
    for number in range(3):
        write(source / str(number), chance.randbytes(chance.randrange(1, 8 * MIB)))
    for _ in range(kills):
        with _at_work([_AT_A_BUCKET, url, str(source)]):
            time.sleep(chance.random() * 0.5)
        scrubbed = await bucket_store(url).scrub()
        assert scrubbed.damage == ()
    store = bucket_store(url)
    assert (await store.usage()).damaged_packs == ()
    for sha256, size_bytes in await store.put_files(sorted(source.iterdir())):
        await store.verify(sha256, size_bytes)
    await bucket_store(url).collect(frozenset(), grace_s=0)
    assert (await bucket_store(url).usage()).packs == 0, "a dead push leaked a piece"


@contextmanager
def _at_work(words: Sequence[str], key: str = "") -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ready, and is killed at the end of the block; it must not have ended by itself."""
    child = subprocess.Popen([sys.executable, "-c", *words], stdout=subprocess.PIPE, env=os.environ | {"KEY": key})
    try:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        yield child
        assert child.poll() is None, f"it ended by itself with {child.returncode}"
    finally:
        child.kill()
        child.communicate()


def kill_over_http(plane: Installation, folder: Path, kills: int, chance: random.Random) -> Counter[str]:
    """Kills clients, and where it has rested the server; returns what was done. AssertionError when a law is broken."""
    source, out, told = folder / "source", folder / "out", folder / "told"
    for each in (source, out):
        each.mkdir(parents=True)
    for number, size_bytes in enumerate((0, 1, 40_000, 5 * MIB, 18 * MIB)):
        write(source / str(number), chance.randbytes(size_bytes))
    contents = {path.name: digest(path.read_bytes()) for path in source.iterdir()}
    words = [_OVER_HTTP, f"http://127.0.0.1:{plane.port}", str(source), str(out), str(told)]
    done: Counter[str] = Counter()
    while done["clients"] + done["servers"] < kills:
        with _at_work(words, plane.admin_key):
            time.sleep(chance.random() * 2.0)
            if chance.random() < 0.5 and _kill_server(plane):
                done["servers"] += 1
                wait_for(lambda: _answers(plane), "the control plane to be back", 120)
                time.sleep(chance.random())
            done["clients"] += 1
        for pulled in out.glob("*/*"):
            if pulled.name in contents:
                assert digest(pulled.read_bytes()) == contents[pulled.name], f"{pulled} is half a file"
    wait_for(lambda: _answers(plane), "the control plane to be back", 120)
    pushed = told.read_text().split() if told.exists() else []
    # What was told last may lack its end: its line was being written.
    for artifact_id in pushed[:-1]:
        check = plane.client.verify_artifact(artifact_id)
        assert check.ok and check.checked_files == len(contents) + 1, check
    done["pushes acknowledged, all verified"] = len(pushed[:-1])
    for number, artifact_id in enumerate(pushed[-4:-1]):
        whole = folder / f"whole-{number}"
        plane.client.pull(artifact_id, whole)
        assert {path.name: digest(path.read_bytes()) for path in whole.iterdir() if path.name != "own"} == contents
    return done


def _kill_server(plane: Installation) -> bool:
    try:
        server = plane.process_running("groundplane.server")
        if time.time() - server.create_time() < SERVER_REST_S:
            return False
        server.kill()
    except (ValueError, psutil.NoSuchProcess):
        return False
    return True


def _answers(plane: Installation) -> bool:
    try:
        with Client(f"http://127.0.0.1:{plane.port}", plane.admin_key) as client:
            client.artifacts()
    except Unavailable:
        return False
    return True


def main() -> int:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    asked = options.parse_args()
    print(f"seed {asked.seed}", flush=True)
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="ground-kills-", ignore_cleanup_errors=True) as name:
        asyncio.run(kill_in_a_folder(Path(name) / "folder", asked.kills // 2, chance))
        print(f"in a folder: {asked.kills // 2} kills, no half file, nothing leaked", flush=True)
        port, gateway_port = free_ports(2)
        plane = Installation(Path(name) / "home", port, gateway_port)
        try:
            done = kill_over_http(bring_up(plane), Path(name) / "http", asked.kills - asked.kills // 2, chance)
        finally:
            shut_down(plane)
    print("over HTTP: " + ", ".join(f"{what} {count}" for what, count in done.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
