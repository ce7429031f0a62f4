"""Where a file is cut: safetensors at its tensors' boundaries, anything else by size.

Cuts follow the layout alone, never the content, so two files that are laid out alike are cut alike: a changed tensor
changes its own pieces, a changed header only the header's.
"""

from __future__ import annotations

from collections.abc import Iterable

from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.tensor_header import HeaderFault, looks_like_safetensors, tensor_ends

PIECE_BYTES_MAX = 1 << 20
"""Large enough that naming a piece costs little beside hashing it, small enough that scattered edits stay cheap."""

SMALL_TENSOR_BYTES = 64 << 10
"""Neighbours below this share a piece: a model has thousands of norms and biases of a few hundred bytes."""


def cut(view: ByteView) -> tuple[int, ...]:
    """The lengths of a file's pieces in order, each 1 to PIECE_BYTES_MAX bytes; none for an empty file.

    A file that claims to be safetensors and is not is cut by size: what may enter is judged elsewhere.
    """
    if looks_like_safetensors(view):
        try:
            data_start, ends = tensor_ends(view)
        except HeaderFault:
            return _by_size(view.size_bytes)
        return (*_by_size(data_start), *_by_tensor(data_start, ends))
    return _by_size(view.size_bytes)


def _by_size(size_bytes: int) -> tuple[int, ...]:
    whole, rest = divmod(size_bytes, PIECE_BYTES_MAX)
    return (PIECE_BYTES_MAX,) * whole + ((rest,) if rest else ())


def _by_tensor(data_start: int, ends: Iterable[int]) -> list[int]:
    """Each tensor from its own first byte, so that a neighbour's other size does not shift the cuts within it."""
    lengths: list[int] = []
    waiting, begin = 0, data_start
    for end in ends:
        size_bytes, begin = end - begin, end
        if size_bytes < SMALL_TENSOR_BYTES:
            waiting += size_bytes
            if waiting >= SMALL_TENSOR_BYTES:
                lengths.append(waiting)
                waiting = 0
            continue
        if waiting:
            lengths.append(waiting)
            waiting = 0
        lengths.extend(_by_size(size_bytes))
    if waiting:
        lengths.append(waiting)
    return lengths
