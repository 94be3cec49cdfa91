"""Couplings: which noise of a batch goes with which of its clean samples."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cmjax import checks
from cmjax.core.paths import Path, flat, per_sample
from cmjax.core.typing import PerSample, Samples
from cmjax.ranges import Count, NotNegative
from cmjax.system.mesh import with_auto_axes


@with_auto_axes  # every sample is compared with all others
def minibatch_ot(
    x0: Samples,
    noise: Samples,
    t: PerSample,
    label: Int[Array, " b"] | None,
    *,
    path: Path,
    sweeps: Count = 2,
    above: NotNegative = 0.0,
) -> Samples:
    """Minibatch optimal transport: the batch's noise (b, ...), assigned to its samples so that Σ‖x0 − noise‖² is small.

    The trajectories cross less, so that the consistency target varies less.   [Pooladian et al. 2023; Tong et al. 2024]

    Two samples exchange their noise where that lowers the sum. Each sweep asks every pair once, in b rounds one after
    another. Only samples with the same label exchange noise (those without one, -1, count as one class), so the noise
    stays independent of the label. The larger the batch, and the fewer its classes, the nearer noise and data come.

    Samples whose noise level is below `above` keep independent noise: multistep samplers add fresh noise there, and the
    model must have learned such inputs.

    Args:   t: the times of the samples. label: their classes. sweeps: >= 1. above: a noise level b(t)/a(t).
    Raises: ValueError naming the argument that is out of range, or where the batch size is symbolic: the rounds, whose
            number it is, are a `lax.scan`.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps must be at least 1, got {sweeps}")
    if above < 0:
        raise ValueError(f"above must be at least 0, got {above}")
    checks.known_size(x0.shape[0], "minibatch_ot")
    checks.same_shape("noise", noise.shape, x0.shape, "x0")
    one_class = jnp.zeros(x0.shape[:1], int) if label is None else label
    # half of ‖x0 − noise‖², less the terms that no exchange changes
    costs = -flat(x0) @ flat(noise).T
    assigned = noise[exchanged(costs, one_class, sweeps)]
    return jnp.where(per_sample(path.b(t) >= above * path.a(t), noise), assigned, noise)


def exchanged(costs: Float[Array, "n n"], group: Int[Array, " n"], sweeps: Count) -> Int[Array, " n"]:
    """Finds the column of each row, a permutation, after exchanges between rows of one group that lower the sum of
    costs.

    Args: costs: (n, n). group: of each row. sweeps: how often each pair of rows is asked.
    """
    rows = jnp.arange(len(costs))

    def one_round(columns, number):
        """Takes all rows in pairs: i with number − i."""
        # an involution: the partner's partner is i; who is paired with itself keeps its noise
        others = (number - rows) % len(costs)
        theirs = columns[others]
        now = costs[rows, columns] + costs[others, theirs]
        then = costs[rows, theirs] + costs[others, columns]
        return jnp.where((then < now) & (group == group[others]), theirs, columns), None

    # i and j are partners in the round number = i + j (mod b): the rounds 0 … b − 1 let every pair meet
    return jax.lax.scan(one_round, rows, jnp.tile(rows, sweeps))[0]
