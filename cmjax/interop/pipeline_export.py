"""Writes pipelines from prompts to images as folders that diffusers reads."""

from dataclasses import replace
from pathlib import Path as FilePath

from cmjax.interop.autoencoder import write_autoencoder
from cmjax.interop.clip import CLASSES as TEXT_CLASSES
from cmjax.interop.clip import write_text_encoder
from cmjax.interop.conditional_unet import CLASS as UNET_CLASS
from cmjax.interop.conditional_unet import write_unet
from cmjax.interop.keys import ForeignError
from cmjax.interop.pipeline import INDEX, ONE_TEXT, TWO_TEXTS
from cmjax.interop.scheduler import scheduler_config
from cmjax.interop.text_to_image import TextToImage
from cmjax.interop.tokens import write_tokenizer
from cmjax.system.files import is_bucket, to_json, to_path, whole_folder, write_atomically

NOTHING = [None, None]
"""The index's entry of an optional part that is absent."""


def write_pipeline(folder: str | FilePath, pipeline: TextToImage) -> None:
    """Writes a pipeline as a folder that diffusers' `from_pretrained` and `cmjax.load_pipeline` read, in float32.

    The whole folder appears at once, or nothing does. Its class is StableDiffusionPipeline, StableDiffusionXLPipeline
    where there are two text encoders, or LatentConsistencyModelPipeline where the U-Net has guidance as an input.
    Its scheduler is LCMScheduler where the pipeline is made for "lcm"; else DDIMScheduler or PNDMScheduler, which
    sample as ours do: the one that the pipeline was read with, where that is one of them.

    Raises: ForeignError where the folder is there and not empty, or diffusers has no such part; OSError;
            MissingLibrary.
    """
    folder = to_path(folder)
    if is_bucket(folder):
        raise ForeignError(f"{folder}: a pipeline is written to a disk; name a folder there")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ForeignError(f"{folder} exists and is not empty")
    with whole_folder(folder) as partial:
        _write_parts(partial, pipeline)


def _write_parts(folder: FilePath, pipeline: TextToImage) -> None:
    is_lcm, names = pipeline.sampler == "lcm", ONE_TEXT if len(pipeline.texts) == 1 else TWO_TEXTS
    schedule = scheduler_config(replace(pipeline.schedule, is_lcm=is_lcm))
    kind = "StableDiffusionPipeline" if names is ONE_TEXT else "StableDiffusionXLPipeline"
    if names is ONE_TEXT and pipeline.module.guidance_width:
        kind = "LatentConsistencyModelPipeline"
    write_unet(folder / "unet", pipeline.module, pipeline.params, sample_size=pipeline.sample_size)
    write_autoencoder(folder / "vae", pipeline.autoencoder)
    write_atomically(folder / "scheduler" / "scheduler_config.json", to_json(schedule))
    index = {
        "_class_name": kind,
        "unet": ["diffusers", UNET_CLASS],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", schedule["_class_name"]],
        "feature_extractor": NOTHING,
        "image_encoder": NOTHING,
    }
    for text, tokenizer, of_tokenizer, of_text in zip(
        pipeline.texts, pipeline.tokenizers, names[::2], names[1::2], strict=True
    ):
        write_text_encoder(folder / of_text, text)
        write_tokenizer(folder / of_tokenizer, tokenizer)
        index |= {of_tokenizer: ["transformers", "CLIPTokenizer"]}
        index |= {of_text: ["transformers", TEXT_CLASSES[bool(text.module.projection)]]}
    index |= (
        {"safety_checker": NOTHING, "requires_safety_checker": False}
        if names is ONE_TEXT
        else {"force_zeros_for_empty_prompt": pipeline.zeros_for_empty}
    )
    write_atomically(folder / INDEX, to_json(index))
