"""Samplers: the statistics of an exact flow map, the peers' recorded samples, and what composes with jax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from peers import student, toy_denoiser

from cmjax.core.grids import karras_grid
from cmjax.core.model import BoundModel
from cmjax.core.oracles import gaussian_denoiser, gaussian_flow_map
from cmjax.core.paths import ddpm, linear, trig, ve
from cmjax.core.sampling import gaussian, sample_chain, sample_denoiser, sample_fn
from cmjax.core.solvers import ddim, euler, heun

KEY = jax.random.key(0)
MEAN, VARIANCE, T_MIN, T_MAX = 0.3, 0.25, 0.3, 80.0


def exact(params, x, t, *, key=None, shift=0.0):
    return gaussian_flow_map(x, t, T_MIN, mean=params["mean"], variance=params["variance"]) + shift


PARAMS = {"mean": jnp.float32(MEAN), "variance": jnp.float32(VARIANCE)}
FLOW = BoundModel(PARAMS, exact, (2,), T_MIN, T_MAX, "consistency")


@pytest.mark.parametrize("times", [(80,), (80, 2.0, 0.4), (80, 0.31)])
def test_the_exact_flow_map_gives_the_data_at_t_min(times):
    samples = np.asarray(sample_fn(FLOW, KEY, (20_000, 2), times=times)).ravel()
    # one step from T·z in place of mean + √(variance + T²)·z is off by 0.5·mean/T and less than 1e-4 of the variance
    variance = VARIANCE + T_MIN**2
    assert samples.mean() == pytest.approx(MEAN, abs=4 * np.sqrt(variance / samples.size) + 0.7 * MEAN / 80)
    assert samples.var() == pytest.approx(variance, rel=4 * np.sqrt(2 / samples.size))


def test_sampling_is_the_papers_loop():
    times = (80.0, 2.0, 0.4)
    x = sample_fn(FLOW, KEY, (5, 2), times=times)
    expected = FLOW(times[0] * gaussian(KEY, (5, 2), 0), times[0])
    for i, t in enumerate(times[1:], 1):
        expected = FLOW(expected + np.sqrt(t**2 - T_MIN**2) * gaussian(KEY, (5, 2), i), t)
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6)


def test_noises_are_distinct_unit_gaussians():
    noises = np.stack([gaussian(KEY, (3000, 2), i) for i in range(3)]).reshape(3, -1)
    assert np.max(np.abs(np.cov(noises) - np.eye(3))) < 4 * np.sqrt(2 / noises.shape[1])


def test_a_sample_with_its_own_key_does_not_depend_on_its_batch():
    keys = jax.random.split(KEY, 7)
    draw = partial(sample_fn, FLOW, times=(80.0, 1.0))
    whole, part = draw(keys, (7, 2)), draw(keys[3:5], (2, 2))
    np.testing.assert_array_equal(whole[3:5], part)
    assert len(np.unique(whole)) == 14
    ode = partial(sample_denoiser, FLOW, times=(80.0, 1.0), path=ve, solver=heun)
    np.testing.assert_array_equal(ode(keys, (7, 2))[3:5], ode(keys[3:5], (2, 2)))


def test_jit_vmap_and_grad():
    def draw(flow, key):
        return sample_fn(flow, key, (3, 2), times=(80.0, 1.0))

    plain = draw(FLOW, KEY)
    np.testing.assert_allclose(jax.jit(draw)(FLOW, KEY), plain, rtol=1e-5, atol=1e-6)
    keys = jax.random.split(KEY, 4)
    mapped = jax.vmap(partial(draw, FLOW))(keys)
    np.testing.assert_allclose(mapped, jnp.stack([draw(FLOW, key) for key in keys]), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda flow: draw(flow, KEY).sum())(FLOW).params["mean"]
    h = 1e-2  # the flow map is affine in its mean
    up, down = (
        BoundModel({**PARAMS, "mean": jnp.float32(MEAN + s * h)}, exact, (2,), T_MIN, T_MAX, "consistency")
        for s in (1, -1)
    )
    assert gradient == pytest.approx(float((draw(up, KEY).sum() - draw(down, KEY).sum()) / (2 * h)), rel=1e-3)


def test_flow_map_is_a_pytree_of_its_parameters():
    leaves, structure = jax.tree.flatten(FLOW)
    assert leaves == jax.tree.leaves(PARAMS)
    doubled = jax.tree.map(lambda p: 2 * p, FLOW)
    assert isinstance(doubled, BoundModel)
    assert (doubled.params["mean"], doubled.t_min, doubled.kind) == (2 * PARAMS["mean"], T_MIN, "consistency")
    assert jax.tree.structure(doubled) == structure
    traces = []

    @jax.jit
    def call(flow, x):
        traces.append(flow)
        return flow(x, 1.0)

    x = jnp.ones((1, 2))
    np.testing.assert_allclose(call(doubled, x), doubled(x, 1.0), rtol=1e-6)
    call(FLOW, x)
    assert len(traces) == 1


def test_conditions_reach_the_network_and_clip_is_asked_for():
    plain = sample_fn(FLOW, KEY, (50, 2), times=(80.0,))
    np.testing.assert_allclose(sample_fn(FLOW, KEY, (50, 2), times=(80.0,), shift=2.0), plain + 2, rtol=1e-5)
    clipped = sample_fn(FLOW, KEY, (50, 2), times=(80.0,), clip=True)
    np.testing.assert_array_equal(clipped, np.clip(plain, -1, 1))
    assert np.any(clipped != plain)


@pytest.mark.parametrize("t_min", [0.002, 0.009, 0.018])
def test_a_time_of_t_min_returns_the_estimate_before(t_min):
    """√(τ² − t_min²) as a difference of rounded squares is nan at the last two of these."""
    flow = BoundModel(PARAMS, lambda params, x, t: x / 2, (2,), t_min, T_MAX, "consistency")
    twice = sample_fn(flow, KEY, (2, 2), times=(1.0, t_min))
    np.testing.assert_array_equal(twice, sample_fn(flow, KEY, (2, 2), times=(1.0,)) / 2)


def test_whole_numbers_grids_and_arrays_are_times():
    draw = partial(sample_fn, FLOW, KEY, (2, 2))
    for times in ([80, 2], np.array([80.0, 2.0]), jnp.array([80.0, 2.0])):
        np.testing.assert_array_equal(draw(times=times), draw(times=(80.0, 2.0)))
    assert sample_denoiser(FLOW, KEY, (2, 2), times=[80, 2], path=ve, solver=heun).dtype == jnp.float32


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="t_min"):
        sample_fn(lambda x, t: x, KEY, (2, 2), times=(80.0,))
    with pytest.raises(ValueError, match="times"):
        sample_fn(FLOW, KEY, (2, 2), times=())
    bare = sample_fn(lambda x, t: FLOW(x, t), KEY, (2, 2), times=(80.0, 1.0), t_min=T_MIN)
    np.testing.assert_allclose(bare, sample_fn(FLOW, KEY, (2, 2), times=(80.0, 1.0)), rtol=1e-6)


@pytest.mark.parametrize(("solver", "n", "nfe"), [(euler, 6, 6), (heun, 6, 11)])
def test_number_of_evaluations(solver, n, nfe):
    times = []

    def denoiser(x, t):
        times.append(float(t))
        return gaussian_denoiser(x, t, mean=MEAN, variance=VARIANCE)

    with jax.disable_jit():
        sample_denoiser(denoiser, KEY, (1, 2), times=np.geomspace(80, 0.01, n), path=ve, solver=solver)
    assert len(times) == nfe
    assert min(times) == pytest.approx(0.01)


@pytest.mark.usefixtures("x64")
def test_the_ode_sampler_follows_the_exact_flow():
    denoiser = partial(gaussian_denoiser, mean=MEAN, variance=VARIANCE)
    times = karras_grid(200, t_min=0.002, t_max=80.0, rho=7.0)[::-1]
    samples = sample_denoiser(denoiser, KEY, (20, 2), times=times, path=ve, solver=heun)
    start = 80.0 * gaussian(KEY, (20, 2))
    expected = gaussian_flow_map(start, 80.0, 0.0, mean=MEAN, variance=VARIANCE)
    np.testing.assert_allclose(samples, expected, atol=1e-3)


@pytest.mark.usefixtures("x64")
def test_full_noise_takes_the_estimate_for_clean_data():
    """a_τ·x0 + b_τ·z, latent consistency models' own step, also on a path whose first time bears noise already."""
    path = ddpm(schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    noises = jax.random.normal(KEY, (2, 3, 2))
    given = {"t_min": 0.0, "path": path, "start": noises[0], "noises": lambda index: noises[1]}
    times = (0.999, 0.499)

    def f(x, t):
        return jnp.tanh(x) + t

    ours = sample_fn(f, KEY, (3, 2), times=times, full_noise=True, **given)
    beta = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    signal = np.cumprod(1 - beta)[499]
    expected = f(np.sqrt(signal) * f(noises[0], 0.999) + np.sqrt(1 - signal) * noises[1], 0.499)
    np.testing.assert_allclose(ours, expected, rtol=1e-9)
    assert np.max(np.abs(sample_fn(f, KEY, (3, 2), times=times, **given) - expected)) > 1e-5


def test_a_start_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"\(3, 2\), got \(4, 2\)"):
        sample_fn(FLOW, KEY, (3, 2), times=(80.0,), start=np.zeros((4, 2)))


