"""The shapes of data sets that are not here, for plans."""

KNOWN: dict[str, tuple[tuple[int, int, int], int | None]] = {
    "digits": ((8, 8, 1), 10),
    "mnist": ((28, 28, 1), 10),
    "fashion_mnist": ((28, 28, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
    "svhn_cropped": ((32, 32, 3), 10),
    "downsampled_imagenet/32x32": ((32, 32, 3), None),
    "downsampled_imagenet/64x64": ((64, 64, 3), None),
    "imagenet_resized/32x32": ((32, 32, 3), 1000),
    "imagenet_resized/64x64": ((64, 64, 3), 1000),
}
"""TFDS name -> (height, width, channels) of an example, and the number of classes where it has labels."""
