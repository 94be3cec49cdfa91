"""How long a training step takes, beside what the machine can do: JSON on standard output.

    python benchmarks/step_time.py                                      # all sections
    python benchmarks/step_time.py --section unet --section ct_step     # some of them

unet           value_and_grad and update of DDPM++, as a rate over the float32 matrix product's: at least 0.6 on a CPU
adm            the same of ADM
ct_step        a CT train step over (a denoising gradient + a forward pass) of the same net and batch: at most 1.10
ct_step_mlp    the same of the digits' MLP, where the optimizer and the noise weigh more; for orientation
loop           the throughput of the whole loop over that of the bare jitted step: at least 0.97
compilations   how often a run whose N(k) grows compiles the train step: once
sample_fn      sampling in one evaluation over the jitted call of the preconditioned network: at most 1.03

Rates are of the matrix products and convolutions that the traced program holds, counted from its jaxpr. What a ratio
compares is measured in turns within one process, so that it holds on a shared machine too: each figure is the median
of the rounds, of wall-clock time and of processor time of all threads.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax import Model
from cmjax.core import curricula, distances, losses, pairs, paths, preconditioning, weightings
from cmjax.core.model import BoundModel
from cmjax.core.sampling import sample_fn
from cmjax.data.base import ArraySource
from cmjax.data.batches import Batches, preprocess
from cmjax.nets.adapter import as_net, init_params
from cmjax.nets.adm import ADM
from cmjax.nets.mlp import MLP
from cmjax.nets.unet import UNet
from cmjax.system.environment import prefer_fast_convolutions
from cmjax.system.mesh import batch_sharding, make_mesh
from cmjax.system.program import flops
from cmjax.training.average_rates import ema
from cmjax.training.loop import run_loop, speed_on
from cmjax.training.method import Method
from cmjax.training.optimizer import make_optimizer
from cmjax.training.step import compile_train_step, init_state, make_method_step, prepare_inputs

Program = Callable[[], Any]
CURRICULUM = curricula.square_root_growth(s0=2, s1=20, total_steps=40)
CONSISTENCY = partial(preconditioning.consistency, sigma_data=0.5, t_min=0.002)
CT = Method(
    partial(losses.ct, distance=partial(distances.pseudo_huber, c=0.03), weight=weightings.inverse_gap),
    pairs.grid_pairs(CURRICULUM, t_min=0.002, t_max=80.0, rho=7.0),
)


# What is counted and measured.


def seconds(program: Program) -> np.ndarray:
    """[wall-clock time, processor time of all threads] of one call, results waited for."""
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(program())
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])


def in_turns(programs: dict[str, Program], rounds: int) -> dict[str, np.ndarray]:
    """For each program its `seconds` in each round, (rounds, 2), after one call that is not counted."""
    for program in programs.values():
        seconds(program)
    measured = [{name: seconds(program) for name, program in programs.items()} for _ in range(rounds)]
    return {name: np.array([times[name] for times in measured]) for name in programs}


def ratio(name: str, above: np.ndarray, below: np.ndarray) -> dict[str, float]:
    """The medians over the rounds of above/below, for both clocks."""
    wall, processor = np.median(above / below, axis=0)
    return {name: round(float(wall), 3), f"{name}_processor_time": round(float(processor), 3)}


def milliseconds(measured: dict[str, np.ndarray]) -> dict[str, float]:
    return {f"{name}_ms": round(1e3 * float(np.median(times[:, 0])), 2) for name, times in measured.items()}


# What is measured.


def unet(options: argparse.Namespace) -> dict[str, Any]:
    """A denoising train step of DDPM++, and one 3×3 convolution beside it, over the matrix product."""
    return _train_step(_unet, options)


def adm(options: argparse.Namespace) -> dict[str, Any]:
    """The same of ADM."""
    return _train_step(_adm, options)


def _train_step(make: Callable[[argparse.Namespace], tuple[Any, Any]], options: argparse.Namespace) -> dict[str, Any]:
    shape = (options.batch, options.size, options.size, 3)
    start = time.perf_counter()
    net, params = make(options)
    init_seconds, optimizer = time.perf_counter() - start, optax.adam(1e-4)

    def step(params, opt_state, key, x0):
        value, gradients = jax.value_and_grad(_denoising(net))(params, key, x0)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    width = 2 * options.channels
    features, kernel = jnp.ones((*shape[:3], width)), jnp.ones((3, 3, width, width))
    a, repeats = jnp.ones((2048, 2048)), 4
    cases = {
        "conv3x3_forward_backward": (jax.value_and_grad(_conv_loss, argnums=(0, 1)), (features, kernel)),
        "train_step": (step, (params, optimizer.init(params), jax.random.key(1), jnp.zeros(shape))),
    }
    jitted = {name: jax.jit(fn) for name, (fn, _) in cases.items()}
    compiled = {name: seconds(partial(jitted[name], *args))[0] for name, (_, args) in cases.items()}
    matmul = jax.jit(lambda a: a @ a)
    programs: dict[str, Program] = {}
    for name, (_, args) in cases.items():
        # The product on both sides of each program: what the machine gives drifts within a round.
        programs |= {f"before_{name}": lambda: [matmul(a) for _ in range(repeats)], name: partial(jitted[name], *args)}
    measured = in_turns(programs | {"after": programs["before_train_step"]}, options.rounds)
    report: dict[str, Any] = {"init_seconds": round(init_seconds, 2), "parameters": optax.tree.size(params)}
    names = list(measured)
    for name, (fn, args) in cases.items():
        work, position = flops(fn, *args), names.index(name)
        product = (measured[names[position - 1]] + measured[names[position + 1]]) / 2 / repeats
        report[name] = {"compile_seconds": round(compiled[name], 1), "gflop": round(work / 1e9, 2)}
        report[name] |= milliseconds({"wall": measured[name], "matmul": product})
        report[name] |= ratio("rate_over_matmul", product / (2 * 2048**3), measured[name] / work)
    return report


def ct_step(options: argparse.Namespace) -> dict[str, Any]:
    """One U-Net step beside its parts."""
    return _ct_step(*_unet(options), (options.batch, options.size, options.size, 3), options.rounds)


def ct_step_mlp(options: argparse.Namespace) -> dict[str, Any]:
    """The network and batch of `configs/digits_ct.py`."""
    return _ct_step(*_mlp((8, 8, 1), width=256, depth=3), (256, 8, 8, 1), 4 * options.rounds)


def _ct_step(net: Any, params: Any, shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    step, batches = training(net, params, shape)
    batch, key = batches.at(0), jax.random.key(1)
    x0, c_noise = jnp.zeros(shape), jnp.zeros(shape[0])
    gradient, forward = jax.jit(jax.value_and_grad(_denoising(net))), jax.jit(net)
    measured = in_turns(
        {
            "ct_step": lambda: step(batch),
            "gradient": lambda: gradient(params, key, x0),
            "forward": lambda: forward(params, x0, c_noise, key=key),
        },
        rounds,
    )
    parts = measured["gradient"] + measured["forward"]
    return milliseconds(measured) | ratio("over_gradient_and_forward", measured["ct_step"], parts)


def loop(options: argparse.Namespace) -> dict[str, Any]:
    """Steps of 50 ms and more through the loop, with its batches, metrics and records, and without."""
    shape, steps = (256, 16, 16, 3), 30
    step, batches = training(*_mlp(shape[1:], width=512, depth=4), shape)
    batch = batches.at(0)

    def bare():
        for _ in range(steps):
            metrics = step(batch)
        return metrics

    records: list[dict[str, float]] = []
    programs = {"bare": bare, "loop": lambda: _looped(step, batches, steps, records)}
    measured = in_turns(programs, options.rounds)
    per_step = {f"{name}_step": times / steps for name, times in measured.items()}
    return milliseconds(per_step) | ratio("throughput_over_bare", measured["bare"], measured["loop"])


def compilations(options: argparse.Namespace) -> dict[str, Any]:
    """Programs compiled from the first step of a run to its last, in which N(k) takes every value from 2 to 21."""
    names: list[str] = []

    def note(event: str, duration: float, **labels: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(labels.get("fun_name")))

    shape, records = (32, 8, 8, 1), []
    jax.monitoring.register_event_duration_secs_listener(note)
    step, batches = training(*_mlp(shape[1:], width=64, depth=1), shape)
    before_the_run = len(names)
    _looped(step, batches, 40, records, log_every=1)
    jax.monitoring.unregister_event_duration_listener(note)
    scales = [int(record["num_scales"]) for record in records]
    return {
        "num_scales": [min(scales), max(scales)],
        "of_the_train_step": sum("train_step" in name for name in names),
        "during_the_run": names[before_the_run:],
    }


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """One evaluation, jitted whole, and the network alone at the same shape."""
    net, params = _unet(options)
    shape = (options.batch, options.size, options.size, 3)
    f = Model(net, paths.ve, CONSISTENCY)
    flow_map = BoundModel(params, f, shape[1:], t_min=0.002, t_max=80.0, kind="consistency")
    sample = jax.jit(lambda flow_map, key: sample_fn(flow_map, key, shape, times=(80.0,)))
    call = jax.jit(lambda flow_map, x: flow_map(x, 80.0))
    x, key = 80 * jax.random.normal(jax.random.key(0), shape), jax.random.key(1)
    programs = {"sample_fn": lambda: sample(flow_map, key), "network": lambda: call(flow_map, x)}
    measured = in_turns(programs, options.rounds)
    return milliseconds(measured) | ratio("over_network", measured["sample_fn"], measured["network"])


# Of what: networks, losses and a training run.


def _unet(options: argparse.Namespace) -> tuple[Any, Any]:
    module = UNet(
        channels=options.channels, channel_mult=(2, 2, 2), blocks=2, dropout=options.dropout, dtype=options.dtype
    )
    return _with_params(module, (options.size, options.size, 3))


def _adm(options: argparse.Namespace) -> tuple[Any, Any]:
    module = ADM(
        channels=options.channels, channel_mult=(2, 2, 2), blocks=2, attention_resolutions=(16,),
        dropout=options.dropout, dtype=options.dtype,
    )  # fmt: skip
    return _with_params(module, (options.size, options.size, 3))


def _mlp(shape: tuple[int, ...], *, width: int, depth: int) -> tuple[Any, Any]:
    return _with_params(MLP(width=width, depth=depth), shape)


def _with_params(module: Any, shape: tuple[int, ...]) -> tuple[Any, Any]:
    return as_net(module), jax.tree.map(jnp.asarray, init_params(module, jax.random.key(0), shape))


def _denoising(net: Any) -> Callable[..., jax.Array]:
    def loss(params, key, x0):
        noise = jax.random.normal(key, x0.shape)
        return jnp.mean((net(params, x0 + noise, jnp.zeros(len(x0)), key=key) - noise) ** 2)

    return loss


def _conv_loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(y**2)


class _Training:
    """A compiled CT train step, RAdam and one average, that keeps its state between calls."""

    def __init__(self, net: Any, params: Any, batch: Any):
        optimizer = make_optimizer(
            optax.scale_by_radam(), learning_rate=lambda step: 1e-4, clip_norm=0.0, weight_decay=0.0,
            average_rates={"ema0": ema(rate=0.999, batch_size=len(batch["image"]))},
        )  # fmt: skip
        train_step = make_method_step(
            Model(net, paths.ve, CONSISTENCY), CT, optimizer,
            prepare=partial(prepare_inputs, preprocess=partial(preprocess, horizontal_flip=False)), seed=0,
            schedules={"num_scales": CURRICULUM},
        )  # fmt: skip
        mesh = make_mesh()
        self.state = init_state(params, optimizer, mesh)
        self.compiled = compile_train_step(train_step, self.state, {}, batch, mesh)

    def __call__(self, batch: Any) -> Any:
        self.state, metrics = self.compiled(self.state, {}, batch)
        return metrics


def training(net: Any, params: Any, shape: tuple[int, ...]) -> tuple[_Training, Batches]:
    images = np.random.default_rng(0).integers(0, 256, (4 * shape[0], *shape[1:]), np.uint8)
    batches = Batches(ArraySource(images), shape[0], seed=0, sharding=batch_sharding(make_mesh()))
    return _Training(net, params, batches.at(0)), batches


class _NoCheckpoints:
    def save(self, state, step):
        pass

    def wait(self):
        pass


def _looped(training: _Training, batches: Batches, steps: int, records: list, log_every: int = 10) -> Any:
    """The loop of cmjax over steps 0 … steps − 1, without saving."""
    training.state = run_loop(
        training.state, training.compiled, {}, batches.stream(0, steps),
        start=0, total_steps=steps, speed=speed_on(make_mesh(), training.compiled, batch_size=batches.batch_size),
        checkpointer=_NoCheckpoints(), save_every=steps,
        write_record=lambda step, record: records.append(record), log_every=log_every,
        callback=lambda state, step: None, callback_every=0, update_progress=lambda step, text: None,
    )  # fmt: skip
    return training.state.step


SECTIONS = {
    "unet": unet,
    "adm": adm,
    "ct_step": ct_step,
    "ct_step_mlp": ct_step_mlp,
    "loop": loop,
    "compilations": compilations,
    "sample_fn": sampling,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--section", choices=list(SECTIONS), action="append", help="may be repeated; default all")
    parser.add_argument("--channels", type=int, default=64, help="the U-Net's first width; its levels have twice that")
    parser.add_argument("--batch", type=int, default=16, help="images in a U-Net's batch")
    parser.add_argument("--size", type=int, default=32, help="height and width of a U-Net's images")
    parser.add_argument("--dropout", type=float, default=0.13)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the U-Net")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each program")
    options = parser.parse_args()
    prefer_fast_convolutions()
    report: dict[str, Any] = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "options": {name: value for name, value in vars(options).items() if name != "section"},
        "load_before": os.getloadavg()[0],
    }
    for name in options.section or SECTIONS:
        report[name] = SECTIONS[name](options)
    print(json.dumps(report | {"load_after": os.getloadavg()[0]}, indent=2))


if __name__ == "__main__":
    main()
