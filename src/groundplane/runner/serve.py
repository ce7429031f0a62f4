"""The desk at the end of a wire: one JSON line asks, one JSON line answers, in any order.

It lives as long as its connection: it ends when its input does, or when nobody has asked anything for a while, so that
a cut network leaves no process behind. What it started lives on.
"""

from __future__ import annotations

import json
import os
import select
import threading

from groundplane.runner.desk import Desk, No

TYPE_CHECKING = False
if TYPE_CHECKING:
    from groundplane.runner.files import Document

SILENCE_LIMIT_S = 60.0
AT_ONCE = 16


def serve(desk: Desk, source: int, sink: int) -> None:
    """Answers until the input ends. `{"id": 1, "do": "look", "with": {…}}` → `{"id": 1, "done": {…}}` or `"no"`."""
    writing = threading.Lock()
    free = threading.BoundedSemaphore(AT_ONCE)

    def answer(line: bytes) -> None:
        asked: Document = {}
        try:
            asked = json.loads(line)
            reply: Document = {"id": asked["id"], "done": desk.handle(asked["do"], asked.get("with") or {})}
        except No as no:
            reply = {"id": asked["id"], "no": {"kind": no.kind, "message": no.message, "hint": no.hint}}
        except Exception as error:  # the boundary of this process: the asker must hear of it
            message = f"{asked.get('do')} failed on the node: {error!r}"
            reply = {"id": asked.get("id"), "no": {"kind": "internal", "message": message, "hint": ""}}
        finally:
            free.release()
        data = json.dumps(reply).encode() + b"\n"
        with writing:
            while data:
                try:
                    data = data[os.write(sink, data) :]
                except OSError:  # nobody reads any more: the input ends too
                    return

    buffer = b""
    while select.select([source], [], [], SILENCE_LIMIT_S)[0]:
        chunk = os.read(source, 2**18)
        if not chunk:
            return
        *lines, buffer = (buffer + chunk).split(b"\n")
        for line in lines:
            free.acquire()
            threading.Thread(target=answer, args=(line,), daemon=True).start()