@pytest.fixture
def recorded(openai):
    """Sampling from the start and with the noises that the peers drew, in order."""
    noises = openai["sampler_noises"]
    given = {"start": 80.0 * noises[0], "noises": noises[1:]}
    return {"key": KEY, "shape": noises[0].shape, **given}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "steps", "places"),
    [
        ("multistep_0-39", 40, [0]),
        ("multistep_0-22-39", 40, [0, 22]),
        ("multistep_0-10-20-30-39", 40, [0, 10, 20, 30]),
        ("multistep201_0-106-200", 201, [0, 106]),
    ],
)
def test_multistep_sampling_is_the_peers(openai, recorded, name, steps, places):
    """The peers' last place only names the time t_min that the samples are at; by rounding it lies above t_min, so
    that they add √(t² − t_min²) = 3e-10 of a last noise. Ours adds none."""
    times = karras_grid(steps, t_min=0.002, t_max=80.0, rho=7.0)[::-1][places]
    ours = sample_fn(toy_denoiser, **recorded, times=times, t_min=0.002)
    low, high = 0.002 ** (1 / 7), 80.0 ** (1 / 7)
    residue = np.sqrt(max((high + (low - high)) ** 7, 0.002) ** 2 - 0.002**2)
    assert residue < 1e-9
    theirs = openai[f"sample_{name}"] - residue * openai["sampler_noises"][len(places)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-13)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("name", "solver"), [("heun", heun), ("euler", euler)])
