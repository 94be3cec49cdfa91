"""What runs over a mesh whose axes are Explicit, as `jax.make_mesh` makes them, or Auto, and for any batch size.

Most is traced for its shapes alone.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import cmjax
from cmjax import couplings, distances, editing, likelihood, losses, ode, paths, preconditioning, solvers
from cmjax.nets import NETS
from cmjax.nets.adapter import as_net, parameter_shapes
from cmjax.nets.conditional_unet import ConditionalUNet, prompted_net
from tests.test_in_other_code import CALLS, DDPM, ON, TRIG, W, batch_of

KEY = jax.random.key(0)
LEVELS = jnp.array([80.0, 5.0, 0.8])


def denoise(x, t, **conditions):
    return 0.5 * x + sum(0 * c.reshape(-1, *(1,) * (x.ndim - 1)) for c in conditions.values())


def flow(x, t, s, **conditions):
    return denoise(x, t, **conditions)


def loss_of(name):
    on, choices, _ = CALLS[name]
    loss = partial(getattr(losses, name), ON[on], **choices)

    def value_and_gradient(*fields):
        batch = cmjax.Batch(*fields)
        return loss(W, None, batch), jax.grad(lambda w: loss(w, None, batch).mean())(W)

    return value_and_gradient


def inputs_of(name):
    batch = batch_of(4, 1.0, **CALLS[name][2])
    return batch.x0, batch.noise, batch.times, dict(batch.conditions)


TINY = {"channels": 8, "channel_mult": (1, 2), "blocks": 1, "attention_resolutions": (4,)}
FIELDS = {
    "mlp": {"width": 16, "depth": 1, "embedding_width": 8, "frequencies": 4},
    "unet": {**TINY, "augment_dim": 9, "patch": 2},
    "unet ncsn++": {**TINY, "encoder": "residual", "decoder": "skip", "embedding": "fourier"},
    "adm": {**TINY, "head_channels": 8, "resample": "conv"},
    "dit": {"width": 16, "depth": 1, "heads": 2},
    "edm2": {**TINY, "head_channels": 8},
    "imf_dit": {"width": 16, "depth": 2, "heads": 2, "head_depth": 1, "two_times": False, "velocity_head": True},
}
"""Of small networks of 8x8 pixels; every network of `NETS` is among them, but for that of `prompted`."""


def network(name):
    fields = {"two_times": True, **FIELDS[name]}
    module = NETS[name.split()[0]](**fields, num_classes=3, dropout=0.1, guided=True, weight_head=4)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), parameter_shapes(module, (8, 8, 3)))
    net = as_net(module)

    def value_and_gradient(x, t, label):
        given = {"label": label, "guidance": t} | ({"c_noise_s": t} if module.two_times else {})
        out, pull = jax.vjp(lambda params: net(params, x, t, key=KEY, return_weight=True, **given), params)
        return out, pull(out)

    return value_and_gradient


def prompted(x, t, context):
    """The U-Net of prompts and its gradient."""
    fields = {"widths": (8, 16), "blocks": (1, 1), "transformers": (1, 1), "attends": (True, False), "heads": (2, 2)}
    fields |= {"attends_up": (True, False), "in_channels": 3, "out_channels": 3, "context_width": 4, "groups": 4}
    module = ConditionalUNet(**fields, guidance_width=6)
    params = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), parameter_shapes(module, (8, 8, 3)))
    net = partial(prompted_net, module, 1000)
    out, pull = jax.vjp(lambda params: net(params, x, t, context=context, guidance=t), params)
    return out, pull(out)


def solve(solver, x, label):
    start = {"start": x, "path": paths.ve, "label": label, "times": LEVELS}
    return cmjax.sample_denoiser(denoise, KEY, x.shape, solver=solver, **start)


def likelihoods(x):
    ways = {"times": LEVELS, "path": paths.ve, "integrate": partial(ode.solve, ode_step=ode.heun_step)}
    noise = likelihood.encode(denoise, x, **ways)
    return likelihood.decode(denoise, noise, **ways), likelihood.log_likelihood(denoise, KEY, x, **ways)


def edited(operator, x):
    return cmjax.editing.edit(denoise, KEY, x, operator, times=LEVELS, t_min=0.002)


X, T, LABEL = jnp.ones((4, 8, 8, 3)), jnp.full(4, 0.5), jnp.arange(4) % 3
CONTEXT = jnp.ones((len(X), 5, 4))
PAIRS = {
    "ve edm": (paths.ve, partial(preconditioning.edm, sigma_data=0.5)),
    "ve piecewise": (paths.ve, partial(preconditioning.piecewise, t_min=0.002)),
    "trig": (TRIG, partial(preconditioning.trig, sigma_data=0.5)),
    "trig edm": (TRIG, partial(preconditioning.trig_edm, sigma_data=0.5)),
    "linear": (paths.linear, preconditioning.linear),
    "vp": (paths.vp(), partial(preconditioning.epsilon, path=paths.vp())),
    "ddpm": (DDPM, partial(preconditioning.v_prediction, path=DDPM)),
}


def on_its_path(path, scalings, x, t):
    model = cmjax.Model(lambda params, x, c_noise, key=None: x, path, scalings)
    carried = paths.carry(model, path, paths.ve)
    return path.ddim(x, model(None, x, t), t, t / 2), path.velocity(x, x, t), carried(None, x, t)


FUNCTIONS = {
    **{f"losses.{name}": (loss_of(name), inputs_of(name)) for name in losses.__all__},
    **{f"a network, {name}": (lambda *inputs, name=name: network(name)(*inputs), (X, T, LABEL)) for name in FIELDS},
    "a network, conditional_unet": (prompted, (X, T, CONTEXT)),
    **{
        f"solvers.{name}": (partial(solve, getattr(solvers, name)), (X, LABEL))
        for name in ("euler", "ddim", "heun", "midpoint", "dpmpp_2m", "dpmpp_3m", "ancestral")
    },
    "solvers.churn": (partial(solve, partial(solvers.churn, s_churn=1.0)), (X, LABEL)),
    "sample_fn": (
        lambda x, label: cmjax.sample_fn(denoise, KEY, x.shape, times=LEVELS, t_min=0.002, label=label),
        (X, LABEL),
    ),
    "sample_chain": (
        lambda x, label: cmjax.sample_chain(flow, KEY, x.shape, times=LEVELS, gamma=0.5, start=x, label=label),
        (X, LABEL),
    ),
    "likelihood": (likelihoods, (X,)),
    "editing.colorization": (partial(edited, editing.colorization()), (X,)),
    "editing.super_resolution": (partial(edited, editing.super_resolution(2)), (X,)),
    "editing.inpainting": (partial(edited, editing.inpainting(jnp.ones((1, 8, 8, 1)))), (X,)),
    "editing.slerp": (editing.slerp, (X, X, T)),
    "editing.invert": (
        lambda x: editing.invert(denoise, x, x, time=80.0, steps=2, learning_rate=0.1)[0],
        (X,),
    ),
    "couplings.minibatch_ot": (partial(couplings.minibatch_ot, path=paths.ve), (X, X, T, LABEL)),
    **{f"distances.{name}": (getattr(distances, name), (X, X)) for name in ("l1", "l2", "linf")},
    **{f"the path {name}": (partial(on_its_path, *pair), (X, T)) for name, pair in PAIRS.items()},
}
SIZE_NEEDED = {
    "losses.imm": "group=2 needs the batch size",
    "losses.cmt": "group=2 needs the batch size",
    "losses.cmt_map": "group=2 needs the batch size",
    "losses.shortcut": "fraction=0.5 of the batch needs the batch size",
    "losses.tcm": "fraction=0.25 of the batch needs the batch size",
    "couplings.minibatch_ot": "minibatch_ot needs the batch size",
}
"""What cannot be exported for any batch size, and what it says."""


def over(mesh, function, inputs):
    """The shapes of the function's outputs, whose inputs are split by their samples over the mesh."""
    rows = NamedSharding(mesh, P("data"))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows), inputs)
    with jax.set_mesh(mesh):
        return jax.eval_shape(jax.jit(function), *shapes)


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_over_explicit_axes(name):
    function, inputs = FUNCTIONS[name]
    outputs = over(jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,)), function, inputs)
    first = jax.tree.leaves(outputs)[0]
    assert first.shape[0] == 4
    assert first.sharding.spec[0] == "data"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_for_any_batch_size(name):
    function, inputs = FUNCTIONS[name]
    (size,) = export.symbolic_shape("size")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype), inputs)
    if name in SIZE_NEEDED:
        with pytest.raises(ValueError, match=SIZE_NEEDED[name]):
            export.export(jax.jit(function))(*shapes)
    else:
        assert export.export(jax.jit(function))(*shapes).out_avals[0].shape[0] == size


