"""What the command line draws with: chains of a flow map, and guidance."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cmjax.core.paths import linear
from cmjax.core.sampling import FlowMap, sample_chain
from cmjax.drawing.draw import chain_sampler, draw_images, with_guidance

SHAPE = (2, 2, 4)  # of latents, which are not rounded


def toward(params, x, t, s, **conditions):
    """The flow map of data at 0.3."""
    return jnp.asarray((1 - s) * 0.3 + s / t * (x - (1 - t) * 0.3), x.dtype)


@pytest.mark.parametrize("gamma", [0.0, 0.6])
def test_a_chain_is_the_librarys(gamma):
    flow_map = FlowMap({}, toward, SHAPE, 0.0, 1.0, "flow_map", linear)
    drawn = draw_images(chain_sampler((1.0, 0.5), gamma), flow_map, 3, seed=0, conditions={})
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(0), jnp.arange(3))
    expected = sample_chain(flow_map, keys, (3, *SHAPE), times=(1.0, 0.5, 0.0), gamma=gamma)
    np.testing.assert_allclose(drawn, expected, atol=1e-6)
    np.testing.assert_allclose(drawn, 0.3, atol=1e-6)


def test_guidance_is_told_or_made_of_two_evaluations():
    def by_label(params, x, t, *, label, guidance=None):
        told = 0.0 if guidance is None else guidance
        return x + (label + 10.0 * told)[:, None, None, None]

    flow_map = FlowMap({}, by_label, SHAPE, 0.0, 1.0, "consistency", linear)
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
