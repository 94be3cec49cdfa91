"""MeanFlow and iMF against the numbers of their authors' code: losses, gradients, an update, and the times drawn."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmjax import Batch, Model, Times, losses
from cmjax.core import guidance
from cmjax.core.distances import adaptive
from cmjax.core.pairs import sorted_pairs
from cmjax.core.paths import linear
from cmjax.core.preconditioning import linear_flow, linear_gap
from cmjax.core.times import logit_normal, uniform

pytestmark = pytest.mark.usefixtures("x64")
NULL = 4


@pytest.fixture(scope="module")
def recorded(shared):
    """The numbers recorded from the authors' code; parity/README.md says what each is."""
    return np.load(shared / "parity" / "flow_maps.npz")


def parts(recorded, flat):
    """The arrays of the toy network by their names; biases are rows."""
    shapes = [
        (1,) * (len(shape) == 1) + shape
        for shape in map(tuple, (recorded[f"net/shape/{name}"] for name in recorded["net/names"]))
    ]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    pieces = [piece.reshape(shape) for piece, shape in zip(jnp.split(flat, ends[:-1]), shapes, strict=True)]
    return dict(zip(recorded["net/names"].tolist(), pieces, strict=True))


def toy(recorded, flat, x, slots, label):
    """The hidden layer's output (b, 16), and the arrays of the heads."""
    w = parts(recorded, flat)
    told = sum(jnp.stack([t, jnp.sin(2 * t), 1 - jnp.cos(3 * t)], 1) @ w["w1s"][place] for place, t in slots.items())
    a = x.reshape(len(x), -1) @ w["w1x"] + told + w["emb"][jnp.where(label < 0, NULL, label)] + w["b1"]
    return jnp.tanh(jnp.tanh(a) @ w["w2"] + w["b2"]), w


def meanflow_model(recorded):
    def net(flat, x, c_noise, *, key=None, c_noise_s, label):
        h, w = toy(recorded, flat, x, {0: c_noise, 1: c_noise_s}, label)
        return (h @ w["w3"] + w["b3"]).reshape(x.shape)

    return Model(net, linear, linear_flow)


def imf_model(recorded):
    def net(flat, x, c_noise, *, key=None, label, guidance, interval, return_velocity):
        slots = {0: c_noise, 2: 1 - 1 / guidance, 3: interval[:, 0], 4: interval[:, 1]}
        h, w = toy(recorded, flat, x, slots, label)
        return (h @ w["w3"] + w["b3"]).reshape(x.shape), (h @ w["w3v"] + w["b3v"]).reshape(x.shape)

    return Model(net, linear, linear_gap)


def check(recorded, prefix, each):
    """The losses (b,) of the flat parameters, their gradient and, where it was recorded, one update."""
    value, gradient = jax.jit(lambda flat: (each(flat), jax.grad(lambda w: each(w).mean())(flat)))(
        jnp.asarray(recorded["net/online"])
    )
    np.testing.assert_allclose(value, recorded[f"{prefix}/loss_i"], rtol=1e-9)
    np.testing.assert_allclose(gradient, recorded[f"{prefix}/grad"], rtol=1e-9, atol=1e-14)
    if f"{prefix}/step_theta" in recorded:
        theta, rule = jnp.asarray(recorded["net/online"]), optax.adamw(1e-4, b2=0.95, weight_decay=0.0)
        updates, _ = rule.update(gradient, rule.init(theta), theta)
        np.testing.assert_allclose(theta + updates, recorded[f"{prefix}/step_theta"], rtol=1e-9)
        np.testing.assert_allclose(optax.tree.norm(gradient), recorded[f"{prefix}/grad_norm"], rtol=1e-9)


def batch_of(recorded, prefix, **conditions):
    label = np.where(recorded[f"{prefix}/dropped"], guidance.NO_LABEL, recorded["y"]).astype(np.int32)
    times = Times(jnp.asarray(recorded[f"{prefix}/t"]), s=jnp.asarray(recorded[f"{prefix}/r"]))
    conditions = {"label": jnp.asarray(label), **conditions}
    return Batch(jnp.asarray(recorded["x0"]), jnp.asarray(recorded["z"]), times, conditions)


def knob(recorded, prefix, name, default):
    return float(recorded[f"{prefix}/{name}"]) if f"{prefix}/{name}" in recorded else default


