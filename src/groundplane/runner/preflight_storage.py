"""Disk, data and the checkpoint target: is it there, may we, is there room, is it fast enough."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from pathlib import Path

from groundplane.runner.verdicts import failed, hours, ok, rate, size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from groundplane.runner.files import Document

LEAST_FREE_BYTES = 64 * 2**20
SAMPLE_BYTES, SAMPLE_S = 64 * 2**20, 1.0
LEAST_TIMED_BYTES = 2**20
PROBE_BYTES, MOST_PROBE_BYTES, PROBE_S = 2 * 2**20, 64 * 2**20, 2.0
CHUNK = 2**20
GONE = {errno.ENOTCONN, errno.ESTALE, errno.EIO, errno.EHOSTDOWN, errno.ETIMEDOUT, errno.ENODEV, errno.EREMOTEIO}
NETWORK_KINDS = ("nfs", "cifs", "smb", "fuse", "ceph", "lustre", "9p", "gpfs", "beegfs")


def disk(order: Document, folder: Path) -> Document:
    """Free space where the attempt lives, what the spec asked for included."""
    asked = int((order.get("preflight") or {}).get("disk_bytes") or 0)
    found = os.statvfs(folder if folder.exists() else folder.parent)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    need_bytes = max(asked, LEAST_FREE_BYTES)
    need, have = f"{size(need_bytes)} free", f"{size(free)} of {size(total)}"
    if free >= need_bytes:
        return ok(need, have, free_bytes=free)
    hint = "delete what is not needed there, or choose a node with more disk"
    return failed(need, have, hint, fault="node", free_bytes=free)


# ---------------------------------------------------------------- data


def data(source: Document, order: Document) -> Document:
    """Whether a data source can be read with the job's rights, and fast enough for its size and the time there is."""
    path = source["path"]
    try:
        files = _some_files(Path(path))
        read_bytes, took_s = _read(files)
    except OSError as error:
        return _unreadable(path, error)
    if not files:
        return failed(f"files in {path}", "none", "is the right folder named, and its share mounted?", fault="run")
    return judge_speed(source, order, read_bytes, took_s, f"read {path}")


def judge_speed(source: Document, order: Document, read_bytes: int, took_s: float, what: str) -> Document:
    """Measured bytes a second against size × passes ÷ duration. Too little data says nothing about speed."""
    total = int(source.get("size_bytes") or 0) * int(source.get("passes") or 1)
    duration_s = float(order["max_duration_s"])
    if read_bytes < LEAST_TIMED_BYTES or took_s <= 0:
        return ok(what, f"{size(read_bytes)} read; too little to time", read_bytes=read_bytes)
    measured = read_bytes / took_s
    figures = {"bytes_per_s": measured, "read_bytes": read_bytes}
    if not total or duration_s <= 0:
        return ok(what, f"{rate(measured)}; its size is not known", **figures)
    needed = total / duration_s
    passes = int(source.get("passes") or 1)
    need = f"{rate(needed)} ({size(total / passes)} × {passes} ÷ {hours(duration_s)})"
    have = f"{rate(measured)} measured over {size(read_bytes)}"
    figures["needed_bytes_per_s"] = needed
    if measured >= needed:
        return ok(need, have, **figures)
    takes_s = total / measured
    hint = f"at {rate(measured)} it takes {hours(takes_s)}: stage it to the node's own disk first (one pass takes "
    hint += f"{hours(takes_s / passes)}), use faster storage, or raise max_duration"
    return failed(need, have, hint, fault="run", **figures)


def _some_files(path: Path) -> list[Path]:
    """The file itself, or some of a folder's: enough to read a sample. OSError for what can't be looked into."""
    if not stat.S_ISDIR(path.stat().st_mode):
        return [path]
    found: list[Path] = []
    enough, until = 0, time.monotonic() + SAMPLE_S
    for root, folders, names in os.walk(path, onerror=_raise):
        folders.sort()
        for name in sorted(names):
            file = Path(root) / name
            if file.is_file():
                found.append(file)
                enough += file.stat().st_size
            if enough >= SAMPLE_BYTES or time.monotonic() > until:
                return found
    return found


def _raise(error: OSError) -> None:
    raise error


def _read(files: list[Path]) -> tuple[int, float]:
    """(bytes, seconds) of reading a sample past the page cache."""
    read_bytes, began = 0, time.monotonic()
    until = began + SAMPLE_S
    for file in files:
        for chunk in _chunks(file):
            read_bytes += len(chunk)
            if read_bytes >= SAMPLE_BYTES or time.monotonic() > until:
                return read_bytes, time.monotonic() - began
    return read_bytes, time.monotonic() - began


def _chunks(file: Path) -> Iterator[bytes]:
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # what memory already holds says nothing about the storage
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        while chunk := os.read(descriptor, CHUNK):
            yield chunk
    finally:
        os.close(descriptor)


