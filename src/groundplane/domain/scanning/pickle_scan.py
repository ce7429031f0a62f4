"""Would Python's unpickler run this byte sequence? Answered by walking the opcodes, never by running them.

A pickle is a program. The walk follows it as the unpickler would: opcode by opcode, with the stack's depth, so that
text and weights which merely begin with the right byte are told apart from programs. It reads what it needs through a
view, jumping over long arguments, so a program that hides behind a gigabyte of padding is found as well.
Source: CPython's Modules/_pickle.c and Lib/pickletools.py.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import chain

from groundplane.domain.scanning.byte_view import ByteView

OPCODES_MAX = 200_000
"""So many valid opcodes in a row are a program, whatever follows."""

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_LINE_WINDOW_BYTES = 4096
_KEPT_LINE_BYTES = 1024
_PROTOCOL_MAX = 5
_CALLS = {"REDUCE", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD"}
_EXTENSIONS = {"EXT1", "EXT2", "EXT4"}
_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE", "SHORT_BINSTRING", "BINSTRING", "STRING"}
_READS = {"GET", "BINGET", "LONG_BINGET"}
_WRITES = {"PUT", "BINPUT", "LONG_BINPUT"}
_IDENTIFIER = re.compile(rb"[\w.\x80-\xff-]+")
# A header with an opcode that pickles go on with, or a name to import in letters. What is none ends soon.
# Two patterns, each with a first byte of its own: re finds that many times faster than one of two.
_BEGINNINGS = (
    re.compile(rb"\x80[\x02-\x05](?=[\x95\x8a-\x8e(\])}c\x80IKJMLFGNXVUTSBCq\x94PQ0i])"),
    re.compile(rb"c[a-zA-Z_][\w.]{0,100}\n[a-zA-Z_]\w{0,100}\n"),
)
_BEGINNING_BYTES = 210
# In texts, where words read as imports: those of modules that no text lists like this.
_ACTING = re.compile(
    rb"c(?:os|posix|nt|sys|subprocess|builtins|__builtin__|importlib|runpy|pty|commands|shutil|socket|pickle)\n[a-zA-Z_]\w{0,100}\n"
)
_EXTENSION = "extension"
_UNREADABLE = "a name made up while it runs"

ALLOWED_IMPORTS = frozenset(
    {
        "collections.OrderedDict",
        "torch.Size",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        *(f"torch.{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char",
                                              "Byte", "Bool", "ComplexFloat", "ComplexDouble", "Untyped")),
        "torch.storage.UntypedStorage",
    }
)  # fmt: skip
"""What a file of nothing but weights imports. Anything else could run code of the file's choosing.

