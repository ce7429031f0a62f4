"""Every setting the operator may turn: name, type, default, meaning. Read once, passed down as values.

Each is an environment variable. docs/reference/settings.md is generated from this table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from groundplane.errors import InvalidInput
from groundplane.units import parse_bytes, parse_duration_s, parse_usd


def _setting(variable: str, default: object, meaning: str, parse: object = str) -> object:
    return field(default=default, metadata={"variable": variable, "meaning": meaning, "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The installation's settings. `Settings.from_env(os.environ)` reads and validates them."""

    home: Path = _setting("GROUND_HOME", Path("~/.groundplane"), "Where all state lives.", Path)  # type: ignore[assignment]
    database_url: str = _setting(
        "GROUND_DATABASE_URL", "", "SQLAlchemy URL of PostgreSQL; empty uses SQLite under GROUND_HOME."
    )  # type: ignore[assignment]
    host: str = _setting(
        "GROUND_HOST", "127.0.0.1", "Address of the control plane. Beyond loopback needs an exposure."
    )  # type: ignore[assignment]
    port: int = _setting("GROUND_PORT", 4700, "Port of the control plane (API and console).", int)  # type: ignore[assignment]
    gateway_host: str = _setting(
        "GROUND_GATEWAY_HOST", "127.0.0.1", "Address of the gateway. Beyond loopback needs an exposure."
    )  # type: ignore[assignment]
    gateway_port: int = _setting("GROUND_GATEWAY_PORT", 4710, "Port of the gateway.", int)  # type: ignore[assignment]
    url: str = _setting("GROUND_URL", "", "Control plane the CLI talks to; empty means the local one.")  # type: ignore[assignment]
    key: str = _setting("GROUND_KEY", "", "Key the CLI sends; empty reads the admin key under GROUND_HOME.")  # type: ignore[assignment]
    local_price_microusd_per_hour: int = _setting(
        "GROUND_LOCAL_PRICE",
        100_000,
        "Hourly price of this machine in dollars, used by the local pool.",
        parse_usd,
    )  # type: ignore[assignment]
    reconcile_period_s: int = _setting(
        "GROUND_RECONCILE_PERIOD", 2, "How often an active run or endpoint is looked at.", parse_duration_s
    )  # type: ignore[assignment]
    lease_s: int = _setting(
        "GROUND_LEASE", 30, "How long a claimed row stays with its worker.", parse_duration_s
    )  # type: ignore[assignment]
    gateway_slice_microusd: int = _setting(
        "GROUND_GATEWAY_SLICE",
        1_000_000,
        "Dollars reserved ahead per project for the gateway to spend from.",
        parse_usd,
    )  # type: ignore[assignment]
    store_quota_bytes: int = _setting(
        "GROUND_STORE_QUOTA",
        0,
        "Most bytes the artifact store may hold; 0 leaves it to the disk.",
        parse_bytes,
    )  # type: ignore[assignment]
    log_line_limit_bytes: int = _setting(
        "GROUND_LOG_LINE_LIMIT", 65_536, "A longer log line is cut, and says so.", parse_bytes
    )  # type: ignore[assignment]

    @classmethod
    def from_env(cls, env: Mapping[str, str] | None = None) -> Settings:
        """Raises InvalidInput naming the variable whose value can't be read, or an unknown GROUND_ variable's spelling."""
        source = os.environ if env is None else env
        values: dict[str, object] = {}
        for item in fields(cls):
            text = source.get(item.metadata["variable"])
            if text is None or text == "":
                continue
            try:
                values[item.name] = item.metadata["parse"](text)
            except ValueError as error:
                raise InvalidInput(
                    f"{item.metadata['variable']}={text!r}: {error}", "see docs/reference/settings.md"
                ) from None
        settings = cls(**values)  # type: ignore[arg-type]
        object.__setattr__(settings, "home", settings.home.expanduser().absolute())
        return settings

    @property
    def base_url(self) -> str:
        return self.url or f"http://{self.host}:{self.port}"

    @property
    def gateway_url(self) -> str:
        return f"http://{self.gateway_host}:{self.gateway_port}"
