"""Settings: read once, refused with the variable's name, shown without secrets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from groundplane.errors import InvalidInput
from groundplane.settings import Settings


def test_defaults_are_one_private_machine() -> None:
    settings = Settings.from_env({})
    assert (settings.base_url, settings.gateway_url) == ("http://127.0.0.1:4700", "http://127.0.0.1:4710")
    assert settings.home == Path("~/.groundplane").expanduser()


def test_values_are_read_in_the_units_people_write() -> None:
    settings = Settings.from_env(
        {"GROUND_LOCAL_PRICE": "$1.25", "GROUND_LEASE": "1m30s", "GROUND_STORE_QUOTA": "2GiB", "GROUND_PORT": "5000"}
    )
    assert settings.local_price_microusd_per_hour == 1_250_000
    assert settings.lease_s == 90
    assert settings.store_quota_bytes == 2 * 2**30
    assert settings.port == 5000


@pytest.mark.parametrize(("text", "value"), [("on", True), ("off", False), ("True", True), ("no", False)])
def test_a_switch_is_read_as_people_write_it_and_shown_as_on_or_off(text: str, value: bool) -> None:
    env = {"GROUND_APPROVAL_FOUR_EYES": text}
    settings = Settings.from_env(env)
    assert settings.approval_four_eyes is value
    shown = {item.variable: item.value for item in settings.describe(env)}
    assert shown["GROUND_APPROVAL_FOUR_EYES"] == ("on" if value else "off")


def test_an_empty_variable_is_the_default() -> None:
    assert Settings.from_env({"GROUND_PORT": ""}).port == 4700


@pytest.mark.parametrize(
    ("variable", "value"),
    [("GROUND_PORT", "many"), ("GROUND_PORT", "0"), ("GROUND_PORT", "70000"), ("GROUND_LEASE", "soon"),
     ("GROUND_LOCAL_PRICE", "-1"), ("GROUND_STORE_QUOTA", "2 buckets"), ("GROUND_APPROVAL_FOUR_EYES", "maybe"),
     ("GROUND_APPROVAL_EXPIRY", "0s"), ("GROUND_GATEWAY_TRACES_URL", "collector:4318"),
     ("GROUND_GATEWAY_TRACES_PERCENT", "0")],
)  # fmt: skip
def test_a_value_that_cannot_be_read_names_its_variable(variable: str, value: str) -> None:
    with pytest.raises(InvalidInput, match=variable):
        Settings.from_env({variable: value})


def test_a_misspelt_setting_is_refused_and_others_names_are_left_alone() -> None:
    with pytest.raises(InvalidInput) as told:
        Settings.from_env({"GROUND_PROT": "1"})
    assert told.value.hint == "did you mean GROUND_PORT?"
    Settings.from_env(
        {"GROUND_RUN_ID": "x", "GROUND_CHECKPOINT_DIR": "y", "GROUND_REQUIRE": "z", "GROUND_ATTEMPT": "1"}
    )


def test_every_setting_shows_its_origin_and_secrets_are_masked() -> None:
    env = {"GROUND_KEY": "gp-admin-x", "GROUND_DATABASE_URL": "postgresql://u:hunter2@h/d", "GROUND_PORT": "5000"}
    shown = {item.variable: item for item in Settings.from_env(env).describe(env)}
    assert len(shown) == len(dataclasses.fields(Settings))
    assert shown["GROUND_KEY"].value == "****"
    assert shown["GROUND_DATABASE_URL"].value == "postgresql://u:****@h/d"
    assert (shown["GROUND_PORT"].value, shown["GROUND_PORT"].origin) == ("5000", "environment")
    assert (shown["GROUND_LEASE"].value, shown["GROUND_LEASE"].origin) == ("30s", "default")
    assert shown["GROUND_REQUEST_LIMIT"].default == "8.0 MiB"


@pytest.mark.parametrize(
    ("host", "url"), [("0.0.0.0", "http://127.0.0.1:4700"), ("::", "http://[::1]:4700"), ("::1", "http://[::1]:4700")]
)
def test_a_server_on_every_address_is_reached_on_loopback(host: str, url: str) -> None:
    assert Settings.from_env({"GROUND_HOST": host}).base_url == url
