"""What must hold on the very node before a job may start there: checks side by side, each with a bounded time.

Every check gives a document: `name`, `status` (ok, failed, skipped), `need`, `have`, `hint`, `fault` (whose a failure
is: `node` or `run`), `figures` (numbers by name, units last) and `took_s`. A skipped check says why in `have`.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from groundplane.runner import preflight_accelerators, preflight_storage
from groundplane.runner.files import now_text, parse_time, read_document, write_document
from groundplane.runner.isolation import NotPossible, Sandbox, image_present
from groundplane.runner.processes import FIND_PACKAGES, boot_id
from groundplane.runner.verdicts import failed, ok, skipped

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from groundplane.runner.files import Document

    Check = Callable[[Document, Path], Document]

BUDGET_S = 15.0
KEPT_S = 600.0
MOST_SKEW_S = 60.0


class Inspection:
    """One round of checks in processes of their own: a file system that hangs may keep those, never the runner."""

    def __init__(self, order: Document, folder: Path, become: Callable[[], object]) -> None:
        asked = order.get("preflight") or {}
        self.results: dict[str, Document] = {}
        self._began, self._budget_s = time.monotonic(), float(asked.get("budget_s") or BUDGET_S)
        self._deadline = self._began + self._budget_s
        self._kept = _Kept(folder.parents[1] / "run" / "preflight.json", float(asked.get("kept_s", KEPT_S)))
        of_node = {name: check for name, check in _of_node().items() if not asked.get("only") or name in asked["only"]}
        as_job = {} if asked.get("only") else dict(_as_job(order))
        self.results.update(self._kept.good(of_node))
        groups = [({n: c for n, c in of_node.items() if n not in self.results}, lambda: None), (as_job, become)]
        self._names = [name for group, _ in groups for name in group]
        self._order = [*of_node, *as_job]
        self._of_node = set(of_node)
        self.pids: list[int] = []
        self._pipe, self._text = -1, b""
        self._start(groups, order, folder)

    def _start(
        self, groups: list[tuple[dict[str, Check], Callable[[], object]]], order: Document, folder: Path
    ) -> None:
        self._pipe, end = os.pipe()
        for checks, become in groups:
            pid = os.fork() if checks else 0
            if checks and pid == 0:
                os.close(self._pipe)
                _carry_out(checks, order, folder, become, end)
            self.pids += [pid] if checks else []
        os.close(end)

    def collect(self, wait_s: float) -> bool:
        """Takes in what is ready, for at most that long; True when all is known or the time is up."""
        left_s = self._deadline - time.monotonic()
        while len(self.results) < len(self._order) and left_s > 0:
            if not select.select([self._pipe], [], [], min(wait_s, left_s))[0]:
                return time.monotonic() >= self._deadline
            said = os.read(self._pipe, 2**16)
            if not said:
                return True
            *lines, self._text = (self._text + said).split(b"\n")
            for line in lines:
                found = json.loads(line)
                self.results[found["name"]] = found
            left_s = self._deadline - time.monotonic()
        return True

    def close(self) -> list[Document]:
        """Ends what still runs; every check's result, in their order. What gave none has failed."""
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        os.close(self._pipe)
        took_s = time.monotonic() - self._began
        for name in self._names:
            if name not in self.results:
                silent = took_s >= self._budget_s
                have = f"no answer within {self._budget_s:g} s" if silent else "the check itself died"
                hint = "a mount or a server that hangs? look at it on the node by hand"
                lost = failed("an answer", have, hint, fault="node" if name in self._of_node else "run")
                self.results[name] = {"name": name, **lost, "took_s": round(took_s, 3)}
        self._kept.keep([self.results[name] for name in self._order if name in self._of_node])
        return [self.results[name] for name in self._order]


def verdict(results: list[Document]) -> tuple[str, str]:
    """(end reason, message) of the failed checks; ("", "") when nothing stands in the way. A node's fault comes first:
    another node may do."""
    wrong = [each for each in results if each["status"] == "failed"]
    wrong.sort(key=lambda each: each["fault"] != "node")
    if not wrong:
        return "", ""
    first, more = wrong[0], len(wrong) - 1
    text = f"preflight {first['name']}: need {first['need']}, have {first['have']}; {first['hint']}"
    reason = "node-unfit" if first["fault"] == "node" else "preflight-failed"
    return reason, text + (f" (and {more} more)" if more else "")


def inspect(root: Path, order: Document) -> list[Document]:
    """The checks by themselves, without an attempt: in a folder of their own under `root`, which is removed again."""
    folder = root / "preflight" / f"{order['attempt_id']}-{os.getpid()}"
    (folder / "work").mkdir(mode=0o700, parents=True)
    share = order.get("checkpoint_share") or ""
    order["checkpoint_dir"] = (
        f"{share}/.ground-preflight-{os.urandom(8).hex()}" if share else str(folder / "checkpoints")
    )
    order["output_dir"] = str(folder / "output")
    sandbox = Sandbox(folder, order, order["workdir"] or str(folder / "work"))
    try:
        for wanted in (order["checkpoint_dir"], order["output_dir"]):
            with contextlib.suppress(OSError):  # the check says it in better words
                Path(wanted).mkdir()
        sandbox.prepare()
        order.update(look_at_staged=True, secrets_dir=sandbox.secrets_dir)
        inspection = Inspection(order, folder, sandbox.enter)
        while not inspection.collect(1.0):
            pass
        return inspection.close()
    except NotPossible as error:
        found = failed(
            f"isolation {sandbox.mode}", str(error), "choose another isolation, or another pool", fault="node"
        )
        return [{"name": "isolation", **found, "took_s": 0.0}]
    finally:
        sandbox.close()
        with contextlib.suppress(OSError):
            Path(order["checkpoint_dir"]).rmdir()
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------- which checks there are


