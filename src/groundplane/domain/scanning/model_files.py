"""What a model's file really is, told from its bytes, and whether it may become part of a version.

Nothing is loaded, unpacked or trusted by its name. What can run code when it is loaded is refused, with a way forward.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

from groundplane.domain.scanning.archives import ArchiveFault, Member, looks_like_tar, tar_members, zip_end, zip_members
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.inspection import (
    CONVERT_HINT,
    SAFE_FORMATS,
    Inspection,
    no_program,
    refuse_pickle,
)
from groundplane.domain.scanning.model_formats import Format
from groundplane.domain.scanning.name_scan import acted_on
from groundplane.domain.scanning.pickle_scan import PickleWalk, scan_for_hidden_pickle, scan_for_pickle
from groundplane.domain.scanning.pickled_weights import texts_of_torch_weights, texts_of_weights
from groundplane.domain.scanning.protobuf_scan import acting_operation, looks_like_onnx
from groundplane.domain.scanning.secrets_scan import judge_secrets, sample_secret
from groundplane.domain.scanning.signatures import (
    HEAD_BYTES,
    behind_picture,
    encoding_of,
    is_image,
    is_program,
    packed_with,
    program_inside,
    unpacked_head,
    zlib_content,
)
from groundplane.domain.scanning.templates_scan import judge_templates, remarks
from groundplane.domain.scanning.tensor_header import looks_like_safetensors
from groundplane.domain.scanning.text_scan import judge_told, read_text
from groundplane.domain.scanning.weight_files import (
    coreml,
    gguf,
    hdf5,
    hdf5_base,
    judge_configurations,
    msgpack,
    npy,
    onnx,
    safetensors,
    tflite,
    told,
)
from groundplane.errors import Refused

UNPACK_HINT = "unpack it and register the folder: then every file has its own digest and is checked"
_PICKLE_NAMES = re.compile(
    r".*\.(pt|pth|pkl|pickle|p|ckpt|joblib|dill|cloudpickle|pt2|mar)$|(pytorch_model|adapter_model|optimizer|scheduler|training_args)[^/]*\.bin$",
    re.IGNORECASE,
)
_HONEST_NAMES = re.compile(rf"{_PICKLE_NAMES.pattern}|.*\.(bin|th|t7|sav)$", re.IGNORECASE)
"""Under which a pickle of weights is no surprise; under any other it misleads."""
_OTHER_NAMES = re.compile(
    r".*\.(safetensors|gguf|onnx|tflite|h5|hdf5|keras|npz|json|ya?ml|txt|md|py|sh|jinja|png|jpe?g|gif|webp|csv|html?|pdf|xml)$",
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
_TORCH_LEGACY_MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
# Archives are refused anyway but for npz; so much looking inside is enough to say why, and no more can be made to cost.
_LOOKED_AT_MAX = 200
_NESTED_MAX = 20
_DEPTH_MAX = 3
_TEXT_BYTES_MAX = 64 * 2**20


def inspect(path: str, view: ByteView) -> Inspection:
    """Tells what the bytes are and judges them. `path` only names the file in messages and sharpens suspicion."""
    found = _identify(path, view, _Depth())
    if found.refused is not None:
        return found
    acts = acted_on(path)
    if acts:
        return Inspection(format=found.format, refused=no_program(f"{path} {acts}"))
    if (
        found.format not in {Format.NPZ, Format.KERAS}
        and zip_end(view) is not None
        and not _labelled(found.format, view)
    ):
        # A file may begin as one thing and end as a zip: loaders that read from the end would see another file.
        return _archive(path, view, Format.ZIP, _Depth())
    walk = _another_pickle(found.format, view)
    if walk is not None:
        return refuse_pickle(path, Format.PICKLE, f"read as {found.format} and holds a pickle as well", walk)
    if found.format is not Format.SAFETENSORS and path.lower().endswith(".safetensors"):
        return safetensors(path, view)
    if (named := _NAMED.get(PurePosixPath(path).suffix.lower())) not in {None, found.format}:
        what = {Format.EMPTY: "empty", Format.BINARY: "of no format known here"}.get(found.format, str(found.format))
        refused = Refused(
            rule="known-format",
            need=f"{named} where the name says so",
            have=f"{path}, {what}",
            hint="the file is cut, forged or something else: fetch it again and compare its digest",
        )
        return Inspection(format=found.format, refused=refused)
    if found.format in {Format.BINARY, Format.TEXT} and _PICKLE_NAMES.match(PurePosixPath(path).name):
        have = f"{path} is named like a pickle and is {_UNLIKE[found.format]}"
        refused = Refused(rule="known-format", need=SAFE_FORMATS, have=have, hint=CONVERT_HINT)
        return Inspection(format=found.format, refused=refused)
    return found


_UNLIKE = {Format.BINARY: "of no format known here", Format.TEXT: "text, which Python may run (.pth) and nothing loads"}
_HIDES = {Format.HDF5, Format.BINARY, Format.IMAGE, Format.TEXT, Format.COREML, Format.MSGPACK}


def misleads(path: str) -> bool:
    """Whether a pickle under this name is passed off as something else, and is no model to be adopted."""
    return _OTHER_NAMES.match(path) is not None


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
    head = view.at(0, HEAD_BYTES)
    if not head:
        return Inspection(format=Format.EMPTY)
    if looks_like_safetensors(view):
        return safetensors(path, view)
    by_magic = _by_magic(path, head, view, depth)
    if by_magic is not None:
        return by_magic
    walk = scan_for_pickle(view if depth.level == 0 else view.part(0, HEAD_BYTES))
    if walk is not None:
        return _pickle(path, view, walk, only_weights=depth.level == 0 and _is_only_weights(path, view))
    packed = zlib_content(head)
    if packed is not None:
        return _compressed(path, "zlib", packed)
    encoding = encoding_of(path, head)
    if encoding:
        return _text(path, view, encoding) if depth.level == 0 else Inspection(format=Format.TEXT)
    return _binary(path, view) if depth.level == 0 else Inspection(format=Format.BINARY)


def _binary(path: str, view: ByteView) -> Inspection:
    """Bytes without a magic number: ONNX, graphs of TensorFlow, or unknown ones, which may hide a program."""
    # ONNX by whatever name: a runtime takes any.
    if path.lower().endswith(".onnx") or looks_like_onnx(view):
        return onnx(path, view)
    if path.lower().endswith(".msgpack"):
        return msgpack(path, view)
    if path.lower().endswith(".mlmodel") and (found := coreml(path, view)) is not None:
        return found
    operation = acting_operation(view)
    if operation:
        refused = Refused(
            rule="no-programs",
            need="a graph that only computes",
            have=f"{path} is a TensorFlow graph with the operation {operation}, which acts on what surrounds it",
            hint="export it again without that operation",
        )
        return Inspection(format=Format.BINARY, refused=refused)
    if inside := program_inside(view):
        return Inspection(format=Format.BINARY, refused=no_program(f"{path} holds {inside}"))
    refused_ = judge_configurations(path, view) if path.lower().endswith(".pb") else None
    return Inspection(format=Format.BINARY, refused=refused_ or judge_told(path, told(view)))


def _by_magic(path: str, head: bytes, view: ByteView, depth: _Depth) -> Inspection | None:
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _archive(path, view, Format.ZIP, depth)
    if looks_like_tar(view):
        return _archive(path, view, Format.TAR, depth)
    if head.startswith(b"GGUF"):
        return gguf(path, view)
    if head.startswith(b"\x93NUMPY"):
        return npy(path, view, view.size_bytes if depth.level == 0 else None)
    base = hdf5_base(view)
    if base is not None:
        return hdf5(path, view, base) if depth.level == 0 else Inspection(format=Format.HDF5)
    if head[4:8] == b"TFL3":
        return tflite(path, view)
    if is_image(head):
        behind = behind_picture(view)
        return Inspection(format=Format.IMAGE, details={"behind": behind} if behind else {})
    if is_program(head):
        refused = no_program(f"{path} is a program, or what a loader runs as one")
        return Inspection(format=Format.EXECUTABLE, refused=refused)
    name = packed_with(head)
    return _compressed(path, name, unpacked_head(name, head)) if name else None


def _pickle(path: str, view: ByteView, walk: PickleWalk, *, only_weights: bool) -> Inspection:
    legacy = _TORCH_LEGACY_MAGIC in view.at(0, 32)
    what = "a PyTorch file of the old kind, made of pickles" if legacy else "a pickle"
    if walk.protocol is not None and not legacy:
        what += f" of protocol {walk.protocol}"
    kind = Format.TORCH_LEGACY if legacy else Format.PICKLE
    return refuse_pickle(path, kind, what, walk, only_weights=only_weights)


def _is_only_weights(path: str, view: ByteView, members: list[Member] | None = None) -> bool:
    """Whether a pickle, or the zip of these members, is named as such, makes weights, and holds nothing besides."""
    if not _HONEST_NAMES.match(PurePosixPath(path).name):
        return False
    if members is None:
        texts = texts_of_weights(view) if zip_end(view) is None else None
        return texts is not None and judge_told(path, "\n".join(texts)) is None
    texts = texts_of_torch_weights(members) if view.at(0, 2) == b"PK" else None
    if texts is None or judge_told(path, "\n".join(texts)) is not None:
        return False
    walks = (scan_for_pickle(member.content) for member in members if not member.path.endswith("/data.pkl"))
    return not any(walk is not None and walk.foreign for walk in walks)


def _archive(path: str, view: ByteView, kind: Format, depth: _Depth) -> Inspection:
    """Archives are refused, but for npz files of plain arrays; what lies inside gives the reason."""
    if not depth.enter():
        return Inspection(format=kind, refused=_refuse_archive(f"{path} nests archives too deep to be checked"))
    try:
        members = zip_members(view) if kind is Format.ZIP else tar_members(view)
    except ArchiveFault as fault:
        return Inspection(format=kind, refused=_refuse_archive(f"{path} is an archive that can't be checked: {fault}"))
    if kind is Format.ZIP and depth.level == 0 and _is_torch(members, kind) and _is_only_weights(path, view, members):
        return refuse_pickle(path, Format.TORCH_ZIP, "a PyTorch zip holding a pickle", None, only_weights=True)
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
    details: dict[str, object] = {}
    for member in members:
        wanted = _KERAS_PARTS.get(member.path)
        if wanted is None or member.kind != "file" or member.content.size_bytes != member.size_bytes:
            have = f"{path} holds {member.path}, or has it packed: a Keras file stores its configuration and weights"
            return Inspection(format=Format.ZIP, refused=_refuse_archive(have, _KERAS_HINT))
        inside = inspect(f"{path}/{member.path}", member.content)
        if inside.refused is not None or inside.format is not wanted:
            have = f"{path} holds {member.path}, which is {inside.format}"
            return Inspection(format=Format.ZIP, refused=inside.refused or _refuse_archive(have, _KERAS_HINT))
        details |= inside.details
    if {member.path for member in members} != _KERAS_PARTS.keys():
        return Inspection(format=Format.ZIP, refused=_refuse_archive(f"{path} is no whole Keras file", _KERAS_HINT))
    return Inspection(format=Format.KERAS, details=details)


_KERAS_PARTS = {"config.json": Format.TEXT, "metadata.json": Format.TEXT, "model.weights.h5": Format.HDF5}
_KERAS_HINT = "save the model again with Keras 3, or export its weights to safetensors"


def _member(member: Member, depth: _Depth) -> Inspection:
    if member.kind != "file":
        return Inspection(format=Format.EMPTY)
    inside = _identify(member.path, member.content, depth)
    plain = inside.format is Format.NPY and inside.refused is None
    return npy(member.path, member.content, member.size_bytes) if plain else inside


def _boxed_pickle(path: str, kind: Format, members: list[Member], member: Member) -> Inspection:
    torch = _is_torch(members, kind)
    format_ = {Format.ZIP: Format.TORCH_ZIP, Format.TAR: Format.TORCH_TAR}[kind] if torch else kind
    box = f"a PyTorch {kind} holding" if torch else f"a {kind} holding"
    walk = scan_for_pickle(member.content)
    return refuse_pickle(path, format_, f"{box} {member.path}, a pickle", walk)


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
        return refuse_pickle(path, Format.COMPRESSED, f"a pickle packed with {name} (joblib writes such files)", walk)
    return Inspection(format=Format.COMPRESSED, refused=_refuse_archive(f"{path} is packed with {name}"))


def _text(path: str, view: ByteView, encoding: str) -> Inspection:
    """Text that some loader would run, render or publish: programs in configurations, templates, secrets."""
    text = view.at(0, _TEXT_BYTES_MAX).decode(encoding, errors="replace")
    seen = read_text(path, text)
    refused = seen.refused or judge_templates(path, seen.templates) or judge_secrets(path, text)
    if said := remarks(seen.templates):
        seen.details["template_says"] = said
    if shown := sample_secret(text):
        seen.details["sample_secret"] = shown
    return Inspection(format=Format.TEXT, details=seen.details, refused=refused, templates=seen.templates)
