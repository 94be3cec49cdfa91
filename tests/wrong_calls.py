"""Calls of the library that cannot be right, and what each raises, as JSON: run alone, without checks of signatures."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import cmjax
from cmjax import editing, likelihood, losses, ode, paths, solvers
from cmjax import preconditioning as pre
from cmjax.nets import NETS
from cmjax.nets.adapter import as_net

KEY = jax.random.key(0)
LATER, EARLIER = jnp.full(4, 0.9), jnp.full(4, 0.8)
X, Z = jnp.full((4, 8, 8, 1), 0.5), jnp.ones((4, 8, 8, 1))
SCALINGS = partial(pre.consistency, sigma_data=0.5, t_min=0.002)


def net(params, x, c_noise, *, key=None, **conditions):
    return params * x


MODEL = cmjax.Model(net, paths.ve, SCALINGS)
FLOW = cmjax.BoundModel(jnp.ones(()), MODEL, (8, 8, 1), 0.002, 80.0, "consistency", paths.ve)
MLP = NETS["mlp"](width=8, depth=1, num_classes=3)
WEIGHTS = MLP.init(KEY, X, jnp.ones(4))["params"]
CLASSES = cmjax.BoundModel(WEIGHTS, cmjax.Model(as_net(MLP), paths.ve, SCALINGS), (8, 8, 1), 0.002, 80.0, "consistency")
LABELLED = replace(CLASSES, unlabelled=False)


def loss(x0=X, noise=Z, t=LATER, r=EARLIER, key=None, model=MODEL, **conditions):
    return losses.ict(model, jnp.ones(()), key, cmjax.Batch(x0, noise, cmjax.Times(t, r), conditions))


def flow_loss(t, s):
    model = cmjax.Model(lambda p, x, c, *, c_noise_s, key=None: p * x, paths.linear, pre.linear_flow)
    batch = cmjax.Batch(X, Z, cmjax.Times(jnp.full(4, t), s=jnp.full(4, s)))
    return losses.meanflow(model, jnp.ones(()), None, batch, distance=cmjax.distances.l2)


def sample(flow_map=FLOW, key=KEY, shape=X.shape, times=(80.0, 0.8), **more):
    return cmjax.sample_fn(flow_map, key, shape, times=times, **more)


def chain(times):
    return cmjax.sample_chain(lambda x, t, s: x, KEY, X.shape, times=times)


def teacher(times=(80.0, 0.8), solver=solvers.heun, **more):
    return cmjax.sample_denoiser(FLOW, KEY, X.shape, times=times, path=paths.ve, solver=solver, **more)


def edit(times=(80.0, 0.8), images=X, **more):
    return editing.edit(FLOW, KEY, images, editing.nothing_known(), times=times, **more)


def encode(times):
    integrate = partial(ode.solve, ode_step=ode.euler_step)
    return likelihood.encode(FLOW, X, times=jnp.asarray(times), path=paths.ve, integrate=integrate)


def solve(solver, times):
    return solver(FLOW, X, jnp.asarray(times), lambda index: Z, path=paths.ve)


def label(value):
    return CLASSES(X, 1.0, label=value)


CALLS = {
    "noise of one sample": lambda: loss(noise=Z[:1]),
    "noise without channels": lambda: loss(noise=Z[..., 0]),
    "pixels of 8 bits in a loss": lambda: loss(x0=jnp.zeros(X.shape, jnp.uint8)),
    "pixels of 8 bits in a flow map": lambda: FLOW(jnp.zeros(X.shape, jnp.uint8), 1.0),
    "pixels of 8 bits in an edit": lambda: edit(images=jnp.zeros(X.shape, jnp.uint8)),
    "t of one sample": lambda: loss(t=jnp.full(1, 0.9)),
    "t a scalar": lambda: loss(t=0.9),
    "t with an axis more": lambda: loss(t=jnp.full((4, 1), 0.9)),
    "r above t": lambda: loss(t=jnp.full(4, 0.8), r=jnp.full(4, 0.9)),
    "r at t": lambda: loss(r=jnp.full(4, 0.9)),
    "s above t": lambda: flow_loss(0.5, 0.6),
    "t after the path's end": lambda: flow_loss(1.5, 0.6),
    "t below 0": lambda: loss(t=jnp.full(4, -1.0), r=jnp.full(4, -2.0)),
    "t no number": lambda: loss(t=jnp.full(4, jnp.nan)),
    "labels of fractions": lambda: loss(label=jnp.full(4, 1.5)),
    "labels below -1": lambda: loss(label=jnp.full(4, -3)),
    "labels of fewer samples": lambda: loss(label=jnp.arange(3)),
    "a label beyond the classes": lambda: label(jnp.full(4, 99)),
    "a label beyond the classes, in sampling": lambda: sample(CLASSES, label=jnp.full(4, 3)),
    "no label, of a model that has always had one": lambda: LABELLED(X, 1.0, label=jnp.full(4, -1)),
    "a label of a fraction": lambda: label(1.5),
    "labels as one-hot rows": lambda: label(jnp.eye(4)[:, :3]),
    "the key of a loss a number": lambda: loss(key=0),
    "a network of another shape": lambda: loss(
        model=cmjax.Model(lambda p, x, c, key=None: x[..., 0], paths.ve, SCALINGS)
    ),
    "a network that would broadcast": lambda: loss(
        model=cmjax.Model(lambda p, x, c, key=None: x[:, :1, :1], paths.ve, SCALINGS)
    ),
    "a path that was not called": lambda: cmjax.Model(net, paths.trig, SCALINGS),
    "a path's name": lambda: cmjax.Model(net, "ve", SCALINGS),
    "a path that was not called, in sampling": lambda: sample(path=paths.vp),
    "times ascend": lambda: sample(times=(0.8, 80.0)),
    "times ascend, as an array": lambda: sample(times=jnp.array([0.8, 80.0])),
    "times equal": lambda: sample(times=(80.0, 80.0)),
    "times no numbers": lambda: sample(times=(float("nan"),)),
    "a time below 0": lambda: sample(times=(-80.0,)),
    "a time below t_min": lambda: sample(times=(80.0, 0.0001)),
    "a time above t_max": lambda: sample(times=(200.0, 1.0)),
    "times of a chain ascend": lambda: chain((0.0, 80.0)),
    "times of a solver ascend": lambda: teacher(times=(0.8, 80.0)),
    "a solver's last time 0": lambda: teacher(times=(80.0, 0.0)),
    "a solver's time above t_max": lambda: teacher(times=(1e6, 1.0)),
    "times of an edit ascend": lambda: edit(times=(0.8, 80.0)),
    "times of an edit above t_max": lambda: edit(times=(800.0, 8.0)),
    "times of a likelihood ascend": lambda: encode((0.8, 80.0)),
    **{
        f"times of solvers.{name} ascend": partial(solve, getattr(solvers, name), (0.8, 80.0))
        for name in ("euler", "ddim", "heun", "midpoint", "dpmpp_2m", "dpmpp_3m", "ancestral")
    },
    "times of solvers.churn ascend": lambda: solve(partial(solvers.churn, s_churn=1.0), (0.8, 80.0)),
    "a flow map's t at 0": lambda: FLOW(X, 0.0),
    "a flow map's t above t_max": lambda: FLOW(X, 81.0),
    "a flow map's t of 3 samples": lambda: FLOW(X, jnp.ones(3)),
    "a flow map's x with channels first": lambda: FLOW(jnp.zeros((4, 1, 8, 8)), 1.0),
    "a flow map's x of one image": lambda: FLOW(X[0], 1.0),
    "fewer noises": lambda: sample(times=(80.0, 5.0, 2.0, 0.8), noises=jnp.stack([Z])),
    "noises that would broadcast": lambda: sample(noises=jnp.stack([Z[:1]])),
    "fewer noises for a solver": lambda: teacher(solver=partial(solvers.churn, s_churn=1.0), noises=jnp.stack([Z])),
    "a start of one sample": lambda: sample(start=Z[:1]),
    "the key a number": lambda: sample(key=0),
    "keys of 3 samples": lambda: sample(key=jax.random.split(KEY, 3)),
    "old keys of 3 samples": lambda: sample(key=jax.random.split(jax.random.PRNGKey(0), 3)),
    "a key of other numbers": lambda: sample(key=np.zeros(2, np.float32)),
    "a shape that is a number": lambda: sample(shape=4),
    "a batch size as a fraction's": lambda: cmjax.times.part_of(0.5, jax.export.symbolic_shape("b")[0]),
}


def raised(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def right():
    """What looks like these calls and is right."""
    same = sample(key=jax.random.PRNGKey(0)), sample(key=jax.random.key(0))
    np.testing.assert_array_equal(*same)
    by_sample = [jax.random.split(key, 4) for key in (jax.random.PRNGKey(0), KEY)]
    np.testing.assert_array_equal(*(sample(key=keys) for keys in by_sample))
    for given in (jnp.int32(1), 1, [0, 1, 2, -1], np.arange(4) % 3):
        assert sample(CLASSES, label=given).shape == X.shape
    assert jax.jit(lambda times: sample(times=times))(jnp.array([0.8, 80.0])).shape == X.shape  # traced
    assert loss(key=jax.random.PRNGKey(0)).shape == (4,)
    one, more = (sample(noises=jnp.stack([Z] * count)) for count in (1, 3))  # the first ones are added
    np.testing.assert_allclose(one, more, atol=1e-6)  # two programs
    assert teacher(noises=Z[None, :, :0]).shape == X.shape  # a solver of the ODE adds none


if __name__ == "__main__":
    right()
    print(json.dumps({name: raised(call) for name, call in CALLS.items()}))
