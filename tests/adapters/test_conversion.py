"""Weights out of pickles: the same tensors in a format that can't run anything, made where nothing can do harm."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.adapters.torch_files import Newer, Storage, View, torch_legacy, torch_zip, whole
from tests.domain.malicious_models import WEIGHTS, corpus

from groundplane.adapters import conversion, model_tools
from groundplane.adapters.confined.launch import Ended, launch
from groundplane.adapters.conversion import convert
from groundplane.errors import Conflict, IntegrityFailure, Refusal, Unavailable

NOISE = np.random.default_rng(5)
A = NOISE.normal(size=(17, 9)).astype(np.float32)
B = NOISE.integers(-9, 9, (4, 3, 2)).astype(np.int64)
H = NOISE.normal(size=(5,)).astype(np.float16)


def weights() -> OrderedDict[str, object]:
    shared = Storage("9", np.arange(24, dtype=np.float32))
    return OrderedDict(
        {
            "layer.a": whole("0", A),
            "layer.b": whole("1", B),
            "h": whole("2", H),
            "turned": View(shared, 0, (6, 4), (1, 6)),
            "cut": View(shared, 3, (2, 5), (10, 2)),
            "spread": View(shared, 7, (3, 2), (0, 1)),
            "scalar": View(shared, 23, (), ()),
            "none": View(shared, 0, (0, 4), (4, 1)),
        }
    )


def expected() -> dict[str, np.ndarray]:
    flat = np.arange(24, dtype=np.float32)

    def view(offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
        return np.lib.stride_tricks.as_strided(flat[offset:], shape, tuple(4 * stride for stride in strides))

    return {
        "layer.a": A, "layer.b": B, "h": H, "turned": view(0, (6, 4), (1, 6)), "cut": view(3, (2, 5), (10, 2)),
        "spread": view(7, (3, 2), (0, 1)), "scalar": flat[23], "none": np.zeros((0, 4), np.float32),
    }  # fmt: skip


@pytest.mark.parametrize(
    "data",
    [torch_zip(weights()), torch_zip(weights(), zipfile.ZIP_DEFLATED), torch_legacy(weights())],
    ids=["zip", "packed zip", "old"],
)
def test_every_tensor_is_in_the_new_file_as_it_was_in_the_old_one(data: bytes, tmp_path: Path) -> None:
    source, target = tmp_path / "model.pt", tmp_path / "model.safetensors"
    source.write_bytes(data)
    made = convert(source, target)
    found = load_file(target)
    assert found.keys() == made.tensors.keys() == expected().keys()
    for name, array in expected().items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert made.tensors[name] == hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    assert made.source_sha256 == hashlib.sha256(data).hexdigest()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["model.pt", "model.safetensors"]


@pytest.mark.parametrize("saved_as", [torch_zip, torch_legacy], ids=["zip", "old"])
def test_numbers_of_eight_bits_and_other_newer_kinds_stay_what_they_are(
    saved_as: Callable[[object], bytes], tmp_path: Path
) -> None:
    eight = Storage("0", np.arange(24, dtype=np.uint8), untyped=True)
    sixteen = Storage("1", np.arange(500, 508, dtype=np.uint16), untyped=True)
    source, target = tmp_path / "model.pt", tmp_path / "model.safetensors"
    source.write_bytes(
        saved_as(
            {
                "e4": Newer("float8_e4m3fn", eight, 0, (4, 6), (6, 1)),
                "turned": Newer("float8_e5m2", eight, 2, (3, 4), (1, 6)),
                "u2": Newer("uint16", sixteen, 3, (5,), (1,)),
                "plain": whole("2", A),
            }
        )
    )
    convert(source, target)
    data = target.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    raw = {
        name: data[8 + size :][slice(*each["data_offsets"])] for name, each in header.items() if "data_offsets" in each
    }
    said = {name: (header[name]["dtype"], header[name]["shape"]) for name in raw}
    assert said == {
        "e4": ("F8_E4M3", [4, 6]), "turned": ("F8_E5M2", [3, 4]), "u2": ("U16", [5]), "plain": ("F32", [17, 9]),
    }  # fmt: skip
    flat = np.arange(24, dtype=np.uint8)
    assert raw["e4"] == flat.tobytes()
    assert raw["turned"] == np.lib.stride_tricks.as_strided(flat[2:], (3, 4), (1, 6)).tobytes()
    assert raw["u2"] == np.arange(503, 508, dtype=np.uint16).tobytes()
    assert raw["plain"] == A.tobytes()


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_of_arrays_is_weights_too(protocol: int, tmp_path: Path) -> None:
    source, target = tmp_path / "w.pkl", tmp_path / "w.safetensors"
    source.write_bytes(pickle.dumps({"w": A, "turned": np.asfortranarray(A), "deep": [{"b": B}]}, protocol))
    made = convert(source, target)
    found = load_file(target)
    np.testing.assert_array_equal(found["w"], A)
    np.testing.assert_array_equal(found["turned"], A)
    np.testing.assert_array_equal(found["deep.0.b"], B)
    assert not made.left_out


@pytest.mark.parametrize(
    ("saved", "names"),
    [
        ({"layer": {"w": A}, "step": 3}, ["layer.w"]),
        ([A, {"b": B}], ["weights.0", "weights.1.b"]),
    ],
    ids=["a dictionary", "a list"],
)
def test_what_numpy_saved_of_objects_is_weights_too(saved: Any, names: list[str], tmp_path: Path) -> None:
    source, target = tmp_path / "w.npy", tmp_path / "w.safetensors"
    objects = np.empty((), object) if isinstance(saved, dict) else np.empty(len(saved), object)
    objects[...] = saved
    np.save(source, objects, allow_pickle=True)
    assert sorted(convert(source, target).tensors) == names
    np.testing.assert_array_equal(load_file(target)[names[0]], A)


@pytest.mark.parametrize("part", ["evil.pkl", "data/77", "constants.pkl"])
def test_what_no_file_of_weights_holds_is_refused(part: str, tmp_path: Path) -> None:
    source = tmp_path / "model.pt"
    source.write_bytes(torch_zip({"state_dict": weights()}))
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/{part}", b"cos\nsystem\n.")
    with pytest.raises(Refusal, match=part):
        convert(source, tmp_path / "model.safetensors")


def test_what_is_beside_the_weights_is_left_out_and_said(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint.pt"
    beside = {"optimizer": {"lr": 0.1}, "args": argparse.Namespace(lr=0.1, resume=None), "best": np.float64(0.93)}
    source.write_bytes(torch_zip({"epoch": 3, "state_dict": weights(), **beside}))
    made = convert(source, tmp_path / "model.safetensors")
    assert sorted(made.left_out) == ["args", "best", "epoch", "optimizer"]
    assert "layer.a" in made.tensors


def test_a_disk_without_room_is_told_before_anything_is_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.pt"
    source.write_bytes(torch_zip(weights()))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(Unavailable, match=r"converting model\.pt needs .* KiB in .*, which has 100 B"):
        convert(source, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_nothing_of_the_corpus_is_converted_and_nothing_of_it_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    names = [f"pickle/{trick}.pkl" for trick in ("protocol-0", "stack-global-via-memo", "getattr-chain", "extension")]
    made = corpus(str(canary))
    for name in [*names, "box/protocol-0/torch.pt", "box/protocol-0/legacy.pt"]:
        source = tmp_path / "source"
        source.write_bytes(made[name])
        with pytest.raises(Refusal) as refused:
            convert(source, tmp_path / "target")
        assert refused.value.refusals[0].rule == "weights-only"
    assert not canary.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["source"], "a refused file leaves nothing"


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"a": View(Storage("0", np.zeros(4, np.float32)), 0, (4, 4), (4, 1))}, "ends at item 15 of a storage of 4"),
        ({"a": View(Storage("0", np.zeros(4, np.float32)), -1, (2,), (1,))}, "a tensor of shape"),
        (
            {"a": Newer("uint16", Storage("0", np.zeros(4, np.uint16), untyped=True), 1, (4,), (1,))},
            "ends at item 4 of a storage of 4",
        ),
        ({"a": Newer("float8_e5m2", Storage("0", np.zeros(4, np.float32)), 0, (4,), (1,))}, "what its bytes are"),
        (
            {"a": Newer("float4_e2m1fn_x2", Storage("0", np.zeros(4, np.uint8), untyped=True), 0, (4,), (1,))},
            "torch.float4_e2m1fn_x2, which is more than weights need",
        ),
        ({"a": View(Storage("0", np.zeros(4, np.float32)), 0, (4,), (1,), {"neg": True})}, "resolve_neg()"),
        ({"a": 1}, "no tensor"),
        ({"a": whole("0", A), 1: {"b": whole("1", A)}, "1": {"b": whole("2", A)}}, "two tensors of the name '1.b'"),
    ],
)
def test_weights_that_make_no_sense_are_refused_with_the_reason(value: object, says: str, tmp_path: Path) -> None:
    source = tmp_path / "model.pt"
    source.write_bytes(torch_zip(value))
    with pytest.raises(Refusal, match="weights-only") as refused:
        convert(source, tmp_path / "model.safetensors")
    assert says in refused.value.refusals[0].have


# ---------------------------------------------------------------- chosen by somebody who means harm


def program(body: bytes) -> bytes:
    """A PyTorch zip with this pickle, and one storage of four numbers."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + body + b".")
        archive.writestr("archive/data/0", bytes(16))
    return target.getvalue()


