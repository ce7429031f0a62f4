"""Weights out of pickles: the same tensors in a format that can't run anything, made where nothing can do harm."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.adapters.torch_files import Storage, View, torch_legacy, torch_zip, whole
from tests.domain.malicious_models import corpus

from groundplane.adapters.conversion import convert
from groundplane.errors import Refusal

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


def test_what_is_beside_the_weights_is_left_out_and_said(tmp_path: Path) -> None:
    source = tmp_path / "checkpoint.pt"
    source.write_bytes(torch_zip({"epoch": 3, "state_dict": weights(), "optimizer": {"lr": 0.1}}))
    made = convert(source, tmp_path / "model.safetensors")
    assert sorted(made.left_out) == ["epoch", "optimizer"]
    assert "layer.a" in made.tensors


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
