"""Relatives of MeanFlow: TiM and AnyFlow, whose derivatives are differences along the line of data and noise, and pMF,
whose network gives images."""

import jax
import jax.numpy as jnp

from cmjax.core.batch import Batch
from cmjax.core.derivatives import Derivative, within
from cmjax.core.distances import l2
from cmjax.core.guidance import NO_LABEL
from cmjax.core.losses.flow_maps import (
    ALWAYS,
    Interval,
    fixed_output,
    guided_velocity,
    imf,
    is_number,
    labels_of,
    mean_velocity,
    on_line,
    on_path,
)
from cmjax.core.model import Model
from cmjax.core.paths import per_sample
from cmjax.core.typing import Distance, Params, PerSample, PRNGKey, Time, Weight
from cmjax.ranges import Fraction, NotNegative, Positive


def tim(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    distance: Distance,
    weight: Weight,
    guidance: Time = 1.0,
    blend: float = 0.0,
    interval: Interval = ALWAYS,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """TiM: λ(t, s)·d(F_θ(x_t, t, s), F*), F* the output with which the end of the map stays where it is.

    On the TrigFlow path σ_d·F* = v − tan(t − s)·(x_t + σ_d·dF⁻/dt), on the linear one F* = v − (t − s)·dF⁻/dt, v the
    velocity of the sample. dF⁻/dt is along the sample's own curve a(t)·x0 + b(t)·noise, where differences evaluate the
    network on it: along a straight line this is `meanflow`. Its times: `sorted_pairs`.   [Wang et al. 2025, TiM]

    `guidance`, `blend` and `interval` change v as in `meanflow`, by the `target_params`; the curve stays.
    """
    t, s, x_t, v = on_path(model, batch)
    held = params if target_params is None else target_params
    v = guided_velocity(model, held, key, batch, x_t, v, guidance=guidance, blend=blend, interval=interval)

    def along_line(t):
        x = model.path.add_noise(batch.x0, batch.noise, t)
        return model.output(params, x, t, s, key=key, **batch.conditions)

    last = jnp.full_like(s, model.path.signal_ends)
    out, slope = within(derivative, s, last)(along_line, (t,), (jnp.ones_like(t),))
    target = fixed_output(model, t, s, x_t, v, slope)
    return weight(t, s) * distance(out, jax.lax.stop_gradient(target))


def anyflow(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    weight: Weight,
    guidance: Positive = 1.0,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """AnyFlow's pre-training: e = λ(t, s)·‖p_θ − v + (t − s)·dp⁻/dt‖²/D, where s < t scaled to the mean of e at s = t.

    p = u_θ without guidance; with its scale w, p = (u_θ + (w − 1)·u⁻(x_t, t, s, no label))/w, so that u learns the
    guided mean velocity, and sampling needs one evaluation. Its derivative is that of u alone, over w, along the
    velocity v = noise − x0, as the authors have it: where the network without a label varies with t, u is biased.
    Samples without a label have w = 1. The mean is of the batch; under `shard_map`, of a device's part of it.
    [AnyFlow, the released code]   Its times: `sorted_pairs` with `exact` and `whole`.

    Raises: ValueError where the path is not linear, or guidance is asked for without a condition `label`.
    """
    t, s, x_t, v = on_line(model, batch)
    out, slope = mean_velocity(model, params, key, batch, x_t, along=v, derivative=derivative)
    if not is_number(guidance, 1):
        label = labels_of(batch)
        nothing = {**batch.conditions, "label": jnp.full_like(label, NO_LABEL)}
        alone = jax.lax.stop_gradient(model.output(params, x_t, t, s, key=key, **nothing))
        w = per_sample(jnp.where(label == NO_LABEL, 1.0, guidance), v)
        out, slope = (out + (w - 1) * alone) / w, slope / w
    error = weight(t, s) * l2(out, jax.lax.stop_gradient(v - per_sample(t - s, v) * slope))
    equal, held = s >= t, jax.lax.stop_gradient(error)
    # without a sample of s = t in the batch nothing is scaled
    mean = jnp.sum(jnp.where(equal, held, 0)) / jnp.maximum(jnp.sum(equal), 1)
    return jnp.where(equal | ~jnp.any(equal), 1, mean / (held + 1e-5)) * error


def pmf(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    distance: Distance,
    perceptual: Distance | None = None,
    perceptual_weight: NotNegative = 0.4,
    perceptual_before: Fraction = 0.8,
    guidance: Time = 1.0,
    interval: Interval = ALWAYS,
    velocity_head: bool = False,
    t_least: Fraction = 0.05,
    derivative: Derivative = jax.jvp,
) -> PerSample:
    """pMF: `imf` of a network of images, plus λ·p/sg(p + 0.01), where p is a `perceptual` distance such as LPIPS.

    p is of the image x_t − t·u_θ(x_t, t, s) from x0, at times t below `perceptual_before`. None: no such term.
    The model's u is (x_t − F)/max(t, t_least) (`preconditioning.clean_velocity`), and so is the sample's velocity,
    (x_t − x0)/max(t, t_least).   [Lu et al. 2026, pMF, the released code]

    Args: perceptual_weight: λ. The others are those of `imf`.   Raises: ValueError where the path is not linear.
    """
    t, s, x_t, _ = on_line(model, batch)
    loss = imf(
        model, params, key, batch, distance=distance, guidance=guidance, interval=interval,
        velocity_head=velocity_head, t_least=t_least, derivative=derivative,
    )  # fmt: skip
    if perceptual is None:
        return loss
    # no network has such an input; `imf` removes it likewise
    inputs = {name: value for name, value in batch.conditions.items() if name != "kept_label"}
    # the step from t to 0 by the mean velocity, whatever s the network was asked about
    image = x_t - per_sample(t, x_t) * model.output(params, x_t, t, s, key=key, **inputs)
    gap = perceptual(image, batch.x0)
    return loss + jnp.where(t < perceptual_before, perceptual_weight * gap / jax.lax.stop_gradient(gap + 0.01), 0)
