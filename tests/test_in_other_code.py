"""Losses and `sample_fn` inside other people's JAX code: under their transformations, and with their networks."""

import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import cmjax
from cmjax import distances, losses, ode, oracles, paths, preconditioning, solvers, weightings
from cmjax.core.losses import tangents
from cmjax.core.losses.alpha_flow import inverse_alpha
from tests.compiling import on_devices

SHAPE = (4, 6)
CONSISTENCY = partial(preconditioning.consistency, sigma_data=0.5, t_min=0.002)


def exact(x, t):
    """The consistency function of Gaussian data."""
    return oracles.gaussian_flow_map(x, t, 0.002, mean=0.3, variance=0.04)


sample = partial(cmjax.sample_fn, exact, shape=SHAPE, times=(80.0, 0.8), t_min=0.002)


def test_under_jit_and_vmap_over_keys():
    keys = jax.random.split(jax.random.key(0), 5)
    batched = jax.jit(jax.vmap(sample))(keys)
    assert batched.shape == (5, *SHAPE)
    np.testing.assert_allclose(batched[3], sample(keys[3]), atol=1e-6)


def test_map_over_times():
    second = jnp.array([0.2, 0.8, 3.0])

    def at(time):
        times = jnp.stack([jnp.array(80.0), time])
        return cmjax.sample_fn(exact, jax.random.key(0), SHAPE, times=times, t_min=0.002)

    mapped = jax.jit(partial(jax.lax.map, at))(second)
    np.testing.assert_allclose(mapped[1], sample(jax.random.key(0)), atol=1e-6)


def test_gradients_through_it_find_the_noise_of_a_target():
    target = 0.3 + 0.2 * jnp.linspace(-1, 1, 6)[None]

    def distance(noise):
        return jnp.sum((exact(80.0 * noise, 80.0) - target) ** 2)

    @jax.jit
    def step(noise, _):
        return noise - 10.0 * jax.grad(distance)(noise), None

    noise = jax.lax.scan(step, jnp.zeros((1, 6)), length=100)[0]
    assert distance(noise) < 1e-6

    def mean_of_samples(shift):
        return jnp.mean(sample_with(shift, jax.random.key(0)))

    def sample_with(shift, key):
        return cmjax.sample_fn(lambda x, t: exact(x, t) + shift, key, SHAPE, times=(80.0, 0.8), t_min=0.002)

    slope = jax.grad(mean_of_samples)(0.1)
    estimate = (mean_of_samples(0.11) - mean_of_samples(0.09)) / 0.02
    np.testing.assert_allclose(slope, estimate, rtol=1e-2)


def test_an_nnx_module_as_the_network():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden, self.out = nnx.Linear(7, 16, rngs=rngs), nnx.Linear(16, 6, rngs=rngs)

        def __call__(self, x, c_noise):
            return self.out(jax.nn.silu(self.hidden(jnp.concatenate([x, c_noise[:, None]], axis=1))))

    graph, state = nnx.split(Net(nnx.Rngs(0)))

    def net(params, x, c_noise, *, key=None):
        return nnx.merge(graph, params)(x, c_noise)

    check_network(net, state)


def test_an_equinox_module_as_the_network():
    equinox = pytest.importorskip("equinox")
    mlp = equinox.nn.MLP(7, 6, 16, 1, key=jax.random.key(0))
    params, static = equinox.partition(mlp, equinox.is_array)

    def net(params, x, c_noise, *, key=None):
        module = equinox.combine(params, static)
        return jax.vmap(module)(jnp.concatenate([x, c_noise[:, None]], axis=1))

    check_network(net, params)


def check_network(net, params):
    """It learns and is sampled under jit; the gradients are finite and not zero."""
    f = cmjax.Model(net, paths.ve, CONSISTENCY)

    @jax.jit
    def mean_square(params, key):
        flow_map = partial(f, params)
        return jnp.mean(cmjax.sample_fn(flow_map, key, SHAPE, times=(80.0, 0.8), t_min=0.002) ** 2)

    @jax.jit
    def mean_loss(params, batch):
        return losses.ct(f, params, None, batch, distance=distances.l2, weight=weightings.uniform).mean()

    for value, gradient in (
        jax.value_and_grad(mean_square)(params, jax.random.key(0)),
        jax.value_and_grad(mean_loss)(params, batch_of(4, 1.0)),
    ):
        leaves = jax.tree.leaves(gradient)
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in leaves)
        assert max(float(jnp.abs(leaf).max()) for leaf in leaves) > 1e-6


