"""A GGUF file's header, read within bounds: its counts, its tensors' places, and the chat templates in its metadata.

Source: the format's specification in the ggml project (docs/gguf.md), versions 2 and 3.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from groundplane.domain.byte_view import ByteView
from groundplane.domain.templates_scan import Template

_COUNT_MAX = 2**20
_TEXT_BYTES_MAX = 64 * 2**20
_DIMENSIONS_MAX = 4
_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _ARRAY = 8, 9
_ARRAY_ITEMS_MAX = 2**26
_NESTED_MAX = 4


class GgufFault(ValueError):
    """The header breaks a rule of the format; the message says which, with the number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufSummary:
    version: int
    tensors: int
    templates: tuple[Template, ...]


def read_gguf(view: ByteView) -> GgufSummary:
    """Reads all metadata and tensor entries; raises GgufFault at the first that lies outside the file."""
    version, tensors, keys = struct.unpack("<LQQ", _at(view, 4, 20))
    if version not in {2, 3} or tensors > _COUNT_MAX or keys > _COUNT_MAX:
        raise GgufFault(f"version {version}, {tensors:,} tensors, {keys:,} keys")
    reader, templates, seen = _Reader(view, 24), [], set()
    for _ in range(keys):
        key = reader.text()
        if key in seen:
            raise GgufFault(f"the key {key[:60]!r} is given twice")
        seen.add(key)
        value = reader.value(reader.number(4), wanted="chat_template" in key)
        if value is not None and "chat_template" in key:
            templates.append(Template(name=key, source=value))
    ends = [reader.tensor() for _ in range(tensors)]
    if ends and max(ends) > view.size_bytes - reader.position:
        raise GgufFault(f"a tensor begins {max(ends):,} bytes into the data, the file has less")
    return GgufSummary(version=version, tensors=tensors, templates=tuple(templates))


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
        if items > _ARRAY_ITEMS_MAX:
            raise GgufFault(f"an array claims {items:,} items")
        if inner in _SCALAR_BYTES:
            self.skip(items * _SCALAR_BYTES[inner])
            return None
        texts = [self.value(inner, wanted=wanted, nested=nested + 1) for _ in range(items)]
        return "\n".join(text for text in texts if text) if wanted else None

    def tensor(self) -> int:
        """Where the tensor's data begins, counted from where data begin."""
        self.skip(self.number(8))
        dimensions = self.number(4)
        if dimensions > _DIMENSIONS_MAX:
            raise GgufFault(f"a tensor has {dimensions:,} dimensions")
        self.skip(8 * dimensions + 4)
        return self.number(8)
