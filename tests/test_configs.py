"""Every recipe can be read, says in its first lines how it is run, fits the runs it builds on, and can be trained."""

import importlib
import inspect
from dataclasses import replace
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from exact import evaluate_method

from cmjax.config.averages import long_average, long_target
from cmjax.config.methods import METHODS, read_model_like
from cmjax.config.run import read_run
from cmjax.nets.adapter import parameter_shapes
from cmjax.runs.prompted_data import shapes_of_prompts
from cmjax.runs.setup import started_from

RECIPES = sorted(p.stem for p in (Path(__file__).parents[1] / "configs").glob("*_*.py") if p.stem != "__init__")
SHAPES = {
    "digits": (8, 8, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "folder": (64, 64, 3),
    "latents": (7, 7, 4),
    "signals": (64, 1),
}
"""Of one sample, by the name of the data."""
BATCH = 16
FOLDERS = ("workdir", "pipeline")
"""Flags that name the folder of a pipeline."""


@cache
def read(name, variant=""):
    """The recipe's configuration and its run."""
    module = importlib.import_module(f"configs.{name}")
    config = module.get_config(variant) if variant else module.get_config()
    if config.data.name != "digits":
        config.data.data_dir = "somewhere"
    return config, read_run(config.to_dict(), data_there=False)


@cache
def shapes_of(name, variant):
    """The model of a recipe, the shape of its samples and the shapes of its parameters."""
    config, run = read(name, variant)
    model, shape = run.make_model(10), SHAPES[config.data.name]
    return model, shape, parameter_shapes(model.module, shape)


def flow_map_of(workdir, recipe, variant):
    """What loading the run of a recipe gives, with the shapes of its parameters alone; of a pipeline of `recipe`, a
    diffusion model with its network."""
    name, _, named = Path(workdir).name.partition("-")
    if name in RECIPES:
        model, shape, params = shapes_of(name, named)
        return model.bind(params, shape)
    shape = shapes_of(recipe, variant)[1]
    model = read_model_like(read(recipe, variant)[0].to_dict(), "denoiser", None)
    return model.bind(parameter_shapes(model.module, shape), shape)


def traced_once(network):
    """The network, of which a second call of the same shapes costs nothing."""
    return jax.jit(network, static_argnames=("return_weight", "return_velocity"))


def smallest(name):
    """The recipe's variant for a laptop, where it has one."""
    module = importlib.import_module(f"configs.{name}")
    return "tiny" if inspect.signature(module.get_config).parameters else ""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_read_whole_and_says_how_it_is_run(name):
    config, _ = read(name)
    module = importlib.import_module(f"configs.{name}")
    needed = {config.init_from, *(config.objective.get(field, "") for field in ("teacher", "first_stage"))} - {
        "",
        "teacher",
    }
    for workdir in [name, *needed]:
        recipe = Path(workdir).name
        # what is imported or made by an example has no recipe
        named = [f"--config=configs/{recipe}.py"] if recipe in RECIPES else [f"--{w}={workdir}" for w in FOLDERS]
        assert any(text in str(module.__doc__) for text in named)


@pytest.mark.parametrize("name", RECIPES)
def test_the_averages_of_a_recipe_forget_their_start(name):
    config, run = read(name)
    assert not any(long_average(config, i, run.steps) for i, _ in enumerate(config.optimizer.averages))
    assert long_target(config, run.method.target_rate, run.steps) is None


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_starts_from_the_run_it_names(name):
    run = read(name, smallest(name))[1]
    if run.init_from:
        _, shape, params = shapes_of(name, smallest(name))
        other = flow_map_of(run.init_from, name, smallest(name))
        assert other.shape == shape
        assert jax.tree.structure(started_from(other.params, params, run.init_from)) == jax.tree.structure(params)


@pytest.mark.parametrize("name", RECIPES)
def test_a_train_step_of_a_recipe_can_be_traced(name):
    """The gradient of its mean loss, of shapes alone: nothing is compiled."""
    variant = smallest(name)
    run = read(name, variant)[1]
    model, shape, params = shapes_of(name, variant)
    teacher, frozen = None, {}
    if run.method.teacher:
        teacher = flow_map_of(run.method.teacher, name, variant)
        assert teacher.kind == run.method.teacher_kind
        frozen["teacher"] = teacher.params
        teacher = replace(teacher, function=traced_once(teacher.function))
    function = replace(model.function, net=traced_once(model.function.net))
    method = run.method.with_teacher(teacher, model.path)

    params, prompts = run.trained(params), shapes_of_prompts(model, BATCH)
    sampled = {name: jnp.zeros(shape) for name, shape in prompts.items()}
    if prompts and method.guidance is not None:
        sampled["negative"] = dict(sampled)

    def mean_loss(params, frozen, key, x0, step, label):
        params, conditions = run.whole(params, frozen), dict(sampled)
        conditions |= {"label": label} if model.class_conditional else {}
        if run.augment is not None:
            x0, conditions["augment"] = run.augment(x0, key)
        losses = evaluate_method(method, function, params, params, frozen, key, x0, step, conditions)
        assert losses.shape == (BATCH,)
        return jnp.mean(losses)

    inputs = jax.random.key(0), jnp.zeros((BATCH, *shape)), jnp.zeros((), jnp.int32), jnp.zeros(BATCH, jnp.int32)
    gradient = jax.eval_shape(jax.grad(mean_loss), params, frozen, *inputs)
    assert jax.tree.map(lambda leaf: leaf.shape, gradient) == jax.tree.map(lambda leaf: leaf.shape, params)


@pytest.mark.parametrize("data", ["digits", "cifar"])
def test_every_method_has_a_recipe(data):
    named = {read(name)[0].objective.name for name in RECIPES if name.startswith(data)}
    elsewhere = {"lcm", "edm2"}  # of discrete diffusion's path; of a network of its own
    if data == "cifar":
        elsewhere |= {"tim", "anyflow", "pmf", "rcgm", "psd", "esd", "tvm", "facm", "dmf", "ayf", "cmt_map"}
    assert METHODS.keys() - elsewhere <= named


def test_the_published_network_has_its_size():
    params = shapes_of("cifar_ct", "")[2]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 56_395_651


def test_a_recipe_may_write_a_choice_as_a_section():
    """Its parameters are then fields, which the command line can set one by one."""
    config = importlib.import_module("configs.digits_ct").get_config()
    for written in ("pseudo_huber(c=0.1)", {"name": "pseudo_huber", "c": 0.1}):
        objective = {**config.objective.to_dict(), "distance": written}
        method = read_run({**config.to_dict(), "objective": objective}).method
        distance = method.choices["distance"]
        assert (distance.func.__name__, distance.keywords) == ("pseudo_huber", {"c": 0.1})
