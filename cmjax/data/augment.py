"""Augments images as EDM and ADA: random amounts, their effect on images, and their labels for the network.

A network that takes the labels learns from changed images without sampling any: at label zero it models images as
they are.   [Karras et al. 2022, app. F.2; Karras et al. 2020, app. B]
"""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from cmjax.data.warp import warp
from cmjax.ranges import Fraction

Probabilities = Mapping[str, float]
"""The probability of each augmentation by its name in `Amounts`; those left out are not in the labels either."""

SHIFT_MAX = 0.125
TRANSLATION_STD = 0.125
SCALE_STD = 0.2
STRETCH_STD = 0.2
BRIGHTNESS_STD = 0.2
CONTRAST_STD = 0.5
SATURATION_STD = 1.0
"""Sizes of the augmentations: of the image's width or height, and of log2 of a factor; brightness in data units."""


class Amounts(NamedTuple):
    """Holds the random amount of each augmentation for each sample, (b,) or (b, 2), in the order in which they apply.

    Zero leaves a sample alone. None stands for an augmentation that the pipe does not have.
    """

    x_flip: Array | None = None  # 1: mirrored left to right
    y_flip: Array | None = None  # 1: mirrored upside down
    quarter_turns: Array | None = None  # 0, 1, 2 or 3, counterclockwise
    shift: Array | None = None  # (right, up) in units of SHIFT_MAX, whole pixels
    scale: Array | None = None  # Gaussian
    rotation: Array | None = None  # an angle, counterclockwise
    stretch: Array | None = None  # (Gaussian, angle of the axis)
    translation: Array | None = None  # (right, down), Gaussian
    brightness: Array | None = None  # Gaussian
    contrast: Array | None = None  # Gaussian
    luma_flip: Array | None = None  # 1: the grey part negated
    hue: Array | None = None  # an angle
    saturation: Array | None = None  # Gaussian


PAIRS = ("quarter_turns", "shift", "rotation", "stretch", "translation", "hue")
"""The augmentations with two labels."""

GEOMETRY = ("scale", "rotation", "stretch", "translation")
COLOR = ("brightness", "contrast", "luma_flip", "hue", "saturation")


def edm(*, probability: Fraction) -> Probabilities:
    """EDM's pipe, 9 labels: each image mirrored or not, and five more augmentations, each at `probability`.

    Published: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQ-v2.   [Karras et al. 2022, app. F.2]
    Raises: ValueError where it is not in [0, 1]. At 0 nothing is mirrored either.
    """
    # The mirror image is a coin's toss, of EDM's probability 1e8·p: always, whatever p.
    names = ("y_flip", *GEOMETRY)
    probabilities = {"x_flip": float(probability > 0), **dict.fromkeys(names, float(probability))}
    _check(probabilities)
    return probabilities


def meanflow(*, probability: Fraction) -> Probabilities:
    """MeanFlow's pipe for CIFAR-10, 6 labels: EDM's without the upside-down mirror and rotations. Published: 0.12.

    [Geng et al. 2025, MeanFlow, the released PyTorch code]
    """
    return {name: value for name, value in edm(probability=probability).items() if name not in ("y_flip", "rotation")}


def label_size(probabilities: Probabilities) -> int:
    """Gives the number of labels of a sample."""
    return sum(1 + (name in PAIRS) for name in probabilities)


def augment(
    images: Float[Array, "b h w c"], key: Key[Array, ""], *, probabilities: Probabilities
) -> tuple[Float[Array, "b h w c"], Float[Array, "b n"]]:
    """Augments a batch at random, each sample by itself; returns also the labels that a network takes as `augment`.

    Args:    images: in [-1, 1]; results may leave it. probabilities: as from `edm`.
    Returns: the images and n = label_size(probabilities) numbers for each; zeros and every bit of the image where
             no augmentation happens.
    Raises:  ValueError naming the augmentation that is unknown or does not fit the images.
    """
    _check(probabilities)
    amounts = sample_amounts(key, images.shape, probabilities=probabilities)
    amounts = jax.tree.map(lambda x: x.astype(images.dtype), amounts)
    return apply(images, amounts), labels(amounts)


def sample_amounts(key: Key[Array, ""], shape: tuple[int, ...], *, probabilities: Probabilities) -> Amounts:
    """Samples the amounts for images of `shape` (b, h, w, c), of each augmentation independently of the others."""
    # A key for each, whether the pipe has it or not: its amounts do not depend on what else a pipe has.
    keys = dict(zip(Amounts._fields, jax.random.split(key, len(Amounts._fields)), strict=True))

    def sample(name: str, probability: float) -> Array:
        happens_key, amount_key = jax.random.split(keys[name])
        amount = _amount(name, amount_key, shape)
        happens = jax.random.bernoulli(happens_key, probability, shape[:1])
        return jnp.where(_over(happens, amount), amount, 0)

    return Amounts(**{name: sample(name, probability) for name, probability in probabilities.items()})


