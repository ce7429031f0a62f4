"""The part of the SDK that knows datasets."""

from __future__ import annotations

from collections.abc import Sequence

from groundplane.client.transport import Transport, made, part
from groundplane.domain.dataset import (
    DatasetCheck,
    DatasetDiff,
    DatasetFacts,
    DatasetVersion,
    Erasure,
    Lineage,
    Profile,
    parse_dataset_ref,
)
from groundplane.domain.model import ManifestFile
from groundplane.wire.datasets import DatasetRequest, EraseRequest
from groundplane.wire.models import Certificate

_PATIENCE_S = 3600


class DatasetCalls(Transport):
    def datasets(self, *, name: str = "", project: str = "") -> list[DatasetVersion]:
        """By name, newest first."""
        return self._get("/v1/datasets", list[DatasetVersion], params={"name": name, "project": project})

    def dataset(self, ref: str) -> DatasetVersion:
        return self._get(_version(ref), DatasetVersion)

    def register_dataset(
        self,
        name: str,
        *,
        project: str,
        facts: DatasetFacts,
        location: str = "",
        artifact_id: str = "",
        files: Sequence[ManifestFile] = (),
        profile: Profile | None = None,
    ) -> DatasetVersion:
        """A pointer with the digests of its files, or an artifact as managed copy. Raises Refusal with what lacks."""
        body = made(
            DatasetRequest,
            name=name,
            project=project,
            facts=facts,
            location=location,
            artifact_id=artifact_id,
            files=list(files),
            profile=profile or Profile(),
        )
        return self._call("POST", "/v1/datasets", DatasetVersion, body=body, timeout_s=_PATIENCE_S)

    def diff_datasets(self, before: str, after: str) -> DatasetDiff:
        return self._get("/v1/datasets/diff", DatasetDiff, params={"before": before, "after": after})

    def lineage(self, ref: str) -> Lineage:
        return self._get(f"{_version(ref)}/lineage", Lineage)

    def verify_dataset(self, ref: str) -> DatasetCheck:
        """Of a managed copy; InvalidInput for what lies elsewhere."""
        return self._call("POST", f"{_version(ref)}/verify", DatasetCheck, timeout_s=_PATIENCE_S)

    def erase_dataset(self, ref: str, *, records: str, reason: str, replacement: str = "") -> Erasure:
        body = made(EraseRequest, records=records, reason=reason, replacement=replacement)
        return self._call("POST", f"{_version(ref)}/erase", Erasure, body=body, timeout_s=_PATIENCE_S)

    def erasures(self, ref: str = "") -> list[Erasure]:
        return self._get("/v1/datasets/erasures", list[Erasure], params={"ref": ref})

    def erasure_proof(self, erasure_id: str) -> Certificate:
        """Raises IntegrityFailure when its signature does not hold."""
        return self._get(f"/v1/datasets/erasures/{part(erasure_id)}", Certificate)


def _version(ref: str) -> str:
    name, number = parse_dataset_ref(ref)
    return f"/v1/datasets/{part(name)}/versions/{number or 'latest'}"
