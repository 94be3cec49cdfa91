"""Learns the flow map of an ODE by the losses of this library: a pendulum, or the Lorenz system, in one evaluation.

    python examples/flow_map_of_ode.py --out=pendulum.png
    python examples/flow_map_of_ode.py --system=lorenz --loss=meanflow

A flow map Φ(x, t, s) takes the state x at time t to the state at time s. It is the solution of dx/dt = v(x, t), and
nothing in it asks that x be noise or data. Three things differ from images:

- The velocity is known. A batch holds states and their velocities, and the path `STATES` says so: `x0` is the state
  x_t itself, and its velocity stands in the place of the noise.
- The network is F(x, t, s) = (v(x, t) + (t − s)·N(x, t, s))/(1 + t − s), and Φ = x − (t − s)·F. So Φ moves by v where
  it begins, as it must, and N alone is learned.
- Times run down, from t to s, as from noise to data: the system's own time is T − t, and dx/dt is minus its velocity.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.ode import odeint
from jaxtyping import Array

import cmjax

STATES = cmjax.paths.Path(
    a=jnp.ones_like, b=jnp.zeros_like, da=jnp.zeros_like, db=jnp.ones_like, straight=True, name="states"
)
"""x_t = 1·x0 + 0·noise, and dx/dt = 0·x0 + 1·noise."""
LOSSES = ("lsd", "psd", "esd", "meanflow")
POINTS = 129  # times from 0 to T
BATCH, WIDTH, DEPTH = 256, 96, 3


def pendulum(x: Array) -> Array:
    """The velocity of the angle and of its speed, (b, 2)."""
    angle, speed = x.T
    return jnp.stack([speed, -jnp.sin(angle)], axis=1)


def lorenz(x: Array) -> Array:
    """The velocity of Lorenz' three numbers, (b, 3)."""
    x, y, z = x.T
    return jnp.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=1)


SYSTEMS = {
    "pendulum": (pendulum, ([-2, 2], [-1, 1]), 2.0),
    "lorenz": (lorenz, ([-15, 15], [-20, 20], [10, 40]), 0.1),
}
"""The velocity, the box of the first states, and T.

T times the norm of the velocity's Jacobian is a few units at most. A loss compares the network with itself, or with v
at an end that moves; for a longer T it does not settle, and the map is applied several times instead.
"""


def trajectories(name: str, count: int, *, seed: int, periods: int = 1) -> tuple[Callable, np.ndarray]:
    """The velocity, and solutions (points, count, d) of POINTS times in each of the periods T: of states of std 1."""
    velocity, box, end = SYSTEMS[name]
    low, high = np.array(box, np.float32).T
    scale = (high - low)[None] / 12**0.5  # the std of a uniform distribution
    scaled = jax.jit(lambda x: velocity(x * scale) / scale)
    first = np.random.default_rng(seed).uniform(low, high, (count, len(low))) / scale
    solve = partial(odeint, lambda x, time: scaled(x), rtol=1e-6, atol=1e-6)
    times = jnp.linspace(0, periods * end, periods * (POINTS - 1) + 1)
    return scaled, np.asarray(jax.jit(solve)(jnp.asarray(first, jnp.float32), times))


def make_model(velocity: Callable, end: float) -> cmjax.Model:
    """The flow map, whose N is a perceptron."""

    def mean_velocity(params: Any, x: Array, c_noise: Array, *, key: Any = None, **conditions: Any) -> Array:
        """F(x, t, s): c_noise is t, and the condition c_noise_s is t − s."""
        t, gap = c_noise[:, None], conditions["c_noise_s"][:, None]
        h = jnp.concatenate([x, 2 * t / end - 1, 2 * gap / end - 1], axis=1)
        for weights, bias in params[:-1]:
            h = jnp.tanh(h @ weights + bias)
        return (gap * (h @ params[-1][0] + params[-1][1]) - velocity(x)) / (1 + gap)

    return cmjax.Model(mean_velocity, STATES, cmjax.preconditioning.linear_flow)


