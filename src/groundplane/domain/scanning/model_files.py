"""What a model's file really is, told from its bytes, and whether it may become part of a version.

Nothing is loaded, unpacked or trusted by its name. What can run code when it is loaded is refused, with a way forward.
"""

from __future__ import annotations

import bz2
import json
import lzma
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from groundplane.domain.model import path_fault
from groundplane.domain.scanning.archives import ArchiveFault, Member, looks_like_tar, tar_members, zip_end, zip_members
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.gguf import GgufFault, read_gguf
from groundplane.domain.scanning.hdf5_scan import configurations, outside, oversized
from groundplane.domain.scanning.model_formats import Format
from groundplane.domain.scanning.name_scan import acted_on
from groundplane.domain.scanning.npy_header import NpyFault, read_npy
from groundplane.domain.scanning.pickle_scan import PickleWalk, scan_for_hidden_pickle, scan_for_pickle
from groundplane.domain.scanning.protobuf_scan import ProtobufFault, acting_operation, flex_operation, read_onnx
from groundplane.domain.scanning.secrets_scan import judge_secrets
from groundplane.domain.scanning.templates_scan import Template, judge_templates
from groundplane.domain.scanning.tensor_header import HeaderFault, looks_like_safetensors, read_tensor_header
from groundplane.domain.scanning.text_scan import judge_configuration, judge_told, read_text
from groundplane.errors import Refused

CONVERT_HINT = (
    "ground models adopt FILE converts weights to safetensors in a process without network, files or identity, "
    "and refuses what is more than weights"
)
UNPACK_HINT = "unpack it and register the folder: then every file has its own digest and is checked"
_SAFE_FORMATS = "a format that can't run code (safetensors, GGUF, ONNX, npz)"

_PICKLE_NAMES = re.compile(
    r".*\.(pt|pth|pkl|pickle|p|ckpt|joblib|dill|cloudpickle|pt2|mar)$|(pytorch_model|adapter_model|optimizer|scheduler|training_args)[^/]*\.bin$",
    re.IGNORECASE,
)
_NAMED = {
    ".gguf": Format.GGUF,
    ".onnx": Format.ONNX,
    ".tflite": Format.TFLITE,
    ".npy": Format.NPY,
    ".npz": Format.NPZ,
    ".h5": Format.HDF5,
    ".hdf5": Format.HDF5,
}
"""What a file must be when its name says so: loaders go by names, and try something else when it is not."""
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
_TORCH_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_HEAD_BYTES = 64 * 1024
# Archives are refused anyway but for npz; so much looking inside is enough to say why, and no more can be made to cost.
_LOOKED_AT_MAX = 200
_NESTED_MAX = 20
_DEPTH_MAX = 3
_TEXT_BYTES_MAX = 64 * 2**20
_TOLD_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A file's format, what is worth knowing of it (tensors, parameters, dtypes, …), and why it may not enter."""

    format: Format
    details: dict[str, object] = field(default_factory=dict)
    refused: Refused | None = None
    templates: tuple[Template, ...] = ()


def inspect(path: str, view: ByteView) -> Inspection:
    """Tells what the bytes are and judges them. `path` only names the file in messages and sharpens suspicion."""
    found = _identify(path, view, _Depth())
    if found.refused is not None:
        return found
    acts = acted_on(path)
    if acts:
        return Inspection(format=found.format, refused=_no_program(f"{path} {acts}"))
    if (
        found.format not in {Format.NPZ, Format.KERAS}
        and zip_end(view) is not None
        and not _labelled(found.format, view)
    ):
        # A file may begin as one thing and end as a zip: loaders that read from the end would see another file.
        return _archive(path, view, Format.ZIP, _Depth())
    walk = _another_pickle(found.format, view)
    if walk is not None:
        return _refuse_pickle(path, Format.PICKLE, f"read as {found.format} and holds a pickle as well", walk)
    if found.format is not Format.SAFETENSORS and path.lower().endswith(".safetensors"):
        return _broken_safetensors(path, view)
    if (named := _NAMED.get(PurePosixPath(path).suffix.lower())) not in {None, found.format}:
        what = {Format.EMPTY: "empty", Format.BINARY: "of no format known here"}.get(found.format, str(found.format))
        refused = Refused(
            rule="known-format",
            need=f"{named} where the name says so",
            have=f"{path} is {what}",
            hint="the file is cut, forged or something else: fetch it again and compare its digest",
        )
        return Inspection(format=found.format, refused=refused)
    if found.format in {Format.BINARY, Format.TEXT} and _PICKLE_NAMES.match(PurePosixPath(path).name):
        have = f"{path} is named like a pickle and is {_UNLIKE[found.format]}"
        refused = Refused(rule="known-format", need=_SAFE_FORMATS, have=have, hint=CONVERT_HINT)
        return Inspection(format=found.format, refused=refused)
    return found


