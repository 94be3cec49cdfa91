"""Decodes the latents of a run as images, over all devices, by the autoencoder that its data were encoded by."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array

from cmjax.config.fields import ConfigError, about
from cmjax.config.samples import DECODE_DTYPES, Decoding
from cmjax.data.batches import preprocess
from cmjax.generation.sampling import over_devices
from cmjax.runs.trained import Trained
from cmjax.system.mesh import distribute, in_chunks, make_mesh, replicated

# annotations alone need these: sampling reads neither data nor objectives
if TYPE_CHECKING:
    from cmjax.config.run import Run
    from cmjax.data.base import Source
    from cmjax.nets.latents import Autoencoder

log = logging.getLogger(__name__)

NONE = "none"
"""The value of --autoencoder with which latents are left as they are."""
PIXELS_AT_ONCE = 2**19
"""Pixels of the images that one device decodes at once: 8 of 256x256, whose activations take 2 GiB in float32."""


@dataclass(frozen=True)
class Decoder:
    """Decodes latents in a network's units. path: the autoencoder's folder. key: of all that images depend on.

    autoencoder: its parameters stay in the host's memory: while a run trains they take none of the devices'.
    shape: (h, w, c) of an image. tile: of `Decoding`.
    """

    autoencoder: "Autoencoder"
    path: str
    key: str
    shape: tuple[int, int, int]
    tile: int = 0

    def __call__(self, latents: np.ndarray) -> np.ndarray:
        """Decodes latents (n, h, w, l) as images (n, H, W, c) float32, in about [-1, 1] and not clipped."""
        return self._in_parts(self._decode, latents)

    def encode(self, images: np.ndarray) -> np.ndarray:
        """Encodes images (n, H, W, c) uint8 as the means of their latents (n, h, w, l), in a network's units."""
        return self._in_parts(self._encode, images)

    def of_latents(self, mask: np.ndarray) -> np.ndarray:
        """Gives the `mask_of_latents` of a mask (1, H, W, 1) of pixels. Raises: ConfigError where no latent is kept."""
        from cmjax.core.editing import mask_of_latents  # here, not above: most decoders edit nothing

        factor = self.autoencoder.factor
        known = np.asarray(mask_of_latents(mask, factor))
        if not known.any():
            raise ConfigError(f"--mask: no square of {factor}x{factor} pixels, as latents stand for, is white")
        return known

    def _in_parts(self, function: Callable[[Any, Any], Any], rows: np.ndarray) -> np.ndarray:
        mesh = make_mesh()
        height, width, _ = self.shape
        side = self.tile * self.autoencoder.factor or max(height, width)
        most = max(1, PIXELS_AT_ONCE // (min(side, height) * min(side, width)))
        size = min(most, -(-len(rows) // mesh.size)) * mesh.size
        weights = distribute(self.autoencoder, replicated(mesh))
        return in_chunks(lambda part: function(weights, part), rows, size)

    def decoded(self, autoencoder: "Autoencoder", latents: Array) -> Array:
        """Decodes within a traced function, by an autoencoder whose parameters may be traced."""
        unscaled = autoencoder.unscaled(latents)
        return autoencoder.decode_tiled(unscaled, tile=self.tile) if self.tile else autoencoder.decode(unscaled)

    @cached_property
    def _decode(self) -> Callable[[Any, Any], Any]:
        return over_devices(self.decoded)

    @cached_property
    def _encode(self) -> Callable[[Any, Any], Any]:
        def encode(autoencoder: "Autoencoder", images: Array) -> Array:
            pixels = preprocess(images, jax.random.key(0), horizontal_flip=False)
            tiled = self.tile and partial(autoencoder.encode_tiled, tile=self.tile)
            return autoencoder.scaled((tiled or autoencoder.encode)(pixels)[0])

        return over_devices(encode)


def decoder_of(
    trained: Trained, named: str | None = None, *, dtype: str | None = None, tile: int | None = None
) -> Decoder | None:
    """Loads the decoder of a run's samples; None where there is none, and the log says why.

    Args:   named: the folder of --autoencoder; None for the one that the run knows; "none" for latents as they are.
            dtype, tile: of --decode_dtype and --decode_tile; None for the run's.
    Raises: ConfigError where the one that is named, here or in the run's recipe, cannot be read, or is another one than
            the run's latents are of; where dtype or tile is none of a decoder's.
    """
    if dtype not in (None, *DECODE_DTYPES):
        raise ConfigError(f"--decode_dtype={dtype}: must be one of {', '.join(DECODE_DTYPES)}")
    if tile is not None and tile < 0:
        raise ConfigError(f"--decode_tile={tile}: must be at least 0")
    field = "config.data.autoencoder" if named is None else "--autoencoder"
    stated = {"autoencoder": named or None, "dtype": dtype, "tile": tile}
    by = replace(trained.recorded.decoding, **{name: value for name, value in stated.items() if value is not None})
    return _decoder(field, by, trained.record, trained.shape)


def decoder_for(run: "Run", source: "Source") -> Decoder | None:
    """Loads the decoder of a run that is to be trained on `source`, as `decoder_of`."""
    from cmjax.data.latents import about_latents

    return _decoder("config.data.autoencoder", run.data.decoding, about_latents(source), tuple(source.shape))


def _decoder(field: str, by: Decoding, entries: Mapping[str, Any], shape: tuple[int, ...]) -> Decoder | None:
    """Loads a run's decoder; None with a line in the log. entries: of its record, as of `about_latents`."""
    encoding = entries.get("encoding", {})
    path = by.autoencoder or encoding.get("autoencoder")
    if not path or path == NONE:
        return None
    try:
        return _load(replace(by, autoencoder=path), encoding, entries, shape)
    except ValueError as error:
        if by.autoencoder:
            raise ConfigError(about(field, path, error)) from error
        log.warning("samples are latents, for their autoencoder cannot decode them: %s", about("it", path, error))
        return None


def _load(by: Decoding, encoding: Mapping[str, Any], entries: Mapping[str, Any], shape: tuple[int, ...]) -> Decoder:
    from cmjax.interop.autoencoder import load_autoencoder  # most runs are of images, and read no foreign files

    scaled = {name: encoding.get(name) for name in ("scale", "shift")}
    autoencoder = load_autoencoder(by.autoencoder, dtype=by.dtype, **scaled)
    known, key = entries.get("autoencoder"), autoencoder.weights_key
    if known not in (None, key):
        raise ConfigError(f"its weights have the key {key}, and the run's latents are of those with the key {known}")
    if shape[-1] != autoencoder.latent_channels:
        raise ConfigError(f"it decodes latents of {autoencoder.latent_channels} channels, and the run's are {shape}")
    if autoencoder.scale is None or autoencoder.shift is None:
        raise ConfigError("its file does not say how networks see its latents; put latents_stats.pt beside it")
    height, width, _ = shape
    sides = height * autoencoder.factor, width * autoencoder.factor
    key = f"{key} {autoencoder.scale} {autoencoder.shift}"
    # only what is not usual: results of earlier versions are still found
    key += f" {by.dtype}" * (by.dtype != "float32") + f" tile {by.tile}" * bool(by.tile)
    images = (*sides, autoencoder.module.out_channels)
    return Decoder(jax.device_get(autoencoder), by.autoencoder, key, images, by.tile)


def check_are_images(trained: Trained, decoder: Decoder | None) -> None:
    """Raises ConfigError where a run's samples are latents, and nothing decodes them."""
    if trained.kind in ("signals", "points"):
        raise ConfigError(f"--workdir={trained.folder} samples {trained.kind} {trained.shape}, and images are needed")
    if decoder is None and trained.of_latents:
        raise ConfigError(
            f"--workdir={trained.folder} samples latents {trained.shape}, and images are needed: name what decodes "
            "them, as --autoencoder=FOLDER"
        )


def images_for(run: "Run", source: "Source", decoder: Decoder | None) -> tuple[str, Callable[[str], "Source"]]:
    """Gives the name of the images that a run's samples are compared with, and the function that opens a split.

    They are the run's own data, or with a decoder those that its latents were encoded from. The function raises
    DataError where they are not there.
    """
    if decoder is None:
        return run.data.name, run.open_source
    from cmjax.data.latents import about_latents

    encoding = about_latents(source).get("encoding", {})
    return encoding.get("images", {}).get("name", run.data.name), partial(_open_encoded, encoding)


def _open_encoded(encoding: Mapping[str, Any], split: str) -> "Source":
    from cmjax.config.data import images_of

    return images_of(encoding).open(split)
