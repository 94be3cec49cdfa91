"""Images of one's own: the documented commands, and images that are not square, through networks and edits."""

import re
import shlex
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cmjax.cli.command_line import parse
from cmjax.config.recipes import recipes_text
from cmjax.config.run import read_run
from cmjax.core.model import BoundModel
from cmjax.core.oracles import gaussian_flow_map
from cmjax.data.augment import augment, edm
from cmjax.generation import editing
from cmjax.metrics.classifier import perceptron
from cmjax.nets.adapter import as_net, parameter_shapes
from cmjax.nets.adm import ADM
from cmjax.nets.dit import DiT
from cmjax.nets.edm2 import EDM2
from cmjax.nets.mlp import MLP
from cmjax.nets.unet import UNet
from cmjax.plotting.plots import image_grid

SHAPE = (8, 12, 3)
GUIDE = Path(__file__).parents[1] / "docs" / "howto" / "data.md"
FLAT = "--config.net.class_conditional=False --config.data.label_dropout=0 --config.samples.guidance=1"
ECT = "--config=cifar_small_ect --config.init_from=runs/my_edm --config.net.class_conditional=False"


def commands():
    """Those of the page that train, and the two that it describes for images without classes."""
    text = GUIDE.read_text().replace("\\\n", " ")
    trained = [line.partition("cmjax.main ")[2] for line in re.findall(r"python .*data_dir=path/to.*", text)]
    data = trained[0].partition("--config.data.name")[2]
    assert all(part in " ".join(text.split()) for part in FLAT.split() + ECT.split()[1:])
    return [*trained, f"{trained[0]} {FLAT}", f"{ECT} --config.data.name{data}"]


def test_the_documented_commands_are_read(tmp_path, monkeypatch):
    monkeypatch.chdir(GUIDE.parents[2])
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    found = commands()
    assert len(found) == 4
    for command in found:
        _, options = parse(shlex.split(command.replace("path/to/images", str(tmp_path))))
        run = read_run(options.recipe)
        assert run.data.image_size == (32, 32)
        assert parameter_shapes(run.make_model(3).module, (32, 32, 3))


def test_every_recipe_that_the_list_recommends_is_there(monkeypatch):
    monkeypatch.chdir(GUIDE.parents[2])
    recipes, _, advice = recipes_text().partition("of your own")
    named = set(re.findall(r"[a-z]+_[a-z_]+", advice))
    assert len(named) == 7
    assert named <= set(re.findall(r"[a-z0-9]+_[a-z_]+", recipes))


@pytest.mark.parametrize(
    "module",
    [
        UNet(channels=8, channel_mult=(1, 2), blocks=1, attention_resolutions=(4,)),
        DiT(width=8, depth=1, heads=2),
        MLP(width=8, depth=1),
        ADM(channels=32, channel_mult=(1, 1), blocks=1, attention_resolutions=(4,), head_channels=16, norm_groups=16),
        EDM2(channels=64, channel_mult=(1, 1), blocks=1, attention_resolutions=(4,)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_networks_take_images_that_are_not_square(module):
    params, net = parameter_shapes(module, SHAPE), as_net(module)
    x, t = jax.ShapeDtypeStruct((2, *SHAPE), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.float32)
    assert jax.eval_shape(net, params, x, t).shape == (2, *SHAPE)


@pytest.mark.parametrize("task", editing.ALL_TASKS[:-1])
def test_edits_of_images_that_are_not_square(task):
    def exact(params, x, t):
        return gaussian_flow_map(x, t, 0.002, mean=0.1, variance=0.25)

    flow_map = BoundModel({}, exact, SHAPE, 0.002, 80.0, "consistency")
    pictures = np.random.default_rng(0).integers(0, 256, (2, *SHAPE), np.uint8)
    mask = np.zeros((1, 8, 12, 1), np.float32)
    mask[:, :, :4] = 1
    options = editing.TaskSettings(mask=mask, sigma=0.5, patch=4)
    made = editing.edit_images(flow_map, pictures, task, options, (10.0, 1.0))
    assert made.results.shape[1:] == SHAPE
    assert np.isfinite(made.results).all()


def test_images_that_are_not_square_are_shown_compared_and_augmented():
    images = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), np.uint8)
    assert image_grid(images[:4], columns=4).shape == (8 * 8 + 4, 4 * (12 * 8 + 2) + 2, 3)
    assert perceptron(images, np.arange(40) % 2, cache_dir=None, epochs=1)(images).shape == (40, 64)
    changed, labels = augment(
        jnp.asarray(images / 127.5 - 1, jnp.float32), jax.random.key(0), probabilities=edm(probability=0.5)
    )
    assert (changed.shape, labels.shape) == (images.shape, (40, 9))