def _of_node() -> dict[str, Check]:
    return {
        "driver": preflight_accelerators.driver,
        "accelerators": preflight_accelerators.accelerators,
        "topology": preflight_accelerators.topology,
        "compute": preflight_accelerators.compute,
        "disk": preflight_storage.disk,
        "clock": clock,
        "image": image,
    }


def _as_job(order: Document) -> Iterator[tuple[str, Check]]:
    """What the job itself will do, tried with its rights."""
    yield "checkpoints", preflight_storage.checkpoints
    if order.get("look_at_staged"):  # an attempt stages them right after: it need not look twice
        from groundplane.runner import staging  # noqa: PLC0415 (its libraries cost every job's start 30 ms)

        for source in (order.get("staging") or {}).get("sources", ()):
            yield f"data:{source['name']}", lambda order, _, source=source: staging.look(source, order)
    asked = order.get("preflight") or {}
    if asked.get("packages"):
        yield "engine", engine
    sources, peer = asked.get("data") or (), asked.get("peer")
    for source in sources:
        if not source.get("url"):
            yield f"data:{source['name']}", lambda order, _, source=source: preflight_storage.data(source, order)
    if not peer and not any(source.get("url") for source in sources):
        return
    # Its libraries cost every job's start 20 ms: most jobs read files.
    from groundplane.runner import preflight_network  # noqa: PLC0415

    for source in sources:
        if source.get("url"):
            yield f"dns:{source['name']}", lambda order, _, source=source: preflight_network.dns(source, order)
            yield f"tls:{source['name']}", lambda order, _, source=source: preflight_network.tls(source, order)
            yield f"data:{source['name']}", lambda order, _, source=source: preflight_network.data(source, order)
    if peer:
        yield "network", preflight_network.bandwidth


def clock(order: Document, _: Path) -> Document:
    """This node's clock against the control plane's: tokens, certificates and end dates hang on it."""
    sent = (order.get("preflight") or {}).get("sent_at")
    if not sent:
        return skipped("the order does not say when it was sent")
    late_s = time.time() - parse_time(sent)
    need = f"within {MOST_SKEW_S:g} s of the control plane"
    if -MOST_SKEW_S <= late_s <= MOST_SKEW_S:
        return ok(need, f"{late_s:+.1f} s, the way of the order included", skew_s=late_s)
    hint = "set the node's clock: timedatectl set-ntp true, or chronyc makestep"
    return failed(need, f"{late_s:+.0f} s", hint, fault="node", skew_s=late_s)


def image(order: Document, _: Path) -> Document:
    asked = order.get("isolation") or {}
    if asked.get("mode") != "podman":
        return skipped("no container is asked for")
    name = asked.get("image") or ""
    if image_present(name):
        return ok(f"image {name}", "it is on the node")
    hint = f"on the node: podman pull {name}, or podman import"
    return failed(f"image {name}", "it is not on the node", hint, fault="run")


def engine(order: Document, _: Path) -> Document:
    """What a model server beside the job imports, looked for as the job's own Python finds it."""
    wanted = order["preflight"]["packages"]
    found = subprocess.run(
        [sys.executable, "-c", FIND_PACKAGES, *wanted],
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    ).stdout.split()
    missing = [name for name in wanted if name.encode() not in found]
    need = f"{', '.join(wanted)} in {sys.executable}"
    if not missing:
        return ok(need, "all of them")
    hint = f"on the node: {sys.executable} -m pip install 'groundplane[engine]'; or ask an endpoint instead"
    return failed(need, f"no {', '.join(missing)}", hint, fault="run")


# ---------------------------------------------------------------- how they are carried out


def _carry_out(
    checks: dict[str, Check], order: Document, folder: Path, become: Callable[[], object], pipe: int
) -> None:
    """In the forked child: every check in a thread; one line each as they end. Never returns."""
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        become()
        said = threading.Lock()

        def carry(name: str, check: Check) -> None:
            began = time.monotonic()
            try:
                found = check(order, folder)
            except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:  # said, not silent
                found = failed("an answer", f"the check broke: {error!r}", "report it", fault="run")
            line = json.dumps({"name": name, **found, "took_s": round(time.monotonic() - began, 3)})
            with said:
                os.write(pipe, line.encode() + b"\n")

        threads = [threading.Thread(target=carry, args=pair, daemon=True) for pair in checks.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except OSError as error:
        found = failed("the job's rights", f"{error}", "see the isolation of this spec", fault="run")
        for name in checks:
            os.write(pipe, json.dumps({"name": name, **found, "took_s": 0.0}).encode() + b"\n")
    finally:
        os._exit(0)


class _Kept:
    """Good results of a node's own checks, kept for a while: a queue of small jobs must not measure before each."""

    SLOW = ("compute",)

    def __init__(self, path: Path, kept_s: float) -> None:
        self._path, self._kept_s = path, kept_s

    def good(self, checks: dict[str, Check]) -> dict[str, Document]:
        try:
            document = read_document(self._path) or {}
        except (OSError, ValueError):  # damaged: measured anew
            document = {}
        if document.get("boot_id") != boot_id():
            return {}
        now = time.time()
        return {
            name: found["result"]
            for name, found in document.get("results", {}).items()
            if name in checks and 0 <= now - parse_time(found["at"]) < self._kept_s
        }

    def keep(self, results: list[Document]) -> None:
        fresh = {each["name"]: {"at": now_text(), "result": each} for each in results if each["name"] in self.SLOW}
        fresh = {name: found for name, found in fresh.items() if found["result"]["status"] == "ok"}
        if not fresh or self._kept_s <= 0:
            return
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_document(self._path, {"boot_id": boot_id(), "results": fresh}, durable=False)
