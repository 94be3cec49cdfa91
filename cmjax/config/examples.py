"""Reads how examples are prepared for a step: augmentation, labels that are left out, processes that decode."""

from collections.abc import Callable, Collection
from functools import partial

from jaxtyping import Array

from cmjax.config.data import NO_IMAGES, Data
from cmjax.config.fields import ConfigError, Fields, by_name
from cmjax.data import augment
from cmjax.data.workers import check_grain
from cmjax.nets import NETS

AUGMENTATIONS = by_name(augment.edm, augment.meanflow)


def check_no_images(fields: Fields, data: Data, frozen: Collection[str]) -> None:
    """Raises ConfigError where a network or a distance is of images alone, and the data are none. frozen: the names of
    what the loss uses beside the model."""
    if data.name not in NO_IMAGES:
        return
    net, objective = fields.section("net"), fields.section("objective")
    if not NETS[net.text("name")].any_shape:
        takers = ", ".join(name for name, module in NETS.items() if module.any_shape)
        raise net.error("name", f"takes images, and the data are {data.name}, which {takers} takes")
    if "lpips" in frozen:
        raise objective.error("distance", f"compares images, and the data are {data.name}: take another, as l2")


def read_label_dropout(data: Fields, net: Fields) -> float:
    """Reads the fraction of labels that training leaves out, for classifier-free guidance."""
    rate = data.number("label_dropout", at_least=0)
    if rate >= 1:
        raise data.error("label_dropout", "must be below 1: the fraction of labels that are left out")
    if rate and net.text("name") != "conditional_unet" and not net.boolean("class_conditional"):
        raise data.error("label_dropout", "config.net.class_conditional=False: there are no labels to leave out")
    return rate


def read_workers(data: Fields) -> int:
    workers = data.integer("workers", at_least=0, at_most=256, absent=0)
    try:
        check_grain(workers)
    except ImportError as error:
        raise ConfigError(str(error)) from error
    return workers


def read_augment(data: Fields, net: Fields, kind: str) -> Callable[..., tuple[Array, Array]] | None:
    """Reads an augmentation, (images, key) -> (images, labels).

    The network takes the labels, so that its samples, whose labels are 0, show none of the changes.
    """
    chosen, flips = data.text("augment"), data.boolean("horizontal_flip")
    if data.text("name") in NO_IMAGES and (chosen or flips):
        raise data.error("augment" if chosen else "horizontal_flip", f"is of images, not {data.text('name')}")
    if data.text("name") == "latents" and (chosen or flips):
        problem = "an image's latents cannot be changed as the image: leave it out, and encode with --mirrored"
        raise data.error("augment" if chosen else "horizontal_flip", f"{problem} for mirrored images")
    if not chosen:
        return None
    probabilities = data.call("augment", AUGMENTATIONS)
    if kind == "consistency":
        problem = "denoisers and flow maps train with augmentation; a consistency model is given images as they are"
        raise data.error("augment", f"{problem}: leave it empty")
    if flips:
        problem = "config.data.augment mirrors images too, and gives the network a label of it"
        raise data.error("horizontal_flip", f"{problem}: set it to False")
    if not net.has("augment_dim"):
        raise data.error("augment", f"config.net.name={net.text('name')!r} has no input for its labels; leave it empty")
    size, takes = augment.label_size(probabilities), net.integer("augment_dim", at_least=0)
    if takes != size:
        problem = f"it gives each image {size} labels, and the network takes config.net.augment_dim={takes}"
        raise data.error("augment", f"{problem}: set that to {size}")
    return partial(augment.augment, probabilities=probabilities)
