"""A program of its own: weights in a pickle become safetensors. No library of arrays; nothing in the file is called.

Standard input: the file, open. Standard output: the safetensors file, open. Standard error: one JSON line that says
which tensors there are, with the SHA-256 of each one's bytes, and what was left out; or what was refused.

The unpickler knows a handful of names, each standing for a class of this module that only remembers what it was given.
Source: torch/serialization.py, torch/_utils.py and torch/_weights_only_unpickler.py (2.13); numpy/core/multiarray.
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
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal

from groundplane.adapters.confined.confine import confine
from groundplane.domain.scanning.pickled_weights import TORCH_PART
from groundplane.domain.scanning.tensor_header import HEADER_BYTES_MAX

OUTPUT_FACTOR, OUTPUT_EXTRA_BYTES = 4, 2**26
"""The new file has at most so many times the old one's bytes, and so many more: packed and shared storages grow."""

_NESTED_MAX = 40
_DIMENSIONS_MAX = 64
_NAME_MAX = 1000
_VALUES_MAX = 2_000_000
_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "Double": ("F64", 8), "Float": ("F32", 4), "Half": ("F16", 2), "BFloat16": ("BF16", 2), "Long": ("I64", 8),
    "Int": ("I32", 4), "Short": ("I16", 2), "Char": ("I8", 1), "Byte": ("U8", 1), "Bool": ("BOOL", 1),
    "ComplexFloat": ("C64", 8), "Untyped": ("U8", 1),
}  # fmt: skip
_NEWER = {
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1), "float8_e8m0fnu": ("F8_E8M0", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
    "uint16": ("U16", 2), "uint32": ("U32", 4), "uint64": ("U64", 8),
}  # fmt: skip
"""Kinds of numbers that have no storage of their own: the tensor says how the bytes are read."""
_NUMPY = {"f8": "F64", "f4": "F32", "f2": "F16", "i8": "I64", "i4": "I32", "i2": "I16", "i1": "I8", "u1": "U8",
          "u2": "U16", "u4": "U32", "u8": "U64", "b1": "BOOL", "c8": "C64"}  # fmt: skip