Source: torch/_weights_only_unpickler.py, without what calls on to further functions of the file's choosing.
"""


@dataclass(slots=True)
class PickleWalk:
    """How far the opcodes make sense, and what they would do on the way."""

    opcodes: int = 0
    protocol: int | None = None
    newest_opcode: int = 0
    imports: list[str] = field(default_factory=list)
    calls: int = 0
    framed: bool = False
    stopped_at: int | None = None
    depth_at_stop: int = 0

    @property
    def foreign(self) -> tuple[str, ...]:
        """Imports outside the allow-list, each once."""
        return tuple(name for name in dict.fromkeys(self.imports) if name not in ALLOWED_IMPORTS)

    @property
    def names(self) -> str:
        """What it imports, for people: the first three."""
        shown = ", ".join(dict.fromkeys(self.imports[:3]))
        return shown + (", …" if len(self.imports) > 3 else "")


def scan_for_pickle(view: ByteView) -> PickleWalk | None:
    """The walk when the bytes are a pickle (protocol 0 to 5, whole, padded, or broken after its payload); else None."""
    walk = _walk(view)
    if walk.framed or (walk.protocol is not None and walk.protocol >= 2 and walk.opcodes >= 3):
        return walk
    if any(not _is_extension(name) for name in walk.imports) and (walk.calls or walk.stopped_at is not None):
        # Bytes after STOP, or nonsense after a call, do not matter: the harm is done by then.
        return walk
    if walk.imports and walk.calls and walk.stopped_at is not None:
        # An extension's opcode is short: random weights begin like one too often to count it before the end.
        return walk
    if walk.opcodes >= OPCODES_MAX:
        return walk
    # Plain data without a header is protocol 0 or 1, and ends where the file ends.
    whole = walk.stopped_at is not None and view.size_bytes - walk.stopped_at <= 2 and walk.newest_opcode <= 1
    return walk if whole and walk.opcodes >= 2 and walk.depth_at_stop == 1 else None


def scan_for_hidden_pickle(view: ByteView, *, letters: bool = True) -> PickleWalk | None:
    """The walk of a pickle that imports and calls, anywhere behind the first byte; None when there is none.

    Not `letters`: only such as have a header or name what acts, because lists of words read as imports in protocol 0.

    Whoever walks without end from many places is taken for a program as well: the work in all is bounded by the size.
    """
    opcodes_left = OPCODES_MAX + view.size_bytes // 500
    beginnings = _BEGINNINGS if letters else (_BEGINNINGS[0], _ACTING)
    places = (view.places(pattern, longest_bytes=_BEGINNING_BYTES) for pattern in beginnings)
    for place in chain.from_iterable(places):
        walk = _walk(view.part(place, view.size_bytes - place))
        opcodes_left -= walk.opcodes
        if opcodes_left < 0 or (walk.calls and any(not _is_extension(name) for name in walk.imports)):
            return walk
    return None


def _walk(view: ByteView) -> PickleWalk:
    walk, stack, memo, position = PickleWalk(), _Stack(), _Memo(), 0
    while walk.opcodes < OPCODES_MAX:
        code = view.at(position, 1)
        opcode = _OPCODES.get(code)
        if opcode is None:
            return walk
        argument = _argument(view, position + 1, opcode)
        if argument is None:
            return walk
        head, after = argument
        if not _plausible(opcode.name, head):
            return walk
        depth, newest = stack.depth, stack.texts[-2:]
        if not stack.apply(opcode):
            return walk
        walk.opcodes += 1
        walk.newest_opcode = max(walk.newest_opcode, opcode.proto)
        if opcode.name == "FRAME" and int.from_bytes(head, "little") <= view.size_bytes - after:
            # Reading from a file, C's unpickler goes astray where an argument leaves its frame: what it runs from
            # there on is written nowhere in this order. Eight bytes that fit the file are there by nobody's chance.
            walk.framed = True
        _note(walk, opcode.name, head, newest)
        memo.follow(opcode.name, head, stack)
        if opcode.name == "STOP":
            walk.stopped_at, walk.depth_at_stop = after, depth
            return walk
        position = after
    return walk


def _note(walk: PickleWalk, name: str, head: bytes, newest: list[str | None]) -> None:
    """Remembers protocol, imports and calls. `newest` are the top two of the stack: STACK_GLOBAL's module and name."""
    if name == "PROTO":
        walk.protocol = head[0]
    if name in _CALLS:
        walk.calls += 1
    if name in {"GLOBAL", "INST"}:
        walk.imports.append(".".join(part.decode(errors="replace")[:80] for part in head.split(b"\n")[:2]))
    elif name == "STACK_GLOBAL":
        walk.imports.append(_UNREADABLE if None in newest else ".".join(str(text) for text in newest))
    elif name in _EXTENSIONS:
        # copyreg's numbers stand for imports that only the loading process knows.
        walk.imports.append(f"{_EXTENSION} {int.from_bytes(head, 'little')}")


def _is_extension(name: str) -> bool:
    return name.startswith(f"{_EXTENSION} ")


@dataclass(slots=True)
class _Memo:
    """The texts that were put aside, by number: how a name is used without being written where it is used."""

    kept: dict[int, str | None] = field(default_factory=dict)

    def follow(self, name: str, head: bytes, stack: _Stack) -> None:
        """Carries out what the opcode does to texts, after the stack's depth was changed by it."""
        if name in _TEXTS:
            stack.texts[-1] = _text(name, head)
        elif name == "DUP" and stack.depth >= 2:
            stack.texts[-1] = stack.texts[-2]
        elif name in _READS:
            stack.texts[-1] = self.kept.get(_number(name, head))
        elif name in _WRITES and stack.texts:
            self.kept[_number(name, head)] = stack.texts[-1]
        elif name == "MEMOIZE":
            self.kept[len(self.kept)] = stack.texts[-1]


def _text(name: str, head: bytes) -> str | None:
    if name == "UNICODE":
        return None if b"\\" in head else head.rstrip(b"\n").decode(errors="replace")[:_KEPT_LINE_BYTES]
    if name == "STRING":
        return None if b"\\" in head else head.strip()[1:-1].decode(errors="replace")
    return head.decode(errors="replace")


def _number(name: str, head: bytes) -> int:
    return int(head.partition(b"\0")[0]) if name in {"GET", "PUT"} else int.from_bytes(head, "little")


