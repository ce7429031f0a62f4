"""Asks a hosted provider for its list of models: whether its address, its certificate and its key are good."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from ipaddress import ip_address

import httpx

from groundplane.domain.serving.provider import Provider, ProviderCheck, ProviderKind, address_fault

_ANSWER_MAX_BYTES = 4 * 2**20


class HttpProviderProbe:
    """ports.providers.ProviderProbe. Certificates are verified, redirects not followed, and no proxy is asked."""

    def __init__(self, *, timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s

    async def probe(self, provider: Provider, key: str) -> ProviderCheck:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                status, models = await self._ask(provider, key)
        except TimeoutError:
            return ProviderCheck(ok=False, said=f"no answer within {self._timeout_s:g} s")
        except (httpx.HTTPError, OSError, ValueError) as error:
            return ProviderCheck(ok=False, said=_reason(error))
        took_ms = int((time.monotonic() - began) * 1000)
        said = {200: "ok", 401: "the key is refused", 403: "the key is refused", 404: "no list of models here"}
        return ProviderCheck(
            ok=status == 200, said=said.get(status, f"answered {status}"), status=status, models=models, took_ms=took_ms
        )

    async def _ask(self, provider: Provider, key: str) -> tuple[int, int | None]:
        """Status and how many models. The address that was judged is the one that is connected to."""
        url = httpx.URL(_models_url(provider))
        port = url.port or (443 if url.scheme == "https" else 80)
        found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
        addresses = [ip_address(str(one[4][0])) for one in found]
        faults = [address_fault(address, private=provider.private) for address in addresses]
        if "" not in faults:
            raise PermissionError(faults[0] if faults else "the name has no address")
        address = addresses[faults.index("")]
        # SSL_CERT_FILE counts here as it does in the gateway.
        async with httpx.AsyncClient(
            verify=ssl.create_default_context(), trust_env=False, timeout=self._timeout_s
        ) as client:
            request = client.build_request(
                "GET",
                url.copy_with(host=str(address)),
                headers={"host": url.netloc.decode(), "accept-encoding": "identity", **_headers(provider, key)},
                extensions={"sni_hostname": url.host},
            )
            answer = await client.send(request, stream=True)
            body = b""
            async for piece in answer.aiter_bytes():
                body += piece
                if len(body) > _ANSWER_MAX_BYTES:
                    raise ValueError("the answer does not end")
            await answer.aclose()
        if answer.status_code != 200:
            return answer.status_code, None
        listed = httpx.Response(200, content=body).json()
        data = listed.get("data") if isinstance(listed, dict) else None
        return 200, len(data) if isinstance(data, list) else None


def _models_url(provider: Provider) -> str:
    base = provider.base_url.rstrip("/")
    if provider.kind is ProviderKind.AZURE:
        return f"{base}/openai/models?api-version={provider.api_version}"
    if provider.kind is ProviderKind.ANTHROPIC:
        return base.removesuffix("/v1") + "/v1/models"
    return base + ("/models" if httpx.URL(base).path not in {"", "/"} else "/v1/models")


def _headers(provider: Provider, key: str) -> dict[str, str]:
    if provider.kind is ProviderKind.AZURE:
        return {"api-key": key}
    if provider.kind is ProviderKind.ANTHROPIC:
        return {"x-api-key": key, "anthropic-version": "2023-06-01"}
    return {"authorization": f"Bearer {key}"}


def _reason(error: Exception) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message}"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, PermissionError):
        return str(error)
    if isinstance(error, socket.gaierror):
        return "its name is not known"
    return f"can't be reached: {type(error).__name__}"
