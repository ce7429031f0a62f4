"""The program beside a job, as nodes start it.

python runner ATTEMPT_DIR            run the attempt in the foreground
python runner --detach ATTEMPT_DIR   the same in a session of its own; returns once the attempt is on record
python runner --look ATTEMPT_DIR...  one JSON line per attempt; ends what a dead runner left behind
python runner --facts FOLDER [NVML]  one JSON line: what this node has
python runner --preflight ROOT ORDER one JSON line: what an order's checks find here; nothing is started
python runner --attach ATTEMPT_DIR   carry bytes between standard input and output and a dev environment
python runner --serve ROOT POOL NVML RESERVATIONS   the node's desk: a JSON line asks, a JSON line answers
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# Started by its folder's path, on nodes that have nothing else of the package. Last, so that the standard library wins.
sys.path[:] = [*sys.path[1:], str(Path(__file__).resolve().parents[2])]

from groundplane.runner.dev import bridge
from groundplane.runner.endings import FULL_DISK, bury, look, write_ended
from groundplane.runner.files import now_text, read_document, take_lock, write_document
from groundplane.runner.life import Runner
from groundplane.runner.node import facts
from groundplane.runner.preflight import inspect
from groundplane.runner.processes import boot_id

TYPE_CHECKING = False  # as type checkers know it; importing typing would add a tenth to every job's start
if TYPE_CHECKING:
    from collections.abc import Callable


def attempt(folder: Path, on_record: Callable[[], object]) -> None:
    """Runs the attempt unless another runner has it or had it; calls `on_record` once that is decided and durable."""
    lock = take_lock(folder, 1.0)
    if lock is None:
        on_record()
        return
    state = read_document(folder / "state.json")
    if state is not None:
        if state["state"] != "ended":
            bury(folder, state)  # started before: running it again could double what it did
        on_record()
        return
    state = {"attempt_id": folder.name, "state": "starting", "runner_pid": os.getpid(), "boot_id": boot_id()}
    state.update(folder=str(folder), checkpoints=[], heartbeat_at=now_text())
    write_document(folder / "state.json", state)
    on_record()
    try:
        runner = Runner(folder, read_document(folder / "order.json") or {}, state)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        full = isinstance(error, OSError) and error.errno in FULL_DISK
        state.update(
            end_reason="disk-full" if full else "start-failed", message=f"its order can't be obeyed: {error!r}"
        )
        state.update(state="ended", ended_at=now_text())
        write_ended(folder, state)
        return
    runner.run()


def detach(folder: Path) -> int:
    """Forks a runner into a session of its own; returns 0 once the attempt is on record, 1 when it could not be."""
    ready, ready_end = os.pipe()
    if os.fork():
        os.close(ready_end)
        return 0 if os.read(ready, 1) else 1
    os.setsid()
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(0, 1)

    def on_record() -> None:
        os.dup2(os.open(folder / "runner.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), 2)
        os.write(ready_end, b"1")
        os.close(ready_end)

    attempt(folder, on_record)
    return 0


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--facts"] and len(arguments) in (2, 3):
        sys.stdout.write(json.dumps(facts(Path(arguments[1]), *arguments[2:])) + "\n")
    elif arguments[:1] == ["--look"]:
        for folder in arguments[1:]:
            try:
                found = look(Path(folder).resolve())
            except (OSError, ValueError) as error:  # unreadable, or processes that don't die: not known, so not claimed
                found = {"state": "unknown", "message": str(error)}
            sys.stdout.write(json.dumps(found) + "\n")
    elif arguments[:1] == ["--preflight"] and len(arguments) == 3:
        sys.stdout.write(json.dumps(inspect(Path(arguments[1]).resolve(), json.loads(arguments[2]))) + "\n")
    elif arguments[:1] == ["--serve"] and len(arguments) == 5:
        from groundplane.runner.desk import Desk  # noqa: PLC0415 (a job's start need not pay for it)
        from groundplane.runner.serve import serve  # noqa: PLC0415

        root, pool, nvml_library, reservations = arguments[1:]
        desk = Desk(Path(root), pool=pool, nvml_library=nvml_library, reservations=Path(reservations))
        serve(desk, 0, 1)
    elif arguments[:1] == ["--attach"] and len(arguments) == 2:
        return bridge(Path(arguments[1]), 0, 1)
    elif arguments[:1] == ["--detach"] and len(arguments) == 2:
        return detach(Path(arguments[1]).resolve())
    elif len(arguments) == 1 and not arguments[0].startswith("-"):
        attempt(Path(arguments[0]).resolve(), lambda: None)
    else:
        sys.stderr.write(f"error: can't read {arguments}\nhint: {(__doc__ or '').strip()}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
