"""A record's entries of its data: the classes, and a key of the content."""

from typing import Any

import numpy as np

from cmjax.data.base import ArraySource, Source, class_names, known_labels
from cmjax.data.latents import LatentSource, about_latents
from cmjax.data.on_demand import KeptSource, fingerprint


def classes_of(source: Source) -> dict[str, Any]:
    """Gives a record's entries of the classes: "class_names", and "class_counts" where these are known without reading
    the examples; {} without classes."""
    names, labels = class_names(source), known_labels(source)
    if names is None:
        return {}
    counts = None if labels is None else np.bincount(labels, minlength=len(names)).tolist()
    return {"class_names": list(names), "class_counts": counts}


def about_data(source: Source) -> dict[str, Any]:
    """Gives a record's entries of the data: `classes_of`, `data_key_of`, and `about_latents`."""
    return classes_of(source) | data_key_of(source) | about_latents(source)


def data_key_of(source: Source) -> dict[str, str]:
    """Gives a record's "data_key": the `fingerprint` of data in memory, and of latents, whose shards have keys; {} for
    larger ones, which would be read whole."""
    try:
        return {"data_key": fingerprint(source)} if isinstance(source, ArraySource | KeptSource | LatentSource) else {}
    except OSError:  # reading the damaged file will report it
        return {}
