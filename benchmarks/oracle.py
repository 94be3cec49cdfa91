"""How close consistency distillation comes to the exact consistency function, on data where that is known: JSON out.

    python benchmarks/oracle.py                     # about a minute on 2 CPU cores
    python benchmarks/oracle.py --out oracle.png    # and an image: data, exact and student's samples

The data are a mixture of six Gaussians in the plane, so the teacher is exact, and the consistency function is the
teacher's probability-flow ODE solved finely in float64. The student is an MLP, trained from random parameters by the
library's own loss and train step. `rms` is √E‖f_θ(x, t_max) − f(x, t_max)‖² over fresh x ~ N(0, t_max² I), in units of
the std of one coordinate of the data: a student that always answers the data's mean has an rms of √2.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax import Model, karras_grid, losses
from cmjax.core import curricula, ema_rates, pairs, weightings
from cmjax.core.distances import pseudo_huber
from cmjax.core.ode import heun_step, solve
from cmjax.core.oracles import mixture_denoiser
from cmjax.core.paths import ve
from cmjax.core.preconditioning import consistency
from cmjax.nets.adapter import as_net, init_params
from cmjax.nets.mlp import MLP
from cmjax.plotting.plots import save_png
from cmjax.system.mesh import make_mesh
from cmjax.training.average_rates import TARGET, ema
from cmjax.training.method import TEACHER, Method
from cmjax.training.optimizer import averages, cosine_schedule, make_optimizer
from cmjax.training.step import compile_train_step, init_state, make_method_step

T_MIN, T_MAX, RHO, SIGMA_DATA = 0.002, 80.0, 7.0, 0.5
SPREAD = 0.24  # a mode's std, as a fraction of the distance between neighbours


@dataclass(frozen=True)
class Settings:
    """What a run depends on. N − 1 doubles from `s0` to `s1`; `mu` is the target's rate, `ema` the evaluation's."""

    steps: int = 6000
    batch: int = 256
    seed: int = 0
    width: int = 96
    depth: int = 3
    learning_rate: float = 3e-3
    s0: int = 16
    s1: int = 64
    mu: float = 0.95
    ema: float = 0.99
    c: float = 0.03
    points: int = 4096
    exact_steps: int = 3072


@cache
def mixture() -> dict[str, np.ndarray]:
    """Five modes on a ring and one in its middle, alike but for their weights; mean 0, std SIGMA_DATA."""
    angles = 2 * np.pi * np.arange(5) / 5 + np.pi / 2
    means = np.concatenate([np.zeros((1, 2)), np.stack([np.cos(angles), np.sin(angles)], axis=1)])
    weights = np.array([0.2, 0.2, 0.14, 0.16, 0.14, 0.16])
    means = means - (weights @ means)[None]
    scale = SIGMA_DATA / np.sqrt((weights @ means**2).mean() + SPREAD**2)
    return {"weights": weights, "means": scale * means, "variances": np.full(6, (scale * SPREAD) ** 2)}


def draw_data(rng: np.random.Generator, count: int) -> np.ndarray:
    """Fresh points of the mixture, (count, 2) float32."""
    data = mixture()
    modes = rng.choice(len(data["weights"]), count, p=data["weights"])
    noise = np.sqrt(data["variances"])[modes, None] * rng.standard_normal((count, 2))
    return (data["means"][modes] + noise).astype(np.float32)


def exact_map(x: np.ndarray, t: float, s: float = T_MIN, *, steps: int) -> np.ndarray:
    """Φ(x, t, s): the PF-ODE of the exact denoiser through x at t, by Heun steps in float64 on a Karras grid."""
    with jax.enable_x64(True):
        data = jax.tree.map(jnp.asarray, mixture())

        def velocity(x, t):
            return ve.velocity(x, mixture_denoiser(x, t, **data), t)

        times = jnp.asarray(karras_grid(steps + 1, t_min=s, t_max=t, rho=RHO)[::-1].copy())
        return np.asarray(jax.jit(partial(solve, velocity, ode_step=heun_step))(jnp.asarray(x), times))


def teacher(params: dict[str, Any], x: Any, t: Any, *, key: Any = None) -> Any:
    """The exact denoiser D(x, t); its parameters are the mixture's."""
    return mixture_denoiser(x, t, **params)


def student(settings: Settings) -> tuple[MLP, Model]:
    """The network, and the consistency model made of it."""
    module = MLP(width=settings.width, depth=settings.depth)
    return module, Model(as_net(module), ve, partial(consistency, sigma_data=SIGMA_DATA, t_min=T_MIN))


def distillation(curriculum: curricula.Curriculum, *, c: float, mu: float) -> Method:
    """Consistency distillation as in Song et al. 2023, alg. 2: neighbours of a Karras grid, one Heun step between."""
    return Method(
        partial(losses.cd, ode_step=heun_step, distance=partial(pseudo_huber, c=c), weight=weightings.uniform),
        pairs.grid_pairs(curriculum, t_min=T_MIN, t_max=T_MAX, rho=RHO),
        target_rate=ema_rates.constant_rate(mu=mu),
        teacher_function=teacher,
    )


