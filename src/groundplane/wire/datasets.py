"""What crosses the HTTP door about datasets besides the domain's own records."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from groundplane.domain.dataset import DatasetFacts, Profile
from groundplane.domain.model import ManifestFile
from groundplane.wire.bounds import STRICT, check_range, check_text, check_zone


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequest:
    """Where data lies with the digests of its files, or the artifact that is its managed copy; facts about it."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    name: str
    project: str
    facts: DatasetFacts
    location: str = ""
    artifact_id: str = ""
    files: list[ManifestFile] = field(default_factory=list)
    profile: Profile = field(default_factory=Profile)

    def __post_init__(self) -> None:
        stated = self.facts
        check_text(
            name=self.name,
            project=self.project,
            artifact_id=self.artifact_id,
            owner=stated.owner,
            license=stated.license,
            description=stated.description,
        )
        check_zone("as_of", stated.as_of)
        check_zone("retain_until", stated.retain_until)
        check_range("fresh_for_s", stated.fresh_for_s, 1, 10**10)


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseRequest:
    """Which records go, why, and which version takes this one's place."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT
    records: str
    reason: str
    replacement: str = ""

    def __post_init__(self) -> None:
        check_text(records=self.records, reason=self.reason, replacement=self.replacement)
