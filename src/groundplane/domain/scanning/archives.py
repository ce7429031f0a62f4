"""What lies inside zip and tar files, read from their directories alone: nothing is unpacked."""

from __future__ import annotations

import itertools
import struct
import unicodedata
import zlib
from dataclasses import dataclass

from groundplane.domain.scanning.byte_view import ByteView

MEMBERS_MAX = 10_000
DIRECTORY_BYTES_MAX = 16 * 2**20
MEMBER_HEAD_BYTES = 64 * 1024
"""How much of a compressed member is looked at. A bomb never gets further than this."""

BOMB_BYTES = 256 * 2**20
BOMB_RATIO = 200
"""An archive that unpacks to more than BOMB_BYTES and more than so many times its size is a bomb."""

_ENDS_MAX = 64
_EOCD_TAIL_BYTES = 65_557
_END_BYTES = 22
_NAME_LETTERS_MAX = 1000
_SUMMED_BYTES_MAX = 2**20
"""Members up to this size are held against their checksum; larger ones are read too often already."""
_TAR_BLOCK = 512
_DESCRIPTOR_BYTES_MAX = 24


class ArchiveFault(ValueError):
    """The archive can't be listed; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One entry. `content` holds the whole bytes when they are stored as they are, else the first decompressed ones.

    `size_bytes` is what it says that it has when it is unpacked.
    """

    path: str
    content: ByteView
    kind: str = "file"
    size_bytes: int = 0


def zip_end(view: ByteView) -> int | None:
    """Where the zip end record begins when the file ends like a zip, whatever it begins like.

    Readers differ: some take the last record, some the one whose comment ends the file, none minds bytes after it.
    Any record that leads to a directory counts.
    """
    ends = _zip_ends(view)
    return ends[-1] if ends else None


def _zip_ends(view: ByteView) -> list[int]:
    start = max(0, view.size_bytes - _EOCD_TAIL_BYTES)
    tail, at = view.at(start, _EOCD_TAIL_BYTES), 0
    found: list[int] = []
    while (at := tail.find(b"PK\x05\x06", at)) >= 0 and len(found) < _ENDS_MAX:
        record = tail[at : at + 22]
        if len(record) == 22 and (_closes(record, len(tail) - at) or _leads_to_directory(view, start + at, record)):
            found.append(start + at)
        at += 4
    return found


def _closes(record: bytes, rest: int) -> bool:
    return 22 + int(struct.unpack("<H", record[20:])[0]) == rest


def _leads_to_directory(view: ByteView, end: int, record: bytes) -> bool:
    (size,) = struct.unpack("<L", record[12:16])
    return view.at(end - size, 4) == b"PK\x01\x02" or view.at(end - 20, 4) == b"PK\x06\x07"


def zip_members(view: ByteView, *, behind_something: bool = False) -> list[Member]:
    """The central directory's entries; `behind_something`: bytes before the first of them are another file's.

    Raises ArchiveFault for what is encrypted, spread over disks, huge or broken, and for everything in which two
    readers could see two archives: two directories, entries beyond the count, a member that says one thing in the
    directory and another where it lies, names given twice, members that share bytes, bytes that no entry names.
    """
    ends = _zip_ends(view)
    if not ends:
        raise ArchiveFault("it has no zip directory")
    if len(ends) > 1:
        raise ArchiveFault("it has more than one zip directory: readers differ on which one counts")
    if view.size_bytes > ends[0] + _END_BYTES:
        raise ArchiveFault(f"{view.size_bytes - ends[0] - _END_BYTES:,} bytes lie behind its end, or are its comment")
    offset, size, count, shift = _zip_directory(view, ends[0])
    if count > MEMBERS_MAX or size > DIRECTORY_BYTES_MAX:
        raise ArchiveFault(f"its directory of {count:,} entries is over the limit of {MEMBERS_MAX:,}")
    directory, members, spans, at = view.at(offset + shift, size), [], [], 0
    plain_total = 0
    for _ in range(count):
        member, span, plain, at = _zip_member(view, directory, at, shift)
        members.append(member)
        spans.append(span)
        plain_total += plain
    if at != size:
        raise ArchiveFault(f"its directory counts {count:,} entries and holds more")
    _check_spans(spans, 0 if not behind_something else None, offset + shift)
    _check_names([member.path for member in members])
    if plain_total > BOMB_BYTES and plain_total > BOMB_RATIO * view.size_bytes:
        raise ArchiveFault(f"it unpacks to {plain_total:,} bytes, {plain_total // view.size_bytes:,} times its size")
    return members


def _zip_member(view: ByteView, directory: bytes, at: int, shift: int) -> tuple[Member, tuple[int, int], int, int]:
    """The entry at `at`, where its bytes lie, its unpacked size, and where the next entry begins."""
    entry = directory[at : at + 46]
    if len(entry) < 46 or entry[:4] != b"PK\x01\x02":
        raise ArchiveFault("its directory is broken")
    flags, method = struct.unpack("<HH", entry[8:12])
    packed, plain = struct.unpack("<LL", entry[20:28])
    name_size, extra_size, comment_size = struct.unpack("<HHH", entry[28:34])
    mode, header = struct.unpack("<LL", entry[38:46])
    name = directory[at + 46 : at + 46 + name_size]
    extra = directory[at + 46 + name_size : at + 46 + name_size + extra_size]
    plain, packed, header = _zip64(extra, (plain, packed, header))
    if flags & 0x1:
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} is encrypted")
    content, start = _zip_content(view, header + shift, name, method, packed, plain)
    kind = _ZIP_KINDS.get((mode >> 16) & 0o170000, "special")
    if _other_name(extra, name):
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} has a second name")
    sums = {entry[16:20], *([] if flags & 0x8 else [view.at(header + shift + 14, 4)])}
    if plain == content.size_bytes <= _SUMMED_BYTES_MAX:
        sums.add(struct.pack("<L", zlib.crc32(content.at(0, plain))))
    if len(sums) > 1:
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} is not what its checksum says")
    member = Member(path=name.decode(errors="replace"), content=content, kind=kind, size_bytes=plain)
    return member, (header + shift, start + packed), plain, at + 46 + name_size + extra_size + comment_size


