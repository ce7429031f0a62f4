"""Does a pickle do nothing but make weights? Followed value by value, and only where there is one way to read it.

Only opcodes that Python's picklers write in protocol 2 to 5 pass, only names of the table below, and each name only in
the place that it is for: a storage's kind is never called, a function never given a state. Whoever wants to convert
such a file still must; a scan need not cry wolf over it.
Source: torch/_weights_only_unpickler.py (2.9), torch/serialization.py, numpy/_core/multiarray pickles.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass, field

from groundplane.domain.scanning.archives import Member
from groundplane.domain.scanning.byte_view import ByteView

PROGRAM_BYTES_MAX = 64 * 2**20
_OPCODES_MAX = 1_000_000
_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_LENGTH_BYTES = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_HEADERS = frozenset(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_LINE_BYTES_MAX = 200
_NESTED_MAX = 16
_NONE, _DICT, _LIST, _SET, _OTHER = (object() for _ in range(5))
"""None, containers, and any value whose content does not matter: fractions, bytes, truths."""
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

_ITEM_BYTES = {
    "Double": 8,
    "Float": 4,
    "Half": 2,
    "BFloat16": 2,
    "Long": 8,
    "Int": 4,
    "Short": 2,
    "Char": 1,
    "Byte": 1,
    "Bool": 1,
    "ComplexFloat": 8,
    "ComplexDouble": 16,
    "QInt8": 1,
    "QUInt8": 1,
    "QInt32": 4,
    "Untyped": 1,
}
_STORAGES = {f"torch.{kind}Storage": width for kind, width in _ITEM_BYTES.items()} | {"torch.storage.UntypedStorage": 1}
_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
           "uint64", "bool", "complex32", "complex64", "complex128", "qint8", "quint8", "qint32", "float8_e4m3fn",
           "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "per_tensor_affine",
           "per_channel_affine", "strided")  # fmt: skip
_NUMPY = ("numpy.core", "numpy._core")
_ARRAYS = frozenset(f"{core}.multiarray._reconstruct" for core in _NUMPY)
_SETTINGS = frozenset({"transformers.training_args.TrainingArguments", "argparse.Namespace",
                       "transformers.trainer_pt_utils.AcceleratorConfig",
                       "transformers.training_args_seq2seq.Seq2SeqTrainingArguments", "accelerate.state.PartialState",
                       "accelerate.state.AcceleratorState"})  # fmt: skip
_ORDERED = "collections.OrderedDict"
_CHOICES = frozenset(
    {f"transformers.trainer_utils.{name}" for name in ("IntervalStrategy", "SaveStrategy", "HubStrategy",
                                                       "SchedulerType", "EvaluationStrategy", "FSDPOption")}
    | {"transformers.training_args.OptimizerNames", "transformers.training_args.ParallelMode",
       "transformers.debug_utils.DebugOption", "accelerate.utils.dataclasses.DistributedType"}
)  # fmt: skip
_CALLED = frozenset(
    {_ORDERED, "collections.defaultdict", "collections.Counter", "torch.Size", "torch.device", "_codecs.encode",
     "torch.serialization._get_layout", "numpy.dtype", *_ARRAYS, *_CHOICES,
     *(f"{core}.multiarray.scalar" for core in _NUMPY), *(f"{core}.numeric._frombuffer" for core in _NUMPY),
     *(f"{library}.{kind}" for library in ("builtins", "__builtin__") for kind in ("set", "frozenset", "complex")),
     *(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "parameter", "qtensor",
                                                    "sparse_tensor", "meta_tensor_no_storage"))}
)  # fmt: skip
"""What may be called: it makes a container, a tensor, an array or a choice of a fixed few, whatever it is given."""
_NAMED = frozenset(
    {"numpy.ndarray", "torch.Tensor", *_STORAGES, *(f"torch.{name}" for name in _DTYPES),
     *(f"{library}.{kind}" for library in ("builtins", "__builtin__") for kind in ("dict", "list", "int", "float")),
     }
)  # fmt: skip
"""What is only named: kinds of storages and numbers, and what a defaultdict begins with."""
_STORED = frozenset(f"torch._utils._rebuild_{what}" for what in ("tensor", "tensor_v2", "tensor_v3", "qtensor"))
"""Calls whose first arguments are a storage and where in it the tensor lies."""
_FILLED = frozenset({_ORDERED, "collections.defaultdict", "collections.Counter"})
_KNOWN = _CALLED | _NAMED | _SETTINGS
_PLAIN_DTYPE = re.compile(r"[<=|]?[biufc][0-9]{1,2}")


@dataclass(frozen=True, slots=True)
class _Name:
    """An import."""

    name: str


@dataclass(frozen=True, slots=True)
class _Made:
    """What a call of this name gave."""

    name: str


@dataclass(frozen=True, slots=True)
class _Storage:
    """Bytes that tensors are cut from, outside the pickle."""

    items: int
    size_bytes: int


class _Tuple(tuple[object, ...]):
    """A tuple, not too deep: one whose parts are shared takes for ever to be hashed."""

    def __init__(self, items: list[object]) -> None:
        self.depth: int = 1 + max((item.depth for item in items if isinstance(item, _Tuple)), default=0)
        if self.depth > _NESTED_MAX:
            raise _Unsure


class _Unsure(Exception):
    """The pickle does something that weights do not need, or that could be read in two ways."""


def texts_of_weights(view: ByteView) -> list[str] | None:
    """The texts of a file that is one pickle of weights to its last byte, or PyTorch's old five and their storages.

    None when it may be more than that.
    """
    data = view.at(0, PROGRAM_BYTES_MAX)
    try:
        reading = _Reading(data)
        first, end = reading.run(0)
        if first != _LEGACY_MAGIC:
            return reading.texts if end == view.size_bytes and not reading.storages else None
        version, end = _Reading(data).run(end)
        _, end = _Reading(data).run(end)
        _, end = reading.run(end)
        _, end = _Reading(data).run(end)
    except _Unsure:
        return None
    # Each storage says how many items it has, and has them.
    stored = sum(8 + storage.size_bytes for storage in reading.storages.values())
    return reading.texts if version == _LEGACY_VERSION and end + stored == view.size_bytes else None


TORCH_PART = re.compile(
    r"data\.pkl|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id|data/[0-9]{1,20}"
)
"""What torch.save puts into a zip of weights, below one folder."""


def texts_of_torch_weights(members: list[Member]) -> list[str] | None:
    """The same of a zip that is what torch.save makes of weights: stored parts in one folder, one pickle of weights."""
    folder = members[0].path.partition("/")[0] + "/" if members else ""
    parts = {member.path.removeprefix(folder): member for member in members if member.path.startswith(folder)}
    plain = all(
        TORCH_PART.fullmatch(part) and member.kind == "file" and member.content.size_bytes == member.size_bytes
        for part, member in parts.items()
    )
    if not plain or len(parts) != len(members) or "data.pkl" not in parts:
        return None
    program = parts["data.pkl"].content
    try:
        reading = _Reading(program.at(0, PROGRAM_BYTES_MAX))
        _, end = reading.run(0)
    except _Unsure:
        return None
    stored = all(
        (part := parts.get(f"data/{key}")) is not None and part.size_bytes == storage.size_bytes
        for key, storage in reading.storages.items()
    )
    used = sum(part.startswith("data/") for part in parts) == len(reading.storages)
    return reading.texts if stored and used and end == program.size_bytes else None


@dataclass(slots=True)
class _Reading:
    """One pickle followed: what lies on the stack, where its marks are, and what was put aside."""

    data: bytes
    stack: list[object] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, object] = field(default_factory=dict)
    storages: dict[str, _Storage] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)

    def run(self, at: int) -> tuple[object, int]:
        """What the pickle at `at` gives, and where it ends. Raises _Unsure."""
        if self.data[at : at + 2] not in _HEADERS:
            raise _Unsure
        self.stack, self.memo = [], {}
        at, frame_end = at + 2, -1
        for _ in range(_OPCODES_MAX):
            opcode = _OPCODES.get(self.data[at : at + 1])
            if opcode is None:
                raise _Unsure
            argument, after = self._argument(opcode, at + 1)
            # Readers differ on what lies across a frame's end.
            if at < frame_end < after:
                raise _Unsure
            if opcode.name == "STOP":
                if frame_end > after:
                    raise _Unsure
                return self._stop(), after
            if opcode.name == "FRAME":
                if at < frame_end:
                    raise _Unsure
                frame_end = after + int.from_bytes(argument, "little")
            else:
                self._do(opcode.name, argument)
            at = after
        raise _Unsure

    def _stop(self) -> object:
        if self.marks or len(self.stack) != 1:
            raise _Unsure
        return self.stack[0]

    def _argument(self, opcode: pickletools.OpcodeInfo, at: int) -> tuple[bytes, int]:
        if opcode.arg is None:
            return b"", at
        size = opcode.arg.n
        if opcode.name == "GLOBAL":
            lines = self.data[at : at + _LINE_BYTES_MAX].split(b"\n", 2)
            if len(lines) < 3:
                raise _Unsure
            return b"\n".join(lines[:2]), at + len(lines[0]) + len(lines[1]) + 2
        if size in _LENGTH_BYTES:
            width = _LENGTH_BYTES[size]
            size, at = int.from_bytes(self.data[at : at + width], "little"), at + width
        if size < 0 or at + size > len(self.data):
            raise _Unsure
        kept = size <= _LINE_BYTES_MAX or opcode.name in _TEXTS
        return self.data[at : at + size] if kept else b"", at + size

    def _do(self, name: str, argument: bytes) -> None:
        if name in _PUSHED:
            self.stack.append(_PUSHED[name])
        elif name in {"BININT", "LONG1"}:
            self.stack.append(int.from_bytes(argument, "little", signed=True))
        elif name in {"BININT1", "BININT2"}:
            self.stack.append(int.from_bytes(argument, "little"))
        elif name in _TEXTS:
            self.texts.append(argument.decode(errors="replace"))
            self.stack.append(self.texts[-1])
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name in _TUPLES:
            self.stack.append(_Tuple(self._take(_TUPLES[name])))
        elif name == "TUPLE":
            self.stack.append(_Tuple(self._take_to_mark()))
        elif name == "FROZENSET":
            self._take_to_mark()
            self.stack.append(_OTHER)
        elif name in _FILLS:
            self._fill(name)
        elif name in {"MEMOIZE", "BINPUT", "LONG_BINPUT"}:
            number = len(self.memo) if name == "MEMOIZE" else int.from_bytes(argument, "little")
            self.memo[number] = self._top()
        elif name in {"BINGET", "LONG_BINGET"}:
            if (number := int.from_bytes(argument, "little")) not in self.memo:
                raise _Unsure
            self.stack.append(self.memo[number])
        else:
            self._act(name, argument)

    def _act(self, name: str, argument: bytes) -> None:
        """What names, calls and gives states: the opcodes that could do anything."""
        if name == "GLOBAL":
            self._name(*argument.decode(errors="replace").split("\n"))
        elif name == "STACK_GLOBAL":
            self._name(*self._take(2))
        elif name == "BINPERSID":
            self.stack.append(self._storage(*self._take(1)))
        elif name == "REDUCE":
            called, given = self._take(2)
            if not (isinstance(called, _Name) and called.name in _CALLED and isinstance(given, tuple)):
                raise _Unsure
            self.stack.append(_called(called.name, given))
        elif name == "NEWOBJ":
            made, given = self._take(2)
            if not (isinstance(made, _Name) and made.name in _SETTINGS and given == ()):
                raise _Unsure
            self.stack.append(_Made(made.name))
        elif name == "BUILD":
            built, state = self._take(2)
            if not (isinstance(built, _Made) and _takes(built.name, state)):
                raise _Unsure
            self.stack.append(built)
        else:
            raise _Unsure

    def _storage(self, pid: object) -> _Storage:
        """Bytes outside the pickle: ("storage", kind, key, where, items), and in old files no view of another's."""
        if not (isinstance(pid, tuple) and (len(pid) == 5 or (len(pid) == 6 and pid[5] is _NONE))):
            raise _Unsure
        said, kind, key, _, items, *_ = pid
        width = _STORAGES.get(kind.name, 0) if isinstance(kind, _Name) else 0
        if said != "storage" or not width or not isinstance(key, str) or not isinstance(items, int) or items < 0:
            raise _Unsure
        made = _Storage(items, items * width)
        if self.storages.setdefault(key, made) != made:
            raise _Unsure
        return made

    def _name(self, module: object, name: object) -> None:
        known = f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) and "." not in name else ""
        if known not in _KNOWN:
            raise _Unsure
        self.stack.append(_Name(known))

    def _top(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise _Unsure
        return self.stack[-1]

    def _take(self, count: int) -> list[object]:
        floor = len(self.stack) - count
        if floor < (self.marks[-1] if self.marks else 0):
            raise _Unsure
        taken = self.stack[floor:]
        del self.stack[floor:]
        return taken

    def _take_to_mark(self) -> list[object]:
        if not self.marks:
            raise _Unsure
        mark = self.marks.pop()
        taken = self.stack[mark:]
        del self.stack[mark:]
        return taken

    def _fill(self, name: str) -> None:
        """Values go into the container below them; into anything else, and readers write where they should not."""
        count, kind = _FILLS[name]
        taken = self._take_to_mark() if count is None else self._take(count)
        target = self._top()
        if len(taken) % (1 + (kind is _DICT)) or not (
            target is kind or (kind is _DICT and isinstance(target, _Made) and target.name in _FILLED)
        ):
            raise _Unsure


_PUSHED = {"NONE": _NONE, "NEWTRUE": _OTHER, "NEWFALSE": _OTHER, "BINFLOAT": _OTHER, "LONG4": _OTHER,
           "SHORT_BINBYTES": _OTHER, "BINBYTES": _OTHER, "BINBYTES8": _OTHER, "BYTEARRAY8": _OTHER,
           "EMPTY_DICT": _DICT, "EMPTY_LIST": _LIST, "EMPTY_SET": _SET}  # fmt: skip
_TEXTS = frozenset({"SHORT_BINUNICODE", "BINUNICODE", "SHORT_BINSTRING", "BINSTRING"})
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FILLS: dict[str, tuple[int | None, object]] = {
    "APPEND": (1, _LIST), "SETITEM": (2, _DICT), "APPENDS": (None, _LIST), "SETITEMS": (None, _DICT),
    "ADDITEMS": (None, _SET),
}  # fmt: skip


def _called(name: str, given: tuple[object, ...]) -> object:
    """What a call gives, where its arguments are such as weights have."""
    if name == "numpy.dtype":
        # An array of objects is another program; one of records could hide it.
        fits = bool(given) and isinstance(given[0], str) and _PLAIN_DTYPE.fullmatch(given[0]) is not None
    elif name in _ARRAYS:
        fits = bool(given) and given[0] == _Name("numpy.ndarray")
    elif name.endswith((".scalar", "._frombuffer")):
        fits = _Made("numpy.dtype") in given[:2]
    elif name in _STORED:
        fits = _lies_within(given)
    elif name == "_codecs.encode":
        fits = len(given) == 2 and isinstance(given[1], str) and given[1] in {"latin1", "latin-1"}
    else:
        fits = True
    if not fits:
        raise _Unsure
    return _Made(name)


def _lies_within(given: tuple[object, ...]) -> bool:
    """Whether a tensor (storage, offset, shape, strides, …) lies in the storage that it is cut from."""
    if len(given) < 4:
        return False
    storage, offset, shape, strides = given[:4]
    if not (isinstance(storage, _Storage) and isinstance(shape, tuple) and isinstance(strides, tuple)):
        return False
    if len(shape) != len(strides) or not all(isinstance(n, int) and n >= 0 for n in (offset, *shape, *strides)):
        return False
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if 0 not in shape else -1
    return isinstance(offset, int) and offset + last < max(storage.items, 1)


def _takes(name: str, state: object) -> bool:
    """Whether what was made may be given this state."""
    if name == "numpy.dtype":
        # Flags of another dtype would have numbers taken for addresses.
        plain = isinstance(state, tuple) and len(state) == 8 and state[2:5] == (_NONE, _NONE, _NONE)
        return plain and isinstance(state, tuple) and state[5:] == (-1, -1, 0)
    if name in _ARRAYS:
        return isinstance(state, tuple) and len(state) == 5 and state[2] == _Made("numpy.dtype")
    return state is _DICT and (name == _ORDERED or name in _SETTINGS)
