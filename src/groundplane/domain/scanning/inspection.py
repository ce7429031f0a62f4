"""What a look at one file says, and the two answers that most formats share."""

from __future__ import annotations

from dataclasses import dataclass, field

from groundplane.domain.scanning.model_formats import ONLY_WEIGHTS, Format
from groundplane.domain.scanning.pickle_scan import PickleWalk
from groundplane.domain.scanning.templates_scan import Template
from groundplane.errors import Refused

CONVERT_HINT = (
    "ground models adopt FILE converts weights to safetensors in a process without network, files or identity, "
    "and refuses what is more than weights"
)
SAFE_FORMATS = "a format that can't run code (safetensors, GGUF, ONNX, npz)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A file's format, what is worth knowing of it (tensors, parameters, dtypes, …), and why it may not enter."""

    format: Format
    details: dict[str, object] = field(default_factory=dict)
    refused: Refused | None = None
    templates: tuple[Template, ...] = ()


def no_program(have: str) -> Refused:
    """The no for what runs, or would have something run."""
    return Refused(
        rule="no-programs",
        need="weights, configuration and text only",
        have=have,
        hint="leave it out of the model's folder; engines bring their own code",
    )


def refuse_pickle(
    path: str, kind: Format, what: str, walk: PickleWalk | None, *, only_weights: bool = False
) -> Inspection:
    """The no for a pickle, with what it reaches for where that is known. `only_weights`: it is known to do no harm."""
    acts = ""
    if walk is not None and walk.foreign:
        acts = f"; it would reach for {', '.join(walk.foreign[:3])}"
    elif walk is not None and walk.imports:
        acts = "; it names nothing but what weights are made with"
    refused = Refused(
        rule="no-pickles",
        need=SAFE_FORMATS,
        have=f"{path}, {what}{acts}; loading a pickle runs whatever it says",
        hint=CONVERT_HINT,
    )
    return Inspection(format=kind, details={ONLY_WEIGHTS: True} if only_weights else {}, refused=refused)
