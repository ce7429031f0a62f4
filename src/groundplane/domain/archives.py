"""What lies inside zip and tar files, read from their directories alone: nothing is unpacked."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from groundplane.domain.byte_view import ByteView

MEMBERS_MAX = 10_000
DIRECTORY_BYTES_MAX = 16 * 2**20
MEMBER_HEAD_BYTES = 64 * 1024
"""How much of a compressed member is looked at. A bomb never gets further than this."""

_EOCD_TAIL_BYTES = 65_557
_TAR_BLOCK = 512


class ArchiveFault(ValueError):
    """The archive can't be listed; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry. `content` holds the whole bytes when they are stored as they are, else the first decompressed ones."""

    path: str
    content: ByteView
    kind: str = "file"


def zip_end(view: ByteView) -> int | None:
    """Where the zip end record begins when the file ends like a zip, whatever it begins like."""
    start = max(0, view.size_bytes - _EOCD_TAIL_BYTES)
    tail = view.at(start, _EOCD_TAIL_BYTES)
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        record = tail[at : at + 22]
        if len(record) == 22 and at + 22 + struct.unpack("<H", record[20:])[0] == len(tail):
            return start + at
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return None


def zip_members(view: ByteView) -> list[Member]:
    """The central directory's entries. Raises ArchiveFault for what is encrypted, spread over disks, huge or broken."""
    end = zip_end(view)
    if end is None:
        raise ArchiveFault("it has no zip directory")
    offset, size, count, shift = _zip_directory(view, end)
    if count > MEMBERS_MAX or size > DIRECTORY_BYTES_MAX:
        raise ArchiveFault(f"its directory of {count:,} entries is over the limit of {MEMBERS_MAX:,}")
    directory, members, at = view.at(offset + shift, size), [], 0
    for _ in range(count):
        entry = directory[at : at + 46]
        if len(entry) < 46 or entry[:4] != b"PK\x01\x02":
            raise ArchiveFault("its directory is broken")
        flags, method = struct.unpack("<HH", entry[8:12])
        packed, plain = struct.unpack("<LL", entry[20:28])
        name_size, extra_size, comment_size = struct.unpack("<HHH", entry[28:34])
        (header,) = struct.unpack("<L", entry[42:46])
        name = directory[at + 46 : at + 46 + name_size]
        extra = directory[at + 46 + name_size : at + 46 + name_size + extra_size]
        plain, packed, header = _zip64(extra, (plain, packed, header))
        if flags & 0x1:
            raise ArchiveFault(f"its member {name.decode(errors='replace')!r} is encrypted")
        content = _zip_content(view, header + shift, name, method, packed, plain)
        members.append(Member(path=name.decode(errors="replace"), content=content))
        at += 46 + name_size + extra_size + comment_size
    return members


def _zip_directory(view: ByteView, end: int) -> tuple[int, int, int, int]:
    """Directory offset, size, entries, and by how many foreign bytes before the archive all offsets are shifted."""
    disk, _, _, count, size, offset = struct.unpack("<HHHHLL", view.at(end + 4, 16))
    ends_at = end
    locator = view.at(end - 20, 20)
    if locator[:4] == b"PK\x06\x07":
        record_at = struct.unpack("<Q", locator[8:16])[0]
        record = view.at(record_at, 56)
        if len(record) < 56 or record[:4] != b"PK\x06\x06":
            raise ArchiveFault("its zip64 record is broken")
        count, size, offset = struct.unpack("<QQQ", record[32:56])
        ends_at = record_at
    elif disk not in {0, 0xFFFF}:
        raise ArchiveFault("it is spread over several disks")
    shift = ends_at - size - offset
    if shift < 0:
        raise ArchiveFault("its directory lies outside the file")
    return offset, size, count, shift


def _zip64(extra: bytes, values: tuple[int, int, int]) -> tuple[int, int, int]:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack("<HH", extra[at : at + 4])
        if kind == 1:
            field, wide = extra[at + 4 : at + 4 + size], list(values)
            for position, value in enumerate(values):
                if value == 0xFFFFFFFF and len(field) >= 8:
                    wide[position], field = struct.unpack("<Q", field[:8])[0], field[8:]
            return wide[0], wide[1], wide[2]
        at += 4 + size
    return values


def _zip_content(view: ByteView, header: int, name: bytes, method: int, packed: int, plain: int) -> ByteView:
    local = view.at(header, 30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} is not where the directory says")
    name_size, extra_size = struct.unpack("<HH", local[26:30])
    if view.at(header + 30, name_size) != name:
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} has another name where it lies")
    start = header + 30 + name_size + extra_size
    if method == 0:
        return view.part(start, plain)
    if method != 8:
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} is packed by method {method}")
    try:
        unpack = zlib.decompressobj(-15)
        return ByteView.of(unpack.decompress(view.at(start, min(packed, MEMBER_HEAD_BYTES)), MEMBER_HEAD_BYTES))
    except zlib.error as error:
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} can't be unpacked: {error}") from None


def looks_like_tar(view: ByteView) -> bool:
    """The first block's checksum holds: true for old, ustar, GNU and PAX archives alike."""
    return _tar_checksum_holds(view.at(0, _TAR_BLOCK))


def tar_members(view: ByteView) -> list[Member]:
    """The entries, in order. Raises ArchiveFault over MEMBERS_MAX."""
    members: list[Member] = []
    at = 0
    while _tar_checksum_holds(block := view.at(at, _TAR_BLOCK)):
        if len(members) == MEMBERS_MAX:
            raise ArchiveFault(f"it has more than {MEMBERS_MAX:,} entries")
        prefix = block[345:500].split(b"\0")[0] + b"/" if block[257:263] == b"ustar\0" and block[345] else b""
        path = (prefix + block[:100].split(b"\0")[0]).decode(errors="replace")
        size = _tar_number(block[124:136])
        kind = _TAR_KINDS.get(block[156:157], "special")
        members.append(Member(path=path, content=view.part(at + _TAR_BLOCK, size), kind=kind))
        at += _TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK
    return members


_TAR_KINDS = {
    b"0": "file", b"\0": "file", b"7": "file", b"1": "link", b"2": "link", b"5": "folder",
    b"3": "device", b"4": "device", b"6": "pipe", b"x": "header", b"g": "header", b"L": "header", b"K": "header",
}  # fmt: skip


def _tar_checksum_holds(block: bytes) -> bool:
    if len(block) < _TAR_BLOCK or not any(block):
        return False
    digits = block[148:156].strip(b" \0")
    if not digits or any(digit not in b"01234567" for digit in digits):
        return False
    return int(digits, 8) == sum(block[:148]) + 8 * 32 + sum(block[156:])


def _tar_number(field: bytes) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    return int(digits, 8) if digits and all(digit in b"01234567" for digit in digits) else 0
