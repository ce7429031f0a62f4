"""What routing needs of a multipart form: the model's name, where it stands, and how much of the rest is text.

Strict, because an upstream that reads a form otherwise would serve another model than the one that was checked.
Source: RFC 7578, RFC 2046 5.1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from groundplane.gateway.protocol.errors import Fault, bad_request
from groundplane.gateway.protocol.json_body import FILE_BYTES_PER_TOKEN

_BOUNDARY = re.compile(rb'multipart/form-data *; *boundary=(?:"([^"\\\r\n]{1,70})"|([^\s";,]{1,70}))', re.IGNORECASE)
_DISPOSITION = re.compile(
    rb'content-disposition: *form-data *; *name="([^"\\%\r\n]*)"( *; *filename=.*)?', re.IGNORECASE
)
_PARTS_MAX = 200
_DIGITS_MAX = 6


@dataclass(frozen=True, slots=True)
class Form:
    """`model_span` is where the model's name stands in the body; `weight_bytes` what the body counts as, as text;
    `answers` how many are asked for."""

    model: str
    model_span: tuple[int, int]
    weight_bytes: int
    answers: int
    has_files: bool


def read_form(body: bytes, content_type: bytes) -> Form:
    """Raises Fault 400 when the body is no form, or names no model, or more than one; 415 for another type."""
    match = _BOUNDARY.fullmatch(content_type)
    if match is None:
        raise Fault(415, "this path takes multipart/form-data with one boundary", "unsupported_media_type")
    mark = b"\r\n--" + (match[1] or match[2])
    # The first delimiter needs no line before it: where the body starts without one, positions are two less.
    position = len(mark) - 2
    if not body.startswith(mark[2:]):
        raise _malformed("it does not start with its boundary")
    spans: list[tuple[int, int]] = []
    weight = parts = 0
    answers, has_files = 1, False
    while body[position : position + 2] == b"\r\n":
        parts += 1
        head_end = body.find(b"\r\n\r\n", position)
        end = body.find(mark, position)
        if parts > _PARTS_MAX or end < 0 or not 0 <= head_end < end:
            raise _malformed("a part does not end, or there are too many")
        name, is_file = _disposition(body[position + 2 : head_end])
        start = head_end + 4
        if name == b"model" and not is_file:
            spans.append((start, end))
        elif name == b"n" and not is_file:
            answers = max(answers, _count(body[start:end]))
        has_files = has_files or is_file
        size = max(0, end - start)
        weight += -(-size // (FILE_BYTES_PER_TOKEN // 4)) if is_file else size
        position = end + len(mark)
    if body[position : position + 2] != b"--" or body[position + 2 :].strip():
        raise _malformed("its last boundary is missing")
    if len(spans) != 1 or spans[0][0] >= spans[0][1]:
        raise bad_request("the form must name one model", "missing_required_parameter", "model")
    start, end = spans[0]
    return Form(body[start:end].decode("utf-8", "replace"), (start, end), weight, answers, has_files)


def _count(value: bytes) -> int:
    if not value.isdigit() or len(value) > _DIGITS_MAX:
        raise bad_request("the form's n is no number of answers", "invalid_type", "n")
    return int(value)


def _disposition(head: bytes) -> tuple[bytes, bool]:
    """(name, whether it is a file) of one part."""
    found = None
    for line in head.split(b"\r\n"):
        if line[:20].lower() == b"content-disposition:":
            match = _DISPOSITION.fullmatch(line)
            if match is None or found is not None:
                raise _malformed("a part's Content-Disposition can't be understood")
            found = match[1], match[2] is not None
        elif not line or line[:1] in b" \t" or b"\n" in line or b"\r" in line:
            raise _malformed("a part's head is malformed")
    if found is None:
        raise _malformed("a part has no name")
    return found


def _malformed(why: str) -> Fault:
    return bad_request(f"the multipart form can't be read: {why}", "invalid_form")
