"""Distillation: the student's target is taken at the point to which a teacher's probability-flow ODE leads."""

from dataclasses import replace

import jax

from cmjax import checks
from cmjax.core.batch import Batch
from cmjax.core.guidance import guided
from cmjax.core.losses.consistency import consistency_loss
from cmjax.core.model import Model, check_path
from cmjax.core.ode import halfway
from cmjax.core.typing import BoundDenoiser, Distance, OdeStep, Params, PerSample, PRNGKey, Weight


def cd(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    teacher: BoundDenoiser,
    ode_step: OdeStep,
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """CD: x_r is one `ode_step` of the teacher's PF-ODE from x_t.   [Song et al. 2023, eq. 7, alg. 2]"""
    check_path(model, teacher)
    t, r = batch.times.t, batch.times.target

    def velocity(x, t):
        return model.path.velocity(x, teacher(x, t, **batch.conditions), t)

    x_t = batch.noised(model.path, t)
    return consistency_loss(
        model, params, key, batch, x_t, ode_step(velocity, x_t, t, r),
        target_params=target_params, distance=distance, weight=weight,
    )  # fmt: skip


def guided_cd(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params | None = None,
    teacher: BoundDenoiser,
    ode_step: OdeStep,
    distance: Distance,
    weight: Weight,
    takes_guidance: bool = True,
) -> PerSample:
    """CD from a teacher with classifier-free guidance; the student's network takes its scale.   [Luo et al. 2023]

    The batch's conditions hold the scale `guidance` (b,), and the `label` (b,), or of prompts `negative`, the mapping
    of what the teacher sees in place of the other conditions where it goes without them. The teacher's network does
    not take the scale, and the student's takes no `negative`.

    takes_guidance: False where the student's network takes no scale and learns the mean over all, as LCM-LoRA's does.
    """
    check_path(model, teacher)
    conditions, without = batch.conditions, ("negative",) if takes_guidance else ("negative", "guidance")
    needed = ("guidance",) if "negative" in conditions else ("guidance", "label")
    if missing := [name for name in needed if name not in conditions]:
        raise ValueError(
            f"guided distillation needs the conditions guidance and label: {', '.join(missing)} is missing"
        )
    seen = {name: value for name, value in conditions.items() if name not in without}
    return cd(
        model, params, key, replace(batch, conditions=seen), target_params=target_params,
        teacher=lambda x, t, **_: guided(teacher)(x, t, **conditions),
        ode_step=ode_step, distance=distance, weight=weight,
    )  # fmt: skip


lcm = guided_cd
"""LCM is guided CD on a discrete diffusion model's path.   [Luo et al. 2023, latent consistency models, alg. 1]

Its times: `skipping_pairs`, or the released code's `ddim_grid_pairs`. Its scalings: `preconditioning.lcm`.
"""


def pd(
    model: Model,
    params: Params,
    key: PRNGKey | None,
    batch: Batch,
    *,
    target_params: Params,
    rho: float,
    distance: Distance,
    weight: Weight,
) -> PerSample:
    """Progressive distillation, λ(t, r)·d(D_θ(x_t, t), D*): one step of the student replaces two of the teacher.

    The teacher is the model with `target_params`, the parameters at the start of the stage. Its DDIM steps go from t to
    m, halfway to r in t^(1/rho), and from m to r. D* is the estimate with which one DDIM step moves x_t to that x_r.
    [Salimans & Ho 2022, alg. 2, app. G]
    """
    path, t, r = model.path, batch.times.t, batch.times.target
    checks.ordered(r, t, "r t", apart=True)
    x_t = x = batch.noised(path, t)
    middle = halfway(t, r, rho)
    for start, end in ((t, middle), (middle, r)):
        # without a key: the teacher drops out nothing
        x = path.ddim(x, model(target_params, x, start, **batch.conditions), start, end)
    target = path.ddim_inverse(x, x_t, t, r)
    estimate = model(params, x_t, t, key=key, **batch.conditions)
    return weight(t, r) * distance(estimate, jax.lax.stop_gradient(target))
