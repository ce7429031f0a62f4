"""Data on the node's own disk before the job starts: listed, fetched side by side, verified, laid out, or refused.

The work is done by a process of its own, which dies with its runner; what it had fetched is there for the next one.
Every source gives one result in the form of a preflight's check, `stage:<name>`.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import threading
import time
from functools import partial
from pathlib import Path

from groundplane.runner.data_cache import DataCache, NoRoom, digest, key_of
from groundplane.runner.fetching import Changed, Item, Passing, Wrong, open_source, safe_path, without_query
from groundplane.runner.job import libc
from groundplane.runner.verdicts import failed, ok, rate, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from groundplane.runner.files import Document
    from groundplane.runner.isolation import Sandbox

PARALLEL = 8
PART_BYTES = 32 * 2**20
GROWTH_BYTES = 64 * 2**20
BLOCK = 2**18
NOTE_PERIOD_S = 0.5
TRIES = 6
PUSHED_SILENCE_S = 300.0
PR_SET_PDEATHSIG = 1
_DEFECTS = (OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError)


def cache_of(order: Document, home: Path) -> DataCache:
    """The node's data cache, where the order or the home says."""
    asked = order.get("staging") or {}
    return DataCache(Path(asked.get("scratch") or home / "cache") / "data", int(asked.get("cache_bytes") or 0))


class Staging:
    """One attempt's data on its way. `collect` until it is over, then `close`; `tree` is what the job sees."""

    def __init__(self, order: Document, folder: Path, sandbox: Sandbox) -> None:
        self.progress: Document = {}
        self.results: list[Document] = []
        self.wrong: Document | None = None
        self.cache = cache_of(order, folder.parents[1]).open()
        self.tree, self._lock = self.cache.claim(folder.name)
        self._name, self._text = folder.name, b""
        self._pipe, end = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _work(order, self.cache, self.tree, sandbox, end)
        os.close(end)

    def collect(self, wait_s: float) -> bool:
        """Takes in what is told, for at most that long; True when all is staged or it has failed."""
        if not select.select([self._pipe], [], [], wait_s)[0]:
            return False
        said = os.read(self._pipe, 2**16)
        *lines, self._text = (self._text + said).split(b"\n")
        for line in lines:
            found = json.loads(line)
            self.progress = found.get("progress", self.progress)
            self.results += found.get("results", ())
            self.wrong = found.get("wrong", self.wrong)
        if not said and self.wrong is None and not self.progress.get("done"):
            self.wrong = {"reason": "start-failed", "message": "staging died: was the node short of memory?"}
        return not said

    def close(self) -> None:
        """Ends what still fetches; the tree stays until `let_go`."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._pipe)

    def let_go(self) -> None:
        """The job is over: its tree goes, and what it pinned may be evicted."""
        self.cache.drop(self._name)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def environment(order: Document, tree: Path) -> dict[str, str]:
    """Where the job finds its data: one variable for all, one for each source."""
    found = {"GROUND_DATA_DIR": str(tree)}
    for source in (order.get("staging") or {}).get("sources", ()):
        word = "".join(letter if letter.isalnum() else "_" for letter in source["name"].upper())
        found[f"GROUND_DATA_{word}"] = str(tree / source["name"])
    return found


def look(source: Document, order: Document) -> Document:
    """Whether a source can be listed here, and how large it is: a preflight's check, nothing is fetched."""
    need = f"list {without_query(source['source'])}"
    if source.get("files"):
        files = source["files"]
        return ok(
            need, f"{len(files)} files, {size(sum(each['size_bytes'] for each in files))}, from the control plane"
        )
    try:
        secret = _secret(source, order.get("secrets_dir") or "")
        items = _patiently(open_source(source, order, secret, 0).survey, 2)
    except Wrong as wrong:
        return failed(wrong.need, wrong.have, wrong.hint, fault="run")
    total = sum(max(0, item.size_bytes) for item in items)
    return ok(need, f"{len(items)} files, {size(total)}", bytes=total, files=len(items))


# ---------------------------------------------------------------- the process that fetches


