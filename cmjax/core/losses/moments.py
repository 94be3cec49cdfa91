"""Inductive moment matching: groups of samples whose distributions agree, in place of single samples."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cmjax import checks
from cmjax.core.batch import Batch
from cmjax.core.losses.flow_maps import on_path
from cmjax.core.model import Model
from cmjax.core.paths import flat, widened
from cmjax.core.typing import Params, PerSample, PRNGKey, Samples, Weight
from cmjax.ranges import Count, Positive
from cmjax.system.mesh import with_auto_axes

Kernel = Callable[[Array, Array], Array]
"""(gaps x − y (..., D), scale (...)) -> k(x, y) (...)."""


def laplace(gap: Array, scale: Array, *, width: Positive = 1.0) -> Array:
    """exp(−scale·‖gap‖/(D·width)), whose gradient is 0 where ‖gap‖ < 0.0001.   [Zhou et al. 2025, IMM]"""
    squared = jnp.sum(gap**2, axis=-1)
    return jnp.exp(-scale * jnp.sqrt(jnp.maximum(squared, 1e-8)) / (gap.shape[-1] * width))


def imm(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    group: Count,
    kernel: Kernel = laplace,
    weight: Weight,
) -> PerSample:
    """IMM: λ(t, s)·MMD² between Φ_θ(x_t, t, s) and Φ_θ⁻(x_r, r, s) of each group.   [Zhou et al. 2025, IMM, alg. 1]

    x_t and x_r have the same data and noise. The loss of each sample is that of its group: `group` samples that follow
    one another, whose times are equal. The kernel's scale is 1/|c_out(t, s)|. With one sample in a group and the kernel
    −‖x − y‖² this is 2·`ct`. Its times: `map_pairs.grouped`.

    A condition `kept_label` (b,), which the network does not take, is the label of the target: that of the batch before
    some are left out.   [a re-implementation of the authors' training code]
    Raises: ValueError where the batch does not consist of whole groups, or its size is symbolic.
    """
    t, s, x_t, _ = on_path(model, batch)
    r, held = batch.times.target, params if target_params is None else target_params
    inputs: dict[str, Any] = dict(batch.conditions)
    kept = inputs.pop("kept_label", inputs.get("label"))
    of_target = inputs if kept is None else {**inputs, "label": kept}
    ends = model(params, x_t, t, s, key=key, **inputs)
    targets = jax.lax.stop_gradient(model(held, batch.noised(model.path, r), r, s, key=key, **of_target))
    gain = jnp.abs(model.scalings(t, s).c_out)  # 0 where s = t, and both ends are x_t
    scale = 1 / jnp.where(gain > 0, gain, 1)
    check_groups(t.shape[0], group)
    return weight(t, s) * _discrepancy(ends, targets, scale, group=group, kernel=kernel)


def check_groups(batch_size: Any, group: int) -> None:
    """Raises ValueError where a batch of this size does not consist of whole groups."""
    checks.known_size(batch_size, f"group={group}")
    if batch_size % group:
        raise ValueError(f"group={group} must divide the batch of {batch_size} samples")


@with_auto_axes  # each sample is compared with the others of its group
def _discrepancy(x: Samples, y: Samples, scale: PerSample, *, group: int, kernel: Kernel) -> PerSample:
    """MMD² of each group, mean k(x, x') + mean k(y, y') − 2·mean k(x, y) over all pairs, for each of its samples."""
    x, y = (flat(widened(ends)).reshape(scale.shape[0] // group, group, -1) for ends in (x, y))
    # all samples of a group have the same times, so the first one's scale is that of the group
    of_group = scale[::group, None, None]

    def mean(x: Float[Array, "g m d"], y: Float[Array, "g m d"]) -> Float[Array, " g"]:
        # (g, m, 1, d) − (g, 1, m, d): all pairs of a group, each sample with itself among them
        return jnp.mean(kernel(x[:, :, None] - y[:, None], of_group), axis=(1, 2))

    return jnp.repeat(mean(x, x) + mean(y, y) - 2 * mean(x, y), group)
