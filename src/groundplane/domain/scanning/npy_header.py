"""Is this numpy file an array of plain numbers and letters, exactly as long as its header says?

Only dtypes that are written plainly pass: numpy reads many spellings of "any Python object", which is a pickle.
Source: numpy.lib.format; numpy's array interface protocol.
"""

from __future__ import annotations

import ast
import math
import re
import warnings

from groundplane.domain.scanning.byte_view import ByteView

_LETTERS_MAX = 10_000
_PLAIN = re.compile(r"[<>=|]?[biufcSVa?]([0-9]{1,9})|[<>=|]?U([0-9]{1,9})")
_TIMES = re.compile(r"[<>=|]?[mM]8(\[[0-9]{0,9}[a-zA-Zμ]{1,2}\])?")
_OBJECTS = re.compile(r"[<>=|]?O|object", re.IGNORECASE)
_NESTED_MAX = 16


class NpyFault(ValueError):
    """The header can't be read or does not fit the file; the message says why. `pickle`: it holds Python objects."""

    def __init__(self, message: str, *, pickle: bool = False) -> None:
        super().__init__(message)
        self.pickle = pickle


_KEYS = {"descr", "fortran_order", "shape"}


def read_npy(view: ByteView, size_bytes: int | None = None) -> list[str]:
    """The dtypes, sorted. `size_bytes` is the whole file's, which the header must give; None: unknown. NpyFault."""
    start = view.at(0, 12)
    if start[6:7] not in {b"\x01", b"\x02", b"\x03"}:
        raise NpyFault("it is of no version that numpy writes")
    wide = start[6:7] != b"\x01"
    size = int.from_bytes(start[8:12] if wide else start[8:10], "little")
    if size > _LETTERS_MAX:
        raise NpyFault(f"its header has {size:,} letters, more than numpy reads of what it does not trust")
    text = view.at(12 if wide else 10, size).decode("latin-1")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = ast.literal_eval(text.strip())
        kinds = _kinds(header["descr"], 0)
        odd_header = set(header) != _KEYS or not isinstance(header["fortran_order"], bool)
    except (ValueError, SyntaxError, KeyError, TypeError, IndexError, RecursionError, MemoryError):
        raise NpyFault("its header can't be read") from None
    if any(_OBJECTS.match(each) for kind in kinds for each in (kind, *kind.split(","))):
        raise NpyFault("it is an array of objects", pickle=True)
    odd = next((kind for kind in kinds if not (_PLAIN.fullmatch(kind) or _TIMES.fullmatch(kind))), None)
    if odd is not None:
        raise NpyFault(f"its dtype {odd[:60]!r} is none of plain numbers, letters or times")
    if odd_header:
        raise NpyFault("its header says other things than numpy's")
    if size_bytes is not None:
        _check_size(header, (12 if wide else 10) + size, size_bytes)
    return sorted(set(kinds))


def _kinds(descr: object, nested: int) -> list[str]:
    """The plain dtypes in a description: a text, a list of fields, or (dtype, shape)."""
    if isinstance(descr, str):
        return [descr]
    if nested == _NESTED_MAX:
        raise ValueError("nested too deep")
    if isinstance(descr, list):
        return [kind for entry in descr for kind in _kinds(entry[1], nested + 1)]
    if isinstance(descr, tuple) and len(descr) == 2:
        return _kinds(descr[0], nested + 1)
    raise TypeError(f"{descr!r} describes no dtype")


def _check_size(header: dict[str, object], start: int, size_bytes: int) -> None:
    """Whether the file's size is what its header says; dtypes whose size is not told by their name are let be."""
    shape, descr = header.get("shape"), str(header["descr"])
    if not isinstance(shape, tuple) or not all(isinstance(item, int) and item >= 0 for item in shape):
        raise NpyFault(f"its shape is {str(shape)[:80]}")
    found = _PLAIN.fullmatch(descr)
    if found is None and not _TIMES.fullmatch(descr):
        return
    item_bytes = 8 if found is None else int(found[1]) if found[1] else 4 * int(found[2])
    need = start + math.prod(shape) * item_bytes
    if need != size_bytes:
        raise NpyFault(f"the array ends at byte {need:,}, the file at {size_bytes:,}")
