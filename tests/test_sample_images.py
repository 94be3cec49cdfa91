"""What the command line draws with: chains of a flow map, and guidance."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.config.fields import ConfigError
from cmjax.config.samples import SamplingOptions
from cmjax.core.model import BoundModel
from cmjax.core.paths import linear
from cmjax.core.sampling import sample_chain
from cmjax.generation.files import check_size
from cmjax.generation.sampling import consistency_sampler, rows_in_chunks, sample_images, with_guidance

GREY = (28, 28, 1)
SHAPE = (2, 2, 4)  # of latents, which are not rounded


def toward(params, x, t, s, **conditions):
    """The flow map of data at 0.3."""
    return jnp.asarray((1 - s) * 0.3 + s / t * (x - (1 - t) * 0.3), x.dtype)


@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_a_chain_is_the_librarys(gamma):
    flow_map = BoundModel({}, toward, SHAPE, 0.0, 1.0, "flow_map", linear)
    sampler = consistency_sampler((1.0, 0.5), SamplingOptions(gamma=gamma))
    drawn = sample_images(sampler, flow_map, 3, seed=0, conditions={})
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))
    expected = sample_chain(flow_map, keys, (3, *SHAPE), times=(1.0, 0.5, 0.0), gamma=gamma)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    np.testing.assert_allclose(drawn, 0.3, atol=1e-6)


@pytest.mark.parametrize(("num", "shape"), [(10_001, GREY), (2000, (256, 256, 3)), (10_000, (512, 512, 4))])
def test_a_grid_that_nobody_can_look_at_is_refused(num, shape):
    with pytest.raises(ConfigError, match=rf"--num={num}: .*write an array, as --out=x\.npz"):
        check_size(Path("x.png"), num, shape)
    check_size(Path("x.png"), 10_000, GREY)


def test_rows_come_in_equal_parts():
    rows = {"a": np.arange(70), "labels": {}, "b": jnp.arange(140.0).reshape(70, 2)}
    parts = list(rows_in_chunks(rows, (512, 512, 3)))
    assert {len(part["a"]) for part in parts} == {36}  # of at most 16 on each of four devices
    joined = np.concatenate([part["b"] for part in parts])
    np.testing.assert_array_equal(joined[:70], rows["b"])
    assert (joined[70:] == joined[69]).all()


def test_guidance_is_named_or_made_of_two_evaluations():
    def by_label(params, x, t, *, label, guidance=None):
        told = 0.0 if guidance is None else guidance
        return x + (label + 10.0 * told)[:, None, None, None]

    flow_map = BoundModel({}, by_label, SHAPE, 0.0, 1.0, "consistency", linear)
    x, labels = jnp.zeros((2, *SHAPE)), {"label": np.array([3, 5])}
    answers = {}
    for takes in (True, False):
        for scale in (1.0, 2.0):
            model, conditions = with_guidance(flow_map, labels, scale, takes=takes)
            answers[takes, scale] = model(x, 0.5, **jax.tree.map(jnp.asarray, conditions))[:, 0, 0, 0]
    np.testing.assert_allclose(answers[True, 2.0], [23, 25])
    np.testing.assert_allclose(answers[False, 1.0], [3, 5])
    np.testing.assert_allclose(answers[False, 2.0], [-1 + 2 * 4, -1 + 2 * 6])  # without a label: −1
    assert with_guidance(flow_map, labels, 1.0, takes=False)[0] == flow_map
