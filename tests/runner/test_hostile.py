"""Jobs that mean harm: what they write where the runner, with more rights, reads and writes."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest

from groundplane.adapters.executors.observing import readable_observation
from groundplane.domain.run import EndReason
from groundplane.runner.checkpoints import Checkpoints
from groundplane.runner.files import open_inside
from groundplane.runner.keeping import Shelf
from groundplane.runner.processes import descendants

TRAPS = """
import hashlib, json, os
root = os.environ["GROUND_CHECKPOINT_DIR"]
EMPTY = hashlib.sha256(b"").hexdigest()
def manifest(name, text):
    os.makedirs(os.path.join(os.fsencode(root), os.fsencode(name)), exist_ok=True)
    with open(os.path.join(os.fsencode(root), os.fsencode(name), b"manifest.json"), "w") as file: file.write(text)
def listing(name, step, path="w.bin", sha256=EMPTY, size=0, metrics="{}"):
    manifest(name, '{"step": %s, "metrics": %s, "files": [{"path": %s, "sha256": "%s", "bytes": %d}]}'
             % (step, metrics, json.dumps(path), sha256, size))
os.makedirs(root + "/pipe"); os.mkfifo(root + "/pipe/manifest.json")
listing("pipe-inside", 1); os.mkfifo(root + "/pipe-inside/w.bin")
listing("endless", 2); os.symlink("/dev/zero", root + "/endless/w.bin")
listing("link", 3, sha256=hashlib.sha256(open("/etc/hostname", "rb").read()).hexdigest(),
        size=os.path.getsize("/etc/hostname")); os.symlink("/etc/hostname", root + "/link/w.bin")
listing("link-above", 4, path="etc/hostname", sha256=hashlib.sha256(open("/etc/hostname", "rb").read()).hexdigest(),
        size=os.path.getsize("/etc/hostname")); os.symlink("/etc", root + "/link-above/etc")
for name, step in (("huge-step", "9" * 4000), ("negative", "-1"), ("real", "1.5"), ("true", "true")):
    listing(name, step); open(root + f"/{name}/w.bin", "w").close()
manifest("deep", "[" * 200_000)
manifest("list", "[]"); manifest("text", '"x"'); manifest("null", '{"step": 1, "files": [null]}')
listing("surrogate", 5, path="\\ud800"); listing("nul", 6, path="a\\0b"); listing("long", 7, path="x" * 100_000)
listing("\\udcff", 8); open(os.fsencode(root) + b"/\\xff/w.bin", "w").close()
manifest("giant", ""); os.truncate(root + "/giant/manifest.json", 1 << 40)
os.makedirs(root + "/sub"); os.symlink("sub", root + "/latest")
odd = '{"loss": 0.5, "beyond": 1%s, "a\\\\u0000b": 1, "%s": 1, "\\\\ud800": 1}' % ("0" * 400, "n" * 300)
listing("good", 9, metrics=odd)
open(root + "/good/w.bin", "w").close()
"""


async def test_nothing_in_a_checkpoint_folder_misleads_or_holds_up_the_runner(node: Any) -> None:
    await node.python(TRAPS + "print('laid')\nimport time; time.sleep(1.5)")
    seen = await node.ended()
    assert (seen.end_reason, seen.message) == (EndReason.SUCCEEDED, "")
    assert [(found.step, found.metrics) for found in seen.checkpoints] == [(9, {"loss": 0.5})]
    await node.start("echo from=$GROUND_RESUME_FROM", "att-2")
    assert (await node.ended("att-2")).end_reason is EndReason.SUCCEEDED
    assert node.log("att-2").endswith(b"/good\n")


def test_hashing_a_file_without_an_end_ends_when_it_must(tmp_path: Path) -> None:
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "w.bin").touch()
    os.truncate(folder / "w.bin", 1 << 42)
    files = [{"path": "w.bin", "sha256": "0" * 64, "bytes": 1 << 42}]
    (folder / "manifest.json").write_text(json.dumps({"step": 1, "files": files}))
    asked = iter([False] * 10)
    assert Checkpoints(tmp_path, lambda: next(asked, True)).scan() == []


def test_a_checkpoint_that_is_brought_back_is_written_nowhere_else(tmp_path: Path) -> None:
    """The folder it goes to was the job's: it may have left links where the pieces come to lie."""
    outside, mine = tmp_path / "outside", tmp_path / "checkpoints"
    outside.mkdir()
    mine.mkdir()
    piece = base64.b64encode(b"weights").decode()
    (mine / ".step-1.part").symlink_to(outside)
    Shelf(mine).write("step-1", "w.bin", 0, piece)
    (mine / ".step-2.part").mkdir()
    (mine / ".step-2.part" / "sub").symlink_to(outside)
    (mine / ".step-2.part" / "w.bin").symlink_to(outside / "w.bin")
    for path in ("sub/w.bin", "w.bin"):
        with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
            Shelf(mine).write("step-2", path, 0, piece)
    with pytest.raises(ValueError, match="leaves"):
        Shelf(mine).write("step-2", "../../outside/w.bin", 0, piece)
    assert list(outside.iterdir()) == []
    assert (mine / ".step-1.part" / "w.bin").read_bytes() == b"weights"


