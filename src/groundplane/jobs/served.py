"""A model served beside the job, for as long as the job runs."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from groundplane.errors import Unavailable
from groundplane.jobs.files import say
from groundplane.jobs.order import STAGED_MODEL, ProgramOrder

READY_PATIENCE_S = 600.0
_STOP_PATIENCE_S = 10.0


@contextmanager
def served(order: ProgramOrder) -> Iterator[str]:
    """Its base URL once it answered a prompt; empty when the order has nothing to serve. Unavailable when it ends."""
    if not order.serve:
        yield ""
        return
    port = _free_port()
    with tempfile.TemporaryDirectory() as cache:
        here = {"{port}": str(port), "{python}": sys.executable, "{cache}": cache}
        here["{model}"] = os.environ.get(STAGED_MODEL, "")
        argv = list(order.serve)
        for mark, value in here.items():
            argv = [part.replace(mark, value) for part in argv]
        yield from _running(argv, port, order.target)


def _running(argv: list[str], port: int, model: str) -> Iterator[str]:
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
    try:
        _wait(process, port, model)
        say(f"{model} answers on port {port}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(_STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, model: str) -> None:
    body = json.dumps({"model": model, "prompt": "Hello", "max_tokens": 1, "temperature": 0})
    until = time.monotonic() + READY_PATIENCE_S
    said = "nothing"
    while time.monotonic() < until:
        if process.poll() is not None:
            raise Unavailable(f"the model server ended with {process.returncode}", "its own words are above")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            said = response.read(2000).decode("utf-8", "replace")
            if response.status == 200:
                return
        except (OSError, http.client.HTTPException) as error:
            said = str(error)
        finally:
            connection.close()
        time.sleep(0.2)
    sys.stderr.write(said + "\n")
    raise Unavailable(f"the model server did not answer within {READY_PATIENCE_S:.0f} s", "its last words are above")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