def _argument(view: ByteView, position: int, opcode: pickletools.OpcodeInfo) -> tuple[bytes, int] | None:
    """The argument's first bytes (all of a short one) and where the next opcode begins; None at the file's end."""
    if opcode.arg is None:
        return b"", position
    size = opcode.arg.n
    if size == pickletools.UP_TO_NEWLINE:
        lines = 2 if opcode.arg.name == "stringnl_noescape_pair" else 1
        return _lines(view, position, lines)
    prefix = {
        pickletools.TAKEN_FROM_ARGUMENT1: 1,
        pickletools.TAKEN_FROM_ARGUMENT4: 4,
        pickletools.TAKEN_FROM_ARGUMENT4U: 4,
        pickletools.TAKEN_FROM_ARGUMENT8U: 8,
    }.get(size, 0)
    if prefix:
        length_bytes = view.at(position, prefix)
        if len(length_bytes) < prefix:
            return None
        signed = size == pickletools.TAKEN_FROM_ARGUMENT4
        size = int.from_bytes(length_bytes, "little", signed=signed)
        position += prefix
    if size < 0 or position + size > view.size_bytes:
        return None
    return view.at(position, min(size, _KEPT_LINE_BYTES)), position + size


def _lines(view: ByteView, position: int, count: int) -> tuple[bytes, int] | None:
    kept, start = b"", position
    while count:
        window = view.at(position, _LINE_WINDOW_BYTES)
        if not window:
            # Python's own unpickler takes a last line that does not end, but for its last letter.
            whole = count == 1 and position - start in range(2, _KEPT_LINE_BYTES)
            return (view.at(start, position - start - 1) + b"\n", position) if whole else None
        found = window.find(b"\n")
        count -= found >= 0
        position += found + 1 if found >= 0 else len(window)
        if position - start <= _KEPT_LINE_BYTES:
            kept = view.at(start, position - start)
    return kept or view.at(start, _KEPT_LINE_BYTES), position


def _plausible(name: str, head: bytes) -> bool:
    """Whether the unpickler would take this argument; keeps prose that begins like an opcode from counting as one.

    C's unpickler reads numbers as C texts: what follows a NUL in the line is not looked at.
    """
    number = head.partition(b"\0")[0].strip()
    if name == "PROTO":
        return head[0] <= _PROTOCOL_MAX
    if name in {"GLOBAL", "INST"}:
        parts = head.split(b"\n")
        return len(parts) >= 2 and all(_IDENTIFIER.fullmatch(part.rstrip(b"\r")) for part in parts[:2])
    if name == "INT" and head.startswith(b"\0"):
        return True
    if name in {"INT", "LONG"}:
        number = number.removesuffix(b"L")
        return _reads(number, lambda text: int(text, 0)) or _reads(number, int)
    if name == "FLOAT":
        return _reads(number, float)
    if name in {"GET", "PUT"}:
        return _reads(number, int)
    if name == "STRING":
        text = head.strip()
        return len(text) >= 2 and text[:1] in b"'\"" and (text[-1:] == text[:1] or len(text) >= _KEPT_LINE_BYTES)
    return True


def _reads(text: bytes, read: Callable[[bytes], object]) -> bool:
    try:
        read(text)
    except ValueError:
        return False
    return True


@dataclass(slots=True)
class _Stack:
    """The unpickler's stack: the texts on it, None for anything else; `marks` are the depths of its MARKs."""

    texts: list[str | None] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)

    @property
    def depth(self) -> int:
        return len(self.texts)

    def apply(self, opcode: pickletools.OpcodeInfo) -> bool:
        """Performs the opcode's effect. False when the stack is too short for it."""
        before, after = opcode.stack_before, opcode.stack_after
        if pickletools.markobject in before:
            if not self.marks:
                return False
            mark = self.marks.pop()
            # OBJ calls the class that lies directly above the mark.
            if opcode.name == "OBJ" and self.depth <= mark:
                return False
            del self.texts[mark:]
            needed = before.index(pickletools.markobject)
        elif opcode.name == "POP" and self.marks and self.depth == self.marks[-1]:
            self.marks.pop()
            return True
        else:
            needed = len(before)
        floor = self.marks[-1] if self.marks else 0
        if self.depth - floor < needed:
            return False
        # What an opcode leaves where something was is no text that we know, but for those that only look at the top.
        if opcode.name == "MEMOIZE":
            return True
        del self.texts[self.depth - needed :]
        if pickletools.markobject in after:
            self.marks.append(self.depth)
        else:
            self.texts += [None] * len(after)
        return True
