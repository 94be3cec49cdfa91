"""Update rules that no recorded trajectory covers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cmjax.config.optimizer import RULES
from cmjax.training.optimizer import make_optimizer


def test_muon_orthogonalizes_the_update_of_a_kernel_and_leaves_a_bias_to_adam():
    key = jax.random.key(0)
    gradient = {"kernel": jax.random.normal(key, (3, 3, 4, 8)), "bias": jax.random.normal(key, (8,))}
    params = jax.tree.map(jnp.zeros_like, gradient)
    rule, adam = RULES["muon"](), optax.scale_by_adam(nesterov=True)
    update, _ = jax.jit(rule.update)(gradient, rule.init(params), params)
    expected, _ = adam.update(gradient["bias"], adam.init(params["bias"]))
    np.testing.assert_allclose(update["bias"], expected, rtol=1e-6)
    singular = np.linalg.svd(np.reshape(update["kernel"], (36, 8)), compute_uv=False) / (0.2 * 36**0.5)
    assert singular.min() > 0.6  # as near to 1 as five Newton-Schulz steps come
    assert singular.max() < 1.3
    assert np.vdot(update["kernel"], gradient["kernel"]) > 0


def test_muon_lowers_a_loss_along_the_whole_chain():
    target = jax.random.normal(jax.random.key(0), (6, 4))
    optimizer = make_optimizer(
        RULES["muon"](), learning_rate=lambda step: 0.1, clip_norm=0.0, weight_decay=0.0, average_rates={}
    )
    params = jnp.zeros_like(target)

    @jax.jit
    def step(params, state):
        loss, gradient = jax.value_and_grad(lambda p: jnp.sum((p - target) ** 2))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    state, losses = optimizer.init(params), []
    for _ in range(120):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert losses[-1] < 0.05 * losses[0]