def train(name: str, loss: str, steps: int) -> tuple[cmjax.Model, Any]:
    """The flow map and its parameters."""
    velocity, table = trajectories(name, 2048, seed=0)
    table, end, dim = jnp.asarray(table), SYSTEMS[name][2], table.shape[2]
    model = make_model(velocity, end)
    rate = optax.cosine_decay_schedule(2e-3, steps)
    average = cmjax.track_averages({"ema": lambda step: 0.995})
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.99), average)
    bound = partial(getattr(cmjax.losses, loss), distance=cmjax.distances.l2)
    update = cmjax.make_train_step(model, bound, optimizer)

    def step(state, key):
        keys = jax.random.split(key, 5)
        which = jax.random.randint(keys[0], (BATCH,), 0, table.shape[1])
        place = jax.random.randint(keys[1], (BATCH,), 0, POINTS)
        # v does not depend on the time, so a state of any place may stand at t; else t belongs to its place
        x, t = table[place, which], end * jax.random.uniform(keys[2], (BATCH,))
        s = t * jax.random.uniform(keys[3], (BATCH,))
        r = s + (t - s) * jax.random.uniform(keys[4], (BATCH,))  # between both, which psd alone needs
        *state, value = update(*state, None, cmjax.Batch(x, -velocity(x), cmjax.Times(t, r, s)))
        return tuple(state), value

    sizes, (first, *keys) = [dim + 2, *DEPTH * [WIDTH], dim], jax.random.split(jax.random.key(0), DEPTH + 2)
    layers = zip(keys, sizes[:-1], sizes[1:], strict=True)
    params = [(jax.random.normal(key, (m, n)) / m**0.5, jnp.zeros((1, n))) for key, m, n in layers]
    (_, state), _ = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(first, steps))
    return model, cmjax.averages(state)["ema"]


def compare(
    name: str, model: cmjax.Model, params: Any, times: int = 4
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """The map's errors as fractions of the states' std, and the exact and the mapped states, both (points, n, d).

    Each point takes one evaluation from the state at 0; those after T, 2·T, … take one from the mapped state there.
    """
    end, last = SYSTEMS[name][2], POINTS - 1
    _, exact = trajectories(name, 1000, seed=1, periods=times)  # others than those of training
    onward = jax.jit(jax.vmap(lambda x, s: model(params, x, end, s), (None, 0)))
    mapped = exact[:1]
    for _ in range(times):
        states = onward(jnp.asarray(mapped[-1]), jnp.linspace(end, 0, POINTS))
        mapped = np.concatenate([mapped, np.asarray(states)[1:]])
    rms = np.sqrt(np.mean((mapped - exact) ** 2, axis=(1, 2)) / exact.var(axis=1).mean(axis=1))
    return {f"{part:g}·T": float(rms[int(part * last)]) for part in (0.25, 0.5, *range(1, times + 1))}, exact, mapped


def plot(path: Path, exact: np.ndarray, mapped: np.ndarray) -> None:
    """The first two numbers of 24 states along time, as the solver and as the map have them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    titles = ("solver", "flow map: one evaluation from dot to dot")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, states, title in zip(panels, (exact, mapped), titles, strict=True):
        axes.plot(*states[:, :24, :2].transpose(2, 0, 1), linewidth=0.9)
        axes.plot(*states[:: POINTS - 1, :24, :2].transpose(2, 0, 1), "k.", markersize=3)
        axes.set_title(title)
    figure.savefig(path, dpi=100)


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--system", choices=list(SYSTEMS), default="pendulum")
    parser.add_argument("--loss", choices=LOSSES, default="lsd")
    parser.add_argument("--steps", type=int, default=20_000, help="updates; default %(default)s")
    parser.add_argument("--out", type=Path, help="a PNG to write")
    chosen = parser.parse_args(arguments)
    errors, exact, mapped = compare(chosen.system, *train(chosen.system, chosen.loss, chosen.steps))
    for duration, error in errors.items():
        print(f"after {duration}: error {error:.4f} of the states' std")
    if chosen.out:
        plot(chosen.out, exact, mapped)
    return errors


if __name__ == "__main__":
    main()
