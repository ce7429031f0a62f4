"""The reference pages are made from the code: one that differs is stale."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def maker() -> object:
    spec = importlib.util.spec_from_file_location("make_reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["settings.md", "cli.md", "api.md", "errors.md"])
def test_the_page_says_what_the_code_says(name: str) -> None:
    made = maker().PAGES[name]()  # type: ignore[attr-defined]
    assert (DOCS / "reference" / name).read_text(encoding="utf-8") == made, "make docs"
