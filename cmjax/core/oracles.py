"""Data whose denoiser, score and flow map are known in closed form: the outputs of a perfect teacher or student.

All live on the `ve` path, x_t = x0 + t·noise, and compose with jit, grad and vmap as networks do.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from cmjax.core.paths import flat, per_sample
from cmjax.core.typing import PerSample, Samples, Time


def gaussian_denoiser(x: Samples, t: Time, *, mean: float | Array, variance: float | Array) -> Samples:
    """D(x, t) = μ + λ/(λ + t²)·(x − μ) for data N(μ, λ), elementwise."""
    t = per_sample(t, x)
    return mean + variance / (variance + t**2) * (x - mean)


def gaussian_log_density(x: Samples, t: Time, *, mean: float | Array, variance: float | Array) -> PerSample:
    """log p_t(x), (b,), for data whose elements are independent N(μ, λ): p_t is N(μ, λ + t²)."""
    total = variance + per_sample(t, x) ** 2
    each = -((x - mean) ** 2) / (2 * total) - jnp.log(2 * jnp.pi * total) / 2
    return jnp.sum(flat(each), axis=1)


def gaussian_flow_map(x: Samples, t: Time, s: Time, *, mean: float | Array, variance: float | Array) -> Samples:
    """Φ(x, t, s) = μ + √((λ + s²)/(λ + t²))·(x − μ) for data N(μ, λ), elementwise."""
    t, s = per_sample(t, x), per_sample(s, x)
    return mean + jnp.sqrt((variance + s**2) / (variance + t**2)) * (x - mean)


def mixture_denoiser(
    x: Float[Array, "b d"],
    t: Time,
    *,
    weights: Float[Array, " k"],
    means: Float[Array, "k d"],
    variances: Float[Array, " k"],
) -> Float[Array, "b d"]:
    """D(x, t) for data Σ_k w_k N(μ_k, λ_k I): the components' denoisers, averaged by their posterior probabilities."""
    log_joint, total, offsets = _components(x, t, weights, means, variances)
    posterior = jax.nn.softmax(log_joint, axis=1)
    # (b, k, d): the denoiser of each component
    shrunk = means[None] + (variances[None] / total)[..., None] * offsets
    return jnp.einsum("bk,bkd->bd", posterior, shrunk)


def mixture_log_density(
    x: Float[Array, "b d"],
    t: Time,
    *,
    weights: Float[Array, " k"],
    means: Float[Array, "k d"],
    variances: Float[Array, " k"],
) -> Float[Array, " b"]:
    """log p_t(x) for data Σ_k w_k N(μ_k, λ_k I): p_t is Σ_k w_k N(μ_k, (λ_k + t²) I)."""
    return logsumexp(_components(x, t, weights, means, variances)[0], axis=1)


def _components(x: Array, t: Time, weights: Array, means: Array, variances: Array) -> tuple[Array, Array, Array]:
    """log w_k N(x; μ_k, λ_k + t²) (b, k), the variances λ_k + t² (b, k), and x − μ_k (b, k, d)."""
    t = jnp.broadcast_to(jnp.asarray(t), x.shape[:1])[:, None]
    total = variances[None] + t**2
    offsets = x[:, None] - means[None]
    normalizer = x.shape[1] / 2 * jnp.log(2 * jnp.pi * total)
    return jnp.log(weights)[None] - jnp.sum(offsets**2, axis=2) / (2 * total) - normalizer, total, offsets


def mixture_score(x: Float[Array, "b d"], t: Time, **mixture: Array) -> Float[Array, "b d"]:
    """∇ log p_t(x) = (D(x, t) − x)/t²; `mixture` as in `mixture_denoiser`."""
    return (mixture_denoiser(x, t, **mixture) - x) / per_sample(t, x) ** 2


def mixture_flow_map_1d(
    x: Float[Array, " b"],
    t: Time,
    s: Time,
    *,
    weights: Float[Array, " k"],
    means: Float[Array, " k"],
    variances: Float[Array, " k"],
    iterations: int = 80,
) -> Float[Array, " b"]:
    """Φ(x, t, s) = Q_{p_s}(CDF_{p_t}(x)) for one-dimensional data Σ_k w_k N(μ_k, λ_k): on a line, a flow keeps ranks.

    The quantile Q is found by `iterations` bisections on the log-probability of the nearer tail.
    """

    def log_tails(x, time):
        """(log CDF, log survival), both (b,)."""
        std = jnp.sqrt(variances[None] + jnp.broadcast_to(jnp.asarray(time), x.shape)[:, None] ** 2)
        z = (x[:, None] - means[None]) / std
        # the survival function is the CDF at −z: 1 − CDF has no digits left in the upper tail
        return tuple(logsumexp(norm.logcdf(sign * z) + jnp.log(weights)[None], axis=1) for sign in (1, -1))

    lower_tail, upper_tail = log_tails(x, t)
    # |x| + max|μ| grows at most by the growth of the narrowest component's std, and not at all where s < t
    growth = jnp.sqrt((jnp.min(variances) + jnp.asarray(s) ** 2) / (jnp.min(variances) + jnp.asarray(t) ** 2))
    reach = (jnp.max(jnp.abs(x)) + jnp.max(jnp.abs(means))) * jnp.maximum(1, jnp.max(growth))

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        lower, upper = log_tails(middle, s)
        # by the smaller tail, whose logarithm keeps its digits far from the centre
        below = jnp.where(lower_tail < upper_tail, lower < lower_tail, upper > upper_tail)
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    # 80 halvings are more than float64 has digits
    low, high = jax.lax.fori_loop(0, iterations, halve, (jnp.full_like(x, -reach), jnp.full_like(x, reach)))
    return (low + high) / 2


def dataset_denoiser(x: Samples, t: Time, *, data: Float[Array, "n *dims"]) -> Samples:
    """D(x, t) for data uniform on a finite set: Σ_i w_i·data_i, w = softmax(−‖x − data_i‖²/2t²). The exact teacher."""
    t = jnp.broadcast_to(jnp.asarray(t), x.shape[:1])[:, None]
    points, rows = flat(data), flat(x)
    # differences first: ‖x‖² − 2xᵀy + ‖y‖² cancels, and is divided by 2t² below
    squared_distances = jnp.sum((rows[:, None] - points[None]) ** 2, axis=2)
    return (jax.nn.softmax(-squared_distances / (2 * t**2), axis=1) @ points).reshape(x.shape)
