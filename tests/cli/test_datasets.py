"""`ground datasets`: what registering leaves behind, and what an erasure leaves of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FACTS = ("--project", "research", "--owner", "ana", "--license", "CC0-1.0", "--classification", "internal")


def kept(up: Any, say: Any) -> list[str]:
    return [row["id"] for row in say(up, "artifacts", "list", "-o", "json").data if row["name"] == "people"]


def test_the_same_copy_again_and_a_refused_one_leave_no_second_holder_of_the_rows(
    up: Any, say: Any, tmp_path: Path
) -> None:
    (tmp_path / "people.csv").write_text("name,age\nada,36\n")
    register = ("datasets", "register", str(tmp_path / "people.csv"), "--name", "people", "--managed")
    made = say(up, *register, *FACTS, "-o", "json").data
    again = say(up, *register, *FACTS, "-o", "json").data
    assert (again["id"], again["location"]) == (made["id"], made["location"])
    refused = say(up, *register, "--project", "default", *FACTS[2:])
    assert (refused.code, "belongs to another project" in refused.err) == (3, True), refused.err
    assert kept(up, say) == [made["location"].removeprefix("artifact:")]
    erased = say(up, "datasets", "erase", "people@1", "--records", "ada", "--reason", "asked to be forgotten", "--yes")
    assert erased.code == 0, erased.err
    assert "left" not in erased.out, "nothing else holds these rows"
    assert kept(up, say) == []
    assert "ada" not in say(up, "datasets", "show", "people@1").out
    assert "was erased by" in say(up, "datasets", "verify", "people@1").err
