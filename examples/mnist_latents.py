"""Encodes MNIST as latents to train on, and decodes samples of them: PCA in place of a VAE.

    python examples/mnist_latents.py encode --data=~/tensorflow_datasets --out=latents
    python examples/mnist_latents.py decode --samples=samples.npz --pca=latents/pca.npz --out=digits.png

`encode` writes two files. latents.npz is what `--config.data.name=arrays` reads: "images" (n, 4, 4, 4) float32 with
"labels" (n,), and "test_images" with "test_labels"; pca.npz is the decoder. As with a VAE's latents, one number, the
std of all of them over the training images, divides them: their variance is 1 as a whole, not in each channel.
To use a VAE instead, put its encoder where `encode` stands and its decoder where `decode` does.

`--data` is a folder where TFDS has, or may put, MNIST; or an .npz of images with "images" and "labels".
"""

import argparse
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cmjax.data import sources
from cmjax.data.batches import to_uint8
from cmjax.plotting.plots import image_grid, save_png


class PCA(NamedTuple):
    """mean (d,), components (k, d) with orthonormal rows, scale (): the std of all training coordinates together.

    latents (h, w, c) and images (h, w, c): the shapes of one sample of each.
    """

    mean: np.ndarray
    components: np.ndarray
    scale: np.ndarray
    latents: np.ndarray
    images: np.ndarray


def fit(images: np.ndarray, latents: tuple[int, int, int]) -> PCA:
    """The principal components of images (n, h, w, c) uint8, as many as `latents` has numbers."""
    flat = _unit_range(images)
    mean = flat.mean(axis=0)
    _, variances, components = np.linalg.svd(np.cov(flat, rowvar=False))
    k = int(np.prod(latents))
    scale = np.sqrt(variances[:k].mean())
    return PCA(mean, components[:k], scale, np.array(latents), np.array(images.shape[1:]))


def encode(pca: PCA, images: np.ndarray) -> np.ndarray:
    """Images (n, h, w, c) uint8 -> latents (n, h, w, c) float32."""
    coordinates = (_unit_range(images) - pca.mean[None]) @ pca.components.T
    return (coordinates / pca.scale).astype(np.float32).reshape(-1, *pca.latents)


def decode(pca: PCA, latents: np.ndarray) -> np.ndarray:
    """Latents (n, h, w, c) -> images (n, h, w, c) float64 in [-1, 1] units, not clipped."""
    coordinates = latents.reshape(len(latents), -1) * pca.scale
    return (coordinates @ pca.components + pca.mean[None]).reshape(-1, *pca.images)


def _unit_range(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1) / 127.5 - 1


def write_latents(data: str, out: Path, shape: tuple[int, int, int]) -> None:
    """latents.npz and pca.npz in the folder `out`."""
    read = partial(sources.arrays, data) if data.endswith(".npz") else partial(sources.tfds, "mnist", data_dir=data)
    splits = {split: read(split=split) for split in ("train", "test")}
    examples = {split: source.gather(np.arange(len(source))) for split, source in splits.items()}
    pca = fit(examples["train"]["image"], shape)
    latents = {split: encode(pca, batch["image"]) for split, batch in examples.items()}
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "pca.npz", **pca._asdict())
    np.savez(
        out / "latents.npz",
        images=latents["train"],
        labels=examples["train"]["label"],
        test_images=latents["test"],
        test_labels=examples["test"]["label"],
    )
    held_out = _unit_range(examples["test"]["image"])
    lost = held_out - decode(pca, latents["test"]).reshape(held_out.shape)
    fraction = np.sum(lost**2) / np.sum((held_out - pca.mean[None]) ** 2)
    print(
        f"{out}: {len(latents['train'])} latents {shape}, divided by {pca.scale:.4f}; {fraction:.1%} of variance lost"
    )


def write_images(samples: Path, pca_file: Path, out: Path) -> None:
    """A grid of the images whose latents lie in `samples`, ten a row."""
    with np.load(pca_file) as arrays:
        pca = PCA(**arrays)
    with np.load(samples) as arrays:
        latents = arrays["images"]
    save_png(out, image_grid(to_uint8(decode(pca, latents)), columns=10, min_side=28))
    print(f"{len(latents)} images: {out}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    mode = modes.add_parser("encode", help="images -> latents.npz and pca.npz")
    mode.add_argument("--data", required=True, help="TFDS's folder, or an .npz of images")
    mode.add_argument("--out", type=Path, default=Path("latents"), help="the folder of the two files")
    mode.add_argument("--shape", default="4,4,4", help="height, width and channels of a latent; not 1 or 3 channels")
    mode = modes.add_parser("decode", help="latents that were drawn -> an image")
    mode.add_argument("--samples", type=Path, required=True, help="what --mode=sample --out=x.npz wrote")
    mode.add_argument("--pca", type=Path, default=Path("latents/pca.npz"))
    mode.add_argument("--out", type=Path, required=True, help="x.png")
    chosen = parser.parse_args(arguments)
    if chosen.mode == "encode":
        write_latents(chosen.data, chosen.out, tuple(map(int, chosen.shape.split(","))))
    else:
        write_images(chosen.samples, chosen.pca, chosen.out)


if __name__ == "__main__":
    main()
