"""Writes a run as a folder for model hubs: weights, record, card, samples, and the decoder of latents."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cmjax.config.fields import ConfigError
from cmjax.config.recorded import published
from cmjax.generation.decoding import Decoder, decoder_of
from cmjax.generation.files import write_samples
from cmjax.generation.samplers import conditioned, named_sampler
from cmjax.generation.sampling import SampleSequence
from cmjax.interop.weights import write_weights
from cmjax.nets.adapter import count_parameters
from cmjax.runs.exported import AUTOENCODER, MODEL
from cmjax.runs.trained import Trained
from cmjax.runs.workdir import RECORD
from cmjax.system.files import is_bucket, to_json, whole_folder, write_atomically
from cmjax.system.mesh import make_mesh

IMAGE, SHOWN = "samples.png", 64
DTYPES = ("float32", "float16")


def write_bundle(folder: Path, trained: Trained, *, dtype: str, licence: str | None, card: Callable[..., str]) -> None:
    """Writes config.json, model.safetensors, README.md and samples.png, and of a run of latents the folder
    autoencoder: the whole folder or nothing.

    Args:   folder: absent or empty. card: (image=, parameters=, dtype=) -> the text of README.md.
    Raises: ConfigError where a weight has no number in `dtype`.
    """
    if is_bucket(folder):
        raise ConfigError(f"--out={folder}: a folder for hubs is made on a disk; name one there")
    decoder = decoder_of(trained)
    params = jax.device_get(trained.load().params)
    if largest := [leaf for leaf in jax.tree.leaves(params) if np.abs(leaf).max(initial=0) > np.finfo(dtype).max]:
        raise ConfigError(f"--dtype={dtype}: a weight is {np.abs(largest[0]).max():.3g}, which it has no number for")
    with whole_folder(folder) as partial:
        record = _published(trained, decoder, licence)
        write_weights(partial / MODEL, params, record, dtype=np.dtype(dtype))
        if decoder is not None:
            from cmjax.interop.autoencoder import write_autoencoder

            write_autoencoder(partial / AUTOENCODER, decoder.autoencoder)
        _write_samples(partial / IMAGE, trained, decoder)
        parameters = count_parameters(params)
        write_atomically(partial / "README.md", card(image=IMAGE, parameters=parameters, dtype=dtype))
        # last: without it the folder is no model's
        write_atomically(partial / RECORD, to_json(record))


def _published(trained: Trained, decoder: Decoder | None, licence: str | None) -> dict[str, Any]:
    """Gives the record without the paths of this machine."""
    imported = trained.imported
    stated = licence or (imported and imported.get("licence"))
    record = {**trained.record, "config": published(trained.record["config"])}
    record |= {"licence": stated} if stated else {}
    if "encoding" in record:
        encoding = dict(record["encoding"])
        images = {name: value for name, value in encoding.get("images", {}).items() if name != "data_dir"}
        record["encoding"] = {**encoding, "images": images, "autoencoder": AUTOENCODER if decoder else ""}
    return record


def _write_samples(path: Path, trained: Trained, decoder: Decoder | None) -> None:
    """Writes a grid of the first samples of seed 0, as --mode=sample does by default."""
    samples = trained.samples
    flow_map, conditions = conditioned(trained.load(mesh=make_mesh()), trained, samples, SHOWN)
    sampler = named_sampler(samples, trained.model).sampler
    write_samples(path, SHOWN, SampleSequence(sampler, flow_map, 0, conditions, decode=decoder), {})
