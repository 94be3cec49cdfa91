"""Folders of diffusers' pipelines from prompts to images: Stable Diffusion 1 and 2, SDXL, latent consistency models."""

import os
import shutil
from pathlib import Path as FilePath
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.interop.autoencoder import load_autoencoder
from cmjax.interop.clip import load_text_encoder
from cmjax.interop.conditional_unet import load_unet, unet_module
from cmjax.interop.fields import read_config
from cmjax.interop.folders import part_files
from cmjax.interop.keys import ForeignError
from cmjax.interop.scheduler import read_schedule
from cmjax.interop.text_to_image import TextToImage
from cmjax.interop.tokens import load_tokenizer
from cmjax.nets.conditional_unet import ConditionalUNet
from cmjax.system.files import is_bucket, to_json, to_path, write_atomically

ONE_TEXT = ("tokenizer", "text_encoder")
TWO_TEXTS = (*ONE_TEXT, "tokenizer_2", "text_encoder_2")
PIPELINES = {
    "StableDiffusionPipeline": ONE_TEXT,
    "StableDiffusionImg2ImgPipeline": ONE_TEXT,
    "LatentConsistencyModelPipeline": ONE_TEXT,
    "LatentConsistencyModelImg2ImgPipeline": ONE_TEXT,
    "StableDiffusionXLPipeline": TWO_TEXTS,
    "StableDiffusionXLImg2ImgPipeline": TWO_TEXTS,
}
"""The classes that are read -> their parts for prompts."""
PARTS = ("unet", "vae", "scheduler")
INDEX = "model_index.json"


def load_pipeline(
    folder: str | FilePath,
    *,
    dtype: Any = "float32",
    attention: str = "xla",
    remat: bool = False,
    with_unet: bool = True,
) -> TextToImage:
    """Reads a pipeline's folder as diffusers saves it, as data alone: no code in it is run.

    Weights are .safetensors or .bin files, of half precision or in shards as well; parameters are float32.

    Args:   folder: one with a model_index.json. dtype: of computation, such as "bfloat16".
            attention: "xla", or "cudnn" for the fused kernels of NVIDIA GPUs. remat: recompute the U-Net's blocks in
            the backward pass. with_unet: False leaves the U-Net's weights out, `params` being empty: what remains
            encodes images and prompts.
    Raises: ForeignError, in one line, where the pipeline is of another class, or a part is missing, damaged, or does
            not fit the others; MissingLibrary.
    """
    folder = to_path(folder)
    kind, index = _kind(folder)
    texts = PIPELINES[kind]
    if missing := [name for name in (*PARTS, *texts) if not (folder / name).is_dir()]:
        raise ForeignError(f"{folder} has no part {', '.join(missing)}, which a {kind} needs")
    tokenizers = tuple(load_tokenizer(folder / name) for name in texts[::2])
    dtype = jnp.dtype(dtype)
    of_unet = {"dtype": dtype, "attention": attention, "remat": remat}
    module, params = _unet(folder / "unet", with_weights=with_unet, **of_unet)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    # diffusers' pipelines of Stable Diffusion set the offset, whatever their scheduler's config says; SDXL's do not.
    offset = {"steps_offset": 1} if texts is ONE_TEXT else {}
    config = read_config(folder / "unet" / "config.json")
    pipeline = TextToImage(
        params=jax.tree.map(jnp.asarray, params),
        module=module,
        texts=tuple(load_text_encoder(folder / name, dtype) for name in texts[1::2]),
        tokenizers=tokenizers,
        autoencoder=load_autoencoder(folder, dtype=dtype),
        schedule=read_schedule(read_config(scheduler) | offset, scheduler),
        zeros_for_empty=texts is TWO_TEXTS and index.get("force_zeros_for_empty_prompt", True) is True,
        sample_size=int(np.ravel(config.get("sample_size") or 64)[0]),
    )
    _check_fits(folder, pipeline)
    return pipeline


def _unet(folder: FilePath, *, with_weights: bool, **fields: Any) -> tuple[ConditionalUNet, Any]:
    if with_weights:
        return load_unet(folder, **fields)
    return unet_module(read_config(folder / "config.json"), folder / "config.json", **fields), {}


def _kind(folder: FilePath) -> tuple[str, dict[str, Any]]:
    """Reads the class of a pipeline, and its model_index.json."""
    if is_bucket(folder):
        raise ForeignError(f"{folder}: a pipeline is read from a disk; copy it there")
    if not (folder / INDEX).is_file():
        raise ForeignError(f"{folder} is no pipeline of diffusers: it has no {INDEX}")
    index = read_config(folder / INDEX)
    if (kind := index.get("_class_name")) not in PIPELINES:
        raise ForeignError(f"{folder} is a {kind}, which is not read; these are: {', '.join(PIPELINES)}")
    return kind, index


def _check_fits(folder: FilePath, pipeline: TextToImage) -> None:
    """Raises ForeignError listing how parts do not fit one another."""
    module, texts = pipeline.module, [text.module for text in pipeline.texts]
    pooled = texts[-1].projection if len(texts) > 1 else 0
    facts = {
        "features of tokens": (module.context_width, sum(text.width for text in texts)),
        "pooled features": (module.pooled_width, pooled),
        "channels of latents": (module.in_channels, pipeline.autoencoder.latent_channels),
    }
    problems = [
        f"the U-Net sees {ours} {name}, and the other parts give {theirs}"
        for name, (ours, theirs) in facts.items()
        if ours != theirs
    ]
    for text, tokenizer in zip(texts, pipeline.tokenizers, strict=True):
        tokens = tokenizer.encoder.get_vocab_size()
        if tokens > text.tokens or tokenizer.length > text.positions:
            problems.append(
                f"a tokenizer gives {tokenizer.length} of {tokens} tokens, and its text encoder reads {text.positions} "
                f"of {text.tokens}"
            )
    if problems:
        raise ForeignError(f"{folder}: {'; '.join(problems)}")


def is_pipeline(folder: FilePath) -> bool:
    """Checks whether a folder is a pipeline from prompts to images."""
    return (folder / INDEX).is_file() and read_config(folder / INDEX).get("_class_name") in PIPELINES


def copy_pipeline(folder: FilePath, target: FilePath, *, with_unet: bool = True, link: bool = False) -> None:
    """Copies the parts of a folder that `load_pipeline` reads; the index names the others as absent.

    Args:   with_unet: False leaves the U-Net out. link: makes hard links where the disk has them, which take no more
            space; a file stays when the other folder is removed.
    Raises: OSError; and as `load_pipeline`.
    """
    kind, index = _kind(folder)
    parts = (*PARTS, *PIPELINES[kind])
    for name in parts if with_unet else [name for name in parts if name != "unet"]:
        (target / name).mkdir(parents=True)
        for file in part_files(folder / name):
            _copy_file(file.resolve(), target / name / file.name, link=link)
    others = [name for name, value in index.items() if isinstance(value, list) and name not in parts]
    kept = index | {name: [None, None] for name in others}
    write_atomically(target / INDEX, to_json(kept))


def _copy_file(file: FilePath, target: FilePath, *, link: bool) -> None:
    if link:
        try:
            os.link(file, target)
            return
        except OSError:  # of another disk, or one without links
            pass
    shutil.copyfile(file, target)
