"""The part of the SDK that knows experiments and tracked runs. Scripts log with an MLflow client of their own."""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.client.transport import Transport, part
from groundplane.domain.tracking.views import Comparison, ExperimentView, Series, TrackedView


class TrackingCalls(Transport):
    def experiments(self) -> list[ExperimentView]:
        """Newest first."""
        return self._get("/v1/experiments", list[ExperimentView])

    def tracked_runs(
        self, experiment: str, *, filter: str = "", order: Sequence[str] = (), limit: int = 100
    ) -> list[TrackedView]:
        """Of an experiment by id or name. InvalidInput for a filter that can't be read."""
        params = {"filter": filter, "order": list(order), "limit": limit}
        return self._get(f"/v1/experiments/{part(experiment)}/runs", list[TrackedView], params=params)

    def tracked_run(self, run_id: str) -> TrackedView:
        return self._get(f"/v1/tracked-runs/{part(run_id)}", TrackedView)

    def tracked_of_run(self, run_id: str) -> list[TrackedView]:
        """What a run's job has told, its own tracked run first."""
        return self._get(f"/v1/runs/{part(run_id)}/tracked", list[TrackedView])

    def metric_series(self, run_id: str, keys: Sequence[str] = (), *, limit: int = 1_000) -> list[Series]:
        params = {"key": list(keys), "limit": limit}
        return self._get(f"/v1/tracked-runs/{part(run_id)}/metrics", list[Series], params=params)

    def compare_tracked_runs(self, run_ids: Sequence[str]) -> Comparison:
        return self._get("/v1/tracked-runs/compare", Comparison, params={"run": list(run_ids)})
