"""The networks that images are judged by, from the published files, and how batches go through them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cmjax.config.evaluation import weights_file
from cmjax.config.fields import ConfigError
from cmjax.config.published import PUBLISHED
from cmjax.data.base import Source
from cmjax.generation.sampling import over_devices
from cmjax.metrics.dataset_features import dataset_outputs
from cmjax.system.content import content_key
from cmjax.system.mesh import in_chunks
from cmjax.system.processes import on_first_process


@dataclass(frozen=True)
class Network:
    """outputs: images (b, h, w, c) uint8 -> its outputs by name; every process must call it. about: what it is, in
    words. key: differs with its outputs."""

    name: str
    about: str
    key: str
    outputs: Callable[[np.ndarray], dict[str, np.ndarray]]

    def told(self, images: np.ndarray, needed: tuple[str, ...]) -> dict[str, np.ndarray]:
        """What a `Accumulator` takes in for what is needed."""
        outputs = self.outputs(images)
        return {need: outputs["features" if need == "rows" else need] for need in needed}


def dataset_network(open_train: Callable[[], Source], held_out: Source | None, *, cache_dir: Path) -> Network:
    """The data's own classifier, trained by the first process where it is not in `cache_dir` yet; or their pixels."""

    def make() -> tuple:
        return dataset_outputs(open_train(), held_out, cache_dir=cache_dir)

    on_first_process(lambda: make() and None)
    outputs, about, key = make()
    return Network("own", about, key, outputs)


def published_network(name: str, weights: Path) -> Network:
    """The network `name` of `PUBLISHED`, with the weights in that folder.

    Raises: ConfigError naming the file that is missing, where it comes from and where it belongs.
    """
    files = weights_file(name, weights)
    row = PUBLISHED[name]
    try:
        params = row.load(*files)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--weights={weights}: {error}") from error
    key = content_key(name, jax.tree.leaves(params))
    about = f"{row.about} of {', '.join(file.name for file in files)} ({key})"
    return Network(name, about, key, through(row.apply, params, batch=row.batch, pairs=name == "vgg"))


def through(
    apply: Callable[[Any, Any], dict[str, Any]], params: Any, *, batch: int, pairs: bool = False
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """images (n, h, w, 1 or 3) uint8 -> apply(params, them as RGB), `batch` at once on each device; pairs: without an
    odd last one."""
    spread = over_devices(apply)
    at_once = batch * jax.device_count()
    params = jax.tree.map(jnp.asarray, params)

    def outputs(images: np.ndarray) -> dict[str, np.ndarray]:
        images = np.broadcast_to(images, (*images.shape[:3], 3))[: len(images) // 2 * 2 if pairs else None]
        if pairs and not len(images):  # one that is left over
            return {"distances": np.zeros(0, np.float32)}
        return in_chunks(lambda chunk: spread(params, chunk), images, at_once)

    return outputs
