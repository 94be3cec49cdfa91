"""Samplers against the peers' recorded samples, beyond those of test_sampling.py, in float64.

Every recorded noise is given in the order in which the peers drew it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import DENOISER, student, toy_denoiser

from cmjax.core import solvers
from cmjax.core.grids import karras_grid
from cmjax.core.ode import euler_step, heun_step, midpoint_step, ode_velocity, solve
from cmjax.core.paths import Path, ve
from cmjax.core.sampling import sample_denoiser, sample_fn

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
CHURN = partial(solvers.churn, s_churn=10.0, s_min=0.05, s_max=50.0, s_noise=1.003)


def grid(n):
    return karras_grid(n, t_min=0.002, t_max=80.0, rho=7.0)[::-1].copy()


def close(ours, theirs, rtol=1e-9):
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=rtol * np.max(np.abs(theirs)))


def from_recorded(noises):
    """What makes a sampler start from a peer's noise and draw the others in order."""
    given = {"start": 80.0 * noises[0], "noises": noises[1:]}
    return {"key": KEY, "shape": noises[0].shape, **given}


@pytest.mark.parametrize(("name", "solver"), [("heun_churn", CHURN), ("ancestral", solvers.ancestral)])
def test_stochastic_sampling_is_openais(openai, name, solver):
    recorded = from_recorded(openai["sampler_noises"])
    close(
        sample_denoiser(toy_denoiser, **recorded, times=grid(18), path=ve, solver=solver),
        openai[f"sample_{name}"],
    )


def test_openais_dpm_is_the_midpoint_in_the_cube_root_of_time(openai):
    """Theirs goes by a midpoint step to time 0 as well, ours by one evaluation: `solvers.midpoint` is the same up to
    the last step, and `solve` the whole."""
    start, velocity = 80 * jnp.asarray(openai["sampler_noises"][0]), ode_velocity(toy_denoiser, ve)
    to_zero = jnp.append(grid(18), 0.0)
    close(solve(velocity, start, to_zero, ode_step=partial(midpoint_step, rho=3.0)), openai["sample_dpm"])
    ours = solvers.midpoint(toy_denoiser, start, jnp.asarray(grid(18)), lambda index: start, path=ve, rho=3.0)
    assert 0 < np.max(np.abs(ours - openai["sample_dpm"])) < 1e-3


def test_openais_sampler_of_progressive_distillation_stops_at_t_min(openai):
    start = 80 * jnp.asarray(openai["sampler_noises"][0])
    ours = solve(ode_velocity(toy_denoiser, ve), start, jnp.asarray(grid(9)), ode_step=euler_step)
    close(ours, openai["sample_progdist"])


def test_one_step_is_openais(openai):
    recorded = from_recorded(openai["sampler_noises"])
    close(sample_fn(toy_denoiser, **recorded, times=(80.0,), t_min=0.002), openai["sample_onestep"])


def test_clipped_sampling_of_preconditioned_networks_is_openais(openai):
    recorded, w = from_recorded(openai["sampler_noises"]), jnp.asarray(openai["w_online"])
    heun = sample_denoiser(partial(DENOISER, w), **recorded, times=grid(40), path=ve, solver=solvers.heun, clip=True)
    close(heun, openai["karras_sample_heun_clip"])
    multistep = sample_fn(partial(student(), w), **recorded, times=grid(40)[[0, 22]], t_min=0.002, clip=True)
    close(multistep, openai["karras_sample_multistep_clip"])


@pytest.mark.parametrize("distilled", [False, True])
def test_preconditioned_networks_are_openais(openai, distilled):
    sigma = jnp.asarray([0.002, 0.05, 0.5, 2.0, 20.0, 80.0])
    f = student() if distilled else DENOISER
    ours = f(jnp.asarray(openai["w_online"]), jnp.asarray(openai["x_start"]), sigma)
    close(ours, openai[f"denoise_distill{int(distilled)}"])


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("edm_sampler_churn", CHURN),
        ("ablation_euler_edm", solvers.euler),
        ("ablation_midpoint_edm", solvers.midpoint),  # alpha = 1/2
    ],
)
def test_sampling_is_edms(edm, name, solver):
    recorded = from_recorded(edm["noises"])
    close(sample_denoiser(toy_denoiser, **recorded, times=grid(18), path=ve, solver=solver), edm[name])