def test_every_network_is_asked():
    assert {name.split()[0] for name in FIELDS} | {"conditional_unet"} == set(NETS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("losses.ict", AxisType.Auto),
        ("losses.sct", AxisType.Explicit),
        ("losses.shortcut", AxisType.Explicit),
        ("sample_fn", AxisType.Explicit),
    ],
)
def test_the_numbers_are_those_of_one_device(name, kind):
    """Also within `shard_map`, where each sample stands alone."""
    function, inputs = FUNCTIONS[name]
    expected = jax.tree.leaves(jax.jit(function)(*inputs))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        split = jax.device_put(inputs, NamedSharding(mesh, P("data")))
        found = jax.tree.leaves(jax.jit(function)(*split))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_network_over_shards_and_over_a_mesh_is_that_of_one_device():
    module = NETS["dit"](**FIELDS["dit"], num_classes=3)
    params = module.init(KEY, X, T)["params"]
    x = jax.random.normal(KEY, X.shape)

    def apply(x, t, label):
        return as_net(module)(params, x, t, label=label)

    expected = jax.jit(apply)(x, T, LABEL)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        split = jax.device_put((x, T, LABEL), NamedSharding(mesh, P("data")))
        np.testing.assert_allclose(jax.jit(apply)(*split), expected, atol=1e-6)
        shards = jax.shard_map(apply, in_specs=P("data"), out_specs=P("data"))
        np.testing.assert_allclose(jax.jit(shards)(*split), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "dit"])
def test_networks_and_losses_of_no_samples(name):
    inputs = jax.tree.map(lambda leaf: leaf[:0], (X, T, LABEL))
    assert jax.eval_shape(network(name), *inputs)[0][0].shape == (0, 8, 8, 3)
    assert loss_of("ict")(*jax.tree.map(lambda leaf: leaf[:0], inputs_of("ict")))[0].shape == (0,)
