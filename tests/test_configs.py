"""Every recipe can be read, and says in its first lines how it is run."""

import importlib
from pathlib import Path

import jax
import pytest

from cmjax.build import read_run
from cmjax.nets.adapter import parameter_shapes

RECIPES = sorted(p.stem for p in (Path(__file__).parents[1] / "configs").glob("*_*.py") if p.stem != "__init__")


@pytest.mark.parametrize(
    "recipe", [*RECIPES, *(f"{name}:tiny" for name in RECIPES if name.startswith(("cifar", "imagenet")))]
)
def test_a_recipe_is_read_whole(recipe):
    name, _, variant = recipe.partition(":")
    module = importlib.import_module(f"configs.{name}")
    assert f"--config=configs/{name}.py" in module.__doc__
    config = module.get_config(variant) if variant else module.get_config()
    if config.data.name != "digits":
        config.data.data_dir = "somewhere"
    run = read_run(config.to_dict())
    model = run.make_model(10)
    assert model.kind == ("denoiser" if name.endswith("edm") else "consistency")


def test_the_published_network_has_its_size():
    module = importlib.import_module("configs.cifar_ct")
    config = module.get_config()
    config.data.data_dir = "somewhere"
    shapes = parameter_shapes(read_run(config.to_dict()).make_model(10).module, (32, 32, 3))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 56_395_651
