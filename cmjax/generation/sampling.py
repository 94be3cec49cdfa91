"""Samples a model in chunks over all devices: the same image for the same (seed, index), whatever the devices."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cmjax.config.model import NetworkModel
from cmjax.config.samples import SamplingOptions
from cmjax.core.guidance import autoguided, guided, limited
from cmjax.core.model import BoundModel
from cmjax.core.sampling import gaussian, sample_chain, sample_denoiser, sample_fn
from cmjax.data.base import is_image
from cmjax.data.batches import to_uint8
from cmjax.generation.keys import keys_of
from cmjax.system.environment import tracing_for
from cmjax.system.mesh import batch_sharding, chunks, distribute, in_chunks, make_mesh, replicated
from cmjax.system.progress import Update

log = logging.getLogger(__name__)

Sampler = Callable[[Any, Any, dict], Any]
"""(flow_map, key data (b, ...) on the host, conditions) -> images (b, h, w, c), jitted over all devices."""

Decode = Callable[[np.ndarray], np.ndarray]
"""Latents (n, h, w, l) -> images (n, H, W, c) in [-1, 1]."""

PIXELS_AT_ONCE = 2**18

_OF_LABELS = 2**32 - 1
"""Folded into a sample's key for its label; numbers from 0 on are those of its noises."""
_guided, _autoguided, _limited = lru_cache(guided), lru_cache(autoguided), lru_cache(limited)
"""One function for one denoiser: jit compiles each new function anew."""


def consistency_sampler(times: tuple[float, ...], samples: SamplingOptions) -> Sampler:
    """Samples a consistency model or a flow map along `times`, by the sampler and with the noise of `samples`."""
    return consistency_samplers(samples)(times)


def consistency_samplers(samples: SamplingOptions) -> Callable[[tuple[float, ...]], Sampler]:
    """`consistency_sampler`, compiled once for all times of the same number."""
    compiled = over_devices(_with_keys(consistency_sample(samples)))

    def along(times):
        levels = np.asarray(times, np.float32)  # an argument, not a constant: other times compile nothing anew
        return lambda flow_map, keys, conditions: compiled((flow_map, levels), (keys, conditions))

    return along


def consistency_sample(samples: SamplingOptions) -> Callable[..., Any]:
    """Makes the function that `consistency_sampler` compiles. A chain goes along the times, and at last to t_min."""

    def sample(flow_map_and_times, keys, conditions):
        # times are traced, so their number alone is compiled in
        flow_map, times = flow_map_and_times
        shape = (len(keys), *flow_map.shape)
        conditions = {**conditions, "start": gaussian(keys, shape) if samples.unit_start else None}
        if samples.gamma is not None:
            stops = jnp.append(times, flow_map.t_min)
            return sample_chain(flow_map, keys, shape, times=stops, gamma=samples.gamma, **conditions)
        noise = {"clip": samples.clip, "full_noise": samples.full_noise}
        return sample_fn(flow_map, keys, shape, times=times, **noise, **conditions)

    return sample


def diffusion_sampler(samples: SamplingOptions, times: tuple[float, ...]) -> Sampler:
    """Samples a denoiser along the descending `times`, by the solver of `samples`."""
    compiled = over_devices(_with_keys(diffusion_sample(samples, times)))
    return lambda flow_map, keys, conditions: compiled(flow_map, (keys, conditions))


def diffusion_sample(samples: SamplingOptions, times: tuple[float, ...]) -> Callable[..., Any]:
    """Makes the function that `diffusion_sampler` compiles."""
    choices = {"solver": samples.solver, "clip": samples.clip}

    def sample(flow_map, keys, conditions):
        shape = (len(keys), *flow_map.shape)
        return sample_denoiser(flow_map, keys, shape, times=times, path=flow_map.path, **choices, **conditions)

    return sample