def test_ode_sampling_is_openais(openai, recorded, name, solver):
    times = karras_grid(18, t_min=0.002, t_max=80.0, rho=7.0)[::-1]
    ours = sample_denoiser(toy_denoiser, **recorded, times=times, path=ve, solver=solver)
    np.testing.assert_allclose(ours, openai[f"sample_{name}"], rtol=1e-9)


@pytest.mark.usefixtures("x64")
def test_one_clipped_step_of_a_preconditioned_network_is_the_peers(openai, recorded):
    f = partial(student(), openai["w_online"])
    ours = sample_fn(f, **recorded, times=(80.0,), t_min=0.002, clip=True)
    np.testing.assert_allclose(ours, openai["karras_sample_onestep_clip"], rtol=1e-9, atol=1e-15)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "n", "t_max", "rho"), [("heun18", 18, 80.0, 7.0), ("heun40", 40, 80.0, 7.0), ("rho5", 10, 60.0, 5.0)]
)
def test_ode_sampling_is_edms(edm, name, n, t_max, rho):
    start = t_max * edm["noises"][0]
    times = karras_grid(n, t_min=0.002, t_max=t_max, rho=rho)[::-1]
    ours = sample_denoiser(toy_denoiser, KEY, start.shape, start=start, times=times, path=ve, solver=heun)
    np.testing.assert_allclose(ours, edm[f"edm_sampler_{name}"], rtol=1e-9)


MU, LAMBDA = 0.3, 0.16


def exact_map(path):
    """Φ(x, t, s) = a_s·μ + √(V_s/V_t)·(x − a_t·μ) of data N(μ, λ), V = a²λ + b²."""

    def flow(params, x, t, s, **conditions):
        a, b, a_s, b_s = path.a(t), path.b(t), path.a(s), path.b(s)
        return a_s * MU + jnp.sqrt((a_s**2 * LAMBDA + b_s**2) / (a**2 * LAMBDA + b**2)) * (x - a * MU)

    return flow


@pytest.mark.parametrize(("path", "t_max"), [(linear, 1.0), (trig(sigma_data=0.5), 1.56454)])
def test_a_flow_map_is_sampled_on_its_own_path(path, t_max):
    """In one evaluation, in several, and by its chain, whose times in between change nothing."""
    both = BoundModel({}, lambda p, x, t, s: exact_map(path)(p, x, jnp.asarray(t), jnp.asarray(s)), (1,), 0.0, t_max,
                   "flow_map", path)  # fmt: skip
    key, shape = jax.random.key(0), (20_000, 1)
    for times in ((t_max,), (t_max, 0.5)):
        samples = sample_fn(both, key, shape, times=times)
        np.testing.assert_allclose((samples.mean(), samples.var()), (MU, LAMBDA), atol=0.012)
    one = sample_fn(both, key, shape, times=(t_max,))
    np.testing.assert_allclose(sample_chain(both, key, shape, times=(t_max, 0.7, 0.2, 0.0)), one, atol=2e-5)
    np.testing.assert_allclose(sample_fn(both, key, shape, times=(t_max,), path=path), one, atol=1e-6)
    with pytest.raises(ValueError, match="s was given"):
        BoundModel({}, lambda p, x, t: x, (1,), 0.0, t_max, "consistency", path)(one, 1.0, 0.5)


def test_ddim_is_exact_for_a_constant_denoiser_on_any_path():
    """A trajectory to a point: x_t = a(t)·x0 + b(t)·noise, whatever the steps."""
    for path, times in ((linear, (0.9, 0.5, 0.1)), (trig(sigma_data=0.5), (1.5, 0.8, 0.2)), (ve, (80.0, 3.0, 0.1))):
        states = []

        def denoiser(x, t, states=states):
            states.append((x, t))
            return jnp.full_like(x, 0.3)

        with jax.disable_jit():
            sample_denoiser(denoiser, jax.random.key(0), (4, 2), times=times, path=path, solver=ddim)
        first, begin = states[0][0], jnp.asarray(times[0])
        for x, t in states:
            t = jnp.asarray(t)
            straight = path.a(t) * 0.3 + path.b(t) / path.b(begin) * (first - path.a(begin) * 0.3)
            np.testing.assert_allclose(x, straight, rtol=1e-4, atol=1e-5)
