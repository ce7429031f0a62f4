"""Staged data on this node: files by content, shared by all runs, and one folder of hard links per attempt.

`objects/ab/<sha256>` is a whole, verified file; `partial/` what is under way; `index/<key>` says which content a source
had under a validator; `trees/<attempt>/<source>/…` is what a job sees. A file with a link in a tree is pinned by it, so
nothing that is used is ever removed, and a dead attempt pins nothing once its tree is swept. Processes agree by locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from pathlib import Path

from groundplane.runner.files import is_held, read_document, write_document
from groundplane.runner.processes import boot_id
from groundplane.runner.verdicts import size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from groundplane.runner.files import Document

LIMIT_BYTES = 100 * 10**9
OS_DISK_KEPT = 0.10
PARTIAL_KEPT_S = 86_400.0
SPARE_PART, SPARE_S = 8, 2.0
BLOCK = 2**20


class NoRoom(Exception):
    """The cache may not or can't grow by that much: `reason` is an end reason."""

    def __init__(self, need: str, have: str, hint: str, reason: str) -> None:
        super().__init__(f"need {need}, have {have}; {hint}")
        self.need, self.have, self.hint, self.reason = need, have, hint, reason


class DataCache:
    """The cache under one folder of this node, of at most `limit_bytes`. Any number of processes may use it at once."""

    def __init__(self, root: Path, limit_bytes: int = 0) -> None:
        self.root, self._limit_bytes = root, limit_bytes or LIMIT_BYTES
        self._spare_bytes, self._spare_until = 0, 0.0

    def open(self) -> DataCache:
        """Makes its folders, and takes away what dead attempts left."""
        for name, mode in (("", 0o711), ("trees", 0o711), ("objects", 0o700), ("partial", 0o700), ("index", 0o700)):
            folder = self.root / name
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        (self.root / "locks").mkdir(mode=0o700, exist_ok=True)
        self._sweep()
        return self

    # ---- whole files

    def find(self, sha256: str) -> bool:
        """Whether the file is here, whole as it was stored. One that was written to is read again, and goes if bad."""
        path = self._object(sha256)
        try:
            about = path.stat()
        except FileNotFoundError:
            return False
        if about.st_mtime_ns % 10**9 != _stamp(sha256):
            if digest(path) != sha256:
                path.unlink(missing_ok=True)
                return False
            self._mark(path, sha256)
        with contextlib.suppress(FileNotFoundError):  # evicted since: taking it will tell
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        return True

    def take(self, sha256: str, target: Path) -> bool:
        """Links the file into a tree, which pins it. False when it is not here any more."""
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        source = self._object(sha256)
        try:
            os.link(source, target)
        except FileNotFoundError:
            return False
        except FileExistsError:
            return True
        except OSError as error:
            if error.errno != errno.EMLINK:  # so many names has one file at most
                raise
            shutil.copyfile(source, target)
            target.chmod(0o444)
        return True

    def size_of(self, sha256: str) -> int:
        return self._object(sha256).stat().st_size

    def commit(self, partial: Path, sha256: str, key: str) -> None:
        """A verified partial file becomes part of the cache; `key` then leads to it without asking its source."""
        final = self._object(sha256)
        final.parent.mkdir(mode=0o700, exist_ok=True)
        partial.chmod(0o444)
        # The mark is believed after a power cut too, so the bytes must be there then.
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        self._mark(partial, sha256)
        partial.replace(final)
        self.forget(partial.name)
        if key:
            (self.root / "index" / key).write_text(sha256)

    def indexed(self, key: str) -> str:
        """The content that a source's file had; "" when not known."""
        if not key:
            return ""
        with contextlib.suppress(FileNotFoundError):
            return (self.root / "index" / key).read_text()
        return ""

    # ---- files under way

    def partial(self, name: str) -> Path:
        return self.root / "partial" / name

    def journal(self, name: str) -> Document:
        """What a partial file held when it was last noted; {} when it can't be trusted any more."""
        try:
            found = read_document(self.root / "partial" / f"{name}.json") or {}
        except (OSError, ValueError):
            found = {}
        # After a power cut, bytes that were never synced may be missing in the middle.
        return found if found.get("boot_id") == boot_id() and self.partial(name).exists() else {}

    def note(self, name: str, document: Document) -> None:
        write_document(self.root / "partial" / f"{name}.json", {**document, "boot_id": boot_id()}, durable=False)

    def forget(self, name: str) -> None:
        self.partial(name).unlink(missing_ok=True)
        (self.root / "partial" / f"{name}.json").unlink(missing_ok=True)

    def room(self, more_bytes: int) -> None:
        """Evicts what was not used for longest until there is room. NoRoom when there can't be."""
        with self.lock("cache"):
            self._make_room(more_bytes)

    def grow(self, descriptor: int, to_bytes: int) -> None:
        """Takes disk space for an open partial file, so that two runs can't count on the same. NoRoom."""
        have = os.fstat(descriptor).st_size
        if to_bytes <= have:
            return
        with self.lock("cache"):
            self._take_room(to_bytes - have)
            try:
                os.posix_fallocate(descriptor, have, to_bytes - have)
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise self._full(to_bytes - have) from None
                os.ftruncate(descriptor, to_bytes)  # a file system that can't take space ahead

    # ---- trees

    def claim(self, attempt_id: str) -> tuple[Path, int]:
        """The attempt's empty tree, and the descriptor that keeps it: when that closes, the tree may be swept."""
        lock = self._locked(f"tree-{attempt_id}", wait=True)
        assert lock is not None
        tree = self.root / "trees" / attempt_id
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir(mode=0o755)
        tree.chmod(0o755)
        return tree, lock

    def drop(self, attempt_id: str) -> None:
        shutil.rmtree(self.root / "trees" / attempt_id, ignore_errors=True)

    # ---- for people

    def listing(self) -> Document:
        """Bytes, files, what is pinned and under way, the limit, and the disk."""
        self.root.mkdir(mode=0o711, parents=True, exist_ok=True)
        files = list(self._objects())
        disk = os.statvfs(self.root)
        return {
            "folder": str(self.root),
            "files": len(files),
            "bytes": sum(about.st_size for _, about in files),
            "pinned_bytes": sum(about.st_size for _, about in files if about.st_nlink > 1),
            "partial_bytes": self._partial_bytes(),
            "limit_bytes": self._limit_bytes,
            "disk_free_bytes": disk.f_bavail * disk.f_frsize,
            "disk_kept_bytes": self._kept_bytes(),
            "on_os_disk": self._on_os_disk(),
        }

    def clear(self) -> Document:
        """Removes all that no run uses."""
        if not (self.root / "locks").exists():
            return {"files": 0, "bytes": 0}
        self._sweep()
        files = freed = 0
        with self.lock("cache"):
            for path, about in self._objects():
                if about.st_nlink == 1:
                    path.unlink(missing_ok=True)
                    files, freed = files + 1, freed + about.st_size
            for path in self._idle_partials(0.0):
                freed += path.stat().st_size
                self.forget(path.name)
        return {"files": files, "bytes": freed}

    # ---- locks

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        descriptor = self._locked(name, wait=True)
        try:
            yield
        finally:
            os.close(descriptor or 0)

    def try_lock(self, name: str) -> int | None:
        """The descriptor that holds the lock; None when somebody else does."""
        return self._locked(name, wait=False)

    def _locked(self, name: str, *, wait: bool) -> int | None:
        path = self.root / "locks" / name
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                os.close(descriptor)
                return None
            with contextlib.suppress(FileNotFoundError):  # a sweep took the file away while we waited
                if os.fstat(descriptor).st_ino == path.stat().st_ino:
                    return descriptor
            os.close(descriptor)

    # ---- room

    def _take_room(self, more_bytes: int) -> None:
        """`_make_room`, without a look at every file of the cache for each small one that comes: an eighth of what was
        left at the last look is ours for a moment, so that as many runs as that can't count on the same.
        """
        if more_bytes > self._spare_bytes or time.monotonic() > self._spare_until:
            self._spare_bytes = more_bytes + self._make_room(more_bytes) // SPARE_PART
            self._spare_until = time.monotonic() + SPARE_S
        self._spare_bytes -= more_bytes

    def _make_room(self, more_bytes: int) -> int:
        """Evicts until so many bytes fit; how many more would."""
        files = sorted(self._objects(), key=lambda each: each[1].st_atime_ns)
        used = sum(about.st_size for _, about in files) + self._partial_bytes()
        if more_bytes > self._limit_bytes - sum(about.st_size for _, about in files if about.st_nlink > 1):
            pinned = sum(about.st_size for _, about in files if about.st_nlink > 1)
            raise NoRoom(
                f"{size(more_bytes)} in the node's data cache",
                f"a limit of {size(self._limit_bytes)}, of which running work uses {size(pinned)}",
                "raise GROUND_DATA_CACHE, or stage less",
                "data-refused",
            )
        idle = self._idle_partials(PARTIAL_KEPT_S)
        while used + more_bytes > self._limit_bytes or self._free_bytes() < more_bytes:
            path, about = next(((path, about) for path, about in files if about.st_nlink == 1), (None, None))
            if path is not None and about is not None:
                files = [each for each in files if each[0] != path]
                with contextlib.suppress(FileNotFoundError):
                    if path.stat().st_nlink == 1:
                        path.unlink()
                        used -= about.st_size
            elif idle:
                left = idle.pop()
                used -= left.stat().st_size
                self.forget(left.name)
            elif self._free_bytes() >= more_bytes:
                return 0  # others' unfinished files fill the rest of the limit: theirs ends, ours goes on
            else:
                raise self._full(more_bytes)
        return max(0, min(self._limit_bytes - used, self._free_bytes()) - more_bytes)

    def _full(self, more_bytes: int) -> NoRoom:
        disk = os.statvfs(self.root)
        free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
        have, hint = f"{size(free)} of {size(total)} free under {self.root}", "free some space there, or stage less"
        if self._on_os_disk():
            have += (
                f", of which the last {OS_DISK_KEPT:.0%} ({size(self._kept_bytes())}) stay with the operating system"
            )
            hint = "set GROUND_SCRATCH to another disk, or stage less"
        return NoRoom(f"{size(more_bytes)} for data", have, hint, "disk-full")

    def _free_bytes(self) -> int:
        disk = os.statvfs(self.root)
        return disk.f_bavail * disk.f_frsize - self._kept_bytes()

    def _kept_bytes(self) -> int:
        if not self._on_os_disk():
            return 0
        disk = os.statvfs("/")
        return int(disk.f_blocks * disk.f_frsize * OS_DISK_KEPT)

    def _on_os_disk(self) -> bool:
        return self.root.stat().st_dev == Path("/").stat().st_dev

    def _objects(self) -> Iterator[tuple[Path, os.stat_result]]:
        for folder in sorted((self.root / "objects").glob("??")):
            for path in folder.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    yield path, path.stat()

    def _partial_bytes(self) -> int:
        total = 0
        for path in (self.root / "partial").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                total += path.stat().st_size
        return total

    def _idle_partials(self, age_s: float) -> list[Path]:
        """Files under way that nobody is at, untouched for that long."""
        found = []
        for path in (self.root / "partial").glob("*"):
            with contextlib.suppress(FileNotFoundError):
                old = time.time() - path.stat().st_mtime >= age_s
                file = not path.name.startswith(".") and path.suffix != ".json"
                if old and file and not is_held(self.root / "locks" / path.name):
                    found.append(path)
        return found

    def _sweep(self) -> None:
        """Removes trees whose attempt is over, partial files nobody came back for, and locks nobody holds."""
        for tree in (self.root / "trees").iterdir():
            if not is_held(self.root / "locks" / f"tree-{tree.name}"):
                shutil.rmtree(tree, ignore_errors=True)
        for path in self._idle_partials(PARTIAL_KEPT_S):
            self.forget(path.name)
        for path in (self.root / "index").iterdir():
            with contextlib.suppress(FileNotFoundError):  # another sweep was here first
                if not self._object(path.read_text()).exists():
                    path.unlink()
        for path in (self.root / "locks").iterdir():
            descriptor = self._locked(path.name, wait=False)
            if descriptor is not None:
                path.unlink(missing_ok=True)
                os.close(descriptor)

    def _object(self, sha256: str) -> Path:
        return self.root / "objects" / (sha256[:2] or "00") / (sha256 or "none")

    def _mark(self, path: Path, sha256: str) -> None:
        """Nobody writes to a file without changing its time: the digest's own digits in it say that nobody has."""
        now = time.time_ns()
        os.utime(path, ns=(now, now - now % 10**9 + _stamp(sha256)))


def _stamp(sha256: str) -> int:
    return int(sha256[:7], 16)


def digest(path: Path) -> str:
    """SHA-256 of a file; "" when it can't be read."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                found.update(block)
    except OSError:
        return ""
    return found.hexdigest()


def key_of(*words: str) -> str:
    """A file name for what these words tell apart."""
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()
