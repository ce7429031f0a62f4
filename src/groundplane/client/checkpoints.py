"""The part of the SDK that handles checkpoints: listed, pulled from their copies, laid on nodes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from groundplane.client.transport import Transport, made, part
from groundplane.domain.checkpoints import ResumeProof
from groundplane.domain.model import ManifestFile
from groundplane.domain.run import Checkpoint
from groundplane.errors import IntegrityFailure, InvalidInput, NotFound
from groundplane.wire.runs import ProofRequest, RestoreRequest

PIECE_BYTES = 8 * 2**20
_PATIENCE_S = 24 * 3600.0


class CheckpointCalls(Transport):
    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """Complete and verified ones, by step."""
        return self._get(f"/v1/runs/{part(run_id)}/checkpoints", list[Checkpoint])

    def pull_checkpoint(
        self, run_id: str, target: Path, *, step: int | None = None, progress: Callable[[int], object] = lambda _: None
    ) -> Checkpoint:
        """Writes a copy's files into `target`, the newest copy's unless a step is named; each is verified.

        What an earlier pull left there is gone on with. NotFound without a copy, IntegrityFailure for wrong bytes.
        """
        copies = [each for each in self.checkpoints(run_id) if each.files and step in (None, each.step)]
        if not copies:
            what = f"step {step} of {run_id}" if step is not None else run_id
            raise NotFound(f"there is no copy of {what}", f"ground checkpoints list {run_id} shows which there are")
        for file in copies[-1].files:
            self._pull(run_id, copies[-1].step, file, target, progress)
        return copies[-1]

    def restore_checkpoint(self, run_id: str, node: str, *, pool: str = "", step: int | None = None) -> Checkpoint:
        """Lays a copy on a node, and returns when it is there."""
        body = made(RestoreRequest, pool=pool, node=node, step=step)
        return self._call("POST", f"/v1/runs/{part(run_id)}/restore", Checkpoint, body=body, timeout_s=_PATIENCE_S)

    def prove_resume(self, spec: str = "", *, run_id: str = "") -> ResumeProof:
        """Begins a proof for a spec, or for the spec of a run. Returns at once; `resume_proofs` tells how it ended."""
        return self._call("POST", "/v1/resume-proofs", ResumeProof, body=made(ProofRequest, spec=spec, run_id=run_id))

    def resume_proofs(self, run_id: str | None = None) -> list[ResumeProof]:
        """Newest first; of the run that proves, or all."""
        return self._get("/v1/resume-proofs", list[ResumeProof], params={"run_id": run_id})

    def stacks(self, run_id: str, *, attempt: int | None = None, rank: int = 0) -> str:
        """What a member's processes were doing when it was taken for hung; empty when it never was."""
        return self._send("GET", f"/v1/runs/{part(run_id)}/stacks", params={"attempt": attempt, "rank": rank}).text

    def _pull(
        self, run_id: str, step: int, file: ManifestFile, target: Path, progress: Callable[[int], object]
    ) -> None:
        place = target / file.path
        if not place.resolve().is_relative_to(target.resolve()):
            raise InvalidInput(f"{file.path!r} leaves {target}", "the checkpoint names a file outside its folder")
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{place.name}.part")
        digest = hashlib.sha256()
        if place.exists() and place.stat().st_size == file.size_bytes:
            place.rename(draft)  # verified again below, and put back
        with draft.open("a+b") as out:
            out.seek(0)
            while piece := out.read(PIECE_BYTES):
                digest.update(piece)
            progress(out.tell())
            while out.tell() < file.size_bytes:
                params = {"path": file.path, "offset": out.tell(), "limit": PIECE_BYTES}
                answer = self._send("GET", f"/v1/runs/{part(run_id)}/checkpoints/{step}/content", params=params)
                digest.update(answer.content)
                out.write(answer.content)
                progress(len(answer.content))
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != file.sha256:
            draft.unlink()
            raise IntegrityFailure(f"{file.path} arrived with other bytes than were kept", "pull it again")
        draft.replace(place)