_OBJECTS = "O8"
_ITEMS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}
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
    """A view of a storage: offset and strides in items, which are the storage's own or of a newer kind."""

    __slots__ = ("dtype", "item_bytes", "offset", "shape", "storage", "strides")

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        if len(shape) != len(strides) or not _are_sizes((offset, *shape, *strides)):
            raise Unwanted("a tensor of shape, strides or offset that no tensor has")
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides
        self.dtype, self.item_bytes = storage.dtype, storage.item_bytes

    def __setstate__(self, state: object) -> None:
        raise Unwanted("a tensor is given a state")

    def pieces(self) -> Iterator[bytes | memoryview]:
        """The tensor's bytes in row-major order. Unwanted when they lie outside the storage."""
        size, data = self.item_bytes, memoryview(self.storage.data)
        count = math.prod(self.shape)
        last = self.offset + sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        if count and (last + 1) * size > len(data):
            raise Unwanted(f"a tensor ends at item {last:,} of a storage of {len(data) // size:,}")
        if not count:
            return
        # What is contiguous at the end of the shape is written at once; else the last dimension is, in steps.
        run, dimensions = 1, len(self.shape)
        while dimensions and (self.shape[dimensions - 1] == 1 or self.strides[dimensions - 1] == run):
            dimensions -= 1
            run *= self.shape[dimensions]
        stepped = bool(dimensions) and run == 1
        dimensions -= stepped
        steps = [range(0, n * stride, stride) if stride else [0] * n
                 for n, stride in zip(self.shape[:dimensions], self.strides[:dimensions], strict=True)]  # fmt: skip
        items = data[: len(data) // size * size].cast(_ITEMS[size])
        for starts in itertools.product(*steps):
            begin = self.offset + sum(starts)
            if stepped:
                yield _every(items, begin, self.shape[dimensions], self.strides[dimensions])
            else:
                yield data[begin * size : (begin + run) * size]


def _every(items: memoryview, begin: int, count: int, stride: int) -> bytes:
    """So many items, each `stride` behind the one before it; the same one again and again when that is 0."""
    if not stride:
        return items[begin : begin + 1].tobytes() * count
    return items[begin : begin + (count - 1) * stride + 1 : stride].tobytes()


def _are_sizes(numbers: tuple[object, ...]) -> bool:
    """Whether they are plain numbers as sizes are, and no more than a tensor has: looked at before any sum is done."""
    return len(numbers) <= 2 * _DIMENSIONS_MAX + 1 and all(type(n) is int and 0 <= n < 2**48 for n in numbers)


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


class NumberKind:
    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __setstate__(self, state: object) -> None:
        raise Unwanted("a kind of numbers is given a state")


class Ordered(dict[object, object]):
    """An OrderedDict. What else it is given, such as a state dict's `_metadata`, would hide what it holds: let go."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class Aside:
    """What trainers keep beside the weights, such as their arguments: that it was there, and nothing of it."""

    __slots__ = ()

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass


class Array:
    """A numpy array: what its pickle's state says. One of objects is a list of them, or the one of no shape."""

    __slots__ = ("tensor",)
    tensor: object

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise Unwanted("an array of an unknown kind")
        _, shape, dtype, fortran, raw = state
        if isinstance(raw, list) and isinstance(dtype, Dtype) and dtype.name == _OBJECTS:
            self.tensor = raw[0] if shape == () and len(raw) == 1 else raw
            return
        self.tensor = _array(raw, dtype, shape, fortran=bool(fortran))


class Dtype:
    __slots__ = ("big", "name")

    def __init__(self, name: object, *_: object) -> None:
        if not isinstance(name, str) or name.lstrip("<>=|") not in {*_NUMPY, _OBJECTS}:
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


def _array(raw: object, dtype: object, shape: object, *, fortran: bool) -> Tensor:
    if not isinstance(dtype, Dtype) or dtype.name == _OBJECTS or not isinstance(raw, bytes | bytearray):
        raise Unwanted("an array of objects, which could be anything")
    if not isinstance(shape, tuple) or not _are_sizes(shape):
        raise Unwanted("an array whose shape is none")
    return dtype.tensor(shape, bytes(raw), fortran=fortran)


def _strides(shape: tuple[int, ...], *, fortran: bool = False) -> tuple[int, ...]:
    order, strides, run = range(len(shape)), [0] * len(shape), 1
    for at in order if fortran else reversed(order):
        strides[at] = run
        run *= shape[at]
    return tuple(strides)


def _rebuild(storage: object, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *others: object) -> Tensor:
    """A tensor, whose other arguments are: whether it has a gradient, hooks, and bits that turn its numbers' signs."""
    if not isinstance(storage, Storage):
        raise Unwanted("a tensor without a storage")
    if others[2:] and others[2]:
        raise Unwanted("a tensor conjugated or negated as it is read: save what resolve_conj().resolve_neg() gives")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _rebuild_newer(
    storage: object, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *others: object
) -> Tensor:
    made = _rebuild(storage, offset, shape, strides, *others[:2], *others[3:])
    kind = others[2] if len(others) > 2 else None
    if not isinstance(kind, NumberKind) or made.storage.item_bytes != 1:
        raise Unwanted("a tensor that does not say what its bytes are")
    made.dtype, made.item_bytes = _NEWER[kind.kind]
    return made


def _encode(text: object, encoding: object) -> bytes:
    if not isinstance(text, str) or encoding not in {"latin1", "latin-1"}:
        raise Unwanted("text in an encoding that arrays do not use")
    return text.encode("latin-1")


_NAMES: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): Ordered,
    ("argparse", "Namespace"): Aside,
    ("torch", "device"): Named("torch.device", Aside),
    **{(f"numpy.{core}.multiarray", "scalar"): Named("scalar", Aside) for core in ("core", "_core")},
    ("torch", "Size"): Named("torch.Size", tuple),
    ("torch._utils", "_rebuild_tensor"): Named("_rebuild_tensor", _rebuild),
    ("torch._utils", "_rebuild_tensor_v2"): Named("_rebuild_tensor_v2", _rebuild),
    ("torch._utils", "_rebuild_tensor_v3"): Named("_rebuild_tensor_v3", _rebuild_newer),
    ("torch._utils", "_rebuild_parameter"): Named("_rebuild_parameter", lambda data, *_: data),
    ("_codecs", "encode"): Named("encode", _encode),
    **{("torch", f"{kind}Storage"): StorageKind(kind) for kind in _STORAGES},
    ("torch.storage", "UntypedStorage"): StorageKind("Untyped"),
    **{("torch", kind): NumberKind(kind) for kind in _NEWER},
    **{
        (f"numpy.{core}.multiarray", "_reconstruct"): Named("_reconstruct", lambda *_: Array())
        for core in ("core", "_core")
    },
    **{(f"numpy.{core}.numeric", "_frombuffer"): Named("_frombuffer", lambda raw, dtype, shape, order: _array(
        raw, dtype, shape, fortran=order == "F")) for core in ("core", "_core")},
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
        if not isinstance(pid[2], str) or not _are_sizes((pid[4],)):
            raise Unwanted("a storage without a name or a size")
        return self._storage(pid[2], pid[1].kind, pid[4])


