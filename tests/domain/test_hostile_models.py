"""Files that mislead, spy, exhaust or run: each is refused with a reason, nothing of it runs, and none takes long."""

from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.domain.hostile_models import (
    FOLDERS,
    SECRETS,
    coreml,
    field,
    gguf_tensors,
    hostile,
    onnx,
    onnx_tensor,
    packed_array,
    tflite,
)
from tests.domain.later_hostile_models import later
from tests.domain.malicious_models import WEIGHTS
from tests.domain.test_malicious_models import Looked

from groundplane.adapters.model_files import FolderModelFiles
from groundplane.domain.model import path_refusals
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.loader_targets import acting_target
from groundplane.domain.scanning.model_files import Inspection, inspect
from groundplane.domain.scanning.model_formats import Format
from groundplane.domain.scanning.pickle_scan import scan_for_hidden_pickle
from groundplane.domain.scanning.report import judge_scan
from groundplane.domain.scanning.templates_scan import dangers

FILES = hostile("touch /nonexistent/canary") | later()


def look(name: str, data: bytes) -> Inspection:
    return inspect(name, ByteView.of(data))


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_hostile_file_is_refused_with_a_reason(name: str) -> None:
    seen = look(name.partition("/")[2], FILES[name])
    assert seen.refused is not None, seen.format
    assert seen.refused.need
    assert seen.refused.have
    assert seen.refused.hint


def test_looking_at_hostile_files_runs_nothing_and_what_is_hidden_in_them_would_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    files = hostile(f"touch {canary}")
    for name, data in files.items():
        inspect(name, ByteView.of(data))
    assert not canary.exists()
    live = 0
    for name in ("behind/picture.gif", "behind/user-block.h5", "behind/lite.tflite"):
        pickle.load(io.BytesIO(files[name]))
        live += canary.exists()
        canary.unlink(missing_ok=True)
    assert live == 3, "a corpus of duds would prove nothing"


def test_a_secret_is_named_and_never_repeated() -> None:
    for text in SECRETS.values():
        refused = look("notes.txt", text.encode()).refused
        assert refused is not None
        assert refused.rule == "no-secrets"
        assert not any(word in refused.have for word in text.split() if len(word) > 20)


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_names_that_systems_take_for_others_are_refused(name: str) -> None:
    assert path_refusals(FOLDERS[name])


def test_names_of_other_languages_are_let_be() -> None:
    assert not path_refusals(
        ["größe.json", "модель.txt", "模型/config.json", "β-model.bin", ".gitattributes", "nul-model.txt"]
    )


# ---------------------------------------------------------------- what is near, and clean


