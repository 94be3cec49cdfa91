"""Update rules that no recorded trajectory covers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmjax.config.fields import ConfigError
from cmjax.config.optimizer import RULES
from cmjax.config.recorded import shapes_state
from cmjax.config.run import read_run
from cmjax.training.optimizer import make_optimizer, restarted
from configs import digits_ct, digits_pd


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


def test_a_restarted_rule_updates_as_a_new_one():
    gradients = jax.random.normal(jax.random.key(0), (7, 5))
    params, adam = jnp.zeros(5), optax.scale_by_adam()
    rule, update = restarted(adam, [3, 4]), jax.jit(restarted(adam, [3, 4]).update)
    state, expected = rule.init(params), adam.init(params)
    for k, gradient in enumerate(gradients):
        expected = adam.init(params) if k in (3, 4) else expected
        updates, state = update(gradient, state, params)
        wanted, expected = adam.update(gradient, expected, params)
        np.testing.assert_allclose(updates, wanted, rtol=1e-6)
    assert int(state.state.count) == 3


@pytest.mark.parametrize("rule", sorted(RULES))
def test_every_stage_of_pd_is_a_training_of_its_own(rule):
    """Its learning rate falls to zero, and its first update is that of a first step, in one compilation."""
    recipe = digits_pd.get_config().to_dict()
    recipe["objective"]["curriculum"], recipe["steps"] = "halving(start=8, end=1, doubled=2)", 24
    recipe["optimizer"].update(rule=rule, schedule="linear", learning_rate=1.0, restart_each_stage=True)
    run = read_run(recipe)
    rates = np.array([run.schedules["learning_rate"](k) for k in range(24)])
    np.testing.assert_allclose(rates[:8], [1, 0.75, 0.5, 0.25] * 2)
    np.testing.assert_allclose(rates[8:], [*np.arange(8, 0, -1) / 8] * 2)
    update = jax.jit(run.optimizer.update)
    params, gradient = {"kernel": jnp.ones((4, 3))}, {"kernel": jax.random.normal(jax.random.key(0), (4, 3))}
    state = run.optimizer.init(params)
    updates = []
    for _ in range(24):
        changes, state = update(gradient, state, params)
        updates.append(changes["kernel"])
    for start in (4, 8, 16):
        np.testing.assert_array_equal(updates[start], updates[0])
    assert update._cache_size() == 1


def test_restarts_are_of_methods_with_stages():
    recipe = digits_ct.get_config().to_dict()
    recipe["optimizer"]["restart_each_stage"] = True
    with pytest.raises(ConfigError, match=r"config\.optimizer\.restart_each_stage=True: .* has no stages"):
        read_run(recipe)


def test_a_checkpoint_of_an_earlier_run_has_no_restarts():
    assert shapes_state("optimizer.restart_each_stage", None, True)
    assert not shapes_state("optimizer.restart_each_stage", None, False)
