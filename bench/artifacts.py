"""The artifact store against its floors, interleaved: medians, and the ratio to the floor; and what variants add.

    python bench/artifacts.py [--size-mib 512] [--rounds 5] [--files 20000] [--folder DIR]... [--peer NAME[=PROGRAM]]...

A seeded safetensors file of 32 tensors, in every folder in every round: the disk of temporary files and /dev/shm
unless others are given. Floors: `cp`, `cp` and flush, the whole file's SHA-256 by OpenSSL in one thread, and its
BLAKE3 from memory-mapped pages on all cores. Each is taken right beside what it is the floor of, and a ratio is the
median of the rounds' own ratios, so that what else goes on meets both; CPU seconds stand beside, which it does not
lengthen so much. A push hashes twice, copies, flushes and renames; a pull verifies and writes, without a flush as
`cp`. The first pull finds packs that were written past the page cache; what `cp` copies was just read, as are the
packs of the second. Variants are pushed onto the base: two tensors of 32 changed, 5 % in one run, 5 % in 64 runs, a
metadata edit, every tensor changed; the first in every round, once without its SHA-256 (`--no-wait`: every byte is
stored and flushed; what the SHA-256 takes afterwards stands beside) and once, with two others, with it, beside the
SHA-256 of that very file. `--peer` takes a peer into the rounds: xet, mlflow and oras (with Debian's docker-registry)
by the Python of an environment that has them, dvc by its program; what is absent is said and left out. xet computes
the whole SHA-256 before it returns, xet-bare does not. Variants, small files and peers are measured in the first
folder. `--size-mib 2048` is the figure that documents name.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

import _artifact_peers
from groundplane.adapters.artifacts import PackStore, folder_store

MIB = 2**20
MEMORY = Path("/dev/shm")
TENSORS = 32
GOALS = {
    "push, cold": ("sha256", 1.5),
    "verify": ("blake3, mapped", 1.2),
    "pull": ("cp", 1.3),
}
CHANGED = "2 of 32 tensors"
AT_ONCE = "2 of 32, SHA-256"
FLOOR_GOAL = 1.15
"""Pushing a changed file with its SHA-256 takes at most so often the floor's time."""
PEER_GOAL = 3.0
"""xet takes at least so often the time of pushing a changed file without."""
NEW_BYTES_GOALS_PERCENT = {CHANGED: 6.5, AT_ONCE: 6.5, "metadata edit": 1.0}
Work = Callable[[], Awaitable[object] | object]
Step = tuple[str, Work]


@dataclass(frozen=True, slots=True)
class Taken:
    """By the wall clock, and by all cores, of this process and the programs it waited for."""

    seconds: float
    cpu_seconds: float


Times = dict[str, list[Taken]]
"""Step → what each round took."""


async def timed(work: Work) -> Taken:
    start, cpu_start = time.perf_counter(), cpu_seconds()
    result = work()
    if isinstance(result, Awaitable):
        await result
    return Taken(time.perf_counter() - start, cpu_seconds() - cpu_start)


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


# ---------------------------------------------------------------- files


def header(tensor_bytes: int, note: str) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt", "note": note}}
    for number in range(TENSORS):
        span = [number * tensor_bytes, (number + 1) * tensor_bytes]
        entries[f"layers.{number}.weight"] = {"dtype": "U8", "shape": [tensor_bytes], "data_offsets": span}
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def write_base(path: Path, size_mib: int) -> int:
    """Returns the bytes of one tensor."""
    tensor_bytes = size_mib * MIB // TENSORS
    with path.open("wb") as file:
        file.write(header(tensor_bytes, "base"))
        for number in range(TENSORS):
            chance = random.Random(number)
            for _ in range(0, tensor_bytes, MIB):
                file.write(chance.randbytes(min(MIB, tensor_bytes)))
    return tensor_bytes


