"""How an attempt ends on record, with its runner alive or dead."""

from __future__ import annotations

import errno
import os
import time

from groundplane.runner.cgroups import remove_cgroup
from groundplane.runner.files import now_text, read_document, take_lock, write_document
from groundplane.runner.isolation import clear_away
from groundplane.runner.processes import boot_id, kill_leftovers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from groundplane.runner.files import Document

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def look(folder: Path) -> Document:
    """What is known of the attempt: its state document, `{"state": "absent"}`, or `{"state": "unstarted"}` when it was
    ordered and no runner has it. When its runner died, ends what is left of the job and records that, once."""
    if not (folder / "order.json").exists():
        return {"state": "absent"}
    lock = take_lock(folder, 0)
    if lock is None:
        return read_document(folder / "state.json") or {"state": "starting"}
    try:
        try:
            state = read_document(folder / "state.json")
        except ValueError:  # a power cut may leave it damaged; its runner is dead in any case
            state = {"attempt_id": folder.name, "state": "running", "checkpoints": []}
        if state is None:
            return {"state": "unstarted"}
        return state if state["state"] == "ended" else bury(folder, state)
    finally:
        os.close(lock)


def bury(folder: Path, state: Document) -> Document:
    """Ends an attempt whose runner is dead. The caller holds its lock."""
    killed = kill_leftovers(folder, state)
    clear_away(state)
    forget_secrets(folder)
    for cgroup in {*state.get("cgroups", {}).values(), state.get("cgroup", "")}:
        remove_cgroup(cgroup)
    rebooted = state.get("boot_id", boot_id()) != boot_id()
    state.update(
        state="ended",
        end_reason="node-lost" if rebooted else "runner-lost",
        ended_at=now_text() if killed else state.get("heartbeat_at", now_text()),
        message="the node restarted under the job"
        if rebooted
        else f"the runner died; {killed} leftover processes ended",
    )
    write_ended(folder, state)
    return state


def forget_secrets(folder: Path) -> None:
    """Takes them out of an order whose runner died before it did."""
    order = read_document(folder / "order.json") or {}
    if order.pop("secrets", None):
        write_document(folder / "order.json", order)


def write_ended(folder: Path, state: Document, patience_s: float = 10.0) -> None:
    """Writes the last state, on a full disk too: its room was set aside at the start."""
    (folder / "reserve").unlink(missing_ok=True)
    deadline = time.monotonic() + patience_s
    while True:
        try:
            return write_document(folder / "state.json", state)
        except OSError as error:
            if error.errno not in FULL_DISK or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
