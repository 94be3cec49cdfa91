"""Solvers from noise to data: convergence orders, distributions, evaluations, and what composes with jax."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cmjax.core import solvers
from cmjax.core.grids import karras_grid
from cmjax.core.ode import heun_step, ode_velocity, solve, solve_to_tolerance
from cmjax.core.oracles import gaussian_denoiser, gaussian_flow_map, mixture_denoiser, mixture_flow_map_1d
from cmjax.core.paths import Path, ve
from cmjax.core.sampling import gaussian, sample_chain, sample_denoiser, sample_fn

KEY = jax.random.key(0)
DATA = {"mean": 0.3, "variance": 0.25}
CHURN = partial(solvers.churn, s_churn=40.0)
DETERMINISTIC = [solvers.euler, solvers.heun, solvers.midpoint, solvers.dpmpp_2m, solvers.dpmpp_3m]
BY_LEVEL = (solvers.dpmpp_2m, solvers.dpmpp_3m)
STOCHASTIC = [CHURN, solvers.ancestral]
TRIG = Path(jnp.cos, jnp.sin, lambda t: -jnp.sin(t), jnp.cos, time_of=jnp.arctan)


def name_of(solver):
    return getattr(getattr(solver, "func", solver), "__name__", None)


def denoiser(x, t):
    return gaussian_denoiser(x, t, **DATA)


def grid(n):
    return karras_grid(n, t_min=0.002, t_max=80.0, rho=7.0)[::-1].copy()


def run(solver, denoise, x, times, *, path=ve):
    return solver(denoise, x, jnp.asarray(times), lambda index: gaussian(KEY, x.shape, index + 1), path=path)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("solver", "order"), list(zip(DETERMINISTIC, [1, 2, 2, 2, 3], strict=True)), ids=name_of)
def test_order_of_convergence(solver, order):
    mixture = {"weights": jnp.array([0.3, 0.7]), "variances": jnp.array([0.2, 0.4])}
    x, means = jnp.linspace(-3.0, 3.0, 6), jnp.array([-1.0, 0.5])
    denoise = partial(mixture_denoiser, means=means[:, None], **mixture)
    exact = mixture_flow_map_1d(x, 2.0, 0.1, means=means, **mixture)
    sizes = np.array([64, 128, 256])
    errors = []
    for n in sizes:
        times = np.linspace(2.0, 0.1, n + 1)
        if order == 3:  # its first step is of first order, and the second of second: both are short here
            times = np.concatenate([[2.0, 2.0 - 1e-5], times[1:]])
        ours = run(solver, denoise, x[:, None], times)
        errors.append(np.max(np.abs(ours - denoise(exact[:, None], 0.1))))
    assert -np.polyfit(np.log(sizes), np.log(errors), 1)[0] == pytest.approx(order, abs=0.1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", [*DETERMINISTIC, *STOCHASTIC, solvers.ddim, solvers.tsit5], ids=name_of)
def test_the_last_evaluation_can_be_left_out(solver):
    """The state at times[-1], from which one evaluation gives the samples; churn would add noise before it."""
    silent = partial(solvers.churn, s_churn=0.0) if solver is CHURN else solver
    x, times = 2 * jax.random.normal(KEY, (5, 2)), np.linspace(2.0, 0.1, 6)
    state = run(partial(silent, to_zero=False), denoiser, x, times)
    np.testing.assert_allclose(denoiser(state, 0.1), run(silent, denoiser, x, times), rtol=1e-12)
    if solver not in STOCHASTIC:
        np.testing.assert_allclose(state, gaussian_flow_map(x, 2.0, 0.1, **DATA), rtol=0.3, atol=0.1)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_adaptive_solving_is_as_exact_as_asked(tolerance):
    x = 80 * jax.random.normal(KEY, (50, 2))
    ours = run(partial(solvers.tsit5, rtol=tolerance, atol=tolerance), denoiser, x, (80.0, 0.002))
    error = np.max(np.abs(ours - gaussian_flow_map(x, 80.0, 0.0, **DATA)))
    assert error < 30 * tolerance + 2e-5  # the last evaluation leaves out t_min²/variance of the way


@pytest.mark.usefixtures("x64")
def test_adaptive_solving_is_decided_by_the_worst_sample():
    """A sample's error does not grow when easier samples, or none, stand beside it."""
    velocity, times = ode_velocity(denoiser, ve), jnp.array([80.0, 0.002])
    x = jnp.full((400, 1), 0.3).at[0].set(300.0)  # at the mean nothing moves
    alone, beside = (solve_to_tolerance(velocity, part, times, rtol=0.0, atol=1e-5)[:1] for part in (x[:1], x))
    np.testing.assert_allclose(beside, alone, atol=1e-12)
    exact = gaussian_flow_map(x[:1], 80.0, 0.002, **DATA)
    np.testing.assert_allclose(alone, exact, atol=2e-4)


