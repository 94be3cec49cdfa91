"""The rules of build against PyTorch's recorded trajectories of 30 steps, in float64."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cmjax.config.fields import Fields
from cmjax.config.optimizer import RULES
from cmjax.training.optimizer import make_optimizer
from configs import cifar_continuous_ct, cifar_edm

pytestmark = pytest.mark.usefixtures("x64")


@pytest.fixture(scope="module")
def recorded(shared):
    return np.load(shared / "parity" / "optim.npz")


def trajectory(recorded, rule):
    optimizer = make_optimizer(rule, learning_rate=lambda step: 1e-2, clip_norm=0.0, weight_decay=0.0, average_rates={})
    params, path = jnp.asarray(recorded["p0"]), []
    state = optimizer.init(params)
    for gradient in recorded["grads"]:
        updates, state = optimizer.update(jnp.asarray(gradient), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return np.stack(path)


@pytest.mark.parametrize(("name", "rule"), [("adam", RULES["adam"]), ("adam_b99", partial(RULES["adam"], b2=0.99))])
def test_adam_is_pytorchs(recorded, name, rule):
    np.testing.assert_allclose(trajectory(recorded, rule()), recorded[name], rtol=1e-12, atol=1e-15)


def test_radam_is_pytorchs_but_for_the_place_of_epsilon(recorded):
    """PyTorch adds ε = 1e-8 to √v before it corrects v's bias, Optax after: of the size of ε·(1/√(1 − β₂ᵏ) − 1)/√v̂,
    up to 1e-6 of a step, in the first rectified steps. Before those, plain momentum, the two agree to rounding."""
    ours, theirs = trajectory(recorded, RULES["radam"]()), recorded["radam"]
    np.testing.assert_allclose(ours[:5], theirs[:5], rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert np.max(np.abs(ours - theirs)) > 1e-11


def test_pytorchs_weight_decay_of_radam_is_added_to_the_gradient(recorded):
    """`config.optimizer.weight_decay` is decoupled, behind the rule as in AdamW; PyTorch's RAdam has it before."""
    ours = trajectory(recorded, optax.chain(optax.add_decayed_weights(0.1), RULES["radam"]()))
    np.testing.assert_allclose(ours, recorded["radam_wd"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("module", [cifar_edm, cifar_continuous_ct])
def test_a_recipes_epsilon_is_that_of_its_sources_summed_loss(module):
    """Five updates by the gradients of a sum over 3,072 elements and ε = 1e-8, and by those of the mean."""
    config = module.get_config()
    name = config.optimizer.rule.partition("(")[0]
    mean, plain = (Fields({"rule": rule}).call("rule", RULES) for rule in (config.optimizer.rule, name))
    gradients = 10.0 ** np.random.default_rng(0).uniform(-9, 0, (5, 200))  # those of a fresh network reach to zero

    def change(rule, scale):
        state, total = rule.init(jnp.zeros(200)), jnp.zeros(200)
        for gradient in gradients:
            update, state = rule.update(jnp.asarray(gradient) * scale, state)
            # RAdam's first steps are those of plain momentum, in proportion to the gradient
            total += update if name == "adam" else 0 * update
        return total if name == "adam" else rule.update(jnp.asarray(gradients[0]) * scale, rectified(state))[0]

    def rectified(state):
        return state._replace(count=state.count + 1000)

    theirs = change(plain, 1.0)
    np.testing.assert_allclose(change(mean, 1 / 3072), theirs, rtol=1e-3)
    assert np.max(np.abs(change(plain, 1 / 3072) / theirs - 1)) > 0.1
