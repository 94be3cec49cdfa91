"""EDM2's loss and learning rate against the peer's recorded numbers, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import evaluate
from peers import toy_denoiser

from cmjax import Model, Times, losses, weightings
from cmjax.core.paths import ve
from cmjax.core.preconditioning import Scalings
from cmjax.training.optimizer import inverse_sqrt_schedule

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def edm2(shared):
    return np.load(shared / "parity" / "edm2.npz")


def test_the_loss_is_edm2s(edm2):
    """Its network is a denoiser already: c_skip 0, c_out 1. Theirs is for each element, ours their mean."""

    def net(params, x, t, *, key=None, return_weight=True):
        return toy_denoiser(x, t), 0.1 * jnp.log(t)

    def scalings(t):
        return Scalings(0 * t, jnp.ones_like(t), jnp.ones_like(t), t)

    sigma = jnp.exp(jnp.asarray(edm2["rnd"]).reshape(5) - 0.4)
    ours = evaluate(
        losses.edm2, Model(net, ve, scalings), {}, jax.random.key(0), jnp.asarray(edm2["images"]), Times(sigma),
        noise=jnp.asarray(edm2["eps"]), weight=lambda t, r: weightings.karras(t, r, sigma_data=0.5),
    )  # fmt: skip
    np.testing.assert_allclose(ours, edm2["edm2_loss"].mean((1, 2, 3)), rtol=1e-9)


def test_the_learning_rate_is_edm2s(edm2):
    rate = inverse_sqrt_schedule(peak=0.01, total_steps=1, batch_size=2048, flat_steps=35000, warmup_mimg=10)
    np.testing.assert_allclose([rate(nimg / 2048) for nimg in edm2["lr_nimg"]], edm2["lr"], rtol=1e-9)
    assert np.ptp(edm2["lr"]) > 0
    for wrong in ({"flat_steps": 0}, {"warmup_mimg": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            inverse_sqrt_schedule(
                **{"peak": 1.0, "total_steps": 1, "batch_size": 1, "flat_steps": 1, "warmup_mimg": 0} | wrong
            )
