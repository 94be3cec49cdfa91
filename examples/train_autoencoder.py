"""Trains a small autoencoder of images and writes it as diffusers' AutoencoderKL, for latents of one's own.

    python examples/train_autoencoder.py --data=~/tensorflow_datasets --out=autoencoder
    python -m cmjax.main --mode=encode --config.data.name=mnist --config.data.data_dir=~/tensorflow_datasets \\
      --autoencoder=autoencoder --out=latents

The loss is mean |x − D(z)| + β·mean KL(N(μ, σ²) ‖ N(0, 1)), with z = μ + σ·ε.   [Rombach et al. 2022, sec. 3.1]
Stable Diffusion's autoencoder has a perceptual and an adversarial loss besides, which keep photographs sharp. Digits
need neither.

The folder holds config.json and diffusion_pytorch_model.safetensors. It also holds the reconstructions of 1,500
training images: reconstructions.npz has all, whose distance to held-out images is the limit of a model of the latents;
reconstructions.png shows some, each below its image.
"""

import argparse
import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from cmjax.data import sources
from cmjax.data.batches import Batches, preprocess, to_uint8
from cmjax.interop.autoencoder import write_autoencoder
from cmjax.nets.autoencoder import AutoencoderKL
from cmjax.nets.latents import Autoencoder
from cmjax.plotting.plots import image_grid, save_png
from cmjax.system.progress import progress
from cmjax.training.optimizer import muon

log = logging.getLogger(__name__)

ROWS, COLUMNS = 4, 15
"""Of reconstructions in the PNG."""
KEPT = 1500
"""Reconstructions in the .npz: as many as the samples that a run's metrics are of."""


def sample(key: Array, mean: Array, logvar: Array) -> Array:
    """Samples latents z = μ + σ·ε."""
    return mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape, mean.dtype)


def loss(params: Any, images: Array, key: Array, *, module: Any, kl_weight: float) -> tuple[Array, dict]:
    """Returns the loss of images (b, h, w, c) in [-1, 1], and its two parts."""
    mean, logvar = module.apply({"params": params}, images, method="encode")
    decoded = module.apply({"params": params}, sample(key, mean, logvar), method="decode")
    l1 = jnp.mean(jnp.abs(decoded - images))
    kl = jnp.mean(mean**2 + jnp.exp(logvar) - 1 - logvar) / 2
    return l1 + kl_weight * kl, {"l1": l1, "kl": kl}


def train(module: AutoencoderKL, source: sources.Source, chosen: argparse.Namespace) -> Any:
    """Returns the parameters after `chosen.steps` updates; the same arguments give the same parameters."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, chosen.rate, min(50, chosen.steps // 4), chosen.steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), muon(), optax.scale_by_learning_rate(schedule))
    mean_loss = partial(loss, module=module, kl_weight=chosen.kl_weight)

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(params, state, step, images):
        key, images = jax.random.fold_in(jax.random.key(1), step), in_units(images)
        gradient, parts = jax.grad(mean_loss, has_aux=True)(params, images, key)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, parts

    params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *source.shape)))["params"]
    state, text = optimizer.init(params), ""
    with progress("training", chosen.steps) as show:
        for step, batch in enumerate(Batches(source, chosen.batch_size, seed=0).stream(0, chosen.steps), start=1):
            params, state, parts = update(params, state, step, batch["image"])
            if step % 10 == 0 or step == chosen.steps:
                text = ", ".join(f"{name} {float(value):.4f}" for name, value in parts.items())
                show(step, text)
    log.info("the last batch: %s", text)
    return params


def in_units(images: Array) -> Array:
    """Maps pixels 0..255 to [-1, 1]."""
    return preprocess(images, jax.random.key(0), horizontal_flip=False)


@jax.jit
def latents_of(autoencoder: Autoencoder, images: Array, key: Array) -> Array:
    """Samples the latents of images (b, h, w, c) uint8."""
    return sample(key, *autoencoder.encode(in_units(images)))


def with_scale(autoencoder: Autoencoder, latents: np.ndarray) -> Autoencoder:
    """Returns the autoencoder with the scale and shift that give each channel of these latents mean 0 and std 1."""
    mean, std = latents.mean((0, 1, 2), np.float64), latents.std((0, 1, 2), np.float64)
    sample_size = autoencoder.sample_size
    return Autoencoder(
        autoencoder.params, autoencoder.module, tuple((1 / std).tolist()), tuple(mean.tolist()), sample_size
    )


def write_reconstructions(folder: Path, autoencoder: Autoencoder, images: np.ndarray) -> Autoencoder:
    """Writes what the decoder makes of sampled latents. Returns the autoencoder, scaled to these latents."""
    parts = range(0, len(images), 100)
    latents = [np.asarray(latents_of(autoencoder, images[i : i + 100], jax.random.key(i))) for i in parts]
    decode = jax.jit(Autoencoder.decode)
    decoded = np.concatenate([to_uint8(decode(autoencoder, part)) for part in latents])
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "reconstructions.npz", images=decoded)
    pairs = np.stack([images[: ROWS * COLUMNS], decoded[: ROWS * COLUMNS]])
    shown = pairs.reshape(2, ROWS, COLUMNS, *images.shape[1:]).swapaxes(0, 1).reshape(-1, *images.shape[1:])
    save_png(folder / "reconstructions.png", image_grid(shown, columns=COLUMNS, min_side=28))
    return with_scale(autoencoder, np.concatenate(latents))


def arguments_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, metavar="X")
    add("--name", default="mnist", help="a data set of TFDS, or digits, which come with scikit-learn; default mnist")
    add("--data", default="", help="TFDS's folder, where mnist and cifar10 are put if they are not there")
    add("--out", type=Path, default=Path("autoencoder"), help="the folder to write; default autoencoder")
    add("--steps", type=int, default=200, help="updates; default %(default)s")
    add("--batch_size", type=int, default=64, help="images of an update; default %(default)s")
    add("--rate", type=float, default=1e-2, help="the highest learning rate of Muon; default %(default)s")
    add("--kl_weight", type=float, default=1e-3, help="β of the loss; default %(default)s")
    add("--channels", type=int, default=4, help="channels of the latents; default %(default)s")
    widths = "channels of each level, multiples of 8; each level but the last halves the size; default %(default)s"
    add("--widths", default="16,32,64", help=widths)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    chosen = arguments_of(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    digits = chosen.name == "digits"
    source = sources.digits("train") if digits else sources.tfds(chosen.name, "train", data_dir=chosen.data)
    height, _, channels = source.shape
    widths = tuple(map(int, chosen.widths.split(",")))
    ends = {"channels": channels, "out_channels": channels, "latent_channels": chosen.channels}
    module = AutoencoderKL(widths=widths, blocks=1, groups=8, **ends)
    params = train(module, source, chosen)
    autoencoder = Autoencoder(params, module, scale=None, shift=None, sample_size=height)
    images = source.gather(np.arange(min(KEPT, len(source))))["image"]
    autoencoder = write_reconstructions(chosen.out, autoencoder, images)
    write_autoencoder(chosen.out, autoencoder)
    print(f"{chosen.out}: {autoencoder}")


if __name__ == "__main__":
    main()