def _work(order: Document, cache: DataCache, tree: Path, sandbox: Sandbox, pipe: int) -> None:
    """In the forked child. Never returns."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if sandbox.uid:
            os.setgroups([])
        work = _Work(order, cache, tree, sandbox, pipe)
        try:
            work.run()
        except (Wrong, NoRoom) as wrong:
            verdict = failed(wrong.need, wrong.have, wrong.hint, fault="run")
            result = {"name": f"stage:{work.at}", **verdict, "took_s": round(work.took_s(), 3)}
            message = f"data {work.at}: {wrong}"
            work.say({"results": [result], "wrong": {"reason": wrong.reason, "message": message}})
        except _DEFECTS as error:  # said, not silent
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            message = f"data {work.at}: {'the disk is full' if full else repr(error)}"
            work.say({"wrong": {"reason": "disk-full" if full else "start-failed", "message": message}})
    finally:
        os._exit(0)


class _Work:
    def __init__(self, order: Document, cache: DataCache, tree: Path, sandbox: Sandbox, pipe: int) -> None:
        asked = order["staging"]
        self._order, self.cache, self._tree, self._sandbox, self._pipe = order, cache, tree, sandbox, pipe
        self._sources: Sequence[Document] = asked["sources"]
        self._parallel = int(asked.get("parallel") or PARALLEL)
        self.at = ""
        self._began = time.monotonic()
        self._speaking = threading.Lock()
        self._tally: dict[str, Document] = {}
        self._doing = "listing"
        self._once = os.urandom(8).hex()

    def run(self) -> None:
        surveyed = []
        for source in self._sources:
            self.at = source["name"]
            surveyed.append((source, self._reader(source), self._survey(source)))
        for source, _, items in surveyed:
            known = [item for item in items if item.size_bytes >= 0]
            self._tally[source["name"]] = {
                "name": source["name"],
                "bytes": sum(item.size_bytes for item in known),
                "files": len(items),
                "done_bytes": 0,
                "done_files": 0,
                "fetched_bytes": 0,
                "cached_bytes": 0,
            }
        self._check_room(surveyed)
        ticking = threading.Thread(target=self._tick, daemon=True)
        ticking.start()
        results = []
        for source, reader, items in surveyed:
            self.at, self._began = source["name"], time.monotonic()
            results.append(self._stage(source, reader, items))
        self.say({"results": results, "progress": {**self._progress(), "done": True}})

    def took_s(self) -> float:
        return time.monotonic() - self._began

    def say(self, document: Document) -> None:
        with self._speaking:
            data = json.dumps(document).encode() + b"\n"
            while data:
                data = data[os.write(self._pipe, data) :]

    def _tick(self) -> None:
        while True:
            self.say({"progress": self._progress()})
            time.sleep(NOTE_PERIOD_S)

    def _progress(self) -> Document:
        sources = [dict(each) for each in self._tally.values()]
        fetched = sum(each["fetched_bytes"] for each in sources if each["name"] == self.at)
        bytes_per_s = fetched / max(self.took_s(), 0.001)
        left = sum(max(0, each["bytes"] - each["done_bytes"]) for each in sources)
        return {
            "doing": self._doing,
            "source": self.at,
            "bytes": sum(each["bytes"] for each in sources),
            "done_bytes": sum(each["done_bytes"] for each in sources),
            "files": sum(each["files"] for each in sources),
            "done_files": sum(each["done_files"] for each in sources),
            "cached_bytes": sum(each["cached_bytes"] for each in sources),
            "bytes_per_s": round(bytes_per_s),
            "eta_s": round(left / bytes_per_s, 1) if bytes_per_s > 0 else None,
        }

    # ---- before the first byte

    def _reader(self, source: Document) -> Any:
        if source.get("files"):
            return None
        return open_source(source, self._order, _secret(source, self._sandbox.secrets_dir), self._sandbox.uid)

    def _survey(self, source: Document) -> list[Item]:
        """The source's files; the digest that the spec gives belongs to a single one."""
        if source.get("files"):
            return [Item(safe_path(f["path"]), "", f["size_bytes"], sha256=f["sha256"]) for f in source["files"]]
        items = _patiently(self._reader(source).survey, TRIES)
        if not items:
            raise Wrong(f"files in {without_query(source['source'])}", "none", "is the right place named?")
        if source.get("sha256"):
            if len(items) != 1:
                have = f"{len(items)} files in {without_query(source['source'])}"
                raise Wrong("one file for sha256", have, "give manifest: SHA256SUMS, or name one file")
            items[0].sha256 = source["sha256"]
        return items

    def _check_room(self, surveyed: Sequence[tuple[Document, Any, list[Item]]]) -> None:
        """All that is missing must fit, before the first byte is fetched."""
        missing, seen = 0, set()
        for source, _, items in surveyed:
            for item in items:
                content = item.sha256 or self.cache.indexed(self._key(source, item))
                if not (content and self.cache.find(content)) and item.size_bytes > 0 and content not in seen:
                    have = self.cache.partial(content or self._key(source, item))
                    missing += item.size_bytes - (have.stat().st_size if have.exists() else 0)
                    seen |= {content} if content else set()
        self.cache.room(max(0, missing))

    # ---- one source

    def _stage(self, source: Document, reader: Any, items: list[Item]) -> Document:
        for last in (False, True):
            try:
                self._all(source, reader, items)
            except Changed as changed:
                if last:
                    where = without_query(source["source"])
                    hint = "it is being written to: stage a version that stays, or a manifest"
                    raise Wrong(f"{where} to stay as it is", f"it changed while it was read: {changed}", hint) from None
                self._tally[self.at].update(done_bytes=0, done_files=0, fetched_bytes=0, cached_bytes=0)
                items = self._survey(source)
                continue
            break
        tally, took_s = self._tally[self.at], self.took_s()
        fetched, verified = tally["fetched_bytes"], all(item.sha256 for item in items)
        how = "verified by SHA-256" if verified else "its size and validator are right; no SHA-256 was given"
        need = f"{tally['files']} files, {size(tally['done_bytes'])}, {how}"
        speed = fetched / max(took_s, 1e-3)
        have = f"{size(fetched)} fetched at {rate(speed)}" if fetched else "all of it was in the node's cache"
        if fetched and tally["cached_bytes"]:
            have += f", {size(tally['cached_bytes'])} from the node's cache"
        figures = {"bytes": tally["done_bytes"], "fetched_bytes": fetched, "cached_bytes": tally["cached_bytes"]}
        if fetched >= 2**20:
            figures["bytes_per_s"] = speed
        return {"name": f"stage:{self.at}", **ok(need, have, **figures), "took_s": round(took_s, 3)}

    def _all(self, source: Document, reader: Any, items: list[Item]) -> None:
        """Small files side by side; then each large one with its parts side by side."""
        large = [item for item in items if item.ranges and item.size_bytes >= 2 * PART_BYTES]
        small = [item for item in items if item not in large]
        self._doing = "reading"
        _side_by_side([partial(self._obtain, source, reader, item) for item in small], self._parallel)
        for item in large:
            self._obtain(source, reader, item)

    def _obtain(self, source: Document, reader: Any, item: Item) -> None:
        """The file in the tree: from the cache, from another run that fetches it just now, or fetched."""
        target = self._tree / source["name"] / item.path
        key = self._key(source, item)
        name = item.sha256 or key
        silent_at, grown = time.monotonic() + PUSHED_SILENCE_S, -1
        fetched = False
        while True:
            content = item.sha256 or self.cache.indexed(key)
            if content and self.cache.find(content) and self.cache.take(content, target):
                self.count(max(item.size_bytes, 0), whole=True, fetched=fetched)
                return
            if reader is None:  # the control plane brings it
                draft = self.cache.partial(f"{name}.pushed")
                size_now = draft.stat().st_size if draft.exists() else 0
                if size_now != grown:
                    silent_at, grown = time.monotonic() + PUSHED_SILENCE_S, size_now
                if time.monotonic() > silent_at:
                    have = f"nothing came for {PUSHED_SILENCE_S:g} s"
                    raise Wrong(f"{item.path} from the control plane", have, "is it up?", "data-unreachable")
                time.sleep(0.05)
                continue
            lock = self.cache.try_lock(name)
            if lock is None:
                time.sleep(0.1)
                continue
            try:
                if not (content and self.cache.find(content)):
                    self._fetch(reader, item, name, key)
                    fetched = True
            finally:
                os.close(lock)

    def count(self, size_bytes: int, *, whole: bool, fetched: bool) -> None:
        with self._speaking:
            tally = self._tally[self.at]
            if whole:
                tally["done_files"] += 1
                if not fetched:
                    tally["done_bytes"] += size_bytes
                    tally["cached_bytes"] += size_bytes
            else:
                tally["done_bytes"] += size_bytes
                tally["fetched_bytes"] += size_bytes if fetched else 0

    def _key(self, source: Document, item: Item) -> str:
        """What a source's file is known by in the cache; another for each version of it.

        What nothing tells versions apart of is known by this attempt alone.
        """
        version = "" if item.sha256 else item.validator or self._once
        place = source.get("endpoint") or "", without_query(source["source"])
        return key_of(*place, item.path, version, str(item.size_bytes))

    # ---- one file

    def _fetch(self, reader: Any, item: Item, name: str, key: str) -> None:
        """Fetches, resumes where it was left, verifies, commits. The caller holds the file's lock."""
        draft = self.cache.partial(name)
        before = self.cache.journal(name)
        same = before.get("validator") == item.validator and before.get("size_bytes") == item.size_bytes
        if not (before and same and (item.validator or item.sha256)):
            self.cache.forget(name)
            before = {}
        size_bytes = item.size_bytes
        split = item.ranges and size_bytes >= 2 * PART_BYTES
        starts = range(0, size_bytes, PART_BYTES) if split else range(1)
        have = {start: int((before.get("have") or {}).get(str(start), 0)) for start in starts}
        self.count(sum(have.values()), whole=False, fetched=False)
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if size_bytes > 0:
                self.cache.grow(descriptor, size_bytes)
            parts = _Parts(self, reader, item, name, descriptor, have)
            tasks = []
            for start in starts:
                tasks.append(partial(parts.fetch, start, min(start + PART_BYTES, size_bytes) if split else size_bytes))
            _side_by_side(tasks, self._parallel)
            os.ftruncate(descriptor, sum(have.values()))
        except Changed:
            self.cache.forget(name)
            raise
        finally:
            os.close(descriptor)
        found = digest(draft)
        if item.sha256 and found != item.sha256:
            self.cache.forget(name)
            raise Wrong(
                f"{item.path} with SHA-256 {item.sha256}",
                f"{found} in {sum(have.values())} bytes",
                "the file was changed, or the digest is another version's: nothing was started on it",
            )
        self.cache.commit(draft, found, key)


