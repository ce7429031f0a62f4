"""Attempts as processes of this machine: one folder and one runner each, which outlive the control plane.

`<root>/attempts/<attempt id>/` holds order.json, state.json, log, samples.jsonl, lock and work/. The folder is the
only truth: this class keeps nothing that a restart would lose. A held lock means a living runner; a free lock under an
unended state means a dead one, and then the runner program itself (`--look`) ends what it left and records that.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from groundplane.adapters.executors.reservations import Reservations, write_atomically
from groundplane.domain.node import Node, NodeAccelerator
from groundplane.domain.planning import Offer
from groundplane.domain.run import EndReason, FoundCheckpoint, Observation
from groundplane.errors import Conflict, InvalidInput, Unavailable
from groundplane.ports import Clock, LogChunk, Order, Sample

RUNNER = Path(__file__).resolve().parents[2] / "runner"
RUNNER_ENV = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
START_PATIENCE_S = 60.0
FACTS_AGE_S = 60.0
ENDED_KEPT = 10_000
LOOK_BATCH = 200

Document = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """What every order of this pool tells its runner beside the job: limits in bytes, the sampling period."""

    log_line_limit_bytes: int = 65_536
    log_limit_bytes: int = 2**30
    sample_period_s: float = 2.0
    nvml_library: str = "libnvidia-ml.so.1"


class LocalExecutor:
    """ports.Executor on this machine. `root` is GROUND_HOME; `python` runs the runners (any version ≥ 3.9)."""

    def __init__(
        self,
        root: Path,
        clock: Clock,
        *,
        python: str = sys.executable,
        pool: str = "local",
        options: RunnerOptions | None = None,
        runner: Path = RUNNER,
    ) -> None:
        self._attempts = root / "attempts"
        self._beat_file = root / "run" / f"beat-{pool}"
        self._reservations = Reservations(root / "run")
        self._clock = clock
        self._program = (python, "-I", "-S", str(runner))
        self._pool = pool
        self._node = os.uname().nodename
        self._options = options or RunnerOptions()
        self._ended: dict[str, Document] = {}
        self._facts: tuple[float, Document] | None = None

    # ---- Executor

    async def offers(self) -> Sequence[Offer]:
        """One offer: the CPUs, memory, disk and accelerators a process of this machine may use."""
        facts = await asyncio.to_thread(self._node_facts)
        disk = os.statvfs(self._attempts)
        cards = facts["accelerators"]
        return [
            Offer(
                pool=self._pool,
                node_type="local",
                cpus=facts["cpus"],
                memory_bytes=facts["memory_bytes"],
                disk_free_bytes=disk.f_bavail * disk.f_frsize,
                accelerators=len(cards),
                accelerator=accelerator_name(cards[0]["name"], cards[0]["memory_bytes"]) if cards else "",
                price_microusd_per_hour=0,
                price_as_of=self._clock.now().date(),
                price_source="",
            )
        ]

    async def nodes(self) -> Sequence[Node]:
        """This machine."""
        facts = await asyncio.to_thread(self._node_facts)
        cards = tuple(
            NodeAccelerator(
                index=card["index"],
                model=accelerator_name(card["name"], card["memory_bytes"]),
                memory_bytes=card["memory_bytes"],
            )
            for card in facts["accelerators"]
        )
        return [
            Node(
                name=self._node,
                pool=self._pool,
                cpus=facts["cpus"],
                memory_bytes=facts["memory_bytes"],
                disk_free_bytes=facts["disk_free_bytes"],
                accelerators=cards,
                heard_at=self._clock.now(),
            )
        ]

    async def start(self, order: Order) -> None:
        try:
            await asyncio.to_thread(self._start, order)
        except OSError as error:
            raise Unavailable(
                f"{order.attempt_id} can't be written down: {error}", "free disk space or rights under GROUND_HOME"
            ) from error

    async def observe(self, attempt_ids: Sequence[str]) -> dict[str, Observation]:
        documents = await asyncio.to_thread(self._look, list(attempt_ids))
        return {attempt_id: self._observation(attempt_id, documents[attempt_id]) for attempt_id in attempt_ids}

    async def stop(self, attempt_id: str, reason: EndReason) -> None:
        """Leaves a stop file. It works before the start too: an attempt started later then ends at once, unrun."""
        await asyncio.to_thread(self._stop, attempt_id, reason)

    async def log(self, attempt_id: str, offset: int, limit_bytes: int) -> LogChunk:
        return await asyncio.to_thread(self._log, attempt_id, max(0, offset), max(0, limit_bytes))

    async def samples(self, attempt_id: str, limit: int) -> list[Sample]:
        return await asyncio.to_thread(self._samples, attempt_id, limit)

    async def attempts(self) -> list[str]:
        return await asyncio.to_thread(self._known)

    async def release(self, attempt_id: str) -> None:
        """Conflict while the attempt is at work: its accelerators are not free yet."""
        await asyncio.to_thread(self._release, attempt_id)

    async def beat(self) -> None:
        await asyncio.to_thread(self._write_beat)

    # ---- start

    def _start(self, order: Order) -> None:
        folder = self._folder(order.attempt_id)
        if (folder / "released").exists():
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "order.json").exists():
            indexes: tuple[int, ...] = ()
            if order.accelerators:
                present = [card["index"] for card in self._node_facts()["accelerators"]]
                indexes = self._reservations.take(
                    order.attempt_id, order.accelerators, present=present, is_over=self._is_over
                )
            document = {
                **asdict(order),
                "not_after": order.not_after.isoformat(),
                "accelerator_indexes": indexes,
                "beat_path": str(self._beat_file),
                **asdict(self._options),
            }
            write_atomically(folder / "order.json", json.dumps(document).encode())
        if not (folder / "state.json").exists() and not is_held(folder / "lock"):
            self._run_program("--detach", str(folder))

    def _run_program(self, *arguments: str) -> str:
        kept = {name: value for name, value in os.environ.items() if name in RUNNER_ENV or name.startswith("LC_")}
        try:
            done = subprocess.run(
                [*self._program, *arguments],
                env=kept,
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=START_PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(
                f"the runner did not answer within {START_PATIENCE_S:g} s", "is the machine overloaded?"
            ) from None
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise Unavailable(
                f"the runner exited with status {done.returncode}: {lines[-1]}", f"run {self._program[0]} by hand"
            )
        return done.stdout.decode()

    def _node_facts(self) -> Document:
        if self._facts is None or time.monotonic() - self._facts[0] > FACTS_AGE_S:
            self._attempts.mkdir(mode=0o700, parents=True, exist_ok=True)
            said = self._run_program("--facts", str(self._attempts), self._options.nvml_library)
            self._facts = (time.monotonic(), json.loads(said))
        return self._facts[1]

    # ---- observe

    def _look(self, attempt_ids: Sequence[str]) -> dict[str, Document]:
        found: dict[str, Document] = {}
        suspects: list[str] = []
        for attempt_id in attempt_ids:
            try:
                document = self._glance(attempt_id)
            except (OSError, ValueError) as error:
                document = {"state": "unknown", "message": f"its state can't be read: {error}"}
            if document is None:
                suspects.append(attempt_id)
            else:
                found[attempt_id] = document
        for start in range(0, len(suspects), LOOK_BATCH):
            found |= self._look_closely(suspects[start : start + LOOK_BATCH])
        return found

    def _glance(self, attempt_id: str) -> Document | None:
        """The state as its files say it, cheaply; None when no runner is alive to vouch for it."""
        if attempt_id in self._ended:
            return self._ended[attempt_id]
        folder = self._folder(attempt_id)
        if (folder / "released").exists() or not (folder / "order.json").exists():
            return {"state": "absent"}
        held = is_held(folder / "lock")
        try:
            document = read_state(folder)
        except ValueError:
            if held:
                raise
            return None
        if document is not None and document["state"] == "ended":
            if len(self._ended) >= ENDED_KEPT:
                self._ended.clear()
            self._ended[attempt_id] = document
            return document
        return (document or {"state": "starting"}) if held else None

    def _look_closely(self, attempt_ids: Sequence[str]) -> dict[str, Document]:
        try:
            lines = self._run_program("--look", *(str(self._folder(each)) for each in attempt_ids)).splitlines()
            documents = [json.loads(line) for line in lines]
        except (Unavailable, ValueError) as error:
            documents = [{"state": "unknown", "message": str(error)}] * len(attempt_ids)
        # Ordered, but its runner was never recorded: to the caller it was not started, and starting again is safe.
        documents = [{"state": "absent"} if each["state"] == "unstarted" else each for each in documents]
        return dict(zip(attempt_ids, documents, strict=True))

    def _observation(self, attempt_id: str, document: Document) -> Observation:
        state = document["state"]
        sample = (document.get("sample") or {}) if state == "running" else {}
        loads = [
            card["utilization_percent"] for card in sample.get("accelerators", ()) if "utilization_percent" in card
        ]
        return Observation(
            attempt_id=attempt_id,
            state=state,
            node=self._node if state in {"starting", "running", "ended"} else "",
            started_at=_time(document.get("started_at")),
            ended_at=_time(document.get("ended_at")),
            end_reason=_end_reason(document) if state == "ended" else None,
            exit_code=document.get("exit_code"),
            message=document.get("message", ""),
            last_log_at=_time(document.get("last_log_at")),
            checkpoints=tuple(FoundCheckpoint(**each) for each in document.get("checkpoints", ())),
            cpu_percent=sample.get("cpu_percent"),
            memory_bytes=sample.get("memory_bytes"),
            accelerator_percent=sum(loads) / len(loads) if loads else None,
        )

    def _is_over(self, attempt_id: str) -> bool:
        folder = self._folder(attempt_id)
        try:
            document = read_state(folder)
        except ValueError:  # damaged: `observe` judges it
            document = None
        return (folder / "released").exists() or (document is not None and document["state"] == "ended")

    # ---- the rest

    def _stop(self, attempt_id: str, reason: EndReason) -> None:
        folder = self._folder(attempt_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "stop").exists() and not self._is_over(attempt_id):
            write_atomically(folder / "stop", json.dumps({"reason": reason.value}).encode())

    def _log(self, attempt_id: str, offset: int, limit_bytes: int) -> LogChunk:
        folder = self._folder(attempt_id)
        over = self._is_over(attempt_id)  # asked before reading: what is over writes no more
        try:
            with (folder / "log").open("rb") as file:
                file.seek(offset)
                data = file.read(limit_bytes)
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            data, size = b"", 0
        end = offset + len(data)
        return LogChunk(data=data, offset=offset, next_offset=end, complete=over and end >= size)

    def _samples(self, attempt_id: str, limit: int) -> list[Sample]:
        found: list[Sample] = []
        for name in ("samples.jsonl", "samples.jsonl.1"):
            path = self._folder(attempt_id) / name
            missing = limit - len(found)
            if missing > 0 and path.exists():
                # Only whole lines: the runner may be writing the last one.
                lines = path.read_bytes().split(b"\n")[:-1][-missing:]
                found = [_sample(json.loads(line)) for line in lines] + found
        return found

    def _known(self) -> list[str]:
        if not self._attempts.exists():
            return []
        folders = (entry for entry in self._attempts.iterdir() if entry.is_dir())
        return sorted(folder.name for folder in folders if not (folder / "released").exists())

    def _release(self, attempt_id: str) -> None:
        folder = self._folder(attempt_id)
        if not folder.exists():
            return
        state = self._look([attempt_id])[attempt_id]["state"]
        if state not in {"ended", "absent"}:
            raise Conflict(f"{attempt_id} is {state}; it can't be released", "stop it first")
        if state == "absent":
            self._stop(attempt_id, EndReason.STOPPED_BY_USER)  # a start still under way must find it called off
        self._reservations.give_back(attempt_id)
        write_atomically(folder / "released", b"")
        self._ended.pop(attempt_id, None)

    def _write_beat(self) -> None:
        self._beat_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            number = int(self._beat_file.read_text())
        except (FileNotFoundError, ValueError):
            number = 0
        write_atomically(self._beat_file, str(number + 1).encode(), durable=False)

    def _folder(self, attempt_id: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", attempt_id):
            raise InvalidInput(f"{attempt_id!r} is no attempt id", "letters, digits, dots and dashes")
        return self._attempts / attempt_id


def is_held(lock: Path) -> bool:
    """Whether a living runner holds the lock. Asking takes it for an instant, which runners wait out."""
    try:
        descriptor = os.open(lock, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def read_state(folder: Path) -> Document | None:
    """The runner's state document; None before there is one. ValueError when it is damaged."""
    try:
        document = json.loads((folder / "state.json").read_bytes())
    except FileNotFoundError:
        return None
    if not isinstance(document, dict) or not isinstance(document.get("state"), str):
        raise ValueError("state.json is no state document")
    return document


