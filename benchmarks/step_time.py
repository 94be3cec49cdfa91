"""How long a training step takes, beside what the machine can do: JSON on standard output.

    python benchmarks/step_time.py                 # all sections
    python benchmarks/step_time.py --net unet      # one of them

Rates are GFLOP/s of the matrix products and convolutions that the traced program holds, counted from its jaxpr. Every
section measures the float32 matrix product in the same rounds, so that its ratios hold on a shared machine too.
"""

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax.nets.adapter import as_net, init_params
from cmjax.nets.unet import UNet


def flops(fn: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of the matrix products and convolutions of one call, two for each multiply-add."""
    return _jaxpr_flops(jax.make_jaxpr(fn)(*args).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            (contracted, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * np.prod([eqn.invars[0].aval.shape[i] for i in contracted])
        elif eqn.primitive.name == "conv_general_dilated":
            total += _conv_flops(eqn)
        repeats = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
        total += repeats * sum(map(_jaxpr_flops, _inner(eqn.params)))
    return float(total)


def _conv_flops(eqn: Any) -> float:
    """Multiply-adds with what dilation put between the points are not work; those with the padding are counted."""
    kernel, spec = eqn.invars[1].aval, eqn.params["dimension_numbers"].rhs_spec
    spread = np.prod(eqn.params["lhs_dilation"])
    return 2 * eqn.outvars[0].aval.size * kernel.size / kernel.shape[spec[0]] / spread


def _inner(params: dict[str, Any]) -> list[Any]:
    leaves = jax.tree.leaves(list(params.values()), is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"))
    return [getattr(p, "jaxpr", p) for p in leaves if hasattr(p, "eqns") or hasattr(p, "jaxpr")]


def seconds(fn: Callable[..., Any], *args: Any) -> np.ndarray:
    """[wall-clock time, processor time of all threads] of one call, results waited for."""
    start = time.perf_counter(), time.process_time()
    jax.block_until_ready(fn(*args))
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])


def side_by_side(programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]], rounds: int) -> dict[str, Any]:
    """For each program {name: (fn, args)}: the median time, and the median of its rate over the matrix product's.

    One round measures each program once, between two measurements of the matrix product; ratios are taken in rounds,
    of wall-clock times and of processor times: on a CPU shared with others the second is the steadier one.
    """
    compiled = {name: (jax.jit(fn), args) for name, (fn, args) in programs.items()}
    compile_seconds = {name: seconds(fn, *args)[0] for name, (fn, args) in compiled.items()}
    work = {name: flops(fn, *args) for name, (fn, args) in programs.items()}
    matmul, a = jax.jit(lambda a: a @ a), jnp.ones((2048, 2048))
    matmul_flops = 2 * 2048.0**3

    def best() -> np.ndarray:
        return np.min([seconds(matmul, a) for _ in range(4)], axis=0)

    times: dict[str, list[np.ndarray]] = {name: [] for name in programs}
    ratios: dict[str, list[np.ndarray]] = {name: [] for name in programs}
    peaks, before = [], best()
    for _ in range(rounds):
        for name, (fn, args) in compiled.items():
            times[name].append(seconds(fn, *args))
            after = best()
            peaks.append(matmul_flops / np.minimum(before, after))
            ratios[name].append(work[name] / times[name][-1] / peaks[-1])
            before = after
    report: dict[str, Any] = {"matmul_gflops_per_s": round(np.median(peaks, axis=0)[0] / 1e9, 1)}
    for name in programs:
        wall, ratio = np.median(times[name], axis=0)[0], np.median(ratios[name], axis=0)
        report[name] = {
            "seconds": round(wall, 4),
            "gflop": round(work[name] / 1e9, 2),
            "gflops_per_s": round(work[name] / wall / 1e9, 1),
            "ratio_to_matmul": round(ratio[0], 3),
            "ratio_to_matmul_processor_time": round(ratio[1], 3),
            "compile_seconds": round(compile_seconds[name], 1),
        }
    return report


def unet(options: argparse.Namespace) -> dict[str, Any]:
    """A denoising train step of a U-Net, value_and_grad and an optax update, and one 3×3 convolution beside it."""
    shape = (options.batch, options.size, options.size, 3)
    module = UNet(
        channels=options.channels, channel_mult=(2, 2, 2), blocks=2, dropout=options.dropout, dtype=options.dtype
    )
    start = time.perf_counter()
    params = jax.tree.map(jnp.asarray, init_params(module, jax.random.key(0), shape[1:]))
    init_seconds = time.perf_counter() - start
    optimizer, net = optax.adam(1e-4), as_net(module)

    def loss(params, key, x0):
        noise = jax.random.normal(key, x0.shape)
        return jnp.mean((net(params, x0 + noise, jnp.zeros(len(x0)), key=key) - noise) ** 2)

    def step(params, opt_state, key, x0):
        value, gradients = jax.value_and_grad(loss)(params, key, x0)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    x0, key = jnp.zeros(shape), jax.random.key(1)
    width = 2 * options.channels
    features, kernel = jnp.ones((*shape[:3], width)), jnp.ones((3, 3, width, width))
    programs = {
        "conv3x3_forward_backward": (jax.value_and_grad(_conv_loss, argnums=(0, 1)), (features, kernel)),
        "train_step": (step, (params, optimizer.init(params), key, x0)),
    }
    report = side_by_side(programs, options.rounds)
    report |= {"init_seconds": round(init_seconds, 2), "parameters": sum(p.size for p in jax.tree.leaves(params))}
    return report


def _conv_loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
    y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jnp.sum(y**2)


SECTIONS = {"unet": unet}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--net", choices=sorted(SECTIONS), action="append", help="sections to run; all by default")
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--dropout", type=float, default=0.13)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    report: dict[str, Any] = {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "options": {name: value for name, value in vars(options).items() if name != "net"},
    }
    for name in options.net or SECTIONS:
        report[name] = SECTIONS[name](options)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
