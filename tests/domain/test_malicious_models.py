"""Everything in the malicious corpus is refused and nothing of it runs; clean models of all formats are let through."""

from __future__ import annotations

import asyncio
import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from tests.domain.hostile_models import field, onnx, onnx_tensor
from tests.domain.malicious_models import RUNAWAY, WEIGHTS, corpus, gguf

from groundplane.adapters.model_files import FolderModelFiles
from groundplane.adapters.templates import render_templates
from groundplane.domain.scanning.byte_view import ByteView
from groundplane.domain.scanning.licences import conflicts
from groundplane.domain.scanning.model_files import inspect
from groundplane.domain.scanning.pickle_scan import scan_for_pickle
from groundplane.domain.scanning.report import judge_scan
from groundplane.domain.scanning.templates_scan import Template, dangers

CORPUS = corpus("/nonexistent/canary")


def test_everything_in_the_corpus_is_refused() -> None:
    entered = [name for name, data in CORPUS.items() if inspect(name, ByteView.of(data)).refused is None]
    assert not entered
    assert len(CORPUS) > 300


def test_looking_at_the_corpus_runs_nothing_of_it_and_the_payloads_do_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    made = corpus(str(canary))
    for name, data in made.items():
        inspect(name, ByteView.of(data))
    assert not canary.exists()
    live = 0
    for name, data in made.items():
        if name.startswith("pickle/") and name.endswith(".pkl") and _harm(data, canary):
            live += 1
    assert live >= 18, "a corpus of duds would prove nothing"


def _harm(data: bytes, canary: Path) -> bool:
    """Whether loading it makes the canary: in this process, because that is what an unsuspecting loader does."""
    stream = io.BytesIO(data)
    for _ in range(2):
        try:
            pickle.load(stream)
        except Exception:
            continue
    if not canary.exists():
        return False
    canary.unlink()
    return True


def test_a_refusal_says_what_a_program_reaches_for() -> None:
    for trick, wanted in {
        "stack-global-via-memo": "os.system",
        "stack-global-with-decoys": "os.system",
        "runpy": "runpy._run_code",
        "extension": "extension 5",
    }.items():
        walk = scan_for_pickle(ByteView.of(CORPUS[f"pickle/{trick}.pkl"]))
        assert walk is not None
        assert walk.foreign == (wanted,), trick


@pytest.mark.parametrize("name", sorted(RUNAWAY))
def test_a_template_that_takes_too_much_or_hides_is_stopped(name: str, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text(RUNAWAY[name])
    found = asyncio.run(FolderModelFiles().scan(tmp_path))
    assert found[0].refused is not None
    assert found[0].refused.rule == "template-injection"


# ---------------------------------------------------------------- clean models

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message.content + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}"
    "{%- set ns = namespace(index=0) %}{{- bos_token }}{%- for message in loop_messages %}"
    "{%- if message['role'] == 'user' %}{%- if loop.last and system_message is defined %}"
    "{{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}{%- else %}"
    "{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}{%- elif message.tool_calls is defined %}"
    "{{- '[TOOL_CALLS] [' }}{%- for tool_call in message.tool_calls %}{%- set out = tool_call.function|tojson %}"
    "{{- out[:-1] }}{%- endfor %}{%- elif message['role'] == 'assistant' %}"
    "{{- ' ' + message['content']|trim + eos_token }}"
    "{%- else %}{{- raise_exception('Only user, assistant and tool roles are supported!') }}{%- endif %}{%- endfor %}"
)
LLAMA = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{%- for message in messages %}{%- if message.role == 'assistant' %}{% generation %}{{ message.content }}"
    "{% endgeneration %}{%- else %}{{ '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>' }}{%- endif %}"
    "{%- if loop.index0 > 5 %}{% break %}{%- endif %}{%- endfor %}"
    "{%- if tools is not none and tools %}{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{%- endif %}"
)