def _amount(name: str, key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Samples the amount of an augmentation, as if it happens to every sample."""
    b, h, w = shape[:3]
    match name:
        case "x_flip" | "y_flip" | "luma_flip":
            return jax.random.bernoulli(key, shape=(b,)).astype(float)
        case "quarter_turns":
            return jax.random.randint(key, (b,), 0, 4).astype(float)
        case "shift":
            reach = SHIFT_MAX * jnp.array([[w, h]], float)
            # whole pixels, as fractions of the furthest shift
            return jnp.round(jax.random.uniform(key, (b, 2), minval=-1, maxval=1) * reach) / reach
        case "rotation" | "hue":
            return _angle(key, b)
        case "stretch":
            size_key, angle_key, tilted_key = jax.random.split(key, 3)
            tilted = jax.random.bernoulli(tilted_key, shape=(b,)).astype(
                float
            )  # half of them along the image's own axes
            return jnp.stack([jax.random.normal(size_key, (b,)), tilted * _angle(angle_key, b)], axis=1)
        case "translation":
            return jax.random.normal(key, (b, 2))
        case _:
            return jax.random.normal(key, (b,))


def _angle(key: Key[Array, ""], num: int) -> Array:
    return jax.random.uniform(key, (num,), minval=-math.pi, maxval=math.pi)


def labels(amounts: Amounts) -> Float[Array, "b n"]:
    """Gives the labels of the amounts, in EDM's order: zeros where no augmentation happens."""
    columns = []
    for name, x in amounts._asdict().items():
        if x is None:
            continue
        match name:
            case "quarter_turns":
                # the two mirrors of which the turn is made, as in `_move_pixels`
                columns += [((x == 1) | (x == 2)).astype(x.dtype), ((x == 2) | (x == 3)).astype(x.dtype)]
            case "rotation" | "hue":
                # −1, so that no turn has the label zero
                columns += [jnp.cos(x) - 1, jnp.sin(x)]
            case "stretch":
                columns += [x[:, 0] * jnp.cos(x[:, 1]), x[:, 0] * jnp.sin(x[:, 1])]
            case _:
                columns += [*x.reshape(len(x), -1).T]
    return jnp.stack(columns, axis=1)


def apply(images: Float[Array, "b h w c"], amounts: Amounts) -> Float[Array, "b h w c"]:
    """Augments images by these amounts; an image whose amounts are zero keeps its every bit."""
    images = _move_pixels(images, amounts)
    if moved := _changed_by(amounts, GEOMETRY):
        # one resampling for all of these: each would blur the image
        inverse = _inverse(amounts, *images.shape[1:3])
        images = _where(functools.reduce(jnp.logical_or, moved), warp(images, inverse), images)
    if recolored := _changed_by(amounts, COLOR):
        images = _where(functools.reduce(jnp.logical_or, recolored), _recolor(images, amounts), images)
    return images


def _move_pixels(images: Array, amounts: Amounts) -> Array:
    """Applies the augmentations that move whole pixels: mirrors, quarter turns and shifts."""
    if amounts.x_flip is not None:
        images = _where(amounts.x_flip == 1, images[:, :, ::-1], images)
    if amounts.y_flip is not None:
        images = _where(amounts.y_flip == 1, images[:, ::-1], images)
    if (turns := amounts.quarter_turns) is not None:
        if images.shape[1] != images.shape[2]:
            raise ValueError(f"quarter_turns: images must be square, got {images.shape[1:3]}")
        # a quarter turn is one mirror and a transposition; a half turn is both mirrors
        images = _where((turns == 1) | (turns == 2), images[:, :, ::-1], images)
        images = _where((turns == 2) | (turns == 3), images[:, ::-1], images)
        images = _where((turns == 1) | (turns == 3), images.swapaxes(1, 2), images)
    if amounts.shift is not None:
        height, width = images.shape[1:3]
        # amounts hold fractions of the furthest shift; rounding makes them whole pixels again
        right, up = (jnp.round(amounts.shift.T[i] * SHIFT_MAX * (width, height)[i]).astype(int) for i in (0, 1))
        images = jnp.take_along_axis(images, _reflected(-right, width)[:, None, :, None], axis=2)
        images = jnp.take_along_axis(images, _reflected(up, height)[:, :, None, None], axis=1)
    return images


def _reflected(start: Int[Array, " b"], size: int) -> Int[Array, "b n"]:
    """Gives the indices start … start + size − 1 of a signal that is continued by reflection."""
    # reflected without the edge pixel twice: n, n − 2, n − 3, …
    period = max(2 * size - 2, 1)
    return size - 1 - jnp.abs(size - 1 - (jnp.arange(size)[None] + start[:, None]) % period)


def _inverse(amounts: Amounts, height: int, width: int) -> Float[Array, "b 3 3"]:
    """G⁻¹ of G = translation · R(−a) · stretch · R(a) · R(−rotation) · scale, as `warp` takes it."""
    # inverses, in the reverse order of G's factors
    factors = []
    if amounts.scale is not None:
        factor = jnp.exp2(-SCALE_STD * amounts.scale)
        factors += [_scaling(factor, factor)]
    if amounts.rotation is not None:
        factors += [_rotation(amounts.rotation)]
    if amounts.stretch is not None:
        size, angle = amounts.stretch.T
        factor = jnp.exp2(-STRETCH_STD * size)
        factors += [_rotation(-angle), _scaling(factor, 1 / factor), _rotation(angle)]
    if amounts.translation is not None:
        right, down = TRANSLATION_STD * amounts.translation.T
        factors += [_translation(-width * right, -height * down)]
    # a GPU's or TPU's lower default precision would misplace pixels
    return functools.reduce(functools.partial(jnp.matmul, precision="highest"), factors)


def _scaling(x: Array, y: Array) -> Array:
    return _matrix([x, 0, 0], [0, y, 0], [0, 0, 1])


def _rotation(angle: Array) -> Array:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return _matrix([cos, -sin, 0], [sin, cos, 0], [0, 0, 1])


def _translation(x: Array, y: Array) -> Array:
    return _matrix([1, 0, x], [0, 1, y], [0, 0, 1])


def _matrix(*rows: list) -> Array:
    """(b, 3, 3) from rows of arrays (b,) and numbers."""
    entries = [entry for row in rows for entry in row]
    dtype = next(entry.dtype for entry in entries if isinstance(entry, Array))
    return jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(x, dtype) for x in entries)), axis=-1).reshape(-1, 3, 3)


