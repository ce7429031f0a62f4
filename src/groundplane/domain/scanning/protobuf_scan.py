"""What a protobuf of weights reaches for: files outside an ONNX model's folder, TensorFlow operations that act.

ONNX is walked by its schema, so far as the ways to a tensor go; a message that breaks off is told. TensorFlow graphs
are looked at for the operations' names, each with its field and length before it, in any spelling of the numbers.
Source: onnx.proto (ModelProto, GraphProto, TensorProto, StringStringEntryProto); tensorflow/core/framework's
graph.proto and function.proto; the protobuf encoding.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from groundplane.domain.scanning.byte_view import ByteView

_SIGNS_OF_MODEL = {(1, 0): 1, (7, 2): 2, (8, 2): 4}
"""Version, graph and operator sets: every ONNX model has them; by the name of one, the graph and another will do."""
_FIELDS_MAX = 20_000_000
_TOP_FIELDS_MAX = 50_000
_WINDOW_BYTES = 1 << 16
_TEXT_BYTES_MAX = 1 << 16
_NESTED_MAX = 64

_WAYS: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


_TEXTS: dict[str, dict[int, str]] = {
    "model": {2: "text", 3: "text", 6: "text", 14: "metadata"},
    "metadata": {1: "text", 2: "text"},
    "graph": {10: "text", 16: "metadata"},
    "node": {4: "operation", 7: "domain"},
    "function": {10: "own"},
}
"""Fields that are texts, or hold some: what is told about the model, and whose operations it asks for."""
_DOMAINS = re.compile(
    r"(?:ai\.onnx(?:\.ml|\.training|\.preview\.training)?|com\.microsoft(?:\.\w+)*|ai\.onnx\.contrib)?"
)
_EXTERNAL_KEYS = re.compile(r"location|offset|length|checksum|prepacked_\w+")
_PYTHON_OPERATIONS = frozenset(
    {"PythonOp", "PythonOpGrad", "PyOp", "PyCustomOp", "ATen", "ExternalProgram", "EPContext"}
)


class ProtobufFault(ValueError):
    """The bytes are no message of this kind; the message says where they break off."""


@dataclass(slots=True)
class OnnxSeen:
    """`places`: where tensors' data lie outside the file, in order; `text`: what is told about the model, a line each.

    `foreign`: the first operation that calls Python, or that neither ONNX, its runtime nor the model itself defines.
    """

    places: list[str] = field(default_factory=list)
    text: str = ""
    foreign: str = ""


def looks_like_onnx(view: ByteView) -> bool:
    """Whether it is a whole message with all that an ONNX model has: version, graph and operator sets."""
    known = 0
    try:
        for number, wire, _, _ in Fields(view, _TOP_FIELDS_MAX).within(0, view.size_bytes):
            known |= _SIGNS_OF_MODEL.get((number, wire), 0)
    except ProtobufFault:
        return False
    return known == sum(_SIGNS_OF_MODEL.values())


def read_onnx(view: ByteView) -> OnnxSeen:
    """Walks the ways to tensors, operations and texts. Raises ProtobufFault."""
    cursor = Fields(view)
    seen, texts, own = OnnxSeen(), [], set()
    asked: dict[tuple[str, str], None] = {}
    known = 0
    waiting = [("model", 0, view.size_bytes, 0)]
    while waiting:
        kind, begin, end, nested = waiting.pop()
        if nested > _NESTED_MAX:
            raise ProtobufFault(f"it nests messages over {_NESTED_MAX} deep")
        entry: dict[int, list[str]] = {1: [], 2: []}
        operation = {"operation": "", "domain": ""}
        for number, wire, at, size in cursor.within(begin, end):
            known |= _SIGNS_OF_MODEL.get((number, wire), 0) if kind == "model" else 0
            if wire != 2:
                continue
            inside = _WAYS.get(kind, {}).get(number)
            told = _TEXTS.get(kind, {}).get(number)
            if inside is not None:
                waiting.append((inside, at, at + size, nested + 1))
            elif told == "metadata":
                waiting.append((told, at, at + size, nested + 1))
            elif told is not None:
                words = view.at(at, min(size, _TEXT_BYTES_MAX)).decode(errors="replace")
                if told in operation:
                    operation[told] = words
                elif told == "own":
                    own.add(words)
                else:
                    texts.append(words)
            elif kind == "entry" and number in entry:
                entry[number].append(view.at(at, min(size, _TEXT_BYTES_MAX)).decode(errors="replace"))
        if kind == "node":
            asked[operation["domain"], operation["operation"]] = None
        if kind == "entry":
            seen.places += _places(entry[1], entry[2])
    if known not in {3, 6, 7}:
        raise ProtobufFault("it has not version and graph of a model")
    seen.text = "\n".join(texts)
    seen.foreign = next(
        (f"{name[:40]} of {domain[:40] or 'ai.onnx'}" for domain, name in asked if _foreign(domain, name, own)), ""
    )
    return seen


def _places(keys: list[str], values: list[str]) -> list[str]:
    """Where data lie, of one entry about external data; its numbers must be numbers that a file can have."""
    strange = next((key for key in keys if not _EXTERNAL_KEYS.fullmatch(key)), None)
    if strange is not None:
        # Readers that take each key for an attribute's name write where the file wants: CVE-2026-34445.
        raise ProtobufFault(f"its external data have the key {strange[:30]!r}")
    for key, value in zip(keys, values, strict=False):
        if key in {"offset", "length"} and not (value.isdecimal() and int(value[:20]) < 2**50):
            raise ProtobufFault(f"its external data have the {key} {value[:30]}")
    return (values or [""]) if "location" in keys else []


def _foreign(domain: str, name: str, own: set[str]) -> bool:
    return domain not in own and (name in _PYTHON_OPERATIONS or not _DOMAINS.fullmatch(domain))


class Fields:
    """Goes over messages' fields, reading the file in windows; what it reads in all is bounded."""

    def __init__(self, view: ByteView, fields_max: int = _FIELDS_MAX) -> None:
        self._view = view
        self._start, self._window = 0, b""
        self._left = self._max = fields_max

    def within(self, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(number, wire type, where the value begins, its bytes) of each field of the message in `at` to `end`."""
        while at < end:
            self._left -= 1
            if not self._left:
                raise ProtobufFault(f"it has over {self._max:,} fields")
            tag, at = self._varint(at, end)
            number, wire = tag >> 3, tag & 7
            size = {1: 8, 5: 4}.get(wire, 0)
            if wire == 0:
                _, after = self._varint(at, end)
                size = after - at
            elif wire == 2:
                size, at = self._varint(at, end)
            elif not size or not number:
                raise ProtobufFault(f"it has no field at byte {at:,}")
            if at + size > end:
                raise ProtobufFault(f"field {number} at byte {at:,} goes on after its message's end")
            yield number, wire, at, size
            at += size

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while shift < 70 and at < end:
            byte = self._byte(at)
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                return value, at
        raise ProtobufFault(f"a number at byte {at:,} does not end")

    def _byte(self, at: int) -> int:
        if not self._start <= at < self._start + len(self._window):
            self._start, self._window = at, self._view.at(at, _WINDOW_BYTES)
        return self._window[at - self._start]


# ---------------------------------------------------------------- TensorFlow

_ACTS = (
    "ReadFile", "WriteFile", "MatchingFiles", "PyFunc", "PyFuncStateless", "EagerPyFunc", "DebugIdentity",
    "DebugIdentityV2", "DebugIdentityV3", "FileSystemSetConfiguration", "WholeFileReader", "WholeFileReaderV2",
    "SaveDataset", "SaveDatasetV2", "DatasetToTFRecord", "CreateSummaryFileWriter", "RpcCall", "Abort",
    "DecodeProtoV2", "EncodeProto", "TryRpc", "FixedLengthRecordReader", "FixedLengthRecordReaderV2", "TextLineReader",
    "TextLineReaderV2", "TFRecordReader", "TFRecordReaderV2", "LMDBReader", "LMDBDataset", "CSVDataset", "CSVDatasetV2",
    "FixedLengthRecordDataset", "FixedLengthRecordDatasetV2", "TextLineDataset", "TFRecordDataset", "TFRecordDatasetV2",
    "SqlDataset", "SnapshotDataset", "SnapshotDatasetV2", "LoadDataset", "RegisterDataset", "RegisterDatasetV2",
    "DataServiceDataset", "DataServiceDatasetV2", "DataServiceDatasetV3", "DataServiceDatasetV4", "ImportEvent",
    "CreateSummaryDbWriter", "LoadAndRemapMatrix", "GenerateVocabRemapping",
    "GcsConfigureCredentials", "DebugNanCount", "DebugNumericSummary", "DistributedSave", "RemoteCall",
    "CloudBigtableClient", "BigQueryReader", "KafkaDataset",
)  # fmt: skip
"""Operations that touch files, the network or Python, which no model needs. Restoring weights is none of them."""


def _length(size: int) -> bytes:
    return rb"(?:\x%02x|\x%02x\x80{0,8}\x00)" % (size, size | 0x80)


_NAMES = rb"(?:" + rb"|".join(_length(len(name)) + name.encode() for name in _ACTS) + rb")"
# Field 2, in its shortest spelling and in longer ones; each with a first byte of its own, which re looks for fast.
_OPERATIONS = (re.compile(rb"\x12" + _NAMES), re.compile(rb"\x92\x80{0,8}\x00" + _NAMES))
OPERATION_LONGEST_BYTES = 2 * 10 + max(len(name) for name in _ACTS)
_TEXT_OPERATION = re.compile(rf"""\bop\s*:\s*["'](?:({"|".join(_ACTS)})["']|[^"'\n]*\\|[^"'\n]*["']\s*["'])""")


# tf.print may be told to write to a file.
_PRINTS = re.compile(rb"output_stream\x12.{1,6}file://", re.DOTALL)
_FLEX = re.compile(rb"Flex(?:" + "|".join(_ACTS).encode() + rb")\0")


def flex_operation(view: ByteView) -> str:
    """The first operation of TensorFlow's that acts, in a TFLite file that brings such along; "" when there is none."""
    found = view.search(_FLEX, longest_bytes=48)
    return "" if found is None else found[4:-1].decode()


def acting_operation(view: ByteView) -> str:
    """The first TensorFlow operation in a binary graph that acts on its surroundings; "" when there is none."""
    searches = (view.search(pattern, longest_bytes=OPERATION_LONGEST_BYTES) for pattern in _OPERATIONS)
    found = next((each for each in searches if each is not None), None)
    if found is None and view.search(_PRINTS, longest_bytes=32) is not None:
        return "PrintV2 to a file"
    return "" if found is None else found.lstrip(b"\x12\x92\x80\x00")[1:].lstrip(b"\x80\x00").decode(errors="replace")


def names_acting_operation(text: str) -> bool:
    """Whether one of these operations is named anywhere in a text, which need not be a graph."""
    return any(name in text for name in _ACTS)


def acting_operation_in_text(text: str) -> str:
    """The same of a graph in protobuf's text form; a name that is put together from pieces counts."""
    found = _TEXT_OPERATION.search(text)
    return "" if found is None else found[1] or "an operation whose name is put together"
