"""PyTorch's files that are old, damaged, or something else: read, or one sentence that names the file."""

import pickle
import random
import struct
import zipfile

import numpy as np
import pytest
from by_hand import (
    DATA,
    MAGIC,
    SYSTEM,
    VERSION,
    called,
    legacy,
    named,
    persistent,
    storage,
    tensor,
    value,
    whole,
    write,
    write_zip,
)

from cmjax.interop.features import load_lpips
from cmjax.interop.keys import ForeignError
from cmjax.interop.modules import state_dict
from cmjax.interop.torch_files import read_persistent, read_torch
from cmjax.interop.weights import read_weights


def test_files_of_pytorch_before_its_0_4(tmp_path):
    """Tensors by `_rebuild_tensor`, or a class and its state; parameters around them, once as a state of five."""
    store = storage(legacy=True)
    plain = tensor(store=store, function="_rebuild_tensor")
    parameter = named("torch.nn.parameter", "Parameter") + plain + b"\x85R" + value((True, False, {})) + b"b"
    old = named("torch", "FloatTensor") + b")Rr\x00\x01\x00\x00(" + store + value(2) + value((2,)) + value((1,)) + b"tb"
    oldest = named("torch.nn.parameter", "Parameter") + b")\x81(" + plain + b"N}\x88\x89tb"
    items = b"U\x01a" + parameter + b"U\x01b" + old + b"U\x01cj\x00\x01\x00\x00U\x01d" + oldest
    content = whole(called(named("collections", "OrderedDict")) + pickle.MARK + items + b"u")
    read = read_torch(write(tmp_path / "old.pth", legacy(content)))
    expected = {"a": [[0, 1], [2, 3]], "b": [2, 3], "c": [2, 3], "d": [[0, 1], [2, 3]]}
    assert {key: array.tolist() for key, array in read.items()} == expected


HTML = b"<!DOCTYPE html><html>404</html>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"\n " + HTML, "it is a web page"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "it is a PNG image"),
        (b"version https://git-lfs.github.com/spec/v1", "a pointer of Git LFS"),
        (b"just text", "malformed|not an opcode"),
        (pickle.dumps([1, 2]), "a pickle of something else|without a network"),
        (pickle.dumps({"ema": 1}, 2), "a pickle of something else|without a network"),
        (pickle.dumps("text", 0), "not an opcode"),
        (MAGIC + VERSION + SYSTEM, "too early|which read_torch reads"),
        (bytes(1000), "opcode .* unknown"),
        (b"\x80\x09.", "its pickle protocol is 9"),
        (b"\x80\x02K\x01r\xff\xff\xff\x7f.", "pickle of something else|without a network"),
        (b"\x80\x02.", "malformed"),
        (b"\x80\x02(K\x01}s.", "malformed"),
        (b"\x80\x02h\x05.", "malformed"),
        (b"\x80\x04\x8e" + b"\xff" * 8, "byte count > sys.maxsize"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x00", "too early"),
        (b"\x80\x02\x8b\x00\x00\x00\x70" + b"a" * 99, "too early"),
        (b"\x80\x02\x8b\x63\x00\x00\x00" + b"a" * 99 + b".", "a number in it is huge"),
        (b"\x80\x02]K\x01K\x02s.", "fills a list as if it were a dict"),
        (b"\x80\x02K\x01)R.", "calls int"),
        (b"\x80\x02K\x01}b.", "sets the state of a int"),
        (b"\x80\x02U\x01aQ.", "refers to an object outside"),
        (b"\x80\x02}((K\x01\x85tK\x01s.", "malformed|a key in it is a tuple"),
    ],
)
def test_other_files_are_told_from_these(tmp_path, content, message):
    for read in (read_torch, read_persistent):
        with pytest.raises(ValueError, match=rf"file\.pt .*({message})"):
            read(write(tmp_path / "file.pt", content))


def test_a_missing_file_is_the_systems_error(tmp_path):
    for read in (read_torch, read_persistent):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none.pt")


