"""Prompts to images: a pipeline of Stable Diffusion's family as pure functions of arrays."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cmjax.core.model import BoundModel
from cmjax.interop.guided_unet import guided_unet
from cmjax.interop.prompt_sampling import SAMPLERS, SOLVERS, pipeline_images
from cmjax.interop.scheduler import Schedule
from cmjax.interop.tokens import Tokenizer, Warn
from cmjax.nets.adapter import count_parameters
from cmjax.nets.clip import TextEncoder
from cmjax.nets.conditional_unet import ConditionalUNet
from cmjax.nets.latents import Autoencoder
from cmjax.system.content import content_key

log = logging.getLogger(__name__)

Conditions = dict[str, Any]
"""The U-Net's inputs that come from prompts: `context` (b, n, d), and for SDXL `pooled` (b, p) and `sizes` (b, 6)."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "texts", "autoencoder"],
    meta_fields=["module", "tokenizers", "schedule", "zeros_for_empty", "sample_size"],
)
@dataclass(frozen=True)
class TextToImage:
    """Holds a pipeline: a U-Net with its parameters, text encoders, tokenizers, autoencoder and schedule.

    It is a pytree whose leaves are the parameters: a jitted function may close over it or take it as an argument.

    texts, tokenizers: one, or SDXL's two. zeros_for_empty: whether a context of zeros stands for no negative
    prompt, as in SDXL, and not the empty prompt. sample_size: height and width of the latents in training.
    """

    params: Any
    module: ConditionalUNet
    texts: tuple[TextEncoder, ...]
    tokenizers: tuple[Tokenizer, ...]
    autoencoder: Autoencoder
    schedule: Schedule
    zeros_for_empty: bool
    sample_size: int

    @property
    def sampler(self) -> str:
        """The sampler that the pipeline is made for, of `SAMPLERS`."""
        return "lcm" if self.module.guidance_width or self.schedule.is_lcm else "ddim"

    @cached_property
    def net(self) -> Callable[..., Array]:
        """The function net(params, x, c_noise, *, key=None, context, guidance=None, negative=None, pooled, sizes).

        It is a `typing.Net` of times in [0, 1], for `cmjax.Model`. guidance: (b,), 1 means none. A network that was
        distilled with it takes it as an input. Another one needs `negative`, the conditions of negative prompts, and
        gives (1 − guidance)·F(negative) + guidance·F in one evaluation of twice the batch.
        """
        return partial(guided_unet, self.module, self.schedule.steps)

    @cached_property
    def consistency_fn(self) -> BoundModel:
        """The consistency function of an LCM, for `sample_fn` with full_noise=True."""
        return self._bound("consistency", self.schedule.consistency_fn(self.net))

    @cached_property
    def denoiser(self) -> BoundModel:
        """The denoiser, for `sample_denoiser`."""
        return self._bound("denoiser", self.schedule.denoiser(self.net))

    def _bound(self, kind: Any, model: Any) -> BoundModel:
        shape, last = (*(self.sample_size,) * 2, self.module.in_channels), self.schedule.steps - 1
        return BoundModel(self.params, model, shape, 0.0, last / self.schedule.steps, kind, self.schedule.path)

    def tokens(self, prompts: Sequence[str], *, warn: Warn = log.warning) -> tuple[np.ndarray, ...]:
        """Encodes prompts as ids (b, 77) of each tokenizer; one that is too long is cut, with a warning."""
        return tuple(tokenizer(prompts, warn=warn) for tokenizer in self.tokenizers)

    @property
    def text_key(self) -> str:
        """A key of what makes conditions of prompts, for the manifest of encoded data: tokenizers, text encoders."""
        return content_key([text.weights_key for text in self.texts], [each.key for each in self.tokenizers])

    def no_prompt(self) -> Conditions:
        """Computes the context (n, d) without a prompt, and for SDXL the pooled features (p,), both zeros in SDXL."""
        conditions = self.conditions(self.tokens([""]), (0, 0))
        is_seen = 0.0 if self.zeros_for_empty else 1.0
        return {name: value[0] * is_seen for name, value in conditions.items() if name != "sizes"}

    def conditions(self, tokens: Sequence[Any], size: tuple[int, int]) -> Conditions:
        """Computes the U-Net's inputs from tokens (b, 77) of each tokenizer, for images of this height and width."""
        outputs = [text(ids) for text, ids in zip(self.texts, tokens, strict=True)]
        if not self.module.pooled_width:
            return {"context": outputs[0].last}
        sizes = jnp.asarray([*size, 0, 0, *size], jnp.float32)
        return {
            "context": jnp.concatenate([output.hidden[-2] for output in outputs], axis=-1),
            "pooled": outputs[-1].projected,
            "sizes": jnp.repeat(sizes[None], len(tokens[0]), axis=0),
        }

    def encode(self, images: Float[Array, "b h w c"], noise: Float[Array, "b _ _ l"]) -> Array:
        """Samples the latents of images in [−1, 1], as the network sees them, with this unit noise."""
        mean, logvar = self.autoencoder.encode(images)
        return self.autoencoder.scaled(mean + jnp.exp(logvar / 2) * noise)

    def decode(self, latents: Float[Array, "b h w l"]) -> Float[Array, "b _ _ c"]:
        """Decodes latents as the network sees them. Returns: images in about [−1, 1], not clipped."""
        return self.autoencoder.decode(self.autoencoder.unscaled(latents))

    def sample(
        self,
        prompts: Sequence[str],
        *,
        key: Any,
        steps: int | Sequence[int] | None = None,
        guidance: float | None = None,
        negative: Sequence[str] | None = None,
        sampler: str | None = None,
        size: tuple[int, int] | None = None,
        images: Any = None,
        strength: float = 0.5,
    ) -> np.ndarray:
        """Samples an image of each prompt.

        Args:    key: one key, or (b,) keys, one for each image, which then does not depend on its batch.
                 steps: how many, 4 of "lcm" and 50 of "ddim" and "pndm" by default, or the steps themselves.
                 guidance: 1 for none; by default 8.5 where the network has it as an input, 1 with "lcm", else 7.5.
                 negative: a negative prompt of each image, for classifier-free guidance.
                 sampler: by default the one that the pipeline is made for. size: height and width in pixels.
                 images: (b, h, w, 3) in [−1, 1], to be changed; strength: above 0, up to 1, how much.
        Returns: images (b, h, w, 3) in [−1, 1].
        Raises:  ValueError naming the argument that cannot be.
        """
        strength = 1.0 if images is None else strength
        by = {"key": key, "steps": steps, "guidance": guidance, "negative": negative, "sampler": sampler}
        return self._sampled(prompts, images, None, size=size, strength=strength, **by)

    def inpaint(
        self,
        prompts: Sequence[str],
        images: Any,
        mask: Any,
        *,
        key: Any,
        steps: int | Sequence[int] | None = None,
        guidance: float | None = None,
        negative: Sequence[str] | None = None,
        sampler: str | None = None,
        strength: float = 1.0,
    ) -> np.ndarray:
        """Generates the part of images that a mask does not keep, by a prompt for each, without training for it.

        Latents whose pixels are all kept stay as they are in every estimate, see `pipeline_latents`.

        Args:    images: (b, h, w, 3) in [−1, 1]. mask: (h, w) or (b, h, w), 1 or True where a pixel is kept.
                 strength: above 0, up to 1; below 1 the new part starts from the old one with noise.
                 key, steps, guidance, negative, sampler: as in `sample`.
        Returns: images (b, h, w, 3) in [−1, 1], whose kept pixels are those of `images`.
        Raises:  ValueError naming the argument that cannot be.
        """
        by = {"key": key, "steps": steps, "guidance": guidance, "negative": negative, "sampler": sampler}
        mask = np.asarray(mask, np.float32)
        if mask.shape not in (images.shape[1:3], images.shape[:3]) or not np.isin(mask, (0, 1)).all():
            raise ValueError(f"mask must be 0 and 1 of {images.shape[1:3]} or {images.shape[:3]}, got {mask.shape}")
        mask = np.broadcast_to(mask, images.shape[:3])[..., None]
        return self._sampled(prompts, images, mask, size=None, strength=strength, **by)

    def _sampled(
        self,
        prompts: Sequence[str],
        images: Any,
        mask: Any,
        *,
        key: Any,
        steps: int | Sequence[int] | None,
        guidance: float | None,
        negative: Sequence[str] | None,
        sampler: str | None,
        size: tuple[int, int] | None,
        strength: float,
    ) -> np.ndarray:
        sampler = self.sampler if sampler is None else sampler
        if images is not None and (images.ndim != 4 or len(images) != len(prompts)):
            raise ValueError(f"images must be (b, h, w, c), one of each prompt, got {images.shape}")
        size = tuple(images.shape[1:3]) if images is not None else size or (self.pixels, self.pixels)
        times = self.times(sampler, steps, strength=strength)
        rows = self.rows(prompts, sampler=sampler, guidance=guidance, negative=negative)
        self.check_size(size)
        edit = {"images": images, "mask": mask, "strength": strength}
        return np.clip(_jitted_images(self, key, rows, times, sampler=sampler, size=size, **edit), -1, 1)

    def times(self, sampler: str, steps: int | Sequence[int] | None, *, strength: float = 1.0) -> np.ndarray:
        """Gives the times of a sampler, descending: those of its evaluations, and of "ddim" and "pndm" the end, where
        it is not clean data. "pndm" evaluates the network once more, at the second time.

        Args:   steps, strength: as in `sample`. Raises: ValueError.
        """
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, got {sampler!r}")
        schedule, is_lcm = self.schedule, sampler == "lcm"
        if not is_lcm and (steps is None or isinstance(steps, int)):
            grid = schedule.ddim_steps(50 if steps is None else steps, strength=strength)
        else:
            few = min(4, max(1, int(schedule.original * strength)))  # of a low strength there are fewer
            grid = schedule.lcm_steps(few if steps is None else steps, strength=strength)
        times = grid / schedule.steps
        times = times if is_lcm or schedule.ends_clean or times[-1] == 0 else np.append(times, 0.0)
        if sampler == "pndm" and len(times) < 2:
            raise ValueError(f"steps must be 2 or more for pndm, got {steps} at strength={strength:g}")
        return times

    def rows(
        self,
        prompts: Sequence[str],
        *,
        sampler: str,
        guidance: float | None = None,
        negative: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Makes arrays of prompts and guidance, a row for each prompt, on the host, for `guided_conditions`.

        Args:   as of `sample`. Raises: ValueError where guidance or negative prompts do not fit the network.
        """
        embeds, count = bool(self.module.guidance_width), len(prompts)
        if guidance is None:
            guidance = 8.5 if embeds else 7.5 if sampler in SOLVERS else 1.0
        if not np.isfinite(guidance):
            raise ValueError(f"guidance must be finite, got {guidance}")
        if negative is not None and (embeds or guidance == 1):
            why = "the network has guidance as an input" if embeds else "guidance is 1"
            raise ValueError(f"a negative prompt has no effect: {why}")
        if negative is not None and len(negative) != count:
            raise ValueError(f"negative must have a prompt for each of {count}, got {len(negative)}")
        rows: dict[str, Any] = {"tokens": self.tokens(prompts)}
        if embeds or guidance != 1:
            rows["guidance"] = np.full(count, guidance, np.float32)
        if not embeds and guidance != 1:
            rows["negative"] = self.tokens([""] * count if negative is None else negative)
            rows["is_seen"] = np.full(count, negative is not None or not self.zeros_for_empty)
        return rows

    def guided_conditions(self, rows: Mapping[str, Any], size: tuple[int, int]) -> Conditions:
        """Computes the conditions of `net` from `rows`, for images of this size: a pure function of arrays."""
        conditions = self.conditions(rows["tokens"], size)
        if "guidance" not in rows:
            return conditions
        conditions["guidance"] = jnp.asarray(rows["guidance"])
        if "negative" in rows:
            negative, is_seen = self.conditions(rows["negative"], size), jnp.asarray(rows["is_seen"], jnp.float32)
            of_prompts = {"context": is_seen[:, None, None], "pooled": is_seen[:, None]}
            conditions["negative"] = {name: value * of_prompts.get(name, 1) for name, value in negative.items()}
        return conditions

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises ValueError where images cannot have this height and width."""
        if len(size) != 2 or any(side < 1 or side % self.autoencoder.factor for side in size):
            multiple = self.autoencoder.factor
            raise ValueError(f"size must be a height and a width, multiples of {multiple}, got {tuple(size)}")

    def __repr__(self) -> str:
        of = f"{count_parameters(self.params):,} parameters"
        return f"TextToImage(sampler={self.sampler!r}, size={self.pixels}, U-Net of {of})"

    @property
    def pixels(self) -> int:
        """Height and width of images that the network was trained with."""
        return self.sample_size * self.autoencoder.factor


_jitted_images = jax.jit(pipeline_images, static_argnames=("sampler", "size"))
