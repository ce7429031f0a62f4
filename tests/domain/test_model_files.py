"""What a file really is, told from its bytes; and what may not become part of a model."""

from __future__ import annotations

import bz2
import collections
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from tests.domain.malicious_models import gguf

from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.model_files import Inspection, inspect
from groundplane.domain.scanning.model_formats import ACCEPTED, Format
from groundplane.domain.scanning.tensor_header import HEADER_BYTES_MAX

WEIGHTS = save({"a": np.ones((3, 5), np.float32), "b": np.zeros((0, 2), np.float16), "c": np.arange(4, dtype=np.int64)})


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("touch /nonexistent/canary",)


def look(path: str, data: bytes) -> Inspection:
    return inspect(path, ByteView.of(data))


def rule(path: str, data: bytes) -> str:
    found = look(path, data)
    assert (found.refused is None) or found.refused.hint
    assert found.refused is not None or found.format in ACCEPTED
    return found.refused.rule if found.refused else ""


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target.getvalue()


def tarred(members: dict[str, bytes], format_: int = tarfile.PAX_FORMAT) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format_) as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return target.getvalue()


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


# ---------------------------------------------------------------- pickles


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["model.pkl", "model.safetensors", "README.md", "model.bin", "data.npy", "x.gguf"])
def test_a_pickle_is_found_whatever_it_is_called(protocol: int, name: str) -> None:
    found = look(name, pickle.dumps(Payload(), protocol))
    assert found.refused is not None
    assert found.refused.rule == "no-pickles"
    assert "safetensors" in found.refused.hint
    assert "system" in found.refused.have


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", [1, "x", [1, 2], {"a": 1.5}, collections.OrderedDict(a=1), None, (), b"a", 2**99])
def test_a_pickle_of_harmless_data_is_a_pickle_too(protocol: int, value: object) -> None:
    assert rule("model.bin", pickle.dumps(value, protocol)) == "no-pickles"


def test_a_payload_behind_padding_is_found() -> None:
    padding = b"X" + struct.pack("<I", 5_000_000) + b"a" * 5_000_000 + b"0"
    assert rule("model.bin", padding + b"cos\nsystem\n(S'x'\ntR.") == "no-pickles"
    lines = b"(" + b"I1\n0" * 50_000 + b"cos\nsystem\n(S'x'\ntR."
    assert rule("model.bin", lines) == "no-pickles"


def test_a_pickle_that_breaks_after_its_payload_is_found() -> None:
    assert rule("model.bin", b"cos\nsystem\n(S'x'\ntR\x00\x00broken") == "no-pickles"
    assert rule("model.bin", pickle.dumps(Payload(), 4)[:-1] + b"\x00garbage") == "no-pickles"


def test_a_pickle_with_something_after_its_end_is_found() -> None:
    assert rule("notes.txt", pickle.dumps(Payload(), 0) + b"\nwith kind regards\n") == "no-pickles"


def test_a_pickle_without_a_header_and_with_stray_opcodes_first_is_found() -> None:
    assert rule("model.bin", b"(1(0N0\x80\x04cos\nsystem\n(S'x'\ntR.") == "no-pickles"


def test_a_torch_zip_is_a_pickle_in_a_box() -> None:
    data = zipped(
        {"archive/data.pkl": pickle.dumps(Payload(), 2), "archive/version": b"3", "archive/data/0": b"\0" * 64}
    )
    found = look("model_final_v2_FIXED.pt", data)
    assert found.format is Format.TORCH_ZIP
    assert found.refused is not None
    assert found.refused.rule == "no-pickles"
    assert "archive/data.pkl" in found.refused.have


def test_a_torch_file_of_the_old_kind_is_named() -> None:
    data = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"a": 1}, 2)
    found = look("weights.bin", data)
    assert found.format is Format.TORCH_LEGACY
    assert rule("weights.bin", data) == "no-pickles"