def test_zip_archives_that_are_not_torch_saves(tmp_path):
    good = whole(tensor())
    assert read_torch(write_zip(tmp_path / "good.pt", good)).tolist() == [[0, 1], [2, 3]]
    damaged = bytearray((tmp_path / "good.pt").read_bytes())
    damaged[damaged.index(DATA) + 5] ^= 1
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("model/weights.txt", "")
    for path, message in (
        (write(tmp_path / "bits.pt", damaged), "Bad CRC-32"),
        (tmp_path / "other.zip", "without data.pkl"),
        (write_zip(tmp_path / "packed.pt", good, compression=zipfile.ZIP_DEFLATED), "compressed"),
        (write_zip(tmp_path / "short.pt", good, DATA[:-1]), "another size"),
        (
            write_zip(tmp_path / "keys.pt", whole(tensor(store=storage(key="1")))),
            "a storage that it refers to is missing",
        ),
    ):
        with pytest.raises(ValueError, match=f"{path.name} .*{message}"):
            read_torch(path)


def test_storages_of_the_old_format_are_not_believed(tmp_path):
    made = whole(tensor(store=storage(legacy=True)))
    huge = whole(tensor(store=storage(10**12, legacy=True)))
    for content, message in (
        (legacy(huge, count=10**12), "larger than the file"),
        (legacy(made, count=5), "another size"),
        (legacy(made, keys=("1",)), "list of storages does not fit"),
        (legacy(made, keys=()), "list of storages does not fit"),
        (legacy(made, data=DATA[:-1]), "too early"),
        (legacy(whole(tensor())), "something else than a storage"),
    ):
        with pytest.raises(ValueError, match=message):
            read_torch(write(tmp_path / "file.pt", content))
    assert read_torch(write(tmp_path / "file.pt", legacy(made))).tolist() == [[0, 1], [2, 3]]


def good_files():
    weights = b"}(" + value("weight") + tensor() + value("names") + value(["a", (1.5, None)]) + b"u"
    old = b"}(" + value("weight") + tensor(store=storage(legacy=True)) + b"u"
    inner = legacy(whole(storage(legacy=True)))
    store = called(named("torch.storage", "_load_from_bytes"), b"B" + struct.pack("<I", len(inner)) + inner)
    entries = [value(name) + b"}" for name in ("_buffers", "_modules")]
    state = b"}(" + value("_parameters") + b"}" + value("w") + tensor(store=store) + b"s" + b"".join(entries) + b"u"
    yield read_torch, whole(weights)
    yield read_torch, legacy(whole(old))
    yield read_persistent, whole(b"}" + value("ema") + persistent(state) + b"s")


def test_damage_is_a_value_error_or_is_not_seen(tmp_path):
    """Bits flipped and ends cut off, from a seed: no other error, and nothing that takes long."""
    draw, path, refused = random.Random(0), tmp_path / "file.pt", 0
    for read, good in good_files():
        if read is read_torch and not good.startswith(MAGIC):
            good = write_zip(path, good).read_bytes()
        read(write(path, good))
        for trial in range(400):
            content = bytearray(good)
            for _ in range(draw.randint(1, 3)):
                content[draw.randrange(len(content))] = draw.randrange(256)
            if trial % 4 == 0:
                del content[draw.randrange(len(content)) :]
            try:
                found = read(write(path, content))
                if read is read_persistent and isinstance(found, dict) and "ema" in found:
                    state_dict(found["ema"])
            except ValueError:
                refused += 1
    assert refused > 400


def test_an_npz_that_holds_no_plain_arrays(tmp_path):
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
    np.savez(tmp_path / "whole.npz", a=np.zeros(4))
    np.save(tmp_path / "one.npy", np.zeros(4))
    files = {
        "is no .npz file": pickle.dumps({"a": 1}),
        "is an .npy file, which holds one array": (tmp_path / "one.npy").read_bytes(),
        '"a" holds Python objects, which are not read': (tmp_path / "objects.npz").read_bytes(),
        "only a part of it is here": (tmp_path / "whole.npz").read_bytes()[:100],
    }
    path = tmp_path / "x.npz"
    for message, content in files.items():
        path.write_bytes(content)
        for read, error in ((read_weights, ForeignError), (lambda path: load_lpips(path, path), ValueError)):
            with pytest.raises(error, match=message) as caught:
                read(path)
            assert str(path) in str(caught.value)
            assert "pickle" not in str(caught.value)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "no array")
    with pytest.raises(ForeignError, match=r'"notes\.txt" is no array'):
        read_weights(path)