@pytest.mark.parametrize("path", ["/etc/hostname", "../x", "", ".", "a/../../x"])
def test_a_path_that_leaves_its_folder_is_not_opened(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="leaves"):
        open_inside(tmp_path, path)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"state": "dancing"},
        {"state": "running", "checkpoints": [{"step": 10**30, "path": "p", "size_bytes": 1}]},
        {"state": "running", "checkpoints": [{"step": 1, "path": "\ud800", "size_bytes": 1}]},
        {"state": "running", "checkpoints": 7},
        {"state": "ended", "end_reason": "succeeded", "message": "a\0b"},
        {"state": "ended", "end_reason": ["x"]},
        {"state": "running", "sample": "none"},
        {"state": "running", "started_at": "yesterday"},
        {"state": ["running"]},
    ],
)
def test_a_state_that_a_job_made_up_is_unknown_and_hides_nobody_elses(document: dict[str, Any]) -> None:
    seen = readable_observation("att-1", "n1", document)
    assert seen.state == "unknown"
    assert "its state can't be read" in seen.message
    seen.message.encode()


async def test_a_job_that_damages_its_own_state_leaves_the_others_alone(node: Any) -> None:
    await node.python(
        "import os, time\nplace = os.environ['GROUND_ATTEMPT_DIR'] + '/state.json'\n"
        "while True:\n  open(place, 'w').write('{\"state\": \"dancing\"}')\n"
    )
    await node.start("sleep 60", "att-2")
    await node.until(lambda seen: "can't be read" in seen.message)
    seen = await node.executor.observe(["att-1", "att-2"])
    assert seen["att-2"].state in ("starting", "running")
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    assert (await node.ended()).end_reason is EndReason.STOPPED_BY_USER


async def test_last_words_that_are_no_text_are_still_words(node: Any) -> None:
    await node.start(r"printf 'bad \000 \377\376 No space left on device\n' >&2; exit 3")
    seen = await node.ended()
    assert seen.end_reason is EndReason.DISK_FULL
    assert "\0" not in seen.message
    seen.message.encode()


async def test_a_job_that_ends_by_a_signal_without_a_name_has_still_ended(node: Any) -> None:
    await node.python("import os; os.kill(os.getpid(), 41)")
    seen = await node.ended()
    assert (seen.end_reason, seen.exit_code) == (EndReason.KILLED, 169)
    assert seen.message == "signal 41 from outside ended it"


DAEMONS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for depth in range(3):
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        for name in list(os.environ): del os.environ[name]
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        for end in (0, 1, 2): os.dup2(null, end)
        if depth == 2:
            os.execve(sys.executable, ["[kworker/7:1]", "-I", "-S", "-c", "import signal, time\\n"
                      "for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\\ntime.sleep(600)"], {})
        for n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)
        time.sleep(600)
print("gone below", flush=True)
time.sleep(600)
"""


async def test_daemons_that_hide_their_mark_and_ignore_every_signal_end_with_the_job(node: Any, wait_for: Any) -> None:
    await node.python(DAEMONS, stop_grace_s=0.5)
    await node.said(b"gone below")
    runner = node.state()["runner_pid"]
    await wait_for(lambda: len(descendants(runner)) >= 4)
    pids = descendants(runner)
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    assert (await node.ended()).end_reason is EndReason.STOPPED_BY_USER
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []


@pytest.mark.needs("cgroups")
async def test_a_fork_bomb_stays_within_its_number_of_processes_and_ends(node: Any) -> None:
    await node.python(
        "import os, time\nprint('begun', flush=True)\n"
        "while True:\n  try: os.fork()\n  except OSError: time.sleep(0.01)\n",
        pids_limit=60,
        stop_grace_s=0.2,
    )
    await node.said(b"begun")
    runner = node.state()["runner_pid"]
    assert len(descendants(runner)) <= 60
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    assert (await node.ended()).end_reason is EndReason.STOPPED_BY_USER
    assert descendants(runner) == []