# ---------------------------------------------------------------- containers


def read(view: mmap.mmap, stream: BinaryIO) -> object:
    """What the file holds, with every storage filled."""
    if view[:4] == b"PK\x03\x04":
        return _read_zip(view, stream)
    if view[:6] == b"\x93NUMPY":
        size_bytes = int.from_bytes(view[8:10], "little") + 10
        stream.seek(size_bytes if view[6] == 1 else int.from_bytes(view[8:12], "little") + 12)
        found = Reader(stream, _no_storage).load()
        return found.tensor if isinstance(found, Array) else found
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
        beside = next((name for name in names if not TORCH_PART.fullmatch(name.removeprefix(prefix))), None)
        if beside is not None:
            raise Unwanted(f"{beside!r:.80} beside its weights")
        if f"{prefix}byteorder" in names and archive.read(f"{prefix}byteorder").strip() != b"little":
            raise Unwanted("numbers of the other byte order: save it again")
        kept: dict[str, Storage] = {}

        def storage(key: str, kind: str, items: int) -> Storage:
            if key not in kept:
                made = Storage(kind, items)
                made.data = _member(view, archive, names.get(f"{prefix}data/{key}"))
                if len(made.data) != items * made.item_bytes:
                    raise Unwanted(f"a storage of {items:,} items in {len(made.data):,} bytes")
                kept[key] = made
            return kept[key]

        found = Reader(io.BytesIO(archive.read(programs[0])), storage).load()
        unused = [name for name in names if "/data/" in f"/{name}" and name.rpartition("/")[2] not in kept]
        if unused:
            raise Unwanted(f"{unused[0]!r:.80}, a storage that nothing uses")
        return found


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
    if at != len(view):
        raise Unwanted(f"{len(view) - at:,} bytes behind its storages")
    return found


# ---------------------------------------------------------------- what is in it


def tensors(found: object) -> tuple[dict[str, Tensor], list[str]]:
    """Every tensor by its name, and the names of what is none. The model's own part is taken when there is one."""
    flat = _Flat()
    if not isinstance(found, dict):
        flat.take("weights", found, 0)
        return flat.tensors, flat.left_out
    inner = next((key for key in _BUSINESS if isinstance(found.get(key), dict) and _any(found[key])), "")
    flat.left_out = [_word(key) for key in found if inner and key != inner]
    flat.take("", found[inner] if inner else found, 0)
    return flat.tensors, flat.left_out


def _any(found: dict[object, object]) -> bool:
    return any(isinstance(value, Tensor | Array) for value in found.values())


