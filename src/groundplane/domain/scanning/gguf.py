"""A GGUF file's header, read within bounds: its counts, its tensors' places, and the chat templates in its metadata.

Source: the format's specification in the ggml project (docs/gguf.md), versions 2 and 3.
"""

from __future__ import annotations

import math
import re
import struct
from dataclasses import dataclass

from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.templates_scan import Template

_COUNT_MAX = 2**20
_KEY_LETTERS_MAX = 2**16 - 1
_TEXT_BYTES_MAX = 64 * 2**20
_DIMENSIONS_MAX = 4
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_ARCHITECTURE = re.compile(r"[\w.+-]{1,64}")
_STRING, _ARRAY, _UINT32 = 8, 9, 4
_ALIGNMENT_MAX = 2**20
_KIND_MAX = 127
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip
"""Tensor type → elements in a block, and its bytes; newer types are known by their places alone."""
_ARRAY_ITEMS_MAX = 2**26
_TEXTS_MAX = 2**22
_NESTED_MAX = 4
_BEHIND_BYTES = 2**20


class GgufFault(ValueError):
    """The header breaks a rule of the format; the message says which, with the number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufSummary:
    version: int
    tensors: int
    templates: tuple[Template, ...]
    text: str = ""
    """The metadata's texts, each with its key, a line each; not the lists'."""


def read_gguf(view: ByteView) -> GgufSummary:
    """Reads all metadata and tensor entries; raises GgufFault at the first that lies outside the file."""
    version, tensors, keys = struct.unpack("<LQQ", _at(view, 4, 20))
    if version not in {2, 3} or tensors > _COUNT_MAX or keys > _COUNT_MAX:
        raise GgufFault(f"version {version}, {tensors:,} tensors, {keys:,} keys")
    reader, templates, texts, seen = _Reader(view, 24), [], [], set()
    for _ in range(keys):
        key = reader.text()
        if key in seen:
            raise GgufFault(f"the key {key[:60]!r} is given twice")
        if len(key) > _KEY_LETTERS_MAX or not key.isprintable():
            raise GgufFault(f"the key {key[:60]!r} has {len(key):,} letters, or some that can't be printed")
        seen.add(key)
        kind = reader.number(4)
        if key == "general.alignment":
            reader.read_alignment(kind)
            continue
        if key == "general.architecture" and kind != _STRING:
            raise GgufFault(f"general.architecture has the type {kind}")
        value = reader.value(kind, wanted=kind == _STRING or "chat_template" in key)
        if key == "general.architecture" and not _ARCHITECTURE.fullmatch(value or ""):
            raise GgufFault(f"general.architecture is {(value or '')[:60]!r}")
        if value is not None and "\x1b" in value:
            raise GgufFault(f"the text of {key[:60]!r} holds commands to a terminal")
        if value is not None and "chat_template" in key:
            templates.append(Template(name=key, source=value))
        elif value is not None:
            texts.append(f"{key}: {value}")
    alignment = reader.alignment
    spans = [reader.tensor(alignment) for _ in range(tensors)]
    data_bytes = view.size_bytes - -(-reader.position // alignment) * alignment
    _check_spans(spans, data_bytes)
    end = max((end for _, end, _ in spans), default=0) if reader.sizes_known else data_bytes
    behind = view.at(view.size_bytes - data_bytes + end, _BEHIND_BYTES)
    if data_bytes > 0 and any(behind):
        raise GgufFault(f"bytes that no tensor names lie behind the last one, at byte {end:,} of the data")
    return GgufSummary(version=version, tensors=tensors, templates=tuple(templates), text="\n".join(texts))


def _at(view: ByteView, offset: int, count: int) -> bytes:
    data = view.at(offset, count)
    if len(data) < count:
        raise GgufFault(f"the header goes on after the file's end at byte {view.size_bytes:,}")
    return data


class _Reader:
    """Reads on from `position`; nothing is read that the file does not hold."""

    def __init__(self, view: ByteView, position: int) -> None:
        self._view = view
        self.position = position
        self.alignment = 32
        self.sizes_known = True

    def number(self, size: int) -> int:
        found = int.from_bytes(_at(self._view, self.position, size), "little")
        self.position += size
        return found

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > self._view.size_bytes:
            raise GgufFault(f"the header goes on after the file's end at byte {self._view.size_bytes:,}")

    def text(self) -> str:
        size = self.number(8)
        if size > _TEXT_BYTES_MAX:
            raise GgufFault(f"a text claims {size:,} bytes")
        found = _at(self._view, self.position, size)
        self.position += size
        return found.decode(errors="replace")

    def value(self, kind: int, *, wanted: bool, nested: int = 0) -> str | None:
        """The text, when it is one and `wanted`; otherwise it is passed over."""
        if kind in _SCALAR_BYTES:
            self.skip(_SCALAR_BYTES[kind])
            return None
        if kind == _STRING:
            if wanted:
                return self.text()
            self.skip(self.number(8))
            return None
        if kind != _ARRAY or nested == _NESTED_MAX:
            raise GgufFault(f"a value has the unknown type {kind}")
        inner, items = self.number(4), self.number(8)
        if items > (_ARRAY_ITEMS_MAX if inner in _SCALAR_BYTES else _TEXTS_MAX):
            raise GgufFault(f"an array claims {items:,} items")
        if inner in _SCALAR_BYTES:
            self.skip(items * _SCALAR_BYTES[inner])
            return None
        texts = [self.value(inner, wanted=wanted, nested=nested + 1) for _ in range(items)]
        return "\n".join(text for text in texts if text) if wanted else None

    def read_alignment(self, kind: int) -> None:
        """What data are aligned to: a power of two, or engines divide by nothing."""
        if kind != _UINT32:
            raise GgufFault(f"general.alignment has the type {kind}")
        self.alignment = self.number(4)
        if not 8 <= self.alignment <= _ALIGNMENT_MAX or self.alignment & (self.alignment - 1):
            raise GgufFault(f"general.alignment is {self.alignment:,}")

    def tensor(self, alignment: int) -> tuple[int, int, str]:
        """Where the tensor's data begin and end, counted from where data begin, and its name."""
        name = self.text()
        if ".." in re.split(r"[/\\]", name):
            raise GgufFault(f"the tensor {name[:60]!r} leaves the folder")
        dimensions = self.number(4)
        if dimensions > _DIMENSIONS_MAX:
            raise GgufFault(f"a tensor has {dimensions:,} dimensions")
        shape = [self.number(8) for _ in range(dimensions)]
        kind, begin = self.number(4), self.number(8)
        count = math.prod(shape)
        if any(size >= 2**63 for size in shape) or count >= 2**63 or begin >= 2**63:
            raise GgufFault(f"tensor {name[:60]!r} has more elements than 64 bits can count")
        if kind > _KIND_MAX:
            raise GgufFault(f"tensor {name[:60]!r} has the unknown type {kind:,}")
        if begin % alignment:
            raise GgufFault(f"tensor {name[:60]!r} begins at byte {begin:,}, which is no multiple of {alignment}")
        block, block_bytes = _BLOCKS.get(kind, (1, 0))
        self.sizes_known = self.sizes_known and kind in _BLOCKS
        if (shape[0] if shape else 1) % block:
            raise GgufFault(f"tensor {name[:60]!r} has rows of {shape[0]:,}, its type has blocks of {block}")
        return begin, begin + count // block * block_bytes, name


def _check_spans(spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    if len({name for _, _, name in spans}) != len(spans):
        raise GgufFault("two tensors have one name")
    position, previous = 0, ""
    for begin, end, name in sorted(spans):
        if begin > data_bytes or end > data_bytes:
            raise GgufFault(f"tensor {name[:60]!r} ends at byte {end:,} of the data, the file holds {data_bytes:,}")
        if begin < position:
            raise GgufFault(f"tensor {name[:60]!r} shares {position - begin:,} bytes with {previous[:60]!r}")
        position, previous = end, name
