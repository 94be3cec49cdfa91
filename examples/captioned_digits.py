"""Makes pictures of two digits of MNIST with captions, and a small pipeline from prompts to such pictures.

    python examples/captioned_digits.py --data=~/tensorflow_datasets --out=captions
    python examples/captioned_digits.py --data=~/tensorflow_datasets --out=captions --read=images.npz

The first line writes `captions/pictures`, 32×32 pictures with captions as "a three left of a seven", and
`captions/pipeline`, as diffusers saves one: a tokenizer of the captions' words, a text encoder with random weights that
stay, an autoencoder trained on the pictures, and a U-Net that is yet to be trained. The recipes captions_ddpm,
captions_lcm and captions_lcm_lora train it; docs/howto/text_to_image.md has the commands.

The second line reads the digits in images of prompts, as `--mode=sample --out=images.npz` writes them, by a classifier
of the same digits, and prints the fraction of the images that show what their prompt says.
"""

import argparse
import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from train_autoencoder import train, write_reconstructions

from cmjax.data import sources
from cmjax.interop.autoencoder import write_autoencoder
from cmjax.interop.clip import text_key, text_shapes
from cmjax.interop.conditional_unet import write_unet
from cmjax.nets.adapter import init_params
from cmjax.nets.autoencoder import AutoencoderKL
from cmjax.nets.clip import ClipText
from cmjax.nets.conditional_unet import ConditionalUNet
from cmjax.nets.latents import Autoencoder
from configs.captions_ddpm import UNET

SIDE, TOKENS, FEATURES = 32, 16, 64
"""Of a picture in pixels; of a prompt; of a token."""
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
RELATIONS = {"left of": (0, False), "right of": (1, False), "above": (0, True), "below": (1, True)}
"""What is said of the first digit: its place, first or second, and whether they stand on one another."""
SPECIAL = ("<|startoftext|>", "<|endoftext|>")


