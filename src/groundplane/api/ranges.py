"""A stored file as an HTTP answer: whole, one range, or not modified."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from groundplane.domain.byte_range import parse_range
from groundplane.domain.model import ManifestFile

Content = Callable[[ManifestFile, int, int], AsyncIterator[bytes]]
_BYTES = "application/octet-stream"


async def file_answer(request: Request, file: ManifestFile, content: Content, extra: Mapping[str, str]) -> Response:
    """200, 206, 304 or 416 for a GET or HEAD of a file; its ETag is its SHA-256. `content` gives a range.

    Raises what the first bytes raise; what later ones raise cuts the answer off, and who asks for the rest is told.
    """
    etag = f'"{file.sha256}"'
    # What a digest names never changes; what a name names may, and only the registry knows.
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache", **extra}
    if request.headers.get("if-none-match") == etag:
        return Response(status_code=304, headers=headers)
    # An If-Range of another file: the bytes asked for are no longer these, so all of them are sent.
    unchanged = request.headers.get("if-range", etag) == etag
    try:
        part = parse_range(request.headers.get("range", ""), file.size_bytes) if unchanged else None
    except ValueError:
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{file.size_bytes}"})
    start, stop = part or (0, file.size_bytes)
    headers["Content-Length"] = str(stop - start)
    if part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
    status = 206 if part else 200
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=_BYTES)
    chunks = content(file, start, stop)
    first = await anext(chunks, b"")
    return StreamingResponse(_joined(first, chunks), status_code=status, headers=headers, media_type=_BYTES)


async def _joined(first: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in chunks:
        yield chunk
