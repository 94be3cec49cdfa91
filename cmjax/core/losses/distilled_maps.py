"""Flow maps between any two times that are distilled from a diffusion teacher: AYF and CTM."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64

from cmjax.core.batch import Batch
from cmjax.core.derivatives import Derivative
from cmjax.core.distances import l2
from cmjax.core.losses.flow_maps import mean_velocity, on_line, on_path, teacher_velocity, velocity_at
from cmjax.core.losses.tangents import Normalize
from cmjax.core.model import Model, check_path
from cmjax.core.paths import per_sample
from cmjax.core.typing import BoundDenoiser, Distance, OdeStep, Params, PerSample, PRNGKey, Samples, Weight
from cmjax.system.mesh import with_auto_axes


def ayf(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    teacher: BoundDenoiser,
    warmup: Array | float = 1.0,
    normalize: Normalize,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """AYF-EMD: ‖u_θ − sg(u_θ − n(g))‖²/D with the tangent g = u_θ − v + warmup·(t − s)·du_θ/dt, v the teacher's.

    n normalises the tangent, by `unit_norm` in the paper. `warmup`: its `tangents.ramp` at this step. Conditions of the
    batch, such as the scale `guidance`, are inputs of student and teacher alike; an `autoguided` teacher takes it.
    [Sabour et al. 2025, align your flow, eq. 8 and alg. 1]
    """
    t, s, x_t, _ = on_line(model, batch)
    v = teacher_velocity(teacher, model, batch, x_t, guidance=1.0, interval=(0.0, 1.0))
    u, du_dt = mean_velocity(model, params, key, batch, x_t, along=v, derivative=derivative)
    tangent = u - v + warmup * per_sample(t - s, v) * du_dt
    return l2(u, jax.lax.stop_gradient(u - normalize(tangent)))


def ctm(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    teacher: BoundDenoiser,
    ode_step: OdeStep,
    grid: Float64[np.ndarray, " n"],
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """CTM without its GAN: d(Φ⁻(Φ_θ(x_t, t, s), s, ε), Φ⁻(sg Φ_θ(x_r, r, s), s, ε)), compared at the lowest time ε.

    The teacher's ODE moves x_t to x_r along the points of the `grid` (n,), ascending, whose first is ε; all samples lie
    the same number of points apart. Φ⁻ has the `target_params`. Where s = t the loss is that of a denoiser,
    λ(t)·‖D_θ(x_t, t) − x0‖²/D. Its times: `skipping_grid_pairs`.   [Kim et al. 2024, CTM, eq. 9 to 11 and alg. 1]
    """
    check_path(model, teacher)
    t, s, x_t, _ = on_path(model, batch)
    r, held = batch.times.target, params if target_params is None else target_params
    points = jnp.asarray(grid, t.dtype)
    least = jnp.full_like(t, grid[0])

    def flow_map(params: Params) -> Callable[..., Samples]:
        return lambda x, t, s: model(params, x, t, s, key=key, **batch.conditions)

    def velocity(x, t):
        return model.path.velocity(x, teacher(x, t, **batch.conditions), t)

    def step(i, x):
        return ode_step(velocity, x, _at_places(points, place - i), _at_places(points, place - i - 1))

    place = _places_in(points, t)
    x_r = jax.lax.fori_loop(0, jnp.max(place - _places_in(points, r)), step, x_t)
    estimate = flow_map(held)(flow_map(params)(x_t, t, s), s, least)
    target = flow_map(held)(jax.lax.stop_gradient(flow_map(params)(x_r, r, s)), s, least)
    denoised = model.path.denoised(x_t, velocity_at(model, params, key, x_t, t, batch.conditions), t)
    error = weight(t, jnp.zeros_like(t)) * l2(denoised, batch.x0)
    return jnp.where(s < t, distance(estimate, jax.lax.stop_gradient(target)), error)


@partial(with_auto_axes, rows_from=1)
def _places_in(grid: Array, t: PerSample) -> Array:
    """Where each time stands in the grid, which is ascending and has it up to rounding."""
    return jnp.searchsorted(grid, (1 - 1e-6) * t)


@partial(with_auto_axes, rows_from=1)
def _at_places(grid: Array, place: Array) -> PerSample:
    return grid[jnp.maximum(place, 0)]
