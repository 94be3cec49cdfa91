"""Files that want to run something, or more memory than they are worth: refused, and nothing has happened."""

import copyreg
import importlib
import os
import pickle
import struct
import subprocess

import pytest
from by_hand import MAGIC, SYSTEM, VERSION, called, named, persistent, storage, tensor, value, whole, write, write_zip

from cmjax.interop.torch_files import read_persistent, read_torch
from cmjax.system.unpickle import UnsafeFile


class Call:
    def __init__(self, function, *arguments):
        self.parts = (function, arguments)

    def __reduce__(self):
        return self.parts


def touch(path):
    return f"open({str(path)!r}, 'w').close()"


def getattr_chain(path):
    """getattr(__import__("os"), "system")("touch …")."""
    imported = called(named("builtins", "__import__"), "os")
    return whole(called(called(named("builtins", "getattr"), imported, "system"), f"touch {path}"))


def dotted_name(path):
    """STACK_GLOBAL follows the dots of a name through a module that may look harmless."""
    return b"\x80\x04" + called(value("shutil") + value("os.system") + b"\x93", f"touch {path}") + b"."


def memo_trick(path):
    """A name and its argument that are called later, from the memo, within a container."""
    call = named("builtins", "exec") + b"q\x64" + value((touch(path),)) + b"r\x00\x01\x00\x0000"
    return whole(call + b"](h\x64j\x00\x01\x00\x00Re")


def nested_load(path):
    """The standard library's own unpickler, called by a name."""
    inner = pickle.dumps(Call(os.system, f"touch {path}"), 3)
    stream = called(named("_io", "BytesIO"), b"B" + struct.pack("<I", len(inner)) + inner)
    return b"\x80\x03" + called(named("_pickle", "load"), stream) + b"."


def partial_call(path):
    partial = called(named("functools", "partial"), named("os", "system"), f"touch {path}")
    return whole(called(partial))


def build_setstate(path):
    """BUILD looks `__setstate__` up on an object, whose own `__dict__` says what that is."""
    made = called(named("types", "SimpleNamespace"))
    return whole(made + b"}" + value("__setstate__") + named("os", "system") + b"sb" + value(f"touch {path}") + b"b")


def dictionary_state(path):
    """The same on a container that is known."""
    made = called(named("collections", "OrderedDict"))
    return whole(made + b"}" + value("__setstate__") + named("os", "system") + b"sb" + value(f"touch {path}") + b"b")


def reconstructor(path):
    """`copyreg._reconstructor` calls the constructor of any class as that of a base."""
    popen = named("subprocess", "Popen")
    return whole(called(named("copyreg", "_reconstructor"), popen, popen, ["touch", str(path)]))


def newobj_ex(path):
    """A class whose object is made from arguments, and called after."""
    made = named("functools", "partial") + named("builtins", "exec") + value(touch(path)) + b"\x86}\x92"
    return b"\x80\x04" + called(made) + b"."


def extension(path):
    copyreg.add_extension("os", "system", 240)
    return whole(called(b"\x82\xf0", f"touch {path}"))


PAYLOADS = {
    "os.system": lambda path: pickle.dumps(Call(os.system, f"touch {path}"), 2),
    "old protocol": lambda path: f"cos\nsystem\n(S'touch {path}'\ntR.".encode(),
    "eval": lambda path: pickle.dumps(Call(eval, touch(path)), 4),
    "exec": lambda path: pickle.dumps({"ema": [Call(exec, touch(path))]}, 2),
    "getattr": getattr_chain,
    "Popen": lambda path: pickle.dumps(Call(subprocess.check_call, ["touch", str(path)]), 4),
    "dotted name": dotted_name,
    "INST": lambda path: b"\x80\x02(" + value(f"touch {path}") + b"ios\nsystem\n.",
    "OBJ": lambda path: b"\x80\x02(" + named("os", "system") + value(f"touch {path}") + b"o.",
    "NEWOBJ_EX": newobj_ex,
    "EXT": extension,
    "memo": memo_trick,
    "pickle.load": nested_load,
    "partial": partial_call,
    "importlib": lambda path: pickle.dumps([importlib.import_module, Call(exec, touch(path))], 4),
    "BUILD": build_setstate,
    "BUILD of a dictionary": dictionary_state,
    "copyreg": reconstructor,
}
FILES = {
    "the zip's data.pkl": lambda path, content: write_zip(path, content),
    "magic": lambda path, content: write(path, content),
    "system": lambda path, content: write(path, MAGIC + VERSION + content),
    "object": lambda path, content: write(path, MAGIC + VERSION + SYSTEM + content),
    "keys": lambda path, content: write(path, MAGIC + VERSION + SYSTEM + pickle.dumps({}, 2) + content),
}


@pytest.fixture(autouse=True)
def no_extensions():
    yield
    if ("os", "system") in copyreg._extension_registry:
        copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize("name", PAYLOADS)
