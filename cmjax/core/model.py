"""The model: a network with its path and its scalings. It is the first argument of every loss."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cmjax import checks
from cmjax.core.paths import Path, as_time, check_is_path, per_sample, ve
from cmjax.core.preconditioning import Scalings, combine
from cmjax.core.typing import Net, Params, PerSample, Samples, Time


@dataclass(frozen=True)
class Model:
    """The function model(params, x, t) = c_skip·x + c_out·F(c_in·x, c_noise), an estimate of the clean data.

    It is a denoiser D with the scalings `edm`, and a consistency function f with `consistency`. With scalings of two
    times, such as `linear_flow`, it is a flow map Φ: model(params, x, t, s) is the state at time s.

    Args: net: F, any function that follows `typing.Net`. path: what the times mean, such as `paths.ve`.
          scalings: t (b,) -> `Scalings`, for example `partial(preconditioning.edm, sigma_data=0.5)`; for a flow map
          (t, s) -> `Scalings`.

    >>> from functools import partial
    >>> import cmjax, jax.numpy as jnp
    >>> scalings = partial(cmjax.preconditioning.edm, sigma_data=0.5)
    >>> model = Model(lambda params, x, c_noise, key=None: params * x, cmjax.paths.ve, scalings)
    >>> model(1.0, jnp.ones((2, 8, 8, 3)), 0.5).shape
    (2, 8, 8, 3)
    """

    net: Net = field(repr=False)
    path: Path = field(repr=False)
    scalings: Callable[..., Scalings]

    def __post_init__(self) -> None:
        check_is_path(self.path)

    def __call__(
        self, params: Params, x: Samples, t: Time, s: Time | None = None, *, key: Any = None, **conditions: Any
    ) -> Samples:
        """The model's output (b, ...), of the dtype of x (b, ...). t, s: scalars or (b,). key: for dropout masks."""
        c = self._scalings(x, t, s)
        out = call_net(self.net, params, x, c, key=key, **conditions)
        return combine(c, x, out)

    def output(
        self, params: Params, x: Samples, t: Time, s: Time | None = None, *, key: Any = None, **conditions: Any
    ) -> Samples:
        """The network's output F, (b, ...); with the scalings `linear_flow` it is the mean velocity between s and t."""
        return call_net(self.net, params, x, self._scalings(x, t, s), key=key, **conditions)

    def weighted_output(
        self, params: Params, x: Samples, t: Time, s: Time | None = None, *, key: Any = None, **conditions: Any
    ) -> tuple[Samples, PerSample]:
        """F (b, ...) and the output of the network's weight head (b,).

        Raises: TypeError where the network has no such head.
        """
        c = self._scalings(x, t, s)
        outputs = call_net(self.net, params, x, c, key=key, return_weight=True, **conditions)
        return _pair(outputs, "weight", "(b,)")

    def velocity_output(
        self, params: Params, x: Samples, t: Time, s: Time, *, key: Any = None, **conditions: Any
    ) -> tuple[Samples, Samples]:
        """F (b, ...) and the output of the network's velocity head (b, ...), the velocity at t.

        Raises: TypeError where the network has no such head.
        """
        c = self._scalings(x, t, s)
        outputs = call_net(self.net, params, x, c, key=key, return_velocity=True, **conditions)
        return _pair(outputs, "velocity", "that of F")

    def _scalings(self, x: Samples, t: Time, s: Time | None) -> Scalings:
        checks.floating("x", x)
        times = _times(x, t, s)
        # a model of one time must not be called with two, nor the reverse; the message is ours, not that of the lambda
        _check_takes(self.scalings, f"scalings({'t' if s is None else 't, s'})", times, {})
        return self.scalings(*times)


