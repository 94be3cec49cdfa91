"""What PyTorch and NumPy put into pickles, as NumPy arrays: a table of names that make values and do nothing else."""

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np

from cmjax.interop.unpickle import Global, Unbuilt, check_key

DTYPES = {
    "Half": np.dtype("<f2"),
    "Float": np.dtype("<f4"),
    "Double": np.dtype("<f8"),
    "BFloat16": np.dtype(ml_dtypes.bfloat16),
    "Char": np.dtype("i1"),
    "Short": np.dtype("<i2"),
    "Int": np.dtype("<i4"),
    "Long": np.dtype("<i8"),
    "Byte": np.dtype("u1"),
    "Bool": np.dtype("?"),
}
"""PyTorch's names of storages and old tensor classes -> what they hold."""

EXPANDED = 2**20
"""An expanded tensor repeats its storage by strides of 0; it may have this many elements without holding them."""


@dataclass(frozen=True)
class StorageType(Global):
    """A storage's class, which says what the storage holds."""

    dtype: np.dtype = DTYPES["Float"]


@dataclass(frozen=True, eq=False)
class Storage:
    """The memory of tensors: `raw` are the bytes of `count` elements."""

    dtype: np.dtype
    count: int
    raw: Any


def storage_of(identity: Any, length: int) -> tuple[str, np.dtype, int]:
    """A persistent id of torch.save's -> the storage's key, what it holds, and its number of elements.

    Raises: ValueError where it is of another form than `("storage", class, key, device, count)`, `length` long.
    """
    if type(identity) is not tuple or len(identity) != length or identity[0] != "storage":
        raise ValueError("it refers to something else than a storage of tensors")
    kind, key, _, count = identity[1:5]
    if not isinstance(kind, StorageType) or type(key) is not str or not _natural(count):
        raise ValueError("it has a storage that is not understood")
    if identity[5:] not in ((), (None,)):
        raise ValueError("it has views of storages, which PyTorch before 0.4 wrote and this reader does not know")
    return key, kind.dtype, count


def tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """A read-only view of a storage, or an array of its own where it has no elements.

    Raises: ValueError where it reaches outside of its storage, or repeats it beyond `EXPANDED` elements.
    """
    if not isinstance(storage, Storage):
        raise ValueError("it has a tensor without a storage")
    if type(size) is not tuple or type(stride) is not tuple or not all(map(_natural, (offset, *size, *stride))):
        raise ValueError("it has a tensor whose shape or strides are not numbers")
    if len(size) != len(stride) or len(size) > 32:
        raise ValueError(f"it has a tensor of {len(size)} axes and {len(stride)} strides")
    if any(rest[2:]):
        raise ValueError("it has a conjugate or negated view of a tensor, which this reader does not know")
    elements = math.prod(size)
    if elements and offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) >= storage.count:
        raise ValueError("it has a tensor that reaches outside of its storage")
    if elements > max(storage.count, EXPANDED):
        raise ValueError("it has a tensor of far more elements than its storage")
    width = storage.dtype.itemsize
    # The stride of an axis of length 1 is never taken, and may be anything.
    steps = [step * width if n > 1 else 0 for n, step in zip(size, stride, strict=True)]
    if elements:
        array = np.ndarray(size, storage.dtype, storage.raw, offset * width, steps)
    else:
        array = np.zeros(size, storage.dtype)
    array.flags.writeable = False
    return array


def booleans(raw: Any) -> np.ndarray:
    """Bytes as those of booleans: NumPy takes 0 and 1 alone for granted."""
    return (np.frombuffer(raw, np.uint8) != 0).view(np.uint8)


def _parameter(data: Any = None, *rest: Any) -> Any:
    if data is None:
        return Unbuilt(lambda state: _tensor_in(*_of(state, tuple)))  # as PyTorch before 0.2 wrote them
    return _tensor_in(data)


def _tensor_in(data: Any, *_: Any) -> np.ndarray:
    if type(data) is not np.ndarray:
        raise ValueError("it has a parameter that is not a tensor")
    return data


def _old_tensor() -> Unbuilt:
    return Unbuilt(lambda state: tensor(*_of(state, tuple)))


