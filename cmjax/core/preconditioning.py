"""The coefficients of preconditioned networks c_skip·x + c_out·F(c_in·x, c_noise), as functions of time.

They make denoisers, and consistency functions and flow maps whose boundary condition holds by construction.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from cmjax.core.paths import Path, per_sample
from cmjax.core.typing import Net, Params, Samples
from cmjax.ranges import Positive


class Scalings(NamedTuple):
    """The coefficients at the times t, each of the shape of t. `c_noise_s`: the second time input of a flow map."""

    c_skip: Array
    c_out: Array
    c_in: Array
    c_noise: Array
    c_noise_s: Array | None = None


Preconditioning = Callable[[Array], Scalings]


def edm(t: Array, *, sigma_data: float) -> Scalings:
    """EDM's preconditioning of a denoiser: F has inputs and targets of unit variance at every noise level.

    [Karras et al. 2022, table 1]
    """
    variance = t**2 + sigma_data**2
    return Scalings(
        c_skip=sigma_data**2 / variance,
        c_out=t * sigma_data / jnp.sqrt(variance),
        c_in=1 / jnp.sqrt(variance),
        c_noise=jnp.log(t) / 4,
    )


def consistency(t: Array, *, sigma_data: float, t_min: float) -> Scalings:
    """`edm` shifted so that c_skip = 1 and c_out = 0 at t = t_min.   [Song et al. 2023, eq. 5 and app. C]"""
    base = edm(t, sigma_data=sigma_data)
    gap = t - t_min
    return base._replace(c_skip=sigma_data**2 / (gap**2 + sigma_data**2), c_out=sigma_data * gap * base.c_in)


def piecewise(t: Array, *, t_min: float) -> Scalings:
    """x itself at t = t_min, and F(x, c_noise) itself above it.   [Song et al. 2023, eq. 4]"""
    at_boundary = (t <= t_min).astype(jnp.result_type(t, jnp.float32))
    return Scalings(c_skip=at_boundary, c_out=1 - at_boundary, c_in=jnp.ones_like(at_boundary), c_noise=jnp.log(t) / 4)


def trig(t: Array, *, sigma_data: float) -> Scalings:
    """TrigFlow: cos t·x − σ_d·sin t·F(x/σ_d, t), where σ_d·F is the velocity.   [Lu & Song 2025, eq. 5]"""
    return Scalings(jnp.cos(t), -sigma_data * jnp.sin(t), jnp.full_like(t, 1 / sigma_data), t)


def trig_edm(t: Array, *, sigma_data: float) -> Scalings:
    """`edm` on the TrigFlow path, for parameters that were trained on the `ve` path.   [Lu & Song 2025, app. B]"""
    # σ = σ_d·tan t, the noise level, which the network was trained to take
    level = jnp.log(sigma_data) + jnp.log(jnp.tan(t))
    return Scalings(jnp.cos(t), sigma_data * jnp.sin(t), jnp.full_like(t, 1 / sigma_data), level / 4)


def linear(t: Array) -> Scalings:
    """x − t·F(x, t), where F is the velocity: flow matching.   [Lipman et al. 2023]"""
    return Scalings(jnp.ones_like(t), -t, jnp.ones_like(t), t)


def linear_denoiser(t: Array) -> Scalings:
    """The denoiser (x − t·F)/(1 + t) of a velocity network F(x/(1 + t), t/(1 + t)), for times t of the path `ve`.

    x/(1 + t) is the state of the linear path at the time t/(1 + t), where the noise level is t. So the parameters are
    those that flow matching trains with `linear`.   [Lipman et al. 2023; Karras et al. 2022, app. B]
    """
    of_x = 1 / (1 + t)
    return Scalings(of_x, -t * of_x, of_x, t * of_x)


def linear_consistency(t: Array, *, t_min: float) -> Scalings:
    """`linear_denoiser` shifted so that c_skip = 1 and c_out = 0 at t = t_min, as `consistency` shifts `edm`.

    [Song et al. 2023, app. C]
    """
    base, gap = linear_denoiser(t), t - t_min
    return base._replace(c_skip=1 / (1 + gap), c_out=-gap * base.c_in)


def linear_flow(t: Array, s: Array) -> Scalings:
    """x − (t − s)·F(x, t, t − s), where F is the mean velocity between s and t.

    [Geng et al. 2025, MeanFlow, eq. 3 and 12]
    """
    return Scalings(jnp.ones_like(t), s - t, jnp.ones_like(t), t, t - s)


def linear_ends(t: Array, s: Array) -> Scalings:
    """`linear_flow` of a network that takes the times t and s themselves, not their gap.

    [Lee et al. 2025, decoupled MeanFlow; Peng et al. 2025, FACM, the auxiliary time]
    """
    return linear_flow(t, s)._replace(c_noise_s=s)


def linear_gap(t: Array, s: Array) -> Scalings:
    """`linear_flow` of a network that takes t − s alone, not t.   [Geng et al. 2025, iMF, the released code]"""
    return linear_flow(t, s)._replace(c_noise=t - s, c_noise_s=None)


def linear_expanded(t: Array, s: Array) -> Scalings:
    """`linear_flow` of a network of one time, for s = 0 and s = t alone: −t is the time of s = t.

    [Peng et al. 2025, FACM, sec. 4.2]
    """
    return linear_flow(t, s)._replace(c_noise=jnp.where(s < t, t, -t), c_noise_s=None)


def trig_flow(t: Array, s: Array, *, sigma_data: float) -> Scalings:
    """TrigFlow to any time, cos(t − s)·x − σ_d·sin(t − s)·F(x/σ_d, t, t − s): at s = 0 it is `trig`.

    [Wang et al. 2025, TiM, with σ_d = 1; Lu & Song 2025, eq. 5]
    """
    gap = t - s
    return Scalings(jnp.cos(gap), -sigma_data * jnp.sin(gap), jnp.full_like(t, 1 / sigma_data), t, gap)


def path_flow(t: Array, s: Array, *, path: Path, sigma_data: float) -> Scalings:
    """`trig_flow` of any path: x/n is a state of TrigFlow at the angle arctan(b/(σ_d·a)), with n² = a² + b²/σ_d².

    The network takes the path's times t and t − s. At equal noise levels, states of two paths differ by a factor.
    [Karras et al. 2022, app. B; Lu & Song 2025, eq. 12]
    """
    # arctan2, not the arctan of b/a: a is 0 where the path ends in noise alone
    angle_t, angle_s = (jnp.arctan2(path.b(time) / sigma_data, path.a(time)) for time in (t, s))
    size_t, size_s = (jnp.hypot(path.a(time), path.b(time) / sigma_data) for time in (t, s))
    gap = angle_t - angle_s
    c_out = -sigma_data * size_s * jnp.sin(gap)
    return Scalings(size_s / size_t * jnp.cos(gap), c_out, 1 / (sigma_data * size_t), t, t - s)


def ctm(t: Array, s: Array, *, sigma_data: float) -> Scalings:
    """CTM's flow map on the `ve` path, s/t·x + (1 − s/t)·(c_skip·x + c_out·F), with the coefficients of `edm`.

    [Kim et al. 2024, CTM, eq. 3 and app. D]
    """
    # s/t is the fraction of x that stays: all of it at s = t, where Φ must be x
    base, rest = edm(t, sigma_data=sigma_data), s / t
    return base._replace(
        c_skip=rest + (1 - rest) * base.c_skip, c_out=(1 - rest) * base.c_out, c_noise_s=jnp.log(s) / 4
    )


def edm_velocity(net: Net, *, sigma_data: float, t_least: float = 0.002, t_most: float = 80 / 81) -> Net:
    """The velocity (x − D)/t of an EDM denoiser D on the linear path, as a network of x (b, ...) and t (b,) in [0, 1]:
    for parameters that were trained on the `ve` path.

    x/(1 − t) has the noise level σ = t/(1 − t). With R² = t² + σ_d²·(1 − t)² the velocity is
    (t − σ_d²·(1 − t))/R²·x − σ_d/R·F(x/R, ln(σ)/4).   [Karras et al. 2022, table 1]

    Args: net: F. t_least, t_most: times outside them are clipped; σ is 0.002 and 80 there, as in EDM.
    """

    def velocity(params: Params, x: Samples, c_noise: Array, **inputs: Any) -> Samples:
        t = c_noise  # as in `linear_flow`
        # σ = t/(1 − t) has no logarithm at 0 and no value at 1
        level = jnp.clip(t, t_least, t_most)
        spread = jnp.sqrt(t**2 + (sigma_data * (1 - t)) ** 2)  # of x
        out = net(params, x / per_sample(spread, x), jnp.log(level / (1 - level)) / 4, **inputs)
        of_x = (t - sigma_data**2 * (1 - t)) / spread**2
        return per_sample(of_x, x) * x - per_sample(sigma_data / spread, x) * out.astype(x.dtype)

    return velocity


def clean_velocity(net: Net, *, t_least: float = 0.05) -> Net:
    """The velocity (x − F)/max(t, t_least) of a network F(x, t − s) that gives images, as a network of `linear_flow`.

    Both outputs of a network with a velocity head become velocities.   [Lu et al. 2026, pMF, the released code]
    """

    def velocity(params: Params, x: Samples, c_noise: Array, *, c_noise_s: Array, **inputs: Any) -> Any:
        scale = per_sample(1 / jnp.maximum(c_noise, t_least), x)
        out = net(params, x, c_noise_s, **inputs)
        if inputs.get("return_velocity"):
            return tuple(scale * (x - clean.astype(x.dtype)) for clean in out)
        first, *rest = out if isinstance(out, tuple) else (out,)
        first = scale * (x - first.astype(x.dtype))
        return (first, *rest) if rest else first

    return velocity


def scaled_velocity(net: Net) -> Net:
    """The network times its input `guidance` (b,), the scale w, where it has one: what it learns of w·v + (1 − w)·u is
    then nearly the same for all w.   [Zhou et al. 2025, terminal velocity matching, the released code]"""

    def velocity(params: Params, x: Samples, c_noise: Array, **inputs: Any) -> Any:
        out = net(params, x, c_noise, **inputs)
        scale = inputs.get("guidance")
        if scale is None:
            return out
        first, *rest = out if isinstance(out, tuple) else (out,)
        first = per_sample(scale, x) * first.astype(x.dtype)
        return (first, *rest) if rest else first

    return velocity


def epsilon(t: Array, *, path: Path) -> Scalings:
    """(x − b·F)/a, where F is the noise: what DDPM predicts.   [Ho et al. 2020, eq. 11]"""
    a = path.a(t)
    return Scalings(1 / a, -path.b(t) / a, jnp.ones_like(t), t)


def v_prediction(t: Array, *, path: Path) -> Scalings:
    """a·x − b·F, where F = a·noise − b·x0; for paths with a² + b² = 1.   [Salimans & Ho 2022, app. D]"""
    return Scalings(path.a(t), -path.b(t), jnp.ones_like(t), t)


PREDICTIONS = {"epsilon": epsilon, "v": v_prediction}


def lcm(
    t: Array,
    *,
    path: Path,
    prediction: Literal["epsilon", "v"] = "epsilon",
    scaling: Positive = 10_000.0,
    sigma_data: float = 0.5,
) -> Scalings:
    """LCM's consistency function, σ_d²/(τ² + σ_d²)·x + τ/√(τ² + σ_d²)·D with τ = scaling·t.

    D is the denoiser of a network that predicts the noise or v. `scaling` is 10 for each of 1000 steps.
    [Luo et al. 2023, latent consistency models, sec. 3]
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}")
    # the network is the teacher's: its output first becomes D, of which LCM takes its part
    teacher = PREDICTIONS[prediction](t, path=path)
    tau = scaling * t
    of_x, of_denoised = sigma_data**2 / (tau**2 + sigma_data**2), tau / jnp.sqrt(tau**2 + sigma_data**2)
    return teacher._replace(c_skip=of_x + of_denoised * teacher.c_skip, c_out=of_denoised * teacher.c_out)


def combine(scalings: Scalings, x: Samples, out: Array) -> Samples:
    """c_skip·x + c_out·F, of the dtype of x."""
    c_skip, c_out = per_sample(scalings.c_skip, x), per_sample(scalings.c_out, x)
    # the sum is taken in float32, as the scalings are: near the boundary c_out·F is small beside x
    return (c_skip * x.astype(c_skip.dtype) + c_out * out.astype(c_out.dtype)).astype(x.dtype)