Kind = Literal["denoiser", "consistency", "flow_map"]
"""The function that a model is: D(x, t), f(x, t) or Φ(x, t, s)."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["function", "shape", "t_min", "t_max", "kind", "path", "unlabelled"],
)
@dataclass(frozen=True)
class BoundModel:
    """Binds a trained model to its parameters: `bound(x, t)` estimates the clean data.

    It is D(x, t) of the kind "denoiser", f(x, t) of the kind "consistency", and Φ(x, t, s), s = t_min by default, of
    the kind "flow_map". It is a pytree whose leaves are the parameters, so a jitted function may close over it or take
    it as an argument.

    Args: function: (params, x, t), or (params, x, t, s) of a flow map, such as a `Model`. shape: of one sample,
          (h, w, c). t_min, t_max: the times that it was trained for, on `path`.
          unlabelled: False where the network never learned to go without a label.
    """

    params: Params
    function: Callable[..., Array] = field(repr=False)
    shape: tuple[int, ...]
    t_min: float
    t_max: float
    kind: Kind
    path: Path = ve
    unlabelled: bool = True

    def __call__(self, x: Array, t: Time, s: Time | None = None, **conditions: Any) -> Array:
        """The estimate (b, h, w, c). x: (b, h, w, c). t, s: scalars or (b,). `label`: (b,), if the network has classes.

        Raises: TypeError or ValueError where x is no image of `shape`, t lies outside [t_min, t_max], or s is given to
                a model that is not a flow map.
        """
        self._check(x, t, s, conditions.get("label"))
        if self.kind == "flow_map":
            return self.function(self.params, x, t, self.t_min if s is None else s, **conditions)
        if s is not None:
            raise ValueError(f"s was given to a {self.kind}, whose end is t_min; flow maps alone take it")
        return self.function(self.params, x, t, **conditions)

    def _check(self, x: Array, t: Time, s: Time | None, label: Any) -> None:
        checks.floating("x", x)
        if x.ndim != 1 + len(self.shape) or x.shape[-1] != self.shape[-1]:
            wanted = ", ".join(map(str, ("b", *self.shape)))
            raise ValueError(f"x must be of the shape ({wanted}), got {jnp.shape(x)}")
        for name, time in (("t", t), ("s", s)):
            if time is not None:
                checks.per_sample_shape(name, time, x.shape[0])
                checks.within(name, time, self.t_min if name == "t" else 0.0, self.t_max)

        labels = None if self.unlabelled or label is None else checks.known(label)
        if labels is not None and np.any(labels < 0):
            raise ValueError(
                "label must be a class, got -1: the model never learned to go without (data.label_dropout=0)"
            )

    def __repr__(self) -> str:
        parameters = sum(getattr(leaf, "size", 0) for leaf in jax.tree.leaves(self.params))
        return (
            f"BoundModel(kind={self.kind!r}, shape={self.shape}, times=[{self.t_min:g}, {self.t_max:g}], "
            f"path={self.path!r}, parameters={parameters:,})"
        )


def _pair(outputs: Any, head: str, shape: str) -> tuple[Any, Any]:
    if not (isinstance(outputs, tuple) and len(outputs) == 2):
        raise TypeError(
            f"this loss needs a network with a {head} head: net(..., return_{head}=True) must return (F, {head}), "
            f"{head} of shape {shape}; it returned {type(outputs).__name__}"
        )
    return outputs


def check_path(model: Model, teacher: Any) -> None:
    """Raise ValueError where the teacher has a path, as a `BoundModel` does, that is not the model's."""
    if getattr(teacher, "path", model.path) != model.path:
        raise ValueError(
            "the teacher is of another path than the model: carry it there, "
            "partial(paths.carry(teacher.function, teacher.path, model.path), teacher.params)"
        )


def call_net(net: Net, params: Params, x: Samples, scalings: Scalings, **inputs: Any) -> Any:
    """The network's output F(c_in·x, c_noise). F also takes the second time, where the scalings have one, and `inputs`.

    Raises: TypeError that says which argument does not fit the network, ValueError where its output has another shape
            than x.
    """
    if inputs.get("key") is not None:
        inputs["key"] = checks.as_key(inputs["key"])
    if scalings.c_noise_s is not None:
        inputs["c_noise_s"] = scalings.c_noise_s
    arguments = (params, per_sample(scalings.c_in, x) * x, scalings.c_noise)
    named = ", ".join(("params", "x", "c_noise", *(f"{name}=…" for name in inputs)))
    _check_takes(net, f"net({named})", arguments, inputs)
    outputs = net(*arguments, **inputs)
    out = outputs[0] if isinstance(outputs, tuple) else outputs
    checks.same_shape("the network's output", jnp.shape(out), x.shape, "x")
    return outputs


def _check_takes(function: Callable, call: str, arguments: tuple[Any, ...], inputs: dict[str, Any]) -> None:
    """Raise TypeError where the function does not take these arguments; `call` shows them."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a callable whose signature cannot be read
        return
    try:
        # bound, not called: a TypeError of the call could come from inside the network
        signature.bind(*arguments, **inputs)
    except TypeError as error:
        raise TypeError(f"the model calls {call}, which the function does not take: {error}") from error


def _times(x: Array, t: Time, s: Time | None) -> tuple[Array, ...]:
    times = {name: as_time(time, x) for name, time in (("t", t), ("s", s)) if time is not None}
    for name, time in times.items():
        checks.per_sample_shape(name, time, x.shape[0])
    # networks and scalings always get (b,), so they need no case for a scalar time
    return tuple(jnp.broadcast_to(time, x.shape[:1]) for time in times.values())
