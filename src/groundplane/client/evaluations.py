"""The part of the SDK that knows evaluations and batches."""

from __future__ import annotations

from groundplane.client.transport import Transport, part
from groundplane.domain.batch import Batch, BatchProgress
from groundplane.domain.evaluation import Evaluation, EvaluationComparison, Item


class EvaluationCalls(Transport):
    def evaluations(
        self, *, project: str = "", name: str = "", version: str = "", limit: int = 100
    ) -> list[Evaluation]:
        """Newest first."""
        asked = {"project": project, "name": name, "version": version, "limit": limit}
        return self._get("/v1/evaluations", list[Evaluation], params=asked)

    def evaluation(self, evaluation_id: str) -> Evaluation:
        """NotFound while its run goes on."""
        return self._get(f"/v1/evaluations/{part(evaluation_id)}", Evaluation)

    def evaluation_items(
        self, evaluation_id: str, *, metric: str = "", limit: int = 100, offset: int = 0
    ) -> list[Item]:
        """The worst first."""
        asked = {"metric": metric, "limit": limit, "offset": offset}
        return self._get(f"/v1/evaluations/{part(evaluation_id)}/items", list[Item], params=asked)

    def compare_evaluations(self, before: str, after: str) -> EvaluationComparison:
        asked = {"before": before, "after": after}
        return self._get("/v1/evaluations/compare", EvaluationComparison, params=asked)

    def batches(self, *, project: str = "", limit: int = 100) -> list[Batch]:
        """Those that ended well, newest first."""
        return self._get("/v1/batches", list[Batch], params={"project": project, "limit": limit})

    def batch(self, run_id: str) -> BatchProgress:
        """How far it is, and what became of it."""
        return self._get(f"/v1/batches/{part(run_id)}", BatchProgress)