def batch_of(count, t_max, seed=0, **conditions):
    x0, noise = jax.random.normal(jax.random.key(seed), (2, count, 6))
    s, r, t = jnp.sort(jax.random.uniform(jax.random.key(seed + 1), (3, count), minval=0.1, maxval=0.9) * t_max, axis=0)
    return cmjax.Batch(x0, noise, cmjax.Times(t, r, s), conditions)


W = jnp.array([0.7, 0.9, 0.3])


def plain(w, x, c_noise, *, key=None, c_noise_s=0.0, label=0, guidance=0.0, return_weight=False):
    """A network with all that a network may have."""
    shift = c_noise + 0.3 * c_noise_s + 0.1 * label + 0.2 * guidance
    out = w[0] * jnp.tanh(w[1] * x + w[2] * jnp.cos(shift)[:, None])
    return (out, w[2] * jnp.sin(c_noise)) if return_weight else out


TRIG, DDPM = paths.trig(sigma_data=0.5), paths.ddpm()
ON = {
    "ve": cmjax.Model(plain, paths.ve, CONSISTENCY),
    "trig": cmjax.Model(plain, TRIG, partial(preconditioning.trig, sigma_data=0.5)),
    "trig to any time": cmjax.Model(plain, TRIG, partial(preconditioning.trig_flow, sigma_data=0.5)),
    "linear": cmjax.Model(plain, paths.linear, preconditioning.linear_flow),
    "ve to any time": cmjax.Model(plain, paths.ve, partial(preconditioning.ctm, sigma_data=0.5)),
    "ddpm": cmjax.Model(plain, DDPM, partial(preconditioning.lcm, path=DDPM)),
}


def teacher(x, t, **conditions):
    return 0.5 * x


PLAIN, L2 = {"distance": distances.l2, "weight": weightings.uniform}, {"distance": distances.l2}
TAUGHT = {"teacher": teacher, "ode_step": ode.heun_step, **PLAIN}
ON_TRAJECTORIES = {  # of CMT's teacher
    path: {"teacher": teacher, "trajectory": partial(solvers.states, path=ON[path].path, ode_step=ode.heun_step), **L2}
    for path in ("ve", "linear")
}
SCALE = {"guidance": jnp.full(4, 2.0), "label": jnp.arange(4)}
CALLS = {
    "denoising": ("ve", {"weight": weightings.uniform}, {}),
    "edm2": ("ve", {"weight": weightings.uniform}, {}),
    "ct": ("ve", PLAIN, {}),
    "ict": ("ve", {}, {}),
    "ect": ("ve", PLAIN, {}),
    "sct": ("ve", PLAIN, {}),
    "tcm": ("ve", {"first_stage": teacher, "boundary": 0.3, "fraction": 0.25, "boundary_weight": 0.1, **PLAIN}, {}),
    "multistep_ct": ("ve", PLAIN, {}),
    "cd": ("ve", TAUGHT, {}),
    "guided_cd": ("ve", TAUGHT, SCALE),
    "lcm": ("ddpm", TAUGHT, SCALE),
    "pd": ("ve", {"target_params": W, "rho": 7.0, **PLAIN}, {}),
    "continuous_ct": ("ve", {"weight": weightings.uniform}, {}),
    "continuous_cd": ("ve", {"weight": weightings.uniform, "teacher": teacher}, {}),
    "scm_ct": ("trig", {"weighted": True}, {}),
    "scm_cd": ("trig", {"teacher": teacher}, {}),
    "meanflow": ("linear", {"guidance": 2.0, **L2}, {"label": jnp.arange(4)}),
    "imf": ("linear", L2, SCALE),
    "shortcut": ("linear", {"fraction": 0.5, **L2}, {}),
    "anyflow": ("linear", {"guidance": 2.0, "weight": weightings.towards_noise}, {"label": jnp.arange(4)}),
    "pmf": ("linear", {"perceptual": distances.l1, **L2}, {}),
    "tim": ("trig to any time", {"guidance": 2.0, **PLAIN}, {"label": jnp.arange(4)}),
    "alphaflow": ("linear", {"alpha": 0.5, "weight": inverse_alpha}, {}),
    "soflow": ("linear", {"guidance": 2.0, **L2}, {"label": jnp.arange(4)}),
    "lsd": ("linear", {"weighted": True, **L2}, {}),
    "psd": ("linear", {"weighted": True, **L2}, {}),
    "esd": ("linear", {"weighted": True, **L2}, {}),
    "tvm": ("linear", L2, SCALE),
    "rcgm": ("linear", {"blend": 0.5, **PLAIN}, {"label": jnp.arange(4)}),
    "facm": ("linear", {"teacher": teacher}, {}),
    "dmf": ("linear", {"guidance": 2.0}, {"label": jnp.arange(4)}),
    "ayf": ("linear", {"teacher": teacher, "normalize": tangents.unit_norm}, {}),
    "imm": ("linear", {"group": 2, "weight": weightings.uniform}, {"label": jnp.arange(4)}),
    "cmt": ("ve", {"grid": np.geomspace(0.002, 1.0, 3), **ON_TRAJECTORIES["ve"]}, {"label": jnp.arange(4)}),
    "cmt_map": ("linear", {"grid": np.linspace(0, 1, 5), "group": 2, **ON_TRAJECTORIES["linear"]}, {}),
    "ctm": ("ve to any time", {"grid": np.geomspace(0.002, 1.0, 6), "weight": weightings.uniform, **TAUGHT}, {}),
}


