"""PyTorch's files, and networks as NVIDIA pickles them: the same as PyTorch reads."""

import collections
import pickle
import struct
import sys
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from cmjax.interop import torch_files
from cmjax.interop.modules import init_arguments, non_finite, state_dict
from cmjax.interop.torch_files import read_persistent, read_torch
from cmjax.system.unpickle import PickledObject

MAGIC = pickle.dumps(torch_files.MAGIC, 2)
VERSION = pickle.dumps(torch_files.VERSION, 2)
SYSTEM = pickle.dumps({"protocol_version": 1001, "little_endian": True, "type_sizes": {}}, 2)


def unicode(text):
    return pickle.BINUNICODE + struct.pack("<I", len(text.encode())) + text.encode()


def named(module, name):
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def zipped(path, data, storages=None, **members):
    """A file of torch.save's zip format, with any data.pkl."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for name, content in ({f"data/{key}": raw for key, raw in (storages or {}).items()} | members).items():
            archive.writestr(f"archive/{name}", content)
    return path


def storage_id(key="0", count=4, kind="FloatStorage", tail=b""):
    parts = unicode("storage") + named("torch", kind) + unicode(key) + unicode("cpu") + pickle.dumps(count, 2)[2:-1]
    return pickle.MARK + parts + tail + pickle.TUPLE + pickle.BINPERSID


def tensor_of(storage, offset, size, stride, function="_rebuild_tensor_v2"):
    rest = [pickle.dumps(value, 2)[2:-1] for value in (offset, size, stride, False)]
    # what dumps memoises is not referred to again
    return named("torch._utils", function) + pickle.MARK + storage + b"".join(rest) + b"}tR"


# What PyTorch wrote


def contents(torch):
    torch.manual_seed(0)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    shared = torch.randn(10)
    kinds = ["float16", "float32", "float64", "bfloat16", "int8", "int16", "int32", "int64", "uint8", "bool"]
    return {
        **{kind: (torch.randn(3, 2) * 3).to(getattr(torch, kind)) for kind in kinds},
        "transposed": base.T,
        "sliced": base[1:3, ::2],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "expanded": torch.randn(1, 5).expand(7, 5),
        "views": [shared[2:5], shared[4:], shared.view(2, 5).T],
        "flags": torch.tensor([True, False, True])[1:],
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
        "ordered": collections.OrderedDict(a=torch.ones(2), b=(1, 2.5, None, True, "text", b"bytes", 2**40)),
        "state": torch.nn.BatchNorm2d(3).state_dict(),
        "numpy": np.arange(6, dtype=">i4").reshape(2, 3).T,
        "number": np.float64(1.25),
        3: {"set": {1, 2}, "dtype": torch.float16, "device": torch.device("cuda:1"), "size": base.shape},
    }


def same(ours, theirs, torch):
    if isinstance(theirs, torch.Tensor):
        expected = theirs.detach()
        bfloat16 = expected.dtype == torch.bfloat16
        assert ours.dtype == (ml_dtypes.bfloat16 if bfloat16 else expected.numpy().dtype)
        np.testing.assert_array_equal(
            np.float32(ours) if bfloat16 else ours, (expected.float() if bfloat16 else expected).numpy()
        )
        assert not ours.flags.writeable
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key], torch)
    elif isinstance(theirs, list | tuple):
        assert type(ours) is (tuple if isinstance(theirs, tuple) else list)
        for a, b in zip(ours, theirs, strict=True):
            same(a, b, torch)
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_array_equal(ours, theirs)
    else:
        assert ours == (str(theirs) if isinstance(theirs, torch.dtype | torch.device) else theirs)


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}, {"pickle_protocol": 4}], ids=str)
def test_what_torch_saves_is_read_as_torch_reads_it(tmp_path, options):
    torch = pytest.importorskip("torch")
    torch.save(contents(torch), tmp_path / "file.pt", **options)
    same(read_torch(tmp_path / "file.pt"), torch.load(tmp_path / "file.pt", weights_only=False), torch)


def test_recorded_networks(shared):
    torch = pytest.importorskip("torch")
    paths = sorted((shared / "parity" / "ckpt").glob("*.pt"))
    assert paths
    for path in paths:
        same(read_torch(path), torch.load(path, weights_only=True), torch)


# What NVIDIA pickled


@pytest.fixture
def persistence(monkeypatch):
    """Stand-ins for NVIDIA's modules while a file is written; a network's class, and the list of executed sources."""
    torch = pytest.importorskip("torch")
    module, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    executed = []

    def _reconstruct_persistent_obj(meta):
        executed.append(meta["module_src"])

    class EasyDict(dict):
        pass

    _reconstruct_persistent_obj.__module__, _reconstruct_persistent_obj.__qualname__ = (
        module.__name__,
        "_reconstruct_persistent_obj",
    )
    EasyDict.__module__, EasyDict.__qualname__ = util.__name__, "EasyDict"
    module._reconstruct_persistent_obj, util.EasyDict = _reconstruct_persistent_obj, EasyDict
    for name, value in {"torch_utils": types.ModuleType("torch_utils"), module.__name__: module}.items():
        monkeypatch.setitem(sys.modules, name, value)
    for name, value in {"dnnlib": types.ModuleType("dnnlib"), util.__name__: util}.items():
        monkeypatch.setitem(sys.modules, name, value)

    class Persistent(torch.nn.Module):
        def __reduce__(self):
            meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": type(self).__name__}
            return _reconstruct_persistent_obj, (meta | {"state": dict(self.__dict__)},)

    class Block(Persistent):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(4, 3, 1, 1).half())
            self.bias = None
            self.register_buffer("resample_filter", torch.ones(2, 2))
            self.register_buffer("scratch", torch.ones(2), persistent=False)

    class EDMPrecond(Persistent):
        def __init__(self, **kwargs):
            super().__init__()
            self._init_args, self._init_kwargs = (), EasyDict(kwargs)
            self.device, self.dtype, self.sigmas = torch.device("cpu"), torch.float32, np.linspace(0, 1, 3)
            self.enc = torch.nn.ModuleDict({"8x8_conv": Block(), "8x8_block0": Block()})
            self.head = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.SiLU(), torch.nn.GroupNorm(1, 2))
            self.tied = self.enc["8x8_conv"]
            self.register_parameter("gain", torch.nn.Parameter(torch.tensor(2.0)))

    return types.SimpleNamespace(network=EDMPrecond, easy=EasyDict, executed=executed, torch=torch)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_networks_are_records(tmp_path, persistence, monkeypatch, protocol):
    network = persistence.network(img_resolution=8, model_type="SongUNet", channel_mult=[1, 2]).eval()
    content = persistence.easy(
        ema=network, dataset_kwargs=persistence.easy(path="data.zip", use_labels=True), loss_fn=None
    )
    (tmp_path / "network.pkl").write_bytes(pickle.dumps(content, protocol))
    for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"):
        monkeypatch.delitem(sys.modules, name)
    read = read_persistent(tmp_path / "network.pkl")
    assert read["dataset_kwargs"] == {"path": "data.zip", "use_labels": True}
    record = read["ema"]
    assert isinstance(record, PickledObject)
    assert (record.class_name, record.state["training"]) == ("EDMPrecond", False)
    assert record.state["_modules"]["enc"].class_name == "ModuleDict"
    assert init_arguments(record) == {"img_resolution": 8, "model_type": "SongUNet", "channel_mult": [1, 2]}
    assert not persistence.executed
    same(state_dict(record), dict(network.state_dict()), persistence.torch)
    assert non_finite(state_dict(record)) == []


def test_arguments_and_parameters_that_are_not_there_are_named():
    plain = PickledObject(
        "Plain", {"_parameters": {}, "_buffers": {}, "_modules": {"loss": PickledObject("EDMLoss", {"P_mean": 1})}}
    )
    with pytest.raises(ValueError, match=r"loss\. is a EDMLoss, not a network"):
        state_dict(plain)
    with pytest.raises(ValueError, match="Plain does not say"):
        init_arguments(plain)
    assert init_arguments(PickledObject("A", {"_init_args": (1,), "_init_kwargs": {"b": 2}})) == {
        "_init_args": [1],
        "b": 2,
    }
    assert non_finite({"a": np.ones(2), "b": np.array([1, np.nan]), "c": np.array([1])}) == ["b"]
    doubled = PickledObject("M", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    for _ in range(40):
        doubled = PickledObject("M", {**doubled.state, "_modules": {"a": doubled, "b": doubled}})
    endless = PickledObject("M", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    endless.state["_modules"]["self"] = endless
    for network in (doubled, endless):
        with pytest.raises(ValueError, match="more than 100000 entries or 64 levels"):
            state_dict(network)