_UNLIKE = {Format.BINARY: "of no format known here", Format.TEXT: "text, which Python may run (.pth) and nothing loads"}
_HIDES = {Format.HDF5, Format.BINARY, Format.IMAGE, Format.TEXT}


def _another_pickle(found: Format, view: ByteView) -> PickleWalk | None:
    """A pickle that the file is besides what it looks like: the first letters of many formats are opcodes too."""
    walk = scan_for_pickle(view) if found not in {Format.TEXT, Format.BINARY} else None
    return walk or (scan_for_hidden_pickle(view, letters=found is not Format.TEXT) if found in _HIDES else None)


def _labelled(found: Format, view: ByteView) -> bool:
    """TFLite carries its labels as a zip of texts behind it; nothing else may."""
    if found is not Format.TFLITE:
        return False
    try:
        members = zip_members(view, behind_something=True)
    except ArchiveFault:
        return False
    return all(_member(member, _Depth(level=1)).format in {Format.TEXT, Format.EMPTY} for member in members)


@dataclass(slots=True)
class _Depth:
    """How deep in nested archives a look is, and how many of them it may still open: a bomb is a matter of these."""

    level: int = 0
    nested_left: int = _NESTED_MAX

    def enter(self) -> bool:
        if self.level:
            self.nested_left -= 1
        return self.level < _DEPTH_MAX and self.nested_left >= 0


def _identify(path: str, view: ByteView, depth: _Depth) -> Inspection:
    head = view.at(0, _HEAD_BYTES)
    if not head:
        return Inspection(format=Format.EMPTY)
    if looks_like_safetensors(view):
        return _safetensors(path, view)
    by_magic = _by_magic(path, head, view, depth)
    if by_magic is not None:
        return by_magic
    walk = scan_for_pickle(view if depth.level == 0 else view.part(0, _HEAD_BYTES))
    if walk is not None:
        return _pickle(path, walk, head)
    packed = _zlib_content(head)
    if packed is not None:
        return _compressed(path, "zlib", packed)
    encoding = _encoding(path, head)
    if encoding:
        return _text(path, view, encoding) if depth.level == 0 else Inspection(format=Format.TEXT)
    return _binary(path, view) if depth.level == 0 else Inspection(format=Format.BINARY)


_LOCATION = re.compile(rb"\n(?:\x08|\x88\x80{0,8}\x00)location")


def _binary(path: str, view: ByteView) -> Inspection:
    """Bytes without a magic number: ONNX, graphs of TensorFlow, or unknown ones, which may hide a program."""
    if path.lower().endswith(".onnx"):
        return _onnx(path, view)
    if view.search(_LOCATION, longest_bytes=24) is not None:
        seen = _onnx(path, view)
        if seen.refused is None or seen.refused.rule == "onnx-external-data":
            return seen
    operation = acting_operation(view)
    if operation:
        refused = Refused(
            rule="no-programs",
            need="a graph that only computes",
            have=f"{path} is a TensorFlow graph with the operation {operation}, which acts on what surrounds it",
            hint="export it again without that operation",
        )
        return Inspection(format=Format.BINARY, refused=refused)
    refused_ = _judge_configurations(path, view) if path.lower().endswith(".pb") else None
    return Inspection(format=Format.BINARY, refused=refused_ or judge_told(path, _told(view)))


_LETTERS = re.compile(rb"[\t\r\n -~]{16,}")


