"""What a file of a model may be, by name: apart from `model_files`, which tells it from the bytes with heavy tools."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """What a file is. The ones in ACCEPTED may be part of a model version."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    ONNX = "onnx"
    TFLITE = "tflite"
    COREML = "coreml"
    MSGPACK = "msgpack"
    NPY = "npy"
    NPZ = "npz"
    HDF5 = "hdf5"
    KERAS = "keras"
    TEXT = "text"
    IMAGE = "image"
    EMPTY = "empty"
    BINARY = "binary"
    PICKLE = "pickle"
    TORCH_ZIP = "torch-zip"
    TORCH_LEGACY = "torch-legacy"
    TORCH_TAR = "torch-tar"
    ZIP = "zip"
    TAR = "tar"
    COMPRESSED = "compressed"
    EXECUTABLE = "executable"


ACCEPTED = frozenset(
    {
        Format.SAFETENSORS,
        Format.GGUF,
        Format.ONNX,
        Format.TFLITE,
        Format.COREML,
        Format.MSGPACK,
        Format.NPY,
        Format.NPZ,
        Format.HDF5,
        Format.KERAS,
        Format.TEXT,
        Format.IMAGE,
        Format.EMPTY,
        Format.BINARY,
    }
)

ONLY_WEIGHTS = "only_weights"
"""A detail of a pickle that makes weights and does nothing else: to be converted, and no cause for alarm."""