CLEAN: dict[str, bytes] = {
    "model.onnx": onnx(
        field(1, field(1, b"x") + field(1, b"location") + field(2, b"/Cast_output_0")) + field(5, onnx_tensor(b"w.bin"))
    ),
    "saved_model.pb": field(1, 1)
    + field(2, field(2, field(1, field(1, b"ReadFile") + field(2, b"RestoreV2") + field(3, b"WriteFile")))),
    "blocks.gguf": gguf_tensors((b"w", (32, 2), 8, 0), (b"v", (7,), 1, 96), data=b"\0" * 128),
    "config.yaml": b"a: &a {_target_: torch.nn.ReLU}\nb: *a\nc: {_target_: functools.partial}\nd: {target: cpu}\n",
    "hyperparams.yaml": b"net: !new:speechbrain.nnet.RNN.LSTM\n  size: 3\nx: !ref <net>\n",
    "MLmodel": b"flavors: {python_function: {loader_module: mlflow.sklearn}}\n",
    "keras/config.json": json.dumps(
        {
            "module": "keras.layers",
            "class_name": "TextVectorization",
            "config": {
                "vocabulary": ["a", "b"],
                "standardize": {"module": "builtins", "class_name": "function", "config": "lower"},
                "dtype": {"module": "keras", "class_name": "DTypePolicy", "config": {"name": "float32"}},
            },
        }
    ).encode(),
    "model.safetensors.index.json": b'{"weight_map": {"w": "model-00001-of-00002.safetensors"}}',
    "model.pmml": b'<?xml version="1.0" encoding="UTF-8"?>\n<PMML version="4.4"><Header/></PMML>\n',
    "page.svg": b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/x.dtd"><svg/>',
    "requirements.txt": b"numpy==2.0  # see http://numpy.test\ntorch>=2\n",
    "latin.txt": "Größe übermäßig".encode("latin-1"),
    "utf16.txt": "Größe".encode("utf-16"),
    "plain.tflite": tflite("plain"),
    "bilinear.tflite": tflite("custom").replace(b"Erfinv", b"FlexLu"),
    "net.mlmodel": coreml(field(140, field(1, 3))),
    "program.mlmodel": field(1, 7) + field(502, field(2, b"@model_path/weights/weight.bin")),
    "B.mlpackage/Manifest.json": b'{"itemInfoEntries": {"a": {"path": "com.apple.CoreML/model.mlmodel"}}}',
    "flax_model.msgpack": packed_array(b"\x92\x02\x01", b"bfloat16", b"abcd"),
    "package.json": b'{"name": "x", "scripts": {"test": "jest", "build": "tsc"}, "homepage": "http://x.test"}',
    "pyproject.toml": b'[build-system]\nrequires = ["setuptools"]\n[project]\nname = "x"\nurls = {home = "http://x.test"}\n',
    "setup.cfg": b"[metadata]\nurl = http://x.test\n",
    ".env": b"OMP_NUM_THREADS=4\nPYTHONPATH=src\n",
    "Modelfile": b'FROM ./model.gguf\nPARAMETER temperature 0.7\nSYSTEM "You are kind."\n',
    "other/Modelfile": b"FROM llama3.2:3b\nADAPTER ./adapter.gguf\n",
    "tokenizer_config.json": b'{"tokenizer_file": "/models/base/x.json", "name_or_path": "../base"}',
    "notes.txt": b"gASk it about gATes, and eyJ nothing.eyJ more\n",
}


@pytest.mark.parametrize("name", sorted(CLEAN))
def test_what_only_looks_alike_is_let_through(name: str) -> None:
    refused = look(name, CLEAN[name]).refused
    assert refused is None, str(refused)


@pytest.mark.parametrize("kind", ["<M8[ns]", "|b1", ">f8", "<c16", "|S3", "<U5"])
def test_plain_arrays_of_any_letters_numbers_and_times_are_let_through(kind: str) -> None:
    target = io.BytesIO()
    np.save(target, np.zeros(3, dtype=kind))
    assert look("a.npy", target.getvalue()).refused is None


def test_an_object_that_is_python_s_own_is_told_from_a_layer() -> None:
    assert all(map(acting_target, ("os.system", "timeit.timeit", "builtins.exec", "torch.hub.load", "joblib.load")))
    assert not any(map(acting_target, ("torch.nn.Linear", "nemo.models.Net", "collections.OrderedDict", "mine.Net")))


def test_templates_that_work_out_texts_and_indexes_are_templates() -> None:
    plain = (
        "{% set index = loop.index0 + 1 %}{{ messages[index].content }}",
        "{% set text = messages[0].content ~ '_end' %}{{ text }}{{ text[:3] }}",
        "{% for key in tool.parameters.properties %}{{ tool.parameters.properties[key] }}{% endfor %}",
        "{{ '{} says'.format(message.role) }}",
    )
    assert not [source for source in plain if dangers(source)]


def test_code_in_a_model_s_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "modeling.py").write_text("import os\n")
    (tmp_path / "modules.json").write_text('{"trust_remote_code": true}')
    (tmp_path / "model.safetensors").write_bytes(WEIGHTS)
    report = judge_scan("x", FolderModelFiles.look(tmp_path))
    assert report.ok
    assert [(finding.path, finding.rule) for finding in report.findings] == [
        ("modeling.py", "custom-code"),
        ("modules.json", "custom-code"),
    ]


