"""The part of the SDK that knows models and what serves them: versions, certificates, endpoints."""

from __future__ import annotations

from typing import Any

from groundplane.client.transport import Transport, made, part
from groundplane.domain.endpoint import Endpoint
from groundplane.domain.model import ModelVersion
from groundplane.domain.oci import Package
from groundplane.domain.provenance.certificate import Facts
from groundplane.domain.scanning.report import ScanReport
from groundplane.wire import ReasonRequest
from groundplane.wire.models import (
    Certificate,
    ModelCheck,
    ModelSignature,
    PublicKeys,
    RegisterRequest,
    ScanRequest,
    SigningKey,
)


class ModelCalls(Transport):
    # ------------------------------------------------------------ models

    def models(self) -> list[ModelVersion]:
        """Every version, by name, newest first."""
        return self._get("/v1/models", list[ModelVersion])

    def model(self, name: str) -> list[ModelVersion]:
        """One model's versions, newest first."""
        return self._get(f"/v1/models/{part(name)}", list[ModelVersion])

    def packages(self, project: str, name: str, *, limit: int = 100, below: int = 0) -> list[Package]:
        """OCI manifests of a model's newest `limit` versions, or of those before `below`; newest first, with tags."""
        params = {"limit": limit, "below": below}
        return self._get(f"/v1/packages/{part(project)}/{part(name)}", list[Package], params=params)

    def model_version(self, name: str, number: int | str) -> ModelVersion:
        """By number, by alias, or `latest`."""
        return self._get(f"/v1/models/{part(name)}/versions/{part(str(number))}", ModelVersion)

    def certificate(self, name: str, number: int) -> Certificate:
        """Raises IntegrityFailure when its signature does not hold."""
        return self._get(f"/v1/models/{part(name)}/versions/{number}/certificate", Certificate)

    def bom(self, name: str, number: int | str) -> dict[str, Any]:
        """A CycloneDX 1.6 machine-learning bill of materials."""
        return self._get(f"/v1/models/{part(name)}/versions/{part(str(number))}/bom", dict[str, Any])

    def model_signature(self, name: str, number: int | str) -> ModelSignature:
        """The files' signature for the OpenSSF model-signing tool."""
        return self._get(f"/v1/models/{part(name)}/versions/{part(str(number))}/signature", ModelSignature)

    def public_keys(self) -> PublicKeys:
        """The public keys whose certificates count."""
        return self._get("/v1/models/-/public-keys", PublicKeys)

    def rotate_signing_key(self, reason: str) -> SigningKey:
        """Certificates are signed by a new key from now on; what was signed before stays true. Raises Forbidden."""
        return self._call(
            "POST", "/v1/models/-/signing-key/rotate", SigningKey, body=made(ReasonRequest, reason=reason)
        )

    def verify_model(self, name: str, number: int) -> ModelCheck:
        """Re-hashes every file: takes as long as reading them does."""
        path = f"/v1/models/{part(name)}/versions/{number}/verify"
        return self._call("POST", path, ModelCheck, timeout_s=3600)

    def scan_model(
        self, name: str, number: int | str, *, base_licenses: dict[str, str], memory_bytes: int | None = None
    ) -> ScanReport:
        """Looks at every stored file anew; what is found is kept as evidence of the version."""
        path = f"/v1/models/{part(name)}/versions/{part(str(number))}/scan"
        body = ScanRequest(base_licenses=base_licenses, memory_bytes=memory_bytes)
        return self._call("POST", path, ScanReport, body=body, timeout_s=3600)

    def register_model(self, name: str, *, upload_id: str, project: str, facts: Facts) -> ModelVersion:
        """Turns an upload into a signed version. Raises InvalidInput or Refusal with what is missing."""
        body = RegisterRequest(upload_id=upload_id, project=project, facts=facts)
        return self._call("POST", f"/v1/models/{part(name)}/versions", ModelVersion, body=body, timeout_s=3600)

    # ------------------------------------------------------------ endpoints

    def endpoints(self, project: str | None = None) -> list[Endpoint]:
        return self._get("/v1/endpoints", list[Endpoint], params={"project": project})

    def endpoint(self, name: str) -> Endpoint:
        return self._get(f"/v1/endpoints/{part(name)}", Endpoint)

    def stop_endpoint(self, name: str, reason: str = "") -> Endpoint:
        return self._call("POST", f"/v1/endpoints/{part(name)}/stop", Endpoint, body=made(ReasonRequest, reason=reason))