@pytest.mark.parametrize("name", losses.__all__)
def test_every_loss_under_jit_grad_vmap_and_jvp(name):
    on, choices, conditions = CALLS[name]
    loss = partial(getattr(losses, name), ON[on], **choices)
    one, other = (batch_of(4, 1.0, seed, **conditions) for seed in (0, 5))

    def mean(w, batch):
        each = loss(w, None, batch)
        assert each.shape == (4,)
        return each.mean()

    @jax.jit
    def all_at_once(w, one, other):
        mapped = jax.vmap(mean, (None, 0))(w, jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other))
        return jax.value_and_grad(mean)(w, one), mean(w, other), mapped, jax.jvp(lambda w: mean(w, one), (w,), (w,))[1]

    (value, gradient), second, mapped, slope = all_at_once(W, one, other)
    assert np.isfinite(value)
    assert np.all(np.abs(gradient) > 0)
    np.testing.assert_allclose(mapped, [value, second], rtol=1e-4)
    np.testing.assert_allclose(slope, gradient @ W, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["ct", "cd", "scm_ct", "meanflow", "alphaflow"])
def test_losses_under_shard_map(name):
    """Each device's mean over its part of the batch, averaged: the loss of the whole."""
    on, choices, conditions = CALLS[name]
    batch = batch_of(4, 1.0, **conditions)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def mean(w, batch):
        return getattr(losses, name)(ON[on], w, None, batch, **choices).mean()

    spec = jax.sharding.PartitionSpec
    parts = jax.shard_map(
        lambda w, batch: jax.lax.pmean(mean(w, batch), "data"),
        mesh=mesh, in_specs=(spec(), spec("data")), out_specs=spec(),
    )  # fmt: skip
    (shared, slope), (value, expected) = (jax.jit(jax.value_and_grad(of))(W, batch) for of in (parts, mean))
    np.testing.assert_allclose(shared, value, rtol=1e-5)
    np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-6)


def test_a_network_of_another_dtype_than_the_data():
    def half(w, x, c_noise, **inputs):
        return plain(w, x, c_noise, **inputs).astype(jnp.bfloat16)

    for name in ("imf", "meanflow", "alphaflow", "scm_ct", "continuous_ct", "ct"):
        on, choices, conditions = CALLS[name]
        choices = {**choices, "weighted": False} if name == "scm_ct" else choices
        model = cmjax.Model(half, ON[on].path, ON[on].scalings)
        loss = getattr(losses, name)(model, W, None, batch_of(4, 1.0, **conditions), **choices)
        assert np.all(np.isfinite(loss))