_ZIP_KINDS = {0: "file", 0o100000: "file", 0o040000: "file", 0o120000: "link"}


def _other_name(extra: bytes, name: bytes) -> bool:
    """Whether a Unicode path field names the member otherwise: some readers take that one."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack("<HH", extra[at : at + 4])
        if kind == 0x7075 and extra[at + 9 : at + 4 + size] != name:
            return True
        at += 4 + size
    return False


def _check_spans(spans: list[tuple[int, int]], start: int | None, directory: int) -> None:
    """Members lie one behind the other, from `start` to the directory, but for sizes that are told behind them."""
    ordered = sorted(spans)
    if start is not None:
        ordered.insert(0, (start, start))
    for (_, end), (begin, _) in itertools.pairwise([*ordered, (directory, directory)]):
        if begin < end:
            raise ArchiveFault("its members share bytes, as in a bomb that is small on disk")
        if begin > end + _DESCRIPTOR_BYTES_MAX:
            raise ArchiveFault(f"its directory does not name what lies in {begin - end:,} bytes from byte {end:,}")


def _check_names(names: list[str]) -> None:
    if len({unicodedata.normalize("NFKC", name).casefold() for name in names}) != len(names):
        raise ArchiveFault("it holds a name twice: readers differ on which one counts")
    for name in names:
        if len(name) > _NAME_LETTERS_MAX:
            raise ArchiveFault(f"its member {name[:80]!r} has a name of {len(name):,} letters")
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or (len(name) > 1 and name[1] == ":") or "\0" in name:
            raise ArchiveFault(f"its member {name[:80]!r} would be unpacked outside its folder")


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


def _zip_content(
    view: ByteView, header: int, name: bytes, method: int, packed: int, plain: int
) -> tuple[ByteView, int]:
    """What is looked at of the member, and where its bytes begin."""
    local = view.at(header, 30)
    if len(local) < 30 or local[:4] != b"PK\x03\x04":
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} is not where the directory says")
    name_size, extra_size = struct.unpack("<HH", local[26:30])
    if view.at(header + 30, name_size) != name:
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} has another name where it lies")
    if struct.unpack("<H", local[8:10])[0] != method or local[6] & 0x1:
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} is packed otherwise than the directory says")
    sizes = struct.unpack("<LL", local[18:26])
    told_later = local[6] & 0x8
    if not told_later and any(
        said not in {real, 0xFFFFFFFF} for said, real in zip(sizes, (packed, plain), strict=True)
    ):
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} has another size where it lies")
    start = header + 30 + name_size + extra_size
    if start + packed > view.size_bytes:
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} ends after the file")
    if method == 0:
        if packed != plain:
            raise ArchiveFault(f"its member {name.decode(errors='replace')!r} has two sizes")
        return view.part(start, plain), start
    if method != 8:
        raise ArchiveFault(f"its member {name.decode(errors='replace')!r} is packed by method {method}")
    try:
        unpack = zlib.decompressobj(-15)
        head = unpack.decompress(view.at(start, min(packed, MEMBER_HEAD_BYTES)), MEMBER_HEAD_BYTES)
        return ByteView.of(head), start
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
        members.append(Member(path=path, content=view.part(at + _TAR_BLOCK, size), kind=kind, size_bytes=size))
        at += _TAR_BLOCK + -(-size // _TAR_BLOCK) * _TAR_BLOCK
    return members


_TAR_KINDS = {
    b"0": "file", b"\0": "file", b"7": "file", b"1": "link", b"2": "link", b"5": "folder",
    b"3": "device", b"4": "device", b"6": "pipe", b"x": "header", b"g": "header", b"L": "header", b"K": "header",
}  # fmt: skip


def _tar_checksum_holds(block: bytes) -> bool:
    """Whether a reader of tar would take this block for a header: old ones sum signed bytes, some write base 256."""
    if len(block) < _TAR_BLOCK or not any(block):
        return False
    stated = _tar_field(block[148:156])
    unsigned = 8 * 32 + sum(block[:148]) + sum(block[156:])
    if stated == unsigned:
        return True
    signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
    return stated == signed and all(_tar_field(block[at:end]) is not None for at, end in _TAR_NUMBERS)


_TAR_NUMBERS = ((100, 108), (108, 116), (116, 124), (124, 136), (136, 148))
"""Mode, user, group, size and time: what every reader reads before it believes a header."""


def _tar_field(field: bytes) -> int | None:
    """Octal text up to a NUL, or base 256; None when it is neither."""
    if field[0] in {0x80, 0xFF}:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.split(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        return None


def _tar_number(field: bytes) -> int:
    return max(0, _tar_field(field) or 0)
