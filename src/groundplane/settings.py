"""Every setting the operator may turn: name, type, default, meaning. Read once, passed down as values.

Each is an environment variable. docs/reference/settings.md is generated from this table.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from groundplane.domain.isolation import Isolation
from groundplane.domain.provenance.token_key import token_key
from groundplane.errors import InvalidInput
from groundplane.units import format_bytes, format_duration, format_usd, parse_bytes, parse_duration_s, parse_usd

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
GATEWAY_WORKERS_MAX = 64
_WILDCARD_HOSTS = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104 - recognised, not bound


def _port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise ValueError(f"{number} is no port; 1 to 65535")
    return number


def _day(text: str) -> str:
    return date.fromisoformat(text).isoformat()


def _positive_duration_s(text: str) -> int:
    seconds = parse_duration_s(text)
    if seconds < 1:
        raise ValueError("at least 1s")
    return seconds


def _switch(text: str) -> bool:
    try:
        return {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}[text.strip().lower()]
    except KeyError:
        raise ValueError("neither on nor off") from None


def _receiver(text: str) -> str:
    if not re.fullmatch(r"https?://\S+|/.+", text):
        raise ValueError("write http://…, https://… or the absolute path of a file")
    return text


def _tracking_url(text: str) -> str:
    if text and text != "off" and not re.fullmatch(r"https?://[^\s/]+(/\S*)?/mlflow", text):
        raise ValueError("write https://HOST/mlflow as jobs reach it, or off")
    return text


def _namespace(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}", text):
        raise ValueError("1 to 100 letters, digits, dots, dashes, underscores and colons")
    return text


def _isolation(text: str) -> str:
    return Isolation(text).value


def _uid_range(text: str) -> str:
    first, _, last = text.partition("-")
    if not 0 < int(first) <= int(last) < 2**32 - 1:
        raise ValueError("write it like 710000-710999, above 0")
    return text


def _http_address(text: str) -> str:
    url = urlsplit(text)
    if url.scheme not in {"http", "https"} or not url.hostname or url.port == 0:
        raise ValueError("no http or https address")
    return text


def _percent(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 100:
        raise ValueError("1 to 100")
    return number


def _workers(text: str) -> int:
    count = int(text)
    if not 0 <= count <= GATEWAY_WORKERS_MAX:
        raise ValueError(f"not between 0 and {GATEWAY_WORKERS_MAX}")
    return count


def _signing_key(text: str) -> str:
    token_key(text)
    return text


def _nodes(text: str) -> int:
    count = int(text)
    if count < 1:
        raise ValueError("at least 1")
    return count


def _setting(variable: str, default: Any, meaning: str, parse: Any = str, *, secret: bool = False) -> Any:
    return field(default=default, metadata={"variable": variable, "meaning": meaning, "parse": parse, "secret": secret})


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingValue:
    """One setting as it stands: where its value came from (`default` or `environment`), secrets masked."""

    variable: str
    value: str
    origin: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The installation's settings. `Settings.from_env(os.environ)` reads and validates them."""

    home: Path = _setting("GROUND_HOME", Path("~/.groundplane"), "Where all state lives.", Path)
    database_url: str = _setting(
        "GROUND_DATABASE_URL",
        "",
        "SQLAlchemy URL of PostgreSQL; empty uses SQLite under GROUND_HOME.",
        secret=True,
    )
    host: str = _setting("GROUND_HOST", "127.0.0.1", "Address of the control plane. Beyond loopback needs an exposure.")
    port: int = _setting("GROUND_PORT", 4700, "Port of the control plane (API and console).", _port)
    tracking_url: str = _setting(
        "GROUND_TRACKING_URL",
        "",
        "Where jobs of other machines reach tracking, as https://ground.example/mlflow; `off`: no job is told of it.",
        _tracking_url,
    )
    gateway_host: str = _setting(
        "GROUND_GATEWAY_HOST", "127.0.0.1", "Address of the gateway. Beyond loopback needs an exposure."
    )
    gateway_port: int = _setting("GROUND_GATEWAY_PORT", 4710, "Port of the gateway.", _port)
    gateway_limits_url: str = _setting(
        "GROUND_GATEWAY_LIMITS_URL",
        "",
        "Redis or Valkey where several machines' gateways keep limits, as redis://host:6379/0; empty: this one.",
        secret=True,
    )
    gateway_nodes: int = _setting(
        "GROUND_GATEWAY_NODES", 1, "Machines whose gateways share limits: what a local share is a part of.", _nodes
    )
    gateway_workers: int = _setting(
        "GROUND_GATEWAY_WORKERS", 0, "Gateway processes on this machine; 0 is one per core, at most 8.", _workers
    )
    gateway_cache_bytes: int = _setting(
        "GROUND_GATEWAY_CACHE", 64 * 2**20, "Bytes of answers that each gateway process keeps at most.", parse_bytes
    )
    gateway_body_bytes: int = _setting(
        "GROUND_GATEWAY_BODY", 32 * 2**20, "Bytes of the largest request body that the gateway takes.", parse_bytes
    )
    predictions: str = _setting(
        "GROUND_PREDICTIONS",
        "",
        "Folder of the prediction log; empty means gateway/predictions under GROUND_HOME.",
    )
    traces_url: str = _setting(
        "GROUND_GATEWAY_TRACES_URL",
        "",
        "Where the gateway sends spans as OTLP over HTTP, like http://collector:4318/v1/traces; empty sends none.",
        _http_address,
    )
    traces_percent: int = _setting(
        "GROUND_GATEWAY_TRACES_PERCENT",
        100,
        "How many of the requests become spans that bring no trace of their own; others follow their caller.",
        _percent,
    )
    traces_headers: str = _setting(
        "GROUND_GATEWAY_TRACES_HEADERS",
        "",
        "Headers sent with spans, as name=value,name=value, percent-encoded.",
        secret=True,
    )
    url: str = _setting("GROUND_URL", "", "Control plane the CLI talks to; empty means the local one.")
    key: str = _setting(
        "GROUND_KEY", "", "Key the CLI sends; empty reads the admin key under GROUND_HOME.", secret=True
    )
    local_price_microusd_per_hour: int = _setting(
        "GROUND_LOCAL_PRICE",
        100_000,
        "Hourly price of this machine in dollars, used by the local pool.",
        parse_usd,
    )
    local_price_as_of: str = _setting(
        "GROUND_LOCAL_PRICE_AS_OF",
        "",
        "Day GROUND_LOCAL_PRICE is from, like 2026-11-20; plans flag an old one. Empty means the day of the start.",
        _day,
    )
    policy_dir: str = _setting(
        "GROUND_POLICY", "", "Folder of the operator's policy files; empty means policy under GROUND_HOME."
    )
    pool_file: str = _setting(
        "GROUND_POOLS", "", "File that describes the pools reached over SSH; empty means pools.yaml under GROUND_HOME."
    )
    reconcile_period_s: int = _setting(
        "GROUND_RECONCILE_PERIOD", 2, "How often an active run or endpoint is looked at.", parse_duration_s
    )
    share_half_life_s: int = _setting(
        "GROUND_SHARE_HALF_LIFE",
        86_400,
        "How fast the queue forgets what a project held: after this time it counts half.",
        parse_duration_s,
    )
    lease_s: int = _setting("GROUND_LEASE", 30, "How long a claimed row stays with its worker.", parse_duration_s)
    gateway_slice_microusd: int = _setting(
        "GROUND_GATEWAY_SLICE",
        1_000_000,
        "Dollars reserved ahead per project for the gateway to spend from.",
        parse_usd,
    )
    store_quota_bytes: int = _setting(
        "GROUND_STORE_QUOTA",
        0,
        "Most bytes the artifact store may hold; 0 leaves it to the disk.",
        parse_bytes,
    )
    store_url: str = _setting(
        "GROUND_STORE_URL",
        "",
        "Bucket of the artifact store, like s3://bucket/prefix (az://, gs://); empty keeps it under GROUND_HOME.",
    )
    store_cold: str = _setting(
        "GROUND_STORE_COLD", "", "Folder on cheaper storage for packs that nobody reads; empty keeps all in one place."
    )
    store_cold_after_s: int = _setting(
        "GROUND_STORE_COLD_AFTER", 30 * 86_400, "How long a pack is unread before it moves there.", parse_duration_s
    )
    store_scrub_bytes: int = _setting(
        "GROUND_STORE_SCRUB", 64 * 2**20, "Bytes of the artifact store re-read each minute to find damage.", parse_bytes
    )
    store_collect_period_s: int = _setting(
        "GROUND_STORE_COLLECT",
        0,
        "How often what nothing refers to is removed from the artifact store; 0 leaves it to ground artifacts gc.",
        parse_duration_s,
    )
    checkpoint_bandwidth_bytes: int = _setting(
        "GROUND_CHECKPOINT_BANDWIDTH",
        0,
        "Most bytes a second at which checkpoints are copied and restored; 0 is no limit.",
        parse_bytes,
    )
    storm_percent: int = _setting(
        "GROUND_STORM_PERCENT",
        30,
        "When more nodes than this share are silent at once, it is our network: no run is given up for its silence.",
        _percent,
    )
    storm_settle_s: int = _setting(
        "GROUND_STORM_SETTLE", 60, "How long that lasts after they have answered.", parse_duration_s
    )
    idle_notice_s: int = _setting(
        "GROUND_IDLE_NOTICE",
        900,
        "How long a run does nothing before its idle clock in dollars begins and its owner is told.",
        _positive_duration_s,
    )
    spot_metadata_url: str = _setting(
        "GROUND_SPOT_METADATA",
        "http://169.254.169.254",
        "Where runners of spec.spot jobs ask for notices; simulated:FILE gives one when that file is there.",
    )
    checkpoint_copies: bool = _setting(
        "GROUND_CHECKPOINT_COPIES",
        True,
        "Whether checkpoints are copied to the artifact store, to be restored on any node: on or off.",
        _switch,
    )
    isolation: str = _setting(
        "GROUND_ISOLATION",
        "none",
        "How jobs are kept apart that don't say: none, user, bubblewrap or podman.",
        _isolation,
    )
    isolation_minimum: str = _setting(
        "GROUND_ISOLATION_MIN", "none", "The least isolation that a job may ask for.", _isolation
    )
    job_uids: str = _setting(
        "GROUND_JOB_UIDS",
        "710000-710999",
        "User ids given to isolated jobs where runners have root rights; nobody else may have them.",
        _uid_range,
    )
    job_pids_limit: int = _setting("GROUND_JOB_PIDS", 16_384, "Most processes and threads of one job on a node.", int)
    secrets_dir: str = _setting(
        "GROUND_SECRETS", "", "Folder of secrets, as PROJECT/NAME files; empty means secrets under GROUND_HOME."
    )
    preflight_budget_s: int = _setting(
        "GROUND_PREFLIGHT_BUDGET",
        15,
        "How long the checks before a start may take together; what is silent then has failed.",
        parse_duration_s,
    )
    preflight_idle_s: int = _setting(
        "GROUND_PREFLIGHT_IDLE", 300, "How often the drivers of a node that idles are probed.", parse_duration_s
    )
    scratch: str = _setting(
        "GROUND_SCRATCH", "", "Folder on each node for staged data; empty means under our folder there."
    )
    data_cache_bytes: int = _setting(
        "GROUND_DATA_CACHE",
        100 * 10**9,
        "How much staged data each node keeps for later runs; what was used longest ago goes first.",
        parse_bytes,
    )
    log_line_limit_bytes: int = _setting(
        "GROUND_LOG_LINE_LIMIT", 65_536, "A longer log line is cut, and says so.", parse_bytes
    )
    request_limit_bytes: int = _setting(
        "GROUND_REQUEST_LIMIT", 8 * 2**20, "Largest body the API reads, model uploads apart.", parse_bytes
    )
    upload_limit_bytes: int = _setting(
        "GROUND_UPLOAD_LIMIT", 64 * 2**30, "Most bytes one model upload may bring.", parse_bytes
    )
    approval_expiry_s: int = _setting(
        "GROUND_APPROVAL_EXPIRY",
        72 * 3600,
        "How long a plan waits for approval, and how long an approval may be used.",
        _positive_duration_s,
    )
    approval_four_eyes: bool = _setting(
        "GROUND_APPROVAL_FOUR_EYES",
        True,
        "Whether who made a plan or owns its work is kept from approving it; off for an installation of one person.",
        _switch,
    )
    drain_s: int = _setting(
        "GROUND_DRAIN", 15, "How long a stopping process may finish what it has begun.", parse_duration_s
    )
    exposure_check_s: int = _setting(
        "GROUND_EXPOSURE_CHECK",
        15,
        "How often a server bound beyond loopback makes sure that it still may.",
        parse_duration_s,
    )
    process_log_limit_bytes: int = _setting(
        "GROUND_PROCESS_LOG_LIMIT",
        16 * 2**20,
        "Size at which a process log under log/ is rotated; four old ones are kept.",
        parse_bytes,
    )

    signing_key: str = _setting(
        "GROUND_SIGNING_KEY",
        "",
        "Key pair on a PKCS#11 token that signs certificates, as an RFC 7512 URI; empty keeps the key in a file.",
        _signing_key,
    )
    retention_notice_s: int = _setting(
        "GROUND_RETENTION_NOTICE",
        0,
        "How long after its retention a dataset's copy here is erased by itself; 0 marks it and tells people only.",
        parse_duration_s,
    )
    lineage_url: str = _setting(
        "GROUND_LINEAGE_URL",
        "",
        "Who is told of our lineage as OpenLineage events: an http(s) address, or a file of JSON lines; empty: nobody.",
        _receiver,
    )
    lineage_secret: str = _setting(
        "GROUND_LINEAGE_SECRET", "", "PROJECT/NAME of the secret whose text is the receiver's key; empty sends none."
    )
    lineage_namespace: str = _setting(
        "GROUND_LINEAGE_NAMESPACE", "groundplane", "Name of this installation in OpenLineage events.", _namespace
    )
    request_llm_url: str = _setting(
        "GROUND_REQUEST_LLM_URL",
        "",
        "OpenAI-compatible API that may suggest facts missing in a request; empty asks nobody.",
    )
    request_llm_model: str = _setting("GROUND_REQUEST_LLM_MODEL", "", "Model that is asked there.")
    request_llm_key: str = _setting("GROUND_REQUEST_LLM_KEY", "", "Key that is sent there.", secret=True)

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Raises InvalidInput naming the variable whose value can't be read, or whose name is a misspelt setting."""
        source = os.environ if env is None else env
        _refuse_misspelt(source, known=[item.metadata["variable"] for item in fields(cls)])
        values: dict[str, Any] = {}
        for item in fields(cls):
            variable = item.metadata["variable"]
            text = source.get(variable, "")
            if text == "":
                continue
            try:
                values[item.name] = item.metadata["parse"](text)
            except ValueError as error:
                raise InvalidInput(f"{variable}={text!r}: {error}", "see docs/reference/settings.md") from None
        values["home"] = Path(values.get("home", "~/.groundplane")).expanduser().absolute()
        return cls(**values)

    def describe(self, env: Mapping[str, str] | None = None) -> list[SettingValue]:
        """Every setting with its value for people, in the order of the table. Secrets are masked."""
        source = os.environ if env is None else env
        return [
            SettingValue(
                variable=item.metadata["variable"],
                value=shown(item.name, _masked(now) if item.metadata["secret"] else now),
                origin="environment" if source.get(item.metadata["variable"]) else "default",
                default=shown(item.name, item.default),
                meaning=item.metadata["meaning"],
            )
            for item in fields(self)
            for now in [getattr(self, item.name)]
        ]

    @property
    def base_url(self) -> str:
        """Where the CLI finds the control plane; a server on every address is reached on loopback."""
        return self.url.rstrip("/") or f"http://{_reachable(self.host)}:{self.port}"

    @property
    def predictions_folder(self) -> Path:
        return Path(self.predictions).expanduser() if self.predictions else self.home / "gateway" / "predictions"

    @property
    def gateway_url(self) -> str:
        return f"http://{_reachable(self.gateway_host)}:{self.gateway_port}"


def shown(name: str, value: object) -> str:
    """A setting's value as a person would write it, by the unit its name ends in."""
    if isinstance(value, int) and "microusd" in name:
        return format_usd(value)
    if isinstance(value, int) and name.endswith("_bytes"):
        return format_bytes(value)
    if isinstance(value, int) and name.endswith("_s"):
        return format_duration(value)
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)


def _masked(value: str) -> str:
    """A URL keeps all but its password; anything else keeps nothing."""
    if "://" in value:
        return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:****@", value)
    return "****" if value else ""


def _reachable(host: str) -> str:
    address = _WILDCARD_HOSTS.get(host, host)
    return f"[{address}]" if ":" in address else address


def _refuse_misspelt(source: Mapping[str, str], known: list[str]) -> None:
    """Jobs and tests set GROUND_ variables of their own, so only what looks like a slip of the pen is refused."""
    for name in source:
        if not name.startswith("GROUND_") or name in known:
            continue
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        if close:
            raise InvalidInput(f"{name} is no setting", f"did you mean {close[0]}?")
