"""A pickle of nothing but weights is converted, and no cause for alarm; one that does anything besides is refused."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import zipfile
import zlib

import numpy as np
import pytest
from tests.domain.malicious_models import _programs

from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.model_files import Inspection, inspect
from groundplane.domain.scanning.report import judge_scan, refusals_of

ORDERED, REBUILD = b"ccollections\nOrderedDict\n", b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(items: int = 4, kind: str = "FloatStorage", key: str = "0", said: str = "storage") -> bytes:
    return b"(" + text(said) + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(items) + b"tQ"


def tensor(
    held: bytes | None = None,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    strides: tuple[int, ...] = (1,),
    hooks: bytes = ORDERED + b")R",
) -> bytes:
    places = number(offset) + numbers(shape) + numbers(strides)
    return REBUILD + b"(" + (storage() if held is None else held) + places + b"\x89" + hooks + b"tR"


def called(name: str, *given: bytes) -> bytes:
    module, _, last = name.rpartition(".")
    return f"c{module}\n{last}\n".encode() + b"(" + b"".join(given) + b"tR"


def state_dict(value: bytes) -> bytes:
    return ORDERED + b")R(" + text("w") + value + b"u"


def program(body: bytes) -> bytes:
    return b"\x80\x02" + body + b"."


WEIGHTS = program(state_dict(tensor()))


def torch_zip(made: bytes, **parts: bytes) -> bytes:
    target = io.BytesIO()
    members = {"data.pkl": made, "byteorder": b"little", "data/0": bytes(16), "version": b"3\n"} | parts
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(f"model/{name}"), data)
    return target.getvalue()


def legacy(made: bytes, behind: bytes = struct.pack("<Q", 4) + bytes(16)) -> bytes:
    told = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    return b"".join(pickle.dumps(each, 2) for each in told) + made + pickle.dumps(["0"], 2) + behind


def look(name: str, data: bytes) -> Inspection:
    found = inspect(name, ByteView.of(data))
    assert found.refused is not None
    return found


def is_only_weights(name: str, data: bytes) -> bool:
    return bool(look(name, data).details.get("only_weights"))


PLAIN = {"epoch": 3, "lr": 1e-3, "w": np.ones((3, 2)), "names": ["a", ("b", None)], "sizes": {1, 2}, "big": 10**40}
DTYPE = called("numpy.dtype", text("f8"), b"\x89", b"\x88")
CLEAN: dict[str, bytes] = {
    "model.pt": torch_zip(WEIGHTS),
    "pytorch_model.bin": torch_zip(program(state_dict(called("torch._utils._rebuild_parameter", tensor(), b"\x88")))),
    "view.pt": torch_zip(program(tensor(offset=1, shape=(1, 3), strides=(3, 1)))),
    "empty.pt": torch_zip(program(tensor(shape=(0, 2**20), strides=(1, 1)))),
    "shared.pt": torch_zip(program(b"(" + tensor() + tensor(shape=(2, 2), strides=(2, 1)) + b"t")),
    "settings.pt": torch_zip(
        program(state_dict(b"cargparse\nNamespace\n)\x81}" + text("lr") + b"K\x01sb" + text("v") + tensor()))
    ),
    "kinds.pt": torch_zip(program(b"(ctorch\nfloat8_e4m3fn\n" + called("torch.device", text("cpu")) + tensor() + b"t")),
    "counted.pt": torch_zip(program(b"}" + b"".join(text(str(n)) + tensor() + b"s" for n in range(300)))),
    "model.pth": legacy(WEIGHTS),
    **{f"arrays-{protocol}.pkl": pickle.dumps(PLAIN, protocol) for protocol in range(2, 6)},
    "ordered.ckpt": pickle.dumps(collections.OrderedDict(a=collections.Counter("aab")), 4),
}


@pytest.mark.parametrize("name", sorted(CLEAN))
def test_weights_in_a_pickle_must_be_converted_and_are_no_alarm(name: str) -> None:
    assert is_only_weights(name, CLEAN[name])

    class Looked:
        path, size_bytes, format = name, len(CLEAN[name]), "pickle"
        details, refused = look(name, CLEAN[name]).details, look(name, CLEAN[name]).refused

    report = judge_scan("x", [Looked()])
    assert report.ok
    assert [(found.severity, found.rule) for found in report.findings] == [("convert", "no-pickles")]
    assert "ground models adopt" in refusals_of(report)[0].hint


LIES: dict[str, bytes] = {
    "a storage's kind is called": b"ctorch\nFloatStorage\n" + numbers((9,)) + b"R",
    "a function is given a state": REBUILD + b"N}" + text("__kwdefaults__") + b"}s\x86b",
    "a class is given a state": ORDERED + b"}" + text("x") + b"Nsb",
    "items are put into a storage": storage() + b"(K\x00K\x01u",
    "items are put into a tensor": tensor() + b"(K\x00K\x01u",
    "a tensor leaves its storage": tensor(shape=(5,)),
    "a tensor begins behind its storage": tensor(offset=4),
    "a tensor strides out of its storage": tensor(strides=(2**30,)),
    "a tensor begins before its storage": tensor(offset=-1),
    "a storage is larger than its bytes": tensor(storage(5)),
    "a storage is not there": tensor(storage(key="7")),
    "a storage is said to be smaller elsewhere": b"(" + storage() + storage(3) + b"t",
    "something else lies outside": storage(said="module"),
    "a storage is of no kind": b"(" + text("storage") + ORDERED + text("0") + text("cpu") + number(4) + b"tQ",
    "an array of objects": called("numpy.dtype", text("O8")),
    "an array whose numbers are addresses": DTYPE + b"(K\x03" + text("<") + b"NNN" + number(8) + number(1) + b"K?tb",
    "an array of another type": called("numpy._core.multiarray._reconstruct", ORDERED, numbers((0,)), b"C\x01b"),
    "a scalar of no numbers": called("numpy.core.multiarray.scalar", text("x"), b"C\x01b"),
    "another encoding": called("_codecs.encode", text("x"), text("rot13")),
    "another class's function": called("collections.OrderedDict.fromkeys", b"]"),
    "a hook that is a call": tensor(hooks=b"cos\nsystem\n(" + text("true") + b"tR"),
    "a call whose outcome is dropped": b"cos\nsystem\n(" + text("true") + b"tR0N",
    "a module's function": called("torch.hub.load", text("x")),
    "what calls what it is given": called("torch._tensor._rebuild_from_type_v2", ORDERED, ORDERED, b")", b"N"),
    "what reads a pickle": called("torch.storage._load_from_bytes", b"C\x02N."),
    "an extension": b"\x82\x05)R",
    "a text as reference": b"Px\n",
    "an old opcode": b"(I1\nt",
    "a frame that lies": b"\x95" + struct.pack("<Q", 3) + state_dict(tensor()),
    "keys that take for ever": b"})" + b"".join(b"q%ch%c\x86" % (n, n) for n in range(60)) + b"Ns",
    "a secret": state_dict(text("hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh")),
    "an odd number of items": b"}(" + text("a") + b"u",
}


@pytest.mark.parametrize("name", sorted(LIES))
def test_what_does_more_than_make_weights_is_refused(name: str) -> None:
    assert not is_only_weights("model.pt", torch_zip(program(LIES[name])))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md", "model.gguf", "x.py", "weights.npz"])
def test_weights_under_a_name_that_misleads_are_refused(name: str) -> None:
    assert not is_only_weights(name, torch_zip(WEIGHTS))
    assert not is_only_weights(name, pickle.dumps({"a": 1}, 4))


def test_what_lies_beside_the_weights_is_refused() -> None:
    evil = _programs("true")["protocol-2"]
    boxes = {
        "something behind": torch_zip(WEIGHTS) + b"x",
        "something before": b"x" + torch_zip(WEIGHTS),
        "another archive": torch_zip(WEIGHTS) + torch_zip(evil),
        "code": torch_zip(WEIGHTS, **{"code/__torch__.py": b"import os"}),
        "constants": torch_zip(WEIGHTS, **{"constants.pkl": b"\x80\x02)."}),
        "a second pickle": torch_zip(WEIGHTS, **{"data/evil.pkl": WEIGHTS}),
        "a storage that nothing uses": torch_zip(WEIGHTS, **{"data/1": bytes(16)}),
        "a program as storage": torch_zip(WEIGHTS, **{"data/1": evil}),
        "a pickle and more": WEIGHTS + b"x",
        "storages of no file": WEIGHTS,
        "old, cut": legacy(WEIGHTS)[:-1],
        "old, and more": legacy(WEIGHTS) + b"x",
        "old, with a program": legacy(evil),
        "old, of another version": legacy(WEIGHTS).replace(b"M\xe9\x03", b"M\xe8\x03"),
        "packed": zlib.compress(pickle.dumps({"a": [1] * 99}, 4)),
    }
    assert not [name for name, data in boxes.items() if is_only_weights("model.pt", data)]


def test_no_program_passes_for_weights() -> None:
    programs = _programs("true").values()
    assert not any(is_only_weights("m.pkl", made) or is_only_weights("m.pt", torch_zip(made)) for made in programs)