def test_adaptive_solving_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffrax", None)
    with pytest.raises(ImportError, match=r"cmjax\[ode\]"):
        solve_to_tolerance(lambda x, t: x, jnp.ones((1, 1)), jnp.array([1.0, 0.5]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("solver", "steps", "bias"), [(CHURN, 200, 0.0), (solvers.ancestral, 400, 13.0)], ids=name_of)
def test_stochastic_solvers_leave_the_distribution_right(solver, steps, bias):
    """Four standard errors of the mean and of the variance; ancestral steps, of first order, lose variance by 13/N of
    it on this grid (measured at N = 100 and 200, where the halving shows the order)."""
    draw = partial(sample_denoiser, denoiser, KEY, (20_000, 2), times=grid(steps), path=ve, solver=solver)
    samples = np.asarray(jax.jit(draw)())
    count = samples.size
    assert samples.mean() == pytest.approx(DATA["mean"], abs=4 * np.sqrt(DATA["variance"] / count))
    assert samples.var() / DATA["variance"] == pytest.approx(1, abs=4 * np.sqrt(2 / count) + bias / steps)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", STOCHASTIC, ids=name_of)
def test_stochastic_solvers_draw_new_noise_at_every_step(solver):
    """Data at a point forgets the start and keeps each step's noise: the samples must be a sum of all of them."""
    drawn = []

    def noises(index):
        drawn.append(int(index))
        return jnp.zeros((1, 1))

    with jax.disable_jit():
        solver(denoiser, jnp.ones((1, 1)), jnp.asarray(grid(5)), noises, path=ve)
    assert drawn == list(range(5 if solver is CHURN else 4))


def test_churn_of_zero_is_heun_and_its_range_is_kept():
    x = 80 * jax.random.normal(KEY, (3, 2))
    heun = run(solvers.heun, denoiser, x, grid(18))
    for silent in ({"s_churn": 0.0}, {"s_churn": 40.0, "s_min": 90.0}, {"s_churn": 40.0, "s_max": 1e-3}):
        np.testing.assert_allclose(run(partial(solvers.churn, **silent), denoiser, x, grid(18)), heun, rtol=1e-6)
    assert np.max(np.abs(run(CHURN, denoiser, x, grid(18)) - heun)) > 0.01


@pytest.mark.parametrize("wrong", [{"s_churn": -1.0}, {"s_noise": -1.0}, {"s_min": 2.0, "s_max": 1.0}], ids=str)
def test_churn_names_a_wrong_knob(wrong):
    with pytest.raises(ValueError, match=list(wrong)[-1]):
        run(partial(solvers.churn, **{"s_churn": 1.0, **wrong}), denoiser, jnp.ones((1, 1)), grid(3))


@pytest.mark.parametrize(
    ("solver", "nfe"), list(zip([*DETERMINISTIC, *STOCHASTIC], [6, 11, 11, 6, 6, 11, 6], strict=True)), ids=name_of
)
def test_number_of_evaluations(solver, nfe):
    times = []

    def counted(x, t):
        times.append(float(t))
        return denoiser(x, t)

    with jax.disable_jit():
        run(solver, counted, jnp.ones((1, 2)), grid(6))
    assert len(times) == nfe
    assert min(times) > 0


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("solver", [*DETERMINISTIC[1:], *STOCHASTIC], ids=name_of)
def test_another_path_leads_to_the_same_samples(solver):
    """On the trig path, whose denoiser is that of `ve` at the same noise level tan t: the same noises, fine steps."""

    def on_trig(x, t):
        return denoiser(x / jnp.cos(t), jnp.tan(t))

    levels = np.geomspace(80.0, 0.01, 400)
    noise = jax.random.normal(KEY, (5, 2))
    plain = run(solver, denoiser, 80.0 * noise, levels)
    angles = np.arctan(levels)
    curved = run(solver, on_trig, np.sin(angles[0]) * noise, angles, path=TRIG)
    np.testing.assert_allclose(curved, plain, atol=1e-10 if solver in (*BY_LEVEL, solvers.ancestral) else 5e-3)


def test_a_path_that_cannot_churn_says_so():
    path = Path(ve.a, ve.b, ve.da, ve.db)
    with pytest.raises(ValueError, match="time_of"):
        run(CHURN, denoiser, jnp.ones((1, 1)), grid(3), path=path)


@pytest.mark.parametrize("solver", [*DETERMINISTIC, *STOCHASTIC], ids=name_of)
def test_jit_vmap_grad_and_shards(solver):
    def draw(mean, key):
        def denoise(x, t):
            return gaussian_denoiser(x, t, mean=mean, variance=0.25)

        return sample_denoiser(denoise, key, (4, 2), times=grid(8), path=ve, solver=solver)

    mean, keys = jnp.float32(0.3), jax.random.split(KEY, 4)
    plain = draw(mean, keys)
    np.testing.assert_allclose(jax.jit(draw)(mean, keys), plain, rtol=1e-4, atol=1e-5)
    mapped = jax.vmap(draw, (0, None))(jnp.stack([mean, 2 * mean]), keys)
    np.testing.assert_allclose(mapped[0], plain, rtol=1e-4, atol=1e-5)
    # every solver is affine in the data's mean, and for a mean far away the samples follow it
    gradient = jax.grad(lambda mean: draw(mean, keys).sum())(mean)
    assert float(gradient) == pytest.approx(float((draw(mean + 1, keys) - plain).sum()), rel=1e-3)
    mesh = Mesh(np.array(jax.devices()), "data", axis_types=(AxisType.Auto,))
    sharded = jax.jit(draw)(mean, jax.device_put(keys, NamedSharding(mesh, PartitionSpec("data"))))
    np.testing.assert_allclose(sharded, plain, rtol=1e-4, atol=1e-5)


def test_adaptive_solving_compiles_and_differentiates():
    def draw(mean):
        def denoise(x, t):
            return gaussian_denoiser(x, t, mean=mean, variance=0.25)

        return sample_denoiser(denoise, KEY, (4, 2), times=(80.0, 0.002), path=ve, solver=solvers.tsit5)

    value, slope = jax.jit(jax.value_and_grad(lambda mean: draw(mean).sum()))(jnp.float32(0.3))
    assert float(value) == pytest.approx(float(draw(jnp.float32(0.3)).sum()), rel=1e-3)
    assert float(slope) == pytest.approx(8 * (1 - 0.5 / 80), rel=1e-3)  # Φ = μ + √(λ/(λ + T²))·(x − μ)


def test_estimates_are_clipped_where_asked():
    draw = partial(sample_denoiser, lambda x, t: x, KEY, (50, 2), times=(2.0, 1.0), path=ve, solver=solvers.euler)
    assert np.max(np.abs(draw())) > 1
    assert np.max(np.abs(draw(clip=True))) == 1


def exact(x, t, s):
    return gaussian_flow_map(x, t, s, **DATA)


@pytest.mark.usefixtures("x64")
def test_a_chain_of_exact_jumps_is_one_jump():
    chained = sample_chain(exact, KEY, (5, 2), times=(80.0, 3.0, 0.4, 0.0))
    np.testing.assert_allclose(chained, exact(80.0 * gaussian(KEY, (5, 2)), 80.0, 0.0), rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.3, 1.0])