def test_a_torch_tar_is_named() -> None:
    data = tarred({"sys_info": b"x", "pickle": pickle.dumps(Payload(), 2), "storages": b"y", "tensors": b"z"})
    assert look("old.pth", data).format is Format.TORCH_TAR
    assert rule("old.pth", data) == "no-pickles"


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_pickle_nested_in_archives_is_found(format_: int) -> None:
    inner = zipped({"weights/model.pkl": pickle.dumps(Payload(), 4)}, zipfile.ZIP_DEFLATED)
    assert rule("m.tar", tarred({"a" * 90 + "/weights.pt": inner}, format_)) == "no-pickles"
    assert rule("m.tar", tarred({"model.safetensors": pickle.dumps(Payload(), 3)}, format_)) == "no-pickles"
    assert rule("m.zip", zipped({"t.tar": tarred({"p": pickle.dumps(Payload(), 1)}, format_)})) == "no-pickles"


@pytest.mark.parametrize("pack", [zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_a_packed_pickle_is_found(pack: object) -> None:
    found = look("model.joblib", pack(pickle.dumps(Payload(), 4)))  # type: ignore[operator]
    assert found.refused is not None
    assert found.refused.rule == "no-pickles"
    assert "packed" in found.refused.have


def test_a_numpy_array_of_objects_is_a_pickle() -> None:
    target = io.BytesIO()
    np.save(target, np.array([Payload()], dtype=object), allow_pickle=True)
    assert rule("data.npy", target.getvalue()) == "no-pickles"
    assert rule("data.npz", zipped({"x.npy": target.getvalue()})) == "no-pickles"


def test_looking_runs_nothing(tmp_path: Path) -> None:
    canary = tmp_path / "canary"

    class Canary:
        def __reduce__(self) -> tuple[object, ...]:
            return open, (str(canary), "w")

    for protocol in range(6):
        data = pickle.dumps(Canary(), protocol)
        for wrapped in (data, zipped({"data.pkl": data}), tarred({"data.pkl": data}), zlib.compress(data)):
            assert rule("m.pt", wrapped) == "no-pickles"
    assert not canary.exists()


# ---------------------------------------------------------------- safetensors


def test_a_sound_safetensors_file_tells_what_it_holds() -> None:
    found = look("model.safetensors", WEIGHTS)
    assert found.refused is None
    assert found.details == {"tensors": 3, "parameters": 19, "dtypes": ["F16", "F32", "I64"]}


def test_safetensors_without_tensors_are_sound() -> None:
    assert rule("empty.safetensors", safetensors({"__metadata__": {"format": "pt"}})) == ""


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes long"),
        (b"\x08\0\0\0\0\0\0\0", "8 bytes long"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "over the limit"),
        (struct.pack("<q", -1) + b"{}", "over the limit"),
        (safetensors({}, length=HEADER_BYTES_MAX + 1), "over the limit"),
        (safetensors({}, length=10_000), "the file has 2"),
        (safetensors(b"[]"), "does not begin"),
        (safetensors(b"{" + b" " * 20), "can't be read"),
        (safetensors(b'{"a":1,"a":2}'), "given twice"),
        (safetensors(b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"), "can't be read"),
        (safetensors(b'{"\xff":1}'), "can't be read"),
        (safetensors({"__metadata__": {"a": 1}}), "__metadata__"),
        (safetensors({"a": tensor(0, 8, [2])}, b"\0" * 4), "ends at byte 8"),
        (safetensors({"a": tensor(0, 8, [2]), "b": tensor(4, 12, [2])}, b"\0" * 12), "overlaps"),
        (safetensors({"a": tensor(0, 8, [2]), "b": tensor(12, 20, [2])}, b"\0" * 20), "belong to no tensor"),
        (safetensors({"a": tensor(0, 8, [2])}, b"\0" * 9), "after the last tensor"),
        (safetensors({"a": tensor(0, 8, [3])}, b"\0" * 8), "needs 12"),
        (safetensors({"a": tensor(0, 8, [-2])}, b"\0" * 8), "impossible shape"),
        (safetensors({"a": tensor(-8, 0, [2])}), "impossible data_offsets"),
        (safetensors({"a": tensor(8, 0, [2])}, b"\0" * 8), "spans -8"),
        (safetensors({"a": tensor(0, 8, [2**40, 2**40])}, b"\0" * 8), "64 bits"),
        (safetensors({"a": tensor(0, 8, [2], "PICKLE")}, b"\0" * 8), "unknown dtype"),
        (safetensors({"a": {**tensor(0, 8, [2]), "code": "x"}}, b"\0" * 8), "exactly dtype"),
        (b"\0" * 4096, "shortest|claims|begin"),
        (b"<html>404 not found</html>", "limit"),
    ],
)
def test_a_bad_header_is_refused_with_the_number(data: bytes, says: str) -> None:
    found = look("model.safetensors", data)
    assert found.refused is not None
    assert found.refused.rule == "safetensors-header"
    assert any(word in found.refused.have for word in says.split("|")), found.refused.have


@settings(deadline=None)
@given(st.integers(0, len(WEIGHTS) - 1))
def test_a_cut_safetensors_file_is_never_accepted(size: int) -> None:
    assert rule("model.safetensors", WEIGHTS[:size]) != ""


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_nothing_else_gets_in_as_safetensors(data: bytes) -> None:
    """Any bytes: judged without an exception, and only accepted under this name by the library itself."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if rule("model.safetensors", data) == "":
        try:
            load(data)
        except SafetensorError as error:
            raise AssertionError("accepted here, refused by the library") from error


@settings(deadline=None)
@given(st.binary(max_size=2000), st.sampled_from(["a.bin", "a.npy", "a.zip", "a.pt", "a.gguf", "a.json"]))
def test_any_bytes_are_judged_without_an_exception(data: bytes, name: str) -> None:
    for start in (b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00", b"GGUF\x03\0\0\0", b"\x80\x04", b"\x1f\x8b", b"x\x9c"):
        rule(name, start + data)


# ---------------------------------------------------------------- other formats


def npy(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("config.json", b'{"hidden_size": 256}', Format.TEXT),
        ("merges.txt", "#version: 0.2\nĠ t\nh e\n".encode(), Format.TEXT),
        ("vocab.txt", b"cab\ncar\ncat\ncow\ncrow\n" * 500, Format.TEXT),
        (".gitattributes", b"*.bin filter=lfs\n", Format.TEXT),
        ("modeling.py", b"import torch\nclass Model:\n    pass\n", Format.TEXT),
        ("model.gguf", gguf({"general.name": "tiny"}, 2), Format.GGUF),
        ("a.npy", npy(np.ones((2, 3))), Format.NPY),
        ("s.npy", npy(np.zeros(2, dtype=[("x", "f4"), ("y", "i8", (2,))])), Format.NPY),
        ("a.npz", zipped({"w.npy": npy(np.ones(3)), "b.npy": npy(np.ones(3))}), Format.NPZ),
        ("a.npz", zipped({"w.npy": npy(np.ones(3))}, zipfile.ZIP_DEFLATED), Format.NPZ),
        ("weights.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 500, Format.HDF5),
        ("model.onnx", b"\x08\x07\x12\x07pytorch\x3a\x02\x12\x00", Format.ONNX),
        ("model.tflite", b"\x1c\0\0\0TFL3" + b"\0" * 50, Format.TFLITE),
        ("model.bin", struct.pack("<I", 6) + b"TransformerSpec\0" + b"\x01\x02\xff" * 99, Format.BINARY),
        ("logo.png", b"\x89PNG\r\n\x1a\n" + b"\0" * 50, Format.IMAGE),
        ("__init__.py", b"", Format.EMPTY),
    ],
)
def test_what_models_are_made_of_is_recognised(name: str, data: bytes, expected: Format) -> None:
    found = look(name, data)
    assert found.refused is None, found.refused
    assert found.format is expected


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("code.zip", zipped({"a.txt": b"x"}), "no-archives"),
        ("keras.keras", zipped({"config.json": b"{}", "model.weights.h5": b"\x89HDF\r\n\x1a\n"}), "no-archives"),
        ("a.tar", tarred({"a.txt": b"x"}), "no-archives"),
        ("a.json.gz", gzip.compress(b"{}", mtime=0), "no-archives"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c" + b"\0" * 50, "no-archives"),
        ("lib.so", b"\x7fELF" + b"\0" * 100, "no-programs"),
        ("setup.exe", b"MZ" + b"\0" * 58 + struct.pack("<L", 64) + b"PE\0\0", "no-programs"),
        ("m.pyc", b"\xa7\x0d\r\n\0\0\0\0" + b"\0" * 40, "no-programs"),
        ("lambda.h5", b"\x89HDF\r\n\x1a\n" + b"\0" * 2_000_000 + b'{"class_name": "Lambda"}', "no-programs"),
        ("model.pt", b"\x01\x02\x03\xff" * 50, "known-format"),
        ("pytorch_model-00001-of-00002.bin", b"\x01\x02\x03\xff" * 50, "known-format"),
        ("old.gguf", b"GGUF" + struct.pack("<LQQ", 1, 2, 5), "gguf-header"),
        ("huge.gguf", b"GGUF" + struct.pack("<LQQ", 3, 2**60, 5), "gguf-header"),
        ("broken.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': __import__", "npy-header"),
    ],
)
def test_what_cannot_be_vouched_for_is_refused(name: str, data: bytes, expected: str) -> None:
    assert rule(name, data) == expected


def test_a_file_that_begins_as_one_thing_and_ends_as_a_zip_is_refused() -> None:
    box = zipped({"data.pkl": pickle.dumps(Payload(), 2)})
    assert rule("notes.txt", b"Harmless words.\n" + box) == "no-pickles"
    assert rule("model.gguf", b"GGUF" + struct.pack("<LQQ", 3, 0, 0) + box) == "gguf-header"
    assert rule("model.safetensors", WEIGHTS + box) == "safetensors-header"


def test_archives_with_links_devices_or_locks_are_refused() -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        link = tarfile.TarInfo("weights")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    found = look("a.tar", target.getvalue())
    assert found.refused is not None
    assert "link" in found.refused.have
    locked = bytearray(zipped({"a.npy": b"x"}))
    locked[locked.rfind(b"PK\x01\x02") + 8] |= 1
    found = look("a.npz", bytes(locked))
    assert found.refused is not None
    assert "encrypted" in found.refused.have


def test_archives_nested_without_end_are_given_up() -> None:
    data = zipped({"a.txt": b"x"})
    for _ in range(200):
        data = tarred({"inner": data}, tarfile.USTAR_FORMAT) if len(data) % 2 else zipped({"inner": data})
    assert rule("deep.zip", data) == "no-archives"
    wide = zipped({f"{number}": zipped({"a": b"x"}) for number in range(300)})
    assert rule("wide.zip", wide) == "no-archives"


def test_a_zip_bomb_costs_nothing() -> None:
    bomb = zipped({f"{number}.npy": b"\0" * 3_000_000 for number in range(20)}, zipfile.ZIP_DEFLATED)
    assert rule("bomb.npz", bomb) == "no-archives"


def test_ordinary_text_and_random_weights_raise_no_false_alarm() -> None:
    noise = np.random.default_rng(7)
    for _ in range(3000):
        assert rule("model.bin", noise.bytes(600)) == ""
    words = [bytes(word) for word in (b"alpha", b"Ncolumn", b"config", b"I1", b"(x", b"}", b"]", b")", b"K.", b"V")]
    for first in words:
        for second in words:
            assert rule("vocab.txt", b"\n".join([first, second, *words, *words]) + b"\n") == ""
