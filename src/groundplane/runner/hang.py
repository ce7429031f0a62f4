"""Whether the job has stopped getting anywhere, and what its processes were doing then."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

from groundplane.runner.files import now_text, write_bytes
from groundplane.runner.processes import descendants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document

HELD_BYTES = 256 * 2**20
"""An accelerator holds memory from here on: a bare context takes less. Our estimate from drivers of 2024 to 2026."""

PROCESSES_MAX, TEXT_MAX_BYTES, DUMP_PATIENCE_S = 64, 2**20, 10.0
PEER_PORT, PEER_PATIENCE_S = 22, 3.0


class HangWatch:
    """Told of output, samples and checkpoints. It hangs when neither output nor a checkpoint came for the order's
    limit, or when every assigned accelerator stood at 0 % for that long and still held memory.

    `found` is then a document with why, for how long, and which ranks can't be reached; the stacks are in `stacks.txt`.
    """

    def __init__(self, order: Document, folder: Path) -> None:
        self._order, self._folder = order, folder
        self._limit_s = order.get("hang_limit_s") or float("inf")
        self._step = -1
        self._progress_at = time.monotonic()
        self._zero_since: float | None = None
        self._capture: threading.Thread | None = None
        self.found: Document | None = None

    def begin(self) -> None:
        """The command has started."""
        self._progress_at, self._zero_since = time.monotonic(), None

    def output(self) -> None:
        self._progress_at = time.monotonic()

    def sampled(self, cards: list[Document], newest_step: int) -> None:
        """After each sample: judges, and begins to capture when it hangs. Progress takes it all back."""
        now = time.monotonic()
        if newest_step != self._step:
            self._step, self._progress_at = newest_step, now
        held = [card for card in cards if card.get("memory_used_bytes", 0) >= HELD_BYTES]
        if held and all(card.get("utilization_percent", 100) < 1 for card in cards):
            self._zero_since = now if self._zero_since is None else self._zero_since
        else:
            self._zero_since = None
        quiet_s = now - self._progress_at
        zero_s = now - self._zero_since if self._zero_since is not None else 0.0
        if max(quiet_s, zero_s) < self._limit_s:
            self.found = self._capture = None
        elif self._capture is None:
            why = f"no output and no checkpoint for {quiet_s:.0f} s"
            if zero_s >= self._limit_s:
                why = f"{len(held)} accelerators at 0 % for {zero_s:.0f} s, their memory held"
            about = {"why": why, "quiet_s": round(max(quiet_s, zero_s), 1), "at": now_text()}
            self._capture = threading.Thread(target=self._look, args=(about,), daemon=True)
            self._capture.start()

    def _look(self, about: Document) -> None:
        ours = threading.current_thread()
        text = stacks(descendants(os.getpid()))
        with contextlib.suppress(OSError):  # a full disk must not hide the hang itself
            write_bytes(self._folder / "stacks.txt", f"{about['at']} {about['why']}\n\n{text}".encode(), durable=False)
        about["unreachable"] = unreachable(self._order.get("env") or {})
        if self._capture is ours:  # else it went on meanwhile
            self.found = about


def unreachable(env: dict[str, str]) -> list[int]:
    """Ranks of the gang whose machines can't be reached from here. One that refuses a connection is reached."""
    import socket  # noqa: PLC0415 (only a hung gang pays for it)

    addresses = [address for address in env.get("GROUND_NODE_ADDRESSES", "").split(",") if address]
    found: list[int] = []

    def ask(rank: int, address: str) -> None:
        try:
            socket.create_connection((address, PEER_PORT), timeout=PEER_PATIENCE_S).close()
        except ConnectionRefusedError:
            return
        except OSError:
            found.append(rank)

    own = int(env.get("GROUND_NODE_RANK", "0"))
    asked = [
        threading.Thread(target=ask, args=(rank, address), daemon=True)
        for rank, address in enumerate(addresses)
        if rank != own
    ]
    for each in asked:
        each.start()
    for each in asked:
        each.join(2 * PEER_PATIENCE_S)
    return sorted(found)


def stacks(pids: list[int]) -> str:
    """Every process with what it waits for; Python's own stacks where py-spy is on the node and may look."""
    import shutil  # noqa: PLC0415
    import subprocess  # noqa: PLC0415

    py_spy = shutil.which("py-spy")
    parts: list[str] = []
    for pid in pids[:PROCESSES_MAX]:
        said = ""
        if py_spy and _is_python(pid):
            try:
                done = subprocess.run(
                    [py_spy, "dump", "--nonblocking", "--pid", str(pid)],
                    capture_output=True,
                    timeout=DUMP_PATIENCE_S,
                    check=False,
                )
                said = done.stdout.decode(errors="replace")
                if done.returncode:
                    said = f"py-spy: {done.stderr.decode(errors='replace').strip()[:500]}\n"
            except (OSError, subprocess.TimeoutExpired) as error:
                said = f"py-spy: {error}\n"
        parts.append(_from_proc(pid) + said)
    if len(pids) > PROCESSES_MAX:
        parts.append(f"and {len(pids) - PROCESSES_MAX} more processes\n")
    return "\n".join(parts)[:TEXT_MAX_BYTES]


def _is_python(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "python" in Path(f"/proc/{pid}/exe").readlink().name
    return False


def _from_proc(pid: int) -> str:
    """Name, state, memory and threads; what each thread waits in; the kernel's stack where we may read it."""
    lines = [f"process {pid}: {_read(f'/proc/{pid}/cmdline').replace(chr(0), ' ').strip()[:300]}"]
    wanted = ("State:", "VmRSS:", "Threads:")
    lines += [f"  {line}" for line in _read(f"/proc/{pid}/status").splitlines() if line.startswith(wanted)]
    threads: list[str] = []
    with contextlib.suppress(OSError):
        threads = sorted((each.name for each in Path(f"/proc/{pid}/task").iterdir()), key=int)
    for thread in threads[:PROCESSES_MAX]:
        place = f"/proc/{pid}/task/{thread}"
        waits = _read(f"{place}/wchan").strip() or "?"
        lines.append(f"  thread {thread} {_read(f'{place}/comm').strip()}: waits in {waits}")
        lines += [f"    {line}" for line in _read(f"{place}/stack").splitlines()]
    return "\n".join(lines) + "\n"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:  # gone, or not ours to read
        return ""