def test_gamma_sampling_leaves_the_distribution_right(gamma):
    """The first jump, from T·z in place of the noised data, is off by mean/T."""
    samples = np.asarray(sample_chain(exact, KEY, (20_000, 2), times=(80.0, 2.0, 0.4, 0.0), gamma=gamma))
    count = samples.size
    assert samples.mean() == pytest.approx(DATA["mean"], abs=4 * np.sqrt(DATA["variance"] / count) + 0.3 * 0.5 / 80)
    assert samples.var() / DATA["variance"] == pytest.approx(1, abs=4 * np.sqrt(2 / count))


@pytest.mark.usefixtures("x64")
def test_gamma_of_one_is_multistep_consistency_sampling():
    times = (80.0, 2.0, 0.4)
    chained = sample_chain(exact, KEY, (5, 2), times=(*times, 0.0), gamma=1.0)
    multistep = sample_fn(lambda x, t: exact(x, t, 0.0), KEY, (5, 2), times=times, t_min=0.0)
    np.testing.assert_allclose(chained, multistep, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_chains_on_another_path_are_the_same(gamma):
    def on_trig(x, t, s):
        return jnp.cos(s) * exact(x / jnp.cos(t), jnp.tan(t), jnp.tan(s))

    levels = np.array([80.0, 2.0, 0.4, 0.1])
    curved = sample_chain(on_trig, KEY, (5, 2), times=np.arctan(levels), gamma=gamma, path=TRIG)
    plain = sample_chain(exact, KEY, (5, 2), times=levels, gamma=gamma)
    np.testing.assert_allclose(curved / np.cos(np.arctan(0.1)), plain, rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_multistep_sampling_on_the_trig_path_is_the_papers():
    """x ← cos τ·x0 + sin τ·z for a model whose estimates are at time 0.   [Lu & Song 2025]"""

    def f(x, t):
        return exact(x / jnp.cos(t), jnp.tan(t), 0.0)

    ours = sample_fn(f, KEY, (5, 2), times=(1.5, 0.9), t_min=0.0, path=TRIG)
    x0 = f(np.sin(1.5) * gaussian(KEY, (5, 2)), 1.5)
    np.testing.assert_allclose(ours, f(np.cos(0.9) * x0 + np.sin(0.9) * gaussian(KEY, (5, 2), 1), 0.9), rtol=1e-12)


@pytest.mark.parametrize(("wrong", "message"), [({"times": (80.0,)}, "times"), ({"gamma": 1.5}, "gamma")])
def test_chains_name_what_is_wrong(wrong, message):
    with pytest.raises(ValueError, match=message):
        sample_chain(exact, KEY, (2, 2), **{"times": (80.0, 0.0), **wrong})


@pytest.mark.usefixtures("x64")
def test_solving_forward_undoes_solving_backward():
    velocity, x = ode_velocity(denoiser, ve), jax.random.normal(KEY, (5, 2))
    times = jnp.geomspace(0.1, 5.0, 2000)
    there = solve(velocity, x, times, ode_step=heun_step)
    np.testing.assert_allclose(solve(velocity, there, times[::-1], ode_step=heun_step), x, atol=1e-5)
    np.testing.assert_allclose(there, gaussian_flow_map(x, 0.1, 5.0, **DATA), atol=1e-4)