def text(word: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word


def tensor(shape: bytes = b"K\x04", strides: bytes = b"K\x01", offset: bytes = b"K\x00") -> bytes:
    storage = b"(" + text(b"storage") + b"ctorch\nFloatStorage\n" + text(b"0") + text(b"cpu") + b"K\x04tQ"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + offset + b"(" + shape + b"t(" + strides + b"t\x89}tR"


def named(*pairs: tuple[bytes, bytes]) -> bytes:
    return program(b"}(" + b"".join(key + value for key, value in pairs) + b"u")


def laughs(levels: int) -> bytes:
    """A list that holds the same list twice, which does so as well, and so on."""
    made = b"]q\x000"
    for level in range(levels):
        made += b"](h" + bytes([level]) + b"h" + bytes([level]) + b"eq" + bytes([level + 1]) + b"0"
    return made + b"h" + bytes([levels])


HUGE = b"\x8a\x06\0\0\0\0\0\x01"
ORDERED = b"ccollections\nOrderedDict\n"
ATTACKS = {
    "the name of the metadata": (named((text(b"__metadata__"), tensor())), "safetensors can't have"),
    "half a letter": (named((text(b"\xed\xa0\x80"), tensor())), "safetensors can't have"),
    "a name without end": (named((text(b"x" * 2_000_000), tensor())), "over 1,000 letters"),
    "a name that is a tuple": (named((b"(K\x01K\x02t", tensor())), "neither text nor number"),
    "a truth for a size": (named((text(b"w"), tensor(b"\x88", b"K\x01"))), "that no tensor has"),
    "more dimensions than any": (named((text(b"w"), tensor(b"K\x01" * 90_000, b"K\0" * 90_000))), "no tensor has"),
    "few bytes shown many times": (named((text(b"w"), tensor(HUGE, b"K\0"))), "many times the file's own"),
    "lists in lists": (named((text(b"w"), tensor()), (text(b"z"), laughs(35))), "over 2,000,000 values"),
    "a list in itself": (named((text(b"w"), tensor()), (text(b"z"), b"]q\0h\0a")), "nested without end"),
    "a memo of gigabytes": (program(b"Nr\xff\xff\xff\x7f"), "over a limit"),
    "bytes by their number": (
        program(
            b"cnumpy._core.numeric\n_frombuffer\n(J\0\0\0\x40cnumpy\ndtype\n("
            + text(b"f4")
            + b"tR(K\x04t"
            + text(b"C")
            + b"tR"
        ),
        "array of objects",
    ),
    "a storage by number": (
        program(b"(" + text(b"storage") + b"ctorch\nFloatStorage\nK\0" + text(b"cpu") + b"K\x04tQ"),
        "without a name",
    ),
    "attributes of a function": (
        program(b"ctorch._utils\n_rebuild_tensor_v2\n}(" + text(b"_does") + text(b"x") + b"ub"),
        "given a state",
    ),
    "a function's own state": (
        program(b"ctorch\nSize\nN}(" + text(b"_name") + b"Nu\x86b"),
        "given a state",
    ),
    "a class changed": (program(ORDERED + b"}(" + text(b"get") + ORDERED + b"ub"), "can't be read"),
    "an instance of a function": (program(b"ctorch\nSize\n)\x81"), "can't be read"),
    "a registered number": (program(b"\x82\x05"), "can't be read"),
    "a name through another": (program(text(b"collections") + text(b"OrderedDict.__init__") + b"\x93"), "more than"),
    "a name that was encoded": (
        program(text(b"os") + b"c_codecs\nencode\n(" + text(b"system") + text(b"latin1") + b"tR\x93"),
        "can't be read",
    ),
    "an encoding that runs": (program(b"c_codecs\nencode\n(" + text(b"x") + text(b"zlib") + b"tR"), "an encoding"),
}


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_what_is_made_to_exhaust_or_to_mislead_is_refused_with_the_reason(attack: str, tmp_path: Path) -> None:
    data, says = ATTACKS[attack]
    source = tmp_path / "model.pt"
    source.write_bytes(data)
    with pytest.raises(Refusal) as refused:
        convert(source, tmp_path / "model.safetensors")
    assert says in refused.value.refusals[0].have
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"], "a refused file leaves nothing"


def test_attributes_that_a_state_dict_is_given_do_not_hide_what_it_holds(tmp_path: Path) -> None:
    hidden = b"}(" + text(b"values") + b"ctorch\nSize\n" + text(b"items") + b"ctorch\nSize\nub"
    source, target = tmp_path / "model.pt", tmp_path / "model.safetensors"
    source.write_bytes(program(ORDERED + b")R(" + text(b"w") + tensor() + b"u" + hidden))
    assert list(convert(source, target).tensors) == ["w"]
    assert "system calls" in convert(source, target).walls


@pytest.mark.parametrize(
    "said", ["", "null", "[1]", "[" * 100_000, "{}", '{"tensors": 1}', '{"tensors": ["w"]}', '{"refused": 1}']
)
def test_what_the_confined_program_says_is_not_believed(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "model.pt"
    source.write_bytes(named((text(b"w"), tensor())))
    monkeypatch.setattr(conversion, "launch", lambda *_, **__: Ended(status=0, output=b"", errors=said, walls=""))
    with pytest.raises(Refusal, match="ends the process that reads it"):
        convert(source, tmp_path / "model.safetensors")


def test_a_file_that_is_no_safetensors_is_no_conversion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forged(*_: object, target: BinaryIO, **__: object) -> Ended:
        target.write(struct.pack("<Q", 2**40) + b"{}")
        target.flush()
        return Ended(status=0, output=b"", errors='{"tensors": {"w": "0"}}', walls="")

    source = tmp_path / "model.pt"
    source.write_bytes(named((text(b"w"), tensor())))
    monkeypatch.setattr(conversion, "launch", forged)
    with pytest.raises(IntegrityFailure, match="no safetensors file"):
        convert(source, tmp_path / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_source_that_changes_meanwhile_or_is_a_link_is_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, link, target = tmp_path / "model.pt", tmp_path / "link.pt", tmp_path / "model.safetensors"
    source.write_bytes(named((text(b"w"), tensor())))
    link.symlink_to(source)
    with pytest.raises(OSError, match="symbolic links"):
        convert(link, target)

    def changed(*words: Any, **names: Any) -> Ended:
        with source.open("ab") as writing:
            writing.write(b"x")
        return launch(*words, **names)

    monkeypatch.setattr(conversion, "launch", changed)
    with pytest.raises(Conflict, match="changed"):
        convert(source, target)
    assert not target.exists()


def test_a_file_is_not_taken_for_the_weights_that_were_converted(tmp_path: Path) -> None:
    stray, folder = tmp_path / "stray", tmp_path / "folder"
    stray.mkdir()
    folder.mkdir()
    (stray / "model.pt").write_bytes(named((text(b"w"), tensor())))
    (stray / "model.safetensors").write_bytes(WEIGHTS)
    with pytest.raises(Refusal) as refused:
        model_tools.adopt(stray, folder, [])
    assert refused.value.refusals[0].need == "one file for the same weights"
