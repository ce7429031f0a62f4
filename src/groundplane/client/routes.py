"""The part of the SDK about hosted providers and routes."""

from __future__ import annotations

from groundplane.client.transport import Transport, part
from groundplane.domain.serving.prompt_lint import PromptFinding
from groundplane.domain.serving.provider import Provider, ProviderCheck, RouteRule
from groundplane.domain.serving.queueing import QueueStanding
from groundplane.wire.routes import ProviderRequest, RouteRequest


class RouteCalls(Transport):
    def providers(self, project: str | None = None) -> list[Provider]:
        """Hosted providers, without their keys."""
        return self._call("GET", "/v1/providers", list[Provider], params={"project": project})

    def set_provider(self, request: ProviderRequest) -> Provider:
        """Adds or changes a provider; without a key the one given before stays."""
        return self._call("PUT", "/v1/providers", Provider, body=request)

    def test_provider(self, project: str, name: str) -> ProviderCheck:
        """Whether its address, certificate and key are good."""
        return self._call("POST", f"/v1/providers/{part(project)}/{part(name)}/test", ProviderCheck)

    def remove_provider(self, project: str, name: str, reason: str = "") -> Provider:
        """Forgets a provider and its key. Conflict while a route leads there."""
        path = f"/v1/providers/{part(project)}/{part(name)}"
        return self._call("DELETE", path, Provider, params={"reason": reason})

    def routes(self, project: str | None = None) -> list[RouteRule]:
        """Routes that were set; an endpoint without one is reached by its own name."""
        return self._call("GET", "/v1/routes", list[RouteRule], params={"project": project})

    def queue_standing(self, project: str | None = None) -> QueueStanding:
        """What waits at the gateways."""
        return self._call("GET", "/v1/routes/queue", QueueStanding, params={"project": project})

    def prompt_findings(self, project: str | None = None) -> list[PromptFinding]:
        """Prompts in an order that providers' caches can't use."""
        return self._call("GET", "/v1/routes/lint", list[PromptFinding], params={"project": project})

    def set_route(self, request: RouteRequest) -> RouteRule:
        """Sets or changes where a model name leads."""
        return self._call("PUT", "/v1/routes", RouteRule, body=request)

    def remove_route(self, project: str, model: str, reason: str = "") -> RouteRule:
        """Takes a route away."""
        params = {"project": project, "model": model, "reason": reason}
        return self._call("DELETE", "/v1/routes", RouteRule, params=params)