def _unreadable(path: str, error: OSError) -> Document:
    where = error.filename or path
    kind = mount_kind(path)
    share = kind.startswith(NETWORK_KINDS)
    need = f"read {path}"
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return failed(need, f"{where} is missing", "is the path right, and its share mounted here?", fault="run")
    if error.errno in (errno.EACCES, errno.EPERM) and share:
        have = f"permission denied by the storage behind {where} ({kind}): a missing role"
        hint = "grant the node's identity the reader role there; a firewall would not answer at all"
        return failed(need, have, hint, fault="run")
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"let user id {os.geteuid()} read it: setfacl -R -m u:{os.geteuid()}:rX {path}"
        return failed(need, f"permission denied on {where} for user id {os.geteuid()}", hint, fault="run")
    if error.errno in GONE:
        hint = "mount it anew; is its server reachable from this node?"
        return failed(need, f"the mount under {where} ({kind}) is gone: {error.strerror}", hint, fault="node")
    return failed(need, f"{where}: {error.strerror}", "look at it on the node by hand", fault="node")


def mount_kind(path: str) -> str:
    """The file system a path lies on, as the kernel calls it."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text().splitlines():
        mount, found = line.split()[1:3]
        inside = path == mount or path.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, found
    return kind


# ---------------------------------------------------------------- checkpoints


def checkpoints(order: Document, _: Path) -> Document:
    """Writes to the checkpoint target, syncs, reads back, compares: what a night's work hangs on."""
    target = Path(order["checkpoint_dir"])
    asked = order.get("preflight") or {}
    size_bytes, share = int(asked.get("checkpoint_bytes") or 0), order.get("checkpoint_share") or ""
    need = f"write, sync and read back in {target}"
    if share and not os.path.lexists(share):
        hint = f"make {share} on the node; is its share mounted?"
        return failed(need, f"{share} is missing", hint, fault="run")
    try:
        target.mkdir(exist_ok=True, parents=not share)
        figures = _probe(target, min(max(PROBE_BYTES, size_bytes), MOST_PROBE_BYTES))
    except OSError as error:
        return _not_writable(need, target, error)
    if figures is None:
        hint = "the storage loses what it was given: check its disks and mount options before trusting it"
        return failed(need, "what was read back is not what was written", hint, fault="node")
    found = os.statvfs(target)
    free = found.f_bavail * found.f_frsize
    figures["free_bytes"] = free
    if size_bytes and free < 2 * size_bytes:
        hint = "keep fewer checkpoints, or write them to larger storage"
        need = f"{size(2 * size_bytes)} free: the last checkpoint stays until the next is whole"
        return failed(need, f"{size(free)} in {target}", hint, fault="run", **figures)
    have = f"{rate(figures['write_bytes_per_s'])} written and synced, {rate(figures['read_bytes_per_s'])} read"
    return ok(need, have, **figures)


def _probe(target: Path, probe_bytes: int) -> dict[str, float] | None:
    """Rates of a write with fsync and of reading it back; None when the bytes differ. Leaves nothing behind."""
    # Members of a gang probe one shared folder at once, and process ids of two nodes may be the same.
    file = target / f".preflight-{os.urandom(8).hex()}"
    written, same = 0, True
    chunk = os.urandom(CHUNK)
    try:
        began = time.monotonic()
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            while written < probe_bytes and time.monotonic() - began < PROBE_S:
                written += _write_all(descriptor, chunk)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        wrote_s = time.monotonic() - began
        began, read_bytes = time.monotonic(), 0
        for part in _chunks(file):
            same = same and part == chunk[: len(part)]
            read_bytes += len(part)
        read_s = time.monotonic() - began
    finally:
        file.unlink(missing_ok=True)
    if not same or read_bytes != written:
        return None
    return {
        "write_bytes_per_s": written / max(wrote_s, 1e-6),
        "read_bytes_per_s": written / max(read_s, 1e-6),
        "probe_bytes": float(written),
    }


def _write_all(descriptor: int, chunk: bytes) -> int:
    done = 0
    while done < len(chunk):
        done += os.write(descriptor, chunk[done:])
    return done


def _not_writable(need: str, target: Path, error: OSError) -> Document:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "delete old checkpoints, raise the quota, or name another spec.checkpoint_dir"
        return failed(need, f"the disk under {target} is full: {error.strerror}", hint, fault="run")
    if error.errno == errno.EROFS:
        hint = "mount it writable, or name another spec.checkpoint_dir"
        return failed(need, f"{target} is on a read-only file system", hint, fault="run")
    if error.errno in (errno.EACCES, errno.EPERM):
        hint = f"give user id {os.geteuid()} the right to write there, or name another spec.checkpoint_dir"
        return failed(need, f"permission denied on {target} for user id {os.geteuid()}", hint, fault="run")
    if error.errno in GONE:
        return failed(need, f"the mount under {target} is gone: {error.strerror}", "mount it anew", fault="node")
    return failed(need, f"{target}: {error.strerror}", "name another spec.checkpoint_dir", fault="run")
