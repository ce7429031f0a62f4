"""A program of its own: weights in a pickle become safetensors. Standard library only; nothing in the file is called.

Standard input: the file, open. Standard output: the safetensors file, open. Standard error: one JSON line that says
which tensors there are, with the SHA-256 of each one's bytes, and what was left out; or what was refused.

The unpickler knows a handful of names, each standing for a class of this module that only remembers what it was given.
Source: torch/serialization.py and torch/_weights_only_unpickler.py (2.6); numpy/core/multiarray pickles.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import itertools
import json
import math
import mmap
import os
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from groundplane.adapters.confined.confine import confine

TENSORS_MAX = 1_000_000
_NESTED_MAX = 40
_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "Double": ("F64", 8), "Float": ("F32", 4), "Half": ("F16", 2), "BFloat16": ("BF16", 2), "Long": ("I64", 8),
    "Int": ("I32", 4), "Short": ("I16", 2), "Char": ("I8", 1), "Byte": ("U8", 1), "Bool": ("BOOL", 1),
    "ComplexFloat": ("C64", 8),
}  # fmt: skip
_NUMPY = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u1": "U8",
          "u2": "U16", "u4": "U32", "u8": "U64", "b1": "BOOL", "c8": "C64"}  # fmt: skip
_BUSINESS = ("state_dict", "model_state_dict", "module", "model")


class Unwanted(Exception):
    """The file holds more than weights, or weights that make no sense; the message says what."""


class Storage:
    """Bytes that tensors are cut from. Those of the old kind get theirs only after everything else was read."""

    __slots__ = ("data", "dtype", "item_bytes", "items")

    def __init__(self, kind: str, items: int) -> None:
        self.dtype, self.item_bytes = _STORAGES[kind]
        self.items = items
        self.data: memoryview | bytes = b""

    def __setstate__(self, state: object) -> None:
        raise Unwanted("a storage is given a state")


class Tensor:
    """A view of a storage: offset and strides in items."""

    __slots__ = ("offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        numbers = (offset, *shape, *strides)
        if not all(isinstance(number, int) and 0 <= number < 2**48 for number in numbers) or len(shape) != len(strides):
            raise Unwanted(f"a tensor of shape {shape!r:.60} and strides {strides!r:.60}")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def __setstate__(self, state: object) -> None:
        raise Unwanted("a tensor is given a state")

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The tensor's bytes in row-major order. Unwanted when they lie outside the storage."""
        size, data = self.storage.item_bytes, memoryview(self.storage.data)
        count = math.prod(self.shape)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if count and (last + 1) * size > len(data):
            raise Unwanted(f"a tensor ends at item {last:,} of a storage of {len(data) // size:,}")
        if not count:
            return
        # What is contiguous at the end of the shape is written at once.
        run, dimensions = 1, len(self.shape)
        while dimensions and (self.shape[dimensions - 1] == 1 or self.strides[dimensions - 1] == run):
            dimensions -= 1
            run *= self.shape[dimensions]
        steps = [range(0, n * stride, stride) if stride else [0] * n
                 for n, stride in zip(self.shape[:dimensions], self.strides[:dimensions], strict=True)]  # fmt: skip
        for starts in itertools.product(*steps):
            begin = (self.offset + sum(starts)) * size
            yield data[begin : begin + run * size]


class Named:
    """A name that the pickle may use, and what is remembered when it is called."""

    __slots__ = ("_does", "_name")

    def __init__(self, name: str, does: Callable[..., object]) -> None:
        self._name, self._does = name, does

    def __call__(self, *arguments: object) -> object:
        return self._does(*arguments)

    def __setstate__(self, state: object) -> None:
        raise Unwanted(f"{self._name} is given a state")


class StorageKind:
    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __setstate__(self, state: object) -> None:
        raise Unwanted("a storage's kind is given a state")


class Array:
    """A numpy array: what its pickle's state says."""

    __slots__ = ("tensor",)

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Unwanted("an array of an unknown kind")
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, Dtype) or not isinstance(raw, bytes) or not isinstance(shape, tuple):
            raise Unwanted("an array of objects, which could be anything")
        self.tensor = dtype.tensor(shape, raw, fortran=bool(fortran))


class Dtype:
    __slots__ = ("big", "name")

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or name.lstrip("<>=|") not in _NUMPY:
            raise Unwanted(f"arrays of {name!r:.40}")
        self.name, self.big = name.lstrip("<>=|"), name.startswith(">")

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1:
            self.big = state[1] == ">"

    def tensor(self, shape: tuple[int, ...], raw: bytes, *, fortran: bool) -> Tensor:
        if self.big and self.name[1:] != "1":
            raise Unwanted("arrays of the other byte order: save them again")
        storage = Storage("Byte", 0)
        storage.dtype, storage.item_bytes, storage.data = _NUMPY[self.name], int(self.name[1:]), raw
        return Tensor(storage, 0, shape, _strides(shape, fortran=fortran))


