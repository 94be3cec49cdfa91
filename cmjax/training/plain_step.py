"""A train step for notebooks and loops of your own: a loss, a model and an Optax optimizer, without a configuration."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from cmjax.core.batch import Batch
from cmjax.core.model import Model
from cmjax.core.typing import Params, PerSample, PRNGKey

PlainStep = Callable[..., tuple[Params, Any, Array]]
"""(params, opt_state, key, batch, **arguments of the loss) -> (params, opt_state, the mean loss)."""


def make_train_step(model: Model, loss: Callable[..., PerSample], optimizer: optax.GradientTransformation) -> PlainStep:
    """Makes step(params, opt_state, key, batch, **arguments) -> (params, opt_state, mean loss), a pure function.

    Args: loss: of `cmjax.losses`, with its choices bound by `functools.partial`, or one of the same signature.
          optimizer: of Optax. Where it ends in `track_averages`, `averages(opt_state)` are those of the parameters.
          key: for dropout masks; None for none. batch: a `Batch`, with its noise and times.
          arguments: of the loss that change from step to step, such as `target_params`.

    >>> from functools import partial
    >>> import cmjax, jax, optax
    >>> model = cmjax.Model(lambda params, x, c_noise, key=None: params * x, cmjax.paths.ve,
    ...                     partial(cmjax.preconditioning.edm, sigma_data=0.5))
    >>> loss = partial(cmjax.losses.denoising, weight=partial(cmjax.weightings.karras, sigma_data=0.5))
    >>> optimizer = optax.chain(optax.adam(0.1), cmjax.track_averages({"ema": lambda step: 0.9}))
    >>> train_step = jax.jit(cmjax.make_train_step(model, loss, optimizer))
    >>> params, x0 = jax.numpy.ones(()), jax.numpy.full((16, 8, 8, 1), 0.5)
    >>> opt_state = optimizer.init(params)
    >>> sample_times = cmjax.times.lognormal(mean=-1.2, std=1.2, path=cmjax.paths.ve)
    >>> for step in range(50):
    ...     times_key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(0), step))
    ...     times = cmjax.Times(sample_times(times_key, 16))
    ...     batch = cmjax.Batch(x0, jax.random.normal(noise_key, x0.shape), times)
    ...     params, opt_state, value = train_step(params, opt_state, None, batch)
    >>> abs(float(cmjax.averages(opt_state)["ema"])) < 0.2  # the network has nothing to add to c_skip·x
    True
    """

    def train_step(params, opt_state, key: PRNGKey | None, batch: Batch, **arguments):
        def mean_loss(params):
            return jnp.mean(loss(model, params, key, batch, **arguments))

        value, gradient = jax.value_and_grad(mean_loss)(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return train_step