def test_nothing_that_a_file_asks_for_is_run(tmp_path, name):
    trace = tmp_path / "trace"
    content = PAYLOADS[name](trace)
    for place, make in FILES.items():
        with pytest.raises(UnsafeFile, match="nothing in it was executed"):
            read_torch(make(tmp_path / f"{place}.pt", content))
    inner = MAGIC + content
    in_storage = called(named("torch.storage", "_load_from_bytes"), b"B" + struct.pack("<I", len(inner)) + inner)
    for hidden in (content, whole(in_storage)):
        with pytest.raises(UnsafeFile, match="nothing in it was executed"):
            read_persistent(write(tmp_path / "network.pkl", hidden))
    assert not trace.exists()
    # What reads pickles otherwise does run it: this test can fail.
    made = pickle.loads(content)
    if isinstance(made, subprocess.Popen):
        made.wait()
    assert trace.exists()


def test_the_global_is_named(tmp_path):
    for payload, name in (("os.system", f"{os.name}.system"), ("dotted name", "shutil.os.system"), ("INST", "INST")):
        path = write(tmp_path / "evil.pkl", PAYLOADS[payload](tmp_path / "trace"))
        with pytest.raises(UnsafeFile, match=rf"evil\.pkl (names|has the opcode) {name}, which is not part of"):
            read_persistent(path)
    load = whole(called(named("torch.serialization", "load"), str(path)))
    for content, name in ((load, r"torch\.serialization\.load"), (whole(named("a\x1b[2J", "b")), r"'a\\x1b\[2J\.b'")):
        with pytest.raises(UnsafeFile, match=f"names {name},"):
            read_persistent(write(path, content))


LINEAR = named("torch.nn.modules.linear", "Linear") + b")\x81"


@pytest.mark.parametrize("name", ["__class__", "__dict__", "__setstate__", "__reduce__", "__reduce_ex__"])
def test_a_state_sets_no_attribute_that_runs(tmp_path, name):
    state = b"}" + value(name) + value({"a": 1}) + b"s"
    for made in (LINEAR + state + b"b", called(named("collections", "OrderedDict")) + state + b"b", persistent(state)):
        path = write(tmp_path / "network.pkl", whole(b"}" + value("ema") + made + b"s"))
        with pytest.raises(UnsafeFile, match=f"sets the attribute {name}"):
            read_persistent(path)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (tensor(offset=1), "reaches outside of its storage"),
        (tensor(size=(2, 3)), "reaches outside of its storage"),
        (tensor(size=(10**12,), stride=(1,)), "reaches outside of its storage"),
        (tensor(size=(10**12,), stride=(0,)), "far more elements than its storage"),
        (tensor(size=(10**6, 10**6), stride=(0, 0)), "far more elements"),
        (tensor(size=(2**70,), stride=(0,)), "not numbers"),
        (tensor(size=(2, 2), stride=(-1, 1)), "not numbers"),
        (tensor(size=(2,) * 40, stride=(0,) * 40), "40 axes"),
        (tensor(size=(2, 2), stride=(1,)), "2 axes and 1 strides"),
        (tensor(offset=-1), "not numbers"),
        (tensor(size=(0, 2**61), stride=(1, 1)), "too big"),
        (tensor(store=value("0")), "without a storage"),
        (tensor(store=storage(10**12)), "another size|larger than the file"),
        (tensor(store=storage(5)), "another size|larger than the file|does not fit"),
        (tensor(store=storage(kind=("torch", "DoubleStorage"))), "another size"),
        (tensor(store=storage(kind=("torch", "Size"))), "not understood"),
        (called(named("builtins", "bytearray"), 10**12), "a int where a bytes belongs"),
        (called(named("numpy._core.multiarray", "_reconstruct"), named("numpy", "ndarray"), (10**12,), "b"), None),
        (called(named("numpy", "dtype"), "O8", False, True), "something else than numbers"),
    ],
)
def test_sizes_are_not_believed(tmp_path, made, message):
    path = write_zip(tmp_path / "file.pt", whole(made))
    if message is None:
        read_torch(path)  # an array without content is nothing yet
    else:
        with pytest.raises(ValueError, match=message):
            read_torch(path)


def test_parts_used_over_and_over_do_not_fill_the_memory(tmp_path):
    pairs = b"](" + b"K\x01K\x02\x86" * 1000 + b"e" + b"q\x00"
    copies = b"](" + (named("collections", "OrderedDict") + b"h\x00\x85R") * 1000 + b"e"
    nested = b")q\x01" + b"h\x01h\x01\x86q\x01" * 60  # 2^60 empty tuples, were they walked through
    for content, message in ((pairs + copies, "over and over"), (nested + b"}h\x01K\x01s", "a key in it is a tuple")):
        with pytest.raises(ValueError, match=message):
            read_torch(write_zip(tmp_path / "file.pt", whole(content)))
