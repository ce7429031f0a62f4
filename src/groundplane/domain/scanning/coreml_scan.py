"""A Core ML model's layers and models that are code of an app's own, and what it reads outside its package.

Source: coremltools' mlmodel/format (Model.proto, NeuralNetwork.proto, CustomModel.proto, LinkedModel.proto).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.protobuf_scan import Fields, ProtobufFault

_NESTED_MAX = 32
_NAME_BYTES_MAX = 256
_VERSION_MAX = 64
_WAYS: dict[str, dict[int, str]] = {
    "model": {200: "boxed", 201: "boxed", 202: "pipeline", 303: "network", 403: "network", 500: "network",
              555: "custom model", 556: "linked model"},
    "boxed": {1: "pipeline"},
    "pipeline": {1: "model"},
    "network": {1: "layer"},
    "layer": {500: "custom layer"},
}  # fmt: skip
_FOREIGN = {"custom layer", "custom model", "linked model"}
_CLASS_NAME = 10
_KIND_FIRST = 200
# A program's weights lie in a file that it names by the place of its package.
_LEAVES = re.compile(rb"@model_path/[ -~]{0,200}?\.\./[ -~]{0,40}")


@dataclass(frozen=True, slots=True)
class CoreMlSeen:
    """`foreign`: a part that an app must bring as code, in words; `outside`: the first place out of the package."""

    foreign: str = ""
    outside: str = ""


def read_coreml(view: ByteView) -> CoreMlSeen | None:
    """Walks the ways to layers; None when it is no whole Core ML model."""
    fields = Fields(view)
    waiting = [("model", 0, view.size_bytes, 0)]
    foreign, version, kinds = "", 0, 0
    try:
        while waiting:
            kind, begin, end, nested = waiting.pop()
            if nested > _NESTED_MAX:
                return None
            name = ""
            for number, wire, at, size in fields.within(begin, end):
                if not nested:
                    version += number == 1 and wire == 0 and view.at(at, 1)[0] <= _VERSION_MAX
                    kinds += number >= _KIND_FIRST and wire == 2
                inside = _WAYS.get(kind, {}).get(number)
                if inside is not None and wire == 2:
                    waiting.append((inside, at, at + size, nested + 1))
                elif kind in _FOREIGN and number == _CLASS_NAME and wire == 2:
                    name = view.at(at, min(size, _NAME_BYTES_MAX)).decode(errors="replace")
            if kind in _FOREIGN:
                foreign = foreign or f"a {kind} {name[:60]}".rstrip()
    except ProtobufFault:
        return None
    if version != 1 or kinds != 1:
        return None
    leaves = view.search(_LEAVES, longest_bytes=256)
    return CoreMlSeen(foreign, "" if leaves is None else leaves.decode())
