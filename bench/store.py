"""The artifact store against its floors, on this machine, interleaved: medians, and the ratio to the floor.

    python bench/store.py [--size-mib 256] [--rounds 3] [--folder DIR]

Floors: `cp` (the bytes once, flushed or not as the file system likes), `sha256sum` (coreutils), and the same hash by
OpenSSL in one thread, which is what Python has. A put hashes, copies, flushes and renames; a verify only hashes.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import random
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from groundplane.adapters.blobs import FolderBlobStore
from groundplane.adapters.model_files import FolderModelFiles

MIB = 2**20


def openssl_sha256(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        hashlib.file_digest(file, "sha256")


async def timed(work: Callable[[], Awaitable[object] | object]) -> float:
    """Seconds of wall clock."""
    start = time.perf_counter()
    result = work()
    if isinstance(result, Awaitable):
        await result
    return time.perf_counter() - start


async def measure(folder: Path, size_mib: int, rounds: int) -> None:
    source, times = folder / "source.bin", {}
    chance = random.Random(4700)
    with source.open("wb") as file:
        for _ in range(size_mib):
            file.write(chance.randbytes(MIB))
    with source.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    for number in range(rounds):
        root = folder / f"store-{number}"
        store = FolderBlobStore(root)
        for name, work in steps(store, source, sha256, size_mib * MIB):
            times.setdefault(name, []).append(await timed(work))
        store.close()
        shutil.rmtree(root)
    report(times, size_mib)


def steps(
    store: FolderBlobStore, source: Path, sha256: str, size_bytes: int
) -> list[tuple[str, Callable[[], Awaitable[object] | object]]]:
    copy, fetched = source.with_name("copy"), source.with_name("fetched")
    return [
        ("cp", lambda: subprocess.run(["cp", "--reflink=never", source, copy], check=True)),
        ("sha256sum", lambda: subprocess.run(["sha256sum", source], check=True, stdout=subprocess.DEVNULL)),
        ("sha256 (OpenSSL)", lambda: openssl_sha256(source)),
        ("look at the format", lambda: FolderModelFiles().scan(source)),
        ("put, cold", lambda: store.put_file(source)),
        ("put again", lambda: store.put_file(source)),
        ("verify", lambda: store.verify(sha256, size_bytes)),
        ("fetch", lambda: store.fetch(sha256, fetched)),
    ]


async def many(folder: Path, count: int) -> None:
    """Small files: what a put costs beside its bytes."""
    source = folder / "small"
    source.mkdir()
    for number in range(count):
        (source / str(number)).write_bytes(b"%d" % number * 200)
    store = FolderBlobStore(folder / "small-store")
    seconds = await timed(lambda: asyncio.gather(*(store.put_file(path) for path in source.iterdir())))
    store.close()
    print(f"{count} files of about 1 kB: {seconds:.2f} s, {count / seconds:,.0f} files/s (each flushed)")


def report(times: dict[str, list[float]], size_mib: int) -> None:
    floor = statistics.median(times["sha256 (OpenSSL)"])
    print(f"{size_mib} MiB, {os.cpu_count()} cores, {len(times['cp'])} interleaved rounds")
    print(f"{'':<20}{'median s':>10}{'MiB/s':>10}{'x sha256 floor':>16}")
    for name, found in times.items():
        median = statistics.median(found)
        rate = f"{size_mib / median:>10,.0f}" if name != "look at the format" else f"{'-':>10}"
        print(f"{name:<20}{median:>10.3f}{rate}{median / floor:>16.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=None, help="where to work; tmpfs leaves the disk out")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        asyncio.run(measure(Path(name), options.size_mib, options.rounds))
        asyncio.run(many(Path(name), options.files))


if __name__ == "__main__":
    main()
