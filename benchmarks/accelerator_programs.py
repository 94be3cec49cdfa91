"""What `accelerator.py` measures: networks, methods, and their train steps as the trainer compiles them."""

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax import Model
from cmjax.core import curricula, distances, losses, pairs, paths, preconditioning, times, weightings
from cmjax.core.model import BoundModel
from cmjax.core.sampling import sample_fn
from cmjax.data.batches import preprocess
from cmjax.nets.adapter import as_net, init_params, parameter_shapes
from cmjax.nets.adm import ADM
from cmjax.nets.dit import SIZES, DiT
from cmjax.nets.edm2 import EDM2
from cmjax.nets.magnitude import normalize_weights
from cmjax.nets.unet import UNet
from cmjax.system.mesh import make_mesh
from cmjax.system.program import jaxpr_flops
from cmjax.training.average_rates import ema
from cmjax.training.method import Method
from cmjax.training.optimizer import make_optimizer
from cmjax.training.step import CompiledStep, make_method_step, prepare_inputs, state_shapes, trace_train_step

SIGMA_DATA = 0.5
NETS: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "ddpmpp": (UNet(), (32, 32, 3)),
    "adm": (ADM(), (64, 64, 3)),
    "edm2": (EDM2(), (64, 64, 3)),
    "dit_b": (DiT(), (32, 32, 4)),
    "dit_xl": (DiT(**SIZES["XL"]), (32, 32, 4)),
}
"""Module and sample; four channels are latents."""
TOYS: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "ddpmpp": (UNet(channels=8, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,)), (8, 8, 3)),
    "adm": (ADM(channels=16, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,), head_channels=16), (8, 8, 3)),
    "edm2": (EDM2(channels=16, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,), head_channels=16), (8, 8, 3)),
    "dit_b": (DiT(width=32, depth=1, heads=2), (8, 8, 4)),
    "dit_xl": (DiT(width=48, depth=2, heads=2), (8, 8, 4)),
}


@dataclass(frozen=True)
class Case:
    """One program. method: "forward", "sample" or one of `METHODS`. changes: of the module's fields.

    options: of XLA, for this program. nfe: evaluations of "sample". rng: of the random bits.
    steps: training steps in one dispatch. donate: the state's memory is used again.
    """

    net: str
    method: str
    batch: int
    dtype: str = "bfloat16"
    toy: bool = False
    label: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    nfe: int = 1
    rng: str = "threefry2x32"
    steps: int = 1
    donate: bool = True

    @property
    def shape(self) -> tuple[int, int, int]:
        return (TOYS if self.toy else NETS)[self.net][1]

    @property
    def module(self) -> Any:
        module = (TOYS if self.toy else NETS)[self.net][0]
        changes: dict[str, Any] = {"dtype": jnp.dtype(self.dtype), **self.changes}
        if self.method == "meanflow":
            changes["two_times"] = True
        if self.method in ("scm", "meanflow") and hasattr(module, "time_scale"):
            changes["time_scale"] = 1.0
        return module.clone(**changes)


def _denoising(net: Any) -> tuple[Any, Any, Any]:
    model = Model(net, paths.ve, partial(preconditioning.edm, sigma_data=SIGMA_DATA))
    loss = partial(losses.denoising, weight=partial(weightings.karras, sigma_data=SIGMA_DATA))
    return model, loss, pairs.single(times.lognormal(mean=-1.2, std=1.2, path=paths.ve))


def _ect(net: Any) -> tuple[Any, Any, Any]:
    model = Model(net, paths.ve, partial(preconditioning.edm, sigma_data=SIGMA_DATA))
    loss = partial(losses.ect, distance=partial(distances.pseudo_huber, c=0.0), weight=weightings.inverse_gap)
    gap = pairs.shrinking_gap(q=256, stage=curricula.equal_stages(count=1, total_steps=1000))
    return model, loss, pairs.ratio_pairs(times.lognormal(mean=-1.1, std=2.0, path=paths.ve), gap)


