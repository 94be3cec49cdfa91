"""The networks whose features metrics compare: published ones, the classifier of the data set, and plain pixels."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from cmjax.config.evaluation import Evaluation
from cmjax.config.fields import ConfigError
from cmjax.data.base import DataError, Source
from cmjax.data.batches import preprocess
from cmjax.generation.sampling import over_devices
from cmjax.interop.features import load_clip, load_dinov2, load_inception, load_lpips
from cmjax.metrics.classifier import Classifier
from cmjax.metrics.dataset_features import dataset_features, in_words
from cmjax.metrics.registry import METRICS, PIXELS
from cmjax.nets.features.inception import Inception
from cmjax.nets.features.lpips import lpips
from cmjax.nets.features.vit import CLIP, DINOV2, clip_inputs, dinov2_inputs
from cmjax.system.content import content_key
from cmjax.system.mesh import in_chunks
from cmjax.system.processes import on_first_process

Outputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class FeatureNetwork:
    """A network whose outputs metrics compare.

    about: what it is, in words. key: differs with its outputs. outputs: images (b, h, w, c) uint8 -> outputs by name;
    every process must call it.
    """

    name: str
    about: str
    key: str
    outputs: Callable[[np.ndarray], Outputs]

    def outputs_for(self, images: np.ndarray, needed: tuple[str, ...]) -> Outputs:
        """Computes what an `Accumulator` takes in for the needs of metrics."""
        outputs = self.outputs(images)
        # rows are features too, kept one by one
        return {need: outputs["features" if need == "rows" else need] for need in needed}


def networks_of(evaluation: Evaluation) -> dict[str, str]:
    """Names each metric's network. Where nothing is named: FID where Inception's weights are there, else FD."""
    inception = bool(_weights_there("inception", evaluation.weights))
    features = evaluation.features or ("inception" if inception else "dataset")
    metrics = evaluation.metrics or ("fid" if inception else "fd", "kid", "prdc")
    return {metric: METRICS[metric].features or features for metric in metrics}


PIXEL_NETWORK = FeatureNetwork(
    PIXELS, "pixels", "0 to 255", lambda images: {"features": images.reshape(len(images), -1)}
)


def dataset_network(open_train: Callable[[], Source], held_out: Source | None, cache_dir: Path) -> FeatureNetwork:
    """Makes the network of the data set's features. Where its classifier is not cached yet, the first process trains
    it."""

    def make() -> FeatureNetwork:
        try:
            features = dataset_features(open_train(), cache_dir=cache_dir)
        except DataError as error:
            raise DataError(f"{error}: name metrics of a published network, as --metrics=fid") from error
        if not isinstance(features, Classifier):
            about = ("pixels/255", "pixels") if len(open_train().shape) == 3 else ("the values themselves", "values")
            return FeatureNetwork("dataset", *about, lambda images: {"features": features(images)})

        def outputs(images: np.ndarray) -> Outputs:
            rows = features(images)
            return {"features": rows, "probabilities": features.probabilities_of(rows)}

        about = "a classifier of the training images" if held_out is None else in_words(features, held_out)
        return FeatureNetwork("dataset", about, features.key, outputs)

    # the first process trains and caches it, and all read the file; a network is no JSON to be sent
    on_first_process(lambda: make() and None)
    return make()


@dataclass(frozen=True)
class Published:
    """A network whose weights are published.

    about: its name. files: alternatives, each the names of all files that it takes. source: where they come from.
    load: those files -> parameters. apply: (parameters, images (b, h, w, 3) uint8) -> outputs with a row for each.
    batch: images at once on a device.
    """

    about: str
    files: tuple[tuple[str, ...], ...]
    source: str
    load: Callable[..., Any]
    apply: Callable[[Any, Array], dict[str, Array]]
    batch: int


def published_network(name: str, weights: Path) -> FeatureNetwork:
    """Loads the network `name` of `PUBLISHED`, with the weights in that folder.

    Raises: ConfigError naming the file that is missing, where it comes from and where it belongs.
    """
    row = PUBLISHED[name]
    files = _weights_there(name, weights)
    if not files:
        wanted = " or ".join(" and ".join(names) for names in row.files)
        raise ConfigError(
            f"{row.about} has no weights in {weights}: put {wanted} there, from {row.source}, or name their folder "
            "with --weights; --metrics=fd,kid,prdc --features=dataset needs none"
        )
    try:
        params = row.load(*files)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--weights={weights}: {error}") from error
    key = content_key(name, jax.tree.leaves(params))
    about = f"{row.about} of {', '.join(file.name for file in files)} ({key})"
    return FeatureNetwork(name, about, key, through(row.apply, params, batch=row.batch, pairs=name == "vgg"))


def _weights_there(name: str, folder: Path) -> list[Path]:
    """Finds the files of the first alternative that is whole; empty where none is."""
    for names in PUBLISHED[name].files:
        files = [folder.expanduser() / file for file in names]
        if all(file.is_file() for file in files):
            return files
    return []


def through(
    apply: Callable[[Any, Any], dict[str, Any]], params: Any, *, batch: int, pairs: bool = False
) -> Callable[[np.ndarray], Outputs]:
    """Makes the function images (n, h, w, 1 or 3) uint8 -> apply(params, them as RGB), `batch` at once on each device.

    pairs: whether it compares pairs of images, and leaves out an odd last one.
    """
    spread = over_devices(apply)
    at_once = batch * jax.device_count()
    # moved to the device once, and not with every part
    params = jax.tree.map(jnp.asarray, params)

    def outputs(images: np.ndarray) -> dict[str, np.ndarray]:
        # grey images are seen as RGB; an odd last one has no partner
        images = np.broadcast_to(images, (*images.shape[:3], 3))[: len(images) // 2 * 2 if pairs else None]
        if pairs and not len(images):  # one that is left over
            return {"distances": np.zeros(0, np.float32)}
        return in_chunks(lambda chunk: spread(params, chunk), images, at_once)

    return outputs


def _inception(params: Any, images: Array) -> dict[str, Array]:
    return Inception().apply({"params": params}, images)  # pyright: ignore[reportReturnType]


def _dinov2(params: Any, images: Array) -> dict[str, Array]:
    return {"features": jnp.asarray(DINOV2.apply({"params": params}, dinov2_inputs(images, DINOV2.side)))}


def _clip(params: Any, images: Array) -> dict[str, Array]:
    embedded = jnp.asarray(CLIP.apply({"params": params}, clip_inputs(images, CLIP.side)))
    # CMMD compares embeddings of unit norm
    return {"features": embedded / jnp.linalg.norm(embedded, axis=-1, keepdims=True)}


LEAST_SIDE = 64  # smaller images are enlarged for LPIPS: four poolings leave nothing of them


def _pairs(params: Any, images: Array) -> dict[str, Array]:
    """Gives for each image its distance to the other image of its pair."""
    # a value for every image, as rows that are joined need it
    pixels = preprocess(images, jnp.zeros(()), horizontal_flip=False)
    return {"distances": jnp.repeat(lpips(params, pixels[0::2], pixels[1::2], resize=LEAST_SIDE), 2)}


PUBLISHED: dict[str, Published] = {
    "inception": Published(
        "InceptionV3",
        (
            ("pt_inception-2015-12-05-6726825d.pth",),
            ("weights-inception-2015-12-05-6726825d.pth",),
            ("inception_v3_weights_fid.pickle",),
        ),
        "github.com/mseitzer/pytorch-fid (releases), github.com/toshas/torch-fidelity (releases) or "
        "github.com/matthias-wright/jax-fid, in this order",
        load_inception,
        _inception,
        batch=32,
    ),
    "dinov2": Published(
        "DINOv2 ViT-L/14",
        (("dinov2_vitl14_pretrain.pth",),),
        "dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        load_dinov2,
        _dinov2,
        batch=32,
    ),
    "clip": Published(
        "CLIP ViT-L/14@336",
        (("clip-vit-large-patch14-336.bin",), ("clip-vit-large-patch14-336.safetensors",)),
        "huggingface.co/openai/clip-vit-large-patch14-336 (pytorch_model.bin, under this name)",
        load_clip,
        _clip,
        batch=16,
    ),
    "vgg": Published(
        "LPIPS of VGG16",
        (("vgg16-397923af.pth", "vgg.pth"),),
        "download.pytorch.org/models and github.com/richzhang/PerceptualSimilarity (lpips/weights/v0.1)",
        load_lpips,
        _pairs,
        batch=32,
    ),
}