def accelerator_name(reported: str, memory_bytes: int) -> str:
    """The catalogue's way to name a card: `NVIDIA A100-SXM4-80GB`, 81,920 MiB → `a100-80gb`.

    Source: product names as nvmlDeviceGetName reports them; sizes as the vendor's data sheets print them, in GB.
    """
    words = re.split(r"[\s-]+", reported.removeprefix("NVIDIA ").removeprefix("Tesla "))
    model = next((word for word in words if re.fullmatch(r"[A-Z]{1,3}\d+\w*", word)), words[0])
    sizes = (8, 12, 16, 20, 24, 32, 40, 48, 64, 80, 94, 96, 141, 180, 192, 288)
    size = min(sizes, key=lambda gigabytes: abs(gigabytes - memory_bytes / 2**30))
    return f"{model.lower()}-{size}gb"


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _end_reason(document: Mapping[str, Any]) -> EndReason:
    try:
        return EndReason(document["end_reason"])
    except ValueError:  # a stop file written by a newer control plane: stopped, whatever the words
        return EndReason.STOPPED_BY_USER


def _sample(document: Mapping[str, Any]) -> Sample:
    return Sample(
        at=datetime.fromisoformat(document["at"]),
        cpu_percent=document["cpu_percent"],
        memory_bytes=document["memory_bytes"],
        disk_free_bytes=document["disk_free_bytes"],
        accelerators=tuple(document["accelerators"]),
    )
