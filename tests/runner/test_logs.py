"""Any output is kept as it came, and no output costs the node its memory or its disk."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from groundplane.domain.run import EndReason


async def test_bytes_that_are_no_text_arrive_unchanged(node: Any) -> None:
    await node.python("import os; os.write(1, bytes(range(256)) * 3 + b'\\xff\\xfe no newline')")
    await node.ended()
    assert node.log() == bytes(range(256)) * 3 + b"\xff\xfe no newline"
    chunk = await node.executor.log("att-1", 128, 10)
    assert chunk.data == bytes(range(128, 138))


async def test_stdout_and_stderr_come_in_order_and_before_the_line_ends(node: Any) -> None:
    await node.start("printf one; printf two >&2; printf three; sleep 30")
    assert await node.said(b"onetwothree")


async def test_a_long_line_is_cut_and_says_by_how_much(node_with: Any) -> None:
    node = node_with(log_line_limit_bytes=100)
    await node.python("print('a' * 100); print('b' * 101); print('c' * 5000); print('d'); print('e' * 300, end='')")
    await node.ended()
    lines = node.log().split(b"\n")
    assert lines[0] == b"a" * 100
    assert lines[1] == b"b" * 100 + b"[... cut 1 bytes]"
    assert lines[2] == b"c" * 100 + b"[... cut 4900 bytes]"
    assert lines[3] == b"d"
    assert lines[4] == b"e" * 100 + b"[... cut 200 bytes]"


async def test_progress_bars_are_lines_too(node_with: Any) -> None:
    node = node_with(log_line_limit_bytes=50)
    await node.python("for i in range(100): print(f'{i:3d}% ' + '#' * 30, end='\\r', flush=True)")
    await node.ended()
    assert b"cut" not in node.log()
    assert node.log().count(b"\r") == 100


async def test_a_log_over_its_limit_keeps_its_head_and_its_last_words(node_with: Any) -> None:
    node = node_with(log_limit_bytes=10_000)
    await node.python("for i in range(20_000): print(f'line {i}')\nprint('Traceback: the very last words')")
    await node.ended()
    log = node.log()
    assert log.startswith(b"line 0\nline 1\n")
    assert log.endswith(b"Traceback: the very last words\n")
    assert b"the log reached its limit of 10000 bytes" in log
    assert len(log) < 10_000 + 17_000


async def test_a_line_of_one_gigabyte_costs_neither_memory_nor_disk(node: Any) -> None:
    await node.python(
        "import os\nblock = b'x' * 2**20\nfor _ in range(1024):\n    data = block\n"
        "    while data: data = data[os.write(1, data):]\nos.write(1, b'\\nafter\\n')"
    )
    began, peak_kib = time.monotonic(), 0
    while (await node.see()).state != "ended":
        assert time.monotonic() - began < 600, "too slow"
        status = Path(f"/proc/{node.state().get('runner_pid', 0)}/status")
        try:
            lines = status.read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        peak_kib = max([peak_kib, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
    seen = await node.see()
    log = node.log()
    sys.stdout.write(
        f"1 GiB line: {time.monotonic() - began:.1f} s, runner peak {peak_kib / 1024:.1f} MiB, log {len(log)} B\n"
    )
    assert seen.end_reason is EndReason.SUCCEEDED
    assert 0 < peak_kib < 60 * 1024
    assert log == b"x" * 65_536 + b"[... cut %d bytes]\nafter\n" % (2**30 - 65_536)


async def test_a_flood_of_short_lines_does_not_delay_a_stop(node_with: Any) -> None:
    node = node_with(log_limit_bytes=100_000)
    await node.start("yes ground", stop_grace_s=60)
    await node.said(b"ground\n")
    await node.executor.stop("att-1", EndReason.STOPPED_BY_USER)
    seen = await node.ended()
    assert (seen.end_reason, seen.exit_code) == (EndReason.STOPPED_BY_USER, 143), "it heard SIGTERM, not SIGKILL"
