"""Methods of groups: IMM, whose groups have equal times, and CMT, whose groups lie on a teacher's trajectory.

Each loss is compared with its formula in numpy, and with the exact flow map, where it must vanish.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate
from scipy.special import ndtr

from cmjax import Batch, Model, Times, losses, oracles, paths, solvers
from cmjax.core import map_pairs
from cmjax.core.distances import adaptive, l2
from cmjax.core.grids import logarithmic, shifted
from cmjax.core.losses.moments import laplace
from cmjax.core.ode import euler_step, heun_step
from cmjax.core.paths import linear, per_sample, ve
from cmjax.core.preconditioning import ctm, linear_flow
from cmjax.core.weightings import sigmoid, uniform

pytestmark = pytest.mark.usefixtures("x64")
KEY = jax.random.key(0)
W = np.array([0.7, 0.9, 0.3])
TRIG = paths.trig(sigma_data=0.5)
SUM = partial(adaptive, p=0.0, c=0.0)


def plain(w, x, c_noise, *, key=None, c_noise_s=0.0, label=0):
    return w[0] * jnp.tanh(w[1] * x + w[2] * jnp.cos(c_noise + 0.3 * c_noise_s + 0.1 * label)[:, None])


def trig_flow(t, s):
    return linear_flow(t, s)._replace(c_skip=jnp.cos(t - s), c_out=-0.5 * jnp.sin(t - s))


FLOWS = {
    "linear": Model(plain, linear, linear_flow),
    "noise of half": Model(plain, paths.linear_to(noise_scale=0.5), linear_flow),
    "trig": Model(plain, TRIG, trig_flow),
    "ve": Model(plain, ve, partial(ctm, sigma_data=0.5)),
}


def batch_of(count, group, seed=0, **conditions):
    """A batch whose times are equal in each group, s < r < t."""
    x0, noise = jax.random.normal(jax.random.key(seed), (2, count, 5), jnp.float64)
    times = jax.random.uniform(jax.random.key(seed + 1), (3, count // group), jnp.float64, 0.1, 0.9)
    s, r, t = jnp.repeat(jnp.sort(times, axis=0), group, axis=1)
    return Batch(x0, noise, Times(t, r, s), conditions)


def from_numpy(model, w, batch, group, kernel, weight):
    """The loss of each group, of sums over its pairs; and the ends of the target, which stay."""
    t, r, s = batch.times
    kept = batch.conditions.get("kept_label", batch.conditions.get("label"))

    def ends(w, at, label):
        inputs = {} if label is None else {"label": label}
        return np.asarray(model(w, batch.noised(model.path, at), at, s, **inputs))

    targets = ends(W, r, kept)
    gain = np.abs(np.asarray(model.scalings(t, s).c_out))
    found = ends(w, batch.times.t, batch.conditions.get("label"))
    each = []
    for first in range(0, len(t), group):
        members = range(first, first + group)

        def mean(x, y, members=members, first=first):
            return np.mean([kernel(x[i] - y[j], 1 / gain[first]) for i in members for j in members])

        value = mean(found, found) + mean(targets, targets) - 2 * mean(found, targets)
        each += group * [weight(float(t[first]), float(s[first])) * value]
    return np.array(each)


def weight_in_numpy(t, s):
    """−½·λ'·sigmoid(5 − λ)·a/(a² + b²), with λ = ln(a²/b²) of the linear path whose noise has the data's std."""
    log_snr = 2 * np.log((1 - t) / t)
    return 1 / (t * (1 - t)) / (1 + np.exp(log_snr - 5)) * (1 - t) / ((1 - t) ** 2 + t**2)


def laplace_in_numpy(gap, scale):
    return np.exp(-scale * max(np.sqrt(np.sum(gap**2)), 1e-4) / len(gap))


@pytest.mark.parametrize("on", FLOWS)
def test_imm_is_its_formula(on):
    """And its gradient that of central differences, in which the target's ends stay as they are."""
    model, labels = FLOWS[on], {"label": jnp.array([0, -1, 2, 3, -1, 1]), "kept_label": jnp.arange(6)}
    batch = batch_of(6, 3, **labels)
    half = on == "noise of half"
    weight = partial(sigmoid, path=model.path, sigma_data=0.5) if half else uniform
    in_numpy = partial(
        from_numpy, model, batch=batch, group=3, kernel=laplace_in_numpy,
        weight=weight_in_numpy if half else lambda t, s: 1.0,
    )  # fmt: skip

    def each(w):
        return losses.imm(model, w, None, batch, group=3, weight=weight)

    value, gradient = exact.loss_and_gradient(each, W)
    np.testing.assert_allclose(value, in_numpy(W), rtol=1e-9, atol=1e-14)
    steps = 1e-5 * np.eye(3)
    slopes = [(in_numpy(W + step).mean() - in_numpy(W - step).mean()) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, slopes, rtol=1e-4, atol=1e-9)