def _strides(shape: tuple[int, ...], *, fortran: bool = False) -> tuple[int, ...]:
    order, strides, run = range(len(shape)), [0] * len(shape), 1
    for at in order if fortran else reversed(order):
        strides[at] = run
        run *= shape[at]
    return tuple(strides)


def _rebuild(storage: object, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: object) -> Tensor:
    if not isinstance(storage, Storage):
        raise Unwanted("a tensor without a storage")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise Unwanted("text in an encoding that arrays do not use")
    return text.encode("latin-1")


_NAMES: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): Named("torch.Size", tuple),
    ("torch._utils", "_rebuild_tensor"): Named("_rebuild_tensor", _rebuild),
    ("torch._utils", "_rebuild_tensor_v2"): Named("_rebuild_tensor_v2", _rebuild),
    ("torch._utils", "_rebuild_parameter"): Named("_rebuild_parameter", lambda data, *_: data),
    ("_codecs", "encode"): Named("encode", _encode),
    **{("torch", f"{kind}Storage"): StorageKind(kind) for kind in _STORAGES},
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): Named("_reconstruct", lambda *_: Array())
        for core in ("core", "_core")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): Named("_frombuffer", lambda raw, dtype, shape, order: dtype.tensor(
        shape, bytes(raw), fortran=order == "F")) for core in ("core", "_core")},
    ("numpy", "ndarray"): StorageKind("Byte"),
    ("numpy", "dtype"): Named("dtype", Dtype),
}  # fmt: skip


class Reader(pickle.Unpickler):
    """Refuses every name that is not listed; storages are asked of `storage(key, kind, items)`."""

    def __init__(self, file: Any, storage: Callable[[str, str, int], Storage]) -> None:
        super().__init__(file, encoding="latin-1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> object:
        found = _NAMES.get((module, name))
        if found is None:
            raise Unwanted(f"{module}.{name}, which is more than weights need"[:200])
        return found

    def persistent_load(self, pid: object) -> Storage:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], StorageKind):
            raise Unwanted("a reference to something outside the file")
        if len(pid) > 5 and pid[5] is not None:
            raise Unwanted("a view of a storage, as only very old files have them: save it again")
        return self._storage(str(pid[2]), pid[1].kind, int(pid[4]))


# ---------------------------------------------------------------- containers


def read(view: mmap.mmap, stream: BinaryIO) -> object:
    """What the file holds, with every storage filled."""
    if view[:4] == b"PK\x03\x04":
        return _read_zip(view, stream)
    first = Reader(stream, _no_storage).load()
    return _read_legacy(view, stream) if first == _MAGIC else first


def _no_storage(*_: object) -> Storage:
    raise Unwanted("a storage, in a pickle without any")


def _read_zip(view: mmap.mmap, stream: BinaryIO) -> object:
    with zipfile.ZipFile(stream) as archive:
        names = {info.filename: info for info in archive.infolist()}
        programs = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(programs) != 1:
            raise Unwanted(f"{len(programs)} data.pkl where a file of weights has one")
        prefix = programs[0].removesuffix("data.pkl")
        if any(name.startswith(f"{prefix}code/") for name in names):
            raise Unwanted("code beside its weights (TorchScript)")
        if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder").strip() != b"little":
            raise Unwanted("numbers of the other byte order: save it again")
        kept: dict[str, Storage] = {}

        def storage(key: str, kind: str, items: int) -> Storage:
            if key not in kept:
                made = Storage(kind, items)
                made.data = _member(view, archive, names.get(f"{prefix}data/{key}"))
                kept[key] = made
            return kept[key]

        return Reader(io.BytesIO(archive.read(programs[0])), storage).load()


def _member(view: mmap.mmap, archive: zipfile.ZipFile, info: zipfile.ZipInfo | None) -> memoryview | bytes:
    """A member's bytes: where they lie when they are stored as they are."""
    if info is None:
        raise Unwanted("a storage that the file does not hold")
    if info.compress_type != zipfile.ZIP_STORED:
        return archive.read(info)
    name_size, extra_size = struct.unpack("<HH", view[info.header_offset + 26 : info.header_offset + 30])
    start = info.header_offset + 30 + name_size + extra_size
    return memoryview(view)[start : start + info.file_size]


