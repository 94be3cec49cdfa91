"""A field that cannot do what it says is named before training; no recipe has one, but where its reason is known."""

import importlib
import inspect
from functools import cache

import pytest

from cmjax.config.effects import without_effect
from cmjax.config.fields import changed
from tests.test_configs import RECIPES, SHAPES

VARIANTS = [
    (name, variant)
    for name in RECIPES
    for variant in ("", "tiny")
    if not variant or inspect.signature(importlib.import_module(f"configs.{name}").get_config).parameters
]
OF_A_TRY = {"net.attention_resolutions", "objective.stages", "objective.warmup", "optimizer.schedule"}
"""Fields that do not do what they say in a `:tiny` variant, which has two levels and ends after four steps."""


@cache
def config_of(name, variant=""):
    module = importlib.import_module(f"configs.{name}")
    return (module.get_config(variant) if variant else module.get_config()).to_dict()


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_field_of_a_recipe_does_what_it_says(name, variant):
    config = config_of(name, variant)
    found = without_effect(config, SHAPES[config["data"]["name"]])
    assert set(found) <= (OF_A_TRY if variant else set()), found


CASES = {
    "checkpoint.keep_every": ("digits_ct", 1001, "that is a multiple of it is saved"),
    "samples.full_noise": ("digits_ct", True, "samples of one evaluation are given no noise again"),
    "samples.guidance": ("digits_guided_cd", 50.0, "the model is trained for scales from 1 to 3"),
    "evaluate.every": ("digits_ct", 10**6, "the run ends at step"),
    "model.rho": ("digits_flow", 3.0, "on the path linear steps are evenly spaced in time"),
    "net.attention_resolutions": (
        "cifar_ict",
        (20, 10),
        "there is no attention but in the middle: for these images the levels are 32, 16, 8 rows high",
    ),
    "net.fourier_scale": ("mnist_edm", 0.02, "config.net.embedding='positional' has no random frequencies"),
    "net.weight_head": ("digits_ct", 16, "the objective learns no weight"),
    "objective.guidance_interval": ("digits_meanflow", (0.2, 0.8), "config.objective.guidance=1 is no guidance"),
    "objective.stages": ("digits_ect", "equal(count=1000000)", "the run has"),
    "objective.warmup": ("digits_scm_ct", "ramp(length=1000000)", "before the warm-up"),
    "optimizer.schedule": ("digits_ct", "constant(warmup_steps=1000000)", "does not end within"),
}
"""Of every field that may have no effect: a recipe, the value, and what is said."""


@pytest.mark.parametrize("field", CASES)
def test_a_field_that_cannot_do_what_it_says_is_named(field):
    name, value, words = CASES[field]
    config = config_of(name)
    if field == "samples.full_noise":
        config = changed(config, "samples.times", (80.0,))
    shape = SHAPES[config["data"]["name"]]
    assert field not in without_effect(config, shape)
    assert words in without_effect(changed(config, field, value), shape)[field]


def test_attention_at_some_levels_alone():
    found = without_effect(changed(config_of("cifar_ict"), "net.attention_resolutions", (16, 10)), (32, 32, 3))
    assert found == {"net.attention_resolutions": "for these images the levels are 32, 16, 8 rows high"}