def _told(view: ByteView) -> str:
    """The texts at the ends of a binary file: metadata lie there, and all of a large one would be read for too long."""
    size = view.size_bytes
    ends = view.at(0, _TOLD_BYTES) + view.at(max(size - _TOLD_BYTES, _TOLD_BYTES), _TOLD_BYTES)
    return "\n".join(found.decode() for found in _LETTERS.findall(ends))


def _by_magic(path: str, head: bytes, view: ByteView, depth: _Depth) -> Inspection | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive(path, view, Format.ZIP, depth)
    if looks_like_tar(view):
        return _archive(path, view, Format.TAR, depth)
    if head.startswith(b"GGUF"):
        return _gguf(path, view)
    if head.startswith(b"\x93NUMPY"):
        return _npy(path, view, view.size_bytes if depth.level == 0 else None)
    base = next((offset for offset in _hdf5_starts(view.size_bytes) if view.at(offset, 8) == _HDF5_MAGIC), None)
    if base is not None:
        return _hdf5(path, view, base) if depth.level == 0 else Inspection(format=Format.HDF5)
    if head[4:8] == b"TFL3":
        operation = flex_operation(view)
        acts = f"{path} has the operation {operation} of TensorFlow's, which acts on what surrounds it"
        return Inspection(format=Format.TFLITE, refused=_no_program(acts) if operation else None)
    if head.startswith(_IMAGES) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
        return Inspection(format=Format.IMAGE)
    if head.startswith(_EXECUTABLES) or _is_windows_program(head) or _is_bytecode(head) or _MARSHALLED.match(head):
        refused = _no_program(f"{path} is a program, or what a loader runs as one")
        return Inspection(format=Format.EXECUTABLE, refused=refused)
    for magic, name in _COMPRESSIONS.items():
        if head.startswith(magic) and (name != "lzma" or head[5:13] in {b"\xff" * 8} or head[10:13] == b"\0\0\0"):
            return _compressed(path, name, _unpacked_head(name, head))
    return None


def _no_program(have: str) -> Refused:
    return Refused(
        rule="no-programs",
        need="weights, configuration and text only",
        have=have,
        hint="leave it out of the model's folder; engines bring their own code",
    )


def _hdf5_starts(size_bytes: int) -> Iterator[int]:
    """Where HDF5 may begin: at 0, or behind a user block of 512 bytes, or twice that, and so on."""
    yield 0
    offset = 512
    while offset < size_bytes:
        yield offset
        offset *= 2


def _is_windows_program(head: bytes) -> bool:
    at = int.from_bytes(head[60:64], "little")
    return head.startswith(b"MZ") and head[at : at + 4] == b"PE\0\0"


def _is_bytecode(head: bytes) -> bool:
    # A Python .pyc: a version number, CR LF, then flags of which only the lowest bits are used.
    return head[2:4] == b"\r\n" and head[5:8] == b"\0\0\0" and head[4] < 4


def _safetensors(path: str, view: ByteView) -> Inspection:
    try:
        summary = read_tensor_header(view)
    except HeaderFault as fault:
        return _header_refusal(path, fault)
    details: dict[str, object] = {
        "tensors": summary.tensors,
        "parameters": summary.parameters,
        "dtypes": list(summary.dtypes),
    }
    header = view.at(8, int.from_bytes(view.at(0, 8), "little")).decode(errors="replace")
    return Inspection(
        format=Format.SAFETENSORS, details=details, refused=_judge_names(path, header) or judge_told(path, header)
    )


_LEAVING = re.compile(r'"(?:[^"\n]{0,200}/)?\.\./[^"\n]{0,200}"\s*:')


def _judge_names(path: str, header: str) -> Refused | None:
    """Tools that write a file per tensor take its name for the file's."""
    found = _LEAVING.search(header)
    return (
        _header_refusal(path, HeaderFault(f"a tensor's name leaves the folder: {found[0][:80]}")).refused
        if found
        else None
    )


def _broken_safetensors(path: str, view: ByteView) -> Inspection:
    try:
        read_tensor_header(view)
    except HeaderFault as fault:
        return _header_refusal(path, fault)
    return Inspection(format=Format.SAFETENSORS)


def _header_refusal(path: str, fault: HeaderFault) -> Inspection:
    refused = Refused(
        rule="safetensors-header",
        need="a header that describes exactly the bytes that follow",
        have=f"{path}: {fault}",
        hint="the file is cut, damaged or forged: save it again, or compare its digest with the source's",
    )
    return Inspection(format=Format.SAFETENSORS, refused=refused)


