"""Records in words and pictures."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from groundplane.console import words
from groundplane.domain.endpoint import EndpointStatus
from groundplane.domain.run import RunStatus

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "said"),
    [
        (NOW, "now"),
        (NOW - timedelta(seconds=182), "3m 2s ago"),
        (NOW + timedelta(days=2, hours=4, minutes=9), "in 2d 4h"),
    ],
)
def test_moments_are_told_from_now(moment: datetime, said: str) -> None:
    assert words.relative(moment, NOW) == said


def test_a_sparkline_stands_on_zero_and_tells_its_figures() -> None:
    line = words.sparkline([50.0, 100.0, 75.0], ["50 %", "100 %", "75 %"], width=100, height=54)
    assert line is not None
    assert line.points == "0.0,27.0 50.0,2.0 100.0,14.5"
    assert line.summary == "last 75 %, highest 100 %"


def test_one_value_is_no_line() -> None:
    assert words.sparkline([1.0], ["1"]) is None


def test_a_line_of_zeros_lies_on_the_floor() -> None:
    line = words.sparkline([0.0, 0.0], ["0", "0"], width=10, height=20)
    assert line is not None
    assert line.points == "0.0,18.0 10.0,18.0"


def test_a_bar_is_never_wider_than_its_box() -> None:
    assert words.percent(3, 2) == 100
    assert words.percent(1, 0) == 0
    assert words.percent(1, 4) == 25


@pytest.mark.parametrize("status", [*RunStatus, *EndpointStatus])
def test_every_state_has_a_mark_beside_its_colour(status: str) -> None:
    assert status in words.TONES
    assert words.tone(status).mark


def test_a_shell_command_is_shown_as_its_text_and_others_as_typed() -> None:
    assert words.argv(("sh", "-c", "a | b")) == "a | b"
    assert words.argv(("python", "my file.py")) == "python 'my file.py'"