def sample_images(
    sampler: Sampler,
    flow_map: BoundModel,
    num: int,
    *,
    seed: int,
    conditions: dict[str, np.ndarray],
    first: int = 0,
    update_progress: Update = lambda done, text: None,
    to_pixels: Callable[..., np.ndarray] = to_uint8,
    decode: Decode | None = None,
) -> np.ndarray:
    """Samples first … first + num − 1 of a seed, (num, h, w, c): uint8 for images, float32 for latents,
    for signals (num, length, channels) and for points (num, features).

    Samples of three axes with neither 1 nor 3 channels are latents, unless they are decoded. conditions: (num, ...).
    """
    shown = _shown(to_pixels, decode)
    size, parts = chunk_of(num, flow_map.shape, jax.device_count()), []
    for indices, within in chunks((np.arange(first, first + num), conditions), size):
        parts.append(shown(sampler(flow_map, keys_of(seed, indices), within)))
        update_progress(min(len(parts) * size, num), "")
    return np.concatenate(parts)[:num]


def _shown(to_pixels: Callable[..., np.ndarray], decode: Decode | None) -> Callable[[np.ndarray], np.ndarray]:
    def shown(samples: np.ndarray) -> np.ndarray:
        images = samples if decode is None else decode(samples)
        # pixels are rounded to bytes; all others stay as they are
        return to_pixels(images) if is_image(images.shape[1:]) else images

    return shown


@dataclass(frozen=True)
class SampleSequence:
    """Gives a numbered sequence of samples. conditions: of all samples, (num, ...). to_pixels: turns [-1, 1] into
    uint8.
    decode: of latents."""

    sampler: Sampler
    flow_map: BoundModel
    seed: int
    conditions: dict[str, np.ndarray]
    to_pixels: Callable[..., np.ndarray] = to_uint8
    decode: Decode | None = None

    def images(self, start: int, stop: int, update: Update = lambda done, text: None) -> np.ndarray:
        """Samples start … stop − 1, as `sample_images`."""
        return sample_images(
            self.sampler,
            self.flow_map,
            stop - start,
            seed=self.seed,
            conditions={name: values[start:stop] for name, values in self.conditions.items()},
            first=start,
            update_progress=lambda done, text: update(start + done, text),
            to_pixels=self.to_pixels,
            decode=self.decode,
        )


