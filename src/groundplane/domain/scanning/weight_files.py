"""Files of weights that can't run anything by design, each judged by its header: what of it lies, acts or leaves."""

from __future__ import annotations

import re

from groundplane.domain.model import path_fault
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.coreml_scan import read_coreml
from groundplane.domain.scanning.gguf import GgufFault, read_gguf
from groundplane.domain.scanning.hdf5_scan import configurations, outside, oversized
from groundplane.domain.scanning.inspection import Inspection, no_program, refuse_pickle
from groundplane.domain.scanning.model_formats import Format
from groundplane.domain.scanning.msgpack_scan import MsgpackFault, read_msgpack
from groundplane.domain.scanning.npy_header import NpyFault, read_npy
from groundplane.domain.scanning.protobuf_scan import ProtobufFault, flex_operation, read_onnx
from groundplane.domain.scanning.templates_scan import judge_templates, remarks
from groundplane.domain.scanning.tensor_header import HeaderFault, read_tensor_header
from groundplane.domain.scanning.text_scan import judge_configuration, judge_told
from groundplane.domain.scanning.tflite_scan import TfliteFault, read_tflite
from groundplane.errors import Refused

_HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
_TOLD_BYTES = 2**20


def safetensors(path: str, view: ByteView) -> Inspection:
    """Judges header, tensors' names and metadata."""
    try:
        summary = read_tensor_header(view)
    except HeaderFault as fault:
        return Inspection(format=Format.SAFETENSORS, refused=_header_refused(path, str(fault)))
    details: dict[str, object] = {
        "tensors": summary.tensors,
        "parameters": summary.parameters,
        "dtypes": list(summary.dtypes),
    }
    header = view.at(8, int.from_bytes(view.at(0, 8), "little")).decode(errors="replace")
    return Inspection(format=Format.SAFETENSORS, details=details, refused=judge_told(path, header))


def _header_refused(path: str, fault: str) -> Refused:
    return Refused(
        rule="safetensors-header",
        need="a header that describes exactly the bytes that follow",
        have=f"{path}: {fault}",
        hint="the file is cut, damaged or forged: save it again, or compare its digest with the source's",
    )


def gguf(path: str, view: ByteView) -> Inspection:
    """Judges header and metadata; its chat templates come back for rendering."""
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
    if said := remarks(summary.templates):
        details["template_says"] = said
    refused_ = judge_templates(path, summary.templates) or judge_told(path, summary.text)
    return Inspection(format=Format.GGUF, details=details, refused=refused_, templates=summary.templates)


def onnx(path: str, view: ByteView) -> Inspection:
    """Judges where its weights lie, whose operations it asks for, and what it tells about itself."""
    try:
        seen = read_onnx(view)
    except ProtobufFault as fault:
        have, hint = f"{path}: {fault}", "the file is cut or forged: export it again, or compare its digest"
        refused = Refused(rule="onnx-header", need="one whole ONNX model", have=have, hint=hint)
        return Inspection(format=Format.ONNX, refused=refused)
    outside = [place for place in seen.places if path_fault(place) is not None or place.startswith("~")]
    if not outside:
        acts = f"{path} has the operation {seen.foreign}, which calls Python or code of another library"
        against = no_program(acts) if seen.foreign else judge_told(path, seen.text)
        return Inspection(format=Format.ONNX, refused=against)
    refused = Refused(
        rule="onnx-external-data",
        need="weights in the model's own folder",
        have=f"{path} reads its weights from {outside[0][:80]!r}",
        hint="save it again with its data beside it, or inside: onnx.save(model, path, save_as_external_data=False)",
    )
    return Inspection(format=Format.ONNX, refused=refused)


def tflite(path: str, view: ByteView) -> Inspection:
    """Judges its operators. Those that TFLite has not are told: whoever loads it must bring them."""
    operation = flex_operation(view)
    if operation:
        acts = f"{path} has the operation {operation} of TensorFlow's, which acts on what surrounds it"
        return Inspection(format=Format.TFLITE, refused=no_program(acts))
    try:
        seen = read_tflite(view)
    except TfliteFault as fault:
        have, hint = f"{path}: {fault}", "the file is cut or forged: convert it again, or compare its digest"
        refused = Refused(rule="tflite-header", need="buffers that the file holds", have=have, hint=hint)
        return Inspection(format=Format.TFLITE, refused=refused)
    told = [name[:80] for name in seen.foreign[:10]] if seen.read else ["operators that can't be read"]
    return Inspection(format=Format.TFLITE, details={"foreign_operators": told} if told else {})


