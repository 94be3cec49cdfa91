"""Training and sampling where JAX computes in float64 by default, or promotes no types: every recipe's step and sampler
can be traced, and a state keeps its types."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_configs import RECIPES, SHAPES, flow_map_of, read, smallest

from cmjax.config.fields import changed
from cmjax.config.run import read_run
from cmjax.core import paths
from cmjax.core.grids import path_grid
from cmjax.data.batches import batch_shapes
from cmjax.generation.sampling import class_labels, consistency_sample, diffusion_sample, with_guidance
from cmjax.nets.adapter import parameter_shapes
from cmjax.planning.abstract import frozen_shapes
from cmjax.runs.setup import mesh_of
from cmjax.runs.train_step import train_step_of
from cmjax.training.optimizer import track_averages
from cmjax.training.step import state_shapes

MODES = {"float64": lambda: jax.enable_x64(True), "strict": lambda: jax.numpy_dtype_promotion("strict")}
BATCH = 16
HERE = [name if name.startswith("digits") else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]


def step_and_sample(name):
    """The types of a recipe's state before and after a step, and of its samples. Nothing is computed."""
    config, _ = read(name, smallest(name))
    config = config.to_dict() | {"batch_size": BATCH, "grad_accumulation": 1}
    config = changed(config, "net.depth", 1) if config["net"]["name"] == "mlp" else config
    run = read_run(config, data_there=False)
    shape, model = SHAPES[run.data.name], run.make_model(10)
    params = parameter_shapes(model.module, shape)
    state = state_shapes(params, run.optimizer)
    teacher = flow_map_of(run.method.teacher, name, smallest(name)) if run.method.teacher else None
    batch = batch_shapes(shape, np.uint8 if shape[-1] in (1, 3) else np.float32, 10, BATCH)
    step = train_step_of(run, model, teacher, mesh_of(run, jax.devices()[:1]))
    after, _ = jax.eval_shape(step, state, frozen_shapes(run, teacher), batch)

    labels = class_labels(4, 10 if model.class_conditional else None)
    guided, conditions = with_guidance(model.bind(params, shape), labels, run.samples.guidance, takes=model.guided)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 4))
    times = run.samples.levels(model)
    if run.samples.solver is not None:
        images = jax.eval_shape(diffusion_sample(run.samples, times), guided, keys, conditions)
    else:
        given = guided, jax.ShapeDtypeStruct((len(times),), jnp.float32)
        images = jax.eval_shape(consistency_sample(run.samples), given, keys, conditions)
    assert images.shape == (4, *shape)
    return [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (state, after)]


@pytest.mark.parametrize("name", HERE)
def test_every_recipe_trains_and_samples_where_float64_is_enabled(name):
    with MODES["float64"]():
        before, after = step_and_sample(name)
    assert before == after


STRICT = ("digits_ct", "digits_ect", "digits_shortcut")


@pytest.mark.parametrize(
    "name", [name if name in STRICT else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_a_recipe_trains_and_samples_where_no_types_are_promoted(name):
    with MODES["strict"]():
        before, after = step_and_sample(name)
    assert before == after


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "average", ["ema(rate=0.9)", "ema(rate=0.9, corrected=False)", "half_life(mimg=1)", "power(std=0.1)"]
)
def test_a_step_with_each_average_keeps_its_types(mode, average):
    config = read("digits_ct")[0].to_dict() | {"batch_size": BATCH}
    config = changed(changed(config, "net.depth", 1), "net.width", 8)
    config = changed(changed(config, "optimizer.averages", [average]), "objective.target", "scheduled_ema(mu0=0.9)")
    with MODES[mode]():
        run = read_run(config)
        model, mesh = run.make_model(10), mesh_of(run, jax.devices()[:1])
        state = state_shapes(parameter_shapes(model.module, (8, 8, 1)), run.optimizer)
        batch = batch_shapes((8, 8, 1), np.uint8, 10, BATCH)
        after, _ = jax.eval_shape(train_step_of(run, model, None, mesh), state, {}, batch)
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda leaf: leaf.dtype, state)


def test_averages_keep_their_type_where_rates_are_float64():
    with MODES["float64"]():
        tracker = track_averages({"a": lambda step: jnp.asarray(0.9)})
        params = jnp.ones(3, jnp.float32)
        _, state = tracker.update(params, tracker.init(params), params)
        assert state.averages["a"].dtype == jnp.float32


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("path", [paths.ve, paths.trig(sigma_data=0.5), paths.linear, paths.vp()])
def test_a_path_has_its_grid(mode, path):
    with MODES[mode]():
        grid = path_grid(8, path=path, t_min=0.01, t_max=0.99, rho=7.0)
    np.testing.assert_allclose(grid, path_grid(8, path=path, t_min=0.01, t_max=0.99, rho=7.0), rtol=1e-5)