def _scm(net: Any) -> tuple[Any, Any, Any]:
    path = paths.trig(sigma_data=SIGMA_DATA)
    model = Model(net, path, partial(preconditioning.trig, sigma_data=SIGMA_DATA))
    return model, losses.scm_ct, pairs.single(times.lognormal(mean=-1.0, std=1.4, path=path))


def _meanflow(net: Any) -> tuple[Any, Any, Any]:
    model = Model(net, paths.linear, preconditioning.linear_flow)
    loss = partial(losses.meanflow, distance=partial(distances.adaptive, p=0.75, c=1e-3))
    drawn = times.logit_normal(mean=-0.6, std=1.6), times.logit_normal(mean=-4.0, std=1.6)
    return model, loss, pairs.capped_pairs(*drawn, apart=0.75)


METHODS: dict[str, Callable[[Any], tuple[Any, Any, Any]]] = {
    "denoising": _denoising,
    "ect": _ect,
    "scm": _scm,
    "meanflow": _meanflow,
}
"""net -> model, loss and times."""


def _optimizer(case: Case) -> optax.GradientTransformation:
    """RAdam and one average of the parameters."""
    return make_optimizer(
        optax.scale_by_radam(), learning_rate=lambda step: 1e-4, clip_norm=0.0, weight_decay=0.0,
        average_rates={"ema0": ema(rate=0.9999, batch_size=case.batch)},
        projection=normalize_weights if case.net == "edm2" else None,
    )  # fmt: skip


def params_of(case: Case) -> Any:
    """First parameters, on the host. Noise is added, so that no layer is zero: products of zeros are faster."""
    rng = np.random.default_rng(0)
    noise = 0.02 * rng.standard_normal(1 << 20, np.float32)
    params = init_params(case.module, jax.random.key(0), case.shape)
    return jax.tree.map(lambda leaf: leaf + np.resize(noise, leaf.shape), params)


def image_batch(case: Case, copies: int = 1) -> np.ndarray:
    rng, shape = np.random.default_rng(1), (copies * case.batch, *case.shape)
    return rng.integers(0, 256, shape, np.uint8) if shape[-1] == 3 else rng.standard_normal(shape, np.float32)


@dataclass
class Program:
    """A compiled program and its arguments. flops: of one call. images: that one call processes."""

    case: Case
    executable: Any
    flops: float
    images: int
    seconds: dict[str, float]
    memory_gb: float
    args: tuple[Any, ...] | None = None

    def prepare(self) -> None:
        """Put the arguments on the device."""
        self.args = _arguments(self.case)

    def release(self) -> None:
        """Leave the device's memory to the next program."""
        for leaf in jax.tree.leaves(self.args):
            if isinstance(leaf, jax.Array) and not leaf.is_deleted():
                leaf.delete()
        self.args = None

    def __call__(self) -> Any:
        assert self.args is not None
        out = self.executable(*self.args)
        if self.case.method in METHODS:
            state, metrics = out
            self.args = (state, *self.args[1:])
            return metrics["loss"]
        return out

    def compiled_step(self) -> CompiledStep:
        return CompiledStep(self.executable, make_mesh(), flops=self.flops)


def _arguments(case: Case) -> tuple[Any, ...]:
    params, device = params_of(case), jax.devices()[0]
    if case.method == "forward":
        x = np.random.default_rng(1).standard_normal((case.batch, *case.shape), np.float32)
        return jax.device_put((params, x, np.linspace(-1, 1, case.batch, dtype=np.float32)), device)
    if case.method == "sample":
        levels = np.geomspace(80.0, 0.5, case.nfe).astype(np.float32)
        return jax.device_put((params, jax.random.key(1), levels), device)
    shapes = state_shapes(params, _optimizer(case))
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    state = state.replace(params=params, finite=np.ones((), bool))
    image = image_batch(case)
    if case.steps > 1:
        image = np.broadcast_to(image, (case.steps, *image.shape))
    votes = () if _own_jit(case) else (np.zeros(make_mesh().size, np.int32),)
    return jax.device_put((state, {}, {"image": image}, *votes), device)


