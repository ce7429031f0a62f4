"""A node's desk: takes orders for attempts, says how they are, hands out their logs. The folder is the only truth.

`<root>/attempts/<attempt id>/` holds order.json, state.json, log, samples.jsonl, lock and work/. A held lock means a
living runner; a free lock under an unended state means a dead one: then what it left is ended, and that is recorded.
On the control plane's own machine the executor calls this class; on other nodes serve.py does, at the end of a wire.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from groundplane.runner.data_desk import DataDesk
from groundplane.runner.endings import FULL_DISK, look
from groundplane.runner.files import is_held, open_inside, read_document, read_state, write_bytes, write_document
from groundplane.runner.keeping import CheckpointDesk
from groundplane.runner.processes import FIND_PACKAGES, boot_id
from groundplane.runner.refusal import No as No
from groundplane.runner.reservations import Reservations, Short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from groundplane.runner.files import Document

RUNNER_ENV = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
START_PATIENCE_S = 60.0
FACTS_AGE_S, SPOT_AGE_S = 60.0, 600.0
ENDED_KEPT = 10_000
CHUNK_LIMIT_BYTES = 4 * 2**20


class Desk:
    """What one control plane may ask of one node. `root` is its folder there.

    `reservations` is the folder in which all control planes of this account agree on accelerators.
    """

    def __init__(
        self, root: Path, *, pool: str, nvml_library: str, reservations: Path, program: Sequence[str] = ()
    ) -> None:
        self._root, self._attempts = root, root / "attempts"
        self._beat_file = root / "run" / f"beat-{pool}"
        self._base = reservations
        self._reservations = Reservations(reservations)
        self._program = tuple(program) or (sys.executable, "-I", "-S", str(Path(__file__).resolve().parent))
        self._nvml_library = nvml_library
        self._ended: dict[str, Document] = {}
        self._facts: tuple[float, Document] | None = None
        self._spot: tuple[str, float, str] | None = None
        self._operations: dict[str, Callable[..., Document]] = {
            each.__name__: each
            for each in (
                *(
                    self.hello,
                    self.ping,
                    self.facts,
                    self.reserve,
                    self.start,
                    self.look,
                    self.stop,
                    self.log,
                    self.samples,
                ),
                *(self.attempts, self.release, self.withdraw, self.beat, self.free_port, self.files, self.read),
                *(self.spot, self.run, self.preflight, self.circumstances, self.python),
                *CheckpointDesk(self._run_folder, self._folder).operations,
                *DataDesk(self._root, self._folder).operations,
            )
        }

    def handle(self, operation: str, arguments: Document) -> Document:
        """Does one operation by its name. Raises No."""
        if operation not in self._operations:
            raise No("invalid-input", f"the desk knows no {operation!r}", "the node runs another version")
        try:
            return self._operations[operation](**arguments)
        except OSError as error:
            full = error.errno in FULL_DISK
            hint = "free disk space on the node" if full else f"check the rights of {self._root}"
            raise No("unavailable", f"{operation} failed: {error}", hint) from error

    # ---- what the node is

    def hello(self) -> Document:
        """Who answers: enough to adopt what runs here, and to see a restart or a wrong clock."""
        have = self.attempts()["attempts"]
        reserved = [each for each in have if not self._was_started(self._attempts / each)]
        return {
            "node": os.uname().nodename,
            "boot_id": boot_id(),
            "time_s": time.time(),
            "attempts": have,
            "reserved": reserved,
        }

    def ping(self) -> Document:
        return {}

    def facts(self, fresh: bool = False) -> Document:
        """runner.node.facts, at most a minute old, with free disk and reservations as they are now."""
        if fresh or self._facts is None or time.monotonic() - self._facts[0] > FACTS_AGE_S:
            self._attempts.mkdir(mode=0o700, parents=True, exist_ok=True)
            # In a process of its own: a driver that hangs must not hang the desk.
            self._facts = (time.monotonic(), json.loads(self._call("--facts", str(self._attempts), self._nvml_library)))
        disk = os.statvfs(self._attempts)
        held = {index: owner for index, owner in self._reservations.read().items() if not self._owner_is_over(owner)}
        cards = [
            {**card, "held_by": held.get(card["index"], "").rpartition("/")[2]}
            for card in self._facts[1]["accelerators"]
        ]
        return {**self._facts[1], "accelerators": cards, "disk_free_bytes": disk.f_bavail * disk.f_frsize}

    def free_port(self) -> Document:
        """A port nobody listens on now. Another process may take it first: then the attempt retries."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return {"port": probe.getsockname()[1]}

    # ---- orders

    def reserve(self, order: Document) -> Document:
        """Writes the order down with its accelerators; the runner is not started. Twice is the same as once.

        Until it is started a newer order takes the place of an older one: a gang may have moved in between.
        """
        folder = self._folder(order["attempt_id"])
        if (folder / "released").exists():
            return {"released": True}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "order.json").exists() or not self._was_started(folder):
            indexes: tuple[int, ...] = ()
            if order["accelerators"]:
                present = [card["index"] for card in self.facts()["accelerators"]]
                wanted = order.get("wanted_indexes") or ()
                try:
                    indexes = self._reservations.take(
                        self._owner(folder),
                        order["accelerators"],
                        present=present,
                        wanted=wanted,
                        is_over=self._owner_is_over,
                    )
                except Short as short:
                    hint = "it starts when another attempt gives some back"
                    raise No("unavailable", f"{folder.name}: {short}", hint) from None
            write_document(
                folder / "order.json",
                {**self._placed(order), "accelerator_indexes": indexes, "beat_path": str(self._beat_file)},
            )
        return {"released": False}

    def start(self, order: Document) -> Document:
        """Reserves and starts the attempt, once."""
        if not self.reserve(order)["released"]:
            folder = self._folder(order["attempt_id"])
            if not self._was_started(folder):
                self._call("--detach", str(folder))
        return {}

    def withdraw(self, attempt_id: str) -> Document:
        """Forgets a reservation that was never started, so that it can be made elsewhere. Conflict when it was."""
        folder = self._folder(attempt_id)
        if self._was_started(folder):
            raise No("conflict", f"{attempt_id} was started; it can't be withdrawn", "stop it")
        self._reservations.give_back(self._owner(folder))
        (folder / "order.json").unlink(missing_ok=True)
        return {}

    def stop(self, attempt_id: str, reason: str, message: str = "") -> Document:
        """Leaves a stop file. It works before the start too: an attempt started later then ends at once, unrun."""
        folder = self._folder(attempt_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (folder / "stop").exists() and not self._is_over(folder):
            write_document(folder / "stop", {"reason": reason, "message": message})
        return {}

    def release(self, attempt_id: str) -> Document:
        """Conflict while the attempt is at work: its accelerators are not free yet."""
        folder = self._folder(attempt_id)
        if not folder.exists():
            return {}
        state = self.look([attempt_id])["documents"][0]["state"]
        if state not in {"ended", "absent"}:
            raise No("conflict", f"{attempt_id} is {state}; it can't be released", "stop it first")
        if state == "absent":
            self.stop(attempt_id, "stopped-by-user")  # a start still under way must find it called off
        self._reservations.give_back(self._owner(folder))
        write_bytes(folder / "released", b"")
        self._ended.pop(attempt_id, None)
        return {}

    def beat(self) -> Document:
        self._beat_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            number = int(self._beat_file.read_text())
        except (FileNotFoundError, ValueError):
            number = 0
        write_bytes(self._beat_file, str(number + 1).encode(), durable=False)
        return {}

    # ---- questions

    def attempts(self) -> Document:
        if not self._attempts.exists():
            return {"attempts": []}
        folders = (entry for entry in os.scandir(self._attempts) if entry.is_dir())
        return {"attempts": sorted(f.name for f in folders if not os.path.exists(f"{f.path}/released"))}  # noqa: PTH110 (thousands of them)

    def look(self, attempt_ids: Sequence[str]) -> Document:
        """One state document per id, in order. What can't be read is unknown; what a dead runner left is ended."""
        documents = []
        for attempt_id in attempt_ids:
            try:
                document = self._glance(attempt_id) or self._look_closely(attempt_id)
            except (OSError, ValueError) as error:
                document = {"state": "unknown", "message": f"its state can't be read: {error}"}
            documents.append(document)
        return {"documents": documents}

    def log(self, attempt_id: str, offset: int, limit_bytes: int) -> Document:
        folder = self._folder(attempt_id)
        over = self._is_over(folder)  # asked before reading: what is over writes no more
        try:
            with (folder / "log").open("rb") as file:
                file.seek(offset)
                data = file.read(min(limit_bytes, CHUNK_LIMIT_BYTES))
                size = os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            data, size = b"", 0
        return {"data": base64.b64encode(data).decode(), "complete": over and offset + len(data) >= size}

    def samples(self, attempt_id: str, limit: int) -> Document:
        found: list[Document] = []
        for name in ("samples.jsonl", "samples.jsonl.1"):
            path = self._folder(attempt_id) / name
            missing = limit - len(found)
            if missing > 0 and path.exists():
                # Only whole lines: the runner may be writing the last one.
                lines = path.read_bytes().split(b"\n")[:-1][-missing:]
                found = [json.loads(line) for line in lines] + found
        return {"samples": found}

    def circumstances(self, attempt_id: str) -> Document:
        """What was seen around the attempt before its command started; nothing when nobody looked."""
        return {"circumstances": read_document(self._folder(attempt_id) / "circumstances.json") or {}}

    def files(self, run_id: str, root: str) -> Document:
        """The run's output files, under `root` or on this node: paths, sizes and times; links are left out."""
        folder_of_run = Path(root) if root else self._run_folder(run_id) / "output"
        found: list[Document] = []
        if folder_of_run.is_symlink():
            return {"files": found}
        for folder, _, names in os.walk(folder_of_run):
            for name in names:
                path = Path(folder) / name
                if not path.is_symlink() and path.is_file():
                    about = path.stat()
                    relative = str(path.relative_to(folder_of_run))
                    found.append({"path": relative, "bytes": about.st_size, "modified_ns": about.st_mtime_ns})
        return {"files": sorted(found, key=lambda each: str(each["path"]))}

    def read(self, run_id: str, root: str, path: str, offset: int) -> Document:
        """A piece of an output file."""
        inside = Path(root) if root else self._run_folder(run_id) / "output"
        try:
            file = open_inside(inside.parent, f"{inside.name}/{path}")
        except ValueError:
            hint = "use a relative path"
            raise No("invalid-input", f"{path!r} leaves the run's output folder", hint) from None
        with os.fdopen(file, "rb") as opened:
            opened.seek(offset)
            return {"data": base64.b64encode(opened.read(CHUNK_LIMIT_BYTES)).decode()}

    def spot(self, url: str) -> Document:
        """Why no cloud's notice would be seen here; "" when one would. Kept for ten minutes: machines rarely move."""
        if self._spot is None or self._spot[0] != url or time.monotonic() - self._spot[1] > SPOT_AGE_S:
            from groundplane.runner.spot import SpotWatch  # noqa: PLC0415 (only spot jobs pay for it)

            watch = SpotWatch(url)
            watch.ask()
            self._spot = (url, time.monotonic(), watch.trouble)
        return {"trouble": self._spot[2]}

    def run(self, arguments: Sequence[str], patience_s: float = START_PATIENCE_S) -> Document:
        """What the runner program prints for these arguments, such as a preflight's."""
        return {"said": self._call(*arguments, patience_s=patience_s)}

    def preflight(self, order: Document) -> Document:
        """What the order's checks find here, in a process of its own; nothing is started."""
        budget_s = float((order.get("preflight") or {}).get("budget_s") or 0)
        said = self._call("--preflight", str(self._root), json.dumps(order), patience_s=budget_s + START_PATIENCE_S)
        return {"results": json.loads(said)}

    def python(self, packages: Sequence[str]) -> Document:
        """The Python that runs here, which of these packages it has, and where this desk's folder lies."""
        found = (
            self._said([sys.executable, "-c", FIND_PACKAGES, *packages], START_PATIENCE_S).split() if packages else []
        )
        return {"version": sys.version_info[:2], "packages": found, "root": str(self._root)}

    def folder_of(self, attempt_id: str) -> Path:
        """Where an attempt's files lie on this node."""
        return self._folder(attempt_id)

    # ---- inside

    def _placed(self, order: Document) -> Document:
        """The order with its run's folders: where it says, or on this node when it leaves them to us."""
        run = self._run_folder(order["run_id"])
        folders = {"checkpoint_dir": str(run / "checkpoints"), "output_dir": str(run / "output")}
        return {**order, **{name: order[name] or here for name, here in folders.items()}}

    def _run_folder(self, run_id: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", run_id):
            raise No("invalid-input", f"{run_id!r} is no run id", "letters, digits, dots and dashes")
        return self._root / "runs" / run_id

    def _folder(self, attempt_id: str) -> Path:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", attempt_id):
            raise No("invalid-input", f"{attempt_id!r} is no attempt id", "letters, digits, dots and dashes")
        return self._attempts / attempt_id

    def _owner(self, folder: Path) -> str:
        return os.path.relpath(folder, self._base)

    def _owner_is_over(self, owner: str) -> bool:
        folder = self._base / owner if "/" in owner else self._attempts / owner
        return not folder.exists() or self._is_over(folder)

    def _was_started(self, folder: Path) -> bool:
        return (folder / "state.json").exists() or is_held(folder / "lock")

    def _is_over(self, folder: Path) -> bool:
        try:
            document = read_state(folder)
        except ValueError:  # damaged: a look judges it
            document = None
        return (folder / "released").exists() or (document is not None and document["state"] == "ended")

    def _glance(self, attempt_id: str) -> Document | None:
        """The state as its files say it, cheaply; None when no runner is alive to vouch for it."""
        if known := self._ended.get(attempt_id):  # asked once: another thread may forget it meanwhile
            return known
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

    def _look_closely(self, attempt_id: str) -> Document:
        document = look(self._folder(attempt_id))
        # Ordered, but its runner was never recorded: to the caller it was not started, and starting again is safe.
        return {"state": "absent"} if document["state"] == "unstarted" else document

    def _call(self, *arguments: str, patience_s: float = START_PATIENCE_S) -> str:
        return self._said([*self._program, *arguments], patience_s)

    def _said(self, command: Sequence[str], patience_s: float) -> str:
        kept = {name: value for name, value in os.environ.items() if name in RUNNER_ENV or name.startswith("LC_")}
        try:
            done = subprocess.run(
                command,
                env=kept,
                cwd="/",
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=patience_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise No(
                "unavailable", f"the runner did not answer within {patience_s:g} s", "is the machine overloaded?"
            ) from None
        if done.returncode != 0:
            lines = done.stderr.decode(errors="replace").strip().splitlines() or ["it said nothing"]
            message = f"the runner exited with status {done.returncode}: {lines[-1]}"
            raise No("unavailable", message, f"run {command[0]} by hand")
        return done.stdout.decode()
