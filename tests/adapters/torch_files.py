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


class Storage:
    """A storage by key; `array` is all of it, flat."""

    def __init__(self, key: str, array: np.ndarray) -> None:
        self.key, self.array = key, array


class View:
    """A tensor: a view of a storage, strides in items."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.arguments = (storage, offset, shape, strides, False, {})

    def __reduce__(self) -> tuple[object, ...]:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, self.arguments


def whole(key: str, array: np.ndarray) -> View:
    """A tensor that is all of its storage."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return View(Storage(key, array.ravel(order="K")), 0, array.shape, strides)


@contextmanager
def _torch() -> Iterator[types.ModuleType]:
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    for kind in KINDS.values():
        setattr(torch, f"{kind}Storage", type(f"{kind}Storage", (), {"__module__": "torch"}))

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
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
            kind = getattr(torch, f"{KINDS[found.array.dtype.str[1:]]}Storage")
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
