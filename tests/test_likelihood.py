"""Inversion and likelihood against the closed forms of Gaussians and mixtures."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate as quadrature

from cmjax.core import oracles
from cmjax.core.grids import karras_grid
from cmjax.core.likelihood import bits_per_dim, decode, encode, log_likelihood
from cmjax.core.ode import heun_step, solve, solve_to_tolerance
from cmjax.core.paths import ve

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
GAUSSIAN = {"mean": 0.3, "variance": 0.25}
TIMES = karras_grid(400, t_min=0.002, t_max=80.0, rho=7.0)[::-1].copy()
HEUN = partial(solve, ode_step=heun_step)
ADAPTIVE = partial(solve_to_tolerance, rtol=1e-8, atol=1e-8)


def mixture():
    """Two dimensions: an exact trace takes two probes, and errors of the sign or scale of a term show."""
    return {
        "weights": jnp.array([0.3, 0.7]),
        "means": jnp.array([[-1.0, 0.2], [0.6, -0.3]]),
        "variances": jnp.array([0.04, 0.09]),
    }


def options(integrate, times=TIMES):
    return {"times": jnp.asarray(times), "path": ve, "integrate": integrate}


@pytest.mark.slow
@pytest.mark.parametrize(("integrate", "error"), [(HEUN, 1e-3), (ADAPTIVE, 1e-6)], ids=["heun", "adaptive"])
def test_an_image_returns_from_its_noise(integrate, error):
    denoiser, x = partial(oracles.mixture_denoiser, **mixture()), 0.5 * jax.random.normal(KEY, (20, 2))
    noise = encode(denoiser, x, **options(integrate))
    np.testing.assert_allclose(decode(denoiser, noise, **options(integrate)), x, atol=error)
    assert np.max(np.abs(noise - x)) > 0.5


@pytest.mark.parametrize(("integrate", "error"), [(HEUN, 1e-3), (ADAPTIVE, 1e-6)], ids=["heun", "adaptive"])
def test_codes_are_the_exact_flows(integrate, error):
    x = jax.random.normal(KEY, (20, 3))
    noise = encode(partial(oracles.gaussian_denoiser, **GAUSSIAN), x, **options(integrate))
    expected = oracles.gaussian_flow_map(x, 0.002, 80.0, **GAUSSIAN) / 80
    np.testing.assert_allclose(noise, expected, atol=error)


def basis(key, shape, dtype):
    """Probes of which a sum over all is the trace itself: the unit vectors, times √d so that their mean is."""
    return jnp.sqrt(shape[-1]) * jnp.broadcast_to(jnp.eye(shape[-1], dtype=dtype)[:, None], shape)


@pytest.mark.parametrize(("integrate", "error"), [(HEUN, 5e-3), (ADAPTIVE, 1e-6)], ids=["heun", "adaptive"])
def test_likelihood_with_the_exact_trace_is_the_mixtures(integrate, error):
    x = mixture()["means"][np.arange(20) % 2] + 0.3 * jax.random.normal(KEY, (20, 2))
    ours = log_likelihood(
        partial(oracles.mixture_denoiser, **mixture()), KEY, x, **options(integrate), probe=basis, num_probes=2,
        log_prior=lambda x: oracles.mixture_log_density(x, 80.0, **mixture()),
    )  # fmt: skip
    np.testing.assert_allclose(ours, oracles.mixture_log_density(x, 0.002, **mixture()), atol=error)


def test_the_default_prior_leaves_out_the_datas_moments():
    """By less than (|μ|·|x_T| + λ)/T² for each dimension."""
    x = jax.random.normal(KEY, (20, 2))
    denoiser = partial(oracles.gaussian_denoiser, **GAUSSIAN)
    ours = log_likelihood(denoiser, KEY, x, **options(ADAPTIVE))
    gap = np.abs(ours - oracles.gaussian_log_density(x, 0.002, **GAUSSIAN))
    assert 1e-6 < np.max(gap) < 2 * (0.3 * 4 * 80 + 0.25) / 80**2


@pytest.mark.slow
@pytest.mark.parametrize("probe", [jax.random.rademacher, jax.random.normal], ids=["rademacher", "gaussian"])
def test_probes_estimate_the_trace_without_bias(probe):
    x = jnp.broadcast_to(mixture()["means"][:1] + 0.2, (4000, 2))
    estimate_of = partial(
        log_likelihood, partial(oracles.mixture_denoiser, **mixture()), KEY, **options(HEUN, TIMES[::10])
    )
    exact = float(estimate_of(x[:1], probe=basis, num_probes=2)[0])  # by the same few steps
    estimate = estimate_of(x, probe=probe)
    assert abs(float(estimate.mean()) - exact) < 4 * float(estimate.std()) / np.sqrt(len(x))
    averaged = estimate_of(x[:400], probe=probe, num_probes=16)
    assert float(averaged.std()) == pytest.approx(float(estimate.std()) / 4, rel=0.2)


def test_a_key_for_each_sample_and_conditions():
    def denoiser(x, t, *, label):
        return oracles.gaussian_denoiser(x, t, mean=label[:, None], variance=0.25)

    x, keys = jax.random.normal(KEY, (6, 2)), jax.random.split(KEY, 6)
    whole = log_likelihood(denoiser, keys, x, **options(HEUN), label=jnp.arange(6.0))
    part = log_likelihood(denoiser, keys[2:4], x[2:4], **options(HEUN), label=jnp.arange(2.0, 4.0))
    np.testing.assert_allclose(whole[2:4], part, rtol=1e-12)
    assert len(np.unique(whole)) == 6


def test_bits_of_uniform_data_are_its_bits():
    """Density ½ on [-1, 1], 255 of the 256 bins of 8 bits; a density that is one bin wide has no information."""
    size = 12
    uniform = jnp.full(2, -size * jnp.log(2.0))
    np.testing.assert_allclose(bits_per_dim(uniform, size), np.log2(255), rtol=1e-12)
    np.testing.assert_allclose(bits_per_dim(jnp.full(1, size * jnp.log(4.0)), size, bin_width=0.25), 0, atol=1e-12)


@pytest.mark.slow
def test_log_densities_integrate_to_one():
    grid = jnp.asarray(np.linspace(-30, 30, 6001))[:, None]  # of step 0.01
    one = {name: value[..., :1] if name == "means" else value for name, value in mixture().items()}
    for t in (0.1, 3.0):
        for log_density in (
            oracles.mixture_log_density(grid, t, **one),
            oracles.gaussian_log_density(grid, t, **GAUSSIAN),
        ):
            assert quadrature.trapezoid(np.exp(log_density), dx=0.01) == pytest.approx(1, rel=1e-9)
    x = jax.random.normal(KEY, (5, 2))
    score = jax.grad(lambda x: oracles.mixture_log_density(x, 0.7, **mixture()).sum())(x)
    np.testing.assert_allclose(score, oracles.mixture_score(x, 0.7, **mixture()), rtol=1e-9)
