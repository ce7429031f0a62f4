"""What the first bytes of a file say: programs, packed files, images and letters are known by how they begin."""

from __future__ import annotations

import bz2
import json
import lzma
import re
import struct
import zlib

from groundplane.domain.scanning.byte_view import ByteView

HEAD_BYTES = 64 * 1024
"""So much of a file's beginning is asked for here."""

_EXECUTABLES = (b"\x7fELF", b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe",
                b"\xca\xfe\xba\xbe", b"\xac\xed\x00\x05", b"\x00asm", b"\x1bLua", b"\x1bLJ", b"dex\n03", b"BC\xc0\xde",
                b"!<arch>\n", b"MZqFpD", b"jartsr='", b"\xed\xab\xee\xdb", b"\x50\xed\x55\xba", b"\x04\x08o:",
                b"L\0\0\0\x01\x14\x02\0",
                b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"ftrt", b"ptrt", b"RDX2\n", b"RDX3\n", b"RDA2\n",
                b"RDA3\n", b"X\n\0\0\0\2", b"X\n\0\0\0\3",
                b"\0\1\0\0\0\xff\xff\xff\xff\1\0\0\0")  # fmt: skip
# A code object as marshal writes it: counts of arguments and locals, all small.
_MARSHALLED = re.compile(rb"[c\xe3](?:[\0-\x40]\0\0\0){3}")
_COMPRESSIONS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7-zip",
    b"Rar!\x1a\x07": "rar",
    b"]\x00\x00": "lzma",
    **{bytes([0x50 + number]) + b"\x2a\x4d\x18": "zstd" for number in range(16)},
    b"\x02\x21\x4c\x18": "lz4",
    b"\xff\x06\0\0sNaPpY": "snappy",
    b"\x1f\x9d": "compress",
    b"\x89LZO": "lzop",
    b"LZIP": "lzip",
    b"MSCF\0": "cabinet",
    b"070701": "cpio",
    b"070702": "cpio",
    b"hsqs": "squashfs",
    b"xar!": "xar",
}
_IMAGES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")


_ELF = re.compile(rb"\x7fELF[\x01\x02][\x01\x02]\x01[\0-\x12]")
_WINDOWS = re.compile(rb"MZ.{58}.[\0-\x0f]\0\0", re.DOTALL)
_DOCUMENT_SCRIPT = re.compile(rb"/(?:JavaScript|JS|Launch|EmbeddedFile|#4[aA]avaScript)\b")
_DOCUMENT_BYTES = 64


def program_inside(view: ByteView) -> str:
    """What lies anywhere in bytes of no known format and would be run: machine code, a document's script; or ""."""
    if view.at(0, 5) == b"%PDF-" and (script := view.search(_DOCUMENT_SCRIPT, longest_bytes=_DOCUMENT_BYTES)):
        return f"{script.decode()}, which readers of documents run"
    if view.search(_ELF, longest_bytes=8):
        return "a program (ELF) inside"
    for place in view.places(_WINDOWS, longest_bytes=64):
        if _is_windows_program(view.at(place, HEAD_BYTES)):
            return "a program of Windows' inside"
    return ""


def behind_picture(view: ByteView) -> int:
    """How many bytes lie behind a PNG's last chunk; 0 for other pictures, whose ends readers see differently."""
    at = 8
    while view.at(0, 4) == b"\x89PNG" and len(chunk := view.at(at, 8)) == 8:
        at += 12 + int.from_bytes(chunk[:4], "big")
        if chunk[4:] == b"IEND":
            return max(0, view.size_bytes - at)
    return 0


def is_program(head: bytes) -> bool:
    """Whether a system or a loader would run it: machine code, bytecode, or another language's saved objects."""
    known = head.startswith(_EXECUTABLES) or _MARSHALLED.match(head) is not None
    return known or _is_windows_program(head) or _is_bytecode(head)


def is_image(head: bytes) -> bool:
    """PNG, JPEG, GIF and WebP."""
    return head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def packed_with(head: bytes) -> str:
    """What it is packed with; "" when it is not."""
    for magic, name in _COMPRESSIONS.items():
        if head.startswith(magic) and (name != "lzma" or head[5:13] in {b"\xff" * 8} or head[10:13] == b"\0\0\0"):
            return name
    return ""


def _is_windows_program(head: bytes) -> bool:
    at = int.from_bytes(head[60:64], "little")
    return head.startswith(b"MZ") and head[at : at + 4] == b"PE\0\0"


def _is_bytecode(head: bytes) -> bool:
    # A Python .pyc: a version number, CR LF, then flags of which only the lowest bits are used.
    return head[2:4] == b"\r\n" and head[5:8] == b"\0\0\0" and head[4] < 4


def unpacked_head(name: str, head: bytes) -> bytes:
    """The first bytes inside, or none when this build can't unpack it; never more than 64 KiB."""
    try:
        if name == "gzip":
            return zlib.decompressobj(31).decompress(head, HEAD_BYTES)
        if name == "bzip2":
            return bz2.BZ2Decompressor().decompress(head, HEAD_BYTES)
        if name in {"xz", "lzma"}:
            return lzma.LZMADecompressor(memlimit=2**27).decompress(head, HEAD_BYTES)
    except (zlib.error, OSError, lzma.LZMAError):
        # It begins like a packed file and is none, or needs too much memory: refused either way, without a look inside.
        return b""
    return b""


def zlib_content(head: bytes) -> bytes | None:
    """The first bytes inside a zlib stream; None when it is none. Its header is too short to go by alone."""
    if len(head) < 8 or head[0] & 0x0F != 8 or struct.unpack(">H", head[:2])[0] % 31:
        return None
    try:
        content = zlib.decompressobj().decompress(head, HEAD_BYTES)
    except zlib.error:
        return None
    return content or None


_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_CONTROLS = bytes(range(7)) + bytes(range(14, 27)) + b"\x7f"


def encoding_of(path: str, head: bytes) -> str:
    """How the letters are written, as readers of text take them; "" when the bytes are no text."""
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), "")
    if marked or b"\0" in head:
        named = path.lower().endswith((".json", ".yaml", ".yml", ".jinja"))
        guessed = marked or (json.detect_encoding(head) if named else "")
        return guessed if guessed and _reads(head[: len(head) // 4 * 4], guessed) else ""
    # Letters alone: controls are rare in text, and so are bytes over 127 that are no UTF-8.
    if len(head) - len(head.translate(None, _CONTROLS)) > len(head) // 100:
        return ""
    try:
        head.decode()
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data" and len(head) == HEAD_BYTES
        high = sum(byte > 127 for byte in head)
        return "utf-8" if cut else "latin-1" if high <= len(head) // 4 else ""
    return "utf-8"


def _reads(head: bytes, encoding: str) -> bool:
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return bool(text) and sum(letter < " " and letter not in "\t\r\n" for letter in text) <= len(text) // 100
