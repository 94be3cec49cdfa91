"""Pickles and PyTorch's files written opcode by opcode, for the tests of what reads them."""

import pickle
import struct
import zipfile

import numpy as np

MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
VERSION = pickle.dumps(1001, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)
DATA = np.arange(4, dtype="<f4").tobytes()


def value(item):
    """A plain value as the middle of a pickle; what it memoises lies beyond what is referred to by hand."""
    return pickle.dumps(item, 2)[2:-1] if not isinstance(item, bytes) else item


def named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def called(function, *arguments):
    return function + pickle.MARK + b"".join(map(value, arguments)) + pickle.TUPLE + pickle.REDUCE


def whole(content):
    return b"\x80\x02" + content + pickle.STOP


def storage(count=4, kind=("torch", "FloatStorage"), key="0", legacy=False):
    identity = [
        value("storage"),
        named(*kind),
        value(key),
        value("cpu"),
        value(count),
        *([pickle.NONE] if legacy else []),
    ]
    return pickle.MARK + b"".join(identity) + pickle.TUPLE + pickle.BINPERSID


def tensor(offset=0, size=(2, 2), stride=(2, 1), store=None, function="_rebuild_tensor_v2"):
    rest = () if function == "_rebuild_tensor" else (False, {})
    return called(named("torch._utils", function), store or storage(), offset, size, stride, *rest)


def write_zip(path, content, data=DATA, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", data)
    return path


def legacy(content, keys=("0",), data=DATA, count=4):
    return MAGIC + VERSION + SYSTEM + content + pickle.dumps(list(keys), 2) + struct.pack("<q", count) + data


def write(path, content):
    path.write_bytes(content)
    return path


NETWORK = named("torch_utils.persistence", "_reconstruct_persistent_obj")


def persistent(state, **meta):
    meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": "Net"} | meta
    items = b"".join(value(key) + value(item) for key, item in meta.items())
    return called(NETWORK, b"}(" + items + value("state") + value(state) + b"u")