def test_a_network_that_lacks_what_a_loss_needs_is_named():
    def bare(w, x, c_noise, *, key=None):
        return w[0] * x

    def swallowing(w, x, c_noise, *, key=None, **conditions):
        return w[0] * x

    def model(net, on):
        return cmjax.Model(net, ON[on].path, ON[on].scalings)

    batch = batch_of(4, 1.0)
    losses.scm_ct(model(bare, "trig"), W, None, batch)  # asks for no weight by default
    with pytest.raises(TypeError, match=r"return_weight=….*does not take"):
        losses.scm_ct(model(bare, "trig"), W, None, batch, weighted=True)
    with pytest.raises(TypeError, match="a network with a weight head"):
        losses.scm_ct(model(swallowing, "trig"), W, None, batch, weighted=True)
    with pytest.raises(TypeError, match=r"c_noise_s=….*does not take"):
        losses.meanflow(model(bare, "linear"), W, None, batch, **L2)
    with pytest.raises(TypeError, match=r"scalings\(t, s\), which the function does not take"):
        losses.meanflow(cmjax.Model(plain, paths.linear, preconditioning.linear), W, None, batch, **L2)
    with pytest.raises(ValueError, match="the conditions guidance and label"):
        losses.guided_cd(ON["ve"], W, None, batch, **TAUGHT)
    other = cmjax.BoundModel(W, ON["ve"], (6,), 0.002, 80.0, "denoiser", paths.ve)
    with pytest.raises(ValueError, match="of another path than the model"):
        losses.scm_cd(ON["trig"], W, None, batch, teacher=other)
    with pytest.raises(ValueError, match="of a batch of 1 must leave"):
        losses.tcm(ON["ve"], W, None, batch_of(1, 1.0), **CALLS["tcm"][1])
    with pytest.raises(ValueError, match="r, the time of the target"):
        losses.ct(ON["ve"], W, None, cmjax.Batch(batch.x0, batch.noise, cmjax.Times(batch.times.t)), **PLAIN)


def test_losses_and_samplers_need_jax_numpy_and_jaxtyping_alone():
    others = ["flax", "optax", "orbax", "ml_collections", "absl", "tensorflow_datasets", "sklearn", "PIL", "rich"]
    program = f"""
import sys
sys.modules |= dict.fromkeys({others})
import cmjax
elsewhere = [name for module, names in cmjax._FROM.items() if not module.startswith("core") for name in names]
for name in cmjax.__all__:
    if name not in elsewhere: getattr(cmjax, name)
from cmjax import losses, paths, sample_fn
from cmjax import FlowMap, targets
print(FlowMap is cmjax.BoundModel, targets is cmjax.ema_rates, callable(losses.ct))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout == "True True True\n", done.stderr


SHARDED = """
    from functools import partial

    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

    import cmjax
    from cmjax import oracles

    exact = lambda x, t: oracles.gaussian_flow_map(x, t, 0.002, mean=0.3, variance=0.04)
    keys = jax.random.split(jax.random.key(0), 16)

    def sample(keys):
        return cmjax.sample_fn(exact, keys, (len(keys), 6), times=(80.0, 0.8), t_min=0.002)

    alone = sample(keys)
    assert jax.device_count() == 8
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P("data"))
    named = jax.jit(sample, in_shardings=split, out_shardings=split)(keys)
    assert named.sharding.shard_shape(named.shape) == (2, 6)
    mapped = jax.jit(jax.shard_map(sample, mesh=mesh, in_specs=P("data"), out_specs=P("data")))(keys)
    np.testing.assert_allclose(named, alone, atol=1e-6)
    np.testing.assert_allclose(mapped, alone, atol=1e-6)
    print("the same on 8 devices")
"""


def test_sharded_over_eight_devices_by_name_and_by_shard_map():
    environment = os.environ | {"XLA_FLAGS": on_devices(8), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SHARDED)], cwd=Path(__file__).parents[1], env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same on 8 devices" in done.stdout