@dataclass(frozen=True)
class ToTheEnd(Model):
    """A flow map as a consistency model: the state at the times `end`."""

    end: jax.Array = None

    def __call__(self, params, x, t, s=None, *, key=None, **conditions):
        return super().__call__(params, x, t, self.end, key=key, **conditions)


@pytest.mark.parametrize("on", FLOWS)
def test_one_sample_in_a_group_is_consistency_training(on):
    """Of the kernel −‖x − y‖²: the loss is twice that of CT with the squared norm."""
    model, batch = FLOWS[on], batch_of(6, 1)
    one_time = ToTheEnd(model.net, model.path, model.scalings, batch.times.s)

    def imm(w):
        return losses.imm(
            model, w, None, batch, group=1, kernel=lambda gap, scale: -jnp.sum(gap**2, -1), weight=uniform
        )

    def ct(w):
        times = Times(batch.times.t, batch.times.r)
        return 2 * losses.ct(one_time, w, None, Batch(batch.x0, batch.noise, times), distance=SUM, weight=uniform)

    for ours, theirs in zip(exact.loss_and_gradient(imm, W), exact.loss_and_gradient(ct, W), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10)
        assert np.abs(ours).min() > 0


GROUP = 4


def near(params, variance):
    """IMM's losses, one for each group: x_r lies so near x_t that a sample and its target count as one point."""
    count = 80_000
    x0, t = (
        exact.data(jax.random.key(1), count),
        jax.random.uniform(jax.random.key(2), (2, count // GROUP), jnp.float64),
    )
    t, s = jnp.repeat(0.2 + 0.75 * jnp.sort(t, axis=0)[::-1], GROUP, axis=1)
    times = Times(t, jnp.maximum(t - 1e-6, s), s)
    model = Model(exact.velocity_network(variance), linear, linear_flow)
    return evaluate(losses.imm, model, params, KEY, x0, times, group=GROUP, weight=uniform)[::GROUP]


def test_imm_has_no_gradient_in_the_mean_at_the_exact_map():
    right, wrong = exact.standard_errors(near, 4 * exact.VARIANCE)
    assert right < 4
    assert wrong > 10


MIXTURE = {"weights": jnp.array([0.3, 0.7]), "means": jnp.array([-0.6, 0.4]), "variances": jnp.array([0.02, 0.05])}


@dataclass(frozen=True)
class OfMixture(Model):
    """The exact flow map of a mixture, moved by the parameters away from the boundary."""

    weights: tuple = (0.3, 0.7)

    def __call__(self, params, x, t, s=None, *, key=None):
        mixture = {**MIXTURE, "weights": jnp.array(self.weights)}
        end = oracles.mixture_flow_map_1d(x[:, 0], t, s, **mixture, iterations=60)[:, None]
        return end + per_sample(t - s, x) * exact.moves(params, x, t)


@pytest.mark.parametrize(("weights", "zero"), [((0.3, 0.7), True), ((0.4, 0.6), False)])
def test_imm_has_no_gradient_in_the_mean_at_a_mixtures_exact_map(weights, zero):
    count = 40_000
    part, at = jax.random.uniform(jax.random.key(3), (2, count), jnp.float64) < 0.3, jax.random.normal(KEY, (count,))
    mean, variance = (jnp.where(part[0], MIXTURE[name][0], MIXTURE[name][1]) for name in ("means", "variances"))
    x0 = (mean + jnp.sqrt(variance) * at.astype(jnp.float64))[:, None]
    t = jax.random.uniform(jax.random.key(5), (2, count // GROUP), jnp.float64, 0.1, 3.0)
    t, s = jnp.repeat(jnp.sort(t, axis=0)[::-1], GROUP, axis=1)
    model = OfMixture(plain, ve, partial(ctm, sigma_data=0.5), weights)
    times = Times(t, jnp.maximum(t - 1e-6, s), s)

    def each(params):
        return evaluate(losses.imm, model, params, jax.random.key(6), x0, times, group=GROUP, weight=uniform)[::GROUP]

    gradients = exact.gradients(each)
    errors = np.abs(gradients.mean(0)) / (gradients.std(0) / len(gradients) ** 0.5)
    assert errors.max() < 4 if zero else errors.max() > 10


def test_a_group_at_its_end_has_no_loss_and_a_finite_gradient():
    batch = batch_of(4, 2)
    batch = Batch(batch.x0, batch.noise, Times(batch.times.t, batch.times.t, batch.times.t))
    value, gradient = exact.loss_and_gradient(
        lambda w: losses.imm(FLOWS["linear"], w, None, batch, group=2, kernel=laplace, weight=uniform), W
    )
    np.testing.assert_allclose(value, 0, atol=1e-12)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("path", [linear, ve, TRIG], ids=repr)
def test_times_of_groups(path):
    """r has a noise level that is lower by 2^−k of the range; both times are of their truncated distributions."""
    t_min, t_max = 0.01, 0.95
    gap = map_pairs.level_gap(k=6, path=path, t_min=t_min, t_max=t_max)
    low, high = (float(path.noise_level(time)) for time in (t_min, t_max))
    for below, cumulative in (
        (map_pairs.uniform_below(t_min=t_min), lambda t: t),
        (map_pairs.lognormal_below(mean=-1.1, std=2.0, path=path, t_min=t_min),
         lambda t: ndtr((np.log(np.asarray(path.noise_level(t))) + 1.1) / 2)),
    ):  # fmt: skip
        times = map_pairs.grouped(below, gap, group=4, t_max=t_max)(KEY, 40_000, 0)
        for time in times:
            np.testing.assert_array_equal(time.reshape(-1, 4), time.reshape(-1, 4)[:, :1].repeat(4, axis=1))
        t, r, s = (time[::4].astype(jnp.float64) for time in times)
        assert np.all((t_min <= s) & (s <= r) & (r <= t) & (t <= t_max))
        lower = path.time_at(jnp.maximum(path.noise_level(t) - (high - low) / 64, low))
        np.testing.assert_allclose(r, jnp.maximum(lower, s), rtol=1e-5, atol=1e-6)
        bottom = cumulative(t_min)
        for time, top in ((t, cumulative(t_max)), (s, cumulative(t))):
            placed = np.sort((cumulative(time) - bottom) / (top - bottom))
            assert np.max(np.abs(placed - np.linspace(0, 1, len(placed)))) < 1.6 / len(placed) ** 0.5


def test_a_level_gap_needs_a_finite_level():
    with pytest.raises(ValueError, match="finite at t_max=1"):
        map_pairs.level_gap(k=6, path=linear, t_min=0.0, t_max=1.0)


def test_a_batch_holds_whole_groups():
    with pytest.raises(ValueError, match="group=4 must divide the batch of 6 samples"):
        losses.imm(FLOWS["linear"], W, None, batch_of(6, 2), group=4, weight=uniform)


LOG_GRID, SHIFTED = logarithmic(steps=4, t_min=0.01, t_max=8.0), shifted(steps=5, t_min=0.0, t_max=1.0, shift=3.0)


def taught(x, t, *, label=0.0):
    """A teacher that is no exact denoiser, so that trajectories differ from those of any other formula."""
    t, label = (jnp.broadcast_to(jnp.asarray(value), x.shape[:1])[:, None] for value in (t, label))
    return 0.4 * jnp.tanh(x + 0.2 * label) + 0.1 * jnp.sin(t)


def euler_in_numpy(x, times, label):
    """All states of Euler's method on `ve` and the linear path alike: x + (r − t)/t·(x − D)."""
    found = [x]
    for t, r in pairwise(times):
        x = x + (r - t) / t * (x - np.asarray(taught(x[None], t, label=label)[0]))
        found.append(x)
    return np.array(found)


def test_cmt_is_its_formula():
    """A trajectory for each group, of its first sample; all its states are mapped to its end."""
    model = Model(plain, ve, lambda t: ctm(t, jnp.full_like(t, 0.01), sigma_data=0.5)._replace(c_noise_s=None))
    x0, noise = jax.random.normal(KEY, (2, 8, 5), jnp.float64)
    label = jnp.array([3, 0, 0, 0, 1, 2, 2, 2])
    times = Times(jnp.asarray(np.tile(LOG_GRID[:0:-1], 2)))
    np.testing.assert_allclose(map_pairs.all_of(LOG_GRID)(KEY, 8, 0).t, times.t, rtol=1e-6)
    expected = []
    for first in (0, 4):
        states = euler_in_numpy(np.asarray(x0[first] + 8.0 * noise[first]), LOG_GRID[::-1], float(label[first]))
        out = model(W, jnp.asarray(states[:-1]), jnp.asarray(LOG_GRID[:0:-1]), label=jnp.full(4, label[first]))
        expected.append(np.sum((np.asarray(out) - states[-1]) ** 2, axis=1))
    trajectory = partial(solvers.states, path=ve, ode_step=euler_step)
    ours = losses.cmt(
        model, W, None, Batch(x0, noise, times, {"label": label}),
        teacher=taught, trajectory=trajectory, grid=LOG_GRID, distance=SUM,
    )  # fmt: skip
    np.testing.assert_allclose(ours, np.concatenate(expected), rtol=1e-9)


def test_cmt_of_maps_is_its_formula():
    """The mean velocity between two states of one trajectory, at the times that the states have."""
    model = FLOWS["linear"]
    x0, noise = jax.random.normal(KEY, (2, 6, 5), jnp.float64)
    places = np.array([[5, 0], [3, 1], [4, 3], [2, 0], [5, 4], [1, 0]])
    t, s = SHIFTED[places[:, 0]], SHIFTED[places[:, 1]]
    targets = []
    for i in range(6):
        states = euler_in_numpy(np.asarray(noise[i - i % 3]), SHIFTED[::-1], 0.0)[::-1]
        targets.append([states[places[i, 0]], (states[places[i, 0]] - states[places[i, 1]]) / (t[i] - s[i])])
    x_t, velocity = np.moveaxis(np.array(targets), 1, 0)
    expected = np.sum((np.asarray(model.output(W, *map(jnp.asarray, (x_t, t, s)))) - velocity) ** 2, axis=1)
    trajectory = partial(solvers.states, path=linear, ode_step=euler_step)
    ours = losses.cmt_map(
        model, W, None, Batch(x0, noise, Times(jnp.asarray(t), s=jnp.asarray(s))),
        teacher=taught, trajectory=trajectory, grid=SHIFTED, group=3, distance=SUM,
    )  # fmt: skip
    np.testing.assert_allclose(ours, expected, rtol=1e-8)


def place_in(grid, times):
    """Of times in float32, which has no point of the grid exactly."""
    return np.abs(grid[None] - np.asarray(times)[:, None]).argmin(1)


def on_the_exact_flow(path):
    """A teacher's trajectory without a solver's error: the states of the exact flow."""
    return lambda denoise, x, times: jnp.stack([exact.flow(path, x, times[0], t) for t in times])


@pytest.mark.parametrize("method", ["cmt", "cmt_map"])
def test_no_state_has_a_gradient_at_the_exact_map(method):
    path, grid = (ve, LOG_GRID) if method == "cmt" else (linear, SHIFTED)
    pairs = map_pairs.all_of(grid) if method == "cmt" else map_pairs.two_of(grid)
    times = pairs(KEY, 32, 0)
    snapped = Times(*(None if time is None else jnp.asarray(grid[place_in(grid, time)]) for time in times))
    choices = {"teacher": exact.teacher(path), "trajectory": on_the_exact_flow(path), "grid": grid, "distance": l2}
    choices |= {} if method == "cmt" else {"group": 8}

    def each(variance, params):
        if method == "cmt":
            model = exact.consistency_model(ve, end=grid[0], variance=variance)
        else:
            model = Model(exact.velocity_network(variance), linear, linear_flow)
        return evaluate(getattr(losses, method), model, params, KEY, exact.data(KEY, 32), snapped, **choices)

    assert np.abs(exact.gradients(partial(each, exact.VARIANCE))).max() < 1e-12
    assert np.abs(exact.gradients(partial(each, exact.OFF))).max() > 1e-3


def test_pairs_of_a_grid_are_equally_probable():
    times = map_pairs.two_of(SHIFTED)(KEY, 60_000, 0)
    places = [place_in(SHIFTED, time) for time in (times.t, times.s)]
    assert np.all(places[0] > places[1])
    counts = np.bincount(6 * places[0] + places[1], minlength=36)
    expected = 60_000 / 15
    assert np.sum(counts > 0) == 15
    assert np.all(np.abs(counts[counts > 0] - expected) < 5 * expected**0.5)


@pytest.mark.parametrize("name", ["dpmpp_3m", "heun", "euler"])
def test_every_state_of_a_trajectory_is_that_of_the_solver(name):
    """The solver that stops at a time is at the trajectory's state there, and the first state is the start."""
    solver = getattr(solvers, name)
    step = {"heun": heun_step, "euler": euler_step}.get(name)
    whole = solvers.dpmpp_3m_states if step is None else partial(solvers.states, ode_step=step)
    x = 8 * jax.random.normal(KEY, (3, 5), jnp.float64)
    times = LOG_GRID[::-1]
    states = whole(taught, x, times, path=ve)
    assert states.shape == (5, 3, 5)
    np.testing.assert_array_equal(states[0], x)
    for n in range(2, 6):
        stopped = solver(taught, x, times[:n], lambda index: x, path=ve, to_zero=False)
        np.testing.assert_allclose(states[n - 1], stopped, rtol=1e-12)


def test_dpm_solver_of_order_three_is_its_formula():
    """The steps of the paper's φ functions, with D a parabola through the last three evaluations."""
    x = 8 * np.asarray(jax.random.normal(KEY, (3, 5), jnp.float64))
    times, past = LOG_GRID[::-1], []
    ours = solvers.dpmpp_3m_states(taught, jnp.asarray(x), times, path=ve)
    for i, (t, r) in enumerate(pairwise(times)):
        h, past = np.log(t / r), [np.asarray(taught(x, t)), *past]
        phi_1 = -np.expm1(-h)
        phi_2 = 1 - phi_1 / h
        phi_3 = 0.5 - phi_2 / h
        first = second = np.zeros_like(x)
        if i == 1:
            x = r / t * x + phi_1 * (past[0] + (past[0] - past[1]) / np.log(times[0] / times[1]) * h / 2)
            np.testing.assert_allclose(ours[i + 1], x, rtol=1e-12)
            continue
        if i > 1:
            at = -np.log(times[i - 2 : i + 1][::-1] / t)
            fit = np.polyfit(at, np.array([p.ravel() for p in past[:3]]), 2)
            first, second = fit[1].reshape(x.shape) * h, 2 * fit[0].reshape(x.shape) * h**2
        x = r / t * x + phi_1 * past[0] + phi_2 * first + phi_3 * second
        np.testing.assert_allclose(ours[i + 1], x, rtol=1e-9)