def _pickle(path: str, walk: PickleWalk, head: bytes) -> Inspection:
    legacy = _TORCH_LEGACY_MAGIC in head[:32]
    what = "a PyTorch file of the old kind, made of pickles" if legacy else "a pickle"
    if walk.protocol is not None and not legacy:
        what += f" of protocol {walk.protocol}"
    return _refuse_pickle(path, Format.TORCH_LEGACY if legacy else Format.PICKLE, what, walk)


def _refuse_pickle(path: str, kind: Format, what: str, walk: PickleWalk | None) -> Inspection:
    acts = ""
    if walk is not None and walk.foreign:
        acts = f"; it would reach for {', '.join(walk.foreign[:3])}"
    elif walk is not None and walk.imports:
        acts = "; it names nothing but what weights are made with"
    refused = Refused(
        rule="no-pickles",
        need=_SAFE_FORMATS,
        have=f"{path} is {what}{acts}; loading a pickle runs whatever it says",
        hint=CONVERT_HINT,
    )
    return Inspection(format=kind, refused=refused)


def _archive(path: str, view: ByteView, kind: Format, depth: _Depth) -> Inspection:
    """Archives are refused, but for npz files of plain arrays; what lies inside gives the reason."""
    if not depth.enter():
        return Inspection(format=kind, refused=_refuse_archive(f"{path} nests archives too deep to be checked"))
    try:
        members = zip_members(view) if kind is Format.ZIP else tar_members(view)
    except ArchiveFault as fault:
        return Inspection(format=kind, refused=_refuse_archive(f"{path} is an archive that can't be checked: {fault}"))
    arrays = kind is Format.ZIP and bool(members) and view.at(0, 2) == b"PK"
    depth.level += 1
    try:
        for position, member in enumerate(members):
            if not arrays and position >= _LOOKED_AT_MAX:
                break
            if member.kind in {"link", "device", "pipe", "special"}:
                return Inspection(format=kind, refused=_refuse_archive(f"{path} holds {member.path}, a {member.kind}"))
            inside = _member(member, depth)
            if inside.refused is not None and inside.refused.rule == "no-pickles":
                return _boxed_pickle(path, kind, members, member)
            if inside.refused is not None and inside.refused.rule == "npy-header":
                return Inspection(format=kind, refused=inside.refused)
            arrays = arrays and inside.format is Format.NPY and inside.refused is None and member.path.endswith(".npy")
    finally:
        depth.level -= 1
    if kind is Format.ZIP and path.lower().endswith(".keras"):
        return _keras_archive(path, members)
    if arrays and path.lower().endswith(".npz"):
        return Inspection(format=Format.NPZ, details={"arrays": len(members)})
    have = f"{path} is a {kind} archive of {len(members)} entries"
    return Inspection(format=kind, refused=_refuse_archive(have, _kind_hint(members)))


def _keras_archive(path: str, members: list[Member]) -> Inspection:
    """Keras 3 saves its configuration and HDF5 weights in a zip, stored as they are: each is judged as a file is."""
    for member in members:
        wanted = _KERAS_PARTS.get(member.path)
        if wanted is None or member.kind != "file" or member.content.size_bytes != member.size_bytes:
            have = f"{path} holds {member.path}, or has it packed: a Keras file stores its configuration and weights"
            return Inspection(format=Format.ZIP, refused=_refuse_archive(have, _KERAS_HINT))
        inside = inspect(f"{path}/{member.path}", member.content)
        if inside.refused is not None or inside.format is not wanted:
            have = f"{path} holds {member.path}, which is {inside.format}"
            return Inspection(format=Format.ZIP, refused=inside.refused or _refuse_archive(have, _KERAS_HINT))
    if {member.path for member in members} != _KERAS_PARTS.keys():
        return Inspection(format=Format.ZIP, refused=_refuse_archive(f"{path} is no whole Keras file", _KERAS_HINT))
    return Inspection(format=Format.KERAS)