def half(digit: np.ndarray, *, above: bool) -> np.ndarray:
    """A digit of MNIST (28, 28) as one half of a picture: (16, 32) above or below, (32, 16) at a side."""
    height, width = (14, 24) if above else (24, 14)
    # the digit is in the middle 20×20 pixels
    small = Image.fromarray(digit[4:24, 4:24]).resize((width, height), Image.Resampling.LANCZOS)
    place = np.zeros((SIDE // 2, SIDE) if above else (SIDE, SIDE // 2), np.uint8)
    top, left = (side // 2 for side in (place.shape[0] - height, place.shape[1] - width))
    place[top : top + height, left : left + width] = np.asarray(small)
    return place


def pictures(split: str, count: int, data: str, seed: int) -> tuple[np.ndarray, list[str]]:
    """Pictures (n, 32, 32, 1) uint8 of digits of a split, and their captions."""
    source, random = sources.tfds("mnist", split, data_dir=data), np.random.default_rng(seed)
    chosen = source.gather(random.integers(len(source), size=2 * count))
    digits, labels = chosen["image"][..., 0].reshape(count, 2, 28, 28), chosen["label"].reshape(count, 2)
    images, captions = [], []
    for pair, names in zip(digits, labels, strict=True):
        relation = list(RELATIONS)[random.integers(len(RELATIONS))]
        place, above = RELATIONS[relation]
        halves = [half(digit, above=above) for digit in (pair if place == 0 else pair[::-1])]
        images.append(np.concatenate(halves, axis=0 if above else 1))
        first, second = (DIGITS[name] for name in names)
        captions.append(f"a {first} {relation} a {second}")
    return np.stack(images)[..., None], captions


def write_pictures(folder: Path, images: np.ndarray, captions: list[str]) -> None:
    """Writes a folder of PNGs with captions in metadata.jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        Image.fromarray(image[..., 0]).save(folder / f"{i:05d}.png")
        lines.append(json.dumps({"file_name": f"{i:05d}.png", "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def write_tokenizer(folder: Path) -> int:
    """Writes a tokenizer whose tokens are the captions' words. Returns: how many tokens it has."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    words = dict.fromkeys(" ".join(("a", *RELATIONS, *DIGITS)).split())
    ids = {token: i for i, token in enumerate((*words, *SPECIAL))}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=SPECIAL[1]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    start, end = SPECIAL
    ends = [(token, ids[token]) for token in SPECIAL]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{start} $A {end}", special_tokens=ends)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": TOKENS}
    config |= {"bos_token": start, "eos_token": end, "pad_token": end, "unk_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(ids)


def write_text_encoder(folder: Path, tokens: int) -> None:
    """Writes a CLIPTextModel with random weights: its outputs differ between captions, and no more is needed."""
    fields: dict[str, Any] = {"width": FEATURES, "inner": 2 * FEATURES, "layers": 2, "heads": 4}
    module = ClipText(tokens=tokens, positions=TOKENS, **fields)
    random, arrays = np.random.default_rng(0), {}
    for path, leaf in text_shapes(module).items():
        scale = 1.0 if path[-1] == "embedding" else leaf.shape[0] ** -0.5
        value = (
            random.normal(size=leaf.shape) * scale if len(leaf.shape) > 1 else np.full(leaf.shape, path[-1] == "scale")
        )
        value = value.T if path[-1] == "kernel" else value
        arrays[f"text_model.{text_key(path)}"] = np.ascontiguousarray(value, np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    config = {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": tokens}
    config |= {"hidden_size": FEATURES, "intermediate_size": 2 * FEATURES, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 4, "max_position_embeddings": TOKENS, "hidden_act": "quick_gelu"}
    config |= {"eos_token_id": tokens - 1, "bos_token_id": tokens - 2, "pad_token_id": tokens - 1}
    (folder / "config.json").write_text(json.dumps(config))


def train_autoencoder(folder: Path, images: np.ndarray, chosen: argparse.Namespace) -> Autoencoder:
    """Trains an autoencoder of the pictures, and writes it."""
    ends: dict[str, Any] = {"channels": 1, "out_channels": 1, "latent_channels": 4}
    module = AutoencoderKL(widths=(16, 32, 64), blocks=1, groups=8, **ends)
    how = {"steps": chosen.autoencoder_steps, "batch_size": 64, "rate": 1e-2, "kl_weight": 1e-3}
    params = train(module, sources.ArraySource(images), argparse.Namespace(**how))
    autoencoder = Autoencoder(params, module, scale=None, shift=None, sample_size=SIDE)
    autoencoder = write_reconstructions(chosen.out / "reconstructions", autoencoder, images[:1500])
    write_autoencoder(folder, autoencoder)
    return autoencoder


def write_pipeline(folder: Path, images: np.ndarray, chosen: argparse.Namespace) -> None:
    """Writes the whole pipeline's folder."""
    tokens = write_tokenizer(folder / "tokenizer")
    write_text_encoder(folder / "text_encoder", tokens)
    autoencoder = train_autoencoder(folder / "vae", images, chosen)
    module, side = ConditionalUNet(**UNET), SIDE // autoencoder.factor
    params = init_params(module, jax.random.key(0), (side, side, module.in_channels))
    write_unet(folder / "unet", module, params, sample_size=side)
    scheduler: dict[str, Any] = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}
    scheduler |= {"beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "set_alpha_to_one": False}
    scheduler |= {"num_train_timesteps": 1000, "prediction_type": "epsilon", "clip_sample": False}
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    parts = {
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index = {"_class_name": "StableDiffusionPipeline", **parts, "safety_checker": [None, None]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))


def halves_of(images: np.ndarray, captions: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Both halves of each picture, (2n, 32·16) in [0, 1] and of one layout, and the digits that captions say there."""
    rows, labels = [], []
    for image, caption in zip(images[..., 0], captions, strict=True):
        first, relation, second = caption.removeprefix("a ").replace(" a ", "|").replace(" ", "|", 1).split("|")
        place, above = RELATIONS[relation]
        digits = [DIGITS.index(first), DIGITS.index(second)]
        labels += digits if place == 0 else digits[::-1]
        for part in np.split(image, 2, axis=0 if above else 1):
            # those above and below are wide: narrowed to the layout of the others
            rows.append(np.asarray(Image.fromarray(part).resize((16, 32), Image.Resampling.BILINEAR)).ravel() / 255)
    return np.stack(rows).astype(np.float32), np.array(labels)


def read_digits(chosen: argparse.Namespace) -> None:
    """Prints the fraction of images whose two digits a classifier reads as their prompts say, and of real pictures."""
    from sklearn.neural_network import MLPClassifier

    rows, labels = halves_of(*pictures("train", 10_000, chosen.data, seed=2))
    classifier: Any = MLPClassifier((256,), early_stopping=True, random_state=0, max_iter=30).fit(rows, labels)
    drawn = {"real": pictures("test", 2000, chosen.data, seed=3)}
    for name in chosen.read.split(","):
        with np.load(name) as file:
            drawn[name] = file["images"], [str(prompt) for prompt in file["prompts"]]
    for name, (images, captions) in drawn.items():
        rows, labels = halves_of(images, captions)
        right = np.equal(classifier.predict(rows), labels).reshape(-1, 2)
        print(f"{name}: both digits right in {right.all(1).mean():.3f} of {len(images)}, one digit {right.mean():.3f}")


def arguments_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="X")
    add("--data", default="", help="TFDS's folder, where mnist is put if it is not there")
    add("--out", type=Path, default=Path("captions"), help="the folder to write; default captions")
    add("--count", type=int, default=20_000, help="pictures; default %(default)s")
    add("--autoencoder_steps", type=int, default=300, help="updates of the autoencoder; default %(default)s")
    add("--read", default="", help="files .npz of images and prompts, in which digits are read; nothing is written")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    chosen = arguments_of(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if chosen.read:
        read_digits(chosen)
        return
    images, captions = pictures("train", chosen.count, chosen.data, seed=0)
    for split, part in (("train", slice(0, -500)), ("test", slice(-500, None))):
        write_pictures(chosen.out / "pictures" / split, images[part], captions[part])
    write_pipeline(chosen.out / "pipeline", images[:-500], chosen)
    print(f"{chosen.out}: {len(images)} pictures, as {captions[0]!r}, and an untrained pipeline")


if __name__ == "__main__":
    main()