def test_what_somebody_must_start_or_bring_as_code_is_said(tmp_path: Path) -> None:
    said = {
        "Dockerfile": b"FROM scratch\n",
        "Makefile": b"all:\n\ttrue\n",
        ".github/workflows/test.yml": b"on: push\n",
        "MLmodel": b"flavors: {spark: {model_class: org.evil.Model}}\n",
        "model_index.json": b'{"_class_name": ["pipeline", "Own"]}',
        "net.xml": b'<net name="x"><layers><layer id="0" type="Own" version="extra"/></layers></net>',
        "pyproject.toml": b'[build-system]\nrequires = []\nbuild-backend = "own"\nbackend-path = ["."]\n',
        "requirements.txt": b"-e .\n./own-1.0-py3-none-any.whl\n",
    }
    for name, data in said.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / "erfinv.tflite").write_bytes(tflite("custom"))
    (tmp_path / "broken.tflite").write_bytes(b"\x1c\0\0\0TFL3" + b"\xff" * 90)
    report = judge_scan("x", FolderModelFiles.look(tmp_path))
    assert report.ok, report.findings
    assert {finding.path for finding in report.findings if finding.rule == "custom-code"} == set(said)
    operators = {finding.path: finding.message for finding in report.findings if finding.rule == "custom-operation"}
    assert operators.keys() == {"erfinv.tflite", "broken.tflite"}
    assert "Erfinv" in operators["erfinv.tflite"]


def test_what_misleads_without_running_is_said() -> None:
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 0) + b"IEND\xaeB`\x82"
    said: dict[str, tuple[str, str | bytes]] = {
        "outside-files": ("adapter_config.json", '{"base_model_name_or_path": "../../etc"}'),
        "unreadable": ("config.json", '{"a": 1}{"b": 2}'),
        "unreadable ": ("tokenizer.json", '{"a": {"b": 1, "b": 2}}'),
        "no-secrets": ("README.md", "AKIAIOSFODNN7EXAMPLE\n"),
        "licence-unknown": ("README.md", "---\nlicense: other\n---\n"),
        "hidden-bytes": ("logo.png", png + b"<?php ?>"),
        "template-says": (
            "chat_template.jinja",
            "{% if 'the budget' in messages[0].content %}https://x.test{% endif %}",
        ),
    }
    for rule, (name, data) in said.items():
        report = judge_scan("x", [Looked(name, data if isinstance(data, bytes) else data.encode())])
        assert [(found.rule, found.severity) for found in report.findings] == [(rule.strip(), "warning")], rule
        assert report.ok
    named = ("config.pbtxt", 'backend: "python"'), ("x.json", '{"handler": "own:handle"}'), ("crontab", "* * * * * x")
    named += (".gitattributes", "* filter=own"), ("config.cfg", '@callbacks = "own"'), ("a.html", "<script>x</script>")
    named += ("config.yml", "custom_imports:\n  imports: [own]"), ("symbol.json", '{"nodes": [{"op": "Custom"}]}')
    for name, text in named:
        report = judge_scan("x", [Looked(name, text.encode())])
        assert [(found.rule, found.severity) for found in report.findings] == [("custom-code", "warning")], name


def test_a_file_that_begins_like_programs_all_over_costs_no_more_than_its_size() -> None:
    dense = b"\1own" + (b"\x80\x02" + b"N" * 30) * 20_000 + b"\xff"
    walk = scan_for_hidden_pickle(ByteView.of(dense))
    assert walk is not None, "what can't be looked at within bounds is taken for a program"
    noise = np.random.default_rng(5).bytes(3_000_000)
    assert scan_for_hidden_pickle(ByteView.of(noise)) is None
    assert look("weights.data", noise).format is Format.BINARY