def _own_jit(case: Case) -> bool:
    """Whether the train step is compiled here, in a form that the trainer does not have."""
    return case.steps > 1 or not case.donate


def seconds_of(call: Callable[[], Any], *, at_least: float = 0.4, rounds: int = 3) -> float:
    """Seconds of one call: the median over rounds of so many calls in a row that they take `at_least` seconds."""
    for _ in range(3):  # the first loads kernels, the second may record them
        start = time.perf_counter()
        jax.block_until_ready(call())
        print(f"a call of {time.perf_counter() - start:.2f} s", file=sys.stderr, flush=True)
    calls = max(1, round(at_least / (time.perf_counter() - start)))
    measured = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(calls):
            out = call()
        jax.block_until_ready(out)
        measured.append((time.perf_counter() - start) / calls)
    return statistics.median(measured)


def lower(case: Case) -> Callable[[], Program]:
    """Trace and lower a program; the function that is returned compiles it."""
    start = time.perf_counter()
    with jax.default_prng_impl(case.rng):
        traced = _trace(case)
    seconds = {"trace": time.perf_counter() - start}
    lowered = traced.lower()
    seconds["lower"] = time.perf_counter() - start - seconds["trace"]

    def compile_it() -> Program:
        start = time.perf_counter()
        executable = lowered.compile(compiler_options=dict(case.options))
        compiled = {**seconds, "compile": time.perf_counter() - start}
        plan = executable.memory_analysis()
        total = plan.temp_size_in_bytes + plan.argument_size_in_bytes + plan.output_size_in_bytes
        memory = (total - plan.alias_size_in_bytes) / 1e9
        work = jaxpr_flops(traced.jaxpr.jaxpr)
        return Program(case, executable, work, case.batch * case.steps, compiled, memory)

    return compile_it


def _trace(case: Case) -> jax.stages.Traced:
    net, shapes = as_net(case.module), parameter_shapes(case.module, case.shape)
    x, c_noise = (jax.ShapeDtypeStruct(s, jnp.float32) for s in ((case.batch, *case.shape), (case.batch,)))
    if case.method == "forward":
        return jax.jit(net).trace(shapes, x, c_noise)
    if case.method == "sample":
        return _trace_sampler(case, net, shapes)
    optimizer = _optimizer(case)
    model, loss, draw = METHODS[case.method](net)
    prepare = partial(prepare_inputs, preprocess=partial(preprocess, horizontal_flip=False))
    step = make_method_step(model, Method(loss, draw), optimizer, prepare=prepare, seed=0)
    state = state_shapes(shapes, optimizer)
    image = jax.ShapeDtypeStruct(x.shape, jnp.uint8 if case.shape[-1] == 3 else jnp.float32)
    if not _own_jit(case):
        return trace_train_step(step, state, {}, {"image": image}, make_mesh())
    if case.steps == 1:
        return jax.jit(step).trace(state, {}, {"image": image})

    def several(state, frozen, batches):
        state, metrics = jax.lax.scan(lambda state, batch: step(state, frozen, batch), state, batches)
        return state, jax.tree.map(lambda leaf: leaf[-1], metrics)

    batches = {"image": jax.ShapeDtypeStruct((case.steps, *image.shape), image.dtype)}
    return jax.jit(several, donate_argnums=0 if case.donate else ()).trace(state, {}, batches)


def _trace_sampler(case: Case, net: Any, shapes: Any) -> jax.stages.Traced:
    model = _ect(net)[0]

    def sample(params, key, levels):
        flow_map = BoundModel(params, model, case.shape, t_min=0.002, t_max=80.0, kind="consistency")
        return sample_fn(flow_map, key, (case.batch, *case.shape), times=levels)

    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.jit(sample).trace(shapes, key, jax.ShapeDtypeStruct((case.nfe,), jnp.float32))


def with_toys(cases: list[Case], toy: bool) -> list[Case]:
    """The same, of small networks and batches where `toy`."""
    return [replace(case, toy=True, batch=min(case.batch, 4)) for case in cases] if toy else cases