def _zipped(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target.getvalue()


def _npz(packed: bool) -> bytes:
    target = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(target, w=np.zeros((400, 300), np.float32), b=np.ones(3))
    return target.getvalue()


def _npy(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def _clean() -> dict[str, dict[str, bytes]]:
    noise = np.random.default_rng(11)
    models: dict[str, dict[str, bytes]] = {}
    card = b"---\nlicense: apache-2.0\n---\n# A model\n"
    card += b"Set `AWS_KEY=AKIAIOSFODNN7EXAMPLE` or `hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx`.\n"
    tokenizer = {"model": {"vocab": {f"tok{number}": number for number in range(4000)}, "merges": ["t h", "h e"]}}
    for number, template in enumerate((CHATML, MISTRAL, LLAMA)):
        for dtype in (np.float32, np.float16, np.int8):
            models[f"transformer-{number}-{np.dtype(dtype)}"] = {
                "model.safetensors": save({"w": noise.integers(0, 99, (64, 64)).astype(dtype)}),
                "config.json": b'{"architectures": ["LlamaForCausalLM"], "auto_map": {}}',
                "tokenizer.json": json.dumps(tokenizer).encode(),
                "tokenizer_config.json": json.dumps({"chat_template": template, "bos_token": "<s>"}).encode(),
                "README.md": card,
                "LICENSE": b"          Apache License\n        Version 2.0, January 2004\n",
                "merges.txt": "#version: 0.2\nĠ t\nh e\n".encode(),
            }
        models[f"gguf-{number}"] = {
            "model.gguf": gguf({"general.name": "x", "tokenizer.chat_template": template}, number + 1)
        }
    for number, array in enumerate((np.ones((2, 3)), np.arange(9), np.zeros(0), np.array(3.5), np.array(["a", "bc"]))):
        models[f"npy-{number}"] = {"weights.npy": _npy(array), "notes.md": b"plain\n"}
    models["npy-records"] = {"weights.npy": _npy(np.zeros(2, dtype=[("x", "f4"), ("y", "i8", (2,))]))}
    models["npz"] = {"weights.npz": _npz(False)}
    models["npz-packed"] = {"weights.npz": _npz(True)}
    models["npz-zeros"] = {
        "weights.npz": _npz(True),
        "config.yaml": b"model:\n  _target_: nemo.models.Net\n  lr: 1e-3\n",
    }
    for number in range(4):
        config = json.dumps({"class_name": "Dense", "config": {"name": "größe", "units": number}}).encode()
        models[f"keras-{number}"] = {"model.h5": b"\x89HDF\r\n\x1a\n" + b"\0" * 600 + config + noise.bytes(5000)}
        tensors = field(5, onnx_tensor(b"weights.data")) + field(5, field(9, noise.bytes(4000)))
        models[f"onnx-{number}"] = {"model.onnx": onnx(tensors), "weights.data": noise.bytes(9000)}
        models[f"tflite-{number}"] = {
            "model.tflite": b"\x1c\0\0\0TFL3" + noise.bytes(3000),
            "labels.txt": b"cat\ndog\n",
        }
        models[f"own-{number}"] = {
            "model.bin": b"\x01own" + noise.bytes(8000),
            "vocab.txt": b"In\ncat\ndog\nRam\n" * 50,
        }
    parts = {"metadata.json": b"{}", "config.json": config, "model.weights.h5": b"\x89HDF\r\n\x1a\n" + noise.bytes(900)}
    models["keras-zip"] = {"model.keras": _zipped(parts)}
    models["ternary"] = {
        "model.safetensors": WEIGHTS,
        "modeling.py": b"import os, re, torch\n\n\nclass Net(torch.nn.Module):\n    path = os.path.join('a', 'b')\n"
        b"    word = re.compile('a')\n\n\nNet().eval()\ntorch.compile(Net())\n",
        "requirements.txt": b"torch==2.9  # see http://pytorch.org\n--extra-index-url https://download.pytorch.org/whl\n",
        "README.md": b"Escape `{{ user.__class__ }}` in prompts.\n",
        "modules.json": b'[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]',
        "model_index.json": b'{"_class_name": "X", "unet": ["diffusers", "UNet2DModel"], "safety": [null, null]}',
    }
    return models


CLEAN = _clean()


def test_no_clean_model_is_kept_out() -> None:
    alarms = {
        f"{name}/{path}": str(found.refused)
        for name, files in CLEAN.items()
        for path, data in files.items()
        if (found := inspect(path, ByteView.of(data))).refused is not None
    }
    assert not alarms
    formats = {str(inspect(path, ByteView.of(data)).format) for files in CLEAN.values() for path, data in files.items()}
    assert len(CLEAN) >= 30
    assert len(formats - {"text"}) >= 6


def test_templates_that_models_are_published_with_render(tmp_path: Path) -> None:
    templates = [Template(name=str(number), source=source) for number, source in enumerate((CHATML, MISTRAL, LLAMA))]
    assert render_templates("tokenizer_config.json", templates) is None
    assert not any(dangers(template.source) for template in templates)


# ---------------------------------------------------------------- judged together


def test_licences_that_cannot_be_combined_are_named() -> None:
    assert not conflicts("Apache-2.0", [("LICENSE", "apache-2.0"), ("base", "mit")])
    assert not conflicts("GPL-3.0-only", [("base", "lgpl-3.0")])
    assert [found.licence for found in conflicts("MIT", [("base", "cc-by-nc-4.0"), ("LICENSE", "gpl-3.0")])] == [
        "cc-by-nc-4.0",
        "gpl-3.0",
    ]
    assert conflicts("Apache-2.0", [("base", "llama3.1")])
    assert conflicts("cc-by-4.0", [("base", "CC-BY-ND-4.0")])


class Looked:
    def __init__(self, path: str, data: bytes) -> None:
        found = inspect(path, ByteView.of(data))
        self.path, self.size_bytes = path, len(data)
        self.format, self.details, self.refused = str(found.format), found.details, found.refused


def test_a_report_judges_the_files_together() -> None:
    files = [Looked("model.safetensors", WEIGHTS), Looked("README.md", b"---\nlicense: cc-by-nc-4.0\n---\n")]
    assert judge_scan("x", files, license="cc-by-nc-4.0", memory_bytes=10_000).ok
    report = judge_scan("x", files, license="MIT", memory_bytes=10)
    assert {finding.rule for finding in report.findings} == {"licence-conflict", "memory"}
    assert not report.ok
    custom = Looked("config.json", b'{"auto_map": {"AutoModel": "modeling.Net"}}')
    report = judge_scan("x", [*files, custom])
    assert [(finding.rule, finding.severity) for finding in report.findings] == [("custom-code", "warning")]
    assert report.ok


def test_a_zip_of_plain_arrays_with_something_before_it_is_no_npz() -> None:
    assert inspect("a.npz", ByteView.of(b"MZ" + _zipped({"a.npy": _npy(np.ones(3))}))).refused is not None
