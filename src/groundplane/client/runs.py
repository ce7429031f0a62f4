"""The part of the SDK that follows runs: where they are, why, what they write, and stopping them."""

from __future__ import annotations

import time
from collections.abc import Iterator

from groundplane.client.transport import Transport, made, part
from groundplane.domain.order import Sample
from groundplane.domain.run import Run
from groundplane.errors import Unavailable
from groundplane.wire import ReasonRequest
from groundplane.wire.runs import LogPiece, RunDetail, RunExplanation

LOG_PIECE_BYTES = 1 << 18
_FOLLOW_PAUSE_FIRST_S, _FOLLOW_PAUSE_MAX_S = 0.1, 1.0


class RunCalls(Transport):
    def runs(self, *, project: str | None = None, status: str | None = None, limit: int = 100) -> list[Run]:
        """Newest first. `status` is a run's status, or `active`."""
        return self._get("/v1/runs", list[Run], params={"project": project, "status": status, "limit": limit})

    def run(self, run_id: str) -> RunDetail:
        return self._get(f"/v1/runs/{part(run_id)}", RunDetail)

    def explain(self, run_id: str) -> RunExplanation:
        return self._get(f"/v1/runs/{part(run_id)}/explain", RunExplanation)

    def stop_run(self, run_id: str, reason: str = "") -> Run:
        return self._call("POST", f"/v1/runs/{part(run_id)}/stop", Run, body=made(ReasonRequest, reason=reason))

    def samples(self, run_id: str, limit: int = 120) -> list[Sample]:
        """The newest measurements beside the job, oldest first."""
        return self._get(f"/v1/runs/{part(run_id)}/samples", list[Sample], params={"limit": limit})

    def log(
        self,
        run_id: str,
        *,
        offset: int = 0,
        limit_bytes: int = LOG_PIECE_BYTES,
        attempt: int | None = None,
        rank: int = 0,
    ) -> LogPiece:
        """A piece of one attempt's log, the newest one's by default: raw bytes, as the job wrote them.

        `rank` is the member of a run on several nodes. NotFound when it has none of that number.
        """
        params = {"offset": offset, "limit": limit_bytes, "attempt": attempt, "rank": rank}
        answer = self._send("GET", f"/v1/runs/{part(run_id)}/log", params=params)
        return LogPiece(
            data=answer.content,
            attempt=int(answer.headers["X-Ground-Attempt"]),
            next_offset=int(answer.headers["X-Ground-Next-Offset"]),
            complete=answer.headers["X-Ground-Complete"] == "true",
        )

    def read_log(self, run_id: str, attempt: int | None = None, *, rank: int = 0) -> Iterator[LogPiece]:
        """What one attempt has written so far, piece by piece."""
        offset = 0
        while True:
            piece = self.log(run_id, offset=offset, attempt=attempt, rank=rank)
            if not piece.data:
                return
            yield piece
            offset, attempt = piece.next_offset, piece.attempt

    def follow_log(self, run_id: str, *, attempt: int | None = None, patience_s: float = 120.0) -> Iterator[LogPiece]:
        """Every byte once, from the given attempt (the newest) through later ones, until the run is over.

        Goes on from where it was when the control plane restarts; Unavailable after `patience_s` without an answer.
        """
        offset, pause_s = 0, _FOLLOW_PAUSE_FIRST_S
        silent_since: float | None = None
        waited = False
        while True:
            try:
                piece = self.log(run_id, offset=offset, attempt=attempt)
                over = piece.complete and self._is_last(run_id, piece.attempt)
                silent_since = None
            except Unavailable:
                silent_since = silent_since or time.monotonic()
                if time.monotonic() - silent_since > patience_s:
                    raise
                time.sleep(_FOLLOW_PAUSE_MAX_S)
                continue
            if attempt is None and offset == 0 and waited and piece.attempt > 1:
                attempt = 1  # Followed since before the first attempt: none is skipped.
                continue
            waited = waited or piece.attempt == 0
            if piece.data:
                yield piece
                offset, pause_s = piece.next_offset, _FOLLOW_PAUSE_FIRST_S
            if piece.attempt:
                attempt = piece.attempt
            if over:
                return
            if piece.complete and piece.attempt and self._has_attempt(run_id, piece.attempt + 1):
                attempt, offset = piece.attempt + 1, 0
            elif not piece.data:
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, _FOLLOW_PAUSE_MAX_S)

    def wait(self, run_id: str, *, timeout_s: float | None = None) -> Run:
        """The run once it is over. Unavailable when that takes longer than `timeout_s`."""
        began, pause_s = time.monotonic(), _FOLLOW_PAUSE_FIRST_S
        while not (run := self.run(run_id).run).status.is_over:
            if timeout_s is not None and time.monotonic() - began > timeout_s:
                raise Unavailable(f"{run_id} is still {run.status} after {timeout_s:.0f} s", f"ground explain {run_id}")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _FOLLOW_PAUSE_MAX_S)
        return run

    def _is_last(self, run_id: str, attempt: int) -> bool:
        run = self.run(run_id).run
        return run.status.is_over and run.attempt <= attempt

    def _has_attempt(self, run_id: str, number: int) -> bool:
        return self.run(run_id).run.attempt >= number