def vp_path(beta_d=19.9, beta_min=0.1):
    """σ(t) = √(exp(β_d·t²/2 + β_min·t) − 1), a = 1/√(1 + σ²).   [Karras et al. 2022, table 1, VP]"""

    def sigma(t):
        return jnp.sqrt(jnp.expm1(beta_d / 2 * t**2 + beta_min * t))

    def a(t):
        return 1 / jnp.sqrt(1 + sigma(t) ** 2)

    def derivative(f):
        return lambda t: jax.jvp(f, (t,), (jnp.ones_like(t),))[1]

    def b(t):
        return a(t) * sigma(t)

    return Path(a, b, derivative(a), derivative(b)), sigma


def iddpm_levels(c_1=0.001, c_2=0.008, m=1000):
    """The noise levels of iDDPM; the peer takes the sine in float32.   [Karras et al. 2022, table 1, iDDPM]"""
    ratios = [np.float32(0.5 * np.pi) * np.float32(j) / np.float32(m) / np.float32(c_2 + 1) for j in range(m + 1)]
    alpha_bar = np.sin(np.asarray(ratios, np.float32)) ** 2
    levels = np.zeros(m + 1)
    for j in range(m, 0, -1):
        kept = float(max(alpha_bar[j - 1] / alpha_bar[j], np.float32(c_1)))
        levels[j - 1] = np.sqrt((levels[j] ** 2 + 1) / kept - 1)
    return levels


def test_ablations_of_edm_are_choices_of_path_grid_and_step(edm):
    """16 steps of Heun, the last Euler's: by it, and not by one evaluation as our solvers, theirs goes to time 0, which
    on a curved path is another point."""
    noise, u = jnp.asarray(edm["noises"][0]), np.arange(16) / 15

    def sample(path, sigma, times):
        def denoise(x, t):
            return toy_denoiser(x / path.a(t), sigma(t))

        velocity, times = ode_velocity(denoise, path), jnp.asarray(times)
        x = solve(velocity, path.b(times[0]) * noise, times, ode_step=heun_step)
        return euler_step(velocity, x, times[-1], 0.0)

    close(sample(*vp_path(), 1 + u * (1e-3 - 1)), edm["ablation_heun_vp"])
    variance = Path(jnp.ones_like, jnp.sqrt, jnp.zeros_like, lambda t: 0.5 / jnp.sqrt(t))
    close(sample(variance, jnp.sqrt, 100**2 * (0.02**2 / 100**2) ** u), edm["ablation_heun_ve"])
    levels = iddpm_levels()
    levels = levels[(levels >= 0.002) & (levels <= 81)]
    levels = levels[np.round((len(levels) - 1) * u).astype(int)]
    # two libraries' sines of a float32 differ in the last place of a few levels
    close(sample(ve, lambda t: t, levels), edm["ablation_heun_iddpm"], rtol=3e-9)


@pytest.mark.parametrize(
    ("name", "times"), [("1step", (80.0,)), ("2step_0.821", (80.0, 0.821)), ("3step", (80.0, 5.0, 0.821))]
)
def test_sampling_is_ects(shared, name, times):
    """Theirs adds τ·z to the estimate at t_min = 0.003: `full_noise`; the default adds √(τ² − t_min²)·z."""
    ect = np.load(shared / "parity" / "ect.npz")
    recorded, f = from_recorded(ect["gen_noises"]), partial(student(0.003), jnp.asarray(ect["w_online"]))
    close(sample_fn(f, **recorded, times=times, t_min=0.003, full_noise=True), ect[f"gen_{name}"])
    gap = np.max(np.abs(sample_fn(f, **recorded, times=times, t_min=0.003) - ect[f"gen_{name}"]))
    assert gap < 1e-12 if len(times) == 1 else 1e-7 < gap < 1e-4