def _recolor(images: Array, amounts: Amounts) -> Array:
    """Turns the rest of a color, beside its grey part (the mean), about the grey axis v = (1, 1, 1)/√3; scales both."""
    if images.shape[3] not in (1, 3):
        raise ValueError(f"colors: images must have 1 or 3 channels, got {images.shape[3]}")
    zeros = jnp.zeros(len(images), images.dtype)
    # an augmentation that the pipe lacks acts with amount 0
    each = (zeros if (x := getattr(amounts, name)) is None else x for name in COLOR)
    brightness, contrast, luma_flip, hue, saturation = (_over(x, images) for x in each)
    # an image of one channel is all grey, so hue and saturation do not change it
    grey = jnp.mean(images, axis=3, keepdims=True)
    rest = images - grey
    across = (jnp.roll(rest, 1, axis=3) - jnp.roll(rest, -1, axis=3)) / math.sqrt(3)  # v × rest
    grey = (1 - 2 * luma_flip) * (grey + BRIGHTNESS_STD * brightness)
    rest = jnp.exp2(SATURATION_STD * saturation) * (jnp.cos(hue) * rest + jnp.sin(hue) * across)
    return jnp.exp2(CONTRAST_STD * contrast) * (grey + rest)


def _changed_by(amounts: Amounts, names: tuple[str, ...]) -> list[Array]:
    """Gives for each of the augmentations that the pipe has which samples it changes, (b,)."""
    used = (x for name in names if (x := getattr(amounts, name)) is not None)
    return [jnp.any(x.reshape(len(x), -1) != 0, axis=1) for x in used]


def _where(chosen: Array, yes: Array, no: Array) -> Array:
    return jnp.where(_over(chosen, no), yes, no)


def _over(per_sample: Array, x: Array) -> Array:
    """Gives (b,) further axes, to go with x (b, ...)."""
    return per_sample.reshape(-1, *(1,) * (x.ndim - 1))


def _check(probabilities: Probabilities) -> None:
    for name, probability in probabilities.items():
        if name not in Amounts._fields:
            raise ValueError(f"{name} must be one of {', '.join(Amounts._fields)}")
        if not 0 <= probability <= 1:
            raise ValueError(f"the probability of {name} must lie in [0, 1], got {probability}")
    if not probabilities:
        raise ValueError(f"give the probability of at least one of {', '.join(Amounts._fields)}")
