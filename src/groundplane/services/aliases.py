"""What an alias stands for: a row that anybody with the database could change, held against the trail."""

from __future__ import annotations

from groundplane.audit import Event
from groundplane.domain.registry import ModelAlias, MoveKind
from groundplane.errors import IntegrityFailure
from groundplane.ports import Tx

_MOVES = tuple(f"alias.{kind}" for kind in MoveKind)


async def standing(tx: Tx, id: str) -> ModelAlias | None:
    """The alias `name@alias`, or None. IntegrityFailure unless its last move on the audit trail led where it stands:

    a row that was changed beside the gates is not followed to anything that is loaded, served or promised.
    """
    alias = await tx.get(ModelAlias, id)
    if alias is None:
        return None
    moved = await tx.find(Event, {"object_kind": "model", "object_id": id, "action": _MOVES}, order="-id", limit=1)
    told = moved[0].after.get("to") if moved else None
    if told != alias.number:
        trail = f"the audit trail {alias.name}@{told}" if told else "the audit trail nothing"
        raise IntegrityFailure(
            f"{id} is not what was moved there: its row says {alias.name}@{alias.number}, {trail}",
            f"take it away and set it anew: ground models unalias {id}; ground models alias {id} NUMBER",
        )
    return alias
