"""Models that answer exactly for Gaussian data where their parameters are zero, and move with them in four ways."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cmjax import Batch, Model, preconditioning
from cmjax.core.paths import per_sample

MEAN = np.array([[0.3, -0.4]])
VARIANCE = np.array([[0.25, 0.6]])
OFF = 1.2 * VARIANCE
AT_ZERO = np.zeros(4)


@dataclass(frozen=True)
class Known(Model):
    """The model whose estimate of the clean data is the function `net` (params, x, t) itself."""

    def __call__(self, params, x, t, s=None, *, key=None, **conditions):
        return self.net(params, x, t, key=key, **conditions)


def known(function, path):
    return Known(function, path, preconditioning.linear)


def evaluate(loss, model, params, key, x0, times, *, noise=None, conditions=None, **choices):
    """The loss of a batch; the noise is drawn from `key` unless it is given."""
    noise_key, dropout_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, x0.shape, x0.dtype) if noise is None else noise
    return loss(model, params, dropout_key, Batch(x0, noise, times, conditions or {}), **choices)


def evaluate_method(method, model, params, target_params, frozen, key, x0, step, conditions):
    """The losses (b,) of a run's method, as its train step has them."""
    batch, dropout_key = method.sample_batch(key, x0, step, conditions)
    return method.loss(model, params, dropout_key, batch, **method.arguments(step, target_params, frozen))


def data(key, count):
    """x0 (count, 2), Gaussian."""
    return MEAN + np.sqrt(VARIANCE) * jax.random.normal(key, (count, 2), jnp.float64)


def spread(path, t, variance=VARIANCE):
    """The variance of x_t."""
    return path.a(t) ** 2 * variance + path.b(t) ** 2


def denoise(path, x, t, variance=VARIANCE):
    """E[x0 | x_t = x]."""
    t = per_sample(t, x)
    return MEAN + path.a(t) * variance / spread(path, t, variance) * (x - path.a(t) * MEAN)


def flow(path, x, t, s, variance=VARIANCE):
    """The state at s of the probability-flow ODE through x at t."""
    t, s = per_sample(t, x), per_sample(s, x)
    ratio = jnp.sqrt(spread(path, s, variance) / spread(path, t, variance))
    return path.a(s) * MEAN + ratio * (x - path.a(t) * MEAN)


def mean_velocity(x, t, s, variance=VARIANCE):
    """(x − Φ(x, t, s))/(t − s) on the linear path, with t − s divided out."""
    t, s = per_sample(t, x), per_sample(s, x)
    at_t, at_s = ((1 - time) ** 2 * variance + time**2 for time in (t, s))
    return -MEAN + (x - (1 - t) * MEAN) * (t + s - variance * (2 - t - s)) / (at_t + jnp.sqrt(at_t * at_s))


def moves(params, x, t):
    """What a model of these tests adds to the exact answer."""
    t = per_sample(t, x)
    ways = (jnp.ones_like(x), x, t * x, jnp.sin(3 * x))
    return sum(weight * way for weight, way in zip(params, ways, strict=True))


def consistency_model(path, end=0.0, variance=VARIANCE):
    """The model of f(x, t)."""

    def f(params, x, t, *, key=None, label=None):
        return flow(path, x, t, end, variance) + moves(params, x, t)

    return known(f, path)


def denoiser(path, variance=VARIANCE):
    """The model of D(x, t)."""

    def f(params, x, t, *, key=None, label=None):
        return denoise(path, x, t, variance) + moves(params, x, t)

    return known(f, path)


def teacher(path, params=AT_ZERO, variance=VARIANCE):
    """The denoiser with its parameters bound: (x, t)."""
    return partial(denoiser(path, variance), params)


def network(path, scalings, time_of, variance=VARIANCE):
    """F(params, x, c_noise) such that c_skip·x + c_out·F is the exact f(x, t); `time_of`: c_noise -> t."""

    def net(params, scaled, c_noise, *, key=None):
        t = time_of(c_noise)
        c = scalings(t)
        x = scaled / per_sample(c.c_in, scaled)
        exact = (flow(path, x, t, 0.0, variance) - per_sample(c.c_skip, x) * x) / per_sample(c.c_out, x)
        return exact + moves(params, x, t)

    return net


def velocity_network(variance=VARIANCE):
    """F(params, x, t, t − s), the mean velocity on the linear path."""

    def net(params, x, c_noise, *, key=None, c_noise_s):
        return mean_velocity(x, c_noise, c_noise - c_noise_s, variance) + moves(params, x, c_noise)

    return net


def loss_and_gradient(losses, w):
    """Each sample's loss(w) and the gradient of their mean, in one program."""
    return jax.jit(lambda w: (losses(w), jax.grad(lambda w: losses(w).mean())(w)))(jnp.asarray(w))


def gradients(losses, *arguments):
    """(b, 4): of each sample's loss(params, *arguments) by the parameters, at zero."""
    return np.asarray(jax.jit(jax.jacfwd(losses))(jnp.asarray(AT_ZERO), *arguments))


def standard_errors(losses, off=OFF):
    """How many standard errors the mean gradient of independent losses(params, variance) lies from zero, the largest
    of its four elements: for a model that is exact, and for one that takes the data's variance for another, `off`.
    """
    sums = jax.jit(
        lambda params, variance: (lambda each: (each.mean(0), each.std(0), len(each)))(
            jax.jacfwd(losses)(params, variance)
        )
    )
    found = [sums(jnp.asarray(AT_ZERO), variance) for variance in (VARIANCE, off)]
    return [float(jnp.max(jnp.abs(mean) / (std / count**0.5))) for mean, std, count in found]