_KERAS_PARTS = {"config.json": Format.TEXT, "metadata.json": Format.TEXT, "model.weights.h5": Format.HDF5}
_KERAS_HINT = "save the model again with Keras 3, or export its weights to safetensors"


def _member(member: Member, depth: _Depth) -> Inspection:
    if member.kind != "file":
        return Inspection(format=Format.EMPTY)
    inside = _identify(member.path, member.content, depth)
    plain = inside.format is Format.NPY and inside.refused is None
    return _npy(member.path, member.content, member.size_bytes) if plain else inside


def _boxed_pickle(path: str, kind: Format, members: list[Member], member: Member) -> Inspection:
    torch = _is_torch(members, kind)
    format_ = {Format.ZIP: Format.TORCH_ZIP, Format.TAR: Format.TORCH_TAR}[kind] if torch else kind
    box = f"a PyTorch {kind} holding" if torch else f"a {kind} holding"
    walk = scan_for_pickle(member.content)
    return _refuse_pickle(path, format_, f"{box} {member.path}, a pickle", walk)


def _is_torch(members: list[Member], kind: Format) -> bool:
    names = {PurePosixPath(member.path).name for member in members}
    return "data.pkl" in names if kind is Format.ZIP else {"pickle", "storages"} <= names


def _refuse_archive(have: str, hint: str = UNPACK_HINT) -> Refused:
    return Refused(rule="no-archives", need="single files, each with its own digest", have=have, hint=hint)


def _kind_hint(members: list[Member]) -> str:
    """The way forward for an archive: some hold what no unpacking makes loadable without code."""
    names = {member.path for member in members}
    if "schema.json" in names and not names & {"config.json", "metadata.json"}:
        return "this is a skops file, whose loader builds objects by name: export to ONNX, or save its arrays as npz"
    return UNPACK_HINT


def _compressed(path: str, name: str, content: bytes) -> Inspection:
    walk = scan_for_pickle(ByteView.of(content)) if content else None
    if walk is not None:
        return _refuse_pickle(path, Format.COMPRESSED, f"a pickle packed with {name} (joblib writes such files)", walk)
    return Inspection(format=Format.COMPRESSED, refused=_refuse_archive(f"{path} is packed with {name}"))


def _unpacked_head(name: str, head: bytes) -> bytes:
    """The first bytes inside, or none when this build can't unpack it; never more than 64 KiB."""
    try:
        if name == "gzip":
            return zlib.decompressobj(31).decompress(head, _HEAD_BYTES)
        if name == "bzip2":
            return bz2.BZ2Decompressor().decompress(head, _HEAD_BYTES)
        if name in {"xz", "lzma"}:
            return lzma.LZMADecompressor(memlimit=2**27).decompress(head, _HEAD_BYTES)
    except (zlib.error, OSError, lzma.LZMAError):
        # It begins like a packed file and is none, or needs too much memory: refused either way, without a look inside.
        return b""
    return b""


def _zlib_content(head: bytes) -> bytes | None:
    if len(head) < 8 or head[0] & 0x0F != 8 or struct.unpack(">H", head[:2])[0] % 31:
        return None
    try:
        content = zlib.decompressobj().decompress(head, _HEAD_BYTES)
    except zlib.error:
        return None
    return content or None


def _gguf(path: str, view: ByteView) -> Inspection:
    try:
        summary = read_gguf(view)
    except GgufFault as fault:
        refused = Refused(
            rule="gguf-header",
            need="GGUF 2 or 3 with a sane header",
            have=f"{path}: {fault}",
            hint="the file is cut, forged or of a kind no current engine reads: convert it again",
        )
        return Inspection(format=Format.GGUF, refused=refused)
    details: dict[str, object] = {"tensors": summary.tensors, "gguf_version": summary.version}
    refused_ = judge_templates(path, summary.templates) or judge_told(path, summary.text)
    return Inspection(format=Format.GGUF, details=details, refused=refused_, templates=summary.templates)


