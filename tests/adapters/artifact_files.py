"""Files that the artifact store's tests push, and looking at what is stored of them."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

from groundplane.adapters.artifacts import PackStore, folder_store

MIB = 2**20


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def shown(root: Path) -> set[str]:
    """The files a freshly opened store tells of, each read and verified."""
    store = folder_store(root)
    found = {recipe.name.hex(): recipe.size_bytes for recipe in store._index.recipes()}
    for sha256, size_bytes in found.items():
        await store.verify(sha256, size_bytes)
    store.close()
    return set(found)


async def rot(root: Path, store: PackStore, sha256: str, where: int = 0, bit: int = 0) -> str:
    """Flips one bit of a stored file on disk; returns the BLAKE3 of the piece it is in."""
    for piece in await store.pieces(sha256):
        if where < piece.size_bytes:
            pack = root / "packs" / piece.pack
            data = bytearray(pack.read_bytes())
            data[piece.offset + where] ^= 1 << bit
            pack.chmod(0o644)
            pack.write_bytes(data)
            return piece.blake3
        where -= piece.size_bytes
    raise AssertionError("the file is shorter")


def tensors(seed: int, count: int = 8, size_bytes: int = 300_000) -> dict[str, bytes]:
    chance = random.Random(seed)
    return {f"layer.{number}": chance.randbytes(size_bytes) for number in range(count)}


def safetensors(parts: dict[str, bytes], metadata: dict[str, str] | None = None) -> bytes:
    """The format by hand: a length, a header, the bytes."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    offset = 0
    for name, data in parts.items():
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(parts.values())