def distil(settings: Settings) -> tuple[Any, Any, dict[str, float]]:
    """The first parameters, the averaged ones after training, and the seconds that compiling and training took."""
    module, f = student(settings)
    curriculum = curricula.doubling(s0=settings.s0, s1=settings.s1, total_steps=settings.steps)
    method = distillation(curriculum, c=settings.c, mu=settings.mu)
    optimizer = make_optimizer(
        optax.scale_by_adam(b2=0.99),
        learning_rate=cosine_schedule(peak=settings.learning_rate, total_steps=settings.steps, warmup_steps=100),
        clip_norm=0.0,
        weight_decay=0.0,
        average_rates={
            TARGET: method.target_rate,
            "ema": ema(rate=settings.ema, batch_size=settings.batch),
        },
    )
    mesh, rng = make_mesh(), np.random.default_rng(settings.seed)
    first = init_params(module, jax.random.key(settings.seed), (2,))
    state = init_state(first, optimizer, mesh)
    frozen = {TEACHER: {name: jnp.asarray(value, jnp.float32) for name, value in mixture().items()}}
    train_step = make_method_step(
        f, method, optimizer, prepare=lambda batch, key: (batch["image"], {}), seed=settings.seed
    )
    start = time.perf_counter()
    compiled = compile_train_step(train_step, state, frozen, {"image": draw_data(rng, settings.batch)}, mesh)
    ready, ready_cpu = time.perf_counter(), time.process_time()
    loss = float("nan")
    for _ in range(settings.steps):
        state, metrics = compiled(state, frozen, {"image": draw_data(rng, settings.batch)})
        loss = float(metrics["loss"])  # waited for: with several devices on one CPU, steps in flight can deadlock
    seconds = {
        "compile_seconds": ready - start,
        "train_seconds": time.perf_counter() - ready,
        "train_processor_seconds": time.process_time() - ready_cpu,
    }
    return first, averages(state.opt_state)["ema"], {"last_loss": loss, **seconds}


def run(settings: Settings) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report, and the samples that it compares: `data`, `exact` and `student`, with the `noise` of the latter."""
    start = time.perf_counter()
    first, params, report = distil(settings)
    rng = np.random.default_rng([settings.seed, 1])
    noise = rng.standard_normal((settings.points, 2))
    exact = exact_map(T_MAX * noise, T_MAX, steps=settings.exact_steps)
    coarser = exact_map(T_MAX * noise, T_MAX, steps=settings.exact_steps // 2)
    f = jax.jit(student(settings)[1])

    def answer(params):
        return np.asarray(f(params, jnp.asarray(T_MAX * noise, jnp.float32), T_MAX))

    def rms(samples):
        return float(np.sqrt(np.sum((samples - exact) ** 2, axis=1).mean()) / SIGMA_DATA)

    samples = {"data": draw_data(rng, settings.points), "exact": exact, "student": answer(params), "noise": noise}
    report = {
        "rms": rms(samples["student"]),
        "rms_untrained": rms(answer(first)),
        "rms_mean_of_data": rms(np.zeros_like(exact)),
        "exact_change_at_half_the_steps": float(np.abs(exact - coarser).max()),
        **report,
        "seconds": time.perf_counter() - start,
    }
    return report, samples


def plot(samples: dict[str, np.ndarray], *, side: int = 480, reach: float = 1.6) -> np.ndarray:
    """Side by side: data in grey, exact and student's samples in the colour of their noise's direction."""
    angle = np.arctan2(samples["noise"][:, 1], samples["noise"][:, 0])
    hues = np.stack([np.cos(angle - shift) for shift in (0, 2 * np.pi / 3, 4 * np.pi / 3)], axis=1)
    colours = np.rint(110 + 100 * hues).astype(np.uint8)
    panels = []
    for name in ("data", "exact", "student"):
        panel = np.full((side, side, 3), 255, np.uint8)
        columns, rows = np.clip(np.rint((samples[name] / reach * [1, -1] + 1) * side / 2), 1, side - 2).astype(int).T
        for down, right in np.ndindex(2, 2):
            panel[rows + down, columns + right] = 90 if name == "data" else colours
        panels.append(np.pad(panel, ((4, 4), (4, 4), (0, 0)), constant_values=160))
    return np.concatenate(panels, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, value in asdict(Settings()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    parser.add_argument("--out", help="a PNG to write")
    options = vars(parser.parse_args())
    out = options.pop("out")
    report, samples = run(Settings(**options))
    if out:
        save_png(out, plot(samples))
    rounded = {name: float(f"{value:.4g}") for name, value in report.items()}
    environment = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
    print(json.dumps({**rounded, "data_std": SIGMA_DATA, "settings": options, **environment}, indent=2))


if __name__ == "__main__":
    main()
