"""Files as PyTorch writes them, made without it: its names stand in modules of our own while something is pickled."""

from __future__ import annotations

import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

KINDS = {"f4": "Float", "f8": "Double", "f2": "Half", "i8": "Long", "i4": "Int", "u1": "Byte", "b1": "Bool"}
NEWER = ("float8_e4m3fn", "float8_e5m2", "uint16", "float4_e2m1fn_x2")


class Storage:
    """A storage by key; `array` is all of it, flat. An untyped one is bytes: its tensors say what they are."""

    def __init__(self, key: str, array: np.ndarray, *, untyped: bool = False) -> None:
        self.key, self.array, self.untyped = key, array.view(np.uint8) if untyped else array, untyped


class View:
    """A tensor: a view of a storage, strides in items; `others` is what follows its hooks."""

    def __init__(
        self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *others: object
    ) -> None:
        self.arguments = (storage, offset, shape, strides, False, {}, *others)

    def __reduce__(self) -> tuple[object, ...]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


class Newer(View):
    """A tensor of a kind that has no storage of its own, such as float8_e4m3fn; strides in items of that kind."""

    def __init__(self, kind: str, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        kind = getattr(sys.modules["torch"], self.kind)
        return sys.modules["torch._utils"]._rebuild_tensor_v3, (*self.arguments, kind)


class _Kind:
    """A global by name, as PyTorch's kinds of numbers pickle."""

    __module__ = "torch"

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self) -> str:
        return self.name


def whole(key: str, array: np.ndarray) -> View:
    """A tensor that is all of its storage."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return View(Storage(key, array.ravel(order="K")), 0, array.shape, strides)


@contextmanager
def _torch() -> Iterator[types.ModuleType]:
    torch, utils, storage = (types.ModuleType(name) for name in ("torch", "torch._utils", "torch.storage"))
    for kind in KINDS.values():
        setattr(torch, f"{kind}Storage", type(f"{kind}Storage", (), {"__module__": "torch"}))
    for name in NEWER:
        setattr(torch, name, _Kind(name))
    storage.UntypedStorage = type("UntypedStorage", (), {"__module__": "torch.storage"})  # type: ignore[attr-defined]
    torch.storage = storage  # type: ignore[attr-defined]
    for name in ("_rebuild_tensor_v2", "_rebuild_tensor_v3"):
        setattr(utils, name, type(name, (), {"__module__": "torch._utils"}))
    modules = {"torch": torch, "torch._utils": utils, "torch.storage": storage}
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules |= modules
    try:
        yield torch
    finally:
        for name, module in before.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module


def _pickled(value: object, torch: types.ModuleType) -> tuple[bytes, dict[str, Storage]]:
    kept: dict[str, Storage] = {}

    class Writer(pickle.Pickler):
        def persistent_id(self, found: Any) -> object:
            if not isinstance(found, Storage):
                return None
            kept[found.key] = found
            typed = "" if found.untyped else f"{KINDS[found.array.dtype.str[1:]]}Storage"
            kind = getattr(torch, typed) if typed else torch.storage.UntypedStorage
            return ("storage", kind, found.key, "cpu", found.array.size)

    target = io.BytesIO()
    Writer(target, 2).dump(value)
    return target.getvalue(), kept


def torch_zip(value: object, method: int = zipfile.ZIP_STORED) -> bytes:
    """What torch.save writes since 1.6."""
    with _torch() as torch:
        program, kept = _pickled(value, torch)
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/byteorder", b"little")
        for key, storage in kept.items():
            archive.writestr(f"archive/data/{key}", storage.array.tobytes())
        archive.writestr("archive/version", b"3\n")
    return target.getvalue()


def torch_legacy(value: object) -> bytes:
    """What torch.save wrote before 1.6."""
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    with _torch() as torch:
        program, kept = _pickled(value, torch)
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, about))
    tail = b"".join(struct.pack("<q", kept[key].array.size) + kept[key].array.tobytes() for key in sorted(kept))
    return head + program + pickle.dumps(sorted(kept), 2) + tail
