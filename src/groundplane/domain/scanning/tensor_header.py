"""Is this byte sequence a safetensors file, exactly: a bounded JSON header whose tensors tile the rest of the file.

Source: the format's description in the safetensors project (header length, JSON object, offsets without holes), 0.8.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from groundplane.domain.canonical import parse_json
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.errors import InvalidInput

HEADER_BYTES_MAX = 32 * 2**20
"""A header over this is refused unread. Upstream allows 100 MB; 100,000 tensors need about 15."""

DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_DIMENSION_MAX, _DIMENSIONS_MAX = 2**63, 64
_NAME_LETTERS_MAX = 4096
_METADATA_BYTES_MAX = 8 * 2**20
_SPACES_MAX = 64 * 1024


class HeaderFault(ValueError):
    """The header breaks a rule of the format; the message says which, with the number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSummary:
    """What a valid header declares."""

    tensors: int
    parameters: int
    dtypes: tuple[str, ...]


def looks_like_safetensors(view: ByteView) -> bool:
    """A plausible header length followed by `{`. Whether it is valid is `read_tensor_header`'s question."""
    start = view.at(0, 9)
    return len(start) == 9 and start[8:] == b"{" and struct.unpack("<Q", start[:8])[0] <= HEADER_BYTES_MAX


def read_tensor_header(view: ByteView) -> TensorSummary:
    """Checks the whole header against the file's size. Raises HeaderFault naming the first rule broken."""
    header, data_start = _header(view)
    return _tile(header, view.size_bytes - data_start)[0]


def tensor_ends(view: ByteView) -> tuple[int, tuple[int, ...]]:
    """Where the tensors' data begins in the file, and where each tensor ends, in file order. Raises HeaderFault."""
    header, data_start = _header(view)
    spans = _tile(header, view.size_bytes - data_start)[1]
    return data_start, tuple(data_start + end for _, end, _ in spans)


def tensor_entries(view: ByteView) -> tuple[tuple[str, int, int], ...]:
    """Every tensor's name and where its bytes begin and end in the file, in file order. Raises HeaderFault."""
    header, data_start = _header(view)
    spans = _tile(header, view.size_bytes - data_start)[1]
    return tuple((name, data_start + begin, data_start + end) for begin, end, name in spans)


def _header(view: ByteView) -> tuple[dict[str, object], int]:
    if view.size_bytes < 10:
        raise HeaderFault(f"the file is {view.size_bytes} bytes long; the shortest safetensors file has 10")
    (length,) = struct.unpack("<Q", view.at(0, 8))
    if length > HEADER_BYTES_MAX:
        raise HeaderFault(f"the header claims {length:,} bytes, over the limit of {HEADER_BYTES_MAX:,}")
    if length > view.size_bytes - 8:
        raise HeaderFault(f"the header claims {length:,} bytes, the file has {view.size_bytes - 8:,} after its length")
    text = view.at(8, length)
    if not text.startswith(b"{"):
        raise HeaderFault("the header does not begin with '{'")
    try:
        header = parse_json(text)
    except InvalidInput as error:
        raise HeaderFault(f"the header can't be read: {error}") from None
    if not isinstance(header, dict):
        raise HeaderFault("the header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderFault("__metadata__ is not an object of texts")
    told = sum(len(key) + len(value) for key, value in metadata.items())
    spaces = length - len(text.rstrip())
    if told > _METADATA_BYTES_MAX or spaces > _SPACES_MAX:
        raise HeaderFault(f"the header has {told:,} letters of __metadata__ and {spaces:,} spaces at its end")
    return header, 8 + length


def _tile(tensors: dict[str, object], data_bytes: int) -> tuple[TensorSummary, list[tuple[int, int, str]]]:
    spans: list[tuple[int, int, str]] = []
    parameters, dtypes = 0, set()
    for name, entry in tensors.items():
        begin, end, count, dtype = _tensor(name, entry)
        if end > data_bytes:
            raise HeaderFault(f"tensor {name!r} ends at byte {end:,}, the file holds {data_bytes:,} of data")
        spans.append((begin, end, name))
        parameters += count
        dtypes.add(dtype)
    position, previous = 0, ""
    spans.sort()
    for begin, end, name in spans:
        if begin < position:
            raise HeaderFault(f"tensor {name!r} overlaps {previous!r} by {position - begin:,} bytes")
        if begin > position:
            raise HeaderFault(f"{begin - position:,} bytes before tensor {name!r} belong to no tensor")
        position, previous = end, name
    if position != data_bytes:
        raise HeaderFault(f"{data_bytes - position:,} bytes after the last tensor belong to no tensor")
    return TensorSummary(tensors=len(spans), parameters=parameters, dtypes=tuple(sorted(dtypes))), spans


def _tensor(name: str, entry: object) -> tuple[int, int, int, str]:
    if not name.isprintable() or not 0 < len(name) <= _NAME_LETTERS_MAX or ".." in re.split(r"[/\\]", name):
        raise HeaderFault(f"a tensor's name is empty, over long, unprintable or leaves the folder: {name[:80]!r}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderFault(f"tensor {name!r} does not have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise HeaderFault(f"tensor {name!r} has the unknown dtype {dtype!r}")
    if (
        not isinstance(shape, list)
        or len(shape) > _DIMENSIONS_MAX
        or not all(_is_count(dimension) for dimension in shape)
    ):
        raise HeaderFault(f"tensor {name!r} has the impossible shape {str(shape)[:80]}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise HeaderFault(f"tensor {name!r} has the impossible data_offsets {str(offsets)[:80]}")
    count = 1
    for dimension in shape:
        count *= dimension
        if count >= _DIMENSION_MAX:
            raise HeaderFault(f"tensor {name!r} has more elements than 64 bits can count")
    begin, end = offsets
    bits = count * DTYPE_BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        raise HeaderFault(f"tensor {name!r} spans {end - begin:,} bytes; {dtype}{shape} needs {bits / 8:,.0f}")
    return begin, end, count, dtype


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _DIMENSION_MAX
