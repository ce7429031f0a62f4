"""What a version was made from, where that is registered here: the way that licences and erasures follow."""

from __future__ import annotations

import re

from groundplane.domain.model import ModelVersion, parse_ref
from groundplane.errors import InvalidInput
from groundplane.ports import Tx
from groundplane.services.aliases import standing

_NUMBERED = re.compile(r"(?:[^/@]+/)?[^/@]+@[1-9][0-9]*")
_UNREGISTERED = "is no version registered here, so its licence was not compared"


async def base_versions(tx: Tx, base_model: str) -> list[str]:
    """Ids of the versions that a base model names, a comma between them; none for what is not registered here.

    `tiny@3`; `tiny@latest` and an alias as they stand now; `project/tiny`, as hub clients write it, the newest.
    """
    found = []
    for name in (each.strip() for each in base_model.split(",")):
        project, slash, rest = name.rpartition("/")
        try:
            ref = parse_ref(rest if "@" in rest or not slash else f"{rest}@latest")
        except InvalidInput:
            continue
        number = ref.number
        if ref.alias:
            alias = await standing(tx, str(ref))
            number = alias.number if alias else 0
        newest = await tx.find(ModelVersion, {"name": ref.name}, order="-number", limit=1) if number is None else ()
        version = newest[0] if newest else await tx.get(ModelVersion, f"{ref.name}@{number}")
        if version is not None and project in ("", version.project):
            found.append(version.id)
    return list(dict.fromkeys(found))


async def unknown_bases(tx: Tx, base_model: str) -> list[tuple[str, str]]:
    """(fact, why) of each base model that is written as a version of here is, `tiny@3`, and is none.

    A name of elsewhere, such as `org/model`, says by itself that nobody here knows its terms.
    """
    numbered = [name for each in base_model.split(",") if _NUMBERED.fullmatch(name := each.strip())]
    unregistered = [name for name in numbered if not await base_versions(tx, name)]
    return [(f"base_model.{name}.license", f"{name} {_UNREGISTERED}") for name in dict.fromkeys(unregistered)]