def variants(base: Path, target: Path, tensor_bytes: int, seed: int) -> Iterator[tuple[str, Path]]:
    """Each as a file of its own, made from the base; the one before is overwritten."""
    start, total, chance = len(header(tensor_bytes, "base")), tensor_bytes * TENSORS, random.Random(seed)
    changes = {
        CHANGED: [(9 * tensor_bytes, tensor_bytes), (20 * tensor_bytes, tensor_bytes)],
        AT_ONCE: [(4 * tensor_bytes, tensor_bytes), (27 * tensor_bytes, tensor_bytes)],
        "5 % in one run": [(total * 2 // 5, total // 20)],
        "5 % in 64 runs": [(run * total // 64 + 12_345, total // 20 // 64) for run in range(64)],
        "every tensor": [(0, total)],
    }
    for name, runs in changes.items():
        shutil.copyfile(base, target)
        with target.open("r+b") as file:
            for offset, count in runs:
                file.seek(start + offset)
                for at in range(0, count, MIB):
                    file.write(chance.randbytes(min(MIB, count - at)))
        yield name, target
    with base.open("rb") as source, target.open("wb") as file:
        source.seek(start)
        file.write(header(tensor_bytes, "a longer note than before: " + "fine-tuned on tickets, " * 20))
        shutil.copyfileobj(source, file, MIB)
    yield "metadata edit", target


# ---------------------------------------------------------------- measures


def openssl_sha256(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        hashlib.file_digest(file, "sha256")


def copy_and_flush(source: Path, copy: Path) -> None:
    subprocess.run(["cp", "--reflink=never", source, copy], check=True)
    with copy.open("rb") as file:
        os.fsync(file.fileno())


def steps(store: PackStore, source: Path, sha256: str) -> list[Step]:
    copy, pulled, size_bytes = source.with_name("copy"), source.with_name("pulled"), source.stat().st_size
    mapped = blake3(max_threads=blake3.AUTO)
    return [
        ("sha256", lambda: openssl_sha256(source)),
        ("push, cold", lambda: store.put_file(source)),
        ("push again", lambda: store.put_file(source)),
        ("pull, first", lambda: store.fetch(sha256, pulled)),
        ("cp", lambda: subprocess.run(["cp", "--reflink=never", source, copy], check=True)),
        ("pull", lambda: store.fetch(sha256, pulled)),
        ("cp and flush", lambda: copy_and_flush(source, copy)),
        ("blake3, mapped", lambda: mapped.update_mmap(source)),
        ("verify", lambda: store.verify(sha256, size_bytes)),
    ]


async def measure(
    folders: Sequence[Path], size_mib: int, rounds: int, peers: Sequence[_artifact_peers.Found]
) -> list[Times]:
    """What each step took, folder by folder: every folder has its turn in every round."""
    times: list[Times] = [{} for _ in folders]
    for folder in folders:
        write_base(folder / "base.safetensors", size_mib)
    with (folders[0] / "base.safetensors").open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    for _ in range(rounds):
        for folder, found in zip(folders, times, strict=True):
            await measure_once(folder, sha256, found)
        for each in peers:
            await asyncio.to_thread(os.sync)
            seconds = await asyncio.to_thread(each.store, folders[0] / "base.safetensors", folders[0] / "peer")
            times[0].setdefault(each.peer.name, []).append(Taken(seconds, 0.0))
    return times


async def measure_once(folder: Path, sha256: str, times: Times) -> None:
    source, root = folder / "base.safetensors", folder / "store"
    store = folder_store(root)
    for name, work in steps(store, source, sha256):
        # What the step before wrote is on disk before the next one begins: each pays for its own bytes.
        await asyncio.to_thread(os.sync)
        times.setdefault(name, []).append(await timed(work))
        for left in ("copy", "pulled"):
            source.with_name(left).unlink(missing_ok=True)
    store.close()
    shutil.rmtree(root)


async def differences(
    folder: Path, size_mib: int, rounds: int, peers: Sequence[_artifact_peers.Found]
) -> dict[str, dict[str, float]]:
    """Variant → {"new_percent", "seconds", seconds of peers by name}, pushed onto the base.

    The two changed tensors are others in each round, with the medians of that, of the floor, "sha256", and of giving
    it its SHA-256 afterwards, "after". Peers that store whole files store 100 %, and are left out.
    """
    base, target = folder / "base.safetensors", folder / "variant.safetensors"
    tensor_bytes = write_base(base, size_mib)
    store = folder_store(folder / "store")
    await store.put_file(base)
    found: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        for name, path in variants(base, target, tensor_bytes, 4700 + number):
            if number and name not in {CHANGED, AT_ONCE}:
                break
            figures = found.setdefault(name, {})
            before = (await store.usage()).stored_bytes
            for step, work in pushes(store, name, path):
                await asyncio.to_thread(os.sync)
                figures.setdefault(step, []).append((await timed(work)).seconds)
            new = (await store.usage()).stored_bytes - before
            figures.setdefault("new_percent", []).append(100 * new / path.stat().st_size)
            for each in (peer for peer in peers if peer.peer.onto):
                await asyncio.to_thread(os.sync)
                taken = await asyncio.to_thread(each.store, path, folder / "peer", base)
                figures.setdefault(each.peer.name, []).append(taken)
    store.close()
    return {name: {key: statistics.median(each) for key, each in figures.items()} for name, figures in found.items()}


def pushes(store: PackStore, name: str, path: Path) -> list[Step]:
    floor: Step = ("sha256", lambda: openssl_sha256(path))
    if name != CHANGED:
        return [*([floor] if name == AT_ONCE else []), ("seconds", lambda: store.put_file(path))]
    stored: list[str] = []

    async def put() -> None:
        stored.extend(recipe for recipe, _ in await store.put_unnamed([path]))

    return [floor, ("seconds", put), ("after", lambda: store.name(stored))]


async def many(folder: Path, count: int) -> dict[str, float]:
    """Small files: what a push costs beside its bytes."""
    source = folder / "small"
    source.mkdir()
    for number in range(count):
        (source / str(number)).write_bytes(b"%d" % number * 200)
    paths = sorted(source.iterdir())
    store = folder_store(folder / "small-store")
    copied = await timed(lambda: shutil.copytree(source, folder / "small-copy"))
    pushed = await timed(lambda: store.put_files(paths))
    again = await timed(lambda: store.put_files(paths))
    usage = await store.usage()
    store.close()
    taken = {"copytree_s": copied.seconds, "push_s": pushed.seconds, "push_again_s": again.seconds}
    return {**taken, "packs": usage.packs}


# ---------------------------------------------------------------- report


def median(found: Sequence[Taken]) -> Taken:
    return Taken(
        statistics.median(each.seconds for each in found), statistics.median(each.cpu_seconds for each in found)
    )


def report(
    times: dict[str, Times], new: dict[str, dict[str, float]], small: dict[str, float], options: argparse.Namespace
) -> None:
    print(f"{options.size_mib} MiB, {os.cpu_count()} cores, medians of {options.rounds} interleaved rounds")
    for place, found in times.items():
        report_place(place, found, options.size_mib)
    report_new(new, small, options.files)


def report_place(place: str, times: Times, size_mib: int) -> None:
    print(f"\n{place:<18}{'s':>9}{'CPU s':>9}{'MiB/s':>9}  against its floor, round by round")
    for name, found in times.items():
        floor, goal = GOALS.get(name, ("", 0.0))
        middle, verdict = median(found), ""
        if floor:
            ratios = sorted(each.seconds / under.seconds for each, under in zip(found, times[floor], strict=True))
            ratio = statistics.median(ratios)
            verdict = f"{ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) x {floor} "
            verdict += f"(goal {goal}: {'met' if ratio <= goal else 'NOT met'})"
        if name in _artifact_peers.PEERS:
            ours = median(times["push, cold"]).seconds
            verdict = f"{middle.seconds / ours:.2f} x our push; it {_artifact_peers.PEERS[name].does}"
        spent = f"{middle.cpu_seconds:>9.3f}" if middle.cpu_seconds else f"{'':>9}"
        print(f"{name:<18}{middle.seconds:>9.3f}{spent}{size_mib / middle.seconds:>9,.0f}  {verdict}")


def report_new(new: dict[str, dict[str, float]], small: dict[str, float], files: int) -> None:
    print(f"\n{'pushed onto base':<18}{'new %':>9}{'s':>9}")
    for name, figures in new.items():
        most, percent = NEW_BYTES_GOALS_PERCENT.get(name), figures["new_percent"]
        verdict = "" if most is None else f"  (goal {most} %: {'met' if percent <= most else 'NOT met'})"
        print(f"{name:<18}{percent:>9.2f}{figures['seconds']:>9.3f}{verdict}")
        report_beside(name, figures)
    rate, packs = files / small["push_s"], int(small["packs"])
    print(
        f"\n{files} small files: push {small['push_s']:.2f} s ({rate:,.0f} files/s, {packs} packs), "
        f"again {small['push_again_s']:.2f} s; copytree without flushing {small['copytree_s']:.2f} s"
    )


def report_beside(name: str, figures: dict[str, float]) -> None:
    """A variant's floor and peers."""
    ours, floor, after = figures["seconds"], figures.get("sha256", 0.0), figures.get("after", 0.0)
    if floor:
        verdict = f"ours {ours / floor:.2f} x"
        if name == AT_ONCE:
            verdict += f" (goal {FLOOR_GOAL}: {'met' if ours / floor <= FLOOR_GOAL else 'NOT met'})"
        print(f"{'':<18}{'sha256':>9}{floor:>9.3f}  {verdict}")
    if after:
        print(f"{'':<18}{'after':>9}{after:>9.3f}  its SHA-256, found afterwards, by one thread from what was stored")
    for peer in (peer for peer in _artifact_peers.PEERS if peer in figures):
        ratio = figures[peer] / ours
        goal = f" (goal {PEER_GOAL}: {'met' if ratio >= PEER_GOAL else 'NOT met'})"
        print(f"{'':<18}{peer:>9}{figures[peer]:>9.3f}  {ratio:.1f} x ours{goal if name == CHANGED else ''}")


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--files", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, action="append", help="where to work; may be given again")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME[=PROGRAM]", help=", ".join(_artifact_peers.PEERS)
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    peers, absent = _artifact_peers.find(options.peer)
    for sentence in absent:
        print(sentence, file=sys.stderr)
    places = options.folder or [Path(tempfile.gettempdir()), *(path for path in [MEMORY] if path.is_dir())]
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory(dir=place))) for place in places]
        measured = asyncio.run(measure(folders, options.size_mib, options.rounds, peers))
        new = asyncio.run(differences(folders[0], options.size_mib, options.rounds, peers))
        small = asyncio.run(many(folders[0], options.files))
    times = {str(place): found for place, found in zip(places, measured, strict=True)}
    if options.json:
        seconds = {at: {name: median(each).seconds for name, each in found.items()} for at, found in times.items()}
        print(json.dumps({"seconds": seconds, "variants": new, "small": small}))
    else:
        report(times, new, small, options)


if __name__ == "__main__":
    main()