def _onnx(path: str, view: ByteView) -> Inspection:
    try:
        seen = read_onnx(view)
    except ProtobufFault as fault:
        have, hint = f"{path}: {fault}", "the file is cut or forged: export it again, or compare its digest"
        refused = Refused(rule="onnx-header", need="one whole ONNX model", have=have, hint=hint)
        return Inspection(format=Format.ONNX, refused=refused)
    outside = [place for place in seen.places if path_fault(place) is not None]
    if not outside:
        acts = f"{path} has the operation {seen.foreign}, which calls Python or code of another library"
        against = _no_program(acts) if seen.foreign else judge_told(path, seen.text)
        return Inspection(format=Format.ONNX, refused=against)
    refused = Refused(
        rule="onnx-external-data",
        need="weights in the model's own folder",
        have=f"{path} reads its weights from {outside[0][:80]!r}",
        hint="save it again with its data beside it, or inside: onnx.save(model, path, save_as_external_data=False)",
    )
    return Inspection(format=Format.ONNX, refused=refused)


def _npy(path: str, view: ByteView, size_bytes: int | None) -> Inspection:
    try:
        return Inspection(format=Format.NPY, details={"dtypes": read_npy(view, size_bytes)})
    except NpyFault as fault:
        if fault.pickle:
            return _refuse_pickle(path, Format.PICKLE, "a numpy array of objects, which is a pickle", None)
        hint = "the file is cut, or something was hung on to it: save it again with numpy.save"
        refused = Refused(rule="npy-header", need="exactly the bytes of the array", have=f"{path}: {fault}", hint=hint)
        return Inspection(format=Format.NPY, refused=refused)


# Keras names a layer's class in JSON. Python writes printable letters as they are: one that is escaped hides something.
_KERAS_PROGRAMS = (
    re.compile(rb'"(?:Lambda|__lambda__|TFSMLayer|TorchModuleWrapper)"'),
    re.compile(rb"\\u00[2-7][0-9a-fA-F]"),
)


def _hdf5(path: str, view: ByteView, base: int) -> Inspection:
    if any(view.search(pattern, longest_bytes=24) is not None for pattern in _KERAS_PROGRAMS):
        return Inspection(format=Format.HDF5, refused=_keras_program(path, "a Keras file"))
    claims = oversized(view)
    if claims:
        have, hint = f"{path} {claims}", "the file is cut or forged: save it again, or compare its digest"
        refused = Refused(rule="hdf5-size", need="data that its bytes can hold", have=have, hint=hint)
        return Inspection(format=Format.HDF5, refused=refused)
    elsewhere = outside(view, base)
    if elsewhere:
        have = f"{path} reads {elsewhere[:160]}"
        hint = "copy the data into the file: h5repack, or save the model again"
        refused = Refused(rule="hdf5-external-data", need="data in the file itself", have=have, hint=hint)
        return Inspection(format=Format.HDF5, refused=refused)
    return Inspection(format=Format.HDF5, refused=_judge_configurations(path, view) or judge_told(path, _told(view)))


def _judge_configurations(path: str, view: ByteView) -> Refused | None:
    return next((found for text in configurations(view) if (found := judge_configuration(path, text))), None)


def _keras_program(path: str, what: str) -> Refused:
    return Refused(
        rule="no-programs",
        need="layers without code of their own",
        have=f"{path} is {what} with a layer that is a program (Lambda), or hides letters of its configuration",
        hint="replace the layer by a registered one, or export the weights to safetensors",
    )


def _text(path: str, view: ByteView, encoding: str) -> Inspection:
    """Text that some loader would run, render or publish: programs in configurations, templates, secrets."""
    text = view.at(0, _TEXT_BYTES_MAX).decode(encoding, errors="replace")
    seen = read_text(path, text)
    refused = seen.refused or judge_templates(path, seen.templates) or judge_secrets(path, text)
    return Inspection(format=Format.TEXT, details=seen.details, refused=refused, templates=seen.templates)


_MARKS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_CONTROLS = bytes(range(7)) + bytes(range(14, 27)) + b"\x7f"


def _encoding(path: str, head: bytes) -> str:
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
        cut = error.reason == "unexpected end of data" and len(head) == _HEAD_BYTES
        high = sum(byte > 127 for byte in head)
        return "utf-8" if cut else "latin-1" if high <= len(head) // 4 else ""
    return "utf-8"


def _reads(head: bytes, encoding: str) -> bool:
    try:
        text = head.decode(encoding)
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return bool(text) and sum(letter < " " and letter not in "\t\r\n" for letter in text) <= len(text) // 100