def chunk_of(num: int, shape: tuple[int, ...], devices: int, *, pixels: int | None = None, least: int = 16) -> int:
    """Counts the samples, of `num`, that are made at once: a multiple of the devices.

    pixels: of all samples of one device, `PIXELS_AT_ONCE` by default, unless that is fewer than `least` samples.
    """
    most = max((pixels or PIXELS_AT_ONCE) // math.prod(shape), least) * devices
    count = -(-num // most)  # of equal size, so that the last one is not run for a few samples
    return -(-num // (count * devices)) * devices


def rows_in_chunks(rows: Any, shape: tuple[int, ...]) -> Iterator[Any]:
    """Yields the rows, a tree of host arrays (n, ...), in equally long parts of `chunk_of` samples.

    The last row is repeated until the last part is as long as the others: a function is compiled for all of them once.
    """
    return chunks(rows, chunk_of(len(jax.tree.leaves(rows)[0]), shape, jax.device_count()))


def class_labels(
    num: int, num_classes: int | None, label: int | None = None, *, random_seed: int | None = None
) -> dict[str, np.ndarray]:
    """Makes the `label` condition of `num` samples: one class, or all in turn; empty for a model without classes.

    random_seed: in place of all in turn, each class at random, a function of the seed and the sample's index, as EDM
    does.
    """
    if not num_classes:
        return {}
    if random_seed is not None:
        # keys are made as data on the host, and become typed keys here
        keys = jax.random.wrap_key_data(jnp.asarray(keys_of(random_seed, np.arange(num))))
        of_label = jax.vmap(jax.random.fold_in, (0, None))(keys, jnp.uint32(_OF_LABELS))
        labels = np.asarray(jax.vmap(lambda key: jax.random.randint(key, (), 0, num_classes))(of_label))
    else:
        labels = np.arange(num) % num_classes if label is None else np.full(num, label)
    return {"label": labels.astype(np.int32)}


Interval = tuple[float, float] | None


def with_guidance(
    flow_map: BoundModel,
    conditions: dict[str, np.ndarray],
    guidance: float,
    *,
    takes: bool,
    interval: Interval = None,
    takes_interval: bool = False,
    channels: int = 0,
) -> tuple[BoundModel, dict[str, np.ndarray]]:
    """Guides the model by that scale, at the times of the interval alone. Returns: the model and its conditions.

    A network that `takes` the scale has it as an input, and so the interval; any other with classes is evaluated
    twice, unless the scale is 1. channels: how many of the first are guided; 0: all.
    """
    # at scale 1 the guided estimate is the conditional one, for half the cost
    if not takes and guidance == 1:
        return flow_map, conditions
    rows = len(next(iter(conditions.values())))
    if takes_interval and interval is not None:
        # (n, 2): a condition has a row for each sample
        ends = np.tile(np.asarray(interval, np.float32), (rows, 1))
        conditions, interval = {**conditions, "interval": ends}, None
    denoiser = flow_map.function if takes else _guided(flow_map.function, channels=channels or None)
    if interval is not None:
        denoiser = _limited(denoiser, low=interval[0], high=interval[1])
    return replace(flow_map, function=denoiser), {
        **conditions,
        "guidance": np.full(rows, guidance, np.float32),
    }


def with_autoguidance(
    flow_map: BoundModel,
    weak: BoundModel,
    conditions: dict[str, np.ndarray],
    scales: np.ndarray,
    interval: Interval = None,
) -> tuple[BoundModel, dict[str, np.ndarray]]:
    """Guides the model by a weaker one of its shape, path and conditions. scales: of each sample."""
    denoiser = _autoguided(flow_map.function, weak.function)
    if interval is not None:
        denoiser = _limited(denoiser, low=interval[0], high=interval[1])
    # both trees of parameters are one argument, so that the pair is compiled and laid out as one model
    both = replace(flow_map, params=(flow_map.params, weak.params), function=denoiser)
    return both, {**conditions, "guidance": scales}


def guided_by(
    flow_map: BoundModel, conditions: dict[str, np.ndarray], samples: SamplingOptions, model: NetworkModel
) -> tuple[BoundModel, dict[str, np.ndarray]]:
    """Applies `with_guidance` as `samples` says, to a network of `model`."""
    takes = {"takes": model.guided, "takes_interval": model.guided_interval}
    interval, channels = samples.guidance_interval, samples.guidance_channels
    return with_guidance(flow_map, conditions, samples.guidance, interval=interval, channels=channels, **takes)


def over_devices(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Compiles `function(model, rows)`, its rows spread over all devices of all processes.

    Args:    function: (tree of parameters, tree of arrays with a row for each sample) -> tree of such arrays.
    Returns: the same function of host arrays, with any number of rows, that gives host arrays. Every process must call
             it with the same rows, and has all of the results.
    """
    mesh = make_mesh()
    jitted = _spread(function, mesh)

    def call(model, rows):
        # every device has equally many rows
        size = -(-len(jax.tree.leaves(rows)[0]) // mesh.size) * mesh.size
        return in_chunks(lambda chunk: jitted(model, distribute(chunk, batch_sharding(mesh))), rows, size)

    return call


def trace_sampler(sample: Callable[..., Any], model: Any, rows: tuple[Any, dict], mesh: Mesh) -> jax.stages.Traced:
    """Traces a sampler of `sample` for models and rows (key data, conditions) of these shapes, on the mesh."""
    with tracing_for(mesh.devices.flat[0].platform):
        return _spread(_with_keys(sample), mesh).trace(model, rows)


def _spread(function: Callable[[Any, Any], Any], mesh: Mesh) -> Any:
    # None: the parameters stay as they lie, split over `fsdp` or whole
    return jax.jit(function, in_shardings=(None, batch_sharding(mesh)), out_shardings=replicated(mesh))


def _with_keys(sample: Callable) -> Callable[[Any, Any], Any]:
    # key data, and not typed keys, are laid over the devices: host arrays hold no typed keys
    def with_keys(model, rows):
        key_data, conditions = rows
        return sample(model, jax.random.wrap_key_data(key_data), conditions)

    return with_keys
