"""PyTorch's tensors in pickles, as NumPy arrays."""

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from cmjax.system.pickles import VALUES, is_natural, of_type
from cmjax.system.unpickle import Global, Unbuilt

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
    """Holds the memory of tensors: `raw` are the bytes of `count` elements."""

    dtype: np.dtype
    count: int
    raw: Any


def storage_of(identity: Any, length: int) -> tuple[str, np.dtype, int]:
    """Reads a persistent id of torch.save's: the storage's key, what it holds, and its number of elements.

    Raises: ValueError where it is of another form than `("storage", class, key, device, count)`, `length` long.
    """
    if type(identity) is not tuple or len(identity) != length or identity[0] != "storage":
        raise ValueError("it refers to something else than a storage of tensors")
    kind, key, _, count = identity[1:5]
    if not isinstance(kind, StorageType) or type(key) is not str or not is_natural(count):
        raise ValueError("it has a storage that is not understood")
    if identity[5:] not in ((), (None,)):
        raise ValueError("it has views of storages, which PyTorch before 0.4 wrote and this reader does not know")
    return key, kind.dtype, count


def tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> np.ndarray:
    """Makes a read-only view of a storage, or an array of its own where it has no elements.

    Raises: ValueError where it reaches outside of its storage, or repeats it beyond `EXPANDED` elements.
    """
    if not isinstance(storage, Storage):
        raise ValueError("it has a tensor without a storage")
    if type(size) is not tuple or type(stride) is not tuple or not all(map(is_natural, (offset, *size, *stride))):
        raise ValueError("it has a tensor whose shape or strides are not numbers")
    if len(size) != len(stride) or len(size) > 32:
        raise ValueError(f"it has a tensor of {len(size)} axes and {len(stride)} strides")
    if any(rest[2:]):
        raise ValueError("it has a conjugate or negated view of a tensor, which this reader does not know")
    elements = math.prod(size)
    # the place of the last element: a view beyond its storage would read other memory
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


def _parameter(data: Any = None, *rest: Any) -> Any:
    if data is None:
        return Unbuilt(lambda state: _tensor_in(*of_type(state, tuple)))  # as PyTorch before 0.2 wrote them
    return _tensor_in(data)


def _tensor_in(data: Any, *_: Any) -> np.ndarray:
    if type(data) is not np.ndarray:
        raise ValueError("it has a parameter that is not a tensor")
    return data


def _old_tensor() -> Unbuilt:
    return Unbuilt(lambda state: tensor(*of_type(state, tuple)))


def _device(kind: Any, index: Any = None) -> str:
    return of_type(kind, str) if index is None else f"{of_type(kind, str)}:{of_type(index, int)}"


_CALLS = {
    ("torch", "Size"): lambda items=(): tuple(of_type(items, tuple, list)),
    ("torch", "device"): _device,
    ("torch._utils", "_rebuild_tensor"): tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.nn.parameter", "Parameter"): _parameter,
    ("torch.nn.parameter", "Buffer"): _parameter,
    **{("torch", f"{name}Tensor"): _old_tensor for name in DTYPES},
}

TENSORS: dict[tuple[str, str], Any] = {
    **VALUES,
    **{(module, name): Global(f"{module}.{name}", call) for (module, name), call in _CALLS.items()},
    **{("torch", f"{name}Storage"): StorageType(f"torch.{name}Storage", None, d) for name, d in DTYPES.items()},
    **{("torch", str(d)): f"torch.{d}" for d in DTYPES.values()},
}
"""(module, name) in a pickle -> what it stands for. A dtype of PyTorch's becomes its name."""