class _Parts:
    """One file's parts under way: where each stands, noted so that a killed run goes on from there."""

    def __init__(self, work: _Work, reader: Any, item: Item, name: str, descriptor: int, have: dict[int, int]) -> None:
        self._work, self._reader, self._item, self._name = work, reader, item, name
        self._descriptor, self._have = descriptor, have
        self._noting, self._noted_at = threading.Lock(), 0.0

    def fetch(self, start: int, end: int) -> None:
        """Bytes from `start` to `end`, which is -1 when nobody knows it; broken connections are taken up again."""
        tries = 0
        while not self._complete(start, end):
            had = self._have[start]
            try:
                self._read(start, end)
                if not self._complete(start, end):
                    raise Passing(f"the connection ended {end - start - self._have[start]} bytes early")
                if end < 0:
                    return
            except Passing as passing:
                tries = 1 if self._have[start] > had else tries + 1
                if tries >= TRIES:
                    need = f"read {self._item.path}"
                    hint = "the way to the storage is down: check routes, firewall and the storage's health"
                    raise Wrong(need, str(passing), hint, "data-unreachable") from None
                time.sleep(min(0.1 * 2**tries, 5.0))

    def _complete(self, start: int, end: int) -> bool:
        return end >= 0 and self._have[start] >= end - start

    def _read(self, start: int, end: int) -> None:
        stream = self._reader.open(self._item, start + self._have[start], end)
        try:
            if stream.offset != start + self._have[start]:
                if start:
                    raise Changed("the server gives no ranges any more")
                self._work.count(-self._have[0], whole=False, fetched=False)
                self._have[0] = 0
            while end < 0 or self._have[start] < end - start:
                want = BLOCK if end < 0 else min(BLOCK, end - start - self._have[start])
                data = stream.read(want)
                if not data:
                    return
                at = start + self._have[start]
                if end < 0:
                    self._work.cache.grow(self._descriptor, -(-(at + len(data)) // GROWTH_BYTES) * GROWTH_BYTES)
                _write(self._descriptor, data, at)
                self._have[start] += len(data)
                self._work.count(len(data), whole=False, fetched=True)
                self._note()
        finally:
            stream.close()

    def _note(self) -> None:
        now = time.monotonic()
        if now - self._noted_at < NOTE_PERIOD_S or not self._noting.acquire(blocking=False):
            return
        try:
            self._noted_at = now
            have = {str(start): count for start, count in list(self._have.items())}
            about = {"validator": self._item.validator, "size_bytes": self._item.size_bytes, "have": have}
            self._work.cache.note(self._name, about)
        finally:
            self._noting.release()


def _write(descriptor: int, data: bytes, at: int) -> None:
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


def _secret(source: Document, secrets_dir: str) -> str:
    name = source.get("secret") or ""
    if not name:
        return ""
    try:
        return Path(secrets_dir, name).read_text(encoding="utf-8", errors="surrogateescape")
    except OSError as error:
        raise Wrong(f"the secret {name}", error.strerror or str(error), "name it in spec.secrets too") from None


def _patiently(ask: Callable[[], list[Item]], tries: int) -> list[Item]:
    for tried in range(tries):
        try:
            return ask()
        except Passing as passing:
            if tried == tries - 1:
                hint = "check the name, the node's routes and firewall, and the storage's health"
                raise Wrong("an answer from the storage", str(passing), hint, "data-unreachable") from None
            time.sleep(min(0.1 * 2**tried, 5.0))
    raise AssertionError("the last try always ends")


def _side_by_side(tasks: Sequence[Callable[[], None]], at_once: int) -> None:
    """All of them, some at a time; the first failure ends the rest and is raised."""
    left, failures, guard = list(reversed(tasks)), list[BaseException](), threading.Lock()

    def draw() -> None:
        while True:
            with guard:
                if failures or not left:
                    return
                task = left.pop()
            try:
                task()
            except (Wrong, NoRoom, Changed, Passing, *_DEFECTS) as error:  # handed to whoever waits for all of them
                failures.append(error)

    threads = [threading.Thread(target=draw, daemon=True) for _ in range(min(at_once, len(tasks)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