@pytest.mark.parametrize("variant", ["default", "plain", "cfg", "improved_cfg", "p_half"])
def test_meanflow_is_the_authors(recorded, variant):
    prefix = f"meanflow/{variant}"
    get = partial(knob, recorded, prefix)
    choices = {
        "guidance": get("omega", 1.0),
        "blend": get("kappa", 0.5 if variant == "default" else 0.0),
        "interval": (get("t_start", 0.0), get("t_end", 1.0)),
        "distance": partial(adaptive, p=get("norm_p", 1.0), c=get("norm_eps", 0.01)),
    }
    batch, model = batch_of(recorded, prefix), meanflow_model(recorded)
    check(recorded, prefix, lambda flat: losses.meanflow(model, flat, None, batch, **choices))


@pytest.mark.parametrize("variant", ["default", "p_half"])
def test_imf_is_the_authors(recorded, variant):
    prefix = f"imf/{variant}"
    get = partial(knob, recorded, prefix)
    interval = np.stack([recorded[f"{prefix}/t_min"], recorded[f"{prefix}/t_max"]], 1)
    batch = batch_of(
        recorded,
        prefix,
        guidance=jnp.asarray(recorded[f"{prefix}/omega"]),
        interval=jnp.asarray(interval),
        kept_label=jnp.asarray(recorded["y"].astype(np.int32)),
    )
    distance, model = partial(adaptive, p=get("norm_p", 1.0), c=get("norm_eps", 0.01)), imf_model(recorded)
    check(
        recorded,
        prefix,
        lambda flat: losses.imf(model, flat, None, batch, distance=distance, velocity_head=True),
    )


COUNT = 200_000


def check_quantiles(recorded, name, drawn):
    """Of 200,000 draws against as many: at each probability their empirical distribution, to 5 standard errors."""
    probs, theirs = recorded["probs"], recorded[name]
    inner = (probs > 0) & (probs < 1)
    below = np.mean(np.asarray(drawn)[:, None] <= theirs[None], axis=0)
    error = np.sqrt(probs * (1 - probs) * (1 / len(drawn) + 1 / (COUNT / 4)))
    assert np.all(np.abs(below - probs)[inner] < 5 * error[inner] + 1e-12), (name, below, probs)


@pytest.mark.parametrize(
    ("name", "times", "apart"),
    [
        ("meanflow/times_default", logit_normal(mean=-0.4, std=1.0), 0.25),
        ("meanflow/times_uniform", uniform(t_min=0.0, t_max=1.0), 0.25),
        ("imf/times_default", logit_normal(mean=-0.4, std=1.0), 0.5),
    ],
)
def test_the_times_are_the_authors(recorded, name, times, apart):
    """Exactly the first samples have s = t, and there t is the larger of two draws."""
    pair = sorted_pairs(times, times, apart=apart, exact=True)(jax.random.key(0), COUNT, 0)
    equal = np.asarray(pair.s == pair.t)
    assert equal.mean() == pytest.approx(float(recorded[f"{name}/share_equal"]), abs=1e-9)
    assert np.all(np.diff(equal.astype(int)) <= 0)
    check_quantiles(recorded, f"{name}/t_of_equal", pair.t[equal])
    check_quantiles(recorded, f"{name}/t_of_rest", pair.t[~equal])
    check_quantiles(recorded, f"{name}/r_of_rest", pair.s[~equal])


@pytest.mark.parametrize(("name", "power"), [("default", 1.0), ("beta2", 2.0)])
def test_the_scales_and_intervals_are_imfs(recorded, name, power):
    scales = guidance.sample_guidance(jax.random.key(1), COUNT, low=1.0, high=8.0, power=power)
    check_quantiles(recorded, f"imf/times_{name}/omega", scales)
    t = jnp.full(COUNT, 0.5)
    interval = guidance.sample_interval(jax.random.key(2), t, t.at[: COUNT // 2].set(0.1))
    np.testing.assert_array_equal(interval[COUNT // 2 :], np.tile([0.0, 1.0], (COUNT // 2, 1)))
    for place, end in enumerate(("t_min", "t_max")):
        check_quantiles(recorded, f"imf/times_{name}/{end}_of_rest", interval[: COUNT // 2, place])