def _read_legacy(view: mmap.mmap, stream: BinaryIO) -> object:
    """Four pickles, a list of keys, and then each storage: how many items, and the items."""
    kept: dict[str, Storage] = {}

    def storage(key: str, kind: str, items: int) -> Storage:
        return kept.setdefault(key, Storage(kind, items))

    Reader(stream, _no_storage).load()
    about = Reader(stream, _no_storage).load()
    if isinstance(about, dict) and about.get("little_endian") is not True:
        raise Unwanted("numbers of the other byte order: save it again")
    found = Reader(stream, storage).load()
    keys = Reader(stream, _no_storage).load()
    at = stream.tell()
    if not isinstance(keys, list):
        raise Unwanted("no list of its storages")
    for key in keys:
        wanted = kept.get(str(key))
        (items,) = struct.unpack("<q", view[at : at + 8])
        if wanted is None or items != wanted.items:
            raise Unwanted(f"a storage {key!r:.40} that nothing uses, or of another size")
        wanted.data = memoryview(view)[at + 8 : at + 8 + items * wanted.item_bytes]
        at += 8 + items * wanted.item_bytes
    return found


# ---------------------------------------------------------------- what is in it


def tensors(found: object) -> tuple[dict[str, Tensor], list[str]]:
    """Every tensor by its name, and the names of what is none. The model's own part is taken when there is one."""
    prefix = ""
    if isinstance(found, dict):
        inner = next((key for key in _BUSINESS if isinstance(found.get(key), dict) and _any(found[key])), "")
        left = [str(key) for key in found if inner and key != inner]
        found = found[inner] if inner else found
        taken, more = _flatten(prefix, found, 0)
        return taken, left + more
    return _flatten("weights", found, 0)


def _any(found: dict[object, object]) -> bool:
    return any(isinstance(value, Tensor | Array) for value in found.values())


def _flatten(prefix: str, found: object, level: int) -> tuple[dict[str, Tensor], list[str]]:
    if level > _NESTED_MAX:
        raise Unwanted("names nested without end")
    if isinstance(found, Array):
        found = found.tensor
    if isinstance(found, Tensor):
        return {prefix: found}, []
    pairs: Iterator[tuple[object, object]] = iter(())
    if isinstance(found, dict):
        pairs = iter(found.items())
    elif isinstance(found, list | tuple):
        pairs = enumerate(found)
    else:
        return {}, [prefix]
    taken: dict[str, Tensor] = {}
    left: list[str] = []
    for key, value in pairs:
        inside, more = _flatten(f"{prefix}.{key}" if prefix else str(key), value, level + 1)
        if taken.keys() & inside.keys():
            raise Unwanted(f"two tensors of the name {next(iter(taken.keys() & inside.keys()))!r:.60}")
        taken |= inside
        left += more
        if len(taken) > TENSORS_MAX:
            raise Unwanted(f"more than {TENSORS_MAX:,} tensors")
    return taken, left


def write(found: dict[str, Tensor], target: BinaryIO) -> dict[str, str]:
    """Writes a safetensors file; returns name → SHA-256 of the tensor's bytes as the source has them."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in sorted(found):
        tensor = found[name]
        size = math.prod(tensor.shape) * tensor.storage.item_bytes
        header[name] = {"dtype": tensor.storage.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write(struct.pack("<Q", len(text)) + text)
    digests = {}
    for name in sorted(found):
        digest = hashlib.sha256()
        for piece in found[name].pieces():
            digest.update(piece)
            target.write(piece)
        digests[name] = digest.hexdigest()
    target.flush()
    return digests


def main() -> None:
    size = os.fstat(0).st_size
    with (
        mmap.mmap(0, size, prot=mmap.PROT_READ) as view,
        os.fdopen(os.dup(0), "rb") as stream,
        os.fdopen(os.dup(1), "wb") as target,
    ):
        for encoding in ("latin-1", "cp437", "ascii", "raw-unicode-escape"):
            codecs.lookup(encoding)
        left = confine(memory_bytes=4 * size + 2**30, cpu_s=int(sys.argv[1]), file_bytes=4 * size + 2**26)
        if left:
            told: dict[str, object] = {"left": left}
        else:
            told = _convert(view, stream, target)
        sys.stderr.write(json.dumps(told) + "\n")
        sys.stderr.flush()
        # Tensors still look at the file: leaving at once spares taking them apart.
        os._exit(0)


def _convert(view: mmap.mmap, stream: BinaryIO, target: BinaryIO) -> dict[str, object]:
    try:
        found, left_out = tensors(read(view, stream))
        if not found:
            raise Unwanted("no tensor")
        return {"tensors": write(found, target), "left_out": left_out[:1000]}
    except Unwanted as error:
        return {"refused": str(error)}
    except (MemoryError, RecursionError, OSError) as error:
        return {"refused": f"what goes over a limit: {type(error).__name__}"}
    except Exception as error:
        # The file chose what happens here; whatever it ends in, the answer is no.
        return {"refused": f"what can't be read: {type(error).__name__}: {str(error)[:120]}"}


if __name__ == "__main__":
    main()
