"""Every method's loss, by the name that configurations, recipes and docs/methods.md use.

All have one signature, `loss(model, params, key, batch, *, ...) -> (b,)`: one loss for each sample.

    model: a `Model`. params: the student's parameters, with respect to which the loss is differentiated.
    key: for dropout masks; None means no dropout. All other randomness is in the batch, so a loss is a function of
    parameters, batch and dropout masks.
    batch: a `Batch`. Methods with a target network take `target_params`, its parameters, by default the student's own
    (`pd` needs them). No gradient flows through the target.

The other inputs of a method are keyword arguments; `functools.partial` binds them. A `teacher` is a function (x, t,
**conditions) -> the estimate of the clean data, with its parameters bound, such as `cmjax.load(workdir)`.
"""

from cmjax.core.losses.alpha_flow import alphaflow
from cmjax.core.losses.anchored import dmf, facm
from cmjax.core.losses.consistency import ct, ect, ict, multistep_ct, sct, tcm
from cmjax.core.losses.continuous import continuous_cd, continuous_ct, scm_cd, scm_ct
from cmjax.core.losses.diffusion import denoising, edm2
from cmjax.core.losses.distillation import cd, guided_cd, lcm, pd
from cmjax.core.losses.distilled_maps import ayf, cmt, cmt_map, ctm
from cmjax.core.losses.flow_maps import imf, meanflow
from cmjax.core.losses.moments import imm
from cmjax.core.losses.recursive import rcgm, shortcut, soflow
from cmjax.core.losses.relatives import anyflow, pmf, tim
from cmjax.core.losses.self_distillation import esd, lsd, psd, tvm

__all__ = [
    "alphaflow",
    "anyflow",
    "ayf",
    "cd",
    "cmt",
    "cmt_map",
    "continuous_cd",
    "continuous_ct",
    "ct",
    "ctm",
    "denoising",
    "dmf",
    "ect",
    "edm2",
    "esd",
    "facm",
    "guided_cd",
    "ict",
    "imf",
    "imm",
    "lcm",
    "lsd",
    "meanflow",
    "multistep_ct",
    "pd",
    "pmf",
    "psd",
    "rcgm",
    "scm_cd",
    "scm_ct",
    "sct",
    "shortcut",
    "soflow",
    "tcm",
    "tim",
    "tvm",
]
