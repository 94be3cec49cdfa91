"""Samplers of pipelines from prompts to images, and edits by them, as pure functions of arrays."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax.core import solvers
from cmjax.core.editing import inpainting, mask_of_latents
from cmjax.core.sampling import gaussian, sample_fn

if TYPE_CHECKING:
    from cmjax.interop.text_to_image import TextToImage

SOLVERS = {"ddim": solvers.ddim, "pndm": solvers.pndm}
SAMPLERS = (*SOLVERS, "lcm")
NOISES_OF_EDITS = (10_001, 10_002)
"""Indices of the two noises of an edit, beyond those of samplers."""


def pipeline_latents(
    pipeline: "TextToImage",
    key: Any,
    shape: Sequence[int],
    *,
    sampler: str,
    times: Any,
    start: Any = None,
    noises: Any = None,
    known: tuple[Array, Array] | None = None,
    **conditions: Any,
) -> Float[Array, "b h w c"]:
    """Samples latents in the network's units, by one of `SAMPLERS`.

    Args:   key: one key, or (b,) keys, one for each sample. shape: (b, h, w, c) of the latents.
            sampler: of `SAMPLERS`; "lcm" is multistep consistency sampling. times: of `pipeline.times`.
            start: the state at the first time; by default unit noise. noises: as in `sample_fn`, for "lcm".
            known: latents (b, h, w, c) and a mask (b, h, w, 1), 1 where they are known and stand in every estimate.
            With "lcm" that is zero-shot editing [Song et al. 2023, alg. 4]. With the others the known part of the
            state is a(t)·latents + b(t)·noise throughout, where that of `start` is, with one and the same noise.
            conditions: of `net`.
    Raises: ValueError where the sampler is another, or as `sample_fn`.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
    start = gaussian(key, shape) if start is None else jnp.asarray(start)
    schedule = pipeline.schedule
    if sampler == "lcm":
        model = _keeping(pipeline.consistency_fn, known)
        by = {"t_min": 0.0, "path": schedule.path, "full_noise": True}
        return sample_fn(model, key, shape, times=times, start=start, noises=noises, **by, **conditions)
    denoise = partial(_keeping(pipeline.denoiser, known), **conditions)
    samples = SOLVERS[sampler](denoise, start, times, lambda _: start, path=schedule.path, to_zero=schedule.ends_clean)
    # a schedule that does not end clean leaves the noise of its first step
    return samples if known is None else inpainting(known[1]).combine(known[0], samples)


def _keeping(model: Any, known: tuple[Array, Array] | None) -> Any:
    """Makes the model whose estimates have the known latents in place."""
    if known is None:
        return model
    latents, operator = known[0], inpainting(known[1])
    return lambda x, t, **conditions: operator.combine(latents, model(x, t, **conditions))


def pipeline_images(
    pipeline: "TextToImage",
    key: Any,
    rows: Mapping[str, Any],
    times: Any,
    *,
    sampler: str,
    size: tuple[int, int],
    images: Any = None,
    mask: Any = None,
    strength: Any = 0.5,
) -> Float[Array, "b h w c"]:
    """Samples an image of each of `pipeline.rows`: a pure function of arrays.

    Args:    key, sampler, times: as in `pipeline_latents`. size: height and width in pixels.
             images: (b, h, w, c) in [−1, 1], to be edited.
             mask: (b, h, w, 1), 1 where pixels of `images` are kept. Latents are known where all their pixels are.
             strength: above 0, up to 1; at 1 with a mask the part that it does not keep starts from noise alone.
    Returns: images in about [−1, 1], not clipped; kept pixels are those of `images`.
    """
    inputs = pipeline_start(pipeline, key, rows, times[0], size=size, images=images, mask=mask, strength=strength)
    latents = pipeline_latents(pipeline, key, inputs["start"].shape, sampler=sampler, times=times, **inputs)
    return pipeline_end(pipeline, latents, images, mask)


def pipeline_start(
    pipeline: "TextToImage",
    key: Any,
    rows: Mapping[str, Any],
    time: Any,
    *,
    size: tuple[int, int],
    images: Any = None,
    mask: Any = None,
    strength: Any = 0.5,
) -> dict[str, Any]:
    """Computes the arguments `start`, `known` and the conditions of `pipeline_latents`, whose first time is `time`.

    Args: as of `pipeline_images`.
    """
    factor = pipeline.autoencoder.factor
    shape = (len(rows["tokens"][0]), size[0] // factor, size[1] // factor, pipeline.module.in_channels)
    conditions = pipeline.guided_conditions(rows, size)
    if images is None:
        return {"start": gaussian(key, shape), "known": None, **conditions}
    encode_noise, start_noise = (gaussian(key, shape, index) for index in NOISES_OF_EDITS)
    latents, known = pipeline.encode(jnp.asarray(images, jnp.float32), encode_noise), None
    if mask is not None:
        known = latents, mask_of_latents(mask, factor)
        latents = jnp.where(jnp.asarray(strength) < 1, latents, inpainting(known[1]).degrade(latents))
    return {"start": pipeline.schedule.path.add_noise(latents, start_noise, time), "known": known, **conditions}


def pipeline_end(
    pipeline: "TextToImage", latents: Float[Array, "b _ _ l"], images: Any = None, mask: Any = None
) -> Float[Array, "b h w c"]:
    """Decodes latents; the pixels that a mask keeps are those of `images`. Args: as of `pipeline_images`."""
    samples = pipeline.decode(latents)
    if images is None or mask is None:
        return samples
    return inpainting(jnp.asarray(mask)).combine(jnp.asarray(images, jnp.float32), samples)


def split_times(pipeline: "TextToImage", sampler: str, times: np.ndarray) -> list[np.ndarray]:
    """Splits the times for `pipeline_latents` to be called with each part, from where the part before it ended.

    DDIM's steps remember nothing but the state; each other sampler has all times as its one part.
    """
    if sampler != "ddim" or pipeline.schedule.ends_clean or len(times) < 2:
        return [times]
    return [times[i : i + 2] for i in range(len(times) - 1)]
