"""Peers of the artifact store, each in an environment of its own: what stores or cuts the same file, and how long.

A peer that is a Python package is called by the Python of its environment and tells its own seconds, without the start
of the interpreter; a peer that is a program is timed from outside. What is absent says so, and is left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# Into a folder, as its own tests store. The file that is timed is the last one; the one before it is there already.
_XET = """
import sys, time
import hf_xet
for path in sys.argv[3:] + sys.argv[1:2]:
    start = time.perf_counter()
    hf_xet.upload_files([path], "local://" + sys.argv[2], None, None, None, None)
    taken = time.perf_counter() - start
print(taken)
"""
_MLFLOW = """
import sys, time, pathlib
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
target = pathlib.Path(sys.argv[2])
target.mkdir(parents=True, exist_ok=True)
start = time.perf_counter()
LocalArtifactRepository(str(target)).log_artifact(sys.argv[1])
print(time.perf_counter() - start)
"""
# To a registry of Distribution's on this machine, as it comes: a server is what an OCI client pushes to.
_ORAS = """
import pathlib, socket, subprocess, sys, time
import oras.client
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    address = "127.0.0.1:%d" % free.getsockname()[1]
config = pathlib.Path(sys.argv[2], "config.yml")
storage = f"storage:\\n  filesystem:\\n    rootdirectory: {sys.argv[2]}/registry\\n"
config.write_text(f"version: 0.1\\n{storage}http:\\n  addr: {address}\\n")
server = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=-3, stderr=-3)
try:
    while True:
        try:
            socket.create_connection(tuple(address.split(":")), 1).close()
            break
        except ConnectionRefusedError:
            time.sleep(0.05)
    client = oras.client.OrasClient(insecure=True)
    start = time.perf_counter()
    client.push(target=f"{address}/x:1", files=[sys.argv[1]], disable_path_validation=True)
    taken = time.perf_counter() - start
finally:
    server.kill()
    server.wait()
print(taken)
"""


@dataclass(frozen=True)
class Peer:
    """`script` is run by a Python; without one `words` are given to a program, {source} and {target} filled in.

    `server` is a program that its script starts. `onto`: its script takes a further file, which it stores first: what
    is timed is what a variant of it costs.
    """

    name: str
    does: str
    script: str = ""
    module: str = ""
    server: str = ""
    first: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    onto: bool = False


PEERS = {
    peer.name: peer
    for peer in (
        Peer(name="xet", does="cuts, compresses and stores in a folder; computes the whole SHA-256 before it returns",
             script=_XET, module="hf_xet", onto=True),
        Peer(name="xet-bare", does="is xet without the SHA-256: what its clients do for buckets, not for models",
             script=_XET.replace("None)", "None, skip_sha256=True)"), module="hf_xet", onto=True),
        Peer(name="mlflow", does="copies, without a digest or a flush", script=_MLFLOW, module="mlflow"),
        Peer(name="oras", does="hashes and sends to a registry on this machine", script=_ORAS, module="oras.client",
             server="docker-registry"),
        Peer(name="dvc", does="hashes by MD5 and copies into its cache", first=("init", "--no-scm", "-q"),
             words=("add", "-q", "{copy}")),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Found:
    """A peer that is here, and the Python or the program that calls it."""

    peer: Peer
    program: str

    def store(self, source: Path, target: Path, onto: Path | None = None) -> float:
        """Seconds for one file into a fresh folder, which goes away again; `onto` is stored there before."""
        target.mkdir()
        try:
            if self.peer.script:
                before = [str(onto)] if onto is not None else []
                command = [self.program, "-c", self.peer.script, str(source), str(target), *before]
                # What it keeps beside its store must go away with it.
                env = os.environ | {"HOME": str(target), "HF_HOME": str(target / "home")}
                done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
                return float(done.stdout.splitlines()[-1])
            copy = target / source.name
            if any("{copy}" in word for word in self.peer.words):
                shutil.copyfile(source, copy)
            if self.peer.first:
                subprocess.run([self.program, *self.peer.first], cwd=target, check=True, capture_output=True)
            words = [word.format(source=source, target=target, copy=copy.name) for word in self.peer.words]
            start = time.perf_counter()
            subprocess.run([self.program, *words], cwd=target, check=True, capture_output=True)
            return time.perf_counter() - start
        finally:
            shutil.rmtree(target)


def find(asked: Sequence[str]) -> tuple[list[Found], list[str]]:
    """(peers that are here, a sentence for each that is not). `asked` are NAME or NAME=PROGRAM."""
    found, absent = [], []
    for each in asked:
        name, _, program = each.partition("=")
        peer = PEERS.get(name)
        if peer is None:
            absent.append(f"{name} is no peer; known are {', '.join(PEERS)}")
            continue
        program = program or (sys.executable if peer.script else shutil.which(name) or "")
        why = _missing(peer, program)
        if why:
            absent.append(f"{name} is left out: {why}")
        else:
            found.append(Found(peer, program))
    return found, absent


def _missing(peer: Peer, program: str) -> str:
    if not program or shutil.which(program) is None:
        return f"there is no program {program or peer.name}; name it with --peer {peer.name}=PROGRAM"
    if peer.server and shutil.which(peer.server) is None:
        return f"there is no {peer.server}, which it sends to"
    if peer.script:
        tried = subprocess.run([program, "-c", f"import {peer.module}"], capture_output=True, check=False)
        if tried.returncode != 0:
            return f"{program} can't import {peer.module}; make an environment that can, and name its Python"
    return ""