def _word(key: object) -> str:
    """A key as a part of a name, cut where names end."""
    if isinstance(key, str):
        return key[: _NAME_MAX + 1]
    plain = key is None or isinstance(key, float) or (isinstance(key, int) and key.bit_length() <= 64)
    return str(key) if plain else _NO_WORD


class _Flat:
    """Collects what lies in nested dictionaries and lists, and counts: few bytes can describe very many of them."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.left_out: list[str] = []
        self._values = 0

    def take(self, name: str, found: object, level: int) -> None:
        self._values += 1
        if level > _NESTED_MAX or self._values > _VALUES_MAX:
            raise Unwanted(f"names nested without end, or over {_VALUES_MAX:,} values")
        name = name[: _NAME_MAX + 1]
        if isinstance(found, Array):
            found = found.tensor
        if isinstance(found, Tensor):
            self._keep(name, found)
            return
        pairs: Iterator[tuple[object, object]]
        if isinstance(found, dict):
            pairs = iter(found.items())
        elif isinstance(found, list | tuple):
            pairs = enumerate(found)
        else:
            self.left_out.append(name)
            return
        for key, value in pairs:
            self.take(f"{name}.{_word(key)}" if name else _word(key), value, level + 1)

    def _keep(self, name: str, found: Tensor) -> None:
        if name in self.tensors:
            raise Unwanted(f"two tensors of the name {name!r:.60}")
        if len(name) > _NAME_MAX or _NO_WORD in name:
            raise Unwanted(f"a tensor whose name has over {_NAME_MAX:,} letters, or is neither text nor number")
        if name == _METADATA or any("\ud800" <= letter <= "\udfff" for letter in name):
            raise Unwanted(f"a tensor of the name {name!a:.60}, which safetensors can't have")
        self.tensors[name] = found


_NO_WORD = "(neither text nor number)"
_METADATA = "__metadata__"


def write(found: dict[str, Tensor], target: BinaryIO, bytes_max: int) -> dict[str, str]:
    """Writes a safetensors file; returns name → SHA-256 of the tensor's bytes as the source has them.

    Unwanted, before anything is written, when the file would have more than `bytes_max`.
    """
    header: dict[str, object] = {_METADATA: {"format": "pt"}}
    at = 0
    for name in sorted(found):
        tensor = found[name]
        size = math.prod(tensor.shape) * tensor.item_bytes
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [at, at + size]}
        at += size
        if at > bytes_max:
            raise Unwanted(f"tensors of more than {bytes_max:,} bytes, many times the file's own")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > HEADER_BYTES_MAX:
        raise Unwanted(f"names and shapes of {len(text):,} bytes, over the limit of {HEADER_BYTES_MAX:,}")
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
        bytes_max = OUTPUT_FACTOR * size + OUTPUT_EXTRA_BYTES
        confined = confine(
            memory_bytes=4 * size + 2**30, cpu_s=int(sys.argv[1]), file_bytes=bytes_max + HEADER_BYTES_MAX + 8
        )
        told: dict[str, object] = {"left": confined.left, "filtered": confined.filtered}
        if not confined.left:
            told |= _convert(view, stream, target, bytes_max)
        sys.stderr.write(json.dumps(told) + "\n")
        sys.stderr.flush()
        # Tensors still look at the file: leaving at once spares taking them apart.
        os._exit(0)


def _convert(view: mmap.mmap, stream: BinaryIO, target: BinaryIO, bytes_max: int) -> dict[str, object]:
    try:
        found, left_out = tensors(read(view, stream))
        if not found:
            raise Unwanted("no tensor")
        return {"tensors": write(found, target, bytes_max), "left_out": left_out[:1000]}
    except Unwanted as error:
        return {"refused": str(error)}
    except (MemoryError, RecursionError, OSError) as error:
        return {"refused": f"what goes over a limit: {type(error).__name__}"}
    except Exception as error:
        # The file chose what happens here; whatever it ends in, the answer is no.
        return {"refused": f"what can't be read: {type(error).__name__}: {str(error)[:120]}"}


if __name__ == "__main__":
    main()
