"""The style sheet: everything that is read can be read, in light and in dark."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from groundplane import console

FOLDER = Path(console.__file__).parent
CSS = (FOLDER / "static" / "ground.css").read_text(encoding="utf-8")
TEXT_CONTRAST_MIN = 4.5
SHAPE_CONTRAST_MIN = 3.0

TEXT_ON = [
    *[(ink, ground) for ink in ("ink", "quiet", "accent") for ground in ("page", "surface", "raised")],
    *[(tone, f"{tone}-wash") for tone in ("good", "busy", "bad")],
    *[("ink", f"{tone}-wash") for tone in ("good", "busy", "bad")],
    ("on-accent", "accent"),
    ("surface", "bad"),
    ("bad", "page"),
    ("busy", "surface"),
    ("log-ink", "log"),
]
SHAPES_ON = [("accent", "surface"), ("posted", "surface"), ("quiet", "surface")]


def colours(scheme: str) -> dict[str, str]:
    light, _, rest = CSS.partition("@media (prefers-color-scheme: dark)")
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    if scheme == "dark":
        found |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", rest))
    return found


def luminance(colour: str) -> float:
    """Relative luminance. Source: WCAG 2.2, definition of relative luminance."""
    channels = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("ink", "ground"), TEXT_ON)
def test_text_stands_out(scheme: str, ink: str, ground: str) -> None:
    palette = colours(scheme)
    assert contrast(palette[ink], palette[ground]) >= TEXT_CONTRAST_MIN


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("shape", "ground"), SHAPES_ON)
def test_shapes_stand_out(scheme: str, shape: str, ground: str) -> None:
    palette = colours(scheme)
    assert contrast(palette[shape], palette[ground]) >= SHAPE_CONTRAST_MIN


def test_every_colour_is_a_variable() -> None:
    rules = re.sub(r"--[\w-]+: #[0-9a-f]{6};", "", CSS)
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", rules)


@pytest.mark.parametrize("page", sorted((FOLDER / "templates").glob("*.html")), ids=lambda path: path.name)
def test_no_template_holds_what_the_content_policy_forbids_or_escaping_could_miss(page: Path) -> None:
    markup = page.read_text(encoding="utf-8")
    assert " style=" not in markup
    assert not re.findall(r"\son\w+=", markup)
    assert not re.findall(r"<script(?! src=)", markup)
    assert "|safe" not in markup.replace(" ", "")
    assert "autoescape" not in markup
    assert not re.findall(r"(?:src|href)=\"https?:", markup)