def coreml(path: str, view: ByteView) -> Inspection | None:
    """Judges its layers and the places of its weights; None when it is no Core ML model."""
    seen = read_coreml(view)
    if seen is None:
        return None
    refused = judge_told(path, told(view))
    if seen.foreign:
        refused = no_program(f"{path} has {seen.foreign}, which is code or weights of an app's own")
    elif seen.outside:
        refused = no_program(f"{path} reads its weights from {seen.outside[:80]!r}, outside its package")
    return Inspection(format=Format.COREML, refused=refused)


def msgpack(path: str, view: ByteView) -> Inspection:
    """Judges lengths, types and sizes of arrays as Flax writes them."""
    try:
        arrays = read_msgpack(view)
    except MsgpackFault as fault:
        have, hint = f"{path}: {fault}", "the file is cut or forged: save it again, or compare its digest"
        refused = Refused(rule="msgpack", need="plain arrays within the file", have=have, hint=hint)
        return Inspection(format=Format.BINARY, refused=refused)
    return Inspection(format=Format.MSGPACK, details={"arrays": arrays}, refused=judge_told(path, told(view)))


def npy(path: str, view: ByteView, size_bytes: int | None) -> Inspection:
    """Judges dtypes and size. `size_bytes` is the whole file's, None where only its beginning is known."""
    try:
        return Inspection(format=Format.NPY, details={"dtypes": read_npy(view, size_bytes)})
    except NpyFault as fault:
        if fault.pickle:
            return refuse_pickle(path, Format.PICKLE, "a numpy array of objects, which is a pickle", None)
        hint = "the file is cut, or something was hung on to it: save it again with numpy.save"
        refused = Refused(rule="npy-header", need="exactly the bytes of the array", have=f"{path}: {fault}", hint=hint)
        return Inspection(format=Format.NPY, refused=refused)


# Keras names a layer's class in JSON. Python writes printable letters as they are: one that is escaped hides something.
_KERAS_PROGRAMS = (
    re.compile(rb'"(?:Lambda|__lambda__|TFSMLayer|TorchModuleWrapper)"'),
    re.compile(rb"\\u00[2-7][0-9a-fA-F]"),
)


def hdf5(path: str, view: ByteView, base: int) -> Inspection:
    """Judges what it reads elsewhere, what it claims to hold, and the configurations inside. It begins at `base`."""
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
    return Inspection(format=Format.HDF5, refused=judge_configurations(path, view) or judge_told(path, told(view)))


def judge_configurations(path: str, view: ByteView) -> Refused | None:
    """The first fault in the configurations of Keras that lie anywhere in the file."""
    return next((found for text in configurations(view) if (found := judge_configuration(path, text))), None)


def _keras_program(path: str, what: str) -> Refused:
    return Refused(
        rule="no-programs",
        need="layers without code of their own",
        have=f"{path}, {what} with a layer that is a program (Lambda), or that hides letters of its configuration",
        hint="replace the layer by a registered one, or export the weights to safetensors",
    )


_LETTERS = re.compile(rb"[\t\r\n -~]{16,}")


def told(view: ByteView) -> str:
    """The texts at the ends of a binary file: metadata lie there, and all of a large one would be read for too long."""
    size = view.size_bytes
    ends = view.at(0, _TOLD_BYTES) + view.at(max(size - _TOLD_BYTES, _TOLD_BYTES), _TOLD_BYTES)
    return "\n".join(found.decode() for found in _LETTERS.findall(ends))


def hdf5_base(view: ByteView) -> int | None:
    """Where HDF5 begins: at 0, or behind a user block of 512 bytes, or twice that, and so on; None when it does not."""
    offset = 0
    while offset < view.size_bytes:
        if view.at(offset, 8) == _HDF5_MAGIC:
            return offset
        offset = 2 * offset or 512
    return None