def _natural(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    return {check_key(key): value for key, value in pairs}


def _set(items: Any = ()) -> set[Any]:
    return set(map(check_key, _of(items, list, tuple)))


def _bytes(data: Any = b"", encoding: Any = "latin1") -> bytes:
    """Protocols below 3 have no bytes and write them as text; never from a number, which would be a length."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("it has bytes that are not understood")
    data = _of(data, bytes, str, tuple)
    return data if isinstance(data, bytes) else data.encode("latin1") if isinstance(data, str) else bytes(data)


def _device(kind: Any, index: Any = None) -> str:
    return _of(kind, str) if index is None else f"{_of(kind, str)}:{_of(index, int)}"


def _of(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise ValueError(f"it has a {type(value).__name__} where a {kinds[0].__name__} belongs")
    return value


def _numpy_dtype(code: Any, *_: Any) -> Unbuilt:
    if not re.fullmatch(r"[<>|=]?([iu][1248]|f[248]|c8|c16|b1)", _of(code, str)):
        raise ValueError("it has a NumPy array of something else than numbers")

    def build(state):
        if any(field is not None for field in _of(state, tuple)[2:5]) or state[1] not in ("<", ">", "|", "="):
            raise ValueError("it has a NumPy array of something else than numbers")
        return np.dtype(code).newbyteorder(state[1])

    return Unbuilt(build)


def _numpy_array(raw: Any, dtype: Any, shape: Any, order: Literal["C", "F"]) -> np.ndarray:
    if not isinstance(dtype, np.dtype) or not all(map(_natural, _of(shape, tuple))) or len(shape) > 32:
        raise ValueError("it has a NumPy array whose shape is not understood")
    if len(_of(raw, bytes)) != math.prod(shape) * dtype.itemsize:
        raise ValueError("it has a NumPy array whose shape does not fit its data")
    array = np.ndarray(shape, dtype, (booleans(raw) if dtype.kind == "b" else raw) if raw else None, order=order)
    array.flags.writeable = False
    return array


def _numpy_reconstruct(kind: Any, *_: Any) -> Unbuilt:
    if kind is not NDARRAY:
        raise ValueError("it has a NumPy array of a class of its own")
    return Unbuilt(lambda state: _numpy_array(state[4], state[2], state[1], "F" if state[3] else "C"))


def _numpy_scalar(dtype: Any, raw: Any) -> Any:
    return _numpy_array(raw, dtype, (), "C")[()]


def _numpy_from_buffer(raw: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    return _numpy_array(raw, dtype, shape, "F" if order == "F" else "C")


NDARRAY = Global("numpy.ndarray")
_CALLS = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("dnnlib.util", "EasyDict"): lambda: {},
    ("_codecs", "encode"): _bytes,
    ("torch", "Size"): lambda items=(): tuple(_of(items, tuple, list)),
    ("torch", "device"): _device,
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch.nn.parameter", "Buffer"): _parameter,
    ("numpy", "dtype"): _numpy_dtype,
}
for _builtins in ("builtins", "__builtin__"):
    _CALLS |= {(_builtins, "set"): _set, (_builtins, "frozenset"): lambda items=(): frozenset(_set(items))}
    _CALLS |= {(_builtins, "bytes"): _bytes, (_builtins, "bytearray"): _bytes}
for _core in ("numpy.core", "numpy._core"):
    _CALLS[f"{_core}.multiarray", "_reconstruct"] = _numpy_reconstruct
    _CALLS[f"{_core}.multiarray", "scalar"] = _numpy_scalar
    _CALLS[f"{_core}.numeric", "_frombuffer"] = _numpy_from_buffer
for _name in DTYPES:
    _CALLS["torch", f"{_name}Tensor"] = _old_tensor

VALUES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): NDARRAY,
    **{(module, name): Global(f"{module}.{name}", call) for (module, name), call in _CALLS.items()},
    **{("torch", f"{name}Storage"): StorageType(f"torch.{name}Storage", None, d) for name, d in DTYPES.items()},
    **{("torch", str(d)): f"torch.{d}" for d in DTYPES.values()},
}
"""(module, name) in a pickle -> what it stands for. A dtype of PyTorch's becomes its name."""
